"""Reconciler: what its ticks do, what is broken and for how long, and whether it gets anywhere."""

from __future__ import annotations

from typing import Final

from dashboards import config
from dashboards.boards import reconciler_progress as progress
from dashboards.model import Dashboard, Panel, Row, Threshold
from dashboards.telemetry import events as e
from dashboards.telemetry import reconcilers as r

_EVENTS: Final = "reconciler_events"
_BLIND: Final = "no reconciler of these fleets says anything, or the sink is away: see Pipeline."
#: Of what waits: the model's.
_PENDING: Final[tuple[Threshold, ...]] = ((None, "green"), (25, "yellow"), (config.PENDING, "red"))
_WALL_MS: Final[tuple[Threshold, ...]] = ((None, "green"), (int(config.TICK_S[0] * 1000), "red"))
_STUCK_S: Final[tuple[Threshold, ...]] = ((None, "green"), (60, "yellow"), (300, "red"))
_COLOURS: Final = {
    "attempted": "blue", "succeeded": "green", "applied": "green", "failed": "red",
    "suppressed": "yellow", "unknown": "text",
}  # fmt: skip


# --- now --------------------------------------------------------------------------------------


def violations_now() -> Panel:
    """What is broken now, each once."""
    return Panel(
        "Invariant Violations",
        "stat",
        e.rows(f"SELECT count() AS open FROM {r.VIOLATIONS_NOW} WHERE closed > {e.NOW}"),
        healthy="0.",
        deviation="so many invariants are broken for some entity, each counted once, however many "
        "ticks see it.",
        todo="see Open violations: which, of what, since when.",
        no_data="an answer is always there; 0 also when no reconciler tells of violations.",
        thresholds=config.ANY_IS_BAD,
        width=4,
        height=4,
        alerts=("ReconcilerViolationsOpen",),
    )


def pending_now() -> Panel:
    """What waits now, of the latest tick of each reconciler."""
    return Panel(
        "Pending Event Queue Depth",
        "stat",
        e.rows(
            f"SELECT sum(new + retry) AS waiting, max(new + retry) AS most_of_one "
            f"FROM {r.LAST} WHERE {r.FRESH}"
        ),
        healthy="near 0 after each tick; some that the tick itself made.",
        deviation="from 25 on a reconciler does not keep up; it is the latest of each, added and "
        "the largest, never a mean.",
        todo="see Pending events: those that are tried again and again block the others.",
        no_data=_BLIND,
        thresholds=_PENDING,
        maximum=200,
        width=5,
        height=4,
        alerts=("ReconcilerPendingEvents",),
    )


def tick_age() -> Panel:
    """For how long the reconciler did not tick that did not for longest."""
    return Panel(
        "Tick age",
        "stat",
        e.rows(
            f"SELECT max(date_diff('millisecond', ticked, {e.NOW})) / 1000 AS oldest FROM {r.LAST}"
        ),
        healthy="at most one interval: 5 s at work, 60 s idle.",
        deviation="it does not tick, and so nothing is reconciled. What is within the loop cannot "
        "tell of that.",
        todo="see Reconcilers; arm its alarm again, or start its process.",
        no_data="no reconciler ticked within a day.",
        unit="s",
        thresholds=((None, "green"), (60, "yellow"), (180, "red")),
        width=4,
        height=4,
        alerts=("ReconcilerTickAge",),
    )


def overdue() -> Panel:
    """Reconcilers, and what is out of order with them."""
    return Panel(
        "Overdue, breaker open, draining",
        "stat",
        e.rows(
            f"""SELECT
  countIf(ticked < {e.NOW} - toIntervalMillisecond(3 * interval_ms)) AS overdue,
  countIf(breaker AND {r.FRESH}) AS breaker_open, countIf(drains AND {r.FRESH}) AS draining
FROM {r.LAST}"""
        ),
        healthy="all 0.",
        deviation="overdue: no tick for three intervals. Breaker open: it holds its dispatches "
        "back, because too many failed. Draining: it is being stopped.",
        todo="breaker: see Dispatch failures by reason; it closes by itself when they cease.",
        no_data="no reconciler ticked within a day.",
        thresholds=config.ANY_IS_BAD,
        width=6,
        height=4,
        alerts=("ReconcilerTickAge", "ReconcilerBreakerOpen"),
    )


