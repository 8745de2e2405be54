"""What reconcilers told, as SQL: ticks, violations, work."""

from __future__ import annotations

from typing import Final

from dashboards.sql.events import MINUTE_AFTER, NEVER, NOW, before, held, told

OF_RECONCILER: Final = "$__conditionalAll(reconciler IN (${reconciler:singlequote}), $reconciler)"
TICKS: Final = told("reconciler_events", "reconciler.tick", "reconciler, tick_id", OF_RECONCILER)
#: For how many minutes the levels of a tick hold: three intervals, five minutes at least.
_HOLDS: Final = "greatest(5, intDiv(3 * ifNull(interval_ms, 0), 60000))"
#: How each reconciler was at every full minute.
TICKED: Final = held(
    f"""(
  SELECT fleet, reconciler, {MINUTE_AFTER}, argMax(pending_new, occurred_at) AS new,
    argMax(pending_retry, occurred_at) AS retry, argMax(breaker_open, occurred_at) AS breaker,
    argMax(draining, occurred_at) AS drains, max(interval_ms) AS interval_ms,
    argMax(tuple(pending_oldest_ms), occurred_at).1 AS oldest_ms,
    max(occurred_at) AS ticked
  FROM reconciler_events FINAL
  WHERE kind = 'reconciler.tick' AND {OF_RECONCILER} AND {before("$__fromTime_ms", "1 HOUR")}
  GROUP BY fleet, reconciler, m
)""",
    "fleet, reconciler",
    _HOLDS,
)
#: The latest tick of each reconciler that ticked within a day.
LAST: Final = f"""(
  SELECT fleet, reconciler, max(occurred_at) AS ticked,
    argMax(tuple(interval_ms), occurred_at).1 AS interval_ms,
    argMax(wall_ms, occurred_at) AS wall_ms, argMax(pending_new, occurred_at) AS new,
    argMax(pending_retry, occurred_at) AS retry,
    argMax(tuple(pending_oldest_ms), occurred_at).1 AS oldest_ms,
    argMax(breaker_open, occurred_at) AS breaker, argMax(draining, occurred_at) AS drains
  FROM reconciler_events FINAL
  WHERE kind = 'reconciler.tick' AND {OF_RECONCILER} AND {before(NOW, "1 DAY")}
  GROUP BY fleet, reconciler
)"""
#: Whether its levels still hold.
FRESH: Final = f"ticked >= {NOW} - toIntervalMinute({_HOLDS})"


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
      FROM reconciler_events FINAL
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
  FROM reconciler_events FINAL
  WHERE kind = 'work.moved' AND {OF_RECONCILER} AND {before(NOW, "7 DAY")}
  GROUP BY fleet, reconciler, work_id
)"""
