"""Whoever keeps the loop to himself is named, with the place where he is."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import trio

from trioagg._watchdog import Watchdog

if TYPE_CHECKING:
    import pytest


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "trioagg"]


async def test_a_task_that_blocks_is_named_once_with_its_place_and_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "trioagg")

    async def greedy() -> None:
        time.sleep(0.8)  # noqa: ASYNC251 - that is what it is about

    watchdog = Watchdog(0.2)
    with watchdog.watching():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(greedy, name="S017")
        await trio.sleep(0.5)
    first, last = lines(caplog)
    assert "by task S017 at " in first
    assert "in greedy (time.sleep(0.8)" in first
    assert last.startswith("the loop goes on after 0.")
    assert watchdog.blocked == 1


async def test_a_loop_that_goes_on_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "trioagg")
    with Watchdog(5).watching():
        for _ in range(20):
            await trio.sleep(0.02)
    assert lines(caplog) == []


def watching_threads() -> list[threading.Thread]:
    # By name: threads that Trio kept from earlier tests end when they like.
    return [thread for thread in threading.enumerate() if thread.name == "trioagg watchdog"]


async def test_leaving_is_quick_and_leaves_no_thread_behind() -> None:
    for _ in range(3):
        with Watchdog(60).watching():
            await trio.lowlevel.checkpoint()
            assert len(watching_threads()) == 1
        assert watching_threads() == []


async def test_it_ends_while_the_loop_is_blocked_by_the_block_itself(caplog: pytest.LogCaptureFixture) -> None:
    with Watchdog(0.1).watching():
        time.sleep(0.5)  # noqa: ASYNC251 - that is what it is about
    assert "in test_it_ends_while" in lines(caplog)[0]
