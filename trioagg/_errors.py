"""Every error we raise on purpose, and how those of others are read.

The sentence is written once, here; the facts are attributes.
"""

from __future__ import annotations


class TrioaggError(Exception):
    """The base of all errors of this library."""


class BadResult(TrioaggError):
    """A station's callback returned something that cannot be a result.  It is that station's ``failed``, no more."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StationTimedOut(TrioaggError):
    """A station took longer than its own ``station_timeout``.  It is ``failed``: ``timed_out`` is what the deadline
    says."""

    def __init__(self, station_id: str, seconds: float) -> None:
        super().__init__(f"station {station_id} took longer than its station_timeout of {seconds:g} s")
        self.station_id, self.seconds = station_id, seconds


class StationSkipped(TrioaggError):
    """A station is not run, and *reason* says why.  Its verdict is ``skipped``; a callback may raise it too."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WorkerDied(TrioaggError):
    """The process that a station ran in has died of it (a crash in native code, ``os._exit``, no memory left)."""

    def __init__(self, station_id: str) -> None:
        super().__init__(f"the worker process died while it ran station {station_id}")
        self.station_id = station_id


class PoisonMessage(TrioaggError):
    """A message that can never be processed, however often it is read.  The service counts it and moves on."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UploadFailed(TrioaggError):
    """The handler refused a list and is not asked again; ``__cause__`` says why."""

    def __init__(self, batch_id: str, attempts: int) -> None:
        super().__init__(f"upload of batch {batch_id} failed after {attempts} attempt(s)")
        self.batch_id, self.attempts = batch_id, attempts


class UploadTimedOut(TrioaggError):
    """One try of an upload took longer than it may.  It counts as a failed try."""

    def __init__(self, batch_id: str, upload_timeout: float) -> None:
        super().__init__(
            f"upload of batch {batch_id} took longer than {upload_timeout:g} s; "
            "raise upload_timeout= if your destination is this slow"
        )
        self.batch_id, self.upload_timeout = batch_id, upload_timeout


class TooManyDeadLetters(TrioaggError):
    """The service stops, because it would write a dead letter for nearly every message."""

    def __init__(self, how_many: str, reason: str) -> None:
        super().__init__(
            f"{how_many} would be dead letters, the last one because: {reason}. Nothing is committed past it. "
            "Is the callback, the parser or the topic the right one? If all is as it should be, set dead_letter_limit="
        )
        self.how_many, self.reason = how_many, reason


class DeadLetterRefused(TrioaggError):
    """Kafka takes a dead letter for nothing in the world; ``__cause__`` says why.  The service stops: a message would
    be lost that nobody has seen."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(f"the dead letter of {message} is not written: {reason}")
        self.message, self.reason = message, reason


class Closed(TrioaggError):
    """The aggregator or service takes no batch: it is not open yet, is draining, or has ended."""

    def __init__(self, what: str, state: str) -> None:
        super().__init__(f"{what} {state}: no new batch is accepted")
        self.what, self.state = what, state


class StrayCancel(TrioaggError):
    """Somebody else cancelled a nursery of ours: that of a batch's stations, or one that all batches have in common
    (*batch_id* is None then).  A list would be silently incomplete or missing."""

    def __init__(self, batch_id: str | None = None) -> None:
        whose = "the aggregator" if batch_id is None else f"batch {batch_id}"
        super().__init__(
            f"the nursery of {whose} was cancelled from outside; "
            "cancel a scope of your own inside the callback or handler instead"
        )
        self.batch_id = batch_id


class KafkaError(TrioaggError):
    """Kafka refused, and trying again as we are would not help.  *hint* says what to do."""

    def __init__(self, what: str, reason: str, hint: str = "") -> None:
        super().__init__(f"{what}: {reason}" + (f". {hint}" if hint else ""))
        self.what, self.reason, self.hint = what, reason, hint


class ConnectFailed(KafkaError):
    """No working connection within ``connect_timeout``: no broker, a wrong address, a refused login."""

    def __init__(self, bootstrap_servers: str, reason: str, hint: str = "") -> None:
        super().__init__(f"cannot connect to Kafka at {bootstrap_servers}", reason, hint)
        self.bootstrap_servers = bootstrap_servers


class MessageTooLarge(KafkaError):
    """Kafka takes no message of this size, *size* in bytes."""

    def __init__(self, topic: str, size: int, reason: str, hint: str) -> None:
        super().__init__(f"a message of {size} bytes to topic {topic!r}", reason, hint)
        self.topic, self.size = topic, size


class TopicUnavailable(KafkaError):
    """A topic does not exist, or we may not use it."""

    def __init__(self, topic: str, bootstrap_servers: str, reason: str, hint: str = "") -> None:
        super().__init__(f"topic {topic!r} on Kafka at {bootstrap_servers}", reason, hint)
        self.topic, self.bootstrap_servers = topic, bootstrap_servers


def words(error: BaseException) -> str:
    """What an error says, in one line; whatever class of a stranger's it is."""
    try:
        return printable(str(error))
    except Exception:
        return "(its message cannot be read)"


def printable(text: str) -> str:
    """A stranger's text for a log or a header: no line breaks that would forge a line, no half of a surrogate pair."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
