"""The bridge to Kafka: records come in through a channel, offsets and lists go back, all of it within one block.

Trio's side.  The asyncio loop that the client needs lives in a task of its own, in this thread: what is synchronous
here only touches memory and costs no crossing.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio
import trio.testing

from ._aio import LoopErrors, open_drained_loop
from ._blame import lone_errors_bare
from ._kafka_connect import Address, Hush, Reason, connect_aio
from ._kafka_sink import Sink
from ._kafka_source import Claim, Record, Source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

    from ._settings import KafkaSettings

__all__ = ["Claim", "Kafka", "KafkaStatistics", "Record", "open_kafka"]

_ABORT_SECONDS: Final = 4.0
_GRACE_SECONDS: Final = 1.0
_GATHER_SECONDS: Final = 0.02
_EXIT_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaStatistics:
    """A snapshot of the bridge."""

    assigned: tuple[tuple[str, int], ...]
    """The partitions that are ours now."""
    lag: Mapping[tuple[str, int], int | None]
    """Records between our position and the end of the partition, as the last fetch saw it; None before the first."""
    records_delivered: int
    commits: int
    """Acknowledged commit requests."""
    rebalances: int
    """How often partitions were taken from us, even if they came back."""
    late_finishes: int
    """Messages finished after their partition was gone: they moved no offset."""
    dropped_records: int
    """Messages in flight when the time of a revoke was over: another member processes them again."""
    offset_resets: int
    """How often an offset was not there any more."""
    loop_errors: int
    """Errors in the asyncio loop that nobody looked at; each is in the log."""


class Kafka:
    """What :func:`open_kafka` gives."""

    def __init__(self, open_seconds: float, start: Callable[[Kafka], Any]) -> None:
        self._open_seconds, self._start = open_seconds, start
        self._loop: Any = None
        self._source: Any = None
        self._sink: Sink | None = None
        self._errors = LoopErrors(self._fail)
        self._failure: BaseException | None = None
        self._failed, self._asked_to_end = trio.Event(), trio.Event()
        # Not nursery.start(): cancelled between the two, it would wait for a task that is shielded already.
        self._ready = trio.Event()
        self._ended, self._body_left = trio.Event(), trio.Event()
        self._nudged = trio.Event()
        self._last_commit = False
        self._end_seconds = _ABORT_SECONDS
        self.records: trio.MemoryReceiveChannel[Record]

    @property
    def loop(self) -> Any:
        """The asyncio loop, for ``service_loop``."""
        return self._loop

    # What the service calls, from Trio.

    def finish(self, record: Record) -> None:
        """Its batch is up for good, or it can have none: its offset may be committed.

        Without effect, but counted, if its partition was taken from us meanwhile.
        """
        self._source.finish(record)

    def discard(self, record: Record) -> None:
        """It was not begun and will not be: nothing waits for it, and nothing is committed past it."""
        self._source.discard(record)

    def wake(self) -> None:
        """There may be room again."""
        self._nudged.set()

    def stop_fetching(self) -> None:
        """No record comes any more: what nobody has taken out of ``records`` is discarded, and the channel ends."""
        self._source.stop_fetching()

    async def send(self, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        """Bring a message to the result topic; return when it is acknowledged, however long the broker is away.

        Raises:
          KafkaError: if Kafka refused it and would again: too large, not authorised, no such topic.
          Closed: if the connection ends before.

        Cancellation: whether the message arrives is unknown.
        """
        assert self._sink is not None, "no result_topic was given"
        await self._sink.send(key, value, headers)

    async def commit(self, timeout: float = 15.0) -> None:
        """Commit now what may be committed; return when that was tried, or after *timeout* seconds.

        Cancellation: is waited through.
        """
        if not self._asked_to_end.is_set() and self._failure is None:
            with trio.move_on_after(timeout, shield=True):
                await self._source.ask_for_commit().wait()
        await trio.lowlevel.checkpoint()

    async def close(self, timeout: float) -> None:
        """End in good order: a last commit, the group left, the producer stopped.

        Takes *timeout* seconds at most (and a second to abandon what does not end), whatever Kafka does.

        Cancellation: is waited through.
        """
        if not self._asked_to_end.is_set():
            self._last_commit, self._end_seconds = True, timeout
            self._asked_to_end.set()
        with trio.move_on_after(self._end_seconds + _GRACE_SECONDS, shield=True):
            await self._ended.wait()
        await trio.lowlevel.checkpoint()

    def statistics(self) -> KafkaStatistics:
        """A frozen snapshot; nothing is asked of the network."""
        source: Source = self._source
        claims = list(source.assigned)
        return KafkaStatistics(
            assigned=tuple((claim.topic, claim.partition) for claim in claims),
            lag={(claim.topic, claim.partition): source.lag(claim) for claim in claims},
            records_delivered=source.delivered,
            commits=source.commits,
            rebalances=source.rebalances,
            late_finishes=source.late,
            dropped_records=source.dropped_records,
            offset_resets=source.resets,
            loop_errors=self._errors.count,
        )

    # How it lives.

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
            self._failed.set()
            self._release()

    def _release(self) -> None:
        if self._source is not None:
            self._source.release()

    async def _host(self) -> None:
        """The task that the asyncio loop lives in.  Its context has that loop as the current one, nobody else's has."""
        async with open_drained_loop(self._errors) as loop:
            self._loop = loop
            try:
                await loop.run_aio_coroutine(self._start(self))
            except BaseException:
                self._end_seconds = min(self._end_seconds, _ABORT_SECONDS)
                await self._end(loop)
                raise
            self.records = self._source.records
            self._ready.set()
            # It outlives the cancellation of the block: until the block is left, there may be something to do.
            with trio.CancelScope(shield=True):
                await self._asked_to_end.wait()
                await self._end(loop)
                self._ended.set()
                await self._body_left.wait()

    async def _end(self, loop: Any) -> None:
        if not loop.is_running():
            return
        with trio.move_on_after(self._end_seconds + _GRACE_SECONDS, shield=True):
            await loop.run_aio_coroutine(self._end_aio())

    async def _end_aio(self) -> None:
        ends = []
        if self._source is not None:
            ends.append(self._source.end_aio(commit=self._last_commit, seconds=self._end_seconds))
        if self._sink is not None:
            ends.append(self._sink.end_aio(self._end_seconds))
        await asyncio.gather(*ends, return_exceptions=True)

    async def _gather(self) -> None:
        """Tell the asyncio side what Trio's has for it: when nobody else has anything to do, or after 20 ms.

        Told at once, it would make a request for every list and a fetch for every free place: the broker is quick, and
        the loop is drained, so that under load an answer is here before the next list is.  That took half of the time.
        """
        while True:
            await self._nudged.wait()
            self._nudged = trio.Event()
            with trio.move_on_after(_GATHER_SECONDS):
                await trio.testing.wait_all_tasks_blocked()
            self._source.wake()
            if self._sink is not None:
                self._sink.begin_round()

    async def _raise_failure(self) -> None:
        await self._failed.wait()
        assert self._failure is not None
        if not isinstance(self._failure, Exception):
            # An exit out of an asyncio task reaches whoever waits for that task: let it be one error, and not two.
            await trio.sleep(_EXIT_SECONDS)
        raise self._failure

    async def _watch_loop(self, scope: trio.CancelScope) -> None:
        # Whatever ended the loop comes out of the task that it lives in, once everybody else has left.
        await self._loop.wait_stopped()
        if not self._body_left.is_set():
            self._ended.set()
            self._release()
            scope.cancel()


