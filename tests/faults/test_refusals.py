"""What becomes of the offsets when the result topic takes nothing more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from refusals import results_deleted, results_forbidden, results_too_small
from scenarios import Run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from broker import Kafka
    from ledger import Verdict


CASES = [
    (results_deleted, "at_least_once"),
    (results_deleted, "exactly_once"),
    (results_too_small, "at_least_once"),
    (results_too_small, "exactly_once"),
    (results_forbidden, "exactly_once"),
]


@pytest.mark.deadline(240)
@pytest.mark.parametrize(("refusal", "delivery"), CASES)
def test_the_service_ends_with_the_reason_and_commits_nothing_past_it(
    kafka: Kafka, jars: Path, refusal: Callable[[Run], Verdict], delivery: str
) -> None:
    verdict = refusal(Run(kafka.bootstrap, jars, 1, seed=1, delivery=delivery))
    assert verdict.lost == verdict.out_of_bounds == verdict.partial == 0, verdict
    assert verdict.committed
    # At least once, the lists beside the refused one may be up and not committed.
    assert verdict.duplicated <= (0 if delivery == "exactly_once" else 80), verdict
