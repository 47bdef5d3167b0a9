"""From one topic to another: how long does a message take, at which load?    python -m bench pipeline

First the load at which each contestant is saturated is looked for, by a ramp; then messages are sent at shares of it,
each when it is due, whether or not the earlier ones are done.  Every contestant runs in a process of its own, the
messages come from another one, and every repetition has new processes and new topics, in a random order.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from contextlib import contextmanager
from statistics import median
from typing import IO, TYPE_CHECKING, Any, Final

import msgspec

from . import histograms
from . import workload as workloads
from .contestant import OURS, Entry
from .figures import Progress, print_table
from .kafka import Kafka, kafka
from .looplag import print_tables
from .outside import Order

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ALL_SHARES: Final = (0.1, 0.5, 0.8, 0.95)
_DONE_SECONDS: Final = 120.0
_INTERVAL_SECONDS: Final = 0.5


class Plan(msgspec.Struct, kw_only=True, frozen=True):
    """What is to be measured."""

    workload: workloads.Workload
    contestants: tuple[str, ...]
    shares: tuple[float, ...] = ALL_SHARES
    repeats: int = 5
    seconds: float = 5.0
    ramp_from: float = 100.0
    ramp_step_seconds: float = 1.0
    seed: int = 1
    bootstrap_servers: str | None = None
    callback: str | None = None
    messages: str | None = None
    stages: bool = True
    loop_lag: bool = False
    timeline: str | None = None
    tune_gc: bool = False
    outstanding: int = 0
    """A closed loop, with so many messages under way: what it does not see is why the others are open."""
    delivery: str = "at_least_once"
    sample_seconds: float = 0.0
    """Say every so many seconds how large ours is, and give the latencies over time in the same steps."""


def main(plan: Plan, *, as_json: bool) -> list[dict[str, Any]]:
    """Measure, print, and return the cases."""
    order = random.Random(plan.seed)
    ramps = 0 if plan.workload.rate or plan.outstanding else 1
    steps = len(plan.contestants) * (ramps + len(_shares(plan)) * plan.repeats)
    with kafka(plan.bootstrap_servers) as broker, Progress(steps) as progress:
        saturations: dict[str, dict[str, Any]] = {}
        if ramps:
            for name in order.sample(plan.contestants, len(plan.contestants)):
                progress.step(f"{name}: how much can it do?")
                saturations[name], _ = run_once(broker, plan, name, rate=0.0, seed=plan.seed)
        runs: dict[tuple[str, float], list[dict[str, Any]]] = {}
        for number in range(plan.repeats):
            pairs = [(name, share) for name in plan.contestants for share in _shares(plan)]
            for name, share in order.sample(pairs, len(pairs)):
                rate = plan.workload.rate or share * saturations.get(name, {}).get("per_second", 0.0)
                progress.step(f"{name}, {rate:.0f} messages/s")
                figures, inside = run_once(broker, plan, name, rate=rate, seed=plan.seed + number)
                runs.setdefault((name, share), []).append({**figures, "inside": inside})
        cases = [_case(plan, broker, name, saturations.get(name), runs) for name in plan.contestants]
    if as_json:
        for case in cases:
            print(json.dumps(case))
    else:
        _print(plan, cases)
    return cases


def _shares(plan: Plan) -> tuple[float, ...]:
    return (1.0,) if plan.workload.rate or plan.outstanding else plan.shares


def run_once(broker: Kafka, plan: Plan, name: str, *, rate: float, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """One contestant, one rate (0.0 is a ramp), new processes, new topics: what was seen, and what it says itself."""
    topic, results = broker.topic("in"), broker.topic("out")
    entry = Entry(
        name=name,
        bootstrap=broker.bootstrap,
        topic=topic,
        results=results,
        workload=plan.workload,
        callback=plan.callback,
        stages=plan.stages and bool(rate or plan.outstanding),
        loop_lag=plan.loop_lag,
        timeline=plan.timeline,
        tune_gc=plan.tune_gc,
        delivery="exactly_once" if plan.delivery == "exactly_once" else "at_least_once",
        sample_seconds=plan.sample_seconds,
    )
    order = Order(
        bootstrap=broker.bootstrap,
        topic=topic,
        results=results,
        partitions=broker.partitions,
        stations=plan.workload.stations,
        rate=rate,
        seconds=min(plan.seconds, plan.workload.batches / rate) if plan.workload.batches and rate else plan.seconds,
        warm_seconds=min(2.0, plan.seconds / 4),
        arrivals=plan.workload.arrivals,
        seed=seed,
        outstanding=plan.outstanding,
        ramp_from=plan.ramp_from,
        ramp_step_seconds=plan.ramp_step_seconds,
        patience_seconds=plan.workload.deadline_seconds + 5.0,
        messages=plan.messages,
        interval_seconds=plan.sample_seconds or _INTERVAL_SECONDS,
    )
    with _started("bench.contestant", entry) as contestant:
        ready = _out(contestant).readline()
        if ready.strip() != "ready":
            raise SystemExit(f"{name} did not start (status {contestant.wait()})")
        with _started("bench.outside", order) as outside:
            seen, _ = outside.communicate()
        if outside.returncode:
            raise SystemExit(f"{name}, {rate:.0f} messages/s: {seen or 'the sender gave up'}")
        figures = json.loads(seen)
        said, _ = contestant.communicate(json.dumps(figures.get("window_ns", [0, 1 << 62])) + "\n", _DONE_SECONDS)
        if contestant.returncode:
            raise SystemExit(f"{name} ended with status {contestant.returncode}")
    return figures, json.loads(said)


@contextmanager
def _started(module: str, what: msgspec.Struct) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, msgspec.json.encode(what).decode()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()


def _out(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def _case(
    plan: Plan,
    broker: Kafka,
    name: str,
    saturation: dict[str, Any] | None,
    runs: dict[tuple[str, float], list[dict[str, Any]]],
) -> dict[str, Any]:
    loads = []
    for share in _shares(plan):
        repeats = runs[name, share]
        loads.append(
            {
                "share": share,
                "rate": repeats[0]["rate"],
                "valid": all(one["valid"] for one in repeats),
                "slip_p99_ms": max(one["slip_p99_ms"] for one in repeats),
                "summary": histograms.summary(histograms.merged(one["latency"] for one in repeats)),
                "repeats": repeats,
            }
        )
    return {
        "bench": "pipeline",
        "workload": msgspec.to_builtins(plan.workload),
        "broker": broker.what,
        "contestant": name,
        "saturation": saturation,
        "loads": loads,
        "accounts": _accounts(name, plan, [one for load in loads for one in load["repeats"]]),
    }


def _accounts(name: str, plan: Plan, repeats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Every message a list, every station one verdict: what does not add up."""
    inside = [one["inside"] for one in repeats]
    hopeless = plan.workload.faults.failing_share + plan.workload.faults.never_returning_share
    return {
        "sent": sum(one["sent"] for one in repeats),
        "lists_lost": sum(one["lost"] for one in repeats),
        "lists_twice": sum(one["twice"] for one in repeats),
        "answers": sum(one["answers"] for one in repeats),
        "answers_lost": None
        if hopeless or plan.callback
        else sum(one["expected_answers"] - one["answers"] for one in repeats),
        "late_answers": _counted(inside, "late"),
        "stragglers": _counted(inside, "stragglers"),
        "ledger_adds_up": all(one["ledger_adds_up"] for one in inside) if name == OURS else None,
    }


