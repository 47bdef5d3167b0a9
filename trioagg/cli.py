"""The command line: ``trioagg demo`` and ``trioagg replay``."""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal

import trio

from ._errors import TrioaggError
from ._replay import Replayed
from ._replay import replay as run_again

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    from cyclopts import App, Parameter
    from cyclopts.validators import Number
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
except ImportError as error:
    raise SystemExit(
        f"the command line needs {error.name}: pip install 'trioagg[cli]' (in a checkout: '.[cli]')"
    ) from None

errors = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
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


@app.command
async def replay(
    callback: str,
    /,
    *,
    from_topic: str,
    result_topic: str | None = None,
    bootstrap_servers: str = "localhost:9092",
    group_id: str | None = None,
    only_failed: bool = True,
    partition: Annotated[int | None, Parameter(validator=Number(gte=0))] = None,
    first_offset: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    last_offset: Annotated[int | None, Parameter(validator=Number(gte=0))] = None,
    batch_timeout: Annotated[float, Parameter(validator=Number(gt=0))] = 5.0,
    lane: Literal["thread", "inline", "process"] | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Run the failed stations of dead letters again, and bring up what they answer as supplements of their batches.

    What is done is remembered in a group of its own: a second run does only what failed again, which is written behind
    the other letters.  The group of the service is not touched.

    Parameters
    ----------
    callback
        module:function; the module is looked for here too.
    from_topic
        The topic of the dead letters; or an ordinary one, whose batches are run again whole.
    result_topic
        Where the lists go.
    bootstrap_servers
        host:port, several with commas.
    group_id
        Remembers what is done; {from_topic}-replay if nothing is said.
    only_failed
        --no-only-failed runs all stations of the letters again.
    partition
        Only this one.
    first_offset
        What is below counts as done.
    last_offset
        What is above is left alone.
    batch_timeout
        Seconds from the opening of a batch to its list.
    lane
        Where a plain def runs.
    dry_run
        Only say what would be done, one line a letter.
    """
    out = Console(markup=False, highlight=False, soft_wrap=True)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    try:
        function = _found(callback)
    except Exception as error:  # an import runs the user's module, which may raise anything
        await trio.lowlevel.checkpoint()
        errors.print(f"trioagg: cannot use {callback}: {error}")
        return 1
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    bar = Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)
    shown = bar.add_task("letters", total=None)

    def progress(done: Replayed) -> None:
        bar.update(shown, completed=done.letters, total=done.total)

    try:
        with bar:
            done = await run_again(
                function,
                from_topic,
                result_topic=result_topic,
                bootstrap_servers=bootstrap_servers,
                group_id=group_id,
                only_failed=only_failed,
                partition=partition,
                first_offset=first_offset,
                last_offset=last_offset,
                dry_run=dry_run,
                progress=progress,
                told=out.print,
                batch_timeout=batch_timeout,
                lane=lane,
            )
    except (TrioaggError, ValueError) as error:
        errors.print(f"trioagg: {error}")
        return 1  # noqa: ASYNC910 - it came out of one
    if dry_run:
        out.print(f"would run {done.stations} stations of {done.batches} batches again; {done.unreadable} left out")
    else:
        out.print(
            f"{done.batches} batches are up: {done.succeeded} of {done.stations} stations have answered, "
            f"{done.failed_again} failed again; {done.unreadable} messages left out"
        )
    return 0


def _found(callback: str) -> Callable[[str, Any], Any]:
    module, colon, name = callback.partition(":")
    if not colon or not name:
        raise ValueError(f"callback {callback!r}: use module:function")
    sys.path.insert(0, os.getcwd())
    function = getattr(import_module(module), name, None)
    if not callable(function):
        raise AttributeError(f"{module} has no {name} that can be called")
    return function  # type: ignore[no-any-return]  # whatever it is


def main() -> None:
    """The entry point of the ``trioagg`` command."""
    try:
        sys.exit(app())
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
