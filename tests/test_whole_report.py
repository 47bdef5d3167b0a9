"""The report in plain types, where stations hang, and the ledger beside the list."""

from __future__ import annotations

import json
import logging
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio
from broker import Kafka, read_all
from load import DeadLoad, Load, double, until

from trioagg import BadResult, BatchReport, BatchResultAggregator, Retry, run_batch

if TYPE_CHECKING:
    from trio.testing import MockClock


async def mixed(station_id: str, what: Any) -> Any:
    if what == "raises":
        raise ValueError("no\ndata")
    if what == "hangs":
        await trio.sleep_forever()
    await trio.sleep(1)
    return what


async def report_of(stations: dict[str, Any], **settings: Any) -> BatchReport:
    return await run_batch("b", stations, mixed, **settings)


async def test_a_report_is_told_in_types_that_json_has(autojump_clock: MockClock) -> None:
    stations = {"A": {"load": np.float64(2.5), "curve": np.arange(3)}, "B": None, "C": "raises", "D": "hangs"}
    report = await report_of(stations, batch_timeout=5, retry_station=Retry(attempts=2, backoff=0))
    told = report.to_dict()
    assert json.loads(json.dumps(told)) == told
    (place,) = told["stations"]["D"].pop("stuck_at")
    assert place.endswith(" in mixed")
    assert told == {
        "batch_id": "b",
        "completed_by": "timeout",
        "seconds": 5.0,
        "expected": 4,
        "succeeded": 1,
        "no_output": 1,
        "failed": 1,
        "timed_out": 1,
        "cancelled": 0,
        "skipped": 0,
        "stations": {
            "A": {"verdict": "succeeded", "started_seconds": 0.0, "run_seconds": 1.0},
            "B": {"verdict": "no_output", "started_seconds": 0.0, "run_seconds": 1.0},
            "C": {
                "verdict": "failed",
                "started_seconds": 0.0,
                "run_seconds": 0.0,
                "error": r"ValueError: no\ndata",
                "attempts": 2,
            },
            "D": {"verdict": "timed_out", "started_seconds": 0.0, "run_seconds": 5.0},
        },
        "results": [{"load": 2.5, "curve": [0, 1, 2]}],
    }


async def test_a_result_that_json_has_nothing_for_is_named(autojump_clock: MockClock) -> None:
    report = await report_of({"A": {"load": float("nan")}})
    with pytest.raises(BadResult, match=r"\$.load is NaN"):
        report.to_dict()
    assert report.ledger()["succeeded"] == 1


# Where they hang.


async def deep(seconds: float) -> None:
    await trio.sleep(seconds)


async def test_the_innermost_place_comes_first(autojump_clock: MockClock) -> None:
    async def callback(station_id: str, value: object) -> None:
        await deep(60)

    report = await run_batch("b", {"A": 1}, callback)
    line = deep.__code__.co_firstlineno + 1
    assert report.stations["A"].stuck_at[0] == f"{__file__}:{line} in deep"
    assert report.stations["A"].stuck_at[1].endswith("callback")


async def test_it_is_a_sample_of_a_large_batch(autojump_clock: MockClock) -> None:
    report = await report_of({f"S{n:04d}": "hangs" for n in range(2000)})
    assert sum(bool(outcome.stuck_at) for outcome in report.stations.values()) == 20


async def test_many_batches_that_end_at_once_are_looked_at_less_closely(autojump_clock: MockClock) -> None:
    reports: list[BatchReport] = []

    async def keep(report: BatchReport) -> None:
        await trio.lowlevel.checkpoint()
        reports.append(report)

    async with BatchResultAggregator(mixed, report_handler=keep) as aggregator:
        for number in range(100):
            await aggregator.submit(f"{number}", {f"S{n}": "hangs" for n in range(30)})
    looked_at = [sum(bool(o.stuck_at) for o in report.stations.values()) for report in reports]
    assert max(looked_at) == 20
    assert sum(looked_at) == 60
    assert sum(map(bool, looked_at)) > 5


async def test_stations_that_answered_are_not_stuck(autojump_clock: MockClock) -> None:
    report = await report_of({"A": {}, "B": "raises"})
    assert [outcome.stuck_at for outcome in report.stations.values()] == [(), ()]


