"""The design that the guide describes, on asyncio: a queue and a worker for every station, a collector for every batch.

Written from the description, as a rival and without handicaps.  What it does not do is what the guide does not say: a
station that hangs is not cancelled, and its worker's later batches wait behind it; what lies in a batch's queue when
its time is over is in no list.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    StationCallback = Callable[[str, Any], Awaitable[object]]
    Upload = Callable[[str, list[dict[str, Any]]], Awaitable[None]]


class BatchCollector:
    """One batch: the queue of its answers, and until when they count."""

    def __init__(self, batch_id: str, expected: int, deadline: float) -> None:
        self.batch_id, self.expected, self.deadline = batch_id, expected, deadline
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.closed = False

    async def collect(self) -> list[Any]:
        """Wait until every expected station has answered or the time is over."""
        now = asyncio.get_running_loop().time
        collected: list[Any] = []
        while len(collected) < self.expected:
            remaining = self.deadline - now()
            if remaining <= 0:
                break
            try:
                collected.append(await asyncio.wait_for(self.answers.get(), remaining))
            except TimeoutError:
                break
        self.closed = True
        return collected  # noqa: ASYNC910 - without stations there is nothing to wait for


class Guide:
    """Takes batches and brings their lists up.  An ``async with`` block is its life.

    Args:
      call: ``call(station_id, value)``; what it raises counts as None.
      deadline_seconds: From the submission of a batch to its list.
      upload: ``upload(batch_id, results)``.  What it raises ends the block, in a group.

    Leaving the block waits until every list is up; then the workers are cancelled, and stations that hang with them.
    """

    def __init__(self, call: StationCallback, deadline_seconds: float, upload: Upload) -> None:
        self._call, self._deadline_seconds, self._upload = call, deadline_seconds, upload
        self._queues: dict[str, asyncio.Queue[tuple[BatchCollector, Any]]] = {}
        self._workers: list[asyncio.Task[None]] = []
        self._batches: set[asyncio.Task[None]] = set()
        self._tasks = asyncio.TaskGroup()
        self._block = self._live()
        self.answers = 0
        """Collected in time, None included."""
        self.late = 0
        """Given after their batch was closed."""
        self.stragglers = 0
        """Stations that had not answered when their batch was closed: they ran on, or waited for their worker."""
        self.left_in_queue = 0
        """Given before their batch was closed, and in no list."""

    async def __aenter__(self) -> Self:
        await self._block.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._block.__aexit__(*exc)  # noqa: ASYNC102 - the end of a task group

    @asynccontextmanager
    async def _live(self) -> AsyncIterator[None]:
        async with self._tasks:
            yield
            while self._batches:
                await asyncio.wait(self._batches)
            for worker in self._workers:
                worker.cancel()

    async def submit(self, batch_id: str, stations: Mapping[str, Any]) -> None:
        """Open a batch and give every station's worker its part; returns when all have it."""
        opened = asyncio.get_running_loop().time()
        batch = BatchCollector(batch_id, len(stations), opened + self._deadline_seconds)
        task = self._tasks.create_task(self._see_through(batch))
        self._batches.add(task)
        task.add_done_callback(self._batches.discard)
        for station_id, value in stations.items():
            queue = self._queues.get(station_id)
            if queue is None:
                queue = self._queues[station_id] = asyncio.Queue()
                self._workers.append(self._tasks.create_task(self._work(station_id, queue), name=station_id))
            queue.put_nowait((batch, value))
        await asyncio.sleep(0)

    async def _work(self, station_id: str, queue: asyncio.Queue[tuple[BatchCollector, Any]]) -> None:
        while True:
            batch, value = await queue.get()
            try:
                answer = await self._call(station_id, value)
            except Exception:  # a station's error costs nobody else anything
                answer = None
            if batch.closed:
                self.late += 1
            else:
                batch.answers.put_nowait(answer)

    async def _see_through(self, batch: BatchCollector) -> None:
        collected = await batch.collect()
        left = batch.answers.qsize()
        self.answers += len(collected)
        self.left_in_queue += left
        self.stragglers += batch.expected - len(collected) - left
        await self._upload(batch.batch_id, [answer for answer in collected if answer is not None])
