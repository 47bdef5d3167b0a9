"""When a batch need not wait any longer: good enough, or hopeless.  No Trio, no clock, no I/O."""

from __future__ import annotations

import inspect
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._collector import each_once
from ._records import CompletedBy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ._collector import BatchCollector

    Quorum = int | float | Callable[["Progress"], bool]


logger = logging.getLogger("trioagg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a batch is, for a ``quorum`` that is a function."""

    expected: int
    succeeded: int
    no_output: int
    failed: int
    skipped: int
    """Those that have said so themselves."""

    @property
    def answered(self) -> int:
        """Stations that have answered, whatever they said."""
        return self.succeeded + self.no_output + self.failed


class Goal:
    """What ends a batch before all of its stations have answered.

    Args:
      quorum: So many stations (an int), or so large a part of the expected ones (a float), that have answered without
        failing; or ``quorum(progress) -> bool``, which must not raise.  A skipped station is expected all the same.
      required: Stations without whose answer, whatever it is, a quorum is none.  Those that a batch does not expect are
        not waited for.
      max_failures: More failed stations than this end the batch.

    Raises:
      ValueError: for what no batch can reach.
    """

    def __init__(
        self, quorum: Quorum | None = None, required: Iterable[str] = (), max_failures: int | None = None
    ) -> None:
        if isinstance(required, str | bytes):
            raise ValueError(f"required must be several stations, not one string: use {{{required!r}}}")
        self._required = tuple(each_once(required))
        if self._required and quorum is None:
            raise ValueError("required= says what a quorum must contain: give quorum= too, 1 if these are enough")
        if quorum is not None and not callable(quorum):
            if isinstance(quorum, bool) or not isinstance(quorum, int | float):
                raise ValueError(f"quorum={quorum!r}: use a count, a fraction like 0.9, or a function of the progress")
            if isinstance(quorum, int) and quorum < 1:
                raise ValueError(f"quorum={quorum!r}: it must be 1 or more stations")
            if isinstance(quorum, float) and not 0 < quorum <= 1:
                raise ValueError(
                    f"quorum={quorum!r}: a fraction is more than 0.0 and at most 1.0; a count is an int: {quorum:.0f}?"
                )
        if quorum is not None and inspect.iscoroutinefunction(quorum):
            raise ValueError("quorum= must be a plain def: it is asked after every answer")
        if max_failures is not None and (
            isinstance(max_failures, bool) or not isinstance(max_failures, int) or max_failures < 0
        ):
            raise ValueError(f"max_failures={max_failures!r}: it must be 0 or more stations")
        self._quorum, self._max_failures = quorum, max_failures
        self._told = False

    def __bool__(self) -> bool:
        return self._quorum is not None or self._max_failures is not None

    def reached(self, collector: BatchCollector) -> CompletedBy | None:
        """Why the batch ends now; None if it goes on.  Ask after every answer."""
        if self._max_failures is not None and collector.failures > self._max_failures:
            return CompletedBy.FAILURES
        if self._quorum is None or not self._is_quorum(collector, self._quorum):
            return None
        # The last question, for it is asked of every station: mostly the one before is answered with no.
        return CompletedBy.QUORUM if collector.has_heard(self._required) else None

    def _is_quorum(self, collector: BatchCollector, quorum: Quorum) -> bool:
        done, expected = collector.progress
        failed, skipped, succeeded = collector.failures, collector.skips, collector.successes
        good = done - failed - skipped
        if not callable(quorum):
            return good >= (quorum if isinstance(quorum, int) else max(1, math.ceil(quorum * expected - _ROUNDING)))
        no_output = good - succeeded
        try:
            return bool(
                quorum(
                    Progress(
                        expected=expected, succeeded=succeeded, no_output=no_output, failed=failed, skipped=skipped
                    )
                )
            )
        except Exception:  # a mistake of the user's: told, and data
            # The batch goes on to its deadline, which is always right; ending the service would not be.
            if not self._told:
                self._told = True
                logger.exception("the quorum function has raised, which counts as no quorum; said once")
            return False


_ROUNDING = 1e-9
"""0.7 of 10 stations are 7 and not 8, though 0.7 * 10 is a little more than that for a computer."""
