"""A station that is tried again, and one that has only so long."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trioagg import BatchResultAggregator, Retry, StationSkipped, StationTimedOut, exponential_backoff, run_batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock


def failing(times: int, *, seconds: float = 1.0, error: Exception | None = None) -> tuple[Callable, list[float]]:
    """A callback that fails so often before it answers, and the times at which it was called."""
    began: list[float] = []

    async def callback(station_id: str, value: object) -> dict:
        began.append(trio.current_time())
        await trio.sleep(seconds)
        if len(began) <= times:
            raise error or ValueError(f"try {len(began)}")
        return {"try": len(began)}

    return callback, began


async def test_a_station_is_tried_again_until_it_answers(autojump_clock: MockClock) -> None:
    callback, began = failing(2)
    report = await run_batch("b", {"A": 1}, callback, batch_timeout=60, retry_station=Retry(backoff=3))
    assert report.results == [{"try": 3}]
    assert began == [0, 4, 8]
    outcome = report.stations["A"]
    assert (outcome.attempts, outcome.run_seconds) == (3, 9)


async def test_after_the_last_try_its_error_is_the_stations(autojump_clock: MockClock) -> None:
    callback, began = failing(9)
    report = await run_batch("b", {"A": 1}, callback, retry_station=Retry(attempts=3, backoff=0))
    assert (report.completed_by, report.failed, len(began)) == ("all", 1, 3)
    assert str(report.stations["A"].error) == "try 3"
    assert report.stations["A"].attempts == 3


async def test_a_try_that_cannot_be_over_in_time_is_not_begun(autojump_clock: MockClock) -> None:
    # Each takes a second, with one between: the third one would begin at 4 and end at 5.
    callback, began = failing(9)
    report = await run_batch("b", {"A": 1}, callback, batch_timeout=5, retry_station=Retry(attempts=9, backoff=1))
    assert began == [0, 2]
    assert (report.completed_by, report.seconds) == ("all", 3)
    assert report.stations["A"].verdict == "failed"


async def test_only_what_was_asked_for_is_tried_again(autojump_clock: MockClock) -> None:
    callback, began = failing(9, error=KeyError("no such thing"))
    report = await run_batch("b", {"A": 1}, callback, retry_station=Retry(on=(OSError, ValueError), backoff=0))
    assert len(began) == 1
    assert report.stations["A"].attempts == 1


async def test_a_result_may_be_a_reason_to_try_again(autojump_clock: MockClock) -> None:
    answers = [None, {"quality": "bad"}, {"quality": "good"}]

    async def callback(station_id: str, value: object) -> dict | None:
        await trio.sleep(1)
        return answers.pop(0)

    def is_bad(result: Any) -> bool:
        return result is None or result["quality"] == "bad"

    report = await run_batch("b", {"A": 1}, callback, retry_station=Retry(on=is_bad, backoff=0))
    assert report.results == [{"quality": "good"}]
    assert report.stations["A"].attempts == 3


async def test_the_last_result_stands_however_bad(autojump_clock: MockClock) -> None:
    async def callback(station_id: str, value: object) -> None:
        await trio.sleep(1)

    report = await run_batch("b", {"A": 1}, callback, retry_station=Retry(on=lambda result: result is None, backoff=0))
    assert (report.no_output, report.stations["A"].attempts) == (1, 3)


async def test_a_station_that_waits_for_its_next_try_is_timed_out_by_the_deadline_of_a_shielded_one(
    autojump_clock: MockClock,
) -> None:
    async def callback(station_id: str, seconds: float) -> dict:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)
        raise ValueError

    report = await run_batch("b", {"A": 10}, callback, batch_timeout=5, retry_station=Retry(backoff=0))
    assert (report.seconds, trio.current_time()) == (5, 10)
    assert (report.stations["A"].verdict, report.stations["A"].attempts) == ("timed_out", 1)


async def test_no_try_is_begun_after_the_end_of_its_batch(autojump_clock: MockClock) -> None:
    began = []

    async def callback(station_id: str, value: object) -> dict:
        began.append(trio.current_time())
        raise ValueError

    async def slow_upload(batch_id: str, results_list: list) -> None:
        await trio.sleep(1)  # stragglers are reaped a little later while lists wait

    retry = Retry(attempts=100, backoff=0.1)
    async with BatchResultAggregator(callback, slow_upload, max_uploads=1, retry_station=retry) as aggregator:
        batches = [await aggregator.submit(f"{number}", {"A": 1}) for number in range(5)]
        await trio.sleep(0.05)
        for batch in batches:
            batch.complete()
    assert set(began) == {0}
    assert {batch.report.stations["A"].attempts for batch in batches} == {1}


async def test_a_station_that_is_skipped_is_not_tried_again(autojump_clock: MockClock) -> None:
    callback, began = failing(9, error=StationSkipped("not today"))
    report = await run_batch("b", {"A": 1}, callback, retry_station=Retry(backoff=0))
    assert (report.skipped, report.stations["A"].attempts, len(began)) == (1, 1, 1)


async def test_a_backoff_that_gives_no_seconds_is_named(autojump_clock: MockClock) -> None:
    callback, _ = failing(9)
    report = await run_batch("b", {"A": 1}, callback, retry_station=Retry(backoff=lambda attempt, chance: -1))
    assert str(report.stations["A"].error) == "backoff gave -1, not seconds"
    assert str(report.stations["A"].error.__context__) == "try 1"


async def test_threads_are_tried_again_too() -> None:
    tries = []

    def callback(station_id: str, value: object) -> dict:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError
        return {}

    report = await run_batch("b", {"A": 1}, callback, retry_station=Retry(backoff=0))
    assert report.stations["A"].attempts == 3


async def test_the_backoff_gets_the_try_and_a_random_number(autojump_clock: MockClock) -> None:
    asked = []

    def backoff(attempt: int, chance: float) -> float:
        asked.append((attempt, chance))
        return 10.0 * attempt

    callback, began = failing(2, seconds=0)
    retry = Retry(backoff=backoff, chance=lambda: 0.25)
    await run_batch("b", {"A": 1}, callback, batch_timeout=60, retry_station=retry)
    assert asked == [(1, 0.25), (2, 0.25)]
    assert began == [0, 10, 30]


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_the_usual_backoff_grows_to_its_bound_and_not_beyond(attempt: int, chance: float) -> None:
    seconds = exponential_backoff(0.1, 2.0, 5.0)(attempt, chance)
    assert 0 <= seconds <= min(5.0, 0.1 * 2.0 ** min(attempt, 10))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attempts": 1}, "one try is no retry"),
        ({"attempts": 2.5}, "one try is no retry"),
        ({"on": ()}, "use exceptions, like"),
        ({"on": failing(1)[0]}, "use exceptions, like"),
        ({"backoff": failing(1)[0]}, "must be a plain def"),
        ({"backoff": -1}, "it must be 0 or more seconds"),
        ({"backoff": math.nan}, "it must be 0 or more seconds"),
        ({"on": BaseException}, "use exceptions, like"),
        ({"on": (ValueError, "KeyError")}, "use exceptions, like"),
        ({"on": "ValueError"}, "use exceptions, like"),
    ],
)
def test_a_retry_that_makes_no_sense_is_said_so(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retry(**settings)


# So long and no longer.


async def sleeper(station_id: str, seconds: float) -> dict:
    await trio.sleep(seconds)
    return {"station_id": station_id}


async def test_a_station_has_only_so_long(autojump_clock: MockClock) -> None:
    report = await run_batch("b", {"A": 1, "B": 3}, sleeper, station_timeout=2)
    assert (report.completed_by, report.seconds) == ("all", 2)
    outcome = report.stations["B"]
    assert (outcome.verdict, outcome.run_seconds) == ("failed", 2)
    assert isinstance(outcome.error, StationTimedOut)
    assert str(outcome.error) == "station B took longer than its station_timeout of 2 s"


async def test_the_time_of_a_station_may_depend_on_it(autojump_clock: MockClock) -> None:
    report = await run_batch("b", {"A": 3, "B": 3, "C": 3}, sleeper, station_timeout={"A": 1, "B": 4, "C": None}.get)
    assert [str(outcome.verdict) for outcome in report.stations.values()] == ["failed", "succeeded", "succeeded"]


async def test_every_try_has_that_long(autojump_clock: MockClock) -> None:
    began = []

    async def callback(station_id: str, value: object) -> dict:
        began.append(trio.current_time())
        await trio.sleep(10 if len(began) < 3 else 1)
        return {}

    retry = Retry(on=StationTimedOut, backoff=1)
    report = await run_batch("b", {"A": 1}, callback, batch_timeout=60, station_timeout=2, retry_station=retry)
    assert report.succeeded == 1
    assert began == [0, 3, 6]


async def test_a_thread_that_takes_too_long_is_left_behind() -> None:
    def callback(station_id: str, seconds: float) -> dict:
        time.sleep(seconds)  # a thread knows no virtual time
        return {}

    report = await run_batch("b", {"A": 0, "B": 4}, callback, station_timeout=0.5)
    assert (report.succeeded, report.failed) == (1, 1)
    assert report.seconds < 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"station_timeout": 0}, "station_timeout=0: it must be more than 0 seconds"),
        ({"station_timeout": "1"}, "station_timeout='1': it must be more than 0 seconds"),
        ({"station_timeout": sleeper}, "station_timeout= must be a plain def"),
        ({"retry_station": 3}, r"retry_station=3: use Retry\(attempts=3\)"),
        ({"retry_station": Retry}, "use Retry"),
        ({"batch_timeout": sleeper}, "batch_timeout= must be a plain def"),
        ({"max_threads": 1.5}, "max_threads=1.5: it must be 1 or more"),
        ({"max_running_stations": math.inf}, "max_running_stations=inf"),
    ],
)
async def test_a_setting_that_makes_no_sense_is_said_so(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchResultAggregator(sleeper, **settings)


async def test_a_function_that_gives_no_time_for_a_station_is_named(autojump_clock: MockClock) -> None:
    report = await run_batch("b", {"A": 1}, sleeper, station_timeout=lambda station_id: -1)
    assert str(report.stations["A"].error) == "station_timeout gave -1 for station A, not seconds"
