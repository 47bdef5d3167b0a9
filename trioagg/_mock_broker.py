"""librdkafka's mock cluster: a broker for demonstrations, in this process, over the real wire protocol."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from confluent_kafka import Producer, cimpl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PRODUCER: Final = 0
_JOIN_DELAY_MS: Final = 100
_PARTITIONS: Final = 2


@contextmanager
def mock_broker(topics: Iterable[str]) -> Iterator[str]:
    """A broker on 127.0.0.1 with *topics*, gone when the block ends; gives its ``host:port``.

    Good for one member and a few topics.  It knows no transactions, and refuses commits during a rebalance.
    """
    try:
        library = _declare(ctypes.CDLL(cimpl.__file__))
    except (OSError, AttributeError):
        # The wheel keeps the functions to itself: the same broker, whose groups take 3 s to form.
        producer = Producer({"test.mock.num.brokers": 1})
        (broker,) = producer.list_topics(timeout=10).brokers.values()
        for topic in topics:
            producer.list_topics(topic, timeout=10)  # it makes a topic that is asked for
        yield f"{broker.host}:{broker.port}"
        del producer
        return
    reason = ctypes.create_string_buffer(512)
    config = library.rd_kafka_conf_new()
    library.rd_kafka_conf_set(config, b"test.mock.num.brokers", b"1", reason, len(reason))
    library.rd_kafka_conf_set(config, b"log_level", b"0", reason, len(reason))
    client = library.rd_kafka_new(_PRODUCER, config, reason, len(reason))
    if not client:
        raise RuntimeError(f"the mock broker did not start: {reason.value.decode()}")
    try:
        cluster = library.rd_kafka_handle_mock_cluster(client)
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, _JOIN_DELAY_MS)
        for topic in topics:
            library.rd_kafka_mock_topic_create(cluster, topic.encode(), _PARTITIONS, 1)
        yield library.rd_kafka_mock_cluster_bootstraps(cluster).decode()
    finally:
        library.rd_kafka_destroy(client)


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    for name, result, arguments in (
        ("rd_kafka_conf_new", pointer, []),
        ("rd_kafka_conf_set", ctypes.c_int, [pointer, text, text, text, size]),
        ("rd_kafka_new", pointer, [ctypes.c_int, pointer, text, size]),
        ("rd_kafka_destroy", None, [pointer]),
        ("rd_kafka_handle_mock_cluster", pointer, [pointer]),
        ("rd_kafka_mock_cluster_bootstraps", text, [pointer]),
        ("rd_kafka_mock_topic_create", ctypes.c_int, [pointer, text, ctypes.c_int, ctypes.c_int]),
        ("rd_kafka_mock_group_initial_rebalance_delay_ms", None, [pointer, ctypes.c_int32]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
