"""What one fresh process measures: ``python -m bench.fanout_worker JOBS`` prints a line of JSON."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import sys
import time
import tracemalloc
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from . import paths, rivals
from .batches import CAP, KINDS, loop_of, numbered, open_batches
from .jobs import OURS, Job

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .rivals import Loop, Station

_NO_DEADLINE_SECONDS: Final = 600.0
HANG_SECONDS: Final = 0.03
ANSWERS_BEFORE_SECONDS: Final = 0.003
LEFT_ALONE_SECONDS: Final = 0.05


async def _overhead(job: Job) -> dict[str, Any]:
    stations, call = numbered(job.stations), KINDS[job.station][loop_of(job.contestant) != "trio"]
    seconds = math.inf if job.contestant == rivals.BARE else _NO_DEADLINE_SECONDS
    async with open_batches(job.contestant, call, stations, seconds, job.batches, tune_gc=job.tune_gc) as all_batches:
        await all_batches()  # what only the first round pays is not a station's cost
        gc.collect()
        rounds = answers = 0
        took = 0.0
        on_cpu, began = time.thread_time(), time.perf_counter()
        while took < job.sample_seconds:
            answers += await all_batches()
            rounds += 1
            took = time.perf_counter() - began
        on_cpu = time.thread_time() - on_cpu
    expected = rounds * job.stations * job.batches
    return {  # noqa: ASYNC910 - there is a round
        "us": took / expected * 1e6,
        "cpu_us": on_cpu / expected * 1e6,
        "rounds": rounds,
        "answers_lost": expected - answers,
    }


def _sleeping_on(loop: Loop) -> tuple[Callable[[float], Awaitable[object]], Callable[[], Awaitable[object]]]:
    """For a while, and for ever."""
    if loop == "trio":
        return trio.sleep, trio.sleep_forever
    return asyncio.sleep, lambda: asyncio.get_running_loop().create_future()


class _Books:
    """What the stations of a round did, by their own account."""

    running = 0

    def begin(self) -> None:
        self.deadline = time.perf_counter() + HANG_SECONDS
        self.given = 0

    def station(self, loop: Loop) -> Station:
        """Nine of ten answer together shortly before the deadline, the tenth hangs."""
        sleep, for_ever = _sleeping_on(loop)

        async def hangs_or_answers(station_id: str, value: str) -> object:
            self.running += 1
            try:
                if value == "hangs":
                    await for_ever()
                await sleep(max(0.0, self.deadline - ANSWERS_BEFORE_SECONDS - time.perf_counter()))
                self.given += time.perf_counter() < self.deadline
                return {"station_id": station_id}
            finally:
                self.running -= 1

        return hangs_or_answers


async def _hang(job: Job) -> dict[str, Any]:
    stations, books, loop = numbered(job.stations), _Books(), loop_of(job.contestant)
    call, (sleep, _) = books.station(loop), _sleeping_on(loop)
    given = lost = stragglers = 0
    late_ms: list[float] = []
    for number in range(job.rounds + 1):
        # A block for every round: in the guide's design the next one would wait behind the stations that hang.
        async with open_batches(job.contestant, call, stations, HANG_SECONDS, 1) as one_batch:
            books.begin()
            answers = await one_batch()
            list_late_ms = (time.perf_counter() - books.deadline) * 1e3
            of_round = books.given
            for _ in range(10):  # in parts: one sleep may be over in the loop's next pass, if the machine is busy
                await sleep(LEFT_ALONE_SECONDS / 10)
            if number:  # the first one warms up
                given += of_round
                lost += max(0, of_round - answers)
                stragglers += books.running
                late_ms.append(list_late_ms)
    return {  # noqa: ASYNC910 - there is a round
        "given": given,
        "answers_lost": lost,
        "stragglers": stragglers,
        "list_late_ms": median(late_ms),
    }


class _Enough(Exception):
    """Ends the blocks around a measurement: their stations would wait for ever."""


async def _hold(job: Job, count: int, held: list[int]) -> None:  # noqa: ASYNC910 - it always raises
    stations, loop = numbered(count), loop_of(job.contestant)
    sleep, for_ever = _sleeping_on(loop)
    running = 0

    async def waits(station_id: str, value: str) -> object:
        nonlocal running
        running += 1
        await for_ever()
        return None

    async def weigh() -> None:
        all_of_them = min(count, CAP) if job.contestant == OURS else count
        before = running
        while running < all_of_them or running != before:  # noqa: ASYNC110 - an Event would be set in what is measured
            before = running
            await sleep(0.01)
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()  # what follows is long enough without it
        raise _Enough

    gc.collect()
    tracemalloc.start()
    async with open_batches(job.contestant, waits, stations, _NO_DEADLINE_SECONDS, 1) as one_batch:
        if loop == "trio":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one_batch)
                await weigh()
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(_as_coroutine(one_batch))
                await weigh()


async def _as_coroutine(call: Callable[[], Awaitable[object]]) -> None:
    await call()


def _memory(job: Job) -> dict[str, Any]:
    """Bytes of each station beyond the first thousand, all of which wait: ours run a thousand, the rivals all."""
    held: list[int] = []
    for count in (CAP, CAP, job.stations):  # the first one warms up
        try:
            rivals.run(loop_of(job.contestant), _hold, job, count, held)
        except* _Enough:
            pass
        gc.collect()
    _, of_the_cap, of_all = held
    return {"bytes": (of_all - of_the_cap) / (job.stations - CAP)}


def _work(job: Job) -> dict[str, Any]:
    """Measure it here."""
    if job.what == "memory":
        return _memory(job)
    if job.what == "path":
        return paths.measure(job)
    if job.what == "recorder":
        return paths.measure_recorder(job)
    return rivals.run(loop_of(job.contestant), _overhead if job.what == "overhead" else _hang, job)


def _worker(text: str) -> None:
    """The other side of :func:`bench.jobs.measured`."""
    logging.getLogger("trioagg").addHandler(logging.NullHandler())  # made, as in production, and written nowhere
    logging.getLogger("trioagg").propagate = False
    print(json.dumps([_work(job) for job in msgspec.json.decode(text, type=list[Job])]))


if __name__ == "__main__":
    _worker(sys.argv[1])
