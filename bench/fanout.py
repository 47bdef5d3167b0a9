"""What does fanning out to N stations cost, and the whole way from bytes to bytes?    python -m bench fanout

Every sample comes from a process of its own, and what only the first round pays is dropped in it.  The contestants come
in a random order in every repeat, one at a time; a ratio is the median over the repeats of "this one's sample / the
bare nursery's sample of the same repeat".
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import trio

from trioagg import BatchReport, BatchResultAggregator, run_batch
from trioagg._encoding import encode_list, encode_result, result_headers
from trioagg._reader import Reader
from trioagg._settings import InputLimits
from trioagg._stations import module_input

from . import rivals
from .figures import Progress, console, describe, environment, percentile, print_lines, print_table, verdict
from .guide import Guide

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from .rivals import Loop, Station

_Kind = Literal["never waits", "sleeps 1 ms"]

OURS: Final = "trioagg"
RUN_BATCH: Final = "trioagg run_batch"
WITH_MSGSPEC: Final = f"{rivals.GUIDE}, msgspec"
TASK_GROUP: Final = "TaskGroup"
TASK_GROUP_WITH_MSGSPEC: Final = f"{TASK_GROUP}, msgspec"

_STATIONS_OF_A_BATCH: Final = 100
_SLEEPS_SECONDS: Final = 0.001

_NO_DEADLINE_SECONDS: Final = 600.0

_HANG_SECONDS: Final = 0.03
_ANSWERS_BEFORE_SECONDS: Final = 0.003
_LEFT_ALONE_SECONDS: Final = 0.05
_HANG_ROUNDS: Final = 10

_IN_FLIGHT: Final = 50
_TIMES_THE_GUIDE_AT_LEAST: Final = 2.5
_TOPIC: Final = "SCHEDULE-STATION-REALTIME-DATA"

_CAP: Final = 1000
_MEMORY_STATIONS: Final = (20_000, 100_000)
_BYTES_AT_MOST: Final = 64.0

_FLAT_STATIONS: Final = (10, 100, 1_000, 10_000, 100_000)
_FLAT_BATCHES: Final = (1, 10, 100, 1_000, 5_000)
_FLAT_STATIONS_OF_A_BATCH: Final[dict[_Kind, int]] = {"never waits": 100, "sleeps 1 ms": 20}
"""A hundred thousand sleep at once at most: half a million tasks would be a question of memory."""
_MAX_BY_MIN_AT_MOST: Final = 1.3

_REPEATS: Final = 5
_SAMPLE_SECONDS: Final = 0.2
_PATH_SECONDS: Final = 2.0
_QUICK_STATIONS: Final = (1, 100, 1_000)
_QUICK_BATCHES: Final = (10,)
_QUICK_SAMPLE_SECONDS: Final = 0.02
_QUICK_PATH_SECONDS: Final = 0.25
_QUICK_HANG_ROUNDS: Final = 3
_WORKER_SECONDS: Final = 900.0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a process measures."""

    what: Literal["overhead", "hang", "path", "memory"]
    contestant: str = ""
    station: _Kind = "never waits"
    stations: int = _STATIONS_OF_A_BATCH
    batches: int = 1
    sample_seconds: float = _SAMPLE_SECONDS
    rounds: int = _HANG_ROUNDS
    tune_gc: bool = False
    nested: bool = False
    """Whether the records of a message have a list in them; most have not."""


# The stations.


async def _never_waits(station_id: str, value: object) -> object:  # noqa: ASYNC124 - that it never waits is the point
    return {"station_id": station_id, "value": value}  # noqa: ASYNC910 - the same


async def _sleeps(station_id: str, value: object) -> object:
    await trio.sleep(_SLEEPS_SECONDS)
    return {"station_id": station_id, "value": value}


async def _sleeps_aio(station_id: str, value: object) -> object:
    await asyncio.sleep(_SLEEPS_SECONDS)
    return {"station_id": station_id, "value": value}


_KINDS: Final[dict[_Kind, tuple[Station, Station]]] = {
    "never waits": (_never_waits, _never_waits),
    "sleeps 1 ms": (_sleeps, _sleeps_aio),
}


def _numbered(count: int) -> dict[str, str]:
    return {f"S{number:06d}": "hangs" if number % 10 == 7 else "answers" for number in range(count)}


# The contestants.  Each gives a function that runs all batches once and says how many answers are in their lists.


def _loop_of(contestant: str) -> Loop:
    return "trio" if contestant in (OURS, RUN_BATCH) else rivals.present()[contestant].loop


