"""Panels of recovery about stalls: jobs in a wrong state, since when, and until when."""

from __future__ import annotations

from typing import Final

from dashboards import config, series
from dashboards.config import OF_FLEET
from dashboards.model import Link, Panel, Sql
from dashboards.series import FRESH

#: Stalls of the range. Without those of jobs that the pipeline has forgotten: nobody will hear of
#: their end.
STALLS: Final = f"""SELECT * FROM stalls FINAL
WHERE {OF_FLEET} AND opened_at <= $__toTime AND (left_at >= $__fromTime OR (
  left_at IS NULL AND opened_at > $__toTime - INTERVAL {config.FORGOTTEN_D} DAY))"""
#: Of these, those that are in it at the end of the range.
OPEN: Final = "(left_at IS NULL OR left_at > $__toTime)"
AGE: Final = "greatest(0, dateDiff('millisecond', since, $__toTime_ms))"
#: Since when a job runs, and not for how long anything is wrong, is what `since` says of these.
STRANDED: Final = "kind != 'missed_completion'"
KINDS: Final = {
    "stale_claim": "yellow", "orphan": "orange", "displaced": "blue", "runner_lost": "red",
    "stale_queue": "purple", "missed_completion": "text", "flapping": "dark-red",
}  # fmt: skip
NOTHING_STUCK: Final = "nothing was stuck; or nothing comes to ClickHouse: see Pipeline."


#: From a row to what is known of its job.
LINKS: Final = {
    "job": Link("The job", "runnerstream-jobs", {"key": "job"}),
    "kind": Link("Its page at a worker", config.CONSOLE + "/jobs/${__data.fields.job}", {}),
}


def stuck() -> Panel:
    """How many jobs are in a wrong state."""
    return Panel(
        "Stuck jobs",
        "stat",
        (Sql(f"SELECT count() AS stuck FROM ({STALLS}) WHERE {OPEN} HAVING {FRESH}", "table"),),
        healthy="close to zero; what is there is freed within minutes.",
        deviation="jobs wait in a wrong state. Many at once: a host, a dispatcher or the provider "
        "is in trouble.",
        todo="see below of which kind they are, and what was said about the oldest.",
        no_data="nothing came to ClickHouse for five minutes: see Pipeline.",
        thresholds=((None, "green"), (1, "yellow"), (20, "red")),
        width=4,
        height=4,
        alerts=("OrphanRate",),
    )


def oldest() -> Panel:
    """For how long the job is stuck that is so for longest."""
    return Panel(
        "Stuck for longest",
        "stat",
        (
            Sql(
                f"""SELECT maxOrDefault({AGE}) AS age FROM ({STALLS})
WHERE {OPEN} AND {STRANDED} HAVING {FRESH}""",
                "table",
            ),
        ),
        healthy="minutes: an orphan is freed within six. 0 when nothing is stuck.",
        deviation="recovery does not free it: it is paused, in dry run, out of budget, its breaker "
        "is open, or nobody answers or executes.",
        todo="find it in What is stuck: its last column says what holds it up.",
        no_data="nothing came to ClickHouse for five minutes: see Pipeline.",
        unit="ms",
        thresholds=((None, "green"), (600_000, "yellow"), (config.FREED_S * 1000, "red")),
        width=4,
        height=4,
        alerts=("RecoveryOverdue",),
    )


def left_to_people() -> Panel:
    """Jobs that recovery gave up."""
    return Panel(
        "Left to a person",
        "stat",
        (
            Sql(
                f"""SELECT countIf(kind = 'flapping') AS jobs FROM ({STALLS})
WHERE {OPEN} HAVING {FRESH}""",
                "table",
            ),
        ),
        healthy="0.",
        deviation="jobs were recovered again and again, and are left alone now.",
        todo="`runnerstream explain KEY` tells what was tried. Cancel them, or mend what their "
        "runners die of.",
        no_data="nothing came to ClickHouse for five minutes: see Pipeline.",
        thresholds=config.ANY_IS_BAD,
        width=4,
        height=4,
        alerts=("JobsQuarantined",),
    )


