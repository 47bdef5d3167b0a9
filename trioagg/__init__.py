"""From one Kafka message of many stations to one list of results, on time.

The floors; imports go downward only:

    0  _errors _records _context _blame _settings    what may go wrong, what is told, what may be set
    1  _collector _lanes _observer _stations _encoding _tuning _interrupts _watchdog _watermark _finished* _letters
    2  _fanout _uploader _statistics _reader         one batch; bringing lists up; reading messages
    3  _intake _deadlines _aio                       the bound of batches and their deadlines; the asyncio loop
    4  _aggregator                                   many batches
    5  _kafka*                                       source, sink, commits, rebalance, transactions
    6  _outputs _service                             AsyncDataAnalysisService
    7  _mock_broker _demo cli __main__               the command line
"""

from ._aggregator import BatchResultAggregator
from ._aio import asyncio_callback
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
    StrayCancel,
    TooManyDeadLetters,
    TopicUnavailable,
    TrioaggError,
    UploadFailed,
    UploadTimedOut,
)
from ._fanout import Batch, run_batch
from ._letters import DeadLetterLimit
from ._observer import Observer
from ._records import Answer, BatchReport, CompletedBy, StationOutcome, Verdict
from ._service import AsyncDataAnalysisService, ServiceStatistics
from ._settings import InputLimits, KafkaSettings
from ._statistics import AggregatorStatistics
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
    "MessageTooLarge",
    "Observer",
    "PoisonMessage",
    "ServiceStatistics",
    "Sink",
    "StationOutcome",
    "StrayCancel",
    "TooManyDeadLetters",
    "TopicUnavailable",
    "TrioaggError",
    "UploadFailed",
    "UploadTimedOut",
    "Verdict",
    "asyncio_callback",
    "current_batch",
    "run_batch",
]
