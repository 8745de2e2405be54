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
``/runners``              runners by fleet and name, what they hold, when they were last seen:
                          ``fleet``, ``state``
``/windows``              tumbling windows, newest first: ``fleet``, ``size``, ``from``, ``to`` (ms)
``/recovery``             what is stuck, oldest first, and what recovery may do: ``kind``,
                          ``fleet``; ``POST /recovery/switch`` throws its switches
``/telemetry``            what dispatchers, pools, runners and the like say of themselves:
                          ``family``, ``fleet``
``/webhooks``             deliveries that the routes leave without an account or a fleet
``/workers``              who owns what, and how far behind
``/healthz``              200 while the event loop turns and the work goes on
``/readyz``               200 when the answers can be trusted; else 503 with the reasons
``/metrics``              for Prometheus
``/metrics/compat``       the same by the names of other systems, those of the setting ``compat``
========================= ========================================================================

Lists come in pages: ``limit`` rows, and ``cursor`` is ``next`` of the page before. A parameter that
is not known is refused, as is a value that cannot be.
"""

from __future__ import annotations

import asyncio
import logging
import time
from importlib import resources
from typing import Any, Final

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from pipeline.compat.names import NAMES
from pipeline.text import version
from pipeline.web import part
from pipeline.web.answers import age, encodable, json_response, now_ms
from pipeline.web.fleets import FleetViews
from pipeline.web.health import BESIDE_CODES
from pipeline.web.jobs import JobViews
from pipeline.web.part import STATUSES
from pipeline.web.ports import Console
from pipeline.web.query import Query, refuse
from pipeline.web.recovery import RecoveryViews
from pipeline.web.runners import RunnerViews
from pipeline.web.server import GuardedWeb
from pipeline.web.site import Handler, Site, placed
from pipeline.web.telemetry import TelemetryViews
from pipeline.web.webhooks import WebhookViews
from pipeline.web.windows import WindowViews

log = logging.getLogger(__name__)

NO_COMPAT: Final = (
    "no other system's names are asked for: set RUNNERSTREAM_COMPAT, or start the worker with "
    f"--compat, to some of {', '.join(NAMES)}"
)
#: Where the gauges are brought up to date. Seconds.
REFRESH_S: Final = 2.0


def mount(worker: Console) -> None:
    """Add the views to the worker's web server. Call before the worker starts."""
    worker.app.web = web_server = GuardedWeb(worker.app)
    Views(worker).register(web_server.web_app)


