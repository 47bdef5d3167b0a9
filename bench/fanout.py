"""What does fanning out to N stations cost, and the whole way from bytes to bytes?    python -m bench fanout

Every sample comes from a process of its own, and what only the first round pays is dropped in it.  The contestants come
in a random order in every repeat, one at a time; a ratio is the median over the repeats of "this one's sample / the
bare nursery's sample of the same repeat".
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from . import rivals
from .batches import KINDS
from .fanout_cases import FLAT_BATCHES, FLAT_STATIONS, FLAT_STATIONS_OF_A_BATCH, Row, cases_of
from .fanout_tables import print_tables
from .figures import Progress, print_lines
from .jobs import OURS, RUN_BATCH, STATIONS_OF_A_BATCH, TASK_GROUP, Job, measured
from .paths import PATHS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .jobs import Kind

_MEMORY_STATIONS: Final = (20_000, 100_000)
_REPEATS: Final = 5
_PATH_SECONDS: Final = 2.0
_RECORDER_ROUNDS: Final = 15
_QUICK_STATIONS: Final = (1, 100, 1_000)
_QUICK_BATCHES: Final = (10,)
_QUICK_SAMPLE_SECONDS: Final = 0.02
_QUICK_PATH_SECONDS: Final = 0.25
_QUICK_HANG_ROUNDS: Final = 3


class _Plan(NamedTuple):
    """Cases that one process measures for one contestant, one after the other."""

    cases: Sequence[Job]
    contestants: Sequence[str]
    repeats: int = 1


def main(
    stations: Sequence[int],
    batches: Sequence[int],
    *,
    facts: dict[str, Any],
    quick: bool,
    as_json: bool,
    seed: int,
    repeats: int | None,
) -> list[dict[str, Any]]:
    """Measure, print, and give the cases."""
    repeats = repeats or (1 if quick else _REPEATS)
    plans = _quick_plans(stations, batches, repeats) if quick else _plans(stations, batches, repeats)
    order = random.Random(seed)
    rows: list[Row] = []
    with Progress(sum(len(plan.contestants) * plan.repeats for plan in plans)) as progress:
        for plan in plans:
            rows += _carry_out(plan, order, progress)
    cases = cases_of(rows)
    if as_json:
        print_lines({**facts, "seed": seed}, cases)
        return cases
    print_tables(cases)
    if (left_out := rivals.absent()) is not None:
        print(left_out)
    return cases


def _plans(stations: Sequence[int], batches: Sequence[int], repeats: int) -> list[_Plan]:
    everybody = [OURS, RUN_BATCH, *rivals.present()]
    shapes = [(number, 1) for number in stations] + [(STATIONS_OF_A_BATCH, number) for number in batches]
    plans = [_Plan([job], everybody, repeats) for job in _jobs(shapes)]
    plans.append(_Plan([Job(what="hang")], everybody, repeats))
    paths = [Job(what="path", sample_seconds=_PATH_SECONDS, nested=nested) for nested in (False, True)]
    plans += [_Plan([job], list(PATHS), repeats) for job in paths]
    plans.append(_Plan([Job(what="recorder", rounds=_RECORDER_ROUNDS)], [OURS], repeats))
    plans += [_Plan([Job(what="memory", stations=number)], [OURS, *rivals.present()]) for number in _MEMORY_STATIONS]
    for kind, of_one in FLAT_STATIONS_OF_A_BATCH.items():
        flat_shapes = [(number, 1) for number in FLAT_STATIONS] + [(of_one, number) for number in FLAT_BATCHES]
        plans += [_Plan([job], [OURS], repeats) for job in _jobs(flat_shapes, [kind], tune_gc=True)]
    return plans


def _quick_plans(stations: Sequence[int], batches: Sequence[int], repeats: int) -> list[_Plan]:
    """A process takes longer to start than such a case to measure: one process for all of a contestant's."""
    shapes = [(number, 1) for number in stations if number in _QUICK_STATIONS]
    shapes += [(STATIONS_OF_A_BATCH, number) for number in batches if number in _QUICK_BATCHES]
    shapes = shapes or [(min(stations), 1)]
    jobs = [*_jobs(shapes, sample_seconds=_QUICK_SAMPLE_SECONDS), Job(what="hang", rounds=_QUICK_HANG_ROUNDS)]
    path = Job(what="path", sample_seconds=_QUICK_PATH_SECONDS)
    return [
        _Plan(jobs, [OURS, RUN_BATCH, *rivals.present()], repeats),
        _Plan([path], [OURS, rivals.GUIDE, TASK_GROUP], repeats),
        _Plan([Job(what="recorder", rounds=3), Job(what="memory", stations=20_000)], [OURS]),
        _Plan([Job(what="memory", stations=2_000)], [rivals.BARE, rivals.GUIDE, TASK_GROUP]),
    ]


def _jobs(shapes: Iterable[tuple[int, int]], kinds: Iterable[Kind] = tuple(KINDS), **how: Any) -> list[Job]:
    return [
        Job(what="overhead", station=kind, stations=stations, batches=batches, **how)
        for kind in kinds
        for stations, batches in dict.fromkeys(shapes)
    ]


def _carry_out(plan: _Plan, order: random.Random, progress: Progress) -> list[Row]:
    rows: dict[Job, Row] = {}
    for _ in range(plan.repeats):
        for contestant in order.sample(plan.contestants, len(plan.contestants)):
            jobs = [
                msgspec.structs.replace(case, contestant=contestant)
                for case in plan.cases
                if contestant != RUN_BATCH or case.batches == 1
            ]
            progress.step(f"{plan.cases[0].what}: {contestant}")
            for job, sample in zip(jobs, measured(jobs) if jobs else [], strict=True):
                rows.setdefault(job, Row(job, [])).samples.append(sample)
    return sorted(rows.values(), key=lambda row: plan.contestants.index(row.job.contestant))
