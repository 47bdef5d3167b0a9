"""What does a station cost, beside a bare nursery and asyncio?    python -m bench core

All contestants run in one process, in a random order in every repetition, and each sample has an event loop of its own.
A ratio is the median over the repetitions of "this one's sample / the bare nursery's sample beside it": what disturbs
the machine for longer than a repetition disturbs both.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, NamedTuple

import trio

from trioagg import BatchReport, Verdict, run_batch

from . import rivals
from .figures import Progress, percentile, print_lines, print_table, verdict

_NO_DEADLINE_SECONDS: Final = 60.0
_SHORT_DEADLINE_SECONDS: Final = 0.03
_STATION_SLEEPS_SECONDS: Final = 0.001

_AT_MOST: Final = {
    ("never waits", 100): 0.38,
    ("one checkpoint", 100): 1.30,
    ("sleeps 1 ms", 100): 1.15,
    ("never waits", 1000): 0.27,
    ("one checkpoint", 1000): 1.40,
    ("sleeps 1 ms", 1000): 1.20,
}
"""The targets: trioagg's ratio to the bare nursery."""


class _Tally:
    """How many answers stations gave, where a deadline may come before some of them."""

    given = 0


_TALLY: Final = _Tally()


# The stations, once for Trio and once for asyncio.


async def _never_waits(station_id: str, value: str) -> object:  # noqa: ASYNC124 - that it never waits is the point
    return {"station_id": station_id, "value": value}  # noqa: ASYNC910 - the same


async def _one_checkpoint(station_id: str, value: str) -> object:
    await trio.lowlevel.checkpoint()
    return {"station_id": station_id, "value": value}


async def _one_checkpoint_aio(station_id: str, value: str) -> object:
    await asyncio.sleep(0)
    return {"station_id": station_id, "value": value}


async def _sleeps(station_id: str, value: str) -> object:
    await trio.sleep(_STATION_SLEEPS_SECONDS)
    return {"station_id": station_id, "value": value}


async def _sleeps_aio(station_id: str, value: str) -> object:
    await asyncio.sleep(_STATION_SLEEPS_SECONDS)
    return {"station_id": station_id, "value": value}


async def _fails_or_hangs(station_id: str, value: str) -> object:
    if value == "hangs":
        await trio.sleep_forever()
    _TALLY.given += 1
    if value == "raises":
        raise ValueError(station_id)
    return {"station_id": station_id, "value": value}  # noqa: ASYNC910 - eight of ten never wait


async def _fails_or_hangs_aio(station_id: str, value: str) -> object:
    if value == "hangs":
        await asyncio.get_running_loop().create_future()
    _TALLY.given += 1
    if value == "raises":
        raise ValueError(station_id)
    return {"station_id": station_id, "value": value}  # noqa: ASYNC910 - eight of ten never wait


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    on_trio: rivals.Station
    on_asyncio: rivals.Station
    deadline_seconds: float | None = None
    """Where stations hang, every batch lasts until its deadline: what is compared then is the time on the CPU."""


_KINDS: Final = (
    _Kind("never waits", _never_waits, _never_waits),
    _Kind("one checkpoint", _one_checkpoint, _one_checkpoint_aio),
    _Kind("sleeps 1 ms", _sleeps, _sleeps_aio),
    _Kind("10 % raise, 10 % hang", _fails_or_hangs, _fails_or_hangs_aio, _SHORT_DEADLINE_SECONDS),
)


def _stations(number: int) -> dict[str, str]:
    what = {3: "raises", 7: "hangs"}
    return {f"S{i:04d}": what.get(i % 10, "answers") for i in range(number)}


# The contestants: one batch each, and how many answers they have.


async def _trioagg(kind: _Kind, stations: Mapping[str, str]) -> int:
    report = await run_batch(
        "bench", stations, kind.on_trio, batch_timeout=kind.deadline_seconds or _NO_DEADLINE_SECONDS
    )
    return _read_all_of(report, len(stations))


