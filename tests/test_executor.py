"""Executors on a real broker and against real HTTP: each command once, or not at all."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from pipeline.executor import Executor, ExecutorConfig, GitHub, Hook, Redeliver, States, Via
from pipeline.executor.deliveries import Deliveries
from pipeline.executor.outcomes import started
from sinks.http import HealthServer
from sinks.writer import Backoff
from tests.support.brokers import Broker, broker
from tests.support.receivers import Answer, FakeWorker, Got, Receiver, answer
from topics.apply import apply
from topics.catalogue import COMMANDS, DEAD_LETTERS, OUTCOMES, WEBHOOKS, catalogue
from topics.models import DEAD_LETTER, Delivery
from topics.producer import Producer
from topics.reading import read
from topics.recovery import (
    OUTCOME,
    Command,
    CommandKind,
    Fence,
    Outcome,
    Result,
    Seen,
    StallKind,
    command_id,
)

ROOT = Path(__file__).resolve().parents[1]
PARTITIONS = 2
SECRET = b"s3cret"
NUMBERS = count(1)
#: A group on the embedded broker waits for members half as long as the poll interval.
QUICK = {"max_poll_interval_ms": 3_000, "session_timeout_ms": 6_000, "heartbeat_interval_ms": 1_000}
PACE = Backoff(0.02, 2.0, 0.1)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as made:
        apply({"bootstrap_servers": made.bootstrap}, catalogue(partitions=PARTITIONS))
        yield made


@pytest.fixture
def worker() -> Iterator[FakeWorker]:
    with FakeWorker() as made:
        yield made


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Says 204 unless a test says otherwise."""
    with Receiver(lambda got: answer(204)) as made:
        yield made


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


@pytest.fixture
def bed(running: Broker) -> Bed:
    return Bed(running.bootstrap)


def eventually(check: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def metric(executor: Executor, name: str, **labels: str) -> float:
    value = executor.metrics.registry.get_sample_value(f"runnerstream_executor_{name}", labels)
    assert value is not None, name
    return value


# --- once, or not at all ----------------------------------------------------------------------


def test_what_may_not_be_done_has_no_effect(
    bed: Bed, worker: FakeWorker, receiver: Receiver
) -> None:
    good, late = command(), command(expires_at=now() - 1)
    changed, moved, over = command(), command(), command()
    dry, other = command(dry_run=True), command(CommandKind.CLOSE)
    fleet = command(CommandKind.WAKE_FLEET, job_key="")
    for each in (good, late, dry, other):
        worker.know(each.key)
    worker.know(changed.key, claim="c2", facts=5)
    worker.know(moved.key, facts=4)
    worker.know(over.key, status="completed")
    long = command(job_key="")
    only = frozenset(CommandKind) - {CommandKind.CLOSE}
    with bed.executing(Hook(receiver.url, SECRET), worker, only=only) as executor:
        bed.post(late, changed, moved, over, dry, other, b"{", long.model_copy(
            update={"id": "x" * 505}), good, good, fleet)  # fmt: skip
        eventually(lambda: metric(executor, "in_hand") == 0 and bed.committed())
        assert metric(executor, "commands_total", command="requeue", result="refused") == 3
        assert metric(executor, "commands_total", command="requeue", result="expired") == 1
        assert metric(executor, "commands_total", command="requeue", result="done") == 1
        assert metric(executor, "commands_total", command="close", result="not_ours") == 1
        assert metric(executor, "duplicates_total") == 1
        assert metric(executor, "dry_run_total") == 1
        assert metric(executor, "dead_letters_total", reason="not_json") == 1
        assert metric(executor, "dead_letters_total", reason="bad_envelope") == 1
        assert metric(executor, "last_command_age_seconds") > 0
        eventually(lambda: executor.status().ready and executor.status().lag == 0)
    assert bed.said(good) == ["started", "done"]
    assert bed.said(late) == ["expired"]
    assert bed.said(changed) == ["refused claim_changed"]
    assert bed.said(moved) == ["refused moved_on"]
    assert bed.said(over) == ["refused completed"]
    assert bed.said(fleet) == ["started", "done"]
    assert not bed.said(dry)
    assert not bed.said(other)
    assert {got.headers["idempotency-key"] for got in receiver.got} == {good.id, fleet.id}
    assert len(receiver.got) == 2
    letters = [read(DEAD_LETTER, record.value) for record in bed.read(DEAD_LETTERS)]
    assert sorted((each.stage, each.topic) for each in letters) == [("executor", COMMANDS)] * 2


def test_an_outcome_says_what_it_is_about(
    bed: Bed, worker: FakeWorker, receiver: Receiver
) -> None:
    asked = command()
    worker.know(asked.key)
    with bed.executing(Hook(receiver.url, SECRET), worker):
        bed.post(asked)
        eventually(lambda: len(bed.said(asked)) == 2)
    first, last = bed.outcomes()
    assert [(each.kind, each.id) for each in (first, last)] == [
        ("command.started", f"{asked.id}:started"),
        ("command.ended", f"{asked.id}:ended"),
    ]
    for each in (first, last):
        assert (each.key, each.via, each.fence, each.stall) == (
            asked.key, "hook", asked.fence, asked.reason,
        )  # fmt: skip
    assert {record.key for record in bed.read(OUTCOMES)} == {asked.key.encode()}
