"""A bed for executors: commands, one group on a broker, and what was said of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from pipeline.executor import Executor, ExecutorConfig, States, Via
from sinks.writer import Backoff
from tests.support import PATIENCE
from tests.support.receivers import FakeWorker
from topics.catalogue import COMMANDS, DEAD_LETTERS, OUTCOMES
from topics.reading import read
from topics.recovery import (
    OUTCOME,
    Command,
    CommandKind,
    Fence,
    Outcome,
    Seen,
    StallKind,
    command_id,
)

PARTITIONS = 2
NUMBERS = count(1)
#: A group on the embedded broker waits for members half as long as the poll interval.
QUICK = {"max_poll_interval_ms": 2_000, "session_timeout_ms": 4_000, "heartbeat_interval_ms": 500}
PACE = Backoff(0.02, 2.0, 0.1)


def now() -> int:
    return int(time.time() * 1000)


def command(kind: CommandKind = CommandKind.REQUEUE, **more: Any) -> Command:
    """A command about a job of its own, judged with claim c1 and three facts."""
    number = next(NUMBERS)
    key = more.pop("job_key", f"github:github.com:{os.getpid()}{number:04}")
    given: dict[str, Any] = {
        "id": command_id(kind, key or f"fleet-{number}", 1),
        "source": "runnerstream",
        "occurred_at": now() - 1_000,
        "received_at": now() - 1_000,
        "key": key or "linux",
        "command": kind,
        "fleet": "linux",
        "job_key": key,
        "attempt": 1,
        "n": 1,
        "reason": StallKind.ORPHAN,
        "fence": Fence(claim="c1", rev=3) if key else Fence(),
        "evidence": (Seen(what="minted, never started", at=now() - 400_000, clock="runner"),),
        "expires_at": now() + 60_000,
        "since": now() - 400_000,
        "opened_at": now() - 10_000,
        "repo": "acme/shop",
        "run_id": 99,
        "first_seen": now() - 500_000,
        **more,
    }
    return Command(**given)


@dataclass
class Bed:
    """One group on the broker, at the end of the commands, and what was said since."""

    bootstrap: str
    group: str = field(default_factory=lambda: f"test-executor-{os.getpid()}-{next(NUMBERS)}")

    def __post_init__(self) -> None:
        self._producer = KafkaProducer(bootstrap_servers=self.bootstrap, acks="all", linger_ms=0)
        with self.consumer(COMMANDS, self.group) as consumer:
            ends = consumer.end_offsets(sorted(consumer.assignment()))
            consumer.commit({at: OffsetAndMetadata(end, "", -1) for at, end in ends.items()})
        self.begins: dict[str, dict[TopicPartition, int]] = {}
        for topic in (OUTCOMES, DEAD_LETTERS):
            with self.consumer(topic) as consumer:
                self.begins[topic] = consumer.end_offsets(sorted(consumer.assignment()))

    @contextmanager
    def consumer(self, topic: str, group: str | None = None) -> Iterator[Any]:
        made = KafkaConsumer(
            bootstrap_servers=self.bootstrap, group_id=group, enable_auto_commit=False,
            auto_offset_reset="earliest",
        )  # fmt: skip
        made.assign([TopicPartition(topic, number) for number in range(PARTITIONS)])
        try:
            yield made
        finally:
            made.close()

    def post(self, *records: Command | Outcome | bytes, topic: str = COMMANDS) -> None:
        for record in records:
            value = record if isinstance(record, bytes) else record.model_dump_json().encode()
            key = b"x" if isinstance(record, bytes) else record.key.encode()
            self._producer.send(topic, key=key, value=value).get(30)

    def read(self, topic: str) -> list[Any]:
        """Everything of a topic since the bed was made."""
        found = []
        with self.consumer(topic) as consumer:
            for where, begin in self.begins[topic].items():
                consumer.seek(where, begin)
            ends = consumer.end_offsets(sorted(consumer.assignment()))
            quiet = 0
            while any(consumer.position(at) < end for at, end in ends.items()) and quiet < 20:
                fetched = consumer.poll(timeout_ms=100)
                quiet = 0 if fetched else quiet + 1
                found += [record for records in fetched.values() for record in records]
        return found

    def outcomes(self) -> list[Outcome]:
        return [read(OUTCOME, record.value) for record in self.read(OUTCOMES)]

    def said(self, about: Command) -> list[str]:
        """What was written about a command, in order."""
        return [
            "started" if each.result is None else f"{each.result} {each.reason}".strip()
            for each in self.outcomes()
            if each.command_id == about.id
        ]

    def committed(self) -> bool:
        """Whether the group has nothing left to do."""
        with self.consumer(COMMANDS, self.group) as consumer:
            ends = consumer.end_offsets(sorted(consumer.assignment()))
            return all((consumer.committed(at) or 0) >= end for at, end in ends.items())

    def config(self, **more: Any) -> ExecutorConfig:
        made = ExecutorConfig(
            {"bootstrap_servers": self.bootstrap, **QUICK}, self.group, backoff=PACE
        )
        return replace(made, **more)

    @contextmanager
    def executing(self, via: Via, worker: FakeWorker, **more: Any) -> Iterator[Executor]:
        """An executor on a thread, stopped at the end; what it raises, raises here."""
        stop, errors = threading.Event(), list[BaseException]()
        executor = Executor(self.config(**more), stop, via, States(worker.url))

        def run() -> None:
            try:
                executor.run()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield executor
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()
            assert errors == []


def eventually(check: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + PATIENCE * seconds
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def metric(executor: Executor, name: str, **labels: str) -> float:
    value = executor.metrics.registry.get_sample_value(f"runnerstream_executor_{name}", labels)
    assert value is not None, name
    return value
