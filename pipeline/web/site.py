"""What all views share: whom they ask, whose turn it is, how an answer is written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from pipeline.text import version
from pipeline.web.answers import HEADERS, json_response
from pipeline.web.group import Group
from pipeline.web.health import Health
from pipeline.web.pages import Pages
from pipeline.web.ports import Console
from pipeline.web.query import wants_html
from pipeline.web.turns import Busy, Places, Turns

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """One per worker."""

    def __init__(self, worker: Console) -> None:
        self.worker = worker
        self.group = Group(worker)
        self.health = Health(worker)
        self.pages = Pages()
        self.turns = Turns()
        # Apart: a view waits for parts of peers, which may wait for a part of ours.
        self.views, self.parts = Places(), Places()
        # Prometheus gets its answer whatever people ask.
        self.scrapes = Places(at_a_time=1)

    async def answer(
        self,
        request: web.Request,
        template: str,
        answer: dict[str, Any],
        shown: dict[str, Any] | None = None,
        status: int = 200,
    ) -> web.Response:
        """The answer in the form that was asked for. ``shown`` is for the page only."""
        if not wants_html(request):
            response = json_response(answer, status)
        else:
            reasons = self.health.refresh()
            async with self.turns.turn() as turn:
                page = await self.pages.render(
                    template,
                    turn.next,
                    path=request.path,
                    answer=answer,
                    reasons=reasons,
                    missed=self.health.missed(),
                    version=version(),
                    **(shown or {}),
                )
            response = web.Response(
                body=page, content_type="text/html", charset="utf-8", status=status, headers=HEADERS
            )
        response.headers["Vary"] = "Accept"
        return response


def placed(places: Places) -> Callable[[Handler], Handler]:
    """Handlers of which only so many are under way."""

    def wrap(handler: Handler) -> Handler:
        async def placed(request: web.Request) -> web.StreamResponse:
            try:
                async with places.place():
                    return await handler(request)
            except Busy:
                raise web.HTTPServiceUnavailable(
                    text="too many questions at once; try again in some seconds",
                    headers={"Retry-After": "5"},
                ) from None

        return placed

    return wrap
