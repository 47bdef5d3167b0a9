"""What one batch's answers add up to.  No Trio, no clock, no I/O: facts come in as calls, one report comes out.

The rules, all of them:

* Every expected station has at most one answer.  The first one stands.
* A dict is a success, None is no output, anything else is a failure, as is an error; but for StationSkipped.
* The batch is closed once.  Whatever comes after that is late: it is counted and changes nothing.
* The report has one verdict for every expected station.  A station without an answer has ``timed_out`` where the
  deadline ended the batch, ``cancelled`` where something else did, and ``skipped`` where it was never started.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._errors import BadResult, StationSkipped
from ._records import Answer, BatchReport, CompletedBy, StationOutcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
    from types import TracebackType

    from ._records import Places

_ACCEPTED = Answer.ACCEPTED  # looked up once: an enum's attribute costs as much as the rest of an answer


class BatchCollector:
    """Collects the answers of one batch.

    Args:
      batch_id: The name of the batch; it is only carried along.
      expected_stations: The ids of the stations that should answer.  An id that is named twice counts once.
      encode: Turns a result into the bytes that will travel.  It is called when the station answers, so that a result
        that cannot be encoded is that station's failure and not the whole list's.
      starts: Filled by whoever runs the stations: when each was started, in seconds from the opening of the batch.
        Without it all stations count as started: their work is done elsewhere.

    Raises:
      TypeError: if *expected_stations* is one string instead of several.
    """

    __slots__ = (
        "_encode",
        "_expected",
        "_others",
        "_report",
        "_results",
        "_runs",
        "_starts",
        "attempts",
        "batch_id",
        "duplicates",
        "encoded",
        "failures",
        "late",
        "missing",
        "skips",
        "unknown",
    )

    def __init__(
        self,
        batch_id: str,
        expected_stations: Iterable[str],
        *,
        encode: Callable[[dict[str, Any]], bytes] | None = None,
        starts: Mapping[str, float] | None = None,
    ) -> None:
        self.batch_id = batch_id
        self._expected = each_once(expected_stations)
        self._encode = encode
        self._starts = starts
        # Two plain dicts instead of a record for every answer: most ledgers are never read, only counted.
        self._runs: dict[str, float | None] = {}
        self._others: dict[str, BaseException | None] = {}
        self._results: list[dict[str, Any]] = []
        self._report: BatchReport | None = None
        self.missing = len(self._expected)
        """How many stations have not answered."""
        self.encoded: list[bytes] = []
        """The results as *encode* made them, in the order of ``report.results``."""
        self.late = self.duplicates = self.unknown = 0
        self.failures = self.skips = 0
        """How many stations have failed, and how many answered that they are not run."""
        self.attempts: dict[str, int] = {}
        """Filled by whoever runs the stations: how often one was tried, where that is more than once."""

    def __repr__(self) -> str:
        done, expected = self.progress
        return f"<BatchCollector {self.batch_id!r} {done}/{expected}{' closed' if self._report else ''}>"

    @property
    def progress(self) -> tuple[int, int]:
        """How many stations have answered, and how many are expected."""
        return len(self._expected) - self.missing, len(self._expected)

    @property
    def successes(self) -> int:
        """How many stations have succeeded."""
        return len(self._results)

    @property
    def report(self) -> BatchReport | None:
        """The report, once the batch is closed."""
        return self._report

    def has_heard(self, stations: Iterable[str]) -> bool:
        """Whether those of *stations* that are expected have answered."""
        return all(station_id in self._runs or station_id not in self._expected for station_id in stations)

    def add_result(self, station_id: str, result: object, run_seconds: float | None = None) -> Answer:
        """A station has returned *result*.

        Args:
          result: A dict, or None for no output.  Anything else makes the station ``failed``.
          run_seconds: From the station's start to this answer.
        """
        if not isinstance(result, dict):
            error = None if result is None else BadResult(_not_a_result(result))
            dispose(result)
            return self._add_other(station_id, error, run_seconds)
        if self._report is not None or station_id in self._runs or station_id not in self._expected:
            return self._refuse(station_id)
        if self._encode is not None:
            try:
                self.encoded.append(self._encode(result))
            except BadResult as error:
                return self._add_other(station_id, _without_tracebacks(error), run_seconds)
            except Exception as error:  # a mistake in the encoder: as it is, for whoever has to find it
                return self._add_other(station_id, error, run_seconds)
        self._results.append(result)
        self._runs[station_id] = run_seconds
        self.missing -= 1
        return _ACCEPTED

    def add_failure(self, station_id: str, error: BaseException, run_seconds: float | None = None) -> Answer:
        """A station has failed with *error*, after *run_seconds*."""
        return self._add_other(station_id, error, run_seconds)

    def close(
        self,
        completed_by: CompletedBy | str,
        *,
        seconds: float | None = None,
        timeout_seconds: float | None = None,
        stuck: Mapping[str, Places] | None = None,
    ) -> BatchReport:
        """End the batch and fix its report.  A batch that is closed already keeps the report that it has.

        Args:
          completed_by: Why it ends.
          seconds: From the opening of the batch to now.
          timeout_seconds: From its opening to its deadline.
          stuck: Where stations wait that have not answered.

        Raises:
          ValueError: if *completed_by* is no reason, or is ``all`` while stations are missing.
        """
        if self._report is not None:
            return self._report
        completed_by = CompletedBy(completed_by)
        missing, expected = self.missing, len(self._expected)
        if missing and completed_by is CompletedBy.ALL:
            raise ValueError(f"batch {self.batch_id} is not completed by all: {missing} of {expected} are missing")
        skipped = 0
        if missing and self._starts is not None and len(self._starts) < expected:
            # Not expected - started: an answer may have been pushed for a station that was not started.
            skipped = len(self._expected.keys() - self._starts.keys() - self._runs.keys())
        at_deadline = completed_by is CompletedBy.TIMEOUT
        self._report = BatchReport(
            batch_id=self.batch_id,
            completed_by=completed_by,
            results=self._results,
            stations=_Ledger(
                self._expected,
                self._starts,
                self._runs,
                self._others,
                seconds,
                Verdict.TIMED_OUT if at_deadline else Verdict.CANCELLED,
                self.attempts,
                stuck or {},
            ),
            seconds=seconds,
            timeout_seconds=timeout_seconds,
            expected=expected,
            succeeded=len(self._results),
            no_output=len(self._others) - self.failures - self.skips,
            failed=self.failures,
            timed_out=missing - skipped if at_deadline else 0,
            cancelled=0 if at_deadline else missing - skipped,
            skipped=skipped + self.skips,
            first_error=self._first(skipped=False) if self.failures else None,
            first_skip=self._first(skipped=True) if self.skips else None,
        )
        return self._report

    def _add_other(self, station_id: str, error: BaseException | None, run_seconds: float | None) -> Answer:
        if self._report is not None or station_id in self._runs or station_id not in self._expected:
            return self._refuse(station_id)
        if error is not None:
            # Without our own frames: they would keep us, who keep the error.  By the method, since an error may be a
            # frozen dataclass, whose attributes cannot be set.
            error = error.with_traceback(_from_user_code(error.__traceback__))
            if isinstance(error, StationSkipped):
                self.skips += 1
            else:
                self.failures += 1
        self._others[station_id] = error
        self._runs[station_id] = run_seconds
        self.missing -= 1
        return _ACCEPTED

    def _first(self, *, skipped: bool) -> BaseException | None:
        errors = (error for error in self._others.values() if error is not None)
        return next((error for error in errors if isinstance(error, StationSkipped) is skipped), None)

    def _refuse(self, station_id: str) -> Answer:
        if station_id not in self._expected:
            self.unknown += 1
            return Answer.UNKNOWN
        if self._report is not None:
            self.late += 1
            return Answer.LATE
        self.duplicates += 1
        return Answer.DUPLICATE


def _verdict_of(error: BaseException | None) -> Verdict:
    if error is None:
        return Verdict.NO_OUTPUT
    return Verdict.SKIPPED if isinstance(error, StationSkipped) else Verdict.FAILED


def each_once(stations: Iterable[str]) -> dict[str, None]:
    """The ids in their order.

    Raises:
      TypeError: if *stations* is one string instead of several.
    """
    if isinstance(stations, str | bytes):
        raise TypeError(f"expected_stations must be several ids, not one string: use [{stations!r}]")
    return dict.fromkeys(stations)


def dispose(value: object) -> None:
    """Close a coroutine that nobody will await, so that Python does not warn about it somewhere else."""
    if inspect.iscoroutine(value) and inspect.getcoroutinestate(value) == inspect.CORO_CREATED:
        value.close()


def _without_tracebacks(error: BaseException) -> BaseException:
    """Take them off an error that is kept, and off its causes: each of their frames knows the one that called it, which
    knows the collector, which keeps the error.  The reason is in the words."""
    pending: list[BaseException | None] = [error]
    while pending:
        link = pending.pop()
        if link is not None and link.__traceback__ is not None:
            link.with_traceback(None)
            pending += link.__cause__, link.__context__
    return error


def _from_user_code(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_frame.f_globals.get("__package__") == __package__:
        traceback = traceback.tb_next
    return traceback


class _Ledger(Mapping[str, StationOutcome]):
    """The outcomes of a closed batch, made when somebody looks.

    A thousand batches of hung stations close in one pass of the scheduler: a record for each of their stations would
    make the last of them late.
    """

    __slots__ = ("_expected", "_facts", "_outcomes")

    def __init__(
        self,
        expected: dict[str, None],
        starts: Mapping[str, float] | None,
        runs: dict[str, float | None],
        others: dict[str, BaseException | None],
        seconds: float | None,
        missing: Verdict,
        attempts: Mapping[str, int],
        stuck: Mapping[str, Places],
    ) -> None:
        self._expected = expected
        self._facts = starts, runs, others, seconds, missing, attempts, stuck
        self._outcomes: dict[str, StationOutcome] | None = None

    def _all(self) -> dict[str, StationOutcome]:
        if self._outcomes is None:
            starts, runs, others, seconds, missing, attempts, stuck = self._facts
            if starts is not None and not others and not attempts and len(runs) == len(starts) == len(self._expected):
                succeeded = Verdict.SUCCEEDED
                self._outcomes = {one: StationOutcome(succeeded, starts[one], runs[one]) for one in self._expected}
                return self._outcomes
            self._outcomes = outcomes = {}
            for station_id in self._expected:
                started = None if starts is None else starts.get(station_id)
                error = None
                if station_id in runs:
                    ran = runs[station_id]
                    if station_id not in others:
                        verdict = Verdict.SUCCEEDED
                    else:
                        error = others[station_id]
                        verdict = _verdict_of(error)
                elif starts is not None and started is None:
                    outcomes[station_id] = StationOutcome(Verdict.SKIPPED, attempts=0)
                    continue
                else:
                    verdict, ran = missing, None if started is None or seconds is None else seconds - started
                unstarted = verdict is Verdict.SKIPPED and starts is not None and started is None
                tries, where = 0 if unstarted else attempts.get(station_id, 1), stuck.get(station_id, ())
                outcomes[station_id] = StationOutcome(verdict, started, ran, error, tries, where)
        return self._outcomes

    def __getitem__(self, station_id: str) -> StationOutcome:
        return self._all()[station_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._expected)

    def __len__(self) -> int:
        return len(self._expected)

    def keys(self) -> KeysView[str]:
        return self._expected.keys()

    def values(self) -> ValuesView[StationOutcome]:
        return self._all().values()

    def items(self) -> ItemsView[str, StationOutcome]:
        return self._all().items()

    def __repr__(self) -> str:
        return repr(self._all())


def _not_a_result(result: object) -> str:
    hint = ": make the callback `async def`, or await it" if inspect.isawaitable(result) else ""
    return f"returned {type(result).__name__}, not a dict or None{hint}"
