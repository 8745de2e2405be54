"""Rows of a month of runners, schedulers and reconcilers, as queries over the jobs of
``panel_rows``: what those programs would have said."""

from __future__ import annotations

from typing import Final

#: Runners that never end, in each fleet, and how often (s) they say how they are and ask for work.
RUNNERS: Final = 10
SAY_S: Final = 60
#: Seconds between two ticks of a reconciler, one in each fleet; and two samples of a queue.
RECONCILE_S: Final = 10
QUEUE_S: Final = 15
#: Each has a part of the jobs: one of so many.
TASKS: Final = 10
RUNS: Final = 50
ACTIONS: Final = 5

_NAME: Final = f"concat('runner-', toString(cityHash64(n, 11) % {RUNNERS}))"
#: What every row says of itself; ``{{}}`` is what makes its id different from others of the job.
_SAID: Final = "concat(key, '/', {}) AS id, occurred_at AS received_at"

#: What is said because of a job: table and query.
OF_JOBS: Final[tuple[tuple[str, str], ...]] = (
    (
        "runner_events",
        f"SELECT fleet, {_NAME} AS runner, runner AS subject, step.1 AS kind,"
        f" step.2 AS occurred_at, {_SAID.format('toString(i)')}, toString(n) AS task_id,"
        " key AS job_id, queued_at,"
        " multiIf(kind = 'task.finished', conclusion, kind LIKE 'report.%',"
        " if(luck < 0.01, 'error', 'success'), '') AS result,"
        " multiIf(kind = 'task.finished', toUInt64(run_ms), kind LIKE 'report.%',"
        " 5 + cityHash64(n, i) % 200, NULL) AS duration_ms,"
        " if(kind = 'report.log', ['interval', 'batch', 'latency'][1 + i % 3], '') AS trigger,"
        " if(kind = 'report.log', 10 + cityHash64(n, i) % 90, 0) AS rows, rows * 80 AS bytes,"
        " 3 AS steps, if(kind = 'task.finished', 'own', '') AS end_cause"
        " FROM {piece} ARRAY JOIN [('task.assigned', claimed_at), ('task.started', started_at),"
        " ('report.log', started_at + 5), ('report.log', started_at + 15),"
        " ('report.state', started_at + 20), ('report.log', completed_at - 1),"
        " ('task.finished', completed_at)] AS step, [1, 2, 3, 4, 5, 6, 7] AS i"
        f" WHERE NOT never AND n % {TASKS} = 0",
    ),
    (
        "scheduler_events",
        f"SELECT fleet, toString(n) AS run_id, 'nightly' AS schedule_id, step.1 AS kind,"
        f" step.2 AS occurred_at, {_SAID.format('step.1')},"
        " if(n % 3 = 0, 'content_refresh', 'analysis_only') AS mode,"
        " if(kind = 'run.planned', if(luck < 0.01, 'failed', 'enqueued'), '') AS status,"
        " if(kind = 'run.planned', toUInt64(intDiv(queue_ms, 2)), NULL) AS wait_ms,"
        " if(kind = 'run.planned', toUInt64(queue_ms), NULL) AS latency_ms, 20 AS images,"
        " 5 AS segments, if(kind = 'run.finished', if(luck < 0.02, 'error', 'completed'), '')"
        " AS result, if(kind = 'run.finished', toUInt64(run_ms), NULL) AS duration_ms"
        " FROM {piece} ARRAY JOIN [('run.created', queued_at), ('run.planned', started_at),"
        " ('run.finished', completed_at)] AS step"
        f" WHERE NOT never AND n % {RUNS} = 0",
    ),
    (
        "scheduler_events",
        "SELECT fleet, toString(n) AS run_id, concat('s', toString(i)) AS segment_id,"
        " if(n % 3 = 0, 'content_refresh', 'analysis_only') AS mode, step.1 AS kind,"
        f" step.2 AS occurred_at, {_SAID.format('step.1, segment_id')},"
        " if(kind = 'segment.finished', if(luck < 0.01, 'persist_failed', 'completed'), '')"
        " AS status, 4 AS images, if(kind = 'segment.finished', i % 2, 0) AS images_with_delta,"
        " images_with_delta * 3 AS new, images_with_delta AS high,"
        " if(kind = 'segment.finished', toUInt64(run_ms / 5), NULL) AS duration_ms, 1 AS attempt"
        " FROM (SELECT *, i FROM {piece} ARRAY JOIN [1, 2, 3, 4, 5] AS i)"
        " ARRAY JOIN [('segment.leased', started_at), ('segment.finished', completed_at)] AS step"
        f" WHERE NOT never AND n % {RUNS} = 0",
    ),
    (
        "reconciler_events",
        "SELECT fleet, 'main' AS reconciler, step AS kind, started_at AS occurred_at,"
        f" {_SAID.format('step')}, concat('dispatch-', toString(n % 5)) AS type, key AS entity,"
        " if(kind = 'reconciler.action', if(luck < 0.01, 'failed', 'applied'),"
        " if(luck < 0.01, 'failed', 'succeeded')) AS outcome,"
        " if(kind = 'reconciler.effect', 10 + cityHash64(n) % 500, NULL) AS duration_ms"
        " FROM {piece} ARRAY JOIN ['reconciler.action', 'reconciler.effect'] AS step"
        f" WHERE NOT never AND n % {ACTIONS} = 0",
    ),
    (
        "reconciler_events",
        "SELECT fleet, 'main' AS reconciler, 'work.moved' AS kind, step.2 AS occurred_at,"
        f" {_SAID.format('step.1')}, key AS work_id, step.1 AS to_state"
        " FROM {piece} ARRAY JOIN [('open', queued_at), ('in_progress', started_at),"
        " ('in_review', completed_at), ('closed', completed_at + 60)] AS step"
        f" WHERE NOT never AND n % {TASKS} = 0",
    ),
    (
        "reconciler_events",
        "SELECT fleet, 'main' AS reconciler, step.1 AS kind, step.2 AS occurred_at,"
        f" {_SAID.format('step.1')}, 'claimed_has_worker' AS invariant, key AS entity,"
        " 'no worker has it' AS message"
        " FROM {piece} ARRAY JOIN [('reconciler.violation_opened', started_at),"
        " ('reconciler.violation_closed', completed_at)] AS step WHERE luck < 0.0005",
    ),
)


