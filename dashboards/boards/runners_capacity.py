"""Of the dashboard Runners: pools, and what waits for them."""

from __future__ import annotations

from typing import Final

from dashboards import config, sql
from dashboards.boards import runners_load as load
from dashboards.config import OF_FLEET
from dashboards.model import Link, Panel, Sql
from dashboards.sql import BUCKETS, bucket, pool_levels, within

_NO_POOLS: Final = "nobody tells of pools (pool.sample), or the last word is older than 5 minutes."

# --- overview -----------------------------------------------------------------------------------


def _now(
    title: str, text: str, healthy: str, deviation: str, todo: str, no_data: str,
    thresholds: tuple[tuple[float | None, str], ...] = config.PLAIN, alerts: tuple[str, ...] = (),
) -> Panel:  # fmt: skip
    return Panel(
        title,
        "stat",
        (Sql(text, "table"),),
        healthy=healthy,
        deviation=deviation,
        todo=todo,
        no_data=no_data,
        thresholds=thresholds,
        width=4,
        height=4,
        alerts=alerts,
    )


def _latest(value: str, kind: str, by: str) -> str:
    """A level at the end of the range; no row when nobody told."""
    return f"""SELECT {value} AS now FROM {sql.latest(kind, by)} HAVING count() > 0"""


def desired() -> Panel:
    """How many runners there should be."""
    return _now(
        "Desired runners",
        _latest("sum(desired)", "pool.sample", "fleet, pool"),
        "follows Queued jobs and Running builds, with a floor for warm ones.",
        "flat while jobs wait: the autoscaler is stuck, or at its limit.",
        "look at RunnerPool replicas.",
        _NO_POOLS,
    )


def accounts() -> Panel:
    """Of how many accounts jobs are taken."""
    return _now(
        "Accounts enabled",
        f"""SELECT max(enabled) AS now
FROM (
  SELECT fleet, enabled FROM pool_events
  WHERE kind = 'accounts.sample' AND occurred_at > $__toTime - {sql.STALE_S}
    AND occurred_at <= $__toTime
  ORDER BY occurred_at DESC LIMIT 1 BY fleet
)
HAVING count() > 0""",
        "as many as you have switched on. Of the whole installation, whatever fleet is chosen.",
        "a fall: accounts were switched off, and their jobs are not taken.",
        "look at what changed in the routes.",
        "nobody tells (accounts.sample), or not for 5 minutes.",
    )


def idle_now() -> Panel:
    """How many runners wait for work."""
    return _now(
        "Idle runners",
        _latest("sum(idle)", "pool.sample", "fleet, pool"),
        "the warm floor, and nothing above it for long.",
        "zero while jobs wait: the fleet is saturated. Many while jobs wait: it is starved.",
        "look at Pool utilisation and at Starved warm capacity.",
        _NO_POOLS,
    )


def withheld_now() -> Panel:
    """How many jobs wait that may not be given out."""
    return _now(
        "Withheld jobs",
        _latest("sum(withheld)", "queue.sample", "fleet"),
        "anything: an account that uses all it may have is a steady state. These explain a queue.",
        "all queued jobs are withheld, and nobody meant that.",
        "look at the limits of the accounts.",
        "no dispatcher tells of its queue (queue.sample).",
    )


def starved_now() -> Panel:
    """How many jobs wait beside idle runners."""
    return _now(
        "Starved jobs",
        f"""SELECT sum(least(waiting.jobs, idle.runners)) AS now
FROM (
  SELECT fleet, argMax(jobs, minute) AS jobs FROM depth_1m
  WHERE minute >= $__toTime - {sql.STALE_S} AND minute < toStartOfMinute($__toTime)
    AND status = 'queued' AND {OF_FLEET}
  GROUP BY fleet
) AS waiting
INNER JOIN (
  SELECT fleet, sum(idle) AS runners FROM {sql.latest("pool.sample", "fleet, pool")}
  WHERE idle IS NOT NULL GROUP BY fleet
) AS idle USING (fleet)
HAVING count() > 0""",
        "zero, or a few for seconds: an idle runner asks for work every few seconds.",
        "jobs wait although runners of their fleet are idle: nobody brings them together.",
        "look at Dispatch requests; labels that no runner has; then wake the fleet (Recovery).",
        "of no fleet both are known, how many jobs wait and how many runners are idle.",
        config.ANY_IS_BAD,
        ("RunnerPoolStarved",),
    )


