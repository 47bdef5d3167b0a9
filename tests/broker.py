"""A real Apache Kafka for the tests: one KRaft node or three, on Java, from Maven's jars.  It knows nothing of trioagg.

Everything here is synchronous and bounded.  A test on Trio calls the quick parts as they are and
`restart` through `trio.to_thread.run_sync`.  The second half asks a broker questions with librdkafka, a
client that is not the one under test.
"""

from __future__ import annotations

import atexit
import base64
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

KAFKA_VERSION = "4.3.1"
USER, PASSWORD = "alice", "alice-secret"
"""Who may come in through `Broker.sasl_bootstrap`, with the mechanism PLAIN."""

POM = Path(__file__).with_name("kafka-pom.xml")
WHAT_TO_INSTALL = (
    "the Kafka tests need Java 17 or newer (`java`), Maven (`mvn`) and a Maven repository that it can reach, "
    "or TRIOAGG_TEST_BOOTSTRAP=host:port of a broker of yours"
)

LISTENERS = {"PLAINTEXT": "PLAINTEXT", "SASL_PLAINTEXT": "SASL_PLAINTEXT"}
"""What every broker listens with, beside CONTROLLER: the name and the protocol."""

SERVER_PROPERTIES = {
    "process.roles": "broker,controller",
    "inter.broker.listener.name": "PLAINTEXT",
    "controller.listener.names": "CONTROLLER",
    "listener.name.sasl_plaintext.sasl.enabled.mechanisms": "PLAIN",
    "listener.name.sasl_plaintext.plain.sasl.jaas.config": (
        f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
    ),
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
    "auto.create.topics.enable": "false",
}
REPLICATED = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
}
"""What is different in a `Cluster`."""

LOG4J2_XML = """\
<Configuration status="warn">
  <Appenders>
    <Console name="out"><PatternLayout pattern="%d{HH:mm:ss.SSS} %-5p %c{1} %m%n"/></Console>
  </Appenders>
  <Loggers>
    <Root level="warn"><AppenderRef ref="out"/></Root>
  </Loggers>
</Configuration>
"""

# The kernel ends the broker when we die, whatever we die of.  Not preexec_fn: it forks, which is a warning
# (and so an error) in a process with threads from 3.12 on.  The signal follows the death of the *thread* that
# started the child, and Trio's worker threads die when idle: hence a thread of our own that lives as we do.
_DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"
_starter = ThreadPoolExecutor(1, thread_name_prefix="trioagg tests: broker starter")


_NO_COORDINATOR_YET = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)


class NoKafka(Exception):
    """There is no broker to be had on this machine; the message says what to install."""


class BrokerFailed(Exception):
    """The broker was there and did not do what it was told; the message ends with its log's tail."""


def to_stderr(line: str) -> None:
    print(line, file=sys.__stderr__, flush=True)


