"""How many batches may be in flight: the one place where somebody waits because everything else is full."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from ._stragglers import describe_stragglers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._batch import Batch

logger = logging.getLogger("trioagg")

_STATIONS_NAMED = 5


class Intake:
    """Counts batches from their acceptance until their list is up.

    Args:
      limit: Batches in flight.
      unreaped: Closed batches with stations that ignore their cancellation, and the nurseries that these run in.
      unreaped_limit: So many of them make the intake pause.
    """

    def __init__(self, limit: int, unreaped: Mapping[Batch, trio.Nursery], unreaped_limit: int) -> None:
        self._limit, self._unreaped, self._unreaped_limit = limit, unreaped, unreaped_limit
        self._in_flight = 0
        self._waiting = trio.lowlevel.ParkingLot()
        self._draining = trio.lowlevel.ParkingLot()
        self._paused = self._turned_away = False

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def room(self) -> int:
        """How many more batches may come in now."""
        return 0 if self._turned_away or self._is_paused() else max(0, self._limit - self._in_flight)

    async def enter(self) -> None:
        """Wait for room and take it.  Always a checkpoint, so that accepting never keeps the loop to itself."""
        await trio.lowlevel.checkpoint()
        while not self.room and not self._turned_away:
            await self._waiting.park()
        self._in_flight += 1

    def leave(self) -> None:
        """A batch is up, or has been given up."""
        self._in_flight -= 1
        self.look_again()
        if not self._in_flight:
            self._draining.unpark_all()

    def look_again(self) -> None:
        """There may be room now."""
        if self.room:
            self._waiting.unpark(count=self.room)

    def turn_away(self) -> None:
        """There will be no room any more: all who wait come in, to be told so by whoever let them in."""
        self._turned_away = True
        self._waiting.unpark_all()

    async def wait_empty(self) -> None:
        """Wait until no batch is in flight."""
        await trio.lowlevel.checkpoint()
        while self._in_flight:
            await self._draining.park()

    def _is_paused(self) -> bool:
        paused = len(self._unreaped) >= self._unreaped_limit
        if paused and not self._paused:
            logger.error(
                "intake pauses: %d closed batches have stations that ignore their cancellation: %s",
                len(self._unreaped),
                "; ".join(describe_stragglers(self._unreaped, most=_STATIONS_NAMED)),
            )
        self._paused = paused
        return paused
