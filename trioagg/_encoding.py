"""Results -> the bytes of a result message.  No Trio, no clock, no I/O.

A result is encoded once, when its station answers, and the list is put together from the pieces: what cannot be
encoded costs its own station the answer and nobody else's.
"""

from __future__ import annotations

from math import isfinite, isnan
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ._errors import BadResult, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_MAX_TOLISTS: Final = 3  # one is usual, two an array of no dimension around a scalar
_MAX_PLACE: Final = 200  # characters of a place in a reason: a thousand lists deep is still a place


def encode_result(result: dict[str, Any]) -> bytes:
    """Encode the result of one station as JSON.

    It may hold whatever msgspec encodes, numpy's scalars and arrays, and anything else with a ``tolist()``.  As a key
    only what msgspec takes for one: strings, numbers (a NaN is the key "nan"), dates.  A :class:`msgspec.Raw` goes out
    as it is: whoever makes one vouches for it.

    Raises:
      BadResult: if it cannot be encoded (an unknown type, a lone surrogate, a dict that contains itself, ...), with
        the reason as ``__cause__``; or if it holds a NaN or an infinity, which JSON does not have.
    """
    try:
        encoded = _encode(result)
        # msgspec writes null for NaN and infinity.  A result without any null, the usual one, is not looked at again.
        lost = _find_not_finite(msgspec.to_builtins(result, enc_hook=_to_plain)) if b"null" in encoded else None
    except Exception as error:
        raise BadResult(_explain(error)) from error
    if lost is not None:
        raise BadResult(lost)
    return encoded


def encode_list(batch_id: str, encoded: Sequence[bytes], ledger: dict[str, Any] | None = None) -> bytes:
    """Put a result message together from what :func:`encode_result` made of its results."""
    last = b"" if ledger is None else b',"ledger":%b' % _encode(ledger)
    return b'{"batch_id":%b,"count":%d,"results":[%b]%b}' % (_encode(batch_id), len(encoded), b",".join(encoded), last)


def _to_plain(value: Any) -> Any:
    """Ask an object that msgspec does not know for something that it knows."""
    if type(value) is msgspec.Raw:  # only the second look asks for it
        return msgspec.json.decode(value)
    if not hasattr(value, "tolist"):
        # None, True and a tuple are well known as values: they come here as keys.
        as_key = "a key of " if value is None or isinstance(value, bool | tuple) else ""
        raise TypeError(f"no JSON for {as_key}type {type(value).__qualname__}")
    plain = value
    for _ in range(_MAX_TOLISTS):
        plain = plain.tolist()
        if not hasattr(plain, "tolist"):
            return plain
    # numpy.longdouble gives itself, a mock another mock: left to the recursion limit that took 12 seconds.
    raise TypeError(f"{type(value).__qualname__}.tolist() comes to no plain value")


_encode = msgspec.json.Encoder(enc_hook=_to_plain).encode


def _find_not_finite(tree: Any) -> str | None:
    """Name the place of a NaN or an infinity in *tree*.  A loop, since a result may be as deep as msgspec can go."""
    # A place is the place of the container and the key in it, and is only written out when it is needed.
    pending: list[tuple[Any, Any]] = [(None, tree)]
    while pending:
        place, container = pending.pop()
        children: Iterable[tuple[Any, Any]] = container.items() if type(container) is dict else enumerate(container)
        for key, value in children:
            kind = type(value)
            if kind is float:
                if not isfinite(value):
                    return f"{_write_place((place, key))} is {'NaN' if isnan(value) else 'infinite'}"
            elif kind is dict or kind is list or kind is tuple:
                pending.append(((place, key), value))
    return None


def _write_place(place: tuple[Any, Any] | None) -> str:
    parts = []
    while place is not None:
        place, key = place
        parts.append(f".{key}" if type(key) is str and key.isidentifier() else f"[{key!r}]")
    return "$" + "".join(reversed(parts))[:_MAX_PLACE]


def _explain(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "cannot be encoded: nested too deep, or contains itself"
    return f"cannot be encoded: {type(error).__name__}: {words(error)}"