def unique(prefix: str) -> str:
    """A name no other test has: not from `random`, which Hypothesis seeds."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def kafka_jars(say: Callable[[str], None] = to_stderr) -> Path:
    """The directory with Kafka's jars, downloaded once per user.

    Raises:
      NoKafka: if Java or Maven is missing, or Maven could not download.
    """
    _check_java()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trioagg-tests"
    jars = cache / f"kafka-{KAFKA_VERSION}"
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise NoKafka(f"no `mvn` found: {WHAT_TO_INSTALL}")
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=cache))
    try:
        _download(maven, unfinished, say)
        try:
            unfinished.rename(jars)
        except OSError:
            if not jars.is_dir():  # else another run was faster: theirs are as good
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return jars


def _check_java() -> None:
    java = shutil.which("java")
    if java is None:
        raise NoKafka(f"no `java` found: {WHAT_TO_INSTALL}")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < 17:
        raise NoKafka(f"`java -version` says {said.splitlines()[:1]}: {WHAT_TO_INSTALL}")


def _download(maven: str, into: Path, say: Callable[[str], None], seconds: float = 600) -> None:
    say(f"Kafka {KAFKA_VERSION}: downloading about 45 MB with Maven, once; they stay in {into.parent}")
    command = [maven, "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
    command += ["-DincludeScope=runtime", f"-DoutputDirectory={into}"]
    started = time.monotonic()
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            while process.poll() is None:
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    elapsed = time.monotonic() - started
                    if elapsed > seconds:
                        raise NoKafka(f"Maven was not done after {elapsed:.0f} s: {WHAT_TO_INSTALL}") from None
                    say(f"Kafka {KAFKA_VERSION}: still downloading ({elapsed:.0f} s)")
        finally:
            process.kill()
        if process.returncode != 0:
            output.seek(0)
            raise NoKafka(f"Maven failed: {WHAT_TO_INSTALL}\n{output.read()[-2000:]}")
    say(f"Kafka {KAFKA_VERSION}: {len(list(into.iterdir()))} jars after {time.monotonic() - started:.0f} s")


_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    # Below the range from which outgoing connections take their ports: while a killed broker is away, a client that
    # dials its address over and over would one day be given that very port, connect to itself, and keep it.
    sockets: list[socket.socket] = []
    try:
        for port in random.SystemRandom().sample(range(15_000, 32_000), 1000):
            if port in _given:  # to a broker that is away just now, or about to start
                continue
            taker = socket.socket()
            sockets.append(taker)
            try:
                taker.bind(("127.0.0.1", port))
            except OSError:
                sockets.remove(taker)
                taker.close()
            if len(sockets) == count:
                ports = [taker.getsockname()[1] for taker in sockets]
                _given.update(ports)
                return ports
    finally:
        for taker in sockets:
            taker.close()
    raise BrokerFailed("no free ports on 127.0.0.1")


def _new_id() -> str:
    # The zero byte: an id must not begin with a dash.
    return base64.urlsafe_b64encode(b"\0" + os.urandom(15)).rstrip(b"=").decode()


class Quorum:
    """What the nodes of one cluster agree upon before the first of them starts."""

    def __init__(self, node_ids: Iterable[int] = (1,)) -> None:
        nodes = list(node_ids)
        self.ports = dict(zip(nodes, free_ports(len(nodes)), strict=True))
        """Where each node's controller listens."""
        voters = ",".join(f"{node}@127.0.0.1:{port}:{_new_id()}" for node, port in self.ports.items())
        self.format_options = ["-t", _new_id(), "--initial-controllers", voters]

    @property
    def bootstrap(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self.ports.values())


