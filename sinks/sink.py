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

Who does what: ``membership.py`` (the group, which partitions are ours), ``batch.py`` (decoding,
the flight), ``rows.py`` and ``writer.py`` (ClickHouse, with its retries), ``letters.py`` (what
cannot be stored), ``progress.py`` (offsets, lag, what was lost), ``health.py`` and ``http.py``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from kafka.errors import KafkaError

from sinks import rows, schema
from sinks.batch import Batch, Flight
from sinks.config import SinkConfig
from sinks.consumer import learn_topics, make_consumer
from sinks.health import BrokerOutage, SinkStatus
from sinks.letters import Letters
from sinks.membership import Membership, consumer_options
from sinks.metrics import FlushReason, SinkMetrics
from sinks.progress import Progress
from sinks.writer import Abandoned, BatchIdentity, Refused, Writer, describe, with_timeouts
from topics.envelope import LATEST_MS

log = logging.getLogger(__name__)

#: How often lag and gauges are refreshed.
_OBSERVE_S: Final = 1.0
#: How long to wait after the broker has refused to be asked for records.
_BROKER_PAUSE_S: Final = 0.2
#: How long one poll waits while the group is joined. A join that ends between two polls is lost.
_JOIN_PATIENCE_S: Final = 1.0
#: The loop counts as alive when its last turn is younger than this. A turn takes milliseconds; the
#: longest honest one waits for the group coordinator.
_ALIVE_S: Final = 60.0
#: How long a full batch waits for the flight before it before partitions are paused. Pausing costs
#: little, but a backlog alternates between the two states several times a second.
_PATIENCE_S: Final = 0.2


