"""The worker's metrics for Prometheus: the series of :mod:`pipeline.metrics`, and what they count.

A labelled series exists, at 0, from the start where its labels are closed lists, and from the
first sight of a fleet otherwise; but how long claims took to start is exported only for fleets
whose jobs are claimed. Fleets beyond ``max_fleets`` share ``other``.

**Several workers.** A worker counts and gauges only the partitions it owns, and a partition has
one owner, so nothing is counted twice: ``sum by (fleet)`` over workers for counters, histograms
and ``runnerstream_jobs``; ``max by (fleet)`` for ``runnerstream_oldest_seconds`` and for what
recovery may do. A batch that is
repeated after a crash counts its records again in ``records_total`` (work done) but not its
transitions and timings (a job already knows its facts).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import Any, Final, Protocol, cast

import prometheus_client as prometheus
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline import metrics
from pipeline.agents.transaction import Done
from pipeline.effects import Note
from pipeline.metrics import PREFIX, Counter, Gauge, Histogram, L, Label, Source
from pipeline.providers.base import ODD_REASONS
from pipeline.providers.registry import PROVIDERS
from topics.models import Status
from topics.recovery import BreakerState, Mode

OTHER: Final = "other"

#: Fleets with labels of their own unless told. Some 90 series each: 0.8 MB of text.
MAX_FLEETS: Final = 100
#: Samples written, and fleets looked at, before the event loop is let go.
SAMPLES_SLICE: Final = 500

#: (fleet, live status, jobs, age of the oldest in ms or None) of each.
JobsSource = Callable[[], Iterator[tuple[str, str, int, int | None]]]

#: (kind of stall, jobs, age of the oldest in ms) of each kind and partition. A partition that is
#: not loaded has none, and where none is loaded nothing is exported.
StallsSource = Callable[[], Iterator[tuple[str, int, int]]]

#: (fleet, breaker, mode) of each.
LevelsSource = Callable[[], Iterator[tuple[str, BreakerState, Mode]]]

#: What a series is changed by: its ``inc``, ``observe`` or ``set``.
_Change = Callable[[float], object]
#: Read from the ledgers at each scrape, instead of being changed.
_LOOKED_UP: Final = frozenset(
    (
        metrics.JOBS,
        metrics.OLDEST,
        metrics.STALLS_OPEN,
        metrics.STALLS_OLDEST,
        metrics.RECOVERY_BREAKER_OPEN,
        metrics.RECOVERY_MODE,
    )
)
_CHANGES: Final = {"counter": "inc", "histogram": "observe", "gauge": "set"}


class Beside(Protocol):
    """Other series that follow from these: of :class:`pipeline.compat.page.Page`."""

    def changes(self, metric: metrics.Metric[Any], labels: tuple[str, ...]) -> Sequence[_Change]:
        """What is to be changed together with a series, which is being made."""
        ...


class Exporter:
    """The worker's metrics, in a registry of their own."""

    def __init__(self, max_fleets: int = MAX_FLEETS, beside: Beside | None = None) -> None:
        """``beside`` is changed together with these."""
        self.registry = CollectorRegistry()
        self._beside = beside
        self._fleets: set[str] = set()
        self._max_fleets = max_fleets
        self._jobs: _Jobs | None = None
        #: What looks up gauges at each scrape.
        self._lookups: list[Collector] = []
        self._collectors = {
            metric: _collector(metric, self.registry)
            for metric in metrics.CATALOGUE
            if metric not in _LOOKED_UP
        }
        #: Finding the series of a label costs more than the observation.
        self._series: dict[tuple[metrics.Metric[Any], tuple[str, ...]], _Change] = {}
        for metric in self._collectors:
            if metric.together:
                for labels in product(*map(_values, metric.shown_labels)):
                    if labels:
                        self._collectors[metric].labels(*labels)
            elif metric.in_advance and not metric.by_fleet:
                self._prepare(metric, *map(_values, metric.labels))

    def _prepare(self, metric: metrics.Metric[Any], *values: tuple[str, ...]) -> None:
        """Make the series of all combinations."""
        for labels in product(*values):
            self._make(metric, labels)

    def _make(self, metric: metrics.Metric[Any], labels: tuple[str, ...]) -> _Change:
        collector, shown = self._collectors[metric], labels[metric.together :]
        series = collector.labels(*shown) if shown else collector
        change = cast(_Change, getattr(series, _CHANGES[metric.kind]))
        if self._beside is not None:
            also = self._beside.changes(metric, labels)
            if also:
                change = _together(change, also)
        self._series[metric, labels] = change
        return change

    def fleet(self, name: str) -> str:
        """The label of a fleet: its name, or ``other`` once there are too many."""
        if name in self._fleets:
            return name
        if len(self._fleets) >= self._max_fleets:
            return OTHER
        self._fleets.add(name)
        for metric in self._collectors:
            if (metric.by_fleet or metric.together) and not metric.only_claimed:
                self._prepare(metric, (name,), *map(_values, metric.labels[1:]))
        return name

    def note(self, notes: Iterable[Note[Any]]) -> None:
        """Count what a durable batch noted."""
        for note in notes:
            self.count(note.metric, note.labels, note.value)

    def count(self, metric: Counter[L] | Histogram[L], labels: L, value: float = 1.0) -> None:
        """Add to a counter, or to a distribution."""
        # Fleets beyond the limit have no series under their own names.
        change = self._series.get((metric, labels))
        if change is None:
            where: tuple[str, ...] = labels
            if metric.by_fleet or metric.together:
                where = (self.fleet(labels[0]), *labels[1:])
            change = self._series.get((metric, where)) or self._make(metric, where)
        change(value)
        if metric is metrics.TRANSITIONS and labels[1] == Status.CLAIMED:
            self._claims(self.fleet(labels[0]))

    def _claims(self, fleet: str) -> None:
        """A fleet has claims."""
        for metric in self._collectors:
            if metric.only_claimed and (metric, (fleet,)) not in self._series:
                self._make(metric, (fleet,))

    def set(self, metric: Gauge[L], labels: L, value: float) -> None:
        """Say how something is now."""
        change = self._series.get((metric, labels))
        if change is None:
            change = self._make(metric, labels)
        change(value)

    def done(self, done: Done) -> None:
        """Count a finished transaction."""
        stage = (done.stage,)
        self.count(metrics.RECORDS, stage, done.records)
        self.count(metrics.BATCH_SIZE, stage, done.records)
        self.count(metrics.BATCH_TIME, stage, done.seconds)
        self.count(metrics.FOLD_TIME, stage, done.fold_seconds)

    def missed(self, topic: str, records: int) -> None:
        """Count records that were removed before they were read."""
        self.count(metrics.OFFSET_GAPS, ())
        self.count(metrics.RECORDS_MISSED, (topic,), records)

    def watch_jobs(self, source: JobsSource) -> None:
        """Export depth and oldest age from ``source`` at each scrape."""
        self._jobs = _Jobs(self, source)
        self._look_up(self._jobs)

    def watch_stalls(self, source: StallsSource) -> None:
        """Export open stalls and the oldest of each kind from ``source`` at each scrape."""
        self._look_up(_Stalls(source))

    def watch_fleets(self, source: LevelsSource) -> None:
        """Export what recovery may do in each fleet from ``source`` at each scrape."""
        self._look_up(_Levels(self, source))

    def _look_up(self, collector: Collector) -> None:
        self._lookups.append(collector)
        self.registry.register(collector)

    async def levels(
        self, pause: Callable[[], Awaitable[None]]
    ) -> dict[metrics.Metric[Any], list[tuple[tuple[str, ...], float]]]:
        """All gauges as they are now: of each the label values and the value of its series."""
        if self._jobs is not None:
            await self._jobs.look(pause)
        gauges = {PREFIX + each.name: each for each in metrics.CATALOGUE if each.kind == "gauge"}
        set_here = [self._collectors[each] for each in gauges.values() if each in self._collectors]
        found: dict[metrics.Metric[Any], list[tuple[tuple[str, ...], float]]] = {}
        for collector in (*set_here, *self._lookups):
            await pause()
            for family in collector.collect():
                metric = gauges[family.name]
                names = [label.name for label in metric.labels]
                found[metric] = [
                    (tuple(sample.labels[name] for name in names), sample.value)
                    for sample in family.samples
                ]
        return found

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


