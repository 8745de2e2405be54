"""A target that takes webhooks by HTTP as an autoscaler does, and relays that post to it."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import uvloop
from kafka import KafkaProducer

from pipeline.gateway import Keyring
from pipeline.providers.registry import PROVIDERS
from pipeline.relay import Filters, Relay, RelayConfig, Screen
from sinks.writer import Backoff
from tests.support.gateways import GITHUB, NUMBERS, SECRET, headers_of, queued
from tests.support.receivers import Answer, Got, Receiver, answer
from tests.support.worker import WorkerProcess
from topics.catalogue import WEBHOOKS
from topics.models import Unreadable

PARTITIONS = 2
GROUPS = count(1)
ALL = Filters()
PACE = Backoff(0.02, 2.0, 0.2)


class Autoscaler(Receiver):
    """Checks each signature itself, over the raw bytes, and does as it is told besides.

    ``says`` has the answer for a request; ``taken`` the bodies that it answered 2xx, in order. It
    keeps nothing but what is ``told``: the embedded broker says that a log ends before its last
    records, so who begins at its end gets some of those.
    """

    def __init__(
        self,
        told: Iterable[tuple[int, bytes]],
        says: Callable[[Got], Answer] = lambda got: answer(202),
    ) -> None:
        self.says = says
        self.taken: list[bytes] = []
        self.forged = 0
        self._told = {body for _, body in told}
        self._lock = threading.Lock()
        super().__init__(self._answer)

    def _answer(self, got: Got) -> Answer:
        try:
            GITHUB.verify(got.headers, got.body, [SECRET])
        except Unreadable:
            self.forged += 1
            return answer(401)
        found = self.says(got)
        if got.body in self._told and found is not None and 200 <= found[0] < 300:
            with self._lock:
                self.taken.append(got.body)
        return found


def post(bootstrap: str, deliveries: Iterable[tuple[int, bytes]], at_ms: int | None = None) -> None:
    """Write deliveries as the gateway does, each under the key of its job."""
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=5)
    for job, body in deliveries:
        kept = headers_of(body)
        named = [(name.lower(), value.encode()) for name, value in kept.items()]
        key = f"github:github.com:{job}".encode()
        producer.send(WEBHOOKS, key=key, value=body, headers=named, timestamp_ms=at_ms)
    producer.flush()
    producer.close()


def deliveries(jobs: int, each: int) -> list[tuple[int, bytes]]:
    """Several deliveries of each of several jobs, all jobs in turns; no two are alike."""
    numbers = [next(NUMBERS) for _ in range(jobs)]
    return [(job, queued(job, padding=turn)) for turn in range(each) for job in numbers]


def orders(told: Iterable[bytes]) -> dict[int, list[int]]:
    """By job, which of its deliveries came, in order."""
    found: dict[int, list[int]] = {}
    for body in told:
        said = json.loads(body)
        found.setdefault(said["workflow_job"]["id"], []).append(len(said["padding"]))
    return found


def group() -> str:
    """A group of nobody's."""
    return f"test-relay-{os.getpid()}-{next(GROUPS)}"


@contextmanager
def relaying(bootstrap: str, url: str, filters: Filters = ALL, **more: Any) -> Iterator[Relay]:
    """A relay in a thread, ended in order; what it raises, raises here."""
    name = more.pop("group_id", None) or group()
    config = RelayConfig({"bootstrap_servers": bootstrap}, name, url, backoff=PACE, session_s=6,
                         rebalance_s=4)  # fmt: skip
    keys = Keyring({provider: [SECRET] for provider in PROVIDERS}, {})
    made = Relay(replace(config, **more), Screen(keys, filters, name))
    stop, errors = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(made.run(stop))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield made
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()
        assert errors == []


def metric(relay: Relay, name: str, **labels: str) -> float:
    value = relay.metrics.registry.get_sample_value(f"runnerstream_relay_{name}", labels)
    assert value is not None, (name, labels)
    return value


class RelayProcess(WorkerProcess):
    """``runnerstream relay``; its views are its health."""

    def __init__(
        self, kafka: str, directory: Path, url: str, *options: str, number: int = 0
    ) -> None:
        secrets = directory / "secrets"
        secrets.mkdir(exist_ok=True)
        (secrets / "github").write_bytes(SECRET)
        command = ["-m", "pipeline.cli", "relay", "--to", url, "--secrets", str(secrets), *options]
        super().__init__(kafka, command=command, partitions=PARTITIONS, directory=directory,
                         log=directory / f"relay-{number}.log")  # fmt: skip
        self._given["relay_port"] = str(self.port)
