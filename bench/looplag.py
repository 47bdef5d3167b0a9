"""Who held the loop, and who could have run and had to wait for it?

Trio runs one task at a time.  A task is *runnable* from ``task_scheduled`` on, *runs* from ``before_task_step`` to
``after_task_step``, and between those two it holds the loop: everybody else who is runnable waits.  A latency has both
in it, and no other figure tells them apart.

Which name a step has: one task of ours serves many stations and is named after the one that it serves.  What ran is
booked under the name at the **end** of the step: a server goes on to the next station within a step until 1 ms is over,
so whoever held the loop for longer was the last one.  (The others of that step were done within its first millisecond.)
What waited is booked under the name at the **beginning**: the station that the task had stopped in.  A task that waits
for its first step is a ``trioagg server`` still and has no station.

What it costs: 2 to 3 us a step, a third of it before a line of ours runs.  Three calls of an instrument that does
nothing make a bare checkpoint 1.5 times as dear, these ones 2 to 2.4 times.  A batch of stations that never wait takes
few steps and becomes 1.02 to 1.1 times as dear, one whose stations each pass a checkpoint 1.5 to 1.7 times.
:func:`cost` says it for your machine.

Not seen: what Trio itself does between two steps (polling for I/O, expiring deadlines), and other threads; one that
holds Python's interpreter lock looks like a long step.
"""
# flake8: noqa: ASYNC910 - what it measures itself with is no library

from __future__ import annotations

import statistics
import time
from array import array
from heapq import heapify, heapreplace
from typing import TYPE_CHECKING, Any, Final, Self

import trio

import trioagg

from . import histograms
from .figures import print_table

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

OTHERS: Final = "(others)"
_MOST_NAMES: Final = 2000
_MOST_SAMPLES: Final = 4_000_000
"""Of the histograms: 64 MB.  The sums, the names and the longest go on after that."""
_LONGEST: Final = 10
_TOP: Final = 20


class LoopLag(trio.abc.Instrument):
    """Give it to ``trio.run(instruments=[...])`` or ``trio.lowlevel.add_instrument``, or use it as a block in Trio.

    Args:
      clock: Nanoseconds, from wherever.
    """

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock
        self._origin = clock()
        self._scheduled: dict[trio.lowlevel.Task, int] = {}
        self._began = 0
        """Of the step that runs; 0 between two, and in the one that we were switched on in."""
        self._waiting, self._running = array("q"), array("q")
        self._names: dict[str, list[int]] = {}
        """Steps, nanoseconds that it ran, nanoseconds that it waited."""
        # Heaps of (nanoseconds, began, name), and the least that is worth a look.
        self._longest_steps, self._longest_waits = _no_longest(), _no_longest()
        self._long_step = self._long_wait = 0

    def __enter__(self) -> Self:
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(self, *exc: object) -> None:
        trio.lowlevel.remove_instrument(self)

    # What Trio calls, three times a step.  Everything here is paid for by the tasks that are measured.

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self._scheduled[task] = self._clock()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = began = self._clock()
        scheduled = self._scheduled.pop(task, 0)
        if scheduled:  # else it was before we were switched on
            waited = began - scheduled
            if len(self._waiting) < _MOST_SAMPLES:
                self._waiting.append(waited)
            name = task.name
            (self._names.get(name) or self._account(name))[2] += waited
            if waited > self._long_wait:
                heapreplace(self._longest_waits, (waited, scheduled, name))
                self._long_wait = self._longest_waits[0][0]

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        began = self._began
        if not began:
            return
        ran = self._clock() - began
        self._began = 0
        if len(self._running) < _MOST_SAMPLES:
            self._running.append(ran)
        name = task.name
        account = self._names.get(name) or self._account(name)
        account[0] += 1
        account[1] += ran
        if ran > self._long_step:
            heapreplace(self._longest_steps, (ran, began, name))
            self._long_step = self._longest_steps[0][0]

    def _account(self, name: str) -> list[int]:
        return self._names.setdefault(name if len(self._names) < _MOST_NAMES else OTHERS, [0, 0, 0])

    # What a reader asks.

    def figures(self) -> dict[str, Any]:
        """Ready for JSON.  ``by_name``: name, steps, milliseconds that it ran, milliseconds that it was runnable and
        waited; the twenty that ran longest.  ``longest_*``: name, milliseconds, and when it began, in seconds since we
        were made."""
        by_name = sorted(self._names.items(), key=lambda item: item[1][1], reverse=True)
        return {
            "steps": sum(steps for steps, _, _ in self._names.values()),
            "running_seconds": sum(ran for _, ran, _ in self._names.values()) / 1e9,
            "waiting": histograms.encoded(histograms.of(self._waiting)),
            "running": histograms.encoded(histograms.of(self._running)),
            "by_name": [[name, steps, ran / 1e6, waited / 1e6] for name, (steps, ran, waited) in by_name[:_TOP]],
            "longest_steps": self._told(self._longest_steps),
            "longest_waits": self._told(self._longest_waits),
        }

    def _told(self, longest: list[tuple[int, int, str]]) -> list[list[Any]]:
        return [
            [name, took / 1e6, (began - self._origin) / 1e9]
            for took, began, name in sorted(longest, reverse=True)
            if took
        ]


