"""The tables of ``fanout``, each with the question that it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .batches import CAP, KINDS, loop_of
from .fanout_worker import ANSWERS_BEFORE_SECONDS, HANG_SECONDS, LEFT_ALONE_SECONDS
from .figures import print_table, verdict
from .jobs import STATIONS_OF_A_BATCH
from .paths import IN_FLIGHT

if TYPE_CHECKING:
    from collections.abc import Sequence


def print_tables(cases: Sequence[dict[str, Any]]) -> None:
    """One a kind, and four of the overhead; none of a kind that was not measured."""
    for kind, print_kind in (
        ("overhead", _print_overhead),
        ("hang", _print_hang),
        ("path", _print_path),
        ("recorder", _print_recorder),
        ("memory", _print_memory),
        ("flat", _print_flat),
    ):
        of_kind = [case for case in cases if case["kind"] == kind]
        if of_kind:
            print_kind(of_kind)


def _print_overhead(cases: Sequence[dict[str, Any]]) -> None:
    for kind in KINDS:
        for by, fixed, number, title in (
            ("stations", "batches", 1, "one batch at a time, by its stations"),
            (
                "batches",
                "stations",
                STATIONS_OF_A_BATCH,
                f"{STATIONS_OF_A_BATCH} stations a batch, by batches at once",
            ),
        ):
            of_table = [case for case in cases if case["station"] == kind and case[fixed] == number]
            sizes = sorted({case[by] for case in of_table})
            cell = {(case["contestant"], case[by]): case for case in of_table}
            print_table(
                f"What does a station cost that {kind}?  {title}.  us, median (quartiles), ratio to the bare nursery",
                ["contestant", "loop", *map(str, sizes), "answers lost"],
                [
                    [
                        name,
                        loop_of(name),
                        *(_cost(cell[name, size]) if (name, size) in cell else "" for size in sizes),
                        str(sum(case["answers_lost"] for case in of_table if case["contestant"] == name)),
                    ]
                    for name in dict.fromkeys(case["contestant"] for case in of_table)
                ],
                _WHO if kind == "never waits" and by == "stations" else "",
            )


_WHO: Final = (
    "trioagg: through a BatchResultAggregator, its uploader included; the rivals bring nothing up.  It runs "
    f"{CAP} stations of a batch at a time, the rivals all.  The guide's workers exist before the first round."
)


def _cost(case: dict[str, Any]) -> str:
    quartiles = f" ({case['us_p25']:.3g}-{case['us_p75']:.3g})" if len(case["repeats"]) > 1 else ""
    return f"{case['us_median']:.3g}{quartiles}\n{case['ratio']:.2f}x"


def _print_hang(cases: Sequence[dict[str, Any]]) -> None:
    print_table(
        f"What becomes of answers just before the deadline?  {STATIONS_OF_A_BATCH} stations, 10 % hang, the others "
        f"answer {ANSWERS_BEFORE_SECONDS * 1e3:g} ms before it",
        ["contestant", "rounds", "given in time", "answers lost", "stragglers", "list after the deadline, ms"],
        [
            [
                case["contestant"],
                str(case["rounds"]),
                str(case["answers_given"]),
                str(case["answers_lost"]),
                str(case["stragglers"]),
                f"{case['list_late_ms']:.1f}",
            ]
            for case in cases
        ],
        f"Lost: given before the deadline of {HANG_SECONDS * 1e3:g} ms, and in no list.  Stragglers: stations that "
        f"still ran {LEFT_ALONE_SECONDS * 1e3:g} ms after the list was made.",
    )


def _print_path(cases: Sequence[dict[str, Any]]) -> None:
    print_table(
        f"The whole path without Kafka: bytes in, bytes out; {STATIONS_OF_A_BATCH} stations that never wait, "
        f"{IN_FLIGHT} messages in flight",
        ["contestant", "records", "JSON by", "messages/s", "quartiles", "to the guide's", "on the CPU", "at least", ""],
        [
            [
                case["contestant"],
                case["records"],
                case["codec"],
                f"{case['per_second']:.0f}",
                f"{case['per_second_p25']:.0f}-{case['per_second_p75']:.0f}",
                f"{case['ratio']:.2f} ({case['ratio_p25']:.2f}-{case['ratio_p75']:.2f})",
                f"{case['cpu_ratio']:.2f}",
                "" if case["at_least"] is None else f"{case['at_least']:g}",
                verdict(case["met"]),
            ]
            for case in cases
        ],
        "On the CPU: the ratio of CPU times, which other processes disturb less.  Ours checks every message and every "
        "result; the rivals take them as they come.",
    )


def _print_recorder(cases: Sequence[dict[str, Any]]) -> None:
    print_table(
        "What does it cost to record where the time goes?  On the same path, by turns",
        ["contestant", "rounds", "CPU, with : without", "at most", ""],
        [
            [
                case["contestant"],
                str(case["rounds"]),
                f"{case['cpu_ratio']:.3f} ({case['cpu_ratio_p25']:.3f}-{case['cpu_ratio_p75']:.3f})",
                f"{case['at_most']:g}",
                verdict(case["met"]),
            ]
            for case in cases
        ],
    )


def _print_memory(cases: Sequence[dict[str, Any]]) -> None:
    print_table(
        "What does a waiting station hold?",
        ["contestant", "stations", "bytes", "at most", ""],
        [
            [
                case["contestant"],
                str(case["stations"]),
                f"{case['bytes_per_waiting_station']:.0f}",
                "" if case["at_most"] is None else f"{case['at_most']:g}",
                verdict(case["met"]),
            ]
            for case in cases
        ],
        f"Bytes of tracemalloc for each station beyond the first {CAP}, while all of one batch wait.  The caller's "
        f"own mapping is not in them.  Ours runs {CAP} of them (max_running_stations), and the others wait for their "
        "turn; the rivals have a task for each, and what that one sleeps on is in it.",
    )


def _print_flat(cases: Sequence[dict[str, Any]]) -> None:
    print_table(
        "Is the cost of a station flat?  us on the CPU, the batch's own share included; tune_gc=True",
        ["each", "over", "us", "max : min", "at most", ""],
        [
            [
                case["station"],
                "stations of one batch" if case["stations"] is None else f"batches of {case['stations']} at once",
                ", ".join(f"{size}: {us:.3g}" for size, us in zip(case["sizes"], case["cpu_us_median"], strict=True)),
                f"{case['max_by_min']:.2f}",
                f"{case['at_most']:g}",
                verdict(case["met"]),
            ]
            for case in cases
        ],
    )
