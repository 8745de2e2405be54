"""What a dashboard consists of. Pure declarations: no Grafana, no database.

Every panel says what healthy looks like, what a deviation means, what to do about it, and what it
means when there are no data. A panel without an answer to one of these is not shown to anybody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal["stat", "timeseries", "heatmap", "table", "bars"]
#: A colour from a value on, ascending; the first has no value.
Threshold = tuple[float | None, str]

#: Of Grafana's grid.
WIDTH: Final = 24


@dataclass(frozen=True)
class Sql:
    """A question to ClickHouse, with Grafana's macros.

    Attributes:
        text: with a time series the first column is the time, columns of strings are labels, and
            columns of numbers are values. With a heatmap they are the time, the upper bound as
            a string, and the count.
        shape: how Grafana reads the answer.
    """

    text: str
    shape: Literal["timeseries", "table"] = "timeseries"


@dataclass(frozen=True)
class Promql:
    """A question to Prometheus, for what only the process knows."""

    text: str
    legend: str = ""
    instant: bool = False


Query = Sql | Promql


@dataclass(frozen=True)
class Link:
    """From a row of a table to another dashboard: ``values`` are its columns by variable there.

    The range stays as it is, and so does what is chosen of the variables to ``keep``. ``to`` may be
    a URL instead; it is taken as it stands.
    """

    title: str
    to: str
    values: Mapping[str, str]
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panel:
    """A question, and how its answer is shown.

    Attributes:
        healthy: what is seen when all is well.
        deviation: what else means.
        todo: what to do then.
        no_data: what it means when nothing is there.
        unit: as Grafana calls it: ``ms``, ``s``, ``short``, ``percentunit``.
        alerts: names of the alerts that watch the same; their runbooks are linked.
        units: of columns, or of series that are not in ``unit``: these have an axis of their own.
        colours: by series or label, where the same thing has the same colour everywhere.
        links: of columns of a table, by column.
        hidden: columns of a table that only its links need.
    """

    title: str
    kind: Kind
    queries: tuple[Query, ...]
    healthy: str
    deviation: str
    todo: str
    no_data: str
    unit: str = "short"
    thresholds: tuple[Threshold, ...] = ((None, "green"),)
    width: int = 12
    height: int = 8
    stacked: bool = False
    points: bool = False
    steps: bool = False
    soft_max: float | None = None
    maximum: float | None = None
    alerts: tuple[str, ...] = ()
    colours: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, Link] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    palette: str = "Blues"

    def unit_of(self, series: str) -> str:
        """The unit of a series: it is called after its value, or after that and its labels."""
        for name, unit in self.units.items():
            if series == name or series.startswith(f"{name} "):
                return unit
        return self.unit

    @property
    def description(self) -> str:
        """What Grafana shows beside the title."""
        parts = [
            f"Healthy: {self.healthy}",
            f"Otherwise: {self.deviation}",
            f"What to do: {self.todo}",
            f"No data: {self.no_data}",
        ]
        return "\n\n".join(parts)


@dataclass(frozen=True)
class Row:
    """Panels with a heading."""

    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = False


@dataclass(frozen=True)
class Variable:
    """What is chosen at the top: the values of one column.

    Attributes:
        sql: gives the values, one a row.
        multi: several at a time, and all.
        constant: a value that is written instead of chosen; then there is no ``sql``.
    """

    name: str
    label: str
    sql: str = ""
    multi: bool = True
    text: str = ""


@dataclass(frozen=True)
class Annotation:
    """What happened, drawn over every panel: rows of time and text."""

    name: str
    sql: str
    colour: str


@dataclass(frozen=True)
class Dashboard:
    """Panels that answer questions of one kind.

    Attributes:
        uid: its address, which never changes.
        range: how far back it looks at first, as Grafana writes it.
    """

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()
    annotations: tuple[Annotation, ...] = ()
    range: str = "now-6h"
    refresh: str = "30s"

    @property
    def panels(self) -> Iterator[Panel]:
        """All of them, in order."""
        for row in self.rows:
            yield from row.panels

    def panel(self, title: str) -> Panel:
        """The panel with this title. Raises KeyError."""
        for each in self.panels:
            if each.title == title:
                return each
        raise KeyError(title)
