"""Stations that run on although their batch is closed: which, where, and who says so."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from ._records import in_words
from ._stuck import task_stack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._batch import Batch

logger = logging.getLogger("trioagg")

_PERIOD_SECONDS: Final = 5.0
_MOST_NAMED: Final = 20


def describe_stragglers(unreaped: Mapping[Batch, trio.Nursery], *, most: int) -> list[str]:
    """Which stations still run in batches that are closed, and where they wait."""
    lines: list[str] = []
    for batch, nursery in unreaped.items():
        for task in nursery.child_tasks:
            if len(lines) == most:
                return [*lines, "..."]
            where = " <- ".join(in_words(task_stack(task)))
            lines.append(f"station {task.name} of batch {batch.batch_id} at {where}")
    return lines


@trio.lowlevel.enable_ki_protection
async def name_stragglers(stragglers: Callable[[], Mapping[Batch, trio.Nursery]], until: trio.CancelScope) -> None:  # noqa: ASYNC910 - it waits for ever
    """Say every few seconds which stations have been running since the last look, until that scope is cancelled.

    Cancellation: only by *until*, which is shielded: a block that aborts waits for stragglers too.
    """
    known: set[Batch] = set()
    with until:
        while True:
            await trio.sleep(_PERIOD_SECONDS)
            now = stragglers()
            old = {batch: nursery for batch, nursery in now.items() if batch in known}
            if lines := describe_stragglers(old, most=_MOST_NAMED):
                logger.warning("still running after their cancellation: %s", "; ".join(lines))
            known = set(now)
