"""The worker's metrics for Prometheus: the series of the catalogue, and what they count.

A labelled series exists, at 0, from the start where its labels are closed lists, and from the
first sight of a fleet otherwise; those of a group, such as how long claims took to start, once the
fleet is seen in it. Fleets beyond ``max_fleets`` share ``other``, and so do those for which
``max_series`` leaves no room: a worker never exports more.

**Several workers.** A worker counts and gauges only the partitions it owns, and a partition has
one owner, so nothing is counted twice: ``sum by (fleet)`` over workers for counters and
histograms, and for a gauge what its ``over`` says. A batch that is repeated after a crash counts
its records again in ``records_total`` (work done) but not its transitions and timings (a job
already knows its facts).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, product
from typing import Any, Final, Protocol, cast

import prometheus_client as prometheus
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from pipeline import metrics, pulse, telemetry
from pipeline.agents.transaction import Done
from pipeline.effects import Note
from pipeline.faust_safe import sensor
from pipeline.metrics import PREFIX, Counter, Gauge, Histogram, L, Label, Level, Source
from pipeline.providers.base import ODD_REASONS
from pipeline.providers.registry import PROVIDERS
from sinks.process import tell_process
from topics.models import Status

OTHER: Final = "other"

#: All metrics of a worker, in the order of ``/metrics``. A family adds its own here.
EVERYTHING: Final[tuple[metrics.Metric[Any], ...]] = (
    *metrics.CATALOGUE,
    *sensor.CATALOGUE,
    *pulse.CATALOGUE,
    *telemetry.CATALOGUE,
)

#: Fleets with labels of their own unless told.
MAX_FLEETS: Final = 100
#: Series unless told: one worker is no burden for any Prometheus.
MAX_SERIES: Final = 4_900
#: So many fleets without labels of their own are told apart, to be counted.
MAX_UNNAMED: Final = 1_000
#: Samples written, and levels looked at, before the event loop is let go.
SAMPLES_SLICE: Final = 500

#: How things are now. Asked at each scrape, and gone on with in later rounds of the event loop:
#: what it walks through must not change meanwhile.
LevelsSource = Callable[[], Iterator[Level]]

#: The groups whose metrics tell of jobs; other families have groups of their own.
_OF_JOBS: Final = frozenset(metric.group for metric in metrics.CATALOGUE)

#: What a series is changed by: its ``inc`` or ``observe``.
_Change = Callable[[float], object]


#: Of each gauge the label values and the value of its series.
Levels = Mapping[metrics.Metric[Any], Sequence[tuple[tuple[str, ...], float]]]


class Beside(Protocol):
    """Other series that follow from these: of :class:`pipeline.compat.page.Page`."""

    def changes(self, metric: metrics.Metric[Any], labels: tuple[str, ...]) -> Sequence[_Change]:
        """What is to be changed together with a series, which is being made."""
        ...

    def observe_many(
        self,
        metric: metrics.Metric[Any],
        labels: tuple[str, ...],
        counts: Mapping[float, int],
        total: float,
    ) -> None:
        """The same of what somebody else observed."""
        ...


class Exporter:
    """The worker's metrics, in a registry of their own. All calls are the event loop's, except that
    another thread may count by series that exist from the start and that it alone changes."""

    def __init__(
        self,
        max_fleets: int = MAX_FLEETS,
        catalogue: tuple[metrics.Metric[Any], ...] = EVERYTHING,
        max_series: int = MAX_SERIES,
        beside: Beside | None = None,
    ) -> None:
        """``max_series`` holds unless what needs no fleet is more than that already. ``beside`` is
        changed together with these."""
        self.registry = CollectorRegistry()
        self._beside = beside
        self._max_fleets = max_fleets
        self._fleets: set[str] = set()
        #: Groups and fleets, or ``other``, whose series exist.
        self._shown: set[tuple[str, str]] = set()
        self._sources: list[LevelsSource] = []
        self._collectors = {metric: _collector(metric, self.registry) for metric in catalogue}
        self._groups: dict[str, list[metrics.Metric[Any]]] = {}
        #: Finding the series of a label costs more than the observation.
        self._series: dict[tuple[metrics.Metric[Any], tuple[str, ...]], _Change] = {}
        #: What a fleet costs in each group; what is spent, ``other`` included.
        self._costs: dict[str, int] = {}
        self._max_series = max_series
        self._spent = 0
        #: Of that for fleets in groups of further families: half of what is left is for jobs.
        self._spent_on_families = 0
        self._unnamed: set[str] = set()
        for metric in catalogue:
            cost = _cost(metric)
            self._spent += cost
            if metric.together:
                self._groups.setdefault(metric.group, []).append(metric)
                for labels in product(*map(_values, metric.shown_labels)):
                    if labels or isinstance(metric, Histogram):
                        self._collectors[metric].labels(*labels)
            elif metric.by_fleet:
                self._groups.setdefault(metric.group, []).append(metric)
                self._costs[metric.group] = self._costs.get(metric.group, 0) + cost
            elif metric.in_advance:
                self._prepare(metric, *map(_values, metric.labels))
        self._for_families = (max_series - self._spent) // 2

    def _prepare(self, metric: metrics.Metric[Any], *values: tuple[str, ...]) -> None:
        """Make the series of all combinations."""
        for labels in product(*values):
            if isinstance(metric, Gauge):
                self.set(metric, labels, 0.0)
            else:
                self._make(metric, labels)

    def _make(self, metric: metrics.Metric[Any], labels: tuple[str, ...]) -> _Change:
        collector, shown = self._collectors[metric], labels[metric.together :]
        if isinstance(metric, Histogram):
            change = cast(_Change, collector.labels(*shown).observe)
        else:
            change = (collector.labels(*shown) if shown else collector).inc
        if self._beside is not None:
            also = self._beside.changes(metric, labels)
            if also:
                change = _together(change, also)
        self._series[metric, labels] = change
        return change

    def fleet(self, name: str, group: str = "") -> str:
        """The label of a fleet in the metrics of a group: its name, or ``other`` once there are
        too many. From now on the group's series of it exist."""
        if (group, name) in self._shown:
            return name
        label = name if self._has_room(name, group) else OTHER
        if label == OTHER:
            if name != OTHER and len(self._unnamed) < MAX_UNNAMED:
                self._unnamed.add(name)
        else:
            self._fleets.add(name)
            self._spent += self._costs[group]
            if group not in _OF_JOBS:
                self._spent_on_families += self._costs[group]
        if (group, label) not in self._shown:
            self._shown.add((group, label))
            for metric in self._groups.get(group, ()):
                # A gauge is blind until it is looked at.
                if not isinstance(metric, Gauge):
                    self._prepare(metric, (label,), *map(_values, metric.labels[1:]))
        return label

    def _has_room(self, name: str, group: str) -> bool:
        """Whether a fleet can have series of its own in a group. If it cannot it never can again:
        what is spent only grows."""
        if name not in self._fleets and len(self._fleets) >= self._max_fleets:
            return False
        left = self._max_series - self._spent - self._costs[group]
        if group in _OF_JOBS:
            return left >= 0
        return left >= 0 and self._spent_on_families + self._costs[group] <= self._for_families

    def _where(self, metric: metrics.Metric[Any], labels: tuple[str, ...]) -> tuple[str, ...]:
        """The labels with which a series is exported."""
        if metric.by_fleet or metric.together:
            return (self.fleet(labels[0], metric.group), *labels[1:])
        return labels

    def note(self, notes: Iterable[Note[Any]]) -> None:
        """Count what a durable batch noted."""
        for note in notes:
            if note.counts is None:
                self.count(note.metric, note.labels, note.value)
            elif isinstance(note.metric, Histogram):
                self.observe_many(note.metric, note.labels, note.counts, note.value)

    def count(self, metric: Counter[L] | Histogram[L], labels: L, value: float = 1.0) -> None:
        """Add to a counter, or to a distribution."""
        # Fleets beyond the limit have no series under their own names.
        change = self._series.get((metric, labels))
        if change is None:
            where = self._where(metric, labels)
            change = self._series.get((metric, where))
            if change is None:
                # A value that is in no list: a role, say.
                self._spent += 0 if metric.together else _samples(metric)
                change = self._make(metric, where)
        change(value)
        if metric is metrics.TRANSITIONS and labels[1] == Status.CLAIMED:
            self.fleet(labels[0], metrics.CLAIMS)

    def observe_many(
        self, metric: Histogram[L], labels: L, counts: Mapping[float, int], total: float
    ) -> None:
        """Add what somebody else observed: how many values by the upper bound of their bucket, none
        of them negative, and their sum. A bound that the metric does not have counts in the next
        higher bucket."""
        where = self._where(metric, labels)
        self._collectors[metric].labels(*where[metric.together :]).add(counts, total)
        if self._beside is not None:
            self._beside.observe_many(metric, where, counts, total)

    def set(self, metric: Gauge[L], labels: L, value: float) -> None:
        """Say how something is now."""
        said, where = self._collectors[metric].said, self._where(metric, labels)
        if where not in said and not _cost(metric):
            self._spent += 1
        said[where] = value

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

    def watch_levels(self, source: LevelsSource) -> None:
        """Export gauges from ``source`` at each scrape: values under the same labels as the gauge's
        ``over`` says; 0 for what the source does not say of a fleet it names (without fleets: of a
        gauge); nothing of what it does not name.
        """
        self._sources.append(source)

    async def levels(self, pause: Callable[[], Awaitable[None]]) -> Levels:
        """All gauges as they are now."""
        await self._look(pause)
        return {
            metric: list({**collector.said, **collector.seen}.items())
            for metric, collector in self._collectors.items()
            if isinstance(metric, Gauge)
        }

    def watch_process(self, version: str) -> None:
        """Export what this process tells of itself, too."""
        process = CollectorRegistry()
        tell_process(process, version)
        self._spent += sum(len(metric.samples) for metric in process.collect())
        self.registry.register(cast(Collector, process))

    async def exposition(self, pause: Callable[[], Awaitable[None]]) -> bytes:
        """Everything in Prometheus' text format, made in slices with a ``pause`` between them.

        Without the time at which each child was made: a fifth of the text that nobody reads.
        """
        await self._look(pause)
        if metrics.FLEETS_UNNAMED in self._collectors:
            self.set(metrics.FLEETS_UNNAMED, (), len(self._unnamed))
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

    async def _look(self, pause: Callable[[], Awaitable[None]]) -> None:
        """Ask the sources."""
        found: dict[Gauge[Any], dict[tuple[str, ...], float]] = {}
        number = 0
        for source in self._sources:
            for gauge, labels, value in source():
                if number % SAMPLES_SLICE == 0:
                    await pause()
                number += 1
                where, values = self._where(gauge, labels), found.setdefault(gauge, {})
                known = values.get(where)
                if known is None:
                    values[where] = value
                else:
                    values[where] = max(known, value) if gauge.over == "max" else known + value
        for metric, collector in self._collectors.items():
            if isinstance(metric, Gauge):
                collector.seen = _with_zeros(metric, found.get(metric, {}))


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
    if isinstance(metric, Counter):
        names = [label.name for label in metric.shown_labels]
        return prometheus.Counter(PREFIX + metric.name, metric.told, names, registry=registry)
    made = _Distribution(metric) if isinstance(metric, Histogram) else _Levels(metric)
    registry.register(made)
    return made


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


