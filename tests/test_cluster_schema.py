"""The tables of a cluster: made from the same migrations, on servers that know each other."""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from pipeline.cli import main
from pipeline.commands import doctor
from pipeline.local import EmbeddedClickHouse, MissingServer
from pipeline.local.process import accepts_connections, free_port
from pipeline.settings import Settings
from sinks import rows, schema
from sinks.cluster import Layout, Rewriter, UnknownStatement, local, sharding_key
from sinks.config import SinkConfig
from sinks.declared import made, made_by, spread_over, statements
from sinks.nodes import Node, NodesAway, Visited
from sinks.sink import Sink
from tests.support.cluster import NAME, Cluster
from tests.support.load import until
from tests.support.maven import JarsUnavailable
from tests.support.zookeeper import ZooKeeper
from tests.test_docs import USERS

ROOT: Final = Path(__file__).parent.parent
#: The rows of a table lie on shards by this for ever: with another, old versions of a row would be
#: where no new one comes to replace them.
KEYS: Final = {
    "log_epochs": "cityHash64(`topic`, `log_id`)",
    "windows": "cityHash64(`fleet`, `size_s`, `family`, `partition`)",
    "window_conclusions": "cityHash64(`fleet`, `size_s`, `partition`)",
    "gauges": "cityHash64(`fleet`, `status`, `partition`)",
    "dead_letters": "cityHash64(`topic`, `partition`, `offset`, `stage`)",
    "fleet_states": "cityHash64(`fleet`)",
    **dict.fromkeys(
        ("dispatch_events", "pool_events", "runner_events", "scheduler_events",
         "reconciler_events"),
        "cityHash64(`fleet`, `subject`, `kind`, `id`)",
    ),
    **dict.fromkeys(
        ("events_raw", "jobs", "job_transitions", "job_timings", "job_steps", "stalls", "probes",
         "commands", "outcomes"),
        "cityHash64(key)",
    ),
}  # fmt: skip

PLAIN: Final = Layout(NAME)
REPLICATED: Final = Layout(NAME, replicated=True)


# --- text -----------------------------------------------------------------------------------------


def test_all_versions_of_a_row_meet_on_one_shard() -> None:
    """What says where a row lies is made of what tells it from others, and nothing else."""
    tables = {
        name: each
        for name, each in made(schema.migrations()).items()
        if each.startswith("CREATE TABLE")
    }
    assert {name: sharding_key(each) for name, each in tables.items()} == KEYS
    assert {table.name for table in rows.TABLES} <= KEYS.keys()
    for name, each in tables.items():
        [sorting] = re.findall(r"^ORDER BY (.*)$", each, re.MULTILINE)
        used = set(re.findall(r"\w+", KEYS[name])) - {"cityHash64"}
        assert used <= set(re.findall(r"\w+", sorting)), name


def test_a_table_is_one_with_rows_and_one_over_all_shards() -> None:
    statement = (
        "CREATE TABLE IF NOT EXISTS t (\n  key String COMMENT 'a, (b); c',\n"
        "  at DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),\n"
        "  INDEX ix_at at TYPE minmax GRANULARITY 1\n) ENGINE = ReplacingMergeTree(at)\n"
        "PARTITION BY toYYYYMM(at)\nORDER BY (key, at)\nTTL toDateTime(at) + INTERVAL 1 DAY\n"
        "SETTINGS non_replicated_deduplication_window = 7\nCOMMENT 'It''s one.'"
    )
    of_rows, of_all = Rewriter(REPLICATED).all([statement])
    assert of_rows == statement.replace(" t (", " t_local (").replace(
        "ReplacingMergeTree(",
        "ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/t_local',"
        " '{replica}', ",
    ).replace(
        "non_replicated_deduplication_window = 7",
        "replicated_deduplication_window = 7, replicated_deduplication_window_seconds = 604800",
    )
    assert of_all == (
        "CREATE TABLE IF NOT EXISTS t (\n  key String COMMENT 'a, (b); c',\n"
        "  at DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1))\n) ENGINE ="
        " Distributed('runners', currentDatabase(), t_local, cityHash64(key))\nCOMMENT 'It''s one.'"
    )
    assert Rewriter(PLAIN).all([statement])[0] == statement.replace(" t (", " t_local (")


TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS t (\n  key String\n) ENGINE = ReplacingMergeTree\nORDER BY key\n"
    "SETTINGS non_replicated_deduplication_window = 7\nCOMMENT ''"
)
VIEW: Final = "CREATE OR REPLACE VIEW v AS\nSELECT 1"


@pytest.mark.parametrize(
    ("change", "places"),
    [
        ("ALTER TABLE t ADD COLUMN IF NOT EXISTS a Int8 AFTER key", ["t_local", "t"]),
        ("ALTER TABLE t COMMENT COLUMN IF EXISTS key 'c'", ["t_local", "t"]),
        ("ALTER TABLE t\n  COMMENT COLUMN IF EXISTS key 'c,\nADD x',\n  MODIFY COMMENT 'x'",
         ["t_local", "t"]),
        ("ALTER TABLE t MODIFY TTL at + INTERVAL 1 DAY", ["t_local"]),
        ("ALTER TABLE t MODIFY SETTING a = 1", ["t_local"]),
        ("ALTER TABLE t ADD PROJECTION IF NOT EXISTS p (SELECT a,\n  b GROUP BY a, b)",
         ["t_local"]),
        ("ALTER TABLE t MATERIALIZE INDEX IF EXISTS i", ["t_local"]),
        ("ALTER TABLE v MODIFY COMMENT 'x'", ["v"]),
    ],
)  # fmt: skip
def test_a_change_is_made_where_it_belongs(change: str, places: list[str]) -> None:
    for layout, on in ((PLAIN, ""), (replace(PLAIN, ddl=True), " ON CLUSTER 'runners'")):
        told = Rewriter(layout).all([TABLE, VIEW, change])[3:]
        rest = change.partition(" TABLE ")[2][1:]
        assert told == tuple(f"ALTER TABLE {place}{on}{rest}" for place in places)


@pytest.mark.parametrize(
    "strange",
    [
        "DROP TABLE IF EXISTS t",
        "INSERT INTO t VALUES ('a')",
        "CREATE MATERIALIZED VIEW IF NOT EXISTS m TO t AS SELECT 1",
        "CREATE TABLE IF NOT EXISTS u (\n  a Int8\n) ENGINE = MergeTree\nORDER BY a\nCOMMENT ''",
        "CREATE TABLE IF NOT EXISTS u AS t",
        TABLE.replace("key", "at").replace("String", "DateTime"),
        "ALTER TABLE t DROP COLUMN IF EXISTS key",
        "ALTER TABLE t MODIFY COLUMN IF EXISTS key Int8",
        "ALTER TABLE t UPDATE key = 'MODIFY COMMENT ' WHERE 1",
        "ALTER TABLE t MODIFY COMMENT 'x',\n  DROP COLUMN IF EXISTS key",
        "ALTER TABLE t MODIFY COMMENT 'x',\n  MODIFY SETTING a = 1",
        "ALTER TABLE unheard MODIFY COMMENT 'x'",
        "ALTER TABLE t_local MODIFY COMMENT 'x'",
        "RENAME TABLE t TO u",
    ],
)
def test_a_statement_that_nobody_has_thought_about_is_refused(strange: str) -> None:
    """Here, and not on somebody's cluster: every migration goes through this."""
    with pytest.raises(UnknownStatement):
        Rewriter(PLAIN).all([TABLE, VIEW, strange])