def oddities() -> Panel:
    """Loops, flapping work, activity without progress."""
    return Panel(
        "Loops, flapping, no progress",
        "stat",
        e.rows(
            f"""SELECT (SELECT uniqExact(fleet, reconciler, entity) FROM ({r.LOOPS})) AS in_loop,
  (SELECT count() FROM ({r.FLAPS})) AS flapping,
  (SELECT countIf(no_progress) FROM ({r.PROGRESS})) AS without_progress"""
        ),
        healthy="all 0.",
        deviation="in a loop: the same was done to the same more than 10 times in an hour. "
        "Flapping: work came back to where it had been more than 3 times in 30 minutes. Without "
        "progress: more than 200 actions in an hour, and nothing was closed.",
        todo="see the tables below; stop what repeats before you mend it: it costs.",
        no_data="an answer is always there.",
        thresholds=config.ANY_IS_BAD,
        width=5,
        height=4,
        alerts=("ReconcilerRepeatLoop", "ReconcilerFlapping", "ReconcilerNoProgress"),
    )


def reconcilers() -> Panel:
    """Every reconciler."""
    return Panel(
        "Reconcilers",
        "table",
        e.rows(r.RECONCILERS),
        healthy="all tick.",
        deviation="as the state says; of one that is overdue the other columns are old.",
        todo="see the process of those that are overdue.",
        no_data="no reconciler ticked within a day.",
        thresholds=config.PLAIN,
        width=24,
        height=6,
        units={
            "tick_age": "s", "interval_ms": "ms", "wall_ms": "ms", "pending_oldest": "ms",
        },
        alerts=("ReconcilerTickAge",),
    )  # fmt: skip


# --- ticks ------------------------------------------------------------------------------------


def drained() -> Panel:
    """Events that a tick reads."""
    return Panel(
        "Events Drained per Tick",
        "timeseries",
        e.series(
            f"""SELECT $__timeInterval(occurred_at) AS time, fleet,
  sum(events_drained) / count() AS drained, sum(events_failed) / count() AS failed
FROM {r.TICKS} GROUP BY time, fleet ORDER BY time"""
        ),
        healthy="it follows what happens; failed is 0.",
        deviation="a flood: somebody tells the same again and again. Failed: an event cannot be "
        "applied, and comes again with every tick.",
        todo="of failed ones see Pending events, tried again; take the event out.",
        no_data=_BLIND,
        thresholds=config.PLAIN,
    )


def actions() -> Panel:
    """What a tick decides to do."""
    return Panel(
        "Actions Emitted per Tick by Type",
        "timeseries",
        e.series(r.ACTIONS),
        healthy="few: a reconciler with nothing to do does nothing.",
        deviation="one type at every tick is a loop.",
        todo="see Loops: which entity.",
        no_data="no tick did anything, or none says of which type it was.",
        thresholds=config.PLAIN,
        stacked=True,
        alerts=("ReconcilerRepeatLoop",),
    )


def effects() -> Panel:
    """Side effects as ticks count them."""
    unknown = "toInt64(sum(effects_attempted - effects_succeeded - effects_failed))"
    return Panel(
        "Side Effects",
        "timeseries",
        e.series(
            e.rates(
                r.TICKS,
                {
                    "attempted": "sum(effects_attempted)", "succeeded": "sum(effects_succeeded)",
                    "failed": "sum(effects_failed)", "unknown": f"greatest(0, {unknown})",
                },
                60,
            )
        ),
        healthy="attempted and succeeded are one line.",
        deviation="failed: calls fail. A reconciler that catches its failures itself shows none "
        "here: compare with Effects by outcome.",
        todo="see Slowest effects, and why they failed: Reasons of failures.",
        no_data=_BLIND,
        unit="opm",
        thresholds=config.PLAIN,
        colours=_COLOURS,
    )  # fmt: skip


