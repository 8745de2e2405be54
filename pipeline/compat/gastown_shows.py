"""What gastown's dashboard and its table of health show, and where it is here."""

from __future__ import annotations

from typing import Final

from pipeline.compat.model import Alert, Kindred, Panel, on

_PER_TICK: Final = "/ sum(rate(runnerstream_reconciler_ticks_total[5m]))`"

FURTHER: Final = {
    "The nine fields of a tick": (
        Kindred(
            "wallClockMs",
            "`runnerstream_reconciler_tick_seconds`, column `wall_ms`",
            "how long it took",
            shown=on("Reconciler", "Reconciler Wall Clock Time"),
        ),
        Kindred(
            "eventsDrained",
            "`runnerstream_reconciler_events_drained_total`, column `events_drained`",
            "events read",
            shown=on("Reconciler", "Events Drained per Tick"),
        ),
        Kindred(
            "actionsEmitted",
            "`runnerstream_reconciler_actions_total`, column `actions`",
            "actions computed",
            shown=on("Reconciler", "Activity and progress"),
        ),
        Kindred(
            "actionsByType",
            "column `actions_by_type`: `SELECT actions_by_type FROM reconciler_events`",
            "the same by type",
            shown=on("Reconciler", "Actions Emitted per Tick by Type"),
        ),
        Kindred(
            "sideEffectsAttempted",
            "`runnerstream_reconciler_effects_attempted_total`, column `effects_attempted`",
            "side effects begun",
            shown=on("Reconciler", "Side Effects"),
        ),
        Kindred(
            "sideEffectsSucceeded",
            '`runnerstream_reconciler_effects_total{outcome="succeeded"}`, column '
            "`effects_succeeded`",
            "of these, those that succeeded",
            shown=on("Reconciler", "Side Effects"),
        ),
        Kindred(
            "sideEffectsFailed",
            '`runnerstream_reconciler_effects_total{outcome="failed"}`, and as each is told: '
            '`runnerstream_reconciler_effect_results_total{outcome="failed"}`',
            "of these, those that failed; always 0 there",
            shown=on("Reconciler", "Side Effects", "Effects by outcome"),
        ),
        Kindred(
            "invariantViolations",
            "`runnerstream_reconciler_violations`, column `violations`",
            "violations there are",
            shown=on("Reconciler", "Invariant Violations"),
        ),
        Kindred(
            "pendingEventCount",
            "`runnerstream_reconciler_pending_events`, columns `pending_new` and `pending_retry`",
            "events that wait",
            shown=on("Reconciler", "Pending Event Queue Depth"),
        ),
    ),
}

