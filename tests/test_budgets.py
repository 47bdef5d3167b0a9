"""Timeouts that depend on the batch, and lists that are due so long after their message was written."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import trioagg
from trioagg import AsyncDataAnalysisService, BatchResultAggregator
from trioagg._sla import Sla

if TYPE_CHECKING:
    from trio.testing import MockClock


async def sleeper(station_id: str, seconds: float) -> dict:
    await trio.sleep(seconds)
    return {"station_id": station_id}


def forever(count: int) -> dict[str, float]:
    return {f"S{number}": math.inf for number in range(count)}


async def test_the_timeout_may_depend_on_the_number_of_stations(autojump_clock: MockClock) -> None:
    asked = []

    def timeout(topic: str | None, stations: int) -> float:
        asked.append((topic, stations))
        return 10.0 / stations

    ended: dict[str, float] = {}

    async def upload(batch_id: str, results_list: list) -> None:
        ended[batch_id] = trio.current_time()

    async with BatchResultAggregator(sleeper, upload, batch_timeout=timeout) as aggregator:
        # The one that is accepted first is due last.
        for count in (1, 2, 5, 4):
            await aggregator.submit(f"of {count}", forever(count))
    assert ended == {"of 5": 2, "of 4": 2.5, "of 2": 5, "of 1": 10}
    assert asked == [(None, 1), (None, 2), (None, 5), (None, 4)]


async def test_the_log_says_which_timeout_it_was(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with BatchResultAggregator(sleeper, batch_timeout=lambda topic, stations: 0.5 * stations) as aggregator:
        report = await aggregator.run("b", forever(3))
    assert report.timeout_seconds == 1.5
    assert "batch b timed out after 1.5 s" in caplog.text


@pytest.mark.parametrize("seconds", [-1, math.nan, None])
async def test_a_function_that_gives_no_seconds_is_found_where_the_batch_is_given(seconds: Any) -> None:
    async with BatchResultAggregator(sleeper, batch_timeout=lambda topic, stations: seconds) as aggregator:
        with pytest.raises(ValueError, match="it must be 0 or more seconds"):
            await aggregator.submit("b", {"A": 1})
        assert aggregator.in_flight == 0


async def test_closed_batches_do_not_pile_up_behind_one_that_lasts(autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(
        sleeper, batch_timeout=lambda topic, stations: 3600.0 if stations == 1 else 7200.0
    ) as aggregator:
        await aggregator.submit("long", {"A": 3000})
        for number in range(3000):
            await aggregator.run(f"{number}", {"A": 0, "B": 0})
        assert len(aggregator._deadlines._queue) <= 1010
        assert len(aggregator._deadlines) == 1


async def test_a_station_that_is_not_to_be_run_has_no_try(autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(sleeper) as aggregator:
        batch = await aggregator.admit("b", {"A": 1, "B": 1}, skipped={"A": "unknown"})
        report = await batch.wait_closed()
    assert (report.completed_by, report.succeeded, report.skipped, report.seconds) == ("all", 1, 1, 1)
    assert report.stations["A"].attempts == 0
    assert str(report.stations["A"].error) == "unknown"


# So long after the message was written.


@pytest.mark.parametrize(
    ("policy", "age", "left"),
    [
        ("process", 0.0, 2.0),
        ("process", 0.5, 1.5),
        ("process", 1.95, 0.1),
        ("process", 50.0, 0.1),
        ("process", 1.9, 0.1),
        ("skip", 1.5, 0.5),
        ("skip", 1.95, 0.0),
        ("skip", 2.0, 0.0),
        ("skip", 50.0, 0.0),
        ("full", 1.5, 0.5),
        ("full", 50.0, 5.0),
        # A producer whose clock is ahead gains nothing.
        ("process", -3600.0, 2.0),
        ("full", -3600.0, 2.0),
    ],
)
def test_what_is_left_of_the_time_of_a_batch(policy: Any, age: float, left: float) -> None:
    sla = Sla(2.0, policy, 0.1)
    assert sla.budget(5.0, 1000.0 - age, 1000.0) == pytest.approx(left)
    assert sla.missed == (age > 1.9)


def test_without_an_agreement_or_a_timestamp_it_is_all_of_it() -> None:
    assert Sla(None, "process", 0.1).budget(5.0, 0.0, 1000.0) == 5.0
    assert Sla(2.0, "skip", 0.1).budget(5.0, None, 1000.0) == 5.0


@given(
    st.floats(0.001, 1e6),
    st.sampled_from(["process", "skip", "full"]),
    st.floats(0.001, 10),
    st.floats(0, 1e6),
    st.floats(-1e9, 1e9),
)
def test_no_clock_of_a_producer_makes_a_batch_longer_than_its_timeout(
    seconds: float, policy: Any, min_budget: float, timeout: float, written: float
) -> None:
    assert 0 <= Sla(seconds, policy, min_budget).budget(timeout, written, 0.0) <= timeout


async def test_a_batch_without_any_time_left_begins_no_station(autojump_clock: MockClock) -> None:
    reports = []

    async def callback(station_id: str, value: object) -> dict:
        raise AssertionError("nobody asked for it")

    async def keep(report: trioagg.BatchReport) -> None:
        await trio.lowlevel.checkpoint()
        reports.append(report)

    async with BatchResultAggregator(callback, report_handler=keep) as aggregator:
        await aggregator.admit("b", {"A": 1, "B": 2}, budget=lambda timeout: 0.0)
    (report,) = reports
    assert (report.completed_by, report.skipped, report.results, report.seconds) == ("timeout", 2, [], 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sla_seconds": 0}, "sla_seconds=0: it must be more than 0 seconds"),
        ({"sla_policy": "drop"}, "use 'process', 'skip' or 'full'"),
        ({"min_budget": 0}, "min_budget=0: it must be more than 0 seconds"),
        ({"batch_timeout": lambda topic, stations: 5.0}, "give revoke_timeout= too"),
        ({"batch_timeout": -1}, "batch_timeout=-1"),
        ({"lane": "fibre"}, "use 'task', 'thread', 'inline' or 'process'"),
        ({"max_threads": 0}, "max_threads=0: it must be 1 or more"),
        ({"max_abandoned_threads": 0}, "max_abandoned_threads=0: it must be 1 or more"),
        ({"max_processes": 0}, "max_processes=0: it must be 1 or more"),
        ({"start_method": "fork"}, "start_method='fork': use 'spawn' or 'forkserver'"),
        ({"include_ledger": True}, "include_ledger=True is about the messages in the result_topic"),
        ({"required": "S1", "quorum": 1}, "several stations, not one string"),
    ],
)
def test_a_wrong_setting_of_the_service_is_found_where_it_is_typed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AsyncDataAnalysisService("service", ["in"], **settings)


async def test_inside_a_callback_the_deadline_is_that_of_the_batch(autojump_clock: MockClock) -> None:
    seen = []

    async def callback(station_id: str, value: object) -> None:
        seen.append(trioagg.current_batch().deadline)

    async with BatchResultAggregator(callback, batch_timeout=lambda topic, stations: 7.0 * stations) as aggregator:
        await trio.sleep(1)
        await aggregator.run("b", {"A": 1, "B": 1})
    assert seen == [15, 15]
