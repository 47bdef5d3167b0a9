"""Everything that is done to the service, each thing as often as one likes."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from broker import Broker, Cluster, free_ports
from ledger import Ledger, Verdict
from members import SESSION_SECONDS, Member
from proxy import Proxy
from refusals import results_deleted, results_forbidden, results_too_small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Scenario = Callable[["Run"], "Verdict"]

IN_FLIGHT: Final = 100
COMMIT_SECONDS: Final = 0.2
LISTS_PER_SECOND: Final = 1000
"""What one member brings up when it has something to catch up with."""
REVOKE_SECONDS: Final = 10.0


@dataclass
class Run:
    """What a scenario is told."""

    bootstrap: str
    """Of a broker that others use too: it must not be broken."""
    jars: Path
    rounds: int
    seed: int
    delivery: str = "at_least_once"
    tell: Callable[[int], None] = lambda done: None
    """Told how many rounds are done."""
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def numbered(self) -> Iterator[int]:
        for number in range(self.rounds):
            yield number
            self.tell(number + 1)

    def member(self, ledger: Ledger, **settings: Any) -> Member:
        return Member(ledger, delivery=self.delivery, commit_interval=COMMIT_SECONDS, **settings)


def killed(run: Run) -> Verdict:
    """kill -9 of the only member at random moments under load, every third one between an upload and its commit."""
    with Ledger(run.bootstrap, rate=150) as ledger:
        for number in run.numbered():
            between = number % 3 == 2
            uploads = run.chance.randint(20, 150) if between else 0
            with run.member(ledger, name="the only one", killed_after_uploads=uploads) as member:
                member.wait_ready()
                if between:
                    member.wait(60)
                else:
                    time.sleep(run.chance.uniform(0.1, 1.0))
                    member.kill()
                ledger.fault()
        return finish(run, ledger)


def finish(run: Run, ledger: Ledger, **settings: Any) -> Verdict:
    """Let one member do what is left, and look at all of it."""
    ledger.stop_feeding()
    with run.member(ledger, name="the only one", **settings) as member:
        ledger.wait_done()
        member.stop()
    return ledger.verify()


def terminated(run: Run) -> Verdict:
    """SIGTERM of the only member: it drains."""
    with Ledger(run.bootstrap, rate=150) as ledger:
        for _ in run.numbered():
            with run.member(ledger, name="the only one") as member:
                member.wait_ready()
                time.sleep(run.chance.uniform(0.2, 1.0))
                member.stop()
                ledger.fault()
        return finish(run, ledger)


def broker_killed(run: Run) -> Verdict:
    """kill -9 of the broker, and a restart on its data."""
    with Broker(run.jars) as broker, Ledger(broker.bootstrap, rate=100) as ledger:
        with run.member(ledger) as member:
            member.wait_ready()
            for _ in run.numbered():
                time.sleep(run.chance.uniform(0.5, 2.0))
                broker.kill()
                time.sleep(run.chance.uniform(0.0, 1.0))
                broker.start()
                ledger.fault()
                time.sleep(1.5)
            ledger.stop_feeding()
            ledger.wait_done()
            member.stop()
        return ledger.verify()


def rebalanced(run: Run) -> Verdict:
    """Three members, of which one leaves and comes back every two seconds."""
    with Ledger(run.bootstrap, rate=150, partitions=6) as ledger, ExitStack() as stack:
        members = [stack.enter_context(run.member(ledger)) for _ in range(3)]
        for member in members:
            member.wait_ready()
        # A leave and a join are two of them.
        for number in run.numbered():
            if number % 2:
                members.append(stack.enter_context(run.member(ledger)))
                members[-1].wait_ready()
            else:
                members.pop(0).stop()
            ledger.fault()
            time.sleep(2)
        ledger.stop_feeding()
        ledger.wait_done()
        for member in members:
            member.stop()
        return ledger.verify()


def zombie(run: Run) -> Verdict:
    """One of two members is frozen for twice the session timeout, and wakes up when its partitions are another's."""
    with Ledger(run.bootstrap, rate=100) as ledger, run.member(ledger) as first, run.member(ledger) as second:
        first.wait_ready()
        second.wait_ready()
        for _ in run.numbered():
            time.sleep(2)
            ledger.fault()
            first.freeze()
            time.sleep(2 * SESSION_SECONDS)
            first.thaw()
            time.sleep(2)
            first, second = second, first
        ledger.stop_feeding()
        ledger.wait_done()
        figures = [first.stop(), second.stop()]
        if run.delivery == "exactly_once":
            # One for every assignment of a partition, which a zombie's awakening causes some of; never one for itself.
            producers = sum(figure["producers"] for figure in figures)
            assert producers <= ledger.partitions * (3 + 4 * run.rounds), producers
        return ledger.verify()


