"""The README's examples, run as they stand, and what it says of settings and names."""

from __future__ import annotations

import ast
import inspect
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from broker import Broker, committed, create_topic, end_offsets, produce, read_all
from test_guide import GUIDE_LOG

import trioagg
from trioagg import AsyncDataAnalysisService, BatchResultAggregator, KafkaSettings
from trioagg._stations import module_input

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio.testing import MockClock

TOPIC, OUTPUT = "SCHEDULE-STATION-REALTIME-DATA", "MODEL_OUTPUT_TOPIC"
README = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
EXAMPLES = dict(re.findall(r"^<!-- example: ([\w ]+) -->\n```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))


def rows(header: str) -> list[list[str]]:
    """The cells of the table under *header*."""
    (table,) = re.findall(rf"^{re.escape(header)}\n\|[-|]+\|\n((?:\|.*\|\n)+)", README, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]


# Examples


class Program:
    """An example in a Python of its own, warnings being errors."""

    def __init__(self, code: str, where: Path, **environment: str) -> None:
        script = where / "example.py"
        script.write_text(code, encoding="utf-8")
        self._errors = where / "stderr"
        root = str(Path(trioagg.__file__).parents[1])
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", "-W", "ignore:'AbstractChildWatcher':DeprecationWarning", str(script)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                cwd=where,
                env=os.environ | {"PYTHONPATH": root, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"} | environment,
            )

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def read(self, lines: int) -> list[str]:
        """Its next lines; the test's own deadline bounds the wait."""
        return [self._process.stdout.readline().rstrip("\n") for _ in range(lines)]

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self, seconds: float = 60) -> list[str]:
        """Wait for its end, which must be a good one, and give back the rest of its lines."""
        said, _ = self._process.communicate(timeout=seconds)
        errors = self._errors.read_text(encoding="utf-8")
        assert self._process.returncode == 0, errors
        assert "Traceback" not in errors
        assert "Exception ignored" not in errors  # a warning that nobody could catch
        return said.splitlines()


@pytest.fixture(scope="module")
def bootstrap(jars: Path) -> Iterator[str]:
    """A broker of this module's own: the examples name their topics, which may be there on the shared one."""
    with Broker(jars) as broker:
        create_topic(broker.bootstrap, TOPIC, partitions=2)
        create_topic(broker.bootstrap, OUTPUT)
        produce(broker.bootstrap, TOPIC, [(None, message(3 + number), number % 2) for number in range(5)])
        yield broker.bootstrap


def message(stations: int) -> bytes:
    records = [
        {"stationId": f"S{number:03d}", "sendTime": "2025-11-20 10:00:00", "outputPower": number / 2}
        for number in range(1, stations + 1)
    ]
    return json.dumps({"realTimeData": records}).encode()


def test_there_are_the_examples_that_are_tested_here() -> None:
    assert list(EXAMPLES) == [
        *("basic", "complete", "errors", "metrics", "observer", "embedded", "context"),
        *("process lane", "early", "stuck", "replay"),
    ]


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_every_python_block_compiles(number: int) -> None:
    compile(PYTHON[number], f"README.md, block {number + 1}", "exec")


def test_the_first_example_prints_what_stands_below_it(tmp_path: Path) -> None:
    (_, code), (language, output) = BLOCKS[:2]
    assert language == "text"
    with Program(code, tmp_path) as program:
        said = program.end()
    assert [line.rstrip() for line in said] == output.splitlines()  # nobody sees the blanks at the end of a line


@pytest.mark.kafka
def test_basic(bootstrap: str, tmp_path: Path) -> None:
    said: list[str] = []
    seconds = 3
    while len(said) < 5 and seconds < 100:  # on a busy machine it takes a while to join a group
        with Program(EXAMPLES["basic"], tmp_path, BOOTSTRAP=bootstrap, SECONDS_TO_RUN=str(seconds)) as program:
            said += program.end(seconds + 60)
        seconds *= 4
    pattern = rf"batch {TOPIC}_(\d)_(\d)_\d+: (\d) results"
    assert sorted(re.fullmatch(pattern, line).groups() for line in said) == [
        ("0", "0", "3"),
        ("0", "1", "5"),
        ("0", "2", "7"),
        ("1", "0", "4"),
        ("1", "1", "6"),
    ]
    assert committed(bootstrap, "your_module", TOPIC) == end_offsets(bootstrap, TOPIC) == {0: 3, 1: 2}


@pytest.mark.kafka
def test_complete(bootstrap: str, tmp_path: Path) -> None:
    """Stopped by a signal, right when the last list is about to leave."""
    with Program(EXAMPLES["complete"], tmp_path, BOOTSTRAP=bootstrap) as program:
        said = program.read(5)
        program.interrupt()
        assert program.end() == []
    pattern = rf"({TOPIC}_\d_\d_\d+): (\d) of (\d) by all"
    told = {batch_id: int(count) for batch_id, count, _ in (re.fullmatch(pattern, line).groups() for line in said)}
    assert sorted(told.values()) == [3, 4, 5, 6, 7]

    messages = read_all(bootstrap, OUTPUT)
    values = [json.loads(message.value()) for message in messages]
    assert {value["batch_id"]: value["count"] for value in values} == told
    assert len(values) == 5  # each of them once
    for message, value in zip(messages, values, strict=True):
        assert message.key().decode() == value["batch_id"]
        assert value["count"] == len(value["results"])
        second = int(value["batch_id"].rsplit("_", 1)[1])
        for result in value["results"]:
            assert second <= result.pop("timestamp") < second + 1
            assert re.fullmatch(r"S00\d", result.pop("station_id"))
            assert result == {"prediction": {"predicted_value": 42}, "confidence": 0.95}
    assert committed(bootstrap, "model_inference", TOPIC) == end_offsets(bootstrap, TOPIC) == {0: 3, 1: 2}


@pytest.mark.kafka
async def test_context(bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    param, weather = "SCHEDULE-STATION-PARAM", "WEATHER"
    create_topic(bootstrap, param)
    create_topic(bootstrap, weather)
    produce(bootstrap, param, [json.dumps({"stationId": f"S00{n}", "limit": n}) for n in (1, 2, 9, 1)])
    produce(bootstrap, weather, [json.dumps({"hour": hour}) for hour in range(30)])
    monkeypatch.setenv("BOOTSTRAP", bootstrap)
    names: dict[str, Any] = {}
    exec(EXAMPLES["context"], names)
    inputs: list[dict[str, Any]] = []
    reports: list[trioagg.BatchReport] = []
    with trio.fail_after(100):
        async with names["service"].start(lambda _, given: inputs.append(given), report_handler=reports.append):
            while len(reports) < 5:
                await trio.sleep(0.05)
    assert {given["stationId"] for given in inputs} == {"S001", "S002"}
    for given in inputs:
        assert given[param] == [{"stationId": given["stationId"], "limit": int(given["stationId"][-1])}]
        assert [record["hour"] for record in given[weather]] == [*range(6, 30)]
    skipped = {station_id for report in reports for station_id, it in report.stations.items() if it.error}
    assert skipped == {f"S00{number}" for number in range(3, 8)}
    assert sum(report.skipped for report in reports) == sum(range(1, 6))


@pytest.mark.kafka
def test_replay(bootstrap: str, tmp_path: Path) -> None:
    letters = create_topic(bootstrap, "MODEL_DEAD_LETTERS")
    about = {"topic": TOPIC, "partition": "1", "offset": "7", "batch-id": "late", "reason": "stations"}
    headers = [(f"trioagg-{name}", value.encode()) for name, value in {**about, "stations": '["S002"]'}.items()]
    produce(bootstrap, letters, [(None, message(3), 0, headers)])
    for said in ("1 batches are up, 1 of 1 stations", "0 batches are up, 0 of 0 stations"):
        with Program(EXAMPLES["replay"], tmp_path, BOOTSTRAP=bootstrap) as program:
            assert program.end() == [f"{said} have answered"]
    (supplement,) = (it for it in read_all(bootstrap, OUTPUT) if it.key() == b"late")
    assert json.loads(supplement.value())["results"] == [{"station_id": "S002"}]
    assert dict(supplement.headers())["trioagg-supplement"] == b"true"
    assert committed(bootstrap, f"{letters}-replay", letters) == {0: 1}


async def test_errors(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(EXAMPLES["errors"], names)
    stations = {
        station_id: module_input(station_id, TOPIC, records, 1_700_000_000_000)
        for station_id, records in {
            "good": [{"stationId": "good", "outputPower": 7.5}],
            "no data": [{"stationId": "no data", "outputPower": 7.5}],
            "no field": [{"stationId": "no field"}],
            "two": [{"stationId": "two"}, {"stationId": "two"}],
        }.items()
    }
    stations["no data"]["_data_quality"]["available_topics"] = []
    async with BatchResultAggregator(names["process_station"]) as aggregator:
        report = await aggregator.run("batch", stations)
    assert report.results == [{"station_id": "good", "power": 7.5}]
    verdicts = {station_id: str(outcome.verdict) for station_id, outcome in report.stations.items()}
    assert verdicts == {"good": "succeeded", "no data": "no_output", "no field": "no_output", "two": "failed"}
    assert isinstance(report.stations["two"].error, ValueError)
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "station no data has incomplete data and is passed over",
        "station no field lacks the field 'outputPower'",
    ]


async def test_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(EXAMPLES["metrics"], names)

    async def process_station(station_id: str, value: dict[str, Any] | None) -> dict[str, Any] | None:
        await trio.lowlevel.checkpoint()
        return value

    before = time.time()
    async with BatchResultAggregator(
        process_station, names["upload_batch"], report_handler=names["report_handler"]
    ) as aggregator:
        await aggregator.run("batch", {"S001": {}, "S002": None})
    metrics, report = capsys.readouterr().out.splitlines()
    metrics = ast.literal_eval(metrics)
    assert before <= metrics.pop("timestamp") <= time.time()
    assert metrics == {"batch_id": "batch", "success_count": 1}
    assert re.fullmatch(r"batch all 1 0 0 \d+\.\d{3} s", report)


async def test_observer(autojump_clock: MockClock) -> None:
    names: dict[str, Any] = {}
    exec(EXAMPLES["observer"], names)
    late = names["Late"]()

    async def process_station(station_id: str, seconds: float) -> dict[str, Any]:
        await trio.sleep(seconds)
        return {}

    async def upload(batch_id: str, results_list: list[dict[str, Any]]) -> None:
        await trio.sleep(0.5)

    async with BatchResultAggregator(process_station, upload, observers=[late]) as aggregator:
        await aggregator.run("in time", {"S001": 1.0})
        await aggregator.run("late", {"S001": 9.0})
    assert late.seconds == [-3.5, 0.5]


def test_every_event_of_an_observer_is_in_the_table() -> None:
    named = [tuple(call) for row in rows("| event | when |") for call in re.findall(r"`(\w+)\((.*?)\)`", row[0])]
    public = [name for name in vars(trioagg.Observer) if name[0] != "_" and name not in ("SILENT", "hears_answers")]
    assert [name for name, _ in named] == public
    for name, parameters in named:
        signature = inspect.signature(getattr(trioagg.Observer, name))
        assert ["self", *parameters.split(", ")] == list(signature.parameters), name


def test_embedded(tmp_path: Path) -> None:
    with Program(EXAMPLES["embedded"], tmp_path) as program:
        said = program.end()
    # What runs in the background may print between the lines of the body, and two stations may end at once.
    said = [line.replace("['S002', 'S001']", "['S001', 'S002']") for line in said]
    assert [line for line in said if not line.startswith("batch-")] == ["all True", "(1, 2)"]
    assert sorted(line for line in said if line.startswith("batch-")) == [
        "batch-1 ['S001', 'S002']",
        "batch-2 ['S001']",
        "batch-3 ['S001']",
    ]


@pytest.mark.parametrize("name", ["process lane", "early", "stuck"])
def test_the_example_prints_what_stands_below_it(name: str, tmp_path: Path) -> None:
    (shown,) = re.findall(
        rf"^<!-- example: {name} -->\n```python\n.*?^```\n\n```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL
    )
    with Program(EXAMPLES[name], tmp_path) as program:
        assert program.end() == shown.splitlines()


def test_a_station_gets_what_the_readme_shows() -> None:
    (shown,) = (ast.literal_eval(code) for code in PYTHON if code.startswith("{"))
    records = [{"stationId": "S001", "sendTime": "2025-11-20 10:00:00"}]
    assert shown == module_input("S001", TOPIC, records, 1_700_000_000_000)


def test_the_example_of_kafka_settings_is_accepted() -> None:
    (code,) = (code for code in PYTHON if re.search(r"^KafkaSettings\(", code, re.MULTILINE))
    exec(code, {})


# Tables and names

SETTINGS: list[tuple[str, str, bool]] = [
    (name, default, "*" in names)
    for names, defaults, _ in rows("| name | default | what it bounds |")
    for name, default in zip(re.findall(r"`(\w+)`", names), re.split(", (?=[\\d`])", defaults), strict=True)
]
MADE_WHEN_IT_STARTS = ["`module_name`", "none", "`batch_timeout` + 5", "`KafkaSettings()`"]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[0])
def test_every_setting_in_the_table_has_its_default(setting: tuple[str, str, bool]) -> None:
    name, written, also_of_the_aggregator = setting
    default = None if written in MADE_WHEN_IT_STARTS else eval(written.strip("`"), vars(trioagg))
    service = inspect.signature(AsyncDataAnalysisService).parameters
    aggregator = inspect.signature(BatchResultAggregator).parameters
    assert service[name].default == default
    assert service[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert (name in aggregator) == also_of_the_aggregator
    if also_of_the_aggregator:
        assert aggregator[name].default == default


def test_no_setting_is_missing_in_the_table() -> None:
    parameters = inspect.signature(AsyncDataAnalysisService).parameters
    named = {name for name, _, _ in SETTINGS}
    assert set(parameters) - named == {"module_name", "topics"}


def test_the_kafka_settings_that_are_named_exist() -> None:
    ((_, _, described),) = (row for row in rows("| name | default | what it bounds |") if row[0] == "`kafka`")
    fields = inspect.signature(KafkaSettings).parameters
    for name in re.findall(r"`(\w+)\*?`", described):
        assert any(field == name or (name.endswith("_") and field.startswith(name)) for field in fields), name


def test_every_public_name_in_the_readme_is_exported() -> None:
    imported = {
        alias.name
        for code in PYTHON
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and node.module == "trioagg"
        for alias in node.names
    }
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", prose)
    dotted = {name for text in inline for name in re.findall(r"\btrioagg\.(\w+)", text)}
    dotted |= {name for text in inline for name in re.findall(r"\bfrom trioagg import (\w+)", text)}
    ours = {
        name
        for module in pkgutil.iter_modules(trioagg.__path__)
        if module.name.startswith("_") and module.name not in ("__main__", "_demo", "_mock_broker")
        for name, value in vars(import_module(f"trioagg.{module.name}")).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("trioagg.")
    }
    named = {name for text in inline for name in re.findall(r"\b[A-Z][a-z]\w+", text)} & ours
    assert {"AsyncDataAnalysisService", "run_batch"} <= imported
    assert {"asyncio_callback", "current_batch"} <= dotted
    assert {"BatchCollector", "UploadFailed", "ConnectFailed", "TopicUnavailable", "TrioaggError"} <= named
    assert imported | dotted | named <= set(trioagg.__all__)
    assert all(hasattr(trioagg, name) for name in trioagg.__all__)


def test_the_statistics_that_are_named_exist() -> None:
    (sentence,) = re.findall(r"`service\.statistics\(\)` is a frozen snapshot:(.*?)\n\n", README, re.DOTALL)
    statistics = AsyncDataAnalysisService("module", [TOPIC]).statistics()
    for name in re.findall(r"`(\w+)`", sentence):
        assert getattr(statistics, name) == 0.0


def test_the_chinese_log_is_that_of_the_guide() -> None:
    (block,) = (text for language, text in BLOCKS if language == "text" and "创建批次" in text)
    assert [line for line in GUIDE_LOG if line in block.splitlines()] == block.splitlines()
