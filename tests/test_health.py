"""Readiness is what is true: what is left to read, what was lost, what is not read at all, and
what stands still. On a real broker; what only Apache Kafka can do is tried there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.admin import KafkaAdminClient

from pipeline.holes import Holes, missing
from pipeline.web import watch as watch_module
from pipeline.web.health import STUCK_S, WEDGED_S, WORKER_STUCK_S
from pipeline.web.watch import (
    Evidence,
    Lag,
    LagMeter,
    Remains,
    Trouble,
    Watch,
    more_partitions,
)
from tests.support import PATIENCE, brokers
from tests.support.brokers import Broker, broker
from tests.support.house import House
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import JOBS, LIFECYCLE, WEBHOOKS, catalogue

ONE = cast("TopicPartition", TopicPartition("t", 0))

kafka_only = pytest.mark.skipif(
    brokers.kind() != "kafka",
    reason="the embedded broker has no transactions, cannot delete records or add partitions, and "
    "tells a log's end too low",
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as one:
        yield one


@pytest.fixture
def admin(running: Broker) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=running.bootstrap)
    yield client
    client.close()


# -- lag -------------------------------------------------------------------------------------------


def test_lag_is_measured_in_records_and_seconds() -> None:
    meter = LagMeter()
    assert meter.measure(0.0, {ONE: 5}, {ONE: 5}).total == 0
    lag = meter.measure(10.0, {ONE: 5}, {ONE: 8})
    assert (lag.total, lag.seconds, lag.still) == (3, 0.0, 0.0)
    lag = meter.measure(20.0, {ONE: 5}, {ONE: 12})
    assert (lag.total, lag.seconds) == (7, 10.0)
    assert lag.still == 10.0
    assert meter.still(20.0, {ONE: 5}, {ONE: 12}) == [ONE]
    assert meter.still(20.0, {ONE: 6}, {ONE: 12}) == []
    # Commits move: not still any more, and the next record waits since 20.
    lag = meter.measure(30.0, {ONE: 9}, {ONE: 12})
    assert (lag.total, lag.seconds, lag.still) == (3, 10.0, 0.0)
    assert meter.measure(40.0, {ONE: 12}, {ONE: 12}).seconds == 0.0
    # A log end that seems to be behind what is committed is no lag.
    assert meter.measure(50.0, {ONE: 14}, {ONE: 12}).total == 0


@given(
    log=st.lists(st.booleans(), max_size=12),
    done=st.integers(0, 12),
    growth=st.lists(st.booleans(), max_size=4),
)
def test_what_remains_is_told_by_reading_and_asked_once(
    log: list[bool], done: int, growth: list[bool]
) -> None:
    """``log``: whether each offset holds a record that may be read."""
    asked: list[int] = []
    now = log

    def first_record(where: TopicPartition, start: int, end: int) -> int | None:
        asked.append(start)
        return next((n for n in range(start, end) if now[n]), None)

    remains = Remains(first_record)
    for now in (log, log + growth):
        end = len(now)
        first = next((n for n in range(min(done, end), end) if now[n]), max(end, done))
        assert remains.next(ONE, done, end, ask=True) == first
        # The answer is known now.
        before = len(asked)
        assert remains.next(ONE, done, end, ask=True) == first
        assert remains.next(ONE, done, end, ask=False) == first
        assert len(asked) == before


def _watch(running: Broker, app_id: str, partitions: int = 1, **attributes: Any) -> Watch:
    house = House({})
    house.worker.settings = house.worker.settings.model_copy(
        update={"kafka": running.bootstrap, "partitions": partitions, "app_id": app_id}
    )
    house.worker.owned = lambda: list(range(partitions))
    for name, value in attributes.items():
        setattr(house.worker, name, value)
    return Watch(house.worker)


def _commit(running: Broker, group: str, offsets: dict[tuple[str, int], int]) -> None:
    consumer = KafkaConsumer(
        bootstrap_servers=running.bootstrap, group_id=group, enable_auto_commit=False
    )
    wanted = {
        TopicPartition(*where): OffsetAndMetadata(at, "", -1) for where, at in offsets.items()
    }
    consumer.assign(list(wanted))
    consumer.commit(wanted)
    consumer.close()


def _topics(running: Broker, app_id: str, partitions: int = 1) -> None:
    apply({"bootstrap_servers": running.bootstrap}, catalogue(app_id=app_id, partitions=partitions))


def _until(watch: Watch, done: Callable[[Evidence], bool], seconds: float = 40) -> Evidence:
    """Look until something is seen."""
    evidence = Evidence(0.0)
    deadline = time.monotonic() + PATIENCE * seconds
    while time.monotonic() < deadline:
        evidence = watch._look(evidence)
        if evidence.broker is None and done(evidence):
            return evidence
        time.sleep(0.3)
    raise AssertionError(f"not seen: {evidence}")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Broker]:
    with broker(tmp_path / "alone") as one:
        yield one


@kafka_only
def test_control_and_aborted_records_are_no_lag(
    alone: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "EVERY_S", 0.5)
    _topics(alone, "marks")
    producer = KafkaProducer(bootstrap_servers=alone.bootstrap, transactional_id="t")
    producer.init_transactions()
    producer.begin_transaction()
    for _ in range(3):
        producer.send(JOBS, b"committed", partition=0)
    producer.commit_transaction()
    producer.begin_transaction()
    for _ in range(5):
        producer.send(JOBS, b"aborted", partition=0)
    producer.flush()
    producer.abort_transaction()
    # The consumer is done, and has committed what follows the last record it was given: 3. Then
    # come a marker, five aborted records and another marker.
    _commit(alone, "marks", {(JOBS, 0): 3, (WEBHOOKS, 0): 0, (LIFECYCLE, 0): 0})
    watch = _watch(alone, "marks")
    evidence = _until(watch, lambda e: e.worker.total == 0)
    for _ in range(5):
        # And stays so, without asking again.
        evidence = watch._look(evidence)
        assert (evidence.worker.total, evidence.worker.still) == (0, 0.0)
    assert evidence.broker is None
    # One more record that nobody reads is one record of lag.
    producer.begin_transaction()
    producer.send(JOBS, b"left", partition=0)
    producer.commit_transaction()
    evidence = _until(watch, lambda e: e.worker.still > 1)
    assert 1 <= evidence.worker.total <= 2
    # An open transaction cannot be read yet, so nobody is behind because of it.
    _commit(alone, "marks", {(JOBS, 0): 12})
    producer.begin_transaction()
    producer.send(JOBS, b"open", partition=0)
    producer.flush()
    assert _until(watch, lambda e: e.worker.total == 0)
    producer.abort_transaction()
    producer.close()


@kafka_only
def test_a_position_the_worker_tells_counts_like_a_commit(alone: Broker) -> None:
    _topics(alone, "told")
    producer = KafkaProducer(bootstrap_servers=alone.bootstrap)
    for _ in range(10):
        producer.send(JOBS, b"x", partition=0)
    producer.flush()
    producer.close()
    _commit(alone, "told", {(JOBS, 0): 4})
    assert _until(_watch(alone, "told"), lambda e: True).worker.total == 6
    watch = _watch(alone, "told", positions=lambda: {(JOBS, 0): 7})
    assert _until(watch, lambda e: True).worker.total == 3


# -- partitions ------------------------------------------------------------------------------------


def test_more_partitions_than_are_read_are_seen() -> None:
    described = [
        {"name": "a", "partitions": [1, 2, 3]},
        {"name": "b", "partitions": [1, 2]},
        {"name": "gone", "partitions": []},
    ]
    assert more_partitions({"a": 2, "b": 2, "gone": 2}, described) == {"a": 3}


@kafka_only
def test_partitions_added_while_it_runs_make_it_not_ready(alone: Broker) -> None:
    _topics(alone, "grown", 4)
    with WorkerProcess(alone.bootstrap, app_id="grown", partitions="4") as worker:
        worker.wait_ready()
        client = KafkaAdminClient(bootstrap_servers=alone.bootstrap)
        client.create_partitions({WEBHOOKS: 6})
        client.close()

        def noticed() -> bool:
            status, ready = worker.get("/readyz")
            texts = [r["text"] for r in ready["reasons"] if r["code"] == "partitions"]
            return status == 503 and any(f"{WEBHOOKS} has 6 partitions" in text for text in texts)

        worker.wait(noticed, 60, "notice the partitions")


def test_a_topic_with_more_partitions_than_set_is_seen_by_the_watch(alone: Broker) -> None:
    _topics(alone, "wide", 3)
    evidence = _until(_watch(alone, "wide", 2), lambda e: bool(e.more_partitions))
    assert evidence.more_partitions[WEBHOOKS] == 3
    assert set(evidence.more_partitions) >= {WEBHOOKS, LIFECYCLE, JOBS}
    assert not _until(_watch(alone, "wide", 3), lambda e: True).more_partitions


# -- holes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "first", "log_start", "lost"),
    [
        (100, 100, 0, 0),  # nothing
        (100, 101, 0, 0),  # a marker of a transaction
        (100, 101, 100, 0),  # a marker, and everything before was removed after it was read
        (100, 1_900, 1_900, 1_800),  # retention
        (100, 1_900, 1_000, 900),  # retention, then an aborted transaction
        (100, 1_900, 5_000, 1_800),  # and more was removed since, which had been read
        (0, 5, 5, 5),
    ],
)
def test_lost_is_what_lies_below_the_beginning_of_the_log(
    expected: int, first: int, log_start: int, lost: int
) -> None:
    assert len(missing(expected, first, log_start)) == lost


def test_holes_are_counted_once_by_partition() -> None:
    lost: list[tuple[str, int]] = []
    holes = Holes(lambda topic, records: lost.append((topic, records)))
    holes.gap("t", 0, 10, 30)
    holes.gap("t", 1, 10, 11)
    holes.gap("t", 0, 5, 5)
    holes.gap("u", 0, 0, 50)
    assert holes.suspected() == {("t", 0), ("t", 1), ("u", 0)}
    assert [str(hole) for hole in holes.settle({("t", 0): 30, ("t", 1): 3})] == [
        "20 records of t, partition 0"
    ]
    # The broker did not tell about u yet.
    assert holes.suspected() == {("u", 0)}
    # A rebalance: the same gap again, and a later one beyond it.
    holes.gap("t", 0, 10, 30)
    holes.gap("t", 0, 40, 60)
    holes.settle({("t", 0): 50, ("u", 0): 7})
    assert sorted(lost) == [("t", 10), ("t", 20), ("u", 7)]
    (u, t) = sorted(holes.found(), key=lambda hole: hole.topic, reverse=True)
    assert (t.records, t.first, t.end) == (30, 10, 50)
    assert (u.records, u.first, u.end) == (7, 0, 7)
    assert t.since <= t.latest


@kafka_only
def test_records_removed_before_they_were_read_are_counted_and_shown(alone: Broker) -> None:
    """As retention does it: while the worker is away, the log's beginning passes its commit."""
    _topics(alone, "lossy", 2)
    producer = KafkaProducer(bootstrap_servers=alone.bootstrap)
    client = KafkaAdminClient(bootstrap_servers=alone.bootstrap)
    worker = WorkerProcess(alone.bootstrap, app_id="lossy", partitions="2")
    read_all = 'runnerstream_consumer_lag_records{topic="runners.webhooks"}'
    # What was removed before the group began is nobody's loss.
    for _ in range(20):
        producer.send(WEBHOOKS, b"older", partition=0)
    producer.flush()
    client.delete_records({TopicPartition(WEBHOOKS, 0): 20})
    try:
        worker.start().wait_ready()
        for _ in range(200):
            producer.send(WEBHOOKS, b"unreadable", partition=1)
        producer.flush()
        where = TopicPartition(WEBHOOKS, 1)

        def committed() -> int:
            found = client.list_group_offsets({"lossy": [where]})["lossy"]
            return int(found[where].offset)

        worker.wait(lambda: committed() == 200, 60, "read all")
        worker.stop()
        for _ in range(1_900):
            producer.send(WEBHOOKS, b"unreadable", partition=1)
        producer.flush()
        client.delete_records({where: 2_000})
        worker.start()
        worker.wait(lambda: worker.metric("runnerstream_records_missed_total") > 0, 60, "miss them")
        worker.wait_ready()
        # Shown, and ready all the same: nothing brings them back.
        status, ready = worker.get("/readyz")
        assert (status, ready["ready"]) == (200, True)
        (hole,) = ready["missed"]
        assert (hole["topic"], hole["partition"], hole["records"]) == (WEBHOOKS, 1, 1_800)
        assert (hole["first"], hole["last"]) == (200, 1_999)
        assert abs(hole["since"] - time.time() * 1000) < 600_000
        _, metrics = worker.get("/metrics", accept="text/plain")
        assert f'runnerstream_records_missed_total{{topic="{WEBHOOKS}"}} 1800.0' in metrics
        assert "runnerstream_offset_gaps_total 1.0" in metrics
        assert read_all in metrics
        for path in ("/", "/workers"):
            _, page = worker.get(path, accept="text/html")
            assert "1,800 of <bdi>runners.webhooks</bdi>, partition 1" in page
        # The last records of a log, removed while the worker runs but was not yet there: no new
        # record tells of the jump.
        worker.stop()
        for _ in range(50):
            producer.send(WEBHOOKS, b"unreadable", partition=1)
        producer.flush()
        client.delete_records({where: 2_150})
        worker.start()
        worker.wait(lambda: worker.metric("runnerstream_records_missed_total") == 50, 60, "see it")
        worker.wait_ready()
    finally:
        worker.stop()
        producer.close()
        client.close()


