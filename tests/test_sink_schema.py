"""The migrations and the views, on a real ClickHouse."""

from __future__ import annotations

import itertools
import math
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from clickhouse_driver import Client

from pipeline.local import EmbeddedClickHouse
from sinks import rows, schema
from sinks.declared import columns
from topics.models import JobAttributes

#: A recent full hour: rows older than their table's TTL would be gone at once.
T0 = int(time.time()) // 3_600 * 3_600_000
GAMMA = 1.01 / 0.99


_databases = (f"test_schema_{number}" for number in itertools.count())


@pytest.fixture
def url(server: EmbeddedClickHouse) -> str:
    """A database of its own, not created yet."""
    return schema.with_database(server.url, next(_databases))


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    schema.apply(url)
    with schema.connected(url) as connection:
        yield connection


def insert(client: Client, table: rows.Table, **columns: Any) -> None:
    names, values = list(columns), list(columns.values())
    assert set(names) <= set(table.columns)
    listed = ", ".join(f"`{name}`" for name in names)
    client.execute(f"INSERT INTO {table.name} ({listed}) VALUES", [tuple(values)])


def test_apply_is_idempotent_and_reports(url: str) -> None:
    names = tuple(f"{each.version:04d}_{each.name}" for each in schema.migrations())
    assert schema.pending(url) == schema.migrations()
    first = schema.apply(url)
    assert (first.applied, first.already) == (names, ())
    second = schema.apply(url)
    assert (second.applied, second.already) == ((), names)
    assert schema.pending(url) == ()


def test_every_statement_can_be_repeated(url: str) -> None:
    """A crash between the last statement and the record of it repeats them all."""
    schema.apply(url)
    with schema.connected(url) as client:
        client.execute("TRUNCATE TABLE schema_migrations")
    assert len(schema.apply(url).applied) == len(schema.migrations())


def test_statements_keep_the_rules_of_the_folder() -> None:
    for migration in schema.migrations():
        for statement in migration.statements:
            assert re.match(
                r"CREATE TABLE IF NOT EXISTS|CREATE OR REPLACE VIEW|ALTER TABLE \w+\s+\w+ \w+ IF"
                r"|ALTER TABLE \w+ MODIFY (COMMENT|SETTING)",
                statement,
            ), statement[:60]
            assert statement.count("'") % 2 == 0


def test_many_appliers_at_once(url: str) -> None:
    errors: list[BaseException] = []
    together = threading.Barrier(6)

    def applier() -> None:
        together.wait()
        try:
            schema.apply(url)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=applier) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert schema.pending(url) == ()


def test_an_edited_migration_is_refused(url: str) -> None:
    schema.apply(url)
    first, *rest = schema.migrations()
    with pytest.raises(schema.EditedMigration, match="0001_"):
        schema.apply(url, [replace(first, text=first.text + "\n-- touched"), *rest])


def test_an_older_program_stops_before_a_newer_database(url: str) -> None:
    schema.apply(url)
    with pytest.raises(schema.SchemaError, match="newer"):
        schema.apply(url, schema.migrations()[:1])


def test_the_database_of_a_url() -> None:
    assert schema.database_of("clickhouse://h:9000") == "runnerstream"
    assert schema.database_of("clickhouse://h:9000/ci?secure=1") == "ci"
    with pytest.raises(ValueError, match="database"):
        schema.database_of("clickhouse://h:9000/a`b")


def test_tables_are_made_for_retries(client: Client) -> None:
    """Without a window the token of an insert is ignored; without a comment nobody knows."""
    tables = client.execute(
        "SELECT name, engine, create_table_query, sorting_key, partition_key, comment"
        " FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%%MergeTree'"
    )
    notes = {"schema_migrations", "log_epochs"}
    assert {name for name, *_ in tables} == {*(t.name for t in rows.TABLES), *notes}
    for name, engine, text, sorting, partition, comment in tables:
        assert engine == "ReplacingMergeTree", name
        assert "non_replicated_deduplication_window" in text, name
        assert comment, name
        if name in notes:
            continue
        assert "TTL " in text, name
        # A partition key that is no function of the row identity keeps old versions for ever.
        fixed = re.findall(r"\w+", partition.replace("toYYYYMM", ""))
        assert set(fixed) <= set(re.findall(r"\w+", sorting)), name


