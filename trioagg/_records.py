"""What a batch has to say for itself: frozen records, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping


class Verdict(StrEnum):
    """What became of one expected station.  Every station of a closed batch has exactly one."""

    SUCCEEDED = "succeeded"
    """It returned a dict in time."""
    NO_OUTPUT = "no_output"
    """It returned None in time."""
    FAILED = "failed"
    """It raised, or returned something that is neither a dict nor None, in time."""
    TIMED_OUT = "timed_out"
    """It had started and had not answered at the deadline."""
    CANCELLED = "cancelled"
    """It had started when the batch was ended early."""
    SKIPPED = "skipped"
    """It was never started."""


class CompletedBy(StrEnum):
    """Why a batch ended.  It ends once."""

    ALL = "all"
    TIMEOUT = "timeout"
    QUORUM = "quorum"
    FAILURES = "failures"
    FORCED = "forced"
    ABORTED = "aborted"
    """The service itself was cancelled: no list goes up, no offset moves."""


class Answer(StrEnum):
    """What became of one answer.  Only an accepted one counts towards the batch."""

    ACCEPTED = "accepted"
    LATE = "late"
    """The batch was closed already."""
    DUPLICATE = "duplicate"
    """The station had answered already; the first answer stands."""
    UNKNOWN = "unknown"
    """No such station is expected, or no such batch is known."""


# A msgspec.Struct, not a dataclass: one is made for every station, and a frozen dataclass costs seven times as much.
class StationOutcome(msgspec.Struct, frozen=True):
    """One line of a batch's ledger."""

    verdict: Verdict
    started_seconds: float | None = None
    """From the opening of the batch to the station's start, on Trio's clock; None if it never started (or, in push
    mode, if nobody said when)."""
    run_seconds: float | None = None
    """From the station's start to its answer, or to the end of the batch where it gave none; None if it never
    started."""
    error: BaseException | None = None
    """Why it failed: what the callback raised, or a :class:`BadResult`.  None for every other verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """Everything one batch has to say.  Fixed when the batch ends; nothing that comes later changes it."""

    batch_id: str
    completed_by: CompletedBy
    results: list[dict[str, Any]]
    """The dicts of the stations that succeeded, as the callback returned them, in the order in which they finished."""
    stations: Mapping[str, StationOutcome]
    """One outcome for every expected station, in the order in which they were given."""
    seconds: float | None
    """From the opening of the batch to its list, on Trio's clock; None for a bare collector that was not told."""
    expected: int
    succeeded: int
    no_output: int
    failed: int
    """The verdict alone: raised, or a result of the wrong type.  Late and skipped stations have counts of their own."""
    timed_out: int
    cancelled: int
    skipped: int
    first_error: BaseException | None = None
    """Why the first of the failed stations failed; those of the others are in :attr:`stations`."""

    @property
    def answered(self) -> int:
        """Stations that answered in time, whatever they said."""
        return self.succeeded + self.no_output + self.failed
