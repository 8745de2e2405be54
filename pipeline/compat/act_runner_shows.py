"""What an operator of act_runner looks at, and what wakes one, and where it is here.

It comes without a dashboard and with one sample alert: the panels are the questions that its
metrics were made for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from pipeline.compat.model import Alert, Panel, on

ACT: Final = "act_runner"


def panels(of: str) -> tuple[Panel, ...]:
    """Its panels, where its metrics begin with another name."""
    return tuple(
        replace(
            each, queries=tuple(query.replace("act_runner_", f"{of}_") for query in each.queries)
        )
        for each in PANELS
    )


def alerts(of: str) -> tuple[Alert, ...]:
    """Its alerts, in the same way."""
    return tuple(
        replace(each, condition=each.condition.replace("act_runner_", f"{of}_")) for each in ALERTS
    )


def _p95(name: str) -> str:
    return f"`histogram_quantile(0.95, sum by (le) (rate(runnerstream_{name}_bucket[5m])))`"


PANELS: Final = (
    Panel(
        "Fleet",
        "Fleet info table",
        "`runnerstream_runners_known`, `runnerstream_runner_capacity`, "
        "`runnerstream_runner_uptime_oldest_seconds`, `/telemetry`",
        shown=on(ACT, "Fleet info table", "Runners heard of"),
    ),
    Panel(
        "Polls",
        "Poll outcomes",
        "`sum by (result) (rate(runnerstream_runner_polls_total[5m]))`",
        ("sum by (result) (rate(act_runner_poll_fetch_total[5m]))",),
        shown=on(ACT, "Poll outcomes", "Polls that fail"),
    ),
    Panel(
        "Polls",
        "Poll latency p50/p95/p99",
        _p95("runner_poll_seconds"),
        shown=on(ACT, "Poll latency p50/p95/p99"),
    ),
    Panel(
        "Polls",
        "Backoff level",
        "`max by (fleet) (runnerstream_runner_backoff_seconds)`",
        shown=on(ACT, "Backoff level"),
    ),
    Panel(
        "Jobs",
        "Jobs by status /min, success ratio",
        "`sum by (result) (rate(runnerstream_runner_tasks_total[5m]))`",
        ("sum by (status) (rate(act_runner_job_total[5m]))",),
        shown=on(ACT, "Jobs by status /min, success ratio"),
    ),
    Panel(
        "Jobs",
        "Job duration p50/p95/p99 + heatmap",
        f"{_p95('runner_task_seconds')}; by result: `runnerstream_runner_task_result_seconds`",
        shown=on(ACT, "Job duration p50/p95/p99", "Job duration heatmap"),
    ),
    Panel(
        "Jobs",
        "Running vs capacity; utilisation ratio",
        '`sum by (fleet) (runnerstream_runner_tasks_open{state="running"}) / sum by (fleet) '
        "(runnerstream_runner_capacity)`",
        ("act_runner_job_running", "act_runner_job_capacity_utilization_ratio"),
        shown=on(ACT, "Running vs capacity; utilisation ratio", "Utilisation ratio"),
    ),
    Panel(
        "Reports",
        "RPC errors by method",
        "`sum by (method) (rate(runnerstream_runner_client_errors_total[5m]))`",
        ("sum by (method) (rate(act_runner_client_errors_total[5m]))",),
        shown=on(ACT, "RPC errors by method"),
    ),
    Panel(
        "Reports",
        "Log/state report latency, error ratio",
        f"{_p95('runner_log_report_seconds')}, {_p95('runner_state_report_seconds')}, "
        '`rate(runnerstream_runner_log_reports_total{result="error"}[5m])`',
        shown=on(ACT, "Log/state report latency, error ratio"),
    ),
    Panel(
        "Reports",
        "Log buffer rows, oldest-row age",
        "`runnerstream_runner_buffer_rows`, `runnerstream_runner_buffer_oldest_seconds`",
        ("sum(act_runner_report_log_buffer_rows)",),
        shown=on(ACT, "Log buffer rows, oldest-row age", "Oldest log row that waits"),
    ),
    Panel(
        "Reports",
        "Flush trigger mix and rows/flush",
        "`sum by (report, trigger) (rate(runnerstream_runner_report_triggers_total[5m]))`, "
        "`rate(runnerstream_runner_log_rows_total[5m])`",
        shown=on(ACT, "Flush trigger mix and rows/flush"),
    ),
    Panel(
        "Process",
        "Go/process",
        "Prometheus' own scrape of the runner; of ours: `runnerstream_role_up`",
        shown=on(ACT, "Go/process", "Starts and stops"),
    ),
)

ALERTS: Final = (
    Alert(
        "RunnerRpcErrors",
        "`sum by (method) (rate(runnerstream_runner_client_errors_total[5m])) > 0.1` for 5m",
        "sum(rate(act_runner_client_errors_total[5m])) by (method) > 0.1: the one that is "
        "published",
        fires=("RunnerRpcErrors",),
    ),
    Alert(
        "RunnerSaturated",
        '`runnerstream_runner_tasks_open{state="running"} >= ignoring(state) '
        "runnerstream_runner_capacity` for 10m",
        "utilisation >= 1 and a queue, for 10m",
        fires=("RunnerSaturated",),
    ),
    Alert(
        "RunnerPollFailing",
        '`rate(runnerstream_runner_polls_total{result="error"}[5m])` over half of all',
        "more than half of polls fail, for 5m",
        fires=("RunnerPollFailing",),
    ),
    Alert(
        "RunnerNotPolling",
        "`sum by (fleet) (rate(runnerstream_runner_polls_total[10m])) == 0`, "
        "`runnerstream_runners_silent > 0`",
        "no polls with room for jobs, for 10m",
        fires=("RunnerNotPolling",),
    ),
    Alert(
        "RunnerStuckAtMaxBackoffWithErrors",
        "`runnerstream_runner_polls_stuck > 0` for 10m",
        "the longest backoff, and errors, for 10m",
        fires=("RunnerPollsStuck",),
    ),
    Alert(
        "ReportLatencyHigh",
        f"{_p95('runner_log_report_seconds')} > 2 for 10m",
        "p95 of a report > 2 s for 10m",
        fires=("RunnerReportLatency",),
    ),
    Alert(
        "LogBufferNotDraining",
        "`runnerstream_runner_buffer_oldest_seconds > 60` for 10m",
        "more than 500 rows wait for 10m, or reports fail",
        fires=("RunnerLogNotDraining",),
    ),
    Alert(
        "TaskHeartbeatSilent",
        "`runnerstream_runner_tasks_silent > 0`",
        "a running job without a report of its state for 120 s",
        fires=("RunnerTaskSilent",),
    ),
    Alert(
        "JobFailureRatio",
        '`rate(runnerstream_runner_tasks_total{result="failure"}[15m])` over 0.2 of all',
        "more than a fifth fail, for 15m",
        fires=("FleetFailureRatio",),
    ),
    Alert(
        "RunnerUnknownResult",
        '`increase(runnerstream_runner_tasks_total{result="unknown"}[1h]) > 0`',
        "a result that nobody knows",
        fires=("RunnerResultUnknown",),
    ),
)
