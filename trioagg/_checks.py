"""Whether a value is what a parameter takes.  Every error names the parameter, what was given, and what it takes."""

from __future__ import annotations

import inspect

import trio


def check_seconds(**values: object) -> None:
    """Raise ValueError unless each is a number of seconds, 0 or more."""
    for name, value in values.items():
        if not isinstance(value, int | float) or not value >= 0:
            raise ValueError(f"{name}={value!r}: it must be 0 or more seconds")


def check_some_seconds(**values: object) -> None:
    """Raise ValueError unless each is a number of seconds, more than 0."""
    for name, value in values.items():
        if not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{name}={value!r}: it must be more than 0 seconds")


def check_counts(**values: object) -> None:
    """Raise ValueError unless each is a whole number, 1 or more."""
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: it must be 1 or more")


def check_takes(name: str, function: object, *arguments: str) -> None:
    """Raise ValueError unless *function* can be called with so many arguments.

    A callback that cannot would fail for every station of every message, and the messages would be used up.
    """
    if not callable(function):
        raise ValueError(f"{name}={function!r} cannot be called")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # some built-in ones do not tell
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{name}= is called as {name}({', '.join(arguments)}), and {function!r} {error}") from None


def check_in_trio() -> None:
    """Raise RuntimeError outside Trio: the first mistake of whoever comes from asyncio."""
    if not trio.lowlevel.in_trio_task():
        raise RuntimeError("this is not a task of Trio's: trioagg needs `trio.run(main)`, not `asyncio.run(main())`")
