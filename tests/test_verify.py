"""The log folded again is what is served: whole, cut short, and while the worker goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import folds
from pipeline.jobs.facts import DAY_MS
from pipeline.settings import Settings
from pipeline.verify import STATES, WINDOWED, Difference, Refold, Result, Rules, Served
from tests.support.chaos import chaos, steady
from tests.test_ledger import BASE, MINUTE, Record, Tables, latest, logs, tick
from topics.catalogue import JOB_STATES, WINDOWS
from topics.models import Clock, Conclusion, JobAttributes, JobFact, Milestone

HOUR = 3_600_000
SETTINGS = Settings()


def rules(settings: Settings = SETTINGS) -> Rules:
    kept = folds.retention(settings)
    names = folds.fleet_names(settings)
    return Rules(folds.jobs(settings), names, kept, settings.max_fleet_labels)


def served(tables: Tables) -> Served:
    states = {k: v for k, v in latest(tables, JOB_STATES).items() if v is not None}
    return Served(states, latest(tables, WINDOWS))


def refold(
    log: Sequence[Record],
    what: Served,
    *,
    cut: int = 0,
    committed: int | None = None,
    settings: Settings = SETTINGS,
) -> Result:
    """What the command does with one partition, whose log begins at ``cut``."""
    fold = Refold(rules(settings), 0, whole=not cut, now=2 * BASE)
    end = len(log) if committed is None else committed
    for offset in range(cut, end):
        fold.take(offset, log[offset].model_dump_json().encode(), -1)
    fold.judge(what)
    for offset in range(max(cut, end), len(log)):
        if fold.pending:
            fold.go_on(offset, log[offset].model_dump_json().encode(), -1)
    return fold.result(50)


def different(result: Result) -> int:
    return sum(tally.different for tally in result.tallies.values())


def stretched(log: Sequence[Record], factor: int) -> list[Record]:
    """The same over more time."""

    def later(at: int) -> int:
        return BASE + (at - BASE) * factor

    out: list[Record] = []
    for record in log:
        told: dict[str, Any] = {
            "occurred_at": later(record.occurred_at),
            "received_at": later(record.received_at),
        }
        if isinstance(record, JobFact):
            told["times"] = {
                milestone: {clock: later(at) for clock, at in clocks.items()}
                for milestone, clocks in record.times.items()
            }
        out.append(record.model_copy(update=told))
    return out


# -- no difference ---------------------------------------------------------------------------------


@given(logs(), st.integers(0, 2**32))
def test_a_whole_log_gives_what_is_served(log: list[Record], seed: int) -> None:
    tables = chaos(Tables(), log, seed)
    result = refold(log, served(tables))
    assert result.differences == []
    states = result.tallies[STATES]
    assert (states.folded, states.in_part) == (states.served, 0)
    assert result.tallies[WINDOWED].in_part == 0


@given(logs(), st.integers(0, 2**32), st.sampled_from([1, 300, 3_000]), st.data())
def test_a_log_without_its_beginning_contradicts_nothing(
    log: list[Record], seed: int, factor: int, data: st.DataObject
) -> None:
    log = stretched(log, factor)
    cut = data.draw(st.integers(1, len(log)))
    result = refold(log, served(chaos(Tables(), log, seed)), cut=cut)
    assert result.differences == []


@given(logs(), st.data())
def test_a_worker_that_is_ahead_of_what_it_committed_is_no_difference(
    log: list[Record], data: st.DataObject
) -> None:
    ahead = data.draw(st.integers(0, len(log)))
    committed = data.draw(st.integers(0, ahead))
    result = refold(log, served(steady(Tables(), log[:ahead])), committed=committed)
    assert result.differences == []


def test_more_fleets_than_have_windows_of_their_own_are_compared_together() -> None:
    log: list[Record] = [*(completed(n, BASE, pool=f"p{n}") for n in range(8)), tick(BASE + 1)]
    few = Settings(max_fleet_labels=3)
    other_order = [*reversed(log[:-1]), log[-1]]
    tables = steady(Tables(max_fleets=3), other_order)
    states, windows = served(tables).states, served(tables).windows
    result = refold(log, Served(states, windows), settings=few)
    assert result.differences == []
    lost = {key: value for key, value in windows.items() if not key.startswith(b"other|")}
    assert len(lost) < len(windows)
    named = refold(log, Served(states, lost), settings=few).differences
    assert any(each.what == WINDOWED and "all fleets" in each.key for each in named)


# -- differences -----------------------------------------------------------------------------------


def completed(number: int, at: int, *, pool: str = "a") -> JobFact:
    return JobFact(
        id=f"f{number}",
        source="t",
        occurred_at=at,
        received_at=at,
        key=f"github:github.com:{number}",
        cause="c",
        times={
            Milestone.QUEUED: {Clock.PROVIDER: at - 3_000},
            Milestone.STARTED: {Clock.PROVIDER: at - 2_000},
            Milestone.COMPLETED: {Clock.PROVIDER: at},
        },
        conclusion=Conclusion.SUCCESS,
        job=JobAttributes(pool=pool, name="build"),
    )


LOG: list[Record] = [tick(BASE), completed(1, BASE), completed(2, BASE), tick(BASE + MINUTE)]
JOB = b"github:github.com:1"
PANE = b"a|60|%d|0" % BASE


def changed(values: Mapping[bytes, bytes], key: bytes, *path: str, to: Any) -> dict[bytes, bytes]:
    told = msgspec.json.decode(values[key])
    inner = told
    for name in path[:-1]:
        inner = inner[name]
    assert inner[path[-1]] != to
    inner[path[-1]] = to
    return {**values, key: msgspec.json.encode(told)}


def without(values: Mapping[bytes, bytes], key: bytes) -> dict[bytes, bytes]:
    assert key in values
    return {k: v for k, v in values.items() if k != key}


@pytest.fixture
def good() -> Served:
    return served(steady(Tables(), LOG))


def test_the_example_has_no_difference(good: Served) -> None:
    result = refold(LOG, good)
    assert result.differences == []
    assert result.tallies[STATES].folded == 2
    assert result.tallies[WINDOWED].folded == 4


def test_a_changed_state_is_named_by_key_and_field(good: Served) -> None:
    states = changed(good.states, JOB, "status", to="running")
    states = changed(states, JOB, "timings", "run", "ms", to=7)
    assert refold(LOG, Served(states, good.windows)).differences == [
        Difference(STATES, 0, JOB.decode(), "status", "completed", "running"),
        Difference(STATES, 0, JOB.decode(), "timings.run.ms", 2_000, 7),
    ]


def test_a_missing_state_is_named(good: Served) -> None:
    result = refold(LOG, Served(without(good.states, JOB), good.windows))
    assert [(d.key, d.field, d.served) for d in result.differences] == [(JOB.decode(), "", None)]
    assert result.tallies[STATES].different == 1


def test_a_state_that_no_record_tells_of_is_named(good: Served) -> None:
    result = refold([LOG[0], *LOG[2:]], good)
    assert (JOB.decode(), None) in [(d.key, d.folded) for d in result.differences]


def test_a_changed_window_is_named(good: Served) -> None:
    run = msgspec.json.decode(good.windows[PANE])["families"]["run"]
    for path in (
        ("families", "run", "count"),
        ("families", "run", "sum_ms"),
        ("families", "run", "bins", next(iter(run["bins"]))),
        ("conclusions", "success"),
    ):
        windows = changed(good.windows, PANE, *path, to=9)
        found = refold(LOG, Served(good.states, windows)).differences
        assert [(d.what, d.key, d.field, d.served) for d in found] == [
            (WINDOWED, PANE.decode(), ".".join(path), 9)
        ]


def test_a_missing_window_is_named_unless_retention_may_have_removed_it(good: Served) -> None:
    windows = without(good.windows, PANE)
    assert different(refold(LOG, Served(good.states, windows))) == 1
    # What is left was said by the last tick, and nothing that old is gone.
    assert different(refold(LOG, Served(good.states, windows, BASE + MINUTE))) == 1
    old = refold(LOG, Served(good.states, windows, BASE + MINUTE + 1))
    assert (different(old), old.tallies[WINDOWED].in_part) == (0, 1)


def test_foreign_bytes_are_a_difference(good: Served) -> None:
    result = refold(LOG, Served({**good.states, JOB: b"{"}, {**good.windows, PANE: b"[]"}))
    assert {(d.what, d.key) for d in result.differences} == {
        (STATES, JOB.decode()),
        (WINDOWED, PANE.decode()),
    }


def test_a_worker_that_has_lost_what_it_committed_is_found() -> None:
    # The state is as the log had it one fact ago: later records do not explain that.
    more = JobFact(
        id="late", source="t", occurred_at=BASE, received_at=BASE, key=JOB.decode(), cause="d",
    )  # fmt: skip
    log = [*LOG, more, tick(BASE + 2 * MINUTE)]
    behind = served(steady(Tables(), log[:4]))
    assert {d.field for d in refold(log, behind, committed=5).differences} >= {"causes", "rev"}
    assert refold(log, behind, committed=4).differences == []


def test_only_so_many_differences_are_shown_and_all_are_counted(good: Served) -> None:
    fold = Refold(rules(), 0, whole=True, now=2 * BASE)
    for offset, record in enumerate(LOG):
        fold.take(offset, record.model_dump_json().encode(), -1)
    fold.judge(Served({}, {}))
    result = fold.result(1)
    assert (len(result.differences), different(result)) == (1, 6)


def test_records_that_nobody_can_read_are_passed_over_and_counted(good: Served) -> None:
    fold = Refold(rules(), 0, whole=True, now=2 * BASE)
    for offset, record in enumerate(LOG):
        fold.take(offset, record.model_dump_json().encode(), -1)
        fold.take(offset, b"{", -1)
        fold.take(offset, None, -1)
    fold.judge(good)
    result = fold.result(9)
    assert (result.differences, result.unreadable) == ([], 2 * len(LOG))


# -- a log without its beginning -------------------------------------------------------------------

LATER = BASE + 3 * DAY_MS
CUT: list[Record] = [
    completed(1, BASE),
    tick(BASE + 1),
    # Known from before, told more of.
    JobFact(
        id="more", source="t", occurred_at=BASE, received_at=BASE + 2, key=JOB.decode(), cause="d",
    ),
    completed(2, LATER),
    tick(LATER + HOUR // 2),
]  # fmt: skip
SECOND = b"github:github.com:2"


def test_what_began_before_the_log_is_compared_as_far_as_it_tells() -> None:
    what = served(steady(Tables(), CUT))
    result = refold(CUT, what, cut=1)
    assert (result.differences, result.tallies[STATES].in_part) == ([], 1)
    # What the log tells is missing in what is served.
    unknowing = served(steady(Tables(), [*CUT[:2], *CUT[3:]]))
    assert {d.key for d in refold(CUT, unknowing, cut=1).differences} == {JOB.decode()}
    # What is served does not follow from its own facts.
    states = changed(what.states, JOB, "status", to="running")
    found = refold(CUT, Served(states, what.windows), cut=1).differences
    assert "status" in {d.field for d in found}


def test_what_began_in_the_log_is_compared_whole() -> None:
    what = served(steady(Tables(), CUT))
    for states in (
        without(what.states, SECOND),
        changed(what.states, SECOND, "job", "name", to="other"),
    ):
        found = refold(CUT, Served(states, what.windows), cut=1)
        assert {d.key for d in found.differences} == {SECOND.decode()}
    pane = b"a|60|%d|0" % (LATER - LATER % MINUTE)
    windows = without(what.windows, pane)
    found = refold(CUT, Served(what.states, windows), cut=1)
    assert {d.key for d in found.differences} == {pane.decode()}


def test_a_job_that_may_have_been_forgotten_need_not_be_served() -> None:
    log = [*CUT, tick(BASE + 9 * DAY_MS)]
    forgotten = Served(
        {}, served(steady(Tables(), log)).windows
    )  # both are forgotten, the second only by who knows more
    found = refold(log, forgotten, cut=1)
    assert {d.key for d in found.differences} == {SECOND.decode()}
    assert found.tallies[STATES].in_part == 1


@pytest.mark.parametrize("forgotten", [False, True])
def test_windows_of_a_job_that_began_before_the_log_are_compared_in_part(forgotten: bool) -> None:
    told = completed(1, LATER)
    queued = told.model_copy(
        update={
            "id": "queued",
            "received_at": BASE,
            "occurred_at": BASE,
            "times": {Milestone.QUEUED: {Clock.PROVIDER: BASE}},
            "conclusion": None,
        }
    )
    rest = {at: clocks for at, clocks in told.times.items() if at is not Milestone.QUEUED}
    log: list[Record] = [
        queued,
        tick(BASE + 1),
        told.model_copy(update={"times": rest}),
        completed(2, LATER + HOUR),
        tick(LATER + HOUR + 1),
    ]
    if forgotten:
        log.append(tick(LATER + 10 * DAY_MS))
    what = served(steady(Tables(), log))
    result = refold(log, what, cut=1)
    # The log does not tell for how long it was queued.
    assert (different(result), result.tallies[WINDOWED].in_part) == (0, 4)
