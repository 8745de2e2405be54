"""Workers under load on Apache Kafka: what the crash tests and the zombie tests share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.local import EmbeddedClickHouse
from pipeline.simulate import Faults, Simulation, Truth
from tests.support import PATIENCE, evidence
from tests.support.brokers import Broker
from tests.support.worker import WorkerProcess
from topics.catalogue import JOB_STATES, JOBS, LIFECYCLE, WEBHOOKS, WINDOWS
from topics.producer import Producer

PARTITIONS = 4
#: Records offered per second.
RATE = 2_000


class Load(threading.Thread):
    """Sends a simulation at a steady rate, in the background."""

    def __init__(self, bootstrap: str, simulation: Simulation, rate: float = RATE) -> None:
        super().__init__(daemon=True)
        self.simulation = simulation
        self.bootstrap = bootstrap
        self.rate = rate
        self.records = list(simulation.records())
        self.truth: Truth = simulation.truth()
        self.seconds = 0.0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            began = time.monotonic()
            with Producer(self.bootstrap) as producer:
                for n, record in enumerate(self.records):
                    producer.send(record.topic, record.key, record.value, record.headers)
                    if n % 50 == 0:
                        early = n / self.rate - (time.monotonic() - began)
                        if early > 0:
                            time.sleep(early)
            self.seconds = time.monotonic() - began
        except BaseException as exc:
            self.error = exc

    def finish(self) -> None:
        self.join()
        if self.error is not None:
            raise self.error


def simulation(seed: int, jobs: int, faults: Faults | None = None) -> Simulation:
    """A fleet some hours ago: everything lies within the windows' lateness below."""
    start = int(time.time() * 1000) - 8 * 3_600_000
    return Simulation(seed, jobs, start_ms=start, duration_s=3_600, faults=faults)


def fold_worker(kafka: Broker, tmp_path: Path, name: str = "w", **env: object) -> WorkerProcess:
    return WorkerProcess(
        kafka.bootstrap,
        command=["-m", "tests.support.killer"],
        log=tmp_path / f"{name}.log",
        partitions=PARTITIONS,
        lateness=10 * 86_400,
        **env,
    )


def sink_worker(kafka: Broker, clickhouse: EmbeddedClickHouse, tmp_path: Path) -> WorkerProcess:
    return WorkerProcess(
        kafka.bootstrap,
        role="sink",
        log=tmp_path / "sink.log",
        partitions=PARTITIONS,
        clickhouse=clickhouse.url,
    )


def wait_folded(kafka: Broker, timeout: float = 120.0) -> None:
    for topics, ticks in (([WEBHOOKS, LIFECYCLE], 0), ([JOBS], 16)):
        evidence.wait_drained(kafka.bootstrap, "runnerstream", topics, timeout, ticks)


def wait_sunk(kafka: Broker, timeout: float = 120.0) -> None:
    evidence.wait_drained(
        kafka.bootstrap, "runnerstream-sink", [WEBHOOKS, LIFECYCLE, JOB_STATES, WINDOWS], timeout
    )


def die_at(worker: WorkerProcess, gap: str, after: int) -> None:
    """Run the worker until it kills itself at the gap; it gets new work for ever from its clock."""
    worker._given.update(TEST_KILL_AT=gap, TEST_KILL_AFTER=after)
    worker.start(wait=False)
    until(lambda: not worker.alive(), 60, f"the worker to die at {gap}")
    assert worker.returncode == -9, worker.tail()


def until(done: Callable[[], bool], timeout: float, what: str) -> None:
    deadline = time.monotonic() + PATIENCE * timeout
    while not done():
        assert time.monotonic() < deadline, f"waited {timeout:.0f} s for {what}"
        time.sleep(0.05)
