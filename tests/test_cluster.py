"""A cluster of ClickHouse: the sink writes to it while servers die, and everything that is asked of
one server is answered by it, too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest
from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import TopicAlreadyExistsError

from dashboards.alerts import SQL_ALERTS
from dashboards.ask import ask
from dashboards.boards import BOARDS
from dashboards.macros import Range
from dashboards.model import Dashboard
from pipeline.local import EmbeddedClickHouse, MissingServer
from sinks import rows, schema
from sinks.cluster import local
from sinks.config import SinkConfig
from sinks.metrics import SinkMetrics
from sinks.refill import refill
from sinks.sink import Sink
from sinks.writer import Backoff, Writer
from tests.support import evidence
from tests.support.boards import asks, chosen, said
from tests.support.brokers import Broker, broker
from tests.support.cluster import NAME, Cluster
from tests.support.load import until
from tests.support.seeded import Kept, Seeded, grown, write

DAY_S: Final = 86_400
GROUP: Final = "cluster-sink"
#: Rows of which some have to be on each shard. Fewer may all be on one.
MANY: Final = 40


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One partition each, so that a record has the offset here that it has in its log."""
    with broker(Path(tmp_path_factory.mktemp("broker"))) as running:
        admin = KafkaAdminClient(bootstrap_servers=running.bootstrap)
        for topic in rows.TOPICS:
            with suppress(TopicAlreadyExistsError):
                admin.create_topics([NewTopic(topic, 1, 1)])
        admin.close()
        yield running


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        with made:
            yield made
    except MissingServer as missing:
        pytest.skip(str(missing))


@dataclass
class World:
    """What the sinks were told, and what was seen meanwhile.

    Attributes:
        waited: by the server that was away, why the sink said that it waits.
        left: records that were not committed by then.
        halved: inserts that were tried again in two halves.
    """

    seeded: Seeded
    logs: Mapping[str, Sequence[Kept]]
    waited: dict[str, str] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    halved: int = 0


@pytest.fixture(scope="module")
def world(kafka: Broker, cluster: Cluster, server: EmbeddedClickHouse) -> World:
    """The same records: on one server, written without anything in the way; and on the cluster, by
    the sink. Meanwhile each node is killed, the one that the sink writes to last."""
    noon = int(time.time()) // DAY_S * DAY_S - DAY_S // 2
    made = World(*grown(noon * 1000, jobs=200, hours=1.0, telling_h=0.15))
    schema.apply(server.url)
    write(server.url, made.logs)
    config = SinkConfig(
        kafka={"bootstrap_servers": kafka.bootstrap},
        clickhouse_url=cluster.all_urls,
        group_id=GROUP,
        max_records=1_000,
        backoff=Backoff(first_s=0.02, longest_s=0.3),
        cluster=NAME,
    )
    first, second = cluster.nodes
    with running(config) as sink:
        sent = _send(kafka, made.logs, 0.0, 0.3)
        until(lambda: _sum(sink.metrics.rows) > 0, 120, "the first rows")
        for name, node, begin, end in (
            ("another", second, 0.3, 0.6), ("its own", first, 0.6, 1.0),
        ):  # fmt: skip
            node.kill()
            sent += _send(kafka, made.logs, begin, end)
            _wait_for_trouble(sink, node)
            made.waited[name] = sink.status().reason
            made.left[name] = _lag(kafka)
            node.start()
            until(lambda: _lag(kafka) == 0, 120, "everything to be written")
        made.halved = _sum(sink.metrics.splits)
    assert sent == sum(map(len, made.logs.values()))
    return made


def _wait_for_trouble(sink: Sink, node: EmbeddedClickHouse) -> None:
    """Until the sink says that it waits for this one."""
    until(lambda: f":{node.port}" in sink.status().reason, 120, "the sink to wait")


def _lag(kafka: Broker) -> int:
    return evidence.lag(kafka.bootstrap, GROUP, list(rows.TOPICS))


def _sum(counter: Any) -> int:
    """Of all labels."""
    samples = [sample for metric in counter.collect() for sample in metric.samples]
    return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))


def _send(kafka: Broker, logs: Mapping[str, Sequence[Kept]], begin: float, end: float) -> int:
    """Put a share of each log on its topic; how many records that is."""
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all", linger_ms=5)
    sent = 0
    try:
        for topic, log in logs.items():
            for record in log[int(len(log) * begin) : int(len(log) * end)]:
                producer.send(
                    topic, key=record.key, value=record.value, headers=list(record.headers),
                    partition=0, timestamp_ms=record.timestamp,
                )  # fmt: skip
                sent += 1
        producer.flush()
    finally:
        producer.close()
    return sent


