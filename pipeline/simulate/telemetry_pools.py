"""A dispatcher and the pools it serves: runners boot, ask for work, run jobs and are replaced."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from pipeline.simulate.telemetry import STEP_MS, Told

#: A job that runs ends in a step with this chance.
_ENDS: Final = 0.25
#: A machine is ready after a step with this chance, and fails to boot with that.
_BOOTS, _FAILS = 0.4, 0.05


class _Pool:
    """One pool; its machines by when they were started, its runners by what they do."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.booting: list[int] = []
        self.idle = 0
        self.occupied = 0


def play(
    fleets: Sequence[str],
    start: int,
    end: int,
    seed: int = 0,
    pools: int = 2,
    at: int | None = None,
) -> Told:
    """What the dispatchers and pools of some fleets say between two times in ms.

    ``at``: of which moment the truth is told, the end unless given; before samples are outdated.
    """
    told = Told(at=end if at is None else at)
    for number, fleet in enumerate(fleets):
        rng = random.Random(f"{seed}|pools|{number}")
        _fleet(told, fleet, start, end, rng, pools)
    told.events.sort(key=lambda event: (event.occurred_at, event.id))
    return told


def _fleet(told: Told, fleet: str, start: int, end: int, rng: random.Random, pools: int) -> None:
    kept = {f"{fleet}-{n}": _Pool(rng.randint(3, 9)) for n in range(pools)}
    waiting: list[int] = []
    withheld = asked_at = 0
    at = start
    for at in range(start, end, STEP_MS):
        waiting += [at] * rng.choice((0, 0, 1, 2, 5))
        withheld = min(len(waiting), rng.choice((0, 0, 0, 1)))
        for pool in kept.values():
            _boot(told, fleet, at, pool, rng)
            for _ in range(pool.occupied):
                if rng.random() < _ENDS:
                    pool.occupied -= 1  # a runner is for one job
            for _ in range(pool.idle):
                asked_at = at + rng.randrange(STEP_MS)
                if _ask(told, fleet, asked_at, rng, len(waiting) > withheld):
                    waiting.pop(0)
                    pool.idle, pool.occupied = pool.idle - 1, pool.occupied + 1
        _sample(told, fleet, at + STEP_MS - 1, kept, waiting, withheld)
    seen = [event.occurred_at for event in told.events if event.kind == "dispatch.request"
            and event.fleet == fleet]  # fmt: skip
    if seen:
        told.levels["dispatch_last_request_timestamp_seconds", fleet] = max(seen) / 1000
    _levels(told, fleet, at + STEP_MS - 1, kept, waiting, withheld)


def _boot(told: Told, fleet: str, at: int, pool: _Pool, rng: random.Random) -> None:
    for began in list(pool.booting):
        if rng.random() < _BOOTS:
            pool.booting.remove(began)
            failed = rng.random() < _FAILS
            took = at - began + rng.randrange(STEP_MS)
            outcome = "failed" if failed else "ready"
            told.tell("machine.boot", fleet, at, outcome=outcome, duration_ms=took)
            told.count(fleet, "machine_boots", outcome)
            if not failed:
                pool.idle += 1
                told.count(fleet, "machine_boot_seconds")
                told.count(fleet, "machine_boot_seconds", "sum", value=took)
    if len(pool.booting) + pool.idle + pool.occupied < pool.size:
        pool.booting.append(at)


def _ask(told: Told, fleet: str, at: int, rng: random.Random, has_work: bool) -> bool:
    """An idle runner asks for work; whether it got some."""
    took = rng.randint(5, 400)
    outcome = "empty"
    if has_work:
        claim = rng.choices(("ok", "lost_race"), (9, 1))[0]
        told.tell("claim.attempt", fleet, at, outcome=claim)
        told.count(fleet, "claim_attempts", claim)
        outcome = claim
        if claim == "ok":
            mint = rng.choices(("ok", "failed"), (15, 1))[0]
            minted = rng.randint(50, 900)
            told.tell("runner.mint", fleet, at, outcome=mint, duration_ms=minted)
            told.count(fleet, "runner_mints", mint)
            told.count(fleet, "runner_mint_seconds")
            told.count(fleet, "runner_mint_seconds", "sum", value=minted)
            outcome = "served" if mint == "ok" else "mint_failed"
            took += minted
    told.tell("dispatch.request", fleet, at, outcome=outcome, duration_ms=took)
    told.count(fleet, "dispatch_requests", outcome)
    told.count(fleet, "dispatch_request_seconds", outcome)
    told.count(fleet, "dispatch_request_seconds", outcome, "sum", value=took)
    return outcome == "served"


def _sample(
    told: Told, fleet: str, at: int, pools: dict[str, _Pool], waiting: list[int], withheld: int
) -> None:
    for name, pool in pools.items():
        there = pool.idle + pool.occupied
        told.tell(
            "pool.sample", fleet, at, pool=name, desired=pool.size, max=10, ready=there,
            observed=there + len(pool.booting), idle=pool.idle, occupied=pool.occupied,
            booting=len(pool.booting), booting_since=min(pool.booting, default=None),
        )  # fmt: skip
    free = waiting[withheld:]
    told.tell(
        "queue.sample", fleet, at, queued=len(waiting), withheld=withheld,
        dispatchable_since=free[0] if free else None,
    )  # fmt: skip


def _levels(
    told: Told, fleet: str, at: int, pools: dict[str, _Pool], waiting: list[int], withheld: int
) -> None:
    """How it is at the end, as Prometheus should show it."""
    every = list(pools.values())
    idle, occupied = sum(each.idle for each in every), sum(each.occupied for each in every)
    booting = [began for each in every for began in each.booting]
    runners = {
        "desired": sum(each.size for each in every), "max": 10 * len(every), "idle": idle,
        "occupied": occupied, "ready": idle + occupied, "booting": len(booting),
        "observed": idle + occupied + len(booting),
    }  # fmt: skip
    for state, n in runners.items():
        told.levels["pool_runners", fleet, state] = n
    free = waiting[withheld:]
    told.levels["pool_booting_oldest_seconds", fleet] = _age(told.at, min(booting, default=None))
    told.levels["queue_withheld", fleet] = withheld
    told.levels["queue_oldest_dispatchable_seconds", fleet] = _age(
        told.at, free[0] if free else None
    )
    told.levels["pool_starved_jobs", fleet] = min(len(waiting), idle)
    told.levels["pool_saturated_jobs", fleet] = max(0, len(waiting) - idle)


def _age(at: int, since: int | None) -> float:
    return 0.0 if since is None else (at - since) / 1000
