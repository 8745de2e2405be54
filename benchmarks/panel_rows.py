"""Rows of a month, made by ClickHouse itself: what the sink would have written.

Every value follows from the number of the job, so columns of different tables agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from clickhouse_driver import Client

from benchmarks import panel_telemetry
from benchmarks.bench import say

DAY_S: Final = 86_400
PARTITIONS: Final = 8
FLEETS: Final = (
    "linux-small", "linux-large", "linux-arm", "macos", "windows", "gpu", "ubuntu-latest", "deploy",
)  # fmt: skip
#: Written in so many pieces a day.
PIECES: Final = 2
#: Seconds between two ticks, and between two samples of a pool.
TICK_S: Final = 5
SAMPLE_S: Final = 15
#: Jobs of the last minutes are not over.
LIVE_S: Final = 900

_CHANCE: Final = "(cityHash64(n, {0}) % 1000000 + 0.5) / 1000000"
_FLEET_NAMES: Final = ", ".join(f"'{fleet}'" for fleet in FLEETS)
_G: Final = 1.01 / 0.99

#: All jobs, once; the tables are filled from it.
_MADE: Final = f"""
CREATE TABLE made ENGINE = MergeTree ORDER BY n AS
SELECT number AS n, concat('github:github.com:', toString(41000000000 + n)) AS key,
  [{_FLEET_NAMES}][1 + cityHash64(n, 1) % {len(FLEETS)}] AS fleet,
  concat('acme/repo-', toString(cityHash64(intDiv(n, 8), 2) % 60)) AS repo,
  concat('workflow ', toString(cityHash64(intDiv(n, 8), 3) % 6)) AS workflow,
  concat('test (', toString(n % 8), ')') AS name,
  if(cityHash64(intDiv(n, 8), 4) % 5 < 2, 'main',
    concat('feature/', toString(cityHash64(intDiv(n, 8), 4) % 3000))) AS branch,
  lower(hex(cityHash64(intDiv(n, 8), 5))) AS sha, intDiv(n, 8) + 1 AS run_id,
  if({_CHANCE.format(6)} < 0.05, 2, 1) AS run_attempt, concat(fleet, '-', toString(n)) AS runner,
  {_CHANCE.format(7)} AS luck,
  multiIf(luck < 0.84, 'success', luck < 0.93, 'failure', luck < 0.97, 'cancelled',
    luck < 0.98, 'timed_out', 'skipped') AS conclusion,
  luck > 0.95 AND luck < 0.97 OR conclusion = 'skipped' AS never,
  toUInt64(-log({_CHANCE.format(8)}) * 20000) AS queue_ms,
  toUInt64(30000 - log({_CHANCE.format(9)}) * 300000) AS run_ms,
  fromUnixTimestamp64Milli(toInt64({{begin_ms}} + n * {{step_ms}}), 'UTC') AS queued_at,
  queued_at + toIntervalMillisecond(intDiv(queue_ms, 2)) AS claimed_at,
  queued_at + toIntervalMillisecond(queue_ms) AS started_at,
  started_at + toIntervalMillisecond(if(never, 0, run_ms)) AS completed_at,
  n % {PARTITIONS} AS part
