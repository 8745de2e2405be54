"""Telemetry in a worker that is killed, on Apache Kafka: every event counts once."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import folds
from pipeline.settings import load as load_settings
from pipeline.simulate import (
    telemetry_pools,
    telemetry_reconcilers,
    telemetry_runners,
    telemetry_schedulers,
)
from pipeline.simulate.telemetry import Told
from tests.support import evidence
from tests.support.kafka import ApacheKafka, missing
from tests.support.load import PARTITIONS, die_at, fold_worker
from tests.support.worker import WorkerProcess
from tests.test_crash import gaps
from topics.apply import apply
from topics.catalogue import DEAD_LETTERS, EVENTS, TELEMETRY, catalogue
from topics.events import FAMILIES
from topics.events.pools import PoolSampled
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
MINUTE = 60_000


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


def world(now: int) -> Told:
    """Some minutes of all families, each of fleets of its own."""
    told = telemetry_pools.play(FLEETS[:6], now - 6 * MINUTE, now, 11)
    told.add(telemetry_runners.play(FLEETS[6:8], now - 6 * MINUTE, now, 11))
    told.add(telemetry_schedulers.play(FLEETS[8:10], now - 6 * MINUTE, now, 11))
    told.add(telemetry_reconcilers.play(FLEETS[10:], now - 6 * MINUTE, now, 11))
    return told


def seen(worker: WorkerProcess, family: str) -> list[Any]:
    """What the worker shows of a family."""
    status, answer = worker.get(f"/telemetry?family={family}&limit=1000")
    assert status == 200
    assert answer["incomplete"] == []
    assert answer["next"] is None
    found: list[Any] = answer["subjects"]
    return found


def stored(shown: Mapping[str, Sequence[Any]]) -> Counter[tuple[str, ...]]:
    """What is open, what is left to do, what is broken, as :attr:`Told.stored` has it."""
    found = Counter[tuple[str, ...]]()
    for one in shown["runners"]:
        for task in one["tasks"].values():
            found["runner_tasks", one["fleet"], one["name"], task["state"]] += 1
    for one in shown["schedulers"]:
        if one["name"].startswith("run:") and one["state"] == "active":
            found["schedule_backlog", one["fleet"], one["schedule"]] += one["backlog"]
    for one in shown["reconcilers"]:
        for each in one["open_violations"].values():
            found["violations_by_invariant", one["fleet"], each["invariant"]] += 1
    return found


@pytest.mark.slow
@pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "in steps"])
def test_every_event_counts_once_in_a_worker_that_is_killed_at_every_gap(
    kafka: ApacheKafka, tmp_path: Path, fenced: bool
) -> None:
    told = world(int(time.time() * 1000))
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
    shown: dict[str, list[Any]] = {family: seen(worker, family) for family in FAMILIES}
    for fleet in FLEETS:
        of_fleet = [one for each in shown.values() for one in each if one["fleet"] == fleet]
        assert sum((Counter(one["counts"]) for one in of_fleet), Counter()) == told.counts[fleet]
    last = {
        (each.fleet, each.pool): each.idle for each in told.events if isinstance(each, PoolSampled)
    }
    idle = {
        (one["fleet"], name): pool["idle"]
        for one in shown["pools"] for name, pool in one["pools"].items()
    }  # fmt: skip
    assert idle == last
    truth = {where: n for where, n in told.stored.items() if where[0] != "actions_by_type"}
    assert {where[0] for where in truth} == {
        "runner_tasks", "schedule_backlog", "violations_by_invariant",
    }  # fmt: skip
    assert stored(shown) == truth
    assert len(list(evidence.read_topic(kafka.bootstrap, DEAD_LETTERS))) > 10
    assert worker.stop() == 0
