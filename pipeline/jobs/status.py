"""Where a job is, since when, and which fleet it belongs to. Pure functions of the facts.

Precedence: ``completed`` > ``running`` > ``starting`` > ``claimed`` > ``queued`` > ``waiting``.
A released claim ends; the job then is what its remaining facts say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Struct

from pipeline.jobs.attributes import Attributes
from pipeline.jobs.facts import Job
from pipeline.jobs.timings import (
    Measured,
    Milestones,
    abandoned_ms,
    live_claim,
    milestones,
    timings,
)

#: The fleet of a job that names neither pool nor labels nor runner group.
UNKNOWN_FLEET = "unknown"


class FleetNames:
    """Turns what a job says about itself into the fleet it belongs to.

    The dispatcher's pool name wins; else the canonical label set, joined by ``,``; else the
    runner group, which is known once a runner executes the job.
    ``aliases`` maps any of these to the name people use: ``{"linux,x64": "linux-small"}``. Of a job
    without a pool ``route`` is asked first, with its repository and labels; None: it has no answer.
    """

    def __init__(
        self,
        aliases: Mapping[str, str] | None = None,
        route: Callable[[str, tuple[str, ...]], str | None] | None = None,
    ) -> None:
        self._aliases = dict(aliases or {})
        self._route = route

    def __call__(self, attributes: Attributes) -> str:
        """The fleet's name, at most 200 characters."""
        return self.named(attributes)[0]

    def named(self, attributes: Attributes) -> tuple[str, str]:
        """The fleet's name, and what it is named after (:class:`topics.models.FleetFrom`)."""
        if attributes.pool:
            name, source = attributes.pool, "pool"
        elif attributes.labels:
            name, source = ",".join(attributes.labels), "labels"
        else:
            name = attributes.runner_group
            source = "group" if name else "nothing"
        if self._route is not None and source != "pool":
            routed = self._route(attributes.repo, attributes.labels)
            if routed is not None:
                return routed[:200], source
        if not name:
            return UNKNOWN_FLEET, "nothing"
        return self._aliases.get(name, name)[:200], source


class View(Struct, frozen=True, gc=False):
    """Everything derived from a Job's facts."""

    status: str
    #: When the job entered the status; ``None`` when no fact tells.
    since: int | None
    fleet: str
    conclusion: str | None
    at: Milestones
    timings: dict[str, Measured]
    abandoned_ms: int | None
    #: What the fleet is named after: the only reason for which it changes.
    fleet_from: str = "nothing"


def view(job: Job, fleets: FleetNames) -> View:
    """Derive status, milestones and timings."""
    at = milestones(job)
    status, since = _status(job, at)
    conclusion = job.ending.conclusion if job.ending else None
    fleet, fleet_from = fleets.named(job.attributes)
    return View(
        status,
        since,
        fleet,
        conclusion,
        at,
        timings(at),
        abandoned_ms(at),
        fleet_from,
    )


def _status(job: Job, at: Milestones) -> tuple[str, int | None]:
    if at.completed is not None:
        return "completed", at.completed.ms
    if at.started is not None:
        return "running", at.started.ms
    if job.runner is not None:
        return "running", None
    claim = live_claim(job) if job.claims else None
    if claim is not None:
        if claim.minted_at is not None:
            return "starting", claim.minted_at
        return "claimed", claim.claimed_at
    last = max(job.marks, default=None, key=_mark_order)
    if last is not None and last[1] == "waiting":
        return "waiting", last[0]
    if last is None and at.queued is None and at.waiting is not None:
        return "waiting", at.waiting
    if at.waiting is not None and last is not None:
        # Back from an approval gate: the wait for a runner starts now.
        return "queued", last[0]
    return "queued", at.queued.ms if at.queued else None


def _mark_order(mark: tuple[int, str]) -> tuple[int, bool]:
    # Within one millisecond, "queued" is the later word: a gate opens before it closes.
    return mark[0], mark[1] == "queued"
