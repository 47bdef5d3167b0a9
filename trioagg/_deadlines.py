"""The deadlines of many batches: one task for all of them, which ends what is due itself.

A cancel scope for every batch does the same for one batch.  For a thousand that expire together it costs a thousand
exceptions and wake-ups before the last list is out; this costs one.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

import trio

from ._records import CompletedBy

if TYPE_CHECKING:
    from ._fanout import Batch


class Deadlines:
    """Ends open batches at their deadlines.  All have the same timeout: who comes first is due first."""

    def __init__(self) -> None:
        self._open: OrderedDict[Batch, None] = OrderedDict()  # its first one is found at once, a dict's is not
        self._alarm = trio.CancelScope()
        self._life = trio.CancelScope()

    def add(self, batch: Batch) -> None:
        """End *batch* at its deadline, if it is open then."""
        self._open[batch] = None
        # Not kept until its deadline: that may be never.
        batch.when_closed = self._forget
        self._alarm.deadline = self._next()

    def __len__(self) -> int:
        """Open batches."""
        return len(self._open)

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
                    next(iter(self._open)).end(CompletedBy.TIMEOUT)
                with trio.CancelScope(deadline=self._next()) as self._alarm:
                    await trio.sleep_forever()

    def _next(self) -> float:
        return next(iter(self._open)).deadline if self._open else math.inf

    def _forget(self, batch: Batch) -> None:
        del self._open[batch]
