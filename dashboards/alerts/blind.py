"""Blindness: where nothing is known no other alert can fire, and all looks well."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dashboards import config
from dashboards.alerts.model import PIPELINE, RECOVERY, RUNNERS, Alert, Group, by, one_of

ALL: Final = by()

WORKER: Final = Alert(
    "WorkerAbsent",
    "critical",
    "absent(runnerstream_ready)",
    "5m",
    "No worker is seen",
    "No worker's metrics are scraped: all alerts about jobs and fleets are blind.",
    PIPELINE,
)
TARGET: Final = Alert(
    "TargetDown",
    "critical",
    f'max {by("instance")} (up{{job=~"{config.SCRAPE_JOBS}"}}) == 0',
    "5m",
    "A process cannot be scraped",
    "Nothing answers at {{ $labels.instance }}.",
    PIPELINE,
)
SINK: Final = Alert(
    "SinkAbsent",
    "critical",
    "absent(runnerstream_sink_clickhouse_up)",
    "10m",
    "No sink is seen",
    "No sink's metrics are scraped: whether rows come to ClickHouse is not known.",
    PIPELINE,
)
QUEUE: Final = Alert(
    "RunnerQueueBlind",
    "critical",
    'absent(runnerstream_oldest_seconds{status="queued"})',
    "10m",
    "Nobody tells for how long jobs wait",
    "No worker tells the age of the oldest job: RunnerQueueAge cannot fire.",
    RUNNERS,
)
HEARTBEAT: Final = Alert(
    "RecoveryHeartbeatAbsent",
    "critical",
    "absent(runnerstream_recovery_sweeps_total)",
    "10m",
    "Nobody tells whether recovery works",
    "No worker tells of sweeps: RecoveryHeartbeatMissing cannot fire.",
    RECOVERY,
)

#: A series that each role tells from its start. Who does not use a role has none and hears nothing.
ROLES: Final = {
    "prober": "runnerstream_probes_waiting",
    "gateway": "runnerstream_gateway_kafka_up",
    "relay": "runnerstream_relay_paused",
    "redeliver": "runnerstream_missed_open",
    "scrape": "runnerstream_scrape_targets",
}
#: What each family of telemetry tells of a fleet while somebody speaks. Not of runners: they may
#: all be gone while there is nothing to do.
FAMILIES: Final = {
    "pools": "runnerstream_pool_runners",
    "reconcilers": "runnerstream_reconciler_last_tick_seconds",
}


def _gone(series: str, labels: str, name: str, value: str) -> str:
    """What was there an hour ago and is not any more."""
    return f"""label_replace(
  count {labels} ({series} offset 1h) unless count {labels} ({series}),
  "{name}", "{value}", "", "")"""


def _roles() -> Iterator[str]:
    for role, series in ROLES.items():
        yield _gone(series, ALL, "role", role)


def _families() -> Iterator[str]:
    for family, series in FAMILIES.items():
        yield _gone(series, by("fleet"), "family", family)


VANISHED: Final = Alert(
    "RoleVanished",
    "critical",
    one_of(_roles()),
    "10m",
    "A role that was there is not seen any more",
    "No {{ $labels.role }} is scraped any more.",
    PIPELINE,
)
TELEMETRY: Final = Alert(
    "TelemetryVanished",
    "warning",
    one_of(_families()),
    "10m",
    "A fleet has stopped telling about itself",
    "Fleet {{ $labels.fleet }} tells nothing of its {{ $labels.family }} any more.",
    RUNNERS,
)

GROUP: Final = Group("blind", (WORKER, TARGET, SINK, QUEUE, HEARTBEAT, VANISHED, TELEMETRY))
