"""The Kafka client's own log, made fit for people."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECONDS: Final = 10.0


class Hush(logging.Filter):
    """One line of a kind in ten seconds.  While a broker is away the client writes 50 to 110 lines a second.

    Until :meth:`started` it lets nothing through and keeps the last complaint, for the error that we raise ourselves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.complaint: BaseException | str | None = None
        self._starting = True
        self._lines: dict[tuple[str, str], tuple[float, int]] = {}
        """Of every kind of line: when the next may come, and how many were left out."""

    def started(self) -> None:
        self._starting, self.complaint = False, None

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        if self._starting:
            self._keep(record)
            return False
        kind = (record.name, str(record.msg))
        now = time.monotonic()
        until, left_out = self._lines.get(kind, (now, 0))
        if now < until:
            self._lines[kind] = (until, left_out + 1)
            return False
        self._lines[kind] = (now + _SECONDS, 0)
        if left_out:
            record.msg = f"{record.msg} ({left_out} more like this were left out)"
        return True

    def _keep(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            args = record.args if isinstance(record.args, tuple) else ()
            errors = [value for value in args if isinstance(value, BaseException)]
            self.complaint = errors[-1] if errors else record.getMessage()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Filter what the client logs within the block."""
        # A logger's filter sees what is logged to that very logger, not what comes up from its children.
        names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "aiokafka"]
        loggers = [logging.getLogger(name) for name in {"aiokafka", *names}]
        for logger in loggers:
            logger.addFilter(self)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(self)
