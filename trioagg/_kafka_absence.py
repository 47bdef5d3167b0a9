"""Brokers that are away: said once, and once when they are back, by whomever of us notices first."""

from __future__ import annotations

import logging
import math
import time
from typing import Final

logger = logging.getLogger("trioagg")

AWAY_SECONDS: Final = 5.0
"""Nothing was acknowledged for so long: somebody may want to know."""


class Absence:
    """One for a connection, whatever clients it has."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._where = bootstrap_servers
        self._away = False
        self._last_answer = -math.inf

    def noticed(self, seconds: float, what: str) -> None:
        """*what* has waited for so many *seconds* by now."""
        # What waits longer than for the last answer to somebody else is only next.
        seconds = min(seconds, time.monotonic() - self._last_answer)
        if not self._away and seconds >= AWAY_SECONDS:
            self._away = True
            logger.warning(
                "Kafka at %s has acknowledged nothing for %.0f s: %s wait, and are not lost", self._where, seconds, what
            )

    def over(self) -> None:
        """Something was acknowledged."""
        self._last_answer = time.monotonic()
        if self._away:
            self._away = False
            logger.warning("Kafka at %s acknowledges again", self._where)
