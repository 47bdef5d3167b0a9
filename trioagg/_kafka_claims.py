"""What is ours of Kafka: partitions for a while, and the messages that came from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ._watermark import Watermark


class Transactor(Protocol):
    """What a claim knows of its transactions; they know it."""

    @property
    def staged(self) -> int: ...

    def stage(self, claim: Claim, offset: int, outputs: Any) -> None: ...

    def go_over_to(self, claim: Claim) -> None: ...

    async def bring_up_aio(self, limit: int) -> bool: ...

    async def end_aio(self) -> None: ...


class Claim:
    """One assignment of one partition: open, then revoking, then closed.  The same partition comes back as another."""

    __slots__ = (
        *("done_before", "lost", "narrow", "partition", "position", "starting", "state"),
        *("told", "topic", "transactor", "watermark"),
    )

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
        self.done_before: frozenset[int] = frozenset()
        """Offsets that are still to come and need not be done again: the last commit says so."""
        self.told: tuple[int, ...] = ()
        """Finished offsets beyond the committed one that the last acknowledged commit tells of."""
        self.narrow = False
        """A commit cannot tell of all of these any more: no more is fetched for now."""
        self.transactor: Transactor | None = None
        """Where outputs and offsets are committed together."""

    @property
    def live(self) -> bool:
        """Whether its messages may still be begun."""
        return self.state == "open"

    @property
    def name(self) -> str:
        """What it is called in the log."""
        return f"{self.topic}/{self.partition}"

    @property
    def unsettled(self) -> int:
        """Its messages that are in flight, or finished with outputs that are not committed."""
        return self.watermark.in_flight + (0 if self.transactor is None else self.transactor.staged)

    def __repr__(self) -> str:
        return f"<Claim {self.name} {self.state}>"


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
