"""What is soaked: workers, prober, executors on a broker, killed, stopped and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final

from kafka import TopicPartition

from tests.soak.day import SECRET, Pace
from tests.support import evidence
from tests.support.clock import VARIABLE, FastClock
from tests.support.worker import ROOT, WorkerProcess
from topics.apply import apply
from topics.catalogue import FLEETS, JOBS, LIFECYCLE, OUTCOMES, WEBHOOKS, catalogue

PARTITIONS: Final = 4
#: Of Faust's group and topics, for the worker that folds everything once more.
REPLAY: Final = "replay"
#: How long a stopped worker is waited for by its group, seconds.
PATIENCE_S: Final = 900
_LAUNCH: Final = ["-m", "tests.soak.launch"]


class Plant:
    """Every process of the product on one broker. ``lagging``: the group waits for who hangs."""

    def __init__(
        self,
        kafka: str,
        folder: Path,
        clock: FastClock,
        pace: Pace,
        api: str,
        hook: str,
        workers: int,
        *,
        lagging: bool = False,
    ) -> None:
        self.kafka = kafka
        self._folder = folder
        self._common: dict[str, Any] = {
            "partitions": PARTITIONS, "tick_interval": 1, "recovery": "live",
            "recovery_policies": json.dumps(pace.policies()), "github_token": "t0ken",
            "github_api_url": api, "probes_per_minute": 100_000, VARIABLE: clock.text,
            "commit_interval": 0.3, "log_level": "WARNING",
        }  # fmt: skip
        secret = folder / "secret"
        secret.write_bytes(SECRET)
        self.workers = [
            self._worker(
                f"worker-{n}",
                **(
                    {"session_timeout": PATIENCE_S, "group_instance_id": f"w{n}"} if lagging else {}
                ),
            )
            for n in range(workers)
        ]
        self.prober = self._process("prober", "worker", "--role", "prober")
        self.executors = [
            self._process(
                f"executor-{n}", "executor", "--via", "hook", "--to", hook,
                "--secret-file", str(secret), "--check", worker.url, "--lease", "5s",
            )
            for n, worker in enumerate(self.workers[:2])
        ]  # fmt: skip
        self.count: Counter[str] = Counter()
        self._closing = threading.Event()
        self._busy = threading.Lock()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def _worker(self, name: str, **more: Any) -> WorkerProcess:
        return self._process(name, "worker", "--role", "fold", TEST_WATCH_S=0.7, **more)

    def _process(self, name: str, *command: str, **more: Any) -> WorkerProcess:
        return WorkerProcess(
            self.kafka,
            command=[*_LAUNCH, *command],
            log=self._folder / f"{name}.log",
            **(self._common | more),
        )

    @property
    def _all(self) -> list[WorkerProcess]:
        return [*self.workers, self.prober, *self.executors]

    def __enter__(self) -> Plant:
        apply({"bootstrap_servers": self.kafka}, catalogue(partitions=PARTITIONS))
        try:
            for process in self._all:
                process.start(wait=False)
            for worker in self.workers:
                worker.wait_ready(120)
        except BaseException:
            self._end()
            raise
        self._keeper.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._keeper.join()
        self._end()

    def _end(self) -> None:
        for process in self._all:
            process.signal(signal.SIGCONT)
            process.stop()

    def _keep(self) -> None:
        """Start what has ended, as a supervisor does."""
        while not self._closing.wait(0.3):
            with self._busy:
                for process in self._all:
                    if not process.alive():
                        self.count["ended by themselves"] += 1
                        process.start(wait=False)

    # -- what is done to it --------------------------------------------------------------------

    def kill(self, chance: Random) -> None:
        """kill -9 of one process, mostly a worker, which is started again at once."""
        others = [self.prober, *self.executors]
        process = chance.choice(self.workers if chance.random() < 0.7 else others)
        with self._busy:
            process.kill()
            process.start(wait=False)
        self.count["kills"] += 1

    def sleep(self, seconds: float) -> None:
        """Let the first worker hang for so long, with all that it owns. Returns at once."""
        worker = self.workers[0]
        worker.signal(signal.SIGSTOP)
        self.count["lags"] += 1
        waker = threading.Timer(seconds, worker.signal, (signal.SIGCONT,))
        waker.daemon = True
        waker.start()

    # -- what is asked of it -------------------------------------------------------------------

    def wait_drained(self, group: str = "runnerstream", timeout: float = 300.0) -> None:
        """Return once a group has folded all there is."""
        evidence.wait_drained(
            self.kafka, group, [WEBHOOKS, LIFECYCLE, OUTCOMES, JOBS, FLEETS], timeout
        )

    def verify(self, app_id: str = "runnerstream") -> dict[str, Any]:
        """What ``runnerstream verify`` says."""
        env = {**self.workers[0].env(), "RUNNERSTREAM_APP_ID": app_id}
        result = subprocess.run(
            [sys.executable, *_LAUNCH, "verify", "--json"],
            env=env, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        if result.returncode not in (0, 1):
            raise AssertionError(f"verify: {result.returncode}\n{result.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    @contextmanager
    def replayed(self) -> Iterator[WorkerProcess]:
        """A worker with fresh tables and a group of its own, that has folded everything.

        The others must have ended.
        """
        apply({"bootstrap_servers": self.kafka}, catalogue(partitions=PARTITIONS, app_id=REPLAY))
        worker = self._worker("replay", app_id=REPLAY)
        with worker:
            worker.wait_ready(900)
            self.wait_drained(REPLAY, 900)
            before = worker.metric("runnerstream_recovery_sweeps_total")
            # Live ticks after all of the old ones: now it could act.
            while worker.metric("runnerstream_recovery_sweeps_total") < before + 8 * PARTITIONS:
                time.sleep(0.2)
            self.wait_drained(REPLAY)
            yield worker


def ends(kafka: str, topic: str) -> int:
    """Where a topic ends, over its partitions."""
    places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    return sum(evidence.ends(kafka, places).values())


def cpu_s() -> float:
    """CPU of this process and of its children that have ended, seconds."""
    times = os.times()
    return sum(times[:4])
