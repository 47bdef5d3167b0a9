"""Our part of the consumer group: what is ours, and how it is given back.

What Trio's side calls is synchronous and touches plain memory, for both sides live in one thread.  ``_aio`` marks an
asyncio-flavoured function.
"""
# flake8: noqa: ASYNC910, ASYNC911, ASYNC913 - asyncio knows no checkpoints

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from aiokafka.abc import ConsumerRebalanceListener

from ._kafka_claims import Claim
from ._kafka_commits import Commits
from ._kafka_member import Member
from ._kafka_tasks import set_aio

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from ._kafka_absence import Absence
    from ._kafka_claims import Record
    from ._observer import Observer

logger = logging.getLogger("trioagg")

_REVOKE_COMMIT_SECONDS: Final = 10.0
REVOKE_RESERVE_SECONDS: Final = _REVOKE_COMMIT_SECONDS + 5.0
"""What the group must wait for us in a rebalance, beside the time for the batches themselves."""


class Group(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """The claims of this member, from their assignment to their end.

    Args:
      revoke_timeout: Seconds that claims have to get finished when they are taken away.
      commit_interval: Seconds between commits.
      max_uncommitted: At half of it, a commit goes out at once.
      dropped: Told of the claims that ended with messages in flight.
      discard_waiting: Discards the messages that nobody has taken yet.
      changed: Told when more or less may be fetched than before.
      claimed: Told of the claims of an assignment as it begins.
      fail: Told of an error that ends everything: the client would log it and go on.
    """

    def __init__(
        self,
        group_id: str,
        absence: Absence,
        observer: Observer,
        *,
        revoke_timeout: float,
        commit_interval: float,
        max_uncommitted: int,
        dropped: Callable[[Collection[Claim]], None],
        discard_waiting: Callable[[], None],
        changed: Callable[[], None],
        claimed: Callable[[Mapping[Any, Claim]], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self.member = Member(group_id)
        self.commits = Commits(self.member, absence, observer, interval=commit_interval, changed=changed)
        self._revoke_timeout, self._max_uncommitted = revoke_timeout, max_uncommitted
        self._dropped, self._discard_waiting, self._changed = dropped, discard_waiting, changed
        self._claimed, self._fail = claimed, fail
        self._ending = False
        self._commit_at_end = False
        self._drained = asyncio.Event()
        self.rebalances = self.late = self.dropped_records = 0

    @property
    def claims(self) -> dict[Any, Claim]:
        """The partitions that are ours now."""
        return self.member.claims

    @property
    def rebalancing(self) -> bool:
        """Whether it is being settled whose the partitions are."""
        return self.member.rebalancing

    # Trio's side.

    def finish(self, record: Record) -> None:
        claim = record.claim
        mark = claim.watermark
        if claim.state == "closed":
            self.late += not mark.is_committed(record.offset)
            return
        if not mark.finish(record.offset):
            return
        if claim.state == "revoking":
            self._look_if_drained(claim)
        elif mark.uncommitted * 2 >= self._max_uncommitted and mark.committable is not None:
            self.commits.soon()

    def discard(self, record: Record) -> None:
        claim = record.claim
        if claim.state != "closed" and claim.watermark.discard(record.offset):
            self._look_if_drained(claim)

    def _look_if_drained(self, claim: Claim) -> None:
        if not claim.watermark.in_flight:
            self._drained.set()

    # Rebalances.

    async def on_partitions_revoked(self, revoked: Collection[Any]) -> None:
        """The client's word for a rebalance: all that we have is taken away, whatever *revoked* says."""
        self.member.rebalancing = True
        if self.claims:
            self.rebalances += 1
            try:
                await self._give_back_aio(list(self.claims.values()))
            except Exception as error:
                self._fail(error)

    async def on_partitions_assigned(self, assigned: Collection[Any]) -> None:
        """The client's word for the end of a rebalance."""
        self.member.claims = {partition: Claim(partition.topic, partition.partition) for partition in assigned}
        self._claimed(self.claims)
        self.member.rebalancing = False
        self._changed()

    async def _give_back_aio(self, claims: Collection[Claim]) -> None:
        evicted = self.member.is_evicted()
        for claim in claims:
            claim.state = "revoking"
            claim.lost = claim.lost or evicted
        self._discard_waiting()
        await self._wait_drained_aio(claims)
        if (not self._ending or self._commit_at_end) and not await self.commits.commit_aio(
            _REVOKE_COMMIT_SECONDS, everything=True
        ):
            logger.warning("partitions were given back without a commit: some batches will be processed again")
        self.close_claims()
        await self._give_up_aio(claims)

    def give_up(self, claims: Collection[Claim]) -> None:
        """What is in flight of these claims is nobody's any more."""
        unfinished = [claim for claim in claims if claim.unsettled]
        if unfinished:
            self.dropped_records += sum(claim.unsettled for claim in unfinished)
            self._dropped(unfinished)

    async def _give_up_aio(self, claims: Collection[Claim]) -> None:
        self.give_up(claims)
        await end_transactors_aio(claims)

    async def _wait_drained_aio(self, claims: Collection[Claim]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._revoke_timeout
        while not self._ending and loop.time() < deadline:
            # What is lost cannot be committed, so there is nothing to wait for.
            if not any(claim.watermark.in_flight and not claim.lost for claim in claims):
                return
            self._drained.clear()
            await set_aio(self._drained, deadline - loop.time())

    # The end.

    async def begin_anew_aio(self) -> None:
        """The client is gone, and with it all that was ours: give it up, as at a rebalance that was not waited for."""
        claims = list(self.claims.values())
        self.member.rebalancing = True
        self.rebalances += bool(claims)
        self.close_claims()
        self._discard_waiting()
        await self._give_up_aio(claims)

    def end_waiting(self, *, commit: bool) -> None:
        """Let go of a rebalance that waits for batches; say whether it may still commit."""
        self._ending, self._commit_at_end = True, commit
        self._drained.set()

    def close_claims(self) -> None:
        for claim in self.claims.values():
            claim.state = "closed"
        self.member.claims = {}


async def end_transactors_aio(claims: Collection[Claim]) -> None:
    """End what claims have of their own, after their batches were given up."""
    await asyncio.gather(*(claim.transactor.end_aio() for claim in claims if claim.transactor is not None))
