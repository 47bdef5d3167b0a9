"""The Kafka client's own log, made fit for people."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from trioagg import _kafka_log
from trioagg._kafka_log import Hush

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("aiokafka.of.a.test")


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_kafka_log, "time", clock)
    return clock


@pytest.fixture
def hush(clock: Clock, caplog: pytest.LogCaptureFixture) -> Iterator[Hush]:
    caplog.set_level(logging.DEBUG, "aiokafka")
    hush = Hush()
    with hush.installed():
        yield hush


def test_one_line_of_a_kind_in_ten_seconds(hush: Hush, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    hush.started()
    for number in range(30):
        clock.now = 1000.0 + number * 0.5
        logger.warning("cannot reach node %d", number)
        logger.error("another kind")
    assert [record.getMessage() for record in caplog.records] == [
        "cannot reach node 0",
        "another kind",
        "cannot reach node 20 (19 more like this were left out)",
        "another kind (19 more like this were left out)",
    ]


def test_what_is_for_debugging_comes_through(hush: Hush, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        logger.debug("fetching")
    assert len(caplog.records) == 5


def test_until_the_start_is_over_the_last_complaint_is_kept_and_nothing_is_said(
    hush: Hush, caplog: pytest.LogCaptureFixture
) -> None:
    refused = ConnectionRefusedError("no")
    logger.info("starting")
    assert hush.complaint is None
    logger.warning("in the %s", "clear")
    assert hush.complaint == "in the clear"
    logger.error("cannot connect to %s: %s", "a:1", refused)
    assert hush.complaint is refused
    assert not caplog.records


def test_afterwards_the_loggers_are_as_they_were(clock: Clock) -> None:
    before = logger.filters[:]
    with Hush().installed():
        assert logger.filters != before
    assert logger.filters == before
