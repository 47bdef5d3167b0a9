"""The bridge against a real Kafka."""
# flake8: noqa: ASYNC110, ASYNC910, ASYNC912 - another machine is waited for

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import ssl
import time
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio_asyncio
import trustme
from broker import (
    PASSWORD,
    USER,
    Broker,
    Kafka,
    committed,
    create_topic,
    delete_topic,
    end_offsets,
    produce,
    read_all,
    unique,
)
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewPartitions,
    ResourcePatternType,
    ResourceType,
)

from trioagg import _kafka
from trioagg._errors import Closed, ConnectFailed, KafkaError, TopicUnavailable
from trioagg._settings import KafkaSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
    from pathlib import Path

QUICK = {"heartbeat_interval": 0.5, "request_timeout": 5.0}


@asynccontextmanager
async def opened(
    bootstrap: str,
    topics: list[str],
    group: str,
    *,
    result_topic: str | None = None,
    settings: dict[str, Any] | None = None,
    room: Callable[[], int] = lambda: 10_000,
    dropped: Callable[[Collection[_kafka.Claim]], None] = lambda claims: None,
    connect_timeout: float = 15.0,
    revoke_timeout: float = 10.0,
    commit_interval: float = 0.2,
    max_uncommitted: int = 1000,
) -> AsyncIterator[_kafka.Kafka]:
    async with _kafka.open_kafka(
        bootstrap_servers=bootstrap,
        topics=topics,
        group_id=group,
        output_topics=[] if result_topic is None else [result_topic],
        transactional=False,
        settings=KafkaSettings(**{**QUICK, **(settings or {})}),
        connect_timeout=connect_timeout,
        revoke_timeout=revoke_timeout,
        commit_interval=commit_interval,
        max_uncommitted=max_uncommitted,
        room=room,
        dropped=dropped,
    ) as bridge:
        yield bridge


async def take(bridge: _kafka.Kafka, count: int) -> list[_kafka.Record]:
    return [await bridge.records.receive() for _ in range(count)]


async def put(
    bridge: _kafka.Kafka, topic: str, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]] = ()
) -> None:
    await bridge.send([_kafka.Message(topic, key, value, headers)])


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.02)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    yield
    gc.collect()  # what was not closed warns now, and not in another test


@pytest.fixture
def topic(kafka: Kafka) -> str:
    return create_topic(kafka.bootstrap, unique("in"), partitions=3)


# Out and back.


async def test_everything_finished_is_committed(kafka: Kafka, topic: str) -> None:
    produce(kafka.bootstrap, topic, [(str(number), str(number)) for number in range(1000)])
    group = unique("group")
    with trio.fail_after(30):
        async with opened(kafka.bootstrap, [topic], group) as bridge:
            seen = set()
            for record in await take(bridge, 1000):
                seen.add(record.value)
                bridge.finish(record)
            await bridge.close(5)
    assert seen == {str(number).encode() for number in range(1000)}
    assert committed(kafka.bootstrap, group, topic) == end_offsets(kafka.bootstrap, topic)


async def test_a_record_carries_what_the_message_had(kafka: Kafka, topic: str) -> None:
    produce(
        kafka.bootstrap, topic, [("key", "value", 1, [("h", b"1"), ("h", b"2")], 1_700_000_000_000), (None, None, 2)]
    )
    with trio.fail_after(30):
        async with opened(kafka.bootstrap, [topic], unique("group")) as bridge:
            first, second = sorted(await take(bridge, 2), key=lambda record: record.partition)
    assert (first.topic, first.partition, first.offset, first.timestamp_ms) == (topic, 1, 0, 1_700_000_000_000)
    assert (first.key, first.value, first.headers) == (b"key", b"value", (("h", b"1"), ("h", b"2")))
    assert (second.key, second.value, second.headers) == (None, None, ())


async def test_commits_go_out_by_themselves_and_on_demand(kafka: Kafka, topic: str) -> None:
    produce(kafka.bootstrap, topic, [(None, "a", 0), (None, "b", 0), (None, "c", 1)])
    group = unique("group")
    with trio.fail_after(30):
        async with opened(kafka.bootstrap, [topic], group, commit_interval=0.05) as bridge:
            records = {record.value: record for record in await take(bridge, 3)}
            bridge.finish(records[b"a"])
            await until(lambda: committed(kafka.bootstrap, group, topic)[0] == 1)
            bridge.finish(records[b"c"])
            await bridge.commit()
            assert committed(kafka.bootstrap, group, topic) == {0: 1, 1: 1, 2: 0}


async def test_what_is_unfinished_is_not_committed_past(kafka: Kafka, topic: str) -> None:
    produce(kafka.bootstrap, topic, [(None, str(number), 0) for number in range(10)])
    group = unique("group")
    with trio.fail_after(30):
        async with opened(kafka.bootstrap, [topic], group) as bridge:
            for record in await take(bridge, 10):
                if record.offset not in (4, 7):
                    bridge.finish(record)
                elif record.offset == 7:
                    bridge.discard(record)
            bridge.stop_fetching()
            await bridge.close(5)
    assert committed(kafka.bootstrap, group, topic)[0] == 4


