"""The command line of the lab."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

try:
    import cyclopts
    import rich  # noqa: F401 - only to say early and clearly that it is missing
except ModuleNotFoundError as error:
    if error.name not in ("cyclopts", "rich"):
        raise
    sys.exit(f"the lab needs {error.name}: pip install '.[bench]'")

from . import results
from .figures import console, describe

app = cyclopts.App(
    name="python -m bench",
    help="The latency lab: what trioagg costs, how late it is, and where the time goes, on this machine and now.",
    version_flags=(),
)

Numbers = Annotated[
    tuple[int, ...],
    cyclopts.Parameter(consume_multiple=True, negative="", validator=cyclopts.validators.Number(gte=1)),
]
Shares = Annotated[
    tuple[float, ...],
    cyclopts.Parameter(consume_multiple=True, negative="", validator=cyclopts.validators.Number(gt=0, lte=2)),
]
Names = Annotated[tuple[str, ...], cyclopts.Parameter(consume_multiple=True, negative="")]
Flag = Annotated[bool, cyclopts.Parameter(negative="")]
Many = Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1))]
Positive = Annotated[float, cyclopts.Parameter(validator=cyclopts.validators.Number(gt=0))]
Delivery = Literal["at_least_once", "exactly_once"]


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """What every command that measures takes."""

    quick: Flag = False
    """Fewer and shorter samples: under 20 seconds, for a look; its figures are rough."""
    json: Flag = False
    """One JSON line a case, instead of the tables."""
    out: Path | None = None
    """A directory: result.json goes there with everything that was found, and .hgrm and .hlog files."""
    seed: int = 1
    """For the order of the contestants, the moments of sending, service times."""


class Lab:
    """One command's run: the noise floor first, the result last."""

    def __init__(self, command: str, common: Common) -> None:
        self._command, self._common = command, common
        self._began = datetime.now(UTC)
        self.facts = results.facts(wakeups=100 if common.quick else 1000)
        if not common.json:
            console().print(describe(self.facts), highlight=False)

    def finish(self, cases: list[dict[str, Any]], problems: list[str] | None = None, **arguments: Any) -> None:
        """Write what was found, and end the program with 1 if anything is not as it must be.  Timings never are."""
        common = self._common
        if common.out is not None:
            path = results.write(
                common.out,
                self._command,
                cases,
                began=self._began,
                environment=self.facts,
                arguments=arguments,
                seed=common.seed,
                quick=common.quick,
            )
            print(f"written: {path}", file=sys.stderr)
        problems = [*(problems or ()), *(problem for case in cases for problem in case.get("problems", ()))]
        for problem in problems:
            print(f"PROBLEM: {problem}", file=sys.stderr)
        if problems:
            sys.exit(1)


@app.command
def core(*, stations: Numbers = (10, 100, 1000), common: Common = Common()) -> None:
    """What does a station cost, beside a bare Trio nursery and asyncio.TaskGroup?

    Parameters
    ----------
    stations
        Stations of a batch.
    """
    from . import core as bench

    lab = Lab("core", common)
    cases = bench.main(stations, facts=lab.facts, quick=common.quick, as_json=common.json, seed=common.seed)
    lab.finish(cases, stations=stations)


@app.command
def deadline(*, simultaneous: Numbers = (1, 10, 100, 1000), common: Common = Common()) -> None:
    """How late after its deadline is a list, when many batches of hung stations expire at once?

    Parameters
    ----------
    simultaneous
        Batches with the same deadline.
    """
    from . import deadline as bench

    lab = Lab("deadline", common)
    cases = bench.main(simultaneous, facts=lab.facts, quick=common.quick, as_json=common.json)
    lab.finish(cases, simultaneous=simultaneous)


@app.command
def lanes(*, common: Common = Common()) -> None:
    """What do lanes, retries, limits and quorums cost a station, and is a spinning worker dead at the deadline?"""
    from . import lanes as bench

    lab = Lab("lanes", common)
    lab.finish(bench.main(facts=lab.facts, quick=common.quick, as_json=common.json, seed=common.seed))


@app.command
def fanout(
    *,
    stations: Numbers = (1, 10, 100, 1000, 10_000),
    batches: Numbers = (1, 10, 100, 1000),
    repeats: Many | None = None,
    common: Common = Common(),
) -> None:
    """What does fanning out cost, against stations and batches in flight, beside six other designs?

    Parameters
    ----------
    stations
        Stations of a batch.
    batches
        Batches in flight, of 100 stations.
    repeats
        Of everything, each in new processes; 5 if nothing is said, 1 with --quick.
    """
    from . import fanout as bench

    lab = Lab("fanout", common)
    cases = bench.main(
        stations, batches, facts=lab.facts, quick=common.quick, as_json=common.json, seed=common.seed, repeats=repeats
    )
    lab.finish(cases, stations=stations, batches=batches)


