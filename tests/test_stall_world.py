"""A day in which everything goes wrong: every stuck job is recovered, and nothing alive is hit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.ledger import Ledger
from pipeline.recovery import RecoveryPolicy
from tests.support.stall_world import FAULTS, HOUR, MINUTE, World
from topics.catalogue import COMMANDS, FLEETS, JOBS, PROBES

POLICY = RecoveryPolicy()
#: From when on a job of each fault is suspected.
SUSPECTED = {
    "orphan": POLICY.orphan_ms,
    "stale_claim": POLICY.stale_claim_ms,
    "host_gone": MINUTE,
    "displaced": MINUTE,
    "missed_by_autoscaler": POLICY.stale_queue_ms,
    "ghost": POLICY.stale_queue_ms,
    "lost_completed": POLICY.running_ms,
}

Kind = Callable[[int], World]


def calm(seed: int) -> World:
    return World(seed, 150, 8)


def killed(seed: int) -> World:
    """Every half minute a partition's owner dies, half of the times with its tables unwritten."""
    return World(seed, 150, 8, kill_every=2)


def lagging(seed: int) -> World:
    """Each partition is read half an hour late for a while, and owners die."""
    return World(seed, 150, 8, kill_every=8, lag=True)


@pytest.fixture(scope="module", params=[calm, killed, lagging], ids=lambda kind: kind.__name__)
def day(request: pytest.FixtureRequest) -> World:
    world: World = request.param(11)
    world.run()
    return world


def test_everything_that_can_go_wrong_did(day: World) -> None:
    assert all(day.count[fault] for fault in FAULTS)
    assert day.count["useless answers"]


def test_nothing_alive_was_hit(day: World) -> None:
    assert day.healthy_hits() == []


def test_every_stuck_job_was_recovered_in_time(day: World) -> None:
    assert day.stuck() == []
    late = HOUR if day.count["lags"] else 0
    for job in day.truth.values():
        if job.stuck_at is not None and job.freed_at is not None:
            # Outages of the provider and of the executor, and a failure, are in it.
            bound = SUSPECTED[job.fault] + HOUR + late
            assert job.freed_at - job.stuck_at <= bound, job


def test_nothing_was_done_twice(day: World) -> None:
    ids = [command.id for command in day.commands]
    # A command may be published again after a death; it has the same id, and is done once.
    assert len(set(ids)) >= len(ids) - day.count["kills"]
    for job in day.truth.values():
        assert len(job.hits) <= POLICY.most_attempts + 1
    per_attempt = {(command.job_key, command.attempt) for command in day.commands}
    assert len(per_attempt) == len(set(ids))


def test_a_replay_of_the_whole_day_asks_and_commands_nothing_and_knows_the_same(
    day: World,
) -> None:
    for topic in (JOBS, FLEETS):
        for part in day.parts[topic]:
            log, table = list(part.log), dict(part.table)
            part.table, part.panes, part.read = {}, {}, 0
            part.open(day.now)
            effects = part.fold(day.now)
            assert not [each for each in effects.outputs if each.topic in (PROBES, COMMANDS)]
            assert not [
                each for each in effects.outputs
                if each.topic == FLEETS and b"stall.proposed" in (each.value or b"")
            ]  # fmt: skip
            assert len(log) == len(part.log)
            if isinstance(part.ledger, Ledger):
                assert part.table == table
