"""TLS and passwords against a real Kafka: the ways in work, every refusal says why, and no log has a secret."""
# flake8: noqa: ASYNC110, ASYNC910 - another machine is waited for

from __future__ import annotations

import contextlib
import datetime
import functools
import gc
import logging
import ssl
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trustme
from broker import Broker
from cryptography.hazmat.primitives import serialization
from load import Load, double

from trioagg import AsyncDataAnalysisService, ConnectFailed, KafkaSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.kafka

USER, PASSWORD, GUESS = "carol", "carols-own-secret", "what-mallory-guessed"

LISTENERS = {
    "TLS": "SSL",
    "EXPIRED": "SSL",
    "ELSEWHERE": "SSL",
    "MUTUAL": "SSL",
    "SASLPLAIN": "SASL_SSL",
    "SASLSCRAM": "SASL_SSL",
}
SCRAM = ["SCRAM-SHA-256", "SCRAM-SHA-512"]


@dataclass(frozen=True)
class Secured:
    """A broker with TLS and passwords, and the authority that signed its certificates."""

    broker: Broker
    authority: trustme.CA

    def trusting(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def settings(self, protocol: str, mechanism: str | None = None, **others: Any) -> KafkaSettings:
        settings: dict[str, Any] = {"session_timeout": 6.0, "heartbeat_interval": 0.5, "security_protocol": protocol}
        if "SSL" in protocol.split("_"):
            settings["ssl_context"] = self.trusting()
        if mechanism is not None:
            settings |= {"sasl_mechanism": mechanism, "sasl_username": USER, "sasl_password": PASSWORD}
        return KafkaSettings(**{**settings, **others})


def key_store(certificate: trustme.LeafCert) -> bytes:
    """One file as Kafka reads it.  It wants PKCS#8, and trustme's key is not."""
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    encoding, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    pem = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, no_password)
    return pem + b"".join(blob.bytes() for blob in certificate.cert_chain_pems)


