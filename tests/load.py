"""Messages of many stations, and what must have come of them."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import trio
from broker import committed, create_topic, end_offsets, produce, read_all, unique

import trioagg

if TYPE_CHECKING:
    from collections.abc import Callable

QUICK = trioagg.KafkaSettings(session_timeout=6.0, heartbeat_interval=0.5)


def message(number: int, stations: int = 3) -> bytes:
    records = [{"stationId": f"S{station:03d}", "number": number} for station in range(stations)]
    return json.dumps({"realTimeData": records}).encode()


class Load:
    """An input topic with messages, and a result topic for their lists."""

    def __init__(self, bootstrap: str, messages: int = 0, *, stations: int = 3, partitions: int = 2) -> None:
        self.bootstrap, self.partitions = bootstrap, partitions
        self.topic = create_topic(bootstrap, unique("in"), partitions)
        self.results = create_topic(bootstrap, unique("out"), partitions)
        self.group = unique("group")
        self.sent = 0
        self.send(messages, stations=stations)

    def send(self, messages: int, *, stations: int = 3) -> None:
        numbers = range(self.sent, self.sent + messages)
        produce(self.bootstrap, self.topic, [(None, message(n, stations), n % self.partitions) for n in numbers])
        self.sent += messages

    def service(self, **settings: object) -> trioagg.AsyncDataAnalysisService:
        settings = {"kafka": QUICK, "result_topic": self.results, **settings}
        return trioagg.AsyncDataAnalysisService(self.group, [self.topic], bootstrap_servers=self.bootstrap, **settings)

    def lists(self) -> Counter[str]:
        """How often each batch id is in the result topic."""
        return Counter(result.key().decode() for result in read_all(self.bootstrap, self.results))

    def committed(self) -> dict[int, int | None]:
        return committed(self.bootstrap, self.group, self.topic)

    def ends(self) -> dict[int, int]:
        return end_offsets(self.bootstrap, self.topic)


async def double(station_id: str, module_input: dict) -> dict:
    """A callback that never waits."""
    (records,) = [value for key, value in module_input.items() if isinstance(value, list)]
    return {"station_id": station_id, "number": records[0]["number"]}


async def until(condition: Callable[[], bool], seconds: float = 40) -> None:
    """Wait for what another machine does."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.02)


async def all_committed(load: Load, seconds: float = 40) -> None:
    """Wait until the group has committed everything."""
    with trio.fail_after(seconds):
        # In a thread: it asks a broker that may be waiting for us.
        while await trio.to_thread.run_sync(load.committed) != load.ends():
            await trio.sleep(0.2)


class DeadLoad(Load):
    """A load with a topic for its dead letters."""

    def __init__(self, bootstrap: str, messages: int = 0, *, partitions: int = 2, **config: str) -> None:
        super().__init__(bootstrap, messages, partitions=partitions)
        self.dead = create_topic(bootstrap, unique("dead"), 1, config)

    def service(self, **settings: object) -> trioagg.AsyncDataAnalysisService:
        return super().service(**{"dead_letter_topic": self.dead, **settings})

    def letters(self) -> list[Any]:
        return read_all(self.bootstrap, self.dead)
