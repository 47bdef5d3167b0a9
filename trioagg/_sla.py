"""How much of a batch's time is left, where its list is due so many seconds after its message was written."""

from __future__ import annotations

from typing import Literal

from ._checks import check_some_seconds

SlaPolicy = Literal["process", "skip", "full"]


class Sla:
    """The budget of one message.  Wall clock in, seconds out: it knows no clock of its own.

    Args:
      seconds: From the message's timestamp to its list.
      policy: What is done where the lag has eaten them, so that less than *min_budget* is left: ``process`` with that,
        ``skip``, or process with the ``full`` timeout, for the list is late anyway.
      min_budget: Seconds.

    Raises:
      ValueError: if a value is out of its range.
    """

    def __init__(self, seconds: float | None, policy: SlaPolicy, min_budget: float) -> None:
        if seconds is not None:
            check_some_seconds(sla_seconds=seconds)
        if policy not in ("process", "skip", "full"):
            raise ValueError(f"sla_policy={policy!r}: use 'process', 'skip' or 'full'")
        check_some_seconds(min_budget=min_budget)
        self._seconds, self._policy, self._min_budget = seconds, policy, min_budget
        self.missed = 0
        """Messages whose time was up when they came."""

    def budget(self, timeout: float, written: float | None, now: float) -> float:
        """Seconds for a batch that is opened now; 0.0 where it had better not be.

        Args:
          timeout: What it would have without the agreement.
          written: The message's timestamp, and *now*: in seconds since the epoch.
        """
        if self._seconds is None or written is None:
            return timeout
        # A producer whose clock is ahead gains nothing: its message is as old as one that was written this moment.
        left = self._seconds - max(0.0, now - written)
        if left >= self._min_budget:
            return min(timeout, left)
        self.missed += 1
        if self._policy == "skip":
            return 0.0
        return timeout if self._policy == "full" else min(timeout, self._min_budget)
