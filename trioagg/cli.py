"""The command line: ``trioagg demo``."""

from __future__ import annotations

import sys
from typing import Annotated

import trio

from ._errors import TrioaggError

try:
    from cyclopts import App, Parameter
    from cyclopts.validators import Number
    from rich.console import Console
except ImportError as error:
    raise SystemExit(
        f"the command line needs {error.name}: pip install 'trioagg[cli]' (in a checkout: '.[cli]')"
    ) from None

errors = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
app = App(
    name="trioagg", help="From one Kafka message of many stations to one list of results, on time.", backend="trio"
)


@app.command
async def demo(
    *,
    bootstrap_servers: str | None = None,
    batches: Annotated[int, Parameter(validator=Number(gte=1))] = 20,
    stations: Annotated[int, Parameter(validator=Number(gte=1))] = 100,
    rate: Annotated[float, Parameter(validator=Number(gt=0))] = 5.0,
    batch_timeout: Annotated[float, Parameter(validator=Number(gt=0))] = 1.0,
) -> int:
    """Watch messages of many stations become one list each, on time, through a real service.

    Some stations fail, some answer None and some hang.  It ends by itself; Ctrl-C drains and ends it earlier.

    Parameters
    ----------
    bootstrap_servers
        A real Kafka, as host:port.  Without it a mock broker runs in this process.
    batches
        How many messages are sent.
    stations
        How many stations each message has.
    rate
        Messages a second.
    batch_timeout
        Seconds from the opening of a batch to its list.
    """
    try:
        from ._demo import Demo, run_demo
    except ImportError as error:
        await trio.lowlevel.checkpoint()
        errors.print(f"the demo needs {error.name}: pip install 'trioagg[demo]' (in a checkout: '.[demo]')")
        return 1
    what = Demo(batches=batches, stations=stations, rate=rate, batch_timeout=batch_timeout)
    try:
        await run_demo(what, bootstrap_servers, Console())
    except TrioaggError as error:
        errors.print(f"trioagg: {error}")
        return 1  # noqa: ASYNC910 - it came out of one
    return 0


def main() -> None:
    """The entry point of the ``trioagg`` command."""
    try:
        sys.exit(app())
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
