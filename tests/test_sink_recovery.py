"""Recovery's records to rows, and the rows in their tables on a real ClickHouse."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from clickhouse_driver import Client
from hypothesis import given
from hypothesis import strategies as st

from pipeline.local import EmbeddedClickHouse
from sinks import rows, schema
from sinks.metrics import SinkMetrics
from sinks.recovery_rows import left_at
from sinks.writer import Writer
from tests.support import stuck
from tests.test_sink_rows import FakeRecord, built, job_state, on
from topics.models import ClaimState, JobState, Unreadable
from topics.recovery import Answer, Result, StallKind, StallState

#: Rows older than their table's TTL would be gone at once.
T0 = int(time.time()) // 3_600 * 3_600_000

_databases = (f"test_recovery_{number}" for number in itertools.count())


@pytest.fixture
def url(server: EmbeddedClickHouse) -> str:
    made = schema.with_database(server.url, next(_databases))
    schema.apply(made)
    return made


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with schema.connected(url) as connection:
        yield connection


def stall(kind: StallKind, since: int = T0, claim: str = "", **said: Any) -> StallState:
    return StallState(head=(since + 5_000, since, kind, claim, 1), **said)


HELD = {"h": ClaimState(claimed_at=T0, minted_at=T0 + 10, released_at=T0 + 70)}


@pytest.mark.parametrize(
    ("known", "judged", "left"),
    [
        # A claim's stall: its own release, a start, the end, whichever is first.
        ({"claims": HELD}, stall(StallKind.ORPHAN, claim="h"), T0 + 70),
        ({"claims": HELD, "started_at": T0 + 60}, stall(StallKind.ORPHAN, claim="h"), T0 + 60),
        ({"claims": HELD, "completed_at": T0 + 50}, stall(StallKind.ORPHAN, claim="h"), T0 + 50),
        ({"claims": HELD}, stall(StallKind.ORPHAN, claim="other"), None),
        ({"claims": HELD}, stall(StallKind.STALE_CLAIM, claim="h"), T0 + 10),
        ({}, stall(StallKind.DISPLACED, claim="h"), None),
        # Clocks differ: it never leaves before it has entered.
        ({"started_at": T0 - 60}, stall(StallKind.ORPHAN, claim="h"), T0),
        # It ran already when its runner was lost.
        ({"started_at": T0 - 60}, stall(StallKind.RUNNER_LOST), None),
        ({"started_at": T0 + 60}, stall(StallKind.RUNNER_LOST, claim="h"), T0 + 60),
        ({"started_at": T0 - 60, "completed_at": T0 + 90}, stall(StallKind.RUNNER_LOST), T0 + 90),
        # Queued: the next claim, not one that was released before.
        ({"claims": HELD}, stall(StallKind.STALE_QUEUE, T0 + 70), None),
        ({"claims": HELD}, stall(StallKind.STALE_QUEUE, T0 - 9), T0),
        ({"started_at": T0 + 60}, stall(StallKind.STALE_QUEUE), T0 + 60),
        # Running: told how it is, or the end.
        ({"started_at": T0}, stall(StallKind.MISSED_COMPLETION), None),
        ({"started_at": T0, "completed_at": T0 + 5}, stall(StallKind.MISSED_COMPLETION), T0 + 5),
        (
            {"started_at": T0},
            stall(StallKind.MISSED_COMPLETION, answered=(1, T0 + 9, Answer.IN_PROGRESS, "")),
            T0 + 9,
        ),
        (
            {"started_at": T0},
            stall(StallKind.MISSED_COMPLETION, answered=(1, T0 + 9, Answer.UNKNOWN, "")),
            None,
        ),
    ],
)
def test_when_a_job_left_its_wrong_state(
    known: dict[str, Any], judged: StallState, left: int | None
) -> None:
    assert left_at(job_state(**known), judged) == left


moments = st.none() | st.integers(T0 - 1_000, T0 + 1_000)


@given(
    kind=st.sampled_from(StallKind),
    claims=st.dictionaries(
        st.sampled_from(["h", "i"]),
        st.builds(ClaimState, claimed_at=moments, minted_at=moments, released_at=moments),
    ),
    started=moments,
    completed=moments,
)
def test_nobody_leaves_before_it_entered_and_all_leave_when_they_end(
    kind: StallKind, claims: dict[str, ClaimState], started: int | None, completed: int | None
) -> None:
    job = job_state(claims=claims, started_at=started, completed_at=completed)
    left = left_at(job, stall(kind, claim="h"))
    assert left is None or left >= T0
    if completed is not None:
        assert left is not None
        assert left <= max(T0, completed)


def test_a_row_per_stall() -> None:
    first, second = built(on(rows.JOB_STATES, stuck.stuck(T0, "f")))["stalls"]
    assert (first["n"], first["kind"], first["rev"], first["fleet"]) == (1, "stale_claim", 9, "f")
    assert (first["left_at"], first["stranded_ms"]) == (T0 + 9_000, 8_000)
    assert (first["asks"], first["answer"], first["withheld"]) == (0, "", "budget_tick")
    assert first["commands"] == [
        (1, "release_claim", T0 + 6_000, T0 + 60_000, "done", T0 + 8_000, "it said so"),
        (2, "", None, None, "expired", T0 + 8_500, ""),
    ]
    assert (second["left_at"], second["stranded_ms"], second["commands"]) == (None, None, [])
    assert (second["asks"], second["answer"], second["answered_at"]) == (2, "unknown", T0 + 31_000)
    copied = built(on(rows.JOB_STATES, stuck.stuck(T0, "f", copied=True)))
    assert "stalls" not in copied


def test_a_fleet_is_versioned_by_its_place_in_the_log() -> None:
    """As a tombstone is, which says no rev: the later of both counts."""
    said = on(rows.FLEET_STATES, stuck.fleet_state(T0, "f", rev=99), offset=4)
    gone = FakeRecord(rows.FLEET_STATES, None, b"f", offset=5, timestamp=T0)
    again = on(rows.FLEET_STATES, stuck.fleet_state(T0, "f", rev=1), offset=6)
    (row,) = built(said, gone)["fleet_states"]
    assert (row["fleet"], row["deleted"], row["rev"]) == ("f", 1, rows.version(1, 5))
    (row,) = built(again, said, gone)["fleet_states"]
    assert (row["deleted"], row["rev"], row["tick"]) == (0, rows.version(1, 6), 1)
    (made,), _ = rows.build([rows.decode(said)], {rows.FLEET_STATES: 2})
    assert made.rows[0][made.table.columns.index("rev")] == rows.version(2, 4)
    with pytest.raises(Unreadable):
        rows.decode(FakeRecord(rows.FLEET_STATES, None, None))


@pytest.mark.parametrize("topic", [rows.PROBES, rows.COMMANDS, rows.OUTCOMES, rows.FLEET_STATES])
@pytest.mark.parametrize("value", [b"[1", b"{}", b'{"kind":"command"}'])
def test_what_cannot_be_read_is_refused(topic: str, value: bytes) -> None:
    with pytest.raises(Unreadable):
        rows.decode(FakeRecord(topic, value))


def test_what_is_commanded_and_done_is_urgent() -> None:
    assert rows.decode(on(rows.COMMANDS, stuck.command(T0, "f"))).urgent
    assert rows.decode(on(rows.OUTCOMES, stuck.outcome(T0, "f"))).urgent


# --- on a real ClickHouse -----------------------------------------------------------------------


def written(url: str, *records: FakeRecord) -> None:
    """As the sink writes them."""
    tables, failed = rows.build([rows.decode(record) for record in records])
    assert failed == []
    writer = Writer(url, SinkMetrics())
    try:
        assert writer.write(tables, f"token-{time.monotonic_ns()}") == []
    finally:
        writer.close()


def stored(client: Client, table: str) -> list[dict[str, Any]]:
    """The rows of a table, times as milliseconds."""
    found, columns = client.execute(f"SELECT * FROM {table} FINAL", with_column_types=True)
    return [{name: plain(value) for (name, _), value in zip(columns, row, strict=True)}
            for row in found]  # fmt: skip


def plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return round(value.replace(tzinfo=value.tzinfo or UTC).timestamp() * 1_000)
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value


def everything(at: int = T0) -> list[FakeRecord]:
    return [
        on(rows.JOB_STATES, stuck.stuck(at, "f")),
        on(rows.PROBES, stuck.probe(at, "f")),
        on(rows.COMMANDS, stuck.command(at, "f")),
        on(rows.OUTCOMES, stuck.outcome(at, "f", None)),
        on(rows.OUTCOMES, stuck.outcome(at + 5, "f")),
        on(rows.FLEET_STATES, stuck.fleet_state(at, "f")),
    ]


TABLES = ("stalls", "probes", "commands", "outcomes", "fleet_states")


def test_what_is_written_is_what_is_stored(url: str, client: Client) -> None:
    """Every column of every table; and once more changes nothing."""
    wanted = built(*everything())
    for _ in range(2):
        written(url, *everything())
        for table in TABLES:
            found = stored(client, table)
            assert sorted(found, key=repr) == sorted(
                ({name: row[name] for name in found[0]} for row in wanted[table]), key=repr
            ), table
    assert len(wanted["stalls"]) == len(wanted["outcomes"]) == 2


def test_what_is_told_later_replaces(url: str, client: Client) -> None:
    later: JobState = stuck.stuck(T0, "f", rev=10, started_at=T0 + 40_000)
    states = [on(rows.JOB_STATES, stuck.stuck(T0, "f"), offset=1),
              on(rows.JOB_STATES, later, offset=2)]  # fmt: skip
    dry = stuck.command(T0 + 1, "f", dry_run=True)
    for state in (states[1], states[0]):
        written(url, state, on(rows.COMMANDS, dry), on(rows.COMMANDS, stuck.command(T0, "f")))
    found = client.execute("SELECT n, rev, stranded_ms FROM stalls FINAL ORDER BY n")
    assert found == [(1, 10, 8_000), (2, 10, 19_000)]
    assert client.execute("SELECT dry_run FROM commands FINAL") == [(1,)]
    written(url, FakeRecord(rows.FLEET_STATES, None, b"f", offset=2, timestamp=T0))
    written(url, on(rows.FLEET_STATES, stuck.fleet_state(T0, "f"), offset=1))
    assert client.execute("SELECT count() FROM fleet_states FINAL") == [(0,)]
    written(url, on(rows.FLEET_STATES, stuck.fleet_state(T0, "f"), offset=3))
    assert client.execute("SELECT fleet, mode, switch_by FROM fleet_states FINAL") == [
        ("f", "paused", "ada")
    ]


def test_a_command_of_a_fleet_has_no_job(url: str, client: Client) -> None:
    woken = {"id": "wake_fleet|f|5", "key": "f", "job_key": "", "command": "wake_fleet",
             "reason": "starved", "n": 0, "evidence": ()}  # fmt: skip
    written(url, on(rows.COMMANDS, stuck.command(T0, "f", **woken)))
    found = client.execute("SELECT key, job_key, command, reason, evidence FROM commands FINAL")
    assert found == [("f", "", "wake_fleet", "starved", [])]


def test_who_may_only_read_sees_them_all(server: EmbeddedClickHouse) -> None:
    schema.apply(server.url)
    written(server.url, *everything())
    with schema.connected(server.reader_url) as reader:
        for table in TABLES:
            assert reader.execute(f"SELECT count() > 0 FROM {table} FINAL") == [(1,)], table
        found = reader.execute(
            "SELECT c.attempt, c.command, c.result FROM stalls FINAL ARRAY JOIN commands AS c"
            f" WHERE key = '{stuck.KEY}' ORDER BY c.attempt"
        )
    assert found == [(1, "release_claim", Result.DONE), (2, "", Result.EXPIRED)]


def test_a_database_of_the_release_before_is_upgraded(server: EmbeddedClickHouse) -> None:
    """Rows stay as they are, and a life of the fleets' log is counted apart from the jobs'."""
    url = schema.with_database(server.url, next(_databases))
    schema.apply(url, schema.migrations()[:4])
    with schema.connected(url) as client:
        client.execute(
            "INSERT INTO jobs (key, rev, received_at) VALUES", [("j", rows.version(5, 1), T0)]
        )
        assert schema.apply(url).applied[0] == "0005_recovery"
        assert client.execute("SELECT key FROM jobs_latest") == [("j",)]
        table = rows.PLACED[rows.FLEET_STATES]
        assert schema.epoch(client, rows.FLEET_STATES, "a", table) == 1
        assert schema.epoch(client, rows.JOB_STATES, "b") == 6
