"""Does it stay as it is?  Minutes to hours of a steady load on real Kafka.    python -m bench soak --minutes 30

What grows with the time a service has run is what fails on a Sunday: memory, tasks, threads, descriptors, lateness.
"""

from __future__ import annotations

import json
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import msgspec

from .contestant import OURS
from .figures import print_table, verdict
from .kafka import kafka
from .pipeline import Plan, run_once

if TYPE_CHECKING:
    from collections.abc import Sequence

RSS_GROWTH_AT_MOST: Final = 1.1
_INTERVALS: Final = 60
_LEAST_SECONDS: Final = 1.0
_SHARE: Final = 10
"""The first tenth of the time is for the caches; what comes after it is compared with the last tenth."""
_COUNTS: Final = ("tasks", "threads", "descriptors")


def main(plan: Plan, *, minutes: float, rate: float, as_json: bool) -> list[dict[str, Any]]:
    """Measure, print, and return the case."""
    seconds = minutes * 60
    plan = msgspec.structs.replace(
        plan, seconds=seconds, stages=False, sample_seconds=max(_LEAST_SECONDS, seconds / _INTERVALS)
    )
    with kafka(plan.bootstrap_servers) as broker:
        print(f"{minutes:g} minutes at {rate:g} messages a second: {plan.workload.title}", flush=True)
        seen, inside = run_once(broker, plan, OURS, rate=rate, seed=plan.seed)
    case = _case(plan, rate, broker.what, seen, inside)
    if as_json:
        print(json.dumps(case))
    else:
        _print(case)
    return [case]


def _case(plan: Plan, rate: float, broker: str, seen: dict[str, Any], inside: dict[str, Any]) -> dict[str, Any]:
    sizes = [sample for sample in inside["samples"] if sample["t"] <= seen["seconds"]]
    intervals = []
    for (t, samples, p50, p99, worst), size in zip(seen["over_time"], sizes, strict=False):
        intervals.append({**size, "t": t, "samples": samples, "p50_ms": p50, "p99_ms": p99, "max_ms": worst})
    tenth = max(1, len(intervals) // _SHARE)
    early, late = intervals[tenth : 2 * tenth] or intervals, intervals[-tenth:]
    growth = {
        name: _median_of(late, name) / max(1e-9, _median_of(early, name))
        for name in ("rss_mib", *_COUNTS, "p99_ms")
        if intervals and intervals[0][name] is not None
    }
    return {
        "bench": "soak",
        "contestant": OURS,
        "workload": msgspec.to_builtins(plan.workload),
        "broker": broker,
        "rate": rate,
        "seconds": seen["seconds"],
        "valid": seen["valid"],
        "sent": seen["sent"],
        "lost": seen["lost"],
        "twice": seen["twice"],
        "ledger_adds_up": inside["ledger_adds_up"],
        "intervals": intervals,
        "growth": growth,
        "flat": growth.get("rss_mib", 1.0) <= RSS_GROWTH_AT_MOST
        and all(growth.get(name, 1.0) <= RSS_GROWTH_AT_MOST for name in _COUNTS),
        "summary": seen["summary"],
    }


def _median_of(intervals: Sequence[dict[str, Any]], name: str) -> float:
    return float(median(interval[name] for interval in intervals))


def _print(case: dict[str, Any]) -> None:
    shown = case["intervals"][:: max(1, len(case["intervals"]) // 12)]
    print_table(
        f"Does it stay as it is?  {case['sent']} messages in {case['seconds'] / 60:.1f} minutes",
        ["after", "messages", "p50, ms", "p99, ms", "max, ms", "RSS, MiB", *_COUNTS],
        [
            [
                f"{one['t'] / 60:.1f} min",
                str(one["samples"]),
                *(f"{one[name]:.1f}" for name in ("p50_ms", "p99_ms", "max_ms")),
                "-" if one["rss_mib"] is None else f"{one['rss_mib']:.1f}",
                *("-" if one[name] is None else str(one[name]) for name in _COUNTS),
            ]
            for one in shown
        ],
        f"Lost {case['lost']}, twice {case['twice']}.  Last tenth : second tenth: "
        + ", ".join(f"{name} {ratio:.2f}" for name, ratio in case["growth"].items())
        + f".  Memory, tasks, threads and descriptors at most {RSS_GROWTH_AT_MOST:g}: {verdict(case['flat'])}"
        + ("" if case["valid"] else ".  INVALID: the sender was late itself."),
    )
