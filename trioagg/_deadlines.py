"""The deadlines of many batches: one task for all of them, which ends what is due itself.

A cancel scope for every batch does the same for one batch.  For a thousand that expire together it costs a thousand
exceptions and wake-ups before the last list is out; this costs one.
"""

from __future__ import annotations

import heapq
import math
from itertools import count
from typing import TYPE_CHECKING, Final

import trio

from ._records import CompletedBy

if TYPE_CHECKING:
    from ._batch import Batch


_SLACK: Final = 1000


class _Due:
    """One open batch in the queue.  A closed one stays there, empty, until it is at the head."""

    __slots__ = ("_deadlines", "batch")

    def __init__(self, deadlines: Deadlines, batch: Batch) -> None:
        self._deadlines = deadlines
        self.batch: Batch | None = batch

    def end(self) -> None:
        if self.batch is not None:
            self.batch.end(CompletedBy.TIMEOUT)

    def forget(self, batch: Batch) -> None:
        self.batch = None
        self._deadlines.has_closed()


class Deadlines:
    """Ends open batches at their deadlines."""

    def __init__(self) -> None:
        # Where all have the same timeout the next one always belongs at the end, which costs a heap nothing.
        self._queue: list[tuple[float, int, _Due]] = []
        self._numbers = count()
        self._open = 0
        self._alarm = trio.CancelScope()
        self._life = trio.CancelScope()

    def add(self, batch: Batch) -> None:
        """End *batch* at its deadline, if it is open then."""
        due = _Due(self, batch)
        heapq.heappush(self._queue, (batch.deadline, next(self._numbers), due))
        self._open += 1
        batch.when_closed = due.forget
        self._alarm.deadline = self._next()

    def __len__(self) -> int:
        """Open batches."""
        return self._open

    def has_closed(self) -> None:
        """One of them has."""
        self._open -= 1
        if len(self._queue) > 2 * self._open + _SLACK:
            # Behind one that stays open for long, closed ones would pile up.
            self._queue = [entry for entry in self._queue if entry[2].batch is not None]
            heapq.heapify(self._queue)
        self._next()  # the alarm stays as it is: waking up once for nothing is cheaper than setting it every time

    def stop(self) -> None:
        """Let :meth:`run` return."""
        self._life.cancel()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Runs until :meth:`stop`.

        Cancellation: no batch is ended any more.
        """
        with self._life:
            while True:
                now = trio.current_time()
                while self._next() <= now:
                    self._queue[0][2].end()
                with trio.CancelScope(deadline=self._next()) as self._alarm:
                    await trio.sleep_forever()

    def _next(self) -> float:
        queue = self._queue
        while queue and queue[0][2].batch is None:
            heapq.heappop(queue)
        return queue[0][0] if queue else math.inf