words = st.text("abc ,()'`\\;-\n", max_size=12).map(
    lambda text: text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", " ")
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["String", "Map(LowCardinality(String), UInt64)", "DateTime64(3)"]),
            words,
            st.sampled_from(["", " CODEC(Delta, ZSTD(1))"]),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 2),
    words,
)
def test_no_column_is_lost(told: list[tuple[str, str, str]], indexes: int, comment: str) -> None:
    lines = ["  key String", *(
        f"  `c{n}` {type_} COMMENT '{word}'{codec}" for n, (type_, word, codec) in enumerate(told)
    )]  # fmt: skip
    more = [f"  INDEX i{n} c0 TYPE minmax GRANULARITY 1" for n in range(indexes)]
    statement = (TABLE.removesuffix("''") + f"'{comment}'").replace(
        "  key String", ",\n".join(lines + more)
    )
    of_rows, of_all = Rewriter(REPLICATED).all([statement])
    assert ",\n".join(lines + more) in of_rows
    assert "(\n" + ",\n".join(lines) + "\n) ENGINE = Distributed(" in of_all
    for each in (of_rows, of_all):
        assert each.endswith(f"COMMENT '{comment}'")


def test_the_name_of_a_cluster_is_one() -> None:
    for name in ("", "a b", "a'", "a)"):
        with pytest.raises(ValueError, match="name of a cluster"):
            Layout(name)


def test_a_shard_is_there_as_long_as_one_of_its_nodes_is() -> None:
    one, two, three = (Node(shard, 1, str(shard), "") for shard in (1, 1, 2))
    two = two._replace(replica=2, place="1b")
    assert Visited({one: 0, three: 0}, {two: "away"}).enough
    assert not Visited({one: 0, two: 0}, {three: "away"}).enough
    told = str(NodesAway("c", Visited({one: 0, three: 0}, {two: "refused"})))
    assert told == "1 of 3 nodes of cluster c take no part: 1b (shard 1): refused"


# --- on servers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made_here = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        with made_here:
            yield made_here
    except MissingServer as missing:
        pytest.skip(str(missing))


_databases = (f"test_cluster_{number}" for number in itertools.count())


@pytest.fixture
def url(cluster: Cluster) -> str:
    """A database of its own, not created yet."""
    return schema.with_database(cluster.all_urls, next(_databases))


def on_each(cluster: Cluster, url: str) -> list[str]:
    """The same database on each node."""
    return [schema.with_database(node.url, schema.database_of(url)) for node in cluster.nodes]


_COLUMNS: Final = (
    "SELECT name, type, default_kind, default_expression, compression_codec, comment, position"
    " FROM system.columns WHERE database = currentDatabase() AND table = %(table)s"
    " ORDER BY position"
)
_OF_TABLE: Final = (
    "SELECT partition_key, sorting_key, primary_key, engine, engine_full, comment"
    " FROM system.tables WHERE database = currentDatabase() AND name = %(table)s"
)
_OF_ROWS: Final = (
    "SELECT name, type_full, expr, granularity FROM system.data_skipping_indices"
    " WHERE database = currentDatabase() AND table = %(table)s ORDER BY name",
    "SELECT name, type, query FROM system.projections"
    " WHERE database = currentDatabase() AND table = %(table)s ORDER BY name",
)
_OF_VIEWS: Final = (
    "SELECT name, as_select, comment FROM system.tables WHERE database = currentDatabase()"
    " AND engine = 'View' ORDER BY name",
    "SELECT table, name, type, comment, position FROM system.columns"
    " WHERE database = currentDatabase() AND table IN"
    " (SELECT name FROM system.tables WHERE engine = 'View') ORDER BY table, position",
)


def test_nothing_of_the_tables_of_one_server_is_lost(
    cluster: Cluster, url: str, server: EmbeddedClickHouse
) -> None:
    """Columns, comments, codecs, defaults, keys, TTL, settings, indexes, projections, views."""
    names = [migration.label for migration in schema.migrations()]
    assert schema.pending(url, NAME) == schema.migrations()
    report = schema.apply(url, cluster=NAME)
    assert (list(report.applied), report.already, report.mended) == (names, (), ())
    assert schema.pending(url, NAME) == ()
    assert schema.absent(url, NAME) == ()
    plain = schema.with_database(server.url, schema.database_of(url))
    schema.apply(plain)
    with schema.connected(plain) as one:
        for node in on_each(cluster, url):
            with schema.connected(node) as many:
                for table in KEYS:
                    told = one.execute(_COLUMNS, {"table": table})
                    assert many.execute(_COLUMNS, {"table": local(table)}) == told
                    assert many.execute(_COLUMNS, {"table": table}) == told
                    told = one.execute(_OF_TABLE, {"table": table})
                    assert many.execute(_OF_TABLE, {"table": local(table)}) == told
                    assert "deduplication_window" in told[0][4]
                    [spread] = many.execute(_OF_TABLE, {"table": table})
                    assert (spread[3], spread[5]) == ("Distributed", told[0][5])
                    for each in _OF_ROWS:
                        assert many.execute(each, {"table": local(table)}) == one.execute(
                            each, {"table": table}
                        )
                for each in _OF_VIEWS:
                    assert many.execute(each) == one.execute(each)


