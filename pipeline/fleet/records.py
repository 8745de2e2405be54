"""The records a fleet decides with: commands, decisions, endings, and the facts that tell a job.

Every id is made of what the record says, so that saying it again is a duplicate (L11).
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from pipeline.effects import Output
from pipeline.fleet.runners import Displaced, Loss
from pipeline.fleet.state import number_of, proposed_id
from topics.catalogue import COMMANDS, FLEETS, JOBS
from topics.envelope import JobKey, Record
from topics.models import ClaimFact, JobFact
from topics.recovery import (
    Command,
    CommandKind,
    Decided,
    Decision,
    Ended,
    Ending,
    Mode,
    Proposal,
    Result,
    RunnerSeen,
    RunnerState,
    Seen,
    StallFact,
    StallKind,
    Switch,
    Why,
    command_id,
)

SOURCE: Final = "runnerstream"
#: An id has at most 512 characters; of a longer one the digest stands for the end.
_MAX_ID: Final = 512
_KEPT: Final = 440
#: Of the name of who throws a switch.
_WHO: Final = 256
#: How large an attempt may be: ids of wake-ups come again after nine years.
_ATTEMPTS: Final = 1_000_000

_job_key: Final[TypeAdapter[str]] = TypeAdapter(JobKey)


def id_of(text: str) -> str:
    """A text as an id: itself, unless it is too long."""
    if len(text) <= _MAX_ID:
        return text
    return f"{text[:_KEPT]}#{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def output(topic: str, record: Record, partition: int | None = None) -> Output:
    """A record as it is published under its key."""
    return Output(topic, partition, record.key.encode(), record.model_dump_json().encode())


def switch(id_: str, fleet: str, mode: Mode | None, who: str, reason: str, at: int) -> Switch:
    """A switch that a person throws at ``at`` (ms), for all fleets where ``fleet`` is empty.

    Raises pydantic.ValidationError for a name or a reason that is too long.
    """
    return Switch(
        **_envelope(id_, at, id_of(f"switch:{fleet}")),
        fleet=fleet,
        mode=mode,
        who=who[:_WHO],
        reason=reason,
    )


def everywhere(thrown: Switch, partitions: int) -> list[Output]:
    """A switch as it is published: into every partition of the log, as each is heeded alone."""
    return [output(FLEETS, thrown, partition) for partition in range(partitions)]


def _envelope(id_: str, at: int, key: str) -> dict[str, Any]:
    return {
        "id": id_of(id_),
        "source": SOURCE,
        "occurred_at": at,
        "received_at": at,
        "key": key,
    }


def is_job_key(text: str) -> bool:
    """Whether there is somebody to tell: a runner may be said to hold anything."""
    try:
        _job_key.validate_python(text)
    except ValidationError:
        return False
    return True


# -- of a proposal ---------------------------------------------------------------------------------


def proposed_command(
    proposal: Proposal, fleet: str, at: int, expires_at: int, dry_run: bool
) -> Output:
    """The command of a proposal, for whoever executes commands."""
    asked = proposal.proposed
    known = proposed_id(proposal)
    return output(
        COMMANDS,
        Command(
            **_envelope(f"{known}:dry" if dry_run else known, at, proposal.job_key),
            trace=proposal.trace,
            command=asked.command,
            fleet=fleet,
            job_key=proposal.job_key,
            attempt=asked.attempt,
            n=proposal.n,
            reason=proposal.stall,
            fence=proposal.fence,
            evidence=proposal.evidence,
            expires_at=expires_at,
            dry_run=dry_run,
            since=proposal.since,
            opened_at=proposal.opened_at,
            repo=proposal.repo,
            run_id=proposal.run_id,
            run_attempt=proposal.run_attempt,
            first_seen=proposal.first_seen,
        ),
    )


def decision(proposal: Proposal, fleet: str, at: int, expires_at: int, why: Why | None) -> Decision:
    """What was made of a proposal, for the log of fleets."""
    known, (n, k) = proposed_id(proposal), number_of(proposal)
    return Decision(
        **_envelope(f"{known}:withheld:{n}:{k}:{why}" if why else f"{known}:issued", at, fleet),
        command_id=known,
        command=proposal.proposed.command,
        stall=proposal.stall,
        job_key=proposal.job_key,
        n=n,
        k=k,
        attempt=proposal.proposed.attempt,
        since=proposal.since,
        opened_at=proposal.opened_at,
        fence=proposal.fence,
        expires_at=None if why else expires_at,
        withheld=why,
    )


def decided_fact(decided: Decision) -> Output | None:
    """The same, for the job; None when it is about no proposal of a job."""
    if decided.k < 1:
        return None
    at, why = decided.occurred_at, decided.withheld
    end = f"withheld:{decided.n}:{decided.k}:{why}" if why else f"decided:{decided.k}"
    return _stall_fact(
        decided,
        f"{decided.command_id}:{end}",
        "recovery.decided",
        at,
        decided=Decided(
            k=decided.k,
            at=at,
            command=decided.command,
            attempt=decided.attempt,
            withheld=why,
            expires_at=decided.expires_at,
        ),
    )


# -- of a command ----------------------------------------------------------------------------------


def expired(command: Decision, fleet: str, at: int) -> Ending:
    """Nobody has done the command in time, for the log of fleets."""
    return Ending(
        **_envelope(f"{command.command_id}:expired", at, fleet),
        command_id=command.command_id,
        command=command.command,
        job_key=command.job_key,
        result=Result.EXPIRED,
    )


def expired_fact(command: Decision, at: int) -> Output | None:
    """The same, for the job; None when it was for no job's stall."""
    return _stall_fact(
        command,
        f"{command.command_id}:expired",
        "recovery.expired",
        at,
        ended=Ended(attempt=command.attempt, at=at, result=Result.EXPIRED),
    )


