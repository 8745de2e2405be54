"""StellaOps' scheduler worker: the 11 metrics of its meter."""

from __future__ import annotations

from typing import Final

from pipeline.compat.model import Always, From, System, Take, Theirs, Turn
from pipeline.compat.stellaops_shows import ALERTS, PANELS
from pipeline.telemetry import scheduler_metrics as ours

#: Theirs are not published; these are ours, with the fine ones that a planner needs.
LATENCY_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
DURATION_BUCKETS: Final = (
    1.0, 2, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400,
)  # fmt: skip
_MODE: Final = Turn(
    "mode",
    {"analysis_only": "analysisOnly", "content_refresh": "contentRefresh", "other": "other"},
)
_PLANNED: Final = Turn("status", {"enqueued": "enqueued", "no_work": "no_work", "failed": "failed"})
_SEGMENT: Final = Turn(
    "status",
    {"completed": "Completed", "persist_failed": "persist_failed", "run_missing": "RunMissing"},
)


def _findings(name: str, text: str, source: From) -> Theirs:
    return Theirs(f"scheduler_runner_{name}_total", "counter", text, ("mode",), (source,))


METRICS: Final = (
    Theirs(
        "scheduler_planner_runs_total",
        "counter",
        "Runs that were planned.",
        ("mode", "status"),
        (From(ours.PLANS, (_MODE, _PLANNED)),),
        said="Over all fleets. A mode that is neither of theirs is `other`. Runs of which nobody "
        "said what planning came to are left out.",
    ),
    Theirs(
        "scheduler_planner_latency_seconds",
        "histogram",
        "From a run's creation to the end of its planning.",
        ("mode", "status"),
        (From(ours.PLAN_LATENCY, (_MODE, _PLANNED)),),
        LATENCY_BUCKETS,
        said="Wait and planning apart: `runnerstream_scheduler_planner_wait_seconds`, "
        "`runnerstream_scheduler_planning_seconds`.",
    ),
    Theirs(
        "scheduler_runner_segments_total",
        "counter",
        "Segments that were processed.",
        ("mode", "status"),
        (From(ours.SEGMENTS, (_MODE, _SEGMENT)),),
        said="A segment counts as completed once, however often it is told.",
    ),
    Theirs(
        "scheduler_runner_images_total",
        "counter",
        "Images that were processed.",
        ("mode", "delta"),
        (From(ours.IMAGES, (_MODE, Take("delta"))),),
    ),
    _findings("delta", "New findings.", From(ours.FINDINGS, (_MODE,))),
    _findings("delta_critical", "New critical findings.", From(ours.CRITICAL, (_MODE,))),
    _findings("delta_high", "New findings of high severity.", From(ours.HIGH, (_MODE,))),
    _findings("delta_kev", "New findings known to be exploited.", From(ours.KEV, (_MODE,))),
    Theirs(
        "scheduler_run_duration_seconds",
        "histogram",
        "How long runs took.",
        ("mode", "result"),
        (From(ours.RUN_SECONDS, (_MODE, Take("result"))),),
        DURATION_BUCKETS,
        said="Of all results, where there only of those that completed; runs without work are no "
        "samples of 0.",
    ),
    Theirs(
        "scheduler_runs_active",
        "gauge",
        "Runs in flight.",
        ("mode",),
        (From(ours.ACTIVE, (_MODE,)),),
        said="The runs that are known to be open: whatever ends one, it leaves.",
    ),
    Theirs(
        "scheduler_runner_backlog",
        "gauge",
        "Images that are still to do.",
        ("fleet", "mode", "scheduleId"),
        (From(ours.LARGEST, (Take("fleet"), _MODE, Always("largest")), fold="max"),),
        said="Of the active run that has most, of each fleet and mode: schedules are no labels "
        "here. In all: `runnerstream_scheduler_backlog`; of each schedule: table "
        "`scheduler_events`.",
    ),
)

SYSTEM: Final = System(
    "stellaops",
    "The scheduler worker of StellaOps: its meter, as its collector shows it to Prometheus; the "
    "panels and alerts that its runbook names.",
    METRICS,
    PANELS,
    ALERTS,
)