def test_applying_again_changes_nothing_and_every_statement_can_be_repeated(
    cluster: Cluster, url: str
) -> None:
    """Also from another node, and after a crash on one of them before its notes were written."""
    names = tuple(migration.label for migration in schema.migrations())
    schema.apply(url, cluster=NAME)
    again = schema.apply(on_each(cluster, url)[1], cluster=NAME)
    assert (again.applied, again.already, again.mended) == ((), names, ())
    with schema.connected(on_each(cluster, url)[1]) as second:
        second.execute("TRUNCATE TABLE schema_migrations")
    assert schema.pending(url, NAME) == schema.migrations()
    assert schema.apply(url, cluster=NAME).applied == names


def test_two_appliers_at_once(cluster: Cluster, url: str) -> None:
    errors: list[BaseException] = []

    def applier(where: str) -> None:
        try:
            schema.apply(where, cluster=NAME)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=applier, args=(each,)) for each in on_each(cluster, url)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert schema.pending(url, NAME) == ()


def test_the_first_release_is_upgraded(cluster: Cluster, url: str) -> None:
    """Its rows stay, on every shard, and show what has been added."""
    schema.apply(url, schema.migrations()[:2], NAME)
    at = int(time.time() * 1000)
    with schema.connected(url) as client:
        client.execute(
            "INSERT INTO jobs (key, rev, received_at) VALUES",
            [(str(n), 7, at) for n in range(40)],
            settings={"distributed_foreground_insert": 1},
        )
        assert schema.apply(url, cluster=NAME).applied[0] == "0003_comments_and_places"
        asked = "SELECT count(), uniqExact(key), min(rev), any(actor) FROM jobs_latest"
        assert client.execute(asked) == [(40, 40, 7, "")]
    for node in on_each(cluster, url):
        with schema.connected(node) as client:
            assert client.execute("SELECT count() > 0 FROM jobs_local") == [(1,)]


def test_what_was_dropped_on_a_node_is_made_again_there(cluster: Cluster, url: str) -> None:
    schema.apply(url, cluster=NAME)
    first, second = on_each(cluster, url)
    places = [f"127.0.0.1:{node.port}" for node in cluster.nodes]
    for node, place, drop, gone, emptied in (
        (first, places[0], "DROP TABLE gauges SYNC", "gauges", ()),
        (second, places[1], "DROP TABLE gauges_local SYNC", "gauges_local", ("gauges",)),
        (second, places[1], "DROP VIEW queue_now", "queue_now", ()),
        (first, places[0], "ALTER TABLE jobs DROP COLUMN actor", "jobs.actor", ()),
        (second, places[1], "ALTER TABLE job_timings_local DROP COLUMN labels",
         "job_timings_local.labels", ("job_timings",)),
    ):  # fmt: skip
        with schema.connected(node) as client:
            before = client.execute(_COLUMNS, {"table": gone.partition(".")[0]})
            client.execute(drop)
            assert schema.absent(url, NAME) == (f"{gone} on {place}",)
            report = schema.apply(url, cluster=NAME)
            assert (report.mended, report.emptied) == ((f"{gone} on {place}",), emptied)
            after = client.execute(_COLUMNS, {"table": gone.partition(".")[0]})
            assert [row[:-1] for row in sorted(after)] == [row[:-1] for row in sorted(before)]
    assert schema.absent(url, NAME) == ()


