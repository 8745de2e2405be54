"""What a panel is answered, ready to be drawn: series, cells or rows, in colours and units."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final, NamedTuple

from dashboards import config
from dashboards.macros import Range
from dashboards.model import WIDTH, Dashboard, Panel, Promql, Query, Row, Sql

#: Grafana's colours by their names, on its dark ground.
HEX: Final = {
    "green": "#73BF69", "yellow": "#FADE2A", "red": "#F2495C", "orange": "#FF9830",
    "blue": "#5794F2", "purple": "#B877D9", "text": "#9FA2AD", "dark-red": "#C4162A",
    "dark-green": "#37872D", "dark-yellow": "#E0B400", "dark-orange": "#FA6400",
    "dark-blue": "#1F60C4", "dark-purple": "#8F3BB8", "transparent": "#9FA2AD",
}  # fmt: skip
#: What series get that have no colour of their own, in order.
PALETTE: Final = (
    "#73BF69", "#F2CC0C", "#8AB8FF", "#FF780A", "#F2495C", "#5794F2", "#B877D9", "#705DA0",
    "#37872D", "#FADE2A", "#447EBC", "#C15C17", "#890F02", "#0A437C",
)  # fmt: skip

Columns = Sequence[tuple[str, str]]
#: Asks one query: columns with their types, and rows.
Ask = Callable[[Query], tuple[Columns, Sequence[Sequence[Any]]]]


@dataclass
class Series:
    """A line. Times in seconds since the epoch; None: not known."""

    name: str
    colour: str
    times: list[float] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)

    @property
    def known(self) -> list[float]:
        """The values that there are."""
        return [value for value in self.values if value is not None]

    @property
    def last(self) -> float | None:
        """The latest value."""
        known = self.known
        return known[-1] if known else None


class Heat(NamedTuple):
    """Counts by time and upper bound. ``cells[bound][time]``."""

    times: list[float]
    bounds: list[str]
    cells: list[list[float]]


@dataclass
class Answer:
    """What a panel is answered.

    Attributes:
        series: of a time series, bars (a value each, no time), or a stat.
        heat: of a heatmap.
        columns, rows: of a table, without what is hidden.
        why_not: in words, when it could not be asked.
    """

    panel: Panel
    over: Range
    series: list[Series] = field(default_factory=list)
    heat: Heat | None = None
    columns: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    why_not: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to see."""
        return not (self.rows or (self.heat and self.heat.cells) or any(
            each.known for each in self.series))  # fmt: skip


def answered(panel: Panel, over: Range, ask: Ask) -> Answer:
    """Asks all of a panel's queries. Raises what ``ask`` raises."""
    found = Answer(panel, over)
    for query in panel.queries:
        columns, rows = ask(query)
        timed = query.shape == "timeseries" if isinstance(query, Sql) else not query.instant
        if panel.kind == "table":
            _to_table(found, columns, rows)
        elif panel.kind == "heatmap":
            found.heat = _heat(columns, rows)
        elif timed and columns and columns[0][0] == "time":
            found.series += _series(panel, columns, rows, len(found.series))
        else:
            found.series += _values(panel, columns, rows, len(found.series))
    return found


def lines(row: Row) -> Iterator[list[Panel]]:
    """The panels of a row as they lie beside each other in Grafana's grid."""
    line: list[Panel] = []
    for panel in row.panels:
        if line and sum(each.width for each in line) + panel.width > WIDTH:
            yield line
            line = []
        line.append(panel)
    if line:
        yield line


# -- words and colours -----------------------------------------------------------------------------

