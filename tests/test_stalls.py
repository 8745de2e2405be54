"""Stalls in the fold of jobs: what is found, asked and proposed, and what never is."""

from __future__ import annotations

from functools import reduce
from random import Random
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.jobs import FleetNames, decode, encode, join, merge, view
from pipeline.recovery.explain import explain_recovery, last_event
from tests.support.stall_loop import BASE, HOUR, KEY, MINUTE, POLICY, SECOND, TICK, Loop
from topics.models import (
    ClaimFact,
    Conclusion,
    JobFact,
    ParentRun,
    Tick,
)
from topics.recovery import (
    MOVED_ON,
    Answer,
    CommandKind,
    Fence,
    Probe,
    Proposal,
    Result,
    StallKind,
    Why,
)


@pytest.fixture
def loop() -> Loop:
    made = Loop()
    made.tick()
    made.queued()
    return made


def test_a_claim_never_minted_is_released_without_asking(loop: Loop) -> None:
    loop.claimed(minted=False)
    loop.wait(POLICY.stale_claim_ms - TICK)
    assert not loop.proposals
    loop.wait(2 * TICK)
    (proposal,) = loop.proposals
    assert proposal.proposed.command is CommandKind.RELEASE_CLAIM
    assert (proposal.stall, proposal.fence.claim) == (StallKind.STALE_CLAIM, "h1")
    assert not loop.probes
    assert "claimed" in {seen.what for seen in proposal.evidence}
    loop.decide(proposal)
    loop.end(proposal, Result.DONE)
    assert loop.status == "queued"


def test_an_orphan_is_asked_about_and_requeued_when_the_provider_has_it_queued(loop: Loop) -> None:
    loop.claimed()
    loop.wait(POLICY.orphan_ms - TICK)
    assert not loop.probes
    loop.wait(2 * TICK)
    (probe,) = loop.probes
    assert (probe.stall, probe.repo, probe.run_id, probe.fence.claim) == (
        StallKind.ORPHAN, "o/r", 9, "h1",
    )  # fmt: skip
    assert not loop.proposals
    loop.answer(probe, Answer.QUEUED)
    loop.tick()
    (proposal,) = loop.proposals
    assert proposal.proposed.command is CommandKind.REQUEUE
    assert any("provider answers queued" in seen.what for seen in proposal.evidence)
    # Of the facts judged then nothing but what recovery said is new.
    assert proposal.fence.rev == len(decode(loop.table[KEY.encode()]).facts)
    loop.decide(proposal)
    loop.end(proposal, Result.DONE)
    assert loop.status == "queued"
    assert loop.recovery.stalls["1"].ended["1"].result == "done"


@pytest.mark.parametrize("answer", [Answer.IN_PROGRESS, Answer.UNKNOWN, Answer.GONE])
def test_an_orphan_is_left_alone_while_nothing_is_proven(loop: Loop, answer: Answer) -> None:
    loop.claimed()
    loop.wait(POLICY.orphan_ms + TICK)
    loop.answer(loop.probes[0], answer)
    loop.wait(50 * SECOND)
    assert not loop.proposals
    assert loop.status == "starting"


def test_an_orphan_that_runs_is_none(loop: Loop) -> None:
    loop.claimed()
    loop.wait(POLICY.orphan_ms + TICK)
    loop.started()
    loop.answer(loop.probes[0], Answer.IN_PROGRESS)
    loop.wait(30 * MINUTE)
    assert not loop.proposals
    assert len(loop.probes) == 1


