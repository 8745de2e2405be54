"""Every metric of the worker, with type, unit, labels and meaning.

Labels are enums and ``fleet`` only; fleets beyond ``max_fleet_labels`` share ``other``. Ids live
in ClickHouse. A labelled child exists, at 0, from the start where its labels are an enum, and
from the first sight of a fleet otherwise; but how long claims took to start is exported only for
fleets whose jobs are claimed.

**Several workers.** A worker counts and gauges only the partitions it owns, and a partition has
one owner, so nothing is counted twice: ``sum by (fleet)`` over workers for counters, histograms
and ``runnerstream_jobs``; ``max by (fleet)`` for ``runnerstream_oldest_seconds``. A batch that is
repeated after a crash counts its records again in ``records_total`` (work done) but not its
transitions and timings (a job already knows its facts).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.agents.transaction import Done
from pipeline.effects import Note
from pipeline.ledger import LIVE
from pipeline.providers.base import ODD_REASONS
from pipeline.providers.registry import PROVIDERS
from topics.catalogue import JOBS, LIFECYCLE, WEBHOOKS
from topics.models import Conclusion, Family, LifecycleKind, Reason, Status

#: 50 ms to 24 h: GitHub fails a job that waited for a self-hosted runner for 24 h.
QUEUE_BUCKETS: Final = (
    0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200,
    86400,
)  # fmt: skip
#: 1 s to 5 d: the longest a self-hosted job may run.
RUN_BUCKETS: Final = (
    1, 5, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400,
    172800, 432000,
)  # fmt: skip
LAG_BUCKETS: Final = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 3600, 14400, 86400, 259200)
BATCH_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BATCH_RECORDS: Final = (1, 5, 10, 50, 100, 250, 500, 1000, 2000, 5000, 10000)

OTHER: Final = "other"

#: Fleets with labels of their own unless told. Some 90 series each: 0.8 MB of text.
MAX_FLEETS: Final = 100
#: Samples written, and fleets looked at, before the event loop is let go.
SAMPLES_SLICE: Final = 500

#: (fleet, live status, jobs, age of the oldest in ms or None) of each.
JobsSource = Callable[[], Iterator[tuple[str, str, int, int | None]]]


class Metrics:
    """The worker's metrics, in a registry of their own."""

    def __init__(self, max_fleets: int = MAX_FLEETS) -> None:
        self.registry = registry = CollectorRegistry()
        self._fleets: set[str] = set()
        self._max_fleets = max_fleets
        self._timings: dict[tuple[str, str], Histogram] = {}
        self._jobs: _Jobs | None = None
        p = "runnerstream_"
        self.webhooks = Counter(
            p + "webhooks", "Webhook deliveries understood.", ["event"], registry=registry
        )
        self.ignored_webhooks = Counter(
            p + "webhooks_ignored",
            "Authentic deliveries that say nothing about jobs: GitHub's ping, or another event.",
            ["event"],
            registry=registry,
        )
        self.odd_fields = Counter(
            p + "odd_fields",
            "Optional fields with a value that cannot be, treated as missing. The event counts.",
            ["field", "reason"],
            registry=registry,
        )
        self.lifecycle_events = Counter(
            p + "lifecycle_events", "Lifecycle events understood.", ["kind"], registry=registry
        )
        self.webhook_lag = Histogram(
            p + "webhook_lag_seconds",
            "From the event at the provider to its arrival here.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self.transitions = Counter(
            p + "job_transitions", "Jobs that entered a status.", ["fleet", "status"],
            registry=registry,
        )  # fmt: skip
        self.completions = Counter(
            p + "jobs_completed", "Jobs that completed.", ["fleet", "conclusion"],
            registry=registry,
        )  # fmt: skip
        self.timings = {
            family.value: Histogram(
                f"{p}job_{family.value}_seconds",
                {
                    Family.QUEUE: "Queued to started, without approval gates.",
                    Family.CLAIM_TO_START: "Claimed by a runner to started.",
                    Family.RUN: "Started to completed.",
                    Family.TOTAL: "Queued to completed.",
                }[family],
                ["fleet"],
                buckets=QUEUE_BUCKETS
                if family in (Family.QUEUE, Family.CLAIM_TO_START)
                else RUN_BUCKETS,
                registry=registry,
            )
            for family in Family
        }
        self.revised_timings = Counter(
            p + "timings_revised",
            "Timings that a later fact changed after they were observed.",
            ["family"],
            registry=registry,
        )
        self.missing_timings = Counter(
            p + "timings_missing",
            "Timings a completed job does not have, by reason.",
            ["family", "reason"],
            registry=registry,
        )
        self.clamped_timings = Counter(
            p + "timings_clamped",
            "Timings of completed jobs set to 0 because whole-second clocks crossed.",
            ["family"],
            registry=registry,
        )
        self.late_samples = Counter(
            p + "late_samples",
            "Samples that came after their window had closed. They are in ClickHouse.",
            ["family"],
            registry=registry,
        )
        self.duplicate_facts = Counter(
            p + "duplicate_facts", "Facts that were known already.", registry=registry
        )
        self.out_of_order_facts = Counter(
            p + "out_of_order_facts",
            "Facts older than the status their job had reached.",
            registry=registry,
        )
        self.crowded_facts = Counter(
            p + "crowded_facts",
            "Facts of jobs that know 1,000 already: merged, their number is an estimate.",
            registry=registry,
        )
        self.future_times = Counter(
            p + "future_times",
            "Facts with a time that lies more than a day ahead: not believed, dated by arrival.",
            registry=registry,
        )
        self.refused_ticks = Counter(
            p + "ticks_refused",
            "Ticks that did not move the clock of their partition: too far ahead, or behind it.",
            ["reason"],
            registry=registry,
        )
        self.healed_clocks = Counter(
            p + "clocks_healed",
            "Partition clocks that stood in the future and were taken back.",
            registry=registry,
        )
        self.expired_facts = Counter(
            p + "expired_facts", "Facts about jobs forgotten long ago.", registry=registry
        )
        self.expired_jobs = Counter(
            p + "jobs_expired", "Jobs removed from the table.", ["status"], registry=registry
        )
        self.closed_windows = Counter(
            p + "windows_closed", "Windows that closed.", ["size_s"], registry=registry
        )
        self.offset_gaps = Counter(
            p + "offset_gaps",
            "Times that records were removed from a topic before they were read.",
            registry=registry,
        )
        self.records_missed = Counter(
            p + "records_missed",
            "Records that were removed from a topic before they were read.",
            ["topic"],
            registry=registry,
        )
        self.dead_letters = Counter(
            p + "dead_letters", "Records put aside.", ["stage", "reason"], registry=registry
        )
        self.records = Counter(p + "records", "Records handled.", ["stage"], registry=registry)
        self.batch_records = Histogram(
            p + "batch_records", "Records in a transaction.", ["stage"],
            buckets=BATCH_RECORDS, registry=registry,
        )  # fmt: skip
        self.batch_seconds = Histogram(
            p + "batch_seconds", "Time of a transaction, all steps, two at a time.", ["stage"],
            buckets=BATCH_SECONDS, registry=registry,
        )  # fmt: skip
        self.fold_seconds = Histogram(
            p + "fold_seconds",
            "Time of steps 3 and 4: decode and fold, while the transaction before is written.",
            ["stage"],
            buckets=BATCH_SECONDS, registry=registry,
        )  # fmt: skip
        self.ticks = Counter(p + "ticks", "Ticks sent by the clock.", registry=registry)
        self.tick_lag = Gauge(
            p + "tick_lag_seconds",
            "Age of the oldest latest tick over owned partitions: how far behind the fold is.",
            registry=registry,
        )
        self.consumer_lag = Gauge(
            p + "consumer_lag_records",
            "Records that the worker's group has not done yet, owned partitions.",
            ["topic"],
            registry=registry,
        )
        self.ready = Gauge(p + "ready", "1 when /readyz says ready.", registry=registry)
        self._prepare()

    def _prepare(self) -> None:
        odd = {"envelope", "occurred_at"}
        for provider in PROVIDERS.values():
            odd.update(provider.odd_fields)
            for event in provider.events:
                self.webhooks.labels(event)
        for told in ("future", "past"):
            self.refused_ticks.labels(told)
        for event in ("ping", "other"):
            self.ignored_webhooks.labels(event)
        for name in sorted(odd):
            for reason in ODD_REASONS:
                self.odd_fields.labels(name, reason)
        for kind in LifecycleKind:
            self.lifecycle_events.labels(kind.value)
        for family in Family:
            self.revised_timings.labels(family.value)
            self.clamped_timings.labels(family.value)
            self.late_samples.labels(family.value)
            for reason in MISSING_REASONS:
                self.missing_timings.labels(family.value, reason)
        self.late_samples.labels("conclusion")
        for status in Status:
            self.expired_jobs.labels(status.value)
        for topic in (WEBHOOKS, LIFECYCLE, JOBS):
            self.records_missed.labels(topic)
        for size_s in ("60", "300", "3600"):
            self.closed_windows.labels(size_s)
        for stage in ("normalise", "fold"):
            self.records.labels(stage)
            self.batch_records.labels(stage)
            self.batch_seconds.labels(stage)
            self.fold_seconds.labels(stage)
            for why in Reason:
                self.dead_letters.labels(stage, why.value)

    def fleet(self, name: str) -> str:
        """The label of a fleet: its name, or ``other`` once there are too many."""
        if name in self._fleets:
            return name
        if len(self._fleets) >= self._max_fleets:
            return OTHER
        self._fleets.add(name)
        for family, histogram in self.timings.items():
            if family != Family.CLAIM_TO_START:
                histogram.labels(name)
        for status in Status:
            self.transitions.labels(name, status.value)
        for conclusion in Conclusion:
            self.completions.labels(name, conclusion.value)
        return name

    def note(self, notes: Iterable[Note]) -> None:
        """Count what a durable batch noted."""
        for note in notes:
            name, labels, value = note.name, note.labels, note.value
            if name == "timings":
                # Finding the child of a label costs more than the observation.
                family, fleet = labels[0], self.fleet(labels[1])
                child = self._timings.get((family, fleet))
                if child is None:
                    child = self.timings[family].labels(fleet)
                    self._timings[family, fleet] = child
                child.observe(value)
            elif name in ("transitions", "completions"):
                fleet = self.fleet(labels[0])
                counter: Counter = getattr(self, name)
                counter.labels(fleet, labels[1]).inc(value)
                if labels[1] == Status.CLAIMED:
                    self.timings[Family.CLAIM_TO_START].labels(fleet)
            elif name == "webhook_lag":
                self.webhook_lag.observe(value)
            else:
                counter = getattr(self, name)
                (counter.labels(*labels) if labels else counter).inc(value)

    def done(self, done: Done) -> None:
        """Count a finished transaction."""
        self.records.labels(done.stage).inc(done.records)
        self.batch_records.labels(done.stage).observe(done.records)
        self.batch_seconds.labels(done.stage).observe(done.seconds)
        self.fold_seconds.labels(done.stage).observe(done.fold_seconds)

    def missed(self, topic: str, records: int) -> None:
        """Count records that were removed before they were read."""
        self.offset_gaps.inc()
        self.records_missed.labels(topic).inc(records)

    def watch_jobs(self, source: JobsSource) -> None:
        """Export depth and oldest age from ``source`` at each scrape."""
        self._jobs = _Jobs(self, source)
        self.registry.register(self._jobs)

    async def exposition(self, pause: Callable[[], Awaitable[None]]) -> bytes:
        """Everything in Prometheus' text format, made in slices with a ``pause`` between them.

        Without the time at which each child was made: a fifth of the text that nobody reads.
        """
        if self._jobs is not None:
            await self._jobs.look(pause)
        text = []
        for metric in self.registry.collect():
            samples = [s for s in metric.samples if not s.name.endswith("_created")]
            for start in range(0, max(1, len(samples)), SAMPLES_SLICE):
                await pause()
                some = Metric(metric.name, metric.documentation, metric.type, metric.unit)
                some.samples = samples[start : start + SAMPLES_SLICE]
                said = generate_latest(_Only(some))
                if start:
                    # Name and type stand above the first slice.
                    lines = said.splitlines(keepends=True)
                    said = b"".join(line for line in lines if not line.startswith(b"#"))
                text.append(said)
        return b"".join(text)


