"""Order, duplicates and gaps cannot matter: proved on generated histories."""

from __future__ import annotations

import itertools
import random
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.jobs import (
    FleetNames,
    Job,
    Run,
    decode,
    decode_run,
    encode,
    encode_run,
    join,
    link_run,
    merge,
    merge_run,
    run_outcomes,
    view,
)
from pipeline.jobs import facts as rules
from pipeline.jobs.attributes import Attributes
from pipeline.jobs.facts import DAY_MS, MAX_FACTS
from topics.models import (
    JOB_STATE,
    ClaimFact,
    Clock,
    Conclusion,
    JobAttributes,
    JobFact,
    Milestone,
    ParentRun,
    RunFact,
    RunLink,
    RunnerRef,
    Step,
)

KEY = "github:github.com:1"
BASE = 1_700_000_000_000
FLEETS = FleetNames({"linux,x64": "linux"})

times = st.integers(BASE, BASE + 90_000)
#: ``unknown`` is the lesser word, whatever its place in the alphabet.
ENDS: Final = (Conclusion.SUCCESS, Conclusion.FAILURE, Conclusion.UNKNOWN)
runner_names = st.sampled_from(["", "r1", "r2"])

facts = st.builds(
    lambda n, **said: JobFact(id=f"f{n}", source="t", key=KEY, cause=f"c{n % 5}", **said),
    # A small id space makes repeated ids with *other* content common, on purpose.
    n=st.integers(0, 60),
    occurred_at=st.integers(BASE, BASE + 6),
    received_at=times | st.integers(BASE - 400 * DAY_MS, BASE),
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
        name=st.sampled_from(["", "build", "test", "build (${{ matrix.os }})"]),
        repo=st.sampled_from(["", "zeta/shop", "alpha/shop"]),
        url=st.sampled_from(["", "https://a/1", "https://z/1"]),
        branch=st.sampled_from(["", "main", "next"]),
        workflow=st.sampled_from(["", "ci"]),
        sha=st.sampled_from(["", "abc"]),
        runner_group=st.sampled_from(["", "Default", "big"]),
        labels=st.sampled_from([(), ("linux",), ("linux", "x64")]),
        pool=st.sampled_from(["", "big", "all"]),
        actor=st.sampled_from(["", "ann", "bob"]),
        trigger=st.sampled_from(["", "", "push"]),
        head_repo=st.sampled_from(["", "bob/shop"]),
        pull_request=st.integers(0, 2),
    ),
    runner=st.none() | st.builds(RunnerRef, id=st.sampled_from([None, 0, 5]), name=runner_names),
    claim=st.none()
    | st.builds(
        ClaimFact,
        handle=st.sampled_from(["a", "b", "c", "d"]),
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
        conclusion=st.sampled_from([None, *ENDS]),
    ),
    steps=st.lists(
        st.builds(
            Step,
            number=st.integers(1, 4),
            name=st.sampled_from(["", "build", "test"]),
            conclusion=st.sampled_from([None, *ENDS]),
            started_at=st.none() | times,
            completed_at=st.none() | times,
        ),
        max_size=3,
    ).map(tuple),
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


# --- floods ---------------------------------------------------------------------------------------


@given(histories, histories, st.integers(0, 2**32))
def test_at_the_bounds_it_still_is_a_join(a: list[JobFact], b: list[JobFact], seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "MAX_FACTS", 4)
        patch.setattr(rules, "MAX_MARKS", 4)
        patch.setattr(rules, "MAX_CLAIMS", 1)
        patch.setattr(rules, "MAX_CAUSES", 2)
        patch.setattr(rules, "MAX_STEPS", 2)
        x, y, both = fold(a), fold(b), fold(a + b)
        assert join(x, y) == join(y, x) == both
        assert join(both, x) is both
        shuffled = [*a, *b, *a]
        random.Random(seed).shuffle(shuffled)
        assert fold(shuffled) == both
        assert both.rev >= max(x.rev, y.rev)
        # Whatever was dropped, no milestone and no ending was.
        every = {milestone for fact in a + b for milestone in fact.times}
        assert every == both.times.keys()
        assert (both.ending is not None) == (Milestone.COMPLETED in every)
        rev = 0
        job: Job | None = None
        for fact in shuffled:
            job = merge(job, fact)
            assert job.rev >= rev
            rev = job.rev