@pytest.fixture(scope="module")
def secured(jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder, authority = tmp_path_factory.mktemp("certificates"), trustme.CA()
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    settings = {"ssl.keystore.type": "PEM", "ssl.truststore.type": "PEM"}

    def identify(listener: str, name: str, **validity: datetime.datetime) -> None:
        file = folder / f"{listener}.pem"
        file.write_bytes(key_store(authority.issue_cert(name, **validity)))
        settings[f"listener.name.{listener.lower()}.ssl.keystore.location"] = str(file)

    for listener in ("TLS", "MUTUAL", "SASLPLAIN", "SASLSCRAM"):
        identify(listener, "127.0.0.1")
    identify("EXPIRED", "127.0.0.1", not_after=yesterday)
    identify("ELSEWHERE", "kafka.elsewhere.example")
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    settings["listener.name.mutual.ssl.truststore.location"] = str(folder / "authority.pem")
    settings["listener.name.mutual.ssl.client.auth"] = "required"
    modules = "org.apache.kafka.common.security"
    settings["listener.name.saslplain.sasl.enabled.mechanisms"] = "PLAIN"
    settings["listener.name.saslplain.plain.sasl.jaas.config"] = (
        f'{modules}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
    )
    settings["listener.name.saslscram.sasl.enabled.mechanisms"] = ",".join(SCRAM)
    users = []
    for mechanism in SCRAM:
        key = f"listener.name.saslscram.{mechanism.lower()}.sasl.jaas.config"
        settings[key] = f"{modules}.scram.ScramLoginModule required;"
        users += ["--add-scram", f"{mechanism}=[name={USER},password={PASSWORD}]"]
    with Broker(jars, settings, listeners=LISTENERS, format_options=users) as broker:
        yield Secured(broker, authority)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    yield
    gc.collect()  # what was not closed warns now, and not in another test


async def until_up(service: AsyncDataAnalysisService, batches: int) -> None:
    while service.statistics().uploaded < batches:
        await trio.sleep(0.01)


async def refusal(address: str, settings: KafkaSettings, *, connect_timeout: float = 10) -> str:
    """What the service says instead of starting; in time, and without a secret anywhere in its traceback."""
    service = AsyncDataAnalysisService(
        "refused", ["topic"], bootstrap_servers=address, kafka=settings, connect_timeout=connect_timeout
    )
    started = trio.current_time()
    with trio.fail_after(60), pytest.raises(ConnectFailed) as caught:
        async with service.start(double, lambda batch_id, results: None):
            pytest.fail("it was let in")
    assert trio.current_time() - started < connect_timeout + 5  # to close what was opened, on a slow machine too
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(service)
    assert PASSWORD not in told
    assert GUESS not in told
    sentence = str(caught.value)
    assert sentence.startswith(f"cannot connect to Kafka at {address}: ")
    return sentence


def talked_about(secret: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Where a log has it, be it only as an argument.  The client's own lines must be there, or this means nothing."""
    assert any(record.name == "aiokafka.conn" and record.levelno == logging.DEBUG for record in caplog.records)
    told = [record for record in caplog.records if secret in record.getMessage() + repr(vars(record))]
    return [record.name for record in told]


WAYS_IN = [
    ("TLS", "SSL", None),
    ("SASLPLAIN", "SASL_SSL", "PLAIN"),
    *(("SASLSCRAM", "SASL_SSL", mechanism) for mechanism in SCRAM),
]


@pytest.mark.parametrize(("listener", "protocol", "mechanism"), WAYS_IN)
async def test_messages_become_lists_and_no_log_record_has_the_password(
    secured: Secured, listener: str, protocol: str, mechanism: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    load = await trio.to_thread.run_sync(Load, secured.broker.bootstrap, 10)
    address, settings = secured.broker.address(listener), secured.settings(protocol, mechanism)
    service = AsyncDataAnalysisService(
        load.group, [load.topic], bootstrap_servers=address, result_topic=load.results, kafka=settings
    )
    with trio.fail_after(60):
        async with service.start(double):
            await until_up(service, 10)
    lists = await trio.to_thread.run_sync(load.lists)
    assert (len(lists), set(lists.values())) == (10, {1})
    assert await trio.to_thread.run_sync(load.committed) == await trio.to_thread.run_sync(load.ends)
    assert PASSWORD not in repr(settings) + repr(service)
    assert talked_about(PASSWORD, caplog) == []


async def test_a_client_shows_its_own_certificate(secured: Secured) -> None:
    load = await trio.to_thread.run_sync(Load, secured.broker.bootstrap, 1)
    context = secured.trusting()
    secured.authority.issue_cert("client@example.org").configure_cert(context)
    service = AsyncDataAnalysisService(
        load.group,
        [load.topic],
        bootstrap_servers=secured.broker.address("MUTUAL"),
        result_topic=load.results,
        kafka=secured.settings("SSL", ssl_context=context),
    )
    with trio.fail_after(60):
        async with service.start(double):
            await until_up(service, 1)


@pytest.mark.parametrize("shown", ["nothing", "a stranger's"])
async def test_a_broker_that_wants_another_certificate_of_ours(secured: Secured, shown: str) -> None:
    address, context = secured.broker.address("MUTUAL"), secured.trusting()
    if shown != "nothing":
        trustme.CA().issue_cert("client@example.org").configure_cert(context)
    sentence = await refusal(address, secured.settings("SSL", ssl_context=context))
    assert f"{address} wants a certificate of ours that it trusts: " in sentence
    assert "load_cert_chain()" in sentence


@pytest.mark.parametrize(
    ("listener", "mechanism"), [("SASLPLAIN", "PLAIN"), *(("SASLSCRAM", mechanism) for mechanism in SCRAM)]
)
@pytest.mark.parametrize("user", [USER, "mallory"])
async def test_a_wrong_password_and_an_unknown_user_are_refused_alike_and_the_guess_is_not_logged(
    secured: Secured, listener: str, mechanism: str, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    address = secured.broker.address(listener)
    settings = secured.settings("SASL_SSL", mechanism, sasl_username=user, sasl_password=GUESS)
    sentence = await refusal(address, settings)
    assert f"authentication failed for user {user!r} ({mechanism}) at {address}. Check sasl_username" in sentence
    assert GUESS not in repr(settings)
    assert talked_about(GUESS, caplog) == []


@pytest.mark.parametrize(
    ("listener", "mechanism"), [("SASLPLAIN", "SCRAM-SHA-256"), ("SASLPLAIN", "SCRAM-SHA-512"), ("SASLSCRAM", "PLAIN")]
)
async def test_a_mechanism_that_is_not_offered_is_named(secured: Secured, listener: str, mechanism: str) -> None:
    address = secured.broker.address(listener)
    sentence = await refusal(address, secured.settings("SASL_SSL", mechanism))
    assert sentence.endswith(
        f": {address} does not offer sasl_mechanism={mechanism!r}. "
        "What it offers is in its setting sasl.enabled.mechanisms"
    )


async def test_a_login_where_none_is_taken(secured: Secured) -> None:
    address = secured.broker.address("TLS")
    sentence = await refusal(address, secured.settings("SASL_SSL", "PLAIN"))
    assert sentence.endswith(f": {address} takes no login. Is it a port for security_protocol='SSL'?")


@pytest.mark.parametrize("known", ["nobody", "the system's"])
async def test_an_authority_that_is_not_known(secured: Secured, known: str) -> None:
    address = secured.broker.address("TLS")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if known == "nobody" else None
    sentence = await refusal(address, secured.settings("SSL", ssl_context=context))
    assert f"the certificate of {address} is not trusted: " in sentence
    assert sentence.endswith(". Give ssl_context= the authority that signed it")


async def test_an_expired_certificate(secured: Secured) -> None:
    address = secured.broker.address("EXPIRED")
    sentence = await refusal(address, secured.settings("SSL"))
    assert f"the certificate of {address} is not trusted: certificate has expired. Renew it" in sentence
    assert "authority" not in sentence


async def test_a_certificate_for_another_name(secured: Secured) -> None:
    address = secured.broker.address("ELSEWHERE")
    sentence = await refusal(address, secured.settings("SSL"))
    assert f"the certificate of {address} is not trusted: IP address mismatch" in sentence
    assert "'127.0.0.1'. Use a name that it was made for" in sentence
    assert "authority" not in sentence


# The port, and the protocol and mechanism of a client that is wrong there.
AT_CROSS_PURPOSES = [
    ("TLS", "PLAINTEXT", None),
    ("SASLPLAIN", "SASL_PLAINTEXT", "PLAIN"),
    ("SASLSCRAM", "SASL_PLAINTEXT", "SCRAM-SHA-512"),
    ("PLAINTEXT", "SSL", None),
    ("PLAINTEXT", "SASL_SSL", "PLAIN"),
    ("SASLPLAIN", "SSL", None),
]


async def test_a_client_and_a_port_of_which_one_speaks_tls_or_asks_for_a_login_and_the_other_does_not(
    secured: Secured,
) -> None:
    async def ask(listener: str, protocol: str, mechanism: str | None) -> None:
        address = secured.broker.address(listener)
        # Such a port looks like a broker that is ill: it is tried again until the time is over.
        sentence = await refusal(address, secured.settings(protocol, mechanism), connect_timeout=4)
        assert f": {address} closed the connection (tried for " in sentence
        assert sentence.endswith(f"Does this port want another security_protocol than {protocol!r}?")

    async with trio.open_nursery() as nursery:
        for client in AT_CROSS_PURPOSES:
            nursery.start_soon(ask, *client)


async def test_a_server_that_falls_silent_behind_its_tls_leaves_no_socket_behind(secured: Secured) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    secured.authority.issue_cert("127.0.0.1").configure_cert(server)

    async def say_no_more(stream: trio.SSLStream[trio.SocketStream]) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.do_handshake()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        serve = functools.partial(trio.serve_ssl_over_tcp, host="127.0.0.1")
        listeners = await nursery.start(serve, say_no_more, 0, server)
        address = f"127.0.0.1:{listeners[0].transport_listener.socket.getsockname()[1]}"
        sentence = await refusal(address, secured.settings("SSL"), connect_timeout=2)
        assert f"no answer from {address}" in sentence
        nursery.cancel_scope.cancel()
