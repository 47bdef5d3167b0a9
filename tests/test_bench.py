"""The lab's own honesty: due times, percentiles, workloads, stages and comparisons."""

from __future__ import annotations

import json
import math
import random
from array import array
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import trioagg
from bench import compare, histograms, results, schedule, workload
from bench.stages import STAGES, Stages

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock


# When messages are due.


@settings(deadline=None)
@given(st.floats(1, 5000), st.floats(0.1, 3), st.integers(0, 2**32))
def test_a_fixed_rate_is_kept_to_the_nanosecond(rate: float, seconds: float, seed: int) -> None:
    due = schedule.due_times(rate, seconds, "fixed", seed)
    assert len(due) == max(1, round(rate * seconds))
    assert all(abs(moment - number / rate * 1e9) <= 1 for number, moment in enumerate(due))


def test_poisson_arrivals_come_at_the_rate_and_are_as_irregular_as_they_should_be() -> None:
    due = schedule.due_times(1000, 20, "poisson", 7)
    gaps = [later - earlier for earlier, later in pairwise(due)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(1e6, rel=0.05)
    assert deviation / mean == pytest.approx(1, rel=0.05)
    assert due == schedule.due_times(1000, 20, "poisson", 7)
    assert due != schedule.due_times(1000, 20, "poisson", 8)


# What samples can tell.


@settings(deadline=None)
@given(st.lists(st.integers(1_000, 10**12), min_size=1, max_size=200))
def test_a_histogram_keeps_three_digits_and_the_largest(nanoseconds: list[int]) -> None:
    histogram = histograms.decoded(histograms.encoded(histograms.of(nanoseconds)))
    assert histogram.get_total_count() == len(nanoseconds)
    assert histogram.get_max_value() == pytest.approx(max(nanoseconds) / 1000, rel=0.002, abs=1)


@pytest.mark.parametrize(
    ("samples", "held"), [(9, []), (10, [50]), (499, [50, 90, 95]), (5000, [50, 90, 95, 99, 99.9])]
)
def test_no_percentile_is_given_that_the_samples_cannot_hold(samples: int, held: list[float]) -> None:
    figures = histograms.summary(histograms.of(range(1_000_000, 1_000_000 + samples * 1000, 1000)))
    given_ones = [name for name, value in figures.items() if name.startswith("p") and value is not None]
    assert given_ones == [f"p{percent:g}_ms" for percent in held]
    assert figures["max_ms"] == pytest.approx(1 + (samples - 1) / 1000, rel=0.002)


def test_latencies_over_time_have_their_stall_where_it_was() -> None:
    when = array("q", (number * 10_000_000 for number in range(200)))
    took = array("q", (300_000_000 if 100 <= number < 110 else 1_000_000 for number in range(200)))
    rows = histograms.over_time(when, took, 0.5)
    assert [row[0] for row in rows] == [0, 0.5, 1.0, 1.5]
    assert [row[4] for row in rows] == [1, 1, 300, 1]
    assert [row[2] for row in rows] == [1, 1, 1, 1]


def test_files_of_histograms_are_in_the_formats_of_their_family(tmp_path: Path) -> None:
    histogram = histograms.of(range(1_000_000, 3_000_000, 1000))
    histograms.write_distribution(histogram, tmp_path / "x.hgrm")
    histograms.write_log([(1.7e9, 1.7e9 + 1, histogram)], tmp_path / "x.hlog", "a test")
    lines = (tmp_path / "x.hgrm").read_text().split("\n")
    assert lines[0].split() == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    assert any(line.startswith("#[Max     =") for line in lines)
    assert "#[Histogram log format version 1.2]" in (tmp_path / "x.hlog").read_text()


# Workloads.


@pytest.mark.parametrize("name", workload.names())
def test_every_workload_that_comes_with_the_lab_can_be_read(name: str) -> None:
    found = workload.load(name)
    works = workload.work_of(found)
    first = [next(works) for _ in range(found.stations)]
    again = workload.work_of(found)
    assert first == [next(again) for _ in range(found.stations)]
    assert all(work.seconds >= 0 for work in first)


def test_the_guides_three_scenarios_have_its_deadlines() -> None:
    deadlines = [workload.load(f"{speed}-models").deadline_seconds for speed in ("fast", "medium", "slow")]
    assert deadlines == [2, 5, 10]


def test_one_slow_station_is_one_of_every_message() -> None:
    found = workload.load("one-slow")
    works = workload.work_of(found)
    for _ in range(3):
        times = sorted(next(works).seconds for _ in range(found.stations))
        assert times == [0.005] * 99 + [0.2]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('title="x"\nstations=1\ndeadline_seconds=1\nservice_time={law="constannt", ms=1}', "constannt"),
        ('title="x"\nstations=1\ndeadline_seconds=1\nservice_time={law="constant", msec=1}', "msec"),
        ('title="x"\nstations="many"\ndeadline_seconds=1\nservice_time={law="never_waits"}', "$.stations"),
        ('title="x"\nstations=0\ndeadline_seconds=1\nservice_time={law="never_waits"}', "stations must be 1 or more"),
        ("title = ", "Invalid value"),
    ],
)
def test_a_workload_with_a_mistake_says_where_it_is(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        workload.load(str(path))
    assert complaint in str(ended.value)
    assert "mine.toml" in str(ended.value)


def test_a_workload_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(SystemExit, match="never-waits"):
        workload.load("nothing-like-that")


def test_measurements_of_ones_own_are_drawn_from_their_file(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("name,ms\na,5\nb,7.5\n")
    (tmp_path / "mine.toml").write_text(
        'title="x"\nstations=40\ndeadline_seconds=1\nservice_time={law="measured", csv="mine.csv", column="ms"}'
    )
    works = workload.work_of(workload.load(str(tmp_path / "mine.toml")))
    assert {next(works).seconds for _ in range(100)} == {0.005, 0.0075}


# Where the time goes.


async def test_the_stages_of_a_batch_add_up_to_its_way(autojump_clock: MockClock) -> None:
    stages = Stages(now_ns=lambda: round(trio.current_time() * 1e9))

    async def station(station_id: str, seconds: float) -> dict[str, Any]:
        await trio.sleep(seconds)
        return {}

    async def handler(batch_id: str, results_list: list[dict[str, Any]]) -> None:
        await trio.sleep(0.25)

    async with trioagg.BatchResultAggregator(
        station, handler, batch_timeout=5, max_uploads=1, observers=[stages]
    ) as aggregator:
        await aggregator.submit("quick", {"A": 1.0, "B": 2.0})
        await aggregator.submit("behind it", {"C": 2.1})
        await aggregator.submit("late", {"A": 9.0})
    figures = stages.figures()
    assert figures["batches"] == 3
    assert list(figures["stages"]) == list(STAGES)

    def milliseconds(stage: str) -> list[float]:
        histogram = histograms.decoded(figures["stages"][stage])
        return [round(ms, -1) for ms, count in histograms.counts(histogram) for _ in range(count)]

    assert milliseconds("stations") == [2000, 2100, 5000]
    assert milliseconds("upload queue") == [0, 0, 150]
    assert milliseconds("upload") == [250, 250, 250]
    assert figures["overshoots"] == 1
    sampled = [["A", 0.0, 1000.0], ["B", 0.0, 2000.0], ["C", 0.0, 2100.0], ["A", 0.0, 5000.0]]
    assert figures["lateness"] == sampled


def test_an_offset_that_is_committed_ends_the_stories_before_it() -> None:
    now = 1_000_000_000
    stages = Stages(now_ns=lambda: now)

    def passes(milliseconds: int) -> None:
        nonlocal now
        now += milliseconds * 1_000_000

    class Report:
        batch_id, completed_by, stations, seconds = "b", trioagg.CompletedBy.ALL, {}, 0.0

    stages.fetched("in", 0, 5, 9)
    passes(3)
    stages.reading("in", 0, 7)
    passes(2)
    headers = (("bench-due", b"1000000000"),)
    stages.opened(trioagg.BatchContext(batch_id="b", deadline=1, topic="in", partition=0, offset=7, headers=headers), 1)
    stages.started("b")
    report: Any = Report()
    stages.closed(report)
    stages.uploading(report, 1)
    passes(4)
    stages.uploading(report, 2)
    stages.uploaded(report)
    stages.committed("in", 0, 7)
    assert stages.figures()["batches"] == 0
    passes(6)
    stages.committed("in", 0, 8)
    found = {name: histograms.counts(histograms.decoded(text)) for name, text in stages.figures()["stages"].items()}
    assert found["queue"][0][0] == pytest.approx(3, abs=0.01)
    assert found["decode"][0][0] == pytest.approx(2, abs=0.01)
    assert found["upload"][0][0] == pytest.approx(4, abs=0.01)
    assert found["commit"][0][0] == pytest.approx(6, abs=0.01)


# Comparisons.


def run_of(factor: float, *, stalls: bool = False, seed: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    repeats = []
    for _ in range(5):
        took = [round(factor * chance.lognormvariate(math.log(4e6), 0.3)) for _ in range(2000)]
        if stalls:
            took[:60] = [moment + chance.randrange(300_000_000) for moment in took[:60]]
        repeats.append({"latency": histograms.encoded(histograms.of(took)), "closed_loop": False})
    return [{"bench": "pipeline", "contestant": "trioagg", "loads": [{"share": 0.5, "repeats": repeats}]}]


def worse(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    found = compare.differences(before, after, threshold=0.1, seed=1)
    return [difference.figure for difference in found if difference.worse]


def test_two_runs_of_the_same_build_are_not_different() -> None:
    assert worse(run_of(1, seed=1), run_of(1, seed=2)) == []


def test_a_build_that_became_faster_is_no_reason_to_fail() -> None:
    assert worse(run_of(1, seed=1), run_of(0.5, seed=2)) == []


def test_everything_being_slower_is_found() -> None:
    assert {"p50, ms", "p99, ms"} <= set(worse(run_of(1, seed=1), run_of(1.5, seed=2)))


def test_rare_stalls_are_found_in_the_tail_and_only_there() -> None:
    found = worse(run_of(1, seed=1), run_of(1, stalls=True, seed=2))
    assert "p99, ms" in found
    assert "p50, ms" not in found


def test_a_difference_below_the_noise_floor_is_none() -> None:
    assert worse(run_of(0.01, seed=1), run_of(0.02, seed=2)) == []


def test_results_of_different_commands_are_not_compared(tmp_path: Path) -> None:
    for command in ("core", "pipeline"):
        now = datetime.now(UTC)
        results.write(tmp_path / command, command, [], began=now, environment={}, arguments={}, seed=1, quick=True)
    with pytest.raises(SystemExit, match=r"'core' and .* of 'pipeline'"):
        compare.main(tmp_path / "core", tmp_path / "pipeline", threshold=0.1, as_json=True, seed=1)


def test_what_is_no_result_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"format": 99}))
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SystemExit, match=r"result\.json|nowhere"):
            results.read(path)