@asynccontextmanager
async def _open(
    contestant: str, call: Station, stations: Mapping[str, str], seconds: float, batches: int, *, tune_gc: bool = False
) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    if contestant == OURS:
        async with _open_aggregator(call, stations, seconds, batches, tune_gc=tune_gc) as all_batches:
            yield all_batches
    elif contestant == RUN_BATCH:
        yield partial(_run_batch, call, stations, seconds)
    elif contestant == rivals.GUIDE:
        async with _open_guide(call, stations, seconds, batches) as all_batches:
            yield all_batches
    else:
        yield partial(rivals.together, rivals.present()[contestant], call, stations, seconds, batches)


async def _run_batch(call: Station, stations: Mapping[str, str], seconds: float) -> int:
    return len((await run_batch("bench", stations, call, batch_timeout=seconds)).results)


class _Lists:
    """Counts the lists of a round."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self.begin()

    def begin(self) -> None:
        self.lists = self.answers = 0

    def up(self, results: list[dict[str, Any]]) -> bool:
        """One more; says whether it was the last."""
        self.lists += 1
        self.answers += len(results)
        return self.lists == self._expected


@asynccontextmanager
async def _open_aggregator(
    call: Station, stations: Mapping[str, str], seconds: float, batches: int, *, tune_gc: bool
) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    lists, all_up = _Lists(batches), trio.Event()

    async def upload(batch_id: str, results: list[dict[str, Any]]) -> None:  # noqa: ASYNC124,ASYNC910 - quick
        if lists.up(results):
            all_up.set()

    async def all_batches() -> int:
        nonlocal all_up
        lists.begin()
        all_up = trio.Event()
        for number in range(batches):
            await aggregator.submit(f"batch {number}", stations)
        await all_up.wait()
        return lists.answers

    async with BatchResultAggregator(
        call,
        upload,
        batch_timeout=seconds,
        max_batches_in_flight=batches + 1,
        max_unreaped_batches=batches + 1,
        max_running_stations=_CAP,
        tune_gc=tune_gc,
    ) as aggregator:
        yield all_batches


@asynccontextmanager
async def _open_guide(
    call: Station, stations: Mapping[str, str], seconds: float, batches: int
) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    lists, all_up = _Lists(batches), asyncio.Event()

    async def upload(batch_id: str, results: list[dict[str, Any]]) -> None:  # noqa: ASYNC124,ASYNC910 - quick
        if lists.up(results):
            all_up.set()

    async def all_batches() -> int:
        lists.begin()
        all_up.clear()
        for number in range(batches):
            await guide.submit(f"batch {number}", stations)
        await all_up.wait()
        return lists.answers

    async with Guide(call, seconds, upload) as guide:
        yield all_batches


# What a process measures.


async def _overhead(job: Job) -> dict[str, Any]:
    stations, call = _numbered(job.stations), _KINDS[job.station][_loop_of(job.contestant) != "trio"]
    seconds = math.inf if job.contestant == rivals.BARE else _NO_DEADLINE_SECONDS
    async with _open(job.contestant, call, stations, seconds, job.batches, tune_gc=job.tune_gc) as all_batches:
        await all_batches()  # what only the first round pays is not a station's cost
        gc.collect()
        rounds = answers = 0
        took = 0.0
        on_cpu, began = time.thread_time(), time.perf_counter()
        while took < job.sample_seconds:
            answers += await all_batches()
            rounds += 1
            took = time.perf_counter() - began
        on_cpu = time.thread_time() - on_cpu
    expected = rounds * job.stations * job.batches
    return {  # noqa: ASYNC910 - there is a round
        "us": took / expected * 1e6,
        "cpu_us": on_cpu / expected * 1e6,
        "rounds": rounds,
        "answers_lost": expected - answers,
    }


def _sleeping_on(loop: Loop) -> tuple[Callable[[float], Awaitable[object]], Callable[[], Awaitable[object]]]:
    """For a while, and for ever."""
    if loop == "trio":
        return trio.sleep, trio.sleep_forever
    return asyncio.sleep, lambda: asyncio.get_running_loop().create_future()


class _Books:
    """What the stations of a round did, by their own account."""

    running = 0

    def begin(self) -> None:
        self.deadline = time.perf_counter() + _HANG_SECONDS
        self.given = 0

    def station(self, loop: Loop) -> Station:
        """Nine of ten answer together shortly before the deadline, the tenth hangs."""
        sleep, for_ever = _sleeping_on(loop)

        async def hangs_or_answers(station_id: str, value: str) -> object:
            self.running += 1
            try:
                if value == "hangs":
                    await for_ever()
                await sleep(max(0.0, self.deadline - _ANSWERS_BEFORE_SECONDS - time.perf_counter()))
                self.given += time.perf_counter() < self.deadline
                return {"station_id": station_id}
            finally:
                self.running -= 1

        return hangs_or_answers


async def _hang(job: Job) -> dict[str, Any]:
    stations, books, loop = _numbered(job.stations), _Books(), _loop_of(job.contestant)
    call, (sleep, _) = books.station(loop), _sleeping_on(loop)
    given = lost = stragglers = 0
    late_ms: list[float] = []
    for number in range(job.rounds + 1):
        # A block for every round: in the guide's design the next one would wait behind the stations that hang.
        async with _open(job.contestant, call, stations, _HANG_SECONDS, 1) as one_batch:
            books.begin()
            answers = await one_batch()
            list_late_ms = (time.perf_counter() - books.deadline) * 1e3
            of_round = books.given
            for _ in range(10):  # in parts: one sleep may be over in the loop's next pass, if the machine is busy
                await sleep(_LEFT_ALONE_SECONDS / 10)
            if number:  # the first one warms up
                given += of_round
                lost += max(0, of_round - answers)
                stragglers += books.running
                late_ms.append(list_late_ms)
    return {  # noqa: ASYNC910 - there is a round
        "given": given,
        "answers_lost": lost,
        "stragglers": stragglers,
        "list_late_ms": median(late_ms),
    }


class _Enough(Exception):
    """Ends the blocks around a measurement: their stations would wait for ever."""


async def _hold(job: Job, count: int, held: list[int]) -> None:  # noqa: ASYNC910 - it always raises
    stations, loop = _numbered(count), _loop_of(job.contestant)
    sleep, for_ever = _sleeping_on(loop)
    running = 0

    async def waits(station_id: str, value: str) -> object:
        nonlocal running
        running += 1
        await for_ever()
        return None

    async def weigh() -> None:
        all_of_them = min(count, _CAP) if job.contestant == OURS else count
        before = running
        while running < all_of_them or running != before:  # noqa: ASYNC110 - an Event would be set in what is measured
            before = running
            await sleep(0.01)
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()  # what follows is long enough without it
        raise _Enough

    gc.collect()
    tracemalloc.start()
    async with _open(job.contestant, waits, stations, _NO_DEADLINE_SECONDS, 1) as one_batch:
        if loop == "trio":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one_batch)
                await weigh()
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(_as_coroutine(one_batch))
                await weigh()


async def _as_coroutine(call: Callable[[], Awaitable[object]]) -> None:
    await call()


def _memory(job: Job) -> dict[str, Any]:
    """Bytes of each station beyond the first thousand, all of which wait: ours run a thousand, the rivals all."""
    held: list[int] = []
    for count in (_CAP, _CAP, job.stations):  # the first one warms up
        try:
            rivals.run(_loop_of(job.contestant), _hold, job, count, held)
        except* _Enough:
            pass
        gc.collect()
    _, of_the_cap, of_all = held
    return {"bytes": (of_all - of_the_cap) / (job.stations - _CAP)}


# The whole path without Kafka.


@dataclass(slots=True)
class _Message:
    offset: int
    value: bytes | None
    topic: str = _TOPIC
    partition: int = 0
    timestamp_ms: int | None = 1_700_000_000_000


def _message_bytes(count: int, *, nested: bool) -> bytes:
    records: list[dict[str, Any]] = [
        {
            "stationId": station_id,
            "gunNo": str(number % 8),
            "sendTime": "2025-11-20 10:00:05",
            "stationStatus": "normal",
            "outputPower": 58.2 + number / 10,
        }
        for number, station_id in enumerate(_numbered(count))
    ]
    if nested:  # as in a price list
        for record in records:
            record["periodFee"] = [0.3, 0.8, 1.1, 0.8]
    return json.dumps({"realTimeData": records}).encode()


async def _predicts(station_id: str, value: Any) -> dict[str, Any]:  # noqa: ASYNC124 - that it never waits is the point
    record = value[_TOPIC][-1]
    return {  # noqa: ASYNC910 - the same
        "station_id": station_id,
        "timestamp": value["_data_quality"]["last_update"],
        "prediction": {"power": record["outputPower"]},
        "confidence": 0.95,
    }


class _Handler:
    """Where the bytes of a list arrive; it takes no time."""

    def __init__(self) -> None:
        self.lists = 0
        self.last = b""

    def take(self, value: bytes) -> None:
        self.lists += 1
        self.last = value

    def check(self, messages: int, stations: int) -> None:
        """Nothing was lost: a list for every message, and every station in the last one."""
        ids = {result["station_id"] for result in msgspec.json.decode(self.last)["results"]}
        if self.lists != messages or ids != _numbered(stations).keys():
            raise AssertionError(f"{messages} messages, {self.lists} lists, {len(ids)} stations in the last one")


_Feed = Callable[[Iterator[int]], Awaitable[None]]
"""Takes the offsets of messages; returns when all their lists have arrived."""


class _Sink:
    """Ends where the service's own would give the record to Kafka's client."""

    encode = staticmethod(encode_result)

    def __init__(self, handler: _Handler) -> None:
        self._handler = handler

    async def send(  # noqa: ASYNC124,ASYNC910 - an upload that takes no time
        self, report: BatchReport, encoded: Sequence[bytes]
    ) -> None:
        result_headers(report)
        self._handler.take(encode_list(report.batch_id, encoded))


@asynccontextmanager
async def _our_path(value: bytes, handler: _Handler) -> AsyncIterator[_Feed]:
    reader = Reader(None, InputLimits())

    async def feed(offsets: Iterator[int]) -> None:  # noqa: ASYNC910 - there is a message
        for offset in offsets:
            message = _Message(offset, value)
            await aggregator.submit(f"{_TOPIC}_0_{offset}_1700000000", reader.read(message))
        while aggregator.in_flight:  # noqa: ASYNC110 - an Event would be set in what is measured
            await trio.lowlevel.checkpoint()

    async with BatchResultAggregator(_predicts, sink=_Sink(handler), max_batches_in_flight=_IN_FLIGHT) as aggregator:
        yield feed


class _Codec(NamedTuple):
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]

    def stations_of(self, value: bytes) -> dict[str, Any]:
        """As little as it takes, and what the callbacks get is the same as ours."""
        records: dict[str, list[dict[str, Any]]] = {}
        for record in self.decode(value)["realTimeData"]:
            records.setdefault(record["stationId"], []).append(record)
        return {one: module_input(one, _TOPIC, its, 1_700_000_000_000) for one, its in records.items()}

    def list_of(self, batch_id: str, results: list[Any]) -> bytes:
        return self.encode({"batch_id": batch_id, "count": len(results), "results": results})


_JSON: Final = _Codec(json.loads, lambda value: json.dumps(value).encode())
_MSGSPEC: Final = _Codec(msgspec.json.decode, msgspec.json.encode)


@asynccontextmanager
async def _guides_path(value: bytes, handler: _Handler, codec: _Codec) -> AsyncIterator[_Feed]:
    room = asyncio.Semaphore(_IN_FLIGHT)

    async def upload(batch_id: str, results: list[dict[str, Any]]) -> None:  # noqa: ASYNC124,ASYNC910 - quick
        handler.take(codec.list_of(batch_id, results))
        room.release()

    async def feed(offsets: Iterator[int]) -> None:
        for offset in offsets:
            await room.acquire()
            await guide.submit(f"{_TOPIC}_0_{offset}_1700000000", codec.stations_of(value))
        await _all_back(room)

    async with Guide(_predicts, 5.0, upload) as guide:
        yield feed


@asynccontextmanager
async def _task_groups_path(value: bytes, handler: _Handler, codec: _Codec) -> AsyncIterator[_Feed]:
    room = asyncio.Semaphore(_IN_FLIGHT)

    async def message(batch_id: str) -> None:  # noqa: ASYNC910 - its stations are a checkpoint
        results: list[Any] = []

        async def station(station_id: str, value: Any) -> None:
            try:
                answer = await _predicts(station_id, value)
            except Exception:
                return  # noqa: ASYNC910 - one that fails has ended
            results.append(answer)

        try:
            async with asyncio.timeout(5.0), asyncio.TaskGroup() as stations:
                for station_id, module_input in codec.stations_of(value).items():
                    stations.create_task(station(station_id, module_input))
        except TimeoutError:
            pass
        handler.take(codec.list_of(batch_id, results))
        room.release()

    async def feed(offsets: Iterator[int]) -> None:
        for offset in offsets:
            await room.acquire()
            messages.create_task(message(f"{_TOPIC}_0_{offset}_1700000000"))
        await _all_back(room)

    async with asyncio.TaskGroup() as messages:
        yield feed


async def _all_back(room: asyncio.Semaphore) -> None:  # noqa: ASYNC910 - there is room for one
    for _ in range(_IN_FLIGHT):
        await room.acquire()
    for _ in range(_IN_FLIGHT):
        room.release()


_PATHS: Final[dict[str, tuple[Loop, Callable[[bytes, _Handler], AbstractAsyncContextManager[_Feed]]]]] = {
    OURS: ("trio", _our_path),
    rivals.GUIDE: ("asyncio", partial(_guides_path, codec=_JSON)),
    WITH_MSGSPEC: ("asyncio", partial(_guides_path, codec=_MSGSPEC)),
    TASK_GROUP: ("asyncio", partial(_task_groups_path, codec=_JSON)),
    TASK_GROUP_WITH_MSGSPEC: ("asyncio", partial(_task_groups_path, codec=_MSGSPEC)),
}


async def _path(job: Job) -> dict[str, Any]:
    handler, fed = _Handler(), 0

    def offsets(seconds: float) -> Iterator[int]:
        nonlocal fed
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            fed += 1
            yield fed

    _, path = _PATHS[job.contestant]
    async with path(_message_bytes(job.stations, nested=job.nested), handler) as feed:
        await feed(offsets(job.sample_seconds / 4))  # the first one warms up
        gc.collect()
        warm, on_cpu, began = handler.lists, time.thread_time(), time.perf_counter()
        await feed(offsets(job.sample_seconds))
        took, on_cpu = time.perf_counter() - began, time.thread_time() - on_cpu
    handler.check(fed, job.stations)
    lists = handler.lists - warm
    return {"per_second": lists / took, "per_cpu_second": lists / on_cpu, "lists": lists}


def _work(job: Job) -> dict[str, Any]:
    """Measure it here."""
    if job.what == "memory":
        return _memory(job)
    if job.what == "path":
        return rivals.run(_PATHS[job.contestant][0], _path, job)
    return rivals.run(_loop_of(job.contestant), _overhead if job.what == "overhead" else _hang, job)


def _worker(text: str) -> None:
    """The other side of :func:`measured`."""
    logging.getLogger("trioagg").addHandler(logging.NullHandler())  # made, as in production, and written nowhere
    logging.getLogger("trioagg").propagate = False
    print(json.dumps([_work(job) for job in msgspec.json.decode(text, type=list[Job])]))


def measured(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Measure them one after the other, in a new process."""
    command = [sys.executable, "-m", "bench.fanout", "--worker", msgspec.json.encode(jobs).decode()]
    root = Path(__file__).parent.parent
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=_WORKER_SECONDS, check=False)
    if ran.returncode:
        raise RuntimeError(f"{jobs[0].contestant} ended with status {ran.returncode}:\n{ran.stderr}")
    results: list[dict[str, Any]] = json.loads(ran.stdout)
    return results


