"""``/windows``, with its part for peers."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from pipeline.web import part
from pipeline.web.answers import json_response, now_ms, page_links
from pipeline.web.part import MAX_LIMIT, WindowQuery
from pipeline.web.query import FOREVER, Query, cursor, refuse
from pipeline.web.site import Site, placed
from pipeline.windows import SIZES_S, Pane

#: How far back /windows looks unless told, in seconds, by size.
DEFAULT_RANGE_S: Final = {60: 1_800, 300: 7_200, 3600: 86_400}
#: Rows on a page unless told.
LIMIT: Final = 500


class WindowViews:
    """The tumbling windows."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def register(self, app: web.Application) -> None:
        """The routes."""
        view, peer = placed(self._site.views), placed(self._site.parts)
        app.router.add_get("/windows", view(self.windows))
        app.router.add_get("/part/windows", peer(self.part_windows))

    async def windows(self, request: web.Request) -> web.Response:
        """Windows, newest first."""
        q = Query(request, *_WINDOW_PARAMETERS)
        now = now_ms()
        query = _window_query(q, now)
        gathered = await self._site.group.gather(
            "/part/windows", _window_wire(query), lambda mine: self._windows(mine, query)
        )
        found = []
        more = False
        async with self._site.turns.turn() as turn:
            merged: dict[tuple[int, str], tuple[Pane, bool]] = {}
            for one in gathered.parts:
                for number, window in enumerate(one["windows"]):
                    if number % 100 == 0:
                        await turn.next()
                    where = (-window["start"], window["fleet"])
                    pane, is_open = merged.get(where, (Pane(), False))
                    pane.merge(part.pane_of(window["pane"]))
                    merged[where] = (pane, is_open or window["open"])
            more = len(merged) > query.limit
            page = sorted(merged)[: query.limit]
            for number, (minus_start, name) in enumerate(page):
                if number % 20 == 0:
                    await turn.next()
                pane, is_open = merged[minus_start, name]
                said = part.summary(pane)
                # Nothing is left where all jobs are known under another name by now.
                if any(said.values()):
                    found.append({"fleet": name, "start": -minus_start, "open": is_open, **said})
        following = cursor(-page[-1][0], page[-1][1]) if more else None
        answer = {
            "now": now,
            "size_s": query.size_s,
            "from": query.since,
            "to": query.until,
            "windows": found,
            "next": following,
            "incomplete": gathered.incomplete,
        }
        shown = {"query": request.query, "sizes": SIZES_S, **page_links(request, following)}
        return await self._site.answer(request, "windows.html", answer, shown)

    async def part_windows(self, request: web.Request) -> web.Response:
        """This worker's part of /windows."""
        q = Query(request, "partitions", *_WINDOW_PARAMETERS, page=False)
        query = _window_query(q, now_ms())
        return json_response(await self._windows(q.numbers("partitions"), query))

    async def _windows(self, partitions: list[int], query: WindowQuery) -> dict[str, Any]:
        async with self._site.turns.turn() as turn:
            return await part.windows(self._site.worker, partitions, query, turn)


_WINDOW_PARAMETERS: Final = ("size", "fleet", "from", "to", "limit", "cursor")


def _window_query(q: Query, now: int) -> WindowQuery:
    size = q.whole("size", 300, 60, 3600)
    if size not in SIZES_S:
        refuse("size", f"one of {', '.join(map(str, SIZES_S))}")
    until = q.whole("to", now, 0, FOREVER)
    since = q.whole("from", max(0, until - DEFAULT_RANGE_S[size] * 1000), 0, FOREVER)
    if since > until:
        refuse("from", "not later than `to`")
    after = q.cursor(int, str)
    if after is not None and after[0] is None:
        refuse("cursor", "take it from `next` of the page before")
    return WindowQuery(
        size,
        since,
        until,
        q.text("fleet"),
        None if after is None else (-int(after[0] or 0), after[1]),
        q.whole("limit", LIMIT, 1, MAX_LIMIT),
    )


def _window_wire(query: WindowQuery) -> dict[str, str]:
    """The query as a peer takes it."""
    return {
        "size": str(query.size_s),
        "from": str(query.since),
        "to": str(query.until),
        "fleet": query.fleet or "",
        "cursor": cursor(-query.after[0], query.after[1]) if query.after else "",
        "limit": str(query.limit),
    }
