"""Everything that can break is broken, as often as one likes, and the books are checked."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

TESTS = Path(__file__).parent.parent / "tests"


def harness() -> tuple[Any, Any]:
    """The brokers and the scenarios of the tests; the program ends with a sentence where they are not there."""
    if not (TESTS / "faults" / "scenarios.py").exists():
        sys.exit(f"the fault harness is part of the checkout's tests, and {TESTS / 'faults'} is not there")
    sys.path[:0] = [str(TESTS), str(TESTS / "faults")]
    try:
        return import_module("broker"), import_module("scenarios")
    except ModuleNotFoundError as error:
        sys.exit(f"the fault harness needs {error.name}: pip install '.[test]'")


def main(
    only: tuple[str, ...], *, rounds: int | None, deliveries: tuple[str, ...], seed: int, as_json: bool
) -> list[dict[str, Any]]:
    """Run the scenarios, print what became of the messages, and return the cases with their problems."""
    broker, scenarios = harness()
    names = [case.name for case in scenarios.CASES]
    if strange := set(only).difference(names):
        sys.exit(f"no scenario {', '.join(sorted(strange))}: there are {', '.join(names)}")
    cases = [case for case in scenarios.CASES if not only or case.name in only]
    console = Console(stderr=True)
    rows: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        jars = broker.kafka_jars()
    except broker.NoKafka as error:
        sys.exit(str(error))
    with broker.Broker(jars) as shared, Progress(*columns, console=console) as progress:
        for case in cases:
            for delivery in deliveries:
                count = case.rounds if rounds is None else rounds
                bar = progress.add_task(f"{case.name}, {delivery}", total=count)
                run = scenarios.Run(
                    shared.bootstrap,
                    jars,
                    count,
                    seed,
                    delivery,
                    lambda done, bar=bar: progress.update(bar, completed=done),
                )
                began = time.monotonic()
                try:
                    verdict = case.scenario(run)
                    row = {
                        **asdict(verdict),
                        "recovery": verdict.recovery,
                        "problems": scenarios.problems(case, run, verdict),
                    }
                except Exception as error:  # a case that breaks off is a row of its own, and the others still run
                    row = {"problems": [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]}
                row |= {
                    "bench": "faults",
                    "scenario": case.name,
                    "what": case.scenario.__doc__,
                    "delivery": delivery,
                    "rounds": count,
                }
                row["seconds"] = time.monotonic() - began
                rows.append(row)
                if as_json:
                    print(json.dumps(row), flush=True)
    if not as_json:
        Console(width=150).print(_table(rows))
    for row in rows:
        for problem in row["problems"]:
            console.print(f"[red]{row['scenario']}, {row['delivery']}: {problem}")
    return rows


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="What became of the messages?")
    for name in ("fault", "rounds", "delivery"):
        table.add_column(name)
    for name in ("inputs", "lists", "lost", "twice", "not ours", "longest stall", "recovered, median / worst", "took"):
        table.add_column(name, justify="right")
    for row in rows:
        figures = ("inputs", "lists", "lost", "duplicated", "out_of_bounds")
        stall = row.get("longest_stall_seconds")
        table.add_row(
            row["scenario"],
            str(row["rounds"]),
            row["delivery"].replace("_", " "),
            *(str(row.get(name, "?")) for name in figures),
            "?" if stall is None else f"{stall:.1f} s",
            f"{row.get('recovery', '?')} s",
            f"{row['seconds']:.0f} s",
        )
    return table