def _together(first: _Change, others: Sequence[_Change]) -> _Change:
    """Changes all of them."""

    def change(value: float) -> None:
        first(value)
        for each in others:
            each(value)

    return change


class _Only(Collector):
    """One metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


def _collector(metric: metrics.Metric[Any], registry: CollectorRegistry) -> Any:
    """The collector of a metric, without series as yet where it has labels."""
    name, names = PREFIX + metric.name, [label.name for label in metric.shown_labels]
    if isinstance(metric, Histogram):
        return prometheus.Histogram(
            name, metric.help, names, registry=registry, buckets=metric.buckets
        )
    made = prometheus.Gauge if isinstance(metric, Gauge) else prometheus.Counter
    return made(name, metric.help, names, registry=registry)


def _values(label: Label) -> tuple[str, ...]:
    """All values of a label that are known before anything happens."""
    if label.values is Source.EVENT:
        return tuple(dict.fromkeys(event for each in PROVIDERS.values() for event in each.events))
    if label.values is Source.ODD_FIELD:
        odd = {"envelope", "occurred_at"}
        return tuple(sorted(odd.union(*(each.odd_fields for each in PROVIDERS.values()))))
    if label.values is Source.ODD_REASON:
        return ODD_REASONS
    if label.values is Source.ROLE:
        return ()  # the worker's supervisor knows
    assert not isinstance(label.values, Source)
    return label.values


class _Jobs(Collector):
    """Depth and oldest age by fleet and status."""

    def __init__(self, exporter: Exporter, source: JobsSource) -> None:
        self._exporter = exporter
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
        label = self._exporter.fleet(fleet)
        if (label, status) not in seen:
            for known in _values(metrics.JOBS.labels[1]):
                seen.setdefault((label, known), (0, 0.0))
        jobs, oldest = seen[label, status]
        seen[label, status] = (jobs + count, max(oldest, (age_ms or 0) / 1000))

    def collect(self) -> Iterable[Metric]:
        seen = self._seen
        if seen is None:
            seen = {}
            for one in self._source():
                self._add(seen, *one)
        depth, ages = _family(metrics.JOBS), _family(metrics.OLDEST)
        for where, (count, oldest) in seen.items():
            depth.add_metric(where, count)
            ages.add_metric(where, oldest)
        return [depth, ages]


class _Stalls(Collector):
    """Open stalls and the oldest of each kind."""

    def __init__(self, source: StallsSource) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        seen: dict[str, tuple[int, int]] = {}
        for kind, count, oldest in self._source():
            jobs, known = seen.get(kind, (0, 0))
            seen[kind] = (jobs + count, max(known, oldest))
        opened, ages = _family(metrics.STALLS_OPEN), _family(metrics.STALLS_OLDEST)
        for kind, (count, oldest) in seen.items():
            opened.add_metric([kind], count)
            ages.add_metric([kind], oldest / 1000)
        return [opened, ages]


class _Levels(Collector):
    """Breaker and mode by fleet. Fleets that share ``other`` show the worst and every mode."""

    def __init__(self, exporter: Exporter, source: LevelsSource) -> None:
        self._exporter = exporter
        self._source = source

    def collect(self) -> Iterable[Metric]:
        opened: dict[str, bool] = {}
        modes: dict[str, set[Mode]] = {}
        for fleet, breaker, mode in self._source():
            label = self._exporter.fleet(fleet)
            opened[label] = opened.get(label, False) or breaker is BreakerState.OPEN
            modes.setdefault(label, set()).add(mode)
        shut = _family(metrics.RECOVERY_BREAKER_OPEN)
        allowed = _family(metrics.RECOVERY_MODE)
        for label, is_open in opened.items():
            shut.add_metric([label], is_open)
            for mode in Mode:
                allowed.add_metric([label, mode.value], mode in modes[label])
        return [shut, allowed]


def _family(gauge: Gauge[Any]) -> GaugeMetricFamily:
    """An empty family of a gauge's series."""
    names = [label.name for label in gauge.labels]
    return GaugeMetricFamily(PREFIX + gauge.name, gauge.help, labels=names)
