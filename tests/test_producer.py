"""The producer, against a real broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import KafkaError

from pipeline.simulate import Simulation
from pipeline.simulate.produce import send_all
from tests.support import brokers
from topics.catalogue import LIFECYCLE, WEBHOOKS
from topics.models import Delivery, LifecycleEvent, LifecycleKind, Tick
from topics.producer import DeliveryError, Producer

T0 = 1_790_000_000_000
PARTITIONS = 4


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[brokers.Broker]:
    with brokers.broker(tmp_path_factory.mktemp("broker"), "embedded") as running:
        create(running)
        yield running


def create(broker: brokers.Broker) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    names = (WEBHOOKS, LIFECYCLE, "keys", "small")
    admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names])
    admin.close()


def consumed(
    broker: brokers.Broker, topic: str, number: int
) -> list[tuple[int, bytes | None, bytes]]:
    """The first records of a topic: partition, key, value."""
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest")
    parts = [TopicPartition(topic, n) for n in range(PARTITIONS)]
    consumer.assign(parts)
    consumer.seek_to_beginning(*parts)
    found: list[tuple[int, bytes | None, bytes]] = []
    for _ in range(50):
        for batch in consumer.poll(timeout_ms=200).values():
            found += [(r.partition, r.key, r.value) for r in batch]
        if len(found) >= number:
            break
    consumer.close()
    return found


def test_records_arrive_once_and_in_order_by_key_where_javas_client_puts_them(
    broker: brokers.Broker,
) -> None:
    # Hashes from Apache Kafka's own test of murmur2.
    murmur2 = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    with Producer(broker.bootstrap) as producer:
        for n in range(50):
            for key in murmur2:
                producer.send("keys", key, f"{n}".encode())
        producer.flush(10)
        assert producer.unacknowledged_bytes == 0
    found = consumed(broker, "keys", 150)
    assert len(found) == 150
    for key, hashed in murmur2.items():
        mine = [(partition, value) for partition, k, value in found if k == key]
        assert mine == [((hashed & 0x7FFFFFFF) % PARTITIONS, f"{n}".encode()) for n in range(50)]


def test_models_are_posted_to_their_topics(broker: brokers.Broker) -> None:
    delivery = Delivery(
        id="g",
        kind="github.workflow_job",
        source="github",
        occurred_at=T0,
        received_at=T0 + 5,
        key="github:github.com:7",
        payload='{"workflow_job":{"id":7}}',
    )
    event = LifecycleEvent(
        id="e",
        kind=LifecycleKind.JOB_CLAIMED,
        source="dispatcher",
        occurred_at=T0,
        received_at=T0,
        key="github:github.com:7",
        job_id="7",
        claim="c",
    )
    with Producer(broker.bootstrap) as producer:
        producer.post(delivery)
        producer.post(event)
        with pytest.raises(TypeError, match="Tick records are made by the pipeline itself"):
            producer.post(Tick(id="t", source="s", occurred_at=T0, received_at=T0, key="k"))
    ((_, key, value),) = consumed(broker, WEBHOOKS, 1)
    assert key == b"github:github.com:7"
    assert Delivery.model_validate_json(value) == delivery
    ((_, _, value),) = consumed(broker, LIFECYCLE, 1)
    assert LifecycleEvent.model_validate_json(value) == event


def test_what_is_not_acknowledged_is_bounded(broker: brokers.Broker) -> None:
    limit = 40_000
    most = 0
    with Producer(broker.bootstrap, max_in_flight_bytes=limit, linger_ms=1) as producer:
        for record in Simulation(1, 20, start_ms=T0, duration_s=60).records():
            producer.send("small", record.key, record.value)
            most = max(most, producer.unacknowledged_bytes)
    assert 10_000 < most <= limit
    assert producer.unacknowledged_bytes == 0


def test_a_record_that_is_too_large_is_named(broker: brokers.Broker) -> None:
    producer = Producer(broker.bootstrap)
    with pytest.raises(
        DeliveryError, match=r"not delivered to small \(a key\): .*TooLarge"
    ) as caught:
        producer.send("small", b"a key", bytes(40 * 1024 * 1024))
    assert (caught.value.topic, caught.value.key) == ("small", b"a key")
    producer.close()
    producer.close()
    with pytest.raises(RuntimeError, match="closed"):
        producer.send("small", b"k", b"v")


def test_no_broker_is_an_error_at_once() -> None:
    with pytest.raises(KafkaError):
        Producer("127.0.0.1:9", bootstrap_timeout_ms=300)


def test_a_broker_that_goes_away_surfaces_with_topic_and_key(tmp_path: Path) -> None:
    with brokers.broker(tmp_path, "embedded") as doomed:
        create(doomed)
        options = {"delivery_timeout_ms": 1_500, "request_timeout_ms": 500, "linger_ms": 0}
        first = Producer(doomed.bootstrap, **options)  # type: ignore[arg-type]
        second = Producer(doomed.bootstrap, **options)  # type: ignore[arg-type]
        for producer in (first, second):
            producer.send("small", b"k", b"before")
            producer.flush(5)
        doomed.kill()
        first.send("small", b"job 7", b"after")
        with pytest.raises(DeliveryError, match=r"not delivered to small \(job 7\)"):
            first.flush(10)
        # Told once; the next flush has nothing to complain about.
        first.flush(1)
        first.close(2)
        # In a ``with`` block that fails for another reason, that reason stays in front.
        with pytest.raises(ZeroDivisionError) as caught:
            post_and_fail(second)
        assert any("while closing the producer" in note for note in caught.value.__notes__)


def post_and_fail(producer: Producer) -> None:
    with producer:
        producer.send("small", b"job 8", b"after")
        raise ZeroDivisionError


def test_a_simulation_goes_through(broker: brokers.Broker) -> None:
    sim = Simulation(3, 50, start_ms=T0, duration_s=600)
    with Producer(broker.bootstrap) as producer:
        sent = send_all(sim.records(), producer)
    truth = sim.truth()
    assert sent.records == sum(truth.sent.values())
    # One record of each topic is there already.
    for topic, number in truth.sent.items():
        assert len(consumed(broker, topic, number + 1)) == number + 1
