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

    from ._records import Places

_GRACE_SECONDS: Final = 1.0


class Processes:
    """Worker processes of one owner.

    There are twice as many as may work at once: when a deadline kills all that work, the next batch begins at once with
    the others, while new ones start.  A process takes as long to start as many a deadline is.

    Args:
      limit: How many work at once; None is one for every CPU.

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
        self._no_limit = trio.CapacityLimiter(math.inf)  # ours is the bound, not the one of the library
        self._workers: Any = None
        self._wanted = trio.Event()

    abandoned = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        library = self._library
        async with (
            library.open_worker_context(idle_timeout=math.inf, grace_period=_GRACE_SECONDS) as self._workers,
            trio.open_nursery() as nursery,
        ):
            self._wanted.set()
            nursery.start_soon(self._keep_enough, name="trioagg workers")
            yield
            nursery.cancel_scope.cancel()

    def where(self, task: trio.lowlevel.Task) -> Places:
        return ("in a worker process, whose stack is not to be had",)

    @trio.lowlevel.enable_ki_protection
    async def __call__(self, station_id: str, value: Any, /) -> object:
        """Run the function in a worker.

        Raises:
          WorkerDied: if the process did not survive it.

        Cancellation: the worker is killed.
        """
        async with self._limiter:
            try:
                return await self._run(self._function, station_id, value)  # noqa: ASYNC910 - it waits for its worker
            except self._library.BrokenWorkerError:
                self._wanted.set()
                raise WorkerDied(station_id) from None
            except trio.Cancelled:
                self._wanted.set()
                raise

    async def _run(self, function: Callable[..., object], *args: object) -> object:
        return await self._workers.run_sync(function, *args, kill_on_cancel=True, limiter=self._no_limit)

    async def _keep_enough(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            now = self._workers.statistics()
            missing = 2 * self._count - now.idle_workers - now.running_workers
            async with trio.open_nursery() as nursery:
                for _ in range(missing):
                    nursery.start_soon(self._add_worker)

    async def _add_worker(self) -> None:
        # By the library's own means, which are private: what it offers to everybody takes an idle worker where there is
        # one, and the next station would have to start its own.
        workers = self._workers
        worker = workers._worker_class(workers.idle_timeout, workers.init, workers.retire)
        try:
            await worker.start()
            # The function is sent along, so that its module is imported before the first station needs it.
            if await worker.run_sync(_know, self._function) is not None:
                workers._worker_cache.append(worker)
        except self._library.BrokenWorkerError:
            return  # noqa: ASYNC910 - it has waited; the first station will say it
        except trio.Cancelled:
            if worker.proc.pid is not None:
                worker.kill()
            raise


def _know(function: object) -> None:
    """What a worker does first."""
