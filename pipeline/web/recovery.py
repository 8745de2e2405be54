"""``/recovery``: what is stuck, what recovery may do about it; and the switch that says so."""

from __future__ import annotations

import asyncio
import hmac
import logging
import uuid
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from aiohttp import web
from aiokafka.errors import KafkaError
from pydantic import ValidationError

from pipeline.fleet import everywhere, switch
from pipeline.ledger import Ledger
from pipeline.recovery.explain import last_event
from pipeline.web.answers import age, json_response, now_ms, page_links
from pipeline.web.group import PEER_SILENT_S
from pipeline.web.part import DECODE_SLICE, MAX_LIMIT, SLICE, First, Order
from pipeline.web.ports import FleetReader
from pipeline.web.query import Query, cursor, refuse
from pipeline.web.site import Site, placed
from pipeline.web.turns import Turn
from topics.recovery import Mode, StallKind, Switch

log = logging.getLogger(__name__)

#: Rows on a page unless told; and most fleets on it, those with the most stalls.
LIMIT: Final = 100
FLEETS: Final = 200
#: How long all partitions may take to have a switch. Seconds.
THROW_S: Final = 15.0

_KINDS: Final = tuple(kind.value for kind in StallKind)


class StallQuery(msgspec.Struct, frozen=True):
    """Which stalls to list, and from where: the one that lasts longest first."""

    kind: str | None
    fleet: str | None
    #: The order of the last stall of the page before: since when (ms), and the job's key.
    after: Order | None
    limit: int


class RecoveryViews:
    """Stalls, what recovery may do, and the switch."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def register(self, app: web.Application) -> None:
        """The routes."""
        view, peer = placed(self._site.views), placed(self._site.parts)
        app.router.add_get("/recovery", view(self.recovery))
        app.router.add_get("/part/recovery", peer(self.part_recovery))
        # Not among the views: a person must be able to stop it however many look on.
        app.router.add_post("/recovery/switch", self.throw)

    async def recovery(self, request: web.Request) -> web.Response:
        """Open stalls, oldest first; counts of each kind; and each fleet."""
        query = _query(Query(request, "kind", "fleet", "limit", "cursor"))
        gathered = await self._site.group.gather(
            "/part/recovery", _wire(query), lambda mine: self._recovery(mine, query)
        )
        now = now_ms()
        # A worker of an earlier release knows nothing of it; that stands under `incomplete`.
        parts = [one for one in gathered.parts if "stalls" in one]
        rows = sorted(
            (row for one in parts for row in one["stalls"]),
            key=lambda row: (row["since"], row["job"]),
        )
        page, more = rows[: query.limit], len(rows) > query.limit
        following = cursor(page[-1]["since"], page[-1]["job"]) if page and more else None
        async with self._site.turns.turn() as turn:
            fleets = await _fleets(parts, turn)
        settings = self._site.worker.settings
        answer = {
            "now": now,
            "configured": settings.recovery,
            "stalls": page,
            "matched": sum(one["matched"] for one in parts),
            "kinds": _kinds((one["kinds"] for one in parts), now),
            "switches": _switches((one["switches"] for one in parts), settings.partitions),
            "fleets": fleets[:FLEETS],
            "fleets_matched": len(fleets),
            "next": following,
            "incomplete": gathered.incomplete,
        }
        shown = {"query": request.query, "all_kinds": _KINDS, **page_links(request, following)}
        return await self._site.answer(request, "recovery.html", answer, shown)

    async def part_recovery(self, request: web.Request) -> web.Response:
        """This worker's part of /recovery."""
        q = Query(request, "partitions", "kind", "fleet", "limit", "cursor", page=False)
        return json_response(await self._recovery(q.numbers("partitions"), _query(q)))

    async def throw(self, request: web.Request) -> web.Response:
        """Throw a switch: ``{"fleet", "mode", "reason"}``, no fleet or a blank one for all."""
        Query(request, page=False)
        self._admit(request)
        try:
            async with asyncio.timeout(PEER_SILENT_S):
                asked = _THROW.decode(await request.read())
        except TimeoutError:
            raise web.HTTPRequestTimeout(text="the body: did not come in time") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise web.HTTPBadRequest(text=f"the body: {error}") from None
        if asked.mode is Mode.PAUSED and not asked.reason.strip():
            refuse("reason", "needed with a pause: who finds it paused will ask why")
        try:
            thrown = switch(
                f"switch|{uuid.uuid4()}",
                asked.fleet,
                asked.mode,
                f"web@{request.remote or '?'}",
                asked.reason,
                self._moment(asked.fleet),
            )
        except ValidationError as error:
            fields = ", ".join(str(each["loc"][0]) for each in error.errors())
            raise web.HTTPBadRequest(text=f"{fields}: too long") from None
        await self._publish(thrown)
        mode = "as configured" if asked.mode is None else asked.mode.value
        log.warning("recovery of %r: %s, by %s", asked.fleet or "all fleets", mode, thrown.who)
        answer = {
            "id": thrown.id,
            "fleet": asked.fleet,
            "mode": asked.mode,
            "at": thrown.occurred_at,
            "partitions": self._site.worker.settings.partitions,
            "heeded_within_s": self._site.worker.settings.tick_interval,
        }
        return json_response(answer, 202)

    # -- inside --------------------------------------------------------------------------------

    def _admit(self, request: web.Request) -> None:
        """Let in who knows the token. Raises web.HTTPForbidden or web.HTTPUnauthorized."""
        token = self._site.worker.settings.web_token.get_secret_value()
        if not token:
            raise web.HTTPForbidden(
                text="switches cannot be thrown by HTTP: this worker has no token. Set "
                "RUNNERSTREAM_WEB_TOKEN, or use `runnerstream recovery`"
            )
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(
            given.strip().encode(errors="surrogateescape"), token.encode(errors="surrogateescape")
        )
        if scheme.lower() != "bearer" or not right:
            raise web.HTTPUnauthorized(
                text="say who you are: header `Authorization: Bearer TOKEN` with the token of "
                "RUNNERSTREAM_WEB_TOKEN",
                headers={"WWW-Authenticate": 'Bearer realm="runnerstream"'},
            )

    def _moment(self, fleet: str) -> int:
        """Now; but after the switch that counts, should somebody's clock be ahead of ours."""
        known = (
            ledger.switches[scope].occurred_at
            for ledger in self._site.worker.fleet_ledgers.values()
            for scope in {fleet, ""}
            if scope in ledger.switches
        )
        return max(now_ms(), max(known, default=0) + 1)

    async def _publish(self, thrown: Switch) -> None:
        """Put the switch into every partition. Raises web.HTTPServiceUnavailable."""
        worker = self._site.worker
        outputs = everywhere(thrown, worker.settings.partitions)
        # Whole, also when the caller goes away meanwhile.
        throwing = asyncio.ensure_future(worker.outbox.publish(outputs))
        throwing.add_done_callback(_heed)
        why = f"the broker did not take it within {THROW_S:g} s"
        try:
            await asyncio.wait_for(asyncio.shield(throwing), THROW_S)
        except TimeoutError:
            pass
        except KafkaError as error:
            why = f"the broker did not take it: {type(error).__name__}: {error}"
        else:
            return
        raise web.HTTPServiceUnavailable(
            text=f"{why}. It may be heeded in some partitions: look at /recovery, throw it again"
        )

    async def _recovery(self, partitions: list[int], query: StallQuery) -> dict[str, Any]:
        async with self._site.turns.turn() as turn:
            return await recovery(self._site.worker, partitions, query, turn)


