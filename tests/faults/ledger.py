"""Who sent what, and what must have come of it: a producer that keeps books, and the verifier that reads them."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from broker import committed, create_topic, end_offsets, read_all, unique
from confluent_kafka import KafkaException, Producer

if TYPE_CHECKING:
    from types import TracebackType

STATIONS = 3


@dataclass
class Verdict:
    """What became of all inputs."""

    inputs: int
    lists: int
    lost: int
    """Inputs without a list."""
    duplicated: int
    """Lists beyond the first of their input."""
    out_of_bounds: int
    """Lists that no input explains, or with a value that is not what its station had to answer."""
    partial: int
    """Lists without all of their stations."""
    longest_stall_seconds: float
    """Between two lists of one partition, while there was something to do."""
    recovered_seconds: list[float] = field(default_factory=list)
    """From each fault, or from its end where it lasts, to the next list."""
    committed: bool = True
    """Whether all of the input is committed."""

    @property
    def recovery(self) -> str:
        """The median and the worst, in words."""
        if not self.recovered_seconds:
            return "-"
        ordered = sorted(self.recovered_seconds)
        return f"{ordered[len(ordered) // 2]:.1f} / {ordered[-1]:.1f}"


class Ledger:
    """An input topic that is fed at a steady rate, and a result topic.  As a context manager it feeds."""

    def __init__(
        self, bootstrap: str, *, rate: float, partitions: int = 4, replicas: int = 1, at_most: int = 1_000_000
    ) -> None:
        self.bootstrap, self.rate, self.partitions = bootstrap, rate, partitions
        self.topic = create_topic(bootstrap, unique("in"), partitions, replicas=replicas)
        # The broker's own time: a list that is sent again keeps the time of its first try.
        config = {"message.timestamp.type": "LogAppendTime"}
        self.results = create_topic(bootstrap, unique("out"), partitions, config, replicas=replicas)
        self.group = unique("group")
        self.sent = 0
        self.faults: list[float] = []
        self._at_most = at_most
        self._ended = threading.Event()
        self._refused: list[str] = []
        self._thread = threading.Thread(target=self._feed, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop_feeding()

    def stop_feeding(self) -> None:
        self._ended.set()
        self._thread.join(120)
        assert not self._thread.is_alive(), "the inputs were not all acknowledged"
        assert not self._refused, self._refused[:3]

    def fault(self) -> None:
        """Note that something has just been broken."""
        self.faults.append(time.time())

    def _feed(self) -> None:
        producer = Producer(
            {"bootstrap.servers": self.bootstrap, "enable.idempotence": True, "linger.ms": 5, "log_level": 0}
        )

        def delivered(error: object, message: object) -> None:
            if error is not None:
                self._refused.append(str(error))

        began = time.monotonic()
        while not self._ended.wait(0.02) and self.sent < self._at_most:
            due = min(self._at_most, int((time.monotonic() - began) * self.rate))
            while self.sent < due:
                records = [{"stationId": f"S{index}", "number": self.sent, "index": index} for index in range(STATIONS)]
                producer.produce(
                    self.topic,
                    json.dumps({"realTimeData": records}).encode(),
                    partition=self.sent % self.partitions,
                    on_delivery=delivered,
                )
                self.sent += 1
            producer.poll(0)
        producer.flush(100)

    def wait_done(self, seconds: float = 90) -> None:
        """Wait until all of the input is committed."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if committed(self.bootstrap, self.group, self.topic) == end_offsets(self.bootstrap, self.topic):
                    return
            except KafkaException:
                pass  # a broker that is only coming back
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"not committed after {seconds:g} s: {committed(self.bootstrap, self.group, self.topic)} of "
                    f"{end_offsets(self.bootstrap, self.topic)}"
                )
            time.sleep(0.2)

    def verify(self, seconds: float = 20) -> Verdict:
        """Read everything that came out.

        The end of a transaction is written after its commit has returned: for so many *seconds* what is missing may
        still be behind one.
        """
        deadline = time.monotonic() + seconds
        while (verdict := self._read()).lost and time.monotonic() < deadline:
            time.sleep(1)
        return verdict

    def _read(self) -> Verdict:
        lists: Counter[int] = Counter()
        strange = partial = 0
        times: list[float] = []
        of_partition: dict[str, list[float]] = {}
        for message in read_all(self.bootstrap, self.results, "read_committed", seconds=60):
            content = json.loads(message.value())
            numbers = {result["number"] for result in content["results"]}
            wrong = [
                result
                for result in content["results"]
                if result["value"] != result["number"] * 7 + int(result["station_id"].removeprefix("S"))
            ]
            # A list without any result still has its offset, and with that its number.
            _, partition, offset, _ = content["batch_id"].rsplit("_", 3)
            number = int(offset) * self.partitions + int(partition)
            if numbers - {number} or wrong or number >= self.sent:
                strange += 1
                continue
            partial += len(content["results"]) < STATIONS
            lists[number] += 1
            times.append(message.timestamp()[1] / 1000)
            of_partition.setdefault(partition, []).append(times[-1])
        times.sort()
        gaps = [
            later - earlier
            for ordered in map(sorted, of_partition.values())
            for earlier, later in itertools.pairwise(ordered)
        ]
        after = [[moment for moment in times if moment > fault] for fault in self.faults]
        recovered = [later[0] - fault for later, fault in zip(after, self.faults, strict=True) if later]
        return Verdict(
            inputs=self.sent,
            lists=lists.total() + strange,
            lost=self.sent - len(lists),
            duplicated=lists.total() - len(lists),
            out_of_bounds=strange,
            partial=partial,
            longest_stall_seconds=max(gaps, default=0.0),
            recovered_seconds=recovered,
            committed=committed(self.bootstrap, self.group, self.topic) == end_offsets(self.bootstrap, self.topic),
        )
