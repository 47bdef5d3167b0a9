"""Message bytes -> the records of each station, and what its callback gets.  No Trio, no clock, no I/O.

The rules of a message, as JSON (UTF-8, without a byte order mark):

- A list: each of its objects with a station id is a record of that station.
- An object with a station id: one record of that station, whatever lists it holds.
- Any other object: its lists, under whatever keys, hold the records.  Nothing deeper is looked at.
- A station id is a non-empty string, taken as it is, or an integer, written in decimal: 1001 and "1001" are one
  station.  It stands under ``stationId`` or ``station_id``.  Of two valid ones ``stationId`` wins, and an invalid
  one (null, say) does not hide a valid one: the record still names exactly one station.
- A list is about stations if one of its elements has a key for the id.  Its elements without a valid id are
  rejected one by one and cost the others nothing.  In any other list (of names, of days) nothing is rejected.
- Everything else is poison: what is not JSON, and a bare scalar or null.
- So is what goes beyond an input limit, but for a station id that is too long: it is an invalid one.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Final

import msgspec

from ._errors import PoisonMessage
from ._settings import InputLimits

RESERVED_KEYS: Final = frozenset({"stationId", "_data_quality"})
"""The keys of a module input that are ours: no topic may be named so."""

_ID_KEYS: Final = ("stationId", "station_id")
_MAX_PLACES: Final = 5
_MAX_KEY: Final = 40  # of a key in the name of a place: messages are hostile, log lines are not
_JSON_NAMES: Final[dict[type, str]] = {
    NoneType: "null",
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "a list",
    dict: "an object",
}

_decode = msgspec.json.Decoder().decode
_Plain = None | bool | int | float | str
_Flat = dict[str, _Plain]
_Record = dict[str, _Plain | list[_Plain | _Flat] | _Flat]
_decode_usual = msgspec.json.Decoder(dict[str, _Plain | list[_Record]]).decode
_USUAL_DEPTH: Final = 5
_USUAL_LIMITS: Final = InputLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedMessage:
    """What one message says about which stations.  Its lists and dicts belong to the caller: nothing is shared."""

    stations: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The records of each station, stations in the order in which they first appear.  Records are sorted by
    ``sendTime``, equal ones in the order of the message; those whose ``sendTime`` is not a string come last."""
    global_records: list[dict[str, Any]] = field(default_factory=list)
    """The message itself where it is not about stations at all, a calendar say: an object whole, a list as its
    objects.  On a context topic it holds for every station.  Empty when all it has are empty lists (``{"sendTime":
    ..., "fee": []}`` is a list of no stations), and when an element was rejected: it meant to name a station."""
    tombstone: bool = False
    """The Kafka record had no value: on a context topic, a deletion."""
    rejected: int = 0
    """Elements that should have named a station and did not."""
    rejected_places: tuple[str, ...] = ()
    """The first five of them with their reason, as ``$.realTimeData[1]: no station id``."""


def parse_message(value: bytes | None, limits: InputLimits = _USUAL_LIMITS) -> ParsedMessage:
    """Sort one message's records by station.

    A message without a station is not poison; it has no ``stations``.

    Args:
      value: The value of the Kafka record; None is a tombstone.

    Raises:
      PoisonMessage: if *value* is not JSON, is beyond one of *limits*, or is neither an object nor a list.
    """
    if value is None:
        return ParsedMessage(tombstone=True)
    check_size(value, limits)
    message = _decoded(value, limits.max_depth)

    most = limits.max_id_chars
    stations: dict[str, list[dict[str, Any]]] = {}
    lists: list[tuple[str | None, list[Any]]]
    if type(message) is dict:
        if (station_id := _station_id(message, most)) is not None:
            return ParsedMessage(stations={station_id: [message]})
        lists = [(key, elements) for key, elements in message.items() if type(elements) is list]
    elif type(message) is list:
        lists = [(None, message)]
    else:
        raise PoisonMessage(f"{_JSON_NAMES[type(message)]}, neither an object nor a list")

    rejected = 0
    places: list[str] = []
    for key, elements in lists:
        nameless = _collect(elements, stations, most)
        rejected += len(nameless)
        named = nameless[: _MAX_PLACES - len(places)]
        places += [f"{_place(key)}[{index}]: {_reason(elements[index], most)}" for index in named]
    if not stations and not rejected and _has_id_key(message):
        # Only now: an envelope's own empty id is no loss when its lists name the stations.
        rejected, places = 1, [f"$: {_reason(message, most)}"]

    check_count(len(stations), limits)
    for records in stations.values():
        if len(records) > 1:
            records.sort(key=_by_send_time)
    global_records: list[dict[str, Any]] = []
    if not stations and not rejected and (not lists or any(elements for _, elements in lists)):
        objects = message if type(message) is list else [message]
        global_records = [record for record in objects if record and type(record) is dict]
    return ParsedMessage(
        stations=stations, global_records=global_records, rejected=rejected, rejected_places=tuple(places)
    )


