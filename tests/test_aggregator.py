"""Many batches at once: what is accepted, when lists leave, how a block ends, and what is said about it."""

from __future__ import annotations

import dataclasses
import gc
import logging
import math
import signal
import sys
import threading
import tracemalloc
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from garbage import cyclic_garbage_of

import trioagg
from trioagg import (
    Answer,
    BatchReport,
    BatchResultAggregator,
    Closed,
    CompletedBy,
    UploadFailed,
    Verdict,
    current_batch,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock


class Lists:
    """A handler that remembers what went up, and when; a call may take its time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.up: dict[str, list[object]] = {}
        self.at: dict[str, float] = {}
        self.began: dict[str, float] = {}

    async def __call__(self, batch_id: str, results_list: list[dict[str, Any]]) -> None:
        self.began[batch_id] = trio.current_time()
        await trio.sleep(self.seconds)
        assert batch_id not in self.up, "twice"
        self.up[batch_id] = [result["station_id"] for result in results_list]
        self.at[batch_id] = trio.current_time()


def numbered(count: int) -> dict[str, int]:
    return {f"S{number:03}": number for number in range(count)}


async def answer(station_id: str, value: object) -> dict[str, object]:
    return {"station_id": station_id}


async def sleeping(station_id: str, seconds: float) -> dict[str, object]:
    await trio.sleep(seconds)
    return {"station_id": station_id}


async def shielded(station_id: str, seconds: float) -> dict[str, object]:
    with trio.CancelScope(shield=True):
        await trio.sleep(seconds)
    return {"station_id": station_id}


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level and record.name == "trioagg"]


# Handing batches in.


async def test_a_batch_that_is_submitted_runs_in_the_background_and_its_list_goes_up(
    autojump_clock: MockClock,
) -> None:
    lists = Lists()
    async with BatchResultAggregator(sleeping, lists) as aggregator:
        batch = await aggregator.submit("b", {"A": 2.0, "B": 1.0})
        assert trio.current_time() == 0
        assert (batch.batch_id, batch.deadline, batch.progress, batch.report) == ("b", 5, (0, 2), None)
        await trio.sleep(1.5)
        assert batch.progress == (1, 2)
        assert repr(batch) == "<Batch 'b' 1/2>"
        report = await batch.wait_closed()
        assert trio.current_time() == report.seconds == 2
        assert batch.report is report
        assert repr(batch) == "<Batch 'b' 2/2 closed>"
    assert lists.up == {"b": ["B", "A"]}


async def test_run_returns_when_the_list_is_up(autojump_clock: MockClock) -> None:
    lists = Lists(seconds=3)
    async with BatchResultAggregator(sleeping, lists) as aggregator:
        report = await aggregator.run("b", {"A": 2.0})
        assert trio.current_time() == 5
        assert report.seconds == 2
        assert lists.at == {"b": 5}


async def test_whoever_waits_for_a_run_may_stop_to_wait_and_the_batch_goes_on(autojump_clock: MockClock) -> None:
    lists = Lists()
    async with BatchResultAggregator(sleeping, lists) as aggregator:
        with trio.move_on_after(1) as scope:
            await aggregator.run("b", {"A": 2.0})
        assert scope.cancelled_caught
        assert trio.current_time() == 1
    assert lists.at == {"b": 2}


async def test_whoever_waits_for_the_close_may_stop_to_wait_and_the_batch_goes_on(autojump_clock: MockClock) -> None:
    lists = Lists()
    async with BatchResultAggregator(sleeping, lists) as aggregator:
        batch = await aggregator.submit("b", {"A": 2.0})
        with trio.move_on_after(1):
            await batch.wait_closed()
    assert lists.at == {"b": 2}


async def test_pushed_answers_complete_a_batch(autojump_clock: MockClock) -> None:
    lists = Lists()
    async with BatchResultAggregator(None, lists) as aggregator:
        batch = await aggregator.create_batch("b", ["A", "B", "C", "A"])
        assert batch.progress == (0, 3)

        async def push(station_id: str, seconds: float, result: dict | None) -> None:
            await trio.sleep(seconds)
            assert batch.add_result(station_id, result) is Answer.ACCEPTED

        async with trio.open_nursery() as nursery:
            nursery.start_soon(push, "A", 1, {"station_id": "A"})
            nursery.start_soon(push, "B", 2, None)
            await trio.sleep(3)
            assert batch.add_failure("C", ValueError()) is Answer.ACCEPTED
        report = await batch.wait_closed()
        assert report.seconds == 3
        assert report.completed_by is CompletedBy.ALL
        assert (report.succeeded, report.no_output, report.failed) == (1, 1, 1)
        assert report.stations["A"].started_seconds is None
    assert lists.up == {"b": ["A"]}


async def test_a_pushed_batch_leaves_at_its_deadline(autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(batch_timeout=5) as aggregator:
        batch = await aggregator.create_batch("b", ["A", "B"])
        batch.add_result("A", {})
        report = await batch.wait_closed()
    assert trio.current_time() == report.seconds == 5
    assert report.completed_by is CompletedBy.TIMEOUT
    assert (report.succeeded, report.timed_out) == (1, 1)


async def test_a_batch_can_be_completed_by_force(autojump_clock: MockClock) -> None:
    lists = Lists()
    async with BatchResultAggregator(sleeping, lists) as aggregator:
        batch = await aggregator.submit("b", {"A": 1.0, "B": math.inf})
        await trio.sleep(2)
        batch.complete()
        report = await batch.wait_closed()
    assert report.completed_by is CompletedBy.FORCED
    assert [outcome.verdict for outcome in report.stations.values()] == [Verdict.SUCCEEDED, Verdict.CANCELLED]
    assert report.stations["B"].run_seconds == 2
    assert lists.at == {"b": 2}


@pytest.mark.parametrize("how", ["complete", "abort"])
async def test_a_station_may_end_its_own_batch(how: str, autojump_clock: MockClock) -> None:
    batches = []

    async def callback(station_id: str, seconds: float) -> dict:
        await trio.sleep(seconds)
        if seconds == 2:
            getattr(batches[0], how)()
        return {"station_id": station_id}

    lists = Lists()
    async with BatchResultAggregator(callback, lists) as aggregator:
        batches.append(await aggregator.submit("b", {"A": 1.0, "B": 2.0, "C": 3.0}))
        report = await batches[0].wait_closed()
        assert (report.seconds, report.succeeded, report.cancelled) == (2, 1, 2)
    assert lists.up == ({"b": ["A"]} if how == "complete" else {})
    assert aggregator.statistics().late == 1
    assert trio.current_time() == 2


async def test_force_has_no_effect_on_a_batch_that_has_ended(autojump_clock: MockClock) -> None:
    async with BatchResultAggregator() as aggregator:
        batch = await aggregator.create_batch("b", ["A"])
        batch.add_result("A", {})
        batch.complete()
        assert (await batch.wait_closed()).completed_by is CompletedBy.ALL
        batch.complete()
        batch.abort()
        assert batch.report.completed_by is CompletedBy.ALL


async def test_a_batch_of_nobody_is_complete_at_once_and_its_empty_list_goes_up(autojump_clock: MockClock) -> None:
    lists = Lists()
    async with BatchResultAggregator(answer, lists) as aggregator:
        assert (await aggregator.run("run", {})).completed_by is CompletedBy.ALL
        batch = await aggregator.create_batch("pushed", [])
        assert (await batch.wait_closed()).completed_by is CompletedBy.ALL
    assert lists.up == {"run": [], "pushed": []}
    assert trio.current_time() == 0


async def test_an_answer_that_is_pushed_for_a_running_batch_counts_and_the_batch_ends_as_ever(
    autojump_clock: MockClock,
) -> None:
    served = []

    async def callback(station_id: str, value: object) -> dict:
        served.append(station_id)
        await trio.sleep_forever()

    async with BatchResultAggregator(callback, max_running_stations=1) as aggregator:
        some = await aggregator.submit("some", {"A": 1, "B": 2, "C": 3})
        every = await aggregator.submit("all", {"D": 1, "E": 2})
        await trio.sleep(1)
        assert some.add_result("B", {}) is Answer.ACCEPTED
        assert every.add_result("D", {}) is Answer.ACCEPTED
        assert every.add_result("E", {}) is Answer.ACCEPTED
    assert trio.current_time() == 5  # the hanging ones were cancelled
    assert served == ["A", "D"]
    assert [outcome.verdict for outcome in some.report.stations.values()] == [
        Verdict.TIMED_OUT,
        Verdict.SUCCEEDED,
        Verdict.SKIPPED,
    ]
    assert (some.report.succeeded, some.report.timed_out, some.report.skipped) == (1, 1, 1)
    assert every.report.completed_by is CompletedBy.ALL
    assert every.report.seconds == 1
    assert [outcome.verdict for outcome in every.report.stations.values()] == [Verdict.SUCCEEDED] * 2
    assert [outcome.started_seconds for outcome in every.report.stations.values()] == [0, None]


async def test_the_stations_are_those_that_were_handed_in_whatever_becomes_of_the_mapping(
    autojump_clock: MockClock,
) -> None:
    lists = Lists()
    async with BatchResultAggregator(sleeping, lists, max_batches_in_flight=1) as aggregator:
        stations = {"A": 1.0}
        async with trio.open_nursery() as nursery:
            await aggregator.submit("at once", stations)
            nursery.start_soon(aggregator.submit, "after a wait", stations)
            await trio.sleep(0.5)
            stations["B"] = 2.0
            del stations["A"]
    assert lists.up == {"at once": ["A"], "after a wait": ["A"]}


@pytest.mark.parametrize("stations", [["A", "B"], "AB", {"A", "B"}, None, 7])
async def test_stations_that_are_no_mapping_are_refused_and_take_no_room(
    stations: Any, autojump_clock: MockClock
) -> None:
    async with BatchResultAggregator(answer, max_batches_in_flight=1) as aggregator:
        for method in (aggregator.submit, aggregator.run, aggregator.admit):
            with pytest.raises(TypeError, match="must be a mapping of station ids to values"):
                await method("b", stations)
        assert (await aggregator.run("b", {"A": 1})).succeeded == 1
    with pytest.raises(TypeError, match="must be a mapping"):
        await trioagg.run_batch("b", stations, answer)


@pytest.mark.parametrize("stations", ["S001", b"S001", None, 7, [["unhashable"]]])
async def test_expected_stations_that_are_not_several_ids_are_refused_and_take_no_room(
    stations: Any, autojump_clock: MockClock
) -> None:
    async with BatchResultAggregator(max_batches_in_flight=1) as aggregator:
        with pytest.raises(TypeError):
            await aggregator.create_batch("b", stations)
        await aggregator.create_batch("b", ["A"])


async def test_without_a_callback_batches_can_only_be_pushed(autojump_clock: MockClock) -> None:
    async with BatchResultAggregator() as aggregator:
        for method in (aggregator.submit, aggregator.run):
            with pytest.raises(TypeError, match=r"no callback.*create_batch\(\)"):
                await method("b", {"A": 1})


async def test_an_aggregator_that_is_not_open_accepts_nothing(autojump_clock: MockClock) -> None:
    aggregator = BatchResultAggregator(answer)
    calls: list[Callable] = [
        lambda: aggregator.submit("b", {"A": 1}),
        lambda: aggregator.run("b", {"A": 1}),
        lambda: aggregator.create_batch("b", ["A"]),
    ]
    for call in calls:
        with pytest.raises(Closed, match="the aggregator is not open yet"):
            await call()
    async with aggregator:
        pass
    for call in calls:
        with pytest.raises(Closed, match="the aggregator has ended"):
            await call()
    assert aggregator.statistics().opened == 0


async def test_an_aggregator_that_drains_accepts_nothing(autojump_clock: MockClock) -> None:
    refused = []

    async def submit_more(aggregator: BatchResultAggregator) -> None:
        await trio.sleep(1)
        try:
            await aggregator.submit("late", {"A": 1})
        except Closed as error:
            refused.append((trio.current_time(), str(error)))

    async with trio.open_nursery() as nursery, BatchResultAggregator(sleeping) as aggregator:
        nursery.start_soon(submit_more, aggregator)
        await aggregator.submit("b", {"A": 2.0})
    assert refused == [(1, "the aggregator is closing: no new batch is accepted")]


async def test_an_aggregator_lives_once(autojump_clock: MockClock) -> None:
    aggregator = BatchResultAggregator()
    async with aggregator:
        with pytest.raises(RuntimeError, match="lives once"):
            await aggregator.__aenter__()
    with pytest.raises(RuntimeError, match="lives once"):
        async with aggregator:
            pass


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_timeout", -1),
        ("batch_timeout", math.nan),
        ("cleanup_interval", -1),
        ("upload_timeout", -1),
        ("drain_timeout", math.nan),
        ("max_batches_in_flight", 0),
        ("max_unreaped_batches", 0),
        ("max_running_stations", 0),
        ("max_uploads", 0),
        ("upload_attempts", 0),
        ("on_upload_failure", "ignore"),
        ("log_language", "fr"),
    ],
)
def test_a_setting_that_is_out_of_its_range_is_refused_at_once(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        BatchResultAggregator(**{name: value})


# Ids.


async def test_an_id_that_is_open_cannot_be_opened_again_and_one_that_is_closed_can(
    autojump_clock: MockClock,
) -> None:
    async with BatchResultAggregator() as aggregator:
        first = await aggregator.create_batch("b", ["A"])
        with pytest.raises(ValueError, match="batch b is open already"):
            await aggregator.create_batch("b", ["A"])
        first.add_result("A", {})
        await first.wait_closed()
        second = await aggregator.create_batch("b", ["A"])
        assert first.add_result("A", {}) is Answer.LATE
        assert second.add_result("A", {}) is Answer.ACCEPTED


@pytest.mark.parametrize("room", [2, 1], ids=["room for both", "room for one"])
async def test_of_two_that_open_the_same_id_at_the_same_time_one_is_refused(
    room: int, autojump_clock: MockClock
) -> None:
    outcomes = []

    async with BatchResultAggregator(batch_timeout=5, max_batches_in_flight=room) as aggregator:

        async def create() -> None:
            try:
                await aggregator.create_batch("b", ["A"])
                outcomes.append((trio.current_time(), "opened"))
            except ValueError as error:
                outcomes.append((trio.current_time(), str(error)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(create)
            nursery.start_soon(create)
        if room == 2:
            assert outcomes == [(0, "opened"), (0, "batch b is open already")]
        else:  # the other had to wait, and in the end the id was free again
            assert outcomes == [(0, "opened"), (5, "opened")]
    assert aggregator.statistics().opened == 3 - room


async def test_a_message_that_is_delivered_again_opens_a_batch_of_its_own(autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(sleeping) as aggregator:
        first = await aggregator.submit("b", {"A": 4.0})
        await trio.sleep(1)
        second = await aggregator.submit("b", {"A": 2.0})
        assert aggregator.add_result("b", "A", {}) is Answer.ACCEPTED  # the newer one of that id
        assert (await second.wait_closed()).seconds == 0
        assert (await first.wait_closed()).seconds == 4
    assert aggregator.statistics().closed == 2


async def test_the_end_of_the_first_delivery_does_not_hide_the_second_one(autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(sleeping) as aggregator:
        first = await aggregator.submit("b", {"A": 1.0})
        second = await aggregator.submit("b", {"A": 3.0, "B": 3.0})
        await first.wait_closed()
        assert aggregator.add_result("b", "A", {}) is Answer.ACCEPTED
        assert second.progress == (1, 2)


async def test_an_answer_by_its_id_is_accepted_late_a_duplicate_or_unknown(autojump_clock: MockClock) -> None:
    async with BatchResultAggregator() as aggregator:
        await aggregator.create_batch("b", ["A", "B"])
        assert aggregator.add_result("b", "A", {}) is Answer.ACCEPTED
        assert aggregator.add_result("b", "A", {}) is Answer.DUPLICATE
        assert aggregator.add_result("b", "X", {}) is Answer.UNKNOWN
        assert aggregator.add_failure("b", "B", ValueError()) is Answer.ACCEPTED
        await trio.sleep(1)
        assert aggregator.add_result("b", "A", {}) is Answer.LATE
        assert aggregator.add_failure("b", "B", ValueError()) is Answer.LATE
        assert aggregator.add_result("another", "A", {}) is Answer.UNKNOWN
        assert aggregator.add_failure("another", "A", ValueError()) is Answer.UNKNOWN
        statistics = aggregator.statistics()
        assert (statistics.duplicates, statistics.late, statistics.unknown) == (1, 2, 3)


async def test_closed_ids_are_remembered_for_the_cleanup_interval_and_then_forgotten(
    autojump_clock: MockClock,
) -> None:
    async with BatchResultAggregator(cleanup_interval=60) as aggregator:
        for batch_id in ("first", "second"):
            batch = await aggregator.create_batch(batch_id, [])
            await batch.wait_closed()
            await trio.sleep(10)
        await trio.sleep(39.5)
        assert aggregator.add_result("first", "A", {}) is Answer.LATE
        await trio.sleep(0.5)
        assert aggregator.add_result("first", "A", {}) is Answer.UNKNOWN
        assert aggregator.add_result("second", "A", {}) is Answer.LATE
        assert aggregator.statistics().remembered_ids == 1
        await trio.sleep(10)
        assert aggregator.statistics().remembered_ids == 0


async def test_an_id_that_is_used_again_is_remembered_from_its_last_close(autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(cleanup_interval=60) as aggregator:
        for _ in range(2):
            await (await aggregator.create_batch("b", [])).wait_closed()
            await trio.sleep(40)
        assert aggregator.add_result("b", "A", {}) is Answer.LATE
        await trio.sleep(20)
        assert aggregator.add_result("b", "A", {}) is Answer.UNKNOWN


async def test_ids_are_not_remembered_without_a_bound(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(trioagg._remembered, "_MOST", 10)
    async with BatchResultAggregator(answer) as aggregator:
        for number in range(25):
            await aggregator.run(f"batch {number}", {})
        assert aggregator.statistics().remembered_ids == 10
        assert aggregator.add_result("batch 14", "A", {}) is Answer.UNKNOWN
        assert aggregator.add_result("batch 15", "A", {}) is Answer.LATE


# The bound.


async def test_submit_waits_while_too_many_batches_are_in_flight(autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(sleeping, max_batches_in_flight=2) as aggregator:
        accepted = []
        for number in range(6):
            await aggregator.submit(f"batch {number}", {"A": 1.0})
            accepted.append(trio.current_time())
            assert aggregator.in_flight <= 2
        assert accepted == [0, 0, 1, 1, 2, 2]
        assert aggregator.room == 0


async def test_a_list_that_waits_for_its_upload_is_in_flight_too(autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(answer, Lists(seconds=3), max_batches_in_flight=2, max_uploads=1) as aggregator:
        for number in range(2):
            await aggregator.submit(f"batch {number}", {"A": 1})
        await trio.testing.wait_all_tasks_blocked()
        statistics = aggregator.statistics()
        assert (statistics.open_batches, statistics.running_uploads, statistics.waiting_uploads) == (0, 1, 1)
        assert aggregator.room == 0
        await aggregator.submit("batch 2", {"A": 1})
        assert trio.current_time() == 3


async def test_a_cancelled_wait_for_room_costs_no_room(autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(sleeping, max_batches_in_flight=2) as aggregator:
        for number in range(2):
            await aggregator.submit(f"batch {number}", {"A": 2.0})
        for method in (aggregator.submit, aggregator.run):
            with trio.move_on_after(0.5) as scope:
                await method("nobody's", {"A": 1.0})
            assert scope.cancelled_caught
        await trio.sleep(2)
        assert aggregator.room == 2
        for number in range(2):
            await aggregator.submit(f"again {number}", {"A": 1.0})
        assert trio.current_time() == 3
    assert aggregator.statistics().opened == 4


async def test_those_that_wait_for_room_are_let_in_as_it_comes(autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(sleeping, max_batches_in_flight=3) as aggregator:
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(aggregator.run, f"batch {number}", {"A": 1.0})
        assert trio.current_time() == 10
    assert aggregator.statistics().uploaded == 30


async def test_a_callback_may_hand_in_a_batch_of_its_own(autojump_clock: MockClock) -> None:
    lists = Lists()

    async def callback(station_id: str, more: int) -> dict:
        if more:
            await aggregator.submit(f"{current_batch().batch_id}+", {station_id: more - 1})
        return {"station_id": station_id}

    async with BatchResultAggregator(callback, lists) as aggregator:
        await aggregator.submit("b", {"A": 2})
        await trio.sleep(1)
    assert lists.up == {"b": ["A"], "b+": ["A"], "b++": ["A"]}


# Deadlines.


async def test_a_hundred_batches_that_expire_together_all_leave_at_their_deadline(autojump_clock: MockClock) -> None:
    lists = Lists()
    async with BatchResultAggregator(sleeping, lists, max_uploads=100) as aggregator:
        for number in range(100):
            await aggregator.submit(f"batch {number}", {"A": 1.0, "B": math.inf, "C": math.inf})
    assert set(lists.at.values()) == {5}
    assert len(lists.at) == 100


async def test_a_list_leaves_at_the_deadline_whatever_its_stragglers_do(autojump_clock: MockClock) -> None:
    lists = Lists()
    async with BatchResultAggregator(shielded, lists) as aggregator:
        report = await aggregator.run("b", {"A": 1.0, "B": 60.0})
        assert trio.current_time() == report.seconds == 5
        await trio.testing.wait_all_tasks_blocked()
        assert aggregator.statistics().unreaped_batches == 1
        await trio.sleep(55)
        await trio.testing.wait_all_tasks_blocked()
        assert aggregator.statistics().unreaped_batches == 0
    assert lists.at == {"b": 5}


@pytest.mark.parametrize("batch_timeout", [3600, math.inf])
async def test_batches_that_have_ended_are_not_kept_until_their_deadline(
    batch_timeout: float, autojump_clock: MockClock
) -> None:
    async with BatchResultAggregator(answer, batch_timeout=batch_timeout, cleanup_interval=0) as aggregator:

        async def some(name: str) -> int:
            for number in range(300):
                await aggregator.run(f"{name} {number}", {"A": 1})
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            before = await some("first")
            assert await some("second") - before < 5_000
        finally:
            tracemalloc.stop()


async def test_the_timeout_of_a_batch_may_be_zero(autojump_clock: MockClock) -> None:
    for _ in range(20):
        async with BatchResultAggregator(sleeping, batch_timeout=0) as aggregator:
            assert (await aggregator.run("some", {"A": 1.0})).completed_by is CompletedBy.TIMEOUT
            assert (await aggregator.run("nobody", {})).completed_by is CompletedBy.ALL
            pushed = await aggregator.create_batch("pushed", [])
            assert (await pushed.wait_closed()).completed_by is CompletedBy.ALL
    assert trio.current_time() == 0


# How a block ends.


async def test_leaving_the_block_waits_for_the_lists_of_open_batches(autojump_clock: MockClock) -> None:
    lists = Lists(seconds=2)
    async with BatchResultAggregator(sleeping, lists) as aggregator:
        await aggregator.submit("done", {"A": 1.0})
        await aggregator.submit("expires", {"A": 1.0, "B": math.inf})
    assert lists.at == {"done": 3, "expires": 7}
    assert trio.current_time() == 7


async def test_the_lists_are_up_before_stragglers_are_waited_for(autojump_clock: MockClock) -> None:
    lists = Lists(seconds=1)
    async with BatchResultAggregator(shielded, lists) as aggregator:
        await aggregator.submit("b", {"A": 40.0})
    assert lists.at == {"b": 6}
    assert trio.current_time() == 40


async def test_what_is_not_up_within_the_drain_timeout_is_given_up(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    lists = Lists(seconds=100)
    fates = []

    async def wait_for(aggregator: BatchResultAggregator, batch_id: str, seconds: float) -> None:
        with pytest.raises(Closed, match=f"has ended before the list of batch {batch_id} was up"):
            await aggregator.run(batch_id, {"A": seconds})
        fates.append((batch_id, trio.current_time()))

    async with (
        trio.open_nursery() as nursery,
        BatchResultAggregator(
            sleeping, lists, batch_timeout=1000, drain_timeout=25, max_uploads=1, upload_timeout=1000
        ) as aggregator,
    ):
        for batch_id, seconds in (("uploads", 0.0), ("waits", 0.5), ("open", 999.0)):
            nursery.start_soon(wait_for, aggregator, batch_id, seconds)
        await trio.sleep(1)
    assert sorted(fates) == [("open", 26), ("uploads", 26), ("waits", 26)]
    assert trio.current_time() == 26
    assert lists.up == {}
    assert messages(caplog, logging.ERROR) == ["not up within drain_timeout=25 s and given up: 3 batches"]
    assert aggregator.statistics().completed_by["aborted"] == 1


async def test_a_body_that_raises_aborts_and_its_error_leaves_as_itself(autojump_clock: MockClock) -> None:
    lists = Lists(seconds=2)
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with BatchResultAggregator(sleeping, lists) as aggregator:
            await aggregator.submit("open", {"A": 4.0})
            await aggregator.submit("uploads", {"A": 0.5})
            await trio.sleep(1)
            raise error
    assert caught.value is error
    assert error.__context__ is None
    assert trio.current_time() == 1
    assert lists.up == {}
    assert aggregator.statistics().completed_by["aborted"] == 1
    assert aggregator.statistics().open_batches == 0


async def fail_in_a_nursery() -> None:
    async def fail() -> None:
        raise ValueError("mine")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)


async def fail_with_a_group_in_a_group() -> None:
    raise ExceptionGroup("outer", [ExceptionGroup("inner", [ValueError("mine")])])


@pytest.mark.parametrize("fail", [fail_in_a_nursery, fail_with_a_group_in_a_group])
async def test_a_body_that_raises_a_group_of_its_own_keeps_it(fail: Callable, autojump_clock: MockClock) -> None:
    def shape(error: BaseException) -> list:
        parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
        return [type(error), str(error), [shape(part) for part in parts]]

    with pytest.raises(ExceptionGroup) as bare:
        await fail()
    with pytest.raises(ExceptionGroup) as caught:
        async with BatchResultAggregator():
            await fail()
    assert shape(caught.value) == shape(bare.value)


async def test_a_body_that_is_cancelled_aborts(autojump_clock: MockClock) -> None:
    lists = Lists()
    with trio.move_on_after(1) as scope:
        async with BatchResultAggregator(sleeping, lists) as aggregator:
            await aggregator.submit("b", {"A": 4.0})
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == 1
    assert lists.up == {}


async def test_a_drain_that_is_cancelled_aborts(autojump_clock: MockClock) -> None:
    lists = Lists()
    with trio.move_on_after(1) as scope:
        async with BatchResultAggregator(sleeping, lists) as aggregator:
            await aggregator.submit("b", {"A": 4.0})
    assert scope.cancelled_caught
    assert trio.current_time() == 1
    assert lists.up == {}


@pytest.mark.parametrize("when", ["at once", "later"])
async def test_a_last_answer_just_before_the_body_raises_changes_nothing(when: str) -> None:
    # Trio shuffles: whoever comes first, the batch or the abort, one error leaves and no handler is called.
    for _ in range(30):
        called: list[str] = []

        async def handler(batch_id: str, results_list: list, called: list[str] = called) -> None:
            called.append(batch_id)

        with pytest.raises(ValueError, match="mine"):
            async with BatchResultAggregator(None, handler) as aggregator:
                batch = await aggregator.create_batch("b", ["A"])
                if when == "later":
                    await trio.testing.wait_all_tasks_blocked()
                batch.add_result("A", {})
                raise ValueError("mine")
        assert called == []
        assert batch.report is not None


@pytest.mark.parametrize("who", ["an answer", "the deadline"])
async def test_a_batch_that_ends_in_the_very_moment_of_an_abort_ends_somehow_and_nobody_is_hurt(
    who: str, autojump_clock: MockClock
) -> None:
    for number in range(60):  # in another order each time
        now = trio.current_time()
        fates: list[bool] = []
        async with trio.open_nursery() as nursery:

            async def push(batch: trioagg.Batch, at: float, passes: int = number % 4) -> None:
                await trio.sleep_until(at)
                for _ in range(passes):
                    await trio.lowlevel.checkpoint()
                batch.add_result("A", {"station_id": "A"})

            with pytest.raises(ValueError, match="mine"):
                async with BatchResultAggregator(
                    None, Lists(), batch_timeout=1 if who == "the deadline" else 5
                ) as aggregator:
                    batch = await aggregator.admit(f"b{number}", {"A": None}, pushed=True, when_done=fates.append)
                    if who == "an answer":
                        nursery.start_soon(push, batch, now + 1)
                    await trio.sleep_until(now + 1)
                    raise ValueError("mine")
        assert fates == [False]
        assert trio.current_time() == now + 1


async def test_when_a_body_raises_those_that_wait_outside_of_the_block_are_told(autojump_clock: MockClock) -> None:
    told = []

    async def expect_closed(call: Callable, *args: object) -> None:
        with pytest.raises(Closed):
            await call(*args)
        told.append((args[0], trio.current_time()))

    async def catch(task_status: trio.TaskStatus) -> None:
        with pytest.raises(ValueError, match="mine"):
            async with BatchResultAggregator(
                sleeping, Lists(seconds=50), max_batches_in_flight=3, max_uploads=1
            ) as aggregator:
                task_status.started(aggregator)
                await trio.sleep(1)
                raise ValueError("mine")

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            aggregator = await nursery.start(catch)
            nursery.start_soon(expect_closed, aggregator.run, "uploads", {"A": 0.0})
            await trio.sleep(0.25)
            nursery.start_soon(expect_closed, aggregator.run, "waits for its upload", {"A": 0.0})
            nursery.start_soon(expect_closed, aggregator.run, "is open", {"A": 4.0})
            await trio.sleep(0.25)
            nursery.start_soon(expect_closed, aggregator.submit, "waits for room", {"A": 1.0})
            nursery.start_soon(expect_closed, aggregator.create_batch, "waits too", ["A"])
    assert sorted(told) == [
        (name, 1) for name in ("is open", "uploads", "waits for its upload", "waits for room", "waits too")
    ]


async def test_an_upload_that_is_given_up_ends_the_block_bare_and_those_that_wait_are_told(
    autojump_clock: MockClock,
) -> None:
    async def handler(batch_id: str, results_list: list) -> None:
        await trio.sleep(1)
        if batch_id == "bad":
            raise ValueError("no")
        await trio.sleep(1)

    told = []

    async def expect_closed(aggregator: BatchResultAggregator, batch_id: str, seconds: float) -> None:
        with pytest.raises(Closed):
            await aggregator.run(batch_id, {"A": seconds})
        told.append(batch_id)

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            with pytest.raises(UploadFailed, match="upload of batch bad failed after 1 attempt") as caught:
                async with BatchResultAggregator(sleeping, handler, upload_attempts=1) as aggregator:
                    nursery.start_soon(expect_closed, aggregator, "bad", 0.0)
                    nursery.start_soon(expect_closed, aggregator, "uploads", 0.0)
                    nursery.start_soon(expect_closed, aggregator, "is open", 4.0)
                    await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, ValueError)
    assert sorted(told) == ["bad", "is open", "uploads"]
    assert trio.current_time() == 1


async def test_a_group_leaves_only_if_both_the_body_and_the_aggregator_raise(autojump_clock: MockClock) -> None:
    async def handler(batch_id: str, results_list: list) -> None:
        raise TypeError("the handler's")

    with pytest.raises(ExceptionGroup) as caught:
        async with BatchResultAggregator(answer, handler) as aggregator:
            await aggregator.submit("b", {"A": 1})
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("the body's")

    def leaves(error: BaseException) -> list[type]:
        if isinstance(error, BaseExceptionGroup):
            return [leaf for part in error.exceptions for leaf in leaves(part)]
        return [type(error)]

    assert set(leaves(caught.value)) == {UploadFailed, ValueError}


async def test_somebody_who_cancels_the_aggregators_own_nursery_does_not_end_it_in_silence(
    autojump_clock: MockClock,
) -> None:
    async def callback(station_id: str, value: object) -> dict:
        batch_task = trio.lowlevel.current_task().parent_nursery.parent_task
        batch_task.parent_nursery.cancel_scope.cancel()
        await trio.sleep_forever()

    with pytest.raises(trioagg.StrayCancel, match="the nursery of the aggregator was cancelled from outside"):
        async with BatchResultAggregator(callback) as aggregator:
            await aggregator.submit("b", {"A": 1})
            await trio.sleep_forever()


async def test_a_batch_that_nobody_wants_any_more_is_not_begun(autojump_clock: MockClock) -> None:
    served, fates = [], []

    async def callback(station_id: str, value: object) -> dict:
        served.append(station_id)
        return {"station_id": station_id}

    lists = Lists()
    async with BatchResultAggregator(callback, lists) as aggregator:
        for _ in range(20):
            batch = await aggregator.admit("b", {"A": 1}, when_done=fates.append, still_wanted=lambda: False)
            assert (await batch.wait_closed()).completed_by is CompletedBy.ABORTED
    assert served == []
    assert lists.up == {}
    assert fates == [False] * 20


async def test_batches_can_be_given_up_by_what_their_messages_were(autojump_clock: MockClock) -> None:
    lists = Lists(seconds=2)
    fates = {}
    async with BatchResultAggregator(sleeping, lists) as aggregator:
        for partition in range(2):
            for name, seconds in (("open", 4.0), ("uploads", 0.0)):
                batch_id = f"{name} {partition}"
                await aggregator.admit(
                    batch_id,
                    {"A": seconds},
                    when_done=lambda up, batch_id=batch_id: fates.update({batch_id: (up, trio.current_time())}),
                    partition=partition,
                )
        await trio.sleep(1)
        assert aggregator.abort(lambda context: context.partition == 0) == 2
    assert lists.at == {"uploads 1": 2, "open 1": 6}
    assert fates == {"open 0": (False, 1), "uploads 0": (False, 1), "uploads 1": (True, 2), "open 1": (True, 6)}


# Stragglers.


async def test_stragglers_are_named_every_five_seconds(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with BatchResultAggregator(shielded, batch_timeout=2) as aggregator:
        await aggregator.submit("b", {"quick": 1.0, "stubborn": 27.0})
        await trio.sleep(26)
        lines = [line for line in messages(caplog, logging.WARNING) if "still running" in line]
        assert len(lines) == 4  # at 10, 15, 20 and 25: at 5 it had been cancelled for three seconds only
        for line in lines:
            assert line.startswith("still running after their cancellation: station stubborn of batch b at ")
            assert "in shielded" in line
            assert "quick" not in line
    caplog.clear()
    assert trio.current_time() == 27


@pytest.mark.parametrize("how", ["raises", "is cancelled"])
async def test_stragglers_of_a_block_that_aborts_are_named_too(
    how: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.CancelScope() as scope:
        with pytest.raises((ValueError, trio.Cancelled)) as caught:
            async with BatchResultAggregator(shielded, batch_timeout=60) as aggregator:
                await aggregator.submit("b", {"stubborn": 24.0})
                await trio.sleep(1)
                if how == "raises":
                    raise ValueError
                scope.cancel()
                await trio.sleep_forever()
        if how == "is cancelled":
            raise caught.value
    assert trio.current_time() == 24
    lines = [line for line in messages(caplog, logging.WARNING) if "station stubborn of batch b" in line]
    assert len(lines) == 3  # at 10, 15 and 20


async def test_many_stragglers_are_not_all_named(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with BatchResultAggregator(shielded, batch_timeout=2) as aggregator:
        await aggregator.submit("b", dict.fromkeys(numbered(100), 12.0))
    (line,) = [line for line in messages(caplog, logging.WARNING) if "still running" in line]
    assert line.count("station S") == 20
    assert line.endswith("; ...")


async def test_too_many_batches_with_stragglers_pause_the_intake_and_one_error_names_them(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with BatchResultAggregator(shielded, batch_timeout=2, max_unreaped_batches=2) as aggregator:
        assert aggregator.room == 100
        for number in range(2):
            await aggregator.submit(f"batch {number}", {"stubborn": 20.0})
        await trio.sleep(3)
        assert aggregator.room == 0
        assert aggregator.statistics().unreaped_batches == 2
        await aggregator.submit("waits", {"A": 0.0})
        assert trio.current_time() == 20
        assert aggregator.room == 99
    (error,) = [line for line in messages(caplog, logging.ERROR) if "intake pauses" in line]
    assert error.startswith("intake pauses: 2 closed batches have stations that ignore their cancellation: ")
    for number in range(2):
        assert f"station stubborn of batch batch {number} at " in error


async def test_batches_that_expire_together_do_not_pause_the_intake_if_their_stations_end(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with BatchResultAggregator(sleeping, batch_timeout=2, max_unreaped_batches=2) as aggregator:
        for number in range(50):
            await aggregator.submit(f"batch {number}", dict.fromkeys(numbered(5), math.inf))
        await trio.sleep(2)
        for number in range(50):
            await aggregator.submit(f"again {number}", {"A": 1.0})
        assert trio.current_time() == 2
    assert messages(caplog, logging.ERROR) == []


# What is known about it.


async def test_the_statistics_are_those_of_a_life(autojump_clock: MockClock) -> None:
    async def callback(station_id: str, what: object) -> object:
        if what == "raises":
            raise ValueError
        if what is None or isinstance(what, list):
            return what
        return await sleeping(station_id, what)

    async with BatchResultAggregator(callback, batch_timeout=4) as aggregator:
        before = aggregator.statistics()
        assert (before.opened, before.completion_rate, before.mean_seconds, before.timeout_rate) == (0, 0.0, 0.0, 0.0)
        assert before.station_success_rate == 0.0
        await aggregator.run("all", {"A": 1.0, "B": "raises", "C": None, "D": []})
        await aggregator.run("timeout", {"A": 1.0, "B": math.inf, "C": 2.0})
        forced = await aggregator.submit("forced", {"A": math.inf})
        await trio.sleep(1)
        open_one = await aggregator.submit("open", {"A": 1.0})
        forced.complete()
        await trio.testing.wait_all_tasks_blocked()
        statistics = aggregator.statistics()
        assert statistics.opened == 4
        assert statistics.open_batches == 1
        assert statistics.closed == 3
        assert statistics.uploaded == 3
        assert statistics.completed_by == {
            "all": 1,
            "timeout": 1,
            "forced": 1,
            "quorum": 0,
            "failures": 0,
            "aborted": 0,
        }
        assert statistics.stations == {
            "succeeded": 3,
            "no_output": 1,
            "failed": 2,
            "timed_out": 1,
            "cancelled": 1,
            "skipped": 0,
        }
        assert statistics.expected == 8
        assert statistics.completion_rate == 1 / 3
        assert statistics.timeout_rate == 1 / 3
        assert statistics.station_success_rate == 3 / 8
        assert statistics.mean_seconds == (1 + 4 + 1) / 3
        assert statistics.remembered_ids == 3
        await open_one.wait_closed()
        assert statistics.open_batches == 1  # a snapshot
        with pytest.raises(dataclasses.FrozenInstanceError):
            statistics.closed = 4
    assert aggregator.statistics().closed == 4


async def test_threads_may_ask_for_statistics() -> None:
    stop = threading.Event()
    errors: list[Exception] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                aggregator.statistics()
            except Exception as error:
                errors.append(error)

    async with BatchResultAggregator(sleeping, Lists(), max_uploads=2) as aggregator:
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        threads = [threading.Thread(target=ask) for _ in range(2)]
        try:
            for thread in threads:
                thread.start()
            for number in range(1000):
                await aggregator.admit(f"batch {number}", {"A": 0.0, "B": 0.0}, order=number % 7)
        finally:
            stop.set()
            sys.setswitchinterval(before)
        for thread in threads:
            await trio.to_thread.run_sync(thread.join)
    assert errors == []
    assert await trio.to_thread.run_sync(aggregator.statistics) == aggregator.statistics()


def test_statistics_are_there_when_the_run_is_over() -> None:
    async def main() -> BatchResultAggregator:
        async with BatchResultAggregator(answer) as aggregator:
            await aggregator.run("b", {"A": 1})
        return aggregator

    statistics = trio.run(main).statistics()
    assert (statistics.closed, statistics.open_batches, statistics.remembered_ids) == (1, 0, 1)


async def test_callbacks_and_handlers_know_their_batch(autojump_clock: MockClock) -> None:
    seen = []

    def look(who: str) -> None:
        seen.append((who, current_batch()))

    async def callback(station_id: str, value: object) -> dict:
        look("callback")
        await trio.sleep(1)
        look("callback later")
        return {}

    async def handler(batch_id: str, results_list: list) -> None:
        look("handler")

    async def report_handler(report: BatchReport) -> None:
        look("report_handler")

    async with BatchResultAggregator(callback, handler, report_handler=report_handler) as aggregator:
        await trio.sleep(2)
        batch = await aggregator.admit(
            "b", {"A": 1}, topic="t", partition=3, offset=7, timestamp=1.5, key=b"k", headers=(("h", b"v"),)
        )
        await aggregator.submit("plain", {"A": 1})
        with pytest.raises(RuntimeError, match="for callbacks and handlers"):
            current_batch()
    whole = [context for _, context in seen if context.batch_id == "b"]
    assert {who for who, _ in seen} == {"callback", "callback later", "handler", "report_handler"}
    assert len(whole) == 4
    for context in whole:
        assert context == batch.context
        assert (context.topic, context.partition, context.offset) == ("t", 3, 7)
        assert (context.timestamp, context.key, context.headers) == (1.5, b"k", (("h", b"v"),))
        assert context.deadline == 7
    with pytest.raises(dataclasses.FrozenInstanceError):
        whole[0].offset = 8
    assert {context.topic for _, context in seen if context.batch_id == "plain"} == {None}


async def test_a_callback_in_a_thread_and_a_plain_handler_know_their_batch() -> None:
    seen = []

    def callback(station_id: str, value: object) -> dict:
        seen.append(current_batch().batch_id)
        return {}

    def handler(batch_id: str, results_list: list) -> None:
        assert threading.current_thread() is not threading.main_thread()
        seen.append(current_batch().batch_id)

    async with BatchResultAggregator(callback, handler) as aggregator:
        await aggregator.run("first", {"A": 1})
        await aggregator.run("second", {"A": 1})
    assert seen == ["first", "first", "second", "second"]


variable: ContextVar[str] = ContextVar("variable", default="nobody's")


async def test_the_variables_of_whoever_hands_a_batch_in_reach_its_callbacks_and_handlers_and_no_others() -> None:
    seen: dict[tuple[str, str], str] = {}

    async def callback(station_id: str, value: object) -> dict:
        seen[current_batch().batch_id, "callback"] = variable.get()
        variable.set("a callback's")
        return {}

    async def handler(batch_id: str, results_list: list) -> None:
        seen[batch_id, "handler"] = variable.get()
        variable.set("a handler's")

    def report_handler(report: BatchReport) -> None:  # in a thread: no virtual time here
        seen[report.batch_id, "report"] = variable.get()
        variable.set("a report handler's")

    async def submit(batch_id: str) -> None:
        if batch_id != "default":
            variable.set(f"{batch_id}'s")
        await aggregator.submit(batch_id, {"A": 1, "B": 2})

    variable.set("the block's")
    async with (
        BatchResultAggregator(callback, handler, report_handler=report_handler, max_uploads=1) as aggregator,
        trio.open_nursery() as nursery,
    ):
        for batch_id in ("first", "second", "default"):
            nursery.start_soon(submit, batch_id)
    for batch_id, value in (("first", "first's"), ("second", "second's"), ("default", "the block's")):
        assert seen[batch_id, "callback"] == value
        assert seen[batch_id, "handler"] == value
        assert seen[batch_id, "report"] == "a handler's"  # one list, one task
    assert variable.get() == "the block's"


async def test_observers_hear_the_life_of_a_batch(autojump_clock: MockClock) -> None:
    heard = []

    class Ears(trioagg.Observer):
        def hears_answers(self) -> bool:
            return True

        def opened(self, batch: trioagg.BatchContext, expected: int) -> None:
            heard.append((trio.current_time(), "opened", batch.batch_id, batch.deadline, expected))

        def started(self, batch_id: str) -> None:
            heard.append((trio.current_time(), "started", batch_id))

        def answered(self, batch_id: str, station_id: str, done: int, expected: int) -> None:
            heard.append((trio.current_time(), "answered", station_id, done, expected))

        def ignored(self, batch_id: str, station_id: str, answer: Answer) -> None:
            heard.append((trio.current_time(), "ignored", station_id, answer))

        def closed(self, report: BatchReport) -> None:
            heard.append((trio.current_time(), "closed", report.completed_by))

        def uploading(self, report: BatchReport, attempt: int) -> None:
            heard.append((trio.current_time(), "uploading", attempt))

        def uploaded(self, report: BatchReport) -> None:
            heard.append((trio.current_time(), "uploaded"))

    async with BatchResultAggregator(shielded, Lists(seconds=1), observers=[Ears()]) as aggregator:
        await aggregator.submit("b", {"A": 1.0, "B": 8.0})
    assert heard == [
        (0, "opened", "b", 5, 2),
        (0, "started", "b"),
        (1, "answered", "A", 1, 2),
        (5, "closed", "timeout"),
        (5, "uploading", 1),
        (6, "uploaded"),
        (8, "ignored", "B", "late"),
    ]


async def test_the_garbage_collector_is_tuned_only_on_request_and_only_for_a_while(autojump_clock: MockClock) -> None:
    before = gc.get_threshold()
    async with BatchResultAggregator():
        assert gc.get_threshold() == before
    with pytest.raises(ValueError, match="mine"):
        async with BatchResultAggregator(tune_gc=True):
            assert gc.get_threshold() != before
            assert gc.get_freeze_count() > 0
            raise ValueError("mine")
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("seconds", [0.0, 1.0, math.inf])
async def test_batches_make_no_cyclic_garbage(seconds: float, autojump_clock: MockClock) -> None:
    async def callback(station_id: str, number: int) -> dict:
        await trio.sleep(seconds)
        if number % 3 == 0:
            raise ValueError
        return {"station_id": station_id}

    async with BatchResultAggregator(callback, Lists(), report_handler=None, batch_timeout=2) as aggregator:

        async def batches(name: str) -> None:
            await aggregator.run(f"{name} 1", numbered(5))
            pushed = await aggregator.create_batch(f"{name} 2", ["A", "B"])
            pushed.add_failure("A", ValueError())
            await pushed.wait_closed()
            await trio.sleep(1)

        await batches("first")
        garbage = await cyclic_garbage_of(partial(batches, "second"))
    assert garbage == []


@pytest.mark.parametrize("where", ["body", "callback", "handler"])
def test_ctrl_c_ends_the_block_bare_and_no_list_goes_up_any_more(where: str) -> None:
    lists = []

    def press_ctrl_c() -> None:
        signal.raise_signal(signal.SIGINT)

    async def callback(station_id: str, value: object) -> dict:
        if where == "callback":
            press_ctrl_c()
        await trio.sleep_forever()

    async def handler(batch_id: str, results_list: list) -> None:
        if where == "handler":
            press_ctrl_c()
        await trio.lowlevel.checkpoint()
        lists.append(batch_id)

    async def main() -> None:
        async with BatchResultAggregator(callback, handler) as aggregator:
            await aggregator.submit("runs", {"A": 1})
            await trio.testing.wait_all_tasks_blocked()
            if where == "handler":
                await aggregator.create_batch("goes up", [])
            if where == "body":
                press_ctrl_c()
            await trio.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert lists == []


async def test_stations_in_threads_make_no_cyclic_garbage_either() -> None:
    def callback(station_id: str, number: int) -> object:
        if number % 3 == 0:
            raise ValueError
        return [] if number % 3 == 1 else {}

    async with BatchResultAggregator(callback) as aggregator:
        await aggregator.run("first", numbered(6))
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            report = await aggregator.run("second", numbered(6))
            assert (report.failed, report.succeeded) == (4, 2)
            del report
            await trio.testing.wait_all_tasks_blocked()
            gc.collect()
            garbage = [f"{type(thing).__module__}.{type(thing).__qualname__}: {thing!r:.200}" for thing in gc.garbage]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert [thing for thing in garbage if "trioagg" in thing or "Error" in thing or "frame" in thing] == []


def test_an_interrupt_that_falls_into_a_finalizer_is_not_lost() -> None:
    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    async def callback(station_id: str, number: int) -> dict:
        Interrupted()
        await trio.sleep_forever()
        return {}

    async def main() -> None:
        async with BatchResultAggregator(callback, batch_timeout=10) as aggregator:
            await aggregator.submit("b", {"S": 1})
            await trio.sleep(5)
            pytest.fail("the interrupt was lost")

    before = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert sys.unraisablehook is before
