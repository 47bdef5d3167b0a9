"""One or many batches under every contestant: a function that runs all of them once, and says how many answers are in
their lists.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from trioagg import BatchResultAggregator, run_batch

from . import rivals
from .guide import Guide
from .jobs import OURS, RUN_BATCH

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from .jobs import Kind
    from .rivals import Loop, Station

CAP: Final = 1000
"""So many stations of a batch run at a time under trioagg; the rivals run all."""
_SLEEPS_SECONDS: Final = 0.001


# The stations.


async def _never_waits(station_id: str, value: object) -> object:  # noqa: ASYNC124 - that it never waits is the point
    return {"station_id": station_id, "value": value}  # noqa: ASYNC910 - the same


async def _sleeps(station_id: str, value: object) -> object:
    await trio.sleep(_SLEEPS_SECONDS)
    return {"station_id": station_id, "value": value}


async def _sleeps_aio(station_id: str, value: object) -> object:
    await asyncio.sleep(_SLEEPS_SECONDS)
    return {"station_id": station_id, "value": value}


KINDS: Final[dict[Kind, tuple[Station, Station]]] = {
    "never waits": (_never_waits, _never_waits),
    "sleeps 1 ms": (_sleeps, _sleeps_aio),
}


def numbered(count: int) -> dict[str, str]:
    """So many stations; one of ten is to hang where any is."""
    return {f"S{number:06d}": "hangs" if number % 10 == 7 else "answers" for number in range(count)}


# The contestants.


def loop_of(contestant: str) -> Loop:
    """The event loop that it runs under."""
    return "trio" if contestant in (OURS, RUN_BATCH) else rivals.present()[contestant].loop


@asynccontextmanager
async def open_batches(
    contestant: str, call: Station, stations: Mapping[str, str], seconds: float, batches: int, *, tune_gc: bool = False
) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """All batches at once, as often as one likes.

    Args:
      seconds: The deadline of each; infinite for none.
    """
    if contestant == OURS:
        async with _open_aggregator(call, stations, seconds, batches, tune_gc=tune_gc) as all_batches:
            yield all_batches
    elif contestant == RUN_BATCH:
        yield partial(_run_batch, call, stations, seconds)
    elif contestant == rivals.GUIDE:
        async with _open_guide(call, stations, seconds, batches) as all_batches:
            yield all_batches
    else:
        yield partial(rivals.together, rivals.present()[contestant], call, stations, seconds, batches)


async def _run_batch(call: Station, stations: Mapping[str, str], seconds: float) -> int:
    return len((await run_batch("bench", stations, call, batch_timeout=seconds)).results)


class _Lists:
    """Counts the lists of a round."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self.begin()

    def begin(self) -> None:
        self.lists = self.answers = 0

    def up(self, results: list[dict[str, Any]]) -> bool:
        """One more; says whether it was the last."""
        self.lists += 1
        self.answers += len(results)
        return self.lists == self._expected


@asynccontextmanager
async def _open_aggregator(
    call: Station, stations: Mapping[str, str], seconds: float, batches: int, *, tune_gc: bool
) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    lists, all_up = _Lists(batches), trio.Event()

    async def upload(batch_id: str, results: list[dict[str, Any]]) -> None:  # noqa: ASYNC124,ASYNC910 - quick
        if lists.up(results):
            all_up.set()

    async def all_batches() -> int:
        nonlocal all_up
        lists.begin()
        all_up = trio.Event()
        for number in range(batches):
            await aggregator.submit(f"batch {number}", stations)
        await all_up.wait()
        return lists.answers

    async with BatchResultAggregator(
        call,
        upload,
        batch_timeout=seconds,
        max_batches_in_flight=batches + 1,
        max_unreaped_batches=batches + 1,
        max_running_stations=CAP,
        tune_gc=tune_gc,
    ) as aggregator:
        yield all_batches


@asynccontextmanager
async def _open_guide(
    call: Station, stations: Mapping[str, str], seconds: float, batches: int
) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    lists, all_up = _Lists(batches), asyncio.Event()

    async def upload(batch_id: str, results: list[dict[str, Any]]) -> None:  # noqa: ASYNC124,ASYNC910 - quick
        if lists.up(results):
            all_up.set()

    async def all_batches() -> int:
        lists.begin()
        all_up.clear()
        for number in range(batches):
            await guide.submit(f"batch {number}", stations)
        await all_up.wait()
        return lists.answers

    async with Guide(call, seconds, upload) as guide:
        yield all_batches
