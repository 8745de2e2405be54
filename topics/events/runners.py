"""Events of a runner process such as Gitea's act_runner: polls, tasks, reports."""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from topics.events.base import Count, Event, MaybeNamed, Millis, Ms, Named, Text


class PollResult(StrEnum):
    """What a runner that asked for a task got."""

    TASK = "task"
    EMPTY = "empty"
    #: Its own deadline passed: no sign of health, and none of trouble.
    TIMEOUT = "timeout"
    ERROR = "error"
    #: It is not registered any more.
    UNAUTHENTICATED = "unauthenticated"
    UNKNOWN = "unknown"


class TaskResult(StrEnum):
    """How a task or a step ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    UNKNOWN = "unknown"


class EndCause(StrEnum):
    """Who ended a task."""

    OWN = "own"
    SERVER = "server"
    TIMEOUT = "timeout"
    CANCEL = "cancel"
    EARLY_TERMINATION = "early_termination"
    UNKNOWN = "unknown"


class ReportResult(StrEnum):
    """What became of a report."""

    SUCCESS = "success"
    ERROR = "error"


class Trigger(StrEnum):
    """Why a report was sent."""

    INTERVAL = "interval"
    BATCH = "batch"
    LATENCY = "latency"
    TRANSITION = "transition"
    HEARTBEAT = "heartbeat"
    CLOSE = "close"
    UNKNOWN = "unknown"


class Method(StrEnum):
    """What a runner calls at its server."""

    FETCH_TASK = "fetch_task"
    UPDATE_LOG = "update_log"
    UPDATE_TASK = "update_task"
    OTHER = "other"


class Sweep(StrEnum):
    """Why a server took a task from a runner."""

    ZOMBIE = "zombie"
    ENDLESS = "endless"
    ABANDONED = "abandoned"
    UNKNOWN = "unknown"


#: How much one event may add to a count: sums of many stay within 64 bits.
Grown = Annotated[int, Field(ge=0, le=10**9, strict=True)]


def _fits(grown: tuple[tuple[float, ...], tuple[int, ...], float]) -> Any:
    bounds, counts, _ = grown
    if len(counts) != len(bounds) + 1 or any(one >= other for one, other in pairwise(bounds)):
        raise ValueError("bounds must rise, and there is one count more than bounds")
    return grown


#: How a distribution grew: its finite bounds, how many lay in each bucket, and its sum in seconds.
Distribution = Annotated[
    tuple[
        Annotated[
            tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...], Field(max_length=100)
        ],
        tuple[Grown, ...],
        Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)],
    ],
    AfterValidator(_fits),
]
#: What a runner's own metrics measure the duration of.
Duration = Literal["poll", "job", "log", "state"]


class _OfRunner(Event):
    runner: Named

    @property
    def subject(self) -> str:
        return self.runner


class _OfTask(_OfRunner):
    task_id: Named


class RunnerInfo(_OfRunner):
    """What a runner is. The latest counts."""

    kind: Literal["runner.info"] = "runner.info"
    #: As the runner calls itself.
    name: MaybeNamed = ""
    runner_version: MaybeNamed = ""
    capacity: Count | None = None
    labels: Annotated[tuple[Named, ...], Field(max_length=100)] = ()
    ephemeral: bool = False


class RunnerStatus(_OfRunner):
    """How a runner is, also when nothing has changed. The latest counts."""

    kind: Literal["runner.status"] = "runner.status"
    uptime_ms: Annotated[int, Field(ge=0, strict=True)] | None = None
    capacity: Count | None = None
    #: As it counts them itself; ours follow from tasks.
    running: Count | None = None
    #: The interval at which it asks, before jitter.
    backoff_ms: Ms | None = None
    #: Log rows that wait over all tasks, and since when the oldest does.
    buffer_rows: Count | None = None
    buffer_since: Millis | None = None
    ready: bool | None = None
    ready_reason: Text = ""


class RunnerPolled(_OfRunner):
    """A runner asked for a task."""

    kind: Literal["runner.poll"] = "runner.poll"
    result: PollResult = PollResult.UNKNOWN
    #: None for one that its own deadline ended.
    duration_ms: Ms | None = None
    consecutive_empty: Count = 0
    consecutive_errors: Count = 0
    error_code: Text = ""


class RunnerStopped(_OfRunner):
    """A runner process ended."""

    kind: Literal["runner.stopped"] = "runner.stopped"
    reason: Text = ""
    forced: bool = False


class TaskAssigned(_OfTask):
    """A runner got a task."""

    kind: Literal["task.assigned"] = "task.assigned"
    job_id: MaybeNamed = ""
    run_id: MaybeNamed = ""
    queued_at: Millis | None = None


class TaskStarted(_OfTask):
    """A runner began a task."""

    kind: Literal["task.started"] = "task.started"
    job_id: MaybeNamed = ""


class TaskFinalizing(_OfTask):
    """The work of a task is over; what it has to report is not."""

    kind: Literal["task.finalizing"] = "task.finalizing"
    result: TaskResult = TaskResult.UNKNOWN


class TaskFinished(_OfTask):
    """All of a task is over, reports as well."""

    kind: Literal["task.finished"] = "task.finished"
    result: TaskResult = TaskResult.UNKNOWN
    end_cause: EndCause = EndCause.UNKNOWN
    #: From its start to its end, and how much of that was the last reports.
    duration_ms: Ms | None = None
    flush_ms: Ms | None = None
    steps: Count = 0

    @property
    def statement(self) -> str:
        return f"{self.kind}|{self.task_id}"


class StepFinished(_OfTask):
    """A step of a task ended."""

    kind: Literal["step.finished"] = "step.finished"
    step_id: MaybeNamed = ""
    number: Count = 0
    result: TaskResult = TaskResult.UNKNOWN
    duration_ms: Ms | None = None
    log_rows: Count = 0

    @property
    def statement(self) -> str:
        return f"{self.kind}|{self.task_id}|{self.number}|{self.step_id}"


class LogReported(_OfTask):
    """A runner sent log rows."""

    kind: Literal["report.log"] = "report.log"
    result: ReportResult
    duration_ms: Ms | None = None
    trigger: Trigger = Trigger.UNKNOWN
    rows: Grown = 0
    bytes: Count = 0
    #: What waits afterwards, also after a failure, and since when.
    rows_left: Count = 0
    oldest_since: Millis | None = None
    attempt: Count = 1


class StateReported(_OfTask):
    """A runner sent a task's state."""

    kind: Literal["report.state"] = "report.state"
    result: ReportResult
    duration_ms: Ms | None = None
    trigger: Trigger = Trigger.UNKNOWN


