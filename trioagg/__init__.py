"""From one Kafka message of many stations to one list of results, on time.

The floor plan; imports go downward only:

    0  _errors _records _settings _blame     what may go wrong, what is told, how to reach Kafka
    1  _collector _context _observer _lanes _stations _encoding _watermark _tuning
    2  _fanout _uploader _statistics         one batch; bringing lists up
    3  _intake _aggregator _aio              many batches; the asyncio loop
    4  _kafka                                source, sink, commits, rebalance
    5  _service                              AsyncDataAnalysisService
"""

from ._aggregator import BatchResultAggregator
from ._collector import BatchCollector
from ._context import BatchContext, current_batch
from ._fanout import Batch, run_batch
from ._records import Answer, BatchReport, CompletedBy, StationOutcome, Verdict

__all__ = [
    "Answer",
    "Batch",
    "BatchCollector",
    "BatchContext",
    "BatchReport",
    "BatchResultAggregator",
    "CompletedBy",
    "StationOutcome",
    "Verdict",
    "current_batch",
    "run_batch",
]
