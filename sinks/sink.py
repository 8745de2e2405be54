"""The loop between Kafka and ClickHouse: a consumer group of its own.

    poll ─▶ decode ─▶ batch ─▶ (size? latency? urgent? close?) ─▶ flight ─▶ commit
                                                                    │
                                          rows ─▶ insert per table ─┴─▶ dead letters

One turn of the loop polls, decodes and decides; the *flight*, a thread, writes one batch at a time.
So the consumer polls on while ClickHouse is slow or away, and stays in its group. When the next
batch is full too, partitions are paused; nothing is dropped.

What happens to a batch, in this order:

1. its rows are inserted, table by table, until every table has acknowledged (``writer.py``);
2. the records that cannot be stored are posted to ``runners.dead-letters`` and acknowledged;
3. its offsets are committed.

A crash between any two repeats the batch and changes nothing: rows replace themselves, a letter has
the id of its source. A rebalance drops nothing either: what was read before partitions moved is
written by two members, and only the commit leaves out what is no longer ours.

What is committed, and compared with the end of the log, is the *position*: the offset that is read
next. It is not always the last record and one, since a log has offsets without a record in them:
the marks of transactions, what was aborted, what was compacted away. Offsets that retention removed
before they were read are another thing: those records are lost to ClickHouse, so they are counted
and shown (:class:`Hole`).
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.errors import KafkaError, MessageSizeTooLargeError
from kafka.structs import OffsetAndMetadata

from sinks import rows, schema
from sinks.consumer import (
    Undecodable,
    absence,
    known_options,
    learn_topics,
    log_id,
    make_consumer,
    position_of,
)
from sinks.metrics import FlushReason, SinkMetrics
from sinks.rows import Item
from sinks.writer import Abandoned, Backoff, BatchIdentity, Refused, Writer, describe
from topics.catalogue import MAX_DEAD_LETTER_BYTES
from topics.dead_letters import SourceRecord, dead_letter, letter_bytes, without_value
from topics.models import EARLIEST_MS, LATEST_MS, DeadLetter, Reason, Unreadable

log = logging.getLogger(__name__)

#: How often lag and gauges are refreshed.
_OBSERVE_S: Final = 1.0
#: How long to wait after the broker has refused to be asked for records.
_BROKER_PAUSE_S: Final = 0.2
#: How often the log ends are asked for. Fetches tell them too, but not for paused partitions; and
#: an answer is the only sign that the broker is there, since poll() waits for it in silence.
_ASK_ENDS_S: Final = 2.0
_ASK_ENDS_TIMEOUT_MS: Final = 1_000
#: How long a join waits for members that do not call; this loop calls often.
_MAX_POLL_INTERVAL_MS: Final = 60_000
#: How long one poll waits while the group is joined. A join that ends between two polls is lost.
_JOIN_PATIENCE_S: Final = 1.0
#: How many letters of one batch have a line in the log.
_LETTERS_LOGGED: Final = 5
#: How many of the latest holes are shown.
_HOLES_SHOWN: Final = 100
#: The loop counts as alive when its last turn is younger than this. A turn takes milliseconds; the
#: longest honest one waits for the group coordinator.
_ALIVE_S: Final = 60.0
#: How long a full batch waits for the flight before it before partitions are paused. Pausing costs
#: little, but a backlog alternates between the two states several times a second.
_PATIENCE_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class SinkConfig:
    """How one sink process runs.

    ``kafka`` holds kafka-python client options (``bootstrap_servers``, ``security_protocol``,
    ...); they go to the consumer and to the producer of dead letters, each taking what it knows.
    ``clickhouse_url`` is ``clickhouse://user:password@host:9000/database``.
    """

    kafka: Mapping[str, Any]
    clickhouse_url: str
    group_id: str
    topics: tuple[str, ...] = rows.TOPICS
    #: A batch is due when it has this many records or bytes ...
    max_records: int = 5_000
    max_bytes: int = 16 * 1024 * 1024
    #: ... or when its first record has waited this long (seconds) ...
    latency_s: float = 0.5
    #: ... or when a record that an operator waits for has waited this long. Such flushes are at
    #: least ``urgent_every_s`` apart, so that a busy stream, in which some job always ends, does
    #: not become a stream of tiny inserts: with these values a table never sees more than two a
    #: second, and on a quiet stream the end of a job is visible at once.
    urgent_s: float = 0.05
    urgent_every_s: float = 0.5
    #: At shutdown, how long to try to write what was read. The rest is read again next time.
    close_s: float = 15.0
    #: How long it may take to become a member of the group (again) before the connection is given
    #: up and the group is joined anew. None: as long as an honest join may take, and a session.
    rejoin_s: float | None = None
    #: Apply migrations at start. Otherwise wait until somebody has.
    migrate: bool = True
    backoff: Backoff = field(default_factory=Backoff)
    #: Mixed into the tokens of all inserts. Change it to make ClickHouse accept records again that
    #: were written before and then deleted by hand.
    token_salt: str = ""


@dataclass(frozen=True, slots=True)
class Hole:
    """Records that the broker had removed before this sink read them."""

    topic: str
    partition: int
    #: First and last offset that is gone.
    first: int
    last: int
    #: How many offsets: the number of records, but for marks of transactions among them.
    records: int
    #: Unix time in seconds at which it was noticed.
    noticed: float


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """How the sink is doing, for health checks and people."""

    #: It is a member of its group and its last insert succeeded.
    ready: bool
    #: Why it is not ready, as a sentence; empty when it is.
    reason: str
    #: The loop turns, and the group is or will soon be joined. When not, restarting the process is
    #: right.
    alive: bool
    #: Partitions this process owns.
    partitions: int
    #: Records not yet acknowledged by ClickHouse, by topic; a topic of which that is not known yet
    #: is left out.
    lag: Mapping[str, int]
    #: Seconds that the oldest consumed and unacknowledged record has waited; 0 when there is none.
    oldest_unflushed_s: float
    #: Unix time in seconds of the last acknowledged batch; None before the first.
    last_flush: float | None
    paused: bool
    #: What retention has removed before it was read, the latest first.
    holes: tuple[Hole, ...] = ()


@dataclass(slots=True)
class _Batch:
    """Records on their way, with all that is needed to write, refuse and commit them."""

    identity: BatchIdentity
    items: list[Item] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    #: Next offset to read per partition, and the ownership under which it was read.
    offsets: dict[TopicPartition, tuple[int, int]] = field(default_factory=dict)
    records: int = 0
    size: int = 0
    #: Monotonic; of the first record and of the first that is urgent.
    first: float | None = None
    urgent: float | None = None
    #: Broker time of the oldest record, ms.
    oldest_ms: int = LATEST_MS
    #: The broker's id of the log that the job states are from; None when there are none.
    log: str | None = None

    def add(self, records: Sequence[SourceRecord | Undecodable], now: float) -> None:
        """Take in records of one partition, in the order of their offsets."""
        self.identity.add(records)
        for record in records:
            self.size += len(record.value or b"")
            try:
                if isinstance(record, Undecodable):
                    raise Unreadable(Reason.UNDECODABLE, str(record))
                item = rows.decode(record)
            except Unreadable as why:
                self.refused.append(Refused(record, why))
            except Exception as error:  # L7: one record never stops the stream
                log.exception(
                    "decoding failed: %s:%d:%d", record.topic, record.partition, record.offset
                )
                unexpected = Unreadable(Reason.UNEXPECTED, describe(error))
                self.refused.append(Refused(record, unexpected))
            else:
                self.items.append(item)
                if item.urgent and self.urgent is None:
                    self.urgent = now
            if EARLIEST_MS <= record.timestamp < self.oldest_ms:
                self.oldest_ms = record.timestamp
        self.records += len(records)
        if self.first is None:
            self.first = now

    def reach(self, where: TopicPartition, position: int, ownership: int, now: float) -> None:
        """The offset that is read next, with or without records before it."""
        self.offsets[where] = (position, ownership)
        if self.first is None:
            self.first = now


class _Flight(threading.Thread):
    """One batch being written. ``error`` is set when it did not arrive."""

    def __init__(self, batch: _Batch, write: Callable[[_Batch], None]) -> None:
        super().__init__(name="sink-flight", daemon=True)
        self.batch = batch
        self._write = write
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._write(self.batch)
        except BaseException as error:
            self.error = error


class _Owned(ConsumerRebalanceListener):  # type: ignore[misc]
    """Which partitions are ours, and since which rebalance.

    kafka-python calls these on its I/O thread, where waiting would stop heartbeats; so they only
    take notes.
    """

    def __init__(self) -> None:
        self.joined = False
        self.rebalances = 0
        self._since: dict[TopicPartition, int] = {}

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self.rebalances += 1
        self._since = {**self._since, **dict.fromkeys(assigned, self.rebalances)}
        self.joined = True
        log.info("assigned %d partitions", len(assigned))

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        gone = set(revoked)
        self._since = {where: n for where, n in self._since.items() if where not in gone}
        log.info("revoked %d partitions", len(revoked))

    def on_partitions_lost(self, lost: Sequence[TopicPartition]) -> None:
        self.on_partitions_revoked(lost)

    def ownership(self, where: TopicPartition) -> int:
        """Number of the rebalance that gave us the partition; 0 when it is not ours."""
        return self._since.get(where, 0)

    def partitions(self) -> tuple[TopicPartition, ...]:
        return tuple(self._since)

    def leave(self) -> None:
        """We have left the group ourselves."""
        self.joined = False
        self._since = {}


class Sink:
    """Consumes the topics and writes them to ClickHouse until told to stop."""

    def __init__(self, config: SinkConfig, metrics: SinkMetrics | None = None) -> None:
        self.config = config
        self.metrics = metrics if metrics is not None else SinkMetrics()
        self._writer = Writer(config.clickhouse_url, self.metrics, config.backoff)
        # A changed schema makes other rows of the same records, so it makes other tokens.
        self._salt = f"{len(schema.migrations())}:{config.token_salt}"
        self._stopping = threading.Event()
        self._owned = _Owned()
        self._producer: Any = None
        self._batch = self._new_batch()
        self._flight: _Flight | None = None
        self._last_start = 0.0
        self._last_flush: float | None = None
        #: Per partition the offset that ClickHouse has reached, and under which ownership: what
        #: was reached before a partition moved away says nothing once it is back.
        self._acknowledged: dict[TopicPartition, tuple[int, int]] = {}
        self._ends: dict[TopicPartition, int] = {}
        #: Per partition the offset that is read next, and under which ownership.
        self._positions: dict[TopicPartition, tuple[int, int]] = {}
        #: Offsets that were passed over and not looked into yet: partition, first, next.
        self._skipped: list[tuple[TopicPartition, int, int]] = []
        self._holes: tuple[Hole, ...] = ()
        #: Since when (monotonic) we are no member of the group, and why.
        self._absent: tuple[float, str] | None = None
        self._session_s = float(config.kafka.get("session_timeout_ms", 45_000)) / 1000
        join_s = float(config.kafka.get("max_poll_interval_ms", _MAX_POLL_INTERVAL_MS)) / 1000
        self._rejoin_s = config.rejoin_s or join_s + self._session_s + 10
        self._lag: Mapping[str, int] = {}
        self._observed = 0.0
        self._asked_ends = 0.0
        self._turned = time.monotonic()
        self._paused = False
        self._preparing: str | None = "starting"
        #: Since when (monotonic) the broker does not do what we ask, and how it failed.
        self._broker_trouble: tuple[float, str] | None = None

    # --- for the process ----------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Run until ``stop`` is set, then write what was read, commit, and leave the group.

        Raises what is truly unexpected (law L7: the process goes down loudly, offsets uncommitted),
        :class:`sinks.schema.SchemaError` when the tables do not fit this release, and
        ``kafka.errors`` for a wrong configuration. An unreachable server is not an error: it waits.
        """
        # The driver logs a traceback for every attempt to connect; the writer says it once.
        logging.getLogger("clickhouse_driver").setLevel(logging.ERROR)
        consumer: Any = None
        try:
            if not self._prepare(stop):
                return
            while not stop.is_set():
                consumer = self._consumer(stop)
                if consumer is None:
                    return
                self._join(consumer, stop)
                while not stop.is_set() and not self._lost():
                    self._turn(consumer)
                if stop.is_set():
                    self._finish(consumer)
                else:
                    self._leave(consumer)
        finally:
            self._preparing = "stopped"
            self._stopping.set()
            self._writer.abandon()
            if consumer is not None:
                consumer.close(autocommit=False, timeout_ms=5_000)
            if self._producer is not None:
                self._producer.close(timeout=5)
            if self._flight is None:
                self._writer.close()

    def status(self) -> SinkStatus:
        """A snapshot. Safe from any thread."""
        now = time.monotonic()
        trouble, broker_trouble = self._writer.trouble, self._broker_trouble
        reason = ""
        if self._preparing is not None:
            reason = self._preparing
        elif trouble is not None:
            what = {
                "network": "unreachable",
                "timeout": "not answering",
                "overload": "overloaded",
                "refused": "refusing inserts",
                "systemic": "refusing our rows",
            }[trouble.reason]
            reason = f"ClickHouse {what} for {now - trouble.since:.0f} s: {trouble.error}"
        elif not self._owned.joined:
            reason = "waiting for the consumer group"
        elif self._absent is not None:
            since, text = self._absent
            reason = f"{text} for {now - since:.0f} s"
        elif broker_trouble is not None:
            since, text = broker_trouble
            reason = f"Kafka failing for {now - since:.0f} s: {text}"
        return SinkStatus(
            ready=not reason,
            reason=reason,
            alive=now - self._turned < _ALIVE_S
            and not (
                self._absent is not None
                and now - self._absent[0] > 2 * self._rejoin_s
                and self._preparing is None
            ),
            partitions=len(self._owned.partitions()),
            lag=self._lag,
            oldest_unflushed_s=self._oldest_unflushed(now),
            last_flush=self._last_flush,
            paused=self._paused,
            holes=self._holes,
        )

    # --- start --------------------------------------------------------------------------------

    def _prepare(self, stop: threading.Event) -> bool:
        """Bring the schema up to date, waiting for ClickHouse. False when stopped meanwhile."""
        began, attempt = time.monotonic(), 0
        while not stop.is_set():
            self._turned = time.monotonic()
            try:
                if self.config.migrate:
                    report = schema.apply(self.config.clickhouse_url)
                    log.info("schema %s: applied %s", report.database, report.applied or "nothing")
                    missing = 0
                else:
                    missing = len(schema.pending(self.config.clickhouse_url))
                if not missing:
                    self._preparing = None
                    self.metrics.clickhouse_up.set(1)
                    return True
                waiting_for = f"{missing} migrations are to be applied"
            except schema.SchemaError:
                raise
            except Exception as error:
                waiting_for = describe(error)
            attempt += 1
            waited = time.monotonic() - began
            self._preparing = f"ClickHouse not ready for {waited:.0f} s: {waiting_for}"
            if attempt == 1:
                log.warning("%s", self._preparing)
            stop.wait(self.config.backoff.delay(attempt))
        return False

    def _consumer(self, stop: threading.Event) -> Any:
        """A consumer, waiting for the broker. None when stopped meanwhile."""
        began, attempt = time.monotonic(), 0
        options: dict[str, Any] = {
            # Batches are cut here, not by the client; a large poll keeps its overhead small.
            "max_poll_records": self.config.max_records,
            # How long an empty fetch stays at the broker; data are answered at once.
            "fetch_max_wait_ms": 250,
            # A topic that is asked for before it exists would be made with the broker's defaults:
            # too few partitions, no compaction. It is found when its owner has made it.
            "allow_auto_create_topics": False,
            "metadata_max_age_ms": 30_000,
            # How long a broker that came back may wait to be noticed; the default is 30 s.
            "reconnect_backoff_max_ms": 3_000,
            "client_id": f"{self.config.group_id}",
            # The client's statistics cost time and nobody reads them.
            "metrics_enabled": False,
            # Without the package crc32c the client sums in Python, which costs 200 us for a webhook
            # of 9 kB: five times everything else (3,500 records/s with it, 14,500 without). The
            # broker has checked the sum already, TCP has its own, and the contents are validated.
            "check_crcs": importlib.util.find_spec("crc32c") is not None,
            "max_poll_interval_ms": _MAX_POLL_INTERVAL_MS,
            **known_options(self.config.kafka, KafkaConsumer, KafkaProducer),
            "group_id": self.config.group_id,
            # History is wanted whole.
            "auto_offset_reset": "earliest",
            # What a transaction took back was never said.
            "isolation_level": "read_committed",
            # Only what ClickHouse has acknowledged is committed.
            "enable_auto_commit": False,
            "key_deserializer": None,
            "value_deserializer": None,
        }
        while not stop.is_set():
            self._turned = time.monotonic()
            try:
                consumer = make_consumer(options)
            except KafkaError as error:
                attempt += 1
                waited = time.monotonic() - began
                self._preparing = f"Kafka not ready for {waited:.0f} s: {describe(error)}"
                log.warning("%s", self._preparing)
                stop.wait(self.config.backoff.delay(attempt))
            else:
                self._preparing = None
                return consumer
        return None

    # --- membership ---------------------------------------------------------------------------

    def _join(self, consumer: Any, stop: threading.Event) -> None:
        """Subscribe; the group is joined by the polls that follow."""
        self._absent = (time.monotonic(), "not a member of the group yet")
        consumer.subscribe(topics=list(self.config.topics), listener=self._owned)
        while not stop.is_set():
            self._turned = time.monotonic()
            try:
                if learn_topics(consumer, _JOIN_PATIENCE_S):
                    return
            except KafkaError as error:
                if not error.retriable:
                    raise
                self._broker_failed(error)
                stop.wait(_BROKER_PAUSE_S)

    def _lost(self) -> bool:
        """Whether we have been no member for so long that only a new connection may help."""
        absent = self._absent
        return absent is not None and time.monotonic() - absent[0] > self._rejoin_s

    def _leave(self, consumer: Any) -> None:
        assert self._absent is not None
        log.error("%s for %.0f s: joining the group anew", self._absent[1], self._rejoin_s)
        self.metrics.rejoins.inc()
        self._owned.leave()
        self._positions.clear()
        consumer.close(autocommit=False, timeout_ms=2_000)

    def _attend(self, consumer: Any, now: float) -> None:
        why = absence(consumer, self._session_s)
        if not why:
            self._absent = None
        else:
            self._absent = (self._absent[0] if self._absent else now, why)

    # --- the loop -----------------------------------------------------------------------------

    def _turn(self, consumer: Any) -> None:
        now = self._turned = time.monotonic()
        patience = self._patience(now) if self._absent is None else _JOIN_PATIENCE_S
        fetched = self._poll(consumer, patience)
        now = time.monotonic()
        self._attend(consumer, now)
        self._take(consumer, fetched, now)
        self._land(consumer)
        due = self._due(now)
        if due is not None and self._flight is None:
            self._take_off(due)
            due = None
        self._brake(consumer, full=due == "size")
        if now - self._observed >= _OBSERVE_S:
            self._observed = now
            self._observe(consumer, now)

    def _take(self, consumer: Any, fetched: Mapping[Any, Any], now: float) -> None:
        """What was fetched into the batch, with the positions that it has brought us to."""
        batch = self._batch
        new = [
            where
            for where in self._owned.partitions()
            if self._positions.get(where, (0, 0))[1] != self._owned.ownership(where)
        ]
        begins = self._begins(consumer, new) if new else {}
        for where in self._owned.partitions():
            records = fetched.get(where)
            position = position_of(consumer, where)
            if position is None:  # it is being looked for
                continue
            ownership = self._owned.ownership(where)
            before, known = self._positions.get(where, (0, 0))
            first = records[0].offset if records else position
            if known != ownership:
                before = self._begin(consumer, where, first, begins.get(where, 0))
                self._acknowledged[where] = (before, ownership)
            if first > before:
                self._skipped.append((where, before, first))
            if position != before or known != ownership:
                self._positions[where] = (position, ownership)
            if records or (known == ownership and position != before):
                batch.reach(where, position, ownership, now)
        for where, records in fetched.items():
            if records:
                if where.topic == rows.JOB_STATES and batch.log is None:
                    batch.log = log_id(consumer, where.topic)
                batch.add(records, now)
                self.metrics.records.labels(where.topic).inc(len(records))

    def _begins(self, consumer: Any, places: Sequence[TopicPartition]) -> Mapping[Any, int]:
        """Where the logs begin; nothing when the broker does not say so in time."""
        try:
            begins: Mapping[Any, int] = consumer.beginning_offsets(
                list(places), timeout_ms=_ASK_ENDS_TIMEOUT_MS
            )
        except KafkaError as error:
            self._broker_failed(error)
            return {}
        return begins

    def _begin(self, consumer: Any, where: TopicPartition, first: int, begin: int) -> int:
        """The offset at which a partition that has just become ours should go on.

        That is where we are, unless we are at the beginning of a log that does not begin at 0: then
        the group may have been further back, at what is no longer there.
        """
        if not begin or first > begin:
            return first
        try:
            committed = consumer.committed(where, timeout_ms=_ASK_ENDS_TIMEOUT_MS)
        except KafkaError as error:
            self._broker_failed(error)
            return first
        return first if committed is None else min(first, int(committed))

    def _look_into(self, consumer: Any) -> None:
        """Tell what retention has removed from what a log never had, among the offsets that were
        passed over: the first lies before the beginning of the log."""
        skipped, self._skipped = self._skipped, []
        begins = self._begins(consumer, sorted({where for where, _, _ in skipped}))
        for where, first, following in skipped:
            if where not in begins:
                self._skipped.append((where, first, following))
                continue
            last = min(following, begins[where]) - 1
            records = last - first + 1
            if records <= 0:
                continue
            hole = Hole(where.topic, where.partition, first, last, records, time.time())
            self._holes = (hole, *self._holes[: _HOLES_SHOWN - 1])
            self.metrics.lost_records.labels(where.topic).inc(records)
            log.error(
                "%d records of %s, partition %d, were removed before they were read: offsets %d to"
                " %d. ClickHouse will not have them",
                records, where.topic, where.partition, first, last,
            )  # fmt: skip

    def _poll(self, consumer: Any, patience_s: float) -> Mapping[Any, Any]:
        """What has arrived within ``patience_s``; nothing while the broker is away.

        Most of the time the client waits for a lost broker by itself. While it looks for the
        group's coordinator it raises the refused connection instead.
        """
        try:
            fetched: Mapping[Any, Any] = consumer.poll(timeout_ms=int(patience_s * 1000))
        except KafkaError as error:
            if not error.retriable:
                raise
            self._broker_failed(error)
            self._stopping.wait(_BROKER_PAUSE_S)
            return {}
        return fetched

    def _patience(self, now: float) -> float:
        """How long to wait for records, in seconds: until the next thing that is due."""
        if self._flight is not None:
            return 0.01
        batch = self._batch
        if batch.first is None:
            return 0.2
        at = batch.first + self.config.latency_s
        if batch.urgent is not None:
            urgent_at = batch.urgent + self.config.urgent_s
            at = min(at, max(urgent_at, self._last_start + self.config.urgent_every_s))
        # Rounded up: a wait that ends a moment too early would make the loop spin.
        return min(0.2, max(0.0, at - now) + 0.001)

    def _due(self, now: float) -> FlushReason | None:
        batch = self._batch
        if batch.first is None:
            return None
        if batch.records >= self.config.max_records or batch.size >= self.config.max_bytes:
            return "size"
        if now - batch.first >= self.config.latency_s:
            return "latency"
        if (
            batch.urgent is not None
            and now - batch.urgent >= self.config.urgent_s
            and now - self._last_start >= self.config.urgent_every_s
        ):
            return "urgent"
        return None

    def _take_off(self, reason: FlushReason) -> None:
        batch, self._batch = self._batch, self._new_batch()
        self.metrics.flushes.labels(reason).inc()
        self.metrics.batch_records.observe(batch.records)
        self._last_start = time.monotonic()
        self._flight = _Flight(batch, self._write)

    def _land(self, consumer: Any) -> None:
        """Commit what has arrived in ClickHouse. Raises what the flight could not handle."""
        flight = self._flight
        if flight is None or flight.is_alive():
            return
        self._flight = None
        if flight.error is not None:
            raise flight.error
        batch = flight.batch
        self._last_flush = time.time()
        if batch.oldest_ms < LATEST_MS:
            self.metrics.visible_seconds.observe(max(0.0, time.time() - batch.oldest_ms / 1000))
        ours = {}
        for where, (offset, ownership) in batch.offsets.items():
            # A partition that moved away, or moved and came back, is where others left it.
            if ownership and ownership == self._owned.ownership(where):
                ours[where] = offset
                self._acknowledged[where] = (offset, ownership)
        if ours:
            commit = {where: OffsetAndMetadata(offset, "", -1) for where, offset in ours.items()}
            consumer.commit_async(commit, callback=self._committed)

    def _committed(self, offsets: Any, response: Any) -> None:
        """Called on the client's I/O thread. A commit that failed is made good by the next one."""
        if isinstance(response, Exception):
            self.metrics.commit_failures.inc()
            self._broker_failed(response)
            log.warning("offsets not committed: %s", describe(response))
        else:
            self._broker_trouble = None

    def _broker_failed(self, error: BaseException) -> None:
        before = self._broker_trouble
        since = before[0] if before else time.monotonic()
        self._broker_trouble = (since, describe(error))

    def _brake(self, consumer: Any, full: bool) -> None:
        """Stop fetching while a full batch waits for the flight; poll goes on regardless."""
        flight = self._flight
        if full and flight is not None and not self._paused:
            flight.join(_PATIENCE_S)
        stuck = full and flight is not None and flight.is_alive()
        if stuck:
            if not self._paused:
                self.metrics.pauses.inc()
                self._paused = True
            # Again in every turn: a rebalance brings partitions that are not paused.
            consumer.pause(*consumer.assignment())
        elif self._paused and self._flight is None:
            consumer.resume(*consumer.paused())
            self._paused = False

    def _finish(self, consumer: Any) -> None:
        """Write and commit what was read, within ``close_s``."""
        deadline = time.monotonic() + self.config.close_s
        while self._flight is not None or self._batch.first is not None:
            if self._flight is None:
                self._take_off("close")
            flight = self._flight
            assert flight is not None
            flight.join(max(0.0, deadline - time.monotonic()))
            if flight.is_alive():
                log.warning("closing with %d records unwritten; they are read again next time",
                            flight.batch.records + self._batch.records)  # fmt: skip
                break
            try:
                self._land(consumer)
            except Abandoned:
                break
        commit = {
            where: OffsetAndMetadata(offset, "", -1)
            for where, (offset, ownership) in self._acknowledged.items()
            if ownership == self._owned.ownership(where)
        }
        if commit:
            try:
                consumer.commit(commit, timeout_ms=5_000)
            except KafkaError as error:
                self.metrics.commit_failures.inc()
                log.warning("offsets not committed at close: %s", describe(error))

    # --- the flight (its own thread) ----------------------------------------------------------

    def _write(self, batch: _Batch) -> None:
        """Steps 1 and 2 of the module's docstring."""
        # Which life of the log: one that was made anew counts its offsets from 0 again.
        epoch = 0 if batch.log is None else self._writer.epoch(rows.JOB_STATES, batch.log)
        tables, failed = rows.build(batch.items, epoch)
        refused = [*batch.refused, *(Refused(record, why) for record, why in failed)]
        refused += self._writer.write(tables, batch.identity.token())
        if refused:
            self._post(refused)

    def _post(self, refused: Sequence[Refused]) -> None:
        """Post dead letters and wait until the broker has them, trying until it has."""
        waiting = []
        for record, why in refused:
            if record.topic == rows.DEAD_LETTERS and _is_ours(record):
                # A letter of this sink that this sink cannot store would write itself a letter,
                # and so on. It stays in its topic; here it is said aloud.
                self.metrics.unstorable.inc()
                log.error("dead letter %s:%d:%d cannot be stored: %s: %s", record.topic,
                          record.partition, record.offset, why.reason, why.error)  # fmt: skip
                continue
            waiting.append((record, why))
        now = int(time.time() * 1000)
        attempt = 0
        while waiting:
            try:
                self._send([dead_letter("sink", record, why, now) for record, why in waiting])
                break
            except KafkaError as error:
                # All of them again: a letter that comes twice has the same id.
                attempt += 1
                self._broker_failed(error)
                log.warning("dead letters not posted, trying on: %s", describe(error))
                if self._stopping.wait(self.config.backoff.delay(attempt)):
                    raise Abandoned(describe(error)) from error
        for number, (record, why) in enumerate(waiting):
            self.metrics.dead_letters.labels(why.reason.value).inc()
            if number < _LETTERS_LOGGED:
                log.warning("dead letter for %s:%d:%d: %s: %s", record.topic, record.partition,
                            record.offset, why.reason, why.error)  # fmt: skip
        if len(waiting) > _LETTERS_LOGGED:
            log.warning("and %d more dead letters", len(waiting) - _LETTERS_LOGGED)

    def _send(self, letters: Sequence[DeadLetter]) -> None:
        """Post letters and wait for all acknowledgements. Raises KafkaError."""
        if self._producer is None:
            options = {
                "acks": "all",
                "client_id": f"{self.config.group_id}-letters",
                "metrics_enabled": False,
                "max_request_size": MAX_DEAD_LETTER_BYTES,
                # kafka-python 3.0: one record that the broker refuses as too large puts an
                # idempotent producer into a fatal state, and every later record fails with it.
                # Letters have deterministic ids, so a repeated one does no harm.
                "enable_idempotence": False,
            }
            known = known_options(self.config.kafka, KafkaProducer, KafkaConsumer)
            self._producer = KafkaProducer(**{**options, **known})

        def post(letter: DeadLetter) -> Any:
            value = letter_bytes(letter)
            return self._producer.send(rows.DEAD_LETTERS, key=letter.key.encode(), value=value)

        posted = [(letter, post(letter)) for letter in letters]
        for letter, future in posted:
            try:
                future.get(timeout=30)
            except MessageSizeTooLargeError:
                # A topic that was not set up by the catalogue takes less. The record is then named
                # and not carried: it still lies in its own topic, at the offset the letter tells.
                post(without_value(letter)).get(timeout=30)

    # --- observation --------------------------------------------------------------------------

    def _observe(self, consumer: Any, now: float) -> None:
        self.metrics.oldest_unflushed.set(self._oldest_unflushed(now))
        if self._skipped:
            self._look_into(consumer)
        owned = self._owned.partitions()
        if owned and now - self._asked_ends >= _ASK_ENDS_S:
            self._asked_ends = now
            try:
                self._ends = dict(
                    consumer.end_offsets(list(owned), timeout_ms=_ASK_ENDS_TIMEOUT_MS)
                )
            except KafkaError as error:
                self._broker_failed(error)
            else:
                self._broker_trouble = None
        if self._absent is not None:
            # Whoever has our partitions knows; we do not, and unknown is not zero.
            self._lag = {}
            return
        lag = dict.fromkeys(self.config.topics, 0)
        unknown = set()
        for where in owned:
            ownership = self._owned.ownership(where)
            position, _ = self._positions.get(where, (0, 0))
            done, under = self._acknowledged.get(where, (0, 0))
            if under != ownership or where not in self._ends:
                unknown.add(where.topic)
                continue
            end = max(position, self._ends[where])
            lag[where.topic] = lag.get(where.topic, 0) + max(0, end - done)
        lag = {topic: number for topic, number in lag.items() if topic not in unknown}
        self._lag = lag
        for topic, number in lag.items():
            self.metrics.lag.labels(topic).set(number)

    def _oldest_unflushed(self, now: float) -> float:
        flight = self._flight
        first = flight.batch.first if flight is not None else self._batch.first
        return 0.0 if first is None else max(0.0, now - first)

    def _new_batch(self) -> _Batch:
        return _Batch(BatchIdentity(self._salt))


def _is_ours(record: SourceRecord) -> bool:
    """Whether a record is a letter of this sink. Looked for in the bytes, since what makes the
    letter unstorable may make it unreadable too."""
    return b'"stage":"sink"' in (record.value or b"")
