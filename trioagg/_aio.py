"""asyncio inside Trio: the loop that our Kafka client runs in, and callbacks that need asyncio.

This module and ``_kafka*.py`` alone know asyncio.  Importing it costs nothing: trio-asyncio, which patches asyncio for
the whole process, is imported when a loop is opened.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("trioagg")

# trio-asyncio runs one callback per pass of Trio's scheduler.  With passes of 11 ms, 500 sends take 5.8 s; drained
# like this 0.06 s.
_CALLBACKS_PER_PASS: Final = 256

service_loop: ContextVar[Any] = ContextVar("trioagg_service_loop")
"""The loop of the service that the current code runs in; set by the service."""


class LoopErrors:
    """What went wrong in a loop where nobody looked.

    An error is logged, counted, and no more: trio-asyncio's own handler raises it into the loop's nursery, and one
    future that nobody looked at ends the program.

    Args:
      exits: Told of a SystemExit or KeyboardInterrupt out of a callback.  Raised into the loop's own task it would
        leave everybody who waits for something of asyncio waiting for ever.
      expected: Errors that a client leaves lying about after it has told its owner of them.
    """

    def __init__(
        self,
        exits: Callable[[BaseException], None] | None = None,
        expected: tuple[type[BaseException], ...] = (),
    ) -> None:
        self.count = 0
        self._exits, self._expected = exits, expected

    def __call__(self, loop: object, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, self._expected):
            return
        self.count += 1
        logger.error("in the asyncio loop: %s", context.get("message"), exc_info=error if error is not None else None)

    def exited(self, error: BaseException) -> None:
        self.count += 1
        if self._exits is not None:
            self._exits(error)
        else:
            logger.error("in the asyncio loop: %s, which is not for a callback to say", type(error).__name__)


@asynccontextmanager
async def open_drained_loop(errors: LoopErrors | None = None) -> AsyncIterator[Any]:
    """A trio-asyncio loop whose callbacks do not wait for one another's passes, and that survives its errors.

    Inside the block it is the current loop of trio-asyncio.  Open it in a task of its own where that must not be.

    Cancellation: leaving the block cancels the loop's asyncio tasks and waits for them.
    """
    import trio_asyncio

    async with trio_asyncio.open_loop() as loop:
        errors = errors if errors is not None else LoopErrors()
        loop.set_exception_handler(errors)
        _drain(loop, errors)
        await loop.synchronize()  # out of the step that it was in before
        yield loop


def _drain(loop: Any, errors: LoopErrors) -> None:
    from trio_asyncio import _base

    one_callback: Any = getattr(loop, "_main_loop_one", None)
    end_of_loop: Any = getattr(_base, "TrioAsyncioExit", None)
    if not _takes_no_wait(one_callback) or not isinstance(getattr(loop, "_stopped", None), trio.Event):
        # Private names of trio-asyncio.  Without them everything works; under load it is slow.
        logger.warning("this trio-asyncio is not one that we know how to drain: Kafka will be slow under load")
        return

    # Without the protection a Ctrl-C inside an asyncio callback ends the loop's task and leaves its users waiting.
    @trio.lowlevel.enable_ki_protection
    async def main_loop_some(no_wait: bool = False) -> None:  # noqa: ASYNC910 - as the one that it replaces
        try:
            await one_callback(no_wait=no_wait)
            for _ in range(_CALLBACKS_PER_PASS):
                if loop._stopped.is_set():
                    return
                await one_callback(no_wait=True)
        except trio.WouldBlock:
            if no_wait:
                raise
        except (KeyboardInterrupt, SystemExit) as error:
            if end_of_loop is None or isinstance(error, end_of_loop):
                raise
            errors.exited(error)

    loop._main_loop_one = main_loop_some
    # Readers and writers are called in tasks of their own, where a Ctrl-C does the same harm.
    if inspect.iscoroutinefunction(on_io := getattr(loop, "_io_task", None)):

        @trio.lowlevel.enable_ki_protection
        async def protected_on_io(*args: Any) -> None:
            await on_io(*args)

        loop._io_task = protected_on_io


def _takes_no_wait(function: Any) -> bool:
    try:
        return inspect.iscoroutinefunction(function) and "no_wait" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def asyncio_callback(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """Make a Trio callback of an asyncio-flavoured ``async def``.

        async with service.start(callback=trioagg.asyncio_callback(ask_the_model), ...):

    It runs as an asyncio task: in the trio-asyncio loop that is open around the caller, if there is one, else in the
    loop of the service.  It sees the context variables of its caller.

    Raises (when called):
      RuntimeError: if there is neither.

    Cancellation: the asyncio task is cancelled, and waited for.
    """

    @functools.wraps(function)
    @trio.lowlevel.enable_ki_protection
    async def run(*args: P.args, **kwargs: P.kwargs) -> R:
        loop = _current_loop()
        if loop is None:
            await trio.lowlevel.checkpoint()
            raise RuntimeError(
                f"no asyncio loop to run {getattr(function, '__qualname__', function)!s} in: the service has one; "
                "elsewhere open one with `async with trio_asyncio.open_loop():`"
            )
        result: R = await loop.run_aio_coroutine(_in_loop_aio(loop, function, *args, **kwargs))
        return result

    return run


async def _in_loop_aio(loop: Any, function: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
    import trio_asyncio

    # In this task's own copy of the context, so that `trio_as_aio` finds its way back from here.
    trio_asyncio.current_loop.set(loop)
    return await function(*args, **kwargs)


def _current_loop() -> Any:
    if "trio_asyncio" in sys.modules:
        users: Any = sys.modules["trio_asyncio"].current_loop.get()
        if users is not None and users.is_running():
            return users
    services = service_loop.get(None)
    return services if services is not None and services.is_running() else None