def fleets() -> Panel:
    """Every fleet in a line, with the way to its jobs."""
    return Panel(
        "Fleets",
        "table",
        (
            Sql(
                f"""SELECT fleet, queued, oldest, claimed, starting, running,
  desired, observed, idle, booting
FROM (
  SELECT fleet, sumIf(jobs, status = 'queued') AS queued,
    maxIf(age, status = 'queued') / 1000 AS oldest, sumIf(jobs, status = 'claimed') AS claimed,
    sumIf(jobs, status = 'starting') AS starting, sumIf(jobs, status = 'running') AS running
  FROM (
    SELECT fleet, status, argMax(jobs, minute) AS jobs, argMax(oldest_ms, minute) AS age
    FROM depth_1m
    WHERE minute >= $__toTime - {sql.STALE_S} AND minute < toStartOfMinute($__toTime)
      AND {OF_FLEET}
    GROUP BY fleet, status
  )
  GROUP BY fleet
) AS waiting
LEFT JOIN (
  SELECT fleet, sum(desired) AS desired, sum(observed) AS observed, sum(idle) AS idle,
    sum(booting) AS booting
  FROM {sql.latest("pool.sample", "fleet, pool")}
  GROUP BY fleet
) AS pools USING (fleet)
ORDER BY oldest DESC, fleet LIMIT 200""",
                "table",
            ),
        ),
        healthy="oldest is short everywhere. The fleet whose job waits for longest stands on top.",
        deviation="queued beside idle: starved. queued without idle: saturated. Nothing observed: "
        "nobody can take it.",
        todo="click on the fleet: its jobs, those that wait for longest first.",
        no_data="no fleet has had a job lately, or the pipeline's clock does not tick. What pools "
        "do not tell is empty.",
        width=24,
        units={"oldest": "s"},
        links={"fleet": Link("Its jobs", "runnerstream-jobs", {"fleet": "fleet"})},
    )


# --- capacity -----------------------------------------------------------------------------------


def replicas() -> Panel:
    """What should be and what is."""
    return Panel(
        "RunnerPool replicas (desired vs observed)",
        "timeseries",
        (Sql(pool_levels({"desired": "sum(desired)", "observed": "sum(observed)"})),),
        healthy="observed follows desired within the time of a boot.",
        deviation="observed stays below: machines do not come, or hosts are full. Above: they do "
        "not go.",
        todo="look at Oldest booting runner and Boots.",
        no_data=_NO_POOLS,
        steps=True,
        alerts=("RunnerPoolShort",),
    )


def utilisation() -> Panel:
    """How much of what there is works."""
    return Panel(
        "Pool utilisation (running / observed)",
        "timeseries",
        (
            Sql(
                pool_levels(
                    {"utilisation": "sum(occupied) / nullIf(sum(observed), 0)"},
                    "occupied IS NOT NULL AND observed IS NOT NULL",
                )
            ),
        ),
        healthy="below three quarters in the mean. Both numbers are of the same sample, so it "
        "cannot exceed 1 for want of a word.",
        deviation="at 1: whoever comes next waits for a boot, or for somebody to end.",
        todo="look at Offered load: above 0.8 add runners; below, make the warm floor higher.",
        no_data="pools do not tell how many runners have a job (occupied).",
        unit="percentunit",
        maximum=1,
        thresholds=config.UTILISATION,
        alerts=("RunnerPoolSaturated",),
    )


def _depth_by(condition: str, label: str) -> str:
    return f"""SELECT $__timeInterval(minute) AS time, {label}, max(jobs) AS jobs
FROM {sql.DEPTH}
WHERE {condition}
GROUP BY time, {label} ORDER BY time"""


def queue_length() -> Panel:
    """Who waits where."""
    return Panel(
        "Queue length by fleet",
        "timeseries",
        (Sql(_depth_by("status = 'queued'", "fleet")),),
        healthy="short peaks that go as fast as runners boot. The highest minute of each point; "
        "over days what was told every fifth minute, over weeks every hour.",
        deviation="a plateau or a slope: the fleet does not keep up.",
        todo="look at the fleet's rho, and at Oldest queued job age.",
        no_data="no fleet has had a job, or the pipeline's clock does not tick.",
        stacked=True,
    )


def in_flight() -> Panel:
    """Who has a claim, and how far they are."""
    return Panel(
        "Inflight claims by fleet + state",
        "timeseries",
        (Sql(_depth_by("status IN ('claimed', 'starting', 'running')", "fleet, status")),),
        healthy="mostly running; claimed and starting are thin.",
        deviation="claimed grows: minting fails. starting grows: machines do not come up, or the "
        "provider gives the job to another runner.",
        todo="look at Dispatch requests, Boot time, Recovery.",
        no_data="no job has had a claim in the range.",
        stacked=True,
    )


