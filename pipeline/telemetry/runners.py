"""Runner processes such as Gitea's act_runner: what they do, and which tasks they have. Pure.

A subject is one runner. Its tasks are keyed state: each is assigned, running or finalizing, one of
these, by what is known of it, and nobody adds or subtracts. A task is over when it finished or its
server took it; then a tombstone stays. It is over too when its runner stopped, or has started
again, after it was last mentioned. What nobody mentions for an hour is *lost*: shown as such, and
forgotten six hours after its last word. A task without any report of its state may run on a host
that does not report it: it has four hours, and an act_runner ends a task itself after three.

A runner that is scraped (``runner.scrape``) has no tasks here: of it counts what it says itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from pipeline.metrics import Histogram, Level
from pipeline.telemetry import runner_metrics as metrics
from pipeline.telemetry.subject import (
    FRESH_MS,
    HOUR_MS,
    KEPT_MS,
    MINUTE_MS,
    Family,
    Subject,
    earliest,
    known,
    latest,
)
from topics.events import Event
from topics.events import runners as said

#: Without a word for so long a runner with tasks is silent. Its server calls it offline then.
SILENT_MS: Final = MINUTE_MS
#: Without a report of its state for so long a task is silent.
TASK_SILENT_MS: Final = 2 * MINUTE_MS
#: Without a word for so long a task is lost; without any report of its state ever, for so long.
LOST_MS: Final = HOUR_MS
LOST_UNREPORTED_MS: Final = 4 * HOUR_MS
#: Polls in a row without a task after which a runner asks as seldom as it ever does: it doubles
#: the interval five times.
LONGEST_STREAK: Final = 6
#: By how much a runner's start may be told too late: what it says is whole seconds.
_START_MS: Final = 1_000
#: A tombstone outlives all that may be said of its task.
_OVER_KEPT_MS: Final = KEPT_MS + HOUR_MS
#: What is known of the process, and forgotten with it.
_OF_PROCESS: Final = ("heard", "info", "status", "poll", "stopped", "logs", "states", "scraped")


class Heard(Struct, frozen=True):
    """When something was last said."""

    at: int
    id: str


class Info(Struct, frozen=True, omit_defaults=True):
    """What a runner is."""

    at: int
    id: str
    name: str = ""
    version: str = ""
    capacity: int | None = None
    labels: tuple[str, ...] = ()
    ephemeral: bool = False


class Status(Struct, frozen=True, omit_defaults=True):
    """How a runner is. None: not known."""

    at: int
    id: str
    uptime: int | None = None
    capacity: int | None = None
    running: int | None = None
    backoff: int | None = None
    rows: int | None = None
    since: int | None = None
    ready: bool | None = None
    reason: str = ""

    @property
    def started(self) -> int | None:
        """When its process did, in ms."""
        return None if self.uptime is None else self.at - self.uptime


class Poll(Struct, frozen=True):
    """The latest poll."""

    at: int
    id: str
    result: str
    empty: int
    errors: int

    @property
    def stuck(self) -> bool:
        """It fails, and is made as seldom as it ever is."""
        failed = self.result == said.PollResult.ERROR and self.errors > 0
        return failed and max(self.empty, self.errors) >= LONGEST_STREAK


class Stopped(Struct, frozen=True):
    """The latest end of the process."""

    at: int
    id: str
    reason: str
    forced: bool


class Buffer(Struct, frozen=True):
    """What the latest log report of a task left."""

    at: int
    id: str
    rows: int
    since: int | None


class Task(Struct, frozen=True, omit_defaults=True):
    """A task that is not known to be over: its milestones, when it was last mentioned, when a
    report of its state last succeeded."""

    word: int
    assigned: int | None = None
    started: int | None = None
    finalizing: int | None = None
    reported: int | None = None
    buffer: Buffer | None = None
    job_id: str = ""

    @property
    def state(self) -> str:
        """Where it is. Exactly one of these."""
        if self.finalizing is not None:
            return "finalizing"
        return "assigned" if self.started is None else "running"

    @property
    def begun(self) -> int:
        """The earliest that is known of it."""
        return earliest(self.assigned, self.started, self.finalizing) or self.word

    def is_lost(self, clock: int) -> bool:
        """Whether nobody has mentioned it for too long."""
        bound = LOST_UNREPORTED_MS if self.reported is None else LOST_MS
        return clock - self.word > bound


class Over(Struct, frozen=True):
    """A task that is over, by the latest word of that."""

    at: int


# -- events ----------------------------------------------------------------------------------------


def apply(subject: Subject, event: Event) -> None:
    """See :attr:`Family.apply`."""
    if not isinstance(event, said.TaskAssigned | said.TaskReaped):
        # These are the server's words.
        _keep(subject, "heard", Heard(event.occurred_at, event.id))
    if isinstance(event, said.OF_TASKS):
        _on_task(subject, event)
    else:
        _on_runner(subject, event)
    _count(subject, event)


def _keep(subject: Subject, part: str, thing: Any) -> None:
    subject.put(part, latest(subject.get(part), thing))


def _on_runner(subject: Subject, event: Event) -> None:
    at, id_ = event.occurred_at, event.id
    if isinstance(event, said.RunnerInfo):
        _keep(subject, "info", Info(at, id_, event.name, event.runner_version, event.capacity,
                                    event.labels, event.ephemeral))  # fmt: skip
    elif isinstance(event, said.RunnerStatus):
        _keep(subject, "status", Status(at, id_, event.uptime_ms, event.capacity, event.running,
                                        event.backoff_ms, event.buffer_rows, event.buffer_since,
                                        event.ready, event.ready_reason))  # fmt: skip
    elif isinstance(event, said.RunnerPolled):
        poll = Poll(at, id_, event.result.value, event.consecutive_empty, event.consecutive_errors)
        _keep(subject, "poll", poll)
    elif isinstance(event, said.RunnerStopped):
        _keep(subject, "stopped", Stopped(at, id_, event.reason, event.forced))
    elif isinstance(event, said.RunnerScraped):
        _keep(subject, "scraped", Heard(at, id_))


def _on_task(subject: Subject, event: Any) -> None:
    name, at = event.task_id, event.occurred_at
    if isinstance(event, said.LogReported):
        _keep(subject, "logs", Heard(at, event.id))
    elif isinstance(event, said.StateReported):
        _keep(subject, "states", Heard(at, event.id))
    over: Over | None = subject.get("over", name)
    if isinstance(event, said.TaskFinished | said.TaskReaped):
        over = Over(at if over is None else max(over.at, at))
        subject.put("over", over, name)
    if over is None:
        subject.put("tasks", _mentioned(subject.get("tasks", name), event), name)
    else:
        subject.drop("tasks", name)


def _mentioned(task: Task | None, event: Any) -> Task:
    """A task joined with what an event says of it."""
    at = event.occurred_at
    task = Task(at) if task is None else replace(task, word=max(task.word, at))
    if isinstance(event, said.TaskAssigned):
        job_id = max(task.job_id, event.job_id)
        return replace(task, assigned=earliest(task.assigned, at), job_id=job_id)
    # All else is said of one that has begun.
    task = replace(task, started=earliest(task.started, at))
    if isinstance(event, said.TaskStarted):
        return replace(task, job_id=max(task.job_id, event.job_id))
    closing = getattr(event, "trigger", None) is said.Trigger.CLOSE
    if closing or isinstance(event, said.TaskFinalizing | said.FlushFailed):
        task = replace(task, finalizing=earliest(task.finalizing, at))
    if isinstance(event, said.StateReported) and event.result is said.ReportResult.SUCCESS:
        task = replace(task, reported=max(task.reported or at, at))
    if isinstance(event, said.LogReported):
        buffer = Buffer(at, event.id, event.rows_left, event.oldest_since)
        task = replace(task, buffer=latest(task.buffer, buffer))
    return task


# -- what is counted -------------------------------------------------------------------------------


def _count(subject: Subject, event: Event) -> None:
    if isinstance(event, said.RunnerPolled):
        subject.note(metrics.POLLS, event.result.value)
        if event.result is not said.PollResult.TIMEOUT:
            _took(subject, metrics.POLL_SECONDS, (), event.duration_ms)
    elif isinstance(event, said.LogReported | said.StateReported):
        _count_report(subject, event)
    elif isinstance(event, said.TaskFinished):
        subject.note(metrics.TASKS, event.result.value)
        _took(subject, metrics.TASK_SECONDS, (), event.duration_ms)
        _took(subject, metrics.RESULT_SECONDS, (event.result.value,), event.duration_ms)
        _took(subject, metrics.FLUSH_SECONDS, (), event.flush_ms)
    elif isinstance(event, said.StepFinished):
        subject.note(metrics.STEPS, event.result.value)
    elif isinstance(event, said.ClientFailed):
        subject.note(metrics.CLIENT_ERRORS, event.method.value)
    elif isinstance(event, said.RunnerScraped):
        _count_scraped(subject, event)
    elif isinstance(event, said.TaskReaped):
        subject.note(metrics.REAPED, event.sweep.value)
    elif isinstance(event, said.OutputDropped):
        subject.note(metrics.OUTPUTS_DROPPED, event.reason)
    elif isinstance(event, said.FlushFailed):
        subject.note(metrics.FLUSH_FAILED, event.method.value)
        subject.note(metrics.ROWS_LOST, value=event.rows_lost)
    elif isinstance(event, said.RunnerStopped):
        subject.note(metrics.STOPS, "forced" if event.forced else "orderly")


def _took(
    subject: Subject, metric: Histogram[Any], labels: tuple[str, ...], ms: int | None
) -> None:
    if ms is not None:
        subject.note(metric, *labels, value=ms / 1000)


def _count_report(subject: Subject, event: said.LogReported | said.StateReported) -> None:
    result, trigger = event.result.value, event.trigger.value
    if isinstance(event, said.LogReported):
        subject.note(metrics.LOG_REPORTS, result)
        subject.note(metrics.TRIGGERS, "log", trigger)
        _took(subject, metrics.LOG_SECONDS, (result,), event.duration_ms)
        if event.result is said.ReportResult.SUCCESS:
            subject.note(metrics.LOG_ROWS, value=event.rows)
    else:
        subject.note(metrics.STATE_REPORTS, result)
        subject.note(metrics.TRIGGERS, "state", trigger)
        _took(subject, metrics.STATE_SECONDS, (result,), event.duration_ms)


#: Where a runner's own histograms count, and the labels behind the fleet.
_SCRAPED: Final[Mapping[said.Duration, tuple[Histogram[Any], tuple[str, ...]]]] = {
    "poll": (metrics.POLL_SECONDS, ()),
    "job": (metrics.TASK_SECONDS, ()),
    "log": (metrics.LOG_SECONDS, (metrics.UNKNOWN,)),
    "state": (metrics.STATE_SECONDS, (metrics.UNKNOWN,)),
}


def _count_scraped(subject: Subject, event: said.RunnerScraped) -> None:
    for metric, grown in (
        (metrics.POLLS, event.polls),
        (metrics.TASKS, event.jobs),
        (metrics.LOG_REPORTS, event.log_reports),
        (metrics.STATE_REPORTS, event.state_reports),
        (metrics.CLIENT_ERRORS, event.client_errors),
    ):
        for label, number in grown.items():
            if number:
                subject.note(metric, label.value, value=number)
    for name, (bounds, numbers, total) in event.histograms.items():
        counts = {b: n for b, n in zip((*bounds, math.inf), numbers, strict=True) if n}
        if counts:
            metric_, labels = _SCRAPED[name]
            subject.note(metric_, *labels, value=total, counts=counts)


# -- how it is now ---------------------------------------------------------------------------------


def tick(subject: Subject, clock: int) -> None:
    """See :attr:`Family.tick`."""
    for name, task in list(subject.all("tasks").items()):
        if clock - task.word > KEPT_MS:
            subject.drop("tasks", name)
    for name, over in list(subject.all("over").items()):
        if clock - over.at > _OVER_KEPT_MS:
            subject.drop("over", name)
    heard: Heard | None = subject.get("heard")
    if heard is None or clock - heard.at > KEPT_MS:
        for part in _OF_PROCESS:
            subject.drop(part)


class _Look:
    """A runner at the clock's time."""

    def __init__(self, subject: Subject, clock: int) -> None:
        self.clock = clock
        self.heard: Heard | None = subject.get("heard")
        self.info: Info | None = subject.get("info")
        self.status: Status | None = subject.get("status")
        poll: Poll | None = subject.get("poll")
        self.poll = None if poll and self._is_before_start(poll.at) else poll
        self.stopped: Stopped | None = subject.get("stopped")
        self.has_stopped = (
            self.stopped is not None and self.heard is not None and self.stopped.at >= self.heard.at
        )
        self.alive = not self.has_stopped and self._is_fresh(self.heard)
        #: What it said of itself, while that is fresh.
        self.now = self.status if self.alive and self._is_fresh(self.status) else None
        self.scraped = self.alive and self._is_fresh(subject.get("scraped"))
        self.reports_logs = subject.get("logs") is not None
        self.reports_states = subject.get("states") is not None
        #: By name: open, and those of them that nobody has mentioned for too long.
        self.tasks: dict[str, Task] = {}
        self.lost: dict[str, Task] = {}
        for name, task in subject.all("tasks").items():
            if not self._is_of_another_process(task):
                (self.lost if task.is_lost(clock) else self.tasks)[name] = task

    def _is_fresh(self, thing: Any) -> bool:
        return thing is not None and self.clock - thing.at <= FRESH_MS

    def _is_of_another_process(self, task: Task) -> bool:
        if self.stopped is not None and task.word <= self.stopped.at:
            return True
        return self._is_before_start(task.word)

    def _is_before_start(self, at: int) -> bool:
        return self.started is not None and at < self.started - _START_MS

    @property
    def started(self) -> int | None:
        """When the process did."""
        return self.status.started if self.status is not None else None

    @property
    def silent(self) -> bool:
        """It has tasks, and says nothing."""
        if not self.tasks:
            return False
        heard = self.heard.at if self.heard else max(each.word for each in self.tasks.values())
        return self.clock - heard > SILENT_MS

    @property
    def capacity(self) -> int | None:
        """How many tasks it may have."""
        told = self.now.capacity if self.now is not None else None
        return self.info.capacity if told is None and self.info is not None else told

    @property
    def backoff(self) -> float | None:
        """Seconds from poll to poll."""
        now, poll = self.now, self.poll
        if now is None or now.backoff is None:
            return None
        got = poll is not None and poll.result == said.PollResult.TASK and poll.at > now.at
        return 0.0 if got else now.backoff / 1000

    @property
    def unregistered(self) -> bool | None:
        """Whether its server does not know it any more; None when it did not ask."""
        stopped, poll = self.stopped, self.poll
        if self.has_stopped and stopped is not None and stopped.reason == "unregistered":
            return self.clock - stopped.at <= HOUR_MS
        if poll is not None and poll.result == said.PollResult.UNAUTHENTICATED:
            return self.clock - poll.at <= HOUR_MS
        return False if self.alive and poll is not None else None

    def unreported(self, task: Task) -> int | None:
        """For how long a task's state has not been reported; None when nobody waits for that."""
        if task.started is None or not self.reports_states:
            return None
        return self.clock - max(task.reported or 0, task.started)

    @property
    def silent_tasks(self) -> int:
        """Those whose state should have been reported."""
        waits = (self.unreported(task) for task in self.tasks.values())
        return sum(wait is not None and wait > TASK_SILENT_MS for wait in waits)

    @property
    def buffer(self) -> tuple[int | None, int | None]:
        """Log rows that wait, and since when the oldest does; None: not known."""
        if self.now is not None and self.now.rows is not None:
            return self.now.rows, self.now.since
        if not self.alive or not self.reports_logs:
            return None, None
        left = [each.buffer for each in self.tasks.values() if each.buffer and each.buffer.rows]
        return sum(each.rows for each in left), earliest(*(each.since for each in left))

    def states(self) -> dict[str, int]:
        """Tasks by state."""
        found = dict.fromkeys(metrics.STATES, 0)
        for task in self.tasks.values():
            found[task.state] += 1
        found["lost"] = len(self.lost)
        if self.scraped and not self.tasks and self.now is not None:
            found["running"] = self.now.running or 0
        return found


