"""From records to rows. Pure: bytes in, rows out, no clock, no network.

Two steps. :func:`decode` turns one record into an :class:`Item`, or raises
:class:`~topics.models.Unreadable`. :func:`build` turns the items of a batch into rows per table.
Between them lies the coalescing: a job's state contains everything known about the job, so of
several states of one job in a batch only the last is written, and nothing is lost by that. The
same holds for the versions of a window.

A job's row is versioned by its place in the log (:func:`version`), like the log itself: there the
latest record of a key is the truth, be it a state or a tombstone. ``rev`` cannot tell: it counts
the facts known, and begins anew with a job that was forgotten. One partition has one writer, so
within one life of a job a later record never knows less.

Everything is validated by pydantic. A faster parser would save 6 of the 50 to 120 microseconds
that a record costs in all (10 against 4 for a job state of 2 kB) and would let a wrong type
through to the driver, where one bad value fails a whole batch.

A record whose row ClickHouse refuses becomes a dead letter; if it had displaced an older state of
the same job in its batch, that older state is not written either. The next state heals it.

=====================  ============================================================
topic                  tables
=====================  ============================================================
runners.webhooks       events_raw
runners.lifecycle      events_raw
runners.job-states     jobs, job_transitions, and job_timings once completed
runners.windows        windows, window_conclusions
runners.samples        gauges
runners.dead-letters   dead_letters
=====================  ============================================================
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pydantic import TypeAdapter

from topics import bridge, catalogue
from topics.dead_letters import SourceRecord
from topics.models import (
    DEAD_LETTER,
    DELIVERY,
    EARLIEST_MS,
    JOB_STATE,
    LATEST_MS,
    LIFECYCLE,
    SAMPLE,
    WINDOW,
    DeadLetter,
    Delivery,
    Family,
    JobState,
    LifecycleEvent,
    Milestone,
    Reason,
    Sample,
    Status,
    Timing,
    Unreadable,
    Window,
)
from topics.reading import read

WEBHOOKS: Final = catalogue.WEBHOOKS
LIFECYCLE_EVENTS: Final = catalogue.LIFECYCLE
JOB_STATES: Final = catalogue.JOB_STATES
WINDOWS: Final = catalogue.WINDOWS
SAMPLES: Final = catalogue.SAMPLES
DEAD_LETTERS: Final = catalogue.DEAD_LETTERS

#: Versions from here on are places in the log. Below lie those of the first release: the ``rev``
#: of a state, and 2^63 itself for a tombstone.
_PLACES: Final = 2**63
_EPOCH_BITS: Final = 15
_OFFSET_BITS: Final = 48


def version(epoch: int, offset: int) -> int:
    """Version of a job's row: the later in the log, the greater. 64 bits.

    ``epoch`` counts the lives of the topic, from 1: a topic that is made anew begins at offset 0
    again. Raises ValueError beyond 32,767 lives or 2^48 records.
    """
    if not (0 <= epoch < 1 << _EPOCH_BITS and 0 <= offset < 1 << _OFFSET_BITS):
        raise ValueError(f"no version for epoch {epoch}, offset {offset}")
    return _PLACES | epoch << _OFFSET_BITS | offset


class Table(NamedTuple):
    """A table and the columns that are written, in the order of the row tuples."""

    name: str
    columns: tuple[str, ...]


Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """A record that was understood.

    ``identity`` and ``rank`` coalesce: of the items with the same identity only the one with the
    highest rank is written (the later one on a tie). None means that every item counts.
    """

    record: SourceRecord
    #: Makes rows of the model, the record, and the epoch of the record's log.
    make: Callable[[Any, SourceRecord, int], Iterable[tuple[Table, Row]]]
    model: Any
    identity: Hashable = None
    rank: int = 0
    #: What has this identity ends here: what follows is told apart from it.
    ends: Hashable = None
    #: An operator waits for this one: a job that ended, a record that could not be handled.
    urgent: bool = False


@dataclass(slots=True)
class TableRows:
    """Rows of one table; ``origins`` holds for each row the record it was made from."""

    table: Table
    rows: list[Row] = field(default_factory=list)
    origins: list[SourceRecord] = field(default_factory=list)


def decode(record: SourceRecord) -> Item:
    """Understand one record.

    Raises Unreadable when it cannot be understood, except on the raw topics: history keeps those
    too, with the reason in ``unreadable`` (the pipeline itself writes their dead letter).
    Raises KeyError for a topic that the sink does not know, which is a fault of the program.
    """
    return _READERS[record.topic](record)


def build(
    items: Iterable[Item], epoch: int = 1
) -> tuple[list[TableRows], list[tuple[SourceRecord, Unreadable]]]:
    """Rows of a batch per table, in the order of :data:`TABLES`, and the records that gave none.

    ``epoch`` is the one of the log of job states (:func:`version`). Tables without rows are left
    out. The second list is empty unless this module has a fault: a record that makes it raise is
    set aside instead of stopping the stream.
    """
    chosen: dict[Hashable, Item] = {}
    ended: dict[Hashable, int] = {}
    for index, item in enumerate(items):
        name = item.identity if item.identity is not None else index
        if name in ended:
            name = (name, ended[name])
        if item.ends is not None:
            ended[item.ends] = ended.get(item.ends, 0) + 1
        before = chosen.get(name)
        if before is None or item.rank >= before.rank:
            chosen[name] = item
    tables = {table.name: TableRows(table) for table in TABLES}
    failed: list[tuple[SourceRecord, Unreadable]] = []
    for item in chosen.values():
        try:
            made = list(item.make(item.model, item.record, epoch))
        except Exception as error:
            text = f"no rows from it: {type(error).__name__}: {error}"
            failed.append((item.record, Unreadable(Reason.UNEXPECTED, text)))
            continue
        for table, row in made:
            rows = tables[table.name]
            rows.rows.append(row)
            rows.origins.append(item.record)
    return [rows for rows in tables.values() if rows.rows], failed


# --- runners.webhooks, runners.lifecycle --------------------------------------------------------

EVENTS_RAW: Final = Table(
    "events_raw",
    (
        "topic", "partition", "offset", "id", "kind", "version", "source", "occurred_at",
        "received_at", "key", "trace", "host", "headers", "payload", "unreadable",
    ),
)  # fmt: skip


def _raw(adapter: TypeAdapter[Any]) -> Callable[[SourceRecord], Item]:
    def reader(record: SourceRecord) -> Item:
        try:
            # In raw form: without its signature checked, which is the pipeline's business.
            raw = bridge.raw(record) if adapter is DELIVERY else None
            if raw is None or raw.enveloped:
                event = read(adapter, record.value)
            else:
                event = bridge.delivery(raw)
        except Unreadable as refused:
            return Item(record, _refused_row, refused)
        return Item(record, _event_row, event)

    return reader


def _event_row(
    event: Delivery | LifecycleEvent, record: SourceRecord, epoch: int
) -> Iterable[tuple[Table, Row]]:
    if isinstance(event, Delivery):
        headers: Mapping[str, str] = event.headers
        payload: str | bytes = event.payload
    else:
        headers = {}
        payload = record.value or b""
    yield (
        EVENTS_RAW,
        (
            record.topic, record.partition, record.offset, event.id, str(event.kind),
            event.version, event.source, event.occurred_at, event.received_at, event.key,
            event.trace or "", event.host, headers, payload, "",
        ),
    )  # fmt: skip


def _refused_row(
    refused: Unreadable, record: SourceRecord, epoch: int
) -> Iterable[tuple[Table, Row]]:
    # The envelope is unknown, so the broker's time stands in for both clocks.
    at = record.timestamp if EARLIEST_MS <= record.timestamp <= LATEST_MS else EARLIEST_MS
    yield (
        EVENTS_RAW,
        (
            record.topic, record.partition, record.offset,
            f"{record.topic}:{record.partition}:{record.offset}", "", 0, "", at, at,
            _text(record.key), "", "", {}, record.value or b"", refused.reason.value,
        ),
    )  # fmt: skip


# --- runners.job-states -------------------------------------------------------------------------

JOBS: Final = Table(
    "jobs",
    (
        "key", "rev", "facts", "deleted", "occurred_at", "received_at", "provider", "host",
        "job_id", "status", "since", "fleet", "conclusion", "run_id", "run_attempt", "repo",
        "workflow", "name", "branch", "sha", "url", "labels", "pool", "runner_id", "runner_name",
        "runner_group", "waiting_at", "queued_at", "claimed_at", "minted_at", "started_at",
        "completed_at", "gated_ms", "abandoned_ms", "copied", "queue_ms", "claim_to_start_ms",
        "run_ms", "total_ms", "claims", "run_started_at", "run_completed_at", "run_conclusion",
        "causes",
    ),
)  # fmt: skip

JOB_TRANSITIONS: Final = Table(
    "job_transitions",
    (
        "key", "status", "claim", "rev", "at", "clock", "cause", "runner", "fleet", "repo",
        "received_at",
    ),
)  # fmt: skip

JOB_TIMINGS: Final = Table(
    "job_timings",
    (
        "key", "rev", "occurred_at", "received_at", "provider", "host", "job_id", "fleet",
        "conclusion", "run_id", "run_attempt", "repo", "workflow", "name", "branch", "labels",
        "runner_name", "runner_group", "copied", "claims", "queued_at", "claimed_at",
        "started_at", "completed_at", "gated_ms", "abandoned_ms",
        *(
            f"{family.value}_{part}"
            for family in (Family.QUEUE, Family.CLAIM_TO_START, Family.RUN, Family.TOTAL)
            for part in ("ms", "missing", "start_clock", "end_clock", "clamped_ms")
        ),
    ),
)  # fmt: skip

#: Stands in for a timing that the record does not mention.
_NO_TIMING: Final = Timing(missing="not_reported")

#: What the end of a claim is called among the transitions. It is no status: where the job falls
#: back to follows from its other facts.
RELEASED: Final = "released"


def _job_state(record: SourceRecord) -> Item:
    if record.value is None:
        if not record.key:
            raise Unreadable(Reason.BAD_ENVELOPE, "a tombstone without a key deletes nothing")
        key = _text(record.key)
        # Not the identity of the states: after a long pause the last state and the tombstone meet
        # in one batch, and the state still has history to write. So has one that follows.
        return Item(record, _gone_rows, key, ("gone", key), record.offset, ends=("job", key))
    state = read(JOB_STATE, record.value)
    return Item(
        record,
        _job_rows,
        state,
        identity=("job", state.key),
        rank=record.offset,
        urgent=state.status is Status.COMPLETED,
    )


def _job_rows(state: JobState, record: SourceRecord, epoch: int) -> Iterable[tuple[Table, Row]]:
    job, run = state.job, state.run
    runner_name = state.runner.name if state.runner else ""
    runner_group = (state.runner.group if state.runner else "") or job.runner_group
    conclusion = state.conclusion.value if state.conclusion else ""
    timings = state.timings
    queue = timings.get(Family.QUEUE, _NO_TIMING)
    claim_to_start = timings.get(Family.CLAIM_TO_START, _NO_TIMING)
    run_time = timings.get(Family.RUN, _NO_TIMING)
    total = timings.get(Family.TOTAL, _NO_TIMING)
    yield (
        JOBS,
        (
            state.key, version(epoch, record.offset), state.rev, 0, state.occurred_at,
            state.received_at, state.provider, state.host, state.job_id, state.status.value,
            state.since, state.fleet, conclusion,
            job.run_id, job.run_attempt, job.repo, job.workflow, job.name, job.branch, job.sha,
            job.url, job.labels, job.pool, state.runner.id if state.runner else None,
            runner_name, runner_group, state.waiting_at, state.queued_at, state.claimed_at,
            state.minted_at, state.started_at, state.completed_at, state.gated_ms,
            state.abandoned_ms, state.copied, queue.ms, claim_to_start.ms, run_time.ms, total.ms,
            tuple(state.claims), run.started_at if run else None,
            run.completed_at if run else None,
            run.conclusion.value if run and run.conclusion else "", state.causes,
        ),
    )  # fmt: skip
    if not state.copied:  # a copy happened elsewhere and counts nowhere
        yield from _transitions(state, conclusion, runner_name)
    if state.status is Status.COMPLETED:
        yield (
            JOB_TIMINGS,
            (
                state.key, state.rev, state.occurred_at, state.received_at, state.provider,
                state.host, state.job_id, state.fleet, conclusion, job.run_id, job.run_attempt,
                job.repo, job.workflow, job.name, job.branch, job.labels, runner_name,
                runner_group, state.copied, len(state.claims), state.queued_at, state.claimed_at,
                state.started_at, state.completed_at, state.gated_ms, state.abandoned_ms,
                *_timing(queue), *_timing(claim_to_start), *_timing(run_time), *_timing(total),
            ),
        )  # fmt: skip


def _timing(timing: Timing) -> Row:
    return (
        timing.ms,
        "" if timing.ms is not None else (timing.missing or "unknown"),
        timing.start_clock.value if timing.start_clock else "",
        timing.end_clock.value if timing.end_clock else "",
        timing.clamped_ms,
    )


def _transitions(state: JobState, conclusion: str, runner_name: str) -> Iterable[tuple[Table, Row]]:
    def row(
        status: str, at: int, clock: str, claim: str = "", cause: str = "", runner: str = ""
    ) -> tuple[Table, Row]:
        return JOB_TRANSITIONS, (
            state.key, status, claim, state.rev, at, clock, cause, runner, state.fleet,
            state.job.repo, state.received_at,
        )  # fmt: skip

    def clock(milestone: Milestone, at: int) -> str:
        for name, said in state.times.get(milestone, {}).items():
            if said == at:
                return name.value
        return ""

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
        yield row("running", state.started_at, started, runner=runner_name)
    if state.completed_at is not None:
        completed = clock(Milestone.COMPLETED, state.completed_at)
        yield row("completed", state.completed_at, completed, "", conclusion, runner_name)


def _gone_rows(key: str, record: SourceRecord, epoch: int) -> Iterable[tuple[Table, Row]]:
    # The broker's time of the tombstone is later than that of any state before it, so the TTL
    # removes the tombstone last and no older version comes back to life.
    at = record.timestamp if EARLIEST_MS <= record.timestamp <= LATEST_MS else LATEST_MS
    blank: dict[str, Any] = {"key": key, "rev": version(epoch, record.offset), "deleted": 1}
    blank |= {"occurred_at": at, "received_at": at}
    yield JOBS, tuple(blank.get(column, _BLANK.get(column, "")) for column in JOBS.columns)


#: Values of a deleted job's columns that are not text.
_BLANK: Final[Mapping[str, Any]] = {
    **dict.fromkeys(("facts", "run_id", "run_attempt", "gated_ms", "copied"), 0),
    **dict.fromkeys(("labels", "claims", "causes"), ()),
    **dict.fromkeys(
        (
            "since", "runner_id", "waiting_at", "queued_at", "claimed_at", "minted_at",
            "started_at", "completed_at", "abandoned_ms", "queue_ms", "claim_to_start_ms",
            "run_ms", "total_ms", "run_started_at", "run_completed_at",
        )
    ),
}  # fmt: skip


# --- runners.windows, runners.samples -----------------------------------------------------------

WINDOWS_TABLE: Final = Table(
    "windows",
    (
        "fleet", "size_s", "start", "partition", "family", "rev", "closed", "occurred_at",
        "count", "sum_ms", "max_ms", "zeros", "bins",
    ),
)  # fmt: skip

WINDOW_CONCLUSIONS: Final = Table(
    "window_conclusions",
    ("fleet", "size_s", "start", "partition", "rev", "closed", "conclusions"),
)

GAUGES: Final = Table(
    "gauges",
    ("fleet", "status", "occurred_at", "partition", "received_at", "count", "oldest_ms"),
)


def _window(record: SourceRecord) -> Item:
    window = read(WINDOW, record.value)
    identity = ("window", window.fleet, window.size_s, window.start, window.partition)
    return Item(record, _window_rows, window, identity=identity, rank=window.rev)


def _window_rows(window: Window, record: SourceRecord, epoch: int) -> Iterable[tuple[Table, Row]]:
    for family, value in window.families.items():
        yield (
            WINDOWS_TABLE,
            (
                window.fleet, window.size_s, window.start, window.partition, family.value,
                window.rev, window.closed, window.occurred_at, value.count, value.sum_ms,
                value.max_ms, value.zeros, value.bins,
            ),
        )  # fmt: skip
    if window.conclusions:
        conclusions = {name.value: number for name, number in window.conclusions.items()}
        yield (
            WINDOW_CONCLUSIONS,
            (
                window.fleet, window.size_s, window.start, window.partition, window.rev,
                window.closed, conclusions,
            ),
        )  # fmt: skip


def _sample(record: SourceRecord) -> Item:
    return Item(record, _sample_rows, read(SAMPLE, record.value))


def _sample_rows(sample: Sample, record: SourceRecord, epoch: int) -> Iterable[tuple[Table, Row]]:
    yield (
        GAUGES,
        (
            sample.fleet, sample.status.value, sample.occurred_at, sample.partition,
            sample.received_at, sample.count, sample.oldest_ms,
        ),
    )  # fmt: skip


# --- runners.dead-letters -----------------------------------------------------------------------

DEAD_LETTERS_TABLE: Final = Table(
    "dead_letters",
    (
        "topic", "partition", "offset", "id", "source", "stage", "reason", "error",
        "occurred_at", "received_at", "key", "trace", "record_key", "record_value",
        "record_headers",
    ),
)  # fmt: skip


def _letter(record: SourceRecord) -> Item:
    return Item(record, _letter_rows, read(DEAD_LETTER, record.value), urgent=True)


def _letter_rows(
    letter: DeadLetter, record: SourceRecord, epoch: int
) -> Iterable[tuple[Table, Row]]:
    yield (
        DEAD_LETTERS_TABLE,
        (
            letter.topic, letter.partition, letter.offset, letter.id, letter.source, letter.stage,
            letter.reason.value, letter.error, letter.occurred_at, letter.received_at, letter.key,
            letter.trace or "", letter.record_key or b"", letter.record_value or b"",
            letter.record_headers,
        ),
    )  # fmt: skip


# --- catalogue ----------------------------------------------------------------------------------

#: Every table the sink writes, in the order in which a batch writes them: what people look at
#: first comes first, bulky history last.
TABLES: Final = (
    JOBS,
    JOB_TIMINGS,
    JOB_TRANSITIONS,
    DEAD_LETTERS_TABLE,
    GAUGES,
    WINDOWS_TABLE,
    WINDOW_CONCLUSIONS,
    EVENTS_RAW,
)

_READERS: Final[Mapping[str, Callable[[SourceRecord], Item]]] = {
    WEBHOOKS: _raw(DELIVERY),
    LIFECYCLE_EVENTS: _raw(LIFECYCLE),
    JOB_STATES: _job_state,
    WINDOWS: _window,
    SAMPLES: _sample,
    DEAD_LETTERS: _letter,
}

#: Every topic the sink reads.
TOPICS: Final = tuple(_READERS)

#: Of which tables each topic makes rows.
MAKES: Final[Mapping[str, tuple[str, ...]]] = {
    WEBHOOKS: (EVENTS_RAW.name,),
    LIFECYCLE_EVENTS: (EVENTS_RAW.name,),
    JOB_STATES: (JOBS.name, JOB_TIMINGS.name, JOB_TRANSITIONS.name),
    WINDOWS: (WINDOWS_TABLE.name, WINDOW_CONCLUSIONS.name),
    SAMPLES: (GAUGES.name,),
    DEAD_LETTERS: (DEAD_LETTERS_TABLE.name,),
}


def _text(raw: bytes | None) -> str:
    return "" if raw is None else raw.decode("utf-8", "replace")
