"""Reconcilers: what the fold makes of a simulated world equals what happened there."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.simulate.telemetry_reconcilers import play
from pipeline.telemetry import loops, reconcilers
from pipeline.telemetry.subject import FRESH_MS, HOUR_MS, KEPT_MS
from tests.support.chaos import chaos
from tests.support.telemetry import MINUTE, START, Seen, durable, event, muddled, tick

END = 8 * MINUTE
SECOND = 1_000


def said(kind: str, at: int, id_: str = "", **more: Any) -> Any:
    return event(kind, at, id_, **{"reconciler": "c", **more})


def ticked(at: int, **more: Any) -> Any:
    return said("reconciler.tick", at, **{"tick_id": f"t{at}", "wall_ms": 20, **more})


def acted(at: int, type_: str = "create_landing_mr", entity: str = "e", **more: Any) -> Any:
    return said("reconciler.action", at, type=type_, entity=entity, **more)


def moved(at: int, to: str, work: str = "w", **more: Any) -> Any:
    return said("work.moved", at, work_id=work, to_state=to, **more)


def as_it_comes(events: Sequence[Any], end: int, seed: int = 0) -> list[Any]:
    """Events as they come in: each up to a minute late, some of them twice, and a clock."""
    rng = random.Random(seed)
    told = [(each.occurred_at + rng.randrange(MINUTE), n, each) for n, each in enumerate(events)]
    told += [(at + MINUTE // 2, n, each) for at, n, each in told if rng.random() < 0.1]
    clock = [(START + at, -1, tick(at)) for at in range(0, end, 20 * SECOND)]
    return [each for _, _, each in sorted([*told, *clock], key=lambda one: one[:2])] + [tick(end)]


@settings(max_examples=settings.default.max_examples // 50)
@given(seed=st.integers(0, 2**32))
def test_the_truth_comes_out_whatever_happens_on_the_way(seed: int) -> None:
    """Duplicates, disorder, and death between any two writes."""
    told = play(["f0", "f1"], START, START + END, seed, each=2)
    log = [*muddled(told.events, seed), tick(END)]
    seen = Seen([], 1)
    seen.durable = chaos(durable(), log, seed, death=0.005)
    seen.ledger = seen.again()
    assert seen.levels == pytest.approx(told.levels)
    assert +seen.sums == sum(told.counts.values(), Counter())


#: Two hours of each of these are enough to get stuck in every way.
LONG, SEEDS = 2 * HOUR_MS, range(8, 14)


def test_in_hours_they_get_stuck_in_every_way() -> None:
    rise: Counter[str] = Counter()
    for seed in SEEDS:
        told = play(["f0"], START, START + LONG, seed, each=2)
        rise.update({where[0]: value for where, value in told.levels.items()})
    for trouble in (
        "reconciler_entities_in_loop", "reconciler_work_flapping",
        "reconcilers_without_progress", "reconcilers_overdue",
    ):  # fmt: skip
        assert rise[trouble]


@pytest.mark.parametrize("seed", SEEDS)
def test_hours_of_it_come_out_as_well(seed: int) -> None:
    """What is outdated is forgotten meanwhile; each counter of failures rises."""
    end = LONG
    told = play(["f0"], START, START + end, seed, each=2)
    seen = Seen(as_it_comes(told.events, end, seed), batch=200)
    assert seen.levels == pytest.approx(told.levels)
    labels = {
        "reconciler_ticks": "outcome", "reconciler_action_results": "outcome",
        "reconciler_effects": "outcome", "reconciler_effect_results": "outcome",
        "reconciler_work_moved": "to",
    }  # fmt: skip
    for what, n in told.counts["f0"].items():
        name, *values = what.split("|")
        if name == "reconciler_tick_seconds":
            assert "sum" in values or seen.counted(f"{name}_count") == n
        elif name == "reconciler_effect_seconds":
            if "sum" not in values:
                assert seen.counted(f"{name}_count", outcome=values[0]) == n
        else:
            by = {labels[name]: values[0]} if values else {}
            assert seen.counted(f"{name}_total", fleet="f0", **by) == n, what
    assert told.counts["f0"].keys() >= {
        "reconciler_ticks|failed", "reconciler_events_failed", "reconciler_action_results|failed",
        "reconciler_effects|failed", "reconciler_effects|unknown",
        "reconciler_effect_results|failed", "reconciler_dispatch_failures",
        "reconciler_violations_opened", "reconciler_work_moved|failed",
    }  # fmt: skip


# --- incidents: what was seen elsewhere, and that it would be seen here ------------------------


def levels_of(events: Sequence[Any], at: int) -> dict[tuple[str, ...], float]:
    return Seen(as_it_comes(events, at), batch=200).levels


def test_a_dispatch_that_fails_again_and_again_is_a_loop() -> None:
    """gastown #1653: the counter of attempts began anew at every try; 70 hours, 3,612 failures."""
    end = 3 * HOUR_MS
    tries = [
        said("work.dispatch_failed", at, work_id="bead", reason="container_failed", attempt=1)
        for at in range(0, end, 70 * SECOND)
    ]
    ticks = [ticked(at, actions=5, wall_ms=61_000) for at in range(0, end, 70 * SECOND)]
    seen = Seen(as_it_comes([*tries, *ticks, moved(0, "open", "bead")], end), batch=200)
    assert seen.counted("reconciler_dispatch_failures_total", fleet="f0") == len(tries)
    assert seen.levels["reconciler_entities_in_loop", "f0"] == 1
    assert seen.levels["reconcilers_without_progress", "f0"] == 1
    assert seen.levels["reconciler_last_tick_seconds", "f0"] == 61
    [view] = seen.views
    assert [each["entity"] for each in view["loops"].values()] == ["bead"]
    # And it is over when it is over.
    assert levels_of([*tries, moved(0, "open")], end + HOUR_MS + 2 * MINUTE).get(
        ("reconciler_entities_in_loop", "f0"), 0
    ) == 0  # fmt: skip


