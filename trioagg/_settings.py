"""How to talk to Kafka, and what a message may be.  Values only: no client, no environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSettings:
    """The connection's own settings.  Everything about batches is a parameter of the service.

    Raises:
      ValueError: when made, if a value is out of its range or two of them contradict each other.
    """

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ssl_context: ssl.SSLContext | None = None
    """For SSL and SASL_SSL; None there means the system's certificate authorities."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    client_id: str = "trioagg"
    group_instance_id: str | None = None
    """A fixed name for this member (static membership): a quick restart causes no rebalance."""
    start_offset: Literal["earliest", "latest"] = "earliest"
    """Where to begin on a partition for which the group has no commit; never used where it has one."""
    isolation_level: Literal["read_uncommitted", "read_committed"] = "read_uncommitted"
    max_fetch_bytes: int = 64 * 1024 * 1024
    """What the client may have fetched ahead, all partitions together, in bytes."""
    session_timeout: float = 45.0
    """Seconds without a heartbeat after which the group takes this member for dead."""
    heartbeat_interval: float = 3.0
    request_timeout: float = 15.0

    def __post_init__(self) -> None:
        sasl = self.security_protocol.startswith("SASL_")
        if self.security_protocol not in ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"):
            raise ValueError(
                f"security_protocol={self.security_protocol!r}: use PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
            )
        if sasl and (self.sasl_mechanism is None or self.sasl_username is None or self.sasl_password is None):
            raise ValueError(
                f"security_protocol={self.security_protocol!r} needs sasl_mechanism=, sasl_username= and sasl_password="
            )
        if not sasl and self.sasl_mechanism is not None:
            raise ValueError(
                f"sasl_mechanism={self.sasl_mechanism!r} needs security_protocol='SASL_SSL' or 'SASL_PLAINTEXT', "
                f"not {self.security_protocol!r}"
            )
        if self.start_offset not in ("earliest", "latest"):
            raise ValueError(f"start_offset={self.start_offset!r}: use 'earliest' or 'latest'")
        if self.isolation_level not in ("read_uncommitted", "read_committed"):
            raise ValueError(f"isolation_level={self.isolation_level!r}: use 'read_uncommitted' or 'read_committed'")
        if self.max_fetch_bytes < 1:
            raise ValueError(f"max_fetch_bytes={self.max_fetch_bytes}: it must be at least 1 byte")
        for name in ("session_timeout", "heartbeat_interval", "request_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be more than 0 seconds")
        if self.heartbeat_interval * 2 > self.session_timeout:
            raise ValueError(
                f"heartbeat_interval={self.heartbeat_interval:g} must be at most half of "
                f"session_timeout={self.session_timeout:g}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLimits:
    """How much one message may ask for.  What is beyond is poison, with the reason; it costs no other message anything.

    Raises:
      ValueError: when made, if a value is less than 1.
    """

    max_message_bytes: int = 8 * 1024 * 1024
    """Of the value.  Kafka itself lets 1 MiB through if nobody says otherwise."""
    max_stations: int = 10_000
    """In one message."""
    max_depth: int = 100
    """Lists and objects within each other."""
    max_id_chars: int = 256
    """Of a station id.  An element with a longer one is rejected; the others of its message are not."""

    def __post_init__(self) -> None:
        for name in ("max_message_bytes", "max_stations", "max_depth", "max_id_chars"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: it must be 1 or more")