def warm() -> Panel:
    """What could take a job at once, and what cannot yet."""
    return Panel(
        "Ready vs booting runners",
        "timeseries",
        (Sql(pool_levels({"ready": "sum(ready)", "booting": "sum(booting)"})),),
        healthy="booting is thin, and follows Queue length.",
        deviation="many boot and few are ready: boots fail or hang. None boots while jobs wait: "
        "the pool is at its limit.",
        todo="look at Boot time, and at the hosts.",
        no_data=_NO_POOLS,
        alerts=("RunnerBootStuck",),
    )


def boot_age() -> Panel:
    """For how long the one boots that boots for longest."""
    return Panel(
        "Oldest booting runner",
        "timeseries",
        (Sql(pool_levels({"oldest": "max(booting_s)"}, "booting_s IS NOT NULL")),),
        healthy="no more than the p99 of Boot time.",
        deviation="a line that rises with the clock: a machine hangs, and holds a place.",
        todo="delete it; look at its host.",
        no_data="nothing boots, or pools do not tell since when (booting_since).",
        unit="s",
        thresholds=config.AGE_S,
        alerts=("RunnerBootStuck",),
    )


def ages() -> Panel:
    """Who waits for longest: of all, and of those that may be given out."""
    return Panel(
        "Oldest queued job age, dispatchable vs all",
        "timeseries",
        (
            Sql(
                f"""SELECT $__timeInterval(minute) AS time, fleet, max(oldest_ms) / 1000 AS all
FROM {sql.DEPTH}
WHERE status = 'queued'
GROUP BY time, fleet ORDER BY time"""
            ),
            Sql(
                f"""{BUCKETS}
SELECT {bucket("occurred_at")} AS time, fleet,
  max(dateDiff('millisecond', dispatchable_since, occurred_at)) / 1000 AS dispatchable
FROM pool_events
WHERE kind = 'queue.sample' AND dispatchable_since IS NOT NULL AND {within("occurred_at")}
  AND {OF_FLEET}
GROUP BY time, fleet ORDER BY time"""
            ),
        ),
        healthy="minutes. The alert is on age, not on length.",
        deviation="all is old and dispatchable young: an account is at its limit. Both: nobody "
        "takes the job. A line that rises with the clock is one job.",
        todo="Jobs has it on top; runnerstream explain tells its story.",
        no_data="of all: no fleet has had a job. Of dispatchable: no dispatcher tells "
        "(queue.sample).",
        unit="s",
        thresholds=config.AGE_S,
        alerts=("RunnerQueueAge",),
    )


def withheld() -> Panel:
    """Who must wait, by rule."""
    return Panel(
        "Queue withheld by fleet",
        "timeseries",
        (
            Sql(
                f"""{BUCKETS}
SELECT {bucket("occurred_at")} AS time, fleet, argMax(withheld, occurred_at) AS withheld
FROM pool_events
WHERE kind = 'queue.sample' AND {within("occurred_at")} AND {OF_FLEET}
GROUP BY time, fleet ORDER BY time"""
            ),
        ),
        healthy="anything: an account that uses what it bought is a steady state.",
        deviation="as long as the queue: nobody's job may be given out.",
        todo="look at the limits of the accounts before you add runners.",
        no_data="no dispatcher tells of its queue (queue.sample).",
        stacked=True,
    )


def starved() -> Panel:
    """Where jobs wait beside idle runners."""
    return Panel(
        "Starved warm capacity",
        "timeseries",
        (
            Sql(
                f"""{BUCKETS}
SELECT time, fleet, least(waiting.jobs, idle.runners) AS starved
FROM (
  SELECT {bucket("minute")} AS time, fleet, argMax(jobs, minute) AS jobs FROM {sql.DEPTH}
  WHERE status = 'queued'
  GROUP BY time, fleet
) AS waiting
INNER JOIN (
  SELECT time, fleet, sum(idle) AS runners FROM {sql.POOLS}
  WHERE idle IS NOT NULL GROUP BY time, fleet
) AS idle USING (time, fleet)
ORDER BY time"""
            ),
        ),
        healthy="zero, with single points: the smaller of jobs that wait and runners that are "
        "idle, at the end of each bucket.",
        deviation="it stays above zero: jobs and runners do not find each other.",
        todo="labels that no runner has, a dispatcher that does not answer, a lost queue.",
        no_data="of no fleet both are known, how many jobs wait and how many runners are idle.",
        thresholds=config.ANY_IS_BAD,
        alerts=("RunnerPoolStarved",),
    )


#: Panels of the row.
CAPACITY: Final = (
    replicas(), utilisation(), queue_length(), in_flight(), load.rho(), load.minutes(), warm(),
    boot_age(), ages(), withheld(), starved(),
)  # fmt: skip
