"""The gateway as a process: what it answered 2xx is in Kafka, however it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.local.process import LOOPBACK, free_port
from tests.support import PATIENCE
from tests.support.brokers import Broker, broker
from tests.support.gateways import SECRET, Senders, bodies, headers_of, queued, ready, serve, until
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import catalogue

#: Deliveries before something happens to the gateway.
ENOUGH = 300


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as made:
        apply({"bootstrap_servers": made.bootstrap}, catalogue(partitions=2))
        yield made


class GatewayProcess(WorkerProcess):
    """``runnerstream gateway``, or the role of a worker; its views are its health."""

    def __init__(self, kafka: str, directory: Path, *options: str, role: bool = False) -> None:
        self.hooks = free_port()
        secrets = directory / "secrets"
        secrets.mkdir()
        (secrets / "github").write_bytes(b"older\n" + SECRET + b"\n")
        listen = f"{LOOPBACK}:{self.hooks}"
        command = ["gateway", "--listen", listen, "--secrets", str(secrets), *options]
        told = {"gateway_listen": listen, "webhook_secrets_dir": secrets} if role else {}
        if role:
            command = ["worker", "--role", "gateway"]
        super().__init__(
            kafka, command=["-m", "pipeline.cli", *command], partitions=2,
            log=directory / "gateway.log", directory=directory, **told,
        )  # fmt: skip
        self._given["gateway_port"] = str(self.port)


def wait(gateway: WorkerProcess, senders: Senders, number: int) -> None:
    gateway.wait(lambda: len(senders.accepted) >= number, 60, f"accept {number} deliveries")


def ended(process: WorkerProcess) -> int | None:
    """How it ended by itself."""
    deadline = time.monotonic() + PATIENCE * 60
    while process.alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    return process.returncode


@pytest.mark.crash
def test_everything_accepted_before_a_kill_is_in_kafka(running: Broker, tmp_path: Path) -> None:
    gateway = GatewayProcess(running.bootstrap, tmp_path).start().wait_ready()
    senders = Senders(gateway.hooks)
    with senders.sending():
        for turn in range(1, 3):
            wait(gateway, senders, turn * ENOUGH)
            gateway.kill()
            gateway.start().wait_ready()
        wait(gateway, senders, 3 * ENOUGH)
    assert gateway.stop() == 0, gateway.tail()
    assert senders.broken
    assert set(senders.others) <= {503}
    assert set(senders.accepted) <= set(bodies(running.bootstrap))


def test_it_ends_in_order_and_its_log_has_no_secret(running: Broker, tmp_path: Path) -> None:
    gateway = GatewayProcess(running.bootstrap, tmp_path, role=True).start().wait_ready()
    senders = Senders(gateway.hooks)
    with senders.sending():
        wait(gateway, senders, ENOUGH)
        assert gateway.metric("runnerstream_gateway_requests_total") >= ENOUGH
        assert gateway.stop() == 0, gateway.tail()
    assert set(senders.others) <= {503}
    assert set(senders.accepted) <= set(bodies(running.bootstrap))
    log = gateway.log.read_text()
    assert "taking no more webhooks" in log
    assert "were not acknowledged" not in log
    assert log.count("provider=github status=202 outcome=accepted action=queued") >= len(
        senders.accepted
    )
    assert SECRET.decode() not in log
    assert "padding" not in log


def test_a_gateway_without_secrets_or_with_a_taken_port_says_so(
    running: Broker, tmp_path: Path
) -> None:
    gateway = GatewayProcess(running.bootstrap, tmp_path, "--port", "0").start(wait=False)
    third = WorkerProcess(
        running.bootstrap, partitions=2, log=tmp_path / "third.log", directory=tmp_path,
        command=["-m", "pipeline.cli", "gateway", "--listen", f"{LOOPBACK}:0"],
    ).start(wait=False)  # fmt: skip
    gateway.wait(lambda: "webhooks at" in gateway.log.read_text(), 60, "listen")
    second = WorkerProcess(
        running.bootstrap, partitions=2, log=tmp_path / "second.log", directory=tmp_path,
        command=["-m", "pipeline.cli", "gateway", "--listen", f"{LOOPBACK}:{gateway.hooks}"],
        github_secrets="x",
    ).start(wait=False)  # fmt: skip
    assert ended(second) == 1
    assert f"cannot listen at {LOOPBACK}:{gateway.hooks}" in second.tail()
    assert ended(third) == 1
    assert "no secret is set" in third.tail()
    assert gateway.stop() == 0


def test_what_has_begun_when_it_ends_is_answered_and_the_connection_closed(running: Broker) -> None:
    body = queued(padding=99)
    heard = bytearray()

    def go_on() -> None:
        until(lambda: served.gateway.status().reason == "it is ending")
        connection.sendall(body[20:])
        while piece := connection.recv(1 << 16):
            heard.extend(piece)

    with serve(running.bootstrap, body_time_s=PATIENCE * 30) as served:
        ready(served)
        idle, connection = served.connect(), served.connect()
        told = {"Host": "here", "Content-Length": str(len(body)), **headers_of(body)}
        head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        connection.sendall(f"POST /webhooks/github HTTP/1.1\r\n{head}\r\n".encode() + body[:20])
        until(lambda: served.metric("held_bytes") == 20)
        going_on = threading.Thread(target=go_on)
        going_on.start()
    going_on.join(60)
    assert heard.startswith(b"HTTP/1.1 202 ")
    assert b"connection: close" in heard.lower()
    assert idle.recv(1) == b""
    assert body in bodies(running.bootstrap)
    idle.close()
    connection.close()