async def recovery(
    worker: FleetReader, partitions: Iterable[int], query: StallQuery, turn: Turn
) -> dict[str, Any]:
    """One page of open stalls, how many of each kind and fleet, and the fleets, of partitions."""
    fleet_ledgers = worker.fleet_ledgers
    answered = []
    page: First[Ledger] = First(query.limit + 1)
    kinds: dict[str, list[int]] = {}
    stalled: dict[str, int] = {}
    fleets: dict[str, Any] = {}
    switches: list[list[Any]] = []
    matched = looked = 0
    for partition in partitions:
        ledger, theirs = worker.ledgers.get(partition), fleet_ledgers.get(partition)
        if ledger is None or theirs is None:
            continue
        answered.append(partition)
        for key, stall in list(ledger.stalls().items()):
            looked += 1
            if looked % SLICE == 0:
                await turn.next()
            known = ledger.index.get(key)
            if known is None or query.fleet not in (None, known.fleet):
                continue
            count = kinds.setdefault(stall.kind, [0, stall.since])
            count[:] = count[0] + 1, min(count[1], stall.since)
            stalled[known.fleet] = stalled.get(known.fleet, 0) + 1
            if query.kind not in (None, stall.kind):
                continue
            matched += 1
            order = (stall.since, key)
            if query.after is None or order > query.after:
                page.add(order, ledger)
        for number, (name, state) in enumerate(theirs.states()):
            if number % DECODE_SLICE == 0:
                await turn.next()
            if query.fleet in (None, name):
                fleets[name] = _fleet(state)
        for name, waiting, since in theirs.starving():
            if query.fleet in (None, name):
                count = kinds.setdefault(StallKind.STARVED.value, [0, since])
                count[:] = count[0] + waiting, min(count[1], since)
        switches += ([partition, _switch(each)] for each in list(theirs.switches.values()))
    rows = []
    now = now_ms()
    for number, ((_, key), ledger) in enumerate(page):
        if number % DECODE_SLICE == 0:
            await turn.next()
        row = _row(ledger, key, now)
        if row is not None:
            rows.append(row)
    return {
        "partitions": answered,
        "stalls": rows,
        "matched": matched,
        "kinds": kinds,
        "stalled": stalled,
        "fleets": fleets,
        "switches": switches,
    }


