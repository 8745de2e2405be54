"""Scheduler: how runs are planned, whether their segments get done, what is left and what hangs."""

from __future__ import annotations

from typing import Final

from dashboards import config
from dashboards.boards import scheduler_queues as queues
from dashboards.model import Dashboard, Panel, Row, Sql, Threshold
from dashboards.telemetry import events as e
from dashboards.telemetry import schedulers as s

_EVENTS: Final = "scheduler_events"
_MODES: Final = ("analysis_only", "content_refresh", "other")
_BACKLOG: Final[tuple[Threshold, ...]] = ((None, "green"), (100, "yellow"), (config.BACKLOG, "red"))
_BLIND: Final = "no scheduler of these fleets says anything, or the sink is away: see Pipeline."


# --- now --------------------------------------------------------------------------------------


def active_now() -> Panel:
    """Runs that are executed now."""
    values = ", ".join(f"countIf(mode = '{each}') AS {each}" for each in _MODES)
    return Panel(
        "Active runs by mode",
        "stat",
        e.rows(f"{s.RUNS_NOW}SELECT {values} FROM {s.ACTIVE_NOW}"),
        healthy="as many as your schedules make.",
        deviation="more and more: runs are made faster than they are done, or hang.",
        todo="see Runs that are open for longest.",
        no_data=_BLIND,
        thresholds=config.PLAIN,
        width=6,
        height=4,
    )


def stuck_now() -> Panel:
    """Runs that do not get on."""
    return Panel(
        "Stuck runs",
        "stat",
        e.rows(f"{s.RUNS_NOW}SELECT countIf({s.STUCK}) AS stuck FROM {s.ACTIVE_NOW}"),
        healthy="none.",
        deviation="active runs with images to do of which nothing was finished for ten minutes.",
        todo="see Runs that are open for longest: who had their last segment, and is it given up?",
        no_data=_BLIND,
        thresholds=config.ANY_IS_BAD,
        width=4,
        height=4,
        alerts=("SchedulerBacklogNotDraining",),
    )


def oldest_now() -> Panel:
    """The age of the oldest open run."""
    return Panel(
        "Oldest open run",
        "stat",
        e.rows(f"""{s.RUNS_NOW}SELECT
  max(if(active > {e.NOW}, date_diff('millisecond', created, {e.NOW}), 0)) / 1000 AS planning,
  max(if(active <= {e.NOW}, date_diff('millisecond', created, {e.NOW}), 0)) / 1000 AS executing
FROM runs WHERE over > {e.NOW}"""),
        healthy="planning for seconds, active for minutes.",
        deviation="planning: the planner does not take runs. Active: a run hangs.",
        todo="planner: see its queue and log. Active: see Runs that are open for longest.",
        no_data=_BLIND,
        unit="s",
        thresholds=s.HANGS,
        width=5,
        height=4,
        alerts=("SchedulerRunsStuck",),
    )


def backlog_now() -> Panel:
    """All images that active runs have to do."""
    return Panel(
        "Backlog",
        "stat",
        e.rows(f"{s.RUNS_NOW}SELECT sum(todo) AS images FROM {s.ACTIVE_NOW}"),
        healthy="some hundred images that become fewer.",
        deviation="it only grows: workers are too few or too slow.",
        todo="see Backlog by schedule, whether it drains; then Runner Segments per Status.",
        no_data=_BLIND,
        thresholds=_BACKLOG,
        width=4,
        height=4,
        alerts=("SchedulerBacklogGrowing",),
    )


def behind_now() -> Panel:
    """Schedules that were missed."""
    return Panel(
        "Schedules behind",
        "stat",
        e.rows(f"""SELECT countIf(last = 'schedule.missed') AS schedules FROM (
  SELECT fleet, schedule_id, argMax(kind, (due_at, kind = 'schedule.caught_up')) AS last
  FROM scheduler_events
  WHERE kind IN ('schedule.missed', 'schedule.caught_up') AND {e.before(back="1 DAY")}
  GROUP BY fleet, schedule_id
)"""),
        healthy="none.",
        deviation="they were due and not run, and nobody has caught up with them.",
        todo="catch up with them, dry first; see why the scheduler slept: Missed schedules.",
        no_data="an answer is always there; 0 also when no schedule was ever told of.",
        thresholds=config.ANY_IS_BAD,
        width=5,
        height=4,
        alerts=("SchedulerSchedulesBehind",),
    )


