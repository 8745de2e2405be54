"""Every record that travels on a topic, as a pydantic model.

This is the contract with producers and consumers. All records share one envelope
(:class:`Record`); ``kind`` says which model the rest of the record follows. Values on the wire
are UTF-8 JSON objects, parsed with pydantic-core straight from the bytes. Unknown fields are
ignored, so a producer may be newer than the pipeline; an unknown ``kind`` or a newer
``version`` is refused, because guessing at meaning is worse than keeping the record aside. In what
producers send, null in a field that has a default means unknown: the same as leaving it out.

Units: every time is an integer, milliseconds since the Unix epoch, UTC. Every duration is an
integer in milliseconds and says so in its name (``*_ms``).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    model_validator,
)

from topics import keys
from topics.envelope import (
    MAX_STEPS,
    Attempt,
    Id,
    JobKey,
    Millis,
    Name,
    OrNull,
    Record,
    ShortText,
    StepName,
    Word,
)
from topics.recovery import FleetsRecord, Recovery, StallFact, StallKind


class Milestone(StrEnum):
    """A point in a job's life. Each is known by the earliest credible time, per clock."""

    WAITING = "waiting"
    QUEUED = "queued"
    STARTED = "started"
    COMPLETED = "completed"


class Clock(StrEnum):
    """Which clock a time was read from: the provenance of a timing."""

    #: The provider's own field for the milestone. GitHub: whole seconds.
    PROVIDER = "provider"
    #: The time inside the webhook delivery id (GitHub: UUIDv1, 100 ns), else the event's own time.
    DELIVERY = "delivery"
    #: The first step's start inside a provider payload.
    STEP = "step"
    #: The fleet's dispatcher or the runner itself.
    RUNNER = "runner"
    #: When we received the record. The last resort.
    RECEIVED = "received"


class Status(StrEnum):
    """Where a job is. Precedence: the later in this list, the stronger the evidence."""

    WAITING = "waiting"
    QUEUED = "queued"
    CLAIMED = "claimed"
    STARTING = "starting"
    RUNNING = "running"
    COMPLETED = "completed"


class Conclusion(StrEnum):
    """How a job ended. GitHub's values, plus ``stale``/``startup_failure`` (run level) and ours."""

    SUCCESS = "success"
    FAILURE = "failure"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    NEUTRAL = "neutral"
    TIMED_OUT = "timed_out"
    ACTION_REQUIRED = "action_required"
    STALE = "stale"
    STARTUP_FAILURE = "startup_failure"
    UNKNOWN = "unknown"


class Family(StrEnum):
    """A kind of timing. See docs/how-it-works.md for how each is computed."""

    QUEUE = "queue"
    CLAIM_TO_START = "claim_to_start"
    RUN = "run"
    TOTAL = "total"


class FleetFrom(StrEnum):
    """What a job's fleet is named after. A later one in this list wins over the ones before."""

    #: Neither pool nor labels nor a runner group are known.
    NOTHING = "nothing"
    #: The group of the runner that executes it, for a job without labels.
    GROUP = "group"
    #: Its labels.
    LABELS = "labels"
    #: The dispatcher's word.
    POOL = "pool"


# --- runners.webhooks ---------------------------------------------------------------------------

GITHUB_HOST: Final = keys.GITHUB_HOST


