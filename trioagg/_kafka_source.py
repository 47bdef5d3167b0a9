"""The consuming half of the bridge: records out, offsets back, and what a rebalance asks of both.

asyncio-flavoured inside; what Trio's side calls is synchronous and touches plain memory, for both live in one thread.
``_aio`` marks an asyncio-flavoured function.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiokafka
import aiokafka.errors
import trio
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.protocol.group import LeaveGroupRequest

from ._kafka_connect import RETRY_BACKOFF_SECONDS, abandon, ended_aio, look_for_topic_aio, unhurried_aio
from ._watermark import Watermark

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence

    from ._kafka_connect import Address

logger = logging.getLogger("trioagg")

# What asks for none of the partitions still counts as a poll.
_NO_PARTITION: Final = aiokafka.TopicPartition("__none__", 0)
_POLL_SECONDS: Final = 0.1
_LOOK_AROUND_SECONDS: Final = 5.0
_MAX_POLL_INTERVAL_SECONDS: Final = 3600.0
REVOKE_COMMIT_SECONDS: Final = 10.0
"""For the commit at the end of a revoke, after the time for the batches themselves."""
_REVOKE_RESERVE_SECONDS: Final = REVOKE_COMMIT_SECONDS + 5.0
_LEAST_PARTITION_BYTES, _MOST_PARTITION_BYTES = 64 * 1024, 8 * 1024 * 1024


class Claim:
    """One assignment of one partition: open, then revoking, then closed.  The same partition comes back as another."""

    __slots__ = ("lost", "partition", "position", "starting", "state", "topic", "watermark")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic, self.partition = topic, partition
        self.state = "open"
        self.watermark = Watermark()
        self.position: int | None = None
        """The next offset that can come, as far as anybody looked."""
        self.starting = False
        """Its start offset is being looked for."""
        self.lost = False
        """Somebody else may have it: nothing is committed any more."""

    @property
    def live(self) -> bool:
        """Whether its records may still be begun."""
        return self.state == "open"

    def __repr__(self) -> str:
        return f"<Claim {self.topic}/{self.partition} {self.state}>"


@dataclass(slots=True, eq=False)
class Record:
    """One message as delivered."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    claim: Claim