def _samples(metric: metrics.Metric[Any]) -> int:
    """Series of each combination of labels. A histogram has +Inf, a count and a sum as well."""
    return len(metric.buckets) + 3 if isinstance(metric, Histogram) else 1


def _cost(metric: metrics.Metric[Any]) -> int:
    """Series with the values of labels that are known: of a fleet, or in all."""
    closed = (len(_values(label)) for label in metric.shown_labels[metric.by_fleet :])
    return math.prod(closed) * _samples(metric)


def _with_zeros(
    gauge: Gauge[Any], values: Mapping[tuple[str, ...], float]
) -> Mapping[tuple[str, ...], float]:
    """The values, and 0 for what is not said: of each fleet in them, or of the gauge."""
    if not values or gauge.partial:
        return values
    closed = [_values(label) for label in gauge.labels[gauge.by_fleet :]]
    named = {where[: gauge.by_fleet]: None for where in values}
    zeros = ((*name, *rest) for name in named for rest in product(*closed))
    return {**dict.fromkeys(zeros, 0.0), **values}


class _Levels(Collector):
    """A gauge."""

    def __init__(self, gauge: metrics.Metric[Any]) -> None:
        self._gauge = gauge
        #: What was said, and what the sources showed last.
        self.said: dict[tuple[str, ...], float] = {}
        self.seen: Mapping[tuple[str, ...], float] = {}

    def collect(self) -> Iterable[Metric]:
        gauge = self._gauge
        names = [label.name for label in gauge.labels]
        family = GaugeMetricFamily(PREFIX + gauge.name, gauge.told, labels=names)
        for where, value in {**self.said, **self.seen}.items():
            family.add_metric(where, value)
        return [family]


