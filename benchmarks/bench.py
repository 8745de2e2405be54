"""What the parts share: a broker with the topics, a worker that leaves marks, waiting."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import marks
from tests.support.brokers import Broker, Kind, broker
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import catalogue

PARTITIONS: Final = 8
#: The worker's default: facts taken at a time.
BATCH: Final = 5_000


@dataclass(frozen=True)
class Options:
    """What is to be measured."""

    facts: int
    jobs_live: int
    latency_seconds: float
    rate: int
    rounds: int
    runners: int
    ticks: int
    stall_seconds: float
    tick_seconds: float
    gateway_seconds: float
    panel_jobs: int
    panel_days: int
    kind: Kind


@dataclass(frozen=True)
class Stage:
    """A running broker with empty topics."""

    broker: Broker
    directory: Path

    @property
    def bootstrap(self) -> str:
        """``host:port``."""
        return self.broker.bootstrap


def say(text: str) -> None:
    """Tell on standard error what is going on; the result goes to standard output."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def stage(kind: Kind, *app_ids: str) -> Iterator[Stage]:
    """A broker with the topics of the catalogue, for one or several applications."""
    with tempfile.TemporaryDirectory(prefix="bench-") as made:
        directory = Path(made)
        with broker(directory / "broker", kind) as running:
            for app_id in app_ids or ("runnerstream",):
                apply(
                    {"bootstrap_servers": running.bootstrap},
                    catalogue(partitions=PARTITIONS, app_id=app_id),
                )
            yield Stage(running, directory)


class Observed:
    """``runnerstream worker`` in a process of its own, leaving marks."""

    def __init__(self, place: Stage, name: str, *, role: str = "fold", **env: object) -> None:
        self.marks_file = place.directory / f"{name}.marks"
        settings: dict[str, Any] = {
            "partitions": PARTITIONS,
            "BENCH_MARKS": self.marks_file,
            # As in production; WorkerProcess has shorter ones for tests.
            "tick_interval": 5,
            "commit_interval": 1,
            **env,
        }
        self.process = WorkerProcess(
            place.bootstrap,
            command=["-m", "benchmarks.observed", "worker", "--role", role],
            log=place.directory / f"{name}.log",
            directory=place.directory / name,
            **settings,
        )

    def marks(self) -> list[marks.Mark]:
        """What it has noted so far."""
        return marks.read(self.marks_file)

    def taken(self, stage_name: str = "fold") -> int:
        """Records it is done with."""
        return sum(mark["records"] for mark in marks.of(self.marks(), stage_name))

    def wait_taken(self, records: int, timeout: float, stage_name: str = "fold") -> None:
        """Return when it is done with so many records."""
        self.process.wait(
            lambda: self.taken(stage_name) >= records, timeout, f"take {records} records"
        )

    def wait_quiet(self, timeout: float) -> None:
        """Return when nothing but ticks has come for two seconds."""
        seen, since = -1, time.monotonic()

        def quiet() -> bool:
            nonlocal seen, since
            taken = self.taken()
            if taken > seen + 2 * PARTITIONS:
                seen, since = taken, time.monotonic()
            return time.monotonic() - since > 2.0

        self.process.wait(quiet, timeout, "come to rest")


def until(done: Callable[[], bool], timeout: float, what: str, every: float = 0.1) -> None:
    """Wait until ``done()``. Raises TimeoutError."""
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:.0f} s for {what}")
        time.sleep(every)