_STEPS: Final[Mapping[str, tuple[tuple[float, str], ...]]] = {
    "ms": ((1, "ms"), (1e3, "s"), (6e4, "min"), (3.6e6, "h"), (8.64e7, "d")),
    "s": ((1e-3, "ms"), (1, "s"), (60, "min"), (3_600, "h"), (86_400, "d")),
    "m": ((1, "min"), (60, "h"), (1_440, "d")),
    "short": ((1, ""), (1e3, "K"), (1e6, "Mil"), (1e9, "Bil")),
    "ops": ((1, "/s"),),
    "bytes": ((1, "B"), (2**10, "KiB"), (2**20, "MiB"), (2**30, "GiB")),
    "decbytes": ((1, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB")),
}
_AFTER: Final = {
    "reqps": "req/s", "opm": "/min", "cpm": "/min", "cps": "/s", "wps": "writes/s", "eps": "/s",
    "percent": "%", "h": "h", "d": "d",
}  # fmt: skip


def shown(value: Any, unit: str = "short") -> str:
    """A value in its unit as people read it. Text and times as they are."""
    if value is None:
        return "–"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, (str, date)):
        return str(value)
    if isinstance(value, (list, tuple, dict)):
        return ", ".join(map(str, value))
    number = float(value)
    if not math.isfinite(number):
        return "–"
    number = 0.0 if abs(number) < 1e-9 else number
    if unit == "percentunit":
        return f"{_digits(number * 100)}%"
    if unit.startswith("currency"):
        return f"{'$' if unit == 'currencyUSD' else ''}{number:,.2f}"
    if unit in ("dateTimeAsIso", "dateTimeFromNow"):
        return f"{datetime.fromtimestamp(number / 1000):%Y-%m-%d %H:%M:%S}"
    steps = _STEPS.get({"dtdurations": "s", "dtdurationms": "ms", "none": "short"}.get(unit, unit))
    if steps is None:
        return f"{_digits(number)} {_AFTER.get(unit, unit)}".strip()
    factor, name = next((each for each in reversed(steps) if abs(number) >= each[0]), steps[0])
    gap = "" if unit in ("short", "none") and name in ("", "K") else " "
    return f"{_digits(number / factor)}{gap}{name}".strip()


def marks(high: float, unit: str, most: int = 5) -> list[float]:
    """Where an axis from 0 is marked: at whole seconds, minutes or hours, if it is of time."""
    scale = {"ms": 1.0, "s": 1e-3, "dtdurationms": 1.0, "dtdurations": 1e-3}.get(unit)
    steps: list[float] = []
    if scale is not None and high >= scale:
        steps = [each * scale for each in _TIMES]
    if not any(high / step <= most for step in steps):
        power = 10.0 ** math.floor(math.log10(max(high, 1e-12)) - 1)
        steps = [power * each for each in (1, 2, 5, 10, 20, 50, 100)]
    step = next(each for each in steps if high / each <= most)
    return [n * step for n in range(int(high / step) + 1)]


#: Steps of an axis of time, in ms.
_TIMES: Final = (
    *(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0),
    *(each * 1e3 for each in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800)),
    *(each * 3.6e6 for each in (1, 2, 3, 6, 12, 24, 48, 120, 240)),
)


def _digits(number: float) -> str:
    text = f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}"
    if "e" in text:
        text = f"{number:.3f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"


def colour(name: str) -> str:
    """Grafana's name as hexadecimal digits."""
    plain = re.sub(r"^(super-light|light|semi-dark)-", "", name)
    return name if name.startswith("#") else HEX.get(name) or HEX.get(plain, HEX["text"])


def by_threshold(panel: Panel, value: float | None) -> str:
    """The colour that a value has."""
    found = panel.thresholds[0][1]
    if value is not None:
        for least, name in panel.thresholds:
            if least is None or value >= least:
                found = name
    return colour("text" if value is None else found)


def _colour_of(panel: Panel, names: Sequence[str], place: int) -> str:
    for name in names:
        own = {**config.COLOURS, **panel.colours}.get(name)
        if own is not None:
            return colour(own)
    return PALETTE[place % len(PALETTE)]


# -- answers ---------------------------------------------------------------------------------------


def _series(panel: Panel, columns: Columns, rows: Any, before: int) -> list[Series]:
    """One for each value and each combination of labels."""
    kinds = ["number" if _is_number(type_) else "text" for _, type_ in columns]
    labels = [n for n, kind in enumerate(kinds) if kind == "text" and n]
    values = [n for n, kind in enumerate(kinds) if kind == "number" and n]
    found: dict[tuple[Any, ...], Series] = {}
    for row in rows:
        told = [str(row[n]) for n in labels]
        for n in values:
            key = (n, *told)
            if key not in found:
                value = columns[n][0]
                name = " ".join(([value] if len(values) > 1 or not told else []) + told)
                own = _colour_of(panel, [name, value, *told], before + len(found))
                found[key] = Series(name or value, own)
            found[key].times.append(seconds(row[0]))
            found[key].values.append(_number(row[n]))
    return list(found.values())


