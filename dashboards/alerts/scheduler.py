"""Schedulers: whether runs are planned, in time, and come to an end."""

from __future__ import annotations

from typing import Final

from dashboards import config
from dashboards.alerts.model import SCHEDULER, Alert, Group, Severity, by

FLEET: Final = by("fleet")
MODE: Final = by("mode")
FLEET_MODE: Final = by("fleet", "mode")
PLANS: Final = "runnerstream_scheduler_planner_runs_total"

FAILURES: Final = Alert(
    "SchedulerPlannerFailures",
    "warning",
    f'sum {FLEET_MODE} (increase({PLANS}{{status="failed"}}[5m])) > 0',
    "10m",
    "Runs cannot be planned",
    "In fleet {{ $labels.fleet }} planning of {{ $labels.mode }} runs keeps failing.",
    SCHEDULER,
)
RATIO: Final = Alert(
    "SchedulerPlannerFailureRatio",
    "critical",
    f"""sum {FLEET_MODE} (increase({PLANS}{{status="failed"}}[15m]))
/ (sum {FLEET_MODE} (increase({PLANS}[15m])) > 0) > {config.PLAN_FAILURES}""",
    "10m",
    "A large share of runs cannot be planned",
    "In fleet {{ $labels.fleet }} planning fails for {{ $value | humanizePercentage }} of the "
    "{{ $labels.mode }} runs.",
    SCHEDULER,
)


def _latency(name: str, severity: Severity, seconds: int) -> Alert:
    """A share, not a percentile: beyond the last bound of a histogram a percentile stands still."""
    seen = "runnerstream_scheduler_planner_latency_seconds"
    return Alert(
        name,
        severity,
        f"""1 - sum {MODE} (rate({seen}_bucket{{le="{float(seconds)}"}}[15m]))
/ (sum {MODE} (rate({seen}_count[15m])) > 0) > {config.PLANNED_SHARE}""",
        "10m",
        f"Runs wait for more than {seconds} s until they are planned",
        f"{{{{ $value | humanizePercentage }}}} of the {{{{ $labels.mode }}}} runs are planned "
        f"after more than {seconds} s.",
        SCHEDULER,
    )


LATENCY: Final = _latency("SchedulerPlannerLatency", "warning", config.PLANNED_S[0])
LATENCY_CRITICAL: Final = _latency(
    "SchedulerPlannerLatencyCritical", "critical", config.PLANNED_S[1]
)
GROWING: Final = Alert(
    "SchedulerBacklogGrowing",
    "warning",
    f"""max {FLEET_MODE} (runnerstream_scheduler_backlog_largest) > {config.BACKLOG}
and
max {FLEET_MODE} (deriv(runnerstream_scheduler_backlog_largest[15m])) >= 0""",
    "15m",
    "A run's backlog is large and does not shrink",
    "In fleet {{ $labels.fleet }} a {{ $labels.mode }} run has {{ $value }} images to do.",
    SCHEDULER,
)
NOT_DRAINING: Final = Alert(
    "SchedulerBacklogNotDraining",
    "critical",
    f"sum {FLEET} (runnerstream_scheduler_runs_not_draining) > 0",
    "20m",
    "Active runs with work to do get nothing done",
    "In fleet {{ $labels.fleet }} {{ $value }} runs have finished no image for half an hour.",
    SCHEDULER,
)
STUCK: Final = Alert(
    "SchedulerRunsStuck",
    "critical",
    f"""max {by("fleet", "state")} (runnerstream_scheduler_run_oldest_seconds)
> {config.RUN_OPEN_S}""",
    "15m",
    "A run has been open for too long",
    "In fleet {{ $labels.fleet }} a run is {{ $labels.state }} for "
    "{{ $value | humanizeDuration }}.",
    SCHEDULER,
)
SEGMENTS: Final = Alert(
    "SchedulerSegmentFailures",
    "warning",
    f"""sum {by("fleet", "status")} (
  increase(runnerstream_scheduler_segments_total{{status=~"persist_failed|run_missing"}}[10m])
) > 0""",
    "0m",
    "Segments were done and their results are lost",
    'In fleet {{ $labels.fleet }} {{ printf "%.0f" $value }} segments: {{ $labels.status }}.',
    SCHEDULER,
)
LETTERS: Final = Alert(
    "SchedulerDeadLetters",
    "critical",
    f"""sum {by("fleet", "queue")} (increase(runnerstream_scheduler_dead_lettered_total[15m]))
> 0""",
    "0m",
    "The scheduler gave messages up",
    'In fleet {{ $labels.fleet }} {{ printf "%.0f" $value }} messages of the queue '
    "{{ $labels.queue }} were given up.",
    SCHEDULER,
)
BEHIND: Final = Alert(
    "SchedulerSchedulesBehind",
    "warning",
    f"sum {FLEET} (runnerstream_scheduler_schedules_behind) > 0",
    "30m",
    "Schedules were missed and not caught up with",
    "In fleet {{ $labels.fleet }} {{ $value }} schedules are behind.",
    SCHEDULER,
)

GROUP: Final = Group(
    "scheduler",
    (FAILURES, RATIO, LATENCY, LATENCY_CRITICAL, GROWING, NOT_DRAINING, STUCK, SEGMENTS, LETTERS,
     BEHIND),
)  # fmt: skip
