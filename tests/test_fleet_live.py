"""The fold of fleets in a worker, on a broker: its log, its table, and what comes out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import evidence
from tests.support.brokers import Broker, broker
from tests.support.fleet_world import job, seen
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import FLEET_STATES, FLEETS, JOBS, catalogue
from topics.producer import Producer
from topics.recovery import RunnerState


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[Broker]:
    with broker(tmp_path / "broker") as running:
        apply({"bootstrap_servers": running.bootstrap}, catalogue(partitions=2, app_id="fleets"))
        yield running


def post(kafka: Broker, *told: Any) -> None:
    with Producer(kafka.bootstrap) as producer:
        for each in told:
            producer.send(FLEETS, each.key.encode(), each.model_dump_json().encode())


def told_to_jobs(kafka: Broker) -> list[bytes]:
    return [
        each.value
        for each in evidence.read_topic(kafka.bootstrap, JOBS)
        if b'"runner.displaced"' in each.value
    ]


def test_a_worker_knows_its_fleets_also_after_it_was_killed(kafka: Broker, tmp_path: Path) -> None:
    now = int(time.time() * 1000)
    worker = WorkerProcess(
        kafka.bootstrap, app_id="fleets", partitions=2, group_instance_id="one", tick_interval=0.5
    )
    with worker:
        post(kafka, seen("r", now, RunnerState.STARTING, held=1, claim="h"))
        post(kafka, seen("idle", now, RunnerState.IDLE))
        worker.wait_ready()
        worker.wait(
            lambda: worker.metric('runnerstream_recovery_mode{fleet="f0",mode="dry_run"}') == 1.0,
            30,
            "show the mode of its fleet",
        )
        worker.wait(
            lambda: b"f0" in evidence.compacted(kafka.bootstrap, FLEET_STATES),
            30,
            "say how its fleet is",
        )
        # All is committed, so what it knows after this comes from the table.
        evidence.wait_drained(kafka.bootstrap, "fleets", [FLEETS], 30)
        assert not told_to_jobs(kafka)
        worker.kill()
        worker.start()
        post(kafka, seen("r", now + 1, RunnerState.BUSY, held=2))
        worker.wait(lambda: told_to_jobs(kafka), 60, "tell the job that its runner is taken")
        assert job(1).encode() in told_to_jobs(kafka)[0]
        assert worker.metric('runnerstream_records_total{stage="fleets"}') > 0
