"""How many stations make it before the deadline?    python -m bench timeouts

Models of three speeds, run against several deadlines on a virtual clock: the service times are drawn, the waiting is
not done.  A service time is lognormal, as those of remote models usually are: half of the stations take less than the
median, one in a hundred takes more than six times as long (sigma 0.8); and one station in two hundred never answers.
It is this tail that the deadline must leave room for.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any, Final

import trio
import trio.testing

from trioagg import run_batch

from .figures import Progress, console, print_lines, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

_STATIONS: Final = 100
_SIGMA: Final = 0.8
_NEVER: Final = 0.005

MODELS: Final = (("fast", 0.06, 2.0), ("medium", 0.25, 5.0), ("slow", 0.8, 10.0))
"""Name, median in seconds, and the deadline that the guide recommends for it."""


def main(deadlines: Sequence[float], *, batches: int, seed: int, as_json: bool) -> list[dict[str, Any]]:
    """Measure, print, and return the cases."""
    cases = []
    with Progress(len(MODELS) * len(deadlines)) as progress:
        for name, median_seconds, recommended in MODELS:
            for deadline_seconds in deadlines:
                progress.step(f"{name}, deadline {deadline_seconds:g} s")
                clock = trio.testing.MockClock(autojump_threshold=0)
                answered, able, seconds = trio.run(
                    _measure, median_seconds, deadline_seconds, batches, random.Random(seed), clock=clock
                )
                cases.append(
                    {
                        "bench": "timeouts",
                        "model": name,
                        "median_seconds": median_seconds,
                        "deadline_seconds": deadline_seconds,
                        "recommended": deadline_seconds == recommended,
                        "answered_ratio": answered,
                        "answered_of_able_ratio": answered / able,
                        "mean_seconds": seconds,
                    }
                )
    if as_json:
        print_lines({"batches": batches, "stations": _STATIONS, "sigma": _SIGMA, "never": _NEVER, "seed": seed}, cases)
        return cases
    console().print(f"{batches} batches of {_STATIONS} stations a case, seed {seed}, virtual time")
    print_table(
        "Stations that answered before the deadline",
        ("model", "deadline", "answered", "of those that ever do", "mean time to the list", "the guide's choice"),
        [_row(case) for case in cases],
    )
    return cases


def _row(case: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{case['model']} (median {1000 * case['median_seconds']:g} ms)",
        f"{case['deadline_seconds']:g} s",
        f"{100 * case['answered_ratio']:.2f} %",
        f"{100 * case['answered_of_able_ratio']:.2f} %",
        f"{case['mean_seconds']:.2f} s",
        "<-" if case["recommended"] else "",
    )


def _service_time(median_seconds: float, chance: random.Random) -> float:
    return math.inf if chance.random() < _NEVER else median_seconds * chance.lognormvariate(0, _SIGMA)


async def _measure(
    median_seconds: float, deadline_seconds: float, batches: int, chance: random.Random
) -> tuple[float, float, float]:
    async def station(station_id: str, takes: float) -> dict[str, Any]:
        await trio.sleep(takes)
        return {"station_id": station_id}

    answered = able = 0
    seconds = 0.0
    for number in range(batches):
        takes = {f"S{station:03d}": _service_time(median_seconds, chance) for station in range(_STATIONS)}
        report = await run_batch(f"{number}", takes, station, batch_timeout=deadline_seconds)
        answered += report.succeeded
        able += sum(seconds < math.inf for seconds in takes.values())
        seconds += report.seconds or 0.0
    expected = batches * _STATIONS
    return answered / expected, able / expected, seconds / batches  # noqa: ASYNC910 - there is a batch at least