class OutputDropped(_OfTask):
    """An output of a task was too long to be reported."""

    kind: Literal["task.output_dropped"] = "task.output_dropped"
    reason: Literal["key_too_long", "value_too_long"]
    length: Count = 0


class FlushFailed(_OfTask):
    """What was left of a task could not be reported."""

    kind: Literal["task.flush_failed"] = "task.flush_failed"
    method: Method = Method.OTHER
    attempts: Count = 0
    rows_lost: Grown = 0


class TaskReaped(_OfTask):
    """The server took a task from its runner."""

    kind: Literal["task.reaped"] = "task.reaped"
    sweep: Sweep = Sweep.UNKNOWN
    silent_ms: Ms | None = None


class ClientFailed(_OfRunner):
    """A call of a runner to its server failed."""

    kind: Literal["client.error"] = "client.error"
    method: Method = Method.OTHER
    code: Text = ""
    retryable: bool = False


class RunnerScraped(_OfRunner):
    """What the counters of a runner's own ``/metrics`` grew by between two looks at it.

    Of a runner that cannot publish events. ``histograms`` are by name: how many more values lay
    below each of its bounds (not cumulative, the last is +Inf), and by how much its sum grew.
    """

    kind: Literal["runner.scrape"] = "runner.scrape"
    polls: dict[PollResult, Grown] = {}
    jobs: dict[TaskResult, Grown] = {}
    log_reports: dict[ReportResult, Grown] = {}
    state_reports: dict[ReportResult, Grown] = {}
    client_errors: dict[Method, Grown] = {}
    histograms: dict[Duration, Distribution] = {}


#: Those about one task.
OF_TASKS = (
    TaskAssigned, TaskStarted, TaskFinalizing, TaskFinished, StepFinished, LogReported,
    StateReported, OutputDropped, FlushFailed, TaskReaped,
)  # fmt: skip
EVENTS = (
    RunnerInfo, RunnerStatus, RunnerPolled, RunnerStopped, TaskAssigned, TaskStarted,
    TaskFinalizing, TaskFinished, StepFinished, LogReported, StateReported, OutputDropped,
    FlushFailed, TaskReaped, ClientFailed, RunnerScraped,
)  # fmt: skip
