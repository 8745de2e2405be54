"""``/webhooks``: deliveries that the configured routes leave without an account or a fleet."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from pipeline.metrics import UNROUTED_REASONS
from pipeline.web.answers import json_response, now_ms
from pipeline.web.query import Query
from pipeline.web.site import Site, placed


class WebhookViews:
    """The webhooks that nobody may be there for."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def register(self, app: web.Application) -> None:
        """The routes."""
        view, peer = placed(self._site.views), placed(self._site.parts)
        app.router.add_get("/webhooks", view(self.webhooks))
        app.router.add_get("/part/webhooks", peer(self.part_webhooks))

    async def webhooks(self, request: web.Request) -> web.Response:
        """What all workers have seen since they started, the last of each first."""
        Query(request)
        gathered = await self._site.group.gather("/part/webhooks", {}, self._samples)
        now = now_ms()
        # A worker of an earlier release knows nothing of it; that stands under `incomplete`.
        parts = [one for one in gathered.parts if "unrouted" in one]
        answer = {
            "now": now,
            "routes": any(one["routes"] for one in parts),
            **{reason: _together(reason, parts, now) for reason in UNROUTED_REASONS},
            "incomplete": gathered.incomplete,
        }
        return await self._site.answer(request, "webhooks.html", answer)

    async def part_webhooks(self, request: web.Request) -> web.Response:
        """This worker's part of /webhooks."""
        q = Query(request, "partitions", page=False)
        return json_response(await self._samples(q.numbers("partitions")))

    async def _samples(self, partitions: list[int]) -> dict[str, Any]:
        known = self._site.worker.unrouted
        told = {} if known is None else known.samples()
        names = ("about", "deliveries", "first_at", "last_at", "job_key")
        return {
            "partitions": partitions,
            "routes": known is not None,
            "unrouted": {
                reason: [{name: getattr(one, name) for name in names} for one in samples]
                for reason, samples in told.items()
            },
        }


def _together(reason: str, parts: list[dict[str, Any]], now: int) -> list[dict[str, Any]]:
    """The samples of all workers: of what several have seen, one."""
    found: dict[str, dict[str, Any]] = {}
    for one in (each for part in parts for each in part["unrouted"].get(reason, ())):
        known = found.setdefault(one["about"], one)
        if known is not one:
            last = max(known, one, key=lambda each: each["last_at"])
            found[one["about"]] = {
                **last,
                "deliveries": known["deliveries"] + one["deliveries"],
                "first_at": min(known["first_at"], one["first_at"]),
            }
    rows = sorted(found.values(), key=lambda each: (-each["last_at"], each["about"]))
    return [{**row, "last_ms": max(0, now - row["last_at"])} for row in rows]
