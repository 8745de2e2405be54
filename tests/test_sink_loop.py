"""The whole sink: a real broker, a real ClickHouse, and what goes wrong between them."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.errors import (
    KafkaConnectionError,
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
)
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.structs import MemberState, OffsetAndMetadata

from pipeline.local import EmbeddedClickHouse
from sinks import rows, schema
from sinks.config import SinkConfig
from sinks.consumer import known_options
from sinks.http import HealthServer
from sinks.metrics import FLUSH_REASONS
from sinks.sink import Sink
from sinks.writer import Backoff
from tests.support import PATIENCE, stuck
from tests.support.brokers import Broker, broker, kind
from topics.envelope import Record
from topics.models import Delivery, JobState, LifecycleEvent, Sample, Status

PARTITIONS = 3
#: A group on the embedded broker waits for members half as long as the poll interval.
QUICK_GROUP = {
    "max_poll_interval_ms": 3_000,
    "session_timeout_ms": 6_000,
    "heartbeat_interval_ms": 1_000,
}


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(Path(tmp_path_factory.mktemp("broker"))) as running:
        admin = KafkaAdminClient(bootstrap_servers=running.bootstrap)
        for topic in rows.TOPICS:
            with suppress(TopicAlreadyExistsError):
                admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
        admin.close()
        yield running


@pytest.fixture
def producer(kafka: Broker) -> Iterator[Any]:
    made = KafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all", linger_ms=2)
    yield made
    made.close(timeout=5)


_names = (f"test_loop_{os.getpid()}_{number}" for number in itertools.count())


@pytest.fixture
def config(kafka: Broker, server: EmbeddedClickHouse) -> SinkConfig:
    """A group and a database of its own."""
    if not server.alive():
        server.start()
    name = next(_names)
    return SinkConfig(
        kafka={"bootstrap_servers": kafka.bootstrap, **QUICK_GROUP},
        clickhouse_url=schema.with_database(server.url, name),
        group_id=f"{name}-sink",
        backoff=Backoff(first_s=0.02, longest_s=0.3),
    )


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
        eventually(lambda: bool(errors) or sink.status().partitions > 0)
        yield sink
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()
        # Also when the body has failed: this is why.
        assert errors == []


def eventually(check: Callable[[], Any], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + PATIENCE * seconds
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def now_ms() -> int:
    return int(time.time() * 1000)


def job_state(fleet: str, number: int, rev: int, status: Status = Status.QUEUED) -> JobState:
    at = now_ms()
    return JobState(
        id=f"{fleet}:{number}:{rev}", source="runnerstream", occurred_at=at, received_at=at,
        key=f"github:github.com:{fleet}-{number}", rev=rev, provider="github", host="github.com",
        job_id=f"{fleet}-{number}", status=status, since=at, fleet=fleet, queued_at=at,
        completed_at=at if status is Status.COMPLETED else None,
    )  # fmt: skip


def send(producer: Any, topic: str, record: Record) -> Any:
    return producer.send(topic, key=record.key.encode(), value=record.model_dump_json().encode())


def query(config: SinkConfig, sql: str) -> list[tuple[Any, ...]]:
    with schema.connected(config.clickhouse_url) as client:
        found: list[tuple[Any, ...]] = client.execute(sql)
        return found


def count(config: SinkConfig, table: str, fleet: str) -> int:
    return int(query(config, f"SELECT count() FROM {table} FINAL WHERE fleet = '{fleet}'")[0][0])


def value_of(metric: Any, *labels: str) -> float:
    return float((metric.labels(*labels) if labels else metric)._value.get())


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def committed(kafka: Broker, group: str, topic: str) -> int:
    consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap, group_id=group)
    try:
        places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        return sum(consumer.committed(place) or 0 for place in places)
    finally:
        consumer.close()


def test_every_topic_reaches_its_table(config: SinkConfig, producer: Any, kafka: Broker) -> None:
    with running(config) as sink:
        at = now_ms()
        for number in range(50):
            send(producer, rows.JOB_STATES, job_state("all", number, 1))
            send(producer, rows.JOB_STATES, job_state("all", number, 2, Status.COMPLETED))
        send(producer, rows.WEBHOOKS, Delivery(
            id="d", kind="github.workflow_job", source="github", occurred_at=at, received_at=at,
            key="k", payload='{"a":1}',
        ))  # fmt: skip
        send(producer, rows.SAMPLES, Sample(
            id="s", source="r", occurred_at=at, received_at=at, key="all", fleet="all",
            partition=0, status=Status.QUEUED, count=3, oldest_ms=5,
        ))  # fmt: skip
        send(producer, rows.JOB_STATES, stuck.stuck(at, "stuck"))
        send(producer, rows.PROBES, stuck.probe(at, "stuck"))
        send(producer, rows.COMMANDS, stuck.command(at, "stuck"))
        send(producer, rows.COMMANDS, stuck.command(
            at, "stuck", id="wake_fleet|stuck|1", key="stuck", job_key="", n=0,
        ))  # fmt: skip
        send(producer, rows.OUTCOMES, stuck.outcome(at, "stuck"))
        send(producer, rows.FLEET_STATES, stuck.fleet_state(at, "stuck"))
        send(producer, rows.FLEET_STATES, stuck.fleet_state(at, "forgotten"))
        producer.send(rows.FLEET_STATES, key=b"forgotten", value=None)
        producer.send(rows.JOB_STATES, key=b"x", value=b"{not json \xff")
        producer.send(rows.WEBHOOKS, key=b"x", value=b"{not json either")
        gone = job_state("all", 0, 2)
        producer.send(rows.JOB_STATES, key=gone.key.encode(), value=None)
        producer.flush()
        eventually(lambda: query(config, "SELECT count() FROM dead_letters")[0][0] >= 1)
        eventually(lambda: count(config, "jobs", "all") == 49)
        assert count(config, "job_timings", "all") == 50, "history outlives the tombstone"
        assert count(config, "gauges", "all") == 1
        for table, number in (
            ("stalls", 2), ("probes", 1), ("commands", 2), ("outcomes", 1), ("fleet_states", 1),
        ):  # fmt: skip
            eventually(lambda table=table, number=number: count(config, table, "stuck") == number)
        assert count(config, "fleet_states", "forgotten") == 0
        kinds = query(config, "SELECT unreadable, payload FROM events_raw ORDER BY payload")
        assert kinds == [("", '{"a":1}'), ("not_json", "{not json either")]
        letters = query(config, "SELECT topic, stage, reason, record_value FROM dead_letters")
        assert letters == [(rows.JOB_STATES, "sink", "not_json", b"{not json \xff")]
        assert value_of(sink.metrics.dead_letters, "not_json") == 1
        eventually(lambda: committed(kafka, config.group_id, rows.JOB_STATES) == 103)
        eventually(lambda: set(sink.status().lag.values()) == {0})
        status = sink.status()
        assert (status.ready, status.reason) == (True, "")
        assert status.oldest_unflushed_s == 0.0


def test_a_lone_record_is_written_for_its_age(config: SinkConfig, producer: Any) -> None:
    """It does not wait for others. How long half a second takes on a busy machine is not tested."""
    assert config.latency_s <= 0.5

    def flushes() -> dict[str, float]:
        return {each: value_of(sink.metrics.flushes, each) for each in FLUSH_REASONS}

    with running(config) as sink:
        # What other tests have left in the topics comes first, and some of it is urgent.
        eventually(lambda: set(sink.status().lag.values()) == {0})
        before = flushes()
        for number in range(5):
            send(producer, rows.JOB_STATES, job_state("fast", number, 1))
            producer.flush()
            eventually(lambda wanted=number + 1: count(config, "jobs", "fast") == wanted)
        assert flushes()["size"] == before["size"]
        assert flushes()["latency"] >= before["latency"] + 4


def test_a_clickhouse_outage_pauses_and_loses_nothing(
    config: SinkConfig, producer: Any, server: EmbeddedClickHouse
) -> None:
    small = SinkConfig(
        kafka=config.kafka, clickhouse_url=config.clickhouse_url, group_id=config.group_id,
        backoff=config.backoff, max_records=200,
    )  # fmt: skip
    with running(small) as sink:
        http = HealthServer(sink)
        base = f"http://127.0.0.1:{http.port}"
        eventually(lambda: get(f"{base}/readyz")[0] == 200)
        server.kill()
        for number in range(1500):
            send(producer, rows.JOB_STATES, job_state("outage", number, 1))
        producer.flush()
        eventually(lambda: sink.status().paused)
        time.sleep(QUICK_GROUP["max_poll_interval_ms"] / 1000 + 1)
        status = sink.status()
        assert not status.ready
        assert status.reason.startswith("ClickHouse unreachable for ")
        assert status.alive
        assert status.partitions == PARTITIONS * len(rows.TOPICS), "still in the group"
        assert status.oldest_unflushed_s > 3
        code, body = get(f"{base}/readyz")
        assert code == 503
        assert "unreachable" in json.loads(body)["reason"]
        assert get(f"{base}/healthz")[0] == 200
        assert "runnerstream_sink_clickhouse_up 0.0" in get(f"{base}/metrics")[1]
        server.start()
        eventually(lambda: sink.status().ready)
        eventually(lambda: count(small, "jobs", "outage") == 1500)
        eventually(lambda: not sink.status().paused)
        assert get(f"{base}/nothing")[0] == 404
        http.close()


def test_a_stop_writes_what_was_read_and_commits(config: SinkConfig, producer: Any) -> None:
    """On a topic that no other test writes to, so that every record counts."""
    patient = SinkConfig(
        kafka=config.kafka, clickhouse_url=config.clickhouse_url, group_id=config.group_id,
        latency_s=60.0, urgent_s=60.0,
    )  # fmt: skip

    def stored() -> int:
        return int(
            query(config, "SELECT count() FROM events_raw FINAL WHERE source = 'stop'")[0][0]
        )

    def event(number: int) -> LifecycleEvent:
        return LifecycleEvent(
            id=f"e{number}", kind="job.queued", source="stop", occurred_at=now_ms(),
            received_at=now_ms(), key=f"k{number}", job_id="1",
        )  # fmt: skip

    with running(patient) as first:
        for number in range(100):
            send(producer, rows.LIFECYCLE_EVENTS, event(number))
        producer.flush()
        eventually(lambda: value_of(first.metrics.records, rows.LIFECYCLE_EVENTS) == 100)
        assert stored() == 0, "not due for a minute"
    assert stored() == 100
    assert value_of(first.metrics.flushes, "close") >= 1
    with running(config) as second:
        send(producer, rows.LIFECYCLE_EVENTS, event(100))
        producer.flush()
        eventually(lambda: stored() == 101)
        total = value_of(second.metrics.records, rows.LIFECYCLE_EVENTS)
        assert total == 1, "nothing is read again"


def test_a_rebalance_loses_nothing(config: SinkConfig, producer: Any) -> None:
    stop = threading.Event()
    sent = 0

    def produce() -> None:
        nonlocal sent
        while not stop.is_set():
            send(producer, rows.JOB_STATES, job_state("moves", sent, 1))
            sent += 1
            time.sleep(0.001)

    with running(config) as first:
        source = threading.Thread(target=produce)
        source.start()
        eventually(lambda: sent > 200)
        everything = PARTITIONS * len(rows.TOPICS)
        with running(config) as second:
            eventually(
                lambda: (
                    0 < first.status().partitions < everything
                    and first.status().partitions + second.status().partitions == everything
                )
            )
            time.sleep(1)
        eventually(lambda: first.status().partitions == everything)
        stop.set()
        source.join()
        producer.flush()
        eventually(lambda: count(config, "jobs", "moves") == sent)
        eventually(lambda: set(first.status().lag.values()) == {0})


def test_a_partition_that_comes_back_is_where_the_other_one_left_it(
    config: SinkConfig, producer: Any
) -> None:
    """What was reached before it moved away is neither shown as lag nor committed at the end."""
    ends: dict[Any, int] = {}

    def send_some(first: int) -> None:
        for number in range(first, first + 60):
            done = send(producer, rows.JOB_STATES, job_state("back", number, 1)).get(10)
            ends[TopicPartition(done.topic, done.partition)] = done.offset + 1
        eventually(lambda: count(config, "jobs", "back") == first + 60)

    with running(config) as first:
        send_some(0)
        everything = PARTITIONS * len(rows.TOPICS)
        with running(config) as second:
            eventually(lambda: 0 < first.status().partitions < everything)
            eventually(lambda: second.status().partitions)
            send_some(60)
        eventually(lambda: first.status().partitions == everything)
        eventually(lambda: set(first.status().lag.values()) == {0})
    assert offsets(config) == ends


def offsets(config: SinkConfig) -> dict[Any, int]:
    """What the group has committed on the partitions of job states."""
    client = KafkaConsumer(
        bootstrap_servers=config.kafka["bootstrap_servers"], group_id=config.group_id
    )
    try:
        places = [TopicPartition(rows.JOB_STATES, n) for n in range(PARTITIONS)]
        return {each: client.committed(each) for each in places}
    finally:
        client.close(autocommit=False)


def test_a_letter_too_large_for_its_topic_goes_without_the_record(
    config: SinkConfig, producer: Any
) -> None:
    """900 kB fit into the log, their base64 does not fit into a topic with Kafka's defaults."""
    big = b"#" * 900_000
    future = producer.send(rows.SAMPLES, key=b"big", value=big)
    producer.flush()
    offset = future.get().offset
    with running(config):
        where = f"topic = '{rows.SAMPLES}' AND offset = {offset}"
        eventually(lambda: query(config, f"SELECT count() FROM dead_letters WHERE {where}")[0][0])
        ((value, error),) = query(
            config, f"SELECT record_value, error FROM dead_letters FINAL WHERE {where}"
        )
    # The embedded broker knows no limits.
    assert value == big.decode() or (value == "" and "900000 bytes not carried" in error)


