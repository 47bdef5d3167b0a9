"""The lane for what keeps a CPU busy: worker processes, which the deadline kills."""

from __future__ import annotations

import logging
import math
import os
import pickle
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from ._errors import WorkerDied

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ._lanes import StartMethod
    from ._records import Places

logger = logging.getLogger("trioagg")

_GRACE_SECONDS: Final = 1.0
_BELOW_THE_LOOP: Final = 5
_IN_A_WORKER: Final = "in a worker process, whose stack is not to be had"


class Processes:
    """Worker processes of one owner.

    There are twice as many as may work at once: when a deadline kills all that work, the next batch begins at once with
    the others, while new ones start.  A process takes as long to start as many a deadline is.

    Args:
      limit: How many work at once; None is one for every CPU.
      start_method: ``"spawn"`` or ``"forkserver"``, as of :mod:`multiprocessing`.

    Raises:
      ValueError: if *function* cannot be sent to another process.
      ImportError: if trio-parallel is not installed.
    """

    def __init__(self, function: Callable[[str, Any], Any], limit: int | None, start_method: StartMethod) -> None:
        try:
            import trio_parallel
        except ImportError:
            raise ImportError(
                "lane='process' needs trio-parallel: pip install 'trioagg[process]' (in a checkout: '.[process]')"
            ) from None
        try:
            pickle.dumps(function)
        except Exception as error:  # pickling calls the object's own code, which may raise anything
            raise ValueError(
                f"lane='process' sends the callback to other processes, and {function!r} cannot be sent ({error}): "
                "use a def at the top level of a module, and no lambda, no inner function and no bound method"
            ) from error
        self._library, self._function, self._start_method = trio_parallel, function, start_method
        self._count = limit or os.cpu_count() or 1
        self.at_once = float(self._count)
        self._limiter = trio.CapacityLimiter(self._count)
        self._no_limit = trio.CapacityLimiter(math.inf)  # ours is the bound, not the one of the library
        self._workers: Any = None
        self._wanted, self._ready = trio.Event(), trio.Event()
        self._working: set[trio.lowlevel.Task] = set()

    abandoned = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        context = self._library.open_worker_context(
            idle_timeout=math.inf, grace_period=_GRACE_SECONDS, worker_type=self._library.WorkerType(self._start_method)
        )
        self._workers = await context.__aenter__()
        try:
            async with trio.open_nursery() as nursery:
                self._wanted.set()
                nursery.start_soon(self._keep_enough, name="trioagg workers")
                yield
                nursery.cancel_scope.cancel()
        finally:
            try:
                await context.__aexit__(None, None, None)  # noqa: ASYNC102 - it shields itself, and has its bound
            except self._library.BrokenWorkerError as error:
                # They are dead now.  The batches are as they are, and an error of the block's must stay its own.
                logger.warning("worker processes did not end well: %s", error)

    def where(self, task: trio.lowlevel.Task) -> Places:
        return (_IN_A_WORKER if task in self._working else "waits for a worker process: all are busy",)

    @trio.lowlevel.enable_ki_protection
    async def __call__(self, station_id: str, value: Any, /) -> object:
        """Run the function in a worker.

        Raises:
          WorkerDied: if the process did not survive it.

        Cancellation: the worker is killed.
        """
        task = trio.lowlevel.current_task()
        async with self._limiter:
            await self._ready.wait()  # else this one would start a worker beside those that are just starting
            self._working.add(task)
            try:
                return await self._run(self._function, station_id, value)  # noqa: ASYNC910 - it waits for its worker
            except self._library.BrokenWorkerError:
                raise WorkerDied(station_id) from None
            finally:
                self._working.discard(task)
                self._wanted.set()  # where no worker was lost, nothing is done

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
            self._ready.set()

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
        except (self._library.BrokenWorkerError, OSError) as error:
            # The station that finds no worker starts one itself, and then it is its failure.
            logger.warning("a worker process could not be started: %r", error)
            return  # noqa: ASYNC910 - it has waited
        except trio.Cancelled:
            if worker.proc.pid is not None:
                worker.kill()
            raise


def _know(function: object) -> None:
    """What a worker does first."""
    # Below the loop, which would otherwise wait for a CPU behind its own workers where they have them all: lists were
    # 8-11 ms late at worst, and are 1.
    os.nice(_BELOW_THE_LOOP)
