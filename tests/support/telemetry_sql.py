"""SQL that an operator would write on the tables of telemetry, by what it finds.

Each names the fleet first, then labels, then a value; of durations how many and their sum in ms.
``now()`` is the time at which it is asked. ``documented`` ones stand in ``docs/telemetry.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final


def ends(kind: str, what: str, table: str) -> str:
    """What ended, each once: who tells an end under another id writes another row."""
    return f"(SELECT * FROM {table} FINAL WHERE kind = '{kind}' LIMIT 1 BY fleet, {what})"


def number(source: str, by: str = "", value: str = "count()", where: str = "1") -> str:
    """How many, or the sum of something, by labels."""
    return (
        f"SELECT fleet, {by + ', ' if by else ''}{value} FROM {source} WHERE {where} GROUP BY ALL"
    )


def kind(name: str, table: str) -> str:
    """All events of a kind."""
    return f"(SELECT * FROM {table} FINAL WHERE kind = '{name}')"


def latest(table: str, where: str, by: str, within: str = "5 MINUTE") -> str:
    """The latest rows, with what is NULL in them."""
    return (
        f"(SELECT * FROM {table} FINAL WHERE {where} AND occurred_at >= now() - INTERVAL {within} "
        f"ORDER BY occurred_at DESC LIMIT 1 BY fleet, {by})"
    )


def age(since: str) -> str:
    """For how long, in seconds; 0 without a time."""
    return f"ifNull(date_diff('millisecond', {since}, now()), 0) / 1000"


TOOK: Final = "count(duration_ms), sum(duration_ms)"

# --- runners ----------------------------------------------------------------------------------

_R: Final = "runner_events"
_POLLS, _LOGS, _STATES = (kind(name, _R) for name in ("runner.poll", "report.log", "report.state"))
_DONE: Final = ends("task.finished", "runner, task_id", _R)
_STEPS: Final = ends("step.finished", "runner, task_id, number, step_id", _R)

#: What a runner process is: when it began, stopped and was last heard of; whether it lives.
PROCESSES: Final = """
processes AS (
  SELECT fleet, runner,
    maxIf(occurred_at, kind != 'task.reaped') AS heard,
    maxIf(occurred_at, kind = 'runner.stopped') AS stopped,
    maxIf(occurred_at - toIntervalMillisecond(ifNull(uptime_ms, 0)), uptime_ms IS NOT NULL)
      AS began,
    argMaxIf(capacity, occurred_at, kind IN ('runner.info', 'runner.status')) AS capacity,
    heard >= now() - INTERVAL 5 MINUTE AND heard > stopped AS alive
  FROM runner_events FINAL GROUP BY fleet, runner
)"""
#: What is open, with what is told of its processes.
OPEN: Final = f"""WITH {PROCESSES}, tasks AS (
  SELECT fleet, runner, task_id, min(occurred_at) AS assigned, max(occurred_at) AS said,
    minIf(occurred_at, kind = 'task.started') AS started,
    maxIf(occurred_at, kind = 'report.state' AND result = 'success') AS reported,
    argMaxIf(rows_left, occurred_at, kind = 'report.log') AS rows_left,
    argMaxIf(tuple(oldest_since), occurred_at, kind = 'report.log').1 AS oldest_since,
    multiIf(countIf(kind = 'task.finalizing') > 0, 'finalizing',
      countIf(kind != 'task.assigned') > 0, 'running', 'assigned') AS state
  FROM runner_events FINAL WHERE task_id != '' GROUP BY fleet, runner, task_id
  HAVING countIf(kind IN ('task.finished', 'task.reaped')) = 0
), open AS (
  SELECT * FROM tasks JOIN processes USING (fleet, runner) WHERE said > stopped AND said > began
)
"""
_STATUS: Final = latest(_R, "kind = 'runner.status'", "runner")
_POLL: Final = latest(_R, "kind = 'runner.poll'", "runner", "1 HOUR")
#: What waits in the buffer of a runner: as it says, else as its reports say.
_BUFFERS: Final = f"""{OPEN}, buffers AS (
  SELECT fleet, runner, if(s.buffer_rows IS NULL, r.waiting, s.buffer_rows) AS waiting,
    if(s.buffer_rows IS NULL, r.since, s.buffer_since) AS since
  FROM processes
  LEFT JOIN {_STATUS} AS s USING (fleet, runner)
  LEFT JOIN (
    SELECT fleet, runner, sum(rows_left) AS waiting, min(oldest_since) AS since FROM open
    GROUP BY fleet, runner
  ) AS r USING (fleet, runner)
  WHERE alive
)
"""

RUNNERS: Final[Mapping[str, str]] = {
    "runner_polls": number(_POLLS, "result"),
    "runner_poll_seconds": number(_POLLS, value=TOOK),
    "runner_client_errors": number(kind("client.error", _R), "method"),
    "runner_stops": number(kind("runner.stopped", _R), "if(forced, 'forced', 'orderly')"),
    "runner_steps": number(_STEPS, "result"),
    "runner_outputs_dropped": number(kind("task.output_dropped", _R), "reason"),
    "runner_log_reports": number(_LOGS, "result"),
    "runner_log_report_seconds": number(_LOGS, value=TOOK),
    "runner_log_rows": number(_LOGS, value="sum(rows)"),
    "runner_state_reports": number(_STATES, "result"),
    "runner_state_report_seconds": number(_STATES, value=TOOK),
    "runner_report_triggers": number(
        "runner_events FINAL", "substring(kind, 8) AS what, trigger",
        where="kind IN ('report.log', 'report.state')",
    ),
    "runner_flushes_failed": number(kind("task.flush_failed", _R), "method"),
    "runner_log_rows_lost": number(kind("task.flush_failed", _R), value="sum(rows_lost)"),
    "runner_tasks": number(_DONE, "result"),
    "runner_task_seconds": number(_DONE, value=TOOK),
    "runner_task_result_seconds": number(_DONE, "result", TOOK),
    "runner_task_flush_seconds": number(_DONE, value="count(flush_ms), sum(flush_ms)"),
    "runner_tasks_reaped": number(kind("task.reaped", _R), "sweep"),
    "runners_unregistered": number(_POLL, where="result = 'unauthenticated'"),
    "runners_known": f"WITH {PROCESSES} " + number("processes", where="alive"),
    "runner_capacity": f"WITH {PROCESSES} " + number("processes", "", "sum(capacity)", "alive"),
    "runner_tasks_open": OPEN + number("open", "state"),
    "runners_silent": OPEN
    + number("open", "", "uniqExact(runner)", "heard < now() - INTERVAL 1 MINUTE"),
    "runner_task_oldest_seconds": OPEN + number("open", "", f"max({age('assigned')})"),
    "runner_tasks_silent": OPEN
    + number("open", "", "count()", "started > 0 AND greatest(reported, started) < now() - "
             "INTERVAL 2 MINUTE"),
    "runner_uptime_oldest_seconds": f"WITH {PROCESSES} "
    + number("processes", "", f"max({age('began')})", "alive"),
    "runner_started_newest_timestamp_seconds": f"WITH {PROCESSES} "
    + number("processes", "", "max(toUnixTimestamp64Milli(began)) / 1000", "alive"),
    "runner_polls_stuck": f"WITH {PROCESSES} SELECT fleet, count() FROM {_POLL} AS p "
    "JOIN processes USING (fleet, runner) WHERE alive AND p.occurred_at > began "
    "AND p.occurred_at >= now() - INTERVAL 5 MINUTE AND p.result = 'error' "
    "AND greatest(p.consecutive_empty, p.consecutive_errors) >= 6 GROUP BY fleet",
    "runners_not_ready": f"WITH {PROCESSES} SELECT fleet, countIf(NOT s.ready) FROM {_STATUS} AS s "
    "JOIN processes USING (fleet, runner) WHERE alive GROUP BY fleet",
    "runner_backoff_seconds": f"WITH {PROCESSES} SELECT fleet, "
    "max(if(p.result = 'task' AND p.occurred_at > s.occurred_at, 0, s.backoff_ms)) / 1000 "
    f"FROM {_STATUS} AS s JOIN processes USING (fleet, runner) "
    f"LEFT JOIN {_POLL} AS p USING (fleet, runner) WHERE alive GROUP BY fleet",
    "runner_buffer_rows": _BUFFERS + number("buffers", value="sum(waiting)"),
    "runner_buffer_rows_max": _BUFFERS + number("buffers", value="max(waiting)"),
    "runner_buffer_oldest_seconds": _BUFFERS + number("buffers", value=f"max({age('since')})"),
}  # fmt: skip

# --- schedulers -------------------------------------------------------------------------------

_S: Final = "scheduler_events"
_PLANNED: Final = ends("run.planned", "run_id", _S)
_FINISHED: Final = ends("run.finished", "run_id", _S)
#: A segment is completed once, in whatever attempt.
_SEGMENTS: Final = ends(
    "segment.finished", "run_id, segment_id, if(status = 'completed', 0, attempt)", _S
)
_LEASED: Final = ends("segment.leased", "run_id, segment_id, attempt", _S)
_DUE: Final = "schedule_id, due_at"
_QUEUES: Final = latest(_S, "kind = 'queue.depth'", "queue")
#: Runs that are not over: since when, whether they are planned, when they got on, what is left.
RUNS: Final = """WITH runs AS (
  SELECT fleet, run_id, any(mode) AS mode, min(occurred_at) AS since,
    countIf(kind = 'run.planned') > 0 AS planned,
    if(planned, 'active', 'planning') AS state,
    maxIf(occurred_at, kind IN ('run.planned', 'run.progress') OR status = 'completed') AS got_on,
    maxMapIf(map(segment_id, images), status = 'completed') AS done,
    max(if(kind = 'run.planned', images, total))
      - greatest(max(processed), arraySum(mapValues(done))) AS todo
  FROM scheduler_events FINAL WHERE run_id != '' GROUP BY fleet, run_id
  HAVING countIf(kind = 'run.finished') = 0 AND countIf(status IN ('no_work', 'failed')) = 0
)
"""

SCHEDULERS: Final[Mapping[str, str]] = {
    "scheduler_planner_runs": number(_PLANNED, "mode, status"),
    "scheduler_planner_latency_seconds": number(
        _PLANNED, "mode, status", "count(latency_ms), sum(latency_ms)"
    ),
    "scheduler_planner_wait_seconds": number(_PLANNED, value="count(wait_ms), sum(wait_ms)"),
    "scheduler_planning_seconds": number(
        _PLANNED, value="count(latency_ms - wait_ms), sum(latency_ms - wait_ms)"
    ),
    "scheduler_segments": number(_SEGMENTS, "mode, status"),
    "scheduler_segment_retries": number(_LEASED, where="attempt > 1"),
    "scheduler_images": number(
        f"{_SEGMENTS} ARRAY JOIN ['true', 'false'] AS delta, "
        "[images_with_delta, toUInt64(images - images_with_delta)] AS n",
        "mode, delta", "sum(n)",
    ),
    "scheduler_findings": number(_SEGMENTS, "mode", "sum(new)"),
    "scheduler_findings_critical": number(_SEGMENTS, "mode", "sum(critical)"),
    "scheduler_findings_high": number(_SEGMENTS, "mode", "sum(high)"),
    "scheduler_findings_kev": number(_SEGMENTS, "mode", "sum(kev)"),
    "scheduler_runs_finished": number(_FINISHED, "result"),
    "scheduler_run_duration_seconds": number(
        _FINISHED, "mode, result", TOOK, "result != 'no_work'"
    ),
    "scheduler_dead_lettered": number(kind("queue.dead_lettered", _S), "queue"),
    "scheduler_schedules_missed": number(ends("schedule.missed", _DUE, _S)),
    "scheduler_schedules_caught_up": number(ends("schedule.caught_up", _DUE, _S)),
    "scheduler_queue_depth": number(_QUEUES, "queue", "sum(depth)"),
    "scheduler_queue_in_flight": number(_QUEUES, "queue", "sum(in_flight)"),
    "scheduler_queue_oldest_seconds": number(_QUEUES, "queue", f"max({age('oldest_at')})"),
    "scheduler_queue_dead_letters": number(_QUEUES, value="sum(dead_letters)"),
    "scheduler_schedules_behind": """
      SELECT fleet, count() FROM (
        SELECT fleet FROM scheduler_events FINAL WHERE schedule_id != '' AND due_at IS NOT NULL
        GROUP BY fleet, schedule_id
        HAVING argMax(kind, (due_at, kind = 'schedule.caught_up')) = 'schedule.missed'
      ) GROUP BY fleet""",
    "scheduler_runs_active": RUNS + number("runs", "mode", where="planned"),
    "scheduler_runs_planning": RUNS + number("runs", where="NOT planned"),
    "scheduler_backlog": RUNS + number("runs", "", "sum(todo)", "planned"),
    "scheduler_backlog_largest": RUNS + number("runs", "mode", "max(todo)", "planned"),
    "scheduler_runs_not_draining": RUNS
    + number("runs", where="planned AND todo > 0 AND got_on < now() - INTERVAL 10 MINUTE"),
    "scheduler_run_oldest_seconds": RUNS + number("runs", "state", f"max({age('since')})"),
}  # fmt: skip

# --- reconcilers ------------------------------------------------------------------------------

_C: Final = "reconciler_events"
_TICKS: Final = ends("reconciler.tick", "reconciler, tick_id", _C)
_EFFECTS, _MOVES = kind("reconciler.effect", _C), kind("work.moved", _C)
_LAST: Final = latest(_C, "kind = 'reconciler.tick'", "reconciler", "1 DAY")
#: Whether a tick is recent enough for its levels to be believed.
_FRESH: Final = (
    "occurred_at >= now() - greatest(toIntervalMillisecond(3 * interval_ms), INTERVAL 5 MINUTE)"
)
#: Words on violations that differ from the one before: they opened or closed.
_TURNS: Final = """(
  SELECT * FROM (
    SELECT *, lagInFrame(kind) OVER (
      PARTITION BY fleet, reconciler, invariant, entity ORDER BY occurred_at, kind DESC) AS before
    FROM reconciler_events FINAL WHERE kind LIKE 'reconciler.violation_%'
  ) WHERE kind != before
)"""
_BROKEN: Final = f"""(
  SELECT fleet, reconciler, invariant, entity, max(occurred_at) AS since FROM {_TURNS}
  GROUP BY fleet, reconciler, invariant, entity
  HAVING argMax(kind, (occurred_at, kind = 'reconciler.violation_closed')) LIKE '%opened'
)"""
_WORK: Final = latest(_C, "kind = 'work.moved'", "reconciler, work_id", "7 DAY")
_IS_OPEN: Final = "to_state IN ('open', 'in_progress', 'in_review')"

RECONCILERS: Final[Mapping[str, str]] = {
    "reconciler_ticks": number(_TICKS, "if(failed, 'failed', 'ok')"),
    "reconciler_tick_seconds": number(_TICKS, value="count(wall_ms), sum(wall_ms)"),
    "reconciler_events_drained": number(_TICKS, value="sum(events_drained)"),
    "reconciler_events_failed": number(_TICKS, value="sum(events_failed)"),
    "reconciler_actions": number(_TICKS, value="sum(actions)"),
    "reconciler_action_results": number(kind("reconciler.action", _C), "outcome"),
    "reconciler_effects_attempted": number(_TICKS, value="sum(effects_attempted)"),
    "reconciler_effects": number(
        f"{_TICKS} ARRAY JOIN ['succeeded', 'failed', 'unknown'] AS outcome_, [effects_succeeded, "
        "effects_failed, toUInt64(effects_attempted - effects_succeeded - effects_failed)] AS n",
        "outcome_", "sum(n)",
    ),
    "reconciler_effect_results": number(_EFFECTS, "outcome"),
    "reconciler_effect_seconds": number(_EFFECTS, "outcome", TOOK),
    "reconciler_violations_opened": number(_TURNS, where="kind LIKE '%opened'"),
    "reconciler_violations_closed": number(_TURNS, where="kind LIKE '%closed'"),
    "reconciler_work_moved": number(_MOVES, "to_state"),
    "reconciler_dispatch_failures": number(kind("work.dispatch_failed", _C)),
    "reconcilers": number(_LAST),
    "reconciler_last_tick_timestamp_seconds": number(
        _LAST, value="max(toUnixTimestamp64Milli(occurred_at)) / 1000"
    ),
    "reconciler_silent_seconds": number(_LAST, value=f"max({age('occurred_at')})"),
    "reconcilers_overdue": number(
        _LAST, where="occurred_at < now() - toIntervalMillisecond(3 * interval_ms)"
    ),
    "reconciler_last_tick_seconds": number(_LAST, "", "max(wall_ms) / 1000", _FRESH),
    "reconciler_pending_events": number(
        f"{_LAST} ARRAY JOIN ['new', 'retry'] AS state, [pending_new, pending_retry] AS n",
        "state", "sum(n)", _FRESH,
    ),
    "reconciler_pending_events_largest": number(
        f"{_LAST} ARRAY JOIN ['new', 'retry'] AS state, [pending_new, pending_retry] AS n",
        "state", "max(n)", _FRESH,
    ),
    "reconciler_pending_oldest_seconds": number(
        _LAST, "", "max(pending_oldest_ms) / 1000", _FRESH
    ),
    "reconciler_breaker_open": number(_LAST, "", "sum(breaker_open)", _FRESH),
    "reconciler_draining": number(_LAST, "", "sum(draining)", _FRESH),
    "reconciler_violations": number(_BROKEN),
    "reconciler_violation_oldest_seconds": number(_BROKEN, value=f"max({age('since')})"),
    "reconciler_work": number(_WORK, "to_state", where=_IS_OPEN),
    "reconciler_work_oldest_seconds": number(
        _WORK, "to_state", f"max({age('occurred_at')})", _IS_OPEN
    ),
    "reconciler_entities_in_loop": """
      SELECT fleet, uniqExact(reconciler, what) FROM (
        SELECT fleet, reconciler, if(kind = 'work.dispatch_failed', work_id, entity) AS what
        FROM reconciler_events FINAL
        WHERE kind IN ('reconciler.action', 'work.dispatch_failed') AND outcome != 'suppressed'
          AND occurred_at >= now() - INTERVAL 1 HOUR
        GROUP BY fleet, reconciler, kind, type, what HAVING count() > 10
      ) GROUP BY fleet""",
    "reconciler_work_flapping": """
      SELECT fleet, count() FROM (
        SELECT fleet, arraySort(groupArray((occurred_at, to_state))) AS path,
          arrayFirstIndex(move -> move.1 >= now() - INTERVAL 30 MINUTE, path) AS first,
          arraySlice(path.2, greatest(1, first - 1)) AS states,
          arrayCount(n -> has(arraySlice(states, 1, n - 1), states[n]), arrayEnumerate(states))
            AS returns
        FROM reconciler_events FINAL WHERE kind = 'work.moved' GROUP BY fleet, reconciler, work_id
        HAVING first > 0 AND returns > 3
      ) GROUP BY fleet""",
    "reconcilers_without_progress": f"""
      WITH busy AS (
        SELECT fleet, reconciler FROM {_TICKS}
        WHERE toStartOfMinute(occurred_at) >= now() - INTERVAL 1 HOUR
        GROUP BY fleet, reconciler HAVING sum(actions) > 200
      ), idle AS (
        SELECT fleet, reconciler FROM (
          SELECT fleet, reconciler, work_id, min(occurred_at) AS first,
            max(occurred_at) AS last, argMax(to_state, occurred_at) AS state
          FROM {_MOVES} GROUP BY fleet, reconciler, work_id
        ) GROUP BY fleet, reconciler
        HAVING countIf(state = 'closed' AND last >= now() - INTERVAL 1 HOUR) = 0
          AND countIf(state NOT IN ('closed', 'failed') AND first <= now() - INTERVAL 1 HOUR) > 0
      )
      SELECT fleet, count() FROM busy JOIN idle USING (fleet, reconciler) GROUP BY fleet""",
}  # fmt: skip

BY_FAMILY: Final[Mapping[str, Mapping[str, str]]] = {
    "runners": RUNNERS, "schedulers": SCHEDULERS, "reconcilers": RECONCILERS,
}  # fmt: skip
