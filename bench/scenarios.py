"""Which cases of a pipeline belong together, and which of their loads is quoted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import msgspec

from . import histograms
from .plots import is_ours
from .workload import Measured, Workload, work_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Json = Mapping[str, Any]
_QUOTED_SHARE: Final = 0.5
"""Findings quote the load that is nearest to this share of what a contestant can bear."""
_MESSAGES_FOR_FLOOR: Final = 50


def cases_of(loaded: Iterable[Json], bench: str) -> list[Json]:
    """The cases of one command, each with the directory of its result."""
    return [
        {**case, "place": result["place"]}
        for result in loaded
        for case in result["cases"]
        if case.get("bench") == bench
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One workload on one broker, and who was measured with it."""

    key: str
    title: str
    broker: str
    workload: Json
    contestants: dict[str, Json]
    """By name; by name and directory where one was measured several times."""

    @property
    def deadline_ms(self) -> float:
        return float(self.workload["deadline_seconds"]) * 1000

    @property
    def ours(self) -> Json | None:
        return next((case for name, case in self.contestants.items() if is_ours(name)), None)


def scenarios_of(loaded: Sequence[Json]) -> list[Scenario]:
    """In the order in which they were measured."""
    grouped: dict[tuple[str, str], list[Json]] = {}
    for case in cases_of(loaded, "pipeline"):
        grouped.setdefault((case["workload"]["title"], str(case["broker"])), []).append(case)
    scenarios = []
    for number, ((title, broker), cases) in enumerate(grouped.items(), 1):
        names = [case["contestant"] for case in cases]
        contestants = {
            name if names.count(name) == 1 else f"{name} ({case['place']})": case
            for name, case in zip(names, cases, strict=True)
        }
        workload = cases[0]["workload"]
        scenarios.append(
            Scenario(key=f"w{number}", title=title, broker=broker, workload=workload, contestants=contestants)
        )
    return scenarios


def quoted(case: Json, share: float = _QUOTED_SHARE) -> Json | None:
    """The load nearest to *share*, an invalid one only if there is no other."""
    loads = case.get("loads") or []
    told = [load for load in loads if load["valid"]] or loads
    return min(told, key=lambda load: abs((load.get("share") or share) - share), default=None)


def inside_of(load: Json | None) -> list[Json]:
    """What trioagg's own observers saw, one a repeat."""
    return [repeat["inside"] for repeat in (load or {}).get("repeats", ()) if repeat.get("inside")]


def latency_of(load: Json) -> Any:
    """The histogram of its valid repeats; of all, if there is none."""
    repeats = [repeat for repeat in load["repeats"] if repeat["valid"]] or load["repeats"]
    return histograms.merged(repeat["latency"] for repeat in repeats)


def floor_ms(workload: Json) -> float | None:
    """What the stations alone take: the median over some messages of the slowest of each, the deadline at most."""
    known = {key: value for key, value in workload.items() if key in Workload.__struct_fields__}
    try:
        told = msgspec.convert(known, Workload)
    except msgspec.ValidationError:
        return None
    if isinstance(told.service_time, Measured):
        return None  # its CSV file may be on another machine
    work = work_of(told)
    slowest = [max(one.seconds for one in islice(work, told.stations)) for _ in range(_MESSAGES_FOR_FLOOR)]
    return 1000 * min(median(slowest), told.deadline_seconds)
