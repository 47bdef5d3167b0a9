"""Hostile messages from a seed: real ones with something done to them, trees of anything, and noise.

The same seed gives the same messages, on every machine; they need nothing of trioagg.
"""

from __future__ import annotations

import json
import random
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_REAL: Final = tuple(
    json.dumps(value, ensure_ascii=False).encode()
    for value in (
        {
            "realTimeData": [
                {"stationId": "1001", "gunNo": "1", "sendTime": "2025-11-20 10:00:05", "outputPower": 58.2},
                {"stationId": "1002", "gunNo": "1", "sendTime": "2025-11-20 10:00:05", "outputPower": 0.0},
                {"stationId": "1001", "gunNo": "2", "sendTime": "2025-11-20 10:00:00", "outputPower": 31.7},
            ]
        },
        {"stationData": [{"stationId": "A", "soc": 0.4}, {"stationId": "B", "soc": 0.9}]},
        {"fee": [{"stationId": "1001", "sendTime": "2025-11-20", "periodFee": [0.3, 0.8]}, {"stationId": 1003}]},
        {"weather": [{"stationId": "杭州-1", "weatherSituationTomorrow": "晴"}]},
        [{"stationId": "1001", "lat": 30.1, "lng": 120.2}, {"stationId": "1002", "lat": 30.2, "lng": 120.3}],
        {"stationId": "1001", "hostCode": "H1", "meterCurrent": 3.2},
        {"batch_id": "t_0_1_1700000000", "count": 2, "results": [{"station_id": "S001"}, {"station_id": "S002"}]},
        {"realTimeData": [{"stationId": "1001"}, {"gunNo": "1"}, 5, None, "x", ["y"], {"stationId": "1002"}]},
        {"calendar": [{"date": "2025-11-20", "workdayCode": 1}]},
        {"sendTime": "2025-11-20 10:00:00", "source": "edge-7", "realTimeData": []},
    )
)
_PIECES: Final = (  # what is put into a message somewhere
    *(b"1e400", b"-1e400", b"1e-400", b"-0", b"-0.0", b"NaN", b"Infinity", b"-Infinity", b"nan", b"0x10", b"01", b"+1"),
    *(b"9" * 20, b"9" * 255, b"9" * 257, b"9" * 4300, b"-" + b"9" * 4301, b"0." + b"3" * 5000, b"1" + b"0" * 400),
    *(b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"', b'"\\u12"', b"\xed\xa0\x80", b"\xc0\xaf"),
    *(b"\xff", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\r\n", b"\xe2\x80\xae", b"\x7f", b"\\"),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b":",
        b"[[[[",
        b"]]]]",
        b"{}",
        b"[]",
        b'""',
        b"null",
        b"true",
        b"//",
        b"/**/",
    ),
    *(b'"stationId":', b'"stationId":null,', b'{"stationId":"1001"},', b'"station_id":"2",', b'"sendTime":[],'),
)
_SWAPS: Final = (bytes.maketrans(b"[]{}", b"{}[]"), bytes.maketrans(b"[{", b"]}"), bytes.maketrans(b'":', b":'"))
_KEYS: Final = (
    *("stationId", "station_id", "stationid", "sendTime", "realTimeData", "fee", "_data_quality", "__class__"),
    *("", " ", "\x00", "a\nb", "晴", "\u202e", "'", "$", "k" * 300),
)
_SCALARS: Final = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        1.5,
        -0.0,
        1e308,
        5e-324,
        2**63,
        2**64,
        -(2**63) - 1,
        10**299,
        "",
        " ",
        "\x00",
        "1001",
    ),
    *(
        "2025-11-20 10:00:05",
        "晴",
        "\u202eabc",
        "a\r\nb",
        "\x1b[31m",
        "\ufeff",
        "😀",
        "x" * 256,
        "x" * 257,
        "{}",
        "NaN",
    ),
)


def messages(seed: int, count: int) -> Iterator[bytes | None]:
    """So many hostile messages; None is a message without a value."""
    chance = random.Random(seed)
    kinds, weights = [kind for kind, _ in _KINDS], list(accumulate(weight for _, weight in _KINDS))
    for _ in range(count):
        yield chance.choices(kinds, cum_weights=weights)[0](chance)


# Kinds of messages.


def _real(chance: random.Random) -> bytes:
    return chance.choice(_REAL)


