"""Draws panels as a picture. Needs matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")

from matplotlib import dates, pyplot
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dashboards.drawing.answers import (
    Answer,
    Series,
    bound_shown,
    by_threshold,
    by_unit,
    lines,
    marks,
    shown,
)
from dashboards.drawing.text import stacked
from dashboards.model import WIDTH, Dashboard, Panel

GROUND, CARD, EDGE, INK, DIM, GRID = (
    "#111217", "#181b1f", "#2a2d33", "#d8d9da", "#9fa2ad", "#2c2f36",
)  # fmt: skip
#: Of Grafana's grid, in inches; and of the gap between panels.
UNIT_W, UNIT_H, GAP = 0.66, 0.36, 0.08
#: Of a heading, in units.
HEAD: Final = 0.9
#: Sizes of text in points, and how wide a character of the least is, in inches.
SMALL, PLAIN, LARGE = 7.0, 8.5, 22.0
CHARACTER: Final = 0.058


def save(path: Path, title: str, rows: list[tuple[str, list[Answer]]]) -> None:
    """One picture: rows with their headings, panels where they lie in Grafana's grid."""
    places: list[tuple[Answer, float, float]] = []
    heads: list[tuple[str, float]] = []
    top = 1.4 if title else 0.2
    for heading, answers in rows:
        if heading:
            heads.append((heading, top))
            top += HEAD
        left = height = 0
        for answer in answers:
            if left + answer.panel.width > WIDTH:
                top, left, height = top + height, 0, 0
            places.append((answer, left, top))
            left, height = left + answer.panel.width, max(height, answer.panel.height)
        top += height
    wide = max(left + answer.panel.width for answer, left, _ in places)
    size = (wide * UNIT_W + 2 * GAP, top * UNIT_H + 2 * GAP)
    figure = pyplot.figure(figsize=size, facecolor=GROUND)
    try:
        canvas = _Canvas(figure, size)
        if title:
            canvas.text(GAP + 0.1, 0.75 * UNIT_H, title, size=15, weight="bold")
        for heading, at in heads:
            canvas.text(GAP + 0.1, (at + HEAD / 2) * UNIT_H + GAP, f"▾  {heading}", size=10.5,
                        weight="bold")  # fmt: skip
        for answer, x, y in places:
            _panel(canvas, answer, x * UNIT_W + GAP, y * UNIT_H + GAP)
        figure.savefig(path, dpi=110, facecolor=GROUND)
    finally:
        pyplot.close(figure)


def board(
    path: Path, of: Dashboard, answer: Callable[[Panel], Answer], title: str | None = None
) -> None:
    """A whole dashboard. Raises OSError when the file cannot be written."""
    rows = [(row.title, [answer(each) for line in lines(row) for each in line]) for row in of.rows]
    save(path, of.title if title is None else title, rows)


class _Canvas:
    """A figure in inches, from its upper left corner."""

    def __init__(self, figure: Any, size: tuple[float, float]) -> None:
        self.figure, self.size = figure, size

    def text(self, x: float, y: float, text: str, **how: Any) -> None:
        """Write; matplotlib takes a dollar for mathematics."""
        how = {"color": INK, "size": PLAIN, "va": "center", "ha": "left", **how}
        where = (x / self.size[0], 1 - y / self.size[1])
        self.figure.text(*where, text.replace("$", r"\$"), **how)

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        """Where something is drawn."""
        w, h = self.size
        made = self.figure.add_axes((x / w, 1 - (y + height) / h, width / w, height / h))
        made.set_facecolor(CARD)
        for spine in made.spines.values():
            spine.set_visible(False)
        made.tick_params(colors=DIM, labelsize=SMALL, length=0)
        return made

    def card(self, x: float, y: float, width: float, height: float) -> None:
        """The ground of a panel."""
        w, h = self.size
        self.figure.add_artist(
            FancyBboxPatch(
                (x / w, 1 - (y + height) / h), width / w, height / h, boxstyle="square,pad=0",
                facecolor=CARD, edgecolor=EDGE, linewidth=0.8, transform=self.figure.transFigure,
                zorder=-1,
            )
        )  # fmt: skip


