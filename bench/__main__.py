"""The command line of the benches."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

try:
    import cyclopts
    import rich  # noqa: F401 - only to say early and clearly that it is missing
except ModuleNotFoundError as error:
    if error.name not in ("cyclopts", "rich"):
        raise
    sys.exit(f"the benches need {error.name}: pip install '.[bench]'")

from . import core as _core
from . import deadline as _deadline
from . import delivery as _delivery
from . import faults as _faults
from . import fuzz as _fuzz
from . import timeouts as _timeouts

app = cyclopts.App(
    name="python -m bench",
    help="What trioagg costs and how late it is, on this machine and now.",
    version_flags=(),
)

Numbers = Annotated[
    tuple[int, ...],
    cyclopts.Parameter(consume_multiple=True, negative="", validator=cyclopts.validators.Number(gte=1)),
]
Json = Annotated[bool, cyclopts.Parameter(name="--json", negative="")]
Quick = Annotated[bool, cyclopts.Parameter(name="--quick", negative="")]


@app.command
def core(
    *,
    stations: Numbers = (10, 100, 1000),
    quick: Quick = False,
    json: Json = False,
    seed: int | None = None,
) -> None:
    """What does a station cost, beside a bare Trio nursery and asyncio.TaskGroup?

    Parameters
    ----------
    stations
        Stations of a batch.
    quick
        Fewer and shorter samples: under 20 seconds, for a look; its figures are rough.
    json
        One JSON line a case, instead of the table.
    seed
        For the random order of the contestants.
    """
    _core.main(stations, quick=quick, as_json=json, seed=seed)


@app.command
def deadline(
    *,
    simultaneous: Numbers = (1, 10, 100, 1000),
    quick: Quick = False,
    json: Json = False,
) -> None:
    """How late after its deadline is a list, when many batches of hung stations expire at once?

    Parameters
    ----------
    simultaneous
        Batches with the same deadline.
    quick
        Fewer rounds: under 20 seconds, for a look; its figures are rough.
    json
        One JSON line a case, instead of the tables.
    """
    _deadline.main(simultaneous, quick=quick, as_json=json)


@app.command
def delivery(*, quick: Quick = False, json: Json = False, seed: int = 1) -> None:
    """What does exactly once cost, beside at least once?  On a real Kafka of its own.

    Parameters
    ----------
    quick
        One short repetition, for a look; its figures are rough.
    json
        One JSON line a delivery, instead of the table.
    seed
        For the order of the two.
    """
    _delivery.main(quick=quick, as_json=json, seed=seed)


@app.command
def faults(
    *,
    only: Annotated[tuple[str, ...], cyclopts.Parameter(consume_multiple=True, negative="")] = (),
    rounds: Annotated[int | None, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1))] = None,
    delivery: Annotated[
        tuple[Literal["at_least_once", "exactly_once"], ...], cyclopts.Parameter(consume_multiple=True, negative="")
    ] = ("at_least_once", "exactly_once"),
    quick: Quick = False,
    json: Json = False,
    seed: int = 1,
) -> None:
    """What is lost, and what comes twice, when everything that can break is broken?  On a real Kafka of its own.

    Parameters
    ----------
    only
        Names of scenarios; without any all of them run, for about an hour.
    rounds
        How often each thing is broken, instead of its usual number.
    delivery
        One way of delivery, or both.
    quick
        One round of each.
    json
        One JSON line a case, as it ends, instead of the table.
    seed
        For the moments at which things break.
    """
    _faults.main(only, rounds=1 if quick else rounds, deliveries=delivery, seed=seed, as_json=json)


@app.command
def timeouts(
    *,
    deadlines: Annotated[
        tuple[float, ...],
        cyclopts.Parameter(consume_multiple=True, negative="", validator=cyclopts.validators.Number(gt=0)),
    ] = (1.0, 2.0, 5.0, 10.0, 20.0),
    quick: Quick = False,
    json: Json = False,
    seed: int = 1,
) -> None:
    """How many stations make it before the deadline?

    Parameters
    ----------
    deadlines
        Seconds.
    quick
        Fewer batches: a few seconds, for a look.
    json
        One JSON line a case, instead of the table.
    seed
        For the service times.
    """
    _timeouts.main(deadlines, batches=20 if quick else 200, seed=seed, as_json=json)


@app.command
def fuzz(
    *,
    messages: Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=100))] = 1_000_000,
    seed: int = 1,
    dead_letters: bool = True,
    quick: Quick = False,
    json: Json = False,
) -> None:
    """Does any message stop the service, or get lost in it?

    Parameters
    ----------
    messages
        Hostile messages, from the seed.
    seed
        The same seed gives the same messages.
    dead_letters
        Whether poison becomes dead letters, which are compared with their messages.
    quick
        20,000 messages at most: a look; too short a run for its memory.
    json
        One JSON line, instead of the table.
    """
    _fuzz.main(min(messages, 20_000) if quick else messages, seed=seed, dead_letters=dead_letters, as_json=json)


if __name__ == "__main__":
    app()
