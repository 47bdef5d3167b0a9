"""Who keeps the loop to himself?  A thread looks, since whoever is in the loop cannot.

A station that computes for seconds, or calls something that blocks, holds up every other one: deadlines are late, and
the group takes the member for dead.  The cure is a plain ``def`` as the callback, which runs in a thread.
"""

from __future__ import annotations

import linecache
import logging
import math
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

logger = logging.getLogger("trioagg")

_FRAMES: Final = 6
_LOOK_SECONDS: Final = 0.25


class Watchdog:
    """Says once for every event which task has held the loop for longer than *seconds*, and where it is; and how long
    it was, once it is over."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ended, self._answered = threading.Event(), threading.Event()
        self.blocked = 0
        """Events so far."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the loop of the calling task for as long as the block lasts."""
        if self._seconds == math.inf:
            yield
            return
        thread = threading.Thread(
            target=self._watch,
            args=(trio.lowlevel.current_trio_token(), threading.get_ident()),
            name="trioagg watchdog",
            daemon=True,
        )
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._answered.set()
            thread.join()

    def _watch(self, token: trio.lowlevel.TrioToken, thread_id: int) -> None:
        answered = self._answered
        while not self._ended.wait(min(_LOOK_SECONDS, self._seconds)):
            asked = time.monotonic()
            answered.clear()
            if self._ended.is_set():
                return
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(answered.set)
            if answered.wait(self._seconds) or self._ended.is_set():
                continue
            self.blocked += 1
            frame = sys._current_frames().get(thread_id)
            logger.warning(
                "the loop has been blocked for %.1f s by %s; a plain `def` as the callback would run in a thread",
                time.monotonic() - asked,
                "something that has ended" if frame is None else _who(frame),
            )
            del frame  # it would keep all that it knows alive
            answered.wait()
            if self._ended.is_set():
                return
            logger.warning("the loop goes on after %.1f s", time.monotonic() - asked)


def _who(innermost: FrameType) -> str:
    """The task that runs in a thread of Trio's, and its last frames, the innermost first."""
    lines: list[str] = []
    task = "a task"
    frame: FrameType | None = innermost
    while frame is not None:
        code = frame.f_code
        if code.co_name == "unrolled_run" and frame.f_globals.get("__name__", "").startswith("trio."):
            # Trio's own loop: what it runs is a local of it.
            name = getattr(frame.f_locals.get("task"), "name", None)
            task = f"task {name}" if name is not None else task
            break
        if len(lines) < _FRAMES:
            text = linecache.getline(code.co_filename, frame.f_lineno).strip()
            lines.append(f"{code.co_filename}:{frame.f_lineno} in {code.co_name} ({text})")
        frame = frame.f_back
    return f"{task} at {' <- '.join(lines)}"