def _values(panel: Panel, columns: Columns, rows: Any, before: int) -> list[Series]:
    """One for each value in each row: its name is what the row says of itself."""
    numbers = [n for n, (_, type_) in enumerate(columns) if _is_number(type_)]
    found: list[Series] = []
    for row in rows:
        told = [shown(row[n]) for n in range(len(columns)) if n not in numbers]
        for n in numbers:
            value = columns[n][0]
            name = " ".join(told + ([value] if len(numbers) > 1 or not told else []))
            own = _colour_of(panel, [name, value, *told], before + len(found))
            found.append(Series(name, own, [0.0], [_number(row[n])]))
    return found


def _to_table(found: Answer, columns: Columns, rows: Any) -> None:
    names = [name for name, _ in columns]
    kept = [n for n, name in enumerate(names) if name not in found.panel.hidden]
    found.columns = found.columns or [names[n] for n in kept]
    found.rows += [[row[n] for n in kept] for row in rows]


def _heat(columns: Columns, rows: Any) -> Heat:
    times = sorted({seconds(row[0]) for row in rows})
    bounds = sorted({str(row[1]) for row in rows}, key=_bound)
    cells = [[0.0] * len(times) for _ in bounds]
    at = {time: n for n, time in enumerate(times)}
    place = {bound: n for n, bound in enumerate(bounds)}
    for row in rows:
        cells[place[str(row[1])]][at[seconds(row[0])]] += _number(row[2]) or 0.0
    return Heat(times, bounds, cells)


def _bound(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.inf


def by_unit(answer: Answer) -> tuple[list[Series], list[Series]]:
    """Series of the panel's unit, and those of another, which have a scale of their own.

    All together where there is but one unit, or more than two.
    """
    of = answer.panel
    usual = [each for each in answer.series if of.unit_of(each.name) == of.unit]
    others = [each for each in answer.series if of.unit_of(each.name) != of.unit]
    if not usual or len({of.unit_of(each.name) for each in others}) > 1:
        return answer.series, []
    return usual, others


def bound_shown(text: str, unit: str) -> str:
    """An upper bound in its unit."""
    number = _bound(text)
    return shown(number, unit) if math.isfinite(number) else "more"


def _is_number(type_: str) -> bool:
    while found := re.fullmatch(r"(?:Nullable|LowCardinality)\((.*)\)", type_):
        type_ = found[1]
    return re.match(r"U?Int|Float|Decimal|Bool", type_) is not None


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def seconds(at: Any) -> float:
    """Since the epoch."""
    if isinstance(at, datetime):
        return at.timestamp()
    return at.toordinal() * 86_400.0 - 62_135_683_200.0 if isinstance(at, date) else float(at)


def board_named(boards: Sequence[Dashboard], name: str) -> Dashboard:
    """The dashboard of this title or uid. Raises KeyError with those that there are."""
    wanted = name.casefold()
    for board in boards:
        if wanted in (board.title.casefold(), board.uid, board.uid.removeprefix("runnerstream-")):
            return board
    raise KeyError(", ".join(f"{each.title!r}" for each in boards))


def panel_named(board: Dashboard, name: str) -> Panel:
    """The panel of this title, or the only one whose title has this in it. Raises KeyError with
    those that it may be."""
    titles = {each.title.casefold(): each for each in board.panels}
    wanted = name.casefold()
    if wanted in titles:
        return titles[wanted]
    close = [panel for title, panel in titles.items() if wanted in title]
    if len(close) == 1:
        return close[0]
    raise KeyError(", ".join(f"{each.title!r}" for each in close or titles.values()))


def promql(query: Promql, over: Range, values: Mapping[str, Sequence[str]]) -> str:
    """A query to Prometheus as Grafana sends it. ``values``: what can be chosen of each variable,
    which is what is asked for when all are."""
    span = max(1, (over.end_ms - over.start_ms) // 1000)
    known = {
        "__rate_interval": f"{max(over.interval_s + 15, 60)}s",
        "__interval": f"{over.interval_s}s",
        "__range": f"{span}s",
    }
    for name in over.chosen:
        chosen = over.chosen[name] or values.get(name, ())
        known[name] = "|".join(re.escape(each).replace("\\", "\\\\") for each in chosen) or ".*"
    return re.sub(r"\$\{?(\w+)(?::\w+)?\}?", lambda found: known.get(found[1], ".*"), query.text)
