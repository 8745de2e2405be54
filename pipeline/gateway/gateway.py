"""The gateway as a whole: from listening to the last acknowledgement."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, Final

from aiohttp import web

from pipeline.door import IDLE_S, Door, GuardedSite, files_limit
from pipeline.gateway.access import AccessLog
from pipeline.gateway.keyring import Keyring
from pipeline.gateway.metrics import GatewayMetrics
from pipeline.gateway.openapi import HEALTH, PATH, page
from pipeline.gateway.server import Held, HookServer, Page, Receiver
from pipeline.gateway.writer import Writer

log = logging.getLogger(__name__)
#: aiohttp logs each malformed request of a stranger with a traceback.
_quiet = logging.getLogger(f"{__name__}.requests")
_quiet.setLevel(logging.CRITICAL)

#: Files that are left to everything but connections.
SPARE_FILES: Final = 128
#: How long a body that nobody wants is read on, so that its sender hears the answer. Seconds.
LINGER_S: Final = 1.0
#: How long aiohttp waits in the end for what had its time in ``HookServer.finish``. Seconds.
_CUT_S: Final = 1.0
#: Between two turns of the loop that are noted, and after what silence it counts as stuck. Seconds.
_TURN_S: Final = 0.1
_STUCK_S: Final = 60.0


@dataclass(frozen=True)
class GatewayConfig:
    """What the gateway is told.

    Attributes:
        kafka: options of the connection, as aiokafka takes them.
        host, port: where it takes webhooks; port 0 picks one.
        deadline_s: how long Kafka may take before a delivery is answered 503.
        body_time_s: how long a body may take to come.
        in_flight: deliveries that may wait for Kafka.
        memory: bytes of bodies that may be held.
        connections: most connections, as far as the limit of files allows.
        allowed: networks that may connect; none: all.
        tls: for HTTPS.
        json_log: whether the access log is JSON.
    """

    kafka: Mapping[str, Any]
    host: str = "127.0.0.1"
    port: int = 0
    deadline_s: float = 8.0
    body_time_s: float = 8.0
    in_flight: int = 1_000
    memory: int = 256 << 20
    connections: int = 4_096
    allowed: tuple[IPv4Network | IPv6Network, ...] = ()
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    json_log: bool = False


@dataclass(frozen=True)
class Status:
    """How a gateway is doing."""

    ready: bool
    reason: str
    alive: bool
    in_flight: int
    connections: int


class Gateway:
    """One gateway, run once.

    Args:
        version: of the program, for the OpenAPI document.
    """

    def __init__(self, config: GatewayConfig, keyring: Keyring, version: str = "") -> None:
        document = page(version)
        self.config = config
        self.metrics = GatewayMetrics()
        #: Where it takes webhooks; 0 until it does.
        self.port = 0
        self._keyring = keyring
        self._pages: dict[str, Page] = {
            **{path: partial(self._health, what) for path, what in HEALTH.items()},
            PATH: lambda: document,
        }
        most = max(8, min(config.connections, files_limit() - SPARE_FILES))
        self._door = Door(most)
        self._held = Held(config.memory)
        self._access = AccessLog(config.json_log)
        self._writer: Writer | None = None
        self._turned = time.monotonic()
        self._draining = False
        #: Closed connections that are counted already.
        self._counted: dict[str, int] = {}

    def status(self) -> Status:
        """How it is now. From any thread."""
        writer = self._writer
        reason = "it has not started" if writer is None else writer.trouble
        if self._draining:
            reason = "it is ending"
        alive = time.monotonic() - self._turned < _STUCK_S
        waiting = 0 if writer is None else writer.in_flight
        return Status(not reason and alive, reason, alive, waiting, len(self._door))

    async def run(
        self, stop: threading.Event, listening: Callable[[int], None] = lambda port: None
    ) -> None:
        """Take webhooks until ``stop`` is set; then take no more, finish, and return once Kafka has
        what was taken. ``listening`` is told the port. Raises OSError when it cannot listen."""
        config = self.config
        self._writer = writer = Writer(
            config.kafka, config.deadline_s, config.in_flight, self.metrics
        )
        self.metrics.watch(
            lambda: writer.in_flight, lambda: self._held.bytes, lambda: len(self._door)
        )
        receiver = Receiver(self._keyring, writer, self.metrics, self._door, self._held,
                            config.body_time_s, self._pages, self._access)  # fmt: skip
        server = HookServer(
            receiver, access_log=None, logger=_quiet, keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S, auto_decompress=False,
        )  # fmt: skip
        runner = web.ServerRunner(server, shutdown_timeout=_CUT_S)
        await runner.setup()
        site = GuardedSite(runner, config.host, config.port, self._door, tls=config.tls,
                           welcome=self._welcome if config.allowed else None)  # fmt: skip
        writer.start()
        told = asyncio.Event()
        turning = asyncio.create_task(self._turn(writer, stop, told))
        try:
            await site.start()
            self.port = site.port
            listening(self.port)
            await told.wait()
            self._draining = True
            log.info("taking no more webhooks; %d wait for Kafka", writer.in_flight)
            await site.stop()
            await server.finish(config.body_time_s + config.deadline_s)
        finally:
            self._draining = True
            await runner.cleanup()
            await writer.stop()
            turning.cancel()
            self._access.write()

    async def _turn(self, writer: Writer, stop: threading.Event, told: asyncio.Event) -> None:
        """What is done several times a second, until all is over."""
        while True:
            self._turned = time.monotonic()
            writer.give_up_what_is_late()
            self._access.write()
            self.metrics.settle()
            self._count_closed()
            if stop.is_set():
                told.set()
            await asyncio.sleep(_TURN_S)

    def _count_closed(self) -> None:
        for reason, seen in (("overdue", self._door.overdue), ("evicted", self._door.evicted)):
            counter = self.metrics.closed.labels(reason)
            counter.inc(seen - self._counted.get(reason, 0))
            self._counted[reason] = seen

    def _health(self, what: str) -> tuple[int, bytes]:
        well = bool(getattr(self.status(), what))
        return (200 if well else 503), json.dumps({what: well}).encode() + b"\n"

    def _welcome(self, address: str) -> bool:
        try:
            told = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        told = getattr(told, "ipv4_mapped", None) or told
        if any(told in network for network in self.config.allowed):
            return True
        self.metrics.strangers.inc()
        return False
