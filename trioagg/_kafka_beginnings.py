"""Where a claim begins: at the last commit, at an end of the partition, and in transactions only when its last owner
is fenced.

``_aio`` marks an asyncio-flavoured function.
"""
# flake8: noqa: ASYNC910, ASYNC911, ASYNC913 - asyncio knows no checkpoints

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import aiokafka.errors

from ._kafka_claims import Claim
from ._kafka_connect import RETRY_BACKOFF_SECONDS
from ._kafka_transactions import Transactor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from ._kafka_connect import Address
    from ._kafka_group import Group
    from ._kafka_tasks import Tasks

logger = logging.getLogger("trioagg")


class Beginnings:
    """Finds the first offset of every claim; until then it is ``starting``, and nothing of it is fetched.

    Args:
      group: Whose claims they are.
      known_at_start: Topic and number of the partitions that were there when the service started.
      output_topics: Where the transactions of claims go: each gets a producer, which fences its last owner.  None where
        there are no transactions.
      begun: Told when a claim may be fetched.
    """

    def __init__(
        self,
        address: Address,
        group: Group,
        tasks: Tasks,
        *,
        known_at_start: Collection[tuple[str, int]],
        output_topics: Collection[str] | None,
        begun: Callable[[], None],
    ) -> None:
        self._address, self._group, self._tasks = address, group, tasks
        self._known_at_start, self._output_topics, self._begun = known_at_start, output_topics, begun
        self.resets = self.producers = 0

    def claimed(self, claims: Mapping[Any, Claim]) -> None:
        """An assignment begins."""
        for claim in claims.values():
            claim.starting = True
        if self._output_topics is None:
            self._tasks.start(self._read_back_aio(claims), "read back")
            return
        for partition, claim in claims.items():
            transactor = claim.transactor = Transactor(
                self._address,
                self._group.member.group_id,
                partition,
                claim,
                output_topics=self._output_topics,
                still_member_aio=self._group.member.is_member_aio,
                committed_aio=self._group.member.committed_aio,
                started=self._count_producer,
            )
            self._tasks.start(self._take_over_aio(partition, claim, transactor), f"take over {claim.name}")

    async def _read_back_aio(self, claims: Mapping[Any, Claim]) -> None:
        # Nothing is committed meanwhile: the last owner has given the partitions back, or is not listened to any more.
        await self._group.member.read_back_aio(claims)
        for claim in claims.values():
            claim.starting = False
        self._begun()

    def _count_producer(self) -> None:
        self.producers += 1

    async def _take_over_aio(self, partition: Any, claim: Claim, transactor: Transactor) -> None:
        # The client has asked for the position itself, but before the old owner was fenced.
        offset = await transactor.start_aio()
        if not claim.live or claim.lost:
            await transactor.end_aio()
            if claim.live and not self._group.rebalancing:
                self._group.member.rejoin()
        elif offset is None:
            claim.starting = False
            self.begin(partition, self._address.settings.start_offset)
        else:
            self._go_on_at(partition, claim, offset)
            claim.watermark.committed(offset)

    def _go_on_at(self, partition: Any, claim: Claim, offset: int) -> None:
        self._group.member.consumer.seek(partition, offset)
        claim.position = offset
        claim.watermark.advance_to(offset)
        claim.starting = False
        self._begun()

    def begin(self, partition: Any, where: str) -> None:
        """The group has no commit for this partition: begin at its ``earliest`` or ``latest`` offset."""
        claim = self._group.claims.get(partition)
        if claim is not None and not claim.starting:
            claim.starting = True
            self._tasks.start(self._begin_aio(partition, claim, where), f"start of {claim.topic}/{claim.partition}")

    async def _begin_aio(self, partition: Any, claim: Claim, where: str) -> None:
        # What appeared after our start was not there when "latest" was said: nothing of it may be missed.
        latest = where == "latest" and (partition.topic, partition.partition) in self._known_at_start
        look = self._group.member.consumer.end_offsets if latest else self._group.member.consumer.beginning_offsets
        while claim.state == "open":
            try:
                offset = (await look([partition]))[partition]
                break
            except aiokafka.errors.KafkaError as error:
                logger.warning("start offset of %s/%s: %r; trying again", claim.topic, claim.partition, error)
                await asyncio.sleep(RETRY_BACKOFF_SECONDS)
        if claim.state != "open":
            return
        self._go_on_at(partition, claim, offset)
        if latest:
            self._group.commits.soon()  # after a crash, the end would be another one

    def out_of_range(self, partition: Any, offset: int) -> None:
        """There is nothing at this offset (any more): begin at the earliest one."""
        old = self._group.claims.get(partition)
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
        new = self._group.claims[partition] = Claim(partition.topic, partition.partition)
        if old.transactor is not None:
            # Nobody else has had it: the producer is still the right one.  But what is in flight has no offset any more
            # that it could be committed with.
            self._group.give_up([old])
            new.transactor = old.transactor
            new.transactor.go_over_to(new)
        self.begin(partition, "earliest")