async def test_at_half_of_max_uncommitted_a_commit_goes_out_and_at_the_bound_nothing_is_fetched(
    kafka: Kafka, topic: str
) -> None:
    produce(kafka.bootstrap, topic, [(None, str(number), 0) for number in range(40)])
    group = unique("group")
    with trio.fail_after(30):
        async with opened(
            kafka.bootstrap, [topic], group, commit_interval=60, max_uncommitted=10, room=lambda: 5
        ) as bridge:
            (head,) = await take(bridge, 1)
            count = 0
            with trio.move_on_after(1.5):
                async for record in bridge.records:
                    bridge.finish(record)
                    count += 1
            # The head is not finished: nothing can be committed, so no more than the bound and one poll is taken.
            assert 10 <= count <= 15
            bridge.finish(head)
            for record in await take(bridge, 39 - count):
                bridge.finish(record)
            await until(lambda: (committed(kafka.bootstrap, group, topic)[0] or 0) >= 35)


async def test_leaving_without_close_commits_nothing_and_leaves_the_group(kafka: Kafka, topic: str) -> None:
    produce(kafka.bootstrap, topic, [(None, "a", 0)])
    group = unique("group")
    with trio.fail_after(40):
        with pytest.raises(LookupError, match="ours"):
            async with opened(kafka.bootstrap, [topic], group, commit_interval=60) as bridge:
                bridge.finish((await take(bridge, 1))[0])
                raise LookupError("ours")
        assert committed(kafka.bootstrap, group, topic)[0] is None
        started = time.monotonic()
        async with opened(kafka.bootstrap, [topic], group) as bridge:
            await take(bridge, 1)
            assert time.monotonic() - started < 5  # nobody waits for a member that vanished


async def test_a_cancelled_block_leaves_quickly(kafka: Kafka, topic: str) -> None:
    produce(kafka.bootstrap, topic, [(None, "a", 0)])
    with trio.fail_after(30):
        with trio.CancelScope() as scope:
            async with opened(kafka.bootstrap, [topic], unique("group")) as bridge:
                await take(bridge, 1)
                started = time.monotonic()
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("delay", [0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5])
async def test_a_start_can_be_cancelled_anywhere(kafka: Kafka, topic: str, delay: float) -> None:
    with trio.fail_after(20):
        with trio.move_on_after(delay):
            async with opened(kafka.bootstrap, [topic], unique("group"), result_topic=topic):
                await trio.sleep_forever()


async def test_stop_fetching_ends_the_channel_and_gives_back_what_was_not_taken(kafka: Kafka, topic: str) -> None:
    produce(kafka.bootstrap, topic, [(None, str(number), 0) for number in range(10)])
    group = unique("group")
    with trio.fail_after(30):
        async with opened(kafka.bootstrap, [topic], group) as bridge:
            records = await take(bridge, 3)
            bridge.stop_fetching()
            assert [record async for record in bridge.records] == []
            produce(kafka.bootstrap, topic, [(None, "later", 0)])
            for record in records:
                bridge.finish(record)
            await bridge.commit()
            assert committed(kafka.bootstrap, group, topic)[0] == 3
            await bridge.close(5)
        async with opened(kafka.bootstrap, [topic], group) as bridge:
            assert [record.offset for record in await take(bridge, 8)] == list(range(3, 11))


async def test_the_users_own_asyncio_loop_and_context_stay_theirs(kafka: Kafka, topic: str) -> None:
    with trio.fail_after(30):
        assert trio_asyncio.current_loop.get() is None
        async with opened(kafka.bootstrap, [topic], unique("group")) as bridge:
            assert trio_asyncio.current_loop.get() is None
            assert bridge.loop.is_running()
        async with (
            trio_asyncio.open_loop() as users,
            opened(kafka.bootstrap, [topic], unique("group")) as bridge,
        ):
            assert trio_asyncio.current_loop.get() is users
            assert bridge.loop is not users


# Bounds.


async def test_without_room_nothing_is_fetched_and_the_member_stays(kafka: Kafka, topic: str) -> None:
    produce(kafka.bootstrap, topic, [(None, str(number), 0) for number in range(50)])
    room = 0
    with trio.fail_after(40):
        async with opened(
            kafka.bootstrap, [topic], unique("group"), room=lambda: room, settings={"session_timeout": 2.0}
        ) as bridge:
            await until(lambda: len(bridge.statistics().assigned) == 3)
            await trio.sleep(4)  # two sessions long
            assert bridge.statistics().records_delivered == 0
            assert bridge.statistics().rebalances == 0
            room = 7
            bridge.wake()
            await take(bridge, 7)
            room = 0
            assert bridge.statistics().records_delivered <= 14


async def test_room_counts_what_waits_in_the_channel(kafka: Kafka, topic: str) -> None:
    produce(kafka.bootstrap, topic, [(None, str(number), 0) for number in range(50)])
    with trio.fail_after(40):
        async with opened(kafka.bootstrap, [topic], unique("group"), room=lambda: 5) as bridge:
            await until(lambda: bridge.statistics().records_delivered == 5)
            await trio.sleep(0.5)
            assert bridge.statistics().records_delivered == 5
            await take(bridge, 2)
            await until(lambda: bridge.statistics().records_delivered == 7)


async def test_under_pressure_every_partition_has_its_turn(kafka: Kafka, topic: str) -> None:
    produce(kafka.bootstrap, topic, [(None, str(number), number % 3) for number in range(600)])
    with trio.fail_after(40):
        async with opened(kafka.bootstrap, [topic], unique("group"), room=lambda: 10) as bridge:
            await until(lambda: len(bridge.statistics().assigned) == 3)
            await trio.sleep(1)
            turns = [record.partition for record in await take(bridge, 100)]
    assert {turns.count(number) for number in range(3)} <= set(range(20, 51))


# Where to begin.