@app.command
def pipeline(
    *,
    workload: str = "never-waits",
    contestants: Names = (),
    loads: Shares = (0.1, 0.5, 0.8, 0.95),
    repeats: Many | None = None,
    seconds: Positive | None = None,
    bootstrap_servers: str | None = None,
    callback: str | None = None,
    messages: Path | None = None,
    closed_loop: Many | None = None,
    delivery: Delivery = "at_least_once",
    tune_gc: Flag = False,
    stages: bool = True,
    loop_lag: Flag = False,
    timeline: Path | None = None,
    common: Common = Common(),
) -> None:
    """From topic to topic on Kafka, in an open loop: latency against load, and where the time goes.

    Parameters
    ----------
    workload
        A TOML file, or the name of one of ours (see bench/workloads).
    contestants
        trioagg and its rivals; all that can run here if none is named, with --callback trioagg alone.
    loads
        Shares of the load that saturates each contestant.  A workload with a rate has that instead.
    repeats
        Of every load; 5 if nothing is said, 1 with --quick.
    seconds
        Of one repetition; 5 if nothing is said, 1.5 with --quick.
    bootstrap_servers
        A broker of yours (topics named bench-* are made there); `mock` for librdkafka's stand-in.  Without it a real
        Kafka is started, as the tests do.
    callback
        `module:function` of your own instead of the workload's stations.
    messages
        A file with a message of yours in every line, for --callback.
    closed_loop
        Send the next message only when fewer than so many lists are missing, and see what that hides.
    delivery
        Of trioagg.
    tune_gc
        Of trioagg.
    stages
        Record where the time goes; --no-stages shows what recording costs.
    loop_lag
        Also say who kept the loop, and who waited for it.  Costs a tenth of the speed.
    timeline
        Write a trace of the worst batch there, for ui.perfetto.dev; one repetition at one load.
    """
    from . import pipeline as bench
    from . import workload as workloads
    from .contestant import OURS
    from .pipes import available

    rivals = (OURS,) if callback or timeline or closed_loop else (OURS, *available())
    if common.quick and not contestants:
        rivals = rivals[:1] + tuple(name for name in rivals if name == "TaskGroup")
    if unknown := set(contestants).difference((OURS, *available())):
        sys.exit(f"no contestant {', '.join(sorted(unknown))}: there are {', '.join((OURS, *available()))}")
    plan = bench.Plan(
        workload=workloads.load(workload),
        contestants=contestants or rivals,
        shares=loads[1:2] if (common.quick or timeline) and len(loads) > 1 else loads,
        repeats=1 if timeline else repeats or (1 if common.quick else 5),
        seconds=seconds or (1.5 if common.quick else 5.0),
        ramp_from=500.0 if common.quick else 100.0,
        ramp_step_seconds=0.4 if common.quick else 1.0,
        seed=common.seed,
        bootstrap_servers=bootstrap_servers,
        callback=callback,
        messages=None if messages is None else str(messages.resolve()),
        stages=stages,
        loop_lag=loop_lag,
        timeline=None if timeline is None else str(timeline.resolve()),
        tune_gc=tune_gc,
        outstanding=closed_loop or 0,
        delivery=delivery,
    )
    lab = Lab("pipeline", common)
    cases = bench.main(plan, as_json=common.json)
    lab.finish(cases, bench.bad_accounts(cases), workload=workload, delivery=delivery, tune_gc=tune_gc)


@app.command
def soak(
    *,
    minutes: Positive | None = None,
    rate: Positive | None = None,
    workload: str = "never-waits",
    bootstrap_servers: str | None = None,
    tune_gc: Flag = False,
    common: Common = Common(),
) -> None:
    """Does it stay as it is?  Lateness, memory, tasks, threads and descriptors under a steady load.

    Parameters
    ----------
    minutes
        10 if nothing is said; a quarter of one with --quick.
    rate
        Messages a second; the workload's, or 100.
    workload
        A TOML file, or the name of one of ours.
    bootstrap_servers
        As for `pipeline`.
    tune_gc
        Of trioagg.
    """
    from . import soak as bench
    from . import workload as workloads
    from .contestant import OURS
    from .pipeline import Plan

    work = workloads.load(workload)
    plan = Plan(
        workload=work,
        contestants=(OURS,),
        seed=common.seed,
        bootstrap_servers=bootstrap_servers,
        tune_gc=tune_gc,
    )
    lab = Lab("soak", common)
    (case,) = bench.main(
        plan,
        minutes=minutes or (0.15 if common.quick else 10.0),
        rate=rate or work.rate or 100.0,
        as_json=common.json,
    )
    wrong = case["lost"] or case["twice"] or not case["ledger_adds_up"]
    lab.finish([case], ["messages were lost or came twice"] if wrong else [], workload=workload)


