"""The producing half of the bridge: every list acknowledged, or refused for a reason that would stay the same.

``_aio`` marks an asyncio-flavoured function.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import aiokafka
import aiokafka.errors
import trio

from ._errors import Closed, KafkaError
from ._kafka_connect import RETRY_BACKOFF_SECONDS, abandon, look_for_topic_aio, unhurried_aio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._kafka_connect import Address

logger = logging.getLogger("trioagg")

MAX_MESSAGE_BYTES: Final = 32 * 1024 * 1024
"""What we hand to Kafka at all.  Topics take 1 MiB if nobody says otherwise, and no broker takes 100 MiB."""
_BATCH_BYTES: Final = 512 * 1024
_ROUND_MESSAGES, _ROUND_BYTES = 1000, 4 * 1024 * 1024
_AWAY_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 5.0
_LONGEST_PAUSE_SECONDS: Final = 5.0

_TOO_LARGE: Final = (aiokafka.errors.MessageSizeTooLargeError, aiokafka.errors.RecordListTooLargeError)
# Refused, and it would be refused again.
_REFUSED: Final = (
    aiokafka.errors.TopicAuthorizationFailedError,
    aiokafka.errors.ClusterAuthorizationFailedError,
    aiokafka.errors.InvalidTopicError,
    aiokafka.errors.CorruptRecordException,
    aiokafka.errors.InvalidTimestampError,
    aiokafka.errors.PolicyViolationError,
    aiokafka.errors.UnsupportedForMessageFormatError,
    aiokafka.errors.InvalidRequiredAcksError,
    aiokafka.errors.UnknownError,
)
_MAYBE_GONE: Final = (
    aiokafka.errors.NotLeaderForPartitionError,
    aiokafka.errors.LeaderNotAvailableError,
    aiokafka.errors.UnknownTopicOrPartitionError,
)


class _Waiting:
    """A message whose sender waits."""

    __slots__ = ("done", "error", "headers", "key", "left", "value")

    def __init__(self, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]]) -> None:
        self.key, self.value, self.headers = key, value, headers
        self.done = trio.Event()
        self.error: BaseException | None = None
        self.left = False
        """Its sender was cancelled before it was sent: it need not be."""

    @property
    def size(self) -> int:
        return len(self.key) + len(self.value)

    def resolve(self, error: BaseException | None = None) -> None:
        self.error = error
        self.done.set()


class Sink:
    """An idempotent producer for one topic, and the writer that feeds it.

    A round: take what waits, send all of it, wait until everything is acknowledged or refused, tell the senders.
    What comes meanwhile is for the next round, so that rounds grow with the load.

    Args:
      fail: Told of an error that ends everything.
      wanted: Told that something waits; :meth:`begin_round` is the answer, once it is time.
    """

    def __init__(
        self, address: Address, topic: str, fail: Callable[[BaseException], None], wanted: Callable[[], None]
    ) -> None:
        self._address, self._topic, self._fail, self._wanted = address, topic, fail, wanted
        self._producer: Any = None
        self._queue: deque[_Waiting] = deque()
        self._round: Sequence[_Waiting] = ()
        self._round_began: float | None = None
        self._away = False
        self._closed = False
        self._work = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # Trio's side.

    async def send(self, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]]) -> None:
        """Return when the message is acknowledged; wait as long as it takes.

        Raises:
          KafkaError: if it was refused, and would be again.
          Closed: if the connection ends before.

        Cancellation: whether the message arrives is unknown.
        """
        if self._closed:
            await trio.lowlevel.checkpoint()
            raise self._ended()
        waiting = _Waiting(key, value, headers)
        self._queue.append(waiting)
        self._wanted()
        try:
            await waiting.done.wait()
        except trio.Cancelled:
            waiting.left = True
            raise
        if waiting.error is not None:
            try:
                raise waiting.error
            finally:
                del waiting  # its error holds this frame

    def begin_round(self) -> None:
        """Send what waits, as soon as the round that is under way is over."""
        if self._queue:
            self._work.set()

    # Life.

    async def start_aio(self) -> None:
        self._producer = self._new_producer(self._address.reached)
        await unhurried_aio(self._producer.start())
        for work in (self._write_aio(), self._watch_aio()):
            task = asyncio.create_task(work, name="trioagg sink")
            task.add_done_callback(self._one_ended)
            self._tasks.append(task)

    async def end_aio(self, seconds: float) -> None:
        """Stop, and abandon what cannot be stopped.  Never longer than *seconds*."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds / 4)
        for waiting in (*self._round, *self._queue):
            if not waiting.done.is_set():
                waiting.resolve(self._ended())
        self._queue.clear()
        if self._producer is not None:
            await self._retire_aio(self._producer, seconds / 2)

    def _one_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            assert error is not None
            self._fail(error)

    def _ended(self) -> Closed:
        return Closed("the connection to Kafka", "has ended")

    def _new_producer(self, bootstrap_servers: str) -> Any:
        return aiokafka.AIOKafkaProducer(
            **self._address.client(bootstrap_servers),
            enable_idempotence=True,
            acks="all",
            linger_ms=0,
            max_batch_size=_BATCH_BYTES,
            max_request_size=MAX_MESSAGE_BYTES,
        )

    async def _retire_aio(self, producer: Any, seconds: float) -> None:
        stop = asyncio.create_task(producer.stop())
        try:
            # With something unacknowledged and no broker it would wait for ever.
            await asyncio.wait({stop}, timeout=seconds)
        finally:
            stop.cancel()
            stop.add_done_callback(lambda task: task.cancelled() or task.exception())
            abandon(producer.client)

    # The writer.

    async def _write_aio(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            self._round = self._take()
            self.begin_round()  # where there is more than one round takes
            if self._round:
                self._round_began = asyncio.get_running_loop().time()
                await self._bring_up_aio(self._round)
                self._round_began = None
                self._back()
            self._round = ()

    def _take(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        size = 0
        while self._queue and len(taken) < _ROUND_MESSAGES and size < _ROUND_BYTES:
            waiting = self._queue.popleft()
            if not waiting.left:
                taken.append(waiting)
                size += waiting.size
        return taken

    async def _bring_up_aio(self, messages: Sequence[_Waiting]) -> None:
        """Send until every message has its answer."""
        together, alone = list(messages), list[_Waiting]()
        pause = RETRY_BACKOFF_SECONDS
        while together or alone:
            some = together or [alone.pop()]
            failed = await self._send_all_aio(some)
            if some is together:
                together = []
            if not failed:
                continue
            # After one refusal an idempotent producer fails all that follows, whatever it is.
            await self._renew_aio()
            gone = None
            if any(isinstance(error, _MAYBE_GONE) for _, error in failed):
                gone = await look_for_topic_aio(self._address, self._topic, self._address.settings.request_timeout)
            refused = False
            for waiting, error in failed:
                if gone is not None:
                    waiting.resolve(self._address.no_topic(self._topic, 0))
                elif isinstance(error, _TOO_LARGE):
                    # Said of all that travelled together: ask for each of them.
                    refused = True
                    if len(some) == 1:
                        waiting.resolve(self._too_large(waiting))
                    else:
                        alone.append(waiting)
                elif isinstance(error, _REFUSED):
                    refused = True
                    waiting.resolve(self._address.at_the_edge(error))
                else:
                    together.append(waiting)
            if together and not refused:
                logger.warning("results to %s: sending again after %r", self._topic, failed[-1][1])
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _send_all_aio(self, messages: Sequence[_Waiting]) -> list[tuple[_Waiting, BaseException]]:
        sent: list[tuple[_Waiting, asyncio.Future[Any]]] = []
        failed: list[tuple[_Waiting, BaseException]] = []
        for index, waiting in enumerate(messages):
            try:
                sent.append((waiting, await self._send_aio(waiting)))
            except _TOO_LARGE:
                # The client's own limit: nothing was sent, and nothing is harmed.
                waiting.resolve(self._too_large(waiting))
            except aiokafka.errors.KafkaError as error:
                # It would say the same to all that follow, each time after a wait.
                failed += [(left, error) for left in messages[index:]]
                break
        # Not gather(): a callback for every future costs a third of the throughput.
        await self._producer.flush()
        for waiting, future in sent:
            error = future.exception()
            if error is None:
                waiting.resolve()
            elif isinstance(error, aiokafka.errors.KafkaError):
                failed.append((waiting, error))
            else:
                raise error
        return failed

    async def _send_aio(self, waiting: _Waiting) -> asyncio.Future[Any]:
        while True:
            try:
                future: asyncio.Future[Any] = await self._producer.send(
                    self._topic, waiting.value, key=waiting.key, headers=waiting.headers
                )
            except aiokafka.errors.KafkaTimeoutError:
                continue  # full, because the broker is away: nothing was taken
            return future

    async def _renew_aio(self) -> None:
        old = self._producer
        await self._retire_aio(old, _STOP_SECONDS)
        while True:
            self._producer = self._new_producer(self._address.bootstrap_servers)
            try:
                await unhurried_aio(self._producer.start())
            except aiokafka.errors.KafkaConnectionError:
                await self._retire_aio(self._producer, _STOP_SECONDS)
                await asyncio.sleep(RETRY_BACKOFF_SECONDS)
            else:
                return

    def _too_large(self, waiting: _Waiting) -> KafkaError:
        if waiting.size > MAX_MESSAGE_BYTES:
            reason, hint = f"it is larger than {MAX_MESSAGE_BYTES} bytes", "Give fewer stations to a message"
        else:
            reason = "the broker takes no message of this size"
            hint = "Raise the topic's max.message.bytes (1 MiB by default), or give fewer stations to a message"
        return KafkaError(f"a list of {waiting.size} bytes to topic {self._topic!r}", reason, hint)

    # Whether the broker is away.

    async def _watch_aio(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            began = self._round_began
            if began is not None and not self._away and loop.time() - began >= _AWAY_SECONDS:
                self._away = True
                logger.warning(
                    "Kafka at %s has acknowledged nothing for %.0f s: lists for %s wait, and are not lost",
                    self._address.bootstrap_servers,
                    loop.time() - began,
                    self._topic,
                )

    def _back(self) -> None:
        if self._away:
            self._away = False
            logger.warning("Kafka at %s acknowledges again", self._address.bootstrap_servers)
