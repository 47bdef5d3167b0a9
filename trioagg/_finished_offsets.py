"""Offsets that are finished beyond the committed one <-> the metadata text of that commit.  No I/O, no clock.

The rules:

1. Metadata is a hint.  It can only save work: whoever cannot read it does everything from the committed offset on
   again, and nothing is lost.  So a text that is not ours, whole and of this very commit is refused, never guessed at.
2. A text says which version and kind it is and carries a checksum over that, the committed offset and the payload:
   ``trioagg1:<kind>:<base64 of crc32 and payload>``.  A group whose offset was reset keeps no finished offsets.
3. Two encodings, each also deflated; the shortest is taken.  Runs are short where much is finished in a row or little
   at all, whatever the distance; a bitset is short where no rule can be seen.  Holes (compaction, transaction markers)
   are unfinished offsets that nobody will ask for.
4. What is read is bounded before it is built, for a checksum stops damage and not malice.  The bounds hold for writing
   too: what can be written can be read.
"""

from __future__ import annotations

import binascii
import zlib
from itertools import compress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_FINISHED = 50_000
"""Offsets in one text: a set of about 5 MB."""
MAX_BODY_BYTES = 32_768
"""Of one text after inflation: a bitset over a quarter of a million offsets, or 16,384 runs."""

_MAX_OFFSET = 2**63 - 1
_PREFIX = "trioagg1:"
_RUNS, _BITS, _DEFLATED_RUNS, _DEFLATED_BITS = "r", "b", "rz", "bz"
_CRC_BYTES = 4
_RAW_DEFLATE = -15
"""Window bits; without zlib's header and its own checksum, which would be 8 more characters."""


class UnreadableMetadata(ValueError):
    """A commit's metadata says nothing about finished offsets: it is not trioagg's, damaged, or of another commit."""

    def __init__(self, base: int, reason: str) -> None:
        super().__init__(f"the metadata committed with offset {base} is not used: {reason}")
        self.base, self.reason = base, reason


def encode_finished(base: int, finished: Iterable[int], *, limit: int = 4096) -> str | None:
    """The text to commit together with *base*, in ASCII; "" if nothing is finished, None if it does not fit.

    Args:
      base: The offset that is committed.
      finished: Offsets that need not be done again, from *base* on, in any order.
      limit: Bytes that the text may have.  A broker takes 4096 unless ``offset.metadata.max.bytes`` says otherwise.

    Raises:
      ValueError: if *base* or an offset is none (below 0 or over 2**63 - 1), or an offset is below *base*.
    """
    ordered = sorted(set(finished))
    lowest, highest = (ordered[0], ordered[-1]) if ordered else (base, base)
    if not 0 <= base <= lowest:
        raise ValueError(f"offset {lowest} cannot be finished beyond {base}")
    if highest > _MAX_OFFSET:
        raise ValueError(f"{highest} is not an offset")
    if not ordered:
        return ""
    if len(ordered) > MAX_FINISHED:
        return None
    runs = _runs_of(ordered)
    bits_bytes = (highest - base) // 8 + 1
    bodies = {}
    # What is several times as long as the other hardly wins by being deflated, and is what would take the time.
    if 2 * len(runs) <= min(3 * bits_bytes, MAX_BODY_BYTES):
        as_runs = _pack_runs(base, runs)
        if len(as_runs) <= MAX_BODY_BYTES:
            bodies[_RUNS] = as_runs
            bodies[_DEFLATED_RUNS] = _deflate(as_runs)
    if bits_bytes <= min(max(8 * len(runs), 64), MAX_BODY_BYTES):
        bodies[_BITS] = as_bits = _pack_bits(base, runs)
        bodies[_DEFLATED_BITS] = _deflate(as_bits)
    if not bodies:
        return None
    kind, payload = min(bodies.items(), key=lambda body: len(body[0]) + len(body[1]))
    text = f"{_PREFIX}{kind}:{_base64(_checksum(base, kind, payload) + payload)}"
    return text if len(text) <= limit else None


