"""Alerts over metrics: each is shown to fire and to stay silent, by Prometheus' own tool."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from dashboards import config
from dashboards.alerts import ALERTS, GROUPS, SQL_ALERTS, model, slo
from dashboards.alerts.model import Alert, Group
from dashboards.boards import BOARDS
from dashboards.generate import HERE, files
from dashboards.rules import notes
from docs.generate import ROLE_METRICS, metric_rows
from pipeline.exporter import EVERYTHING
from pipeline.metrics import QUEUE_SECONDS, Gauge
from sinks.process import tell_process
from tests.support.alert_cases import CASES, Cases, checks_of, minutes
from tests.support.clients import ClientUnavailable
from tests.support.prometheus import promtool

EVERY = {**ALERTS, **SQL_ALERTS}
PARTS = {"histogram": ("_bucket", "_count", "_sum")}


def promtool_says(*arguments: str) -> tuple[int, str]:
    """Exit code and what it says."""
    try:
        return promtool(*arguments)
    except ClientUnavailable as missing:
        pytest.skip(str(missing))


# --- the declarations -------------------------------------------------------------------------


def test_the_files_are_what_the_declarations_say() -> None:
    folders = ("prometheus", "grafana-alerts")
    written = {path for folder in folders for path in (HERE / folder).iterdir()}
    wanted = {path: text for path, text in files().items() if path.suffix == ".yaml"}
    assert written == set(wanted)
    for path, text in wanted.items():
        assert path.read_text() == text, "run `python -m dashboards.generate`"
    assert len(wanted) == len(GROUPS) + 1


def test_alerts_say_what_is_wrong() -> None:
    names = Counter([alert.name for group in GROUPS for alert in group.alerts] + [*SQL_ALERTS])
    assert names.most_common(1)[0][1] == 1
    for alert in EVERY.values():
        assert re.fullmatch(r"[A-Z][A-Za-z]+", alert.name)
        assert not alert.summary.endswith("."), alert.name
        assert alert.description.endswith("."), alert.name
    assert len({alert.uid for alert in SQL_ALERTS.values()}) == len(SQL_ALERTS)
    assert all(len(alert.uid) <= 40 for alert in SQL_ALERTS.values())


def test_panels_name_alerts_that_exist() -> None:
    named = {name for board in BOARDS for panel in board.panels for name in panel.alerts}
    assert named
    assert named <= set(EVERY)


def test_alerts_lead_to_their_page_and_their_dashboard() -> None:
    boards = {board.uid for board in BOARDS}
    planned = {getattr(model, name) for name in (
        "RUNNERS", "JOBS", "ACT_RUNNER", "SCHEDULER", "RECONCILER", "RECOVERY", "PIPELINE",
    )}  # fmt: skip
    assert {alert.board for alert in EVERY.values()} == planned
    assert planned <= boards
    for alert in EVERY.values():
        told = notes(alert)
        assert told["runbook_url"] == f"{config.RUNBOOKS}/{alert.name}.md"
        of_fleet = told["dashboard_url"].endswith("?var-fleet={{ $labels.fleet }}")
        assert of_fleet == ("$labels.fleet" in alert.description), alert.name


def expressions() -> Iterator[tuple[str, str]]:
    for group in GROUPS:
        for each in (*group.recordings, *group.alerts):
            yield each.name, each.expr


def exported() -> set[str]:
    """The name of every series that a process of ours tells."""
    registries = [make().registry for make in ROLE_METRICS.values()]
    registries.append(CollectorRegistry())
    tell_process(registries[-1], "1")
    kinds = {metric.shown: metric.kind for metric in EVERYTHING}
    kinds |= {name.strip("`"): kind for each in registries for name, kind, *_ in metric_rows(each)}
    return {name + part for name, kind in kinds.items() for part in PARTS.get(kind, ("",))}


def test_what_is_asked_for_is_exported() -> None:
    known = exported() | {each.name for group in GROUPS for each in group.recordings}
    asked: set[str] = set()
    for name, expr in expressions():
        bare = re.sub(r'"[^"]*"', "", expr)
        found = set(re.findall(r"(?:\w+:)?\b(?:runnerstream|process)_\w+(?::\w+)?", bare))
        assert found or "up{" in expr, name
        assert found <= known, name
        asked |= found
    assert len(asked) > 80


def test_labels_that_are_asked_for_exist() -> None:
    """A matcher with a label or a value that nobody exports never matches."""
    by_name = {metric.shown: metric for metric in EVERYTHING}
    seen = 0
    for name, expr in expressions():
        for metric, matchers in re.findall(r"(runnerstream_\w+)\{([^}]*)\}", expr):
            declared = by_name.get(re.sub(r"_(bucket|count)$", "", metric))
            if declared is None:
                assert any(metric.startswith(f"runnerstream_{role}")
                           for role in ("gateway", "sink", "api")), name  # fmt: skip
                continue
            values = {label.name: label.values for label in declared.shown_labels}
            for label, _, value in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', matchers):
                seen += 1
                if label == "le":
                    assert float(value) in declared.buckets, name
                elif isinstance(values[label], tuple):
                    told = [each for each in value.split("|") if "." not in each]
                    assert set(told) <= set(values[label]), name
    assert seen > 40


def test_series_of_several_workers_are_brought_together_as_they_are_declared() -> None:
    """Depths and counts are added up, of ages the largest counts."""
    gauges = {metric.shown: metric.over for metric in EVERYTHING if isinstance(metric, Gauge)}
    counters = {
        metric.shown + part for metric in EVERYTHING for part in PARTS.get(metric.kind, ("",))
    } - set(gauges)
    #: Of one process each, so that nothing is brought together, or the worst of them is asked for.
    single = {"runnerstream_ready", "runnerstream_role_up", "runnerstream_tick_lag_seconds"}
    seen = set()
    for name, expr in expressions():
        around = r"(sum|max|min|count) by \([^)]*\) \(\s*(?:\w+\()?(runnerstream_\w+)"
        for how, metric in re.findall(around, expr):
            if metric in counters and how != "count":
                assert how == "sum", f"{name}: {metric}"
            if metric in gauges and how != "count" and metric not in single:
                assert how == gauges[metric], f"{name}: {metric}"
                seen.add(metric)
        bare = set(re.findall(r"runnerstream_\w+", expr)) & set(gauges)
        assert bare <= {metric for _, metric in re.findall(around, expr)} or "absent" in expr, name
    assert len(seen) > 30


def test_what_is_added_up_keeps_the_fleet_where_there_is_one() -> None:
    by_fleet = {metric.shown for metric in EVERYTHING if metric.by_fleet}
    #: Of all fleets together on purpose: who hears nothing of webhooks hears of no fleet.
    whole = {"OrphanRate", "WebhookSilence", "LateSamples", "RunnerQueueBlind"}
    for name, expr in expressions():
        assert "vector(0)" not in expr, name
        metrics = {re.sub(r"_(bucket|count)$", "", each)
                   for each in re.findall(r"runnerstream_\w+", expr)}  # fmt: skip
        if metrics & by_fleet and name not in whole:
            for labels in re.findall(r"by \(([^)]*)\)", expr):
                assert "fleet" in labels or name == "RoleVanished", name
        for labels in re.findall(r"by \(([^)]*)\)", expr):
            assert labels.split(", ")[: len(config.SCOPE)] == list(config.SCOPE), name


def test_the_goal_for_queue_time_is_the_bound_of_a_bucket() -> None:
    assert config.QUEUE_SLO_S in QUEUE_SECONDS.buckets
    from_factors = [factor * slo.BUDGET for factor, _, _ in config.BURNS]
    assert from_factors == sorted(from_factors, reverse=True)
    # With all jobs late the fastest must be reached, or it could never fire.
    assert from_factors[0] < 1


# --- cases ------------------------------------------------------------------------------------


def test_every_alert_has_cases_in_which_it_fires_and_in_which_it_does_not() -> None:
    of = {name: [each for each in CASES if each.alert == name] for name in ALERTS}
    assert set(of) == {each.alert for each in CASES}
    for name, some in of.items():
        assert some, name
        assert all(each.fires and each.silent for each in some), name
        whys = [each.why for cases in some for each in (*cases.fires, *cases.silent)]
        assert len(set(whys)) == len(whys), name
        # What does not last is told nobody; and each case also says when it is not told yet.
        pending = minutes(ALERTS[name].pending)
        assert all(minutes(fires.at) >= pending for cases in some for fires in cases.fires), name


def _write(directory: Path, rules: list[dict[str, Any]], cases: Cases) -> str:
    """A file for promtool with one alert of those in a file, and with what is recorded for it: to
    evaluate all of them each time takes three times as long."""
    mine = [rule for rule in rules if rule.get("alert", cases.alert) == cases.alert]
    about = f"{cases.alert}_{cases.step}.json"  # JSON is YAML
    (directory / f"rules_{about}").write_text(
        json.dumps({"groups": [{"name": "one", "rules": mine}]})
    )
    told = {
        "rule_files": [f"rules_{about}"],
        "evaluation_interval": cases.step,
        "tests": checks_of(cases, ALERTS[cases.alert]),
    }
    (directory / about).write_text(json.dumps(told))
    return str(directory / about)


def test_rules_are_valid() -> None:
    code, said = promtool_says(
        "check", "rules", *(str(HERE / "prometheus" / f"{group.name}.yaml") for group in GROUPS)
    )
    assert code == 0, said
    number = sum(map(int, re.findall(r"SUCCESS: (\d+) rules found", said)))
    assert number == len(list(expressions()))


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: str(group.name))
def test_alerts_fire_when_they_must_and_only_then(
    group: Group, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    names = {alert.name for alert in group.alerts}
    file = yaml.safe_load((HERE / "prometheus" / f"{group.name}.yaml").read_text())
    [rules] = [each["rules"] for each in file["groups"]]
    asked = [_write(tmp_path, rules, cases) for cases in CASES if cases.alert in names]
    assert len(asked) >= len(names)
    code, said = promtool_says("test", "rules", *asked)
    assert code == 0, said
    mine = [cases for cases in CASES if cases.alert in names]
    record_property(
        "tried: alerts",
        {
            "group": group.name,
            "alerts": len(names),
            "shown to fire": sum(len(cases.fires) for cases in mine),
            "shown to stay silent": sum(len(cases.silent) for cases in mine),
        },
    )


def test_who_sees_nothing_hears_of_that_and_of_nothing_else(tmp_path: Path) -> None:
    blind: list[Alert] = [alert for alert in ALERTS.values() if "absent(" in alert.expr]
    assert {alert.name for alert in blind} == {
        "WorkerAbsent", "SinkAbsent", "RunnerQueueBlind", "RecoveryHeartbeatAbsent",
    }  # fmt: skip
    samples = [
        {"labels": f'{{alertname="{alert.name}",severity="{alert.severity}"}}', "value": 1}
        for alert in blind
    ]
    asked = 'count by (alertname, severity) (ALERTS{alertstate="firing"})'
    file = tmp_path / "blind.json"
    file.write_text(
        json.dumps(
            {
                "rule_files": [str(HERE / "prometheus" / f"{group.name}.yaml") for group in GROUPS],
                "evaluation_interval": "1m",
                "tests": [
                    {
                        "interval": "1m",
                        "input_series": [],
                        "promql_expr_test": [
                            {"expr": asked, "eval_time": "30m", "exp_samples": samples}
                        ],
                    }
                ],
            }
        )
    )
    code, said = promtool_says("test", "rules", str(file))
    assert code == 0, said
