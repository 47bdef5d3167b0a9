"""The bridge to Kafka: records come in through a channel, offsets and lists go back, all of it within one block.

Trio's side.  The asyncio loop that the client needs lives in a task of its own, in this thread: what is synchronous
here only touches memory and costs no crossing.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio
from aiokafka.errors import KafkaConnectionError

from ._blame import lone_errors_bare
from ._kafka_absence import Absence
from ._kafka_bridge import ABANDON_SECONDS, Bridge
from ._kafka_claims import Claim, Record
from ._kafka_connect import Address, connect_aio
from ._kafka_context import ContextReader
from ._kafka_log import Hush
from ._kafka_look import Look
from ._kafka_sink import Message, Sink
from ._kafka_source import Source
from ._observer import Observer
from ._statistics import KafkaStatistics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

    from ._join import Context
    from ._settings import KafkaSettings

__all__ = ["Claim", "Kafka", "Message", "Record", "open_kafka"]

_SHORTEST_START_SECONDS: Final = 1.0


class Kafka:
    """What :func:`open_kafka` gives."""

    def __init__(self, bridge: Bridge, source: Source, sink: Sink | None) -> None:
        self._bridge, self._source, self._sink = bridge, source, sink
        self.records: trio.MemoryReceiveChannel[Record] = source.records
        """Messages as they come; ends after :meth:`stop_fetching`."""

    @property
    def loop(self) -> Any:
        """The asyncio loop, for ``service_loop``."""
        return self._bridge.loop

    def finish(self, record: Record) -> None:
        """Its batch is up for good, or it can have none: its offset may be committed.

        Without effect, but counted, if its partition was taken from us meanwhile.
        """
        self._source.group.finish(record)

    def discard(self, record: Record) -> None:
        """It was not begun and will not be: nothing waits for it, and nothing is committed past it."""
        self._source.group.discard(record)

    def wake(self) -> None:
        """There may be room again."""
        self._bridge.nudge()

    def stop_fetching(self) -> None:
        """No record comes any more: what nobody has taken out of ``records`` is discarded, and the channel ends."""
        self._source.stop_fetching()

    async def send(self, outputs: Sequence[Message], record: Record | None = None) -> None:
        """Bring messages up; return when all are acknowledged, however long the broker is away.

        Args:
          record: The message that these are the outputs of.  Where Kafka's transactions are used, they are committed
            together with its offset, which is finished with that.

        Raises:
          KafkaError: if Kafka refused one and would again: too large, not authorised, no such topic.
          Closed: if the connection or, in transactions, the partition ends before.

        Cancellation: whether the messages arrive is unknown.
        """
        if record is not None and record.claim.transactor is not None:
            record.claim.transactor.stage(record.claim, record.offset, outputs)
            self.finish(record)
        else:
            assert self._sink is not None, "neither a result_topic nor a dead_letter_topic was given"
            for message in outputs:
                self._sink.submit(message)
        try:
            for message in outputs:
                await message.done.wait()
        except trio.Cancelled:
            for message in outputs:
                message.unwanted = True
            raise
        await trio.lowlevel.checkpoint_if_cancelled()
        error = next((message.error for message in outputs if message.error is not None), None)
        if error is not None:
            try:
                raise error
            finally:
                del outputs, message, error  # the error holds this frame

    async def commit(self, seconds: float = 15.0) -> None:
        """Commit now what may be committed; return when that was tried, or after so many *seconds*.

        Cancellation: is waited through.
        """
        if self._bridge.running:
            tried = self._source.group.commits.ask()
            with trio.move_on_after(seconds, shield=True):
                await tried.wait()
        await trio.lowlevel.checkpoint()

    async def close(self, seconds: float) -> None:
        """End in good order: a last commit, the group left, the producer stopped.

        Takes so many *seconds* at most (and two or three to abandon what does not end), whatever Kafka does.

        Cancellation: is waited through.
        """
        self._bridge.end(seconds, commit=True)
        with trio.move_on_after(seconds + ABANDON_SECONDS, shield=True):
            await self._bridge.ended.wait()
        await trio.lowlevel.checkpoint()

    async def ends(self) -> dict[tuple[str, int], int]:
        """Where the partitions of the topics end now."""
        ends: dict[tuple[str, int], int] = await self._bridge.loop.run_aio_coroutine(self._source.ends_aio())
        return ends

    def has_read(self, ends: Mapping[tuple[str, int], int]) -> bool:
        """Whether everything of ours was handed out, up to these offsets."""
        group = self._source.group
        return not group.rebalancing and all(
            not claim.starting
            and claim.position is not None
            and claim.position >= ends.get((claim.topic, claim.partition), 0)
            for claim in group.claims.values()
        )

    def statistics(self) -> KafkaStatistics:
        """A frozen snapshot; nothing is asked of the network."""
        source, group = self._source, self._source.group
        return KafkaStatistics(
            assigned=tuple((claim.topic, claim.partition) for claim in group.claims.values()),
            lag={
                (claim.topic, claim.partition): source.lag(partition, claim)
                for partition, claim in group.claims.items()
            },
            records_delivered=source.delivered,
            already_done=source.already_done,
            commits=group.commits.acknowledged,
            rebalances=group.rebalances,
            late_finishes=group.late,
            dropped_records=group.dropped_records,
            offset_resets=source.beginnings.resets,
            transactional_producers=source.beginnings.producers,
            rebuilds=sum(half.rebuilds for half in (source, self._sink, self._bridge.context) if half is not None),
            loop_errors=self._bridge.errors.count,
        )


@asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_kafka(
    *,
    bootstrap_servers: str,
    topics: Sequence[str],
    group_id: str,
    output_topics: Sequence[str],
    transactional: bool,
    settings: KafkaSettings,
    connect_timeout: float,
    revoke_timeout: float,
    commit_interval: float,
    max_uncommitted: int,
    room: Callable[[], int],
    dropped: Callable[[Collection[Claim]], None],
    observer: Observer = Observer.SILENT,
    context: Context | None = None,
    joins: bool = True,
) -> AsyncIterator[Kafka]:
    """Connect, and consume until the block is left.

    The block begins when the connection works and the topics are there; joining the group goes on meanwhile, and is
    not bounded.

    Args:
      output_topics: Where messages may be sent to.
      transactional: Outputs and offsets are committed together.
      connect_timeout: Seconds for connection, login and topics.
      revoke_timeout: Seconds in which the batches of partitions that are taken from us may end.
      commit_interval: Seconds between commits.
      max_uncommitted: Messages of one partition that may be finished and not known as committed.
      room: How many records more would be taken now, beside those that wait in ``records``.  Called often.
      dropped: Told of the claims that ended with messages in flight, so that their batches be given up.
      observer: Told what was fetched and what is committed.
      context: Kept up to date with its topics.  These are read before the block begins, which may take its time.
      joins: False only looks at what the group has not done yet: it is not joined, and nothing is sent or committed.

    Raises:
      ConnectFailed: if there is no working connection within *connect_timeout*.
      TopicUnavailable: if a topic does not exist or is not ours to use; later too, if one is deleted.
      KafkaError: later, if Kafka refuses us for good.
      ValueError: if *bootstrap_servers* cannot be read.

    Leaving: after :meth:`Kafka.close` there is nothing left to do.  Without it (an exception, a cancellation)
    nothing is committed, and the group is left within five seconds.
    """
    address = Address(bootstrap_servers, settings)
    bridge, hush, absence = Bridge(), Hush(), Absence(bootstrap_servers)

    def fail(error: BaseException) -> None:
        bridge.fail(address.at_the_edge(error))

    async def start_aio() -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + connect_timeout
        kinds = {} if context is None else context.kinds
        names = dict.fromkeys((*topics, *output_topics, *kinds))
        partitions = await connect_aio(address, names, connect_timeout)
        try:
            if context:
                bridge.context = ContextReader(address, context, {topic: partitions[topic] for topic in kinds}, fail)
                await bridge.context.start_aio()
                deadline = loop.time() + connect_timeout
            async with asyncio.timeout_at(max(deadline, loop.time() + _SHORTEST_START_SECONDS)):
                if output_topics and joins and not transactional:
                    bridge.sink = Sink(address, absence, fail, bridge.nudge)
                    await bridge.sink.start_aio()
                bridge.source = (Source if joins else Look)(
                    address,
                    absence,
                    observer,
                    {topic: partitions[topic] for topic in topics},
                    group_id=group_id,
                    revoke_timeout=revoke_timeout,
                    commit_interval=commit_interval,
                    max_uncommitted=max_uncommitted,
                    output_topics=output_topics if transactional else None,
                    room=room,
                    dropped=dropped,
                    fail=fail,
                )
                await bridge.source.start_aio()
        except (TimeoutError, KafkaConnectionError) as error:
            # Their own words are "Unable to bootstrap", whatever it was; the reason is in the client's log only.
            raise address.failed(address.reason_of(hush.complaint or error)) from error
        except Exception as error:
            mapped = address.at_the_edge(error)
            raise mapped from mapped.__cause__
        hush.started()

    with lone_errors_bare() as theirs, hush.installed():
        async with trio.open_nursery() as nursery:
            try:
                # Not nursery.start(): cancelled at the wrong moment it waits for a task that is shielded already.
                nursery.start_soon(bridge.host, start_aio, name="trioagg Kafka")
                await bridge.ready.wait()
                for work in (bridge.gather, bridge.raise_failure):
                    nursery.start_soon(work)
                nursery.start_soon(bridge.watch_loop, nursery.cancel_scope)
                assert bridge.source is not None
                try:
                    yield Kafka(bridge, bridge.source, bridge.sink)
                except BaseException as error:
                    theirs.append(error)
                    raise
            finally:
                bridge.leave()
                nursery.cancel_scope.cancel()
