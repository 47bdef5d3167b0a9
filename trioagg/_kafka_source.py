"""The consuming half of the bridge: messages out, as many as there is room for.

``_aio`` marks an asyncio-flavoured function.
"""
# flake8: noqa: ASYNC910, ASYNC911, ASYNC913 - asyncio knows no checkpoints

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from typing import TYPE_CHECKING, Any, Final

import aiokafka
import aiokafka.errors
import trio
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from ._kafka_beginnings import Beginnings
from ._kafka_claims import Claim, Record
from ._kafka_connect import RETRY_BACKOFF_SECONDS, is_reachable_aio, look_for_topic_aio
from ._kafka_group import REVOKE_RESERVE_SECONDS, Group, end_transactors_aio
from ._kafka_tasks import Tasks, ended_aio, set_aio, stopped_aio, unhurried_aio

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from ._kafka_absence import Absence
    from ._kafka_connect import Address
    from ._observer import Observer

logger = logging.getLogger("trioagg")

# What asks for none of the partitions still counts as a poll.
_NO_PARTITION: Final = aiokafka.TopicPartition("__none__", 0)
_POLL_SECONDS: Final = 0.1
_LOOK_AROUND_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 3.0
_MAX_POLL_INTERVAL_SECONDS: Final = 3600.0
_LEAST_PARTITION_BYTES, _MOST_PARTITION_BYTES = 64 * 1024, 8 * 1024 * 1024