def test_every_column_of_every_table_and_view_says_what_it_is(client: Client) -> None:
    silent = client.execute(
        "SELECT table, name FROM system.columns WHERE database = currentDatabase() AND comment = ''"
    )
    assert silent == []
    nameless = client.execute(
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND comment = ''"
    )
    assert nameless == []
    described = client.execute("DESCRIBE TABLE jobs_latest")
    assert {name: comment for name, _, _, _, comment, *_ in described}["rev"].startswith("How many")


def test_every_written_column_exists_and_every_column_is_written(client: Client) -> None:
    """After all migrations, on a real server: an ALTER TABLE counts like a CREATE TABLE."""
    for table in rows.TABLES:
        found = client.execute(
            "SELECT name FROM system.columns WHERE database = currentDatabase()"
            " AND table = %(table)s",
            {"table": table.name},
        )
        assert sorted(table.columns) == sorted(name for (name,) in found), table.name


def test_a_dropped_table_or_view_is_made_again(url: str) -> None:
    """With what later migrations have changed, and with nothing else touched."""
    schema.apply(url)
    everything = [*(table.name for table in rows.TABLES), "log_epochs", "queue_now", "jobs_latest"]
    with schema.connected(url) as client:
        before = client.execute(_COLUMNS)
        for name in everything:
            insert(client, rows.GAUGES, fleet="f", status="queued", occurred_at=T0, count=1)
            client.execute(f"DROP TABLE {name} SYNC")
            assert schema.absent(url) == (name,)
            report = schema.apply(url)
            assert (report.applied, report.mended) == ((), (name,))
            assert client.execute(_COLUMNS) == before
            assert schema.absent(url) == ()
            rows_left = client.execute("SELECT count() > 0 FROM gauges")
            assert rows_left == [(name != "gauges",)]
    assert schema.apply(url).mended == ()


@pytest.mark.parametrize(
    "column", ["gauges.received_at", "jobs.facts", "jobs.actor", "job_timings.labels"]
)
def test_a_dropped_column_is_made_again(url: str, column: str) -> None:
    schema.apply(url)
    table, name = column.split(".")
    with schema.connected(url) as client:
        before = client.execute(_COLUMNS)
        client.execute(f"ALTER TABLE {table} DROP COLUMN {name}")
        assert schema.absent(url) == (column,)
        assert schema.apply(url).mended == (column,)
        assert sorted(client.execute(_COLUMNS)) == sorted(before)
        assert schema.apply(url).mended == ()


def test_the_columns_are_read_from_the_migrations_whole(client: Client) -> None:
    told = set(columns(schema.migrations()))
    found = client.execute(
        "SELECT table, name FROM system.columns WHERE database = currentDatabase()"
        " AND table IN (SELECT name FROM system.tables WHERE engine != 'View')"
        " AND table != 'schema_migrations'"
    )
    assert told == set(found)


_COLUMNS = (
    "SELECT table, name, type, comment FROM system.columns WHERE database = currentDatabase()"
    " ORDER BY table, position"
)


def test_the_first_release_is_upgraded(url: str) -> None:
    """Its rows are versioned by rev, and its tombstones by 2^63: what comes now is later."""
    schema.apply(url, schema.migrations()[:2])
    with schema.connected(url) as client:
        client.execute(
            "INSERT INTO jobs (key, rev, deleted, received_at) VALUES",
            [("hidden", 2**63, 1, T0), ("shown", 7, 0, T0)],
        )
    assert schema.apply(url).applied[0] == "0003_comments_and_places"
    with schema.connected(url) as client:
        assert client.execute("SELECT key, rev FROM jobs_latest") == [("shown", 7)]
        for key in ("hidden", "shown"):
            insert(client, rows.JOBS, key=key, rev=rows.version(1, 0), facts=2, received_at=T0)
        found = client.execute("SELECT key, rev FROM jobs_latest ORDER BY key")
        assert found == [("hidden", 2), ("shown", 2)]


ADDED = ("actor", "trigger", "pull_request", "head_repo")


