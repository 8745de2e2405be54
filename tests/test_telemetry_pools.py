"""Dispatchers and pools: what the fold makes of a simulated world equals what happened there."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.simulate.telemetry_pools import play
from tests.support.chaos import chaos
from tests.support.telemetry import MINUTE, START, Seen, depth, durable, event, muddled, tick

END = 12 * MINUTE


def counts(seen: Seen) -> Counter[str]:
    return +seen.sums


@settings(max_examples=settings.default.max_examples // 10)
@given(seed=st.integers(0, 2**32))
def test_the_truth_comes_out_whatever_happens_on_the_way(seed: int) -> None:
    """Duplicates, disorder, and death between any two writes."""
    told = play(["f0", "f1"], START, START + END, seed, pools=1 + seed % 3)
    log = [*muddled(told.events, seed), tick(END)]
    seen = Seen([], 1)
    seen.durable = chaos(durable(), log, seed, death=0.02)
    seen.ledger = seen.again()
    assert seen.levels == pytest.approx(told.levels)
    assert counts(seen) == sum(told.counts.values(), Counter())
    for fleet in ("f0", "f1"):
        found = seen.ledger.sums(("dispatch", fleet, "")) + seen.ledger.sums(("pools", fleet, ""))
        assert found == told.counts[fleet]


def test_the_metrics_count_what_happened() -> None:
    told = play(["f0"], START, START + END, 5)
    seen = Seen([*muddled(told.events, 1), tick(END)])
    for what, n in told.counts["f0"].items():
        name, *labels = what.split("|")
        if "sum" in labels:
            continue
        if name.endswith("_seconds"):
            by = {"outcome": labels[0]} if labels else {}
            by |= {"fleet": "f0"} if name == "machine_boot_seconds" else {}
            assert seen.counted(f"{name}_count", **by) == n
        else:
            assert seen.counted(f"{name}_total", fleet="f0", outcome=labels[0]) == n
    failures = {"dispatch_requests|mint_failed", "claim_attempts|lost_race", "machine_boots|failed"}
    assert failures <= told.counts["f0"].keys(), "each counter of failures rises"


def test_what_is_lost_leaves_levels_as_they_are() -> None:
    """The latest sample says all of it again: a level never adds up what it was told."""
    told = play(["f0"], START, START + END, 7)
    last = max(each.occurred_at for each in told.events if each.kind == "pool.sample")
    kept = [
        each for n, each in enumerate(told.events)
        if n % 3 or each.occurred_at == last or each.kind == "dispatch.request"
    ]  # fmt: skip
    assert Seen([*kept, tick(END)]).levels == pytest.approx(told.levels)


def test_the_queue_is_what_our_own_log_says_where_it_says_something() -> None:
    log = [
        event("pool.sample", 0, idle=4),
        event("queue.sample", 0, queued=9),
        depth(0, 1, 7), depth(0, 2, 2), depth(1, 2, 1), depth(0, 1, 7),
        tick(10),
    ]  # fmt: skip
    seen = Seen(log)
    assert seen.levels["pool_starved_jobs", "f0"] == 3
    assert seen.levels["pool_saturated_jobs", "f0"] == 0
    # Of a fleet without pools nothing is kept, however often its queue is told of.
    assert Seen(log[2:]).ledger.subjects == {}
    # What is told again at every tick is in no table.
    assert not [key for key in seen.durable.tables["telemetry"] if b"waiting" in key]


def test_a_pool_that_nobody_speaks_of_is_blind_not_empty() -> None:
    log = [event("pool.sample", 0, pool="p", idle=4, booting=0), tick(MINUTE)]
    levels = Seen(log).levels
    assert levels["pool_runners", "f0", "idle"] == 4
    assert levels["pool_booting_oldest_seconds", "f0"] == 0
    assert ("pool_runners", "f0", "ready") not in levels
