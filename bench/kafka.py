"""The broker that is measured against: a real one of our own, the user's, or librdkafka's stand-in."""

from __future__ import annotations

import sys
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MOCK: Final = "mock"
_PATIENCE_SECONDS: Final = 15.0


@dataclass(frozen=True)
class Kafka:
    """Where it is, and what it is."""

    bootstrap: str
    what: str
    partitions: int = 4

    def topic(self, name: str) -> str:
        """A new topic of a name that nobody else has."""
        from confluent_kafka.admin import AdminClient
        from confluent_kafka.cimpl import NewTopic

        unique = f"bench-{name}-{uuid.uuid4().hex[:8]}"
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        try:
            admin.create_topics([NewTopic(unique, self.partitions, 1)])[unique].result(_PATIENCE_SECONDS)
        except Exception as error:  # whatever it is, the user's broker has not made it
            sys.exit(f"{self.bootstrap}: no topic {unique} could be made: {error}")
        return unique


@contextmanager
def kafka(bootstrap_servers: str | None) -> Iterator[Kafka]:
    """A broker, gone with the block if it is ours.

    Args:
      bootstrap_servers: The user's; ``mock`` for the stand-in; None for a real one of our own, as the tests start it
        (Java 17 and Maven).
    """
    try:
        import confluent_kafka  # noqa: F401 - only to say early and clearly that it is missing
    except ModuleNotFoundError:
        sys.exit("this bench needs confluent-kafka, to send and read from outside: pip install '.[bench]'")
    if bootstrap_servers == MOCK:
        from trioagg._mock_broker import mock_broker

        with mock_broker([]) as bootstrap:
            yield Kafka(bootstrap, "librdkafka's mock broker")
        return
    if bootstrap_servers is not None:
        yield Kafka(bootstrap_servers, bootstrap_servers)
        return
    from .faults import harness

    broker, _ = harness()
    try:
        jars = broker.kafka_jars()
    except broker.NoKafka as error:
        sys.exit(f"{error}; --bootstrap-servers takes a broker of yours, or `mock`")
    with broker.Broker(jars) as running:
        yield Kafka(running.bootstrap, f"Apache Kafka {broker.KAFKA_VERSION}")