def _panel(canvas: _Canvas, answer: Answer, x: float, y: float) -> None:
    of = answer.panel
    width, height = of.width * UNIT_W - GAP, of.height * UNIT_H - GAP
    canvas.card(x, y, width, height)
    most = max(4, int((width - 0.2) / (CHARACTER * PLAIN / SMALL * 1.06)))
    title = of.title if len(of.title) <= most else of.title[: most - 1] + "…"
    canvas.text(x + 0.1, y + 0.16, title, weight="bold")
    inner = (x + 0.1, y + 0.32, width - 0.2, height - 0.4)
    if answer.why_not or answer.empty:
        told = answer.why_not or f"No data: {of.no_data}"
        least = max(8, int(inner[2] / CHARACTER))
        rows = max(1, int(inner[3] / 0.14))
        text = textwrap.wrap(told, least)[:rows]
        canvas.text(inner[0], inner[1], "\n".join(text), size=SMALL, color=DIM, style="italic",
                    va="top")  # fmt: skip
        return
    _KINDS[of.kind](canvas, answer, *inner)


def _stat(canvas: _Canvas, answer: Answer, x: float, y: float, w: float, h: float) -> None:
    of = answer.panel
    several = len(answer.series)
    for n, series in enumerate(answer.series):
        value = series.last
        own = by_threshold(of, value)
        part, left = w / several, x + n * w / several
        text = shown(value, of.units.get(series.name, of.unit))
        size = min(LARGE, LARGE * part / (0.19 * max(len(text), 1) + 0.1), LARGE * h / 0.5)
        course = several == 1 and len(series.known) > 1
        if several > 1:
            canvas.text(left + part / 2, y + h - 0.08, series.name, size=SMALL, color=DIM,
                        ha="center")  # fmt: skip
        canvas.text(left + part / 2, y + h * (0.32 if course else 0.42), text, size=size,
                    color=own, weight="bold", ha="center")  # fmt: skip
        if course:
            axes = canvas.axes(x - 0.1, y + h * 0.62, w + 0.2, h * 0.38 + 0.08)
            axes.set_axis_off()
            times, values = _gapless(series.times, series.values)
            axes.fill_between(times, values, color=own, alpha=0.25, linewidth=0)
            axes.plot(times, values, color=own, linewidth=1)
            axes.set_xlim(answer.over.start_ms / 1000, answer.over.end_ms / 1000)
            axes.set_ylim(0, max([*series.known, 1e-9]) * 1.1)


def _gapless(times: list[float], values: list[float | None]) -> tuple[list[float], list[float]]:
    """For a line: what is not known is a gap."""
    return times, [float("nan") if value is None else value for value in values]


def _broken(times: list[float], values: list[float | None], step: float) -> Any:
    """With a gap wherever points are missing."""
    at: list[float] = []
    found: list[float] = []
    for time, value in zip(*_gapless(times, values), strict=True):
        if at and time - at[-1] > 2.5 * step:
            at.append(at[-1] + step / 2)
            found.append(float("nan"))
        at.append(time)
        found.append(value)
    return [datetime.fromtimestamp(each) for each in at], found


