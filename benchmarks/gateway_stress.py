"""What a gateway does when more comes than it takes, and when a thousand senders are slow.

Both are senders against a running gateway; :mod:`benchmarks.gateway` starts it and looks into the
topic afterwards.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import uvloop

from benchmarks import machine
from pipeline.local.process import LOOPBACK

#: Connections of the senders, who post by the clock. What is due while all are taken waits for one.
CONNECTIONS: Final = 2_000
#: Slow connections, and how often each says one byte more. Seconds.
SLOW: Final = 1_000
_BYTE_S: Final = 1.0
#: Between two ordinary deliveries beside them, between two looks at the clock, and at memory.
_ORDINARY_S: Final = 0.05
_LOOK_S: Final = 0.002
_WEIGH_S: Final = 0.25
#: How long answers may take in the end. Seconds.
_PATIENCE_S: Final = 30.0

Requests = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: seconds that the delivery waited for a connection, and then for its answer;
    status, 0 when none came; its id."""

    waited: float
    took: float
    status: int
    delivery: str


@dataclass
class _Load:
    """Deliveries that are posted, and what came of them."""

    requests: Requests
    numbers: Iterator[int]
    answers: list[Answer] = field(default_factory=list)
    idle: deque[_Caller] = field(default_factory=deque)
    #: When those were due that wait for a connection.
    due: deque[float] = field(default_factory=deque)
    pending: int = 0

    def post(self, due: float) -> None:
        """Post one, as soon as there is a connection."""
        self.pending += 1
        self.due.append(due)
        self.go_on()

    def go_on(self) -> None:
        """Give what waits to whoever is idle."""
        while self.due and self.idle:
            number = next(self.numbers)
            head, body = self.requests[number % len(self.requests)]
            delivery = f"{number:08x}-b5f4-11f1-8a3f-0242ac120002"
            self.idle.popleft().post(
                head + delivery.encode() + b"\r\n\r\n" + body, delivery, self.due.popleft()
            )

    def answered(self, answer: Answer) -> None:
        """One has come, or will not."""
        self.answers.append(answer)
        self.pending -= 1


class _Caller(asyncio.Protocol):
    """A connection that posts what it is given."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._received = b""
        #: The delivery's id, when it was due and when it was posted.
        self._asked: tuple[str, float, float] | None = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        self.transport = transport
        self._load.idle.append(self)
        self._load.go_on()

    def post(self, request: bytes, delivery: str, due: float) -> None:
        """Post one."""
        self._asked = (delivery, due, time.monotonic())
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """An answer, or a part of one."""
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found or self._asked is None:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(rest) < length:
            return
        self._received = b""
        self._end(int(head[9:12]))
        self._load.idle.append(self)
        self._load.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, and with it what it was asked."""
        with suppress(ValueError):
            self._load.idle.remove(self)
        self._end(0)

    def _end(self, status: int) -> None:
        if self._asked is not None:
            delivery, due, posted = self._asked
            self._asked = None
            took = time.monotonic() - posted
            self._load.answered(Answer(posted - due, took, status, delivery))


def paced(
    pid: int,
    port: int,
    requests: Requests,
    numbers: Iterator[int],
    per_second: float,
    seconds: float,
) -> tuple[dict[str, Any], set[str]]:
    """Post so many a second, whatever is answered; the figures, and the ids answered 202."""
    return _run(_paced(pid, port, requests, numbers, per_second, seconds))