def _counted(inside: Sequence[dict[str, Any]], name: str) -> int | None:
    """None where nobody counts it: that is not the same as none."""
    found = [one[name] for one in inside if one.get(name) is not None]
    return sum(found) if found else None


def bad_accounts(cases: Sequence[dict[str, Any]]) -> list[str]:
    """What is not as it must be, of ours: timings apart."""
    wrong = []
    for case in cases:
        if case["contestant"] != OURS:
            continue
        accounts = case["accounts"]
        if accounts["lists_lost"] or accounts["lists_twice"] or not accounts["ledger_adds_up"]:
            wrong.append(f"{case['workload']['title']}: {accounts}")
    return wrong


def _print(plan: Plan, cases: Sequence[dict[str, Any]]) -> None:
    ours = next((case for case in cases if case["contestant"] == OURS), None)
    capable = ours["saturation"]["per_second"] if ours is not None and ours["saturation"] else None
    rows = []
    for case in cases:
        accounts = case["accounts"]
        at_most = case["saturation"]["per_second"] if case["saturation"] else None
        for number, load in enumerate(case["loads"]):
            summary = load["summary"]
            rows.append(
                [
                    case["contestant"] if not number else "",
                    "closed loop" if plan.outstanding else f"{load['rate']:.0f}/s",
                    "" if at_most is None else f"{100 * load['share']:.0f} %",
                    "" if at_most is None or number else f"{at_most:.0f}",
                    "" if at_most is None or capable is None or number else f"{at_most / capable:.2f}",
                    f"{median(one['summary']['p50_ms'] or 0.0 for one in load['repeats']):.1f}",
                    *(_figure(summary.get(name)) for name in ("p50_ms", "p99_ms", "p99.9_ms", "max_ms")),
                    f"{load['slip_p99_ms']:.2f}" + ("" if load["valid"] else " INVALID"),
                    "" if number else _losses(accounts),
                ]
            )
    print_table(
        f"From topic to topic: {plan.workload.title}.  ms from the moment a message was due until its list was read",
        [
            "contestant",
            "sent",
            "of its most",
            "messages/s at most",
            ": trioagg",
            "p50 of a repetition",
            "p50",
            "p99",
            "p99.9",
            "max",
            "sender's slip p99",
            "lists lost / answers lost / stragglers",
        ],
        rows,
        f"{cases[0]['broker']}; {plan.repeats} repetitions of {plan.seconds:g} s in new processes, in random order; "
        "INVALID: the sender was late itself by more than a tenth of the p99.  A percentile that the samples cannot "
        "hold is left out.",
    )
    if ours is not None and plan.stages:
        _print_stages(ours)
    if ours is not None:
        _print_what_else_it_says(ours)