def wall_clock() -> Panel:
    """How long ticks take."""
    ticks = e.told(_EVENTS, "reconciler.tick", "reconciler, tick_id", r.OF_RECONCILER, "*, 1 AS n")
    return Panel(
        "Reconciler Wall Clock Time",
        "timeseries",
        e.series(
            e.quantiles(ticks, "wall_ms"),
            f"SELECT $__timeInterval(occurred_at) AS time, max(wall_ms) AS longest FROM {r.TICKS} "
            "GROUP BY time ORDER BY time",
        ),
        healthy="below 100 ms.",
        deviation="above 500 ms for long: too much is open, or an effect blocks. Seconds: a loop.",
        todo="see Actions Emitted per Tick by Type and Slowest effects.",
        no_data=_BLIND,
        unit="ms",
        thresholds=_WALL_MS,
        alerts=("ReconcilerTickSlow", "ReconcilerTickVerySlow"),
    )


def ticks() -> Panel:
    """Ticks, and those of which a phase failed."""
    return Panel(
        "Ticks by outcome",
        "timeseries",
        e.series(
            e.rates(
                r.TICKS, {"ok": "countIf(NOT failed)", "with_a_failed_phase": "countIf(failed)"}, 60
            )
        ),
        healthy="one an interval of each reconciler, none failed.",
        deviation="a phase fails: its part is not done, while the rest goes on and looks alive.",
        todo="see the reconciler's log at that time.",
        no_data=_BLIND,
        unit="opm",
        thresholds=config.PLAIN,
        stacked=True,
        alerts=("ReconcilerTicksFail",),
        colours={"ok": "green", "with_a_failed_phase": "red"},
    )


def pending() -> Panel:
    """What waited, by whether it was tried."""
    return Panel(
        "Pending events",
        "timeseries",
        e.series(
            e.over_time(
                r.TICKED,
                {
                    "new": "sum(new)", "tried_again": "sum(retry)",
                    "most_of_one": "max(new + retry)", "oldest": "max(oldest_ms) / 1000",
                },
            )
        ),
        healthy="new comes and goes; tried again is 0.",
        deviation="tried again stays: an event that can never be applied. Oldest grows: nobody "
        "drains.",
        todo="take the event out of the queue; mend what it says.",
        no_data=_BLIND,
        units={"oldest": "s"},
        thresholds=_PENDING,
        alerts=("ReconcilerPendingEvents",),
    )  # fmt: skip


def silence() -> Panel:
    """For how long reconcilers did not tick, over time."""
    return Panel(
        "Tick age over time",
        "timeseries",
        e.series(
            e.over_time(
                r.TICKED,
                {
                    "oldest": f"max(date_diff('millisecond', ticked, {e.AT})) / 1000",
                    "breakers_open": "sum(toUInt64(breaker))", "draining": "sum(toUInt64(drains))",
                },
                "fleet",
            )
        ),
        healthy="at most one interval.",
        deviation="large teeth: it ticks too seldom. Who is silent for three intervals and five "
        "minutes is not drawn any more.",
        todo="see Reconcilers.",
        no_data=_BLIND,
        unit="s",
        units={"breakers_open": "short", "draining": "short"},
        thresholds=_STUCK_S,
        alerts=("ReconcilerTickAge", "ReconcilerBreakerOpen"),
    )  # fmt: skip


# --- what is broken ---------------------------------------------------------------------------


def violations() -> Panel:
    """What was broken, by invariant."""
    return Panel(
        "Violations open by invariant",
        "timeseries",
        e.series(
            e.over_time(
                f"(SELECT mark, invariant, opened FROM {r.VIOLATIONS} "
                f"ARRAY JOIN {e.marks('opened', 'closed')} AS mark WHERE opened < closed)",
                {"open": "count()"},
                "invariant",
            )
        ),
        healthy="nothing, or what is mended at the next tick.",
        deviation="one stays: what the reconciler does does not help, or the rule is wrong.",
        todo="see Open violations.",
        no_data="nothing was broken, or no reconciler tells of violations.",
        thresholds=config.ANY_IS_BAD,
        stacked=True,
        alerts=("ReconcilerViolationsOpen",),
    )


