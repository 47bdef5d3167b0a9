"""Reaching Kafka: the first connection, whether the topics are there, and what a refusal means in plain words.

``_aio`` marks an asyncio-flavoured function.
"""
# flake8: noqa: ASYNC102, ASYNC910, ASYNC911 - asyncio knows neither scopes nor checkpoints

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiokafka.errors
import trio
from aiokafka.conn import AIOKafkaConnection, collect_hosts
from aiokafka.protocol.metadata import MetadataRequest

from ._errors import ConnectFailed, KafkaError, TopicUnavailable, TrioaggError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from ._settings import KafkaSettings

logger = logging.getLogger("trioagg")

RETRY_BACKOFF_SECONDS: Final = 0.25
WEDGED_RESERVE_SECONDS: Final = 15.0
"""Beyond a session, for what is only slow: a broker that dies is replaced as leader and coordinator after 9 to 11 s."""
_LOGIN_REFUSED: Final = (
    aiokafka.errors.SaslAuthenticationFailed,
    aiokafka.errors.AuthenticationFailedError,
)
_NOT_VALID_NOW: Final = (9, 10)
_ANOTHER_NAME: Final = (62, 64)
"""OpenSSL's X509_V_ERR: not yet valid, expired; another host name, another IP address."""
_OUR_CERTIFICATE: Final = ("ALERT_BAD_CERT", "ALERT_CERTIFICATE", "ALERT_UNKNOWN_CA", "ALERT_NO_CERT")
"""What brokers answer to a client without a certificate, or with one that they do not trust."""
_AGAIN_AFTER_SECONDS: Final = 0.5
_SHORTEST_TRY_SECONDS: Final = 1.0


class _WithoutLogins(logging.Filter):
    """At DEBUG the client logs every request as it is; a login by PLAIN is the password, one by SCRAM a proof of it."""

    def filter(self, record: logging.LogRecord) -> bool:
        args = record.args if isinstance(record.args, tuple) else ()
        return not any(type(value).__name__.startswith("SaslAuthenticate") for value in args)


# For good, and not for the time of a block: there is no moment at which that should be in a log.
logging.getLogger("aiokafka.conn").addFilter(_WithoutLogins())


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
        mapped: KafkaError
        if isinstance(error, aiokafka.errors.TopicAuthorizationFailedError):
            topics = error.args[0] if error.args else "?"
            mapped = self.no_topic(topics if isinstance(topics, str) else ", ".join(sorted(topics)), type(error))
        elif isinstance(error, aiokafka.errors.GroupAuthorizationFailedError):
            group = error.args[0] if error.args else "?"
            mapped = KafkaError(
                f"group {group!r} on {what}", "not authorised", f"{self._who()} needs READ on this group"
            )
        elif isinstance(error, aiokafka.errors.TransactionalIdAuthorizationFailed):
            hint = f"{self._who()} needs WRITE on the transactional ids that begin with the group and a slash"
            mapped = KafkaError(what, "not authorised for transactions", hint)
        elif isinstance(error, aiokafka.errors.ClusterAuthorizationFailedError):
            hint = f"{self._who()} needs WRITE on the result topic (before Kafka 3.0 IDEMPOTENT_WRITE too)"
            mapped = KafkaError(what, "not authorised to produce", hint)
        elif isinstance(error, aiokafka.errors.KafkaError):
            mapped = KafkaError(what, _words(error))
        else:
            return error
        mapped.__cause__ = error
        return mapped

    def no_topic(self, topic: str, why: type[BaseException]) -> TopicUnavailable:
        if why is aiokafka.errors.TopicAuthorizationFailedError:
            reason, hint = "not authorised", f"{self._who()} needs READ on it, or WRITE for results"
        elif why is aiokafka.errors.InvalidTopicError:
            reason, hint = "no valid name for a topic", ""
        elif why is aiokafka.errors.UnknownTopicOrPartitionError:
            reason = "does not exist"
            hint = (
                f"Create it: kafka-topics.sh --bootstrap-server {self.bootstrap_servers} "
                f"--create --topic {topic} --partitions 3"
            )
        else:
            reason, hint = why.__name__, ""
        return TopicUnavailable(topic, self.bootstrap_servers, reason, hint)

    def _who(self) -> str:
        return f"the user {self.settings.sasl_username!r}" if self.settings.sasl_username else "this client"

    def reason_of(self, complaint: BaseException | str) -> Reason:
        """Why the clients did not start, though a first connection worked."""
        if isinstance(complaint, BaseException):
            return self.explain(complaint, self.reached)
        return Reason(f"{self.reached}: {complaint}")

    def explain(self, error: BaseException, where: str) -> Reason:
        """Why a connection to *where* failed.  ``final``: trying again would end in the same way."""
        settings = self.settings
        if isinstance(error, aiokafka.errors.KafkaConnectionError) and isinstance(error.__cause__, OSError):
            error = error.__cause__
        if isinstance(error, aiokafka.errors.UnsupportedSaslMechanismError):
            text = f"{where} does not offer sasl_mechanism={settings.sasl_mechanism!r}"
            return Reason(text, "What it offers is in its setting sasl.enabled.mechanisms", True)
        if isinstance(error, aiokafka.errors.IllegalSaslStateError):
            hint = f"Is it a port for security_protocol={settings.security_protocol.removeprefix('SASL_')!r}?"
            return Reason(f"{where} takes no login", hint, True)
        if isinstance(error, _LOGIN_REFUSED):
            text = f"authentication failed for user {settings.sasl_username!r} ({settings.sasl_mechanism}) at {where}"
            return Reason(text, "Check sasl_username and sasl_password", True)
        if isinstance(error, ssl.SSLCertVerificationError):
            text = f"the certificate of {where} is not trusted: {error.verify_message.rstrip('.')}"
            if error.verify_code in _NOT_VALID_NOW:
                hint = "Renew it on the broker; or is the clock of this machine wrong?"
            elif error.verify_code in _ANOTHER_NAME:
                hint = "Use a name that it was made for, in bootstrap_servers and in the broker's advertised.listeners"
            else:
                hint = "Give ssl_context= the authority that signed it"
            return Reason(text, hint, True)
        if isinstance(error, ssl.SSLError) and any(word in (error.reason or "") for word in _OUR_CERTIFICATE):
            text = f"{where} wants a certificate of ours that it trusts: {error.reason}"
            return Reason(text, "Load it into the ssl_context, with load_cert_chain()", True)
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


