"""A Ctrl-C at any line of ours, and of Trio's below ours, ends the block as KeyboardInterrupt: no hang, no other error.

Trio raises it wherever it falls in code that is not protected, its own start_soon() and waits included: a task that was
being started would then never run and be waited for, one that was about to wait would be woken after its end.
"""

from __future__ import annotations

import gc
import random
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trioagg
from trioagg import BatchResultAggregator, run_batch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType

WHERE = tuple(str(Path(package.__file__).parent) for package in (trioagg, trio))
LINES_BETWEEN = 47
"""One line in so many is interrupted, from a random one on; with 1 it is every line, and takes three minutes."""


async def answer(station_id: str, value: int) -> dict[str, Any]:
    if value == 2:
        await trio.lowlevel.checkpoint()
    return {"station_id": station_id}


def answer_in_a_thread(station_id: str, value: int) -> dict[str, Any]:
    return {"station_id": station_id}


async def upload(batch_id: str, results_list: list[dict[str, Any]]) -> None:
    await trio.lowlevel.checkpoint()


class Sink:
    def encode(self, result: dict[str, Any]) -> bytes:
        return b"{}"

    async def send(self, report: trioagg.BatchReport, encoded: list[bytes]) -> None:
        acknowledged = trio.Event()
        trio.lowlevel.current_trio_token().run_sync_soon(acknowledged.set)
        await acknowledged.wait()


async def three_batches(callback: Callable[..., Any], handler: Callable[..., Any] | None, sink: Sink | None) -> None:
    async with BatchResultAggregator(callback, handler, sink=sink) as aggregator:
        for number in range(3):
            await aggregator.submit(f"b{number}", {"A": 1, "B": 2, "C": 3})


async def one_batch() -> None:
    await run_batch("b", {"A": 1, "B": 2, "C": 3}, answer)


def lines_of(run: Callable[[], Awaitable[None]], interrupt_at: int | None) -> int:
    """How many lines the block takes, from its beginning to its end; one of them may be interrupted.

    Not those of Trio's own beginning and end around it: interrupted there, it cannot run again in this process.
    """
    lines = 0
    inside = False

    async def main() -> None:
        nonlocal inside
        inside = True
        try:
            await run()
        finally:
            inside = False

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(WHERE):
            return None
        if event == "line" and inside:
            lines += 1
            if lines == interrupt_at:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        trio.run(main)
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize(
    "run",
    [
        one_batch,
        lambda: three_batches(answer, upload, None),
        lambda: three_batches(answer, None, Sink()),
        lambda: three_batches(answer_in_a_thread, None, None),
    ],
    ids=["one batch", "a handler", "a sink", "threads"],
)
def test_whatever_line_it_falls_on(run: Callable[[], Awaitable[None]]) -> None:
    for line in range(random.randint(1, LINES_BETWEEN), lines_of(run, None), LINES_BETWEEN):
        try:
            lines = lines_of(run, line)
        except KeyboardInterrupt:
            continue
        except BaseException as error:
            error.add_note(f"the interrupted line was number {line}")
            raise
        assert lines < line, "no KeyboardInterrupt came out"  # no two runs are alike, and this one was shorter
    gc.collect()
