"""``/fleets``, with its parts for peers."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from aiohttp import web

from pipeline.ledger import LIVE
from pipeline.web import part
from pipeline.web.answers import age, json_response, now_ms, page_links
from pipeline.web.group import PEER_SILENT_S, Gathered
from pipeline.web.part import MAX_LIMIT, STATUSES, First
from pipeline.web.query import FOREVER, Query, cursor
from pipeline.web.site import Site, placed
from pipeline.web.turns import Turn
from pipeline.windows import Pane

#: Rows on a page unless told.
LIMIT: Final = 200


class FleetViews:
    """The fleets."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def register(self, app: web.Application) -> None:
        """The routes."""
        view, peer = placed(self._site.views), placed(self._site.parts)
        app.router.add_get("/fleets", view(self.fleets))
        app.router.add_get("/part/fleets", peer(self.part_fleets))
        app.router.add_post("/part/panes", self.part_panes)

    async def fleets(self, request: web.Request) -> web.Response:
        """Fleets, the one with the longest wait first."""
        q = Query(request, "span", "limit", "cursor")
        span = q.whole("span", 900, 60, 7_200)
        limit = q.whole("limit", LIMIT, 1, MAX_LIMIT)
        after = q.cursor(int, str)
        now = now_ms()
        since = part.span_start(now, span)
        gathered = await self._site.group.gather(
            "/part/fleets", {"since": str(since)}, lambda mine: self._fleets(mine, since)
        )
        async with self._site.turns.turn() as turn:
            merged = await _merged_fleets(gathered, turn)
            page: First[None] = First(limit + 1)
            for number, (name, (_, oldest)) in enumerate(merged.items()):
                if number % part.SLICE == 0:
                    await turn.next()
                order = _fleet_order(oldest[_QUEUED], name)
                if after is None or order > _fleet_order(*after):  # type: ignore[arg-type]
                    page.add(order, None)
            orders = [order for order, _ in page]
        orders, more = orders[:limit], len(orders) > limit
        names = [order[-1] for order in orders]
        timed = await self._site.group.gather(
            "/part/panes",
            {},
            lambda mine: self._panes(mine, names, since),
            {"fleets": names, "since": since},
        )
        panes: dict[str, Pane] = {}
        for one in timed.parts:
            for name, data in one["panes"].items():
                panes.setdefault(name, Pane()).merge(part.pane_of(data))
        found = [
            {
                "fleet": name,
                "jobs": dict(zip(STATUSES, merged[name][0], strict=True)),
                "oldest_ms": {
                    status: age(now, at) for status, at in zip(LIVE, merged[name][1], strict=True)
                },
                **part.summary(panes.get(name, Pane())),
            }
            for name in names
        ]
        following = None
        if orders and more:
            following = cursor(merged[names[-1]][1][_QUEUED], names[-1])
        answer = {
            "now": now,
            "span_s": span,
            "fleets": found,
            "matched": len(merged),
            "next": following,
            "incomplete": gathered.incomplete
            + [gap for gap in timed.incomplete if gap not in gathered.incomplete],
        }
        shown = {"query": request.query, **page_links(request, following)}
        return await self._site.answer(request, "fleets.html", answer, shown)

    async def part_fleets(self, request: web.Request) -> web.Response:
        """This worker's part of /fleets."""
        q = Query(request, "partitions", "since", page=False)
        since = q.whole("since", part.span_start(now_ms(), 900), 0, FOREVER)
        return json_response(await self._fleets(q.numbers("partitions"), since))

    async def part_panes(self, request: web.Request) -> web.StreamResponse:
        """This worker's part of the timings of some fleets, which are named in the body."""
        q = Query(request, "partitions", page=False)
        try:
            # Before a place is taken: who sends slowly must not keep others waiting.
            async with asyncio.timeout(PEER_SILENT_S):
                asked = _PANES.decode(await request.read())
        except TimeoutError:
            raise web.HTTPRequestTimeout(text="the body: did not come in time") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise web.HTTPBadRequest(text=f"the body: {error}") from None

        async def answer(request: web.Request) -> web.Response:
            mine = q.numbers("partitions")
            return json_response(await self._panes(mine, asked.fleets, asked.since))

        return await placed(self._site.parts)(answer)(request)

    async def _fleets(self, partitions: list[int], since: int) -> dict[str, Any]:
        async with self._site.turns.turn() as turn:
            return await part.fleets(self._site.worker, partitions, since, turn)

    async def _panes(self, partitions: list[int], fleets: list[str], since: int) -> dict[str, Any]:
        async with self._site.turns.turn() as turn:
            return await part.panes(self._site.worker, partitions, fleets, since, turn)


class _PanesAsked(msgspec.Struct):
    fleets: list[str]
    since: int


_PANES: Final = msgspec.json.Decoder(_PanesAsked)
_QUEUED: Final = LIVE.index("queued")


#: Jobs by status, and since when the oldest is in each live one.
_Numbers = tuple[list[int], list[int | None]]


async def _merged_fleets(gathered: Gathered, turn: Turn) -> dict[str, _Numbers]:
    """Jobs by status and oldest by live status of each fleet, over all workers."""
    found: dict[str, _Numbers] = {}
    for one in gathered.parts:
        for number, (name, mine) in enumerate(one["fleets"].items()):
            if number % part.SLICE == 0:
                await turn.next()
            known = found.get(name)
            found[name] = tuple(mine) if known is None else _both(known, mine)
    return found


def _both(a: _Numbers, b: _Numbers) -> _Numbers:
    return (
        [x + y for x, y in zip(a[0], b[0], strict=True)],
        [
            min((at for at in both if at is not None), default=None)
            for both in zip(a[1], b[1], strict=True)
        ],
    )


def _fleet_order(queued_since: int | None, name: str) -> tuple[int, int, str]:
    """The longest wait first, then those that have nothing queued."""
    return (1, 0, name) if queued_since is None else (0, queued_since, name)