def test_a_flood_of_facts_never_costs_the_completion() -> None:
    flood = [_fact(n) for n in range(10_000)]
    end = _fact(
        10_000,
        times={Milestone.COMPLETED: {Clock.PROVIDER: BASE + 5}},
        conclusion=Conclusion.SUCCESS,
    )
    flooded = fold(flood)
    assert len(flooded.facts) == MAX_FACTS
    assert 9_000 < flooded.rev < 11_000, "beyond the bound, rev is an estimate"
    done = merge(flooded, end)
    assert view(done, FLEETS).status == "completed"
    assert done.rev > flooded.rev
    assert fold([end, *flood]) == fold([*flood[:5_000], end, *flood[5_000:]]) == done
    assert merge(done, flood[3]) is done


def test_of_too_many_claims_the_last_is_known() -> None:
    claims = [
        _fact(n, claim=ClaimFact(handle=f"lease-{n:05}", claimed_at=BASE + n, released_at=BASE + n))
        for n in range(2_000)
    ]
    alive = _fact(9_999, claim=ClaimFact(handle="lease-09999", claimed_at=BASE + 9_999))
    job = fold([*claims, alive])
    assert len(job.claims) == rules.MAX_CLAIMS
    assert (view(job, FLEETS).status, view(job, FLEETS).since) == ("claimed", BASE + 9_999)
    assert fold([alive, *claims[::-1]]) == job


def test_of_too_many_moments_the_first_and_the_last_are_known() -> None:
    # Where the job is now hangs on the last one.
    marks = [_fact(n, marks=((BASE + n, ("queued", "waiting")[n % 2]),)) for n in range(1_000)]
    job = fold(marks)
    assert len(job.marks) == rules.MAX_MARKS
    assert (view(job, FLEETS).status, view(job, FLEETS).since) == ("waiting", BASE + 999)
    assert job.marks[0][0] == BASE


def _fact(n: int, **said: Any) -> JobFact:
    return JobFact(
        id=f"n{n}", source="t", occurred_at=BASE, received_at=BASE, key=KEY, cause="c", **said
    )


# --- what a job is --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["repo", "url", "workflow", "branch", "name", "runner_group", "head_repo"]
)
def test_of_two_names_the_one_said_last_counts(name: str) -> None:
    # A repository may be renamed while its job runs; neither order of letters nor of arrival tells.
    said = [
        _fact(n, job=JobAttributes(run_id=7, **{name: value})).model_copy(
            update={"occurred_at": BASE + n}
        )
        for n, value in enumerate(["zeta", "alpha", "", "beta"])
    ]
    for order in itertools.permutations(said):
        assert getattr(fold(list(order)).attributes, name) == "beta"
    for order in itertools.permutations(said[:3]):
        assert getattr(fold(list(order)).attributes, name) == "alpha", "blank is not a name"


def test_a_pool_may_change_and_a_dispatcher_does_not_rename_a_repository() -> None:
    said = [
        _fact(1, job=JobAttributes(run_id=7, name="build", repo="acme/shop")),
        _fact(2, job=JobAttributes(pool="small", repo="ACME/Shop-old")).model_copy(
            update={"occurred_at": BASE + 1}
        ),
        _fact(3, job=JobAttributes(pool="large")).model_copy(update={"occurred_at": BASE + 2}),
    ]
    for order in itertools.permutations(said):
        known = fold(list(order)).attributes
        assert (known.repo, known.pool) == ("acme/shop", "large")
    # Alone, its word counts.
    assert fold(said[1:]).attributes.repo == "ACME/Shop-old"


