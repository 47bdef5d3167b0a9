"""The service on real Kafka: from messages to lists, its beginning and its end."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import time
from contextlib import asynccontextmanager

import aiokafka
import pytest
import trio
from broker import Kafka, produce, read_all
from load import QUICK, Load, double, message

import trioagg
from trioagg import AsyncDataAnalysisService, TrioaggError


async def in_thread(function, *args):
    return await trio.to_thread.run_sync(function, *args)


async def until(condition, seconds: float = 20.0) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


@asynccontextmanager
async def running(service, *args, **kwargs):
    with trio.fail_after(60):
        async with service.start(*args, **kwargs) as running_service:
            yield running_service


async def test_every_message_becomes_one_list_and_is_committed(kafka: Kafka) -> None:
    load = await in_thread(Load, kafka.bootstrap, 100)
    service = load.service()
    async with running(service, double):
        await until(lambda: service.statistics().uploaded == 100)
    lists = await in_thread(load.lists)
    assert len(lists) == 100
    assert set(lists.values()) == {1}
    assert await in_thread(load.committed) == await in_thread(load.ends)


async def test_a_result_message_has_the_list_its_key_and_the_counts(kafka: Kafka) -> None:
    load = await in_thread(lambda: Load(kafka.bootstrap, partitions=1))
    await in_thread(produce, kafka.bootstrap, load.topic, [(None, message(7), 0, None, 1_700_000_000_123)])

    async def callback(station_id, module_input):
        if station_id == "S001":
            return None
        return {"station_id": station_id, "got": module_input[load.topic][0]["number"]}

    service = load.service()
    async with running(service, callback):
        await until(lambda: service.statistics().uploaded == 1)
    (result,) = await in_thread(read_all, kafka.bootstrap, load.results)
    batch_id = f"{load.topic}_0_0_1700000000"
    assert result.key().decode() == batch_id
    value = json.loads(result.value())
    assert value["batch_id"] == batch_id
    assert value["count"] == 2
    assert sorted(r["station_id"] for r in value["results"]) == ["S000", "S002"]
    headers = dict(result.headers())
    assert headers["trioagg-completed-by"] == b"all"
    assert headers["trioagg-expected"] == b"3"
    assert headers["trioagg-succeeded"] == b"2"
    assert headers["trioagg-no-output"] == b"1"


async def test_a_handler_gets_the_lists_of_every_message(kafka: Kafka) -> None:
    load = await in_thread(Load, kafka.bootstrap, 20)
    got = {}

    def handler(batch_id, results_list):
        got[batch_id] = results_list

    async with running(load.service(result_topic=None), double, handler):
        await until(lambda: len(got) == 20)
    assert all(len(results) == 3 for results in got.values())
    assert await in_thread(load.committed) == await in_thread(load.ends)


async def test_what_cannot_be_read_is_passed_over_and_its_offset_moves_on(kafka: Kafka, caplog) -> None:
    load = await in_thread(lambda: Load(kafka.bootstrap, partitions=1))
    values = [b"not json", b"[" * 100_000, b"42", b'{"realTimeData": []}', None, b'[{"stationId": "A"}, {"x": 1}]']
    await in_thread(produce, kafka.bootstrap, load.topic, [(None, value, 0) for value in values])
    service = load.service()
    async with running(service, double_any := _echo):
        await until(lambda: service.statistics().messages == 6 and service.statistics().uploaded == 1)
    assert double_any is _echo
    statistics = service.statistics()
    assert (statistics.poison, statistics.empty, statistics.rejected_elements) == (3, 2, 1)
    assert await in_thread(load.committed) == {0: 6}
    assert "not JSON" in caplog.text
    assert "$[1]: no station id" in caplog.text


async def _echo(station_id, module_input):
    return {"station_id": station_id}


async def test_a_parser_of_the_users_own_replaces_the_shapes(kafka: Kafka) -> None:
    load = await in_thread(lambda: Load(kafka.bootstrap, partitions=1))
    await in_thread(produce, kafka.bootstrap, load.topic, [b"A=1;B=2", b"broken", b"C=3"])

    def parse(topic, value):
        assert topic == load.topic
        return dict(part.split("=") for part in value.decode().split(";"))

    seen = {}

    async def callback(station_id, value):
        seen[station_id] = value
        return {}

    service = load.service(message_parser=parse)
    async with running(service, callback):
        await until(lambda: service.statistics().messages == 3 and service.statistics().uploaded == 2)
    assert seen == {"A": "1", "B": "2", "C": "3"}
    assert service.statistics().poison == 1


async def test_the_batch_that_is_worked_on_can_be_asked_for(kafka: Kafka) -> None:
    load = await in_thread(lambda: Load(kafka.bootstrap, partitions=1))
    record = ("the key", message(0, 1), 0, [("trace", b"1")], 1_700_000_000_500)
    await in_thread(produce, kafka.bootstrap, load.topic, [record])
    seen = []

    async def callback(station_id, module_input):
        seen.append(trioagg.current_batch())
        return {}

    async def handler(batch_id, results_list):
        seen.append(trioagg.current_batch())

    async with running(load.service(), callback, handler):
        await until(lambda: len(seen) == 2)
    assert seen[0] == seen[1]
    batch = seen[0]
    assert (batch.topic, batch.partition, batch.offset) == (load.topic, 0, 0)
    assert batch.timestamp == 1_700_000_000.5
    assert batch.key == b"the key"
    assert batch.headers == (("trace", b"1"),)


async def test_leaving_the_block_in_the_middle_of_the_load_loses_and_repeats_nothing(kafka: Kafka) -> None:
    load = await in_thread(Load, kafka.bootstrap, 600)

    async def callback(station_id, module_input):
        await trio.sleep(0.02)
        return {"station_id": station_id}

    for part in (50, 200, 600):
        service = load.service()
        before = sum((await in_thread(load.lists)).values())
        async with running(service, callback):
            await until(lambda service=service, enough=part - before: service.statistics().uploaded >= enough)
        statistics = service.statistics()
        assert statistics.opened == statistics.uploaded
        assert sum(v or 0 for v in (await in_thread(load.committed)).values()) == sum(
            (await in_thread(load.lists)).values()
        )
    lists = await in_thread(load.lists)
    assert len(lists) == 600
    assert set(lists.values()) == {1}


async def test_stop_returns_when_everything_is_up_and_committed(kafka: Kafka) -> None:
    load = await in_thread(Load, kafka.bootstrap, 300)
    service = load.service()

    async def callback(station_id, module_input):
        await trio.sleep(0.05)
        return {}

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(service.run, callback)
            await until(lambda: service.statistics().uploaded >= 50)
            await service.stop()
            statistics = service.statistics()
            assert statistics.open_batches == statistics.waiting_uploads == statistics.running_uploads == 0
            up = sum((await in_thread(load.lists)).values())
            assert up == statistics.uploaded
            assert sum(v or 0 for v in (await in_thread(load.committed)).values()) == up


@pytest.mark.parametrize("where", ["callback", "handler", "thread"])
async def test_a_callback_or_handler_may_request_the_stop(kafka: Kafka, where: str) -> None:
    load = await in_thread(Load, kafka.bootstrap, 30)
    service = load.service()

    async def callback(station_id, module_input):
        if where == "callback":
            service.request_stop()
        return {}

    async def handler(batch_id, results_list):
        if where == "handler":
            service.request_stop()

    def threaded(station_id, module_input):
        service.request_stop()
        return {}

    with trio.fail_after(60):
        await service.run(threaded if where == "thread" else callback, handler)
    assert service.statistics().uploaded >= 1
    assert sum(v or 0 for v in (await in_thread(load.committed)).values()) == service.statistics().uploaded


async def test_stop_inside_a_callback_says_what_to_call_instead(kafka: Kafka) -> None:
    load = await in_thread(Load, kafka.bootstrap, 1)
    service = load.service()
    reports = []

    async def callback(station_id, module_input):
        await service.stop()

    async with running(service, callback, report_handler=reports.append):
        await until(lambda: reports)
    assert isinstance(reports[0].first_error, RuntimeError)
    assert "request_stop()" in str(reports[0].first_error)


async def test_cancelling_around_the_service_commits_nothing_and_loses_nothing(kafka: Kafka) -> None:
    load = await in_thread(Load, kafka.bootstrap, 100)
    got = []

    async def hang(station_id, module_input):
        await trio.sleep_forever()

    async def handler(batch_id, results_list):
        got.append(batch_id)

    service = load.service(batch_timeout=30.0)
    with trio.move_on_after(20) as scope:
        async with service.start(hang, handler):
            await until(lambda: service.statistics().open_batches == 100)
            scope.cancel()
    assert got == []
    assert set((await in_thread(load.committed)).values()) <= {None, 0}
    second = load.service()
    async with running(second, double):
        await until(lambda: second.statistics().uploaded == 100)
    assert set((await in_thread(load.lists)).values()) == {1}


async def test_an_error_in_the_block_leaves_as_itself_and_commits_nothing(kafka: Kafka) -> None:
    load = await in_thread(Load, kafka.bootstrap, 10)
    service = load.service(batch_timeout=30.0)

    async def hang(station_id, module_input):
        await trio.sleep_forever()

    with pytest.raises(LookupError, match="mine"):
        async with running(service, hang):
            await until(lambda: service.statistics().open_batches == 10)
            raise LookupError("mine")
    assert set((await in_thread(load.committed)).values()) <= {None, 0}


async def test_a_group_that_the_block_raises_itself_stays_one(kafka: Kafka) -> None:
    load = await in_thread(Load, kafka.bootstrap)
    mine = ExceptionGroup("mine", [LookupError()])
    with pytest.RaisesGroup(LookupError) as caught:
        async with load.service().start(double):
            raise mine
    assert caught.value.message == "mine"


async def test_an_upload_that_is_given_up_ends_the_service_and_is_not_committed_past(kafka: Kafka) -> None:
    load = await in_thread(lambda: Load(kafka.bootstrap, 20, partitions=1))

    async def handler(batch_id, results_list):
        if batch_id.startswith(f"{load.topic}_0_5_"):
            raise OSError("disk full")

    with pytest.raises(trioagg.UploadFailed) as failure:
        async with running(load.service(result_topic=None, upload_attempts=2), double, handler):
            await trio.sleep_forever()
    assert isinstance(failure.value.__cause__, OSError)
    assert (await in_thread(load.committed))[0] in (None, 0, 1, 2, 3, 4, 5)


async def test_an_upload_that_is_skipped_is_committed_past(kafka: Kafka, caplog) -> None:
    load = await in_thread(lambda: Load(kafka.bootstrap, 5, partitions=1))

    async def handler(batch_id, results_list):
        if batch_id.startswith(f"{load.topic}_0_2_"):
            raise OSError("disk full")

    service = load.service(result_topic=None, upload_attempts=1, on_upload_failure="skip")
    async with running(service, double, handler):
        await until(lambda: service.statistics().uploaded == 4 and service.statistics().skipped_uploads == 1)
    assert await in_thread(load.committed) == {0: 5}
    assert "disk full" in caplog.text


async def test_lists_of_a_partition_go_up_in_the_order_of_its_messages_when_asked_for(kafka: Kafka) -> None:
    load = await in_thread(Load, kafka.bootstrap, 40)
    got: dict[int, list[int]] = {0: [], 1: []}

    async def callback(station_id, module_input):
        await trio.sleep(0.5 if module_input[load.topic][0]["number"] % 10 < 2 else 0)
        return {}

    async def handler(batch_id, results_list):
        batch = trioagg.current_batch()
        got[batch.partition].append(batch.offset)

    async with running(load.service(upload_order="partition"), callback, handler):
        await until(lambda: len(got[0]) + len(got[1]) == 40)
    assert got == {0: list(range(20)), 1: list(range(20))}


async def test_a_callback_that_needs_asyncio_runs_in_the_services_loop(kafka: Kafka) -> None:
    load = await in_thread(Load, kafka.bootstrap, 3)

    import asyncio

    @trioagg.asyncio_callback
    async def callback(station_id, module_input):
        await asyncio.sleep(0.01)
        return {"station_id": station_id}

    service = load.service()
    async with running(service, callback):
        await until(lambda: service.statistics().uploaded == 3)
    assert service.statistics().stations["succeeded"] == 9


async def test_asyncio_without_a_bridge_is_explained_once(kafka: Kafka, caplog) -> None:
    import asyncio

    load = await in_thread(Load, kafka.bootstrap, 3)

    async def callback(station_id, module_input):
        await asyncio.sleep(0.01)

    service = load.service()
    async with running(service, callback):
        await until(lambda: service.statistics().uploaded == 3)
    assert service.statistics().stations["failed"] == 9
    told = [r for r in caplog.records if "trio.sleep" in r.getMessage() and "asyncio_callback" in r.getMessage()]
    assert len(told) == 1


async def test_a_handler_may_send_with_a_producer_of_its_own_in_asyncio(kafka: Kafka) -> None:
    load = await in_thread(Load, kafka.bootstrap, 5)

    @trioagg.asyncio_callback
    async def handler(batch_id, results_list):
        producer = aiokafka.AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
        await producer.start()
        try:
            await producer.send_and_wait(load.results, json.dumps(results_list).encode(), key=batch_id.encode())
        finally:
            await producer.stop()

    service = load.service(result_topic=None)
    async with running(service, double, handler):
        await until(lambda: service.statistics().uploaded == 5)
    assert len(await in_thread(load.lists)) == 5


async def test_start_errors_are_one_sentence_that_says_what_to_do(kafka: Kafka) -> None:
    with trio.fail_after(20), pytest.raises(trioagg.TopicUnavailable, match="no-such-topic"):
        service = AsyncDataAnalysisService("m", ["no-such-topic"], bootstrap_servers=kafka.bootstrap, kafka=QUICK)
        async with service.start(double, lambda *a: None):
            pytest.fail("it must not start")
    began = time.monotonic()
    with pytest.raises(trioagg.ConnectFailed, match=r"127\.0\.0\.1:1"):
        service = AsyncDataAnalysisService("m", ["t"], bootstrap_servers="127.0.0.1:1", connect_timeout=3.0)
        await service.run(double, lambda *a: None)
    assert time.monotonic() - began < 8


async def test_the_old_form_of_start_shows_the_new_one() -> None:
    service = AsyncDataAnalysisService(module_name="m", topics=["t"])
    with pytest.raises(TypeError, match=r"async with service\.start"):
        await service.start(callback=double, batch_upload_handler=print)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"topics": "one"}, "topics"),
        ({"topics": []}, "topics"),
        ({"topics": ["stationId"]}, "stationId"),
        ({"module_name": ""}, "module_name"),
        ({"batch_timeout": -1}, "batch_timeout"),
        ({"upload_order": "both"}, "upload_order"),
        ({"on_upload_failure": "retry"}, "on_upload_failure"),
        ({"log_language": "de"}, "log_language"),
        ({"max_batches_in_flight": 0}, "max_batches_in_flight"),
        ({"connect_timeout": 0}, "connect_timeout"),
    ],
)
def test_a_wrong_setting_is_named_where_it_is_typed(arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AsyncDataAnalysisService(**{"module_name": "m", "topics": ["t"], **arguments})


async def test_somebody_must_get_the_lists() -> None:
    with pytest.raises(ValueError, match="batch_upload_handler"):
        AsyncDataAnalysisService("m", ["t"]).start(double)


async def test_stopping_what_does_not_run_returns_at_once() -> None:
    await AsyncDataAnalysisService("m", ["t"]).stop()


def test_statistics_of_a_service_that_has_not_started_are_zeros() -> None:
    statistics = AsyncDataAnalysisService("m", ["t"]).statistics()
    assert statistics.completion_rate == statistics.messages == 0
    assert statistics.kafka is None


def test_every_error_has_one_base() -> None:
    for error in (trioagg.UploadFailed, trioagg.ConnectFailed, trioagg.TopicUnavailable, trioagg.Closed):
        assert issubclass(error, TrioaggError)
    assert logging.getLogger("trioagg").handlers == []


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_an_observer_hears_the_whole_way_of_a_message(kafka: Kafka, delivery: str) -> None:
    heard: dict[str, list[tuple[object, ...]]] = {}

    class Ears(trioagg.Observer):
        def fetched(self, topic: str, partition: int, first: int, last: int) -> None:
            heard.setdefault(f"{partition}", []).append(("fetched", first, last))

        def reading(self, topic: str, partition: int, offset: int) -> None:
            heard[f"{partition}"].append(("reading", offset))

        def opened(self, batch: trioagg.BatchContext, expected: int) -> None:
            heard[f"{batch.partition}"].append(("opened", batch.offset, dict(batch.headers)["trace"], expected))
            self.partition = f"{batch.partition}"

        def started(self, batch_id: str) -> None:
            heard[self.partition].append(("started",))

        def closed(self, report: trioagg.BatchReport) -> None:
            heard[self.partition].append(("closed", report.completed_by))

        def uploading(self, report: trioagg.BatchReport, attempt: int) -> None:
            heard[self.partition].append(("uploading", attempt))

        def uploaded(self, report: trioagg.BatchReport) -> None:
            heard[self.partition].append(("uploaded",))

        def committed(self, topic: str, partition: int, offset: int) -> None:
            heard[f"{partition}"].append(("committed", offset))

    load = await in_thread(lambda: Load(kafka.bootstrap, partitions=1))
    await in_thread(produce, kafka.bootstrap, load.topic, [(None, message(0), 0, [("trace", b"t1")], None)])
    service = load.service(delivery=delivery, observers=[Ears()])
    async with running(service, double):
        await until(lambda: service.statistics().uploaded == 1)
    # In a transaction a list is acknowledged together with its offset.
    ends = [("committed", 1), ("uploaded",)]
    assert heard.pop("0") == [
        ("fetched", 0, 0),
        ("reading", 0),
        ("opened", 0, b"t1", 3),
        ("started",),
        ("closed", "all"),
        ("uploading", 1),
        *(ends if delivery == "exactly_once" else reversed(ends)),
    ]
    assert heard == {}


def test_what_is_wrong_is_said_where_it_is_typed() -> None:
    for settings, sentence in (
        ({"kafka": {"security_protocol": "SSL"}}, "use KafkaSettings"),
        ({"batch_timeout": "5"}, "batch_timeout='5': it must be 0 or more seconds"),
        ({"max_uploads": "4"}, "max_uploads='4': it must be 1 or more"),
        ({"commit_interval": "1"}, "commit_interval='1': it must be more than 0 seconds"),
        ({"dead_letter_limit": 5}, "use DeadLetterLimit"),
        ({"input_limits": None}, "use InputLimits"),
        ({"message_parser": "x"}, "cannot be called"),
        ({"message_parser": trio.sleep}, "message_parser= is called as message_parser(topic, value)"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            AsyncDataAnalysisService("module", ["topic"], **settings)
    with pytest.raises(ValueError, match=re.escape("callback= is called as callback(station_id, module_input)")):
        AsyncDataAnalysisService("module", ["topic"]).start(lambda given: None, lambda batch_id, results: None)


WITH_ASYNCIO = """
import asyncio
import trioagg

async def the_service():
    async with trioagg.AsyncDataAnalysisService("module", ["topic"]).start(lambda s, m: None, lambda b, r: None):
        pass

async def one_batch():
    await trioagg.run_batch("b", {"A": 1}, lambda s, v: None)

async def many_batches():
    async with trioagg.BatchResultAggregator():
        pass

for main in (the_service, one_batch, many_batches):
    try:
        asyncio.run(main())
    except RuntimeError as error:
        print(error)
"""


def test_whoever_comes_with_asyncio_is_told_to_run_trio() -> None:
    # In a program of its own: trio-asyncio, which other tests load, changes what asyncio.run() does.
    child = subprocess.run([sys.executable, "-c", WITH_ASYNCIO], capture_output=True, text=True, check=True, timeout=60)
    assert child.stdout.count("trioagg needs `trio.run(main)`, not `asyncio.run(main())`\n") == 3
    assert child.stderr == ""
