"""The embedded broker and ClickHouse: real processes, started, killed, seen from outside."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from pipeline import local
from pipeline.local import LocalStack, PortTaken, ServerFailed, StackRunning
from pipeline.local.broker import EmbeddedBroker
from pipeline.local.clickhouse import EmbeddedClickHouse
from pipeline.local.process import resident_mib
from tests.support import PATIENCE

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(
    local.unavailable() is not None, reason=local.unavailable() or "available"
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    with LocalStack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def gone(pid: int) -> bool:
    """Whether a process ended; one that only waits to be reaped has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        if sys.platform == "linux":
            return True
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False
    return state in "ZX"


def eventually(true: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + PATIENCE * seconds
    while not true():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def owner_of(directory: Path, **options: Any) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """A process that holds a stack, and the stack's status."""
    script = (
        "import dataclasses, json, pathlib, sys, threading\n"
        "from pipeline.local import LocalStack\n"
        "options = json.loads(sys.argv[2])\n"
        "stack = LocalStack(pathlib.Path(sys.argv[1]), **options)\n"
        # The thread that starts the servers ends: they must not end with it.
        "starter = threading.Thread(target=stack.start)\n"
        "starter.start(); starter.join()\n"
        "print(json.dumps(dataclasses.asdict(stack.status())), flush=True)\n"
        "threading.Event().wait()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(directory), json.dumps(options)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def test_both_servers_answer_their_ordinary_clients(stack: LocalStack) -> None:
    producer = KafkaProducer(bootstrap_servers=stack.kafka_bootstrap)
    admin = KafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap)
    admin.create_topics({"t": {"num_partitions": 1, "replication_factor": 1}})
    assert producer.send("t", b"one").get(timeout=10).offset == 0
    producer.close()
    admin.close()
    consumer = KafkaConsumer(bootstrap_servers=stack.kafka_bootstrap, consumer_timeout_ms=5000)
    consumer.assign([TopicPartition("t", 0)])
    consumer.seek_to_beginning()
    assert next(consumer).value == b"one"
    consumer.close()

    client = Client.from_url(stack.clickhouse_url)
    assert client.execute("SELECT currentUser(), currentDatabase()") == [
        ("runnerstream", "runnerstream")
    ]
    assert client.execute("SELECT version()")[0][0].startswith("26.9.")
    client.disconnect()
    assert stack.status().running


def test_the_reader_may_only_look_at_our_database(stack: LocalStack) -> None:
    writer = Client.from_url(stack.clickhouse_url)
    writer.execute("CREATE TABLE seen (a UInt8) ENGINE = MergeTree ORDER BY a")
    writer.execute("INSERT INTO seen VALUES", [(1,)])
    writer.execute("CREATE DATABASE other ENGINE = Atomic")
    writer.execute("CREATE TABLE other.hidden (a UInt8) ENGINE = Memory")
    writer.disconnect()
    reader = Client.from_url(stack.clickhouse_reader_url)
    assert reader.execute("SELECT a FROM seen") == [(1,)]
    reader.execute("SELECT 1 SETTINGS max_execution_time = 10")
    for refused in (
        "INSERT INTO seen SELECT 2",
        "DROP TABLE seen",
        "CREATE TABLE mine (a UInt8) ENGINE = Memory",
        "SELECT * FROM other.hidden",
        "SELECT * FROM file('passwords', 'TSV', 'a String')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'TSV', 'a String')",
        "SELECT 1 SETTINGS max_execution_time = 3600",
        "SELECT 1 SETTINGS max_memory_usage = 0",
    ):
        with pytest.raises(ServerException):
            reader.execute(refused)
    reader.disconnect()


def test_the_engines_own_user_can_do_nothing_with_our_data(stack: LocalStack) -> None:
    client = Client("127.0.0.1", stack.clickhouse.port, user="default", password="")
    for refused in ("SELECT * FROM system.users", "CREATE DATABASE mine ENGINE = Atomic"):
        with pytest.raises(ServerException, match="Not enough privileges"):
            client.execute(refused)
    client.disconnect()


def test_what_holds_passwords_is_private(stack: LocalStack) -> None:
    for name in ("stack.json", "clickhouse/passwords"):
        assert (stack.data_dir / name).stat().st_mode & 0o077 == 0


def test_clickhouse_keeps_data_and_ports_over_kill_9(tmp_path: Path) -> None:
    with EmbeddedClickHouse(tmp_path / "clickhouse") as server:
        server.query("CREATE TABLE runnerstream.t (a UInt32) ENGINE = MergeTree ORDER BY a")
        server.query("INSERT INTO runnerstream.t SELECT number FROM numbers(1000)")
        url, pid = server.url, server.pid
        server.kill()
        assert not server.alive()
        assert server.pid is None
        server.restart()
        assert (server.url, server.pid != pid) == (url, True)
        assert server.query("SELECT count(), sum(a) FROM runnerstream.t").split() == [
            "1000",
            "499500",
        ]
        with pytest.raises(ServerFailed, match="UNKNOWN_TABLE"):
            server.query("SELECT * FROM runnerstream.absent")


def test_the_broker_comes_back_on_its_port_as_a_new_cluster(tmp_path: Path) -> None:
    def cluster() -> tuple[str, list[str]]:
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
        try:
            return admin.describe_cluster()["cluster_id"], admin.list_topics()
        finally:
            admin.close()

    with EmbeddedBroker(tmp_path) as broker:
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
        admin.create_topics({"t": {"num_partitions": 1, "replication_factor": 1}})
        admin.close()
        bootstrap = broker.bootstrap
        before = cluster()
        broker.kill()
        assert not broker.alive()
        broker.restart()
        after = cluster()
        assert broker.bootstrap == bootstrap
    assert before[1] == ["t"]
    assert after[1] == []
    assert before[0] != after[0]


@pytest.mark.parametrize(
    ("option", "flag"),
    [
        ("kafka_port", "--kafka-port"),
        ("clickhouse_port", "--clickhouse-port"),
        ("clickhouse_http_port", "--clickhouse-http-port"),
    ],
)
def test_a_taken_port_is_named_with_the_remedy(
    tmp_path: Path, taken_port: int, option: str, flag: str
) -> None:
    ports: dict[str, Any] = {option: taken_port}
    stack = LocalStack(tmp_path, **ports)
    with pytest.raises(PortTaken, match=f"127.0.0.1:{taken_port}.*{flag}$"):
        stack.start()
    assert not stack.broker.alive()
    assert not stack.clickhouse.alive()
    assert not local.status(tmp_path).running


def test_a_directory_holds_one_stack_at_a_time_and_many_in_turn(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("not ours")
    told: list[str] = []
    first = LocalStack(tmp_path)
    first.start(told.append)
    assert [line.split()[0] for line in told] == ["starting", "broker", "starting", "ClickHouse"]
    second = LocalStack(tmp_path)
    with pytest.raises(StackRunning, match=f"process {os.getpid()}.*local down"):
        second.start()
    second.stop()
    assert local.status(tmp_path) == first.status()
    first.stop()
    first.stop()
    second.start()
    assert second.status().running
    second.stop()
    assert not local.status(tmp_path).running
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "stack.lock"]


def test_data_are_kept_on_request(tmp_path: Path) -> None:
    for found in (b"0", b"1"):
        with LocalStack(tmp_path, keep_data=True) as stack:
            client = Client.from_url(stack.clickhouse_url)
            client.execute(
                "CREATE TABLE IF NOT EXISTS kept (a UInt8) ENGINE = MergeTree ORDER BY a"
            )
            assert client.execute("SELECT count() FROM kept") == [(int(found),)]
            client.execute("INSERT INTO kept VALUES", [(1,)])
            client.disconnect()


def test_servers_die_with_a_killed_owner_and_the_next_start_takes_over(tmp_path: Path) -> None:
    owner, found = owner_of(tmp_path, keep_data=True)
    assert found["running"]
    time.sleep(0.3)
    assert not gone(found["broker_pid"])
    assert local.status(tmp_path).pid == owner.pid
    owner.kill()
    owner.wait()
    # At once: nothing waits for the old servers but the start itself.
    kafka, clickhouse = (
        int(found[key].rpartition(":")[2].partition("/")[0])
        for key in ("kafka_bootstrap", "clickhouse_url")
    )
    assert (tmp_path / "stack.json").exists()
    assert not local.status(tmp_path).running
    told: list[str] = []
    stack = LocalStack(tmp_path, kafka, clickhouse, keep_data=True)
    stack.start(told.append)
    try:
        assert "killed" in told[0]
        assert gone(found["broker_pid"])
        assert gone(found["clickhouse_pid"])
        assert stack.clickhouse_url == found["clickhouse_url"]
    finally:
        stack.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent-death signal of Linux")
def test_a_server_dies_with_its_guard(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    broker.start()
    pid = broker.pid
    assert pid is not None
    status = Path(f"/proc/{pid}/status").read_text()
    guard = int(status.partition("PPid:")[2].split()[0])
    assert guard != os.getpid()
    os.kill(guard, signal.SIGKILL)
    eventually(lambda: gone(pid))
    assert not broker.alive()
    broker.restart()
    assert broker.alive()
    broker.stop()


def test_a_detached_stack_is_found_and_ended_by_other_processes(tmp_path: Path) -> None:
    told: list[str] = []
    found = local.up(tmp_path, 0, 0, 0, progress=told.append)
    try:
        assert len(told) == 4
        assert found.running
        assert found.pid != os.getpid()
        assert local.status(tmp_path) == found
        client = Client.from_url(found.clickhouse_url)
        assert client.execute("SELECT 1") == [(1,)]
        client.disconnect()
        with pytest.raises(StackRunning):
            local.up(tmp_path, 0, 0, 0)
    finally:
        assert local.down(tmp_path)
    assert gone(found.broker_pid)
    assert gone(found.clickhouse_pid)
    assert not local.down(tmp_path)
    assert local.status(tmp_path) == local.StackStatus(running=False, data_dir=str(tmp_path))


def test_a_detached_stack_tells_why_it_does_not_start(tmp_path: Path, taken_port: int) -> None:
    with pytest.raises(local.LocalError, match=f"{taken_port}.*--kafka-port"):
        local.up(tmp_path, taken_port, 0, 0)
    assert not local.status(tmp_path).running


def test_a_detached_stack_ends_when_a_server_does(tmp_path: Path) -> None:
    found = local.up(tmp_path, 0, 0, 0)
    os.kill(found.broker_pid, signal.SIGKILL)
    eventually(lambda: local.status(tmp_path).pid == 0)
    assert gone(found.clickhouse_pid)
    assert "ended by itself" in (tmp_path / "stack.log").read_text()


def test_a_broker_that_ends_at_once_is_told_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "tansu"
    program.write_text("#!/bin/sh\necho no such luck >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("CALF_TANSU_BIN", str(program))
    with pytest.raises(ServerFailed, match=r"ended while starting: no such luck \[.*broker\.log\]"):
        EmbeddedBroker(tmp_path).start()
    monkeypatch.setenv("CALF_TANSU_BIN", str(tmp_path / "absent"))
    with pytest.raises(local.MissingServer, match="CALF_TANSU_BIN"):
        EmbeddedBroker(tmp_path).start()


def test_a_missing_wheel_is_named_with_what_to_do() -> None:
    # Without site-packages neither wheel can be found.
    script = "from pipeline import local; print(local.unavailable())"
    result = subprocess.run(
        [sys.executable, "-S", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "needs the package chdb-core: install runnerstream[local]" in result.stdout


def test_the_memory_of_a_process() -> None:
    assert 5 < resident_mib(os.getpid()) < 100_000
    assert resident_mib(None) == 0
    assert resident_mib(2**22 + 1) == 0
