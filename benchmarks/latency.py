"""Part 3: from the send of an event until ClickHouse shows what it says, at a steady rate.

What is timed. Of every job two moments: the first record about it was handed to the producer, and
its ``completed`` delivery was. Their effects are unmistakable: the job has a row at all, and it
has a row that says ``completed``. (Any record in between could be shown by a batch that another
record caused.) The time runs from the call of ``Producer.send`` at the scheduled moment, so the
producer's own linger is in it.

When it is visible. A thread asks ClickHouse again and again, over a connection of its own, for
the jobs that are still waited for: ``SELECT key, status FROM jobs WHERE key IN (...)``. A job
counts as visible when the answer that first shows it has *arrived*, so every figure is an upper
bound; it is too large by at most the time between two questions plus the time of one answer,
whose median and maximum are reported as the resolution.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from statistics import median
from typing import Any, Final

import msgspec
from clickhouse_driver import Client

from benchmarks import machine
from benchmarks.bench import PARTITIONS, Observed, Options, Stage, say, stage, until
from pipeline.local import EmbeddedClickHouse
from pipeline.simulate import LIVE, NO_FAULTS, Sending, Simulation
from sinks import schema
from tests.support.worker import WorkerProcess
from topics.catalogue import WEBHOOKS
from topics.producer import Producer

#: Between two questions to ClickHouse, in seconds.
EVERY_S: Final = 0.05
#: Left out at the beginning: caches are cold, the group has just formed.
WARM_UP_S: Final = 5.0
#: How long to wait for the last events.
PATIENCE_S: Final = 60.0


class Watch(threading.Thread):
    """Asks for what is awaited, and notes how long each took to appear."""

    def __init__(self, url: str) -> None:
        super().__init__(name="bench-watch", daemon=True)
        self._client = Client.from_url(url)
        self._lock = threading.Lock()
        self._first: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._stopping = threading.Event()
        #: (moment of sending, seconds until visible), of first records and of completions.
        self.seen: dict[str, list[tuple[float, float]]] = {"first": [], "completed": []}
        self.gaps: list[float] = []
        self.error: BaseException | None = None

    def expect(self, key: str, completed: bool, at: float) -> None:
        """Wait for the job's row, or for the one that says ``completed``."""
        with self._lock:
            (self._ended if completed else self._first)[key] = at

    @property
    def waiting(self) -> int:
        """How many effects are not visible yet."""
        with self._lock:
            return len(self._first) + len(self._ended)

    def run(self) -> None:
        """Ask until told to stop."""
        try:
            last = time.monotonic()
            while not self._stopping.wait(EVERY_S):
                self._ask()
                now = time.monotonic()
                self.gaps.append(now - last)
                last = now
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()
        self.join()
        self._client.disconnect()
        if self.error is not None:
            raise self.error

    def _ask(self) -> None:
        with self._lock:
            keys = tuple(self._first.keys() | self._ended.keys())
        if not keys:
            return
        # A limit, so that a pipeline that does not keep up is still measured.
        shown = self._client.execute(
            "SELECT key, max(status = 'completed') FROM jobs WHERE key IN %(keys)s GROUP BY key",
            {"keys": keys[:5_000]},
        )
        now = time.monotonic()
        with self._lock:
            for key, completed in shown:
                at = self._first.pop(key, None)
                if at is not None:
                    self.seen["first"].append((at, now - at))
                if completed and (at := self._ended.pop(key, None)) is not None:
                    self.seen["completed"].append((at, now - at))


def measure(options: Options) -> dict[str, Any]:
    """Offer events at a steady rate to a worker and a sink, and watch ClickHouse."""
    number = int(options.rate * (options.latency_seconds + WARM_UP_S))
    sendings = records(number)
    with (
        stage(options.kind) as place,
        EmbeddedClickHouse(place.directory / "clickhouse") as server,
    ):
        schema.apply(server.url)
        fold = Observed(place, "latency", role="fold", clickhouse=server.url)
        sink = WorkerProcess(
            place.bootstrap,
            role="sink",
            log=place.directory / "sink.log",
            directory=place.directory / "sink",
            partitions=PARTITIONS,
            clickhouse=server.url,
        )
        try:
            fold.process.start(wait=False)
            sink.start(wait=False)
            fold.process.wait_ready()
            say(f"latency: offering {options.rate:,} events/s for {options.latency_seconds:.0f} s")
            return _offer(place, options, sendings, server.url, (fold.process, sink))
        finally:
            sink.stop()
            fold.process.stop()


