"""What a service writes to Kafka for one message: its list, and its dead letter."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

import trio

from ._context import batch_context
from ._encoding import encode_list, encode_result
from ._errors import Closed, DeadLetterRefused, MessageTooLarge, PoisonMessage, TopicUnavailable, words
from ._kafka import Message
from ._letters import Brake, DeadLetterLimit, dead_letter_headers, stations_with
from ._observer import Observer
from ._reader import name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ._kafka import Kafka, Record
    from ._letters import DeadLetterReason
    from ._records import BatchReport

logger = logging.getLogger("trioagg")


class Outputs(Observer):
    """The result topic and the dead letter topic as the sink of an aggregator.

    Args:
      service: The name in the dead letters.
      dead_letter_stations: Verdicts; a batch with such stations gets a letter although its list goes up.
      limit: When the brake is pulled; None is never.
      include_ledger: The result message says what became of every station too.
    """

    kafka: Kafka

    def __init__(
        self,
        service: str,
        result_topic: str | None,
        dead_letter_topic: str | None,
        dead_letter_stations: Collection[str],
        limit: DeadLetterLimit | None,
        *,
        include_ledger: bool = False,
    ) -> None:
        self._include_ledger = include_ledger
        self._service, self._result_topic, self._dead_letter_topic = service, result_topic, dead_letter_topic
        self._verdicts = dead_letter_stations
        self._brake = Brake(limit)
        self._condemned: set[str] = set()
        self._burying = 0
        self._buried = trio.Event()
        self.letters = 0
        """Dead letters that were acknowledged."""

    @property
    def topics(self) -> list[str]:
        """Where it writes."""
        return [topic for topic in (self._result_topic, self._dead_letter_topic) if topic is not None]

    @property
    def burying(self) -> int:
        """Messages that opened no batch, and whose letters are not acknowledged."""
        return self._burying

    # As the sink.

    @property
    def wanted(self) -> bool:
        """Whether a list that goes up has to come by here."""
        return self._result_topic is not None or bool(self._verdicts)

    @property
    def encode(self) -> Callable[[dict[str, Any]], bytes] | None:
        """What makes bytes of a station's result."""
        return None if self._result_topic is None else encode_result

    async def send(self, report: BatchReport, encoded: Sequence[bytes]) -> None:
        """Bring a list up, and the letter for its stations with it.

        Raises:
          As :meth:`Kafka.send`, and TooManyDeadLetters.
        """
        record = _record_of_batch()
        lists: list[Message] = []
        if self._result_topic is not None:
            value = encode_list(report.batch_id, encoded, report.ledger() if self._include_ledger else None)
            lists.append(Message(self._result_topic, report.batch_id.encode(), value, result_headers(report)))
        stations = stations_with(report, self._verdicts) if self._verdicts else []
        if not stations:
            await self.kafka.send(lists, record)
            return
        if record.claim.transactor is None and lists:
            # Where they do not go together: a list that is refused has one letter, and that says so.
            await self.kafka.send(lists, record)
            lists = []
        if not report.succeeded:
            self._condemn_batch(report, f"no station of batch {report.batch_id} has succeeded")
        await self._write(lists, record, "stations", error=report.first_error, report=report, stations=stations)
        self._condemned.discard(report.batch_id)

    def uploaded(self, report: BatchReport) -> None:
        """A list is up: the message was alive, if anything of it was."""
        if report.succeeded or not (self._verdicts and stations_with(report, self._verdicts)):
            self._brake.alive()

    # Dead letters.

    async def bury_list(self, report: BatchReport, error: Exception) -> None:
        """Write the letter of a list that was given up.

        Raises:
          As :meth:`Kafka.send`, and TooManyDeadLetters.
        """
        why = f"the list of batch {report.batch_id} was given up: {type(error).__name__}: {words(error)}"
        self._condemn_batch(report, why)
        await self._write([], _record_of_batch(), "upload_failed", error=error, report=report)
        self._condemned.discard(report.batch_id)

    def _condemn_batch(self, report: BatchReport, why: str) -> None:
        # Once, though its letter may be written anew for another reason.
        if report.batch_id not in self._condemned:
            self._condemned.add(report.batch_id)
            self._brake.dead(why)

    async def bury(self, record: Record, error: PoisonMessage) -> None:  # noqa: ASYNC910 - it has written
        """Write the letter of a message that opens no batch, and finish it; then its offset may move.

        Raises:
          As :meth:`Kafka.send`.
        """
        try:
            await self._write([], record, "poison", error=error)
            self.kafka.finish(record)
        except Closed:
            self.kafka.discard(record)  # its next owner will see to it
        finally:
            self._burying -= 1
            self.kafka.wake()
            if not self._burying:
                self._buried.set()

    def condemn(self, record: Record, error: PoisonMessage) -> bool:
        """A message is poison: says whether :meth:`bury` must be started for it.

        Raises:
          TooManyDeadLetters: if the service had better stop.
        """
        if self._dead_letter_topic is None:
            logger.warning("%s is poison and is passed over: %s", name_of(record), error.reason)
            return False
        logger.warning("%s is poison and becomes a dead letter: %s", name_of(record), error.reason)
        self._brake.dead(f"{name_of(record)} is poison: {error.reason}")
        self._burying += 1
        return True

    async def wait_buried(self) -> None:
        """Wait until every letter that was begun is acknowledged."""
        await trio.lowlevel.checkpoint()
        while self._burying:
            self._buried = trio.Event()
            await self._buried.wait()

    async def _write(self, lists: list[Message], record: Record, reason: DeadLetterReason, **facts: Any) -> None:
        assert self._dead_letter_topic is not None

        def letter(*, with_ledger: bool) -> Message:
            headers = dead_letter_headers(record, reason, self._service, with_ledger=with_ledger, **facts)
            return Message(self._dead_letter_topic or "", record.key, record.value, headers)

        try:
            try:
                await self.kafka.send([*lists, letter(with_ledger=True)], record)
            except MessageTooLarge as error:
                if error.topic != self._dead_letter_topic:
                    raise
                # The message itself may fit where its ledger did not.
                again = [Message(m.topic, m.key, m.value, m.headers) for m in lists]
                await self.kafka.send([*again, letter(with_ledger=False)], record)
        except (MessageTooLarge, TopicUnavailable) as error:
            if error.topic == self._dead_letter_topic:
                raise DeadLetterRefused(name_of(record), str(error)) from error
            raise
        self.letters += 1


def result_headers(report: BatchReport) -> list[tuple[str, bytes]]:
    """The headers of a result message: why the batch ended, and its seven counts."""
    return [
        ("trioagg-completed-by", report.completed_by.encode()),
        ("trioagg-expected", b"%d" % report.expected),
        ("trioagg-succeeded", b"%d" % report.succeeded),
        ("trioagg-no-output", b"%d" % report.no_output),
        ("trioagg-failed", b"%d" % report.failed),
        ("trioagg-timed-out", b"%d" % report.timed_out),
        ("trioagg-cancelled", b"%d" % report.cancelled),
        ("trioagg-skipped", b"%d" % report.skipped),
    ]


def _record_of_batch() -> Record:
    # The service puts nothing else there; the core knows it as an object, for it knows no Kafka.
    return cast("Record", batch_context.get().source)
