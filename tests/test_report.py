"""The report of the benches, as somebody reads it who was not there: made from results that are made up."""

from __future__ import annotations

import builtins
import json
import random
import re
import string
from typing import TYPE_CHECKING, Any

import pytest

from bench import histograms, plots, report
from bench.words import SENTENCES, Words

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

HAN = re.compile(r"[\u4e00-\u9fff]")
STAGES = {"fetch": 0.6, "queue": 0.2, "decode": 0.9, "start": 1.1, "stations": 20.4, "close": 0.3, "upload queue": 0.1}
STAGES |= {"upload": 0.0, "commit": 480.0}


def drawn(chance: random.Random, median_ms: float, samples: int, sigma: float = 0.3) -> list[float]:
    return [median_ms * chance.lognormvariate(0, sigma) for _ in range(samples)]


def text(milliseconds: Iterable[float]) -> str:
    return histograms.encoded(histograms.of(round(value * 1e6) for value in milliseconds))


def environment(**facts: object) -> dict[str, object]:
    return {
        "python": "3.13.1",
        "trio": "0.31.0",
        "trioagg": "0.1.0",
        "system": "Linux x86_64",
        "cpus": 2,
        "cpu": "AMD EPYC 7B13",
        "governor": "performance",
        "load": 0.4,
        "gc_thresholds": [700, 10, 10],
        "wakes_late_p50_ms": 0.093,
        "wakes_late_p99_ms": 0.31,
        "revision": "f87e2ec",
        "packages": {"aiokafka": "0.14.0"},
    } | facts


