"""asyncio inside Trio, without a Kafka."""
# flake8: noqa: ASYNC102, ASYNC114, ASYNC124, ASYNC910 - asyncio knows neither scopes nor checkpoints

from __future__ import annotations

import asyncio
import functools
import logging
import subprocess
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio_asyncio

from trioagg import _aio
from trioagg._aio import LoopErrors, asyncio_callback, open_drained_loop, service_loop

if TYPE_CHECKING:
    from collections.abc import Iterator

colour: ContextVar[str] = ContextVar("colour", default="none")


async def colour_and_loop_aio(station_id: str, module_input: object) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"station_id": station_id, "colour": colour.get(), "loop": asyncio.get_running_loop()}


@contextmanager
def loop_of_the_service(loop: object) -> Iterator[None]:
    token = service_loop.set(loop)
    try:
        yield
    finally:
        service_loop.reset(token)


async def open_in_a_task_of_its_own(task_status: trio.TaskStatus[Any]) -> None:
    async with open_drained_loop() as loop:
        task_status.started(loop)
        await trio.sleep_forever()


def test_importing_it_imports_no_asyncio_machinery() -> None:
    code = "import sys, trioagg._aio; print(sorted({'trio_asyncio', 'aiokafka'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


# The loop.


async def test_callbacks_do_not_wait_for_passes_of_the_scheduler() -> None:
    passes = 0

    async def count_passes() -> None:
        nonlocal passes
        while True:
            await trio.lowlevel.checkpoint()
            passes += 1

    async def many_steps_aio() -> None:
        for _ in range(1000):
            await asyncio.sleep(0)

    async with open_drained_loop() as loop, trio.open_nursery() as nursery:
        nursery.start_soon(count_passes)
        await loop.run_aio_coroutine(many_steps_aio())
        nursery.cancel_scope.cancel()
    assert passes < 200


async def test_a_burst_of_callbacks_lets_the_others_run() -> None:
    running = True

    async def steps_aio() -> None:
        while running:
            await asyncio.sleep(0)

    async with open_drained_loop() as loop, trio.open_nursery() as nursery:
        nursery.start_soon(loop.run_aio_coroutine, steps_aio())
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        running = False


async def test_timers_fire(autojump_clock: trio.testing.MockClock) -> None:
    async with open_drained_loop() as loop:
        started = trio.current_time()
        await loop.run_aio_coroutine(asyncio.sleep(3))
        assert trio.current_time() - started == pytest.approx(3)


