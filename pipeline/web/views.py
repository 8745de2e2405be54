"""The pages and answers, mounted on the web server that Faust runs for the worker.

JSON for programs, HTML for people: by the Accept header, or ``?format=json`` and
``?format=html``. Any worker answers for the whole group: what it does not own it asks the others
for, and what they do not say stands under ``incomplete``.

========================= ========================================================================
``/``                     what there is
``/jobs``                 live jobs, oldest first, then completed ones, latest first: ``state``
                          (several, or ``any``), ``fleet``, ``repo`` (in any case), ``age`` (least
                          seconds in the state)
``/jobs/{key}``           one job: facts, timeline, where each timing comes from
``/fleets``               per fleet: jobs by state, the oldest, p50/p95/p99; ``span`` in seconds
``/windows``              tumbling windows, newest first: ``fleet``, ``size``, ``from``, ``to`` (ms)
``/workers``              who owns what, and how far behind
``/healthz``              200 while the event loop turns and the work goes on
``/readyz``               200 when the answers can be trusted; else 503 with the reasons
``/metrics``              for Prometheus
========================= ========================================================================

Lists come in pages: ``limit`` rows, and ``cursor`` is ``next`` of the page before. A parameter that
is not known is refused, as is a value that cannot be.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import msgspec
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from pipeline.ledger import LIVE
from pipeline.text import version
from pipeline.web import part
from pipeline.web.group import PEER_SILENT_S, Gathered, Group, PeerError
from pipeline.web.health import SINK_CODES, Health
from pipeline.web.pages import Pages
from pipeline.web.part import MAX_LIMIT, STATUSES, First, JobQuery, WindowQuery
from pipeline.web.query import Query, cursor, refuse, wants_html
from pipeline.web.server import GuardedWeb
from pipeline.web.turns import Busy, Places, Turn, Turns
from pipeline.windows import SIZES_S, Pane
from topics.keys import canonical_key

if TYPE_CHECKING:
    from pipeline.worker import Worker

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: How far back /windows looks unless told, in seconds, by size.
DEFAULT_RANGE_S: Final = {60: 1_800, 300: 7_200, 3600: 86_400}
#: Rows on a page unless told.
JOBS_LIMIT: Final = 100
FLEETS_LIMIT: Final = 200
WINDOWS_LIMIT: Final = 500
#: The greatest moment that may be asked for, Unix milliseconds.
FOREVER: Final = 1 << 53
#: Where the gauges are brought up to date. Seconds.
REFRESH_S: Final = 2.0

#: Nothing but our own stylesheet may load, whatever a job calls itself.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def mount(worker: Worker) -> None:
    """Add the views to the worker's web server. Call before the worker starts."""
    worker.app.web = web_server = GuardedWeb(worker.app)
    Views(worker).register(web_server.web_app)


