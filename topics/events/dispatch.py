"""Events of a dispatcher: what runners ask it for, and what they get."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from topics.events.base import Event, MaybeNamed, Ms, Text


class DispatchOutcome(StrEnum):
    """What a runner that asked for work was told."""

    #: It got a job.
    SERVED = "served"
    #: Nothing waits for it.
    EMPTY = "empty"
    #: What waited was taken by others meanwhile.
    LOST_RACE = "lost_race"
    #: It holds a claim already.
    RUNNER_IN_USE = "runner_in_use"
    #: It is outdated and must stop.
    DRAIN = "drain"
    NOT_FOUND = "not_found"
    NO_POOL = "no_pool"
    NO_LABEL = "no_label"
    UNKNOWN_ACCOUNT = "unknown_account"
    MINT_FAILED = "mint_failed"
    #: It got a job, and that could not be recorded.
    RECORD_FAILED = "record_failed"
    #: The dispatcher cannot ask what it must.
    UNAVAILABLE = "unavailable"
    UNKNOWN = "unknown"


class ClaimOutcome(StrEnum):
    """What became of a try to claim a job for a runner."""

    OK = "ok"
    LOST_RACE = "lost_race"
    RUNNER_IN_USE = "runner_in_use"
    #: The account has as many as it may.
    LIMIT_REACHED = "limit_reached"
    #: The job was over.
    ABORTED = "aborted"
    UNKNOWN = "unknown"


class MintOutcome(StrEnum):
    """What became of asking the provider for a runner's credentials."""

    OK = "ok"
    FAILED = "failed"
    #: The provider's rate limit.
    LIMITED = "limited"
    UNKNOWN = "unknown"


class DispatchRequested(Event):
    """A runner asked for work."""

    kind: Literal["dispatch.request"] = "dispatch.request"
    outcome: DispatchOutcome = DispatchOutcome.UNKNOWN
    duration_ms: Ms | None = None
    runner: MaybeNamed = ""
    reason: Text = ""


class ClaimAttempted(Event):
    """A job was, or was not, claimed for a runner."""

    kind: Literal["claim.attempt"] = "claim.attempt"
    outcome: ClaimOutcome = ClaimOutcome.UNKNOWN
    duration_ms: Ms | None = None
    runner: MaybeNamed = ""
    job_id: MaybeNamed = ""


class RunnerMinted(Event):
    """The provider was asked for a runner's credentials."""

    kind: Literal["runner.mint"] = "runner.mint"
    outcome: MintOutcome = MintOutcome.UNKNOWN
    duration_ms: Ms | None = None
    runner: MaybeNamed = ""
    job_id: MaybeNamed = ""
    reason: Text = ""


EVENTS = (DispatchRequested, ClaimAttempted, RunnerMinted)