# -- standing still --------------------------------------------------------------------------------


def _codes(lag: Lag, **changes: Any) -> tuple[set[str], int]:
    """The reasons for a lag of the worker, and what /healthz says."""
    with House({}) as house:
        health = house.views.site.health
        health._joined = True
        watch = health.watch
        watch.evidence = replace(Evidence(time.monotonic(), worker=lag), **changes)
        _, ready = house.get("/readyz")
        status, _ = house.get("/healthz")
        return {reason["code"] for reason in ready["reasons"]}, status


def test_a_worker_that_stands_still_is_stuck_and_then_not_alive() -> None:
    where = TopicPartition(JOBS, 3)
    moving = Lag({where: 100_000}, 5.0, STUCK_S)
    assert _codes(moving) == (set(), 200)
    stuck = Lag({where: 7}, WORKER_STUCK_S + 1, WORKER_STUCK_S + 1)
    assert _codes(stuck) == ({"stuck"}, 200)
    wedged = Lag({where: 7}, WEDGED_S + 1, WEDGED_S + 1)
    assert _codes(wedged) == ({"stuck"}, 503)
    # Nothing waits; or the broker is away: a restart would not help.
    assert _codes(Lag({where: 0}, 0.0, 0.0)) == (set(), 200)
    away = Trouble(time.monotonic(), "away")
    assert _codes(wedged, broker=away) == ({"broker"}, 200)
    assert _codes(wedged, at=time.monotonic() - 3_600) == ({"checks"}, 200)


def test_a_recovery_that_gets_no_further_is_not_alive() -> None:
    with House({}) as house:
        health, worker = house.views.site.health, house.worker
        health.watch.evidence = Evidence(time.monotonic())
        health._joined, worker.recovering = True, 100

        def seen() -> tuple[int, str, int]:
            """/readyz, why, and /healthz."""
            status, ready = house.get("/readyz")
            return status, ready["reasons"][0]["code"], house.get("/healthz")[0]

        assert seen() == (503, "recovering", 200)
        health._doing_since -= WEDGED_S + 1
        assert seen() == (503, "recovering", 503)
        assert "recovering without progress" in house.get("/healthz")[1]["reason"]
        # It goes on.
        worker.recovering = 99
        assert seen() == (503, "recovering", 200)
        health._doing_since -= WEDGED_S + 1
        health.watch.evidence = Evidence(time.monotonic(), broker=Trouble(time.monotonic(), "away"))
        assert seen() == (503, "recovering", 200)
