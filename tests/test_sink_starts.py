"""Sinks that start on a busy machine: each becomes a member with partitions, every time.

RUNNERSTREAM_SINK_STARTS=100 to insist; a few in the ordinary suite.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient

from pipeline.local import EmbeddedClickHouse
from pipeline.local.process import LOOPBACK, free_port
from sinks import rows, schema
from tests.support.brokers import Broker, broker
from topics.apply import apply
from topics.catalogue import catalogue

STARTS = int(os.environ.get("RUNNERSTREAM_SINK_STARTS", "4"))
PARTITIONS = 4


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(Path(tmp_path_factory.mktemp("broker"))) as made:
        apply({"bootstrap_servers": made.bootstrap}, catalogue(partitions=PARTITIONS))
        yield made


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Processes that do nothing but keep a core busy."""
    with ExitStack() as stack:
        for _ in range(number):
            loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(loop.wait)
            stack.callback(loop.kill)
        yield


@contextmanager
def started(kafka: Broker, url: str, log: Path) -> Iterator[int]:
    """A sink as operators run it; the port of its health."""
    port = free_port()
    env = {k: v for k, v in os.environ.items() if not k.startswith("RUNNERSTREAM_")} | {
        "RUNNERSTREAM_KAFKA": kafka.bootstrap,
        "RUNNERSTREAM_CLICKHOUSE": url,
        "RUNNERSTREAM_PARTITIONS": str(PARTITIONS),
        "RUNNERSTREAM_APP_ID": "starts",
        "RUNNERSTREAM_SINK_PORT": str(port),
        "RUNNERSTREAM_SESSION_TIMEOUT": "6",
        "RUNNERSTREAM_REBALANCE_TIMEOUT": "3",
    }
    command = [sys.executable, "-m", "pipeline.cli", "worker", "--role", "sink"]
    with log.open("ab") as output:
        sink = subprocess.Popen(command, env=env, stdout=output, stderr=output)
    try:
        yield port
        assert sink.poll() is None, log.read_text()[-3000:]
    finally:
        sink.send_signal(signal.SIGTERM)
        try:
            sink.wait(30)
        except subprocess.TimeoutExpired:
            sink.kill()
            sink.wait()


def status(port: int, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}{path}", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


def owns(kafka: Broker) -> list[int]:
    """Partitions of each member of the group, as the broker knows them."""
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    try:
        (group,) = admin.describe_groups(["starts-sink"]).values()
    finally:
        admin.close()
    return [
        sum(
            len(topic["partitions"]) for topic in member["member_assignment"]["assigned_partitions"]
        )
        for member in group["members"]
    ]


@pytest.mark.slow
def test_every_start_on_a_busy_machine_is_a_member_with_partitions(
    kafka: Broker, server: EmbeddedClickHouse, tmp_path: Path
) -> None:
    url = schema.with_database(server.url, "test_starts")
    schema.apply(url)
    everything = PARTITIONS * len(rows.TOPICS)
    members, slowest = 0, 0.0
    with busy(2):
        for number in range(STARTS):
            log = tmp_path / f"sink-{number}.log"
            with started(kafka, url, log) as port:
                began = time.monotonic()
                while True:
                    try:
                        code, body = status(port, "/readyz")
                    except OSError:
                        code, body = 0, {}
                    if code == 200 and body["partitions"] == everything:
                        break
                    # Beyond this it has joined anew more than once.
                    assert time.monotonic() - began < 120, f"{body}\n{log.read_text()[-3000:]}"
                    time.sleep(0.1)
                slowest = max(slowest, time.monotonic() - began)
                if owns(kafka) == [everything]:
                    members += 1
                assert "joining the group anew" not in log.read_text()
    print(f"{members} of {STARTS} members with {everything} partitions; slowest {slowest:.1f} s")
    assert members == STARTS
