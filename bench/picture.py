"""One batch as trace events, in Chrome's JSON format: from what an instrument has kept of it.  No Trio, no clock.

A station's row has a slice from its start to its answer, named for its verdict: that is the ledger's truth, to the
clock's resolution.  In it lie what the loop did for it: ``runs``, and ``waits for the loop``, where its task was
runnable and another one ran.  Where neither is, it waited for something of its own: a timer, a socket, a thread.

What is approximated:

* A task serves many stations, and one step of it holds several: its steps are cut where the ledger says that the next
  station began.  What Trio's clock and ours read differs by the time between two readings; steps and ledger are laid
  over each other so that no station starts before the step that it starts in, which is a few microseconds off at most.
* Tasks that a callback starts by itself are no station's row: their steps are under ``everything else``, by their name.
  So are stations that still run after their batch was closed, and what a serving task does between two stations.
* A station that has not begun has no slice yet, whether its server waits for the loop or there is none.
* ``everything else`` joins steps of one kind that lie closer than 20 us together: what Trio needs between two steps
  looks like a part of them there.  ``busy_us`` is without it.
* All times are rounded to 1/8 us.

VizTracer traces functions and threads, and gives all its own events (``add_raw``) to the thread that they come from:
there are no rows of tasks to be had from it.  So the events are written here.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from trioagg import BatchReport, StationOutcome, Verdict
from trioagg._errors import printable, words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trioagg import BatchContext

WIDTH: Final = 5
"""Of a step: scheduled, began, ended, which task, which batch."""
_JOIN_NS: Final = 20_000
_BETWEEN: Final = "between stations"

_PROCESS: Final = 1
_BATCH_ROW: Final = 1  # the same as the process: the viewers put its "main thread" on top
_ELSE_ROW: Final = 2
_FIRST_STATION_ROW: Final = 10

_COLOURS: Final = {
    Verdict.SUCCEEDED: "good",
    Verdict.NO_OUTPUT: "grey",
    Verdict.FAILED: "terrible",
    Verdict.TIMED_OUT: "bad",
    Verdict.CANCELLED: "yellow",
    Verdict.SKIPPED: "white",
}
"""The old viewer's names.  Perfetto chooses by the name of the slice, which is the verdict for that reason."""


@dataclass(slots=True, eq=False)
class Life:
    """One batch, in nanoseconds on the timeline's clock."""

    context: BatchContext
    opened: int
    deadline: int | None
    first: int
    """The number of the first step since its opening."""
    closed: int = 0
    report: BatchReport | None = None
    uploads: list[tuple[str, int, int]] = field(default_factory=list)
    """What became of a try, when it began and when it ended."""
    over: int | None = None
    log: array[int] = field(default_factory=lambda: array("q"))
    names: list[str] = field(default_factory=list)
    complete: bool = True


