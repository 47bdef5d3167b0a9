"""A look at topics that nobody notices: what a group has committed is asked, and neither joined nor changed.

``_aio`` marks an asyncio-flavoured function.
"""

from __future__ import annotations

from aiokafka.structs import TopicPartition

from ._kafka_claims import Claim
from ._kafka_source import Source


class Look(Source):
    """Takes every partition for itself, whoever has it in the group, and has no task that commits."""

    def _go(self) -> None:
        claims = {TopicPartition(topic, number): Claim(topic, number) for topic, number in self._known_at_start}
        self._consumer.assign(list(claims))
        self.group.member.claims = claims
        self.group.member.rebalancing = False
        self.beginnings.claimed(claims)
        self._pump = self._tasks.start(self._pump_aio(), "look")
