"""What runners told, as SQL: processes, tasks, what they say of themselves, durations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dashboards.telemetry.events import (
    AT,
    NEVER,
    NEXT_MARK,
    NOW,
    WITHIN,
    before,
    either,
    held,
    latest,
    latest_time,
    marks,
    once_each,
    one_by,
    rates,
    recent,
    told,
    witness,
)

#: What a runner process is: when it began, stopped and was last heard of; whether it lives.
PROCESSES: Final = f"""processes AS (
  SELECT fleet, runner,
    maxIf(occurred_at, kind != 'task.reaped') AS heard,
    maxIf(occurred_at, kind = 'runner.stopped') AS stopped,
    maxIf(occurred_at - toIntervalMillisecond(ifNull(uptime_ms, 0)), uptime_ms IS NOT NULL)
      AS began,
    argMaxIf(capacity, occurred_at, kind IN ('runner.info', 'runner.status')) AS capacity,
    countIf(kind = 'runner.scrape') > 0 AS scraped,
    heard >= {NOW} - INTERVAL 5 MINUTE AND heard > stopped AS alive
  FROM runner_events WHERE {before()} GROUP BY fleet, runner
)"""


def _tasks(when: str) -> str:
    return f"""ends AS (
  SELECT fleet, runner, if(kind = 'runner.stopped', occurred_at,
      toStartOfSecond(occurred_at - toIntervalMillisecond(uptime_ms))) AS ended
  FROM runner_events
  WHERE (kind = 'runner.stopped' OR kind = 'runner.status' AND uptime_ms IS NOT NULL) AND {when}
  GROUP BY ALL
), words AS (
  SELECT fleet, runner, task_id, any(job_id) AS job, min(occurred_at) AS assigned,
    max(occurred_at) AS said,
    ifNull(minOrNullIf(occurred_at, kind != 'task.assigned'), {NEVER}) AS worked,
    ifNull(minOrNullIf(occurred_at, kind = 'task.started'), {NEVER}) AS started,
    ifNull(minOrNullIf(occurred_at, kind = 'task.finalizing'), {NEVER}) AS finalizing,
    ifNull(minOrNullIf(occurred_at, kind IN ('task.finished', 'task.reaped')), {NEVER})
      AS finished,
    maxIf(occurred_at, kind = 'report.state' AND result = 'success') AS reported,
    countIf(kind = 'report.state') > 0 AS reports,
    argMaxIf(runner_events.rows_left, occurred_at, kind = 'report.log') AS rows_left,
    {latest_time("runner_events.oldest_since", "kind = 'report.log'")} AS oldest_since
  FROM runner_events WHERE task_id != '' AND {when}
  GROUP BY fleet, runner, task_id
), tasks AS (
  SELECT words.*, said + toIntervalHour(if(reported > 0, 1, 4)) AS lost,
    least(finished, if(ended > 0, ended, {NEVER})) AS over
  FROM words ASOF LEFT JOIN ends
    ON words.fleet = ends.fleet AND words.runner = ends.runner AND words.said <= ends.ended
)"""


#: Tasks of the range with when each came to be in which state: over when it finished, was taken,
#: or its process ended or began anew after its last word; lost when nobody mentioned it.
TASKS: Final = _tasks(before("$__fromTime_ms"))
TASKS_NOW: Final = _tasks(before())


def state(at: str) -> str:
    """The state of an open task at an instant."""
    return (
        f"multiIf({at} > lost, 'lost', {at} >= finalizing, 'finalizing', {at} >= worked, 'running',"
        " 'assigned')"
    )


#: Those that are open at the end of the range.
OPEN_NOW: Final = f"""WITH {PROCESSES}, {TASKS_NOW}, open AS (
  SELECT *, {state(NOW)} AS state FROM tasks JOIN processes USING (fleet, runner)
  WHERE over > {NOW}
)
"""
#: What runners say of themselves, one row a mark before which they said something; 0 once stopped.
_SAID: Final = f"""(
  SELECT fleet, runner, {NEXT_MARK} AS m,
    {latest("if(kind = 'runner.stopped', 0, capacity)")} AS capacity,
    {latest("if(kind = 'runner.stopped', 0, running)")} AS running,
    {latest("if(kind = 'runner.stopped', NULL, backoff_ms)")} AS backoff_ms,
    {latest("if(kind = 'runner.stopped', 0, buffer_rows)")} AS buffer_rows,
    {latest_time("if(kind = 'runner.stopped', NULL, buffer_since)")} AS buffer_since
  FROM runner_events
  WHERE kind IN ('runner.status', 'runner.stopped')
    AND {before("$__fromTime_ms", "5 MINUTE")} AND {recent("5")}
  GROUP BY fleet, runner, m
)"""
#: The same at every mark, for five minutes after each word.
SAID: Final = held(_SAID, "fleet, runner", "5")
#: Runners whose own metrics are looked at: of their tasks only they tell.
SCRAPED: Final = (
    f"(SELECT fleet, runner FROM runner_events WHERE kind = 'runner.scrape' AND {WITHIN})"
)


#: The same at the end of the range.
SAID_NOW: Final = f"""(
  SELECT fleet, runner, argMax(kind, occurred_at) AS last_kind,
    argMax(tuple(running), occurred_at).1 AS running,
    argMax(tuple(buffer_rows), occurred_at).1 AS buffer_rows,
    argMax(tuple(buffer_since), occurred_at).1 AS buffer_since
  FROM runner_events
  WHERE kind IN ('runner.status', 'runner.stopped') AND {before(back="5 MINUTE")}
  GROUP BY fleet, runner HAVING last_kind = 'runner.status'
)"""
#: What waits in the buffers of living runners at the end: as they say, else as their reports do.
#: After OPEN_NOW.
BUFFERS_NOW: Final = f"""(
  SELECT fleet, runner, if(isNull(buffer_rows), rows, buffer_rows) AS waiting,
    if(isNull(buffer_rows), oldest, buffer_since) AS since
  FROM processes LEFT JOIN {SAID_NOW} AS said USING (fleet, runner)
  LEFT JOIN (
    SELECT fleet, runner, sum(rows_left) AS rows, min(oldest_since) AS oldest
    FROM open GROUP BY fleet, runner
  ) AS reports USING (fleet, runner)
  WHERE alive
)"""
#: Every runner, those that are not up first.
FLEET_INFO: Final = f"""{OPEN_NOW}, told AS (
  SELECT fleet, runner, argMaxIf(name, occurred_at, kind = 'runner.info') AS name,
    argMaxIf(runner_version, occurred_at, kind = 'runner.info') AS version,
    argMaxIf(tuple(ready), occurred_at, kind = 'runner.status').1 AS ready,
    argMaxIf(ready_reason, occurred_at, kind = 'runner.status') AS why,
    argMaxIf(tuple(backoff_ms), occurred_at, kind = 'runner.status').1 AS backoff,
    argMaxIf(tuple(running), occurred_at, kind = 'runner.status').1 AS says_running,
    argMaxIf(result, occurred_at, kind = 'runner.poll') AS last_poll,
    argMaxIf(reason, occurred_at, kind = 'runner.stopped') AS stopped_why
  FROM runner_events WHERE {before()} GROUP BY fleet, runner
), mine AS (
  SELECT fleet, runner, countIf(state = 'running') AS tasks, countIf(state = 'lost') AS lost
  FROM open GROUP BY fleet, runner
)
SELECT fleet, runner, name, version,
  multiIf(heard <= stopped, 'stopped', NOT alive, 'gone', ready = 0, 'not ready', 'up') AS state,
  if(scraped, says_running, tasks) AS running, capacity,
  running / nullIf(capacity, 0) AS utilisation, lost,
  if(alive AND began > 0, date_diff('second', began, {NOW}), NULL) AS uptime,
  date_diff('second', heard, {NOW}) AS silent_for, backoff / 1000 AS asks_every, last_poll,
  multiIf(state = 'stopped', stopped_why, state = 'not ready', why, '') AS why_not
