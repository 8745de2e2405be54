"""The fold of fleets: what it decides, and what it never does."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fleet import ACT_WITHIN_MS, FleetPolicy, Policies, state
from pipeline.fleet.breaker import breaker
from pipeline.fleet.runners import Runner, displaced, loss, merge
from tests.support.fleet_world import (
    BASE,
    HOUR,
    MINUTE,
    POLICY,
    SECOND,
    Bench,
    commands,
    depth,
    ending,
    facts,
    host_gone,
    job,
    proposal,
    said,
    seen,
    switch,
    tick,
)
from topics.catalogue import COMMANDS, FLEET_STATES, JOBS
from topics.reading import read
from topics.recovery import (
    FLEET_STATE,
    BreakerState,
    CommandKind,
    Mode,
    Result,
    RunnerState,
    StallKind,
    Why,
    command_id,
)
from topics.tables import FLEETS_TABLE

BUSY, IDLE, CLAIMED = RunnerState.BUSY, RunnerState.IDLE, RunnerState.CLAIMED
STARTING, GONE = RunnerState.STARTING, RunnerState.GONE


def ready(policy: FleetPolicy | None = None) -> Bench:
    """A ledger that acts."""
    bench = Bench(Policies(policy or FleetPolicy()))
    bench.tell(tick(BASE))
    assert bench.ledger.acting
    return bench


def requeue(number: int, attempt: int = 1) -> str:
    return command_id(CommandKind.REQUEUE, job(number), attempt)


def withheld(outputs: list[Any]) -> list[Why | None]:
    return [each.stall.decided.withheld for each in facts(outputs) if each.stall]


# -- issuing ---------------------------------------------------------------------------------------


def test_a_proposal_is_answered_at_once_with_command_fact_and_record() -> None:
    outputs = ready().tell(proposal(1, BASE + SECOND))
    (command,), (fact,), (decided,) = commands(outputs), facts(outputs), said(outputs)
    assert command.id == decided.command_id == requeue(1)
    assert (command.key, command.fence.claim, command.fence.rev) == (job(1), "claim-1", 3)
    assert (command.occurred_at, command.expires_at) == (BASE, BASE + 300 * SECOND)
    assert not command.dry_run
    assert fact.id == f"{requeue(1)}:decided:1"
    assert fact.stall is not None
    assert fact.stall.decided is not None
    assert fact.stall.decided.expires_at == command.expires_at
    assert (fact.key, fact.stall.n, fact.stall.fence) == (job(1), 1, command.fence)
    assert (decided.key, decided.withheld, decided.n, decided.k) == ("f0", None, 1, 1)
    assert [each.partition for each in outputs if each.topic in (COMMANDS, JOBS)] == [None, None]


def test_one_command_in_flight_then_a_cool_down() -> None:
    bench = ready()
    at = BASE + 5 * SECOND
    bench.tell(proposal(1, BASE))
    again = bench.tell(tick(at), proposal(1, at, k=2, attempt=2))
    assert (commands(again), withheld(again)) == ([], [Why.COOLING])
    # Said once, however often it is considered.
    assert not facts(bench.tell(tick(at + 5 * SECOND), tick(at + 10 * SECOND)))
    bench.tell(ending(requeue(1), 1, at + 12 * SECOND, Result.DONE))
    assert not commands(bench.tell(tick(at + 15 * SECOND)))
    later = BASE + 121 * SECOND
    assert [c.id for c in commands(bench.tell(tick(later)))] == [requeue(1, 2)]


def test_the_same_command_is_never_issued_twice() -> None:
    bench = ready()
    bench.tell(proposal(1, BASE), ending(requeue(1), 1, BASE, Result.DONE))
    later = BASE + 10 * MINUTE
    bench.tell(tick(later))
    assert not commands(bench.tell(proposal(1, later, k=2, attempt=1), tick(later + SECOND)))
    assert commands(bench.tell(proposal(1, later + SECOND, k=3, attempt=2)))


def test_nobody_acts_on_anothers_tick_nor_on_an_old_one() -> None:
    bench = Bench()
    assert not said(bench.tell(proposal(1, BASE)))
    assert not said(bench.tell(tick(BASE, by="other"), proposal(2, BASE)))
    late = BASE + ACT_WITHIN_MS + 1
    assert not said(bench.tell(tick(BASE), proposal(3, BASE), now=late))
    bench.ledger.me = ""
    assert not said(bench.tell(tick(BASE + SECOND, by="")))
    bench.ledger.me = "me"
    made = commands(bench.tell(tick(BASE + 2 * SECOND)))
    assert [c.job_key for c in made] == [job(n) for n in (1, 2, 3)]


def test_what_is_no_longer_fresh_is_dropped() -> None:
    bench = Bench()
    bench.tell(proposal(1, BASE), proposal(2, BASE + MINUTE))
    made = commands(bench.tell(tick(BASE + 2 * MINUTE + SECOND)))
    assert [c.job_key for c in made] == [job(2)]
    assert not bench.ledger.fleets["f0"].pending
    assert not commands(bench.tell(proposal(3, BASE)))


def test_what_a_budget_withholds_comes_next_the_oldest_first() -> None:
    bench = ready(FleetPolicy(per_tick=2, per_hour=5))
    first = bench.tell(*(proposal(n, BASE, since=BASE - n * MINUTE) for n in range(1, 8)))
    assert [c.job_key for c in commands(first)] == [job(1), job(2)]
    # The third is withheld for the budget; what is older than it waits for the tick.
    order = []
    for number in range(1, 5):
        outputs = bench.tell(tick(BASE + number * 5 * SECOND))
        order += [c.job_key for c in commands(outputs)]
    assert order == [job(7), job(6), job(5)]
    counted = bench.counted()
    assert counted["recovery_commands", "requeue"] == 5
    assert counted["recovery_withheld", "budget_hour"] == 2
    assert counted["recovery_withheld", "budget_tick"] > 0


def test_budgets_of_a_tick_are_the_partitions_and_of_an_hour_the_fleets() -> None:
    bench = ready(FleetPolicy(per_tick=2, per_hour=2))
    made = commands(bench.tell(*(proposal(n, BASE, fleet=f"f{n}") for n in range(3))))
    assert [c.fleet for c in made] == ["f0", "f1"]
    assert [c.fleet for c in commands(bench.tell(tick(BASE + SECOND)))] == ["f2"]
    at = BASE + 2 * SECOND
    bench.tell(tick(at), *(proposal(n, at) for n in range(10, 13)))
    assert bench.counted()["recovery_withheld", "budget_hour"] == 2
    at = BASE + HOUR + 5 * SECOND
    bench.tell(tick(at))
    assert commands(bench.tell(proposal(20, at)))


# -- modes -----------------------------------------------------------------------------------------


def test_a_pause_withholds_and_what_is_fresh_goes_when_it_ends() -> None:
    bench = ready()
    bench.tell(switch(BASE, Mode.PAUSED))
    outputs = bench.tell(proposal(1, BASE), tick(BASE + SECOND))
    assert (commands(outputs), withheld(outputs)) == ([], [Why.PAUSED])
    bench.tell(switch(BASE + 2 * SECOND, None))
    assert commands(bench.tell(tick(BASE + 3 * SECOND)))
    assert bench.counted()["recovery_switches", "paused"] == 1


def test_the_switch_thrown_last_counts_and_a_pause_of_everything_stops_everything() -> None:
    bench = ready(FleetPolicy(mode=Mode.DRY_RUN))
    assert bench.ledger.mode("f0") is Mode.DRY_RUN
    bench.tell(switch(BASE + 1, Mode.LIVE, "f0"))
    assert (bench.ledger.mode("f0"), bench.ledger.mode("f1")) == (Mode.LIVE, Mode.DRY_RUN)
    bench.tell(switch(BASE + 2, Mode.PAUSED))
    assert {bench.ledger.mode(f) for f in ("f0", "f1")} == {Mode.PAUSED}
    bench.tell(switch(BASE + 3, Mode.LIVE, "f1"), switch(BASE, Mode.LIVE))
    assert (bench.ledger.mode("f0"), bench.ledger.mode("f1")) == (Mode.PAUSED, Mode.LIVE)
    bench.tell(switch(BASE + 4, None))
    assert bench.ledger.mode("f0") is Mode.LIVE


def test_a_dry_run_publishes_what_it_would_do_once() -> None:
    bench = ready(FleetPolicy(mode=Mode.DRY_RUN))
    outputs = bench.tell(proposal(1, BASE), tick(BASE + SECOND), tick(BASE + 2 * SECOND))
    (command,) = commands(outputs)
    assert (command.id, command.dry_run) == (f"{requeue(1)}:dry", True)
    assert withheld(outputs) == [Why.DRY_RUN]
    # It took no budget, and is no command that could end.
    assert not bench.ledger.fleets["f0"].issued


# -- endings and the breaker -----------------------------------------------------------------------


def test_what_nobody_does_in_time_expires() -> None:
    bench = ready()
    bench.tell(proposal(1, BASE))
    assert not facts(bench.tell(tick(BASE + 299 * SECOND)))
    outputs = bench.tell(tick(BASE + 300 * SECOND), tick(BASE + 301 * SECOND))
    (fact,), (ended,) = facts(outputs), said(outputs)
    assert (ended.command_id, ended.result) == (requeue(1), Result.EXPIRED)
    assert fact.stall is not None
    assert fact.stall.ended is not None
    assert (fact.stall.ended.attempt, fact.stall.ended.result) == (1, Result.EXPIRED)
    # The executor's word is worth more, whenever it comes.
    bench.tell(ending(requeue(1), 1, BASE + 310 * SECOND, Result.DONE))
    bench.tell(ended, ending(requeue(1), 1, BASE + 311 * SECOND, Result.FAILED))
    assert bench.ledger.fleets["f0"].endings[requeue(1)].result is Result.DONE


def _fail(bench: Bench, numbers: range, result: Result) -> int:
    """Commands that end so; returns the time after."""
    at = bench.ledger.clock
    for number in numbers:
        at += SECOND
        assert commands(bench.tell(tick(at), proposal(number, at)))
        bench.tell(ending(requeue(number), number, at, result))
    return at


def test_the_breaker_opens_half_opens_and_closes() -> None:
    bench = ready()
    fleet, policy = bench.ledger.fleets, FleetPolicy()
    at = _fail(bench, range(4), Result.FAILED)
    assert fleet["f0"].breaker(policy).state(at) is BreakerState.CLOSED
    at = _fail(bench, range(4, 5), Result.CANNOT)
    assert [each[1] for each in bench.ledger.levels()] == [BreakerState.OPEN]
    assert withheld(bench.tell(proposal(10, at))) == [Why.BREAKER]
    # Another fleet's is its own.
    assert commands(bench.tell(proposal(11, at, fleet="f1")))

    half = at + 600 * SECOND
    bench.tell(tick(half))
    outputs = bench.tell(proposal(12, half), proposal(13, half))
    assert [c.job_key for c in commands(outputs)] == [job(12)]
    assert withheld(outputs) == [None, Why.BREAKER]
    bench.tell(ending(requeue(12), 12, half + SECOND, Result.FAILED))
    assert fleet["f0"].breaker(policy).state(half + SECOND) is BreakerState.OPEN

    half += 602 * SECOND
    bench.tell(tick(half), proposal(14, half), ending(requeue(14), 14, half, Result.DONE))
    assert fleet["f0"].breaker(policy).state(half) is BreakerState.CLOSED
    outputs = bench.tell(tick(half + SECOND), *(proposal(n, half) for n in (15, 16)))
    assert len(commands(outputs)) == 2


def test_a_fence_that_holds_opens_no_breaker() -> None:
    bench = ready()
    at = _fail(bench, range(9), Result.REFUSED)
    assert bench.ledger.fleets["f0"].breaker(FleetPolicy()).state(at) is BreakerState.CLOSED


@given(
    st.lists(st.sampled_from(Result), max_size=30),
    st.integers(0, 2**32),
)
def test_the_breaker_does_not_depend_on_the_order_of_arrival(
    results: list[Result], seed: int
) -> None:
    told = [ending(f"c{n}", n, BASE + n * 70 * SECOND, result) for n, result in enumerate(results)]
    shuffled = random.Random(seed).sample(told, len(told))
    assert breaker(told, POLICY) == breaker(shuffled, POLICY)
    bad = [r for r in results if r not in (Result.DONE, Result.REFUSED)]
    if not bad:
        assert breaker(told, POLICY).state(BASE + 10 * HOUR) is BreakerState.CLOSED


# -- runners ---------------------------------------------------------------------------------------


def test_a_runner_that_executes_another_job_displaces_the_one_it_was_made_for() -> None:
    bench = Bench()
    bench.tell(seen("r", BASE, CLAIMED, held=1, claim="h"), seen("r", BASE + 1, IDLE))
    (fact,) = facts(bench.tell(seen("r", BASE + 2, BUSY, held=2)))
    assert (fact.id, fact.key) == (f"displaced:{job(1)}:h:{job(2)}", job(1))
    assert fact.claim is not None
    assert (fact.claim.handle, fact.claim.runner, fact.claim.displaced_at) == ("h", "r", BASE + 2)
    assert not facts(bench.tell(seen("r", BASE + 3, BUSY, held=3)))


def test_a_runner_that_executed_its_job_first_displaces_none() -> None:
    bench = Bench()
    bench.tell(seen("r", BASE, STARTING, held=1, claim="h"))
    for number in range(1, 30):
        assert not facts(bench.tell(seen("r", BASE + number, BUSY, held=number)))
    # What it executed before the claim says nothing.
    assert not facts(bench.tell(seen("r", BASE + 100, CLAIMED, held=50, claim="h2")))
    assert facts(bench.tell(seen("r", BASE + 101, BUSY, held=51)))


@pytest.mark.parametrize("by_host", [False, True])
def test_the_job_of_a_runner_that_is_gone_is_told(by_host: bool) -> None:
    bench = Bench()
    bench.tell(
        seen("held", BASE, STARTING, held=1, claim="h", host="m"),
        seen("busy", BASE, BUSY, held=2, host="m"),
        seen("idle", BASE, IDLE, host="m"),
        seen("away", BASE, BUSY, held=3, host="elsewhere"),
    )
    at = BASE + MINUTE
    gone: list[Any] = [host_gone("m", at)]
    if not by_host:
        gone = [seen(name, at, GONE) for name in ("held", "busy", "idle")]
    told = {fact.key: fact for fact in facts(bench.tell(*gone))}
    assert set(told) == {job(1), job(2)}
    held, busy = told[job(1)], told[job(2)]
    assert held.claim is not None
    assert (held.claim.handle, held.claim.lost_at, held.lost_at) == ("h", at, None)
    assert (busy.claim, busy.lost_at, busy.cause) == (None, at, "runner.lost")
    assert busy.id == f"lost:{job(2)}:busy:{at}"
    # Whoever is seen afterwards lives.
    bench.tell(seen("busy", at + 1))
    (alive,) = [r for n, r in bench.ledger.fleets["f0"].runners.items() if n == "busy"]
    assert loss(alive, at) is None


def test_a_host_may_be_gone_before_it_is_known_who_ran_there() -> None:
    bench = Bench()
    assert not facts(bench.tell(host_gone("m", BASE + 1)))
    assert facts(bench.tell(seen("r", BASE, BUSY, held=1, host="m")))


def test_a_runner_may_be_said_to_hold_what_is_no_job() -> None:
    bench = Bench()
    lie = seen("r", BASE, BUSY).model_copy(update={"job_key": "a:b\nc:d"})
    assert not facts(bench.tell(lie, seen("r", BASE + 1, GONE), seen("", BASE, BUSY, held=1)))


SILENT = BASE + 601 * SECOND


def test_a_runner_that_falls_silent_is_lost() -> None:
    bench = Bench()
    bench.tell(seen("r", BASE - 1, BUSY, held=1), seen("r", BASE))
    bench.tell(seen("other", SILENT - 30 * SECOND))
    outputs = bench.tell(tick(SILENT), tick(SILENT + SECOND))
    (fact,) = facts(outputs)
    assert (fact.key, fact.lost_at) == (job(1), BASE + 600 * SECOND)
    # It is a record, so a replay without a tick of ours knows as much.
    (record,) = said(outputs)
    assert (record.runner, record.state) == ("r", GONE)


def test_a_runner_that_is_seen_again_with_its_job_was_not_lost() -> None:
    bench = Bench()
    bench.tell(seen("r", BASE - 1, CLAIMED, held=1, claim="h"), seen("r", BASE))
    (lost,) = facts(bench.tell(seen("r", BASE + 1, GONE)))
    # Late news of when it lived change nothing, and who comes back without the job is no help.
    assert not facts(bench.tell(seen("r", BASE + 1)))
    (found,) = facts(bench.tell(seen("r", BASE + 2)))
    assert (found.key, found.cause) == (job(1), "runner.found")
    assert found.claim
    assert lost.claim
    assert (found.claim.handle, found.claim.found_at) == ("h", BASE + 2)
    assert not facts(bench.tell(seen("r", BASE + 3)))
    (again,) = facts(bench.tell(seen("r", BASE + 4, GONE)))
    assert again.claim
    assert again.claim.lost_at == BASE + 4
    assert not facts(bench.tell(seen("r", BASE + 5, IDLE)))


def test_a_fleet_that_is_silent_as_a_whole_is_blind_not_dead() -> None:
    bench = Bench()
    bench.tell(seen("r", BASE - 1, BUSY, held=1), seen("r", BASE), seen("other", BASE))
    assert not facts(bench.tell(tick(SILENT)))


def test_silence_says_nothing_of_a_runner_that_never_sent_a_sign_of_life() -> None:
    bench = Bench()
    bench.tell(seen("r", BASE, BUSY, held=1), seen("other", SILENT))
    assert not facts(bench.tell(tick(SILENT)))


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from([None, *RunnerState]), st.integers(0, 3)),
        max_size=8,
    ),
    st.integers(0, 2**32),
)
def test_what_is_known_of_a_runner_does_not_depend_on_order(
    told: list[tuple[int, RunnerState | None, int]], seed: int
) -> None:
    records = [
        seen("r", BASE + at, state, held=n or None, claim=f"h{n}" if n else "", host=f"m{n}")
        for at, state, n in told
    ]

    def joined(order: list[Any]) -> Runner:
        runner: Runner | None = None
        for record in order:
            runner = merge(runner, record)
        return runner or Runner()

    rng = random.Random(seed)
    want = joined(records)
    got = joined(rng.sample([*records, *records], 2 * len(records)))
    assert got == want
    assert displaced(got) == displaced(want)


# -- starved ---------------------------------------------------------------------------------------


def _starving(at: int) -> list[Any]:
    return [
        depth(at, 3, at - 301 * SECOND),
        depth(at, 2, at - 10 * SECOND, partition=1),
        seen("r", at - SECOND, IDLE),
    ]


def test_a_fleet_with_idle_runners_and_old_jobs_is_woken_once_a_cool_down() -> None:
    bench = Bench()
    outputs = bench.tell(*_starving(BASE), tick(BASE))
    (command,), (decided,) = commands(outputs), said(outputs)
    assert (command.command, command.reason) == (CommandKind.WAKE_FLEET, StallKind.STARVED)
    assert (command.key, command.fleet, command.job_key) == ("f0", "f0", "")
    assert "5 jobs queued" in command.evidence[0].what
    assert command.since == BASE - 301 * SECOND
    assert (decided.command_id, decided.job_key) == (command.id, "")
    assert not facts(outputs)
    assert [each[:2] for each in bench.ledger.starving()] == [("f0", 5)]
    for ms in range(10, 300, 10):
        at = BASE + ms * SECOND
        assert not commands(bench.tell(*_starving(at), tick(at)))
    at = BASE + 301 * SECOND
    assert len(commands(bench.tell(*_starving(at), tick(at)))) == 1


def test_nothing_is_woken_without_idle_runners_old_jobs_or_fresh_news() -> None:
    old = BASE - 301 * SECOND
    idle = seen("r", BASE - SECOND, IDLE)
    for told in (
        [depth(BASE, 3, old)],
        [depth(BASE, 3, old), seen("r", BASE, BUSY, held=1)],
        [depth(BASE, 3, old), seen("r", BASE - 3 * MINUTE, IDLE)],
        [depth(BASE, 0, None), idle],
        [depth(BASE, 3, BASE - 200 * SECOND), idle],
        [depth(BASE - 61 * SECOND, 3, old), idle],
    ):
        assert not commands(Bench().tell(*told, tick(BASE)))
    assert commands(Bench().tell(depth(BASE, 3, old), idle, tick(BASE)))


def test_a_wake_up_is_withheld_like_any_command() -> None:
    bench = Bench(Policies(FleetPolicy(mode=Mode.PAUSED)))
    for second in range(3):
        at = BASE + second * SECOND
        assert not commands(bench.tell(*_starving(at), tick(at)))
    assert bench.counted()["recovery_withheld", "paused"] == 1


# -- the states of fleets --------------------------------------------------------------------------


def _states(outputs: list[Any]) -> list[Any]:
    return [
        each.value and read(FLEET_STATE, each.value)
        for each in outputs
        if each.topic == FLEET_STATES
    ]


def test_a_fleet_is_said_at_most_once_a_tick_and_when_it_changed() -> None:
    bench = Bench()
    bench.tell(seen("a", BASE, IDLE), seen("b", BASE, BUSY, held=1), switch(BASE, Mode.PAUSED))
    (state,) = _states(bench.tell(tick(BASE), proposal(1, BASE)))
    assert state.runners == {IDLE: 1, BUSY: 1}
    assert (state.mode, state.switch.who, state.rev) == (Mode.PAUSED, "ada", 3)
    assert not _states(bench.tell(proposal(2, BASE)))
    (state,) = _states(bench.tell(tick(BASE + SECOND), tick(BASE + 2 * SECOND)))
    assert state.pending == 2
    # What is forgotten is taken back.
    assert _states(bench.tell(tick(BASE + 8 * 24 * HOUR)))[-1] is None
    assert not bench.ledger.fleets
    assert set(bench.durable.tables[FLEETS_TABLE.name]) == {
        b"~clock:0",
        b'["switches","",""]',
    }


def test_a_clock_that_is_wrong_is_not_believed() -> None:
    bench = ready()
    bench.tell(tick(BASE + 2 * HOUR), seen("r", BASE + 2 * HOUR, IDLE), now=BASE)
    assert (bench.ledger.clock, bench.ledger.fleets) == (BASE, {})
    bench.tell(tick(BASE - 1))
    assert bench.ledger.clock == BASE
    # Its owner's own clock was wrong, and it is gone.
    bench.tell(tick(BASE + 900 * HOUR))
    bench.tell(tick(BASE + 1), now=BASE + 1)
    assert bench.ledger.clock == BASE + 1


def test_a_policy_that_would_be_forgotten_is_refused() -> None:
    with pytest.raises(ValueError, match="at most an hour"):
        FleetPolicy(cool_down_ms=2 * HOUR)
    with pytest.raises(ValueError, match="positive"):
        FleetPolicy(command_ttl_ms=0)


def test_runners_are_forgotten_an_hour_after_they_went_and_the_oldest_when_they_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state, "MAX_RUNNERS", 2)
    bench = Bench()
    bench.tell(tick(BASE), seen("gone", BASE, GONE), seen("a", BASE, IDLE))
    bench.tell(seen("gone", BASE + MINUTE, GONE), tick(BASE + HOUR))
    assert set(bench.ledger.fleets["f0"].runners) == {"gone", "a"}
    bench.tell(tick(BASE + HOUR + MINUTE + 1))
    assert set(bench.ledger.fleets["f0"].runners) == {"a"}
    later = BASE + HOUR + 2 * MINUTE
    bench.tell(seen("c", later + 1, IDLE), seen("b", later, IDLE), tick(later + 2))
    assert set(bench.ledger.fleets["f0"].runners) == {"b", "c"}
    assert bench.ledger.fleets["f0"].counts() == {IDLE: 2}
