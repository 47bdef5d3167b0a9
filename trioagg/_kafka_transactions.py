"""Exactly once, Kafka to Kafka: what the messages of a partition came to and how far it is done, in one transaction.

One transactional producer for every partition that is ours, named for the group and the partition.  A new owner's
producer of that name fences the old one: what the old owner had under way is aborted, and nothing that it does later
counts.  (The client speaks no newer protocol than that of Kafka 0.11; since KIP-447 one producer a member would do.)

``_aio`` marks an asyncio-flavoured function.
"""
# flake8: noqa: ASYNC910, ASYNC911, ASYNC913 - asyncio knows no checkpoints

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

import aiokafka
import aiokafka.errors

from ._errors import Closed
from ._kafka_connect import RETRY_BACKOFF_SECONDS
from ._kafka_hanging import Line, finish_hanging_aio
from ._kafka_sink import (
    ABOUT_THE_TOPIC,
    MAX_MESSAGE_BYTES,
    MAYBE_GONE,
    TOO_LARGE,
    is_refusal,
    is_topic_gone_aio,
    refusal,
)
from ._kafka_tasks import stopped_aio, unhurried_aio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from ._kafka_claims import Claim
    from ._kafka_connect import Address
    from ._kafka_sink import Message

logger = logging.getLogger("trioagg")

_BATCH_BYTES: Final = 512 * 1024
_ROUND_MESSAGES, _ROUND_BYTES = 1000, 4 * 1024 * 1024
_LONGEST_TRANSACTION_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 3.0
_ABORT_SECONDS: Final = 1.0
# The coordinator answers "the last one is not over yet" to whoever begins anew at once: asked again soon, for that
# wait is the floor of a transaction's time.
_BACKOFF_MS: Final = 5
_FENCED: Final = (aiokafka.errors.ProducerFenced, aiokafka.errors.InvalidProducerEpoch)


