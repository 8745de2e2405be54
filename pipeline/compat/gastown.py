"""gastown's reconciler: the nine fields of its tick, as Prometheus would have them."""

from __future__ import annotations

from typing import Final

from pipeline.compat.gastown_shows import ALERTS, FURTHER, PANELS
from pipeline.compat.model import Always, From, System, Take, Theirs, Turn, same
from pipeline.telemetry import reconciler_metrics as ours

TICK_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60)


def _counter(name: str, text: str, *follows: From, labels: tuple[str, ...] = (),
             said: str = "") -> Theirs:  # fmt: skip
    return Theirs(f"gastown_reconciler_{name}", "counter", text, labels, follows, said=said)


def _gauge(name: str, text: str, source: From, said: str = "") -> Theirs:
    return Theirs(f"gastown_reconciler_{name}", "gauge", text, (), (source,), said=said)


METRICS: Final = (
    _counter("ticks_total", "Ticks.", From(ours.TICKS, (Take("outcome"),)), labels=("outcome",)),
    Theirs(
        "gastown_reconciler_tick_duration_seconds",
        "histogram",
        "How long ticks took.",
        (),
        (From(ours.TICK_SECONDS),),
        TICK_BUCKETS,
    ),
    _counter(
        "events_drained_total", "Events that were read.", From(ours.DRAINED),
        said="Of which type they were no tick says.",
    ),
    _counter(
        "events_failed_total", "Events that could not be applied.", From(ours.NOT_APPLIED),
        said="As those that were read.",
    ),
    _counter(
        "actions_emitted_total", "Actions that were computed.", From(ours.ACTIONS),
        said="By type: `SELECT actions_by_type FROM reconciler_events`.",
    ),
    _counter(
        "actions_total",
        "Actions by what became of them.",
        From(ours.RESULTS, (Take("outcome"),)),
        labels=("outcome",),
        said="As each action was told by itself; `unknown` when its outcome was not. By type: "
        "`SELECT type, outcome, count() FROM reconciler_events FINAL WHERE kind = "
        "'reconciler.action' GROUP BY type, outcome`.",
    ),
    _counter(
        "side_effects_total",
        "Side effects: attempted, and by how they ended.",
        From(ours.ATTEMPTED, (Always("attempted"),)),
        From(ours.EFFECTS, (Turn("outcome", same(("succeeded", "failed"))),)),
        labels=("outcome",),
        said="What a tick catches itself and does not tell is in "
        '`runnerstream_reconciler_effect_results_total{outcome="failed"}`. By type: `SELECT type, '
        "outcome, count() FROM reconciler_events FINAL WHERE kind = 'reconciler.effect' GROUP BY "
        "type, outcome`.",
    ),
    _gauge(
        "invariant_violations",
        "Invariants that are broken now.",
        From(ours.VIOLATIONS),
        "Each once for each entity, however many ticks say so. Which: `/telemetry`, and [What is "
        "broken](telemetry.md#asking-clickhouse).",
    ),
    _counter(
        "invariant_violations_opened_total", "Violations that were opened.", From(ours.OPENED),
        said="Each opening once, however often it is told again. By invariant and entity: "
        "[What is broken](telemetry.md#asking-clickhouse).",
    ),
    _gauge(
        "invariant_oldest_age_seconds",
        "For how long the oldest violation is open.",
        From(ours.VIOLATION_OLDEST, fold="max"),
    ),
    _gauge(
        "pending_events", "Events that wait.", From(ours.PENDING),
        "Of all reconcilers; of the one with most: "
        "`runnerstream_reconciler_pending_events_largest`.",
    ),
    _gauge(
        "pending_oldest_age_seconds",
        "How long the oldest of them waits.",
        From(ours.PENDING_OLDEST, fold="max"),
    ),
    _gauge(
        "last_tick_timestamp_seconds",
        "When the last tick was.",
        From(ours.LAST_TICK, fold="max"),
        "Of all reconcilers the last; of the one that is silent for longest: "
        "`runnerstream_reconciler_silent_seconds`.",
    ),
    _gauge(
        "circuit_breaker_open", "Reconcilers that hold dispatches back.", From(ours.BREAKER),
        "How many do.",
    ),
)  # fmt: skip

SYSTEM: Final = System(
    "gastown",
    "The reconciler of gastown tells its nine fields to an analytics store, not to Prometheus. "
    "These are the names that they would have there, over all towns: which town is no label. A "
    "town is a fleet here, so ours have each.",
    METRICS,
    PANELS,
    ALERTS,
    FURTHER,
)
