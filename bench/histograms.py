"""Latencies as HdrHistograms: three significant digits from a microsecond to an hour, and no figure that they cannot
hold."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogWriter

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_LARGEST_US: Final = 3_600_000_000
_DIGITS: Final = 3
_PERCENTILES: Final = (50.0, 90.0, 95.0, 99.0, 99.9, 99.99, 99.999)
BEYOND: Final = 5
"""A percentile is only given where at least so many samples lie beyond it."""


def of(nanoseconds: Iterable[int]) -> Any:
    """The histogram of these durations, in microseconds."""
    histogram = HdrHistogram(1, _LARGEST_US, _DIGITS, b64_wrap=True)
    for microseconds, count in Counter(max(1, value // 1000) for value in nanoseconds).items():
        histogram.record_value(min(microseconds, _LARGEST_US), count)
    return histogram


def encoded(histogram: Any) -> str:
    """As text, in the format that HdrHistogram's tools exchange (V2, compressed, base64)."""
    text: bytes = histogram.encode()
    return text.decode()


def decoded(text: str) -> Any:
    """What :func:`encoded` gave."""
    return HdrHistogram.decode(text)


def merged(texts: Iterable[str]) -> Any:
    """All of them in one."""
    whole = HdrHistogram(1, _LARGEST_US, _DIGITS)
    for text in texts:
        whole.add(decoded(text))
    return whole


def counts(histogram: Any) -> list[tuple[float, int]]:
    """Every recorded value in milliseconds, ascending, and how often it was."""
    return [
        (item.value_iterated_to / 1000, item.count_at_value_iterated_to) for item in histogram.get_recorded_iterator()
    ]


def holds(samples: int, percent: float) -> bool:
    """Whether so many samples can tell a percentile."""
    return round(samples * (100 - percent), 6) >= 100 * BEYOND


def summary(histogram: Any) -> dict[str, Any]:
    """In milliseconds: mean, max, and the percentiles that the samples can hold; None for the others."""
    samples = histogram.get_total_count()
    if not samples:
        return {"samples": 0}
    figures: dict[str, Any] = {
        "samples": samples,
        "mean_ms": histogram.get_mean_value() / 1000,
        "max_ms": histogram.get_max_value() / 1000,
    }
    for percent in _PERCENTILES:
        value = histogram.get_value_at_percentile(percent) / 1000 if holds(samples, percent) else None
        figures[f"p{percent:g}_ms"] = value
    return figures


def write_distribution(histogram: Any, path: Path) -> None:
    """A ``.hgrm`` file: the percentile distribution in milliseconds, for the plotters of the HdrHistogram family."""
    with path.open("wb") as out:
        histogram.output_percentile_distribution(out, 1000)


def write_log(intervals: Sequence[tuple[float, float, Any]], path: Path, comment: str) -> None:
    """A ``.hlog`` file: one histogram an interval.

    Args:
      intervals: Begin and end in seconds since the epoch, and the histogram.
    """
    with path.open("w", encoding="utf-8") as out:
        writer = HistogramLogWriter(out)
        writer.output_log_format_version()
        writer.output_comment(comment)
        if intervals:
            writer.output_base_time(intervals[0][0] * 1000)
        writer.output_legend()
        for begin, end, histogram in intervals:
            histogram.set_start_time_stamp(begin * 1000)
            histogram.set_end_time_stamp(end * 1000)
            writer.output_interval_histogram(histogram, max_value_unit_ratio=1000)


def over_time(when_ns: array[int], nanoseconds: array[int], interval_seconds: float) -> list[list[float]]:
    """One row an interval: its begin in seconds, samples, p50, p99 and max in milliseconds.

    The p99 of a short interval is its worst but a few; it is here to be plotted, not to be quoted.
    """
    rows: dict[int, list[int]] = {}
    for when, took in zip(when_ns, nanoseconds, strict=True):
        rows.setdefault(int(when / 1e9 / interval_seconds), []).append(took)
    table = []
    for number, values in sorted(rows.items()):
        values.sort()
        rank = len(values) - 1
        table.append(
            [
                number * interval_seconds,
                len(values),
                *(values[round(rank * share)] / 1e6 for share in (0.5, 0.99, 1.0)),
            ]
        )
    return table
