"""Runner processes: whether they reach their server, report, and finish what they took."""

from __future__ import annotations

from typing import Final

from dashboards import config
from dashboards.alerts.model import ACT_RUNNER, Alert, Group, by, one_of

FLEET: Final = by("fleet")
QUEUED: Final = f'sum {FLEET} (runnerstream_jobs{{status="queued"}})'
BUSY: Final = f"""sum {FLEET} (runnerstream_runner_tasks_open{{state="running"}})
/ (sum {FLEET} (runnerstream_runner_capacity) > 0) >= 1"""

RPC: Final = Alert(
    "RunnerRpcErrors",
    "warning",
    f"""sum {by("fleet", "method")} (rate(runnerstream_runner_client_errors_total[5m]))
> {config.RPC_ERRORS}""",
    "5m",
    "Calls of runners to their server fail",
    'In fleet {{ $labels.fleet }} {{ printf "%.2f" $value }} calls a second of '
    "{{ $labels.method }} fail.",
    ACT_RUNNER,
)
# A timeout is the runner's own, and a sign of nothing.
POLLS: Final = Alert(
    "RunnerPollFailing",
    "critical",
    f"""sum {FLEET} (
  rate(runnerstream_runner_polls_total{{result=~"error|unauthenticated"}}[5m]))
/ (sum {FLEET} (rate(runnerstream_runner_polls_total{{result!="timeout"}}[5m])) > 0)
> {config.FAILING}""",
    "5m",
    "Runners ask for tasks in vain",
    "In fleet {{ $labels.fleet }} {{ $value | humanizePercentage }} of the polls fail.",
    ACT_RUNNER,
)
NOT_POLLING: Final = Alert(
    "RunnerNotPolling",
    "critical",
    # Full runners rightly ask for nothing.
    f"""(
  sum {FLEET} (increase(runnerstream_runner_polls_total[10m])) == 0
  and {QUEUED} > 0
)
unless
{BUSY}""",
    "10m",
    "Jobs wait, and no runner of the fleet asks for one",
    "In fleet {{ $labels.fleet }} no runner has asked for a task for ten minutes, and jobs wait.",
    ACT_RUNNER,
)
SATURATED: Final = Alert(
    "RunnerSaturated",
    "warning",
    f"""{BUSY}
and {QUEUED} > 0""",
    "10m",
    "Runners are full and jobs wait",
    "In fleet {{ $labels.fleet }} {{ $value | humanizePercentage }} of the places are taken, and "
    "jobs wait.",
    ACT_RUNNER,
)
STUCK: Final = Alert(
    "RunnerPollsStuck",
    "warning",
    f"sum {FLEET} (runnerstream_runner_polls_stuck) > 0",
    "10m",
    "Runners ask as seldom as they ever do, and fail",
    "In fleet {{ $labels.fleet }} {{ $value }} runners are at their longest interval with errors.",
    ACT_RUNNER,
)
UNREGISTERED: Final = Alert(
    "RunnerUnregistered",
    "warning",
    f"sum {FLEET} (runnerstream_runners_unregistered) > 0",
    "5m",
    "The server does not know runners that run",
    "In fleet {{ $labels.fleet }} {{ $value }} runners are not registered any more.",
    ACT_RUNNER,
)


def _slow(report: str) -> str:
    """The 95th percentile of one kind of report."""
    rate = f"rate(runnerstream_runner_{report}_report_seconds_bucket[10m])"
    return f"""label_replace(
  histogram_quantile(0.95, sum {by("le")} ({rate})) > {config.REPORT_S},
  "report", "{report}", "", "")"""


REPORTS: Final = Alert(
    "RunnerReportLatency",
    "warning",
    one_of(map(_slow, ("log", "state"))),
    "10m",
    "Reports of runners take too long",
    "Of the reports of {{ $labels.report }} the 95th percentile is "
    "{{ $value | humanizeDuration }}.",
    ACT_RUNNER,
)
BUFFER: Final = Alert(
    "RunnerLogNotDraining",
    "warning",
    f"max {FLEET} (min_over_time(runnerstream_runner_buffer_rows_max[10m])) > {config.BUFFER_ROWS}",
    "5m",
    "Log rows pile up in a runner",
    "In fleet {{ $labels.fleet }} a runner has held {{ $value }} log rows for ten minutes.",
    ACT_RUNNER,
)
# Two minutes are in the metric; after ten the server takes the task away.
SILENT: Final = Alert(
    "RunnerTaskSilent",
    "critical",
    f"sum {FLEET} (runnerstream_runner_tasks_silent) > 0",
    "6m",
    "The state of a task is not reported, and its server is about to take it away",
    "In fleet {{ $labels.fleet }} {{ $value }} tasks have been silent for eight minutes.",
    ACT_RUNNER,
)
REAPED: Final = Alert(
    "RunnerTasksReaped",
    "warning",
    f"""sum {by("sweep")} (increase(runnerstream_runner_tasks_reaped_total[1h])) > 0""",
    "0m",
    "The server took tasks away from their runners",
    '{{ printf "%.0f" $value }} tasks were taken away in the last hour: {{ $labels.sweep }}.',
    ACT_RUNNER,
)
UNKNOWN: Final = Alert(
    "RunnerResultUnknown",
    "warning",
    f"""sum {FLEET} (increase(runnerstream_runner_tasks_total{{result="unknown"}}[1h])) > 0""",
    "0m",
    "Tasks end in a way that nobody knows",
    'In fleet {{ $labels.fleet }} {{ printf "%.0f" $value }} tasks of the last hour ended with an '
    "unknown result.",
    ACT_RUNNER,
)

GROUP: Final = Group(
    "act_runner",
    (RPC, POLLS, NOT_POLLING, SATURATED, STUCK, UNREGISTERED, REPORTS, BUFFER, SILENT, REAPED,
     UNKNOWN),
)  # fmt: skip
