"""What may be committed, checked against the slowest thing that can be right."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trioagg._watermark import Watermark


def test_nothing_is_committable_before_anything_is_finished() -> None:
    mark = Watermark()
    assert (mark.committable, mark.in_flight, mark.uncommitted) == (None, 0, 0)
    mark.deliver(5)
    assert (mark.committable, mark.in_flight, mark.uncommitted) == (None, 1, 0)


def test_the_first_unfinished_offset_is_the_limit() -> None:
    mark = Watermark()
    for offset in (5, 6, 7):
        mark.deliver(offset)
    assert mark.finish(6)
    assert mark.finish(7)
    assert (mark.committable, mark.in_flight, mark.uncommitted) == (None, 1, 2)
    assert mark.finish(5)
    assert (mark.committable, mark.in_flight, mark.uncommitted) == (8, 0, 3)


def test_holes_hold_nothing_and_stop_nothing() -> None:
    mark = Watermark()
    for offset in (5, 90, 300):
        mark.deliver(offset)
    mark.finish(5)
    assert mark.committable == 90
    mark.finish(90)
    mark.finish(300)
    assert mark.committable == 301


def test_with_nothing_in_flight_the_position_is_committable() -> None:
    mark = Watermark()
    mark.advance_to(7)
    assert mark.committable == 7
    mark.deliver(7)
    mark.advance_to(9)
    mark.finish(7)
    assert mark.committable == 8
    mark.advance_to(9)  # a transaction's marker
    assert mark.committable == 9


def test_what_is_acknowledged_is_not_offered_again() -> None:
    mark = Watermark()
    mark.deliver(5)
    mark.deliver(6)
    mark.finish(5)
    mark.committed(6)
    assert (mark.committable, mark.uncommitted) == (None, 0)
    mark.finish(6)
    assert (mark.committable, mark.uncommitted) == (7, 1)


def test_a_commit_on_its_way_does_not_cover_what_is_finished_meanwhile() -> None:
    mark = Watermark()
    mark.deliver(5)
    mark.deliver(6)
    mark.finish(5)
    sent = mark.committable
    mark.finish(6)
    assert sent is not None
    mark.committed(sent)
    assert (mark.committable, mark.uncommitted) == (7, 1)


def test_a_discarded_offset_is_not_waited_for_and_never_committed_past() -> None:
    mark = Watermark()
    for offset in (5, 6, 7):
        mark.deliver(offset)
    mark.finish(5)
    assert mark.discard(6)
    mark.finish(7)
    assert (mark.in_flight, mark.committable) == (0, 6)
    mark.advance_to(50)
    assert mark.committable == 6


def test_a_second_answer_for_an_offset_changes_nothing() -> None:
    mark = Watermark()
    mark.deliver(5)
    assert mark.finish(5)
    assert not mark.finish(5)
    assert not mark.discard(5)
    assert not mark.finish(99)
    assert (mark.in_flight, mark.uncommitted, mark.committable) == (0, 1, 6)


def test_offsets_only_grow() -> None:
    mark = Watermark()
    mark.deliver(5)
    with pytest.raises(ValueError, match="offset 5 was delivered after 5"):
        mark.deliver(5)
    mark.advance_to(9)
    with pytest.raises(ValueError, match="offset 7"):
        mark.deliver(7)


class Model(RuleBasedStateMachine):
    """Every offset with its fate, and every answer found by looking at all of them."""

    @initialize(start=st.integers(0, 5))
    def begin(self, start: int) -> None:
        self.mark = Watermark()
        self.fates: dict[int, str] = {}
        self.position = start
        self.told: int | None = None
        """The last position that the watermark was told."""
        self.acknowledged: int | None = None
        self.offered: list[int] = []

    def with_fate(self, fate: str) -> list[int]:
        return sorted(offset for offset, now in self.fates.items() if now == fate)

    def open_offsets(self) -> list[int]:
        return sorted(offset for offset, now in self.fates.items() if now != "finished")

    @rule(hole=st.integers(0, 4))
    def deliver(self, hole: int) -> None:
        offset = self.position + hole
        self.mark.deliver(offset)
        self.fates[offset] = "in flight"
        self.position = offset + 1

    @rule(marker=st.integers(0, 3))
    def advance(self, marker: int) -> None:
        self.position += marker
        self.mark.advance_to(self.position)
        if not self.open_offsets():
            self.told = self.position

    @precondition(lambda self: self.with_fate("in flight"))
    @rule(data=st.data(), fate=st.sampled_from(["finished", "finished", "finished", "discarded"]))
    def end(self, data: st.DataObject, fate: str) -> None:
        offset = data.draw(st.sampled_from(self.with_fate("in flight")))
        assert (self.mark.finish if fate == "finished" else self.mark.discard)(offset)
        self.fates[offset] = fate

    @precondition(lambda self: self.with_fate("finished"))
    @rule(data=st.data())
    def end_again(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(self.with_fate("finished")))
        assert not self.mark.finish(offset)
        assert not self.mark.discard(offset)

    @precondition(lambda self: self.mark.committable is not None)
    @rule()
    def offer(self) -> None:
        assert self.mark.committable is not None
        self.offered.append(self.mark.committable)

    @precondition(lambda self: self.offered)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(self.offered))
        self.mark.committed(offset)
        self.acknowledged = max(offset, self.acknowledged or 0)

    @invariant()
    def agrees(self) -> None:
        assert self.mark.in_flight == len(self.with_fate("in flight"))
        done = [offset for offset in self.with_fate("finished") if offset >= (self.acknowledged or 0)]
        assert self.mark.uncommitted == len(done)
        assert self.mark.committable == self.expected()

    def expected(self) -> int | None:
        unfinished = self.open_offsets()
        first = unfinished[0] if unfinished else None
        passed = [offset for offset in self.with_fate("finished") if first is None or offset < first]
        if not passed and self.told is None:
            return None
        below = max([offset + 1 for offset in passed] + ([self.told] if self.told is not None else []))
        limit = below if first is None else first
        return limit if self.acknowledged is None or limit > self.acknowledged else None


TestWatermark = Model.TestCase
