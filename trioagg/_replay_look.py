"""A look at the letters that nobody notices: what the group has committed is asked, and neither joined nor changed."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from ._blame import lone_errors_bare
from ._kafka import Kafka
from ._kafka_absence import Absence
from ._kafka_bridge import Bridge
from ._kafka_claims import Claim
from ._kafka_connect import Address, connect_aio
from ._kafka_log import Hush
from ._kafka_source import _NO_PARTITION, Source
from ._observer import Observer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from ._settings import KafkaSettings


class _Look(Source):
    """Takes every partition for itself, whoever has it in the group, and has no task that commits."""

    def _go(self) -> None:
        # The client takes its own kind of partition only, which only the bridge may import.
        claims = {
            _NO_PARTITION._replace(topic=topic, partition=number): Claim(topic, number)
            for topic, number in self._known_at_start
        }
        self._consumer.assign(list(claims))
        self.group.member.claims = claims
        self.group.member.rebalancing = False
        self.beginnings.claimed(claims)
        self._pump = self._tasks.start(self._pump_aio(), "look")


@asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_look(
    *,
    bootstrap_servers: str,
    topic: str,
    group_id: str,
    output_topics: Sequence[str],
    settings: KafkaSettings,
    connect_timeout: float,
    room: Callable[[], int],
) -> AsyncIterator[Kafka]:
    """Like :func:`open_kafka`, but a member of no group, and nothing can be sent or committed.

    Args:
      group_id: What it has committed is passed over.
      output_topics: They must be there.
    """
    address = Address(bootstrap_servers, settings)
    bridge, hush = Bridge(), Hush()

    def fail(error: BaseException) -> None:
        bridge.fail(address.at_the_edge(error))

    async def start_aio() -> None:
        partitions = await connect_aio(address, dict.fromkeys((topic, *output_topics)), connect_timeout)
        bridge.source = _Look(
            address,
            Absence(bootstrap_servers),
            Observer.SILENT,
            {topic: partitions[topic]},
            group_id=group_id,
            revoke_timeout=0.0,
            commit_interval=1.0,
            max_uncommitted=1000,
            output_topics=None,
            room=room,
            dropped=lambda claims: None,
            fail=fail,
        )
        try:
            await bridge.source.start_aio()
        except Exception as error:
            mapped = address.at_the_edge(error)
            raise mapped from mapped.__cause__
        hush.started()

    with lone_errors_bare() as theirs, hush.installed():
        async with trio.open_nursery() as nursery:
            try:
                nursery.start_soon(bridge.host, start_aio, name="trioagg Kafka look")
                await bridge.ready.wait()
                nursery.start_soon(bridge.gather)
                nursery.start_soon(bridge.raise_failure)
                nursery.start_soon(bridge.watch_loop, nursery.cancel_scope)
                assert bridge.source is not None
                try:
                    yield Kafka(bridge, bridge.source, None)
                except BaseException as error:
                    theirs.append(error)
                    raise
            finally:
                bridge.leave()
                nursery.cancel_scope.cancel()
