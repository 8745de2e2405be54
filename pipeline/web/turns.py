"""Views take turns, so that the fold, which runs in the same event loop, always gets its own.

A view works in slices of a millisecond or two. However many are under way, one slice is done per
round of the event loop, so whatever else wants to run waits for one slice at most. And only a few
views are under way at a time; the rest wait, or are told to come back when too many do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

#: Requests worked on at a time, and how many may wait for that.
AT_A_TIME: Final = 4
WAITING: Final = 64


class Busy(RuntimeError):
    """Too many wait already."""


class Turn:
    """The right to work until :meth:`next`."""

    def __init__(self, lock: asyncio.Lock) -> None:
        self._lock = lock
        self.held = False
        #: Slices begun.
        self.slices = 0

    async def next(self) -> None:
        """End the slice: let the loop go, then the others, then begin the next slice."""
        self.end()
        await asyncio.sleep(0)
        await self.begin()

    async def begin(self) -> None:
        """Wait for the turn."""
        await self._lock.acquire()
        self.held = True
        self.slices += 1

    def end(self) -> None:
        """Let others work. Nothing when it is not our turn."""
        if self.held:
            self.held = False
            # Not now: the next view would work in the same round of the loop.
            asyncio.get_running_loop().call_soon(self._lock.release)


class Turns:
    """Gives turns. One for all views of a worker."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        #: Slices given so far.
        self.given = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """The right to work, in slices."""
        turn = Turn(self._lock)
        await turn.begin()
        try:
            yield turn
        finally:
            turn.end()
            self.given += turn.slices


class Places:
    """How many requests may be worked on at a time."""

    def __init__(self, at_a_time: int = AT_A_TIME, waiting: int = WAITING) -> None:
        self._free = asyncio.Semaphore(at_a_time)
        self._most = waiting
        self._waiting = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place, at once or after a wait. Raises Busy when too many wait."""
        if self._free.locked() and self._waiting >= self._most:
            raise Busy
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()
