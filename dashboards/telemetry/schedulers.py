"""What schedulers told, as SQL: runs and their backlog, queues."""

from __future__ import annotations

from typing import Final

from dashboards import config
from dashboards.model import Threshold
from dashboards.telemetry.events import NEVER, NEXT_MARK, NOW, before, held, latest_time, recent

#: A run that is open for so long hangs. Seconds.
HANGS: Final[tuple[Threshold, ...]] = (
    (None, "green"),
    (1_800, "yellow"),
    (config.RUN_OPEN_S, "red"),
)
OF_MODE: Final = "$__conditionalAll(mode IN (${mode:singlequote}), $mode)"


def _runs(when: str) -> str:
    return f"""WITH words AS (
  SELECT fleet, run_id, max(schedule_id) AS schedule, any(mode) AS mode,
    min(occurred_at) AS created, max(occurred_at) AS said,
    ifNull(minOrNullIf(occurred_at, status = 'enqueued' OR kind = 'run.progress'
      OR kind LIKE 'segment.%' AND status != 'run_missing'), {NEVER}) AS active,
    ifNull(minOrNullIf(occurred_at, kind = 'run.finished'
      OR kind = 'run.planned' AND status IN ('no_work', 'failed')), {NEVER}) AS ended,
    maxIf(occurred_at, kind IN ('run.planned', 'run.progress') OR status = 'completed') AS got_on,
    max(if(kind = 'run.planned', images, total)) AS images_,
    minMapIf(map(segment_id, toUnixTimestamp64Milli(occurred_at)),
      kind = 'segment.finished' AND status = 'completed') AS done_at,
    maxMapIf(map(segment_id, images), kind = 'segment.finished' AND status = 'completed') AS done,
    groupArrayIf((occurred_at, processed), kind = 'run.progress') AS progress
  FROM scheduler_events WHERE run_id != '' AND {when}
  GROUP BY fleet, run_id
), runs AS (
  SELECT *, least(ended, said + INTERVAL 1 DAY) AS over FROM words WHERE {OF_MODE}
)
"""


#: Runs of the range: in planning from ``created``, then ``active``, then ``over``. A run that
#: nobody mentions for a day is given up.
RUNS: Final = _runs(before("$__fromTime_ms", "1 DAY"))
#: The same of what is open, or ended not long ago, at the end of the range.
RUNS_NOW: Final = _runs(before(NOW, "1 DAY"))


def todo(at: str) -> str:
    """Images that a run had still to do at an instant."""
    return (
        "greatest(0, toInt64(images_) - toInt64(greatest("
        f"arraySum((at_, n) -> if(at_ <= toUnixTimestamp64Milli({at}), n, 0), "
        "mapValues(done_at), mapValues(done)), "
        f"arrayMax(p -> if(p.1 <= {at}, p.2, 0), progress))))"
    )


#: How queues were at every mark, for five minutes after each word.
QUEUES: Final = held(
    f"""(
  SELECT fleet, queue, {NEXT_MARK} AS m, argMax(depth, occurred_at) AS depth,
    argMax(in_flight, occurred_at) AS in_flight, argMax(dead_letters, occurred_at) AS dead_letters,
    {latest_time("scheduler_events.oldest_at")} AS oldest_at
  FROM scheduler_events
  WHERE kind = 'queue.depth'
    AND {before("$__fromTime_ms", "5 MINUTE")} AND {recent("5")}
  GROUP BY fleet, queue, m
)""",
    "fleet, queue",
    "5",
)
#: What active runs have to do, and whether they get on. After RUNS_NOW.
ACTIVE_NOW: Final = f"""(
  SELECT *, {todo(NOW)} AS todo FROM runs WHERE active <= {NOW} AND over > {NOW}
)"""
STUCK: Final = f"todo > 0 AND got_on < {NOW} - INTERVAL 10 MINUTE"

#: What each schedule has to do, and whether it becomes less.
DRAINING: Final = f"""{RUNS_NOW}SELECT fleet, schedule, count() AS runs, sum(todo) AS backlog,
  sum(toInt64({todo(f"{NOW} - INTERVAL 10 MINUTE")}) * (active <= {NOW} - INTERVAL 10 MINUTE)
    + toInt64(images_) * (active > {NOW} - INTERVAL 10 MINUTE) - todo) AS done_in_10_min,
  date_diff('second', max(got_on), {NOW}) AS last_got_on,
  multiIf(backlog = 0, 'nothing to do', countIf({STUCK}) > 0, 'a run is stuck',
    done_in_10_min > 0, 'drains', 'just begun') AS state,
  if(done_in_10_min > 0, backlog / done_in_10_min * 600, NULL) AS empty_in
FROM {ACTIVE_NOW} GROUP BY fleet, schedule ORDER BY backlog DESC LIMIT 100"""
#: Open runs, the oldest first.
LONGEST: Final = f"""{RUNS_NOW}SELECT fleet, run_id AS run, schedule, mode,
  multiIf(active > {NOW}, 'planning', todo = 0, 'all done, not over', {STUCK}, 'stuck', 'active')
    AS state,
  date_diff('second', created, {NOW}) AS open_for,
  if(active > {NOW}, NULL, date_diff('second', got_on, {NOW})) AS last_got_on, todo,
  images_ AS images
FROM (SELECT *, {todo(NOW)} AS todo FROM runs WHERE over > {NOW})
ORDER BY open_for DESC LIMIT 50"""
#: Schedules that were missed within a day.
BEHIND: Final = f"""SELECT fleet, schedule_id AS schedule,
  if(argMax(kind, (due_at, kind = 'schedule.caught_up')) = 'schedule.missed', 'behind',
    'caught up') AS state,
  countIf(kind = 'schedule.missed') AS missed, countIf(kind = 'schedule.caught_up') AS caught_up,
  maxIf(due_at, kind = 'schedule.missed') AS last_missed,
  max(late_ms) / 1000 AS latest_by
FROM (
  SELECT * FROM scheduler_events
  WHERE kind IN ('schedule.missed', 'schedule.caught_up') AND {before(back="1 DAY")}
  LIMIT 1 BY fleet, kind, schedule_id, due_at
)
GROUP BY fleet, schedule ORDER BY state, last_missed DESC LIMIT 100"""
