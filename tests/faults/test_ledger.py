"""A verifier that sees nothing would make every fault look harmless: each thing that it counts is done to it once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from broker import produce
from refusals import ByHand

if TYPE_CHECKING:
    from broker import Kafka

MESSAGES = 8


def answer(number: int, partitions: int, *, stations: int = 3, wrong: int = 0) -> bytes:
    results = [
        {"station_id": f"S{index}", "number": number, "value": number * 7 + index + wrong} for index in range(stations)
    ]
    batch_id = f"in_{number % partitions}_{number // partitions}_0"
    return json.dumps({"batch_id": batch_id, "results": results}).encode()


@pytest.fixture
def ledger(kafka: Kafka) -> ByHand:
    ledger = ByHand(kafka.bootstrap)
    ledger.send(MESSAGES)
    return ledger


def figures(ledger: ByHand, lists: list[bytes]) -> tuple[int, int, int, int]:
    produce(ledger.bootstrap, ledger.results, lists)
    verdict = ledger.verify(seconds=0)
    return verdict.lost, verdict.duplicated, verdict.out_of_bounds, verdict.partial


def test_one_list_for_every_message_is_as_it_must_be(ledger: ByHand) -> None:
    assert figures(ledger, [answer(n, ledger.partitions) for n in range(MESSAGES)]) == (0, 0, 0, 0)


def test_a_message_without_a_list_is_lost_although_another_has_two(ledger: ByHand) -> None:
    assert figures(ledger, [answer(n, ledger.partitions) for n in (0, 1, 2, 3, 4, 5, 6, 6)]) == (1, 1, 0, 0)


def test_a_list_of_a_message_that_nobody_sent_is_out_of_bounds(ledger: ByHand) -> None:
    assert figures(ledger, [answer(n, ledger.partitions) for n in range(MESSAGES + 1)]) == (0, 0, 1, 0)


def test_a_wrong_value_is_out_of_bounds_and_its_message_is_lost(ledger: ByHand) -> None:
    lists = [answer(n, ledger.partitions, wrong=n == 5) for n in range(MESSAGES)]
    assert figures(ledger, lists) == (1, 0, 1, 0)


def test_a_list_without_all_of_its_stations_is_partial(ledger: ByHand) -> None:
    lists = [answer(n, ledger.partitions, stations=2 if n == 3 else 3) for n in range(MESSAGES)]
    assert figures(ledger, lists) == (0, 0, 0, 1)


def test_nothing_committed_is_told(ledger: ByHand) -> None:
    assert not ledger.verify(seconds=0).committed
