"""The tables of a cluster as text: what becomes of each statement of a migration."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from typing import Final

import pytest
from clickhouse_driver.util.helpers import parse_url
from hypothesis import given
from hypothesis import strategies as st

from sinks import rows, schema
from sinks.cluster import Layout, Rewriter, UnknownStatement, sharding_key
from sinks.config import SinkConfig
from sinks.declared import made
from sinks.nodes import Node, NodesAway, Visited, at
from sinks.sink import Sink

NAME: Final = "runners"
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
    two = replace(two, replica=2, place="1b")
    assert Visited({one: 0, three: 0}, {two: "away"}).enough
    assert not Visited({one: 0, two: 0}, {three: "away"}).enough
    told = str(NodesAway("c", Visited({one: 0, three: 0}, {two: "refused"})))
    assert told == "1 of 3 nodes of cluster c take no part: 1b (shard 1): refused"


def test_each_node_is_reached_as_the_url_says_and_itself_only() -> None:
    url = (
        "clickhouses://writer:a%40b@one:9440/runs"
        "?alt_hosts=two:9440&round_robin=1&ca_certs=/etc/ca.pem&verify=false"
    )
    for host, place in (("two", "two:9441"), ("::1", "[::1]:9441")):
        there = at(url, host, 9441)
        assert there.startswith(f"clickhouses://writer:a%40b@{place}/runs?")
        name, options = parse_url(there)
        assert (name, options["port"], options["password"]) == (host, 9441, "a@b")
        assert (options["secure"], options["verify"], options["ca_certs"]) == (
            True, False, "/etc/ca.pem",
        )  # fmt: skip
        assert not {"alt_hosts", "round_robin"} & set(options)
    assert at("clickhouse://one/runs", "two", 9000) == "clickhouse://two:9000/runs"
    shown = repr(Node(1, 1, "two:9441", there))
    assert "a%40b" not in shown


def test_a_sink_that_starts_does_not_wait_for_a_silent_node_as_long_as_the_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    report = schema.Report("runnerstream")
    monkeypatch.setattr(schema, "apply", lambda url, cluster: asked.append(url) or report)
    url = "clickhouse://u@h:9000/d?alt_hosts=i:9000"
    sink = Sink(SinkConfig({}, url, group_id="g", cluster="runners"))
    assert sink._prepare(threading.Event())
    [asked_url] = asked
    assert "connect_timeout=5" in asked_url
    assert "send_receive_timeout=60" in asked_url
