"""Which topics a service reads and writes, and that no two of them contradict each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ._stations import RESERVED_KEYS

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def checked_topics(
    topics: Sequence[str],
    *,
    result_topic: str | None,
    dead_letter_topic: str | None,
    context_topics: Collection[str],
) -> tuple[str, ...]:
    """The topics whose messages open batches, each once.

    Raises:
      ValueError: if they are no names, or one topic has two uses.
    """
    if isinstance(topics, str | bytes):
        raise ValueError(f"topics must be several names, not one string: use topics=[{topics!r}]")
    if not isinstance(topics, Iterable):
        raise ValueError(f"topics={topics!r}: give a list of names")
    names = tuple(dict.fromkeys(topics))
    if not names or not all(isinstance(topic, str) and topic for topic in names):
        raise ValueError(f"topics={topics!r}: name at least one topic, each a non-empty string")
    if reserved := RESERVED_KEYS.intersection(names):
        raise ValueError(f"topics={topics!r}: module_input has a meaning of its own for {sorted(reserved)}")
    if dead_letter_topic is not None and dead_letter_topic in (*names, result_topic):
        raise ValueError(f"dead_letter_topic={dead_letter_topic!r} must be a topic of its own")
    if written := {result_topic, dead_letter_topic}.intersection(context_topics):
        raise ValueError(f"context_topics={sorted(map(str, written))}: this service writes there itself")
    if reserved := RESERVED_KEYS.union(names).intersection(context_topics):
        raise ValueError(f"context_topics={sorted(reserved)}: the module_input has these keys already")
    return names
