"""Panels are drawn as what they are answered: values, units, colours, gaps, and the grid."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dashboards import generate
from dashboards.drawing import png, text
from dashboards.drawing.answers import (
    HEX,
    Answer,
    Series,
    answered,
    board_named,
    bound_shown,
    by_threshold,
    by_unit,
    lines,
    marks,
    panel_named,
    promql,
    shown,
)
from dashboards.macros import Range
from dashboards.model import WIDTH, Dashboard, Kind, Panel, Promql, Row, Sql

START = 1_790_000_000
OVER = Range(START * 1000, (START + 600) * 1000, 60, {"fleet": ()})
TIMED = [("time", "DateTime('UTC')"), ("fleet", "LowCardinality(String)"), ("p50", "Float64"),
         ("p99", "Nullable(Float64)")]  # fmt: skip


def panel(kind: Kind = "timeseries", title: str = "T", **more: Any) -> Panel:
    return Panel(title, kind, (Sql("SELECT 1"),), "h", "d", "t", "nobody tells", **more)


def at(minute: int) -> datetime:
    return datetime.fromtimestamp(START + 60 * minute, UTC)


def drawn(answer: Answer, width: int = 80) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(text.box(answer, width))
    return captured.get()


def answer(of: Panel, columns: Any, rows: Any) -> Answer:
    return answered(of, OVER, lambda query: (columns, rows))


@pytest.mark.parametrize(
    ("value", "unit", "told"),
    [
        (340, "ms", "340 ms"), (12_300, "ms", "12.3 s"), (90_000, "ms", "1.5 min"),
        (7.2e6, "ms", "2 h"),
        (0, "s", "0 ms"), (90, "s", "1.5 min"), (0.25, "s", "250 ms"), (172_800, "s", "2 d"),
        (1_234, "short", "1.23K"), (999, "short", "999"), (0, "short", "0"),
        (2.5e6, "short", "2.5 Mil"),
        (0.995, "percentunit", "99.5%"), (-83.44, "percentunit", "-8,344%"),
        (1, "percentunit", "100%"),
        (3.456, "currencyUSD", "$3.46"), (2_048, "bytes", "2 KiB"), (0.0333, "ops", "0.0333 /s"),
        (None, "ms", "–"), (math.nan, "ms", "–"), ("linux", "ms", "linux"),
        (datetime(2026, 1, 2, 3, 4, 5), "ms", "2026-01-02 03:04:05"), (-0.0, "ms", "0 ms"),
    ],
)  # fmt: skip
def test_a_value_is_told_in_its_unit(value: Any, unit: str, told: str) -> None:
    assert shown(value, unit) == told


@given(st.floats(1e-6, 1e15), st.sampled_from(["ms", "s", "short", "percentunit"]))
def test_an_axis_has_a_few_marks(high: float, unit: str) -> None:
    found = marks(high, unit)
    assert found[0] == 0
    assert 2 <= len(found) <= 6
    assert found[-1] <= high * (1 + 1e-9)


def test_a_series_for_each_value_and_label() -> None:
    rows = [(at(0), "a", 1.0, None), (at(0), "b", 2.0, 9.0), (at(1), "a", 3.0, math.nan)]
    found = answer(panel(), TIMED, rows).series
    assert [(each.name, each.values) for each in found] == [
        ("p50 a", [1.0, 3.0]), ("p99 a", [None, None]), ("p50 b", [2.0]), ("p99 b", [9.0]),
    ]  # fmt: skip
    # The same thing has the same colour everywhere.
    assert [each.colour for each in found] == [HEX["green"], HEX["red"]] * 2
    assert found[0].times == [START, START + 60]
    single = answer(panel(), [TIMED[0], TIMED[1], TIMED[2]], [row[:3] for row in rows])
    assert [each.name for each in single.series] == ["a", "b"]


def test_thresholds_give_the_colour() -> None:
    of = panel(thresholds=((None, "green"), (5, "yellow"), (25, "red")))
    assert [by_threshold(of, each) for each in (0, 4.9, 5, 25, None)] == [
        HEX["green"], HEX["green"], HEX["yellow"], HEX["red"], HEX["text"],
    ]  # fmt: skip


def test_a_stat_is_its_latest_value_that_is_known() -> None:
    rows = [(at(0), 7), (at(1), 90_000), (at(2), None)]
    found = answer(panel("stat", unit="ms"), [TIMED[0], ("v", "Nullable(UInt64)")], rows)
    assert "1.5 min" in drawn(found)
    assert text.sparkline([0, 8, None, 4], 4) == "▁█ ▅"
    assert text.sparkline([1] * 100, 10) == "█" * 10


def test_what_is_missing_is_a_gap_and_not_a_line() -> None:
    def dots(values: list[float | None]) -> int:
        canvas = text.Canvas(40, 8)
        times = [START + 60.0 * n for n in range(len(values))]
        series = Series("s", "green", times, values)
        canvas.draw(series, (START, START + 600), (0, 10), 60, points=False)
        return sum(ord(c) - 0x2800 > 0 for line in canvas.lines() for c in line.plain if c != " ")

    assert dots([5.0] * 11) == 40
    assert dots([5.0] * 4 + [None] * 3 + [5.0] * 4) < 30
    assert dots([None] * 11) == 0


def test_no_data_says_what_that_means() -> None:
    for kind in ("stat", "timeseries", "heatmap", "table", "bars"):
        assert "no data: nobody tells" in drawn(answer(panel(kind), TIMED, []))  # type: ignore[arg-type]


def test_a_heatmap_is_darker_where_there_is_more() -> None:
    columns = [TIMED[0], ("le", "String"), ("count", "UInt64")]
    rows = [(at(1), "1000", 1), (at(1), "60000", 100), (at(5), "+Inf", 3)]
    shade = drawn(answer(panel("heatmap", unit="ms"), columns, rows)).splitlines()
    told = ("more", "1 min", "1 s")
    assert all(label in line for label, line in zip(told, shade[1:4], strict=True))
    assert "█" in shade[2]
    assert "░" in shade[3]
    assert bound_shown("+Inf", "ms") == "more"


def test_a_table_shows_units_and_hides_what_only_links_need() -> None:
    of = panel("table", units={"wait": "ms"}, hidden=("key",))
    columns = [("job", "String"), ("wait", "UInt64"), ("key", "String")]
    shown_ = drawn(answer(of, columns, [("build", 90_000, "k1")]))
    assert "1.5 min" in shown_
    assert "k1" not in shown_
    many = Answer(of, OVER, columns=["job"], rows=[[f"job {n}"] for n in range(30)])
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(text.box(many, 80, 10))
    assert "and 20 more rows" in captured.get()


def test_bars_are_as_long_as_their_values() -> None:
    columns = [("repo", "String"), ("n", "UInt64")]
    told = drawn(answer(panel("bars"), columns, [("a", 100), ("b", 50)])).splitlines()
    assert abs(told[1].count("█") - 2 * told[2].count("█")) <= 1


def test_stacked_series_lie_on_each_other() -> None:
    one, two = Series("a", "", [1, 2], [1.0, None]), Series("b", "", [1, 2], [2.0, 3.0])
    top, below = text.stacked([one, two])
    assert (top.values, below.values) == ([3.0, 3.0], [1.0, 0.0])


def test_what_is_of_another_unit_has_an_axis_of_its_own(tmp_path: Path) -> None:
    of = panel(unit="opm", units={"ratio": "percentunit"}, stacked=True)
    assert [of.unit_of(each) for each in ("ratio", "ratio macos", "ratios", "a")] == [
        "percentunit", "percentunit", "opm", "opm",
    ]  # fmt: skip
    columns = [("time", "DateTime('UTC')"), ("done", "Float64"), ("ratio", "Float64")]
    found = answer(of, columns, [(at(n), 30.0, 0.5) for n in range(9)])
    usual, others = by_unit(found)
    assert [[each.name for each in part] for part in (usual, others)] == [["done"], ["ratio"]]
    # The scale of the chart is that of its unit, and each figure is told in its own.
    told = drawn(found)
    assert "30 /min" in told
    assert "30.5" not in told
    assert "50%" in told
    png.save(tmp_path / "x.png", "T", [("R", [found])])
    both = answer(panel(units={"done": "s", "ratio": "s"}), columns, [(at(1), 3.0, 0.5)])
    assert by_unit(both) == (both.series, [])
    made = generate.written(Dashboard("x", "X", "", (Row("R", (of,)),)))
    [override] = [
        each["properties"] for each in json.loads(made)["panels"][1]["fieldConfig"]["overrides"]
        if each["matcher"]["options"] == "ratio"
    ]  # fmt: skip
    assert {"id": "custom.stacking", "value": {"group": "A", "mode": "none"}} in override


@given(st.lists(st.integers(1, WIDTH), max_size=12))
def test_panels_lie_in_the_grid_in_their_order(widths: list[int]) -> None:
    row = Row("R", tuple(panel(title=str(n), width=each) for n, each in enumerate(widths)))
    found = list(lines(row))
    assert [each for line in found for each in line] == list(row.panels)
    assert all(0 < sum(each.width for each in line) <= WIDTH for line in found)
    for line, after in pairwise(found):
        assert sum(each.width for each in line) + after[0].width > WIDTH


def test_names_are_found_however_they_are_written() -> None:
    board = Dashboard("runnerstream-runners", "Runners", "", (
        Row("R", tuple(panel(title=each) for each in ("Queue time", "Queue time by fleet", "Run"))),
    ))  # fmt: skip
    assert board_named([board], "runners") is board_named([board], "runnerstream-runners")
    with pytest.raises(KeyError, match="Runners"):
        board_named([board], "x")
    assert panel_named(board, "queue TIME").title == "Queue time"
    assert panel_named(board, "by fleet").title == "Queue time by fleet"
    with pytest.raises(KeyError, match="Queue time by fleet"):
        panel_named(board, "queue")


def test_promql_gets_values_and_intervals() -> None:
    query = Promql('sum(rate(a{f=~"$fleet",r=~"${repo:regex}"}[$__rate_interval]))[$__range]')
    over = Range(0, 3_600_000, 30, {"fleet": (), "repo": ("a.b", "c")})
    assert promql(query, over, {"fleet": ["x", "y"]}) == (
        'sum(rate(a{f=~"x|y",r=~"a\\\\.b|c"}[60s]))[3600s]'
    )
    assert 'f=~".*"' in promql(query, over, {})
