"""Writes what Grafana reads: ``python -m dashboards.generate``; with ``--check`` it only compares.

The same declarations give the same bytes, so what is committed can be compared with them.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.barchart import Panel as Bars
from grafana_foundation_sdk.builders.common import (
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as grafana
from grafana_foundation_sdk.models import heatmap as heatmaps

from dashboards import config, rules
from dashboards.boards import BOARDS
from dashboards.model import WIDTH, Annotation, Dashboard, Panel, Promql, Query, Sql, Variable

HERE: Final = Path(__file__).parent
OUT: Final = HERE / "grafana"
CLICKHOUSE: Final = grafana.DataSourceRef(config.CLICKHOUSE, f"${{{config.CLICKHOUSE_VARIABLE}}}")
PROMETHEUS: Final = grafana.DataSourceRef(config.PROMETHEUS, f"${{{config.PROMETHEUS_VARIABLE}}}")


@dataclass
class ClickHouseQuery(Dataquery, Builder[Dataquery]):
    """A query as grafana-clickhouse-datasource writes it; the SDK has none."""

    sql: Sql
    ref_id: str

    def build(self) -> Dataquery:
        """Itself."""
        return self

    def to_json(self) -> dict[str, object]:
        """As it stands in a dashboard."""
        series = self.sql.shape == "timeseries"
        return {
            "refId": self.ref_id,
            "datasource": {"type": CLICKHOUSE.type_val, "uid": CLICKHOUSE.uid},
            "editorType": "sql",
            "rawSql": self.sql.text,
            "format": 0 if series else 1,
            "queryType": self.sql.shape,
            "pluginVersion": config.PLUGIN_VERSION,
        }


def written(board: Dashboard) -> str:
    """A dashboard as a file for Grafana."""
    told = json.loads(JSONEncoder(sort_keys=True, indent=2).encode(_dashboard(board)))
    return json.dumps(told, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def files() -> dict[Path, str]:
    """Everything that is generated, by where it stands."""
    boards = {OUT / f"{board.uid}.json": written(board) for board in BOARDS}
    return boards | {HERE / path: text for path, text in rules.files().items()}


def _dashboard(board: Dashboard) -> grafana.Dashboard:
    made = (
        build.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["runnerstream"])
        .readonly()
        .time(board.range, "now")
        .refresh(board.refresh)
        .timezone("browser")
        .tooltip(grafana.DashboardCursorSync.CROSSHAIR)
        .link(
            build.DashboardLink("Other dashboards")
            .type(grafana.DashboardLinkType.DASHBOARDS)
            .tags(["runnerstream"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
    )
    made.with_variable(_datasource(config.CLICKHOUSE_VARIABLE, "Data source", config.CLICKHOUSE))
    if any(isinstance(query, Promql) for panel in board.panels for query in panel.queries):
        made.with_variable(_datasource(config.PROMETHEUS_VARIABLE, "Metrics", config.PROMETHEUS))
    for variable in board.variables:
        made.with_variable(_variable(variable))
    for annotation in board.annotations:
        made.annotation(_annotation(annotation))
    number, top = 0, 0
    for row in board.rows:
        number += 1
        made.with_row(
            build.Row(row.title).id(number).grid_pos(grafana.GridPos(h=1, w=WIDTH, x=0, y=top))
        )
        top += 1
        left = height = 0
        for panel in row.panels:
            if left + panel.width > WIDTH:
                top, left, height = top + height, 0, 0
            number += 1
            place = grafana.GridPos(h=panel.height, w=panel.width, x=left, y=top)
            made.with_panel(_panel(panel).id(number).grid_pos(place))
            left, height = left + panel.width, max(height, panel.height)
        top += height
    return made.build()


def _datasource(name: str, label: str, kind: str) -> build.DatasourceVariable:
    return build.DatasourceVariable(name).label(label).type(kind)


def _variable(variable: Variable) -> Any:
    if not variable.sql:
        return (
            build.TextBoxVariable(variable.name).label(variable.label).default_value(variable.text)
        )
    made = (
        build.QueryVariable(variable.name)
        .label(variable.label)
        .datasource(CLICKHOUSE)
        .query({"editorType": "sql", "rawSql": variable.sql, "refId": variable.name})
        .refresh(grafana.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(grafana.VariableSort.ALPHABETICAL_ASC)
    )
    if variable.multi:
        made = (
            made.multi(True)
            .include_all(True)
            .current(grafana.VariableOption(selected=True, text="All", value="$__all"))
        )
    return made


def _annotation(annotation: Annotation) -> build.AnnotationQuery:
    query = ClickHouseQuery(Sql(annotation.sql, "table"), "Annotation").to_json()
    made = build.AnnotationQuery().name(annotation.name).enable(True)
    made = made.datasource(CLICKHOUSE).icon_color(annotation.colour)
    # The SDK knows targets of Grafana's own annotations only.
    made._internal.target = query  # type: ignore[assignment]
    return made


def _targets(queries: tuple[Query, ...]) -> list[Any]:
    found: list[Any] = []
    for number, query in enumerate(queries):
        ref = chr(ord("A") + number)
        if isinstance(query, Sql):
            found.append(ClickHouseQuery(query, ref))
            continue
        made = prometheus.Dataquery().expr(query.text).ref_id(ref).legend_format(query.legend)
        found.append((made.instant() if query.instant else made.range()).datasource(PROMETHEUS))
    return found


def _panel(panel: Panel) -> Any:
    made: Any = _KINDS[panel.kind](panel)
    thresholds = [
        # The lowest has no value; JSON says null.
        grafana.Threshold(value=value, color=colour)
        for value, colour in panel.thresholds
    ]
    of = PROMETHEUS if isinstance(panel.queries[0], Promql) else CLICKHOUSE
    made = (
        made.title(panel.title)
        .description(panel.description)
        .datasource(of)
        .targets(_targets(panel.queries))
        .links(
            [
                build.DashboardLink(f"Runbook: {name}")
                .type(grafana.DashboardLinkType.LINK)
                .url(f"{config.RUNBOOKS}/{name}.md")
                .target_blank(True)
                for name in panel.alerts
            ]
        )
    )
    if panel.kind == "heatmap":
        return made
    made = made.unit(panel.unit).no_value("–").min(0)
    made = made.thresholds(
        build.ThresholdsConfig().mode(grafana.ThresholdsMode.ABSOLUTE).steps(thresholds)
    )
    if panel.maximum is not None:
        made = made.max(panel.maximum)
    for name, colour in {**config.COLOURS, **panel.colours}.items():
        if panel.kind in ("timeseries", "bars"):
            fixed = {"mode": "fixed", "fixedColor": colour}
            # A series of one value is called after its labels, of several after both.
            whole = f"/(^| ){re.escape(name)}$/"
            made = made.override_by_regexp(whole, [grafana.DynamicConfigValue("color", fixed)])
    for name, unit in panel.units.items():
        override: list[Any] = [grafana.DynamicConfigValue("unit", unit)]
        if panel.kind == "timeseries" and panel.stacked:
            # What is of another unit does not lie on the others.
            override.append(
                grafana.DynamicConfigValue("custom.stacking", {"group": "A", "mode": "none"})
            )
            override.append(grafana.DynamicConfigValue("custom.fillOpacity", 0))
        made = made.override_by_name(name, override)
    for column, link in panel.links.items():
        chosen = "".join(
            f'&var-{variable}=${{__data.fields["{field}"]:percentencode}}'
            for variable, field in link.values.items()
        )
        chosen += "".join(f"&${{{variable}:queryparam}}" for variable in link.keep)
        url = f"/d/{link.to}?${{__url_time_range}}&${{{config.CLICKHOUSE_VARIABLE}:queryparam}}"
        url = link.to if "://" in link.to else url + chosen
        told = [{"title": link.title, "url": url}]
        made = made.override_by_name(column, [grafana.DynamicConfigValue("links", told)])
    for column in panel.hidden:
        hide = grafana.DynamicConfigValue("custom.hidden", True)
        made = made.override_by_name(column, [hide])
    return made


def _stat(panel: Panel) -> Any:
    area = isinstance(panel.queries[0], Promql) or panel.queries[0].shape == "timeseries"
    return (
        stat.Panel()
        .graph_mode(common.BigValueGraphMode.AREA if area else common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.VALUE)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _timeseries(panel: Panel) -> Any:
    made = (
        timeseries.Panel()
        .line_width(2)
        .fill_opacity(30 if panel.stacked else 0)
        .span_nulls(False)
        .show_points(common.VisibilityMode.ALWAYS if panel.points else common.VisibilityMode.AUTO)
        .legend(
            VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(
            VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
    )
    if panel.stacked:
        made = made.stacking(StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if panel.steps:
        made = made.line_interpolation(common.LineInterpolation.STEP_AFTER)
    if panel.soft_max is not None:
        made = made.axis_soft_max(panel.soft_max)
    return made


def _heatmap(panel: Panel) -> Any:
    return (
        heatmap.Panel()
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(panel.unit))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmaps.HeatmapColorMode.SCHEME)
            .scheme(panel.palette)
            .steps(32)
        )
        .rows_frame(heatmap.RowsHeatmapOptions().layout(common.HeatmapCellLayout.LE))
    )


def _table(panel: Panel) -> Any:
    return table.Panel().filterable(True)


def _bars(panel: Panel) -> Any:
    return Bars().orientation(common.VizOrientation.HORIZONTAL)


_KINDS: Final = {
    "stat": _stat, "timeseries": _timeseries, "heatmap": _heatmap, "table": _table, "bars": _bars,
}  # fmt: skip


def main() -> int:
    """Write the files, or with ``--check`` name those that differ; the exit code."""
    wanted = files()
    folders = {path.parent for path in wanted} | {OUT}
    there = {path for folder in folders for path in folder.glob("*") if path.is_file()}
    differ = sorted(
        path
        for path in there | set(wanted)
        if path not in wanted or not path.exists() or path.read_text() != wanted[path]
    )
    if "--check" in sys.argv[1:]:
        for path in differ:
            name = path.relative_to(HERE)
            print(f"{name} is not what its declaration says", file=sys.stderr)
        if differ:
            print("run `python -m dashboards.generate`", file=sys.stderr)
        return 1 if differ else 0
    for folder in folders:
        folder.mkdir(exist_ok=True)
    for path in differ:
        if path in wanted:
            path.write_text(wanted[path])
        else:
            path.unlink()
        print(f"written: {path.relative_to(HERE)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