def _timeseries(canvas: _Canvas, answer: Answer, x: float, y: float, w: float, h: float) -> None:
    of = answer.panel
    per_line = max(1, int(w / (CHARACTER * 40)))
    room = max(1, int(h / 3 / 0.15)) * per_line
    ranked = sorted(answer.series, key=lambda each: -max(each.known, default=0.0))
    named = ranked if len(ranked) <= room else ranked[: room - 1]
    legend = 0.15 * -(-min(len(ranked), room) // per_line)
    usual, others = by_unit(answer)
    unit, other = of.unit_of(usual[0].name), of.unit_of(others[0].name) if others else ""
    margin, right = _margin(usual, unit), _margin(others, other) if others else 0.05
    axes = canvas.axes(x + margin, y + 0.04, w - margin - right, h - legend - 0.28)
    drawn = stacked(usual) if of.stacked else usual
    _lines(axes, answer, drawn, of.stacked)
    _frame(axes, answer, [value for each in drawn for value in each.known], unit)
    if others:
        beside = axes.twinx()
        for spine in beside.spines.values():
            spine.set_visible(False)
        beside.tick_params(colors=DIM, labelsize=SMALL, length=0)
        _lines(beside, answer, others, False)
        high = max([*(value for each in others for value in each.known), 1e-9])
        beside.set_ylim(0, high * 1.06)
        places = marks(high, other)
        beside.set_yticks(places, [shown(each, other) for each in places])
    for n, series in enumerate(named):
        line, place = divmod(n, per_line)
        left, top = x + place * w / per_line, y + h - legend + 0.15 * line + 0.08
        unit = of.unit_of(series.name)
        figures = f"{shown(series.last, unit)} · max {shown(max(series.known, default=None), unit)}"
        letters = max(4, int((w / per_line - 0.2) / CHARACTER) - len(figures) - 2)
        name = series.name if len(series.name) <= letters else series.name[: letters - 1] + "…"
        canvas.text(left, top, "━", size=SMALL, color=series.colour, weight="bold")
        canvas.text(left + 0.14, top, f"{name}  {figures}", size=SMALL, color=DIM)
    if len(named) < len(ranked):
        line, place = divmod(len(named), per_line)
        canvas.text(x + place * w / per_line, y + h - legend + 0.15 * line + 0.08,
                    f"and {len(ranked) - len(named)} more", size=SMALL, color=DIM)  # fmt: skip


def _margin(series: list[Series], unit: str) -> float:
    """Inches that the marks of an axis take."""
    values = [value for each in series for value in each.known]
    labels = max(len(shown(value, unit)) for value in (*values, 0.0)[:400])
    return 0.1 + CHARACTER * min(max(labels, 4), 9)


def _lines(axes: Any, answer: Answer, drawn: list[Series], filled: bool) -> None:
    of, step = answer.panel, _step(answer)
    for series in drawn:
        at, known = _broken(series.times, series.values, step)
        how = "steps-post" if of.steps else "default"
        lonely = of.points or len(series.known) == 1
        axes.plot(at, known, color=series.colour, linewidth=0 if of.points else 1.2,
                  drawstyle=how, marker="o" if lonely else "", markersize=2.2)  # fmt: skip
        if filled:
            axes.fill_between(at, known, color=series.colour, alpha=0.9, linewidth=0,
                              step="post" if of.steps else None)  # fmt: skip


def _step(answer: Answer) -> float:
    """Seconds between points: as asked for, or as they come when that is rarer."""
    gaps = [
        later - at
        for series in answer.series
        for at, later in zip(series.times, series.times[1:], strict=False)
        if later > at
    ]
    usual = sorted(gaps)[len(gaps) // 2] if gaps else 0.0
    return float(max(answer.over.interval_s, usual))


def _frame(axes: Any, answer: Answer, values: list[float], unit: str) -> None:
    """Axes: from 0, times of the range, a line at each threshold that is near."""
    of = answer.panel
    high = max([*values, of.soft_max or 0.0, of.maximum or 0.0, 1e-9])
    axes.set_ylim(min(0.0, *values), high * 1.06)
    axes.set_xlim(*(datetime.fromtimestamp(each / 1000)
                    for each in (answer.over.start_ms, answer.over.end_ms)))  # fmt: skip
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    if min(0.0, *values) < 0:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, unit)))
    else:
        places = marks(high, unit)
        axes.set_yticks(places, [shown(each, unit) for each in places])
    _times(axes)


def _times(axes: Any) -> None:
    place = dates.AutoDateLocator(minticks=4, maxticks=8)
    axes.xaxis.set_major_locator(place)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(place, show_offset=False))


