"""From records to rows. Pure: bytes in, rows out, no clock, no network.

Two steps. :func:`decode` turns one record into an :class:`Item`, or raises
:class:`~topics.models.Unreadable`. :func:`build` turns the items of a batch into rows per table.
Between them lies the coalescing: a job's state contains everything known about the job, so of
several states of one job in a batch only the last is written, and nothing is lost by that. The
same holds for the versions of a window.

A job's row is versioned by its place in the log (:func:`version`), like the log itself: there the
latest record of a key is the truth, be it a state or a tombstone. ``rev`` cannot tell: it counts
the facts known, and begins anew with a job that was forgotten. One partition has one writer, so
within one life of a job a later record never knows less. The same holds for a fleet's row.

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
runners.job-states     jobs, job_transitions, job_steps, job_timings once completed, stalls
runners.windows        windows, window_conclusions
runners.samples        gauges
runners.probes         probes
runners.commands       commands
runners.outcomes       outcomes
runners.fleet-states   fleet_states
runners.telemetry      dispatch_events, pool_events, runner_events, scheduler_events,
                       reconciler_events
runners.dead-letters   dead_letters
=====================  ============================================================
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from pydantic import TypeAdapter

from sinks import job_rows, recovery_rows, telemetry_rows
from sinks.columns import Column, Columns, Row, Table
from topics import bridge, catalogue
from topics.dead_letters import SourceRecord
from topics.envelope import EARLIEST_MS, LATEST_MS
from topics.events import TELEMETRY_RECORD, Event
from topics.models import (
    DEAD_LETTER,
    DELIVERY,
    JOB_STATE,
    LIFECYCLE,
    SAMPLE,
    WINDOW,
    DeadLetter,
    Delivery,
    JobState,
    LifecycleEvent,
    Reason,
    Sample,
    Status,
    Tick,
    Unreadable,
    Window,
    WindowFamily,
)
from topics.reading import read
from topics.recovery import (
    COMMAND,
    FLEET_STATE,
    OUTCOME,
    PROBE,
    Command,
    Depth,
    FleetState,
    Outcome,
    Probe,
)

WEBHOOKS: Final = catalogue.WEBHOOKS
LIFECYCLE_EVENTS: Final = catalogue.LIFECYCLE
JOB_STATES: Final = catalogue.JOB_STATES
WINDOWS: Final = catalogue.WINDOWS
SAMPLES: Final = catalogue.SAMPLES
PROBES: Final = catalogue.PROBES
COMMANDS: Final = catalogue.COMMANDS
OUTCOMES: Final = catalogue.OUTCOMES
FLEET_STATES: Final = catalogue.FLEET_STATES
TELEMETRY: Final = catalogue.TELEMETRY
DEAD_LETTERS: Final = catalogue.DEAD_LETTERS

#: Versions from here on are places in the log. Below lie those of the first release: the ``rev``
#: of a state, and 2^63 itself for a tombstone.
_PLACES: Final = 2**63
_EPOCH_BITS: Final = 15
_OFFSET_BITS: Final = 48


def version(epoch: int, offset: int) -> int:
    """Version of the row of a job or a fleet: the later in the log, the greater. 64 bits.

    ``epoch`` counts the lives of the topic, from 1: a topic that is made anew begins at offset 0
    again. Raises ValueError beyond 32,767 lives or 2^48 records.
    """
    if not (0 <= epoch < 1 << _EPOCH_BITS and 0 <= offset < 1 << _OFFSET_BITS):
        raise ValueError(f"no version for epoch {epoch}, offset {offset}")
    return _PLACES | epoch << _OFFSET_BITS | offset


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
    items: Iterable[Item], epochs: Mapping[str, int] = MappingProxyType({})
) -> tuple[list[TableRows], list[tuple[SourceRecord, Unreadable]]]:
    """Rows of a batch per table, in the order of :data:`TABLES`, and the records that gave none.

    ``epochs`` are those of the logs of :data:`PLACED` topics (:func:`version`), 1 where it says
    nothing. Tables without rows are left out. The second list is empty unless this module has a
    fault: a record that makes it raise is set aside instead of stopping the stream.
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
            epoch = epochs.get(item.record.topic, 1)
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


