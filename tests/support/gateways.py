"""A gateway in a thread, on a real broker, asked by real HTTP; and what it wrote."""

from __future__ import annotations

import asyncio
import hmac
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import uvloop

from pipeline.gateway import Gateway, GatewayConfig, Keyring
from pipeline.local.process import LOOPBACK
from pipeline.providers.registry import PROVIDERS
from tests.support import PATIENCE, evidence
from topics.catalogue import WEBHOOKS

SECRET: Final = b"swordfish"
DATA: Final = Path(__file__).parents[1] / "data"
NUMBERS: Final = count(7_000_001)


@dataclass(frozen=True)
class Reply:
    """An answer. Names of headers are lower-case."""

    status: int
    headers: Mapping[str, str]
    said: Any


def queued(job: int | None = None, padding: int = 0) -> bytes:
    """A delivery about a job of its own."""
    told = {"id": next(NUMBERS) if job is None else job, "status": "queued", "labels": ["linux"]}
    body = {"action": "queued", "workflow_job": told, "padding": "x" * padding}
    return json.dumps(body).encode()


def guid() -> str:
    return f"{next(NUMBERS):08x}-b5f4-11f1-8a3f-0242ac120002"


def headers_of(
    body: bytes, secret: bytes = SECRET, event: str = "workflow_job", **more: str | None
) -> dict[str, str]:
    """What GitHub sends with a body. ``more`` replaces, or with None takes away."""
    given: dict[str, str | None] = {
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/abc",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": guid(),
        "X-Hub-Signature-256": "sha256=" + hmac.digest(secret, body, "sha256").hex(),
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    return {name: value for name, value in given.items() if value is not None}


class Served:
    """A gateway that runs."""

    def __init__(self, gateway: Gateway, tls: ssl.SSLContext | None = None) -> None:
        self.gateway = gateway
        self._tls = tls

    @property
    def port(self) -> int:
        return self.gateway.port

    def ask(
        self,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        path: str = "/webhooks/github",
        method: str = "POST",
        chunked: bool = False,
    ) -> Reply:
        """One request on a connection of its own."""
        kind = http.client.HTTPConnection
        more: dict[str, Any] = {}
        if self._tls is not None:
            kind, more = http.client.HTTPSConnection, {"context": self._tls}
        with closing(kind(LOOPBACK, self.port, timeout=60, **more)) as connection:
            connection.request(method, path, body, dict(headers or {}), encode_chunked=chunked)
            answer = connection.getresponse()
            text = answer.read()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, names, json.loads(text) if text else None)

    def deliver(self, body: bytes, **more: Any) -> Reply:
        """A signed delivery."""
        return self.ask(body, headers_of(body, **more))

    def raw(self, *pieces: bytes, end: bool = False) -> bytes:
        """What is answered to bytes as they are; ``end`` says that no more will come."""
        received = bytearray()
        with self.connect() as connection, suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
            if end:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(1 << 16):
                received += piece
        return bytes(received)

    def connect(self) -> socket.socket:
        """A connection that says nothing."""
        return socket.create_connection((LOOPBACK, self.port), timeout=60)

    def metric(self, name: str, **labels: str) -> float:
        value = self.gateway.metrics.registry.get_sample_value(
            f"runnerstream_gateway_{name}", labels
        )
        assert value is not None, (name, labels)
        return value

    def counted(self, outcome: str) -> float:
        """Requests of GitHub's with that outcome, whatever the action."""
        return sum(
            sample.value
            for family in self.gateway.metrics.requests.collect()
            for sample in family.samples
            if sample.name.endswith("_total") and sample.labels["outcome"] == outcome
        )


@contextmanager
def serve(
    bootstrap: str,
    keyring: Keyring | None = None,
    client_tls: ssl.SSLContext | None = None,
    **config: Any,
) -> Iterator[Served]:
    """A gateway in a thread, ended in order; what it raises, raises here."""
    made = Gateway(
        GatewayConfig({"bootstrap_servers": bootstrap}, **config),
        keyring or Keyring({name: [SECRET] for name in PROVIDERS}, {}),
    )
    stop, listens = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(made.run(stop, lambda port: listens.set()))
        except BaseException as error:
            errors.append(error)
            listens.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert listens.wait(30)
        assert errors == []
        yield Served(made, client_tls)
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()
        assert errors == []


class Senders:
    """Post deliveries one after another, each on a connection that it keeps."""

    def __init__(self, port: int, senders: int = 8) -> None:
        self._port = port
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(senders)]
        self.accepted: list[bytes] = []
        self.others: list[int] = []
        self.broken = 0

    def _send(self) -> None:
        connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=60)
        while not self._stopping.is_set():
            body = queued(padding=2_000)
            try:
                connection.request("POST", "/webhooks/github", body, headers_of(body))
                reply = connection.getresponse()
                reply.read()
            except (OSError, http.client.HTTPException):
                self.broken += 1
                connection.close()
                time.sleep(0.01)
                continue
            if reply.status == 202:
                self.accepted.append(body)
            else:
                self.others.append(reply.status)
        connection.close()

    @contextmanager
    def sending(self) -> Iterator[None]:
        for each in self._threads:
            each.start()
        try:
            yield
        finally:
            self._stopping.set()
            for each in self._threads:
                each.join(60)


def ready(served: Served) -> None:
    """Return once it is ready."""
    until(lambda: served.gateway.status().ready)


def until(done: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What it gives as soon as that is something. Fails when it never comes."""
    deadline = time.monotonic() + PATIENCE * seconds
    while not (found := done()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return found


def written(bootstrap: str) -> list[Any]:
    """Everything on ``runners.webhooks``."""
    return list(evidence.read_topic(bootstrap, WEBHOOKS))


def bodies(bootstrap: str) -> list[bytes]:
    """The bodies of it."""
    return [record.value for record in written(bootstrap)]


GITHUB: Final = PROVIDERS["github"]
