"""The plots of the report: figures in, a matplotlib ``Figure`` out, and that as an SVG.  Nothing here reads a file.

matplotlib is imported where it is used: ``python -m bench --help`` needs none.  pyplot is not used, and the style is in
force only while something is drawn or written: there is no global state.
"""

from __future__ import annotations

import io
import math
import re
import sys
import warnings
from bisect import bisect_left
from contextlib import contextmanager
from html import escape
from itertools import accumulate, cycle, pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from . import histograms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .words import Words

OURS: Final = "trioagg"
STALL: Final = 5.0
"""An interval stalled whose worst is so many times the usual p99."""
CELLS: Final = 60
"""Of the heat map, each way, at most."""

_OUR_COLOUR: Final = "#0072B2"
_OUR_COLOURS: Final = (_OUR_COLOUR, "#12304F", "#5B5BB5")
_OUR_MARKERS: Final = ("o", "p", "h")
# Okabe and Ito's, without the yellow, which is too pale on white; the shapes tell them apart without any colour.
_COLOURS: Final = ("#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#6B6B6B", "#8C6D31", "#7A0F45")
_MARKERS: Final = ("s", "^", "D", "v", "P", "X", "<", ">")
_QUIET, _INK, _WARN = "#8a8f98", "#2b2f36", "#D55E00"
_FONTS: Final = (
    "system-ui, -apple-system, 'Segoe UI', 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', 'DejaVu Sans', "
    "sans-serif"
)
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _QUIET,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8ec",
    "grid.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.handlelength": 2.4,
}
_POINTS_OF_A_CURVE: Final = 120
_NINES: Final = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
_FAINT: Final = ((0, (1, 1.2)), (0, (4, 1.5)), (0, (6, 1.5, 1, 1.5)))
_LEGEND_LINE: Final = 0.18
_IN_SIGHT: Final = 12
"""A deadline is drawn to scale if it is at most so many times the slowest."""


