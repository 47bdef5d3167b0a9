"""The loop's own account: what ran, what was runnable and waited, and under which name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

pytest.importorskip("hdrh", reason="the benches need hdrhistogram")

from bench import histograms, looplag
from bench.looplag import LoopLag
from trioagg import run_batch

if TYPE_CHECKING:
    from trio.testing import MockClock


def of(clock: MockClock) -> LoopLag:
    """On virtual time; a callback that blocks jumps.  Not from 0, which is nobody's time."""
    return LoopLag(clock=lambda: 1_000_000_000 + round(clock.current_time() * 1e9))


def accounts(figures: dict[str, Any]) -> dict[str, tuple[int, float, float]]:
    return {name: (steps, ran, waited) for name, steps, ran, waited in figures["by_name"]}


async def test_a_task_that_blocks_ran_and_the_one_that_it_woke_waited(autojump_clock: MockClock) -> None:
    go = trio.Event()

    async def blocks() -> None:
        await trio.sleep(1)
        go.set()
        autojump_clock.jump(0.003)

    async with trio.open_nursery() as nursery:
        with of(autojump_clock) as lag:
            nursery.start_soon(blocks, name="blocks")
            nursery.start_soon(go.wait, name="woken")
            await trio.sleep(2)
    figures = lag.figures()
    assert accounts(figures)["blocks"] == (2, 3.0, 0.0)
    assert accounts(figures)["woken"] == (2, 0.0, 3.0)
    assert figures["longest_steps"] == [["blocks", 3.0, 1.0]]
    assert figures["longest_waits"][0] == ["woken", 3.0, 1.0]
    assert figures["running_seconds"] == 0.003


async def test_a_step_is_booked_under_the_station_that_held_the_loop_last(autojump_clock: MockClock) -> None:
    async def callback(station_id: str, blocks: float) -> None:
        autojump_clock.jump(blocks)

    with of(autojump_clock) as lag:
        stations = {"S001": 0.0, "S002": 0.0, "S003": 0.005, "S004": 0.0}
        await run_batch("b", stations, callback)
    figures = lag.figures()
    assert figures["longest_steps"] == [["S003", 5.0, 0.0]]
    assert "S001" not in accounts(figures)


async def test_a_wait_is_booked_under_the_station_that_waited(autojump_clock: MockClock) -> None:
    begin = trio.Event()

    async def callback(station_id: str, role: str) -> None:
        if role == "blocks":
            await trio.sleep(1)
            begin.set()
            autojump_clock.jump(0.004)
        elif role == "waits":
            await begin.wait()

    with of(autojump_clock) as lag:
        await run_batch("b", {"S001": "waits", "S002": "blocks", "S003": "neither"}, callback)
    assert lag.figures()["longest_waits"][0] == ["S001", 4.0, 1.0]


async def test_names_beyond_the_bound_are_summed_under_others(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looplag, "_MOST_NAMES", 5)
    with of(autojump_clock) as lag:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(trio.lowlevel.checkpoint, name=f"S{number:03d}")
    figures = lag.figures()
    assert len(figures["by_name"]) == 6
    assert accounts(figures)[looplag.OTHERS][0] > 20
    assert sum(steps for steps, _, _ in accounts(figures).values()) == figures["steps"]


async def test_only_the_ten_longest_are_named(autojump_clock: MockClock) -> None:
    async def blocks(ms: int) -> None:
        autojump_clock.jump(ms / 1000)

    with of(autojump_clock) as lag:
        async with trio.open_nursery() as nursery:
            for ms in range(1, 31):
                nursery.start_soon(blocks, ms, name=f"blocks {ms} ms")
    longest = lag.figures()["longest_steps"]
    assert [ms for _, ms, _ in longest] == pytest.approx(range(30, 20, -1))
    assert [name for name, _, _ in longest] == [f"blocks {ms} ms" for ms in range(30, 20, -1)]


async def test_samples_beyond_the_bound_are_left_out_of_the_histograms_alone(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looplag, "_MOST_SAMPLES", 7)
    with of(autojump_clock) as lag:
        for _ in range(20):
            await trio.lowlevel.checkpoint()
    figures = lag.figures()
    assert figures["steps"] >= 19
    assert histograms.decoded(figures["running"]).get_total_count() == 7


async def test_nothing_is_kept_of_tasks_that_have_run(autojump_clock: MockClock) -> None:
    with of(autojump_clock) as lag:
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(trio.sleep, 1)
        assert not lag._scheduled


async def test_the_histograms_hold_every_step_and_the_tables_can_be_printed(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    async def callback(station_id: str, blocks: float) -> None:
        await trio.sleep(1)
        autojump_clock.jump(blocks)

    with of(autojump_clock) as lag:
        await run_batch("b", {f"S{n:03d}": n / 1000 for n in range(10)}, callback)
    figures = json.loads(json.dumps(lag.figures()))
    assert histograms.decoded(figures["running"]).get_total_count() == figures["steps"]
    assert histograms.decoded(figures["running"]).get_max_value() == pytest.approx(9000, rel=0.001)
    looplag.print_tables(figures)
    told = capsys.readouterr().out
    assert "The longest steps" in told
    assert "S009" in told


def test_figures_of_nothing_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    looplag.print_tables(LoopLag().figures())
    assert "0 steps" in capsys.readouterr().out


def test_its_cost_is_measured_beside_the_bare_work() -> None:
    told = looplag.cost(rounds=1, steps=200)
    assert len(told) == 3
    assert all(figures["bare_us"] > 0 and figures["ratio"] > 0 for figures in told.values())
