"""A few rounds of every fault; the long form is ``python -m bench faults``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from scenarios import CASES, Case, Run, problems

if TYPE_CHECKING:
    from pathlib import Path

    from broker import Kafka

QUICK = [(case, delivery) for case in CASES for delivery in case.quick]


@pytest.mark.deadline(240)
@pytest.mark.parametrize(("case", "delivery"), QUICK, ids=[f"{case.name}-{delivery}" for case, delivery in QUICK])
def test_nothing_is_lost(
    kafka: Kafka, jars: Path, case: Case, delivery: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(kafka.bootstrap, jars, case.quick_rounds, seed=1, delivery=delivery)
    began = time.monotonic()
    verdict = case.scenario(run)
    with capsys.disabled():
        print(
            f"\n{case.name} x{run.rounds}, {delivery}: {verdict.inputs} in, {verdict.lists} out, {verdict.lost} lost, "
            f"{verdict.duplicated} twice, stall {verdict.longest_stall_seconds:.1f} s, recovered {verdict.recovery} s "
            f"({time.monotonic() - began:.0f} s)"
        )
    assert not problems(case, run, verdict), verdict
