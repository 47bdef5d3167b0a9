"""The messages of a replay: what a dead letter says, and what is written for it, a list or a letter again.

A letter holds its message as it came, with headers behind that say where it came from.  A message without these is
none, and speaks for itself.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec

from ._context import batch_context
from ._encoding import encode_list, encode_result
from ._errors import PoisonMessage, printable, words
from ._letters import dead_letter_headers
from ._reader import name_of
from ._stations import batch_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._kafka import Kafka, Message, Record
    from ._reader import Reader
    from ._records import BatchReport

logger = logging.getLogger("trioagg")


@dataclass(slots=True, kw_only=True)
class Original:
    """The message that a letter is about, or a message that is none."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None
    value: bytes | None
    batch_id: str
    stations: frozenset[str] | None
    """In printable form; None is all of them."""
    supplement: bool
    """Its list went up without these stations."""
    headers: tuple[tuple[str, bytes], ...]
    service: str | None
    """Who gave it up; None where it is no letter."""


def original_of(record: Record, *, only_failed: bool) -> Original | None:
    """What a letter says of its message; None where that cannot be read.  A message that is no letter speaks for
    itself."""
    try:
        return _read_original(record, only_failed=only_failed)
    except (ValueError, TypeError, msgspec.MsgspecError) as error:
        logger.warning("%s has headers that cannot be read: %s", name_of(record), words(error))
        return None


def _read_original(record: Record, *, only_failed: bool) -> Original:
    told = {name: value for name, value in record.headers if value is not None}

    def number(name: str) -> int | None:
        found = told.get(f"trioagg-{name}")
        return None if found is None else int(found)

    topic, partition, offset = told.get("trioagg-topic"), number("partition"), number("offset")
    if topic is None or partition is None or offset is None:
        return Original(
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            timestamp_ms=record.timestamp_ms,
            value=record.value,
            batch_id=batch_id(record.topic, record.partition, record.offset, record.timestamp_ms),
            stations=None,
            supplement=False,
            headers=record.headers,
            service=None,
        )
    stamp = number("timestamp-ms")
    name = topic.decode(errors="replace")
    # The list of a batch whose upload failed is up for no station; only these letters have a list that lacks some.
    supplement = only_failed and told.get("trioagg-reason") == b"stations" and "trioagg-stations" in told
    return Original(
        topic=name,
        partition=partition,
        offset=offset,
        timestamp_ms=stamp,
        value=record.value,
        batch_id=told.get("trioagg-batch-id", b"").decode(errors="replace") or batch_id(name, partition, offset, stamp),
        stations=msgspec.json.decode(told["trioagg-stations"], type=frozenset[str]) if supplement else None,
        supplement=supplement,
        headers=record.headers,
        service=told.get("trioagg-service", b"").decode(errors="replace"),
    )


def stations_of(reader: Reader, record: Record, original: Original) -> Mapping[str, Any] | None:
    """The stations of its message that the letter is about; None where the message is poison still."""
    try:
        stations = reader.read(original)
    except PoisonMessage as error:
        logger.warning("%s is poison still: %s", name_of(record), error.reason)
        return None
    if original.stations is None:
        return stations
    return {station_id: value for station_id, value in stations.items() if printable(station_id) in original.stations}


class Lists:
    """Brings the lists up, with headers that say what they are."""

    encode = staticmethod(encode_result)

    def __init__(self, topic: str, kafka: Kafka) -> None:
        self._topic, self._kafka = topic, kafka

    async def send(self, report: BatchReport, encoded: Sequence[bytes]) -> None:
        from ._kafka import Message
        from ._outputs import result_headers

        record, original = cast("tuple[Record, Original]", batch_context.get().source)  # replay() has put it there
        headers = [
            *result_headers(report),
            ("trioagg-replayed-from", f"{record.topic}/{record.partition}/{record.offset}".encode()),
            ("trioagg-supplement", b"true" if original.supplement else b"false"),
        ]
        value = encode_list(report.batch_id, encoded)
        await self._kafka.send([Message(self._topic, report.batch_id.encode(), value, headers)])


def letter_again(record: Record, original: Original, report: BatchReport, again: Sequence[str]) -> Message:
    """A letter about the stations that have failed again."""
    from ._kafka import Message

    service = cast("str", original.service)  # it is a letter
    headers = dead_letter_headers(
        original, "stations", service, error=report.first_error, report=report, stations=again
    )
    return Message(record.topic, record.key, record.value, headers)
