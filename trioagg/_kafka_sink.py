"""The producing half of the bridge: every list acknowledged, or refused for a reason that would stay the same.

``_aio`` marks an asyncio-flavoured function.
"""
# flake8: noqa: ASYNC910, ASYNC911, ASYNC913 - asyncio knows no checkpoints

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import aiokafka
import aiokafka.errors
import trio

from ._errors import Closed, KafkaError, MessageTooLarge
from ._kafka_absence import AWAY_SECONDS
from ._kafka_connect import RETRY_BACKOFF_SECONDS, WEDGED_RESERVE_SECONDS, is_reachable_aio, look_for_topic_aio
from ._kafka_tasks import Tasks, ended_aio, stopped_aio, unhurried_aio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._errors import TrioaggError
    from ._kafka_absence import Absence
    from ._kafka_connect import Address

logger = logging.getLogger("trioagg")

MAX_MESSAGE_BYTES: Final = 32 * 1024 * 1024
"""What we hand to Kafka at all.  A topic takes 1 MiB if nobody says otherwise, and no broker takes 100 MiB."""
_BATCH_BYTES: Final = 512 * 1024
_ROUND_MESSAGES, _ROUND_BYTES = 1000, 4 * 1024 * 1024
_RETIRE_SECONDS: Final = 5.0
_LONGEST_PAUSE_SECONDS: Final = 5.0

TOO_LARGE: Final = (aiokafka.errors.MessageSizeTooLargeError, aiokafka.errors.RecordListTooLargeError)
ABOUT_THE_TOPIC: Final = (
    aiokafka.errors.TopicAuthorizationFailedError,
    aiokafka.errors.ClusterAuthorizationFailedError,
    aiokafka.errors.InvalidTopicError,
)
MAYBE_GONE: Final = (
    aiokafka.errors.NotLeaderForPartitionError,
    aiokafka.errors.LeaderNotAvailableError,
    aiokafka.errors.UnknownTopicOrPartitionError,
)
# Said of this producer, not of the message: another producer may send it.
_ABOUT_THE_PRODUCER: Final = (
    aiokafka.errors.OutOfOrderSequenceNumber,
    aiokafka.errors.UnknownProducerId,
    aiokafka.errors.InvalidProducerEpoch,
    aiokafka.errors.InvalidProducerIdMapping,
    aiokafka.errors.InvalidTxnState,
    aiokafka.errors.ConcurrentTransactions,
    aiokafka.errors.DuplicateSequenceNumber,
    # Codes that the client does not know, and answers that a second try has cured.
    aiokafka.errors.UnknownError,
    aiokafka.errors.CorruptRecordException,
)