def test_the_name_of_a_fleet_says_where_it_comes_from() -> None:
    def named(*said: JobAttributes) -> tuple[str, str]:
        seen = view(fold([_fact(n, job=one) for n, one in enumerate(said)]), FLEETS)
        return seen.fleet, seen.fleet_from

    labels = JobAttributes(run_id=7, labels=("linux", "x64"), runner_group="Default")
    assert named(JobAttributes(run_id=7)) == ("unknown", "nothing")
    assert named(JobAttributes(run_id=7, runner_group="big")) == ("big", "group")
    assert named(labels, JobAttributes(run_id=7, runner_group="big")) == ("linux", "labels")
    assert named(labels, JobAttributes(pool="p")) == ("p", "pool")


def test_one_wrong_clock_does_not_make_a_job_old() -> None:
    year = 365 * DAY_MS
    now = _fact(0)
    for late in ({"received_at": BASE - year}, {"occurred_at": BASE - year}):
        old = _fact(1).model_copy(update=late)
        assert fold([now, old]) == fold([old, now])
        assert fold([now, old]).last_seen == BASE - BASE % DAY_MS


@pytest.mark.parametrize("known", [Conclusion.SUCCESS, Conclusion.FAILURE])
def test_a_step_s_real_conclusion_beats_unknown(known: Conclusion) -> None:
    told = [
        _fact(at).model_copy(update={"steps": (Step(number=1, conclusion=end),)})
        for at, end in enumerate([Conclusion.UNKNOWN, known])
    ]
    for order in (told, told[::-1]):
        assert [step.conclusion for step in fold(order).steps] == [known]


def test_every_attribute_of_the_contract_is_kept() -> None:
    assert JobAttributes.model_fields.keys() <= set(Attributes.__struct_fields__)


def test_the_run_knows_better_than_the_job_who_started_it() -> None:
    said = [
        _fact(1, job=JobAttributes(run_id=7, name="build", actor="approver")).model_copy(
            update={"occurred_at": BASE + 9}
        ),
        _fact(2, job=JobAttributes(run_id=7, actor="ann", trigger="push", pull_request=5)),
        _fact(3, job=JobAttributes(run_id=7, name="build", actor="canceller")),
    ]
    for order in itertools.permutations(said):
        known = fold(list(order)).attributes
        assert (known.actor, known.trigger, known.pull_request) == ("ann", "push", 5)
    assert fold(said[::2]).attributes.actor == "approver", "of the lesser words the latest"


# --- what a run tells its jobs --------------------------------------------------------------------

RUN = "github:github.com:run/7"


def _link(n: int) -> RunLink:
    return RunLink(
        id=f"l{n}", source="t", occurred_at=BASE, received_at=BASE, key=RUN,
        job_key=f"github:github.com:{n}", attempt=1,
    )  # fmt: skip


def _run_event(n: int, completed: bool = False, **said: Any) -> RunFact:
    return RunFact(
        id=f"r{n}", source="t", occurred_at=BASE + n, received_at=BASE + n, key=RUN,
        run=ParentRun(attempt=1, started_at=BASE, completed_at=BASE + n if completed else None),
        job=JobAttributes(run_id=7, actor="ann", trigger="push", **said),
    )  # fmt: skip


@given(st.permutations([*map(_link, range(5)), *map(_run_event, range(4))]))
def test_a_live_run_tells_each_job_once_and_nothing_of_an_end(order: list[Any]) -> None:
    run: Run | None = None
    told = []
    for one in order:
        after = link_run(run, one) if isinstance(one, RunLink) else merge_run(run, one)
        told += run_outcomes(run, after)
        run = decode_run(encode_run(after))
        assert run == after
    assert len(told) == 5, "as many as there are jobs, however many events of the run"
    assert len({one.key for one in told}) == len({one.id for one in told}) == 5
    assert {one.run for one in told} == {None}
    assert run is not None
    over = merge_run(run, _run_event(9, completed=True))
    ends = run_outcomes(run, over)
    assert [(one.run is not None, one.job) for one in ends] == [(True, None)] * 5
    news = merge_run(over, _run_event(10, pull_request=3))
    assert len(run_outcomes(over, news)) == 5
    assert run_outcomes(news, merge_run(news, _run_event(11))) == []
