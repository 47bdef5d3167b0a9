"""Orders of events in which something was lost, hung or came twice once; found by reading with hostile eyes."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
import trio
from broker import Kafka, delete_topic, produce
from confluent_kafka import Consumer, TopicPartition
from load import DeadLoad, Load, double, message, until

import trioagg
from trioagg import DeadLetterLimit, TooManyDeadLetters, TopicUnavailable


# a refused list, staged after one of a higher offset.
async def test_a_refused_list_that_was_staged_after_a_later_one_does_not_stop_the_partition(kafka: Kafka) -> None:
    load = DeadLoad(kafka.bootstrap, 2, partitions=1)

    async def first_is_large_and_slow(station_id: str, module_input: dict) -> dict:
        number = (await double(station_id, module_input))["number"]
        if number == 0:
            await trio.sleep(0.3)
            return {"large": "x" * 600_000}
        return {"number": number}

    service = load.service(delivery="exactly_once", on_upload_failure="dead_letter")
    with trio.fail_after(60):
        async with service.start(first_is_large_and_slow):
            await until(lambda: service.statistics().uploaded == 1 and service.statistics().dead_letters == 1)


# committed offset beyond the end (topic made anew), exactly once.
async def test_after_an_offset_reset_lists_go_up(kafka: Kafka) -> None:
    load = Load(kafka.bootstrap, 20, partitions=1)
    setter = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": load.group})
    setter.commit(offsets=[TopicPartition(load.topic, 0, 1000)], asynchronous=False)
    setter.close()
    service = load.service(delivery="exactly_once", drain_timeout=3.0)
    with trio.fail_after(60):
        async with service.start(double):
            await until(lambda: service.statistics().kafka.records_delivered == 20)
            await trio.sleep(3)
            assert service.statistics().uploaded == 20
    assert len(load.lists()) == 20


# a header without a value.
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_poison_with_a_null_header_becomes_a_letter(kafka: Kafka, delivery: str) -> None:
    load = DeadLoad(kafka.bootstrap, partitions=1)
    produce(kafka.bootstrap, load.topic, [(b"k", b"{", 0, [("h", None)])])
    service = load.service(delivery=delivery, drain_timeout=3.0)
    with trio.fail_after(60):
        async with service.start(double):
            await until(lambda: service.statistics().dead_letters == 1, 6)


# the letter of some stations is refused, with "skip".
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_a_refused_letter_of_stations_does_not_lose_the_list(kafka: Kafka, delivery: str) -> None:
    load = DeadLoad(kafka.bootstrap, 0, partitions=1, **{"max.message.bytes": "300"})
    produce(kafka.bootstrap, load.topic, [(None, message(0, 20), 0)])

    async def one_fails(station_id: str, module_input: dict) -> dict:
        if station_id == "S001":
            raise ValueError
        return {}

    service = load.service(delivery=delivery, on_upload_failure="skip", dead_letter_stations=["failed"])
    outcome = "went on"
    with trio.fail_after(60):
        try:
            async with service.start(one_fails):
                with trio.move_on_after(10):
                    # In a thread: it may wait for us.
                    while not (await trio.to_thread.run_sync(load.committed))[0]:
                        await trio.sleep(0.2)
        except trioagg.DeadLetterRefused:
            outcome = "stopped"
    assert outcome == "stopped" or len(load.lists()) == 1


# the brake and what it raises for stations.
@pytest.mark.parametrize("policy", ["stop", "skip", "dead_letter"])
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_the_brake_for_stations_stops_the_service(kafka: Kafka, policy: str, delivery: str) -> None:
    load = DeadLoad(kafka.bootstrap, 30, partitions=1)

    async def fails(station_id: str, module_input: dict) -> dict:
        raise ValueError

    service = load.service(
        delivery=delivery,
        on_upload_failure=policy,
        dead_letter_stations=["failed"],
        dead_letter_limit=DeadLetterLimit(max_consecutive=10),
    )
    error: BaseException | None = None
    with trio.fail_after(60):
        try:
            async with service.start(fails):
                with trio.move_on_after(4):
                    await trio.sleep_forever()
        except BaseException as e:  # whatever came out is looked at below
            error = e
    assert isinstance(error, TooManyDeadLetters)


# the result topic is deleted, exactly once.
async def test_a_result_topic_that_is_deleted_is_said_in_exactly_once(kafka: Kafka) -> None:
    load = Load(kafka.bootstrap, 1, partitions=1)
    settings = trioagg.KafkaSettings(session_timeout=6.0, heartbeat_interval=0.5, request_timeout=2.0)
    service = load.service(delivery="exactly_once", kafka=settings, drain_timeout=2.0)
    error: BaseException | None = None
    with trio.fail_after(90):
        try:
            async with service.start(double):
                await until(lambda: service.statistics().uploaded == 1)
                delete_topic(kafka.bootstrap, load.results)
                load.send(1)
                with trio.move_on_after(25):
                    await trio.sleep_forever()
        except BaseException as e:  # whatever came out is looked at below
            error = e
    assert isinstance(error, trioagg.UploadFailed | TopicUnavailable)


# linger 0 keeps a core busy.
async def test_a_linger_of_nothing_does_not_keep_a_core_busy(kafka: Kafka) -> None:
    load = Load(kafka.bootstrap, 1, partitions=1)
    service = load.service(delivery="exactly_once", transaction_linger=0.0)
    with trio.fail_after(60):
        async with service.start(double):
            await until(lambda: service.statistics().uploaded == 1)
            cpu = time.process_time()
            await trio.sleep(2)
            used = time.process_time() - cpu
    assert used < 1


# a list and its letter: the list refused.
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_a_refused_list_with_a_letter_for_stations_has_one_letter_and_is_counted_once(
    kafka: Kafka, delivery: str
) -> None:
    load = DeadLoad(kafka.bootstrap, 1, partitions=1)

    async def large(station_id: str, module_input: dict) -> dict:
        if station_id == "S001":
            raise ValueError
        return {"large": "x" * 600_000}

    service = load.service(delivery=delivery, on_upload_failure="dead_letter", dead_letter_stations=["failed"])
    with trio.fail_after(60):
        async with service.start(large):
            await until(lambda: service.statistics().dead_letters == 1, 10)
    letters = load.letters()
    assert len(letters) == service.statistics().dead_letters == 1


# a revoke while a producer is being made.
async def test_a_revoke_while_a_producer_is_made_does_not_crash(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from trioagg import _kafka_group, _kafka_transactions

    monkeypatch.setattr(_kafka_group, "_REVOKE_COMMIT_SECONDS", 2.0)
    load = Load(kafka.bootstrap, 2, partitions=2)
    service = load.service(delivery="exactly_once", drain_timeout=5.0)
    second = load.service(delivery="exactly_once", drain_timeout=5.0)
    error: BaseException | None = None
    with trio.fail_after(90):
        try:
            async with service.start(double):
                await until(lambda: service.statistics().uploaded == 2)
                kafka_side: Any = service._kafka
                group = kafka_side._source.group

                class Hangs(_kafka_transactions.aiokafka.AIOKafkaProducer):
                    async def start(self) -> None:
                        await asyncio.get_running_loop().create_future()

                # The transaction coordinator does not answer, while the group's does.
                for claim in group.claims.values():
                    claim.transactor._in_doubt = 999
                with monkeypatch.context() as patch:
                    patch.setattr(_kafka_transactions.aiokafka, "AIOKafkaProducer", Hangs)
                    # The committer must not hold the lock: it is the revoke's own try that is given up.
                    group.commits._interval = 3600.0
                    await trio.sleep(0.2)
                    load.send(2)
                    await trio.sleep(0.5)

                    async def other() -> None:
                        async with second.start(double):
                            await trio.sleep(8)

                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(other)
                        await until(lambda: service.statistics().kafka.rebalances >= 1, 20)
                        await trio.sleep(3)
                        nursery.cancel_scope.cancel()
        except BaseException as e:  # whatever came out is looked at below
            error = e
    assert error is None


# larger than anything that is handed to Kafka, exactly once.
async def test_a_list_beyond_our_own_limit_is_refused_in_exactly_once(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trioagg import _kafka_transactions

    monkeypatch.setattr(_kafka_transactions, "MAX_MESSAGE_BYTES", 20_000)  # instead of 32 MiB
    load = DeadLoad(kafka.bootstrap, 1, partitions=1)

    async def large(station_id: str, module_input: dict) -> dict:
        return {"large": "x" * 30_000}

    service = load.service(delivery="exactly_once", on_upload_failure="dead_letter", drain_timeout=3.0)
    with trio.fail_after(60):
        async with service.start(large):
            await until(lambda: service.statistics().dead_letters == 1, 8)


# a producer that is made for a claim that was closed meanwhile.
async def test_no_producer_is_made_for_a_claim_that_is_closed(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from trioagg import _kafka_group, _kafka_transactions

    caplog.set_level(logging.WARNING, "trioagg")
    monkeypatch.setattr(_kafka_group, "_REVOKE_COMMIT_SECONDS", 2.0)
    load = Load(kafka.bootstrap, 2, partitions=2)
    slow_session = trioagg.KafkaSettings(session_timeout=30.0, heartbeat_interval=0.5)
    service = load.service(delivery="exactly_once", drain_timeout=5.0, kafka=slow_session)
    second = load.service(delivery="exactly_once", drain_timeout=5.0, kafka=slow_session)
    with trio.fail_after(90):
        async with service.start(double):
            await until(lambda: service.statistics().uploaded == 2)
            kafka_side: Any = service._kafka
            group = kafka_side._source.group
            old = [claim.transactor for claim in group.claims.values()]
            original, slow = _kafka_transactions.aiokafka.AIOKafkaProducer.start, [True]

            async def start(self: Any) -> None:
                if slow[0]:  # the transactions' coordinator takes its time, the group's does not
                    await asyncio.sleep(7)
                await original(self)

            monkeypatch.setattr(_kafka_transactions.aiokafka.AIOKafkaProducer, "start", start)
            for transactor in old:
                transactor._in_doubt = 999
            load.send(2)
            await trio.sleep(0.5)
            slow[0] = False

            async def other() -> None:
                async with second.start(double):
                    await trio.sleep_forever()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(other)
                await trio.sleep(12)
                leaked = [t for t in old if t._ended and t._producer is not None]
                nursery.cancel_scope.cancel()
    assert not leaked


# the client's IllegalOperation is no KafkaError.
async def test_who_is_fenced_between_two_sends_is_only_fenced(kafka: Kafka) -> None:
    from confluent_kafka import Producer

    load = Load(kafka.bootstrap, 1, partitions=1)
    service = load.service(delivery="exactly_once", transaction_linger=0.5)
    with trio.fail_after(60):
        async with service.start(double):
            await until(lambda: service.statistics().uploaded == 1)
            kafka_side: Any = service._kafka
            (claim,) = kafka_side._source.group.claims.values()
            producer = claim.transactor._producer
            send, sent = producer.send, []

            async def send_with_pause(*args: object, **kwargs: object) -> object:
                if sent:  # as where it waits for its buffer, or for metadata
                    while not producer._txn_manager.is_fatal_error():
                        await asyncio.sleep(0.01)
                sent.append(1)
                return await send(*args, **kwargs)

            producer.send = send_with_pause
            rival = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": f"{load.group}/{load.topic}/0"})
            await trio.to_thread.run_sync(rival.init_transactions, 10.0)
            load.send(4)
            await until(lambda: service.statistics().uploaded >= 5, 30)


# the brake with a handler beside.
async def test_the_brake_is_not_tried_again(kafka: Kafka) -> None:
    load = DeadLoad(kafka.bootstrap, 3, partitions=1)
    calls: list[str] = []

    async def fails(station_id: str, module_input: dict) -> dict:
        raise ValueError

    async def handler(batch_id: str, results_list: list) -> None:
        calls.append(batch_id)

    service = load.service(
        result_topic=None, dead_letter_stations=["failed"], dead_letter_limit=DeadLetterLimit(max_consecutive=2)
    )
    error: BaseException | None = None
    with trio.fail_after(60):
        try:
            async with service.start(fails, handler):
                with trio.move_on_after(8):
                    await trio.sleep_forever()
        except BaseException as e:  # whatever came out is looked at below
            error = e
    assert isinstance(error, TooManyDeadLetters)
    assert len(calls) == len(set(calls))


# as 2, and a second member comes.
async def test_a_revoke_after_an_offset_reset_ends(kafka: Kafka) -> None:
    load = Load(kafka.bootstrap, 20, partitions=1)
    setter = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": load.group})
    setter.commit(offsets=[TopicPartition(load.topic, 0, 1000)], asynchronous=False)
    setter.close()
    service = load.service(delivery="exactly_once", drain_timeout=3.0, revoke_timeout=1.0)
    second = load.service(delivery="exactly_once", drain_timeout=3.0, revoke_timeout=1.0)
    with trio.fail_after(60):
        async with service.start(double):
            await until(lambda: service.statistics().kafka.records_delivered == 20)

            async def other() -> None:
                async with second.start(double):
                    await trio.sleep_forever()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(other)
                await until(lambda: service.statistics().kafka.rebalances == 1)
                began = trio.current_time()
                with trio.move_on_after(25):
                    # Sticky as the assignment is, its partition may well come back.
                    while service._kafka._source.group.rebalancing:
                        await trio.sleep(0.1)
                took = trio.current_time() - began
                nursery.cancel_scope.cancel()
    assert took < 13


# the offset is out of range while a batch is in flight, and the same offsets come again (a topic made anew).
async def test_what_was_in_flight_at_an_offset_reset_ends(kafka: Kafka) -> None:
    load = Load(kafka.bootstrap, 1, partitions=1)
    go, calls = trio.Event(), []

    async def held(station_id: str, module_input: dict) -> dict:
        calls.append(station_id)
        await go.wait()
        return await double(station_id, module_input)

    service = load.service(delivery="exactly_once", drain_timeout=3.0, batch_timeout=20.0, transaction_linger=0.5)
    with trio.fail_after(60):
        async with service.start(held):
            await until(lambda: len(calls) == 3)
            source: Any = service._kafka._source  # type: ignore[union-attr]
            (partition,) = source.group.claims
            source._consumer.seek(partition, 10_000)
            await until(lambda: len(calls) == 6)
            go.set()
            with trio.move_on_after(10):
                while service._aggregator.in_flight:
                    await trio.sleep(0.05)
            assert service._aggregator.in_flight == 0


# the watch says "wedged" of a round that has ended while it asked whether Kafka answers.
async def test_a_round_that_ended_meanwhile_makes_no_later_one_go_up_twice(kafka: Kafka) -> None:
    load = Load(kafka.bootstrap, 20)
    service = load.service()
    with trio.fail_after(60):
        async with service.start(double):
            await until(lambda: service.statistics().uploaded == 20)
            sink: Any = service._kafka._sink  # type: ignore[union-attr]
            sink._wedged.set()
            load.send(20)
            await until(lambda: service.statistics().uploaded == 40)
    lists = load.lists()
    assert set(lists.values()) == {1}
