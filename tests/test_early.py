"""Batches that end before all is in: a quorum, a hopeless batch, a word from outside."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trioagg import BatchReport, BatchResultAggregator, Progress, StationSkipped, run_batch

if TYPE_CHECKING:
    from trio.testing import MockClock


async def after(station_id: str, what: object) -> dict | None:
    """Answers after so many seconds; or does what the word says, at once or after the seconds behind it."""
    if isinstance(what, str):
        word, _, seconds = what.partition(" ")
        await trio.sleep(float(seconds or 0))
        if word == "fails":
            raise ValueError(station_id)
        if word == "skips":
            raise StationSkipped("not wanted")
        return None
    await trio.sleep(what)
    return {"station_id": station_id}


def verdicts(report: BatchReport) -> dict[str, str]:
    return {station_id: str(outcome.verdict) for station_id, outcome in report.stations.items()}


def by_the_second(count: int) -> dict[str, Any]:
    return {f"S{second}": second for second in range(1, count + 1)}


@pytest.mark.parametrize(
    ("quorum", "seconds"),
    [(1, 1), (3, 3), (10, 10), (11, 10), (0.3, 3), (0.7, 7), (0.31, 4), (1.0, 10), (0.0001, 1)],
)
async def test_a_quorum_ends_the_batch_as_soon_as_so_many_have_answered(
    quorum: float, seconds: float, autojump_clock: MockClock
) -> None:
    report = await run_batch("b", by_the_second(10), after, batch_timeout=60, quorum=quorum)
    assert report.seconds == trio.current_time() == seconds
    assert report.completed_by == ("all" if seconds == 10 else "quorum")
    assert (report.succeeded, report.cancelled) == (seconds, 10 - seconds)


async def test_a_quorum_may_be_a_function_of_the_progress(autojump_clock: MockClock) -> None:
    seen = []

    def enough(progress: Progress) -> bool:
        seen.append((progress.answered, progress.succeeded, progress.no_output, progress.failed, progress.expected))
        return progress.succeeded >= 2

    stations = {"A": "fails 1", "B": "none 2", "C": 3, "D": 4, "E": 5}
    report = await run_batch("b", stations, after, quorum=enough)
    assert (report.completed_by, report.seconds) == ("quorum", 4)
    assert seen == [(1, 0, 0, 1, 5), (2, 0, 1, 1, 5), (3, 1, 1, 1, 5), (4, 2, 1, 1, 5)]


async def test_a_quorum_function_that_raises_is_no_quorum_and_is_told_of_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    report = await run_batch("b", {"A": 1, "B": 2, "C": 60}, after, quorum=lambda progress: 1 / 0)
    assert (report.completed_by, report.succeeded) == ("timeout", 2)
    assert caplog.text.count("the quorum function has raised, which counts as no quorum") == 1


async def test_who_has_failed_is_no_part_of_a_quorum_and_who_has_no_output_is(autojump_clock: MockClock) -> None:
    stations = {"A": "fails 1", "B": "fails 2", "C": "none 3", "D": 4, "E": 5}
    report = await run_batch("b", stations, after, quorum=2)
    assert (report.completed_by, report.seconds) == ("quorum", 4)


async def test_a_quorum_waits_for_those_that_are_required(autojump_clock: MockClock) -> None:
    stations = by_the_second(9)
    report = await run_batch("b", stations, after, batch_timeout=60, quorum=2, required={"S7", "not in this batch"})
    assert (report.completed_by, report.seconds) == ("quorum", 7)


async def test_a_required_station_that_fails_has_answered(autojump_clock: MockClock) -> None:
    report = await run_batch("b", {"A": 1, "B": "fails 2", "C": 60}, after, quorum=1, required=["B"])
    assert (report.completed_by, report.seconds) == ("quorum", 2)


async def test_a_hopeless_batch_ends_with_the_failure_that_is_too_many(autojump_clock: MockClock) -> None:
    stations = {"A": "fails 1", "B": "fails 2", "C": "fails 3", "D": 0.5, "E": 60}
    report = await run_batch("b", stations, after, max_failures=1)
    assert (report.completed_by, report.seconds) == ("failures", 2)
    assert verdicts(report) == {"A": "failed", "B": "failed", "C": "cancelled", "D": "succeeded", "E": "cancelled"}


async def test_stations_that_had_not_started_are_skipped(autojump_clock: MockClock) -> None:
    report = await run_batch("b", by_the_second(5), after, quorum=1, max_running_stations=2)
    assert list(verdicts(report).values()) == ["succeeded", "cancelled", "skipped", "skipped", "skipped"]
    assert report.stations["S5"].attempts == 0


async def test_a_station_may_say_itself_that_it_is_not_to_be_run(autojump_clock: MockClock) -> None:
    report = await run_batch("b", {"A": 1, "B": "skips", "C": "fails"}, after, max_failures=1)
    assert (report.completed_by, report.skipped, report.failed) == ("all", 1, 1)
    assert report.stations["B"].verdict == "skipped"
    assert str(report.stations["B"].error) == str(report.first_skip) == "not wanted"
    assert str(report.first_error) == "C"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quorum": 0}, "quorum=0: it must be 1 or more stations"),
        ({"quorum": 0.0}, "a fraction is more than 0.0 and at most 1.0"),
        ({"quorum": 80.0}, "a count is an int: 80"),
        ({"quorum": True}, "use a count, a fraction like 0.9, or a function"),
        ({"quorum": "most"}, "use a count, a fraction like 0.9, or a function"),
        ({"quorum": after}, "quorum= must be a plain def"),
        ({"required": ["A"]}, "give quorum= too"),
        ({"max_failures": 1.5}, "max_failures=1.5: it must be 0 or more"),
        ({"required": "A", "quorum": 1}, "several stations, not one string"),
        ({"max_failures": -1}, "max_failures=-1: it must be 0 or more"),
    ],
)
async def test_what_no_batch_can_reach_is_said_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await run_batch("b", {"A": 1}, after, **settings)
    with pytest.raises(ValueError, match=message):
        BatchResultAggregator(after, **settings)


# In an aggregator.


async def test_pushed_answers_make_a_quorum_too(autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(quorum=0.5) as aggregator:
        batch = await aggregator.create_batch("b", ["A", "B", "C", "D"])
        batch.add_result("A", {})
        assert batch.report is None
        batch.add_result("D", None)
        assert batch.report.completed_by == "quorum"
        assert batch.add_result("B", {}) == "late"
    assert aggregator.statistics().completed_by["quorum"] == 1


async def test_a_batch_can_be_completed_by_its_id(autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(after, batch_timeout=60) as aggregator:
        await aggregator.submit("b", {"A": 1, "B": math.inf})
        await trio.sleep(2)
        assert aggregator.complete("b")
        assert not aggregator.complete("b")
        assert not aggregator.complete("never heard of")
    assert trio.current_time() == 2
    assert aggregator.statistics().completed_by["forced"] == 1


async def test_all_batches_can_be_completed_at_once(autojump_clock: MockClock) -> None:
    lists = {}

    async def upload(batch_id: str, results_list: list) -> None:
        lists[batch_id] = [result["station_id"] for result in results_list]

    async with BatchResultAggregator(after, upload, batch_timeout=60) as aggregator:
        for name in ("a", "b", "a"):  # the same id may be open twice
            await aggregator.submit(name, {"A": 1, "B": math.inf})
        await trio.sleep(2)
        assert aggregator.complete_all() == 3
        assert aggregator.complete_all() == 0
    assert lists == {"a": ["A"], "b": ["A"]}
    assert trio.current_time() == 2


async def test_an_early_end_is_logged_with_its_reason(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "trioagg")
    async with BatchResultAggregator(after, quorum=1, max_failures=0) as aggregator:
        await aggregator.run("good", {"A": 1, "B": 60})
        await aggregator.run("bad", {"A": "fails", "B": 60})
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert ("INFO", "batch good was ended early (quorum): 1 of 2 stations have answered") in said
    assert ("WARNING", "batch bad was ended early (failures): 1 of 2 stations have answered") in said
