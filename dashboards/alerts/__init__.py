"""All alerts, by what they watch."""

from __future__ import annotations

from typing import Final

from dashboards.alerts import (
    act_runner,
    blind,
    history,
    pipeline,
    reconciler,
    recovery,
    runners,
    scheduler,
    sink,
    slo,
    webhooks,
)
from dashboards.alerts.model import Alert, Group, SqlAlert, SqlGroup

#: Over metrics, for Prometheus.
GROUPS: Final[tuple[Group, ...]] = (
    runners.GROUP, slo.GROUP, recovery.GROUP, act_runner.GROUP, scheduler.GROUP, reconciler.GROUP,
    pipeline.GROUP, sink.GROUP, webhooks.GROUP, blind.GROUP,
)  # fmt: skip
#: Over ClickHouse, for Grafana.
SQL_GROUPS: Final[tuple[SqlGroup, ...]] = (history.GROUP,)

ALERTS: Final[dict[str, Alert]] = {each.name: each for group in GROUPS for each in group.alerts}
SQL_ALERTS: Final[dict[str, SqlAlert]] = {
    each.name: each for group in SQL_GROUPS for each in group.alerts
}