# --- planner ----------------------------------------------------------------------------------

_PLANNED: Final = e.told(_EVENTS, "run.planned", "run_id", s.OF_MODE)


def planner_runs() -> Panel:
    """What planning comes to."""
    source = e.told(_EVENTS, "run.planned", "run_id", s.OF_MODE, seen="queue.depth")
    return Panel(
        "Planner Runs per Status",
        "timeseries",
        e.series(e.rates(source, e.counts("status", ("enqueued", "no_work", "failed", "unknown")))),
        healthy="enqueued and no_work in the rhythm of the schedules.",
        deviation="failed: the image index, the database or a queue is away. Nothing at all: no "
        "schedule fires.",
        todo="read the planner's log by run id; its error codes: "
        "SELECT error_code, count() FROM scheduler_events WHERE status = 'failed' GROUP BY 1.",
        no_data=_BLIND,
        unit="ops",
        thresholds=config.PLAIN,
        stacked=True,
        alerts=("SchedulerPlannerFailures", "SchedulerPlannerFailureRatio"),
        colours={"enqueued": "green", "no_work": "blue", "failed": "red", "unknown": "text"},
    )


def _planner_latency(title: str, q: float, column: str) -> Panel:
    return Panel(
        title,
        "timeseries",
        e.series(f"""SELECT $__timeInterval(occurred_at) AS time, mode,
  quantileExact({q})(latency_ms) / 1000 AS {column}
FROM {_PLANNED} WHERE latency_ms IS NOT NULL GROUP BY time, mode ORDER BY time"""),
        healthy="seconds: from a run's creation to the end of its planning.",
        deviation="above 45 s: the queue, the image index or the database is slow.",
        todo="compare with Planner wait and planning P95: who waits needs planners, who plans for "
        "long needs a faster index.",
        no_data="no run was planned.",
        unit="s",
        thresholds=((None, "green"), *zip(config.PLANNED_S, ("yellow", "red"), strict=True)),
        width=8,
        alerts=("SchedulerPlannerLatency", "SchedulerPlannerLatencyCritical"),
    )


def planner_latency_p95() -> Panel:
    """From a run's creation to the end of its planning."""
    return _planner_latency("Planner Latency P95", 0.95, "p95")


def planner_latency_p99() -> Panel:
    """The same, the worst one of a hundred."""
    return _planner_latency("Planner Latency P99", 0.99, "p99")


def planner_parts() -> Panel:
    """Wait and planning apart."""
    return Panel(
        "Planner wait and planning P95",
        "timeseries",
        e.series(f"""SELECT $__timeInterval(occurred_at) AS time,
  quantileExact(0.95)(wait_ms) / 1000 AS wait,
  quantileExact(0.95)(toInt64(latency_ms) - toInt64(wait_ms)) / 1000 AS planning
FROM {_PLANNED} WHERE wait_ms IS NOT NULL AND latency_ms IS NOT NULL
GROUP BY time ORDER BY time"""),
        healthy="planning is most of it.",
        deviation="wait grows: too few planners for the runs that are made at a time.",
        todo="start planners, or spread the schedules.",
        no_data="no run was planned by a planner that tells when it began.",
        unit="s",
        thresholds=config.PLAIN,
        width=8,
    )


# --- runner -----------------------------------------------------------------------------------

_SEGMENTS: Final = e.told(
    _EVENTS,
    "segment.finished",
    "run_id, segment_id, if(status = 'completed', 0, attempt)",
    s.OF_MODE,
    seen="queue.depth",
)


def segments() -> Panel:
    """What workers are done with."""
    statuses = ("completed", "persist_failed", "run_missing", "unknown")
    return Panel(
        "Runner Segments per Status",
        "timeseries",
        e.series(e.rates(_SEGMENTS, e.counts("status", statuses))),
        healthy="nearly all completed.",
        deviation="persist_failed: the results cannot be stored, and the work is done again. "
        "run_missing: the run was deleted under its workers.",
        todo="see the database of results; then Segments that are tried again.",
        no_data=_BLIND,
        unit="ops",
        thresholds=config.PLAIN,
        stacked=True,
        alerts=("SchedulerSegmentFailures",),
        colours={"completed": "green", "persist_failed": "red", "run_missing": "orange"},
    )


