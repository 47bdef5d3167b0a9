"""How far everything is done, said to Kafka: commits, or transactions, one at a time.

``_aio`` marks an asyncio-flavoured function.
"""
# flake8: noqa: ASYNC102, ASYNC910, ASYNC911, ASYNC913 - asyncio knows neither scopes nor checkpoints

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiokafka.errors
import trio

from ._finished_offsets import encode_finished
from ._kafka_tasks import ended_aio, set_aio

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._kafka_absence import Absence
    from ._kafka_claims import Claim
    from ._kafka_member import Member
    from ._observer import Observer

logger = logging.getLogger("trioagg")


@dataclass(frozen=True, slots=True)
class _Offer:
    """What a claim has to say to a commit."""

    claim: Claim
    offset: int
    beyond: tuple[int, ...] = ()
    metadata: str = ""


class Commits:
    """Commits what the claims of a member have to say.

    Args:
      interval: Seconds between commits.
      changed: Told when more or less may be fetched than before.
    """

    def __init__(
        self,
        member: Member,
        absence: Absence,
        observer: Observer,
        *,
        interval: float,
        changed: Callable[[], None],
    ) -> None:
        self._member, self._absence, self._interval, self._changed = member, absence, interval, changed
        self._observer = observer
        # Setting an asyncio.Event costs Trio's side a crossing only where somebody waits for it.
        self._wanted = asyncio.Event()
        self._lock = asyncio.Lock()
        self._under_way: asyncio.Task[None] | None = None
        self._began: float | None = None
        self._told_of_failure = False
        self._waiters: list[trio.Event] = []
        self.acknowledged = 0

    # Trio's side.

    def ask(self) -> trio.Event:
        """An event that is set when what can be committed now has been tried."""
        tried = trio.Event()
        self._waiters.append(tried)
        self._wanted.set()
        return tried

    def release(self) -> None:
        """Nobody commits any more: let those go who wait for it."""
        for waiter in self._waiters:
            waiter.set()
        self._waiters.clear()

    def soon(self) -> None:
        """Do not wait for the next time."""
        self._wanted.set()

    def seconds(self) -> float:
        """How long the commit that is under way has taken by now; 0.0 where there is none."""
        began = self._began
        return 0.0 if began is None else asyncio.get_running_loop().time() - began

    # asyncio's side.

    async def now_and_then_aio(self) -> None:
        """Commit for ever."""
        while True:
            await set_aio(self._wanted, self._interval)
            self._wanted.clear()
            waiters, self._waiters = self._waiters, []
            try:
                await self.commit_aio()
            finally:
                for waiter in waiters:
                    waiter.set()

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
                self._began = loop.time()
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
                        self._wanted.set()  # what has come meanwhile has waited long enough
                    return True
        finally:
            self._began = None
            self._lock.release()

    async def _offers_aio(self) -> dict[Any, _Offer]:
        found: dict[Any, _Offer] = {}
        for partition, claim in list(self._member.claims.items()):
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
                await self._lock.acquire()
        except TimeoutError:
            if self._under_way is not None:
                self._under_way.cancel()
            return False
        return True

    async def _send_commit_aio(self, sent: dict[Any, _Offer], seconds: float | None) -> bool:
        # In a task of its own: a commit that is cancelled with us runs on, and its error would be nobody's.
        offsets = {partition: (offer.offset, offer.metadata) for partition, offer in sent.items()}
        self._under_way = task = asyncio.create_task(self._member.consumer.commit(offsets), name="trioagg commit")
        try:
            await asyncio.wait({task}, timeout=seconds)
        finally:
            self._under_way = None
            if not task.done():
                await ended_aio(task, 0)
        if task.cancelled():
            return False
        error = task.exception()
        if error is None:
            self.acknowledged += 1
            self._answered()
            for offer in sent.values():
                offer.claim.watermark.committed(offer.offset)
                offer.claim.told = offer.beyond
                self._observer.committed(offer.claim.topic, offer.claim.partition, offer.offset)
            self._changed()
            return True
        if isinstance(error, aiokafka.errors.CommitFailedError):
            # Trying again brings nothing: only an assignment makes us a member again.
            for offer in sent.values():
                offer.claim.lost = True
            logger.warning("group %s went on without this member: %r", self._member.group_id, error.__cause__ or error)
        elif isinstance(error, aiokafka.errors.IllegalStateError) or getattr(error, "retriable", False):
            # Once until one succeeds: a broker may be away for long.
            level = logging.INFO if self._told_of_failure else logging.WARNING
            logger.log(level, "commit failed, trying again every %g s: %r", self._interval, error)
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
            if claim.lost and not self._member.rebalancing:
                self._member.rejoin()
            if not task.done():
                task.add_done_callback(_look_away)  # it is given up, and takes its time
            elif not task.cancelled() and (error := task.exception()) is not None:
                raise error
        up = [task.done() and not task.cancelled() and task.result() for task in under_way]
        self.acknowledged += sum(up)
        for claim, is_up in zip(under_way.values(), up, strict=True):
            if is_up and claim.watermark.acknowledged is not None:
                self._observer.committed(claim.topic, claim.partition, claim.watermark.acknowledged)
        if any(up):
            self._answered()
        self._changed()
        return all(up)

    def _answered(self) -> None:
        self._told_of_failure = False
        self._absence.over()

    async def _committable_aio(self, partition: Any, claim: Claim) -> int | None:
        if not self._may_commit(claim):
            return None
        # Asked only after a fetch: without a position it would be waited for.
        if not claim.watermark.in_flight and self._member.end_of(partition) is not None:
            with contextlib.suppress(aiokafka.errors.IllegalStateError):
                claim.position = await self._member.consumer.position(partition)
                claim.watermark.advance_to(claim.position)
        return claim.watermark.committable


def _look_away(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