class Broker:
    """One broker with its data and ports, which outlive `kill` and `stop`.

    Args:
      jars: what `kafka_jars` returned.
      settings: lines of server.properties in addition to, or instead of, ours.
      listeners: in addition to ours, the name and the protocol; `address` tells where they are.
      advertised: for a listener, another address to tell the clients than its own: a proxy's, say.
      format_options: for the tool that makes the data directory.
      quorum, node_id: the cluster and who of it this is; by default it is alone.
      heap_megabytes: at most so much of Java's heap.

    As a context manager it starts at the top; at the end the process is killed and the data removed.
    """

    def __init__(
        self,
        jars: Path | None = None,
        settings: Mapping[str, str] | None = None,
        *,
        listeners: Mapping[str, str] | None = None,
        advertised: Mapping[str, str] | None = None,
        format_options: Iterable[str] = (),
        quorum: Quorum | None = None,
        node_id: int = 1,
        heap_megabytes: int = 512,
    ) -> None:
        self._jars = jars or kafka_jars()
        self._home = Path(tempfile.mkdtemp(prefix="trioagg-kafka-"))
        atexit.register(self.close)
        self._log = self._home / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._heap = f"-Xmx{heap_megabytes}m"
        self.node_id = node_id
        quorum = quorum or Quorum()
        self._format_options = [*quorum.format_options, *format_options]
        protocols = {**LISTENERS, **(listeners or {})}
        self._ports = dict(zip(protocols, free_ports(len(protocols)), strict=True))
        self.bootstrap = self.address("PLAINTEXT")
        self.sasl_bootstrap = self.address("SASL_PLAINTEXT")
        protocols["CONTROLLER"] = "PLAINTEXT"
        self._ports["CONTROLLER"] = quorum.ports[node_id]
        everywhere = ",".join(f"{name}://{self.address(name)}" for name in protocols)
        told = {**{name: self.address(name) for name in protocols}, **(advertised or {})}
        properties = {
            **SERVER_PROPERTIES,
            "node.id": str(node_id),
            "controller.quorum.bootstrap.servers": quorum.bootstrap,
            "listeners": everywhere,
            "advertised.listeners": ",".join(f"{name}://{where}" for name, where in told.items()),
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
            "log.dirs": str(self._home / "data"),
            **(settings or {}),
        }
        self._properties = self._home / "server.properties"
        self._properties.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        (self._home / "log4j2.xml").write_text(LOG4J2_XML)

    def __enter__(self) -> Broker:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process, or None while there is none."""
        return self._process.pid if self._process is not None else None

    def address(self, listener: str) -> str:
        """Where that listener is: host:port."""
        return f"127.0.0.1:{self._ports[listener]}"

    def start(self) -> None:
        """Start on the data of the last time, or on none; return when the broker answers."""
        assert self._process is None, "it runs already"
        if not (self._home / "data").exists():
            self._format()
        command = [*self._java(self._heap), "kafka.Kafka", str(self._properties)]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, *command]
        with self._log.open("ab") as log:
            self._process = _starter.submit(
                subprocess.Popen,
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._home,
                start_new_session=True,  # Ctrl-C in the terminal is pytest's, which then ends us in its own order
            ).result()
        self.wait_ready()

    def wait_ready(self, seconds: float = 120) -> None:
        """Wait until the broker answers on its port and counts itself as alive.

        Raises:
          BrokerFailed: if the process ended, or *seconds* went by.
        """
        deadline = time.monotonic() + seconds
        while not self._answers():
            if self._process is None or self._process.poll() is not None:
                code = self._process and self._process.returncode
                raise BrokerFailed(f"the broker ended (code {code}) while it was waited for\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise BrokerFailed(f"no answer from {self.bootstrap} after {seconds:g} s\n{self.log_tail()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it as a power cut does (SIGKILL)."""
        self._end(signal.SIGKILL, 10)

    def freeze(self) -> None:
        """Let it answer nobody any more, with all its connections open (SIGSTOP)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self, seconds: float = 15) -> None:
        """End it in good order (SIGTERM); the hard way after *seconds*."""
        try:
            self._end(signal.SIGTERM, seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def restart(self) -> None:
        """Stop it if it runs; start it again with the same data and ports; return when it answers."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Kill it and remove its data.  Does nothing the second time."""
        self.kill()
        shutil.rmtree(self._home, ignore_errors=True)
        atexit.unregister(self.close)

    def log_tail(self, lines: int = 40) -> str:
        if not self._log.exists():
            return "(no log)"
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def _java(self, *options: str) -> list[str]:
        log4j2 = f"-Dlog4j2.configurationFile={self._home / 'log4j2.xml'}"
        # C1 alone: these processes live for seconds, and the tests need the second core.
        return ["java", *options, "-XX:TieredStopAtLevel=1", log4j2, "-cp", f"{self._jars}/*"]

    def _format(self) -> None:
        command = [*self._java(), "kafka.tools.StorageTool", "format", "-c", str(self._properties)]
        command += self._format_options
        said = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False
        )
        if said.returncode != 0:
            raise BrokerFailed(f"the data directory was not formatted\n{said.stdout.decode(errors='replace')}")

    def _answers(self) -> bool:
        host, port = self.bootstrap.split(":")
        try:
            # First a bare connection: librdkafka backs off for long after a refused one.
            socket.create_connection((host, int(port)), timeout=1).close()
            return self.node_id in _admin(self.bootstrap).list_topics(timeout=2).brokers
        except (OSError, KafkaException):
            return False

    def _end(self, how: signal.Signals, seconds: float) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(seconds)
            self._process = None


class Cluster:
    """Three brokers, each a controller too: topics of three replicas, of which two must have what is acknowledged.

    As a context manager it starts at the top, about ten seconds; at the end all is killed and removed.

    Args:
      jars: what `kafka_jars` returned.
      settings: lines of every server.properties in addition to, or instead of, ours.
    """

    def __init__(self, jars: Path | None = None, settings: Mapping[str, str] | None = None) -> None:
        quorum = Quorum([1, 2, 3])
        settings = {**REPLICATED, **(settings or {})}
        self.brokers = [
            Broker(jars, settings, quorum=quorum, node_id=node_id, heap_megabytes=256) for node_id in quorum.ports
        ]
        self.bootstrap = ",".join(broker.bootstrap for broker in self.brokers)

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def broker(self, node_id: int) -> Broker:
        return next(broker for broker in self.brokers if broker.node_id == node_id)

    def start(self) -> None:
        """Start all that do not run, at once: alone, none of them would answer.  Return when each knows all three."""
        away = [broker for broker in self.brokers if broker.pid is None]
        with ThreadPoolExecutor(len(self.brokers)) as threads:
            for started in [threads.submit(broker.start) for broker in away]:
                started.result()
        self.wait_complete()

    def wait_complete(self, seconds: float = 60) -> None:
        """Wait until every broker counts all of them as alive, and every partition has all its replicas in sync."""

        def is_complete() -> bool:
            try:
                seen = [_admin(broker.bootstrap).list_topics(timeout=5) for broker in self.brokers]
            except KafkaException:
                return False
            everywhere = all(len(found.brokers) == len(self.brokers) for found in seen)
            topics = [topic for found in seen for topic in found.topics.values()]
            partitions = [partition for topic in topics for partition in topic.partitions.values()]
            return everywhere and all(len(part.isrs) == len(part.replicas) for part in partitions)

        _poll(is_complete, "all brokers are alive and in sync", seconds)

    def leader_of(self, topic: str, partition: int, seconds: float = 30) -> int:
        """The node that leads the partition, as far as the others know; waited for while there is none."""
        admin, leader = _admin(self.bootstrap), -1

        def is_known() -> bool:
            nonlocal leader
            with suppress(KafkaException):
                leader = admin.list_topics(topic, timeout=5).topics[topic].partitions[partition].leader
            return leader >= 0

        _poll(is_known, f"{topic}/{partition} has a leader", seconds)
        return leader

    def coordinator_of(self, group: str, seconds: float = 30) -> int:
        """The node that coordinates the group, which need not exist yet; waited for until all who answer agree."""
        found: set[int] = set()

        def is_known() -> bool:
            found.clear()
            for broker in self.brokers:
                with suppress(OSError):  # it is away, or frozen
                    found.add(_find_coordinator(broker.bootstrap, group))
            return len(found) == 1 and -1 not in found

        _poll(is_known, f"group {group} has a coordinator", seconds)
        return found.pop()

    def close(self) -> None:
        """Kill all and remove their data.  Does nothing the second time."""
        for broker in self.brokers:
            broker.close()


