"""Jobs and runners of a fleet: who waits too long, and why nobody takes the job."""

from __future__ import annotations

from typing import Final

from dashboards import config
from dashboards.alerts.model import RUNNERS, Alert, Group, by

FLEET: Final = by("fleet")
QUEUED: Final = f'sum {FLEET} (runnerstream_jobs{{status="queued"}})'

QUEUE_AGE: Final = Alert(
    "RunnerQueueAge",
    "critical",
    # What the dispatcher may not give out is no reason to wake anybody; only it knows.
    f"""(
  max {FLEET} (runnerstream_queue_oldest_dispatchable_seconds)
  or max {FLEET} (runnerstream_oldest_seconds{{status="queued"}})
) > {config.OLDEST_S}""",
    "5m",
    "A job that may be given out waits for too long",
    "In fleet {{ $labels.fleet }} a job waits for {{ $value | humanizeDuration }}.",
    RUNNERS,
)
STARVED: Final = Alert(
    "RunnerPoolStarved",
    "critical",
    f"sum {FLEET} (runnerstream_pool_starved_jobs) > 0",
    "10m",
    "Jobs wait while runners of their fleet are idle",
    "In fleet {{ $labels.fleet }} {{ $value }} jobs wait that idle runners could run.",
    RUNNERS,
)
EMPTY: Final = Alert(
    "RunnerPoolEmpty",
    "critical",
    f"""(
  {QUEUED} - sum {FLEET} (runnerstream_queue_withheld)
  or {QUEUED}
) > 0
and
sum {FLEET} (runnerstream_pool_runners{{state="observed"}}) == 0""",
    "10m",
    "Jobs wait and their fleet has no runner at all",
    "In fleet {{ $labels.fleet }} {{ $value }} jobs wait, and no runner exists.",
    RUNNERS,
)
SATURATED: Final = Alert(
    "RunnerPoolSaturated",
    "warning",
    f"sum {FLEET} (runnerstream_pool_saturated_jobs) > 0",
    "30m",
    "A fleet has had no idle runner for half an hour",
    "In fleet {{ $labels.fleet }} {{ $value }} jobs wait, and all runners are busy.",
    RUNNERS,
)
SHORT: Final = Alert(
    "RunnerPoolShort",
    "warning",
    f"""sum {FLEET} (runnerstream_pool_runners{{state="desired"}})
- sum {FLEET} (runnerstream_pool_runners{{state="observed"}}) > 0""",
    "15m",
    "A fleet has fewer runners than it should have",
    "Fleet {{ $labels.fleet }} lacks {{ $value }} runners.",
    RUNNERS,
)
BOOT: Final = Alert(
    "RunnerBootStuck",
    "warning",
    f"max {FLEET} (runnerstream_pool_booting_oldest_seconds) > {config.BOOT_S}",
    "5m",
    "A runner has been booting for too long",
    "In fleet {{ $labels.fleet }} a runner boots for {{ $value | humanizeDuration }}.",
    RUNNERS,
)
MINTS: Final = Alert(
    "RunnerMintFailures",
    "critical",
    f"""sum {FLEET} (increase(runnerstream_runner_mints_total{{outcome=~"failed|limited"}}[15m]))
/ (sum {FLEET} (increase(runnerstream_runner_mints_total[15m])) > 0) > {config.FAILING}""",
    "10m",
    "The provider refuses credentials for runners",
    "In fleet {{ $labels.fleet }} {{ $value | humanizePercentage }} of the requests for a "
    "runner's credentials fail.",
    RUNNERS,
)
DISPATCH: Final = Alert(
    "DispatchSilent",
    "critical",
    f"""time() - max {FLEET} (runnerstream_dispatch_last_request_timestamp_seconds)
> {config.ASKED_S}
and {QUEUED} > 0""",
    "5m",
    "Jobs wait and no runner asks for work",
    "In fleet {{ $labels.fleet }} no runner has asked for work for "
    "{{ $value | humanizeDuration }}, and jobs wait.",
    RUNNERS,
)
RUNNING: Final = Alert(
    "JobRunsTooLong",
    "warning",
    f'max {FLEET} (runnerstream_oldest_seconds{{status="running"}}) > {config.RUN_S}',
    "5m",
    "A job has been running for longer than jobs may",
    "In fleet {{ $labels.fleet }} a job runs for {{ $value | humanizeDuration }}.",
    RUNNERS,
)
FAILURES: Final = Alert(
    "FleetFailureRatio",
    "warning",
    f"""sum {FLEET} (increase(
  runnerstream_jobs_completed_total{{conclusion=~"failure|timed_out|startup_failure"}}[1h]))
/ (sum {FLEET} (increase(
  runnerstream_jobs_completed_total{{conclusion=~"success|failure|timed_out|startup_failure"}}[1h]))
  > {config.FEW}) > {config.FAILING}""",
    "15m",
    "Most jobs of a fleet fail",
    "In fleet {{ $labels.fleet }} {{ $value | humanizePercentage }} of the jobs of the last hour "
    "failed.",
    RUNNERS,
)

GROUP: Final = Group(
    "runners",
    (QUEUE_AGE, STARVED, EMPTY, SATURATED, SHORT, BOOT, MINTS, DISPATCH, RUNNING, FAILURES),
)
