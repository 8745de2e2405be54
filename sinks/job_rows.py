"""The tables of a job's state: ``jobs``, ``job_timings``, ``job_transitions``, ``job_steps``. Pure.

What a job *is* stands once, in :data:`ATTRIBUTES`, for every table that has a row per job. One more
attribute is a line there, and ``ALTER TABLE`` for both tables in a migration.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from sinks.columns import Column, Columns, Given, Row, Table
from topics.envelope import EARLIEST_MS
from topics.models import (
    Clock,
    Conclusion,
    Family,
    JobAttributes,
    JobState,
    Milestone,
    ParentRun,
    RunnerRef,
    Status,
    Step,
    Timing,
)

#: What the end of a claim is called among the transitions. It is no status: where the job falls
#: back to follows from its other facts.
RELEASED: Final = "released"

#: Stand in for what a record does not mention.
_NO_TIMING: Final = Timing(missing="not_reported")
_NO_RUNNER: Final = RunnerRef()
_NO_RUN: Final = ParentRun()


class _Job(NamedTuple):
    """What the rows of one state are made from."""

    state: JobState
    job: JobAttributes
    runner: RunnerRef
    run: ParentRun
    conclusion: str
    #: Timings, by family.
    queue: Timing
    claim_to_start: Timing
    run_time: Timing
    total: Timing
    claims: tuple[str, ...]
    run_conclusion: str
    #: The group that the runner was seen in, else the one that was asked for.
    runner_group: str
    #: Version of the row of ``jobs``.
    place: int
    #: Set in the row of a tombstone.
    deleted: int = 0


def _source(state: JobState, place: int) -> _Job:
    timing = state.timings.get
    job, runner, run = state.job, state.runner or _NO_RUNNER, state.run or _NO_RUN
    return _Job(
        state,
        job,
        runner,
        run,
        _word(state.conclusion),
        timing(Family.QUEUE, _NO_TIMING),
        timing(Family.CLAIM_TO_START, _NO_TIMING),
        timing(Family.RUN, _NO_TIMING),
        timing(Family.TOTAL, _NO_TIMING),
        tuple(state.claims),
        _word(run.conclusion),
        runner.group or job.runner_group,
        place,
    )


def _word(value: Clock | Conclusion | None) -> str:
    return value.value if value is not None else ""


# --- columns ------------------------------------------------------------------------------------

#: What a job is.
ATTRIBUTES: Final = Columns(
    Column("run_id", "job.run_id"),
    Column("run_attempt", "job.run_attempt"),
    Column("repo", "job.repo"),
    Column("workflow", "job.workflow"),
    Column("name", "job.name"),
    Column("branch", "job.branch"),
    Column("sha", "job.sha"),
    Column("url", "job.url"),
    Column("labels", "job.labels"),
    Column("runner_group"),
    Column("pool", "job.pool"),
    Column("actor", "job.actor"),
    Column("trigger", "job.trigger"),
    Column("pull_request", "job.pull_request"),
    Column("head_repo", "job.head_repo"),
)

#: What is said of a job in every table that has a row per job.
_JOB: Final = Columns(
    Column("key", "state.key"),
    Column("occurred_at", "state.occurred_at"),
    Column("received_at", "state.received_at"),
    Column("provider", "state.provider"),
    Column("host", "state.host"),
    Column("job_id", "state.job_id"),
    Column("fleet", "state.fleet"),
    Column("conclusion"),
    *ATTRIBUTES,
    Column("runner_name", "runner.name"),
    Column("queued_at", "state.queued_at"),
    Column("claimed_at", "state.claimed_at"),
    Column("started_at", "state.started_at"),
    Column("completed_at", "state.completed_at"),
    Column("gated_ms", "state.gated_ms"),
    Column("abandoned_ms", "state.abandoned_ms"),
    Column("copied", "state.copied"),
)

JOBS: Final = Table(
    "jobs",
    Columns(
        Column("rev", "place"),
        Column("facts", "state.rev"),
        Column("deleted"),
        Column("status", "state.status.value"),
        Column("since", "state.since"),
        Column("runner_id", "runner.id"),
        Column("waiting_at", "state.waiting_at"),
        Column("minted_at", "state.minted_at"),
        Column("queue_ms", "queue.ms"),
        Column("claim_to_start_ms", "claim_to_start.ms"),
        Column("run_ms", "run_time.ms"),
        Column("total_ms", "total.ms"),
        Column("claims"),
        Column("run_started_at", "run.started_at"),
        Column("run_completed_at", "run.completed_at"),
        Column("run_conclusion"),
        Column("causes", "state.causes"),
    ),
    shared=_JOB,
)


def _timing(prefix: str, of: str) -> tuple[Column, ...]:
    """A timing with where it comes from, or why there is none."""

    def missing(job: _Job) -> str:
        timing: Timing = getattr(job, of)
        return "" if timing.ms is not None else (timing.missing or "unknown")

    return (
        Column(f"{prefix}_ms", f"{of}.ms"),
        Column(f"{prefix}_missing", missing),
        Column(f"{prefix}_start_clock", lambda job: _word(getattr(job, of).start_clock)),
        Column(f"{prefix}_end_clock", lambda job: _word(getattr(job, of).end_clock)),
        Column(f"{prefix}_clamped_ms", f"{of}.clamped_ms"),
    )


JOB_TIMINGS: Final = Table(
    "job_timings",
    Columns(
        Column("rev", "state.rev"),
        Column("claims", lambda job: len(job.claims)),
        *_timing("queue", "queue"),
        *_timing("claim_to_start", "claim_to_start"),
        *_timing("run", "run_time"),
        *_timing("total", "total"),
    ),
    shared=_JOB,
)

#: What a job's history says of the job in each row.
_HISTORY: Final = Columns(
    Column("key", "state.key"),
    Column("rev", "state.rev"),
    Column("fleet", "state.fleet"),
    Column("repo", "job.repo"),
    Column("received_at", "state.received_at"),
)


JOB_TRANSITIONS: Final = Table(
    "job_transitions",
    Given("status", "at", "clock", "claim", "cause", "runner"),
    shared=_HISTORY,
)


def _run_ms(step: Step) -> int | None:
    if step.started_at is None or step.completed_at is None:
        return None
    ms = step.completed_at - step.started_at
    return ms if ms >= 0 else None


#: What every step of a job says of the job.
_OF_STEPS: Final = Columns(
    *_HISTORY,
    Column("workflow", "job.workflow"),
    Column("job_name", "job.name"),
)

JOB_STEPS: Final = Table(
    "job_steps",
    Columns(
        Column("number"),
        Column("name"),
        Column("started_at"),
        Column("completed_at"),
        Column("conclusion", lambda step: _word(step.conclusion)),
        Column("run_ms", _run_ms),
    ),
    shared=_OF_STEPS,
)

# --- rows ---------------------------------------------------------------------------------------


def rows_of(state: JobState, place: int) -> list[tuple[Table, Row]]:
    """All rows of one state. ``place`` is the version of its row in ``jobs``."""
    job = _source(state, place)
    shared = _JOB.values(job)
    made = [(JOBS, JOBS.row(job, shared))]
    if not state.copied:  # a copy happened elsewhere and counts nowhere
        history = _HISTORY.values(job)
        made += [
            (JOB_TRANSITIONS, JOB_TRANSITIONS.row(each, history)) for each in _transitions(job)
        ]
        if state.steps:
            steps = _OF_STEPS.values(job)
            made += [(JOB_STEPS, JOB_STEPS.row(step, steps)) for step in state.steps]
    if state.status is Status.COMPLETED:
        made.append((JOB_TIMINGS, JOB_TIMINGS.row(job, shared)))
    return made


def _transitions(job: _Job) -> Iterable[Row]:
    """The columns of ``job_transitions`` that are its own."""

    def row(
        status: str, at: int, clock: str, claim: str = "", cause: str = "", runner: str = ""
    ) -> Row:
        return status, at, clock, claim, cause, runner

    def clock(milestone: Milestone, at: int) -> str:
        for name, said in state.times.get(milestone, {}).items():
            if said == at:
                return name.value
        return ""

    state, observed = job.state, job.runner.name
    if state.waiting_at is not None:
        yield row("waiting", state.waiting_at, clock(Milestone.WAITING, state.waiting_at))
    if state.queued_at is not None:
        yield row("queued", state.queued_at, clock(Milestone.QUEUED, state.queued_at))
    for handle, claim in state.claims.items():
        # Claims come from dispatchers and runners only, so theirs is the clock.
        if claim.claimed_at is not None:
            yield row("claimed", claim.claimed_at, "runner", handle, "", claim.runner)
        if claim.minted_at is not None:
            yield row("starting", claim.minted_at, "runner", handle, "", claim.runner)
        if claim.released_at is not None:
            yield row(RELEASED, claim.released_at, "runner", handle, claim.reason, claim.runner)
    if state.started_at is not None:
        started = clock(Milestone.STARTED, state.started_at)
        yield row("running", state.started_at, started, runner=observed)
    if state.completed_at is not None:
        completed = clock(Milestone.COMPLETED, state.completed_at)
        yield row("completed", state.completed_at, completed, "", job.conclusion, observed)


def row_of_forgotten(key: str, at: int, place: int) -> tuple[Table, Row]:
    """The row of a tombstone: hides every row of the job with a lower ``place``."""
    told = {"key": key, "rev": place, "occurred_at": at, "received_at": at}
    return JOBS, tuple((_FORGOTTEN | told).values())


#: A job of which nothing is known.
_NOTHING: Final = JobState(
    id="-", source="-", occurred_at=EARLIEST_MS, received_at=EARLIEST_MS, key="-", rev=0,
    provider="", host="", job_id="", status=Status.QUEUED, since=None, fleet="",
)  # fmt: skip
_NOBODY: Final = _source(_NOTHING, 0)
_FORGOTTEN: Final[dict[str, Any]] = {
    **dict(zip(JOBS.columns, JOBS.row(_NOBODY, _JOB.values(_NOBODY)), strict=True)),
    "deleted": 1,
    "status": "",
}