# The whole of it.


class _Plan(NamedTuple):
    """Cases that one process measures for one contestant, one after the other."""

    cases: Sequence[Job]
    contestants: Sequence[str]
    repeats: int = 1


class _Row(NamedTuple):
    """One contestant's samples of a case, one a repeat."""

    job: Job
    samples: list[dict[str, Any]]

    def of(self, key: str) -> list[Any]:
        return [sample[key] for sample in self.samples]


def main(
    stations: Sequence[int],
    batches: Sequence[int],
    *,
    quick: bool,
    as_json: bool,
    seed: int,
    repeats: int | None,
) -> list[dict[str, Any]]:
    """Measure, print, and give the cases."""
    facts = environment(wakeups=100 if quick else 1000)
    repeats = repeats or (1 if quick else _REPEATS)
    plans = _quick_plans(stations, batches, repeats) if quick else _plans(stations, batches, repeats)
    order = random.Random(seed)
    rows: list[_Row] = []
    with Progress(sum(len(plan.contestants) * plan.repeats for plan in plans)) as progress:
        for plan in plans:
            rows += _carry_out(plan, order, progress)
    overhead = _overhead_cases([row for row in rows if row.job.what == "overhead" and not row.job.tune_gc])
    hang = _hang_cases([row for row in rows if row.job.what == "hang"])
    path = _path_cases([row for row in rows if row.job.what == "path"])
    memory = _memory_cases([row for row in rows if row.job.what == "memory"])
    flat = _flat_cases([row for row in rows if row.job.tune_gc])
    cases = [*overhead, *hang, *path, *memory, *flat]
    if as_json:
        print_lines({**facts, "seed": seed}, cases)
        return cases
    console().print(describe(facts), highlight=False)
    _print_overhead(overhead)
    _print_hang(hang)
    _print_path(path)
    _print_memory(memory)
    if flat:
        _print_flat(flat)
    if (left_out := rivals.absent()) is not None:
        print(left_out)
    return cases


