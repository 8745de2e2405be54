"""Records of recovery: what is stuck, what was asked about it, commanded, and done.

A *stall* is one spell of one job in a wrong state; ``n`` numbers those of a job. Jobs propose,
fleets dispose: the fold of jobs opens stalls, asks probes and proposes commands; the fold of
fleets issues them or withholds them; executors answer with outcomes. What happens to a stall comes
back to its job as a :class:`StallFact`. Ids are deterministic, so a repeat is a duplicate.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from topics.envelope import Attempt, Id, JobKey, Millis, Name, Record, ShortText, Word


class StallKind(StrEnum):
    """In what way something is stuck."""

    #: Claimed, and no runner was ever made for it.
    STALE_CLAIM = "stale_claim"
    #: A runner was made for it, and the provider never saw it start.
    ORPHAN = "orphan"
    #: The runner made for it executes another job.
    DISPLACED = "displaced"
    #: The runner that held it, or its host, is gone.
    RUNNER_LOST = "runner_lost"
    #: Queued for so long that the queue may be wrong.
    STALE_QUEUE = "stale_queue"
    #: Running for so long that its end may have been missed.
    MISSED_COMPLETION = "missed_completion"
    #: A fleet has waiting jobs and idle runners.
    STARVED = "starved"
    #: Recovered again and again.
    FLAPPING = "flapping"


class CommandKind(StrEnum):
    """What an executor is asked to do."""

    #: Give up the claim: nobody will execute the job under it.
    RELEASE_CLAIM = "release_claim"
    #: Give up the claim, if any, and have the job executed by another runner.
    REQUEUE = "requeue"
    #: The job is over or hopeless: stop tracking it, and cancel it at the provider.
    CLOSE = "close"
    #: Have the fleet's idle runners look for work.
    WAKE_FLEET = "wake_fleet"
    #: Stop trying, tell a person.
    QUARANTINE = "quarantine"


class Answer(StrEnum):
    """What the provider says about a job."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    #: It calls the job queued, but the job's run is over (a failure at start-up leaves such).
    GHOST = "ghost"
    #: It knows neither the job nor an open run of it (404, 410): finished, nobody knows how.
    GONE = "gone"
    #: Nothing that can be relied on: unreachable, refused, limited, malformed, contradictory.
    UNKNOWN = "unknown"


class Result(StrEnum):
    """How a command ended."""

    DONE = "done"
    #: The fence did not match: the job is no longer what was judged.
    REFUSED = "refused"
    #: It can never be done so.
    CANNOT = "cannot"
    #: It was tried and did not work; another time it may.
    FAILED = "failed"
    #: Nobody did it in time.
    EXPIRED = "expired"


#: Why a command is refused of whose job more is known than when it was judged.
MOVED_ON: Final = "moved_on"


class Why(StrEnum):
    """Why a command was withheld."""

    PAUSED = "paused"
    DRY_RUN = "dry_run"
    BUDGET_TICK = "budget_tick"
    BUDGET_HOUR = "budget_hour"
    BREAKER = "breaker"
    COOLING = "cooling"


class Mode(StrEnum):
    """What recovery may do."""

    #: Commands are issued.
    LIVE = "live"
    #: Commands are published, marked as not to be executed.
    DRY_RUN = "dry_run"
    #: Nothing is commanded.
    PAUSED = "paused"


class Part(BaseModel):
    """A part of a record."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Fence(Part):
    """What a command may hit: the job as it was judged, and nothing that came after.

    ``claim`` is the handle of the claim judged, empty when there was none. ``rev`` counts the
    facts known then; facts about recovery itself do not count.
    """

    claim: Word = ""
    rev: Annotated[int, Field(ge=0)] = 0


class Seen(Part):
    """A piece of evidence: what was seen, when, by which clock."""

    what: ShortText
    at: Millis | None = None
    clock: Word = ""


# --- what a job knows of its stalls, on runners.jobs ---------------------------------------------


class Asked(Part):
    """Question number ``k`` of a stall was asked."""

    k: Annotated[int, Field(ge=1)]
    at: Millis


class Answered(Part):
    """The answer to question number ``k``."""

    k: Annotated[int, Field(ge=1)]
    at: Millis
    answer: Answer
    detail: Word = ""


class Proposed(Part):
    """Proposal number ``k`` of a stall: to command ``command`` as the job's ``attempt``."""

    k: Annotated[int, Field(ge=1)]
    at: Millis
    command: CommandKind
    attempt: Attempt


class Decided(Part):
    """What the fleet made of proposal number ``k``: issued, or withheld with a reason."""

    k: Annotated[int, Field(ge=1)]
    at: Millis
    #: What was proposed, and as which attempt.
    command: CommandKind | None = None
    attempt: Attempt = 0
    withheld: Why | None = None
    expires_at: Millis | None = None