def test_a_fleet_that_only_looks_alive_is_seen() -> None:
    """gastown #1932: 12 hours of 700 ticks an hour and no work done, 1,400 violations an hour told
    of a handful of entities."""
    end = 2 * HOUR_MS
    history = [moved(0, "open", f"w{n}") for n in range(3)]
    for at in range(SECOND, end, 10 * SECOND):
        history.append(ticked(at, actions=2, violations=4))
        history += [
            said("reconciler.violation_opened", at, invariant="working_agent_has_hook", entity=e)
            for e in ("a", "b")
        ]
    levels = levels_of(history, end)
    assert levels["reconcilers_without_progress", "f0"] == 1
    assert levels["reconcilers_overdue", "f0"] == 0
    assert levels["reconciler_work", "f0", "open"] == 3
    assert levels["reconciler_violations", "f0"] == 2, "distinct, however often told"
    assert levels["reconciler_violation_oldest_seconds", "f0"] == end / 1000 - 1
    closed = [*history, moved(end - MINUTE, "closed", "w0")]
    assert levels_of(closed, end)["reconcilers_without_progress", "f0"] == 0


def test_effects_that_fail_raise_the_counter_though_ticks_say_that_none_did() -> None:
    """gastown #1850: 4,000 failed dispatches an hour, without a reason, while the tick's own count
    of failures could not rise."""
    history = [
        said("reconciler.effect", n * SECOND, type="dispatch_agent", outcome="failed")
        for n in range(60)
    ]
    history += [said("work.dispatch_failed", n * SECOND, work_id=f"w{n % 3}") for n in range(60)]
    history.append(ticked(MINUTE, effects_attempted=60, effects_succeeded=60))
    history.append(ticked(2 * MINUTE, effects_attempted=5, effects_succeeded=2))
    seen = Seen(as_it_comes(history, 4 * MINUTE))
    assert seen.counted("reconciler_effect_results_total", fleet="f0", outcome="failed") == 60
    assert seen.counted("reconciler_effects_total", fleet="f0", outcome="failed") == 0
    assert seen.counted("reconciler_effects_total", fleet="f0", outcome="unknown") == 3
    assert seen.counted("reconciler_dispatch_failures_total", fleet="f0") == 60
    assert seen.levels["reconciler_entities_in_loop", "f0"] == 3
    assert all(each.reason for each in history if each.kind == "work.dispatch_failed")


