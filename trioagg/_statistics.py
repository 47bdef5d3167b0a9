"""What has been done and is being done: the frozen snapshots that users get, and an aggregator's totals."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._observer import Observer
from ._records import Answer, BatchReport, CompletedBy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._context import BatchContext


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorStatistics:
    """What an aggregator has done and is doing, at one moment."""

    open_batches: int
    """Accepted and not closed."""
    waiting_uploads: int
    running_uploads: int
    unreaped_batches: int
    """Closed batches with stations that have been cancelled and have not ended."""
    abandoned_threads: int
    """Threads of stations that still run although their batch is closed."""
    remembered_ids: int
    opened: int
    """This and what follows are totals over the aggregator's life."""
    closed: int
    completed_by: Mapping[str, int]
    uploaded: int
    failed_tries: int
    """Tries of uploads that failed, whatever came of the list."""
    skipped_uploads: int
    """Lists that were given up and count as up (``on_upload_failure="skip"``)."""
    dead_lettered: int
    """Lists that were given up and are dead letters now (``on_upload_failure="dead_letter"``)."""
    stations: Mapping[str, int]
    """Verdict -> stations, over all closed batches."""
    expected: int
    late: int
    duplicates: int
    unknown: int
    completion_rate: float
    """Batches completed by ``all`` / batches closed; 0.0 before the first one, as are the next three."""
    station_success_rate: float
    """Succeeded / expected."""
    mean_seconds: float
    """From the opening of a batch to its list."""
    timeout_rate: float
    """Batches completed by ``timeout`` / batches closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaStatistics:
    """A snapshot of the bridge."""

    assigned: tuple[tuple[str, int], ...]
    """The partitions that are ours now."""
    lag: Mapping[tuple[str, int], int | None]
    """Records between our position and the end of the partition, as the last fetch saw it; None before the first."""
    records_delivered: int
    already_done: int
    """Messages that were not handed out again: the commit that we began with says that they are up."""
    commits: int
    """Acknowledged commit requests, or transactions."""
    rebalances: int
    """How often partitions were taken from us, even if they came back."""
    late_finishes: int
    """Messages finished after their partition was gone: they moved no offset."""
    dropped_records: int
    """Messages in flight when the time of a revoke was over: another member processes them again."""
    offset_resets: int
    """How often an offset was not there any more."""
    transactional_producers: int
    """Producers started: one for an assignment of a partition, and one for a transaction whose end is unknown."""
    rebuilds: int
    """Clients that were torn down and made anew because they made no progress though Kafka answered."""
    loop_errors: int
    """Errors in the asyncio loop that nobody looked at; each is in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatistics(AggregatorStatistics):
    """What a service has done and is doing, at one moment."""

    messages: int
    """Read from the topics, whatever came of them."""
    poison: int
    """Messages that can never be processed; their offsets move on, behind their dead letters where these are wanted."""
    dead_letters: int
    """Dead letters that are acknowledged, of whatever reason."""
    empty: int
    """Messages without a station; they open no batch."""
    rejected_elements: int
    """Elements of otherwise good messages that have no usable station id."""
    context_messages: int
    """Read from the context topics."""
    context_poison: int
    """Those of them that nothing can be read from."""
    over_sla: int
    """Messages whose ``sla_seconds`` were over when they came."""
    loop_stalls: int
    """How often a task kept the loop to itself for longer than ``max_loop_stall``."""
    kafka: KafkaStatistics | None
    """None before the service has started."""


class Totals(Observer):
    """Counts the events of all batches."""

    def __init__(self) -> None:
        self.opened_batches = self.closed_batches = self.uploaded_batches = self.failed_tries = self.skipped = 0
        self.dead = 0
        self._seconds = 0.0
        self._completed_by: Counter[str] = Counter()
        self._stations: Counter[str] = Counter()
        self._answers: Counter[Answer] = Counter()

    def opened(self, batch: BatchContext, expected: int) -> None:
        self.opened_batches += 1

    def ignored(self, batch_id: str, station_id: str, answer: Answer) -> None:
        self._answers[answer] += 1

    def closed(self, report: BatchReport) -> None:
        self.closed_batches += 1
        self._seconds += report.seconds or 0.0
        self._completed_by[report.completed_by] += 1
        for verdict in ("succeeded", "no_output", "failed", "timed_out", "cancelled", "skipped"):
            self._stations[verdict] += getattr(report, verdict)

    def uploaded(self, report: BatchReport) -> None:
        self.uploaded_batches += 1

    def upload_failed(self, report: BatchReport, error: BaseException, attempt: int, attempts: int) -> None:
        self.failed_tries += 1

    def upload_skipped(self, report: BatchReport) -> None:
        self.skipped += 1

    def dead_lettered(self, report: BatchReport) -> None:
        self.dead += 1

    def snapshot(
        self,
        *,
        open_batches: int,
        waiting_uploads: int,
        running_uploads: int,
        unreaped_batches: int,
        abandoned_threads: int,
        remembered_ids: int,
    ) -> AggregatorStatistics:
        closed, expected = self.closed_batches, self._stations.total()
        return AggregatorStatistics(
            open_batches=open_batches,
            waiting_uploads=waiting_uploads,
            running_uploads=running_uploads,
            unreaped_batches=unreaped_batches,
            abandoned_threads=abandoned_threads,
            remembered_ids=remembered_ids,
            opened=self.opened_batches,
            closed=closed,
            completed_by={str(reason): self._completed_by[reason] for reason in CompletedBy},
            uploaded=self.uploaded_batches,
            failed_tries=self.failed_tries,
            skipped_uploads=self.skipped,
            dead_lettered=self.dead,
            stations=dict(self._stations),
            expected=expected,
            late=self._answers[Answer.LATE],
            duplicates=self._answers[Answer.DUPLICATE],
            unknown=self._answers[Answer.UNKNOWN],
            completion_rate=self._completed_by[CompletedBy.ALL] / closed if closed else 0.0,
            station_success_rate=self._stations["succeeded"] / expected if expected else 0.0,
            mean_seconds=self._seconds / closed if closed else 0.0,
            timeout_rate=self._completed_by[CompletedBy.TIMEOUT] / closed if closed else 0.0,
        )
