"""Has anything become slower?    python -m bench compare before/result.json after/result.json

Every figure that both results have is compared, as the ratio after / before.  How sure that is comes from a bootstrap
(B. Efron): the repetitions of each side are drawn again and again with replacement, and of each its samples too, so
that both the scatter within a repetition and that from one to the next are in the interval.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from . import histograms, results
from .figures import print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy

    Draw = Callable[[numpy.random.Generator], float]

_RESAMPLES: Final = 400
_CONFIDENCE: Final = 95.0
_PERCENTILES: Final = (50.0, 99.0, 99.9)
_FLOOR_MS: Final = 0.2
"""Less than that is below what a machine that wakes a sleeper so late can tell."""


@dataclass(frozen=True)
class Difference:
    """One figure of one case."""

    case: str
    figure: str
    before: float
    after: float
    ratio: float
    low: float
    high: float
    worse: bool
    """By more than the threshold, however the dice had fallen."""


def main(before: Path, after: Path, *, threshold: float, as_json: bool, seed: int) -> int:
    """Compare, print, and say with which status to exit: 1 if anything is worse.

    Args:
      threshold: How much worse a figure may be: 0.1 is a tenth.
    """
    one, other = results.read(before), results.read(after)
    if one["command"] != other["command"]:
        sys.exit(f"{before} is of {one['command']!r} and {after} of {other['command']!r}: nothing to compare")
    try:
        found = list(differences(one["cases"], other["cases"], threshold=threshold, seed=seed))
    except ModuleNotFoundError as error:
        sys.exit(f"comparing needs {error.name}: pip install '.[bench]'")
    if not found:
        sys.exit("the two have no case in common")
    if as_json:
        for difference in found:
            print(json.dumps(asdict(difference)))
    else:
        _print(one, other, found, threshold)
    return 1 if any(difference.worse for difference in found) else 0


def differences(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], *, threshold: float, seed: int
) -> Iterator[Difference]:
    """Every figure that both have."""
    import numpy

    chance = numpy.random.default_rng(seed)
    ours, theirs = _figures(before), _figures(after)
    for name in (name for name in ours if name in theirs):
        (old, draw_old, ms), (new, draw_new, _) = ours[name], theirs[name]
        if old <= 0:
            continue
        drawn = sorted(draw_new(chance) / max(draw_old(chance), 1e-9) for _ in range(_RESAMPLES))
        tail = (100 - _CONFIDENCE) / 200
        low, high = drawn[round(tail * (_RESAMPLES - 1))], drawn[round((1 - tail) * (_RESAMPLES - 1))]
        matters = not ms or new - old > _FLOOR_MS
        yield Difference(*name, old, new, new / old, low, high, worse=matters and low > 1 + threshold)


_Figure = tuple[float, "Draw", bool]


def _figures(cases: Sequence[dict[str, Any]]) -> dict[tuple[str, str], _Figure]:
    """Case and figure -> its value, a way to draw it again, and whether it is in milliseconds."""
    found: dict[tuple[str, str], _Figure] = {}
    for case in cases:
        if "loads" in case:
            found |= _of_pipeline(case)
        elif "repeats" in case and isinstance(case["repeats"], list):
            name = ", ".join(
                str(case[key]) for key in ("kind", "station", "stations", "batches", "contestant") if key in case
            )
            found[name, "us a station"] = _of_list(case["repeats"])
    return found


def _of_pipeline(case: dict[str, Any]) -> dict[tuple[str, str], _Figure]:
    found: dict[tuple[str, str], _Figure] = {}
    for load in case["loads"]:
        name = f"{case['contestant']}, {100 * load['share']:.0f} %" + (" closed loop" if _is_closed(load) else "")
        repeats = [histograms.counts(histograms.decoded(one["latency"])) for one in load["repeats"]]
        samples = sum(count for repeat in repeats for _, count in repeat)
        for percent in _PERCENTILES:
            if histograms.holds(samples, percent):
                found[name, f"p{percent:g}, ms"] = _of_histograms(repeats, percent)
        worst = [repeat[-1][0] for repeat in repeats if repeat]
        found[name, "max of a repetition, ms"] = _of_list(worst, ms=True)
    return found


def _is_closed(load: dict[str, Any]) -> bool:
    return any(one["closed_loop"] for one in load["repeats"])


def _of_list(values: Sequence[float], *, ms: bool = False) -> _Figure:
    import numpy

    array = numpy.array(values, dtype=float)
    return float(numpy.median(array)), lambda chance: float(numpy.median(chance.choice(array, len(array)))), ms


def _of_histograms(repeats: Sequence[list[tuple[float, int]]], percent: float) -> _Figure:
    import numpy

    values = numpy.array(sorted({value for repeat in repeats for value, _ in repeat}))
    place = {value: number for number, value in enumerate(values)}
    table = numpy.zeros((len(repeats), len(values)), dtype=numpy.int64)
    for row, repeat in zip(table, repeats, strict=True):
        for value, count in repeat:
            row[place[value]] = count

    def percentile(counts: numpy.ndarray[Any, Any]) -> float:
        running = counts.cumsum()
        return float(values[int(numpy.searchsorted(running, running[-1] * percent / 100))])

    def draw(chance: numpy.random.Generator) -> float:
        rows = table[chance.integers(0, len(table), len(table))]
        counts = sum((chance.multinomial(row.sum(), row / row.sum()) for row in rows if row.sum()), table[0] * 0)
        return percentile(counts)

    return percentile(table.sum(axis=0)), draw, True


def _print(before: dict[str, Any], after: dict[str, Any], found: Sequence[Difference], threshold: float) -> None:
    worse = [difference for difference in found if difference.worse]
    print_table(
        f"{before['environment']['revision']} -> {after['environment']['revision']}: after / before",
        ["case", "figure", "before", "after", "ratio", f"{_CONFIDENCE:g} % of the resamples", ""],
        [
            [
                one.case,
                one.figure,
                f"{one.before:.2f}",
                f"{one.after:.2f}",
                f"{one.ratio:.2f}",
                f"{one.low:.2f} - {one.high:.2f}",
                "WORSE" if one.worse else "better" if one.high < 1 - threshold else "",
            ]
            for one in found
        ],
        f"WORSE: by more than {100 * threshold:g} % even at the lower end of that interval.  "
        + (f"{len(worse)} of {len(found)} figures are." if worse else "None is."),
    )
    for name in ("cpu", "python", "cpus"):
        if before["environment"].get(name) != after["environment"].get(name):
            print(f"Not the same {name}: {before['environment'].get(name)} and {after['environment'].get(name)}")
