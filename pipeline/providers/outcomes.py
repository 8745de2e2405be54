"""What executors made of commands: facts about the job, and records for its fleet."""

from __future__ import annotations

from typing import Final

from topics.models import ClaimFact, Clock, Conclusion, JobFact, Milestone
from topics.recovery import CommandKind, Ended, Ending, Outcome, Result, StallFact

_SOURCE: Final = "runnerstream"
#: Why a claim ended, in the facts.
RELEASED_BY: Final = "recovery"


def job_facts(outcome: Outcome) -> list[JobFact]:
    """The facts of an outcome about its job: what follows for the job, then the end itself.

    A command that was done ended the claim it was fenced by; one that closed a job ended the job.
    None for a command that has only started, and for a fleet's.
    """
    result = outcome.result
    if result is None or not outcome.job_key:
        return []
    facts = []
    at = outcome.occurred_at
    if result is Result.DONE:
        handle = outcome.fence.claim
        closed = outcome.command is CommandKind.CLOSE
        released = outcome.command in (CommandKind.REQUEUE, CommandKind.RELEASE_CLAIM)
        if closed or (handle and released):
            facts.append(
                JobFact(
                    id=f"{outcome.command_id}:effect",
                    source=outcome.source,
                    occurred_at=at,
                    received_at=outcome.received_at,
                    key=outcome.job_key,
                    cause=f"recovery.{outcome.command.value}",
                    times={Milestone.COMPLETED: {Clock.RECEIVED: at}} if closed else {},
                    conclusion=Conclusion.STALE if closed else None,
                    claim=ClaimFact(handle=handle, released_at=at, reason=RELEASED_BY)
                    if handle and released
                    else None,
                )
            )
    facts.append(
        JobFact(
            id=f"{outcome.command_id}:{result.value}",
            source=outcome.source,
            occurred_at=at,
            received_at=outcome.received_at,
            key=outcome.job_key,
            cause="recovery.ended",
            stall=StallFact(
                n=max(outcome.n, 1),
                kind=outcome.stall,
                since=outcome.since,
                opened_at=outcome.opened_at,
                fence=outcome.fence,
                ended=Ended(
                    attempt=outcome.attempt, at=at, result=result, reason=outcome.reason[:256]
                ),
            ),
        )
    )
    return facts


def fleet_record(outcome: Outcome) -> Ending | None:
    """What its fleet is told; None while the command has only started."""
    if outcome.result is None:
        return None
    return Ending(
        id=f"{outcome.command_id}:{outcome.result.value}",
        source=_SOURCE,
        occurred_at=outcome.occurred_at,
        received_at=outcome.received_at,
        key=outcome.fleet or "unknown",
        command_id=outcome.command_id,
        command=outcome.command,
        job_key=outcome.job_key,
        result=outcome.result,
    )
