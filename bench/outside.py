"""The world outside: sends messages when they are due and reads the lists, in a process of its own.

    python -m bench.outside '{"bootstrap": ..., "topic": ..., "results": ..., ...}'

It prints one JSON line.  Which list belongs to which message is known beforehand: message *n* goes to partition
``n % partitions``, and is the ``n // partitions``-th there, for nobody else writes to the topic.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from array import array
from contextlib import contextmanager, suppress
from itertools import cycle
from multiprocessing import get_context, resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from . import histograms
from .schedule import NANOSECONDS, Arrivals, due_times
from .stages import DUE_HEADER
from .workload import message

if TYPE_CHECKING:
    from collections.abc import Iterator

_COUNT: Final = re.compile(rb'"count": ?(\d+)')
_WARM_PER_SECOND: Final = 20.0
_RAMP_GROWTH: Final = 1.3
_OVERLOADED_BACKLOG_SECONDS: Final = 0.3
_OVERLOADED_STEPS: Final = 2
_NEVER: Final = 0
_MOST_MESSAGES: Final = 8_000_000
_LISTS, _TWICE, _STRANGE, _OVER, _HEAD = range(5)


class Order(msgspec.Struct, kw_only=True, frozen=True):
    """What is to be sent, and how."""

    bootstrap: str
    topic: str
    results: str
    partitions: int
    stations: int
    rate: float = 0.0
    """Messages a second; 0.0 for a ramp."""
    seconds: float = 5.0
    warm_seconds: float = 1.0
    arrivals: Arrivals = "poisson"
    seed: int = 1
    outstanding: int = 0
    """A closed loop instead: the next message is sent when fewer than so many lists are missing."""
    ramp_from: float = 50.0
    ramp_step_seconds: float = 1.0
    patience_seconds: float = 10.0
    interval_seconds: float = 0.5
    """Of the figures over time."""
    messages: str | None = None
    """A file of messages, one a line, instead of those of a workload."""


class Shared:
    """What the reader notes and the sender looks at, in memory that both processes see."""

    def __init__(self, name: str | None = None) -> None:
        self._memory = SharedMemory(name, create=name is None, size=(2 * _MOST_MESSAGES + _HEAD) * 8)
        self.name = self._memory.name
        assert self._memory.buf is not None
        numbers = self._memory.buf.cast("q")
        self.head = numbers[:_HEAD]
        """Lists, lists that came twice, lists that nobody waits for, whether to end."""
        self.arrived = numbers[_HEAD : _HEAD + _MOST_MESSAGES]
        """By the number of the message: when its list came; 0 as long as it did not."""
        self.answers = numbers[_HEAD + _MOST_MESSAGES : _HEAD + 2 * _MOST_MESSAGES]
        self._views = (numbers, self.head, self.arrived, self.answers)

    @property
    def lists(self) -> int:
        """How many messages have their list."""
        return self.head[_LISTS]

    def close(self) -> None:
        """Let go of the memory."""
        for view in reversed(self._views):
            view.release()
        self._memory.close()


def read(order: Order, name: str, sender: int) -> None:
    """Read what is committed, and note when each list came.

    In a process of its own: in a thread of the sender's, either would wait for the other's turn.
    """
    resource_tracker.unregister(f"/{name.lstrip('/')}", "shared_memory")  # it is the sender's to unlink
    shared = Shared(name)
    consumer = Consumer(
        {
            "bootstrap.servers": order.bootstrap,
            "group.id": "bench reader",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 5,
        }
    )
    consumer.assign([TopicPartition(order.results, number, OFFSET_BEGINNING) for number in range(order.partitions)])
    while not shared.head[_OVER] and os.getppid() == sender:  # a sender that was killed says nothing
        # Not consume(500, ...): it waits until there are so many.
        first = consumer.poll(0.05)
        now = time.monotonic_ns()
        for one in [first, *consumer.consume(500, 0)] if first is not None else ():
            if one.error() is None:
                _note(order, shared, one.key() or b"", one.value() or b"", now)
    consumer.close()
    shared.close()


def _note(order: Order, shared: Shared, key: bytes, value: bytes, now: int) -> None:
    _, partition, offset, _ = key.decode().rsplit("_", 3)
    number = int(offset) * order.partitions + int(partition)
    count = _COUNT.search(value, 0, 200)
    if number >= _MOST_MESSAGES or count is None:
        shared.head[_STRANGE] += 1
    elif shared.arrived[number]:
        shared.head[_TWICE] += 1
    else:
        shared.answers[number] = int(count[1])
        shared.arrived[number] = now
        shared.head[_LISTS] += 1


@contextmanager
def reading(order: Order) -> Iterator[Shared]:
    """A reader, as long as the block lasts."""
    shared = Shared()
    process = get_context("spawn").Process(target=read, args=(order, shared.name, os.getpid()), daemon=True)
    process.start()
    try:
        yield shared
    finally:
        shared.head[_OVER] = 1
        process.join(10)
        process.kill()
        process.join()
        shared.close()
        SharedMemory(shared.name).unlink()


class Sender:
    """Sends messages, each at its moment or as soon after it as it can."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._producer = Producer(
            {
                "bootstrap.servers": order.bootstrap,
                "linger.ms": 1,
                "enable.idempotence": True,  # keeps the order
                "queue.buffering.max.messages": 1_000_000,
                "queue.buffering.max.kbytes": 2_000_000,
            }
        )
        lines = [line for line in Path(order.messages).read_bytes().splitlines() if line] if order.messages else []
        self._values = cycle(lines or [message(number, order.stations) for number in range(200)])
        self.sent = 0
        self.due, self.slips = array("q"), array("q")

    def hurry(self) -> None:
        """Before everybody else when a message is due, where the system lets us: the sender must be on time."""
        if hasattr(os, "sched_setscheduler"):
            with suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))

    def send(self, due_ns: int) -> None:
        """Wait until the message is due, and send it."""
        # Not awake until then: the broker and the reader may have to live on the same CPU.
        while (left := due_ns - time.monotonic_ns()) > 0:
            self._producer.poll(0)
            time.sleep(left / NANOSECONDS)
        self.slips.append(max(0, -left))
        self.due.append(due_ns)
        self._producer.produce(
            self._order.topic,
            next(self._values),
            partition=self.sent % self._order.partitions,
            headers=[(DUE_HEADER, b"%d" % due_ns)],
        )
        self.sent += 1
        if not self.sent & 15:
            self._producer.poll(0)

    def flush(self) -> None:
        """Wait until all of them are there."""
        self._producer.flush(30)


