"""Every kind of stall: what makes a job suspect, since when, and what an answer allows.

One rule a kind, found by the stall's name. A rule never looks at a clock: it says from when on it
applies. What each came from (see also the table in docs/how-it-works.md):

* ``stale_claim``: claimed, never minted. Tuist's StaleClaimsWorker. Nobody is asked: no runner
  was ever made that could be harmed, and whoever holds the claim compares the fence.
* ``orphan``: minted, and the provider never saw it start. Tuist #10828: a job minted, its node
  dead, never registered, waited for 100 minutes. ``queued`` is trusted only while the job's run
  is open (#12673: a run that failed at start-up leaves a job queued for ever).
* ``displaced``: its runner executes another job (#12640). Asked about all the same: in a swap the
  job may be running on the other's runner, and the event is on its way.
* ``runner_lost``: the runner or its host is gone (#12395): evidence shortens the wait. One that
  is seen with the job again is not lost (#11988: reappearing resets).
* ``stale_queue``: queued for an hour (#11455, jobs shown as queued for 28 days).
* ``missed_completion``: running for long; a lost webhook leaves it so for ever.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from pipeline.jobs.facts import Claim, Job
from pipeline.jobs.stalls import Stall
from pipeline.jobs.status import View
from pipeline.recovery.policy import RecoveryPolicy
from topics.recovery import Answer, CommandKind, StallKind


class Suspect(Struct, frozen=True, gc=False):
    """A job in what may be a wrong state: since when, and from when on it is to be judged."""

    kind: StallKind
    since: int
    due: int
    #: Handle of the claim that is suspect; empty without one.
    claim: str = ""


#: Kinds about which the provider is asked before anything is proposed.
ASKED: Final = frozenset(
    (
        StallKind.ORPHAN,
        StallKind.DISPLACED,
        StallKind.RUNNER_LOST,
        StallKind.STALE_QUEUE,
        StallKind.MISSED_COMPLETION,
    )
)
#: Answers after which a job is over.
OVER: Final = frozenset((Answer.COMPLETED.value, Answer.GHOST.value, Answer.GONE.value))


def suspect(job: Job, v: View, policy: RecoveryPolicy) -> Suspect | None:
    """In what way the job may be stuck; None for one that waits for nobody, or has ended."""
    since = v.since if v.since is not None else job.first_seen
    if v.status in ("claimed", "starting"):
        handle, claim = _live(job)
        return _claimed(handle, claim, v.status, since, policy)
    if v.status == "queued":
        # After a release it waits anew, though it has been queued all the time.
        entered = max((since, *released(job)))
        return Suspect(StallKind.STALE_QUEUE, entered, entered + policy.stale_queue_ms)
    if v.status == "running":
        if (lost := job.lost) is not None:
            return Suspect(StallKind.RUNNER_LOST, lost, lost)
        return Suspect(StallKind.MISSED_COMPLETION, since, since + policy.running_ms)
    return None


def _claimed(handle: str, claim: Claim, status: str, since: int, policy: RecoveryPolicy) -> Suspect:
    if (lost := claim.lost) is not None:
        return Suspect(StallKind.RUNNER_LOST, lost, lost, handle)
    if claim.displaced_at is not None:
        at = claim.displaced_at
        return Suspect(StallKind.DISPLACED, at, at + policy.displaced_ms, handle)
    if status == "claimed":
        return Suspect(StallKind.STALE_CLAIM, since, since + policy.stale_claim_ms, handle)
    return Suspect(StallKind.ORPHAN, since, since + policy.orphan_ms, handle)


def remedy(kind: StallKind, answer: str, age_ms: int, policy: RecoveryPolicy) -> CommandKind | None:
    """What proof allows to propose; None: wait. ``answer`` is empty while nothing is known."""
    if kind is StallKind.STALE_CLAIM:
        return CommandKind.RELEASE_CLAIM
    if kind is StallKind.STALE_QUEUE:
        # The backstop holds when nobody answers, too: the provider has given the job up.
        if age_ms >= policy.hopeless_ms and answer in ("", Answer.QUEUED, Answer.UNKNOWN):
            return CommandKind.CLOSE
        return CommandKind.REQUEUE if answer == Answer.QUEUED and policy.requeue_queued else None
    if kind in (StallKind.ORPHAN, StallKind.DISPLACED, StallKind.RUNNER_LOST):
        return CommandKind.REQUEUE if answer == Answer.QUEUED else None
    return None


def after_the_end(job: Job, stall: Stall) -> CommandKind | None:
    """What is left to command of a job that our question found to be over; None: nothing.

    Whoever holds its claim does not know that it is over, and its runner waits for nothing.
    """
    answered = stall.answered
    if answered is None or answered.answer not in OVER:
        return None
    claim = job.claims.get(stall.head.claim)
    if claim is not None:
        return None if claim.released_at is not None else CommandKind.RELEASE_CLAIM
    ghost = stall.head.kind == StallKind.STALE_QUEUE and answered.answer == Answer.GHOST
    return CommandKind.CLOSE if ghost else None


def released(job: Job) -> tuple[int, ...]:
    """When claims of the job were released."""
    return tuple(
        claim.released_at for claim in job.claims.values() if claim.released_at is not None
    )


def _live(job: Job) -> tuple[str, Claim]:
    """The latest claim that was not released, as :func:`pipeline.jobs.timings.live_claim`."""
    _, handle = max(
        (claim.claimed_at or 0, handle)
        for handle, claim in job.claims.items()
        if claim.released_at is None
    )
    return handle, job.claims[handle]
