"""A table that was dropped: made again, and filled from the log."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer

from pipeline.local import EmbeddedClickHouse
from sinks import rows, schema
from sinks.config import SinkConfig
from sinks.refill import refill, topics_of
from tests.support import stuck
from tests.support.brokers import Broker, broker
from tests.test_sink_loop import (
    QUICK_GROUP,
    count,
    eventually,
    job_state,
    now_ms,
    query,
    running,
    send,
)
from topics.apply import apply
from topics.catalogue import catalogue
from topics.events import MODELS
from topics.models import (
    Conclusion,
    Delivery,
    Family,
    JobAttributes,
    Sample,
    Status,
    Step,
    Window,
    WindowFamily,
)

PARTITIONS = 2


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(Path(tmp_path_factory.mktemp("broker"))) as made:
        apply({"bootstrap_servers": made.bootstrap}, catalogue(partitions=PARTITIONS))
        yield made


#: An event of each family of telemetry.
TELEMETRY: dict[str, dict[str, Any]] = {
    "dispatch.request": {},
    "pool.sample": {"idle": 1},
    "runner.poll": {"runner": "r"},
    "run.created": {"run_id": "1"},
    "reconciler.action": {"reconciler": "c", "type": "x"},
}


@pytest.fixture(scope="module")
def config(kafka: Broker, server: EmbeddedClickHouse) -> SinkConfig:
    """A database with rows in every table, and the log that they came from."""
    made = SinkConfig(
        kafka={"bootstrap_servers": kafka.bootstrap, **QUICK_GROUP},
        clickhouse_url=schema.with_database(server.url, "test_refill"),
        group_id="refill-sink",
    )
    producer: Any = KafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all", linger_ms=5)
    at = now_ms()
    with running(made):
        for number in range(300):
            send(producer, rows.JOB_STATES, job_state("log", number, 1))
            ended = job_state("log", number, 2, Status.COMPLETED)
            steps = tuple(Step(number=each, name=f"step {each}") for each in (1, 2))
            told = {"steps": steps, "job": JobAttributes(actor="ada", pull_request=number)}
            send(producer, rows.JOB_STATES, ended.model_copy(update=told))
        gone = job_state("log", 7, 1)
        producer.send(rows.JOB_STATES, key=gone.key.encode(), value=None)
        producer.send(rows.JOB_STATES, key=b"x", value=b"{not json")
        send(producer, rows.WEBHOOKS, Delivery(
            id="d", kind="github.workflow_job", source="github", occurred_at=at, received_at=at,
            key="k", payload='{"a":1}',
        ))  # fmt: skip
        send(producer, rows.SAMPLES, Sample(
            id="s", source="r", occurred_at=at, received_at=at, key="log", fleet="log",
            partition=0, status=Status.QUEUED, count=3, oldest_ms=5,
        ))  # fmt: skip
        send(producer, rows.WINDOWS, Window(
            id="w", source="r", occurred_at=at, received_at=at, key="w", fleet="log", partition=0,
            size_s=60, start=at // 60_000 * 60_000, closed=False, rev=1,
            families={Family.RUN: WindowFamily(count=1, sum_ms=5, max_ms=5, bins={80: 1})},
            conclusions={Conclusion.SUCCESS: 1},
        ))  # fmt: skip
        send(producer, rows.JOB_STATES, stuck.stuck(at, "stuck"))
        send(producer, rows.PROBES, stuck.probe(at, "stuck"))
        send(producer, rows.COMMANDS, stuck.command(at, "stuck"))
        send(producer, rows.OUTCOMES, stuck.outcome(at, "stuck"))
        send(producer, rows.FLEET_STATES, stuck.fleet_state(at, "stuck"))
        for kind, said in TELEMETRY.items():
            send(producer, rows.TELEMETRY, MODELS[kind](
                id=kind, kind=kind, source="d", fleet="log", key=kind,
                occurred_at=at, received_at=at, **said,
            ))  # fmt: skip
        producer.flush()
        eventually(lambda: count(made, "jobs", "log") == 299)
        eventually(lambda: all(contents(made).values()))
        eventually(lambda: count(made, "job_steps", "log") == 600)
    producer.close()
    return made


def contents(config: SinkConfig) -> dict[str, list[Any]]:
    """Every table whole, whatever the order of its columns."""

    def whole(table: rows.Table) -> list[Any]:
        listed = ", ".join(f"`{column}`" for column in table.columns)
        return sorted(query(config, f"SELECT {listed} FROM {table.name} FINAL"), key=repr)

    return {table.name: whole(table) for table in rows.TABLES}


#: They have topics of their own, and are filled together: each refill waits for a while.
RECOVERY = [rows.STALLS.name, *(name for topic in (rows.PROBES, rows.COMMANDS, rows.OUTCOMES,
            rows.FLEET_STATES) for name in rows.MAKES[topic])]  # fmt: skip


@pytest.mark.parametrize(
    "dropped",
    [
        *([table.name] for table in rows.TABLES if table.name not in RECOVERY),
        RECOVERY,
        [table.name for table in rows.TABLES],
    ],
)
def test_a_dropped_table_is_filled_from_the_log(config: SinkConfig, dropped: list[str]) -> None:
    before = contents(config)
    for name in dropped:
        query(config, f"DROP TABLE {name} SYNC")
    assert set(schema.apply(config.clickhouse_url).mended) == set(dropped)
    assert all(contents(config)[name] == [] for name in dropped)
    for _ in range(2):  # the second time it replaces every row by itself
        done = refill(config.kafka, config.clickhouse_url, dropped)
        assert contents(config) == before
        assert all(done.rows[name] > 0 for name in dropped)
        assert set(done.rows) == set(dropped)


def test_columns_that_came_later_are_filled_in_from_the_log(config: SinkConfig) -> None:
    """The rows are there already, of the same version and without the columns."""
    before = contents(config)
    for table in ("jobs", "job_timings"):
        query(config, f"ALTER TABLE {table} DROP COLUMN actor, DROP COLUMN pull_request")
    schema.apply(config.clickhouse_url)
    known = (
        "SELECT count(), countIf(actor = 'ada'), max(pull_request) FROM jobs FINAL"
        " WHERE fleet = 'log'"
    )
    assert query(config, known) == [(299, 0, 0)]
    refill(config.kafka, config.clickhouse_url, ["jobs", "job_timings"])
    assert query(config, known) == [(299, 299, 299)]
    assert contents(config) == before


@pytest.mark.slow
def test_the_runbook_as_it_is_printed(config: SinkConfig, kafka: Broker) -> None:
    """docs/operators.md: a table is gone. With a sink that runs, and goes on by itself."""
    before = contents(config)["gauges"]

    def program(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("RUNNERSTREAM_")} | {
            "RUNNERSTREAM_KAFKA": kafka.bootstrap,
            "RUNNERSTREAM_CLICKHOUSE": config.clickhouse_url,
        }
        return subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *arguments],
            env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip

    producer: Any = KafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all")
    with running(config) as sink:
        query(config, "DROP TABLE gauges SYNC")
        at = now_ms()
        send(producer, rows.SAMPLES, Sample(
            id="s2", source="r", occurred_at=at, received_at=at, key="log", fleet="later",
            partition=0, status=Status.QUEUED, count=3, oldest_ms=5,
        ))  # fmt: skip
        producer.close()
        eventually(lambda: "refusing inserts" in sink.status().reason)
        shown = program("schema", "show")
        assert shown.returncode == 1
        assert "missing: gauges" in shown.stdout
        assert "missing: gauges" in program("doctor").stdout
        refused = program("schema", "refill", "gauges")
        assert refused.returncode == 1
        assert "schema apply" in refused.stderr
        applied = program("schema", "apply")
        assert "runnerstream schema refill gauges" in applied.stdout, applied.stderr
        eventually(lambda: count(config, "gauges", "later") == 1)
        eventually(lambda: sink.status().ready)
        filled = program("schema", "refill", "gauges")
        assert filled.returncode == 0, filled.stderr
        assert "filled   gauges: 2 rows" in filled.stdout
        found = query(config, "SELECT * FROM gauges FINAL WHERE fleet = 'log'")
        assert sorted(found, key=repr) == before
        assert count(config, "gauges", "later") == 1
    assert program("schema", "refill", "nothing").returncode == 2


def test_every_table_has_its_topics() -> None:
    for table in rows.TABLES:
        assert topics_of([table.name]), table.name
    assert set(rows.MAKES) == set(rows.TOPICS)
    assert topics_of(["events_raw"]) == (rows.WEBHOOKS, rows.LIFECYCLE_EVENTS)
    with pytest.raises(ValueError, match="nothing"):
        refill({}, "clickhouse://h", ["nothing"])


def test_a_topic_that_is_made_anew_shows_its_jobs(config: SinkConfig, kafka: Broker) -> None:
    """Its offsets begin at 0 again, its jobs with few facts: what it says is later all the same.

    The last test of this module: the log of the others is gone after it.
    """

    def shown() -> Any:
        return query(config, "SELECT status, rev FROM jobs_latest WHERE key LIKE '%%:log-100'")

    assert shown() == [("completed", 2)]
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    admin.delete_topics([rows.JOB_STATES])
    admin.close()
    specs = [spec for spec in catalogue(partitions=PARTITIONS) if spec.name == rows.JOB_STATES]
    eventually(lambda: apply({"bootstrap_servers": kafka.bootstrap}, specs).created)
    producer: Any = KafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all")
    send(producer, rows.JOB_STATES, job_state("log", 100, 1, Status.RUNNING)).get(10)
    producer.close()
    with running(config):
        eventually(lambda: shown() == [("running", 1)])
    lives = f"SELECT epoch FROM log_epochs FINAL WHERE topic = '{rows.JOB_STATES}' ORDER BY epoch"
    assert query(config, lives) == [(1,), (2,)]