@dataclass(frozen=True, slots=True)
class Kafka:
    """The broker that the tests share: use `unique` names, and never kill it."""

    bootstrap: str
    broker: Broker | None
    """None if it is not ours but the one of TRIOAGG_TEST_BOOTSTRAP."""


def _find_coordinator(bootstrap: str, group: str, seconds: float = 1) -> int:
    """What one broker says; -1 if it knows of none yet."""
    # By hand, in version 1 of the request: when its time is over for describe_consumer_groups(), which would tell it
    # too, librdkafka can abort the process.
    host, port = bootstrap.split(":")
    client, key = b"trioagg-tests", group.encode()
    request = struct.pack(f">hhih{len(client)}sh{len(key)}sb", 10, 1, 0, len(client), client, len(key), key, 0)
    with socket.create_connection((host, int(port)), seconds) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        with connection.makefile("rb") as answer:
            (size,) = struct.unpack(">i", _exactly(answer, 4))
            content = _exactly(answer, size)
    _correlation, _throttled, error, message_size = struct.unpack_from(">iihh", content)
    (node_id,) = struct.unpack_from(">i", content, 12 + max(0, message_size))
    return int(node_id) if error == 0 else -1


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise ConnectionError("closed in the middle of an answer")
    return data


def _admin(bootstrap: str) -> AdminClient:
    return AdminClient(_settings(bootstrap))


def _settings(bootstrap: str) -> dict[str, object]:
    # log_level 0: a test that kills its broker must not fill the terminal with librdkafka's opinion of it.
    return {"bootstrap.servers": bootstrap, "log_level": 0}


def _poll(condition: Callable[[], bool], what: str, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:g} s still not so: {what}")
        time.sleep(0.02)


def create_topic(
    bootstrap: str, name: str, partitions: int = 1, config: Mapping[str, str] | None = None, *, replicas: int = 1
) -> str:
    """Make the topic, wait until the broker itself knows it, and give back its name."""
    admin = _admin(bootstrap)
    topic = NewTopic(name, num_partitions=partitions, replication_factor=replicas, config=dict(config or {}))
    admin.create_topics([topic])[name].result(timeout=15)

    def is_there() -> bool:
        found = admin.list_topics(name, timeout=5).topics[name]
        if len(found.partitions) != partitions or any(part.leader < 0 for part in found.partitions.values()):
            return False
        try:
            end_offsets(bootstrap, name)
        except KafkaException:  # the metadata names a leader a moment before it knows that it is one
            return False
        return True

    _poll(is_there, f"topic {name} has {partitions} partition(s) with a leader")
    return name


def delete_topic(bootstrap: str, name: str) -> None:
    """Delete the topic and wait until the broker has forgotten it."""
    admin = _admin(bootstrap)
    admin.delete_topics([name])[name].result(timeout=15)
    _poll(lambda: name not in admin.list_topics(timeout=5).topics, f"topic {name} is gone")