def _plans(stations: Sequence[int], batches: Sequence[int], repeats: int) -> list[_Plan]:
    everybody = [OURS, RUN_BATCH, *rivals.present()]
    shapes = [(number, 1) for number in stations] + [(_STATIONS_OF_A_BATCH, number) for number in batches]
    plans = [_Plan([job], everybody, repeats) for job in _jobs(shapes)]
    plans.append(_Plan([Job(what="hang")], everybody, repeats))
    paths = [Job(what="path", sample_seconds=_PATH_SECONDS, nested=nested) for nested in (False, True)]
    plans += [_Plan([job], list(_PATHS), repeats) for job in paths]
    plans += [_Plan([Job(what="memory", stations=number)], [OURS, *rivals.present()]) for number in _MEMORY_STATIONS]
    for kind, of_one in _FLAT_STATIONS_OF_A_BATCH.items():
        flat_shapes = [(number, 1) for number in _FLAT_STATIONS] + [(of_one, number) for number in _FLAT_BATCHES]
        plans += [_Plan([job], [OURS], repeats) for job in _jobs(flat_shapes, [kind], tune_gc=True)]
    return plans


def _quick_plans(stations: Sequence[int], batches: Sequence[int], repeats: int) -> list[_Plan]:
    """A process takes longer to start than such a case to measure: one process for all of a contestant's."""
    shapes = [(number, 1) for number in stations if number in _QUICK_STATIONS]
    shapes += [(_STATIONS_OF_A_BATCH, number) for number in batches if number in _QUICK_BATCHES]
    shapes = shapes or [(min(stations), 1)]
    jobs = [*_jobs(shapes, sample_seconds=_QUICK_SAMPLE_SECONDS), Job(what="hang", rounds=_QUICK_HANG_ROUNDS)]
    path = Job(what="path", sample_seconds=_QUICK_PATH_SECONDS)
    return [
        _Plan(jobs, [OURS, RUN_BATCH, *rivals.present()], repeats),
        _Plan([path], [OURS, rivals.GUIDE, TASK_GROUP], repeats),
        _Plan([Job(what="memory", stations=20_000)], [OURS]),
        _Plan([Job(what="memory", stations=2_000)], [rivals.BARE, rivals.GUIDE, TASK_GROUP]),
    ]


