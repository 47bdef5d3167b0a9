"""What the metadata of a commit says about finished offsets, and what it must not be believed."""

from __future__ import annotations

import binascii
import json
import random
import string
import tracemalloc
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trioagg._finished_offsets import (
    MAX_BODY_BYTES,
    MAX_FINISHED,
    UnreadableMetadata,
    decode_finished,
    encode_finished,
)

LAST = 2**63 - 1
ENOUGH = 10**6
"""A limit that nothing here reaches."""

bases = st.one_of(st.integers(0, 1000), st.integers(0, LAST), st.just(LAST))


@st.composite
def near(draw: st.DrawFn) -> tuple[int, set[int]]:
    base = draw(st.one_of(st.integers(0, 1000), st.integers(0, LAST - 400), st.just(LAST - 300)))
    return base, {base + ahead for ahead in draw(st.sets(st.integers(0, 300)))}


@st.composite
def in_runs(draw: st.DrawFn) -> tuple[int, set[int]]:
    base = at = draw(st.integers(0, LAST - 2**50))
    finished: set[int] = set()
    for distance, length in draw(st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 300)), max_size=30)):
        finished |= set(range(at + distance, at + distance + length))
        at += distance + length
    return base, finished


@st.composite
def in_a_pattern(draw: st.DrawFn) -> tuple[int, set[int]]:
    base, period = draw(st.integers(0, LAST - 10_000)), draw(st.integers(1, 200))
    kept, many = draw(st.integers(1, period)), draw(st.integers(1, 5000))
    return base, {base + ahead for ahead in range(many) if ahead % period < kept}


@st.composite
def anywhere(draw: st.DrawFn) -> tuple[int, set[int]]:
    base = draw(bases)
    return base, draw(st.sets(st.integers(base, LAST), max_size=50))


commits = st.one_of(near(), in_runs(), in_a_pattern(), anywhere())


def forged(base: int, kind: str, payload: bytes) -> str:
    """What somebody writes who knows the format, checksum and all."""
    checksum = zlib.crc32(f"trioagg1:{kind}:{base}:".encode() + payload).to_bytes(4, "big")
    return f"trioagg1:{kind}:{binascii.b2a_base64(checksum + payload, newline=False).decode()}"


def deflated(body: bytes) -> bytes:
    return zlib.compress(body, wbits=-15)


def text_of(base: int, finished: set[int]) -> str:
    text = encode_finished(base, finished, limit=ENOUGH)
    assert text is not None
    return text


def of_each_kind() -> dict[str, tuple[int, set[int], str]]:
    chance = random.Random(7)
    cases: list[tuple[int, set[int]]] = [
        (100, set(range(101, 5000))),
        (7, {8, 9, 10, 12, 13, 17, 18, 20}),
        (5, {5 + ahead for ahead in range(20_000) if ahead % 101}),
        (2**40, {2**40 + ahead for ahead in range(1, 2000) if chance.random() < 0.9}),
    ]
    texts = [text_of(base, finished) for base, finished in cases]
    return {text.split(":")[1]: (*case, text) for case, text in zip(cases, texts, strict=True)}


def test_what_is_finished_beyond_the_commit_is_read_back() -> None:
    text = encode_finished(100, [102, 101, 250, 103, 103])
    assert text is not None
    assert decode_finished(100, text) == {101, 102, 103, 250}


def test_nothing_finished_is_no_text_and_no_text_is_nothing_finished() -> None:
    assert encode_finished(100, []) == ""
    assert decode_finished(100, "") == frozenset()
    assert decode_finished(-1, "") == frozenset()  # what a client says where nothing was ever committed


def test_the_text_says_whose_it_is_and_is_ascii() -> None:
    assert set(of_each_kind()) == {"r", "b", "rz", "bz"}
    for kind, (_, _, text) in of_each_kind().items():
        assert text.startswith(f"trioagg1:{kind}:")
        assert text.isascii()