def _stall_fact(of: Decision, id_: str, cause: str, at: int, **said: Any) -> Output | None:
    if of.n < 1 or not is_job_key(of.job_key):
        return None
    return output(
        JOBS,
        JobFact(
            **_envelope(id_, at, of.job_key),
            cause=cause,
            stall=StallFact(
                n=of.n,
                kind=of.stall,
                since=of.since,
                opened_at=of.opened_at or at,
                fence=of.fence,
                **said,
            ),
        ),
    )


# -- of a fleet that starves -----------------------------------------------------------------------


def wake_id(fleet: str, at: int, wake_after_ms: int) -> tuple[str, int]:
    """The id of the wake-up at a time, and its attempt: one each cool-down."""
    attempt = at // wake_after_ms % _ATTEMPTS
    return id_of(command_id(CommandKind.WAKE_FLEET, fleet, attempt)), attempt


def wake_command(woken: Decision, expires_at: int, evidence: tuple[Seen, ...]) -> Output:
    """The command to a fleet's idle runners. A decision that was withheld makes a dry one."""
    dry_run = woken.withheld is not None
    known = woken.command_id
    return output(
        COMMANDS,
        Command(
            **_envelope(f"{known}:dry" if dry_run else known, woken.occurred_at, woken.key),
            command=woken.command,
            fleet=woken.key,
            attempt=woken.attempt,
            reason=woken.stall,
            evidence=evidence,
            expires_at=expires_at,
            dry_run=dry_run,
            since=woken.since,
            opened_at=woken.occurred_at,
        ),
    )


def wake_decision(
    fleet: str, woken: tuple[str, int], since: int, at: int, expires_at: int, why: Why | None
) -> Decision:
    """Whether the fleet is woken, for the log of fleets."""
    known, attempt = woken
    return Decision(
        **_envelope(f"{known}:withheld:{why}" if why else f"{known}:issued", at, fleet),
        command_id=known,
        command=CommandKind.WAKE_FLEET,
        stall=StallKind.STARVED,
        attempt=attempt,
        since=since,
        opened_at=at,
        expires_at=None if why else expires_at,
        withheld=why,
    )


# -- of a runner -----------------------------------------------------------------------------------


def silent(fleet: str, name: str, seen: int, silent_after_ms: int) -> RunnerSeen:
    """A runner is not heard of any more, for the log of fleets: it counts as gone."""
    return RunnerSeen(
        **_envelope(f"silent:{name}:{seen}", seen + silent_after_ms, fleet),
        runner=name,
        state=RunnerState.GONE,
    )


def displaced_fact(runner: str, what: Displaced) -> Output | None:
    """Tell a job that its runner executes another; None when nobody has such a key."""
    if not is_job_key(what.job):
        return None
    claim = ClaimFact(handle=what.claim, runner=runner, displaced_at=what.at)
    id_ = f"displaced:{what.job}:{what.claim}:{what.by}"
    return output(
        JOBS,
        JobFact(**_envelope(id_, what.at, what.job), cause="runner.displaced", claim=claim),
    )


def found_fact(runner: str, what: Loss, at: int) -> Output | None:
    """Tell a job that its lost runner was seen with it again at ``at`` (ms); None as above."""
    if not is_job_key(what.job) or not (what.claim or what.busy):
        return None
    claim = ClaimFact(handle=what.claim, runner=runner, found_at=at) if what.claim else None
    return output(
        JOBS,
        JobFact(
            **_envelope(f"found:{what.job}:{runner}:{at}", at, what.job),
            cause="runner.found",
            claim=claim,
            found_at=at if what.busy else None,
        ),
    )


def lost_fact(runner: str, what: Loss) -> Output | None:
    """Tell a job that its runner is gone; None when nobody has such a key or it held nothing."""
    if not is_job_key(what.job) or not (what.claim or what.busy):
        return None
    claim = ClaimFact(handle=what.claim, runner=runner, lost_at=what.at) if what.claim else None
    return output(
        JOBS,
        JobFact(
            **_envelope(f"lost:{what.job}:{runner}:{what.at}", what.at, what.job),
            cause="runner.lost",
            claim=claim,
            lost_at=what.at if what.busy else None,
        ),
    )
