"""Transactions that Kafka has acknowledged and then not finished, and what finishes them.

A commit is acknowledged when the coordinator has written down that it will be.  The markers that make it true, one for
each partition, follow.  A broker that is killed between the two has to write them when it starts again; Kafka 4.3 does
so only where the partition has a leader by then, takes it for deleted otherwise, and goes on as if all were well
(``TransactionMarkerChannelManager``: "these partitions are likely deleted already and hence can be skipped").  One
broker that is killed is enough.  Outputs hang then, seen by nobody, or the offset does, or both: until the next marker
of the same transactional id, which decides of them, whatever it was meant for.

So nothing may follow an acknowledged commit on another connection, for only as long as that one lasts is it known that
no coordinator was started anew.  And whoever begins under a name first commits what hangs there.  (An abort would do as
well where everything hangs.  Where only a part does, it would lose lists or repeat them.)

``_aio`` marks an asyncio-flavoured function.
"""
# flake8: noqa: ASYNC910, ASYNC911 - asyncio knows no checkpoints

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiokafka.errors
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.producer.sender import AddOffsetsToTxnHandler
from aiokafka.structs import TopicPartition

from ._kafka_tasks import look_at

if TYPE_CHECKING:
    from collections.abc import Collection


class LineBroke(aiokafka.errors.OutOfOrderSequenceNumber):  # type: ignore[misc]  # aiokafka has no types
    """The connection to the coordinator broke.  (Of its base class the client dies at once, and without a word.)"""


class Line:
    """The connection of a transactional producer to its coordinator: it never gets another one."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self._connection = self._now()
        sender = producer._sender
        find = sender._find_coordinator

        async def find_here_aio(kind: CoordinationType, key: str) -> object:
            if kind == CoordinationType.TRANSACTION and not self.holds:
                raise LineBroke("the connection to the coordinator broke")
            return await find(kind, key)

        sender._find_coordinator = find_here_aio

    @property
    def holds(self) -> bool:
        """Whether it is still the same connection."""
        return self._connection is not None and self._now() is self._connection

    def _now(self) -> object | None:
        node = self._producer._sender._coordinators.get(CoordinationType.TRANSACTION)
        connection = self._producer.client._conns.get((node, ConnectionGroup.COORDINATION))
        return connection if connection is not None and connection.connected() else None


async def finish_hanging_aio(producer: Any, topics: Collection[str], group_id: str) -> None:
    """Commit what hangs under the name of *producer*: outputs in *topics*, and an offset of the group.

    Where nothing hangs it changes nothing.  What it commits is there when it returns.

    Raises:
      ProducerFenced: if the name is another's by now.
      KafkaError: as any transaction.
    """
    allowed = list(topics)
    while True:
        await producer.begin_transaction()
        for topic in allowed:
            await producer.client.add_topic(topic)
            for number in producer.client.cluster.partitions_for_topic(topic) or ():
                producer._txn_manager.maybe_add_partition_to_txn(TopicPartition(topic, number))
        await _add_group_aio(producer, group_id)
        try:
            await producer.commit_transaction()
        except aiokafka.errors.TopicAuthorizationFailedError as error:
            # Nothing of ours can hang there; who sends something there will be told.
            look_at(producer._txn_manager.wait_for_transaction_end())
            allowed = [topic for topic in allowed if topic not in error.args[0]]
            await producer.abort_transaction()
            continue
        break
    # The answer to a commit comes before its markers.  The first answer in the next transaction comes after them.
    await producer.begin_transaction()
    await _add_group_aio(producer, group_id)
    await producer.abort_transaction()


async def _add_group_aio(producer: Any, group_id: str) -> None:
    # Not with the client's own send_offsets_to_transaction(): an offset would take the place of the one that hangs.
    sender = producer._sender
    while not producer._txn_manager.is_fatal_error():
        node = await sender._find_coordinator(CoordinationType.TRANSACTION, producer._txn_manager.transactional_id)
        if await AddOffsetsToTxnHandler(sender, group_id).do(node):
            return
