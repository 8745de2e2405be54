"""Of the dashboard Runners: the goal for queue time, and the work that is asked for."""

from __future__ import annotations

from typing import Final

from dashboards import config, sql
from dashboards.config import OF_FLEET
from dashboards.model import Panel, Sql
from dashboards.sql import BUCKETS, bucket, within

# --- service level ------------------------------------------------------------------------------

_GOAL: Final = f"{config.QUEUE_SLO:.4g} of the jobs start within {config.QUEUE_SLO_S} s"
_NEAR: Final = round(1 - 3 * (1 - config.QUEUE_SLO), 6)
_SLO: Final = ((None, "red"), (_NEAR, "yellow"), (config.QUEUE_SLO, "green"))
_BURNS: Final = ("JobQueueBurnFast", "JobQueueBurn", "JobQueueBurnSlow", "JobQueueBurnCreeping")
_NEVER: Final = "Who never starts is not in it: Oldest queued job watches those."


def slo() -> Panel:
    """Whether the goal was reached in the range."""
    return Panel(
        "Queue-time SLO",
        "stat",
        (
            Sql(
                f"""{BUCKETS}
SELECT sum(good) / sum(jobs) AS within FROM {sql.SLO} HAVING sum(jobs) > 0""",
                "table",
            ),
        ),
        healthy=f"at or above the goal: {_GOAL}. Of the whole range. {_NEVER}",
        deviation="more people wait for longer than was promised.",
        todo="Queue-time SLO by fleet says where.",
        no_data="no job started in the range.",
        unit="percentunit",
        thresholds=_SLO,
        width=6,
        height=7,
        alerts=_BURNS,
    )


def budget() -> Panel:
    """What may still be late."""
    return Panel(
        "Error budget left",
        "bars",
        (
            Sql(
                f"""{BUCKETS}
SELECT fleet, 1 - (1 - sum(good) / sum(jobs)) / {1 - config.QUEUE_SLO:.6g} AS left
FROM {sql.SLO} GROUP BY fleet ORDER BY left LIMIT 20""",
                "table",
            ),
        ),
        healthy=f"positive. The goal is that {_GOAL}; what it leaves is the budget of the range, "
        "so look at 30 days.",
        deviation="below zero: more were late than may be.",
        todo="stop what makes it worse (rollouts, experiments), then add runners.",
        no_data="no job started in the range.",
        unit="percentunit",
        thresholds=((None, "red"), (0, "yellow"), (0.25, "green")),
        width=9,
        height=7,
        alerts=_BURNS,
    )


def burn() -> Panel:
    """How fast the budget goes."""
    return Panel(
        "Error budget burn by fleet",
        "timeseries",
        (
            Sql(
                f"""{BUCKETS}
SELECT {bucket("start")} AS time, fleet,
  (1 - sum(good) / sum(jobs)) / {1 - config.QUEUE_SLO:.6g} AS burn
FROM {sql.SLO} GROUP BY time, fleet ORDER BY time"""
            ),
        ),
        healthy="below 1 in the mean: at 1 the budget lasts just as long as its period.",
        deviation="14 for an hour spends 2 % of 30 days' budget: somebody is called.",
        todo="look at the fleet's Pool utilisation and Queue length.",
        no_data="no job started in the range.",
        thresholds=((None, "green"), (1, "yellow"), (config.BURNS[0][0], "red")),
        width=9,
        height=7,
        alerts=_BURNS,
    )


def slo_by_fleet() -> Panel:
    """Where the goal was missed."""
    return Panel(
        "Queue-time SLO by fleet",
        "timeseries",
        (
            Sql(
                f"""{BUCKETS}
SELECT {bucket("start")} AS time, fleet, sum(good) / sum(jobs) AS within
FROM {sql.SLO} GROUP BY time, fleet ORDER BY time"""
            ),
        ),
        healthy=f"at or above the goal: {_GOAL}.",
        deviation="of one fleet: it is short. Of all at once: the provider or the pipeline.",
        todo="look at that fleet's Capacity.",
        no_data="no job started in the range.",
        unit="percentunit",
        maximum=1,
        thresholds=_SLO,
        alerts=_BURNS,
    )


# --- load ---------------------------------------------------------------------------------------


