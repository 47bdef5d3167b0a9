"""What other topics say about a station, joined into what its callback gets.  No Trio, no I/O.

A clock only decides how often the same complaint is written to the log.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ._errors import PoisonMessage
from ._stations import parse_message

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ._settings import InputLimits

logger = logging.getLogger("trioagg")

_POISON_IN_FULL: Final = 3
_POISON_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Latest:
    """Keep the latest record of every station, and the latest one that is about no station, which holds for all.

    Raises:
      ValueError: when made, if a value is out of its range.
    """

    since_seconds: float | None = None
    """At the start, read only what is younger than that; None is everything that the topic holds."""
    max_stations: int = 100_000
    """Beyond, the station that nothing was heard of for the longest time is forgotten, with a warning."""
    max_bytes: int = 256 * 1024 * 1024
    """Of the messages that the records came in, each with an equal share of its message; and as much again of those
    that are about no station."""

    def __post_init__(self) -> None:
        if self.since_seconds is not None and not 0 < self.since_seconds < math.inf:
            raise ValueError(f"since_seconds={self.since_seconds!r}: it must be more than 0 seconds, or None")
        for name in ("max_stations", "max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: it must be 1 or more")

    @property
    def records(self) -> int:
        """How many records of a station are kept."""
        return 1


@dataclass(frozen=True, slots=True)
class Window(Latest):
    """Keep so many latest records of every station, oldest first, and as many that are about no station."""

    count: int = 24

    def __post_init__(self) -> None:
        Latest.__post_init__(self)
        if self.count < 1:
            raise ValueError(f"count={self.count!r}: a window holds 1 or more records")

    @property
    def records(self) -> int:
        """How many records of a station are kept."""
        return self.count


class _Kept:
    """One record."""

    __slots__ = ("_is_flat", "_record", "key", "size", "timestamp_ms")

    def __init__(self, record: dict[str, Any], timestamp_ms: int | None, size: int, key: bytes | None) -> None:
        self._record, self.timestamp_ms, self.size, self.key = record, timestamp_ms, size, key
        self._is_flat = not any(isinstance(value, dict | list) for value in record.values())

    def copy(self) -> dict[str, Any]:
        """One that its owner may change."""
        return self._record.copy() if self._is_flat else deepcopy(self._record)


class _Topic:
    """What is kept of one topic."""

    def __init__(self, name: str, kind: Latest) -> None:
        self.name, self.kind = name, kind
        self.stations: OrderedDict[str, deque[_Kept]] = OrderedDict()
        self.everybody: deque[_Kept] = deque()
        self._by_key: dict[bytes, set[str]] = {}
        """Which stations have records that came under a key."""
        self.bytes = self.bytes_of_everybody = self.forgotten = 0
        self.rejected = self._poison = self._untold = 0
        self._told, self._reason = -math.inf, ""

    def add_to_all(self, kept: _Kept) -> None:
        self.everybody.append(kept)
        self.bytes_of_everybody += kept.size
        while len(self.everybody) > self.kind.records or (
            self.bytes_of_everybody > self.kind.max_bytes and len(self.everybody) > 1
        ):
            self.bytes_of_everybody -= self.everybody.popleft().size

    def add(self, station_id: str, kept: _Kept) -> None:
        records = self.stations.setdefault(station_id, deque())
        self.stations.move_to_end(station_id)
        records.append(kept)
        self.bytes += kept.size
        if kept.key is not None:
            self._by_key.setdefault(kept.key, set()).add(station_id)
        if len(records) > self.kind.records:
            self._drop_oldest(station_id, records)
        while len(self.stations) > self.kind.max_stations or (
            self.bytes > self.kind.max_bytes and len(self.stations) > 1
        ):
            if not self.forgotten:
                logger.warning(
                    "context topic %s holds more than max_stations=%d or max_bytes=%d: stations are forgotten, those "
                    "first that nothing was heard of for the longest time",
                    *(self.name, self.kind.max_stations, self.kind.max_bytes),
                )
            self.forgotten += 1
            oldest, of_it = next(iter(self.stations.items()))
            while of_it:
                self._drop_oldest(oldest, of_it)
        while self.bytes > self.kind.max_bytes and len(records) > 1:
            self._drop_oldest(station_id, records)

    def _drop_oldest(self, station_id: str, records: deque[_Kept]) -> None:
        self._dropped(station_id, records.popleft(), records)

    def _dropped(self, station_id: str, kept: _Kept, left: deque[_Kept]) -> None:
        self.bytes -= kept.size
        if kept.key is not None and not any(other.key == kept.key for other in left):
            named = self._by_key.get(kept.key, set())
            named.discard(station_id)
            if not named:
                self._by_key.pop(kept.key, None)
        if not left:
            del self.stations[station_id]

    def forget_key(self, key: bytes) -> None:
        """A tombstone: what came under this key is deleted."""
        for station_id in list(self._by_key.get(key, ())):
            records = self.stations[station_id]
            for kept in [kept for kept in records if kept.key == key]:
                records.remove(kept)
                self._dropped(station_id, kept, records)
        for kept in [kept for kept in self.everybody if kept.key == key]:
            self.everybody.remove(kept)
            self.bytes_of_everybody -= kept.size

    def complain(self, reason: str, now: float) -> None:
        # A topic that is nothing but poison would write a line for every message, at every start.
        self._poison += 1
        if self._poison > _POISON_IN_FULL:
            self._untold, self._reason = self._untold + 1, reason
            self.tell_poison(now - _POISON_SECONDS, now)
            return
        self._told = now
        logger.warning("a message of context topic %s is poison and is passed over: %s", self.name, reason)

    def tell_poison(self, since: float, now: float) -> None:
        """Say what was gathered, unless something was said after *since*."""
        if self._untold and self._told <= since:
            logger.warning(
                "context topic %s: %d more messages are poison and are passed over, %d in all; the last one: %s",
                *(self.name, self._untold, self._poison, self._reason),
            )
            self._told, self._untold = now, 0

    def of(self, station_id: str) -> deque[_Kept]:
        return self.stations.get(station_id) or self.everybody


class Context:
    """The latest records of all context topics.

    Args:
      kinds: What is kept of each topic.
      required: Topics without which a station is not run.
      clock: In seconds, for what the log says once a minute.

    Raises:
      ValueError: if one that is required is none of them.
    """

    def __init__(
        self,
        kinds: Mapping[str, Latest],
        required: Collection[str],
        limits: InputLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not isinstance(kinds, Mapping):
            raise ValueError(f"context_topics={kinds!r}: use a dict, like {{'WEATHER': Latest()}}")
        if isinstance(required, str):
            raise ValueError(f"require_topics must be several names, not one string: use [{required!r}]")
        if strange := set(required).difference(kinds):
            raise ValueError(f"require_topics={sorted(strange)}: they are none of the context_topics")
        for name, kind in kinds.items():
            if not isinstance(name, str) or not name:
                raise ValueError(f"context_topics: {name!r} is no name of a topic")
            if not isinstance(kind, Latest):
                raise ValueError(f"context_topics[{name!r}]={kind!r}: use Latest() or Window(24)")
        self._topics = {name: _Topic(name, kind) for name, kind in kinds.items()}
        self._required, self._limits, self._clock = tuple(required), limits, clock
        self.messages = 0
        """Of all context topics, poison and deletions among them."""
        self.poison = 0
        """Messages that could not be read and were passed over."""
        self.rejected = 0
        """Elements of the others without a usable station id."""

    def __bool__(self) -> bool:
        return bool(self._topics)

    @property
    def kinds(self) -> dict[str, Latest]:
        """What is kept of each topic."""
        return {name: topic.kind for name, topic in self._topics.items()}

    @property
    def stations(self) -> int:
        """Stations that something is known of."""
        return sum(len(topic.stations) for topic in self._topics.values())

    def update(self, topic: str, key: bytes | None, value: bytes | None, timestamp_ms: int | None) -> None:
        """Something was said."""
        self.messages += 1
        kept = self._topics[topic]
        try:
            parsed = parse_message(value, self._limits)
        except PoisonMessage as error:
            self.poison += 1
            kept.complain(error.reason, self._clock())
            return
        if parsed.tombstone:
            if key is not None:
                kept.forget_key(key)
            return
        if parsed.rejected:
            level = logging.DEBUG if kept.rejected else logging.WARNING  # it may be so in each message of the topic
            named = "; ".join(parsed.rejected_places)
            logger.log(level, "context topic %s: %d element(s) have no station id: %s", topic, parsed.rejected, named)
            kept.rejected += parsed.rejected
            self.rejected += parsed.rejected
        count = sum(map(len, parsed.stations.values())) + len(parsed.global_records)
        size = len(value or b"") // max(1, count)
        for station_id, records in parsed.stations.items():
            for record in records:
                kept.add(station_id, _Kept(record, timestamp_ms, size, key))
        for record in parsed.global_records:
            kept.add_to_all(_Kept(record, timestamp_ms, size, key))

    def tell_poison(self, *, at_once: bool = False) -> None:
        """Log how many messages more were poison, if a minute went by since the last line, or *at_once*.

        Of every topic the first three are named one by one, as they come.
        """
        now = self._clock()
        for topic in self._topics.values():
            topic.tell_poison(now if at_once else now - _POISON_SECONDS, now)

    def join(self, station_id: str, given: dict[str, Any]) -> dict[str, Any]:
        """Add what is known of a station to what its callback gets.  The records are copies."""
        quality = given["_data_quality"]
        newest = quality["last_update"]
        for name, topic in self._topics.items():
            found = topic.of(station_id)
            if not found:
                quality["missing_topics"].append(name)
                continue
            given[name] = [kept.copy() for kept in found]
            quality["available_topics"].append(name)
            stamps = [kept.timestamp_ms for kept in found if kept.timestamp_ms is not None]
            if stamps and (newest is None or max(stamps) / 1000 > newest):
                newest = max(stamps) / 1000
        available = len(quality["available_topics"])
        total = available + len(quality["missing_topics"])
        quality |= {"total_topics": total, "availability_ratio": available / total, "last_update": newest}
        return given

    def lacking(self, stations: Collection[str]) -> dict[str, str]:
        """Those of *stations* that are not to be run, each with the reason."""
        if not self._required:
            return {}
        found = {}
        for station_id in stations:
            missing = [name for name in self._required if not self._topics[name].of(station_id)]
            if missing:
                found[station_id] = f"nothing is known of it from {', '.join(missing)}"
        return found
