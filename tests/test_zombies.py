"""A worker that slept past every timeout, woke up and believes nothing has happened.

A frozen VM, a laptop, a paused container: SIGSTOP is all of them. Its successor has taken the
partitions over meanwhile. What it writes then must be refused by the broker, because a compacted
changelog keeps whatever was written last.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.local import EmbeddedClickHouse
from sinks import schema
from tests.support import evidence
from tests.support.kafka import ApacheKafka, missing
from tests.support.load import (
    PARTITIONS,
    Load,
    fold_worker,
    simulation,
    sink_worker,
    until,
    wait_folded,
    wait_sunk,
)
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import catalogue

pytestmark = [
    pytest.mark.crash,
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.skipif(
        missing() is not None and os.environ.get("RUNNERSTREAM_TEST_BROKER") != "kafka",
        reason=f"needs Apache Kafka: {missing()}",
    ),
]

#: HYPOTHESIS_PROFILE=nightly plays the twenty rounds, ordinary runs enough to be a test.
ROUNDS = 20 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 4
#: The group gives a sleeper's partitions away after this. Seconds.
SESSION_TIMEOUT = 6


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[ApacheKafka]:
    with ApacheKafka(tmp_path / "kafka") as broker:
        apply({"bootstrap_servers": broker.bootstrap}, catalogue(partitions=PARTITIONS))
        yield broker


@pytest.fixture
def clickhouse(tmp_path: Path) -> Iterator[EmbeddedClickHouse]:
    with EmbeddedClickHouse(tmp_path / "clickhouse") as server:
        schema.apply(server.url)
        yield server


def stopped(worker: WorkerProcess) -> bool:
    return Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def sleep_at(kafka: ApacheKafka, tmp_path: Path, gap: str, *, fenced: bool) -> Load:
    """A worker falls asleep at the gap, in the middle of a backlog. Its successor folds the rest.
    Then it wakes up."""
    load = Load(kafka.bootstrap, simulation(23, 3_000), rate=50_000)
    load.start()
    load.finish()
    sleeper = fold_worker(
        kafka,
        tmp_path,
        "sleeper",
        batch_records=500,
        TEST_FENCED=int(fenced),
        TEST_KILL_AT=gap,
        TEST_KILL_AFTER=8,
        TEST_KILL_BY="stop",
    ).start(wait=False)
    until(lambda: sleeper.alive() and stopped(sleeper), 60, f"the worker to fall asleep at {gap}")
    successor = fold_worker(kafka, tmp_path, "successor", TEST_FENCED=int(fenced))
    successor.start(wait=False)
    wait_folded(kafka)
    sleeper.signal(signal.SIGCONT)
    time.sleep(2)  # it learns that it was given up, or writes first
    for worker in (sleeper, successor):
        worker.wait_ready()
    wait_folded(kafka)
    assert sleeper.alive(), sleeper.tail()
    for worker in (sleeper, successor):
        assert worker.stop() == 0, worker.tail()
    return load


@pytest.mark.parametrize("gap", ["folded", "jobs", "committed"])
def test_a_worker_that_slept_in_the_middle_writes_nothing_old(
    kafka: ApacheKafka, tmp_path: Path, gap: str
) -> None:
    load = sleep_at(kafka, tmp_path, gap, fenced=True)
    evidence.expect("older after newer", evidence.older_after_newer(kafka.bootstrap))
    evidence.check_topics(kafka.bootstrap, load.truth)


def test_without_a_fence_the_check_fails(kafka: ApacheKafka, tmp_path: Path) -> None:
    """The control: the same sleeper, and a broker that does not refuse it."""
    sleep_at(kafka, tmp_path, "folded", fenced=False)
    assert evidence.older_after_newer(kafka.bootstrap)


@pytest.mark.parametrize("workers", [2, 3])
def test_sleepers_and_rebalances_in_recoveries_under_load(
    kafka: ApacheKafka, clickhouse: EmbeddedClickHouse, tmp_path: Path, workers: int
) -> None:
    """Each round one worker sleeps for 8 to 20 s, and another is started or killed while the
    partitions are being recovered."""
    rng = random.Random(workers)
    load = Load(kafka.bootstrap, simulation(29 + workers, ROUNDS * 1_800), rate=600)
    team = [
        fold_worker(kafka, tmp_path, f"w{n}", clickhouse=clickhouse.url).start()
        for n in range(workers)
    ]
    guest = fold_worker(kafka, tmp_path, "guest", clickhouse=clickhouse.url)
    sink = sink_worker(kafka, clickhouse, tmp_path).start(wait=False)
    load.start()
    for worker in team:
        worker.wait_ready()
    for number in range(ROUNDS):
        sleeper = rng.choice(team)
        sleeper.signal(signal.SIGSTOP)
        asleep = rng.uniform(8, 20)
        # About when the group notices, so that the second rebalance meets the first's recovery.
        time.sleep(SESSION_TIMEOUT + rng.uniform(0, 1.5))
        if number % 2 == 0:
            guest.start(wait=False)
        else:
            guest.kill()
        time.sleep(max(0.0, asleep - SESSION_TIMEOUT - 1.5))
        sleeper.signal(signal.SIGCONT)
        time.sleep(rng.uniform(2, 6))
    load.finish()
    wait_folded(kafka)
    time.sleep(3)  # two ticks: windows are sent at ticks
    wait_sunk(kafka)
    compare(kafka, clickhouse, load)
    for worker in (*team, guest, sink):
        assert worker.stop() in (0, None, -9), worker.tail()
    # From the tables alone, and everything said once more: what had been forgotten would count.
    for worker in (*team, sink):
        worker.start(wait=False)
    again = Load(kafka.bootstrap, load.simulation, rate=5_000)
    again.start()
    again.finish()
    wait_folded(kafka)
    time.sleep(3)
    wait_sunk(kafka)
    compare(kafka, clickhouse, load)
    for worker in team:
        assert worker.metric("runnerstream_job_transitions_total") == 0
        assert worker.stop() == 0, worker.tail()
    assert sink.stop() == 0, sink.tail()


def test_clocks_that_are_off_by_less_than_an_hour(
    kafka: ApacheKafka, clickhouse: EmbeddedClickHouse, tmp_path: Path
) -> None:
    """Two workers whose clocks are 100 minutes apart, and partitions that go back and forth."""
    load = Load(kafka.bootstrap, simulation(41, 3_000), rate=300)
    ahead, behind = (
        fold_worker(kafka, tmp_path, name, clickhouse=clickhouse.url, TEST_CLOCK_OFF_S=off).start()
        for name, off in (("ahead", 3_000), ("behind", -3_000))
    )
    sink = sink_worker(kafka, clickhouse, tmp_path).start(wait=False)
    for worker in (ahead, behind):
        worker.wait_ready()
    load.start()
    refused = 0.0
    for worker in (ahead, behind) * 2:
        time.sleep(6)  # some ticks
        refused += behind.metric("runnerstream_ticks_refused_total")
        worker.kill()
        time.sleep(SESSION_TIMEOUT + 2)
        worker.start(wait=False)
        worker.wait_ready()
    load.finish()
    wait_folded(kafka)
    time.sleep(3)  # two ticks: windows are sent at ticks
    wait_sunk(kafka)
    compare(kafka, clickhouse, load)
    assert refused > 0
    for worker in (ahead, behind, sink):
        assert worker.stop() == 0, worker.tail()


def compare(kafka: ApacheKafka, clickhouse: EmbeddedClickHouse, load: Load) -> None:
    evidence.expect("older after newer", evidence.older_after_newer(kafka.bootstrap))
    evidence.check_topics(kafka.bootstrap, load.truth)
    evidence.check_clickhouse(clickhouse.url, load.truth, kafka.bootstrap)