@pytest.mark.parametrize("crash_after", [0, 3, 9, 12, None])
def test_old_rows_keep_their_values_beside_new_columns(url: str, crash_after: int | None) -> None:
    """Also when the sink dies in the middle of the migration and begins it again."""
    old = {"key": "j", "received_at": T0, "fleet": "f", "repo": "acme/app", "branch": "main"}
    three = schema.migrations()[:3]
    schema.apply(url, three)
    with schema.connected(url) as client:
        insert(client, rows.JOBS, rev=rows.version(1, 3), facts=4, labels=["x64"], **old)
        insert(client, rows.JOB_TIMINGS, rev=4, labels=["x64"], queue_ms=70, **old)
        insert(client, rows.JOB_TRANSITIONS, key="j", rev=4, status="queued", at=T0, received_at=T0)
        before = {
            table: client.execute(f"SELECT * FROM {table}", with_column_types=True)
            for table in ("jobs", "job_timings", "job_transitions", "jobs_latest")
        }
        for statement in schema.migrations()[3].statements[:crash_after]:
            client.execute(statement)
    assert schema.apply(url).applied[0] == "0004_attributes_and_steps"
    with schema.connected(url) as client:
        for table, (values, types) in before.items():
            listed = ", ".join(f"`{name}`" for name, _ in types)
            assert client.execute(f"SELECT {listed} FROM {table}") == values, table
        for table in ("jobs", "job_timings", "jobs_latest"):
            found = client.execute(f"SELECT {', '.join(ADDED)} FROM {table}")
            assert found == [("", "", 0, "")], table
        assert client.execute("SELECT sha, url, pool FROM job_timings") == [("", "", "")]
        assert client.execute("SELECT count() FROM job_steps") == [(0,)]


def test_everything_that_a_job_is_has_its_column_in_the_view(client: Client) -> None:
    found = {name for name, *_ in client.execute("DESCRIBE TABLE jobs_latest")}
    assert set(JobAttributes.model_fields) <= found


def test_a_step_is_one_row_and_the_job_that_knows_more_says_it(client: Client) -> None:
    for order in itertools.permutations((1, 2, 3)):
        client.execute("TRUNCATE TABLE job_steps")
        for rev in order:
            for number in (1, 2):
                ended = {"conclusion": "success", "run_ms": rev} if rev > 1 else {}
                insert(client, rows.JOB_STEPS, key="j", number=number, rev=rev, name=f"s{number}",
                       received_at=T0, **ended)  # fmt: skip
        found = client.execute(
            "SELECT number, rev, conclusion, run_ms FROM job_steps FINAL ORDER BY number"
        )
        assert found == [(1, 3, "success", 3), (2, 3, "success", 3)]


def test_the_lives_of_a_topic_are_counted(client: Client) -> None:
    assert [schema.epoch(client, "t", log) for log in ("a", "a", "b", "a", "")] == [1, 1, 2, 1, 3]
    assert schema.epoch(client, "u", "a") == 1
    # Should the notes be lost, what comes is later than everything that is there.
    insert(client, rows.JOBS, key="j", rev=rows.version(5, 9), received_at=T0)
    client.execute("TRUNCATE TABLE log_epochs")
    assert schema.epoch(client, "t", "c") == 6


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_a_job_whose_fleet_and_times_change_is_one_row(
    client: Client, order: tuple[int, ...]
) -> None:
    """The row identity is the job key only: else old versions stay beside new ones."""
    for rev in order:
        month = rev * 31 * 86_400_000
        common: dict[str, Any] = {
            "key": "j",
            "rev": rev,
            "received_at": T0,
            "fleet": f"fleet-{rev}",
        }
        insert(client, rows.JOBS, status="completed", completed_at=T0 - month, **common)
        insert(client, rows.JOB_TIMINGS, completed_at=T0 - month, queue_ms=rev, **common)
        insert(client, rows.JOB_TRANSITIONS, status="queued", claim="", at=T0 - month, **common)
    for table in ("jobs_latest", "job_timings FINAL", "job_transitions FINAL"):
        assert client.execute(f"SELECT key, rev, fleet FROM {table}") == [("j", 3, "fleet-3")]
    assert client.execute("SELECT fleet, jobs, queue_p50_ms FROM timings_5m") == [("fleet-3", 1, 3)]