@app.command
def delivery(*, common: Common = Common()) -> None:
    """What does exactly once cost, beside at least once?  On a real Kafka of its own."""
    from . import delivery as bench

    lab = Lab("delivery", common)
    lab.finish(bench.main(quick=common.quick, as_json=common.json, seed=common.seed))


@app.command
def faults(
    *,
    only: Names = (),
    rounds: Many | None = None,
    delivery: Annotated[tuple[Delivery, ...], cyclopts.Parameter(consume_multiple=True, negative="")] = (
        "at_least_once",
        "exactly_once",
    ),
    common: Common = Common(),
) -> None:
    """What is lost, and what comes twice, when everything that can break is broken?  On a real Kafka of its own.

    With --quick each scenario has one round, which takes minutes all the same.

    Parameters
    ----------
    only
        Names of scenarios; without any all of them run, for about an hour.
    rounds
        How often each thing is broken, instead of its usual number.
    delivery
        One way of delivery, or both.
    """
    from . import faults as bench

    lab = Lab("faults", common)
    rounds = 1 if common.quick else rounds
    lab.finish(bench.main(only, rounds=rounds, deliveries=delivery, seed=common.seed, as_json=common.json))


@app.command
def timeouts(
    *,
    deadlines: Annotated[
        tuple[float, ...],
        cyclopts.Parameter(consume_multiple=True, negative="", validator=cyclopts.validators.Number(gt=0)),
    ] = (1.0, 2.0, 5.0, 10.0, 20.0),
    common: Common = Common(),
) -> None:
    """How many stations make it before the deadline?

    Parameters
    ----------
    deadlines
        Seconds.
    """
    from . import timeouts as bench

    lab = Lab("timeouts", common)
    batches = 20 if common.quick else 200
    lab.finish(bench.main(deadlines, batches=batches, seed=common.seed, as_json=common.json), deadlines=deadlines)


@app.command
def fuzz(
    *,
    messages: Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=100))] = 1_000_000,
    dead_letters: bool = True,
    common: Common = Common(),
) -> None:
    """Does any message stop the service, or get lost in it?

    Parameters
    ----------
    messages
        Hostile messages, from the seed; with --quick 20,000 at most, too short a run for its memory.
    dead_letters
        Whether poison becomes dead letters, which are compared with their messages.
    """
    from . import fuzz as bench

    lab = Lab("fuzz", common)
    count = min(messages, 20_000) if common.quick else messages
    cases = bench.main(count, facts=lab.facts, seed=common.seed, dead_letters=dead_letters, as_json=common.json)
    lab.finish(cases, messages=count)


@app.command
def compare(before: Path, after: Path, /, *, threshold: Positive = 0.1, json: Flag = False, seed: int = 1) -> None:
    """Has anything become slower?  Exits with 1 if so.

    Parameters
    ----------
    before
        A result.json, or the directory that --out was given.
    after
        The same, of the build that is in question.
    threshold
        How much worse a figure may be: 0.1 is a tenth.
    json
        One JSON line a figure, instead of the table.
    seed
        For the bootstrap.
    """
    from . import compare as bench

    sys.exit(bench.main(before, after, threshold=threshold, as_json=json, seed=seed))


@app.command
def report(directory: Path, /, *, lang: Literal["en", "zh"] = "en", out: Path | None = None) -> None:
    """One HTML file with plots and what they say, of every result.json below a directory.

    Parameters
    ----------
    directory
        What --out was given.
    lang
        English or Chinese.
    out
        Where to write it; report.html in the directory if nothing is said.
    """
    from . import report as bench

    bench.main(directory, lang=lang, out=out)


_ALL_BUT_FAULTS = ("core", "deadline", "timeouts", "lanes", "fanout", "pipeline", "soak", "delivery", "fuzz")


@app.command(name="all")
def everything(
    *, out: Path = Path("bench-results"), quick: Flag = False, lang: Literal["en", "zh"] = "en", seed: int = 1
) -> None:
    """All commands one after another (but `faults`, which takes an hour), and the report of what they found.

    Parameters
    ----------
    out
        A directory; each command has one of its own in it.
    quick
        As for the commands: two minutes instead of an hour or two.
    lang
        Of the report.
    seed
        As for the commands.
    """
    failed = []
    for command in _ALL_BUT_FAULTS:
        print(f"=== {command}", flush=True)
        began = time.monotonic()
        line = [sys.executable, "-m", "bench", command, f"--seed={seed}", f"--out={out / command}"]
        if subprocess.run([*line, "--quick"] if quick else line, check=False).returncode:
            failed.append(command)
        print(f"({time.monotonic() - began:.0f} s)", flush=True)
    report(out, lang=lang)
    if failed:
        sys.exit(f"not as it must be: {', '.join(failed)}")


def main() -> None:
    """Run a command.  Whoever is told to end takes its contestants and its broker along."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    app()


if __name__ == "__main__":
    main()
