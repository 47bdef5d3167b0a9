"""Where does a station wait?  The stack of its task or thread, innermost first; in words only when somebody asks."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import CodeType, FrameType

    import trio

    from ._records import Places

_FRAMES: Final = 4
_OURS: Final = ("trio.", "trioagg.", "threading", "outcome.")
_MOST_OF_A_BATCH: Final = 20
_MOST_AT_ONCE: Final = 60
_SHARE: Final = 3
_PER_SECOND: Final = 1000.0


class Samples:
    """How many stacks may be taken: some of every batch, and not so many that the last list is late.

    A thousand batches of hung stations that expire together would otherwise look at twenty thousand.  A batch takes a
    third of what is left, so that those behind the first ones have some too.
    """

    def __init__(self) -> None:
        self._left = float(_MOST_AT_ONCE)
        self._when = 0.0

    def take(self, now: float) -> int:
        """Room for the stacks of one batch; what is not used must be given back."""
        self._left = min(_MOST_AT_ONCE, self._left + (now - self._when) * _PER_SECOND)
        self._when = now
        room = min(_MOST_OF_A_BATCH, int(self._left), math.ceil(self._left / _SHARE))
        self._left -= room
        return room

    def give_back(self, room: int) -> None:
        self._left += room


def task_stack(task: trio.lowlevel.Task) -> Places:
    """Where a task of Trio's waits; without the frames of Trio and of ours."""
    return _theirs([frame for frame, _ in task.iter_await_frames()])


def thread_stack(ident: int | None) -> Places:
    """Where a thread is at this moment; empty if it has ended."""
    frame = None if ident is None else sys._current_frames().get(ident)
    frames: list[FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return _theirs(frames[::-1])


def _theirs(frames: list[FrameType]) -> Places:
    # Code and line, and not the frames, which would keep all that a station holds.
    found: list[tuple[CodeType, int] | str] = []
    for frame in reversed(frames):
        if not str(frame.f_globals.get("__name__")).startswith(_OURS):
            found.append((frame.f_code, frame.f_lineno))
            if len(found) == _FRAMES:
                break
    return tuple(found)
