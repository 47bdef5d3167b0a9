"""What a process of its own measures, and that process.  Nothing here knows how it is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from . import rivals

if TYPE_CHECKING:
    from collections.abc import Sequence

Kind = Literal["never waits", "sleeps 1 ms"]
OURS: Final = "trioagg"
RUN_BATCH: Final = "trioagg run_batch"
WITH_MSGSPEC: Final = f"{rivals.GUIDE}, msgspec"
TASK_GROUP: Final = "TaskGroup"
TASK_GROUP_WITH_MSGSPEC: Final = f"{TASK_GROUP}, msgspec"

STATIONS_OF_A_BATCH: Final = 100
_SAMPLE_SECONDS: Final = 0.2
_HANG_ROUNDS: Final = 10
_WORKER_SECONDS: Final = 900.0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a process measures."""

    what: Literal["overhead", "hang", "path", "recorder", "memory"]
    contestant: str = ""
    station: Kind = "never waits"
    stations: int = STATIONS_OF_A_BATCH
    batches: int = 1
    sample_seconds: float = _SAMPLE_SECONDS
    rounds: int = _HANG_ROUNDS
    tune_gc: bool = False
    nested: bool = False
    """Whether the records of a message have a list in them; most have not."""


def measured(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Measure them one after the other, in a new process: :mod:`bench.fanout_worker` is its other side."""
    command = [sys.executable, "-m", "bench.fanout_worker", msgspec.json.encode(jobs).decode()]
    root = Path(__file__).parent.parent
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=_WORKER_SECONDS, check=False)
    if ran.returncode:
        raise RuntimeError(f"{jobs[0].contestant} ended with status {ran.returncode}:\n{ran.stderr}")
    results: list[dict[str, Any]] = json.loads(ran.stdout)
    return results
