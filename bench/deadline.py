"""How late after its deadline is a list, when many batches of hung stations expire at once?    python -m bench deadline

A batch has 100 stations: 10 answer at once, 90 hang.  All batches of a round have one deadline, and it lies after the
last of their stations has started.  Two moments are taken for every list, against that deadline on Trio's clock: when
it is *ready* (fixed, and handed to the uploader) and when the user's *handler* is called with it.  Beside them a probe
that sleeps 1 ms at a time measures the *stall*: the longest that the loop let it wait.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Literal

import trio

from trioagg import BatchReport, BatchResultAggregator, CompletedBy, Observer, Verdict

from . import rivals
from .figures import Progress, percentile, print_lines, print_table, verdict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

_STATIONS: Final = 100
_ANSWERS: Final = 10
_IGNORES_SECONDS: Final = 0.5
_PROBE_SLEEPS_SECONDS: Final = 0.001
_SPARE_SECONDS: Final = 0.01
_OPENING_SECONDS: Final = 0.002
_MANY: Final = 100
_HUGE: Final = 1000
_BLOCKING_STATIONS: Final = 1000
_BLOCKS_SECONDS: Final = 0.001
_BLOCKING_DEADLINE_SECONDS: Final = 0.05

_P99_AT_MOST_MS: Final = {10: 3.0, 100: 8.0, 1000: 60.0}
_STALL_AT_MOST_MS: Final = 60.0

_Variant = Literal["tuned", "untuned", "shielded", "textbook"]
_WHAT: Final[dict[_Variant, str]] = {
    "tuned": "tune_gc=True",
    "untuned": "the default",
    "shielded": "tune_gc=True, one station ignores it",
    "textbook": "textbook: move_on_at around a nursery",
}
_MOMENTS: Final = ("ready", "handled")


@dataclass(frozen=True, slots=True)
class _Round:
    """What one round has shown; all in seconds after the deadline but the stall."""

    ready: list[float]
    handled: list[float]
    stall: float
    gone: float
    """When the last straggler had ended."""


class _Scene(Observer):
    """The stations of a round, and who looks at their batches."""

    def __init__(self, batches: int, *, one_ignores: bool) -> None:
        self.batches = batches
        self.stations = {f"S{i:03d}": "answers" if i < _ANSWERS else "hangs" for i in range(_STATIONS)}
        if one_ignores:
            self.stations[f"S{_STATIONS - 1:03d}"] = "ignores"
        self.begin(0.0)

    def begin(self, deadline: float) -> None:
        self.deadline = deadline
        self.ready: list[float] = []
        self.handled: list[float] = []
        self.wrong: list[object] = []
        self.to_start = self.batches * _STATIONS
        self.hanging = self._ignoring = 0
        self.gone = 0.0

    @property
    def over(self) -> bool:
        return len(self.handled) == self.batches and not self.hanging

    async def station(self, station_id: str, value: str) -> object:
        self.to_start -= 1
        if value == "answers":
            return {"station_id": station_id}  # noqa: ASYNC910 - some answer at once
        self.hanging += 1
        try:
            if value == "ignores":
                self._ignoring += 1  # one after the other, not all of them in one pass of the loop
                with trio.CancelScope(shield=True):
                    await trio.sleep_until(self.deadline + _IGNORES_SECONDS + self._ignoring * _PROBE_SLEEPS_SECONDS)
            await trio.sleep_forever()
        finally:
            self.hanging -= 1
            if not self.hanging:
                self.gone = trio.current_time() - self.deadline

    def closed(self, report: BatchReport) -> None:
        self.ready.append(trio.current_time() - self.deadline)

    async def handler(self, report: BatchReport) -> None:  # noqa: ASYNC910 - an upload that takes no time
        self.handled.append(trio.current_time() - self.deadline)
        counts = report.completed_by, report.succeeded, report.timed_out, len(report.results)
        if counts != (CompletedBy.TIMEOUT, _ANSWERS, _STATIONS - _ANSWERS, _ANSWERS):
            self.wrong.append(report)


async def _aggregated(scene: _Scene, rounds: int, tune_gc: bool, progress: Progress) -> list[_Round]:
    async with BatchResultAggregator(
        scene.station,
        report_handler=scene.handler,
        max_batches_in_flight=scene.batches,
        max_unreaped_batches=scene.batches + 1,
        observers=[scene],
        tune_gc=tune_gc,
    ) as aggregator:

        def left(timeout: float) -> float:
            # All batches of a round have the round's deadline, whenever they were accepted: accepting a thousand takes
            # longer than what is measured here.
            return scene.deadline - trio.current_time()

        async def open_all() -> None:  # noqa: ASYNC910 - there is a batch
            for number in range(scene.batches):
                await aggregator.admit(f"batch {number}", scene.stations, budget=left)

        return await _rounds(scene, rounds, open_all, progress)


async def _textbook(scene: _Scene, rounds: int, progress: Progress) -> list[_Round]:
    async def batch() -> None:
        answers = await rivals.nursery_with_deadline(scene.station, scene.stations, scene.deadline)
        scene.ready.append(trio.current_time() - scene.deadline)
        scene.handled.append(scene.ready[-1])
        if answers != _ANSWERS:
            scene.wrong.append(answers)

    async with trio.open_nursery() as nursery:

        async def open_all() -> None:  # noqa: ASYNC910 - there is a batch
            for _ in range(scene.batches):
                nursery.start_soon(batch)
                await trio.lowlevel.checkpoint()

        return await _rounds(scene, rounds, open_all, progress)  # noqa: ASYNC121 - the batches have ended by then


async def _rounds(
    scene: _Scene, wanted: int, open_all: Callable[[], Awaitable[None]], progress: Progress
) -> list[_Round]:
    rounds: list[_Round] = []
    # How long opening takes is learnt as we go; a round whose deadline came before that does not count.
    lead_seconds = _SPARE_SECONDS + scene.batches * _OPENING_SECONDS
    while len(rounds) < wanted:
        began = trio.current_time()
        scene.begin(began + lead_seconds)
        await open_all()
        while scene.to_start and trio.current_time() < scene.deadline:  # noqa: ASYNC110 - an Event would be set in what is measured
            await trio.sleep(_PROBE_SLEEPS_SECONDS)
        opening_seconds = trio.current_time() - began
        in_time = opening_seconds < lead_seconds - _SPARE_SECONDS / 2

        last, stall = trio.current_time(), 0.0
        while not scene.over:
            await trio.sleep(_PROBE_SLEEPS_SECONDS)
            now = trio.current_time()
            stall = max(stall, now - last - _PROBE_SLEEPS_SECONDS)
            last = now

        if not in_time:
            lead_seconds *= 2
            continue
        if scene.wrong:
            raise AssertionError(f"an answer was lost: {scene.wrong[0]}")
        lead_seconds = max(lead_seconds * 0.8, _SPARE_SECONDS + 1.5 * opening_seconds)
        rounds.append(_Round(scene.ready, scene.handled, stall, scene.gone))
        progress.step(f"{scene.batches} deadlines at once")
    return rounds  # noqa: ASYNC910 - at least one is wanted


async def _blocks(station_id: str, value: str) -> object:  # noqa: ASYNC124 - that it never waits is the point
    time.sleep(_BLOCKS_SECONDS)  # noqa: ASYNC251 - so is that it blocks
    return {"station_id": station_id}  # noqa: ASYNC910 - the same


_BLOCKING: Final = {f"S{i:04d}": "" for i in range(_BLOCKING_STATIONS)}


async def _blocking_batch() -> tuple[float, dict[str, int]]:
    """How long after its opening the list was ready, and the verdicts."""
    handled: list[tuple[float, BatchReport]] = []

    async def handler(report: BatchReport) -> None:  # noqa: ASYNC124,ASYNC910 - an upload that takes no time
        handled.append((trio.current_time(), report))

    async with BatchResultAggregator(
        _blocks, report_handler=handler, batch_timeout=_BLOCKING_DEADLINE_SECONDS
    ) as aggregator:
        opened = trio.current_time()
        await aggregator.run("blocking", _BLOCKING)
    [(ready, report)] = handled
    verdicts = {str(verdict): getattr(report, verdict) for verdict in Verdict}
    if sum(verdicts.values()) != _BLOCKING_STATIONS or len(report.results) != report.succeeded:
        raise AssertionError(f"the ledger does not add up: {report}")
    return ready - opened, {verdict: count for verdict, count in verdicts.items() if count}


async def _blocking_textbook() -> tuple[float, dict[str, int]]:
    opened = trio.current_time()
    answers = await rivals.nursery_with_deadline(_blocks, _BLOCKING, opened + _BLOCKING_DEADLINE_SECONDS)
    return trio.current_time() - opened, {"in the dict": answers}


def main(numbers: Sequence[int], *, facts: dict[str, Any], quick: bool, as_json: bool) -> list[dict[str, Any]]:
    """Measure, print, and return the cases."""
    plans = list(_plans(numbers, quick))
    blocking_rounds = 3 if quick else 10
    steps = sum(plan.rounds for plan in plans) + blocking_rounds
    rounds: dict[tuple[int, _Variant], list[_Round]] = {}
    with warnings_thrown_away(), Progress(steps) as progress:
        for plan in plans:
            gc.collect()  # nobody pays for what another one has left lying about
            rounds.setdefault((plan.batches, plan.variant), []).extend(_carry_out(plan, progress))
        blocking = []
        for _ in range(blocking_rounds):
            progress.step("stations that block")
            blocking.append((trio.run(_blocking_batch), trio.run(_blocking_textbook)))
    cases = [_case(batches, variant, of_case) for (batches, variant), of_case in rounds.items()]
    blocking_cases = [
        _blocking_case("trioagg", [ours for ours, _ in blocking]),
        _blocking_case("textbook", [theirs for _, theirs in blocking]),
    ]
    if as_json:
        print_lines(facts, [*cases, *blocking_cases])
    else:
        _print(cases)
        _print_blocking(blocking_cases)
    return [*cases, *blocking_cases]


@dataclass(frozen=True, slots=True)
class _Plan:
    batches: int
    variant: _Variant
    rounds: int


def _plans(numbers: Sequence[int], quick: bool) -> Iterator[_Plan]:
    """The variants take turns, so that what disturbs the machine for a while disturbs all of them."""
    lists, turns = (40, 1) if quick else (1000, 3)
    for batches in numbers:
        huge = batches >= _HUGE
        for _ in range(turns):
            rounds = max(1, math.ceil(lists / batches / turns))
            yield _Plan(batches, "tuned", rounds)
            if quick and huge:
                continue
            yield _Plan(batches, "untuned", rounds)
            if batches >= _MANY:
                # Fewer of them have nobody to be late for, and half a second a round is long.
                yield _Plan(batches, "shielded", rounds)
                yield _Plan(batches, "textbook", 1)


def _carry_out(plan: _Plan, progress: Progress) -> list[_Round]:
    scene = _Scene(plan.batches, one_ignores=plan.variant == "shielded")
    if plan.variant == "textbook":
        return trio.run(_textbook, scene, plan.rounds, progress)
    return trio.run(_aggregated, scene, plan.rounds, plan.variant != "untuned", progress)


def _case(batches: int, variant: _Variant, rounds: Sequence[_Round]) -> dict[str, Any]:
    ready = [late for one in rounds for late in one.ready]
    handled = [late for one in rounds for late in one.handled]
    stalls = [one.stall for one in rounds]
    case: dict[str, Any] = {
        "bench": "deadline",
        "simultaneous": batches,
        "variant": variant,
        "rounds": len(rounds),
        "lists": len(ready),
    }
    for moment, late in zip(_MOMENTS, (ready, handled), strict=True):
        for percent in (50, 99, 100):
            case[f"{moment}_p{percent}_ms"] = percentile(late, percent) * 1e3
    case["stall_median_ms"], case["stall_max_ms"] = median(stalls) * 1e3, max(stalls) * 1e3
    case["gone_max_ms"] = max(one.gone for one in rounds) * 1e3
    judged = variant in ("tuned", "shielded")
    at_most = _P99_AT_MOST_MS.get(batches) if judged else None
    case["p99_at_most_ms"] = at_most
    case["ready_met"] = None if at_most is None else case["ready_p99_ms"] <= at_most
    case["stall_at_most_ms"] = _STALL_AT_MOST_MS if judged else None
    case["stall_met"] = case["stall_max_ms"] <= _STALL_AT_MOST_MS if judged else None
    return case


def _blocking_case(variant: str, batches: Sequence[tuple[float, dict[str, int]]]) -> dict[str, Any]:
    after = [seconds for seconds, _ in batches]
    kinds = sorted({kind for _, verdicts in batches for kind in verdicts})
    return {
        "bench": "deadline",
        "variant": f"blocking, {variant}",
        "batches": len(batches),
        "deadline_ms": _BLOCKING_DEADLINE_SECONDS * 1e3,
        "handled_after_p50_ms": percentile(after, 50) * 1e3,
        "handled_after_max_ms": max(after) * 1e3,
        "verdicts_median": {kind: median(verdicts.get(kind, 0) for _, verdicts in batches) for kind in kinds},
    }


def _print(cases: Sequence[dict[str, Any]]) -> None:
    names = [[str(case["simultaneous"]), _WHAT[case["variant"]]] for case in cases]
    print_table(
        "How late is a list?  ms after the deadline, p50 / p99 / max",
        ["at once", "what", "lists", "ready", "p99 at most", "", "handler called"],
        [
            [
                *name,
                str(case["lists"]),
                _percentiles(case, "ready"),
                "" if case["p99_at_most_ms"] is None else f"{case['p99_at_most_ms']:g}",
                verdict(case["ready_met"]),
                _percentiles(case, "handled"),
            ]
            for name, case in zip(names, cases, strict=True)
        ],
        f"{_STATIONS} stations a batch, {_STATIONS - _ANSWERS} of them hung; settings are the defaults but the bounds "
        "of batches in flight.  Warnings are made and written nowhere.  Four handlers run side by side (max_uploads).",
    )
    print_table(
        "What does that do to the loop?  ms",
        ["at once", "what", "rounds", "stall, median", "stall, max", "at most", "", "last straggler gone"],
        [
            [
                *name,
                str(case["rounds"]),
                f"{case['stall_median_ms']:.1f}",
                f"{case['stall_max_ms']:.1f}",
                "" if case["stall_at_most_ms"] is None else f"{case['stall_at_most_ms']:g}",
                verdict(case["stall_met"]),
                f"{case['gone_max_ms']:.0f}",
            ]
            for name, case in zip(names, cases, strict=True)
        ],
    )


def _percentiles(case: dict[str, Any], moment: str) -> str:
    return " / ".join(f"{case[f'{moment}_p{percent}_ms']:.1f}" for percent in (50, 99, 100))


def _print_blocking(cases: Sequence[dict[str, Any]]) -> None:
    print_table(
        f"{_BLOCKING_STATIONS} stations that block {_BLOCKS_SECONDS * 1e3:g} ms each, deadline "
        f"{_BLOCKING_DEADLINE_SECONDS * 1e3:g} ms: ms from the opening",
        ["what", "verdicts (median)", "batches", "handler p50", "max"],
        [
            [
                case["variant"],
                ", ".join(f"{count:g} {kind}" for kind, count in case["verdicts_median"].items()),
                str(case["batches"]),
                f"{case['handled_after_p50_ms']:.1f}",
                f"{case['handled_after_max_ms']:.1f}",
            ]
            for case in cases
        ],
    )


@contextmanager
def warnings_thrown_away() -> Iterator[None]:
    """Every batch that times out is a warning: it is made, as in production, and written nowhere."""
    log, nowhere = logging.getLogger("trioagg"), logging.NullHandler()
    propagated = log.propagate
    log.addHandler(nowhere)
    log.propagate = False
    try:
        yield
    finally:
        log.propagate = propagated
        log.removeHandler(nowhere)
