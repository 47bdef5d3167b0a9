"""Where does the time go inside trioagg: which stage, which second, which station?"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, Final

from . import histograms, plots
from .page import Part, ms, table
from .plots import brief
from .scenarios import inside_of, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .scenarios import Scenario
    from .words import Words

INTERVALS_AT_LEAST: Final = 2
_AFTERWARDS: Final = "commit"
"""It is no part of a list's way: the list has been read by then."""
_NOTHING_MS: Final = 0.001
"""A histogram begins at a microsecond: what took no time is there."""


def waterfall_part(scenario: Scenario, words: Words) -> Part | None:
    """The stages of a list's way; the commit stands apart."""
    load = quoted(scenario.ours) if scenario.ours else None
    inside = [told["stages"] for told in inside_of(load) if told.get("stages")]
    if load is None or not inside:
        return None
    all_stages = [_stage(name, [told[name] for told in inside if name in told]) for name in inside[0]]
    stages = [stage for stage in all_stages if stage.name != _AFTERWARDS]
    commits = [stage for stage in all_stages if stage.name == _AFTERWARDS]
    whole = sum(stage.mean for stage in stages)
    if not whole:
        return None
    rows = [
        [words.term(stage.name), brief(stage.mean), f"{100 * stage.mean / whole:.1f} %", ms(stage.p99)]
        for stage in stages
    ]
    waiting = next((stage.mean for stage in stages if stage.name == "stations"), 0.0)
    own = [stage for stage in stages if stage.name != "stations"]
    largest = max(own, key=lambda stage: stage.mean)
    tail = max(own, key=lambda stage: stage.p99 or 0.0)
    parts = [
        words(
            "finding_stations",
            whole=brief(whole),
            rate=brief(load["rate"]),
            stations=brief(waiting),
            share=f"{100 * waiting / whole:.0f}",
        ),
        words("finding_own", stage=words.term(largest.name), ms=brief(largest.mean)),
    ]
    if tail.p99:
        parts.append(words("finding_own_p99", stage=words.term(tail.name), ms=brief(tail.p99)))
    below = [[words.term(stage.name), brief(stage.mean), "", ms(stage.p99)] for stage in commits]
    late = next((stage for stage in commits if stage.mean), None)
    return Part(
        key=f"{scenario.key}-waterfall",
        title=words("waterfall_title"),
        finding=words.sentence(parts),
        note=words("note_commit", mean=brief(late.mean)) if late else "",
        figure=plots.waterfall(stages, words),
        alt=words("waterfall_alt"),
        table=table([words("col_stage"), words("col_mean"), words("col_share"), "p99"], rows, below=below),
    )


def _stage(name: str, texts: list[str]) -> plots.Stage:
    figures: dict[str, Any] = histograms.summary(histograms.merged(texts))
    if figures.get("max_ms", 0.0) <= _NOTHING_MS:
        return plots.Stage(name, 0.0, None)
    return plots.Stage(name, figures["mean_ms"], figures["p99_ms"])


def over_time_part(scenario: Scenario, words: Words) -> Part | None:
    """The worst repeat of trioagg's; None if all are too short."""
    load = quoted(scenario.ours) if scenario.ours else None
    repeats = [repeat["over_time"] for repeat in (load or {}).get("repeats", ()) if repeat.get("over_time")]
    if not load or not repeats or max(map(len, repeats)) < INTERVALS_AT_LEAST:
        return None
    worst = max(repeats, key=lambda rows: max(row[4] for row in rows))
    return Part(
        key=f"{scenario.key}-time",
        title=words("time_title"),
        finding=time_finding(worst, words),
        note=words("worst_of", repeats=len(repeats), rate=brief(load["rate"])),
        figure=plots.over_time(worst, words),
        alt=words("time_alt"),
    )


def time_finding(rows: Sequence[Sequence[float]], words: Words) -> str:
    """Whether it stalled.  A row is begin, samples, p50, p99, max."""
    usual = median(row[3] for row in rows)
    worst = max(rows, key=lambda row: row[4])
    return words(
        "finding_stalls" if (stalls := plots.stalled(rows)) else "finding_steady",
        stalls=len(stalls),
        intervals=len(rows),
        when=brief(worst[0]),
        worst=brief(worst[4]),
        usual=brief(usual),
        ratio=brief(worst[4] / usual) if usual else "–",
    )


def heat_part(scenario: Scenario, words: Words) -> Part | None:
    """What was sampled of trioagg's stations; None if nothing was."""
    told = [inside["lateness"] for inside in inside_of(quoted(scenario.ours or {})) if inside.get("lateness")]
    if not told:
        return None
    samples = max(told, key=lambda rows: max(ms for _, _, ms in rows))
    late = plots.lateness(samples)
    hits = [station for station, _, ms in samples if ms >= scenario.deadline_ms * 0.999]
    worst, _, slowest = max(samples, key=lambda sample: sample[2])
    if hits:
        worst = max(sorted(set(hits)), key=hits.count)
    finding = words(
        "finding_latest" if hits else "finding_in_time",
        hit=f"{len(hits):,}",
        samples=f"{len(samples):,}",
        deadline=brief(scenario.deadline_ms),
        stations=len(set(hits)),
        worst=worst,
        times=hits.count(worst),
        ms=brief(slowest),
        share=brief(100 * slowest / scenario.deadline_ms),
    )
    note = ""
    everyone = len({station for station, _, _ in samples})
    if everyone > len(late.stations):
        note = words("heat_rows", shown=len(late.stations), all=everyone)
    return Part(
        key=f"{scenario.key}-heat",
        title=words("heat_title"),
        finding=finding,
        note=note,
        figure=plots.heat_map(late, scenario.deadline_ms, words),
        alt=words("heat_alt"),
    )
