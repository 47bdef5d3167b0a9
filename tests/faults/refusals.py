"""A result topic that takes nothing more: the service must end loudly, and commit nothing past what is up.

Not broken in the midst of a steady load, but between two portions: what must be committed is known to the offset then.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from broker import PASSWORD, USER, Broker, committed, create_topic, delete_topic, produce, read_all
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourcePatternType,
    ResourceType,
)
from ledger import STATIONS, Ledger, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from scenarios import Run

PORTION: Final = 80
MANY_STATIONS: Final = 60
"""Of the message whose list is too large."""
SMALL_BYTES: Final = 2000
"""More than a list of `STATIONS`, less than one of `MANY_STATIONS`."""


class ByHand(Ledger):
    """A ledger that is fed in portions."""

    def __init__(self, bootstrap: str) -> None:
        super().__init__(bootstrap, rate=0)
        self.gone = 0
        """Lists that were up, and went with their topic."""

    def send(self, messages: int, *, stations: int = STATIONS) -> None:
        numbers = range(self.sent, self.sent + messages)
        produce(self.bootstrap, self.topic, [(None, self._message(n, stations), n % self.partitions) for n in numbers])
        self.sent += messages

    @staticmethod
    def _message(number: int, stations: int) -> bytes:
        records = [{"stationId": f"S{index}", "number": number, "index": index} for index in range(stations)]
        return json.dumps({"realTimeData": records}).encode()

    def _read(self) -> Verdict:
        verdict = super()._read()
        return replace(verdict, lists=verdict.lists + self.gone, lost=verdict.lost - self.gone)

    def committed(self) -> dict[int, int]:
        return {part: offset or 0 for part, offset in committed(self.bootstrap, self.group, self.topic).items()}

    def up(self) -> set[tuple[int, int]]:
        """Partition and offset of the messages whose lists are there."""
        found = set()
        for message in read_all(self.bootstrap, self.results, "read_committed", seconds=60):
            _, partition, offset, _ = json.loads(message.value())["batch_id"].rsplit("_", 3)
            found.add((int(partition), int(offset)))
        return found


def _breaks(
    run: Run, ledger: ByHand, complaint: str, break_it: Callable[[], None], repair: Callable[[], None], **settings: Any
) -> Verdict:
    """One round: a portion goes up, it breaks, the member ends; repaired, another member does the rest."""
    with run.member(ledger, **settings) as member:
        member.wait_ready()
        ledger.send(PORTION)
        ledger.wait_done()
        before, done = ledger.up(), ledger.committed()
        assert len(before) == PORTION, f"{len(before)} of {PORTION} are up"
        break_it()
        ledger.fault()
        ledger.send(PORTION)
        code = member.wait(60)
        assert code not in (0, -9), f"it ended with code {code}, as if nothing had happened"
        last = member.said().strip().splitlines()[-40:]
        assert any(re.search(complaint, line) for line in last), "\n".join(last)
    _nothing_is_committed_that_is_not_up(ledger, done, before)
    repair()
    with run.member(ledger, **settings) as member:
        ledger.wait_done()
        member.stop()
    return ledger.verify()


def _nothing_is_committed_that_is_not_up(
    ledger: ByHand, done: dict[int, int], before: set[tuple[int, int]], seconds: float = 40
) -> None:
    # The transaction that was refused may be open until the broker ends it, which it looks for every ten seconds; and
    # whoever reads what is committed does not see past it, though it be another partition's.
    deadline = time.monotonic() + seconds
    while True:
        there = before | (ledger.up() if ledger.results in _topics(ledger.bootstrap) else set())
        ends = ledger.committed()
        missing = {(part, n) for part, end in ends.items() for n in range(done[part], end)} - there
        if not missing:
            return
        assert time.monotonic() < deadline, f"committed to {ends}, and the lists of {sorted(missing)} are not up"
        time.sleep(0.5)


def _topics(bootstrap: str) -> set[str]:
    return set(AdminClient({"bootstrap.servers": bootstrap, "log_level": 0}).list_topics(timeout=10).topics)


def _total(verdicts: list[Verdict]) -> Verdict:
    def of(name: str) -> int:
        return sum(getattr(verdict, name) for verdict in verdicts)

    return Verdict(
        inputs=of("inputs"),
        lists=of("lists"),
        lost=of("lost"),
        duplicated=of("duplicated"),
        out_of_bounds=of("out_of_bounds"),
        partial=of("partial"),
        # Between the portions there is nothing to do, so a gap there is no stall.
        longest_stall_seconds=0.0,
        recovered_seconds=[seconds for verdict in verdicts for seconds in verdict.recovered_seconds],
        committed=all(verdict.committed for verdict in verdicts),
    )


def results_deleted(run: Run) -> Verdict:
    """The result topic is deleted; the service ends, and goes on where it was when there is one again."""
    verdicts = []
    for _ in run.numbered():
        ledger = ByHand(run.bootstrap)

        def delete(ledger: ByHand = ledger) -> None:
            delete_topic(ledger.bootstrap, ledger.results)
            ledger.gone = PORTION

        def create(ledger: ByHand = ledger) -> None:
            create_topic(ledger.bootstrap, ledger.results, ledger.partitions)

        complaint = rf"topic '{ledger.results}' .*does not exist"
        verdicts.append(_breaks(run, ledger, complaint, delete, create, kafka={"request_timeout": 2.0}))
    return _total(verdicts)


def results_too_small(run: Run) -> Verdict:
    """One list among others is larger than the result topic takes; the others go up, the commit stays before it."""
    verdicts = []
    for _ in run.numbered():
        ledger = ByHand(run.bootstrap)

        def limit(size: int, ledger: ByHand = ledger) -> None:
            entry = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
            resource = ConfigResource(ConfigResource.Type.TOPIC, ledger.results, incremental_configs=[entry])
            admin = AdminClient({"bootstrap.servers": ledger.bootstrap, "log_level": 0})
            admin.incremental_alter_configs([resource])[resource].result(timeout=15)
            time.sleep(0.5)  # the broker takes it over a moment after it has said so, and tells nobody when

        def break_it(ledger: ByHand = ledger, limit: Callable[[int], None] = limit) -> None:
            limit(SMALL_BYTES)
            ledger.send(1, stations=MANY_STATIONS)

        complaint = rf"a message of \d+ bytes to topic '{ledger.results}'"
        verdicts.append(_breaks(run, ledger, complaint, break_it, lambda limit=limit: limit(1_000_000)))
    return _total(verdicts)


def results_forbidden(run: Run) -> Verdict:
    """The right to write results is taken away, and given back."""
    rules = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    with Broker(run.jars, rules) as broker:
        admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})

        def rule(kind: ResourceType, name: str, what: AclOperation, permission: AclPermissionType) -> Any:
            return (kind, name, ResourcePatternType.LITERAL, f"User:{USER}", "*", what, permission)

        def grant(kind: ResourceType, name: str) -> None:
            binding = AclBinding(*rule(kind, name, AclOperation.ALL, AclPermissionType.ALLOW))
            admin.create_acls([binding])[binding].result(timeout=15)

        verdicts = []
        for _ in run.numbered():
            ledger = ByHand(broker.bootstrap)
            for topic in (ledger.topic, ledger.results):
                grant(ResourceType.TOPIC, topic)
            grant(ResourceType.GROUP, ledger.group)
            grant(ResourceType.TRANSACTIONAL_ID, "*")
            denied = rule(ResourceType.TOPIC, ledger.results, AclOperation.WRITE, AclPermissionType.DENY)

            def forbid(denied: Any = denied) -> None:
                binding = AclBinding(*denied)
                admin.create_acls([binding])[binding].result(timeout=15)

            def allow(denied: Any = denied) -> None:
                binding = AclBindingFilter(*denied)
                assert len(admin.delete_acls([binding])[binding].result(timeout=15)) == 1

            login = {
                "security_protocol": "SASL_PLAINTEXT",
                "sasl_mechanism": "PLAIN",
                "sasl_username": USER,
                "sasl_password": PASSWORD,
            }
            complaint = rf"topic '{ledger.results}' .*not authorised"
            verdicts.append(
                _breaks(run, ledger, complaint, forbid, allow, kafka=login, bootstrap=broker.sasl_bootstrap)
            )
        return _total(verdicts)