class Source:
    """Consumes, commits, and gives partitions back in good order.

    Args:
      partitions: Of every topic, as they were when the service started.
      room: How many records more the other side would take now, beside those that wait in the channel.
      dropped: Told, synchronously, which claims ended with something unfinished.
      fail: Told of an error that ends everything.
    """

    def __init__(
        self,
        address: Address,
        partitions: Mapping[str, Sequence[int]],
        *,
        group_id: str,
        revoke_timeout: float,
        commit_interval: float,
        max_uncommitted: int,
        room: Callable[[], int],
        dropped: Callable[[Collection[Claim]], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._address, self._topics, self._group_id = address, list(partitions), group_id
        self._known_at_start = {(topic, number) for topic, numbers in partitions.items() for number in numbers}
        self._revoke_timeout, self._commit_interval = revoke_timeout, commit_interval
        self._max_uncommitted, self._room, self._dropped, self._fail = max_uncommitted, room, dropped, fail
        self._out, self.records = trio.open_memory_channel[Record](math.inf)
        self._consumer: Any = None
        self._claims: dict[Any, Claim] = {}
        self._rebalancing = True
        self._stopping = False
        """No new records."""
        self._closing = False
        """Nothing is waited for any more."""
        self._commit_at_end = False
        # An asyncio.Event is cheap to set from Trio's side: it costs a crossing only where somebody waits for it.
        self._woken, self._commit_wanted, self._drained = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._committing = asyncio.Lock()
        self._commit_waiters: list[trio.Event] = []
        self._just_served: set[Any] = set()
        self._pump: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.delivered = self.commits = self.rebalances = self.late = self.dropped_records = self.resets = 0

    # Trio's side.

    def finish(self, record: Record) -> None:
        claim = record.claim
        if claim.state == "closed":
            self.late += 1
            return
        mark = claim.watermark
        if not mark.finish(record.offset):
            return
        if claim.state == "revoking":
            self._look_if_drained(mark)
        elif mark.uncommitted * 2 >= self._max_uncommitted and mark.committable is not None:
            self._commit_wanted.set()

    def discard(self, record: Record) -> None:
        claim = record.claim
        if claim.state != "closed" and claim.watermark.discard(record.offset):
            self._look_if_drained(claim.watermark)

    def wake(self) -> None:
        self._woken.set()

    def stop_fetching(self) -> None:
        self._stopping = True
        self._discard_waiting()
        self._out.close()
        self._woken.set()

    def ask_for_commit(self) -> trio.Event:
        """An event that is set when what can be committed now has been tried."""
        done = trio.Event()
        self._commit_waiters.append(done)
        self._commit_wanted.set()
        return done

    def release(self) -> None:
        """Nobody will commit any more: let those go who wait for it."""
        for waiter in self._commit_waiters:
            waiter.set()
        self._commit_waiters.clear()

    @property
    def assigned(self) -> Iterable[Claim]:
        return self._claims.values()

    def lag(self, claim: Claim) -> int | None:
        """Records behind the end of the partition, as the last fetch saw it."""
        end = self._end_of(aiokafka.TopicPartition(claim.topic, claim.partition))
        return None if end is None or claim.position is None else max(0, end - claim.position)

    def _end_of(self, partition: Any) -> int | None:
        try:
            end: int | None = self._consumer.highwater(partition)
        except AssertionError:  # not assigned any more
            return None
        return end

    def _look_if_drained(self, mark: Watermark) -> None:
        if not mark.in_flight:
            self._drained.set()

    def _discard_waiting(self) -> None:
        # What nobody has taken out of the channel has not been begun.
        while True:
            try:
                record = self.records.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                return
            self.discard(record)

    # Life.

    async def start_aio(self) -> None:
        settings = self._address.settings
        count = max(1, len(self._known_at_start))
        # The client fetches ahead for every assigned partition, and holds one answer while it asks for the next.
        fetch = max(_LEAST_PARTITION_BYTES, min(_MOST_PARTITION_BYTES, settings.max_fetch_bytes // (2 * count)))
        # The assignor keeps its memory in the class: one of our own, else two members of one process share it.
        assignor = type("Sticky", (StickyPartitionAssignor,), {})
        self._consumer = aiokafka.AIOKafkaConsumer(
            **self._address.client(self._address.reached),
            group_id=self._group_id,
            group_instance_id=settings.group_instance_id,
            enable_auto_commit=False,
            # None: both cases come to us as errors, and we decide, log and count.
            auto_offset_reset="none",
            isolation_level=settings.isolation_level,
            session_timeout_ms=round(settings.session_timeout * 1000),
            heartbeat_interval_ms=round(settings.heartbeat_interval * 1000),
            rebalance_timeout_ms=round((self._revoke_timeout + _REVOKE_RESERVE_SECONDS) * 1000),
            max_poll_interval_ms=round(_MAX_POLL_INTERVAL_SECONDS * 1000),
            partition_assignment_strategy=(assignor,),
            max_partition_fetch_bytes=fetch,
            fetch_max_bytes=settings.max_fetch_bytes,
        )
        await unhurried_aio(self._consumer.start())
        self._consumer.subscribe(topics=self._topics, listener=_Listener(self))
        self._pump = self._spawn(self._pump_aio(), "pump")
        self._spawn(self._commits_aio(), "commits")
        self._spawn(self._look_around_aio(), "look around")

    async def end_aio(self, *, commit: bool, seconds: float) -> None:
        """Leave the group, after a last commit or without one.  Never longer than *seconds*, whatever Kafka does."""
        deadline = asyncio.get_running_loop().time() + seconds

        def left(share: float = 1.0) -> float:
            return max(0.05, (deadline - asyncio.get_running_loop().time()) * share)

        if not self._stopping:
            self.stop_fetching()
        self._closing, self._commit_at_end = True, commit
        for event in (self._woken, self._drained):
            event.set()
        if self._pump is not None:
            # It ends by itself, but where its poll waits for a rebalance to end.
            await ended_aio(self._pump, 0.0 if self._rebalancing else min(4 * _POLL_SECONDS, left(0.3)))
        if commit and self._consumer is not None:
            last = asyncio.create_task(self._commit_aio())
            if not await ended_aio(last, left(0.6)) or last.exception() is not None or not last.result():
                logger.error("the last commit was not acknowledged: some batches will be processed again")
        for task in list(self._tasks):
            await ended_aio(task, 0)
        self.release()
        for claim in self._claims.values():
            claim.state = "closed"
        if self._consumer is None:
            return
        stop = asyncio.create_task(self._consumer.stop())
        in_time = await ended_aio(stop, left(0.5), cancel=False)
        if not in_time or stop.cancelled() or stop.exception() is not None:
            if stop.done():
                import traceback

                print("STOP", stop)
                stop.print_stack()
            # It waits for a rebalance to end, or for an answer that does not come; or it fell over half-way.
            await self._leave_aio(left(0.5))
            await ended_aio(stop, 0)
            await ended_aio(asyncio.create_task(self._consumer._client.close()), left())
            abandon(self._consumer._client)

    async def _leave_aio(self, seconds: float) -> None:
        # A member that vanishes in mid-join is waited for by all the others until its session ends.  Not on its own
        # connection: there the broker reads nothing before it has answered the join.
        coordinator = getattr(self._consumer, "_coordinator", None)
        member, node = getattr(coordinator, "member_id", ""), getattr(coordinator, "coordinator_id", None)
        if not member or node is None or self._address.settings.group_instance_id is not None:
            return
        client = self._consumer._client
        request = LeaveGroupRequest(self._group_id, member)
        await ended_aio(asyncio.create_task(client.send(node, request)), seconds)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"trioagg {name}")
        self._tasks.add(task)
        task.add_done_callback(self._one_ended)
        return task

    def _one_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            assert error is not None
            self._fail(error)

    # Records out.

    async def _pump_aio(self) -> None:
        while not self._stopping:
            self._woken.clear()
            limit = self._room() - self.records.statistics().current_buffer_used
            wanted = self._wanted() if limit > 0 else []
            if not wanted:
                await self._poll_aio([_NO_PARTITION], 0, None)
                await _set_aio(self._woken, _POLL_SECONDS)
                continue
            others = [partition for partition in wanted if partition not in self._just_served]
            count = 0
            if self._just_served and others:
                count = await self._poll_aio(others, 0, limit)
            if not count:
                self._just_served.clear()
                count = await self._poll_aio(wanted, _POLL_SECONDS, limit)
            if count < limit:
                self._just_served.clear()

    def _wanted(self) -> list[Any]:
        return [
            partition
            for partition, claim in self._claims.items()
            if claim.state == "open"
            and not (claim.starting or claim.lost)
            and claim.watermark.uncommitted < self._max_uncommitted
        ]

    async def _poll_aio(self, partitions: Sequence[Any], seconds: float, limit: int | None) -> int:
        # Never cancelled while the service lives: a cancelled getmany leaks.  And nothing is awaited between its
        # return and the hand-over: the position has moved already.
        try:
            found = await self._consumer.getmany(*partitions, timeout_ms=round(seconds * 1000), max_records=limit)
        except aiokafka.errors.NoOffsetForPartitionError as error:
            self._begin(error.args[0], self._address.settings.start_offset)
            return 0
        except aiokafka.errors.OffsetOutOfRangeError as error:
            for partition, offset in error.args[0].items():
                self._out_of_range(partition, offset)
            return 0
        except aiokafka.errors.KafkaError as error:
            if not error.retriable:
                raise
            logger.warning("while fetching: %r; going on", error)
            await asyncio.sleep(RETRY_BACKOFF_SECONDS)
            return 0
        count = 0
        for partition, records in found.items():
            count += len(records)
            self._deliver(partition, records)
        return count

    def _deliver(self, partition: Any, records: Sequence[Any]) -> None:
        claim = self._claims.get(partition)
        if not self._out.statistics().open_receive_channels:
            self._stopping = True  # the other side has closed it: it wants no more
        if self._stopping or claim is None or claim.state != "open":
            # Nobody gets them, so the position, which may be committed, must not be behind them.
            with contextlib.suppress(aiokafka.errors.IllegalStateError):
                self._consumer.seek(partition, records[0].offset)
            return
        self._just_served.add(partition)
        deliver, send = claim.watermark.deliver, self._out.send_nowait
        for got in records:
            deliver(got.offset)
            timestamp = got.timestamp if got.timestamp is not None and got.timestamp >= 0 else None
            send(Record(got.topic, got.partition, got.offset, timestamp, got.key, got.value, got.headers, claim))
        claim.position = records[-1].offset + 1
        self.delivered += len(records)

    # Where to begin.

    def _begin(self, partition: Any, where: str) -> None:
        claim = self._claims.get(partition)
        if claim is not None and not claim.starting:
            claim.starting = True
            self._spawn(self._begin_aio(partition, claim, where), f"start of {partition.topic}/{partition.partition}")

    async def _begin_aio(self, partition: Any, claim: Claim, where: str) -> None:
        # What appeared after our start was not there when "latest" was said: nothing of it may be missed.
        latest = where == "latest" and (partition.topic, partition.partition) in self._known_at_start
        look = self._consumer.end_offsets if latest else self._consumer.beginning_offsets
        while claim.state == "open" and not self._closing:
            try:
                offset = (await look([partition]))[partition]
            except aiokafka.errors.KafkaError as error:
                logger.warning("start offset of %s/%s: %r; trying again", claim.topic, claim.partition, error)
                await asyncio.sleep(RETRY_BACKOFF_SECONDS)
                continue
            if self._claims.get(partition) is claim and claim.state == "open":
                self._consumer.seek(partition, offset)
                claim.position = offset
                claim.watermark.advance_to(offset)
                claim.starting = False
                if latest:  # at once: after a crash it would be another one
                    self._commit_wanted.set()
                self._woken.set()
            return

    def _out_of_range(self, partition: Any, offset: int) -> None:
        old = self._claims.get(partition)
        if old is None or old.state != "open" or old.starting:
            return
        self.resets += 1
        logger.error(
            "offset %d of %s/%d is not there any more (deleted by retention, or the topic was made anew): "
            "going on with the earliest one; what lies between is lost",
            offset,
            partition.topic,
            partition.partition,
        )
        # Another claim: what is finished under the old one says nothing about the offsets that come now.
        old.state = "closed"
        self._claims[partition] = Claim(partition.topic, partition.partition)
        self._begin(partition, "earliest")

    # Offsets back.

    async def _commits_aio(self) -> None:
        while True:
            await _set_aio(self._commit_wanted, self._commit_interval)
            self._commit_wanted.clear()
            waiters = self._commit_waiters[:]
            await self._commit_aio()
            for waiter in waiters:
                waiter.set()
            self._commit_waiters = [waiter for waiter in self._commit_waiters if not waiter.is_set()]

    async def _commit_aio(self, seconds: float | None = None) -> bool:
        """Commit what is finished.  Says whether nothing is left to be said.

        One at a time, the rebalance listener's included: a commit that is retried across a rebalance would set the
        next owner of the partition back.
        """
        async with self._committing:
            sent: dict[Any, tuple[Claim, int]] = {}
            for partition, claim in list(self._claims.items()):
                offset = await self._committable_aio(partition, claim)
                if offset is not None:
                    sent[partition] = (claim, offset)
            if not sent:
                return True
            commit = self._consumer.commit({partition: offset for partition, (_, offset) in sent.items()})
            task = asyncio.create_task(commit, name="trioagg commit")
            try:
                await asyncio.wait({task}, timeout=seconds)
            finally:
                if not task.done():
                    await ended_aio(task, 0)
            if task.cancelled():
                return False
            error = task.exception()
            if error is None:
                self.commits += 1
                for claim, offset in sent.values():
                    claim.watermark.committed(offset)
                self._woken.set()
                return True
            if isinstance(error, aiokafka.errors.CommitFailedError):
                # The group has gone on without us.  Only an assignment makes us a member again.
                for claim, _ in sent.values():
                    claim.lost = True
                logger.warning("the group went on without this member: its commit was refused (%s)", error.__cause__)
            elif isinstance(error, aiokafka.errors.IllegalStateError) or getattr(error, "retriable", False):
                logger.warning("commit failed, trying again in %g s: %r", self._commit_interval, error)
            else:
                raise error
            return False

    async def _committable_aio(self, partition: Any, claim: Claim) -> int | None:
        if claim.state == "closed" or claim.lost or claim.starting:
            return None
        # Asked only after an answer of the partition's broker: without a position it would be waited for.
        if not claim.watermark.in_flight and self._end_of(partition) is not None:
            with contextlib.suppress(aiokafka.errors.IllegalStateError):
                claim.position = await self._consumer.position(partition)
                claim.watermark.advance_to(claim.position)
        return claim.watermark.committable

    # Rebalances.

    async def revoked_aio(self) -> None:
        claims = list(self._claims.values())
        self._rebalancing = True
        self._just_served.clear()
        if not claims:
            return
        self.rebalances += 1
        for claim in claims:
            if claim.state == "open":
                claim.state = "revoking"
        self._discard_waiting()
        if self._evicted():
            for claim in claims:
                claim.lost = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._revoke_timeout
        while not self._closing and any(claim.watermark.in_flight and not claim.lost for claim in claims):
            self._drained.clear()
            if loop.time() >= deadline:
                break
            await _set_aio(self._drained, deadline - loop.time())
        if (not self._closing or self._commit_at_end) and not await self._commit_aio(REVOKE_COMMIT_SECONDS):
            logger.warning("partitions were given back without a commit: some batches will be processed again")
        for claim in claims:
            claim.state = "closed"
        self._claims.clear()
        unfinished = [claim for claim in claims if claim.watermark.in_flight]
        if unfinished:
            self.dropped_records += sum(claim.watermark.in_flight for claim in unfinished)
            self._dropped(unfinished)

    def assigned_now(self, partitions: Iterable[Any]) -> None:
        self._claims = {partition: Claim(partition.topic, partition.partition) for partition in partitions}
        self._rebalancing = False
        self._woken.set()

    def failed_in_listener(self, error: BaseException) -> None:
        # The client would log it and go on.
        self._fail(error)

    def _evicted(self) -> bool:
        # The client forgets its generation when the coordinator does not know it any more.
        generation = getattr(getattr(self._consumer, "_coordinator", None), "generation", 0)
        return isinstance(generation, int) and generation < 0

    async def _look_around_aio(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            await asyncio.sleep(_LOOK_AROUND_SECONDS)
            if self._rebalancing and not self._claims:
                logger.info("waiting to join group %s (%.0f s)", self._group_id, loop.time() - began)
            elif not self._rebalancing:
                began = loop.time()
            for topic in self._topics:
                if not self._consumer.partitions_for_topic(topic):
                    gone = await look_for_topic_aio(self._address, topic, self._address.settings.request_timeout)
                    if gone is not None:
                        raise gone


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    def __init__(self, source: Source) -> None:
        self._source = source

    async def on_partitions_revoked(self, revoked: Collection[Any]) -> None:
        # All that we have, whatever it says: the protocol is the eager one.
        try:
            await self._source.revoked_aio()
        except Exception as error:
            self._source.failed_in_listener(error)

    async def on_partitions_assigned(self, assigned: Collection[Any]) -> None:
        self._source.assigned_now(assigned)


async def _set_aio(event: asyncio.Event, seconds: float) -> None:
    """Wait for *event*, at most so long."""
    if not event.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
