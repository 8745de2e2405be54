"""Reconciler: whether it gets anywhere, and all that it tells."""

from __future__ import annotations

from typing import Final

from dashboards import config
from dashboards.model import Panel
from dashboards.telemetry import events as e
from dashboards.telemetry import reconcilers as r

_EVENTS: Final = "reconciler_events"
_BLIND: Final = "no reconciler of these fleets says anything, or the sink is away: see Pipeline."


def progress_over_time() -> Panel:
    """What is done, and what comes of it."""
    return Panel(
        "Activity and progress",
        "timeseries",
        e.series(
            e.rates(
                r.ACTIVITY,
                {
                    "actions": "sum(actions)",
                    "moved": "countIf(kind = 'work.moved')",
                    "closed": "countIf(kind = 'work.moved' AND to_state = 'closed')",
                    "failed": "countIf(kind = 'work.moved' AND to_state = 'failed')",
                },
                3600,
            )
        ),
        healthy="an hour: where there are actions, work is closed.",
        deviation="actions without anything closed: it is busy and gets nowhere.",
        todo="see Activity without progress.",
        no_data=_BLIND,
        width=24,
        thresholds=config.PLAIN,
        alerts=("ReconcilerNoProgress",),
        colours={"actions": "blue", "moved": "text", "closed": "green", "failed": "red"},
    )


def progress() -> Panel:
    """Who is busy and closes nothing."""
    return Panel(
        "Activity without progress",
        "table",
        e.rows(r.PROGRESS + "\nORDER BY no_progress DESC, actions DESC LIMIT 100"),
        healthy="no_progress is 0 everywhere.",
        deviation="more than 200 actions in the last hour, nothing closed, and work that was open "
        "an hour ago.",
        todo="see Loops for what it does; stop it when it costs.",
        no_data="no reconciler ticked in the last hour of the range.",
        thresholds=config.ANY_IS_BAD,
        alerts=("ReconcilerNoProgress",),
    )


def loops() -> Panel:
    """The same, done to the same, again and again."""
    return Panel(
        "Loops",
        "table",
        e.rows(r.LOOPS + "\nORDER BY times DESC LIMIT 100"),
        healthy="empty.",
        deviation="the same action, or a failed dispatch, on one entity more than 10 times within "
        "the last hour; what was suppressed does not count.",
        todo="stop it; find out why its effect is not seen by the rule that wants it.",
        no_data="nothing repeats.",
        thresholds=config.PLAIN,
        alerts=("ReconcilerRepeatLoop",),
    )


def flaps() -> Panel:
    """Work that goes back and forth."""
    return Panel(
        "Flapping work",
        "table",
        e.rows(r.FLAPS + "\nORDER BY returns DESC LIMIT 100"),
        healthy="empty.",
        deviation="work has come back to a state it had left more than 3 times in 30 minutes.",
        todo="two rules want different things of it, or its worker dies each time.",
        no_data="nothing flaps.",
        thresholds=config.PLAIN,
        alerts=("ReconcilerFlapping",),
    )


def work() -> Panel:
    """What work there is."""
    return Panel(
        "Work by state, oldest",
        "table",
        e.rows(r.WORK_BY_STATE),
        healthy="it moves on: open for less than 5 minutes, in review for less than 15.",
        deviation="open and nothing in progress: nobody works. Old: it is stuck there.",
        todo="see the reconciler's workers; see Flapping work.",
        no_data="no reconciler tells of work.",
        thresholds=config.PLAIN,
        units={f"{each}_for": "s" for each in r.STATES},
        alerts=("ReconcilerWorkStuck", "ReconcilerNobodyWorks"),
    )


def by_kind() -> Panel:
    """How many events of each kind there are."""
    return Panel(
        "Events by kind",
        "timeseries",
        e.series(
            f"""SELECT $__timeInterval(occurred_at) AS time, kind, count() / $__interval_s AS events
FROM {_EVENTS} FINAL WHERE {r.OF_RECONCILER} AND {e.WITHIN}
GROUP BY time, kind ORDER BY time"""
        ),
        healthy="ticks, and what they do.",
        deviation="one kind floods the others.",
        todo="see who sends it: Events by kind and outcome has the source.",
        no_data=_BLIND,
        unit="ops",
        thresholds=config.PLAIN,
        stacked=True,
    )


def summary() -> Panel:
    """All events: how many, how many failed, how long they took."""
    return Panel(
        "Events by kind and outcome",
        "table",
        e.rows(r.SUMMARY),
        healthy="an error rate below 1 %.",
        deviation="above 5 % something is broken that the reconciler does not call so.",
        todo="see Reasons of failures.",
        no_data=_BLIND,
        thresholds=config.PLAIN,
        units={"error_rate": "percentunit", "mean_ms": "ms"},
    )


def reasons() -> Panel:
    """Why things failed."""
    return Panel(
        "Reasons of failures",
        "table",
        e.rows(r.REASONS),
        healthy="short, and nothing at the top.",
        deviation="the first row is what to mend.",
        todo="an empty reason is a reconciler that does not say why: mend that first.",
        no_data="nothing failed.",
        thresholds=config.PLAIN,
    )
