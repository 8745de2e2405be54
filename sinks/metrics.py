"""What the sink tells Prometheus. Every metric is declared here, once, with type and labels.

Labels are bounded (law L8): table, topic and the closed vocabularies below. Every labelled counter
exists at 0 from the start, so that a rate over it has a first value and an alert a series to watch.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sinks.rows import TABLES, TOPICS
from topics.models import Reason

#: Why a flush was started.
FlushReason = Literal["size", "latency", "urgent", "close"]

#: Why an insert was tried again.
#: ``network`` connection refused, lost or out of step; ``timeout`` no answer in time;
#: ``overload`` the server asks to wait (memory, too many parts, too many queries);
#: ``refused`` the server says no for a reason only an operator can remove (rights, missing table,
#: read-only, disk full) or one we do not know; ``systemic`` so many rows are refused that the
#: schema is at fault, not the rows.
RetryReason = Literal["network", "timeout", "overload", "refused", "systemic"]

FLUSH_REASONS: Final[tuple[FlushReason, ...]] = get_args(FlushReason)
RETRY_REASONS: Final[tuple[RetryReason, ...]] = get_args(RetryReason)


class SinkMetrics:
    """The sink's metrics in one registry. ``registry`` defaults to one of its own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"runnerstream_sink_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"runnerstream_sink_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(
                f"runnerstream_sink_{name}", text, registry=self.registry, buckets=buckets
            )

        #: Counter by topic: records consumed.
        self.records = counter("records", "Records consumed", ("topic",))
        #: Counter by table: rows acknowledged by ClickHouse (retries not counted twice).
        self.rows = counter("rows", "Rows acknowledged by ClickHouse", ("table",))
        #: Counter by table: inserts acknowledged by ClickHouse.
        self.inserts = counter("inserts", "Inserts acknowledged by ClickHouse", ("table",))
        #: Counter by reason (RetryReason): inserts that failed and were or will be tried again.
        self.retries = counter("retries", "Inserts tried again, by cause", ("reason",))
        #: Counter by reason (FlushReason): batches handed to the writer.
        self.flushes = counter("flushes", "Batches written, by what made them due", ("reason",))
        #: Counter by reason (topics.models.Reason): records this sink could not store.
        self.dead_letters = counter(
            "dead_letters", "Records set aside as dead letters", ("reason",)
        )
        #: Counter: letters about letters, which are logged instead of posted (see sink.py).
        self.unstorable = counter("unstorable_letters", "Dead letters that could not be stored")
        #: Counter: offset commits that failed. The records are read again at worst.
        self.commit_failures = counter("commit_failures", "Offset commits that failed")
        #: Counter by topic: records that the broker had removed before they were read.
        self.lost_records = counter(
            "lost_records", "Records removed by retention before they were read", ("topic",)
        )
        #: Counter: times the group was joined anew because we had been no member for too long.
        self.rejoins = counter("rejoins", "Times the consumer group was joined anew")
        #: Counter by table: inserts cut in two because the server had no room for them.
        self.splits = counter("splits", "Inserts cut in two for want of memory", ("table",))
        #: Counter: times partitions were paused because ClickHouse did not keep up.
        self.pauses = counter("pauses", "Times consumption was paused for ClickHouse")
        #: Histogram: records per batch.
        self.batch_records = histogram(
            "batch_records", "Records per batch", (1, 10, 50, 100, 500, 1000, 2500, 5000, 10000)
        )
        #: Histogram, seconds: one insert, as long as the client waited for the acknowledgement.
        self.insert_seconds = histogram(
            "insert_seconds",
            "Duration of an acknowledged insert",
            (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        #: Histogram, seconds: from the broker's time of the oldest record of a batch to its
        #: acknowledgement by ClickHouse.
        self.visible_seconds = histogram(
            "visible_seconds",
            "Broker time of the oldest record of a batch to acknowledged by ClickHouse",
            (0.05, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30, 60, 300, 1800),
        )
        #: Gauge, seconds: how long the oldest record waits that is consumed and not acknowledged.
        self.oldest_unflushed = gauge(
            "oldest_unflushed_seconds", "Wait of the oldest record not acknowledged"
        )
        #: Gauge by topic, records: log end minus acknowledged, over the owned partitions.
        self.lag = gauge(
            "lag_records", "Records not yet acknowledged by ClickHouse; NaN: not known", ("topic",)
        )
        #: Gauge: 1 while inserts succeed, 0 from the first failed attempt to the next success.
        self.clickhouse_up = gauge("clickhouse_up", "1 while ClickHouse takes our inserts")

        for table in TABLES:
            self.rows.labels(table.name)
            self.inserts.labels(table.name)
            self.splits.labels(table.name)
        for topic in TOPICS:
            self.records.labels(topic)
            self.lag.labels(topic)
            self.lost_records.labels(topic)
        for retry in RETRY_REASONS:
            self.retries.labels(retry)
        for flush in FLUSH_REASONS:
            self.flushes.labels(flush)
        for reason in Reason:
            self.dead_letters.labels(reason.value)