class _Distribution(Collector):
    """A histogram. Not prometheus_client's: that one cannot be told what others observed."""

    def __init__(self, histogram: Histogram[Any]) -> None:
        self._histogram = histogram
        self._bounds = [bound for bound in histogram.buckets if not math.isinf(bound)]
        assert self._bounds
        assert self._bounds == sorted(self._bounds)
        # The same text as prometheus_client's own, so that no series gets another name.
        self._shown: list[str] = list(map(floatToGoString, (*self._bounds, math.inf)))
        self._series: dict[tuple[str, ...], _Observed] = {}

    def labels(self, *labels: str) -> _Observed:
        """The series with these labels."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Observed(self._bounds)
        return series

    def collect(self) -> Iterable[Metric]:
        made = self._histogram
        names = [label.name for label in made.shown_labels]
        family = HistogramMetricFamily(PREFIX + made.name, made.told, labels=names)
        for labels, series in self._series.items():
            up_to = accumulate(series.counts)
            family.add_metric(labels, list(zip(self._shown, up_to, strict=True)), series.total)
        return [family]


class _Observed:
    """One distribution: how many values in each bucket, the last without bound, and their sum."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: list[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Add a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def add(self, counts: Mapping[float, int], total: float) -> None:
        """Add so many values at or below each bound, and their sum."""
        for bound, number in counts.items():
            self.counts[bisect_left(self._bounds, bound)] += number
        self.total += total
