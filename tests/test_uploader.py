"""How lists go up: tried again, bounded, in order where that was asked for, and never in anybody's way."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trioagg import (
    BatchReport,
    BatchResultAggregator,
    CompletedBy,
    KafkaError,
    TrioaggError,
    UploadFailed,
    UploadTimedOut,
)
from trioagg._encoding import encode_result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trio.testing import MockClock


async def sleeping(station_id: str, seconds: float) -> dict[str, object]:
    await trio.sleep(seconds)
    return {"station_id": station_id}


class Handler:
    """Does with every call what its script says; the last word of the script holds for all calls to come."""

    def __init__(self, *script: object) -> None:
        self.script = list(script)
        self.calls: list[tuple[float, str, list[object]]] = []

    async def __call__(self, batch_id: str, results_list: list[dict[str, Any]]) -> None:
        self.calls.append((trio.current_time(), batch_id, [result["station_id"] for result in results_list]))
        results_list.clear()
        word = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(word, BaseException):
            raise word
        await trio.sleep(word)

    @property
    def times(self) -> list[float]:
        return [when for when, _, _ in self.calls]


class Journal:
    """A handler that notes the beginning and the end of every upload; each batch may need its own time."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds = seconds or {}
        self.began: dict[str, float] = {}
        self.up: dict[str, float] = {}
        self.running = self.most = 0

    async def __call__(self, batch_id: str, results_list: list) -> None:
        self.began[batch_id] = trio.current_time()
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await trio.sleep(self.seconds.get(batch_id, 0))
        finally:
            self.running -= 1
        self.up[batch_id] = trio.current_time()


async def a_stored_cancelled() -> trio.Cancelled:
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as error:
            stored = error
            raise
    return stored


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level and record.name == "trioagg"]


# Tries.


async def test_a_failed_try_is_repeated_with_a_fresh_list(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Handler(ValueError("first"), OSError("second"), 0)
    async with BatchResultAggregator(sleeping, handler) as aggregator:
        report = await aggregator.run("b", {"A": 0, "B": 1})
    assert [names for _, _, names in handler.calls] == [["A", "B"]] * 3
    assert len(report.results) == 2
    assert lines(caplog, logging.WARNING) == [
        "batch b upload failed: ValueError: first (try 1 of 5)",
        "batch b upload failed: OSError: second (try 2 of 5)",
    ]
    assert lines(caplog, logging.ERROR) == []
    assert aggregator.statistics().failed_tries == 2
    assert aggregator.statistics().uploaded == 1


async def test_the_waits_between_tries_double_from_a_tenth_of_a_second(autojump_clock: MockClock) -> None:
    handler = Handler(ValueError())
    with pytest.raises(UploadFailed):
        async with BatchResultAggregator(None, handler, upload_attempts=9) as aggregator:
            await aggregator.create_batch("b", [])
            await trio.sleep_forever()
    waits = [after - before for before, after in zip(handler.times, handler.times[1:], strict=False)]
    for wait, least in zip(waits, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5], strict=True):
        assert least - 1e-9 <= wait <= least + 0.1 + 1e-9