def require() -> None:
    """Exits, with a sentence that says what to do, if there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401 - only to say early and clearly that it is missing
    except ModuleNotFoundError as error:
        sys.exit(f"the report needs {error.name}: pip install '.[bench]'")


class Look(NamedTuple):
    """Of one contestant, the same in all plots of a report."""

    colour: str
    marker: str
    width: float


def looks(names: Iterable[str]) -> dict[str, Look]:
    """trioagg's line is the strongest, and what else is ours has one of its blues; the others in their order."""
    everybody = sorted(dict.fromkeys(names), key=lambda name: not is_ours(name))
    ours = [name for name in everybody if is_ours(name)]
    told = {
        name: Look(
            _OUR_COLOURS[number % len(_OUR_COLOURS)], _OUR_MARKERS[number % len(_OUR_MARKERS)], 2.0 if number else 2.8
        )
        for number, name in enumerate(ours)
    }
    for number, name in enumerate(everybody[len(ours) :]):
        # Beyond the colours they come again, with other shapes.
        marker = _MARKERS[(number + number // len(_COLOURS)) % len(_MARKERS)]
        told[name] = Look(_COLOURS[number % len(_COLOURS)], marker, 1.5)
    return told


def is_ours(name: str) -> bool:
    """Whether this is trioagg, or a way of using it, or a run of it from a certain directory."""
    return name == OURS or name.startswith(f"{OURS} ")


def stalled(rows: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """The intervals whose max is far above the usual p99.  A row is begin, samples, p50, p99, max."""
    usual = sorted(row[3] for row in rows)[len(rows) // 2] if rows else 0.0
    return [row for row in rows if row[4] > STALL * usual]


class Curve(NamedTuple):
    """One distribution of latencies."""

    name: str
    label: str
    histogram: Any
    faint: bool = False
    """Another load of a contestant whose main curve is there too."""


def percentiles(curves: Sequence[Curve], deadline_ms: float, look: Mapping[str, Look], words: Words) -> Figure:
    """Latency against 1 / (1 - p): every nine is as wide as the one before it."""
    with _style():
        figure, axes = _one()
        axes.set(xscale="log", yscale="log")
        furthest = 10.0
        slowest = 0.0
        dashes = cycle(_FAINT)
        for curve in curves:
            xs, ys = quantiles(curve.histogram)
            mine = look[curve.name]
            axes.plot(
                xs,
                ys,
                color=mine.colour,
                label=curve.label,
                linewidth=1.2 if curve.faint else mine.width,
                linestyle=next(dashes) if curve.faint else "-",
                zorder=3 if is_ours(curve.name) else 2,
            )
            furthest, slowest = max(furthest, xs[-1]), max(slowest, ys[-1])
        ticks = [nine for nine in _NINES if 100 / (100 - nine) <= furthest]
        axes.set_xticks([100 / (100 - nine) for nine in ticks], [f"{nine:g} %" for nine in ticks])
        axes.set_xlim(1, furthest * 1.1)
        axes.set(xlabel=words("axis_percentile"), ylabel=words("axis_latency"))
        _plain(axes.yaxis)
        if deadline_ms <= slowest * _IN_SIGHT:
            axes.axhline(deadline_ms, color=_INK, linestyle="--", linewidth=1)
            _note(axes, words("deadline_here", ms=brief(deadline_ms)), 1.0, deadline_ms, on_axis=True)
        else:
            axes.set_ylim(top=2 * slowest)
            _note(axes, words("deadline_above", ms=brief(deadline_ms), times=brief(deadline_ms / slowest)), 1.0, 1.0)
        _legend(figure, axes)
        return figure


def quantiles(histogram: Any) -> tuple[list[float], list[float]]:
    """1 / (1 - p) and milliseconds, up to the last percentile that the samples can hold."""
    counts = histograms.counts(histogram)
    upto = list(accumulate(count for _, count in counts))
    samples = upto[-1]
    last = max(1.0, samples / histograms.BEYOND)
    xs = [last ** (number / _POINTS_OF_A_CURVE) for number in range(_POINTS_OF_A_CURVE + 1)]
    ys = [counts[min(len(counts) - 1, bisect_left(upto, samples * (1 - 1 / x)))][0] for x in xs]
    return xs, ys


def over_time(rows: Sequence[Sequence[float]], words: Words) -> Figure:
    """p50, p99 and max of each interval; the stalls stand out."""
    with _style():
        figure, axes = _one()
        axes.set(yscale="log", xlabel=words("axis_seconds"), ylabel=words("axis_latency"))
        times = [row[0] for row in rows]
        axes.fill_between(
            times, [row[2] for row in rows], [row[3] for row in rows], color=_OUR_COLOUR, alpha=0.12, lw=0
        )
        axes.plot(times, [row[2] for row in rows], color=_OUR_COLOUR, linewidth=2.4, label="p50")
        axes.plot(times, [row[3] for row in rows], color=_OUR_COLOUR, linewidth=1.3, linestyle="--", label="p99")
        axes.plot(times, [row[4] for row in rows], color=_QUIET, linewidth=1, label=words("max"))
        if stalls := stalled(rows):
            width = min((later - sooner for sooner, later in pairwise(times)), default=1.0)
            for row in stalls:
                axes.axvspan(row[0] - width / 2, row[0] + width / 2, color=_WARN, alpha=0.14, lw=0)
            axes.plot(
                [row[0] for row in stalls],
                [row[4] for row in stalls],
                "o",
                color=_WARN,
                markersize=6,
                label=words("stall"),
            )
        _plain(axes.yaxis)
        _legend(figure, axes, columns=4)
        return figure


class Stage(NamedTuple):
    """What one stage of a batch takes, in milliseconds."""

    name: str
    mean: float
    p99: float | None


def waterfall(stages: Sequence[Stage], words: Words) -> Figure:
    """The means one after the other, as a batch passes through; the p99 beside them, each on its own."""
    with _style():
        figure = _figure(1.0 + 0.33 * len(stages))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        whole = sum(stage.mean for stage in stages)
        begin = 0.0
        for number, stage in enumerate(stages):
            colour = _QUIET if stage.name == "stations" else _OUR_COLOUR
            left.barh(number, stage.mean, left=begin, color=colour, height=0.62)
            beyond = begin + stage.mean
            before = beyond > 0.7 * whole and begin > 0.3 * whole
            left.annotate(
                brief(stage.mean),
                (begin if before else beyond, number),
                xytext=(-4 if before else 4, 0),
                textcoords="offset points",
                ha="right" if before else "left",
                va="center",
                fontsize=9,
            )
            begin = beyond
            if not stage.mean:
                continue  # it took no time, which is nowhere on a scale of logarithms
            if stage.p99 is not None:
                right.plot([stage.mean, stage.p99], [number, number], color=colour, linewidth=1.6)
                right.plot([stage.p99], [number], "|", color=colour, markersize=11, markeredgewidth=2.2)
            right.plot([stage.mean], [number], "o", color=colour, markersize=5)
        left.set_yticks(range(len(stages)), [words.term(stage.name) for stage in stages])
        left.set_ylim(len(stages) - 0.5, -0.5)
        left.set_xlim(0, whole * 1.02 or 1.0)
        left.set_xlabel(words("axis_mean_stages"))
        right.set(xscale="log", xlabel=words("axis_mean_p99"))
        _plain(right.xaxis, most=3)
        for axes in (left, right):
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
        return figure


class Rate(NamedTuple):
    """The latency at one rate of messages; in milliseconds."""

    per_second: float
    p50: float | None
    p99: float | None
    valid: bool


class LoadCurve(NamedTuple):
    """One contestant from idle to saturated."""

    name: str
    rates: Sequence[Rate]
    saturation: float | None


def load_curves(curves: Sequence[LoadCurve], look: Mapping[str, Look], words: Words) -> Figure:
    """The hockey stick: flat while there is room, and then not."""
    with _style():
        figure, axes = _one(height=3.6)
        axes.set(xscale="log", yscale="log", xlabel=words("axis_rate"), ylabel=words("axis_p50_p99"))
        for curve in curves:
            mine = look[curve.name]
            for line, wanted in (("-", "p50"), ("--", "p99")):
                told = [(rate.per_second, getattr(rate, wanted), rate.valid) for rate in curve.rates]
                told = [(rate, ms, valid) for rate, ms, valid in told if ms is not None]
                axes.plot(
                    [rate for rate, _, _ in told],
                    [ms for _, ms, _ in told],
                    linestyle=line,
                    color=mine.colour,
                    marker=mine.marker if wanted == "p50" else None,
                    markersize=5 if is_ours(curve.name) else 4,
                    linewidth=mine.width if wanted == "p50" else mine.width * 0.6,
                    zorder=3 if is_ours(curve.name) else 2,
                    label=curve.name if wanted == "p50" else None,
                )
                bad = [(rate, ms) for rate, ms, valid in told if not valid]
                axes.plot(*zip(*bad, strict=True), "x", color=_WARN, markersize=10, zorder=4) if bad else None
            if curve.saturation is not None:
                axes.axvline(curve.saturation, color=mine.colour, linestyle=":", linewidth=1.4)
        _plain(axes.xaxis)
        _plain(axes.yaxis)
        _legend(figure, axes)
        return figure


class Model(NamedTuple):
    """How many stations make it: pairs of deadline in seconds and share, and the one that is recommended."""

    name: str
    answered: Sequence[tuple[float, float]]
    recommended: tuple[float, float] | None


def deadlines(models: Sequence[Model], words: Words) -> Figure:
    """The recommended deadline is ringed."""
    with _style():
        figure, axes = _one()
        axes.set(xscale="log", xlabel=words("axis_deadline"), ylabel=words("axis_answered"))
        axes.axhline(100, color=_QUIET, linewidth=0.8)
        for number, model in enumerate(models):
            colour = (_OUR_COLOUR, *_COLOURS)[number % 8]
            axes.plot(
                [seconds for seconds, _ in model.answered],
                [100 * share for _, share in model.answered],
                color=colour,
                marker=("o", *_MARKERS)[number % 8],
                markersize=4,
                linewidth=1.8,
                label=words.term(model.name),
            )
            if model.recommended:
                seconds, share = model.recommended
                axes.plot([seconds], [100 * share], "o", markersize=15, markerfacecolor="none", color=colour, mew=2)
                axes.annotate(
                    f"{seconds:g} s",
                    (seconds, 100 * share),
                    xytext=(0, -18),
                    textcoords="offset points",
                    ha="center",
                    color=colour,
                    weight="bold",
                )
        told = sorted({seconds for model in models for seconds, _ in model.answered})
        axes.set_xticks(told, [f"{seconds:g}" for seconds in told])
        axes.minorticks_off()
        axes.set_ylim(top=103)
        _legend(figure, axes)
        return figure


class Cost(NamedTuple):
    """What a station costs one contestant: pairs of a number (stations, or batches in flight) and microseconds."""

    name: str
    by_stations: Sequence[tuple[float, float]]
    by_batches: Sequence[tuple[float, float]]


def overhead(costs: Sequence[Cost], look: Mapping[str, Look], words: Words) -> Figure:
    """Microseconds a station; log-log.  The second panel is there if anybody was measured with several batches."""
    with _style():
        figure = _figure(3.3)
        two = any(len(cost.by_batches) > 1 for cost in costs)
        panels: Sequence[Axes] = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True) if two else [figure.subplots()]
        for axes, label in zip(panels, ("axis_stations", "axis_batches"), strict=False):
            axes.set(xscale="log", yscale="log", xlabel=words(label))
            seen = set()
            for cost in costs:
                mine = look[cost.name]
                points = sorted(cost.by_stations if axes is panels[0] else cost.by_batches)
                seen |= {number for number, _ in points}
                axes.plot(
                    [number for number, _ in points],
                    [us for _, us in points],
                    color=mine.colour,
                    marker=mine.marker,
                    markersize=5,
                    linewidth=mine.width,
                    zorder=3 if is_ours(cost.name) else 2,
                    label=cost.name,
                )
            axes.set_xticks(sorted(seen), [f"{number:g}" for number in sorted(seen)])
            axes.minorticks_off()
            _plain(axes.yaxis)
        panels[0].set_ylabel(words("axis_us"))
        _legend(figure, panels[0])
        return figure


class Lateness(NamedTuple):
    """The largest of each cell: rows are stations, the latest first; None where nobody was looked at."""

    stations: Sequence[str]
    cells: Sequence[Sequence[float | None]]
    seconds: float


def lateness(samples: Iterable[tuple[str, float, float]]) -> Lateness:
    """Sort samples of station, seconds and milliseconds into the cells of a heat map."""
    told = list(samples)
    worst: dict[str, float] = {}
    for station, _, ms in told:
        worst[station] = max(worst.get(station, 0.0), ms)
    stations = sorted(worst, key=lambda station: (-worst[station], station))[:CELLS]
    row_of = {station: number for number, station in enumerate(stations)}
    seconds = max((second for _, second, _ in told), default=0.0) or 1.0
    columns = min(CELLS, max(1, len({second for _, second, _ in told}) // 2))
    cells: list[list[float | None]] = [[None] * columns for _ in stations]
    for station, second, ms in told:
        if station in row_of:
            row, column = cells[row_of[station]], min(columns - 1, int(second / seconds * columns))
            row[column] = max(row[column] or 0.0, ms)
    return Lateness(stations, cells, seconds)


def heat_map(late: Lateness, deadline_ms: float, words: Words) -> Figure:
    """Station by time; the top of the scale is the deadline."""
    with _style():
        from matplotlib.colors import LogNorm

        figure = _figure(max(2.8, 1.2 + 0.055 * len(late.stations)))
        axes = figure.subplots()
        told = [ms for row in late.cells for ms in row if ms is not None]
        lowest = max(0.01, min(min(told), deadline_ms / 10))
        image = axes.imshow(
            [[math.nan if ms is None else max(ms, lowest) for ms in row] for row in late.cells],
            norm=LogNorm(lowest, deadline_ms, clip=True),
            cmap="cividis",
            aspect="auto",
            interpolation="nearest",
            extent=(0, late.seconds, len(late.stations) - 0.5, -0.5),
        )
        every = max(1, math.ceil(len(late.stations) / 12))
        axes.set_yticks(range(0, len(late.stations), every), late.stations[::every], fontsize=8)
        axes.set(xlabel=words("axis_seconds"))
        axes.grid(visible=False)
        axes.set_facecolor("#f1f2f4")
        bar = figure.colorbar(image, ax=axes, label=words("axis_heat"), pad=0.02)
        ticks = [tick for tick in bar.get_ticks() if lowest <= tick < deadline_ms * 0.7]
        bar.set_ticks([*ticks, deadline_ms], labels=[*map(brief, ticks), brief(deadline_ms)])
        bar.minorticks_off()
        return figure


class Together(NamedTuple):
    """How late lists were whose batches ended at once; milliseconds after the deadline."""

    batches: int
    what: str
    p50: float
    p99: float | None
    max: float


def overshoot(curves: Sequence[tuple[str, Any]], together: Sequence[Together], words: Words) -> Figure:
    """Above: the share of lists that were later than so much.  Below: many deadlines at once."""
    with _style():
        figure = _figure((2.9 if curves else 0) + (0.9 + 0.27 * len(together) if together else 0))
        heights = [2.9] * bool(curves) + [0.9 + 0.27 * len(together)] * bool(together)
        panels = list(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
        if curves:
            _beyond(panels.pop(0), curves, words)
        if together:
            _at_once(panels.pop(0), together, words)
        return figure


def _beyond(axes: Axes, curves: Sequence[tuple[str, Any]], words: Words) -> None:
    for number, (name, histogram) in enumerate(curves):
        xs, ys = quantiles(histogram)
        axes.plot(ys, [100 / x for x in xs], color=(_OUR_COLOUR, *_COLOURS)[number % 8], linewidth=2, label=name)
    axes.set(xscale="log", yscale="log", xlabel=words("axis_overshoot"), ylabel=words("axis_still_open"))
    _plain(axes.xaxis)
    _plain(axes.yaxis)
    axes.legend(loc="lower left", fontsize=9)


def _at_once(axes: Axes, together: Sequence[Together], words: Words) -> None:
    for number, one in enumerate(together):
        colour = _QUIET if one.what == "textbook" else _OUR_COLOUR
        axes.plot([one.p50, one.max], [number, number], color=colour, linewidth=1.4, alpha=0.6)
        axes.plot([one.p50], [number], "o", color=colour, markersize=5)
        if one.p99 is not None:
            axes.plot([one.p99], [number], "|", color=colour, markersize=11, markeredgewidth=2.4)
        axes.plot([one.max], [number], "o", color=colour, markersize=4, markerfacecolor="white")
    names = [words("at_once", number=one.batches, what=words.term(one.what)) for one in together]
    axes.set_yticks(range(len(together)), names, fontsize=9)
    axes.set_ylim(len(together) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set(xscale="log", xlabel=words("axis_at_once"))
    axes.grid(visible=False, axis="y")
    _plain(axes.xaxis)


def brief(number: float) -> str:
    """As many digits as somebody takes in: 0.083, 3.1, 42, 1,234."""
    if number == 0:
        return "0"
    if abs(number) >= 99.5:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 9.95 and number != round(number) else f"{number:.2g}"


def svg(figure: Figure, key: str, title: str, description: str) -> str:
    """To stand in an HTML page beside others.

    Args:
      key: Unique in the page; every id of the drawing begins with it.
    """
    text = _saved(figure, key)
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{key}-", text)
    text = re.sub(r"\s*<style.*?</style>", "", text, flags=re.DOTALL)  # it would hold for the whole page
    said = f'<title id="{key}-t">{escape(title)}</title><desc id="{key}-d">{escape(description)}</desc>'
    return re.sub(
        r"<svg [^>]*>",
        lambda tag: f'{tag[0][:-1]} role="img" aria-labelledby="{key}-t {key}-d">{said}',
        text,
        count=1,
    )


def write(figure: Figure, path: Path) -> None:
    """An SVG file of its own: for a README."""
    path.write_text(_saved(figure, path.stem), encoding="utf-8")


def _saved(figure: Figure, salt: str) -> str:
    text = io.StringIO()
    with _style(salt):
        # Without the metadata the same figures give the same file.
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # The font that matplotlib measured with is not the one that a reader has, let alone for Chinese.
    lines = (line.rstrip() for line in text.getvalue().replace("'DejaVu Sans'", _FONTS).splitlines())
    return "\n".join(lines) + "\n"


@contextmanager
def _style(salt: str = OURS) -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": salt}), warnings.catch_warnings():
        # Chinese is measured with a font that has none of it, and drawn by the reader's browser, which has.
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from", UserWarning)
        yield


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(6.2, height), layout="constrained", dpi=150)


def _one(height: float = 3.3) -> tuple[Figure, Axes]:
    figure = _figure(height)
    return figure, figure.subplots()


def _plain(axis: Any, *, most: int = 20) -> None:
    """Numbers, not powers of ten; and between the decades if there are few of these, and there is room."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    decades = math.log10(high / low) if low > 0 else 0
    axis.set_major_locator(
        LogLocator(subs=(1.0, 2.0, 5.0) if decades < min(2.5, 0.4 * most) else (1.0,), numticks=most)
    )
    axis.set_major_formatter(lambda value, _: brief(value))
    axis.set_minor_formatter(NullFormatter())


def _note(axes: Axes, text: str, x: float, y: float, *, on_axis: bool = False) -> None:
    axes.annotate(
        text,
        (x, y),
        xycoords=("axes fraction", "data") if on_axis else "axes fraction",
        xytext=(-3, -3),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=9,
    )


def _legend(figure: Figure, axes: Axes, columns: int = 3) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        lines = math.ceil(len(labels) / columns)
        figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * (lines - 1))
        # Below the plot: inside it the best place would be another one in every report.
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), fontsize=9)
