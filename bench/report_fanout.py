"""What does a station cost, in time and in memory?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from . import plots
from .page import Part, ours_first, table
from .plots import brief, is_ours
from .report_books import count_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .scenarios import Json
    from .words import Words

_BARE: Final = "bare nursery"


def as_of_fanout(cases: Sequence[Json]) -> list[Json]:
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


def overhead_parts(cases: Sequence[Json], look: Mapping[str, plots.Look], words: Words) -> list[Part]:
    """A plot for every kind of station, and tables of what else ``fanout`` measures."""
    by_station: dict[str, list[Json]] = {}
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
                table=table([words(f"col_{name}") for name in ("contestant", "number", "bytes")], rows),
            )
        )
    return parts


def _lost_in_fanout(cases: Sequence[Json], words: Words) -> Part:
    sums: dict[str, list[int]] = {}
    for case in cases:
        of = sums.setdefault(case["contestant"], [0, 0])
        of[0] += count_of(case["answers_lost"])
        of[1] += count_of(case.get("stragglers"))
    bad = {name: of for name, of in sums.items() if any(of)}
    who = [words("lost_and_left", name=name, lost=f"{lost:,}", left=f"{left:,}") for name, (lost, left) in bad.items()]
    rows = [[name, f"{lost:,}", f"{left:,}"] for name, (lost, left) in sorted(sums.items(), key=ours_first)]
    return Part(
        key="overhead-lost",
        title=words("lost_title"),
        finding=words.sentence(who) if who else words("finding_none_lost_or_left"),
        table=table([words(f"col_{name}") for name in ("contestant", "answers_lost", "stragglers")], rows),
        bad=any(is_ours(name) for name in bad),
    )


def _path(cases: Sequence[Json], words: Words) -> Part:
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
        table=table(columns, rows, left=(0, 1, 2)),
    )


def _overhead(key: str, station: str, cases: Sequence[Json], look: Mapping[str, plots.Look], words: Words) -> Part:
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
        table=table([words("col_contestant"), *columns], rows, note=words("note_cost")),
    )


def _cost(case: Json) -> str:
    lost = f" !{case['answers_lost']:,}" if case.get("answers_lost") else ""
    ratio = f" ({case['ratio']:.2f}x)" if case.get("ratio") is not None else ""
    return brief(case["us_median"]) + ratio + lost


def _overhead_finding(station: str, cases: Sequence[Json], fewest: int, words: Words) -> str:
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