class Views:
    """The handlers and what they need. One per worker."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.group = Group(worker)
        self.health = Health(worker)
        self.pages = Pages()
        self.turns = Turns()
        # Apart: a view waits for parts of peers, which may wait for a part of ours.
        self._views, self._parts = Places(), Places()
        # Prometheus gets its answer whatever people ask.
        self._scrapes = Places(at_a_time=1)
        self._refreshing: asyncio.Task[None] | None = None
        self._style = resources.files("pipeline.web").joinpath("style.css").read_bytes()

    def register(self, app: web.Application) -> None:
        """Routes and hooks. Faust starts its web server before recovery, so health answers then."""
        get = app.router.add_get
        view, peer = self._placed(self._views), self._placed(self._parts)
        get("/", view(self.index))
        get("/jobs", view(self.jobs))
        get("/jobs/{key:.+}", view(self.job))
        get("/fleets", view(self.fleets))
        get("/windows", view(self.windows))
        get("/workers", view(self.workers))
        get("/healthz", self.healthz)
        get("/readyz", self.readyz)
        get("/metrics", self._placed(self._scrapes)(self.metrics))
        get("/style.css", self.style)
        # What peers ask for.
        get("/part/jobs", peer(self.part_jobs))
        get("/part/job", peer(self.part_job))
        get("/part/totals", peer(self.part_totals))
        get("/part/fleets", peer(self.part_fleets))
        app.router.add_post("/part/panes", self.part_panes)
        get("/part/windows", peer(self.part_windows))
        get("/part/worker", self.part_worker)
        app.middlewares.append(self._guard)
        app.on_startup.append(self._start)
        app.on_cleanup.append(self._stop)

    # -- pages ---------------------------------------------------------------------------------

    async def index(self, request: web.Request) -> web.Response:
        """What there is, and whether it works."""
        Query(request)
        gathered = await self.group.gather("/part/totals", {}, self._totals)
        depth = dict.fromkeys(STATUSES, 0)
        oldest: dict[str, int] = {}
        for one in gathered.parts:
            for status, count in one["jobs"].items():
                depth[status] += count
            for status, since in one["oldest"].items():
                oldest[status] = min(since, oldest.get(status, since))
        now = _now()
        answer = {
            "program": "runnerstream",
            "version": version(),
            "now": now,
            "views": ["/jobs", "/fleets", "/windows", "/workers"],
            "health": ["/healthz", "/readyz", "/metrics"],
            "states": {
                status: {"jobs": depth[status], "oldest_ms": _age(now, oldest.get(status))}
                for status in STATUSES
            },
            "incomplete": gathered.incomplete,
        }
        return await self._answer(request, "index.html", answer)

    async def jobs(self, request: web.Request) -> web.Response:
        """Live jobs, oldest first; completed ones, latest first."""
        q = Query(request, *_JOB_PARAMETERS, several=("state",))
        query = _job_query(q)
        gathered = await self.group.gather(
            "/part/jobs", _wire(query), lambda mine: self._jobs(mine, query)
        )
        rows = [row for one in gathered.parts for row in one["jobs"]]
        rows.sort(key=lambda row: tuple(row["order"]))
        page, more = rows[: query.limit], len(rows) > query.limit
        following = cursor(*page[-1]["order"]) if page and more else None
        for row in rows:
            del row["order"]
        answer = {
            "now": _now(),
            "jobs": page,
            "matched": sum(one["matched"] for one in gathered.parts),
            "unknown_age": sum(one["unknown_age"] for one in gathered.parts),
            "next": following,
            "incomplete": gathered.incomplete,
        }
        shown = {
            "query": request.query,
            "states": list(query.states),
            "live": query.states == LIVE,
            **_links(request, following),
        }
        return await self._answer(request, "jobs.html", answer, shown)

    async def job(self, request: web.Request) -> web.Response:
        """One job, from whoever owns its key."""
        Query(request)
        key = request.match_info["key"]
        try:
            if not _is_text(key):
                raise ValueError(key)
            key = canonical_key(key)
        except ValueError:
            raise web.HTTPBadRequest(
                text=f"{_encodable(key)!r} is not a job key: provider:host:job_id, "
                "for example github:github.com:4567"
            ) from None
        partition, url = self.group.owner(key)
        if url is None:
            raise web.HTTPServiceUnavailable(
                text=f"no worker owns partition {partition}, where this job is: the group is "
                "(re)joining; try again in some seconds"
            )
        if url == self.group.me:
            answer = self._own_job(partition, key)
        else:
            try:
                answer = await self.group.ask(url, "/part/job", {"key": key})
            except PeerError as error:
                raise web.HTTPServiceUnavailable(
                    text=f"{error}; it owns partition {partition}, where this job is"
                ) from None
        if "job" not in answer:
            failure = web.HTTPServiceUnavailable if answer.get("retry") else web.HTTPNotFound
            raise failure(text=str(answer.get("error", "not found")))
        found = {"now": _now(), "worker": url, **answer["job"]}
        return await self._answer(request, "job.html", found)

    async def fleets(self, request: web.Request) -> web.Response:
        """Fleets, the one with the longest wait first."""
        q = Query(request, "span", "limit", "cursor")
        span = q.whole("span", 900, 60, 7_200)
        limit = q.whole("limit", FLEETS_LIMIT, 1, MAX_LIMIT)
        after = q.cursor(int, str)
        now = _now()
        since = part.span_start(now, span)
        gathered = await self.group.gather(
            "/part/fleets", {"since": str(since)}, lambda mine: self._fleets(mine, since)
        )
        async with self.turns.turn() as turn:
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
        timed = await self.group.gather(
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
                    status: _age(now, at) for status, at in zip(LIVE, merged[name][1], strict=True)
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
        shown = {"query": request.query, **_links(request, following)}
        return await self._answer(request, "fleets.html", answer, shown)

    async def windows(self, request: web.Request) -> web.Response:
        """Windows, newest first."""
        q = Query(request, *_WINDOW_PARAMETERS)
        now = _now()
        query = _window_query(q, now)
        gathered = await self.group.gather(
            "/part/windows", _window_wire(query), lambda mine: self._windows(mine, query)
        )
        found = []
        more = False
        async with self.turns.turn() as turn:
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
        shown = {"query": request.query, "sizes": SIZES_S, **_links(request, following)}
        return await self._answer(request, "windows.html", answer, shown)

    async def workers(self, request: web.Request) -> web.Response:
        """The workers of the group."""
        Query(request)
        gathered = await self.group.gather("/part/worker", {}, self._about)
        now = _now()
        members = self.group.members()
        found = [
            {
                "worker": one["worker"],
                "assigned": members.get(one["worker"], []),
                "up_ms": now - one["started_at"],
                **{k: v for k, v in one.items() if k not in ("worker", "clock", "url")},
            }
            for one in gathered.parts
        ]
        found.sort(key=lambda one: (one["worker"] != self.group.me, one["worker"]))
        answer = {
            "now": now,
            "asked": self.group.me,
            "group": self.worker.settings.app_id,
            "workers": found,
            "incomplete": gathered.incomplete,
        }
        return await self._answer(request, "workers.html", answer)

    # -- health --------------------------------------------------------------------------------

    async def healthz(self, request: web.Request) -> web.Response:
        """Alive: this answer comes from the event loop that does the work, and the work goes on."""
        Query(request, page=False)
        wedged = self.health.wedged()
        answer: dict[str, Any] = {
            "alive": wedged is None,
            "up_s": round(time.time() - self.worker.started_at, 1),
        }
        if wedged is not None:
            answer["reason"] = wedged
        return _json(answer, 503 if wedged else 200)

    async def readyz(self, request: web.Request) -> web.Response:
        """Ready, or why not."""
        wanted = Query(request, "part", page=False).text("part") or "all"
        if wanted not in ("all", "fold"):
            refuse("part", "all or fold")
        reasons = self.health.refresh()
        if wanted == "fold":
            reasons = [r for r in reasons if r.code not in SINK_CODES]
        answer = {
            "ready": not reasons,
            "reasons": [reason._asdict() for reason in reasons],
            **self.health.facts(),
        }
        return _json(answer, 503 if reasons else 200)

    async def metrics(self, request: web.Request) -> web.Response:
        """The registry in Prometheus' text format."""
        Query(request, page=False)
        self.health.refresh()
        async with self.turns.turn() as turn:
            body = await self.worker.metrics.exposition(turn.next)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def style(self, request: web.Request) -> web.Response:
        """The stylesheet."""
        return web.Response(
            body=self._style, content_type="text/css", headers={"Cache-Control": "max-age=300"}
        )

    # -- parts, for peers ----------------------------------------------------------------------

    async def part_jobs(self, request: web.Request) -> web.Response:
        """This worker's part of /jobs."""
        q = Query(request, "partitions", *_JOB_PARAMETERS, several=("state",), page=False)
        return _json(await self._jobs(q.numbers("partitions"), _job_query(q)))

    async def part_job(self, request: web.Request) -> web.Response:
        """A job this worker owns."""
        key = Query(request, "key", page=False).text("key") or ""
        partition, url = self.group.owner(key)
        if url != self.group.me:
            error = f"partition {partition} has just moved to {url or 'nobody'}; try again"
            return _json({"error": error, "retry": True}, 503)
        answer = self._own_job(partition, key)
        return _json(answer, 200 if "job" in answer else 503 if answer.get("retry") else 404)

    async def part_totals(self, request: web.Request) -> web.Response:
        """This worker's part of the overview."""
        q = Query(request, "partitions", page=False)
        return _json(await self._totals(q.numbers("partitions")))

    async def part_fleets(self, request: web.Request) -> web.Response:
        """This worker's part of /fleets."""
        q = Query(request, "partitions", "since", page=False)
        since = q.whole("since", part.span_start(_now(), 900), 0, FOREVER)
        return _json(await self._fleets(q.numbers("partitions"), since))

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
            return _json(await self._panes(mine, asked.fleets, asked.since))

        return await self._placed(self._parts)(answer)(request)

    async def part_windows(self, request: web.Request) -> web.Response:
        """This worker's part of /windows."""
        q = Query(request, "partitions", *_WINDOW_PARAMETERS, page=False)
        query = _window_query(q, _now())
        return _json(await self._windows(q.numbers("partitions"), query))

    async def part_worker(self, request: web.Request) -> web.Response:
        """About this worker."""
        Query(request, "partitions", page=False)
        return _json(await self._about([]))

    # -- inside --------------------------------------------------------------------------------

    async def _about(self, partitions: list[int]) -> dict[str, Any]:
        reasons = self.health.refresh()
        return {
            **part.about(self.worker),
            "ready": not reasons,
            "reasons": [reason._asdict() for reason in reasons],
            **self.health.facts(),
        }

    async def _jobs(self, partitions: list[int], query: JobQuery) -> dict[str, Any]:
        async with self.turns.turn() as turn:
            return await part.jobs(self.worker, partitions, query, turn)

    async def _totals(self, partitions: list[int]) -> dict[str, Any]:
        async with self.turns.turn() as turn:
            return await part.totals(self.worker, partitions, turn)

    async def _fleets(self, partitions: list[int], since: int) -> dict[str, Any]:
        async with self.turns.turn() as turn:
            return await part.fleets(self.worker, partitions, since, turn)

    async def _panes(self, partitions: list[int], fleets: list[str], since: int) -> dict[str, Any]:
        async with self.turns.turn() as turn:
            return await part.panes(self.worker, partitions, fleets, since, turn)

    async def _windows(self, partitions: list[int], query: WindowQuery) -> dict[str, Any]:
        async with self.turns.turn() as turn:
            return await part.windows(self.worker, partitions, query, turn)

    def _placed(self, places: Places) -> Callable[[Handler], Handler]:
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

    def _own_job(self, partition: int, key: str) -> dict[str, Any]:
        try:
            found = part.job(self.worker, partition, key)
        except LookupError:
            error = f"jobs of partition {partition} are being loaded; try again in some seconds"
            return {"error": error, "retry": True}
        if found is None:
            kept = self.worker.settings.completed_retention / 86_400
            return {
                "error": f"no job {key} is known; completed jobs are kept for {kept:g} days, "
                "older ones are in ClickHouse (table job_timings)"
            }
        return {"job": found}

    async def _answer(
        self,
        request: web.Request,
        template: str,
        answer: dict[str, Any],
        shown: dict[str, Any] | None = None,
        status: int = 200,
    ) -> web.Response:
        if not wants_html(request):
            response = _json(answer, status)
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

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors in the form that was asked for, without stack traces."""
        try:
            return await handler(request)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            text = error.text or error.reason
            if text == "404: Not Found":
                text = f"there is no {request.path} here; see /"
            response = await self._answer(
                request,
                "error.html",
                {"error": _encodable(text), "status": error.status},
                {"title": error.reason},
                error.status,
            )
            for name in ("Allow", "Retry-After"):
                if name in error.headers:
                    response.headers[name] = error.headers[name]
            return response
        except Exception:
            # An answer that cannot be made is no reason to stop the work.
            log.exception("no answer to %s", request.path)
            text = "this answer could not be made; the worker's log says why"
            return _json({"error": text, "status": 500}, 500)

    async def _start(self, app: web.Application) -> None:
        self.health.watch.start()
        self._refreshing = asyncio.create_task(self._refresh())

    async def _refresh(self) -> None:
        while True:
            self.health.refresh()
            await asyncio.sleep(REFRESH_S)

    async def _stop(self, app: web.Application) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
        self.health.watch.stop()
        await self.group.close()


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


_JOB_PARAMETERS: Final = ("state", "fleet", "repo", "age", "limit", "cursor")


def _job_query(q: Query) -> JobQuery:
    states: list[str] = []
    for state in q.all("state"):
        if state in ("any", "live"):
            states += STATUSES if state == "any" else LIVE
        elif state in STATUSES:
            states.append(state)
        else:
            known = ", ".join(("any", "live", *STATUSES))
            refuse("state", f"{state[:50]!r} is not one of {known}")
    after = q.cursor(int, int, str)
    if after is not None and (after[0] not in (0, 1) or after[1] is None):
        refuse("cursor", "take it from `next` of the page before")
    return JobQuery(
        tuple(s for s in STATUSES if s in states) or LIVE,
        q.text("fleet"),
        q.text("repo"),
        q.milliseconds("age"),
        after,
        q.whole("limit", JOBS_LIMIT, 1, MAX_LIMIT),
    )


def _wire(query: JobQuery) -> dict[str, str]:
    """The query as a peer takes it."""
    return {
        "state": ",".join(query.states),
        "fleet": query.fleet or "",
        "repo": query.repo or "",
        "age": f"{query.min_age_ms / 1000:.3f}",
        "cursor": cursor(*query.after) if query.after else "",
        "limit": str(query.limit),
    }


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
        q.whole("limit", WINDOWS_LIMIT, 1, MAX_LIMIT),
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


def _links(request: web.Request, following: str | None) -> dict[str, Any]:
    """The links between pages."""
    here = [(k, v) for k, v in request.query.items() if k not in ("cursor", "format")]
    first = f"{request.path}?{urlencode(here)}" if here else request.path
    return {
        "paged": "cursor" in request.query,
        "first_link": first,
        "next_link": following and f"{request.path}?{urlencode([*here, ('cursor', following)])}",
    }


def _is_text(text: str) -> bool:
    """Whether it can be encoded: raw bytes in a URL that are no UTF-8 cannot."""
    return _encodable(text) == text


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value) + b"\n",
        content_type="application/json",
        status=status,
        headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"},
    )


def _age(now: int, since: int | None) -> int | None:
    return None if since is None else max(0, now - since)


def _now() -> int:
    return int(time.time() * 1000)
