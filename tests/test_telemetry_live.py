"""Telemetry in a worker that is killed, on Apache Kafka: every event counts once."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import folds
from pipeline.settings import load as load_settings
from pipeline.simulate.telemetry import Told
from pipeline.simulate.telemetry_pools import play
from tests.support import evidence
from tests.support.kafka import ApacheKafka, missing
from tests.support.load import PARTITIONS, die_at, fold_worker
from tests.support.worker import WorkerProcess
from tests.test_crash import gaps
from topics.apply import apply
from topics.catalogue import DEAD_LETTERS, EVENTS, TELEMETRY, catalogue
from topics.producer import Producer

pytestmark = [
    pytest.mark.crash,
    pytest.mark.kafka,
    pytest.mark.skipif(
        missing() is not None and os.environ.get("RUNNERSTREAM_TEST_BROKER") != "kafka",
        reason=f"needs Apache Kafka: {missing()}",
    ),
]

FLEETS = [f"fleet-{n}" for n in range(12)]


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[ApacheKafka]:
    with ApacheKafka(tmp_path / "kafka") as broker:
        apply({"bootstrap_servers": broker.bootstrap}, catalogue(partitions=PARTITIONS))
        yield broker


def post(kafka: ApacheKafka, told: Told, seed: int) -> None:
    """All that was told, out of order, a third of it twice, and some of it no event."""
    rng = random.Random(seed)
    log = [each.model_dump_json(exclude_none=True).encode() for each in told.events]
    log += [each for each in log if rng.random() < 0.3]
    log += [each[: len(each) // 2] for each in log if rng.random() < 0.01]
    rng.shuffle(log)
    with Producer(kafka.bootstrap) as producer:
        for n, value in enumerate(log):
            producer.send(EVENTS, b"" if n % 2 else str(n).encode(), value)


def seen(worker: WorkerProcess, family: str) -> dict[str, dict[str, object]]:
    """What the worker shows of a family, by fleet."""
    status, answer = worker.get(f"/telemetry?family={family}&limit=1000")
    assert status == 200
    assert answer["incomplete"] == []
    return {one["fleet"]: one for one in answer["subjects"]}


@pytest.mark.slow
@pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "in steps"])
def test_every_event_counts_once_in_a_worker_that_is_killed_at_every_gap(
    kafka: ApacheKafka, tmp_path: Path, fenced: bool
) -> None:
    now = int(time.time() * 1000)
    told = play(FLEETS, now - 6 * 60_000, now, 11)
    post(kafka, told, 5)
    worker = fold_worker(
        kafka,
        tmp_path,
        group_instance_id="fold-1",
        batch_records=50,
        TEST_FENCED=int(fenced),
        TEST_FOLD="pipeline.folds:telemetry",
    )
    rng = random.Random(3)
    for gap in gaps(folds.telemetry(load_settings()).steps, fenced):
        die_at(worker, gap, rng.randint(0, 3))
    worker._given.update(TEST_KILL_AT="")
    worker.start(wait=False)
    for topic, ticks in ((EVENTS, 0), (TELEMETRY, 16)):
        evidence.wait_drained(kafka.bootstrap, "runnerstream", [topic], 120, ticks)
    worker.wait_ready()
    dispatch, pools = seen(worker, "dispatch"), seen(worker, "pools")
    for fleet in FLEETS:
        found = Counter(dispatch[fleet]["counts"]) + Counter(pools[fleet]["counts"])  # type: ignore[call-overload]
        assert found == told.counts[fleet], fleet
        last = {
            each.pool: each.idle for each in told.events
            if each.kind == "pool.sample" and each.fleet == fleet
        }  # type: ignore[attr-defined]  # fmt: skip
        kept = pools[fleet]["pools"]
        assert {name: one["idle"] for name, one in kept.items()} == last  # type: ignore[attr-defined]
    assert len(list(evidence.read_topic(kafka.bootstrap, DEAD_LETTERS))) > 10
    assert worker.stop() == 0