@contextmanager
def running(config: SinkConfig) -> Iterator[Sink]:
    """A sink on a thread, stopped at the end; what it raises, raises here."""
    sink, stop, errors = Sink(config), threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            sink.run(stop)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield sink
    finally:
        stop.set()
        thread.join()
        assert errors == []


# --- written --------------------------------------------------------------------------------------


def test_the_sink_waits_for_a_shard_and_for_its_own_server(world: World, cluster: Cluster) -> None:
    assert set(world.waited) == {"another", "its own"}
    assert all(world.left.values())
    assert all(reason.startswith("ClickHouse") for reason in world.waited.values())
    assert world.halved == 0, "a server that is away is no insert that is too large"


@pytest.mark.parametrize("table", rows.TABLES, ids=lambda table: table.name)
def test_every_table_has_the_rows_of_one_server(
    table: rows.Table, world: World, cluster: Cluster, server: EmbeddedClickHouse
) -> None:
    """Every column of every row; each row on one shard, and each shard has some.

    Of several states of a job in a batch only the last is written. So where another server cut the
    batches differently, there may be what an earlier state said and no later one does.
    """
    name = table.name
    with Client.from_url(server.url) as one, Client.from_url(cluster.url) as many:
        wanted, found = stored(one, table), stored(many, table)
        assert wanted, "the world has none of these"
        assert wanted - found == set()
        if found != wanted:
            assert found - wanted <= ever_told(server, world, table)
    shards = []
    for node in cluster.nodes:
        with Client.from_url(node.url) as client:
            [(number,)] = client.execute(f"SELECT count() FROM {local(name)} FINAL")
            shards.append(number)
    assert sum(shards) == len(found)
    if len(found) >= MANY:
        assert all(shards), shards


def stored(client: Client, table: rows.Table, final: str = "FINAL") -> set[str]:
    """The rows of a table. None is there twice."""
    columns = ", ".join(f"`{column}`" for column in table.columns)
    found = list(map(said, client.execute(f"SELECT {columns} FROM {table.name} {final}")))
    assert not final or len(found) == len(set(found))
    return set(found)


def ever_told(server: EmbeddedClickHouse, world: World, table: rows.Table) -> set[str]:
    """The rows that each state of a job gives by itself, as ClickHouse stores them."""
    told = replace(table, name=f"told_{table.name}")
    made = rows.TableRows(told)
    for record in world.logs[rows.JOB_STATES]:
        for each in rows.build([rows.decode(record)], dict.fromkeys(rows.PLACED, 1))[0]:
            if each.table == table:
                made.rows.extend(each.rows)
                made.origins.extend(each.origins)
    writer = Writer(server.url, SinkMetrics())
    try:
        with Client.from_url(server.url) as client:
            client.execute(
                f"CREATE OR REPLACE TABLE {told.name} AS {table.name}"
                " ENGINE = MergeTree ORDER BY tuple()"
            )
            assert writer.write([made], "told") == []
            found = stored(client, told, final="")
            client.execute(f"DROP TABLE {told.name}")
            return found
    finally:
        writer.close()


def test_every_view_shows_what_one_server_shows(
    world: World, cluster: Cluster, server: EmbeddedClickHouse
) -> None:
    with Client.from_url(server.url) as one, Client.from_url(cluster.url) as many:
        views = one.execute(
            "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine = 'View'"
        )
        assert len(views) >= 8
        for (name,) in views:
            # The one that has the time now in it, and of two that are equally old either.
            less = " EXCEPT (oldest_ms, oldest_key)" if name == "queue_now" else ""
            asked = f"SELECT *{less} FROM {name}"
            wanted = sorted(map(said, one.execute(asked)))
            assert sorted(map(said, many.execute(asked))) == wanted, name
            assert wanted, name


def test_what_is_shown_is_the_truth(world: World, cluster: Cluster) -> None:
    with Client.from_url(cluster.url) as client:
        compared = evidence.check_jobs(client, world.seeded.jobs)
    assert all(compared.values()), compared


def test_another_node_takes_an_insert_and_knows_its_token(world: World, cluster: Cluster) -> None:
    """The sink's own server is away: what is for other shards is written. And an insert that was
    made through one node is known when it is tried again through another."""
    first, second = cluster.nodes
    url = schema.with_database(cluster.all_urls, "tokens")
    schema.apply(url, cluster=NAME)
    with schema.connected(url) as client:
        [(of_first, of_second)] = client.execute(
            "SELECT groupArrayIf(key, shard = 0), groupArrayIf(key, shard = 1) FROM"
            " (SELECT toString(number) AS key, cityHash64(key) % 2 AS shard FROM numbers(40))"
        )
    *of_both, last = [*of_first, *of_second]
    assert len(of_first) > 1
    assert len(of_second) > 2
    put(url, of_both, "both")
    assert kept(cluster) == [len(of_first), len(of_second) - 1]
    first.kill()
    try:
        put(url, [last], "last")
        # The same insert once more: half of it is done already, half of it has to wait.
        waiting = threading.Thread(target=put, args=(url, of_both, "both"))
        waiting.start()
    finally:
        first.start()
    waiting.join()
    put(schema.with_database(second.url, "tokens"), of_both, "both")
    assert kept(cluster) == [len(of_first), len(of_second)]
    # With another token it is another insert.
    put(url, of_both, "other")
    assert kept(cluster) == [2 * len(of_first), 2 * len(of_second) - 1]


