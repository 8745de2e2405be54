"""Asks everything that a dashboard asks, of a real ClickHouse, and says what is wrong with it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from clickhouse_driver import Client
from clickhouse_driver.errors import Error

from dashboards.ask import ask
from dashboards.macros import Range, UnknownMacro
from dashboards.model import Dashboard, Panel, Sql

MINUTE_S: Final = 60
#: What is looked at: how far back (s), and the seconds between two points that Grafana makes of it.
RANGES: Final = {
    "15 minutes": (15 * MINUTE_S, 1), "6 hours": (360 * MINUTE_S, 20),
    "30 days": (30 * 86_400, 3_600),
}  # fmt: skip
LONG: Final = "30 days"
#: A value that nothing has, with what breaks a query that quotes it by hand.
ODD: Final = 'it\'s \\ "odd" (1, 2) %'

Choice = Mapping[str, Sequence[str]]
_NUMBER: Final = re.compile(r"^(U?Int|Float|Decimal)")
_TEXTS: Final = re.compile(r"^Array\((LowCardinality\()?String")
_TEXT: Final = re.compile(r"^(String|FixedString|Enum)")
_TIME: Final = re.compile(r"^(DateTime|Date)")


@dataclass
class Tried:
    """What came of a dashboard."""

    board: Dashboard
    queries: int = 0
    prometheus: int = 0
    rows: int = 0
    faults: list[str] = field(default_factory=list)


def kind(type_: str) -> str:
    """``time``, ``number``, ``text``, ``texts``, or the type, if it is none of these."""
    while found := re.fullmatch(r"(?:Nullable|LowCardinality)\((.*)\)", type_):
        type_ = found[1]
    for name, pattern in (("time", _TIME), ("number", _NUMBER), ("text", _TEXT), ("texts", _TEXTS)):
        if pattern.match(type_):
            return name
    return type_ if type_ != "Bool" else "number"


class Trial:
    """One dashboard at a time, as its reader, up to a time."""

    def __init__(
        self,
        client: Client,
        end_ms: int,
        empty: Mapping[tuple[str, str], str],
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """``empty``: panels that may have no rows, by dashboard and title, and why. ``texts``: what
        is written into variables of text."""
        self._client, self._end, self._empty = client, end_ms, empty
        self._texts = texts or {}

    def range(self, name: str, chosen: Choice) -> Range:
        """One of :data:`RANGES`."""
        span, interval = RANGES[name]
        return Range(self._end - span * 1000, self._end, interval, chosen)

    def board(self, board: Dashboard) -> Tried:
        """Everything that it asks."""
        tried = Tried(board)
        choices = dict(self._choices(tried))
        asked = [(f"{p.title} {n}", p, q) for p in board.panels for n, q in enumerate(p.queries)]
        for where, panel, query in asked:
            if not isinstance(query, Sql):
                tried.prometheus += 1
                continue
            for name in RANGES:
                self._panel(tried, where, panel, query, name, "all", choices["all"])
            for choice in choices.keys() - {"all"}:
                self._panel(tried, where, panel, query, LONG, choice, choices[choice])
        for annotation in board.annotations:
            for name in RANGES:
                where = f"annotation {annotation.name}, {name}"
                columns, rows = self._ask(tried, where, annotation.sql, name, choices["all"])
                told = [each for each, _ in columns]
                if columns and (told[0] != "time" or "text" not in told):
                    tried.faults.append(f"{where}: columns {told}, not time, text, ...")
                if name == LONG and not rows and (board.title, annotation.name) not in self._empty:
                    tried.faults.append(f"{where}: no rows")
        return tried

    def _choices(self, tried: Tried) -> Iterator[tuple[str, Choice]]:
        """What may be chosen: all, one value of each variable, and one that nothing has."""
        every: dict[str, Sequence[str]] = {}
        values: dict[str, Sequence[str]] = {}
        for variable in tried.board.variables:
            if not variable.sql:
                every[variable.name] = [self._texts.get(variable.name, variable.text)]
                continue
            for name in RANGES:
                where = f"variable {variable.name}, {name}"
                columns, rows = self._ask(tried, where, variable.sql, name, every)
                if columns and kind(columns[0][1]) != "text":
                    tried.faults.append(f"{where}: {columns[0][1]} is no text")
            if not rows:
                tried.faults.append(f"variable {variable.name}: no values")
            found = values[variable.name] = [str(row[0]) for row in rows] or [""]
            every[variable.name] = () if variable.multi else found[:1]
        yield "all", every
        multi = [each.name for each in tried.board.variables if each.sql and each.multi]
        if multi:
            some = {name: next((each for each in values[name] if each), "") for name in multi}
            yield "one of each", {**every, **{name: [some[name]] for name in multi}}
            yield "two of each, one odd", {**every, **{name: [ODD, some[name]] for name in multi}}

    def _ask(self, tried: Tried, where: str, sql: str, name: str, chosen: Choice) -> Any:
        tried.queries += 1
        try:
            columns, rows = ask(self._client, sql, self.range(name, chosen))
        except (UnknownMacro, Error) as error:
            text = str(error).partition("Stack trace")[0].strip()
            tried.faults.append(f"{where}: {text[:600]}")
            return [], []
        tried.rows += len(rows)
        return columns, rows

    def _panel(
        self, tried: Tried, what: str, panel: Panel, query: Sql, name: str, choice: str,
        chosen: Choice,
    ) -> None:  # fmt: skip
        where = f"{what}, {name}, {choice}"
        before = len(tried.faults)
        columns, rows = self._ask(tried, where, query.text, name, chosen)
        if len(tried.faults) > before:
            return
        look = series if query.shape == "timeseries" else table
        tried.faults += [
            f"{where}: {each}" for each in look(panel, columns, rows, self.range(name, chosen))
        ]
        place = (tried.board.title, panel.title)
        if (name, choice) == (LONG, "all") and not has_values(columns, rows):
            if place not in self._empty:
                tried.faults.append(f"{where}: no data")
        elif name == LONG and place in self._empty and choice == "all":
            tried.faults.append(f"{where}: there are data, contrary to {self._empty[place]!r}")


def has_values(columns: Sequence[Any], rows: Sequence[Any]) -> bool:
    """Whether something would be shown."""
    places = [n for n, (_, type_) in enumerate(columns) if kind(type_) != "time"]
    return any(row[n] is not None for row in rows for n in places or range(len(columns)))


def series(panel: Panel, columns: Any, rows: Any, over: Range) -> Iterator[str]:
    """What is wrong with an answer that is to be drawn over time."""
    kinds = [kind(type_) for _, type_ in columns]
    if not columns or columns[0][0] != "time" or kinds[0] != "time":
        yield f"the first column is {columns[:1]}, not the time"
        return
    if any(each not in ("number", "text") for each in kinds[1:]) or "number" not in kinds:
        yield f"columns {columns}: neither labels nor values"
        return
    if panel.kind == "heatmap" and kinds != ["time", "text", "number"]:
        yield f"columns {columns}: a heatmap has a time, an upper bound and a count"
    times = [seconds(row[0]) for row in rows]
    if times != sorted(times):
        yield "the times do not ascend"
    slack = max(over.interval_s, 3_600)
    if times and not over.start_ms / 1000 - slack <= min(times) <= max(times) <= over.end_ms / 1000:
        yield f"times from {min(times)} to {max(times)} are not those that were asked for"
    labels = [n for n, each in enumerate(kinds) if each == "text"]
    places = {(row[0], *(row[n] for n in labels)) for row in rows}
    if len(places) < len(rows):
        yield f"{len(rows) - len(places)} points of the same series at the same time"
    yield from not_numbers(kinds, rows)


def table(panel: Panel, columns: Any, rows: Any, over: Range) -> Iterator[str]:
    """What is wrong with an answer that is to be shown as it is."""
    kinds = [kind(type_) for _, type_ in columns]
    odd = [(name, each) for (name, _), each in zip(columns, kinds, strict=True)
           if each not in ("time", "number", "text", "texts")]  # fmt: skip
    if odd:
        yield f"columns {odd} cannot be shown"
    names = {name for name, _ in columns}
    wanted = {*panel.units, *panel.hidden, *panel.links}
    for link in panel.links.values():
        wanted |= set(link.values.values())
    if panel.kind in ("table", "bars") and wanted - names:
        yield f"there is no column {sorted(wanted - names)}"
    if panel.kind == "bars" and ("text" not in kinds or "number" not in kinds):
        yield f"columns {columns}: bars have a name and a number"
    if panel.kind == "stat" and len(rows) > 1:
        yield f"{len(rows)} rows for one figure"
    yield from not_numbers(kinds, rows)


def not_numbers(kinds: Sequence[str], rows: Any) -> Iterator[str]:
    """Values that cannot be drawn."""
    values = [n for n, each in enumerate(kinds) if each == "number"]
    bad = [row for row in rows for n in values
           if row[n] is not None and not math.isfinite(row[n])]  # fmt: skip
    if bad:
        yield f"{len(bad)} values are no numbers, as in {bad[0]}"


def seconds(at: Any) -> float:
    """Since the epoch."""
    return float(at.timestamp()) if isinstance(at, datetime) else at.toordinal() * 86_400.0


# --- to be compared -------------------------------------------------------------------------------


def chosen(board: Dashboard, client: Client, over: Callable[[Any], Range]) -> dict[str, Any]:
    """Everything of variables that can have several values, the first value of others."""
    found: dict[str, Any] = {}
    for variable in board.variables:
        if not variable.sql:
            found[variable.name] = [variable.text]
        elif variable.multi:
            found[variable.name] = ()
        else:
            _, values = ask(client, variable.sql, over(found))
            found[variable.name] = [str(row[0]) for row in values[:1]] or [""]
    return found


def asks(board: Dashboard) -> Iterator[tuple[str, str]]:
    """All that it asks of ClickHouse, and what for."""
    for variable in board.variables:
        if variable.sql:
            yield f"variable {variable.name}", variable.sql
    for annotation in board.annotations:
        yield f"annotation {annotation.name}", annotation.sql
    for panel in board.panels:
        for number, query in enumerate(panel.queries):
            if isinstance(query, Sql):
                yield f"{panel.title} {number}", query.text


def said(row: Sequence[Any]) -> str:
    """A row, to be compared. The driver gives a Bool as a number when most of its column are so."""
    return repr(tuple(int(value) if isinstance(value, bool) else value for value in row))