class _Event(NamedTuple):
    """What a row of history is made from."""

    record: SourceRecord
    id: str
    kind: str
    version: int
    source: str
    occurred_at: int
    received_at: int
    key: str
    trace: str
    host: str
    headers: Mapping[str, str]
    payload: str | bytes
    unreadable: str


EVENTS_RAW: Final = Table(
    "events_raw",
    Columns(
        Column("topic", "record.topic"),
        Column("partition", "record.partition"),
        Column("offset", "record.offset"),
        *(Column(name) for name in _Event._fields if name != "record"),
    ),
)


def _raw(adapter: TypeAdapter[Any]) -> Callable[[SourceRecord], Item]:
    def reader(record: SourceRecord) -> Item:
        try:
            # In raw form: without its signature checked, which is the pipeline's business.
            raw = bridge.raw(record) if adapter is DELIVERY else None
            if raw is None or raw.enveloped:
                event = read(adapter, record.value)
                if isinstance(event, Delivery):
                    event = bridge.without_tokens(event)
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
    told = _Event(
        record, event.id, str(event.kind), event.version, event.source, event.occurred_at,
        event.received_at, event.key, event.trace or "", event.host, headers, payload, "",
    )  # fmt: skip
    yield EVENTS_RAW, EVENTS_RAW.row(told)


def _refused_row(
    refused: Unreadable, record: SourceRecord, epoch: int
) -> Iterable[tuple[Table, Row]]:
    # The envelope is unknown, so the broker's time stands in for both clocks.
    at = record.timestamp if EARLIEST_MS <= record.timestamp <= LATEST_MS else EARLIEST_MS
    told = _Event(
        record, f"{record.topic}:{record.partition}:{record.offset}", "", 0, "", at, at,
        _text(record.key), "", "", {}, record.value or b"", refused.reason.value,
    )  # fmt: skip
    yield EVENTS_RAW, EVENTS_RAW.row(told)


# --- runners.job-states -------------------------------------------------------------------------

JOBS: Final = job_rows.JOBS
JOB_TRANSITIONS: Final = job_rows.JOB_TRANSITIONS
JOB_TIMINGS: Final = job_rows.JOB_TIMINGS
JOB_STEPS: Final = job_rows.JOB_STEPS


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
    yield from job_rows.rows_of(state, version(epoch, record.offset))
    if not state.copied:  # as for its history
        yield from recovery_rows.stalls_of(state)


def _gone_rows(key: str, record: SourceRecord, epoch: int) -> Iterable[tuple[Table, Row]]:
    yield job_rows.row_of_forgotten(key, _gone_at(record), version(epoch, record.offset))


def _gone_at(record: SourceRecord) -> int:
    # The broker's time of the tombstone is later than that of any state before it, so the TTL
    # removes the tombstone last and no older version comes back to life.
    return record.timestamp if EARLIEST_MS <= record.timestamp <= LATEST_MS else LATEST_MS


# --- runners.windows, runners.samples -----------------------------------------------------------

#: What every row of a window says.
_WINDOW: Final = Columns(
    Column("fleet"),
    Column("size_s"),
    Column("start"),
    Column("partition"),
    Column("rev"),
    Column("closed"),
)


class _Family(NamedTuple):
    window: Window
    family: str
    of: WindowFamily


WINDOWS_TABLE: Final = Table(
    "windows",
    Columns(
        Column("family"),
        Column("occurred_at", "window.occurred_at"),
        Column("count", "of.count"),
        Column("sum_ms", "of.sum_ms"),
        Column("max_ms", "of.max_ms"),
        Column("zeros", "of.zeros"),
        Column("bins", "of.bins"),
    ),
    shared=_WINDOW,
)

WINDOW_CONCLUSIONS: Final = Table(
    "window_conclusions",
    Columns(
        *_WINDOW,
        Column("conclusions", lambda told: {k.value: n for k, n in told.conclusions.items()}),
    ),
)

