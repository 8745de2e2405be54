"""What makes an alert fire, what leaves it silent, and the promtool test that follows from it.

A series is written short: ``"oldest_seconds fleet=f status=queued"``. Its values are promtool's,
and the last may end with ``...``: it goes on to the end. All cases of an alert stand in one
Prometheus, each in a cluster of its own, so that none may be seen by another; those of ``absent``
stand alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dashboards.alerts import Alert
from dashboards.rules import notes

Series = Mapping[str, str]
_FLEET: Final = {"fleet": "f"}
_UNITS: Final = {"m": 1, "h": 60, "d": 1440, "w": 10_080}


@dataclass(frozen=True)
class Fires:
    """Series with which the alert fires: from ``at`` on, and not one evaluation before.

    Attributes:
        value: as the description shows what was measured.
        labels: of the alert, those of its rule apart.
        until: when it is over again.
    """

    why: str
    series: Series
    at: str
    value: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: _FLEET)
    until: str = ""


@dataclass(frozen=True)
class Silent:
    """Series with which the alert never fires."""

    why: str
    series: Series


@dataclass(frozen=True)
class Cases:
    """Of one alert. ``step``: between samples and between evaluations; ``to``: the last of them."""

    alert: str
    fires: tuple[Fires, ...]
    silent: tuple[Silent, ...]
    step: str = "1m"
    to: str = ""


def minutes(told: str) -> int:
    """A time as promtool writes it."""
    parts = re.findall(r"(\d+)([mhdw])", told)
    assert "".join(number + unit for number, unit in parts) == told, told
    return sum(int(number) * _UNITS[unit] for number, unit in parts)


def checks_of(cases: Cases, alert: Alert) -> list[dict[str, Any]]:
    """The promtool tests of a rule: when it fires and when not, and what it says."""
    step = minutes(cases.step)
    marks = {minutes(mark) for each in cases.fires for mark in (each.at, each.until) if mark}
    last = max({minutes(cases.to)} if cases.to else marks) + 2 * step
    times = sorted({time for mark in marks for time in (mark - step, mark)} | {last})
    every: tuple[Fires | Silent, ...] = (*cases.fires, *cases.silent)
    if "absent(" in alert.expr:
        found = [_test(cases, alert, [each], times, "") for each in every]
    else:
        found = [_test(cases, alert, every, times, "cluster")]
    return found + [_said(cases, alert, each) for each in cases.fires]


def _test(cases: Cases, alert: Alert, some: Any, times: list[int], scope: str) -> dict[str, Any]:
    """Whether it fires, case by case."""
    asked = f'ALERTS{{alertname="{alert.name}",alertstate="firing"}}'
    checks = []
    for time in times:
        firing = [each for each in some if isinstance(each, Fires) and _fires(each, time)]
        samples = [
            {"labels": "ALERTS" + _labels(_of_alert(alert, each, scope)), "value": 1}
            for each in firing
        ]
        checks.append({"expr": asked, "eval_time": f"{time}m", "exp_samples": samples})
    return {
        "name": f"{alert.name}: {'; '.join(each.why for each in some)}",
        "interval": cases.step,
        "input_series": _input(cases, some, times[-1], scope),
        "promql_expr_test": checks,
    }


def _said(cases: Cases, alert: Alert, case: Fires) -> dict[str, Any]:
    """What is told when it begins to fire."""
    at = minutes(case.at)
    return {
        "name": f"{alert.name} says: {case.why}",
        "interval": cases.step,
        "input_series": _input(cases, [case], at, ""),
        "alert_rule_test": [
            {
                "alertname": alert.name,
                "eval_time": case.at,
                "exp_alerts": [
                    {
                        "exp_labels": {"severity": alert.severity, **case.labels},
                        "exp_annotations": {
                            name: _filled(text, case) for name, text in notes(alert).items()
                        },
                    }
                ],
            }
        ],
    }


def _fires(case: Fires, time: int) -> bool:
    return minutes(case.at) <= time and not (case.until and minutes(case.until) <= time)


def _filled(template: str, case: Fires) -> str:
    for name, value in case.labels.items():
        template = template.replace(f"{{{{ $labels.{name} }}}}", value)
    return re.sub(r"\{\{[^{}]*\$value[^{}]*\}\}", case.value, template)


def _of_alert(alert: Alert, case: Fires, scope: str) -> dict[str, str]:
    own = {"alertname": alert.name, "alertstate": "firing", "severity": alert.severity}
    return {**own, **case.labels, **({scope: case.why} if scope else {})}


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def _input(cases: Cases, some: Any, last: int, scope: str) -> list[dict[str, str]]:
    number = last // minutes(cases.step) + 1
    found = []
    for each in some:
        for told, shape in each.series.items():
            name, *pairs = told.split()
            labels = dict(pair.split("=") for pair in pairs) | ({scope: each.why} if scope else {})
            full = name if name == "up" or name.startswith("process_") else f"runnerstream_{name}"
            whole = re.sub(r"(\S+)\.\.\.$", rf"\1x{number}", shape)
            # What is no number cannot be repeated.
            values = re.sub(r"NaNx(\d+)", lambda found: "NaN " * (int(found[1]) + 1), whole)
            found.append({"series": full + _labels(labels), "values": values.strip()})
    return found
