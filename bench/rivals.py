"""What one would write without trioagg.  Each runs one batch and says how many answers it has.

Where stations fail or hang, the rivals get what they need for it: an ``except`` in every task and a deadline around
all of them.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Final, Literal, TypeVar

import trio

from .guide import Guide

Station = Callable[[str, str], Awaitable[object]]
Batch = Callable[[Station, Mapping[str, str], float], Awaitable[int]]
"""The stations' callback, the stations, and the seconds that they have."""

Loop = Literal["trio", "asyncio", "asyncio eager", "uvloop"]

T = TypeVar("T")


async def bare_nursery(call: Station, stations: Mapping[str, str]) -> int:
    """A bare Trio nursery: what all ratios are ratios to."""
    results: dict[str, object] = {}

    async def station(station_id: str, value: str) -> None:
        results[station_id] = await call(station_id, value)

    async with trio.open_nursery() as nursery:
        for station_id, value in stations.items():
            nursery.start_soon(station, station_id, value)
    return len(results)


async def nursery_with_deadline(call: Station, stations: Mapping[str, str], deadline: float) -> int:
    """The textbook: ``move_on_at`` around the nursery.  The list is ready when the last straggler is gone."""
    results: dict[str, object] = {}

    async def station(station_id: str, value: str) -> None:  # noqa: ASYNC910 - one that fails has ended
        try:
            results[station_id] = await call(station_id, value)
        except Exception as error:
            results[station_id] = error

    with trio.move_on_at(deadline):
        async with trio.open_nursery() as nursery:
            for station_id, value in stations.items():
                nursery.start_soon(station, station_id, value)
    return len(results)


async def task_group(call: Station, stations: Mapping[str, str]) -> int:
    """``asyncio.TaskGroup``."""
    results: dict[str, object] = {}

    async def station(station_id: str, value: str) -> None:
        results[station_id] = await call(station_id, value)

    async with asyncio.TaskGroup() as group:
        for station_id, value in stations.items():
            group.create_task(station(station_id, value))
    return len(results)


async def task_group_with_deadline(call: Station, stations: Mapping[str, str], seconds: float) -> int:
    """``asyncio.timeout`` around it."""
    results: dict[str, object] = {}

    async def station(station_id: str, value: str) -> None:  # noqa: ASYNC910 - one that fails has ended
        try:
            results[station_id] = await call(station_id, value)
        except Exception as error:
            results[station_id] = error

    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for station_id, value in stations.items():
                group.create_task(station(station_id, value))
    except TimeoutError:
        pass
    return len(results)  # noqa: ASYNC910 - the block above waits


async def bare_nursery_in_time(call: Station, stations: Mapping[str, str], seconds: float) -> int:
    """The bare nursery; with a deadline only where there is one."""
    if seconds == math.inf:
        return await bare_nursery(call, stations)
    return await nursery_with_deadline(call, stations, trio.current_time() + seconds)


async def textbook_channel(call: Station, stations: Mapping[str, str], seconds: float) -> int:
    """The textbook's channel: no buffer, a clone for every task, ``async for`` in the parent.

    An answer that is parked in ``send()`` when the deadline comes is lost.
    """
    results: dict[str, object] = {}

    async def station(  # noqa: ASYNC910 - one that fails has ended
        station_id: str, value: str, answers: trio.MemorySendChannel[tuple[str, object]]
    ) -> None:
        with answers:
            try:
                answer = await call(station_id, value)
            except Exception as error:
                answer = error
            await answers.send((station_id, answer))

    to_parent, in_parent = trio.open_memory_channel[tuple[str, object]](0)
    with trio.move_on_after(seconds), in_parent:
        async with trio.open_nursery() as nursery:
            with to_parent:
                for station_id, value in stations.items():
                    nursery.start_soon(station, station_id, value, to_parent.clone())
            async for station_id, answer in in_parent:
                results[station_id] = answer  # noqa: PERF403 - what is in it when it is cut short counts
    return len(results)


