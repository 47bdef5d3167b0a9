"""Trying a station again, inside the deadline of its batch."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._lanes import is_async

if TYPE_CHECKING:
    from collections.abc import Callable


def exponential_backoff(
    first_seconds: float = 0.1, factor: float = 2.0, most_seconds: float = 5.0
) -> Callable[[int, float], float]:
    """Waits that grow from one try to the next, with full jitter: none to all of it, so that tries do not come in step.

    (After Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.)

    Returns:
      A function of the number of the try that has failed, 1 for the first one, and a random number from 0.0 to 1.0:
      seconds until the next one.
    """

    def seconds(attempt: int, chance: float) -> float:
        # math.inf ** is an OverflowError for large tries: the exponent is bounded where the bound is reached anyway.
        return chance * min(most_seconds, first_seconds * factor ** min(attempt - 1, 64))

    return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When and how often a station is tried again.

    Raises:
      ValueError: when made, if a value is out of its range.
    """

    attempts: int = 3
    """Tries of one station altogether."""
    backoff: Callable[[int, float], float] | float = field(default_factory=exponential_backoff)
    """Seconds between two tries, on Trio's clock: a number, or a pure function of the try that has failed (1 for the
    first one) and a random number from 0.0 to 1.0."""
    on: type[Exception] | tuple[type[Exception], ...] | Callable[[Any], bool] = Exception
    """What to try again after: exceptions; or ``on(result) -> bool``, for results that are none yet (the last one
    stands, however bad).  A :class:`StationSkipped` is an answer, and never tried again."""
    chance: Callable[[], float] = random.random
    """Where the random numbers come from."""

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 2:
            raise ValueError(f"attempts={self.attempts!r}: one try is no retry; use 2 or more, or no Retry")
        if callable(self.backoff):
            if is_async(self.backoff):
                raise ValueError("backoff= must be a plain def, for it only computes")
        elif not _are_seconds(self.backoff):
            raise ValueError(f"backoff={self.backoff!r}: it must be 0 or more seconds, or a function")
        kinds = self.on if isinstance(self.on, tuple) else (self.on,)
        are_types = [isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds]
        function = not isinstance(self.on, tuple | type) and callable(self.on) and not is_async(self.on)
        if not kinds or not (all(are_types) or function):
            raise ValueError(
                f"on={self.on!r}: use exceptions, like (TimeoutError, OSError), or a function of the result"
            )

    @property
    def errors(self) -> type[Exception] | tuple[type[Exception], ...]:
        """What is raised and tried again after."""
        return self.on if isinstance(self.on, tuple | type) else ()

    def is_not_good(self, result: object) -> bool:
        """Whether to try again after *result*."""
        return not isinstance(self.on, tuple | type) and bool(self.on(result))

    def wait_seconds(self, attempt: int) -> float:
        """From the end of a try that has failed to the next one."""
        if not callable(self.backoff):
            return self.backoff
        seconds = self.backoff(attempt, self.chance())
        if not _are_seconds(seconds):
            raise ValueError(f"backoff gave {seconds!r}, not seconds")
        return seconds


def _are_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