def _jobs(shapes: Iterable[tuple[int, int]], kinds: Iterable[_Kind] = tuple(_KINDS), **how: Any) -> list[Job]:
    return [
        Job(what="overhead", station=kind, stations=stations, batches=batches, **how)
        for kind in kinds
        for stations, batches in dict.fromkeys(shapes)
    ]


def _carry_out(plan: _Plan, order: random.Random, progress: Progress) -> list[_Row]:
    rows: dict[Job, _Row] = {}
    for _ in range(plan.repeats):
        for contestant in order.sample(plan.contestants, len(plan.contestants)):
            jobs = [
                msgspec.structs.replace(case, contestant=contestant)
                for case in plan.cases
                if contestant != RUN_BATCH or case.batches == 1
            ]
            progress.step(f"{plan.cases[0].what}: {contestant}")
            for job, sample in zip(jobs, measured(jobs) if jobs else [], strict=True):
                rows.setdefault(job, _Row(job, [])).samples.append(sample)
    return sorted(rows.values(), key=lambda row: plan.contestants.index(row.job.contestant))


def _overhead_cases(rows: Sequence[_Row]) -> list[dict[str, Any]]:
    bare = {_shape(row.job): row for row in rows if row.job.contestant == rivals.BARE}
    cases = []
    for row in rows:
        job, us, on_cpu = row.job, row.of("us"), row.of("cpu_us")
        ratios = _pairs(us, bare[_shape(job)].of("us"))
        cases.append(
            {
                "bench": "fanout",
                "kind": "overhead",
                "station": job.station,
                "stations": job.stations,
                "batches": job.batches,
                "contestant": job.contestant,
                "loop": _loop_of(job.contestant),
                "us_median": median(us),
                "us_p25": percentile(us, 25),
                "us_p75": percentile(us, 75),
                "us_min": min(us),
                "ratio": median(ratios),
                "ratio_p25": percentile(ratios, 25),
                "ratio_p75": percentile(ratios, 75),
                "cpu_us_median": median(on_cpu),
                "cpu_ratio": median(_pairs(on_cpu, bare[_shape(job)].of("cpu_us"))),
                "repeats": us,
                "answers_lost": sum(row.of("answers_lost")),
                "stragglers": 0,
            }
        )
    return cases


