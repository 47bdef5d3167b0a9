"""What do the results say?    python -m bench report DIR

Every ``result.json`` below a directory becomes one HTML file: no script, nothing from elsewhere, fit for print and for
a phone.  A sentence beside each plot says what is to be seen in it, with figures of these results; where a plot has no
data, a sentence says which command makes them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import msgspec

from . import histograms, plots, results
from .plots import brief, is_ours
from .words import Language, Words
from .workload import Measured, Workload, work_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator
    from pathlib import Path

    from matplotlib.figure import Figure

_Json = Mapping[str, Any]

_QUOTED_SHARE: Final = 0.5
"""Findings quote the load that is nearest to this share of what a contestant can bear."""
_BARE: Final = "bare nursery"
_MESSAGES_FOR_FLOOR: Final = 50
_INTERVALS_AT_LEAST: Final = 2
_NEAR_DEADLINE: Final = 0.5
_OF_A_SCENARIO: Final = ("load", "percentiles", "waterfall", "time", "heat")
_ACCOUNTS: Final = ("sent", "lists_lost", "lists_twice", "answers", "answers_lost", "stragglers")


class _Html(str):
    """Needs no escaping any more."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A plot, what it says, and the figures behind it."""

    key: str
    title: str
    finding: str
    figure: Figure | None = None
    alt: str = ""
    table: str = ""
    """HTML."""
    note: str = ""
    headline: bool = False
    """It is in the page's summary."""
    bad: bool = False
    """The finding is that something is wrong: it is in the summary too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    key: str
    title: str
    lead: str = ""
    parts: list[Part] = field(default_factory=list)


def main(directory: Path, *, lang: Language, out: Path | None) -> Path:
    """Write the report, print where it is, and return that.

    Exits, with a sentence that says why, if there is no result or no matplotlib.
    """
    plots.require()
    words = Words(lang)
    loaded = _load(directory, words)
    path = out or directory / "report.html"
    path.write_text(_page(loaded, _sections(loaded, words), words), encoding="utf-8")
    print(path)
    return path


def figures(directory: Path, *, lang: Language = "en") -> dict[str, Figure]:
    """The plots by their keys, for those who want one by itself: see :func:`bench.plots.write`."""
    plots.require()
    words = Words(lang)
    sections = _sections(_load(directory, words), words)
    return {part.key: part.figure for section in sections for part in section.parts if part.figure is not None}


# Reading.


def _load(directory: Path, words: Words) -> list[dict[str, Any]]:
    found = [
        {**results.read(path), "place": path.parent.relative_to(directory).as_posix()}
        for path in sorted(directory.rglob(results.NAME))
    ]
    if not found:
        sys.exit(words("nothing", directory=directory))
    return found


def _cases(loaded: Iterable[_Json], bench: str) -> list[_Json]:
    return [
        {**case, "place": result["place"]}
        for result in loaded
        for case in result["cases"]
        if case.get("bench") == bench
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scenario:
    """One workload on one broker, and who was measured with it."""

    key: str
    title: str
    broker: str
    workload: _Json
    contestants: dict[str, _Json]
    """By name; by name and directory where one was measured several times."""

    @property
    def deadline_ms(self) -> float:
        return float(self.workload["deadline_seconds"]) * 1000

    @property
    def ours(self) -> _Json | None:
        return next((case for name, case in self.contestants.items() if is_ours(name)), None)


def _scenarios(loaded: Sequence[_Json]) -> list[_Scenario]:
    grouped: dict[tuple[str, str], list[_Json]] = {}
    for case in _cases(loaded, "pipeline"):
        grouped.setdefault((case["workload"]["title"], str(case["broker"])), []).append(case)
    scenarios = []
    for number, ((title, broker), cases) in enumerate(grouped.items(), 1):
        names = [case["contestant"] for case in cases]
        contestants = {
            name if names.count(name) == 1 else f"{name} ({case['place']})": case
            for name, case in zip(names, cases, strict=True)
        }
        workload = cases[0]["workload"]
        scenarios.append(
            _Scenario(key=f"w{number}", title=title, broker=broker, workload=workload, contestants=contestants)
        )
    return scenarios


def _quoted(case: _Json, share: float = _QUOTED_SHARE) -> _Json | None:
    """The load nearest to *share*, an invalid one only if there is no other."""
    loads = case.get("loads") or []
    told = [load for load in loads if load["valid"]] or loads
    return min(told, key=lambda load: abs((load.get("share") or share) - share), default=None)


def _inside(load: _Json | None) -> list[_Json]:
    return [repeat["inside"] for repeat in (load or {}).get("repeats", ()) if repeat.get("inside")]


def _latency(load: _Json) -> Any:
    repeats = [repeat for repeat in load["repeats"] if repeat["valid"]] or load["repeats"]
    return histograms.merged(repeat["latency"] for repeat in repeats)


def _floor_ms(workload: _Json) -> float | None:
    """What the stations alone take: the median over some messages of the slowest of each, the deadline at most."""
    known = {key: value for key, value in workload.items() if key in Workload.__struct_fields__}
    try:
        told = msgspec.convert(known, Workload)
    except msgspec.ValidationError:
        return None
    if isinstance(told.service_time, Measured):
        return None  # its CSV file may be on another machine
    work = work_of(told)
    slowest = [max(one.seconds for one in islice(work, told.stations)) for _ in range(_MESSAGES_FOR_FLOOR)]
    return 1000 * min(median(slowest), told.deadline_seconds)


# What the page is made of.


def _sections(loaded: Sequence[_Json], words: Words) -> list[_Section]:
    scenarios = _scenarios(loaded)
    costs = _cases(loaded, "fanout") or _of_core(_cases(loaded, "core"))
    # Whoever is in the plots of the pipeline comes first: their colours must differ, if there are too many for all.
    look = plots.looks(
        sorted({name for scenario in scenarios for name in scenario.contestants})
        + sorted({case["contestant"] for case in costs})
    )
    sections = [_scenario_section(scenario, look, words) for scenario in scenarios]
    lacking = [
        Part(key=f"no-{name}", title=words(f"{name}_title"), finding=words("missing", command=_command("pipeline")))
        for name in _OF_A_SCENARIO
        if not any(part.key.endswith(f"-{name}") for section in sections for part in section.parts)
    ]
    if lacking:
        sections.append(_Section(key="pipeline", title=words("pipeline_title"), parts=lacking))
    soak = [_soak(number, case, words) for number, case in enumerate(_cases(loaded, "soak"), 1)]
    general: list[tuple[str, str, str, list[Part]]] = [
        ("overshoot", "overshoot_title", "deadline", _overshoot(scenarios, _cases(loaded, "deadline"), words)),
        ("timeouts", "timeouts_title", "timeouts", _timeouts(_cases(loaded, "timeouts"), words)),
        ("overhead", "overhead_title", "fanout", _overheads(costs, look, words)),
        ("soak", "soak_section", "soak", soak),
    ]
    for key, title, command, parts in general:
        lead = "" if parts else words("missing", command=_command(command))
        sections.append(_Section(key=key, title=words(title), lead=lead, parts=parts))
    return sections


def _command(name: str) -> str:
    return f"python -m bench {name} --out DIR"


def _scenario_section(scenario: _Scenario, look: Mapping[str, plots.Look], words: Words) -> _Section:
    workload = scenario.workload
    floor = _floor_ms(workload)
    lead = words(
        "workload_line",
        stations=workload["stations"],
        deadline=f"{workload['deadline_seconds']:g}",
        arrivals=words.term(str(workload.get("arrivals", "poisson"))),
    )
    if floor:
        lead += words("workload_floor", floor=brief(floor))
    makers: tuple[Callable[[], Part | None], ...] = (
        lambda: _load_part(scenario, look, words),
        lambda: _percentiles(scenario, floor, look, words),
        lambda: _waterfall(scenario, words),
        lambda: _over_time(scenario, words),
        lambda: _heat(scenario, words),
        lambda: _lost(scenario, words),
        lambda: _validity(scenario, words),
    )
    return _Section(
        key=scenario.key,
        title=f"{words.term(scenario.title)} · {words.term(scenario.broker)}",
        lead=lead,
        parts=[part for make in makers if (part := make()) is not None],
    )


def _load_part(scenario: _Scenario, look: Mapping[str, plots.Look], words: Words) -> Part | None:
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
        table=_table([words(f"col_{name}") for name in ("contestant", "saturation", "stations", "ratio")], rows),
    )


def _at_least(case: _Json) -> str:
    """Where the sender could not send any faster, the contestant might have borne more."""
    return "≥ " if case["saturation"].get("sender_was_the_bottleneck") else ""


def _rates(case: _Json) -> list[plots.Rate]:
    ramp = [
        plots.Rate(step["offered"], step.get("p50_ms"), step.get("p99_ms"), True)
        for step in (case.get("saturation") or {}).get("ramp", ())
    ]
    loads = [
        plots.Rate(load["rate"], load["summary"].get("p50_ms"), load["summary"].get("p99_ms"), load["valid"])
        for load in case.get("loads", ())
        if load["rate"]
    ]
    return sorted((rate for rate in ramp + loads if rate.p50), key=lambda rate: rate.per_second)


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


def _percentiles(scenario: _Scenario, floor: float | None, look: Mapping[str, plots.Look], words: Words) -> Part | None:
    quoted = {name: load for name, case in scenario.contestants.items() if (load := _quoted(case))}
    if not quoted:
        return None
    curves = [
        plots.Curve(name, _label(name, load, words), _latency(load))
        for name, load in sorted(quoted.items(), key=_ours_first)
    ]
    for name, load in quoted.items():
        others = scenario.contestants[name]["loads"] if is_ours(name) else ()
        curves += [
            plots.Curve(name, _label(name, other, words), _latency(other), faint=True)
            for other in others
            if other is not load
        ]
    curves = [curve for curve in curves if histograms.holds(curve.histogram.get_total_count(), 50)]
    return Part(
        key=f"{scenario.key}-percentiles",
        title=words("percentiles_title"),
        headline=True,
        finding=_percentiles_finding(scenario, quoted, words),
        figure=plots.percentiles(curves, scenario.deadline_ms, look, words) if curves else None,
        alt=words("percentiles_alt", names=", ".join(quoted)),
        table=_loads_table(scenario, floor, words),
    )


def _ours_first(named: tuple[str, Any]) -> tuple[bool, str]:
    return not is_ours(named[0]), named[0]


def _label(name: str, load: _Json, words: Words) -> str:
    said = words("curve", name=name, rate=f"{brief(load['rate'])}/s" if load["rate"] else words("closed_loop"))
    return said if load["valid"] else f"{said} ({words('invalid')})"


def _percentiles_finding(scenario: _Scenario, quoted: Mapping[str, _Json], words: Words) -> str:
    valid = {name: load for name, load in quoted.items() if load["valid"] and load["summary"].get("p50_ms") is not None}
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


def _loads_table(scenario: _Scenario, floor: float | None, words: Words) -> _Html:
    rows = []
    for name, case in sorted(scenario.contestants.items(), key=_ours_first):
        for load in case["loads"]:
            figures = load["summary"]
            p50 = figures.get("p50_ms")
            rows.append(
                [
                    name,
                    _load_name(load, words, saturated=bool(case.get("saturation"))),
                    f"{load['rate']:,.0f}",
                    f"{figures['samples']:,}",
                    _ms(p50),
                    _ms(None if p50 is None or floor is None else p50 - floor),
                    *(_ms(figures.get(f"{which}_ms")) for which in ("p99", "p99.9", "max")),
                ]
            )
    columns = [words(f"col_{name}") for name in ("contestant", "load", "rate", "samples")]
    return _table([*columns, "p50", words("col_added"), "p99", "p99.9", words("col_max")], rows, left=(0, 1))


def _load_name(load: _Json, words: Words, *, saturated: bool) -> _Html:
    share = f"{100 * load['share']:.0f} %" if saturated and load.get("share") is not None else "–"
    if not load["rate"]:
        share = words("closed_loop")
    return _Html(share if load["valid"] else f"{share} {_badge(words)}")


def _badge(words: Words) -> _Html:
    return _Html(f'<span class="bad">{escape(words("invalid"))}</span>')


def _ms(value: float | None) -> str:
    return "–" if value is None else brief(value)


def _waterfall(scenario: _Scenario, words: Words) -> Part | None:
    load = _quoted(scenario.ours) if scenario.ours else None
    inside = [told["stages"] for told in _inside(load) if told.get("stages")]
    if load is None or not inside:
        return None
    stages = []
    for name in inside[0]:
        figures = histograms.summary(histograms.merged(told[name] for told in inside if name in told))
        stages.append(plots.Stage(name, figures.get("mean_ms", 0.0), figures.get("p99_ms")))
    whole = sum(stage.mean for stage in stages)
    if not whole:
        return None
    rows = [
        [words.term(stage.name), brief(stage.mean), f"{100 * stage.mean / whole:.1f} %", _ms(stage.p99)]
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
    return Part(
        key=f"{scenario.key}-waterfall",
        title=words("waterfall_title"),
        finding=words.sentence(parts),
        figure=plots.waterfall(stages, words),
        alt=words("waterfall_alt"),
        table=_table([words("col_stage"), words("col_mean"), words("col_share"), "p99"], rows),
    )


def _over_time(scenario: _Scenario, words: Words) -> Part | None:
    load = _quoted(scenario.ours) if scenario.ours else None
    repeats = [repeat["over_time"] for repeat in (load or {}).get("repeats", ()) if repeat.get("over_time")]
    if not load or not repeats or max(map(len, repeats)) < _INTERVALS_AT_LEAST:
        return None
    worst = max(repeats, key=lambda rows: max(row[4] for row in rows))
    return Part(
        key=f"{scenario.key}-time",
        title=words("time_title"),
        finding=_time_finding(worst, words),
        note=words("worst_of", repeats=len(repeats), rate=brief(load["rate"])),
        figure=plots.over_time(worst, words),
        alt=words("time_alt"),
    )


def _time_finding(rows: Sequence[Sequence[float]], words: Words) -> str:
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


def _heat(scenario: _Scenario, words: Words) -> Part | None:
    told = [inside["lateness"] for inside in _inside(_quoted(scenario.ours or {})) if inside.get("lateness")]
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


def _lost(scenario: _Scenario, words: Words) -> Part | None:
    rows, lost, sent = [], [], 0
    for name, case in sorted(scenario.contestants.items(), key=_ours_first):
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
        table=_table([words(f"col_{name}") for name in ("contestant", *_ACCOUNTS)], rows),
        bad=any(is_ours(name) for name, _, _ in lost),
    )


def _accounts(case: _Json) -> dict[str, int]:
    """Of a result that has no sums of its own."""
    repeats = [repeat for load in case["loads"] for repeat in load["repeats"]]
    sums = {key: sum(_number(repeat.get(key)) for repeat in repeats) for key in ("sent", "answers", "answers_lost")}
    return sums | {
        "lists_lost": sum(_number(repeat.get("lost")) for repeat in repeats),
        "lists_twice": sum(_number(repeat.get("twice")) for repeat in repeats),
        "stragglers": sum(_number((repeat.get("inside") or {}).get("stragglers")) for repeat in repeats),
    }


def _number(value: Any) -> int:
    """Some count, and some list what they count."""
    return len(value) if isinstance(value, Sequence | Mapping) else int(value or 0)


def _validity(scenario: _Scenario, words: Words) -> Part | None:
    rows: list[list[str]] = []
    bad = runs = 0
    for name, case in sorted(scenario.contestants.items(), key=_ours_first):
        for load in case["loads"]:
            invalid = [repeat for repeat in load["repeats"] if not repeat["valid"]]
            runs, bad = runs + len(load["repeats"]), bad + len(invalid)
            slip = histograms.merged(repeat["slip"] for repeat in load["repeats"] if repeat.get("slip"))
            verdict = words("closed_loop" if load["repeats"] and load["repeats"][0].get("closed_loop") else "valid")
            if invalid or not load["valid"]:
                verdict = _Html(f"{_badge(words)} {escape(_why_invalid(invalid or load['repeats'], words))}")
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
        table=_table(
            [words(f"col_{name}") for name in ("contestant", "rate", "runs", "slip", "verdict")], rows, left=(0, 4)
        ),
        bad=bad > 0,
    )


def _why_invalid(repeats: Sequence[_Json], words: Words) -> str:
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


def _overshoot(scenarios: Sequence[_Scenario], cases: Sequence[_Json], words: Words) -> list[Part]:
    curves = []
    for scenario in scenarios:
        loads = scenario.ours["loads"] if scenario.ours else ()
        texts = [inside["overshoot"] for load in loads for inside in _inside(load) if inside.get("overshoot")]
        histogram = histograms.merged(texts)
        if histogram.get_total_count():
            curves.append((f"{words.term(scenario.title)} · {words.term(scenario.broker)}", histogram))
    cases = sorted((case for case in cases if "simultaneous" in case), key=lambda case: case["simultaneous"])
    together = [
        plots.Together(
            case["simultaneous"],
            case["variant"],
            case["ready_p50_ms"],
            case["ready_p99_ms"] if histograms.holds(case["lists"], 99) else None,
            case["ready_p100_ms"],
        )
        for case in cases
    ]
    if not curves and not together:
        return []
    columns = [words("col_at_once"), words("col_what"), words("col_lists"), words("col_ready")]
    rows = [
        [
            f"{one.batches:,}",
            words.term(one.what),
            f"{case['lists']:,}",
            f"{brief(one.p50)} / {_ms(one.p99)} / {brief(one.max)}",
        ]
        for one, case in zip(together, cases, strict=True)
    ]
    return [
        Part(
            key="overshoot",
            title=words("overshoot_lists"),
            headline=True,
            finding=_overshoot_finding(curves, together, words),
            # A point below a microsecond cannot be on a scale of logarithms.
            figure=plots.overshoot(curves, [one for one in together if one.p50 > 0], words),
            alt=words("overshoot_alt"),
            table=_table(columns, rows, left=(0, 1)) if rows else "",
        )
    ]


def _overshoot_finding(curves: Sequence[tuple[str, Any]], together: Sequence[plots.Together], words: Words) -> str:
    parts = []
    if curves:
        whole = histograms.summary(histograms.merged(histograms.encoded(histogram) for _, histogram in curves))
        parts.append(
            words(
                "finding_overshoot" if whole["p99_ms"] is not None else "finding_overshoot_few",
                lists=f"{whole['samples']:,}",
                p99=_ms(whole["p99_ms"]),
                max=brief(whole["max_ms"]),
            )
        )
    ours = [one for one in together if one.what == "tuned"] or [one for one in together if one.what != "textbook"]
    textbook = {one.batches: one for one in together if one.what == "textbook"}
    most = max(ours, key=lambda one: one.batches, default=None)
    beside = max((one for one in ours if one.batches in textbook), key=lambda one: one.batches, default=None)
    if most is not None and most is not beside:
        parts.append(words("finding_together", number=f"{most.batches:,}", max=brief(most.max)))
    if beside is not None:
        theirs = textbook[beside.batches].max
        parts.append(
            words(
                "finding_textbook",
                number=f"{beside.batches:,}",
                max=brief(beside.max),
                theirs=brief(theirs),
                ratio=brief(theirs / beside.max),
            )
        )
    return words.sentence(parts)


def _timeouts(cases: Sequence[_Json], words: Words) -> list[Part]:
    by_model: dict[str, list[_Json]] = {}
    for case in cases:
        by_model.setdefault(case["model"], []).append(case)
    models, parts = [], []
    for name, of_model in by_model.items():
        answered = sorted((case["deadline_seconds"], case["answered_ratio"]) for case in of_model)
        recommended = next(
            ((case["deadline_seconds"], case["answered_ratio"]) for case in of_model if case["recommended"]), None
        )
        models.append(plots.Model(name, answered, recommended))
        if recommended:
            parts.append(_recommended(name, answered, recommended, words))
    if not models:
        return []
    columns = [words(f"col_{name}") for name in ("model", "deadline", "choice", "answered", "of_able", "mean_seconds")]
    rows = [
        [
            words("model", name=words.term(case["model"]), ms=brief(1000 * case["median_seconds"])),
            f"{case['deadline_seconds']:g} s",
            words("recommended") if case["recommended"] else "",
            f"{100 * case['answered_ratio']:.2f} %",
            f"{100 * case['answered_of_able_ratio']:.2f} %",
            f"{case['mean_seconds']:.2f} s",
        ]
        for case in cases
    ]
    return [
        Part(
            key="timeouts",
            title=words("timeouts_lists"),
            headline=True,
            finding=words.sentence(parts),
            note=words("note_never"),
            figure=plots.deadlines(models, words),
            alt=words("timeouts_alt"),
            table=_table(columns, rows, left=(0, 2)),
        )
    ]


def _recommended(
    name: str, answered: Sequence[tuple[float, float]], recommended: tuple[float, float], words: Words
) -> str:
    seconds, share = recommended
    nearest = [pair for pair in answered if pair[0] < seconds][-1:] + [pair for pair in answered if pair[0] > seconds][
        :1
    ]
    return words(
        "finding_recommended",
        model=words.term(name),
        seconds=f"{seconds:g}",
        share=f"{100 * share:.2f}",
        others=", ".join(f"{other:g} s {_signed(100 * (there - share))}" for other, there in nearest) or "–",
    )


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "\N{MINUS SIGN}")


def _of_core(cases: Sequence[_Json]) -> list[_Json]:
    """``core`` asks the same of single batches; without ``fanout`` its cases do."""
    return [
        {
            "kind": "overhead",
            "station": case["kind"],
            "stations": case["stations"],
            "batches": 1,
            "contestant": name,
            "us_median": figures["us_median"],
            "ratio": figures["ratio"],
        }
        for case in cases
        for name, figures in case["contestants"].items()
    ]


def _overheads(cases: Sequence[_Json], look: Mapping[str, plots.Look], words: Words) -> list[Part]:
    by_station: dict[str, list[_Json]] = {}
    for case in cases:
        if case["kind"] == "overhead":
            by_station.setdefault(case["station"], []).append(case)
    parts = [
        _overhead(f"overhead-{number}", station, of_station, look, words)
        for number, (station, of_station) in enumerate(by_station.items(), 1)
    ]
    counted = [case for case in cases if "answers_lost" in case]
    if counted:
        parts.append(_lost_in_fanout(counted, words))
    path = [case for case in cases if case["kind"] == "path"]
    if path:
        parts.append(_path(path, words))
    memory = [case for case in cases if case["kind"] == "memory"]
    if memory:
        rows = [
            [case["contestant"], f"{case['stations']:,}", f"{case['bytes_per_waiting_station']:,.0f}"]
            for case in memory
        ]
        least = min(memory, key=lambda case: case["bytes_per_waiting_station"])
        parts.append(
            Part(
                key="memory",
                title=words("memory_title"),
                finding=words(
                    "finding_bytes", name=least["contestant"], bytes=f"{least['bytes_per_waiting_station']:,.0f}"
                ),
                table=_table([words(f"col_{name}") for name in ("contestant", "number", "bytes")], rows),
            )
        )
    return parts


def _lost_in_fanout(cases: Sequence[_Json], words: Words) -> Part:
    sums: dict[str, list[int]] = {}
    for case in cases:
        of = sums.setdefault(case["contestant"], [0, 0])
        of[0] += _number(case["answers_lost"])
        of[1] += _number(case.get("stragglers"))
    bad = {name: of for name, of in sums.items() if any(of)}
    who = [words("lost_and_left", name=name, lost=f"{lost:,}", left=f"{left:,}") for name, (lost, left) in bad.items()]
    rows = [[name, f"{lost:,}", f"{left:,}"] for name, (lost, left) in sorted(sums.items(), key=_ours_first)]
    return Part(
        key="overhead-lost",
        title=words("lost_title"),
        finding=words.sentence(who) if who else words("finding_none_lost_or_left"),
        table=_table([words(f"col_{name}") for name in ("contestant", "answers_lost", "stragglers")], rows),
        bad=any(is_ours(name) for name in bad),
    )


def _path(cases: Sequence[_Json], words: Words) -> Part:
    rows = [
        [
            case["contestant"],
            words.term(case["records"]),
            case["codec"],
            f"{case['per_second']:,.0f}",
            f"{case['ratio']:.2f}x",
        ]
        for case in cases
    ]
    ours = [
        words(
            "finding_path",
            records=words.term(case["records"]),
            rate=f"{case['per_second']:,.0f}",
            ratio=f"{case['ratio']:.2f}",
        )
        for case in cases
        if case["contestant"] == plots.OURS
    ]
    columns = [words(f"col_{name}") for name in ("contestant", "records", "codec", "saturation", "to_guide")]
    return Part(
        key="path",
        title=words("path_title"),
        finding=words.sentence(ours or [words("finding_not_measured")]),
        table=_table(columns, rows, left=(0, 1, 2)),
    )


def _overhead(key: str, station: str, cases: Sequence[_Json], look: Mapping[str, plots.Look], words: Words) -> Part:
    batches_of: dict[int, set[int]] = {}
    for case in cases:
        batches_of.setdefault(case["stations"], set()).add(case["batches"])
    fewest = min(case["batches"] for case in cases)
    usual = max(batches_of, key=lambda stations: (len(batches_of[stations]), stations))
    names = sorted({case["contestant"] for case in cases}, key=lambda name: (not is_ours(name), name))
    costs = [
        plots.Cost(
            name,
            [(c["stations"], c["us_median"]) for c in cases if c["contestant"] == name and c["batches"] == fewest],
            [(c["batches"], c["us_median"]) for c in cases if c["contestant"] == name and c["stations"] == usual],
        )
        for name in names
    ]
    shapes = sorted({(case["batches"] != fewest, case["stations"], case["batches"]) for case in cases})
    cell = {(case["contestant"], case["stations"], case["batches"]): _cost(case) for case in cases}
    rows = [[name, *(cell.get((name, *shape[1:]), "") for shape in shapes)] for name in names]
    columns = [
        words("shape" if batches == 1 else "shape_of_many", stations=f"{stations:,}", batches=f"{batches:,}")
        for _, stations, batches in shapes
    ]
    return Part(
        key=key,
        title=words("overhead_kind", kind=words.term(station)),
        headline=True,
        finding=_overhead_finding(station, cases, fewest, words),
        figure=plots.overhead(costs, look, words),
        alt=words("overhead_alt", names=", ".join(names)),
        table=_table([words("col_contestant"), *columns], rows, note=words("note_cost")),
    )


def _cost(case: _Json) -> str:
    lost = f" !{case['answers_lost']:,}" if case.get("answers_lost") else ""
    ratio = f" ({case['ratio']:.2f}x)" if case.get("ratio") is not None else ""
    return brief(case["us_median"]) + ratio + lost


def _overhead_finding(station: str, cases: Sequence[_Json], fewest: int, words: Words) -> str:
    ours = [case for case in cases if is_ours(case["contestant"]) and case["batches"] == fewest]
    if not ours:
        return words.sentence([words("finding_not_measured")])
    mine = max(ours, key=lambda case: (case["stations"], case["contestant"] == plots.OURS))
    beside = {
        case["contestant"]: case
        for case in cases
        if (case["stations"], case["batches"]) == (mine["stations"], fewest) and not is_ours(case["contestant"])
    }
    parts = [
        words(
            "finding_cost",
            kind=words.term(station),
            stations=f"{mine['stations']:,}",
            us=brief(mine["us_median"]),
        )
    ]
    if _BARE in beside:
        ratio = mine.get("ratio") or mine["us_median"] / beside[_BARE]["us_median"]
        parts.append(
            words("finding_cost_rival", ratio=f"{ratio:.2f}", rival=_BARE, us=brief(beside[_BARE]["us_median"]))
        )
    if beside:
        rival = min(beside.values(), key=lambda case: case["us_median"])
        cheaper = rival["us_median"] < mine["us_median"]
        parts.append(
            words(
                "finding_cheaper" if cheaper else "finding_cheapest",
                rival=rival["contestant"],
                us=brief(rival["us_median"]),
            )
        )
    few = min((case for case in ours if case["contestant"] == mine["contestant"]), key=lambda case: case["stations"])
    if few is not mine:
        parts.append(words("finding_cost_of_few", stations=f"{few['stations']:,}", us=brief(few["us_median"])))
    return words.sentence(parts)


def _soak(number: int, case: _Json, words: Words) -> Part:
    intervals = case["intervals"]
    rows = [
        [each["t"], each["samples"], each["p50_ms"], each["p99_ms"], each["max_ms"]]
        for each in intervals
        if each.get("p50_ms") is not None and each.get("p99_ms") is not None
    ]
    finding = _time_finding(rows, words) if rows else ""
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
        figure=plots.over_time(rows, words) if len(rows) >= _INTERVALS_AT_LEAST else None,
        alt=words("time_alt"),
        table=_table([words(f"col_{name}") for name in ("counted", "first", "most", "last")], counted),
    )


# HTML.

_CSS: Final = """
:root{--ink:#23272e;--quiet:#646b76;--line:#e3e6ea;--ours:#0072b2;--bad:#b3400a}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:2rem 1.25rem 4rem;background:#fff;color:var(--ink);line-height:1.5;
font-family:system-ui,-apple-system,"Segoe UI","PingFang SC","Microsoft YaHei","Noto Sans CJK SC",sans-serif}
h1{font-size:1.7rem;margin:0 0 .25rem}h2{font-size:1.3rem;margin:3rem 0 .25rem;padding-top:1rem;
border-top:2px solid var(--line)}h3{font-size:1.05rem;margin:0 0 .25rem}
p{margin:.25rem 0 .75rem;max-width:48rem}.lead{color:var(--quiet)}
a{color:var(--ours)}nav{margin:1rem 0}nav a{display:inline-block;margin-right:1.1rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:1rem 0;font-size:.9rem}
dt{color:var(--quiet)}dd{margin:0}
.box{background:#f6f8fa;border-radius:.5rem;padding:.9rem 1.1rem;margin:1rem 0}.box h2{border:0;margin:0;padding:0;
font-size:1.05rem}.box ul{margin:.4rem 0 0;padding-left:1.1rem}.box li{margin:.25rem 0;max-width:60rem}
.rough{border-left:4px solid var(--bad)}
.parts{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:0 1.75rem}
article{grid-column:1/-1;display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:.25rem 1.75rem;
margin:.9rem 0 1.1rem;align-items:start}
article>header{grid-column:1/-1}article.wide,article.half{display:block}article.half{grid-column:auto}
.finding{border-left:3px solid var(--ours);padding-left:.75rem;margin:.35rem 0 .75rem;max-width:60rem}
.finding.is-bad{border-color:var(--bad)}
figure{margin:0;max-width:38rem}figure svg{width:100%;height:auto;display:block}
figure svg text{font-family:inherit!important}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th{color:var(--quiet);font-weight:600;text-align:right;border-bottom:1px solid #c9ced6;vertical-align:bottom}
th,td{padding:.22rem .6rem .22rem 0}td{text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
.l{text-align:left}tr.ours td{font-weight:600}.note{font-size:.8rem;color:var(--quiet)}
.bad{background:#fdeee6;color:var(--bad);border-radius:.25rem;padding:0 .35rem;font-weight:600;font-size:.85em}
code{font-size:.92em;background:#f1f3f5;padding:.1em .3em;border-radius:.2rem}
@media(max-width:52rem){body{padding:1rem .8rem 3rem}.parts,article{display:block}figure{margin-bottom:.75rem}
dl{grid-template-columns:1fr;gap:0}dt{margin-top:.35rem}}
@media print{body{max-width:none;padding:0;font-size:10pt}nav{display:none}article,figure,tr{break-inside:avoid}
h2,h3{break-after:avoid}.scroll{overflow:visible}td{white-space:normal}a{color:inherit;text-decoration:none}}
"""


def _page(loaded: Sequence[_Json], sections: Sequence[_Section], words: Words) -> str:
    language = "zh-CN" if words.language == "zh" else "en"
    title = escape(words("title"))
    return (
        f'<!DOCTYPE html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f'<h1>{title}</h1>\n<p class="lead">{escape(words("lead"))}</p>\n'
        + "".join([*_header(loaded, words), *_in_short(sections, words), *_how(loaded, words)])
        + "<main>\n"
        + "".join(part for section in sections for part in _section(section, words))
        + f"</main>\n{_sources(loaded, words)}</body>\n</html>\n"
    )


def _header(loaded: Sequence[_Json], words: Words) -> Iterator[str]:
    facts = loaded[0]["environment"]
    machine = [
        str(facts.get("system", "")),
        str(facts.get("cpu") or ""),
        words("cpus", cpus=facts.get("cpus")),
        words("governor", governor=governor) if (governor := facts.get("governor", "unknown")) != "unknown" else "",
        words("load", load=f"{facts.get('load', 0):g}"),
    ]
    versions = {name: facts.get(key) for name, key in (("Python", "python"), ("trio", "trio"), ("trioagg", "trioagg"))}
    versions |= facts.get("packages") or {}
    brokers = sorted({str(case["broker"]) for case in _cases(loaded, "pipeline")} - {"none"})
    told = {
        "machine": ", ".join(filter(None, machine)),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "broker": ", ".join(brokers),
        "date": str(loaded[0].get("began", ""))[:16].replace("T", " ") + " UTC",
        "revision": ", ".join(sorted({str(result["environment"].get("revision") or "–") for result in loaded})),
        "noise": words("noise", **_noise(loaded)),
    }
    yield "<dl>"
    for name, fact in told.items():
        if fact:
            yield f"<dt>{escape(words(f'fact_{name}'))}</dt><dd>{escape(fact)}</dd>"
    yield "</dl>\n"
    if any(result.get("quick") for result in loaded):
        yield f'<p class="box rough">{escape(words("quick"))}</p>\n'


def _noise(loaded: Sequence[_Json]) -> dict[str, str]:
    """Of the worst of the runs: a report's floor is where its highest one is."""
    return {
        which: brief(max(result["environment"].get(f"wakes_late_{which}_ms", 0.0) for result in loaded))
        for which in ("p50", "p99")
    }


def _in_short(sections: Sequence[_Section], words: Words) -> Iterator[str]:
    """What is to be remembered of each section, and whatever is bad."""
    yield f'<section class="box"><h2>{escape(words("in_short"))}</h2><ul>\n'
    for section in sections:
        said = [part for part in section.parts if part.headline or part.bad]
        if said:
            findings = " ".join(part.finding for part in said)
            link = f'<a href="#{section.key}-section">{escape(section.title)}</a>'
            yield f"<li>{link}{words('colon')}{escape(findings)}</li>\n"
    yield "</ul></section>\n"


def _how(loaded: Sequence[_Json], words: Words) -> Iterator[str]:
    yield f'<section class="box"><h2>{escape(words("how_title"))}</h2><ul>\n'
    for number in range(1, 6):
        yield f"<li>{words(f'how_{number}', beyond=histograms.BEYOND, **_noise(loaded))}</li>\n"
    yield "</ul></section>\n"


def _section(section: _Section, words: Words) -> Iterator[str]:
    yield f'<section>\n<h2 id="{section.key}-section">{escape(section.title)}</h2>\n'
    if section.lead:
        yield f'<p class="lead">{escape(section.lead)}</p>\n'
    yield '<div class="parts">\n'
    for part in section.parts:
        wide = (
            ""
            if part.figure is not None and part.table
            else ' class="half"'
            if part.figure is not None
            else ' class="wide"'
        )
        bad = " is-bad" if part.bad else ""
        yield f'<article{wide} id="{part.key}">\n<header><h3>{escape(part.title)}</h3>'
        yield f'<p class="finding{bad}">{escape(part.finding)}</p></header>\n'
        if part.figure is not None:
            note = f'<figcaption class="note">{escape(part.note)}</figcaption>' if part.note else ""
            drawn = plots.svg(part.figure, f"{part.key}-plot", part.title, f"{part.alt} {part.finding}")
            yield f"<figure>{drawn}{note}</figure>\n"
        if part.table:
            yield part.table
        yield "</article>\n"
    yield "</div>\n</section>\n"


def _sources(loaded: Sequence[_Json], words: Words) -> str:
    rows = [
        [
            "result.json" if result["place"] == "." else f"{result['place']}/result.json",
            str(result.get("command", "")) + (" --quick" if result.get("quick") else ""),
            str(result.get("began", ""))[:19].replace("T", " "),
            str(result["environment"].get("python", "")),
            str(result["environment"].get("revision") or "–"),
        ]
        for result in loaded
    ]
    columns = [words("col_file"), words("col_command"), words("col_date"), "Python", words("fact_revision")]
    table = _table(columns, rows, left=range(len(columns)))
    return f"<section><h2>{escape(words('made_from'))}</h2>{table}</section>\n"


def _table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: Container[int] = (0,), note: str = ""
) -> _Html:
    """Some columns are words, the others are figures."""

    def cell(tag: str, number: int, text: str) -> str:
        aligned = ' class="l"' if number in left else ""
        return f"<{tag}{aligned}>{text if isinstance(text, _Html) else escape(text)}</{tag}>"

    head = "".join(cell("th", number, column) for number, column in enumerate(columns))
    body = "".join(
        f"<tr{' class=' + chr(34) + 'ours' + chr(34) if is_ours(row[0]) else ''}>"
        + "".join(cell("td", number, text) for number, text in enumerate(row))
        + "</tr>\n"
        for row in rows
    )
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return _Html(
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>{said}</div>\n'
    )