def test_a_refused_connection_is_trouble_and_not_the_end(config: SinkConfig) -> None:
    # kafka-python raises it from poll() when the coordinator is looked for at that moment.
    sink = Sink(config)

    class Consumer:
        error: KafkaError = KafkaConnectionError("refused")

        def poll(self, timeout_ms: int) -> Any:
            raise self.error

    consumer = Consumer()
    assert sink._poll(consumer, 0.0) == {}
    assert sink._broker.now is not None
    assert "refused" in sink._broker.now[1]
    consumer.error = TopicAuthorizationFailedError()
    with pytest.raises(TopicAuthorizationFailedError):
        sink._poll(consumer, 0.0)


def transactional(kafka: Broker, name: str) -> Any:
    made = KafkaProducer(
        bootstrap_servers=kafka.bootstrap, acks="all", transactional_id=f"{name}-{os.getpid()}"
    )
    made.init_transactions()
    return made


def real_kafka() -> None:
    if kind() == "embedded":
        pytest.skip("the embedded broker keeps no transactions apart and deletes no records")


def test_marks_of_transactions_leave_no_lag_and_what_was_aborted_was_never_said(
    config: SinkConfig, kafka: Broker
) -> None:
    real_kafka()
    writer = transactional(kafka, "marks")
    try:
        with running(config) as sink:
            for number in range(3):
                writer.begin_transaction()
                send(writer, rows.JOB_STATES, job_state("committed", number, 1))
                writer.commit_transaction()
                writer.begin_transaction()
                doubtful = job_state("aborted", number, 1, Status.COMPLETED)
                send(writer, rows.JOB_STATES, doubtful).get(10)
                writer.abort_transaction()
            eventually(lambda: count(config, "jobs", "committed") == 3)
            eventually(lambda: offsets(config) == ends(config))
            eventually(lambda: set(sink.status().lag.values()) == {0})
            assert sink.status().ready
            assert count(config, "jobs", "aborted") == 0
            assert sink.status().holes == ()
    finally:
        writer.close()