def _heatmap(canvas: _Canvas, answer: Answer, x: float, y: float, w: float, h: float) -> None:
    heat, of = answer.heat, answer.panel
    assert heat is not None
    axes = canvas.axes(x + 0.55, y + 0.04, w - 0.65, h - 0.3)
    step = min((b - a for a, b in zip(heat.times, heat.times[1:], strict=False)), default=60.0)
    edges = [heat.times[0] + n * step for n in range(round(
        (heat.times[-1] - heat.times[0]) / step) + 2)]  # fmt: skip
    cells = [[float("nan")] * (len(edges) - 1) for _ in heat.bounds]
    for n, row in enumerate(heat.cells):
        for at, count in zip(heat.times, row, strict=True):
            if count:
                cells[n][min(len(edges) - 2, round((at - heat.times[0]) / step))] = count
    # From the other end: on a dark ground what is seldom is dark.
    name = f"{of.palette}_r"
    colours = pyplot.get_cmap(name if name in matplotlib.colormaps else "Blues_r")
    axes.pcolormesh([datetime.fromtimestamp(each) for each in edges],
                    range(len(heat.bounds) + 1), cells, cmap=colours, vmin=0)  # fmt: skip
    axes.set_xlim(*(datetime.fromtimestamp(each / 1000)
                    for each in (answer.over.start_ms, answer.over.end_ms)))  # fmt: skip
    every = max(1, -(-len(heat.bounds) // max(2, int(h / 0.2))))
    marks = range(0, len(heat.bounds), every)
    axes.set_yticks([n + 1 for n in marks])
    axes.set_yticklabels([bound_shown(heat.bounds[n], of.unit) for n in marks])
    _times(axes)


def _table(canvas: _Canvas, answer: Answer, x: float, y: float, w: float, h: float) -> None:
    of = answer.panel
    rows = answer.rows[: max(1, int(h / 0.17) - 1)]
    numbers = [all(isinstance(row[n], (int, float)) or row[n] is None for row in answer.rows)
               for n in range(len(answer.columns))]  # fmt: skip
    texts = [
        [shown(value, of.units.get(name, of.unit if number else "short"))
         for value, name, number in zip(row, answer.columns, numbers, strict=True)]
        for row in rows
    ]  # fmt: skip
    wanted = [max(len(name), *(len(row[n]) for row in texts), 3) + 3
              for n, name in enumerate(answer.columns)]  # fmt: skip
    room = w / CHARACTER
    while sum(wanted) > room and max(wanted) > 6:
        wanted[wanted.index(max(wanted))] -= 1
    scale = w / max(sum(wanted), 1)
    for line, cells in enumerate([answer.columns, *texts]):
        left = x
        for n, text in enumerate(cells):
            most = wanted[n] - 2
            cut = text if len(text) <= most else text[: max(1, most - 1)] + "…"
            right = left + (wanted[n] - 2) * scale
            canvas.text(right if numbers[n] else left, y + 0.08 + 0.17 * line, cut, size=SMALL,
                        color=DIM if not line else INK, weight="bold" if not line else "normal",
                        ha="right" if numbers[n] else "left")  # fmt: skip
            left += wanted[n] * scale


def _bars(canvas: _Canvas, answer: Answer, x: float, y: float, w: float, h: float) -> None:
    of = answer.panel
    known = [each for each in answer.series if each.last is not None][: max(1, int(h / 0.2))]
    letters = min(max(len(each.name) for each in known), int(w / 3 / CHARACTER))
    most = max(abs(each.last or 0.0) for each in known) or 1.0
    texts = [shown(each.last, of.units.get(each.name, of.unit)) for each in known]
    margin = CHARACTER * letters + 0.15
    room = w - margin - CHARACTER * (max(map(len, texts)) + 2)
    axes = canvas.axes(x + margin, y, w - margin, h)
    axes.set_axis_off()
    axes.set_xlim(0, w - margin)
    axes.set_ylim(max(h / 0.3, len(known)) - 0.5, -0.5)
    for n, (series, text) in enumerate(zip(known, texts, strict=True)):
        length = room * abs(series.last or 0.0) / most
        axes.barh(n, length, height=0.62, color=series.colour)
        name = series.name if len(series.name) <= letters else series.name[: letters - 1] + "…"
        for at, told, how in ((length + 0.06, text, INK), (-0.06, name, DIM)):
            axes.text(at, n, told.replace("$", r"\$"), size=SMALL, color=how, va="center",
                      ha="left" if at > 0 else "right")  # fmt: skip


_KINDS: Final = {
    "stat": _stat, "timeseries": _timeseries, "heatmap": _heatmap, "table": _table, "bars": _bars,
}  # fmt: skip
