"""Does any message stop the service, or get lost in it?    python -m bench fuzz --messages 1_000_000 --seed 7

Hostile messages go through all of the service but Kafka itself, for which something stands that only counts: its
intake, the parser, batches, callbacks of which some fail, lists, dead letters.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import zlib
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import trioagg._kafka
from trioagg import AsyncDataAnalysisService
from trioagg._kafka import Claim, Message, Record
from trioagg._statistics import KafkaStatistics

from .figures import console, print_lines, print_table
from .garble import messages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

TOPIC: Final = "in"
LETTERS: Final = "dead"
LISTS: Final = "out"
FLAT: Final = 1.1
_AHEAD: Final = 100  # messages that wait for the service, as fetched ones do
_MOST_STOPS: Final = 20
_PATIENCE_SECONDS: Final = 90.0  # longer than a batch may take
_MOST_SHOWN: Final = 400


@dataclass(slots=True)
class Tally:
    """What became of the messages, told by both ends: by what stands for Kafka, and by the service."""

    fed: int = 0
    finished: int = 0
    discarded: int = 0
    settled_twice: int = 0
    letters: int = 0
    wrong_letters: int = 0
    """Dead letters that are not the message as it came."""
    lists: int = 0
    """Lists in the result topic."""
    handled: int = 0
    """Calls of the upload handler."""
    unwritable_lines: int = 0
    """Log lines that no UTF-8 file would take."""
    templates: set[str] = field(default_factory=set)
    """What these lines are, without what was filled in."""
    messages: int = 0
    """This and what follows is what the service says."""
    opened: int = 0
    uploaded: int = 0
    poison: int = 0
    empty: int = 0
    rejected: int = 0
    stations: int = 0
    dead_letters: int = 0
    stops: list[str] = field(default_factory=list)
    """Each with the shortest message that stops a service by itself."""

    @property
    def unaccounted(self) -> int:
        """Messages that are neither a batch, nor poison, nor empty; or were not finished exactly once."""
        return abs(self.messages - self.opened - self.poison - self.empty) + abs(self.fed - self.finished)

    def add(self, service: AsyncDataAnalysisService) -> None:
        """Count what a service has done that has ended."""
        said = service.statistics()
        self.messages += said.messages
        self.opened += said.opened
        self.uploaded += said.uploaded
        self.poison += said.poison
        self.empty += said.empty
        self.rejected += said.rejected_elements
        self.stations += said.expected
        self.dead_letters += said.dead_letters


class NoKafka:
    """Stands for :class:`trioagg._kafka.Kafka`: hands messages out while there is room, and counts what comes back."""

    def __init__(
        self, values: Iterator[bytes | None], tally: Tally, room: Callable[[], int], progress: Callable[[int], None]
    ) -> None:
        self._values, self._tally, self._room, self._progress = values, tally, room, progress
        self._to_service, self.records = trio.open_memory_channel[Record](_AHEAD)
        self.in_flight: dict[int, Record] = {}
        self.given_up: list[Record] = []
        self._claim = Claim(TOPIC, 0)
        self._woken = trio.Event()
        self._exhausted = False
        self.all_settled = trio.Event()
        self.loop = None

    async def feed(self) -> None:
        """Hand out what there is."""
        with self._to_service:
            for value in self._values:
                offset = self._tally.fed
                # Kafka's own times are hostile too: none, before the epoch, milliseconds that are nanoseconds.
                timestamp = (1_700_000_000_000 + offset, None, -1, 0, 2**63 - 1)[offset % 5]
                key = None if offset % 3 else b"\xff%d" % offset
                record = Record(TOPIC, 0, offset, timestamp, key, value, (("h", b"\xff"),), self._claim)
                while self._room() <= 0:
                    self._woken = trio.Event()
                    await self._woken.wait()
                self.in_flight[offset] = record
                self._tally.fed += 1
                await self._to_service.send(record)
                self._progress(self._tally.fed)
        self._exhausted = True
        self._look()
        await trio.lowlevel.checkpoint()

    async def wait_settled(self) -> None:
        """Wait until every message is settled.

        Raises:
          TimeoutError: if none is for a while.
        """
        await trio.lowlevel.checkpoint()
        while not self.all_settled.is_set():
            finished = self._tally.finished
            with trio.move_on_after(_PATIENCE_SECONDS):
                await self.all_settled.wait()
            if finished == self._tally.finished and not self.all_settled.is_set():
                raise TimeoutError(f"{len(self.in_flight)} messages are not settled, and nothing moves")

    def finish(self, record: Record) -> None:
        self._tally.finished += 1
        self._settle(record)

    def discard(self, record: Record) -> None:
        self._tally.discarded += 1
        self.given_up.append(record)
        self._settle(record)

    def _settle(self, record: Record) -> None:
        if self.in_flight.pop(record.offset, None) is not record:
            self._tally.settled_twice += 1
        self._look()

    def _look(self) -> None:
        if self._exhausted and not self.in_flight:
            self.all_settled.set()

    def wake(self) -> None:
        self._woken.set()

    def stop_fetching(self) -> None:
        self._to_service.close()

    async def close(self, seconds: float) -> None:
        await trio.lowlevel.checkpoint()

    async def send(self, outputs: Sequence[Message], record: Record | None = None) -> None:
        await trio.lowlevel.checkpoint()
        for message in outputs:
            if message.topic == LISTS:
                self._tally.lists += 1
            else:
                self._tally.letters += 1
                as_it_came = record is not None and (message.key, message.value) == (record.key, record.value)
                self._tally.wrong_letters += not (as_it_came and self.in_flight.get(record.offset) is record)  # type: ignore[union-attr]
            message.resolve()

    def statistics(self) -> KafkaStatistics:
        return KafkaStatistics(
            **dict.fromkeys(
                (
                    *("already_done", "commits", "rebalances", "late_finishes", "dropped_records", "offset_resets"),
                    *("transactional_producers", "rebuilds", "loop_errors"),
                ),
                0,
            ),
            assigned=((TOPIC, 0),),
            lag={},
            records_delivered=self._tally.fed,
        )


@contextmanager
def no_kafka(
    values: Iterator[bytes | None], tally: Tally, progress: Callable[[int], None] = lambda fed: None
) -> Iterator[list[NoKafka]]:
    """Services that start within the block get *values*; the list that it gives is of what stood for Kafka."""
    opened: list[NoKafka] = []

    @asynccontextmanager
    async def open_no_kafka(*, room: Callable[[], int], **settings: Any) -> AsyncIterator[NoKafka]:
        kafka = NoKafka(values, tally, room, progress)
        opened.append(kafka)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kafka.feed)
            yield kafka
            nursery.cancel_scope.cancel()

    real = trioagg._kafka.open_kafka
    trioagg._kafka.open_kafka = open_no_kafka  # type: ignore[assignment]  # it stands in for the real one
    try:
        yield opened
    finally:
        trioagg._kafka.open_kafka = real


class _Lines(logging.Handler):
    """Writes every line as a file would, and keeps none."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.format(record).encode()
        except Exception:  # a line that cannot be written, for whatever reason, is what is counted here
            self._tally.unwritable_lines += 1
            self._tally.templates.add(str(record.msg))


