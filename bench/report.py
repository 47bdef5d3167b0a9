"""What do the results say?    python -m bench report DIR

Every ``result.json`` below a directory becomes one HTML file: no script, nothing from elsewhere, fit for print and for
a phone.  A sentence beside each plot says what is to be seen in it, with figures of these results; where a plot has no
data, a sentence says which command makes them.

Here is which sections there are, and from which cases; what is in them is in the ``report_*`` modules.
"""

from __future__ import annotations

import sys
from html import escape
from typing import TYPE_CHECKING, Any, Final

from . import histograms, plots, results
from .page import Part, Section, in_short, page, section_of, table
from .plots import brief
from .report_books import lost_part, validity_part
from .report_deadlines import overshoot_parts, timeouts_parts
from .report_fanout import as_of_fanout, overhead_parts
from .report_hardship import delivery_part, faults_part, fuzz_part, soak_part
from .report_inside import heat_part, over_time_part, waterfall_part
from .report_load import load_part, percentiles_part
from .scenarios import cases_of, floor_ms, scenarios_of
from .words import Language, Words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from .scenarios import Json, Scenario

_OF_A_SCENARIO: Final = ("load", "percentiles", "waterfall", "time", "heat")
_HARDSHIPS: Final = {"delivery": delivery_part, "faults": faults_part, "fuzz": fuzz_part}


def main(directory: Path, *, lang: Language, out: Path | None) -> Path:
    """Write the report, print where it is, and return that.

    Exits, with a sentence that says why, if there is no result or no matplotlib.
    """
    plots.require()
    words = Words(lang)
    loaded = _load(directory, words)
    path = out or directory / "report.html"
    path.write_text(page(words("title"), _body(loaded, _sections(loaded, words), words), words), encoding="utf-8")
    print(path)
    return path


def figures(directory: Path, *, lang: Language = "en") -> dict[str, Figure]:
    """The plots by their keys, for those who want one by itself: see :func:`bench.plots.write`."""
    plots.require()
    words = Words(lang)
    sections = _sections(_load(directory, words), words)
    return {part.key: part.figure for section in sections for part in section.parts if part.figure is not None}


def _load(directory: Path, words: Words) -> list[dict[str, Any]]:
    found = [
        {**results.read(path), "place": path.parent.relative_to(directory).as_posix()}
        for path in sorted(directory.rglob(results.NAME))
    ]
    if not found:
        sys.exit(words("nothing", directory=directory))
    return found


def _sections(loaded: Sequence[Json], words: Words) -> list[Section]:
    scenarios = scenarios_of(loaded)
    costs = cases_of(loaded, "fanout") or as_of_fanout(cases_of(loaded, "core"))
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
        sections.append(Section(key="pipeline", title=words("pipeline_title"), parts=lacking))
    soak = [soak_part(number, case, words) for number, case in enumerate(cases_of(loaded, "soak"), 1)]
    general: list[tuple[str, str, str, list[Part]]] = [
        ("overshoot", "overshoot_title", "deadline", overshoot_parts(scenarios, cases_of(loaded, "deadline"), words)),
        ("timeouts", "timeouts_title", "timeouts", timeouts_parts(cases_of(loaded, "timeouts"), words)),
        ("overhead", "overhead_title", "fanout", overhead_parts(costs, look, words)),
        ("soak", "soak_section", "soak", soak),
    ]
    for key, title, command, parts in general:
        lead = "" if parts else words("missing", command=_command(command))
        sections.append(Section(key=key, title=words(title), lead=lead, parts=parts))
    hardship = [_hardship(loaded, name, part, words) for name, part in _HARDSHIPS.items()]
    sections.append(Section(key="hardship", title=words("hardship_title"), parts=hardship))
    return sections


def _hardship(loaded: Sequence[Json], name: str, part: Callable[[list[Json], Words], Part], words: Words) -> Part:
    cases = cases_of(loaded, name)
    if cases:
        return part(cases, words)
    return Part(key=name, title=words(f"{name}_title"), finding=words("missing", command=_command(name)))


def _command(name: str) -> str:
    return f"python -m bench {name} --out DIR"


def _scenario_section(scenario: Scenario, look: Mapping[str, plots.Look], words: Words) -> Section:
    workload = scenario.workload
    floor = floor_ms(workload)
    lead = words(
        "workload_line",
        stations=workload["stations"],
        deadline=f"{workload['deadline_seconds']:g}",
        arrivals=words.term(str(workload.get("arrivals", "poisson"))),
    )
    if floor:
        lead += words("workload_floor", floor=brief(floor))
    makers: tuple[Callable[[], Part | None], ...] = (
        lambda: load_part(scenario, look, words),
        lambda: percentiles_part(scenario, floor, look, words),
        lambda: waterfall_part(scenario, words),
        lambda: over_time_part(scenario, words),
        lambda: heat_part(scenario, words),
        lambda: lost_part(scenario, words),
        lambda: validity_part(scenario, words),
    )
    return Section(
        key=scenario.key,
        title=f"{words.term(scenario.title)} · {words.term(scenario.broker)}",
        lead=lead,
        parts=[part for make in makers if (part := make()) is not None],
    )


# Around the sections.


def _body(loaded: Sequence[Json], sections: Sequence[Section], words: Words) -> Iterator[str]:
    yield f'<p class="lead">{escape(words("lead"))}</p>\n'
    yield from _header(loaded, words)
    yield from in_short(sections, words)
    yield from _how(loaded, words)
    yield "<main>\n"
    for section in sections:
        yield from section_of(section, words)
    yield f"</main>\n{_sources(loaded, words)}"


def _header(loaded: Sequence[Json], words: Words) -> Iterator[str]:
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
    brokers = sorted({str(case["broker"]) for case in cases_of(loaded, "pipeline")} - {"none"})
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


def _noise(loaded: Sequence[Json]) -> dict[str, str]:
    """Of the worst of the runs: a report's floor is where its highest one is."""
    return {
        which: brief(max(result["environment"].get(f"wakes_late_{which}_ms", 0.0) for result in loaded))
        for which in ("p50", "p99")
    }


def _how(loaded: Sequence[Json], words: Words) -> Iterator[str]:
    yield f'<section class="box"><h2>{escape(words("how_title"))}</h2><ul>\n'
    for number in range(1, 6):
        yield f"<li>{words(f'how_{number}', beyond=histograms.BEYOND, **_noise(loaded))}</li>\n"
    yield "</ul></section>\n"


def _sources(loaded: Sequence[Json], words: Words) -> str:
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
    files = table(columns, rows, left=range(len(columns)))
    return f"<section><h2>{escape(words('made_from'))}</h2>{files}</section>\n"
