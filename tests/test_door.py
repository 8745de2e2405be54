"""Who waits at the door of a server, and for how many rounds of the event loop."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack, closing

import pytest
from aiohttp import web

from pipeline import door
from pipeline.door import Door, GuardedSite

CALLERS = 60


async def rounds_until_all_are_in(callers: int) -> int:
    """How often others have their turn until callers that came at once are let in."""

    async def nothing(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response()

    runner = web.ServerRunner(web.Server(nothing))
    await runner.setup()
    house = Door(2 * callers)
    site = GuardedSite(runner, "127.0.0.1", 0, house)
    await site.start()
    try:
        with ExitStack() as stack:
            # The loop stands still meanwhile: the kernel has all of them when it goes on.
            for _ in range(callers):
                stack.enter_context(closing(socket.create_connection(("127.0.0.1", site.port))))
            rounds = 0
            while len(house) < callers:
                await asyncio.sleep(0)
                rounds += 1
            return rounds
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(("seconds", "least", "most"), [(60.0, 1, CALLERS // 2), (0.0, CALLERS, 0)])
def test_a_burst_is_let_in_in_its_time_and_no_longer(
    monkeypatch: pytest.MonkeyPatch, seconds: float, least: int, most: int
) -> None:
    monkeypatch.setattr(door, "_LET_IN_S", seconds)
    rounds = asyncio.run(rounds_until_all_are_in(CALLERS))
    assert rounds >= least
    if most:
        # One a round would keep a newcomer waiting for as many turns of everybody else.
        assert rounds <= most
