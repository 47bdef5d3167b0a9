"""What one batch's answers add up to: no Trio and no clock here, as in the module itself."""

from __future__ import annotations

import gc
from collections import Counter
from types import MappingProxyType

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trioagg import Answer, BadResult, BatchCollector, CompletedBy, StationOutcome, Verdict
from trioagg._encoding import encode_result


class Row(dict):
    """A dict of the user's own class."""


class LooksLikeADict:
    def keys(self):
        return []

    def __getitem__(self, key):
        raise KeyError(key)


def refuse(result: dict) -> bytes:
    raise BadResult("$.value is NaN")


def counts(report) -> dict[str, int]:
    return {verdict: getattr(report, verdict) for verdict in Verdict}


@pytest.mark.parametrize("result", [{}, {"station_id": "A"}, Row(a=1)])
def test_a_dict_is_a_success_and_stays_the_same_object(result: dict) -> None:
    collector = BatchCollector("b", ["A"])
    assert collector.add_result("A", result) is Answer.ACCEPTED
    report = collector.close("all")
    assert report.results[0] is result
    assert report.stations["A"] == StationOutcome(Verdict.SUCCEEDED)


def test_none_is_no_output_and_not_in_the_list() -> None:
    collector = BatchCollector("b", ["A"])
    assert collector.add_result("A", None) is Answer.ACCEPTED
    report = collector.close("all")
    assert report.results == []
    assert report.stations["A"] == StationOutcome(Verdict.NO_OUTPUT)
    assert (report.no_output, report.failed, report.first_error) == (1, 0, None)


@pytest.mark.parametrize(
    "result",
    [[], [{"station_id": "A"}], "a string", b"bytes", 0, False, True, 1.5, ..., LooksLikeADict(), MappingProxyType({})],
    ids=lambda result: type(result).__name__,
)
def test_anything_else_is_a_failure_that_names_the_type(result: object) -> None:
    collector = BatchCollector("b", ["A"])
    assert collector.add_result("A", result) is Answer.ACCEPTED
    report = collector.close("all")
    outcome = report.stations["A"]
    assert report.results == []
    assert outcome.verdict is Verdict.FAILED
    assert isinstance(outcome.error, BadResult)
    assert str(outcome.error) == f"returned {type(result).__name__}, not a dict or None"


def test_a_failure_keeps_its_error() -> None:
    collector = BatchCollector("b", ["A", "B"])
    first, second = ValueError("A"), KeyError("B")
    collector.add_failure("A", first)
    collector.add_failure("B", second)
    report = collector.close("all")
    assert report.stations["A"].error is first
    assert report.stations["B"].error is second
    assert report.first_error is first
    assert report.failed == 2


def test_the_list_is_in_the_order_of_the_answers_and_the_ledger_in_that_of_the_stations() -> None:
    collector = BatchCollector("b", ["A", "B", "C"])
    for station in "CAB":
        collector.add_result(station, {"station_id": station})
    report = collector.close("all")
    assert [result["station_id"] for result in report.results] == ["C", "A", "B"]
    assert list(report.stations) == ["A", "B", "C"]


def test_the_first_answer_stands() -> None:
    collector = BatchCollector("b", ["A", "B"])
    collector.add_result("A", {"first": True})
    assert collector.add_result("A", {"first": False}) is Answer.DUPLICATE
    assert collector.add_result("A", None) is Answer.DUPLICATE
    assert collector.add_failure("A", ValueError()) is Answer.DUPLICATE
    collector.add_failure("B", ValueError())
    assert collector.add_result("B", {}) is Answer.DUPLICATE
    report = collector.close("all")
    assert report.results == [{"first": True}]
    assert report.stations["B"].verdict is Verdict.FAILED
    assert (collector.duplicates, collector.late, collector.unknown) == (4, 0, 0)


def test_an_answer_after_the_close_is_late_and_changes_nothing() -> None:
    collector = BatchCollector("b", ["A", "B"])
    collector.add_result("A", {})
    report = collector.close("timeout")
    before = counts(report), list(report.results), dict(report.stations)
    assert collector.add_result("B", {}) is Answer.LATE
    assert collector.add_result("B", [1]) is Answer.LATE
    assert collector.add_failure("B", ValueError()) is Answer.LATE
    assert collector.add_result("A", {}) is Answer.LATE
    assert collector.late == 4
    assert (counts(report), list(report.results), dict(report.stations)) == before
    assert collector.progress == (1, 2)


