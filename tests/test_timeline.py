"""The picture of the worst batch: whose rows it has, what lies in them, and that viewers can read it."""

from __future__ import annotations

import gzip
import json
import math
import random
import sys
import time
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import trio

from bench import timeline as module
from bench.timeline import Timeline
from trioagg import BatchResultAggregator, current_batch

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    Events = list[dict[str, Any]]

ORIGIN = 7_000_000_000
"""Where the clock begins: not at the same 0 as Trio's."""
EARLY_NS = 100_000
"""About one microsecond; and this machine may be busy."""


@pytest.fixture
def timeline(autojump_clock: MockClock) -> Timeline:
    return Timeline(clock=lambda: ORIGIN + round(autojump_clock.current_time() * 1e9))


async def upload(batch_id: str, results_list: list[Any]) -> None:
    await trio.sleep(0.25)


def rows(events: Events) -> dict[str, Events]:
    """Row name -> its events, checked for what the viewers want."""
    check(events)
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert len(set(names.values())) == len(names), "one row a name"
    found: dict[str, Events] = {name: [] for name in names.values()}
    for event in events:
        if event["ph"] != "M":
            found[names[event["tid"]]].append(event)
    return found


def check(events: Events) -> None:
    last = -math.inf
    open_slices: dict[int, list[float]] = defaultdict(list)
    kinds = [event["ph"] for event in events]
    assert kinds == sorted(kinds, key=lambda kind: kind != "M"), "names first"
    for event in events:
        assert {"ph", "ts", "pid", "tid", "name"} <= event.keys()
        assert event["ph"] in ("M", "X", "i")
        assert event["ts"] * 8 == int(event["ts"] * 8) >= 0
        if event["ph"] == "M":
            continue
        assert event["ts"] >= last, "ascending"
        last = event["ts"]
        if event["ph"] == "X":
            assert event["dur"] >= 0
            ends = open_slices[event["tid"]]
            while ends and ends[-1] <= event["ts"]:
                ends.pop()
            assert not ends or event["ts"] + event["dur"] <= ends[-1], f"{event} does not lie in its outer slice"
            ends.append(event["ts"] + event["dur"])
    json.dumps(events, allow_nan=False)


def slices(events: Events) -> list[tuple[str, float, float]]:
    """Name, begin and end in milliseconds."""
    return [
        (event["name"], event["ts"] / 1000, (event["ts"] + event["dur"]) / 1000)
        for event in events
        if event["ph"] == "X"
    ]


def instants(events: Events) -> dict[str, float]:
    return {event["name"]: event["ts"] / 1000 for event in events if event["ph"] == "i"}


async def test_every_station_has_a_row_with_its_verdict_and_the_batch_has_one(
    timeline: Timeline, autojump_clock: MockClock
) -> None:
    async def callback(station_id: str, seconds: float) -> dict[str, str] | None:
        await trio.sleep(seconds)
        if station_id == "fails":
            raise ValueError("no weather")
        return {} if station_id == "succeeds" else None

    with timeline:
        async with BatchResultAggregator(callback, upload, batch_timeout=5, observers=[timeline]) as aggregator:
            await aggregator.run("b", {"succeeds": 1.0, "no output": 2.0, "fails": 3.0, "hangs": math.inf})
    found = rows(timeline.events())
    assert list(found) == ["the batch", "everything else", "succeeds", "no output", "fails", "hangs"]
    assert slices(found["the batch"]) == [("open", 0, 5000), ("uploading", 5000, 5250)]
    assert instants(found["the batch"]) == {"opened": 0, "deadline": 5000, "closed": 5000, "uploaded": 5250}
    assert slices(found["succeeds"]) == [("succeeded", 0, 1000)]
    assert slices(found["no output"]) == [("no_output", 0, 2000)]
    assert slices(found["fails"]) == [("failed", 0, 3000)]
    assert slices(found["hangs"]) == [("timed_out", 0, 5000)]
    assert found["fails"][0]["args"]["error"] == "ValueError: no weather"
    assert found["the batch"][0]["args"]["completed_by"] == "timeout"


