"""What the client holds for us: the consumer, the partitions that are ours now, and what only the coordinator knows.

Everything private of the client's that we look at is looked at here, or in ``_kafka_tasks`` where it is let go.
``_aio`` marks an asyncio-flavoured function.
"""
# flake8: noqa: ASYNC910, ASYNC911, ASYNC913 - asyncio knows no checkpoints

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import aiokafka.errors
from aiokafka.protocol.group import LeaveGroupRequest

from ._finished_offsets import UnreadableMetadata, decode_finished
from ._kafka_connect import RETRY_BACKOFF_SECONDS
from ._kafka_tasks import ended_aio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._kafka_claims import Claim

logger = logging.getLogger("trioagg")


class Member:
    """We, as the group sees us."""

    def __init__(self, group_id: str) -> None:
        self.group_id = group_id
        self.consumer: Any = None
        self.claims: dict[Any, Claim] = {}
        self.rebalancing = True

    def end_of(self, partition: Any) -> int | None:
        """Where the partition ends, as the last fetch saw it; None before the first."""
        try:
            end: int | None = self.consumer.highwater(partition)
        except AssertionError:  # not assigned any more
            return None
        return end

    def is_evicted(self) -> bool:
        """Whether we know that we were put out."""
        # The client forgets its generation when the coordinator does not know it any more.
        generation = getattr(getattr(self.consumer, "_coordinator", None), "generation", 0)
        return isinstance(generation, int) and generation < 0

    async def is_member_aio(self) -> bool:
        """Ask the coordinator whether it counts us in, as of now."""
        coordinator = getattr(self.consumer, "_coordinator", None)
        heartbeat = getattr(coordinator, "_do_heartbeat", None)
        if heartbeat is None or self.is_evicted():
            return False
        return bool(await heartbeat())

    async def committed_aio(self, partition: Any) -> int | None:
        """How far the group has committed a partition; None where it has not.  Waits for a broker that is away."""
        while True:
            try:
                offset: int | None = await self.consumer.committed(partition)
                return offset
            except aiokafka.errors.KafkaError as error:
                if not error.retriable:
                    raise
                await asyncio.sleep(RETRY_BACKOFF_SECONDS)

    async def read_back_aio(self, claims: Mapping[Any, Claim]) -> None:
        """Learn from the last commits which messages beyond them are finished."""
        coordinator = getattr(self.consumer, "_coordinator", None)
        fetch = getattr(coordinator, "fetch_committed_offsets", None)
        if fetch is None:
            return
        for partition, commit in (await fetch(list(claims))).items():
            try:
                claims[partition].done_before = decode_finished(commit.offset, commit.metadata)
            except UnreadableMetadata as error:
                logger.warning("%s: %s", claims[partition].name, error)

    def rejoin(self) -> None:
        """Ask for another assignment."""
        # The client finds out by itself where it is the one who was put out.
        coordinator = getattr(self.consumer, "_coordinator", None)
        request = getattr(coordinator, "request_rejoin", None)
        if request is not None:
            request()

    async def leave_aio(self, seconds: float) -> None:
        """Take our leave in the middle of a join, where the client itself would wait for the join to end.

        A member that vanishes there is waited for by all the others until its session ends.
        """
        coordinator = getattr(self.consumer, "_coordinator", None)
        member, node = getattr(coordinator, "member_id", ""), getattr(coordinator, "coordinator_id", None)
        if member and node is not None and getattr(coordinator, "_group_instance_id", None) is None:
            # Over another connection than the join's: on that the broker reads nothing before it has answered.
            request = LeaveGroupRequest(self.group_id, member)
            await ended_aio(asyncio.create_task(self.consumer._client.send(node, request)), seconds)
