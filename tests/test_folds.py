"""What holds for every fold: in which order it writes, and that no crash changes what it says.

A fold is here by its declaration alone. :data:`CASES` has each one that a worker runs, and a toy
that nothing of the product knows of.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import folds
from pipeline.fold_spec import OUTPUTS, FoldSpec
from pipeline.settings import Settings
from tests.support import fleet_world, telemetry, toy_fold
from tests.support.chaos import Durable, chaos, steady
from tests.test_ledger import BASE, WIDE, Tables, fact, filled, recomputed, times
from topics.catalogue import FLEET_STATES, JOB_STATES, LOGS, catalogue
from topics.reading import read
from topics.recovery import FLEET_STATE, Mode, RunnerState
from topics.tables import TABLES, Stage, TableSpec, in_order


@dataclass(frozen=True)
class Case:
    """A fold, a log that touches all its tables, and how to see that something is missing."""

    durable: Callable[[], Durable]
    log: Sequence[Any]
    wrong: Callable[[Durable], bool]

    @property
    def spec(self) -> FoldSpec[Any]:
        return self.durable().spec


def _jobs_wrong(durable: Durable) -> bool:
    assert isinstance(durable, Tables)
    states = {key: value for key, value in durable.states.items() if not key.startswith(b"~")}
    return filled(durable) != recomputed(durable) or _published(durable, JOB_STATES) != states


def _toy_wrong(durable: Durable) -> bool:
    machines = durable.tables[toy_fold.MACHINES.name]
    known = [msgspec.json.decode(value) for value in machines.values()]
    use = [msgspec.json.decode(value)[1] for value in durable.tables[toy_fold.USE.name].values()]
    read = sum(used for readings in known for used in readings.values())
    return sum(use) != read or _published(durable, toy_fold.STATES) != machines


def _published(durable: Durable, topic: str) -> dict[bytes, bytes | None]:
    return {each.key: each.value for each in durable.published if each.topic == topic}


def _jobs_log() -> list[Any]:
    log = [fact(n, n, times=times(queued=BASE + n, started=BASE + 500 * n)) for n in range(1, 60)]
    random.Random(5).shuffle(log)
    return log


def _fleets_wrong(durable: Durable) -> bool:
    """Each runner has displaced a job; and the fleet was last said as the table has it."""
    told = {fact.id for fact in fleet_world.facts(durable.published)}
    state = read(FLEET_STATE, _published(durable, FLEET_STATES)[b"f0"])
    return len(told) != RUNNERS or state.runners != {RunnerState.BUSY: RUNNERS}


def _telemetry_wrong(durable: Durable) -> bool:
    """Every request was counted, and the pool is as it was last said."""
    ledger = durable.ledger()
    sums = ledger.sums(("dispatch", "f0", ""))
    levels = {labels: value for gauge, labels, value in ledger.levels() if len(labels) == 2}
    return sums["dispatch_requests|served"] != RUNNERS or levels[("f0", "idle")] != RUNNERS - 1


def _telemetry_log() -> list[Any]:
    told: list[Any] = []
    for n in range(RUNNERS):
        told.append(telemetry.event("dispatch.request", n, outcome="served"))
        told.append(telemetry.event("pool.sample", n, idle=n))
    random.Random(5).shuffle(told)
    return [*told, telemetry.tick(1_000)]


RUNNERS = 30


def _fleets_log() -> list[Any]:
    told: list[Any] = []
    for n in range(1, RUNNERS + 1):
        made = {"held": n, "claim": f"h{n}"}
        told.append(fleet_world.seen(f"r{n}", BASE + n, RunnerState.STARTING, **made))
        told.append(fleet_world.seen(f"r{n}", BASE + 2 * n, RunnerState.BUSY, held=1000 + n))
        told.append(fleet_world.proposal(n, BASE + n))
    random.Random(5).shuffle(told)
    told += [fleet_world.switch(BASE, Mode.PAUSED), fleet_world.tick(BASE + 1_000)]
    return told


CASES = {
    "jobs": Case(lambda: Tables(WIDE), _jobs_log(), _jobs_wrong),
    "fleets": Case(lambda: Durable(folds.fleets(Settings())), _fleets_log(), _fleets_wrong),
    "telemetry": Case(telemetry.durable, _telemetry_log(), _telemetry_wrong),
    "toy": Case(
        lambda: Durable(toy_fold.declare(Settings())),
        [toy_fold.reading(n % 90, BASE) for n in range(120)],
        _toy_wrong,
    ),
}


def test_every_fold_of_the_worker_has_a_case() -> None:
    declared = [declare(Settings()) for declare in (folds.jobs, *folds.OTHERS)]
    assert {each.log for each in declared} == set(LOGS), "how far a worker is behind tells of all"
    cases = {case.spec.log: case.spec for case in CASES.values()}
    for spec in declared:
        assert cases[spec.log].steps == spec.steps
    # Nor is there a table that belongs to none.
    assert {table for spec in declared for table in spec.tables} == set(TABLES)
    assert len({spec.transactional_id("app") for spec in [*declared, CASES["toy"].spec]}) == 4


@pytest.mark.parametrize("name", CASES)
def test_outputs_come_first_and_what_knows_comes_last(name: str) -> None:
    spec = CASES[name].spec
    stages = {table.name: table.stage for table in spec.tables}
    assert spec.steps[0] == OUTPUTS
    assert [stages[step] for step in spec.steps[1:]] == sorted(stages.values())
    # What adds up contributions knows what it was made from as well.
    assert Stage.KNOWING in stages.values()
    if name not in ("fleets", "telemetry"):
        assert set(stages.values()) == set(Stage)


def test_two_tables_of_one_name_are_refused() -> None:
    twice = TableSpec("one", Stage.ABSORBING, ""), TableSpec("one", Stage.KNOWING, "")
    with pytest.raises(ValueError, match="one name"):
        in_order(twice)


def test_every_table_has_a_changelog_that_is_compacted() -> None:
    specs = {spec.name: spec for spec in catalogue(app_id="a", tables=(*TABLES, toy_fold.USE))}
    for table in (*TABLES, toy_fold.USE):
        assert specs[table.changelog("a")].cleanup == "compact"


@pytest.mark.parametrize("name", CASES)
@given(seed=st.integers(0, 2**32))
def test_crashes_at_every_gap_change_nothing(name: str, seed: int) -> None:
    case = CASES[name]
    want, got = steady(case.durable(), case.log), chaos(case.durable(), case.log, seed)
    assert not case.wrong(want)
    assert not case.wrong(got)
    for table in case.spec.tables:
        if table.stage is Stage.KNOWING:
            assert got.tables[table.name] == want.tables[table.name]


def _swaps() -> list[tuple[str, tuple[str, ...]]]:
    """Per table of the last stage: it before all others, and it before each step alone."""
    made = []
    for name, case in CASES.items():
        if name == "telemetry":
            continue  # it tells nobody anything, so nothing can come too late
        steps = case.spec.steps
        knowing = [each.name for each in case.spec.tables if each.stage is Stage.KNOWING]
        for table in knowing:
            for step in steps:
                if step not in knowing:
                    rest = [each for each in steps if each != table]
                    rest.insert(rest.index(step), table)
                    made.append((name, tuple(rest)))
    return made


@pytest.mark.parametrize(("name", "order"), _swaps())
def test_the_chaos_notices_any_table_that_knows_written_too_early(
    name: str, order: tuple[str, ...]
) -> None:
    """The control: with the steps swapped, something of the step that comes too late is lost."""
    case = CASES[name]
    assert not any(case.wrong(chaos(case.durable(), case.log, seed)) for seed in range(25))
    assert any(case.wrong(chaos(case.durable(), case.log, seed, order)) for seed in range(25))
