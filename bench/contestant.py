"""One contestant, in a process of its own, between a topic of messages and one of lists.

    python -m bench.contestant '{"name": "trioagg", "bootstrap": ..., "topic": ..., "results": ..., ...}'

It says ``ready``, works until its standard input ends, and prints one JSON line: what it has to say of itself.
"""

from __future__ import annotations

import gc
import importlib
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import msgspec
import trio

import trioagg
from trioagg import BatchReport, Observer

from . import workload as workloads
from .stages import Stages

Station = Callable[[str, Any], Awaitable[dict[str, Any] | None]]

OURS: Final = "trioagg"


class Entry(msgspec.Struct, kw_only=True, frozen=True):
    """Who is to run, and against what."""

    name: str
    bootstrap: str
    topic: str
    results: str
    workload: workloads.Workload
    callback: str | None = None
    """``module:function`` of the user's own, instead of the workload's stations."""
    stages: bool = True
    loop_lag: bool = False
    timeline: str | None = None
    tune_gc: bool = False
    delivery: Literal["at_least_once", "exactly_once"] = "at_least_once"
    in_flight: int = 100
    sample_seconds: float = 0.0
    """Say every so many seconds how large one is; 0.0 for never."""


class StationFailed(Exception):
    """What a failing station raises."""


def station_on_trio(workload: workloads.Workload) -> Station:
    """The callback of a workload.  Where no station ever waits, it is one that never does."""
    work = workloads.work_of(workload)

    async def station(station_id: str, module_input: Any) -> dict[str, Any]:
        kind, seconds = next(work)
        if kind == "never returns":
            await trio.sleep_forever()
        if kind == "blocks":
            time.sleep(seconds)  # noqa: ASYNC251 - that is what it is about
        elif seconds:
            await trio.sleep(seconds)
        if kind == "fails":
            raise StationFailed(station_id)
        return {"station_id": station_id, "value": seconds}  # noqa: ASYNC910 - some never wait

    return station


def users_own(name: str) -> Any:
    """``module:function``, looked for where the command was typed too."""
    module, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        sys.exit(f"--callback {name}: {error}; wanted is module:function")


def max_rss_mib() -> float | None:
    """The most memory that this process has had.  Not ru_maxrss: that begins with what the parent had."""
    kib = _status("VmHWM")
    return None if kib is None else round(kib / 1024, 1)


class _Slowed(Observer):
    """A build that was made slow on purpose: the loop stands still once in a while."""

    def __init__(self, faults: workloads.Faults) -> None:
        self._faults, self._batches = faults, 0

    def closed(self, report: BatchReport) -> None:
        self._batches += 1
        if self._faults.stall_ms and self._batches % self._faults.stall_every == 0:
            time.sleep(self._faults.stall_ms / 1000)  # the loop standing still is what it is about


def _slow_down_uploads(seconds: float) -> None:
    """Put a sleep into the uploader, as a careless change would."""
    from trioagg import _uploader

    deliver = _uploader.Deliveries.deliver

    async def slowly(self: _uploader.Deliveries, upload: _uploader.Upload) -> None:
        await trio.sleep(seconds)
        await deliver(self, upload)

    _uploader.Deliveries.deliver = slowly  # type: ignore[method-assign]  # that is what it is about


async def run_trioagg(entry: Entry) -> dict[str, Any]:
    """The service, by its public face."""
    stages = Stages()
    observers: list[Observer] = [stages] if entry.stages else []
    instruments: list[Any] = []
    faults = entry.workload.faults
    if faults.stall_ms:
        observers.append(_Slowed(faults))
    if faults.upload_ms:
        _slow_down_uploads(faults.upload_ms / 1000)
    if entry.loop_lag:
        from .looplag import LoopLag

        instruments.append(lag := LoopLag())
    if entry.timeline:
        from .timeline import Timeline

        observers.append(timeline := Timeline())
        instruments.append(timeline)
    service = trioagg.AsyncDataAnalysisService(
        f"bench-{entry.results}",
        [entry.topic],
        bootstrap_servers=entry.bootstrap,
        result_topic=entry.results,
        batch_timeout=entry.workload.deadline_seconds,
        delivery=entry.delivery,
        max_batches_in_flight=entry.in_flight,
        observers=observers,
        tune_gc=entry.tune_gc,
        max_loop_stall=60.0,
    )
    callback = users_own(entry.callback) if entry.callback else station_on_trio(entry.workload)
    for instrument in instruments:
        trio.lowlevel.add_instrument(instrument)
    samples: list[dict[str, Any]] = []
    async with trio.open_nursery() as nursery:
        if entry.sample_seconds:
            nursery.start_soon(_sample, entry.sample_seconds, samples)
        async with service.start(callback):
            say_ready()
            window = await trio.to_thread.run_sync(wait_for_the_end)
        nursery.cancel_scope.cancel()
    for instrument in instruments:
        trio.lowlevel.remove_instrument(instrument)
    statistics = service.statistics()
    figures: dict[str, Any] = {
        "verdicts": dict(statistics.stations),
        "completed_by": dict(statistics.completed_by),
        "expected": statistics.expected,
        "ledger_adds_up": sum(statistics.stations.values()) == statistics.expected,
        "loop_stalls": statistics.loop_stalls,
        "samples": samples,
    }
    if entry.stages:
        figures |= stages.figures(*window)
    if entry.loop_lag:
        figures["loop"] = lag.figures()
    if entry.timeline:
        figures["timeline"] = timeline.write(Path(entry.timeline))
    return figures


async def _sample(seconds: float, samples: list[dict[str, Any]]) -> NoReturn:
    began = time.monotonic()
    while True:
        await trio.sleep(seconds)
        loop = trio.lowlevel.current_statistics()
        samples.append(
            {
                "t": round(time.monotonic() - began, 1),
                "rss_mib": _rss_mib(),
                "tasks": loop.tasks_living,
                "threads": _status("Threads"),
                "descriptors": len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else None,
                "gc_generation_2": gc.get_stats()[2]["collections"],
            }
        )


def _rss_mib() -> float | None:
    kib = _status("VmRSS")
    return None if kib is None else round(kib / 1024, 1)


def _status(name: str) -> int | None:
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    (line,) = [line for line in path.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])


def say_ready() -> None:
    """Messages may come."""
    print("ready", flush=True)


def wait_for_the_end() -> tuple[int, int]:
    """Until standard input ends: its first line may say which time is meant, in nanoseconds of the monotonic clock."""
    lines = sys.stdin.read().split("\n")
    begin, end = json.loads(lines[0]) if lines[0] else (0, 1 << 62)
    return begin, end


def main() -> None:
    """Run, and say what there is to say."""
    entry = msgspec.json.decode(sys.argv[1], type=Entry)
    if entry.name == OURS:
        figures = trio.run(run_trioagg, entry)
    else:
        from . import pipes

        figures = pipes.run(entry)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures |= {"max_rss_mib": max_rss_mib(), "cpu_seconds": usage.ru_utime + usage.ru_stime}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