async def test_latest_begins_at_the_end_and_says_so_at_once(kafka: Kafka, topic: str) -> None:
    produce(kafka.bootstrap, topic, [(None, str(number), 0) for number in range(5)])
    group = unique("group")
    with trio.fail_after(30):
        async with opened(
            kafka.bootstrap, [topic], group, settings={"start_offset": "latest"}, commit_interval=60
        ) as bridge:
            await until(lambda: committed(kafka.bootstrap, group, topic) == {0: 5, 1: 0, 2: 0})
            produce(kafka.bootstrap, topic, [(None, "new", 0)])
            (record,) = await take(bridge, 1)
            assert record.offset == 5
        async with opened(kafka.bootstrap, [topic], group, settings={"start_offset": "latest"}) as bridge:
            assert (await take(bridge, 1))[0].offset == 5  # never used where there is a commit


async def test_a_partition_that_appears_later_begins_at_its_beginning(kafka: Kafka) -> None:
    topic = create_topic(kafka.bootstrap, unique("in"), partitions=1)
    produce(kafka.bootstrap, topic, ["old"])
    with trio.fail_after(30):
        async with (
            opened(kafka.bootstrap, [topic], unique("group"), settings={"start_offset": "latest"}) as bridge,
            trio.open_nursery() as nursery,
        ):
            await until(lambda: bridge.statistics().lag == {(topic, 0): 0})
            admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
            admin.create_partitions([NewPartitions(topic, 2)])[topic].result(timeout=10)
            await until(lambda: len(end_offsets(kafka.bootstrap, topic)) == 2)
            produce(kafka.bootstrap, topic, [(None, "new", 1)])
            while not bridge.records.statistics().current_buffer_used:
                # By itself it looks every five minutes.
                nursery.start_soon(bridge.loop.run_aio_coroutine, refresh_aio(bridge))
                await trio.sleep(0.2)
            (record,) = await take(bridge, 1)
            assert (record.partition, record.offset, record.value) == (1, 0, b"new")


async def refresh_aio(bridge: _kafka.Kafka) -> None:
    await bridge._source.client.force_metadata_update()


async def test_an_offset_that_is_gone_is_an_error_and_the_earliest_is_next(
    kafka: Kafka, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    group = unique("group")
    produce(kafka.bootstrap, topic, [(None, str(number), 0) for number in range(5)])
    with trio.fail_after(60):
        async with opened(kafka.bootstrap, [topic], group) as bridge:
            for record in await take(bridge, 5):
                bridge.finish(record)
            await bridge.close(5)
        delete_topic(kafka.bootstrap, topic)
        create_topic(kafka.bootstrap, topic, partitions=3)
        produce(kafka.bootstrap, topic, [(None, "anew", 0)])
        # With its topic the group's commit went too.
        by_hand = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": group})
        by_hand.commit(offsets=[TopicPartition(topic, 0, 5)], asynchronous=False)
        by_hand.close()
        async with opened(kafka.bootstrap, [topic], group) as bridge:
            (record,) = await take(bridge, 1)
            assert (record.value, record.offset) == (b"anew", 0)
            assert bridge.statistics().offset_resets == 1
            bridge.finish(record)
            await bridge.close(5)
    assert committed(kafka.bootstrap, group, topic)[0] == 1
    assert "offset 5 of" in caplog.text


async def test_behind_transaction_markers_and_aborted_tails_the_lag_is_none(kafka: Kafka, topic: str) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": unique("id")})
    producer.init_transactions()
    for value, end in [(b"kept", producer.commit_transaction), (b"aborted", producer.abort_transaction)]:
        producer.begin_transaction()
        producer.produce(topic, value, partition=0)
        producer.flush()
        end()
    group = unique("group")
    with trio.fail_after(30):
        async with opened(kafka.bootstrap, [topic], group, settings={"isolation_level": "read_committed"}) as bridge:
            (record,) = await take(bridge, 1)
            assert record.value == b"kept"
            bridge.finish(record)
            await until(lambda: committed(kafka.bootstrap, group, topic)[0] == 4)
            assert bridge.statistics().lag[topic, 0] == 0
            await bridge.close(5)
    assert end_offsets(kafka.bootstrap, topic)[0] == 4


# Starting.


async def test_no_broker(unused_port: int) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectFailed) as caught:
        async with opened(f"127.0.0.1:{unused_port}", ["t"], "g", connect_timeout=1.5):
            pass
    assert time.monotonic() - started < 3
    assert str(caught.value).startswith(
        f"cannot connect to Kafka at 127.0.0.1:{unused_port}: 127.0.0.1:{unused_port} refused the connection"
    )


async def test_a_name_that_does_not_resolve() -> None:
    started = time.monotonic()
    with pytest.raises(ConnectFailed, match=r"the name in no-such-host\.invalid:9092 does not resolve"):
        async with opened("no-such-host.invalid:9092", ["t"], "g", connect_timeout=1.5):
            pass
    assert time.monotonic() - started < 3


async def test_a_host_that_says_nothing() -> None:
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ConnectFailed, match=f"no answer from 127.0.0.1:{port}"):
            async with opened(f"127.0.0.1:{port}", ["t"], "g", connect_timeout=1.5):
                pass
    assert time.monotonic() - started < 3