class Delivery(Record):
    """A provider's webhook delivery as it arrived, on ``runners.webhooks``.

    ``kind`` is ``<provider>.<event>``: ``github.workflow_job``, ``gitlab.pipeline``; or
    ``github.api_job`` for a job as GitHub's REST API returns it. ``id`` is the delivery id
    (``X-GitHub-Delivery``): a redelivery keeps it. ``payload`` is the body as text, untouched.
    """

    KINDS: ClassVar[tuple[str, ...]] = (
        "github.workflow_job",
        "github.workflow_run",
        "github.api_job",
        "gitea.workflow_job",
        "gitea.workflow_run",
        "gitlab.job",
        "gitlab.pipeline",
    )
    #: GitHub's other events (docs.github.com, webhook events and payloads): authentic, and they
    #: say nothing about jobs. Deliveries of these are known and ignored.
    OTHER_EVENTS: ClassVar[frozenset[str]] = frozenset(
        (
            "branch_protection_configuration", "branch_protection_rule", "check_run",
            "check_suite", "code_scanning_alert", "commit_comment", "create", "custom_property",
            "custom_property_values", "delete", "dependabot_alert", "deploy_key", "deployment",
            "deployment_protection_rule", "deployment_review", "deployment_status",
            "discussion", "discussion_comment", "enterprise", "fork",
            "github_app_authorization", "gollum", "installation", "installation_repositories",
            "installation_target", "issue_comment", "issue_dependencies", "issues", "label",
            "marketplace_purchase", "member", "membership", "merge_group", "meta", "milestone",
            "org_block", "organization", "package", "page_build",
            "personal_access_token_request", "ping", "project", "project_card",
            "project_column", "projects_v2", "projects_v2_item", "projects_v2_status_update",
            "public", "pull_request", "pull_request_review", "pull_request_review_comment",
            "pull_request_review_thread", "push", "registry_package", "release", "repository",
            "repository_advisory", "repository_dispatch", "repository_import",
            "repository_ruleset", "repository_vulnerability_alert", "secret_scanning_alert",
            "secret_scanning_alert_location", "secret_scanning_scan", "security_advisory",
            "security_and_analysis", "sponsorship", "star", "status", "sub_issues", "team",
            "team_add", "watch", "workflow_dispatch",
        )
    )  # fmt: skip

    #: The provider's host, which is part of the job key: ``github.com`` or a GHES host name. Left
    #: at the default, it is taken from the headers or from the body where they tell.
    host: Annotated[Name, OrNull(GITHUB_HOST)] = GITHUB_HOST
    #: Headers worth keeping, lower-case names.
    headers: Annotated[dict[str, str], OrNull({})] = {}
    payload: str


# --- runners.lifecycle --------------------------------------------------------------------------


class RunnerRef(BaseModel):
    """A runner as an event names it. Blank and 0 mean unknown (GitHub sends null, 0 and "")."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: Id | None = None
    name: Annotated[Word, OrNull("")] = ""
    group: Annotated[Word, OrNull("")] = ""


class LifecycleKind(StrEnum):
    """What a dispatcher or a runner host reports: about a job, a runner or a host."""

    JOB_QUEUED = "job.queued"
    JOB_CLAIMED = "job.claimed"
    JOB_MINTED = "job.minted"
    JOB_STARTED = "job.started"
    JOB_COMPLETED = "job.completed"
    CLAIM_RELEASED = "claim.released"
    #: The runner has reached the provider.
    RUNNER_REGISTERED = "runner.registered"
    #: It waits for a job.
    RUNNER_IDLE = "runner.idle"
    #: It lives. Who sends these is missed when they stop.
    RUNNER_HEARTBEAT = "runner.heartbeat"
    #: It takes no further job.
    RUNNER_DRAINED = "runner.drained"
    RUNNER_GONE = "runner.gone"
    #: The machine is gone, and every runner on it.
    HOST_GONE = "host.gone"


#: The kinds that say nothing about a job.
RUNNER_KINDS: Final = frozenset(k for k in LifecycleKind if k.startswith(("runner.", "host.")))


class LifecycleEvent(Record):
    """What the fleet's own dispatcher or runner says, on ``runners.lifecycle``.

    The kinds of jobs and claims need ``job_id``; those of runners ``fleet`` and ``runner.name``,
    ``host.gone`` ``fleet`` and ``runner_host``. An event of a job that names fleet and runner
    says where the runner is, too.

    ``claim`` is the claim handle: whatever the dispatcher uses to fence a claim (a lease id, a
    timestamp). It is required for the claim kinds (``job.claimed``, ``job.minted``,
    ``claim.released``), because a claim without a handle cannot be told from the next one.
    """

    kind: LifecycleKind
    provider: Annotated[Name, OrNull("github")] = "github"
    host: Annotated[Name, OrNull(GITHUB_HOST)] = GITHUB_HOST
    job_id: Annotated[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,128}$", coerce_numbers_to_str=True)],
        OrNull(""),
    ] = ""
    fleet: Annotated[ShortText, OrNull("")] = ""
    claim: Annotated[Word, OrNull("")] = ""
    runner: Annotated[RunnerRef, OrNull(RunnerRef())] = RunnerRef()
    #: The machine that the runner runs on.
    runner_host: Annotated[Word, OrNull("")] = ""
    #: From the machine's start to the runner's registration, in ms.
    boot_ms: Annotated[int, Field(ge=0, le=86_400_000)] | None = None
    conclusion: Conclusion | None = None
    #: Why a claim was released: a short word such as ``dispatch_failed``.
    reason: Annotated[Word, OrNull("")] = ""
    repo: Annotated[ShortText, OrNull("")] = ""

    @model_validator(mode="after")
    def _names_a_job(self) -> Self:
        if not self.job_id and self.kind not in RUNNER_KINDS:
            raise ValueError(f"job_id is required by {self.kind.value}")
        return self


# --- runners.jobs -------------------------------------------------------------------------------


class JobAttributes(BaseModel):
    """What a job is. Blank means unknown."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: Id = 0
    run_attempt: Attempt = 0
    repo: ShortText = ""
    workflow: ShortText = ""
    name: ShortText = ""
    branch: ShortText = ""
    sha: ShortText = ""
    url: ShortText = ""
    #: Canonical label set: lower-case, sorted, without ``self-hosted`` unless it stands alone.
    labels: Annotated[tuple[Word, ...], Field(max_length=100)] = ()
    runner_group: ShortText = ""
    #: The pool the dispatcher says it belongs to; wins over labels.
    pool: ShortText = ""
    #: Who started the run (GitHub: ``github.actor``). As long as the run has not said, who caused
    #: the job's latest event.
    actor: ShortText = ""
    #: The event that started the run: ``push``, ``pull_request``, ``schedule`` and so on.
    trigger: ShortText = ""
    #: The pull request the run belongs to, 0 when unknown: GitHub names none for a fork's.
    pull_request: Id = 0
    #: Where the code comes from. Another than ``repo``: a fork.
    head_repo: ShortText = ""