FROM numbers({{jobs}})"""

_OF_JOB: Final = (
    "key, fleet, repo, workflow, name, branch, sha, run_id, run_attempt, runner AS runner_name,"
    " concat('https://github.com/', repo, '/actions/runs/', toString(run_id)) AS url,"
    " 'github' AS provider, 'github.com' AS host, queued_at AS received_at, queued_at"
)
_TIMED: Final = (
    "if(never, NULL, claimed_at) AS claimed_at, if(never, NULL, started_at) AS started_at,"
    " if(never, NULL, queue_ms) AS queue_ms, if(never, NULL, queue_ms - intDiv(queue_ms, 2))"
    " AS claim_to_start_ms"
)
_ENDED: Final = (
    "conclusion, completed_at, if(never, NULL, run_ms) AS run_ms,"
    " if(never, NULL, queue_ms + run_ms) AS total_ms,"
    " if(never, if(conclusion = 'skipped', 0, queue_ms), NULL) AS abandoned_ms"
)
_OVER: Final = "completed_at < {over}"

#: What is written of a piece, by table: columns come from the names of the query.
_TABLES: Final[tuple[tuple[str, str], ...]] = (
    (
        "job_timings",
        f"SELECT {_OF_JOB}, {_TIMED}, {_ENDED}, {{rev}} AS rev, 1 + (luck < 0.03) AS claims,"
        f" completed_at AS occurred_at FROM {{piece}} WHERE {_OVER}",
    ),
    (
        "jobs",
        f"SELECT {_OF_JOB}, {_TIMED}, {_ENDED}, {{rev}} AS rev, {{rev}} AS facts,"
        " 'completed' AS status, completed_at AS since, completed_at AS occurred_at,"
        f" ['c'] AS claims FROM {{piece}} WHERE {_OVER} AND completed_at > {{kept}}",
    ),
    (
        "jobs",
        f"SELECT {_OF_JOB}, if(started_at < {{end}}, claimed_at, NULL) AS claimed_at,"
        " if(started_at < {end}, started_at, NULL) AS started_at, {rev} AS rev, {rev} AS facts,"
        " if(started_at < {end}, 'running', 'queued') AS status,"
        " if(started_at < {end}, started_at, queued_at) AS since, since AS occurred_at,"
        f" ['c'] AS claims FROM {{piece}} WHERE NOT ({_OVER})",
    ),
    (
        "job_transitions",
        "SELECT key, fleet, repo, {rev} AS rev, queued_at AS received_at, step.1 AS status,"
        " step.2 AS at, if(status IN ('claimed', 'starting'), 'c', '') AS claim,"
        " if(status = 'completed', conclusion, '') AS cause, runner, 'provider' AS clock"
        " FROM {piece} ARRAY JOIN arrayFilter(s -> NOT never OR s.1 IN ('queued', 'completed'),"
        " [('queued', queued_at), ('claimed', claimed_at), ('starting', claimed_at),"
        " ('running', started_at), ('completed', completed_at)]) AS step WHERE at < {end}",
    ),
    (
        "job_steps",
        "SELECT key, fleet, repo, workflow, name AS job_name, {rev} AS rev,"
        " queued_at AS received_at, number, concat('step ', toString(number)) AS name,"
        " conclusion, started_at, completed_at, intDiv(run_ms, 3) AS run_ms"
        f" FROM {{piece}} ARRAY JOIN [1, 2, 3] AS number WHERE NOT never AND {_OVER}",
    ),
    (
        "stalls",
        "SELECT key, 1 AS n, {rev} AS rev, queued_at AS received_at, fleet, repo,"
        " 'orphan' AS kind, claimed_at AS since, started_at AS opened_at, started_at AS left_at,"
        " queue_ms AS stranded_ms FROM {piece} WHERE luck < 0.005",
    ),
    (
        "outcomes",
        "SELECT key, concat('requeue|', key) AS command_id, 'command.ended' AS kind,"
        " started_at AS at, 'hook' AS via, key AS job_key, fleet, 'requeue' AS command,"
        " 1 AS attempt, 1 AS n, 'orphan' AS stall, claimed_at AS since, started_at AS opened_at,"
        " 'done' AS result FROM {piece} WHERE luck < 0.005",
    ),
    (
        "events_raw",
        "SELECT 'runners.lifecycle' AS topic, part AS partition, n * 3 + i AS offset,"
        " concat(key, '/', toString(i)) AS id, kinds[i] AS kind, 'dispatcher' AS source,"
        " times[i] AS occurred_at, occurred_at AS received_at, key, 'github.com' AS host,"
        ' concat(\'{{"kind":"\', kind, \'","key":"\', key, \'","fleet":"\', fleet,'
        ' \'","claim":"c","runner":{{"name":"\', runner, \'"}},"runner_host":"vm-\','
        ' toString(n % 400), \'","source":"dispatcher","version":1}}\') AS payload'
        " FROM (SELECT *, ['job.claimed', 'job.minted', 'job.started'] AS kinds,"
        " [claimed_at, claimed_at, started_at] AS times FROM {piece} WHERE NOT never)"
        " ARRAY JOIN [1, 2, 3] AS i",
    ),
    (
        "events_raw",
        "SELECT 'runners.webhooks' AS topic, part AS partition, n * 2 + i AS offset,"
        " concat(key, '/w', toString(i)) AS id, 'github.workflow_job' AS kind, 'gateway' AS source,"
        " [queued_at, completed_at][i] AS occurred_at, occurred_at AS received_at, key,"
        ' \'github.com\' AS host, concat(\'{{"action":"queued","job":"\', key, \'","pad":"\','
        " repeat(sha, 12), '\"}}') AS payload FROM {piece} ARRAY JOIN [1, 2] AS i",
    ),
    (
        "dispatch_events",
        "SELECT fleet, 'dispatch.request' AS kind, claimed_at AS occurred_at,"
        " concat(key, '/', toString(i)) AS id, occurred_at AS received_at,"
        " ['served', 'empty'][i] AS outcome, 5 + intDiv(queue_ms, 50) AS duration_ms"
        " FROM {piece} ARRAY JOIN [1, 2] AS i WHERE NOT never",
    ),
    (
        "pool_events",
        "SELECT fleet, 'machine.boot' AS kind, claimed_at AS occurred_at, key AS id,"
        " occurred_at AS received_at, if(luck < 0.01, 'failed', 'ready') AS outcome,"
        " 10000 + queue_ms AS duration_ms FROM {piece} WHERE NOT never",
    ),
    *panel_telemetry.OF_JOBS,
)

#: What is written of a day whatever the number of jobs: ``{begin}`` seconds, ``{ticks}`` of them.
_LEVELS: Final[tuple[tuple[str, str, int], ...]] = (
    (
        "gauges",
        f"SELECT fleet, status, fromUnixTimestamp64Milli(({{begin}} + number * {TICK_S}) * 1000,"
        " 'UTC') AS occurred_at, partition, occurred_at AS received_at,"
        " cityHash64(number, partition, status, fleet) % 9 AS count,"
        " if(count = 0, 0, cityHash64(number, partition) % 200000) AS oldest_ms"
        f" FROM numbers({{ticks}}) ARRAY JOIN range({PARTITIONS}) AS partition"
        f" ARRAY JOIN [{_FLEET_NAMES}] AS fleet"
        " ARRAY JOIN ['queued', 'claimed', 'running'] AS status",
        TICK_S,
    ),
    (
        "pool_events",
        f"SELECT fleet, 'pool.sample' AS kind, fromUnixTimestamp64Milli(({{begin}} + number *"
        f" {SAMPLE_S}) * 1000, 'UTC') AS occurred_at, concat(fleet, pool, toString(occurred_at))"
        " AS id, occurred_at AS received_at, pool, 20 AS desired, 18 AS observed, 40 AS max,"
        " 16 AS ready, cityHash64(number, pool) % 5 AS idle, 16 - idle AS occupied, 2 AS booting,"
        " occurred_at - 20 AS booting_since FROM numbers({ticks})"
        f" ARRAY JOIN ['a', 'b'] AS pool ARRAY JOIN [{_FLEET_NAMES}] AS fleet",
        SAMPLE_S,
    ),
    (
        "pool_events",
        f"SELECT fleet, 'queue.sample' AS kind, fromUnixTimestamp64Milli(({{begin}} + number *"
        f" {SAMPLE_S}) * 1000, 'UTC') AS occurred_at, concat(fleet, toString(occurred_at)) AS id,"
        " occurred_at AS received_at, cityHash64(number) % 9 AS queued, 1 AS withheld,"
        f" occurred_at - 30 AS dispatchable_since FROM numbers({{ticks}})"
        f" ARRAY JOIN [{_FLEET_NAMES}] AS fleet",
        SAMPLE_S,
    ),
    (
        "pool_events",
        "SELECT '' AS fleet, 'accounts.sample' AS kind, fromUnixTimestamp64Milli(({begin} + number"
        " * 60) * 1000, 'UTC') AS occurred_at, toString(occurred_at) AS id,"
        " occurred_at AS received_at, 12 AS enabled FROM numbers({ticks})",
        60,
    ),
    *panel_telemetry.levels(_FLEET_NAMES),
)

_BIN: Final = f"toInt32(ceil(log(greatest(ms, 1)) / log({_G!r})))"
#: Windows of a piece: each partition adds its own.
_WINDOWS: Final = f"""
SELECT fleet, {{size}} AS size_s, toStartOfInterval(at, INTERVAL {{size}} second) AS start,
  part AS partition, family, {{rev}} AS rev, 1 AS closed, start AS occurred_at, count() AS count,
  sum(ms) AS sum_ms, max(ms) AS max_ms, countIf(ms = 0) AS zeros,
  sumMapIf(map({_BIN}, toUInt64(1)), ms > 0) AS bins
