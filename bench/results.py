"""``result.json``: everything that a run has found, and what it depended on; and HdrHistogram's files beside it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from . import histograms
from .figures import environment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

FORMAT: Final = 1
NAME: Final = "result.json"
_PACKAGES: Final = (
    *("trio", "trio-asyncio", "aiokafka", "msgspec", "stamina", "confluent-kafka"),
    *("uvloop", "anyio", "faststream", "hdrhistogram", "viztracer"),
)


def facts(*, wakeups: int) -> dict[str, Any]:
    """What the figures of a run depend on."""
    return environment(wakeups=wakeups) | {
        "cpu": _cpu(),
        "governor": _governor(),
        "revision": _revision(),
        "executable": sys.executable,
        "packages": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
    }


def write(
    directory: Path,
    command: str,
    cases: Sequence[dict[str, Any]],
    *,
    began: datetime,
    environment: dict[str, Any],
    arguments: dict[str, Any],
    seed: int | None,
    quick: bool,
) -> Path:
    """Write a run's ``result.json`` into *directory*, and the histograms of its latencies as files beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    whole = {
        "format": FORMAT,
        "command": command,
        "began": began.isoformat(timespec="seconds"),
        "quick": quick,
        "seed": seed,
        "arguments": arguments,
        "environment": environment,
        "cases": list(cases),
    }
    path = directory / NAME
    path.write_text(json.dumps(whole, default=str) + "\n", encoding="utf-8")
    for case in cases:
        for load in case.get("loads", ()):
            _write_histograms(directory, case, load)
    return path


def read(path: Path) -> dict[str, Any]:
    """What :func:`write` wrote; *path* is the file, or the directory that it is in.

    Exits with a sentence if it is not there, or not ours.
    """
    if path.is_dir():
        path = path / NAME
    try:
        whole: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: {error}; a command with --out DIR writes DIR/{NAME}")
    if whole.get("format") != FORMAT:
        sys.exit(f"{path}: not a result of this lab, or of another version of it")
    return whole


def _write_histograms(directory: Path, case: dict[str, Any], load: dict[str, Any]) -> None:
    name = f"{case['contestant']} {load['rate']:.0f} per second".replace(",", "").replace(" ", "-")
    repeats = load["repeats"]
    histograms.write_distribution(histograms.merged(one["latency"] for one in repeats), directory / f"{name}.hgrm")
    intervals = [
        (one["epoch"] + second, one["epoch"] + second + 1, histograms.decoded(text))
        for one in repeats
        for second, text in enumerate(one["intervals"])
    ]
    histograms.write_log(intervals, directory / f"{name}.hlog", f"{case['contestant']}, microseconds")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _governor() -> str:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return path.read_text().strip() if path.exists() else "unknown"


def _revision() -> str:
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=here,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"
