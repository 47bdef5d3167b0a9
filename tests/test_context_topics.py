"""What other topics say about a station, in its module_input; and another module's lists as such a topic."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import aiokafka
import aiokafka.errors
import pytest
import trio
from broker import Kafka, create_topic, delete_topic, produce, read_all, unique
from confluent_kafka.admin import AdminClient, NewPartitions
from hypothesis import given
from hypothesis import strategies as st
from load import QUICK, Load, until

from trioagg import AsyncDataAnalysisService, InputLimits, Latest, TopicUnavailable, Window, _kafka_context
from trioagg._join import Context
from trioagg._stations import ModuleInputs, module_input

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from broker import Broker

NOT_JSON = "not JSON: Input data was truncated"


def context(required: Sequence[str] = (), **kinds: Latest) -> Context:
    return Context(kinds, required, InputLimits())


def say(where: Context, topic: str, *messages: object, key: bytes | None = None, at: int | None = 1000) -> None:
    for message in messages:
        where.update(topic, key, json.dumps(message).encode(), at)


def joined(where: Context, station_id: str) -> dict[str, Any]:
    return where.join(station_id, module_input(station_id, "in", [], 500))


# What is known.


def test_the_latest_record_of_a_station_is_in_its_input() -> None:
    known = context(param=Latest())
    say(known, "param", {"stationId": "S1", "limit": 1}, {"stationId": "S1", "limit": 2}, {"stationId": "S2"})
    assert joined(known, "S1") == {
        "stationId": "S1",
        "in": [],
        "param": [{"stationId": "S1", "limit": 2}],
        "_data_quality": {
            "available_topics": ["in", "param"],
            "missing_topics": [],
            "total_topics": 2,
            "availability_ratio": 1.0,
            "last_update": 1.0,
        },
    }


def test_a_topic_that_says_nothing_of_a_station_is_missing() -> None:
    known = context(param=Latest(), weather=Latest())
    say(known, "param", {"stationId": "S1"})
    quality = joined(known, "S2")["_data_quality"]
    assert quality["missing_topics"] == ["param", "weather"]
    assert quality["availability_ratio"] == pytest.approx(1 / 3)
    assert quality["last_update"] == 0.5
    assert "param" not in joined(known, "S2")


def test_what_is_about_no_station_holds_for_all_that_have_nothing_of_their_own() -> None:
    known = context(weather=Latest())
    say(known, "weather", {"temperature": 10}, {"temperature": 12})
    assert joined(known, "S1")["weather"] == [{"temperature": 12}]
    say(known, "weather", {"stationId": "S1", "temperature": 30})
    assert joined(known, "S1")["weather"] == [{"stationId": "S1", "temperature": 30}]
    assert joined(known, "S2")["weather"] == [{"temperature": 12}]


def test_a_window_holds_the_last_records_oldest_first() -> None:
    known = context(weather=Window(3))
    say(known, "weather", *({"stationId": "S1", "hour": hour} for hour in range(5)))
    assert [record["hour"] for record in joined(known, "S1")["weather"]] == [2, 3, 4]


def test_another_modules_list_is_understood() -> None:
    known = context(forecast=Latest())
    results = [{"station_id": "S1", "load": 1}, {"station_id": "S2", "load": 2}]
    say(known, "forecast", {"batch_id": "b", "count": 2, "results": results})
    assert joined(known, "S2")["forecast"] == [results[1]]


def test_a_tombstone_deletes() -> None:
    known = context(param=Latest())
    say(known, "param", {"stationId": "S1"}, key=b"anything")
    say(known, "param", {"calendar": "x"}, key=b"calendar")
    known.update("param", b"S1", None, 2000)
    assert joined(known, "S1")["param"] == [{"stationId": "S1"}]
    known.update("param", b"anything", None, 2000)
    assert joined(known, "S1")["param"] == [{"calendar": "x"}]
    known.update("param", b"calendar", None, 2000)
    known.update("param", None, None, 2000)
    assert "param" not in joined(known, "S1")


def test_what_a_callback_does_to_a_record_is_its_own() -> None:
    known = context(param=Latest())
    said = {"stationId": "S1", "prices": [1, {"night": 2}]}
    say(known, "param", said)
    taken = joined(known, "S1")["param"][0]
    taken["stationId"] = "changed"
    taken["prices"][1]["night"] = 99
    assert joined(known, "S1")["param"] == [said]


def test_poison_is_passed_over_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    known = context(param=Latest())
    known.update("param", None, b"{", 1000)
    assert known.poison == 1
    assert "a message of context topic param is poison and is passed over: not JSON" in caplog.text


def test_elements_without_a_station_are_counted_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    known = context(param=Latest())
    for _ in range(3):
        known.update("param", None, b'[{"stationId": "A", "limit": 1}, {"limit": 2}]', None)
    assert known.rejected == 3
    assert joined(known, "A")["param"] == [{"stationId": "A", "limit": 1}]
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line == "context topic param: 1 element(s) have no station id: $[1]: no station id"


def test_a_topic_full_of_poison_does_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    now = 1000.0
    kinds = {"param": Latest(), "weather": Latest()}
    known = Context(kinds, (), InputLimits(), clock=lambda: now)

    def lines() -> list[str]:
        said = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return said

    for _ in range(100_000):
        known.update("param", None, b"{", 1000)
    assert known.poison == known.messages == 100_000
    assert len(lines()) == 3
    known.update("weather", None, b"{", 1000)  # this one's first
    assert lines() == ["a message of context topic weather is poison and is passed over: " + NOT_JSON]
    known.tell_poison()
    assert lines() == []
    now += 60
    known.tell_poison()
    gathered = "context topic param: {} more messages are poison and are passed over, {} in all; the last one: {}"
    assert lines() == [gathered.format(99_997, 100_000, NOT_JSON)]
    now += 59
    known.update("param", None, b"{", 1000)
    known.tell_poison()
    assert lines() == []
    now += 1
    known.update("param", None, b"7", 1000)
    assert lines() == [gathered.format(2, 100_002, "an integer, neither an object nor a list")]
    known.update("param", None, b"{", 1000)
    known.tell_poison(at_once=True)
    known.tell_poison(at_once=True)
    assert lines() == [gathered.format(1, 100_003, NOT_JSON)]
    now += 3600  # and one that comes alone is told when it comes
    known.update("param", None, b"{", 1000)
    assert lines() == [gathered.format(1, 100_004, NOT_JSON)]
    assert known.poison == 100_005


def test_the_number_of_stations_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    known = context(param=Latest(max_stations=3))
    say(known, "param", *({"stationId": f"S{number}"} for number in (1, 2, 3, 1, 4, 5)))
    assert [station for station in ("S1", "S2", "S3", "S4", "S5") if "param" in joined(known, station)] == [
        *("S1", "S4", "S5")
    ]
    assert caplog.text.count("context topic param holds more than max_stations=3") == 1


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 200), st.booleans()), max_size=60),
    st.integers(1, 2000),
    st.integers(1, 5),
)
def test_the_bytes_that_are_held_are_bounded_and_counted(
    messages: list[tuple[int, int, bool]], most: int, count: int
) -> None:
    known = context(param=Window(count, max_bytes=most))
    (topic,) = known._topics.values()
    for station, size, deletes in messages:
        if deletes:
            known.update("param", b"key %d" % station, None, 1)
        elif station == 0:
            say(known, "param", {"x": "x" * size}, key=b"key 0")
        else:
            # A key is that of several stations.
            say(known, "param", {"stationId": f"S{station}", "x": "x" * size}, key=b"key %d" % (station % 7))
        held = sum(kept.size for records in topic.stations.values() for kept in records)
        assert topic.bytes == held
        assert held <= most or sum(map(len, topic.stations.values())) == 1
        assert topic.bytes_of_everybody == sum(kept.size for kept in topic.everybody)
        assert topic.bytes_of_everybody <= most or len(topic.everybody) == 1
        assert all(0 < len(records) <= count for records in topic.stations.values())
        by_key = {
            key: {name for name, records in topic.stations.items() if any(kept.key == key for kept in records)}
            for key in topic._by_key
        }
        assert topic._by_key == by_key
        assert all(by_key.values())


def test_stations_that_lack_what_is_required_are_named_with_the_reason() -> None:
    known = context(["param", "weather"], param=Latest(), weather=Latest(), other=Latest())
    say(known, "param", {"stationId": "S1"}, {"stationId": "S2"})
    say(known, "weather", {"stationId": "S1"})
    assert known.lacking(["S1", "S2", "S3"]) == {
        "S2": "nothing is known of it from weather",
        "S3": "nothing is known of it from param, weather",
    }


def test_inputs_are_joined_when_they_are_asked_for() -> None:
    known = context(param=Latest())
    inputs = ModuleInputs("in", {"S1": [], "S2": []}, None, known.join)
    say(known, "param", {"stationId": "S1", "limit": 1})
    assert dict(inputs.items())["S1"]["param"] == inputs["S1"]["param"] == [{"stationId": "S1", "limit": 1}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_topics": ["x"]}, "use a dict, like"),
        ({"context_topics": {"": Latest()}}, "is no name of a topic"),
        ({"context_topics": {"out": Latest()}, "result_topic": "out"}, "this service writes there itself"),
        ({"context_topics": {"x": 24}}, r"use Latest\(\) or Window\(24\)"),
        ({"context_topics": {"in": Latest()}}, "the module_input has these keys already"),
        ({"context_topics": {"_data_quality": Latest()}}, "the module_input has these keys already"),
        ({"require_topics": ["x"]}, "they are none of the context_topics"),
        ({"require_topics": "x", "context_topics": {"x": Latest()}}, "several names, not one string"),
        ({"context_topics": {"x": Latest()}, "message_parser": print}, "which a message_parser= replaces"),
    ],
)
def test_a_wrong_setting_is_found_where_it_is_typed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AsyncDataAnalysisService("service", ["in"], **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(0), "a window holds 1 or more records"),
        (lambda: Latest(since_seconds=0), "more than 0 seconds, or None"),
        (lambda: Latest(since_seconds=float("inf")), "more than 0 seconds, or None"),
        (lambda: Window(2, max_bytes=0), "max_bytes=0: it must be 1 or more"),
        (lambda: Latest(max_stations=0), "max_stations=0: it must be 1 or more"),
    ],
)
def test_a_kind_that_keeps_nothing_is_said_so(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# On Kafka.


def parameters(stations: range, limit: int) -> list[tuple[bytes | None, bytes, int]]:
    return [
        (f"S{n:05d}".encode(), json.dumps({"stationId": f"S{n:05d}", "limit": limit}).encode(), n % 2) for n in stations
    ]


async def test_ten_thousand_stations_are_known_before_the_first_batch_and_followed_from_then_on(
    kafka: Kafka, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "trioagg")
    param = create_topic(kafka.bootstrap, unique("param"), 2, {"cleanup.policy": "compact"})
    produce(kafka.bootstrap, param, parameters(range(10_000), 1))
    load = Load(kafka.bootstrap, 1, stations=0)
    message = json.dumps([{"stationId": f"S{n:05d}"} for n in (0, 5000, 9999, 77777)]).encode()
    produce(kafka.bootstrap, load.topic, [(None, message, 0)])
    seen: list[dict[str, int]] = []

    async def callback(station_id: str, given: dict) -> dict:
        await trio.lowlevel.checkpoint()
        return {"station_id": station_id, "limit": given[param][0]["limit"]}

    async def upload(batch_id: str, results_list: list) -> None:
        await trio.lowlevel.checkpoint()
        seen.append({result["station_id"]: result["limit"] for result in results_list})

    def service(group: str) -> AsyncDataAnalysisService:
        return AsyncDataAnalysisService(
            group,
            [load.topic],
            bootstrap_servers=kafka.bootstrap,
            kafka=QUICK,
            context_topics={param: Latest()},
            require_topics=[param],
        )

    with trio.fail_after(100):
        one = service(unique("group"))
        began = time.monotonic()
        async with one.start(callback, upload):
            known_after = time.monotonic() - began
            assert one.statistics().context_messages == 10_000
            await until(lambda: len(seen) == 1)
            assert seen == [{"S00000": 1, "S05000": 1, "S09999": 1}]
            assert one.statistics().stations["skipped"] == 1
            assert "the first one because: nothing is known of it from" in caplog.text
            # An update is seen within a second; a machine that is busy may need another try.
            waited: list[float] = []
            for number in range(1, 4):
                began = time.monotonic()
                produce(kafka.bootstrap, param, parameters(range(5000, 5001), 2))
                await until(lambda: one.statistics().context_messages == 10_000 + number)  # noqa: B023 - it ends before
                waited.append(time.monotonic() - began)
            assert min(waited) < 1
            produce(kafka.bootstrap, load.topic, [(None, message, 0)])
            await until(lambda: len(seen) == 2)
            assert seen[1] == {"S00000": 1, "S05000": 2, "S09999": 1}
        # Whoever starts later knows the same.
        other = service(unique("group"))
        async with other.start(callback, upload):
            await until(lambda: len(seen) == 4)
        assert seen[2:] == [seen[1], seen[1]]
    assert "context topics are read: 10000 messages, 10000 stations" in caplog.text
    with capsys.disabled():
        print(f"\n10,000 stations are known after {known_after:.1f} s; an update after {min(waited):.2f} s")


async def test_only_what_is_young_enough_is_read(kafka: Kafka) -> None:
    param = create_topic(kafka.bootstrap, unique("param"), 1)
    produce(kafka.bootstrap, param, [(b"S1", b'{"stationId": "S1", "limit": 1}', 0)])
    await trio.sleep(1.5)
    produce(kafka.bootstrap, param, [(b"S2", b'{"stationId": "S2", "limit": 2}', 0)])
    load = Load(kafka.bootstrap)
    service = load.service(context_topics={param: Latest(since_seconds=1.2)})
    with trio.fail_after(60):
        async with service.start(lambda station_id, given: None):
            assert service.statistics().context_messages == 1


async def test_a_context_topic_that_does_not_exist_is_said_at_the_start(kafka: Kafka) -> None:
    load = Load(kafka.bootstrap)
    service = load.service(context_topics={unique("nowhere"): Latest()}, connect_timeout=5.0)
    with trio.fail_after(60), pytest.raises(Exception, match="nowhere"):
        async with service.start(lambda station_id, given: None):
            pass


async def test_two_services_are_chained_by_a_topic(kafka: Kafka) -> None:
    # The lists of the first one open the batches of the second, and are its context too.
    first = Load(kafka.bootstrap, 20)
    second_results = create_topic(kafka.bootstrap, unique("out"), 2)

    async def half(station_id: str, given: dict) -> dict:
        await trio.lowlevel.checkpoint()
        return {"station_id": station_id, "number": given[first.topic][0]["number"]}

    async def other_half(station_id: str, given: dict) -> dict:
        await trio.lowlevel.checkpoint()
        (record,) = given[first.results]
        return {"station_id": station_id, "twice": 2 * record["number"]}

    one = first.service()
    two = AsyncDataAnalysisService(
        unique("second"),
        [first.results],
        bootstrap_servers=kafka.bootstrap,
        kafka=QUICK,
        result_topic=second_results,
        include_ledger=True,
    )
    with trio.fail_after(100):
        async with one.start(half), two.start(other_half):
            await until(lambda: two.statistics().uploaded == 20)
    lists = [json.loads(result.value()) for result in read_all(kafka.bootstrap, second_results)]
    assert sorted(entry["results"][0]["twice"] for entry in lists) == [2 * number for number in range(20)]
    assert {tuple(sorted(entry["ledger"]["stations"])) for entry in lists} == {("S000", "S001", "S002")}
    assert {outcome["verdict"] for entry in lists for outcome in entry["ledger"]["stations"].values()} == {"succeeded"}

    async def with_context(station_id: str, given: dict) -> dict:
        await trio.lowlevel.checkpoint()
        return {"station_id": station_id, "known": given[first.results][0]["station_id"]}

    third = Load(kafka.bootstrap, 1)
    three = third.service(context_topics={first.results: Window(5)})
    with trio.fail_after(60):
        async with three.start(with_context):
            await until(lambda: three.statistics().uploaded == 1)
    (entry,) = [json.loads(result.value()) for result in read_all(kafka.bootstrap, third.results)]
    assert all(result["known"] == result["station_id"] for result in entry["results"])


async def test_a_partition_that_is_added_is_read_too(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kafka_context, "_LOOK_SECONDS", 0.2)
    param = create_topic(kafka.bootstrap, unique("param"), 1)
    produce(kafka.bootstrap, param, [(b"S1", b'{"stationId": "S1"}', 0)])
    load = Load(kafka.bootstrap)
    service = load.service(context_topics={param: Latest()})
    with trio.fail_after(60):
        async with service.start(lambda station_id, given: None):
            admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
            (made,) = admin.create_partitions([NewPartitions(param, 2)]).values()
            await trio.to_thread.run_sync(made.result)
            produce(kafka.bootstrap, param, [(b"S2", b'{"stationId": "S2"}', 1)])
            await until(lambda: service.statistics().context_messages == 2)
            produce(kafka.bootstrap, param, [(b"S3", b'{"stationId": "S3"}', 0)])
            await until(lambda: service.statistics().context_messages == 3)


async def test_a_context_topic_that_is_deleted_ends_the_service(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kafka_context, "_LOOK_SECONDS", 0.2)
    param = create_topic(kafka.bootstrap, unique("param"), 1)
    load = Load(kafka.bootstrap)
    service = load.service(context_topics={param: Latest()})
    with trio.fail_after(60), pytest.raises(TopicUnavailable, match=param):
        async with service.start(lambda station_id, given: None):
            await trio.to_thread.run_sync(delete_topic, kafka.bootstrap, param)
            await trio.sleep_forever()


def reader_of(service: AsyncDataAnalysisService) -> Any:
    kafka: Any = service._kafka
    return kafka._bridge.context


async def test_a_broker_that_is_away_at_the_start_is_waited_for_and_not_in_silence(
    own_broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_kafka_context, "_TELL_SECONDS", 0.5)
    monkeypatch.setattr(_kafka_context, "_LOOK_SECONDS", 0.2)
    param = create_topic(own_broker.bootstrap, unique("param"), 1)
    produce(own_broker.bootstrap, param, [(b"S1", b'{"stationId": "S1"}', 0)])
    load = Load(own_broker.bootstrap)
    # Shorter than the absence: no question to the broker may have its own opinion of how long one waits.
    settings = replace(QUICK, request_timeout=1.0)

    cancelled: list[float] = []

    def cancel(scope: trio.CancelScope) -> None:
        cancelled.append(time.monotonic())
        scope.cancel()

    async def when_it_is_said(text: str, then: Callable[[], None]) -> None:
        await until(lambda: text in caplog.text)
        await trio.sleep(0.8)
        then()

    async def start(stage: str, break_it: Callable[[], None], repair: Callable[[], None]) -> None:
        original = getattr(_kafka_context.ContextReader, stage)

        async def broken(self: _kafka_context.ContextReader, *args: Any) -> Any:
            patch.undo()
            break_it()
            return await original(self, *args)

        caplog.clear()
        service = load.service(context_topics={param: Latest()}, kafka=settings)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_kafka_context.ContextReader, stage, broken)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(when_it_is_said, f"nothing comes of {param}/0: 0 messages so far", repair)
                async with service.start(lambda station_id, given: None):
                    assert service.statistics().context_messages == 1
                    assert caplog.text.count("waiting for context topics") >= 2
                    if stage == "_poll_aio":
                        await freeze_again(reader_of(service))

    async def freeze_again(reader: Any) -> None:
        reader.wedged_seconds = 0.4
        own_broker.freeze()
        await trio.sleep(1.0)
        own_broker.thaw()
        assert reader.rebuilds == 0  # nobody answers: it is not the client

    with trio.fail_after(100):
        for stage in ("_open_aio", "_find_aio", "_poll_aio"):
            await start(stage, own_broker.freeze, own_broker.thaw)
        with trio.CancelScope() as scope:
            await start("_find_aio", own_broker.kill, partial(cancel, scope))
        assert scope.cancelled_caught
        assert time.monotonic() - cancelled[0] < 5


async def test_only_partitions_without_a_leader_are_named(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_kafka_context, "_TELL_SECONDS", 0.2)
    param = create_topic(kafka.bootstrap, unique("param"), 14)
    produce(kafka.bootstrap, param, [(b"S1", b'{"stationId": "S1"}', 0), (b"S2", b'{"stationId": "S2"}', 13)])
    original = aiokafka.AIOKafkaConsumer.end_offsets
    leaderless = {*range(2, 14)}

    async def end_offsets(self: Any, partitions: list[aiokafka.TopicPartition]) -> Any:
        if not leaderless.isdisjoint(partition.partition for partition in partitions):
            await asyncio.sleep(0.1)
            raise aiokafka.errors.KafkaTimeoutError
        return await original(self, partitions)

    async def elected() -> None:
        await until(lambda: "and 2 more: 0 messages so far, nobody knows how many to go" in caplog.text)
        leaderless.intersection_update({13})
        await until(lambda: f"nothing comes of {param}/13: 0 messages so far" in caplog.text)
        leaderless.clear()

    monkeypatch.setattr(aiokafka.AIOKafkaConsumer, "end_offsets", end_offsets)
    service = Load(kafka.bootstrap).service(context_topics={param: Latest()})
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(elected)
            async with service.start(lambda station_id, given: None):
                assert service.statistics().context_messages == 2
    line = next(record.getMessage() for record in caplog.records if "and 2 more: " in record.getMessage())
    assert f"nothing comes of {', '.join(f'{param}/{number}' for number in range(2, 12))} and 2 more: " in line


async def test_a_client_that_gets_no_answer_though_kafka_gives_them_is_made_anew_where_it_was(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_kafka_context, "_LOOK_SECONDS", 0.2)
    param = create_topic(kafka.bootstrap, unique("param"), 2)
    said = [(None, b'{"stationId": "S1", "number": %d}' % number, number % 2) for number in range(20)]
    produce(kafka.bootstrap, param, said[:10])
    service = Load(kafka.bootstrap).service(context_topics={param: Window(20)})

    async def for_ever(*args: object, **kwargs: object) -> None:
        await asyncio.get_running_loop().create_future()

    with trio.fail_after(60):
        async with service.start(lambda station_id, given: None):
            reader = reader_of(service)
            reader._consumer._client.send = for_ever
            reader.wedged_seconds = 2.0
            await trio.sleep(0.6)  # the last fetch that was under way
            produce(kafka.bootstrap, param, said[10:])
            await until(lambda: reader.rebuilds == 1)
            reader.wedged_seconds = 60.0
            await until(lambda: service.statistics().context_messages == 20)
            known = joined(service._context, "S1")[param]
            assert sorted(record["number"] for record in known) == [*range(20)]  # each of them once
    assert "the consumer of the context topics has had no answer for 2 s, though Kafka answers" in caplog.text
    assert reader.rebuilds == 1
