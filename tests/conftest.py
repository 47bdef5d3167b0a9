"""What every test has: a deadline on the real clock; and, for those that ask, a Kafka."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import threading
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from broker import Broker, Kafka, NoKafka, kafka_jars

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

DEADLINE_SECONDS = 120.0
GRACE_SECONDS = 15.0


class Watchdog:
    """First the stacks and an interrupt, which fails this test; `GRACE_SECONDS` later the end of the process.

    Not a timeout around the test in Trio: that one knows virtual time only, and a loop that is blocked never
    looks at it.  Not pytest-timeout: it raises out of a signal handler, in the midst of Trio's own code.
    """

    def __init__(self) -> None:
        self.stderr = 2
        """A file descriptor that nobody captures."""

    @contextmanager
    def deadline(self, seconds: float, test: str) -> Iterator[None]:
        """Interrupt the body after *seconds*, and fail the test that it was."""
        over, passed = threading.Lock(), False

        def bark() -> None:
            nonlocal passed
            if over.acquire(blocking=False):  # else the body ended a moment ago
                passed = True
                self._print(f"\n\nDEADLINE: {test} runs for {seconds:g} s\n{trio_stacks()}\nThreads:\n")
                faulthandler.dump_traceback(self.stderr, all_threads=True)
                # As Ctrl-C does it: Trio hands it to the main task and ends the others in good order.
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                over.release()

        timer = threading.Timer(seconds, bark)
        timer.daemon = True
        timer.name = "trioagg tests: deadline"
        # This one needs neither the interpreter lock nor anybody's consent.
        faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True, file=self.stderr)
        timer.start()
        try:
            try:
                yield
            finally:
                timer.cancel()
                over.acquire()  # for good; while the stacks are printed it waits, and the interrupt comes here
        finally:
            faulthandler.cancel_dump_traceback_later()
            if passed:  # whatever the interrupt became on its way out
                pytest.fail(f"no end after {seconds:g} s of real time: see the stacks above", pytrace=False)

    def _print(self, text: str) -> None:
        os.write(self.stderr, text.encode(errors="replace"))


def trio_stacks() -> str:
    """Every live Trio task of this process, children below their parents, with what it awaits.

    Found through the garbage collector: the run is another thread's, and Trio tells its tasks to that thread only.
    """
    tasks = [thing for thing in gc.get_objects() if isinstance(thing, trio.lowlevel.Task)]
    alive = [task for task in tasks if task.coro.cr_frame is not None]
    lines = [f"Trio tasks: {len(alive)}"]

    def add(task: trio.lowlevel.Task, depth: int) -> None:
        indent = "  " * depth
        lines.append(f"{indent}- {task.name}")
        try:
            stack = traceback.StackSummary.extract(task.iter_await_frames())
            lines.extend(f"{indent}    {frame.filename}:{frame.lineno} {frame.name}" for frame in stack)
        except Exception as error:  # it runs while we look
            lines.append(f"{indent}    (no stack: {error!r})")
        for nursery in task.child_nurseries:
            for child in nursery.child_tasks:
                add(child, depth + 1)

    for task in alive:
        if task.parent_nursery is None:
            add(task, 1)
    return "\n".join(lines)


watchdog = Watchdog()


def pytest_configure(config: pytest.Config) -> None:
    # File descriptor 2 itself is what pytest captures, so sys.__stderr__ is no way around it: this copy is.
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        watchdog.stderr = os.dup(2)


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"kafka", "own_broker"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("kafka")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    # A hook and not a fixture: it surrounds the Trio run, async fixtures included, and turns what the
    # watchdog interrupted into one failed test.  Synchronous fixtures start brokers, which have bounds of their own.
    if item.config.getoption("usepdb"):
        return (yield)
    marker = item.get_closest_marker("deadline")
    with watchdog.deadline(marker.args[0] if marker else DEADLINE_SECONDS, item.nodeid):
        return (yield)


def say(line: str) -> None:
    os.write(watchdog.stderr, f"\n{line}\n".encode())


@pytest.fixture(scope="session")
def jars() -> Path:
    try:
        return kafka_jars(say)
    except NoKafka as error:
        if os.environ.get("TRIOAGG_REQUIRE_KAFKA") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[Kafka]:
    bootstrap = os.environ.get("TRIOAGG_TEST_BOOTSTRAP")
    if bootstrap:
        yield Kafka(bootstrap, None)
        return
    with Broker(request.getfixturevalue("jars")) as broker:
        yield Kafka(broker.bootstrap, broker)


@pytest.fixture
def own_broker(jars: Path) -> Iterator[Broker]:
    """A broker of the test's own, to kill and restart: about four seconds."""
    with Broker(jars) as broker:
        yield broker