def levels(fleets: str) -> tuple[tuple[str, str, int], ...]:
    """What is said whatever the number of jobs: table, query, and seconds between two.

    Args:
        fleets: their names, as elements of an array in SQL.
    """
    at = (
        "fromUnixTimestamp64Milli(({{begin}} + number * {0}) * 1000, 'UTC') AS occurred_at,"
        " occurred_at AS received_at"
    )
    of_fleets = f" FROM numbers({{ticks}}) ARRAY JOIN [{fleets}] AS fleet"
    return (
        (
            "runner_events",
            f"SELECT fleet, {at.format(SAY_S)}, concat('runner-', toString(r)) AS runner,"
            " runner AS subject, step AS kind, concat(fleet, runner, step, toString(occurred_at))"
            " AS id, if(step = 'runner.poll', 'empty', '') AS result,"
            " if(step = 'runner.poll', 20 + cityHash64(number, r) % 3000, NULL) AS duration_ms,"
            " if(step = 'runner.status', 2, NULL) AS capacity,"
            " if(step = 'runner.status', cityHash64(number, r) % 3, NULL) AS running,"
            " if(step = 'runner.status', number * 60000, NULL) AS uptime_ms,"
            " if(step = 'runner.status', 2000, NULL) AS backoff_ms,"
            " if(step = 'runner.status', 0, NULL) AS buffer_rows,"
            " step = 'runner.status' AS ready"
            f"{of_fleets} ARRAY JOIN range({RUNNERS}) AS r"
            " ARRAY JOIN ['runner.poll', 'runner.status'] AS step",
            SAY_S,
        ),
        (
            "scheduler_events",
            f"SELECT fleet, {at.format(QUEUE_S)}, 'queue.depth' AS kind, queue,"
            " concat(fleet, queue, toString(occurred_at)) AS id,"
            " cityHash64(number, queue) % 40 AS depth, 3 AS in_flight, 1 AS dead_letters,"
            " occurred_at - 20 AS oldest_at"
            f"{of_fleets} ARRAY JOIN ['planner', 'runner'] AS queue",
            QUEUE_S,
        ),
        (
            "reconciler_events",
            f"SELECT fleet, {at.format(RECONCILE_S)}, 'reconciler.tick' AS kind,"
            " 'main' AS reconciler, concat(fleet, toString(occurred_at)) AS id, id AS tick_id,"
            f" {RECONCILE_S}000 AS interval_ms, 50 + cityHash64(number, fleet) % 900 AS wall_ms,"
            " 5 AS events_drained, cityHash64(number) % 4 AS actions,"
            " map('dispatch', toUInt64(actions)) AS actions_by_type, 1 AS effects_attempted,"
            " 1 AS effects_succeeded, 0 AS violations, 2 AS pending_new, 400 AS pending_oldest_ms"
            f"{of_fleets}",
            RECONCILE_S,
        ),
    )
