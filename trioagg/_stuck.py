"""Where does a station wait?  The stack of its task or thread, in a few words, innermost first."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

    import trio

_FRAMES: Final = 4
_MOST_OF_A_BATCH: Final = 20
_MOST_AT_ONCE: Final = 200
_PER_SECOND: Final = 1000.0


class Samples:
    """How many stacks may be taken: some of every batch, and not so many that the last list is late.

    A thousand batches of hung stations that expire together would otherwise look at twenty thousand.
    """

    def __init__(self) -> None:
        self._left = float(_MOST_AT_ONCE)
        self._when = 0.0

    def take(self, now: float) -> int:
        """Room for the stacks of one batch; what is not used must be given back."""
        self._left = min(_MOST_AT_ONCE, self._left + (now - self._when) * _PER_SECOND)
        self._when = now
        room = min(_MOST_OF_A_BATCH, int(self._left))
        self._left -= room
        return room

    def give_back(self, room: int) -> None:
        self._left += room


def task_stack(task: trio.lowlevel.Task) -> tuple[str, ...]:
    """Where a task of Trio's waits; without the frames of Trio and of ours."""
    return _in_words([frame for frame, _ in task.iter_await_frames()])


def thread_stack(ident: int | None) -> tuple[str, ...]:
    """Where a thread is at this moment; empty if it has ended."""
    frame = None if ident is None else sys._current_frames().get(ident)
    frames: list[FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return _in_words(frames[::-1])


def _in_words(frames: Iterable[FrameType]) -> tuple[str, ...]:
    theirs = [
        frame
        for frame in frames
        if not frame.f_globals.get("__name__", "").startswith(("trio.", "trioagg.", "threading", "outcome."))
    ]
    return tuple(
        f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
        for frame in theirs[: -_FRAMES - 1 : -1]
    )