async def anyio_task_group(call: Station, stations: Mapping[str, str], seconds: float) -> int:
    """anyio's task group, on whichever loop runs."""
    import anyio

    results: dict[str, object] = {}

    async def station(station_id: str, value: str) -> None:  # noqa: ASYNC910 - one that fails has ended
        try:
            results[station_id] = await call(station_id, value)
        except Exception as error:
            results[station_id] = error

    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as group:
            for station_id, value in stations.items():
                group.start_soon(station, station_id, value)
    return len(results)  # noqa: ASYNC910 - the block above waits


async def guides_design(call: Station, stations: Mapping[str, str], seconds: float) -> int:
    """One batch in the guide's design, its workers included.  It is made for many: see :mod:`bench.guide`."""
    lists: list[int] = []

    async def upload(batch_id: str, results: list[dict[str, Any]]) -> None:  # noqa: ASYNC124,ASYNC910 - quick
        lists.append(len(results))

    async with Guide(call, seconds, upload) as guide:
        await guide.submit("batch", stations)
    return lists[0]  # noqa: ASYNC910 - submit() is a checkpoint


@dataclass(frozen=True, slots=True)
class Rival:
    """One of them, on one loop."""

    name: str
    loop: Loop
    batch: Batch
    needs: str | None = None
    """A package that may be missing."""


BARE: Final = "bare nursery"
GUIDE: Final = "the guide's design"
TEXTBOOK: Final = "textbook channel"

_ALL: Final = (
    Rival(BARE, "trio", bare_nursery_in_time),
    Rival(TEXTBOOK, "trio", textbook_channel),
    Rival(GUIDE, "asyncio", guides_design),
    Rival("TaskGroup", "asyncio", task_group_with_deadline),
    *([Rival("TaskGroup, eager", "asyncio eager", task_group_with_deadline)] if sys.version_info >= (3, 12) else []),
    Rival("TaskGroup, uvloop", "uvloop", task_group_with_deadline, needs="uvloop"),
    Rival("anyio", "asyncio", anyio_task_group, needs="anyio"),
    Rival("anyio on trio", "trio", anyio_task_group, needs="anyio"),
)


def present() -> dict[str, Rival]:
    """Those that can run here, by their names."""
    return {rival.name: rival for rival in _ALL if rival.needs is None or find_spec(rival.needs) is not None}


def absent() -> str | None:
    """A line that says who is left out, and what to do about it; None if nobody is."""
    here = present()
    left_out = ", ".join(f"{rival.name} (no {rival.needs})" for rival in _ALL if rival.name not in here)
    return f"Left out: {left_out}.  pip install '.[bench]'" if left_out else None


def run(loop: Loop, main: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
    """Run ``main(*args)`` on a loop of its own."""
    if loop == "trio":
        return trio.run(partial(main, *args))
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        if sys.version_info >= (3, 12) and loop == "asyncio eager":
            runner.get_loop().set_task_factory(asyncio.eager_task_factory)
        return runner.run(main(*args))


async def together(rival: Rival, call: Station, stations: Mapping[str, str], seconds: float, batches: int) -> int:
    """So many batches at once, each in a task as the rival would do it; says how many answers they have."""
    if batches == 1:
        return await rival.batch(call, stations, seconds)
    answers = 0

    async def one() -> None:
        nonlocal answers
        # Not `answers +=` around the await: that reads it before the others have added theirs.
        of_one = await rival.batch(call, stations, seconds)
        answers += of_one

    if rival.batch is anyio_task_group:
        import anyio

        async with anyio.create_task_group() as tasks:
            for _ in range(batches):
                tasks.start_soon(one)
    elif rival.loop == "trio":
        async with trio.open_nursery() as nursery:
            for _ in range(batches):
                nursery.start_soon(one)
    else:
        async with asyncio.TaskGroup() as group:
            for _ in range(batches):
                group.create_task(one())
    return answers  # noqa: ASYNC910 - the blocks above wait
