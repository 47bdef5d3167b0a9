"""Where a batch's time goes: an observer that writes down when each of them passed which point.

One row of plain integers a batch, appended to an array when its story is over; everything else is worked out
afterwards.
"""

from __future__ import annotations

import heapq
import time
from array import array
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import trio

from trioagg import BatchContext, BatchReport, CompletedBy, Observer

from . import histograms

if TYPE_CHECKING:
    from collections.abc import Callable

STAGES: Final = ("fetch", "queue", "decode", "start", "stations", "close", "upload queue", "upload", "commit")
"""From one point to the next: due, fetched, read, opened, started, last answer or deadline, closed, upload begun,
acknowledged, committed."""
DUE_HEADER: Final = "bench-due"
"""When the message was due, in nanoseconds of the monotonic clock, which all processes of a machine share."""

_POINTS: Final = len(STAGES) + 1
_UPLOAD_BEGUN: Final = 8
_SAMPLES: Final = 400
_FIRST_SAMPLES_SECONDS: Final = 0.05


class Stages(Observer):
    """Listens to one service or aggregator.

    Args:
      now_ns: Must be the monotonic clock where ``fetch`` is wanted.
    """

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now = now_ns
        self._fetched: dict[tuple[str, int], deque[tuple[int, int]]] = {}
        self._fetched_ns = self._read_ns = 0
        self._open: dict[str, list[int]] = {}
        self._deadlines: dict[str, tuple[float, BatchContext]] = {}
        self._up: dict[tuple[str, int], list[tuple[int, list[int]]]] = {}
        self._committed: dict[tuple[str, int], int] = {}
        self._rows = array("q")
        self._overshoots = array("q")
        self._reports: list[tuple[int, BatchReport]] = []
        self._sample_after = 0
        self._sample_ns = round(_FIRST_SAMPLES_SECONDS * 1e9)

    def fetched(self, topic: str, partition: int, first: int, last: int) -> None:
        self._fetched.setdefault((topic, partition), deque()).append((last, self._now()))

    def reading(self, topic: str, partition: int, offset: int) -> None:
        fetched = self._fetched[topic, partition]
        while fetched[0][0] < offset:
            fetched.popleft()
        self._fetched_ns, self._read_ns = fetched[0][1], self._now()

    def opened(self, batch: BatchContext, expected: int) -> None:
        now = self._now()
        due = next((int(value) for name, value in batch.headers if name == DUE_HEADER), 0)
        read = self._read_ns or now
        fetched = self._fetched_ns or now
        self._open[batch.batch_id] = [due or fetched, fetched, read, now, now]
        self._deadlines[batch.batch_id] = batch.deadline, batch

    def started(self, batch_id: str) -> None:
        self._open[batch_id][4] = self._now()

    def closed(self, report: BatchReport) -> None:
        now = self._now()
        row = self._open[report.batch_id]
        late = 0
        if report.completed_by is CompletedBy.TIMEOUT:
            late = max(0, round((trio.current_time() - self._deadlines[report.batch_id][0]) * 1e9))
            self._overshoots.append(late)
        row += (now - late, now)
        if now >= self._sample_after:
            self._sample(now, row[3], report)

    def uploading(self, report: BatchReport, attempt: int) -> None:
        if attempt == 1:
            self._open[report.batch_id].append(self._now())

    def uploaded(self, report: BatchReport) -> None:
        now = self._now()
        row = self._open.pop(report.batch_id)
        _, batch = self._deadlines.pop(report.batch_id)
        if len(row) < _UPLOAD_BEGUN:
            row.append(now)  # there was nobody to bring it to
        row.append(now)
        if batch.topic is None or batch.partition is None or batch.offset is None:
            self._rows.extend((*row, now))
            return
        place = batch.topic, batch.partition
        if batch.offset < self._committed.get(place, 0):
            self._rows.extend((*row, now))  # in a transaction the offset goes before the answer
            return
        heapq.heappush(self._up.setdefault(place, []), (batch.offset, row))

    def committed(self, topic: str, partition: int, offset: int) -> None:
        now = self._now()
        self._committed[topic, partition] = offset
        waiting = self._up.get((topic, partition), [])
        while waiting and waiting[0][0] < offset:
            self._rows.extend((*heapq.heappop(waiting)[1], now))

    def _sample(self, now: int, opened: int, report: BatchReport) -> None:
        self._reports.append((opened, report))
        if len(self._reports) > _SAMPLES:
            # However long it lasts: half of them go, and from now on they are taken half as often.
            del self._reports[::2]
            self._sample_ns *= 2
        self._sample_after = now + self._sample_ns

    # Afterwards.

    def figures(self, since_ns: int = 0, until_ns: int = 1 << 62) -> dict[str, Any]:
        """The histograms of the batches that were due within a time, and what was sampled of their stations."""
        rows = [self._rows[place : place + _POINTS] for place in range(0, len(self._rows), _POINTS)]
        rows = [row for row in rows if since_ns <= row[0] < until_ns]
        return {
            "stages": {
                name: histograms.encoded(histograms.of(max(0, row[number + 1] - row[number]) for row in rows))
                for number, name in enumerate(STAGES)
            },
            "batches": len(rows),
            "overshoot": histograms.encoded(histograms.of(self._overshoots)),
            "overshoots": len(self._overshoots),
            "lateness": [
                [station, round((opened - since_ns) / 1e9, 3), round(_answered_ms(outcome, report), 2)]
                for opened, report in self._reports
                if since_ns <= opened < until_ns
                for station, outcome in report.stations.items()
            ],
        }


def _answered_ms(outcome: Any, report: BatchReport) -> float:
    """From the opening of the batch to the answer of a station; to the list, if it gave none."""
    if outcome.started_seconds is None:
        return 1000 * (report.seconds or 0.0)
    return 1000 * float(outcome.started_seconds + outcome.run_seconds)