@asynccontextmanager
async def open_kafka(
    *,
    bootstrap_servers: str,
    topics: Sequence[str],
    group_id: str,
    result_topic: str | None,
    settings: KafkaSettings,
    connect_timeout: float,
    revoke_timeout: float,
    commit_interval: float,
    max_uncommitted: int,
    room: Callable[[], int],
    dropped: Callable[[Collection[Claim]], None],
) -> AsyncIterator[Kafka]:
    """Connect, and consume until the block is left.

    The block begins when the connection works and the topics are there; joining the group goes on meanwhile, and is
    not bounded.

    Args:
      connect_timeout: Seconds for connection, login and topics.
      revoke_timeout: Seconds in which the batches of partitions that are taken from us may end.
      commit_interval: Seconds between commits.
      max_uncommitted: Messages of one partition that may be finished and not known as committed.
      room: How many records more would be taken now, beside those that wait in ``records``.  Called often.
      dropped: Told of the claims that ended with messages in flight, so that their batches be given up.

    Raises:
      ConnectFailed: if there is no working connection within *connect_timeout*.
      TopicUnavailable: if a topic does not exist or is not ours to use; later too, if one is deleted.
      KafkaError: later, if Kafka refuses us for good.
      ValueError: if *bootstrap_servers* cannot be read.

    Leaving: after :meth:`Kafka.close` there is nothing left to do.  Without it (an exception, a cancellation)
    nothing is committed, and the group is left within five seconds.
    """
    address = Address(bootstrap_servers, settings)

    async def start_aio(kafka: Kafka) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + connect_timeout
        names = list(dict.fromkeys([*topics, *([result_topic] if result_topic is not None else [])]))
        partitions = await connect_aio(address, names, connect_timeout)
        try:
            async with asyncio.timeout_at(max(deadline, loop.time() + _GRACE_SECONDS)):
                if result_topic is not None:
                    kafka._sink = Sink(address, result_topic, fail, kafka.wake)
                    await kafka._sink.start_aio()
                kafka._source = source = Source(
                    address,
                    {topic: partitions[topic] for topic in topics},
                    group_id=group_id,
                    revoke_timeout=revoke_timeout,
                    commit_interval=commit_interval,
                    max_uncommitted=max_uncommitted,
                    room=room,
                    dropped=dropped,
                    fail=fail,
                )
                await source.start_aio()
        except Exception as error:
            mapped = address.at_the_edge(error)
            complaint = hush.complaint
            if isinstance(complaint, BaseException):
                raise address.failed(address.explain(complaint, bootstrap_servers)) from error
            if isinstance(error, TimeoutError):
                raise address.failed(Reason(complaint or f"no answer within {connect_timeout:g} s")) from error
            raise mapped from mapped.__cause__
        hush.starting = False

    def fail(error: BaseException) -> None:
        kafka._fail(address.at_the_edge(error))

    hush = Hush()
    kafka = Kafka(connect_timeout, start_aio)
    with lone_errors_bare(), hush.installed():
        async with trio.open_nursery() as nursery:
            try:
                nursery.start_soon(kafka._host)
                await kafka._ready.wait()
                nursery.start_soon(kafka._gather)
                nursery.start_soon(kafka._raise_failure)
                nursery.start_soon(kafka._watch_loop, nursery.cancel_scope)
                yield kafka
            finally:
                kafka._body_left.set()
                kafka._asked_to_end.set()
                nursery.cancel_scope.cancel()