def test_an_answer_of_a_stranger_is_unknown_before_and_after_the_close() -> None:
    collector = BatchCollector("b", ["A"])
    assert collector.add_result("X", {}) is Answer.UNKNOWN
    assert collector.add_failure("X", ValueError()) is Answer.UNKNOWN
    collector.close("timeout")
    assert collector.add_result("X", {}) is Answer.UNKNOWN
    assert collector.unknown == 3
    assert collector.late == 0


def test_a_batch_is_closed_once() -> None:
    collector = BatchCollector("b", ["A"])
    assert collector.report is None
    report = collector.close("timeout", seconds=5.0)
    assert collector.close("all", seconds=9.0) is report
    assert collector.report is report
    assert (report.completed_by, report.seconds) == (CompletedBy.TIMEOUT, 5.0)


def test_a_batch_with_missing_stations_is_not_completed_by_all() -> None:
    collector = BatchCollector("b", ["A", "B"])
    collector.add_result("A", {})
    with pytest.raises(ValueError, match="batch b is not completed by all: 1 of 2 are missing"):
        collector.close("all")
    assert collector.add_result("B", {}) is Answer.ACCEPTED  # it is open as before
    assert collector.close("all").succeeded == 2


def test_a_batch_is_not_closed_for_a_reason_that_does_not_exist() -> None:
    collector = BatchCollector("b", ["A"])
    with pytest.raises(ValueError, match="lunch"):
        collector.close("lunch")
    assert collector.report is None


@pytest.mark.parametrize("reason", ["quorum", "failures", "forced", "aborted"])
def test_a_station_without_an_answer_was_cancelled_where_no_deadline_ended_the_batch(reason: str) -> None:
    report = BatchCollector("b", ["A"], starts={"A": 0.0}).close(reason, seconds=1.0)
    assert report.stations["A"] == StationOutcome(Verdict.CANCELLED, 0.0, 1.0)
    assert report.cancelled == 1


@pytest.mark.parametrize("stations", ["S001", b"S001"])
def test_one_string_instead_of_several_ids_is_refused(stations) -> None:
    with pytest.raises(TypeError, match="several ids, not one string"):
        BatchCollector("b", stations)


def test_a_station_that_is_named_twice_counts_once() -> None:
    collector = BatchCollector("b", ["A", "B", "A"])
    assert collector.progress == (0, 2)
    assert collector.missing == 2


def test_a_batch_of_nobody_is_complete() -> None:
    report = BatchCollector("b", []).close("all")
    assert (report.expected, report.results, dict(report.stations)) == (0, [], {})


def test_the_progress_counts_whatever_was_said() -> None:
    collector = BatchCollector("b", ["A", "B", "C", "D"])
    assert repr(collector) == "<BatchCollector 'b' 0/4>"
    collector.add_result("A", {})
    collector.add_result("B", None)
    collector.add_failure("C", ValueError())
    assert collector.progress == (3, 4)
    report = collector.close("timeout")
    assert report.answered == 3
    assert repr(collector) == "<BatchCollector 'b' 3/4 closed>"


def test_times_come_from_whoever_runs_the_stations() -> None:
    starts = {"A": 0.0, "B": 0.5, "C": 1.0}
    collector = BatchCollector("b", ["A", "B", "C", "D"], starts=starts)
    collector.add_result("A", {}, 0.25)
    collector.add_failure("B", ValueError(), 0.125)
    report = collector.close("timeout", seconds=5.0)
    times = {station: (outcome.started_seconds, outcome.run_seconds) for station, outcome in report.stations.items()}
    assert times == {"A": (0.0, 0.25), "B": (0.5, 0.125), "C": (1.0, 4.0), "D": (None, None)}
    assert report.stations["C"].verdict is Verdict.TIMED_OUT
    assert report.stations["D"].verdict is Verdict.SKIPPED
    assert counts(report) == {
        "succeeded": 1,
        "no_output": 0,
        "failed": 1,
        "timed_out": 1,
        "cancelled": 0,
        "skipped": 1,
    }


def test_without_starts_nobody_is_skipped() -> None:
    report = BatchCollector("b", ["A"]).close("timeout", seconds=5.0)
    assert report.stations["A"] == StationOutcome(Verdict.TIMED_OUT)
    assert (report.timed_out, report.skipped) == (1, 0)


