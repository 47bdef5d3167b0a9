"""The same service as one would write it without trioagg, on aiokafka: every message a list, acknowledged.

All of them take messages as fast as they may, have at most so many in flight, wait for the acknowledgement of every
list, and commit their position once a second.  That position may be ahead of what is up: after a crash they lose what
was in between, which is not what is measured here.
"""
# flake8: noqa: ASYNC119, ASYNC124, ASYNC251, ASYNC900, ASYNC910, ASYNC911, ASYNC912, ASYNC913 - asyncio: no checkpoints

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import msgspec

from . import workload as workloads
from .contestant import Entry, StationFailed, say_ready, wait_for_the_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    Station = Callable[[str, Any], Awaitable[dict[str, Any] | None]]

_COMMIT_MS: Final = 1000
_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.encode


def station_on_asyncio(workload: workloads.Workload) -> Station:
    """The callback of a workload."""
    work = workloads.work_of(workload)

    async def station(station_id: str, module_input: Any) -> dict[str, Any]:
        kind, seconds = next(work)
        if kind == "never returns":
            await asyncio.get_running_loop().create_future()
        if kind == "blocks":
            time.sleep(seconds)
        elif seconds:
            await asyncio.sleep(seconds)
        if kind == "fails":
            raise StationFailed(station_id)
        return {"station_id": station_id, "value": seconds}

    return station


def stations_of(value: bytes) -> dict[str, Any]:
    """One record a station: what these messages hold."""
    return {record["stationId"]: record for record in _decode(value)["realTimeData"]}


class Tally:
    """What a design has to say of itself."""

    def __init__(self) -> None:
        self.answers = self.timed_out = self.failed = 0
        self.late: int | None = None
        self.stragglers: int | None = None
        """None where a design has no way to tell."""


async def with_task_group(
    call: Station, stations: Mapping[str, Any], deadline_seconds: float, tally: Tally
) -> list[dict[str, Any]]:
    """A task a station, a timeout around all of them."""
    results: list[dict[str, Any]] = []

    async def station(station_id: str, value: Any) -> None:
        try:
            result = await call(station_id, value)
        except Exception:  # a station's error costs nobody else anything
            tally.failed += 1
            return
        if result is not None:
            results.append(result)

    try:
        async with asyncio.timeout(deadline_seconds), asyncio.TaskGroup() as group:
            for station_id, value in stations.items():
                group.create_task(station(station_id, value))
    except TimeoutError:
        tally.timed_out += len(stations) - len(results)
    tally.answers += len(results)
    return results


async def without_tasks(
    call: Station, stations: Mapping[str, Any], deadline_seconds: float, tally: Tally
) -> list[dict[str, Any]]:
    """The bare pipe: no fan-out at all.  What Kafka, the client and JSON cost, and the stations one after another."""
    results = [result for station_id, value in stations.items() if (result := await call(station_id, value))]
    tally.answers += len(results)
    return results