class Step(BaseModel):
    """One step of a job. ``number`` tells steps of one job apart; they need not count up by 1."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    number: Annotated[int, Field(ge=0, le=1_000_000)]
    name: StepName = ""
    conclusion: Conclusion | None = None
    started_at: Millis | None = None
    completed_at: Millis | None = None


class ClaimFact(BaseModel):
    """What is known about one claim. Each time is the earliest reported."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    handle: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    claimed_at: Millis | None = None
    minted_at: Millis | None = None
    released_at: Millis | None = None
    #: Its runner was observed to execute another job.
    displaced_at: Millis | None = None
    #: Its runner, or the runner's host, is gone; it was seen alive with the job after all. Of both
    #: the latest counts.
    lost_at: Millis | None = None
    found_at: Millis | None = None
    runner: Word = ""
    reason: Word = ""


class ParentRun(BaseModel):
    """What the job's workflow run says, for one attempt of it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    attempt: Attempt = 0
    started_at: Millis | None = None
    completed_at: Millis | None = None
    conclusion: Conclusion | None = None


class JobFact(Record):
    """One statement about a job, on ``runners.jobs``. Facts only add knowledge.

    ``times`` maps a milestone to what each clock says. ``marks`` are the moments at which the
    provider called the job queued or waiting (an approval gate makes several).
    """

    kind: Literal["job.fact"] = "job.fact"
    #: What it was made from: ``workflow_job.in_progress``, ``job.claimed``.
    key: JobKey
    cause: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    times: dict[Milestone, dict[Clock, Millis]] = {}
    marks: tuple[tuple[Millis, Literal["queued", "waiting"]], ...] = ()
    conclusion: Conclusion | None = None
    job: JobAttributes | None = None
    #: The runner that was *observed* to execute the job.
    runner: RunnerRef | None = None
    claim: ClaimFact | None = None
    run: ParentRun | None = None
    steps: Annotated[tuple[Step, ...], Field(max_length=MAX_STEPS)] = ()
    #: The runner observed to execute it is gone since; was seen alive with it after all.
    lost_at: Millis | None = None
    found_at: Millis | None = None
    #: What was asked and done about the job. Such a fact says nothing else.
    stall: StallFact | None = None


class RunFact(Record):
    """One statement about a workflow run attempt, on ``runners.jobs`` under the run's key.

    ``job`` is what the run says about each of its jobs, whatever their attempt.
    """

    kind: Literal["run.fact"] = "run.fact"
    run: ParentRun
    job: JobAttributes | None = None


class RunLink(Record):
    """A job says which run it belongs to, on ``runners.jobs`` under the run's key."""

    kind: Literal["run.link"] = "run.link"
    job_key: JobKey
    attempt: Attempt = 0


