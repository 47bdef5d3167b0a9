"""Does it last, and what becomes of messages when everything is broken, or hostile?"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final

from . import histograms, plots
from .page import Html, Part, ms, table
from .plots import brief
from .report_inside import INTERVALS_AT_LEAST, time_finding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .scenarios import Json
    from .words import Words
_SUMS: Final = ("inputs", "lost", "duplicated")


def soak_part(number: int, case: Json, words: Words) -> Part:
    """One long run: latency over time, and what must not grow."""
    intervals = case["intervals"]
    rows = [
        [each["t"], each["samples"], each["p50_ms"], each["p99_ms"], each["max_ms"]]
        for each in intervals
        if each.get("p50_ms") is not None and each.get("p99_ms") is not None
    ]
    finding = time_finding(rows, words) if rows else ""
    counted = []
    for what in ("rss_mib", "tasks", "threads", "descriptors"):
        told = [each[what] for each in intervals if each.get(what) is not None]
        if told:
            counted.append([words(f"col_{what}"), brief(told[0]), brief(max(told)), brief(told[-1])])
            if what == "rss_mib":
                finding += words("finding_memory", before=brief(told[0]), after=brief(told[-1]))
    return Part(
        key=f"soak-{number}",
        title=words("soak_title", contestant=case["contestant"], rate=brief(case["rate"])),
        headline=True,
        finding=finding,
        figure=plots.over_time(rows, words) if len(rows) >= INTERVALS_AT_LEAST else None,
        alt=words("time_alt"),
        table=table([words(f"col_{name}") for name in ("counted", "first", "most", "last")], counted),
    )


def delivery_part(cases: Sequence[Json], words: Words) -> Part:
    """Exactly once beside at least once."""
    rows = [
        [
            words.term(case["delivery"]),
            f"{case['per_second']:,.0f}",
            brief(case["messages_a_commit"]),
            brief(case["p50_ms"]),
            ms(case["p99_ms"] if histograms.holds(case["samples"], 99) else None),
            brief(case["max_ms"]),
        ]
        for case in cases
    ]
    by_name = {case["delivery"]: case for case in cases}
    once, at_least = by_name.get("exactly_once"), by_name.get("at_least_once")
    parts = [
        words(
            "finding_delivery",
            delivery=words.term(case["delivery"]),
            rate=f"{case['per_second']:,.0f}",
            p50=brief(case["p50_ms"]),
        )
        for case in by_name.values()
    ]
    if once and at_least:
        parts.append(words("finding_once", ratio=f"{once['per_second'] / at_least['per_second']:.2f}"))
    columns = [words(f"col_{name}") for name in ("delivery", "saturation", "a_commit")]
    return Part(
        key="delivery",
        title=words("delivery_title"),
        headline=True,
        finding=words.sentence(parts),
        table=table([*columns, "p50", "p99", words("col_max")], rows, note=words("note_delivery")),
    )


def faults_part(cases: Sequence[Json], words: Words) -> Part:
    """One row for every scenario and way of delivery; a figure is lacking where a scenario broke off."""
    rows = [
        [
            _fault(case["scenario"], words),
            words.term(case["delivery"]),
            *(_count(case.get(key)) for key in ("inputs", "lost", "duplicated")),
            "?" if case.get("longest_stall_seconds") is None else f"{case['longest_stall_seconds']:.1f} s",
            _problems(case["problems"], words),
        ]
        for case in cases
    ]
    wrong = sum(bool(case["problems"]) for case in cases)
    parts = [
        words(
            "finding_faults",
            delivery=words.term(delivery),
            **{key: f"{sum(case.get(key) or 0 for case in cases if case['delivery'] == delivery):,}" for key in _SUMS},
        )
        for delivery in dict.fromkeys(case["delivery"] for case in cases)
    ]
    parts.append(words("finding_problems" if wrong else "finding_no_problems", wrong=wrong, cases=len(cases)))
    columns = ("scenario", "delivery", "inputs", "lost", "twice", "stall", "problems")
    return Part(
        key="faults",
        title=words("faults_title"),
        headline=True,
        finding=words.sentence(parts),
        table=table([words(f"col_{name}") for name in columns], rows, left=(0, 1, 6)),
        bad=wrong > 0,
    )


def fuzz_part(cases: Sequence[Json], words: Words) -> Part:
    """One row a run."""
    columns = ("messages", "batches", "poison", "empty", "unaccounted", "stops")
    rows = [
        [
            *(f"{case[name]:,}" for name in columns),
            "–" if math.isnan(case["rss_growth"]) else f"{case['rss_growth']:.2f}x",
            _problems(case["problems"], words),
        ]
        for case in cases
    ]
    sums = {name: f"{sum(case[name] for case in cases):,}" for name in columns}
    wrong = any(case["problems"] for case in cases)
    parts = [
        words("finding_fuzz", **sums),
        words("finding_fuzz_wrong" if wrong else "finding_fuzz_whole", **sums),
    ]
    grown = [case["rss_growth"] for case in cases if not math.isnan(case["rss_growth"])]
    if grown:
        parts.append(words("finding_growth", growth=f"{max(grown):.2f}"))
    return Part(
        key="fuzz",
        title=words("fuzz_title"),
        headline=True,
        finding=words.sentence(parts),
        table=table(
            [words(f"col_{name}") for name in (*columns, "growth", "problems")],
            rows,
            left=(7,),
            note="" if len(grown) == len(cases) else words("note_growth"),
        ),
        bad=wrong,
    )


def _fault(name: str, words: Words) -> str:
    # "slow" is also a model.
    return words.term(f"fault {name}").removeprefix("fault ").replace("_", " ")


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _problems(problems: Sequence[str], words: Words) -> str:
    return Html(f'<span class="bad">{escape("; ".join(problems))}</span>') if problems else words("no_problems")