class _Only(Collector):
    """One metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


MISSING_REASONS: Final = (
    "not_started", "pending", "no_queued", "no_started", "no_completed", "no_claim",
    "gate_unknown", "negative", "copied",
)  # fmt: skip


class _Jobs(Collector):
    """Depth and oldest age by fleet and status."""

    def __init__(self, metrics: Metrics, source: JobsSource) -> None:
        self._metrics = metrics
        self._source = source
        self._seen: dict[tuple[str, str], tuple[int, float]] | None = None

    async def look(self, pause: Callable[[], Awaitable[None]]) -> None:
        """Take what :meth:`collect` tells from now on."""
        seen: dict[tuple[str, str], tuple[int, float]] = {}
        for number, one in enumerate(self._source()):
            if number % SAMPLES_SLICE == 0:
                await pause()
            self._add(seen, *one)
        self._seen = seen

    def _add(
        self,
        seen: dict[tuple[str, str], tuple[int, float]],
        fleet: str,
        status: str,
        count: int,
        age_ms: int | None,
    ) -> None:
        label = self._metrics.fleet(fleet)
        if (label, status) not in seen:
            for known in LIVE:
                seen.setdefault((label, known), (0, 0.0))
        jobs, oldest = seen[label, status]
        seen[label, status] = (jobs + count, max(oldest, (age_ms or 0) / 1000))

    def collect(self) -> Iterable[Metric]:
        seen = self._seen
        if seen is None:
            seen = {}
            for one in self._source():
                self._add(seen, *one)
        depth = GaugeMetricFamily(
            "runnerstream_jobs",
            "Live jobs by status, in this worker's partitions. Sum over workers.",
            labels=["fleet", "status"],
        )
        ages = GaugeMetricFamily(
            "runnerstream_oldest_seconds",
            "Age of the job longest in the status, 0 when there is none. Max over workers.",
            labels=["fleet", "status"],
        )
        for where, (count, oldest) in seen.items():
            depth.add_metric(where, count)
            ages.add_metric(where, oldest)
        return [depth, ages]