def _read_all_of(report: BatchReport, expected: int) -> int:
    """Read every line of the ledger, as a user would who stores it, and check that it adds up."""
    counted = dict.fromkeys(Verdict, 0)
    for outcome in report.stations.values():
        counted[outcome.verdict] += 1
        if outcome.started_seconds is None or outcome.run_seconds is None:
            counted[Verdict.SKIPPED] -= 1
    if (
        counted[Verdict.SKIPPED] != 0
        or report.expected != expected
        or sum(counted.values()) + report.skipped != expected
        or counted[Verdict.SUCCEEDED] != report.succeeded
        or report.succeeded != len(report.results)
        or counted[Verdict.NO_OUTPUT] != report.no_output
        or counted[Verdict.FAILED] != report.failed
        or counted[Verdict.TIMED_OUT] != report.timed_out
        or counted[Verdict.CANCELLED] != report.cancelled
    ):
        raise AssertionError(f"the ledger does not add up: {counted} of {expected}, {report}")
    return report.answered


async def _bare_nursery(kind: _Kind, stations: Mapping[str, str]) -> int:
    if kind.deadline_seconds is None:
        return await rivals.bare_nursery(kind.on_trio, stations)
    return await rivals.nursery_with_deadline(kind.on_trio, stations, trio.current_time() + kind.deadline_seconds)


async def _task_group(kind: _Kind, stations: Mapping[str, str]) -> int:
    if kind.deadline_seconds is None:
        return await rivals.task_group(kind.on_asyncio, stations)
    return await rivals.task_group_with_deadline(kind.on_asyncio, stations, kind.deadline_seconds)


_OneBatch = Callable[[_Kind, Mapping[str, str]], Awaitable[int]]


class _Sample(NamedTuple):
    wall_seconds: float
    cpu_seconds: float
    answers: int
    given: int
    """By stations of the kind that may hang; the others always answer."""


async def _repeat(batch: _OneBatch, kind: _Kind, stations: Mapping[str, str], batches: int) -> _Sample:
    await batch(kind, stations)  # what only the first one pays is not a station's cost
    answers = _TALLY.given = 0
    on_cpu, began = time.thread_time(), time.perf_counter()
    for _ in range(batches):
        answers += await batch(kind, stations)
    return _Sample(time.perf_counter() - began, time.thread_time() - on_cpu, answers, _TALLY.given)


_Run = Callable[[_Kind, Mapping[str, str], int], _Sample]


def _on_trio(batch: _OneBatch) -> _Run:
    return lambda kind, stations, batches: trio.run(_repeat, batch, kind, stations, batches)


def _on_asyncio(*, eager: bool) -> _Run:
    def run(kind: _Kind, stations: Mapping[str, str], batches: int) -> _Sample:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            if sys.version_info >= (3, 12) and eager:
                runner.get_loop().set_task_factory(asyncio.eager_task_factory)
            return runner.run(_repeat(_task_group, kind, stations, batches))

    return run


_BARE: Final = "bare nursery"
_CONTESTANTS: Final[dict[str, _Run]] = {
    "trioagg": _on_trio(_trioagg),
    _BARE: _on_trio(_bare_nursery),
    "asyncio": _on_asyncio(eager=False),
} | ({"asyncio eager": _on_asyncio(eager=True)} if sys.version_info >= (3, 12) else {})


def main(
    numbers: Sequence[int], *, facts: dict[str, Any], quick: bool, as_json: bool, seed: int
) -> list[dict[str, Any]]:
    """Measure, print, and return the cases."""
    order = random.Random(seed)
    repetitions, sample_seconds = (5, 0.004) if quick else (40, 0.02)
    with Progress(len(numbers) * len(_KINDS) * repetitions) as progress:
        cases = [
            _case(kind, number, repetitions, sample_seconds, order, progress) for number in numbers for kind in _KINDS
        ]
    if as_json:
        print_lines({**facts, "seed": seed}, cases)
    else:
        _print(cases, repetitions)
    return cases


