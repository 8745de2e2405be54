"""Part 7: signed deliveries of 10 kB through the gateway, against a floor; then more than it takes,
and a thousand slow senders.

The floor is a bare aiohttp application that hands each body to the same producer and answers 202
when Kafka has it: no signature, no look into the body, no bounds, no metrics, no log.
``python -m benchmarks.gateway BOOTSTRAP`` is its process.

Senders keep a connection each and post one delivery after another, so what is offered is what is
taken. Then thrice as many senders post as deliveries may wait for Kafka; then thrice as many
deliveries come a second, by the clock, as were taken before. All that was accepted must be on the
topic.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Final

import uvloop
from aiohttp import web
from aiokafka import AIOKafkaProducer

from benchmarks import gateway_stress, machine
from benchmarks.bench import PARTITIONS, Options, Stage, say, stage
from pipeline.faust_safe import producer_id
from pipeline.gateway.writer import BATCH_BYTES, LINGER_MS
from pipeline.local.process import LOOPBACK, free_port
from tests.support import evidence
from tests.support.worker import WorkerProcess
from topics.catalogue import MAX_WEBHOOK_BYTES, WEBHOOKS

SECRET: Final = b"swordfish"
BODY_BYTES: Final = 10_000
#: Bodies that senders take turns with: jobs of their own, so that all partitions are written to.
BODIES: Final = 256
SENDERS: Final = 64
#: Left out at the beginning.
WARM_UP_S: Final = 1.0
#: Deliveries that may wait for Kafka in the overload, and how many post at a time.
PLACES: Final = 32
OVERLOAD: Final = 3 * PLACES
#: How many times what it takes is offered by the clock.
THRICE: Final = 3


class Sender(asyncio.Protocol):
    """Posts one delivery after another until told to stop."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""
        self._began = 0.0
        self._id = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport: Any = transport
        self._post()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody ends a connection before the load is over."""
        self._load.left(self)

    def data_received(self, data: bytes) -> None:
        """An answer, or a part of one."""
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(rest) < length:
            return
        self._received = b""
        now = time.monotonic()
        self._load.answers.append((now, now - self._began, int(head[9:12]), self._id))
        if now < self._load.until:
            self._post()
        else:
            self._transport.close()

    def _post(self) -> None:
        number = next(self._load.numbers)
        self._id = f"{number:08x}-b5f4-11f1-8a3f-0242ac120002"
        head, body = self._load.requests[number % len(self._load.requests)]
        self._began = time.monotonic()
        self._transport.write(head + self._id.encode() + b"\r\n\r\n" + body)


class Load:
    """Several senders at a time, for some seconds.

    ``answers``: when, seconds that it took, status, id of the delivery.
    """

    def __init__(self, requests: Sequence[tuple[bytes, bytes]], numbers: Iterator[int]) -> None:
        self.requests = requests
        self.numbers = numbers
        self.answers: list[tuple[float, float, int, str]] = []
        self.until = 0.0
        self._senders = 0
        self._over = asyncio.Event()

    async def run(self, port: int, senders: int, seconds: float) -> None:
        """Post until the time is over and every answer is there."""
        self.until = time.monotonic() + seconds
        self._senders = senders
        loop = asyncio.get_running_loop()
        for _ in range(senders):
            await loop.create_connection(lambda: Sender(self), LOOPBACK, port)
        await self._over.wait()

    def left(self, sender: Sender) -> None:
        """A sender is done."""
        self._senders -= 1
        if not self._senders:
            self._over.set()


def requests() -> list[tuple[bytes, bytes]]:
    """Signed deliveries, all but the id that ends the header."""
    found = []
    for job in range(BODIES):
        told = {"id": 9_000_000 + job, "status": "queued", "labels": ["linux"], "steps": []}
        body = json.dumps({"action": "queued", "workflow_job": told, "x": ""}).encode()
        body = body[:-2] + b"x" * (BODY_BYTES - len(body)) + body[-2:]
        head = (
            "POST /webhooks/github HTTP/1.1\r\nHost: gateway\r\nUser-Agent: GitHub-Hookshot/044aadd"
            f"\r\nContent-Length: {len(body)}\r\nContent-Type: application/json\r\nAccept: */*\r\n"
            "X-GitHub-Event: workflow_job\r\nX-GitHub-Hook-ID: 123456\r\n"
            "X-GitHub-Hook-Installation-Target-Type: repository\r\n"
            "X-GitHub-Hook-Installation-Target-ID: 1234567\r\n"
            f"X-Hub-Signature-256: sha256={hmac.digest(SECRET, body, 'sha256').hex()}\r\n"
            "X-GitHub-Delivery: "
        )
        found.append((head.encode(), body))
    return found


def measure(options: Options) -> dict[str, Any]:
    """Floor and gateway in turns, then the gateway with more than it takes."""
    numbers = count(1)
    sent = requests()
    rounds = []
    with stage(options.kind) as place:
        for number in range(options.rounds):
            each = {}
            for name in ("floor", "gateway"):
                say(f"gateway: round {number + 1} of {options.rounds}, {name}")
                with _served(place, f"{name}-{number}", name == "floor") as (process, port):
                    each[name] = _round(process, port, sent, numbers, options.gateway_seconds)
            rounds.append({**each, "ratio": each["gateway"]["per_second"]
                           / each["floor"]["per_second"]})  # fmt: skip
        say(f"gateway: {OVERLOAD} senders for {PLACES} places")
        overload, accepted = _overload(place, sent, numbers, options.gateway_seconds)
        with _served(place, "stress", False) as (process, port):
            rate = THRICE * sorted(each["gateway"]["per_second"] for each in rounds)[
                len(rounds) // 2]  # fmt: skip
            say(f"gateway: {rate:,.0f} deliveries a second, {THRICE} times what it took")
            seconds = options.gateway_seconds
            paced, by_clock = gateway_stress.paced(
                process.pid or 0, port, sent, numbers, rate, seconds
            )
            say(f"gateway: {gateway_stress.SLOW:,} slow connections")
            slow, beside = gateway_stress.slow(port, sent, numbers, seconds)
            paced["ready_after"] = process.get("/readyz")[0] == 200
        written = {
            dict(record.headers).get("x-github-delivery", b"").decode()
            for record in evidence.read_topic(place.bootstrap, WEBHOOKS)
        }
    for part, ids in ((overload, accepted), (paced, by_clock), (slow, beside)):
        part["accepted_and_not_written"] = len(ids - written)
    ratios = sorted(each["ratio"] for each in rounds)
    return {
        "seconds": options.gateway_seconds,
        "senders": SENDERS,
        "body_bytes": BODY_BYTES,
        "rounds": rounds,
        "ratio": ratios[len(ratios) // 2],
        "overload": overload,
        "paced": paced,
        "slow": slow,
    }


def _round(
    process: WorkerProcess,
    port: int,
    sent: list[tuple[bytes, bytes]],
    numbers: Iterator[int],
    seconds: float,
) -> dict[str, Any]:
    pid = process.pid or 0
    rss, cpu = machine.rss(pid), machine.cpu_seconds(pid)
    began = time.monotonic()
    load = _load(port, SENDERS, sent, numbers, WARM_UP_S + seconds)
    used = machine.cpu_seconds(pid) - cpu
    warm = [each for each in load.answers if each[0] - began >= WARM_UP_S]
    took = sorted(each[1] for each in warm)
    return {
        "deliveries": len(load.answers),
        "accepted": sum(each[2] == 202 for each in load.answers),
        "per_second": len(warm) / (warm[-1][0] - began - WARM_UP_S),
        "cpu_us": used / len(load.answers) * 1e6,
        "p50_s": took[len(took) // 2],
        "p99_s": took[int(len(took) * 0.99)],
        "rss_before": rss,
        "rss_after": machine.rss(pid),
    }


def _overload(
    place: Stage, sent: list[tuple[bytes, bytes]], numbers: Iterator[int], seconds: float
) -> tuple[dict[str, Any], set[str]]:
    """The figures, and the ids answered 202."""
    with _served(place, "overload", False, gateway_in_flight=PLACES) as (process, port):
        load = _load(port, OVERLOAD, sent, numbers, seconds)
        rss = machine.rss(process.pid or 0)
        status, _ = process.get("/readyz")
    accepted = {each[3] for each in load.answers if each[2] == 202}
    took = sorted(each[1] for each in load.answers)
    return {
        "senders": OVERLOAD,
        "places": PLACES,
        "answers": len(load.answers),
        "accepted": len(accepted),
        "shed": sum(each[2] == 503 for each in load.answers),
        "p99_s": took[int(len(took) * 0.99)],
        "rss_after": rss,
        "ready_after": status == 200,
    }, accepted


def _load(
    port: int,
    senders: int,
    sent: list[tuple[bytes, bytes]],
    numbers: Iterator[int],
    seconds: float,
) -> Load:
    async def run() -> Load:
        load = Load(sent, numbers)
        await load.run(port, senders, seconds)
        return load

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


@contextmanager
def _served(
    place: Stage, name: str, floor: bool, **settings: object
) -> Iterator[tuple[WorkerProcess, int]]:
    """The floor's process, or ``runnerstream gateway``; and where it takes webhooks."""
    directory = place.directory / name
    (directory / "secrets").mkdir(parents=True)
    (directory / "secrets" / "github").write_bytes(SECRET)
    port = free_port()
    command = ["-m", "pipeline.cli", "gateway"]
    if floor:
        command = ["-m", "benchmarks.gateway", place.bootstrap, str(port)]
    process = WorkerProcess(
        place.bootstrap, command=command, log=directory / "log", directory=directory,
        partitions=PARTITIONS, gateway_listen=f"{LOOPBACK}:{port}",
        webhook_secrets_dir=str(directory / "secrets"), **settings,
    )  # fmt: skip
    process._given["gateway_port"] = str(process.port)
    if floor:
        process.port = port
    process.start().wait_ready()
    try:
        yield process, port
    finally:
        process.stop()


async def serve_floor(bootstrap: str, port: int) -> None:
    """Bare aiohttp and the producer, until killed."""
    producer_id.install()
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, linger_ms=LINGER_MS,
        max_batch_size=BATCH_BYTES, max_request_size=MAX_WEBHOOK_BYTES,
    )  # fmt: skip
    await producer.start()
    numbers = count()

    async def hook(request: web.Request) -> web.Response:
        body = await request.read()
        await producer.send_and_wait(WEBHOOKS, body, b"%d" % next(numbers))
        return web.Response(status=202, text="written")

    async def well(request: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application(client_max_size=25 << 20)
    app.add_routes([web.post("/webhooks/github", hook), web.get("/healthz", well),
                    web.get("/readyz", well)])  # fmt: skip
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as floor_runner:
        floor_runner.run(serve_floor(sys.argv[1], int(sys.argv[2])))
