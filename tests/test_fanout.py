"""One batch: who runs when, when the list leaves, and what the ledger says.  Time is virtual wherever it can be."""

from __future__ import annotations

import gc
import math
import time
import tracemalloc
import types
from collections import Counter
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from garbage import cyclic_garbage_of

import trioagg
from trioagg import BatchReport, BatchResultAggregator, CompletedBy, Verdict, run_batch

if TYPE_CHECKING:
    from trio.testing import MockClock


class Tasks(trio.abc.Instrument):
    """Counts the tasks that are started while it is installed."""

    def __init__(self) -> None:
        self.started = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.started += 1

    def __enter__(self) -> Tasks:
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(self, *details: object) -> None:
        trio.lowlevel.remove_instrument(self)


class Gauge:
    """How many are inside at once, and the most there ever were."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def __enter__(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)

    def __exit__(self, *details: object) -> None:
        self.now -= 1


def numbered(count: int) -> dict[str, int]:
    return {f"S{number:04}": number for number in range(count)}


async def answer(station_id: str, value: object) -> dict[str, object]:
    return {"station_id": station_id, "value": value}


async def sleeping(station_id: str, seconds: float) -> dict[str, object]:
    await trio.sleep(seconds)
    return {"station_id": station_id}


async def with_one_checkpoint(station_id: str, value: object) -> dict[str, object]:
    await trio.lowlevel.checkpoint()
    return {"station_id": station_id}


async def shielded(station_id: str, seconds: float) -> dict[str, object]:
    with trio.CancelScope(shield=True):
        await trio.sleep(seconds)
    return {"station_id": station_id}


def stations_of(report: BatchReport) -> list[object]:
    return [result["station_id"] for result in report.results]


def adds_up(report: BatchReport) -> bool:
    """Whether the counts are those of the ledger, and the ledger has everybody."""
    ledger = Counter(outcome.verdict for outcome in report.stations.values())
    return (
        all(getattr(report, verdict) == ledger[verdict] for verdict in Verdict)
        and ledger.total() == report.expected == len(report.stations)
        and len(report.results) == report.succeeded
    )


# The guide's three timings: 100 stations, 5 seconds.


async def test_when_all_succeed_within_two_seconds_the_list_leaves_after_two(autojump_clock: MockClock) -> None:
    report = await run_batch("b", {f"S{n:03}": (n + 1) / 64 + 0.4375 for n in range(100)}, sleeping, batch_timeout=5)
    assert trio.current_time() == report.seconds == 2
    assert report.completed_by is CompletedBy.ALL
    assert report.succeeded == 100


async def test_when_20_of_100_never_answer_the_list_leaves_at_the_deadline(autojump_clock: MockClock) -> None:
    stations = {f"S{n:03}": 1.0 if n < 80 else math.inf for n in range(100)}
    report = await run_batch("b", stations, sleeping, batch_timeout=5)
    assert trio.current_time() == report.seconds == 5
    assert report.completed_by is CompletedBy.TIMEOUT
    assert (report.succeeded, report.timed_out, report.answered) == (80, 20, 80)


@pytest.mark.parametrize("how", ["raise", "None"])
async def test_when_20_of_100_fail_by_themselves_nobody_waits_for_the_deadline(
    how: str, autojump_clock: MockClock
) -> None:
    async def callback(station_id: str, number: int) -> dict | None:
        await trio.sleep(1)
        if number < 80:
            return {"station_id": station_id}
        if how == "raise":
            raise ValueError(station_id)
        return None

    report = await run_batch("b", numbered(100), callback, batch_timeout=5)
    assert trio.current_time() == report.seconds == 1
    assert report.completed_by is CompletedBy.ALL
    assert report.succeeded == 80
    assert (report.failed, report.no_output) == ((20, 0) if how == "raise" else (0, 20))


async def test_when_90_of_100_time_out_the_other_ten_leave_at_the_deadline(autojump_clock: MockClock) -> None:
    stations = {f"S{n:03}": 0.5 if n < 10 else 60.0 for n in range(100)}
    report = await run_batch("b", stations, sleeping, batch_timeout=5)
    assert trio.current_time() == report.seconds == 5
    assert (report.succeeded, report.timed_out) == (10, 90)
    assert sorted(stations_of(report)) == [f"S{n:03}" for n in range(10)]


# The deadline.


async def test_the_report_is_fixed_at_the_deadline_when_a_station_ignores_its_cancellation(
    autojump_clock: MockClock,
) -> None:
    report = await run_batch("b", {"fast": 1.0, "stubborn": 8.0}, shielded, batch_timeout=5)
    assert trio.current_time() == 8  # no task outlives its block
    assert report.seconds == 5
    assert report.stations["stubborn"].verdict is Verdict.TIMED_OUT
    assert stations_of(report) == ["fast"]


async def test_no_task_is_left_when_the_batch_returns(autojump_clock: MockClock) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    await run_batch("b", {"never": 0.0, "fast": 1.0, "hanging": math.inf}, sleeping)
    assert trio.lowlevel.current_statistics().tasks_living == before


@pytest.mark.parametrize("waits", [False, True], ids=["starts", "waits first"])
async def test_stations_that_block_without_waiting_cannot_outrun_the_deadline(
    waits: bool, mock_clock: MockClock
) -> None:
    served = 0

    async def callback(station_id: str, number: int) -> dict:
        nonlocal served
        served += 1
        if waits and number == 0:
            await trio.lowlevel.checkpoint()
        mock_clock.jump(1)  # a computation of a second
        return {"station_id": station_id}

    report = await run_batch("b", numbered(1000), callback, batch_timeout=50)
    # One station may be under way at the deadline, and one more may be first in the pass of the scheduler after it.
    assert 50 <= report.seconds <= 52
    assert report.completed_by is CompletedBy.TIMEOUT
    assert report.succeeded == served == report.seconds
    assert report.skipped == 1000 - served
    assert adds_up(report)


@pytest.mark.parametrize("first", ["one checkpoint", "sleeps"])
async def test_stations_that_block_cannot_outrun_the_deadline_after_many_that_wait(
    first: str, mock_clock: MockClock
) -> None:
    mock_clock.autojump_threshold = 0

    async def callback(station_id: str, number: int) -> dict:
        if number >= 500:
            mock_clock.jump(1)
        elif first == "sleeps":
            await trio.sleep(0.5)
        else:
            await trio.lowlevel.checkpoint()
        return {}

    for _ in range(5):  # Trio shuffles
        report = await run_batch("b", numbered(1000), callback, batch_timeout=50)
        # Every server that waited may finish one that blocks before it sees the scheduler again, if it took one at all.
        assert 50 <= report.seconds <= 60
        assert report.succeeded < 600
        assert adds_up(report)


async def test_on_the_real_clock_stations_that_block_cannot_outrun_the_deadline_either() -> None:
    async def callback(station_id: str, number: int) -> dict:
        time.sleep(0.001)
        return {}

    started = time.perf_counter()
    report = await run_batch("b", numbered(1000), callback, batch_timeout=0.05)
    # All of them take more than a second; what is left of the bound is for a busy machine.
    assert 0.05 <= report.seconds < 0.3
    assert time.perf_counter() - started < 0.3
    assert report.skipped > 700


@pytest.mark.parametrize("callback", [answer, sleeping])
async def test_with_a_batch_timeout_of_zero_nobody_is_waited_for(callback, autojump_clock: MockClock) -> None:
    for _ in range(20):  # whoever does not wait either may be in time: Trio shuffles
        report = await run_batch("b", dict.fromkeys(numbered(3), 1.0), callback, batch_timeout=0)
        assert trio.current_time() == report.seconds == 0
        assert adds_up(report)
        if callback is sleeping:
            assert report.completed_by is CompletedBy.TIMEOUT
            assert report.succeeded == 0


async def test_a_batch_without_a_timeout_waits_for_everybody(autojump_clock: MockClock) -> None:
    report = await run_batch("b", {"A": 1e6}, sleeping, batch_timeout=math.inf)
    assert report.seconds == 1e6
    assert report.completed_by is CompletedBy.ALL


async def test_two_batches_have_a_deadline_each(autojump_clock: MockClock) -> None:
    seconds = {}

    async def run(batch_timeout: float) -> None:
        seconds[batch_timeout] = (await run_batch("b", {"A": math.inf}, sleeping, batch_timeout=batch_timeout)).seconds

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, 2)
        nursery.start_soon(run, 3)
    assert seconds == {2: 2, 3: 3}


async def test_a_callback_may_run_a_batch_of_its_own(autojump_clock: MockClock) -> None:
    async def callback(station_id: str, value: object) -> dict:
        inner = await run_batch(f"inner of {station_id}", {"X": 1.0, "Y": math.inf}, sleeping, batch_timeout=2)
        return {"inner": inner.succeeded, "batch": trioagg.current_batch().batch_id}

    report = await run_batch("outer", numbered(3), callback)
    assert report.seconds == 2
    assert report.results == [{"inner": 1, "batch": "outer"}] * 3


@pytest.mark.parametrize("batch_timeout", [-1, -math.inf, math.nan])
async def test_a_timeout_that_is_none_is_refused(batch_timeout: float) -> None:
    with pytest.raises(ValueError, match="batch_timeout"):
        await run_batch("b", {}, answer, batch_timeout=batch_timeout)


async def test_a_cap_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_running_stations"):
        await run_batch("b", {}, answer, max_running_stations=0)


# Who runs when.


async def test_a_thousand_sleepers_all_sleep_at_once(autojump_clock: MockClock) -> None:
    report = await run_batch("b", dict.fromkeys(numbered(1000), 0.5), sleeping)
    assert report.seconds == 0.5
    assert report.succeeded == 1000
    assert {outcome.started_seconds for outcome in report.stations.values()} == {0.0}
    assert {outcome.run_seconds for outcome in report.stations.values()} == {0.5}


async def test_stations_that_never_wait_share_a_task(autojump_clock: MockClock) -> None:
    with Tasks() as tasks:
        report = await run_batch("b", numbered(1000), answer)
    assert report.succeeded == 1000
    assert tasks.started <= 3
    assert stations_of(report) == list(numbered(1000))


async def test_a_station_that_waits_has_a_task_to_itself(autojump_clock: MockClock) -> None:
    tasks_of_stations = set()

    async def callback(station_id: str, number: int) -> dict:
        tasks_of_stations.add(trio.lowlevel.current_task())
        return await sleeping(station_id, 1.0)

    await run_batch("b", numbered(50), callback)
    assert len(tasks_of_stations) == 50


async def test_the_last_station_starts_no_heir(autojump_clock: MockClock) -> None:
    with Tasks() as tasks:
        await run_batch("b", {"only": 1.0}, sleeping)
    assert tasks.started == 1


@pytest.mark.parametrize("callback", [sleeping, shielded])
@pytest.mark.parametrize(("cap", "seconds"), [(1, 40), (2, 20), (7, 6), (39, 2), (40, 1), (1000, 1)])
async def test_never_more_stations_run_than_may_and_never_fewer(
    callback, cap: int, seconds: int, autojump_clock: MockClock
) -> None:
    gauge = Gauge()

    async def gauged(station_id: str, value: float) -> dict:
        with gauge:
            return await callback(station_id, value)

    report = await run_batch("b", dict.fromkeys(numbered(40), 1.0), gauged, batch_timeout=100, max_running_stations=cap)
    assert report.seconds == seconds
    assert gauge.most == min(cap, 40)
    assert report.succeeded == 40


@pytest.mark.parametrize("cap", [1, 2, 5])
async def test_the_cap_holds_for_a_mixture_of_every_kind_of_station(cap: int, autojump_clock: MockClock) -> None:
    variable: ContextVar[int] = ContextVar("variable")
    gauge = Gauge()

    async def sleeps(station_id: str, number: int) -> dict:
        return await sleeping(station_id, 0.25)

    async def leaves_a_variable_set(station_id: str, number: int) -> dict:
        variable.set(number)
        await trio.lowlevel.checkpoint()
        raise ValueError

    kinds = [answer, with_one_checkpoint, sleeps, leaves_a_variable_set]

    async def callback(station_id: str, number: int) -> dict:
        with gauge:
            return await kinds[number % len(kinds)](station_id, number)

    report = await run_batch("b", numbered(100), callback, batch_timeout=100, max_running_stations=cap)
    assert gauge.most == cap
    assert (report.succeeded, report.failed) == (75, 25)


async def test_at_a_cap_of_one_the_stations_come_one_by_one_in_their_order(autojump_clock: MockClock) -> None:
    order = []

    async def callback(station_id: str, seconds: float) -> dict:
        order.append(f"{station_id} begins")
        await trio.sleep(seconds)
        order.append(f"{station_id} ends")
        return {"station_id": station_id}

    report = await run_batch("b", {"A": 0.5, "B": 0.0, "C": 0.25}, callback, max_running_stations=1)
    assert order == [f"{station} {what}" for station in "ABC" for what in ("begins", "ends")]
    assert stations_of(report) == ["A", "B", "C"]
    times = [(outcome.started_seconds, outcome.run_seconds) for outcome in report.stations.values()]
    assert times == [(0, 0.5), (0.5, 0), (0.5, 0.25)]


async def test_a_station_gets_its_own_value_untouched(autojump_clock: MockClock) -> None:
    values = {"A": object(), "B": [1, 2], "C": None}
    got = {}

    async def callback(station_id: str, value: object) -> None:
        got[station_id] = value

    await run_batch("b", values, callback)
    assert all(got[station] is value for station, value in values.items())


async def test_the_stations_are_taken_from_any_mapping(autojump_clock: MockClock) -> None:
    report = await run_batch("b", types.MappingProxyType(numbered(5)), answer)
    assert report.succeeded == 5


async def test_the_stations_are_those_that_were_given_whatever_becomes_of_the_mapping(
    autojump_clock: MockClock,
) -> None:
    stations = numbered(5)

    async def callback(station_id: str, number: int) -> dict:
        stations.clear()
        stations["another"] = 7
        await trio.sleep(1)
        return {"station_id": station_id}

    report = await run_batch("b", stations, callback)
    assert sorted(stations_of(report)) == list(numbered(5))


async def test_a_batch_of_nobody_is_complete_at_once(autojump_clock: MockClock) -> None:
    report = await run_batch("b", {}, answer)
    assert trio.current_time() == report.seconds == 0
    assert report.completed_by is CompletedBy.ALL
    assert (report.expected, report.results, dict(report.stations)) == (0, [], {})


async def test_a_batch_is_always_a_checkpoint(autojump_clock: MockClock) -> None:
    for stations in ({}, numbered(1), numbered(1000)):
        with trio.testing.assert_checkpoints():
            await run_batch("b", stations, answer)


async def test_other_tasks_are_not_kept_waiting_by_stations_that_block(mock_clock: MockClock) -> None:
    passes = 0

    async def other() -> None:
        nonlocal passes
        while True:
            await trio.lowlevel.checkpoint()
            passes += 1

    async def callback(station_id: str, number: int) -> dict:
        mock_clock.jump(0.001)
        return {}

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await run_batch("b", numbered(100), callback, batch_timeout=50)
        nursery.cancel_scope.cancel()
    assert passes >= 90


# The order of the list, and the ledger.


async def test_the_list_is_in_the_order_in_which_the_stations_finished(autojump_clock: MockClock) -> None:
    report = await run_batch("b", {"A": 3.0, "B": 1.0, "C": 4.0, "D": 2.0}, sleeping)
    assert stations_of(report) == ["B", "D", "A", "C"]
    assert list(report.stations) == ["A", "B", "C", "D"]


async def test_a_station_that_never_started_is_skipped_and_one_that_did_has_timed_out(
    autojump_clock: MockClock,
) -> None:
    stations = {"A": 1.0, "B": math.inf, "C": 3.0, "D": 3.0, "E": 1.0}
    report = await run_batch("b", stations, sleeping, batch_timeout=5, max_running_stations=2)
    ledger = {
        station: (outcome.verdict, outcome.started_seconds, outcome.run_seconds)
        for station, outcome in report.stations.items()
    }
    assert ledger == {
        "A": (Verdict.SUCCEEDED, 0, 1),
        "B": (Verdict.TIMED_OUT, 0, 5),
        "C": (Verdict.SUCCEEDED, 1, 3),
        "D": (Verdict.TIMED_OUT, 4, 1),
        "E": (Verdict.SKIPPED, None, None),
    }
    assert adds_up(report)


async def test_an_answer_in_the_last_moment_is_in_the_list_or_has_timed_out_but_never_both(
    autojump_clock: MockClock,
) -> None:
    seen = set()
    for _ in range(40):
        report = await run_batch("b", {"A": 5.0}, sleeping, batch_timeout=5)
        assert adds_up(report)
        assert report.seconds == 5
        seen.add((report.completed_by, report.stations["A"].verdict))
    assert seen <= {(CompletedBy.ALL, Verdict.SUCCEEDED), (CompletedBy.TIMEOUT, Verdict.TIMED_OUT)}


async def test_times_are_exact(autojump_clock: MockClock) -> None:
    await trio.sleep(17)  # they count from the opening of the batch
    report = await run_batch("b", {"A": 0.25, "B": 1.5, "C": math.inf}, sleeping, batch_timeout=4)
    times = {station: (outcome.started_seconds, outcome.run_seconds) for station, outcome in report.stations.items()}
    assert times == {"A": (0, 0.25), "B": (0, 1.5), "C": (0, 4)}


# Context variables, task names, cancellation.


async def test_a_task_has_the_name_of_its_station(autojump_clock: MockClock) -> None:
    names = {}

    async def callback(station_id: str, number: int) -> None:
        names[station_id] = trio.lowlevel.current_task().name
        await trio.sleep(number % 2)

    await run_batch("b", numbered(20), callback)
    assert names == {station: station for station in numbered(20)}


async def test_the_batch_is_cancelled_with_its_caller_and_there_is_no_report(autojump_clock: MockClock) -> None:
    cancelled = []

    async def callback(station_id: str, value: object) -> dict:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled.append(station_id)
            raise

    report = None
    with trio.move_on_after(2) as scope:
        report = await run_batch("b", numbered(3), callback)
    assert scope.cancelled_caught
    assert trio.current_time() == 2
    assert report is None
    assert sorted(cancelled) == list(numbered(3))


async def test_in_a_cancelled_scope_the_batch_is_cancelled_even_if_no_station_waits(
    autojump_clock: MockClock,
) -> None:
    report = None
    with trio.CancelScope() as scope:
        scope.cancel()
        report = await run_batch("b", numbered(3), answer)
    assert report is None
    assert scope.cancelled_caught


async def test_a_task_that_a_callback_leaves_behind_in_the_batchs_nursery_ends_with_the_batch(
    autojump_clock: MockClock,
) -> None:
    async def callback(station_id: str, value: object) -> dict:
        trio.lowlevel.current_task().parent_nursery.start_soon(trio.sleep_forever)
        return {"station_id": station_id}

    with trio.fail_after(10):
        report = await run_batch("b", numbered(3), callback)
    assert report.completed_by is CompletedBy.ALL
    assert report.seconds == 0


async def fails(station_id: str, value: object) -> dict:
    raise ValueError(station_id)


async def fails_after_a_while(station_id: str, value: object) -> dict:
    await trio.sleep(1)
    raise ValueError(station_id)


async def fails_in_its_nursery(station_id: str, value: object) -> dict:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails, station_id, value)
        await trio.sleep_forever()


async def returns_a_list(station_id: str, value: object) -> list:
    return [station_id]


async def hangs(station_id: str, value: object) -> dict:
    await trio.sleep_forever()


@pytest.mark.parametrize(
    "callback",
    [answer, with_one_checkpoint, fails, fails_after_a_while, fails_in_its_nursery, returns_a_list, hangs],
    ids=lambda callback: callback.__name__,
)
async def test_a_batch_makes_no_cyclic_garbage(callback, autojump_clock: MockClock) -> None:
    async def batches() -> None:
        for cap in (1, 1000):
            report = await run_batch("b", numbered(10), callback, max_running_stations=cap)
            dict(report.stations)

    await batches()
    assert await cyclic_garbage_of(batches) == []


@pytest.mark.parametrize("count", [11_000, 22_000, 44_000])
async def test_a_station_that_waits_for_its_turn_costs_no_more_than_its_places_in_two_tables(count: int) -> None:
    async def bytes_of(stations: dict[str, int]) -> int:
        released = trio.Event()

        async def waits(station_id: str, value: int) -> None:
            await released.wait()

        tracemalloc.start()
        try:
            async with BatchResultAggregator(waits, batch_timeout=60, max_running_stations=10) as aggregator:
                await aggregator.submit("many", stations)
                await trio.testing.wait_all_tasks_blocked()
                gc.collect()
                taken, _ = tracemalloc.get_traced_memory()
                released.set()
        finally:
            tracemalloc.stop()
        return taken

    stations = {f"S{number:06d}": number for number in range(count)}
    few = await bytes_of({f"S{number:06d}": number for number in range(100)})
    assert (await bytes_of(stations) - few) / (count - 100) <= 64


async def test_no_station_starts_after_the_deadline_however_long_others_block(autojump_clock: MockClock) -> None:
    async def blocks(station_id: str, seconds: float) -> dict:
        autojump_clock.jump(seconds)
        return {"station_id": station_id}

    # Trio's order is random: whose turn it is after the deadline must not matter.
    for _ in range(40):
        report = await run_batch("b", dict.fromkeys(["A", "B", "C", "D"], 0.7), blocks, batch_timeout=0.5)
        assert report.completed_by == "timeout"
        assert report.seconds == pytest.approx(0.7)
        assert (report.succeeded, report.skipped) == (1, 3)
