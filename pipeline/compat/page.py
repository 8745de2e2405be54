"""``/metrics/compat``: series by the systems' names, changed by what changes ours.

A counter or histogram of theirs is changed by the observation that changes ours, and a series of
theirs is there, at 0, as soon as ours is. Gauges are worked out from ours when the page is asked
for. Fleets are those that have labels of their own with us.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from pipeline.compat.model import From, System, Theirs
from pipeline.metrics import Metric

#: Samples written before the event loop is let go.
SLICE: Final = 500

#: Gauges as they are now: label values and value of each series.
Levels = Mapping[Metric[Any], Sequence[tuple[tuple[str, ...], float]]]
#: What a series is changed by.
Change = Callable[[float], object]

_Sample = tuple[str, tuple[tuple[str, str], ...], float]


class _Count:
    """A counter's series."""

    def __init__(self) -> None:
        self.value = 0.0

    def samples(self, name: str, where: tuple[tuple[str, str], ...]) -> Iterator[_Sample]:
        yield name, where, self.value


class _Distribution:
    """A histogram's series."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add(self, counts: Mapping[float, int], total: float, scale: float) -> None:
        for bound, number in counts.items():
            self._counts[bisect_left(self._bounds, bound * scale)] += number
        self._sum += total * scale

    def samples(self, name: str, where: tuple[tuple[str, str], ...]) -> Iterator[_Sample]:
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            yield f"{name}_bucket", (*where, ("le", _number(bound))), total
        yield f"{name}_sum", where, self._sum
        yield f"{name}_count", where, total


class Page:
    """The series of some systems."""

    def __init__(self, systems: Iterable[System]) -> None:
        served = [each for system in systems for each in system.metrics if each.follows]
        #: In the order of the page.
        self._series: dict[Theirs, dict[tuple[str, ...], _Count | _Distribution]] = {
            each: {} for each in served
        }
        self._following: dict[Metric[Any], list[tuple[Theirs, From]]] = {}
        for theirs in served:
            if theirs.kind != "gauge":
                for source in theirs.follows:
                    self._following.setdefault(source.metric, []).append((theirs, source))

    def changes(self, metric: Metric[Any], labels: tuple[str, ...]) -> list[Change]:
        """What is to be changed together with a series of ours. Makes the series, at 0."""
        found = []
        for theirs, source in self._following.get(metric, ()):
            place = source.place(labels)
            if place is not None:
                found.append(self._change(theirs, source, place))
        return found

    def observe_many(
        self,
        metric: Metric[Any],
        labels: tuple[str, ...],
        counts: Mapping[float, int],
        total: float,
    ) -> None:
        """Add what somebody else observed of ours: see :meth:`pipeline.exporter.Exporter`."""
        for theirs, source in self._following.get(metric, ()):
            place = source.place(labels)
            if place is None:
                continue
            series = self._made(theirs, place)
            if isinstance(series, _Distribution):
                series.add(counts, total, source.scale)
            else:
                series.value += sum(counts.values())

    def _made(self, theirs: Theirs, place: tuple[str, ...]) -> _Count | _Distribution:
        known = self._series[theirs]
        series = known.get(place)
        if series is None:
            made = _Distribution(theirs.buckets) if theirs.kind == "histogram" else _Count()
            series = known[place] = made
        return series

    def _change(self, theirs: Theirs, source: From, place: tuple[str, ...]) -> Change:
        series = self._made(theirs, place)
        scale = source.scale
        if isinstance(series, _Distribution):
            observe = series.observe
            return observe if scale == 1.0 else lambda value: observe(value * scale)
        counted = series
        each = source.metric.kind == "histogram"

        def add(value: float) -> None:
            counted.value += 1 if each else value * scale

        return add

    async def exposition(self, levels: Levels, pause: Callable[[], Awaitable[None]]) -> bytes:
        """The page in Prometheus' text format, made in slices with a ``pause`` between them."""
        lines: list[str] = []
        written = 0
        for theirs, series in self._series.items():
            lines.append(f"# HELP {theirs.name} {_one_line(theirs.help)}\n")
            lines.append(f"# TYPE {theirs.name} {theirs.kind}\n")
            for name, where, value in self._samples(theirs, series, levels):
                if written % SLICE == 0:
                    await pause()
                written += 1
                told = ",".join(f'{label}="{_quoted(text)}"' for label, text in where)
                braces = f"{{{told}}}" if told else ""
                lines.append(f"{name}{braces} {_number(value)}\n")
        return "".join(lines).encode()

    def _samples(
        self,
        theirs: Theirs,
        series: Mapping[tuple[str, ...], _Count | _Distribution],
        levels: Levels,
    ) -> Iterator[_Sample]:
        if theirs.kind == "gauge":
            for place, value in _now(theirs, levels).items():
                yield theirs.name, tuple(zip(theirs.labels, place, strict=True)), value
            return
        for place, one in list(series.items()):
            yield from one.samples(theirs.name, tuple(zip(theirs.labels, place, strict=True)))


def _now(theirs: Theirs, levels: Levels) -> dict[tuple[str, ...], float]:
    """A gauge of theirs by the values of its labels."""
    found = _folded(theirs.follows, levels)
    if theirs.over is None:
        return found
    whole = _folded((theirs.over,), levels)
    return {
        place: found.get(place, 0.0) / value if value > 0 else 0.0 for place, value in whole.items()
    }


def _folded(sources: Iterable[From], levels: Levels) -> dict[tuple[str, ...], float]:
    """What follows from gauges of ours, by the values of their labels."""
    found: dict[tuple[str, ...], float] = {}
    for source in sources:
        for labels, value in levels.get(source.metric, ()):
            place = source.place(labels)
            if place is None:
                continue
            scaled, known = value * source.scale, found.get(place)
            if known is None:
                found[place] = scaled
            else:
                found[place] = max(known, scaled) if source.fold == "max" else known + scaled
    return found


def _number(value: float) -> str:
    """A value as Go writes it, which is what most of them are written in."""
    if value == float("inf"):
        return "+Inf"
    return repr(float(value)).removesuffix(".0")


def _one_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return _one_line(text).replace('"', '\\"')
