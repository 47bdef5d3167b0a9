"""Do the books add up: was anything lost, and are the runs valid?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Final

from . import histograms
from .page import Html, Part, badge, ours_first, table
from .plots import brief, is_ours

if TYPE_CHECKING:
    from .scenarios import Json, Scenario
    from .words import Words

_ACCOUNTS: Final = ("sent", "lists_lost", "lists_twice", "answers", "answers_lost", "stragglers")


def lost_part(scenario: Scenario, words: Words) -> Part | None:
    """Every contestant's account; None if nothing was sent."""
    rows, lost, sent = [], [], 0
    for name, case in sorted(scenario.contestants.items(), key=ours_first):
        accounts = case.get("accounts") or _accounts(case)
        if not accounts["sent"]:
            continue
        sent += accounts["sent"]
        if accounts["lists_lost"] or accounts["answers_lost"]:
            lost.append((name, accounts["lists_lost"], accounts["answers_lost"] or 0))
        told = [accounts.get(key) for key in _ACCOUNTS]
        rows.append([name, *("–" if number is None else f"{number:,}" for number in told)])
    if not rows:
        return None
    finding = words("finding_nothing_lost", sent=f"{sent:,}")
    if lost:
        who = [words("lost_of", name=name, lists=f"{of:,}", answers=f"{answers:,}") for name, of, answers in lost]
        finding = words("finding_lost", who=words.joined(who))
        if scenario.ours and not any(is_ours(name) for name, _, _ in lost):
            finding += words("finding_ours_whole")
    return Part(
        key=f"{scenario.key}-lost",
        title=words("lost_title"),
        finding=finding,
        table=table([words(f"col_{name}") for name in ("contestant", *_ACCOUNTS)], rows),
        bad=any(is_ours(name) for name, _, _ in lost),
    )


def _accounts(case: Json) -> dict[str, int]:
    """Of a result that has no sums of its own."""
    repeats = [repeat for load in case["loads"] for repeat in load["repeats"]]
    sums = {key: sum(count_of(repeat.get(key)) for repeat in repeats) for key in ("sent", "answers", "answers_lost")}
    return sums | {
        "lists_lost": sum(count_of(repeat.get("lost")) for repeat in repeats),
        "lists_twice": sum(count_of(repeat.get("twice")) for repeat in repeats),
        "stragglers": sum(count_of((repeat.get("inside") or {}).get("stragglers")) for repeat in repeats),
    }


def count_of(value: Any) -> int:
    """Some count, and some list what they count."""
    return len(value) if isinstance(value, Sequence | Mapping) else int(value or 0)


def validity_part(scenario: Scenario, words: Words) -> Part | None:
    """Every load, with the reason where a run is invalid."""
    rows: list[list[str]] = []
    bad = runs = 0
    for name, case in sorted(scenario.contestants.items(), key=ours_first):
        for load in case["loads"]:
            invalid = [repeat for repeat in load["repeats"] if not repeat["valid"]]
            runs, bad = runs + len(load["repeats"]), bad + len(invalid)
            slip = histograms.merged(repeat["slip"] for repeat in load["repeats"] if repeat.get("slip"))
            verdict = words("closed_loop" if load["repeats"] and load["repeats"][0].get("closed_loop") else "valid")
            if invalid or not load["valid"]:
                verdict = Html(f"{badge(words)} {escape(_why_invalid(invalid or load['repeats'], words))}")
            valid = len(load["repeats"]) - len(invalid)
            rows.append(
                [name, f"{load['rate']:,.0f}", f"{valid} / {len(load['repeats'])}", " / ".join(_of_slip(slip)), verdict]
            )
    if not rows:
        return None
    finding = words("finding_invalid" if bad else "finding_all_valid", bad=bad, runs=runs)
    return Part(
        key=f"{scenario.key}-validity",
        title=words("validity_title"),
        finding=finding,
        table=table(
            [words(f"col_{name}") for name in ("contestant", "rate", "runs", "slip", "verdict")], rows, left=(0, 4)
        ),
        bad=bad > 0,
    )


def _why_invalid(repeats: Sequence[Json], words: Words) -> str:
    slip = histograms.merged(repeat["slip"] for repeat in repeats if repeat.get("slip"))
    if not slip.get_total_count():
        return words("reason_unknown")
    latency = histograms.merged(repeat["latency"] for repeat in repeats)
    p99, worst = _of_slip(slip)
    return words("reason_slip", p99=p99, max=worst, latency=brief(latency.get_value_at_percentile(99) / 1000))


def _of_slip(slip: Any) -> tuple[str, str]:
    if not slip.get_total_count():
        return "–", "–"
    return brief(slip.get_value_at_percentile(99) / 1000), brief(slip.get_max_value() / 1000)
