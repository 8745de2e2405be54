"""Of the dashboard Runners: pools, dispatchers, machines, what is asked of them, and recovery."""

from __future__ import annotations

from typing import Final

from dashboards import config, sql
from dashboards.config import OF_FLEET
from dashboards.model import Panel, Sql
from dashboards.sql import BUCKETS, bucket, per_second, pool_levels, window_quantiles, within

_NO_POOLS: Final = "nobody tells of pools (pool.sample), or the last word is older than 5 minutes."
_NO_DISPATCHER: Final = "no dispatcher tells of its requests (dispatch.request)."
_RATE: Final = "ops"

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
  SELECT fleet, enabled FROM pool_events FINAL
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
        thresholds=((None, "green"), (0.1, "yellow"), (0.2, "red")),
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
        thresholds=((None, "green"), (0.8, "yellow"), (1, "red")),
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
FROM depth_1m
WHERE {sql.MINUTES} AND {condition} AND {OF_FLEET}
GROUP BY time, {label} ORDER BY time"""


def queue_length() -> Panel:
    """Who waits where."""
    return Panel(
        "Queue length by fleet",
        "timeseries",
        (Sql(_depth_by("status = 'queued'", "fleet")),),
        healthy="short peaks that go as fast as runners boot. The highest minute of each point.",
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
FROM depth_1m
WHERE {sql.MINUTES} AND status = 'queued' AND {OF_FLEET}
GROUP BY time, fleet ORDER BY time"""
            ),
            Sql(
                f"""{BUCKETS}
SELECT {bucket("occurred_at")} AS time, fleet,
  max(dateDiff('millisecond', dispatchable_since, occurred_at)) / 1000 AS dispatchable
FROM pool_events FINAL
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
FROM pool_events FINAL
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
  SELECT {bucket("minute")} AS time, fleet, argMax(jobs, minute) AS jobs FROM depth_1m
  WHERE {within("minute")} AND minute < toStartOfMinute($__toTime)
    AND status = 'queued' AND {OF_FLEET}
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


# --- dispatch -----------------------------------------------------------------------------------


def requests() -> Panel:
    """What runners got that asked for work."""
    return Panel(
        "Dispatch requests / sec by outcome",
        "timeseries",
        (
            Sql(
                f"""{BUCKETS}
SELECT {bucket("occurred_at")} AS time, outcome, {per_second("count()")} AS requests
FROM dispatch_events FINAL
WHERE kind = 'dispatch.request' AND {within("occurred_at")} AND {OF_FLEET}
GROUP BY time, outcome ORDER BY time"""
            ),
        ),
        healthy="mostly empty (nothing to do) and served.",
        deviation="mint_failed: the provider refuses, or its limit is spent. lost_race: too many "
        "ask at once. no_pool, no_label: a runner that belongs to nobody.",
        todo="of mint_failed: the reason in dispatch_events, and the provider's status page.",
        no_data=_NO_DISPATCHER,
        unit=_RATE,
        colours={
            "served": "green", "empty": "blue", "drain": "orange", "mint_failed": "red",
            "record_failed": "dark-red", "lost_race": "yellow",
        },
        alerts=("DispatchSilent", "RunnerMintFailures"),
    )  # fmt: skip


def request_time() -> Panel:
    """How long a runner waits for the answer."""
    return Panel(
        "Dispatch endpoint latency",
        "timeseries",
        (
            Sql(
                f"""{BUCKETS}
SELECT {bucket("occurred_at")} AS time, quantileExact(0.5)(duration_ms) AS p50,
  quantileExact(0.95)(duration_ms) AS p95, quantileExact(0.99)(duration_ms) AS p99
FROM dispatch_events FINAL
WHERE kind = 'dispatch.request' AND duration_ms IS NOT NULL AND {within("occurred_at")}
  AND {OF_FLEET}
GROUP BY time ORDER BY time"""
            ),
        ),
        healthy="tens of ms at p50; a second where a runner is made.",
        deviation="the database of the dispatcher, or the provider, is slow.",
        todo="compare with the share of served: minting is most of their time.",
        no_data="no dispatcher tells, or none says how long it took.",
        unit="ms",
    )


# --- recovery -----------------------------------------------------------------------------------


def recovered() -> Panel:
    """What recovery did."""
    return Panel(
        "Recovery rate by kind",
        "timeseries",
        (
            Sql(
                f"""{BUCKETS}
SELECT {bucket("at")} AS time, concat(stall, ' ', command) AS kind,
  {per_second("count()")} AS done
FROM (
  SELECT at, stall, command FROM outcomes FINAL
  WHERE kind = 'command.ended' AND result = 'done' AND {within("at")} AND {OF_FLEET}
  ORDER BY at LIMIT 1 BY key, command_id
)
GROUP BY time, kind ORDER BY time"""
            ),
        ),
        healthy="single points: some runner always dies. Each command that was done counts once.",
        deviation="a line: something makes jobs stuck all the time. Much at once: an outage ended.",
        todo="the dashboard Recovery has stalls, probes and what was refused.",
        no_data="nothing was recovered in the range, which is well, unless jobs are stuck.",
        unit=_RATE,
        points=True,
        alerts=("OrphanRate", "RecoveryHeartbeatMissing"),
    )


def stranded() -> Panel:
    """How long people lost."""
    text = window_quantiles(
        "startsWith(family, 'stranded.')", "substring(family, 10) AS kind", ("p50", "p95")
    )
    return Panel(
        "Stranded time by kind",
        "timeseries",
        (Sql(text),),
        healthy="a little above the threshold of each rule: 5 minutes, or an hour in the queue.",
        deviation="far above: probes or commands wait (budgets, breaker, a pause), or fail.",
        todo="the dashboard Recovery; runnerstream explain for one job.",
        no_data="no job left a wrong state in the range. Those still in one are not in it.",
        unit="ms",
        points=True,
        alerts=("RecoveryOverdue",),
    )


# --- boots --------------------------------------------------------------------------------------

_BOOTS: Final = f"kind = 'machine.boot' AND {within('occurred_at')} AND {OF_FLEET}"
_NO_BOOTS: Final = "no machine booted in the range, or nobody tells (machine.boot)."


def boot_time() -> Panel:
    """How long a machine takes."""
    quantiles = ", ".join(
        f"quantileExact({level})(duration_ms) / 1000 AS {name}" for name, level in sql.P.items()
    )
    return Panel(
        "Boot time (p50 / p95 / p99)",
        "timeseries",
        (
            Sql(
                f"""{BUCKETS}
SELECT {bucket("occurred_at")} AS time, {quantiles}
FROM pool_events FINAL
WHERE {_BOOTS} AND outcome = 'ready' AND duration_ms IS NOT NULL
GROUP BY time ORDER BY time"""
            ),
        ),
        healthy="steady. Of machines that came up.",
        deviation="rises: hosts are busy, or an image is not in their cache.",
        todo="compare hosts; look at what image was rolled out.",
        no_data=_NO_BOOTS,
        unit="s",
        alerts=("RunnerBootStuck",),
    )


def boots() -> Panel:
    """How many machines come up."""
    return Panel(
        "Boots / sec by pool",
        "timeseries",
        (
            Sql(
                f"""{BUCKETS}
SELECT {bucket("occurred_at")} AS time, fleet, pool, outcome, {per_second("count()")} AS boots
FROM pool_events FINAL
WHERE {_BOOTS}
GROUP BY time, fleet, pool, outcome ORDER BY time"""
            ),
        ),
        healthy="as many as jobs end, where a runner is for one job. pool is empty where nobody "
        "names it.",
        deviation="failed above a few percent; or many boots and few jobs: machines die young.",
        todo="reason and machine of failed ones are in pool_events.",
        no_data=_NO_BOOTS,
        unit=_RATE,
    )


def boot_heatmap() -> Panel:
    """All boots, not only their quantiles."""
    edges = ", ".join(map(str, (5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600)))
    return Panel(
        "Boot time distribution (heatmap)",
        "heatmap",
        (
            Sql(
                f"""{BUCKETS}, [{edges}] AS edges
SELECT time, if(edge = 0, '+Inf', toString(edge)) AS le, count() AS boots
FROM (
  SELECT {bucket("occurred_at")} AS time,
    edges[arrayFirstIndex(e -> duration_ms <= e * 1000, edges)] AS edge
  FROM pool_events FINAL
  WHERE {_BOOTS} AND outcome = 'ready' AND duration_ms IS NOT NULL
)
GROUP BY time, edge
ORDER BY time, if(edge = 0, 1e18, edge)"""
            ),
        ),
        healthy="one band: warm boots.",
        deviation="a second band: boots without a cached image, or one slow host.",
        todo="choose one fleet after the other; machine in pool_events tells the host.",
        no_data=_NO_BOOTS,
        unit="s",
        palette="Oranges",
    )


#: Panels by row.
CAPACITY: Final = (
    replicas(), utilisation(), queue_length(), in_flight(), rho(), minutes(), warm(), boot_age(),
    ages(), withheld(), starved(),
)  # fmt: skip
DISPATCH: Final = (requests(), request_time())
RECOVERY: Final = (recovered(), stranded())
BOOT: Final = (boot_time(), boots(), boot_heatmap())