def shed() -> Panel:
    """Who gave up."""
    return Panel(
        "Shed share: cancelled while they waited",
        "timeseries",
        (
            Sql(
                f"""{BUCKETS}
SELECT {bucket("completed_at")} AS time, fleet,
  countIf(conclusion = 'cancelled' AND abandoned_ms IS NOT NULL) / count() AS shed
FROM job_timings FINAL
WHERE copied = 0 AND conclusion != 'skipped' AND {within("completed_at")} AND {OF_FLEET}
GROUP BY time, fleet ORDER BY time"""
            ),
        ),
        healthy="a few percent: new pushes cancel what they replace.",
        deviation="people give up. Above rho 1 the waits of who stays fall while all gets worse: "
        "this is where that shows.",
        todo="look at Offered load of the fleet.",
        no_data="no job ended in the range.",
        unit="percentunit",
        maximum=1,
        thresholds=((None, "green"), (config.CANCELLED / 2, "yellow"), (config.CANCELLED, "red")),
        alerts=("JobsCancelledWhileWaiting",),
    )


#: By fleet and bucket: ``asked`` and ``had``, in runner-minutes. Asked for: jobs that came, those
#: that were cancelled too, times how long a job of the fleet runs in the range. To be had: the most
#: runners that there may be; where nobody says, those there are. A fleet without pools has no row.
LOAD: Final = f"""(
  SELECT be.at AS time, be.fleet AS fleet,
    came.jobs * ran.ms / 60000 AS asked, be.runners * {sql.PASSED} / 60 AS had
  FROM (
    SELECT time AS at, fleet, sum(ifNull(max, observed)) AS runners FROM {sql.POOLS}
    GROUP BY at, fleet
  ) AS be
  INNER JOIN (
    SELECT fleet, sum(sum_ms) / sum(count) AS ms FROM windows FINAL
    WHERE size_s = size AND family = 'run' AND {within("start")} AND {OF_FLEET}
    GROUP BY fleet HAVING sum(count) > 0
  ) AS ran ON ran.fleet = be.fleet
  LEFT JOIN (
    SELECT {bucket("queued_at")} AS at, fleet, count() AS jobs
    FROM {sql.every_job("queued_at", "conclusion", "conclusion != 'skipped'")}
    GROUP BY at, fleet
  ) AS came ON came.fleet = be.fleet AND came.at = be.at
)"""


def rho() -> Panel:
    """Whether the work fits."""
    return Panel(
        "Offered load against capacity by fleet (rho)",
        "timeseries",
        (
            Sql(
                f"""{BUCKETS}
SELECT time, fleet, asked / had AS rho FROM {LOAD} WHERE had > 0 ORDER BY time"""
            ),
        ),
        healthy="below 0.8 in the mean. Runner-minutes asked for (jobs that came, times how long "
        "jobs of the fleet run) for each that is to be had (the most runners that may be, else "
        "those there are).",
        deviation="above 1 the queue grows without end, until jobs are cancelled: then waits fall "
        "and look well. A spike is a queue, an hour above 1 is too few runners.",
        todo="add runners, or move workflows to another fleet. Several fleets that share hosts "
        "cannot all have their most: choose them all and add up.",
        no_data="nobody tells of pools, or no job of the fleet has run in the range.",
        unit="percentunit",
        thresholds=((None, "green"), (0.8, "yellow"), (config.OVERLOAD, "red")),
        soft_max=1,
        alerts=("FleetOverloaded",),
    )


def minutes() -> Panel:
    """The same in minutes."""
    return Panel(
        "Runner-minutes asked for and to be had",
        "timeseries",
        (
            Sql(
                f"""{BUCKETS}
SELECT time, sum(asked) AS `asked for`, sum(had) AS `to be had`
FROM {LOAD} GROUP BY time ORDER BY time"""
            ),
        ),
        healthy="asked for stays below what is to be had. Of fleets whose pools are known.",
        deviation="they cross: see Offered load, by fleet.",
        todo="the distance is what another team could have, or what you pay for nothing.",
        no_data="nobody tells of pools, or no job has run in the range.",
        unit="m",
    )


#: Panels of the row.
SERVICE_LEVEL: Final = (slo(), budget(), burn(), slo_by_fleet(), shed())
