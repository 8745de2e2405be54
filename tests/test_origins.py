"""Who caused the simulated runs, by what, from where, and what steps their jobs took."""

from __future__ import annotations

from collections import Counter, defaultdict
from hashlib import blake2b
from typing import Any

import msgspec
import pytest

from pipeline.jobs import Job
from pipeline.simulate import NO_FAULTS, Faults, Simulation
from tests.test_simulate import ROUGH, STORM, folded, simulation
from topics.catalogue import LIFECYCLE, WEBHOOKS


def test_times_order_and_jobs_are_what_they_were_before_runs_had_origins() -> None:
    """Figures that were published about a seed stay true.

    The digest was taken before.
    """
    sim = simulation(11, 400, mix=ROUGH, faults=STORM)
    seen = blake2b(digest_size=16)
    for record in sim.records():
        said = dict(record.headers).get("x-github-delivery", b"")
        value = record.value if record.topic == LIFECYCLE else said
        seen.update(repr((record.send_at_ms, record.topic, record.key, value)).encode())
    truth = sim.truth()
    for key, job in sorted(truth.jobs.items()):
        times = (job.queued_at, job.started_at, job.completed_at, job.claimed_at, job.timings)
        seen.update(repr((key, job.status, job.fleet, job.conclusion, *times)).encode())
    assert seen.hexdigest() == "5dd27f1ad2bcc043cc1ebca1050b2236"


def bodies(sim: Simulation, part: str) -> list[dict[str, Any]]:
    """What the deliveries of one kind hold, in sending order."""
    return [
        body
        for record in sim.records()
        if record.topic == WEBHOOKS and part in (body := msgspec.json.decode(record.value))
    ]


def test_runs_have_every_trigger_many_actors_and_pull_requests_of_their_own_and_of_forks() -> None:
    runs = {
        body["workflow_run"]["id"]: body["workflow_run"]
        for body in bodies(simulation(5, 2_000, faults=NO_FAULTS), "workflow_run")
    }
    triggers = Counter(run["event"] for run in runs.values())
    assert triggers.keys() == {
        "push", "pull_request", "schedule", "merge_group", "workflow_dispatch",
    }  # fmt: skip
    assert triggers["push"] > triggers["workflow_dispatch"] > 5
    actors = {run["actor"]["login"] for run in runs.values()}
    assert len(actors) > 20
    assert "dependabot[bot]" in actors
    named = forked = 0
    for run in runs.values():
        head = run["head_repository"]
        assert head["full_name"].startswith(head["owner"]["login"])
        if head["fork"]:
            forked += 1
            assert head["owner"]["login"] == run["actor"]["login"]
            assert run["event"] == "pull_request"
        named += bool(run["pull_requests"])
        assert bool(run["pull_requests"]) == (run["event"] == "pull_request" and not head["fork"])
    assert named > forked > 5


def test_who_runs_it_again_is_the_sender_but_not_the_actor() -> None:
    pressed = 0
    actors: dict[int, set[str]] = defaultdict(set)
    for body in bodies(simulation(5, 600, mix=ROUGH, faults=NO_FAULTS), "workflow_run"):
        run = body["workflow_run"]
        actors[run["id"]].add(run["actor"]["login"])
        assert body["sender"]["login"] == run["triggering_actor"]["login"]
        pressed += run["triggering_actor"]["login"] != run["actor"]["login"]
    assert pressed > 10
    assert all(len(known) == 1 for known in actors.values())


def test_steps_fit_the_job_they_are_of() -> None:
    ends: Counter[str] = Counter()
    for body in bodies(simulation(5, 1_500, mix=ROUGH, faults=NO_FAULTS), "workflow_job"):
        job = body["workflow_job"]
        steps, ended = job["steps"], job["conclusion"]
        numbers = [step["number"] for step in steps]
        assert numbers == sorted(set(numbers))
        if not steps:
            assert ended in (None, "cancelled", "skipped")
            continue
        assert steps[0]["name"] == "Set up job"
        assert steps[-1]["name"] == "Complete job"
        if ended is None:
            assert [step["status"] for step in steps[:2]] == ["in_progress", "queued"]
            assert all(step["conclusion"] is None for step in steps)
            continue
        ends[ended] += 1
        words = [step["conclusion"] for step in steps]
        cut = {"failure": "failure", "cancelled": "cancelled", "timed_out": "cancelled"}.get(ended)
        assert words.count("success") == len(words) if cut is None else words.count(cut) == 1
        before = steps[0]["started_at"]
        for step in steps:
            assert before <= step["started_at"] <= step["completed_at"]
            before = step["completed_at"]
            if step["conclusion"] == "skipped":
                assert step["started_at"] == step["completed_at"]
        assert before[:19] == job["completed_at"][:19]
    assert min(ends[word] for word in ("success", "failure", "cancelled")) > 5


@pytest.mark.parametrize("drops", [0.0, 0.3, 0.9])
def test_what_is_lost_of_a_run_is_unknown_of_its_jobs(drops: float) -> None:
    sim = simulation(9, 500, faults=Faults(drops=drops, duplicates=0.3, reordered=0.5))
    records = list(sim.records())
    truth = sim.truth()
    unknown = sum(not job.origin.trigger for job in truth.jobs.values())
    assert (unknown > 0) == (drops > 0)
    for order in (records, records[::-1]):
        jobs, _ = folded(order)
        assert {key: told(job) for key, job in jobs.items()} == {
            key: (*job.origin, job.steps) for key, job in truth.jobs.items()
        }


def told(job: Job) -> tuple[object, ...]:
    """What a job's state says of its origin and its steps, in the truth's form."""
    known = job.attributes
    steps = tuple(msgspec.structs.astuple(step) for step in job.steps)
    return known.actor, known.trigger, known.pull_request, known.head_repo, steps