class Picture:
    """One batch's trace events, from what is known of it."""

    def __init__(self, life: Life, report: BatchReport) -> None:
        self._life, self._report = life, report
        log = life.log
        self._steps = [
            (log[i], log[i + 1], log[i + 2], log[i + 3], log[i + 4] == id(life.context))
            for i in range(0, len(log), WIDTH)
        ]
        self._first_named: dict[str, int] = {}
        """Station -> the step that was the first to end in its name.  It began in that one."""
        self._origin = self._laid_over()
        self._closed = self._origin + _ns(report.seconds)
        self._end = max(self._closed, life.over or 0, *(ended for _, _, ended in life.uploads))
        self._spans = {
            station: (began, min(began + _ns(outcome.run_seconds), self._closed))
            for station, outcome in report.stations.items()
            if outcome.started_seconds is not None
            for began in [self._origin + _ns(outcome.started_seconds)]
        }
        self._pieces: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
        self._others: list[tuple[str, int, int, int, int]] = []
        """Label, begin, end, nanoseconds in steps, steps."""
        self._joinable = False
        self._share_out()

    def _laid_over(self) -> int:
        """When the batch was opened: as late as no station has begun before the step that it began in.  The ledger's
        times count from there."""
        latest = self._life.opened
        stations = self._report.stations
        bounds, last_name = [], dict[int, str]()
        for number, (_, began, _, task, ours) in enumerate(self._steps):
            name = self._life.names[number]
            if ours and last_name.get(task) != name:
                last_name[task] = name
                if name in stations and name not in self._first_named:
                    self._first_named[name] = number
                    started = stations[name].started_seconds
                    if started is not None:
                        bounds.append(began - _ns(started))
        # A task of the callback's own may bear a station's name, and proves nothing.
        return max((bound for bound in bounds if bound <= latest), default=latest)

    def _share_out(self) -> None:
        began_in = self._stations_by_step()
        serving: dict[int, str | None] = {}
        last_ended: dict[int, int] = {}
        for number, (scheduled, began, ended, task, ours) in enumerate(self._steps):
            name = self._life.names[number]
            if not ours:
                foreign = self._is_station_of_another(number)
                self._everything_else("other batches" if foreign else name, began, ended)
                continue
            station = serving.get(task)
            if station is not None:
                # A task that gives way is scheduled before its step has ended.
                self._piece(station, "waits for the loop", max(scheduled, last_ended.get(task, 0)), began)
            at = began
            for following in began_in.get(number, ()):
                until = min(max(self._spans[following][0], at), ended)
                self._ran(station, name, at, until)
                station, at = following, until
            self._ran(station, name, at, ended)
            serving[task], last_ended[task] = station, ended

    def _stations_by_step(self) -> dict[int, list[str]]:
        """Which stations began in which step, in their order."""
        ours = [number for number, step in enumerate(self._steps) if step[4]]
        ends = [self._steps[number][2] for number in ours]
        began_in: dict[int, list[str]] = defaultdict(list)
        for station, (began, _) in sorted(self._spans.items(), key=lambda item: item[1]):
            number = self._first_named.get(station)
            if number is None:  # it came and went within a step: the one that was running then
                place = bisect_left(ends, began)
                if place == len(ends):
                    continue
                number = ours[place]
            began_in[number].append(station)
        return began_in

    def _is_station_of_another(self, number: int) -> bool:
        return self._life.log[number * WIDTH + 4] != id(None)

    def _ran(self, station: str | None, name: str, began: int, ended: int) -> None:
        if station is None:
            self._everything_else(_BETWEEN if name in self._spans else name, began, ended)
            return
        since, until = self._spans[station]
        self._everything_else(_BETWEEN, began, min(ended, since))
        self._piece(station, "runs", began, ended)
        # Until its batch was closed, and not until an answer of its own: it is a straggler.
        self._everything_else("stragglers" if until == self._closed else _BETWEEN, max(began, until), ended)

    def _piece(self, station: str, what: str, began: int, ended: int) -> None:
        since, until = self._spans[station]
        began, ended = max(began, since), min(ended, until)
        if ended > began:
            self._pieces[station].append((what, began, ended))
            if what == "runs":
                self._joinable = False

    def _everything_else(self, label: str, began: int, ended: int) -> None:
        began, ended = max(began, self._origin), min(ended, self._end)
        if ended <= began:
            return
        if self._joinable and self._others:
            last, since, until, busy, steps = self._others[-1]
            if last == label and began - until <= _JOIN_NS:
                self._others[-1] = label, since, ended, busy + ended - began, steps + 1
                return
        self._others.append((label, began, ended, ended - began, 1))
        self._joinable = True

    # The events.

    def events(self) -> list[dict[str, Any]]:
        """Names first, then by time, outer slices before inner ones.  Times are from the opening of the batch."""
        stations = sorted(self._report.stations, key=lambda station: self._spans.get(station, (self._end, 0)))
        rows = {station: number for number, station in enumerate(stations, _FIRST_STATION_ROW)}
        names = [
            *_row(_BATCH_ROW, "the batch"),
            *_row(_ELSE_ROW, "everything else"),
            *(event for station in stations for event in _row(rows[station], printable(station))),
        ]
        timed = [*self._of_the_batch(), *self._of_everything_else()]
        for station, row in rows.items():
            timed += self._of_a_station(station, row)
        timed.sort(key=lambda event: (event["ts"], event["tid"], -event.get("dur", 0)))
        title = {"name": f"batch {printable(self._report.batch_id)}"}
        return [
            {"ph": "M", "ts": 0, "pid": _PROCESS, "tid": _BATCH_ROW, "name": "process_name", "args": title},
            *names,
            *timed,
        ]

    def _of_the_batch(self) -> Iterator[dict[str, Any]]:
        life, report = self._life, self._report
        args: dict[str, Any] = {
            "completed_by": str(report.completed_by),
            "milliseconds": _ns(report.seconds) / 1e6,
            "expected": report.expected,
            "succeeded": report.succeeded,
            "no_output": report.no_output,
            "failed": report.failed,
            "timed_out": report.timed_out,
            "cancelled": report.cancelled,
            "skipped": report.skipped,
        }
        if life.deadline is not None:
            args["deadline_milliseconds"] = (life.deadline - self._origin) / 1e6
        if not life.complete:
            args["steps"] = "the first ones are missing: there were too many"
        yield self._slice("open", _BATCH_ROW, self._origin, self._closed, args)
        yield self._instant("opened", _BATCH_ROW, self._origin)
        if life.deadline is not None and life.deadline <= self._end:  # else the picture were mostly empty
            yield self._instant("deadline", _BATCH_ROW, life.deadline, scope="p")
        yield self._instant("closed", _BATCH_ROW, self._closed)
        for number, (result, began, ended) in enumerate(life.uploads, 1):
            args = {"try": number, "result": result or "not known yet"}
            yield self._slice("uploading", _BATCH_ROW, max(began, self._closed), ended or self._end, args)
        if life.uploads and life.uploads[-1][0] == "uploaded":
            yield self._instant("uploaded", _BATCH_ROW, life.uploads[-1][2])

    def _of_everything_else(self) -> Iterator[dict[str, Any]]:
        for label, began, ended, busy, steps in self._others:
            yield self._slice(printable(label), _ELSE_ROW, began, ended, {"steps": steps, "busy_us": busy / 1000})

    def _of_a_station(self, station: str, row: int) -> Iterator[dict[str, Any]]:
        outcome = self._report.stations[station]
        if station not in self._spans:
            yield self._instant(str(outcome.verdict), row, self._closed)
            return
        began, ended = self._spans[station]
        pieces = self._pieces[station]
        event = self._slice(str(outcome.verdict), row, began, ended, _facts(outcome, pieces))
        yield event | {"cname": _COLOURS[outcome.verdict]}
        for what, since, until in pieces:
            inner = self._slice(what, row, since, until, {})
            if inner["dur"]:
                yield inner

    def _slice(self, name: str, row: int, began: int, ended: int, args: dict[str, Any]) -> dict[str, Any]:
        ts = self._ts(began)
        return {
            "ph": "X",
            "ts": ts,
            "dur": max(0.0, self._ts(ended) - ts),
            "pid": _PROCESS,
            "tid": row,
            "name": name,
            "args": args,
        }

    def _instant(self, name: str, row: int, when: int, scope: str = "t") -> dict[str, Any]:
        return {"ph": "i", "ts": self._ts(when), "pid": _PROCESS, "tid": row, "name": name, "s": scope}

    def _ts(self, when: int) -> float:
        # Microseconds, in eighths: viewers multiply by a thousand and cut off, and may drop an inner slice that ends a
        # nanosecond after its outer one.  Eighths survive that exactly.
        return round((when - self._origin) / 125) / 8


def _row(row: int, name: str) -> Iterator[dict[str, Any]]:
    common = {"ph": "M", "ts": 0, "pid": _PROCESS, "tid": row}
    yield common | {"name": "thread_name", "args": {"name": name}}
    yield common | {"name": "thread_sort_index", "args": {"sort_index": row}}


def _facts(outcome: StationOutcome, pieces: list[tuple[str, int, int]]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "started_ms": _ns(outcome.started_seconds) / 1e6,
        "run_ms": _ns(outcome.run_seconds) / 1e6,
        "ran_us": sum(ended - began for what, began, ended in pieces if what == "runs") / 1000,
        "waited_for_the_loop_us": sum(ended - began for what, began, ended in pieces if what != "runs") / 1000,
    }
    if outcome.error is not None:
        facts["error"] = f"{type(outcome.error).__name__}: {words(outcome.error)}"
    return facts


def _ns(seconds: float | None) -> int:
    return round((seconds or 0) * 1e9)