@pytest.mark.parametrize("answer", [Answer.GHOST, Answer.COMPLETED])
def test_of_an_orphan_that_is_over_the_claim_is_released(loop: Loop, answer: Answer) -> None:
    loop.claimed()
    loop.wait(POLICY.orphan_ms + TICK)
    if answer is Answer.GHOST:
        ended = ParentRun(attempt=1, completed_at=loop.now, conclusion=Conclusion.STARTUP_FAILURE)
        loop.say(run=ended)
    else:
        loop.completed()
    loop.answer(loop.probes[0], answer)
    loop.wait(16 * TICK)
    assert loop.status == "completed"
    wanted = "startup_failure" if answer is Answer.GHOST else "success"
    found = loop.ledger.job(KEY)
    assert found is not None
    assert found[1].conclusion == wanted
    proposal = loop.proposals[-1]
    assert {p.proposed.command for p in loop.proposals} == {CommandKind.RELEASE_CLAIM}
    loop.decide(proposal)
    loop.end(proposal, Result.DONE)
    before = len(loop.proposals)
    loop.wait(30 * MINUTE)
    assert len(loop.proposals) == before


def test_gone_is_believed_when_it_is_said_again_later(loop: Loop) -> None:
    loop.claimed()
    loop.wait(POLICY.orphan_ms + TICK)
    for _ in range(8):
        if loop.status == "completed":
            break
        loop.answer(loop.probes[-1], Answer.GONE)
        loop.wait(4 * MINUTE)
    found = loop.ledger.job(KEY)
    assert found is not None
    assert (found[1].status, found[1].conclusion) == ("completed", "unknown")
    assert len(loop.probes) >= 3
    assert {p.proposed.command for p in loop.proposals} <= {CommandKind.RELEASE_CLAIM}


@pytest.mark.parametrize("other", [Answer.UNKNOWN, Answer.QUEUED, Answer.IN_PROGRESS])
def test_gone_is_not_believed_of_a_provider_that_now_and_then_says_something_else(
    loop: Loop, other: Answer
) -> None:
    loop.claimed()
    loop.started()
    loop.wait(POLICY.running_ms + TICK)
    for n in range(12):
        loop.answer(loop.probes[-1], other if n % 3 == 2 else Answer.GONE)
        before = len(loop.probes)
        while len(loop.probes) == before:
            loop.wait(10 * MINUTE)
        assert loop.status == "running"


def test_evidence_shortens_the_wait(loop: Loop) -> None:
    loop.claimed()
    loop.tick()
    assert not loop.probes
    loop.say(claim=ClaimFact(handle="h1", lost_at=loop.now))
    loop.tick()
    assert [probe.stall for probe in loop.probes] == [StallKind.RUNNER_LOST]


def test_a_lost_runner_of_another_claim_changes_nothing(loop: Loop) -> None:
    loop.claimed("h1")
    loop.say(claim=ClaimFact(handle="h1", released_at=loop.now))
    loop.tick()
    loop.claimed("h2", "vm-2")
    loop.say(claim=ClaimFact(handle="h1", lost_at=loop.now))
    loop.wait(MINUTE)
    assert not loop.probes


def test_a_swap_is_no_displacement(loop: Loop) -> None:
    loop.claimed()
    loop.say(claim=ClaimFact(handle="h1", displaced_at=loop.now))
    loop.tick()
    loop.started("vm-2")
    loop.wait(10 * MINUTE)
    assert not loop.probes
    assert not loop.proposals


def test_a_running_job_whose_runner_is_lost_is_only_asked_about(loop: Loop) -> None:
    loop.claimed()
    loop.started()
    loop.say(lost_at=loop.now)
    loop.tick()
    (probe,) = loop.probes
    loop.answer(probe, Answer.IN_PROGRESS)
    loop.wait(20 * MINUTE)
    assert not loop.proposals
    assert 1 < len(loop.probes) <= 6


def test_a_job_that_runs_for_long_is_asked_about_again_and_again(loop: Loop) -> None:
    loop.claimed()
    loop.started()
    for _ in range(3):
        loop.wait(HOUR + MINUTE)
        loop.answer(loop.probes[-1], Answer.IN_PROGRESS)
    assert len(loop.probes) == 3
    assert not loop.proposals