def _figure(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.1f}"


def _losses(accounts: dict[str, Any]) -> str:
    answers = "-" if accounts["answers_lost"] is None else str(accounts["answers_lost"])
    stragglers = "-" if accounts["stragglers"] is None else str(accounts["stragglers"])
    return f"{accounts['lists_lost']} / {answers} / {stragglers}"


def _print_stages(case: dict[str, Any]) -> None:
    loads = [load for load in case["loads"] if load["repeats"][0]["inside"].get("stages")]
    if not loads:
        return
    rows = []
    for name in loads[0]["repeats"][0]["inside"]["stages"]:
        row = [name, ""]
        for load in loads:
            summary = histograms.summary(histograms.merged(one["inside"]["stages"][name] for one in load["repeats"]))
            row.append(f"{summary.get('mean_ms', 0.0):.2f} / {_figure(summary.get('p99_ms'))}")
        rows.append(row)
    print_table(
        "Where the time goes, in trioagg: mean / p99, ms",
        ["stage", "", *(f"{load['rate']:.0f}/s" for load in loads)],
        rows,
        "fetch: due until the service has it; stations: until the last answer or the deadline; close: beyond that; "
        "upload: until Kafka has acknowledged the list; commit: until its offset is committed, once a second.",
    )


def _print_what_else_it_says(case: dict[str, Any]) -> None:
    *_, last = (one["inside"] for load in case["loads"] for one in load["repeats"])
    if "loop" in last:
        print_tables(last["loop"])
    if "timeline" in last:
        print(last["timeline"])
