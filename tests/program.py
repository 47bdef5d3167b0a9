"""A program as the README has it, for tests that send it signals and kill it.  It uses trioagg's public names alone.

    python program.py left|stopped '{"topic": ..., "group": ..., ...}'

`left` handles no signal: Ctrl-C is a KeyboardInterrupt.  `stopped` asks the service to stop, as the complete example
does.  A line of output for each step: "imported", "first" (a list is up), and last the figures as JSON.
"""

from __future__ import annotations

import json
import signal
import sys

import trio

import trioagg


class Program:
    def __init__(self, topic: str, group: str, station_seconds: float, **settings: object) -> None:
        kafka = trioagg.KafkaSettings(**settings.pop("kafka", {}))
        self.service = trioagg.AsyncDataAnalysisService(group, [topic], kafka=kafka, **settings)
        self.station_seconds = station_seconds

    async def left(self) -> None:
        async with self.service.start(callback=self.process_station):
            await self.say_first()
            await trio.sleep_forever()

    async def stopped(self) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.stop_on_signal)
            nursery.start_soon(self.say_first)
            await self.service.run(self.process_station)
            nursery.cancel_scope.cancel()
        statistics = self.service.statistics()
        say(json.dumps({"opened": statistics.opened, "uploaded": statistics.uploaded}))

    async def process_station(self, station_id: str, module_input: dict) -> dict:
        await trio.sleep(self.station_seconds)
        return {"station_id": station_id}

    async def say_first(self) -> None:
        while not self.service.statistics().uploaded:
            await trio.sleep(0.01)
        say("first")

    async def stop_on_signal(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                self.service.request_stop()


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    say("imported")
    program = Program(**json.loads(sys.argv[2]))
    trio.run(getattr(program, sys.argv[1]))