def levels(subject: Subject, clock: int) -> Iterator[Level]:
    """See :attr:`Family.levels`."""
    look, fleet = _Look(subject, clock), (subject.fleet,)
    if look.unregistered is not None:
        yield metrics.UNREGISTERED, fleet, int(look.unregistered)
    has_just_stopped = look.has_stopped and look.heard and clock - look.heard.at <= FRESH_MS
    if look.alive or has_just_stopped:
        yield metrics.KNOWN, fleet, int(look.alive)
        yield from known([(metrics.CAPACITY, fleet, look.capacity if look.alive else 0)])
    if look.alive or has_just_stopped or look.tasks or look.lost:
        for state, number in look.states().items():
            yield metrics.OPEN, (*fleet, state), number
        yield metrics.SILENT, fleet, int(look.silent)
        oldest = max((clock - each.begun for each in look.tasks.values()), default=0)
        yield metrics.OPEN_OLDEST, fleet, max(0, oldest) / 1000
        if look.reports_states:
            yield metrics.TASKS_SILENT, fleet, look.silent_tasks
    if look.alive:
        yield from _of_process(look, fleet)


def _of_process(look: _Look, fleet: tuple[str]) -> Iterator[Level]:
    clock, now, started = look.clock, look.now, look.started
    if started is not None:
        yield metrics.UPTIME, fleet, max(0, clock - started) / 1000
        yield metrics.STARTED, fleet, started / 1000
    if look.poll is not None:
        stuck = look.poll.stuck and clock - look.poll.at <= FRESH_MS
        yield metrics.POLLS_STUCK, fleet, int(stuck)
    if now is not None and now.ready is not None:
        yield metrics.NOT_READY, fleet, int(not now.ready)
    yield from known([(metrics.BACKOFF, fleet, look.backoff)])
    rows, since = look.buffer
    if rows is not None:
        yield metrics.BUFFER_ROWS, fleet, rows
        yield metrics.BUFFER_MOST, fleet, rows
        if since is not None or not rows:
            age = 0 if since is None else max(0, clock - since)
            yield metrics.BUFFER_OLDEST, fleet, age / 1000 if rows else 0


