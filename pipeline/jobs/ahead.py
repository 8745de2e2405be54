"""Times that lie ahead of what is known to have come: found, and taken out of a fact.

The clocks of providers and runners are not ours. A time from tomorrow is not believed, but what was
said has happened: the fact is kept and dated by arrival.
"""

from __future__ import annotations

from typing import Any, TypeVar

from topics.models import ClaimFact, Clock, JobFact, Milestone, ParentRun, RunFact, RunLink

Said = TypeVar("Said", JobFact, RunFact, RunLink)


def is_after(fact: JobFact, near: int) -> bool:
    """Whether any time in a fact is later than ``near``: asked of every fact, so written out."""
    if fact.received_at > near or fact.occurred_at > near:
        return True
    for clocks in fact.times.values():
        for at in clocks.values():
            if at > near:
                return True
    for at, _ in fact.marks:
        if at > near:
            return True
    claim = fact.claim
    if claim is not None and (
        (claim.claimed_at or 0) > near
        or (claim.minted_at or 0) > near
        or (claim.released_at or 0) > near
    ):
        return True
    return fact.run is not None and latest_of_run(0, fact.run) > near


def latest_of(fact: JobFact) -> int:
    """The latest time in a fact."""
    times = [fact.occurred_at, fact.received_at]
    for clocks in fact.times.values():
        times.extend(clocks.values())
    times.extend(at for at, _ in fact.marks)
    if fact.claim is not None:
        claim = fact.claim
        times += [claim.claimed_at or 0, claim.minted_at or 0, claim.released_at or 0]
    if fact.run is not None:
        times += [fact.run.started_at or 0, fact.run.completed_at or 0]
    return max(times)


def latest_of_run(latest: int, run: ParentRun) -> int:
    """The latest of a time and those of a run."""
    return max(latest, run.started_at or 0, run.completed_at or 0)


def without_after(record: Said, ahead: int, limit: int) -> Said:
    """The record without times after ``limit``.

    A milestone that no other clock dates is dated by arrival: what was said has happened.
    """
    arrived = record.received_at if record.received_at <= limit else ahead
    told: dict[str, Any] = {
        "occurred_at": record.occurred_at if record.occurred_at <= limit else arrived,
        "received_at": arrived,
    }
    if isinstance(record, JobFact):
        times: dict[Milestone, dict[Clock, int]] = {}
        for milestone, clocks in record.times.items():
            known = {clock: at for clock, at in clocks.items() if at <= limit}
            times[milestone] = known or {Clock.RECEIVED: arrived}
        told["times"] = times
        told["marks"] = tuple((at if at <= limit else arrived, kind) for at, kind in record.marks)
        told["claim"] = record.claim and _claim_until(record.claim, arrived, limit)
    if not isinstance(record, RunLink):
        told["run"] = record.run and _run_until(record.run, arrived, limit)
    return record.model_copy(update=told)


def _claim_until(claim: ClaimFact, arrived: int, limit: int) -> ClaimFact:
    late = {
        name: arrived
        for name in ("claimed_at", "minted_at", "released_at")
        if (at := getattr(claim, name)) is not None and at > limit
    }
    return claim.model_copy(update=late) if late else claim


def _run_until(run: ParentRun, arrived: int, limit: int) -> ParentRun:
    late: dict[str, int | None] = {}
    if run.started_at is not None and run.started_at > limit:
        late["started_at"] = None
    if run.completed_at is not None and run.completed_at > limit:
        late["completed_at"] = arrived
    return run.model_copy(update=late) if late else run
