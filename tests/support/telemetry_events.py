"""Histories of telemetry made up by hypothesis: ten minutes of one or two fleets."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from tests.support.telemetry import MINUTE, START, event
from topics.events.dispatch import ClaimOutcome, DispatchOutcome, MintOutcome
from topics.events.pools import BootOutcome
from topics.events.reconcilers import ActionOutcome, EffectOutcome, WorkStatus
from topics.events.schedulers import PlanStatus, RunMode, RunResult, SegmentStatus

FLEETS = st.sampled_from(["f0", "f1"])
#: When something happened, in ms.
TIMES = st.integers(0, 9 * MINUTE)
MS = st.integers(0, 400_000)
SMALL = st.integers(0, 6)


def maybe(one: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """That, or nothing."""
    return st.none() | one


def told(kind: str, **said: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An event of a kind."""
    return st.builds(
        lambda at, fleet, n, said: event(kind, at, f"{kind}|{at}|{fleet}|{n}", fleet=fleet, **said),
        TIMES,
        FLEETS,
        st.integers(0, 10_000),
        st.fixed_dictionaries(said),
    )


DISPATCH = (
    told("dispatch.request", outcome=st.sampled_from(DispatchOutcome), duration_ms=maybe(MS)),
    told("claim.attempt", outcome=st.sampled_from(ClaimOutcome)),
    told("runner.mint", outcome=st.sampled_from(MintOutcome), duration_ms=maybe(MS)),
)
_COUNTS = ("desired", "observed", "max", "ready", "idle", "booting", "occupied")
POOLS = (
    told("pool.sample", pool=st.sampled_from(["", "p", "q"]), **{n: maybe(SMALL) for n in _COUNTS}),
    told("queue.sample", queued=maybe(SMALL), withheld=maybe(SMALL)),
    told("accounts.sample", enabled=SMALL),
    told("machine.boot", outcome=st.sampled_from(BootOutcome), duration_ms=maybe(MS)),
)


def _of_run(kind: str, fleet: str, run: int, segment: int, n: int, at: int) -> Any:
    """What a scheduler says of a run. The same statement always says the same."""
    rng = random.Random(f"{kind}|{fleet}|{run}|{segment if 'segment' in kind else ''}")
    said: dict[str, Any] = {
        "run_id": f"r{run}",
        "schedule_id": f"s{run % 2}",
        "mode": list(RunMode)[run % 3],
    }
    once = True
    if kind == "run.planned":
        said |= {"status": rng.choice([*PlanStatus]), "images": rng.randint(0, 30)}
        said |= {"wait_ms": rng.choice([None, 50]), "latency_ms": rng.choice([None, 40, 900])}
    elif kind.startswith("segment."):
        said |= {"segment_id": f"g{segment}", "attempt": 1 + segment % 2}
    if kind == "segment.finished":
        said |= {"status": rng.choice([*SegmentStatus]), "images": rng.randint(0, 5)}
        said |= {name: rng.randint(0, 3) for name in ("images_with_delta", "new", "critical")}
    elif kind == "run.finished":
        said |= {"result": rng.choice([*RunResult]), "duration_ms": rng.choice([None, 70_000])}
    elif kind == "run.progress":
        once = False
        said |= {"processed": n % 30, "total": 20}
    elif kind == "queue.dead_lettered":
        once = False
        said |= {"queue": "runner"}
    when = rng.randint(0, 9 * MINUTE) if once else at
    return event(kind, when, f"{kind}|{fleet}|{run}|{segment}|{n}", fleet=fleet, **said)


def _schedule(kind: str, fleet: str, schedule: int, due: int, n: int) -> Any:
    said = {"schedule_id": f"s{schedule}", "due_at": START + due * MINUTE}
    return event(
        kind, due * MINUTE + 1, f"{kind}|{fleet}|{schedule}|{due}|{n}", fleet=fleet, **said
    )


_FEW = st.integers(0, 3)
SCHEDULERS = (
    st.builds(
        _of_run,
        st.sampled_from(
            [
                *("run.created", "run.planned", "segment.leased", "segment.finished"),
                *("run.progress", "run.finished", "queue.dead_lettered"),
            ]
        ),
        FLEETS,
        _FEW,
        _FEW,
        st.integers(0, 10_000),
        TIMES,
    ),
    told(
        "queue.depth",
        queue=st.sampled_from(["planner", "runner"]),
        depth=SMALL,
        dead_letters=SMALL,
        oldest_at=maybe(st.integers(START, START + 9 * MINUTE)),
    ),
    st.builds(
        _schedule,
        st.sampled_from(["schedule.missed", "schedule.caught_up"]),
        FLEETS,
        _FEW,
        st.integers(0, 9),
        st.integers(0, 100),
    ),
)


def _tick_of(fleet: str, reconciler: int, number: int, n: int) -> Any:
    """A tick of a reconciler: the same one always says the same."""
    rng = random.Random(f"tick|{fleet}|{reconciler}|{number}")
    names = (
        *("events_drained", "events_failed", "actions", "effects_attempted", "effects_succeeded"),
        *("effects_failed", "pending_new", "pending_retry", "violations"),
    )
    return event(
        "reconciler.tick",
        number * 20_000,
        f"tick|{fleet}|{reconciler}|{number}|{n}",
        fleet=fleet,
        reconciler=f"c{reconciler}",
        tick_id=f"t{number}",
        wall_ms=rng.randint(0, 70_000),
        actions_by_type={"a": rng.randint(0, 5), "b": 1},
        failed=rng.random() < 0.3,
        draining=rng.random() < 0.3,
        breaker_open=rng.random() < 0.3,
        **{name: rng.randint(0, 9) for name in names},
    )


_RECONCILER = st.sampled_from(["c0", "c1"])
_ENTITY = st.sampled_from(["e0", "e1"])
_STATES = st.sampled_from(WorkStatus)
RECONCILERS = (
    st.builds(_tick_of, FLEETS, st.integers(0, 1), st.integers(0, 27), st.integers(0, 100)),
    told(
        "reconciler.action",
        reconciler=_RECONCILER,
        type=st.sampled_from(["x", "y"]),
        entity=_ENTITY,
        outcome=st.sampled_from(ActionOutcome),
    ),
    told(
        "reconciler.effect",
        reconciler=_RECONCILER,
        type=st.just("x"),
        outcome=st.sampled_from(EffectOutcome),
        duration_ms=maybe(MS),
    ),
    told(
        "reconciler.violation_opened",
        reconciler=_RECONCILER,
        invariant=st.just("i"),
        entity=_ENTITY,
    ),
    told(
        "reconciler.violation_closed",
        reconciler=_RECONCILER,
        invariant=st.just("i"),
        entity=_ENTITY,
    ),
    told(
        "work.moved",
        reconciler=_RECONCILER,
        work_id=_ENTITY,
        from_state=st.just("") | _STATES,
        to_state=_STATES,
    ),
    told("work.dispatch_failed", reconciler=_RECONCILER, work_id=_ENTITY),
)

_KINDS: Mapping[str, tuple[st.SearchStrategy[Any], ...]] = {
    "dispatch": DISPATCH,
    "pools": POOLS,
    "schedulers": SCHEDULERS,
    "reconcilers": RECONCILERS,
}

#: A history of each family, without two events of one id.
HISTORIES: Mapping[str, st.SearchStrategy[list[Any]]] = {
    family: st.lists(st.one_of(*each), max_size=25, unique_by=lambda e: e.id)
    for family, each in _KINDS.items()
}
