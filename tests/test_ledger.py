"""The ledger under crashes: whatever the batch borders and wherever it dies, the end is the same.

The real thing (Kafka, kill -9) is in test_crash.py; here the log, the tables and the crashes are
plain data, so that hypothesis can try thousands of them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import folds, metrics
from pipeline.effects import Effects, Note, Output
from pipeline.fold_spec import FoldSpec, Lookup
from pipeline.jobs import FleetNames, decode, view
from pipeline.jobs.facts import DAY_MS
from pipeline.ledger import (
    MAX_FLEETS,
    OTHER_FLEET,
    QUIET_MS,
    TICK_AHEAD_MS,
    Ledger,
    Retention,
    clock_key,
)
from pipeline.settings import Settings
from pipeline.windows import (
    Contribution,
    Pane,
    PaneKey,
    WindowPolicy,
    contributions,
    decode_pane,
    pane_key_bytes,
    pane_key_of,
    pane_start,
)
from tests.support.chaos import Durable, chaos, steady, write
from topics.catalogue import JOB_STATES, SAMPLES, WINDOWS
from topics.models import (
    JOBS_RECORD,
    SAMPLE,
    WINDOW,
    ClaimFact,
    Clock,
    Conclusion,
    JobAttributes,
    JobFact,
    Milestone,
    ParentRun,
    RunFact,
    RunLink,
    Tick,
    Unreadable,
)
from topics.reading import read
from topics.tables import JOBS_TABLE, WINDOWS_TABLE

BASE = 1_700_000_040_000  # a whole minute
MINUTE = 60_000
RUN = "github:github.com:run/7"

Record = JobFact | RunFact | RunLink | Tick


def jobs_fold(
    policy: WindowPolicy | None = None, now: int | None = None, max_fleets: int = MAX_FLEETS
) -> FoldSpec[Ledger]:
    """The jobs' fold with a small cache, so that jobs and runs are forgotten and read again."""

    def new_ledger(partition: int, tables: Mapping[str, Lookup]) -> Ledger:
        ledger = Ledger(
            partition,
            tables[JOBS_TABLE.name],
            windows=policy,
            retention=Retention(),
            max_fleets=max_fleets,
            cache=2,
        )
        ledger.now = now
        return ledger

    return replace(folds.jobs(Settings()), new_ledger=new_ledger)


class Tables(Durable):
    """What survives a crash: jobs and panes, and what was published."""

    def __init__(self, policy: WindowPolicy | None = None, max_fleets: int = MAX_FLEETS) -> None:
        super().__init__(jobs_fold(policy, max_fleets=max_fleets))

    def ledger(
        self, policy: WindowPolicy | None = None, now: int | None = None, max_fleets: int = 0
    ) -> Ledger:
        """Made from the tables; as the fold makes it unless told."""
        if policy is not None:
            self.spec = jobs_fold(policy, now, max_fleets or MAX_FLEETS)
        ledger: Ledger = super().ledger()
        return ledger

    @property
    def states(self) -> dict[bytes, bytes]:
        return self.tables[JOBS_TABLE.name]

    @property
    def panes(self) -> dict[PaneKey, bytes]:
        return {pane_key_of(key): value for key, value in self.tables[WINDOWS_TABLE.name].items()}


def filled(tables: Tables) -> dict[tuple[str, int], Pane]:
    """The panes that hold something."""
    panes = {k: decode_pane(v) for k, v in tables.panes.items()}
    return {k: pane for k, pane in panes.items() if pane != Pane()}


def recomputed(tables: Tables) -> dict[tuple[str, int], Pane]:
    """The panes as they follow from the job states alone."""
    panes: dict[tuple[str, int], Pane] = {}
    for key, value in tables.states.items():
        if key.startswith(b"~") or b"run/" in key:
            continue
        for c in contributions(view(decode(value), FleetNames())):
            panes.setdefault((c.fleet, pane_start(c.at)), Pane()).add(c, 1)
    return panes


def latest(tables: Tables, topic: str) -> dict[bytes, Any]:
    """The last published value per key, as a compacted topic would show it."""
    return {o.key: o.value for o in tables.published if o.topic == topic}


