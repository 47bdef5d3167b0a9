"""Dead letters that are run again: the failed stations of each, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import trio
from broker import Kafka, committed, produce, read_all
from load import QUICK, DeadLoad, Load, double, until

import trioagg
from trioagg import Replayed, TopicUnavailable, replay

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Letters(DeadLoad):
    """A load whose station S001 fails, and S002 too where the number is even; each message becomes a letter."""

    async def make(self, count: int) -> None:
        self.send(count)

        async def failing(station_id: str, given: dict) -> dict:
            answer = await double(station_id, given)
            if station_id == "S001" or (station_id == "S002" and answer["number"] % 2 == 0):
                raise ValueError("no data")
            return answer

        service = self.service(dead_letter_stations=["failed"], dead_letter_limit=None)
        async with service.start(failing):
            await until(lambda: service.statistics().dead_letters == count)

    async def replay(self, callback: Callable, **settings: Any) -> Replayed:
        settings = {"result_topic": self.results, "bootstrap_servers": self.bootstrap, "kafka": QUICK, **settings}
        return await replay(callback, self.dead, **settings)

    def results_by_batch(self) -> dict[str, list[tuple[bytes | None, list[str]]]]:
        """Batch id -> every list of it: whether it is a supplement, and its stations."""
        found: dict[str, list[tuple[bytes | None, list[str]]]] = {}
        for message in read_all(self.bootstrap, self.results):
            value = json.loads(message.value())
            headers = dict(message.headers())
            assert message.key().decode() == value["batch_id"]
            entry = headers.get("trioagg-supplement"), sorted(result["station_id"] for result in value["results"])
            found.setdefault(value["batch_id"], []).append(entry)
        return found


async def test_just_the_failed_stations_of_fifty_letters_are_run_again_and_a_second_run_does_nothing(
    kafka: Kafka,
) -> None:
    letters = Letters(kafka.bootstrap)
    ran: Counter[tuple[str, int]] = Counter()

    async def mended(station_id: str, given: dict) -> dict:
        answer = await double(station_id, given)
        ran[station_id, answer["number"]] += 1
        return answer

    with trio.fail_after(100):
        await letters.make(50)
        before = letters.committed()
        first = await letters.replay(mended)
        assert (first.letters, first.batches, first.stations) == (50, 50, 75)
        assert (first.succeeded, first.failed_again, first.unreadable) == (75, 0, 0)
        assert ran == Counter(
            [("S001", number) for number in range(50)] + [("S002", number) for number in range(0, 50, 2)]
        )
        second = await letters.replay(mended)
        assert (second.letters, second.batches) == (0, 0)
    lists = letters.results_by_batch()
    assert len(lists) == 50
    for entries in lists.values():
        assert len(entries) == 2
        (_, whole), (_, supplement) = sorted(entries, key=lambda entry: entry[0] is not None)
        assert sorted(whole + supplement) == ["S000", "S001", "S002"]
        assert sorted(entry[0] is None for entry in entries) == [False, True]
    # The group of the service knows nothing of it.
    assert letters.committed() == before


async def test_what_fails_again_is_a_letter_again_for_the_next_time(kafka: Kafka) -> None:
    letters = Letters(kafka.bootstrap)
    tries: Counter[str] = Counter()

    async def better(station_id: str, given: dict) -> dict:
        tries[station_id] += 1
        if station_id == "S001" and tries[station_id] <= 3:
            raise ValueError("still no data")
        return await double(station_id, given)

    with trio.fail_after(100):
        await letters.make(4)
        first = await letters.replay(better)
        assert (first.letters, first.stations, first.failed_again) == (4, 6, 3)
        second = await letters.replay(better)
        assert (second.letters, second.stations, second.failed_again) == (3, 3, 0)
        third = await letters.replay(better)
        assert third.letters == 0
    assert tries == {"S001": 7, "S002": 2}
    again = letters.letters()[4:]
    assert {dict(letter.headers())["trioagg-exception-text"] for letter in again} == {b"still no data"}
    assert {dict(letter.headers())["trioagg-topic"] for letter in again} == {letters.topic.encode()}


async def test_more_letters_than_may_be_in_flight_are_all_run(kafka: Kafka) -> None:
    letters = Letters(kafka.bootstrap)

    async def slow(station_id: str, given: dict) -> dict:
        await trio.sleep(0.05)
        return await double(station_id, given)

    with trio.fail_after(100):
        await letters.make(60)
        done = await letters.replay(slow, max_batches_in_flight=5)
    assert (done.batches, done.failed_again) == (60, 0)


async def test_letters_that_are_slow_to_read_are_all_run(kafka: Kafka) -> None:
    # Whatever waits to be read when the last one has come from Kafka.
    load = Load(kafka.bootstrap)
    load.send(60, stations=2000)

    async def callback(station_id: str, given: dict) -> None:
        return None

    settings = {"bootstrap_servers": kafka.bootstrap, "kafka": QUICK, "group_id": f"{load.group}-replay"}
    with trio.fail_after(100):
        done = await replay(callback, load.topic, result_topic=load.results, **settings)
    assert (done.letters, done.batches) == (60, 60)


async def test_the_letters_of_other_partitions_stay_as_they_are(kafka: Kafka) -> None:
    load = Load(kafka.bootstrap, 6)
    settings = {
        "bootstrap_servers": kafka.bootstrap,
        # The service's own settings may be given: where it begins is no matter here.
        "kafka": trioagg.KafkaSettings(session_timeout=6.0, heartbeat_interval=0.5, start_offset="latest"),
        "group_id": f"{load.group}-replay",
        "result_topic": load.results,
    }
    with trio.fail_after(100):
        assert (await replay(double, load.topic, partition=0, **settings)).batches == 3
        with pytest.raises(ValueError, match=r"partition=7: topic .* has 2"):
            await replay(double, load.topic, partition=7, **settings)
        assert (await replay(double, load.topic, **settings)).batches == 3


async def test_a_letter_with_headers_that_cannot_be_read_costs_the_others_nothing(kafka: Kafka) -> None:
    letters = Letters(kafka.bootstrap)
    good = json.dumps([{"stationId": "S1", "number": 1}]).encode()
    about = [("trioagg-topic", b"in"), ("trioagg-partition", b"0"), ("trioagg-offset", b"1")]
    for wrong in ([*about[:2], ("trioagg-offset", b"x")], [*about, ("trioagg-reason", b"stations"), _STATIONS]):
        produce(kafka.bootstrap, letters.dead, [(None, good, 0, wrong)])
    produce(kafka.bootstrap, letters.dead, [(None, good, 0, about)])
    with trio.fail_after(60):
        done = await letters.replay(double)
    assert (done.letters, done.unreadable, done.batches) == (3, 2, 1)


_STATIONS = ("trioagg-stations", b'[["S1"]]')


async def test_stations_without_an_answer_are_letters_again_whatever_the_reason(kafka: Kafka) -> None:
    letters = Letters(kafka.bootstrap)

    async def first_come(station_id: str, given: dict) -> dict:
        await trio.sleep(0.5 if station_id == "S002" else 0)
        return await double(station_id, given)

    with trio.fail_after(100):
        await letters.make(2)
        done = await letters.replay(first_come, quorum=1)
        assert (done.stations, done.failed_again) == (3, 1)
        assert (await letters.replay(double)).stations == 1


async def test_a_dry_run_says_what_would_be_done_and_does_nothing(kafka: Kafka) -> None:
    letters = Letters(kafka.bootstrap)
    lines: list[str] = []

    async def never(station_id: str, given: dict) -> dict:
        raise AssertionError("nobody asked for it")

    with trio.fail_after(100):
        await letters.make(3)
        for _ in range(2):
            done = await letters.replay(never, dry_run=True, told=lines.append, result_topic=None)
            assert (done.letters, done.batches, done.stations) == (3, 3, 5)
    assert len(lines) == 6
    assert lines[0].startswith(f"message {letters.dead}/0/0: batch {letters.topic}_")
    assert set(committed(kafka.bootstrap, f"{letters.dead}-replay", letters.dead).values()) == {None}


async def test_a_dry_run_does_not_disturb_a_replay_that_runs(kafka: Kafka) -> None:
    load = Load(kafka.bootstrap, 5, partitions=1)
    group = f"{load.group}-replay"
    settings = {"bootstrap_servers": kafka.bootstrap, "kafka": QUICK, "group_id": group, "result_topic": load.results}
    ran: Counter[str] = Counter()
    lines: list[str] = []
    may_go_on = trio.Event()

    async def held(station_id: str, given: dict) -> dict:
        answer = await double(station_id, given)
        ran[f"{answer['number']} {station_id}"] += 1
        await may_go_on.wait()
        return answer

    async def run() -> None:
        nonlocal done
        done = await replay(held, load.topic, batch_timeout=60, **settings)

    done = Replayed()
    with trio.fail_after(60):
        assert (await replay(double, load.topic, last_offset=1, **settings)).batches == 2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await until(lambda: ran.total() == 9)
            before = committed(kafka.bootstrap, group, load.topic)
            dry = await replay(double, load.topic, dry_run=True, told=lines.append, **settings)
            assert committed(kafka.bootstrap, group, load.topic) == before == {0: 2}
            may_go_on.set()
    assert (dry.letters, dry.batches, dry.stations) == (3, 3, 9)
    assert [line.split(":")[0] for line in lines] == [f"message {load.topic}/0/{offset}" for offset in (2, 3, 4)]
    assert (done.letters, done.batches) == (3, 3)
    assert set(ran.values()) == {1}
    assert committed(kafka.bootstrap, group, load.topic) == {0: 5}


async def test_whole_batches_can_be_run_again(kafka: Kafka) -> None:
    letters = Letters(kafka.bootstrap)
    with trio.fail_after(100):
        await letters.make(2)
        done = await letters.replay(double, only_failed=False)
        assert (done.batches, done.stations) == (2, 6)
    for entries in letters.results_by_batch().values():
        assert (b"false", ["S000", "S001", "S002"]) in entries


async def test_a_range_of_an_ordinary_topic_can_be_run_again(kafka: Kafka) -> None:
    load = Load(kafka.bootstrap, 20)
    ran: list[int] = []

    async def callback(station_id: str, given: dict) -> dict:
        answer = await double(station_id, given)
        ran.append(answer["number"])
        return answer

    with trio.fail_after(60):
        done = await replay(
            callback,
            load.topic,
            result_topic=load.results,
            bootstrap_servers=kafka.bootstrap,
            kafka=QUICK,
            group_id=f"{load.group}-replay",
            partition=1,
            first_offset=3,
            last_offset=5,
        )
    assert done.batches == 3
    # Odd numbers are in partition 1.
    assert sorted(set(ran)) == [7, 9, 11]
    assert len(load.lists()) == 3
    assert load.committed() == {0: None, 1: None}


async def test_poison_is_poison_still_and_costs_the_others_nothing(kafka: Kafka) -> None:
    letters = Letters(kafka.bootstrap)
    produce(kafka.bootstrap, letters.topic, [(None, b"{", 0)])
    with trio.fail_after(100):
        service = letters.service(dead_letter_stations=["failed"], dead_letter_limit=None)
        async with service.start(double):
            await until(lambda: service.statistics().dead_letters == 1)
        await letters.make(0)
        done = await letters.replay(double)
    assert (done.letters, done.unreadable, done.batches) == (1, 1, 0)


async def test_somebody_has_to_get_the_lists() -> None:
    with pytest.raises(ValueError, match="nobody would get the lists"):
        await replay(double, "letters")


async def test_a_topic_that_is_not_there_is_said_so(kafka: Kafka) -> None:
    with trio.fail_after(60), pytest.raises(TopicUnavailable, match="no-such-letters"):
        await replay(
            double, "no-such-letters", result_topic="x", bootstrap_servers=kafka.bootstrap, connect_timeout=3.0
        )


async def test_the_command_replays_and_says_what_it_did(kafka: Kafka, tmp_path: Path) -> None:
    letters = Letters(kafka.bootstrap)
    (tmp_path / "model.py").write_text(
        "async def process(station_id, given):\n    return {'station_id': station_id}\n", encoding="utf-8"
    )
    command = [
        *(sys.executable, "-m", "trioagg", "replay", "model:process", "--from-topic", letters.dead),
        *("--result-topic", letters.results, "--bootstrap-servers", kafka.bootstrap, "--only-failed"),
    ]
    with trio.fail_after(100):
        await letters.make(5)
        dry = await trio.run_process([*command, "--dry-run"], cwd=tmp_path, capture_stdout=True)
        assert b"would run 7 stations of 5 batches again" in dry.stdout or (
            b"would run 8 stations of 5 batches again" in dry.stdout
        )
        assert dry.stdout.count(b": batch ") == 5
        ran = await trio.run_process(command, cwd=tmp_path, capture_stdout=True)
        assert b"5 batches are up" in ran.stdout
        again = await trio.run_process(command, cwd=tmp_path, capture_stdout=True)
        assert b"0 batches are up" in again.stdout
    assert sum(len(entries) for entries in letters.results_by_batch().values()) == 10


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("model", "module:function"),
        ("no_such_module:process", "No module named 'no_such_module'"),
        ("json:no_such_function", "json has no no_such_function"),
    ],
)
def test_a_callback_that_cannot_be_found_is_said_so(what: str, said: str) -> None:
    command = [sys.executable, "-m", "trioagg", "replay", what, "--from-topic", "x", "--dry-run"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert said in ended.stderr
