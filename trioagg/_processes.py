"""The lane for what keeps a CPU busy: worker processes, which the deadline kills."""

from __future__ import annotations

import math
import os
import pickle
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from ._errors import WorkerDied

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_GRACE_SECONDS: Final = 1.0


class Processes:
    """Worker processes of one owner.  They start when it opens, and one that dies or is killed is replaced at once.

    Args:
      limit: How many; None is one for every CPU.

    Raises:
      ValueError: if *function* cannot be sent to another process.
      ImportError: if trio-parallel is not installed.
    """

    def __init__(self, function: Callable[[str, Any], Any], limit: int | None) -> None:
        try:
            import trio_parallel
        except ImportError:
            raise ImportError("lane='process' needs trio-parallel: pip install 'trioagg[process]'") from None
        try:
            pickle.dumps(function)
        except Exception as error:
            raise ValueError(
                f"lane='process' sends the callback to other processes, and {function!r} cannot be sent ({error}): "
                "use a def at the top level of a module, and no lambda, no inner function and no bound method"
            ) from error
        self._library, self._function = trio_parallel, function
        self._count = limit or os.cpu_count() or 1
        self.at_once = float(self._count)
        self._limiter = trio.CapacityLimiter(self._count)
        self._beside = trio.CapacityLimiter(self._count * 2)
        self._workers: Any = None
        self._nursery: trio.Nursery | None = None

    abandoned = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        library = self._library
        async with (
            library.open_worker_context(idle_timeout=math.inf, grace_period=_GRACE_SECONDS) as self._workers,
            trio.open_nursery() as self._nursery,
        ):
            for _ in range(self._count):
                self._nursery.start_soon(self._touch, name="trioagg worker starts")
            yield
            self._nursery.cancel_scope.cancel()

    def where(self, task: trio.lowlevel.Task) -> tuple[str, ...]:
        return ("in a worker process, whose stack is not to be had",)

    @trio.lowlevel.enable_ki_protection
    async def __call__(self, station_id: str, value: Any, /) -> object:
        """Run the function in a worker.

        Raises:
          WorkerDied: if the process did not survive it.

        Cancellation: the worker is killed.
        """
        async with self._limiter:
            alive = False
            try:
                result = await self._workers.run_sync(
                    self._function, station_id, value, kill_on_cancel=True, limiter=self._beside
                )
                alive = True
                return result
            except self._library.BrokenWorkerError:
                raise WorkerDied(station_id) from None
            except trio.Cancelled:
                raise
            except BaseException:
                alive = True  # it has only raised
                raise
            finally:
                if not alive:
                    self._replace()

    def _replace(self) -> None:
        # Not when the next station needs it: a process takes as long to start as many a deadline is.  A worker that is
        # idle is taken first, so one more call than there are idle ones starts a new one.
        assert self._nursery is not None
        for _ in range(self._workers.statistics().idle_workers + 1):
            self._nursery.start_soon(self._touch, name="trioagg worker starts")

    async def _touch(self) -> None:
        try:
            # The function is sent along, so that its module is imported before the first station needs it.
            await self._workers.run_sync(_know, self._function, kill_on_cancel=True, limiter=self._beside)
        except self._library.BrokenWorkerError:
            return  # the first station will say it


def _know(function: object) -> None:
    """What a worker does first."""
