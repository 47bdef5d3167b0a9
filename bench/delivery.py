"""What does exactly once cost, beside at least once?  On a real Kafka, both in one run and by turns."""
# flake8: noqa: ASYNC110, ASYNC124, ASYNC910, ASYNC912 - another machine is waited for, and a callback never waits

from __future__ import annotations

import json
import random
import statistics
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import trioagg

from .faults import harness

DELIVERIES: Final = ("at_least_once", "exactly_once")
_STATIONS: Final = 100
_PACED_PER_SECOND: Final = 40


@dataclass
class Sample:
    """One delivery, measured several times."""

    per_second: list[float] = field(default_factory=list)
    """Messages a second out of a backlog, one figure a repetition."""
    latencies: list[float] = field(default_factory=list)
    """Seconds from the moment a message was sent until a read_committed reader has its list, at a steady low rate."""
    commits: list[float] = field(default_factory=list)
    """Commits or transactions a message, one figure a repetition."""


async def double(station_id: str, module_input: dict[str, Any]) -> dict[str, Any]:
    """A callback that never waits."""
    return {"station_id": station_id, "double": station_id * 2}


def message(number: int) -> bytes:
    """The data of a hundred stations."""
    records = [{"stationId": f"S{station:03d}", "number": number} for station in range(_STATIONS)]
    return json.dumps({"realTimeData": records}).encode()


class Bench:
    """A broker, and what is asked of it."""

    def __init__(self, broker: Any, bootstrap: str) -> None:
        self._broker, self._bootstrap = broker, bootstrap

    async def backlog(self, delivery: str, messages: int, sample: Sample) -> None:
        """How fast is a backlog worked off?"""
        service = self._service(delivery, [(None, message(number), number % 4) for number in range(messages)])
        async with service.start(double):
            while not service.statistics().messages:
                await trio.sleep(0.001)
            began = time.perf_counter()
            while service.statistics().uploaded < messages:
                await trio.sleep(0.005)
            sample.per_second.append(messages / (time.perf_counter() - began))
        kafka = service.statistics().kafka
        assert kafka is not None
        sample.commits.append(kafka.commits / messages)

    async def paced(self, delivery: str, messages: int, sample: Sample) -> None:
        """How late is a list for its reader, where there is no backlog?"""
        service = self._service(delivery, [])
        reader = Reader(self._bootstrap, service._result_topic or "")
        async with service.start(double):
            # Until its partitions are assigned and the reader reads, it is the group's start that one would measure.
            await trio.to_thread.run_sync(
                self._broker.produce, self._bootstrap, service._topics[0], [(None, message(0), 0)]
            )
            while not reader.arrived:
                await trio.sleep(0.01)
            feeder = trio.to_thread.run_sync(self._feed, service._topics[0], messages)
            sent = await feeder
            with trio.fail_after(30):
                while len(reader.arrived) <= messages:
                    await trio.sleep(0.01)
        await trio.to_thread.run_sync(reader.close)
        sample.latencies += [reader.arrived[place] - moment for place, moment in sent.items()]

    def _feed(self, topic: str, messages: int) -> dict[tuple[int, int], float]:
        producer = self._broker.Producer({"bootstrap.servers": self._bootstrap, "linger.ms": 0})
        sent: dict[tuple[int, int], float] = {}
        began = time.perf_counter()
        for number in range(messages):
            due = began + number / _PACED_PER_SECOND
            time.sleep(max(0.0, due - time.perf_counter()))

            def delivered(error: object, there: Any, due: float = due) -> None:
                assert error is None, error
                sent[there.partition(), there.offset()] = due

            producer.produce(topic, message(number), partition=number % 4, on_delivery=delivered)
            producer.poll(0)
        producer.flush(10)
        return sent

    def _service(self, delivery: Any, records: list[Any]) -> trioagg.AsyncDataAnalysisService:
        broker = self._broker
        topic = broker.create_topic(self._bootstrap, broker.unique("in"), 4)
        results = broker.create_topic(self._bootstrap, broker.unique("out"), 4)
        if records:
            broker.produce(self._bootstrap, topic, records)
        return trioagg.AsyncDataAnalysisService(
            broker.unique("group"), [topic], bootstrap_servers=self._bootstrap, result_topic=results, delivery=delivery
        )


class Reader:
    """Reads committed results in a thread of its own, and notes when each one comes."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

        self.arrived: dict[tuple[int, int], float] = {}
        """Partition and offset of the input -> when its list was there."""
        self._ended = threading.Event()
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "reader",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 5,
            }
        )
        self._consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(4)])
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._ended.is_set():
            got = self._consumer.poll(0.05)
            if got is not None and got.error() is None:
                _, partition, offset, _ = (got.key() or b"").decode().rsplit("_", 3)
                self.arrived[int(partition), int(offset)] = time.perf_counter()

    def close(self) -> None:
        """End the thread and the consumer."""
        self._ended.set()
        self._thread.join()
        self._consumer.close()


def main(*, quick: bool, as_json: bool, seed: int) -> list[dict[str, Any]]:
    """Measure both, by turns in a random order, print them side by side, and return the cases."""
    broker, _ = harness()
    messages, paced, repeats = (300, 40, 1) if quick else (2000, 200, 5)
    samples = {delivery: Sample() for delivery in DELIVERIES}
    chance = random.Random(seed)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with broker.Broker(broker.kafka_jars()) as shared, Progress(*columns, console=Console(stderr=True)) as progress:
        bench = Bench(broker, shared.bootstrap)
        bar = progress.add_task("repetitions", total=repeats + 1)
        for number in range(repeats + 1):
            for delivery in chance.sample(DELIVERIES, 2):
                # The first one warms the broker's Java up, and is dropped.
                sample = samples[delivery] if number else Sample()
                trio.run(bench.backlog, delivery, messages, sample)
                trio.run(bench.paced, delivery, paced, sample)
            progress.update(bar, completed=number + 1)
    rows = [_row(delivery, sample) for delivery, sample in samples.items()]
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return rows
    table = Table(title="What does exactly once cost?")
    for name in ("delivery", "messages/s", "messages a commit", "ms to the reader, p50", "p99", "max"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["delivery"].replace("_", " "),
            f"{row['per_second']:.0f}",
            f"{row['messages_a_commit']:.0f}",
            *(f"{row[name]:.0f}" for name in ("p50_ms", "p99_ms", "max_ms")),
        )
    Console(width=130).print(table)
    print(f"Backlog: {messages} messages of {_STATIONS} stations that never wait, median of {repeats}.")
    print(
        f"Latency: {paced} messages x {repeats} at {_PACED_PER_SECOND} a second, from the intended moment of sending "
        "until a reader of what is committed has the list."
    )
    return rows


def _row(delivery: str, sample: Sample) -> dict[str, Any]:
    ordered = sorted(sample.latencies)
    return {
        "bench": "delivery",
        "delivery": delivery,
        "per_second": statistics.median(sample.per_second),
        "messages_a_commit": 1 / statistics.median(sample.commits),
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
        "max_ms": ordered[-1] * 1000,
        "samples": len(ordered),
    }