def ends(config: SinkConfig) -> dict[Any, int]:
    """Where the partitions of job states end, marks of transactions included."""
    client = KafkaConsumer(bootstrap_servers=config.kafka["bootstrap_servers"])
    try:
        found: dict[Any, int] = client.end_offsets(
            [TopicPartition(rows.JOB_STATES, n) for n in range(PARTITIONS)]
        )
        return found
    finally:
        client.close(autocommit=False)


def test_what_retention_removed_is_counted_and_shown(
    config: SinkConfig, producer: Any, kafka: Broker
) -> None:
    """Both ways: while the sink was away, and before it had read what it would have read next."""
    real_kafka()

    def remove(upto: int) -> None:
        admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        admin.delete_records({TopicPartition(rows.SAMPLES, 1): upto})
        admin.close()

    def sample(number: int) -> int:
        at = now_ms() + number
        model = Sample(
            id=f"h{number}", source="r", occurred_at=at, received_at=at, key="h", fleet="hole",
            partition=0, status=Status.QUEUED, count=number, oldest_ms=5,
        )  # fmt: skip
        value = model.model_dump_json().encode()
        return int(producer.send(rows.SAMPLES, partition=1, value=value).get(10).offset)

    with running(config):
        first = sample(0)
        eventually(lambda: count(config, "gauges", "hole") == 1)
    for number in range(1, 31):
        last = sample(number)
    remove(first + 21)
    with running(config) as sink:
        eventually(lambda: count(config, "gauges", "hole") == 1 + 10)
        eventually(lambda: sink.status().holes)
        (hole,) = sink.status().holes
        assert (hole.topic, hole.partition, hole.first, hole.last, hole.records) == (
            rows.SAMPLES, 1, first + 1, first + 20, 20,
        )  # fmt: skip
        assert value_of(sink.metrics.lost_records, rows.SAMPLES) == 20
        eventually(lambda: sink.status().lag[rows.SAMPLES] == 0)
        server = HealthServer(sink)
        try:
            code, body = get(f"http://127.0.0.1:{server.port}/readyz")
        finally:
            server.close()
        assert code == 200
        assert json.loads(body)["holes"][0]["records"] == 20
    assert last == first + 30


