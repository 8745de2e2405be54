"""``/jobs`` and ``/jobs/{key}``, with their parts for peers."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from pipeline.ledger import LIVE
from pipeline.web import part
from pipeline.web.answers import encodable, json_response, now_ms, page_links
from pipeline.web.group import PeerError
from pipeline.web.part import MAX_LIMIT, STATUSES, JobQuery
from pipeline.web.query import Query, cursor, refuse
from pipeline.web.site import Site, placed
from topics.keys import canonical_key

#: Rows on a page unless told.
LIMIT: Final = 100


class JobViews:
    """Many jobs, and one."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def register(self, app: web.Application) -> None:
        """The routes."""
        view, peer = placed(self._site.views), placed(self._site.parts)
        app.router.add_get("/jobs", view(self.jobs))
        app.router.add_get("/jobs/{key:.+}", view(self.job))
        app.router.add_get("/part/jobs", peer(self.part_jobs))
        app.router.add_get("/part/job", peer(self.part_job))

    async def jobs(self, request: web.Request) -> web.Response:
        """Live jobs, oldest first; completed ones, latest first."""
        q = Query(request, *_JOB_PARAMETERS, several=("state",))
        query = _job_query(q)
        gathered = await self._site.group.gather(
            "/part/jobs", _wire(query), lambda mine: self._jobs(mine, query)
        )
        rows = [row for one in gathered.parts for row in one["jobs"]]
        rows.sort(key=lambda row: tuple(row["order"]))
        page, more = rows[: query.limit], len(rows) > query.limit
        following = cursor(*page[-1]["order"]) if page and more else None
        for row in rows:
            del row["order"]
        answer = {
            "now": now_ms(),
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
            **page_links(request, following),
        }
        return await self._site.answer(request, "jobs.html", answer, shown)

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
                text=f"{encodable(key)!r} is not a job key: provider:host:job_id, "
                "for example github:github.com:4567"
            ) from None
        partition, url = self._site.group.owner(key)
        if url is None:
            raise web.HTTPServiceUnavailable(
                text=f"no worker owns partition {partition}, where this job is: the group is "
                "(re)joining; try again in some seconds"
            )
        if url == self._site.group.me:
            answer = self._own_job(partition, key)
        else:
            try:
                answer = await self._site.group.ask(url, "/part/job", {"key": key})
            except PeerError as error:
                raise web.HTTPServiceUnavailable(
                    text=f"{error}; it owns partition {partition}, where this job is"
                ) from None
        if "job" not in answer:
            failure = web.HTTPServiceUnavailable if answer.get("retry") else web.HTTPNotFound
            raise failure(text=str(answer.get("error", "not found")))
        found = {"now": now_ms(), "worker": url, **answer["job"]}
        return await self._site.answer(request, "job.html", found)

    async def part_jobs(self, request: web.Request) -> web.Response:
        """This worker's part of /jobs."""
        q = Query(request, "partitions", *_JOB_PARAMETERS, several=("state",), page=False)
        return json_response(await self._jobs(q.numbers("partitions"), _job_query(q)))

    async def part_job(self, request: web.Request) -> web.Response:
        """A job this worker owns."""
        key = Query(request, "key", page=False).text("key") or ""
        partition, url = self._site.group.owner(key)
        if url != self._site.group.me:
            error = f"partition {partition} has just moved to {url or 'nobody'}; try again"
            return json_response({"error": error, "retry": True}, 503)
        answer = self._own_job(partition, key)
        return json_response(
            answer, 200 if "job" in answer else 503 if answer.get("retry") else 404
        )

    async def _jobs(self, partitions: list[int], query: JobQuery) -> dict[str, Any]:
        async with self._site.turns.turn() as turn:
            return await part.jobs(self._site.worker, partitions, query, turn)

    def _own_job(self, partition: int, key: str) -> dict[str, Any]:
        try:
            found = part.job(self._site.worker, partition, key)
        except LookupError:
            error = f"jobs of partition {partition} are being loaded; try again in some seconds"
            return {"error": error, "retry": True}
        if found is None:
            kept = self._site.worker.settings.completed_retention / 86_400
            return {
                "error": f"no job {key} is known; completed jobs are kept for {kept:g} days, "
                "older ones are in ClickHouse (table job_timings)"
            }
        return {"job": found}


_JOB_PARAMETERS: Final = (
    "state", "fleet", "repo", "actor", "trigger", "age", "limit", "cursor",
)  # fmt: skip


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
        q.text("actor"),
        q.text("trigger"),
        q.milliseconds("age"),
        after,
        q.whole("limit", LIMIT, 1, MAX_LIMIT),
    )


def _wire(query: JobQuery) -> dict[str, str]:
    """The query as a peer takes it."""
    said = {"actor": query.actor, "trigger": query.trigger}
    return {
        "state": ",".join(query.states),
        "fleet": query.fleet or "",
        "repo": query.repo or "",
        "age": f"{query.min_age_ms / 1000:.3f}",
        "cursor": cursor(*query.after) if query.after else "",
        "limit": str(query.limit),
        # Only when asked for: a peer of an earlier release refuses what it does not know.
        **{name: text for name, text in said.items() if text},
    }


def _is_text(text: str) -> bool:
    """Whether it can be encoded: raw bytes in a URL that are no UTF-8 cannot."""
    return encodable(text) == text