class Views:
    """The handlers and what they need. One per worker."""

    def __init__(self, worker: Console) -> None:
        self.site = Site(worker)
        self._refreshing: asyncio.Task[None] | None = None
        self._style = resources.files("pipeline.web").joinpath("style.css").read_bytes()

    def register(self, app: web.Application) -> None:
        """Routes and hooks. Faust starts its web server before recovery, so health answers then."""
        for each in (
            JobViews,
            FleetViews,
            RunnerViews,
            WindowViews,
            RecoveryViews,
            TelemetryViews,
            WebhookViews,
        ):
            each(self.site).register(app)
        get = app.router.add_get
        view, peer = placed(self.site.views), placed(self.site.parts)
        get("/", view(self.index))
        get("/workers", view(self.workers))
        get("/healthz", self.healthz)
        get("/readyz", self.readyz)
        get("/metrics", placed(self.site.scrapes)(self.metrics))
        get("/metrics/compat", placed(self.site.scrapes)(self.compat))
        get("/style.css", self.style)
        # What peers ask for.
        get("/part/totals", peer(self.part_totals))
        get("/part/worker", self.part_worker)
        app.middlewares.append(self._guard)
        app.on_startup.append(self._start)
        app.on_cleanup.append(self._stop)

    # -- pages ---------------------------------------------------------------------------------

    async def index(self, request: web.Request) -> web.Response:
        """What there is, and whether it works."""
        Query(request)
        gathered = await self.site.group.gather("/part/totals", {}, self._totals)
        depth = dict.fromkeys(STATUSES, 0)
        oldest: dict[str, int] = {}
        for one in gathered.parts:
            for status, count in one["jobs"].items():
                depth[status] += count
            for status, since in one["oldest"].items():
                oldest[status] = min(since, oldest.get(status, since))
        now = now_ms()
        answer = {
            "program": "runnerstream",
            "version": version(),
            "now": now,
            "views": [
                "/jobs",
                "/fleets",
                "/runners",
                "/windows",
                "/recovery",
                "/telemetry",
                "/webhooks",
                "/workers",
            ],
            "health": ["/healthz", "/readyz", "/metrics"],
            "states": {
                status: {"jobs": depth[status], "oldest_ms": age(now, oldest.get(status))}
                for status in STATUSES
            },
            "incomplete": gathered.incomplete,
        }
        return await self.site.answer(request, "index.html", answer)

    async def workers(self, request: web.Request) -> web.Response:
        """The workers of the group."""
        Query(request)
        gathered = await self.site.group.gather("/part/worker", {}, self._about)
        now = now_ms()
        members = self.site.group.members()
        found = [
            {
                "worker": one["worker"],
                "assigned": members.get(one["worker"], []),
                "up_ms": now - one["started_at"],
                **{k: v for k, v in one.items() if k not in ("worker", "clock", "url")},
            }
            for one in gathered.parts
        ]
        found.sort(key=lambda one: (one["worker"] != self.site.group.me, one["worker"]))
        answer = {
            "now": now,
            "asked": self.site.group.me,
            "group": self.site.worker.settings.app_id,
            "workers": found,
            "incomplete": gathered.incomplete,
        }
        return await self.site.answer(request, "workers.html", answer)

    # -- health --------------------------------------------------------------------------------

    async def healthz(self, request: web.Request) -> web.Response:
        """Alive: this answer comes from the event loop that does the work, and the work goes on."""
        Query(request, page=False)
        wedged = self.site.health.wedged()
        answer: dict[str, Any] = {
            "alive": wedged is None,
            "up_s": round(time.time() - self.site.worker.started_at, 1),
        }
        if wedged is not None:
            answer["reason"] = wedged
        return json_response(answer, 503 if wedged else 200)

    async def readyz(self, request: web.Request) -> web.Response:
        """Ready, or why not."""
        wanted = Query(request, "part", page=False).text("part") or "all"
        if wanted not in ("all", "fold"):
            refuse("part", "all or fold")
        reasons = self.site.health.refresh()
        if wanted == "fold":
            reasons = [r for r in reasons if r.code not in BESIDE_CODES]
        answer = {
            "ready": not reasons,
            "reasons": [reason._asdict() for reason in reasons],
            **self.site.health.facts(),
        }
        return json_response(answer, 503 if reasons else 200)

    async def metrics(self, request: web.Request) -> web.Response:
        """The registry in Prometheus' text format."""
        Query(request, page=False)
        self.site.health.refresh()
        async with self.site.turns.turn() as turn:
            body = await self.site.worker.metrics.exposition(turn.next)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def compat(self, request: web.Request) -> web.Response:
        """The series of the systems whose names are asked for."""
        Query(request, page=False)
        page = self.site.worker.compat
        if page is None:
            raise web.HTTPNotFound(text=NO_COMPAT)
        self.site.health.refresh()
        async with self.site.turns.turn() as turn:
            levels = await self.site.worker.metrics.levels(turn.next)
            body = await page.exposition(levels, turn.next)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def style(self, request: web.Request) -> web.Response:
        """The stylesheet."""
        return web.Response(
            body=self._style, content_type="text/css", headers={"Cache-Control": "max-age=300"}
        )

    # -- parts, for peers ----------------------------------------------------------------------

    async def part_totals(self, request: web.Request) -> web.Response:
        """This worker's part of the overview."""
        q = Query(request, "partitions", page=False)
        return json_response(await self._totals(q.numbers("partitions")))

    async def part_worker(self, request: web.Request) -> web.Response:
        """About this worker."""
        Query(request, "partitions", page=False)
        return json_response(await self._about([]))

    # -- inside --------------------------------------------------------------------------------

    async def _about(self, partitions: list[int]) -> dict[str, Any]:
        reasons = self.site.health.refresh()
        return {
            **part.about(self.site.worker),
            "ready": not reasons,
            "reasons": [reason._asdict() for reason in reasons],
            **self.site.health.facts(),
        }

    async def _totals(self, partitions: list[int]) -> dict[str, Any]:
        async with self.site.turns.turn() as turn:
            return await part.totals(self.site.worker, partitions, turn)

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
            response = await self.site.answer(
                request,
                "error.html",
                {"error": encodable(text), "status": error.status},
                {"title": error.reason},
                error.status,
            )
            for name in ("Allow", "Retry-After", "WWW-Authenticate"):
                if name in error.headers:
                    response.headers[name] = error.headers[name]
            return response
        except Exception:
            # An answer that cannot be made is no reason to stop the work.
            log.exception("no answer to %s", request.path)
            text = "this answer could not be made; the worker's log says why"
            return json_response({"error": text, "status": 500}, 500)

    async def _start(self, app: web.Application) -> None:
        self.site.health.watch.start()
        self._refreshing = asyncio.create_task(self._refresh())

    async def _refresh(self) -> None:
        while True:
            self.site.health.refresh()
            await asyncio.sleep(REFRESH_S)

    async def _stop(self, app: web.Application) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
        self.site.health.watch.stop()
        await self.site.group.close()
