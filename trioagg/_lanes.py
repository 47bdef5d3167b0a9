"""Where a station's code runs: ``async def`` in a task of Trio's; a plain ``def`` in a thread, in place or a process.

===========  ==========================  ===============================
lane         for                         at the deadline
===========  ==========================  ===============================
``task``     ``async def``               cancelled
``thread``   blocking I/O                left behind and counted
``inline``   tiny, pure functions        looked at between two stations
``process``  what keeps a CPU busy       killed
===========  ==========================  ===============================
"""

from __future__ import annotations

import functools
import inspect
import math
import threading
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar

import trio

from ._errors import StationSkipped
from ._stuck import task_stack, thread_stack

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._records import Places

P = ParamSpec("P")
R = TypeVar("R")

LaneName = Literal["task", "thread", "inline", "process"]
StartMethod = Literal["spawn", "forkserver"]


class Lane(Protocol):
    """A way to run the stations of all batches of one owner."""

    at_once: float
    """Stations of one batch that can run at once.  One that waits for its turn has not started."""

    @property
    def abandoned(self) -> int:
        """Calls that still run although nobody waits for them."""

    async def __call__(self, station_id: str, value: Any, /) -> object:
        """Run one station."""

    def open(self) -> AbstractAsyncContextManager[None]:
        """What the lane needs for its life."""

    def where(self, task: trio.lowlevel.Task) -> Places:
        """Where the station is that *task* waits for, innermost first."""


def is_async(function: Callable[..., object]) -> bool:
    """Whether calling *function* gives something to await: itself, its ``__call__``, or what a partial of it wraps."""
    while isinstance(function, functools.partial):
        function = function.func
    # Not iscoroutinefunction alone: an object with an async __call__ is a common way to carry a model around.
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - its kind is asked for, not whether there is one


def check_lane(asked: object) -> None:
    """Raise ValueError for what is no lane."""
    if asked not in (None, "task", "thread", "inline", "process"):
        raise ValueError(f"lane={asked!r}: use 'task', 'thread', 'inline' or 'process'")


def lane_for(callback: Callable[..., object], asked: LaneName | None) -> LaneName:
    """The lane of a callback, by its kind where none was asked for.

    Raises:
      ValueError: if the callback cannot run in the lane that was asked for.
    """
    if is_async(callback):
        if asked not in (None, "task"):
            raise ValueError(f"lane={asked!r} is for a plain def: an async def runs as a task, so leave lane= out")
        return "task"
    if asked == "task":
        raise ValueError("lane='task' is for an async def: use 'thread', 'inline' or 'process' for a plain def")
    return asked or "thread"


@trio.lowlevel.disable_ki_protection
async def interruptible(function: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function of the user's out of a task of ours: Ctrl-C may be raised in it.

    Our own tasks hold it off until the main task can take it: Trio says that it may be raised between any two
    instructions, and start_soon() and the waits then leave a task behind that never runs, or runs twice.
    """
    return await function(*args, **kwargs)


class Inline:
    """Calls a tiny function in place: no task, no thread.  Between two stations the deadline is looked at."""

    at_once = math.inf
    abandoned = 0

    def __init__(self, function: Callable[[str, Any], Any]) -> None:
        self._function = function

    async def __call__(self, station_id: str, value: Any, /) -> object:  # noqa: ASYNC910, ASYNC124 - that is the point
        return self._function(station_id, value)  # noqa: ASYNC910 - as above

    def open(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def where(self, task: trio.lowlevel.Task) -> Places:
        return task_stack(task)


class Threads:
    """A bounded set of threads for blocking stations.  At the deadline a thread is left behind and counted.

    Args:
      limit: Threads that somebody waits for.
      most_abandoned: Threads that were left behind and run on.  They take no place of the others; but at this bound no
        more are started, so that hung ones never pile up: there are never more than both bounds together.
    """

    def __init__(self, function: Callable[[str, Any], Any], limit: int, most_abandoned: int) -> None:
        self._function, self.at_once, self._most_abandoned = function, float(limit), most_abandoned
        # A limiter of our own: ours must not starve the rest of the application.
        self._limiter = trio.CapacityLimiter(limit)
        self._no_limit = trio.CapacityLimiter(math.inf)
        self._lock = threading.Lock()
        self._abandoned = 0
        self._calls: dict[trio.lowlevel.Task, _Call] = {}

    @property
    def abandoned(self) -> int:
        """Threads that still run although nobody waits for them."""
        return self._abandoned

    def open(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def where(self, task: trio.lowlevel.Task) -> Places:
        call = self._calls.get(task)
        return ("waits for a thread: all are busy",) if call is None else thread_stack(call.ident)

    @trio.lowlevel.enable_ki_protection
    async def __call__(self, station_id: str, value: Any, /) -> object:
        """Call the function in a thread.

        Raises:
          StationSkipped: if too many threads hang.

        Cancellation: the thread runs on, unheard.
        """
        async with self._limiter:
            if self._abandoned >= self._most_abandoned:
                raise StationSkipped(
                    f"{self._abandoned} threads of earlier stations hang: no new one is started before some end; "
                    "give the callback timeouts of its own, or use lane='process', which can be killed"
                )
            call = _Call(self, self._function)
            task = trio.lowlevel.current_task()
            self._calls[task] = call
            try:
                await trio.to_thread.run_sync(
                    call,
                    station_id,
                    value,
                    abandon_on_cancel=True,
                    limiter=self._no_limit,
                    thread_name=f"trioagg {station_id}",
                )
            except trio.Cancelled:
                call.abandon()
                raise
            finally:
                del self._calls[task]
        return call.outcome()


class _Call:
    """One call in a thread, which ends before it is abandoned or after: the lock decides."""

    def __init__(self, threads: Threads, function: Callable[[str, Any], Any]) -> None:
        self._threads, self._function = threads, function
        self._running = self._abandoned = False
        self.ident: int | None = None
        """The thread's, while it runs."""
        self._result: object = None
        self._error: BaseException | None = None

    def __call__(self, station_id: str, module_input: object) -> None:
        with self._threads._lock:
            if self._abandoned:
                return  # while the thread was starting
            self._running = True
        self.ident = threading.get_ident()
        try:
            self._result = self._function(station_id, module_input)
        except BaseException as error:  # noqa: ASYNC103, ASYNC104 - in a thread, and `outcome` raises it
            # Not through Trio: its frames would keep the error, which keeps them.  And a Cancelled that comes out of
            # Trio is our own cancellation, not one that the function had stored somewhere.
            self._error = error
        finally:
            self.ident = None
            with self._threads._lock:
                self._running = False
                if self._abandoned:
                    self._threads._abandoned -= 1
                    self._result = self._error = None  # nobody asks, and the error knows this frame

    def outcome(self) -> object:
        """What the function returned or raised."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._result
        finally:
            del error

    def abandon(self) -> None:
        with self._threads._lock:
            self._abandoned = True
            if self._running:
                self._threads._abandoned += 1
