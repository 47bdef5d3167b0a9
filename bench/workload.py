"""What is to be done: a TOML file says how many stations, how long they take, by when, and how often.

The files beside this module are examples; ``python -m bench pipeline --workload mine.toml`` takes any other one.
"""

from __future__ import annotations

import csv
import json
import math
import random
import sys
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from .schedule import Arrivals

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE: Final = Path(__file__).parent / "workloads"
_ROUNDS: Final = 50
"""So many stations' worth of service times are drawn; then they come again."""


class _Law(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="law"):
    """How long a station takes."""


class NeverWaits(_Law, tag="never_waits", frozen=True):
    """It answers at once."""

    def draw(self, chance: random.Random, number: int) -> float:
        return 0.0


class Constant(_Law, tag="constant", frozen=True):
    """Always the same."""

    ms: float

    def draw(self, chance: random.Random, number: int) -> float:
        return self.ms


class Lognormal(_Law, tag="lognormal", frozen=True):
    """Half of them take less than the median; the larger sigma, the longer the tail.  Remote models are like this."""

    median_ms: float
    sigma: float

    def draw(self, chance: random.Random, number: int) -> float:
        return self.median_ms * chance.lognormvariate(0, self.sigma)


class Bimodal(_Law, tag="bimodal", frozen=True):
    """Some hit a cache and some do not."""

    fast_ms: float
    slow_ms: float
    slow_share: float

    def draw(self, chance: random.Random, number: int) -> float:
        return self.slow_ms if chance.random() < self.slow_share else self.fast_ms


class OneSlow(_Law, tag="one_slow", frozen=True):
    """One station of every message is slow, and all wait for it."""

    ms: float
    slow_ms: float

    def draw(self, chance: random.Random, number: int) -> float:
        return self.ms if number else self.slow_ms


class Measured(_Law, tag="measured", frozen=True):
    """Your own measurements: a column of a CSV file, in milliseconds.  Without a name it is the first column."""

    csv: str
    column: str | None = None


class Faults(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What goes wrong on purpose.  Shares are of the stations."""

    failing_share: float = 0.0
    never_returning_share: float = 0.0
    blocking_share: float = 0.0
    """They keep the loop to themselves while they work: ``time.sleep`` in an ``async def``."""
    upload_ms: float = 0.0
    """Every upload takes so much longer."""
    stall_ms: float = 0.0
    """The loop stands still for so long ..."""
    stall_every: int = 500
    """... once in so many batches."""


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One file."""

    title: str
    stations: int
    deadline_seconds: float
    service_time: NeverWaits | Constant | Lognormal | Bimodal | OneSlow | Measured
    arrivals: Arrivals = "poisson"
    rate: float | None = None
    """Messages a second; without it a share of what the contestant can do at most."""
    batches: int | None = None
    """Of one repetition, at most; without it as many as come in its time."""
    faults: Faults = Faults()
    seed: int = 1
    path: str | None = None
    """Where it was read from; CSV files are looked for beside it."""


def load(name_or_path: str) -> Workload:
    """Read a file, or one of ours by its name.

    Exits, with a sentence that says what is wrong and where, if it cannot be read.
    """
    path = Path(name_or_path)
    if not path.suffix:
        path = HERE / f"{name_or_path}.toml"
    try:
        workload = msgspec.toml.decode(path.read_bytes(), type=Workload)
    except FileNotFoundError:
        sys.exit(f"there is no workload {name_or_path!r}: give a path to a .toml file, or one of {', '.join(names())}")
    except msgspec.MsgspecError as error:
        sys.exit(f"{path}: {error}")
    if workload.stations < 1 or not workload.deadline_seconds > 0:
        sys.exit(f"{path}: stations must be 1 or more, and deadline_seconds more than 0")
    return msgspec.structs.replace(workload, path=str(path))


def names() -> list[str]:
    """The workloads that come with us."""
    return sorted(path.stem for path in HERE.glob("*.toml"))


class Work(NamedTuple):
    """One station's call."""

    kind: Literal["answers", "fails", "never returns", "blocks"]
    seconds: float


def work_of(workload: Workload) -> Iterator[Work]:
    """What the next station is to do, for ever.  The seed gives the same ones again."""
    return cycle(_drawn(workload))


def _drawn(workload: Workload) -> list[Work]:
    chance = random.Random(workload.seed)
    law, faults = workload.service_time, workload.faults
    measured = _read(law, workload) if isinstance(law, Measured) else ()
    drawn = []
    for _ in range(_ROUNDS):
        for number in range(workload.stations):
            ms = chance.choice(measured) if isinstance(law, Measured) else law.draw(chance, number)
            fate = chance.random()
            kind: Literal["answers", "fails", "never returns", "blocks"] = "answers"
            if fate < faults.failing_share:
                kind = "fails"
            elif fate < faults.failing_share + faults.never_returning_share:
                kind, ms = "never returns", math.inf
            elif fate < faults.failing_share + faults.never_returning_share + faults.blocking_share:
                kind = "blocks"
            drawn.append(Work(kind, ms / 1000))
    return drawn


def _read(law: Measured, workload: Workload) -> list[float]:
    path = Path(workload.path or ".").parent / law.csv
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        column = law.column or next(iter(rows[0]))
        return [float(row[column]) for row in rows]
    except (OSError, ValueError, KeyError, IndexError) as error:
        sys.exit(f"{path}: {type(error).__name__}: {error}; wanted are a line of names and milliseconds below it")


def message(number: int, stations: int) -> bytes:
    """The data of so many stations, as they come from Kafka."""
    records = [
        {"stationId": f"S{station:03d}", "sendTime": "2026-01-01 00:00:00", "power": 42.5, "number": number}
        for station in range(stations)
    ]
    return json.dumps({"realTimeData": records}).encode()
