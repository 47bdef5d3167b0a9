"""Where a station's code runs: ``async def`` in a task of Trio's, a plain ``def`` in a thread."""

from __future__ import annotations

import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

P = ParamSpec("P")
R = TypeVar("R")


def is_async(function: Callable[..., object]) -> bool:
    """Whether calling *function* gives something to await: itself, its ``__call__``, or what a partial of it wraps."""
    while isinstance(function, functools.partial):
        function = function.func
    # Not iscoroutinefunction alone: an object with an async __call__ is a common way to carry a model around.
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - its kind is asked for, not whether there is one


@trio.lowlevel.disable_ki_protection
async def interruptible(function: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function of the user's out of a task of ours: Ctrl-C may be raised in it.

    Our own tasks hold it off until the main task can take it: Trio says that it may be raised between any two
    instructions, and start_soon() and the waits then leave a task behind that never runs, or runs twice.
    """
    return await function(*args, **kwargs)


class Threads:
    """A bounded set of threads for blocking stations.  At the deadline a thread is left behind and counted.

    Threads that were left behind keep their place until they end, so that hung ones can never pile up without bound.
    """

    def __init__(self, limit: int) -> None:
        # A limiter of our own: abandoned threads must not starve the rest of the application.
        self._limiter = trio.CapacityLimiter(limit)
        self._lock = threading.Lock()
        self._abandoned = 0

    @property
    def abandoned(self) -> int:
        """Threads that still run although nobody waits for them."""
        return self._abandoned

    @trio.lowlevel.enable_ki_protection
    async def run(self, function: Callable[[str, Any], Any], station_id: str, module_input: object) -> object:
        """Call the function in a thread.

        Cancellation: the thread runs on, unheard.
        """
        call = _Call(self, function)
        try:
            await trio.to_thread.run_sync(
                call,
                station_id,
                module_input,
                abandon_on_cancel=True,
                limiter=self._limiter,
                thread_name=f"trioagg {station_id}",
            )
        except trio.Cancelled:
            call.abandon()
            raise
        return call.outcome()

    def bind(self, function: Callable[[str, Any], Any]) -> Callable[[str, Any], Awaitable[object]]:
        return functools.partial(self.run, function)


class _Call:
    """One call in a thread, which ends before it is abandoned or after: the lock decides."""

    def __init__(self, threads: Threads, function: Callable[[str, Any], Any]) -> None:
        self._threads, self._function = threads, function
        self._running = self._abandoned = False
        self._result: object = None
        self._error: BaseException | None = None

    def __call__(self, station_id: str, module_input: object) -> None:
        with self._threads._lock:
            if self._abandoned:
                return  # while the thread was starting
            self._running = True
        try:
            self._result = self._function(station_id, module_input)
        except BaseException as error:  # noqa: ASYNC103, ASYNC104 - in a thread, and `outcome` raises it
            # Not through Trio: its frames would keep the error, which keeps them.  And a Cancelled that comes out of
            # Trio is our own cancellation, not one that the function had stored somewhere.
            self._error = error
        finally:
            with self._threads._lock:
                self._running = False
                if self._abandoned:
                    self._threads._abandoned -= 1

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
