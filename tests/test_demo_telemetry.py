"""What the demo's fleets say: played ahead, ended when told to, compared with what is shown."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.commands.demo_check import Check
from pipeline.commands.demo_telemetry import (
    AGES,
    PARTS,
    Series,
    compare_metrics,
    reconcilers,
    schedulers,
    series,
)
from pipeline.exporter import Exporter
from pipeline.metrics import PREFIX
from pipeline.simulate.telemetry import STEP_MS, Told
from tests.support.telemetry import START, Seen, muddled, tick
from topics.events import MODELS

FLEETS = ("linux-small", "linux-large", "linux-arm", "macos", "gpu", "windows")
SEEDS = st.integers(0, 2**32)


def played(fleets: Sequence[str], steps: int, seed: int, late: int = 0) -> Told:
    """All parts for so many steps; what is true ``late`` ms after that."""
    end = START + steps * STEP_MS
    told = Told(at=end + late)
    for play in PARTS:
        told.add(play(fleets, START, end, seed, at=told.at))
    return told


def seen(told: Told, seed: int) -> Seen:
    return Seen([*muddled(told.events, seed), tick(told.at - START)], batch=50)


def shown(one: Seen) -> Series:
    """What a worker that knows it shows."""

    async def page() -> bytes:
        async def no_pause() -> None:
            pass

        exporter = Exporter()
        exporter.note(one.notes)
        exporter.watch_levels(one.ledger.levels)
        return await exporter.exposition(no_pause)

    return series(asyncio.run(page()).decode())


@settings(max_examples=settings.default.max_examples // 20)
@given(
    seed=SEEDS,
    fleets=st.lists(st.sampled_from(FLEETS), min_size=1, max_size=3, unique=True),
    steps=st.integers(0, 20),
    more=st.integers(1, 15),
)
def test_who_goes_on_for_longer_or_beside_others_says_the_same_until_then(
    seed: int, fleets: list[str], steps: int, more: int
) -> None:
    """The demo plays ahead, ends when it is told to, and asks what was true by then."""
    until = START + steps * STEP_MS
    for play in PARTS:
        short = play(fleets, START, until, seed)
        whole = play(fleets, START, until + more * STEP_MS, seed)
        assert short.events == [each for each in whole.events if each.occurred_at < until]
        alone = play(fleets[:1], START, until, seed)
        assert alone.events == [each for each in short.events if each.fleet == fleets[0]]
        assert alone.counts.get(fleets[0]) == short.counts.get(fleets[0])
        mine = {where: value for where, value in short.levels.items() if where[1] == fleets[0]}
        assert alone.levels == mine


@settings(max_examples=settings.default.max_examples // 50)
@given(seed=SEEDS, steps=st.integers(1, 30), late=st.integers(0, 120_000))
def test_what_is_true_whenever_it_ends_is_what_the_fold_knows_and_a_worker_shows(
    seed: int, steps: int, late: int
) -> None:
    """Also a while after that: who was to be heard of again is silent by then."""
    told = played(FLEETS[:2], steps, seed, late)
    known = seen(told, seed)
    levels = {where: float(value) for where, value in known.levels.items()}
    assert levels == pytest.approx(told.levels)
    assert +known.sums == sum(told.counts.values(), Counter())
    check = Check()
    compare_metrics(check, told, shown(known))
    assert check.equal, check.differences


def test_a_wrong_count_or_level_of_any_family_is_a_difference() -> None:
    told = played(FLEETS[:2], 12, 7)
    page = shown(seen(told, 7))
    fleet = FLEETS[1]

    def wrong(change: Callable[[Told, Series], object]) -> list[str]:
        truth, found, check = played(FLEETS[:2], 12, 7), dict(page), Check()
        change(truth, found)
        compare_metrics(check, truth, found)
        return check.differences

    assert not wrong(lambda truth, found: None)
    for what in (
        "dispatch_requests|served", "machine_boots|ready", "runner_polls|task",
        "scheduler_segments|other|completed", "scheduler_planner_wait_seconds|sum",
        "reconciler_work_moved|open", "reconciler_effect_seconds|failed",
    ):  # fmt: skip
        assert told.counts[fleet][what]
        [difference] = wrong(lambda truth, _, what=what: truth.counts[fleet].update({what: 1}))
        assert what.partition("|")[0] in difference
    names = (
        "pool_runners", "runner_capacity", "scheduler_backlog", "scheduler_queue_depth",
        "reconciler_work", "reconcilers_overdue", "reconciler_last_tick_seconds",
    )  # fmt: skip
    for name in names:
        where = next(where for where in told.levels if where[:2] == (name, fleet))
        [difference] = wrong(
            lambda truth, _, where=where: truth.levels.update({where: truth.levels[where] + 1})
        )
        assert name in difference
    # What is shown and did not happen, and what happened and is not shown.
    for name, last in (("scheduler_given_up_total", "run"), ("reconciler_crowded_out_total", "")):
        where = (PREFIX + name, fleet, *([last] if last else []))
        assert page[where] == 0
        [difference] = wrong(lambda _, found, where=where: found.update({where: 1.0}))
        assert name in difference
    gone = (f"{PREFIX}reconcilers", fleet)
    [difference] = wrong(lambda _, found: found.pop(gone))
    assert difference.endswith("found nothing")


def test_what_is_not_compared_grows_with_the_clock_and_nothing_else_does() -> None:
    grown = set()
    for seed in range(3):
        now, then = (played(FLEETS[:3], 30, seed, late).levels for late in (0, 1))
        grown |= {where[0] for where in now if now[where] != then[where]}
    assert grown == AGES


def test_a_minute_is_enough_for_nearly_every_kind() -> None:
    told = [played(FLEETS, 13, seed) for seed in (7, 8, 9)]
    said = {each.kind for one in told for each in one.events}
    # Two are said by others than those who are played, and three need minutes.
    others = {"accounts.sample", "runner.scrape"}
    assert set(MODELS) - said <= {*others, "runner.stopped", "task.reaped", "task.flush_failed"}
    rise = {where[0] for one in told for where, value in one.levels.items() if value}
    assert {
        "scheduler_runs_active", "scheduler_runs_planning", "scheduler_schedules_behind",
        "scheduler_queue_dead_letters", "reconcilers_overdue", "reconciler_entities_in_loop",
        "reconciler_work_flapping", "reconciler_violations",
    } <= rise  # fmt: skip


def test_what_the_screen_says_is_true_and_short() -> None:
    assert schedulers({}) == reconcilers({}) == ""
    told = played(FLEETS, 60, 7)
    page: Series = {
        (PREFIX + name, *labels): value for (name, *labels), value in told.levels.items()
    }
    for fleet, counts in told.counts.items():
        for what, n in counts.items():
            name, *labels = what.split("|")
            page[f"{PREFIX}{name}_total", fleet, *labels] = n

    def total(name: str) -> int:
        return int(sum(value for where, value in told.levels.items() if where[0] == name))

    ended = Counter(each.kind for each in told.events)["run.finished"]
    closed = sum(getattr(each, "to_state", "") == "closed" for each in told.events)
    assert schedulers(page) == (
        f"{total('scheduler_runs_planning'):,} runs planning, "
        f"{total('scheduler_runs_active'):,} active, "
        f"{total('scheduler_runs_not_draining'):,} stuck, {ended:,} over; "
        f"{total('scheduler_backlog'):,} images left; "
        f"{total('scheduler_schedules_behind'):,} schedules behind"
    )
    assert reconcilers(page) == (
        f"{total('reconcilers'):,}, {total('reconcilers_overdue'):,} overdue; "
        f"work: {total('reconciler_work'):,} open, {closed:,} closed, "
        f"{total('reconciler_work_flapping'):,} flapping; "
        f"{total('reconciler_entities_in_loop'):,} in loops; "
        f"{total('reconciler_violations'):,} violations"
    )
    # After half an hour, too, beside the word in front.
    page = {where: 6 * value for where, value in page.items()}
    for line in (schedulers(page), reconcilers(page)):
        assert len(line) <= 100 - len("reconcilers ")