PANELS: Final = (
    Panel(
        "Reconciler",
        "Events Drained per Tick",
        f"`sum(rate(runnerstream_reconciler_events_drained_total[5m])) {_PER_TICK}",
        shown=on("Reconciler", "Events Drained per Tick"),
    ),
    Panel(
        "Reconciler",
        "Actions Emitted per Tick by Type",
        "`SELECT toStartOfMinute(occurred_at) AS m, sumMap(actions_by_type) FROM "
        "reconciler_events GROUP BY m`; over all types: "
        f"`sum(rate(runnerstream_reconciler_actions_total[5m])) {_PER_TICK}",
        shown=on("Reconciler", "Actions Emitted per Tick by Type"),
    ),
    Panel(
        "Reconciler",
        "Side Effects",
        "`sum by (outcome) (rate(runnerstream_reconciler_effects_total[5m]))`, "
        "`rate(runnerstream_reconciler_effects_attempted_total[5m])`",
        shown=on("Reconciler", "Side Effects", "Effects by outcome"),
    ),
    Panel(
        "Reconciler",
        "Invariant Violations",
        "`sum(runnerstream_reconciler_violations)`, "
        "`increase(runnerstream_reconciler_violations_opened_total[1h])`",
        shown=on(
            "Reconciler", "Invariant Violations", "Violations open by invariant", "Open violations"
        ),
    ),
    Panel(
        "Reconciler",
        "Reconciler Wall Clock Time",
        "`histogram_quantile(0.95, sum by (le) "
        "(rate(runnerstream_reconciler_tick_seconds_bucket[5m])))`, "
        "`runnerstream_reconciler_last_tick_seconds`",
        shown=on("Reconciler", "Reconciler Wall Clock Time"),
    ),
    Panel(
        "Reconciler",
        "Pending Event Queue Depth",
        "`sum(runnerstream_reconciler_pending_events)`, "
        "`max(runnerstream_reconciler_pending_events_largest)`",
        shown=on("Reconciler", "Pending Event Queue Depth", "Pending events"),
    ),
    Panel(
        "Overview",
        "Total events",
        "`SELECT count() FROM reconciler_events FINAL`",
        shown=on("Reconciler", "Events by kind and outcome"),
    ),
    Panel("Overview", "Unique users", "Not yet: of users no event tells; `jobs_latest` has actors"),
    Panel(
        "Overview",
        "Average latency",
        "`SELECT avg(wall_ms) FROM reconciler_events FINAL`",
        shown=on("Reconciler", "Events by kind and outcome"),
    ),
    Panel(
        "Overview",
        "Error rate",
        '`sum(rate(runnerstream_reconciler_ticks_total{outcome="failed"}[5m]))` over all',
        shown=on("Reconciler", "Events by kind and outcome", "Ticks by outcome"),
    ),
    Panel(
        "Throughput",
        "Requests per second by delivery",
        "Not yet for its own API; of webhooks: `sum by (event) "
        "(rate(runnerstream_webhooks_total[5m]))`",
        shown=on("Pipeline", "Webhooks at the gateway, by outcome"),
    ),
    Panel(
        "Throughput",
        "Volume by delivery",
        "`SELECT source, count() FROM events_raw GROUP BY source`",
        shown=on("Reconciler", "Events by kind and outcome"),
    ),
    Panel(
        "Throughput",
        "Volume by event",
        "`SELECT kind, count() FROM reconciler_events FINAL GROUP BY kind`",
        shown=on("Reconciler", "Events by kind"),
    ),
    Panel(
        "Errors",
        "Errors by event",
        "`sum(rate(runnerstream_reconciler_events_failed_total[5m]))`",
        shown=on("Reconciler", "Events Drained per Tick"),
    ),
    Panel(
        "Errors",
        "Error rate by delivery",
        "`sum by (stage, reason) (rate(runnerstream_dead_letters_total[5m]))`",
        shown=on("Pipeline", "Dead letters by reason"),
    ),
    Panel(
        "Errors",
        "Error counts by event",
        "`SELECT kind, outcome, count() FROM reconciler_events FINAL GROUP BY kind, outcome`",
        shown=on("Reconciler", "Events by kind and outcome"),
    ),
    Panel(
        "Errors",
        "Top error messages",
        "`SELECT reason, count() FROM reconciler_events FINAL GROUP BY reason`",
        shown=on("Reconciler", "Reasons of failures"),
    ),
    Panel(
        "Latency",
        "Average by delivery",
        "`runnerstream_webhook_lag_seconds`",
        shown=on("Pipeline", "From an event at the provider to its arrival"),
    ),
    Panel(
        "Latency",
        "Heatmap by event",
        "`sum by (le, outcome) (rate(runnerstream_reconciler_effect_seconds_bucket[5m]))`",
        shown=on("Reconciler", "Slowest effects"),
    ),
    Panel(
        "Latency",
        "Slowest endpoints",
        "`SELECT type, avg(duration_ms) FROM reconciler_events FINAL GROUP BY type`",
        shown=on("Reconciler", "Slowest effects"),
    ),
    Panel("Users", "Active users", "`SELECT uniq(actor) FROM jobs_latest`"),
    Panel(
        "Users",
        "Active towns",
        "`runnerstream_reconcilers`, `/telemetry`",
        shown=on("Reconciler", "Reconcilers"),
    ),
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
        shown=on("Reconciler", "Events by kind and outcome"),
    ),
    Panel(
        "Domain",
        "By event",
        "`SELECT kind, count() FROM reconciler_events FINAL GROUP BY kind`",
        shown=on("Reconciler", "Events by kind"),
    ),
    Panel(
        "Domain",
        "All events",
        "`SELECT kind, count(), countIf(outcome = 'failed'), avg(duration_ms) FROM "
        "reconciler_events FINAL GROUP BY kind`",
        shown=on("Reconciler", "Events by kind and outcome"),
    ),
    Panel(
        "Internal",
        "Lifecycle of beads",
        "`sum by (to) (rate(runnerstream_reconciler_work_moved_total[5m]))`",
        shown=on("Reconciler", "Activity and progress", "Work by state, oldest"),
    ),
    Panel(
        "Internal",
        "Agents, reviews, convoys, escalations, nudges",
        "`SELECT type, outcome, count() FROM reconciler_events FINAL GROUP BY type, outcome`",
        shown=on("Reconciler", "Actions by outcome", "Effects by outcome"),
    ),
)

