"""What a declaration is: a system's metrics, panels and alerts as plain data.

Each metric has the system's name, type, labels and buckets, and says from which of ours it follows.
What is observed by one of ours is observed by theirs as well, with the scale and the buckets of
theirs: nothing is guessed from our buckets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from pipeline.metrics import Metric, Source

Kind = Literal["counter", "gauge", "histogram"]

#: Ours are seconds, and some of theirs are not.
MILLISECONDS: Final = 1000.0


@dataclass(frozen=True)
class Take:
    """A label of theirs that has the value of one of ours."""

    ours: str


@dataclass(frozen=True)
class Turn:
    """A label of theirs whose values are called otherwise here. Several of ours may be one of
    theirs. A series of ours with a value that is not listed is not followed."""

    ours: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Always:
    """A label of theirs of which we know one value only."""

    value: str


@dataclass(frozen=True)
class Pair:
    """A label of theirs that two of ours tell together. As :class:`Turn`."""

    ours: tuple[str, str]
    values: Mapping[tuple[str, str], str]


Rule = Take | Turn | Always | Pair


@dataclass(frozen=True, eq=False)
class From:
    """One of ours that a metric of theirs follows from.

    Attributes:
        metric: ours. A counter of theirs that follows from a histogram counts observations.
        labels: a rule for each label of theirs, in their order.
        scale: by which values are multiplied.
        only: labels of ours of which only some values count.
        fold: how several series of ours that are one of theirs make its value: of gauges only.
    """

    metric: Metric[Any]
    labels: tuple[Rule, ...] = ()
    scale: float = 1.0
    only: Mapping[str, frozenset[str]] | None = None
    fold: Literal["sum", "max"] = "sum"

    def place(self, labels: tuple[str, ...]) -> tuple[str, ...] | None:
        """The values of their labels for a series of ours; None when it is not followed."""
        ours = dict(zip((label.name for label in self.metric.labels), labels, strict=True))
        for name, values in (self.only or {}).items():
            if ours[name] not in values:
                return None
        place = []
        for rule in self.labels:
            told: str | None
            if isinstance(rule, Take):
                told = ours[rule.ours]
            elif isinstance(rule, Turn):
                told = rule.values.get(ours[rule.ours])
            elif isinstance(rule, Pair):
                told = rule.values.get((ours[rule.ours[0]], ours[rule.ours[1]]))
            else:
                told = rule.value
            if told is None:
                return None
            place.append(told)
        return tuple(place)


@dataclass(frozen=True, eq=False)
class Theirs:
    """A metric of a system, by its own name.

    Attributes:
        name: as their page has it, with every suffix.
        labels: names of its labels, in order.
        follows: what it follows from; without any it is not served.
        buckets: upper bounds of a histogram, in their unit.
        said: what is otherwise than there, or where the answer is when it is not served.
        over: what a gauge that is a ratio is divided by; 0 where that is 0.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    follows: tuple[From, ...] = ()
    buckets: tuple[float, ...] = ()
    said: str = ""
    over: From | None = None


class Shown(NamedTuple):
    """A panel of ours, by the titles of its dashboard and its own. Only their names are known here:
    what they ask stands in ``dashboards``."""

    board: str
    title: str


def on(board: str, *titles: str) -> tuple[Shown, ...]:
    """Panels of one of our dashboards."""
    return tuple(Shown(board, title) for title in titles)


@dataclass(frozen=True)
class Panel:
    """A panel of a system's dashboard.

    Attributes:
        here: what shows the same here: queries over our own series, SQL, a view, a command.
        queries: as that dashboard asks Prometheus; without variables, which stand for all values.
        shown: our panels that show it.
    """

    section: str
    title: str
    here: str
    queries: tuple[str, ...] = ()
    shown: tuple[Shown, ...] = ()


@dataclass(frozen=True)
class Alert:
    """An alert of a system.

    Attributes:
        here: a query, SQL, view or command that answers it.
        fires: our alerts of the same, by name.
        shown: our panels that show it.
    """

    title: str
    here: str
    condition: str = ""
    fires: tuple[str, ...] = ()
    shown: tuple[Shown, ...] = ()


@dataclass(frozen=True)
class Kindred:
    """Something else that a system tells apart, such as a kind of recovery."""

    title: str
    here: str
    what: str = ""
    shown: tuple[Shown, ...] = ()


@dataclass(frozen=True, eq=False)
class System:
    """One system: what it measures and shows.

    Attributes:
        about: which system this is, and what of it is meant, as Markdown.
        further: further tables, by their titles.
    """

    name: str
    about: str
    metrics: tuple[Theirs, ...]
    panels: tuple[Panel, ...] = ()
    alerts: tuple[Alert, ...] = ()
    further: Mapping[str, tuple[Kindred, ...]] | None = None


def values_of(metric: Metric[Any], name: str) -> tuple[str, ...] | None:
    """The values of a label of ours; None for one whose values nobody can list."""
    for label in metric.labels:
        if label.name == name:
            return None if isinstance(label.values, Source) else label.values
    raise KeyError(name)


def same(values: Iterable[str]) -> dict[str, str]:
    """Values that are called alike there and here."""
    return {value: value for value in values}