def _mutated(chance: random.Random) -> bytes:
    message = bytearray(chance.choice(_REAL))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        chance.choice(_MUTATIONS)(chance, message)
    return bytes(message)


def _tree_of_anything(chance: random.Random) -> bytes:
    return _dump(chance, _tree(chance, chance.randint(1, 6)))


def _stations(chance: random.Random) -> bytes:
    """A list of stations, good and bad ones mixed; mostly short."""
    return _dump(chance, _in_an_envelope(chance, [_element(chance) for _ in range(chance.choice((0, 1, 2, 3, 5, 10)))]))


def _many_stations(chance: random.Random) -> bytes:
    """Up to twice as many as a message may have; rare, since they take as long as thousands of others."""
    count = int(10 ** chance.uniform(1, 4.30103))
    ids = range(count) if chance.random() < 0.5 else [chance.randrange(count) for _ in range(count)]
    as_text = chance.random() < 0.7
    elements: list[Any] = [{"stationId": f"S{number}" if as_text else number} for number in ids]
    if chance.random() < 0.5:
        for _ in range(chance.randint(1, 20)):
            elements[chance.randrange(count)] = chance.choice((None, 5, "x", [], {}, {"stationId": ""}, {"a": 1}))
    return _dump(chance, _in_an_envelope(chance, elements))


def _twice(chance: random.Random) -> bytes:
    """One key more than once."""
    key = json.dumps(chance.choice(_KEYS)).encode()
    values = [_dump(chance, _tree(chance, 2)) for _ in range(chance.randint(2, 4))]
    return b"{" + b",".join(key + b":" + value for value in values) + b',"stationId":"1","stationId":"2"}'


def _deep(chance: random.Random) -> bytes:
    depth = chance.choice((10, 98, 99, 100, 101, 500, 990, 1100, 3000, 20_000))
    opening, inside, closing = chance.choice(
        ((b"[", b"", b"]"), (b'{"a":', b"1", b"}"), (b'[{"stationId":', b'"1"', b"}]"), (b'{"a":[', b"", b"]}"))
    )
    message = opening * depth + inside + closing * chance.choice((depth, depth, depth - 1, 0))
    return b'{"realTimeData":[{"stationId":"1","v":' + message + b"}]}" if chance.random() < 0.5 else message