def test_queued_for_an_hour_and_a_day() -> None:
    loop = Loop()
    loop.tick()
    loop.queued()
    loop.wait(HOUR + TICK)
    loop.answer(loop.probes[0], Answer.QUEUED)
    loop.tick()
    assert loop.proposals[-1].proposed.command is CommandKind.REQUEUE
    # Nobody answers any more.
    loop.tick(23 * HOUR)
    loop.tick(sources_to=None)
    loop.wait(MINUTE)
    assert loop.proposals[-1].proposed.command is CommandKind.CLOSE
    loop.decide(loop.proposals[-1])
    loop.end(loop.proposals[-1], Result.DONE)
    found = loop.ledger.job(KEY)
    assert found is not None
    assert (found[1].status, found[1].conclusion) == ("completed", "stale")


def test_what_is_withheld_is_proposed_again_with_fresh_proof(loop: Loop) -> None:
    loop.claimed()
    loop.wait(POLICY.orphan_ms + TICK)
    loop.answer(loop.probes[-1], Answer.QUEUED)
    loop.tick()
    loop.decide(loop.proposals[-1], Why.PAUSED)
    for _ in range(12):
        loop.wait(MINUTE)
        if loop.probes[-1].k > 1 and len(loop.probes) == 2:
            loop.answer(loop.probes[-1], Answer.QUEUED)
    assert len(loop.probes) >= 2
    ks = [proposal.proposed.k for proposal in loop.proposals]
    assert ks == sorted(ks)
    assert len(set(ks)) > 3
    assert {proposal.proposed.attempt for proposal in loop.proposals} == {1}


def test_one_command_in_flight_then_a_cool_down_then_a_person(loop: Loop) -> None:
    commands: list[CommandKind] = []
    answered = 0
    for round_ in range(8):
        loop.claimed(f"h{round_}", f"vm-{round_}")
        for _ in range(200):
            loop.tick(30 * SECOND)
            if len(loop.probes) > answered:
                answered = len(loop.probes)
                loop.answer(loop.probes[-1], Answer.QUEUED)
            if len(loop.proposals) > len(commands):
                break
        else:
            break
        proposal = loop.proposals[-1]
        commands.append(proposal.proposed.command)
        loop.decide(proposal)
        loop.end(proposal, Result.DONE)
    assert commands[-1] is CommandKind.QUARANTINE
    assert len(commands) <= POLICY.most_attempts + 1
    before = len(loop.proposals)
    assert {stall.kind for stall in loop.ledger.stalls().values()} == {StallKind.FLAPPING}
    loop.wait(6 * HOUR)
    assert len(loop.proposals) == before


def test_another_clock_an_old_tick_or_a_source_behind_moves_nothing(loop: Loop) -> None:
    loop.claimed(minted=False)
    for more in (
        {"by": "somebody else"},
        {"by": ""},
        {"sources_to": None},
        {"sources_to": BASE},
    ):
        loop.tick(10 * MINUTE, **more)
        assert not loop.proposals
    loop.now += HOUR
    loop.log.append(
        Tick(
            id="old", source="t", key="tick:0", by="me", sources_to=loop.now - HOUR + TICK,
            occurred_at=loop.now - HOUR + TICK, received_at=loop.now,
        )
    )  # fmt: skip
    loop.fold()
    assert not loop.proposals
    loop.tick()
    assert len(loop.proposals) == 1


def test_what_was_done_about_a_forgotten_job_does_not_bring_it_back(loop: Loop) -> None:
    probe = Probe(
        id="p", source="t", occurred_at=BASE, received_at=BASE, key="github:github.com:8",
        fleet="f", n=1, k=1, stall=StallKind.ORPHAN, since=BASE, opened_at=BASE, fence=Fence(),
        expires_at=BASE,
    )  # fmt: skip
    loop.answer(probe, Answer.QUEUED)
    assert loop.ledger.job("github:github.com:8") is None


# --- whatever happens ---------------------------------------------------------------------------