def stuck_by_kind() -> Panel:
    """How many were stuck, over time."""
    return Panel(
        "Stuck jobs by kind",
        "timeseries",
        (Sql(series.level(STALLS, "opened_at", "left_at", "kind", "stuck")),),
        healthy="short spells that end by themselves.",
        deviation="a level that stays: what recovery cannot free. A jump of all at once: a host or "
        "a dispatcher died.",
        todo="the kind says what is wrong: see docs/recovery.md.",
        no_data=NOTHING_STUCK,
        stacked=True,
        steps=True,
        colours=KINDS,
        alerts=("RecoveryOverdue", "OrphanRate"),
    )


def opened() -> Panel:
    """How many were found, over time."""
    return Panel(
        "Stalls opened",
        "timeseries",
        (
            Sql(
                series.counted(
                    f"""SELECT opened_at, kind FROM stalls FINAL
WHERE $__timeFilter(opened_at) AND {OF_FLEET}""",
                    "opened_at",
                    "kind",
                    "opened",
                )
            ),
        ),
        healthy="few; missed_completion is only a question about a job that runs for an hour.",
        deviation="runners die, webhooks are lost, or a dispatcher does not do its work.",
        todo="many of one fleet: its hosts. Many of one kind: docs/recovery.md says what it means.",
        no_data="nothing was found stuck in this time; or nothing comes to ClickHouse: see "
        "Pipeline.",
        colours=KINDS,
        stacked=True,
        steps=True,
    )


def closed() -> Panel:
    """How many ended, over time."""
    return Panel(
        "Stalls ended",
        "timeseries",
        (
            Sql(
                series.counted(
                    f"""SELECT left_at, kind FROM stalls FINAL
WHERE $__timeFilter(left_at) AND opened_at <= $__toTime AND {OF_FLEET}""",
                    "left_at",
                    "kind",
                    "ended",
                )
            ),
        ),
        healthy="as many as were opened, minutes later.",
        deviation="fewer than are opened: what is stuck adds up.",
        todo="look at Commands ended, by result, and at Fleets.",
        no_data="nothing left a wrong state in this time; if something is stuck, recovery does not "
        "work.",
        colours=KINDS,
        stacked=True,
        steps=True,
    )


def detected() -> Panel:
    """How long it took to find out."""
    return Panel(
        "Time to detect, p95 by kind",
        "timeseries",
        (
            Sql(
                f"""SELECT {series.interval("opened_at", 900)} AS time, kind,
  quantileExact(0.95)(greatest(0, dateDiff('millisecond', since, opened_at))) AS p95
FROM stalls FINAL
WHERE $__timeFilter(opened_at) AND {OF_FLEET} AND {STRANDED}
GROUP BY time, kind ORDER BY time, kind"""
            ),
        ),
        healthy="the threshold of the kind and a tick: 5 min for stale_claim and orphan, seconds "
        "for runner_lost and displaced, 1 h for stale_queue.",
        deviation="the fold is behind, or what tells of lost runners comes late.",
        todo="look at Tick lag in Pipeline; have hosts say `host.gone`.",
        no_data="nothing was found stuck in this time.",
        unit="ms",
        colours=KINDS,
        points=True,
    )