# On Kafka.


async def test_the_ledger_travels_with_the_list(kafka: Kafka) -> None:
    load = Load(kafka.bootstrap, 1)

    async def callback(station_id: str, given: dict) -> dict | None:
        return await double(station_id, given) if station_id == "S000" else None

    service = load.service(include_ledger=True)
    with trio.fail_after(60):
        async with service.start(callback):
            await until(lambda: service.statistics().uploaded == 1)
    (message,) = read_all(kafka.bootstrap, load.results)
    told = json.loads(message.value())
    assert list(told) == ["batch_id", "count", "results", "ledger"]
    assert told["ledger"]["stations"]["S001"]["verdict"] == "no_output"


async def test_a_dead_letter_says_where_its_stations_hang(kafka: Kafka) -> None:
    load = DeadLoad(kafka.bootstrap, 1)

    async def hangs(station_id: str, given: dict) -> None:
        await trio.sleep_forever()

    service = load.service(batch_timeout=0.2, dead_letter_stations=["timed_out"])
    with trio.fail_after(60):
        async with service.start(hangs):
            await until(lambda: service.statistics().dead_letters == 1)
    (letter,) = load.letters()
    ledger = json.loads(dict(letter.headers())["trioagg-ledger"])
    assert ledger["stations"]["S000"]["stuck_at"][0].endswith("hangs")


async def test_rules_and_budgets_hold_on_kafka_too(kafka: Kafka) -> None:
    load = Load(kafka.bootstrap, 10)
    seen: list[BatchReport] = []

    async def some_hang(station_id: str, given: dict) -> dict:
        if station_id == "S002":
            await trio.sleep_forever()
        return await double(station_id, given)

    async def handler(report: BatchReport) -> None:
        await trio.lowlevel.checkpoint()
        seen.append(report)

    service = load.service(
        result_topic=None,
        quorum=2,
        batch_timeout=lambda topic, stations: 5.0 * stations,
        revoke_timeout=20.0,
        sla_seconds=3600.0,
    )
    with trio.fail_after(60):
        async with service.start(some_hang, report_handler=handler):
            await until(lambda: len(seen) == 10)
    assert {report.completed_by for report in seen} == {"quorum"}
    assert {round(report.timeout_seconds) for report in seen} == {15}
    assert load.committed() == load.ends()
    # What was written long ago is late already.
    late: list[BatchReport] = []

    async def late_handler(report: BatchReport) -> None:
        await trio.lowlevel.checkpoint()
        late.append(report)

    load.group += "-late"
    service = load.service(result_topic=None, sla_seconds=0.001, sla_policy="skip")
    with trio.fail_after(60):
        async with service.start(some_hang, report_handler=late_handler):
            await until(lambda: len(late) == 10)
            assert service.statistics().over_sla == 10
    assert {(report.completed_by, report.skipped, report.seconds < 0.1) for report in late} == {("timeout", 3, True)}


async def test_two_hundred_hung_threads_leave_the_service_alive_and_it_says_what_is_wrong(
    kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "trioagg")
    load = Load(kafka.bootstrap)
    load.send(3, stations=100)
    release = threading.Event()

    def hangs(station_id: str, given: dict) -> dict:
        release.wait(60)
        return {}

    other = Load(kafka.bootstrap, 50)
    seconds: list[float] = []

    async def on_time(report: BatchReport) -> None:
        await trio.lowlevel.checkpoint()
        seconds.append(report.seconds)

    service = load.service(batch_timeout=0.5, max_threads=100, max_abandoned_threads=200, max_batches_in_flight=1)
    asynchronous = other.service(result_topic=None, batch_timeout=5.0)
    try:
        with trio.fail_after(60):
            async with service.start(hangs), asynchronous.start(double, report_handler=on_time):
                await until(lambda: service.statistics().uploaded == 3)
                assert service.statistics().abandoned_threads == 200
                # Those that hang are in nobody's way.
                other.send(50)
                await until(lambda: len(seconds) == 100)
                assert max(seconds) < 3  # of 5
        assert "100 of 100 stations are skipped, the first one because: 200 threads of earlier stations hang" in (
            caplog.text
        )
    finally:
        release.set()