@st.composite
def logs(draw: st.DrawFn) -> list[Record]:
    out: list[Record] = []
    now = BASE
    for n in range(draw(st.integers(3, 30))):
        now += draw(st.integers(0, 20_000))
        kind = draw(st.sampled_from(["fact"] * 6 + ["tick", "run", "link"]))
        job = f"github:github.com:{draw(st.integers(1, 4))}"
        if kind == "tick":
            out.append(tick(now))
        elif kind == "run":
            out.append(
                RunFact(
                    id=f"r{n}",
                    source="t",
                    occurred_at=now,
                    received_at=now,
                    key=RUN,
                    run=ParentRun(
                        attempt=draw(st.integers(1, 2)), started_at=now, completed_at=now
                    ),
                )
            )
        elif kind == "link":
            out.append(
                RunLink(
                    id=f"l{n}",
                    source="t",
                    occurred_at=now,
                    received_at=now,
                    key=RUN,
                    job_key=job,
                    attempt=draw(st.integers(1, 2)),
                )
            )
        else:
            times = {
                milestone: {draw(st.sampled_from([Clock.PROVIDER, Clock.STEP])): at(now, draw)}
                for milestone in draw(
                    st.lists(st.sampled_from(list(Milestone)), min_size=1, max_size=3, unique=True)
                )
            }
            out.append(
                JobFact(
                    id=f"f{draw(st.integers(0, 25))}",
                    source="t",
                    occurred_at=now,
                    received_at=now,
                    key=job,
                    cause="c",
                    times=times,
                    conclusion=draw(st.sampled_from([None, Conclusion.SUCCESS])),
                    job=draw(
                        st.sampled_from(
                            [
                                None,
                                JobAttributes(pool="a"),
                                JobAttributes(pool="b"),
                                JobAttributes(pool="c"),
                            ]
                        )
                    ),
                )
            )
    return [*out, tick(now + 1000)]


def at(now: int, draw: st.DrawFn) -> int:
    return now - draw(st.integers(0, 150_000))


def tick(now: int) -> Tick:
    return Tick(id=f"t{now}", source="t", occurred_at=now, received_at=now, key="tick:0")


WIDE = WindowPolicy(lateness_ms=DAY_MS)


@given(logs(), st.integers(0, 2**32))
def test_crashes_anywhere_change_nothing(log: list[Record], seed: int) -> None:
    want, got = steady(Tables(WIDE), log), chaos(Tables(WIDE), log, seed)
    assert got.states == want.states
    assert filled(got) == filled(want)
    assert latest(got, JOB_STATES) == latest(want, JOB_STATES)
    assert newest_windows(got) == newest_windows(want)


@given(logs(), st.integers(0, 2**32))
def test_panes_equal_what_the_states_say(log: list[Record], seed: int) -> None:
    tables = chaos(Tables(WIDE), log, seed)
    assert filled(tables) == recomputed(tables)


@given(logs(), st.integers(0, 2**32))
def test_closed_windows_stay_as_they_closed(log: list[Record], seed: int) -> None:
    tight = WindowPolicy(lateness_ms=20_000, grace_ms=40_000)
    want, got = steady(Tables(tight), log), chaos(Tables(tight), log, seed)
    assert got.states == want.states
    assert newest_windows(got) == newest_windows(want)


def newest_windows(tables: Tables) -> dict[str, Any]:
    newest: dict[str, Any] = {}
    for output in tables.published:
        if output.topic == WINDOWS:
            window = WINDOW.validate_json(output.value)
            known = newest.get(window.key)
            if known is None or window.rev >= known.rev:
                newest[window.key] = window
    # What was put in and taken out again within one batch may or may not have been told as 0.
    told = {
        key: (
            {family: f for family, f in w.families.items() if f.count},
            {conclusion: n for conclusion, n in w.conclusions.items() if n},
            w.closed,
        )
        for key, w in newest.items()
    }
    return {key: window for key, window in told.items() if window[0] or window[1]}


# -- by example ------------------------------------------------------------------------------------


def fact(n: int, number: int = 1, **said: Any) -> JobFact:
    now = said.pop("now", BASE)
    return JobFact(
        id=f"f{n}",
        source="t",
        occurred_at=now,
        received_at=now,
        key=f"github:github.com:{number}",
        cause="c",
        **said,
    )


def times(**at_ms: int) -> dict[Milestone, dict[Clock, int]]:
    return {Milestone(name): {Clock.PROVIDER: ms} for name, ms in at_ms.items()}


@pytest.fixture
def tables() -> Tables:
    return Tables()


def run(
    tables: Tables,
    *log: Record,
    policy: WindowPolicy = WIDE,
    start: int = 0,
    now: int | None = None,
    written: int | None = None,
    max_fleets: int = MAX_FLEETS,
) -> Effects:
    ledger = tables.ledger(policy, now, max_fleets)
    for offset, record in enumerate(log, start):
        ledger.apply(offset, record, written)
    effects = ledger.flush()
    write(tables, effects)
    return effects


