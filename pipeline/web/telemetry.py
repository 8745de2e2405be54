"""``/telemetry``: what dispatchers, pools, runners and the like say of themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from aiohttp import web

from pipeline.telemetry import FAMILIES, TelemetryLedger
from pipeline.web.answers import json_response, now_ms, page_links
from pipeline.web.part import DECODE_SLICE, MAX_LIMIT, SLICE, First
from pipeline.web.ports import TelemetryReader
from pipeline.web.query import Query, cursor, refuse
from pipeline.web.site import Site, placed
from pipeline.web.turns import Turn

#: Rows on a page unless told.
LIMIT: Final = 100


class SubjectQuery(msgspec.Struct, frozen=True):
    """Which subjects to list, and from where: by fleet, then by name."""

    family: str
    fleet: str | None
    #: Fleet and name of the last subject of the page before.
    after: tuple[str, str] | None
    limit: int


class TelemetryViews:
    """The subjects of telemetry."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def register(self, app: web.Application) -> None:
        """The routes."""
        view, peer = placed(self._site.views), placed(self._site.parts)
        app.router.add_get("/telemetry", view(self.subjects))
        app.router.add_get("/part/telemetry", peer(self.part_subjects))

    async def subjects(self, request: web.Request) -> web.Response:
        """Subjects of one family by fleet and name, and how many each family has."""
        query = _query(Query(request, *_PARAMETERS))
        gathered = await self._site.group.gather(
            "/part/telemetry", _wire(query), lambda mine: self._subjects(mine, query)
        )
        # A worker of an earlier release knows nothing of it; that stands under `incomplete`.
        parts = [one for one in gathered.parts if "subjects" in one]
        rows = sorted(
            (row for one in parts for row in one["subjects"]),
            key=lambda row: (row["fleet"], row["name"]),
        )
        page, more = rows[: query.limit], len(rows) > query.limit
        following = _cursor(page[-1]["fleet"], page[-1]["name"]) if page and more else None
        answer = {
            "now": now_ms(),
            "family": query.family,
            "subjects": page,
            "matched": sum(one["matched"] for one in parts),
            "families": {
                name: sum(one["families"].get(name, 0) for one in parts) for name in FAMILIES
            },
            "next": following,
            "incomplete": gathered.incomplete,
        }
        shown = {"query": request.query, **page_links(request, following)}
        return await self._site.answer(request, "telemetry.html", answer, shown)

    async def part_subjects(self, request: web.Request) -> web.Response:
        """This worker's part of /telemetry."""
        q = Query(request, "partitions", *_PARAMETERS, page=False)
        return json_response(await self._subjects(q.numbers("partitions"), _query(q)))

    async def _subjects(self, partitions: list[int], query: SubjectQuery) -> dict[str, Any]:
        async with self._site.turns.turn() as turn:
            return await subjects(self._site.worker, partitions, query, turn)


async def subjects(
    worker: TelemetryReader, partitions: Iterable[int], query: SubjectQuery, turn: Turn
) -> dict[str, Any]:
    """One page of the subjects in some partitions, and how many there are of each family."""
    ledgers = worker.telemetry_ledgers
    answered: list[int] = []
    families: dict[str, int] = {}
    page: First[TelemetryLedger] = First(query.limit + 1)
    looked = matched = 0
    for partition in partitions:
        ledger = ledgers.get(partition)
        if ledger is None:
            continue
        answered.append(partition)
        for family, fleet, name in list(ledger.subjects):
            looked += 1
            if looked % SLICE == 0:
                await turn.next()
            if query.fleet not in (None, fleet):
                continue
            families[family] = families.get(family, 0) + 1
            if family == query.family:
                matched += 1
                if query.after is None or (fleet, name) > query.after:
                    page.add((fleet, name), ledger)
    rows = []
    for number, ((fleet, name), ledger) in enumerate(page):
        if number % DECODE_SLICE == 0:
            await turn.next()
        row = ledger.view((query.family, str(fleet), str(name)))
        if row is not None:
            rows.append(row)
    return {"partitions": answered, "subjects": rows, "matched": matched, "families": families}


_PARAMETERS: Final = ("family", "fleet", "limit", "cursor")


def _query(q: Query) -> SubjectQuery:
    family = q.text("family") or next(iter(FAMILIES))
    if family not in FAMILIES:
        refuse("family", f"{family[:50]!r} is not one of {', '.join(FAMILIES)}")
    found = q.cursor(int, str)
    after = None
    if found is not None:
        # Both names may hold whatever would separate them: the length of the first tells.
        length, both = found[0], str(found[1])
        if not isinstance(length, int) or not 0 <= length <= len(both):
            refuse("cursor", "take it from `next` of the page before")
        after = both[:length], both[length:]
    return SubjectQuery(family, q.text("fleet"), after, q.whole("limit", LIMIT, 1, MAX_LIMIT))


def _cursor(fleet: str, name: str) -> str:
    return cursor(len(fleet), fleet + name)


def _wire(query: SubjectQuery) -> dict[str, str]:
    """The query as a peer takes it."""
    return {
        "family": query.family,
        "fleet": query.fleet or "",
        "cursor": _cursor(*query.after) if query.after else "",
        "limit": str(query.limit),
    }