class Log:
    """What the sink asks of its consumer, over partitions whose offsets a test decides."""

    def __init__(self, begin: int, committed: int | None) -> None:
        self.begin, self.commit = begin, committed
        self.at: int | None = None
        self._subscription = self
        self.assignment: Any = self

    def get(self, where: Any) -> Any:
        return self if self.at is not None else None

    @property
    def position(self) -> Any:
        return None if self.at is None else OffsetAndMetadata(self.at, "", -1)

    def beginning_offsets(self, places: Any, timeout_ms: int) -> dict[Any, int]:
        return dict.fromkeys(places, self.begin)

    def committed(self, where: Any, timeout_ms: int) -> int | None:
        return self.commit


@pytest.mark.parametrize(
    ("begin", "committed", "starts", "lost"),
    [(0, None, 0, 0), (0, 5, 5, 0), (7, None, 7, 0), (7, 3, 7, 4), (7, 9, 9, 0), (7, 7, 7, 0)],
)
def test_where_a_partition_begins_tells_what_is_gone(
    begin: int, committed: int | None, starts: int, lost: int
) -> None:
    sink = Sink(SinkConfig(kafka={}, clickhouse_url="clickhouse://h", group_id="g"))
    where = TopicPartition(rows.SAMPLES, 0)
    sink._members.owned.on_partitions_assigned([where])
    log = Log(begin, committed)
    sink._progress.take(log, {}, sink._batch, 1.0)  # its position is still looked for
    log.at = starts
    sink._progress.take(log, {}, sink._batch, 1.0)
    sink._progress.look_into(log)
    assert sum(hole.records for hole in sink.status().holes) == lost
    assert sink._batch.first is None, "there is nothing to commit"
    # A jump over what compaction took, or marks of transactions: to be committed, and no loss.
    log.at = starts + 40
    sink._progress.take(log, {}, sink._batch, 2.0)
    sink._progress.look_into(log)
    assert sum(hole.records for hole in sink.status().holes) == lost
    assert sink._batch.offsets == {where: (starts + 40, 1)}
    # Retention has overtaken us.
    log.begin = starts + 60
    log.at = starts + 70
    sink._progress.take(log, {}, sink._batch, 3.0)
    sink._progress.look_into(log)
    assert sink.status().holes[0].records == 20
    assert sum(hole.records for hole in sink.status().holes) == lost + 20


