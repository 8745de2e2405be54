"""What is counted and shown of reconcilers. Pure data.

Distributions are not by fleet: how long its last tick took is, and the rest is in ClickHouse.
"""

from __future__ import annotations

from typing import Any, Final

from pipeline.metrics import Counter, Gauge, Histogram, Label, Metric, Source
from topics.events.reconcilers import ActionOutcome, EffectOutcome, WorkStatus

#: States of work that is not over.
OPEN_STATES: Final = (WorkStatus.OPEN, WorkStatus.IN_PROGRESS, WorkStatus.IN_REVIEW)

_GROUP: Final = "reconcilers"
_FLEET: Final = Label("fleet", Source.FLEET)
_ENDED: Final = Label("outcome", tuple(each.value for each in EffectOutcome))
_PENDING: Final = Label("state", ("new", "retry"))
_OPEN: Final = Label("state", tuple(each.value for each in OPEN_STATES))
#: 5 ms to 1 min: a healthy tick takes less than 100 ms, and one that took 61 s was seen.
TICK_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60)
EFFECT_BUCKETS: Final = (0.05, 0.1, 0.5, 1, 5, 15, 60, 300)

TICKS: Final = Counter[tuple[str, str]](
    "reconciler_ticks",
    "Runs of reconcilers: ok, or with a phase that failed.",
    "ticks",
    (_FLEET, Label("outcome", ("ok", "failed"))),
    group=_GROUP,
)
TICK_SECONDS: Final = Histogram[tuple[()]](
    "reconciler_tick_seconds",
    "How long a tick took.",
    "seconds",
    buckets=TICK_BUCKETS,
)
DRAINED: Final = Counter[tuple[str]](
    "reconciler_events_drained",
    "Events that reconcilers read.",
    "events",
    (_FLEET,),
    group=_GROUP,
)
NOT_APPLIED: Final = Counter[tuple[str]](
    "reconciler_events_failed",
    "Events that reconcilers could not apply.",
    "events",
    (_FLEET,),
    group=_GROUP,
)
ACTIONS: Final = Counter[tuple[str]](
    "reconciler_actions",
    "Actions that ticks computed. By type: in ClickHouse.",
    "actions",
    (_FLEET,),
    group=_GROUP,
)
RESULTS: Final = Counter[tuple[str, str]](
    "reconciler_action_results",
    "Actions by what became of them, as each was told by itself.",
    "actions",
    (_FLEET, Label("outcome", tuple(each.value for each in ActionOutcome))),
    group=_GROUP,
)
ATTEMPTED: Final = Counter[tuple[str]](
    "reconciler_effects_attempted",
    "Side effects that ticks began.",
    "effects",
    (_FLEET,),
    group=_GROUP,
)
EFFECTS: Final = Counter[tuple[str, str]](
    "reconciler_effects",
    "The same by how they ended, as ticks say; unknown: begun, and neither of the others.",
    "effects",
    (_FLEET, _ENDED),
    group=_GROUP,
)
ENDED: Final = Counter[tuple[str, str]](
    "reconciler_effect_results",
    "Side effects by how they ended, as each was told by itself: a tick that catches its "
    "failures itself does not hide them here.",
    "effects",
    (_FLEET, _ENDED),
    group=_GROUP,
)
EFFECT_SECONDS: Final = Histogram[tuple[str]](
    "reconciler_effect_seconds",
    "How long side effects took, by how they ended.",
    "seconds",
    (_ENDED,),
    buckets=EFFECT_BUCKETS,
)
OPENED: Final = Counter[tuple[str]](
    "reconciler_violations_opened",
    "How often an invariant came to be broken for an entity. Who says again that it is adds "
    "nothing.",
    "violations",
    (_FLEET,),
    group=_GROUP,
)
CLOSED: Final = Counter[tuple[str]](
    "reconciler_violations_closed",
    "How often one came to hold again, by the same rule; also when nobody said that it was broken.",
    "violations",
    (_FLEET,),
    group=_GROUP,
)
MOVES: Final = Counter[tuple[str, str]](
    "reconciler_work_moved",
    "Moves of pieces of work, by where to.",
    "moves",
    (_FLEET, Label("to", tuple(each.value for each in WorkStatus))),
    group=_GROUP,
)
REOPENED: Final = Counter[tuple[str]](
    "reconciler_work_reopened",
    "Moves of pieces of work out of closed, which should be the end.",
    "moves",
    (_FLEET,),
    group=_GROUP,
)
UNSENT: Final = Counter[tuple[str]](
    "reconciler_dispatch_failures",
    "Workers that could not be put to a piece of work. By reason: in ClickHouse.",
    "tries",
    (_FLEET,),
    group=_GROUP,
)
GIVEN_UP: Final = Counter[tuple[str, str]](
    "reconciler_given_up",
    "What is not remembered any more though it is not over: reconcilers of which nothing was "
    "heard for a day, violations and open work that nobody mentioned for a week.",
    "things",
    (_FLEET, Label("what", ("reconciler", "violation", "work"))),
    group=_GROUP,
)
CROWDED: Final = Counter[tuple[str]](
    "reconciler_crowded_out",
    "Violations, pieces of work, repeated actions and ticks that are forgotten because there "
    "are too many of one reconciler.",
    "things",
    (_FLEET,),
    group=_GROUP,
)
KNOWN: Final = Gauge[tuple[str]](
    "reconcilers",
    "Reconcilers that were heard of within a day.",
    "reconcilers",
    (_FLEET,),
    group=_GROUP,
)
LAST_TICK: Final = Gauge[tuple[str]](
    "reconciler_last_tick_timestamp_seconds",
    "When a reconciler of the fleet last ticked, as Unix time.",
    "seconds",
    (_FLEET,),
    group=_GROUP,
    over="max",
)
SILENT: Final = Gauge[tuple[str]](
    "reconciler_silent_seconds",
    "How long ago the last tick was of the reconciler that is silent for longest.",
    "seconds",
    (_FLEET,),
    group=_GROUP,
    over="max",
)
OVERDUE: Final = Gauge[tuple[str]](
    "reconcilers_overdue",
    "Reconcilers whose last tick is more than three of their intervals ago.",
    "reconcilers",
    (_FLEET,),
    group=_GROUP,
)
WALL: Final = Gauge[tuple[str]](
    "reconciler_last_tick_seconds",
    "How long the last tick took of the slowest reconciler.",
    "seconds",
    (_FLEET,),
    group=_GROUP,
    over="max",
)
PENDING: Final = Gauge[tuple[str, str]](
    "reconciler_pending_events",
    "Events that wait after the last tick: never tried, or tried in vain.",
    "events",
    (_FLEET, _PENDING),
    group=_GROUP,
)
MOST_PENDING: Final = Gauge[tuple[str, str]](
    "reconciler_pending_events_largest",
    "The same of the reconciler with most.",
    "events",
    (_FLEET, _PENDING),
    group=_GROUP,
    over="max",
)
PENDING_OLDEST: Final = Gauge[tuple[str]](
    "reconciler_pending_oldest_seconds",
    "How long the oldest of them had waited at the last tick, 0 when none waits.",
    "seconds",
    (_FLEET,),
    group=_GROUP,
    over="max",
)
BREAKER: Final = Gauge[tuple[str]](
    "reconciler_breaker_open",
    "Reconcilers that hold their dispatches back.",
    "reconcilers",
    (_FLEET,),
    group=_GROUP,
)
DRAINING: Final = Gauge[tuple[str]](
    "reconciler_draining",
    "Reconcilers that are being stopped.",
    "reconcilers",
    (_FLEET,),
    group=_GROUP,
)
VIOLATIONS: Final = Gauge[tuple[str]](
    "reconciler_violations",
    "Invariants that are broken now: each once for each entity.",
    "violations",
    (_FLEET,),
    group=_GROUP,
)
VIOLATION_OLDEST: Final = Gauge[tuple[str]](
    "reconciler_violation_oldest_seconds",
    "For how long the invariant is broken that is so for longest, 0 when none is.",
    "seconds",
    (_FLEET,),
    group=_GROUP,
    over="max",
)
WORK: Final = Gauge[tuple[str, str]](
    "reconciler_work",
    "Pieces of work that are not over.",
    "pieces",
    (_FLEET, _OPEN),
    group=_GROUP,
)
WORK_OLDEST: Final = Gauge[tuple[str, str]](
    "reconciler_work_oldest_seconds",
    "For how long the piece of work is in its state that is so for longest, 0 without any.",
    "seconds",
    (_FLEET, _OPEN),
    group=_GROUP,
    over="max",
)
IN_LOOP: Final = Gauge[tuple[str]](
    "reconciler_entities_in_loop",
    "Entities to which the same was done more than ten times within the last hour.",
    "entities",
    (_FLEET,),
    group=_GROUP,
)
FLAPPING: Final = Gauge[tuple[str]](
    "reconciler_work_flapping",
    "Pieces of work that came back to a state that they had left more than three times within"
    " the last half hour.",
    "pieces",
    (_FLEET,),
    group=_GROUP,
)
NO_PROGRESS: Final = Gauge[tuple[str]](
    "reconcilers_without_progress",
    "Reconcilers with more than 200 actions and no work closed within the last hour, though "
    "some is open for as long.",
    "reconcilers",
    (_FLEET,),
    group=_GROUP,
)
#: In the order of ``/metrics``.
METRICS: Final[tuple[Metric[Any], ...]] = (
    TICKS, TICK_SECONDS, DRAINED, NOT_APPLIED, ACTIONS, RESULTS, ATTEMPTED, EFFECTS, ENDED,
    EFFECT_SECONDS, OPENED, CLOSED, MOVES, REOPENED, UNSENT, GIVEN_UP, CROWDED, KNOWN,
    LAST_TICK, SILENT, OVERDUE, WALL, PENDING, MOST_PENDING, PENDING_OLDEST, BREAKER,
    DRAINING, VIOLATIONS, VIOLATION_OLDEST, WORK, WORK_OLDEST, IN_LOOP, FLAPPING, NO_PROGRESS,
)  # fmt: skip