async def test_after_the_last_try_the_block_ends_with_the_reason_as_cause(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    reason = ValueError("no")
    handler = Handler(reason)
    with pytest.raises(UploadFailed, match=r"upload of batch b failed after 3 attempt") as caught:
        async with BatchResultAggregator(None, handler, upload_attempts=3) as aggregator:
            await aggregator.create_batch("b", [])
            await trio.sleep_forever()
    assert caught.value.__cause__ is reason
    assert (caught.value.batch_id, caught.value.attempts) == ("b", 3)
    assert len(handler.calls) == 3
    assert lines(caplog, logging.ERROR) == ["batch b upload failed: ValueError: no (try 3 of 3)"]
    assert aggregator.statistics().uploaded == 0


async def test_one_attempt_is_one_call(autojump_clock: MockClock) -> None:
    handler = Handler(ValueError())
    with pytest.raises(UploadFailed, match="after 1 attempt"):
        async with BatchResultAggregator(None, handler, upload_attempts=1) as aggregator:
            await aggregator.create_batch("b", [])
            await trio.sleep_forever()
    assert handler.times == [0]


@pytest.mark.parametrize(
    "reason", [TypeError("no"), AttributeError("no"), NameError("no"), KafkaError("topic", "gone"), UnboundLocalError()]
)
async def test_what_would_fail_again_is_not_tried_again(
    reason: Exception, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Handler(reason)
    with pytest.raises(UploadFailed, match="after 1 attempt") as caught:
        async with BatchResultAggregator(None, handler) as aggregator:
            await aggregator.create_batch("b", [])
            await trio.sleep_forever()
    assert caught.value.__cause__ is reason
    assert handler.times == [0]
    (line,) = lines(caplog, logging.ERROR)
    assert line.endswith("(try 1 of 1)")


async def test_a_handler_that_cannot_be_called_like_that_is_found_where_it_was_given() -> None:
    async def handler(batch_id: str) -> None:
        raise AssertionError("is not called")

    with pytest.raises(ValueError, match=r"is called as batch_upload_handler\(batch_id, results_list\)"):
        BatchResultAggregator(None, handler)
    with pytest.raises(ValueError, match=r"report_handler= is called as report_handler\(report\)"):
        BatchResultAggregator(None, report_handler=lambda: None)
    with pytest.raises(ValueError, match=r"callback= is called as callback\(station_id, value\)"):
        BatchResultAggregator(lambda station_id: None)


async def test_one_error_leaves_when_several_uploads_fail_at_once(autojump_clock: MockClock) -> None:
    with pytest.raises(UploadFailed):
        async with BatchResultAggregator(None, Handler(ValueError()), max_uploads=10, upload_attempts=1) as aggregator:
            for number in range(10):
                await aggregator.create_batch(f"batch {number}", [])
            await trio.sleep_forever()


async def test_a_list_that_is_skipped_counts_as_up(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    handler = Handler(ValueError("no"), ValueError("no"), 0)
    fates = []
    async with BatchResultAggregator(
        sleeping, handler, on_upload_failure="skip", upload_attempts=2, max_uploads=1
    ) as aggregator:
        await aggregator.admit("given up", {"A": 0}, when_done=fates.append)
        await aggregator.run("good", {"A": 1})
        statistics = aggregator.statistics()
    assert fates == [True]
    assert [batch_id for _, batch_id, _ in handler.calls] == ["given up", "given up", "good"]
    assert (statistics.uploaded, statistics.skipped_uploads, statistics.failed_tries) == (1, 1, 2)
    assert lines(caplog, logging.ERROR) == [
        "batch given up upload failed: ValueError: no (try 2 of 2)",
        "batch given up is given up and counts as up (on_upload_failure='skip')",
    ]


async def test_every_try_has_the_upload_timeout(autojump_clock: MockClock) -> None:
    handler = Handler(math.inf)
    with pytest.raises(UploadFailed, match="after 2 attempt") as caught:
        async with BatchResultAggregator(None, handler, upload_attempts=2, upload_timeout=3) as aggregator:
            await aggregator.create_batch("b", [])
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, UploadTimedOut)
    assert "longer than 3 s" in str(caught.value.__cause__)
    assert handler.times[0] == 0
    assert 3.1 <= handler.times[1] <= 3.2
    assert trio.current_time() == handler.times[1] + 3


async def test_a_try_that_is_done_in_time_is_up_however_many_came_before(autojump_clock: MockClock) -> None:
    handler = Handler(math.inf, 2.5)
    async with BatchResultAggregator(None, handler, upload_timeout=3) as aggregator:
        await aggregator.create_batch("b", [])
    assert len(handler.calls) == 2
    assert aggregator.statistics().uploaded == 1


async def test_a_handler_that_fails_in_its_own_nursery_when_its_time_is_up_has_timed_out(
    autojump_clock: MockClock,
) -> None:
    async def fail_in_the_cleanup() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError

    async def handler(batch_id: str, results_list: list) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_in_the_cleanup)
            nursery.start_soon(trio.sleep_forever)

    with pytest.raises(UploadFailed) as caught:
        async with BatchResultAggregator(None, handler, upload_attempts=1, upload_timeout=3) as aggregator:
            await aggregator.create_batch("b", [])
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, UploadTimedOut)
    assert trio.current_time() == 3


async def test_a_handler_that_swallows_its_timeout_and_returns_is_up(autojump_clock: MockClock) -> None:
    # It says that the list is up, and who could know better?
    async def handler(batch_id: str, results_list: list) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return

    async with BatchResultAggregator(None, handler, upload_timeout=3) as aggregator:
        await aggregator.create_batch("b", [])
    assert aggregator.statistics().uploaded == 1
    assert trio.current_time() == 3


