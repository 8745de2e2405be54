"""The tables of a cluster, on servers that know each other."""

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
from pydantic import SecretStr

from pipeline.cli import main
from pipeline.commands import doctor
from pipeline.local import EmbeddedClickHouse, MissingServer
from pipeline.settings import Settings
from sinks import schema
from sinks.cluster import local
from sinks.config import SinkConfig
from sinks.nodes import NodesAway
from sinks.sink import Sink
from tests.support.cluster import NAME, Cluster
from tests.support.load import until
from tests.test_cluster_text import KEYS, REPLICATED
from tests.test_docs import USERS

ROOT: Final = Path(__file__).parent.parent


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


COLUMNS: Final = (
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
                    told = one.execute(COLUMNS, {"table": table})
                    assert many.execute(COLUMNS, {"table": local(table)}) == told
                    assert many.execute(COLUMNS, {"table": table}) == told
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
            before = client.execute(COLUMNS, {"table": gone.partition(".")[0]})
            client.execute(drop)
            assert schema.absent(url, NAME) == (f"{gone} on {place}",)
            report = schema.apply(url, cluster=NAME)
            assert (report.mended, report.emptied) == ((f"{gone} on {place}",), emptied)
            after = client.execute(COLUMNS, {"table": gone.partition(".")[0]})
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