GAUGES: Final = Table(
    "gauges",
    Columns(
        Column("fleet"),
        Column("status", "status.value"),
        Column("occurred_at"),
        Column("partition"),
        Column("received_at"),
        Column("count"),
        Column("oldest_ms"),
    ),
)


def _window(record: SourceRecord) -> Item:
    window = read(WINDOW, record.value)
    identity = ("window", window.fleet, window.size_s, window.start, window.partition)
    return Item(record, _window_rows, window, identity=identity, rank=window.rev)


def _window_rows(window: Window, record: SourceRecord, epoch: int) -> Iterable[tuple[Table, Row]]:
    shared = _WINDOW.values(window)
    named = [(family.value, value) for family, value in window.families.items()]
    named += [(f"stranded.{kind.value}", value) for kind, value in window.stranded.items()]
    for family, value in named:
        yield WINDOWS_TABLE, WINDOWS_TABLE.row(_Family(window, family, value), shared)
    if window.conclusions:
        yield WINDOW_CONCLUSIONS, WINDOW_CONCLUSIONS.row(window)


def _sample(record: SourceRecord) -> Item:
    return Item(record, _sample_rows, read(SAMPLE, record.value))


def _sample_rows(sample: Sample, record: SourceRecord, epoch: int) -> Iterable[tuple[Table, Row]]:
    yield GAUGES, GAUGES.row(sample)


# --- runners.probes, runners.commands, runners.outcomes, runners.fleet-states -------------------

STALLS: Final = recovery_rows.STALLS
PROBES_TABLE: Final = recovery_rows.PROBES
COMMANDS_TABLE: Final = recovery_rows.COMMANDS
OUTCOMES_TABLE: Final = recovery_rows.OUTCOMES
FLEET_STATES_TABLE: Final = recovery_rows.FLEET_STATES


def _probe(record: SourceRecord) -> Item:
    return Item(record, _probe_rows, read(PROBE, record.value))


def _probe_rows(probe: Probe, record: SourceRecord, epoch: int) -> Iterable[tuple[Table, Row]]:
    yield PROBES_TABLE, PROBES_TABLE.row(probe)


def _command(record: SourceRecord) -> Item:
    return Item(record, _command_rows, read(COMMAND, record.value), urgent=True)


def _command_rows(
    command: Command, record: SourceRecord, epoch: int
) -> Iterable[tuple[Table, Row]]:
    yield COMMANDS_TABLE, COMMANDS_TABLE.row(command)


def _outcome(record: SourceRecord) -> Item:
    return Item(record, _outcome_rows, read(OUTCOME, record.value), urgent=True)


def _outcome_rows(
    outcome: Outcome, record: SourceRecord, epoch: int
) -> Iterable[tuple[Table, Row]]:
    yield OUTCOMES_TABLE, OUTCOMES_TABLE.row(outcome)


def _fleet_state(record: SourceRecord) -> Item:
    if record.value is None:
        if not record.key:
            raise Unreadable(Reason.BAD_ENVELOPE, "a tombstone without a key deletes nothing")
        fleet = _text(record.key)
        return Item(record, _gone_fleet_rows, fleet, ("fleet", fleet), record.offset)
    state = read(FLEET_STATE, record.value)
    return Item(record, _fleet_rows, state, ("fleet", state.key), record.offset)


def _fleet_rows(state: FleetState, record: SourceRecord, epoch: int) -> Iterable[tuple[Table, Row]]:
    yield recovery_rows.row_of_fleet(state, version(epoch, record.offset))


def _gone_fleet_rows(fleet: str, record: SourceRecord, epoch: int) -> Iterable[tuple[Table, Row]]:
    place = version(epoch, record.offset)
    yield recovery_rows.row_of_forgotten_fleet(fleet, _gone_at(record), place)


# --- runners.telemetry --------------------------------------------------------------------------


def _telemetry(record: SourceRecord) -> Item:
    return Item(record, _telemetry_rows, read(TELEMETRY_RECORD, record.value))


