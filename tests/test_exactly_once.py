"""Exactly once: a list and the offset of its message are committed together, or neither is."""

from __future__ import annotations

import logging
import os
import signal

import pytest
import trio
from aiokafka.producer import sender
from aiokafka.producer.sender import EndTxnHandler
from broker import Broker, Kafka, create_topic, read_all, unique
from confluent_kafka import Producer
from load import Load, all_committed, double, until

import trioagg


async def a_moment(station_id: str, module_input: dict) -> dict:
    await trio.sleep(0.02)
    return await double(station_id, module_input)


class Transactions(Load):
    def service(self, **settings: object) -> trioagg.AsyncDataAnalysisService:
        return super().service(**{"delivery": "exactly_once", **settings})

    def once_each(self) -> bool:
        lists = self.lists()
        return len(lists) == self.sent and set(lists.values()) == {1}


async def test_every_list_is_there_once_and_everything_is_committed(kafka: Kafka) -> None:
    load = Transactions(kafka.bootstrap, 500)
    service = load.service()
    with trio.fail_after(60):
        async with service.start(double):
            await until(lambda: service.statistics().uploaded == 500)
    assert load.once_each()
    assert load.committed() == load.ends()
    # Many lists in one transaction: else there would be as many as lists.
    assert service.statistics().kafka.commits < 100
    assert service.statistics().kafka.transactional_producers == 2


async def test_a_list_that_waits_for_nobody_is_up_soon(kafka: Kafka) -> None:
    load = Transactions(kafka.bootstrap, 1)
    service = load.service(transaction_linger=0.02)
    with trio.fail_after(60):
        async with service.start(double):
            await until(lambda: service.statistics().uploaded == 1)
            load.send(1)
            with trio.fail_after(3):
                await until(lambda: service.statistics().uploaded == 2)


async def test_the_lists_of_a_partition_have_the_order_of_its_messages(kafka: Kafka) -> None:
    load = Transactions(kafka.bootstrap, 60)

    async def the_first_is_last(station_id: str, module_input: dict) -> dict:
        answer = await double(station_id, module_input)
        await trio.sleep(0.3 if answer["number"] % 10 < 2 else 0)
        return answer

    service = load.service(upload_order="partition")
    with trio.fail_after(60):
        async with service.start(the_first_is_last):
            await until(lambda: service.statistics().uploaded == 60)
    offsets: dict[str, list[int]] = {}
    for result in read_all(kafka.bootstrap, load.results):
        _, partition, offset, _ = result.key().decode().rsplit("_", 3)
        offsets.setdefault(partition, []).append(int(offset))
    # By partition of the result topic too: a key goes to one of them.
    assert sum(map(len, offsets.values())) == 60


async def test_leaving_the_block_in_the_middle_repeats_nothing(kafka: Kafka) -> None:
    load = Transactions(kafka.bootstrap, 1000)
    for stop_at in (40, 120):
        service = load.service()
        with trio.fail_after(60):
            async with service.start(a_moment):
                await until(lambda: service.statistics().uploaded >= stop_at)  # noqa: B023 - it ends before the next
    service = load.service()
    with trio.fail_after(60):
        async with service.start(a_moment):
            await all_committed(load)
    assert load.once_each()


async def test_a_cancelled_service_leaves_nothing_half_done(kafka: Kafka) -> None:
    load = Transactions(kafka.bootstrap, 1000)
    for stop_at in (20, 60, 100):
        service = load.service()
        with trio.move_on_after(60) as scope:
            async with service.start(a_moment):
                await until(lambda: service.statistics().uploaded >= stop_at)  # noqa: B023 - it ends before the next
                scope.cancel()
                await trio.sleep_forever()
    service = load.service()
    with trio.fail_after(60):
        async with service.start(a_moment):
            await all_committed(load)
    assert load.once_each()


async def test_members_that_come_and_go_repeat_nothing(kafka: Kafka) -> None:
    load = Transactions(kafka.bootstrap, 1500, partitions=4)

    async def a_while(station_id: str, module_input: dict) -> dict:
        await trio.sleep(0.15)
        return await double(station_id, module_input)

    async def come_and_go(first: float) -> None:
        await trio.sleep(first)
        while not done.is_set():
            async with load.service(max_batches_in_flight=20).start(a_while):
                with trio.move_on_after(2):
                    await done.wait()

    done = trio.Event()
    with trio.fail_after(110):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_and_go, 0)
            nursery.start_soon(come_and_go, 1)
            async with load.service(max_batches_in_flight=20).start(a_while):
                await all_committed(load, 100)
                done.set()
    assert load.once_each()


