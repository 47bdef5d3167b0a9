"""Many batches at once: each with its deadline, all within one bound, every list to the uploader."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import trio

from ._batch import Batch, as_it_is_now, in_turn
from ._blame import lone_errors_bare
from ._calls import Calls
from ._checks import check_counts, check_in_trio, check_seconds, check_takes
from ._collector import each_once
from ._context import BatchContext
from ._deadlines import Deadlines
from ._errors import Closed, StrayCancel
from ._fanout import DEFAULT_RUNNING_STATIONS, Reaper, serve
from ._goals import Goal
from ._intake import Intake
from ._interrupts import interrupts_are_not_lost
from ._lanes import is_async
from ._observer import Log, LogLanguage, Observer, Observers
from ._records import Answer, BatchReport, CompletedBy
from ._remembered import RememberedIds
from ._statistics import AggregatorStatistics, Totals
from ._stragglers import name_stragglers
from ._tuning import tuned_gc
from ._uploader import Deliveries, OnUploadFailure, Sink, Upload, Uploader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from ._calls import StationTimeout
    from ._goals import Quorum
    from ._lanes import LaneName, StartMethod
    from ._retry import Retry

    BatchTimeout = float | Callable[[str | None, int], float]

T = TypeVar("T")

logger = logging.getLogger("trioagg")


class BatchResultAggregator(Generic[T]):
    """Runs batches of stations and brings their lists up.  An ``async with`` block is its life; it has one.

    Args:
      callback: ``callback(station_id, value) -> dict | None``, for :meth:`submit` and :meth:`run`.  ``async def`` runs
        as a task, ``def`` in a thread.
      batch_upload_handler: ``batch_upload_handler(batch_id, results_list)``, sync (in a thread) or async.  It returning
        means that the list is up; it raising is a failed try.
      report_handler: ``report_handler(report)``, sync or async: the whole :class:`BatchReport`, beside or instead.
      sink: Where lists go beside or instead of the handlers.
      batch_timeout: Seconds from the acceptance of a batch to its list, on Trio's clock; or
        ``batch_timeout(topic, stations)``, a function of the topic (None without Kafka) and the number of stations.
      cleanup_interval: Seconds for which the ids of closed batches are remembered (10,000 at most), so that an answer
        that comes after its batch can be told from one that belongs to none.
      max_batches_in_flight: Batches accepted and not up yet; at the bound accepting waits.
      max_unreaped_batches: Closed batches whose stations ignore their cancellation; at the bound accepting waits.
      quorum: So many stations are enough (an int), or so large a part of them (a float), or
        ``quorum(progress: Progress) -> bool``; the batch ends then.  Who has failed does not count.
      required: Stations without whose answer a quorum is none.
      max_failures: More failed stations than this end the batch.
      station_timeout: Seconds for one try of one station, or a function of its id; it is ``failed`` then.
      retry_station: When a station is tried again, within the batch's timeout.
      lane: Where a plain ``def`` runs: ``"thread"`` (the default), ``"inline"`` or ``"process"``.
      max_threads: In the lane ``thread``: threads that are waited for, over all batches.
      max_abandoned_threads: In the lane ``thread``: threads that were left behind at a deadline and run on; at the
        bound stations are skipped.
      max_processes: In the lane ``process``; None is one for every CPU.
      start_method: In the lane ``process``: ``"spawn"``, or ``"forkserver"``, which starts workers a little sooner, by
        a process that stays until the program ends.
      max_running_stations: Stations of one batch that run at once, where the lane has room for so many.
      max_uploads: Lists brought up side by side.
      on_upload_failure: After the last try: ``"stop"`` ends the block with :class:`UploadFailed`; ``"skip"`` logs an
        ERROR and counts the list as up; ``"dead_letter"`` does so once *dead_letter_handler* has it.
      dead_letter_handler: ``dead_letter_handler(report, error)``, sync or async, for a list that was given up.  What it
        raises ends the block.
      upload_attempts: Tries of one list.  TypeError, AttributeError and NameError are not tried again.
      upload_timeout: Seconds for one try of an async handler.  A sync one is waited for.
      drain_timeout: Seconds in which leaving the block brings up what is in flight.
      log_language: ``"en"``, or ``"zh"`` for the lines of the guide.
      observers: Told of every event of every batch.
      tune_gc: Freeze the garbage collector's view and raise its thresholds while the block lasts.

    Raises:
      ValueError: when made, if a value is out of its range.

    Leaving the block drains: no new batch, open ones end at their deadline at the latest, their lists go up, and then
    stations that ignore their cancellation are waited for.  An exception in the body, Cancelled or Ctrl-C aborts
    instead: no list goes up any more.  An upload that is given up, or a station that raises KeyboardInterrupt, ends the
    block with that error, bare; a group only if the body raised one too.
    """

    def __init__(
        self,
        callback: Callable[[str, T], Any] | None = None,
        batch_upload_handler: Callable[[str, list[dict[str, Any]]], Any] | None = None,
        *,
        report_handler: Callable[[BatchReport], Any] | None = None,
        sink: Sink | None = None,
        batch_timeout: BatchTimeout = 5.0,
        quorum: Quorum | None = None,
        required: Iterable[str] = (),
        max_failures: int | None = None,
        station_timeout: StationTimeout | None = None,
        retry_station: Retry | None = None,
        lane: LaneName | None = None,
        max_threads: int = 100,
        max_abandoned_threads: int = 100,
        max_processes: int | None = None,
        start_method: StartMethod = "spawn",
        cleanup_interval: float = 60.0,
        max_batches_in_flight: int = 100,
        max_unreaped_batches: int = 50,
        max_running_stations: int = DEFAULT_RUNNING_STATIONS,
        max_uploads: int = 4,
        on_upload_failure: OnUploadFailure = "stop",
        dead_letter_handler: Callable[[BatchReport, Exception], Any] | None = None,
        upload_attempts: int = 5,
        upload_timeout: float = 10.0,
        drain_timeout: float = 25.0,
        log_language: LogLanguage = "en",
        observers: Iterable[Observer] = (),
        tune_gc: bool = False,
    ) -> None:
        if callable(batch_timeout) and is_async(batch_timeout):
            raise ValueError("batch_timeout= must be a plain def, for it only computes")
        if not callable(batch_timeout):
            check_seconds(batch_timeout=batch_timeout)
        check_seconds(cleanup_interval=cleanup_interval, upload_timeout=upload_timeout, drain_timeout=drain_timeout)
        check_counts(
            max_running_stations=max_running_stations,
            max_batches_in_flight=max_batches_in_flight,
            max_unreaped_batches=max_unreaped_batches,
            max_uploads=max_uploads,
            upload_attempts=upload_attempts,
        )
        if on_upload_failure not in ("stop", "skip", "dead_letter"):
            raise ValueError(f"on_upload_failure={on_upload_failure!r}: use 'stop', 'skip' or 'dead_letter'")
        if (on_upload_failure == "dead_letter") is (dead_letter_handler is None):
            raise ValueError("on_upload_failure='dead_letter' and dead_letter_handler= go together")

        if callback is not None:
            check_takes("callback", callback, "station_id", "value")
        if batch_upload_handler is not None:
            check_takes("batch_upload_handler", batch_upload_handler, "batch_id", "results_list")
        if report_handler is not None:
            check_takes("report_handler", report_handler, "report")

        self._has_callback = callback is not None
        self._calls = Calls(
            callback,
            lane=lane,
            max_threads=max_threads,
            max_abandoned_threads=max_abandoned_threads,
            max_processes=max_processes,
            start_method=start_method,
            station_timeout=station_timeout,
            retry=retry_station,
        )
        self._goal = Goal(quorum, required, max_failures)
        self._batch_timeout = batch_timeout
        self._max_running_stations, self._drain_timeout = max_running_stations, drain_timeout
        self._tune_gc = tune_gc
        self._totals = Totals()
        self._observer = Observers([self._totals, Log(log_language), *observers])
        self._encode = None if sink is None else sink.encode
        self._deliveries = Deliveries(
            batch_upload_handler,
            report_handler,
            sink,
            dead_letter_handler,
            upload_timeout=upload_timeout,
            max_uploads=max_uploads,
        )
        # A sink waits for its broker and not for us: holding its lists back would only make it slower.
        only_sink = batch_upload_handler is None and report_handler is None and sink is not None
        self._uploader = Uploader(
            self._deliveries.deliver,
            self._observer,
            max_uploads=max_batches_in_flight if only_sink else max_uploads,
            attempts=1 if only_sink else upload_attempts,
            on_upload_failure=on_upload_failure,
            bury=self._deliveries.bury,
        )
        self._reaper = Reaper(self._uploader.wait_begun)
        self._deadlines = Deadlines()
        self._intake = Intake(max_batches_in_flight, self._reaper.unreaped, max_unreaped_batches)
        self._open: dict[str, Batch] = {}
        self._alive: set[Batch] = set()
        self._remembered = RememberedIds(cleanup_interval)
        self._state = "is not open yet: use `async with`"
        self._nursery: trio.Nursery | None = None
        self._block: AbstractAsyncContextManager[Self] | None = None

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Self:
        check_in_trio()
        if self._block is not None:
            raise RuntimeError("an aggregator lives once: make a new one for a second block")
        self._block = self._live()
        return await self._block.__aenter__()

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._block is not None
        return await self._block.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102 - it shields what must be

    # What users call.

    async def submit(self, batch_id: str, stations: Mapping[str, T]) -> Batch:
        """Accept a batch: its stations run in the background and its list goes up.

        Waits only while ``max_batches_in_flight`` is reached.

        Raises:
          TypeError: if the aggregator has no callback.
          Closed: if it is not open, drains, or has ended.

        Cancellation: while it waits, the batch is not accepted; afterwards it belongs to the aggregator.
        """
        return await self.admit(batch_id, stations)

    async def run(self, batch_id: str, stations: Mapping[str, T]) -> BatchReport:
        """:meth:`submit`, and wait until the list is up.

        Raises:
          TypeError: as :meth:`submit` does.
          Closed: as :meth:`submit` does; or if the batch was given up when the block ended.

        Cancellation: the batch goes on once it is accepted.
        """
        done = trio.Event()
        fates: list[bool] = []

        def when_done(up: bool) -> None:
            fates.append(up)
            done.set()

        batch = await self.admit(batch_id, stations, when_done=when_done)
        await done.wait()
        if not fates[0] or batch.report is None:
            raise Closed("the aggregator", f"has ended before the list of batch {batch_id} was up")
        return batch.report

    async def create_batch(self, batch_id: str, expected_stations: Iterable[str]) -> Batch:
        """Open a batch whose answers are pushed: ``batch.add_result(station_id, result)``.

        Raises:
          ValueError: if a batch of that id is open.
          Closed: as :meth:`submit` does.

        Cancellation: as :meth:`submit`.
        """
        if batch_id in self._open:
            await trio.lowlevel.checkpoint()
            raise ValueError(f"batch {batch_id} is open already")
        return await self.admit(batch_id, each_once(expected_stations), pushed=True)

    def add_result(self, batch_id: str, station_id: str, result: dict[str, Any] | None) -> Answer:
        """Push an answer to an open batch by its id.  For a closed one it is late, for any other unknown."""
        batch = self._open.get(batch_id)
        if batch is not None:
            return batch.add_result(station_id, result)
        return self._ignore(batch_id, station_id)

    def add_failure(self, batch_id: str, station_id: str, error: BaseException) -> Answer:
        """Push a failure, as :meth:`add_result` does a result."""
        batch = self._open.get(batch_id)
        if batch is not None:
            return batch.add_failure(station_id, error)
        return self._ignore(batch_id, station_id)

    def complete(self, batch_id: str) -> bool:
        """End an open batch now, with the answers that are in.  Says whether there was one of that id."""
        batch = self._open.get(batch_id)
        if batch is None:
            return False
        batch.complete()
        return True

    def complete_all(self) -> int:
        """:meth:`complete` every open batch; says how many there were."""
        batches = [batch for batch in self._alive if batch.report is None]
        for batch in batches:
            batch.complete()
        return len(batches)

    def statistics(self) -> AggregatorStatistics:
        """A frozen snapshot.  Threads may ask for it too, and so may whoever is left after the run."""
        return self._totals.snapshot(
            open_batches=len(self._deadlines),
            waiting_uploads=self._uploader.waiting,
            running_uploads=self._uploader.running,
            unreaped_batches=len(self._reaper.unreaped),
            abandoned_threads=self._calls.abandoned,
            remembered_ids=len(self._remembered),
        )

    # What the service calls.

    @property
    def in_flight(self) -> int:
        """Batches accepted and not up yet."""
        return self._intake.in_flight

    @property
    def room(self) -> int:
        """How many batches would be accepted without waiting."""
        return self._intake.room

    @trio.lowlevel.enable_ki_protection
    async def admit(
        self,
        batch_id: str,
        stations: Mapping[str, Any],
        *,
        pushed: bool = False,
        order: Hashable | None = None,
        when_done: Callable[[bool], None] = lambda up: None,
        still_wanted: Callable[[], bool] = lambda: True,
        budget: Callable[[float], float] = float,
        skipped: Mapping[str, str] = MappingProxyType({}),
        **message: Any,
    ) -> Batch:
        """Accept a batch.

        Args:
          order: Lists with the same key go up in the order of their acceptance.
          when_done: Called once, with whether the list is up.
          still_wanted: Asked after the wait for room; a batch that is not wanted any more is aborted at once.
          budget: Given the seconds of the batch's timeout, says how many of them are left for it.
          skipped: Those of the stations that are not to be run, and why.
          message: Facts of the Kafka message, for :class:`BatchContext`.
        """
        if not self._has_callback and not pushed:
            await trio.lowlevel.checkpoint()
            raise TypeError("this aggregator has no callback: give it one, or use create_batch() and push the answers")
        self._check_open()
        stations = as_it_is_now(stations)
        timeout = self._timeout_of(message.get("topic"), len(stations))
        await self._intake.enter()
        try:
            self._check_open()
            if pushed and batch_id in self._open:  # since we began to wait
                raise ValueError(f"batch {batch_id} is open already")
        except (Closed, ValueError):
            self._intake.leave()
            raise
        assert self._nursery is not None
        opened, seconds = trio.current_time(), budget(timeout)
        turn = self._uploader.take_turn(order)

        def done(up: bool) -> None:
            self._intake.leave()
            when_done(up)

        def hand_over(report: BatchReport) -> None:
            if self._open.get(batch_id) is batch:
                del self._open[batch_id]
            self._remembered.add(batch_id)
            self._observer.closed(report)
            if report.completed_by is CompletedBy.ABORTED:
                self._uploader.give_up(turn)
                done(False)
            elif self._deliveries:
                self._uploader.submit(Upload(report, batch._collector.encoded, batch.context, turn, done))
            else:
                self._uploader.give_up(turn)
                self._observer.uploaded(report)
                done(True)

        batch = Batch(
            BatchContext(batch_id=batch_id, deadline=opened + seconds, owner=self, **message),
            stations,
            hand_over,
            opened=opened,
            pushed=pushed,
            encode=self._encode,
            observer=self._observer,
            goal=self._goal,
            skipped=skipped,
        )
        self._open[batch_id] = batch
        self._alive.add(batch)
        self._deadlines.add(batch)
        self._observer.opened(batch.context, batch.progress[1])
        if not still_wanted():
            batch.abort()
        elif seconds <= 0 < timeout:
            batch.end(CompletedBy.TIMEOUT)  # nothing is left of its time: its stations are not even begun
        inputs = None if pushed else in_turn(batch, stations, skipped)
        self._nursery.start_soon(self._serve, batch, inputs, name=batch_id)
        return batch

    def abort(self, unwanted: Callable[[BatchContext], bool]) -> int:
        """Give up the batches that are not wanted any more, open or on their way up; says how many."""
        open_ones = [batch for batch in self._alive if batch.report is None and unwanted(batch.context)]
        for batch in open_ones:
            batch.abort()
        return len(open_ones) + self._uploader.drop(unwanted)

    def close(self) -> None:
        """Take no new batch from now on.  Those that wait to be accepted are turned away."""
        self._state = "is closing"
        self._intake.turn_away()

    # How it lives.

    @asynccontextmanager
    @trio.lowlevel.enable_ki_protection
    async def _live(self) -> AsyncIterator[Self]:
        drained = False
        watch = trio.CancelScope(shield=True)
        with lone_errors_bare() as theirs, tuned_gc(self._tune_gc), interrupts_are_not_lost():
            async with trio.open_nursery() as outer:
                outer.start_soon(name_stragglers, self._reaper.stragglers, watch, name="trioagg straggler watch")
                outer.start_soon(self._deadlines.run, name="trioagg deadlines")  # noqa: ASYNC113 - add() may come first
                try:
                    async with self._calls.open(), trio.open_nursery() as nursery:
                        self._nursery = nursery
                        await nursery.start(self._uploader.run)
                        self._state = "open"
                        try:
                            yield self
                        except BaseException as error:
                            theirs.append(error)
                            raise
                        finally:
                            self.close()  # when it aborts, too: who waits to be let in would wait for ever
                        await self.drain()
                        self._uploader.finish()
                        drained = True
                finally:
                    self._state = "has ended"
                    watch.cancel()
                    self._deadlines.stop()
                if not drained:
                    raise StrayCancel

    def _timeout_of(self, topic: str | None, stations: int) -> float:
        timeout = self._batch_timeout
        if not callable(timeout):
            return timeout
        seconds = timeout(topic, stations)
        check_seconds(batch_timeout=seconds)
        return seconds

    async def drain(self) -> None:
        """Take no new batch and bring up those in flight, within ``drain_timeout``; what is left then is aborted.

        Cancellation: those in flight go on.
        """
        self.close()
        with trio.move_on_after(self._drain_timeout) as patience:
            await self._intake.wait_empty()
        if patience.cancelled_caught:
            given_up = self.abort(lambda context: True)
            logger.error("not up within drain_timeout=%g s and given up: %d batches", self._drain_timeout, given_up)
            await self._intake.wait_empty()

    @trio.lowlevel.enable_ki_protection
    async def _serve(self, batch: Batch, inputs: Iterable[tuple[str, T]] | None) -> None:
        try:
            await serve(batch, inputs, self._calls, self._max_running_stations, self._reaper)
        finally:
            self._alive.discard(batch)
            self._intake.look_again()

    def _check_open(self) -> None:
        if self._state != "open":
            raise Closed("the aggregator", self._state)

    def _ignore(self, batch_id: str, station_id: str) -> Answer:
        answer = Answer.LATE if batch_id in self._remembered else Answer.UNKNOWN
        self._observer.ignored(batch_id, station_id, answer)
        return answer
