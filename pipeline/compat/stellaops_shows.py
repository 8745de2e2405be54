"""What StellaOps' runbook looks at and alerts of, and where it is here."""

from __future__ import annotations

from typing import Final

from pipeline.compat.model import Alert, Panel, on

PANELS: Final = (
    Panel(
        "Planner",
        "Planner Runs per Status",
        "`sum by (status) (rate(runnerstream_scheduler_planner_runs_total[5m]))`",
        ("sum by (status) (rate(scheduler_planner_runs_total[5m]))",),
        shown=on("Scheduler", "Planner Runs per Status"),
    ),
    Panel(
        "Planner",
        "Planner Latency P95",
        "`histogram_quantile(0.95, sum by (le) "
        "(rate(runnerstream_scheduler_planner_latency_seconds_bucket[5m])))`",
        (
            "histogram_quantile(0.95, sum by (le) "
            "(rate(scheduler_planner_latency_seconds_bucket[5m])))",
        ),
        shown=on(
            "Scheduler",
            "Planner Latency P95",
            "Planner Latency P99",
            "Planner wait and planning P95",
        ),
    ),
    Panel(
        "Runner",
        "Runner Segments per Status",
        "`sum by (status) (rate(runnerstream_scheduler_segments_total[5m]))`",
        ("sum by (status) (rate(scheduler_runner_segments_total[5m]))",),
        shown=on("Scheduler", "Runner Segments per Status"),
    ),
    Panel(
        "Runner",
        "New findings per severity",
        "`sum(rate(runnerstream_scheduler_findings_critical_total[5m]))`, "
        "`runnerstream_scheduler_findings_high_total`, "
        "`runnerstream_scheduler_findings_kev_total`, `runnerstream_scheduler_findings_total`",
        (
            "sum(rate(scheduler_runner_delta_critical_total[5m]))",
            "sum(rate(scheduler_runner_delta_high_total[5m]))",
            "sum(rate(scheduler_runner_delta_total[5m]))",
        ),
        shown=on("Scheduler", "New findings per severity"),
    ),
    Panel(
        "Runner",
        "Runner backlog per schedule",
        "`max by (fleet) (runnerstream_scheduler_backlog_largest)`; by schedule: [What each has "
        "left to do](telemetry.md#asking-clickhouse)",
        ("max by (scheduleId) (scheduler_runner_backlog)",),
        shown=on(
            "Scheduler", "Runner backlog per schedule", "Backlog by schedule, whether it drains"
        ),
    ),
    Panel(
        "Runs",
        "Active runs",
        "`sum by (mode) (runnerstream_scheduler_runs_active)`, `/telemetry`",
        ("sum by (mode) (scheduler_runs_active)",),
        shown=on("Scheduler", "Active runs", "Active runs by mode"),
    ),
    Panel(
        "Runner",
        "Images processed, delta vs none",
        "`sum by (mode, delta) (rate(runnerstream_scheduler_images_total[5m]))`",
        ("sum by (mode, delta) (rate(scheduler_runner_images_total[5m]))",),
        shown=on("Scheduler", "Images processed, delta vs none"),
    ),
    Panel(
        "Runs",
        "Run duration p50/p95",
        "`histogram_quantile(0.95, sum by (le, result) "
        "(rate(runnerstream_scheduler_run_duration_seconds_bucket[5m])))`",
        ("histogram_quantile(0.5, sum by (le) (rate(scheduler_run_duration_seconds_bucket[5m])))",),
        shown=on("Scheduler", "Run duration p50/p95"),
    ),
)

ALERTS: Final = (
    Alert(
        "SchedulerPlannerFailures",
        '`increase(runnerstream_scheduler_planner_runs_total{status="failed"}[5m]) > 0` for 10m',
        "planner failures",
        fires=("SchedulerPlannerFailures", "SchedulerPlannerFailureRatio"),
    ),
    Alert(
        "SchedulerPlannerLatencyHigh",
        "`histogram_quantile(0.95, sum by (le) "
        "(rate(runnerstream_scheduler_planner_latency_seconds_bucket[5m]))) > 45` for 10m",
        "planner latency",
        fires=("SchedulerPlannerLatency", "SchedulerPlannerLatencyCritical"),
    ),
    Alert(
        "SchedulerRunnerBacklogGrowing",
        "`runnerstream_scheduler_backlog_largest > 500` for 15m",
        "backlog",
        fires=("SchedulerBacklogGrowing",),
    ),
    Alert(
        "SchedulerRunnerBacklogNotDraining",
        "`runnerstream_scheduler_runs_not_draining > 0` for 5m",
        "a backlog, and no segment completed",
        fires=("SchedulerBacklogNotDraining",),
    ),
    Alert(
        "SchedulerRunsStuck",
        '`runnerstream_scheduler_run_oldest_seconds{state="active"} > 3600`',
        "stuck runs",
        fires=("SchedulerRunsStuck",),
    ),
    Alert(
        "SchedulerSegmentPersistFailures",
        '`increase(runnerstream_scheduler_segments_total{status="persist_failed"}[10m]) > 0`',
        "segments that could not be stored",
        fires=("SchedulerSegmentFailures",),
    ),
    Alert(
        "SchedulerRunMissing",
        '`increase(runnerstream_scheduler_segments_total{status="run_missing"}[10m]) > 0`',
        "segments of a run that is not there",
        fires=("SchedulerSegmentFailures",),
    ),
    Alert(
        "SchedulerNoPlannerActivity",
        "`sum(increase(runnerstream_scheduler_planner_runs_total[1d])) == 0`, "
        "`runnerstream_scheduler_schedules_behind > 0`",
        "no planner run for two of the longest intervals",
        fires=("SchedulerSchedulesBehind",),
        shown=on("Scheduler", "Planner Runs per Status"),
    ),
    Alert(
        "SchedulerDeadLetter",
        "`increase(runnerstream_scheduler_dead_lettered_total[5m]) > 0`, "
        "`runnerstream_scheduler_queue_dead_letters`",
        "messages given up",
        fires=("SchedulerDeadLetters",),
    ),
    Alert(
        "NewCriticalOrKev",
        "`increase(runnerstream_scheduler_findings_kev_total[15m]) > 0`",
        "new findings that are exploited",
        shown=on("Scheduler", "New findings per severity"),
    ),
)
