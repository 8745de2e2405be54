"""Whatever a producer compresses with: the fold and the sink read it. On a real broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from pipeline.local import EmbeddedClickHouse
from sinks import rows, schema
from sinks.config import SinkConfig
from tests.support.brokers import Broker, broker
from tests.support.worker import WorkerProcess
from tests.test_sink_loop import QUICK_GROUP, count, eventually, job_state, now_ms, query, running
from topics.apply import apply
from topics.catalogue import catalogue
from topics.envelope import Record
from topics.models import Delivery, LifecycleEvent

PARTITIONS = 2
CODECS = (None, "gzip", "snappy", "lz4", "zstd")
DATA = Path(__file__).parent / "data" / "github"


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(Path(tmp_path_factory.mktemp("broker"))) as made:
        apply({"bootstrap_servers": made.bootstrap}, catalogue(partitions=PARTITIONS))
        yield made


def post(kafka: Broker, codec: str | None, topic: str, records: list[Record]) -> None:
    """As one batch, large enough that compression pays."""
    producer: Any = KafkaProducer(
        bootstrap_servers=kafka.bootstrap, acks="all", linger_ms=200, batch_size=1 << 19,
        compression_type=codec, enable_idempotence=False,
    )  # fmt: skip
    try:
        for record in records:
            value = record.model_dump_json().encode()
            producer.send(topic, key=record.key.encode(), value=value)
        producer.flush(30)
    finally:
        producer.close(timeout=5)


def lifecycle(codec: str, number: int) -> LifecycleEvent:
    at = now_ms()
    return LifecycleEvent(
        id=f"{codec}-{number}", kind="job.queued", source="codecs", occurred_at=at,
        received_at=at, key=f"github:github.com:{codec}{number}", job_id=f"{codec}{number}",
    )  # fmt: skip


def delivery(codec: str) -> Delivery:
    at = now_ms()
    return Delivery(
        id=f"delivery-{codec}", kind="github.workflow_job", source="github", occurred_at=at,
        received_at=at, key="github:github.com:1",
        payload=(DATA / "workflow_job.queued.json").read_text(),
    )  # fmt: skip


@pytest.mark.slow
def test_every_codec_is_read_by_the_fold(kafka: Broker) -> None:
    names = [codec or "none" for codec in CODECS]
    with WorkerProcess(kafka.bootstrap, partitions=PARTITIONS) as worker:
        worker.wait_ready()
        for codec, name in zip(CODECS, names, strict=True):
            post(kafka, codec, rows.LIFECYCLE_EVENTS, [lifecycle(name, n) for n in range(20)])
            post(kafka, codec, rows.WEBHOOKS, [delivery(name)])
        for name in names:
            worker.wait(
                lambda name=name: worker.get(f"/jobs/github:github.com:{name}19")[0] == 200,
                30, f"know a job that was compressed with {name}",
            )  # fmt: skip
        worker.wait(lambda: worker.metric("runnerstream_webhooks_total") == len(CODECS), 30,
                    "understand every webhook")  # fmt: skip


def test_every_codec_is_read_by_the_sink(kafka: Broker, server: EmbeddedClickHouse) -> None:
    config = SinkConfig(
        kafka={"bootstrap_servers": kafka.bootstrap, **QUICK_GROUP},
        clickhouse_url=schema.with_database(server.url, "test_codecs"),
        group_id="codecs-sink",
    )
    with running(config):
        for codec in CODECS:
            name = codec or "none"
            states: list[Record] = [job_state(name, number, 1) for number in range(50)]
            post(kafka, codec, rows.JOB_STATES, states)
            post(kafka, codec, rows.WEBHOOKS, [delivery(f"sink-{name}")])
        for codec in CODECS:
            fleet = codec or "none"
            eventually(lambda fleet=fleet: count(config, "jobs", fleet) == 50)
        found = "SELECT count() FROM events_raw FINAL WHERE id LIKE 'delivery-sink-%%'"
        eventually(lambda: query(config, found)[0][0] == len(CODECS))
        assert query(config, "SELECT count() FROM dead_letters") == [(0,)]
