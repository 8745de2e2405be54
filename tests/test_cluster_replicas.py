"""Replicated tables of a cluster, as far as the embedded server can have them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

import pytest
from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

from pipeline.local import MissingServer
from pipeline.local.process import accepts_connections, free_port
from sinks import schema
from sinks.cluster import local
from sinks.config import SinkConfig
from sinks.declared import made_by, spread_over, statements
from sinks.nodes import NodesAway
from sinks.sink import Sink
from tests.support.cluster import NAME, Cluster
from tests.support.maven import JarsUnavailable
from tests.support.zookeeper import ZooKeeper
from tests.test_cluster_schema import COLUMNS
from tests.test_cluster_text import KEYS, REPLICATED


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
            assert second.execute(COLUMNS, {"table": name}) == first.execute(
                COLUMNS, {"table": name}
            )
            with pytest.raises(NodesAway, match="readonly"):
                schema.apply(cluster.url, cluster=NAME)
    except (JarsUnavailable, MissingServer) as missing:
        pytest.skip(str(missing))


def replicated(directory: Path) -> list[str]:
    """The statements that make all of this release at once, on a cluster with replicas."""
    with Cluster(directory, (1,)) as alone:
        schema.apply(alone.url, cluster=NAME)
        with Client.from_url(alone.url) as client:
            found = client.execute(
                "SELECT name, create_table_query FROM system.tables"
                " WHERE database = currentDatabase() ORDER BY engine = 'View', engine"
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


def test_a_replica_that_is_away_keeps_no_sink_from_its_start(tmp_path: Path) -> None:
    """As long as each shard has another, which is up to date."""
    try:
        wanted = replicated(tmp_path / "alone")
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