def test_one_server_and_a_cluster_are_not_changed_into_each_other(
    cluster: Cluster, url: str
) -> None:
    plain = schema.with_database(cluster.url, next(_databases))
    schema.apply(plain)
    with pytest.raises(schema.WrongCluster, match=r"table of one server.*another database"):
        schema.apply(plain, cluster=NAME)
    schema.apply(url, cluster=NAME)
    with pytest.raises(schema.WrongCluster, match="RUNNERSTREAM_CLICKHOUSE_CLUSTER"):
        schema.apply(url)
    with pytest.raises(schema.WrongCluster, match=f"knows no cluster others.*{NAME}"):
        schema.apply(url, cluster="others")
    # A table of the one is copied into the other.
    at = int(time.time() * 1000)
    with schema.connected(plain) as client:
        client.execute(
            "INSERT INTO jobs (key, rev, received_at) VALUES",
            [(str(n), rev, at) for n in range(30) for rev in (1, 2)],
        )
        client.execute(
            f"INSERT INTO {schema.database_of(url)}.jobs SELECT * FROM jobs",
            settings={"distributed_foreground_insert": 1},
        )
    with schema.connected(url) as client:
        found = client.execute("SELECT count(), uniqExact(key), min(rev) FROM jobs FINAL")
        assert found == [(30, 30, 2)]


def command(url: str, *arguments: str, cluster: str = NAME) -> Result:
    env: dict[str, str | None] = {n: None for n in os.environ if n.startswith("RUNNERSTREAM_")}
    env.update(RUNNERSTREAM_CLICKHOUSE=url, RUNNERSTREAM_CLICKHOUSE_CLUSTER=cluster)
    return CliRunner().invoke(main, list(arguments), env=env)


def findings(url: str) -> dict[str, doctor.Finding]:
    settings = Settings(clickhouse=SecretStr(url), clickhouse_cluster=NAME)
    return {each.what: each for each in doctor._clickhouse(settings)}


def test_commands_bring_every_node_up_to_date(cluster: Cluster, url: str) -> None:
    assert findings(url)["tables"].state == "bad"
    assert command(url, "schema", "show").exit_code == 1
    done = command(url, "schema", "apply")
    assert done.exit_code == 0, done.output
    assert f"{len(schema.migrations())} migrations applied" in done.output
    shown = command(url, "schema", "show")
    assert shown.exit_code == 0, shown.output
    assert "jobs_local" in shown.output
    assert "missing" not in shown.output
    assert findings(url)["tables"].state == "ok"
    with schema.connected(on_each(cluster, url)[1]) as second:
        second.execute("DROP TABLE jobs_local SYNC")
    missing = f"jobs_local on 127.0.0.1:{cluster.nodes[1].port}"
    shown = command(url, "schema", "show")
    assert (shown.exit_code, missing in shown.output) == (1, True), shown.output
    assert missing in findings(url)["tables"].told
    refused = command(url, "schema", "refill", "jobs")
    assert (refused.exit_code, missing in refused.output) == (1, True), refused.output
    done = command(url, "schema", "apply")
    assert "runnerstream schema refill jobs" in done.output


def test_a_node_that_is_away_is_named_and_brought_up_to_date_when_it_is_back(
    cluster: Cluster, url: str
) -> None:
    second = cluster.nodes[1]
    schema.apply(url, schema.migrations()[:4], NAME)
    place = f"127.0.0.1:{second.port}"
    second.kill()
    try:
        with pytest.raises(NodesAway, match=rf"1 of 2 nodes .*{place} \(shard 2\)") as told:
            schema.apply(url, cluster=NAME)
        assert not told.value.enough
        with pytest.raises(NodesAway):
            schema.pending(url, NAME)
        for name in ("apply", "show"):
            done = command(url, "schema", name)
            assert (done.exit_code, place in done.output) == (3, True), done.output
        assert place in findings(url)["tables"].told
        # A sink waits for it, and says so.
        config = SinkConfig({}, url, "g", cluster=NAME)
        sink, stop = Sink(config), threading.Event()
        prepared: list[bool] = []
        thread = threading.Thread(target=lambda: prepared.append(sink._prepare(stop)))
        thread.start()
        until(lambda: place in sink.status().reason, 60, "the sink to wait")
    finally:
        second.start()
    thread.join()
    assert prepared == [True]
    assert schema.pending(url, NAME) == ()