class Source:
    """Consumes.

    Args:
      partitions: Of every topic, as they were when the service started.
      output_topics: Outputs go there together with offsets, by a transactional producer for every claim; None where
        there are no transactions.
      room: How many messages more the other side would take now, beside those that wait in the channel.
      fail: Told of an error that ends everything.

    The other parameters are those of :class:`Group`.
    """

    def __init__(
        self,
        address: Address,
        absence: Absence,
        observer: Observer,
        partitions: Mapping[str, Sequence[int]],
        *,
        group_id: str,
        revoke_timeout: float,
        commit_interval: float,
        max_uncommitted: int,
        output_topics: Collection[str] | None,
        room: Callable[[], int],
        dropped: Callable[[Collection[Claim]], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._address, self._absence, self._observer, self._room = address, absence, observer, room
        self._topics = list(partitions)
        known_at_start = self._known_at_start = {
            (topic, number) for topic, numbers in partitions.items() for number in numbers
        }
        self._partitions_at_start = max(1, len(known_at_start))
        self._max_uncommitted = max_uncommitted
        self._rebalance_seconds = revoke_timeout + REVOKE_RESERVE_SECONDS
        self.group = Group(
            group_id,
            absence,
            observer,
            revoke_timeout=revoke_timeout,
            commit_interval=commit_interval,
            max_uncommitted=max_uncommitted,
            dropped=dropped,
            discard_waiting=self._discard_waiting,
            changed=self.wake,
            claimed=lambda claims: self.beginnings.claimed(claims),
            fail=fail,
        )
        # Unbounded, for it must never be waited for; room() is the bound.
        self._out, self.records = trio.open_memory_channel[Record](math.inf)
        self._woken = asyncio.Event()
        self._stopping = False
        self._just_served: set[Any] = set()
        self._tasks = Tasks(fail)
        self.beginnings = Beginnings(
            address,
            self.group,
            self._tasks,
            known_at_start=known_at_start,
            output_topics=output_topics,
            begun=self.wake,
        )
        self._pump: asyncio.Task[None] | None = None
        self._commits: asyncio.Task[None] | None = None
        self._poll_began: float | None = None
        self.wedged_seconds = self._rebalance_seconds + address.settings.session_timeout
        """Without progress for so long, though Kafka answers, a client is made anew."""
        self.rebuilds = 0
        self._consumer: Any = None
        self.delivered = self.already_done = 0

    # Trio's side.

    def wake(self) -> None:
        self._woken.set()

    def stop_fetching(self) -> None:
        self._stopping = True
        self._discard_waiting()
        self._out.close()
        self._woken.set()

    def lag(self, partition: Any, claim: Claim) -> int | None:
        """Messages between our position and the end of the partition, as the last fetch saw it."""
        end = self.group.member.end_of(partition)
        return None if end is None or claim.position is None else max(0, end - claim.position)

    def _discard_waiting(self) -> None:
        # What nobody has taken out of the channel has not been begun.
        while True:
            try:
                record = self.records.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                return
            self.group.discard(record)

    # Life.

    async def start_aio(self) -> None:
        self._consumer = self.group.member.consumer = self._new_consumer(self._address.reached)
        await unhurried_aio(self._consumer.start())
        self._go()
        self._tasks.start(self._look_around_aio(), "look around")

    def _go(self) -> None:
        self._consumer.subscribe(topics=self._topics, listener=self.group)
        self._pump = self._tasks.start(self._pump_aio(), "pump")
        self._commits = self._tasks.start(self.group.commits.now_and_then_aio(), "commits")

    def _new_consumer(self, bootstrap_servers: str) -> Any:
        settings = self._address.settings
        # The client fetches ahead for every assigned partition, and holds one answer while it asks for the next.
        fetch = settings.max_fetch_bytes // (2 * self._partitions_at_start)
        # The assignor keeps its memory in the class: one of our own, else two members of one process share it.
        assignor = type("Sticky", (StickyPartitionAssignor,), {})
        return aiokafka.AIOKafkaConsumer(
            **self._address.client(bootstrap_servers),
            group_id=self.group.member.group_id,
            group_instance_id=settings.group_instance_id,
            enable_auto_commit=False,
            auto_offset_reset="none",  # both cases come to us as errors, and we decide, log and count
            isolation_level=settings.isolation_level,
            session_timeout_ms=round(settings.session_timeout * 1000),
            heartbeat_interval_ms=round(settings.heartbeat_interval * 1000),
            rebalance_timeout_ms=round(self._rebalance_seconds * 1000),
            max_poll_interval_ms=round(_MAX_POLL_INTERVAL_SECONDS * 1000),
            partition_assignment_strategy=(assignor,),
            max_partition_fetch_bytes=max(_LEAST_PARTITION_BYTES, min(_MOST_PARTITION_BYTES, fetch)),
            fetch_max_bytes=settings.max_fetch_bytes,
        )

    async def end_aio(self, *, commit: bool, seconds: float) -> bool:
        """Leave the group, after a last commit or without one.  Says whether the consumer ended in good order.

        Takes *seconds* at most, and a second or two for what does not even end when it is cancelled.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds

        def left(share: float) -> float:
            return max(0.05, (deadline - loop.time()) * share)

        self.stop_fetching()
        self.group.end_waiting(commit=commit)
        if self._pump is not None:
            # It ends by itself, but where its poll waits for a rebalance to end.
            await ended_aio(self._pump, 0.0 if self.group.rebalancing else min(4 * _POLL_SECONDS, left(0.3)))
        if commit and self._consumer is not None:
            last = asyncio.create_task(self.group.commits.commit_aio(everything=True))
            if not await ended_aio(last, left(0.6)) or not last.result():
                logger.error("the last commit was not acknowledged: some batches will be processed again")
        await self._tasks.cancel_aio(max(1.0, left(0.5)))  # producers that are just being made are stopped first
        self.group.commits.release()
        claims = list(self.group.claims.values())
        self.group.close_claims()
        await end_transactors_aio(claims)
        if self._consumer is None:
            return True
        stop = asyncio.create_task(self._consumer.stop())
        if await ended_aio(stop, left(0.15 if self.group.rebalancing else 0.5), cancel=False):
            return True
        # It waits for a join or for an answer that does not come, or it fell over half-way.
        if not stop.done():
            await self.group.member.leave_aio(left(0.4))
            if await ended_aio(stop, left(0.5)):
                return True
        await ended_aio(asyncio.create_task(self._consumer._client.close()), left(0.9))
        return False

    @property
    def client(self) -> Any:
        """What is to be abandoned if it does not end."""
        return getattr(self._consumer, "_client", None)

    async def ends_aio(self) -> dict[tuple[str, int], int]:
        """Where the partitions of the topics end now."""
        partitions = [aiokafka.TopicPartition(topic, number) for topic, number in self._known_at_start]
        found = await self._consumer.end_offsets(partitions)
        return {(partition.topic, partition.partition): end for partition, end in found.items()}

    async def _look_around_aio(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        answers_since: float | None = None
        while True:
            await asyncio.sleep(_LOOK_AROUND_SECONDS)
            answers_since = await self._look_for_progress_aio(answers_since)
            if not self.group.rebalancing:
                began = loop.time()
            elif not self.group.claims:
                logger.info("waiting to join group %s (%.0f s)", self.group.member.group_id, loop.time() - began)
            for topic in self._topics:
                # The client goes on without a topic that is deleted, and says nothing.
                if not self._consumer.partitions_for_topic(topic):
                    gone = await look_for_topic_aio(self._address, topic, self._address.settings.request_timeout)
                    if gone is not None:
                        raise gone

    async def _look_for_progress_aio(self, answers_since: float | None) -> float | None:
        """Make a wedged client anew.  Given and returned: since when Kafka answers others, though not us."""
        now = asyncio.get_running_loop().time()
        committing = self.group.commits.seconds()
        self._absence.noticed(committing, "commits")
        stuck = max(committing, 0.0 if self._poll_began is None else now - self._poll_began)
        # A client whose broker is away only waits: made anew, it would lose what it knows and gain nothing.
        if stuck < 2 * _LOOK_AROUND_SECONDS or not await is_reachable_aio(self._address):
            return None
        answers_since = now if answers_since is None else answers_since
        if min(stuck, now - answers_since) < self.wedged_seconds:
            return answers_since
        logger.error(
            "the consumer has made no progress for %.0f s, though Kafka answers: it is made anew, and what it had in "
            "flight is processed again",
            stuck,
        )
        await self._rebuild_aio()
        return None

    async def _rebuild_aio(self) -> None:
        self.rebuilds += 1
        for task in (self._pump, self._commits):
            if task is not None:
                await ended_aio(task, 0.0)
        await self.group.begin_anew_aio()
        await stopped_aio(self._consumer, _STOP_SECONDS)
        while not self._stopping:
            self._consumer = self.group.member.consumer = self._new_consumer(self._address.bootstrap_servers)
            try:
                await unhurried_aio(self._consumer.start())
                break
            except aiokafka.errors.KafkaConnectionError:
                await stopped_aio(self._consumer, _STOP_SECONDS)
                await asyncio.sleep(RETRY_BACKOFF_SECONDS)
        if not self._stopping:
            self._poll_began = None
            self._go()

    # Messages out.

    async def _pump_aio(self) -> None:
        while not self._stopping:
            self._woken.clear()
            limit = self._room() - self.records.statistics().current_buffer_used
            wanted = self._wanted() if limit > 0 else []
            if not wanted:
                await self._poll_aio([_NO_PARTITION], 0, None)
                await set_aio(self._woken, _POLL_SECONDS)
                continue
            # The client empties one partition after the other: where there is room for a part only, those go first
            # that were not served the last time.
            others = [partition for partition in wanted if partition not in self._just_served]
            count = await self._poll_aio(others, 0, limit) if self._just_served and others else 0
            if not count:
                self._just_served.clear()
                count = await self._poll_aio(wanted, _POLL_SECONDS, limit)
            if count < limit:
                self._just_served.clear()

    def _wanted(self) -> list[Any]:
        return [
            partition
            for partition, claim in self.group.claims.items()
            if claim.state == "open"
            and not (claim.starting or claim.lost or claim.narrow)
            and claim.watermark.uncommitted < self._max_uncommitted
        ]

    async def _poll_aio(self, partitions: Sequence[Any], seconds: float, limit: int | None) -> int:
        # Never cancelled while the service lives: a cancelled getmany leaks.  And nothing is awaited between its
        # return and the hand-over: the position has moved already.
        self._poll_began = asyncio.get_running_loop().time()
        try:
            found = await self._consumer.getmany(*partitions, timeout_ms=round(seconds * 1000), max_records=limit)
        except aiokafka.errors.NoOffsetForPartitionError as error:
            self.beginnings.begin(error.args[0], self._address.settings.start_offset)
            return 0
        except aiokafka.errors.OffsetOutOfRangeError as error:
            for partition, offset in error.args[0].items():
                self.beginnings.out_of_range(partition, offset)
            return 0
        except aiokafka.errors.KafkaError as error:
            if not error.retriable:
                raise
            logger.warning("while fetching: %r; going on", error)
            await asyncio.sleep(RETRY_BACKOFF_SECONDS)
            return 0
        finally:
            self._poll_began = None
        for partition, messages in found.items():
            self._deliver(partition, messages)
        return sum(len(messages) for messages in found.values())

    def _deliver(self, partition: Any, messages: Sequence[Any]) -> None:
        claim = self.group.claims.get(partition)
        if not self._out.statistics().open_receive_channels:
            self._stopping = True  # the other side has closed it: it wants no more
        if self._stopping or claim is None or claim.state != "open" or claim.starting:
            # A poll that waited for a rebalance answers out of the next assignment, for which nobody has asked yet.
            # Nobody gets them, so the position, which may be committed, must not be behind them.
            with contextlib.suppress(aiokafka.errors.IllegalStateError):
                self._consumer.seek(partition, messages[0].offset)
            return
        self._just_served.add(partition)
        self._observer.fetched(partition.topic, partition.partition, messages[0].offset, messages[-1].offset)
        deliver, send = claim.watermark.deliver, self._out.send_nowait
        done_before = claim.done_before
        for got in messages:
            deliver(got.offset)
            if done_before and got.offset in done_before:
                claim.watermark.finish(got.offset)
                self.already_done += 1
                continue
            timestamp = got.timestamp if got.timestamp is not None and got.timestamp >= 0 else None
            send(Record(got.topic, got.partition, got.offset, timestamp, got.key, got.value, got.headers, claim))
        claim.position = messages[-1].offset + 1
        self.delivered += len(messages)
