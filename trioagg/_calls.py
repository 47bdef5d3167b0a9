"""How one station is called: in its lane, for so long at most, and again where it may be.

What was not asked for costs nothing: without a limit and without retries the callback itself is called.
"""

from __future__ import annotations

import functools
import math
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import trio

from ._errors import StationSkipped, StationTimedOut
from ._lanes import Inline, Lane, Threads, check_lane, is_async, lane_for
from ._processes import Processes
from ._retry import Retry
from ._stuck import task_stack

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._collector import BatchCollector
    from ._lanes import LaneName, StartMethod
    from ._records import Places

    StationCallback = Callable[[str, Any], Awaitable[object]]
    StationTimeout = float | Callable[[str], float | None]


class Calls:
    """What the stations of all batches of one owner have in common in being called.

    Args:
      callback: The user's; without it only the other values are looked at.
      lane: Where it runs; None is by its kind.
      max_threads: For ``thread``: those that somebody waits for.
      max_abandoned_threads: For ``thread``: those that were left behind at a deadline.
      max_processes: For ``process``; None is one for every CPU.
      start_method: For ``process``.
      station_timeout: Seconds for one try of one station, the wait for a thread or a worker included; or a function of
        its id, where None is no limit.
      retry: When a station is tried again.

    Raises:
      ValueError: if the callback cannot run in that lane, or *station_timeout* is not more than 0.
    """

    def __init__(
        self,
        callback: Callable[[str, Any], Any] | None,
        *,
        lane: LaneName | None = None,
        max_threads: int = 100,
        max_abandoned_threads: int = 100,
        max_processes: int | None = None,
        start_method: StartMethod = "spawn",
        station_timeout: StationTimeout | None = None,
        retry: Retry | None = None,
    ) -> None:
        if station_timeout is not None and not callable(station_timeout) and not _is_some_time(station_timeout):
            raise ValueError(f"station_timeout={station_timeout!r}: it must be more than 0 seconds, or a function")
        if callable(station_timeout) and is_async(station_timeout):
            raise ValueError("station_timeout= must be a plain def: it is asked between two stations")
        if retry is not None and not isinstance(retry, Retry):
            raise ValueError(f"retry_station={retry!r}: use Retry(attempts=3)")
        for name, number in (
            ("max_threads", max_threads),
            ("max_abandoned_threads", max_abandoned_threads),
            ("max_processes", 1 if max_processes is None else max_processes),
        ):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name}={number!r}: it must be 1 or more")
        if start_method not in ("spawn", "forkserver"):
            # Not "fork": it copies a process with threads, whose locks may be held for ever in the copy.
            raise ValueError(f"start_method={start_method!r}: use 'spawn' or 'forkserver'")
        check_lane(lane)
        self.lane: Lane | None = None
        """None for tasks: these need nothing."""
        if callback is not None:
            match lane_for(callback, lane):
                case "thread":
                    self.lane = Threads(callback, max_threads, max_abandoned_threads)
                case "inline":
                    self.lane = Inline(callback)
                case "process":
                    self.lane = Processes(callback, max_processes, start_method)
        self._call: StationCallback = self.lane or callback or _nobody
        self._timeout, self._retry = station_timeout, retry
        self._once = self._call if station_timeout is None else self._in_time

    def open(self) -> AbstractAsyncContextManager[None]:
        """What the lane needs for its life."""
        return nullcontext() if self.lane is None else self.lane.open()

    def of(self, deadline: float, collector: BatchCollector) -> StationCallback:
        """How the stations of one batch are called.

        Args:
          deadline: Of the batch, on Trio's clock.
          collector: Gets the numbers of tries.
        """
        return self._once if self._retry is None else functools.partial(self._tried, self._retry, deadline, collector)

    @property
    def abandoned(self) -> int:
        """Calls that still run although nobody waits for them."""
        return 0 if self.lane is None else self.lane.abandoned

    def at_once(self, most: int) -> int:
        """Stations of one batch that run at once: *most*, or what the lane has room for."""
        return most if self.lane is None else int(min(most, self.lane.at_once))

    def where(self, task: trio.lowlevel.Task) -> Places:
        """Where the station is that *task* serves."""
        return task_stack(task) if self.lane is None else self.lane.where(task)

    async def _in_time(self, station_id: str, value: Any) -> object:
        timeout = self._timeout
        seconds = timeout(station_id) if callable(timeout) else timeout
        if seconds is None:
            return await self._call(station_id, value)
        if not _is_some_time(seconds):
            raise ValueError(f"station_timeout gave {seconds!r} for station {station_id}, not seconds")
        with trio.move_on_after(seconds):
            return await self._call(station_id, value)
        raise StationTimedOut(station_id, seconds)

    async def _tried(
        self, retry: Retry, deadline: float, collector: BatchCollector, station_id: str, value: Any
    ) -> object:
        shortest = math.inf
        attempt = 1

        def pause() -> float | None:
            nonlocal shortest
            now = trio.current_time()
            shortest = min(shortest, now - began)
            seconds = retry.wait_seconds(attempt)
            # A try that cannot be over in time is not begun: it would turn a failure into a late one.
            return None if attempt >= retry.attempts or now + seconds + shortest >= deadline else seconds

        try:
            while True:
                began = trio.current_time()
                try:
                    result = await self._once(station_id, value)
                except StationSkipped:
                    raise  # that is an answer
                except retry.errors:
                    seconds = pause()
                    if seconds is None:
                        raise
                else:
                    seconds = pause() if retry.is_not_good(result) else None
                    if seconds is None:
                        return result
                await trio.sleep(seconds)
                if collector.report is not None or trio.current_time() >= deadline:
                    await trio.sleep_forever()  # it has ended, or is about to, and cancels us
                attempt += 1
                collector.attempts[station_id] = attempt
        finally:
            # From 3.13 on, the frames of a kept error keep this one and what it knows: who keeps the error.
            del self, collector, pause


def _is_some_time(seconds: object) -> bool:
    return isinstance(seconds, int | float) and seconds > 0


async def _nobody(station_id: str, value: Any) -> None:
    """Called where there is no callback, which is never."""
    await trio.lowlevel.checkpoint()
