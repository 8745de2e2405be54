"""``/runners``: the runners of each fleet, what they hold, and when they were last heard of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from aiohttp import web

from pipeline.fleet import FleetLedger
from pipeline.fleet.runners import Runner, gone_since, held_job, state_of
from pipeline.fleet.state import Fleet
from pipeline.web.answers import json_response, now_ms, page_links
from pipeline.web.part import DECODE_SLICE, MAX_LIMIT, SLICE, First
from pipeline.web.ports import FleetReader
from pipeline.web.query import Query, cursor, refuse
from pipeline.web.site import Site, placed
from pipeline.web.turns import Turn
from topics.recovery import RunnerState

#: Rows on a page unless told.
LIMIT: Final = 200

_STATES: Final = tuple(state.value for state in RunnerState)


class RunnerQuery(msgspec.Struct, frozen=True):
    """Which runners to list, and from where: by fleet, then by name."""

    states: tuple[str, ...]
    fleet: str | None
    #: Fleet and name of the last runner of the page before.
    after: tuple[str, str] | None
    limit: int


class RunnerViews:
    """The runners."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def register(self, app: web.Application) -> None:
        """The routes."""
        view, peer = placed(self._site.views), placed(self._site.parts)
        app.router.add_get("/runners", view(self.runners))
        app.router.add_get("/part/runners", peer(self.part_runners))

    async def runners(self, request: web.Request) -> web.Response:
        """Runners by fleet and name; counts of each state."""
        query = _query(Query(request, *_PARAMETERS, several=("state",)))
        gathered = await self._site.group.gather(
            "/part/runners", _wire(query), lambda mine: self._runners(mine, query)
        )
        # A worker of an earlier release knows nothing of it; that stands under `incomplete`.
        parts = [one for one in gathered.parts if "runners" in one]
        rows = sorted(
            (row for one in parts for row in one["runners"]),
            key=lambda row: (row["fleet"], row["runner"]),
        )
        page, more = rows[: query.limit], len(rows) > query.limit
        following = _cursor(page[-1]["fleet"], page[-1]["runner"]) if page and more else None
        now = now_ms()
        answer = {
            "now": now,
            "runners": [{**row, "silent_ms": max(0, now - row["seen"])} for row in page],
            "matched": sum(one["matched"] for one in parts),
            "states": {
                state: sum(one["states"].get(state, 0) for one in parts) for state in _STATES
            },
            "next": following,
            "incomplete": gathered.incomplete,
        }
        shown = {
            "query": request.query, "wanted": query.states, "all_states": _STATES,
            **page_links(request, following),
        }  # fmt: skip
        return await self._site.answer(request, "runners.html", answer, shown)

    async def part_runners(self, request: web.Request) -> web.Response:
        """This worker's part of /runners."""
        q = Query(request, "partitions", *_PARAMETERS, page=False)
        return json_response(await self._runners(q.numbers("partitions"), _query(q)))

    async def _runners(self, partitions: list[int], query: RunnerQuery) -> dict[str, Any]:
        async with self._site.turns.turn() as turn:
            return await runners(self._site.worker, partitions, query, turn)


async def runners(
    worker: FleetReader, partitions: Iterable[int], query: RunnerQuery, turn: Turn
) -> dict[str, Any]:
    """One page of the runners of the fleets in some partitions, and how many are in each state."""
    fleet_ledgers = worker.fleet_ledgers
    answered = []
    states: dict[str, int] = {}
    page: First[FleetLedger] = First(query.limit + 1)
    looked = 0
    for partition in partitions:
        ledger = fleet_ledgers.get(partition)
        if ledger is None:
            continue
        answered.append(partition)
        for fleet in list(ledger.fleets.values()):
            if query.fleet not in (None, fleet.name):
                continue
            for name, runner in list(fleet.runners.items()):
                looked += 1
                if looked % SLICE == 0:
                    await turn.next()
                state = state_of(runner, fleet.host_gone(runner)).value
                states[state] = states.get(state, 0) + 1
                where = (fleet.name, name)
                if state in query.states and (query.after is None or where > query.after):
                    page.add(where, ledger)
    rows = []
    for number, ((name, runner_name), ledger) in enumerate(page):
        if number % DECODE_SLICE == 0:
            await turn.next()
        known = ledger.fleets.get(str(name))
        found = known.runners.get(str(runner_name)) if known else None
        if known is not None and found is not None:
            rows.append(_row(known, str(runner_name), found))
    matched = sum(n for state, n in states.items() if state in query.states)
    return {"partitions": answered, "runners": rows, "matched": matched, "states": states}


def _row(fleet: Fleet, name: str, runner: Runner) -> dict[str, Any]:
    """A runner. Times in ms; ``seen`` is when it was last seen alive, 0 for never."""
    host_gone = fleet.host_gone(runner)
    gone_at, held = gone_since(runner, host_gone), held_job(runner)
    since = gone_at if gone_at is not None else runner.live.at if runner.live else None
    return {
        "runner": name,
        "fleet": fleet.name,
        "state": state_of(runner, host_gone).value,
        "since": since,
        # Of one that is gone what it held then.
        "job": held.job if held else "",
        "claim": held.claim if held else "",
        "host": runner.host,
        "seen": runner.seen,
        "heartbeats": runner.beat,
    }


_PARAMETERS: Final = ("fleet", "state", "limit", "cursor")


def _query(q: Query) -> RunnerQuery:
    states = tuple(q.all("state")) or _STATES
    for state in states:
        if state not in _STATES:
            refuse("state", f"{state[:50]!r} is not one of {', '.join(_STATES)}")
    found = q.cursor(int, str)
    after = None
    if found is not None:
        # Both names may hold whatever would separate them: the length of the first tells.
        length, both = found[0], str(found[1])
        if not isinstance(length, int) or not 0 <= length < len(both):
            refuse("cursor", "take it from `next` of the page before")
        after = both[:length], both[length:]
    return RunnerQuery(states, q.text("fleet"), after, q.whole("limit", LIMIT, 1, MAX_LIMIT))


def _cursor(fleet: str, name: str) -> str:
    return cursor(len(fleet), fleet + name)


def _wire(query: RunnerQuery) -> dict[str, str]:
    """The query as a peer takes it."""
    return {
        "state": ",".join(query.states),
        "fleet": query.fleet or "",
        "cursor": _cursor(*query.after) if query.after else "",
        "limit": str(query.limit),
    }
