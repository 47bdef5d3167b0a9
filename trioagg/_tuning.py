"""The garbage collector, tuned while a service runs: the core makes no cyclic garbage, so it has little to look for."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# The oldest generation practically never: a hundred thousand stations in flight are a million objects, and looking
# through them is what bends scaling.  The middle one at 5,000 objects, which takes 3 ms; at 50,000 it was 28 ms, and
# what all looks took together was more.
_THRESHOLDS: Final = (1_000, 5, 10_000)


@contextmanager
def tuned_gc(wanted: bool) -> Iterator[None]:
    """Freeze what exists and raise the thresholds, for as long as the block lasts.  They are the process's, not ours:
    that is why it is opt-in."""
    if not wanted:
        yield
        return
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