async def test_a_step_of_several_stations_is_cut_where_the_next_one_began(
    timeline: Timeline, autojump_clock: MockClock
) -> None:
    async def callback(station_id: str, ms: float) -> None:
        autojump_clock.jump(ms / 1000)

    with timeline:
        async with BatchResultAggregator(callback, upload, observers=[timeline]) as aggregator:
            await aggregator.run("b", {"S001": 0.25, "S002": 0.5, "S003": 2.0, "S004": 0.125})
    found = rows(timeline.events())
    assert slices(found["S001"]) == [("no_output", 0, 0.25), ("runs", 0, 0.25)]
    assert slices(found["S002"]) == [("no_output", 0.25, 0.75), ("runs", 0.25, 0.75)]
    assert slices(found["S003"]) == [("no_output", 0.75, 2.75), ("runs", 0.75, 2.75)]
    assert slices(found["S004"]) == [("no_output", 2.75, 2.875), ("runs", 2.75, 2.875)]
    assert slices(found["everything else"]) == []


async def test_a_station_that_could_run_and_may_not_is_seen_waiting(
    timeline: Timeline, autojump_clock: MockClock
) -> None:
    go = trio.Event()

    async def callback(station_id: str, role: str) -> None:
        if role == "waits":
            await go.wait()
            autojump_clock.jump(0.001)
        else:
            await trio.sleep(1)
            go.set()
            autojump_clock.jump(0.004)

    with timeline:
        async with BatchResultAggregator(callback, upload, observers=[timeline]) as aggregator:
            await aggregator.run("b", {"S001": "waits", "S002": "blocks"})
    found = rows(timeline.events())
    assert slices(found["S001"]) == [
        ("no_output", 0, 1005),
        ("waits for the loop", 1000, 1004),
        ("runs", 1004, 1005),
    ]
    assert found["S001"][0]["args"] == {
        "started_ms": 0,
        "run_ms": 1005,
        "ran_us": 1000,
        "waited_for_the_loop_us": 4000,
    }
    assert slices(found["S002"]) == [("no_output", 0, 1004), ("runs", 1000, 1004)]


async def test_what_others_do_to_the_loop_is_in_a_row_of_its_own(timeline: Timeline, autojump_clock: MockClock) -> None:
    async def callback(station_id: str, seconds: float) -> None:
        await trio.sleep(seconds)
        autojump_clock.jump(0.001)

    async def bystander() -> None:
        await trio.sleep(2)
        autojump_clock.jump(0.003)

    with timeline:
        async with (
            trio.open_nursery() as nursery,
            BatchResultAggregator(callback, upload, observers=[timeline]) as aggregator,
        ):
            nursery.start_soon(bystander, name="a bystander")
            await aggregator.submit("other", {"S001": 1.0})
            await aggregator.submit("worst", {"S001": 4.0})
    found = rows(timeline.events())
    assert slices(found["everything else"]) == [("other batches", 1000, 1001), ("a bystander", 2000, 2003)]
    assert slices(found["S001"]) == [("no_output", 0, 4001), ("runs", 4000, 4001)]


async def test_stations_of_the_same_name_in_two_batches_are_told_apart(
    timeline: Timeline, autojump_clock: MockClock
) -> None:
    async def callback(station_id: str, turns: list[float]) -> None:
        for seconds in turns:
            await trio.sleep(seconds)
            autojump_clock.jump(0.001)

    with timeline:
        async with BatchResultAggregator(callback, upload, observers=[timeline], batch_timeout=60) as aggregator:
            await aggregator.submit("b", {"S001": [2.0, 2.0]})
            await trio.sleep(1)
            await aggregator.submit("b", {"S001": [2.0, 20.0]})  # delivered again while it is open
    found = rows(timeline.events())
    assert slices(found["S001"]) == [
        ("no_output", 0, 22002),
        ("runs", 2000, 2001),
        ("runs", 22001, 22002),
    ]
    assert slices(found["everything else"]) == [("other batches", 1000, 1001), ("other batches", 3001, 3002)]