def run(
    chance: random.Random, *, rate: float, median_ms: float, samples: int, valid: bool, ours: bool, lost: int
) -> dict[str, Any]:
    over_time = []
    for interval in range(40):
        p50, p99 = drawn(chance, median_ms, 1, 0.05)[0], drawn(chance, 2 * median_ms, 1, 0.1)[0]
        over_time.append([0.5 * interval, round(rate / 2), p50, p99, p99 * (9.0 if interval == 27 else 1.3)])
    inside: dict[str, Any] = {"stragglers": 0}
    if ours:
        inside |= {
            "stages": {name: text(drawn(chance, mean, samples)) for name, mean in STAGES.items()},
            "overshoot": text(drawn(chance, 0.4, samples // 2)),
            "lateness": [
                [f"S{station:03d}", 20 * second / 50, min(5000.0, chance.lognormvariate(3 + station / 50, 0.5))]
                for second in range(50)
                for station in range(0, 100, 5)
            ]
            + [["S042", 11.0, 5000.0]],
            "verdicts": {"succeeded": 99 * samples, "timed_out": samples},
        }
    return {
        "rate": rate,
        "seconds": 20.0,
        "sent": samples,
        "lists": samples,
        "lost": 0,
        "twice": 0,
        "answers": 100 * samples,
        "answers_lost": lost,
        "errors": 0,
        "valid": valid,
        "closed_loop": False,
        "slip": text(drawn(chance, 0.05 if valid else 40.0, samples)),
        "latency": text(drawn(chance, median_ms, samples)),
        "over_time": over_time,
        "inside": inside,
    }


def pipeline_case(
    contestant: str,
    bears: float,
    *,
    shares: tuple[float, ...] = (0.5,),
    median_ms: float = 24.0,
    samples: int = 900,
    invalid_share: float = 0,
    lost: int = 0,
    looks_inside: bool = False,
) -> dict[str, Any]:
    chance = random.Random(contestant)
    loads = []
    for share in shares:
        slower = median_ms / (1.2 - share)
        repeat = run(
            chance,
            rate=bears * share,
            median_ms=slower,
            samples=samples,
            valid=share != invalid_share,
            ours=looks_inside,
            lost=lost,
        )
        loads.append(
            {
                "share": share,
                "rate": bears * share,
                "valid": share != invalid_share,
                "summary": histograms.summary(histograms.decoded(repeat["latency"])),
                "repeats": [repeat],
            }
        )
    ramp = [
        {
            "offered": bears * step / 10,
            "delivered": min(bears, bears * step / 10),
            "p50_ms": median_ms / (1.25 - step / 10),
        }
        for step in range(1, 12)
    ]
    ramp.append({"offered": bears * 1.2, "delivered": bears, "p50_ms": 40 * median_ms})
    return {
        "bench": "pipeline",
        "workload": {
            "title": "100 stations that sleep 20 ms",
            "stations": 100,
            "deadline_seconds": 5.0,
            "service_time": {"law": "constant", "ms": 20.0},
            "arrivals": "poisson",
        },
        "broker": "Apache Kafka 4.3.1",
        "contestant": contestant,
        "saturation": {"per_second": bears, "ramp": [step for step in ramp if step["p50_ms"] > 0]},
        "loads": loads,
    }


def timeouts_cases() -> list[dict[str, Any]]:
    shares = {
        "fast": (0.06, 2.0, (0.9945, 0.995, 0.995, 0.995)),
        "medium": (0.25, 5.0, (0.9527, 0.99, 0.9948, 0.995)),
        "slow": (0.8, 10.0, (0.607, 0.871, 0.984, 0.9941)),
    }
    return [
        {
            "bench": "timeouts",
            "model": model,
            "median_seconds": median,
            "deadline_seconds": seconds,
            "recommended": seconds == recommended,
            "answered_ratio": share,
            "answered_of_able_ratio": share / 0.995,
            "mean_seconds": seconds / 2,
        }
        for model, (median, recommended, answered) in shares.items()
        for seconds, share in zip((1.0, 2.0, 5.0, 10.0), answered, strict=True)
    ]


def fanout_cases() -> list[dict[str, Any]]:
    costs = {"trioagg": (4.0, 0.3), "bare nursery": (11.0, 1.0), "TaskGroup": (5.2, 0.5)}
    return [
        {
            "bench": "fanout",
            "kind": "overhead",
            "station": "never waits",
            "stations": stations,
            "batches": batches,
            "contestant": contestant,
            "us_median": us * (1 + 3 / stations) * batches**0.1,
            "us_min": us,
            "ratio": ratio,
            "repeats": [us, us],
            "answers_lost": 0,
            "stragglers": 0,
        }
        for contestant, (us, ratio) in costs.items()
        for stations, batches in ((1, 1), (10, 1), (100, 1), (1000, 1), (100, 10), (100, 100))
    ] + [
        {"bench": "fanout", "kind": "memory", "contestant": name, "stations": 1000, "bytes_per_waiting_station": size}
        for name, size in (("trioagg", 3120), ("TaskGroup", 2710))
    ]


def deadline_cases() -> list[dict[str, Any]]:
    late = {("tuned", 10): 1.2, ("tuned", 100): 2.8, ("textbook", 100): 258.4, ("tuned", 1000): 41.0}
    return [
        {
            "bench": "deadline",
            "simultaneous": number,
            "variant": variant,
            "lists": 1000,
            "ready_p50_ms": worst / 3,
            "ready_p99_ms": worst / 1.1,
            "ready_p100_ms": worst,
        }
        for (variant, number), worst in late.items()
    ]


def soak_case() -> dict[str, Any]:
    chance = random.Random(3)
    intervals = [
        {
            "t": 10.0 * number,
            "samples": 600,
            "p50_ms": 24 + chance.random(),
            "p99_ms": 40 + 5 * chance.random(),
            "max_ms": 60 + 20 * chance.random(),
            "rss_mib": 61.5 + 0.01 * number,
            "tasks": 9,
            "threads": 1,
            "descriptors": 21,
        }
        for number in range(60)
    ]
    return {"bench": "soak", "contestant": "trioagg", "rate": 60.0, "intervals": intervals}


def delivery_cases() -> list[dict[str, Any]]:
    figures = {"at_least_once": (2000.0, 150.0, 8.0), "exactly_once": (1240.0, 9.4, 61.0)}
    return [
        {
            "bench": "delivery",
            "delivery": delivery,
            "per_second": per_second,
            "messages_a_commit": a_commit,
            "p50_ms": p50,
            "p99_ms": 2 * p50,
            "max_ms": 3 * p50,
            "samples": 1000 if delivery == "exactly_once" else 40,
        }
        for delivery, (per_second, a_commit, p50) in figures.items()
    ]


def faults_cases() -> list[dict[str, Any]]:
    told = [("killed", "at_least_once", 0, 212), ("killed", "exactly_once", 0, 0), ("slow", "exactly_once", 0, 0)]
    cases = [
        {
            "bench": "faults",
            "scenario": scenario,
            "delivery": delivery,
            "inputs": 15_000,
            "lost": lost,
            "duplicated": twice,
            "longest_stall_seconds": 3.2,
            "problems": [],
        }
        for scenario, delivery, lost, twice in told
    ]
    broken_off = {"bench": "faults", "scenario": "made_up", "delivery": "exactly_once", "problems": ["Error: <b>"]}
    return [*cases, broken_off]


def fuzz_case(growth: float = 1.04, unaccounted: int = 0, problems: Iterable[str] = ()) -> dict[str, Any]:
    return {
        "bench": "fuzz",
        "messages": 1_000_000,
        "batches": 230_000,
        "poison": 558_000,
        "empty": 212_000,
        "unaccounted": unaccounted,
        "stops": 0,
        "rss_growth": growth,
        "problems": list(problems),
    }


def store(directory: Path, command: str, cases: list[dict[str, Any]], **facts: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    result = {
        "format": 1,
        "command": command,
        "began": "2026-11-27T21:00:00+00:00",
        "quick": False,
        "seed": 1,
        "arguments": {},
        "environment": environment(**facts),
        "cases": cases,
    }
    (directory / "result.json").write_text(json.dumps(result))


def store_everything(directory: Path) -> None:
    store(
        directory / "pipeline",
        "pipeline",
        [
            pipeline_case("trioagg", 1234.5, shares=(0.25, 0.5, 0.8), looks_inside=True),
            pipeline_case("TaskGroup", 587.9, shares=(0.5, 0.8), median_ms=31.0, lost=17),
            pipeline_case("threads", 240.0, shares=(0.5, 0.8), median_ms=55.0, invalid_share=0.8),
        ],
    )
    store(directory / "timeouts", "timeouts", timeouts_cases())
    store(directory / "fanout", "fanout", fanout_cases())
    store(directory / "deadline", "deadline", deadline_cases())
    store(directory / "soak", "soak", [soak_case()])
    store(directory / "delivery", "delivery", delivery_cases())
    store(directory / "faults", "faults", faults_cases())
    store(directory / "fuzz", "fuzz", [fuzz_case()])


def read(directory: Path, lang: Any = "en") -> str:
    return report.main(directory, lang=lang, out=None).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("results")
    store_everything(directory)
    return directory


@pytest.fixture(scope="module")
def page(everything: Path) -> str:
    return read(everything)


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    addresses = set(re.findall(r"https?://[^\"' )<]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "<script" not in page
    assert "@import" not in page
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'(?:href|src)="([^"]*)"', page))


def test_ids_are_unique_and_every_reference_leads_somewhere(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)
    assert page.count("<svg ") == page.count('role="img"') == page.count("</desc>") == 9


@pytest.mark.parametrize(
    "figure",
    [
        "carries 1,234 messages a second (123,450 stations a second)",
        "2.1x TaskGroup",
        "no contestant came near the deadline of 5,000 ms",
        "1 of 40 intervals stalled; the longest at 13.5 s",
        "Of 24",  # ms, the stages' means
        "the stations take 21",
        "start is the largest",
        "1 of 1,001 sampled answers had not come by the deadline of 5,000 ms, from 1 of the stations, S042",
        "of 1,000 that expire at once all are ready within 41 ms; of 100 within 2.8 ms",
        "where the textbook needs 258 ms (92.3x)",
        "slow: 10 s lets 99.41 % of the stations into the list (5 s \N{MINUS SIGN}1.01 points)",
        "A station that never waits costs 4 µs under trioagg, with 1,000 of them in a batch",
        "that is 0.30x bare nursery (11.0 µs)",
        "no contestant is cheaper; with a batch of 1 it costs 16 µs under trioagg.",
        "TaskGroup 0 lists and 34 answers. trioagg lost nothing.",
        "Memory went from 61.5 to 62.1 MiB",
        "A station that waits takes least memory with TaskGroup: 2,710 bytes",
        "exactly once carries 0.62x what at least once does",
        "at least once: of 15,000 inputs 0 were lost and 212 came twice",
        "exactly once: of 30,000 inputs 0 were lost and 0 came twice; 1 of 4 runs are not as they must be",
        "Of 1,000,000 hostile messages 230,000 became batches, 558,000 were poison and 212,000 empty",
        "none is unaccounted for, and none stopped the service",
        "memory at the end is 1.04x what it was",
    ],
)
def test_what_is_found_is_said_with_its_figures(page: str, figure: str) -> None:
    assert figure in page


def test_the_machine_and_the_noise_floor_are_in_the_header(page: str) -> None:
    head = page[: page.index("<main>")]
    for fact in (
        "AMD EPYC 7B13",
        "Python 3.13.1",
        "aiokafka 0.14.0",
        "2026-11-27 21:00",
        "f87e2ec",
        "0.093 ms",
        "Kafka",
    ):
        assert fact in head


def row_of(page: str, *first: str) -> list[str]:
    """The cells of the only row that begins with these."""
    begin = "".join(rf"<td[^>]*>{re.escape(cell)}</td>" for cell in first)
    [row] = re.findall(rf"<tr[^>]*>{begin}.*?</tr>", page)
    return re.findall(r"<td[^>]*>(.*?)</td>", row)


def test_the_commit_is_no_part_of_a_lists_way(page: str) -> None:
    part = page[page.index('id="w1-waterfall"') : page.index('id="w1-time"')]
    way, apart = part[part.index("<tbody>") :].split("<tfoot>")
    shares = [float(share) for share in re.findall(r"<td>([\d.]+) %</td>", way)]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert ">commit<" not in way
    assert ">commit<" in apart
    stage, mean, share, _ = row_of(apart, "commit")
    assert (stage, share) == ("commit", "")
    assert f"committed once a second, {mean} ms later in the mean." in part
    assert 400 < float(mean) < 600


def test_a_stage_that_takes_no_time_keeps_its_row(page: str) -> None:
    part = page[page.index('id="w1-waterfall"') : page.index('id="w1-time"')]
    assert row_of(part, "upload") == ["upload", "0", "0.0 %", "–"]


def test_a_way_of_delivery_has_no_percentile_that_its_samples_cannot_hold(page: str) -> None:
    assert row_of(page, "at least once", "2,000") == ["at least once", "2,000", "150", "8", "–", "24"]
    assert row_of(page, "exactly once", "1,240") == ["exactly once", "1,240", "9.4", "61", "122", "183"]


def test_every_fault_has_a_row_and_its_problems_are_marked(page: str) -> None:
    whole = ["member killed", "at least once", "15,000", "0", "212", "3.2 s", "none"]
    assert row_of(page, "member killed", "at least once") == whole
    broken_off = row_of(page, "made up")
    assert broken_off == ["made up", "exactly once", *"????", '<span class="bad">Error: &lt;b&gt;</span>']
    assert 'class="finding is-bad">at least once: of' in page
    assert row_of(page, "network slow")[1] == "exactly once"  # and not the model of that name


def test_the_fuzzers_memory_is_only_told_where_the_run_is_long_enough(tmp_path: Path) -> None:
    store(tmp_path, "fuzz", [fuzz_case(growth=float("nan"), unaccounted=3, problems=["the books do not add up"])])
    page = read(tmp_path)
    cells = ["1,000,000", "230,000", "558,000", "212,000", "3", "0", "–"]
    assert row_of(page, "1,000,000")[:7] == cells
    assert "too short a run to tell its memory" in page
    assert "3 are unaccounted for, and the service stopped 0 times." in page


def test_an_invalid_run_is_marked_with_its_reason(page: str) -> None:
    assert "1 of 7 runs invalid" in page
    assert re.search(r'<span class="bad">invalid</span> the sender’s p99 was [\d.]+ ms late', page)
    assert '80 % <span class="bad">invalid</span>' in page


def test_nothing_is_concluded_from_invalid_runs_alone(tmp_path: Path) -> None:
    case = pipeline_case("trioagg", 1000.0)
    case["loads"][0]["valid"] = case["loads"][0]["repeats"][0]["valid"] = False
    store(tmp_path, "pipeline", [case])
    page = read(tmp_path)
    assert "nothing is concluded" in page
    assert "half of trioagg" not in page


def test_a_percentile_that_the_samples_cannot_hold_is_neither_printed_nor_drawn(tmp_path: Path) -> None:
    store(tmp_path, "pipeline", [pipeline_case("trioagg", 1000.0, samples=200)])
    page = read(tmp_path)
    assert "200 samples are too few to tell its p99" in page
    [row] = re.findall(r"<tr[^>]*><td[^>]*>trioagg</td><td[^>]*>50 %</td>.*?</tr>", page)
    assert row.count("<td>–</td>") == 2  # p99 and p99.9
    curve = histograms.of(number * 1_000_000 for number in range(1, 201))
    xs, ys = plots.quantiles(curve)
    assert xs[-1] == pytest.approx(200 / histograms.BEYOND)
    assert ys[-1] == pytest.approx(195, abs=1)


@pytest.mark.parametrize(
    "missing", ["pipeline", "deadline", "timeouts", "fanout", "soak", "delivery", "faults", "fuzz"]
)
def test_what_is_missing_says_which_command_makes_it(tmp_path: Path, missing: str) -> None:
    store(tmp_path, "core", [])
    assert f"python -m bench {missing} --out DIR" in read(tmp_path)


def test_every_plot_that_is_missing_has_its_sentence(tmp_path: Path) -> None:
    store(tmp_path, "pipeline", [pipeline_case("trioagg", 1000.0)])
    page = read(tmp_path)
    for title in ("Where does the time go?", "Which stations are late, and when?"):
        assert f"<h3>{title}</h3>" in page
    assert page.count("python -m bench pipeline --out DIR") == 2


def test_the_cases_of_core_stand_in_for_those_of_fanout(tmp_path: Path) -> None:
    figures = {"trioagg": {"us_median": 2.28, "ratio": 0.19}, "asyncio": {"us_median": 1.5, "ratio": 0.12}}
    cases = [
        {"bench": "core", "kind": "never waits", "stations": stations, "contestants": figures} for stations in (10, 100)
    ]
    store(tmp_path, "core", cases)
    page = read(tmp_path)
    assert "costs 2.3 µs under trioagg, with 100 of them in a batch; asyncio is the cheapest with 1.5 µs;" in page
    assert "bench fanout" not in page


def test_two_runs_of_trioagg_are_told_apart_by_their_directories(tmp_path: Path) -> None:
    for place, bears in (("before", 800.0), ("after", 1000.0)):
        store(tmp_path / place, "pipeline", [pipeline_case("trioagg", bears)])
    page = read(tmp_path)
    assert "trioagg (before)" in page
    assert "trioagg (after)" in page


def test_names_from_a_result_cannot_break_the_page(tmp_path: Path) -> None:
    store(tmp_path, "pipeline", [pipeline_case("trioagg", 1000.0), pipeline_case("<b>$x$ & y", 500.0)])
    page = read(tmp_path)
    assert "<b>" not in page
    assert "&lt;b&gt;$x$ &amp; y" in page


def test_the_chinese_report_is_chinese(everything: Path, tmp_path: Path) -> None:
    store(tmp_path, "timeouts", timeouts_cases())
    page = read(tmp_path, "zh")
    assert '<html lang="zh-CN">' in page
    assert "如何阅读" in page
    assert "慢速模型：10 s 可使 99.41 % 的场站进入列表" in page
    plot = page[page.index("<svg") : page.index("</svg>")]
    assert HAN.search(plot)


def test_both_languages_say_the_same_things() -> None:
    for key, (english, chinese) in SENTENCES.items():
        fields = [{name for _, name, _, _ in string.Formatter().parse(said) if name} for said in (english, chinese)]
        assert fields[0] == fields[1], key
    assert Words("zh").term("never heard of") == "never heard of"


def test_one_plot_can_be_written_as_a_file_of_its_own(tmp_path: Path) -> None:
    store(tmp_path, "timeouts", timeouts_cases())
    drawn = report.figures(tmp_path)
    for name in ("one.svg", "two.svg"):
        plots.write(drawn["timeouts"], tmp_path / name)
    svg = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert svg.startswith("<?xml")
    assert "seconds" in svg
    assert report.figures(tmp_path).keys() == {"timeouts"}


def test_trioagg_has_the_strongest_line_and_everybody_a_look_of_their_own() -> None:
    look = plots.looks(["threads", "trioagg", "TaskGroup", "bare nursery"])
    assert max(look, key=lambda name: look[name].width) == "trioagg"
    assert len({(one.colour, one.marker) for one in look.values()}) == len(look)


def test_without_results_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"there is no result\.json in .*: python -m bench pipeline"):
        report.main(tmp_path, lang="en", out=None)


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(SystemExit, match=r"result\.json: "):
        report.main(tmp_path, lang="en", out=None)


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SystemExit, match=r"needs matplotlib: pip install '\.\[bench\]'"):
        report.main(tmp_path, lang="en", out=None)