def _pairs(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """The ratios of the same repeat."""
    return [one / other for one, other in zip(mine, theirs, strict=True)]


def _shape(job: Job) -> tuple[str, int, int]:
    return job.station, job.stations, job.batches


def _hang_cases(rows: Sequence[_Row]) -> list[dict[str, Any]]:
    return [
        {
            "bench": "fanout",
            "kind": "hang",
            "station": "10 % hang, the others answer just in time",
            "stations": row.job.stations,
            "batches": 1,
            "contestant": row.job.contestant,
            "rounds": row.job.rounds * len(row.samples),
            "answers_given": sum(row.of("given")),
            "answers_lost": sum(row.of("answers_lost")),
            "stragglers": sum(row.of("stragglers")),
            "list_late_ms": median(row.of("list_late_ms")),
        }
        for row in rows
    ]


def _path_cases(rows: Sequence[_Row]) -> list[dict[str, Any]]:
    guides_of = {row.job.nested: row for row in rows if row.job.contestant == rivals.GUIDE}
    cases = []
    for row in rows:
        name, mine, guides = row.job.contestant, row.of("per_second"), guides_of[row.job.nested]
        ratios = _pairs(mine, guides.of("per_second"))
        at_least = _TIMES_THE_GUIDE_AT_LEAST if name == OURS else None
        cases.append(
            {
                "bench": "fanout",
                "kind": "path",
                "contestant": name,
                "stations": _STATIONS_OF_A_BATCH,
                "records": "with a list in each" if row.job.nested else "flat",
                "codec": "json" if name in (rivals.GUIDE, TASK_GROUP) else "msgspec",
                "in_flight": _IN_FLIGHT,
                "per_second": median(mine),
                "per_second_p25": percentile(mine, 25),
                "per_second_p75": percentile(mine, 75),
                "ratio": median(ratios),
                "ratio_p25": percentile(ratios, 25),
                "ratio_p75": percentile(ratios, 75),
                "cpu_ratio": median(_pairs(row.of("per_cpu_second"), guides.of("per_cpu_second"))),
                "repeats": mine,
                "at_least": at_least,
                "met": None if at_least is None else median(ratios) >= at_least,
            }
        )
    return cases


def _memory_cases(rows: Sequence[_Row]) -> list[dict[str, Any]]:
    cases = []
    for job, samples in rows:
        size = samples[0]["bytes"]
        at_most = _BYTES_AT_MOST if job.contestant == OURS else None
        cases.append(
            {
                "bench": "fanout",
                "kind": "memory",
                "contestant": job.contestant,
                "stations": job.stations,
                "bytes_per_waiting_station": size,
                "at_most": at_most,
                "met": None if at_most is None else size <= at_most,
            }
        )
    return cases


def _flat_cases(rows: Sequence[_Row]) -> list[dict[str, Any]]:
    cases = []
    for kind, of_one in _FLAT_STATIONS_OF_A_BATCH.items():
        cost = {
            (row.job.stations, row.job.batches): median(row.of("cpu_us")) for row in rows if row.job.station == kind
        }
        for over, sizes, costs in (
            ("stations", _FLAT_STATIONS, [cost[number, 1] for number in _FLAT_STATIONS if cost]),
            ("batches", _FLAT_BATCHES, [cost[of_one, number] for number in _FLAT_BATCHES if cost]),
        ):
            if costs:
                cases.append(
                    {
                        "bench": "fanout",
                        "kind": "flat",
                        "contestant": OURS,
                        "station": kind,
                        "over": over,
                        "stations": None if over == "stations" else of_one,
                        "sizes": list(sizes),
                        "cpu_us_median": costs,
                        "max_by_min": max(costs) / min(costs),
                        "at_most": _MAX_BY_MIN_AT_MOST,
                        "met": max(costs) / min(costs) <= _MAX_BY_MIN_AT_MOST,
                    }
                )
    return cases


def _print_overhead(cases: Sequence[dict[str, Any]]) -> None:
    for kind in _KINDS:
        for by, fixed, number, title in (
            ("stations", "batches", 1, "one batch at a time, by its stations"),
            (
                "batches",
                "stations",
                _STATIONS_OF_A_BATCH,
                f"{_STATIONS_OF_A_BATCH} stations a batch, by batches at once",
            ),
        ):
            of_table = [case for case in cases if case["station"] == kind and case[fixed] == number]
            sizes = sorted({case[by] for case in of_table})
            cell = {(case["contestant"], case[by]): case for case in of_table}
            print_table(
                f"What does a station cost that {kind}?  {title}.  us, median (quartiles), ratio to the bare nursery",
                ["contestant", "loop", *map(str, sizes), "answers lost"],
                [
                    [
                        name,
                        _loop_of(name),
                        *(_cost(cell[name, size]) if (name, size) in cell else "" for size in sizes),
                        str(sum(case["answers_lost"] for case in of_table if case["contestant"] == name)),
                    ]
                    for name in dict.fromkeys(case["contestant"] for case in of_table)
                ],
                _WHO if kind == "never waits" and by == "stations" else "",
            )


_WHO: Final = (
    "trioagg: through a BatchResultAggregator, its uploader included; the rivals bring nothing up.  It runs "
    f"{_CAP} stations of a batch at a time, the rivals all.  The guide's workers exist before the first round."
)


def _cost(case: dict[str, Any]) -> str:
    quartiles = f" ({case['us_p25']:.3g}-{case['us_p75']:.3g})" if len(case["repeats"]) > 1 else ""
    return f"{case['us_median']:.3g}{quartiles}\n{case['ratio']:.2f}x"


def _print_hang(cases: Sequence[dict[str, Any]]) -> None:
    print_table(
        f"What becomes of answers just before the deadline?  {_STATIONS_OF_A_BATCH} stations, 10 % hang, the others "
        f"answer {_ANSWERS_BEFORE_SECONDS * 1e3:g} ms before it",
        ["contestant", "rounds", "given in time", "answers lost", "stragglers", "list after the deadline, ms"],
        [
            [
                case["contestant"],
                str(case["rounds"]),
                str(case["answers_given"]),
                str(case["answers_lost"]),
                str(case["stragglers"]),
                f"{case['list_late_ms']:.1f}",
            ]
            for case in cases
        ],
        f"Lost: given before the deadline of {_HANG_SECONDS * 1e3:g} ms, and in no list.  Stragglers: stations that "
        f"still ran {_LEFT_ALONE_SECONDS * 1e3:g} ms after the list was made.",
    )


def _print_path(cases: Sequence[dict[str, Any]]) -> None:
    print_table(
        f"The whole path without Kafka: bytes in, bytes out; {_STATIONS_OF_A_BATCH} stations that never wait, "
        f"{_IN_FLIGHT} messages in flight",
        ["contestant", "records", "JSON by", "messages/s", "quartiles", "to the guide's", "on the CPU", "at least", ""],
        [
            [
                case["contestant"],
                case["records"],
                case["codec"],
                f"{case['per_second']:.0f}",
                f"{case['per_second_p25']:.0f}-{case['per_second_p75']:.0f}",
                f"{case['ratio']:.2f} ({case['ratio_p25']:.2f}-{case['ratio_p75']:.2f})",
                f"{case['cpu_ratio']:.2f}",
                "" if case["at_least"] is None else f"{case['at_least']:g}",
                verdict(case["met"]),
            ]
            for case in cases
        ],
        "On the CPU: the ratio of CPU times, which other processes disturb less.  Ours checks every message and every "
        "result; the rivals take them as they come.",
    )


def _print_memory(cases: Sequence[dict[str, Any]]) -> None:
    print_table(
        "What does a waiting station hold?",
        ["contestant", "stations", "bytes", "at most", ""],
        [
            [
                case["contestant"],
                str(case["stations"]),
                f"{case['bytes_per_waiting_station']:.0f}",
                "" if case["at_most"] is None else f"{case['at_most']:g}",
                verdict(case["met"]),
            ]
            for case in cases
        ],
        f"Bytes of tracemalloc for each station beyond the first {_CAP}, while all of one batch wait.  The caller's "
        f"own mapping is not in them.  Ours runs {_CAP} of them (max_running_stations), and the others wait for their "
        "turn; the rivals have a task for each, and what that one sleeps on is in it.",
    )


def _print_flat(cases: Sequence[dict[str, Any]]) -> None:
    print_table(
        "Is the cost of a station flat?  us on the CPU, the batch's own share included; tune_gc=True",
        ["each", "over", "us", "max : min", "at most", ""],
        [
            [
                case["station"],
                "stations of one batch" if case["stations"] is None else f"batches of {case['stations']} at once",
                ", ".join(f"{size}: {us:.3g}" for size, us in zip(case["sizes"], case["cpu_us_median"], strict=True)),
                f"{case['max_by_min']:.2f}",
                f"{case['at_most']:g}",
                verdict(case["met"]),
            ]
            for case in cases
        ],
    )


if __name__ == "__main__":
    _worker(sys.argv[2])