async def fuzz(
    values: Iterable[bytes | None],
    *,
    progress: Callable[[int], None] = lambda fed: None,
    search: bool = True,
    **settings: Any,
) -> Tally:
    """Feed *values* to a service, and to another one when it stops, until there are none left.

    Args:
      progress: Told of the number of messages so far.
      search: Whether the message that stops a service is looked for, among those that were in flight.
      settings: Of the service.
    """
    tally = Tally()

    async def upload(batch_id: str, results: list[dict[str, Any]]) -> None:
        tally.handled += 1
        await trio.lowlevel.checkpoint()

    log, lines = logging.getLogger("trioagg"), _Lines(tally)
    propagate, log.propagate = log.propagate, False
    log.addHandler(lines)
    remaining = iter(values)
    try:
        with no_kafka(remaining, tally, progress) as opened:
            while len(tally.stops) < _MOST_STOPS:
                service = AsyncDataAnalysisService("fuzz", [TOPIC], batch_timeout=60.0, **settings)
                try:
                    async with service.start(station, upload):
                        await opened[-1].wait_settled()
                except Exception as error:  # any stop of the service is what is looked for
                    suspects = [record.value for record in (*opened[-1].in_flight.values(), *opened[-1].given_up)]
                    tally.stops.append(f"{type(error).__name__}: {error!s:.200}")
                    if search:
                        tally.stops[-1] += f"; by {await _shortest_that_stops(suspects, settings)!r:.{_MOST_SHOWN}}"
                    continue
                finally:
                    tally.add(service)
                break
    finally:
        log.removeHandler(lines)
        log.propagate = propagate
    await trio.lowlevel.checkpoint()
    return tally


async def _shortest_that_stops(suspects: Iterable[bytes | None], settings: dict[str, Any]) -> bytes | str | None:
    """Each alone, the shortest first; the last word is for those that stop a service only together."""
    for value in sorted(suspects, key=lambda value: len(value or b"")):
        if (await fuzz([value], search=False, **settings)).stops:
            return value
    await trio.lowlevel.checkpoint()
    return "none of them alone"


