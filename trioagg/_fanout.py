"""One batch: a nursery for its stations, one deadline, and a report that is fixed before the stragglers are reaped.

How the stations are served (the figures are in ``python -m bench core``): a task per station costs more than most
stations do, and a fixed pool starves.  So a *server* takes the next station of its batch as long as its stations do not
wait, and starts *heirs* ahead of itself: tasks that run only when a station does wait, and then serve on.  A station
that waits has a task to itself; one that does not costs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import copy_context
from functools import partial
from operator import is_
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from ._blame import lone_errors_bare, must_get_out
from ._calls import Calls
from ._collector import BatchCollector
from ._context import BatchContext, batch_context
from ._errors import StationSkipped, StrayCancel
from ._goals import Goal
from ._observer import Observer
from ._records import Answer, BatchReport, CompletedBy
from ._stations import ModuleInputs
from ._stuck import Samples

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from ._calls import StationCallback, StationTimeout
    from ._goals import Quorum
    from ._lanes import LaneName
    from ._records import Places
    from ._retry import Retry

T = TypeVar("T")

_SLICE_SECONDS: Final = 0.001
"""How long the servers of a batch go on without a look at the scheduler; a deadline is late by that much at most."""

_LISTS_FIRST_SECONDS: Final = 0.25
"""How long stragglers go on at most because lists wait for their upload to begin."""

_SERVER: Final = "trioagg server"
"""The name of a server that has no station yet."""

_GENERATION_GROWTH: Final = 8
_LARGEST_GENERATION: Final = 512

DEFAULT_RUNNING_STATIONS: Final = 1000
_THREADS_OF_ONE_BATCH: Final = 40


_ACCEPTED: Final = Answer.ACCEPTED
_KNOWS_SCOPES: Final = hasattr(trio.lowlevel.Task, "_cancel_status")


_NOBODY_IS_SKIPPED: Final[Mapping[str, str]] = MappingProxyType({})


class _NoScope:
    _cancel_status = None


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


class Reaper:
    """Lets closed batches cancel their stragglers one at a time, one in each pass of the scheduler.

    A thousand batches that expire together have a hundred thousand tasks to cancel.  All at once would hold up the loop
    for seconds, and with it the lists that are not out yet.
    """

    def __init__(self, lists_begun: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint) -> None:
        self._lists_begun = lists_begun
        self._turn = trio.Lock()
        self.unreaped: dict[Batch, trio.Nursery] = {}
        """Closed batches with stations that were cancelled and have not ended yet."""
        self.aborted: dict[Batch, trio.Nursery] = {}
        """The same, of batches that were cancelled from above: that is no fault of their stations."""
        self._samples = Samples()

    def stacks(self, nursery: trio.Nursery, calls: Calls, collector: BatchCollector) -> dict[str, Places]:
        """Where some of the stations in *nursery* are that have not answered."""
        room = self._samples.take(trio.current_time())
        found: dict[str, Places] = {}
        if not room:
            return found
        for task in nursery.child_tasks:
            if len(found) == room:
                break
            # A server may have given way with the name of a station that has answered.
            if task.name != _SERVER and not collector.has_heard((task.name,)) and (stack := calls.where(task)):
                found[task.name] = stack
        self._samples.give_back(room - len(found))
        return found

    @trio.lowlevel.enable_ki_protection
    async def reap(self, batch: Batch, nursery: trio.Nursery) -> None:
        patience = trio.current_time() + _LISTS_FIRST_SECONDS
        async with self._turn:
            # Cancelling a batch's stations takes the loop longer than calling the handlers for ten lists.
            with trio.CancelScope(deadline=patience):
                await self._lists_begun()
            nursery.cancel_scope.cancel()
            await trio.lowlevel.cancel_shielded_checkpoint()
        # Stations that heed their cancellation have ended after this one.
        await trio.lowlevel.cancel_shielded_checkpoint()
        if nursery.child_tasks:
            self.unreaped[batch] = nursery


async def run_batch(
    batch_id: str,
    stations: Mapping[str, T],
    callback: Callable[[str, T], Any],
    *,
    batch_timeout: float = 5.0,
    quorum: Quorum | None = None,
    required: Iterable[str] = (),
    max_failures: int | None = None,
    station_timeout: StationTimeout | None = None,
    retry_station: Retry | None = None,
    lane: LaneName | None = None,
    max_running_stations: int = DEFAULT_RUNNING_STATIONS,
) -> BatchReport:
    """Run every station at once and report what they said in time.

    Args:
      stations: Station id -> what the callback gets as its second argument.
      callback: ``callback(station_id, value) -> dict | None``.  ``async def`` runs as a task, ``def`` in a thread.
      batch_timeout: Seconds from now, on Trio's clock.  The report is fixed then.  A station that ignores its
        cancellation delays the return, never the report: no task outlives its block.  A thread is left behind.
      quorum: So many stations are enough (an int), or so large a part of them (a float), or
        ``quorum(progress: Progress) -> bool``.  Who has failed does not count.
      required: Stations without whose answer a quorum is none.
      max_failures: More failed stations than this end the batch.
      station_timeout: Seconds for one try of one station, or a function of its id; it is ``failed`` then.
      retry_station: When a station is tried again, within the batch's timeout.
      lane: Where a plain ``def`` runs: ``"thread"``, ``"inline"`` or ``"process"``.
      max_running_stations: How many stations run at once; in threads never more than 40.

    Raises:
      TypeError: if *stations* is not a mapping.
      ValueError: if a value is out of its range, or the callback cannot run in that lane.
      StrayCancel: if the callback cancelled the nursery that it runs in.
      KeyboardInterrupt, SystemExit: if a station raises it.  Whatever else a station raises is its verdict.

    Cancellation: the stations are cancelled too, and there is no report.  The batch's timeout is not a cancellation:
    late stations have the verdict ``timed_out``.
    """
    check_limits(batch_timeout=batch_timeout, max_running_stations=max_running_stations)
    stations = as_it_is_now(stations)
    calls = Calls(
        callback, lane=lane, max_threads=_THREADS_OF_ONE_BATCH, station_timeout=station_timeout, retry=retry_station
    )
    goal = Goal(quorum, required, max_failures)
    with lone_errors_bare():
        async with calls.open():
            opened = trio.current_time()
            context = BatchContext(batch_id=batch_id, deadline=opened + batch_timeout)
            batch = Batch(context, stations, opened=opened, goal=goal)
            inputs = in_turn(batch, stations)
            del stations
            await serve(batch, inputs, calls, max_running_stations, Reaper(), _end_at_deadline)
    assert batch.report is not None
    return batch.report


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


def check_limits(*, batch_timeout: object = 0.0, max_running_stations: int = 1) -> None:
    """Raise ValueError for what no batch can be run with."""
    if not isinstance(batch_timeout, int | float) or not batch_timeout >= 0:
        raise ValueError(f"batch_timeout={batch_timeout!r}: it must be 0 or more seconds")
    if not isinstance(max_running_stations, int) or max_running_stations < 1:
        raise ValueError(f"max_running_stations={max_running_stations!r}: it must be 1 or more")


async def _end_at_deadline(batch: Batch) -> None:
    with trio.CancelScope(deadline=batch.deadline):
        await batch.wait_closed()
    batch.end(CompletedBy.TIMEOUT)


@trio.lowlevel.enable_ki_protection
async def serve(
    batch: Batch,
    inputs: Iterable[tuple[str, Any]] | None,
    calls: Calls | None,
    max_running_stations: int,
    reaper: Reaper,
    wait_ended: Callable[[Batch], Awaitable[object]] = Batch.wait_closed,
) -> None:
    """Live through one batch: from its opening until the last of its tasks has ended.

    Args:
      inputs: The stations to run, from :func:`in_turn`; None in push mode, where the answers come from elsewhere.
      wait_ended: Returns when the batch has ended; a batch that nobody else gives a deadline needs one here.

    Cancellation: the batch is aborted.
    """
    servers: _Servers | None = None
    reaped = False
    try:
        async with trio.open_nursery() as nursery:
            try:
                if not batch._collector.missing:
                    batch.end(CompletedBy.ALL)
                elif inputs is not None and calls is not None and batch.report is None:
                    batch._observer.started(batch.batch_id)
                    call = calls.of(batch.deadline, batch._collector)
                    servers = _Servers(batch, inputs, call, calls.at_once(max_running_stations), nursery)
                    batch.where_stuck = partial(reaper.stacks, nursery, calls, batch._collector)
                    servers.start()
                await wait_ended(batch)
            except trio.Cancelled:
                reaper.aborted[batch] = nursery
                batch.end(CompletedBy.ABORTED)
                raise
            # The list has left.  The stragglers are reaped after that, and in turn: with the deadline around the
            # nursery, a thousand batches that expire together would be seconds late.
            if servers is not None and servers.are_busy():
                reaped = True
                await reaper.reap(batch, nursery)
    finally:
        reaper.unreaped.pop(batch, None)
        reaper.aborted.pop(batch, None)
    if nursery.cancel_scope.cancel_called and not reaped:
        # Nobody above us was cancelled, yet our nursery was: a list could be silently incomplete.
        raise StrayCancel(batch.batch_id)


class _Servers:
    """The tasks that serve the stations of one batch."""

    def __init__(
        self,
        batch: Batch,
        inputs: Iterable[tuple[str, Any]],
        call: StationCallback,
        cap: int,
        nursery: trio.Nursery,
    ) -> None:
        self._batch, self._nursery = batch, nursery
        self._left = batch.to_run
        self._room = cap
        self._idle = 0
        self._generation = 1
        self._giving_way = False
        # Trio's clock, not time.perf_counter: seeded runs repeat under MockClock.
        now = trio.lowlevel.current_clock().current_time
        self._slice_began = now()
        self._clean = batch.variables
        self._clean_values = tuple(self._clean.values())
        items: Iterator[tuple[str, Any]] = iter(inputs)
        # What every server needs: bound once, not once a task.
        self._bound = call, batch._collector, batch._starts, batch._opened, now, items, len(self._clean_values)

    def start(self) -> None:
        """Start the first server."""
        self._start_heirs(1)

    def are_busy(self) -> bool:
        """Whether a task is left that may not end by itself: a station's, or one that it started beside itself."""
        return len(self._nursery.child_tasks) > self._idle

    def _start_generation(self) -> None:
        """The first heir alone: most batches never need a second one.  Then generations, each larger than the last."""
        self._start_heirs(min(self._generation, self._left, self._room))
        self._generation = min(self._generation * _GENERATION_GROWTH, _LARGEST_GENERATION)

    @trio.lowlevel.enable_ki_protection
    def _start_heirs(self, count: int) -> None:
        self._idle += count
        self._room -= count
        self._clean.run(self._start_tasks, count)

    def _start_tasks(self, count: int) -> None:
        start, serve = self._nursery.start_soon, self._serve
        for _ in range(count):
            start(serve, name=_SERVER)

    async def _serve(self) -> None:  # noqa: ASYNC910 - stations that never wait are what it is made for
        self._idle -= 1
        batch = self._batch
        if self._giving_way or batch.report is not None or not self._left:
            # Not needed: the server that started us had only given way for a moment, or was the last.
            self._room += 1
            self._generation = 1
            return  # noqa: ASYNC910 - as above
        call, collector, starts, opened, now, items, variables = self._bound
        task = trio.lowlevel.current_task()
        # Private, hence the stand-in: a Trio without it has a sharper eye for scopes left open, or none.
        inside: Any = task if _KNOWS_SCOPES else _NoScope
        scope = inside._cancel_status
        hears_answers = batch._hears_answers
        began = now()
        while True:
            # First: Ctrl-C between the two must not let another server ask for one too many.
            left = self._left = self._left - 1
            station_id, module_input = next(items)
            if left and not self._idle and self._room:
                self._start_generation()
            task.name = station_id
            starts[station_id] = began - opened
            try:
                result = await call(station_id, module_input)
                ended = now()
                answer = collector.add_result(station_id, result, ended - began)
            except BaseException as error:  # noqa: ASYNC103, ASYNC104 - what must get out is raised
                out = must_get_out(error)
                if out is not None:
                    try:
                        if out is error:
                            raise
                        raise out from None  # noqa: ASYNC104 - it is the part that is Cancelled
                    finally:
                        del out  # else its traceback keeps this frame, which keeps it
                ended = now()
                answer = collector.add_failure(station_id, error, ended - began)
            if answer is not _ACCEPTED or hears_answers:
                batch._heard(station_id, answer)
            elif not collector.missing:
                batch.end(CompletedBy.ALL)
            if collector._report is not None or not self._left:
                break
            context = copy_context()
            if (
                len(context) != variables
                or context.get(batch_context) is not batch.context
                or (variables > 1 and not all(map(is_, context.values(), self._clean_values)))
                or inside._cancel_status is not scope
            ):
                # The station left a context variable set, or a cancel scope open (in an async generator that it did not
                # close, say), which is its own and not the next station's: let a fresh task go on.  Variables by
                # identity, never by ==: an array has no truth, and two equal lists are two.
                if not self._idle:
                    self._start_heirs(1)
                break
            began = ended
            if ended - self._slice_began >= _SLICE_SECONDS:
                # Stations that block without waiting must not outrun the deadline: one server gives way, and goes on
                # alone; the others end.  If stations were started meanwhile, ours has waited, and the heirs are needed.
                if self._giving_way:
                    break
                self._giving_way = blocked = self._left == left
                try:
                    await trio.lowlevel.checkpoint()
                finally:
                    if blocked:
                        self._giving_way = False
                if collector._report is not None or not self._left or self._giving_way:
                    break
                began = self._slice_began = now()
        self._room += 1
        # From 3.12 on, the frames of a kept error keep this one and what it knows: us, who keep the error.
        del self, batch, collector
