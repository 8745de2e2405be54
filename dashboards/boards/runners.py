"""Runners: how long jobs wait, what runs, whether there is enough to run it on.

The rows that follow these are in :mod:`dashboards.boards.runners_load`, `runners_capacity` and
`runners_dispatch`.
"""

from __future__ import annotations

from typing import Final

from dashboards import config, sql
from dashboards.boards import runners_capacity as capacity
from dashboards.boards import runners_dispatch as dispatch
from dashboards.boards import runners_load as load
from dashboards.config import OF_FLEET
from dashboards.model import Dashboard, Panel, Promql, Row, Sql
from dashboards.sql import BUCKETS, bucket, depth, per_second, window_quantiles, within

#: What keeps a stat or a curve of depth from having data.
_NO_CLOCK: Final = (
    "the pipeline's clock does not tick, the sink is away, or the fleet has had no job for long: "
    "see the dashboard Pipeline."
)
_NO_JOBS: Final = "no job did so in the range."
_RATE: Final = "ops"


# --- overview -----------------------------------------------------------------------------------


def queued() -> Panel:
    """How many jobs wait now."""
    return Panel(
        "Queued jobs",
        "stat",
        (Sql(depth("status = 'queued'")),),
        healthy="close to zero, or as many as runners are booting.",
        deviation="runners are too few, or none takes jobs.",
        todo="look at Oldest queued job, which says whether they move, then at Capacity.",
        no_data=_NO_CLOCK,
        thresholds=config.QUEUED,
        alerts=("RunnerPoolSaturated", "RunnerPoolEmpty"),
        width=4,
        height=4,
    )


def oldest() -> Panel:
    """For how long the job waits that waits for longest."""
    return Panel(
        "Oldest queued job",
        "stat",
        (
            Sql(
                f"""SELECT $__timeInterval(minute) AS time, argMax(age, minute) AS age
FROM (
  SELECT minute, max(oldest_ms) / 1000 AS age FROM {sql.DEPTH}
  WHERE status = 'queued'
  GROUP BY minute
)
GROUP BY time ORDER BY time"""
            ),
        ),
        healthy="under a few minutes. What is stuck is in no latency panel, since it never starts.",
        deviation="somebody waits whom nobody serves; the queue's length does not tell that.",
        todo="look at Oldest queued job age for its fleet, and at the jobs that wait (Jobs).",
        no_data=_NO_CLOCK,
        unit="s",
        thresholds=config.AGE_S,
        alerts=("RunnerQueueAge",),
        width=4,
        height=4,
    )


def claimed() -> Panel:
    """How many jobs have a claim and no runner yet."""
    return Panel(
        "Pre-mint (claimed)",
        "stat",
        (Sql(depth("status = 'claimed'")),),
        healthy="zero or one: a claim is followed by a runner's configuration within seconds.",
        deviation="claims are made and runners are not: minting fails, or dispatchers die.",
        todo="look at Dispatch requests for mint_failed, and at the provider's status page.",
        no_data=_NO_CLOCK,
        thresholds=config.CLAIMED,
        alerts=("RunnerMintFailures",),
        width=4,
        height=4,
    )


def running() -> Panel:
    """How many jobs have a runner."""
    return Panel(
        "Running builds",
        "stat",
        (Sql(depth("status IN ('starting', 'running')")),),
        healthy="follows the working day. Counted from when a runner is made for the job.",
        deviation="flat at the number of runners: no more fit. Zero while jobs wait: none starts.",
        todo="compare with Pool utilisation and Queued jobs.",
        no_data=_NO_CLOCK,
        thresholds=config.PLAIN,
        alerts=("JobRunsTooLong",),
        width=4,
        height=4,
    )


def hosts() -> Panel:
    """Machines that runners were heard of on."""
    return Panel(
        "Mac minis reporting",
        "stat",
        (
            Sql(
                f"""SELECT uniqExact(host) AS hosts
FROM (
  SELECT JSONExtractString(payload, 'runner_host') AS host FROM events_raw
  WHERE topic = 'runners.lifecycle' AND kind != 'host.gone' AND unreadable = ''
    AND received_at > $__toTime - {sql.STALE_S} AND received_at <= $__toTime
    AND $__conditionalAll(JSONExtractString(payload, 'fleet') IN (${{fleet:singlequote}}), $fleet)
)
WHERE host != ''
HAVING hosts > 0""",
                "table",
            ),
        ),
        healthy="all runner hosts that you have: Mac minis, VM hosts, nodes. Counted are those of "
        "which a runner was heard within 5 minutes before the end of the range.",
        deviation="a host is away, or its runners do nothing and send no heartbeats.",
        todo="compare with your inventory; /runners has each runner's host.",
        no_data="no event named a runner_host for 5 minutes: hosts send no heartbeats, or "
        "all are away.",
        unit="none",
        thresholds=((None, "red"), (1, "yellow"), (2, "green")),
        width=4,
        height=4,
    )


