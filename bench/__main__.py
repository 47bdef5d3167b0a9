"""The command line of the benches."""

from __future__ import annotations

import sys
from typing import Annotated

try:
    import cyclopts
    import rich  # noqa: F401 - only to say early and clearly that it is missing
except ModuleNotFoundError as error:
    if error.name not in ("cyclopts", "rich"):
        raise
    sys.exit(f"the benches need {error.name}: pip install '.[bench]'")

from . import core as _core
from . import deadline as _deadline
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


if __name__ == "__main__":
    app()
