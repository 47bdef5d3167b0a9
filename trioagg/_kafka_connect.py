"""Reaching Kafka: the first connection, whether the topics are there, and what a refusal means in plain words.

``_aio`` marks an asyncio-flavoured function.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiokafka.errors
import trio
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.protocol.metadata import MetadataRequest

from ._errors import ConnectFailed, KafkaError, TopicUnavailable, TrioaggError

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Iterator

    from ._settings import KafkaSettings

logger = logging.getLogger("trioagg")

RETRY_BACKOFF_SECONDS: Final = 0.25
_LOGIN_REFUSED: Final = (
    aiokafka.errors.SaslAuthenticationFailed,
    aiokafka.errors.UnsupportedSaslMechanismError,
    aiokafka.errors.IllegalSaslStateError,
    aiokafka.errors.AuthenticationFailedError,
)
_AGAIN_AFTER_SECONDS: Final = 0.5
_SHORTEST_TRY_SECONDS: Final = 1.0


class Address:
    """Where Kafka is and how to talk to it.

    Raises:
      ValueError: if *bootstrap_servers* is not ``host:port``, or several of them with commas.
    """

    def __init__(self, bootstrap_servers: str, settings: KafkaSettings) -> None:
        self.bootstrap_servers, self.settings = bootstrap_servers, settings
        try:
            self.hosts: list[tuple[str, int]] = [(host, port) for host, port, _ in collect_hosts(bootstrap_servers)]
        except ValueError:
            raise ValueError(f"bootstrap_servers={bootstrap_servers!r}: use host:port, several with commas") from None
        self.reached = bootstrap_servers
        """Where the first connection went through: a client that starts asks one after the other, each for long."""
        self._ssl_context = settings.ssl_context
        if self._ssl_context is None and "SSL" in settings.security_protocol.split("_"):
            self._ssl_context = ssl.create_default_context()

    def login(self) -> dict[str, Any]:
        """The arguments that a bare connection and a client have in common."""
        settings = self.settings
        return {
            "client_id": settings.client_id,
            "request_timeout_ms": round(settings.request_timeout * 1000),
            "security_protocol": settings.security_protocol,
            "ssl_context": self._ssl_context,
            "sasl_mechanism": settings.sasl_mechanism or "PLAIN",
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": settings.sasl_password,
        }

    def client(self, bootstrap_servers: str) -> dict[str, Any]:
        """The arguments that a consumer and a producer have in common."""
        return {
            **self.login(),
            "bootstrap_servers": bootstrap_servers,
            "retry_backoff_ms": round(RETRY_BACKOFF_SECONDS * 1000),
        }

    def failed(self, reason: Reason) -> ConnectFailed:
        return ConnectFailed(self.bootstrap_servers, reason.text, reason.hint)

    def at_the_edge(self, error: BaseException) -> BaseException:
        """What a client's error is called on our side.  What is no Kafka error stays what it is: it is a bug."""
        what = f"Kafka at {self.bootstrap_servers}"
        if isinstance(error, aiokafka.errors.TopicAuthorizationFailedError):
            topics = error.args[0] if error.args else "?"
            topic = topics if isinstance(topics, str) else ", ".join(sorted(topics))
            return self.no_topic(topic, aiokafka.errors.TopicAuthorizationFailedError.errno)
        if isinstance(error, aiokafka.errors.GroupAuthorizationFailedError):
            group = error.args[0] if error.args else "?"
            mapped = KafkaError(f"group {group!r} on {what}", "not authorised", "it needs the right READ on this group")
        elif isinstance(error, aiokafka.errors.KafkaError):
            mapped = KafkaError(what, _words(error))
        else:
            return error
        mapped.__cause__ = error
        return mapped

    def no_topic(self, topic: str, code: int) -> TopicUnavailable:
        if code == aiokafka.errors.TopicAuthorizationFailedError.errno:
            reason, hint = "not authorised", f"{self._who()} needs the rights on this topic (READ, WRITE for results)"
        elif code == aiokafka.errors.InvalidTopicError.errno:
            reason, hint = "no valid name for a topic", ""
        else:
            reason = "does not exist"
            hint = (
                f"Create it: kafka-topics.sh --bootstrap-server {self.bootstrap_servers} "
                f"--create --topic {topic} --partitions 3"
            )
        return TopicUnavailable(topic, self.bootstrap_servers, reason, hint)

    def _who(self) -> str:
        return f"the user {self.settings.sasl_username!r}" if self.settings.sasl_username else "this client"

    def explain(self, error: BaseException, where: str) -> Reason:
        """Why a connection to *where* failed.  ``final``: trying again would end in the same way."""
        settings = self.settings
        if isinstance(error, aiokafka.errors.KafkaConnectionError) and isinstance(error.__cause__, OSError):
            error = error.__cause__
        if isinstance(error, aiokafka.errors.UnsupportedSaslMechanismError):
            return Reason(f"{where} does not offer sasl_mechanism={settings.sasl_mechanism!r}", _words(error), True)
        if isinstance(error, _LOGIN_REFUSED):
            text = f"authentication failed for user {settings.sasl_username!r} ({settings.sasl_mechanism})"
            return Reason(text, "Check sasl_username and sasl_password", True)
        if isinstance(error, ssl.SSLCertVerificationError):
            text = f"the certificate of {where} is not trusted: {error.verify_message}"
            return Reason(text, "Give ssl_context= the authority that signed it", True)
        if isinstance(error, ssl.SSLError):
            text = f"no TLS with {where}: {error.reason or error}"
            hint = f"Is this a port that speaks TLS? security_protocol is {settings.security_protocol!r}"
            return Reason(text, hint, error.reason == "WRONG_VERSION_NUMBER")
        if isinstance(error, socket.gaierror):
            return Reason(f"the name in {where} does not resolve", "Check bootstrap_servers")
        if isinstance(error, ConnectionRefusedError):
            return Reason(f"{where} refused the connection", "Is a broker running there?")
        if isinstance(error, TimeoutError):
            return Reason(f"no answer from {where}", "Is it a Kafka port, and does a firewall let us through?")
        if isinstance(error, ConnectionError | EOFError | aiokafka.errors.KafkaConnectionError):
            hint = f"Does this port want another security_protocol than {settings.security_protocol!r}?"
            return Reason(f"{where} closed the connection", hint)
        return Reason(f"{where}: {_words(error)}")


