"""What some work leaves to the garbage collector."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


known_garbage = pytest.mark.xfail(
    sys.version_info >= (3, 12),
    strict=False,
    reason="open: from 3.12 on a failed station leaves a cycle; not yet found where",
)
"""On 3.11 no such cycle is left."""


async def cyclic_garbage_of(work: Callable[[], Awaitable[None]]) -> list[str]:
    """What *work* leaves behind whenever it runs.

    The technique of Trio's own tests: whatever the collector would have had to free is kept and looked at.  What is
    there the first time only is somebody else's, a worker thread's that ended meanwhile, say: what is ours comes again.
    """
    garbage: list[str] = []
    for _ in range(3):
        while gc.collect():
            pass
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await work()
            await trio.lowlevel.checkpoint()
            gc.collect()
            garbage = [f"{type(thing).__module__}.{type(thing).__qualname__}: {thing!r:.200}" for thing in gc.garbage]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        if not garbage:
            break
    return garbage
