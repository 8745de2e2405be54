"""The HTTP server of the views, behind a door that strangers cannot block.

Faust's server takes every connection and keeps it for an hour. 10,000 connections that say nothing
then use up the files of the process: nobody can ask for its health, and when the broker comes back
the worker cannot connect to it. And each new one costs the loop that folds. So here it has a
:class:`~pipeline.door.Door`, and at most a quarter of the files the process may open are
connections to the views.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from aiohttp import web
from faust.web.drivers.aiohttp import Web

from pipeline.door import IDLE_S, Door, GuardedSite, files_limit

#: aiohttp logs each malformed request of a stranger as an error, with a traceback. What fails in
#: our own handlers is logged by them.
_quiet = logging.getLogger(f"{__name__}.requests")
_quiet.setLevel(logging.CRITICAL)

#: Most connections, whatever the limit of files.
MOST: Final = 512


def most_connections(files: int) -> int:
    """How many connections fit into a process that may open ``files`` files."""
    return max(8, min(MOST, files // 4))


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