def test_a_revised_start_moves_the_sample(tables: Tables) -> None:
    run(tables, fact(1, times=times(queued=BASE, started=BASE + 90_000)))
    run(tables, fact(2, times=times(started=BASE + 30_000)), start=1)
    panes = {k: decode_pane(v) for k, v in tables.panes.items()}
    assert panes[("unknown", BASE)].families["queue"].sum_ms == 30_000
    assert panes[("unknown", BASE + MINUTE)] == Pane()


def test_an_emptied_window_is_told_as_empty(tables: Tables) -> None:
    # Else a sink that has shown the sample of the wrong fleet would show it for ever.
    run(tables, fact(1, times=times(queued=BASE, started=BASE + 90_000)), tick(BASE + 95_000))
    moved = run(tables, fact(2, job=JobAttributes(pool="p")), tick(BASE + 99_000), start=2)
    windows = [WINDOW.validate_json(o.value) for o in moved.outputs if o.topic == WINDOWS]
    counts = {(w.fleet, w.size_s): w.families["queue"].count for w in windows}  # type: ignore[index]
    assert counts == {
        (fleet, size): int(fleet == "p") for fleet in ("p", "unknown") for size in (60, 300, 3600)
    }


def test_a_sample_for_a_closed_window_is_counted_as_late(tables: Tables) -> None:
    policy = WindowPolicy(lateness_ms=MINUTE)
    effects = run(
        tables,
        tick(BASE + 10 * MINUTE),
        fact(1, times=times(queued=BASE, started=BASE + 5_000)),
        policy=policy,
    )
    assert Note(metrics.LATE_SAMPLES, ("queue",)) in effects.notes
    assert not tables.panes
    assert b"github:github.com:1" in tables.states


def test_windows_close_once_and_panes_are_deleted_with_a_tombstone(tables: Tables) -> None:
    policy = WindowPolicy(lateness_ms=MINUTE, grace_ms=MINUTE)
    run(tables, fact(1, times=times(queued=BASE, started=BASE + 5_000)), policy=policy)
    effects = run(tables, tick(BASE + 3 * 60 * MINUTE), policy=policy, start=1)
    windows = [WINDOW.validate_json(o.value) for o in effects.outputs if o.topic == WINDOWS]
    assert sorted((w.size_s, w.closed) for w in windows) == [(60, True), (300, True), (3600, True)]
    assert {w.families["queue"].count for w in windows} == {1}  # type: ignore[index]
    assert effects.writes(WINDOWS_TABLE) == [(pane_key_bytes(0, ("unknown", BASE)), None)]
    assert not tables.panes
    again = run(tables, tick(BASE + 4 * 60 * MINUTE), policy=policy, start=2)
    assert not [o for o in again.outputs if o.topic == WINDOWS]


def test_completed_jobs_outlive_every_redelivery_then_go(tables: Tables) -> None:
    key = b"github:github.com:1"
    run(tables, fact(1, times=times(queued=BASE, started=BASE, completed=BASE + 1000)))
    run(tables, tick(BASE + 7 * DAY_MS), start=1)
    assert key in tables.states
    gone = run(tables, tick(BASE + 9 * DAY_MS), start=2)
    assert key not in tables.states
    assert (key, None) in [(o.key, o.value) for o in gone.outputs if o.topic == JOB_STATES]
    # A redelivery after that is history: it must not open the job again.
    late = run(tables, fact(2, times=times(completed=BASE + 1000)), start=3)
    assert not late.writes(JOBS_TABLE)
    assert Note(metrics.EXPIRED_FACTS, ()) in late.notes


def test_samples_carry_depth_oldest_age_and_explicit_zeros(tables: Tables) -> None:
    pool = JobAttributes(pool="p")
    run(
        tables,
        fact(1, times=times(queued=BASE), job=pool),
        fact(2, 2, times=times(queued=BASE + 4_000)),
    )
    first = samples(run(tables, tick(BASE + 10_000), start=2))
    assert first[("p", "queued")] == (1, 10_000)
    assert first[("unknown", "queued")] == (1, 6_000)
    run(tables, fact(3, times=times(started=BASE + 11_000)), start=3)
    second = samples(run(tables, tick(BASE + 20_000), start=4))
    assert second[("p", "queued")] == (0, 0)
    assert second[("p", "running")] == (1, 9_000)


