"""What do a lane and a rule cost a station?  And is a worker dead in time?    python -m bench lanes

Two tables.  The first one: batches of 100 stations that do nothing, in every lane and under every rule, one after the
other in random order and in turns; microseconds a station, and the ratio to the plain ``async def``.

The second one: a batch of eight stations that keep a CPU busy for ever, in two worker processes, against a deadline.
How late is the list, for how long did the loop stand still, when was the last worker dead, and does the next batch find
workers?  The same with one station that crashes its worker.  Below it how long so many bare processes that spin take to
die, for that is the kernel's own time.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import trio

from trioagg import BatchResultAggregator, Retry, Verdict

from .deadline import warnings_thrown_away
from .figures import Progress, console, percentile, print_lines, print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_STATIONS: Final = 100
_SPINNING: Final = 8
_PROCESSES: Final = 2
_DEADLINE_SECONDS: Final = 0.3
_PROBE_SECONDS: Final = 0.001
_PATIENCE_SECONDS: Final = 2.0
_SPINS: Final = "import trioagg\nprint(flush=True)\nwhile True: pass"
"""With about as much loaded as a worker has: a larger process takes longer to die."""


async def _plain(station_id: str, value: object) -> dict[str, Any]:  # noqa: ASYNC124 - that it never waits is the point
    return {"station_id": station_id}  # noqa: ASYNC910 - as above


def _sync(station_id: str, value: object) -> dict[str, Any]:
    return {"station_id": station_id}


def _spins(station_id: str, value: str) -> dict[str, Any]:
    if value == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    while value == "spins":
        pass
    return {"station_id": station_id, "process": os.getpid()}


CASES: Final[dict[str, tuple[Callable[[str, Any], Any], dict[str, Any]]]] = {
    "task (async def)": (_plain, {}),
    "inline": (_sync, {"lane": "inline"}),
    "thread": (_sync, {"lane": "thread"}),
    "process": (_sync, {"lane": "process", "max_processes": _PROCESSES}),
    "task, quorum=1.0": (_plain, {"quorum": 1.0}),
    "task, quorum, required and max_failures": (
        _plain,
        {"quorum": 1.0, "required": [f"S{number:03d}" for number in range(10)], "max_failures": 10},
    ),
    "task, station_timeout=5": (_plain, {"station_timeout": 5.0}),
    "task, retry_station=Retry()": (_plain, {"retry_station": Retry()}),
    "task, batch_timeout a function": (_plain, {"batch_timeout": lambda topic, stations: 5.0}),
}
_SLOW: Final = ("thread", "process")


async def _sample(callback: Callable[[str, Any], Any], settings: dict[str, Any], batches: int) -> float:
    """Microseconds a station."""
    stations = {f"S{number:03d}": number for number in range(_STATIONS)}
    async with BatchResultAggregator(callback, **{"batch_timeout": 60.0, **settings}) as aggregator:
        report = await aggregator.run("first", stations)  # workers start, modules are imported
        began = time.perf_counter()
        for number in range(batches):
            report = await aggregator.run(f"{number}", stations)
            if report.succeeded != _STATIONS:
                raise SystemExit(f"not as it must be: {report}")
        return (time.perf_counter() - began) * 1e6 / (batches * _STATIONS)


def _costs(*, quick: bool, seed: int, progress: Progress) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    samples: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(2 if quick else 15):
        for name in chance.sample(list(CASES), len(CASES)):
            progress.step(name)
            batches = 2 if name in _SLOW else 50
            samples[name].append(trio.run(_sample, *CASES[name], batches))
    plain = percentile(samples["task (async def)"], 50)
    return [
        {
            "bench": "lanes",
            "case": name,
            "stations": _STATIONS,
            "us_per_station": percentile(found, 50),
            "us_per_station_min": min(found),
            "ratio": percentile(found, 50) / plain,
        }
        for name, found in samples.items()
    ]


async def _round(aggregator: BatchResultAggregator[str], value: str) -> dict[str, Any]:
    """One batch whose stations do what *value* says, and one behind it that is well."""
    stall = 0.0
    workers: set[int] = set()

    async def probe() -> None:
        nonlocal stall
        while True:
            before = trio.current_time()
            await trio.sleep(_PROBE_SECONDS)
            stall = max(stall, trio.current_time() - before - _PROBE_SECONDS)

    before = await aggregator.run("before", {f"S{number}": "answers" for number in range(_SPINNING)})
    workers |= {result["process"] for result in before.results}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(probe)
        # All of them spin; but one that crashes is enough.
        hard = {f"S{number}": value if value == "spins" or not number else "answers" for number in range(_SPINNING)}
        report = await aggregator.run("hard", hard)
        listed = trio.current_time()
        give_up = listed + _PATIENCE_SECONDS
        while value == "spins" and any(map(_is_spinning, workers)) and trio.current_time() < give_up:  # noqa: ASYNC110 - nobody tells us
            await trio.sleep(_PROBE_SECONDS / 4)
        dead = trio.current_time()
        nursery.cancel_scope.cancel()
    began = trio.current_time()
    after = await aggregator.run("after", {f"S{number}": "answers" for number in range(_SPINNING)})
    return {
        "late_ms": ((report.seconds or 0.0) - _DEADLINE_SECONDS) * 1e3 if value == "spins" else 0.0,
        "dead_after_list_ms": (dead - listed) * 1e3,
        "stall_ms": stall * 1e3,
        "next_ms": (trio.current_time() - began) * 1e3,
        "next_succeeded": after.succeeded,
        "verdicts": {str(verdict): getattr(report, verdict) for verdict in Verdict},
    }


def bare_kills(rounds: int) -> list[float]:
    """How many milliseconds it takes until as many processes that spin are dead, after they were killed together."""
    found = []
    for _ in range(rounds):
        spinning = [
            subprocess.Popen([sys.executable, "-c", _SPINS], stdout=subprocess.PIPE, text=True)
            for _ in range(_PROCESSES)
        ]
        for process in spinning:
            assert process.stdout is not None
            with process.stdout as told:
                told.readline()
        began = time.perf_counter()
        for process in spinning:
            process.kill()
        while any(_is_spinning(process.pid) for process in spinning):
            time.sleep(_PROBE_SECONDS / 4)  # nobody tells us
        found.append((time.perf_counter() - began) * 1e3)
        for process in spinning:
            process.wait()
    return found


def _is_spinning(process: int) -> bool:
    # Not os.kill(process, 0): one that was killed and not yet waited for can still be sent signals.
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def hard_rounds(value: str, rounds: int, progress: Progress) -> list[dict[str, Any]]:
    """Batches whose stations spin, or of which one crashes its worker, and what was seen of each."""
    found = []
    async with BatchResultAggregator(
        _spins, lane="process", max_processes=_PROCESSES, batch_timeout=_DEADLINE_SECONDS
    ) as aggregator:
        await trio.sleep(1)  # workers start
        for _ in range(rounds):
            progress.step(f"stations that {'spin' if value == 'spins' else 'crash'}")
            found.append(await _round(aggregator, value))
            await trio.sleep(0.7)  # workers are replaced
    return found  # noqa: ASYNC910 - it has waited


def main(*, facts: dict[str, Any], quick: bool, as_json: bool, seed: int) -> list[dict[str, Any]]:
    """Measure, print, and return the cases."""
    rounds = 1 if quick else 20
    with warnings_thrown_away(), Progress((2 if quick else 15) * len(CASES) + 2 * rounds) as progress:
        cases = _costs(quick=quick, seed=seed, progress=progress)
        bare = bare_kills(rounds)
        hard = [_deadline_case(value, trio.run(hard_rounds, value, rounds, progress)) for value in ("spins", "crashes")]
    hard[0] |= {"bare_kill_ms_p50": percentile(bare, 50), "bare_kill_ms_max": max(bare)}
    if as_json:
        print_lines(facts, [*cases, *hard])
        return [*cases, *hard]
    print_table(
        "What a lane and a rule cost",
        ("lane, rule", "us a station", "least", "ratio to task"),
        [
            (c["case"], f"{c['us_per_station']:.2f}", f"{c['us_per_station_min']:.2f}", f"{c['ratio']:.2f}")
            for c in cases
        ],
        f"{_STATIONS} stations a batch, one batch after the other; the median of its samples",
    )
    print_table(
        f"{_SPINNING} stations in {_PROCESSES} worker processes, deadline {_DEADLINE_SECONDS * 1e3:.0f} ms",
        ("stations", "list late", "workers dead after the list", "loop stood still", "next batch ready", "and whole"),
        [_row(case) for case in hard],
        "in milliseconds, p50 / max; the next batch runs at once on what workers there are",
    )
    console().print(
        f"noise floor: a wait of the loop's {facts['wakes_late_p99_ms']:.2f} ms (p99); {_PROCESSES} bare processes are "
        f"dead {percentile(bare, 50):.1f} / {max(bare):.1f} ms after they were killed (p50 / max)"
    )
    return [*cases, *hard]


def _deadline_case(value: str, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    case: dict[str, Any] = {"bench": "lanes", "case": f"process: {value}", "rounds": len(rounds)}
    case["next_batches_whole"] = sum(one["next_succeeded"] == _SPINNING for one in rounds)
    for name in ("late_ms", "dead_after_list_ms", "stall_ms", "next_ms"):
        found = [one[name] for one in rounds]
        case |= {f"{name}_p50": percentile(found, 50), f"{name}_max": max(found)}
    # The books only: a machine that is busy with other things starts no process in a deadline, and that is no fault.
    case["problems"] = [
        f"{case['case']}: {one['verdicts']} of {_SPINNING}"
        for one in rounds
        if sum(one["verdicts"].values()) != _SPINNING
    ]
    return case


def _row(case: dict[str, Any]) -> tuple[str, ...]:
    def both(name: str) -> str:
        return f"{case[f'{name}_p50']:.1f} / {case[f'{name}_max']:.1f}"

    if case["case"].endswith("crashes"):  # one of them does, and its batch is as fast as any
        late, dead = "-", "-"
    else:
        late, dead = both("late_ms"), both("dead_after_list_ms")
    whole = f"{case['next_batches_whole']} of {case['rounds']}"
    return (case["case"], late, dead, both("stall_ms"), both("next_ms"), whole)