def _telemetry_rows(
    told: Event | Depth | Tick, record: SourceRecord, epoch: int
) -> Iterable[tuple[Table, Row]]:
    if isinstance(told, Event):  # the log's own clock and the depth of queues make no rows
        yield from telemetry_rows.rows_of(told)


# --- runners.dead-letters -----------------------------------------------------------------------

DEAD_LETTERS_TABLE: Final = Table(
    "dead_letters",
    Columns(
        Column("topic"),
        Column("partition"),
        Column("offset"),
        Column("id"),
        Column("source"),
        Column("stage"),
        Column("reason", "reason.value"),
        Column("error"),
        Column("occurred_at"),
        Column("received_at"),
        Column("key"),
        Column("trace", lambda letter: letter.trace or ""),
        Column("record_key", lambda letter: letter.record_key or b""),
        Column("record_value", lambda letter: letter.record_value or b""),
        Column("record_headers"),
    ),
)


def _letter(record: SourceRecord) -> Item:
    return Item(record, _letter_rows, read(DEAD_LETTER, record.value), urgent=True)


def _letter_rows(
    letter: DeadLetter, record: SourceRecord, epoch: int
) -> Iterable[tuple[Table, Row]]:
    yield DEAD_LETTERS_TABLE, DEAD_LETTERS_TABLE.row(letter)


# --- catalogue ----------------------------------------------------------------------------------

#: Every table the sink writes, in the order in which a batch writes them: what people look at
#: first comes first, bulky history last.
TABLES: Final = (
    JOBS,
    JOB_TIMINGS,
    JOB_TRANSITIONS,
    JOB_STEPS,
    STALLS,
    COMMANDS_TABLE,
    OUTCOMES_TABLE,
    PROBES_TABLE,
    FLEET_STATES_TABLE,
    DEAD_LETTERS_TABLE,
    GAUGES,
    WINDOWS_TABLE,
    WINDOW_CONCLUSIONS,
    *telemetry_rows.TABLES.values(),
    EVENTS_RAW,
)

_READERS: Final[Mapping[str, Callable[[SourceRecord], Item]]] = {
    WEBHOOKS: _raw(DELIVERY),
    LIFECYCLE_EVENTS: _raw(LIFECYCLE),
    JOB_STATES: _job_state,
    WINDOWS: _window,
    SAMPLES: _sample,
    PROBES: _probe,
    COMMANDS: _command,
    OUTCOMES: _outcome,
    FLEET_STATES: _fleet_state,
    TELEMETRY: _telemetry,
    DEAD_LETTERS: _letter,
}

#: Every topic the sink reads.
TOPICS: Final = tuple(_READERS)

#: Of which tables each topic makes rows.
MAKES: Final[Mapping[str, tuple[str, ...]]] = {
    WEBHOOKS: (EVENTS_RAW.name,),
    LIFECYCLE_EVENTS: (EVENTS_RAW.name,),
    JOB_STATES: (
        JOBS.name,
        JOB_TIMINGS.name,
        JOB_TRANSITIONS.name,
        JOB_STEPS.name,
        STALLS.name,
    ),
    WINDOWS: (WINDOWS_TABLE.name, WINDOW_CONCLUSIONS.name),
    SAMPLES: (GAUGES.name,),
    PROBES: (PROBES_TABLE.name,),
    COMMANDS: (COMMANDS_TABLE.name,),
    OUTCOMES: (OUTCOMES_TABLE.name,),
    FLEET_STATES: (FLEET_STATES_TABLE.name,),
    TELEMETRY: tuple(table.name for table in telemetry_rows.TABLES.values()),
    DEAD_LETTERS: (DEAD_LETTERS_TABLE.name,),
}

#: Topics whose rows are versioned by their place in the log, and the table whose versions those
#: are.
PLACED: Final[Mapping[str, str]] = {
    JOB_STATES: JOBS.name,
    FLEET_STATES: FLEET_STATES_TABLE.name,
}


def _text(raw: bytes | None) -> str:
    return "" if raw is None else raw.decode("utf-8", "replace")