class Pipe:
    """From aiokafka's consumer to its producer."""

    def __init__(self, entry: Entry) -> None:
        self.entry, self.tally = entry, Tally()
        self.call = station_on_asyncio(entry.workload)
        self._room = asyncio.Semaphore(entry.in_flight)
        self._working: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[Any, Any]]:
        """A consumer and a producer."""
        import aiokafka

        entry = self.entry
        consumer = aiokafka.AIOKafkaConsumer(
            entry.topic,
            bootstrap_servers=entry.bootstrap,
            group_id=f"bench-{entry.results}",
            auto_offset_reset="earliest",
            enable_auto_commit=True,
            auto_commit_interval_ms=_COMMIT_MS,
        )
        producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=entry.bootstrap, enable_idempotence=True, acks="all", max_batch_size=512 * 1024
        )
        async with consumer, producer:
            yield consumer, producer

    async def run(self, batch: Any) -> None:
        """Messages through *batch* until the end."""
        async with self.connected() as (consumer, producer):
            self.producer = producer
            async for message in self._messages(consumer):
                task = asyncio.create_task(self._one(batch, message))
                self._working.add(task)
                task.add_done_callback(self._working.discard)
            if self._working:
                await asyncio.wait(self._working, timeout=20)

    async def _messages(self, consumer: Any) -> AsyncIterator[Any]:
        """As they come, and as there is room for them."""
        ended = self._until_the_end()
        say_ready()
        while not ended.done():
            found = await consumer.getmany(timeout_ms=100)
            for message in (message for messages in found.values() for message in messages):
                await self._room.acquire()
                yield message

    def _until_the_end(self) -> asyncio.Future[Any]:
        return asyncio.ensure_future(asyncio.to_thread(wait_for_the_end))

    async def _one(self, batch: Any, message: Any) -> None:
        try:
            stations = stations_of(message.value)
            results = await batch(self.call, stations, self.entry.workload.deadline_seconds, self.tally)
            await self.send(name_of(message), results)
        finally:
            self._room.release()

    async def send(self, batch_id: str, results: list[dict[str, Any]]) -> None:
        """Bring a list up, and wait until it is."""
        value = _encode({"batch_id": batch_id, "count": len(results), "results": results})
        await self.producer.send_and_wait(self.entry.results, value, key=batch_id.encode())

    async def run_guide(self) -> None:
        """The guide's design: a queue and a worker for every station, and a collector for every batch."""
        from .guide import Guide

        async def upload(batch_id: str, results: list[dict[str, Any]]) -> None:
            try:
                await self.send(batch_id, results)
            finally:
                self._room.release()

        async with (
            self.connected() as (consumer, self.producer),
            Guide(self.call, self.entry.workload.deadline_seconds, upload) as guide,
        ):
            async for message in self._messages(consumer):
                await guide.submit(name_of(message), stations_of(message.value))
        self.tally.answers, self.tally.late = guide.answers, guide.late
        self.tally.stragglers = guide.stragglers

    async def run_faststream(self) -> None:
        """FastStream's subscriber on aiokafka, with as many workers as there may be messages in flight."""
        from faststream.kafka import KafkaBroker, KafkaMessage

        broker = KafkaBroker(self.entry.bootstrap, enable_idempotence=True, acks="all", logger=None)
        publish = broker.publisher(self.entry.results)

        async def one(value: Any, message: KafkaMessage) -> None:
            stations = {record["stationId"]: record for record in value["realTimeData"]}
            results = await with_task_group(self.call, stations, self.entry.workload.deadline_seconds, self.tally)
            batch_id = name_of(message.raw_message)
            await publish.publish(
                {"batch_id": batch_id, "count": len(results), "results": results}, key=batch_id.encode()
            )

        broker.subscriber(
            self.entry.topic,
            group_id=f"bench-{self.entry.results}",
            auto_offset_reset="earliest",
            max_workers=self.entry.in_flight,
        )(one)
        async with broker:
            await broker.start()
            say_ready()
            await self._until_the_end()


def name_of(message: Any) -> str:
    """As trioagg names its batches."""
    return f"{message.topic}_{message.partition}_{message.offset}_{max(message.timestamp, 0) // 1000}"


async def _run(entry: Entry) -> dict[str, Any]:
    pipe = Pipe(entry)
    if entry.name == "guide":
        await pipe.run_guide()
    elif entry.name == "FastStream":
        await pipe.run_faststream()
    else:
        await pipe.run(without_tasks if entry.name == "bare pipe" else with_task_group)
    tally = pipe.tally
    return {
        "verdicts": {"succeeded": tally.answers, "timed_out": tally.timed_out, "failed": tally.failed},
        "late": tally.late,
        "stragglers": tally.stragglers,
    }


RIVALS: Final = ("bare pipe", "TaskGroup", "TaskGroup, uvloop", "TaskGroup, eager", "FastStream", "guide")


def available() -> list[str]:
    """The rivals that can run here, and a word on the others on stderr."""
    found = []
    for name in RIVALS:
        needs = {"TaskGroup, uvloop": "uvloop", "FastStream": "faststream"}.get(name)
        if name == "TaskGroup, eager" and sys.version_info < (3, 12):
            print("TaskGroup, eager: left out, Python 3.12 has it", file=sys.stderr)
            continue
        try:
            if needs:
                import_module(needs)
        except ImportError:
            print(f"{name}: left out, for there is no {needs}: pip install '.[bench]'", file=sys.stderr)
            continue
        found.append(name)
    return found


def run(entry: Entry) -> dict[str, Any]:
    """Run a rival to its end."""
    factory: Any = None
    if entry.name == "TaskGroup, uvloop":
        factory = import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        if sys.version_info >= (3, 12) and entry.name == "TaskGroup, eager":
            runner.get_loop().set_task_factory(asyncio.eager_task_factory)
        return runner.run(_run(entry))