class Message:
    """A list or a dead letter on its way: ``done`` when it is acknowledged, or when ``error`` says why it is not."""

    __slots__ = ("done", "error", "headers", "key", "size", "topic", "unwanted", "value")

    def __init__(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        self.topic, self.key, self.value, self.headers = topic, key, value, headers
        self.size = (
            len(key or b"") + len(value or b"") + sum(len(name) + len(content or b"") for name, content in headers)
        )
        self.done = trio.Event()
        self.error: TrioaggError | None = None
        self.unwanted = False
        """Its sender does not wait any more: if it has not begun, it need not."""

    @property
    def up(self) -> bool:
        """Whether it is acknowledged."""
        return self.done.is_set() and self.error is None

    def resolve(self, error: TrioaggError | None = None) -> None:
        self.error = error
        self.done.set()


class Sink:
    """An idempotent producer for lists and dead letters, and the writer that feeds it.

    A round: take what waits, send all of it, wait until everything is acknowledged or refused, tell the senders.
    What comes meanwhile is for the next round, so that rounds grow with the load.

    Args:
      fail: Told of an error that ends everything.
      wanted: Told that something waits; :meth:`begin_round` is the answer, once it is time.
    """

    def __init__(
        self,
        address: Address,
        absence: Absence,
        fail: Callable[[BaseException], None],
        wanted: Callable[[], None],
    ) -> None:
        self._address, self._absence, self._wanted = address, absence, wanted
        self._producer: Any = None
        self._queue: deque[Message] = deque()
        self._round: Sequence[Message] = ()
        self._round_began: float | None = None
        self._wedged = asyncio.Event()
        self.wedged_seconds = address.settings.session_timeout + WEDGED_RESERVE_SECONDS
        """Without progress for so long, though Kafka answers, a producer is made anew."""
        self.rebuilds = 0
        self._ended = False
        self._work = asyncio.Event()
        self._tasks = Tasks(fail)

    # Trio's side.

    def submit(self, message: Message) -> None:
        if self._ended:
            message.resolve(_closed())
            return
        self._queue.append(message)
        self._wanted()

    def begin_round(self) -> None:
        """Send what waits, as soon as the round that is under way is over."""
        if self._queue:
            self._work.set()

    # Life.

    async def start_aio(self) -> None:
        self._producer = self._new_producer(self._address.reached)
        await unhurried_aio(self._producer.start())
        self._tasks.start(self._write_aio(), "sink")
        self._tasks.start(self._watch_aio(), "sink watch")

    async def end_aio(self, seconds: float) -> bool:
        """Stop.  Says whether the producer ended in good order; it takes *seconds*, and a second or two else."""
        self._ended = True
        await self._tasks.cancel_aio()
        for message in (*self._round, *self._queue):
            if not message.done.is_set():
                message.resolve(_closed())
        self._queue.clear()
        if self._producer is None:
            return True
        # With something unacknowledged and no broker it would wait for ever.
        return await ended_aio(asyncio.create_task(self._producer.stop()), seconds)

    @property
    def client(self) -> Any:
        """What is to be abandoned if it does not end."""
        return getattr(self._producer, "client", None)

    def _new_producer(self, bootstrap_servers: str) -> Any:
        return aiokafka.AIOKafkaProducer(
            **self._address.client(bootstrap_servers),
            enable_idempotence=True,
            acks="all",
            linger_ms=0,
            max_batch_size=_BATCH_BYTES,
            max_request_size=MAX_MESSAGE_BYTES,
        )

    async def _renew_aio(self) -> None:
        await self._retire_aio()
        while True:
            self._producer = self._new_producer(self._address.bootstrap_servers)
            self._wedged.clear()
            try:
                await unhurried_aio(self._producer.start())
                return
            except aiokafka.errors.KafkaConnectionError:
                await self._retire_aio()
                await asyncio.sleep(RETRY_BACKOFF_SECONDS)

    async def _retire_aio(self) -> None:
        # Nothing of it is under way: what it had was acknowledged or refused, or it does nothing any more.
        await stopped_aio(self._producer, _RETIRE_SECONDS)

    # The writer.

    async def _write_aio(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            self._wedged.clear()  # whatever was said of an earlier round
            self._round = self._take()
            self.begin_round()  # for what a round does not hold
            if self._round:
                self._round_began = asyncio.get_running_loop().time()
                await self._bring_up_aio(self._round)
                self._round_began = None
                self._absence.over()
            self._round = ()

    def _take(self) -> list[Message]:
        taken: list[Message] = []
        size = 0
        while self._queue and len(taken) < _ROUND_MESSAGES and size < _ROUND_BYTES:
            message = self._queue.popleft()
            if not message.unwanted:
                taken.append(message)
                size += message.size
        return taken

    async def _bring_up_aio(self, messages: Sequence[Message]) -> None:
        """Send until every message has its answer."""
        together, alone = list(messages), list[Message]()
        pause = RETRY_BACKOFF_SECONDS
        while together or alone:
            some, together = together or [alone.pop()], []
            failed = await self._send_aio(some)
            if not failed:
                continue
            # After one refusal an idempotent producer fails all that follows, whatever it is.
            await self._renew_aio()
            doubtful = {message.topic for message, error in failed if isinstance(error, MAYBE_GONE)}
            gone = {topic for topic in doubtful if await is_topic_gone_aio(self._address, topic)}
            for message, error in failed:
                if message.topic in gone:
                    message.resolve(self._address.no_topic(message.topic, aiokafka.errors.UnknownTopicOrPartitionError))
                elif not is_refusal(error):
                    together.append(message)
                elif len(some) == 1 or isinstance(error, ABOUT_THE_TOPIC):
                    message.resolve(refusal(self._address, message, error))
                else:
                    # Said of all that travelled together, because of one: it is asked for each of them.
                    alone.append(message)
            if len(together) == len(failed):
                logger.warning("lists to %s: sending again after %r", failed[0][0].topic, failed[0][1])
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _send_aio(self, messages: Sequence[Message]) -> list[tuple[Message, aiokafka.errors.KafkaError]]:
        sent: list[tuple[Message, asyncio.Future[Any]]] = []
        failed: list[tuple[Message, aiokafka.errors.KafkaError]] = []
        for index, message in enumerate(messages):
            try:
                sent.append((message, await self._hand_over_aio(message)))
            except TOO_LARGE as error:
                # The client's own limit: nothing was sent, and nothing is harmed.
                message.resolve(refusal(self._address, message, error))
            except aiokafka.errors.KafkaError as error:
                # It would say the same to all that follow, each time after a wait.
                failed += [(other, error) for other in messages[index:]]
                break
        # Not gather(): a callback for every future costs a third of the throughput.
        await self._flushed_aio()
        for message, future in sent:
            if not future.done():
                future.cancel()
                failed.append((message, aiokafka.errors.KafkaTimeoutError("the producer makes no progress")))
                continue
            why = future.exception()
            if why is None:
                message.resolve()
            elif isinstance(why, aiokafka.errors.KafkaError):
                failed.append((message, why))
            else:
                raise why
        return failed

    async def _flushed_aio(self) -> None:
        """Everything is acknowledged or refused; or the producer is wedged, so that another one must send it again."""
        flush = asyncio.create_task(self._producer.flush())
        wedged = asyncio.create_task(self._wedged.wait())
        try:
            await asyncio.wait({flush, wedged}, return_when=asyncio.FIRST_COMPLETED)
            if flush.done():
                flush.result()
        finally:
            flush.cancel()
            wedged.cancel()

    async def _hand_over_aio(self, message: Message) -> asyncio.Future[Any]:
        while True:
            try:
                future: asyncio.Future[Any] = await self._producer.send(
                    message.topic, message.value, key=message.key, headers=message.headers
                )
                return future
            except aiokafka.errors.KafkaTimeoutError:
                # Full, because the broker is away: nothing was taken.
                if self._wedged.is_set():
                    raise

    # Whether the broker is away, or the producer wedged.

    async def _watch_aio(self) -> None:
        loop = asyncio.get_running_loop()
        answers_since: float | None = None
        while True:
            await asyncio.sleep(1.0)
            began = self._round_began
            if began is None or loop.time() - began < AWAY_SECONDS:
                answers_since = None
                continue
            topics = ", ".join(sorted({message.topic for message in self._round}))
            self._absence.noticed(loop.time() - began, f"lists for {topics}")
            if not await is_reachable_aio(self._address) or self._round_began != began:
                answers_since = None
                continue
            # Others are answered, and our round is not.  A new leader takes a while, but no longer than that.
            answers_since = loop.time() if answers_since is None else answers_since
            if loop.time() - answers_since >= self.wedged_seconds:
                answers_since = None
                self.rebuilds += 1
                logger.error(
                    "the producer has made no progress for %.0f s, though Kafka answers: it is made anew, and "
                    "what was on its way may arrive twice",
                    loop.time() - began,
                )
                self._wedged.set()


def _closed() -> Closed:
    return Closed("the connection to Kafka", "has ended")


async def is_topic_gone_aio(address: Address, topic: str) -> bool:
    """Whether the brokers say that there is no such topic; not if nobody answers."""
    return await look_for_topic_aio(address, topic, address.settings.request_timeout) is not None


def refusal(address: Address, message: Message, error: aiokafka.errors.KafkaError) -> TrioaggError:
    """What the sender of a message is told that Kafka refused for good."""
    if not isinstance(error, TOO_LARGE):
        mapped = address.at_the_edge(error)
        assert isinstance(mapped, KafkaError)
        return mapped
    if message.size > MAX_MESSAGE_BYTES:
        reason, hint = f"it is larger than {MAX_MESSAGE_BYTES} bytes", "Give fewer stations to a message"
    else:
        reason = "the broker takes no message of this size"
        hint = "Raise the topic's max.message.bytes (1 MiB by default), or give fewer stations to a message"
    return MessageTooLarge(message.topic, message.size, reason, hint)


def is_refusal(error: aiokafka.errors.KafkaError) -> bool:
    """Whether the broker would say the same to another producer, now and later."""
    answered = isinstance(error, aiokafka.errors.BrokerResponseError)
    return answered and not error.retriable and not isinstance(error, _ABOUT_THE_PRODUCER)
