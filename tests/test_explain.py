"""A job in words: what a person on call reads of typical and of odd jobs, and that nothing that is
known goes unsaid."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.jobs import MISSING, decode, encode, explain, merge, view
from pipeline.jobs.facts import Job
from pipeline.metrics import MISSING_REASONS
from tests.test_jobs_properties import FLEETS, fold, histories
from topics.models import (
    ClaimFact,
    Clock,
    Conclusion,
    JobAttributes,
    JobFact,
    Milestone,
    ParentRun,
    RunnerRef,
    Step,
)

KEY = "github:github.com:4567"
#: 2026-01-05 12:00:00 UTC.
NOON: Final = 1_767_614_400_000
IS: Final = JobAttributes(
    run_id=99, run_attempt=1, name="build", repo="acme/shop", workflow="CI", branch="main",
    labels=("linux", "x64"),
)  # fmt: skip


def at(s: float) -> int:
    """So many seconds after noon, in ms."""
    return NOON + int(s * 1000)


def fact(cause: str, s: float, **said: Any) -> JobFact:
    """A fact that reached us at the second ``s`` after noon."""
    return JobFact(
        id=f"{cause}@{s}", source="t", occurred_at=at(s), received_at=at(s), key=KEY, cause=cause,
        **said,
    )  # fmt: skip


def seen(milestone: Milestone, **clocks: float) -> dict[Milestone, dict[Clock, int]]:
    return {milestone: {Clock(clock): at(s) for clock, s in clocks.items()}}


def words(*facts: JobFact, s: float) -> dict[str, tuple[str, ...]]:
    """What is said at the second ``s``, by heading."""
    job: Job | None = None
    for one in facts:
        job = merge(job, one)
    assert job is not None
    return {each.heading: each.sentences for each in explain(job, view(job, FLEETS), at(s))}


QUEUED = fact(
    "workflow_job.queued", 1, times=seen(Milestone.QUEUED, provider=0, received=1), job=IS
)
CLAIMED = fact("job.claimed", 10, claim=ClaimFact(handle="a", claimed_at=at(10)))
MINTED = fact("job.minted", 15, claim=ClaimFact(handle="a", minted_at=at(15), runner="r1"))
RELEASED = fact(
    "claim.released", 40, claim=ClaimFact(handle="a", released_at=at(40), reason="no_capacity")
)
STARTED = fact(
    "workflow_job.in_progress", 31, times=seen(Milestone.STARTED, provider=30, received=31),
    runner=RunnerRef(name="r1", id=7),
)  # fmt: skip
STEPS = (
    Step(number=1, name="checkout", conclusion=Conclusion.SUCCESS, started_at=at(30),
         completed_at=at(40)),
    Step(number=2, name="tests", conclusion=Conclusion.FAILURE, started_at=at(40),
         completed_at=at(280)),
)  # fmt: skip


def ended(how: Conclusion | None, s: float = 300, **said: Any) -> JobFact:
    return fact(
        "workflow_job.completed", s + 1,
        times=seen(Milestone.COMPLETED, provider=s, received=s + 1), conclusion=how, **said,
    )  # fmt: skip


NOTHING_ODD = ("Nothing contradicts itself, and nothing is missing so far.",)


WAITING = fact("workflow_job.waiting", 5, marks=((at(5), "waiting"),))
LET_THROUGH = fact("workflow_job.queued", 65, marks=((at(65), "queued"),))
LATER = fact(
    "workflow_job.in_progress", 100, times=seen(Milestone.STARTED, provider=100, received=101)
)
SECOND = fact("job.claimed", 50, claim=ClaimFact(handle="b", claimed_at=at(50)))
STRANGER = fact(
    "workflow_job.in_progress", 31, times=seen(Milestone.STARTED, provider=30),
    runner=RunnerRef(name="r9"),
)  # fmt: skip
RUN_FAILED = fact(
    "workflow_run", 20,
    run=ParentRun(attempt=1, completed_at=at(20), conclusion=Conclusion.STARTUP_FAILURE),
)  # fmt: skip

#: What was told; the first words at the second 360; why; what is odd.
CASES: Final[dict[str, tuple[tuple[JobFact, ...], str, tuple[str, ...], tuple[str, ...]]]] = {
    "queued only": (
        (QUEUED,),
        'The job "build" of "acme/shop" waits in the queue, for 6 m 00 s now.',
        (
            "It was queued: 2026-01-05 12:00:00 UTC, by the provider's clock.",
            "No claim holds it and no start was told: it waits for a runner of its fleet.",
        ),
        NOTHING_ODD,
    ),
    "gated": (
        (QUEUED, WAITING),
        'The job "build" of "acme/shop" waits for an approval, for 5 m 55 s now.',
        (
            "The provider last called it waiting: 2026-01-05 12:00:05 UTC. It is behind an approval"
            " gate.",
            "No runner may take it before somebody, or a rule, lets it through.",
        ),
        NOTHING_ODD,
    ),
    "let through": (
        (QUEUED, WAITING, LET_THROUGH),
        'The job "build" of "acme/shop" waits in the queue, for 4 m 55 s now.',
        (
            "It was behind an approval gate, and the provider called it queued again:"
            " 2026-01-05 12:01:05 UTC.",
            "No claim holds it and no start was told: it waits for a runner of its fleet.",
        ),
        ("It spent 1 m 00 s behind approval gates.",),
    ),
    "started behind a gate": (
        (QUEUED, WAITING, LATER),
        'The job "build" of "acme/shop" runs, for 4 m 20 s now.',
        (
            "Its start was told: 2026-01-05 12:01:40 UTC, by the provider's clock."
            " No completion was told.",
        ),
        ("It was behind an approval gate, and nobody told when the gate's wait ended.",),
    ),
    "claimed": (
        (QUEUED, CLAIMED),
        'The job "build" of "acme/shop" is claimed, for 5 m 50 s now.',
        (
            'Claim "a" holds it since 2026-01-05 12:00:10 UTC. No runner was minted (made ready)'
            " for it, and no start was told.",
            "It waits until its dispatcher mints a runner.",
        ),
        NOTHING_ODD,
    ),
    "minted": (
        (QUEUED, CLAIMED, MINTED),
        'The job "build" of "acme/shop" is about to start, for 5 m 45 s now.',
        (
            'Claim "a" holds it, and a runner ("r1") was minted (made ready) for it:'
            " 2026-01-05 12:00:15 UTC. No start was told.",
            "It waits until a runner has come up and taken it.",
        ),
        NOTHING_ODD,
    ),
    "claim released": (
        (QUEUED, CLAIMED, MINTED, RELEASED),
        'The job "build" of "acme/shop" waits in the queue, for 6 m 00 s now.',
        (
            "It was queued: 2026-01-05 12:00:00 UTC, by the provider's clock.",
            "Its only claim was released, and what was released does not count.",
            "No claim holds it and no start was told: it waits for a runner of its fleet.",
        ),
        ('Claim "a" was released ("no_capacity"): 2026-01-05 12:00:40 UTC.',),
    ),
    "two claims, one released": (
        (QUEUED, CLAIMED, RELEASED, SECOND),
        'The job "build" of "acme/shop" is claimed, for 5 m 10 s now.',
        (
            'Claim "b" holds it since 2026-01-05 12:00:50 UTC. No runner was minted (made ready)'
            " for it, and no start was told.",
            "It waits until its dispatcher mints a runner.",
        ),
        ('Claim "a" was released ("no_capacity"): 2026-01-05 12:00:40 UTC.',),
    ),
    "two claims at once": (
        (QUEUED, CLAIMED, SECOND),
        'The job "build" of "acme/shop" is claimed, for 5 m 10 s now.',
        (
            'Claim "b" holds it since 2026-01-05 12:00:50 UTC. No runner was minted (made ready)'
            " for it, and no start was told.",
            "It waits until its dispatcher mints a runner.",
        ),
        ("2 claims hold it at once.",),
    ),
    "running": (
        (QUEUED, CLAIMED, MINTED, STARTED),
        'The job "build" of "acme/shop" runs, for 5 m 30 s now.',
        (
            "Its start was told: 2026-01-05 12:00:30 UTC, by the provider's clock."
            " No completion was told.",
        ),
        NOTHING_ODD,
    ),
    "seen on a runner": (
        (QUEUED, fact("workflow_job.in_progress", 20, runner=RunnerRef(id=7))),
        'The job "build" of "acme/shop" runs; nobody told since when.',
        ("It was seen executing on runner 7. No completion was told.",),
        ("It was seen executing on runner 7, but nobody told when it started.",),
    ),
    "displaced": (
        (QUEUED, CLAIMED, MINTED, STRANGER),
        'The job "build" of "acme/shop" runs, for 5 m 30 s now.',
        (
            "Its start was told: 2026-01-05 12:00:30 UTC, by the provider's clock."
            " No completion was told.",
        ),
        ('Claim "a" is with runner "r1", but runner "r9" was seen executing it.',),
    ),
    "completed without a start": (
        (QUEUED, ended(Conclusion.SUCCESS)),
        'The job "build" of "acme/shop" ended with success 1 m 00 s ago.',
        (
            "Its completion was told: 2026-01-05 12:05:00 UTC, by the provider's clock."
            " A completed job never reopens.",
            "Its conclusion is success.",
        ),
        (
            "It completed, but nobody saw it start. It counts as never started; word of the start"
            " may be lost.",
        ),
    ),
    "skipped": (
        (QUEUED, ended(Conclusion.SKIPPED)),
        'The job "build" of "acme/shop" was skipped 1 m 00 s ago.',
        (
            "Its completion was told: 2026-01-05 12:05:00 UTC, by the provider's clock."
            " A completed job never reopens.",
            "Its conclusion is skipped.",
        ),
        NOTHING_ODD,
    ),
    "cancelled while it waited": (
        (QUEUED, ended(Conclusion.CANCELLED)),
        'The job "build" of "acme/shop" was cancelled 1 m 00 s ago.',
        (
            "Its completion was told: 2026-01-05 12:05:00 UTC, by the provider's clock."
            " A completed job never reopens.",
            "Its conclusion is cancelled.",
        ),
        ("It was cancelled before any runner took it.",),
    ),
    "nobody told how": (
        (QUEUED, STARTED, ended(None)),
        'The job "build" of "acme/shop" ended 1 m 00 s ago, and nobody told how.',
        (
            "Its completion was told: 2026-01-05 12:05:00 UTC, by the provider's clock."
            " A completed job never reopens.",
        ),
        ("It completed, but nobody told how: its conclusion is unknown.",),
    ),
    "a step failed": (
        (QUEUED, STARTED, ended(Conclusion.FAILURE, steps=STEPS)),
        'The job "build" of "acme/shop" ended with failure 1 m 00 s ago.',
        (
            "Its completion was told: 2026-01-05 12:05:00 UTC, by the provider's clock."
            " A completed job never reopens.",
            "Its conclusion is failure.",
            'Step 2, "tests", ended with failure.',
        ),
        NOTHING_ODD,
    ),
    "copied": (
        (
            QUEUED,
            STARTED,
            ended(Conclusion.SUCCESS),
            fact("workflow_run", 340, run=ParentRun(attempt=2, started_at=at(330))),
        ),
        'The job "build" of "acme/shop" ended with success 1 m 00 s ago.',
        (
            "Its completion was told: 2026-01-05 12:05:00 UTC, by the provider's clock."
            " A completed job never reopens.",
            "Its conclusion is success.",
        ),
        (
            "It was copied into a re-run from an earlier attempt, with its old times: it counts"
            " nowhere.",
        ),
    ),
    "ghost run": (
        (QUEUED, RUN_FAILED),
        'The job "build" of "acme/shop" waits in the queue, for 6 m 00 s now.',
        (
            "It was queued: 2026-01-05 12:00:00 UTC, by the provider's clock.",
            "Its run is over, so it waits for nothing any more.",
        ),
        (
            "Its run is over since 2026-01-05 12:00:20 UTC with startup failure, but nobody told"
            " that this job ended: a run that fails at start-up tells nothing of its jobs.",
        ),
    ),
    "only the dispatcher": (
        (CLAIMED,),
        "This job, whose name nobody told, is claimed, for 5 m 50 s now.",
        (
            'Claim "a" holds it since 2026-01-05 12:00:10 UTC. No runner was minted (made ready)'
            " for it, and no start was told.",
            "It waits until its dispatcher mints a runner.",
        ),
        (
            "Nobody told when it was queued.",
            "Only its dispatcher or runner told of it; the provider has not: its webhooks are late,"
            " lost or not set up.",
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_words_the_reason_and_what_is_odd(case: str) -> None:
    facts, short, why, odd = CASES[case]
    said = words(*facts, s=360)
    ((heading, reason),) = [each for each in said.items() if each[0].startswith("Why it is ")]
    assert said["In short"][0] == short
    assert reason == why
    assert said["What is odd or missing"] == odd
    assert list(said).index(heading) == 1


def test_all_words_about_a_job() -> None:
    run = fact(
        "workflow_run", 310,
        run=ParentRun(attempt=1, started_at=at(-1), completed_at=at(305),
                      conclusion=Conclusion.FAILURE),
        job=JobAttributes(run_id=99, actor="ann", trigger="pull_request", pull_request=5,
                          head_repo="bob/shop"),
    )  # fmt: skip
    said = words(
        QUEUED, CLAIMED, MINTED, STARTED, ended(Conclusion.FAILURE, steps=STEPS), run, s=360
    )
    assert said["In short"][1:] == (
        "Its key is github:github.com:4567.",
        'It belongs to the fleet "linux", by its labels ("linux" and "x64").',
        'It ran on runner "r1".',
    )
    assert said["When"] == (
        "Queued: 2026-01-05 12:00:00 UTC, by the provider's clock."
        " Told too: 2026-01-05 12:00:01 UTC by its arrival here.",
        "Claimed: 2026-01-05 12:00:10 UTC, by the dispatcher's or runner's clock.",
        "Minted: 2026-01-05 12:00:15 UTC, by the dispatcher's or runner's clock.",
        "Started: 2026-01-05 12:00:30 UTC, by the provider's clock."
        " Told too: 2026-01-05 12:00:31 UTC by its arrival here.",
        "Completed: 2026-01-05 12:05:00 UTC, by the provider's clock."
        " Told too: 2026-01-05 12:05:01 UTC by its arrival here.",
        "First heard of: 2026-01-05 12:00:01 UTC, by our clock.",
    )
    assert said["How long"] == (
        "Queue: 30.0 s, from queued to started, both by the provider's clock.",
        "Claim to start: 20.0 s, from claimed (by the dispatcher's or runner's clock) to started"
        " (by the provider's clock).",
        "Run: 4 m 30 s, from started to completed, both by the provider's clock.",
        "Total: 5 m 00 s, from queued to completed, both by the provider's clock.",
    )
    assert said["Its run"] == (
        'It belongs to run 99, attempt 1, of the workflow "CI" on "main".',
        'The run was started by "ann" ("pull_request").',
        "It is for pull request 5.",
        'Its code comes from a fork, "bob/shop".',
        "The run started: 2026-01-05 11:59:59 UTC.",
        "The run ended: 2026-01-05 12:05:05 UTC, with failure.",
    )
    assert said["Its claims"] == (
        '1. Claim "a" with runner "r1": claimed 2026-01-05 12:00:10 UTC,'
        " minted 2026-01-05 12:00:15 UTC.",
    )
    assert said["Its steps"] == (
        "2 steps known.",
        'Step 2, "tests", ended with failure.',
        'Step 2, "tests", took longest: 4 m 00 s.',
    )
    assert said["What this is known from"] == (
        "6 facts, made from job.claimed, job.minted, workflow_job.completed,"
        " workflow_job.in_progress, workflow_job.queued and workflow_run.",
    )


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (
            (fact("job.started", 60, times=seen(Milestone.STARTED, runner=150)),),
            "Two clocks are 2 m 00 s apart about when it started: 2026-01-05 12:00:30 UTC by the"
            " provider's clock, 2026-01-05 12:02:30 UTC by the dispatcher's or runner's clock.",
        ),
        (
            (ended(Conclusion.SUCCESS, 20),),
            "As they tell it, it completed 10.0 s before it started: the clocks contradict each"
            " other.",
        ),
        (
            (fact("x", 900, times=seen(Milestone.COMPLETED, provider=300, received=900)),),
            "Word that it completed reached us 10 m 00 s late.",
        ),
        (
            (fact("x", 20, times=seen(Milestone.COMPLETED, received=300)),),
            "Only its arrival here tells that it completed: it had happened by then, and no timing"
            " is measured with it.",
        ),
        (
            (fact("x", 20, times=seen(Milestone.COMPLETED, provider=9_000)),),
            "It is completed since 2026-01-05 14:30:00 UTC, which is 2 h 24 m ahead of our clock.",
        ),
        (
            (fact("x", 200, times=seen(Milestone.COMPLETED, provider=300, received=200)),),
            "Word of it reached us 1 m 40 s before it completed: a clock is wrong.",
        ),
    ],
)
def test_clocks_that_contradict_each_other_are_told(facts: tuple[JobFact, ...], says: str) -> None:
    assert says in words(QUEUED, STARTED, *facts, s=360)["What is odd or missing"]


def test_a_start_that_stood_still_at_creation_is_told() -> None:
    frozen = fact(
        "workflow_job.in_progress", 43,
        times=seen(Milestone.STARTED, provider=0, step=42, received=43),
    )  # fmt: skip
    assert words(QUEUED, frozen, s=360)["What is odd or missing"] == (
        "The provider's start is not later than its queueing, so it is not believed: it is dated by"
        " the start of its first step.",
    )


def test_the_claim_of_another_runner_is_no_reason_to_say_that_nobody_claimed_it() -> None:
    said = words(QUEUED, CLAIMED, MINTED, STRANGER, s=360)["How long"]
    assert "No time for claim to start: no claim is of the runner that executed it." in said


def test_a_job_that_ended_without_a_start_tells_how_long_it_waited() -> None:
    assert words(QUEUED, ended(Conclusion.CANCELLED), s=360)["How long"] == (
        "No time for queue, claim to start, run and total: it never started.",
        "It waited 5 m 00 s before it ended without a start.",
    )


def test_a_gate_and_clocks_that_crossed_stand_beside_the_time_in_the_queue() -> None:
    assert (
        "Queue: 35.0 s, from queued to started, both by the provider's clock."
        " Not counted: 1 m 00 s behind approval gates."
    ) in words(QUEUED, WAITING, LET_THROUGH, LATER.model_copy(
        update={"times": seen(Milestone.STARTED, provider=95)}), s=360)["How long"]  # fmt: skip
    crossed = fact("workflow_job.completed", 32, times=seen(Milestone.COMPLETED, provider=29))
    assert (
        "Run: 0 ms, from started to completed, both by the provider's clock."
        " The clocks crossed by 1.0 s, which counts as 0."
    ) in words(QUEUED, STARTED, crossed, s=360)["How long"]


def test_names_of_strangers_cannot_pass_for_our_words() -> None:
    evil = 'x". It is completed.\n\u202e\x1b[2J' + "y" * 500
    said = words(fact("x", 0, job=JobAttributes(run_id=7, name=evil, labels=(evil[:256],))), s=1)
    text = "\n".join(sentence for each in said.values() for sentence in each)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "\"x'. It is completed." in text
    assert len(said["In short"][0]) < 300


def test_of_very_many_claims_the_last_are_told() -> None:
    claims = [
        fact("job.claimed", n, claim=ClaimFact(handle=f"c{n:03}", claimed_at=at(n)))
        for n in range(60)
    ]
    said = words(QUEUED, *claims, s=360)["Its claims"]
    assert said[0] == "40 earlier claims left out."
    assert said[-1].startswith('60. Claim "c059"')
    assert len(said) == 21


def test_of_many_claims_that_were_released_the_last_are_odd() -> None:
    claims = [
        fact("x", n, claim=ClaimFact(handle=f"c{n}", claimed_at=at(n), released_at=at(n + 1)))
        for n in range(9)
    ]
    assert words(QUEUED, *claims, s=360)["What is odd or missing"] == (
        "9 claims were released. The last ones:",
        'Claim "c6" was released: 2026-01-05 12:00:07 UTC.',
        'Claim "c7" was released: 2026-01-05 12:00:08 UTC.',
        'Claim "c8" was released: 2026-01-05 12:00:09 UTC.',
    )


# --- for all histories ----------------------------------------------------------------------------

#: How each reason may be put.
OTHERWISE: Final = {
    "no_claim": (
        "nobody told of a claim",
        "no claim is of the runner that executed it",
        "nobody told when it was claimed",
    )
}


@given(histories, st.integers(-(10**8), 10**8))
def test_all_that_is_known_is_said(history: list[JobFact], later: int) -> None:
    job = fold(history)
    v = view(job, FLEETS)
    now = history[0].received_at + later
    sections = explain(job, v, now)
    said = {each.heading: each.sentences for each in sections}
    assert len(said) == len(sections)
    assert all(said.values())
    known = [
        ("Waiting", v.at.waiting), ("Queued", v.at.queued), ("Claimed", v.at.claimed),
        ("Minted", v.at.minted), ("Started", v.at.started), ("Completed", v.at.completed),
    ]  # fmt: skip
    told = {sentence.partition(":")[0].partition(",")[0] for sentence in said["When"]}
    assert told == {name for name, one in known if one is not None} | {"First heard of"}
    for timing in v.timings.values():
        if timing.missing is not None:
            ways = OTHERWISE.get(timing.missing, (MISSING[timing.missing],))
            assert any(s.endswith(f": {way}.") for s in said["How long"] for way in ways)
    assert sum(not s.startswith("No time for") for s in said["How long"]) == sum(
        t.ms is not None for t in v.timings.values()
    ) + (v.abandoned_ms is not None)
    assert len(said.get("Its claims", ())) == len(job.claims)
    assert (f"Why it is {v.status}") in said
    # What comes back from the table is told in the same words.
    again = decode(encode(job, v))
    assert explain(again, view(again, FLEETS), now) == sections


@given(histories, st.randoms())
def test_the_order_of_arrival_changes_no_word(history: list[JobFact], rng: Any) -> None:
    shuffled = [*history, *history[:3]]
    rng.shuffle(shuffled)
    one, other = fold(history), fold(shuffled)
    now = max(each.received_at for each in history)
    assert explain(one, view(one, FLEETS), now) == explain(other, view(other, FLEETS), now)


def test_every_reason_of_a_missing_timing_has_words() -> None:
    assert set(MISSING) == set(MISSING_REASONS)
