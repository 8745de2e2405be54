"""The log of fleets folded again gives the table's rows: whole, cut short, while owners go on."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from pipeline.verify import Difference, Result
from pipeline.verify_fleets import ROWS, RefoldFleets
from tests.support.fleet_world import (
    BASE,
    HOUR,
    MINUTE,
    POLICY,
    SECOND,
    Bench,
    Policies,
    World,
    proposal,
    seen,
    spec,
    switch,
    tick,
)
from tests.test_fleet_replay import OPS, after
from topics.models import FLEETS_RECORD
from topics.recovery import Mode, RunnerState
from topics.tables import FLEETS_TABLE

Rows = Mapping[bytes, bytes]


def refold(log: Sequence[Any], rows: Rows, *, cut: int = 0, committed: int | None = None) -> Result:
    """What the command does with one partition, whose log begins at ``cut``."""
    fold = RefoldFleets(spec(Policies(POLICY)), 0, whole=not cut, now=BASE + 9 * 24 * HOUR)
    values = [FLEETS_RECORD.dump_json(record) for record in log]
    end = max(cut, len(log) if committed is None else committed)
    for offset in range(cut, end):
        fold.take(offset, values[offset], -1)
    fold.judge(rows)
    for offset in range(end, len(log)):
        if fold.pending:
            fold.go_on(offset, values[offset], -1)
    return fold.result(50)


def rows_of(world: World | Bench) -> dict[bytes, bytes]:
    return dict(world.durable.tables[FLEETS_TABLE.name])


def days(seed: int) -> st.SearchStrategy[list[tuple[str, int]]]:
    names = [*OPS, *["propose", "work"] * seed]
    return st.lists(st.tuples(st.sampled_from(names), st.integers(0, 7)), min_size=5, max_size=30)


@given(days(3))
def test_a_whole_log_gives_the_rows(ops: list[tuple[str, int]]) -> None:
    world = after(ops)
    result = refold(world.log, rows_of(world))
    assert result.differences == []
    tally = result.tallies[ROWS]
    assert (tally.folded, tally.in_part) == (tally.served, 0)


@given(days(3))
def test_an_owner_that_is_ahead_of_what_it_committed_is_no_difference(
    ops: list[tuple[str, int]],
) -> None:
    world = World()
    for name, x in ops:
        OPS[name](world, x)
    rows, committed = rows_of(world), world.committed
    # What it says next is on its way.
    world.drain()
    assert refold(world.log, rows, committed=committed).differences == []


@given(days(3), st.data())
def test_a_log_without_its_beginning_contradicts_nothing(
    ops: list[tuple[str, int]], data: st.DataObject
) -> None:
    world = after(ops)
    cut = data.draw(st.integers(1, max(1, len(world.log))))
    assert refold(world.log, rows_of(world), cut=cut).differences == []


def test_the_days_have_rows_of_every_part() -> None:
    """The control: what is compared above is something."""
    rng = random.Random(3)
    names = [*OPS, *["propose", "work"] * 6]
    parts: set[str] = set()
    for _ in range(20):
        world = after([(rng.choice(names), rng.randrange(8)) for _ in range(120)])
        parts |= {msgspec.json.decode(key)[0] for key in rows_of(world) if key[:1] == b"["}
    assert parts == {"runners", "hosts", "pending", "issued", "endings", "told", "switches"}


# -- differences -----------------------------------------------------------------------------------

LOG: list[Any] = [
    tick(BASE, "another"),
    seen("r1", BASE, RunnerState.CLAIMED, held=1, claim="h1"),
    switch(BASE, Mode.PAUSED),
    proposal(1, BASE),
    tick(BASE + SECOND, "another"),
]
RUNNER, SWITCH, PENDING = (
    b'["runners","f0","r1"]', b'["switches","",""]', b'["pending","f0","github:github.com:1"]'
)  # fmt: skip


def served() -> dict[bytes, bytes]:
    bench = Bench(Policies(POLICY))
    bench.tell(*LOG)
    return rows_of(bench)


def changed(rows: Rows, key: bytes, **to: Any) -> dict[bytes, bytes]:
    return {**rows, key: msgspec.json.encode({**msgspec.json.decode(rows[key]), **to})}


def test_the_example_has_no_difference_and_its_clock_is_no_row() -> None:
    rows = served()
    result = refold(LOG, rows)
    assert result.differences == []
    assert rows.keys() >= {RUNNER, SWITCH, PENDING}
    assert result.tallies[ROWS].served == len(rows) - 1


def test_a_wrong_value_is_named_by_row_and_field() -> None:
    rows = changed(changed(served(), SWITCH, mode="live"), RUNNER, seen=7)
    assert refold(LOG, rows).differences == [
        Difference(ROWS, 0, RUNNER.decode(), "seen", BASE, 7),
        Difference(ROWS, 0, SWITCH.decode(), "mode", "paused", "live"),
    ]


def test_a_missing_row_and_one_that_no_record_tells_of_are_named() -> None:
    rows = served()
    lost = {key: value for key, value in rows.items() if key != PENDING}
    assert [(d.key, d.served) for d in refold(LOG, lost).differences] == [(PENDING.decode(), None)]
    found = refold([LOG[0], *LOG[2:]], rows).differences
    assert [(d.key, d.folded) for d in found] == [(RUNNER.decode(), None)]


def test_foreign_bytes_are_a_difference() -> None:
    rows = {**served(), SWITCH: b"{", b"[": b"1"}
    assert {d.key for d in refold(LOG, rows).differences} == {SWITCH.decode(), "["}
    assert {d.key for d in refold(LOG, rows, cut=1).differences} >= {SWITCH.decode()}


def test_an_owner_that_has_lost_what_it_committed_is_found() -> None:
    log = [*LOG, switch(BASE + MINUTE, Mode.LIVE), tick(BASE + MINUTE, "another")]
    behind = served()
    assert {d.key for d in refold(log, behind, committed=6).differences} == {SWITCH.decode()}
    assert refold(log, behind, committed=5).differences == []


def test_what_was_said_in_a_log_without_its_beginning_is_compared() -> None:
    later = BASE + 2 * HOUR
    log = [*LOG, switch(later, Mode.LIVE), tick(later, "another")]
    bench = Bench(Policies(POLICY))
    bench.tell(*log)
    rows = rows_of(bench)
    # The runner came before the log begins, the switch after.
    whole = refold(log, rows, cut=4)
    assert (whole.differences, whole.tallies[ROWS].in_part) == ([], 1)
    found = refold(log, changed(rows, SWITCH, mode="dry_run"), cut=4)
    assert [(d.key, d.field) for d in found.differences] == [(SWITCH.decode(), "mode")]


def test_only_so_many_differences_are_shown_and_all_are_counted() -> None:
    fold = RefoldFleets(spec(Policies(POLICY)), 0, whole=True, now=BASE + HOUR)
    for offset, record in enumerate(LOG):
        fold.take(offset, FLEETS_RECORD.dump_json(record), -1)
        fold.take(offset, b"{", -1)
    fold.judge({})
    result = fold.result(1)
    assert (len(result.differences), result.tallies[ROWS].different) == (1, 3)
    assert result.unreadable == len(LOG)