def _no_longest() -> list[tuple[int, int, str]]:
    nothing = [(0, 0, "")] * _LONGEST
    heapify(nothing)
    return nothing


def print_tables(figures: Mapping[str, Any]) -> None:
    """What :meth:`LoopLag.figures` gave, to be read: percentiles, who ran, and the longest."""
    print_table(
        f"The loop: {figures['steps']} steps, {figures['running_seconds']:.3f} s of them",
        ["ms", "", "p50", "p99", "p99.9", "max"],
        [
            _percentiles("running", "a task holds the loop", figures["running"]),
            _percentiles("waiting", "a task is runnable and somebody else runs", figures["waiting"]),
        ],
    )
    print_table(
        "Who ran longest, all steps together",
        ["task", "steps", "ran ms", "waited ms"],
        [[name, str(steps), f"{ran:.2f}", f"{waited:.2f}"] for name, steps, ran, waited in figures["by_name"]],
        "Named after the station that a task served: steps by the name at their end, waits by that at their beginning.",
    )
    for title, key in (
        ("The longest steps", "longest_steps"),
        ("The longest waits of runnable tasks", "longest_waits"),
    ):
        rows = [[name, f"at {at:.3f} s", f"{ms:.2f}"] for name, ms, at in figures[key]]
        print_table(title, ["task", "began", "ms"], rows)


def _percentiles(name: str, meaning: str, text: str) -> list[str]:
    told = histograms.summary(histograms.decoded(text))
    values = (told.get(key) for key in ("p50_ms", "p99_ms", "p99.9_ms", "max_ms"))
    return [name, meaning, *("" if value is None else f"{value:.3f}" for value in values)]


def cost(
    rounds: int = 15, steps: int = 20_000, instrument: Callable[[], trio.abc.Instrument] = LoopLag
) -> dict[str, dict[str, float]]:
    """What the instrument itself costs: the same work with it and without, by turns, in this process and now.

    Microseconds a step for tasks that do nothing but give way (nothing is dearer, in proportion); microseconds a
    station for batches of a hundred that never wait, and that each pass one checkpoint.
    """
    batches = steps // 100
    works: dict[str, Callable[[], Awaitable[None]]] = {
        "step that only gives way": lambda: _give_way(steps),
        "station that never waits": lambda: _batches(batches, _at_once),
        "station with one checkpoint": lambda: _batches(batches, _one_checkpoint),
    }
    told = {}
    for name, work in works.items():
        bare: list[float] = []
        watched: list[float] = []
        for number in range(rounds):
            for is_watched in (False, True) if number % 2 else (True, False):
                instruments = [instrument()] if is_watched else []
                began = time.perf_counter()
                trio.run(work, instruments=instruments)
                (watched if is_watched else bare).append((time.perf_counter() - began) * 1e6 / steps)
        told[name] = {
            "bare_us": statistics.median(bare),
            "watched_us": statistics.median(watched),
            "ratio": statistics.median(one / other for one, other in zip(watched, bare, strict=True)),
        }
    return told


async def _give_way(steps: int) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(_checkpoints, steps // 100, name=f"S{number:03d}")


async def _checkpoints(count: int) -> None:
    for _ in range(count):
        await trio.lowlevel.checkpoint()


async def _batches(count: int, callback: Callable[[str, Any], Awaitable[None]]) -> None:
    stations = {f"S{number:03d}": None for number in range(100)}
    for _ in range(count):
        await trioagg.run_batch("cost", stations, callback)


async def _at_once(station_id: str, value: object) -> None:
    return


async def _one_checkpoint(station_id: str, value: object) -> None:
    await trio.lowlevel.checkpoint()
