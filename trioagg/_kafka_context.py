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

from ._kafka_connect import RETRY_BACKOFF_SECONDS, look_for_topic_aio
from ._kafka_tasks import Tasks, stopped_aio, unhurried_aio

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
        self._tasks = Tasks(fail)
        self._consumer: Any = None

    async def start_aio(self) -> None:
        """Read all there is, however long it takes, and then go on in the background."""
        consumer = self._consumer = aiokafka.AIOKafkaConsumer(
            **self._address.client(self._address.reached),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level=self._address.settings.isolation_level,
            max_partition_fetch_bytes=_FETCH_BYTES,
            metadata_max_age_ms=round(_LOOK_SECONDS * 1000),  # so soon partitions are seen that are new
        )
        await unhurried_aio(consumer.start())
        consumer.assign(self._partitions)
        await self._seek_aio()
        ends = {partition: end for partition, end in (await consumer.end_offsets(self._partitions)).items() if end}
        began = told = time.monotonic()
        while waiting := [partition for partition, end in ends.items() if await consumer.position(partition) < end]:
            await self._poll_aio()
            if time.monotonic() > told + _TELL_SECONDS:
                told = time.monotonic()
                left = [ends[partition] - await consumer.position(partition) for partition in waiting]
                logger.info(
                    "reading the context topics: %d messages, about %d to go (%.0f s)",
                    *(self._context.messages, sum(left), told - began),
                )
        logger.info(
            "context topics are read: %d messages, %d stations (%.1f s)",
            *(self._context.messages, self._context.stations, time.monotonic() - began),
        )
        self._tasks.start(self._follow_aio(), "context")

    async def _seek_aio(self) -> None:
        now_ms = time.time() * 1000
        since = {
            partition: max(0, round(now_ms - seconds * 1000))
            for partition in self._partitions
            if (seconds := self._context.kinds[partition.topic].since_seconds) is not None
        }
        await self._consumer.seek_to_beginning(*self._partitions)
        if since:
            for partition, found in (await self._consumer.offsets_for_times(since)).items():
                if found is None:  # nothing is so young
                    await self._consumer.seek_to_end(partition)
                else:
                    self._consumer.seek(partition, found.offset)

    async def end_aio(self) -> bool:
        """Stop following.  Says whether the consumer ended in good order."""
        await self._tasks.cancel_aio()
        return self._consumer is None or await stopped_aio(self._consumer, _STOP_SECONDS)

    @property
    def client(self) -> Any:
        """What is to be abandoned if it does not end."""
        return getattr(self._consumer, "_client", None)

    async def _follow_aio(self) -> None:
        looked = time.monotonic()
        while True:
            await self._poll_aio()
            if time.monotonic() > looked + _LOOK_SECONDS:
                looked = time.monotonic()
                await self._look_around_aio()

    async def _look_around_aio(self) -> None:
        """There may be more partitions than before, or no topic any more; the client says nothing."""
        new = []
        for topic in self._context.kinds:
            numbers = self._consumer.partitions_for_topic(topic)
            if not numbers:
                gone = await look_for_topic_aio(self._address, topic, self._address.settings.request_timeout)
                if gone is not None:
                    raise gone
            new += [TopicPartition(topic, number) for number in sorted(numbers or ())]
        new = [partition for partition in new if partition not in self._partitions]
        if new:
            reached = {partition: await self._consumer.position(partition) for partition in self._partitions}
            self._partitions += new
            self._consumer.assign(self._partitions)
            for partition, offset in reached.items():
                self._consumer.seek(partition, offset)
            await self._consumer.seek_to_beginning(*new)

    async def _poll_aio(self) -> None:
        try:
            found = await self._consumer.getmany(timeout_ms=round(_POLL_SECONDS * 1000))
        except aiokafka.errors.KafkaError as error:
            if not error.retriable:
                raise
            logger.warning("while fetching context: %r; going on", error)
            await asyncio.sleep(RETRY_BACKOFF_SECONDS)
            return
        for messages in found.values():
            for got in messages:
                timestamp = got.timestamp if got.timestamp is not None and got.timestamp >= 0 else None
                self._context.update(got.topic, got.key, got.value, timestamp)
            await asyncio.sleep(0)  # a topic that is read whole must not keep the loop to itself