def _big(chance: random.Random) -> bytes:
    """Long strings, long ids, long keys, many keys."""
    size = int(10 ** chance.uniform(2, 5))
    text = chance.choice(("x", "晴", '"', "\\", "\x00", "😀")) * size
    return _dump(
        chance,
        chance.choice(
            (
                text,
                {"stationId": text},
                {text: [{"stationId": "1"}, 5]},
                {"realTimeData": [{"stationId": "1", "v": text}, {"stationId": text}]},
                {f"k{number}": [] for number in range(size // 20)},
                {f"k{number}": [{"stationId": number % 7}] for number in range(size // 50)},
            )
        ),
    )


def _huge(chance: random.Random) -> bytes:
    """About as large as a message may be."""
    return b'{"stationId":"1","v":"' + b"x" * (8 * 1024 * 1024 - chance.randint(0, 50)) + b'"}'


def _number(chance: random.Random) -> bytes:
    piece = chance.choice(_PIECES)
    return (
        chance.choice((b'[{"stationId":%b}]', b'{"stationId":"1","v":%b}', b"%b", b'{"a":[%b,{"stationId":1}]}'))
        % piece
    )


def _noise(chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice((0, 1, 2, 3, 8, 64, 1000)))


def _json_noise(chance: random.Random) -> bytes:
    """Noise out of the alphabet of JSON: now and then it is some."""
    return b"".join(
        chance.choices((b"[", b"]", b"{", b"}", b",", b":", b'"', b"1", b"null", b'"stationId"', b" "), k=9)
    )


def _encoded_otherwise(chance: random.Random) -> bytes:
    text = chance.choice(_REAL).decode()
    return text.encode(chance.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030", "utf-7")))


def _tombstone(chance: random.Random) -> None:
    return None


_KINDS: Final[tuple[tuple[Callable[[random.Random], bytes | None], float], ...]] = (
    (_real, 5),
    (_mutated, 40),
    (_tree_of_anything, 15),
    (_stations, 15),
    (_many_stations, 0.1),
    (_twice, 3),
    (_deep, 1),
    (_big, 0.5),
    (_huge, 0.01),
    (_number, 6),
    (_noise, 5),
    (_json_noise, 5),
    (_encoded_otherwise, 3),
    (_tombstone, 2),
)


# What is done to a message.


def _flip(chance: random.Random, message: bytearray) -> None:
    for _ in range(chance.choice((1, 1, 2, 8))):
        if message:
            message[chance.randrange(len(message))] ^= 1 << chance.randrange(8)


def _truncate(chance: random.Random, message: bytearray) -> None:
    del message[chance.randint(0, len(message)) :]


def _behead(chance: random.Random, message: bytearray) -> None:
    del message[: chance.randint(0, len(message))]


def _cut(chance: random.Random, message: bytearray) -> None:
    del message[_slice(chance, message)]


def _double(chance: random.Random, message: bytearray) -> None:
    piece = message[_slice(chance, message)]
    place = chance.randint(0, len(message))
    message[place:place] = piece * chance.choice((1, 1, 2, 20))


def _swap(chance: random.Random, message: bytearray) -> None:
    where = slice(None) if chance.random() < 0.3 else _slice(chance, message)
    message[where] = message[where].translate(chance.choice(_SWAPS))


def _insert(chance: random.Random, message: bytearray) -> None:
    place = chance.randint(0, len(message))
    message[place:place] = chance.choice(_PIECES)


def _another_value(chance: random.Random, message: bytearray) -> None:
    """What follows a colon becomes something else; the message may stay JSON."""
    colons = [place for place, byte in enumerate(message) if byte == 0x3A]
    if not colons:
        return
    start = chance.choice(colons) + 1
    end = start
    while end < len(message) and message[end] not in b",}]":
        end += 1
    message[start:end] = chance.choice(_PIECES) if chance.random() < 0.3 else _dump(chance, _tree(chance, 2))


def _splice(chance: random.Random, message: bytearray) -> None:
    other = chance.choice(_REAL)
    message[chance.randint(0, len(message)) :] = other[chance.randint(0, len(other)) :]


_MUTATIONS: Final = (
    *(
        _flip,
        _truncate,
        _behead,
        _cut,
        _double,
        _swap,
        _insert,
        _another_value,
        _another_value,
        _another_value,
        _splice,
    ),
)


def _slice(chance: random.Random, message: bytearray) -> slice:
    start = chance.randint(0, len(message))
    return slice(start, chance.randint(start, min(len(message), start + 200)))


# Pieces that are JSON.


def _tree(chance: random.Random, depth: int) -> Any:
    kind = chance.random()
    if depth <= 0 or kind < 0.35:
        return chance.choice(_SCALARS)
    size = chance.choice((0, 1, 1, 2, 3))
    if kind < 0.65:
        return [_tree(chance, depth - 1) for _ in range(size)]
    return {chance.choice(_KEYS): _tree(chance, depth - 1) for _ in range(size)}


def _element(chance: random.Random) -> Any:
    kind = chance.random()
    if kind < 0.15:
        return _tree(chance, 2)
    element: dict[str, Any] = {}
    for key in chance.choice((("stationId",), ("station_id",), ("stationId", "station_id"))):
        element[key] = chance.choice(_SCALARS) if kind < 0.5 else f"S{chance.randrange(20)}"
    if chance.random() < 0.3:
        element["sendTime"] = chance.choice(_SCALARS)
    if chance.random() < 0.2:
        element[chance.choice(_KEYS)] = _tree(chance, 2)
    return element


def _in_an_envelope(chance: random.Random, elements: list[Any]) -> Any:
    match chance.randrange(5):
        case 0:
            return elements
        case 1:
            return {chance.choice(_KEYS): elements}
        case 2:
            return {"sendTime": "2025-11-20", "realTimeData": elements, chance.choice(_KEYS): _tree(chance, 2)}
        case 3:
            return {"a": elements[: len(elements) // 2], "b": elements[len(elements) // 2 :]}
        case _:
            return {"deeper": {"realTimeData": elements}}


def _dump(chance: random.Random, value: Any) -> bytes:
    """As strict JSON mostly; with NaN and infinities where Python's own writer lets them through."""
    if chance.random() < 0.02:
        value = [value, chance.choice((float("nan"), float("inf"), float("-inf")))]
    ascii_only = chance.random() < 0.3
    return json.dumps(value, ensure_ascii=ascii_only).encode(errors="surrogatepass")