def test_a_deleted_job_stays_deleted_until_it_is_heard_of_again(client: Client) -> None:
    def put(offset: int, **columns: Any) -> None:
        insert(client, rows.JOBS, key="j", rev=rows.version(1, offset), received_at=T0, **columns)

    for _ in range(2):  # the second time as after a crash
        put(8, deleted=1)
        put(7, deleted=0, facts=40, status="running")
        assert client.execute("SELECT count() FROM jobs_latest") == [(0,)]
        client.execute("OPTIMIZE TABLE jobs FINAL")
        put(6, deleted=0, facts=39, status="queued")
        assert client.execute("SELECT count() FROM jobs_latest") == [(0,)]
    for _ in range(2):
        put(9, deleted=0, facts=1, status="completed")
        put(8, deleted=1)
        put(7, deleted=0, facts=40, status="running")
        assert client.execute("SELECT status, rev FROM jobs_latest") == [("completed", 1)]
        client.execute("OPTIMIZE TABLE jobs FINAL")


def test_queue_now(client: Client) -> None:
    now = client.execute("SELECT toUnixTimestamp64Milli(now64(3))")[0][0]
    for key, status, age in (
        ("a", "queued", 90_000), ("b", "queued", 10_000), ("c", "queued", None),
        ("d", "running", 5_000), ("e", "completed", 999_000),
    ):  # fmt: skip
        since = None if age is None else now - age
        insert(client, rows.JOBS, key=key, rev=1, fleet="f", status=status, since=since,
               received_at=T0, copied=0)  # fmt: skip
    found = client.execute(
        "SELECT status, jobs, unknown_age, oldest_key, oldest_ms FROM queue_now ORDER BY status"
    )
    assert [row[:4] for row in found] == [("queued", 3, 1, "a"), ("running", 1, 0, "d")]
    assert 90_000 <= found[0][4] < 120_000


def bin_of(value: int) -> int:
    """Bin i holds (gamma^(i-1), gamma^i], as topics.models.WindowFamily says."""
    return math.ceil(math.log(value) / math.log(GAMMA))