def put(url: str, keys: Sequence[str], token: str) -> None:
    """Write a row of job_steps for each key, as the sink does."""
    writer = Writer(url, SinkMetrics(), Backoff(first_s=0.02, longest_s=0.2))
    said = {"number": 1, "rev": 1, "received_at": int(time.time() * 1000)}
    made = rows.TableRows(rows.JOB_STEPS)
    for key in keys:
        made.rows.append(tuple(
            {"key": key, **said}.get(column, None if column.endswith(("_at", "_ms")) else "")
            for column in rows.JOB_STEPS.columns
        ))  # fmt: skip
    try:
        assert writer.write([made], token) == []
    finally:
        writer.close()


def kept(cluster: Cluster) -> list[int]:
    """Rows of job_steps by shard, those that others replace as well."""
    found = []
    for node in cluster.nodes:
        with schema.connected(schema.with_database(node.url, "tokens")) as client:
            client.execute("SYSTEM STOP MERGES job_steps_local")
            [(number,)] = client.execute("SELECT count() FROM job_steps_local")
            found.append(number)
    return found


# --- asked ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.title)
def test_every_panel_shows_what_it_shows_on_one_server(
    board: Dashboard,
    world: World,
    cluster: Cluster,
    server: EmbeddedClickHouse,
    record_property: Callable[[str, object], None],
) -> None:
    """To the last digit, as the user who may only read."""
    end = world.seeded.end_ms
    different, filled = [], 0

    def over(values: Any) -> Range:
        return Range(end - 2 * 3_600_000, end, 60, values)

    queries = list(asks(board))
    with (
        Client.from_url(server.reader_url) as one,
        Client.from_url(cluster.reader_url) as many,
    ):
        values = chosen(board, one, over)
        if "key" in values:
            [(key,)] = one.execute("SELECT min(key) FROM stalls")
            values["key"] = [key]
        for what, sql in queries:
            columns, wanted = ask(one, sql, over(values))
            types, found = ask(many, sql, over(values))
            if (columns, sorted(map(said, wanted))) != (types, sorted(map(said, found))):
                different.append(f"{what}: {wanted[:2]} on one server, {found[:2]} on the cluster")
            filled += bool(wanted)
    record_property(
        "tried: panels on a cluster",
        {"dashboard": board.title, "queries": len(queries), "with rows": filled,
         "different": len(different)},
    )  # fmt: skip
    assert different == []


def test_every_alert_sees_what_it_sees_on_one_server(
    world: World, cluster: Cluster, server: EmbeddedClickHouse
) -> None:
    end = world.seeded.end_ms
    asked = 0
    with (
        Client.from_url(server.reader_url) as one,
        Client.from_url(cluster.reader_url) as many,
    ):
        for alert in SQL_ALERTS.values():
            over = Range(end - alert.over_s * 1000, end)
            wanted, found = (ask(client, alert.sql, over) for client in (one, many))
            assert found[0] == wanted[0], alert.name
            assert sorted(map(said, found[1])) == sorted(map(said, wanted[1])), alert.name
            asked += bool(wanted[1])
    assert asked


def test_rows_that_were_lost_are_filled_in_again(
    world: World, cluster: Cluster, server: EmbeddedClickHouse, kafka: Broker
) -> None:
    for node in cluster.nodes:
        with Client.from_url(node.url) as client:
            client.execute("TRUNCATE TABLE stalls_local SYNC")
    done = refill({"bootstrap_servers": kafka.bootstrap}, cluster.all_urls, ["stalls"])
    with Client.from_url(server.url) as one, Client.from_url(cluster.url) as many:
        assert stored(one, rows.STALLS) <= stored(many, rows.STALLS)
    assert done.rows["stalls"] > 0


def test_without_the_profile_questions_within_questions_are_refused(
    world: World, cluster: Cluster
) -> None:
    asked = "SELECT count() FROM jobs WHERE key IN (SELECT key FROM stalls)"
    with Client.from_url(cluster.url) as client:
        [(number,)] = client.execute(asked)
        assert number > 0
        with pytest.raises(ServerException, match="288"):
            client.execute(asked, settings={"distributed_product_mode": "deny"})