async def station(station_id: str, module_input: Any) -> dict[str, Any] | None:
    """A result, none, or an error: which one is in the id."""
    match zlib.crc32(station_id.encode(errors="surrogatepass")) % 8:
        case 0:
            return None  # noqa: ASYNC910 - as callbacks are that have nothing to wait for
        case 1:
            raise ValueError(station_id)  # noqa: ASYNC910 - as above
        case 2:
            await trio.lowlevel.checkpoint()
    return {"station_id": station_id, "said": module_input}  # noqa: ASYNC910 - as above


def main(count: int, *, facts: dict[str, Any], seed: int, dead_letters: bool, as_json: bool) -> list[dict[str, Any]]:
    """Run, print, and return the case with its problems."""
    looks: dict[int, float] = {}
    """Percent of the messages -> RSS by then."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=2,
        disable=not sys.stderr.isatty(),
    )
    every = max(1, count // 200)
    with bar:
        task = bar.add_task(f"seed {seed}", total=count)

        def progress(fed: int) -> None:
            if not fed % every:
                looks[100 * fed // count] = _rss_mib()
                bar.update(task, completed=fed)

        began = time.perf_counter()
        settings: dict[str, Any] = {"dead_letter_topic": LETTERS, "dead_letter_limit": None} if dead_letters else {}
        tally = trio.run(lambda: fuzz(messages(seed, count), progress=progress, **settings))
        seconds = time.perf_counter() - began

    # The least of a tenth of the run: one message of 8 MiB on its way is no growth.
    memory = {
        f"{first} to {first + 9} %": min(
            (looks[percent] for percent in looks if first <= percent < first + 10), default=0
        )
        for first in (10, 50, 90)
    }
    first, *_, last = memory.values()
    growth = last / first if first and count >= 50_000 else float("nan")
    letters_wrong = dead_letters and not tally.letters == tally.dead_letters == tally.poison
    wrong = tally.unaccounted + tally.settled_twice + tally.discarded + tally.wrong_letters + tally.unwritable_lines
    wrong += letters_wrong + abs(tally.opened - tally.uploaded) + abs(tally.opened - tally.handled)
    case = {
        "bench": "fuzz",
        "messages": tally.messages,
        "seed": seed,
        "dead_letters": tally.letters if dead_letters else None,
        "messages_per_second": tally.messages / seconds,
        "seconds": seconds,
        "batches": tally.opened,
        "lists": tally.handled,
        "poison": tally.poison,
        "empty": tally.empty,
        "stations": tally.stations,
        "rejected_elements": tally.rejected,
        "stops": len(tally.stops),
        "unaccounted": tally.unaccounted,
        "settled_twice": tally.settled_twice,
        "not_finished": tally.fed - tally.finished,
        "wrong_letters": tally.wrong_letters,
        "unwritable_log_lines": tally.unwritable_lines,
        "rss_mib": {part: round(mib, 1) for part, mib in memory.items()},
        "rss_growth": growth,
        "flat": growth < FLAT,
        "problems": [f"STOP: {stop}" for stop in tally.stops] + ["the books do not add up"] * bool(wrong),
    }
    if as_json:
        print_lines(facts, [case])
    else:
        console().print(
            f"{tally.messages:,} messages in {seconds:.1f} s, {tally.messages / seconds:,.0f} a second, seed {seed}"
        )
        print_table(
            "What became of the messages",
            ("", "", "count"),
            [
                ("batches", "each with its list", f"{tally.opened:,}"),
                ("poison", "each with its dead letter" if dead_letters else "", f"{tally.poison:,}"),
                ("empty", "", f"{tally.empty:,}"),
                ("unaccounted", "", f"{tally.unaccounted:,}"),
                ("finished", "each once", f"{tally.finished:,}"),
                ("settled twice", "", f"{tally.settled_twice:,}"),
                ("letters that differ", "from their message", f"{tally.wrong_letters:,}"),
                ("unwritable log lines", "", f"{tally.unwritable_lines:,}"),
                ("stations", "", f"{tally.stations:,}"),
                ("rejected elements", "", f"{tally.rejected:,}"),
                ("stops", "", f"{len(tally.stops):,}"),
            ],
        )
        parts = ", ".join(f"{mib:.1f} MiB at {part}" for part, mib in memory.items())
        flat = "flat" if growth < FLAT else "NOT FLAT" if growth >= FLAT else "too short a run to tell"
        console().print(f"Memory (RSS): {parts}; last / first = {growth:.3f}, {flat}")
    return [case]


def _rss_mib() -> float:
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    import resource  # what was the most, where nobody says what is now

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