def produce(bootstrap: str, topic: str, records: Iterable[object], *, seconds: float = 30) -> list[Message]:
    """Send *records* and wait until all are acknowledged; the messages come back, with offset and timestamp.

    Args:
      records: each a value (bytes, str or None), or a tuple `(key, value, partition, headers, timestamp_ms)` whose end
        may be left out.  Without a partition the key decides; without a key it is partition 0.
    """
    # One request in flight keeps the order; idempotence would too, but costs half a second to set up.
    producer = Producer({**_settings(bootstrap), "linger.ms": 0, "acks": "all", "max.in.flight": 1})
    sent: list[Message | None] = []
    for index, record in enumerate(records):
        fields = record if isinstance(record, tuple) else (None, record)
        key, value, partition, headers, timestamp = (*fields, None, None, None)[:5]
        if partition is None:
            partition = 0 if key is None else -1

        def keep(error: KafkaError | None, message: Message, index: int = index) -> None:
            if error is None:
                sent[index] = message

        sent.append(None)
        producer.produce(topic, value, key, partition, keep, timestamp=timestamp or 0, headers=headers)
        producer.poll(0)
    producer.flush(seconds)
    missing = sent.count(None)
    if missing:
        raise TimeoutError(f"{missing} of {len(sent)} messages to {topic} were not acknowledged")
    return sent  # type: ignore[return-value]


def end_offsets(bootstrap: str, topic: str) -> dict[int, int]:
    """Where the next record of every partition will be, open transactions included."""
    admin = _admin(bootstrap)
    deadline = time.monotonic() + 10
    while True:
        latest = {TopicPartition(topic, number): OffsetSpec.latest() for number in _partitions(admin, topic)}
        found = admin.list_offsets(latest, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=10)
        try:
            return {part.partition: future.result(timeout=15).offset for part, future in found.items()}
        except KafkaException as error:
            # The metadata names the leader of a new partition a moment before it knows that it is one.
            if error.args[0].code() != KafkaError.NOT_LEADER_FOR_PARTITION or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def committed(bootstrap: str, group: str, topic: str) -> dict[int, int | None]:
    """What the group has committed for every partition of *topic*; the group need not exist."""
    consumer = Consumer({**_settings(bootstrap), "group.id": group})
    try:
        parts = [TopicPartition(topic, number) for number in _partitions(consumer, topic)]
        deadline = time.monotonic() + 15
        while True:
            try:
                found = consumer.committed(parts, timeout=15)
                break
            except KafkaException as error:
                # A broker that has just started is not yet the coordinator that its metadata say it is.
                if error.args[0].code() not in _NO_COORDINATOR_YET or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        return {part.partition: part.offset if part.offset >= 0 else None for part in found}
    finally:
        consumer.close()


def read_all(
    bootstrap: str, topic: str, isolation: str = "read_committed", *, seconds: float = 30, settle_seconds: float = 2
) -> list[Message]:
    """Everything the topic holds, by partition and offset; no group is joined and nothing committed.

    Under read_committed the end of a transaction is written shortly *after* its commit returned: the reader waits
    up to *settle_seconds* for that, then an open transaction is the end of its partition.
    """
    ends = end_offsets(bootstrap, topic)
    reached = {number: end == 0 for number, end in ends.items()}
    read: list[Message] = []
    settings = {**_settings(bootstrap), "group.id": unique("read-all"), "isolation.level": isolation}
    settings |= {"enable.auto.commit": False, "enable.partition.eof": True, "fetch.wait.max.ms": 20}
    consumer = Consumer(settings)
    seen_end: dict[int, float] = {number: 0.0 for number in ends if reached[number]}
    deadline = time.monotonic() + seconds
    try:
        # Asked first, so that the client knows the leaders: else it finds them half a second after `assign`.
        parts = _partitions(consumer, topic)
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in parts])
        while not all(reached.values()):
            now = time.monotonic()
            if len(seen_end) == len(ends) and now > max(seen_end.values()) + settle_seconds:
                break
            if now > deadline:
                raise TimeoutError(f"{topic} was not read to {ends} in {seconds:g} s, but {len(read)} messages were")
            message = consumer.poll(0.1)
            if message is None:
                continue
            error, number = message.error(), message.partition()
            if error is None:
                read.append(message)
                reached[number] = reached[number] or message.offset() + 1 >= ends[number]
            elif error.code() == KafkaError._PARTITION_EOF:
                # Behind the last record there may be markers, which only the end of the partition tells.
                reached[number] = message.offset() >= ends[number]
                seen_end[number] = now
            else:
                raise KafkaException(error)
    finally:
        consumer.close()
    return sorted(read, key=lambda message: (message.partition(), message.offset()))


def _partitions(client: AdminClient | Consumer, topic: str) -> list[int]:
    found = client.list_topics(topic, timeout=10).topics[topic]
    if found.error is not None:
        raise KafkaException(found.error)
    return sorted(found.partitions)
