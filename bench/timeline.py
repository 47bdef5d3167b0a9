"""The worst batch of a run, for ui.perfetto.dev: one row a station, and what the loop did meanwhile.

The worst is the one that was open longest.  Where all batches have the same deadline, it is also the one that was
latest.  An aborted batch has no list and is none of them.

Kept are the steps since the opening of the oldest batch that is open, half a million at most (24 MB), and those of the
worst batch.  Every step is 2 to 4 us longer than without us: a bare checkpoint becomes about 2.5 times as dear while a
batch is open, a batch of stations that never wait 1.1 to 1.3 times.

What is in the picture, and how true it is: :mod:`bench.picture`.  VizTracer's viewer opens it, and makes the ``.html``
and ``.json.gz`` of it, if you ask for that.
"""

from __future__ import annotations

import json
import math
import sys
import time
from array import array
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Self, cast

import trio

from trioagg import BatchReport, CompletedBy, Observer
from trioagg._context import batch_context
from trioagg._errors import words

from .picture import WIDTH, Life, Picture

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import ContextVar
    from pathlib import Path

    from trioagg import BatchContext

_MOST_STEPS: Final = 500_000
_BATCH: Final = cast("ContextVar[object]", batch_context)  # mypy takes a context for one of variables of objects


class Timeline(Observer, trio.abc.Instrument):
    """An observer of batches and an instrument of the loop: it has to be both.

        with Timeline() as timeline:  # in Trio; or trio.lowlevel.add_instrument(timeline)
            async with BatchResultAggregator(..., observers=[timeline]) as aggregator:
                ...
        print(timeline.write(Path("worst.json")))

    Args:
      clock: Nanoseconds, as fast as Trio's clock.
    """

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock
        self._scheduled: dict[trio.lowlevel.Task, int] = {}
        self._step_scheduled = self._step_began = 0
        self._keeps_steps = False
        self._log = array("q")
        self._names: list[str] = []
        self._forgotten = 0
        """So many steps were before the first one in the log."""
        self._open: dict[str, list[Life]] = {}
        """Open batches by id, oldest first.  An id can be open twice: Kafka has delivered its message again."""
        self._worst: Life | None = None

    def __enter__(self) -> Self:
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(self, *exc: object) -> None:
        trio.lowlevel.remove_instrument(self)

    # What Trio calls, three times a step.

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self._scheduled[task] = self._clock()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._step_began = began = self._clock()
        self._step_scheduled = self._scheduled.pop(task, began)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._keeps_steps:
            batch = id(task.context.get(_BATCH))
            self._log.extend((self._step_scheduled, self._step_began, self._clock(), id(task), batch))
            self._names.append(task.name)
            if len(self._names) >= _MOST_STEPS:
                self._forget(_MOST_STEPS // 2)

    # What happens to batches.

    def opened(self, batch: BatchContext, expected: int) -> None:
        self._tidy()
        now = self._clock()
        left = batch.deadline - trio.current_time()
        deadline = now + round(left * 1e9) if math.isfinite(left) else None
        life = Life(batch, now, deadline, self._forgotten + len(self._names))
        self._open.setdefault(batch.batch_id, []).append(life)
        if not self._keeps_steps:
            self._keeps_steps = True
            if not self._step_began:  # switched on in this very step
                self._step_scheduled = self._step_began = now

    def closed(self, report: BatchReport) -> None:
        now = self._clock()
        lives = self._open.get(report.batch_id)
        if lives and report.seconds is not None:
            opened = now - round(report.seconds * 1e9)
            life = min(lives, key=lambda life: abs(life.opened - opened))
            lives.remove(life)
            if not lives:
                del self._open[report.batch_id]
            # Both are a little late: they were read after the batch had read its own.
            life.opened = min(life.opened, opened)
            worst = self._worst
            if report.completed_by is not CompletedBy.ABORTED and (
                worst is None or worst.report is None or report.seconds > (worst.report.seconds or 0)
            ):
                life.report, life.closed = report, now
                self._worst = life
        self._tidy()

    def uploading(self, report: BatchReport, attempt: int) -> None:
        worst = self._worst
        if worst is not None and worst.report is report:
            worst.uploads.append(("", self._clock(), 0))

    def upload_failed(self, report: BatchReport, error: BaseException, attempt: int, attempts: int) -> None:
        self._tried(report, f"failed: {type(error).__name__}: {words(error)}")

    def uploaded(self, report: BatchReport) -> None:
        self._tried(report, "uploaded")
        self._is_over(report)

    def upload_skipped(self, report: BatchReport) -> None:
        self._is_over(report)

    def dead_lettered(self, report: BatchReport) -> None:
        self._is_over(report)

    def _tried(self, report: BatchReport, result: str) -> None:
        worst = self._worst
        if worst is not None and worst.report is report and worst.uploads and not worst.uploads[-1][2]:
            worst.uploads[-1] = result, worst.uploads[-1][1], self._clock()

    def _is_over(self, report: BatchReport) -> None:
        worst = self._worst
        if worst is not None and worst.report is report:
            worst.over = self._clock()  # its steps are cut out later: this one has not ended

    # What is kept.

    def _tidy(self) -> None:
        """Cut the worst batch out of the log if it is over, and forget what no batch needs."""
        worst = self._worst
        if worst is not None and worst.over is not None and not worst.log:
            self._cut_out(worst)
        needed = [lives[0].first for lives in self._open.values()]
        if worst is not None and not worst.log:
            needed.append(worst.first)
        self._keeps_steps = bool(needed)
        unneeded = min(needed, default=self._forgotten + len(self._names)) - self._forgotten
        if unneeded * 2 > len(self._names) or not needed:  # else every batch would move the whole log
            self._forget(max(0, unneeded))

    def _forget(self, count: int) -> None:
        del self._log[: count * WIDTH]
        del self._names[:count]
        self._forgotten += count

    def _cut_out(self, life: Life) -> None:
        first = life.first - self._forgotten
        life.complete = first >= 0
        life.log = self._log[max(0, first) * WIDTH :]
        life.names = self._names[max(0, first) :]

    # What a reader asks.

    def write(self, path: Path) -> str:
        """Write the trace, and say how to open it.

        Args:
          path: Ends with ``.json``; or, where VizTracer is installed, with ``.html`` (which needs no viewer) or
            ``.json.gz``.
        """
        events = self.events()
        if not events:
            return f"{path} was not written: no batch has closed with a list"
        trace = {"traceEvents": events, "displayTimeUnit": "ms"}
        if path.suffix == ".json":
            path.write_text(json.dumps(trace), encoding="utf-8")
        else:
            _write_with_viztracer(trace, path)
        if path.suffix == ".html":
            return f"{path} is the worst batch: open it in a browser"
        return f"{path} is the worst batch: drop it on https://ui.perfetto.dev (it stays here), or: vizviewer {path}"

    def events(self) -> list[dict[str, Any]]:
        """The trace events of the worst batch, in Chrome's JSON format: names first, then by time, outer slices before
        inner ones.  Times are from the opening of the batch.  Empty if there is no such batch."""
        picture = self._picture()
        return [] if picture is None else picture.events()

    def _picture(self) -> Picture | None:
        life = self._worst
        if life is None or life.report is None:
            return None
        if not life.log:
            self._cut_out(life)
        return Picture(life, life.report)


def _write_with_viztracer(trace: dict[str, Any], path: Path) -> None:
    try:
        builder = import_module("viztracer.report_builder")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "viztracer":
            raise
        sys.exit(f"{path.suffix} needs viztracer: pip install '.[bench]'; a .json file needs nothing")
    if path.suffix not in (".html", ".gz"):
        sys.exit(f"{path}: a timeline is a .json, .json.gz or .html file")
    builder.ReportBuilder(trace, verbose=0).save(str(path), file_info=False)
