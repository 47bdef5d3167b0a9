"""The tasks that serve the stations of one batch.

How (the figures are in ``python -m bench core``): a task per station costs more than most stations do, and a fixed pool
starves.  So a *server* takes the next station of its batch as long as its stations do not wait, and starts *heirs*
ahead of itself: tasks that run only when a station does wait, and then serve on.  A station that waits has a task to
itself; one that does not costs none.
"""

from __future__ import annotations

from contextvars import copy_context
from operator import is_
from typing import TYPE_CHECKING, Any, Final

import trio

from ._blame import must_get_out
from ._context import batch_context
from ._records import Answer, CompletedBy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ._batch import Batch
    from ._calls import StationCallback

SERVER: Final = "trioagg server"
"""The name of a server that has no station yet."""

_SLICE_SECONDS: Final = 0.001
"""How long the servers of a batch go on without a look at the scheduler; a deadline is late by that much at most."""

_GENERATION_GROWTH: Final = 8
_LARGEST_GENERATION: Final = 512

_ACCEPTED: Final = Answer.ACCEPTED
_KNOWS_SCOPES: Final = hasattr(trio.lowlevel.Task, "_cancel_status")


class _NoScope:
    _cancel_status = None


class Servers:
    """Those of one batch.  They end by themselves when it does, or when there is no station left."""

    def __init__(
        self,
        batch: Batch,
        inputs: Iterable[tuple[str, Any]],
        call: StationCallback,
        cap: int,
        nursery: trio.Nursery,
    ) -> None:
        self._batch, self._nursery = batch, nursery
        self._left = batch.to_run
        self._room = cap
        self._idle = 0
        self._generation = 1
        self._giving_way = False
        # Trio's clock, not time.perf_counter: seeded runs repeat under MockClock.
        now = trio.lowlevel.current_clock().current_time
        self._slice_began = now()
        self._clean = batch.variables
        self._clean_values = tuple(self._clean.values())
        items: Iterator[tuple[str, Any]] = iter(inputs)
        # What every server needs: bound once, not once a task.
        self._bound = (
            call,
            batch._collector,
            batch._starts,
            batch._opened,
            batch.deadline,
            now,
            items,
            len(self._clean_values),
        )

    def start(self) -> None:
        """Start the first server."""
        self._start_heirs(1)

    def are_busy(self) -> bool:
        """Whether a task is left that may not end by itself: a station's, or one that it started beside itself."""
        return len(self._nursery.child_tasks) > self._idle

    def _start_generation(self) -> None:
        """The first heir alone: most batches never need a second one.  Then generations, each larger than the last."""
        self._start_heirs(min(self._generation, self._left, self._room))
        self._generation = min(self._generation * _GENERATION_GROWTH, _LARGEST_GENERATION)

    @trio.lowlevel.enable_ki_protection
    def _start_heirs(self, count: int) -> None:
        self._idle += count
        self._room -= count
        self._clean.run(self._start_tasks, count)

    def _start_tasks(self, count: int) -> None:
        start, serve = self._nursery.start_soon, self._serve
        for _ in range(count):
            start(serve, name=SERVER)

    async def _serve(self) -> None:  # noqa: ASYNC910 - stations that never wait are what it is made for
        self._idle -= 1
        batch = self._batch
        if self._giving_way or batch.report is not None or not self._left:
            # Not needed: the server that started us had only given way for a moment, or was the last.
            self._room += 1
            self._generation = 1
            return  # noqa: ASYNC910 - as above
        call, collector, starts, opened, deadline, now, items, variables = self._bound
        task = trio.lowlevel.current_task()
        # Private, hence the stand-in: a Trio without it has a sharper eye for scopes left open, or none.
        inside: Any = task if _KNOWS_SCOPES else _NoScope
        scope = inside._cancel_status
        hears_answers = batch._hears_answers
        began = now()
        if began > deadline:
            # Somebody held the loop until now, and the order in which Trio goes on is random: that of the deadline may
            # come last.
            batch.end(CompletedBy.TIMEOUT)
            self._room += 1
            return  # noqa: ASYNC910 - as above
        while True:
            # First: Ctrl-C between the two must not let another server ask for one too many.
            left = self._left = self._left - 1
            station_id, module_input = next(items)
            if left and not self._idle and self._room:
                self._start_generation()
            task.name = station_id
            starts[station_id] = began - opened
            try:
                result = await call(station_id, module_input)
                ended = now()
                answer = collector.add_result(station_id, result, ended - began)
            except BaseException as error:  # noqa: ASYNC103, ASYNC104 - what must get out is raised
                out = must_get_out(error)
                if out is not None:
                    try:
                        if out is error:
                            raise
                        raise out from None  # noqa: ASYNC104 - it is the part that is Cancelled
                    finally:
                        del out  # else its traceback keeps this frame, which keeps it
                ended = now()
                answer = collector.add_failure(station_id, error, ended - began)
            if answer is not _ACCEPTED or hears_answers:
                batch._heard(station_id, answer)
            elif not collector.missing:
                batch.end(CompletedBy.ALL)
            if collector._report is not None or not self._left:
                break
            context = copy_context()
            if (
                len(context) != variables
                or context.get(batch_context) is not batch.context
                or (variables > 1 and not all(map(is_, context.values(), self._clean_values)))
                or inside._cancel_status is not scope
            ):
                # The station left a context variable set, or a cancel scope open (in an async generator that it did not
                # close, say), which is its own and not the next station's: let a fresh task go on.  Variables by
                # identity, never by ==: an array has no truth, and two equal lists are two.
                if not self._idle:
                    self._start_heirs(1)
                break
            began = ended
            if ended - self._slice_began >= _SLICE_SECONDS:
                # Stations that block without waiting must not outrun the deadline: one server gives way, and goes on
                # alone; the others end.  If stations were started meanwhile, ours has waited, and the heirs are needed.
                if self._giving_way:
                    break
                self._giving_way = blocked = self._left == left
                try:
                    await trio.lowlevel.checkpoint()
                finally:
                    if blocked:
                        self._giving_way = False
                if collector._report is not None or not self._left or self._giving_way:
                    break
                began = self._slice_began = now()
                if began > deadline:
                    batch.end(CompletedBy.TIMEOUT)  # as above
                    break
        self._room += 1
        # From 3.12 on, the frames of a kept error keep this one and what it knows: us, who keep the error.
        del self, batch, collector
