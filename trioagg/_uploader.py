"""The uploader: takes lists without ever waiting, and brings each of them up, some at a time, again where it failed.

It is one long-lived task with a nursery of its own.  It has no bound of its own either: the bound is enforced where
batches are accepted, so that handing over a list is never a place where a batch, a deadline or a drain can hang.
"""

from __future__ import annotations

import math
from collections import deque
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import stamina
import trio

from ._blame import must_get_out
from ._collector import dispose
from ._context import BatchContext, batch_context
from ._errors import (
    DeadLetterRefused,
    KafkaError,
    StrayCancel,
    TooManyDeadLetters,
    TrioaggError,
    UploadFailed,
    UploadTimedOut,
)
from ._lanes import interruptible, is_async

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Sequence

    from ._observer import Observer
    from ._records import BatchReport

OnUploadFailure = Literal["stop", "skip", "dead_letter"]

# The same call would fail in the same way: a mistake in the handler, or Kafka's refusal for good.
_THE_END: Final = (TooManyDeadLetters, DeadLetterRefused)
_NOT_WORTH_RETRYING: Final = (TypeError, AttributeError, NameError, KafkaError, *_THE_END)
_FIRST_WAIT_SECONDS: Final = 0.1
_LONGEST_WAIT_SECONDS: Final = 5.0


class Sink(Protocol):
    """Where lists go beside the user's handlers; the service's result topic is one."""

    @property
    def encode(self) -> Callable[[dict[str, Any]], bytes] | None:
        """Called when a station answers; None if it is not to be.

        Raises BadResult for what cannot travel: it makes the station ``failed``.
        """

    async def send(self, report: BatchReport, encoded: Sequence[bytes]) -> None:
        """Bring a list up, however long it takes.  Raises KafkaError where trying again would not help."""


