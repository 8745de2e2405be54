"""What reconcilers told, as SQL: ticks, violations, work."""

from __future__ import annotations

from typing import Final

from dashboards.telemetry.events import (
    NEVER,
    NEXT_MARK,
    NOW,
    WITHIN,
    before,
    held,
    latest,
    one_by,
    recent,
    told,
)

OF_RECONCILER: Final = "$__conditionalAll(reconciler IN (${reconciler:singlequote}), $reconciler)"
TICKS: Final = told("reconciler_events", "reconciler.tick", "reconciler, tick_id", OF_RECONCILER)


def _holds(interval_ms: str = "interval_ms") -> str:
    """For how many minutes the levels of a tick hold: three intervals, five minutes at least."""
    return f"greatest(5, intDiv(3 * ifNull({interval_ms}, 0), 60000))"


#: How each reconciler was at every mark.
TICKED: Final = held(
    f"""(
  SELECT fleet, reconciler, {NEXT_MARK} AS m, argMax(pending_new, occurred_at) AS new,
    argMax(pending_retry, occurred_at) AS retry, argMax(breaker_open, occurred_at) AS breaker,
    argMax(draining, occurred_at) AS drains, max(interval_ms) AS interval_ms,
    {latest("pending_oldest_ms")} AS oldest_ms,
    max(occurred_at) AS ticked
  FROM reconciler_events
  WHERE kind = 'reconciler.tick' AND {OF_RECONCILER} AND {before("$__fromTime_ms", "1 HOUR")}
    AND {recent(_holds("reconciler_events.interval_ms"))}
  GROUP BY fleet, reconciler, m
)""",
    "fleet, reconciler",
    _holds(),
)
#: The latest tick of each reconciler that ticked within a day.
LAST: Final = f"""(
  SELECT fleet, reconciler, max(occurred_at) AS ticked,
    argMax(tuple(interval_ms), occurred_at).1 AS interval_ms,
    argMax(wall_ms, occurred_at) AS wall_ms, argMax(pending_new, occurred_at) AS new,
    argMax(pending_retry, occurred_at) AS retry,
    argMax(tuple(pending_oldest_ms), occurred_at).1 AS oldest_ms,
    argMax(breaker_open, occurred_at) AS breaker, argMax(draining, occurred_at) AS drains
  FROM reconciler_events
  WHERE kind = 'reconciler.tick' AND {OF_RECONCILER} AND {before(NOW, "1 DAY")}
  GROUP BY fleet, reconciler
)"""
#: Whether its levels still hold.
FRESH: Final = f"ticked >= {NOW} - toIntervalMinute({_holds()})"


def _violations(when: str) -> str:
    return f"""(
  SELECT fleet, reconciler, invariant, entity, message, occurred_at AS opened,
    next AS closed
  FROM (
    SELECT *, leadInFrame(occurred_at, 1, {NEVER}) OVER (
      PARTITION BY fleet, reconciler, invariant, entity ORDER BY occurred_at, kind DESC
      ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS next
    FROM (
      SELECT *, lagInFrame(kind) OVER (
        PARTITION BY fleet, reconciler, invariant, entity ORDER BY occurred_at, kind DESC) AS last
      FROM reconciler_events
      WHERE kind IN ('reconciler.violation_opened', 'reconciler.violation_closed')
        AND {OF_RECONCILER} AND {when}
    ) WHERE kind != last
  ) WHERE kind = 'reconciler.violation_opened'
)"""


