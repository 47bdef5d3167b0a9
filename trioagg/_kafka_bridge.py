"""The task that Kafka's asyncio loop lives in, and the order in which everything begins and ends.

``_aio`` marks an asyncio-flavoured function.
"""
# flake8: noqa: ASYNC102, ASYNC910 - the ends are bounded and shielded, but not where flake8 can see it

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import aiokafka.errors
import trio
import trio.testing

from ._aio import LoopErrors, open_drained_loop
from ._kafka_tasks import abandon_aio

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from ._kafka_context import ContextReader
    from ._kafka_sink import Sink
    from ._kafka_source import Source

ABORT_SECONDS: Final = 4.0
ABANDON_SECONDS: Final = 3.0
"""For what does not even end when it is cancelled."""
_GATHER_SECONDS: Final = 0.02
_EXIT_SECONDS: Final = 0.1


class Bridge:
    """The loop, the task that it lives in, and the order in which everything begins and ends."""

    def __init__(self) -> None:
        self.loop: Any = None
        self.source: Source | None = None
        self.sink: Sink | None = None
        self.context: ContextReader | None = None
        self.errors = LoopErrors(self.fail, expected=(aiokafka.errors.ProducerFenced,))
        self.ready, self.ended, self.body_left = trio.Event(), trio.Event(), trio.Event()
        self._asked_to_end, self._failed, self._nudged = trio.Event(), trio.Event(), trio.Event()
        self._failure: BaseException | None = None
        self._end_seconds, self._last_commit = ABORT_SECONDS, False

    @property
    def running(self) -> bool:
        return not self._asked_to_end.is_set() and self._failure is None

    def nudge(self) -> None:
        """Trio's side has something for the other one."""
        self._nudged.set()

    def fail(self, error: BaseException) -> None:
        """End the block with *error*; the first one counts."""
        if self._failure is None:
            self._failure = error
            self._failed.set()
            self._release()

    def end(self, seconds: float = ABORT_SECONDS, *, commit: bool = False) -> None:
        if not self._asked_to_end.is_set():
            self._end_seconds, self._last_commit = seconds, commit
            self._asked_to_end.set()

    def _release(self) -> None:
        if self.source is not None:
            self.source.group.commits.release()

    @trio.lowlevel.enable_ki_protection
    def leave(self) -> None:
        """The block is left.  Nobody else tells :meth:`host`, so a Ctrl-C must not get in between."""
        self.body_left.set()
        self.end()

    @trio.lowlevel.enable_ki_protection
    async def host(self, start_aio: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """The task that the asyncio loop lives in.  Its context has that loop as the current one, nobody else's has."""
        async with open_drained_loop(self.errors) as self.loop:
            try:
                await self.loop.run_aio_coroutine(start_aio())
            except BaseException:
                await self._end()
                raise
            self.ready.set()
            # It outlives the cancellation of the block: until that is left, there may be something to do.
            with trio.CancelScope(shield=True):
                await self._asked_to_end.wait()
                await self._end()
                self.ended.set()
                await self.body_left.wait()

    async def _end(self) -> None:
        if not self.loop.is_running():
            return
        with trio.move_on_after(self._end_seconds + ABANDON_SECONDS, shield=True):
            await self.loop.run_aio_coroutine(self._end_aio())

    async def _end_aio(self) -> None:
        ends: list[Coroutine[Any, Any, bool]] = []
        if self.source is not None:
            ends.append(self.source.end_aio(commit=self._last_commit, seconds=self._end_seconds))
        if self.sink is not None:
            ends.append(self.sink.end_aio(self._end_seconds))
        if self.context is not None:
            ends.append(self.context.end_aio())
        well = await asyncio.gather(*ends, return_exceptions=True)
        if not all(answer is True for answer in well):
            parts = (self.source, self.sink, self.context)
            await abandon_aio(*(part.client for part in parts if part is not None))

    @trio.lowlevel.enable_ki_protection
    async def gather(self) -> None:
        """Tell the asyncio side what Trio's has for it: when nobody else has anything to do, or after 20 ms.

        Told at once, it would make a request for every list and a fetch for every free place: the broker is quick, and
        the loop is drained, so that under load an answer is here before the next list is.  That took half of the time.
        """
        while True:
            await self._nudged.wait()
            self._nudged = trio.Event()
            with trio.move_on_after(_GATHER_SECONDS):
                await trio.testing.wait_all_tasks_blocked()
            if self.source is not None:
                self.source.wake()
            if self.sink is not None:
                self.sink.begin_round()

    @trio.lowlevel.enable_ki_protection
    async def raise_failure(self) -> None:
        await self._failed.wait()
        assert self._failure is not None
        if not isinstance(self._failure, Exception):
            # An exit out of an asyncio task reaches whoever waits for that task: let it be one error, and not two.
            await trio.sleep(_EXIT_SECONDS)
        raise self._failure

    @trio.lowlevel.enable_ki_protection
    async def watch_loop(self, scope: trio.CancelScope) -> None:
        """Cancel *scope* where the loop ends before its time; the reason comes out of :meth:`host`, at the end."""
        cancelled = trio.Event()

        async def until_cancelled() -> None:
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

        # A task of the loop's own, for the loop would be cancelled without a word to us, who are shielded.
        self.loop.run_trio_task(until_cancelled)
        await cancelled.wait()
        self._release()
        scope.cancel()
