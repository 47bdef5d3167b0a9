"""The service under test, in a process of its own that faults are done to.  It uses trioagg's public names alone.

    python served.py '{"topic": ..., "group": ..., "results": ..., "bootstrap": ..., ...}'

SIGTERM drains it.  SIGUSR1 prints the stacks of its threads and, unless the loop is blocked, of its Trio tasks.  It
says "ready" once it is connected.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import random
import signal
import sys
import time
import traceback
from typing import Any

import trio

import trioagg


class KilledAfterUploads(trioagg.Observer):
    """Dies as of a power cut when a list is up and its offset is not committed."""

    def __init__(self, uploads: int) -> None:
        self.left = uploads

    def uploaded(self, report: trioagg.BatchReport) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


class Served:
    def __init__(
        self,
        *,
        topic: str,
        group: str,
        results: str,
        bootstrap: str,
        kafka: dict[str, Any] | None = None,
        station_seconds: float = 0.02,
        killed_after_uploads: int = 0,
        blocks: dict[str, float] | None = None,
        clock_jump_seconds: float = 0.0,
        **settings: Any,
    ) -> None:
        self.station_seconds, self.blocks = station_seconds, blocks or {}
        self.clock_jump_seconds = clock_jump_seconds
        observers = [KilledAfterUploads(killed_after_uploads)] if killed_after_uploads else []
        self.topic = topic
        self.service = trioagg.AsyncDataAnalysisService(
            group,
            [topic],
            bootstrap_servers=bootstrap,
            result_topic=results,
            kafka=trioagg.KafkaSettings(**(kafka or {})),
            observers=observers,
            **settings,
        )

    async def process_station(self, station_id: str, module_input: dict[str, Any]) -> dict[str, Any]:
        record = module_input[self.topic][0]
        seconds = self.blocks.pop(str(record["number"]), 0)
        if seconds:
            time.sleep(seconds)  # on purpose: it keeps the loop to itself
        await trio.sleep(random.uniform(0, 2 * self.station_seconds))
        return {"station_id": station_id, "number": record["number"], "value": record["number"] * 7 + record["index"]}

    async def main(self) -> None:
        trio.lowlevel.spawn_system_task(stacks_on_signal)  # it must not keep the program from its end
        async with trio.open_nursery() as nursery:
            await nursery.start(self.stop_on_signal)
            await nursery.start(self.service.run, self.process_station)
            print("ready", flush=True)
            if self.clock_jump_seconds:
                await trio.sleep(1)
                real = time.time
                time.time = lambda: real() + self.clock_jump_seconds

    async def stop_on_signal(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                self.service.request_stop()
                await self.service.stop()
                print(json.dumps(figures(self.service)), flush=True)
                return


async def stacks_on_signal() -> None:
    faulthandler.unregister(signal.SIGUSR1)  # a second register() alone would not put it in front of the receiver
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        # In front, for it speaks even when nothing in Python can.
        faulthandler.register(signal.SIGUSR1, chain=True)
        async for _ in signals:
            root = trio.lowlevel.current_root_task()
            print("\n".join(stacks(root, 0)) if root is not None else "no tasks", file=sys.stderr, flush=True)


def stacks(task: trio.lowlevel.Task, depth: int) -> list[str]:
    frames = traceback.StackSummary.extract(task.iter_await_frames())
    lines = ["  " * depth + f"- {task.name}"]
    lines += ["  " * depth + f"    {frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return lines + [line for child in children for line in stacks(child, depth + 1)]


def figures(service: trioagg.AsyncDataAnalysisService) -> dict[str, Any]:
    statistics = service.statistics()
    kafka = statistics.kafka
    assert kafka is not None
    return {
        "uploaded": statistics.uploaded,
        "timed_out": statistics.completed_by["timeout"],
        "rebuilds": kafka.rebuilds,
        "producers": kafka.transactional_producers,
        "dropped": kafka.dropped_records,
        "stalls": statistics.loop_stalls,
    }


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    trio.run(Served(**json.loads(sys.argv[1])).main)