async def _paced(
    pid: int,
    port: int,
    requests: Requests,
    numbers: Iterator[int],
    per_second: float,
    seconds: float,
) -> tuple[dict[str, Any], set[str]]:
    load = _Load(requests, numbers)
    loop = asyncio.get_running_loop()
    for _ in range(CONNECTIONS):
        await loop.create_connection(lambda: _Caller(load), LOOPBACK, port)
    weights = [machine.rss(pid)]
    began = weighed = time.monotonic()
    posted, wanted = 0, int(per_second * seconds)
    while posted < wanted:
        now = time.monotonic()
        while posted < wanted and began + posted / per_second <= now:
            load.post(began + posted / per_second)
            posted += 1
        if now - weighed >= _WEIGH_S:
            weights.append(machine.rss(pid))
            weighed = now
        await asyncio.sleep(_LOOK_S)
    took = time.monotonic() - began
    await _quiet(load)
    weights.append(machine.rss(pid))
    by_status = {
        status: sorted(each.took for each in load.answers if each.status == status)
        for status in (202, 503)
    }
    accepted = {each.delivery for each in load.answers if each.status == 202}
    return {
        "per_second": per_second,
        "connections": CONNECTIONS,
        "offered": posted,
        "offered_per_second": posted / took,
        "accepted": len(accepted),
        "shed": len(by_status[503]),
        "others": len(load.answers) - sum(map(len, by_status.values())),
        "unanswered": load.pending,
        "accepted_s": _spread(by_status[202]),
        "shed_s": _spread(by_status[503]),
        "waited_s": _spread(sorted(each.waited for each in load.answers)),
        "rss": {"before": weights[0], "most": max(weights), "after": weights[-1],
                # Once the first second has filled what there is to fill.
                "middle": weights[len(weights) // 2]},
    }, accepted  # fmt: skip


def slow(
    port: int, requests: Requests, numbers: Iterator[int], seconds: float
) -> tuple[dict[str, Any], set[str]]:
    """Ordinary deliveries, each on a connection of its own, for some seconds alone and then beside
    :data:`SLOW` connections that send a byte a second; the figures, and the ids answered 202."""
    return _run(_slow(port, requests, numbers, seconds))


async def _slow(
    port: int, requests: Requests, numbers: Iterator[int], seconds: float
) -> tuple[dict[str, Any], set[str]]:
    load = _Load(requests, numbers)
    alone = await _ordinary(load, port, seconds / 2)
    head, body = requests[0]
    # Half of them send a header that does not end, half a body that does not.
    whole = head + b"0" * 36 + b"\r\n\r\n" + body
    starts = itertools.cycle((head[:40], whole[: -len(body) // 2]))
    seen = {"open": 0, "closed": 0}

    async def crawl(start: bytes) -> None:
        """Whoever is thrown out comes again."""
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(LOOPBACK, port)
                seen["open"] += 1
                try:
                    writer.write(start)
                    while not reader.at_eof():
                        with suppress(TimeoutError):
                            async with asyncio.timeout(_BYTE_S):
                                await reader.read(1 << 16)
                        writer.write(b"x")
                        await writer.drain()
                finally:
                    seen["open"] -= 1
                    writer.transport.abort()
                seen["closed"] += 1
            await asyncio.sleep(_BYTE_S)

    crawlers = [asyncio.create_task(crawl(next(starts))) for _ in range(SLOW)]
    ends = time.monotonic() + _PATIENCE_S
    while seen["open"] < SLOW and time.monotonic() < ends:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)
    open_then = seen["open"]
    beside = await _ordinary(load, port, seconds)
    open_after = seen["open"]
    for each in crawlers:
        each.cancel()
    await asyncio.gather(*crawlers, return_exceptions=True)
    accepted = {each.delivery for each in load.answers if each.status == 202}
    return {
        "connections": SLOW,
        "open": [open_then, open_after],
        "closed": seen["closed"],
        "ordinary": len(load.answers),
        "accepted": len(accepted),
        "alone_s": _spread(alone),
        "beside_s": _spread(beside),
    }, accepted


async def _ordinary(load: _Load, port: int, seconds: float) -> list[float]:
    """Deliveries one after another, each on a new connection; how long they took, sorted."""
    loop = asyncio.get_running_loop()
    first = len(load.answers)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        load.post(time.monotonic())
        _, caller = await loop.create_connection(lambda: _Caller(load), LOOPBACK, port)
        await _quiet(load)
        load.idle.clear()
        caller.transport.close()
        await asyncio.sleep(_ORDINARY_S)
    return sorted(each.waited + each.took for each in load.answers[first:])


async def _quiet(load: _Load) -> None:
    """Wait until everything is answered, or long enough."""
    ends = time.monotonic() + _PATIENCE_S
    while load.pending and time.monotonic() < ends:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)


def _spread(took: list[float]) -> dict[str, float]:
    """Of sorted seconds the median, 99 % and the most; 0 when there are none."""
    if not took:
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    return {"p50": took[len(took) // 2], "p99": took[int(len(took) * 0.99)], "max": took[-1]}


def _run(work: Any) -> Any:
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)