class Ended(Part):
    """How the command of proposal ``attempt`` ended."""

    attempt: Attempt
    at: Millis
    result: Result
    reason: Word = ""


class StallFact(Part):
    """One statement about stall ``n`` of a job."""

    n: Annotated[int, Field(ge=1, le=1_000_000)]
    kind: StallKind
    #: When the job entered the wrong state.
    since: Millis
    #: The tick that found it.
    opened_at: Millis
    fence: Fence = Fence()
    asked: Asked | None = None
    answered: Answered | None = None
    proposed: Proposed | None = None
    decided: Decided | None = None
    ended: Ended | None = None


class StallState(Part):
    """Everything known about one stall of a job, in its state. Arrays, as they are merged.

    ``head`` is opened_at, since, kind, claim, rev; ``asked`` k, at; ``answered`` k, at, answer,
    detail; ``gone`` k, at of the last answers that did not know the job, ``known_k`` the last
    question with another answer; ``proposed`` k, at, command, attempt; ``withheld`` k, at, why; by
    attempt ``issued`` is at, expires_at, command and ``ended`` at, result, reason.
    """

    head: tuple[int, int, StallKind, str, int]
    asked: tuple[int, int] | None = None
    answered: tuple[int, int, Answer, str] | None = None
    gone: tuple[tuple[int, int], ...] = ()
    known_k: int = 0
    proposed: tuple[int, int, CommandKind, int] | None = None
    withheld: tuple[int, int, Why] | None = None
    issued: dict[int, tuple[int, int, CommandKind]] = {}
    ended: dict[int, tuple[int, Result, str]] = {}


class Recovery(Part):
    """What a job knows of its stalls, by number. ``told`` are digests of the facts about them."""

    told: tuple[int, ...] = ()
    stalls: dict[int, StallState] = {}


# --- runners.probes ------------------------------------------------------------------------------


class Probe(Record):
    """A question to the provider about one job, on ``runners.probes``, keyed by job.

    The answer is facts about the job on ``runners.jobs``: what the provider says of it and its
    run, then a :class:`StallFact` with :class:`Answered`. After ``expires_at`` it need not be
    asked.
    """

    kind: Literal["probe"] = "probe"
    key: JobKey
    fleet: ShortText
    n: Annotated[int, Field(ge=1)]
    k: Annotated[int, Field(ge=1)]
    stall: StallKind
    #: Of the stall; the oldest is asked first.
    since: Millis
    opened_at: Millis
    fence: Fence
    expires_at: Millis
    repo: ShortText = ""
    run_id: Id = 0
    attempt: Attempt = 0


# --- runners.commands, runners.outcomes ----------------------------------------------------------


class Command(Record):
    """What an executor is to do, on ``runners.commands``, keyed by job (by fleet for a fleet's).

    ``id`` names job, command and attempt: whoever has done it once does it never again.
    """

    kind: Literal["command"] = "command"
    command: CommandKind
    fleet: ShortText
    #: Empty for a fleet's command.
    job_key: Word = ""
    attempt: Attempt = 0
    n: int = 0
    reason: StallKind
    fence: Fence = Fence()
    evidence: tuple[Seen, ...] = ()
    #: ``occurred_at`` is when it was issued.
    expires_at: Millis
    dry_run: bool = False
    since: Millis
    opened_at: Millis
    repo: ShortText = ""
    run_id: Id = 0
    run_attempt: Attempt = 0
    #: When the job was first heard of: where to look for its first delivery.
    first_seen: Millis | None = None


class Outcome(Record):
    """What an executor made of a command, on ``runners.outcomes``, keyed like the command.

    ``kind`` ``command.started`` says that it is about to act: should it die now, nobody acts again.
    """

    kind: Literal["command.started", "command.ended"]
    command_id: Name
    command: CommandKind
    fleet: ShortText
    job_key: Word = ""
    attempt: Attempt = 0
    n: int = 0
    stall: StallKind
    since: Millis
    opened_at: Millis
    fence: Fence = Fence()
    #: None while it has only started.
    result: Result | None = None
    reason: ShortText = ""
    #: Which executor: ``print``, ``hook``, ``redeliver``, ``github``.
    via: Word = ""


# --- runners.fleets ------------------------------------------------------------------------------


class RunnerState(StrEnum):
    """Where a runner is."""

    REGISTERED = "registered"
    IDLE = "idle"
    CLAIMED = "claimed"
    STARTING = "starting"
    BUSY = "busy"
    DRAINED = "drained"
    GONE = "gone"


