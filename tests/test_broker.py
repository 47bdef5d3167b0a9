"""The broker that the other tests stand on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from broker import (
    PASSWORD,
    USER,
    Broker,
    Cluster,
    Kafka,
    committed,
    create_topic,
    delete_topic,
    end_offsets,
    produce,
    read_all,
    unique,
)
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_what_was_produced_is_read_back_with_key_headers_and_place(kafka: Kafka) -> None:
    topic = create_topic(kafka.bootstrap, unique("back"), partitions=2)
    sent = produce(kafka.bootstrap, topic, [b"plain", ("k", "v", 1, [("h", b"1")], 1_700_000_000_000)])
    first, second = read_all(kafka.bootstrap, topic)
    assert (first.partition(), first.offset(), first.key(), first.value()) == (0, 0, None, b"plain")
    assert (second.partition(), second.offset(), second.key(), second.value()) == (1, 0, b"k", b"v")
    assert second.headers() == [("h", b"1")]
    assert second.timestamp()[1] == 1_700_000_000_000
    assert [message.offset() for message in sent] == [0, 0]
    assert end_offsets(kafka.bootstrap, topic) == {0: 1, 1: 1}


def test_an_empty_topic_is_read_at_once(kafka: Kafka) -> None:
    topic = create_topic(kafka.bootstrap, unique("empty"))
    assert read_all(kafka.bootstrap, topic, seconds=2) == []


def test_a_deleted_topic_is_gone_when_the_call_returns(kafka: Kafka) -> None:
    topic = create_topic(kafka.bootstrap, unique("deleted"))
    delete_topic(kafka.bootstrap, topic)
    with pytest.raises(KafkaException):
        end_offsets(kafka.bootstrap, topic)


def test_committed_is_none_until_the_group_commits(kafka: Kafka) -> None:
    topic, group = create_topic(kafka.bootstrap, unique("commits"), partitions=2), unique("group")
    (sent,) = produce(kafka.bootstrap, topic, [b"one"])
    assert committed(kafka.bootstrap, group, topic) == {0: None, 1: None}
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": group})
    consumer.commit(message=sent, asynchronous=False)
    consumer.close()
    assert committed(kafka.bootstrap, group, topic) == {0: 1, 1: None}


def test_an_aborted_transaction_is_seen_by_uncommitted_readers_only(kafka: Kafka) -> None:
    topic = create_topic(kafka.bootstrap, unique("transactions"))
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": unique("id")})
    producer.init_transactions()
    for value, end in [(b"kept", producer.commit_transaction), (b"aborted", producer.abort_transaction)]:
        producer.begin_transaction()
        producer.produce(topic, value)
        producer.flush()
        end()
    assert [message.value() for message in read_all(kafka.bootstrap, topic)] == [b"kept"]
    everything = read_all(kafka.bootstrap, topic, "read_uncommitted")
    assert [message.value() for message in everything] == [b"kept", b"aborted"]
    assert end_offsets(kafka.bootstrap, topic) == {0: 4}  # each transaction ends with a marker


def test_data_and_ports_outlive_a_kill(own_broker: Broker) -> None:
    bootstrap = own_broker.bootstrap
    topic = create_topic(bootstrap, unique("survivor"))
    produce(bootstrap, topic, [b"before"])
    own_broker.kill()
    assert own_broker.pid is None
    own_broker.restart()
    assert own_broker.bootstrap == bootstrap
    produce(bootstrap, topic, [b"after"])
    assert [message.value() for message in read_all(bootstrap, topic)] == [b"before", b"after"]


def wait_until_other(node_id: Callable[[], int], than: int, seconds: float = 60) -> int:
    deadline = time.monotonic() + seconds
    while (found := node_id()) == than:
        assert time.monotonic() < deadline, f"after {seconds:g} s it is still node {than}"
        time.sleep(0.1)
    return found


def test_of_three_brokers_any_one_may_be_away(jars: Path) -> None:
    group = unique("group")
    with Cluster(jars) as cluster:
        topic = create_topic(cluster.bootstrap, unique("replicated"), partitions=3, replicas=3)
        sent = [(None, b"%d" % number, number) for number in range(3)]
        produce(cluster.bootstrap, topic, sent)
        assert {cluster.leader_of(topic, number) for number in range(3)} <= {1, 2, 3}

        killed = cluster.leader_of(topic, 0)
        cluster.broker(killed).kill()
        wait_until_other(lambda: cluster.leader_of(topic, 0), killed)
        produce(cluster.bootstrap, topic, sent)
        cluster.start()
        assert cluster.broker(killed).pid is not None

        frozen = cluster.coordinator_of(group)
        cluster.broker(frozen).freeze()
        wait_until_other(lambda: cluster.coordinator_of(group), frozen)
        cluster.broker(frozen).thaw()
        cluster.wait_complete()
        assert [message.value() for message in read_all(cluster.bootstrap, topic)] == [b"0"] * 2 + [b"1"] * 2 + [
            b"2"
        ] * 2


def test_the_wrong_password_is_refused(kafka: Kafka) -> None:
    if kafka.broker is None:
        pytest.skip("the broker of TRIOAGG_TEST_BOOTSTRAP is not known to ask for a password")

    sasl = {"bootstrap.servers": kafka.broker.sasl_bootstrap, "security.protocol": "SASL_PLAINTEXT", "log_level": 0}
    sasl |= {"sasl.mechanism": "PLAIN", "sasl.username": USER}
    assert AdminClient({**sasl, "sasl.password": PASSWORD}).list_topics(timeout=10).brokers
    errors: list[KafkaError] = []
    guesser = AdminClient({**sasl, "sasl.password": "guessed", "error_cb": errors.append})
    until = time.monotonic() + 10
    while not errors and time.monotonic() < until:
        guesser.poll(0.1)
    assert errors[0].code() == KafkaError._AUTHENTICATION
