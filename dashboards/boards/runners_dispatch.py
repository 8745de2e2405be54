"""Of the dashboard Runners: dispatchers, recovery, and machines that boot."""

from __future__ import annotations

from typing import Final

from dashboards import sql
from dashboards.config import OF_FLEET
from dashboards.model import Panel, Sql
from dashboards.sql import BUCKETS, bucket, per_second, window_quantiles, within

_NO_DISPATCHER: Final = "no dispatcher tells of its requests (dispatch.request)."
_RATE: Final = "ops"

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
SELECT {bucket("occurred_at")} AS time, {sql.exact("duration_ms")}
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
    return Panel(
        "Boot time (p50 / p95 / p99)",
        "timeseries",
        (
            Sql(
                f"""{BUCKETS}
SELECT {bucket("occurred_at")} AS time, {sql.exact("duration_ms / 1000")}
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
DISPATCH: Final = (requests(), request_time())
RECOVERY: Final = (recovered(), stranded())
BOOT: Final = (boot_time(), boots(), boot_heatmap())