# --- throughput ---------------------------------------------------------------------------------


def enqueued() -> Panel:
    """What is asked for."""
    return Panel(
        "Jobs enqueued / sec by fleet",
        "timeseries",
        (
            Sql(
                f"""{BUCKETS}
SELECT {bucket("queued_at")} AS time, fleet, {per_second("count()")} AS enqueued
FROM {sql.every_job("queued_at", "conclusion", "conclusion != 'skipped'")}
GROUP BY time, fleet ORDER BY time"""
            ),
        ),
        healthy="follows the working day. Skipped jobs need no runner and are left out.",
        deviation="a jump: a new workflow, a matrix, a loop of re-runs. Zero: webhooks are silent.",
        todo="Jobs says which repository; Webhook deliveries says whether anything comes.",
        no_data=_NO_JOBS,
        unit=_RATE,
    )


def completed() -> Panel:
    """What is done."""
    return Panel(
        "Jobs completed / sec by conclusion",
        "timeseries",
        (
            Sql(
                f"""{BUCKETS}
SELECT {bucket("start")} AS time, conclusion, {per_second("sum(jobs)")} AS completed
FROM window_conclusions_merged
WHERE size_s = size AND {within("start")} AND {OF_FLEET}
GROUP BY time, conclusion ORDER BY time"""
            ),
        ),
        healthy="as many as are enqueued, nearly all success.",
        deviation="failures of all fleets at once are hardly the code's; stale and startup_failure "
        "are jobs that recovery found dead.",
        todo="Jobs, Failures by repository: one repository, or a fleet?",
        no_data=_NO_JOBS,
        unit=_RATE,
        stacked=True,
        alerts=("FleetFailureRatio",),
    )


def claims() -> Panel:
    """How fast jobs are taken and begun."""

    def of(column: str, name: str) -> Sql:
        return Sql(
            f"""{BUCKETS}
SELECT {bucket(column)} AS time, {per_second("count()")} AS {name}
FROM {sql.every_job(column, "key")}
GROUP BY time ORDER BY time"""
        )

    return Panel(
        "Claim and run rate",
        "timeseries",
        (of("claimed_at", "claimed"), of("started_at", "running")),
        healthy="both alike. Each job counts once.",
        deviation="fewer run than are claimed: runners are made and do not start. More run than "
        "are claimed: fleets without a dispatcher, or its events are lost.",
        todo="look at Claim → running, and at Recovery for orphans.",
        no_data="no dispatcher tells of claims, and nothing started.",
        unit=_RATE,
        alerts=("OrphanRate",),
    )


def webhooks() -> Panel:
    """What came of deliveries: only the process that looked at them knows."""
    return Panel(
        "Webhook deliveries by action and outcome",
        "timeseries",
        (
            Promql(
                "sum by (action, outcome) "
                "(rate(runnerstream_webhook_jobs_total[$__rate_interval]))",
                "{{action}} {{outcome}}",
            ),
        ),
        healthy="queued, in_progress and completed alike, all accepted.",
        deviation="no_account, no_fleet: a route is missing. malformed: the hook sends something "
        "else. Nothing while people work: the hook is off, or the gateway away.",
        todo="look at /webhooks, and at the hook's deliveries at the provider.",
        no_data="no worker is scraped, or none has the role that normalises.",
        unit=_RATE,
    )


# --- latency ------------------------------------------------------------------------------------


def _quantiles(
    title: str, family: str, healthy: str, deviation: str, todo: str, *alerts: str
) -> Panel:
    return Panel(
        title,
        "timeseries",
        (Sql(window_quantiles(f"family = '{family}'")),),
        healthy=healthy,
        deviation=deviation,
        todo=todo,
        no_data="no such job in the range; what is not known is no sample.",
        unit="ms",
        alerts=alerts,
    )


