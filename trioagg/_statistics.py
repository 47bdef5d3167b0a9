"""Totals over an aggregator's life, and the frozen snapshot of them that users get."""

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