async def test_a_broker_that_does_not_answer_for_longer_than_a_transaction_repeats_nothing(own_broker: Broker) -> None:
    load = Transactions(own_broker.bootstrap, 300)
    service = load.service(max_batches_in_flight=20)
    with trio.fail_after(110):
        async with service.start(a_moment):
            await until(lambda: service.statistics().uploaded >= 50)
            own_broker.freeze()
            await trio.sleep(7)  # the time of a transaction is 4 s, that of the session 6 s
            own_broker.thaw()
            await until(lambda: service.statistics().uploaded == 300, 90)
    assert load.once_each()
    assert load.committed() == load.ends()


async def test_who_is_fenced_gives_the_partition_up_and_makes_no_producer_before_it_is_assigned_again(
    kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    load = Transactions(kafka.bootstrap, 20, partitions=1)
    caplog.set_level(logging.WARNING, "trioagg")
    service = load.service()
    with trio.fail_after(90):
        async with service.start(a_moment):
            await until(lambda: service.statistics().uploaded == 20)
            rival = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": f"{load.group}/{load.topic}/0"})
            await trio.to_thread.run_sync(rival.init_transactions, 10.0)
            load.send(20)
            # Nobody else is in the group, so the partition comes back, with the next assignment.
            await until(lambda: service.statistics().kafka.transactional_producers == 2)
            assert service.statistics().kafka.rebalances == 1
            await until(lambda: service.statistics().uploaded == 40)
    assert "belongs to another member now" in caplog.text
    assert service.statistics().kafka.transactional_producers == 2
    assert load.once_each()
    assert load.committed() == load.ends()


async def test_a_list_larger_than_we_hand_to_kafka_at_all_ends_the_service(kafka: Kafka) -> None:
    load = Transactions(kafka.bootstrap, 2)

    async def huge(station_id: str, module_input: dict) -> dict:
        return {"huge": "x" * (12 * 1024 * 1024)}

    with trio.fail_after(90), pytest.raises(trioagg.UploadFailed) as caught:
        async with load.service().start(huge):
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, trioagg.MessageTooLarge)
    assert "it is larger than 33554432 bytes" in str(caught.value.__cause__)
    assert not load.committed()[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"delivery": "exactly_once"}, "needs a result_topic"),
        ({"delivery": "at_most_once"}, "use 'at_least_once' or 'exactly_once'"),
        ({"delivery": "exactly_once", "result_topic": "out", "transaction_linger": -1}, "transaction_linger=-1"),
    ],
)
def test_a_wrong_setting_is_named(arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        trioagg.AsyncDataAnalysisService("service", ["in"], **arguments)


@pytest.mark.parametrize("handler", ["batch_upload_handler", "report_handler"])
def test_there_is_no_handler_whose_effects_could_not_be_undone(handler: str) -> None:
    service = trioagg.AsyncDataAnalysisService("service", ["in"], delivery="exactly_once", result_topic="out")
    with pytest.raises(ValueError, match="could not be undone"):
        service.start(double, **{handler: print})


async def test_what_a_broker_acknowledged_and_forgot_is_there_once_all_the_same(
    own_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Kafka 4.3, killed at the moment at which it answers a commit, forgets to write what it has promised: not every
    # time, but in about half of them.
    load = Transactions(own_broker.bootstrap)
    load.results = create_topic(own_broker.bootstrap, unique("out"), 12)  # a later transaction touches few of them
    answered, released = trio.Event(), trio.Event()
    answered.set()

    async def once_released(station_id: str, module_input: dict) -> dict:
        await released.wait()  # no commit while messages are being sent
        return await double(station_id, module_input)

    class KillingHandler(EndTxnHandler):
        async def do(self, node_id: int) -> object:
            done = await super().do(node_id)
            if not answered.is_set():
                os.kill(own_broker.pid, signal.SIGKILL)
                answered.set()
            return done

    monkeypatch.setattr(sender, "EndTxnHandler", KillingHandler)
    service = load.service()
    with trio.fail_after(110):
        async with service.start(once_released):
            await until(lambda: service.statistics().kafka.transactional_producers == 2)
            for _ in range(2):
                released = trio.Event()
                await trio.to_thread.run_sync(load.send, 20)
                answered = trio.Event()
                released.set()
                await answered.wait()
                own_broker.kill()
                await trio.to_thread.run_sync(own_broker.start)
                load.send(2)
                await all_committed(load)
                lists = load.lists()
                assert set(lists.values()) == {1}
                assert len(lists) == load.sent
