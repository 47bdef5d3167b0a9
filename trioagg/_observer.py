"""The events of a batch's life, and who is told: one class to override, and the log that does."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from ._errors import printable, words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ._context import BatchContext
    from ._records import Answer, BatchReport

logger: Final = logging.getLogger("trioagg")

LogLanguage = Literal["en", "zh"]


class Observer:
    """Hears what happens to batches.  Every method may be overridden, none may wait, and none should raise.

    In the order of a batch's life.  An event that nobody overrides costs nothing.
    """

    SILENT: ClassVar[Observer]

    def fetched(self, topic: str, partition: int, first: int, last: int) -> None:
        """Kafka has given the messages with the offsets *first* to *last*, perhaps not all of them.  They wait."""

    def reading(self, topic: str, partition: int, offset: int) -> None:
        """A message has waited, and is decoded now."""

    def opened(self, batch: BatchContext, expected: int) -> None:
        """A batch was accepted."""

    def started(self, batch_id: str) -> None:
        """The batch's own task runs, and starts its stations.  In push mode there is nothing to start."""

    def hears_answers(self) -> bool:
        """Asked once for every batch: should :meth:`answered` be called for its stations?"""
        return False

    def answered(self, batch_id: str, station_id: str, done: int, expected: int) -> None:
        """A station has answered in time, whatever it said; *done* answers are in."""

    def ignored(self, batch_id: str, station_id: str, answer: Answer) -> None:
        """An answer came too late, twice, or from nobody that was asked."""

    def closed(self, report: BatchReport) -> None:
        """A batch has ended and its list is fixed."""

    def uploading(self, report: BatchReport, attempt: int) -> None:
        """A try of an upload begins; the first one is number 1."""

    def uploaded(self, report: BatchReport) -> None:
        """The list is up: whoever was to be called has returned, and Kafka has acknowledged."""

    def upload_failed(self, report: BatchReport, error: BaseException, attempt: int, attempts: int) -> None:
        """A try of an upload has failed; after the last of *attempts* it is not repeated."""

    def upload_skipped(self, report: BatchReport) -> None:
        """A list was given up and counts as up."""

    def dead_lettered(self, report: BatchReport) -> None:
        """A list was given up, and whoever takes dead letters has it."""

    def committed(self, topic: str, partition: int, offset: int) -> None:
        """Kafka has acknowledged that everything below *offset* is done."""


Observer.SILENT = Observer()


