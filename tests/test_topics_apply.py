"""Applying the catalogue to real brokers: Apache Kafka and the embedded one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from pipeline import local
from tests.support import brokers, kafka
from topics.apply import TopicsError, TopicsMismatch, apply, plan
from topics.catalogue import (
    DEAD_LETTERS,
    MAX_DEAD_LETTER_BYTES,
    MAX_WEBHOOK_BYTES,
    TOPICS,
    WEBHOOKS,
    Topic,
    TopicSpec,
    catalogue,
)
from topics.models import DeadLetter, Reason
from topics.tables import Stage, TableSpec


@pytest.fixture(scope="module", params=["kafka", "embedded"])
def options(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    kind: brokers.Kind = request.param
    absent = kafka.missing() if kind == "kafka" else local.unavailable()
    if absent and os.environ.get(brokers.VARIABLE) != kind:
        pytest.skip(absent)
    with brokers.broker(tmp_path_factory.mktemp(kind), kind) as broker:
        yield {"bootstrap_servers": broker.bootstrap}


@pytest.fixture
def on_kafka(options: dict[str, Any], request: pytest.FixtureRequest) -> bool:
    return bool(request.node.callspec.params["options"] == "kafka")


@pytest.fixture
def specs(request: pytest.FixtureRequest) -> tuple[TopicSpec, ...]:
    """The catalogue under names of this test's own, since the brokers are shared."""
    prefix = request.node.name.partition("[")[0]
    return tuple(replace(spec, name=f"{prefix}.{spec.name}") for spec in catalogue(partitions=2))


@pytest.fixture
def admin(options: dict[str, Any]) -> Iterator[Any]:
    client = KafkaAdminClient(**options)
    yield client
    client.close()


def settings(admin: Any, topic: str) -> dict[str, str]:
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    found = admin.describe_configs([resource], config_filter="all")["topic"][topic]
    return {key: entry["value"] for key, entry in found.items()}


def test_creates_everything_as_described_and_then_nothing(
    options: dict[str, Any], specs: tuple[TopicSpec, ...], admin: Any
) -> None:
    names = tuple(spec.name for spec in specs)
    before = plan(options, specs)
    assert before.create == specs
    assert not before.unchanged
    first = apply(options, specs)
    assert sorted(first.created) == sorted(names)
    second = apply(options, specs)
    assert (second.created, second.unchanged, second.drift) == ((), names, ())
    assert second.unknown == ()
    described = {topic["name"]: topic["partitions"] for topic in admin.describe_topics(names)}
    for spec in specs:
        assert len(described[spec.name]) == spec.partitions
        assert settings(admin, spec.name).items() >= spec.settings().items()


def test_refuses_all_contradictions_at_once_and_creates_nothing(
    options: dict[str, Any], specs: tuple[TopicSpec, ...]
) -> None:
    wrong = (
        replace(specs[0], partitions=3),
        replace(specs[3], cleanup="delete", retention_ms=1000),
    )
    apply(options, wrong)
    assert len(plan(options, specs).mismatches) == 2
    with pytest.raises(TopicsMismatch) as raised:
        apply(options, specs)
    message = str(raised.value)
    assert f"{specs[0].name}: partitions is 3, should be 2" in message
    assert f"{specs[3].name}: cleanup.policy is delete, should be compact" in message
    assert len(raised.value.mismatches) == 2
    assert len(plan(options, specs).create) == len(specs) - 2


def test_settings_that_differ_are_told_and_left_alone_unless_asked(
    options: dict[str, Any], specs: tuple[TopicSpec, ...], admin: Any
) -> None:
    spec = specs[0]
    apply(options, [replace(spec, retention_ms=60_000)])
    report = apply(options, specs[:1])
    assert [str(each) for each in report.drift] == [
        f"{spec.name}: retention.ms is 60000, should be {spec.retention_ms}"
    ]
    assert report.unchanged == ()
    assert settings(admin, spec.name)["retention.ms"] == "60000"
    mended = apply(options, specs[:1], mend=True)
    assert (len(mended.mended), mended.drift) == (1, ())
    assert settings(admin, spec.name)["retention.ms"] == str(spec.retention_ms)
    assert apply(options, specs[:1]).unchanged == (spec.name,)


def test_what_the_broker_does_not_tell_is_unknown_and_no_mismatch(
    options: dict[str, Any], specs: tuple[TopicSpec, ...], admin: Any, on_kafka: bool
) -> None:
    spec = specs[0]
    admin.create_topics({spec.name: {"num_partitions": 2, "replication_factor": 1}})
    admin.wait_for_topics([spec.name])
    found = plan(options, [spec])
    assert found.mismatches == ()
    # Kafka tells its defaults too; the embedded broker only what the topic was created with.
    assert found.unknown == (() if on_kafka else (spec.name,))
    assert bool(found.drift) == on_kafka


def test_two_may_apply_at_the_same_time(
    options: dict[str, Any], specs: tuple[TopicSpec, ...]
) -> None:
    with ThreadPoolExecutor(4) as pool:
        reports = [each.result() for each in [pool.submit(apply, options, specs) for _ in "1234"]]
    created = [name for report in reports for name in report.created]
    assert sorted(created) == sorted(spec.name for spec in specs)


