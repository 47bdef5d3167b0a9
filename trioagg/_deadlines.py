"""The deadlines of many batches: one task for all of them, which closes what is due itself.

A cancel scope for every batch does the same for one batch.  For a thousand that expire together it costs a thousand
exceptions and wake-ups before the last list is out; this costs one.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

import trio

from ._records import CompletedBy

if TYPE_CHECKING:
    from ._fanout import Batch


class Deadlines:
    """Ends open batches at their deadlines."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, list[Batch]]] = []
        self._number = count()
        self._alarm = trio.CancelScope()
        self._life = trio.CancelScope()

    def add(self, batch: Batch) -> None:
        """End *batch* at its deadline, if it is open then."""
        # In a list of one, which is emptied when the batch has ended: its results must not stay until its deadline.
        entry = [batch]
        batch.when_closed = entry.clear
        heappush(self._due, (batch.deadline, next(self._number), entry))
        self._alarm.deadline = self._due[0][0]

    def stop(self) -> None:
        """Let :meth:`run` return."""
        self._life.cancel()

    async def run(self) -> None:
        """Runs until :meth:`stop`.

        Cancellation: no batch is ended any more.
        """
        with self._life:
            while True:
                self._end_what_is_due()
                with trio.CancelScope(deadline=self._due[0][0] if self._due else math.inf) as self._alarm:
                    await trio.sleep_forever()

    def _end_what_is_due(self) -> None:
        now = trio.current_time()
        while self._due and self._due[0][0] <= now:
            for batch in heappop(self._due)[2][:]:
                batch.end(CompletedBy.TIMEOUT)