def blocked(run: Run) -> Verdict:
    """A station that keeps the loop to itself for longer than the session timeout, every few hundred messages."""
    blocks = {str(100 + 400 * number): SESSION_SECONDS * 1.5 for number in range(run.rounds)}
    with Ledger(run.bootstrap, rate=80) as ledger, run.member(ledger, blocks=blocks) as member:
        member.wait_ready()
        for number in run.numbered():
            while ledger.sent < 100 + 400 * (number + 1):
                time.sleep(0.1)
        ledger.stop_feeding()
        ledger.wait_done()
        assert member.stop()["stalls"] >= run.rounds
        return ledger.verify()


def clock_jumped(run: Run) -> Verdict:
    """The wall clock jumps by an hour, forward and back."""
    with Ledger(run.bootstrap, rate=150) as ledger:
        for number in run.numbered():
            jump = 3600.0 if number % 2 else -3600.0
            with run.member(ledger, name="the only one", clock_jump_seconds=jump) as member:
                member.wait_ready()
                time.sleep(3)
                assert member.stop()["timed_out"] == 0
        return finish(run, ledger)


def behind_a_proxy(run: Run, disturb: Callable[[Proxy, Ledger], None]) -> Verdict:
    """A member that knows its broker by the proxy's address alone; each round disturbs it once."""
    (port,) = free_ports(1)
    advertised = {"PROXIED": f"127.0.0.1:{port}"}
    with (
        Broker(run.jars, listeners={"PROXIED": "PLAINTEXT"}, advertised=advertised) as broker,
        Proxy(port, broker.address("PROXIED")) as proxy,
        Ledger(broker.bootstrap, rate=100) as ledger,
        run.member(ledger, bootstrap=proxy.address) as member,
    ):
        member.wait_ready()
        for _ in run.numbered():
            time.sleep(run.chance.uniform(0.5, 1.5))
            disturb(proxy, ledger)
            proxy.pass_on()
        time.sleep(1)
        ledger.stop_feeding()
        ledger.wait_done()
        member.stop()
        return ledger.verify()


def cut(run: Run) -> Verdict:
    """Every connection is cut, again and again."""

    def disturb(proxy: Proxy, ledger: Ledger) -> None:
        ledger.fault()
        proxy.cut()

    return behind_a_proxy(run, disturb)


def _swallowed(run: Run, seconds: float) -> Verdict:
    def disturb(proxy: Proxy, ledger: Ledger) -> None:
        proxy.swallow()
        time.sleep(seconds)
        ledger.fault()

    return behind_a_proxy(run, disturb)


def swallowed_shortly(run: Run) -> Verdict:
    """Nothing comes through for half the session timeout."""
    return _swallowed(run, SESSION_SECONDS / 2)


def swallowed_long(run: Run) -> Verdict:
    """Nothing comes through for twice the session timeout."""
    return _swallowed(run, SESSION_SECONDS * 2)