@pytest.mark.parametrize(("reason", "verdict"), [("timeout", Verdict.TIMED_OUT), ("forced", Verdict.CANCELLED)])
def test_the_answer_for_a_station_that_was_never_started_is_no_start_of_another(reason: str, verdict: Verdict) -> None:
    # Somebody pushes an answer for B while A runs: B is done and A is not.
    collector = BatchCollector("b", ["A", "B", "C"], starts={"A": 0.0})
    collector.add_result("B", {})
    report = collector.close(reason, seconds=5.0)
    assert [outcome.verdict for outcome in report.stations.values()] == [verdict, Verdict.SUCCEEDED, Verdict.SKIPPED]
    assert counts(report) == Counter(outcome.verdict for outcome in report.stations.values()) | dict.fromkeys(
        set(Verdict) - {verdict, Verdict.SUCCEEDED, Verdict.SKIPPED}, 0
    )


def test_a_station_that_was_never_started_may_have_succeeded() -> None:
    collector = BatchCollector("b", ["A", "B"], starts={"A": 0.5})
    collector.add_result("A", {}, 1.0)
    collector.add_result("B", {})  # by somebody else
    assert dict(collector.close("all").stations) == {
        "A": StationOutcome(Verdict.SUCCEEDED, 0.5, 1.0),
        "B": StationOutcome(Verdict.SUCCEEDED),
    }


def test_results_are_encoded_when_they_come_in_the_order_of_the_list() -> None:
    collector = BatchCollector("b", ["A", "B", "C"], encode=msgspec.json.encode)
    result = {"n": 1}
    collector.add_result("B", result)
    result["n"] = 2  # the station's own business from now on
    collector.add_result("A", None)
    collector.add_result("C", {"n": 3})
    assert collector.encoded == [b'{"n":1}', b'{"n":3}']


def test_a_result_that_cannot_be_encoded_is_that_stations_failure_alone() -> None:
    def encode(result: dict) -> bytes:
        return refuse(result) if result.get("bad") else b"{}"

    collector = BatchCollector("b", ["A", "B"], encode=encode)
    assert collector.add_result("A", {"bad": True}, 0.5) is Answer.ACCEPTED
    collector.add_result("B", {})
    report = collector.close("all")
    assert report.results == [{}]
    assert collector.encoded == [b"{}"]
    assert report.stations["A"].verdict is Verdict.FAILED
    assert report.stations["A"].run_seconds == 0.5
    assert str(report.first_error) == "$.value is NaN"


def test_an_encoder_that_breaks_its_promise_costs_one_station_its_answer_and_nobody_else() -> None:
    collector = BatchCollector("b", ["A"], encode=lambda result: bytes(result["missing"]))
    assert collector.add_result("A", {}) is Answer.ACCEPTED
    assert isinstance(collector.close("all").stations["A"].error, KeyError)
    assert collector.encoded == []


def test_a_late_result_is_not_encoded() -> None:
    collector = BatchCollector("b", ["A"], encode=refuse)
    collector.close("timeout")
    assert collector.add_result("A", {}) is Answer.LATE
    assert collector.add_result("X", {}) is Answer.UNKNOWN


@pytest.mark.parametrize("encode", [refuse, encode_result])
def test_a_result_that_was_not_encoded_leaves_no_cycle_behind(encode) -> None:
    gc.collect()
    gc.disable()
    try:
        collector = BatchCollector("b", ["A"], encode=encode)
        collector.add_result("A", {"value": object()})
        report = collector.close("all")
        assert report.failed == 1
        del collector, report
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_the_ledger_is_a_mapping_like_any_other() -> None:
    collector = BatchCollector("b", ["A", "B"])
    collector.add_result("B", {})
    ledger = collector.close("timeout").stations
    expected = {"A": StationOutcome(Verdict.TIMED_OUT), "B": StationOutcome(Verdict.SUCCEEDED)}
    assert ledger == expected
    assert repr(ledger) == repr(expected)
    assert (len(ledger), list(ledger.keys()), list(ledger.values())) == (2, ["A", "B"], list(expected.values()))
    assert "X" not in ledger
    assert ledger.get("X") is None
    with pytest.raises(KeyError):
        ledger["X"]
    assert ledger["A"] is ledger["A"]  # made once


def test_a_report_cannot_be_changed() -> None:
    report = BatchCollector("b", ["A"]).close("timeout")
    with pytest.raises(AttributeError):
        report.succeeded = 7
    with pytest.raises(AttributeError):
        report.stations["A"].verdict = Verdict.SUCCEEDED
    with pytest.raises(TypeError):
        report.stations["A"] = None


STATIONS = ["S1", "S2", "S3", "S4"]
NOT_A_RESULT = st.sampled_from([[], "text", 1, False, ...])