@dataclass(slots=True, eq=False)
class Upload:
    """One list on its way up."""

    report: BatchReport
    encoded: Sequence[bytes]
    context: BatchContext
    turn: Turn
    when_done: Callable[[bool], None]
    """Called once, with whether the list counts as up."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    variables: Context = field(default_factory=copy_context)
    """The context variables of whoever handed the batch in; a handler may set its own in them."""


@dataclass(slots=True, eq=False)
class Turn:
    """A place in the order of the uploads of one key; without a key there is no order."""

    key: Hashable | None
    upload: Upload | None = None


class Deliveries:
    """Everything that is called for one list.  It is up when all of them have returned."""

    def __init__(
        self,
        batch_upload_handler: Callable[..., Any] | None,
        report_handler: Callable[..., Any] | None,
        sink: Sink | None,
        dead_letter_handler: Callable[..., Any] | None,
        *,
        upload_timeout: float,
        max_uploads: int,
    ) -> None:
        self._list_handler, self._report_handler, self._sink = batch_upload_handler, report_handler, sink
        self._dead_letter_handler = dead_letter_handler
        self._upload_timeout = upload_timeout
        # Of our own: the threads of stations that hang must not keep lists from going up.
        self._threads = trio.CapacityLimiter(max_uploads)

    def __bool__(self) -> bool:
        return any(x is not None for x in (self._list_handler, self._report_handler, self._sink))

    async def deliver(self, upload: Upload) -> None:  # noqa: ASYNC910 - there is at least one to call, see __bool__
        if self._list_handler is not None:
            # A fresh list for every try: a handler that empties it must not spoil the next one.
            await self._call(self._list_handler, upload, upload.report.batch_id, list(upload.report.results))
        if self._report_handler is not None:
            await self._call(self._report_handler, upload, upload.report)
        if self._sink is not None:
            # Last, so that a try that fails before it leaves nothing behind that would be there twice.
            await self._sink.send(upload.report, upload.encoded)

    async def bury(self, upload: Upload, error: Exception) -> None:
        """Hand a list that was given up to whoever takes dead letters.  Once, and however long it takes."""
        assert self._dead_letter_handler is not None
        await self._call(self._dead_letter_handler, upload, upload.report, error, seconds=math.inf)

    async def _call(
        self, handler: Callable[..., Any], upload: Upload, *args: object, seconds: float | None = None
    ) -> None:
        if not is_async(handler):
            # Waited for, never abandoned: a try that still runs must not be repeated.
            returned = await _guarded(trio.to_thread.run_sync, handler, *args, limiter=self._threads)
            if hasattr(returned, "__await__"):
                dispose(returned)
                raise TypeError(f"{handler!r} is a plain function but returned something to await: make it `async def`")
            return
        with trio.move_on_after(self._upload_timeout if seconds is None else seconds) as patience:
            await _guarded(interruptible, handler, *args)
        if patience.cancelled_caught:
            raise UploadTimedOut(upload.report.batch_id, self._upload_timeout)


async def _guarded(call: Callable[..., Awaitable[Any]], *args: object, **kwargs: object) -> object:
    try:
        return await call(*args, **kwargs)
    except BaseException as error:  # noqa: ASYNC103 - what must get out is raised; the rest is a failed try
        out = must_get_out(error)
        try:
            if out is not None and out is not error:
                raise out from None  # noqa: ASYNC104 - it is the part that is Cancelled
            if out is error or isinstance(error, Exception):
                raise
            raise TrioaggError(f"the handler raised {type(error).__name__}") from error  # noqa: ASYNC104 - not Trio's
        finally:
            del out  # else its traceback keeps this frame, which keeps it


class Uploader:
    """Brings lists up.

    Args:
      max_uploads: How many at a time.
      attempts: Tries of one list.
      on_upload_failure: ``stop`` raises UploadFailed out of :meth:`run`; ``skip`` counts the list as up;
        ``dead_letter`` does so once *bury* has returned.
      bury: What it raises gets out of :meth:`run` as it is.
    """

    def __init__(
        self,
        deliver: Callable[[Upload], Awaitable[None]],
        observer: Observer,
        *,
        max_uploads: int,
        attempts: int,
        on_upload_failure: OnUploadFailure,
        bury: Callable[[Upload, Exception], Awaitable[None]],
    ) -> None:
        self._deliver, self._bury, self._observer = deliver, bury, observer
        self._free, self._attempts, self._on_upload_failure = max_uploads, attempts, on_upload_failure
        self._all_begun = trio.lowlevel.ParkingLot()
        self._waiting: deque[Upload] = deque()
        self._running: set[Upload] = set()
        self._lines: dict[Hashable, deque[Turn]] = {}
        self._finishing = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._failed = self._over = False

    @property
    def waiting(self) -> int:
        """Lists whose upload has not begun, those that wait for their turn included."""
        return len(self._waiting) + len(self._behind_others())

    @property
    def running(self) -> int:
        """Lists that are being brought up."""
        return len(self._running)

    def take_turn(self, key: Hashable | None) -> Turn:
        """Reserve a place in the order of *key*.  It must be given to :meth:`submit` or to :meth:`give_up`."""
        turn = Turn(key)
        if key is not None:
            self._lines.setdefault(key, deque()).append(turn)
        return turn

    def submit(self, upload: Upload) -> None:
        """Take a list.  Never waits, never fails."""
        if self._over:
            upload.when_done(False)
            return
        turn = upload.turn
        turn.upload = upload
        if turn.key is None or self._lines[turn.key][0] is turn:
            self._waiting.append(upload)
            self._start_some()

    def give_up(self, turn: Turn) -> None:
        """There will be no list for this turn, or it is up: the next one of its key may go."""
        turn.upload = None
        if turn.key is None:
            return
        line = self._lines[turn.key]
        was_first = line[0] is turn
        line.remove(turn)
        if not line:
            del self._lines[turn.key]
        elif was_first and line[0].upload is not None:
            self._waiting.append(line[0].upload)
            self._start_some()

    def drop(self, unwanted: Callable[[BatchContext], bool]) -> int:
        """Give up the lists of some batches, begun or not; says how many.  A try in a thread is waited for."""
        waiting = [upload for upload in (*self._waiting, *self._behind_others()) if unwanted(upload.context)]
        running = [upload for upload in self._running if unwanted(upload.context)]
        for upload in running:
            upload.scope.cancel()
        for upload in waiting:
            upload.turn.upload = None  # all of them first: giving up one turn must not start the next unwanted list
            if upload in self._waiting:
                self._waiting.remove(upload)
        for upload in waiting:
            self._done(upload, up=False)
        return len(waiting) + len(running)

    async def wait_begun(self) -> None:  # noqa: ASYNC910 - mostly nothing waits, and the reaper is in a hurry
        """Wait until no list waits for its upload to begin."""
        while self._waiting:
            await self._all_begun.park()

    @trio.lowlevel.enable_ki_protection
    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Bring up what is submitted until :meth:`finish`, and then what is left.

        Raises:
          UploadFailed: when a list is given up, if ``on_upload_failure`` is ``stop``.
          StrayCancel: if a handler cancelled the nursery that it runs in.

        Cancellation: uploads that are under way are cancelled; a try in a thread is waited for.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                try:
                    await self._finishing.wait()
                finally:
                    self._over = True  # before the nursery is: it takes nothing more
        finally:
            for upload in (*self._running, *self._waiting, *self._behind_others()):
                upload.when_done(False)  # somebody may wait for it outside of everything that ends here
        if not self._finishing.is_set():
            raise StrayCancel

    def finish(self) -> None:
        """No more lists will come: :meth:`run` returns when all are up."""
        self._finishing.set()

    def _behind_others(self) -> list[Upload]:
        """Lists that wait for their turn."""
        # Copies: statistics are asked for by threads too.
        lines = [list(line) for line in list(self._lines.values())]
        return [turn.upload for line in lines for turn in line[1:] if turn.upload is not None]

    def _start_some(self) -> None:
        while self._waiting and self._free and not self._failed:
            upload = self._waiting.popleft()
            self._free -= 1
            self._running.add(upload)
            upload.variables.run(self._start, upload)
        if not self._waiting:
            self._all_begun.unpark_all()

    def _start(self, upload: Upload) -> None:
        assert self._nursery is not None
        batch_context.set(upload.context)
        self._nursery.start_soon(self._bring_up, upload, name=f"upload {upload.report.batch_id}")

    @trio.lowlevel.enable_ki_protection
    async def _bring_up(self, upload: Upload) -> None:
        up = False
        with upload.scope:
            await trio.lowlevel.checkpoint_if_cancelled()  # in a block that aborts no handler is called any more
            up = await self._try_until_up(upload)
        if self._failed:
            return  # the service ends: nothing may count as up any more
        self._running.remove(upload)
        self._free += 1
        self._done(upload, up=up)
        self._start_some()

    def _done(self, upload: Upload, *, up: bool) -> None:
        upload.when_done(up)
        self.give_up(upload.turn)

    async def _try_until_up(self, upload: Upload) -> bool:
        try:
            # The first try goes around stamina, which costs as much as 30 stations do and makes cyclic garbage.
            await self._try(upload, 1)
        except _THE_END:
            # Not this list's failure but the service's end, whatever is done with lists that fail.
            self._failed = True
            raise
        except Exception as error:
            return await self._try_again(upload, error)
        return True

    async def _try_again(self, upload: Upload, first_error: Exception) -> bool:
        tries = 1
        try:
            async for attempt in stamina.retry_context(
                # Of exceptions alone: it would try again after Cancelled and Ctrl-C too.
                on=lambda error: isinstance(error, Exception) and not isinstance(error, _NOT_WORTH_RETRYING),
                attempts=self._attempts,
                timeout=None,
                wait_initial=_FIRST_WAIT_SECONDS,
                wait_max=_LONGEST_WAIT_SECONDS,
                wait_jitter=_FIRST_WAIT_SECONDS,
            ):
                with attempt:
                    tries = attempt.num
                    if tries == 1:
                        raise first_error
                    await self._try(upload, tries)
        except _THE_END:
            self._failed = True
            raise
        except Exception as error:
            return await self._give_up(upload, tries, error)  # noqa: ASYNC910 - every try is a checkpoint
        finally:
            del first_error  # its traceback knows this frame
        return True

    async def _try(self, upload: Upload, number: int) -> None:
        self._observer.uploading(upload.report, number)
        try:
            await self._deliver(upload)
        except Exception as error:
            last = number if isinstance(error, _NOT_WORTH_RETRYING) else self._attempts
            self._observer.upload_failed(upload.report, error, number, last)
            raise
        self._observer.uploaded(upload.report)

    async def _give_up(self, upload: Upload, tries: int, error: Exception) -> bool:
        """After the last try: whether the list counts as up all the same."""
        if upload.scope.cancel_called:
            return False  # noqa: ASYNC910 - dropped during its last try, which was a checkpoint
        if self._on_upload_failure == "skip":
            self._observer.upload_skipped(upload.report)
            return True  # noqa: ASYNC910 - the tries were checkpoints
        if self._failed:
            return False  # noqa: ASYNC910 - the tries were checkpoints
        if self._on_upload_failure == "stop":
            self._failed = True
            raise UploadFailed(upload.report.batch_id, tries) from error
        try:
            await self._bury(upload, error)
        except Exception:  # whatever it is ends the service, if that does not end already
            if self._failed or upload.scope.cancel_called:
                return False  # noqa: ASYNC910 - the tries were checkpoints
            self._failed = True
            raise
        self._observer.dead_lettered(upload.report)
        return True  # noqa: ASYNC910 - the tries were checkpoints
