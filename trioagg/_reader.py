"""What one Kafka message asks for: its stations, each with what its callback gets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import trio

from ._errors import PoisonMessage, words
from ._stations import ModuleInputs, check_count, check_size, parse_message

if TYPE_CHECKING:
    from ._settings import InputLimits

MessageParser = Callable[[str, bytes], Mapping[str, Any]]
Join = Callable[[str, dict[str, Any]], dict[str, Any]]

logger = logging.getLogger("trioagg")


class Message(Protocol):
    """As much of a Kafka record as is looked at."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None
    value: bytes | None


def name_of(message: Message) -> str:
    """What a message is called in the log."""
    return f"message {message.topic}/{message.partition}/{message.offset}"


class Reader:
    """Reads messages by the shapes that are known, or by the user's parser, and counts what is not as it should be."""

    def __init__(self, message_parser: MessageParser | None, limits: InputLimits, join: Join | None = None) -> None:
        self._parser, self._limits, self._join = message_parser, limits, join
        self.messages = self.poison = self.empty = self.rejected = 0

    def read(self, message: Message) -> Mapping[str, Any]:
        """The stations of a message; there may be none.

        Raises:
          PoisonMessage: if it can never be processed.
        """
        self.messages += 1
        try:
            stations = self._shapes(message) if self._parser is None or message.value is None else self._ask(message)
        except PoisonMessage:
            self.poison += 1
            raise
        if not stations:
            self.empty += 1
            logger.debug("%s names no station", name_of(message))
        return stations

    def _ask(self, message: Message) -> Mapping[str, Any]:
        assert self._parser is not None
        assert message.value is not None
        check_size(message.value, self._limits)
        try:
            parsed = _interruptible(self._parser, message.topic, message.value)
        except Exception as error:
            raise PoisonMessage(f"message_parser raised {type(error).__name__}: {words(error)}") from error
        if not isinstance(parsed, Mapping):
            raise PoisonMessage(f"message_parser returned {type(parsed).__name__}, not a mapping of station ids")
        check_count(len(parsed), self._limits)
        for station_id in parsed:
            if not isinstance(station_id, str):
                raise PoisonMessage("message_parser returned a station id that is not a string")
            if len(station_id) > self._limits.max_id_chars:
                raise PoisonMessage(
                    f"message_parser returned a station id longer than max_id_chars={self._limits.max_id_chars}"
                )
        return parsed

    def _shapes(self, message: Message) -> Mapping[str, Any]:
        parsed = parse_message(message.value, self._limits)
        if parsed.rejected:
            self.rejected += parsed.rejected
            logger.warning(
                "%s has %d elements that name no station: %s",
                name_of(message),
                parsed.rejected,
                "; ".join(parsed.rejected_places),
            )
        return ModuleInputs(message.topic, parsed.stations, message.timestamp_ms, self._join)


@trio.lowlevel.disable_ki_protection  # it is the user's code; see interruptible()
def _interruptible(parser: MessageParser, topic: str, value: bytes) -> Mapping[str, Any]:
    return parser(topic, value)
