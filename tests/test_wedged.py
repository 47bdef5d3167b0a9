"""A client that makes no progress although Kafka answers is made anew, and nobody has to be called."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
import trio
from load import Load, all_committed, double, until

from trioagg import _kafka_sink, _kafka_source

if TYPE_CHECKING:
    from broker import Broker, Kafka

    import trioagg


def halves_of(service: trioagg.AsyncDataAnalysisService) -> tuple[Any, Any]:
    kafka: Any = service._kafka
    return kafka._source, kafka._sink


async def for_ever(*args: object, **kwargs: object) -> None:
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("call", ["getmany", "commit"])
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_a_consumer_that_is_wedged_is_made_anew_and_loses_nothing(
    kafka: Kafka, call: str, delivery: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if (call, delivery) == ("commit", "exactly_once"):
        call = "position"  # nothing else of the consumer is asked for in transactions
    monkeypatch.setattr(_kafka_source, "_LOOK_AROUND_SECONDS", 0.2)
    caplog.set_level(logging.ERROR, "trioagg")
    load = Load(kafka.bootstrap, 20)
    service = load.service(delivery=delivery, commit_interval=0.1)
    with trio.fail_after(100):
        async with service.start(double):
            await until(lambda: service.statistics().uploaded == 20)
            source, _ = halves_of(service)
            source.wedged_seconds = 1.0
            setattr(source._consumer, call, for_ever)
            load.send(20)
            await until(lambda: service.statistics().kafka.rebuilds == 1)
            await all_committed(load)
    assert "the consumer has made no progress for" in caplog.text
    lists = load.lists()
    assert len(lists) == 40
    if delivery == "exactly_once":
        assert set(lists.values()) == {1}


async def test_a_producer_that_is_wedged_is_made_anew_and_loses_nothing(
    kafka: Kafka, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kafka_sink, "AWAY_SECONDS", 0.5)
    caplog.set_level(logging.WARNING, "trioagg")
    load = Load(kafka.bootstrap, 20)
    service = load.service()
    with trio.fail_after(100):
        async with service.start(double):
            await until(lambda: service.statistics().uploaded == 20)
            _, sink = halves_of(service)
            sink.wedged_seconds = 1.0
            # Its routine is dead: what it takes is not sent any more.
            sink._producer._sender._sender_task.cancel()
            load.send(20)
            await until(lambda: service.statistics().uploaded == 40)
    assert service.statistics().kafka.rebuilds == 1
    assert "the producer has made no progress for" in caplog.text
    assert len(load.lists()) == 40
    assert load.committed() == load.ends()


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_a_broker_that_is_away_for_longer_is_only_waited_for(
    own_broker: Broker, delivery: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_kafka_source, "_LOOK_AROUND_SECONDS", 0.5)
    caplog.set_level(logging.WARNING, "trioagg")
    load = Load(own_broker.bootstrap, 300)

    async def a_moment(station_id: str, module_input: dict) -> dict:
        await trio.sleep(0.02)
        return await double(station_id, module_input)

    service = load.service(max_batches_in_flight=10, delivery=delivery)
    with trio.fail_after(100):
        async with service.start(a_moment):
            await until(lambda: service.statistics().uploaded >= 50)
            source, sink = halves_of(service)
            # Shortened: an outage of five times the bound.
            source.wedged_seconds = 1.0
            if sink is not None:
                sink.wedged_seconds = 1.0
            own_broker.kill()
            await trio.sleep(5)
            await trio.to_thread.run_sync(own_broker.start)
            source.wedged_seconds = 60.0
            if sink is not None:
                sink.wedged_seconds = 60.0
            await until(lambda: service.statistics().uploaded == 300)
    assert service.statistics().kafka.rebuilds == 0
    assert set(load.lists().values()) == {1}
    assert load.committed() == load.ends()
    if delivery == "at_least_once":
        assert caplog.text.count("has acknowledged nothing for") == 1
        assert caplog.text.count("acknowledges again") == 1