class Observers(Observer):
    """Tells several, each of what it listens to."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        everybody = tuple(observers)
        self._fetched = [one.fetched for one in everybody if _listens(one.fetched)]
        self._reading = [one.reading for one in everybody if _listens(one.reading)]
        self._opened = [one.opened for one in everybody if _listens(one.opened)]
        self._started = [one.started for one in everybody if _listens(one.started)]
        self._answerable = [one for one in everybody if _listens(one.hears_answers)]
        self._answered: list[Callable[[str, str, int, int], None]] = []
        self._ignored = [one.ignored for one in everybody if _listens(one.ignored)]
        self._closed = [one.closed for one in everybody if _listens(one.closed)]
        self._uploading = [one.uploading for one in everybody if _listens(one.uploading)]
        self._uploaded = [one.uploaded for one in everybody if _listens(one.uploaded)]
        self._upload_failed = [one.upload_failed for one in everybody if _listens(one.upload_failed)]
        self._upload_skipped = [one.upload_skipped for one in everybody if _listens(one.upload_skipped)]
        self._dead_lettered = [one.dead_lettered for one in everybody if _listens(one.dead_lettered)]
        self._committed = [one.committed for one in everybody if _listens(one.committed)]

    def fetched(self, topic: str, partition: int, first: int, last: int) -> None:
        for tell in self._fetched:
            tell(topic, partition, first, last)

    def reading(self, topic: str, partition: int, offset: int) -> None:
        for tell in self._reading:
            tell(topic, partition, offset)

    def opened(self, batch: BatchContext, expected: int) -> None:
        for tell in self._opened:
            tell(batch, expected)

    def started(self, batch_id: str) -> None:
        for tell in self._started:
            tell(batch_id)

    def hears_answers(self) -> bool:
        self._answered = [one.answered for one in self._answerable if one.hears_answers()]
        return bool(self._answered)

    def answered(self, batch_id: str, station_id: str, done: int, expected: int) -> None:
        for tell in self._answered:
            tell(batch_id, station_id, done, expected)

    def ignored(self, batch_id: str, station_id: str, answer: Answer) -> None:
        for tell in self._ignored:
            tell(batch_id, station_id, answer)

    def closed(self, report: BatchReport) -> None:
        for tell in self._closed:
            tell(report)

    def uploading(self, report: BatchReport, attempt: int) -> None:
        for tell in self._uploading:
            tell(report, attempt)

    def uploaded(self, report: BatchReport) -> None:
        for tell in self._uploaded:
            tell(report)

    def upload_failed(self, report: BatchReport, error: BaseException, attempt: int, attempts: int) -> None:
        for tell in self._upload_failed:
            tell(report, error, attempt, attempts)

    def upload_skipped(self, report: BatchReport) -> None:
        for tell in self._upload_skipped:
            tell(report)

    def dead_lettered(self, report: BatchReport) -> None:
        for tell in self._dead_lettered:
            tell(report)

    def committed(self, topic: str, partition: int, offset: int) -> None:
        for tell in self._committed:
            tell(topic, partition, offset)


def _listens(method: Callable[..., object]) -> bool:
    """Whether *method* was overridden."""
    return getattr(method, "__func__", None) is not getattr(Observer, method.__name__, None)


class Log(Observer):
    """The log lines.  ``zh`` gives the four lines of the original guide, word for word."""

    _LINES: Final = {
        "en": {
            "opened": "batch %s opened: %d stations expected",
            "answered": "batch %s: station %s has answered, %d of %d",
            "stations": "batch %s: %d of %d stations have failed, the first one with %s: %s",
            "skips": "batch %s: %d of %d stations are skipped, the first one because: %s",
            "timeout": "batch %s timed out after %s s: %d of %d stations have answered",
            "early": "batch %s was ended early (%s): %d of %d stations have answered",
            "stuck": "batch %s: station %s is at %s",
            "uploaded": "batch %s uploaded: %d succeeded, %d failed, %d without output",
            "failed": "batch %s upload failed: %s: %s (try %d of %d)",
            "skipped": "batch %s is given up and counts as up (on_upload_failure='skip')",
            "dead": "batch %s is given up; its dead letter is written",
        },
        "zh": {
            "opened": "创建批次 %s，期望场站数: %d",
            "answered": "批次 %s 收到场站 %s 结果，进度: %d/%d",
            "stations": "批次 %s 有 %d/%d 个场站处理失败，第一个错误: %s: %s",
            "skips": "批次 %s 有 %d/%d 个场站被跳过，第一个原因: %s",
            "timeout": "批次 %s 超时 (%s秒)，已完成 %d/%d 个场站",
            "early": "批次 %s 提前结束 (%s)，已完成 %d/%d 个场站",
            "stuck": "批次 %s 场站 %s 停在 %s",
            "uploaded": "批次 %s 上传结果: 成功=%d, 失败=%d, 无输出=%d",
            "failed": "批次 %s 上传失败: %s: %s (第 %d/%d 次)",
            "skipped": "批次 %s 放弃上传，按已上传处理 (on_upload_failure='skip')",
            "dead": "批次 %s 放弃上传，已写入死信",
        },
    }

    def __init__(self, language: LogLanguage) -> None:
        if language not in self._LINES:
            raise ValueError(f"log_language={language!r}: use 'en' or 'zh'")
        self._lines = self._LINES[language]
        self._answer_level = logging.INFO if language == "zh" else logging.DEBUG
        self._told_about_asyncio = False

    def hears_answers(self) -> bool:
        return logger.isEnabledFor(self._answer_level)

    def opened(self, batch: BatchContext, expected: int) -> None:
        if logger.isEnabledFor(logging.INFO):
            fields = {"batch_id": batch.batch_id, "expected": expected}
            logger.info(self._lines["opened"], batch.batch_id, expected, extra=fields)

    def answered(self, batch_id: str, station_id: str, done: int, expected: int) -> None:
        fields = {"batch_id": batch_id, "station_id": station_id, "expected": expected}
        name = printable(station_id)
        logger.log(self._answer_level, self._lines["answered"], batch_id, name, done, expected, extra=fields)

    def closed(self, report: BatchReport) -> None:
        if report.first_error is not None:
            self._stations_failed(report, report.first_error)
        if report.first_skip is not None and logger.isEnabledFor(logging.WARNING):
            why = words(report.first_skip)
            logger.warning(
                self._lines["skips"], report.batch_id, report.skipped, report.expected, why, extra=_fields(report)
            )
        if report.completed_by in ("quorum", "failures", "forced") and logger.isEnabledFor(logging.INFO):
            level = logging.WARNING if report.completed_by == "failures" else logging.INFO
            told = report.batch_id, str(report.completed_by), report.answered, report.expected
            logger.log(level, self._lines["early"], *told, extra=_fields(report))
        if report.completed_by == "timeout" and logger.isEnabledFor(logging.WARNING):
            logger.warning(
                self._lines["timeout"],
                report.batch_id,
                f"{report.timeout_seconds or 0.0:g}",
                report.answered,
                report.expected,
                extra=_fields(report),
            )

        if report.completed_by == "timeout" and logger.isEnabledFor(logging.DEBUG):
            for station_id, outcome in report.stations.items():
                if outcome.places:
                    fields = {"batch_id": report.batch_id, "station_id": station_id, "expected": report.expected}
                    where = " <- ".join(outcome.stuck_at)
                    logger.debug(self._lines["stuck"], report.batch_id, printable(station_id), where, extra=fields)

    def _stations_failed(self, report: BatchReport, error: BaseException) -> None:
        # One line a batch, with one error: a traceback for every station would cost more than the stations do.
        if logger.isEnabledFor(logging.WARNING):
            logger.warning(
                self._lines["stations"],
                report.batch_id,
                report.failed,
                report.expected,
                type(error).__name__,
                words(error),
                extra=_fields(report),
            )
        if not self._told_about_asyncio and _is_asyncio_without_a_bridge(error):
            self._told_about_asyncio = True
            logger.error(
                "the callback awaits asyncio code, which cannot run in a Trio task: use trio.sleep instead of "
                "asyncio.sleep, and wrap a callback that needs asyncio libraries in trioagg.asyncio_callback()"
            )

    def uploaded(self, report: BatchReport) -> None:
        if logger.isEnabledFor(logging.INFO):
            failed = report.failed + report.timed_out + report.cancelled + report.skipped
            logger.info(
                self._lines["uploaded"],
                report.batch_id,
                report.succeeded,
                failed,
                report.no_output,
                extra=_fields(report),
            )

    def upload_failed(self, report: BatchReport, error: BaseException, attempt: int, attempts: int) -> None:
        last = attempt >= attempts
        logger.log(
            logging.ERROR if last else logging.WARNING,
            self._lines["failed"],
            report.batch_id,
            type(error).__name__,
            words(error),
            attempt,
            attempts,
            exc_info=error if last else None,
            extra=_fields(report),
        )

    def upload_skipped(self, report: BatchReport) -> None:
        logger.error(self._lines["skipped"], report.batch_id, extra=_fields(report))

    def dead_lettered(self, report: BatchReport) -> None:
        logger.error(self._lines["dead"], report.batch_id, extra=_fields(report))


def _is_asyncio_without_a_bridge(error: BaseException) -> bool:
    # The words are asyncio's and Trio's own; there is no class to tell these errors by.
    text = words(error)
    return (isinstance(error, RuntimeError) and "no running event loop" in text) or (
        isinstance(error, TypeError) and "unrecognized yield message" in text
    )


def _fields(report: BatchReport) -> dict[str, object]:
    return {
        "batch_id": report.batch_id,
        "completed_by": str(report.completed_by),
        "expected": report.expected,
        "succeeded": report.succeeded,
        "failed": report.failed,
        "timed_out": report.timed_out,
        "no_output": report.no_output,
        "skipped": report.skipped,
        "seconds": report.seconds,
    }
