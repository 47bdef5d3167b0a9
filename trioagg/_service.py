"""The service: messages become batches, batches become lists, and an offset moves when its list is up."""

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

import trio

from ._aggregator import BatchResultAggregator
from ._aio import service_loop
from ._blame import lone_errors_bare
from ._checks import check_counts, check_in_trio, check_seconds, check_some_seconds, check_takes
from ._context import batch_context
from ._errors import Closed, PoisonMessage
from ._join import Context
from ._lanes import is_async
from ._letters import DeadLetterLimit, check_verdicts
from ._observer import Observers
from ._reader import Reader
from ._settings import InputLimits, KafkaSettings
from ._sla import Sla
from ._stations import batch_id
from ._statistics import ServiceStatistics
from ._topics import checked_topics
from ._watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from ._aggregator import BatchTimeout
    from ._calls import StationTimeout
    from ._goals import Quorum
    from ._join import Latest
    from ._kafka import Kafka, Record
    from ._lanes import LaneName, StartMethod
    from ._observer import LogLanguage, Observer
    from ._outputs import Outputs
    from ._reader import MessageParser
    from ._records import BatchReport
    from ._retry import Retry
    from ._sla import SlaPolicy
    from ._uploader import OnUploadFailure

logger = logging.getLogger("trioagg")