def test_a_batch_that_cannot_be_decoded_becomes_a_letter(
    config: SinkConfig, kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apache Kafka refuses such a batch when it is sent. On its disk one may go bad."""
    if kind() != "embedded":
        pytest.skip("Apache Kafka checks what is sent; tests/test_sink_consumer.py has the bytes")
    whole = DefaultRecordBatchBuilder.build

    def broken(self: Any) -> Any:
        made = whole(self)
        made[17] ^= 0xFF
        return made

    def post(number: int) -> Any:
        made = KafkaProducer(
            bootstrap_servers=kafka.bootstrap, enable_idempotence=False, linger_ms=100
        )
        for each in range(3):
            sent = job_state("undecodable", number + each, 1)
            future = made.send(rows.JOB_STATES, partition=0, key=sent.key.encode(),
                               value=sent.model_dump_json().encode())  # fmt: skip
        made.flush()
        made.close()
        return future.get(10)

    with running(config) as sink:
        post(0)
        monkeypatch.setattr(DefaultRecordBatchBuilder, "build", broken)
        last = post(10).offset
        monkeypatch.undo()
        post(20)
        eventually(lambda: count(config, "jobs", "undecodable") == 6)
        place = f"topic = '{rows.JOB_STATES}' AND partition = 0 AND offset = {last - 2}"
        letters = f"SELECT reason, stage, error FROM dead_letters FINAL WHERE {place}"
        eventually(lambda: query(config, letters))
        ((reason, stage, error),) = query(config, letters)
        assert (reason, stage) == ("undecodable", "sink")
        assert f"offsets {last - 2} to {last}" in error
        assert "checksum" in error
        assert value_of(sink.metrics.dead_letters, "undecodable") == 1
        eventually(lambda: set(sink.status().lag.values()) == {0})
        assert sink.status().ready


def test_a_silent_clickhouse_is_waited_for(
    config: SinkConfig, producer: Any, server: EmbeddedClickHouse
) -> None:
    """It accepts connections and says nothing, as a frozen machine does. Nothing is dropped."""
    impatient = SinkConfig(
        kafka=config.kafka, group_id=config.group_id, max_records=200, backoff=config.backoff,
        clickhouse_url=config.clickhouse_url + "?send_receive_timeout=1&connect_timeout=1",
    )  # fmt: skip
    with running(impatient) as sink:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for number in range(1500):
                send(producer, rows.JOB_STATES, job_state("silent", number, 1))
            producer.flush()
            eventually(lambda: "not answering" in sink.status().reason)
            eventually(lambda: sink.status().paused)
            assert sink.status().alive
            assert sink.status().partitions == PARTITIONS * len(rows.TOPICS)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        eventually(lambda: count(config, "jobs", "silent") == 1500)
        eventually(lambda: sink.status().ready and not sink.status().paused)


def test_a_member_that_the_group_has_forgotten_joins_anew(
    config: SinkConfig, producer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a join that was lost: no heartbeats, no partitions, no error."""
    quick = replace(config, rejoin_s=4.0)
    with running(quick) as sink:
        eventually(lambda: sink.status().ready)
        stuck = _stuck(monkeypatch)
        eventually(lambda: not sink.status().ready)
        assert "not a member of the group" in sink.status().reason
        stuck.clear()
        send(producer, rows.JOB_STATES, job_state("rejoined", 1, 1))
        eventually(lambda: value_of(sink.metrics.rejoins) >= 1)
        eventually(lambda: sink.status().ready)
        eventually(lambda: count(config, "jobs", "rejoined") == 1)
        assert sink.status().partitions == PARTITIONS * len(rows.TOPICS)


def _stuck(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Lose the membership of the consumer that polls next, for good: as a join does whose end
    nobody collects. Consumers made later are well."""
    victim: list[Any] = []
    armed = [True]
    poll = ConsumerCoordinator.poll

    def lost(self: Any, timeout_ms: int | None = None) -> Any:
        if armed and not victim:
            victim.append(self)
            self._disable_heartbeat()
            self.state = MemberState.REBALANCING
        if victim and self is victim[0]:
            time.sleep(0.01)
            return False
        return poll(self, timeout_ms)

    monkeypatch.setattr(ConsumerCoordinator, "poll", lost)
    return armed


def test_alive_ends_when_joining_anew_does_not_help(config: SinkConfig) -> None:
    sink = Sink(replace(config, rejoin_s=5.0))
    sink._preparing = None
    sink._members.owned.joined = True
    sink._members.absent = (time.monotonic() - 8, "not a member of the group (rebalancing)")
    sink._turned = time.monotonic()
    assert sink.status().alive
    assert not sink.status().ready
    assert "rebalancing" in sink.status().reason
    sink._members.absent = (time.monotonic() - 11, "not a member of the group (rebalancing)")
    assert not sink.status().alive


def test_a_lag_that_is_not_known_is_not_zero() -> None:
    sink = Sink(SinkConfig(kafka={}, clickhouse_url="clickhouse://h", group_id="g"))
    assert sink.status().lag == {}
    where = TopicPartition(rows.SAMPLES, 0)
    sink._members.owned.on_partitions_assigned([where])
    log: Any = Log(0, None)
    log.end_offsets = lambda places, timeout_ms: {where: 9}
    sink._members.absent = (0.0, "not a member of the group (rebalancing)")
    sink._progress.observe(log, 100.0, member=sink._members.absent is None)
    assert sink.status().lag == {}
    sink._members.absent = None
    sink._progress.observe(log, 100.0, member=sink._members.absent is None)
    others = set(rows.TOPICS) - {rows.SAMPLES}
    assert sink.status().lag == dict.fromkeys(others, 0), "its position is still looked for"
    log.at = 4
    sink._progress.take(log, {}, sink._batch, 101.0)
    sink._progress.observe(log, 101.0, member=sink._members.absent is None)
    assert sink.status().lag[rows.SAMPLES] == 5
    gauge = sink.metrics.lag.labels(rows.SAMPLES)._value
    assert gauge.get() == 5
    sink._members.absent = (102.0, "not a member of the group (rebalancing)")
    sink._progress.observe(log, 102.0, member=sink._members.absent is None)
    assert math.isnan(gauge.get())


def test_a_job_that_expired_and_is_heard_of_again_shows_again(
    config: SinkConfig, producer: Any
) -> None:
    """Whatever its rev: the log says which is later. Also when all of it is read again."""

    def shown() -> Any:
        return query(config, "SELECT status, rev FROM jobs_latest WHERE fleet = 'again'")

    def post(state: JobState | None) -> None:
        key = job_state("again", 1, 1).key.encode()
        value = None if state is None else state.model_dump_json().encode()
        producer.send(rows.JOB_STATES, key=key, value=value).get(10)

    with running(config):
        post(job_state("again", 1, 7))
        eventually(lambda: shown() == [("queued", 7)])
        post(None)
        eventually(lambda: shown() == [])
        post(job_state("again", 1, 2, Status.COMPLETED))
        eventually(lambda: shown() == [("completed", 2)])
        post(None)
        eventually(lambda: shown() == [])
        post(job_state("again", 1, 1, Status.RUNNING))
        eventually(lambda: shown() == [("running", 1)])
        live = "SELECT status, jobs FROM queue_now WHERE fleet = 'again'"
        assert query(config, live) == [("running", 1)]
    # Another group reads everything once more, into the same tables.
    with running(replace(config, group_id=f"{config.group_id}-2", max_records=200)) as sink:
        eventually(lambda: sink.status().partitions and set(sink.status().lag.values()) == {0})
        assert shown() == [("running", 1)]


@pytest.mark.slow
def test_a_flood_of_malformed_records_stops_nothing(config: SinkConfig, producer: Any) -> None:
    """100,000 of them at full speed, good ones between: all are letters, none holds up the rest."""
    bad, good = 100_000, 1_000
    with running(config) as sink:
        for number in range(bad):
            producer.send(rows.SAMPLES, value=b"{malformed %d" % number)
            if number % (bad // good) == 0:
                send(producer, rows.JOB_STATES, job_state("flood", number, 1))
        producer.flush()
        eventually(lambda: count(config, "jobs", "flood") == good, 600)
        letters = (
            f"SELECT uniqExact(partition, offset) FROM dead_letters WHERE topic = '{rows.SAMPLES}'"
            " AND startsWith(record_value, '{malformed')"
        )
        eventually(lambda: query(config, letters) == [(bad,)], 900)
        eventually(lambda: set(sink.status().lag.values()) == {0}, 60)
        assert sink.status().ready
        assert value_of(sink.metrics.dead_letters, "not_json") >= bad


@pytest.mark.slow
def test_a_broker_outage_is_said_and_survived(
    config: SinkConfig, producer: Any, kafka: Broker
) -> None:
    if kind() == "embedded":
        pytest.skip("the embedded broker forgets everything when it ends")
    with running(config) as sink:
        send(producer, rows.JOB_STATES, job_state("broker", 1, 1))
        producer.flush()
        eventually(lambda: count(config, "jobs", "broker") == 1)
        kafka.kill()
        eventually(lambda: sink.status().reason.startswith("Kafka failing for "))
        assert sink.status().alive
        kafka.start()
        eventually(lambda: sink.status().ready)
        send(producer, rows.JOB_STATES, job_state("broker", 2, 1))
        producer.flush()
        eventually(lambda: count(config, "jobs", "broker") == 2)


_PROGRAM = """
import json, sys, threading
from sinks.config import SinkConfig
from sinks.sink import Sink
options = json.loads(sys.argv[1])
Sink(SinkConfig(**options)).run(threading.Event())
"""


@pytest.mark.crash
def test_a_killed_sink_repeats_and_changes_nothing(config: SinkConfig, producer: Any) -> None:
    options = {
        "kafka": dict(config.kafka),
        "clickhouse_url": config.clickhouse_url,
        "group_id": config.group_id,
        "max_records": 50,
        "latency_s": 0.05,
    }
    child = subprocess.Popen([sys.executable, "-c", _PROGRAM, json.dumps(options)])
    try:
        for number in range(2_000):
            send(producer, rows.JOB_STATES, job_state("killed", number, 1))
        producer.flush()
        eventually(lambda: _exists(config) and count(config, "jobs", "killed") > 300)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    with running(config):
        eventually(lambda: count(config, "jobs", "killed") == 2_000)
        eventually(lambda: count(config, "job_transitions", "killed") == 2_000)


def _exists(config: SinkConfig) -> bool:
    return not schema.pending(config.clickhouse_url)


def test_it_waits_for_its_schema(config: SinkConfig) -> None:
    reader = SinkConfig(
        kafka=config.kafka, clickhouse_url=config.clickhouse_url, group_id=config.group_id,
        migrate=False, backoff=config.backoff,
    )  # fmt: skip
    sink, stop = Sink(reader), threading.Event()
    thread = threading.Thread(target=sink.run, args=(stop,))
    thread.start()
    eventually(lambda: "migrations are to be applied" in sink.status().reason)
    assert not sink.status().ready
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_kafka_options_go_where_they_belong() -> None:
    options = {"bootstrap_servers": "h:9", "session_timeout_ms": 1, "linger_ms": 2}
    consumer = known_options(options, KafkaConsumer, KafkaProducer)
    assert consumer == {"bootstrap_servers": "h:9", "session_timeout_ms": 1}
    assert set(known_options(options, KafkaProducer, KafkaConsumer)) == {
        "bootstrap_servers", "linger_ms",
    }  # fmt: skip
    with pytest.raises(ValueError, match="sesion"):
        known_options({"sesion_timeout": 1}, KafkaConsumer, KafkaProducer)


def test_every_series_exists_from_the_start(kafka: Broker) -> None:
    sink = Sink(SinkConfig(kafka={}, clickhouse_url="clickhouse://h", group_id="g"))
    assert not sink.status().ready
    http = HealthServer(sink)
    try:
        text = get(f"http://127.0.0.1:{http.port}/metrics")[1]
    finally:
        http.close()
    for series in (
        'runnerstream_sink_rows_total{table="jobs"} 0.0',
        'runnerstream_sink_retries_total{reason="systemic"} 0.0',
        'runnerstream_sink_flushes_total{reason="urgent"} 0.0',
        'runnerstream_sink_dead_letters_total{reason="not_json"} 0.0',
        'runnerstream_sink_lag_records{topic="runners.webhooks"} 0.0',
        "runnerstream_sink_oldest_unflushed_seconds 0.0",
    ):
        assert series in text
