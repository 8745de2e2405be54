"""The fleet's own dispatcher and runners: a lifecycle event becomes a fact about the job."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final

from pydantic import ValidationError

from pipeline.providers.base import AHEAD_MS
from topics.keys import canonical_host, job_key
from topics.models import (
    GITHUB_HOST,
    RUNNER_KINDS,
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
)
from topics.recovery import HostGone, RunnerSeen, RunnerState

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
#: Where a runner is after each kind; None: only that it lives.
_STATES: Final = {
    LifecycleKind.JOB_QUEUED: None,
    LifecycleKind.JOB_CLAIMED: RunnerState.CLAIMED,
    LifecycleKind.JOB_MINTED: RunnerState.STARTING,
    LifecycleKind.JOB_STARTED: RunnerState.BUSY,
    LifecycleKind.JOB_COMPLETED: RunnerState.IDLE,
    LifecycleKind.CLAIM_RELEASED: RunnerState.IDLE,
    LifecycleKind.RUNNER_REGISTERED: RunnerState.REGISTERED,
    LifecycleKind.RUNNER_IDLE: RunnerState.IDLE,
    LifecycleKind.RUNNER_HEARTBEAT: None,
    LifecycleKind.RUNNER_DRAINED: RunnerState.DRAINED,
    LifecycleKind.RUNNER_GONE: RunnerState.GONE,
}


def lifecycle_fact(event: LifecycleEvent) -> JobFact:
    """The one fact a dispatcher or runner event states, under the job's key.

    A claim is a guess: its runner is kept with the claim. Only ``job.started`` and
    ``job.completed`` observe a runner executing the job (Q16). A completion without a conclusion
    says that the job ended and leaves how to the provider.

    The id is the event's id with a digest of what it says (all but ``received_at``), so a producer
    that reuses an id for another statement loses nothing, and one that sends an event twice says
    it once. A time more than a day after the event's own arrival is not believed: then arrival is
    all that is known of when. Raises :class:`Unreadable`: ``missing_claim`` for a claim kind
    without a handle, ``bad_payload`` for names that make no key.
    """
    occurred, clock = event.occurred_at, Clock.RUNNER
    if is_ahead(event):
        occurred, clock = event.received_at, Clock.RECEIVED
    claim = None
    if event.kind in _CLAIM_TIMES:
        if not event.claim.strip():
            raise Unreadable(Reason.MISSING_CLAIM, f"{event.kind.value} without a claim handle")
        try:
            claim = ClaimFact.model_validate(
                {
                    "handle": event.claim,
                    _CLAIM_TIMES[event.kind]: occurred,
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
            occurred_at=occurred,
            received_at=event.received_at,
            key=job_key(event.provider, canonical_host(event.host) or GITHUB_HOST, event.job_id),
            trace=event.trace,
            cause=event.kind.value,
            times={} if milestone is None else {milestone: {clock: occurred}},
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
    except ValueError as error:
        raise Unreadable(Reason.BAD_PAYLOAD, str(error)) from error


def fleet_record(
    event: LifecycleEvent, fleet_of: Callable[[str], str]
) -> RunnerSeen | HostGone | None:
    """What the event says about a runner or a host, for its fleet; None for nothing.

    ``fleet_of`` tells the fleet that a pool is called.

    Raises :class:`Unreadable` for a kind of runners that does not name fleet and runner.
    """
    kind = event.kind
    of_runners = kind in RUNNER_KINDS
    named = event.runner_host if kind is LifecycleKind.HOST_GONE else event.runner.name
    if not event.fleet or not named:
        if not of_runners:
            return None
        what = "runner_host" if kind is LifecycleKind.HOST_GONE else "runner.name"
        raise Unreadable(Reason.BAD_PAYLOAD, f"{kind.value} must name fleet and {what}")
    at = event.received_at if is_ahead(event) else event.occurred_at
    said: dict[str, Any] = {
        "id": f"{event.id[:256]}-{_digest(event)}",
        "source": event.source,
        "occurred_at": at,
        "received_at": event.received_at,
        "key": fleet_of(event.fleet),
        "trace": event.trace,
    }
    if kind is LifecycleKind.HOST_GONE:
        return HostGone(host=named, **said)
    return RunnerSeen(
        runner=named,
        state=_STATES[kind],
        host=event.runner_host,
        job_key=""
        if of_runners
        else job_key(event.provider, canonical_host(event.host) or GITHUB_HOST, event.job_id),
        claim=event.claim,
        boot_ms=event.boot_ms,
        **said,
    )


def is_ahead(event: LifecycleEvent) -> bool:
    """Whether the event says that it happens more than a day after it arrived."""
    return event.occurred_at > event.received_at + AHEAD_MS


def _named(runner: RunnerRef) -> RunnerRef | None:
    """The runner, or None when nothing names it: 0 and "" mean unknown (Q17)."""
    if not runner.name.strip() and not runner.id:
        return None
    return runner.model_copy(update={"id": runner.id or None})


def _digest(event: LifecycleEvent) -> str:
    said = event.model_dump_json(exclude={"received_at", "trace"})
    return blake2b(said.encode(), digest_size=8).hexdigest()