# --- as the page says -----------------------------------------------------------------------------

PAGE: Final = (ROOT / "docs" / "deploy.md").read_text()


def blocks(language: str, heading: str = "## A cluster of ClickHouse") -> list[str]:
    """The blocks of a language in a chapter of the page."""
    chapter = PAGE.partition(f"{heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", chapter, re.MULTILINE | re.DOTALL)


def users(more: list[str]) -> str:
    """The users of the pages, as configuration: the embedded server makes none by SQL."""
    text = ""
    for name in ("runnerstream_writer", "runnerstream_reader"):
        grants = [
            each.removesuffix(f" TO {name}")
            for each in [*USERS, *more]
            if each.startswith("GRANT") and each.endswith(f" TO {name}")
        ]
        profile = "reader" if name.endswith("reader") else "default"
        text += (
            f"<{name}><password>secret</password><profile>{profile}</profile>"
            "<networks><ip>127.0.0.1</ip></networks><quota>default</quota><grants>"
            f"{''.join(f'<query>{each}</query>' for each in grants)}</grants></{name}>"
        )
    return f"<clickhouse><users>{text}</users></clickhouse>"


def test_the_configuration_of_the_page(tmp_path: Path) -> None:
    """Its servers, users and rights are enough to make the tables, to write, and to ask."""
    cluster = Cluster(tmp_path, profile=False)
    known, keeper = blocks("xml")
    assert {each.tag for each in ElementTree.fromstring(keeper)} == {"zookeeper", "macros"}
    said = [" ".join(each.split()) for each in blocks("sql")[0].split(";")]
    [profile] = [each for each in said if each.startswith("CREATE SETTINGS PROFILE")]
    assert profile.endswith(" TO runnerstream_writer, runnerstream_reader")
    [(setting, value)] = re.findall(r"SETTINGS (\w+) = '(\w+)'", profile)
    for number, node in enumerate(cluster.nodes, 1):
        known = known.replace(
            f"<host>clickhouse-{number}</host><port>9000</port>",
            f"<host>127.0.0.1</host><port>{node.port}</port>",
        )
    chosen = f"<{setting}>{value}</{setting}>"
    for node in cluster.nodes:
        (node.directory / "config.d" / "cluster.xml").write_text(known)
        (node.directory / "users.d" / "profiles.xml").write_text(
            f"<clickhouse><profiles><default>{chosen}</default><reader>{chosen}</reader>"
            "</profiles></clickhouse>"
        )
        (node.directory / "users.d" / "users.xml").write_text(users(said))
    try:
        with cluster:
            places = [f"127.0.0.1:{node.port}/runnerstream" for node in cluster.nodes]
            writer = f"clickhouse://runnerstream_writer:secret@{places[0]}"
            [name] = ElementTree.fromstring(known)[0]
            schema.apply(writer, cluster=name.tag)
            assert command(writer, "schema", "show", cluster=name.tag).exit_code == 0
            at = int(time.time() * 1000)
            with Client.from_url(writer) as client:
                client.execute(
                    "INSERT INTO jobs (key, rev, received_at) VALUES",
                    [(str(n), 7, at) for n in range(40)],
                    settings={"distributed_foreground_insert": 1},
                )
            reader = f"clickhouse://runnerstream_reader:secret@{places[1]}"
            with Client.from_url(reader) as client:
                assert client.execute(
                    "SELECT count() FROM jobs_latest WHERE key IN (SELECT key FROM jobs FINAL)"
                ) == [(40,)]
                with pytest.raises(ServerException):
                    client.execute("INSERT INTO jobs (key, rev) SELECT 'b', 1")
    except MissingServer as missing:
        pytest.skip(str(missing))


