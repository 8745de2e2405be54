"""What is counted and shown of schedulers. Pure data.

Durations are by mode and result and not by fleet: by both they would cost 200 series a fleet, and
a run's mode says more of how long it takes than whose it is. By fleet they are in ClickHouse.
"""

from __future__ import annotations

from typing import Any, Final

from pipeline.metrics import Counter, Gauge, Histogram, Label, Metric, Source
from topics.events.schedulers import PlanStatus, RunMode, RunResult, SegmentStatus

_GROUP: Final = "schedulers"
_FLEET: Final = Label("fleet", Source.FLEET)
_MODE: Final = Label("mode", tuple(each.value for each in RunMode))
_QUEUE: Final = Label("queue", ("planner", "runner"))
_PLANNED: Final = Label("status", tuple(each.value for each in PlanStatus))
#: Few: by mode and outcome there are many of each.
LATENCY_BUCKETS: Final = (1, 15, 45, 120)
#: 100 ms to 5 min, over all modes.
PLAN_BUCKETS: Final = (0.1, 0.5, 1, 2.5, 5, 15, 30, 60, 120, 300)
DURATION_BUCKETS: Final = (60, 600, 1800, 3600)

PLANS: Final = Counter[tuple[str, str, str]](
    "scheduler_planner_runs",
    "Runs that were planned, by what planning came to.",
    "runs",
    (_FLEET, _MODE, _PLANNED),
    group=_GROUP,
)
PLAN_LATENCY: Final = Histogram[tuple[str, str]](
    "scheduler_planner_latency_seconds",
    "From a run's creation to the end of its planning: wait and planning together.",
    "seconds",
    (_MODE, _PLANNED),
    buckets=LATENCY_BUCKETS,
)
PLAN_WAIT: Final = Histogram[tuple[()]](
    "scheduler_planner_wait_seconds",
    "From a run's creation to the planner's first look at it.",
    "seconds",
    buckets=PLAN_BUCKETS,
)
PLAN_SECONDS: Final = Histogram[tuple[()]](
    "scheduler_planning_seconds",
    "From the planner's first look at a run to the end of its planning.",
    "seconds",
    buckets=PLAN_BUCKETS,
)
SEGMENTS: Final = Counter[tuple[str, str, str]](
    "scheduler_segments",
    "Segments that workers were done with. A segment is completed once, however often it is told.",
    "segments",
    (_FLEET, _MODE, Label("status", tuple(each.value for each in SegmentStatus))),
    group=_GROUP,
)
RETRIES: Final = Counter[tuple[str]](
    "scheduler_segment_retries",
    "Segments that a worker took once more: attempts beyond the first.",
    "attempts",
    (_FLEET,),
    group=_GROUP,
)
IMAGES: Final = Counter[tuple[str, str]](
    "scheduler_images",
    "Images in completed segments: with new findings, or without.",
    "images",
    (_MODE, Label("delta", ("true", "false"))),
)
FINDINGS: Final = Counter[tuple[str, str]](
    "scheduler_findings", "New findings.", "findings", (_FLEET, _MODE), group=_GROUP
)
CRITICAL: Final = Counter[tuple[str, str]](
    "scheduler_findings_critical",
    "New findings that are critical.",
    "findings",
    (_FLEET, _MODE),
    group=_GROUP,
)
HIGH: Final = Counter[tuple[str, str]](
    "scheduler_findings_high",
    "New findings that are of high severity.",
    "findings",
    (_FLEET, _MODE),
    group=_GROUP,
)
KEV: Final = Counter[tuple[str, str]](
    "scheduler_findings_kev",
    "New findings that are known to be exploited.",
    "findings",
    (_FLEET, _MODE),
    group=_GROUP,
)
FINISHED: Final = Counter[tuple[str, str]](
    "scheduler_runs_finished",
    "Runs that ended, by how.",
    "runs",
    (_FLEET, Label("result", tuple(each.value for each in RunResult))),
    group=_GROUP,
)
RUN_SECONDS: Final = Histogram[tuple[str, str]](
    "scheduler_run_duration_seconds",
    "From a run's creation to its end, whatever that was. Not of runs without work, which take no "
    "time; for how long those take that do not end, see the oldest.",
    "seconds",
    (
        _MODE,
        Label("result", tuple(each.value for each in RunResult if each is not RunResult.NO_WORK)),
    ),
    buckets=DURATION_BUCKETS,
)
DEAD_LETTERED: Final = Counter[tuple[str, str]](
    "scheduler_dead_lettered",
    "Messages of runs that were given up.",
    "messages",
    (_FLEET, _QUEUE),
    group=_GROUP,
)
MISSED: Final = Counter[tuple[str]](
    "scheduler_schedules_missed",
    "Times at which a schedule was due and not run.",
    "times",
    (_FLEET,),
    group=_GROUP,
)
CAUGHT_UP: Final = Counter[tuple[str]](
    "scheduler_schedules_caught_up",
    "Times at which a schedule was due and that were run later.",
    "times",
    (_FLEET,),
    group=_GROUP,
)
GIVEN_UP: Final = Counter[tuple[str, str]](
    "scheduler_given_up",
    "What is not remembered any more though it is not over: runs and missed schedules that nobody "
    "mentioned for a day, and segments of a run that has more than 5000.",
    "things",
    (_FLEET, Label("what", ("run", "schedule", "segment"))),
    group=_GROUP,
)
ACTIVE: Final = Gauge[tuple[str, str]](
    "scheduler_runs_active",
    "Runs that are executed now: planned with work to do, and not over.",
    "runs",
    (_FLEET, _MODE),
    group=_GROUP,
)
PLANNING: Final = Gauge[tuple[str]](
    "scheduler_runs_planning",
    "Runs that were created and are not planned yet.",
    "runs",
    (_FLEET,),
    group=_GROUP,
)
OLDEST: Final = Gauge[tuple[str, str]](
    "scheduler_run_oldest_seconds",
    "Age of the oldest run that is being planned, or is active; 0 when none is.",
    "seconds",
    (_FLEET, Label("state", ("planning", "active"))),
    group=_GROUP,
    over="max",
)
BACKLOG: Final = Gauge[tuple[str]](
    "scheduler_backlog",
    "Images that active runs have still to do. Per schedule: in ClickHouse.",
    "images",
    (_FLEET,),
    group=_GROUP,
)
LARGEST: Final = Gauge[tuple[str, str]](
    "scheduler_backlog_largest",
    "Images that the active run of a mode has still to do that has most.",
    "images",
    (_FLEET, _MODE),
    group=_GROUP,
    over="max",
)
NOT_DRAINING: Final = Gauge[tuple[str]](
    "scheduler_runs_not_draining",
    "Active runs with images to do that have finished none for ten minutes.",
    "runs",
    (_FLEET,),
    group=_GROUP,
)
DEPTH: Final = Gauge[tuple[str, str]](
    "scheduler_queue_depth",
    "Messages that wait in a queue of the scheduler.",
    "messages",
    (_FLEET, _QUEUE),
    group=_GROUP,
    partial=True,
)
IN_FLIGHT: Final = Gauge[tuple[str, str]](
    "scheduler_queue_in_flight",
    "Messages of a queue that are worked on.",
    "messages",
    (_FLEET, _QUEUE),
    group=_GROUP,
    partial=True,
)
QUEUE_OLDEST: Final = Gauge[tuple[str, str]](
    "scheduler_queue_oldest_seconds",
    "For how long the message waits that waits for longest, 0 when none does.",
    "seconds",
    (_FLEET, _QUEUE),
    group=_GROUP,
    over="max",
    partial=True,
)
DEAD_LETTERS: Final = Gauge[tuple[str]](
    "scheduler_queue_dead_letters",
    "Messages that were given up and that nobody has cleared away.",
    "messages",
    (_FLEET,),
    group=_GROUP,
)
BEHIND: Final = Gauge[tuple[str]](
    "scheduler_schedules_behind",
    "Schedules that were missed and not caught up with.",
    "schedules",
    (_FLEET,),
    group=_GROUP,
)
#: In the order of ``/metrics``.
METRICS: Final[tuple[Metric[Any], ...]] = (
    PLANS,
    PLAN_LATENCY,
    PLAN_WAIT,
    PLAN_SECONDS,
    SEGMENTS,
    RETRIES,
    IMAGES,
    FINDINGS,
    CRITICAL,
    HIGH,
    KEV,
    FINISHED,
    RUN_SECONDS,
    DEAD_LETTERED,
    MISSED,
    CAUGHT_UP,
    GIVEN_UP,
    ACTIVE,
    PLANNING,
    OLDEST,
    BACKLOG,
    LARGEST,
    NOT_DRAINING,
    DEPTH,
    IN_FLIGHT,
    QUEUE_OLDEST,
    DEAD_LETTERS,
    BEHIND,
)