def _row(ledger: Ledger, key: str, now: int) -> dict[str, Any] | None:
    """A stall and its job; None when it has ended meanwhile."""
    found, opened = ledger.job(key), ledger.stalls().get(key)
    if found is None or opened is None:
        return None
    job, view = found
    stall = None if job.recovery is None else job.recovery.stalls.get(str(opened.n))
    if stall is None:
        return None
    what, at, detail = last_event(stall, now)
    return {
        "job": key,
        "name": job.attributes.name,
        "repo": job.attributes.repo,
        "fleet": view.fleet,
        "status": view.status,
        "n": opened.n,
        "kind": opened.kind,
        "since": opened.since,
        "age_ms": max(0, now - opened.since),
        "opened_at": stall.head.opened_at,
        "last": {"what": what, "at": at, "detail": detail},
        "commands": sum(len(each.issued) for each in job.recovery.stalls.values())
        if job.recovery is not None
        else 0,
        # None: nothing further is tried.
        "next_look": ledger.next_look(key),
    }


async def _fleets(parts: Iterable[dict[str, Any]], turn: Turn) -> list[dict[str, Any]]:
    """Each fleet with its stalls, over all workers; those with the most first."""
    stalled: dict[str, int] = {}
    states: dict[str, dict[str, Any]] = {}
    for one in parts:
        states.update(one["fleets"])
        for fleet, jobs in one["stalled"].items():
            stalled[fleet] = stalled.get(fleet, 0) + jobs
        await turn.next()
    found = [
        {"fleet": name, "stalls": stalled.get(name, 0), **states.get(name, {})}
        for name in states.keys() | stalled.keys()
    ]
    await turn.next()
    return sorted(found, key=lambda one: (-one["stalls"], one["fleet"]))


def _fleet(state: dict[str, Any]) -> dict[str, Any]:
    thrown = state["switch"]
    return {
        **{name: state[name] for name in ("mode", "pending", "in_flight", "issued_hour")},
        "breaker": state["breaker"],
        "breaker_until": state["breaker_until"],
        "switch": None if thrown is None else thrown.model_dump(mode="json"),
    }


def _switch(thrown: Switch) -> dict[str, Any]:
    return {
        "id": thrown.id,
        "fleet": thrown.fleet,
        "mode": thrown.mode,
        "who": thrown.who,
        "reason": thrown.reason,
        "at": thrown.occurred_at,
    }


def _kinds(parts: Iterable[dict[str, list[int]]], now: int) -> dict[str, dict[str, Any]]:
    """Of each kind how many there are, and for how long the oldest lasts."""
    counts, oldest = dict.fromkeys(_KINDS, 0), dict[str, int]()
    for part in parts:
        for kind, (jobs, since) in part.items():
            counts[kind] = counts.get(kind, 0) + jobs
            oldest[kind] = min(since, oldest.get(kind, since))
    return {
        kind: {"jobs": jobs, "oldest_ms": age(now, oldest.get(kind))}
        for kind, jobs in counts.items()
    }


def _switches(parts: Iterable[list[list[Any]]], partitions: int) -> list[dict[str, Any]]:
    """The latest switch of each scope, that for all first, and where it is not heeded yet."""
    latest: dict[str, dict[str, Any]] = {}
    heeded: dict[str, set[int]] = {}
    for part in parts:
        for partition, thrown in part:
            heeded.setdefault(thrown["id"], set()).add(partition)
            known = latest.get(thrown["fleet"])
            if known is None or (known["at"], known["id"]) < (thrown["at"], thrown["id"]):
                latest[thrown["fleet"]] = thrown
    return [
        {**thrown, "not_heeded_by": sorted(set(range(partitions)) - heeded[thrown["id"]])}
        for _, thrown in sorted(latest.items())[: FLEETS + 1]
    ]


def _query(q: Query) -> StallQuery:
    kind = q.text("kind")
    if kind is not None and kind not in _KINDS:
        refuse("kind", f"{kind[:50]!r} is not one of {', '.join(_KINDS)}")
    after = q.cursor(int, str)
    if after is not None and after[0] is None:
        refuse("cursor", "take it from `next` of the page before")
    return StallQuery(kind, q.text("fleet"), after, q.whole("limit", LIMIT, 1, MAX_LIMIT))


def _wire(query: StallQuery) -> dict[str, str]:
    """The query as a peer takes it."""
    return {
        "kind": query.kind or "",
        "fleet": query.fleet or "",
        "cursor": cursor(*query.after) if query.after else "",
        "limit": str(query.limit),
    }


def _heed(throwing: asyncio.Future[object]) -> None:
    """Take the error of a switch whose caller has gone."""
    if not throwing.cancelled() and throwing.exception() is not None:
        log.error("a switch was not written everywhere: %r", throwing.exception())


class _Throw(msgspec.Struct, forbid_unknown_fields=True):
    #: None takes the switch back.
    mode: Mode | None
    fleet: str = ""
    reason: str = ""


_THROW: Final = msgspec.json.Decoder(_Throw)
