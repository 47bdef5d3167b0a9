"""The events of a batch's life, and who is told: one class to override, and the log that does."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from ._errors import printable, words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._records import Answer, BatchReport

logger: Final = logging.getLogger("trioagg")

LogLanguage = Literal["en", "zh"]


class Observer:
    """Hears what happens to batches.  Every method may be overridden, none may wait, and none should raise."""

    SILENT: ClassVar[Observer]

    def hears_answers(self) -> bool:
        """Asked once for every batch: should :meth:`answered` be called for its stations?"""
        return False

    def opened(self, batch_id: str, expected: int) -> None:
        """A batch was accepted."""

    def answered(self, batch_id: str, station_id: str, done: int, expected: int) -> None:
        """A station has answered in time, whatever it said; *done* answers are in."""

    def ignored(self, batch_id: str, station_id: str, answer: Answer) -> None:
        """An answer came too late, twice, or from nobody that was asked."""

    def closed(self, report: BatchReport) -> None:
        """A batch has ended and its list is fixed."""

    def uploaded(self, report: BatchReport) -> None:
        """The list is up: whoever was to be called has returned."""

    def upload_failed(self, report: BatchReport, error: BaseException, attempt: int, attempts: int) -> None:
        """A try of an upload has failed; after the last of *attempts* it is not repeated."""

    def upload_skipped(self, report: BatchReport) -> None:
        """A list was given up and counts as up."""

    def dead_lettered(self, report: BatchReport) -> None:
        """A list was given up, and whoever takes dead letters has it."""


Observer.SILENT = Observer()


class Observers(Observer):
    """Tells several."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._all = tuple(observers)
        self._hearing: tuple[Observer, ...] = ()

    def hears_answers(self) -> bool:
        self._hearing = tuple(observer for observer in self._all if observer.hears_answers())
        return bool(self._hearing)

    def opened(self, batch_id: str, expected: int) -> None:
        for observer in self._all:
            observer.opened(batch_id, expected)

    def answered(self, batch_id: str, station_id: str, done: int, expected: int) -> None:
        for observer in self._hearing:
            observer.answered(batch_id, station_id, done, expected)

    def ignored(self, batch_id: str, station_id: str, answer: Answer) -> None:
        for observer in self._all:
            observer.ignored(batch_id, station_id, answer)

    def closed(self, report: BatchReport) -> None:
        for observer in self._all:
            observer.closed(report)

    def uploaded(self, report: BatchReport) -> None:
        for observer in self._all:
            observer.uploaded(report)

    def upload_failed(self, report: BatchReport, error: BaseException, attempt: int, attempts: int) -> None:
        for observer in self._all:
            observer.upload_failed(report, error, attempt, attempts)

    def upload_skipped(self, report: BatchReport) -> None:
        for observer in self._all:
            observer.upload_skipped(report)

    def dead_lettered(self, report: BatchReport) -> None:
        for observer in self._all:
            observer.dead_lettered(report)


class Log(Observer):
    """The log lines.  ``zh`` gives the four lines of the original guide, word for word."""

    _LINES: Final = {
        "en": {
            "opened": "batch %s opened: %d stations expected",
            "answered": "batch %s: station %s has answered, %d of %d",
            "stations": "batch %s: %d of %d stations have failed, the first one with %s: %s",
            "timeout": "batch %s timed out after %s s: %d of %d stations have answered",
            "uploaded": "batch %s uploaded: %d succeeded, %d failed, %d without output",
            "failed": "batch %s upload failed: %s: %s (try %d of %d)",
            "skipped": "batch %s is given up and counts as up (on_upload_failure='skip')",
            "dead": "batch %s is given up; its dead letter is written",
        },
        "zh": {
            "opened": "创建批次 %s，期望场站数: %d",
            "answered": "批次 %s 收到场站 %s 结果，进度: %d/%d",
            "stations": "批次 %s 有 %d/%d 个场站处理失败，第一个错误: %s: %s",
            "timeout": "批次 %s 超时 (%s秒)，已完成 %d/%d 个场站",
            "uploaded": "批次 %s 上传结果: 成功=%d, 失败=%d, 无输出=%d",
            "failed": "批次 %s 上传失败: %s: %s (第 %d/%d 次)",
            "skipped": "批次 %s 放弃上传，按已上传处理 (on_upload_failure='skip')",
            "dead": "批次 %s 放弃上传，已写入死信",
        },
    }

    def __init__(self, language: LogLanguage, batch_timeout: float) -> None:
        if language not in self._LINES:
            raise ValueError(f"log_language={language!r}: use 'en' or 'zh'")
        self._lines = self._LINES[language]
        self._answer_level = logging.INFO if language == "zh" else logging.DEBUG
        self._batch_timeout = batch_timeout
        self._told_about_asyncio = False

    def hears_answers(self) -> bool:
        return logger.isEnabledFor(self._answer_level)

    def opened(self, batch_id: str, expected: int) -> None:
        if logger.isEnabledFor(logging.INFO):
            fields = {"batch_id": batch_id, "expected": expected}
            logger.info(self._lines["opened"], batch_id, expected, extra=fields)

    def answered(self, batch_id: str, station_id: str, done: int, expected: int) -> None:
        fields = {"batch_id": batch_id, "station_id": station_id, "expected": expected}
        name = printable(station_id)
        logger.log(self._answer_level, self._lines["answered"], batch_id, name, done, expected, extra=fields)

    def closed(self, report: BatchReport) -> None:
        if report.first_error is not None:
            self._stations_failed(report, report.first_error)
        if report.completed_by == "timeout" and logger.isEnabledFor(logging.WARNING):
            logger.warning(
                self._lines["timeout"],
                report.batch_id,
                f"{self._batch_timeout:g}",
                report.answered,
                report.expected,
                extra=_fields(report),
            )

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