def queue_time() -> Panel:
    """How long jobs wait for a claim."""
    return Panel(
        "Queue time (enqueue → claim)",
        "timeseries",
        (
            Sql(
                f"""{BUCKETS}
SELECT {bucket("claimed_at")} AS time, {sql.exact("ms")}
FROM (
  SELECT claimed_at, dateDiff('millisecond', queued_at, claimed_at) AS raw,
    greatest(0, raw) AS ms
  FROM {sql.every_job("claimed_at", "queued_at", "queued_at IS NOT NULL")}
)
WHERE raw >= -1000
GROUP BY time ORDER BY time"""
            ),
        ),
        healthy="seconds at p50, under a minute at p99. Exact, also of jobs that still run.",
        deviation="runners are too few, or come too slowly.",
        todo="look at Pool utilisation; if it is low, at Starved warm capacity.",
        no_data="no dispatcher tells of claims: then Enqueue → running is what there is.",
        unit="ms",
        alerts=("JobQueueBurnFast",),
    )


def to_running() -> Panel:
    """How long jobs wait until they run."""
    return Panel(
        "Enqueue → running (JIT-mint included)",
        "timeseries",
        (Sql(window_quantiles("family = 'queue'")),),
        healthy="close above Queue time, and p99 within the goal.",
        deviation="far above Queue time: the time goes to minting and booting, not to waiting.",
        todo="look at Claim → running. Quantiles cannot be subtracted from each other: it is "
        "measured job by job.",
        no_data="no job started in the range.",
        unit="ms",
        alerts=("JobQueueBurnFast", "JobQueueBurn"),
    )


def to_start() -> Panel:
    """From the claim to the start."""
    return _quantiles(
        "Claim → running",
        "claim_to_start",
        "the time a runner needs to register and to begin; steady.",
        "the provider is slow to give out jobs, or machines are slow to boot.",
        "look at Boot time; if that is steady, at the provider's status page.",
    )


def run_time() -> Panel:
    """How long jobs run."""
    return _quantiles(
        "Run time (running → completed)",
        "run",
        "steady for the same workflows.",
        "a step as all workflows get slower is the machines' or a cache's; of one it is its own.",
        "Jobs, Slowest jobs and Run time by workflow.",
        "JobRunsTooLong",
    )


def total_time() -> Panel:
    """How long people wait in all."""
    return _quantiles(
        "Total time (enqueue → completed)",
        "total",
        "run time and a little: this is what people wait for.",
        "grows while run time does not: the queue does.",
        "compare with Enqueue → running.",
    )


def queue_heatmap() -> Panel:
    """All waits, not only their quantiles."""
    bounds = (1, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200)
    edges = ", ".join(str(bound * 1000) for bound in bounds)
    return Panel(
        "Queue time distribution (heatmap)",
        "heatmap",
        (
            Sql(
                f"""{BUCKETS}, [{edges}] AS edges
SELECT time, if(edge = 0, '+Inf', toString(edge)) AS le, sum(n) AS jobs
FROM (
  SELECT {bucket("start")} AS time, number AS n,
    edges[arrayFirstIndex(e -> 2 * pow({sql.G!r}, bin) / {sql.G + 1!r} <= e, edges)] AS edge
  FROM windows FINAL
  ARRAY JOIN arrayConcat([toInt32(-2147483648)], mapKeys(bins)) AS bin,
    arrayConcat([zeros], mapValues(bins)) AS number
  WHERE size_s = size AND family = 'queue' AND {within("start")} AND {OF_FLEET}
)
GROUP BY time, edge
HAVING jobs > 0
ORDER BY time, if(edge = 0, 1e18, edge)"""
            ),
        ),
        healthy="one dark band at the bottom. Until jobs run.",
        deviation="a second band: some jobs wait for something else, such as a machine to boot, or "
        "one fleet is short.",
        todo="choose one fleet after the other.",
        no_data="no job started in the range.",
        unit="ms",
    )


# --- the board ----------------------------------------------------------------------------------

BOARD: Final = Dashboard(
    "runnerstream-runners",
    "Runners",
    "How long jobs wait for a runner, what runs, and whether there is enough to run it on.",
    (
        Row(
            "Overview",
            (
                queued(), oldest(), claimed(), running(), capacity.desired(), capacity.accounts(),
                hosts(), capacity.starved_now(), capacity.withheld_now(), capacity.idle_now(),
                capacity.fleets(),
            ),
        ),
        Row("Throughput", (enqueued(), completed(), claims(), webhooks())),
        Row(
            "Latency",
            (queue_time(), to_running(), to_start(), run_time(), total_time(), queue_heatmap()),
        ),
        Row("Service level", load.SERVICE_LEVEL),
        Row("Capacity", capacity.CAPACITY),
        Row("Dispatch endpoint", dispatch.DISPATCH),
        Row("Recovery", dispatch.RECOVERY),
        Row("VM boot time", dispatch.BOOT),
    ),
    variables=(config.FLEET,),
)  # fmt: skip
