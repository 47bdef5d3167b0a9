"""The log: the guide's lines word for word, English with fields by default, and nothing that nobody reads."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trioagg import BatchResultAggregator, UploadFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio.testing import MockClock

GUIDES_BATCH = "SCHEDULE-STATION-REALTIME-DATA_0_12345_1700000000"


async def callback(station_id: str, what: object) -> object:
    """Sleeps that many seconds, or does what the word says."""
    if isinstance(what, int | float):
        await trio.sleep(what)
        return {"station_id": station_id}
    if what == "raises":
        raise ValueError(station_id)
    return None if what == "none" else [what]


SLEEPS_IN = callback.__code__.co_firstlineno + 3


async def upload(batch_id: str, results_list: list) -> None:
    await trio.sleep(1)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[..., list[tuple[str, str]]]:
    """The records of our logger so far as (level, line); all of them, or those with some words in them."""
    caplog.set_level(logging.DEBUG, "trioagg")

    def lines(words: str = "") -> list[tuple[str, str]]:
        return [
            (record.levelname, record.getMessage())
            for record in caplog.records
            if record.name == "trioagg" and words in record.getMessage()
        ]

    return lines


# The guide's lines.


async def test_the_lines_of_the_guide_are_written_word_for_word(log, autojump_clock: MockClock) -> None:
    stations: dict[str, object] = {f"S{n:03}": n / 4 for n in range(1, 8)}  # seven succeed, one after the other
    stations |= {"S008": "none", "S009": math.inf, "S010": math.inf}
    async with BatchResultAggregator(callback, upload, batch_timeout=5.0, log_language="zh") as aggregator:
        await aggregator.submit(GUIDES_BATCH, stations)
    answered = ["S008", *(f"S{n:03}" for n in range(1, 8))]
    lines = log()
    assert sorted(line for level, line in lines if level == "DEBUG") == [
        f"批次 {GUIDES_BATCH} 场站 {station} 停在 {__file__}:{SLEEPS_IN} in callback" for station in ("S009", "S010")
    ]
    assert [line for line in lines if line[0] != "DEBUG"] == [
        ("INFO", "创建批次 SCHEDULE-STATION-REALTIME-DATA_0_12345_1700000000，期望场站数: 10"),
        *(
            ("INFO", f"批次 SCHEDULE-STATION-REALTIME-DATA_0_12345_1700000000 收到场站 {station} 结果，进度: {n}/10")
            for n, station in enumerate(answered, 1)
        ),
        ("WARNING", "批次 SCHEDULE-STATION-REALTIME-DATA_0_12345_1700000000 超时 (5秒)，已完成 8/10 个场站"),
        ("INFO", "批次 SCHEDULE-STATION-REALTIME-DATA_0_12345_1700000000 上传结果: 成功=7, 失败=2, 无输出=1"),
    ]


@pytest.mark.parametrize(
    ("batch_timeout", "seconds"),
    [(5.0, "5秒"), (5, "5秒"), (2.5, "2.5秒"), (0.25, "0.25秒"), (10.0, "10秒"), (60, "60秒")],
)
async def test_seconds_are_written_as_short_as_they_are(
    batch_timeout: float, seconds: str, log, autojump_clock: MockClock
) -> None:
    async with BatchResultAggregator(batch_timeout=batch_timeout, log_language="zh") as aggregator:
        await (await aggregator.create_batch("b", ["A"])).wait_closed()
    assert log("超时") == [("WARNING", f"批次 b 超时 ({seconds})，已完成 0/1 个场站")]


async def test_every_answer_has_its_line_whatever_it_is(log, autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(callback, log_language="zh", max_running_stations=1) as aggregator:
        await aggregator.submit("b", {"A": 0, "B": "none", "C": "raises", "D": "list"})
    assert log("收到场站") == [
        ("INFO", f"批次 b 收到场站 {station} 结果，进度: {done}/4") for done, station in enumerate("ABCD", 1)
    ]


async def test_pushed_answers_have_their_lines_and_ignored_ones_have_none(log, autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(log_language="zh") as aggregator:
        batch = await aggregator.create_batch("b", ["A", "B"])
        batch.add_result("A", {})
        batch.add_result("A", {})
        batch.add_result("X", {})
        aggregator.add_failure("b", "B", ValueError())
        await batch.wait_closed()
        batch.add_result("B", {})
    assert [line for _, line in log("收到场站")] == [
        "批次 b 收到场站 A 结果，进度: 1/2",
        "批次 b 收到场站 B 结果，进度: 2/2",
    ]


@pytest.mark.parametrize("end", ["all", "forced", "aborted"])
async def test_only_a_timeout_is_called_one(end: str, log, autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(None, upload, log_language="zh") as aggregator:
        batch = await aggregator.create_batch("b", ["A"])
        if end == "all":
            batch.add_result("A", {})
        elif end == "forced":
            batch.complete()
        else:
            batch.abort()
        assert (await batch.wait_closed()).completed_by == end
    assert log("超时") == []
    # A batch that is aborted is not uploaded either.
    assert len(log("上传结果")) == (0 if end == "aborted" else 1)


async def test_the_upload_is_logged_once_and_when_it_is_done(log, autojump_clock: MockClock) -> None:
    tries = 0

    async def second_time_lucky(batch_id: str, results_list: list) -> None:
        nonlocal tries
        tries += 1
        await trio.sleep(1)
        if tries == 1:
            raise OSError("no route")

    async with BatchResultAggregator(callback, second_time_lucky, batch_timeout=2, log_language="zh") as aggregator:
        await aggregator.submit("b", {"A": 0, "B": math.inf})
        await trio.sleep(3.5)
        assert log("上传") == [("WARNING", "批次 b 上传失败: OSError: no route (第 1/5 次)")]
        assert log("超时") == [("WARNING", "批次 b 超时 (2秒)，已完成 1/2 个场站")]
    assert log()[-1] == ("INFO", "批次 b 上传结果: 成功=1, 失败=1, 无输出=0")
    assert len(log("上传结果")) == 1


async def test_an_empty_list_has_its_line_too(log, autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(callback, upload, log_language="zh") as aggregator:
        await aggregator.submit("none", {"A": "none", "B": "raises"})
        await aggregator.create_batch("nobody", [])
    assert sorted(log("上传结果")) == [
        ("INFO", "批次 nobody 上传结果: 成功=0, 失败=0, 无输出=0"),
        ("INFO", "批次 none 上传结果: 成功=0, 失败=1, 无输出=1"),
    ]


async def test_who_did_not_answer_has_failed(log, autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(callback, upload, log_language="zh", max_running_stations=2) as aggregator:
        # One succeeds, one raises, two time out, two are never started.
        await aggregator.submit("b", {"A": 1, "B": "raises", "C": math.inf, "D": math.inf, "E": 0, "F": 0})
        forced = await aggregator.submit("forced", {"A": 1, "B": math.inf, "C": math.inf})
        await trio.sleep(2)
        forced.complete()
        assert (await forced.wait_closed()).cancelled == 2
    assert ("INFO", "批次 b 上传结果: 成功=1, 失败=5, 无输出=0") in log()
    assert ("INFO", "批次 forced 上传结果: 成功=1, 失败=2, 无输出=0") in log()


async def test_an_upload_that_is_given_up_is_an_error_and_no_result(log, autojump_clock: MockClock) -> None:
    async def refuse(batch_id: str, results_list: list) -> None:
        raise OSError("no route")

    with pytest.raises(UploadFailed):
        async with BatchResultAggregator(callback, refuse, upload_attempts=2, log_language="zh") as aggregator:
            await aggregator.submit("b", {"A": 0})
            await trio.sleep_forever()
    assert log("上传") == [
        ("WARNING", "批次 b 上传失败: OSError: no route (第 1/2 次)"),
        ("ERROR", "批次 b 上传失败: OSError: no route (第 2/2 次)"),
    ]


async def test_an_upload_that_is_skipped_is_an_error_and_no_result(log, autojump_clock: MockClock) -> None:
    async def refuse(batch_id: str, results_list: list) -> None:
        raise OSError("no route")

    async with BatchResultAggregator(
        callback, refuse, upload_attempts=1, on_upload_failure="skip", log_language="zh"
    ) as aggregator:
        await aggregator.submit("b", {"A": 0})
    assert log("上传") == [
        ("ERROR", "批次 b 上传失败: OSError: no route (第 1/1 次)"),
        ("ERROR", "批次 b 放弃上传，按已上传处理 (on_upload_failure='skip')"),
    ]


# English, with fields.


async def test_the_lines_are_english_by_default(log, autojump_clock: MockClock) -> None:
    async with BatchResultAggregator(callback, upload, batch_timeout=2.5) as aggregator:
        await aggregator.submit("b", {"A": 1, "B": "none", "C": "raises", "D": math.inf})
    lines = log()
    assert lines[0] == ("INFO", "batch b opened: 4 stations expected")
    assert sorted(lines[1:3])[0][1].startswith("batch b: station ")
    assert lines[3:] == [
        ("DEBUG", "batch b: station A has answered, 3 of 4"),
        ("WARNING", "batch b: 1 of 4 stations have failed, the first one with ValueError: C"),
        ("WARNING", "batch b timed out after 2.5 s: 3 of 4 stations have answered"),
        ("DEBUG", f"batch b: station D is at {__file__}:{SLEEPS_IN} in callback"),
        ("INFO", "batch b uploaded: 1 succeeded, 2 failed, 1 without output"),
    ]


async def test_every_line_about_a_batch_has_fields(
    log, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with BatchResultAggregator(callback, upload, max_running_stations=3) as aggregator:
        await aggregator.submit(
            "b", {"A": 1, "B": "none", "C": "raises", "D": math.inf, "E": math.inf, "F": math.inf, "G": 0}
        )
    records = [record for record in caplog.records if record.name == "trioagg"]
    assert {record.batch_id for record in records} == {"b"}
    assert {record.expected for record in records} == {7}
    of_stations = [record for record in records if record.levelno == logging.DEBUG]
    assert {record.station_id for record in of_stations if "has answered" in record.getMessage()} == {"A", "B", "C"}
    assert {record.station_id for record in of_stations if " is at " in record.getMessage()} == {"D", "E", "F"}
    for record in [record for record in records if record.levelno > logging.DEBUG][-3:]:
        fields: dict[str, Any] = {
            name: getattr(record, name)
            for name in ("completed_by", "succeeded", "failed", "timed_out", "no_output", "skipped", "seconds")
        }
        assert fields == {
            "completed_by": "timeout",
            "succeeded": 1,
            "failed": 1,
            "timed_out": 3,
            "no_output": 1,
            "skipped": 1,
            "seconds": 5.0,
        }


async def test_failed_stations_have_one_line_a_batch_and_no_traceback(
    log, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with BatchResultAggregator(callback) as aggregator:
        await aggregator.submit("b", dict.fromkeys((f"S{n}" for n in range(100)), "raises"))
    (line,) = log("have failed")
    assert line[0] == "WARNING"
    assert line[1].startswith("batch b: 100 of 100 stations have failed, the first one with ValueError: S")
    assert all(record.exc_info is None for record in caplog.records)


async def test_the_last_failed_try_has_its_traceback(
    log, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    reason = OSError("no route")

    async def refuse(batch_id: str, results_list: list) -> None:
        raise reason

    with pytest.raises(UploadFailed):
        async with BatchResultAggregator(callback, refuse, upload_attempts=3) as aggregator:
            await aggregator.submit("b", {"A": 0})
            await trio.sleep_forever()
    tries = [record for record in caplog.records if "upload failed" in record.getMessage()]
    assert [record.exc_info and record.exc_info[1] for record in tries] == [None, None, reason]


# What nobody reads.


@pytest.fixture
def made(log) -> Iterator[list[logging.LogRecord]]:
    """Every record of our logger that is made at all."""
    records: list[logging.LogRecord] = []
    original = logging.getLogRecordFactory()

    def factory(name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = original(name, *args, **kwargs)
        if name == "trioagg":
            records.append(record)
        return record

    logging.setLogRecordFactory(factory)
    yield records
    logging.setLogRecordFactory(original)


@pytest.mark.parametrize(("language", "level"), [("en", logging.WARNING), ("zh", logging.WARNING)])
async def test_nothing_is_made_for_nobody(
    language: str, level: int, made, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(level, "trioagg")
    async with BatchResultAggregator(callback, upload, log_language=language) as aggregator:
        await aggregator.submit("b", {"A": 0, "B": 1, "C": "none"})
        batch = await aggregator.create_batch("pushed", ["A"])
        batch.add_result("A", {})
    assert made == []


async def test_at_the_level_of_info_english_answers_are_not_made(
    made, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.INFO, "trioagg")
    async with BatchResultAggregator(callback, upload) as aggregator:
        await aggregator.submit("b", {f"S{n}": 0 for n in range(100)})
    assert [record.getMessage() for record in made] == [
        "batch b opened: 100 stations expected",
        "batch b uploaded: 100 succeeded, 0 failed, 0 without output",
    ]


async def test_a_level_that_is_changed_holds_from_the_next_batch_on(
    made, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with BatchResultAggregator(callback, upload, log_language="zh") as aggregator:
        for level in (logging.WARNING, logging.INFO, logging.WARNING):
            caplog.set_level(level, "trioagg")
            await aggregator.run(f"{level}", {"A": 0})
    assert [record.getMessage() for record in made if "收到" in record.getMessage()] == [
        "批次 20 收到场站 A 结果，进度: 1/1"
    ]


@pytest.mark.parametrize("level", [logging.ERROR, logging.CRITICAL])
async def test_warnings_are_not_made_for_nobody_either(
    level: int, made, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(level, "trioagg")
    async with BatchResultAggregator(callback, upload) as aggregator:
        await aggregator.submit("b", {"A": "raises", "B": math.inf})
    assert made == []