class AsyncDataAnalysisService:
    """Reads messages of many stations from Kafka, runs the callback for each station, and brings one list a message up.

    Args:
      module_name: The name of the service; also the consumer group, unless *group_id* says otherwise.
      topics: The topics whose messages open batches.
      bootstrap_servers: ``host:port``, several with commas between.
      group_id: The consumer group.
      result_topic: Where the lists go, one message each; beside or instead of a handler.
      include_ledger: The messages in the result topic say what became of every station, too.
      delivery: ``"at_least_once"``; or ``"exactly_once"``: every list is in the result topic once for those who read
        it with ``isolation.level=read_committed``, for it is committed together with the offset of its message.
        Callbacks may still run twice for one message.  There is no handler then, whose effects could not be undone.
      dead_letter_topic: Where messages go that can never be processed, each as it came, with headers that say why.
      dead_letter_stations: Verdicts (``"failed"``, ``"timed_out"``, ...): a message with such stations becomes a dead
        letter too, although its list goes up.
      dead_letter_limit: When there are so many dead letters that the service had better stop; None is never.
      input_limits: How much one message may ask for before it is poison.
      context_topics: Topic -> :class:`Latest` or :class:`Window`: what these say of a station, or of none, is joined
        into its ``module_input``.  They are read from the beginning when the service starts, before the first batch.
      require_topics: Those of the *context_topics* without which a station is ``skipped``.
      message_parser: ``message_parser(topic, value) -> {station_id: anything}``, instead of the shapes that are known
        by default.  What it raises makes the message poison.
      kafka: Security, start offset and limits of the connection.
      upload_order: ``"any"``, or ``"partition"``: the lists of a partition go up in the order of its messages.
      batch_timeout: Seconds from the opening of a batch to its list; or ``batch_timeout(topic, stations)``, a function
        of the topic and the number of stations.
      sla_seconds: Seconds from a message's timestamp to its list: the deadline is the earlier one of the two.  A
        timestamp in the future counts as now.
      sla_policy: What is done with a message whose time is up when it comes: ``"process"``, with *min_budget*;
        ``"skip"``, its list is empty and its stations are skipped; ``"full"``, as if there were no agreement.
      min_budget: Seconds that ``"process"`` leaves a batch at least.
      cleanup_interval: Seconds for which the ids of closed batches are remembered.
      connect_timeout: Seconds for the connection, the login and the look for the topics.  Joining the group is not
        bounded by it: after a crash the group waits for the member that is gone.
      revoke_timeout: Seconds that batches of partitions which move to another member have to get up; by default
        ``batch_timeout + 5``; to be given where that is a function.
      commit_interval: Seconds between commits.
      transaction_linger: Seconds that a list waits for others at most, before it is committed together with them; for
        ``delivery="exactly_once"``.
      max_uncommitted: Batches of a partition that are up and not known as committed; at half of it a commit goes out,
        at the bound the partition is not fetched.

      max_loop_stall: Seconds that one task may keep the loop to itself before a warning names it and the place where it
        is; ``math.inf`` for never.

    The other parameters are those of :class:`BatchResultAggregator`.

    Raises:
      ValueError: when made, if a value is out of its range, two contradict each other, or *topics* is a str.
    """

    def __init__(
        self,
        module_name: str,
        topics: Sequence[str],
        *,
        bootstrap_servers: str | Sequence[str] = "localhost:9092",
        group_id: str | None = None,
        result_topic: str | None = None,
        include_ledger: bool = False,
        delivery: Literal["at_least_once", "exactly_once"] = "at_least_once",
        dead_letter_topic: str | None = None,
        dead_letter_stations: Iterable[str] = (),
        dead_letter_limit: DeadLetterLimit | None = DeadLetterLimit(),  # noqa: B008 - frozen
        input_limits: InputLimits = InputLimits(),  # noqa: B008 - frozen
        context_topics: Mapping[str, Latest] | None = None,
        require_topics: Sequence[str] = (),
        message_parser: MessageParser | None = None,
        kafka: KafkaSettings | None = None,
        upload_order: Literal["any", "partition"] = "any",
        batch_timeout: BatchTimeout = 5.0,
        sla_seconds: float | None = None,
        sla_policy: SlaPolicy = "process",
        min_budget: float = 0.1,
        quorum: Quorum | None = None,
        required: Iterable[str] = (),
        max_failures: int | None = None,
        station_timeout: StationTimeout | None = None,
        retry_station: Retry | None = None,
        lane: LaneName | None = None,
        max_threads: int = 100,
        max_abandoned_threads: int = 100,
        max_processes: int | None = None,
        start_method: StartMethod = "spawn",
        cleanup_interval: float = 60.0,
        max_batches_in_flight: int = 100,
        max_unreaped_batches: int = 50,
        max_running_stations: int = 1000,
        max_uploads: int = 4,
        on_upload_failure: OnUploadFailure = "stop",
        upload_attempts: int = 5,
        upload_timeout: float = 10.0,
        connect_timeout: float = 15.0,
        drain_timeout: float = 25.0,
        revoke_timeout: float | None = None,
        commit_interval: float = 1.0,
        transaction_linger: float = 0.05,
        max_uncommitted: int = 1000,
        max_loop_stall: float = 1.0,
        log_language: LogLanguage = "en",
        observers: Iterable[Observer] = (),
        tune_gc: bool = False,
    ) -> None:
        for name, value, kind, use in (
            ("module_name", module_name, str, "a string"),
            ("kafka", kafka, KafkaSettings | None, "KafkaSettings(...)"),
            ("input_limits", input_limits, InputLimits, "InputLimits(...)"),
            ("dead_letter_limit", dead_letter_limit, DeadLetterLimit | None, "DeadLetterLimit(...) or None"),
        ):
            if not isinstance(value, kind):
                raise ValueError(f"{name}={value!r}: use {use}")
        if message_parser is not None:
            check_takes("message_parser", message_parser, "topic", "value")
            if is_async(message_parser):
                raise ValueError("message_parser= must be a plain def, for it only computes")
        self._topics = checked_topics(
            topics,
            result_topic=result_topic,
            dead_letter_topic=dead_letter_topic,
            context_topics={} if context_topics is None else context_topics,
        )
        if not module_name:
            raise ValueError("module_name must not be empty: it names the consumer group")
        if upload_order not in ("any", "partition"):
            raise ValueError(f"upload_order={upload_order!r}: use 'any' or 'partition'")
        self._module_name, self._group_id = module_name, group_id or module_name
        self._bootstrap_servers = (
            bootstrap_servers if isinstance(bootstrap_servers, str) else ",".join(bootstrap_servers)
        )
        if delivery not in ("at_least_once", "exactly_once"):
            raise ValueError(f"delivery={delivery!r}: use 'at_least_once' or 'exactly_once'")
        self._exactly_once = delivery == "exactly_once"
        if self._exactly_once and result_topic is None:
            raise ValueError("delivery='exactly_once' is from Kafka to Kafka: it needs a result_topic")
        verdicts = check_verdicts(dead_letter_stations)
        if dead_letter_topic is None and (verdicts or on_upload_failure == "dead_letter"):
            asked = "dead_letter_stations" if verdicts else "on_upload_failure='dead_letter'"
            raise ValueError(f"{asked} needs a dead_letter_topic")
        check_seconds(transaction_linger=transaction_linger)
        if include_ledger and result_topic is None:
            raise ValueError("include_ledger=True is about the messages in the result_topic: give one")
        self._result_topic, self._include_ledger = result_topic, include_ledger
        self._sla = Sla(sla_seconds, sla_policy, min_budget)
        self._context = Context({} if context_topics is None else context_topics, require_topics, input_limits)
        if self._context and message_parser is not None:
            raise ValueError("context_topics= are joined into the module_input, which a message_parser= replaces")
        self._reader = Reader(message_parser, input_limits, self._context.join if self._context else None)
        self._letters = (dead_letter_topic, verdicts, dead_letter_limit)
        # In transactions the lists of a partition have the order of its messages anyway.
        self._in_order = upload_order == "partition" and not self._exactly_once
        self._connection: dict[str, Any] = {
            "settings": kafka if kafka is not None else KafkaSettings(),
            "connect_timeout": connect_timeout,
            "revoke_timeout": _revoke_timeout(batch_timeout) if revoke_timeout is None else revoke_timeout,
            "commit_interval": commit_interval,
            "max_uncommitted": max_uncommitted,
        }
        check_some_seconds(
            connect_timeout=connect_timeout,
            revoke_timeout=self._connection["revoke_timeout"],
            commit_interval=commit_interval,
        )
        check_counts(max_uncommitted=max_uncommitted)
        if self._exactly_once:
            # Somebody has to sleep for a moment, however much in a hurry.
            self._connection["commit_interval"] = max(transaction_linger, 0.005)
        # Of what happens to a message before it has a batch, and after.
        self._observers = tuple(observers)
        self._observer = Observers(self._observers)
        self._make_aggregator = partial(
            BatchResultAggregator[Any],
            batch_timeout=batch_timeout,
            quorum=quorum,
            required=required if isinstance(required, str) else tuple(required),  # it is read twice
            max_failures=max_failures,
            station_timeout=station_timeout,
            retry_station=retry_station,
            lane=lane,
            max_threads=max_threads,
            max_abandoned_threads=max_abandoned_threads,
            max_processes=max_processes,
            start_method=start_method,
            cleanup_interval=cleanup_interval,
            max_batches_in_flight=max_batches_in_flight,
            max_unreaped_batches=max_unreaped_batches,
            max_running_stations=max_running_stations,
            max_uploads=max_uploads,
            on_upload_failure=on_upload_failure,
            upload_attempts=upload_attempts,
            upload_timeout=upload_timeout,
            drain_timeout=drain_timeout,
            log_language=log_language,
            tune_gc=tune_gc,
        )
        self._buries_lists = on_upload_failure == "dead_letter"
        # Made here too, so that a wrong value is found where it was typed; it is also what statistics() of a service
        # that has not started are read from.
        self._aggregator = self._make_aggregator(
            observers=self._observers, dead_letter_handler=_nobody if self._buries_lists else None
        )
        self._outputs: Outputs | None = None
        self._drain_timeout = drain_timeout
        check_some_seconds(max_loop_stall=max_loop_stall)
        self._watchdog = Watchdog(max_loop_stall)
        self._kafka: Kafka | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._started = self._ended = False
        self._asked_to_stop = trio.Event()
        self._drained = trio.Event()

    def __repr__(self) -> str:
        return f"<AsyncDataAnalysisService {self._module_name!r} {list(self._topics)}>"

    def start(
        self,
        callback: Callable[[str, Any], Any],
        batch_upload_handler: Callable[[str, list[dict[str, Any]]], Any] | None = None,
        *,
        report_handler: Callable[[BatchReport], Any] | None = None,
    ) -> ServiceBlock:
        """The service as a block: ``async with service.start(callback=..., batch_upload_handler=...):``.

        It is connected when the block begins, runs beside its body, and drains when it is left: no new batch, lists go
        up, offsets are committed, the group is left.  An exception in the body, Cancelled or Ctrl-C aborts instead: no
        list goes up any more and no offset moves.

        Args:
          callback: ``callback(station_id, module_input) -> dict | None``, ``async def`` or ``def`` (in a thread).
          batch_upload_handler: ``batch_upload_handler(batch_id, results_list)``, sync or async.
          report_handler: ``report_handler(report)``, sync or async.

        Raises:
          ValueError: if there is no handler and no result topic.
          RuntimeError: if the service was started before; it lives once.
          ConnectFailed, TopicUnavailable: on entering the block, within ``connect_timeout``.
          UploadFailed, KafkaError: out of the block, bare: the service has ended.  A group only if the body raised too.
        """
        if batch_upload_handler is None and report_handler is None and self._result_topic is None:
            raise ValueError(
                "nobody would get the lists: give a batch_upload_handler, a report_handler or a result_topic"
            )
        if self._exactly_once and (batch_upload_handler is not None or report_handler is not None):
            raise ValueError(
                "delivery='exactly_once' has no handlers: what they do could not be undone. Read the result_topic "
                "instead, or watch with observers="
            )
        check_takes("callback", callback, "station_id", "module_input")
        if batch_upload_handler is not None:
            check_takes("batch_upload_handler", batch_upload_handler, "batch_id", "results_list")
        if report_handler is not None:
            check_takes("report_handler", report_handler, "report")
        return ServiceBlock(self._live(callback, batch_upload_handler, report_handler))

    async def run(
        self,
        callback: Callable[[str, Any], Any],
        batch_upload_handler: Callable[[str, list[dict[str, Any]]], Any] | None = None,
        *,
        report_handler: Callable[[BatchReport], Any] | None = None,
        task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """:meth:`start`, and stay until :meth:`stop` or :meth:`request_stop`.

        ``await nursery.start(service.run, ...)`` returns when the service is connected.

        Raises:
          As the block of :meth:`start`.

        Cancellation: aborts.
        """
        async with self.start(callback, batch_upload_handler, report_handler=report_handler):
            task_status.started(self)
            await self._drained.wait()

    def request_stop(self) -> None:
        """Begin to drain.  May be called from anywhere: callbacks, handlers, threads, signal handlers.

        A service that has not started yet will start and drain at once.
        """
        if self._token is None:
            self._asked_to_stop.set()
            return
        with suppress(trio.RunFinishedError):  # what has ended is stopped
            # Even in Trio's own thread: a signal handler may interrupt Trio in the middle of its work.
            self._token.run_sync_soon(self._asked_to_stop.set, idempotent=True)

    async def stop(self) -> None:
        """Drain, and return when everything is up and committed.  Returns at once where nothing runs.

        Raises:
          RuntimeError: in a callback or handler of this service, which would wait for itself.

        Cancellation: the service goes on draining.
        """
        context = batch_context.get(None)
        if context is not None and context.owner is self._aggregator:
            await trio.lowlevel.checkpoint()
            raise RuntimeError("stop() inside a callback or handler would wait for itself: call request_stop() instead")
        if not self._started or self._ended:
            await trio.lowlevel.checkpoint()
            return
        self._asked_to_stop.set()
        await self._drained.wait()

    def complete(self, batch_id: str) -> bool:
        """End an open batch now, with the answers that are in.  Says whether there was one of that id."""
        return self._aggregator.complete(batch_id)

    def complete_all(self) -> int:
        """:meth:`complete` every open batch; says how many there were."""
        return self._aggregator.complete_all()

    def statistics(self) -> ServiceStatistics:
        """A frozen snapshot."""
        batches = self._aggregator.statistics()
        return ServiceStatistics(
            **{field.name: getattr(batches, field.name) for field in fields(batches)},
            messages=self._reader.messages,
            poison=self._reader.poison,
            dead_letters=0 if self._outputs is None else self._outputs.letters,
            empty=self._reader.empty,
            rejected_elements=self._reader.rejected + self._context.rejected,
            context_messages=self._context.messages,
            context_poison=self._context.poison,
            over_sla=self._sla.missed,
            loop_stalls=self._watchdog.blocked,
            kafka=None if self._kafka is None else self._kafka.statistics(),
        )

    @asynccontextmanager
    @trio.lowlevel.enable_ki_protection
    async def _live(
        self,
        callback: Callable[[str, Any], Any],
        batch_upload_handler: Callable[[str, list[dict[str, Any]]], Any] | None,
        report_handler: Callable[[BatchReport], Any] | None,
    ) -> AsyncIterator[Self]:
        if self._started:
            raise RuntimeError("a service lives once: make a new one to start again")
        self._started = True
        self._token = trio.lowlevel.current_trio_token()
        # Here and not above: `import trioagg` must not load the Kafka client and its event loop.
        from ._kafka import open_kafka
        from ._outputs import Outputs

        outputs = self._outputs = Outputs(
            self._module_name, self._result_topic, *self._letters, include_ledger=self._include_ledger
        )
        aggregator = self._make_aggregator(
            callback,
            batch_upload_handler,
            report_handler=report_handler,
            sink=outputs if outputs.wanted else None,
            observers=(*self._observers, outputs),
            dead_letter_handler=outputs.bury_list if self._buries_lists else None,
        )
        self._aggregator = aggregator
        try:
            with lone_errors_bare() as theirs, self._watchdog.watching():
                async with (
                    open_kafka(
                        bootstrap_servers=self._bootstrap_servers,
                        topics=self._topics,
                        group_id=self._group_id,
                        output_topics=outputs.topics,
                        transactional=self._exactly_once,
                        room=lambda: max(0, aggregator.room - outputs.burying),
                        dropped=self._drop,
                        observer=self._observer,
                        context=self._context,
                        **self._connection,
                    ) as kafka,
                    aggregator,
                    trio.open_nursery() as nursery,
                ):
                    self._kafka = outputs.kafka = kafka
                    nursery.start_soon(self._take_in, kafka, outputs, nursery, name="trioagg intake")
                    nursery.start_soon(self._drain_when_asked, kafka, outputs, name="trioagg drain")
                    try:
                        yield self
                    except BaseException as error:
                        theirs.append(error)
                        raise
                    self._asked_to_stop.set()
        finally:
            self._ended = True
            self._drained.set()

    @trio.lowlevel.enable_ki_protection
    async def _drain_when_asked(self, kafka: Kafka, outputs: Outputs) -> None:
        await self._asked_to_stop.wait()
        logger.info("%s is draining: %d batches in flight", self._module_name, self._aggregator.in_flight)
        deadline = trio.current_time() + self._drain_timeout
        kafka.stop_fetching()
        await self._aggregator.drain()
        with trio.move_on_at(deadline):
            await outputs.wait_buried()
        await kafka.close(max(1.0, deadline - trio.current_time()))
        self._drained.set()

    @trio.lowlevel.enable_ki_protection
    async def _take_in(self, kafka: Kafka, outputs: Outputs, nursery: trio.Nursery) -> None:
        # In this task's context alone, which the batches inherit: a loop of the user's own stays what it is.
        service_loop.set(kafka.loop)
        async for record in kafka.records:
            if not record.claim.live or self._asked_to_stop.is_set():
                kafka.discard(record)
                continue
            self._observer.reading(record.topic, record.partition, record.offset)
            try:
                stations = self._reader.read(record)
            except PoisonMessage as error:
                if outputs.condemn(record, error):
                    nursery.start_soon(outputs.bury, record, error)
                else:
                    kafka.finish(record)
                continue
            if not stations:
                kafka.finish(record)
                continue
            try:
                await self._admit(kafka, record, stations)
            except Closed:
                kafka.discard(record)

    async def _admit(self, kafka: Kafka, record: Record, stations: Mapping[str, Any]) -> None:
        def when_done(up: bool) -> None:
            if up:
                kafka.finish(record)
            else:
                kafka.discard(record)
            kafka.wake()

        timestamp = None if record.timestamp_ms is None else record.timestamp_ms / 1000
        await self._aggregator.admit(
            batch_id(record.topic, record.partition, record.offset, record.timestamp_ms),
            stations,
            order=record.claim if self._in_order else None,
            when_done=when_done,
            still_wanted=lambda: record.claim.live,
            skipped=self._context.lacking(stations) if self._context else {},
            budget=lambda timeout: self._sla.budget(timeout, timestamp, time.time()),
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            timestamp=timestamp,
            key=record.key,
            headers=record.headers,
            source=record,
        )

    def _drop(self, claims: Iterable[object]) -> None:
        lost = set(claims)
        self._aggregator.abort(lambda context: getattr(context.source, "claim", None) in lost)


class ServiceBlock:
    """What :meth:`AsyncDataAnalysisService.start` gives: an ``async with`` block, and no more."""

    def __init__(self, block: AbstractAsyncContextManager[AsyncDataAnalysisService]) -> None:
        self._block = block

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> AsyncDataAnalysisService:
        check_in_trio()
        return await self._block.__aenter__()

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._block.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102 - it shields what must be

    def __await__(self) -> Generator[None, None, NoReturn]:
        raise TypeError(
            "the service is a block now: write `async with service.start(callback=..., batch_upload_handler=...):` "
            "instead of `await service.start(...)`, or `await service.run(...)` to stay until stop()"
        )


def _revoke_timeout(batch_timeout: BatchTimeout) -> float:
    if callable(batch_timeout):
        raise ValueError(
            "batch_timeout= is a function: give revoke_timeout= too, in seconds, the longest one and a little more"
        )
    check_seconds(batch_timeout=batch_timeout)
    return batch_timeout + 5.0


def _nobody(report: BatchReport, error: Exception) -> None:
    """Stands for what takes the dead letters, where an aggregator is only made to check its settings."""
