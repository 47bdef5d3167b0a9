"""One batch: a nursery for its stations, one deadline, and a report that is fixed before the stragglers are reaped."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from ._batch import Batch, as_it_is_now, in_turn
from ._blame import lone_errors_bare
from ._calls import Calls
from ._checks import check_counts, check_in_trio, check_seconds
from ._context import BatchContext
from ._errors import StrayCancel
from ._goals import Goal
from ._records import BatchReport, CompletedBy
from ._servers import SERVER, Servers
from ._stuck import Samples

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from ._calls import StationTimeout
    from ._collector import BatchCollector
    from ._goals import Quorum
    from ._lanes import LaneName
    from ._records import Places
    from ._retry import Retry

T = TypeVar("T")

DEFAULT_RUNNING_STATIONS: Final = 1000
_THREADS_OF_ONE_BATCH: Final = 40

_LISTS_FIRST_SECONDS: Final = 0.25
"""How long stragglers go on at most because lists wait for their upload to begin."""


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
    check_in_trio()
    check_seconds(batch_timeout=batch_timeout)
    check_counts(max_running_stations=max_running_stations)
    if not callable(callback):
        raise ValueError(f"callback={callback!r} cannot be called")
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
    servers: Servers | None = None
    reaped = False
    try:
        async with trio.open_nursery() as nursery:
            try:
                if not batch._collector.missing:
                    batch.end(CompletedBy.ALL)
                elif inputs is not None and calls is not None and batch.report is None:
                    batch._observer.started(batch.batch_id)
                    call = calls.of(batch.deadline, batch._collector)
                    servers = Servers(batch, inputs, call, calls.at_once(max_running_stations), nursery)
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

    def stragglers(self) -> dict[Batch, trio.Nursery]:
        """Closed batches whose stations run on, whatever ended them."""
        return self.unreaped | self.aborted

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
            if task.name != SERVER and not collector.has_heard((task.name,)) and (stack := calls.where(task)):
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