# --- SQL for others -------------------------------------------------------------------------------


def test_the_sql_for_people_who_run_it_themselves(cluster: Cluster, url: str) -> None:
    """Run by hand on each node, it is what the program makes, and noted. With ON CLUSTER, which the
    embedded server refuses, ClickHouse can at least read it."""
    told = command(url, "schema", "sql")
    assert told.exit_code == 0, told.output
    by_hand = [each.strip() for each in re.split(r";$", told.output, flags=re.MULTILINE)]
    database = schema.database_of(url)
    for node in on_each(cluster, url):
        with Client.from_url(schema.with_database(node, "default")) as client:
            client.execute(f"CREATE DATABASE {database} ENGINE = Atomic")
        with schema.connected(node) as client:
            for statement in filter(None, by_hand):
                client.execute(statement)
    assert schema.pending(url, NAME) == ()
    assert schema.absent(url, NAME) == ()
    assert schema.apply(url, cluster=NAME).mended == ()
    everywhere = list(schema.script(replace(REPLICATED, ddl=True)))
    with schema.connected(url) as client:
        for statement in everywhere:
            assert " ON CLUSTER 'runners'" in statement or statement.startswith("INSERT INTO")
            [(read,)] = client.execute("SELECT formatQuery(%(text)s)", {"text": statement})
            assert read
        with pytest.raises(ServerException, match="392"):
            client.execute(everywhere[0])
    assert command(url, "schema", "sql", "--cluster", "", cluster="").output.count("_local") == 0
    assert command(url, "schema", "sql", "--replicated", cluster="").exit_code == 2


# --- replicas -------------------------------------------------------------------------------------


def test_replicas_are_made_alike_also_the_one_that_comes_later(tmp_path: Path) -> None:
    """The embedded server has no Keeper and no port for replicas to fetch from each other, so what
    it makes with a ZooKeeper stays read-only: that the tables are made is what can be seen here."""
    wanted = [
        each
        for each in statements(spread_over(schema.migrations(), REPLICATED))
        if made_by(each) in map(local, KEYS)
    ]
    later = wanted[0].replace("  topic ", "  added UInt8,\n  topic ", 1).replace("_local", "_more")
    try:
        with (
            ZooKeeper(tmp_path / "zookeeper") as keeper,
            Cluster(tmp_path / "cluster", (2,), keeper.port) as cluster,
        ):
            first, second = (Client.from_url(node.url) for node in cluster.nodes)
            for statement in [*wanted, later]:
                first.execute(statement)
            for statement in wanted:
                second.execute(statement)
            asked = (
                "SELECT name, engine, engine_full, sorting_key, comment FROM system.tables"
                " WHERE database = currentDatabase() AND name LIKE '%\\_local' ORDER BY name"
            )
            found = first.execute(asked)
            assert found == second.execute(asked)
            assert {row[1] for row in found} == {"ReplicatedReplacingMergeTree"}
            assert [row[0] for row in found] == sorted(map(local, KEYS))
            assert first.execute(
                "SELECT DISTINCT total_replicas, is_readonly FROM system.replicas"
                " WHERE table LIKE '%\\_local'"
            ) == [(2, 1)]
            with pytest.raises(ServerException, match="242"):
                first.execute("ALTER TABLE log_epochs_local MODIFY COMMENT 'c'")
            # Keeper refuses a replica that begins as the others began, before a change ...
            name = made_by(later)
            with pytest.raises(ServerException, match="122"):
                second.execute(later.replace("  added UInt8,\n", ""))
            # ... so one is made as the others are by now.
            second.execute(schema.replicas(cluster.nodes[0].url)[name])
            assert second.execute(_COLUMNS, {"table": name}) == first.execute(
                _COLUMNS, {"table": name}
            )
            with pytest.raises(NodesAway, match="readonly"):
                schema.apply(cluster.url, cluster=NAME)
    except (JarsUnavailable, MissingServer) as missing:
        pytest.skip(str(missing))