#: Violations of the range, each from when it opened to when it closed; one that is told again
#: opened once.
VIOLATIONS: Final = _violations(before("$__fromTime_ms", "7 DAY"))
VIOLATIONS_NOW: Final = _violations(before(NOW, "7 DAY"))
#: Where each piece of work is that moved within a week, and since when.
WORK: Final = f"""(
  SELECT fleet, reconciler, work_id, argMax(to_state, occurred_at) AS state,
    max(occurred_at) AS since, min(occurred_at) AS first
  FROM reconciler_events
  WHERE kind = 'work.moved' AND {OF_RECONCILER} AND {before(NOW, "7 DAY")}
  GROUP BY fleet, reconciler, work_id
)"""
#: What was done to the same more than 10 times within the last hour.
LOOPS: Final = f"""SELECT fleet, reconciler,
  if(kind = 'work.dispatch_failed', 'dispatch failed', type) AS action,
  if(kind = 'work.dispatch_failed', work_id, entity) AS entity, count() AS times,
  max(occurred_at) AS last
FROM (
  SELECT fleet, reconciler, kind, type, work_id, reconciler_events.entity AS entity, occurred_at
  FROM reconciler_events FINAL
  WHERE kind IN ('reconciler.action', 'work.dispatch_failed') AND outcome != 'suppressed'
    AND {OF_RECONCILER} AND {before(back="1 HOUR")}
)
GROUP BY fleet, reconciler, action, entity HAVING times > 10"""
#: Work that came back more than 3 times in half an hour to a state that it had left.
FLAPS: Final = f"""SELECT fleet, reconciler, work_id, returns, states FROM (
  SELECT fleet, reconciler, work_id, arraySort(groupArray((occurred_at, to_state))) AS path,
    arrayFirstIndex(move -> move.1 >= {NOW} - INTERVAL 30 MINUTE, path) AS first,
    arraySlice(path.2, greatest(1, first - 1)) AS states,
    arrayCount(n -> has(arraySlice(states, 1, n - 1), states[n]), arrayEnumerate(states))
      AS returns
  FROM reconciler_events FINAL
  WHERE kind = 'work.moved' AND {OF_RECONCILER} AND {before(back="1 DAY")}
  GROUP BY fleet, reconciler, work_id
) WHERE first > 0 AND returns > 3"""
#: What each reconciler did in the last hour, and whether anything came of it.
PROGRESS: Final = f"""SELECT fleet, reconciler, actions, closed, waiting,
  actions > 200 AND closed = 0 AND waiting > 0 AS no_progress
FROM (
  SELECT fleet, reconciler, sum(actions) AS actions FROM (
    SELECT * FROM reconciler_events
    WHERE kind = 'reconciler.tick' AND toStartOfMinute(occurred_at) >= {NOW} - INTERVAL 1 HOUR
      AND {OF_RECONCILER} AND {before(back="2 HOUR")}
    LIMIT 1 BY fleet, reconciler, tick_id
  ) GROUP BY fleet, reconciler
) AS busy LEFT JOIN (
  SELECT fleet, reconciler,
    countIf(state = 'closed' AND since >= {NOW} - INTERVAL 1 HOUR) AS closed,
    countIf(state NOT IN ('closed', 'failed') AND first <= {NOW} - INTERVAL 1 HOUR) AS waiting
  FROM {WORK} GROUP BY fleet, reconciler
) AS left_ USING (fleet, reconciler)"""
#: Every reconciler, those that do not tick first.
RECONCILERS: Final = f"""SELECT fleet, reconciler,
  multiIf(ticked < {NOW} - toIntervalMillisecond(3 * interval_ms), 'overdue', breaker,
    'breaker open', drains, 'draining', 'ticks') AS state,
  date_diff('millisecond', ticked, {NOW}) / 1000 AS tick_age, interval_ms, wall_ms,
  new AS pending_new, retry AS pending_retry, oldest_ms AS pending_oldest
FROM {LAST} ORDER BY state = 'ticks', fleet, reconciler LIMIT 200"""
#: What is broken at the end of the range, the oldest first.
OPEN_VIOLATIONS: Final = f"""SELECT invariant, fleet, reconciler, entity,
  date_diff('second', opened, {NOW}) AS age, opened, times, message
FROM (
  SELECT fleet, reconciler, invariant, entity, count() AS times, max(opened) AS opened,
    argMax(closed, v.opened) AS closed, argMax(message, v.opened) AS message
  FROM {VIOLATIONS_NOW} AS v GROUP BY fleet, reconciler, invariant, entity
) WHERE closed > {NOW} ORDER BY age DESC LIMIT 200"""
#: Types of effects, the slowest first.
SLOWEST: Final = f"""SELECT type, count() AS effects,
  countIf(outcome = 'failed') / count() AS failing,
  quantileExact(0.5)(duration_ms) AS p50, quantileExact(0.95)(duration_ms) AS p95,
  max(duration_ms) AS longest
FROM {told("reconciler_events", "reconciler.effect", "", OF_RECONCILER)}
GROUP BY type ORDER BY p95 DESC LIMIT 50"""
#: All events by who sent them and kind.
SUMMARY: Final = f"""SELECT source, kind, count() AS total,
  countIf(outcome = 'failed' OR failed OR kind = 'work.dispatch_failed') AS errors,
  errors / total AS error_rate, avg(coalesce(duration_ms, wall_ms)) AS mean_ms
FROM reconciler_events FINAL WHERE {OF_RECONCILER} AND {WITHIN}
GROUP BY source, kind ORDER BY total DESC LIMIT 100"""
#: Why things failed.
REASONS: Final = f"""SELECT kind, type, role, reason, count() AS times, max(occurred_at) AS last
FROM reconciler_events FINAL
WHERE (outcome = 'failed' OR kind = 'work.dispatch_failed') AND {OF_RECONCILER} AND {WITHIN}
GROUP BY kind, type, role, reason ORDER BY times DESC LIMIT 100"""
#: What ticks decided to do, by type, for each tick.
ACTIONS: Final = f"""SELECT time, type, times / n AS actions
FROM (
  SELECT $__timeInterval(occurred_at) AS time, count() AS n, sumMap(actions_by_type) AS by_type
  FROM {TICKS} GROUP BY time
) ARRAY JOIN mapKeys(by_type) AS type, mapValues(by_type) AS times
ORDER BY time"""
#: Ticks, and work that moved.
ACTIVITY: Final = f"""(
  SELECT * FROM reconciler_events
  WHERE kind IN ('reconciler.tick', 'work.moved') AND {OF_RECONCILER} AND {WITHIN}
  {one_by("reconciler, if(kind = 'work.moved', id, tick_id)")}
)"""
#: What work is in before it is over.
STATES: Final = ("open", "in_progress", "in_review")
_EACH: Final = ", ".join(
    f"countIf(state = '{each}') AS {each}, "
    f"maxIf(date_diff('second', since, {NOW}), state = '{each}') AS {each}_for"
    for each in STATES
)
#: How much work is in which state, and for how long the oldest.
WORK_BY_STATE: Final = f"""SELECT fleet, reconciler, {_EACH} FROM {WORK}
GROUP BY fleet, reconciler ORDER BY fleet, reconciler LIMIT 200"""
