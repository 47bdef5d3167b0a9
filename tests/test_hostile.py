"""Callbacks that nobody should write.  Each has a verdict or an error of its own, and none costs another station its
answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pytest
import trio

from trioagg import (
    Answer,
    BadResult,
    BatchReport,
    BatchResultAggregator,
    CompletedBy,
    StrayCancel,
    Verdict,
    run_batch,
)
from trioagg._encoding import encode_result
from trioagg._lanes import Threads, _Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

pytestmark = pytest.mark.filterwarnings("error")


def numbered(count: int) -> dict[str, int]:
    return {f"S{number:03}": number for number in range(count)}


async def one_hostile_station(callback: Callable, *, batch_timeout: float = 5, cap: int = 1000) -> BatchReport:
    """Run *callback* as one station among well-behaved ones, which must all succeed, with themselves in the list."""

    async def station(station_id: str, value: int) -> object:
        if station_id == "hostile":
            return await callback(station_id, value)
        await trio.sleep(value % 3)
        return {"station_id": station_id}

    # Before it and after it, with and without waiting: some share its task.
    stations = {"before": 0, "beside": 1, "hostile": 0, "after": 0, "later": 2}
    report = await run_batch("b", stations, station, batch_timeout=batch_timeout, max_running_stations=cap)
    others = {result["station_id"] for result in report.results} - {"hostile"}
    assert others == {"before", "beside", "after", "later"}
    return report


async def raised_by(callback: Callable) -> BaseException:
    report = await one_hostile_station(callback)
    outcome = report.stations["hostile"]
    assert outcome.verdict is Verdict.FAILED
    assert report.completed_by is CompletedBy.ALL
    assert report.first_error is outcome.error
    return outcome.error


async def a_stored_cancelled() -> trio.Cancelled:
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as error:
            stored = error
            raise
    return stored


# What it returns.


def proxy_without_an_object() -> object:
    class Proxy:
        """As web frameworks have them: whatever is asked of it is asked of an object that is not there."""

        @property
        def __class__(self) -> type:
            raise RuntimeError("working outside of context")

    return Proxy()


async def some_coroutine() -> dict:
    return {}


async def some_generator():
    yield {}


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: [{"station_id": "hostile"}], "list"),
        (lambda: "a string", "str"),
        (lambda: (), "tuple"),
        (lambda: {1, 2}, "set"),
        (lambda: np.zeros(3), "ndarray"),
        (lambda: False, "bool"),
        (some_coroutine, "coroutine"),
        (some_generator, "async_generator"),
        (lambda: trio.lowlevel.current_task().coro, "coroutine"),
    ],
    ids=["list", "str", "tuple", "set", "array", "bool", "coroutine", "async generator", "its own coroutine"],
)
@pytest.mark.parametrize("waits", [False, True])
async def test_a_result_of_another_type_is_a_failure_that_names_the_type(
    make: Callable, name: str, waits: bool, autojump_clock: MockClock
) -> None:
    async def callback(station_id: str, value: object) -> object:
        if waits:
            await trio.sleep(1)
        return make()

    error = await raised_by(callback)
    assert isinstance(error, BadResult)
    hint = ": make the callback `async def`, or await it" if name == "coroutine" else ""
    assert error.reason == f"returned {name}, not a dict or None{hint}"


async def test_a_result_that_cannot_even_be_looked_at_is_a_failure(autojump_clock: MockClock) -> None:
    async def callback(station_id: str, value: object) -> object:
        return proxy_without_an_object()

    assert str(await raised_by(callback)) == "working outside of context"


async def test_a_pushed_coroutine_is_a_failure_and_nobody_is_warned_about_it(autojump_clock: MockClock) -> None:
    async with BatchResultAggregator() as aggregator:
        batch = await aggregator.create_batch("b", ["A"])
        assert batch.add_result("A", some_coroutine()) is Answer.ACCEPTED
        assert (await batch.wait_closed()).failed == 1


async def test_a_station_that_answers_twice_is_heard_once(autojump_clock: MockClock) -> None:
    async with BatchResultAggregator() as aggregator:
        batch = await aggregator.create_batch("b", ["A", "B"])
        assert batch.add_result("A", {"first": True}) is Answer.ACCEPTED
        assert batch.add_result("A", {"first": False}) is Answer.DUPLICATE
        assert batch.add_failure("A", ValueError()) is Answer.DUPLICATE
        assert batch.add_result("B", None) is Answer.ACCEPTED
        report = await batch.wait_closed()
        assert report.results == [{"first": True}]
        assert batch.add_result("A", {}) is Answer.LATE
        assert aggregator.statistics().duplicates == 2
        assert aggregator.statistics().late == 1


class Sink:
    def __init__(self) -> None:
        self.sent = []

    def encode(self, result: dict) -> bytes:
        return encode_result(result)

    async def send(self, report: BatchReport, encoded) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append((report.batch_id, [*encoded]))


@pytest.mark.parametrize(
    "value",
    [object(), float("nan"), np.array([1.0, np.inf]), {(1, 2): 3}, "\ud800", threading.Lock(), {"a": {1: object()}}],
    ids=["object", "nan", "inf in an array", "tuple as key", "lone surrogate", "lock", "deep inside"],
)
async def test_a_result_that_cannot_be_encoded_costs_its_own_station_the_answer(
    value: object, autojump_clock: MockClock
) -> None:
    async def callback(station_id: str, number: int) -> dict:
        return {"station_id": station_id, "value": value if number == 1 else number}

    sink = Sink()
    async with BatchResultAggregator(callback, sink=sink) as aggregator:
        report = await aggregator.run("b", numbered(3))
    assert report.stations["S001"].verdict is Verdict.FAILED
    assert isinstance(report.stations["S001"].error, BadResult)
    assert sink.sent == [("b", [b'{"station_id":"S000","value":0}', b'{"station_id":"S002","value":2}'])]


async def test_a_result_that_contains_itself_costs_its_own_station_the_answer(autojump_clock: MockClock) -> None:
    async def callback(station_id: str, number: int) -> dict:
        result: dict = {"station_id": station_id}
        if number == 1:
            result["result"] = result
        return result

    sink = Sink()
    async with BatchResultAggregator(callback, sink=sink) as aggregator:
        report = await aggregator.run("b", numbered(3))
    assert (report.succeeded, report.failed) == (2, 1)
    assert len(sink.sent[0][1]) == 2


# What it raises.


class Unreadable(Exception):
    def __str__(self) -> NoReturn:
        raise RuntimeError("no words")

    __repr__ = __str__


@dataclass(frozen=True)
class Frozen(Exception):
    """Its attributes cannot be set, its traceback included."""

    code: int


class NotAnException(BaseException):
    pass


class Truthless(Exception):
    def __bool__(self) -> NoReturn:
        raise ValueError("has no truth")

    def __eq__(self, other: object) -> NoReturn:
        raise ValueError("is not comparable")

    __hash__ = None


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        Unreadable(),
        Frozen(1),
        NotAnException(),
        Truthless(),
        asyncio.CancelledError(),
        StopAsyncIteration(),
        MemoryError(),
        RecursionError(),
        trio.TooSlowError(),
        trio.ClosedResourceError(),
        ExceptionGroup("some", [ValueError(), KeyError()]),
        BaseExceptionGroup("some", [NotAnException(), ValueError()]),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("waits", [False, True])
async def test_whatever_a_station_raises_is_its_failure(
    error: BaseException, waits: bool, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def callback(station_id: str, value: object) -> dict:
        if waits:
            await trio.sleep(1)
        raise error

    kept = await raised_by(callback)
    # In a coroutine it becomes a RuntimeError, and that is Python's doing.
    assert kept is error or (isinstance(error, StopAsyncIteration) and kept.__cause__ is error)

    async with BatchResultAggregator(callback) as aggregator:  # ... which logs it
        assert (await aggregator.run("b", numbered(2))).failed == 2
    assert f"2 of 2 stations have failed, the first one with {type(kept).__name__}" in caplog.text


async def test_a_stop_iteration_is_a_failure(autojump_clock: MockClock) -> None:
    async def callback(station_id: str, value: object) -> dict:
        return {"value": next(iter(()))}

    error = await raised_by(callback)
    assert isinstance(error, RuntimeError)
    assert isinstance(error.__cause__, StopIteration)


async def test_one_error_that_all_stations_raise_is_the_failure_of_each(autojump_clock: MockClock) -> None:
    error = ValueError("from a cache")

    async def callback(station_id: str, number: int) -> dict:
        await trio.sleep(number % 2)
        raise error

    report = await run_batch("b", numbered(50), callback)
    assert report.failed == 50
    assert all(outcome.error is error for outcome in report.stations.values())


async def test_the_traceback_of_a_failure_begins_in_the_users_code(autojump_clock: MockClock) -> None:
    async def inner() -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise ValueError

    async def callback(station_id: str, value: object) -> dict:
        return await inner()

    def in_a_thread(station_id: str, value: object) -> dict:
        raise ValueError

    def frames(error: BaseException) -> list[str]:
        traceback, names = error.__traceback__, []
        while traceback is not None:
            names.append(traceback.tb_frame.f_code.co_name)
            traceback = traceback.tb_next
        return names

    assert frames(await raised_by(callback)) == ["station", "callback", "inner"]
    report = await run_batch("b", {"A": 1}, in_a_thread, batch_timeout=math.inf)
    assert frames(report.first_error) == ["in_a_thread"]


@pytest.mark.parametrize("waits", [False, True])
async def test_a_cancelled_from_a_cache_is_a_failure(waits: bool, autojump_clock: MockClock) -> None:
    stored = await a_stored_cancelled()

    async def callback(station_id: str, value: object) -> dict:
        if waits:
            await trio.sleep(1)
        raise stored

    assert await raised_by(callback) is stored


async def test_a_cancelled_from_a_cache_is_a_failure_in_a_nursery_of_the_stations_own_too(
    autojump_clock: MockClock,
) -> None:
    stored = await a_stored_cancelled()

    async def raise_stored() -> None:
        raise stored

    async def callback(station_id: str, value: object) -> dict:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raise_stored)
        return {"station_id": station_id}

    # The nursery takes it for its own cancellation: what comes out is not the batch's either way.
    report = await one_hostile_station(callback)
    assert report.stations["hostile"].verdict in (Verdict.FAILED, Verdict.SUCCEEDED)
    assert report.completed_by is CompletedBy.ALL


@pytest.mark.parametrize("wrong", [ValueError, asyncio.CancelledError, NotAnException])
async def test_a_nursery_of_its_own_that_fails_is_a_failure(wrong: type, autojump_clock: MockClock) -> None:
    async def fail() -> None:
        await trio.sleep(1)
        raise wrong

    async def callback(station_id: str, value: object) -> dict:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)
        return {}

    (inner,) = (await raised_by(callback)).exceptions
    assert isinstance(inner, wrong)


async def test_a_nursery_that_fails_while_it_is_cancelled_at_the_deadline_has_timed_out(
    autojump_clock: MockClock,
) -> None:
    went_wrong = 0

    async def clean_up_badly() -> None:
        nonlocal went_wrong
        try:
            await trio.sleep_forever()
        finally:
            went_wrong += 1
            raise ValueError("in the cleanup")

    async def callback(station_id: str, value: object) -> dict:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clean_up_badly)
            nursery.start_soon(trio.sleep_forever)  # BaseExceptionGroup([ValueError, Cancelled]) comes out
        return {}

    report = await one_hostile_station(callback)
    assert went_wrong == 1
    assert trio.current_time() == report.seconds == 5
    assert report.stations["hostile"].verdict is Verdict.TIMED_OUT
    assert report.stations["hostile"].error is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("waits", [False, True])
async def test_what_is_not_data_ends_the_batch_bare(error: type, waits: bool, autojump_clock: MockClock) -> None:
    async def callback(station_id: str, number: int) -> dict:
        if number == 1:
            if waits:
                await trio.sleep(1)
            raise error("out")
        await trio.sleep_forever()

    with pytest.raises(error, match="out"):
        await run_batch("b", numbered(3), callback)
    assert trio.current_time() == (1 if waits else 0)


async def test_what_is_not_data_gets_out_of_a_group_with_data_alone(autojump_clock: MockClock) -> None:
    async def callback(station_id: str, value: object) -> dict:
        raise BaseExceptionGroup("some", [ValueError(), BaseExceptionGroup("more", [SystemExit(3), KeyError()])])

    with pytest.raises(SystemExit) as caught:
        await run_batch("b", {"A": 1}, callback)
    assert caught.value.code == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_what_is_not_data_ends_the_aggregators_block_bare(error: type, autojump_clock: MockClock) -> None:
    async def callback(station_id: str, value: object) -> dict:
        await trio.sleep(1)
        raise error

    lists = []
    with pytest.raises(error):
        async with BatchResultAggregator(callback, lambda *args: lists.append(args)) as aggregator:
            await aggregator.submit("b", {"A": 1})
            await trio.sleep_forever()
    assert trio.current_time() == 1
    assert lists == []


@pytest.mark.parametrize(
    "awaitable",
    [lambda: asyncio.sleep(0), lambda: asyncio.sleep(1), lambda: asyncio.to_thread(print)],
    ids=["sleep(0)", "sleep(1)", "to_thread"],
)
async def test_asyncio_code_is_a_failure_and_one_line_says_what_to_write_instead(
    awaitable: Callable, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def callback(station_id: str, value: object) -> dict:
        await awaitable()
        return {}

    assert isinstance(await raised_by(callback), RuntimeError | TypeError)
    async with BatchResultAggregator(callback) as aggregator:
        for batch in "abc":
            assert (await aggregator.run(batch, numbered(3))).failed == 3
    hints = [record for record in caplog.records if "trioagg.asyncio_callback()" in record.getMessage()]
    assert len(hints) == 1
    assert "trio.sleep" in hints[0].getMessage()
    assert hints[0].levelno == logging.ERROR


@pytest.mark.parametrize("callback", [lambda: None, lambda station_id: {}, lambda a, b, c: {}])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_callback_that_takes_other_arguments_fails_for_every_station(callback: Callable, kind: str) -> None:
    if kind == "async":
        arguments = callback.__code__.co_varnames
        namespace: dict = {}
        exec(f"async def wrong({', '.join(arguments)}): return {{}}", namespace)
        callback = namespace["wrong"]
    report = await run_batch("b", numbered(3), callback)
    assert report.failed == 3
    assert isinstance(report.first_error, TypeError)


# How it behaves when it is cancelled.


async def test_a_station_that_swallows_its_cancellation_and_returns_is_late(autojump_clock: MockClock) -> None:
    async def callback(station_id: str, value: object) -> dict:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return {"station_id": station_id}

    report = await one_hostile_station(callback)
    assert trio.current_time() == report.seconds == 5
    assert report.stations["hostile"].verdict is Verdict.TIMED_OUT
    assert "hostile" not in [result["station_id"] for result in report.results]


async def test_a_station_that_swallows_its_cancellation_and_fails_has_timed_out(autojump_clock: MockClock) -> None:
    async def callback(station_id: str, value: object) -> dict:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise ValueError("in the cleanup") from None

    report = await one_hostile_station(callback)
    assert report.stations["hostile"].verdict is Verdict.TIMED_OUT
    assert report.first_error is None


async def test_a_station_that_swallows_its_cancellation_again_and_again_delays_nobodys_list(
    autojump_clock: MockClock,
) -> None:
    swallowed = 0

    async def callback(station_id: str, value: object) -> dict:
        nonlocal swallowed
        while swallowed < 100:
            try:
                await trio.sleep(1000)
            except trio.Cancelled:
                swallowed += 1
        return {"station_id": station_id}

    report = await one_hostile_station(callback)
    assert swallowed == 100
    assert trio.current_time() == report.seconds == 5
    assert report.stations["hostile"].verdict is Verdict.TIMED_OUT


async def test_a_shielded_station_delays_the_return_and_not_the_report(autojump_clock: MockClock) -> None:
    async def callback(station_id: str, value: object) -> dict:
        with trio.CancelScope(shield=True):
            await trio.sleep(30)
        return {"station_id": station_id}

    report = await one_hostile_station(callback)
    assert report.seconds == 5
    assert trio.current_time() == 30
    assert report.stations["hostile"].verdict is Verdict.TIMED_OUT


async def test_a_station_that_is_late_is_not_followed_by_another_one(autojump_clock: MockClock) -> None:
    served = []

    async def callback(station_id: str, value: object) -> dict:
        served.append(station_id)
        with trio.CancelScope(shield=True):
            await trio.sleep(30)
        return {"station_id": station_id}

    report = await run_batch("b", numbered(5), callback, max_running_stations=2)
    assert len(served) == 2
    assert (report.timed_out, report.skipped) == (2, 3)


# What it leaves behind.

variable: ContextVar[object] = ContextVar("variable", default="nobody's")
another: ContextVar[object] = ContextVar("another", default="nobody's")


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("cap", [1, 2, 1000])
@pytest.mark.parametrize(
    "make",
    [lambda: "text", lambda: np.zeros(3), list, lambda: None, float],
    ids=["str", "array", "equal lists", "None", "equal floats"],
)
@pytest.mark.parametrize("callers", [False, True], ids=["new", "over the caller's own"])
async def test_a_context_variable_stays_the_stations_own(
    make: Callable, cap: int, waits: bool, callers: bool, autojump_clock: MockClock
) -> None:
    original = make() if callers else "nobody's"
    seen_before = {}
    seen_after = {}

    async def callback(station_id: str, number: int) -> dict:
        seen_before[station_id] = variable.get(), another.get()
        if number % 2:
            mine = make() if number % 4 == 1 else [number]
            variable.set(mine)
            if waits:
                await trio.sleep(1)
            seen_after[station_id] = mine, variable.get()
        elif waits:
            await trio.sleep(1)
        return {}

    token = variable.set(original) if callers else None
    try:
        report = await run_batch("b", numbered(40), callback, batch_timeout=100, max_running_stations=cap)
    finally:
        if token is not None:
            variable.reset(token)
    assert report.succeeded == 40
    assert all(value is original and other == "nobody's" for value, other in seen_before.values())
    assert all(mine is seen for mine, seen in seen_after.values())
    assert len(seen_after) == 20


async def test_a_station_that_sets_a_variable_and_sets_it_back_is_nothing_special(autojump_clock: MockClock) -> None:
    tasks = set()

    async def callback(station_id: str, number: int) -> dict:
        tasks.add(trio.lowlevel.current_task())
        variable.reset(variable.set(number))  # the variable is gone again
        return {}

    await run_batch("b", numbered(100), callback)
    assert len(tasks) <= 3


async def test_the_callers_variables_reach_every_station(autojump_clock: MockClock) -> None:
    async def callback(station_id: str, number: int) -> dict:
        if number % 5 == 0:
            another.set(station_id)
        await trio.sleep(number % 2)
        return {"variable": variable.get()}

    token = variable.set("the caller's")
    try:
        report = await run_batch("b", numbered(20), callback)
    finally:
        variable.reset(token)
    assert report.results == [{"variable": "the caller's"}] * 20
    assert another.get() == "nobody's"


@pytest.mark.parametrize("cap", [1, 1000])
async def test_a_cancel_scope_that_a_station_leaves_open_is_not_the_next_stations(
    cap: int, autojump_clock: MockClock
) -> None:
    async def callback(station_id: str, number: int) -> dict:
        if number == 0:
            trio.CancelScope(deadline=trio.current_time() + 1).__enter__()
        elif number == 1:
            scope = trio.CancelScope()
            scope.__enter__()
            scope.cancel()
        else:
            await trio.sleep(2)
        return {"station_id": station_id}

    report = await run_batch("b", numbered(6), callback, batch_timeout=100, max_running_stations=cap)
    assert report.succeeded == 6


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Trio's, about the generator
async def test_an_async_generator_with_a_deadline_that_a_station_does_not_close_is_not_the_next_stations(
    autojump_clock: MockClock,
) -> None:
    async def rows():
        with trio.move_on_after(1):
            while True:
                yield 1

    generators = []

    async def callback(station_id: str, number: int) -> dict:
        if number == 0:
            generators.append(rows())  # nor does anybody else, for now
            async for _ in generators[0]:
                return {"station_id": station_id}
        await trio.sleep(2)
        return {"station_id": station_id}

    report = await run_batch("b", numbered(4), callback)
    assert report.succeeded == 4
    with contextlib.suppress(RuntimeError):  # Trio's opinion about it
        await generators[0].aclose()


async def test_a_nursery_that_a_station_leaves_open_ends_the_batch_with_trios_own_error(
    autojump_clock: MockClock,
) -> None:
    nurseries = []

    async def callback(station_id: str, number: int) -> dict:
        if number == 0:
            nurseries.append(trio.open_nursery())
            await nurseries[0].__aenter__()
        return {}

    with pytest.raises(RuntimeError, match="Nursery stack corrupted"):
        await run_batch("b", numbered(3), callback)


# Whom it cancels.


@pytest.mark.parametrize("then", ["returns", "waits", "raises"])
async def test_a_callback_that_cancels_the_nursery_it_runs_in_is_told_so(then: str, autojump_clock: MockClock) -> None:
    async def callback(station_id: str, number: int) -> dict:
        if number == 1:
            trio.lowlevel.current_task().parent_nursery.cancel_scope.cancel()
            if then == "raises":
                raise ValueError
            if then == "returns":
                return {}
        await trio.sleep(1)
        return {}

    with pytest.raises(StrayCancel, match="the nursery of batch b was cancelled from outside"):
        await run_batch("b", numbered(3), callback)


async def test_a_callback_that_cancels_its_nursery_ends_the_aggregators_block_without_a_list(
    autojump_clock: MockClock,
) -> None:
    lists = []

    async def handler(batch_id: str, results_list: list) -> None:
        lists.append(batch_id)

    async def callback(station_id: str, number: int) -> dict:
        trio.lowlevel.current_task().parent_nursery.cancel_scope.cancel()
        await trio.lowlevel.checkpoint()
        return {}

    with pytest.raises(StrayCancel, match="batch b") as caught:
        async with BatchResultAggregator(callback, handler) as aggregator:
            await aggregator.submit("b", numbered(3))
            await trio.sleep_forever()
    assert caught.value.batch_id == "b"
    assert lists == []


async def test_a_handler_that_cancels_the_nursery_it_runs_in_is_told_so(autojump_clock: MockClock) -> None:
    async def handler(batch_id: str, results_list: list) -> None:
        trio.lowlevel.current_task().parent_nursery.cancel_scope.cancel()
        await trio.lowlevel.checkpoint()

    with pytest.raises(StrayCancel, match="the nursery of the aggregator was cancelled from outside"):
        async with BatchResultAggregator(None, handler) as aggregator:
            await aggregator.create_batch("b", [])
            await trio.sleep_forever()


# Threads.


async def test_a_plain_function_runs_in_a_thread() -> None:
    threads = set()

    def callback(station_id: str, value: object) -> dict:
        threads.add(threading.current_thread())
        return {"station_id": station_id}

    report = await run_batch("b", numbered(5), callback)
    assert report.succeeded == 5
    assert threading.main_thread() not in threads


@pytest.mark.parametrize(
    "error",
    [ValueError(), Unreadable(), Frozen(1), NotAnException(), Truthless(), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
async def test_what_a_thread_raises_is_its_stations_failure(error: BaseException) -> None:
    def callback(station_id: str, number: int) -> dict:
        if number == 1:
            raise error
        return {}

    report = await run_batch("b", numbered(3), callback)
    assert (report.succeeded, report.failed) == (2, 1)
    assert report.stations["S001"].error is error


async def test_a_stop_iteration_in_a_thread_is_a_failure() -> None:
    def callback(station_id: str, number: int) -> dict:
        return next(iter(()))

    report = await run_batch("b", numbered(2), callback)
    assert report.failed == 2
    assert isinstance(report.first_error.__cause__, StopIteration)


async def test_a_cancelled_from_a_cache_is_a_failure_in_a_thread_too() -> None:
    stored = await a_stored_cancelled()

    def callback(station_id: str, number: int) -> dict:
        raise stored

    async with BatchResultAggregator(callback) as aggregator:
        report = await aggregator.run("b", numbered(2))
        assert report.failed == 2
        assert report.first_error is stored
        assert aggregator.statistics().abandoned_threads == 0


async def test_a_plain_function_that_returns_a_coroutine_is_a_failure_that_says_so() -> None:
    report = await run_batch("b", numbered(2), lambda station_id, value: some_coroutine())
    assert report.failed == 2
    assert str(report.first_error).startswith("returned coroutine, not a dict or None: make the callback `async def`")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_what_is_not_data_gets_out_of_a_thread_too(error: type) -> None:
    def callback(station_id: str, number: int) -> dict:
        raise error

    with pytest.raises(error):
        await run_batch("b", {"A": 1}, callback)


async def test_a_thread_that_hangs_is_left_behind_and_counted() -> None:
    release = threading.Event()
    lists = []

    async def handler(batch_id: str, results_list: list) -> None:
        lists.append((batch_id, [result["station_id"] for result in results_list]))

    def callback(station_id: str, value: object) -> dict:
        if station_id == "hangs":
            release.wait(10)
        return {"station_id": station_id}

    started = time.perf_counter()
    try:
        async with BatchResultAggregator(callback, handler, batch_timeout=0.1) as aggregator:
            report = await aggregator.run("b", {"works": 1, "hangs": 2})
            assert 0.1 <= report.seconds < 1
            assert report.stations["hangs"].verdict is Verdict.TIMED_OUT
            with trio.fail_after(5):
                while aggregator.statistics().abandoned_threads != 1:
                    await trio.sleep(0.001)
            release.set()
            with trio.fail_after(5):
                while aggregator.statistics().abandoned_threads:
                    await trio.sleep(0.001)
    finally:
        release.set()
    assert lists == [("b", ["works"])]
    assert time.perf_counter() - started < 5


async def test_a_block_does_not_wait_for_a_thread_that_was_left_behind() -> None:
    release = threading.Event()

    def callback(station_id: str, value: object) -> dict:
        release.wait(10)
        return {}

    started = time.perf_counter()
    try:
        report = await run_batch("b", numbered(3), callback, batch_timeout=0.05)
        assert time.perf_counter() - started < 1
        assert report.timed_out == 3
    finally:
        release.set()


async def test_a_station_that_waits_for_a_thread_at_the_deadline_was_never_started() -> None:
    release = threading.Event()
    running = 0

    def callback(station_id: str, value: object) -> dict:
        nonlocal running
        running += 1
        release.wait(10)
        return {}

    try:
        report = await run_batch("b", numbered(100), callback, batch_timeout=0.3)
        # Those of a busy machine may have started and not come to their first line.
        assert 0 < running <= report.timed_out <= 40
        assert report.skipped == 100 - report.timed_out
        async with BatchResultAggregator(callback, batch_timeout=0.3) as aggregator:
            running = 0
            report = await aggregator.run("b", numbered(150))
            assert 0 < running <= report.timed_out <= 100
            assert report.skipped == 150 - report.timed_out
    finally:
        release.set()


async def test_a_thread_that_starts_when_its_batch_is_closed_does_nothing() -> None:
    served = []
    threads = Threads(print, 1, 1)
    call = _Call(threads, lambda *args: served.append(args))
    call.abandon()
    call("A", 1)
    assert served == []
    assert threads.abandoned == 0


async def test_threads_do_not_pile_up() -> None:
    release = threading.Event()
    running = 0

    def callback(station_id: str, value: object) -> dict:
        nonlocal running
        running += 1
        release.wait(10)
        return {}

    try:
        async with BatchResultAggregator(callback, batch_timeout=0.05, max_abandoned_threads=100) as aggregator:
            for batch in range(10):
                report = await aggregator.run(f"batch {batch}", numbered(30))
            # What was refused after the last batch that still got some.
            assert 100 <= running <= 100 + 29
            assert aggregator.statistics().abandoned_threads == running
            assert (report.completed_by, report.skipped) == ("all", 30)
            assert "threads of earlier stations hang" in str(report.stations["S001"].error)
    finally:
        release.set()


# What it is.


class Model:
    async def __call__(self, station_id: str, value: object) -> dict:
        await trio.lowlevel.checkpoint()
        return {"station_id": station_id, "in": threading.current_thread().name}

    async def method(self, station_id: str, value: object) -> dict:
        return await self(station_id, value)

    @classmethod
    async def of_the_class(cls, station_id: str, value: object) -> dict:
        return await cls()(station_id, value)

    @staticmethod
    async def of_nobody(station_id: str, value: object) -> dict:
        return await Model()(station_id, value)

    async def with_more(self, station_id: str, value: object, *, more: int) -> dict:
        return await self(station_id, value)

    async def twisted(self, more: int, station_id: str, value: object) -> dict:
        return await self(station_id, value)


@pytest.mark.parametrize(
    "callback",
    [
        Model(),
        Model().method,
        Model.of_the_class,
        Model.of_nobody,
        functools.partial(Model().with_more, more=1),
        functools.partial(functools.partial(Model().twisted, 1)),
        functools.partial(Model()),
        functools.partial(Model.twisted, Model(), 1),
    ],
    ids=["object", "method", "classmethod", "staticmethod", "partial", "partial twice", "partial of object", "unbound"],
)
async def test_what_is_async_is_awaited_in_a_task_of_trios(callback: Callable, autojump_clock: MockClock) -> None:
    report = await run_batch("b", numbered(3), callback)
    assert report.succeeded == 3
    assert {result["in"] for result in report.results} == {threading.current_thread().name}


async def test_a_callable_object_without_async_runs_in_a_thread() -> None:
    class Plain:
        def __call__(self, station_id: str, value: object) -> dict:
            return {"thread": threading.current_thread() is threading.main_thread()}

    report = await run_batch("b", numbered(2), functools.partial(Plain()))
    assert report.results == [{"thread": False}] * 2


# And all the others.


async def test_hostile_stations_cost_the_others_nothing_even_when_there_are_many(autojump_clock: MockClock) -> None:
    stored = await a_stored_cancelled()

    async def callback(station_id: str, number: int) -> object:
        match number % 8:
            case 0:
                return {"station_id": station_id}
            case 1:
                raise ValueError
            case 2:
                raise stored
            case 3:
                return [station_id]
            case 4:
                variable.set(np.zeros(2))
                return None
            case 5:
                await trio.sleep(1)
                return {"station_id": station_id}
            case 6:
                raise asyncio.CancelledError
            case 7:
                try:
                    await trio.sleep_forever()
                finally:
                    raise ValueError

    for cap in (100, 1000):
        report = await run_batch("b", numbered(800), callback, max_running_stations=cap)
        assert report.seconds == 5
        assert report.failed == 400 if cap == 1000 else report.failed > 0
        if cap == 1000:
            assert (report.succeeded, report.no_output, report.timed_out) == (200, 100, 100)
        assert report.expected == 800


async def test_a_callback_that_cancels_its_nursery_is_told_so_even_if_its_list_is_complete(
    autojump_clock: MockClock,
) -> None:
    async def callback(station_id: str, number: int) -> dict:
        trio.lowlevel.current_task().parent_nursery.cancel_scope.cancel()
        return {}

    with pytest.raises(StrayCancel, match="batch b"):
        await run_batch("b", numbered(3), callback)
