"""Order, duplicates and gaps cannot matter: proved on generated histories."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.jobs import FleetNames, Job, TooManyFacts, decode, encode, join, merge, view
from pipeline.jobs.facts import MAX_FACTS
from topics.models import (
    JOB_STATE,
    ClaimFact,
    Clock,
    Conclusion,
    JobAttributes,
    JobFact,
    Milestone,
    ParentRun,
    RunnerRef,
)

KEY = "github:github.com:1"
BASE = 1_700_000_000_000
FLEETS = FleetNames({"linux,x64": "linux"})

times = st.integers(BASE, BASE + 90_000)
runner_names = st.sampled_from(["", "r1", "r2"])

facts = st.builds(
    lambda n, **said: JobFact(
        id=f"f{n}", source="t", occurred_at=BASE, key=KEY, cause=f"c{n % 5}", **said
    ),
    # A small id space makes repeated ids with *other* content common, on purpose.
    n=st.integers(0, 60),
    received_at=times,
    times=st.dictionaries(
        st.sampled_from(Milestone),
        st.dictionaries(st.sampled_from(Clock), times, min_size=1, max_size=3),
        max_size=3,
    ),
    marks=st.lists(st.tuples(times, st.sampled_from(["queued", "waiting"])), max_size=3).map(tuple),
    conclusion=st.none() | st.sampled_from(Conclusion),
    job=st.none()
    | st.builds(
        JobAttributes,
        run_id=st.integers(0, 2),
        run_attempt=st.integers(0, 2),
        name=st.sampled_from(["", "build", "build (${{ matrix.os }})"]),
        labels=st.sampled_from([(), ("linux",), ("linux", "x64")]),
        pool=st.sampled_from(["", "big"]),
    ),
    runner=st.none() | st.builds(RunnerRef, id=st.sampled_from([None, 0, 5]), name=runner_names),
    claim=st.none()
    | st.builds(
        ClaimFact,
        handle=st.sampled_from(["a", "b"]),
        claimed_at=st.none() | times,
        minted_at=st.none() | times,
        released_at=st.none() | times,
        runner=runner_names,
        reason=st.sampled_from(["", "x"]),
    ),
    run=st.none()
    | st.builds(
        ParentRun,
        attempt=st.integers(1, 2),
        started_at=st.none() | times,
        completed_at=st.none() | times,
        conclusion=st.none() | st.sampled_from([Conclusion.SUCCESS, Conclusion.FAILURE]),
    ),
)
histories = st.lists(facts, min_size=1, max_size=12)


def fold(history: list[JobFact]) -> Job:
    job = None
    for fact in history:
        job = merge(job, fact)
    assert job is not None
    return job


@given(histories, st.integers(0, 2**32), st.data())
def test_any_order_and_any_duplication_give_the_same_job(
    history: list[JobFact], seed: int, data: st.DataObject
) -> None:
    rng = random.Random(seed)
    shuffled = history + data.draw(st.lists(st.sampled_from(history), max_size=6))
    rng.shuffle(shuffled)
    one, other = fold(history), fold(shuffled)
    assert one == other
    assert one.rev == other.rev
    assert view(one, FLEETS) == view(other, FLEETS)
    assert encode(one, view(one, FLEETS)) == encode(other, view(other, FLEETS))


@given(histories, histories, histories)
def test_join_is_a_join(a: list[JobFact], b: list[JobFact], c: list[JobFact]) -> None:
    x, y, z = fold(a), fold(b), fold(c)
    assert join(join(x, y), z) == join(x, join(y, z))
    assert join(x, y) == join(y, x) == fold(a + b)
    assert join(x, x) is x


@given(histories)
def test_rev_never_falls_and_terminal_never_reopens(history: list[JobFact]) -> None:
    job: Job | None = None
    rev, terminal = 0, False
    for fact in history:
        job = merge(job, fact)
        assert job.rev >= rev
        rev = job.rev
        status = view(job, FLEETS).status
        assert not terminal or status == "completed"
        terminal = status == "completed"
    assert job is not None
    assert rev == len({fact.id for fact in history})


@given(histories)
def test_no_timing_without_both_bounds_and_none_is_negative(history: list[JobFact]) -> None:
    job = fold(history)
    v = view(job, FLEETS)
    bounds: dict[str, tuple[Any, Any]] = {
        "queue": (v.at.queued, v.at.started),
        "claim_to_start": (v.at.claimed, v.at.started),
        "run": (v.at.started, v.at.completed),
        "total": (v.at.queued, v.at.completed),
    }
    for family, timing in v.timings.items():
        assert (timing.ms is None) != (timing.missing is None)
        if timing.ms is not None:
            assert timing.ms >= 0
            assert None not in bounds[family]
            assert v.at.started is not None


@given(histories)
def test_bytes_round_trip_and_follow_the_contract(history: list[JobFact]) -> None:
    job = fold(history)
    value = encode(job, view(job, FLEETS))
    assert decode(value) == job
    state = JOB_STATE.validate_json(value)
    v = view(job, FLEETS)
    assert (state.rev, state.status, state.since) == (job.rev, v.status, v.since)
    assert {f.value: (t.ms, t.missing) for f, t in state.timings.items()} == {
        f: (t.ms, t.missing) for f, t in v.timings.items()
    }


@given(histories, st.integers(0, 12))
def test_merging_into_recovered_bytes_is_the_same_as_never_having_stopped(
    history: list[JobFact], cut: int
) -> None:
    head, tail = history[: cut % len(history)], history[cut % len(history) :]
    job = None
    for fact in head:
        job = merge(job, fact)
    if job is not None:
        job = decode(encode(job, view(job, FLEETS)))
    for fact in tail:
        job = merge(job, fact)
    assert job == fold(history)


def test_a_flood_of_facts_about_one_job_is_refused_and_named() -> None:
    job: Job | None = None
    for n in range(MAX_FACTS):
        job = merge(job, _fact(n))
    assert merge(job, _fact(3)) is job
    with pytest.raises(TooManyFacts, match="already knows 1000 distinct facts"):
        merge(job, _fact(MAX_FACTS))


def _fact(n: int) -> JobFact:
    return JobFact(id=f"n{n}", source="t", occurred_at=BASE, received_at=BASE, key=KEY, cause="c")
