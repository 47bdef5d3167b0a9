"""Message bytes -> records by station: every shape, every way to be malformed, and whatever Hypothesis thinks of."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trioagg._errors import PoisonMessage
from trioagg._stations import RESERVED_KEYS, ParsedMessage, batch_id, module_input, parse_message

SHAPES = json.loads(Path(__file__).with_name("message-shapes.json").read_text(encoding="utf-8"))


def parse(message: Any) -> ParsedMessage:
    return parse_message(json.dumps(message, ensure_ascii=False).encode())


def counts(parsed: ParsedMessage) -> dict[str, int]:
    return {station_id: len(records) for station_id, records in parsed.stations.items()}


def value_of(shape: dict[str, Any]) -> bytes | None:
    """The bytes of one case of the file: ``raw`` where it has one, else its ``value``; no value is a tombstone."""
    match shape["raw"]:
        case None:
            return None if shape["value"] is None else json.dumps(shape["value"]).encode()
        case str(raw) if raw.startswith("REPEAT:"):
            _, piece, times = raw.split(":")
            return piece.encode() * int(times)
        case str(raw) if raw.startswith("HEX:"):
            return bytes.fromhex(raw.removeprefix("HEX:"))
        case raw:
            return raw.encode()


@pytest.mark.parametrize("shape", SHAPES, ids=[shape["name"] for shape in SHAPES])
def test_a_known_shape_gives_its_stations(shape: dict[str, Any]) -> None:
    if shape["note"].startswith("poison"):
        with pytest.raises(PoisonMessage):
            parse_message(value_of(shape))
    else:
        assert counts(parse_message(value_of(shape))) == shape["stations"]


# Shapes.


def test_records_of_a_station_are_sorted_by_send_time() -> None:
    late, early = {"stationId": "A", "sendTime": "10:00:05"}, {"stationId": "A", "sendTime": "10:00:00"}
    assert parse({"realTimeData": [late, early]}).stations == {"A": [early, late]}


def test_records_of_the_same_send_time_keep_the_order_of_the_message() -> None:
    records = [{"stationId": "A", "sendTime": "10:00", "gunNo": gun} for gun in "3142"]
    assert parse(records).stations["A"] == records


def test_records_without_a_string_send_time_stay_behind_in_their_order() -> None:
    odd = [{"stationId": "A", "sendTime": t} for t in (5, None, 3, ["x"])] + [{"stationId": "A"}]
    timed = [{"stationId": "A", "sendTime": "b"}, {"stationId": "A", "sendTime": "a"}]
    mixed = [odd[0], timed[0], odd[1], odd[2], timed[1], odd[3], odd[4]]
    assert parse(mixed).stations["A"] == [timed[1], timed[0], *odd]


def test_stations_come_in_the_order_of_their_first_record() -> None:
    assert list(parse([{"stationId": s} for s in "CABCB"]).stations) == ["C", "A", "B"]


def test_several_lists_all_count_and_the_sort_goes_across_them() -> None:
    parsed = parse(
        {
            "realTimeData": [{"stationId": "A", "sendTime": "2"}, {"stationId": "B"}],
            "stationData": [{"stationId": "A", "sendTime": "1"}, {"station_id": "C"}],
        }
    )
    assert counts(parsed) == {"A": 2, "B": 1, "C": 1}
    assert [record["sendTime"] for record in parsed.stations["A"]] == ["1", "2"]


def test_two_long_keys_that_begin_alike_are_two_lists() -> None:
    key = "k" * 1000
    assert counts(parse({key + "1": [{"stationId": "A"}], key + "2": [{"stationId": "B"}]})) == {"A": 1, "B": 1}


def test_an_object_with_an_id_is_one_station_whatever_lists_it_holds() -> None:
    message = {"stationId": "A", "guns": [{"stationId": "B"}, {"stationId": "C"}]}
    assert parse(message).stations == {"A": [message]}


def test_the_keys_of_an_envelope_are_no_records() -> None:
    parsed = parse({"sendTime": "10:00", "meta": {"stationId": "X"}, "realTimeData": [{"stationId": "A"}]})
    assert parsed.stations == {"A": [{"stationId": "A"}]}


def test_the_output_of_another_module_is_read_as_its_results() -> None:
    results = [{"station_id": "S1", "prediction": 1}, {"station_id": "S2", "prediction": None}]
    parsed = parse({"batch_id": "t_0_1_2", "count": 2, "results": results})
    assert parsed.stations == {"S1": [results[0]], "S2": [results[1]]}


@pytest.mark.parametrize("key", ["数据", "real-time data", "", "stationIds", "$", "a.b"])
def test_the_key_of_the_list_does_not_matter(key: str) -> None:
    assert counts(parse({key: [{"stationId": "A"}]})) == {"A": 1}


def test_a_list_nested_under_an_object_is_not_guessed_at() -> None:
    message = {"data": {"realTimeData": [{"stationId": "A"}]}}
    assert parse(message) == ParsedMessage(global_records=[message])


def test_a_list_of_lists_names_no_station() -> None:
    assert parse([[{"stationId": "A"}], [{"stationId": "B"}]]) == ParsedMessage()
    assert parse({"realTimeData": [[{"stationId": "A"}]]}).stations == {}


# Station ids.


def test_station_id_in_camel_case_wins() -> None:
    assert counts(parse([{"station_id": "B", "stationId": "A"}])) == {"A": 1}


@pytest.mark.parametrize("invalid", [None, "", True, 1.5, [], {}])
def test_an_invalid_id_does_not_hide_a_valid_one(invalid: Any) -> None:
    parsed = parse([{"stationId": invalid, "station_id": "B"}])
    assert (counts(parsed), parsed.rejected) == ({"B": 1}, 0)


def test_an_integer_and_its_digits_are_one_station() -> None:
    assert counts(parse([{"stationId": 1001}, {"stationId": "1001"}])) == {"1001": 2}


@pytest.mark.parametrize("number", [0, -1, 2**64, 10**255])
def test_any_integer_is_an_id(number: int) -> None:
    assert counts(parse({"stationId": number})) == {str(number): 1}


@pytest.mark.parametrize("literal", [b"1001.0", b"1e3", b"-0.0"])
def test_a_float_is_no_id_even_when_it_is_whole(literal: bytes) -> None:
    parsed = parse_message(b'[{"stationId":%b}]' % literal)
    assert (parsed.stations, parsed.rejected_places) == ({}, ("$[0]: stationId is a float",))


def test_ids_are_not_trimmed_or_normalised() -> None:
    ids = ["A", " A", "A ", "a", "\u0000", "e\u0301", "é", "\t", "0", "00"]
    assert list(parse([{"stationId": i} for i in ids]).stations) == ids


@given(st.lists(st.one_of(st.text(min_size=1), st.integers())))
def test_ids_come_back_as_their_strings(ids: list[str | int]) -> None:
    assert list(parse([{"stationId": i} for i in ids]).stations) == list(dict.fromkeys(map(str, ids)))


# What is rejected.


def test_an_element_without_an_id_is_named_and_costs_the_others_nothing() -> None:
    parsed = parse({"realTimeData": [{"stationId": "A"}, {"gunNo": "1"}, {"stationId": "B"}]})
    assert counts(parsed) == {"A": 1, "B": 1}
    assert (parsed.rejected, parsed.rejected_places) == (1, ("$.realTimeData[1]: no station id",))


def test_an_element_that_is_no_object_is_named_by_its_type() -> None:
    parsed = parse([{"stationId": "A"}, 5, 5.0, None, "x", ["y"]])
    assert counts(parsed) == {"A": 1}
    assert parsed.rejected_places == (
        "$[1]: an integer, not an object",
        "$[2]: a float, not an object",
        "$[3]: null, not an object",
        "$[4]: a string, not an object",
        "$[5]: a list, not an object",
    )


def test_an_invalid_id_is_named_by_what_it_is() -> None:
    parsed = parse([{"stationId": ""}, {"stationId": None}, {"station_id": True}, {"stationId": {}, "station_id": ""}])
    assert (parsed.stations, parsed.rejected) == ({}, 4)
    assert parsed.rejected_places == (
        "$[0]: stationId is an empty string",
        "$[1]: stationId is null",
        "$[2]: station_id is a boolean",
        "$[3]: stationId is an object",
    )


def test_all_rejected_elements_are_counted_and_the_first_five_are_named() -> None:
    parsed = parse({"a": [{"stationId": "A"}, 1, 2, 3], "b": [{"stationId": None}] * 100})
    assert (counts(parsed), parsed.rejected) == ({"A": 1}, 103)
    assert [place.split(":")[0] for place in parsed.rejected_places] == [
        "$.a[1]",
        "$.a[2]",
        "$.a[3]",
        "$.b[0]",
        "$.b[1]",
    ]


def test_a_place_under_a_hostile_key_is_short_and_on_one_line() -> None:
    parsed = parse({"evil\n\x1b[31m" + "x" * 100_000: [{"stationId": "A"}, 1]})
    (place,) = parsed.rejected_places
    assert place == "$['evil\\n\\x1b[31m" + "x" * 30 + "'][1]: an integer, not an object"


def test_a_list_that_is_not_about_stations_rejects_nothing() -> None:
    parsed = parse({"tags": ["a", "b"], "calendar": [{"date": "1"}, 2], "realTimeData": [{"stationId": "A"}]})
    assert (counts(parsed), parsed.rejected) == ({"A": 1}, 0)


def test_a_list_whose_every_id_is_invalid_is_rejected_whole() -> None:
    parsed = parse({"realTimeData": [{"stationId": None}, {"gunNo": "1"}]})
    assert (parsed.stations, parsed.rejected, parsed.global_records) == ({}, 2, [])


def test_a_single_object_with_an_invalid_id_is_rejected_and_holds_for_nobody() -> None:
    parsed = parse({"stationId": None, "x": 1})
    assert (parsed.stations, parsed.rejected, parsed.global_records) == ({}, 1, [])
    assert parsed.rejected_places == ("$: stationId is null",)


def test_an_envelope_with_an_invalid_id_of_its_own_still_gives_its_stations() -> None:
    parsed = parse({"stationId": "", "realTimeData": [{"stationId": "A"}]})
    assert (counts(parsed), parsed.rejected) == ({"A": 1}, 0)


# No station at all.


def test_a_tombstone_says_so() -> None:
    assert parse_message(None) == ParsedMessage(tombstone=True)


@pytest.mark.parametrize(
    "message",
    [
        [],
        {},
        {"realTimeData": []},
        {"sendTime": "10:00", "fee": [], "weather": []},
        {"batch_id": "t_0_1_2", "count": 0, "results": []},
        [{}],
        [1, "x"],
    ],
    ids=repr,
)
def test_a_message_that_says_nothing_is_empty(message: Any) -> None:
    assert parse(message) == ParsedMessage()


@pytest.mark.parametrize(
    "message",
    [
        {"calendar": [{"date": "2025-11-20"}]},
        {"calendar": [{"date": "2025-11-20"}], "holidays": []},
        {"price": 0.5},
        {"tags": ["a"]},
    ],
    ids=repr,
)
def test_a_global_object_is_kept_whole(message: dict[str, Any]) -> None:
    assert parse(message) == ParsedMessage(global_records=[message])


def test_a_global_list_is_kept_as_its_objects() -> None:
    assert parse([{"date": "1"}, 2, {"date": "3"}]) == ParsedMessage(global_records=[{"date": "1"}, {"date": "3"}])


def test_a_message_with_stations_is_never_global() -> None:
    assert parse({"calendar": [{"date": "1"}], "fee": [{"stationId": "A"}]}).global_records == []


# Poison.


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"{",
        b"{} {}",
        b"{'stationId': 'A'}",
        b'[{"stationId":"A"},]',
        b"\x00",
        b"\xef\xbb\xbf[]",
        "[]".encode("utf-16"),
        b'{"a":"\xff"}',
        b'{"a":"\xc0\x80"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\xf4\x90\x80\x80"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\ud800 and more"}',
        b'{"a":"\\ud800\\u0041"}',
        b'{"a":"\\udc00"}',
        b'{"\\ud800":1}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":nan}',
        b'{"a":1e400}',
        b'{"a":-1e400}',
        b"[" + b"1" * 5000 + b"]",
        b'{"a":01}',
        b'{"a":"\n"}',
    ],
    ids=lambda value: repr(value[:30]),
)
def test_what_is_not_json_is_poison(value: bytes) -> None:
    with pytest.raises(PoisonMessage, match=r"^not JSON: ") as caught:
        parse_message(value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("value", [b"null", b"true", b"42", b"4.2", b'"text"'])
def test_a_scalar_is_poison(value: bytes) -> None:
    with pytest.raises(PoisonMessage, match="neither an object nor a list"):
        parse_message(value)


@pytest.mark.parametrize(
    ("opening", "closing"),
    [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]"), (b'{"stationId":"A","a":[', b"]}")],
)
@pytest.mark.parametrize("around", [(b"", b""), (b'[{"stationId":"A","deep":', b"}]")])
def test_what_is_nested_too_deep_is_poison(opening: bytes, closing: bytes, around: tuple[bytes, bytes]) -> None:
    for inside in (opening * 100_000, opening * 100_000 + b"1" + closing * 100_000):
        with pytest.raises(PoisonMessage, match=r"^nested too deep$"):
            parse_message(around[0] + inside + around[1])


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_no_depth_gives_a_recursion_error(opening: bytes, closing: bytes) -> None:
    for depth in range(1, 1500):
        with suppress(PoisonMessage):
            assert parse_message(opening * depth + b"[]" + closing * depth).stations == {}


# Whatever comes.

keys = st.sampled_from(["stationId", "station_id", "sendTime", "realTimeData", "x"]) | st.text(max_size=3)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
trees = st.recursive(scalars, lambda t: st.lists(t, max_size=5) | st.dictionaries(keys, t, max_size=5), max_leaves=30)
ids = st.integers() | st.text(min_size=1, max_size=3)
invalid_ids = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.just("") | st.just([])
fields = st.dictionaries(st.sampled_from(["sendTime", "gunNo", "soc"]), scalars, max_size=3)
good = st.builds(lambda key, i, f: {key: i, **f}, st.sampled_from(["stationId", "station_id"]), ids, fields)
bad = st.builds(lambda i, f: {"stationId": i, **f}, invalid_ids, fields) | fields | scalars | st.lists(good, max_size=2)


@given(trees)
def test_any_json_gives_stations_or_poison(tree: Any) -> None:
    try:
        parsed = parse(tree)
    except PoisonMessage:
        assert not isinstance(tree, dict | list)
        return
    lists = [tree] if isinstance(tree, list) else [x for x in tree.values() if isinstance(x, list)]
    records = sum(counts(parsed).values())
    assert records + parsed.rejected <= max(1, sum(map(len, lists)))
    assert len(parsed.rejected_places) == min(parsed.rejected, 5)
    assert not (parsed.global_records and (records or parsed.rejected))
    for station_id, of_station in parsed.stations.items():
        assert station_id
        for record in of_station:
            assert station_id in (str(record.get("stationId")), str(record.get("station_id")))


@given(st.lists(good, min_size=1), st.lists(bad), st.randoms(use_true_random=False), st.booleans())
def test_records_and_rejected_elements_add_up(
    records: list[dict[str, Any]], malformed: list[Any], random: Any, bare: bool
) -> None:
    elements = records + malformed
    random.shuffle(elements)
    parsed = parse(elements if bare else {"batch_id": "b", "some list": elements, "other": [1, 2], "empty": []})
    assert sum(counts(parsed).values()) == len(records)
    assert parsed.rejected == len(malformed)
    for of_station in parsed.stations.values():
        times = [record.get("sendTime") for record in of_station]
        strings = [time for time in times if isinstance(time, str)]
        assert times[: len(strings)] == sorted(strings)


@given(
    st.lists(good, max_size=4),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000), st.binary(max_size=4)), min_size=1, max_size=4),
)
@example([{"stationId": "A"}], [(0, 0, b"\xef\xbb\xbf")])
def test_a_damaged_message_raises_nothing_but_poison(
    records: list[dict[str, Any]], damages: list[tuple[int, int, bytes]]
) -> None:
    value = json.dumps({"realTimeData": records}).encode()
    for start, length, piece in damages:
        start %= len(value) + 1
        value = value[:start] + piece + value[start + length % 8 :]
    with suppress(PoisonMessage):
        parse_message(value)


@given(st.binary())
def test_any_bytes_raise_nothing_but_poison(value: bytes) -> None:
    with suppress(PoisonMessage):
        parse_message(value)


# What a station gets.


def test_module_input_is_the_block_of_the_guide() -> None:
    records = [{"stationId": "S001", "sendTime": "10:00"}]
    assert module_input("S001", "SCHEDULE-STATION-REALTIME-DATA", records, 1_700_000_000_500) == {
        "stationId": "S001",
        "SCHEDULE-STATION-REALTIME-DATA": records,
        "_data_quality": {
            "available_topics": ["SCHEDULE-STATION-REALTIME-DATA"],
            "missing_topics": [],
            "total_topics": 1,
            "availability_ratio": 1.0,
            "last_update": 1_700_000_000.5,
        },
    }


@pytest.mark.parametrize("none", [None, -1])
def test_last_update_is_none_without_a_timestamp(none: int | None) -> None:
    assert module_input("A", "t", [], none)["_data_quality"]["last_update"] is None


def test_the_epoch_itself_is_a_timestamp() -> None:
    assert module_input("A", "t", [], 0)["_data_quality"]["last_update"] == 0.0


def test_no_two_stations_share_anything_that_can_be_changed() -> None:
    parsed = parse([{"stationId": "A", "x": []}, {"stationId": "B", "x": []}])
    one, other = (module_input(s, "t", records, 1) for s, records in parsed.stations.items())
    one["t"][0]["x"].append(1)
    one["t"].clear()
    one["_data_quality"]["available_topics"].clear()
    one["_data_quality"]["missing_topics"].append("t")
    one["_data_quality"]["total_topics"] = 9
    assert other == module_input("B", "t", [{"stationId": "B", "x": []}], 1)


@pytest.mark.parametrize("topic", sorted(RESERVED_KEYS))
def test_a_topic_cannot_take_one_of_our_keys(topic: str) -> None:
    with pytest.raises(ValueError, match=topic):
        module_input("A", topic, [], None)


def test_the_reserved_keys_are_the_keys_of_a_module_input() -> None:
    assert module_input("A", "t", [], None).keys() - {"t"} == RESERVED_KEYS


@pytest.mark.parametrize(
    ("timestamp_ms", "seconds"), [(1_700_000_000_999, 1_700_000_000), (999, 0), (0, 0), (None, 0), (-1, 0)]
)
def test_a_batch_is_named_after_its_record(timestamp_ms: int | None, seconds: int) -> None:
    assert batch_id("REALTIME", 3, 41, timestamp_ms) == f"REALTIME_3_41_{seconds}"


@pytest.mark.parametrize("digits", ["9" * 257, "9" * 4300, "-" + "9" * 256])
def test_an_integer_of_more_digits_than_an_id_may_have_characters_is_no_id(digits: str) -> None:
    parsed = parse_message(b'[{"stationId": %b}, {"stationId": "A"}]' % digits.encode())
    assert counts(parsed) == {"A": 1}
    assert parsed.rejected_places == ("$[0]: stationId is longer than max_id_chars=256",)


def test_an_integer_of_as_many_digits_as_an_id_may_have_characters_is_one() -> None:
    assert counts(parse_message(b'{"stationId": %b}' % (b"9" * 256))) == {"9" * 256: 1}