async def look_for_topic_aio(address: Address, topic: str, seconds: float) -> TopicUnavailable | None:
    """Ask the brokers whether *topic* is still there; None as well if nobody answers within so many *seconds*."""
    try:
        await _try_hosts_aio(address, [topic], asyncio.get_running_loop().time() + seconds)
    except TopicUnavailable as error:
        return error
    except (_NotYet, TrioaggError):
        pass
    return None


async def is_reachable_aio(address: Address) -> bool:
    """Whether a broker answers a new connection, now."""
    try:
        await _try_hosts_aio(address, [], asyncio.get_running_loop().time() + address.settings.request_timeout)
    except (_NotYet, TrioaggError):
        return False
    return True


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
                answer = await connection.send(MetadataRequest(list(topics), allow_auto_topic_creation=False))
        except (OSError, EOFError, ValueError, aiokafka.errors.KafkaError) as error:
            # A ValueError is SCRAM's, of a server that cannot prove that it knows the password.
            reasons.append(address.explain(error, spelled(host, port)))
            continue
        brokers = [(broker[1], broker[2]) for broker in answer.brokers]
        await _try_advertised_aio(address, brokers, (host, port), deadline)
        return _partitions(address, answer)
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
async def _connection_aio(
    address: Address, host: str, port: int, deadline: float, tries_left: int
) -> AsyncIterator[Any]:
    loop: Any = asyncio.get_running_loop()
    # One silent host of three must not take the time of the others.
    seconds = max(_SHORTEST_TRY_SECONDS, (deadline - loop.time()) / tries_left)
    async with asyncio.timeout(seconds):
        # Asked first through Trio, whose resolver thread can be left behind: asyncio's would be waited for.
        await loop.trio_as_future(trio.socket.getaddrinfo, host, port)
        connection = AIOKafkaConnection(host, port, **address.login())
        patience = 0.0
        try:
            await connection.connect()
            patience = _SHORTEST_TRY_SECONDS
            yield connection
        finally:
            await _close_aio(connection, patience)


async def _close_aio(connection: AIOKafkaConnection, patience: float) -> None:
    closed = connection.close()
    if closed is None:
        return
    if patience:
        await asyncio.wait([closed], timeout=patience)
    # The goodbye of TLS waits for its answer, by default for 30 seconds.  Our loop may have ended by then, and the
    # socket would be left to the garbage collector.  Private names: without them that is what happens.
    transport = getattr(getattr(connection, "_protocol", None), "_transport", None)
    if transport is not None:
        transport.abort()
        await asyncio.wait([closed], timeout=_SHORTEST_TRY_SECONDS)


def _partitions(address: Address, answer: Any) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for code, topic, *_, partitions in answer.topics:
        why = aiokafka.errors.for_code(code)
        if why not in (aiokafka.errors.NoError, aiokafka.errors.LeaderNotAvailableError):
            raise address.no_topic(topic, why)
        found[topic] = [partition[1] for partition in partitions]
    return found
