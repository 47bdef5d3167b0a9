"""Which batch is this code working for?  A context variable, so that it reaches tasks and threads alike."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchContext:
    """What a callback or handler may want to know about the batch that it works for."""

    batch_id: str
    deadline: float
    """On Trio's clock.  ``trio.current_effective_deadline()`` cannot tell: the stations run outside the deadline's
    scope, so that the list need not wait for them to notice it."""
    topic: str | None = None
    """This and what follows come from the Kafka message; None where there is none."""
    partition: int | None = None
    offset: int | None = None
    timestamp: float | None = None
    """The record's, in seconds since the epoch."""
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    owner: object = field(default=None, repr=False, compare=False)
    """The aggregator that the batch belongs to."""
    source: object = field(default=None, repr=False, compare=False)
    """The Kafka record itself: its bytes are there until the batch is up, and it knows whose partition it came from."""


batch_context: ContextVar[BatchContext] = ContextVar("trioagg_batch")


def current_batch() -> BatchContext:
    """The batch that the calling callback or handler works for; in threads of ours too.

    Raises:
      RuntimeError: outside a callback and a handler.
    """
    context = batch_context.get(None)
    if context is None:
        raise RuntimeError("current_batch() is for callbacks and handlers: no batch is being processed here")
    return context