@dataclass(frozen=True, slots=True)
class Reason:
    text: str
    hint: str = ""
    final: bool = False


def _words(error: BaseException) -> str:
    name, text = type(error).__name__, str(error)
    return f"{name}: {text}" if text else name


def spelled(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def connect_aio(address: Address, topics: Collection[str], connect_timeout: float) -> dict[str, list[int]]:
    """Find a broker that lets us in, and the partitions of *topics*.  No topic is created by asking.

    Raises:
      ConnectFailed: if no broker could be used within *connect_timeout* seconds, or one refused us for good.
      TopicUnavailable: if a topic does not exist, or we may not see it.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    deadline = started + connect_timeout
    told = False
    while True:
        try:
            return await _try_hosts_aio(address, topics, deadline)
        except _NotYet as error:
            reason = error.reason
        left = deadline - loop.time()
        if reason.final or left <= _AGAIN_AFTER_SECONDS:
            text = reason.text if reason.final else f"{reason.text} (tried for {loop.time() - started:.0f} s)"
            raise address.failed(Reason(text, reason.hint))
        if not told:
            told = True
            logger.warning(
                "cannot connect to Kafka at %s yet: %s; trying for %.0f s more",
                address.bootstrap_servers,
                reason.text,
                left,
            )
        await asyncio.sleep(_AGAIN_AFTER_SECONDS)


async def look_for_topic_aio(address: Address, topic: str, timeout: float) -> TopicUnavailable | None:
    """Ask the brokers whether *topic* is still there; None as well if nobody answers within *timeout* seconds."""
    try:
        await _try_hosts_aio(address, [topic], asyncio.get_running_loop().time() + timeout)
    except TopicUnavailable as error:
        return error
    except (_NotYet, TrioaggError):
        pass
    return None


class _NotYet(Exception):
    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.text)
        self.reason = reason


async def _try_hosts_aio(address: Address, topics: Collection[str], deadline: float) -> dict[str, list[int]]:
    hosts = random.sample(address.hosts, len(address.hosts))
    reasons: list[Reason] = []
    for index, (host, port) in enumerate(hosts):
        try:
            async with _connection_aio(address, host, port, deadline, len(hosts) - index) as connection:
                brokers, partitions = await _ask_aio(address, connection, topics)
        except TopicUnavailable:
            raise
        except (OSError, EOFError, aiokafka.errors.KafkaError) as error:
            reasons.append(address.explain(error, spelled(host, port)))
            continue
        await _try_advertised_aio(address, brokers, (host, port), deadline)
        return partitions
    raise _NotYet(next((reason for reason in reasons if reason.final), reasons[-1]))


async def _try_advertised_aio(
    address: Address, brokers: list[tuple[str, int]], known: tuple[str, int], deadline: float
) -> None:
    # The first address is for the first question only; from then on it is the brokers' own that count, and those are
    # wrong in many a configuration.
    if known in brokers:
        address.reached = spelled(*known)
        return
    reason = Reason("the cluster named no broker")
    for index, (host, port) in enumerate(brokers):
        try:
            async with _connection_aio(address, host, port, deadline, len(brokers) - index):
                address.reached = spelled(host, port)
                return
        except (OSError, EOFError, aiokafka.errors.KafkaError) as error:
            found = address.explain(error, spelled(host, port))
            hint = f"{spelled(*known)} gives its clients this address (advertised.listeners)"
            reason = Reason(found.text, hint, found.final)
    raise _NotYet(reason)


@contextlib.asynccontextmanager
async def _connection_aio(address: Address, host: str, port: int, deadline: float, tries_left: int) -> Any:
    loop: Any = asyncio.get_running_loop()
    # One silent host of three must not take the time of the others.
    seconds = max(_SHORTEST_TRY_SECONDS, (deadline - loop.time()) / tries_left)
    async with asyncio.timeout(seconds):
        # Asked first through Trio, whose resolver thread can be left behind: asyncio's would be waited for.
        await loop.trio_as_future(trio.socket.getaddrinfo, host, port)
        connection = await create_conn(host, port, **address.login())
        try:
            yield connection
        finally:
            closed = connection.close()
            if closed is not None:
                await asyncio.wait([closed], timeout=_SHORTEST_TRY_SECONDS)


async def _ask_aio(
    address: Address, connection: Any, topics: Collection[str]
) -> tuple[list[tuple[str, int]], dict[str, list[int]]]:
    answer = await connection.send(MetadataRequest(list(topics), allow_auto_topic_creation=False))
    found: dict[str, list[int]] = {}
    for code, topic, _, partitions in answer.topics:
        if code not in (0, aiokafka.errors.LeaderNotAvailableError.errno):
            raise address.no_topic(topic, code)
        found[topic] = sorted(partition[1] for partition in partitions)
    brokers = [(host, port) for _, host, port, *_ in answer.brokers]
    return brokers, found


async def unhurried_aio(start: Coroutine[Any, Any, None]) -> None:
    """Await the start of a client; a cancellation waits a second for its end.

    Cancelled in its first question, it forgets the connection that it asked over.
    """
    task = asyncio.create_task(start)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await ended_aio(task, _SHORTEST_TRY_SECONDS)
        raise


async def ended_aio(task: asyncio.Task[Any], seconds: float, *, cancel: bool = True) -> bool:
    """Give a task so long to end, cancel it then, and let nobody complain that its error was not looked at."""
    if not task.done() and seconds > 0:
        await asyncio.wait({task}, timeout=seconds)
    ended = task.done()
    if not ended and cancel:
        task.cancel()
        await asyncio.wait({task}, timeout=_SHORTEST_TRY_SECONDS)
    if task.done() and not task.cancelled():
        task.exception()
    return ended


def abandon(client: Any) -> None:
    """Let go of a client that would not be closed in time, so that nothing of it warns when it is collected."""
    for connection in list(getattr(client, "_conns", {}).values()):
        connection.close()


class Hush(logging.Filter):
    """Keeps the client's own log readable: one line of a kind in ten seconds.

    While a broker is away the client writes 50 to 110 lines a second.  During the start it writes none, and the last
    complaint is kept for the error that we raise.
    """

    SECONDS: Final = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.starting = True
        self.complaint: BaseException | str | None = None
        self._lines: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        if self.starting:
            if record.levelno >= logging.WARNING:
                args = record.args if isinstance(record.args, tuple) else ()
                errors = [value for value in args if isinstance(value, BaseException)]
                self.complaint = errors[-1] if errors else record.getMessage()
            return False
        key = (record.name, str(record.msg))
        now = time.monotonic()
        until, more = self._lines.get(key, (0.0, 0))
        if now < until:
            self._lines[key] = (until, more + 1)
            return False
        self._lines[key] = (now + self.SECONDS, 0)
        if more:
            record.msg = f"{record.msg} ({more} more like this one were left out)"
        return True

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        # A logger's filter sees what is logged to that very logger only, not what comes up from its children.
        names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "aiokafka"]
        loggers = [logging.getLogger(name) for name in {"aiokafka", *names}]
        for each in loggers:
            each.addFilter(self)
        try:
            yield
        finally:
            for each in loggers:
                each.removeFilter(self)
