"""Pieces of SQL that several panels share: buckets of time, rates, levels, quantiles of windows.

Series are drawn in buckets of at least 5 minutes: a minute of a small fleet has too few jobs for a
quantile, and too few samples for a level. A bucket is a multiple of the windows it is made of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from dashboards import config
from dashboards.config import OF_FLEET

#: ``size``: length of the windows to read; ``every``: of a bucket. Both in seconds, and constants.
BUCKETS: Final = """WITH if($__interval_s > 1800, 3600, 300) AS size,
  intDiv($__interval_s + size - 1, size) * size AS every"""

#: Bin i of a window holds values in (g^(i-1), g^i] ms.
G: Final = 1.01 / 0.99

P: Final[Mapping[str, float]] = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def bucket(column: str) -> str:
    """The bucket that a time lies in, to be called ``time``."""
    return f"toStartOfInterval(toDateTime({column}), toIntervalSecond(every))"


def within(column: str) -> str:
    """Whether a time lies in the range, whose first bucket is whole."""
    return (
        f"{column} >= toStartOfInterval($__fromTime, toIntervalSecond(every))"
        f" AND {column} <= $__toTime"
    )


#: Seconds of the bucket ``time`` that have passed: the last has only begun.
PASSED: Final = "greatest(60, least(every, dateDiff('second', time, $__toTime)))"


def exact(column: str) -> str:
    """p50, p95 and p99 as columns. The three are one function, so the values are sorted once."""
    levels = ", ".join(map(str, P.values()))
    return ", ".join(
        f"quantilesExact({levels})({column})[{number}] AS {name}"
        for number, name in enumerate(P, 1)
    )


def per_second(number: str) -> str:
    """So many of a bucket, as a rate."""
    return f"{number} / {PASSED}"


# --- windows ------------------------------------------------------------------------------------


def window_quantiles(family: str, label: str = "", which: Sequence[str] = tuple(P)) -> str:
    """Quantiles in ms of what windows hold, of all chosen fleets together; at most 1 % off.

    The bins are added up and then ranked as quantileExact does; quantiles are never averaged.
    ``family`` is a condition, ``label`` an expression with a name that tells series apart.
    """
    by, name = ("", "") if not label else (f", {label}", f", {label.rpartition(' AS ')[2]}")
    columns = ", ".join(f"{_ranked(P[q])} AS {q}" for q in which)
    return f"""{BUCKETS}
SELECT time{name}, {columns}
FROM (
  SELECT time{name}, sum(n) AS jobs, max(most) AS most,
    arraySort(groupArray((bin, n))) AS bins,
    arrayCumSum(bins.2) AS cumulated
  FROM (
    SELECT {bucket("start")} AS time{by}, max(max_ms) AS most, bin, sum(number) AS n
    FROM windows FINAL
    ARRAY JOIN arrayConcat([toInt32(-2147483648)], mapKeys(bins)) AS bin,
      arrayConcat([zeros], mapValues(bins)) AS number
    WHERE size_s = size AND {family} AND {within("start")} AND {OF_FLEET}
    GROUP BY time{name}, bin
  )
  GROUP BY time{name}
)
WHERE jobs > 0
ORDER BY time"""


def _ranked(level: float) -> str:
    at = f"bins[arrayFirstIndex(c -> c > floor({level} * jobs), cumulated)].1"
    # The bin of zeros gives 0, because of what it is called.
    return f"least(toFloat64(most), 2 * pow({G!r}, {at}) / {G + 1!r})"


def on_time() -> str:
    """Of a window of queue times, how many were within the goal."""
    # Up to the bin whose estimate is within it.
    last = math.floor(math.log(config.QUEUE_SLO_S * 1000 * (G + 1) / 2) / math.log(G))
    return f"zeros + arraySum(mapValues(mapFilter((bin, n) -> bin <= {last}, bins)))"


#: How many jobs began within the goal and how many began in all, by fleet and window: ``good``,
#: ``jobs``, ``start``.
SLO: Final = f"""(
  SELECT fleet, start, sum({on_time()}) AS good, sum(count) AS jobs
  FROM windows FINAL
  WHERE size_s = size AND family = 'queue' AND {within("start")} AND {OF_FLEET}
  GROUP BY fleet, start HAVING jobs > 0
)"""


# --- depth --------------------------------------------------------------------------------------


def _depth(view: str, begin: str, over: str, when: str) -> str:
    # What is false of the resolution costs nothing: it is a constant.
    return f"""  SELECT fleet, status, {begin} AS minute, jobs, oldest_ms FROM {view}
  WHERE {when} AND $__timeFilter({begin}) AND {begin} < {over} AND {OF_FLEET}"""


#: Depth by fleet, status and ``minute``; of long ranges every five minutes, or every hour, which is
#: what projections hold. A minute that runs lacks partitions; after a minute all have told.
DEPTH: Final = f"""(
{_depth("depth_1m", "minute", "toStartOfMinute($__toTime)", "$__interval_s <= 150")}
  UNION ALL
{_depth("depth_5m", "bucket", "$__toTime - 60", "$__interval_s BETWEEN 151 AND 1800")}
  UNION ALL
{_depth("depth_1h", "bucket", "$__toTime - 60", "$__interval_s > 1800")}
)"""


def depth(condition: str) -> str:
    """How many jobs there were in some status, the latest of a bucket, of all chosen fleets.

    0 as long as fleets are known: each says how many are queued while it has jobs, and after.
    """
    return f"""SELECT $__timeInterval(minute) AS time, argMax(n, minute) AS jobs