def test_the_text_of_this_version_stays_readable() -> None:
    # Texts are in the brokers while versions change: these were written by the first one.
    assert decode_finished(100, RUNS_TEXT) == set(range(101, 151)) | {2**40}
    assert decode_finished(7, BITS_TEXT) == {8, 9, 10, 12, 13, 17, 18, 20}
    assert encode_finished(100, [*range(101, 151), 2**40]) == RUNS_TEXT
    assert encode_finished(7, [8, 9, 10, 12, 13, 17, 18, 20]) == BITS_TEXT


RUNS_TEXT = "trioagg1:r:pPFCdwEy6f7///8fAQ=="
BITS_TEXT = "trioagg1:b:f05/jm4s"


@settings(deadline=None)
@given(commits)
@example((LAST, {LAST}))
@example((0, {LAST}))
@example((0, {0}))
@example((0, {0, LAST}))
def test_every_set_of_offsets_comes_back(commit: tuple[int, set[int]]) -> None:
    base, finished = commit
    assert decode_finished(base, text_of(base, finished)) == finished


@settings(deadline=None)
@given(commits, st.integers(0, 200))
def test_the_limit_is_kept(commit: tuple[int, set[int]], limit: int) -> None:
    base, finished = commit
    text = encode_finished(base, finished, limit=limit)
    whole = text_of(base, finished)
    assert text == (whole if len(whole.encode()) <= limit else None)


@settings(deadline=None)
@given(commits, bases)
def test_a_text_counts_for_no_other_commit(commit: tuple[int, set[int]], other: int) -> None:
    base, finished = commit
    text = text_of(base, finished)
    if text and other != base:
        with pytest.raises(UnreadableMetadata, match="another offset"):
            decode_finished(other, text)


def test_what_a_broker_takes_holds_what_a_service_has_in_flight() -> None:
    chance = random.Random(5)
    base = 123_456_789
    patterns = {
        "most of fifty": (set(range(base + 1, base + 50)) - {base + 7, base + 19, base + 20, base + 33}, 30),
        "everything behind one that hangs": (set(range(base + 1, base + 40_000)), 30),
        "every second": (set(range(base + 1, base + 10_000, 2)), 50),
        "hundreds between transaction markers": ({base + o for o in range(1, 20_000) if o % 101}, 50),
        "a random half": ({base + o for o in range(1, 20_000) if chance.random() < 0.5}, 3400),
        "a thousand, far apart": (set(chance.sample(range(base + 1, base + 1_000_000), 1000)), 2900),
    }
    for name, (finished, expected) in patterns.items():
        text = encode_finished(base, finished)
        assert text is not None, name
        assert len(text) <= expected, name
        assert decode_finished(base, text) == finished, name


def test_what_does_not_fit_is_none_and_not_half_of_it() -> None:
    chance = random.Random(5)
    assert encode_finished(0, chance.sample(range(1, 60_000), 30_000)) is None
    assert encode_finished(0, chance.sample(range(1, 2**62), 1000)) is None
    assert encode_finished(0, chance.sample(range(1, 2**62), 40_000), limit=ENOUGH) is None
    assert encode_finished(0, range(1, MAX_FINISHED + 1)) is not None
    assert encode_finished(0, range(1, MAX_FINISHED + 2)) is None


@pytest.mark.parametrize(
    ("base", "finished"), [(100, [99]), (100, [101, 3]), (0, [-1]), (-1, []), (-1, [4]), (0, [2**63]), (2**63, [])]
)
def test_what_cannot_be_finished_beyond_the_commit_is_an_error(base: int, finished: list[int]) -> None:
    with pytest.raises(ValueError, match="offset"):
        encode_finished(base, finished)


