"""What happens if it is cancelled right there?  Asked for every step that the scheduler takes.

A scenario is run once to count the steps that its tasks take, and then again and again, each time with an interruption
just before another step.  Whatever is interrupted: nothing hangs, no room is lost, every list is complete or absent,
nothing goes up twice, and nothing but the interruption comes out.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio._core._run
import trio.testing
from trio.testing import MockClock

from trioagg import BatchReport, BatchResultAggregator, Closed, CompletedBy, UploadFailed, Verdict, run_batch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SEEDS = range(5)
BATCHES = 5


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "trioagg")  # thousands of batches


class Interruption(trio.abc.Instrument):
    """Calls :attr:`act` before the step of that number, counted from when it was set."""

    def __init__(self, step: float) -> None:
        self.step = step
        self.steps = 0
        self.act: Callable[[], object] | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.act is not None:
            self.steps += 1
            if self.steps == self.step:
                self.act()


def at_every_step(scenario: Callable[[Interruption], Awaitable[None]], least: int = 10) -> None:
    """Run the scenario with an interruption at each of its steps, more than *least*, each in several orders."""

    async def main(interruption: Interruption) -> None:
        with trio.fail_after(1000):  # virtual seconds: a hang ends here
            await scenario(interruption)

    def run(step: float, seed: int) -> int:
        trio._core._run._r.seed(seed)
        random.seed(seed)  # the waits between tries
        interruption = Interruption(step)
        trio.run(main, interruption, clock=MockClock(autojump_threshold=0), instruments=[interruption])
        return interruption.steps

    for seed in SEEDS:
        total = run(math.inf, seed)
        assert total > least
        for step in range(1, total + 1):
            try:
                run(step, seed)
            except BaseException as error:
                error.add_note(f"interrupted at step {step} of {total}, seed {seed}")
                raise


async def station(station_id: str, kind: str) -> Any:
    """Of every kind one."""
    match kind:
        case "at once":
            return {"station_id": station_id}
        case "checkpoint":
            await trio.lowlevel.checkpoint()
            return {"station_id": station_id}
        case "sleeps":
            await trio.sleep(1)
            return {"station_id": station_id}
        case "none":
            return None
        case "raises":
            await trio.sleep(0.5)
            raise ValueError
        case "list":
            return []
        case "hangs":
            await trio.sleep_forever()
        case "shielded":
            with trio.CancelScope(shield=True):
                await trio.sleep(7)
            return {"station_id": station_id}
        case "swallows":
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                return {"station_id": station_id}
        case "fails in the cleanup":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                try:
                    await trio.sleep_forever()
                finally:
                    raise ValueError
    raise AssertionError(kind)


EASY = {"at once": "at once", "checkpoint": "checkpoint", "sleeps": "sleeps", "none": "none", "raises": "raises"}
HARD = EASY | {kind: kind for kind in ("list", "hangs", "shielded", "swallows", "fails in the cleanup")}
GOOD = {"at once", "checkpoint", "sleeps"}


class Witness:
    """A handler, and what became of every batch; afterwards all of it must fit together."""

    def __init__(self) -> None:
        self.lists: dict[str, list[str]] = {}
        self.tries: Counter[str] = Counter()
        self.fates: dict[str, list[bool]] = {}

    async def handler(self, batch_id: str, results_list: list[dict[str, Any]]) -> None:
        self.tries[batch_id] += 1
        await trio.sleep(1)
        if batch_id.startswith("again") and self.tries[batch_id] == 1:
            raise ValueError
        await trio.lowlevel.checkpoint()
        assert batch_id not in self.lists, "twice"
        self.lists[batch_id] = [result["station_id"] for result in results_list]

    async def admit(self, aggregator: BatchResultAggregator, batch_id: str, stations: dict, **more: Any) -> Any:
        fates: list[bool] = []
        batch = await aggregator.admit(batch_id, stations, when_done=fates.append, **more)
        self.fates[batch_id] = fates
        return batch

    def check(self, aggregator: BatchResultAggregator) -> None:
        for batch_id, fates in self.fates.items():
            assert len(fates) == 1, f"{batch_id} has come to {len(fates)} ends"
            assert fates == [batch_id in self.lists]
        for batch_id, stations in self.lists.items():
            expected = {"A"} if "pushed" in batch_id else GOOD
            assert set(stations) == expected, f"the list of {batch_id} is not complete: {stations}"
        statistics = aggregator.statistics()
        assert aggregator.in_flight == 0
        assert statistics.opened == statistics.closed == sum(statistics.completed_by.values())
        assert statistics.open_batches == statistics.unreaped_batches == 0
        assert statistics.uploaded == len(self.lists)
        assert sum(statistics.stations.values()) == statistics.expected


def some_batches(witness: Witness, aggregator: BatchResultAggregator, nursery: trio.Nursery) -> None:
    async def admit(batch_id: str, stations: dict[str, str], order: object = None) -> None:
        with suppress(Closed):  # where the block ends first
            await witness.admit(aggregator, batch_id, stations, order=order)

    async def push() -> None:
        with suppress(Closed):
            batch = await witness.admit(aggregator, "pushed", {"A": None, "B": None}, pushed=True)
            batch.add_result("A", {"station_id": "A"})
            await trio.sleep(0.25)
            batch.add_failure("B", ValueError())

    nursery.start_soon(admit, "easy", EASY)
    nursery.start_soon(admit, "hard", HARD)
    nursery.start_soon(admit, "again, in order", EASY, "k")
    nursery.start_soon(admit, "after it", EASY, "k")
    nursery.start_soon(push)


@pytest.mark.parametrize("cap", [1, 3, 1000])
def test_one_batch(cap: int) -> None:
    async def scenario(interruption: Interruption) -> None:
        before = trio.lowlevel.current_statistics().tasks_living
        report: BatchReport | None = None
        stations = HARD if cap > 3 else EASY
        with trio.CancelScope() as scope:
            interruption.act = scope.cancel
            report = await run_batch("b", stations, station, max_running_stations=cap)
        interruption.act = None
        assert (report is None) == scope.cancelled_caught
        assert trio.lowlevel.current_statistics().tasks_living == before
        if report is not None:
            assert {result["station_id"] for result in report.results} == GOOD

    at_every_step(scenario, least=5)


def test_the_whole_block() -> None:
    async def scenario(interruption: Interruption) -> None:
        witness = Witness()
        aggregator = BatchResultAggregator(station, witness.handler, max_batches_in_flight=3, max_uploads=2)
        with trio.CancelScope() as scope:
            interruption.act = scope.cancel
            async with aggregator, trio.open_nursery() as nursery:
                some_batches(witness, aggregator, nursery)
        interruption.act = None
        witness.check(aggregator)
        if not scope.cancelled_caught:
            assert len(witness.lists) == len(witness.fates) == BATCHES

    at_every_step(scenario)


def test_a_block_whose_body_raises() -> None:
    async def scenario(interruption: Interruption) -> None:
        witness = Witness()
        now = trio.Event()
        aggregator = BatchResultAggregator(station, witness.handler, max_batches_in_flight=3, max_uploads=2)
        interruption.act = now.set
        async with trio.open_nursery() as nursery:
            with pytest.raises(ValueError, match="mine"):
                async with aggregator:
                    # From outside of the block: they live on and must be told.
                    some_batches(witness, aggregator, nursery)
                    with trio.move_on_after(20):
                        await now.wait()
                    interruption.act = None
                    raise ValueError("mine")
        witness.check(aggregator)

    at_every_step(scenario)


@pytest.mark.parametrize("who", ["submit", "run", "create_batch", "wait_closed"])
def test_a_caller(who: str) -> None:
    async def scenario(interruption: Interruption) -> None:
        witness = Witness()
        others = 0
        async with BatchResultAggregator(station, witness.handler, max_batches_in_flight=2) as aggregator:

            async def another(number: int) -> None:
                nonlocal others
                await aggregator.run(f"another {number}", EASY)
                others += 1

            async def caller() -> None:
                with trio.CancelScope() as scope:
                    interruption.act = scope.cancel
                    match who:
                        case "submit":
                            await aggregator.submit("mine", EASY)
                        case "run":
                            report = await aggregator.run("mine", EASY)
                            assert report.completed_by is CompletedBy.ALL
                        case "create_batch":
                            batch = await aggregator.create_batch("mine, pushed", ["A"])
                            batch.add_result("A", {"station_id": "A"})
                        case "wait_closed":
                            batch = await aggregator.submit("mine", EASY)
                            assert (await batch.wait_closed()) is batch.report
                interruption.act = None

            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(another, number)
                await trio.testing.wait_all_tasks_blocked()  # it is full now
                nursery.start_soon(caller)
            # Whatever became of the caller, there is room for as many as before.
            for number in range(2):
                await aggregator.submit(f"later {number}", HARD)
            assert aggregator.in_flight == 2
        assert others == 3
        witness.check(aggregator)
        assert len(witness.lists) == aggregator.statistics().opened

    at_every_step(scenario)


def test_a_drain() -> None:
    async def scenario(interruption: Interruption) -> None:
        witness = Witness()
        async with BatchResultAggregator(station, witness.handler) as aggregator:
            async with trio.open_nursery() as nursery:
                some_batches(witness, aggregator, nursery)
            with trio.CancelScope() as scope:
                interruption.act = scope.cancel
                await aggregator.drain()
            interruption.act = None
            with pytest.raises(Closed):
                await aggregator.submit("more", EASY)
        witness.check(aggregator)
        assert len(witness.lists) == BATCHES  # those in flight went on

    at_every_step(scenario)


def test_an_abort_of_some() -> None:
    async def scenario(interruption: Interruption) -> None:
        witness = Witness()
        async with BatchResultAggregator(station, witness.handler, max_uploads=1) as aggregator:
            interruption.act = lambda: aggregator.abort(lambda context: context.partition == 0)
            for number in range(2):
                for partition in range(2):
                    batch_id = f"{number}/{partition}"
                    await witness.admit(aggregator, batch_id, EASY, order=partition, partition=partition)
        interruption.act = None
        witness.check(aggregator)
        assert {"0/1", "1/1"} <= set(witness.lists)

    at_every_step(scenario)


def test_a_batch_that_is_forced() -> None:
    async def scenario(interruption: Interruption) -> None:
        async with BatchResultAggregator(station) as aggregator:
            batch = await aggregator.submit("b", HARD)
            interruption.act = batch.complete
            report = await batch.wait_closed()
            interruption.act = None
        ledger = Counter(outcome.verdict for outcome in report.stations.values())
        assert all(getattr(report, verdict) == ledger[verdict] for verdict in Verdict)
        assert ledger.total() == len(HARD)
        if report.completed_by is CompletedBy.FORCED:
            assert ledger[Verdict.TIMED_OUT] == 0
        else:
            assert report.completed_by is CompletedBy.TIMEOUT
            assert report.seconds == 5

    at_every_step(scenario)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_station_that_ends_the_block(error: type[BaseException]) -> None:
    async def scenario(interruption: Interruption) -> None:
        witness = Witness()
        now = trio.Event()

        async def callback(station_id: str, kind: str) -> Any:
            if kind == "out":
                await now.wait()
                raise error("out")
            return await station(station_id, kind)

        aggregator = BatchResultAggregator(callback, witness.handler, batch_timeout=50)
        interruption.act = now.set
        with pytest.raises(error, match="out"):
            async with aggregator:
                await witness.admit(aggregator, "bad", {"A": "out"})
                async with trio.open_nursery() as nursery:
                    some_batches(witness, aggregator, nursery)
                await trio.sleep(20)
                now.set()
                await trio.sleep_forever()
        interruption.act = None
        witness.check(aggregator)
        assert "bad" not in witness.lists

    at_every_step(scenario)


def test_an_upload_that_is_given_up() -> None:
    async def scenario(interruption: Interruption) -> None:
        # Nobody is cancelled: the interruption is that from now on no list can go up.
        witness = Witness()
        refused = trio.Event()

        async def handler(batch_id: str, results_list: list) -> None:
            await trio.lowlevel.checkpoint()
            if refused.is_set():
                raise TypeError("refused")
            await witness.handler(batch_id, results_list)

        aggregator = BatchResultAggregator(station, handler, max_batches_in_flight=3, max_uploads=2)
        interruption.act = refused.set
        failure: UploadFailed | None = None
        async with trio.open_nursery() as nursery:
            try:
                async with aggregator, trio.open_nursery() as submitting:
                    some_batches(witness, aggregator, submitting)
            except UploadFailed as error:
                failure = error
            nursery.cancel_scope.cancel()
        interruption.act = None
        if failure is None:
            witness.check(aggregator)
            assert len(witness.lists) == BATCHES
            return
        assert isinstance(failure.__cause__, TypeError)
        assert aggregator.in_flight == aggregator.statistics().open_batches == 0
        for batch_id, fates in witness.fates.items():
            # A list may be up and not count as such, since the service ends; the other way round never.
            assert len(fates) == 1
            assert fates == [False] or batch_id in witness.lists

    at_every_step(scenario)
