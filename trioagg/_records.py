"""What a batch has to say for itself: frozen records, and how they are told as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import CodeType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ._encoding import encode_result
from ._errors import printable, words

if TYPE_CHECKING:
    from collections.abc import Mapping


_MOST_ERROR_TEXT: Final = 200

Places = tuple[tuple[CodeType, int] | str, ...]
"""Of a stack: code and line, or what else there is to say."""


def in_words(places: Places) -> tuple[str, ...]:
    """A stack, for people."""
    return tuple(
        place if isinstance(place, str) else f"{place[0].co_filename}:{place[1]} in {place[0].co_qualname}"
        for place in places
    )


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
    """It was never started, or said itself that it is not to be run (:class:`StationSkipped`)."""


class CompletedBy(StrEnum):
    """Why a batch ended.  It ends once."""

    ALL = "all"
    TIMEOUT = "timeout"
    QUORUM = "quorum"
    """Enough stations had answered."""
    FAILURES = "failures"
    """More stations had failed than may."""
    FORCED = "forced"
    """Somebody called ``complete()``."""
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
    """Why it failed: what the callback raised, or a :class:`BadResult`.  Or why it was skipped, where somebody said so.
    None for every other verdict."""
    attempts: int = 1
    """How often it was tried; 0 if it never started."""
    places: Places = ()
    """What :attr:`stuck_at` is made of."""

    @property
    def stuck_at(self) -> tuple[str, ...]:
        """Where it waited when the batch ended without it, innermost first: ``"file:line in function"``.

        A sample: of 20 stations of a batch at most, and of fewer where many batches end at once.
        """
        return in_words(self.places)

    def to_dict(self) -> dict[str, Any]:
        """In plain types that JSON has; what says nothing is left out."""
        told: dict[str, Any] = {
            "verdict": str(self.verdict),
            "started_seconds": self.started_seconds,
            "run_seconds": self.run_seconds,
        }
        if self.error is not None:
            text = words(self.error)
            text = text if len(text) <= _MOST_ERROR_TEXT else f"{text[:_MOST_ERROR_TEXT]}..."
            told["error"] = f"{type(self.error).__name__}: {text}"
        if self.attempts > 1:
            told["attempts"] = self.attempts
        if self.places:
            told["stuck_at"] = [printable(place) for place in self.stuck_at]
        return told


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
    timeout_seconds: float | None = None
    """The seconds that it had; None for a bare collector that was not told."""
    first_error: BaseException | None = None
    """Why the first of the failed stations failed; those of the others are in :attr:`stations`."""
    first_skip: BaseException | None = None
    """Why the first station was skipped that somebody said something about."""

    @property
    def answered(self) -> int:
        """Stations that answered in time, whatever they said; not those that were skipped."""
        return self.succeeded + self.no_output + self.failed

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain types that JSON has: the ledger, and the results.

        Raises:
          BadResult: if JSON has nothing for one of the results.
        """
        results = [msgspec.json.decode(encode_result(result)) for result in self.results]
        return {"batch_id": printable(self.batch_id), **self.ledger(), "results": results}

    def ledger(self) -> dict[str, Any]:
        """What became of every station, and the counts, in plain types that JSON has."""
        return {
            "completed_by": str(self.completed_by),
            "seconds": self.seconds,
            "expected": self.expected,
            "succeeded": self.succeeded,
            "no_output": self.no_output,
            "failed": self.failed,
            "timed_out": self.timed_out,
            "cancelled": self.cancelled,
            "skipped": self.skipped,
            "stations": {printable(station_id): outcome.to_dict() for station_id, outcome in self.stations.items()},
        }