class RunnerSeen(Record):
    """A runner of a fleet was seen in a state. ``state`` None: it lives, nothing else is said."""

    kind: Literal["runner.seen"] = "runner.seen"
    runner: Word
    state: RunnerState | None = None
    host: Word = ""
    job_key: Word = ""
    claim: Word = ""
    #: From its host's start to its registration, where known.
    boot_ms: Annotated[int, Field(ge=0)] | None = None


class HostGone(Record):
    """A host of a fleet is gone, and every runner on it."""

    kind: Literal["host.gone"] = "host.gone"
    host: Word


class Depth(Record):
    """One partition's live jobs of a fleet at a tick."""

    kind: Literal["fleet.depth"] = "fleet.depth"
    partition: Annotated[int, Field(ge=0)]
    counts: dict[str, Annotated[int, Field(ge=0)]] = {}
    #: Since when the job longest queued is.
    queued_since: Millis | None = None


class Proposal(Record):
    """A job asks its fleet for a command. ``occurred_at`` is when it was judged."""

    kind: Literal["stall.proposed"] = "stall.proposed"
    job_key: JobKey
    n: Annotated[int, Field(ge=1)]
    stall: StallKind
    since: Millis
    opened_at: Millis
    fence: Fence
    proposed: Proposed
    evidence: tuple[Seen, ...] = ()
    repo: ShortText = ""
    run_id: Id = 0
    run_attempt: Attempt = 0
    first_seen: Millis | None = None


class Decision(Record):
    """The fleet's own record of what it decided: ``withheld`` None is issued."""

    kind: Literal["command.decided"] = "command.decided"
    command_id: Name
    command: CommandKind
    stall: StallKind
    job_key: Word = ""
    n: int = 0
    k: int = 0
    attempt: Attempt = 0
    since: Millis
    #: Of the stall, as is the fence: who finds the command expired says so with them.
    opened_at: Millis | None = None
    fence: Fence = Fence()
    expires_at: Millis | None = None
    withheld: Why | None = None


class Ending(Record):
    """How a command of the fleet ended: a sample of its breaker."""

    kind: Literal["command.outcome"] = "command.outcome"
    command_id: Name
    command: CommandKind
    job_key: Word = ""
    result: Result


class Switch(Record):
    """A person throws a switch; the latest counts. It is put into every partition.

    ``key`` is ``switch:`` and the scope: a fleet, or empty for all fleets. ``mode`` None takes the
    switch back: then the configuration counts.
    """

    kind: Literal["switch"] = "switch"
    fleet: ShortText = ""
    mode: Mode | None = None
    who: Word = ""
    reason: ShortText = ""


# --- runners.fleet-states ------------------------------------------------------------------------


class BreakerState(StrEnum):
    """Whether a fleet's commands may go, after how those before ended."""

    CLOSED = "closed"
    #: They mostly fail: none may go.
    OPEN = "open"
    #: One may go, to see whether they still do.
    HALF_OPEN = "half_open"


class Thrown(Part):
    """The switch that says what recovery may do: its scope (empty: all fleets), who, and why."""

    fleet: ShortText
    mode: Mode
    who: Word = ""
    reason: ShortText = ""
    at: Millis


class FleetState(Record):
    """A fleet as the fold of fleets sees it, on ``runners.fleet-states`` (compacted).

    ``key`` is the fleet, ``rev`` the offset of the tick that said it: the version of a row. A null
    value (tombstone) means that nothing is known of it any more.
    """

    kind: Literal["fleet.state"] = "fleet.state"
    rev: int
    #: By state; no entry is none.
    runners: dict[RunnerState, int] = {}
    #: Proposals that wait for a decision, commands that nobody has ended, those of the last hour.
    pending: int = 0
    in_flight: int = 0
    issued_hour: int = 0
    breaker: BreakerState = BreakerState.CLOSED
    #: While it is open: until when.
    breaker_until: int | None = None
    mode: Mode = Mode.LIVE
    #: The switch that says so; None where it is the configuration.
    switch: Thrown | None = None


PROBE: Final[TypeAdapter[Probe]] = TypeAdapter(Probe)
COMMAND: Final[TypeAdapter[Command]] = TypeAdapter(Command)
OUTCOME: Final[TypeAdapter[Outcome]] = TypeAdapter(Outcome)
FLEET_STATE: Final[TypeAdapter[FleetState]] = TypeAdapter(FleetState)
FleetsRecord = RunnerSeen | HostGone | Depth | Proposal | Decision | Ending | Switch


def command_id(command: CommandKind, key: str, attempt: int) -> str:
    """The id of a command: of a job and its attempt, or of a fleet and its tick."""
    return f"{command.value}|{key}|{attempt}"
