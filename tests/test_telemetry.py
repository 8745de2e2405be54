"""What holds for every family of telemetry: order, duplicates, crashes, lateness, forgetting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.telemetry import FAMILIES
from pipeline.telemetry.panes import ROW_IDS
from pipeline.telemetry.subject import FRESH_MS, HOUR_MS, KEPT_MS, LATE_MS
from tests.support import telemetry_events as made
from tests.support.chaos import chaos, steady
from tests.support.telemetry import MINUTE, Seen, durable, event, muddled, tick
from topics import events as contract
from topics.tables import TELEMETRY_TABLE

END = tick(10 * MINUTE)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_every_event_is_of_its_family(family: str, data: st.DataObject) -> None:
    for each in data.draw(made.HISTORIES[family]):
        assert contract.family_of(each) == family


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_neither_order_nor_duplicates_matter(family: str, data: st.DataObject, seed: int) -> None:
    history = data.draw(made.HISTORIES[family])
    want, got = Seen([*history, END]), Seen([*muddled(history, seed), END])
    assert got.levels == want.levels
    assert got.sums == want.sums
    assert got.views == want.views
    assert set(got.durable.tables[TELEMETRY_TABLE.name]) == set(
        want.durable.tables[TELEMETRY_TABLE.name]
    )


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_no_crash_changes_what_is_known(family: str, data: st.DataObject, seed: int) -> None:
    log = [*data.draw(made.HISTORIES[family]), END, tick(11 * MINUTE)]
    want, got = steady(durable(), log), chaos(durable(), log, seed)
    assert got.tables == want.tables


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_a_ledger_that_is_made_anew_knows_the_same(family: str, data: st.DataObject) -> None:
    seen = Seen([*data.draw(made.HISTORIES[family]), END])
    again = seen.again()
    assert sorted(map(repr, again.levels())) == sorted(map(repr, seen.ledger.levels()))
    for where in seen.ledger.subjects:
        assert again.sums(where) == seen.ledger.sums(where)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_all_is_forgotten_in_the_end(family: str, data: st.DataObject) -> None:
    """Nothing leaks: long after the last word there is neither a level nor a row."""
    log = [*data.draw(made.HISTORIES[family]), END]
    far = 40 * 24 * HOUR_MS
    seen = Seen([*log, tick(far), tick(far + MINUTE)])
    assert seen.levels == {}
    assert seen.ledger.subjects == {}
    assert list(seen.durable.tables[TELEMETRY_TABLE.name]) == [b"~clock:0"]


def test_what_comes_late_changes_things_and_counts_nowhere() -> None:
    told = event("dispatch.request", 0, outcome="served", duration_ms=40)
    seen = Seen([tick(LATE_MS + MINUTE), told])
    assert seen.sums == {}
    assert seen.counted("telemetry_late_total", family="dispatch") == 1
    assert seen.counted("telemetry_events_total", family="dispatch") == 1
    assert seen.counted("dispatch_requests_total", fleet="f0", outcome="served") == 0
    assert seen.levels == {
        ("dispatch_last_request_timestamp_seconds", "f0"): told.occurred_at / 1000
    }


def test_what_is_too_old_makes_nothing_anew() -> None:
    told = event("pool.sample", 0, pool="p", idle=3)
    seen = Seen([tick(KEPT_MS + MINUTE), told])
    assert seen.ledger.subjects == {}


def test_a_time_that_has_not_come_is_not_believed() -> None:
    seen = Seen([])
    seen.ledger.now = tick(0).occurred_at
    seen.ledger.apply(0, event("pool.sample", 3 * HOUR_MS, idle=3), tick(0).occurred_at)
    assert seen.ledger.subjects == {}
    assert [note.metric.name for note in seen.ledger.flush().notes] == ["future_times"]


def test_a_busy_minute_has_several_rows() -> None:
    many = [event("dispatch.request", 1, f"{n}", outcome="empty") for n in range(ROW_IDS + 5)]
    seen = Seen([*many, *many[:50]], batch=500)
    assert seen.sums == {"dispatch_requests|empty": ROW_IDS + 5}
    rows = [key for key in seen.durable.tables[TELEMETRY_TABLE.name] if b"~panes" in key]
    assert len(rows) == 2
    assert seen.counted("dispatch_requests_total", fleet="f0", outcome="empty") == ROW_IDS + 5


def test_a_level_that_nobody_confirms_is_not_told() -> None:
    log = [event("pool.sample", 0, idle=3), tick(FRESH_MS)]
    assert Seen(log).levels[("pool_runners", "f0", "idle")] == 3
    assert Seen([*log, tick(FRESH_MS + 1)]).levels == {}


def test_starved_and_saturated_are_told_apart() -> None:
    def waits(queued: int, idle: int | None) -> tuple[float | None, float | None]:
        log = [event("pool.sample", 0, idle=idle), event("queue.sample", 0, queued=queued), tick(9)]
        levels = Seen(log).levels
        return levels.get(("pool_starved_jobs", "f0")), levels.get(("pool_saturated_jobs", "f0"))

    assert waits(5, 2) == (2, 3)
    assert waits(0, 2) == (0, 0)
    assert waits(5, 0) == (0, 5)
    assert waits(5, None) == (None, None)


def test_series_of_a_fleet_begin_with_its_family() -> None:
    seen = Seen([event("dispatch.request", 0, outcome="served")])
    registry = seen.exporter.registry
    mints = {"fleet": "f0", "outcome": "failed"}
    assert registry.get_sample_value("runnerstream_runner_mints_total", mints) == 0
    boots = {"fleet": "f0", "outcome": "ready"}
    assert registry.get_sample_value("runnerstream_machine_boots_total", boots) is None