class Transactor:
    """The transactions of one claim: outputs are staged, and brought up together with the offset behind them.

    Args:
      output_topics: Where outputs may go.
      still_member_aio: Asks the group whether it counts us in.  A producer that is made anew by somebody who does not
        know that he was put out would fence the rightful owner.
      committed_aio: Asks how far the partition is committed; None where it is not.
      started: Told of every producer that is made.
    """

    def __init__(
        self,
        address: Address,
        group_id: str,
        partition: Any,
        claim: Claim,
        *,
        output_topics: Collection[str],
        still_member_aio: Callable[[], Awaitable[bool]],
        committed_aio: Callable[[Any], Awaitable[int | None]],
        started: Callable[[], None],
    ) -> None:
        self._address, self._group_id, self._partition, self._claim = address, group_id, partition, claim
        self._output_topics = output_topics
        self._still_member_aio, self._committed_aio, self._started = still_member_aio, committed_aio, started
        self._seconds = min(_LONGEST_TRANSACTION_SECONDS, address.settings.session_timeout * 2 / 3)
        self._staged: dict[int, Sequence[Message]] = {}
        self._ended = self._told = False
        self._alone: set[int] = set()
        """Offsets whose outputs were refused together with others': asked for each of them."""
        self._producer: Any = None
        self._line: Line | None = None
        self._in_doubt: int | None = None
        """The offset of a transaction that has ended without our knowing how."""
        self._base: int | None = None
        """How far the partition is committed, as far as we know."""

    # Trio's side.

    @property
    def staged(self) -> int:
        """Messages of the partition whose outputs are not committed."""
        return len(self._staged)

    def stage(self, claim: Claim, offset: int, outputs: Sequence[Message]) -> None:
        """These are the outputs of the message at *offset* of *claim*; its finish must follow.

        Raises:
          Closed: if the partition is not ours any more.
        """
        if self._ended or claim is not self._claim:
            raise Closed(self._claim.name, "is not ours any more")
        self._staged[offset] = outputs

    def go_over_to(self, claim: Claim) -> None:
        """The same assignment goes on as another claim: its offsets begin anew, and the old ones mean nothing."""
        self._forget()
        self._claim, self._in_doubt = claim, None

    def _forget(self) -> None:
        for outputs in self._staged.values():
            for message in outputs:
                message.resolve(Closed(self._claim.name, "is not ours any more"))
        self._staged.clear()
        self._alone.clear()

    # Life.

    async def start_aio(self) -> int | None:
        """Fence whoever had the partition, then ask how far it is committed: in this order, for it may be moving yet.

        Returns the committed offset; None where there is none, or where the claim has ended meanwhile.
        """
        claim = self._claim
        while claim.live and not claim.lost and not await self._made_aio():
            pass
        if not claim.live or claim.lost:
            return None
        self._base = await self._committed_aio(self._partition)
        return self._base

    async def end_aio(self) -> None:
        """Nothing more is brought up.  A transaction that is under way is ended by the next owner's producer."""
        self._ended = True
        self._forget()
        await self._retire_aio()

    async def _retire_aio(self) -> None:
        producer, self._producer = self._producer, None
        if producer is None:
            return
        if self._in_doubt is not None:
            # Left open, it would hold up everybody who reads what is committed, until the broker loses patience.
            with contextlib.suppress(TimeoutError, AssertionError, aiokafka.errors.KafkaError):
                async with asyncio.timeout(_ABORT_SECONDS):
                    await producer.abort_transaction()
        await stopped_aio(producer, _STOP_SECONDS)

    async def _made_aio(self) -> bool:
        await self._retire_aio()
        if self._ended:  # made now, it would fence the next owner
            return False
        address = self._address
        producer = aiokafka.AIOKafkaProducer(
            **address.client(address.bootstrap_servers) | {"retry_backoff_ms": _BACKOFF_MS},
            transactional_id=f"{self._group_id}/{self._partition.topic}/{self._partition.partition}",
            transaction_timeout_ms=round(self._seconds * 1000),
            linger_ms=0,
            max_batch_size=_BATCH_BYTES,
            max_request_size=MAX_MESSAGE_BYTES,
        )
        try:
            async with asyncio.timeout(self._seconds):
                await unhurried_aio(producer.start())
                line = Line(producer)
                await finish_hanging_aio(producer, self._output_topics, self._group_id)
        except _FENCED as error:
            await stopped_aio(producer, _STOP_SECONDS)
            self._fenced(error)
            return False
        except (TimeoutError, AssertionError, aiokafka.errors.KafkaError) as error:
            await stopped_aio(producer, _STOP_SECONDS)
            if is_final(error):
                raise
            self._tell("no transactions for %s yet: %r; trying again", error)
            await asyncio.sleep(RETRY_BACKOFF_SECONDS)
            return False
        except BaseException:  # a cancellation too: nothing of it may be left behind
            await stopped_aio(producer, _STOP_SECONDS)
            raise
        self._started()
        if self._ended:  # meanwhile
            await stopped_aio(producer, _STOP_SECONDS)
            return False
        self._producer, self._line = producer, line
        return True

    # Transactions.

    async def bring_up_aio(self, limit: int) -> bool:
        """Commit the outputs of the messages below *limit*, and that offset: all of it, or a first part.

        Says whether anything was committed.  Where not, it may be tried again, unless the claim is lost.
        """
        if self._claim.lost:
            return False
        # Where the line has broken, what was acknowledged last may hang.
        if self._in_doubt is not None or self._line is None or not self._line.holds:
            if not await self._doubt_resolved_aio():
                return False
            if self._claim.watermark.is_committed(limit - 1):
                return True  # it had been committed after all
        offset, outputs = self._take(limit)
        self._in_doubt = offset  # whatever happens, even a cancellation, until we know
        try:
            async with asyncio.timeout(self._seconds):
                failed = await self._transaction_aio(offset, outputs)
        except _FENCED as error:
            self._fenced(error)
            return False
        except (TimeoutError, AssertionError, aiokafka.errors.IllegalOperation, aiokafka.errors.KafkaError) as error:
            # The client's own states are assertions: after a fatal error it refuses to go on with one.
            if is_final(error):
                raise
            if isinstance(error, TimeoutError) and await self._lost_a_topic_aio(outputs):
                return False
            self._tell("a transaction of %s failed, trying again: %r", error)
            await asyncio.sleep(RETRY_BACKOFF_SECONDS)
            return False
        if failed:
            # After a refusal the sequence numbers of a producer are out of step: the next one ends its transaction.
            await self._refused_aio(failed)
            return False
        self._base, self._in_doubt = offset, None
        self._told = False
        self._settle(offset)
        return True

    def _take(self, limit: int) -> tuple[int, list[Message]]:
        """The outputs of one transaction, in the order of their messages, and the offset behind these."""
        taken: list[Message] = []
        size = 0
        for count, offset in enumerate(sorted(staged for staged in self._staged if staged < limit)):
            single = offset in self._alone
            if count and (single or len(taken) >= _ROUND_MESSAGES or size >= _ROUND_BYTES):
                return offset, taken
            taken += self._staged[offset]
            size += sum(message.size for message in self._staged[offset])
            if single:
                return offset + 1, taken
        return limit, taken

    async def _transaction_aio(
        self, offset: int, outputs: Sequence[Message]
    ) -> list[tuple[Message, aiokafka.errors.KafkaError]]:
        producer = self._producer
        await producer.begin_transaction()
        sent: list[tuple[Message, asyncio.Future[Any]]] = []
        for message in outputs:
            try:
                future = await producer.send(message.topic, message.value, key=message.key, headers=message.headers)
            except (*TOO_LARGE, *MAYBE_GONE, *ABOUT_THE_TOPIC) as error:
                return [(message, error)]
            except aiokafka.errors.IllegalOperation:
                # The client's word for "not after what happened", and that is in the answers to what was sent before.
                if any(isinstance(_error_of(future), _FENCED) for _, future in sent):
                    raise aiokafka.errors.ProducerFenced from None
                raise
            sent.append((message, future))
        await producer.flush()
        # Looked at one by one: the client would commit the transaction without what was refused.
        failed = [(message, future.exception()) for message, future in sent if future.exception() is not None]
        if failed:
            if any(isinstance(error, _FENCED) for _, error in failed):
                raise aiokafka.errors.ProducerFenced
            return failed
        await producer.send_offsets_to_transaction({self._partition: offset}, self._group_id)
        if self._claim.lost or self._claim.state == "closed":
            raise aiokafka.errors.IllegalStateError("the partition was taken away")
        await producer.commit_transaction()
        return []

    def _settle(self, limit: int) -> None:
        self._claim.watermark.committed(limit)
        for offset in [staged for staged in self._staged if staged < limit]:
            self._alone.discard(offset)
            for message in self._staged.pop(offset):
                message.resolve()

    async def _doubt_resolved_aio(self) -> bool:
        """Find out what became of a transaction: a new producer ends the old one's, in the one way or the other."""
        if not await self._still_member_aio() or self._claim.state == "closed":
            return False
        if not await self._made_aio():
            return False
        before, self._base = self._base, await self._committed_aio(self._partition)
        if self._base is not None and self._base == self._in_doubt:
            self._settle(self._base)
        elif self._base != before:
            self._fenced(aiokafka.errors.ProducerFenced("somebody else has committed"))
            return False
        self._in_doubt = None
        return True

    async def _refused_aio(self, failed: Sequence[tuple[Message, aiokafka.errors.KafkaError]]) -> None:
        """Kafka takes some of the outputs for nothing in the world, or does not now."""
        errors = {id(message): error for message, error in failed}
        found = {
            offset: next((m for m in outputs if id(m) in errors), None) for offset, outputs in self._staged.items()
        }
        concerned = {offset: message for offset, message in found.items() if message is not None}
        # After one refusal the client fails what follows, whatever it is: those who were only behind it come again.
        refused = {offset: message for offset, message in concerned.items() if is_refusal(errors[id(message)])}
        for offset, message in refused.items():
            if len(refused) == 1:
                self._unstage(offset, refusal(self._address, message, errors[id(message)]))
            else:
                self._alone.add(offset)
        if refused:
            return
        doubtful = [m for m in concerned.values() if isinstance(errors[id(m)], MAYBE_GONE)]
        if not await self._lost_a_topic_aio(doubtful):
            self._tell("outputs of %s were not taken, trying again: %r", failed[0][1])
            await asyncio.sleep(RETRY_BACKOFF_SECONDS)

    async def _lost_a_topic_aio(self, outputs: Sequence[Message]) -> bool:
        """Whether it is for a topic that is gone that the client waits.  It would, and say nothing."""
        gone = {topic for topic in {m.topic for m in outputs} if await is_topic_gone_aio(self._address, topic)}
        for offset, staged in list(self._staged.items()):
            for message in staged:
                if message.topic in gone:
                    unknown = aiokafka.errors.UnknownTopicOrPartitionError
                    self._unstage(offset, self._address.no_topic(message.topic, unknown))
                    break
        return bool(gone)

    def _unstage(self, offset: int, error: Any) -> None:
        outputs = self._staged.pop(offset, ())
        self._alone.discard(offset)
        self._claim.watermark.reopen(offset)
        for output in outputs:
            output.resolve(error)

    def _tell(self, line: str, error: BaseException) -> None:
        # Once until one succeeds: a broker may be away for long.
        logger.log(logging.INFO if self._told else logging.WARNING, line, self._claim.name, error)
        self._told = True

    def _fenced(self, error: Exception) -> None:
        # Never a new producer now: it would fence the rightful owner in turn.  Only an assignment makes one.
        self._claim.lost = True
        logger.warning("%s belongs to another member now: %r", self._claim.name, error)


def _error_of(future: asyncio.Future[Any]) -> BaseException | None:
    return future.exception() if future.done() and not future.cancelled() else None


def is_final(error: BaseException) -> bool:
    """Whether Kafka will not let us have transactions at all."""
    return isinstance(
        error,
        aiokafka.errors.TransactionalIdAuthorizationFailed
        | aiokafka.errors.GroupAuthorizationFailedError
        | aiokafka.errors.UnsupportedVersionError
        | aiokafka.errors.IncompatibleBrokerVersion,
    )