def view(subject: Subject, clock: int) -> dict[str, Any]:
    """See :attr:`Family.view`. Times in ms; None for what nobody knows."""
    look = _Look(subject, clock)
    rows, since = look.buffer
    return {
        "runner": look.info.name if look.info and look.info.name else subject.name,
        "version": look.info.version if look.info else "",
        "labels": list(look.info.labels) if look.info else [],
        "alive": look.alive,
        "heard_at": look.heard.at if look.heard else None,
        "started_at": look.started,
        "stopped_at": look.stopped.at if look.stopped and look.has_stopped else None,
        "ready": look.now.ready if look.now else None,
        "capacity": look.capacity,
        "silent": look.silent,
        "unregistered": look.unregistered,
        "backoff_s": look.backoff,
        "last_poll": look.poll.result if look.poll else None,
        "buffer_rows": rows,
        "buffer_since": since,
        "tasks": {
            name: {
                "state": "lost" if name in look.lost else task.state,
                "job_id": task.job_id or None,
                "since": task.begun,
                "mentioned_at": task.word,
                "reported_at": task.reported,
                "rows_left": task.buffer.rows if task.buffer else None,
            }
            for name, task in sorted({**look.tasks, **look.lost}.items())
        },
        **look.states(),
    }


FAMILY: Final = Family(
    name="runners",
    parts={
        "heard": Heard, "info": Info, "status": Status, "poll": Poll, "stopped": Stopped,
        "logs": Heard, "states": Heard, "scraped": Heard, "tasks": Task, "over": Over,
    },
    metrics=metrics.METRICS,
    apply=apply,
    levels=levels,
    view=view,
    tick=tick,
)  # fmt: skip