def test_the_same_action_every_five_seconds_is_a_loop() -> None:
    """gastown #2371: create_landing_mr every 5 s, 5,335 times in 41 hours."""
    once = [acted(n * SECOND, "assign_bead", f"e{n}") for n in range(50)]
    assert levels_of(once, 5 * MINUTE)["reconciler_entities_in_loop", "f0"] == 0
    ten = [acted(n * 5 * SECOND) for n in range(10)]
    assert levels_of(ten, 5 * MINUTE)["reconciler_entities_in_loop", "f0"] == 0
    assert (
        levels_of([*ten, acted(51 * SECOND)], 5 * MINUTE)["reconciler_entities_in_loop", "f0"] == 1
    )
    # What is held back is not done.
    held = [acted(n * 5 * SECOND, outcome="suppressed") for n in range(50)]
    assert ("reconciler_entities_in_loop", "f0") not in levels_of(held, 5 * MINUTE)


def test_work_that_goes_back_and_forth_flaps() -> None:
    """gastown #3538: a mishandled eviction moved work between in_progress and open."""
    states = ["open", "in_progress"] * 3
    path = [moved(n * 4 * MINUTE, state) for n, state in enumerate(states)]
    assert levels_of(path[:5], 20 * MINUTE)["reconciler_work_flapping", "f0"] == 0
    assert levels_of(path, 21 * MINUTE)["reconciler_work_flapping", "f0"] == 1
    assert levels_of(path, 45 * MINUTE)["reconciler_work_flapping", "f0"] == 0, "not any more"
    # Work that goes its way, with one change that was asked for, does not.
    ways = ["open", "in_progress", "in_review", "in_progress", "in_review", "closed"]
    usual = [moved(n * MINUTE, state) for n, state in enumerate(ways)]
    assert levels_of(usual, 10 * MINUTE)["reconciler_work_flapping", "f0"] == 0
    # To say again where it is moves nothing.
    stays = [moved(n * MINUTE, "open", from_state="open") for n in range(9)]
    seen = levels_of([moved(0, "open"), *stays], 10 * MINUTE)
    assert seen["reconciler_work_flapping", "f0"] == 0
    assert seen["reconciler_work_oldest_seconds", "f0", "open"] == 600


# --- levels -----------------------------------------------------------------------------------


def test_levels_are_of_the_latest_tick_of_each_and_come_together_by_sum_and_max() -> None:
    log = [
        ticked(0, pending_new=9, breaker_open=True),
        ticked(5, pending_new=2, pending_retry=1, pending_oldest_ms=4_000),
        ticked(3, reconciler="d", tick_id="d", pending_new=7, draining=True, wall_ms=900),
        tick(MINUTE),
    ]
    levels = Seen(log).levels
    assert levels["reconciler_pending_events", "f0", "new"] == 9
    assert levels["reconciler_pending_events_largest", "f0", "new"] == 7
    assert levels["reconciler_pending_events", "f0", "retry"] == 1
    assert levels["reconciler_pending_oldest_seconds", "f0"] == 4
    assert levels["reconciler_breaker_open", "f0"] == 0
    assert levels["reconciler_draining", "f0"] == 1
    assert levels["reconciler_last_tick_seconds", "f0"] == 0.9
    assert levels["reconcilers", "f0"] == 2


def test_a_reconciler_that_stops_is_overdue_while_its_levels_are_silent() -> None:
    log = [
        ticked(0, interval_ms=5_000, pending_new=3),
        ticked(2 * FRESH_MS, reconciler="d", tick_id="d", interval_ms=5_000, pending_new=1),
        tick(2 * FRESH_MS + 15 * SECOND),
    ]
    levels = Seen(log).levels
    assert levels["reconcilers_overdue", "f0"] == 1
    assert levels["reconciler_silent_seconds", "f0"] == 615
    assert levels["reconciler_pending_events", "f0", "new"] == 1
    # One that ticks rarely, and says so, is neither.
    rare = Seen([ticked(0, interval_ms=HOUR_MS, pending_new=3), tick(2 * HOUR_MS)]).levels
    assert rare["reconcilers_overdue", "f0"] == 0
    assert rare["reconciler_pending_events", "f0", "new"] == 3
    gone = Seen([log[0], tick(reconcilers.GONE_MS), tick(reconcilers.GONE_MS + MINUTE)])
    assert gone.levels == {}
    assert gone.counted("reconciler_given_up_total", fleet="f0", what="reconciler") == 1