def samples(effects: Effects) -> dict[tuple[str, str], tuple[int, int]]:
    records = [SAMPLE.validate_json(o.value) for o in effects.outputs if o.topic == SAMPLES]
    return {(s.fleet, s.status.value): (s.count, s.oldest_ms) for s in records}


def test_a_finished_run_reaches_its_jobs_in_either_order() -> None:
    link = RunLink(
        id="l", source="t", occurred_at=BASE, received_at=BASE, key=RUN,
        job_key="github:github.com:1", attempt=1,
    )  # fmt: skip
    over = RunFact(
        id="r", source="t", occurred_at=BASE, received_at=BASE, key=RUN,
        run=ParentRun(attempt=1, completed_at=BASE, conclusion=Conclusion.STARTUP_FAILURE),
    )  # fmt: skip
    told = []
    for log in ([link, over], [over, link], [over, link, over, link]):
        outputs = [o for o in run(Tables(), *log).outputs if o.topic == "runners.jobs"]
        told.append([(o.key, msgspec.json.decode(o.value or b"")["run"]) for o in outputs])
    assert told[0] == told[1] == told[2]
    assert told[0][0][0] == b"github:github.com:1"
    assert told[0][0][1]["conclusion"] == "startup_failure"


def test_two_batches_may_be_flushed_before_either_is_visible(tables: Tables) -> None:
    # A transaction may hold several batches of a partition: the tables are older than the ledger.
    ledger = tables.ledger(WIDE)
    link = RunLink(
        id="l", source="t", occurred_at=BASE, received_at=BASE, key=RUN,
        job_key="github:github.com:1", attempt=1,
    )  # fmt: skip
    ledger.apply(0, link)
    ledger.apply(1, fact(1, times=times(queued=BASE)))
    first = ledger.flush()
    ledger.apply(2, link.model_copy(update={"job_key": "github:github.com:2"}))
    ledger.apply(3, fact(2, times=times(started=BASE + 1_000)))
    second = ledger.flush()
    write(tables, first)
    ledger.written()
    write(tables, second)
    assert msgspec.json.decode(tables.states[RUN.encode()])["jobs"].keys() == {
        "github:github.com:1",
        "github:github.com:2",
    }
    job = decode(tables.states[b"github:github.com:1"])
    assert job.rev == 2


def test_a_reader_does_not_fill_the_cache(tables: Tables) -> None:
    run(tables, fact(1, times=times(queued=BASE)))
    ledger = tables.ledger(WIDE)
    assert ledger.job("github:github.com:1") is not None
    assert not ledger._entries.decoded


def test_contributions_have_a_total_order() -> None:
    # Effects must not depend on hash order; sorting needs every field to be comparable.
    assert sorted(
        [Contribution(1, "b", "queue", 2), Contribution(1, "a", "success", None)],
        key=lambda c: (c.at, c.fleet, c.name, -1 if c.ms is None else c.ms),
    )


# -- clocks that are wrong -------------------------------------------------------------------------

YEAR = 365 * DAY_MS
JOB = b"github:github.com:1"
#: 2099-01-01.
FAR = 4_070_908_800_000