def retries() -> Panel:
    """Work that is done again, or given up."""
    leased = e.told(
        _EVENTS, "segment.leased", "run_id, segment_id, attempt", s.OF_MODE,
        seen="queue.depth",
    )  # fmt: skip
    lettered = e.told(_EVENTS, "queue.dead_lettered", "", s.OF_MODE, seen="queue.depth")
    return Panel(
        "Segments that are tried again",
        "timeseries",
        (
            Sql(
                e.rates(
                    leased,
                    {
                        "first": "countIf(kind = 'segment.leased' AND attempt = 1)",
                        "again": "countIf(kind = 'segment.leased' AND attempt > 1)",
                    },
                    60,
                )
            ),
            Sql(e.rates(lettered, {"given_up": "countIf(kind = 'queue.dead_lettered')"}, 60)),
        ),
        healthy="again is a small part of first, and nothing is given up.",
        deviation="segments time out or cannot be stored, and workers are busy with the same.",
        todo="see Runner Segments per Status; what was given up: Dead letters by reason.",
        no_data=_BLIND,
        unit="opm",
        thresholds=config.PLAIN,
        alerts=("SchedulerDeadLetters",),
    )


def findings() -> Panel:
    """What segments found that is new."""
    return Panel(
        "New findings per severity",
        "timeseries",
        e.series(e.rates(
                    _SEGMENTS,
                    {
                        each: f"sumIf({column}, status = 'completed')"
                        for each, column in (
                            ("critical", "critical"), ("high", "high"), ("kev", "kev"),
                            ("total", "new"),
                        )
                    },
                    60,
                )),
        healthy="few; a wave after new advisories.",
        deviation="kev: an image has what is known to be exploited.",
        todo="tell who owns the images; a segment that was done twice is counted once.",
        no_data=_BLIND,
        unit="opm",
        thresholds=config.PLAIN,
        colours={"critical": "red", "high": "orange", "kev": "dark-red", "total": "blue"},
    )  # fmt: skip


def images() -> Panel:
    """Images that were looked through."""
    return Panel(
        "Images processed, delta vs none",
        "timeseries",
        e.series(
            e.rates(
                _SEGMENTS,
                {
                    "delta": "sumIf(images_with_delta, status = 'completed')",
                    "none": "sumIf(greatest(0, toInt64(images) - toInt64(images_with_delta)), "
                    "status = 'completed')",
                },
                60,
            )
        ),
        healthy="most have nothing new.",
        deviation="it falls while there is a backlog: workers or the scanner are slow.",
        todo="see the scanner's latency; start workers.",
        no_data=_BLIND,
        unit="opm",
        thresholds=config.PLAIN,
        stacked=True,
        colours={"delta": "orange", "none": "green"},
    )


def backlog() -> Panel:
    """What each schedule had to do."""
    return Panel(
        "Runner backlog per schedule",
        "timeseries",
        e.series(
            s.RUNS
            + e.over_time(
                f"(SELECT mark, schedule, {s.todo(e.AT)} AS todo FROM runs ARRAY JOIN "
                f"{e.marks('active', 'over')} AS mark WHERE active < over)",
                {"images": "sum(todo)"},
                "schedule",
            )
        ),
        healthy="each rises when its run is planned, and falls to nothing.",
        deviation="one stays up: a run hangs. All rise: workers are too few.",
        todo="see Backlog by schedule, whether it drains.",
        no_data="no run has anything to do.",
        thresholds=_BACKLOG,
        alerts=("SchedulerBacklogGrowing", "SchedulerBacklogNotDraining"),
    )


def draining() -> Panel:
    """Schedules with a backlog, and whether it becomes less."""
    return Panel(
        "Backlog by schedule, whether it drains",
        "table",
        e.rows(s.DRAINING),
        healthy="all drain, or have nothing to do.",
        deviation="a run is stuck: it has images to do, and nothing was finished for ten minutes.",
        todo="find the run in Runs that are open for longest; cancel it or put it in again.",
        no_data="no run is active.",
        thresholds=config.PLAIN,
        units={"last_got_on": "s", "empty_in": "s"},
        alerts=("SchedulerBacklogNotDraining",),
    )


