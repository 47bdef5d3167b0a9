"""Dead letters, run again: just the stations that the letter is about, into a supplement of their batch's list.

A letter holds its message as it came, so that this needs nothing but the letters.  What is done is remembered in a
group of its own, and never in that of the service.  What fails again becomes a letter again, behind the others: so a
second run does only that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import trio

from ._aggregator import BatchResultAggregator
from ._aio import service_loop
from ._blame import lone_errors_bare
from ._errors import printable
from ._letters import stations_with
from ._reader import Reader, name_of
from ._records import Verdict
from ._replay_letters import Lists, letter_again, original_of, stations_of
from ._settings import InputLimits, KafkaSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from ._batch import Batch
    from ._kafka import Kafka, Record
    from ._reader import MessageParser
    from ._records import BatchReport
    from ._replay_letters import Original

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
      dry_run: Only say what would be done.  The group is not joined, and nothing is remembered.
      progress: Called after every letter.
      told: Called with a line for every letter of a dry run.
      settings: Those of :class:`BatchResultAggregator`.

    Raises:
      ValueError: if nobody would get the lists, or a value is out of its range.
      ConnectFailed, TopicUnavailable, UploadFailed, KafkaError: as of a service.

    Cancellation: what is not up is not remembered as done.
    """
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
    room: list[Callable[[], int]] = [lambda: 0]
    opened = _open_kafka(
        topic=from_topic,
        bootstrap_servers=bootstrap_servers,
        group_id=group_id or f"{from_topic}-replay",
        output_topics=[from_topic] if result_topic is None else [from_topic, result_topic],
        # Its own beginning and its own membership, whatever those of the service are.
        settings=replace(kafka or KafkaSettings(), start_offset="earliest", group_instance_id=None),
        connect_timeout=connect_timeout,
        room=lambda: room[0](),
        joins=not dry_run,
    )
    with lone_errors_bare():
        async with opened as client:
            ends = await client.ends()
            done.total = sum(ends.values())
            if partition is not None and (from_topic, partition) not in ends:
                raise ValueError(f"partition={partition}: topic {from_topic!r} has {len(ends)}, the first one is 0")
            sink = None if result_topic is None else Lists(result_topic, client)
            async with (
                BatchResultAggregator(
                    callback, batch_upload_handler, report_handler=report_handler, sink=sink, **settings
                ) as aggregator,
                trio.open_nursery() as nursery,
            ):
                room[0] = lambda: aggregator.room
                client.wake()
                service_loop.set(client.loop)
                nursery.start_soon(_stop_at, ends, client, name="trioagg replay ends")
                meant = _Range(ends, partition, first_offset, last_offset)
                walk = _Walk(client, meant, Reader(message_parser, InputLimits()), done, only_failed=only_failed)
                if dry_run:
                    await walk.say_all(told, progress)
                else:
                    await walk.run_all(aggregator, nursery, progress)
            if not dry_run:
                await client.close(_END_SECONDS)
    return done


def _open_kafka(*, topic: str, **settings: Any) -> AbstractAsyncContextManager[Kafka]:
    from ._kafka import open_kafka

    return open_kafka(
        topics=[topic],
        transactional=False,
        revoke_timeout=_REVOKE_SECONDS,
        commit_interval=_COMMIT_SECONDS,
        max_uncommitted=1000,
        dropped=lambda claims: None,
        **settings,
    )


async def _stop_at(ends: Mapping[tuple[str, int], int], client: Kafka) -> None:  # noqa: ASYNC910 - it looks first
    while not client.has_read(ends) or client.records.statistics().current_buffer_used:  # noqa: ASYNC110 - the client tells nobody where it is
        await trio.sleep(_LOOK_SECONDS)
    client.stop_fetching()


@dataclass(frozen=True, slots=True)
class _Range:
    """Which letters are meant."""

    ends: Mapping[tuple[str, int], int]
    partition: int | None
    first_offset: int
    last_offset: int | None

    def leaves_out(self, record: Record) -> bool:
        """Whether a letter stays as it is; what is below the first offset does not, it counts as done."""
        return (
            (self.partition is not None and record.partition != self.partition)
            or record.offset >= self.ends.get((record.topic, record.partition), 0)
            or (self.last_offset is not None and record.offset > self.last_offset)
        )


class _Walk:
    """Once through the letters, to run them or only to say what is in them."""

    def __init__(self, client: Kafka, meant: _Range, reader: Reader, done: Replayed, *, only_failed: bool) -> None:
        self._client, self._meant, self._reader, self._done = client, meant, reader, done
        self._only_failed = only_failed

    async def say_all(self, told: Callable[[str], None], progress: Callable[[Replayed], None]) -> None:
        async for record in self._client.records:
            self._client.discard(record)
            if self._meant.leaves_out(record):
                continue
            if found := self._found(record):
                original, stations = found
                self._done.batches += 1
                self._done.stations += len(stations)
                told(f"{name_of(record)}: batch {original.batch_id}, {', '.join(map(printable, stations))}")
            progress(self._done)

    async def run_all(
        self, aggregator: BatchResultAggregator[Any], nursery: trio.Nursery, progress: Callable[[Replayed], None]
    ) -> None:
        async for record in self._client.records:
            if self._meant.leaves_out(record):
                self._client.discard(record)
                continue
            if found := self._found(record):
                end = await self._admit(aggregator, record, *found)
                nursery.start_soon(self._see_to, end, progress, name=f"trioagg replay {end.original.batch_id}")
            else:
                self._client.finish(record)
            progress(self._done)

    def _found(self, record: Record) -> tuple[Original, Mapping[str, Any]] | None:
        """A letter's message and its stations, where there are any; it is counted."""
        self._done.letters += 1
        if record.offset >= self._meant.first_offset:
            original = original_of(record, only_failed=self._only_failed)
            stations = None if original is None else stations_of(self._reader, record, original)
            if original is not None and stations:
                return original, stations
        self._done.unreadable += 1
        return None

    async def _admit(
        self, aggregator: BatchResultAggregator[Any], record: Record, original: Original, stations: Mapping[str, Any]
    ) -> _End:
        end = _End(record, original)
        end.batch = await aggregator.admit(
            original.batch_id,
            stations,
            when_done=end.when_done,
            topic=original.topic,
            partition=original.partition,
            offset=original.offset,
            timestamp=None if original.timestamp_ms is None else original.timestamp_ms / 1000,
            key=record.key,
            headers=record.headers,
            source=(record, original),
        )
        return end

    async def _see_to(self, end: _End, progress: Callable[[Replayed], None]) -> None:
        await end.known.wait()
        report, record = end.batch.report, end.record
        if report is None or not end.is_up:
            self._client.discard(record)
            return
        again = stations_with(report, _AGAIN)
        self._done.batches += 1
        self._done.stations += report.expected
        self._done.succeeded += report.succeeded + report.no_output
        self._done.failed_again += len(again)
        if again and end.original.service is not None:
            await self._client.send([letter_again(end.record, end.original, report, again)])
        self._client.finish(record)
        self._client.wake()
        progress(self._done)


class _End:
    """How a batch ends that is run again."""

    batch: Batch

    def __init__(self, record: Record, original: Original) -> None:
        self.record, self.original = record, original
        self.known, self.is_up = trio.Event(), False

    def when_done(self, is_up: bool) -> None:
        self.is_up = is_up
        self.known.set()