class Sink:
    """Consumes the topics and writes them to ClickHouse until told to stop."""

    def __init__(self, config: SinkConfig, metrics: SinkMetrics | None = None) -> None:
        self.config = config
        self.metrics = metrics if metrics is not None else SinkMetrics()
        self._writer = Writer(config.clickhouse_url, self.metrics, config.backoff)
        # A changed schema makes other rows of the same records, so it makes other tokens.
        self._salt = f"{len(schema.migrations())}:{config.token_salt}"
        self._stopping = threading.Event()
        self._broker = BrokerOutage()
        self._members = Membership(config)
        self._progress = Progress(config.topics, self._members.owned, self.metrics, self._broker)
        self._letters = Letters(config, self.metrics, self._broker, self._stopping)
        self._batch = self._new_batch()
        self._flight: Flight | None = None
        self._last_start = 0.0
        self._last_flush: float | None = None
        self._observed = 0.0
        self._turned = time.monotonic()
        self._paused = False
        self._preparing: str | None = "starting"

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
                while not stop.is_set() and not self._members.lost():
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
            self._letters.close()
            if self._flight is None:
                self._writer.close()

    def status(self) -> SinkStatus:
        """A snapshot. Safe from any thread."""
        now = time.monotonic()
        trouble, broker = self._writer.trouble, self._broker.now
        absent = self._members.absent
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
        elif not self._members.owned.joined:
            reason = "waiting for the consumer group"
        elif absent is not None:
            since, text = absent
            reason = f"{text} for {now - since:.0f} s"
        elif broker is not None:
            since, text = broker
            reason = f"Kafka failing for {now - since:.0f} s: {text}"
        return SinkStatus(
            ready=not reason,
            reason=reason,
            alive=now - self._turned < _ALIVE_S
            and not (self._members.hopeless(now) and self._preparing is None),
            partitions=len(self._members.owned.partitions()),
            lag=self._progress.lag,
            oldest_unflushed_s=self._oldest_unflushed(now),
            last_flush=self._last_flush,
            paused=self._paused,
            holes=self._progress.holes,
        )

    # --- start --------------------------------------------------------------------------------

    def _prepare(self, stop: threading.Event) -> bool:
        """Bring the schema up to date, waiting for ClickHouse. False when stopped meanwhile."""
        began, attempt = time.monotonic(), 0
        while not stop.is_set():
            self._turned = time.monotonic()
            try:
                # A server that takes the connection and says nothing is not waited for for long.
                url, cluster = with_timeouts(self.config.clickhouse_url), self.config.cluster
                if self.config.migrate:
                    report = schema.apply(url, cluster=cluster)
                    log.info("schema %s: applied %s", report.database, report.applied or "nothing")
                    missing = 0
                else:
                    missing = len(schema.pending(url, cluster))
                if not missing:
                    return self._prepared()
                waiting_for = f"{missing} migrations are to be applied"
            except schema.SchemaError:
                raise
            except schema.NodesAway as error:
                waiting_for = str(error)
                if error.enough:
                    # Each shard has another node. Whether this one has the tables of this release
                    # when it is back, `schema show` and `doctor` tell.
                    log.warning("%s", waiting_for)
                    return self._prepared()
            except Exception as error:
                waiting_for = describe(error)
            attempt += 1
            waited = time.monotonic() - began
            self._preparing = f"ClickHouse not ready for {waited:.0f} s: {waiting_for}"
            if attempt == 1:
                log.warning("%s", self._preparing)
            stop.wait(self.config.backoff.delay(attempt))
        return False

    def _prepared(self) -> bool:
        self._preparing = None
        self.metrics.clickhouse_up.set(1)
        return True

    def _consumer(self, stop: threading.Event) -> Any:
        """A consumer, waiting for the broker. None when stopped meanwhile."""
        began, attempt = time.monotonic(), 0
        options = consumer_options(self.config)
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
        self._members.begin()
        consumer.subscribe(topics=list(self.config.topics), listener=self._members.owned)
        while not stop.is_set():
            self._turned = time.monotonic()
            try:
                if learn_topics(consumer, _JOIN_PATIENCE_S):
                    return
            except KafkaError as error:
                if not error.retriable:
                    raise
                self._broker.failed(error)
                stop.wait(_BROKER_PAUSE_S)

    def _leave(self, consumer: Any) -> None:
        absent = self._members.absent
        assert absent is not None
        log.error("%s for %.0f s: joining the group anew", absent[1], self._members.rejoin_s)
        self.metrics.rejoins.inc()
        self._members.owned.leave()
        self._progress.forget_positions()
        consumer.close(autocommit=False, timeout_ms=2_000)

    # --- the loop -----------------------------------------------------------------------------

    def _turn(self, consumer: Any) -> None:
        now = self._turned = time.monotonic()
        patience = self._patience(now) if self._members.absent is None else _JOIN_PATIENCE_S
        fetched = self._poll(consumer, patience)
        now = time.monotonic()
        self._members.attend(consumer, now)
        self._progress.take(consumer, fetched, self._batch, now)
        self._land(consumer)
        due = self._due(now)
        if due is not None and self._flight is None:
            self._take_off(due)
            due = None
        self._brake(consumer, full=due == "size")
        if now - self._observed >= _OBSERVE_S:
            self._observed = now
            self.metrics.oldest_unflushed.set(self._oldest_unflushed(now))
            self._progress.observe(consumer, now, member=self._members.absent is None)

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
            self._broker.failed(error)
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
        self._flight = Flight(batch, self._write)

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
        commit = self._progress.acknowledge(batch.offsets)
        if commit:
            consumer.commit_async(commit, callback=self._committed)

    def _committed(self, offsets: Any, response: Any) -> None:
        """Called on the client's I/O thread. A commit that failed is made good by the next one."""
        if isinstance(response, Exception):
            self.metrics.commit_failures.inc()
            self._broker.failed(response)
            log.warning("offsets not committed: %s", describe(response))
        else:
            self._broker.over()

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
        commit = self._progress.acknowledged()
        if commit:
            try:
                consumer.commit(commit, timeout_ms=5_000)
            except KafkaError as error:
                self.metrics.commit_failures.inc()
                log.warning("offsets not committed at close: %s", describe(error))

    # --- the flight (its own thread) ----------------------------------------------------------

    def _write(self, batch: Batch) -> None:
        """Steps 1 and 2 of the module's docstring."""
        # Which life of the log: one that was made anew counts its offsets from 0 again.
        epochs = {topic: self._writer.epoch(topic, log) for topic, log in batch.logs.items()}
        tables, failed = rows.build(batch.items, epochs)
        refused = [*batch.refused, *(Refused(record, why) for record, why in failed)]
        refused += self._writer.write(tables, batch.identity.token())
        if refused:
            self._letters.post(refused)

    def _oldest_unflushed(self, now: float) -> float:
        flight = self._flight
        first = flight.batch.first if flight is not None else self._batch.first
        return 0.0 if first is None else max(0.0, now - first)

    def _new_batch(self) -> Batch:
        return Batch(BatchIdentity(self._salt))
