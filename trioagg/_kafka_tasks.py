"""asyncio's tasks, held as tightly as they can be: each has an owner, an end in sight, and a reader of its error.

``_aio`` marks an asyncio-flavoured function.
"""
# flake8: noqa: ASYNC910, ASYNC911 - asyncio knows no checkpoints

from __future__ import annotations

import asyncio
import contextlib
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiokafka

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_UNTIL_CANCELLED_SECONDS: Final = 1.0
_CLIENT: Final = str(Path(aiokafka.__file__).parent)


class Tasks:
    """The background tasks of one owner.

    Args:
      fail: Told of the error of a task that dies.
    """

    def __init__(self, fail: Callable[[BaseException], None]) -> None:
        self._fail = fail
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"trioagg {name}")
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def cancel_aio(self, seconds: float = _UNTIL_CANCELLED_SECONDS) -> None:
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)


async def set_aio(event: asyncio.Event, seconds: float) -> None:
    """Wait for *event*, at most so long."""
    if not event.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()


async def ended_aio(task: asyncio.Task[Any], seconds: float, *, cancel: bool = True) -> bool:
    """Give a task so long to end, cancel it then, and let nobody complain that its error was not looked at.

    Says whether it ended in time and well.
    """
    if not task.done() and seconds > 0:
        await asyncio.wait({task}, timeout=seconds)
    in_time = task.done()
    if not in_time and cancel:
        task.cancel()
        await asyncio.wait({task}, timeout=_UNTIL_CANCELLED_SECONDS)
    well = task.done() and not task.cancelled() and task.exception() is None
    return in_time and well


async def unhurried_aio(start: Coroutine[Any, Any, None]) -> None:
    """Await the start of a client; a cancellation waits a second for its end.

    Cancelled in its first question, it forgets the connection that it asked over.
    """
    task = asyncio.create_task(start)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await ended_aio(task, _UNTIL_CANCELLED_SECONDS)
        raise


async def stopped_aio(client: Any, seconds: float) -> bool:
    """Stop a producer or a consumer, and abandon it if it takes longer: with something unacknowledged and no broker it
    would wait for ever.  Says whether it ended in good order."""
    in_good_order = await ended_aio(asyncio.create_task(client.stop()), seconds)
    if not in_good_order:
        await _broken_off_aio(client)
    # A producer whose sender has died has failed all of its batches, and with each a future that nobody waits for.
    accumulator = getattr(client, "_message_accumulator", None)
    if accumulator is not None:
        for batch in (*accumulator._pending_batches, *chain.from_iterable(accumulator._batches.values())):
            look_at(batch._drain_waiter)
    # And the one of its transaction, if the sender died before anybody asked for the end of that.
    transaction = getattr(getattr(client, "_txn_manager", None), "_transaction_waiter", None)
    if transaction is not None:
        look_at(transaction)
    return in_good_order


async def _broken_off_aio(client: Any) -> None:
    parts = [getattr(client, name, None) for name in ("_sender", "_coordinator", "_fetcher")]
    tasks = {
        task for part in parts if part is not None for task in vars(part).values() if isinstance(task, asyncio.Task)
    }
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_UNTIL_CANCELLED_SECONDS)
    for task in tasks:
        look_at(task)
    connection = getattr(client, "client", None) or client._client
    await ended_aio(asyncio.create_task(connection.close()), _UNTIL_CANCELLED_SECONDS)


def look_at(future: asyncio.Future[Any]) -> None:
    """At its error, so that nobody complains that it was not looked at."""
    if future.done() and not future.cancelled():
        future.exception()


async def abandon_aio(*clients: Any) -> None:
    """Let go of clients that would not end: nothing of them goes on, and nothing warns when it is collected.

    Everything of aiokafka in this loop is cancelled.
    """
    left = {task for task in asyncio.all_tasks() if _source_of(task).startswith(_CLIENT)}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=_UNTIL_CANCELLED_SECONDS)
    for task in left:
        look_at(task)
    for client in clients:
        for connection in list(getattr(client, "_conns", {}).values()):
            connection.close()


def _source_of(task: asyncio.Task[Any]) -> str:
    code = getattr(task.get_coro(), "cr_code", None)
    return getattr(code, "co_filename", "")
