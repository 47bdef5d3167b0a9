"""Hostile messages through the parser and through all of the service but Kafka: none stops it, and none gets lost."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bench.fuzz import LETTERS, LISTS, Tally, fuzz
from bench.garble import messages
from trioagg import PoisonMessage
from trioagg._stations import ParsedMessage, parse_message

SEED = 20_251_120

scalars = (
    st.none() | st.booleans() | st.integers() | st.integers(10**250, 10**260) | st.floats() | st.text() | st.just("S1")
)
keys = st.sampled_from(["stationId", "station_id", "sendTime", "realTimeData"]) | st.text()
trees = st.recursive(scalars, lambda tree: st.lists(tree) | st.dictionaries(keys, tree), max_leaves=30)


def check(tally: Tally, count: int) -> None:
    """What holds whatever the messages are."""
    assert tally.stops == []
    assert tally.messages == tally.fed == tally.finished == count
    assert tally.messages == tally.opened + tally.poison + tally.empty
    assert tally.uploaded == tally.handled == tally.opened
    assert (tally.settled_twice, tally.discarded, tally.unwritable_lines) == (0, 0, 0)
    assert min(tally.opened, tally.poison, tally.empty) > count / 20  # else they are not the messages that were meant


# The service.


async def test_hostile_messages_become_batches_or_are_poison_or_empty_and_nothing_else() -> None:
    tally = await fuzz(messages(SEED, 8_000))
    check(tally, 8_000)
    assert tally.letters == tally.dead_letters == 0


async def test_every_poison_message_becomes_one_dead_letter_byte_by_byte() -> None:
    tally = await fuzz(messages(SEED + 1, 6_000), dead_letter_topic=LETTERS, dead_letter_limit=None)
    check(tally, 6_000)
    assert tally.letters == tally.dead_letters == tally.poison
    assert tally.wrong_letters == 0


async def test_hostile_station_ids_get_into_the_result_topic_and_into_the_letters_of_failed_stations() -> None:
    tally = await fuzz(
        messages(SEED + 2, 3_000),
        result_topic=LISTS,
        dead_letter_topic=LETTERS,
        dead_letter_stations=["failed"],
        dead_letter_limit=None,
    )
    check(tally, 3_000)
    assert tally.lists == tally.opened
    assert tally.poison < tally.letters == tally.dead_letters
    assert tally.wrong_letters == 0


def parser_of_the_user(topic: str, value: bytes) -> dict[str, Any]:
    """What anybody would write first: it lets lone surrogates and NaN through, and fails in many ways."""
    message = json.loads(value)
    elements = message if isinstance(message, list) else next(iter(message.values()))
    return {element.get("stationId", element.get("station_id")): element for element in elements}


async def test_a_parser_of_the_user_that_fails_in_many_ways_stops_nothing() -> None:
    tally = await fuzz(
        messages(SEED + 3, 3_000),
        message_parser=parser_of_the_user,
        result_topic=LISTS,
        dead_letter_topic=LETTERS,
        dead_letter_limit=None,
    )
    check(tally, 3_000)
    assert tally.letters == tally.dead_letters == tally.poison
    assert tally.wrong_letters == 0


async def test_a_letter_for_a_station_whose_id_has_no_utf8_stops_nothing() -> None:
    value = rb'[{"stationId": "\ud8005"}]'  # an id on which the callback fails
    tally = await fuzz(
        [value],
        message_parser=parser_of_the_user,
        dead_letter_topic=LETTERS,
        dead_letter_stations=["failed"],
        dead_letter_limit=None,
        upload_attempts=1,
    )
    assert tally.stops == []
    assert (tally.letters, tally.wrong_letters, tally.uploaded) == (1, 0, 1)


async def test_a_stop_would_not_be_missed() -> None:
    # By the limit of dead letters, which is what stops a service whatever it is fed with.
    tally = await fuzz([b"no JSON"] * 150, dead_letter_topic=LETTERS)
    assert "TooManyDeadLetters" in tally.stops[0]
    assert tally.unaccounted > 0


# The messages.


def test_the_same_seed_gives_the_same_messages_and_another_one_others() -> None:
    assert list(messages(1, 300)) == list(messages(1, 300)) != list(messages(2, 300))


# The parser.


def check_parsed(parsed: ParsedMessage) -> None:
    assert all(isinstance(station_id, str) and 0 < len(station_id) <= 256 for station_id in parsed.stations)
    assert all(records and all(type(record) is dict for record in records) for records in parsed.stations.values())
    assert len(parsed.rejected_places) == min(parsed.rejected, 5)
    assert all(place.isprintable() and len(place) < 200 for place in parsed.rejected_places)


@given(st.binary())
def test_no_bytes_make_the_parser_raise_anything_but_poison(value: bytes) -> None:
    with suppress(PoisonMessage):
        check_parsed(parse_message(value))


@given(trees)
def test_no_json_makes_the_parser_raise_anything_but_poison(tree: Any) -> None:
    with suppress(PoisonMessage):
        check_parsed(parse_message(json.dumps(tree).encode()))


@given(trees, st.data())
def test_no_json_with_a_piece_replaced_makes_it_raise_anything_but_poison(tree: Any, data: st.DataObject) -> None:
    value = json.dumps(tree, ensure_ascii=False).encode(errors="surrogatepass")
    start = data.draw(st.integers(0, len(value)))
    end = data.draw(st.integers(start, len(value)))
    with suppress(PoisonMessage):
        check_parsed(parse_message(value[:start] + data.draw(st.binary(max_size=8)) + value[end:]))


def test_no_hostile_message_makes_the_parser_raise_anything_but_poison() -> None:
    for value in messages(SEED + 4, 10_000):
        with suppress(PoisonMessage):
            check_parsed(parse_message(value))