@pytest.mark.parametrize("seed", range(6))
def test_quantiles_of_merged_windows_are_within_one_percent(client: Client, seed: int) -> None:
    chance = random.Random(seed)
    count = chance.choice([1, 2, 7, 100, 3_000, 20_000])
    shapes = [
        lambda: int(chance.lognormvariate(9, 2)),
        lambda: chance.randrange(0, 5),
        lambda: 60_000,
        lambda: int(10 ** chance.uniform(0, 8)),
    ]
    shape = shapes[seed % len(shapes)]
    client.execute("CREATE TABLE samples (ms UInt64) ENGINE = MergeTree ORDER BY ms")
    parts: list[list[int]] = [[] for _ in range(4)]
    for _ in range(count):
        chance.choice(parts).append(shape())
    client.execute("INSERT INTO samples VALUES", [(ms,) for part in parts for ms in part])
    for partition, part in enumerate(parts):
        for rev in (1, 2):  # an older version with half of the samples must not count
            seen = part if rev == 2 else part[: len(part) // 2]
            bins = Counter(bin_of(ms) for ms in seen if ms)
            insert(client, rows.WINDOWS_TABLE, fleet="f", size_s=300, start=T0, family="queue",
                   partition=partition, rev=rev, closed=rev == 2, count=len(seen),
                   sum_ms=sum(seen), max_ms=max(seen, default=0), zeros=seen.count(0),
                   bins=dict(bins))  # fmt: skip
    levels = (0.5, 0.9, 0.95, 0.99)
    ((number, total, largest, closed, *estimates),) = client.execute(
        "SELECT count, sum_ms, max_ms, closed, p50_ms, p90_ms, p95_ms, p99_ms FROM windows_merged"
    )
    ((exact,),) = client.execute(f"SELECT quantilesExact{levels}(ms) FROM samples")
    everything = [ms for part in parts for ms in part]
    assert (number, total, largest) == (count, sum(everything), max(everything))
    assert closed == 1
    for level, estimate, truth in zip(levels, estimates, exact, strict=True):
        assert abs(estimate - truth) <= 0.01 * truth + 1e-6, level


def test_conclusions_and_depth_add_up_over_partitions(client: Client) -> None:
    for partition, rev, conclusions in (
        (0, 1, {"success": 1}), (0, 2, {"success": 3, "failure": 1}), (1, 5, {"success": 4}),
    ):  # fmt: skip
        insert(client, rows.WINDOW_CONCLUSIONS, fleet="f", size_s=60, start=T0, rev=rev,
               partition=partition, closed=0, conclusions=conclusions)  # fmt: skip
        insert(client, rows.GAUGES, fleet="f", status="queued", partition=partition,
               occurred_at=T0 + rev * 1_000, received_at=T0, count=rev,
               oldest_ms=rev * 10)  # fmt: skip
    found = client.execute("SELECT conclusion, jobs FROM window_conclusions_merged")
    assert dict(found) == {"success": 7, "failure": 1}
    # The last tick of each partition in the minute: 2 of partition 0 and 5 of partition 1.
    for view in ("depth_1m", "depth_5m", "depth_1h"):
        assert client.execute(f"SELECT status, jobs, oldest_ms FROM {view}") == [("queued", 7, 50)]


def test_depth_of_long_ranges_is_read_from_projections(client: Client) -> None:
    """What was written before they were there, too, and however often a sample was written."""
    for projection in ("five_minutes", "one_hour"):
        client.execute(f"ALTER TABLE gauges DROP PROJECTION {projection}")
    for again in range(3):
        client.execute(
            "INSERT INTO gauges (fleet, status, occurred_at, partition, received_at, count,"
            " oldest_ms) SELECT 'f', 'queued', fromUnixTimestamp64Milli(toInt64(%(t0)s + number *"
            " 5000), 'UTC'), part, fromUnixTimestamp64Milli(toInt64(%(t0)s + %(again)s), 'UTC'),"
            " number, number FROM numbers(780) ARRAY JOIN [0, 1] AS part",
            {"t0": T0 - 3_600_000, "again": again},
        )
        if again == 1:
            for migration in schema.migrations():
                for statement in migration.statements:
                    if "PROJECTION" in statement:
                        client.execute(statement, settings={"mutations_sync": 1})
    for view, projection, each in (("depth_5m", "five_minutes", 60), ("depth_1h", "one_hour", 720)):
        asked = (
            f"SELECT bucket, jobs, oldest_ms FROM {view} WHERE status = 'queued' ORDER BY bucket"
        )
        found = client.execute(asked)
        ends = [*range(each, 780, each), 780]
        assert [row[1:] for row in found] == [(2 * (end - 1), end - 1) for end in ends]
        assert found == client.execute(f"{asked} SETTINGS optimize_use_projections = 0")
        client.execute("OPTIMIZE TABLE gauges FINAL")
        assert found == client.execute(asked)
        plan = "\n".join(line for (line,) in client.execute(f"EXPLAIN {asked}"))
        assert projection in plan


def test_timings_leave_out_what_counts_nowhere(client: Client) -> None:
    for key, queue_ms, copied, completed_at in (
        ("a", 10, 0, T0), ("b", None, 0, T0), ("c", 99, 1, T0), ("d", 50, 0, None),
    ):  # fmt: skip
        insert(client, rows.JOB_TIMINGS, key=key, rev=1, fleet="f", received_at=T0, copied=copied,
               queue_ms=queue_ms, completed_at=completed_at)  # fmt: skip
    assert client.execute(
        "SELECT jobs, no_queue, queue_p99_ms, queue_max_ms, run_p50_ms FROM timings_5m"
    ) == [(2, 1, 10, 10, None)]


def test_an_old_version_does_not_come_back_through_an_index(client: Client) -> None:
    """A skip index that hides the newest version must not let FINAL show an older one."""
    for rev, completed_at in ((1, T0), (2, T0 + 7 * 86_400_000)):
        insert(
            client, rows.JOB_TIMINGS, key="j", rev=rev, received_at=T0, completed_at=completed_at
        )
    found = client.execute(
        "SELECT rev FROM job_timings FINAL WHERE completed_at <= fromUnixTimestamp64Milli(%(at)s)",
        {"at": T0},
    )
    assert found == []
