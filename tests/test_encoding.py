"""Results -> bytes: what is encoded, what is refused and why, and what the list and its headers look like."""

from __future__ import annotations

import array
import json
import math
from collections import namedtuple
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any
from unittest.mock import MagicMock

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioagg._encoding import encode_list, encode_result
from trioagg._errors import BadResult
from trioagg._outputs import result_headers
from trioagg._records import BatchReport, CompletedBy
from trioagg._stations import parse_message

NAN, INF = math.nan, math.inf


class Listed:
    """Anything with a ``tolist()``."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    def tolist(self) -> Any:
        if isinstance(self.plain, BaseException):
            raise self.plain
        return self.plain


class Endless:
    """Each ``tolist()`` holds another one."""

    def tolist(self) -> Any:
        return [Endless()]


@dataclass
class Reading:
    value: float


class Level(Enum):
    UNKNOWN = NAN


Pair = namedtuple("Pair", "a b")


def refused(result: dict[Any, Any]) -> BadResult:
    with pytest.raises(BadResult) as caught:
        encode_result(result)
    return caught.value


# What is encoded.


def test_a_result_is_encoded_as_compact_utf8_json() -> None:
    assert encode_result({"station_id": "杭州-1", "p": [1, 2.5, None, True]}) == (
        '{"station_id":"杭州-1","p":[1,2.5,null,true]}'.encode()
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float64(1.5), "1.5"),
        (np.float32(0.5), "0.5"),
        (np.float16(0.5), "0.5"),
        (np.int64(-3), "-3"),
        (np.uint8(3), "3"),
        (np.bool_(True), "true"),
        (np.str_("x"), '"x"'),
        (np.array([1, 2]), "[1,2]"),
        (np.array([[1.5], [2.5]]), "[[1.5],[2.5]]"),
        (np.array(7), "7"),
        (np.array([]), "[]"),
        (np.array(np.float64(1.5), dtype=object), "1.5"),
        (np.array([1, None, "x"], dtype=object), '[1,null,"x"]'),
        (np.ma.array([1, 2], mask=[False, True]), "[1,null]"),
        (np.datetime64("2025-11-20"), '"2025-11-20"'),
        (array.array("d", [1.5]), "[1.5]"),
        (Listed([Listed({"x": Listed(None)})]), '[{"x":null}]'),
        (Reading(1.5), '{"value":1.5}'),
        (datetime(2025, 11, 20, tzinfo=UTC), '"2025-11-20T00:00:00Z"'),
        ((1, 2), "[1,2]"),
        (2**64, str(2**64)),
        ("null", '"null"'),
        (msgspec.Raw(b"null"), "null"),
    ],
    ids=lambda value: f"{type(value).__name__} {value!r}"[:50],
)
def test_a_value_is_written_as_what_it_stands_for(value: Any, text: str) -> None:
    assert encode_result({"v": value}) == f'{{"v":{text}}}'.encode()


def test_keys_that_are_no_strings_are_written_as_strings() -> None:
    assert encode_result({1: "a", 1.5: "b", np.int64(3): "c"}) == b'{"1":"a","1.5":"b","3":"c"}'


def test_a_tolist_may_encode_a_result_itself() -> None:
    class Nested:
        def tolist(self) -> str:
            return encode_result({"x": np.array([1, None])}).decode()

    assert encode_result({"a": Nested(), "b": None, "c": Nested()}) == (
        rb'{"a":"{\"x\":[1,null]}","b":null,"c":"{\"x\":[1,null]}"}'
    )


# NaN and infinity.


@pytest.mark.parametrize(
    ("result", "place"),
    [
        ({"p": NAN}, "$.p is NaN"),
        ({"p": INF}, "$.p is infinite"),
        ({"p": -INF}, "$.p is infinite"),
        ({"prediction": [0.0, 1.0, 2.0, NAN]}, "$.prediction[3] is NaN"),
        ({"a": {"b": [{"c": NAN}]}}, "$.a.b[0].c is NaN"),
        ({"a": (1, NAN)}, "$.a[1] is NaN"),
        ({"a": {NAN}}, "$.a[0] is NaN"),
        ({"a": Pair(1.0, INF)}, "$.a[1] is infinite"),
        ({"a": np.float64(NAN)}, "$.a is NaN"),
        ({"a": np.float32(INF)}, "$.a is infinite"),
        ({"a": np.array([[1.0, 2.0], [3.0, NAN]])}, "$.a[1][1] is NaN"),
        ({"a": np.array([{"b": np.array([NAN])}], dtype=object)}, "$.a[0].b[0] is NaN"),
        ({"a": np.array([(1, NAN)], dtype=[("x", "i4"), ("y", "f4")])}, "$.a[0][1] is NaN"),
        ({"a": Listed([NAN])}, "$.a[0] is NaN"),
        ({"a": Reading(NAN)}, "$.a.value is NaN"),
        ({"a": Level.UNKNOWN}, "$.a is NaN"),
        ({"a": msgspec.Raw(b"null"), "b": NAN}, "$.b is NaN"),
        ({3: [NAN]}, "$[3][0] is NaN"),
        ({"odd key\n": NAN}, r"$['odd key\n'] is NaN"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_number_that_json_does_not_have_is_refused_and_its_place_named(result: dict[Any, Any], place: str) -> None:
    assert refused(result).reason == place


def test_a_nan_as_deep_as_msgspec_goes_is_found_and_its_place_is_short() -> None:
    deep: Any = NAN
    for _ in range(800):
        deep = [deep]
    reason = refused({"deep": deep}).reason
    assert reason.startswith("$.deep[0][0]")
    assert reason.endswith(" is NaN")
    assert len(reason) < 250


def test_a_nan_behind_a_hundred_honest_nulls_is_found() -> None:
    assert refused({"a": [None] * 100, "b": "null", "c": [{"d": None}, {"d": NAN}]}).reason == "$.c[1].d is NaN"


# What cannot be encoded.


def circular_list() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


def circular_dict() -> dict[str, Any]:
    circle: dict[str, Any] = {}
    circle["again"] = circle
    return circle


def nested(depth: int, kind: Any) -> Any:
    deep: Any = None
    for _ in range(depth):
        deep = [deep] if kind is list else {"a": deep}
    return deep


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


class NoAttributes:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("go away")


@pytest.mark.parametrize(
    ("value", "reason", "cause"),
    [
        (object(), "no JSON for type object", TypeError),
        (1j, "no JSON for type complex", TypeError),
        (print, "no JSON for type builtin_function_or_method", TypeError),
        (np.array([1j]), "no JSON for type complex", TypeError),
        (np.ndarray, "tolist", TypeError),
        ({None: 1}, "no JSON for a key of type NoneType", TypeError),
        ({True: 1}, "no JSON for a key of type bool", TypeError),
        ({np.bool_(True): 1}, "no JSON for a key of type bool", TypeError),
        ({(1, 2): 1}, "no JSON for a key of type tuple", TypeError),
        ({"a": 1, None: NAN}, "no JSON for a key of type NoneType", TypeError),
        ("\ud800", "surrogates not allowed", UnicodeEncodeError),
        ({"\udc00": 1}, "surrogates not allowed", UnicodeEncodeError),
        (10**5000, "4300 digits", ValueError),
        (circular_list(), "contains itself", RecursionError),
        (circular_dict(), "contains itself", RecursionError),
        (nested(100_000, list), "nested too deep", RecursionError),
        (nested(100_000, dict), "nested too deep", RecursionError),
        (Endless(), "nested too deep", RecursionError),
        (MagicMock(), "MagicMock.tolist() comes to no plain value", TypeError),
        (np.longdouble(1), "longdouble.tolist() comes to no plain value", TypeError),
        (Listed(ZeroDivisionError("by zero")), "ZeroDivisionError: by zero", ZeroDivisionError),
        (Listed(object()), "no JSON for type object", TypeError),
        (Listed(MemoryError()), "MemoryError", MemoryError),
        (Listed(Unreadable()), "Unreadable: (its message cannot be read)", Unreadable),
        (NoAttributes(), "RuntimeError: go away", RuntimeError),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else type(value).__name__,
)
def test_what_cannot_be_encoded_is_a_bad_result_with_its_reason(
    value: Any, reason: str, cause: type[Exception]
) -> None:
    error = refused({"station_id": "A", "v": value})
    assert error.reason.startswith("cannot be encoded: ")
    assert reason in error.reason
    assert type(error.__cause__) is cause


@pytest.mark.parametrize("kind", [list, dict])
def test_no_depth_of_a_result_gives_a_recursion_error(kind: type) -> None:
    for depth in range(1, 1500):
        deep = nested(depth, kind)  # a null at its bottom: looked at twice
        with suppress(BadResult):
            encode_result({"deep": deep})


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), GeneratorExit()], ids=repr)
def test_what_is_not_about_the_result_gets_out(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        encode_result({"v": Listed(error)})
    assert caught.value is error


def test_a_tolist_that_fails_only_at_the_second_look_is_a_bad_result() -> None:
    class Once:
        calls = 0

        def tolist(self) -> None:
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("used up")

    assert "used up" in refused({"v": Once()}).reason


# Whatever comes.

finite = st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | finite | st.text()
trees = st.recursive(leaves, lambda t: st.lists(t) | st.dictionaries(st.text(), t), max_leaves=20)


@given(st.dictionaries(st.text(), trees))
def test_a_plain_result_comes_back_as_it_was(result: dict[str, Any]) -> None:
    assert json.loads(encode_result(result)) == result


@given(
    st.dictionaries(
        st.text(st.characters()) | st.integers() | st.none() | st.floats(),
        st.recursive(
            leaves | st.floats() | st.text(st.characters()) | st.complex_numbers() | st.builds(object) | st.binary(),
            lambda t: (
                st.lists(t) | st.tuples(t, t) | st.builds(Listed, t) | st.dictionaries(st.text() | st.booleans(), t)
            ),
            max_leaves=20,
        ),
    )
)
def test_any_result_is_json_or_a_bad_result(result: dict[Any, Any]) -> None:
    with suppress(BadResult):
        json.loads(encode_result(result), parse_constant=pytest.fail)


@given(trees, st.sampled_from([NAN, INF, -INF]), st.lists(st.text() | st.booleans(), max_size=6))
def test_a_nan_anywhere_is_found(tree: Any, bad: float, path: list[str | bool]) -> None:
    hidden: Any = bad
    for step in path:
        hidden = {step: hidden} if isinstance(step, str) else ([tree, hidden] if step else (hidden, tree))
    assert refused({"tree": tree, "hidden": hidden}).reason.startswith("$.hidden")


@given(st.lists(st.floats(width=32) | st.floats(), min_size=1))
def test_an_array_is_refused_exactly_when_not_all_of_it_is_finite(numbers: list[float]) -> None:
    if np.isfinite(numbers).all():
        assert json.loads(encode_result({"v": np.array(numbers)})) == {"v": numbers}
    else:
        assert refused({"v": np.array(numbers)}).reason.startswith("$.v[")


# The list and its headers.


def test_a_list_is_put_together_from_the_pieces() -> None:
    pieces = [encode_result({"station_id": s}) for s in ("A", "B")]
    assert encode_list("t_0_1_2", pieces) == (
        b'{"batch_id":"t_0_1_2","count":2,"results":[{"station_id":"A"},{"station_id":"B"}]}'
    )


def test_an_empty_list_is_a_message_with_count_zero() -> None:
    assert encode_list("b", []) == b'{"batch_id":"b","count":0,"results":[]}'


def test_a_batch_id_is_escaped() -> None:
    assert json.loads(encode_list('a"\\\n杭', []))["batch_id"] == 'a"\\\n杭'


@given(st.lists(st.text(min_size=1), unique=True))
def test_the_stations_of_a_list_are_those_that_another_module_reads(ids: list[str]) -> None:
    value = encode_list("b", [encode_result({"station_id": s, "p": 1}) for s in ids])
    assert parse_message(value).stations == {s: [{"station_id": s, "p": 1}] for s in ids}


def test_the_headers_say_why_the_batch_ended_and_count_every_verdict() -> None:
    report = BatchReport(
        batch_id="b",
        completed_by=CompletedBy.TIMEOUT,
        results=[],
        stations={},
        seconds=5.0,
        expected=21,
        succeeded=1,
        no_output=2,
        failed=3,
        timed_out=4,
        cancelled=5,
        skipped=6,
    )
    assert result_headers(report) == [
        ("trioagg-completed-by", b"timeout"),
        ("trioagg-expected", b"21"),
        ("trioagg-succeeded", b"1"),
        ("trioagg-no-output", b"2"),
        ("trioagg-failed", b"3"),
        ("trioagg-timed-out", b"4"),
        ("trioagg-cancelled", b"5"),
        ("trioagg-skipped", b"6"),
    ]
    for _, value in result_headers(report):
        assert type(value) is bytes
