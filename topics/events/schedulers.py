"""Events of a scheduler: runs that are planned, split into segments and executed."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from topics.events.base import Count, Event, MaybeNamed, Millis, Ms, Named, Text


class PlanStatus(StrEnum):
    """What planning a run came to."""

    ENQUEUED = "enqueued"
    NO_WORK = "no_work"
    FAILED = "failed"
    UNKNOWN = "unknown"


class SegmentStatus(StrEnum):
    """What became of a segment."""

    COMPLETED = "completed"
    PERSIST_FAILED = "persist_failed"
    RUN_MISSING = "run_missing"
    UNKNOWN = "unknown"


class RunResult(StrEnum):
    """How a run ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    ERROR = "error"
    NO_WORK = "no_work"
    UNKNOWN = "unknown"


class RunMode(StrEnum):
    """What a run is for."""

    ANALYSIS_ONLY = "analysis_only"
    CONTENT_REFRESH = "content_refresh"
    OTHER = "other"


class _OfRun(Event):
    run_id: Named
    schedule_id: MaybeNamed = ""
    #: Known from any event of the run.
    mode: RunMode = RunMode.OTHER

    @property
    def subject(self) -> str:
        return f"run:{self.run_id}"


class RunCreated(_OfRun):
    """A run came to be."""

    kind: Literal["run.created"] = "run.created"
    trigger: Text = ""


class RunPlanned(_OfRun):
    """A run was planned: it is executed now, has nothing to do, or failed."""

    kind: Literal["run.planned"] = "run.planned"
    status: PlanStatus = PlanStatus.UNKNOWN
    #: From its creation to the planner's first look, and to the end of planning.
    wait_ms: Ms | None = None
    latency_ms: Ms | None = None
    images: Count = 0
    segments: Count = 0
    error_code: Text = ""

    @property
    def statement(self) -> str:
        return self.kind


class SegmentLeased(_OfRun):
    """A worker took a segment."""

    kind: Literal["segment.leased"] = "segment.leased"
    segment_id: Named
    attempt: Count = 1
    worker: MaybeNamed = ""

    @property
    def statement(self) -> str:
        return f"{self.kind}|{self.segment_id}|{self.attempt}"


class SegmentFinished(_OfRun):
    """A worker is done with a segment."""

    kind: Literal["segment.finished"] = "segment.finished"
    segment_id: Named
    attempt: Count = 1
    status: SegmentStatus = SegmentStatus.UNKNOWN
    images: Count = 0
    images_with_delta: Count = 0
    #: New findings, and those of them that are critical, high, known to be exploited.
    new: Count = 0
    critical: Count = 0
    high: Count = 0
    kev: Count = 0
    duration_ms: Ms | None = None

    @property
    def statement(self) -> str:
        # A segment is completed once: a queue that gives one out again must not double findings.
        done = self.status is SegmentStatus.COMPLETED
        return f"{self.kind}|{self.segment_id}|{'' if done else self.attempt}"


class RunProgressed(_OfRun):
    """How far a run is. The latest counts."""

    kind: Literal["run.progress"] = "run.progress"
    processed: Count
    total: Count


class RunFinished(_OfRun):
    """A run ended."""

    kind: Literal["run.finished"] = "run.finished"
    result: RunResult = RunResult.UNKNOWN
    #: From its creation. None: not known.
    duration_ms: Ms | None = None
    error_code: Text = ""

    @property
    def statement(self) -> str:
        return self.kind


class QueueDepth(Event):
    """How a queue of the scheduler is. The latest counts."""

    kind: Literal["queue.depth"] = "queue.depth"
    queue: Literal["planner", "runner"]
    depth: Count
    in_flight: Count = 0
    oldest_at: Millis | None = None
    dead_letters: Count = 0

    @property
    def subject(self) -> str:
        return f"queue:{self.queue}"


class QueueDeadLettered(_OfRun):
    """A message of a run was given up."""

    kind: Literal["queue.dead_lettered"] = "queue.dead_lettered"
    queue: Literal["planner", "runner"]
    attempts: Count = 0
    reason: Text = ""


class ScheduleMissed(Event):
    """A schedule was not run when it was due, or was caught up with."""

    kind: Literal["schedule.missed", "schedule.caught_up"]
    schedule_id: Named
    due_at: Millis
    late_ms: Ms | None = None

    @property
    def subject(self) -> str:
        return f"schedule:{self.schedule_id}"

    @property
    def statement(self) -> str:
        return f"{self.kind}|{self.due_at}"


EVENTS = (
    RunCreated, RunPlanned, SegmentLeased, SegmentFinished, RunProgressed, RunFinished, QueueDepth,
    QueueDeadLettered, ScheduleMissed,
)  # fmt: skip