def test_the_same_tick_told_twice_counts_once() -> None:
    log = [ticked(0, tick_id="t", actions=3), ticked(0, tick_id="t", actions=3, wall_ms=20)]
    log[1] = log[1].model_copy(update={"id": "another"})
    seen = Seen([*log, tick(MINUTE)])
    assert seen.counted("reconciler_actions_total", fleet="f0") == 3
    assert seen.views[0]["actions_last_hour"] == 3


def test_a_violation_is_as_old_as_it_is_open() -> None:
    def word(what: str, at: int) -> Any:
        return said(f"reconciler.violation_{what}", at * SECOND, invariant="i", entity="e")

    history = [word("opened", 0), word("closed", 20), word("opened", 30), word("opened", 40)]
    for seed in range(20):
        levels = Seen([*muddled(history, seed), tick(MINUTE)]).levels
        assert levels["reconciler_violations", "f0"] == 1
        assert levels["reconciler_violation_oldest_seconds", "f0"] == 30
    over = Seen([*history, word("closed", 50), tick(MINUTE)]).levels
    assert over["reconciler_violations", "f0"] == 0
    assert over["reconciler_violation_oldest_seconds", "f0"] == 0
    # Who tells only how many there are is believed; since when, nobody knows.
    counted = Seen([ticked(0, violations=4), tick(MINUTE)]).levels
    assert counted["reconciler_violations", "f0"] == 4
    assert ("reconciler_violation_oldest_seconds", "f0") not in counted


#: What is said of violations: of which, when, and whether it opened.
_WORDS = st.lists(st.tuples(st.sampled_from("de"), st.integers(0, 500), st.booleans()), max_size=25)


def violations(words: Sequence[tuple[str, int, bool]]) -> list[Any]:
    return [
        said(
            f"reconciler.violation_{'opened' if opened else 'closed'}", at * SECOND, f"{n}",
            invariant="i", entity=entity,
        )
        for n, (entity, at, opened) in enumerate(words)
    ]  # fmt: skip


def turns(words: Sequence[tuple[str, int, bool]]) -> Counter[str]:
    """How often they opened and closed, all being known: one that opens and closes at one time is
    closed."""
    found: Counter[str] = Counter()
    for entity in "de":
        order = sorted({(at, not opened) for of, at, opened in words if of == entity})
        for closed, _ in itertools.groupby(closed for _, closed in order):
            found[f"reconciler_violations_{'closed' if closed else 'opened'}"] += 1
    return found


