"""What one would write without trioagg: a task a station, results into a dict.  Each says how many answers it has.

Where stations fail or hang, the rivals get what they need for it: an ``except`` in every task and a deadline around
all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import trio

Station = Callable[[str, str], Awaitable[object]]


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