class Tick(Record):
    """The clock, one per partition of ``runners.jobs`` and interval. ``occurred_at`` is the time.

    Time is an event: rules that depend on "now" run when the fold meets a tick, so they see
    exactly the facts logged before it.
    """

    kind: Literal["tick"] = "tick"
    #: Who sent it: the worker's stay with its partitions, a new name after each rebalance. Only
    #: who sent a tick may act on it.
    by: Word = ""
    #: Up to this time all that producers posted is in the log; None when nobody knows.
    sources_to: Millis | None = None
    #: Sent between two others because an answer has come: rules look, and time does not move.
    looks_only: bool = False


JobsRecord = Annotated[JobFact | RunFact | RunLink | Tick, Field(discriminator="kind")]


# --- runners.job-states -------------------------------------------------------------------------


class Timing(BaseModel):
    """One timing with its provenance. Exactly one of ``ms`` and ``missing`` is set."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ms: int | None = None
    #: Why there is no value: ``not_started``, ``not_completed``, ``negative``, ...
    missing: str | None = None
    #: Clock of the first and of the last bound.
    start_clock: Clock | None = None
    end_clock: Clock | None = None
    #: How far below zero the raw difference was before it was clamped to 0.
    clamped_ms: int = 0


class ClaimState(BaseModel):
    """One claim in a job's state, keyed by its handle there."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    claimed_at: int | None = None
    minted_at: int | None = None
    released_at: int | None = None
    displaced_at: int | None = None
    lost_at: int | None = None
    found_at: int | None = None
    runner: str = ""
    reason: str = ""


class JobState(Record):
    """Everything known about one job, on ``runners.job-states`` (compacted) and in the table.

    ``rev`` counts the distinct facts known; beyond 1,000 it is an estimate. It only grows: use it
    as the version of a row. A null value (tombstone) means that the job was completed, or last
    heard of, longer ago than the retention.
    """

    kind: Literal["job.state"] = "job.state"
    rev: int
    provider: str
    host: str
    job_id: str
    status: Status
    #: When the job entered ``status``, or null when no fact tells.
    since: int | None
    fleet: str
    #: What names the fleet: the only reason for which it may change during a job's life.
    fleet_from: FleetFrom = FleetFrom.NOTHING
    #: The day of the latest event, as its first millisecond: what expiry counts from.
    last_seen: int = 0
    conclusion: Conclusion | None = None
    job: JobAttributes = JobAttributes()
    runner: RunnerRef | None = None
    waiting_at: int | None = None
    queued_at: int | None = None
    claimed_at: int | None = None
    minted_at: int | None = None
    started_at: int | None = None
    completed_at: int | None = None
    #: Approval-gate time inside the wait, already taken out of ``queue``.
    gated_ms: int = 0
    #: How long it waited before it was cancelled, for a job that never started.
    abandoned_ms: int | None = None
    #: Copied from an earlier attempt of the run: counts nowhere.
    copied: bool = False
    timings: dict[Family, Timing] = {}
    times: dict[Milestone, dict[Clock, int]] = {}
    marks: tuple[tuple[int, str], ...] = ()
    claims: dict[str, ClaimState] = {}
    run: ParentRun | None = None
    #: By number; of a job that was told of more than 128 those with the smallest numbers.
    steps: tuple[Step, ...] = ()
    #: Digests of the facts known, sorted: the 1,000 smallest.
    facts: tuple[int, ...] = ()
    causes: tuple[str, ...] = ()
    lost_at: int | None = None
    found_at: int | None = None
    recovery: Recovery | None = None
    #: Whether something was told that recovery goes by, beside the milestones.
    watched: bool = False


# --- runners.windows, runners.samples -----------------------------------------------------------


