"""Recovery: whether it works at all, what it does not free, and what holds it back."""

from __future__ import annotations

from typing import Final

from dashboards import config
from dashboards.alerts.model import RECOVERY, Alert, Group, by

ALL: Final = by()
FLEET: Final = by("fleet")
#: What a provider may answer without anything being wrong.
FINE: Final = "ok|not_modified|missing|redirect"

HEARTBEAT: Final = Alert(
    "RecoveryHeartbeatMissing",
    "critical",
    f"sum {ALL} (increase(runnerstream_recovery_sweeps_total[10m])) == 0",
    "5m",
    "The rules of recovery are not run any more",
    "Workers answer, but no sweep of recovery was made for ten minutes; nothing is recovered.",
    RECOVERY,
)
ORPHANS: Final = Alert(
    "OrphanRate",
    "warning",
    f"""(
  sum {ALL} (increase(runnerstream_stalls_opened_total{{stall=~"orphan|runner_lost"}}[1h]))
  > {config.ORPHANS_AN_HOUR}
)
/ sum {ALL} (increase(runnerstream_job_transitions_total{{status="claimed"}}[1h]))
> {config.ORPHANS}""",
    "10m",
    "Many jobs lose their runner before they start",
    "{{ $value | humanizePercentage }} of the jobs that were claimed in the last hour lost their "
    "runner.",
    RECOVERY,
)
OVERDUE: Final = Alert(
    "RecoveryOverdue",
    "critical",
    f"""max {by("stall")} (
  runnerstream_stalls_oldest_seconds{{stall=~"stale_claim|orphan|displaced|runner_lost"}}
) > {config.FREED_S}""",
    "5m",
    "A job is in a wrong state for so long that recovery should have freed it",
    "A job is in the state {{ $labels.stall }} for {{ $value | humanizeDuration }}.",
    RECOVERY,
)
QUARANTINED: Final = Alert(
    "JobsQuarantined",
    "warning",
    f'sum {ALL} (runnerstream_stalls_open{{stall="flapping"}}) > 0',
    "5m",
    "Recovery has given a job up and asks for a person",
    "{{ $value }} jobs were requeued again and again and are left alone now.",
    RECOVERY,
)
BREAKER: Final = Alert(
    "RecoveryBreakerOpen",
    "critical",
    f"max {FLEET} (runnerstream_recovery_breaker_open) == 1",
    "10m",
    "A fleet's commands are held back because they mostly failed",
    "In fleet {{ $labels.fleet }} the breaker of recovery is open; nothing is commanded.",
    RECOVERY,
)
PAUSED: Final = Alert(
    "RecoveryPaused",
    "warning",
    f'max {FLEET} (runnerstream_recovery_mode{{mode="paused"}}) == 1',
    "4h",
    "Recovery has been paused for hours",
    "In fleet {{ $labels.fleet }} recovery is paused; a switch may have been forgotten.",
    RECOVERY,
)
BUDGET: Final = Alert(
    "RecoveryBudgetSpent",
    "warning",
    f'sum {ALL} (increase(runnerstream_recovery_withheld_total{{reason=~"budget_.+"}}[1h])) > 0',
    "0m",
    "Commands are withheld because a fleet's budget is spent",
    '{{ printf "%.0f" $value }} commands were withheld for want of budget in the last hour.',
    RECOVERY,
)
COMMANDS: Final = Alert(
    "RecoveryCommandsFail",
    "critical",
    f"""sum {by("command")} (
  increase(runnerstream_recovery_outcomes_total{{result=~"failed|expired|cannot"}}[1h]))
/ (sum {by("command")} (increase(runnerstream_recovery_outcomes_total[1h])) > 3)
> {config.FAILING}""",
    "10m",
    "Most commands of recovery come to nothing",
    "{{ $value | humanizePercentage }} of the commands {{ $labels.command }} of the last hour "
    "failed or were not done in time.",
    RECOVERY,
)
PROBES: Final = Alert(
    "ProbesWaiting",
    "warning",
    f"max {ALL} (runnerstream_probes_oldest_seconds) > {config.PROBE_S}",
    "5m",
    "Questions to the provider wait for too long",
    "A question about a job that may be stuck waits for {{ $value | humanizeDuration }}.",
    RECOVERY,
)
API: Final = Alert(
    "ProviderApiErrors",
    "warning",
    f"""sum {ALL} (increase(runnerstream_api_requests_total{{outcome!~"{FINE}"}}[15m]))
/ (sum {ALL} (increase(runnerstream_api_requests_total[15m])) > 5) > {config.API_ERRORS}""",
    "10m",
    "The provider's API refuses or fails",
    "{{ $value | humanizePercentage }} of the requests to the provider's API fail.",
    RECOVERY,
)
API_BUDGET: Final = Alert(
    "ProviderApiBudgetLow",
    "warning",
    f"min {ALL} (runnerstream_api_budget_remaining) < {config.API_BUDGET}",
    "5m",
    "The provider allows hardly any more requests",
    "The provider still allows {{ $value }} requests.",
    RECOVERY,
)

GROUP: Final = Group(
    "recovery",
    (HEARTBEAT, ORPHANS, OVERDUE, QUARANTINED, BREAKER, PAUSED, BUDGET, COMMANDS, PROBES, API,
     API_BUDGET),
)  # fmt: skip
