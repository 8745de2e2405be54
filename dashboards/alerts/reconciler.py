"""Reconcilers: whether they tick, and whether what they do leads anywhere."""

from __future__ import annotations

from typing import Final

from dashboards import config
from dashboards.alerts.model import RECONCILER, Alert, Group, by, one_of

FLEET: Final = by("fleet")
WORK: Final = "runnerstream_reconciler_work"

AGE: Final = Alert(
    "ReconcilerTickAge",
    "critical",
    f"sum {FLEET} (runnerstream_reconcilers_overdue) > 0",
    "2m",
    "A reconciler has missed three ticks",
    "In fleet {{ $labels.fleet }} {{ $value }} reconcilers are overdue.",
    RECONCILER,
)
SLOW: Final = Alert(
    "ReconcilerTickSlow",
    "warning",
    f"""histogram_quantile(
  0.95, sum {by("le")} (rate(runnerstream_reconciler_tick_seconds_bucket[10m]))
) > {config.TICK_S[0]}""",
    "10m",
    "Ticks of reconcilers take too long",
    "The 95th percentile of a tick is {{ $value | humanizeDuration }}.",
    RECONCILER,
)
VERY_SLOW: Final = Alert(
    "ReconcilerTickVerySlow",
    "critical",
    f"max {FLEET} (runnerstream_reconciler_last_tick_seconds) > {config.TICK_S[1]}",
    "5m",
    "The ticks of a reconciler take seconds",
    "In fleet {{ $labels.fleet }} a tick takes {{ $value | humanizeDuration }}.",
    RECONCILER,
)
FAILING: Final = Alert(
    "ReconcilerTicksFail",
    "critical",
    f"""sum {FLEET} (increase(runnerstream_reconciler_ticks_total{{outcome="failed"}}[10m]))
/ (sum {FLEET} (increase(runnerstream_reconciler_ticks_total[10m])) > 0)
> {config.TICKS_FAILING}""",
    "5m",
    "Ticks of a reconciler fail",
    "In fleet {{ $labels.fleet }} {{ $value | humanizePercentage }} of the ticks have a phase "
    "that fails.",
    RECONCILER,
)
VIOLATIONS: Final = Alert(
    "ReconcilerViolationsOpen",
    "critical",
    f"""max {FLEET} (runnerstream_reconciler_violation_oldest_seconds)
> {config.VIOLATION_S}""",
    "1m",
    "An invariant stays broken",
    "In fleet {{ $labels.fleet }} an invariant is broken for {{ $value | humanizeDuration }}.",
    RECONCILER,
)
PENDING: Final = Alert(
    "ReconcilerPendingEvents",
    "critical",
    f"""max {by("fleet", "state")} (
  min_over_time(runnerstream_reconciler_pending_events_largest[5m])
) > {config.PENDING}""",
    "1m",
    "Events pile up in front of a reconciler",
    "In fleet {{ $labels.fleet }} {{ $value }} events wait ({{ $labels.state }}).",
    RECONCILER,
)
NO_PROGRESS: Final = Alert(
    "ReconcilerNoProgress",
    "critical",
    f"sum {FLEET} (runnerstream_reconcilers_without_progress) > 0",
    "5m",
    "A reconciler acts all the time and gets nothing done",
    "In fleet {{ $labels.fleet }} {{ $value }} reconcilers took more than 200 actions in an hour "
    "and closed nothing.",
    RECONCILER,
)
LOOP: Final = Alert(
    "ReconcilerRepeatLoop",
    "critical",
    f"sum {FLEET} (runnerstream_reconciler_entities_in_loop) > 0",
    "5m",
    "The same is done to the same thing again and again",
    "In fleet {{ $labels.fleet }} {{ $value }} entities are in a loop.",
    RECONCILER,
)
FLAPPING: Final = Alert(
    "ReconcilerFlapping",
    "warning",
    f"sum {FLEET} (runnerstream_reconciler_work_flapping) > 0",
    "5m",
    "Work goes back and forth between two states",
    "In fleet {{ $labels.fleet }} {{ $value }} pieces of work flap.",
    RECONCILER,
)
BREAKER: Final = Alert(
    "ReconcilerBreakerOpen",
    "critical",
    f"sum {FLEET} (runnerstream_reconciler_breaker_open) > 0",
    "5m",
    "A reconciler holds its dispatches back",
    "In fleet {{ $labels.fleet }} the breakers of {{ $value }} reconcilers are open.",
    RECONCILER,
)
DISPATCH: Final = Alert(
    "ReconcilerDispatchFailing",
    "critical",
    f"""sum {FLEET} (increase(runnerstream_reconciler_dispatch_failures_total[10m]))
/ (
  sum {FLEET} (increase(runnerstream_reconciler_dispatch_failures_total[10m]))
  + sum {FLEET} (increase({WORK}_moved_total{{to="in_progress"}}[10m]))
  > 3
) > {config.FAILING}""",
    "5m",
    "Workers cannot be put to work",
    "In fleet {{ $labels.fleet }} {{ $value | humanizePercentage }} of the dispatches fail.",
    RECONCILER,
)
IDLE: Final = Alert(
    "ReconcilerNobodyWorks",
    "critical",
    f"""sum {FLEET} ({WORK}{{state="open"}}) > 0
and sum {FLEET} ({WORK}{{state="in_progress"}}) == 0""",
    "5m",
    "There is work, and nobody does any",
    "In fleet {{ $labels.fleet }} {{ $value }} pieces of work are open, and none is in progress.",
    RECONCILER,
)
STUCK: Final = Alert(
    "ReconcilerWorkStuck",
    "warning",
    one_of(
        f'max {by("fleet", "state")} ({WORK}_oldest_seconds{{state="{state}"}}) > {seconds}'
        for state, seconds in config.WORK_S.items()
    ),
    "5m",
    "A piece of work stays in one state",
    "In fleet {{ $labels.fleet }} a piece of work is {{ $labels.state }} for "
    "{{ $value | humanizeDuration }}.",
    RECONCILER,
)

GROUP: Final = Group(
    "reconciler",
    (AGE, SLOW, VERY_SLOW, FAILING, VIOLATIONS, PENDING, NO_PROGRESS, LOOP, FLAPPING, BREAKER,
     DISPATCH, IDLE, STUCK),
)  # fmt: skip
