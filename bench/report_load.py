"""How much load can it bear, and how long do lists take?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from . import histograms, plots
from .page import Html, Part, badge, ms, ours_first, table
from .plots import brief, is_ours
from .scenarios import latency_of, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .scenarios import Json, Scenario
    from .words import Words

_NEAR_DEADLINE: Final = 0.5
_ENOUGH_LOADS: Final = 3


def load_part(scenario: Scenario, look: Mapping[str, plots.Look], words: Words) -> Part | None:
    """From idle to saturated; None if nobody was saturated."""
    curves = [
        plots.LoadCurve(name, _rates(case), (case.get("saturation") or {}).get("per_second"))
        for name, case in scenario.contestants.items()
    ]
    bearing = {curve.name: curve.saturation for curve in curves if curve.saturation}
    if not bearing:
        return None
    ours = next((name for name in bearing if is_ours(name)), None)
    stations = scenario.workload["stations"]
    rows = [
        [
            name,
            _at_least(scenario.contestants[name]) + f"{rate:,.0f}",
            f"{rate * stations:,.0f}",
            "" if ours is None or ours == name else f"{brief(bearing[ours] / rate)}x",
        ]
        for name, rate in sorted(bearing.items(), key=lambda pair: -pair[1])
    ]
    return Part(
        key=f"{scenario.key}-load",
        title=words("load_title"),
        headline=True,
        note=words("note_bottleneck") if any(row[1].startswith("≥") for row in rows) else "",
        finding=_load_finding(bearing, ours, curves, stations, words),
        figure=plots.load_curves(curves, look, words) if any(curve.rates for curve in curves) else None,
        alt=words("load_alt", names=", ".join(bearing)),
        table=table([words(f"col_{name}") for name in ("contestant", "saturation", "stations", "ratio")], rows),
    )


def _at_least(case: Json) -> str:
    """Where the sender could not send any faster, the contestant might have borne more."""
    return "≥ " if case["saturation"].get("sender_was_the_bottleneck") else ""


def _rates(case: Json) -> list[plots.Rate]:
    ramp = [
        plots.Rate(step["offered"], step.get("p50_ms"), step.get("p99_ms"), True)
        for step in (case.get("saturation") or {}).get("ramp", ())
    ]
    loads = [
        plots.Rate(load["rate"], load["summary"].get("p50_ms"), load["summary"].get("p99_ms"), load["valid"])
        for load in case.get("loads", ())
        if load["rate"]
    ]
    # A second of the ramp says little beside several repetitions, but it is better than nothing.
    rates = loads if len(loads) >= _ENOUGH_LOADS else ramp + loads
    return sorted((rate for rate in rates if rate.p50), key=lambda rate: rate.per_second)


def _load_finding(
    bearing: Mapping[str, float], ours: str | None, curves: Sequence[plots.LoadCurve], stations: int, words: Words
) -> str:
    name = ours or max(bearing, key=lambda name: bearing[name])
    parts = [
        words("finding_saturation", name=name, rate=brief(bearing[name]), stations=f"{bearing[name] * stations:,.0f}")
    ]
    rivals = [rival for rival in bearing if rival != name and not is_ours(rival)]
    if rivals:
        best = max(rivals, key=lambda rival: bearing[rival])
        parts.append(words("finding_ratio", ratio=brief(bearing[name] / bearing[best]), rival=best))
    else:
        parts.append(words("finding_alone"))
    curve = next(curve for curve in curves if curve.name == name)
    below = [rate for rate in curve.rates if rate.valid and rate.p50 and rate.per_second <= bearing[name]]
    if len(below) > 1:
        low, high = below[0], below[-1]
        parts.append(
            words(
                "finding_knee",
                low=brief(low.p50 or 0),
                low_rate=brief(low.per_second),
                high=brief(high.p50 or 0),
                high_rate=brief(high.per_second),
            )
        )
    return words.sentence(parts)


def percentiles_part(
    scenario: Scenario, floor: float | None, look: Mapping[str, plots.Look], words: Words
) -> Part | None:
    """The loads that are quoted, beside each other; None if there is no load at all."""
    told = {name: load for name, case in scenario.contestants.items() if (load := quoted(case))}
    if not told:
        return None
    curves = [
        plots.Curve(name, _label(name, load, words), latency_of(load))
        for name, load in sorted(told.items(), key=ours_first)
    ]
    for name, load in told.items():
        others = scenario.contestants[name]["loads"] if is_ours(name) else ()
        curves += [
            plots.Curve(name, _label(name, other, words), latency_of(other), faint=True)
            for other in others
            if other is not load
        ]
    curves = [curve for curve in curves if histograms.holds(curve.histogram.get_total_count(), 50)]
    return Part(
        key=f"{scenario.key}-percentiles",
        title=words("percentiles_title"),
        headline=True,
        finding=_percentiles_finding(scenario, told, words),
        figure=plots.percentiles(curves, scenario.deadline_ms, look, words) if curves else None,
        alt=words("percentiles_alt", names=", ".join(told)),
        table=_loads_table(scenario, floor, words),
    )


def _label(name: str, load: Json, words: Words) -> str:
    said = words("curve", name=name, rate=f"{brief(load['rate'])}/s" if load["rate"] else words("closed_loop"))
    return said if load["valid"] else f"{said} ({words('invalid')})"


def _percentiles_finding(scenario: Scenario, given: Mapping[str, Json], words: Words) -> str:
    valid = {name: load for name, load in given.items() if load["valid"] and load["summary"].get("p50_ms") is not None}
    name = next((name for name in valid if is_ours(name)), None)
    if name is None:
        return words.sentence([words("finding_none_valid")])
    ours = valid[name]["summary"]
    parts = [
        words(
            "finding_p50" if valid[name]["rate"] else "finding_p50_closed",
            rate=brief(valid[name]["rate"]),
            name=name,
            p50=brief(ours["p50_ms"]),
        ),
        words("finding_p99", p99=brief(ours["p99_ms"]))
        if ours.get("p99_ms")
        else words("finding_p99_beyond", samples=ours["samples"]),
    ]
    for percentile in ("p99", "p50"):
        told = {
            rival: load
            for rival, load in valid.items()
            if not is_ours(rival) and load["summary"].get(f"{percentile}_ms") and ours.get(f"{percentile}_ms")
        }
        if told:
            rival, load = min(told.items(), key=lambda pair: pair[1]["summary"][f"{percentile}_ms"])
            theirs = load["summary"][f"{percentile}_ms"]
            parts.append(
                words(
                    "finding_rival",
                    rival=rival,
                    percentile=percentile,
                    ms=brief(theirs),
                    rate=brief(load["rate"]),
                    ratio=brief(theirs / ours[f"{percentile}_ms"]),
                )
            )
            break
    near = [name for name, load in valid.items() if load["summary"]["max_ms"] > _NEAR_DEADLINE * scenario.deadline_ms]
    key = "finding_near_deadline" if near else "finding_far_deadline"
    parts.append(words(key, names=", ".join(near), ms=brief(scenario.deadline_ms)))
    return words.sentence(parts)


def _loads_table(scenario: Scenario, floor: float | None, words: Words) -> Html:
    rows = []
    for name, case in sorted(scenario.contestants.items(), key=ours_first):
        for load in case["loads"]:
            figures = load["summary"]
            p50 = figures.get("p50_ms")
            rows.append(
                [
                    name,
                    _load_name(load, words, saturated=bool(case.get("saturation"))),
                    f"{load['rate']:,.0f}",
                    f"{figures['samples']:,}",
                    ms(p50),
                    ms(None if p50 is None or floor is None else p50 - floor),
                    *(ms(figures.get(f"{which}_ms")) for which in ("p99", "p99.9", "max")),
                ]
            )
    columns = [words(f"col_{name}") for name in ("contestant", "load", "rate", "samples")]
    return table([*columns, "p50", words("col_added"), "p99", "p99.9", words("col_max")], rows, left=(0, 1))


def _load_name(load: Json, words: Words, *, saturated: bool) -> Html:
    share = f"{100 * load['share']:.0f} %" if saturated and load.get("share") is not None else "–"
    if not load["rate"]:
        share = words("closed_loop")
    return Html(share if load["valid"] else f"{share} {badge(words)}")