class WindowFamily(BaseModel):
    """The values of one family in one window: what a mergeable quantile sketch needs.

    ``bins`` maps a bin index to the number of samples in it. Bin *i* holds values in
    ``(gamma**(i-1), gamma**i]`` ms with gamma = 1.01/0.99 (relative error at most 1 %, what
    ddsketch calls relative accuracy 0.01); ``zeros`` counts samples of 0 ms. Windows of several
    partitions are merged by adding counts, sums and bins.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    count: int
    sum_ms: int
    max_ms: int
    zeros: int = 0
    bins: dict[int, int] = {}


class Window(Record):
    """One partition's part of one tumbling window, on ``runners.windows``.

    A window of a fleet is the sum over partitions. ``closed`` says that no sample can enter any
    more: later ones are counted as late and reach ClickHouse through the job rows only.
    """

    kind: Literal["window"] = "window"
    fleet: str
    partition: int
    #: 60, 300 or 3600.
    size_s: int
    #: Start of the window; it covers ``[start, start + size)`` of event time.
    start: int
    closed: bool
    #: Grows with every record of this window and partition (offset of the tick that sent it).
    rev: int
    families: dict[Family, WindowFamily] = {}
    #: Completed jobs by conclusion, keyed by completion time.
    conclusions: dict[Conclusion, int] = {}
    #: For how long jobs lay in a wrong state, by its kind, keyed by when they left it.
    stranded: dict[StallKind, WindowFamily] = {}


class Sample(Record):
    """One partition's live jobs of one fleet and status at a tick, on ``runners.samples``."""

    kind: Literal["sample"] = "sample"
    fleet: str
    partition: int
    status: Status
    count: int
    #: Age of the job longest in this status, 0 when there is none.
    oldest_ms: int


# --- runners.dead-letters -----------------------------------------------------------------------


class Reason(StrEnum):
    """Why a record could not be handled. Bounded, because it is a metric label."""

    NOT_JSON = "not_json"
    BAD_ENVELOPE = "bad_envelope"
    UNKNOWN_KIND = "unknown_kind"
    NEWER_VERSION = "newer_version"
    BAD_PAYLOAD = "bad_payload"
    NO_JOB = "no_job"
    BAD_TIME = "bad_time"
    MISSING_CLAIM = "missing_claim"
    TOO_LARGE = "too_large"
    TOO_MANY_FACTS = "too_many_facts"
    BAD_SIGNATURE = "bad_signature"
    UNDECODABLE = "undecodable"
    UNDELIVERED = "undelivered"
    UNEXPECTED = "unexpected"


class DeadLetter(Record):
    """A record that could not be handled, with all that is needed to replay it.

    ``id`` is ``topic:partition:offset`` of the source, so the same failure twice is one letter; of
    a relay, its group behind that.
    """

    kind: Literal["dead_letter"] = "dead_letter"
    reason: Reason
    #: Which step refused it: ``normalise``, ``fold``, ``sink``, ``relay``.
    stage: str
    #: What was wrong, where. At most 2,000 characters.
    error: str
    topic: str
    partition: int
    offset: int
    #: The source record, byte for byte (base64 on the wire).
    record_key: Base64Bytes | None = None
    record_value: Base64Bytes | None = None
    record_headers: dict[str, str] = {}


class Unreadable(ValueError):
    """A record that cannot be understood. ``reason`` goes to the dead letter and the metric."""

    def __init__(self, reason: Reason, error: str) -> None:
        super().__init__(error)
        self.reason = reason
        self.error = error[:2000]


DELIVERY: Final[TypeAdapter[Delivery]] = TypeAdapter(Delivery)
LIFECYCLE: Final[TypeAdapter[LifecycleEvent]] = TypeAdapter(LifecycleEvent)
JOBS_RECORD: Final[TypeAdapter[Any]] = TypeAdapter(JobsRecord)
FLEETS_RECORD: Final[TypeAdapter[Any]] = TypeAdapter(
    Annotated[FleetsRecord | Tick, Field(discriminator="kind")]
)
JOB_STATE: Final[TypeAdapter[JobState]] = TypeAdapter(JobState)
WINDOW: Final[TypeAdapter[Window]] = TypeAdapter(Window)
SAMPLE: Final[TypeAdapter[Sample]] = TypeAdapter(Sample)
DEAD_LETTER: Final[TypeAdapter[DeadLetter]] = TypeAdapter(DeadLetter)


#: Found here as well, beside the records that carry keys.
job_key = keys.job_key
run_key = keys.run_key
