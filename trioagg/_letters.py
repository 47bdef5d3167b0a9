"""Dead letters: what one says, and the brake for a service that would write nothing else.  No I/O, no clock.

A letter is the message as it came (its key, value and headers), with headers of ours behind its own: why it is dead,
and where it came from.  Kafka Connect writes its dead letters in this way too, so that tools which show headers do.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Final, Literal, Protocol

import msgspec

from ._errors import TooManyDeadLetters, printable, words

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ._records import BatchReport

    DeadLetterReason = Literal["poison", "upload_failed", "stations"]

_MOST_TEXT: Final = 2000
_NAMES: Final = tuple(
    f"trioagg-{name}"
    for name in (
        *("reason", "exception-type", "exception-text", "topic", "partition", "offset", "timestamp-ms"),
        *("batch-id", "stations", "ledger", "service", "version"),
    )
)


class Original(Protocol):
    """The message that a letter is about."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None
    headers: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterLimit:
    """When too many messages are dead, the fault is ours: the service stops, instead of emptying a topic into another.

    A message counts as dead when it is poison, when its list was given up, or when a letter is written for its stations
    and not one of them succeeded.

    Raises:
      ValueError: when made, if a value is out of its range.
    """

    max_consecutive: int = 100
    """So many dead messages in a row are borne; one more stops the service."""
    max_ratio: float = 0.5
    """So large a part of the last *over* messages may be dead."""
    over: int = 1000
    """Messages that *max_ratio* looks back on."""

    def __post_init__(self) -> None:
        for name in ("max_consecutive", "over"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: it must be 1 or more")
        if not 0 < self.max_ratio <= 1:
            raise ValueError(f"max_ratio={self.max_ratio!r}: it must be more than 0 and at most 1")


class Brake:
    """Counts messages as they end, dead or not."""

    def __init__(self, limit: DeadLetterLimit | None) -> None:
        self._limit = limit
        self._in_a_row = 0
        self._last: deque[bool] = deque(maxlen=1 if limit is None else limit.over)
        self._dead = 0

    def alive(self) -> None:
        """A message has ended well."""
        self._in_a_row = 0
        self._count(dead=False)

    def dead(self, reason: str) -> None:
        """A letter is about to be written.

        Raises:
          TooManyDeadLetters: if it must not be.
        """
        self._in_a_row += 1
        self._count(dead=True)
        limit = self._limit
        if limit is None:
            return
        if self._in_a_row > limit.max_consecutive:
            raise TooManyDeadLetters(f"{self._in_a_row} messages in a row", reason)
        if self._dead > limit.max_ratio * limit.over:
            raise TooManyDeadLetters(f"{self._dead} of the last {len(self._last)} messages", reason)

    def _count(self, *, dead: bool) -> None:
        if len(self._last) == self._last.maxlen:
            self._dead -= self._last[0]
        self._last.append(dead)
        self._dead += dead


def dead_letter_headers(
    original: Original,
    reason: DeadLetterReason,
    service: str,
    *,
    error: BaseException | None = None,
    report: BatchReport | None = None,
    stations: Collection[str] = (),
    with_ledger: bool = True,
) -> list[tuple[str, bytes]]:
    """The headers of a letter: those of the message, then ours.

    Args:
      service: The name of the service that gave the message up.
      error: What was raised, or what an upload failed of.
      report: Of the batch, where the message became one.
      stations: Those that the letter is about, where it is not about all of them.
      with_ledger: Without it only the counts of the batch are told: a ledger may be larger than its message.
    """
    ours: list[tuple[str, str | bytes | None]] = [
        ("reason", reason),
        ("exception-type", None if error is None else type(error).__name__),
        ("exception-text", None if error is None else _said(error, _MOST_TEXT)),
        ("topic", original.topic),
        ("partition", str(original.partition)),
        ("offset", str(original.offset)),
        ("timestamp-ms", None if original.timestamp_ms is None else str(original.timestamp_ms)),
        ("batch-id", None if report is None else report.batch_id),
        (
            "stations",
            msgspec.json.encode([printable(station_id) for station_id in stations])
            if stations and with_ledger
            else None,
        ),
        ("ledger", None if report is None else _ledger(report, full=with_ledger)),
        ("service", service),
        ("version", _version()),
    ]
    # A letter that was sent back and died again tells of its last death.
    theirs = [header for header in original.headers if header[0] not in _NAMES]
    return theirs + [
        (f"trioagg-{name}", value.encode(errors="replace") if isinstance(value, str) else value)
        for name, value in ours
        if value is not None
    ]


def stations_with(report: BatchReport, verdicts: Collection[str]) -> list[str]:
    """The stations of a batch that ended in one of *verdicts*."""
    # The counts first: they cost nothing, and in a good batch they are all 0.
    if not any(getattr(report, verdict) for verdict in verdicts):
        return []
    return [station_id for station_id, outcome in report.stations.items() if outcome.verdict in verdicts]


def _ledger(report: BatchReport, *, full: bool) -> bytes:
    ledger = report.ledger()
    if not full:
        del ledger["stations"]
    return msgspec.json.encode(ledger)


def _said(error: BaseException, most: int) -> str:
    text = words(error)
    return text if len(text) <= most else f"{text[:most]}..."


def _version() -> str:
    try:
        return metadata.version("trioagg")
    except metadata.PackageNotFoundError:  # run from a directory that was never installed
        return "unknown"


def check_verdicts(verdicts: Iterable[str]) -> frozenset[str]:
    """The verdicts that letters can be asked for.

    Raises:
      ValueError: if one of them is none of these.
    """
    known = ("failed", "timed_out", "cancelled", "skipped", "no_output")
    if isinstance(verdicts, str):
        raise ValueError(f"dead_letter_stations must be several verdicts, not one string: use ({verdicts!r},)")
    asked = frozenset(str(verdict) for verdict in verdicts)
    if strange := asked.difference(known):
        raise ValueError(f"dead_letter_stations={sorted(strange)}: use some of {', '.join(known)}")
    return asked
