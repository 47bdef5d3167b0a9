"""From samples to what a reader sees: percentiles, the facts of this machine, a table or JSON lines, progress."""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final, Self

import trio
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_PATIENCE_SECONDS: Final = 2.0
_WIDTH_WITHOUT_A_TERMINAL: Final = 140


def percentile(samples: Iterable[float], percent: float) -> float:
    """The nearest rank: a sample that really was, never a mean of two."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def environment(*, wakeups: int) -> dict[str, Any]:
    """What the figures depend on, and how late this machine wakes up a task that only sleeps."""
    late = trio.run(_lateness_of_sleep, wakeups)
    return {
        "python": platform.python_version(),
        "trio": trio.__version__,
        "trioagg": _version_of("trioagg"),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "gc_thresholds": list(gc.get_threshold()),
        "wakes_late_p50_ms": round(percentile(late, 50) * 1e3, 3),
        "wakes_late_p99_ms": round(percentile(late, 99) * 1e3, 3),
    }


def describe(facts: Mapping[str, Any]) -> str:
    """The header of the tables."""
    return (
        f"Python {facts['python']}, trio {facts['trio']}, trioagg {facts['trioagg']}, {facts['system']}, "
        f"{facts['cpus']} CPUs, load {facts['load']:g}\n"
        f"Noise floor: trio.sleep_until wakes {facts['wakes_late_p50_ms']:.2f} ms late (p50), "
        f"{facts['wakes_late_p99_ms']:.2f} ms (p99)\n"
        f"Garbage collector: Python's default {tuple(facts['gc_thresholds'])}, unless a case says tuned"
    )


def print_lines(facts: Mapping[str, Any], cases: Iterable[Mapping[str, Any]]) -> None:
    """One JSON line a case; each stands alone, with the machine's facts in it."""
    for case in cases:
        print(json.dumps({**_rounded(case), "environment": facts}))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], notes: str = "") -> None:
    """The first two columns name the case, the others are figures."""
    table = Table(title=title, title_justify="left", caption=notes or None, caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def verdict(met: bool | None) -> str:
    """Of a target; None where there is none."""
    return "" if met is None else "met" if met else "MISSED"


def console() -> Console:
    """Standard output; a file or a pipe gets lines wide enough for the tables."""
    return Console() if sys.stdout.isatty() else Console(width=_WIDTH_WITHOUT_A_TERMINAL)


class Progress:
    """Says on stderr what is being measured, if it takes longer than two seconds and somebody is there to see it.

    It writes between samples, never beside one: a thread that draws would be measured too.
    """

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._began = time.monotonic()
        self._seen = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._seen:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def step(self, what: str) -> None:
        """*what* comes next."""
        if sys.stderr.isatty() and time.monotonic() - self._began > _PATIENCE_SECONDS:
            self._seen = True
            print(f"\r\x1b[K{100 * self._done // self._total:3d} %  {what}", end="", file=sys.stderr, flush=True)
        self._done += 1


def _rounded(case: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: round(value, 4) if isinstance(value, float) else _rounded(value) if isinstance(value, dict) else value
        for key, value in case.items()
    }


async def _lateness_of_sleep(wakeups: int) -> list[float]:
    late = []
    for _ in range(wakeups):
        until = trio.current_time() + 0.001
        await trio.sleep_until(until)
        late.append(trio.current_time() - until)
    return late  # noqa: ASYNC910 - at least one is wanted


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(checkout)"
