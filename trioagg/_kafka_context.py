"""Context topics: read from their beginning before anything else is begun, and followed from then on.

Every worker reads them whole, with a consumer of its own that belongs to no group: a join needs all stations, whichever
partitions the worker has.  ``_aio`` marks an asyncio-flavoured function.
"""
# flake8: noqa: ASYNC910, ASYNC911, ASYNC913 - asyncio knows no checkpoints

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

import aiokafka
import aiokafka.errors
from aiokafka.structs import TopicPartition

from ._kafka_connect import RETRY_BACKOFF_SECONDS, WEDGED_RESERVE_SECONDS, is_reachable_aio, look_for_topic_aio
from ._kafka_tasks import Tasks, ended_aio, stopped_aio, unhurried_aio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ._join import Context
    from ._kafka_connect import Address

logger = logging.getLogger("trioagg")

_POLL_SECONDS: Final = 0.5
_TELL_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 3.0
_FETCH_BYTES: Final = 8 * 1024 * 1024
_MOST_NAMES: Final = 10


class ContextReader:
    """Keeps a :class:`Context` up to date.

    Args:
      partitions: Of every context topic.
      fail: Told of an error that ends everything.
    """

    def __init__(
        self,
        address: Address,
        context: Context,
        partitions: Mapping[str, Sequence[int]],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._address, self._context = address, context
        self._partitions = [
            TopicPartition(topic, number) for topic, numbers in partitions.items() for number in numbers
        ]
        self._reached: dict[Any, int] = {}
        """Of every partition, the offset that is handed over next."""
        self._ends: dict[Any, int] = {}
        self._awaited = self._partitions
        self._tasks = Tasks(fail)
        self._following: asyncio.Task[None] | None = None
        self.wedged_seconds = address.settings.session_timeout + WEDGED_RESERVE_SECONDS
        """Without an answer for so long, though Kafka answers others, the client is made anew."""
        self.rebuilds = 0
        self._consumer: Any = None

    async def start_aio(self) -> None:
        """Read all there is, however long it takes, and then go on in the background.

        A broker or a leader that is away is waited for, without a limit and never in silence.
        """
        began = time.monotonic()
        telling = self._tasks.start(self._tell_aio(began), "waiting for context")
        try:
            await self._open_aio()
            await self._find_aio()
            self._assign()
            while waiting := [at for at, end in self._ends.items() if await self._consumer.position(at) < end]:
                self._awaited = waiting
                await self._poll_aio()
        finally:
            telling.cancel()
        self._context.tell_poison(at_once=True)
        logger.info(
            "context topics are read: %d messages, %d stations (%.1f s)",
            *(self._context.messages, self._context.stations, time.monotonic() - began),
        )
        self._following = self._tasks.start(self._follow_aio(), "context")
        self._tasks.start(self._watch_aio(), "context watch")

    async def _open_aio(self) -> None:
        servers = self._address.reached
        while True:
            self._consumer = aiokafka.AIOKafkaConsumer(
                **self._address.client(servers),
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level=self._address.settings.isolation_level,
                max_partition_fetch_bytes=_FETCH_BYTES,
                metadata_max_age_ms=round(_LOOK_SECONDS * 1000),  # so soon partitions are seen that are new
            )
            try:
                return await unhurried_aio(self._consumer.start())
            except aiokafka.errors.KafkaConnectionError:  # the first connection stood: it is away
                await stopped_aio(self._consumer, _STOP_SECONDS)
                await asyncio.sleep(RETRY_BACKOFF_SECONDS)
                servers = self._address.bootstrap_servers

    def _assign(self) -> None:
        self._consumer.assign(self._partitions)
        for partition, offset in self._reached.items():
            self._consumer.seek(partition, offset)

    async def _find_aio(self) -> None:
        """Where every partition begins, for us, and where it ends now."""
        while missing := [partition for partition in self._partitions if partition not in self._reached]:
            self._awaited = missing
            # One by one, so that those are named that are waited for.
            for error in await asyncio.gather(*map(self._find_one_aio, missing), return_exceptions=True):
                if error is not None and not isinstance(error, aiokafka.errors.KafkaTimeoutError):
                    raise error
            for topic in {partition.topic for partition in self._awaited}:
                await self._look_for_aio(topic)

    async def _find_one_aio(self, partition: Any) -> None:
        consumer, since = self._consumer, self._context.kinds[partition.topic].since_seconds
        end: int = (await consumer.end_offsets([partition]))[partition]
        if since is None:
            first = (await consumer.beginning_offsets([partition]))[partition]
        else:
            since_ms = max(0, round((time.time() - since) * 1000))
            found = (await consumer.offsets_for_times({partition: since_ms}))[partition]
            first = end if found is None else found.offset  # nothing is so young
        self._reached[partition], self._ends[partition] = first, end
        self._awaited = [other for other in self._awaited if other != partition]

    async def _tell_aio(self, began: float) -> None:
        """Say every few seconds what is waited for."""
        before = 0
        while True:
            await asyncio.sleep(_TELL_SECONDS)
            self._context.tell_poison()
            messages, seconds = self._context.messages, time.monotonic() - began
            to_go = sum(max(0, self._ends[at] - self._reached[at]) for at in self._awaited if at in self._ends)
            if messages > before:
                logger.info(
                    "reading the context topics: %d messages, about %d to go (%.0f s)", messages, to_go, seconds
                )
            else:
                names = [f"{topic}/{number}" for topic, number in self._awaited]
                more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
                logger.warning(
                    "waiting for context topics, nothing comes of %s: %d messages so far, %s to go (%.0f s)",
                    ", ".join(names[:_MOST_NAMES]) + more,
                    *(messages, f"about {to_go}" if to_go else "nobody knows how many", seconds),
                )
            before = messages

    async def end_aio(self) -> bool:
        """Stop following.  Says whether the consumer ended in good order."""
        await self._tasks.cancel_aio()
        self._context.tell_poison(at_once=True)
        return self._consumer is None or await stopped_aio(self._consumer, _STOP_SECONDS)

    @property
    def client(self) -> Any:
        """What is to be abandoned if it does not end."""
        return getattr(self._consumer, "_client", None)

    async def _follow_aio(self) -> None:
        looked = time.monotonic()
        while True:
            await self._poll_aio()
            self._context.tell_poison()
            if time.monotonic() > looked + _LOOK_SECONDS:
                looked = time.monotonic()
                await self._look_around_aio()

    async def _look_around_aio(self) -> None:
        """There may be more partitions than before, or no topic any more; the client says nothing."""
        new = []
        for topic in self._context.kinds:
            numbers = self._consumer.partitions_for_topic(topic)
            if not numbers:
                await self._look_for_aio(topic)
            new += [TopicPartition(topic, number) for number in sorted(numbers or ())]
        new = [partition for partition in new if partition not in self._reached]
        if new:
            self._partitions = [*self._partitions, *new]
            self._reached |= dict.fromkeys(new, 0)
            self._assign()

    async def _look_for_aio(self, topic: str) -> None:
        gone = await look_for_topic_aio(self._address, topic, self._address.settings.request_timeout)
        if gone is not None:
            raise gone

    async def _watch_aio(self) -> None:
        """Make a client anew, where it was, that gets no answer any more although Kafka answers others."""
        seen, silent = None, 0
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            # Even where nothing is new there is an answer every half second.  Looks are counted and not seconds: a
            # loop that was blocked has heard nobody.
            answered = [self._consumer.last_poll_timestamp(partition) for partition in self._partitions]
            if answered != seen or not await is_reachable_aio(self._address):
                seen, silent = answered, 0
                continue
            silent += 1
            if silent * _LOOK_SECONDS >= self.wedged_seconds:
                logger.error(
                    "the consumer of the context topics has had no answer for %.0f s, though Kafka answers: it is made "
                    "anew",
                    silent * _LOOK_SECONDS,
                )
                self.rebuilds, silent = self.rebuilds + 1, 0
                assert self._following is not None
                await ended_aio(self._following, 0.0)
                await stopped_aio(self._consumer, _STOP_SECONDS)
                await self._open_aio()
                self._assign()
                self._following = self._tasks.start(self._follow_aio(), "context")

    async def _poll_aio(self) -> None:
        try:
            found = await self._consumer.getmany(timeout_ms=round(_POLL_SECONDS * 1000))
        except aiokafka.errors.KafkaError as error:
            if not error.retriable:
                raise
            logger.warning("while fetching context: %r; going on", error)
            await asyncio.sleep(RETRY_BACKOFF_SECONDS)
            return
        for partition, messages in found.items():
            for got in messages:
                timestamp = got.timestamp if got.timestamp is not None and got.timestamp >= 0 else None
                self._context.update(got.topic, got.key, got.value, timestamp)
            self._reached[partition] = messages[-1].offset + 1
            await asyncio.sleep(0)  # a topic that is read whole must not keep the loop to itself
