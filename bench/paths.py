"""The whole path without Kafka, bytes in and bytes out, as each contestant goes it."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import trio

from trioagg import BatchReport, BatchResultAggregator, Observer
from trioagg._encoding import encode_list, encode_result
from trioagg._outputs import result_headers
from trioagg._reader import Reader
from trioagg._settings import InputLimits
from trioagg._stations import module_input

from . import rivals
from .batches import numbered
from .guide import Guide
from .jobs import OURS, TASK_GROUP, TASK_GROUP_WITH_MSGSPEC, WITH_MSGSPEC
from .stages import Stages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from .jobs import Job
    from .rivals import Loop

IN_FLIGHT: Final = 50
_MESSAGES_OF_A_TURN: Final = 200
_TOPIC: Final = "SCHEDULE-STATION-REALTIME-DATA"


@dataclass(slots=True)
class _Message:
    offset: int
    value: bytes | None
    topic: str = _TOPIC
    partition: int = 0
    timestamp_ms: int | None = 1_700_000_000_000


def _message_bytes(count: int, *, nested: bool) -> bytes:
    records: list[dict[str, Any]] = [
        {
            "stationId": station_id,
            "gunNo": str(number % 8),
            "sendTime": "2025-11-20 10:00:05",
            "stationStatus": "normal",
            "outputPower": 58.2 + number / 10,
        }
        for number, station_id in enumerate(numbered(count))
    ]
    if nested:  # as in a price list
        for record in records:
            record["periodFee"] = [0.3, 0.8, 1.1, 0.8]
    return json.dumps({"realTimeData": records}).encode()


async def _predicts(station_id: str, value: Any) -> dict[str, Any]:  # noqa: ASYNC124 - that it never waits is the point
    record = value[_TOPIC][-1]
    return {  # noqa: ASYNC910 - the same
        "station_id": station_id,
        "timestamp": value["_data_quality"]["last_update"],
        "prediction": {"power": record["outputPower"]},
        "confidence": 0.95,
    }


class _Handler:
    """Where the bytes of a list arrive; it takes no time."""

    def __init__(self) -> None:
        self.lists = 0
        self.last = b""

    def take(self, value: bytes) -> None:
        self.lists += 1
        self.last = value

    def check(self, messages: int, stations: int) -> None:
        """Nothing was lost: a list for every message, and every station in the last one."""
        ids = {result["station_id"] for result in msgspec.json.decode(self.last)["results"]}
        if self.lists != messages or ids != numbered(stations).keys():
            raise AssertionError(f"{messages} messages, {self.lists} lists, {len(ids)} stations in the last one")


_Feed = Callable[[Iterator[int]], Awaitable[None]]
"""Takes the offsets of messages; returns when all their lists have arrived."""


class _Sink:
    """Ends where the service's own would give the record to Kafka's client."""

    encode = staticmethod(encode_result)

    def __init__(self, handler: _Handler) -> None:
        self._handler = handler

    async def send(  # noqa: ASYNC124,ASYNC910 - an upload that takes no time
        self, report: BatchReport, encoded: Sequence[bytes]
    ) -> None:
        result_headers(report)
        self._handler.take(encode_list(report.batch_id, encoded))


@asynccontextmanager
async def _our_path(value: bytes, handler: _Handler, observers: Sequence[Observer] = ()) -> AsyncIterator[_Feed]:
    reader = Reader(None, InputLimits())

    async def feed(offsets: Iterator[int]) -> None:  # noqa: ASYNC910 - there is a message
        for offset in offsets:
            message = _Message(offset, value)
            await aggregator.submit(f"{_TOPIC}_0_{offset}_1700000000", reader.read(message))
        while aggregator.in_flight:  # noqa: ASYNC110 - an Event would be set in what is measured
            await trio.lowlevel.checkpoint()

    async with BatchResultAggregator(
        _predicts, sink=_Sink(handler), max_batches_in_flight=IN_FLIGHT, observers=observers
    ) as aggregator:
        yield feed


class _Codec(NamedTuple):
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]

    def stations_of(self, value: bytes) -> dict[str, Any]:
        """As little as it takes, and what the callbacks get is the same as ours."""
        records: dict[str, list[dict[str, Any]]] = {}
        for record in self.decode(value)["realTimeData"]:
            records.setdefault(record["stationId"], []).append(record)
        return {one: module_input(one, _TOPIC, its, 1_700_000_000_000) for one, its in records.items()}

    def list_of(self, batch_id: str, results: list[Any]) -> bytes:
        return self.encode({"batch_id": batch_id, "count": len(results), "results": results})


_JSON: Final = _Codec(json.loads, lambda value: json.dumps(value).encode())
_MSGSPEC: Final = _Codec(msgspec.json.decode, msgspec.json.encode)


@asynccontextmanager
async def _guides_path(value: bytes, handler: _Handler, codec: _Codec) -> AsyncIterator[_Feed]:
    room = asyncio.Semaphore(IN_FLIGHT)

    async def upload(batch_id: str, results: list[dict[str, Any]]) -> None:  # noqa: ASYNC124,ASYNC910 - quick
        handler.take(codec.list_of(batch_id, results))
        room.release()

    async def feed(offsets: Iterator[int]) -> None:
        for offset in offsets:
            await room.acquire()
            await guide.submit(f"{_TOPIC}_0_{offset}_1700000000", codec.stations_of(value))
        await _all_back(room)

    async with Guide(_predicts, 5.0, upload) as guide:
        yield feed


@asynccontextmanager
async def _task_groups_path(value: bytes, handler: _Handler, codec: _Codec) -> AsyncIterator[_Feed]:
    room = asyncio.Semaphore(IN_FLIGHT)

    async def message(batch_id: str) -> None:  # noqa: ASYNC910 - its stations are a checkpoint
        results: list[Any] = []

        async def station(station_id: str, value: Any) -> None:
            try:
                answer = await _predicts(station_id, value)
            except Exception:  # a station's error costs nobody else anything
                return  # noqa: ASYNC910 - one that fails has ended
            results.append(answer)

        try:
            async with asyncio.timeout(5.0), asyncio.TaskGroup() as stations:
                for station_id, module_input in codec.stations_of(value).items():
                    stations.create_task(station(station_id, module_input))
        except TimeoutError:
            pass
        handler.take(codec.list_of(batch_id, results))
        room.release()

    async def feed(offsets: Iterator[int]) -> None:
        for offset in offsets:
            await room.acquire()
            messages.create_task(message(f"{_TOPIC}_0_{offset}_1700000000"))
        await _all_back(room)

    async with asyncio.TaskGroup() as messages:
        yield feed


async def _all_back(room: asyncio.Semaphore) -> None:  # noqa: ASYNC910 - there is room for one
    for _ in range(IN_FLIGHT):
        await room.acquire()
    for _ in range(IN_FLIGHT):
        room.release()


PATHS: Final[dict[str, tuple[Loop, Callable[[bytes, _Handler], AbstractAsyncContextManager[_Feed]]]]] = {
    OURS: ("trio", _our_path),
    rivals.GUIDE: ("asyncio", partial(_guides_path, codec=_JSON)),
    WITH_MSGSPEC: ("asyncio", partial(_guides_path, codec=_MSGSPEC)),
    TASK_GROUP: ("asyncio", partial(_task_groups_path, codec=_JSON)),
    TASK_GROUP_WITH_MSGSPEC: ("asyncio", partial(_task_groups_path, codec=_MSGSPEC)),
}


def measure(job: Job) -> dict[str, Any]:
    """Messages a second, on the clock and on the CPU."""
    loop, _ = PATHS[job.contestant]
    return rivals.run(loop, _path, job)


async def _path(job: Job) -> dict[str, Any]:
    handler, fed = _Handler(), 0

    def offsets(seconds: float) -> Iterator[int]:
        nonlocal fed
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            fed += 1
            yield fed

    _, path = PATHS[job.contestant]
    async with path(_message_bytes(job.stations, nested=job.nested), handler) as feed:
        await feed(offsets(job.sample_seconds / 4))  # the first one warms up
        gc.collect()
        warm, on_cpu, began = handler.lists, time.thread_time(), time.perf_counter()
        await feed(offsets(job.sample_seconds))
        took, on_cpu = time.perf_counter() - began, time.thread_time() - on_cpu
    handler.check(fed, job.stations)
    lists = handler.lists - warm
    return {"per_second": lists / took, "per_cpu_second": lists / on_cpu, "lists": lists}


def measure_recorder(job: Job) -> dict[str, Any]:
    """What it costs to record where the time goes: CPU time with the recorder / without it, by turns in one process."""
    return trio.run(_with_and_without, job)


async def _with_and_without(job: Job) -> dict[str, Any]:
    value, handler = _message_bytes(job.stations, nested=False), _Handler()
    ratios = []
    async with _our_path(value, handler) as plain, _our_path(value, handler, [Stages()]) as recorded:
        for number in range(job.rounds + 1):
            on_cpu = {}
            for feed in (plain, recorded) if number % 2 else (recorded, plain):
                gc.collect()
                began = time.thread_time()
                await feed(iter(range(_MESSAGES_OF_A_TURN)))
                on_cpu[feed] = time.thread_time() - began
            if number:  # the first one warms up
                ratios.append(on_cpu[recorded] / on_cpu[plain])
    return {"ratios": ratios}  # noqa: ASYNC910 - there is a round
