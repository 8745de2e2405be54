"""What gastown's dashboard and its table of health show, and where it is here."""

from __future__ import annotations

from typing import Final

from pipeline.compat.model import Alert, Kindred, Panel

_PER_TICK: Final = "/ sum(rate(runnerstream_reconciler_ticks_total[5m]))`"

FURTHER: Final = {
    "The nine fields of a tick": (
        Kindred(
            "wallClockMs",
            "`runnerstream_reconciler_tick_seconds`, column `wall_ms`",
            "how long it took",
        ),
        Kindred(
            "eventsDrained",
            "`runnerstream_reconciler_events_drained_total`, column `events_drained`",
            "events read",
        ),
        Kindred(
            "actionsEmitted",
            "`runnerstream_reconciler_actions_total`, column `actions`",
            "actions computed",
        ),
        Kindred(
            "actionsByType",
            "column `actions_by_type`: `SELECT actions_by_type FROM reconciler_events`",
            "the same by type",
        ),
        Kindred(
            "sideEffectsAttempted",
            "`runnerstream_reconciler_effects_attempted_total`, column `effects_attempted`",
            "side effects begun",
        ),
        Kindred(
            "sideEffectsSucceeded",
            '`runnerstream_reconciler_effects_total{outcome="succeeded"}`, column '
            "`effects_succeeded`",
            "of these, those that succeeded",
        ),
        Kindred(
            "sideEffectsFailed",
            '`runnerstream_reconciler_effects_total{outcome="failed"}`, and as each is told: '
            '`runnerstream_reconciler_effect_results_total{outcome="failed"}`',
            "of these, those that failed; always 0 there",
        ),
        Kindred(
            "invariantViolations",
            "`runnerstream_reconciler_violations`, column `violations`",
            "violations there are",
        ),
        Kindred(
            "pendingEventCount",
            "`runnerstream_reconciler_pending_events`, columns `pending_new` and `pending_retry`",
            "events that wait",
        ),
    ),
}

PANELS: Final = (
    Panel(
        "Reconciler",
        "Events drained per tick",
        f"`sum(rate(runnerstream_reconciler_events_drained_total[5m])) {_PER_TICK}",
    ),
    Panel(
        "Reconciler",
        "Actions emitted per tick by type",
        "`SELECT toStartOfMinute(occurred_at) AS m, sumMap(actions_by_type) FROM "
        "reconciler_events GROUP BY m`; over all types: "
        f"`sum(rate(runnerstream_reconciler_actions_total[5m])) {_PER_TICK}",
    ),
    Panel(
        "Reconciler",
        "Side effects",
        "`sum by (outcome) (rate(runnerstream_reconciler_effects_total[5m]))`, "
        "`rate(runnerstream_reconciler_effects_attempted_total[5m])`",
    ),
    Panel(
        "Reconciler",
        "Invariant violations",
        "`sum(runnerstream_reconciler_violations)`, "
        "`increase(runnerstream_reconciler_violations_opened_total[1h])`",
    ),
    Panel(
        "Reconciler",
        "Wall clock time",
        "`histogram_quantile(0.95, sum by (le) "
        "(rate(runnerstream_reconciler_tick_seconds_bucket[5m])))`, "
        "`runnerstream_reconciler_last_tick_seconds`",
    ),
    Panel(
        "Reconciler",
        "Pending event queue depth",
        "`sum(runnerstream_reconciler_pending_events)`, "
        "`max(runnerstream_reconciler_pending_events_largest)`",
    ),
    Panel("Overview", "Total events", "`SELECT count() FROM reconciler_events FINAL`"),
    Panel("Overview", "Unique users", "Not yet: of users no event tells; `jobs_latest` has actors"),
    Panel("Overview", "Average latency", "`SELECT avg(wall_ms) FROM reconciler_events FINAL`"),
    Panel(
        "Overview",
        "Error rate",
        '`sum(rate(runnerstream_reconciler_ticks_total{outcome="failed"}[5m]))` over all',
    ),
    Panel(
        "Throughput",
        "Requests per second by delivery",
        "Not yet for its own API; of webhooks: `sum by (event) "
        "(rate(runnerstream_webhooks_total[5m]))`",
    ),
    Panel(
        "Throughput",
        "Volume by delivery",
        "`SELECT source, count() FROM events_raw GROUP BY source`",
    ),
    Panel(
        "Throughput",
        "Volume by event",
        "`SELECT kind, count() FROM reconciler_events FINAL GROUP BY kind`",
    ),
    Panel(
        "Errors",
        "Errors by event",
        "`sum(rate(runnerstream_reconciler_events_failed_total[5m]))`",
    ),
    Panel(
        "Errors",
        "Error rate by delivery",
        "`sum by (stage, reason) (rate(runnerstream_dead_letters_total[5m]))`",
    ),
    Panel(
        "Errors",
        "Error counts by event",
        "`SELECT kind, outcome, count() FROM reconciler_events FINAL GROUP BY kind, outcome`",
    ),
    Panel(
        "Errors",
        "Top error messages",
        "`SELECT reason, count() FROM reconciler_events FINAL GROUP BY reason`",
    ),
    Panel("Latency", "Average by delivery", "`runnerstream_webhook_lag_seconds`"),
    Panel(
        "Latency",
        "Heatmap by event",
        "`sum by (le, outcome) (rate(runnerstream_reconciler_effect_seconds_bucket[5m]))`",
    ),
    Panel(
        "Latency",
        "Slowest endpoints",
        "`SELECT type, avg(duration_ms) FROM reconciler_events FINAL GROUP BY type`",
    ),
    Panel("Users", "Active users", "`SELECT uniq(actor) FROM jobs_latest`"),
    Panel("Users", "Active towns", "`runnerstream_reconcilers`, `/telemetry`"),
    Panel(
        "Users", "Top users by events", "`SELECT actor, count() FROM jobs_latest GROUP BY actor`"
    ),
    Panel(
        "Users",
        "Top users by errors",
        "`SELECT actor, countIf(conclusion = 'failure') FROM jobs_latest GROUP BY actor`",
    ),
    Panel(
        "Domain",
        "By delivery",
        "`SELECT source, count() FROM reconciler_events FINAL GROUP BY source`",
    ),
    Panel(
        "Domain", "By event", "`SELECT kind, count() FROM reconciler_events FINAL GROUP BY kind`"
    ),
    Panel(
        "Domain",
        "All events",
        "`SELECT kind, count(), countIf(outcome = 'failed'), avg(duration_ms) FROM "
        "reconciler_events FINAL GROUP BY kind`",
    ),
    Panel(
        "Internal",
        "Lifecycle of beads",
        "`sum by (to) (rate(runnerstream_reconciler_work_moved_total[5m]))`",
    ),
    Panel(
        "Internal",
        "Agents, reviews, convoys, escalations, nudges",
        "`SELECT type, outcome, count() FROM reconciler_events FINAL GROUP BY type, outcome`",
    ),
)

