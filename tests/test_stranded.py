"""How a job gets out of a wrong state, and how long it was in it."""

from __future__ import annotations

import pytest

from tests.support.stall_loop import KEY, MINUTE, POLICY, TICK, Loop
from topics.models import ClaimFact, Conclusion, ParentRun
from topics.recovery import Answer, Result, StallKind


@pytest.fixture
def loop() -> Loop:
    made = Loop()
    made.tick()
    made.queued()
    return made


def test_how_the_run_ended_is_waited_for_a_while(loop: Loop) -> None:
    """The answer comes by the job's log, how the run ended by the run's: either may be first."""
    loop.claimed()
    loop.wait(POLICY.orphan_ms + TICK)
    loop.answer(loop.probes[0], Answer.GHOST)
    loop.tick()
    loop.tick()
    assert loop.status == "starting"
    loop.say(run=ParentRun(attempt=1, completed_at=loop.now, conclusion=Conclusion.TIMED_OUT))
    loop.tick()
    loop.fold()
    found = loop.ledger.job(KEY)
    assert found is not None
    assert (found[1].status, found[1].conclusion) == ("completed", "timed_out")


def test_a_run_of_which_nothing_is_heard_is_not_waited_for_for_ever(loop: Loop) -> None:
    loop.claimed()
    loop.wait(POLICY.orphan_ms + TICK)
    loop.answer(loop.probes[0], Answer.GHOST)
    loop.wait(MINUTE + 2 * TICK)
    assert loop.status == "completed"


@pytest.mark.parametrize("running", [False, True])
def test_a_runner_that_is_seen_again_is_not_lost(loop: Loop, running: bool) -> None:
    loop.claimed()
    if running:
        loop.started()

    def say(name: str) -> None:
        claim = None if running else ClaimFact.model_validate({"handle": "h1", name: loop.now})
        loop.say(claim=claim, **({name: loop.now} if running else {}))

    say("lost_at")
    loop.tick()
    loop.fold()
    assert loop.ledger.stalls()[KEY].kind == StallKind.RUNNER_LOST
    loop.tick()
    say("found_at")
    assert not loop.ledger.stalls()
    loop.answer(loop.probes[0], Answer.QUEUED)
    loop.wait(POLICY.orphan_ms - MINUTE)
    assert (len(loop.probes), loop.proposals) == (1, [])
    say("lost_at")
    loop.tick()
    assert len(loop.probes) + len(loop.proposals) == 2


def test_how_long_it_was_stuck_is_a_sample_once_when_it_is_freed(loop: Loop) -> None:
    loop.claimed()
    claimed_at = loop.now
    loop.wait(POLICY.orphan_ms + TICK)
    loop.answer(loop.probes[0], Answer.QUEUED)
    loop.tick()
    loop.fold()
    assert not stranded(loop)
    proposal = loop.proposals[0]
    loop.decide(proposal)
    loop.end(proposal, Result.DONE)
    loop.wait(MINUTE)
    took = loop.now - MINUTE - claimed_at
    assert stranded(loop) == {"stranded.orphan": (1, took)}
    # Found out later: it was released before that. The sample moves with what is known.
    loop.say(claim=ClaimFact(handle="h1", released_at=loop.now - 2 * MINUTE))
    assert stranded(loop) == {"stranded.orphan": (1, took - MINUTE)}
    assert loop.noted["stranded_seconds", "linux", "orphan"] == 2
    assert loop.noted["timings_revised", "stranded"] == 1
    whole = loop.rebuilt()
    assert stranded(whole) == stranded(loop)


def test_a_completion_that_was_missed_strands_nobody(loop: Loop) -> None:
    loop.started()
    loop.wait(POLICY.running_ms + MINUTE)
    loop.completed()
    loop.answer(loop.probes[0], Answer.COMPLETED)
    loop.wait(MINUTE)
    assert loop.recovery.stalls["1"].head.kind == StallKind.MISSED_COMPLETION
    assert not stranded(loop)


def stranded(loop: Loop) -> dict[str, tuple[int, int]]:
    """Samples of stranded time in the panes: how many, and their sum."""
    return {
        family: (sketch.count, sketch.sum_ms)
        for pane in loop.ledger.panes.values()
        for family, sketch in pane.families.items()
        if family.startswith("stranded.") and sketch.count
    }