def _warm(order: Order, sender: Sender, reader: Shared) -> None:
    """Until the first list is there, and a while longer at the rate that is to be measured."""
    until = time.monotonic() + 60
    while not reader.lists:
        if time.monotonic() > until:
            sys.exit("there was no list within 60 s")
        sender.send(time.monotonic_ns() + round(NANOSECONDS / _WARM_PER_SECOND))
    _wait_for_all(sender, reader, order.patience_seconds)
    if order.rate and not order.outstanding and order.warm_seconds:
        began = time.monotonic_ns()
        for due in due_times(order.rate, order.warm_seconds, order.arrivals, order.seed + 1):
            sender.send(began + due)


def _wait_for_all(sender: Sender, reader: Shared, seconds: float) -> None:
    sender.flush()
    until = time.monotonic() + seconds
    while reader.lists < sender.sent and time.monotonic() < until:
        time.sleep(0.005)  # another process notes the lists: there is nothing to wait on


def measure(order: Order, sender: Sender, reader: Shared) -> dict[str, Any]:
    """One repetition at one rate."""
    first = sender.sent
    began, epoch = time.monotonic_ns(), time.time()
    if order.outstanding:
        while time.monotonic_ns() - began < order.seconds * NANOSECONDS:
            while sender.sent - reader.lists >= order.outstanding:
                time.sleep(0.0001)
            sender.send(time.monotonic_ns())
    else:
        for due in due_times(order.rate, order.seconds, order.arrivals, order.seed):
            sender.send(began + due)
    ended = time.monotonic_ns()
    _wait_for_all(sender, reader, order.patience_seconds)
    return _figures(order, sender, reader, first, began, ended, epoch)


