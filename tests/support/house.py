"""The views of a worker without Kafka: real handlers, real ledgers, real HTTP, in a thread.

with House(ledgers) as house:
    house.get("/jobs")
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace, TracebackType
from typing import Any, Self, cast
from urllib.parse import urlsplit

from aiohttp import web

from pipeline.door import Door, GuardedSite
from pipeline.exporter import Exporter
from pipeline.fleet import FleetLedger
from pipeline.holes import Holes
from pipeline.ledger import LIVE, Ledger
from pipeline.local.process import LOOPBACK, free_port
from pipeline.metrics import JOBS, OLDEST, Level
from pipeline.reached import Reached
from pipeline.settings import Settings
from pipeline.telemetry import TelemetryLedger
from pipeline.web.ports import Alone
from pipeline.web.server import announce, new_runner
from pipeline.web.views import Views


def fake_worker(
    ledgers: Mapping[int, Ledger], url: str = "http://house", peers: Mapping[str, Any] | None = None
) -> Any:
    """As much of a worker as the views need. ``peers``: partitions by URL of other workers."""
    metrics = Exporter()
    members = {url: set(ledgers)}
    members |= {peer: set(owned) for peer, owned in (peers or {}).items()}
    count = sum(map(len, members.values()))

    def job_levels() -> Iterator[Level]:
        for ledger in ledgers.values():
            for (fleet, status), jobs in ledger.counts().items():
                if status in LIVE:
                    yield JOBS, (fleet, status), jobs
                    yield OLDEST, (fleet, status), 1.0

    worker = SimpleNamespace(
        url=url,
        members=lambda: members,
        on_assigned=lambda call: None,
        rebalancing=False,
        recovering=None,
        settings=Settings(partitions=max(1, count), clickhouse=""),  # type: ignore[arg-type]
        metrics=metrics,
        compat=None,
        holes=Holes(metrics.missed),
        sources=Reached(),
        ledgers=dict(ledgers),
        fleet_ledgers={partition: FleetLedger(partition) for partition in ledgers},
        telemetry_ledgers={partition: TelemetryLedger(partition) for partition in ledgers},
        owned=lambda: sorted(ledgers),
        settled=True,
        started_at=time.time(),
        beside=Alone(),
        unrouted=None,
    )
    metrics.watch_levels(job_levels)
    return cast("Any", worker)


class House:
    """The views on a port of their own, behind a door for ``most`` connections."""

    def __init__(self, ledgers: Mapping[int, Ledger], most: int = 64, **options: Any) -> None:
        self.port = free_port()
        self.url = f"http://{LOOPBACK}:{self.port}"
        self.worker = fake_worker(ledgers, self.url, **options)
        self.door = Door(most)
        self.views: Views
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()

    async def _start(self) -> None:
        self.views = Views(self.worker)
        # There is no broker to watch.
        self.views.site.health.watch.start = lambda: None  # type: ignore[method-assign]
        app = web.Application(middlewares=[announce(self.door)])
        self.views.register(app)
        self._runner = new_runner(app)
        await self._runner.setup()
        await GuardedSite(self._runner, LOOPBACK, self.port, self.door).start()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    def call(self, what: Callable[[], object]) -> None:
        """Have something done where the views run: no answer is half made then."""

        async def done() -> None:
            what()

        asyncio.run_coroutine_threadsafe(done(), self._loop).result(20)

    def connect(self) -> socket.socket:
        """A connection that says nothing."""
        return socket.create_connection((LOOPBACK, self.port), timeout=20)

    def raw(self, target: bytes, *headers: str, method: bytes = b"GET") -> tuple[int, str, bytes]:
        """Status, header and body of a request whose target is sent as it is."""
        with self.connect() as connection:
            lines = ["Host: house", "Connection: close", *headers]
            head = "".join(f"{line}\r\n" for line in lines).encode()
            connection.sendall(method + b" " + target + b" HTTP/1.1\r\n" + head + b"\r\n")
            received = bytearray()
            while piece := connection.recv(1 << 16):
                received += piece
        head_, _, body = bytes(received).partition(b"\r\n\r\n")
        return int(head_.split(b" ", 2)[1]), head_.decode("latin-1"), body

    def get(self, target: str, accept: str = "application/json") -> tuple[int, Any]:
        """Status and body: parsed when it is JSON."""
        assert not urlsplit(target).netloc
        status, head, body = self.raw(target.encode(), f"Accept: {accept}")
        text = body.decode()
        return status, json.loads(text) if "application/json" in head else text