@settings(max_examples=settings.default.max_examples // 5)
@given(words=_WORDS, seed=st.integers(0, 2**32))
def test_a_violation_counts_when_it_opens_and_closes_and_not_when_that_is_said_again(
    words: list[tuple[str, int, bool]], seed: int
) -> None:
    """In any order, under any ids, whatever dies between two writes."""
    log = [*muddled(violations(words), seed), tick(10 * MINUTE), tick(11 * MINUTE)]
    seen = Seen(log)
    assert +seen.sums == turns(words)
    for what, n in turns(words).items():
        assert seen.counted(f"{what}_total", fleet="f0") == n
    again = Seen([], 1)
    again.durable = chaos(durable(), log, seed)
    again.ledger = again.again()
    assert +again.sums == turns(words)
    assert again.levels == seen.levels


def test_a_violation_that_is_said_again_for_hours_counts_once_and_keeps_its_age() -> None:
    """Its opening is long out of what counts once, and words are remembered up to a bound."""
    end = 2 * HOUR_MS
    log: list[Any] = []
    for n, at in enumerate(range(0, end, 10 * SECOND)):
        log += [*violations([("e", at // SECOND, True)]), tick(at)]
        log[-2] = log[-2].model_copy(update={"id": f"again {n}"})
    seen = Seen([*log, tick(end)], batch=50)
    assert seen.counted("reconciler_violations_opened_total", fleet="f0") == 1
    assert seen.levels["reconciler_violation_oldest_seconds", "f0"] == end / 1000
    # It held for a moment, and that comes to be known after it was broken again.
    held = violations([("e", end // SECOND - 15, False)])
    seen = Seen([*log, tick(end), *held, tick(end)], batch=50)
    assert seen.counted("reconciler_violations_opened_total", fleet="f0") == 2
    assert seen.counted("reconciler_violations_closed_total", fleet="f0") == 1
    assert seen.levels["reconciler_violation_oldest_seconds", "f0"] == 10
    [row] = seen.ledger.subjects["reconcilers", "f0", "c"].all("violations").values()
    assert len(row.said) <= 32


def test_a_late_word_opens_nothing_that_is_over() -> None:
    history = [moved(0, "open"), moved(SECOND, "closed")]
    late = moved(500, "in_progress")
    for at in (MINUTE, KEPT_MS, KEPT_MS + 2 * MINUTE):
        seen = Seen([*history, tick(at), late])
        assert seen.levels.get(("reconciler_work", "f0", "in_progress"), 0) == 0
    reopened = Seen([*history, moved(2 * SECOND, "open", from_state="closed"), tick(MINUTE)])
    assert reopened.levels["reconciler_work", "f0", "open"] == 1
    assert reopened.counted("reconciler_work_reopened_total", fleet="f0") == 1


def test_what_nobody_mentions_any_more_is_given_up_and_counted() -> None:
    week = reconcilers.SILENT_MS
    log = [
        moved(0, "open"),
        said("reconciler.violation_opened", 0, invariant="i", entity="e"),
        tick(week),
    ]
    assert Seen(log).levels["reconciler_work", "f0", "open"] == 1
    seen = Seen([*log, tick(week + MINUTE), tick(week + 2 * MINUTE)])
    assert seen.levels == {}
    for what in ("work", "violation"):
        assert seen.counted("reconciler_given_up_total", fleet="f0", what=what) == 1


def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcilers, "MOST", 5)
    monkeypatch.setattr(reconcilers, "MOST_TICKS", 5)
    history = [acted(n, "x", f"e{n}") for n in range(9)]
    history += [moved(n, "open", f"w{n}") for n in range(8)]
    history += [ticked(n, actions=1) for n in range(12)]
    history += [
        said("reconciler.violation_opened", n, invariant="i", entity=f"e{n}") for n in range(6)
    ]
    tables = []
    for seed in range(3):
        seen = Seen([*muddled(history, seed), tick(MINUTE)])
        subject = seen.ledger.subjects[("reconcilers", "f0", "c")]
        for part in ("acts", "work", "violations"):
            assert len(subject.all(part)) == 5
        assert seen.counted("reconciler_crowded_out_total", fleet="f0") == 4 + 3 + 7 + 1
        tables.append(subject.parts)
    assert tables[0] == tables[1] == tables[2], "who is remembered does not depend on order"


# --- the counting -----------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab")), max_size=30), st.data())
def test_the_newest_are_the_same_in_any_order(told: list[Any], data: st.DataObject) -> None:
    def all_of(order: list[Any]) -> tuple[Any, ...]:
        kept: tuple[Any, ...] = ()
        for each in order:
            kept = loops.newest(kept, each, 4)
        return kept

    assert all_of(told) == all_of(data.draw(st.permutations(told))) == all_of([*told, *told])
    assert all_of(told) == tuple(sorted(set(told))[-4:])


@given(st.lists(st.tuples(st.integers(0, 3_000), st.sampled_from("abcde")), max_size=40))
def test_a_bounded_memory_flaps_when_a_full_one_does(told: list[tuple[int, str]]) -> None:
    """As long as each move is one: the last of them are enough."""
    path = [(at * SECOND, state) for at, state in sorted(told)]
    moves = [one for n, one in enumerate(path) if not n or one[1] != path[n - 1][1]]
    clock = 3_000 * SECOND
    assert loops.flaps(moves[-loops.MOST_MOVES :], clock) == loops.flaps(moves, clock)


def test_returns_are_to_a_state_that_was_left() -> None:
    assert loops.returns("ab") == 0
    assert loops.returns("aab") == 0
    assert loops.returns("aba") == 1
    assert loops.returns("abab") == 2
    assert loops.returns("abcabc") == 3


def test_only_what_happened_within_the_window_counts() -> None:
    clock = 60 * MINUTE
    long_ago = [((20 + n) * MINUTE, state) for n, state in enumerate("abab")]
    of_late = [((50 + n) * MINUTE, state) for n, state in enumerate("ababa")]
    assert not loops.flaps([*long_ago, *of_late[:4]], clock), "b, then a b a b: three"
    assert loops.flaps([*long_ago, *of_late], clock)
    log = [ticked(0, actions=9), ticked(30 * MINUTE, actions=2), tick(HOUR_MS + MINUTE)]
    assert Seen(log).views[0]["actions_last_hour"] == 2