@pytest.mark.parametrize("missing", ["_main_loop_one", "_stopped"])
async def test_a_loop_that_we_do_not_know_works_undrained_and_says_so(
    missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Unknown:
        """What `_drain` sees of a trio-asyncio in which a name has changed."""

        def __init__(self, loop: object) -> None:
            self._loop = loop

        def __getattr__(self, name: str) -> Any:
            if name == missing:
                raise AttributeError(name)
            return getattr(self._loop, name)

    async with trio_asyncio.open_loop() as loop:
        before = loop._main_loop_one
        _aio._drain(Unknown(loop), LoopErrors())
        assert loop._main_loop_one == before
        await loop.run_aio_coroutine(asyncio.sleep(0))
    assert "slow under load" in caplog.text


async def test_an_error_that_nobody_looks_at_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    errors = LoopErrors()

    def boom() -> None:
        raise ValueError("in a callback")

    async def forget_a_future_aio() -> None:
        asyncio.get_running_loop().create_future().set_exception(ValueError("in a future"))
        await asyncio.sleep(0)

    async with open_drained_loop(errors) as loop:
        loop.call_soon(boom)
        await loop.run_aio_coroutine(forget_a_future_aio())
        await loop.run_aio_coroutine(asyncio.sleep(0))
    assert errors.count == 2
    assert "in a callback" in caplog.text
    assert "in a future" in caplog.text


async def test_an_exit_out_of_a_callback_is_told_and_does_not_stop_the_loop() -> None:
    told: list[BaseException] = []

    async def leave_aio() -> None:
        raise SystemExit(3)

    async with open_drained_loop(LoopErrors(told.append)) as loop:
        with pytest.raises(SystemExit):
            await loop.run_aio_coroutine(leave_aio())
        await loop.run_aio_coroutine(asyncio.sleep(0))
    assert [type(error) for error in told] == [SystemExit]


@pytest.mark.parametrize("place", ["callback", "reader"])
def test_ctrl_c_in_an_asyncio_callback_ends_the_program(place: str) -> None:
    code = f"""
import signal, socket, trio
from trioagg._aio import open_drained_loop

async def main():
    async with open_drained_loop() as loop:
        if {place!r} == "callback":
            loop.call_soon(signal.raise_signal, signal.SIGINT)
            await trio.sleep_forever()
        here, there = socket.socketpair()
        with here, there:
            here.setblocking(False)
            there.send(b"x")
            loop.add_reader(here, lambda: (here.recv(1), signal.raise_signal(signal.SIGINT)))
            # As our own host does; in the reader's task it would cancel the loop, and this would never hear of it.
            with trio.CancelScope(shield=True), trio.move_on_after(5):
                await trio.sleep_forever()
            print("not heard of")

try:
    trio.run(main)
except BaseException as error:
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    print(type(error).__name__)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert said.stdout.strip() == "KeyboardInterrupt", said.stderr


# Callbacks.


async def test_a_callback_runs_in_the_loop_of_the_service() -> None:
    async with trio.open_nursery() as nursery:
        loop = await nursery.start(open_in_a_task_of_its_own)
        colour.set("red")
        with loop_of_the_service(loop):
            assert await asyncio_callback(colour_and_loop_aio)("S1", None) == {
                "station_id": "S1",
                "colour": "red",
                "loop": loop,
            }
        nursery.cancel_scope.cancel()


async def test_a_loop_of_the_user_comes_first() -> None:
    async with trio.open_nursery() as nursery:
        of_the_service = await nursery.start(open_in_a_task_of_its_own)
        async with trio_asyncio.open_loop() as of_the_user:
            with loop_of_the_service(of_the_service):
                answer = await asyncio_callback(colour_and_loop_aio)("S1", None)
        assert answer["loop"] is of_the_user
        nursery.cancel_scope.cancel()


async def test_without_a_loop_it_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"colour_and_loop_aio in: the service has one; elsewhere open one"):
        await asyncio_callback(colour_and_loop_aio)("S1", None)


async def test_a_loop_that_has_ended_is_no_loop() -> None:
    async with trio.open_nursery() as nursery:
        loop = await nursery.start(open_in_a_task_of_its_own)
        nursery.cancel_scope.cancel()
    with loop_of_the_service(loop), pytest.raises(RuntimeError, match="no asyncio loop"):
        await asyncio_callback(colour_and_loop_aio)("S1", None)


async def test_what_it_raises_comes_out_as_it_is() -> None:
    async def fails_aio(station_id: str, module_input: object) -> None:
        raise LookupError(station_id)

    async with open_drained_loop():
        with pytest.raises(LookupError, match="S1"):
            await asyncio_callback(fails_aio)("S1", None)


async def test_cancelling_trios_side_cancels_the_asyncio_task_and_waits_for_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    seen: list[str] = []

    async def hangs_aio(station_id: str, module_input: object) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            await asyncio.sleep(2)
            seen.append("cancelled")
            raise

    async with open_drained_loop():
        started = trio.current_time()
        with trio.move_on_after(1) as scope:
            await asyncio_callback(hangs_aio)("S1", None)
    assert scope.cancelled_caught
    assert seen == ["cancelled"]
    assert trio.current_time() - started == pytest.approx(3)


async def test_a_partial_or_an_object_can_be_wrapped_too() -> None:
    class Model:
        async def __call__(self, station_id: str, module_input: object) -> dict[str, Any]:
            return {"station_id": station_id}

    async with open_drained_loop() as loop:
        assert await asyncio_callback(Model())("S1", None) == {"station_id": "S1"}
        partial = functools.partial(colour_and_loop_aio, "S2")
        assert (await asyncio_callback(partial)(None))["loop"] is loop


async def test_trio_can_be_called_from_inside(autojump_clock: trio.testing.MockClock) -> None:
    async def sleeps_in_trio_aio(station_id: str, module_input: object) -> dict[str, Any]:
        await trio_asyncio.trio_as_aio(trio.sleep)(1)
        return {"station_id": station_id}

    async with trio.open_nursery() as nursery:
        loop = await nursery.start(open_in_a_task_of_its_own)
        with loop_of_the_service(loop):
            assert await asyncio_callback(sleeps_in_trio_aio)("S1", None) == {"station_id": "S1"}
        nursery.cancel_scope.cancel()


async def test_many_at_once_end_together(autojump_clock: trio.testing.MockClock) -> None:
    async def waits_aio(station_id: str, module_input: object) -> str:
        await asyncio.sleep(1)
        return station_id

    answers: list[str] = []

    async def station(number: int) -> None:
        answers.append(await asyncio_callback(waits_aio)(str(number), None))

    async with open_drained_loop():
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(station, number)
        assert trio.current_time() - started == pytest.approx(1)
    assert sorted(answers, key=int) == [str(number) for number in range(300)]


@pytest.fixture(autouse=True)
def log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trioagg")