@pytest.mark.parametrize("wrong", ["occurred_at", "received_at", "both"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("ended", [True, False])
def test_a_job_never_expires_by_one_records_clock(
    tables: Tables, wrong: str, first: bool, ended: bool
) -> None:
    honest = fact(1, times=times(queued=BASE))
    names = ("occurred_at", "received_at") if wrong == "both" else (wrong,)
    odd = fact(2, times=times(started=BASE)).model_copy(update=dict.fromkeys(names, BASE - YEAR))
    log: list[Record] = [odd, honest] if first else [honest, odd]
    if ended:
        # Also a completion that says it was long ago.
        log.append(fact(3, times=times(completed=BASE - YEAR)))
    gone = run(tables, tick(BASE), *log, tick(BASE + 5_000), tick(BASE + DAY_MS))
    assert JOB in tables.states
    assert not [o for o in gone.outputs if o.topic == JOB_STATES and o.value is None]
    # It does expire when its time has come.
    late = BASE + (9 if ended else 72) * DAY_MS
    run(tables, tick(late), start=50)
    assert JOB not in tables.states


def test_a_run_does_not_expire_by_one_records_clock(tables: Tables) -> None:
    def said(n: int, at: int) -> RunFact:
        return RunFact(
            id=f"r{n}", source="t", occurred_at=at, received_at=at, key=RUN,
            run=ParentRun(attempt=1, started_at=at),
        )  # fmt: skip

    run(tables, tick(BASE), said(1, BASE), said(2, BASE - YEAR), tick(BASE + 5_000))
    assert RUN.encode() in tables.states


@pytest.mark.parametrize("written", [None, BASE, FAR])
def test_a_tick_of_the_future_is_not_believed(tables: Tables, written: int | None) -> None:
    # Forged, or of a worker whose clock is wrong; it may lie about when it was written, too.
    run(tables, fact(1, times=times(queued=BASE)), tick(BASE), now=BASE)
    refused = run(tables, tick(FAR), start=2, now=BASE + 1_000, written=written)
    assert Note(metrics.REFUSED_TICKS, ("future",)) in refused.notes
    assert not refused.outputs
    assert JOB in tables.states
    # The partition goes on.
    after = run(tables, tick(BASE + 5_000), fact(2, 2, times=times(queued=BASE)), start=3,
                now=BASE + 5_000)  # fmt: skip
    assert samples(after)[("unknown", "queued")] == (1, 5_000)
    assert b"github:github.com:2" in tables.states
    # In a replay, years later, the log still tells that it was not time yet.
    if written == BASE:
        again = Tables()
        ledger = again.ledger(WIDE, now=FAR + YEAR)
        for offset, record in enumerate([tick(BASE), tick(FAR), tick(BASE + 5_000)]):
            ledger.apply(offset, record, record.occurred_at if offset != 1 else BASE)
        assert ledger.clock == BASE + 5_000


def test_a_tick_may_be_ahead_by_less_than_an_hour(tables: Tables) -> None:
    ahead = run(tables, tick(BASE + TICK_AHEAD_MS), now=BASE)
    assert Note(metrics.REFUSED_TICKS, ("future",)) not in ahead.notes
    # A worker whose clock is behind by as much does not take it back.
    behind = run(tables, tick(BASE), start=1, now=BASE - TICK_AHEAD_MS)
    assert Note(metrics.HEALED_CLOCKS, ()) not in behind.notes


def test_a_clock_that_was_believed_is_taken_back(tables: Tables) -> None:
    # By an earlier release, or by a worker whose own clock was wrong.
    run(tables, tick(FAR))
    assert msgspec.json.decode(tables.states[clock_key(0)])["at"] == FAR
    healed = run(
        tables, fact(1, times=times(queued=BASE)), tick(BASE + 5_000), start=1, now=BASE + 5_000
    )
    assert Note(metrics.HEALED_CLOCKS, ()) in healed.notes
    assert samples(healed)[("unknown", "queued")] == (1, 5_000)
    assert msgspec.json.decode(tables.states[clock_key(0)])["at"] == BASE + 5_000
    assert JOB in tables.states


def test_a_clock_heals_while_running(tables: Tables) -> None:
    ledger = tables.ledger(WIDE)
    ledger.apply(0, tick(FAR))
    ledger.now = BASE
    ledger.apply(1, tick(BASE))
    assert ledger.clock == BASE
    assert Note(metrics.HEALED_CLOCKS, ()) in ledger.flush().notes


def test_a_worker_that_was_away_for_days_believes_what_came_meanwhile(tables: Tables) -> None:
    run(tables, tick(BASE), now=BASE)
    later = BASE + 5 * DAY_MS
    said = fact(1, now=later, times=times(queued=later, started=later + 1_000))
    back = run(tables, said, tick(later + 5_000), start=1, now=later + 5_000, written=later)
    assert Note(metrics.FUTURE_TIMES, ()) not in back.notes
    assert json.loads(tables.states[JOB])["started_at"] == later + 1_000


@pytest.mark.parametrize("name", ["started", "completed"])
def test_a_milestone_of_the_future_has_happened_and_nobody_knows_when(
    tables: Tables, name: str
) -> None:
    said = fact(2, times=times(**{name: FAR}), marks=((FAR, "waiting"),))
    effects = run(
        tables,
        tick(BASE),
        fact(1, times=times(queued=BASE)),
        said.model_copy(update={"occurred_at": FAR}),
        tick(BASE + 5_000),
        now=BASE,
    )
    assert Note(metrics.FUTURE_TIMES, (), 1.0) in effects.notes
    state = json.loads(tables.states[JOB])
    assert state["status"] == {"started": "running"}.get(name, "completed")
    assert state[f"{name}_at"] == BASE
    assert str(FAR) not in tables.states[JOB].decode()
    assert not [n for n in effects.notes if n.metric in metrics.TIMINGS.values()], (
        "unknown is not a time"
    )
    # What another clock says in the same fact is believed.
    both = fact(3, 2, times={Milestone(name): {Clock.PROVIDER: FAR, Clock.DELIVERY: BASE + 7}})
    run(tables, both, start=9, now=BASE)
    assert json.loads(tables.states[b"github:github.com:2"])[f"{name}_at"] == BASE + 7


def test_a_claim_and_a_run_of_the_future(tables: Tables) -> None:
    claim = ClaimFact(handle="c", claimed_at=FAR, minted_at=BASE + 3, runner="r")
    log: list[Record] = [
        tick(BASE),
        fact(1, claim=claim),
        fact(2, run=ParentRun(attempt=2, started_at=FAR, completed_at=FAR)),
        RunFact(
            id="r", source="t", occurred_at=FAR, received_at=FAR, key=RUN,
            run=ParentRun(attempt=1, completed_at=FAR, conclusion=Conclusion.FAILURE),
        ),
        RunLink(
            id="l", source="t", occurred_at=FAR, received_at=FAR, key=RUN,
            job_key="github:github.com:1", attempt=1,
        ),
    ]  # fmt: skip
    effects = run(tables, *log, now=BASE)
    assert str(FAR) not in b"".join(tables.states.values()).decode()
    state = json.loads(tables.states[JOB])
    assert state["claims"]["c"]["claimed_at"] == BASE
    assert state["claims"]["c"]["minted_at"] == BASE + 3
    (told,) = [o for o in effects.outputs if o.topic == "runners.jobs"]
    assert json.loads(told.value or b"")["run"]["completed_at"] == BASE


# -- many fleets -----------------------------------------------------------------------------------


def many(number: int, at_ms: int = BASE, first: int = 0, **more: int) -> list[Record]:
    """Jobs of as many fleets, started a second after they were queued."""
    return [
        fact(
            n, n,
            times=times(queued=at_ms, started=at_ms + 1_000, **more),
            job=JobAttributes(pool=f"p{n:05}"),
        )
        for n in range(first, first + number)
    ]  # fmt: skip


def sampled(effects: Effects) -> set[str]:
    return {fleet for fleet, _ in samples(effects)}


def test_a_fleet_without_jobs_is_sampled_for_an_hour_and_no_longer(tables: Tables) -> None:
    done = fact(1, times=times(queued=BASE, started=BASE, completed=BASE + 1_000),
                job=JobAttributes(pool="p"))  # fmt: skip
    first = run(tables, done, tick(BASE + 2_000))
    assert samples(first) == {("p", "queued"): (0, 0)}
    # Whether it is the same worker or another that reads it from the tables.
    last = BASE + 1_000 + QUIET_MS
    for ledger in (tables.ledger(WIDE), tables.ledger(WIDE)):
        ledger.apply(2, tick(last - 1))
        assert samples(ledger.flush()) == {("p", "queued"): (0, 0)}
        ledger.apply(3, tick(last))
        assert not samples(ledger.flush())
        # It comes back with its next job.
        ledger.apply(4, fact(9, 9, now=last, times=times(queued=last), job=JobAttributes(pool="p")))
        ledger.apply(5, tick(last + 5_000))
        assert samples(ledger.flush()) == {("p", "queued"): (1, 5_000)}


def test_a_status_that_became_empty_is_told_as_zero_once_more(tables: Tables) -> None:
    ledger = tables.ledger(WIDE)
    ledger.apply(0, fact(1, times=times(queued=BASE, started=BASE), job=JobAttributes(pool="p")))
    ledger.apply(1, tick(BASE + 1_000))
    ledger.flush()
    # The job turns out to be of another fleet: nothing is left of the first.
    ledger.apply(2, fact(2, now=BASE + 1, job=JobAttributes(pool="q")))
    ledger.apply(3, tick(BASE + 6_000))
    assert samples(ledger.flush()) == {
        ("p", "running"): (0, 0),
        ("q", "queued"): (0, 0),
        ("q", "running"): (1, 6_000),
    }
    ledger.apply(4, tick(BASE + 11_000))
    assert sampled(ledger.flush()) == {"q"}
    assert ("p", "running") not in ledger.counts()


def test_beyond_the_cap_fleets_share_other_in_samples(tables: Tables) -> None:
    # The two with most jobs keep their names; who is larger does not depend on the moment.
    large = [
        fact(100 + n, 100 + n, times=times(queued=BASE + n), job=JobAttributes(pool="pz"))
        for n in range(3)
    ]
    log = [*many(5), *large, tick(BASE + 10_000)]
    told = samples(run(tables, *log, max_fleets=2))
    assert {fleet for fleet, _ in told} == {"pz", "p00004", OTHER_FLEET}
    assert told[("pz", "queued")] == (3, 10_000)
    assert told[(OTHER_FLEET, "running")] == (4, 9_000)
    rebuilt = samples(run(tables, tick(BASE + 10_001), start=50, max_fleets=2))
    assert {where: n for where, (n, _) in rebuilt.items()} == {
        where: n for where, (n, _) in told.items() if n or where[1] == "queued"
    }


def test_ten_thousand_fleets_cost_what_the_cap_allows(tables: Tables) -> None:
    log = many(10_000, completed=BASE + 2_000)
    effects = run(tables, *log, tick(BASE + 10_000))
    assert len(sampled(effects)) == MAX_FLEETS + 1
    assert len({fleet for fleet, _ in tables.panes}) == MAX_FLEETS + 1
    windows = [WINDOW.validate_json(o.value) for o in effects.outputs if o.topic == WINDOWS]
    assert len(windows) == 3 * (MAX_FLEETS + 1)
    assert sum(w.conclusions[Conclusion.UNKNOWN] for w in windows if w.size_s == 60) == 10_000
    # At rest there is nothing more to say of them.
    rest = run(tables, tick(BASE + 2_000 + QUIET_MS), start=20_000)
    assert not samples(rest)


def folded_into(panes: dict[tuple[str, int], Pane], named: set[tuple[str, int]]) -> Any:
    """Panes, with those of fleets without panes of their own in ``other``."""
    out: dict[tuple[str, int], Pane] = {}
    for (fleet, start), pane in panes.items():
        hour = start - start % 3_600_000
        where = fleet if (fleet, hour) in named else OTHER_FLEET
        out.setdefault((where, start), Pane()).merge(pane)
    return out


@given(logs(), st.integers(0, 2**32), st.integers(1, 2))
def test_at_the_cap_of_fleets_panes_still_equal_what_the_states_say(
    log: list[Record], seed: int, most: int
) -> None:
    # Whose names are told may depend on what was folded together; that all is told does not.
    want, got = steady(Tables(WIDE, most), log), chaos(Tables(WIDE, most), log, seed)
    assert got.states == want.states
    assert folded_into(filled(got), set()) == folded_into(filled(want), set())
    named = {(fleet, start - start % 3_600_000) for fleet, start in got.panes}
    assert all(
        len({fleet for fleet, hour in named if hour == one and fleet != OTHER_FLEET}) <= most
        for _, one in named
    )
    assert filled(got) == folded_into(recomputed(got), named)


def test_what_became_empty_is_told_as_empty_and_shown_nowhere(tables: Tables) -> None:
    ledger = tables.ledger(WIDE)
    ended = times(queued=BASE, started=BASE + 1_000, completed=BASE + 2_000)

    def told(effects: Effects) -> dict[tuple[str, int], Any]:
        write(tables, effects)
        ledger.written()
        windows = [WINDOW.validate_json(o.value) for o in effects.outputs if o.topic == WINDOWS]
        return {(w.fleet, w.size_s): w.conclusions for w in windows}

    ledger.apply(0, fact(1, times=ended, conclusion=Conclusion.SUCCESS))
    ledger.apply(1, tick(BASE + 5_000))
    assert told(ledger.flush())[("unknown", 60)] == {Conclusion.SUCCESS: 1}
    ledger.apply(2, fact(2, now=BASE + 1, job=JobAttributes(pool="p")))
    ledger.apply(3, tick(BASE + 10_000))
    moved = told(ledger.flush())
    assert moved[("unknown", 60)] == moved[("unknown", 3600)] == {Conclusion.SUCCESS: 0}
    assert moved[("p", 300)] == {Conclusion.SUCCESS: 1}
    assert {fleet for fleet, *_ in ledger.windows()} == {"p"}
    # A sink that is behind writes only the last record of a window: that one tells it, too.
    ledger.apply(4, fact(3, 2, now=BASE + 2, times=ended, conclusion=Conclusion.FAILURE))
    ledger.apply(5, tick(BASE + 15_000))
    assert told(ledger.flush())[("unknown", 60)] == {
        Conclusion.SUCCESS: 0,
        Conclusion.FAILURE: 1,
    }
    shown = {fleet: part for fleet, size_s, _, part in ledger.windows() if size_s == 60}
    assert shown["unknown"].conclusions == {"failure": 1}
    assert shown["p"].conclusions == {"success": 1}


# -- floods ----------------------------------------------------------------------------------------


def test_ten_thousand_facts_of_one_job_do_not_cost_its_completion(tables: Tables) -> None:
    flood: list[Record] = [
        fact(n, claim=ClaimFact(handle=f"c{n}", claimed_at=BASE + n)) for n in range(10_000)
    ]
    run(tables, tick(BASE), fact(10_001, times=times(queued=BASE)), *flood)
    before = json.loads(tables.states[JOB])
    assert before["status"] == "claimed"
    end = fact(10_002, times=times(completed=BASE + 9), conclusion=Conclusion.SUCCESS)
    effects = run(tables, end, tick(BASE + 5_000), start=10_100)
    after = json.loads(tables.states[JOB])
    assert (after["status"], after["conclusion"]) == ("completed", "success")
    assert after["rev"] > before["rev"] > 9_000
    assert len(after["facts"]) == 1_000
    assert Note(metrics.COMPLETIONS, ("unknown", "success")) in effects.notes
    assert isinstance(effects.outputs[0], Output)


# -- whatever is said ------------------------------------------------------------------------------

any_text = st.text(max_size=300)
any_time = st.integers() | st.integers(BASE, BASE + DAY_MS)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)


def maybe(*likely: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(*likely, any_json)


said = st.fixed_dictionaries(
    {
        "id": maybe(any_text, any_text),
        "kind": st.sampled_from(["job.fact", "job.fact", "run.fact", "run.link", "tick", "x"]),
        "source": any_text.filter(bool),
        "occurred_at": any_time,
        "received_at": st.integers(BASE, BASE + DAY_MS),
        "key": st.sampled_from(["github:github.com:1", "a:b:8443:2", "github:h:run/7", "::", "k"]),
    },
    optional={
        "cause": any_text,
        "attempt": maybe(st.integers()),
        "job_key": maybe(st.sampled_from(["github:github.com:1", "no"])),
        "times": maybe(
            st.dictionaries(
                st.sampled_from([m.value for m in Milestone]),
                st.dictionaries(st.sampled_from([c.value for c in Clock]), any_time, max_size=2),
            )
        ),
        "marks": maybe(
            st.lists(st.tuples(any_time, st.sampled_from(["queued", "waiting"])), max_size=3)
        ),
        "conclusion": maybe(st.sampled_from([c.value for c in Conclusion])),
        "job": maybe(
            st.fixed_dictionaries(
                {}, optional={"run_id": st.integers(), "name": any_text, "pool": any_text}
            )
        ),
        "runner": maybe(st.fixed_dictionaries({"id": st.integers(), "name": any_text})),
        "claim": maybe(st.fixed_dictionaries({"handle": any_text, "claimed_at": any_time})),
        "run": maybe(st.fixed_dictionaries({"attempt": st.integers(), "completed_at": any_time})),
    },
)


@given(st.lists(said, min_size=1, max_size=8))
def test_nothing_that_can_be_said_stops_the_fold(records: list[dict[str, Any]]) -> None:
    """Each record is folded or refused with a reason. Anything else would be a crash loop."""
    tables = Tables()
    ledger = tables.ledger(WIDE)
    for offset, record in enumerate(records):
        with contextlib.suppress(Unreadable):
            ledger.apply(offset, read(JOBS_RECORD, json.dumps(record).encode()))
    write(tables, ledger.flush())
    tables.ledger(WIDE)


def test_a_host_may_have_a_port(tables: Tables) -> None:
    said = JobFact(
        id="f", source="t", occurred_at=BASE, received_at=BASE, key="github:ghes.local:8443:7",
        cause="c",
    )  # fmt: skip
    (output,) = run(tables, said).outputs
    state = msgspec.json.decode(output.value or b"")
    assert (state["provider"], state["host"], state["job_id"]) == ("github", "ghes.local:8443", "7")


def test_the_largest_state_fits_into_a_record() -> None:
    ledger = Tables().ledger(WIDE)
    for n in range(1_000):
        long = f"{n:04}" + "x" * 60
        ledger.apply(
            n,
            fact(
                n,
                claim=ClaimFact(
                    handle=long * 4, runner="r" * 256, reason="y" * 256, claimed_at=BASE
                ),
                marks=((BASE + n, "waiting"),),
                job=JobAttributes(
                    name="n" * 1024, repo="r" * 1024, workflow="w" * 1024, branch="b" * 1024,
                    sha="s" * 1024, url="u" * 1024,
                    labels=tuple("l" * 250 + str(i) for i in range(100)),
                ),
            ).model_copy(update={"cause": long}),
        )  # fmt: skip
    (output,) = ledger.flush().outputs
    assert len(output.value or b"") < 500_000
