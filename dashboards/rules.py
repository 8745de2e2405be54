"""Alerts as files: rules for Prometheus, and for Grafana's provisioning.

The same declarations give the same bytes.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

from dashboards import config
from dashboards.alerts import GROUPS, SQL_GROUPS
from dashboards.alerts.model import Alert, Group, SqlAlert, SqlGroup
from dashboards.boards import BOARDS

_HEAD: Final = (
    "# Written by `python -m dashboards.generate` from dashboards/alerts; change those.\n"
)
#: How Grafana calls its own expressions.
_EXPRESSION: Final = "__expr__"


class _Dumper(yaml.SafeDumper):  # type: ignore[misc] # the package has no types
    """Texts of several lines as such, and lists indented."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        """Lists stand further in than what they belong to."""
        return super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def _yaml(told: object) -> str:
    text: str = yaml.dump(told, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
    return _HEAD + text


def files() -> dict[str, str]:
    """Everything that is generated of alerts, by its path within the package."""
    return {
        **{f"prometheus/{group.name}.yaml": prometheus(group) for group in GROUPS},
        **{f"grafana-alerts/{group.name}.yaml": grafana(group) for group in SQL_GROUPS},
    }


def notes(alert: Alert | SqlAlert) -> dict[str, str]:
    """What is told to whom it concerns."""
    told = {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": f"{config.RUNBOOKS}/{alert.name}.md",
    }
    if alert.board in {board.uid for board in BOARDS}:
        of_fleet = "?var-fleet={{ $labels.fleet }}" if "$labels.fleet" in alert.description else ""
        told["dashboard_url"] = f"{config.GRAFANA}/d/{alert.board}{of_fleet}"
    return told


def prometheus(group: Group) -> str:
    """A file of rules."""
    rules: list[dict[str, Any]] = [
        {"record": each.name, "expr": each.expr} for each in group.recordings
    ]
    for alert in group.alerts:
        rule: dict[str, Any] = {"alert": alert.name, "expr": alert.expr}
        if alert.pending != "0m":
            rule["for"] = alert.pending
        rule["labels"] = {"severity": alert.severity}
        rule["annotations"] = notes(alert)
        rules.append(rule)
    return _yaml({"groups": [{"name": f"runnerstream_{group.name}", "rules": rules}]})


def grafana(group: SqlGroup) -> str:
    """A file for ``provisioning/alerting``."""
    return _yaml(
        {
            "apiVersion": 1,
            "groups": [
                {
                    "orgId": 1,
                    "name": f"runnerstream_{group.name}",
                    "folder": "runnerstream",
                    "interval": "1m",
                    "rules": [_rule(alert) for alert in group.alerts],
                }
            ],
        }
    )


def _rule(alert: SqlAlert) -> dict[str, Any]:
    asked = {
        "refId": "A",
        "datasource": {"type": config.CLICKHOUSE, "uid": config.CLICKHOUSE_UID},
        "editorType": "sql",
        "rawSql": alert.sql,
        "format": 0,
        "queryType": "timeseries",
        "pluginVersion": config.PLUGIN_VERSION,
    }
    last = {"type": "reduce", "expression": "A", "reducer": "last"}
    bound = {
        "type": "threshold",
        "expression": "B",
        "conditions": [{"evaluator": {"type": "gt", "params": [alert.above]}}],
    }
    return {
        "uid": alert.uid,
        "title": alert.name,
        "condition": "C",
        "for": alert.pending,
        "noDataState": alert.no_data,
        "execErrState": "Error",
        "isPaused": False,
        "labels": {"severity": alert.severity},
        "annotations": notes(alert),
        "data": [
            _step("A", config.CLICKHOUSE_UID, alert.over_s, asked),
            _step("B", _EXPRESSION, alert.over_s, last),
            _step("C", _EXPRESSION, alert.over_s, bound),
        ],
    }


def _step(ref: str, datasource: str, over_s: int, model: dict[str, Any]) -> dict[str, Any]:
    if datasource == _EXPRESSION:
        own = {"type": _EXPRESSION, "uid": _EXPRESSION}
        model = {"refId": ref, "datasource": own, **model}
    return {
        "refId": ref,
        "relativeTimeRange": {"from": over_s, "to": 0},
        "datasourceUid": datasource,
        "model": {**model, "intervalMs": 1_000, "maxDataPoints": 43_200},
    }
