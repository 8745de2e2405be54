"""The fleet's own dispatcher and runners: a lifecycle event becomes a fact about the job."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from pydantic import ValidationError

from topics.models import (
    ClaimFact,
    Clock,
    JobAttributes,
    JobFact,
    LifecycleEvent,
    LifecycleKind,
    Milestone,
    Reason,
    RunnerRef,
    Unreadable,
    job_key,
)

_MILESTONES: Final = {
    LifecycleKind.JOB_QUEUED: Milestone.QUEUED,
    LifecycleKind.JOB_STARTED: Milestone.STARTED,
    LifecycleKind.JOB_COMPLETED: Milestone.COMPLETED,
}
_CLAIM_TIMES: Final = {
    LifecycleKind.JOB_CLAIMED: "claimed_at",
    LifecycleKind.JOB_MINTED: "minted_at",
    LifecycleKind.CLAIM_RELEASED: "released_at",
}


def lifecycle_fact(event: LifecycleEvent) -> JobFact:
    """The one fact a dispatcher or runner event states, under the job's key.

    A claim is a guess: its runner is kept with the claim. Only ``job.started`` and
    ``job.completed`` observe a runner executing the job (Q16). A completion without a conclusion
    says that the job ended and leaves how to the provider.

    The id is the event's id with a digest of what it says (all but ``received_at``), so a producer
    that reuses an id for another statement loses nothing, and one that sends an event twice says
    it once. Raises :class:`Unreadable` (``missing_claim``) for a claim kind without a handle.
    """
    claim = None
    if event.kind in _CLAIM_TIMES:
        if not event.claim.strip():
            raise Unreadable(Reason.MISSING_CLAIM, f"{event.kind.value} without a claim handle")
        try:
            claim = ClaimFact.model_validate(
                {
                    "handle": event.claim,
                    _CLAIM_TIMES[event.kind]: event.occurred_at,
                    "runner": event.runner.name,
                    "reason": event.reason,
                }
            )
        except ValidationError as error:  # a handle longer than a claim's may be
            raise Unreadable(Reason.BAD_PAYLOAD, f"claim: {error.errors()[0]['msg']}") from error
    milestone = _MILESTONES.get(event.kind)
    saw_runner = milestone in (Milestone.STARTED, Milestone.COMPLETED)
    try:
        return JobFact(
            id=f"{event.id[:256]}-{_digest(event)}",
            source=event.source,
            occurred_at=event.occurred_at,
            received_at=event.received_at,
            key=job_key(event.provider, event.host, event.job_id),
            trace=event.trace,
            cause=event.kind.value,
            times={} if milestone is None else {milestone: {Clock.RUNNER: event.occurred_at}},
            conclusion=event.conclusion if milestone is Milestone.COMPLETED else None,
            job=(
                JobAttributes(pool=event.fleet, repo=event.repo)
                if event.fleet or event.repo
                else None
            ),
            runner=_named(event.runner) if saw_runner else None,
            claim=claim,
        )
    except ValidationError as error:  # provider and host may be too long for one key
        first = error.errors()[0]
        raise Unreadable(Reason.BAD_PAYLOAD, f"{first['loc']}: {first['msg']}") from error


def _named(runner: RunnerRef) -> RunnerRef | None:
    """The runner, or None when nothing names it: 0 and "" mean unknown (Q17)."""
    if not runner.name.strip() and not runner.id:
        return None
    return runner.model_copy(update={"id": runner.id or None})


def _digest(event: LifecycleEvent) -> str:
    said = event.model_dump_json(exclude={"received_at", "trace"})
    return blake2b(said.encode(), digest_size=8).hexdigest()