def stranded() -> Panel:
    """How long jobs lay in a wrong state."""
    return Panel(
        "Stranded time",
        "timeseries",
        (
            Sql(
                f"""SELECT {series.interval("assumeNotNull(left_at)", 900)} AS time,
  quantileExact(0.5)(stranded_ms) AS p50, quantileExact(0.95)(stranded_ms) AS p95,
  quantileExact(0.99)(stranded_ms) AS p99
FROM stalls FINAL
WHERE $__timeFilter(left_at) AND {OF_FLEET} AND {STRANDED}
GROUP BY time ORDER BY time"""
            ),
        ),
        healthy="below six minutes, 90 s where hosts tell of their end; stale_queue takes its "
        "threshold.",
        deviation="jobs lie for long before they are freed; those that still do are not in it.",
        todo="compare with Time to detect: is the finding slow, or the freeing? Then see by kind.",
        no_data="nothing left a wrong state in this time.",
        unit="ms",
        thresholds=((None, "green"), (360_000, "yellow"), (config.FREED_S * 1000, "red")),
        points=True,
    )


def stranded_by_kind() -> Panel:
    """The same by kind."""
    return Panel(
        "Stranded time by kind",
        "table",
        (
            Sql(
                f"""SELECT kind, count() AS stalls, quantileExact(0.5)(stranded_ms) AS p50,
  quantileExact(0.95)(stranded_ms) AS p95, quantileExact(0.99)(stranded_ms) AS p99,
  max(stranded_ms) AS longest, sum(stranded_ms) AS lost
FROM stalls FINAL
WHERE $__timeFilter(left_at) AND {OF_FLEET} AND {STRANDED}
GROUP BY kind ORDER BY lost DESC""",
                "table",
            ),
        ),
        healthy="p99 of a kind is its threshold and a minute or two.",
        deviation="the first row costs most time in all (`lost`).",
        todo="lower the threshold of the kind (RUNNERSTREAM_RECOVERY_POLICIES), or mend its cause.",
        no_data="nothing left a wrong state in this time.",
        units=dict.fromkeys(("p50", "p95", "p99", "longest", "lost"), "ms"),
    )


def stuck_now() -> Panel:
    """What is stuck, the oldest first."""
    return Panel(
        "What is stuck",
        "table",
        (
            Sql(
                f"""SELECT since, {AGE} AS age, fleet, repo, kind, key AS job,
  multiIf(notEmpty(commands) AND commands[-1].issued_at >= ifNull(withheld_at, toDateTime(0)),
      concat(commands[-1].command, ' ', if(commands[-1].result = '', 'in flight',
        commands[-1].result)),
    withheld != '', concat(proposed, ' withheld: ', withheld),
    proposed != '', concat(proposed, ' proposed'),
    answer != '', concat('answered: ', answer),
    asks > 0, 'asked', 'found') AS last
FROM ({STALLS}) WHERE {OPEN}
ORDER BY since LIMIT 100""",
                "table",
            ),
        ),
        healthy="empty, or jobs that are some minutes old.",
        deviation="the first rows are stuck for longest; `last` says what happened to them last.",
        todo="`runnerstream explain JOB`; the link of `kind` leads to its page at a worker.",
        no_data="nothing is stuck; or nothing comes to ClickHouse: see Pipeline.",
        width=24,
        units={"age": "ms"},
        links=LINKS,
        alerts=("RecoveryOverdue",),
    )


def latest() -> Panel:
    """The latest stalls, whether they are over or not."""
    return Panel(
        "Latest stalls",
        "table",
        (
            Sql(
                f"""SELECT opened_at AS found, fleet, repo, kind, key AS job, since, left_at,
  if(kind = 'missed_completion', NULL, stranded_ms) AS stranded, asks, answer,
  arrayStringConcat(arrayMap(c -> concat(c.command, ' ', if(c.result = '', 'in flight', c.result)),
    commands), ', ') AS commanded, withheld
FROM stalls FINAL
WHERE $__timeFilter(opened_at) AND {OF_FLEET}
ORDER BY found DESC LIMIT 200""",
                "table",
            ),
        ),
        healthy="each was left after a question and a command, or by itself.",
        deviation="rows of one fleet, host or repository say where to look.",
        todo="follow the job.",
        no_data="nothing was found stuck in this time.",
        width=24,
        height=10,
        units={"stranded": "ms"},
        links=LINKS,
    )
