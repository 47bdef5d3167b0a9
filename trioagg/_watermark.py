"""Delivered and finished offsets of one assignment of one partition -> what may be committed.  No I/O, no clock.

The rules:

1. What counts is the order of delivery.  Offsets only grow; the holes between them (compaction, transaction markers,
   aborted transactions) hold nothing and stop nothing.
2. A commit says "everything below is done".  While something delivered is unfinished, the first such offset is the
   limit, however much is finished behind it.  With nothing unfinished it is the position: the next offset that can
   come, markers and aborted tails included.
3. What is discarded (delivered, but never begun and never to be) is nobody's to wait for, and stays a limit for ever:
   whoever owns the partition next must get it again.
4. A commit counts only when it is acknowledged.  Until then it is offered again.
"""

from __future__ import annotations

from collections import deque

_BEGUN, _FINISHED, _DISCARDED = range(3)


class Watermark:
    """One assignment.  Another assignment of the same partition, even to the same member, is another watermark."""

    __slots__ = ("_behind", "_committed", "_in_flight", "_limit", "_next", "_passed", "_pending", "_states")

    def __init__(self) -> None:
        self._pending: deque[int] = deque()
        """Delivered and not passed by the limit, in order."""
        self._states: dict[int, int] = {}
        """Of what is pending."""
        self._passed: deque[int] = deque()
        """Finished, below the limit, not known as committed."""
        self._behind = 0
        """Finished, but something before it is not."""
        self._in_flight = 0
        self._next = -1
        """The lowest offset that can still be delivered."""
        self._limit: int | None = None
        self._committed: int | None = None

    def deliver(self, offset: int) -> None:
        """This offset is handed out.

        Raises:
          ValueError: if it was already, or one above it was.
        """
        if offset < self._next:
            raise ValueError(f"offset {offset} was delivered after {self._next - 1}")
        self._next = offset + 1
        self._pending.append(offset)
        self._states[offset] = _BEGUN
        self._in_flight += 1

    def finish(self, offset: int) -> bool:
        """This offset is done for good.  Says whether it was in flight; where not, nothing changes."""
        if self._states.get(offset) != _BEGUN:
            return False
        self._in_flight -= 1
        self._states[offset] = _FINISHED
        self._behind += 1
        while self._pending and self._states[self._pending[0]] == _FINISHED:
            first = self._pending.popleft()
            del self._states[first]
            self._passed.append(first)
            self._behind -= 1
            self._limit = first + 1
        return True

    def reopen(self, offset: int) -> None:
        """A finished offset is not done after all.

        Raises:
          ValueError: if it is not finished, or was committed past.
        """
        if self._states.get(offset) != _FINISHED:
            if offset not in self._passed:
                raise ValueError(f"offset {offset} is not finished, or was committed")
            while self._passed and self._passed[-1] >= offset:
                first = self._passed.pop()
                self._pending.appendleft(first)
                self._states[first] = _FINISHED
                self._behind += 1
        self._states[offset] = _BEGUN
        self._behind -= 1
        self._in_flight += 1

    def is_committed(self, offset: int) -> bool:
        """Whether a commit past *offset* was acknowledged."""
        return self._committed is not None and offset < self._committed

    def discard(self, offset: int) -> bool:
        """This offset was never begun and will not be.  Says whether it was in flight; where not, nothing changes."""
        if self._states.get(offset) != _BEGUN:
            return False
        self._in_flight -= 1
        self._states[offset] = _DISCARDED
        return True

    def advance_to(self, position: int) -> None:
        """Everything below *position* has been delivered or holds nothing to deliver."""
        self._next = max(self._next, position)
        if not self._pending:
            self._limit = max(position, self._limit or 0)

    def committed(self, offset: int) -> None:
        """A commit of *offset* was acknowledged."""
        self._committed = max(offset, self._committed or 0)
        while self._passed and self._passed[0] < offset:
            self._passed.popleft()

    @property
    def committable(self) -> int | None:
        """The offset to commit, or None if there is nothing to say that was not acknowledged."""
        if self._limit is None:
            return None
        # The holes before the first unfinished offset hold nothing: the next owner may as well start there.
        limit = self._pending[0] if self._pending else self._limit
        return limit if self._committed is None or limit > self._committed else None

    @property
    def acknowledged(self) -> int | None:
        """What the last acknowledged commit said; None before the first one."""
        return self._committed

    @property
    def base(self) -> int | None:
        """What a commit says now, acknowledged or not: None before there is anything to say."""
        return self._pending[0] if self._pending else self._limit

    @property
    def beyond(self) -> tuple[int, ...]:
        """Offsets that are finished although one before them is not, in order."""
        if not self._behind:
            return ()
        return tuple(offset for offset in self._pending if self._states[offset] == _FINISHED)

    @property
    def in_flight(self) -> int:
        """Offsets that are delivered and neither finished nor discarded."""
        return self._in_flight

    @property
    def uncommitted(self) -> int:
        """Offsets that are finished and not known as committed."""
        return len(self._passed) + self._behind
