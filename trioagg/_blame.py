"""Which part of what user code raised is data, and which part must get out?"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEVER_DATA = (KeyboardInterrupt, SystemExit, GeneratorExit)


def must_get_out(error: BaseException) -> BaseException | None:
    """The part of *error* that is not ours to keep, or None if all of it is data.

    Call it where the error was caught, in the task that caught it.  KeyboardInterrupt, SystemExit and GeneratorExit
    always get out.  So does Trio's Cancelled where a scope around us really is cancelled; one that comes without that
    (stored in a cache and raised again, say) is an error like any other.  ``except Exception`` would not do: a nursery
    of the user's own raises BaseExceptionGroup([ValueError, Cancelled]) when it fails while it is being cancelled, and
    asyncio.CancelledError is a BaseException too.
    """
    if isinstance(error, Exception):
        return None
    cancelled = trio.current_effective_deadline() == -math.inf
    kinds = (*_NEVER_DATA, trio.Cancelled) if cancelled else _NEVER_DATA
    if isinstance(error, kinds):
        return error
    return error.subgroup(kinds) if isinstance(error, BaseExceptionGroup) else None


@contextmanager
def lone_errors_bare() -> Iterator[list[BaseException]]:
    """Let the only error in a group of groups leave as itself: a nursery of ours must not change what callers catch.

    What the caller's own block raised goes into the list that this gives: a group of theirs stays one.
    """
    theirs: list[BaseException] = []
    try:
        yield theirs
    except BaseExceptionGroup as group:
        # By depth and not by identity: a group that comes through a cancelled scope is made anew.
        depth = max(map(_depth, theirs), default=0)
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1 and _depth(error) > depth:
            error = error.exceptions[0]
        if error is group:
            raise
        # Neither "from None", which would wipe out the cause that the error came with, nor the group as its context.
        context = error.__context__
        try:
            raise error  # noqa: ASYNC123 - its context is restored below; its cause and traceback are untouched
        finally:
            error.__context__ = context
            del error, context
    finally:
        theirs.clear()  # their tracebacks know this frame


def _depth(error: BaseException) -> int:
    """How deep its groups are, without those of Cancelled alone: these come from us and go no further."""
    if not isinstance(error, BaseExceptionGroup):
        return 0
    rest = error.split(trio.Cancelled)[1]
    return 0 if rest is None else 1 + max(map(_depth, rest.exceptions))