@pytest.mark.parametrize("kind", ["a stored Cancelled", "asyncio.CancelledError", "a class of its own"])
async def test_what_only_looks_like_a_cancellation_is_a_failed_try(kind: str, autojump_clock: MockClock) -> None:
    class NotAnException(BaseException):
        pass

    error = {
        "a stored Cancelled": await a_stored_cancelled(),
        "asyncio.CancelledError": asyncio.CancelledError(),
        "a class of its own": NotAnException(),
    }[kind]
    handler = Handler(error)
    with pytest.raises(UploadFailed, match="after 2 attempt") as caught:
        async with BatchResultAggregator(None, handler, upload_attempts=2) as aggregator:
            await aggregator.create_batch("b", [])
            await trio.sleep_forever()
    reason = caught.value.__cause__
    assert isinstance(reason, TrioaggError)
    assert str(reason) == f"the handler raised {type(error).__name__}"
    assert reason.__cause__ is error
    assert len(handler.calls) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_what_is_not_data_ends_the_block_bare_after_one_call(error: type, kind: str) -> None:
    calls = []

    def handler(batch_id: str, results_list: list) -> None:
        calls.append(batch_id)
        raise error("out")

    async def async_handler(batch_id: str, results_list: list) -> None:
        handler(batch_id, results_list)

    with pytest.raises(error, match="out"):
        async with BatchResultAggregator(None, handler if kind == "sync" else async_handler) as aggregator:
            await aggregator.create_batch("b", [])
            await trio.sleep_forever()
    assert calls == ["b"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_what_is_not_data_ends_a_later_try_just_so(error: type, autojump_clock: MockClock) -> None:
    handler = Handler(ValueError(), error("out"))
    with pytest.raises(error, match="out"):
        async with BatchResultAggregator(None, handler) as aggregator:
            await aggregator.create_batch("b", [])
            await trio.sleep_forever()
    assert len(handler.calls) == 2


async def test_when_a_list_is_given_up_no_other_counts_as_up_any_more(autojump_clock: MockClock) -> None:
    # The service ends there: an offset that moved on after that would be one too many.
    fates = {}

    async def handler(batch_id: str, results_list: list) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(1 if batch_id == "bad" else 2)
        if batch_id == "bad":
            raise TypeError

    with pytest.raises(UploadFailed, match="batch bad"):
        async with BatchResultAggregator(None, handler) as aggregator:
            for batch_id in ("bad", "good"):
                fate = functools.partial(fates.__setitem__, batch_id)
                await aggregator.admit(batch_id, {}, pushed=True, when_done=fate)
            await trio.sleep_forever()
    assert trio.current_time() == 2
    assert fates == {"bad": False, "good": False}


async def test_an_error_whose_words_cannot_be_read_is_a_failed_try_like_any_other(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Unreadable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    async with BatchResultAggregator(None, Handler(Unreadable(), 0)) as aggregator:
        await aggregator.create_batch("b", [])
    assert lines(caplog, logging.WARNING) == [
        "batch b upload failed: Unreadable: (its message cannot be read) (try 1 of 5)"
    ]


# Plain handlers.


async def test_a_plain_handler_runs_in_a_thread() -> None:
    calls = []

    def handler(batch_id: str, results_list: list) -> None:
        calls.append((batch_id, results_list, threading.current_thread() is threading.main_thread()))

    async with BatchResultAggregator(None, handler) as aggregator:
        batch = await aggregator.create_batch("b", ["A"])
        batch.add_result("A", {"station_id": "A"})
    assert calls == [("b", [{"station_id": "A"}], False)]


async def test_a_plain_handler_is_waited_for_and_never_called_again_while_it_runs() -> None:
    calls, running, together = 0, 0, 0

    def handler(batch_id: str, results_list: list) -> None:
        nonlocal calls, running, together
        calls += 1
        running += 1
        together = max(together, running)
        time.sleep(0.1)
        running -= 1
        if calls < 3:
            raise ValueError

    async with BatchResultAggregator(None, handler, upload_timeout=0.01) as aggregator:
        await aggregator.create_batch("b", [])
    assert calls == 3
    assert together == 1
    assert aggregator.statistics().uploaded == 1


@pytest.mark.parametrize("kind", ["coroutine", "awaitable"])
async def test_a_plain_handler_that_returns_something_to_await_is_a_failure_that_says_so(kind: str) -> None:
    called = []

    async def really(batch_id: str, results_list: list) -> None:
        called.append(batch_id)

    class Later:
        def __await__(self):
            return really("b", []).__await__()

    def handler(batch_id: str, results_list: list) -> object:
        return really(batch_id, results_list) if kind == "coroutine" else Later()

    with pytest.raises(UploadFailed, match="after 1 attempt") as caught:
        async with BatchResultAggregator(None, handler) as aggregator:
            await aggregator.create_batch("b", [])
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, TypeError)
    assert "async" in str(caught.value.__cause__)
    assert called == []


async def test_hanging_stations_do_not_keep_plain_handlers_from_running() -> None:
    release = threading.Event()

    def callback(station_id: str, value: object) -> dict:
        release.wait(10)
        return {}

    lists = []
    try:
        async with BatchResultAggregator(callback, lambda *args: lists.append(args), batch_timeout=0.05) as aggregator:
            for number in range(5):
                await aggregator.run(f"batch {number}", {f"S{n}": n for n in range(40)})
    finally:
        release.set()
    assert len(lists) == 5


@pytest.mark.parametrize("wrap", [lambda f: f, functools.partial, lambda f: functools.partial(functools.partial(f))])
async def test_an_async_handler_may_be_an_object_or_a_partial(wrap: Callable, autojump_clock: MockClock) -> None:
    handler = Handler(0)
    async with BatchResultAggregator(None, wrap(handler)) as aggregator:
        await aggregator.create_batch("b", [])
    assert handler.calls == [(0, "b", [])]


# What is called.


async def test_an_empty_list_goes_up_too(autojump_clock: MockClock) -> None:
    handler = Handler(0)

    async def callback(station_id: str, value: object) -> None:
        return None

    async with BatchResultAggregator(callback, handler) as aggregator:
        await aggregator.run("b", {"A": 1, "B": 2})
    assert handler.calls == [(0, "b", [])]


async def test_a_report_handler_alone_gets_the_whole_report(autojump_clock: MockClock) -> None:
    reports = []

    async def report_handler(report: BatchReport) -> None:
        reports.append(report)

    async with BatchResultAggregator(sleeping, report_handler=report_handler) as aggregator:
        report = await aggregator.run("b", {"A": 1, "B": math.inf})
    assert reports == [report]
    assert report.completed_by is CompletedBy.TIMEOUT


class Sink:
    def __init__(self, seconds: float = 0.0, error: Exception | None = None) -> None:
        self.seconds, self.error = seconds, error
        self.sent: list[tuple[float, str, list[bytes]]] = []
        self.calls = 0

    def encode(self, result: dict) -> bytes:
        return encode_result(result)

    async def send(self, report: BatchReport, encoded: Sequence[bytes]) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error
        await trio.sleep(self.seconds)
        self.sent.append((trio.current_time(), report.batch_id, list(encoded)))


async def test_a_list_is_up_when_all_that_are_called_for_it_have_returned(autojump_clock: MockClock) -> None:
    order = []
    sink = Sink(seconds=4)

    async def handler(batch_id: str, results_list: list) -> None:
        await trio.sleep(1)
        order.append(("handler", trio.current_time()))

    async def report_handler(report: BatchReport) -> None:
        await trio.sleep(2)
        order.append(("report handler", trio.current_time()))

    async with BatchResultAggregator(sleeping, handler, report_handler=report_handler, sink=sink) as aggregator:
        await aggregator.run("b", {"A": 0})
        assert trio.current_time() == 7
    assert order == [("handler", 1), ("report handler", 3)]
    assert sink.sent == [(7, "b", [b'{"station_id":"A"}'])]


async def test_a_failure_of_one_of_them_repeats_all(autojump_clock: MockClock) -> None:
    handler = Handler(0)
    reports = []

    async def report_handler(report: BatchReport) -> None:
        reports.append(report.batch_id)
        if len(reports) < 3:
            raise ValueError

    sink = Sink()
    async with BatchResultAggregator(None, handler, report_handler=report_handler, sink=sink) as aggregator:
        await aggregator.create_batch("b", [])
    assert [len(handler.calls), len(reports), sink.calls] == [3, 3, 1]


async def test_a_sink_alone_is_waited_for_without_limit_and_not_tried_again(autojump_clock: MockClock) -> None:
    sink = Sink(seconds=3600)
    async with BatchResultAggregator(None, sink=sink, drain_timeout=math.inf) as aggregator:
        for number in range(50):
            await aggregator.create_batch(f"batch {number}", [])
    assert {when for when, _, _ in sink.sent} == {3600}  # all at once: max_uploads is for handlers
    assert len(sink.sent) == sink.calls == 50


async def test_a_sink_that_refuses_ends_the_block(autojump_clock: MockClock) -> None:
    sink = Sink(error=KafkaError("topic", "gone"))
    with pytest.raises(UploadFailed, match="after 1 attempt") as caught:
        async with BatchResultAggregator(None, sink=sink) as aggregator:
            await aggregator.create_batch("b", [])
            await trio.sleep_forever()
    assert caught.value.__cause__ is sink.error


# How many, and in whose way.


@pytest.mark.parametrize("max_uploads", [1, 3, 4, 100])
async def test_so_many_uploads_run_side_by_side_and_no_more(max_uploads: int, autojump_clock: MockClock) -> None:
    journal = Journal({f"batch {number}": 1.0 for number in range(12)})
    async with BatchResultAggregator(None, journal, max_uploads=max_uploads) as aggregator:
        for number in range(12):
            await aggregator.create_batch(f"batch {number}", [])
    assert journal.most == min(max_uploads, 12)
    assert trio.current_time() == math.ceil(12 / max_uploads)


async def test_a_slow_upload_delays_no_other_batchs_deadline(autojump_clock: MockClock) -> None:
    journal = Journal({"slow": 9.0})
    async with BatchResultAggregator(sleeping, journal, max_uploads=1) as aggregator:
        await aggregator.submit("slow", {"A": 0})
        batch = await aggregator.submit("b", {"A": 1, "B": math.inf})
        report = await batch.wait_closed()
        assert trio.current_time() == report.seconds == 5
    assert journal.up == {"slow": 9, "b": 9}


async def test_an_upload_that_waits_for_its_next_try_does_not_hold_up_the_end_of_another(
    autojump_clock: MockClock,
) -> None:
    journal = Journal()
    refused = 0

    async def handler(batch_id: str, results_list: list) -> None:
        nonlocal refused
        if batch_id == "bad" and refused < 4:
            refused += 1
            raise ValueError
        await journal(batch_id, results_list)

    async with BatchResultAggregator(None, handler, max_uploads=2) as aggregator:
        await aggregator.create_batch("bad", [])
        await trio.sleep(0.25)
        for number in range(5):
            await aggregator.create_batch(f"batch {number}", [])
    assert {journal.up[f"batch {number}"] for number in range(5)} == {0.25}
    assert journal.up["bad"] >= 1.5


# Order.


async def ordered(aggregator: BatchResultAggregator, batch_id: str, seconds: float, order: object, **more: Any) -> None:
    await aggregator.admit(batch_id, {"A": seconds}, order=order, **more)


async def test_lists_of_one_key_go_up_in_the_order_of_their_acceptance(autojump_clock: MockClock) -> None:
    journal = Journal({"first": 2.0})
    async with BatchResultAggregator(sleeping, journal) as aggregator:
        await ordered(aggregator, "first", 3, "k")
        await ordered(aggregator, "second", 1, "k")
        await ordered(aggregator, "third", 0, "k")
        await ordered(aggregator, "of another key", 2, "l")
        await ordered(aggregator, "of none", 1, None)
        await trio.sleep(2.5)
        assert aggregator.statistics().waiting_uploads == 2
    assert journal.up == {"of none": 1, "of another key": 2, "first": 5, "second": 5, "third": 5}
    assert journal.began == {"of none": 1, "of another key": 2, "first": 3, "second": 5, "third": 5}
    assert list(journal.began)[2:] == ["first", "second", "third"]


async def test_a_failed_try_keeps_its_place(autojump_clock: MockClock) -> None:
    order = []

    async def handler(batch_id: str, results_list: list) -> None:
        order.append(batch_id)
        if order.count(batch_id) < 3 and batch_id == "first":
            raise ValueError

    async with BatchResultAggregator(sleeping, handler) as aggregator:
        await ordered(aggregator, "first", 0, "k")
        await ordered(aggregator, "second", 0, "k")
    assert order == ["first", "first", "first", "second"]


async def test_an_aborted_batch_in_the_middle_holds_nobody_up(autojump_clock: MockClock) -> None:
    journal = Journal()
    async with BatchResultAggregator(sleeping, journal) as aggregator:
        await ordered(aggregator, "first", 1, "k", offset=1)
        await ordered(aggregator, "second", 4, "k", offset=2)
        await ordered(aggregator, "third", 2, "k", offset=3)
        await ordered(aggregator, "fourth", 0, "k", offset=4)
        await trio.sleep(3)
        assert journal.up == {"first": 1}
        aggregator.abort(lambda context: context.offset == 2)
        await trio.testing.wait_all_tasks_blocked()
        assert journal.up == {"first": 1, "third": 3, "fourth": 3}
        assert aggregator.in_flight == 0
    assert trio.current_time() == 3


@pytest.mark.parametrize("unwanted", [{1}, {2}, {3}, {1, 2}, {2, 3}, {1, 3}, {1, 2, 3}, {3, 4}, {1, 2, 3, 4}])
async def test_uploads_can_be_dropped_whether_they_run_or_wait(unwanted: set[int], autojump_clock: MockClock) -> None:
    # 1 runs; 2 waits for its turn behind it; 3 waits for a place; 4 waits for its turn behind 3.
    journal = Journal({f"batch {number}": 2.0 for number in range(1, 5)})
    fates: dict[int, tuple[bool, float]] = {}
    async with BatchResultAggregator(sleeping, journal, max_uploads=1) as aggregator:
        for number, key in ((1, "k"), (2, "k"), (3, "l"), (4, "l")):

            def when_done(up: bool, number: int = number) -> None:
                assert number not in fates
                fates[number] = up, trio.current_time()

            await ordered(aggregator, f"batch {number}", 0, key, offset=number, when_done=when_done)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(1)
        assert aggregator.statistics().running_uploads == 1
        assert aggregator.statistics().waiting_uploads == 3
        assert aggregator.abort(lambda context: context.offset in unwanted) == len(unwanted)
        await trio.testing.wait_all_tasks_blocked()
        assert {number for number in fates if not fates[number][0]} == unwanted
    assert set(fates) == {1, 2, 3, 4}
    left = [number for number in (1, 3, 2, 4) if number not in unwanted]
    assert {int(batch_id[-1]) for batch_id in journal.up} == set(left)
    assert all(when == 1 for up, when in fates.values() if not up)
    # One place: what is left goes up one after the other, from now or from when the first one is up.
    begins = 0 if 1 not in unwanted else 1
    assert trio.current_time() == (begins + 2 * len(left) if left else 1)
    for key in ((1, 2), (3, 4)):
        times = [journal.up[f"batch {number}"] for number in key if number not in unwanted]
        assert times == sorted(times)


async def test_a_dropped_upload_whose_last_try_fails_in_its_thread_ends_nothing() -> None:
    began, release = threading.Event(), threading.Event()
    fates = []

    def handler(batch_id: str, results_list: list) -> None:
        if batch_id == "dropped":
            began.set()
            release.wait(10)
            raise ValueError

    async def callback(station_id: str, value: object) -> dict:
        return {}

    async with BatchResultAggregator(callback, handler, upload_attempts=1) as aggregator:
        await aggregator.admit("dropped", {"A": 1}, offset=1, when_done=fates.append)
        await trio.to_thread.run_sync(began.wait)
        assert aggregator.abort(lambda context: context.offset == 1) == 1
        assert fates == []  # the thread is waited for: it cannot be stopped
        release.set()
        await aggregator.run("good", {"A": 1})
    assert fates == [False]


async def test_a_dropped_upload_that_comes_up_in_its_thread_all_the_same_counts_as_up() -> None:
    began, release = threading.Event(), threading.Event()
    fates = []

    def handler(batch_id: str, results_list: list) -> None:
        began.set()
        release.wait(10)

    async with BatchResultAggregator(None, handler) as aggregator:
        await aggregator.admit("b", {}, pushed=True, when_done=fates.append)
        await trio.to_thread.run_sync(began.wait)
        assert aggregator.abort(lambda context: True) == 1
        release.set()
    assert fates == [True]


async def test_a_dropped_upload_is_not_tried_again(autojump_clock: MockClock) -> None:
    handler = Handler(ValueError())
    async with BatchResultAggregator(sleeping, handler) as aggregator:
        await aggregator.admit("b", {"A": 0})
        await trio.sleep(0.05)
        assert aggregator.abort(lambda context: True) == 1
    assert handler.times == [0]
    assert trio.current_time() == 0.05


async def test_uploads_that_wait_go_up_before_the_block_is_left(autojump_clock: MockClock) -> None:
    journal = Journal({f"batch {number}": 1.0 for number in range(5)})
    async with BatchResultAggregator(None, journal, max_uploads=1) as aggregator:
        for number in range(5):
            await aggregator.create_batch(f"batch {number}", [])
    assert sorted(journal.up.values()) == [1, 2, 3, 4, 5]
