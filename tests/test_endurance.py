"""The service under load, signals, kills, rebalances and a broker that goes away, on real Kafka: nothing is lost.

What may be there twice is what at-least-once allows, and no more.  The members of a group are services of one Trio run,
or the small program beside this module where the process itself is what ends.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiokafka
import msgspec
import pytest
import trio
import trio_asyncio
from broker import Broker, Kafka, unique
from load import Load, double

import trioagg

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from trioagg import AsyncDataAnalysisService, BatchReport

PROGRAM = Path(__file__).with_name("program.py")
INTERRUPTED = -signal.SIGINT
"""How Python ends of a KeyboardInterrupt that nobody catches."""


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    return await trio.to_thread.run_sync(function, *args)


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


@asynccontextmanager
async def running(service: AsyncDataAnalysisService, *args: Any, **kwargs: Any) -> AsyncIterator[None]:
    async with service.start(*args, **kwargs):
        yield


def nothing_is_left(service: AsyncDataAnalysisService, load: Load) -> bool:
    """Whether a service that is alone in its group has brought everything up."""
    statistics = service.statistics()
    return (
        len(statistics.kafka.lag) == load.partitions
        and not any(statistics.kafka.lag[part] != 0 for part in statistics.kafka.lag)
        and statistics.uploaded == statistics.opened == statistics.messages == statistics.kafka.records_delivered
    )


async def do_the_rest(load: Load, seconds: float = 60.0, **settings: Any) -> None:
    """A last run without trouble: afterwards nothing is lost, and everything is committed."""
    service = load.service(**settings)
    async with running(service, double):
        await until(lambda: nothing_is_left(service, load), seconds)
    assert await in_thread(load.committed) == await in_thread(load.ends)


def where(batch_id: str) -> tuple[int, int]:
    """The partition and the offset in a batch id."""
    _, partition, offset, _ = batch_id.rsplit("_", 3)
    return int(partition), int(offset)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    yield
    gc.collect()  # what was not closed warns now, and not in another test


# How much.


def bare_pipe(load: Load) -> float:
    """Seconds that plain asyncio and aiokafka take for the same messages and results, with no stations in between."""

    async def run() -> float:
        consumer = aiokafka.AIOKafkaConsumer(
            load.topic,
            bootstrap_servers=load.bootstrap,
            group_id=unique("bare"),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=load.bootstrap, enable_idempotence=True, max_batch_size=512 * 1024
        )
        async with producer, consumer:
            began, done = 0.0, 0
            while done < load.sent:
                found = await consumer.getmany(timeout_ms=100, max_records=100)
                began = began or (time.perf_counter() if found else 0.0)
                sent = []
                for record in (record for records in found.values() for record in records):
                    key = f"{record.topic}_{record.partition}_{record.offset}_{record.timestamp // 1000}"
                    stations = msgspec.json.decode(record.value)["realTimeData"]
                    results = [{"station_id": each["stationId"], "number": each["number"]} for each in stations]
                    value = msgspec.json.encode({"batch_id": key, "count": len(results), "results": results})
                    sent.append(await producer.send(load.results, value, key=key.encode()))
                await producer.flush()
                for future in sent:
                    future.result()
                await consumer.commit()
                done += len(sent)
            return time.perf_counter() - began

    # Not asyncio.run(): since the import of trio-asyncio its loop is another one.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(run())


async def test_two_thousand_messages_of_a_hundred_stations_become_one_list_each(kafka: Kafka, capsys) -> None:
    count = 2000
    load = await in_thread(partial(Load, kafka.bootstrap, count, stations=100))
    service = load.service()
    async with running(service, double):
        await until(lambda: service.statistics().messages > 0)
        began = time.perf_counter()
        await until(lambda: service.statistics().uploaded == count, 90)
        seconds = time.perf_counter() - began
        await until(lambda: nothing_is_left(service, load))
    lists = await in_thread(load.lists)
    assert len(lists) == count
    assert set(lists.values()) == {1}
    assert await in_thread(load.committed) == await in_thread(load.ends)
    assert service.statistics().stations["succeeded"] == count * 100
    bare = await in_thread(bare_pipe, load)
    with capsys.disabled():
        print(
            f"\n{count} messages of 100 stations: {count / seconds:.0f} messages/s; "
            f"a bare pipe without stations: {count / bare:.0f} messages/s"
        )


# Signals.


class Process:
    """The program in a process of its own."""

    def __init__(self, process: trio.Process, errors: Any) -> None:
        self._process, self._errors = process, errors
        self._lines: list[str] = []
        self._text = b""

    async def line(self, seconds: float = 60.0) -> str:
        """The next line that it writes; an empty one where it has ended."""
        with trio.fail_after(seconds):
            while b"\n" not in self._text:
                some = await self._process.stdout.receive_some()
                if not some:
                    return ""
                self._text += some
        line, _, self._text = self._text.partition(b"\n")
        return line.decode()

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self, seconds: float) -> int:
        with trio.fail_after(seconds):
            return await self._process.wait()

    @property
    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read()


@asynccontextmanager
async def program(load: Load, how: str, station_seconds: float = 0.02, **settings: Any) -> AsyncIterator[Process]:
    quick = {"session_timeout": 6.0, "heartbeat_interval": 0.5}
    arguments = {
        "topic": load.topic,
        "group": load.group,
        "bootstrap_servers": load.bootstrap,
        "result_topic": load.results,
        "station_seconds": station_seconds,
        "kafka": quick,
        **settings,
    }
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", PROGRAM, how, json.dumps(arguments)]
    with tempfile.TemporaryFile("w+") as errors:
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=errors)
        try:
            child = Process(process, errors)
            assert await child.line() == "imported", child.errors
            yield child
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            await process.stdout.aclose()


@pytest.mark.deadline(300)
def test_an_interrupt_ends_the_run_fifty_times_whatever_it_interrupts(kafka: Kafka, capsys) -> None:
    load = Load(kafka.bootstrap, 3000, stations=20)
    chance = random.Random()
    began_at, longest, under_load = [], 0.0, 0
    for number in range(50):
        committed = {number: offset or 0 for number, offset in load.committed().items()}
        began_at.append(committed)
        if load.sent - sum(committed.values()) < 1500:
            load.send(1500, stations=20)
        service = load.service(commit_interval=0.2)
        sent_at = []

        def interrupt(sent_at: list[float] = sent_at) -> None:
            sent_at.append(time.monotonic())
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        async def main(service: AsyncDataAnalysisService = service) -> None:
            async with service.start(double):
                await trio.sleep_forever()

        # Every third one while it starts and joins its group, the others under load.
        moment = chance.uniform(0.005, 0.2) if number % 3 == 0 else chance.uniform(0.2, 0.8)
        timer = threading.Timer(moment, interrupt)
        timer.daemon = True
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            trio.run(main)
        longest = max(longest, time.monotonic() - sent_at[0])
        under_load += service.statistics().uploaded > 0
    assert longest < 6.5  # an abort leaves the group within five seconds
    assert under_load >= 10
    trio.run(do_the_rest, load)
    lists = load.lists()
    assert len(lists) == load.sent
    for batch_id, times in lists.items():
        partition, offset = where(batch_id)
        # Once in the last run, and once in any that began before it was committed.
        assert times <= 1 + sum(committed[partition] <= offset for committed in began_at)
    with capsys.disabled():
        print(
            f"\n50 interrupts, {under_load} under load: the longest took {longest:.2f} s to end; "
            f"{sum(lists.values()) - len(lists)} of {len(lists)} lists again"
        )


async def test_an_interrupt_ends_the_program_as_python_does(kafka: Kafka) -> None:
    load = await in_thread(Load, kafka.bootstrap, 2000)

    async def interrupted_five_times() -> None:
        for _ in range(5):
            async with program(load, "left", commit_interval=0.2) as child:
                await trio.sleep(random.uniform(0.0, 1.5))
                child.send_signal(signal.SIGINT)
                assert await child.ended(8) == INTERRUPTED, child.errors
                assert child.errors.splitlines()[-1] == "KeyboardInterrupt", child.errors
                for complaint in ("Exception ignored", "never retrieved", "Warning"):
                    assert complaint not in child.errors

    async with trio.open_nursery() as nursery:  # two members of one group
        nursery.start_soon(interrupted_five_times)
        nursery.start_soon(interrupted_five_times)
    await do_the_rest(load)
    assert len(await in_thread(load.lists)) == load.sent


async def test_a_signal_that_requests_the_stop_loses_and_repeats_nothing(kafka: Kafka) -> None:
    load = await in_thread(Load, kafka.bootstrap, 1500)
    up = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        async with program(load, "stopped", 0.1, max_batches_in_flight=40) as child:
            assert await child.line() == "first"
            await trio.sleep(random.uniform(0.0, 1.0))
            child.send_signal(number)
            figures = json.loads(await child.line())
            assert await child.ended(10) == 0, child.errors
        assert figures["opened"] == figures["uploaded"]
        up += figures["uploaded"]
        lists = await in_thread(load.lists)
        assert set(lists.values()) == {1}
        assert len(lists) == up < load.sent
        assert sum(offset or 0 for offset in (await in_thread(load.committed)).values()) == up
    await do_the_rest(load)
    lists = await in_thread(load.lists)
    assert len(lists) == load.sent
    assert set(lists.values()) == {1}


async def test_a_stop_in_the_midst_of_a_rebalance_loses_and_repeats_nothing(kafka: Kafka) -> None:
    load = await in_thread(partial(Load, kafka.bootstrap, 3000, partitions=4))

    async def callback(station_id: str, module_input: dict) -> dict:
        await trio.sleep(0.1)
        return {}

    async with trio.open_nursery() as nursery:
        old = load.service(max_batches_in_flight=20)
        await nursery.start(old.run, callback)
        for _ in range(8):
            await until(lambda old=old: old.statistics().uploaded > 0)
            new = load.service(max_batches_in_flight=20)
            await nursery.start(new.run, callback)
            await trio.sleep(random.uniform(0.0, 1.5))
            with trio.fail_after(10):
                await old.stop()
            statistics = old.statistics()
            assert statistics.opened == statistics.uploaded + statistics.completed_by.get("aborted", 0)
            old = new
        await old.stop()
    await do_the_rest(load)
    lists = await in_thread(load.lists)
    assert len(lists) == load.sent
    assert set(lists.values()) == {1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_demonstration_with_its_table(number: signal.Signals) -> None:
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-m", "trioagg"]
    command += ["demo", "--batches", "1000", "--rate", "50"]
    wide = {**os.environ, "COLUMNS": "120"}
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=wide)
    said = b""
    try:
        with trio.fail_after(30):
            said += await process.stdout.receive_some()
            await trio.sleep(random.uniform(2.0, 4.0))
            process.send_signal(number)
            async for some in process.stdout:
                said += some
            assert await process.wait() == 0, said.decode()
    finally:
        process.kill()
        await process.stdout.aclose()
    assert "time to the list" in said.decode()
    assert "lists of" in said.decode().splitlines()[-1]


# Cancelled.


async def test_cancelling_while_lists_are_on_their_way_up_commits_none_of_them(kafka: Kafka) -> None:
    load = await in_thread(Load, kafka.bootstrap, 100)
    begun, up = Counter(), Counter()

    async def handler(batch_id: str, results_list: list) -> None:
        begun[batch_id] += 1
        if sum(begun.values()) > 20:
            await trio.sleep_forever()
        up[batch_id] += 1

    service = load.service(result_topic=None, commit_interval=0.1)
    with trio.CancelScope() as scope:
        async with service.start(double, handler):
            await until(lambda: service.statistics().running_uploads == 4 and service.statistics().uploaded == 20)
            began = trio.current_time()
            scope.cancel()
    assert trio.current_time() - began < 6
    committed = {number: offset or 0 for number, offset in (await in_thread(load.committed)).items()}
    for batch_id in begun:
        partition, offset = where(batch_id)
        assert batch_id in up or offset >= committed[partition]
    async with running(second := load.service(result_topic=None), double, _count_in(up)):
        await until(lambda: nothing_is_left(second, load))
    assert len(up) == load.sent
    for batch_id, times in up.items():
        partition, offset = where(batch_id)
        assert times == 1 or offset >= committed[partition]


def _count_in(counter: Counter[str]) -> Callable[[str, list], Any]:
    async def handler(batch_id: str, results_list: list) -> None:
        counter[batch_id] += 1

    return handler


async def test_cancelling_while_the_broker_does_not_answer_ends_soon_and_loses_nothing(own_broker: Broker) -> None:
    load = await in_thread(Load, own_broker.bootstrap, 600)

    async def callback(station_id: str, module_input: dict) -> dict:
        await trio.sleep(0.1)
        return {}

    service = load.service(max_batches_in_flight=20, commit_interval=0.1)
    with trio.CancelScope() as scope:
        async with service.start(callback):
            await until(lambda: service.statistics().uploaded > 50)
            own_broker.freeze()
            try:
                await until(lambda: service.statistics().running_uploads == 20)
                began = trio.current_time()
                scope.cancel()
            except BaseException:
                own_broker.thaw()
                raise
    assert trio.current_time() - began < 7
    own_broker.thaw()
    await do_the_rest(load)
    lists = await in_thread(load.lists)
    assert len(lists) == load.sent
    assert max(lists.values()) <= 2
    assert sum(lists.values()) <= load.sent + service.statistics().opened


# Killed.


@pytest.mark.deadline(180)
async def test_a_killed_member_with_the_default_settings_is_replaced_and_only_what_was_not_committed_is_done_again(
    kafka: Kafka, capsys
) -> None:
    load = await in_thread(Load, kafka.bootstrap, 3000)
    async with program(load, "left", 0.1, kafka={}) as child:
        assert await child.line() == "first"
        await trio.sleep(2.5)
        child.send_signal(signal.SIGKILL)
        await child.ended(5)
    committed = {number: offset or 0 for number, offset in (await in_thread(load.committed)).items()}
    before = await in_thread(load.lists)
    assert 0 < sum(committed.values()) <= len(before) < load.sent
    began = time.monotonic()
    service = load.service(kafka=trioagg.KafkaSettings())
    async with running(service, double):
        await until(lambda: service.statistics().messages > 0, 90)
        waited = time.monotonic() - began
        await until(lambda: nothing_is_left(service, load))
    lists = await in_thread(load.lists)
    assert len(lists) == load.sent
    again = {batch_id for batch_id, times in lists.items() if times > 1}
    assert again == {batch_id for batch_id in before if where(batch_id)[1] >= committed[where(batch_id)[0]]}
    assert max(lists.values()) <= 2
    assert await in_thread(load.committed) == await in_thread(load.ends)
    with capsys.disabled():
        print(f"\nafter a kill the next member waited {waited:.0f} s for its group; {len(again)} lists again")


# Members come and go.


@pytest.mark.deadline(180)
async def test_members_that_come_and_go_every_two_seconds_lose_and_repeat_nothing(kafka: Kafka, capsys) -> None:
    count, a_second = 24_000, 1_500
    load = await in_thread(partial(Load, kafka.bootstrap, partitions=4))
    members: list[AsyncDataAnalysisService] = []
    over = trio.Event()

    def up() -> int:
        return sum(member.statistics().uploaded for member in members)

    async def send_all() -> None:
        began = trio.current_time()
        while load.sent < count:
            await in_thread(partial(load.send, a_second // 4, stations=random.randint(1, 3)))
            await trio.sleep_until(began + load.sent / a_second)

    async def come_and_go(first_wait: float) -> None:
        await trio.sleep(first_wait)
        while not over.is_set():
            service = load.service()
            members.append(service)
            async with running(service, double):
                with trio.move_on_after(3.0):
                    await over.wait()
            await trio.sleep(1.0)

    longest = 0.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        nursery.start_soon(come_and_go, 0.0)
        nursery.start_soon(come_and_go, 2.0)
        began = last_change = trio.current_time()
        before = 0
        while before < count:
            await trio.sleep(0.02)
            now = up()
            if now != before:
                longest = max(longest, trio.current_time() - last_change)
                before, last_change = now, trio.current_time()
            assert trio.current_time() - last_change < 30
        seconds = trio.current_time() - began
        over.set()
    lists = await in_thread(load.lists)
    assert len(lists) == count
    assert set(lists.values()) == {1}
    assert await in_thread(load.committed) == await in_thread(load.ends)
    dropped = sum(member.statistics().kafka.dropped_records for member in members)
    assert dropped == 0
    with capsys.disabled():
        print(
            f"\n{len(members)} members in {seconds:.0f} s, {count} messages: the longest time without a list was "
            f"{longest:.1f} s"
        )


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_revoke_while_everything_is_full_waits_for_the_lists(kafka: Kafka, kind: str) -> None:
    load = await in_thread(partial(Load, kafka.bootstrap, 40, partitions=4))
    up: Counter[str] = Counter()
    settings = {"result_topic": None, "max_batches_in_flight": 4, "max_uploads": 2}
    first, second = load.service(**settings), load.service(**settings)
    async with running(first, double, _slow_handler(up, kind, [0.5] * 40)):
        await until(lambda: first.statistics().running_uploads == 2 and first.statistics().waiting_uploads == 2)
        async with running(second, double, _slow_handler(up, kind, [])):
            await until(lambda: len(up) == load.sent)
    assert set(up.values()) == {1}
    assert min(first.statistics().uploaded, second.statistics().uploaded) > 0
    assert first.statistics().kafka.dropped_records == 0
    assert await in_thread(load.committed) == await in_thread(load.ends)


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_what_a_revoke_cannot_wait_for_is_done_by_the_next_owner(kafka: Kafka, kind: str) -> None:
    load = await in_thread(partial(Load, kafka.bootstrap, 40, partitions=4))
    up: Counter[str] = Counter()
    settings = {"result_topic": None, "max_batches_in_flight": 4, "max_uploads": 2, "revoke_timeout": 0.5}
    first, second = load.service(**settings), load.service(**settings)
    async with running(first, double, _slow_handler(up, kind, [4.0, 4.0])):
        await until(lambda: first.statistics().running_uploads == 2 and first.statistics().waiting_uploads == 2)
        async with running(second, double, _slow_handler(up, kind, [])):
            await until(lambda: first.statistics().kafka.dropped_records > 0)
            await until(lambda: len(up) == load.sent)
            assert first.statistics().kafka.assigned
            assert second.statistics().kafka.assigned
    dropped = first.statistics().kafka.dropped_records
    assert 0 < dropped <= 5  # those in flight, and the one that waited for room
    # A try in a thread cannot be taken back: its list is up, and goes up again.
    assert sum(up.values()) == load.sent + (2 if kind == "thread" else 0)
    assert await in_thread(load.committed) == await in_thread(load.ends)


def _slow_handler(up: Counter[str], kind: str, seconds: list[float]) -> Callable[[str, list], Any]:
    """A handler whose first calls take so many seconds each, and the others next to none."""

    async def handler(batch_id: str, results_list: list) -> None:
        await trio.sleep(seconds.pop() if seconds else 0.01)
        up[batch_id] += 1

    def in_a_thread(batch_id: str, results_list: list) -> None:
        time.sleep(seconds.pop() if seconds else 0.01)
        up[batch_id] += 1

    return handler if kind == "async" else in_a_thread


# Slow.


async def test_a_handler_slower_than_the_session_keeps_its_member_in_the_group(kafka: Kafka) -> None:
    load = await in_thread(Load, kafka.bootstrap, 300)
    up: Counter[str] = Counter()
    most = 0

    async def handler(batch_id: str, results_list: list) -> None:
        if where(batch_id)[1] < 2:  # two of each partition: every slot is taken
            await trio.sleep(7.5)
        up[batch_id] += 1

    service = load.service(result_topic=None, max_batches_in_flight=20)
    async with running(service, double, handler):
        while not nothing_is_left(service, load):
            statistics = service.statistics()
            most = max(most, statistics.kafka.records_delivered - statistics.uploaded)
            await trio.sleep(0.01)
        assert service.statistics().kafka.rebalances == 0
    assert 20 <= most <= 21  # those in flight, and the one that waits for room
    assert len(up) == load.sent
    assert set(up.values()) == {1}
    assert await in_thread(load.committed) == await in_thread(load.ends)


async def test_a_station_that_blocks_the_loop_keeps_its_member_and_delays_others_by_that_time_alone(
    kafka: Kafka,
) -> None:
    load = await in_thread(Load, kafka.bootstrap, 60)
    reports: list[BatchReport] = []

    async def callback(station_id: str, module_input: dict) -> dict:
        number = module_input[load.topic][0]["number"]
        if number < 20 and station_id == "S000":
            await trio.sleep_forever()
        if number == 20 and station_id == "S001":
            await trio.sleep(0.5)
            time.sleep(2.0)  # noqa: ASYNC251 - it is what this is about
        return {}

    service = load.service(batch_timeout=1.0)
    async with running(service, callback, report_handler=reports.append):
        await until(lambda: nothing_is_left(service, load))
        assert service.statistics().kafka.rebalances == 0
        await in_thread(load.send, 20)  # and it still gets more
        await until(lambda: nothing_is_left(service, load))
    timed_out = [report for report in reports if report.completed_by == "timeout"]
    assert len(timed_out) == 20
    assert 1.0 <= max(report.seconds for report in timed_out) < 1.0 + 2.0 + 0.5
    lists = await in_thread(load.lists)
    assert len(lists) == load.sent
    assert set(lists.values()) == {1}


# Beside others.


async def test_two_services_in_a_users_own_asyncio_loop_leave_it_theirs(kafka: Kafka) -> None:
    one, two = await in_thread(Load, kafka.bootstrap, 200), await in_thread(Load, kafka.bootstrap, 200)
    loops = set()

    @trioagg.asyncio_callback
    async def callback(station_id: str, module_input: dict) -> dict:
        loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0.01)
        return {}

    async with trio_asyncio.open_loop() as users:
        first, second = one.service(), two.service()
        async with running(first, callback), running(second, double):
            assert trio_asyncio.current_loop.get() is users
            await trio_asyncio.aio_as_trio(asyncio.sleep)(0.01)
            await until(lambda: nothing_is_left(first, one) and nothing_is_left(second, two))
        assert trio_asyncio.current_loop.get() is users
        await trio_asyncio.aio_as_trio(asyncio.sleep)(0.01)
    assert loops == {users}
    for load in (one, two):
        lists = await in_thread(load.lists)
        assert len(lists) == load.sent
        assert set(lists.values()) == {1}
        assert await in_thread(load.committed) == await in_thread(load.ends)


# Without a broker.


async def test_a_broker_that_is_killed_and_comes_back_costs_time_and_two_lines_in_the_log(
    own_broker: Broker, caplog
) -> None:
    caplog.set_level(logging.WARNING, "trioagg")
    load = await in_thread(Load, own_broker.bootstrap, 2000)

    async def callback(station_id: str, module_input: dict) -> dict:
        await trio.sleep(0.1)
        return {}

    service = load.service(max_batches_in_flight=40)
    async with running(service, callback):
        await until(lambda: service.statistics().uploaded > 300)
        await in_thread(own_broker.kill)
        await trio.sleep(8.0)
        at_rest = service.statistics()
        assert at_rest.uploaded < load.sent
        await in_thread(own_broker.start)
        await until(lambda: nothing_is_left(service, load), 60)
        assert service.statistics().kafka.rebalances == 0
    lists = await in_thread(load.lists)
    assert len(lists) == load.sent
    assert set(lists.values()) == {1}
    assert await in_thread(load.committed) == await in_thread(load.ends)
    lines = [record.getMessage() for record in caplog.records if record.name == "trioagg"]
    assert sum("lists for" in line and "wait" in line for line in lines) == 1, lines
    assert sum("acknowledges again" in line for line in lines) == 1, lines
