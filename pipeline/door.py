"""The door of an HTTP server, which strangers cannot block.

aiohttp takes every connection and has no time limit for a request that does not come: thousands of
connections that say nothing, or say it slowly, then use up the files of the process. So here

* a bounded number of connections is let in;
* with the house full, whoever has said nothing for longest goes, then whoever has been sending
  longest, so a new caller is always let in;
* who has asked nothing for some seconds goes, and who is idle for longer;
* callers are let in for some milliseconds of each round of the event loop, so a flood does not stop
  the work, and work does not keep callers out.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from aiohttp import web

try:
    import resource
except ImportError:  # not made for Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

#: From the connection to the end of the first request's header. Seconds.
HEADER_S: Final = 10.0
#: Between two requests, the slow header of a later one and a slow reader included. Seconds.
IDLE_S: Final = 75.0
#: For one answer. Seconds.
ANSWER_S: Final = 60.0
#: Connections the kernel keeps for us until they are let in. Whoever comes beyond them is not heard
#: and calls again after a second, so a burst of senders has room here. The system may allow fewer.
BACKLOG: Final = 1_024
#: How long callers are let in before it is everybody else's turn. Seconds.
_LET_IN_S: Final = 0.002
#: Between two looks for connections past their time. Seconds.
_SWEEP_S: Final = 1.0
#: Of a full house at most this part goes at a time, beyond the one that has to: those that have
#: asked nothing, or been sending, for longer than this. Seconds.
_SHARE: Final = 64
_SLOW_S: Final = 1.0
#: What is told instead when the system has no limit.
_MANY_FILES: Final = 2048


def files_limit() -> int:
    """How many files this process may open."""
    if resource is None:
        return _MANY_FILES
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MANY_FILES if soft == resource.RLIM_INFINITY else int(soft)


class Doing(IntEnum):
    """What a connection does; the first of these go first when there is no room."""

    #: It asks nothing, or has not said all of its header.
    NOTHING = 0
    #: It sends the body of what it asks.
    SENDING = 1
    #: It is being answered.
    ASKING = 2


@dataclass(slots=True, eq=False)
class Visit:
    """A connection."""

    protocol: Any
    #: Since when it does what it does. Monotonic.
    since: float
    #: Whether it has ever sent a whole header.
    asked: bool = False
    doing: Doing = Doing.NOTHING
    #: None until the connection is made; until then there is the socket.
    transport: Any = None
    caller: socket.socket | None = None

    @property
    def gone(self) -> bool:
        """Whether the connection is closed."""
        if self.transport is None:
            return False
        return self.protocol.transport is None or bool(self.transport.is_closing())

    def overdue(self, now: float) -> bool:
        """Whether it has had its time."""
        limit = ANSWER_S if self.doing else IDLE_S if self.asked else HEADER_S
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

    def enter(self, protocol: Any, caller: socket.socket | None = None) -> None:
        """Somebody has come."""
        self._visits[protocol] = Visit(protocol, self._clock(), caller=caller)

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
        """Have one place free: whoever does least goes, and of those the oldest.

        In a large house others go as well who have been slow, so that in a flood not everybody is
        looked at for each caller.
        """
        if len(self._visits) < self.most:
            return
        self._forget()
        if len(self._visits) < self.most:
            return
        first, *more = heapq.nsmallest(
            max(1, self.most // _SHARE),
            self._visits.values(),
            key=lambda visit: (visit.doing, visit.since),
        )
        slow = self._clock() - _SLOW_S
        go = [each for each in more if each.doing is not Doing.ASKING and each.since < slow]
        for visit in (first, *go):
            self._close(visit)
            self.evicted += 1

    def sweep(self) -> None:
        """Close what has had its time."""
        self._forget()
        now = self._clock()
        for visit in [each for each in self._visits.values() if each.overdue(now)]:
            self._close(visit)
            self.overdue += 1

    def sends(self, protocol: Any) -> None:
        """The header of a request is there, and its body is being read."""
        self._does(protocol, Doing.SENDING)

    def asks(self, protocol: Any) -> None:
        """A request of the connection is being answered."""
        self._does(protocol, Doing.ASKING)

    def answered(self, protocol: Any) -> None:
        """The request is over."""
        self._does(protocol, Doing.NOTHING)

    def _does(self, protocol: Any, doing: Doing) -> None:
        visit = self._visits.get(protocol)
        if visit is not None:
            visit.since, visit.doing, visit.asked = self._clock(), doing, True

    def _forget(self) -> None:
        for visit in [each for each in self._visits.values() if each.gone]:
            del self._visits[visit.protocol]

    def _close(self, visit: Visit) -> None:
        # At once: a reader that takes nothing would hold up a polite close.
        if visit.transport is not None:
            visit.transport.abort()
        elif visit.caller is not None:
            # In the middle of its TLS handshake, which then fails.
            with contextlib.suppress(OSError):
                visit.caller.shutdown(socket.SHUT_RDWR)
        del self._visits[visit.protocol]


class GuardedSite(web.BaseSite):
    """A TCP site with a :class:`Door`.

    With ``tls`` each has :data:`HEADER_S` for its handshake. ``welcome`` says of an address whether
    connections from it are taken.
    """

    __slots__ = ("_door", "_host", "_port", "_seating", "_sockets", "_tasks", "_tls", "_welcome")

    def __init__(
        self,
        runner: web.BaseRunner,
        host: str,
        port: int,
        door: Door,
        *,
        tls: ssl.SSLContext | None = None,
        welcome: Callable[[str], bool] | None = None,
    ) -> None:
        super().__init__(runner, backlog=BACKLOG)
        self._host = host
        self._port = port
        self._door = door
        self._tls = tls
        self._welcome = welcome
        self._sockets: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._seating: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        """Its URL."""
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._port}"

    @property
    def port(self) -> int:
        """Where it listens; 0 before it does."""
        return int(self._sockets[0].getsockname()[1]) if self._sockets else 0

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
        for task in (*self._tasks, *self._seating):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._seating, return_exceptions=True)
        for listener in self._sockets:
            listener.close()
        await super().stop()

    async def _let_in(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # A round for everybody else.
            await asyncio.sleep(0)
            try:
                caller, address = await loop.sock_accept(listener)
                ends = time.monotonic() + _LET_IN_S
                self._let_one_in(caller, address)
                while time.monotonic() < ends:
                    caller, address = listener.accept()
                    caller.setblocking(False)
                    self._let_one_in(caller, address)
            except BlockingIOError:
                continue  # nobody else is there
            except OSError as error:
                # Out of files, most likely, or the caller has gone already.
                log.debug("nobody could be let in: %r", error)
                self._door.sweep()
                await asyncio.sleep(0.05)

    def _let_one_in(self, caller: socket.socket, address: Any) -> None:
        if self._welcome is not None and not self._welcome(str(address[0])):
            caller.close()
            return
        server: Any = self._runner.server
        protocol = server()
        self._door.make_room()
        # Before the first bytes are read: the first request must not be overlooked.
        self._door.enter(protocol, caller)
        # It takes a round or two, and a handshake its time.
        task = asyncio.get_running_loop().create_task(self._seat(protocol, caller))
        self._seating.add(task)
        task.add_done_callback(self._seating.discard)

    async def _seat(self, protocol: Any, caller: socket.socket) -> None:
        handshake: dict[str, Any] = {}
        if self._tls is not None:
            handshake = {"ssl": self._tls, "ssl_handshake_timeout": HEADER_S}
        try:
            caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            loop = asyncio.get_running_loop()
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, caller, **handshake)
        except OSError as error:  # ssl.SSLError and what a handshake's time-out raises are such
            log.debug("a caller went before it was let in: %r", error)
            self._door.leave(protocol)
            caller.close()
        else:
            self._door.seat(protocol, transport)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._door.sweep()