@pytest.mark.parametrize("kind", ["r", "b", "rz", "bz"])
def test_no_damaged_character_goes_unnoticed(kind: str) -> None:
    base, _, text = of_each_kind()[kind]
    characters = string.printable + "\0\x7f\xe9\u4e2d\ud800"
    # The long texts are damaged at a hundred places: the head, the checksum, the end and between.
    places = sorted({*range(min(len(text), 50)), *range(max(len(text) - 20, 0), len(text)), *range(0, len(text), 60)})
    for place in places:
        for character in characters:
            if character != text[place]:
                with pytest.raises(UnreadableMetadata):
                    decode_finished(base, text[:place] + character + text[place + 1 :])


@pytest.mark.parametrize("kind", ["r", "b", "rz", "bz"])
def test_a_text_that_was_cut_off_or_goes_on_is_refused(kind: str) -> None:
    base, _, text = of_each_kind()[kind]
    for length in range(1, len(text)):
        with pytest.raises(UnreadableMetadata):
            decode_finished(base, text[:length])
    for more in ("A", "AAAA", "=", "\n", " ", ":", text):
        with pytest.raises(UnreadableMetadata):
            decode_finished(base, text + more)


@settings(deadline=None)
@given(in_runs(), st.data())
def test_no_flipped_bit_goes_unnoticed(commit: tuple[int, set[int]], data: st.DataObject) -> None:
    base, finished = commit
    text = text_of(base, finished | {base})
    place = data.draw(st.integers(0, len(text) - 1))
    other = chr(ord(text[place]) ^ 1 << data.draw(st.integers(0, 7)))
    with pytest.raises(UnreadableMetadata):
        decode_finished(base, text[:place] + other + text[place + 1 :])


@pytest.mark.parametrize(
    "metadata",
    [
        " ",
        "null",
        json.dumps({"offset": 5, "finished": [6, 7]}),
        "bAAEAAAAGAQ==",  # as the Parallel Consumer of Confluent writes them
        "trioagg",
        "trioagg1",
        "trioagg1:",
        "trioagg1::",
        "trioagg1:r",
        "trioagg1:r:",
        "trioagg1:r:AA==",
        "trioagg1:r:AAAAAA==",
        "trioagg2:r:AAAAAAEB",
        "TRIOAGG1:r:AAAAAAEB",
        "consumer-1-2024-01-01T00:00:00Z",
        "trioagg1:r:\u4e2d\u6587",
        "trioagg1:\u4e2d\u6587:AAAAAAEB",
        "trioagg1:\ud800:AAAAAAEB",
        "\u4e2d\u6587" * 600,
        "\ud800",
        "\0",
        "A" * 4096,
        "trioagg1:bz:" + "A" * 4084,
    ],
    ids=ascii,
)
def test_foreign_metadata_is_refused_with_a_reason(metadata: str) -> None:
    with pytest.raises(UnreadableMetadata) as caught:
        decode_finished(17, metadata)
    assert isinstance(caught.value, ValueError)
    assert caught.value.base == 17
    assert caught.value.reason in str(caught.value)
    # It goes to a log: no foreign text at length, and nothing that a terminal obeys.
    assert len(str(caught.value)) < 250
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


@settings(deadline=None)
@given(
    st.integers(-1, LAST),
    st.one_of(
        st.text(),
        st.text().map(lambda text: f"trioagg1:{text}"),
        st.tuples(st.sampled_from(["r", "b", "rz", "bz"]), st.text(string.ascii_letters + string.digits + "+/=")).map(
            lambda parts: f"trioagg1:{parts[0]}:{parts[1]}"
        ),
        st.binary(min_size=4096, max_size=4096).map(lambda noise: noise.decode("latin-1")),
    ),
)
def test_noise_is_refused_and_nothing_else_is_raised(base: int, noise: str) -> None:
    if noise:
        with pytest.raises(UnreadableMetadata):
            decode_finished(base, noise)