def module_input(
    station_id: str, topic: str, records: list[dict[str, Any]], timestamp_ms: int | None
) -> dict[str, Any]:
    """What the callback of one station gets, where there are no context topics.

    Every call makes dicts and lists of its own; *records* is handed on, not copied.

    Args:
      timestamp_ms: Of the Kafka record, in milliseconds since the epoch.  With None, or a negative one (Kafka has -1
        for none), ``last_update`` is None; else it is in seconds.

    Raises:
      ValueError: if *topic* is one of :data:`RESERVED_KEYS`.  Kafka allows such names, and either the records or
        our own key would be lost; whoever takes topics from the user refuses them there.
    """
    if topic in RESERVED_KEYS:
        raise ValueError(f"a topic cannot be named {topic!r}: this key of the module input is taken")
    return {
        "stationId": station_id,
        topic: records,
        "_data_quality": {
            "available_topics": [topic],
            "missing_topics": [],
            "total_topics": 1,
            "availability_ratio": 1.0,
            "last_update": None if timestamp_ms is None or timestamp_ms < 0 else timestamp_ms / 1000,
        },
    }


class ModuleInputs(Mapping[str, dict[str, Any]]):
    """The stations of one message.  What a station's callback gets is made when it is asked for, each time anew: made
    beforehand, the inputs of all batches in flight are most of what the garbage collector has to look at."""

    __slots__ = ("_join", "_records", "_timestamp_ms", "_topic")

    def __init__(
        self,
        topic: str,
        records: dict[str, list[dict[str, Any]]],
        timestamp_ms: int | None,
        join: Callable[[str, dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self._topic, self._records, self._timestamp_ms, self._join = topic, records, timestamp_ms, join

    def __getitem__(self, station_id: str) -> dict[str, Any]:
        given = module_input(station_id, self._topic, self._records[station_id], self._timestamp_ms)
        return given if self._join is None else self._join(station_id, given)

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def items(self) -> ItemsView[str, dict[str, Any]]:
        return _Inputs(self)


class _Inputs(ItemsView[str, dict[str, Any]]):
    _mapping: ModuleInputs

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        # The inherited one looks every station up.
        topic, timestamp_ms, join = self._mapping._topic, self._mapping._timestamp_ms, self._mapping._join
        if join is not None:
            yield from ((station_id, self._mapping[station_id]) for station_id in self._mapping)
            return
        for station_id, records in self._mapping._records.items():
            yield station_id, module_input(station_id, topic, records, timestamp_ms)


def batch_id(topic: str, partition: int, offset: int, timestamp_ms: int | None) -> str:
    """Name the batch of one Kafka record: ``{topic}_{partition}_{offset}_{seconds}``, with 0 for no timestamp."""
    seconds = 0 if timestamp_ms is None or timestamp_ms < 0 else timestamp_ms // 1000
    return f"{topic}_{partition}_{offset}_{seconds}"


def check_size(value: bytes, limits: InputLimits) -> None:
    """Raise PoisonMessage for a message of too many bytes."""
    if len(value) > limits.max_message_bytes:
        raise PoisonMessage(f"{len(value)} bytes, more than max_message_bytes={limits.max_message_bytes}")


def check_count(stations: int, limits: InputLimits) -> None:
    """Raise PoisonMessage for a message of too many stations."""
    if stations > limits.max_stations:
        raise PoisonMessage(f"{stations} stations, more than max_stations={limits.max_stations}")


def _decoded(value: bytes, max_depth: int) -> Any:
    if max_depth >= _USUAL_DEPTH:
        # The usual message is a list of records with a price list in them at most.  The decoder sees on the way how
        # deep it is; looking afterwards costs more than decoding.  What is not like that is soon found out.
        with suppress(msgspec.MsgspecError, ValueError, RecursionError):
            return _decode_usual(value)
    try:
        message = _decode(value)
    except RecursionError as error:
        raise PoisonMessage("nested too deep") from error
    except (msgspec.DecodeError, ValueError) as error:  # not UTF-8 is a UnicodeDecodeError
        raise PoisonMessage(f"not JSON: {error}") from error
    # Counting is quick, and few brackets cannot nest deep.
    if value.count(b"[") + value.count(b"{") > max_depth and _is_deeper(message, max_depth):
        raise PoisonMessage(f"nested deeper than max_depth={max_depth}")
    return message


def _is_deeper(message: Any, limit: int) -> bool:
    """Whether lists and objects are nested deeper than *limit*.  By levels: it may be as deep as it likes."""
    level = [message] if type(message) is dict or type(message) is list else []
    for _ in range(limit):
        level = [
            child
            for container in level
            for child in (container.values() if type(container) is dict else container)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def _collect(elements: list[Any], stations: dict[str, list[dict[str, Any]]], most: int) -> list[int]:
    """Add the records of *elements* to *stations*; return the indexes of those that should have been records."""
    nameless = []
    for index, element in enumerate(elements):
        station_id = None
        if type(element) is dict:
            station_id = element.get("stationId")
            if type(station_id) is not str or not 0 < len(station_id) <= most:  # the usual one needs no call
                station_id = _station_id(element, most)
        if station_id is None:
            nameless.append(index)
        elif station_id in stations:
            stations[station_id].append(element)
        else:
            stations[station_id] = [element]
    if len(nameless) < len(elements) or any(_has_id_key(elements[index]) for index in nameless):
        return nameless
    return []


def _station_id(record: dict[str, Any], most: int) -> str | None:
    for key in _ID_KEYS:
        station_id = record.get(key)
        # Not isinstance: a bool is an int, and msgspec makes no subclasses.
        if type(station_id) is str and 0 < len(station_id) <= most:
            return station_id
        if type(station_id) is int and len(text := str(station_id)) <= most:
            return text
    return None


def _has_id_key(element: Any) -> bool:
    return type(element) is dict and any(key in element for key in _ID_KEYS)


def _by_send_time(record: dict[str, Any]) -> tuple[bool, str]:
    send_time = record.get("sendTime")
    return (False, send_time) if type(send_time) is str else (True, "")


def _place(key: str | None) -> str:
    """Name the value of *key* as JSONPath does; None is the message itself."""
    if key is None:
        return "$"
    return f"$.{key}" if key.isidentifier() and len(key) <= _MAX_KEY else f"$[{key[:_MAX_KEY]!r}]"


def _reason(element: Any, most: int) -> str:
    """Say why *element*, which has no valid station id, has none."""
    if type(element) is not dict:
        return f"{_JSON_NAMES[type(element)]}, not an object"
    for key in _ID_KEYS:
        if key in element:
            station_id = element[key]
            if type(station_id) is str or type(station_id) is int:
                why = "an empty string" if station_id == "" else f"longer than max_id_chars={most}"
            else:
                why = _JSON_NAMES[type(station_id)]
            return f"{key} is {why}"
    return "no station id"