async def test_a_silent_host_among_others_is_passed_by(kafka: Kafka, topic: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, trio.fail_after(30):
        port = silent.getsockname()[1]
        for _ in range(2):
            async with opened(f"127.0.0.1:{port},{kafka.bootstrap}", [topic], unique("group"), connect_timeout=8):
                pass


@pytest.mark.parametrize("role", ["input", "result"])
async def test_an_unknown_topic_is_named_and_not_created(kafka: Kafka, topic: str, role: str) -> None:
    missing = unique("missing")
    topics, result = ([missing], None) if role == "input" else ([topic], missing)
    started = time.monotonic()
    with pytest.raises(TopicUnavailable) as caught:
        async with opened(kafka.bootstrap, topics, "g", result_topic=result):
            pass
    assert time.monotonic() - started < 3
    assert str(caught.value).startswith(f"topic {missing!r} on Kafka at {kafka.bootstrap}: does not exist. Create it: ")
    with pytest.raises(Exception, match="UNKNOWN_TOPIC_OR_PART"):
        end_offsets(kafka.bootstrap, missing)


def sasl(password: str) -> dict[str, Any]:
    return {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_username": USER,
        "sasl_password": password,
    }


async def test_the_right_password(kafka: Kafka, topic: str) -> None:
    if kafka.broker is None:
        pytest.skip("not our broker")
    produce(kafka.bootstrap, topic, [(None, "a", 0)])
    with trio.fail_after(30):
        async with opened(
            kafka.broker.sasl_bootstrap, [topic], unique("group"), settings=sasl(PASSWORD), result_topic=topic
        ) as bridge:
            await take(bridge, 1)
            await put(bridge, topic, b"k", b"v", [])


async def test_the_wrong_password(kafka: Kafka, topic: str) -> None:
    if kafka.broker is None:
        pytest.skip("not our broker")
    started = time.monotonic()
    with pytest.raises(ConnectFailed, match=rf"authentication failed for user '{USER}' \(PLAIN\)") as caught:
        async with opened(kafka.broker.sasl_bootstrap, [topic], "g", settings=sasl("guessed")):
            pass
    assert time.monotonic() - started < 3
    assert "guessed" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({**sasl(PASSWORD), "sasl_mechanism": "SCRAM-SHA-256"}, "does not offer sasl_mechanism='SCRAM-SHA-256'"),
        ({}, "Does this port want another security_protocol than 'PLAINTEXT'"),
        ({"security_protocol": "SSL"}, "security_protocol"),
    ],
)
async def test_another_way_of_talking(kafka: Kafka, settings: dict[str, Any], sentence: str) -> None:
    if kafka.broker is None:
        pytest.skip("not our broker")
    with trio.fail_after(10), pytest.raises(ConnectFailed, match=sentence):
        async with opened(kafka.broker.sasl_bootstrap, ["t"], "g", settings=settings, connect_timeout=1.5):
            pass


async def test_a_broker_that_comes_late_is_waited_for(own_broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    topic = create_topic(own_broker.bootstrap, unique("in"))
    produce(own_broker.bootstrap, topic, ["a"])
    own_broker.stop()
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, own_broker.start)
            async with opened(own_broker.bootstrap, [topic], unique("group"), connect_timeout=30) as bridge:
                await take(bridge, 1)
    assert caplog.text.count("refused the connection; trying for") == 1


async def test_an_address_that_the_broker_gives_and_nobody_can_reach(jars: Path, unused_port: int) -> None:
    lost = f"127.0.0.1:{unused_port}"
    with Broker(jars, {"advertised.listeners": f"PLAINTEXT://{lost},SASL_PLAINTEXT://127.0.0.1:1"}) as broker:
        sentence = rf"{lost} refused the connection .*{broker.bootstrap} gives its clients this address \(advertised"
        with trio.fail_after(20), pytest.raises(ConnectFailed, match=sentence):
            async with opened(broker.bootstrap, ["t"], "g", connect_timeout=1.5):
                pass


async def test_what_we_have_no_right_to_is_named(jars: Path) -> None:
    rules = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    with Broker(jars, rules) as broker, trio.fail_after(60):
        topic, results = create_topic(broker.bootstrap, unique("in")), create_topic(broker.bootstrap, unique("out"))
        produce(broker.bootstrap, topic, ["a"])

        admin = AdminClient({"bootstrap.servers": broker.bootstrap})
        alice = (f"User:{USER}", "*")

        def grant(kind: ResourceType, name: str, what: AclOperation) -> None:
            rule = AclBinding(kind, name, ResourcePatternType.LITERAL, *alice, what, AclPermissionType.ALLOW)
            admin.create_acls([rule])[rule].result(timeout=10)

        def as_alice(result_topic: str | None = None) -> AbstractAsyncContextManager[_kafka.Kafka]:
            return opened(broker.sasl_bootstrap, [topic], "g", settings=sasl(PASSWORD), result_topic=result_topic)

        with pytest.raises(
            TopicUnavailable, match=rf"topic '{topic}' .*: not authorised\. the user 'alice' needs READ"
        ):
            async with as_alice():
                pass
        grant(ResourceType.TOPIC, topic, AclOperation.DESCRIBE)
        with pytest.raises(KafkaError, match=r"group 'g' on Kafka at .*: not authorised\. the user 'alice' needs READ"):
            async with as_alice():
                await trio.sleep_forever()
        grant(ResourceType.GROUP, "g", AclOperation.READ)
        with pytest.raises(TopicUnavailable, match=f"topic '{topic}' .*: not authorised"):
            async with as_alice():
                await trio.sleep_forever()
        grant(ResourceType.TOPIC, topic, AclOperation.READ)
        grant(ResourceType.TOPIC, results, AclOperation.DESCRIBE)
        with pytest.raises(KafkaError, match=r"not authorised to produce\. the user 'alice' needs WRITE"):
            async with as_alice(results):
                pass
        grant(ResourceType.TOPIC, "another", AclOperation.WRITE)
        async with as_alice(results) as bridge:
            await take(bridge, 1)
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(refused, bridge, results, number)
            grant(ResourceType.TOPIC, results, AclOperation.WRITE)
            await put(bridge, results, b"k", b"v", [])


