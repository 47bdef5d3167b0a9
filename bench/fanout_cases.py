"""From the samples of ``fanout`` to its cases: medians, quartiles, ratios, and whether a promise was kept."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from . import rivals
from .batches import loop_of
from .figures import percentile
from .jobs import OURS, STATIONS_OF_A_BATCH, TASK_GROUP
from .paths import IN_FLIGHT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .jobs import Job, Kind

_TIMES_THE_GUIDE_AT_LEAST: Final = 2.5
_RECORDER_AT_MOST: Final = 1.03
_BYTES_AT_MOST: Final = 64.0
_MAX_BY_MIN_AT_MOST: Final = 1.3
FLAT_STATIONS: Final = (10, 100, 1_000, 10_000, 100_000)
FLAT_BATCHES: Final = (1, 10, 100, 1_000, 5_000)
FLAT_STATIONS_OF_A_BATCH: Final[dict[Kind, int]] = {"never waits": 100, "sleeps 1 ms": 20}
"""A hundred thousand sleep at once at most: half a million tasks would be a question of memory."""


class Row(NamedTuple):
    """One contestant's samples of a case, one a repeat."""

    job: Job
    samples: list[dict[str, Any]]

    def of(self, key: str) -> list[Any]:
        return [sample[key] for sample in self.samples]


def cases_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """All cases, in the order of their tables."""
    return [
        *_overhead_cases([row for row in rows if row.job.what == "overhead" and not row.job.tune_gc]),
        *_hang_cases([row for row in rows if row.job.what == "hang"]),
        *_path_cases([row for row in rows if row.job.what == "path"]),
        *_recorder_cases([row for row in rows if row.job.what == "recorder"]),
        *_memory_cases([row for row in rows if row.job.what == "memory"]),
        *_flat_cases([row for row in rows if row.job.tune_gc]),
    ]


def _overhead_cases(rows: Sequence[Row]) -> list[dict[str, Any]]:
    bare = {_shape(row.job): row for row in rows if row.job.contestant == rivals.BARE}
    cases = []
    for row in rows:
        job, us, on_cpu = row.job, row.of("us"), row.of("cpu_us")
        ratios = _pairs(us, bare[_shape(job)].of("us"))
        cases.append(
            {
                "bench": "fanout",
                "kind": "overhead",
                "station": job.station,
                "stations": job.stations,
                "batches": job.batches,
                "contestant": job.contestant,
                "loop": loop_of(job.contestant),
                "us_median": median(us),
                "us_p25": percentile(us, 25),
                "us_p75": percentile(us, 75),
                "us_min": min(us),
                "ratio": median(ratios),
                "ratio_p25": percentile(ratios, 25),
                "ratio_p75": percentile(ratios, 75),
                "cpu_us_median": median(on_cpu),
                "cpu_ratio": median(_pairs(on_cpu, bare[_shape(job)].of("cpu_us"))),
                "repeats": us,
                "answers_lost": sum(row.of("answers_lost")),
                "stragglers": 0,
            }
        )
    return cases


def _pairs(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """The ratios of the same repeat."""
    return [one / other for one, other in zip(mine, theirs, strict=True)]


def _shape(job: Job) -> tuple[str, int, int]:
    return job.station, job.stations, job.batches


def _hang_cases(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {
            "bench": "fanout",
            "kind": "hang",
            "station": "10 % hang, the others answer just in time",
            "stations": row.job.stations,
            "batches": 1,
            "contestant": row.job.contestant,
            "rounds": row.job.rounds * len(row.samples),
            "answers_given": sum(row.of("given")),
            "answers_lost": sum(row.of("answers_lost")),
            "stragglers": sum(row.of("stragglers")),
            "list_late_ms": median(row.of("list_late_ms")),
        }
        for row in rows
    ]


def _path_cases(rows: Sequence[Row]) -> list[dict[str, Any]]:
    guides_of = {row.job.nested: row for row in rows if row.job.contestant == rivals.GUIDE}
    cases = []
    for row in rows:
        name, mine, guides = row.job.contestant, row.of("per_second"), guides_of[row.job.nested]
        ratios = _pairs(mine, guides.of("per_second"))
        at_least = _TIMES_THE_GUIDE_AT_LEAST if name == OURS else None
        cases.append(
            {
                "bench": "fanout",
                "kind": "path",
                "contestant": name,
                "stations": STATIONS_OF_A_BATCH,
                "records": "with a list in each" if row.job.nested else "flat",
                "codec": "json" if name in (rivals.GUIDE, TASK_GROUP) else "msgspec",
                "in_flight": IN_FLIGHT,
                "per_second": median(mine),
                "per_second_p25": percentile(mine, 25),
                "per_second_p75": percentile(mine, 75),
                "ratio": median(ratios),
                "ratio_p25": percentile(ratios, 25),
                "ratio_p75": percentile(ratios, 75),
                "cpu_ratio": median(_pairs(row.of("per_cpu_second"), guides.of("per_cpu_second"))),
                "repeats": mine,
                "at_least": at_least,
                "met": None if at_least is None else median(ratios) >= at_least,
            }
        )
    return cases


def _recorder_cases(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {
            "bench": "fanout",
            "kind": "recorder",
            "contestant": row.job.contestant,
            "stations": row.job.stations,
            "rounds": len(ratios := [ratio for of_one in row.of("ratios") for ratio in of_one]),
            "cpu_ratio": median(ratios),
            "cpu_ratio_p25": percentile(ratios, 25),
            "cpu_ratio_p75": percentile(ratios, 75),
            "at_most": _RECORDER_AT_MOST,
            "met": median(ratios) <= _RECORDER_AT_MOST,
        }
        for row in rows
    ]


def _memory_cases(rows: Sequence[Row]) -> list[dict[str, Any]]:
    cases = []
    for job, samples in rows:
        size = samples[0]["bytes"]
        at_most = _BYTES_AT_MOST if job.contestant == OURS else None
        cases.append(
            {
                "bench": "fanout",
                "kind": "memory",
                "contestant": job.contestant,
                "stations": job.stations,
                "bytes_per_waiting_station": size,
                "at_most": at_most,
                "met": None if at_most is None else size <= at_most,
            }
        )
    return cases


def _flat_cases(rows: Sequence[Row]) -> list[dict[str, Any]]:
    cases = []
    for kind, of_one in FLAT_STATIONS_OF_A_BATCH.items():
        cost = {
            (row.job.stations, row.job.batches): median(row.of("cpu_us")) for row in rows if row.job.station == kind
        }
        for over, sizes, costs in (
            ("stations", FLAT_STATIONS, [cost[number, 1] for number in FLAT_STATIONS if cost]),
            ("batches", FLAT_BATCHES, [cost[of_one, number] for number in FLAT_BATCHES if cost]),
        ):
            if costs:
                cases.append(
                    {
                        "bench": "fanout",
                        "kind": "flat",
                        "contestant": OURS,
                        "station": kind,
                        "over": over,
                        "stations": None if over == "stations" else of_one,
                        "sizes": list(sizes),
                        "cpu_us_median": costs,
                        "max_by_min": max(costs) / min(costs),
                        "at_most": _MAX_BY_MIN_AT_MOST,
                        "met": max(costs) / min(costs) <= _MAX_BY_MIN_AT_MOST,
                    }
                )
    return cases
