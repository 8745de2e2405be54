"""Draws panels with characters, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.panel import Panel as Box
from rich.rule import Rule
from rich.style import Style
from rich.table import Table
from rich.text import Text

from dashboards.drawing.answers import (
    Answer,
    Series,
    bound_shown,
    by_threshold,
    by_unit,
    lines,
    shown,
)
from dashboards.model import WIDTH, Dashboard, Panel

Cell = tuple[str, str]

_DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
#: Seldom to often: also where there are no colours.
_SHADES: Final = ((" ", ""), ("░", "#1f60c4"), ("▒", "#3274d9"), ("▓", "#5794f2"), ("█", "#8ab8ff"))
#: Series that a legend names.
_LEGEND: Final = 8
#: Rows that a table has on a whole dashboard.
_TABLE_ROWS: Final = 10


def board(of: Dashboard, answer: Callable[[Panel], Answer], width: int) -> RenderableType:
    """A whole dashboard, panels beside each other as in Grafana as far as there is room."""
    parts: list[RenderableType] = []
    for row in of.rows:
        parts.append(Rule(f"[bold]{row.title}", style="dim", align="left"))
        for line in lines(row):
            parts += _line(line, answer, width)
    return Group(*parts)


def _line(line: list[Panel], answer: Callable[[Panel], Answer], width: int) -> list[RenderableType]:
    """Panels in one line, or in several if they would be too narrow."""
    least = {"stat": 16, "bars": 36}
    fits: list[list[Panel]] = [[]]
    for panel in line:
        wanted = max(least.get(panel.kind, 48), 0)
        used = sum(least.get(each.kind, 48) for each in fits[-1])
        if fits[-1] and used + wanted > width:
            fits.append([])
        fits[-1].append(panel)
    parts: list[RenderableType] = []
    for group in fits:
        grid = Table.grid(expand=True)
        total = sum(each.width for each in group)
        share = width if len(fits) > 1 or total > WIDTH // 2 else width * total // WIDTH
        widths = [max(10, share * each.width // total) for each in group]
        for each in widths:
            grid.add_column(width=each)
        grid.add_row(
            *(box(answer(each), own, _TABLE_ROWS) for each, own in zip(group, widths, strict=True))
        )
        parts.append(grid)
    return parts


def box(answer: Answer, width: int, most_rows: int | None = None) -> Box:
    """One panel in a box of so many columns."""
    of, inside = answer.panel, width - 4
    drawn: RenderableType
    if answer.why_not or answer.empty:
        drawn = Text(answer.why_not or f"no data: {of.no_data}", style="dim italic")
    elif of.kind == "stat":
        drawn = _stat(answer, inside)
    elif of.kind == "bars":
        drawn = _bars(answer, inside)
    elif of.kind == "heatmap":
        drawn = _heatmap(answer, inside)
    elif of.kind == "table":
        drawn = _table(answer, most_rows)
    else:
        drawn = _timeseries(answer, inside, max(5, of.height) | 1)
    return Box(drawn, title=f"[bold]{of.title}", title_align="left", border_style="dim",
               width=width)  # fmt: skip


def _stat(answer: Answer, width: int) -> RenderableType:
    of = answer.panel
    parts: list[RenderableType] = []
    for series in answer.series:
        value = series.last
        text = Text(shown(value, of.units.get(series.name, of.unit)), Style(
            bold=True, color=by_threshold(of, value)))  # fmt: skip
        if len(answer.series) > 1:
            text = Text.assemble((f"{series.name} ", "dim"), text)
        parts.append(text)
        if len(series.values) > 1 and len(answer.series) == 1:
            parts.append(Text(sparkline(series.values, width), Style(
                color=by_threshold(of, value), dim=True)))  # fmt: skip
    return Group(*parts)


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The course of a value in one line; a gap where it is not known."""
    if width < 1 or not values:
        return ""
    cells: list[float | None] = []
    for n in range(min(width, len(values))):
        low = n * len(values) // min(width, len(values))
        high = (n + 1) * len(values) // min(width, len(values))
        known = [value for value in values[low:high] if value is not None]
        cells.append(max(known) if known else None)
    most = max((each for each in cells if each is not None), default=0.0)
    # What is there and small is seen; nothing is seen as nothing.
    return "".join(
        " " if each is None else _BLOCKS[1 + round(7 * max(each, 0.0) / most) if most > 0 else 1]
        for each in cells
    )


