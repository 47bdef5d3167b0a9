"""From one Kafka message of many stations to one list of results, on time.

The floors; imports go downward only:

    0  _errors _checks _encoding _records _context _blame _settings  what may go wrong, what is told, what may be set
    1  _collector _goals _sla _observer _stations _join _tuning _interrupts _watchdog _watermark _finished* _letters
    2  _stuck _lanes _processes _retry _calls  how one station is called
    3  _batch _servers _fanout  one batch
    4  _uploader _statistics _reader _stragglers _intake _deadlines _remembered _aio  what many batches need
    5  _aggregator  many batches
    6  _kafka*  source, sink, commits, rebalance, transactions
    7  _outputs _topics _service _replay*  AsyncDataAnalysisService
    8  _mock_broker _demo cli __main__  the command line
"""

from ._aggregator import BatchResultAggregator
from ._aio import asyncio_callback
from ._batch import Batch
from ._collector import BatchCollector
from ._context import BatchContext, current_batch
from ._errors import (
    BadResult,
    Closed,
    ConnectFailed,
    DeadLetterRefused,
    KafkaError,
    MessageTooLarge,
    PoisonMessage,
    StationSkipped,
    StationTimedOut,
    StrayCancel,
    TooManyDeadLetters,
    TopicUnavailable,
    TrioaggError,
    UploadFailed,
    UploadTimedOut,
    WorkerDied,
)
from ._fanout import run_batch
from ._goals import Progress
from ._join import Latest, Window
from ._letters import DeadLetterLimit
from ._observer import Observer
from ._records import Answer, BatchReport, CompletedBy, StationOutcome, Verdict
from ._replay import Replayed, replay
from ._retry import Retry, exponential_backoff
from ._service import AsyncDataAnalysisService
from ._settings import InputLimits, KafkaSettings
from ._statistics import AggregatorStatistics, ServiceStatistics
from ._uploader import Sink

__all__ = [
    "AggregatorStatistics",
    "Answer",
    "AsyncDataAnalysisService",
    "BadResult",
    "Batch",
    "BatchCollector",
    "BatchContext",
    "BatchReport",
    "BatchResultAggregator",
    "Closed",
    "CompletedBy",
    "ConnectFailed",
    "DeadLetterLimit",
    "DeadLetterRefused",
    "InputLimits",
    "KafkaError",
    "KafkaSettings",
    "Latest",
    "MessageTooLarge",
    "Observer",
    "PoisonMessage",
    "Progress",
    "Replayed",
    "Retry",
    "ServiceStatistics",
    "Sink",
    "StationOutcome",
    "StationSkipped",
    "StationTimedOut",
    "StrayCancel",
    "TooManyDeadLetters",
    "TopicUnavailable",
    "TrioaggError",
    "UploadFailed",
    "UploadTimedOut",
    "Verdict",
    "Window",
    "WorkerDied",
    "asyncio_callback",
    "current_batch",
    "exponential_backoff",
    "replay",
    "run_batch",
]
