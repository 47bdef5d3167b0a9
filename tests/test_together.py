"""Everything at once: retries, quorums, limits of a station, force, late answers, cancellation.

The ledger adds up, the batch ends once, and never after its deadline.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import hypothesis
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from trioagg import (
    Answer,
    BatchReport,
    BatchResultAggregator,
    CompletedBy,
    Observer,
    Retry,
    StationSkipped,
    StationTimedOut,
    Verdict,
)

TIMEOUT = 10.0

stations = st.lists(
    st.tuples(
        st.sampled_from(["answers", "none", "raises", "wrong", "skips", "hangs", "shielded", "better and better"]),
        st.integers(0, 12),  # seconds
    ),
    min_size=1,
    max_size=12,
)
rules = st.fixed_dictionaries(
    {
        "quorum": st.none() | st.integers(1, 8) | st.floats(0.1, 1.0),
        "max_failures": st.none() | st.integers(0, 5),
        "station_timeout": st.none()
        | st.integers(1, 12)
        | st.just(lambda station_id: 3 if station_id < "S05" else None),
        "retry_station": st.none()
        | st.builds(
            Retry,
            attempts=st.integers(2, 4),
            backoff=st.integers(0, 3),
            on=st.sampled_from([Exception, ValueError, (ValueError, StationTimedOut), lambda result: result is None]),
            chance=st.just(random.random),
        ),
        "max_running_stations": st.integers(1, 12),
    }
)
outside = st.none() | st.tuples(st.sampled_from(["complete", "abort", "cancel"]), st.integers(0, 11))


class Ends(Observer):
    """What ended, and when."""

    def __init__(self) -> None:
        self.reports: list[tuple[BatchReport, float]] = []

    def closed(self, report: BatchReport) -> None:
        self.reports.append((report, trio.current_time()))


async def live(station_id: str, what: tuple[str, int], tries: Counter[str]) -> Any:
    tries[station_id] += 1
    kind, seconds = what
    if kind == "shielded":
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds + 5)
        return {"station_id": station_id}
    if kind == "hangs":
        await trio.sleep_forever()
    await trio.sleep(seconds)
    if kind == "raises" or (kind == "better and better" and tries[station_id] == 1):
        raise ValueError(station_id)
    if kind == "skips":
        raise StationSkipped(station_id)
    if kind == "wrong":
        return [station_id]
    return None if kind == "none" else {"station_id": station_id}


def check(report: BatchReport, ended: float, tries: Counter[str], settings: dict[str, Any]) -> None:
    counts = Counter(outcome.verdict for outcome in report.stations.values())
    assert sum(counts.values()) == report.expected == len(report.stations)
    assert counts == Counter({verdict: getattr(report, verdict) for verdict in Verdict})
    assert len(report.results) == report.succeeded
    assert ended == report.seconds <= TIMEOUT
    assert (report.timed_out > 0) <= (report.completed_by == "timeout")
    assert (report.cancelled > 0) <= (report.completed_by in ("quorum", "failures", "forced", "aborted"))
    assert (report.first_error is not None) == (report.failed > 0)
    match report.completed_by:
        case CompletedBy.TIMEOUT:
            assert ended == TIMEOUT
        case CompletedBy.QUORUM:
            quorum = settings["quorum"]
            needed = quorum if isinstance(quorum, int) else quorum * report.expected - 1e-6
            assert report.succeeded + report.no_output >= needed
        case CompletedBy.FAILURES:
            assert report.failed == settings["max_failures"] + 1
        case CompletedBy.ALL:
            assert not report.timed_out
            assert not report.cancelled
    for station_id, outcome in report.stations.items():
        # Later tries of a station that is shielded are nobody's any more.
        assert outcome.attempts <= tries[station_id]
        assert outcome.attempts <= (settings["retry_station"].attempts if settings["retry_station"] else 1)
        if outcome.verdict in (Verdict.SUCCEEDED, Verdict.NO_OUTPUT, Verdict.FAILED):
            assert outcome.attempts == tries[station_id]
            assert outcome.started_seconds + outcome.run_seconds <= TIMEOUT
        if isinstance(outcome.error, StationTimedOut):
            assert outcome.verdict is Verdict.FAILED
        assert bool(outcome.error) == (
            outcome.verdict is Verdict.FAILED or (outcome.verdict is Verdict.SKIPPED and outcome.attempts > 0)
        )
    assert report.to_dict()["stations"].keys() == report.stations.keys()


@given(stations, rules, outside, st.random_module())
@settings(max_examples=300, deadline=None)
def test_whatever_comes_together_the_ledger_adds_up_and_the_deadline_holds(
    given_stations: list[tuple[str, int]], rules: dict[str, Any], event: tuple[str, int] | None, seed: object
) -> None:
    tries: Counter[str] = Counter()
    ends = Ends()
    lists: list[str] = []

    async def callback(station_id: str, what: tuple[str, int]) -> Any:
        return await live(station_id, what, tries)

    async def upload(batch_id: str, results_list: list[dict[str, Any]]) -> None:
        lists.append(batch_id)

    async def main() -> None:
        work = {f"S{number:02d}": what for number, what in enumerate(given_stations)}
        with trio.CancelScope() as life:
            async with BatchResultAggregator(
                callback, upload, batch_timeout=TIMEOUT, observers=[ends], **rules
            ) as aggregator:
                batch = await aggregator.submit("b", work)
                if event is not None:
                    await trio.sleep(event[1])
                    match event[0]:
                        case "complete":
                            batch.complete()
                        case "abort":
                            batch.abort()
                        case "cancel":
                            life.cancel()
                await batch.wait_closed()
                assert batch.add_result("S00", {}) is Answer.LATE

    trio.run(main, clock=MockClock(autojump_threshold=0))
    ((report, ended),) = ends.reports  # once
    hypothesis.event(f"completed by {report.completed_by}")
    check(report, ended, tries, rules)
    if report.completed_by == "aborted":
        assert lists == []
    elif event is None or event[0] != "cancel":  # where the cancellation came in the same moment, the list may be up
        assert lists == ["b"]
