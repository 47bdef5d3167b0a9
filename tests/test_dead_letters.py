"""What can never be processed is kept where somebody can look at it, and a service that keeps all of it stops."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from broker import Kafka, delete_topic, produce
from hypothesis import given
from hypothesis import strategies as st
from load import DeadLoad, double, message, until

import trioagg
from trioagg import (
    BatchReport,
    BatchResultAggregator,
    DeadLetterLimit,
    DeadLetterRefused,
    InputLimits,
    TooManyDeadLetters,
    TopicUnavailable,
)
from trioagg._letters import Brake, dead_letter_headers
from trioagg._stations import parse_message


def headers_of(letter: Any) -> dict[str, str]:
    return {name: value.decode() for name, value in letter.headers()}


# The letter.


@dataclass
class Original:
    topic: str = "in"
    partition: int = 3
    offset: int = 7
    timestamp_ms: int | None = 1_700_000_000_123
    headers: tuple[tuple[str, bytes], ...] = ()


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("error", [ValueError("no \ud800"), Unreadable(), KeyError("x" * 100_000), None])
def test_the_headers_of_a_letter_are_text_of_bounded_length_whatever_was_raised(error: Exception | None) -> None:
    headers = dead_letter_headers(Original(), "poison", "service", error=error)
    assert all(len(value.decode()) < 3000 for _, value in headers)


def test_a_letter_that_died_again_tells_of_its_last_death_and_keeps_the_headers_that_are_not_ours() -> None:
    first = dead_letter_headers(Original(headers=(("trace", b"1"),)), "poison", "one", error=ValueError("first"))
    again = Original("dead", 0, 1, None, tuple(first))
    second = dead_letter_headers(again, "poison", "two", error=ValueError("second"))
    assert [value for name, value in second if name == "trace"] == [b"1"]
    assert [value for name, value in second if name == "trioagg-exception-text"] == [b"second"]
    assert "trioagg-timestamp-ms" not in dict(second)


# The brake.


def test_so_many_in_a_row_are_borne_and_one_more_is_not() -> None:
    brake = Brake(DeadLetterLimit(max_consecutive=3, over=100))
    for _ in range(5):
        for _ in range(3):
            brake.dead("poison")
        brake.alive()
    for _ in range(3):
        brake.dead("poison")
    with pytest.raises(
        TooManyDeadLetters, match="4 messages in a row would be dead letters, the last one because: bad"
    ):
        brake.dead("bad")


def test_so_large_a_part_of_the_last_messages_may_be_dead_and_no_more() -> None:
    brake = Brake(DeadLetterLimit(max_consecutive=100, max_ratio=0.3, over=10))
    for _ in range(100):
        brake.dead("poison")
        for _ in range(3):
            brake.alive()
    brake.alive()
    with pytest.raises(TooManyDeadLetters, match="4 of the last 10 messages"):
        for _ in range(10):
            brake.dead("poison")
            brake.alive()


@given(st.lists(st.booleans(), max_size=200), st.integers(1, 20), st.integers(1, 30), st.floats(0.05, 1))
def test_the_brake_agrees_with_counting_anew(ends: list[bool], in_a_row: int, over: int, ratio: float) -> None:
    limit = DeadLetterLimit(max_consecutive=in_a_row, max_ratio=ratio, over=over)
    brake = Brake(limit)
    for index, dead in enumerate(ends):
        seen = ends[: index + 1]
        if not dead:
            brake.alive()
            continue
        trailing = next((n for n, end in enumerate(reversed(seen)) if not end), len(seen))
        if trailing > in_a_row or sum(seen[-over:]) > ratio * over:
            with pytest.raises(TooManyDeadLetters):
                brake.dead("poison")
            return
        brake.dead("poison")


def test_without_a_limit_nothing_stops() -> None:
    brake = Brake(None)
    for _ in range(10_000):
        brake.dead("poison")


@pytest.mark.parametrize("values", [{"max_consecutive": 0}, {"over": 0}, {"max_ratio": 0}, {"max_ratio": 1.1}])
def test_a_limit_out_of_range_is_named(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        DeadLetterLimit(**values)


# Input limits.


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (message(1, 100), "100 stations, more than max_stations=50"),
        (b"[" * 11 + b"]" * 11, "nested deeper than max_depth=10"),
        (b'{"stationId": "S", "x": ' + b'{"a": [' * 5 + b"]}" * 5 + b"}", "nested deeper than max_depth=10"),
        (b" " * 5000 + b"[]", "5002 bytes, more than max_message_bytes=5000"),
    ],
)
def test_beyond_a_limit_a_message_is_poison_and_the_reason_names_it(value: bytes, reason: str) -> None:
    limits = InputLimits(max_message_bytes=5000, max_stations=50, max_depth=10)
    with pytest.raises(trioagg.PoisonMessage) as caught:
        parse_message(value, limits)
    assert str(caught.value) == reason


def test_at_the_limits_a_message_is_as_good_as_any() -> None:
    depth = b'{"stationId": "S", "x": ' + b"[" * 9 + b"]" * 9 + b"}"
    assert list(parse_message(depth, InputLimits(max_depth=10, max_message_bytes=len(depth))).stations) == ["S"]
    assert len(parse_message(message(1, 50), InputLimits(max_stations=50)).stations) == 50


def test_brackets_in_strings_are_not_depth() -> None:
    value = json.dumps([{"stationId": "S", "text": "[{" * 500}]).encode()
    assert list(parse_message(value, InputLimits(max_depth=2)).stations) == ["S"]


def test_an_element_whose_id_is_too_long_costs_the_others_nothing() -> None:
    value = json.dumps([{"stationId": "S" * 11}, {"stationId": "S" * 10}]).encode()
    parsed = parse_message(value, InputLimits(max_id_chars=10))
    assert list(parsed.stations) == ["S" * 10]
    assert parsed.rejected_places == ("$[0]: stationId is longer than max_id_chars=10",)


# Without Kafka.


async def test_an_aggregator_hands_a_list_that_was_given_up_to_whoever_takes_it(autojump_clock) -> None:
    taken: list[tuple[str, str]] = []

    async def fails(batch_id: str, results_list: list) -> None:
        raise OSError("disk full")

    def take(report: BatchReport, error: Exception) -> None:
        taken.append((report.batch_id, str(error)))

    async def callback(station_id: str, value: object) -> dict:
        return {}

    async with BatchResultAggregator(
        callback, fails, on_upload_failure="dead_letter", dead_letter_handler=take, upload_attempts=2
    ) as aggregator:
        report = await aggregator.run("b", {"S": 1})
    assert taken == [("b", "disk full")]
    assert report.succeeded == 1
    assert aggregator.statistics().dead_lettered == 1


async def test_what_the_taker_raises_ends_the_block_as_itself(autojump_clock) -> None:
    async def fails(batch_id: str, results_list: list) -> None:
        raise TypeError

    async def refuses(report: BatchReport, error: Exception) -> None:
        raise LookupError("no room")

    async def callback(station_id: str, value: object) -> dict:
        return {}

    with pytest.raises(LookupError, match="no room"):
        async with BatchResultAggregator(
            callback, fails, on_upload_failure="dead_letter", dead_letter_handler=refuses
        ) as aggregator:
            await aggregator.submit("b", {"S": 1})
            await trio.sleep_forever()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"on_upload_failure": "dead_letter"}, "needs a dead_letter_topic"),
        ({"dead_letter_stations": ["failed"]}, "needs a dead_letter_topic"),
        ({"dead_letter_stations": "failed", "dead_letter_topic": "d"}, "several verdicts, not one string"),
        ({"dead_letter_stations": ["late"], "dead_letter_topic": "d"}, "use some of failed, timed_out"),
        ({"dead_letter_topic": "in"}, "must be a topic of its own"),
        ({"dead_letter_topic": "out", "result_topic": "out"}, "must be a topic of its own"),
    ],
)
def test_settings_that_contradict_each_other_are_named(arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        trioagg.AsyncDataAnalysisService("service", ["in"], **arguments)


# On Kafka.


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_poison_becomes_a_letter_before_its_offset_moves(kafka: Kafka, delivery: str) -> None:
    load = DeadLoad(kafka.bootstrap, 4)
    produce(kafka.bootstrap, load.topic, [("key", b"{broken", 0), (None, b"3", 1)])
    load.send(2)
    service = load.service(delivery=delivery)
    with trio.fail_after(60):
        async with service.start(callback=double):
            await until(lambda: service.statistics().uploaded == 6 and service.statistics().dead_letters == 2)
    assert load.committed() == load.ends()
    assert len(load.lists()) == 6
    broken, scalar = sorted(load.letters(), key=lambda letter: letter.value(), reverse=True)
    assert (broken.key(), broken.value()) == (b"key", b"{broken")
    assert (scalar.key(), scalar.value()) == (None, b"3")
    told = headers_of(broken)
    assert told.pop("trioagg-exception-text").startswith("not JSON")
    assert int(told.pop("trioagg-timestamp-ms")) > 1_700_000_000_000
    assert told.pop("trioagg-version")
    assert told == {
        "trioagg-reason": "poison",
        "trioagg-exception-type": "PoisonMessage",
        "trioagg-topic": load.topic,
        "trioagg-partition": "0",
        "trioagg-offset": "2",
        "trioagg-service": load.group,
    }


async def test_a_list_that_was_given_up_becomes_a_letter_with_the_ledger_of_its_batch(kafka: Kafka) -> None:
    load = DeadLoad(kafka.bootstrap)
    load.send(1)

    async def fails_for_one(station_id: str, module_input: dict) -> dict:
        if station_id == "S001":
            raise ValueError("no data")
        return {}

    async def no_upload(batch_id: str, results_list: list) -> None:
        raise OSError("gone")

    service = load.service(on_upload_failure="dead_letter", upload_attempts=2, result_topic=None)
    with trio.fail_after(60):
        async with service.start(fails_for_one, no_upload):
            await until(lambda: service.statistics().dead_letters == 1)
    assert load.committed() == load.ends()
    (letter,) = load.letters()
    assert letter.value() == message(0)
    told = headers_of(letter)
    assert told["trioagg-reason"] == "upload_failed"
    assert (told["trioagg-exception-type"], told["trioagg-exception-text"]) == ("OSError", "gone")
    ledger = json.loads(told["trioagg-ledger"])
    assert (ledger["completed_by"], ledger["expected"], ledger["succeeded"], ledger["failed"]) == ("all", 3, 2, 1)
    assert ledger["stations"]["S001"]["error"] == "ValueError: no data"
    assert {station: line["verdict"] for station, line in ledger["stations"].items()} == {
        "S000": "succeeded",
        "S001": "failed",
        "S002": "succeeded",
    }


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_failed_stations_become_a_letter_beside_their_list_when_asked_for(kafka: Kafka, delivery: str) -> None:
    load = DeadLoad(kafka.bootstrap, 3)

    async def sometimes(station_id: str, module_input: dict) -> dict:
        if station_id == "S002" and (await double(station_id, module_input))["number"] == 1:
            raise ValueError("not this one")
        return {"station_id": station_id}

    service = load.service(dead_letter_stations=["failed", "timed_out"], delivery=delivery)
    with trio.fail_after(60):
        async with service.start(sometimes):
            await until(lambda: service.statistics().uploaded == 3)
    assert load.committed() == load.ends()
    assert sorted(load.lists().values()) == [1, 1, 1]
    (letter,) = load.letters()
    assert letter.value() == message(1)
    assert headers_of(letter)["trioagg-reason"] == "stations"
    assert json.loads(headers_of(letter)["trioagg-stations"]) == ["S002"]


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_a_list_that_kafka_refuses_becomes_a_letter(kafka: Kafka, delivery: str) -> None:
    load = DeadLoad(kafka.bootstrap, 6)

    async def large(station_id: str, module_input: dict) -> dict:
        number = (await double(station_id, module_input))["number"]
        return {"number": number, "large": "x" * (600_000 if number in (2, 3) else 10)}

    service = load.service(on_upload_failure="dead_letter", delivery=delivery)
    with trio.fail_after(60):
        async with service.start(large):
            await until(lambda: service.statistics().dead_letters == 2 and service.statistics().uploaded == 4)
    assert load.committed() == load.ends()
    assert sorted(load.lists().values()) == [1, 1, 1, 1]
    letters = load.letters()
    assert sorted(letter.value() for letter in letters) == [message(2), message(3)]
    assert {headers_of(letter)["trioagg-exception-type"] for letter in letters} == {"MessageTooLarge"}


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_a_letter_without_room_for_its_ledger_is_written_without_it(kafka: Kafka, delivery: str) -> None:
    load = DeadLoad(kafka.bootstrap, **{"max.message.bytes": "4000"})
    load.send(1, stations=40)

    async def fails(station_id: str, module_input: dict) -> dict:
        raise ValueError("x" * 100)

    service = load.service(dead_letter_stations=["failed"], delivery=delivery)
    with trio.fail_after(60):
        async with service.start(fails):
            await until(lambda: service.statistics().uploaded == 1)
    (letter,) = load.letters()
    assert json.loads(headers_of(letter)["trioagg-ledger"])["failed"] == 40
    assert "stations" not in json.loads(headers_of(letter)["trioagg-ledger"])
    assert sorted(load.lists().values()) == [1]


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_a_letter_that_kafka_refuses_ends_the_service_and_nothing_is_committed_past_it(
    kafka: Kafka, delivery: str
) -> None:
    load = DeadLoad(kafka.bootstrap, **{"max.message.bytes": "500"})
    produce(kafka.bootstrap, load.topic, [(None, b"x" * 1000, 0)])
    load.send(2)
    service = load.service(delivery=delivery)
    with trio.fail_after(60), pytest.raises(DeadLetterRefused, match=load.dead):
        async with service.start(double):
            await trio.sleep_forever()
    assert not load.committed()[0]


async def test_a_dead_letter_topic_that_is_not_there_is_named_at_the_start_and_later(kafka: Kafka) -> None:
    load = DeadLoad(kafka.bootstrap, 2)
    with trio.fail_after(60):
        with pytest.raises(TopicUnavailable, match="topic 'nowhere'"):
            async with load.service(dead_letter_topic="nowhere").start(double):
                pass
        service = load.service(kafka=trioagg.KafkaSettings(session_timeout=6.0, request_timeout=2.0))
        with pytest.raises(DeadLetterRefused, match=load.dead):
            async with service.start(double):
                await until(lambda: service.statistics().uploaded == 2)
                delete_topic(kafka.bootstrap, load.dead)
                produce(kafka.bootstrap, load.topic, [(None, b"{", 0)])
                await trio.sleep_forever()


async def test_a_service_that_would_dead_letter_everything_stops(kafka: Kafka) -> None:
    load = DeadLoad(kafka.bootstrap)
    produce(kafka.bootstrap, load.topic, [(None, b"{", 0)] * 50)
    service = load.service(dead_letter_limit=DeadLetterLimit(max_consecutive=10))
    with trio.fail_after(60), pytest.raises(TooManyDeadLetters, match="11 messages in a row"):
        async with service.start(double):
            await trio.sleep_forever()
    assert len(load.letters()) <= 10
    assert (load.committed()[0] or 0) <= 10


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
@pytest.mark.parametrize("on_upload_failure", ["stop", "skip"])
async def test_a_service_whose_every_station_fails_stops_whatever_is_done_with_lists(
    kafka: Kafka, delivery: str, on_upload_failure: str
) -> None:
    load = DeadLoad(kafka.bootstrap, 50)

    async def fails(station_id: str, module_input: dict) -> dict:
        raise ValueError("a bad deploy")

    service = load.service(
        dead_letter_limit=DeadLetterLimit(max_consecutive=10),
        dead_letter_stations=["failed"],
        delivery=delivery,
        on_upload_failure=on_upload_failure,
    )
    with trio.fail_after(60), pytest.raises(TooManyDeadLetters, match=r"11 messages in a row .* no station of batch"):
        async with service.start(fails):
            await trio.sleep_forever()
    assert len(load.letters()) <= 10