def test_every_refusal_of_the_cluster_is_named(
    options: dict[str, Any], specs: tuple[TopicSpec, ...], on_kafka: bool
) -> None:
    if not on_kafka:
        pytest.skip("the embedded broker accepts any replication factor")
    greedy = [replace(spec, replication_factor=3) for spec in specs[:2]]
    with pytest.raises(TopicsError, match="InvalidReplicationFactor") as raised:
        apply(options, greedy)
    assert all(spec.name in str(raised.value) for spec in greedy)
    apply(options, specs[:1])
    with pytest.raises(TopicsMismatch, match="replication factor is 1, should be 3"):
        apply(options, greedy[:1])


def test_a_cluster_that_is_not_there_is_named(free_tcp_port_of_nobody: int) -> None:
    where = f"127.0.0.1:{free_tcp_port_of_nobody}"
    with pytest.raises(TopicsError, match=where):
        plan({"bootstrap_servers": where, "bootstrap_timeout_ms": 300}, catalogue())


@pytest.fixture
def free_tcp_port_of_nobody() -> int:
    from pipeline.local.process import free_port

    return free_port()


def test_the_largest_webhook_passes_with_default_consumers(
    options: dict[str, Any], specs: tuple[TopicSpec, ...]
) -> None:
    by_name = {spec.name.partition(".")[2]: spec for spec in specs}
    webhooks = by_name[WEBHOOKS]
    apply(options, [webhooks])
    body = b"x" * (MAX_WEBHOOK_BYTES - 4096)

    async def through() -> list[int]:
        producer = AIOKafkaProducer(**options, max_request_size=MAX_WEBHOOK_BYTES)
        consumer = AIOKafkaConsumer(**options)
        await producer.start()
        await consumer.start()
        try:
            for value in (b"small", body, b"small"):
                await producer.send_and_wait(webhooks.name, value, partition=0)
            consumer.assign([TopicPartition(webhooks.name, 0)])
            await consumer.seek_to_beginning()
            return [len((await consumer.getone()).value) for _ in range(3)]
        finally:
            await consumer.stop()
            await producer.stop()

    assert asyncio.run(asyncio.wait_for(through(), 30)) == [5, len(body), 5]


def test_every_webhook_fits_into_a_dead_letter() -> None:
    letter = DeadLetter(
        id=f"{WEBHOOKS}:0:1",
        source="test",
        occurred_at=1_750_000_000_000,
        received_at=1_750_000_000_000,
        key="k",
        reason=next(iter(Reason)),
        stage="normalise",
        error="\x00" * 2000,
        topic=WEBHOOKS,
        partition=0,
        offset=1,
    ).model_copy(update={"record_value": b"\xff" * MAX_WEBHOOK_BYTES})
    assert len(letter.model_dump_json()) < MAX_DEAD_LETTER_BYTES - 65536
    assert MAX_DEAD_LETTER_BYTES < 100 * 1024 * 1024


def test_kafka_keeps_its_port_and_data_over_kill_9(tmp_path: Path) -> None:
    absent = kafka.missing()
    if absent:
        pytest.skip(absent)
    with kafka.ApacheKafka(tmp_path) as broker:
        options = {"bootstrap_servers": broker.bootstrap}
        apply(options, catalogue())
        pid = broker.pid
        broker.restart()
        assert broker.alive()
        assert broker.pid != pid
        assert {"bootstrap_servers": broker.bootstrap} == options
        assert not plan(options, catalogue()).create


def test_the_catalogue_describes_every_topic_once() -> None:
    specs = catalogue(4, 3, 2, app_id="mine")
    names = [spec.name for spec in specs]
    assert len(set(names)) == len(names) == 20
    assert {"mine-jobs-changelog", "mine-fleets-changelog"} < set(names)
    leader = next(spec for spec in specs if spec.name == "mine-__assignor-__leader")
    assert (leader.partitions, leader.cleanup) == (1, "delete")
    for spec in specs:
        assert spec.description
        assert (spec.replication_factor, spec.min_insync_replicas) == (3, 2)
        large = spec.name in (WEBHOOKS, DEAD_LETTERS)
        assert ("max.message.bytes" in spec.settings()) == large


@pytest.mark.parametrize("topic", TOPICS, ids=[topic.name for topic in TOPICS])
def test_a_topic_declares_the_kinds_its_model_takes(topic: Topic) -> None:
    schema = topic.adapter.json_schema()
    told = set()
    for each in (schema, *schema.get("$defs", {}).values()):
        if "received_at" not in each.get("properties", {}):
            continue
        kind = each["properties"]["kind"]
        if "$ref" in kind:
            kind = schema["$defs"][kind["$ref"].rpartition("/")[2]]
        told |= {kind["const"]} if "const" in kind else set(kind.get("enum", ()))
    # Providers name the kinds of their deliveries, so the model leaves them open.
    assert told == (set() if topic.name == WEBHOOKS else set(topic.kinds))
    assert topic.kinds
    assert topic.key


def test_changelogs_follow_from_the_tables() -> None:
    costs = TableSpec("costs", Stage.KNOWING, "what jobs cost")
    names = {spec.name for spec in catalogue(app_id="mine", tables=[costs])}
    assert {name for name in names if name.endswith("-changelog")} == {"mine-costs-changelog"}
    assert {topic.name for topic in TOPICS} < names


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 1, 1), "partitions"),
        ((1, 0, 1), "replication_factor"),
        ((1, 1, 2), "min_insync_replicas"),
    ],
)
def test_the_catalogue_refuses_what_no_cluster_can_do(
    numbers: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        catalogue(*numbers)
