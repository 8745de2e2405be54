"""``verify`` on a real broker: what a worker made of a simulated fleet, untouched and tampered
with."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from tests.support import evidence
from tests.support.brokers import Broker, broker, kind
from tests.support.load import Load, fold_worker, simulation, wait_folded
from tests.support.worker import ROOT, WorkerProcess
from tests.test_cli import run
from topics.apply import apply
from topics.catalogue import JOB_STATES, JOBS, WINDOWS, catalogue
from topics.tables import FLEETS_TABLE

PARTITIONS = 4
TABLE = FLEETS_TABLE.changelog("runnerstream")
SETTINGS = {"partitions": str(PARTITIONS), "lateness": str(10 * 86_400)}


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as running:
        apply({"bootstrap_servers": running.bootstrap}, catalogue(partitions=PARTITIONS))
        yield running


@pytest.fixture(scope="module")
def worker(kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A worker that has folded all there is, and goes on ticking."""
    load = Load(kafka.bootstrap, simulation(5, 300), rate=50_000)
    load.start()
    with fold_worker(kafka, tmp_path_factory.mktemp("worker")) as made:
        load.finish()
        wait_folded(kafka)
        yield made


def verify(kafka: Broker, *arguments: str) -> tuple[int, Any]:
    result = run("verify", "--json", *arguments, kafka=kafka.bootstrap, **SETTINGS)
    assert result.exit_code in (0, 1), result.output
    return result.exit_code, json.loads(result.stdout)


def places(bootstrap: str, topic: str) -> dict[bytes, tuple[int, bytes]]:
    """Partition and latest value by key."""
    found: dict[bytes, tuple[int, bytes]] = {}
    for record in evidence.read_topic(bootstrap, topic):
        if record.value is None:
            found.pop(record.key, None)
        else:
            found[record.key] = (record.partition, record.value)
    return found


def put(bootstrap: str, topic: str, partition: int, key: bytes, value: bytes | None) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    producer.send(topic, key=key, value=value, partition=partition).get(20)
    producer.close()


def told(value: bytes, change: Callable[[Any], None]) -> bytes:
    found = msgspec.json.decode(value)
    change(found)
    return msgspec.json.encode(found)


def test_what_a_worker_serves_is_what_the_log_says(kafka: Broker, worker: WorkerProcess) -> None:
    code, found = verify(kafka)
    assert (code, found["differences"], found["equal"]) == (0, [], True)
    states, windows = found["compared"]["job states"], found["compared"]["windows"]
    assert states["folded"] == states["served"] > 250
    assert windows["folded"] == windows["served"] > 50
    fleets = found["compared"]["fleets"]
    assert fleets["folded"] == fleets["served"] > 50
    assert states["in_part"] == windows["in_part"] == fleets["in_part"] == 0
    shown = run("verify", kafka=kafka.bootstrap, **SETTINGS)
    assert shown.exit_code == 0
    assert "no difference" in shown.output


def test_a_worker_at_work_makes_no_difference(kafka: Broker, worker: WorkerProcess) -> None:
    load = Load(kafka.bootstrap, simulation(6, 1_500), rate=1_000)
    load.start()
    rounds = 0
    while load.is_alive():
        code, found = verify(kafka)
        assert (code, found["differences"]) == (0, [])
        rounds += 1
    load.finish()
    assert rounds
    wait_folded(kafka)


def test_it_leaves_nothing_behind(kafka: Broker, worker: WorkerProcess) -> None:
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    groups = {str(group) for group in admin.list_groups()}
    assert verify(kafka)[0] == 0
    assert {str(group) for group in admin.list_groups()} == groups
    admin.close()