def _case(
    kind: _Kind, number: int, repetitions: int, sample_seconds: float, order: random.Random, progress: Progress
) -> dict[str, Any]:
    stations = _stations(number)
    for run in _CONTESTANTS.values():
        run(kind, stations, 1)
    batches = 1
    if kind.deadline_seconds is None:
        batches = max(1, round(sample_seconds / _CONTESTANTS[_BARE](kind, stations, 1).wall_seconds))
    samples: dict[str, list[_Sample]] = {name: [] for name in _CONTESTANTS}
    for _ in range(repetitions):
        progress.step(f"{number} stations, {kind.name}")
        for name in order.sample(list(_CONTESTANTS), len(_CONTESTANTS)):
            gc.collect()  # nobody pays for what another one has left lying about
            samples[name].append(_CONTESTANTS[name](kind, stations, batches))

    hung = 0 if kind.deadline_seconds is None else sum(value == "hangs" for value in stations.values())
    expected = repetitions * batches * (number - hung)
    stations_of_a_sample = batches * number
    costs = {
        name: [sample.wall_seconds if kind.deadline_seconds is None else sample.cpu_seconds for sample in of_name]
        for name, of_name in samples.items()
    }
    contestants: dict[str, dict[str, Any]] = {}
    for name, cost in costs.items():
        ratios = [mine / bare for mine, bare in zip(cost, costs[_BARE], strict=True)]
        on_cpu = [mine.cpu_seconds / bare.cpu_seconds for mine, bare in zip(samples[name], samples[_BARE], strict=True)]
        given = expected if kind.deadline_seconds is None else sum(sample.given for sample in samples[name])
        contestants[name] = {
            "us_median": median(cost) / stations_of_a_sample * 1e6,
            "us_min": min(cost) / stations_of_a_sample * 1e6,
            "ratio": median(ratios),
            "ratio_p25": percentile(ratios, 25),
            "ratio_p75": percentile(ratios, 75),
            "ratio_of_minima": min(cost) / min(costs[_BARE]),
            "cpu_ratio": median(on_cpu),
            "lost": given - sum(sample.answers for sample in samples[name]),
            "not_in_time": expected - given,
        }
    at_most = _AT_MOST.get((kind.name, number))
    return {
        "bench": "core",
        "stations": number,
        "kind": kind.name,
        "clock": "wall" if kind.deadline_seconds is None else "cpu",
        "repetitions": repetitions,
        "batches_of_a_sample": batches,
        "contestants": contestants,
        "at_most": at_most,
        "met": None if at_most is None else contestants["trioagg"]["ratio"] <= at_most,
    }


def _print(cases: Sequence[dict[str, Any]], repetitions: int) -> None:
    rivals_of_both = [name for name in _CONTESTANTS if name not in ("trioagg", _BARE)]
    rows = []
    for case in cases:
        of = case["contestants"]
        lost = [f"{name} {of[name]['lost']}" for name in _CONTESTANTS if of[name]["lost"]]
        late = [f"{name} {of[name]['not_in_time']}" for name in _CONTESTANTS if of[name]["not_in_time"]]
        rows.append(
            [
                str(case["stations"]),
                case["kind"] + (" *" if case["clock"] == "cpu" else ""),
                *(f"{of[name]['us_median']:.2f} ({of[name]['us_min']:.2f})" for name in ("trioagg", _BARE)),
                f"{of['trioagg']['ratio']:.2f} ({of['trioagg']['ratio_p25']:.2f}-{of['trioagg']['ratio_p75']:.2f})",
                f"{of['trioagg']['cpu_ratio']:.2f}",
                "" if case["at_most"] is None else f"{case['at_most']:.2f} {verdict(case['met'])}",
                *(f"{of[name]['ratio']:.2f}" for name in rivals_of_both),
                (", ".join(lost) or "none") + (f" (not in time: {', '.join(late)})" if late else ""),
            ]
        )
    print_table(
        "What does a station cost?  us, median (minimum); ratios to the bare nursery, median of the pairs (quartiles)",
        [
            "stations",
            "each",
            "trioagg",
            "bare nursery",
            "trioagg : bare",
            "on the CPU",
            "at most",
            *(f"{name} : bare" for name in rivals_of_both),
            "answers lost",
        ],
        rows,
        f"{repetitions} repetitions, the contestants in random order in each.  On the CPU: the ratio of CPU times, "
        f"which other processes disturb less.  * Every batch lasts until its deadline of "
        f"{_SHORT_DEADLINE_SECONDS * 1e3:g} ms: CPU times in all columns.",
    )
