"""One batch while it is open: who may answer, and what happens in the moment in which it ends."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import copy_context
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import trio

from ._collector import BatchCollector
from ._context import BatchContext, batch_context
from ._errors import StationSkipped
from ._observer import Observer
from ._records import Answer, BatchReport, CompletedBy
from ._stations import ModuleInputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ._goals import Goal
    from ._records import Places

_NOBODY_IS_SKIPPED: Final[Mapping[str, str]] = MappingProxyType({})


def _nobody(report: BatchReport) -> None:
    """Gets the report where nobody else does."""


class Batch:
    """One open batch.  In push mode answers are added to it, from any task of Trio's thread."""

    def __init__(
        self,
        context: BatchContext,
        expected_stations: Iterable[str],
        hand_over: Callable[[BatchReport], None] = _nobody,
        *,
        opened: float,
        pushed: bool = False,
        encode: Callable[[dict[str, Any]], bytes] | None = None,
        observer: Observer = Observer.SILENT,
        goal: Goal | None = None,
        skipped: Mapping[str, str] = _NOBODY_IS_SKIPPED,
    ) -> None:
        self._starts: dict[str, float] = {}
        self._collector = BatchCollector(
            context.batch_id, expected_stations, encode=encode, starts=None if pushed else self._starts
        )
        self._opened = opened
        self._observer = observer
        for station_id, reason in skipped.items():
            self._collector.add_failure(station_id, StationSkipped(reason))
        self.to_run = self._collector.missing
        """Stations that are to be run: those that are not skipped."""
        self._goal = goal or None
        # The serving tasks count answers themselves, unless somebody has to be told of each.
        self._hears_answers = observer.hears_answers() or self._goal is not None
        self._hand_over = hand_over
        self._closed = trio.Event()
        self.context = context
        self.when_closed: Callable[[Batch], None] = lambda batch: None
        """Called with the batch when it has ended; for whoever holds on to it until then."""
        self.where_stuck: Callable[[], dict[str, Places]] = dict
        """Asked when it ends, where stations wait that have not answered."""
        token = batch_context.set(context)
        self.variables = copy_context()
        """The context variables that its stations begin with, and that its list leaves in."""
        batch_context.reset(token)

    def __repr__(self) -> str:
        done, expected = self.progress
        return f"<Batch {self.batch_id!r} {done}/{expected}{' closed' if self._closed.is_set() else ''}>"

    @property
    def batch_id(self) -> str:
        """Its name, as it was given."""
        return self.context.batch_id

    @property
    def deadline(self) -> float:
        """On Trio's clock."""
        return self.context.deadline

    @property
    def progress(self) -> tuple[int, int]:
        """How many stations have answered, and how many are expected."""
        return self._collector.progress

    @property
    def report(self) -> BatchReport | None:
        """The report, once the batch is closed."""
        return self._collector.report

    def add_result(self, station_id: str, result: dict[str, Any] | None) -> Answer:
        """A station has answered: a dict, or None for no output.  Says what became of the answer; never raises."""
        return self._heard(station_id, self._collector.add_result(station_id, result))

    def add_failure(self, station_id: str, error: BaseException) -> Answer:
        """A station has failed.  Says what became of the answer; never raises."""
        return self._heard(station_id, self._collector.add_failure(station_id, error))

    def complete(self) -> None:
        """End the batch now, with the answers that are in.  Without effect on a batch that has ended."""
        self.end(CompletedBy.FORCED)

    def abort(self) -> None:
        """End the batch now, without a list.  Without effect on a batch that has ended."""
        self.end(CompletedBy.ABORTED)

    async def wait_closed(self) -> BatchReport:
        """Wait until the batch has ended; its report is fixed then.

        Cancellation: the batch goes on.
        """
        await self._closed.wait()
        assert self._collector.report is not None
        return self._collector.report

    def _heard(self, station_id: str, answer: Answer) -> Answer:
        if answer is Answer.ACCEPTED:
            if self._hears_answers:
                self._observer.answered(self.batch_id, station_id, *self._collector.progress)
            if not self._collector.missing:
                self.end(CompletedBy.ALL)
            elif self._goal is not None and (reason := self._goal.reached(self._collector)) is not None:
                self.end(reason)
        else:
            self._observer.ignored(self.batch_id, station_id, answer)
        return answer

    @trio.lowlevel.enable_ki_protection
    def end(self, reason: CompletedBy) -> None:
        """Fix the report and hand the list over, at once and without waiting for anybody.

        Whoever ends a batch does it with this: the task of its last station, the deadline, a caller.  Without effect on
        a batch that has ended.
        """
        if self._collector.report is not None:
            return
        if not self._collector.missing and reason is not CompletedBy.ABORTED:
            reason = CompletedBy.ALL  # nobody was expected, and the deadline came before the task that says so
        stuck = self.where_stuck() if self._collector.missing and reason is not CompletedBy.ABORTED else None
        self.where_stuck = dict
        report = self._collector.close(
            reason,
            seconds=trio.current_time() - self._opened,
            timeout_seconds=self.context.deadline - self._opened,
            stuck=stuck,
        )
        self._closed.set()
        self.when_closed(self)
        hand_over, self._hand_over = self._hand_over, _nobody  # it knows us: no cycle must be left behind
        self.variables.run(hand_over, report)


def as_it_is_now(stations: Mapping[str, Any]) -> Mapping[str, Any]:
    """The stations of a batch, whatever callers and callbacks do to their mapping while it runs.

    Raises:
      TypeError: if *stations* is not a mapping.
    """
    if not isinstance(stations, Mapping):
        raise TypeError(f"stations must be a mapping of station ids to values, not {type(stations).__name__}")
    return stations if isinstance(stations, ModuleInputs) else dict(stations)  # nobody else has those


def in_turn(
    batch: Batch, stations: Mapping[str, Any], skipped: Mapping[str, str] = _NOBODY_IS_SKIPPED
) -> Iterable[tuple[str, Any]]:
    """The stations of *batch*, each with its value: without a table of their ids, which the batch has already."""
    if skipped:
        return ((station_id, stations[station_id]) for station_id in stations if station_id not in skipped)
    if isinstance(stations, ModuleInputs):
        return stations.items()
    return zip(batch._collector._expected, list(stations.values()), strict=True)