STEPS: Final = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["queued", "claimed", "claim", "started", "completed", "release"]),
            st.integers(0, 2),
        ),
        st.tuples(st.just("tick"), st.sampled_from([TICK, MINUTE, 6 * MINUTE, HOUR, 25 * HOUR])),
        st.tuples(st.just("answer"), st.sampled_from(Answer)),
        st.tuples(st.just("decide"), st.sampled_from([None, None, Why.PAUSED, Why.BUDGET_TICK])),
        st.tuples(st.just("end"), st.sampled_from(Result)),
        st.tuples(st.sampled_from(["foreign", "behind", "lost", "found", "displaced"]), st.just(0)),
        st.tuples(st.just("crash"), st.booleans()),
    ),
    max_size=60,
)


def play(loop: Loop, steps: list[tuple[str, Any]]) -> list[Proposal]:
    """Do the steps. Returns the proposals that were issued, in order."""
    issued: list[Proposal] = []
    open_: list[tuple[Proposal, int]] = []
    owners = 0
    for what, arg in steps:
        made = len(loop.proposals)
        in_flight = [p for p, expires_at in open_ if loop.now < expires_at]
        fresh = [p for p in loop.proposals if loop.now - p.occurred_at <= 2 * MINUTE]
        if what == "queued":
            loop.queued()
        elif what in ("claimed", "claim"):
            loop.claimed(f"h{arg}", f"vm-{arg}", minted=what == "claimed")
        elif what == "started":
            loop.started(f"vm-{arg}")
        elif what == "completed" and arg == 0:
            loop.completed()
        elif what == "release":
            loop.say(claim=ClaimFact(handle=f"h{arg}", released_at=loop.now))
        elif what == "lost":
            loop.say(claim=ClaimFact(handle="h0", lost_at=loop.now), lost_at=loop.now)
        elif what == "found":
            loop.say(claim=ClaimFact(handle="h0", found_at=loop.now), found_at=loop.now)
        elif what == "displaced":
            loop.say(claim=ClaimFact(handle="h1", displaced_at=loop.now))
        elif what == "tick":
            loop.tick(arg)
        elif what == "foreign":
            loop.tick(by="another")
        elif what == "behind":
            loop.tick(sources_to=loop.now - 2 * HOUR)
        elif what == "answer" and loop.probes:
            loop.answer(loop.probes[-1], arg)
        elif what == "decide" and fresh:
            said = fresh[-1]
            known = {(p.proposed.attempt) for p in issued}
            if arg is None and not in_flight and said.proposed.attempt not in known:
                issued.append(said)
                open_.append((said, loop.now + 5 * MINUTE))
                loop.decide(said)
            elif arg is not None:
                loop.decide(said, arg)
        elif what == "end" and open_:
            loop.end(open_.pop()[0], arg)
        elif what == "crash":
            if arg:
                loop.fold(durable=False)
            owners += 1
            loop.open(f"owner-{owners}")
        if what != "tick":
            # What a time-out ends is no longer in flight; else nothing new while something is.
            assert not in_flight or len(loop.proposals) == made
        assert len([1 for _, expires_at in open_ if loop.now < expires_at]) <= 1
    return issued


def check(proposal: Proposal, loop: Loop) -> None:
    """A proposal has the proof that its command needs."""
    said = {seen.what: seen.at for seen in proposal.evidence}
    if proposal.proposed.command is CommandKind.REQUEUE:
        at = said.get("provider answers queued")
        assert at is not None
        assert 0 <= proposal.occurred_at - at <= POLICY.answer_ms
    if proposal.proposed.command is CommandKind.RELEASE_CLAIM:
        assert proposal.fence.claim
    assert proposal.proposed.attempt <= POLICY.most_attempts + 4


@given(STEPS)
def test_whatever_happens_nothing_is_proposed_without_proof(steps: list[tuple[str, Any]]) -> None:
    loop = Loop()
    loop.tick()
    loop.queued()
    issued = play(loop, steps)
    for proposal in loop.proposals:
        check(proposal, loop)
    requeues = [p for p in issued if p.proposed.command is CommandKind.REQUEUE]
    assert len(requeues) <= POLICY.most_attempts
    # Never a second one while the first may still be done.
    times = [p.occurred_at for p in issued]
    assert times == sorted(times)


