"""Dead letters, run again: just the stations that the letter is about, into a supplement of their batch's list.

A letter holds its message as it came, so that this needs nothing but the letters.  What is done is remembered in a
group of its own, and never in that of the service.  What fails again becomes a letter again, behind the others: so a
second run does only that.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import trio

from ._aggregator import BatchResultAggregator
from ._aio import service_loop
from ._blame import lone_errors_bare
from ._context import batch_context
from ._encoding import encode_list, encode_result
from ._errors import PoisonMessage, printable, words
from ._letters import dead_letter_headers, stations_with
from ._reader import Reader, name_of
from ._records import Verdict
from ._settings import InputLimits, KafkaSettings
from ._stations import batch_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ._kafka import Kafka, Record
    from ._reader import MessageParser
    from ._records import BatchReport

logger = logging.getLogger("trioagg")

_COMMIT_SECONDS: Final = 0.2
_LOOK_SECONDS: Final = 0.1
_REVOKE_SECONDS: Final = 5.0
_END_SECONDS: Final = 15.0
_AGAIN: Final = (Verdict.FAILED, Verdict.TIMED_OUT, Verdict.CANCELLED, Verdict.SKIPPED)


@dataclass(slots=True, kw_only=True)
class Replayed:
    """What a replay has done so far, or would do."""

    letters: int = 0
    """Messages of the topic that were looked at."""
    unreadable: int = 0
    """Those that are poison still, and those below the first offset: they count as done."""
    batches: int = 0
    """Batches that were run again, and are up."""
    stations: int = 0
    """Stations that were run again."""
    succeeded: int = 0
    """Those of them that have answered, with a result or with none."""
    failed_again: int = 0
    """Those that did not.  Of a letter they become another one, for the next time."""
    total: int = 0
    """Where the topic ended when it began, all partitions together; an earlier run may have done some of that."""


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


def _original_of(record: Record, *, only_failed: bool) -> Original | None:
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


class _Lists:
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


async def replay(
    callback: Callable[[str, Any], Any],
    from_topic: str,
    *,
    result_topic: str | None = None,
    batch_upload_handler: Callable[[str, list[dict[str, Any]]], Any] | None = None,
    report_handler: Callable[[BatchReport], Any] | None = None,
    bootstrap_servers: str = "localhost:9092",
    group_id: str | None = None,
    only_failed: bool = True,
    partition: int | None = None,
    first_offset: int = 0,
    last_offset: int | None = None,
    dry_run: bool = False,
    message_parser: MessageParser | None = None,
    kafka: KafkaSettings | None = None,
    connect_timeout: float = 15.0,
    progress: Callable[[Replayed], None] = lambda done: None,
    told: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> Replayed:
    """Run the stations of dead letters again, up to where the topic ends now.

    A letter about stations that failed or were late becomes a *supplement*: a list of just these, with the id of their
    batch as its key and the header ``trioagg-supplement: true``.  Any other letter, and any message that is no letter,
    becomes a whole list, ``trioagg-supplement: false``.  Both have ``trioagg-replayed-from``.  What of a letter fails
    again becomes a letter again, behind where the topic ended.  Lists may come twice after a crash, as those of a
    service do at least once.

    Args:
      callback: As the service's.
      from_topic: Where the letters are; or a topic of ordinary messages, whose batches are run again whole.
      result_topic: Where the lists go; beside or instead of the handlers.
      group_id: Remembers what is done; by default ``{from_topic}-replay``.  Never use the group of a service.
      only_failed: False runs all stations of every letter again, and the lists are whole.
      partition: Of *from_topic*; None is all of them.  The others stay as they are.
      first_offset: In that partition, or in each; what is below counts as done.
      last_offset: This one too; None is the end of the topic.
      dry_run: Only say what would be done; nothing is remembered.
      progress: Called after every letter.
      told: Called with a line for every letter of a dry run.
      settings: Those of :class:`BatchResultAggregator`.

    Raises:
      ValueError: if nobody would get the lists, or a value is out of its range.
      ConnectFailed, TopicUnavailable, UploadFailed, KafkaError: as of a service.

    Cancellation: what is not up is not remembered as done.
    """
    from ._kafka import open_kafka

    if not dry_run and result_topic is None and batch_upload_handler is None and report_handler is None:
        await trio.lowlevel.checkpoint()
        raise ValueError("nobody would get the lists: give a result_topic, a batch_upload_handler or a report_handler")
    if first_offset < 0 or (last_offset is not None and last_offset < first_offset):
        await trio.lowlevel.checkpoint()
        raise ValueError(f"first_offset={first_offset!r}, last_offset={last_offset!r}: that is no range")
    if result_topic == from_topic:
        await trio.lowlevel.checkpoint()
        raise ValueError(f"result_topic={result_topic!r} is what is read")
    done = Replayed()
    reader = Reader(message_parser, InputLimits())
    room: list[Callable[[], int]] = [lambda: 0]
    with lone_errors_bare():
        async with open_kafka(
            bootstrap_servers=bootstrap_servers,
            topics=[from_topic],
            group_id=group_id or f"{from_topic}-replay",
            output_topics=[from_topic] if result_topic is None else [from_topic, result_topic],
            transactional=False,
            # Its own beginning and its own membership, whatever those of the service are.
            settings=replace(kafka or KafkaSettings(), start_offset="earliest", group_instance_id=None),
            connect_timeout=connect_timeout,
            revoke_timeout=_REVOKE_SECONDS,
            commit_interval=_COMMIT_SECONDS,
            max_uncommitted=1000,
            room=lambda: room[0](),
            dropped=lambda claims: None,
        ) as client:
            ends = await client.ends()
            done.total = sum(ends.values())

            if partition is not None and (from_topic, partition) not in ends:
                raise ValueError(f"partition={partition}: topic {from_topic!r} has {len(ends)}, the first one is 0")

            def not_now(record: Record) -> bool:
                end = ends.get((record.topic, record.partition), 0)
                elsewhere = partition is not None and record.partition != partition
                return elsewhere or record.offset >= end or (last_offset is not None and record.offset > last_offset)

            async def until_read() -> None:  # noqa: ASYNC910 - it looks first
                while not client.has_read(ends) or client.records.statistics().current_buffer_used:  # noqa: ASYNC110 - the client tells nobody where it is
                    await trio.sleep(_LOOK_SECONDS)
                client.stop_fetching()

            async with (
                BatchResultAggregator(
                    callback,
                    batch_upload_handler,
                    report_handler=report_handler,
                    sink=None if result_topic is None else _Lists(result_topic, client),
                    **settings,
                ) as aggregator,
                trio.open_nursery() as nursery,
            ):
                room[0] = lambda: aggregator.room
                client.wake()
                service_loop.set(client.loop)
                nursery.start_soon(until_read, name="trioagg replay ends")
                async for record in client.records:
                    if not_now(record):
                        client.discard(record)
                        continue
                    done.letters += 1
                    original = None if record.offset < first_offset else _original_of(record, only_failed=only_failed)
                    stations = None if original is None else _stations_of(reader, record, original)
                    if original is None or not stations:
                        done.unreadable += 1
                        client.discard(record) if dry_run else client.finish(record)
                    elif dry_run:
                        client.discard(record)
                        done.batches += 1
                        done.stations += len(stations)
                        told(f"{name_of(record)}: batch {original.batch_id}, {', '.join(map(printable, stations))}")
                    else:
                        await _run(client, aggregator, nursery, record, original, stations, done, progress)
                    progress(done)
            await client.close(_END_SECONDS)
    return done


def _stations_of(reader: Reader, record: Record, original: Original) -> Mapping[str, Any] | None:
    try:
        stations = reader.read(original)
    except PoisonMessage as error:
        logger.warning("%s is poison still: %s", name_of(record), error.reason)
        return None
    if original.stations is None:
        return stations
    return {station_id: value for station_id, value in stations.items() if printable(station_id) in original.stations}


async def _run(
    client: Kafka,
    aggregator: BatchResultAggregator[Any],
    nursery: trio.Nursery,
    record: Record,
    original: Original,
    stations: Mapping[str, Any],
    done: Replayed,
    progress: Callable[[Replayed], None],
) -> None:
    from ._kafka import Message

    up = trio.Event()
    fates: list[bool] = []

    def when_done(is_up: bool) -> None:
        fates.append(is_up)
        up.set()

    batch = await aggregator.admit(
        original.batch_id,
        stations,
        when_done=when_done,
        topic=original.topic,
        partition=original.partition,
        offset=original.offset,
        timestamp=None if original.timestamp_ms is None else original.timestamp_ms / 1000,
        key=record.key,
        headers=record.headers,
        source=(record, original),
    )

    async def see_to_its_end() -> None:
        await up.wait()
        report = batch.report
        if report is None or not fates[0]:
            client.discard(record)
            return
        again = stations_with(report, _AGAIN)
        done.batches += 1
        done.stations += report.expected
        done.succeeded += report.succeeded + report.no_output
        done.failed_again += len(again)
        if again and original.service is not None:
            headers = dead_letter_headers(
                original, "stations", original.service, error=report.first_error, report=report, stations=again
            )
            await client.send([Message(record.topic, record.key, record.value, headers)])
        client.finish(record)
        client.wake()
        progress(done)

    nursery.start_soon(see_to_its_end, name=f"trioagg replay {original.batch_id}")