def decode_finished(base: int, metadata: str) -> frozenset[int]:
    """The offsets that *metadata*, committed together with *base*, says are finished; none for "".

    However the text came about, it makes at most `MAX_FINISHED` offsets out of at most `MAX_BODY_BYTES`: under 10 MB,
    what is needed in between included.

    Raises:
      UnreadableMetadata: if it is not a text of `encode_finished` for this *base*.
    """
    if not metadata:
        return frozenset()
    if not metadata.startswith(_PREFIX):
        raise UnreadableMetadata(base, f"{metadata[:20]!a} is not how ours begins")
    kind, _, encoded = metadata[len(_PREFIX) :].partition(":")
    try:
        decoded = binascii.a2b_base64(encoded)
    except ValueError as error:  # foreign characters outside of ASCII, or a wrong length
        raise UnreadableMetadata(base, f"it is not base64 ({error})") from None
    # The decoder passes over foreign characters, and in its strict mode too over padding that is too much.
    if _base64(decoded) != encoded:
        raise UnreadableMetadata(base, "it is not base64 as we write it")
    checksum, payload = decoded[:_CRC_BYTES], decoded[_CRC_BYTES:]
    if checksum != _checksum(base, kind, payload):
        raise UnreadableMetadata(base, "the checksum differs; it is damaged, or was committed with another offset")
    try:
        if kind in (_DEFLATED_RUNS, _DEFLATED_BITS):
            payload = _inflate(payload)
        if kind in (_RUNS, _DEFLATED_RUNS):
            return _unpack_runs(base, payload)
        if kind in (_BITS, _DEFLATED_BITS):
            return _unpack_bits(base, payload)
    except (ValueError, zlib.error) as error:
        raise UnreadableMetadata(base, str(error)) from None
    raise UnreadableMetadata(base, f"there is no kind {kind[:20]!a}")


def _base64(content: bytes) -> str:
    return binascii.b2a_base64(content, newline=False).decode("ascii")


def _checksum(base: int, kind: str, payload: bytes) -> bytes:
    head = f"{_PREFIX}{kind}:{base}:".encode("utf-8", "surrogatepass")
    return zlib.crc32(payload, zlib.crc32(head)).to_bytes(_CRC_BYTES, "big")


def _deflate(body: bytes) -> bytes:
    return zlib.compress(body, wbits=_RAW_DEFLATE)


def _inflate(payload: bytes) -> bytes:
    inflater = zlib.decompressobj(wbits=_RAW_DEFLATE)
    body = inflater.decompress(payload, MAX_BODY_BYTES + 1)
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"it inflates to more than {MAX_BODY_BYTES} bytes")
    if not inflater.eof or inflater.unused_data:
        raise ValueError("it is cut off or goes on behind its end")
    return body


def _runs_of(ordered: list[int]) -> list[tuple[int, int]]:
    """Start and end (the first offset behind it) of each run."""
    runs = []
    start = end = ordered[0]
    for offset in ordered:
        if offset != end:
            runs.append((start, end))
            start = offset
        end = offset + 1
    runs.append((start, end))
    return runs


def _pack_runs(base: int, runs: list[tuple[int, int]]) -> bytes:
    """Distance from the end of the run before and length, again and again, in LEB128."""
    body = bytearray()
    at = base
    for start, end in runs:
        for number in (start - at, end - start):
            while number > 0x7F:
                body.append(number & 0x7F | 0x80)
                number >>= 7
            body.append(number)
        at = end
    return bytes(body)


def _unpack_runs(base: int, body: bytes) -> frozenset[int]:
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"it has more than {MAX_BODY_BYTES} bytes")
    runs = []
    at, count = base, 0
    numbers = _numbers_in(body)
    for distance in numbers:
        length = next(numbers, 0)
        start = at + distance
        at = start + length
        count += length
        if not length or at > _MAX_OFFSET + 1:
            raise ValueError("a run of it is empty or ends behind the last offset there is")
        if count > MAX_FINISHED:
            raise ValueError(f"it has more than {MAX_FINISHED} offsets")
        runs.append(range(start, at))
    return frozenset(offset for run in runs for offset in run)


def _numbers_in(body: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in body:
        number |= (byte & 0x7F) << shift
        if byte > 0x7F:
            shift += 7
            if shift > 56:  # nine bytes hold every offset
                raise ValueError("a number of it is too long")
        else:
            yield number
            number = shift = 0
    if shift:
        raise ValueError("its last number is cut off")


def _pack_bits(base: int, runs: list[tuple[int, int]]) -> bytes:
    """One bit for each offset from *base* on, the lowest first."""
    width = runs[-1][1] - base
    # Text digits, which int() turns into bits at the speed of C; setting bits one by one is five times slower.
    digits = bytearray(b"0") * width
    for start, end in runs:
        digits[start - base : end - base] = b"1" * (end - start)
    digits.reverse()
    return int(digits, 2).to_bytes((width + 7) // 8, "little")


def _unpack_bits(base: int, body: bytes) -> frozenset[int]:
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"it has more than {MAX_BODY_BYTES} bytes")
    bits = int.from_bytes(body, "little")
    if bits.bit_count() > MAX_FINISHED:
        raise ValueError(f"it has more than {MAX_FINISHED} offsets")
    end = base + bits.bit_length()
    if end > _MAX_OFFSET + 1:
        raise ValueError("it goes on behind the last offset there is")
    digits = f"{bits:b}".encode("ascii")[::-1].replace(b"0", b"\0")
    return frozenset(compress(range(base, end), digits))