ALERTS: Final = (
    Alert(
        "Working agents",
        '`sum by (fleet) (runnerstream_reconciler_work{state="in_progress"}) == 0 and sum by '
        '(fleet) (runnerstream_reconciler_work{state="open"}) > 0` for 5m',
        "none for 5m with open beads",
        fires=("ReconcilerNobodyWorks",),
    ),
    Alert(
        "Failed beads",
        '`increase(runnerstream_reconciler_work_moved_total{to="failed"}[15m]) > 5`',
        "rising quickly",
        shown=on("Reconciler", "Activity and progress"),
    ),
    Alert(
        "Invariant violations",
        "`runnerstream_reconciler_violation_oldest_seconds > 300`",
        "more than 0",
        fires=("ReconcilerViolationsOpen",),
    ),
    Alert(
        "Wall clock",
        "`histogram_quantile(0.95, sum by (le) "
        "(rate(runnerstream_reconciler_tick_seconds_bucket[5m]))) > 0.5` for 10m",
        "more than 500 ms consistently",
        fires=("ReconcilerTickSlow", "ReconcilerTickVerySlow"),
    ),
    Alert(
        "Pending events",
        "`min_over_time(runnerstream_reconciler_pending_events[5m]) > 0`, "
        "`runnerstream_reconciler_pending_oldest_seconds`",
        "growing",
        fires=("ReconcilerPendingEvents",),
    ),
    Alert(
        "Alarm",
        "`runnerstream_reconcilers_overdue > 0`",
        "the next tick does not come",
        fires=("ReconcilerTickAge",),
    ),
    Alert(
        "Open beads",
        "`runnerstream_reconciler_work_oldest_seconds > 300`",
        "open for 5 min, in review for 15 min",
        fires=("ReconcilerWorkStuck",),
    ),
    Alert(
        "Beads that go back and forth",
        "`runnerstream_reconciler_work_flapping > 0`",
        "in progress to open, again and again",
        fires=("ReconcilerFlapping",),
        shown=on("Reconciler", "Flapping work"),
    ),
    Alert(
        "Dispatch",
        "`increase(runnerstream_reconciler_dispatch_failures_total[10m])`; by role and reason: "
        "`SELECT role, reason, count() FROM reconciler_events FINAL GROUP BY role, reason`",
        "reviews fail to start",
        fires=("ReconcilerDispatchFailing",),
        shown=on("Reconciler", "Dispatch failures by reason"),
    ),
    Alert(
        "No progress",
        "`runnerstream_reconcilers_without_progress > 0`",
        fires=("ReconcilerNoProgress",),
        shown=on("Reconciler", "Activity without progress"),
    ),
    Alert(
        "Repeat loop",
        "`runnerstream_reconciler_entities_in_loop > 0`",
        fires=("ReconcilerRepeatLoop",),
        shown=on("Reconciler", "Loops"),
    ),
    Alert(
        "Breaker open",
        "`runnerstream_reconciler_breaker_open > 0` for 5m",
        "the mayor is told",
        fires=("ReconcilerBreakerOpen",),
        shown=on("Reconciler", "Overdue, breaker open, draining"),
    ),
)
