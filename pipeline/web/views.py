"""The pages and answers, mounted on the web server that Faust runs for the worker.

JSON for programs, HTML for people: by the Accept header, or ``?format=json`` and
``?format=html``. Any worker answers for the whole group: what it does not own it asks the others
for, and what they do not say stands under ``incomplete``.

========================= ========================================================================
``/``                     what there is
``/jobs``                 jobs, oldest first: ``state`` (several, or ``any``), ``fleet``, ``repo``,
                          ``age`` (least seconds in the state), ``limit``, ``cursor``
``/jobs/{key}``           one job: facts, timeline, where each timing comes from
``/fleets``               per fleet: jobs by state, the oldest, p50/p95/p99; ``span`` in seconds
``/windows``              tumbling windows: ``fleet``, ``size``, ``from``, ``to`` (ms)
``/workers``              who owns what, and how far behind
``/healthz``              200 while the event loop turns
``/readyz``               200 when the answers can be trusted; else 503 with the reasons
``/metrics``              for Prometheus
========================= ========================================================================
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
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from pipeline.ledger import LIVE
from pipeline.text import version
from pipeline.web import part
from pipeline.web.group import Gathered, Group, PeerError
from pipeline.web.health import SINK_CODES, Health
from pipeline.web.pages import Pages
from pipeline.web.part import MAX_LIMIT, STATUSES, JobQuery
from pipeline.windows import SIZES_S, Pane

if TYPE_CHECKING:
    from pipeline.worker import Worker

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: How far back /windows looks unless told, in seconds, by size.
DEFAULT_RANGE_S: Final = {60: 1_800, 300: 7_200, 3600: 86_400}
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
    Views(worker).register(worker.app.web.web_app)


class Views:
    """The handlers and what they need. One per worker."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.group = Group(worker)
        self.health = Health(worker)
        self.pages = Pages()
        self._refreshing: asyncio.Task[None] | None = None
        self._style = resources.files("pipeline.web").joinpath("style.css").read_bytes()

    def register(self, app: web.Application) -> None:
        """Routes and hooks. Faust starts its web server before recovery, so health answers then."""
        get = app.router.add_get
        get("/", self.index)
        get("/jobs", self.jobs)
        get("/jobs/{key:.+}", self.job)
        get("/fleets", self.fleets)
        get("/windows", self.windows)
        get("/workers", self.workers)
        get("/healthz", self.healthz)
        get("/readyz", self.readyz)
        get("/metrics", self.metrics)
        get("/style.css", self.style)
        # What peers ask for.
        get("/part/jobs", self.part_jobs)
        get("/part/job", self.part_job)
        get("/part/fleets", self.part_fleets)
        get("/part/windows", self.part_windows)
        get("/part/worker", self.part_worker)
        app.middlewares.append(self._guard)
        app.on_startup.append(self._start)
        app.on_cleanup.append(self._stop)

    # -- pages ---------------------------------------------------------------------------------

    async def index(self, request: web.Request) -> web.Response:
        """What there is, and whether it works."""
        gathered = await self._fleets(900)
        depth: dict[str, int] = {}
        oldest: dict[str, int] = {}
        for one in _merged_fleets(gathered).values():
            for status, count in one["jobs"].items():
                depth[status] = depth.get(status, 0) + count
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
                status: {"jobs": depth.get(status, 0), "oldest_ms": _age(now, oldest.get(status))}
                for status in STATUSES
            },
            "incomplete": gathered.incomplete,
        }
        return self._answer(request, "index.html", answer)

    async def jobs(self, request: web.Request) -> web.Response:
        """Jobs, oldest first."""
        query = _job_query(request)
        gathered = await self.group.gather(
            "/part/jobs", _wire(query), lambda mine: part.jobs(self.worker, mine, query)
        )
        rows = [row for one in gathered.parts for row in one["jobs"]]
        rows.sort(key=lambda row: tuple(row["order"]))
        page, more = rows[: query.limit], len(rows) > query.limit
        cursor = "~".join(map(str, page[-1]["order"])) if page and more else None
        for row in page:
            del row["order"]
        here = {k: v for k, v in request.query.items() if k not in ("cursor", "format")}
        states = list(query.states)
        answer = {
            "now": _now(),
            "jobs": page,
            "matched": sum(one["matched"] for one in gathered.parts),
            "unknown_age": sum(one["unknown_age"] for one in gathered.parts),
            "next": cursor,
            "incomplete": gathered.incomplete,
        }
        shown = {
            "query": request.query,
            "states": states,
            "live": tuple(states) == LIVE,
            "paged": "cursor" in request.query,
            "first_link": "/jobs?" + urlencode(here),
            "next_link": cursor and "/jobs?" + _urlencoded(request, {**here, "cursor": cursor}),
        }
        return self._answer(request, "jobs.html", answer, shown)

    async def job(self, request: web.Request) -> web.Response:
        """One job, from whoever owns its key."""
        key = request.match_info["key"]
        if key.count(":") < 2:
            raise web.HTTPBadRequest(
                text=f"{key!r} is not a job key: provider:host:job_id, "
                "for example github:github.com:4567"
            )
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
        return self._answer(request, "job.html", found)

    async def fleets(self, request: web.Request) -> web.Response:
        """Fleets, the one with the longest wait first."""
        span = _whole(request, "span", 900, 60, 7_200)
        now = _now()
        gathered = await self._fleets(span)
        found = []
        for name, one in _merged_fleets(gathered).items():
            pane: Pane = one["pane"]
            found.append(
                {
                    "fleet": name,
                    "jobs": {status: one["jobs"].get(status, 0) for status in STATUSES},
                    "oldest_ms": {status: _age(now, one["oldest"].get(status)) for status in LIVE},
                    **part.summary(pane),
                }
            )
        # A fleet whose jobs are all known under another name by now has nothing to show.
        found = [one for one in found if any(one["jobs"].values()) or one["families"]]
        found.sort(key=lambda one: (-(one["oldest_ms"]["queued"] or -1), one["fleet"]))
        answer = {
            "now": now,
            "span_s": span,
            "fleets": found,
            "incomplete": gathered.incomplete,
        }
        return self._answer(request, "fleets.html", answer, {"query": request.query})

    async def windows(self, request: web.Request) -> web.Response:
        """Windows, newest first."""
        size = _whole(request, "size", 300, 60, 3600)
        if size not in SIZES_S:
            raise web.HTTPBadRequest(text=f"size: one of {', '.join(map(str, SIZES_S))}")
        now = _now()
        until = _whole(request, "to", now, 0, 1 << 53)
        since = _whole(request, "from", until - DEFAULT_RANGE_S[size] * 1000, 0, 1 << 53)
        fleet = request.query.get("fleet") or None
        query = {"size": str(size), "from": str(since), "to": str(until), "fleet": fleet or ""}
        gathered = await self.group.gather(
            "/part/windows",
            query,
            lambda mine: part.windows(self.worker, mine, fleet, size, since, until),
        )
        merged: dict[tuple[int, str], tuple[Pane, bool]] = {}
        for one in gathered.parts:
            for number, window in enumerate(one["windows"]):
                if number % 100 == 0:
                    await asyncio.sleep(0)
                where = (-window["start"], window["fleet"])
                pane, is_open = merged.get(where, (Pane(), False))
                pane.merge(part.pane_of(window["pane"]))
                merged[where] = (pane, is_open or window["open"])
        found = []
        for number, ((minus_start, name), (pane, is_open)) in enumerate(
            sorted(merged.items(), key=lambda item: item[0])
        ):
            if number % 20 == 0:
                await asyncio.sleep(0)
            found.append(
                {"fleet": name, "start": -minus_start, "open": is_open, **part.summary(pane)}
            )
        answer = {
            "now": now,
            "size_s": size,
            "from": since,
            "to": until,
            "windows": found,
            # Each worker leaves out its oldest ones when there are too many.
            "truncated": sum(one["truncated"] for one in gathered.parts),
            "incomplete": gathered.incomplete,
        }
        shown = {"query": request.query, "sizes": SIZES_S}
        return self._answer(request, "windows.html", answer, shown)

    async def workers(self, request: web.Request) -> web.Response:
        """The workers of the group."""
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
        return self._answer(request, "workers.html", answer)

    # -- health --------------------------------------------------------------------------------

    async def healthz(self, request: web.Request) -> web.Response:
        """Alive: this answer comes from the event loop that does the work."""
        return _json({"alive": True, "up_s": round(time.time() - self.worker.started_at, 1)})

    async def readyz(self, request: web.Request) -> web.Response:
        """Ready, or why not."""
        wanted = request.query.get("part", "all")
        if wanted not in ("all", "fold"):
            raise web.HTTPBadRequest(text="part: all or fold")
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
        self.health.refresh()
        body = generate_latest(self.worker.metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def style(self, request: web.Request) -> web.Response:
        """The stylesheet."""
        return web.Response(
            body=self._style, content_type="text/css", headers={"Cache-Control": "max-age=300"}
        )

    # -- parts, for peers ----------------------------------------------------------------------

    async def part_jobs(self, request: web.Request) -> web.Response:
        """This worker's part of /jobs."""
        return _json(await part.jobs(self.worker, _partitions(request), _job_query(request)))

    async def part_job(self, request: web.Request) -> web.Response:
        """A job this worker owns."""
        key = request.query.get("key", "")
        partition, url = self.group.owner(key)
        if url != self.group.me:
            error = f"partition {partition} has just moved to {url or 'nobody'}; try again"
            return _json({"error": error, "retry": True}, 503)
        answer = self._own_job(partition, key)
        return _json(answer, 200 if "job" in answer else 503 if answer.get("retry") else 404)

    async def part_fleets(self, request: web.Request) -> web.Response:
        """This worker's part of /fleets."""
        span = _whole(request, "span", 900, 60, 7_200)
        return _json(await part.fleets(self.worker, _partitions(request), span))

    async def part_windows(self, request: web.Request) -> web.Response:
        """This worker's part of /windows."""
        fleet = request.query.get("fleet") or None
        size = _whole(request, "size", 300, 60, 3600)
        since = _whole(request, "from", 0, 0, 1 << 53)
        until = _whole(request, "to", _now(), 0, 1 << 53)
        found = part.windows(self.worker, _partitions(request), fleet, size, since, until)
        return _json(await found)

    async def part_worker(self, request: web.Request) -> web.Response:
        """About this worker."""
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

    async def _fleets(self, span: int) -> Gathered:
        return await self.group.gather(
            "/part/fleets",
            {"span": str(span)},
            lambda mine: part.fleets(self.worker, mine, span),
        )

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

    def _answer(
        self,
        request: web.Request,
        template: str,
        answer: dict[str, Any],
        shown: dict[str, Any] | None = None,
        status: int = 200,
    ) -> web.Response:
        if not _wants_html(request):
            return _json(answer, status)
        reasons = self.health.refresh()
        page = self.pages.render(
            template,
            path=request.path,
            answer=answer,
            reasons=reasons,
            version=version(),
            **(shown or {}),
        )
        return web.Response(text=page, content_type="text/html", status=status, headers=HEADERS)

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
            return self._answer(
                request,
                "error.html",
                {"error": text, "status": error.status},
                {"title": error.reason},
                error.status,
            )
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


def _merged_fleets(gathered: Gathered) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for one in gathered.parts:
        for name, fleet in one["fleets"].items():
            mine = found.setdefault(name, {"jobs": {}, "oldest": {}, "pane": Pane()})
            for status, count in fleet["jobs"].items():
                mine["jobs"][status] = mine["jobs"].get(status, 0) + count
            for status, since in fleet["oldest"].items():
                mine["oldest"][status] = min(since, mine["oldest"].get(status, since))
            if "pane" in fleet:
                mine["pane"].merge(part.pane_of(fleet["pane"]))
    return found


def _job_query(request: web.Request) -> JobQuery:
    states: list[str] = []
    for given in request.query.getall("state", []):
        for state in filter(None, given.split(",")):
            if state in ("any", "live"):
                states += STATUSES if state == "any" else LIVE
            elif state in STATUSES:
                states.append(state)
            else:
                known = ", ".join(("any", "live", *STATUSES))
                raise web.HTTPBadRequest(text=f"state: {state!r} is not one of {known}")
    after = None
    cursor = request.query.get("cursor")
    if cursor:
        at, _, key = cursor.partition("~")
        if not at.isdigit() or len(at) > 16 or not key:
            raise web.HTTPBadRequest(text="cursor: take it from `next` of the page before")
        after = (int(at), key)
    age = request.query.get("age") or "0"
    try:
        min_age_ms = int(float(age) * 1000)
    except (ValueError, OverflowError):
        raise web.HTTPBadRequest(text="age: seconds, for example 300") from None
    if min_age_ms < 0:
        raise web.HTTPBadRequest(text="age: not less than 0")
    return JobQuery(
        tuple(s for s in STATUSES if s in states) or LIVE,
        request.query.get("fleet") or None,
        request.query.get("repo") or None,
        min_age_ms,
        after,
        _whole(request, "limit", 100, 1, MAX_LIMIT),
    )


def _wire(query: JobQuery) -> dict[str, str]:
    """The query as a peer takes it."""
    return {
        "state": ",".join(query.states),
        "fleet": query.fleet or "",
        "repo": query.repo or "",
        "age": str(query.min_age_ms / 1000),
        "cursor": "~".join(map(str, query.after)) if query.after else "",
        "limit": str(query.limit),
    }


def _partitions(request: web.Request) -> list[int]:
    given = request.query.get("partitions", "")
    try:
        return sorted({int(text) for text in given.split(",") if text})
    except ValueError:
        raise web.HTTPBadRequest(text="partitions: numbers, separated by commas") from None


def _whole(request: web.Request, name: str, default: int, least: int, most: int) -> int:
    given = request.query.get(name)
    if not given:
        return default
    try:
        value = int(given)
    except ValueError:
        raise web.HTTPBadRequest(text=f"{name}: {given[:50]!r} is not a whole number") from None
    if not least <= value <= most:
        raise web.HTTPBadRequest(text=f"{name}: between {least} and {most}")
    return value


def _urlencoded(request: web.Request, single: dict[str, str]) -> str:
    """The query with several states kept."""
    states = request.query.getall("state", [])
    pairs = [(k, v) for k, v in single.items() if k != "state"]
    return urlencode([("state", state) for state in states] + pairs)


def _wants_html(request: web.Request) -> bool:
    wanted = request.query.get("format")
    if wanted in ("json", "html"):
        return wanted == "html"
    return "text/html" in request.headers.get("Accept", "")


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
