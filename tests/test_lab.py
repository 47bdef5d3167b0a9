"""The lab's commands on real Kafka: what they write down must add up, whatever the times are."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench import histograms
from bench.stages import STAGES

if TYPE_CHECKING:
    from broker import Kafka

ROOT = Path(__file__).parents[1]
WORKLOAD = """
title = "ten stations"
stations = 10
deadline_seconds = 0.2
rate = 60.0
service_time = {{ law = "constant", ms = 2.0 }}
faults = {{ never_returning_share = {hanging}, failing_share = {failing} }}
"""
CALLBACK = """
async def process_station(station_id, module_input):
    (records,) = [value for key, value in module_input.items() if isinstance(value, list)]
    return {"station_id": station_id, "power": records[0]["power"]}
"""


def bench(*arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::ResourceWarning", "-m", "bench", *arguments]
    return subprocess.run(
        command,
        cwd=where,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def pipeline(kafka: Kafka, where: Path, *arguments: str, hanging: float = 0.0, failing: float = 0.0) -> dict[str, Any]:
    (where / "mine.toml").write_text(WORKLOAD.format(hanging=hanging, failing=failing))
    ran = bench(
        *("pipeline", "--bootstrap-servers", kafka.bootstrap, "--workload", "mine.toml"),
        *("--quick", "--seconds", "1.5", "--out", "found", *arguments),
        where=where,
    )
    assert ran.returncode == 0, ran.stderr
    assert "From topic to topic: ten stations" in ran.stdout
    (case, *_) = json.loads((where / "found" / "result.json").read_text())["cases"]
    return case


def test_every_message_has_its_list_and_every_station_its_verdict(kafka: Kafka, tmp_path: Path) -> None:
    case = pipeline(kafka, tmp_path, "--contestants", "trioagg", hanging=0.1, failing=0.1)
    (load,) = case["loads"]
    (repeat,) = load["repeats"]
    assert repeat["sent"] == repeat["lists"] == 90
    assert (repeat["lost"], repeat["twice"], repeat["strange"]) == (0, 0, 0)
    assert histograms.decoded(repeat["latency"]).get_total_count() == 90
    inside = repeat["inside"]
    assert inside["ledger_adds_up"]
    assert inside["batches"] == 90
    assert list(inside["stages"]) == list(STAGES)
    assert all(histograms.decoded(text).get_total_count() == 90 for text in inside["stages"].values())
    verdicts = inside["verdicts"]
    assert verdicts["failed"] > 0
    assert verdicts["timed_out"] > 0
    # What was sent to warm up is in the service's own books only.
    assert repeat["answers"] < verdicts["succeeded"]
    assert inside["overshoots"] == inside["completed_by"]["timeout"]
    assert sorted(path.suffix for path in (tmp_path / "found").iterdir()) == [".hgrm", ".hlog", ".json"]


def test_a_callback_and_messages_of_ones_own_are_run(kafka: Kafka, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CALLBACK)
    records = [{"stationId": f"S{number}", "power": number} for number in range(4)]
    (tmp_path / "samples.jsonl").write_text(json.dumps({"realTimeData": records}) + "\n")
    callback = ("--callback", "mine:process_station", "--messages", "samples.jsonl")
    trace = tmp_path / "worst.json"
    case = pipeline(kafka, tmp_path, *callback, "--loop-lag", "--timeline", str(trace))
    (repeat,) = case["loads"][0]["repeats"]
    assert repeat["answers"] == 4 * repeat["sent"]
    assert repeat["inside"]["verdicts"]["succeeded"] == repeat["inside"]["expected"]
    assert repeat["inside"]["loop"]["steps"] > 90
    events = json.loads(trace.read_text())["traceEvents"]
    rows = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {"S0", "S1", "S2", "S3"} <= rows


@pytest.mark.parametrize("rival", ["FastStream", "guide"])
def test_the_rivals_lose_no_message_either(kafka: Kafka, tmp_path: Path, rival: str) -> None:
    case = pipeline(kafka, tmp_path, "--contestants", rival)
    assert case["contestant"] == rival
    accounts = case["accounts"]
    assert accounts["sent"] == 90
    assert (accounts["lists_lost"], accounts["lists_twice"], accounts["answers"]) == (0, 0, 900)


def test_a_contestant_that_does_not_exist_is_said_to_be_none(tmp_path: Path) -> None:
    ran = bench("pipeline", "--contestants", "nobody", where=tmp_path)
    assert ran.returncode == 1
    assert "no contestant nobody: there are trioagg, bare pipe, TaskGroup" in ran.stderr


def test_a_callback_that_does_not_exist_is_said_to_be_none(kafka: Kafka, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(WORKLOAD.format(hanging=0.0, failing=0.0))
    ran = bench(
        *("pipeline", "--bootstrap-servers", kafka.bootstrap, "--workload", "mine.toml", "--callback", "no.such:thing"),
        where=tmp_path,
    )
    assert ran.returncode == 1
    assert "--callback no.such:thing: No module named 'no'; wanted is module:function" in ran.stderr


def test_a_bench_that_is_told_to_end_leaves_no_process_behind(kafka: Kafka, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(WORKLOAD.format(hanging=0.0, failing=0.0))
    command = [sys.executable, "-m", "bench", "pipeline", "--bootstrap-servers", kafka.bootstrap]
    process = subprocess.Popen(
        [*command, "--workload", "mine.toml", "--contestants", "trioagg", "--seconds", "60"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 30
        while len(children := descendants_of(process.pid)) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert len(children) >= 3
    until = time.monotonic() + 15  # the reader looks whether its sender is there
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert [child for child in children if Path(f"/proc/{child}").exists()] == []


def descendants_of(pid: int) -> list[int]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    children = [int(child) for child in listed.split()]
    return [*children, *(grandchild for child in children for grandchild in descendants_of(child))]
