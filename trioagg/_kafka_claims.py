"""What is ours of Kafka: partitions for a while, and the messages that came from them."""

from __future__ import annotations

from dataclasses import dataclass

from ._watermark import Watermark


class Claim:
    """One assignment of one partition: open, then revoking, then closed.  The same partition comes back as another."""

    __slots__ = ("lost", "partition", "position", "starting", "state", "topic", "watermark")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic, self.partition = topic, partition
        self.state = "open"
        self.watermark = Watermark()
        self.position: int | None = None
        """The next offset that can come, as far as anybody looked."""
        self.starting = False
        """The offset where it begins is being looked for."""
        self.lost = False
        """Somebody else may have the partition: nothing is committed any more."""

    @property
    def live(self) -> bool:
        """Whether its messages may still be begun."""
        return self.state == "open"

    def __repr__(self) -> str:
        return f"<Claim {self.topic}/{self.partition} {self.state}>"


@dataclass(slots=True, eq=False)
class Record:
    """One message as delivered."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None
    """Milliseconds since the epoch; None where it has none."""
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    claim: Claim