@given(STEPS)
def test_a_replay_asks_and_proposes_nothing_and_knows_the_same(
    steps: list[tuple[str, Any]],
) -> None:
    loop = Loop()
    loop.tick()
    loop.queued()
    play(loop, steps)
    loop.fold()
    again = Loop()
    again.log, again.now = list(loop.log), loop.now
    again.open("who replays")
    again.fold()
    assert not again.probes
    assert not again.proposals
    mine, theirs = loop.ledger.job(KEY), again.ledger.job(KEY)
    assert mine == theirs


# --- in words -----------------------------------------------------------------------------------


def words(loop: Loop) -> str:
    found = loop.ledger.job(KEY)
    assert found is not None
    told = explain_recovery(*found, loop.now, POLICY)
    return " ".join(sentence for section in told for sentence in section.sentences)


def test_a_job_says_what_recovery_makes_of_it(loop: Loop) -> None:
    assert "If nothing is heard until then, it is suspected at" in words(loop)
    loop.claimed()
    assert "that a runner was made for it and the provider does not see it start" in words(loop)
    loop.wait(POLICY.orphan_ms + TICK)
    assert "Its provider was asked once, last at" in words(loop)
    loop.answer(loop.probes[0], Answer.QUEUED)
    assert "the answer was that it is queued." in words(loop)
    loop.tick()
    loop.fold()
    assert "it was proposed to requeue it" in words(loop)
    loop.decide(loop.proposals[-1], Why.PAUSED)
    assert "that was withheld: recovery is paused" in words(loop)
    loop.wait(2 * MINUTE)
    loop.decide(loop.proposals[-1])
    assert "Command 1, to requeue it, was issued at" in words(loop)
    loop.end(loop.proposals[-1], Result.DONE)
    assert "It was done at" in words(loop)


@given(STEPS)
def test_whatever_happened_can_be_said(steps: list[tuple[str, Any]]) -> None:
    loop = Loop()
    loop.tick()
    loop.queued()
    play(loop, steps)
    assert "None" not in words(loop)


def answered_after(loop: Loop, signal: bool) -> int:
    """A runner is made for a job and its machine dies. Seconds from the death to the command."""
    loop.claimed()
    died = loop.now
    asked = 0
    while not loop.proposals:
        loop.tick()
        if signal and loop.now - died == 60 * SECOND:
            loop.say(claim=ClaimFact(handle="h1", lost_at=loop.now))
        if len(loop.probes) > asked:
            asked = len(loop.probes)
            loop.tick()  # the prober takes a few seconds
            loop.answer(loop.probes[-1], Answer.QUEUED)
    assert loop.proposals[0].proposed.command is CommandKind.REQUEUE
    return (loop.now - died) // 1000


def test_the_hundred_minutes_take_less_than_six_and_with_a_signal_a_minute_and_a_half() -> None:
    """Tuist #10828: minted, the node dead, never registered; the job waited for 100 minutes."""
    for signal, most in ((False, 360), (True, 90)):
        loop = Loop()
        loop.tick()
        loop.queued()
        assert answered_after(loop, signal) < most


@given(STEPS, st.randoms(use_true_random=False))
def test_what_was_told_of_stalls_may_come_in_any_order_and_often(
    steps: list[tuple[str, Any]], chance: Random
) -> None:
    loop = Loop()
    loop.tick()
    loop.queued()
    play(loop, steps)
    facts = [record for record in loop.log if isinstance(record, JobFact)]
    whole = reduce(merge, facts, None)
    shuffled = facts + chance.choices(facts, k=len(facts))
    chance.shuffle(shuffled)
    assert reduce(merge, shuffled, None) == whole
    half = len(shuffled) // 2
    parts = [reduce(merge, part, None) for part in (shuffled[:half], shuffled[half:])]
    assert join(parts[0], parts[1]) == whole  # type: ignore[arg-type]
    assert whole is not None
    assert decode(encode(whole, view(whole, FleetNames()))) == whole


