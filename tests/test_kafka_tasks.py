"""What is left of a client that was let go: nothing that complains."""

from __future__ import annotations

import asyncio
import gc

import aiokafka
from aiokafka.errors import KafkaError

from trioagg._kafka_tasks import stopped_aio


def test_a_producer_whose_sender_has_died_is_let_go_without_a_complaint() -> None:
    complaints: list[str] = []

    async def let_go_aio() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, facts: complaints.append(facts["message"]))
        producer = aiokafka.AIOKafkaProducer(bootstrap_servers="127.0.0.1:1")
        accumulator = producer._message_accumulator
        sent = await accumulator.add_message(aiokafka.TopicPartition("out", 0), None, b"list", 1)
        accumulator.fail_all(KafkaError("Unexpected error during batch delivery"))
        assert isinstance(sent.exception(), KafkaError)
        await stopped_aio(producer, 1.0)

    asyncio.run(let_go_aio())
    gc.collect()
    assert complaints == []