FROM processes JOIN told USING (fleet, runner) LEFT JOIN mine USING (fleet, runner)
ORDER BY state = 'up', fleet, runner LIMIT 500"""
#: Processes that began or ended. One begins when it runs for less long than was said before, and
#: the first that is heard of when it runs for less than a minute.
STARTS_AND_STOPS: Final = f"""(
  SELECT occurred_at, if(uptime_ms < before_, 'started', '') AS what FROM (
    SELECT occurred_at, uptime_ms, lagInFrame(toUInt64(uptime_ms), 1, toUInt64(60000)) OVER (
      PARTITION BY fleet, runner ORDER BY occurred_at ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)
      AS before_
    FROM runner_events
    WHERE kind = 'runner.status' AND uptime_ms IS NOT NULL AND {WITHIN}
  )
  UNION ALL
  SELECT occurred_at, if(forced, 'forced', 'orderly') AS what
  FROM {told("runner_events", "runner.stopped")}
)"""
_REPORTED: Final = held(
    f"""(
  SELECT fleet, runner, task_id, {NEXT_MARK} AS m, argMax(rows_left, occurred_at) AS left,
    {latest_time("oldest_since")} AS since
  FROM runner_events
  WHERE kind = 'report.log'
    AND {before("$__fromTime_ms", "10 MINUTE")} AND {recent("10")}
    AND (fleet, runner) NOT IN (
      SELECT fleet, runner FROM runner_events WHERE buffer_rows IS NOT NULL AND {WITHIN}
    )
  GROUP BY fleet, runner, task_id, m
)""",
    "fleet, runner, task_id",
    "10",
)
#: The same at every mark. After TASKS.
BUFFERS: Final = f"""(
  SELECT mark, fleet, runner, buffer_rows AS waiting, buffer_since AS since
  FROM {SAID} WHERE buffer_rows IS NOT NULL
  UNION ALL
  SELECT mark, fleet, runner, sum(left) AS waiting, min(r.since) AS since
  FROM {_REPORTED} AS r JOIN tasks USING (fleet, runner, task_id)
  WHERE over > {AT}
  GROUP BY mark, fleet, runner
)"""


def counted(kind: str, once: str = "") -> str:
    """Events of a kind, what the metrics of scraped runners grew by, and witnesses."""
    limit = one_by(once and f"{once}, if(kind = '{kind}', '', id)")
    return either(
        f"(SELECT * FROM runner_events{once_each(limit)}"
        f" WHERE kind IN ('{kind}', 'runner.scrape') AND {WITHIN}{limit})",
        witness("runner_events", "runner.status"),
    )


def grown_values(kind: str, by: str, counted: str, values: Iterable[str]) -> dict[str, str]:
    """For :func:`rates`, of :func:`counted`: how many, by value of a column.

    ``counted`` is the column with what grew by value.
    """
    return {
        value: f"sum(if(kind = '{kind}', {by} = '{value}', {counted}['{value}']))"
        for value in values
    }


def grown(kind: str, by: str, counted_: str, values: Iterable[str]) -> str:
    """The series of both, a second."""
    return rates(counted(kind), grown_values(kind, by, counted_, values))


def durations(kind: str, of: str, once: str = "", columns: str = "") -> str:
    """How long things took, in ms, and how often: exact, or of scraped runners by bucket.

    A bucket counts as its upper bound, the last as the one before it.
    """
    more = f", {columns}" if columns else ""
    same = one_by(once)
    return f"""(
    SELECT occurred_at, toFloat64(duration_ms) AS duration_ms, toUInt64(1) AS n{more} FROM (
      SELECT * FROM runner_events{once_each(same)}
      WHERE kind = '{kind}' AND duration_ms IS NOT NULL AND {WITHIN}{same}
    )
    UNION ALL
    SELECT occurred_at, bucket.1 * 1000 AS duration_ms, bucket.2 AS n{more}
    FROM runner_events FINAL
    ARRAY JOIN arrayFlatten(arrayMap(
      h -> arrayZip(arrayPushBack(h.bounds, h.bounds[-1]), h.counts),
      arrayFilter(h -> h.of = '{of}', histograms))) AS bucket
    WHERE kind = 'runner.scrape' AND bucket.2 > 0 AND {WITHIN}
  )"""


#: What runs and what could, at every mark, by fleet. After TASKS.
RUNNING: Final = f"""(
  SELECT mark, fleet, 1 AS running, 0 AS capacity
  FROM (
    SELECT fleet, worked, least(finalizing, over, lost) AS until FROM tasks WHERE worked < until
  ) ARRAY JOIN {marks("worked", "until")} AS mark
  UNION ALL
  SELECT mark, fleet, if((fleet, runner) IN {SCRAPED}, ifNull(running, 0), 0) AS running,
    ifNull(capacity, 0) AS capacity
  FROM {SAID}
)"""
#: How long tasks took.
TOOK: Final = durations("task.finished", "job", "runner, task_id")
#: The same by powers of two of seconds.
HEATMAP: Final = f"""SELECT $__timeInterval(occurred_at) AS time,
  if(seconds > 8192, '+Inf', toString(toUInt32(exp2(greatest(0, ceil(log2(seconds + 1e-9)))))))
    AS le,
  toFloat64(sum(n)) AS tasks
FROM (SELECT *, assumeNotNull(duration_ms) / 1000 AS seconds FROM {TOOK})
GROUP BY time, le ORDER BY time, toFloat64OrDefault(le, inf)"""