FROM (
  SELECT fleet, part, t.1 AS family, t.2 AS at, t.3 AS ms FROM {{piece}}
  ARRAY JOIN [('queue', started_at, queue_ms), ('claim_to_start', started_at, intDiv(queue_ms, 2)),
    ('run', completed_at, run_ms), ('total', completed_at, queue_ms + run_ms),
    ('stranded.orphan', started_at, if(luck < 0.005, queue_ms, 0))] AS t
  WHERE NOT never AND completed_at < {{over}} AND (t.1 != 'stranded.orphan' OR luck < 0.005)
)
GROUP BY fleet, part, start, family"""
_CONCLUSIONS: Final = """
SELECT fleet, {size} AS size_s, toStartOfInterval(completed_at, INTERVAL {size} second) AS start,
  part AS partition, {rev} AS rev, 1 AS closed,
  sumMap(map(conclusion, toUInt64(1))) AS conclusions
FROM {piece} WHERE completed_at < {over} GROUP BY fleet, part, start"""


class _Writer:
    """INSERT ... SELECT, of those columns that the table has."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._columns: dict[str, str] = {}

    def write(self, table: str, template: str, values: Mapping[str, object]) -> None:
        select = template.format(**values)
        if template not in self._columns:
            made = [name for name, *_ in self._client.execute(f"DESCRIBE ({select})")]
            known = {name for name, *_ in self._client.execute(f"DESCRIBE TABLE {table}")}
            self._columns[template] = ", ".join(f"`{name}`" for name in made if name in known)
        columns = self._columns[template]
        self._client.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM ({select})")


