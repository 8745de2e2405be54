"""Nothing lost, nothing twice: processes are killed under load, then everything is compared.

Real Kafka, real ClickHouse, SIGKILL. The simulator knows what every job, window and row must be;
``tests/support/evidence.py`` reads what they are from the topics and from ClickHouse itself.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import folds
from pipeline.jobs.facts import DAY_MS
from pipeline.local import EmbeddedClickHouse
from pipeline.settings import load as load_settings
from pipeline.simulate import Faults
from sinks import schema
from tests.support import evidence, toy_fold
from tests.support.kafka import ApacheKafka, missing
from tests.support.load import (
    PARTITIONS,
    Load,
    die_at,
    fold_worker,
    simulation,
    sink_worker,
    until,
    wait_folded,
    wait_sunk,
)
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import DEAD_LETTERS, TopicSpec, catalogue
from topics.producer import Producer
from topics.tables import TableSpec

pytestmark = [
    pytest.mark.crash,
    pytest.mark.kafka,
    pytest.mark.skipif(
        missing() is not None and os.environ.get("RUNNERSTREAM_TEST_BROKER") != "kafka",
        reason=f"needs Apache Kafka: {missing()}",
    ),
]


def gaps(steps: tuple[str, ...], fenced: bool) -> tuple[str, ...]:
    """Where a fold with these durable steps is killed. In one Kafka transaction they are one;
    before it and after it remain."""
    if fenced:
        return ("folded", steps[0], steps[-1], "committed", "visible", "acked")
    return ("folded", *steps, "visible", "acked")


#: ``outputs``, ``windows``, ``jobs``.
STEPS = folds.jobs(load_settings()).steps
#: HYPOTHESIS_PROFILE=nightly also stretches the outage to the full two minutes.
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fenced", "store"),
    [(True, "memory"), (False, "memory"), (True, "rocksdb")],
    ids=["fenced", "in steps", "rocksdb"],
)
def test_twelve_kills_at_every_gap_and_five_of_clickhouse(
    kafka: ApacheKafka, clickhouse: EmbeddedClickHouse, tmp_path: Path, fenced: bool, store: str
) -> None:
    if store == "rocksdb":
        pytest.importorskip("rocksdict")
    rng = random.Random(7)
    load = Load(kafka.bootstrap, simulation(7, 12_000))
    # A static member is back in its group at once instead of after the session timeout.
    fold = fold_worker(
        kafka, tmp_path, group_instance_id="fold-1", store=store, TEST_FENCED=int(fenced)
    )
    sink = sink_worker(kafka, clickhouse, tmp_path).start(wait=False)
    killed_sinks = killed_servers = 0
    load.start()
    for n, gap in enumerate(gaps(STEPS, fenced) * 2):
        die_at(fold, gap, rng.randint(0, 5))
        if n % 2 == 1:
            clickhouse.kill()
            killed_servers += 1
            if n % 4 == 1:
                sink.kill()
                killed_sinks += 1
                sink.start(wait=False)
            clickhouse.start()
    fold._given.update(TEST_KILL_AT="")
    fold.start(wait=False)
    load.finish()
    wait_folded(kafka)
    time.sleep(3)  # two ticks: windows are sent at ticks
    wait_sunk(kafka)
    assert (killed_servers, killed_sinks) >= (5, 3)
    compared = evidence.check_topics(kafka.bootstrap, load.truth)
    compared |= evidence.check_clickhouse(clickhouse.url, load.truth, kafka.bootstrap)
    assert min(compared["jobs"], compared["jobs_latest"]) > 10_000
    assert fold.stop() == 0
    assert sink.stop() == 0


def test_the_check_fails_when_two_steps_are_swapped(kafka: ApacheKafka, tmp_path: Path) -> None:
    """The control: states before windows, killed in between, loses samples."""
    load = Load(kafka.bootstrap, simulation(3, 2_000))
    fold = fold_worker(
        kafka,
        tmp_path,
        TEST_STEPS="outputs,jobs,windows",
        TEST_FENCED=0,
        group_instance_id="fold-1",
    )
    load.start()
    for _ in range(3):
        die_at(fold, "jobs", 1)
    fold._given.update(TEST_KILL_AT="")
    fold.start(wait=False)
    load.finish()
    wait_folded(kafka)
    with pytest.raises(AssertionError, match=r"windows: .* differences from the truth"):
        evidence.check_topics(kafka.bootstrap, load.truth, seconds=0)
    fold.stop()


def toy_worker(kafka: ApacheKafka, tmp_path: Path, **env: object) -> WorkerProcess:
    """A worker with a second fold, on topics of its own, and 4,000 readings for it."""
    toy = [toy_fold.USE.changelog("runnerstream"), toy_fold.MACHINES.changelog("runnerstream")]
    apply(
        {"bootstrap_servers": kafka.bootstrap},
        [
            TopicSpec(name, PARTITIONS, "delete", DAY_MS, 1, 1, "of the toy")
            for name in (toy_fold.LOG, toy_fold.STATES, *toy)
        ],
    )
    now = int(time.time() * 1000) - 3_600_000
    with Producer(kafka.bootstrap) as producer:
        for n in range(4_000):
            said = toy_fold.reading(n % READINGS, now)
            value = said.model_dump_json().encode()
            producer.send(toy_fold.LOG, said.key.encode(), value)
    return fold_worker(
        kafka,
        tmp_path,
        group_instance_id="fold-1",
        batch_records=50,
        TEST_FOLD="tests.support.toy_fold:declare",
        **env,
    )


#: Different readings among those that are sent.
READINGS = 3_000


def toy_says(kafka: ApacheKafka) -> tuple[int, int, int]:
    """Readings known, their sum as the machines say it, and as the sites do."""
    evidence.wait_drained(kafka.bootstrap, "runnerstream", [toy_fold.LOG], 120)

    def table(spec: TableSpec) -> list[Any]:
        topic = spec.changelog("runnerstream")
        latest = {each.key: each.value for each in evidence.read_topic(kafka.bootstrap, topic)}
        return [json.loads(value) for value in latest.values() if value]

    known = {name: used for each in table(toy_fold.MACHINES) for name, used in each.items()}
    return len(known), sum(known.values()), sum(used for _, used in table(toy_fold.USE))


@pytest.mark.slow
@pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "in steps"])
def test_a_second_fold_survives_a_kill_at_every_gap(
    kafka: ApacheKafka, tmp_path: Path, fenced: bool
) -> None:
    """It is declared in ``tests/support/toy_fold.py``; nothing else of the program knows it."""
    fold = toy_worker(kafka, tmp_path, TEST_FENCED=int(fenced))
    rng = random.Random(3)
    for gap in gaps(toy_fold.declare(load_settings()).steps, fenced):
        die_at(fold, gap, rng.randint(0, 3))
    fold._given.update(TEST_KILL_AT="")
    fold.start(wait=False)
    total = sum(range(READINGS))
    assert toy_says(kafka) == (READINGS, total, total)
    assert fold.stop() == 0


def test_the_check_fails_when_two_steps_of_the_second_fold_are_swapped(
    kafka: ApacheKafka, tmp_path: Path
) -> None:
    fold = toy_worker(kafka, tmp_path, TEST_FENCED=0, TEST_STEPS="outputs,machines,use")
    for _ in range(3):
        die_at(fold, "machines", 1)
    fold._given.update(TEST_KILL_AT="")
    fold.start(wait=False)
    known, by_machine, by_site = toy_says(kafka)
    assert (known, by_machine) == (READINGS, sum(range(READINGS)))
    assert by_site < by_machine
    fold.stop()


@pytest.mark.slow
def test_three_workers_one_killed_one_added_under_load(kafka: ApacheKafka, tmp_path: Path) -> None:
    load = Load(kafka.bootstrap, simulation(11, 10_000))
    workers = [fold_worker(kafka, tmp_path, f"w{n}").start() for n in range(3)]
    load.start()
    time.sleep(8)
    workers[1].kill()
    time.sleep(8)
    workers.append(fold_worker(kafka, tmp_path, "w3").start())
    load.finish()
    wait_folded(kafka)
    evidence.check_topics(kafka.bootstrap, load.truth)
    # Gauges of all workers add up: no partition is shown by two, or by none.
    live = sum(job.status != "completed" for job in load.truth.jobs.values())
    alive = (workers[0], workers[2], workers[3])
    until(
        lambda: sum(worker.metric("runnerstream_jobs") for worker in alive) == live,
        10,
        f"the gauges to add up to {live}",
    )
    for worker in alive:
        assert worker.stop() == 0, worker.tail()


def test_ten_thousand_malformed_records_among_good_ones(kafka: ApacheKafka, tmp_path: Path) -> None:
    """All in dead letters with reason and offset, all good ones folded."""
    load = Load(kafka.bootstrap, simulation(5, 2_400, Faults(malformed=0.75)), rate=6_000)
    assert sum(load.truth.dead_letters.values()) >= 10_000
    assert len(load.truth.dead_letters) >= 5
    fold = fold_worker(kafka, tmp_path).start()
    load.start()
    load.finish()
    wait_folded(kafka)
    compared = evidence.check_topics(kafka.bootstrap, load.truth)
    assert compared["dead letters"] >= 10_000
    assert fold.stop() == 0


def test_dead_letters_replayed_after_a_fix_are_as_if_nothing_had_been_wrong(
    kafka: ApacheKafka, tmp_path: Path
) -> None:
    load = Load(kafka.bootstrap, simulation(17, 600), rate=6_000)
    broken = fold_worker(kafka, tmp_path, TEST_BREAK=5).start()
    load.start()
    load.finish()
    wait_folded(kafka)
    assert broken.stop() == 0, broken.tail()
    letters = list(evidence.read_topic(kafka.bootstrap, DEAD_LETTERS))
    assert len(letters) > 100
    with pytest.raises(AssertionError, match="differences from the truth"):
        evidence.check_topics(kafka.bootstrap, load.truth, seconds=0)
    fixed = fold_worker(kafka, tmp_path).start()
    replay = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "dead-letters", "replay", "--all"],
        env={**os.environ, "RUNNERSTREAM_KAFKA": kafka.bootstrap},
        capture_output=True,
        text=True,
        check=False,
    )
    assert replay.returncode == 0, replay.stderr
    wait_folded(kafka)
    # The letters themselves stay: they are history.
    load.truth.dead_letters = {"unexpected": len(letters)}
    evidence.check_topics(kafka.bootstrap, load.truth)
    assert fixed.stop() == 0, fixed.tail()


@pytest.mark.slow
def test_a_clickhouse_outage_under_load_loses_and_doubles_nothing(
    kafka: ApacheKafka, clickhouse: EmbeddedClickHouse, tmp_path: Path
) -> None:
    outage_s = 120 if NIGHTLY else 25
    rate = 1_000
    load = Load(kafka.bootstrap, simulation(13, (outage_s + 15) * rate // 6), rate=rate)
    fold = fold_worker(kafka, tmp_path, clickhouse=clickhouse.url).start()
    sink = sink_worker(kafka, clickhouse, tmp_path).start(wait=False)
    load.start()
    fold.wait_ready()
    clickhouse.kill()
    time.sleep(outage_s)
    status, body = fold.get("/readyz")[:2]
    assert status == 503
    assert "clickhouse" in str(body).lower()
    clickhouse.start()
    load.finish()
    wait_folded(kafka)
    time.sleep(3)
    wait_sunk(kafka)
    fold.wait_ready()
    evidence.check_topics(kafka.bootstrap, load.truth)
    evidence.check_clickhouse(clickhouse.url, load.truth, kafka.bootstrap)
    assert fold.stop() == 0
    assert sink.stop() == 0