def open_violations() -> Panel:
    """What is broken, since when."""
    return Panel(
        "Open violations",
        "table",
        e.rows(r.OPEN_VIOLATIONS),
        healthy="empty.",
        deviation="each row is one invariant that is broken for one entity; times is how often it "
        "came to be within a week.",
        todo="mend the oldest first; many times means that it is mended and breaks again.",
        no_data="nothing is broken.",
        thresholds=config.PLAIN,
        units={"age": "s"},
        alerts=("ReconcilerViolationsOpen",),
    )


def _each(kind: str, outcomes: tuple[str, ...]) -> str:
    source = e.told(_EVENTS, kind, "", r.OF_RECONCILER, seen="reconciler.tick")
    return e.rates(source, e.counts("outcome", outcomes), 60)


def effect_outcomes() -> Panel:
    """Side effects, as each was told by itself."""
    return Panel(
        "Effects by outcome",
        "timeseries",
        e.series(_each("reconciler.effect", ("succeeded", "failed", "unknown"))),
        healthy="succeeded.",
        deviation="failed: as each effect was told, so what a tick caught is here. Unknown: nobody "
        "says what came of it.",
        todo="see Slowest effects and Reasons of failures.",
        no_data="no reconciler tells of its effects one by one.",
        unit="opm",
        thresholds=config.PLAIN,
        stacked=True,
        colours=_COLOURS,
    )


def action_outcomes() -> Panel:
    """Actions, as each was told by itself."""
    return Panel(
        "Actions by outcome",
        "timeseries",
        e.series(_each("reconciler.action", ("applied", "failed", "suppressed", "unknown"))),
        healthy="applied.",
        deviation="failed: it was decided and could not be done, and is decided again. Suppressed: "
        "a cool-down or the breaker held it back.",
        todo="see Reasons of failures.",
        no_data="no reconciler tells of its actions one by one.",
        unit="opm",
        thresholds=config.PLAIN,
        stacked=True,
        colours=_COLOURS,
    )


def slowest() -> Panel:
    """Which effects take longest."""
    return Panel(
        "Slowest effects",
        "table",
        e.rows(r.SLOWEST),
        healthy="p95 below two seconds.",
        deviation="a slow one holds up the whole tick.",
        todo="see what it calls; give the call a deadline.",
        no_data="no reconciler tells of its effects one by one.",
        thresholds=config.PLAIN,
        units={"failing": "percentunit", "p50": "ms", "p95": "ms", "longest": "ms"},
    )


def dispatch() -> Panel:
    """Why workers could not be put to work."""
    return Panel(
        "Dispatch failures by reason",
        "timeseries",
        e.series(
            f"""SELECT $__timeInterval(occurred_at) AS time, reason,
  count() * 3600 / $__interval_s AS failures
FROM {e.told(_EVENTS, "work.dispatch_failed", "", r.OF_RECONCILER)}
GROUP BY time, reason ORDER BY time"""
        ),
        healthy="none.",
        deviation="an hour: thousands were seen while all else looked well.",
        todo="read the reason; it is never empty here. The breaker opens when it goes on.",
        no_data="no dispatch failed.",
        thresholds=config.PLAIN,
        points=True,
        alerts=("ReconcilerDispatchFailing", "ReconcilerBreakerOpen"),
    )


BOARD: Final = Dashboard(
    "runnerstream-reconciler",
    "Reconciler",
    "What reconcilers do, what is broken and for how long, and whether they get anywhere.",
    (
        Row(
            "Reconciler",
            (
                violations_now(), pending_now(), tick_age(), overdue(), oddities(), drained(),
                actions(), effects(), wall_clock(), reconcilers(),
            ),
        ),
        Row("Ticks", (ticks(), pending(), silence(), action_outcomes())),
        Row("Violations", (violations(), open_violations())),
        Row("Effects", (effect_outcomes(), slowest(), dispatch(), progress.reasons())),
        Row(
            "Progress",
            (
                progress.progress_over_time(), progress.progress(), progress.loops(),
                progress.flaps(), progress.work(),
            ),
        ),
        Row("Events", (progress.by_kind(), progress.summary())),
    ),
    variables=(
        e.variable("fleet", "Fleet", _EVENTS),
        e.variable("reconciler", "Reconciler", _EVENTS, "kind = 'reconciler.tick'"),
    ),
)  # fmt: skip