@pytest.mark.parametrize("order", [[1.0, 3.0, 2.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
async def test_the_batch_that_was_open_longest_is_kept_and_nothing_else(
    order: list[float], timeline: Timeline, autojump_clock: MockClock
) -> None:
    async def callback(station_id: str, seconds: float) -> None:
        await trio.sleep(seconds)
        autojump_clock.jump(0.001)

    with timeline:
        async with BatchResultAggregator(callback, upload, observers=[timeline]) as aggregator:
            for number, seconds in enumerate(order):
                await aggregator.run(f"b{number}", {"S001": seconds})
            await aggregator.run("short", {"S001": 0.0})
        for _ in range(10):
            await trio.sleep(1)
        # Of the last batches at most, whose step had not ended yet.
        assert len(timeline._names) < 10
        assert not timeline._open
    assert slices(rows(timeline.events())["S001"])[0] == ("no_output", 0, 3001)
    assert slices(rows(timeline.events())["S001"])[1] == ("runs", 3000, 3001)


async def test_overlapping_batches_do_not_keep_each_others_steps_for_ever(
    timeline: Timeline, autojump_clock: MockClock
) -> None:
    async def callback(station_id: str, seconds: float) -> None:
        for _ in range(10):
            await trio.sleep(seconds / 10)

    with timeline:
        async with BatchResultAggregator(callback, None, observers=[timeline]) as aggregator:
            await aggregator.run("worst", {"S001": 2.0})
            most = 0
            for number in range(300):
                await aggregator.submit(f"b{number}", {"S001": 1.0})
                await trio.sleep(0.25)
                most = max(most, len(timeline._names))
    # About five are open at a time, and each has some 20 steps.
    assert most < 500


async def test_a_deadline_that_was_not_reached_is_told_and_not_drawn(
    timeline: Timeline, autojump_clock: MockClock
) -> None:
    async def callback(station_id: str, seconds: float) -> None:
        await trio.sleep(seconds)

    with timeline:
        async with BatchResultAggregator(callback, None, batch_timeout=60, observers=[timeline]) as aggregator:
            await aggregator.run("b", {"S001": 1.0})
    batch = rows(timeline.events())["the batch"]
    assert instants(batch) == {"opened": 0, "closed": 1000}
    assert batch[0]["args"]["deadline_milliseconds"] == 60_000


async def test_a_batch_without_a_deadline_can_be_drawn(timeline: Timeline, autojump_clock: MockClock) -> None:
    async def callback(station_id: str, seconds: float) -> None:
        await trio.sleep(seconds)

    with timeline:
        async with BatchResultAggregator(callback, None, batch_timeout=math.inf, observers=[timeline]) as aggregator:
            await aggregator.run("b", {"S001": 1.0})
    assert "deadline_milliseconds" not in rows(timeline.events())["the batch"][0]["args"]


async def test_a_station_that_was_never_started_has_a_row_without_a_slice(
    timeline: Timeline, autojump_clock: MockClock
) -> None:
    async def callback(station_id: str, seconds: float) -> None:
        await trio.sleep(seconds)

    with timeline:
        async with BatchResultAggregator(
            callback, None, batch_timeout=2, max_running_stations=1, observers=[timeline]
        ) as aggregator:
            await aggregator.run("b", {"S001": 5.0, "S002": 5.0})
    found = rows(timeline.events())
    assert slices(found["S001"]) == [("timed_out", 0, 2000)]
    assert slices(found["S002"]) == []
    assert instants(found["S002"]) == {"skipped": 2000}


async def test_answers_that_were_pushed_have_rows_without_slices(timeline: Timeline, autojump_clock: MockClock) -> None:
    with timeline:
        async with BatchResultAggregator(batch_timeout=2, observers=[timeline]) as aggregator:
            batch = await aggregator.create_batch("b", ["S001", "S002"])
            await trio.sleep(1)
            batch.add_result("S001", {})
            await batch.wait_closed()
    found = rows(timeline.events())
    assert instants(found["S001"]) == {"succeeded": 2000}
    assert instants(found["S002"]) == {"timed_out": 2000}


async def test_a_straggler_is_part_of_everything_else_once_its_batch_is_closed(
    timeline: Timeline, autojump_clock: MockClock
) -> None:
    async def callback(station_id: str, seconds: float) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)
            autojump_clock.jump(0.002)

    async def slow_upload(batch_id: str, results_list: list[Any]) -> None:
        await trio.sleep(5)

    with timeline:
        async with BatchResultAggregator(callback, slow_upload, batch_timeout=1, observers=[timeline]) as aggregator:
            await aggregator.run("b", {"S001": 3.0})
    found = rows(timeline.events())
    assert slices(found["S001"]) == [("timed_out", 0, 1000)]
    assert slices(found["everything else"]) == [("stragglers", 3000, 3002)]


async def test_every_try_of_the_upload_is_drawn(timeline: Timeline, autojump_clock: MockClock) -> None:
    tries = 0

    async def callback(station_id: str, seconds: float) -> None:
        await trio.sleep(seconds)

    async def flaky_upload(batch_id: str, results_list: list[Any]) -> None:
        nonlocal tries
        tries += 1
        await trio.sleep(0.5)
        if tries == 1:
            raise OSError("the line is down")

    with timeline:
        async with BatchResultAggregator(callback, flaky_upload, observers=[timeline]) as aggregator:
            await aggregator.run("b", {"S001": 1.0})
    first, second = [event for event in rows(timeline.events())["the batch"] if event["name"] == "uploading"]
    assert (first["ts"], first["dur"]) == (1_000_000, 500_000)
    assert first["args"] == {"try": 1, "result": "failed: OSError: the line is down"}
    assert second["args"] == {"try": 2, "result": "uploaded"}


async def test_an_aborted_batch_is_none_of_the_worst(timeline: Timeline, autojump_clock: MockClock, tmp_path) -> None:
    async def callback(station_id: str, seconds: float) -> None:
        await trio.sleep(seconds)

    with timeline:
        with trio.move_on_after(3):
            async with BatchResultAggregator(callback, None, observers=[timeline]) as aggregator:
                await aggregator.run("b", {"S001": math.inf})
        assert not timeline._keeps_steps
    assert timeline.events() == []
    path = tmp_path / "worst.json"
    assert timeline.write(path) == f"{path} was not written: no batch has closed with a list"
    assert not path.exists()


async def test_steps_beyond_the_bound_are_missing_and_that_is_said(
    timeline: Timeline, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_STEPS", 40)

    async def callback(station_id: str, turns: int) -> None:
        for _ in range(turns):
            await trio.sleep(0.01)
            autojump_clock.jump(0.001)

    with timeline:
        async with BatchResultAggregator(callback, None, observers=[timeline]) as aggregator:
            await aggregator.run("b", {"S001": 100})
    found = rows(timeline.events())
    assert "missing" in found["the batch"][0]["args"]["steps"]
    assert 15 < len(slices(found["S001"])) < 45
    assert slices(found["S001"])[-1][0] == "runs"


async def test_it_may_be_switched_on_in_the_step_that_opens_a_batch(
    timeline: Timeline, autojump_clock: MockClock
) -> None:
    async def callback(station_id: str, seconds: float) -> None:
        await trio.sleep(seconds)

    async with BatchResultAggregator(callback, None, observers=[timeline]) as aggregator:
        with timeline:
            await aggregator.run("b", {"S001": 1.0})
    assert slices(rows(timeline.events())["S001"]) == [("no_output", 0, 1000)]


async def some_work(timeline: Timeline, began: dict[str, int]) -> None:
    """On the real clock: stations that never wait, that give way, that sleep and that start tasks of their own."""
    chance = random.Random(1)

    async def callback(station_id: str, kind: int) -> dict[str, str]:
        if current_batch().batch_id == "worst":
            began[station_id] = time.perf_counter_ns()
        if kind == 1:
            for _ in range(5):
                await trio.lowlevel.checkpoint()
        elif kind == 2:
            await trio.sleep(0.001 * chance.random())
        elif kind == 3:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, 0.0005, name=station_id)
        elif kind == 4:
            time.sleep(0.0015)  # noqa: ASYNC251 - that is what it is about
        return {"station_id": station_id}

    with timeline:
        async with BatchResultAggregator(callback, upload, batch_timeout=30, observers=[timeline]) as aggregator:
            for number in range(3):
                stations = {f"S{n:03d}": chance.randrange(4) for n in range(100)}
                await aggregator.submit(f"small {number}", stations)
            # After those, so that the times that are kept are of this one.
            await aggregator.run("worst", {f"S{n:03d}": chance.randrange(5) for n in range(200)})


def test_on_the_real_clock_the_picture_is_sound_and_every_station_is_where_it_was() -> None:
    timeline, began = Timeline(), dict[str, int]()
    trio.run(some_work, timeline, began)
    picture = timeline._picture()
    assert picture is not None
    report = picture._report
    assert len(rows(picture.events())) == 2 + report.expected
    assert report.batch_id == "worst"
    for station, (since, until) in picture._spans.items():
        # The callback looked at the clock after its station had begun, in a step of its row.  The picture is a little
        # early: by what lies between the beginning of a step and that of its first station.
        assert since <= began[station] <= until + EARLY_NS
        runs = [(a, b) for what, a, b in picture._pieces[station] if what == "runs"]
        assert any(a <= began[station] <= b + EARLY_NS for a, b in runs)


def test_on_the_real_clock_no_moment_of_the_loop_is_given_away_twice() -> None:
    timeline = Timeline()
    trio.run(some_work, timeline, {})
    picture = timeline._picture()
    assert picture is not None
    pieces = sorted(
        [(began, ended) for rows in picture._pieces.values() for what, began, ended in rows if what == "runs"]
        + [(began, ended) for _, began, ended, _, _ in picture._others]
    )
    assert all(ended <= begun for (_, ended), (begun, _) in pairwise(pieces))
    given = sum(
        ended - began for rows in picture._pieces.values() for what, began, ended in rows if what == "runs"
    ) + sum(busy for _, _, _, busy, _ in picture._others)
    seen = sum(
        max(0, min(ended, picture._end) - max(began, picture._origin)) for _, began, ended, _, _ in picture._steps
    )
    assert given == seen


@pytest.fixture
async def done(timeline: Timeline, autojump_clock: MockClock) -> Timeline:
    async def callback(station_id: str, seconds: float) -> None:
        await trio.sleep(seconds)

    with timeline:
        async with BatchResultAggregator(callback, None, observers=[timeline]) as aggregator:
            await aggregator.run("b", {"S001": 1.0, "</script>\n\ud800": 2.0})
    return timeline


async def test_the_file_is_plain_json_and_the_sentence_says_how_to_open_it(
    done: Timeline, autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "worst.json"
    sentence = done.write(path)
    assert "https://ui.perfetto.dev" in sentence
    assert f"vizviewer {path}" in sentence
    trace = json.loads(path.read_text())
    assert list(rows(trace["traceEvents"])) == ["the batch", "everything else", "S001", "</script>\\n\\ud800"]


async def test_viztracer_makes_a_page_or_packs_it(done: Timeline, autojump_clock: MockClock, tmp_path: Path) -> None:
    pytest.importorskip("viztracer")
    assert "in a browser" in done.write(tmp_path / "worst.html")
    page = (tmp_path / "worst.html").read_text()
    assert '"no_output"' in page
    assert "vizviewer" in done.write(tmp_path / "worst.json.gz")
    with gzip.open(tmp_path / "worst.json.gz", "rt") as packed:
        assert "S001" in rows(json.load(packed)["traceEvents"])


async def test_without_viztracer_a_page_ends_with_a_sentence_and_json_works(
    done: Timeline, autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "viztracer", None)
    monkeypatch.setitem(sys.modules, "viztracer.report_builder", None)
    with pytest.raises(SystemExit, match=r"pip install '\.\[bench\]'"):
        done.write(tmp_path / "worst.html")
    done.write(tmp_path / "worst.json")


async def test_a_name_of_no_known_format_is_refused(done: Timeline, autojump_clock: MockClock, tmp_path: Path) -> None:
    pytest.importorskip("viztracer")
    with pytest.raises(SystemExit, match=r"\.json, \.json\.gz or \.html"):
        done.write(tmp_path / "worst.txt")