def test_what_is_stuck_is_known_without_looking_and_to_the_next_owner(loop: Loop) -> None:
    loop.claimed()
    loop.wait(POLICY.orphan_ms - TICK)
    assert not loop.ledger.stalls()
    loop.wait(2 * TICK)
    loop.tick()
    ((key, stall),) = loop.ledger.stalls().items()
    assert (key, stall.n, stall.kind) == (KEY, 1, "orphan")
    assert loop.ledger.next_look(KEY) is not None
    assert dict(loop.open("another").stalls()) == {KEY: stall}
    # It runs: what was suspected is over, though it is remembered.
    loop.started()
    assert loop.recovery.stalls
    assert not loop.ledger.stalls()
    assert not loop.open("a third").stalls()


def test_a_job_that_is_over_is_stuck_until_its_holder_is_told(loop: Loop) -> None:
    loop.claimed()
    loop.wait(POLICY.orphan_ms + TICK)
    loop.say(run=ParentRun(attempt=1, completed_at=loop.now, conclusion=Conclusion.FAILURE))
    loop.answer(loop.probes[-1], Answer.GHOST)
    loop.tick()
    loop.tick()
    assert loop.status == "completed"
    assert set(loop.ledger.stalls()) == {KEY}
    loop.wait(MINUTE)
    proposal = loop.proposals[-1]
    loop.decide(proposal)
    loop.end(proposal, Result.DONE)
    assert not loop.ledger.stalls()


@pytest.mark.parametrize(("reason", "again"), [(MOVED_ON, True), ("claim_changed", False)])
def test_its_holder_is_told_again_when_news_overtook_the_command(
    loop: Loop, reason: str, again: bool
) -> None:
    loop.claimed()
    loop.wait(POLICY.orphan_ms + TICK)
    loop.answer(loop.probes[-1], Answer.GHOST)
    loop.wait(3 * MINUTE)  # how the run ended is waited for
    for _ in range(4):
        proposal = loop.proposals[-1]
        loop.decide(proposal)
        # What is known of the run comes after the answer, from another partition.
        loop.say(run=ParentRun(attempt=1, completed_at=loop.now + len(loop.log)))
        loop.end(proposal, Result.REFUSED, reason)
        assert set(loop.ledger.stalls()) == ({KEY} if again else set())
        loop.wait(2 * POLICY.propose_again_most_ms)
        assert (loop.proposals[-1] is not proposal) is again
        if not again:
            return
        assert loop.proposals[-1].proposed.command is CommandKind.RELEASE_CLAIM
        assert loop.proposals[-1].fence.rev > proposal.fence.rev
    loop.decide(loop.proposals[-1])
    loop.end(loop.proposals[-1], Result.DONE)
    assert not loop.ledger.stalls()


def test_who_is_forgotten_is_not_stuck(loop: Loop) -> None:
    loop.claimed()
    loop.wait(POLICY.orphan_ms + TICK)
    loop.tick()
    assert loop.ledger.stalls()
    loop.tick(100 * 24 * HOUR)
    assert not loop.ledger.index
    assert not loop.ledger.stalls()


def test_the_last_event_is_the_last_in_the_life_of_a_stall_whatever_the_clocks(loop: Loop) -> None:
    loop.claimed(minted=False)
    loop.wait(POLICY.stale_claim_ms + 2 * TICK)
    (proposal,) = loop.proposals

    def last(now: int) -> tuple[str, int, str]:
        found = loop.ledger.job(KEY)
        assert found is not None
        assert found[0].recovery is not None
        return last_event(found[0].recovery.stalls["1"], now)

    at = proposal.proposed.at
    assert last(loop.now) == ("proposed", at, "release_claim")
    # The clock of the fleet's partition is a tick behind.
    loop.now = at - TICK
    loop.decide(proposal)
    assert last(at) == ("in flight", at - TICK, "release_claim")
    assert last(at + HOUR) == ("overdue", at - TICK, "release_claim")
    loop.now = at - 2 * TICK
    loop.end(proposal, Result.DONE)
    assert last(at)[::2] == ("ended", "release_claim done")