def slow(run: Run) -> Verdict:
    """Every piece is 0.2 s late for a while."""

    def disturb(proxy: Proxy, ledger: Ledger) -> None:
        ledger.fault()
        proxy.delay(0.2)
        time.sleep(4)

    return behind_a_proxy(run, disturb)


def refused(run: Run) -> Verdict:
    """Every connection is cut and every new one is refused for a while."""

    def disturb(proxy: Proxy, ledger: Ledger) -> None:
        proxy.refuse()
        time.sleep(3)
        ledger.fault()

    return behind_a_proxy(run, disturb)


def leader_killed(run: Run) -> Verdict:
    """Three brokers: the leader of a partition, or the coordinator of the group, is killed and comes back."""
    with Cluster(run.jars) as cluster, Ledger(cluster.bootstrap, rate=60, replicas=3) as ledger:
        with run.member(ledger, kafka={"session_timeout": 20.0}) as member:
            member.wait_ready()
            for number in run.numbered():
                time.sleep(1)
                who = cluster.leader_of(ledger.topic, 0) if number % 2 else cluster.coordinator_of(ledger.group)
                ledger.fault()
                cluster.broker(who).kill()
                time.sleep(6)
                cluster.start()
            ledger.stop_feeding()
            ledger.wait_done()
            member.stop()
        return ledger.verify()


@dataclass(frozen=True)
class Case:
    """A scenario, and what it may cost."""

    scenario: Scenario
    rounds: int
    """In the long form."""
    duplicates_for_each: bool
    """Whether at least once, a round may repeat what was in flight and what was not committed."""
    quick: tuple[str, ...]
    """The deliveries that the suite looks at."""
    quick_rounds: int = 1
    longest_stall_seconds: float | None = None

    @property
    def name(self) -> str:
        return self.scenario.__name__


AT_LEAST, EXACTLY = "at_least_once", "exactly_once"
CASES: Final = [
    Case(killed, 100, True, (AT_LEAST, EXACTLY), 4),
    Case(terminated, 20, False, (AT_LEAST,), 2),
    Case(broker_killed, 20, True, (EXACTLY,)),
    Case(rebalanced, 50, False, (AT_LEAST,), 4, SESSION_SECONDS + REVOKE_SECONDS),
    Case(zombie, 5, True, (EXACTLY,)),
    Case(blocked, 3, True, (AT_LEAST,)),
    Case(clock_jumped, 4, False, (AT_LEAST,), 2),
    Case(cut, 20, True, (AT_LEAST,), 3),
    Case(swallowed_shortly, 5, True, (EXACTLY,)),
    Case(swallowed_long, 5, True, (AT_LEAST,)),
    Case(slow, 5, False, (AT_LEAST,)),
    Case(refused, 5, True, (EXACTLY,)),
    Case(leader_killed, 6, True, (EXACTLY,)),
    # The suite looks at these in a test of their own.
    Case(results_deleted, 3, True, ()),
    Case(results_too_small, 3, True, ()),
    Case(results_forbidden, 3, True, ()),
]


def problems(case: Case, run: Run, verdict: Verdict) -> list[str]:
    """What is not as it must be."""
    # At least once: those in flight, and those that went up since the last commit was acknowledged.
    most = run.rounds * (IN_FLIGHT + round(LISTS_PER_SECOND * 2 * COMMIT_SECONDS)) if case.duplicates_for_each else 0
    if run.delivery == "exactly_once":
        most = 0
    found = []
    if verdict.lost:
        found.append(f"{verdict.lost} lost")
    if verdict.out_of_bounds:
        found.append(f"{verdict.out_of_bounds} out of bounds")
    if verdict.duplicated > most:
        found.append(f"{verdict.duplicated} duplicated, more than {most}")
    if not verdict.committed:
        found.append("not all committed")
    if case.longest_stall_seconds is not None and verdict.longest_stall_seconds > case.longest_stall_seconds:
        found.append(f"a stall of {verdict.longest_stall_seconds:.1f} s")
    return found