def records(number: int) -> list[Sending]:
    """Webhooks and lifecycle events of a fleet whose jobs take seconds, in sending order."""
    simulation = Simulation(
        20_260_102,
        max(20, number // 5),
        start_ms=int(time.time() * 1000) - 600_000,
        duration_s=300,
        faults=NO_FAULTS,
        tempo=LIVE,
        remember=False,
    )
    found: list[Sending] = []
    for record in simulation.records():
        found.append(record)
        if len(found) == number:
            break
    return found


def _offer(
    place: Stage,
    options: Options,
    records: Sequence[Sending],
    url: str,
    processes: tuple[WorkerProcess, WorkerProcess],
) -> dict[str, Any]:
    # Found before, so that the sending loop only sends.
    effects = [_effect(record) for record in records]
    watch = Watch(url)
    watch.start()
    told: set[str] = set()
    late = 0.0
    with Producer(place.bootstrap) as producer:
        cpu = [machine.cpu_seconds(process.pid or 0) for process in processes]
        began = time.monotonic()
        for n, (record, (key, ended)) in enumerate(zip(records, effects, strict=True)):
            due = began + n / options.rate
            ahead = due - time.monotonic()
            if ahead > 0.002:
                time.sleep(ahead)
            now = time.monotonic()
            late = max(late, now - due)
            if key and key not in told:
                told.add(key)
                watch.expect(key, False, now)
            if key and ended:
                watch.expect(key, True, now)
            producer.send(record.topic, record.key, record.value, record.headers)
        seconds = time.monotonic() - began
    until(lambda: not watch.waiting, PATIENCE_S, f"{watch.waiting} effects in ClickHouse")
    drained = time.monotonic() - began - seconds
    used = [
        machine.cpu_seconds(process.pid or 0) - before
        for process, before in zip(processes, cpu, strict=True)
    ]
    watch.stop()
    warm = {
        what: sorted(took for at, took in seen if at - began >= WARM_UP_S)
        for what, seen in watch.seen.items()
    }
    both = sorted(warm["first"] + warm["completed"])
    return {
        "rate": options.rate,
        "offered_per_second": len(records) / seconds,
        "seconds": seconds,
        "warm_up_s": WARM_UP_S,
        "latest_send_s": late,
        "effects": len(both),
        "all": _quantiles(both),
        "first_record": _quantiles(warm["first"]),
        "completed": _quantiles(warm["completed"]),
        "drained_after_s": drained,
        "resolution_s": {"p50": median(watch.gaps), "max": max(watch.gaps)},
        "fold_cpu_us_per_event": used[0] / len(records) * 1e6,
        "sink_cpu_us_per_event": used[1] / len(records) * 1e6,
        "fold_rss": machine.rss(processes[0].pid or 0),
        "sink_rss": machine.rss(processes[1].pid or 0),
    }


def _effect(record: Sending) -> tuple[str, bool]:
    """The job a record is about ("" for a run), and whether it says that the job is over."""
    key = record.key.decode()
    if ":run/" in key:
        return "", False
    if record.topic != WEBHOOKS:
        return key, False
    return key, msgspec.json.decode(record.value)["action"] == "completed"


def _quantiles(took: Sequence[float]) -> dict[str, float] | None:
    if not took:
        return None
    return {
        "p50": took[len(took) // 2],
        "p95": took[min(len(took) - 1, int(len(took) * 0.95))],
        "p99": took[min(len(took) - 1, int(len(took) * 0.99))],
        "max": took[-1],
    }