@settings(deadline=None)
@given(bases, st.sampled_from(["r", "b", "rz", "bz", "x", ""]), st.binary(max_size=200), st.booleans())
def test_noise_with_a_right_checksum_gives_offsets_or_the_error(
    base: int, kind: str, body: bytes, deflate: bool
) -> None:
    try:
        finished = decode_finished(base, forged(base, kind, deflated(body) if deflate else body))
    except UnreadableMetadata:
        return
    assert all(base <= offset <= LAST for offset in finished)


FAR = 2**40
NINE_BYTES = b"\xff" * 8 + b"\x7f"


@pytest.mark.parametrize(
    ("kind", "payload", "reason"),
    [
        ("r", b"\1" + NINE_BYTES, "behind the last offset"),
        ("r", b"\1\xff\xff\xff\xff\x7f", "more than 50000 offsets"),
        ("r", b"\1\xd0\x86\x03\1\1", "more than 50000 offsets"),
        ("r", NINE_BYTES + b"\1", "behind the last offset"),
        ("r", b"\xff" * 3000, "too long"),
        ("r", b"\x80" * 9 + b"\1", "too long"),
        ("r", b"\1", "empty"),
        ("r", b"\1\0", "empty"),
        ("r", b"\1\x80", "cut off"),
        ("r", b"\1\1" * MAX_BODY_BYTES, "more than 32768 bytes"),
        ("rz", deflated(b"\1\1" * MAX_BODY_BYTES), "inflates to more than 32768 bytes"),
        ("rz", deflated(bytes(2**26)), "inflates to more than 32768 bytes"),
        ("rz", deflated(b"\1\1")[:-1], "cut off"),
        ("rz", deflated(b"\1\1") + b"\0", "goes on"),
        ("rz", b"\xff\xff", "invalid"),
        ("rz", b"", "cut off"),
        ("b", b"\xff" * (MAX_BODY_BYTES + 1), "more than 32768 bytes"),
        ("b", b"\xff" * 6251, "more than 50000 offsets"),
        ("bz", deflated(b"\xff" * MAX_BODY_BYTES), "more than 50000 offsets"),
        ("bz", deflated(bytes(2**26)), "inflates to more than 32768 bytes"),
        ("x", b"\1\1", "no kind"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_hostile_text_is_refused_before_it_costs_memory(kind: str, payload: bytes, reason: str) -> None:
    text = forged(FAR, kind, payload)
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableMetadata, match=reason):
            decode_finished(FAR, text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(text) + 2_000_000


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("bz", b"\xff" * 6250),
        ("bz", b"\x11" * 25_000),
        ("bz", b"\xff" * 6249 + bytes(MAX_BODY_BYTES - 6250) + b"\x80"),
        ("rz", b"\1\1" * (MAX_BODY_BYTES // 2)),
        ("rz", b"\1\3" * (MAX_BODY_BYTES // 2)),
        ("rz", b"\1\xd0\x86\x03"),
    ],
    ids=["in a row", "every fourth", "and one far away", "single", "three each", "one run"],
)
def test_the_most_that_a_text_can_hold_stays_below_ten_megabytes(kind: str, body: bytes) -> None:
    text = forged(FAR, kind, deflated(body))
    tracemalloc.start()
    try:
        finished = decode_finished(FAR, text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 16_000 < len(finished) <= MAX_FINISHED
    assert peak < 10_000_000


def test_the_last_offset_there_is_can_be_finished_and_none_behind_it() -> None:
    assert decode_finished(LAST - 2, forged(LAST - 2, "b", b"\x07")) == {LAST - 2, LAST - 1, LAST}
    assert decode_finished(LAST - 2, forged(LAST - 2, "r", b"\0\3")) == {LAST - 2, LAST - 1, LAST}
    for kind, body in [("b", b"\x08"), ("r", b"\0\4"), ("r", b"\3\1")]:
        with pytest.raises(UnreadableMetadata, match="behind the last offset"):
            decode_finished(LAST - 2, forged(LAST - 2, kind, body))
