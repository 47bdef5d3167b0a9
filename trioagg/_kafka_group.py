"""Our part of the consumer group: what is ours, how far it is committed, and how it is given back.

What Trio's side calls is synchronous and touches plain memory, for both sides live in one thread.  ``_aio`` marks an
asyncio-flavoured function.
"""
# flake8: noqa: ASYNC102, ASYNC910, ASYNC911, ASYNC913 - asyncio knows neither scopes nor checkpoints

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiokafka.errors
import trio
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.protocol.group import LeaveGroupRequest

from ._finished_offsets import UnreadableMetadata, decode_finished, encode_finished
from ._kafka_claims import Claim
from ._kafka_connect import RETRY_BACKOFF_SECONDS
from ._kafka_tasks import ended_aio, set_aio

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from ._kafka_absence import Absence
    from ._kafka_claims import Record

logger = logging.getLogger("trioagg")

_REVOKE_COMMIT_SECONDS: Final = 10.0
REVOKE_RESERVE_SECONDS: Final = _REVOKE_COMMIT_SECONDS + 5.0
"""What the group must wait for us in a rebalance, beside the time for the batches themselves."""


@dataclass(frozen=True, slots=True)
class _Offer:
    """What a claim has to say to a commit."""

    claim: Claim
    offset: int
    beyond: tuple[int, ...] = ()
    metadata: str = ""


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
        self.group_id, self._absence = group_id, absence
        self.consumer: Any = None
        self.claims: dict[Any, Claim] = {}
        self.rebalancing = True
        self._revoke_timeout, self._commit_interval = revoke_timeout, commit_interval
        self._max_uncommitted = max_uncommitted
        self._dropped, self._discard_waiting, self._changed = dropped, discard_waiting, changed
        self._claimed, self._fail = claimed, fail
        self._ending = False
        self._commit_at_end = False
        # Setting an asyncio.Event costs Trio's side a crossing only where somebody waits for it.
        self._commit_wanted, self._drained = asyncio.Event(), asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._commit: asyncio.Task[None] | None = None
        self._commit_began: float | None = None
        self._told_of_failure = False
        self._waiters: list[trio.Event] = []
        self.commits = self.rebalances = self.late = self.dropped_records = 0

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
            self._commit_wanted.set()

    def discard(self, record: Record) -> None:
        claim = record.claim
        if claim.state != "closed" and claim.watermark.discard(record.offset):
            self._look_if_drained(claim)

    def ask_for_commit(self) -> trio.Event:
        """An event that is set when what can be committed now has been tried."""
        tried = trio.Event()
        self._waiters.append(tried)
        self._commit_wanted.set()
        return tried

    def release(self) -> None:
        """Nobody commits any more: let those go who wait for it."""
        for waiter in self._waiters:
            waiter.set()
        self._waiters.clear()

    def end_of(self, partition: Any) -> int | None:
        """Where the partition ends, as the last fetch saw it; None before the first."""
        try:
            end: int | None = self.consumer.highwater(partition)
        except AssertionError:  # not assigned any more
            return None
        return end

    def _look_if_drained(self, claim: Claim) -> None:
        if not claim.watermark.in_flight:
            self._drained.set()

    # Offsets.

    async def commit_now_and_then_aio(self) -> None:
        while True:
            await set_aio(self._commit_wanted, self._commit_interval)
            self._commit_wanted.clear()
            waiters, self._waiters = self._waiters, []
            try:
                await self.commit_aio()
            finally:
                for waiter in waiters:
                    waiter.set()

    def commit_soon(self) -> None:
        self._commit_wanted.set()

    async def commit_aio(self, seconds: float | None = None, *, everything: bool = False) -> bool:
        """Commit what is finished.  Says whether there is nothing left to be said.

        One commit at a time, the rebalance listener's included: one that is retried across a rebalance would set the
        next owner of its partition back.

        Args:
          seconds: For the commit, and for the one that is under way, if any.  It is given up then.
          everything: Do not end before there is nothing more to commit; a transaction has its bounds.
        """
        loop = asyncio.get_running_loop()
        deadline = None if seconds is None else loop.time() + seconds
        if not await self._take_turn_aio(seconds):
            return False
        try:
            while True:
                self._commit_began = loop.time()
                if deadline is not None:
                    seconds = max(0.0, deadline - loop.time())
                sent = await self._offers_aio()
                if not sent:
                    return True
                if not any(offer.claim.transactor for offer in sent.values()):
                    return await self._send_commit_aio(sent, seconds)
                if not await self._transact_aio(sent, seconds):
                    return False
                if not everything:
                    if any(offer.claim.watermark.committable is not None for offer in sent.values()):
                        self._commit_wanted.set()  # what has come meanwhile has waited long enough
                    return True
        finally:
            self._commit_began = None
            self._commit_lock.release()

    def commit_seconds(self) -> float:
        """How long the commit that is under way has taken by now; 0.0 where there is none."""
        began = self._commit_began
        return 0.0 if began is None else asyncio.get_running_loop().time() - began

    async def _offers_aio(self) -> dict[Any, _Offer]:
        found: dict[Any, _Offer] = {}
        for partition, claim in list(self.claims.items()):
            offset = await self._committable_aio(partition, claim)
            if claim.transactor is not None:
                if offset is not None:
                    found[partition] = _Offer(claim, offset)
                continue
            # With nothing new below, what is finished beyond may still be worth a commit: after a crash, all of it
            # would be done again.
            beyond = claim.watermark.beyond
            if offset is None and beyond and beyond != claim.told and self._may_commit(claim):
                offset = claim.watermark.base
            if offset is not None:
                found[partition] = _Offer(claim, offset, beyond, self._metadata(claim, offset, beyond))
        return found

    def _metadata(self, claim: Claim, offset: int, beyond: tuple[int, ...]) -> str:
        text = encode_finished(offset, beyond)
        if claim.narrow is not (text is None):
            claim.narrow = text is None
            self._changed()
        # What does not fit is done again if it comes to that.
        while text is None:
            beyond = beyond[: len(beyond) // 2]
            text = encode_finished(offset, beyond)
        return text

    def _may_commit(self, claim: Claim) -> bool:
        return not (claim.state == "closed" or claim.lost or claim.starting)

    async def _take_turn_aio(self, seconds: float | None) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._commit_lock.acquire()
        except TimeoutError:
            if self._commit is not None:
                self._commit.cancel()
            return False
        return True

    async def _send_commit_aio(self, sent: dict[Any, _Offer], seconds: float | None) -> bool:
        # In a task of its own: a commit that is cancelled with us runs on, and its error would be nobody's.
        offsets = {partition: (offer.offset, offer.metadata) for partition, offer in sent.items()}
        self._commit = task = asyncio.create_task(self.consumer.commit(offsets), name="trioagg commit")
        try:
            await asyncio.wait({task}, timeout=seconds)
        finally:
            self._commit = None
            if not task.done():
                await ended_aio(task, 0)
        if task.cancelled():
            return False
        error = task.exception()
        if error is None:
            self.commits += 1
            self._acknowledged()
            for offer in sent.values():
                offer.claim.watermark.committed(offer.offset)
                offer.claim.told = offer.beyond
            self._changed()
            return True
        if isinstance(error, aiokafka.errors.CommitFailedError):
            # Trying again brings nothing: only an assignment makes us a member again.
            for offer in sent.values():
                offer.claim.lost = True
            logger.warning("group %s went on without this member: %r", self.group_id, error.__cause__ or error)
        elif isinstance(error, aiokafka.errors.IllegalStateError) or getattr(error, "retriable", False):
            # Once until one succeeds: a broker may be away for long.
            level = logging.INFO if self._told_of_failure else logging.WARNING
            logger.log(level, "commit failed, trying again every %g s: %r", self._commit_interval, error)
            self._told_of_failure = True
        else:
            raise error
        return False

    async def _transact_aio(self, sent: dict[Any, _Offer], seconds: float | None) -> bool:
        """Commit what every claim has to say, outputs and offset in one transaction for each."""
        under_way = {
            asyncio.create_task(
                offer.claim.transactor.bring_up_aio(offer.offset), name=f"trioagg transaction {offer.claim.name}"
            ): offer.claim
            for offer in sent.values()
            if offer.claim.transactor is not None
        }
        try:
            await asyncio.wait(under_way, timeout=seconds)
        finally:
            # What is given up in its midst is ended by the producer that the next owner makes.
            await asyncio.gather(*(ended_aio(task, 0) for task in under_way if not task.done()))
        for task, claim in under_way.items():
            if claim.lost and not self.rebalancing:
                self._rejoin()
            if not task.done():
                task.add_done_callback(_look_away)  # it is given up, and takes its time
            elif not task.cancelled() and (error := task.exception()) is not None:
                raise error
        up = [task.done() and not task.cancelled() and task.result() for task in under_way]
        self.commits += sum(up)
        if any(up):
            self._acknowledged()
        self._changed()
        return all(up)

    def _acknowledged(self) -> None:
        self._told_of_failure = False
        self._absence.over()

    async def is_member_aio(self) -> bool:
        """Ask the coordinator whether it counts us in, as of now."""
        coordinator = getattr(self.consumer, "_coordinator", None)
        heartbeat = getattr(coordinator, "_do_heartbeat", None)
        if heartbeat is None or self._is_evicted():
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

    def _rejoin(self) -> None:
        # The client finds out by itself where it is the one who was put out.
        coordinator = getattr(self.consumer, "_coordinator", None)
        request = getattr(coordinator, "request_rejoin", None)
        if request is not None:
            request()

    async def _committable_aio(self, partition: Any, claim: Claim) -> int | None:
        if not self._may_commit(claim):
            return None
        # Asked only after a fetch: without a position it would be waited for.
        if not claim.watermark.in_flight and self.end_of(partition) is not None:
            with contextlib.suppress(aiokafka.errors.IllegalStateError):
                claim.position = await self.consumer.position(partition)
                claim.watermark.advance_to(claim.position)
        return claim.watermark.committable

    # Rebalances.

    async def on_partitions_revoked(self, revoked: Collection[Any]) -> None:
        """The client's word for a rebalance: all that we have is taken away, whatever *revoked* says."""
        self.rebalancing = True
        if self.claims:
            self.rebalances += 1
            try:
                await self._give_back_aio(list(self.claims.values()))
            except Exception as error:
                self._fail(error)

    async def on_partitions_assigned(self, assigned: Collection[Any]) -> None:
        """The client's word for the end of a rebalance."""
        self.claims = {partition: Claim(partition.topic, partition.partition) for partition in assigned}
        self._claimed(self.claims)
        self.rebalancing = False
        self._changed()

    async def _give_back_aio(self, claims: Collection[Claim]) -> None:
        evicted = self._is_evicted()
        for claim in claims:
            claim.state = "revoking"
            claim.lost = claim.lost or evicted
        self._discard_waiting()
        await self._wait_drained_aio(claims)
        if (not self._ending or self._commit_at_end) and not await self.commit_aio(
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

    def _is_evicted(self) -> bool:
        # The client forgets its generation when the coordinator does not know it any more.
        generation = getattr(getattr(self.consumer, "_coordinator", None), "generation", 0)
        return isinstance(generation, int) and generation < 0

    # The end.

    async def begin_anew_aio(self) -> None:
        """The client is gone, and with it all that was ours: give it up, as at a rebalance that was not waited for."""
        claims = list(self.claims.values())
        self.rebalancing = True
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
        self.claims = {}

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


def _look_away(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


async def end_transactors_aio(claims: Collection[Claim]) -> None:
    """End what claims have of their own, after their batches were given up."""
    await asyncio.gather(*(claim.transactor.end_aio() for claim in claims if claim.transactor is not None))
