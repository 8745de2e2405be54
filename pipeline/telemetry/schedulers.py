"""Schedulers: runs that are planned, split into segments and executed. Pure.

Each run is a subject, and so is each queue and each schedule. Whether a run is active follows from
all that is known of it: what was never told to end is not counted down by anything that ended
something else, and a word that comes twice changes nothing. A run that is over stays as a tombstone
(:data:`KEPT_MS`), so that a late word does not open it again. One that nobody mentions for
:data:`SILENT_MS` is given up, and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from pipeline.metrics import Counter, Gauge, Level
from pipeline.telemetry.loops import too_many
from pipeline.telemetry.scheduler_metrics import (
    ACTIVE,
    BACKLOG,
    BEHIND,
    CAUGHT_UP,
    CRITICAL,
    DEAD_LETTERED,
    DEAD_LETTERS,
    DEPTH,
    FINDINGS,
    FINISHED,
    GIVEN_UP,
    HIGH,
    IMAGES,
    IN_FLIGHT,
    KEV,
    LARGEST,
    METRICS,
    MISSED,
    NOT_DRAINING,
    OLDEST,
    PLAN_LATENCY,
    PLAN_SECONDS,
    PLAN_WAIT,
    PLANNING,
    PLANS,
    QUEUE_OLDEST,
    RETRIES,
    RUN_SECONDS,
    SEGMENTS,
)
from pipeline.telemetry.subject import (
    FRESH_MS,
    HOUR_MS,
    KEPT_MS,
    MINUTE_MS,
    Family,
    Subject,
    earliest,
    known,
    latest,
)
from topics.events import Event
from topics.events.schedulers import (
    PlanStatus,
    QueueDeadLettered,
    QueueDepth,
    RunCreated,
    RunFinished,
    RunMode,
    RunPlanned,
    RunProgressed,
    RunResult,
    ScheduleMissed,
    SegmentFinished,
    SegmentLeased,
    SegmentStatus,
)

#: A run, or a schedule that was missed, that nobody mentions for so long is given up.
SILENT_MS: Final = 24 * HOUR_MS
#: The backlog of a run that finishes no segment for so long does not drain.
DRAINS_MS: Final = 10 * MINUTE_MS
#: Segments that are remembered of a run. Beyond, only what it says itself tells how far it is.
MOST_SEGMENTS: Final = 5_000


class Planned(Struct, frozen=True):
    """What planning came to."""

    at: int
    id: str
    status: PlanStatus
    images: int


class Progress(Struct, frozen=True):
    """How far a run says it is."""

    at: int
    id: str
    processed: int
    total: int


class Finished(Struct, frozen=True):
    """How a run ended."""

    at: int
    id: str
    result: RunResult


class Run(Struct, frozen=True, omit_defaults=True):
    """A run, joined from all that was said of it."""

    #: When it was first and last spoken of.
    first: int
    last: int
    mode: RunMode = RunMode.OTHER
    schedule: str = ""
    created: int | None = None
    planned: Planned | None = None
    #: When there was last a sign of its execution.
    worked: int | None = None
    #: When it last completed a segment; how many images it said to have done at most, and since
    #: when.
    drained: int | None = None
    reached: tuple[int, int] | None = None
    progress: Progress | None = None
    finished: Finished | None = None

    @property
    def since(self) -> int:
        """When it began, as far as is known."""
        return self.first if self.created is None else self.created

    @property
    def state(self) -> Literal["planning", "active", "over", "unknown"]:
        """Where it is. Unknown: only spoken of."""
        if self.finished is not None:
            return "over"
        planned, worked = self.planned, self.worked
        if planned is not None and planned.status in (PlanStatus.NO_WORK, PlanStatus.FAILED):
            # Unless it was planned again.
            return "active" if worked is not None and worked > planned.at else "over"
        if planned is not None or worked is not None:
            return "active"
        return "planning" if self.created is not None else "unknown"


class Segment(Struct, frozen=True):
    """A segment that was completed."""

    at: int
    id: str
    images: int


class Queue(Struct, frozen=True, omit_defaults=True):
    """The latest word on a queue."""

    at: int
    id: str
    depth: int
    in_flight: int
    dead_letters: int
    oldest_at: int | None = None


class Schedule(Struct, frozen=True, omit_defaults=True):
    """When a schedule was last due and missed, and up to when it was caught up with."""

    last: int
    missed: int | None = None
    caught_up: int | None = None

    @property
    def behind(self) -> bool:
        """Whether it has still to be caught up with."""
        return self.missed is not None and (self.caught_up or 0) < self.missed


# --- what is said -----------------------------------------------------------------------------


def apply(subject: Subject, event: Event) -> None:
    """See :attr:`Family.apply`."""
    at, id_ = event.occurred_at, event.id
    if isinstance(event, QueueDepth):
        queue = Queue(
            at, id_, event.depth, event.in_flight, event.dead_letters, event.oldest_at
        )  # fmt: skip
        subject.put("queue", latest(subject.get("queue"), queue))
    elif isinstance(event, ScheduleMissed):
        missed = event.kind == "schedule.missed"
        subject.note(MISSED if missed else CAUGHT_UP)
        due = (event.due_at, None) if missed else (None, event.due_at)
        schedule: Schedule = subject.get("schedule") or Schedule(at)
        subject.put(
            "schedule",
            Schedule(
                max(schedule.last, at),
                _later(schedule.missed, due[0]),
                _later(schedule.caught_up, due[1]),
            ),
        )
    else:
        _count(subject, event)
        _of_run(subject, event)


def _of_run(subject: Subject, event: Any) -> None:
    at, id_ = event.occurred_at, event.id
    run: Run = subject.get("run") or Run(at, at)
    run = replace(
        run,
        first=min(run.first, at),
        last=max(run.last, at),
        mode=_mode(run.mode, event.mode),
        schedule=max(run.schedule, event.schedule_id),
    )
    if isinstance(event, RunCreated):
        run = replace(run, created=earliest(run.created, at))
    elif isinstance(event, RunPlanned):
        planned = Planned(at, id_, event.status, event.images)
        run = replace(run, planned=latest(run.planned, planned))
    elif isinstance(event, RunFinished):
        run = replace(run, finished=latest(run.finished, Finished(at, id_, event.result)))
    elif isinstance(event, SegmentLeased):
        run = replace(run, worked=_later(run.worked, at))
    elif isinstance(event, SegmentFinished):
        done = event.status is SegmentStatus.COMPLETED
        run = replace(
            run,
            worked=_later(run.worked, at),
            drained=_later(run.drained, at if done else None),
        )
    elif isinstance(event, RunProgressed):
        progress = Progress(at, id_, event.processed, event.total)
        run = replace(
            run,
            worked=_later(run.worked, at),
            progress=latest(run.progress, progress),
            reached=_further(run.reached, (event.processed, at)),
        )
    subject.put("run", run)
    if run.finished is not None:
        _drop_segments(subject)
    elif isinstance(event, SegmentFinished) and event.status is SegmentStatus.COMPLETED:
        segment = Segment(at, id_, event.images)
        name = event.segment_id
        subject.put("segments", latest(subject.get("segments", name), segment), name)


def _count(subject: Subject, event: Any) -> None:
    """What an event adds: it follows from the event alone."""
    mode = event.mode.value
    if isinstance(event, RunPlanned):
        _count_plan(subject, event, mode)
    elif isinstance(event, SegmentLeased):
        if event.attempt > 1:
            subject.note(RETRIES)
    elif isinstance(event, SegmentFinished):
        subject.note(SEGMENTS, mode, event.status.value)
        if event.status is SegmentStatus.COMPLETED:
            with_delta = min(event.images_with_delta, event.images)
            _add(subject, IMAGES, mode, "true", value=with_delta)
            _add(subject, IMAGES, mode, "false", value=event.images - with_delta)
            _add(subject, FINDINGS, mode, value=event.new)
            _add(subject, CRITICAL, mode, value=event.critical)
            _add(subject, HIGH, mode, value=event.high)
            _add(subject, KEV, mode, value=event.kev)
    elif isinstance(event, RunFinished):
        subject.note(FINISHED, event.result.value)
        if event.duration_ms is not None and event.result is not RunResult.NO_WORK:
            subject.note(RUN_SECONDS, mode, event.result.value, value=event.duration_ms / 1000)
    elif isinstance(event, QueueDeadLettered):
        subject.note(DEAD_LETTERED, event.queue)


def _count_plan(subject: Subject, event: RunPlanned, mode: str) -> None:
    subject.note(PLANS, mode, event.status.value)
    if event.latency_ms is not None:
        subject.note(PLAN_LATENCY, mode, event.status.value, value=event.latency_ms / 1000)
    if event.wait_ms is not None:
        subject.note(PLAN_WAIT, value=event.wait_ms / 1000)
        if event.latency_ms is not None and event.latency_ms >= event.wait_ms:
            subject.note(PLAN_SECONDS, value=(event.latency_ms - event.wait_ms) / 1000)


def _add(subject: Subject, counter: Counter[Any], *labels: str, value: int) -> None:
    if value:
        subject.note(counter, *labels, value=value)


def _later(one: int | None, other: int | None) -> int | None:
    return max((at for at in (one, other) if at is not None), default=None)


def _mode(one: RunMode, other: RunMode) -> RunMode:
    """The one that is known. Of two that are, always the same."""
    return min({one, other} - {RunMode.OTHER}, default=RunMode.OTHER)


def _further(one: tuple[int, int] | None, other: tuple[int, int]) -> tuple[int, int]:
    """More, and of the same number the earlier."""
    return other if one is None or (other[0], -other[1]) > (one[0], -one[1]) else one


# --- what is forgotten ------------------------------------------------------------------------


def tick(subject: Subject, clock: int) -> None:
    """See :attr:`Family.tick`."""
    queue: Queue | None = subject.get("queue")
    if queue is not None and clock - queue.at > HOUR_MS:
        subject.drop("queue")
    schedule: Schedule | None = subject.get("schedule")
    if schedule is not None and schedule.behind and clock - schedule.last > SILENT_MS:
        subject.note(GIVEN_UP, "schedule")
        subject.drop("schedule")
    elif schedule is not None and not schedule.behind and clock - schedule.last > KEPT_MS:
        subject.drop("schedule")
    run: Run | None = subject.get("run")
    if run is None:
        return
    for name in too_many(subject.all("segments"), MOST_SEGMENTS):
        subject.note(GIVEN_UP, "segment")
        subject.drop("segments", name)
    if clock - run.last > (KEPT_MS if run.state == "over" else SILENT_MS):
        if run.state != "over":
            subject.note(GIVEN_UP, "run")
        subject.drop("run")
        _drop_segments(subject)


def _drop_segments(subject: Subject) -> None:
    for name in list(subject.all("segments")):
        subject.drop("segments", name)


# --- how things are ---------------------------------------------------------------------------


def backlog(subject: Subject) -> int | None:
    """Images that a run has still to do; None when nobody knows.

    How many there are in all is what it said last, else what planning came to; how many are done
    what it said last, or the images of its completed segments, whichever is more.
    """
    run: Run = subject.get("run")
    if run.state != "active":
        return 0
    done: int = sum(segment.images for segment in subject.all("segments").values())
    if run.progress is not None:
        return max(0, run.progress.total - max(done, run.progress.processed))
    if run.planned is not None and run.planned.images:
        return max(0, run.planned.images - done)
    return None


def drains(subject: Subject, clock: int) -> bool:
    """Whether an active run has begun, or got on, within the last ten minutes."""
    run: Run = subject.get("run")
    got_on = run.reached[1] if run.reached is not None and run.reached[0] else None
    begun = run.since if run.planned is None else run.planned.at
    return clock - max(at for at in (begun, run.drained, got_on) if at is not None) <= DRAINS_MS


def levels(subject: Subject, clock: int) -> Iterator[Level]:
    """See :attr:`Family.levels`."""
    fleet = subject.fleet
    run: Run | None = subject.get("run")
    if run is not None and run.state != "unknown":
        yield from known(_run_levels(subject, run, clock))
    queue: Queue | None = subject.get("queue")
    if queue is not None and clock - queue.at <= FRESH_MS:
        name = subject.name.partition(":")[2]
        yield DEPTH, (fleet, name), queue.depth
        yield IN_FLIGHT, (fleet, name), queue.in_flight
        yield DEAD_LETTERS, (fleet,), queue.dead_letters
        if queue.oldest_at is not None:
            yield QUEUE_OLDEST, (fleet, name), max(0, clock - queue.oldest_at) / 1000
        elif queue.depth == 0:
            yield QUEUE_OLDEST, (fleet, name), 0
    schedule: Schedule | None = subject.get("schedule")
    if schedule is not None:
        yield BEHIND, (fleet,), int(schedule.behind)


def _run_levels(
    subject: Subject, run: Run, clock: int
) -> Iterable[tuple[Gauge[Any], tuple[str, ...], float | None]]:
    fleet, state, left = subject.fleet, run.state, backlog(subject)
    age = max(0, clock - run.since) / 1000
    yield ACTIVE, (fleet, run.mode.value), int(state == "active")
    yield PLANNING, (fleet,), int(state == "planning")
    yield OLDEST, (fleet, "planning"), age if state == "planning" else 0
    yield OLDEST, (fleet, "active"), age if state == "active" else 0
    yield BACKLOG, (fleet,), left
    yield LARGEST, (fleet, run.mode.value), left
    stuck = None if left is None else left > 0 and not drains(subject, clock)
    yield NOT_DRAINING, (fleet,), stuck


def view(subject: Subject, clock: int) -> dict[str, Any]:
    """See :attr:`Family.view`."""
    run: Run | None = subject.get("run")
    queue: Queue | None = subject.get("queue")
    schedule: Schedule | None = subject.get("schedule")
    if run is not None:
        left = backlog(subject)
        return {
            "state": run.state,
            "mode": run.mode.value,
            "schedule": run.schedule,
            "began_at": run.since,
            "said_at": run.last,
            "planned": run.planned.status.value if run.planned else None,
            "result": run.finished.result.value if run.finished else None,
            "segment_at": run.drained,
            "segments_done": len(subject.all("segments")),
            "backlog": left,
            "drains": not left or drains(subject, clock),
        }
    if queue is not None:
        return {
            "depth": queue.depth,
            "in_flight": queue.in_flight,
            "oldest_since": queue.oldest_at,
            "dead_letters": queue.dead_letters,
            "sampled_at": queue.at,
        }
    if schedule is not None:
        return {
            "behind": schedule.behind,
            "missed_at": schedule.missed,
            "caught_up_at": schedule.caught_up,
            "said_at": schedule.last,
        }
    return {}


FAMILY: Final = Family(
    name="schedulers",
    parts={"run": Run, "segments": Segment, "queue": Queue, "schedule": Schedule},
    metrics=METRICS,
    apply=apply,
    levels=levels,
    view=view,
    tick=tick,
)  # fmt: skip
