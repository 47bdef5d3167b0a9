"""What was up when a member was killed is not brought up again, wherever its messages stood."""

from __future__ import annotations

import functools
import json
import logging
import sys
from typing import TYPE_CHECKING

import pytest
import trio
from confluent_kafka import Consumer, KafkaException, TopicPartition
from load import Load, double, until

import trioagg
from trioagg import _kafka_commits
from trioagg._finished_offsets import decode_finished, encode_finished
from trioagg._watermark import Watermark

if TYPE_CHECKING:
    from pathlib import Path

    from broker import Kafka

KILLED = """
import json, sys
import trio
import trioagg

topic, group, bootstrap, results, hung = json.loads(sys.argv[1])

async def callback(station_id, module_input):
    if module_input[topic][0]["number"] in hung:
        await trio.sleep_forever()
    return {"station_id": station_id}

async def main():
    kafka = trioagg.KafkaSettings(session_timeout=6.0, heartbeat_interval=0.5, group_instance_id="one")
    service = trioagg.AsyncDataAnalysisService(
        group, [topic], bootstrap_servers=bootstrap, result_topic=results, kafka=kafka, batch_timeout=600,
        commit_interval=0.2,
    )
    async with service.start(callback):
        while True:
            statistics = service.statistics()
            print(statistics.uploaded, statistics.kafka.commits, flush=True)
            await trio.sleep(0.05)

trio.run(main)
"""


async def test_after_a_kill_only_what_was_not_up_is_done_again(
    kafka: Kafka, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    load = Load(kafka.bootstrap, 50, partitions=1)
    hung = [0, 3, 17, 30, 49]
    arguments = json.dumps([load.topic, load.group, kafka.bootstrap, load.results, hung])
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    process = await trio.lowlevel.open_process([sys.executable, str(program), arguments])
    try:
        # Its commits tell of 45 lists; how far they say it is stays 0, for the first one hangs.
        await until(lambda: len(finished_beyond(load)) == 45)
    finally:
        process.kill()
        await process.wait()
    assert load.committed() == {0: 0}
    again: list[int] = []

    async def noted(station_id: str, module_input: dict) -> dict:
        answer = await double(station_id, module_input)
        if station_id == "S000":
            again.append(answer["number"])
        return answer

    service = load.service(
        kafka=trioagg.KafkaSettings(session_timeout=6.0, heartbeat_interval=0.5, group_instance_id="one")
    )
    with trio.fail_after(60):
        async with service.start(noted):
            await until(lambda: service.statistics().uploaded == 5)
    with capsys.disabled():
        print(f"\nafter a kill with 45 of 50 lists up, {len(again)} again; by the watermark alone it would be 50")
    assert sorted(again) == hung
    assert service.statistics().kafka.already_done == 45
    assert set(load.lists().values()) == {1}
    assert load.committed() == load.ends()


def finished_beyond(load: Load) -> frozenset[int]:
    """What the group's last commit says is finished beyond it; nothing as long as nobody can say."""
    consumer = Consumer({"bootstrap.servers": load.bootstrap, "group.id": load.group})
    try:
        (found,) = consumer.committed([TopicPartition(load.topic, 0)], timeout=15)
        return decode_finished(found.offset, found.metadata or "")
    except (KafkaException, ValueError):
        return frozenset()  # a coordinator that is only being made; librdkafka's text is now and then too long
    finally:
        consumer.close()


@pytest.mark.parametrize("metadata", ["somebody else's", "trioagg1:r:AAAA", '{"v": 1}'])
async def test_metadata_that_is_not_ours_is_ignored_with_a_warning(
    kafka: Kafka, metadata: str, caplog: pytest.LogCaptureFixture
) -> None:
    load = Load(kafka.bootstrap, 10, partitions=1)
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": load.group})
    consumer.commit(offsets=[TopicPartition(load.topic, 0, 4, metadata)], asynchronous=False)
    consumer.close()
    caplog.set_level(logging.WARNING, "trioagg")
    service = load.service()
    with trio.fail_after(60):
        async with service.start(double):
            await until(lambda: service.statistics().uploaded == 6)
    assert f"{load.topic}/0: the metadata committed with offset 4 is not used" in caplog.text
    assert load.committed() == load.ends()


async def test_a_group_that_was_set_back_does_everything_again(kafka: Kafka) -> None:
    load = Load(kafka.bootstrap, 10, partitions=1)
    first = load.service(commit_interval=0.1, batch_timeout=600)

    async def one_hangs(station_id: str, module_input: dict) -> dict:
        answer = await double(station_id, module_input)
        if answer["number"] == 5:
            await trio.sleep_forever()
        return answer

    with trio.move_on_after(60) as scope:
        async with first.start(one_hangs):
            await until(lambda: first.statistics().uploaded == 9 and len(finished_beyond(load)) == 4)
            scope.cancel()
            await trio.sleep_forever()
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": load.group})
    consumer.commit(offsets=[TopicPartition(load.topic, 0, 2)], asynchronous=False)
    consumer.close()
    second = load.service()
    with trio.fail_after(60):
        async with second.start(double):
            await until(lambda: second.statistics().uploaded == 8)
    assert second.statistics().kafka.already_done == 0


async def test_when_a_commit_cannot_tell_of_all_that_is_finished_no_more_is_fetched(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Load(kafka.bootstrap, 40, partitions=1)
    monkeypatch.setattr(_kafka_commits, "encode_finished", functools.partial(encode_finished, limit=30))
    first_may_end = trio.Event()

    async def the_first_waits(station_id: str, module_input: dict) -> dict:
        answer = await double(station_id, module_input)
        if answer["number"] % 4 == 0:
            await first_may_end.wait()
        return answer

    service = load.service(commit_interval=0.1, batch_timeout=600, max_batches_in_flight=30)
    with trio.fail_after(60):
        async with service.start(the_first_waits):
            await until(lambda: service.statistics().kafka.commits > 0)
            delivered = service.statistics().kafka.records_delivered
            load.send(20)
            await trio.sleep(1)
            assert service.statistics().kafka.records_delivered <= delivered + 30
            first_may_end.set()
            await until(lambda: service.statistics().uploaded == 60)
    assert load.committed() == load.ends()


def test_what_is_finished_behind_an_unfinished_message_is_known() -> None:
    mark = Watermark()
    for offset in range(0, 20, 2):
        mark.deliver(offset)
    for offset in (4, 8, 12):
        mark.finish(offset)
    assert (mark.base, mark.beyond) == (0, (4, 8, 12))
    mark.finish(0)
    mark.finish(2)
    assert (mark.base, mark.beyond) == (6, (8, 12))


def test_a_finished_message_can_be_opened_again_until_it_is_committed() -> None:
    mark = Watermark()
    for offset in (5, 6, 7, 8):
        mark.deliver(offset)
        mark.finish(offset)
    mark.committed(6)
    mark.reopen(7)
    assert (mark.in_flight, mark.base, mark.beyond, mark.committable) == (1, 7, (8,), 7)
    mark.reopen(8)
    mark.finish(8)
    assert mark.finish(7)
    assert (mark.in_flight, mark.committable, mark.uncommitted) == (0, 9, 3)
    with pytest.raises(ValueError, match="offset 5 is not finished, or was committed"):
        mark.reopen(5)