def test_what_is_changed_or_missing_is_found_and_named(
    kafka: Broker, worker: WorkerProcess
) -> None:
    states, windows, fleets = (places(kafka.bootstrap, t) for t in (JOB_STATES, WINDOWS, TABLE))
    # What is completed changes no more, and neither does a window that holds nothing of it now.
    changed, missing = [k for k, (_, v) in states.items() if b'"status":"completed"' in v][:2]
    window = next(k for k, (_, v) in windows.items() if b'"run":{' in v)
    runner = next(k for k in fleets if k.startswith(b'["runners"'))

    def count(record: Any) -> None:
        record["families"]["run"]["count"] += 1

    tampered = {
        (JOB_STATES, changed): told(states[changed][1], lambda r: r.update(status="running")),
        (JOB_STATES, missing): None,
        (WINDOWS, window): told(windows[window][1], count),
        (TABLE, runner): told(fleets[runner][1], lambda r: r.update(seen=7)),
    }
    true = {JOB_STATES: states, WINDOWS: windows, TABLE: fleets}
    try:
        for (topic, key), value in tampered.items():
            put(kafka.bootstrap, topic, true[topic][key][0], key, value)
        code, found = verify(kafka)
        assert code == 1
        named = {(each["what"], each["key"], each["field"]) for each in found["differences"]}
        assert named == {
            ("job states", changed.decode(), "status"),
            ("job states", missing.decode(), ""),
            ("windows", window.decode(), "families.run.count"),
            ("fleets", runner.decode(), "seen"),
        }
        assert found["compared"]["job states"]["different"] == 2
        shown = run("verify", "--limit", "1", kafka=kafka.bootstrap, **SETTINGS)
        assert shown.exit_code == 1
        assert "4 keys differ in all" in shown.output
        assert shown.output.count("the log says") == 1
    finally:
        for topic, key in tampered:
            partition, value = true[topic][key]
            put(kafka.bootstrap, topic, partition, key, value)
    assert verify(kafka)[0] == 0


def test_one_partition_alone(kafka: Broker, worker: WorkerProcess) -> None:
    code, found = verify(kafka, "--partition", "2")
    assert (code, [each["partition"] for each in found["partitions"]]) == (0, [2])
    refused = run("verify", "--partition", "9", kafka=kafka.bootstrap, **SETTINGS)
    assert refused.exit_code == 2


def test_the_interrupt_key_ends_it_without_a_word(kafka: Broker, worker: WorkerProcess) -> None:
    # Its progress goes to a terminal, and is the sign that it is in the middle of reading.
    ours, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "verify"],
        cwd=ROOT, env=worker.env(), stdout=subprocess.PIPE, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    said = os.read(ours, 1_000)
    assert b"partition 0" in said
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    with contextlib.suppress(OSError):  # how the end of a terminal is told
        while piece := os.read(ours, 1_000):
            said += piece
    os.close(ours)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in said


@pytest.mark.skipif(kind() != "kafka", reason="the embedded broker deletes no records")
def test_a_log_without_its_beginning_has_no_false_difference(
    kafka: Broker, worker: WorkerProcess
) -> None:
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    logs = [TopicPartition(JOBS, p) for p in range(PARTITIONS)]
    half = {where: end // 2 for where, end in evidence.ends(kafka.bootstrap, logs).items()}
    admin.delete_records(half)
    admin.close()
    code, found = verify(kafka)
    assert (code, found["differences"]) == (0, [])
    assert {each["partition"]: each["from"] for each in found["partitions"]} == {
        where.partition: offset for where, offset in half.items()
    }
    states = found["compared"]["job states"]
    assert states["in_part"] > 0
    # What contradicts the log is found all the same.
    key, (partition, value) = next(
        (key, place)
        for key, place in places(kafka.bootstrap, JOB_STATES).items()
        if b'"status":"completed"' in place[1]
    )
    put(kafka.bootstrap, JOB_STATES, partition, key, value.replace(b'"completed"', b'"queued"', 1))
    code, found = verify(kafka)
    assert code == 1
    assert {each["key"] for each in found["differences"]} == {key.decode()}


def test_without_a_worker_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with broker(tmp_path) as empty:
        result = run("verify", kafka=empty.bootstrap, **SETTINGS)
        assert result.exit_code == 1
        assert f"topic {JOBS} does not exist" in result.output
        apply({"bootstrap_servers": empty.bootstrap}, catalogue(partitions=PARTITIONS))
        put(empty.bootstrap, JOBS, 0, b"k", b"{}")
        result = run("verify", kafka=empty.bootstrap, **SETTINGS)
        assert result.exit_code == 1
        assert "no worker has committed anything of partitions 0: not compared" in result.output
        assert "nothing was compared" in result.output
