"""Scheduler: its queues, what was given up, and schedules that were missed."""

from __future__ import annotations

from typing import Final

from dashboards import config
from dashboards.model import Panel
from dashboards.telemetry import events as e
from dashboards.telemetry import schedulers as s

_EVENTS: Final = "scheduler_events"
_BLIND: Final = "no scheduler of these fleets says anything, or the sink is away: see Pipeline."


def queues() -> Panel:
    """What waits in the scheduler's queues."""
    return Panel(
        "Queue depth and in flight",
        "timeseries",
        e.series(
            e.over_time(s.QUEUES, {"depth": "sum(depth)", "in_flight": "sum(in_flight)"}, "queue")
        ),
        healthy="depth is about what is in flight.",
        deviation="depth rises, in flight does not: its workers are away.",
        todo="see the health of the queue and of its consumers.",
        no_data="no scheduler says how its queues are.",
        thresholds=config.PLAIN,
        width=8,
    )


def queue_age() -> Panel:
    """For how long the oldest message waits."""
    age = f"max(if(isNull(oldest_at), 0, date_diff('millisecond', oldest_at, {e.AT}))) / 1000"
    return Panel(
        "Oldest message by queue",
        "timeseries",
        e.series(e.over_time(s.QUEUES, {"oldest": age}, "queue")),
        healthy="seconds.",
        deviation="it rises with the clock: nobody takes messages, or one blocks the others.",
        todo="see the queue's consumers; look at the message.",
        no_data="no scheduler says how its queues are.",
        unit="s",
        thresholds=s.HANGS,
        width=8,
    )


def letters() -> Panel:
    """Messages that were given up and lie there."""
    return Panel(
        "Dead letters in the queues",
        "timeseries",
        e.series(e.over_time(s.QUEUES, {"dead_letters": "sum(dead_letters)"}, "queue")),
        healthy="none.",
        deviation="work was given up and nobody has looked at it.",
        todo="see Dead letters by reason; put them in again when the cause is gone.",
        no_data="no scheduler says how its queues are.",
        thresholds=config.ANY_IS_BAD,
        width=8,
        alerts=("SchedulerDeadLetters",),
    )


def letters_by_reason() -> Panel:
    """Why messages were given up."""
    return Panel(
        "Dead letters by reason",
        "table",
        e.rows(f"""SELECT fleet, queue, schedule_id AS schedule, reason, count() AS messages,
  max(attempts) AS most_attempts, max(occurred_at) AS last, argMax(run_id, occurred_at) AS last_run
FROM {e.told(_EVENTS, "queue.dead_lettered", "", s.OF_MODE)}
GROUP BY fleet, queue, schedule, reason ORDER BY messages DESC LIMIT 100"""),
        healthy="empty.",
        deviation="each row is work that nobody will do by itself.",
        todo="follow the run: runnerstream has its events in scheduler_events.",
        no_data="nothing was given up in this range.",
        width=24,
        thresholds=config.PLAIN,
        alerts=("SchedulerDeadLetters",),
    )


def missed() -> Panel:
    """Times at which a schedule was due and not run."""
    due = "schedule_id, due_at"
    source = e.either(
        e.told(_EVENTS, "schedule.missed", due),
        e.told(_EVENTS, "schedule.caught_up", due),
        e.witness(_EVENTS, "queue.depth"),
    )
    return Panel(
        "Missed schedules",
        "timeseries",
        e.series(
            e.rates(
                source,
                {
                    "missed": "countIf(kind = 'schedule.missed')",
                    "caught_up": "countIf(kind = 'schedule.caught_up')",
                },
                3600,
            )
        ),
        healthy="none are missed.",
        deviation="missed without caught_up: the schedule's work is not done.",
        todo="see Schedules that are behind; was the scheduler away then?",
        no_data=_BLIND,
        thresholds=config.PLAIN,
        points=True,
        alerts=("SchedulerSchedulesBehind",),
    )


def behind() -> Panel:
    """Which schedules were missed."""
    return Panel(
        "Schedules that are behind",
        "table",
        e.rows(s.BEHIND),
        healthy="all have caught up.",
        deviation="behind: its last time was missed and not run since.",
        todo="catch up with it, dry first.",
        no_data="no schedule was missed within a day.",
        thresholds=config.PLAIN,
        units={"latest_by": "s"},
        alerts=("SchedulerSchedulesBehind",),
    )