FROM (
  SELECT minute, sumIf(jobs, {condition}) AS n FROM {DEPTH}
  WHERE status = 'queued' OR {condition}
  GROUP BY minute
)
GROUP BY time ORDER BY time"""


# --- telemetry ----------------------------------------------------------------------------------

#: A level that nobody has confirmed for so long is not known any more. Seconds.
STALE_S: Final = 300


#: What a pool says of itself, in the order in which it is kept here.
_LEVELS: Final = ("desired", "observed", "max", "ready", "idle", "booting", "occupied")
#: Of each bucket only the end, of the one that runs the last minutes: what a level was before says
#: nothing of it then.
AT_END: Final = (
    f"(toUnixTimestamp(occurred_at) % every >= every - {STALE_S}"
    f" OR occurred_at > $__toTime - {STALE_S})"
)
#: The latest sample of each pool at the end of each bucket, with what is NULL in it. The latest is
#: the latest however often it was written, so this needs no FINAL.
POOLS: Final = f"""(
  SELECT time, fleet, pool, {", ".join(f"last.{n} AS {of}" for n, of in enumerate(_LEVELS, 1))},
    dateDiff('millisecond', last.8, last.9) / 1000 AS booting_s
  FROM (
    SELECT {bucket("occurred_at")} AS time, fleet, pool,
      argMax(({", ".join(_LEVELS)}, booting_since, occurred_at), occurred_at) AS last
    FROM pool_events
    WHERE kind = 'pool.sample' AND {within("occurred_at")} AND {AT_END} AND {OF_FLEET}
    GROUP BY time, fleet, pool
    HAVING time <= $__toTime - {STALE_S}
  )
)"""


def pool_levels(values: Mapping[str, str], where: str = "1") -> str:
    """Levels of pools by fleet: aggregates over the latest samples of its pools, by name.

    A bucket is told by what was said in its last 5 minutes, once it has lasted as long; so no pool
    is missing, and none is told of that had said nothing for longer.
    """
    told = ", ".join(f"{value} AS {name}" for name, value in values.items())
    return f"""{BUCKETS}
SELECT time, fleet, {told}
FROM {POOLS}
WHERE {where}
GROUP BY time, fleet ORDER BY time"""


def latest(kind: str, by: str) -> str:
    """The latest rows of a kind of pool_events at the end of the range, as long as believed."""
    # One a key, so FINAL would only read more.
    return f"""(
  SELECT * FROM pool_events
  WHERE kind = '{kind}' AND occurred_at > $__toTime - {STALE_S} AND occurred_at <= $__toTime
    AND {OF_FLEET}
  ORDER BY occurred_at DESC LIMIT 1 BY {by}
)"""


# --- jobs ---------------------------------------------------------------------------------------


def every_job(column: str, others: str, where: str = "1") -> str:
    """Jobs of which a time lies in the range, whether they are over or not.

    Of the completed job_timings tells for ever; the others have a row in jobs. A job is over after
    whatever else happened to it, which is how the index on the end helps to find it.
    """
    chosen = f"{column}, fleet, {others}"
    return f"""(
  SELECT {chosen} FROM job_timings FINAL
  WHERE copied = 0 AND completed_at >= $__fromTime - {_SKEW_S} AND {within(column)}
    AND {OF_FLEET} AND {where}
  UNION ALL
  SELECT {chosen} FROM jobs FINAL
  WHERE deleted = 0 AND copied = 0 AND status != 'completed' AND {within(column)}
    AND {OF_FLEET} AND {where}
)"""


#: Clocks of one job may differ by this much, in seconds, and the first bucket begins before.
_SKEW_S: Final = 14_400


def chosen(column: str, variable: str) -> str:
    """Whether a row is of what is chosen of a variable."""
    return f"$__conditionalAll({column} IN (${{{variable}:singlequote}}), ${variable})"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def price() -> str:
    """What a minute costs, by the column ``fleet``."""
    if not config.PRICES:
        return f"{config.PRICE}"
    names = ", ".join(map(_quoted, config.PRICES))
    costs = ", ".join(f"toFloat64({cost})" for cost in config.PRICES.values())
    return f"transform(toString(fleet), [{names}], [{costs}], {config.PRICE})"


#: Conclusions that say that something is broken; what was cancelled or skipped says nothing.
FAILED: Final = "conclusion IN ('failure', 'timed_out', 'startup_failure')"
#: The share of those among what ended by itself; NULL when nothing did.
FAILURE_SHARE: Final = f"countIf({FAILED}) / nullIf(countIf({FAILED} OR conclusion = 'success'), 0)"
#: Minutes that runners worked, and what that cost.
RUN_MINUTES: Final = "sum(run_ms) / 60000"
COST: Final = f"sum(run_ms / 60000 * {price()})"