async def refused(bridge: _kafka.Kafka, results: str, number: int) -> None:
    with pytest.raises(TopicUnavailable, match=f"topic '{results}' .*: not authorised"):
        await put(bridge, results, b"%d" % number, b"v", [])


async def test_a_certificate_that_is_not_trusted() -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(server)

    async def handshake(stream: trio.SSLStream[trio.SocketStream]) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.do_handshake()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            serve = functools.partial(trio.serve_ssl_over_tcp, host="127.0.0.1")
            listeners = await nursery.start(serve, handshake, 0, server)
            port = listeners[0].transport_listener.socket.getsockname()[1]
            with pytest.raises(ConnectFailed, match=f"the certificate of 127.0.0.1:{port} is not trusted"):
                async with opened(f"127.0.0.1:{port}", ["t"], "g", settings={"security_protocol": "SSL"}):
                    pass
            nursery.cancel_scope.cancel()


async def test_a_port_that_speaks_something_else() -> None:
    async def talk(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await stream.aclose()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            serve = functools.partial(trio.serve_tcp, host="127.0.0.1")
            listeners = await nursery.start(serve, talk, 0)
            port = listeners[0].socket.getsockname()[1]
            for protocol, sentence in [("SSL", "no TLS with"), ("PLAINTEXT", f"127.0.0.1:{port}")]:
                with pytest.raises(ConnectFailed, match=sentence):
                    async with opened(
                        f"127.0.0.1:{port}", ["t"], "g", settings={"security_protocol": protocol}, connect_timeout=1
                    ):
                        pass
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("address", ["localhost:http", "a:1,b:x"])
async def test_an_address_that_cannot_be_read(address: str) -> None:
    with pytest.raises(ValueError, match=f"bootstrap_servers='{address}': use host:port"):
        async with opened(address, ["t"], "g"):
            pass


@pytest.fixture
def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


# Results.


async def test_a_result_is_there_when_send_returns(kafka: Kafka, topic: str) -> None:
    results = create_topic(kafka.bootstrap, unique("out"), partitions=2)
    with trio.fail_after(30):
        async with opened(kafka.bootstrap, [topic], unique("group"), result_topic=results) as bridge:
            await put(bridge, results, b"key", b"value", [("h", b"1")])
            (message,) = read_all(kafka.bootstrap, results)
            assert (message.key(), message.value(), message.headers()) == (b"key", b"value", [("h", b"1")])
            async with trio.open_nursery() as nursery:
                for number in range(500):
                    nursery.start_soon(put, bridge, results, b"%d" % number, b"x" * 1000, [])
            await bridge.close(5)
    assert sorted(
        int(message.key()) for message in read_all(kafka.bootstrap, results) if message.key() != b"key"
    ) == list(range(500))


@pytest.mark.parametrize(
    ("size", "sentence"),
    [(2_000_000, "the broker takes no message of this size"), (40_000_000, "it is larger than 33554432 bytes")],
)
async def test_a_result_that_is_too_large_fails_alone(kafka: Kafka, topic: str, size: int, sentence: str) -> None:
    results = create_topic(kafka.bootstrap, unique("out"), partitions=1)
    arrived: list[bytes] = []
    refused: list[str] = []

    async def send(bridge: _kafka.Kafka, key: bytes, value: bytes) -> None:
        try:
            await put(bridge, results, key, value, [])
            arrived.append(key)
        except KafkaError as error:
            refused.append(str(error))

    with trio.fail_after(60):
        async with opened(kafka.bootstrap, [topic], unique("group"), result_topic=results) as bridge:
            async with trio.open_nursery() as nursery:
                for number in range(200):
                    nursery.start_soon(send, bridge, b"%d" % number, b"x" * (size if number in (50, 120) else 2000))
            await put(bridge, results, b"later", b"x", [])
            await bridge.close(5)
    assert len(refused) == 2
    assert all(sentence in text and f"to topic '{results}'" in text for text in refused)
    there = [message.key() for message in read_all(kafka.bootstrap, results)]
    assert len(there) == len(set(there)) == 199
    assert set(there) == {*arrived, b"later"}


async def test_results_that_are_too_large_only_together_all_arrive(kafka: Kafka, topic: str) -> None:
    results = create_topic(kafka.bootstrap, unique("out"), 1, {"max.message.bytes": "20000"})
    with trio.fail_after(60):
        async with opened(kafka.bootstrap, [topic], unique("group"), result_topic=results) as bridge:
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(put, bridge, results, b"%d" % number, b"x" * 5000, [])
            await bridge.close(5)
    assert sorted(int(message.key()) for message in read_all(kafka.bootstrap, results)) == list(range(20))


async def test_a_result_topic_that_is_deleted_is_named(kafka: Kafka, topic: str) -> None:
    results = create_topic(kafka.bootstrap, unique("out"))
    with trio.fail_after(60):
        async with opened(
            kafka.bootstrap, [topic], unique("group"), result_topic=results, settings={"request_timeout": 2.0}
        ) as bridge:
            await put(bridge, results, b"1", b"x", [])
            delete_topic(kafka.bootstrap, results)
            with pytest.raises(TopicUnavailable, match=f"topic '{results}' .* does not exist"):
                await put(bridge, results, b"2", b"x", [])


async def test_an_input_topic_that_is_deleted_ends_the_block(kafka: Kafka, topic: str) -> None:
    with trio.fail_after(60):
        with pytest.raises(TopicUnavailable, match=f"topic '{topic}' .* does not exist"):
            async with opened(kafka.bootstrap, [topic], unique("group")) as bridge:
                await until(lambda: len(bridge.statistics().assigned) == 3)
                delete_topic(kafka.bootstrap, topic)
                await trio.sleep_forever()


async def test_a_cancelled_send_harms_nobody(kafka: Kafka, topic: str) -> None:
    results = create_topic(kafka.bootstrap, unique("out"))
    with trio.fail_after(30):
        async with opened(kafka.bootstrap, [topic], unique("group"), result_topic=results) as bridge:
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(put, bridge, results, b"%d" % number, b"x", [])
                await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            for number in range(50, 60):
                await put(bridge, results, b"%d" % number, b"x", [])
            await bridge.close(5)
    there = {int(message.key()) for message in read_all(kafka.bootstrap, results)}
    assert there >= set(range(50, 60))


async def test_a_broker_that_restarts_under_sends_loses_and_doubles_nothing(
    own_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    topic = create_topic(own_broker.bootstrap, unique("in"), partitions=2)
    results = create_topic(own_broker.bootstrap, unique("out"), partitions=2)
    produce(own_broker.bootstrap, topic, [(None, str(number), number % 2) for number in range(200)])
    group = unique("group")
    count = 0
    caplog.set_level(logging.INFO, "trioagg")

    async def sender(bridge: _kafka.Kafka, name: int) -> None:
        nonlocal count
        for number in range(120):
            await put(bridge, results, b"%d-%d" % (name, number), b"x" * 100, [])
            count += 1
            await trio.sleep(0.02)

    with trio.fail_after(90):
        async with opened(own_broker.bootstrap, [topic], group, result_topic=results) as bridge:
            async with trio.open_nursery() as nursery:
                for name in range(20):
                    nursery.start_soon(sender, bridge, name)
                for record in await take(bridge, 100):
                    bridge.finish(record)
                await until(lambda: count > 300)
                own_broker.kill()
                await trio.sleep(6)
                await trio.to_thread.run_sync(own_broker.start)
                for record in await take(bridge, 100):
                    bridge.finish(record)
            assert bridge.statistics().loop_errors == 0
            await bridge.close(10)
    there = [message.key() for message in read_all(own_broker.bootstrap, results)]
    assert len(there) == len(set(there)) == 20 * 120
    assert committed(own_broker.bootstrap, group, topic) == {0: 100, 1: 100}
    told = [record.getMessage() for record in caplog.records if record.name == "trioagg"]
    assert sum("has acknowledged nothing for" in line for line in told) == 1
    assert sum("acknowledges again" in line for line in told) == 1
    # It complains 50 to 110 times a second otherwise.
    assert sum(record.name.startswith("aiokafka") for record in caplog.records) < 100


# Ending without a broker.


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_closing_without_a_broker_takes_its_time_and_no_more(own_broker: Broker, how: str) -> None:
    topic = create_topic(own_broker.bootstrap, unique("in"))
    produce(own_broker.bootstrap, topic, ["a"])
    closed: list[BaseException] = []

    async def send(bridge: _kafka.Kafka) -> None:
        try:
            await put(bridge, topic, b"k", b"v", [])
        except Closed as error:
            closed.append(error)

    with trio.fail_after(40), disturbed(own_broker, how) as disturb:
        async with opened(
            own_broker.bootstrap, [topic], unique("group"), result_topic=topic, commit_interval=60
        ) as bridge:
            (record,) = await take(bridge, 1)
            disturb()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, bridge)
                await trio.sleep(0.5)
                bridge.finish(record)
                started = time.monotonic()
                await bridge.commit(1)
                await bridge.close(3)
                assert time.monotonic() - started < 1 + 3 + 3
        assert len(closed) == 1


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_an_abort_without_a_broker_takes_five_seconds_at_most(own_broker: Broker, how: str) -> None:
    topic = create_topic(own_broker.bootstrap, unique("in"))
    with trio.fail_after(40), disturbed(own_broker, how) as disturb:
        with trio.CancelScope() as scope:
            async with (
                opened(own_broker.bootstrap, [topic], unique("group"), result_topic=topic) as bridge,
                trio.open_nursery() as nursery,
            ):
                await until(lambda: bool(bridge.statistics().assigned))
                disturb()
                nursery.start_soon(put, bridge, topic, b"k", b"v", [])
                await trio.sleep(0.5)
                started = time.monotonic()
                scope.cancel()
        assert time.monotonic() - started < 5.5


@contextmanager
def disturbed(broker: Broker, how: str) -> Iterator[Callable[[], None]]:
    pid = broker.pid
    assert pid is not None
    try:
        yield broker.kill if how == "kill" else lambda: os.kill(pid, signal.SIGSTOP)
    finally:
        if broker.pid is not None:
            os.kill(broker.pid, signal.SIGCONT)


# Rebalances.


async def test_a_second_member_gets_its_share_when_the_first_has_drained(kafka: Kafka) -> None:
    topic = create_topic(kafka.bootstrap, unique("in"), partitions=4)
    produce(kafka.bootstrap, topic, [(None, str(number), number % 4) for number in range(40)])
    group = unique("group")
    events: list[str] = []
    with trio.fail_after(60):
        async with opened(kafka.bootstrap, [topic], group, commit_interval=60) as first:
            records = await take(first, 40)
            for record in records[:-1]:
                first.finish(record)
            last = records[-1]

            async def finish_later() -> None:
                await until(lambda: not last.claim.live)
                assert last.claim.state == "revoking"
                await trio.sleep(1)
                events.append("finished")
                first.finish(last)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(finish_later)
                async with opened(kafka.bootstrap, [topic], group) as second:
                    await until(lambda: len(second.statistics().assigned) == 2)
                    events.append("shared")
                    assert len(first.statistics().assigned) == 2
                    assert committed(kafka.bootstrap, group, topic) == {0: 10, 1: 10, 2: 10, 3: 10}
                    # And the work goes on with both of them, each message once.
                    produce(kafka.bootstrap, topic, [(None, "more", number % 4) for number in range(40)])
                    for bridge in (first, second):
                        assert [record.value for record in await take(bridge, 20)] == [b"more"] * 20
                    assert first.statistics().rebalances == 1
                    assert first.statistics().dropped_records == 0
    assert events == ["finished", "shared"]


async def test_what_is_not_done_in_time_is_dropped_and_its_late_end_moves_nothing(kafka: Kafka, topic: str) -> None:
    produce(kafka.bootstrap, topic, [(None, str(number), number % 3) for number in range(9)])
    group = unique("group")
    dropped: list[_kafka.Claim] = []
    with trio.fail_after(60):
        async with opened(
            kafka.bootstrap, [topic], group, dropped=dropped.extend, revoke_timeout=1.0, commit_interval=0.1
        ) as first:
            records = {(record.partition, record.offset): record for record in await take(first, 9)}
            first.finish(records[0, 0])
            async with opened(kafka.bootstrap, [topic], group, room=lambda: 0) as second:
                await until(lambda: bool(second.statistics().assigned))
                assert {claim.partition for claim in dropped} == {0, 1, 2}
                assert {claim.state for claim in dropped} == {"closed"}
                assert first.statistics().dropped_records == 8
                for record in records.values():
                    first.finish(record)
                await first.commit()
                assert first.statistics().late_finishes == 8  # the ninth is committed
                again = len(first.statistics().assigned)
                assert again + len(second.statistics().assigned) == 3
                found = committed(kafka.bootstrap, group, topic)
                assert found[0] == 1
                assert {found[1], found[2]} <= {None, 0}


async def test_what_an_old_poll_brings_of_a_new_assignment_waits_until_it_is_known_where_that_begins(
    kafka: Kafka, topic: str
) -> None:
    # A poll that waits for a rebalance answers out of the next assignment: from a place that nobody has checked.
    produce(kafka.bootstrap, topic, [(None, str(number), 0) for number in range(3)])
    group, room = unique("group"), 0
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": group})
    consumer.commit(offsets=[TopicPartition(topic, 0, 0)], asynchronous=False)
    consumer.close()
    with trio.fail_after(60):
        async with opened(kafka.bootstrap, [topic], group, room=lambda: room) as bridge:
            source = bridge._source
            await until(lambda: bool(source.group.claims) and not any(c.starting for c in source.group.claims.values()))
            (partition,) = (where for where in source.group.claims if where.partition == 0)
            source.group.claims[partition].starting = True
            early = await bridge.loop.run_aio_coroutine(source._consumer.getmany(partition, timeout_ms=10_000))
            source._deliver(partition, early[partition])
            assert bridge.records.statistics().current_buffer_used == 0
            source.group.claims[partition].starting = False
            room = 10
            bridge.wake()
            assert [record.offset for record in await take(bridge, 3)] == [0, 1, 2]


async def test_what_was_not_begun_is_not_waited_for(kafka: Kafka, topic: str) -> None:
    produce(kafka.bootstrap, topic, [(None, str(number), 0) for number in range(9)])
    group = unique("group")
    with trio.fail_after(60):
        async with opened(kafka.bootstrap, [topic], group, revoke_timeout=30) as first:
            (record,) = await take(first, 1)  # eight more wait in the channel
            first.finish(record)
            started = time.monotonic()
            async with opened(kafka.bootstrap, [topic], group, room=lambda: 0) as second:
                await until(lambda: bool(second.statistics().assigned))
                assert time.monotonic() - started < 5
                assert committed(kafka.bootstrap, group, topic)[0] == 1


async def test_a_revoke_that_waits_is_released_by_close_and_by_leaving(kafka: Kafka, topic: str) -> None:
    produce(kafka.bootstrap, topic, [(None, str(number), number % 3) for number in range(6)])
    group = unique("group")
    with trio.fail_after(60):
        for close in (True, False):
            async with opened(kafka.bootstrap, [topic], group, revoke_timeout=30, commit_interval=60) as first:
                records = await take(first, 6)
                first.finish(min(records, key=lambda record: (record.partition, record.offset)))
                async with opened(kafka.bootstrap, [topic], group, room=lambda: 0) as second:
                    claim = records[0].claim
                    await until(lambda claim=claim: claim.state == "revoking")  # type: ignore[misc]
                    started = time.monotonic()
                    if close:
                        await first.close(5)
                        assert time.monotonic() - started < 2
                        await until(lambda: len(second.statistics().assigned) == 3)
                        assert committed(kafka.bootstrap, group, topic)[0] == 1
                        produce(kafka.bootstrap, topic, [(None, "one more", 0)])  # six again
            assert time.monotonic() - started < 5


async def test_a_member_that_leaves_in_mid_join_is_not_waited_for(
    kafka: Kafka, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trioagg")
    produce(kafka.bootstrap, topic, [(None, "a", 0)])
    group = unique("group")
    with trio.fail_after(60):
        async with opened(kafka.bootstrap, [topic], group, revoke_timeout=30) as first:
            (record,) = await take(first, 1)
            async with opened(kafka.bootstrap, [topic], group):
                await until(lambda: record.claim.state == "revoking")
                await trio.sleep(5.5)
                started = time.monotonic()
            assert time.monotonic() - started < 3
            first.finish(record)
            await until(lambda: record.claim.state == "closed")
            await until(lambda: len(first.statistics().assigned) == 3, seconds=3)
    assert f"waiting to join group {group} (5 s)" in caplog.text


async def test_a_fixed_member_restarts_without_a_rebalance(kafka: Kafka, topic: str) -> None:
    produce(kafka.bootstrap, topic, [(None, str(number), 0) for number in range(4)])
    group = unique("group")
    fixed = {"group_instance_id": "one"}
    with trio.fail_after(60):
        async with opened(kafka.bootstrap, [topic], group, settings={"group_instance_id": "two"}) as other:
            await until(lambda: len(other.statistics().assigned) == 3)
            for _ in range(2):
                async with opened(kafka.bootstrap, [topic], group, settings=fixed) as bridge:
                    await until(lambda bridge=bridge: bool(bridge.statistics().assigned))  # type: ignore[misc]
                    await bridge.close(5)
            assert other.statistics().rebalances == 1  # when the first one came, and never since


async def test_members_that_come_and_go_lose_and_double_nothing(kafka: Kafka) -> None:
    topic = create_topic(kafka.bootstrap, unique("in"), partitions=6)
    group = unique("group")
    seen: list[bytes] = []
    total = 3000
    fed = trio.Event()

    async def feed() -> None:
        for start in range(0, total, 100):
            batch = [(None, str(number), number % 6) for number in range(start, start + 100)]
            await trio.to_thread.run_sync(produce, kafka.bootstrap, topic, batch)
            await trio.sleep(0.3)
        fed.set()

    async def member(lifetime: float) -> None:
        async with opened(kafka.bootstrap, [topic], group) as bridge, trio.open_nursery() as nursery:

            async def work(record: _kafka.Record) -> None:
                await trio.sleep(0.05)
                assert record.value is not None
                seen.append(record.value)
                bridge.finish(record)

            async def intake() -> None:
                async for record in bridge.records:
                    if record.claim.live:
                        nursery.start_soon(work, record)
                    else:
                        bridge.discard(record)

            nursery.start_soon(intake)
            with trio.move_on_after(lifetime):
                await until(lambda: len(set(seen)) == total, seconds=60)
            bridge.stop_fetching()
            await trio.sleep(0.1)
            await bridge.close(5)

    with trio.fail_after(90):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed)
            nursery.start_soon(member, 1000)
            while not fed.is_set():
                await trio.sleep(1.2)
                nursery.start_soon(member, 3)
    assert len(seen) == total
    assert sorted(map(int, seen)) == list(range(total))


async def test_a_member_that_lost_its_session_drops_its_work_and_comes_back(own_broker: Broker) -> None:
    topic = create_topic(own_broker.bootstrap, unique("in"))
    produce(own_broker.bootstrap, topic, [str(number) for number in range(5)])
    group = unique("group")
    dropped: list[_kafka.Claim] = []
    with trio.fail_after(60):
        async with opened(
            own_broker.bootstrap,
            [topic],
            group,
            dropped=dropped.extend,
            revoke_timeout=30,
            settings={"session_timeout": 1.0, "heartbeat_interval": 0.3},
        ) as bridge:
            records = await take(bridge, 5)
            time.sleep(2.5)  # noqa: ASYNC251 - a station that blocks the loop for longer than the session
            again = await take(bridge, 5)
            assert [record.offset for record in again] == [record.offset for record in records]
            assert dropped == [records[0].claim]
            bridge.finish(records[0])
            bridge.finish(again[0])
            await bridge.commit()
            assert committed(own_broker.bootstrap, group, topic) == {0: 1}
            assert bridge.statistics().late_finishes == 1


# What goes wrong in the background.


async def test_an_error_in_a_callback_of_ours_ends_the_block(kafka: Kafka, topic: str) -> None:
    def room() -> int:
        raise LookupError("in room()")

    with trio.fail_after(20), pytest.raises(LookupError, match=r"in room\(\)"):
        async with opened(kafka.bootstrap, [topic], unique("group"), room=room):
            await trio.sleep_forever()


async def test_an_error_while_partitions_are_given_back_ends_the_block(kafka: Kafka, topic: str) -> None:
    produce(kafka.bootstrap, topic, [(None, "a", 0)])
    group = unique("group")

    def drop(claims: Collection[_kafka.Claim]) -> None:
        raise LookupError("in dropped()")

    with trio.fail_after(30), pytest.raises(LookupError, match=r"in dropped\(\)"):
        async with opened(kafka.bootstrap, [topic], group, dropped=drop, revoke_timeout=0.2) as first:
            await take(first, 1)
            async with opened(kafka.bootstrap, [topic], group, room=lambda: 0):
                await trio.sleep_forever()


async def test_a_system_exit_in_the_loop_ends_the_block(kafka: Kafka, topic: str) -> None:
    def leave() -> None:
        raise SystemExit(3)

    with trio.fail_after(30), pytest.raises(SystemExit):
        async with opened(kafka.bootstrap, [topic], unique("group")) as bridge:
            await until(lambda: bool(bridge.statistics().assigned))
            bridge.loop.call_soon(leave)
            await trio.sleep_forever()
