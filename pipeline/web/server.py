"""The HTTP server of the views, with a door that strangers cannot block.

Faust's server takes every connection and keeps it for an hour. 10,000 connections that say nothing
then use up the files of the process: nobody can ask for its health, and when the broker comes back
the worker cannot connect to it. And each new one costs the loop that folds. So here

* at most a quarter of the files the process may open are connections to the views;
* with the house full, whoever has waited longest without asking anything goes, so a new caller
  is always let in;
* who has asked nothing for some seconds goes, and who is idle for longer;
* one caller is let in per round of the event loop, so a flood does not stop the work.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from faust.web.drivers.aiohttp import Web

try:
    import resource
except ImportError:  # not made for Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

#: aiohttp logs each malformed request of a stranger as an error, with a traceback. What fails in
#: our own handlers is logged by them.
_quiet = logging.getLogger(f"{__name__}.requests")
_quiet.setLevel(logging.CRITICAL)

#: From the connection to the end of the first request's header. Seconds.
HEADER_S: Final = 10.0
#: Between two requests, the slow header of a later one and a slow reader included. Seconds.
IDLE_S: Final = 75.0
#: For one answer. Seconds.
ANSWER_S: Final = 60.0
#: Most connections, whatever the limit of files.
MOST: Final = 512
#: Connections the kernel keeps for us.
BACKLOG: Final = 128
#: Between two looks for connections past their time. Seconds.
_SWEEP_S: Final = 1.0


def most_connections(files: int) -> int:
    """How many connections fit into a process that may open ``files`` files."""
    return max(8, min(MOST, files // 4))


def files_limit() -> int:
    """How many files this process may open."""
    if resource is None:
        return 4 * MOST
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4 * MOST if soft == resource.RLIM_INFINITY else int(soft)


@dataclass(slots=True, eq=False)
class Visit:
    """A connection."""

    protocol: Any
    #: Since when it is in its state: without a request, or with one. Monotonic.
    since: float
    #: Whether it has ever sent a whole header.
    asked: bool = False
    #: Whether a request of it is being answered.
    busy: bool = False
    #: None until the connection is made.
    transport: Any = None

    @property
    def gone(self) -> bool:
        """Whether the connection is closed."""
        if self.transport is None:
            return False
        return self.protocol.transport is None or bool(self.transport.is_closing())

    def overdue(self, now: float) -> bool:
        """Whether it has had its time."""
        limit = ANSWER_S if self.busy else IDLE_S if self.asked else HEADER_S
        return now - self.since > limit


class Door:
    """Who is in the house, and who has to go."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        #: Connections closed to make room, and those closed for their time.
        self.evicted = 0
        self.overdue = 0
        self._clock = clock
        self._visits: dict[Any, Visit] = {}

    def __len__(self) -> int:
        return len(self._visits)

    def enter(self, protocol: Any) -> None:
        """Somebody has come."""
        self._visits[protocol] = Visit(protocol, self._clock())

    def seat(self, protocol: Any, transport: Any) -> None:
        """The connection is made."""
        visit = self._visits.get(protocol)
        if visit is None:
            # Thrown out already.
            transport.abort()
        else:
            visit.transport = transport

    def leave(self, protocol: Any) -> None:
        """The connection could not be made."""
        self._visits.pop(protocol, None)

    def make_room(self) -> None:
        """Have one place free: the oldest of those that ask nothing goes, else of all."""
        if len(self._visits) < self.most:
            return
        self._forget()
        while len(self._visits) >= self.most:
            longest = min(self._visits.values(), key=lambda visit: (visit.busy, visit.since))
            self._close(longest)
            self.evicted += 1

    def sweep(self) -> None:
        """Close what has had its time."""
        self._forget()
        now = self._clock()
        for visit in [each for each in self._visits.values() if each.overdue(now)]:
            self._close(visit)
            self.overdue += 1

    def asks(self, protocol: Any) -> None:
        """A request of the connection is being answered."""
        visit = self._visits.get(protocol)
        if visit is not None:
            visit.since, visit.asked, visit.busy = self._clock(), True, True

    def answered(self, protocol: Any) -> None:
        """The request is over."""
        visit = self._visits.get(protocol)
        if visit is not None:
            visit.since, visit.busy = self._clock(), False

    def _forget(self) -> None:
        for visit in [each for each in self._visits.values() if each.gone]:
            del self._visits[visit.protocol]

    def _close(self, visit: Visit) -> None:
        # At once: a reader that takes nothing would hold up a polite close.
        if visit.transport is not None:
            visit.transport.abort()
        del self._visits[visit.protocol]


class GuardedSite(web.BaseSite):
    """A TCP site with a :class:`Door`. Lets in one connection per round of the event loop."""

    __slots__ = ("_door", "_host", "_port", "_sockets", "_tasks")

    def __init__(self, runner: web.AppRunner, host: str, port: int, door: Door) -> None:
        super().__init__(runner, backlog=BACKLOG)
        self._host = host
        self._port = port
        self._door = door
        self._sockets: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def name(self) -> str:
        """Its URL."""
        return f"http://{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen. Raises OSError when it cannot."""
        await super().start()
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(
            self._host or None, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, address in {(each[0], each[4]) for each in found}:
            listener = socket.socket(family, socket.SOCK_STREAM)
            self._sockets.append(listener)
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listener.listen(self._backlog)
            self._tasks.append(loop.create_task(self._let_in(listener)))
        self._tasks.append(loop.create_task(self._watch()))

    async def stop(self) -> None:
        """Stop listening; who is in may stay."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listener in self._sockets:
            listener.close()
        await super().stop()

    async def _let_in(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # A round for everybody else.
            await asyncio.sleep(0)
            try:
                caller, _ = await loop.sock_accept(listener)
            except OSError as error:
                # Out of files, most likely, or the caller has gone already.
                log.debug("nobody could be let in: %r", error)
                self._door.sweep()
                await asyncio.sleep(0.05)
            else:
                await self._seat(caller)

    async def _seat(self, caller: socket.socket) -> None:
        server: Any = self._runner.server
        protocol = server()
        self._door.make_room()
        # Before the first bytes are read: the first request must not be overlooked.
        self._door.enter(protocol)
        try:
            caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            loop = asyncio.get_running_loop()
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, caller)
        except OSError as error:
            log.debug("a caller went before it was let in: %r", error)
            self._door.leave(protocol)
            caller.close()
        else:
            self._door.seat(protocol, transport)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._door.sweep()


def announce(door: Door) -> Any:
    """A middleware that tells the door who has asked something."""

    @web.middleware
    async def middleware(request: web.Request, handler: Any) -> Any:
        door.asks(request.protocol)
        try:
            return await handler(request)
        finally:
            door.answered(request.protocol)

    return middleware


def new_runner(app: web.Application) -> web.AppRunner:
    """Runs the application with our limits."""
    return web.AppRunner(
        app,
        access_log=None,
        logger=_quiet,
        keepalive_timeout=IDLE_S,
        lingering_time=1.0,
        shutdown_timeout=5.0,
        # Nobody waits for the answer any more: stop making it.
        handler_cancellation=True,
    )


class GuardedWeb(Web):  # type: ignore[misc]
    """Faust's web server behind the :class:`Door`."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self.door = Door(most_connections(files_limit()))
        self._runner = new_runner(self.web_app)
        self.web_app.middlewares.append(announce(self.door))

    def _new_transport_tcp(self) -> web.BaseSite:
        conf = self.app.conf
        return GuardedSite(self._runner, conf.web_bind, conf.web_port, self.door)