def _figures(
    order: Order, sender: Sender, reader: Shared, first: int, began: int, ended: int, epoch: float
) -> dict[str, Any]:
    given_up = time.monotonic_ns()
    due, arrived = sender.due[first:], array("q", reader.arrived[first : sender.sent])
    # What never came is as old as it was when we ceased to wait, and not left out.
    took = array("q", ((came or given_up) - moment for moment, came in zip(due, arrived, strict=True)))
    when = array("q", (moment - began for moment in due))
    latency, slip = histograms.of(took), histograms.of(sender.slips[first:])
    summary = histograms.summary(latency)
    samples = len(took)
    slip_p99, latency_p99 = (_percentile(one, 99) for one in (slip, latency))
    return {
        "rate": order.rate,
        "seconds": (ended - began) / NANOSECONDS,
        "sent": samples,
        "lists": samples - sum(1 for came in arrived if came == _NEVER),
        "lost": sum(1 for came in arrived if came == _NEVER),
        "twice": reader.head[_TWICE],
        "strange": reader.head[_STRANGE],
        "answers": sum(reader.answers[first : sender.sent]),
        "expected_answers": samples * order.stations,
        "closed_loop": bool(order.outstanding),
        "slip_p99_ms": slip_p99,
        # A sender that is late by more than that would be what is measured.  In a closed loop nothing is ever late.
        "valid": bool(order.outstanding) or slip_p99 <= 0.1 * latency_p99,
        "summary": summary,
        "slip": histograms.encoded(slip),
        "latency": histograms.encoded(latency),
        "over_time": histograms.over_time(when, took, order.interval_seconds),
        "intervals": _intervals(when, took),
        "epoch": epoch,
        "window_ns": [began, ended],
    }


def _percentile(histogram: Any, percent: float) -> float:
    return float(histogram.get_value_at_percentile(percent)) / 1000


def _intervals(when: array[int], took: array[int]) -> list[str]:
    """One histogram a second."""
    rows: dict[int, list[int]] = {}
    for moment, duration in zip(when, took, strict=True):
        rows.setdefault(moment // NANOSECONDS, []).append(duration)
    return [histograms.encoded(histograms.of(rows.get(number, []))) for number in range(max(rows, default=-1) + 1)]


def ramp(order: Order, sender: Sender, reader: Shared) -> dict[str, Any]:
    """Raise the rate step by step until the lists do not keep up.

    The most that came in any step is what can come.  Not what comes beyond that: the sender and the broker have to live
    on the same machine, and the more is sent in vain, the less is left for the contestant.
    """
    rate, overloaded, steps = order.ramp_from, 0, list[dict[str, Any]]()
    step_ns = round(order.ramp_step_seconds * NANOSECONDS)
    began = time.monotonic_ns()
    while overloaded < _OVERLOADED_STEPS:
        first, lists = sender.sent, reader.lists
        count = max(1, round(rate * order.ramp_step_seconds))
        for number in range(count):
            sender.send(began + step_ns * number // count)
        now = time.monotonic_ns()
        slipped = now - began > 1.2 * step_ns
        seconds = (now - began) / NANOSECONDS
        delivered = (reader.lists - lists) / seconds
        took = sorted(
            came - due
            for due, came in zip(sender.due[first:], reader.arrived[first : sender.sent], strict=True)
            if came
        )
        steps.append(
            {
                "offered": count / seconds,
                "delivered": delivered,
                "p50_ms": took[len(took) // 2] / 1e6 if took else None,
                "p99_ms": took[len(took) * 99 // 100] / 1e6 if took else None,
                "slipped": slipped,
            }
        )
        if sender.sent - reader.lists > rate * _OVERLOADED_BACKLOG_SECONDS or slipped:
            overloaded += 1
        else:
            overloaded, rate = 0, rate * _RAMP_GROWTH
        began = now if slipped else began + step_ns
    _wait_for_all(sender, reader, order.patience_seconds)
    most = max(steps, key=lambda step: step["delivered"])
    return {
        "per_second": most["delivered"],
        "sender_was_the_bottleneck": most["slipped"],
        "ramp": steps,
        "lost": sender.sent - reader.lists,
        "twice": reader.head[_TWICE],
    }


def main() -> None:
    """One order, one line."""
    order = msgspec.json.decode(sys.argv[1], type=Order)
    sender = Sender(order)
    with reading(order) as reader:
        sender.hurry()
        _warm(order, sender, reader)
        figures = measure(order, sender, reader) if order.rate or order.outstanding else ramp(order, sender, reader)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
