"""Ctrl-C, where Python would lose it."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def interrupts_are_not_lost() -> Iterator[None]:
    """Hand a KeyboardInterrupt that fell into a weak reference's callback or a ``__del__`` to Trio again.

    Python prints it there ("Exception ignored in ...") and goes on.  Under load that is where one in fifty falls, and a
    service that is told to end must end.
    """
    token, before = trio.lowlevel.current_trio_token(), sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            try:
                # In a task of Trio's own, which is protected: from there it goes to the main task.
                token.run_sync_soon(signal.raise_signal, signal.SIGINT)
            except trio.RunFinishedError:
                pass
            else:
                return
        before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = before