def replicated(cluster: Cluster) -> list[str]:
    """The statements that make all of this release at once, on a cluster with replicas."""
    schema.apply(cluster.url, cluster=NAME)
    with Client.from_url(cluster.url) as client:
        found = client.execute(
            "SELECT name, create_table_query FROM system.tables WHERE database = currentDatabase()"
            " ORDER BY engine = 'View', engine"
        )
    window = "replicated_deduplication_window"
    return [
        query.replace("ENGINE = ReplacingMergeTree", "ENGINE = ReplicatedReplacingMergeTree(", 1)
        .replace("MergeTree((", f"MergeTree('/clickhouse/{{shard}}/{name}', '{{replica}}', ", 1)
        .replace("MergeTree( ", f"MergeTree('/clickhouse/{{shard}}/{name}', '{{replica}}') ", 1)
        .replace(f"non_{window}", window)
        if name in map(local, KEYS)
        else query
        for name, query in found
    ]


def test_a_replica_that_is_away_keeps_no_sink_from_its_start(
    cluster: Cluster, tmp_path: Path
) -> None:
    """As long as each shard has another, which is up to date."""
    wanted = replicated(cluster)
    try:
        with (
            ZooKeeper(tmp_path / "zookeeper") as keeper,
            Cluster(tmp_path / "cluster", (2,), keeper.port) as replicas,
        ):
            for node in replicas.nodes:
                with Client.from_url(node.url) as client:
                    for statement in wanted:
                        client.execute(statement)
                    for statement in schema.script(REPLICATED):
                        if statement.startswith("INSERT INTO schema_migrations"):
                            client.execute(statement)
            schema.apply(replicas.url, cluster=NAME)
            replicas.nodes[1].kill()
            for look in (schema.apply, schema.pending, schema.absent):
                with pytest.raises(NodesAway, match="1 of 2 nodes") as told:
                    look(replicas.url, cluster=NAME)
                assert told.value.enough
            for migrate in (True, False):
                config = SinkConfig({}, replicas.url, "g", cluster=NAME, migrate=migrate)
                sink = Sink(config)
                assert sink._prepare(threading.Event())
                assert "waiting for the consumer group" in sink.status().reason
            with Client.from_url(replicas.url) as client:
                client.execute("DROP VIEW queue_now")
                assert schema.absent(replicas.url, NAME) == (
                    f"queue_now on 127.0.0.1:{replicas.nodes[0].port}",
                )
                with pytest.raises(NodesAway):
                    schema.apply(replicas.url, cluster=NAME)
                assert client.execute("SELECT count() FROM queue_now") == [(0,)]
    except (JarsUnavailable, MissingServer) as missing:
        pytest.skip(str(missing))


_KEEPER: Final = """\
<clickhouse>
  <keeper_server>
    <tcp_port>{port}</tcp_port>
    <server_id>1</server_id>
    <raft_configuration>
      <server><id>1</id><hostname>127.0.0.1</hostname><port>{raft}</port></server>
    </raft_configuration>
  </keeper_server>
  <interserver_http_port>{between}</interserver_http_port>
</clickhouse>
"""


def test_replicas_without_keeper_are_refused_and_the_wheel_has_none(tmp_path: Path) -> None:
    """When it has, the test above can do more. A server of it that is told to be Keeper, and to
    have a port for other replicas, listens at neither."""
    cluster = Cluster(tmp_path, (2,))
    ports = [free_port() for _ in range(3)]
    told = _KEEPER.format(port=ports[0], raft=ports[1], between=ports[2])
    (cluster.nodes[0].directory / "config.d" / "keeper.xml").write_text(told)
    try:
        with cluster:
            with pytest.raises(schema.WrongCluster, match=r"several replicas.*macros"):
                schema.apply(cluster.url, cluster=NAME)
            assert not any(map(accepts_connections, ports))
            with (
                Client.from_url(cluster.url) as client,
                pytest.raises(ServerException, match="supports only TCP and HTTP"),
            ):
                client.execute("SYSTEM START LISTEN INTERSERVER HTTP")
    except MissingServer as missing:
        pytest.skip(str(missing))
