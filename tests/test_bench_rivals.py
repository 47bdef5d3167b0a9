"""The rivals of the benches: whoever is measured must do the whole work, and fail in the way that is said of it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import trio

from bench import rivals
from bench.guide import Guide
from bench.jobs import OURS, TASK_GROUP, WITH_MSGSPEC, Job, measured

ROOT = Path(__file__).parent.parent
NUMBERED = {f"S{number:03}": str(number) for number in range(100)}
PATIENCE_SECONDS = 30.0
RIVALS = list(rivals.present().values())


async def answer(station_id: str, value: str) -> dict[str, str]:
    return {"station_id": station_id, "value": value}


async def fail_sometimes(station_id: str, value: str) -> dict[str, str]:
    if value == "7":
        raise ValueError(station_id)
    return {"station_id": station_id}


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_every_station_of_a_normal_batch_is_in_the_result(rival: rivals.Rival) -> None:
    assert rivals.run(rival.loop, rival.batch, answer, NUMBERED, PATIENCE_SECONDS) == 100


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_batches_at_once_have_all_answers_of_all_of_them(rival: rivals.Rival) -> None:
    assert rivals.run(rival.loop, rivals.together, rival, answer, NUMBERED, PATIENCE_SECONDS, 7) == 700


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_a_station_that_fails_cancels_no_sibling(rival: rivals.Rival) -> None:
    answers = rivals.run(rival.loop, rival.batch, fail_sometimes, NUMBERED, PATIENCE_SECONDS)
    assert answers == (99 if rival.name == rivals.GUIDE else 100)  # its list has no place for an error


async def test_the_textbook_loses_answers_that_are_parked_at_the_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The parent takes one answer in each pass of the loop: of those that come together the rest is parked."""
    given = 0

    async def blocks_past_the_deadline(station_id: str, value: str) -> dict[str, str]:
        nonlocal given
        given += 1
        if given == 100:
            autojump_clock.jump(6)  # all have answered, and then the deadline comes
        return {"station_id": station_id}

    answers = await rivals.textbook_channel(blocks_past_the_deadline, NUMBERED, 5.0)
    assert given == 100
    assert answers < 10


async def test_the_nursery_with_a_deadline_keeps_what_was_answered(autojump_clock: trio.testing.MockClock) -> None:
    async def every_tenth_hangs(station_id: str, value: str) -> dict[str, str]:
        if value.endswith("7"):
            await trio.sleep_forever()
        return {"station_id": station_id}

    assert await rivals.bare_nursery_in_time(every_tenth_hangs, NUMBERED, 5.0) == 90
    assert await rivals.textbook_channel(every_tenth_hangs, NUMBERED, 5.0) == 90


def test_the_guides_design_counts_what_comes_after_its_list_and_cancels_nobody() -> None:
    async def main() -> None:
        list_is_made, lists, ended = asyncio.Event(), {}, []

        async def every_tenth_waits_for_the_list(station_id: str, value: str) -> dict[str, str]:
            if value.endswith("7"):
                await list_is_made.wait()
                ended.append(station_id)
            return {"station_id": station_id}

        async def upload(batch_id: str, results: list[dict[str, str]]) -> None:
            lists[batch_id] = len(results)
            list_is_made.set()

        async with Guide(every_tenth_waits_for_the_list, 0.2, upload) as guide:
            await guide.submit("batch", NUMBERED)
            await list_is_made.wait()
            while len(ended) < 10:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
        in_time = guide.answers + guide.left_in_queue
        assert (lists["batch"], in_time) == (guide.answers, 90)
        assert (guide.stragglers, guide.late) == (10, 10)

    asyncio.run(main())


def test_a_station_that_hangs_holds_up_its_later_batches_in_the_guides_design() -> None:
    async def main() -> None:
        lists: dict[str, list[dict[str, str]]] = {}

        async def one_hangs(station_id: str, value: str) -> dict[str, str]:
            if value == "hangs":
                await asyncio.get_running_loop().create_future()
            return {"station_id": station_id}

        async def upload(batch_id: str, results: list[dict[str, str]]) -> None:
            lists[batch_id] = results

        async with Guide(one_hangs, 0.3, upload) as guide:
            await guide.submit("first", {"S001": "hangs", "S002": "answers"})
            await guide.submit("second", {"S001": "answers", "S002": "answers"})
        assert lists == {"first": [{"station_id": "S002"}], "second": [{"station_id": "S002"}]}

    asyncio.run(main())


def test_an_upload_that_fails_ends_the_guides_block() -> None:
    async def main() -> None:
        async def upload(batch_id: str, results: list[dict[str, str]]) -> None:
            raise OSError(batch_id)

        async with Guide(answer, PATIENCE_SECONDS, upload) as guide:
            await guide.submit("batch", NUMBERED)

    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="batch")):
        asyncio.run(main())


def test_who_is_missing_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "find_spec", lambda name: None)
    assert "uvloop" not in " ".join(rivals.present())
    line = rivals.absent()
    assert line is not None
    assert "TaskGroup, uvloop (no uvloop)" in line
    assert line.endswith("pip install '.[bench]'")


@pytest.mark.parametrize("contestant", [OURS, rivals.GUIDE])
def test_a_worker_prints_one_line_of_json(contestant: str) -> None:
    jobs = [
        Job(what="overhead", contestant=contestant, stations=10, batches=3, sample_seconds=0.001),
        Job(what="hang", contestant=contestant, rounds=1),
    ]
    command = [sys.executable, "-W", "error", "-m", "bench.fanout_worker", msgspec.json.encode(jobs).decode()]
    ran = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True, timeout=60)
    assert ran.stderr == ""
    [line] = ran.stdout.splitlines()
    overhead, hang = json.loads(line)
    assert overhead["us"] > 0
    assert overhead["answers_lost"] == 0
    assert hang["stragglers"] == (0 if contestant == OURS else 10)


@pytest.mark.parametrize("contestant", [OURS, WITH_MSGSPEC, TASK_GROUP])
def test_the_whole_path_brings_up_a_list_for_every_message(contestant: str) -> None:
    [path] = measured([Job(what="path", contestant=contestant, stations=20, sample_seconds=0.02)])
    assert path["lists"] > 0  # that none was lost is checked where it runs


def test_a_waiting_station_of_ours_is_not_a_task() -> None:
    [ours] = measured([Job(what="memory", contestant=OURS, stations=5_000)])
    [bare] = measured([Job(what="memory", contestant=rivals.BARE, stations=1_500)])
    assert 0 < ours["bytes"] < bare["bytes"] / 5
