"""The demonstration: messages of many stations through the real service, and what came of each batch."""

from __future__ import annotations

import json
import logging
import random
import signal
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # re-exported without saying so
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ._blame import lone_errors_bare
from ._context import current_batch
from ._mock_broker import mock_broker
from ._service import AsyncDataAnalysisService
from ._settings import KafkaSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._records import BatchReport

_ROWS_SHOWN_LIVE: Final = 15
_REFRESH_SECONDS: Final = 0.1
_MAKE_TOPICS_SECONDS: Final = 5.0


@dataclass(kw_only=True)
class Demo:
    """What is demonstrated, and what has come of it."""

    batches: int
    stations: int
    rate: float
    batch_timeout: float
    run_id: str = field(default_factory=lambda: f"{time.time_ns() // 1000 % 10**10:010d}")
    reports: list[tuple[BatchReport, str, float]] = field(default_factory=list)
    """With the message it came from, and how long after its deadline it was here, in seconds."""
    sent: int = 0

    @property
    def topic(self) -> str:
        return f"trioagg-demo-{self.run_id}"

    @property
    def result_topic(self) -> str:
        return f"{self.topic}-results"

    async def process_station(self, station_id: str, module_input: dict[str, Any]) -> dict[str, Any] | None:
        """A model with a temper; which one is in the message, so that every run is alike."""
        (record,) = module_input[self.topic]
        match record["temper"]:
            case "hangs":
                await trio.sleep_forever()
            case "fails":
                raise ValueError(f"no price for station {station_id}")
            case "silent":
                await trio.sleep(record["takes"])
                return None
        await trio.sleep(record["takes"])
        return {"station_id": station_id, "prediction": round(record["power"] * 0.9, 1)}

    def report(self, report: BatchReport) -> None:
        batch = current_batch()
        self.reports.append((report, f"{batch.partition}/{batch.offset}", trio.current_time() - batch.deadline))

    def messages(self) -> Iterator[bytes]:
        chance = random.Random(7)
        for number in range(self.batches):
            # In every fourth message nobody hangs: its list need not wait for the deadline.
            tempers = ["fails", "silent", "hangs"] if number % 4 else ["fails", "silent"]
            yield json.dumps(
                {
                    "realTimeData": [
                        {
                            "stationId": f"S{station:03d}",
                            "sendTime": "2025-11-20 10:00:00",
                            "power": round(chance.uniform(0, 120), 1),
                            "takes": round(min(chance.lognormvariate(-3, 0.7), self.batch_timeout * 0.7), 3),
                            "temper": chance.choice(tempers) if chance.random() < 0.06 else "works",
                        }
                        for station in range(self.stations)
                    ]
                }
            ).encode()

    async def produce(self, bootstrap_servers: str) -> None:
        producer = Producer({"bootstrap.servers": bootstrap_servers, "log_level": 0})
        begun = trio.current_time()
        for number, message in enumerate(self.messages()):
            await trio.sleep_until(begun + number / self.rate)
            producer.produce(self.topic, message)
            producer.poll(0)
            self.sent += 1
        await trio.to_thread.run_sync(producer.flush, 10.0)

    def table(self, rows: int) -> Table:
        table = Table(title=f"{self.stations} stations a message, one list each within {self.batch_timeout:g} s")
        for name, justify in (
            ("message", "left"),
            ("completed by", "left"),
            ("succeeded", "right"),
            ("failed", "right"),
            ("timed out", "right"),
            ("no output", "right"),
            ("time to the list", "right"),
        ):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]  # a literal, out of a tuple
        for report, message, _ in self.reports[-rows:]:
            table.add_row(
                message,
                Text(report.completed_by, style="green" if report.completed_by == "all" else "yellow"),
                str(report.succeeded),
                str(report.failed),
                str(report.timed_out),
                str(report.no_output),
                f"{report.seconds:.3f} s",
            )
        return table

    def summary(self) -> str:
        verdicts = sum(len(report.stations) for report, _, _ in self.reports)
        late = [1000 * late for report, _, late in self.reports if report.completed_by == "timeout"]
        lateness = f"; at most {max(late):.0f} ms after the deadline" if late else ""
        return f"{len(self.reports)} lists of {self.sent} messages, {verdicts} verdicts{lateness}."


async def run_demo(demo: Demo, bootstrap_servers: str | None, console: Console) -> None:
    """Run the demonstration until its last list is up, or until Ctrl-C, which drains.

    Raises:
      ConnectFailed, TopicUnavailable: if *bootstrap_servers* cannot be used.
    """
    # What becomes of each station is in the table: the log would say it again.
    logging.basicConfig(level=logging.ERROR)
    with ExitStack() as stack:
        topics = [demo.topic, demo.result_topic]
        if bootstrap_servers is None:
            where = stack.enter_context(mock_broker(topics))
        else:
            where = bootstrap_servers
            await trio.to_thread.run_sync(_make_topics, where, topics)
        service = AsyncDataAnalysisService(
            "trioagg-demo-" + demo.run_id,
            [demo.topic],
            bootstrap_servers=where,
            result_topic=demo.result_topic,
            batch_timeout=demo.batch_timeout,
            kafka=KafkaSettings(session_timeout=6.0, heartbeat_interval=0.5),
        )

        async def report_and_stop(report: BatchReport) -> None:
            await trio.lowlevel.checkpoint()
            demo.report(report)
            if len(demo.reports) == demo.batches:
                service.request_stop()

        console.print(
            f"{demo.batches} messages of {demo.stations} stations, {demo.rate:g} a second, through Kafka at {where}"
            + ("" if bootstrap_servers else " (librdkafka's mock broker, in this process)")
        )
        with lone_errors_bare():
            async with trio.open_nursery() as nursery:
                await nursery.start(_stop_on_signal, service)
                nursery.start_soon(demo.produce, where)
                if console.is_terminal:
                    nursery.start_soon(_show, demo, console)
                await service.run(demo.process_station, report_handler=report_and_stop)
                nursery.cancel_scope.cancel()
    console.print(demo.table(demo.batches))
    console.print(demo.summary())


async def _show(demo: Demo, console: Console) -> None:
    with Live(console=console, transient=True, auto_refresh=False) as live:
        while True:
            live.update(Group(demo.table(_ROWS_SHOWN_LIVE), demo.summary()), refresh=True)
            await trio.sleep(_REFRESH_SECONDS)


async def _stop_on_signal(
    service: AsyncDataAnalysisService, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            service.request_stop()


def _make_topics(bootstrap_servers: str, topics: list[str]) -> None:
    client = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    made = client.create_topics([NewTopic(topic, num_partitions=2, replication_factor=1) for topic in topics])
    for outcome in made.values():
        # What is wrong with the broker, or with our rights there, the service says better when it connects.
        with suppress(KafkaException, TimeoutError):
            outcome.result(timeout=_MAKE_TOPICS_SECONDS)