ALERTS: Final = (
    Alert(
        "Working agents",
        '`sum by (fleet) (runnerstream_reconciler_work{state="in_progress"}) == 0 and sum by '
        '(fleet) (runnerstream_reconciler_work{state="open"}) > 0` for 5m',
        "none for 5m with open beads",
    ),
    Alert(
        "Failed beads",
        '`increase(runnerstream_reconciler_work_moved_total{to="failed"}[15m]) > 5`',
        "rising quickly",
    ),
    Alert(
        "Invariant violations",
        "`runnerstream_reconciler_violation_oldest_seconds > 300`",
        "more than 0",
    ),
    Alert(
        "Wall clock",
        "`histogram_quantile(0.95, sum by (le) "
        "(rate(runnerstream_reconciler_tick_seconds_bucket[5m]))) > 0.5` for 10m",
        "more than 500 ms consistently",
    ),
    Alert(
        "Pending events",
        "`min_over_time(runnerstream_reconciler_pending_events[5m]) > 0`, "
        "`runnerstream_reconciler_pending_oldest_seconds`",
        "growing",
    ),
    Alert("Alarm", "`runnerstream_reconcilers_overdue > 0`", "the next tick does not come"),
    Alert(
        "Open beads",
        "`runnerstream_reconciler_work_oldest_seconds > 300`",
        "open for 5 min, in review for 15 min",
    ),
    Alert(
        "Beads that go back and forth",
        "`runnerstream_reconciler_work_flapping > 0`",
        "in progress to open, again and again",
    ),
    Alert(
        "Dispatch",
        "`increase(runnerstream_reconciler_dispatch_failures_total[10m])`; by role and reason: "
        "`SELECT role, reason, count() FROM reconciler_events FINAL GROUP BY role, reason`",
        "reviews fail to start",
    ),
    Alert("No progress", "`runnerstream_reconcilers_without_progress > 0`"),
    Alert("Repeat loop", "`runnerstream_reconciler_entities_in_loop > 0`"),
    Alert(
        "Breaker open",
        "`runnerstream_reconciler_breaker_open > 0` for 5m",
        "the mayor is told",
    ),
)