def fill(client: Client, jobs: int, days: int, end_s: int) -> dict[str, int]:
    """Write so many jobs, spread over so many days before ``end_s``; rows by table."""
    begin_s = end_s - days * DAY_S
    at = {
        "end": f"toDateTime64({end_s}, 3, 'UTC')",
        "over": f"toDateTime64({end_s - 60}, 3, 'UTC')",
        "kept": f"toDateTime64({end_s - 8 * DAY_S}, 3, 'UTC')",
    }
    client.execute(
        _MADE.format(begin_ms=begin_s * 1000, step_ms=days * DAY_S * 1000 / jobs, jobs=jobs)
    )
    writer = _Writer(client)

    def piece(first: int, last: int, more: str = "") -> str:
        return f"(SELECT * FROM made WHERE n >= {first} AND n < {last}{more})"

    pieces = days * PIECES
    before = 0
    for number in range(pieces):
        first, last = jobs * number // pieces, jobs * (number + 1) // pieces
        # And what came late about the piece before.
        late = {**at, "rev": 2, "piece": piece(before, first, " AND n % 50 = 0")}
        for table, template in _TABLES:
            writer.write(table, template, {**at, "rev": 1, "piece": piece(first, last)})
            writer.write(table, template, late)
        before = first
    say(f"panels: {jobs:,} jobs are written")
    for day in range(days):
        whole = piece(jobs * day // days, jobs * (day + 1) // days)
        for size in (60, 300, 3600):
            values = {**at, "piece": whole, "rev": day + 1, "size": size}
            writer.write("windows", _WINDOWS, values)
            writer.write("window_conclusions", _CONCLUSIONS, values)
        for table, template, every in _LEVELS:
            begin = begin_s + day * DAY_S
            writer.write(table, template, {"begin": begin, "ticks": DAY_S // every})
    client.execute("DROP TABLE made")
    tables = {table for table, *_ in (*_TABLES, *_LEVELS)} | {"windows", "window_conclusions"}
    return {table: client.execute(f"SELECT count() FROM {table}")[0][0] for table in sorted(tables)}
