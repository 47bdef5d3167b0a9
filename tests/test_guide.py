"""The original guide, sentence by sentence: every test quotes the one that it holds us to, and is named by it.

What needs no Kafka runs in virtual time, where times compare with ``==``; what the guide says of messages, offsets and
consumption runs against a real broker.
"""

from __future__ import annotations

import gc
import inspect
import json
import logging
import math
import threading
import time
import weakref
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import pytest
import trio
from broker import committed, create_topic, end_offsets, produce, read_all, unique

import trioagg
from trioagg import (
    Answer,
    AsyncDataAnalysisService,
    BatchCollector,
    BatchResultAggregator,
    CompletedBy,
    KafkaSettings,
    Verdict,
    run_batch,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from broker import Kafka
    from trio.testing import MockClock

TOPIC = "SCHEDULE-STATION-REALTIME-DATA"
BATCH_ID = f"{TOPIC}_0_12345_1700000000"
QUICK = KafkaSettings(session_timeout=6.0, heartbeat_interval=0.5)

GUIDE_LOG = f"""\
INFO: 创建批次 {BATCH_ID}，期望场站数: 10
INFO: 批次 {BATCH_ID} 收到场站 S001 结果，进度: 1/10
INFO: 批次 {BATCH_ID} 收到场站 S002 结果，进度: 2/10
INFO: 批次 {BATCH_ID} 收到场站 S003 结果，进度: 3/10
INFO: 批次 {BATCH_ID} 收到场站 S004 结果，进度: 4/10
INFO: 批次 {BATCH_ID} 收到场站 S005 结果，进度: 5/10
INFO: 批次 {BATCH_ID} 收到场站 S006 结果，进度: 6/10
INFO: 批次 {BATCH_ID} 收到场站 S007 结果，进度: 7/10
INFO: 批次 {BATCH_ID} 收到场站 S008 结果，进度: 8/10
WARNING: 批次 {BATCH_ID} 超时 (5秒)，已完成 8/10 个场站
INFO: 批次 {BATCH_ID} 上传结果: 成功=7, 失败=2, 无输出=1
""".splitlines()
"""The guide's log.  It writes "..." for the stations three to eight."""


class Lists:
    """A handler that keeps what it gets, and when: in seconds from its own making, on Trio's clock."""

    def __init__(self) -> None:
        self._begun = trio.current_time()
        self._more = trio.Event()
        self.calls: list[tuple[float, str, list[dict[str, Any]]]] = []

    async def __call__(self, batch_id: str, results_list: list[dict[str, Any]]) -> None:
        await trio.lowlevel.checkpoint()
        self.calls.append((trio.current_time() - self._begun, batch_id, results_list))
        self._more.set()
        self._more = trio.Event()

    @property
    def by_id(self) -> dict[str, list[dict[str, Any]]]:
        return {batch_id: results for _, batch_id, results in self.calls}

    async def wait_for(self, count: int) -> None:
        await trio.lowlevel.checkpoint()
        while len(self.calls) < count:
            await self._more.wait()


@asynccontextmanager
async def serving(
    kafka: Kafka,
    topics: list[str],
    callback: Callable[..., Any],
    batch_upload_handler: Callable[..., Any],
    **settings: Any,
) -> AsyncIterator[AsyncDataAnalysisService]:
    """A service in a group of its own, with an end that no bug can take away."""
    service = AsyncDataAnalysisService(
        module_name=settings.pop("module_name", None) or unique("guide"),
        topics=topics,
        bootstrap_servers=kafka.bootstrap,
        kafka=QUICK,
        **settings,
    )
    with trio.fail_after(60):
        async with service.start(callback=callback, batch_upload_handler=batch_upload_handler):
            yield service


def message(*stations: str, **fields: Any) -> bytes:
    """The data of several stations, as the field sends it."""
    records = [{"stationId": station, "sendTime": "2025-11-20 10:00:00", **fields} for station in stations]
    return json.dumps({"realTimeData": records}).encode()


def numbered(count: int, first: int = 1) -> list[str]:
    return [f"S{number:03d}" for number in range(first, first + count)]


async def answer(station_id: str, module_input: Any) -> dict[str, Any]:
    await trio.lowlevel.checkpoint()
    return {"station_id": station_id, "data": module_input}


async def follow(station_id: str, behaviour: Any) -> dict[str, Any] | None:
    """A station whose input says how it behaves: seconds until its dict, or one of the words below."""
    match behaviour:
        case "hangs":
            await trio.sleep_forever()
        case "raises":
            await trio.sleep(1)
            raise ValueError(f"no price for {station_id}")
        case "has none":
            await trio.sleep(1)
            return None
        case seconds:
            await trio.sleep(seconds)
    return {"station_id": station_id}


# 概述


async def test_a_message_may_lack_the_data_of_some_stations(kafka: Kafka) -> None:
    """数据不完整问题：单个Kafka消息中某些场站数据可能缺失"""
    topic = create_topic(kafka.bootstrap, unique(TOPIC))
    records = [
        {"stationId": "S001", "outputPower": 7.5},
        {"stationId": "S002"},
        {"outputPower": 1.0},
        None,
        {"stationId": "S003", "outputPower": 2.5},
    ]
    produce(kafka.bootstrap, topic, [json.dumps({"realTimeData": records})])

    async def process_station(station_id: str, module_input: dict[str, Any]) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        (record,) = module_input[topic]
        return {"station_id": station_id, "power": record["outputPower"]}

    lists = Lists()
    async with serving(kafka, [topic], process_station, lists) as service:
        await lists.wait_for(1)
    ((_, _, results),) = lists.calls
    assert sorted(results, key=lambda result: result["station_id"]) == [
        {"station_id": "S001", "power": 7.5},
        {"station_id": "S003", "power": 2.5},
    ]
    statistics = service.statistics()
    assert (statistics.expected, statistics.stations["failed"], statistics.rejected_elements) == (3, 1, 2)


async def test_the_results_of_all_stations_of_one_message_go_up_as_one_list(kafka: Kafka) -> None:
    """批次上传需求：同一批数据的所有场站结果需要聚合到一个列表中上传"""
    topic = create_topic(kafka.bootstrap, unique(TOPIC))
    produce(kafka.bootstrap, topic, [message(*numbered(20)), message(*numbered(5, first=50))])
    lists = Lists()
    async with serving(kafka, [topic], answer, lists):
        await lists.wait_for(2)
    sets = sorted(sorted(result["station_id"] for result in results) for _, _, results in lists.calls)
    assert sets == [numbered(20), numbered(5, first=50)]


async def test_some_stations_may_fail_without_holding_up_the_list(autojump_clock: MockClock) -> None:
    """容错机制：允许部分场站出错，不阻塞整体上传"""
    lists = Lists()
    async with BatchResultAggregator(follow, lists) as aggregator:
        await aggregator.submit("batch", {"A": 2.0, "B": "raises", "C": "has none", "D": 1.5})
    assert lists.calls == [(2.0, "batch", [{"station_id": "D"}, {"station_id": "A"}])]


async def test_the_timeout_sends_the_list_though_some_stations_are_not_done(autojump_clock: MockClock) -> None:
    """超时保护：即使部分场站未完成，也会在超时后触发上传"""
    lists = Lists()
    async with BatchResultAggregator(follow, lists) as aggregator:
        await aggregator.submit("batch", {"A": 2.0, "B": "hangs", "C": 6.0})
    assert lists.calls == [(5.0, "batch", [{"station_id": "A"}])]


# 工作流程


async def test_a_message_of_many_stations_opens_one_batch_that_expects_them(kafka: Kafka) -> None:
    """Kafka消息 (包含多个场站数据) → 创建批次 (batch_id, expected_stations)"""
    topic = create_topic(kafka.bootstrap, unique(TOPIC))
    (sent,) = produce(kafka.bootstrap, topic, [message(*numbered(10))])
    reports: list[trioagg.BatchReport] = []
    service = AsyncDataAnalysisService(
        module_name=unique("guide"), topics=[topic], bootstrap_servers=kafka.bootstrap, kafka=QUICK
    )

    async def report_handler(report: trioagg.BatchReport) -> None:
        await trio.lowlevel.checkpoint()
        reports.append(report)
        service.request_stop()

    with trio.fail_after(60):
        await service.run(callback=answer, report_handler=report_handler)
    (report,) = reports
    assert report.batch_id == f"{topic}_0_{sent.offset()}_{sent.timestamp()[1] // 1000}"
    assert list(report.stations) == numbered(10)
    assert report.expected == 10


async def test_every_station_is_processed_in_parallel(autojump_clock: MockClock) -> None:
    """各场站Worker并行处理"""
    report = await run_batch("batch", dict.fromkeys(numbered(1000), 3.0), follow)
    assert report.seconds == 3.0
    assert {outcome.started_seconds for outcome in report.stations.values()} == {0.0}


async def test_a_and_c_succeed_b_fails_and_the_list_is_a_and_c(autojump_clock: MockClock) -> None:
    """场站A → 成功输出result_A，场站B → 处理失败 (None)，场站C → 成功输出result_C

    批次上传: [result_A, result_C]  (过滤掉None)
    """

    async def process_station(station_id: str, seconds: float) -> dict[str, Any] | None:
        await trio.sleep(seconds)
        return None if station_id == "B" else {"result": station_id}

    lists = Lists()
    async with BatchResultAggregator(process_station, lists) as aggregator:
        report = await aggregator.run("batch", {"A": 1.0, "B": 2.0, "C": 3.0})
    assert lists.calls == [(3.0, "batch", [{"result": "A"}, {"result": "C"}])]
    assert report.stations["B"].verdict is Verdict.NO_OUTPUT


def test_the_batch_collector_collects_the_results() -> None:
    """BatchCollector 收集结果"""
    collector = BatchCollector("batch", ["A", "B", "C"])
    assert collector.add_result("A", {"result": "A"}) is Answer.ACCEPTED
    assert collector.add_result("B", None) is Answer.ACCEPTED
    assert collector.add_result("C", {"result": "C"}) is Answer.ACCEPTED
    assert collector.progress == (3, 3)
    assert collector.close("all").results == [{"result": "A"}, {"result": "C"}]


@pytest.mark.parametrize(
    ("slowest", "leaves", "completed_by"), [(1.5, 1.5, CompletedBy.ALL), (8.0, 5.0, CompletedBy.TIMEOUT)]
)
async def test_it_waits_for_all_or_for_the_timeout_of_five_seconds(
    slowest: float, leaves: float, completed_by: CompletedBy, autojump_clock: MockClock
) -> None:
    """等待全部完成 或 超时 (5秒)"""
    lists = Lists()
    async with BatchResultAggregator(follow, lists) as aggregator:
        report = await aggregator.run("batch", {"A": 1.0, "B": slowest})
    assert [seconds for seconds, _, _ in lists.calls] == [leaves]
    assert (report.seconds, report.completed_by) == (leaves, completed_by)


# 使用方法


async def test_the_basic_usage_runs_with_the_names_of_the_guide(
    kafka: Kafka, capsys: pytest.CaptureFixture[str]
) -> None:
    """定义批次上传回调 ... 定义单场站处理回调 ... 启动服务"""
    topic, module = create_topic(kafka.bootstrap, unique(TOPIC)), unique("your_module")
    produce(kafka.bootstrap, topic, [message("S001", "S002", "S003")])
    uploaded = trio.Event()

    async def batch_upload_handler(batch_id: str, results_list: list[dict[str, Any]]) -> None:
        await trio.lowlevel.checkpoint()
        print(f"批次 {batch_id} 上传 {len(results_list)} 个场站结果")
        uploaded.set()

    async def process_station(station_id: str, module_input: dict[str, Any]) -> dict[str, Any] | None:
        await trio.lowlevel.checkpoint()
        try:
            return {"station_id": station_id, "data": module_input}
        except Exception as e:
            print(f"场站 {station_id} 处理失败: {e}")
            return None

    service = AsyncDataAnalysisService(
        module_name=module,
        topics=[topic],
        bootstrap_servers=kafka.bootstrap,
        kafka=QUICK,
    )
    with trio.fail_after(60):
        async with service.start(callback=process_station, batch_upload_handler=batch_upload_handler):
            await uploaded.wait()
    said = capsys.readouterr().out
    assert said.startswith(f"批次 {topic}_0_0_")
    assert said.endswith(" 上传 3 个场站结果\n")
    assert committed(kafka.bootstrap, module, topic) == {0: 1}


async def test_the_old_way_to_start_says_how_it_is_done_now() -> None:
    """await service.start(callback=process_station, batch_upload_handler=batch_upload_handler)

    The one line of the guide that is written in another way here.
    """
    service = AsyncDataAnalysisService(module_name="your_module", topics=[TOPIC])
    with pytest.raises(TypeError, match=r"async with service\.start\(callback=\.\.\., batch_upload_handler=\.\.\.\)"):
        await service.start(callback=answer, batch_upload_handler=Lists())


async def test_the_batch_id_is_topic_partition_offset_timestamp(kafka: Kafka) -> None:
    """batch_id: 批次ID (格式: "topic_partition_offset_timestamp")"""
    topic = create_topic(kafka.bootstrap, unique(TOPIC), partitions=2)
    stamped = [(None, message("S001"), 1, None, 1_700_000_000_999), (None, message("S001"), 1, None, 1_700_000_001_000)]
    produce(kafka.bootstrap, topic, stamped)
    lists = Lists()
    async with serving(kafka, [topic], answer, lists):
        await lists.wait_for(2)
    assert set(lists.by_id) == {f"{topic}_1_0_1700000000", f"{topic}_1_1_1700000001"}


async def test_the_results_list_holds_the_results_of_all_stations_that_succeeded(kafka: Kafka) -> None:
    """results_list: 所有成功场站的输出结果列表

    [{"station_id": "S001", "data": {...}}, {"station_id": "S002", "data": {...}}, ...]
    """
    topic = create_topic(kafka.bootstrap, unique(TOPIC))
    (sent,) = produce(kafka.bootstrap, topic, [message("S001", "S002", outputPower=7.5)])
    lists = Lists()
    async with serving(kafka, [topic], answer, lists):
        await lists.wait_for(1)
    ((_, _, results),) = lists.calls
    assert isinstance(results, list)
    assert sorted(results, key=lambda result: result["station_id"]) == [
        {
            "station_id": station_id,
            "data": {
                "stationId": station_id,
                topic: [{"stationId": station_id, "sendTime": "2025-11-20 10:00:00", "outputPower": 7.5}],
                "_data_quality": {
                    "available_topics": [topic],
                    "missing_topics": [],
                    "total_topics": 1,
                    "availability_ratio": 1.0,
                    "last_update": sent.timestamp()[1] / 1000,
                },
            },
        }
        for station_id in ("S001", "S002")
    ]


async def test_a_dict_is_the_output_of_a_station(autojump_clock: MockClock) -> None:
    """Returns: dict: 场站输出结果（必须是字典）"""
    result = {"station_id": "S001", "data": {"power": 7.5}}

    async def process_station(station_id: str, module_input: object) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return result

    report = await run_batch("batch", {"S001": None}, process_station)
    assert report.results[0] is result
    assert report.stations["S001"].verdict is Verdict.SUCCEEDED


async def test_none_means_that_a_station_has_failed(autojump_clock: MockClock) -> None:
    """Returns: None: 处理失败；返回None表示失败"""
    report = await run_batch("batch", {"S001": "has none"}, follow)
    assert report.results == []
    assert (report.succeeded, report.stations["S001"].verdict) == (0, Verdict.NO_OUTPUT)


class ModelService:
    """The complete example of the guide; what is written in another way for Trio has a comment."""

    def __init__(self, kafka: Kafka, topic: str, output: str) -> None:
        self.bootstrap, self.output = kafka.bootstrap, output
        self.group = unique("model_inference")
        self.service = AsyncDataAnalysisService(
            module_name=self.group, topics=[topic], bootstrap_servers=kafka.bootstrap, kafka=QUICK
        )

    async def start(self, nursery: trio.Nursery) -> None:  # what runs in the background has a nursery to run in
        run = partial(self.service.run, callback=self.process_station, batch_upload_handler=self.upload_batch)
        await nursery.start(run)

    async def process_station(self, station_id: str, module_input: dict[str, Any]) -> dict[str, Any] | None:
        try:
            prediction = await self.run_model(station_id, module_input)
            return {
                "station_id": station_id,
                "timestamp": module_input.get("_data_quality", {}).get("last_update"),
                "prediction": prediction,
                "confidence": 0.95,
            }
        except Exception as e:
            print(f"场站 {station_id} 模型推理失败: {e}")
            return None  # noqa: ASYNC910 - the example is the guide's

    async def upload_batch(self, batch_id: str, results_list: list[dict[str, Any]]) -> None:
        await trio.lowlevel.checkpoint()
        if not results_list:
            print(f"批次 {batch_id} 没有成功的结果，跳过上传")
            return
        message = {"batch_id": batch_id, "count": len(results_list), "results": results_list}
        # Waits for the acknowledgement, and its errors get out: returning means that the list is up.
        await trio.to_thread.run_sync(produce, self.bootstrap, self.output, [json.dumps(message)])
        print(f"批次 {batch_id} 上传成功: {len(results_list)} 个场站")

    async def run_model(self, station_id: str, module_input: dict[str, Any]) -> dict[str, Any]:
        await trio.sleep(0.1)  # instead of asyncio.sleep
        if station_id == "S404":
            raise LookupError("no model")
        return {"predicted_value": 42}

    async def stop(self) -> None:
        await self.service.stop()


class CountingModelService(ModelService):
    """The example cannot be asked how far it is."""

    uploads: trio.Semaphore

    async def upload_batch(self, batch_id: str, results_list: list[dict[str, Any]]) -> None:
        await super().upload_batch(batch_id, results_list)
        self.uploads.release()


async def test_the_complete_example_runs(kafka: Kafka, capsys: pytest.CaptureFixture[str]) -> None:
    """完整示例: the lists are in the output topic, an empty one was skipped, and every offset is committed."""
    topic = create_topic(kafka.bootstrap, unique(TOPIC))
    output = create_topic(kafka.bootstrap, unique("MODEL_OUTPUT_TOPIC"))
    at = 1_700_000_000_500
    values = [message("S001", "S404", "S002"), message("S404"), message("S003")]
    produce(kafka.bootstrap, topic, [(None, value, 0, None, at) for value in values])
    model = CountingModelService(kafka, topic, output)
    model.uploads = trio.Semaphore(0)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await model.start(nursery)
            for _ in values:
                await model.uploads.acquire()
            await model.stop()

    sent = {value["batch_id"]: value for value in (json.loads(m.value()) for m in read_all(kafka.bootstrap, output))}
    assert {batch_id: value["count"] for batch_id, value in sent.items()} == {
        f"{topic}_0_0_1700000000": 2,
        f"{topic}_0_2_1700000000": 1,
    }
    assert sent[f"{topic}_0_2_1700000000"]["results"] == [
        {"station_id": "S003", "timestamp": at / 1000, "prediction": {"predicted_value": 42}, "confidence": 0.95}
    ]
    first = sent[f"{topic}_0_0_1700000000"]["results"]
    assert sorted(result["station_id"] for result in first) == ["S001", "S002"]
    assert Counter(capsys.readouterr().out.splitlines()) == Counter(
        [
            "场站 S404 模型推理失败: no model",
            "场站 S404 模型推理失败: no model",
            f"批次 {topic}_0_0_1700000000 上传成功: 2 个场站",
            f"批次 {topic}_0_1_1700000000 没有成功的结果，跳过上传",
            f"批次 {topic}_0_2_1700000000 上传成功: 1 个场站",
        ]
    )
    assert committed(kafka.bootstrap, model.group, topic) == end_offsets(kafka.bootstrap, topic) == {0: 3}


# 关键特性


async def test_the_failure_of_one_station_does_not_touch_the_others(autojump_clock: MockClock) -> None:
    """场站失败不阻塞：某个场站处理失败（返回None）不会影响其他场站"""
    lists = Lists()
    async with BatchResultAggregator(follow, lists) as aggregator:
        report = await aggregator.run("batch", {"A": "has none", "B": "raises", "C": 2.0, "D": 3.0})
    assert lists.calls == [(3.0, "batch", [{"station_id": "C"}, {"station_id": "D"}])]
    assert [report.stations[station].run_seconds for station in "ABCD"] == [1.0, 1.0, 2.0, 3.0]


async def test_after_five_seconds_the_list_goes_up_by_itself(autojump_clock: MockClock) -> None:
    """超时保护：5秒后自动触发上传，即使部分场站未完成: even where a station ignores its cancellation"""

    async def process_station(station_id: str, stubborn: bool) -> dict[str, Any]:
        with trio.CancelScope(shield=stubborn):
            await trio.sleep(30 if stubborn else 1)
        return {"station_id": station_id}

    lists = Lists()
    async with BatchResultAggregator(process_station, lists) as aggregator:
        await aggregator.submit("batch", {"A": False, "B": True})
        await lists.wait_for(1)
        assert trio.current_time() == lists.calls[0][0] == 5.0
    assert lists.calls == [(5.0, "batch", [{"station_id": "A"}])]


async def test_none_is_filtered_out_and_only_successes_go_up(autojump_clock: MockClock) -> None:
    """结果过滤：自动过滤掉None结果，只上传成功的场站"""
    stations: dict[str, Any] = dict.fromkeys(numbered(10), "has none") | dict.fromkeys(numbered(5), 1.0)
    lists = Lists()
    async with BatchResultAggregator(follow, lists) as aggregator:
        report = await aggregator.run("batch", stations)
    ((_, _, results),) = lists.calls
    assert sorted(result["station_id"] for result in results) == numbered(5)
    assert (report.succeeded, report.no_output, report.failed) == (5, 5, 0)


async def test_batches_are_created_by_themselves_by_partition_offset_and_timestamp(kafka: Kafka) -> None:
    """自动批次创建：根据消息的 `partition_offset_timestamp` 自动创建批次"""
    topic = create_topic(kafka.bootstrap, unique(TOPIC), partitions=2)
    at = 1_700_000_000_000
    records = [(None, message("S001"), number % 2, None, at + 1000 * number) for number in range(6)]
    sent = produce(kafka.bootstrap, topic, records)
    lists = Lists()
    async with serving(kafka, [topic], answer, lists):
        await lists.wait_for(6)
    assert sorted(lists.by_id) == sorted(
        f"{topic}_{m.partition()}_{m.offset()}_{m.timestamp()[1] // 1000}" for m in sent
    )
    assert f"{topic}_1_2_1700000005" in lists.by_id


async def test_the_ids_of_all_stations_in_the_message_are_recorded(kafka: Kafka) -> None:
    """期望场站追踪：记录消息中包含的所有场站ID"""
    topic = create_topic(kafka.bootstrap, unique(TOPIC))
    records = [{"stationId": "S001"}, {"station_id": 1002}, {"stationId": "S001"}, {"stationId": "S003"}]
    produce(kafka.bootstrap, topic, [json.dumps({"realTimeData": records, "weather": [{"stationId": "S004"}]})])
    reports: list[trioagg.BatchReport] = []
    service = AsyncDataAnalysisService(
        module_name=unique("guide"), topics=[topic], bootstrap_servers=kafka.bootstrap, kafka=QUICK
    )

    async def report_handler(report: trioagg.BatchReport) -> None:
        await trio.lowlevel.checkpoint()
        reports.append(report)
        service.request_stop()

    async def process_station(station_id: str, module_input: dict[str, Any]) -> dict[str, Any] | None:
        return await follow(station_id, 0 if station_id != "S003" else "has none")

    with trio.fail_after(60):
        await service.run(callback=process_station, report_handler=report_handler)
    (report,) = reports
    verdicts = {station_id: outcome.verdict for station_id, outcome in report.stations.items()}
    assert verdicts == {
        "S001": Verdict.SUCCEEDED,
        "1002": Verdict.SUCCEEDED,
        "S003": Verdict.NO_OUTPUT,
        "S004": Verdict.SUCCEEDED,
    }


async def test_progress_is_known_at_every_moment(autojump_clock: MockClock) -> None:
    """完成度监控：实时追踪已完成场站数 / 期望场站数"""
    async with BatchResultAggregator(follow, Lists()) as aggregator:
        batch = await aggregator.submit("batch", {"A": 1.0, "B": "raises", "C": 3.0, "D": "hangs"})
        seen = []
        for moment in (0.5, 1.5, 3.5, 5.5):
            await trio.sleep_until(moment)
            seen.append(batch.progress)
    assert seen == [(0, 4), (2, 4), (3, 4), (3, 4)]


async def test_blocking_stations_do_not_hold_up_each_other() -> None:
    """并行处理：各场站Worker并行处理，互不阻塞"""
    all_at_once = threading.Barrier(10, timeout=30)

    def process_station(station_id: str, module_input: object) -> dict[str, Any]:
        all_at_once.wait()
        return {"station_id": station_id}

    report = await run_batch("batch", dict.fromkeys(numbered(10)), process_station, batch_timeout=60)
    assert report.succeeded == 10


async def test_an_upload_does_not_block_the_consumption_of_messages(kafka: Kafka) -> None:
    """异步上传：上传操作不阻塞消息消费"""
    topic = create_topic(kafka.bootstrap, unique(TOPIC))
    produce(kafka.bootstrap, topic, [message(f"S{number:03d}") for number in range(6)])
    lists = Lists()
    uploading, later_one_processed, may_return = trio.Event(), trio.Event(), trio.Event()

    async def process_station(station_id: str, module_input: object) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        if station_id == "LATER":
            later_one_processed.set()
        return {"station_id": station_id}

    async def batch_upload_handler(batch_id: str, results_list: list[dict[str, Any]]) -> None:
        uploading.set()
        await may_return.wait()
        await lists(batch_id, results_list)

    async with serving(kafka, [topic], process_station, batch_upload_handler, upload_timeout=60):
        await uploading.wait()
        await trio.to_thread.run_sync(produce, kafka.bootstrap, topic, [message("LATER")])
        await later_one_processed.wait()
        assert lists.calls == []
        may_return.set()
        await lists.wait_for(7)


async def test_finished_batches_are_cleaned_up_so_that_memory_does_not_leak(autojump_clock: MockClock) -> None:
    """自动清理：定期清理过期批次，避免内存泄漏"""
    aggregator = BatchResultAggregator(follow, Lists(), cleanup_interval=60.0)
    async with aggregator:
        batches = [await aggregator.submit(f"batch-{number}", {"A": 1.0, "B": "hangs"}) for number in range(50)]
        alive = [weakref.ref(batch) for batch in batches]
        del batches
        await trio.sleep_until(6)
        gc.collect()
        assert [ref() for ref in alive if ref() is not None] == []  # of a closed batch only its id is left

        await trio.sleep_until(64)
        assert aggregator.statistics().remembered_ids == 50
        assert aggregator.add_result("batch-0", "B", None) is Answer.LATE
        await trio.sleep_until(65)
        assert aggregator.statistics().remembered_ids == 0
        assert aggregator.add_result("batch-0", "B", None) is Answer.UNKNOWN


# 配置参数


@pytest.mark.parametrize("parameter", [("batch_timeout", 5.0), ("cleanup_interval", 60.0)], ids=lambda pair: pair[0])
@pytest.mark.parametrize("named", [AsyncDataAnalysisService, BatchResultAggregator])
def test_the_parameters_have_the_defaults_of_the_guide(named: type, parameter: tuple[str, float]) -> None:
    """batch_timeout=5.0,  # 批次超时时间（秒）; cleanup_interval=60.0  # 清理间隔（秒）"""
    name, default = parameter
    assert inspect.signature(named).parameters[name].default == default


def test_the_service_takes_the_parameters_by_the_names_of_the_guide() -> None:
    """service = AsyncDataAnalysisService(module_name="your_module", topics=["YOUR_TOPIC"], batch_timeout=5.0, ...)"""
    AsyncDataAnalysisService(module_name="your_module", topics=["YOUR_TOPIC"], batch_timeout=5.0, cleanup_interval=60.0)


@pytest.mark.parametrize(
    ("settings", "model_seconds"),
    [
        *(({"batch_timeout": 2.0}, seconds) for seconds in (1 / 1024, 1 / 16, 3 / 32)),
        *(({}, seconds) for seconds in (1 / 8, 1 / 4, 1 / 2)),
        *(({"batch_timeout": 10.0}, seconds) for seconds in (9 / 16, 2.0, 9.0)),
    ],
)
async def test_the_recommended_timeouts_give_every_model_its_time(
    settings: dict[str, float], model_seconds: float, autojump_clock: MockClock
) -> None:
    """超时时间建议

    快速模型 (< 100ms): `batch_timeout=2.0`
    中等模型 (100-500ms): `batch_timeout=5.0` (默认)
    慢速模型 (> 500ms): `batch_timeout=10.0`
    """
    async with BatchResultAggregator(follow, Lists(), **settings) as aggregator:
        good = await aggregator.run("good", dict.fromkeys(numbered(100), model_seconds))
        bad = await aggregator.run("bad", {"S001": model_seconds, "S002": "hangs"})
    assert (good.completed_by, good.succeeded, good.seconds) == ("all", 100, model_seconds)
    assert (bad.completed_by, bad.succeeded, bad.seconds) == ("timeout", 1, settings.get("batch_timeout", 5.0))


# 日志输出


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [f"{record.levelname}: {record.getMessage()}" for record in caplog.records if record.name == "trioagg"]


@pytest.mark.parametrize("pushed", [False, True], ids=["callback", "push mode"])
async def test_the_log_is_the_log_of_the_guide(
    pushed: bool, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """日志输出: ten stations, eight of which answer, one of those with None."""

    async def process_station(station_id: str, number: int) -> dict[str, Any] | None:
        await trio.sleep(number / 4 if number <= 8 else math.inf)
        return {"station_id": station_id} if number != 8 else None

    caplog.set_level(logging.INFO, logger="trioagg")
    stations = {f"S{number:03d}": number for number in range(1, 11)}
    async with BatchResultAggregator(process_station, Lists(), log_language="zh") as aggregator:
        if pushed:
            batch = await aggregator.create_batch(batch_id=BATCH_ID, expected_stations=stations)
            for station_id, number in list(stations.items())[:8]:
                batch.add_result(station_id, {"station_id": station_id} if number != 8 else None)
        else:
            await aggregator.admit(BATCH_ID, stations)
    assert logged(caplog) == GUIDE_LOG


async def test_the_service_writes_the_log_of_the_guide(kafka: Kafka, caplog: pytest.LogCaptureFixture) -> None:
    """日志输出: with the batch id and the stations of a real message"""
    topic = create_topic(kafka.bootstrap, unique(TOPIC))
    produce(kafka.bootstrap, topic, [(None, message(*numbered(10)), 0, None, 1_700_000_000_000)])

    turns = [trio.Event() for _ in range(10)]
    turns[0].set()

    async def process_station(station_id: str, module_input: object) -> dict[str, Any] | None:
        number = int(station_id[1:])
        if number > 8:
            await trio.sleep_forever()
        await turns[number - 1].wait()
        turns[number].set()
        return {"station_id": station_id} if number != 8 else None

    caplog.set_level(logging.INFO, logger="trioagg")
    lists = Lists()
    async with serving(kafka, [topic], process_station, lists, log_language="zh", batch_timeout=1.5):
        await lists.wait_for(1)
    lines = [line for line in logged(caplog) if f"批次 {topic}_" in line]
    assert lines == [line.replace(BATCH_ID, f"{topic}_0_0_1700000000").replace("5秒", "1.5秒") for line in GUIDE_LOG]


# 注意事项


@pytest.mark.parametrize("wrong", [[{"station_id": "S001"}], "S001", 42, True, 0, "", [], object()], ids=repr)
async def test_the_returned_value_must_be_a_dict_or_none(wrong: object, autojump_clock: MockClock) -> None:
    """返回值必须是字典：`callback` 返回的结果必须是 `dict` 类型，或 `None` 表示失败"""

    async def process_station(station_id: str, value: object) -> Any:
        await trio.lowlevel.checkpoint()
        return value

    lists = Lists()
    async with BatchResultAggregator(process_station, lists) as aggregator:
        report = await aggregator.run("batch", {"wrong": wrong, "dict": {}, "None": None})
    assert lists.calls == [(0.0, "batch", [{}])]
    assert [report.stations[station].verdict for station in ("wrong", "dict", "None")] == [
        Verdict.FAILED,
        Verdict.SUCCEEDED,
        Verdict.NO_OUTPUT,
    ]
    assert f"returned {type(wrong).__name__}, not a dict" in str(report.stations["wrong"].error)


async def test_batch_ids_are_unique(kafka: Kafka) -> None:
    """批次ID唯一性：批次ID基于消息的 `partition_offset_timestamp`，确保唯一性"""
    topics = [create_topic(kafka.bootstrap, unique(TOPIC), partitions=2) for _ in range(2)]
    for topic in topics:
        # All within one second, so that only the place tells them apart.
        produce(kafka.bootstrap, topic, [(None, message("S001"), i % 2, None, 1_700_000_000_000) for i in range(6)])
    lists = Lists()
    async with serving(kafka, topics, answer, lists):
        await lists.wait_for(12)
    assert len(lists.by_id) == len(lists.calls) == 12


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_the_upload_handler_may_be_sync_or_async(kind: str) -> None:
    """上传回调异步：`batch_upload_handler` 可以是同步或异步函数"""
    got: list[tuple[str, list[dict[str, Any]]]] = []

    def sync_handler(batch_id: str, results_list: list[dict[str, Any]]) -> None:
        time.sleep(0.01)
        got.append((batch_id, results_list))

    async def async_handler(batch_id: str, results_list: list[dict[str, Any]]) -> None:
        await trio.sleep(0.01)
        got.append((batch_id, results_list))

    async with BatchResultAggregator(answer, sync_handler if kind == "sync" else async_handler) as aggregator:
        await aggregator.run("batch", {"S001": 1})
        assert got == [("batch", [{"station_id": "S001", "data": 1}])]


async def test_the_results_list_is_a_list_of_the_dicts_of_the_stations_that_succeeded(
    autojump_clock: MockClock,
) -> None:
    """结果列表格式：`results_list` 是所有成功场站的结果字典组成的列表"""
    returned: dict[str, Any] = {"A": {"x": 1}, "B": None, "C": {}, "D": ValueError("no"), "E": {"station_id": "E"}}

    async def process_station(station_id: str, value: object) -> object:
        await trio.sleep(ord(station_id) / 64)
        if isinstance(value, Exception):
            raise value
        return value

    lists = Lists()
    async with BatchResultAggregator(process_station, lists) as aggregator:
        await aggregator.run("batch", returned)
    ((_, _, results),) = lists.calls
    assert type(results) is list
    assert [id(result) for result in results] == [id(returned[station]) for station in "ACE"]


# 错误处理


async def test_the_example_of_error_handling_costs_the_others_nothing(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """错误处理: 数据不完整，跳过处理; 缺少必要字段; 处理异常"""

    def do_something(module_input: dict[str, Any]) -> dict[str, Any]:
        return {"ratio": 1 / module_input["power"]}

    async def process_station(station_id: str, module_input: dict[str, Any]) -> dict[str, Any] | None:
        await trio.lowlevel.checkpoint()
        try:
            data_quality = module_input.get("_data_quality", {})
            if not data_quality.get("available_topics"):
                print(f"场站 {station_id} 数据不完整，跳过处理")
                return None
            return do_something(module_input)
        except KeyError as e:
            print(f"场站 {station_id} 缺少必要字段: {e}")
            return None
        except Exception as e:
            print(f"场站 {station_id} 处理异常: {e}")
            return None

    good = {"_data_quality": {"available_topics": [TOPIC]}, "power": 4}
    lists = Lists()
    async with BatchResultAggregator(process_station, lists) as aggregator:
        report = await aggregator.run(
            "batch",
            {
                "S001": good,
                "S002": good | {"_data_quality": {"available_topics": []}},
                "S003": {"_data_quality": {"available_topics": [TOPIC]}},
                "S004": good | {"power": 0},
            },
        )
    assert lists.calls == [(0.0, "batch", [{"ratio": 0.25}])]
    assert (report.succeeded, report.no_output, report.failed) == (1, 3, 0)
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "场站 S002 数据不完整，跳过处理",
        "场站 S003 缺少必要字段: 'power'",
        "场站 S004 处理异常: division by zero",
    ]


# 监控指标


async def test_metrics_can_be_recorded_in_the_upload_handler(autojump_clock: MockClock) -> None:
    """可以在 `batch_upload_handler` 中记录以下指标: batch_id, success_count, timestamp"""
    reported: list[dict[str, Any]] = []

    async def upload_batch(batch_id: str, results_list: list[dict[str, Any]]) -> None:
        await trio.lowlevel.checkpoint()
        reported.append({"batch_id": batch_id, "success_count": len(results_list), "timestamp": time.time()})

    before = time.time()
    async with BatchResultAggregator(follow, upload_batch) as aggregator:
        await aggregator.run("batch", {"A": 1.0, "B": "raises", "C": 2.0})
    (metrics,) = reported
    assert before <= metrics.pop("timestamp") <= time.time()
    assert metrics == {"batch_id": "batch", "success_count": 2}


# 性能测试

TIMINGS: dict[str, tuple[dict[str, Any], float, int]] = {
    # 全部成功：所有场站在2秒内完成，批次在2秒后上传
    "all succeed within 2 s": ({f"S{number:03d}": 2.0 * number / 100 for number in range(1, 101)}, 2.0, 100),
    # 部分失败：80个成功，20个失败，批次在5秒后上传
    "80 succeed, 20 never answer": (
        dict.fromkeys(numbered(80), 2.0) | dict.fromkeys(numbered(20, first=81), "hangs"),
        5.0,
        80,
    ),
    # 极端情况：10个成功，90个超时，批次在5秒后上传（不阻塞）
    "10 succeed, 90 hang": (
        dict.fromkeys(numbered(10), 2.0) | dict.fromkeys(numbered(90, first=11), "hangs"),
        5.0,
        10,
    ),
    # Ours: a failure is an answer, so nobody waits for the deadline where the 20 say that they fail.
    "80 succeed, 20 raise or return None": (
        dict.fromkeys(numbered(80), 0.5)
        | dict.fromkeys(numbered(10, first=81), "raises")
        | dict.fromkeys(numbered(10, first=91), "has none"),
        1.0,
        80,
    ),
}
"""Case -> 100 stations, the second at which the list leaves, how long it is."""


@pytest.mark.parametrize("case", TIMINGS)
async def test_a_hundred_stations_take_exactly_the_time_of_the_guide(case: str, autojump_clock: MockClock) -> None:
    """典型性能指标（100个场站，5秒超时）"""
    stations, leaves, succeeded = TIMINGS[case]
    assert len(stations) == 100
    lists = Lists()
    async with BatchResultAggregator(follow, lists, batch_timeout=5.0) as aggregator:
        report = await aggregator.run("batch", stations)
    assert [(seconds, len(results)) for seconds, _, results in lists.calls] == [(leaves, succeeded)]
    assert report.seconds == leaves
    assert report.expected == 100


class Noise:
    """How late this machine wakes a thread that only sleeps, at worst: what no library can be blamed for.

    Twice in a row, since a list that leaves needs the processor twice: for the last answer, and for the handler.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="noise", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _listen(self) -> None:
        nap, before = 0.005, 0.0
        due = time.perf_counter() + nap
        while not self._over.wait(nap):
            now = time.perf_counter()
            self.seconds = max(self.seconds, before + now - due)
            before, due = now - due, now + nap


def waited_for_a_processor() -> float:
    """Seconds for which this thread was ready while others had the processors; 0 where the system does not say."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


async def test_a_hundred_stations_take_the_time_of_the_guide_on_the_real_clock() -> None:
    """典型性能指标（100个场站，5秒超时）: within 50 ms, beyond what the machine itself is late; all cases at once"""
    late: dict[str, float] = {}
    machine: dict[str, float] = {}

    async def measure(case: str) -> None:
        stations, leaves, succeeded = TIMINGS[case]
        left: list[tuple[float, float, int]] = []

        async def batch_upload_handler(batch_id: str, results_list: list[dict[str, Any]]) -> None:
            left.append((trio.current_time(), waited_for_a_processor(), len(results_list)))
            await trio.lowlevel.checkpoint()

        async with BatchResultAggregator(follow, batch_upload_handler, batch_timeout=5.0) as aggregator:
            batch = await aggregator.submit("batch", stations)
            due = batch.deadline - 5.0 + leaves
            await trio.sleep_until(due - 0.1)
            waited_before = waited_for_a_processor()
        ((moment, waited, count),) = left
        assert count == succeeded
        late[case], machine[case] = moment - due, waited - waited_before

    gc.collect()  # what other tests have left behind is not what is measured
    with Noise() as noise:
        async with trio.open_nursery() as nursery:
            for case in TIMINGS:
                nursery.start_soon(measure, case)
    assert late.keys() == TIMINGS.keys()
    for case in TIMINGS:
        assert 0 <= late[case] <= 0.050 + machine[case] + noise.seconds, (case, late, machine, noise.seconds)


# 常见问题


async def test_if_all_stations_have_failed_the_list_is_empty_and_can_be_skipped(autojump_clock: MockClock) -> None:
    """如果所有场站都失败了怎么办？ `results_list` 会是空列表，可以在 `batch_upload_handler` 中检查并跳过上传。"""
    lists = Lists()

    async def batch_upload_handler(batch_id: str, results_list: list[dict[str, Any]]) -> None:
        await lists(batch_id, results_list)
        if not results_list:
            return
        fail_the_upload()

    def fail_the_upload() -> NoReturn:
        raise AssertionError("the list is not empty")

    async with BatchResultAggregator(follow, batch_upload_handler) as aggregator:
        report = await aggregator.run("batch", {"A": "raises", "B": "has none", "C": "hangs"})
    assert lists.calls == [(5.0, "batch", [])]
    assert (report.succeeded, report.failed, report.no_output, report.timed_out) == (0, 1, 1, 1)


async def test_the_result_of_a_slow_station_is_not_uploaded_after_the_timeout(autojump_clock: MockClock) -> None:
    """批次超时后，慢速场站的结果还会上传吗？ 不会。超时后批次已关闭，后续结果会被忽略。"""
    ended: list[float] = []

    async def process_station(station_id: str, seconds: float) -> dict[str, Any]:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)
        ended.append(trio.current_time())
        return {"station_id": station_id}

    lists = Lists()
    async with BatchResultAggregator(process_station, lists) as aggregator:
        report = await aggregator.run("batch", {"fast": 1.0, "slow": 8.0})
        await trio.sleep_until(9)
        assert aggregator.statistics().late == 1
    assert ended == [1.0, 8.0]
    assert lists.calls == [(5.0, "batch", [{"station_id": "fast"}])]
    assert report.stations["slow"].verdict is Verdict.TIMED_OUT


@pytest.mark.parametrize("batch_timeout", [0.25, 5.0, 7.5])
async def test_the_timeout_is_a_parameter_of_the_aggregator(batch_timeout: float, autojump_clock: MockClock) -> None:
    """如何调整超时时间？ 修改 `BatchResultAggregator(batch_timeout=5.0)` 参数。"""
    async with BatchResultAggregator(batch_timeout=batch_timeout) as aggregator:
        batch = await aggregator.create_batch("batch", ["A", "B"])
        batch.add_result("A", {"station_id": "A"})
        report = await batch.wait_closed()
        assert trio.current_time() == report.seconds == batch_timeout
    assert (report.completed_by, report.results) == ("timeout", [{"station_id": "A"}])


async def test_the_order_of_results_is_that_in_which_the_stations_finish(autojump_clock: MockClock) -> None:
    """批次结果是否保证顺序？ 不保证。`results_list` 中的顺序取决于场站完成的先后顺序。"""
    lists = Lists()
    async with BatchResultAggregator(follow, lists) as aggregator:
        await aggregator.run("batch", {"A": 3.0, "B": 1.0, "C": 4.0, "D": 2.0})
    ((_, _, results),) = lists.calls
    assert [result["station_id"] for result in results] == ["B", "D", "A", "C"]
