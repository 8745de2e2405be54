"""Events of a reconciler: ticks, actions, effects and violations; and of the work that it moves."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from topics.events.base import Count, Event, MaybeNamed, Ms, Named, Text


class ActionOutcome(StrEnum):
    """What became of an action."""

    APPLIED = "applied"
    FAILED = "failed"
    SUPPRESSED = "suppressed"
    UNKNOWN = "unknown"


class EffectOutcome(StrEnum):
    """What became of a side effect. Who does not know did not succeed."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"


class WorkStatus(StrEnum):
    """Where a piece of work is."""

    OPEN = "open"
    IN_PROGRESS = "in_progress"
    IN_REVIEW = "in_review"
    CLOSED = "closed"
    FAILED = "failed"


class _OfReconciler(Event):
    reconciler: Named

    @property
    def subject(self) -> str:
        return self.reconciler


#: By type; a reconciler has some dozens.
ByType = Annotated[dict[Named, Count], Field(max_length=200)]


class TickDone(_OfReconciler):
    """A reconciler has run once. Levels of the latest tick count."""

    kind: Literal["reconciler.tick"] = "reconciler.tick"
    tick_id: Named
    #: After so long the next is due.
    interval_ms: Ms | None = None
    wall_ms: Ms
    events_drained: Count = 0
    events_failed: Count = 0
    actions: Count = 0
    actions_by_type: ByType = {}
    effects_attempted: Count = 0
    effects_succeeded: Count = 0
    effects_failed: Count = 0
    #: As it counts them itself; ours follow from those opened and closed.
    violations: Count | None = None
    #: Events that wait: never tried, and tried in vain; for how long the oldest does.
    pending_new: Count = 0
    pending_retry: Count = 0
    pending_oldest_ms: Ms | None = None
    draining: bool = False
    breaker_open: bool = False
    #: Whether a phase of it failed.
    failed: bool = False

    @property
    def statement(self) -> str:
        return f"{self.kind}|{self.tick_id}"


class ActionTaken(_OfReconciler):
    """A reconciler changed something."""

    kind: Literal["reconciler.action"] = "reconciler.action"
    tick_id: MaybeNamed = ""
    type: Named
    entity: MaybeNamed = ""
    from_state: Text = ""
    to_state: Text = ""
    outcome: ActionOutcome = ActionOutcome.UNKNOWN
    reason: Text = ""


class EffectEnded(_OfReconciler):
    """A side effect of an action ended."""

    kind: Literal["reconciler.effect"] = "reconciler.effect"
    tick_id: MaybeNamed = ""
    type: Named
    entity: MaybeNamed = ""
    outcome: EffectOutcome = EffectOutcome.UNKNOWN
    duration_ms: Ms | None = None
    reason: Text = ""


class ViolationSeen(_OfReconciler):
    """An invariant is broken for an entity, or holds again."""

    kind: Literal["reconciler.violation_opened", "reconciler.violation_closed"]
    invariant: Named
    entity: Named
    message: Text = ""


class WorkMoved(_OfReconciler):
    """A piece of work came to be, moved, or is over."""

    kind: Literal["work.moved"] = "work.moved"
    work_id: Named
    to_state: WorkStatus
    from_state: Text = ""
    reason: Text = ""
    duration_ms: Ms | None = None


class DispatchFailed(_OfReconciler):
    """A worker could not be put to a piece of work."""

    kind: Literal["work.dispatch_failed"] = "work.dispatch_failed"
    work_id: Named
    role: Text = ""
    #: Never empty: an empty one hid 4,000 failures an hour.
    reason: Annotated[str, Field(min_length=1, max_length=256)] = "unknown"
    attempt: Count = 1


EVENTS = (TickDone, ActionTaken, EffectEnded, ViolationSeen, WorkMoved, DispatchFailed)