class CollectorMachine(RuleBasedStateMachine):
    """The collector beside a model that writes everything down and adds it up at the end."""

    @initialize(expected=st.lists(st.sampled_from(STATIONS), max_size=6), served=st.booleans(), encodes=st.booleans())
    def open(self, expected: list[str], served: bool, encodes: bool) -> None:
        self.expected = list(dict.fromkeys(expected))
        self.starts: dict[str, float] | None = {} if served else None
        self.encodes = encodes
        self.collector = BatchCollector("b", expected, starts=self.starts, encode=self._encode if encodes else None)
        self.verdicts: dict[str, Verdict] = {}
        self.results: list[dict] = []
        self.answers: Counter[Answer] = Counter()
        self.report = None
        self.clock = 0.0

    @staticmethod
    def _encode(result: dict) -> bytes:
        return refuse(result) if result["bad"] else b"%d" % result["number"]

    def _expect(self, station: str, verdict: Verdict) -> Answer:
        if station not in self.expected:
            answer = Answer.UNKNOWN
        elif self.report is not None:
            answer = Answer.LATE
        elif station in self.verdicts:
            answer = Answer.DUPLICATE
        else:
            answer = Answer.ACCEPTED
            self.verdicts[station] = verdict
        self.answers[answer] += 1
        return answer

    @precondition(lambda self: self.starts is not None and self.report is None)
    @rule(station=st.sampled_from(STATIONS))
    def start(self, station: str) -> None:
        if station in self.expected:
            self.clock += 0.25
            self.starts.setdefault(station, self.clock)

    @rule(station=st.sampled_from([*STATIONS, "stranger"]), bad=st.booleans())
    def succeed(self, station: str, bad: bool) -> None:
        result = {"bad": bad, "number": self.answers.total()}
        good = not (bad and self.encodes)
        answer = self._expect(station, Verdict.SUCCEEDED if good else Verdict.FAILED)
        if good and answer is Answer.ACCEPTED:
            self.results.append(result)
        assert self.collector.add_result(station, result) is answer

    @rule(station=st.sampled_from([*STATIONS, "stranger"]))
    def have_no_output(self, station: str) -> None:
        assert self.collector.add_result(station, None) is self._expect(station, Verdict.NO_OUTPUT)

    @rule(station=st.sampled_from([*STATIONS, "stranger"]), result=NOT_A_RESULT)
    def return_something_else(self, station: str, result: object) -> None:
        assert self.collector.add_result(station, result) is self._expect(station, Verdict.FAILED)

    @rule(station=st.sampled_from([*STATIONS, "stranger"]))
    def fail(self, station: str) -> None:
        assert self.collector.add_failure(station, ValueError()) is self._expect(station, Verdict.FAILED)

    @rule(reason=st.sampled_from(CompletedBy))
    def close(self, reason: CompletedBy) -> None:
        missing = [station for station in self.expected if station not in self.verdicts]
        if self.report is not None:
            assert self.collector.close(reason) is self.report
        elif missing and reason is CompletedBy.ALL:
            with pytest.raises(ValueError, match="missing"):
                self.collector.close(reason)
        else:
            self.report = self.collector.close(reason, seconds=self.clock + 1)
            self.reason = reason
            for station in missing:
                if self.starts is not None and station not in self.starts:
                    self.verdicts[station] = Verdict.SKIPPED
                else:
                    self.verdicts[station] = Verdict.TIMED_OUT if reason is CompletedBy.TIMEOUT else Verdict.CANCELLED

    @invariant()
    def the_answers_are_counted(self) -> None:
        collector = self.collector
        assert (collector.late, collector.duplicates, collector.unknown) == (
            self.answers[Answer.LATE],
            self.answers[Answer.DUPLICATE],
            self.answers[Answer.UNKNOWN],
        )
        assert collector.progress == (self.answers[Answer.ACCEPTED], len(self.expected))
        assert collector.missing == len(self.expected) - self.answers[Answer.ACCEPTED]
        if self.encodes:
            assert collector.encoded == [b"%d" % result["number"] for result in self.results]

    @invariant()
    def the_report_is_complete_and_stays_as_it_is(self) -> None:
        assert self.collector.report is self.report
        if self.report is not None:
            assert self.report.completed_by is self.reason
            assert self.report.results == self.results
            assert {station: outcome.verdict for station, outcome in self.report.stations.items()} == self.verdicts
            assert counts(self.report) == {verdict: list(self.verdicts.values()).count(verdict) for verdict in Verdict}
            assert sum(counts(self.report).values()) == self.report.expected == len(self.expected)


CollectorMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


class TestCollectorBesideItsModel(CollectorMachine.TestCase):
    pass
