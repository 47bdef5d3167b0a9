"""What some work leaves to the garbage collector."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


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