# --- runs -------------------------------------------------------------------------------------


def active_runs() -> Panel:
    """Runs that were executed."""
    return Panel(
        "Active runs",
        "timeseries",
        e.series(
            s.RUNS
            + e.over_time(
                f"(SELECT mark, mode FROM runs ARRAY JOIN {e.marks('active', 'over')} "
                "AS mark WHERE active < over)",
                {each: f"countIf(mode = '{each}')" for each in _MODES},
            )
        ),
        healthy="it goes up and down with the schedules, and comes back to its floor.",
        deviation="the floor rises: runs are left over. Here nothing leaks: a run counts by what "
        "is known of it, never by adding and subtracting.",
        todo="see Runs that are open for longest.",
        no_data="no run was active.",
        thresholds=config.PLAIN,
        stacked=True,
        alerts=("SchedulerRunsStuck",),
    )


def longest() -> Panel:
    """Open runs, the oldest first."""
    return Panel(
        "Runs that are open for longest",
        "table",
        e.rows(s.LONGEST),
        healthy="the oldest is some minutes old.",
        deviation="stuck: nothing was finished for ten minutes. All done, not over: its end was "
        "never told.",
        todo="cancel the run or put its message in again; then see that Active runs falls.",
        no_data="no run is open.",
        thresholds=config.PLAIN,
        width=24,
        units={"open_for": "s", "last_got_on": "s"},
        alerts=("SchedulerRunsStuck", "SchedulerBacklogNotDraining"),
    )


def run_duration() -> Panel:
    """How long runs take."""
    source = e.told(_EVENTS, "run.finished", "run_id", f"result != 'no_work' AND {s.OF_MODE}")
    return Panel(
        "Run duration p50/p95",
        "timeseries",
        e.series(f"""SELECT $__timeInterval(occurred_at) AS time, result,
  quantileExact(0.5)(duration_ms) / 1000 AS p50, quantileExact(0.95)(duration_ms) / 1000 AS p95
FROM {source} WHERE duration_ms IS NOT NULL GROUP BY time, result ORDER BY time"""),
        healthy="steady by result; runs without work are left out, for they take no time.",
        deviation="completed rises: images or the scanner are slower. Error is short: it fails "
        "at once.",
        todo="compare with Images processed, delta vs none. What hangs is not in here: see Oldest "
        "open run.",
        no_data="no run ended.",
        unit="s",
        thresholds=config.PLAIN,
    )


def finished() -> Panel:
    """How runs end."""
    source = e.told(_EVENTS, "run.finished", "run_id", s.OF_MODE, seen="queue.depth")
    return Panel(
        "Runs finished by result",
        "timeseries",
        e.series(e.rates(
                    source,
                    e.counts("result", ("completed", "cancelled", "error", "no_work", "unknown")),
                    60,
                )),
        healthy="completed and no_work.",
        deviation="error: planning failed, a segment was given up, or the run was deleted.",
        todo="see Planner Runs per Status and Dead letters by reason.",
        no_data=_BLIND,
        unit="opm",
        thresholds=config.PLAIN,
        stacked=True,
        colours={
            "completed": "green", "cancelled": "orange", "error": "red", "no_work": "blue",
            "unknown": "text",
        },
    )  # fmt: skip


BOARD: Final = Dashboard(
    "runnerstream-scheduler",
    "Scheduler",
    "How runs are planned and done, what is left to do, and what hangs.",
    (
        Row("Now", (active_now(), stuck_now(), oldest_now(), backlog_now(), behind_now())),
        Row(
            "Planner",
            (planner_runs(), finished(), planner_latency_p95(), planner_latency_p99(),
             planner_parts()),
        ),
        Row("Runner", (segments(), retries(), findings(), images(), backlog(), draining())),
        Row("Runs", (active_runs(), run_duration(), longest())),
        Row(
            "Queues and schedules",
            (
                queues.queues(), queues.queue_age(), queues.letters(), queues.missed(),
                queues.behind(), queues.letters_by_reason(),
            ),
        ),
    ),
    variables=(
        e.variable("fleet", "Fleet", _EVENTS),
        e.variable("mode", "Mode", _EVENTS, "run_id != ''"),
    ),
)  # fmt: skip
