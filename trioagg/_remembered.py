"""The ids of closed batches, for a while: so that a late answer can be told from one that belongs to no batch."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import trio

_MOST: Final = 10_000


class RememberedIds:
    """Ids, each for so many seconds on Trio's clock, and so many of them at most.

    Args:
      seconds: How long an id is remembered.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: OrderedDict[str, float] = OrderedDict()

    def add(self, batch_id: str) -> None:
        """Remember it, from now on."""
        self._forget()
        self._until[batch_id] = trio.current_time() + self._seconds
        self._until.move_to_end(batch_id)
        if len(self._until) > _MOST:
            self._until.popitem(last=False)

    def __contains__(self, batch_id: str) -> bool:
        self._forget()
        return batch_id in self._until

    def __len__(self) -> int:
        self._forget()
        return len(self._until)

    def _forget(self) -> None:
        # Whenever somebody looks, not in a task that wakes up for it: nothing else reads them.
        if not trio.lowlevel.in_trio_run():
            return  # statistics are asked for after the run too, and by threads
        now = trio.current_time()
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