def _timeseries(answer: Answer, width: int, height: int) -> RenderableType:
    of = answer.panel
    # What is of another unit is told below only.
    series, _ = by_unit(answer)
    unit = of.unit_of(series[0].name)
    series = stacked(series) if of.stacked else series
    known = [value for each in series for value in each.known]
    low = min(0.0, *known)
    high = max([*known, of.soft_max or 0.0])
    if of.maximum is not None:
        high = max(high, of.maximum)
    if high <= low:
        high = low + 1
    marks = [shown(high - (high - low) * n / (height - 1), unit) for n in range(height)]
    margin = max(map(len, (marks[0], marks[height // 2], marks[-1]))) + 1
    canvas = Canvas(max(4, width - margin), height)
    start, end = answer.over.start_ms / 1000, answer.over.end_ms / 1000
    step = max(answer.over.interval_s, (end - start) / (canvas.width * 2))
    for each in series:
        canvas.draw(each, (start, end), (low, high), step, of.points)
    drawn = []
    for n, line in enumerate(canvas.lines()):
        mark = marks[n] if n in (0, height // 2, height - 1) else ""
        drawn.append(Text.assemble((f"{mark:>{margin - 1}} ", "dim"), line))
    first, last = clock(start, end)
    gap = max(1, width - margin - len(first) - len(last))
    drawn.append(Text(f"{' ' * margin}{first}{' ' * gap}{last}", "dim"))
    return Group(*drawn, *legend(answer.series, of))


def stacked(series: Sequence[Series]) -> list[Series]:
    """Each on top of those before it; the highest first, so that none is hidden."""
    total: dict[float, float] = {}
    found: list[Series] = []
    for each in series:
        values: list[float | None] = []
        for at, value in zip(each.times, each.values, strict=True):
            total[at] = total.get(at, 0.0) + (value or 0.0)
            values.append(total[at])
        found.append(Series(each.name, each.colour, each.times, values))
    return found[::-1]


def clock(start: float, end: float) -> tuple[str, str]:
    """When it begins and ends, by the local clock."""
    how = "%H:%M" if end - start <= 86_400 else "%d %b %H:%M"
    return tuple(datetime.fromtimestamp(at).strftime(how) for at in (start, end))  # type: ignore[return-value]


def legend(series: Sequence[Series], of: Panel) -> list[Text]:
    """Names, latest and highest values; the busiest first."""
    ranked = sorted(series, key=lambda each: -max(each.known, default=0.0))
    found = []
    for each in ranked[:_LEGEND]:
        unit = of.unit_of(each.name)
        highest = max(each.known, default=None)
        found.append(
            Text.assemble(
                ("━ ", each.colour), f"{each.name}  ", (f"last {shown(each.last, unit)}", "bold"),
                (f"  max {shown(highest, unit)}", "dim"), no_wrap=True, overflow="ellipsis",
            )
        )  # fmt: skip
    if len(ranked) > _LEGEND:
        found.append(Text(f"and {len(ranked) - _LEGEND} more", "dim"))
    return found


class Canvas:
    """Dots in cells of two by four, each cell in the colour of what was drawn there last."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._dots = [[0] * width for _ in range(height)]
        self._colours = [[""] * width for _ in range(height)]

    def dot(self, x: int, y: int, colour: str) -> None:
        """Set one; ``y`` counts from the top."""
        if 0 <= x < self.width * 2 and 0 <= y < self.height * 4:
            self._dots[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
            self._colours[y // 4][x // 2] = colour

    def draw(
        self, series: Series, times: tuple[float, float], values: tuple[float, float], step: float,
        points: bool,
    ) -> None:  # fmt: skip
        """A line between points, broken where one is missing."""
        right, bottom = self.width * 2 - 1, self.height * 4 - 1
        before: tuple[float, int, int] | None = None
        for at, value in zip(series.times, series.values, strict=True):
            if value is None:
                before = None
                continue
            x = round((at - times[0]) / (times[1] - times[0]) * right)
            y = round((values[1] - value) / (values[1] - values[0]) * bottom)
            self.dot(x, y, series.colour)
            if before is not None and at - before[0] <= 2.5 * step and not points:
                self._line(before[1], before[2], x, y, series.colour)
            before = (at, x, y)

    def _line(self, x0: int, y0: int, x1: int, y1: int, colour: str) -> None:
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for n in range(steps + 1):
            self.dot(x0 + round((x1 - x0) * n / steps), y0 + round((y1 - y0) * n / steps), colour)

    def lines(self) -> list[Text]:
        """As text."""
        return [
            Text.assemble(*((chr(0x2800 + dots) if dots else " ", colour)
                            for dots, colour in zip(row, colours, strict=True)))
            for row, colours in zip(self._dots, self._colours, strict=True)
        ]  # fmt: skip


def _bars(answer: Answer, width: int) -> RenderableType:
    of = answer.panel
    known = [each for each in answer.series if each.last is not None]
    most = max((abs(each.last or 0.0) for each in known), default=0.0) or 1.0
    names = min(28, max(len(each.name) for each in known))
    drawn = []
    for each in known:
        text = shown(each.last, of.units.get(each.name, of.unit))
        room = max(1, width - names - len(text) - 3)
        length = math.ceil(room * abs(each.last or 0.0) / most)
        name = each.name if len(each.name) <= names else each.name[: names - 1] + "…"
        drawn.append(
            Text.assemble(f"{name:<{names}} ", ("█" * length, each.colour), (f" {text}", "bold"))
        )
    return Group(*drawn)


def _heatmap(answer: Answer, width: int) -> RenderableType:
    heat, of = answer.heat, answer.panel
    assert heat is not None
    labels = [bound_shown(bound, of.unit) for bound in heat.bounds]
    margin = max(map(len, labels)) + 1
    room = max(4, width - margin)
    start, end = answer.over.start_ms / 1000, answer.over.end_ms / 1000
    most = max(max(row) for row in heat.cells) or 1.0
    drawn = []
    columns = min(room, max(1, round((end - start) / max(answer.over.interval_s, 1))))
    wide = room // columns or 1
    for row, label in zip(reversed(heat.cells), reversed(labels), strict=True):
        sums = [0.0] * columns
        for at, count in zip(heat.times, row, strict=True):
            sums[min(columns - 1, max(0, int((at - start) / (end - start) * columns)))] += count
        line = Text(f"{label:>{margin - 1}} ", "dim")
        for count in sums:
            shade = 0 if not count else 1 + round((len(_SHADES) - 2) * math.sqrt(count / most))
            character, own = _SHADES[min(shade, len(_SHADES) - 1)]
            line.append(character * wide, own)
        drawn.append(line)
    first, last = clock(start, end)
    gap = max(1, columns * wide - len(first) - len(last))
    drawn.append(Text(f"{' ' * margin}{first}{' ' * gap}{last}", "dim"))
    return Group(*drawn)


def _table(answer: Answer, most: int | None) -> RenderableType:
    of = answer.panel
    drawn = Table(box=None, pad_edge=False, header_style="bold dim", expand=False)
    numbers = [
        all(isinstance(row[n], (int, float)) or row[n] is None for row in answer.rows)
        for n in range(len(answer.columns))
    ]
    for name, number in zip(answer.columns, numbers, strict=True):
        drawn.add_column(name, justify="right" if number else "left", no_wrap=True,
                         overflow="ellipsis")  # fmt: skip
    rows = answer.rows if most is None else answer.rows[:most]
    for row in rows:
        drawn.add_row(
            *(
                Text(shown(value, of.units.get(name, of.unit if number else "short")))
                for value, name, number in zip(row, answer.columns, numbers, strict=True)
            )
        )
    left = len(answer.rows) - len(rows)
    return Group(drawn, Text(f"and {left} more rows", "dim")) if left else drawn
