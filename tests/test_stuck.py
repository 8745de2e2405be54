"""The simulated fleet whose jobs get stuck: what is true of each, what its dispatcher does when it
is told to, what GitHub answers meanwhile, and that the demo's judge finds what is not right."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from pipeline.commands import demo_recovery
from pipeline.commands.demo_check import Check, recovery
from pipeline.jobs import FleetNames, Job, merge, view
from pipeline.providers.github_api import GitHubApi
from pipeline.simulate import (
    LIVE,
    NO_FAULTS,
    Asked,
    Cause,
    Faults,
    Sending,
    Simulation,
    Stalls,
    Stuck,
    default_fleets,
)
from pipeline.simulate.api import FakeGitHub
from pipeline.simulate.asked import Dispatcher
from pipeline.simulate.origins import repository_of
from pipeline.simulate.stuck import FOUND_AS, Books, Hit
from pipeline.simulate.wire import HOST
from tests.test_simulate import T0, folded
from topics.keys import job_key
from topics.models import JobFact
from topics.recovery import Answer, Fence, Probe, Result, StallKind

WATCHED = demo_recovery.ROOMY
STALLS = Stalls(every_s=1.0, until_s=50.0, queues=frozenset({WATCHED.name}))
#: All that happens has happened long before this.
NOW = T0 + 400_000
LATE = 10_000_000


def simulation(seed: int = 1, stalls: Stalls | None = STALLS, **more: Any) -> Simulation:
    fleets = [*default_fleets(300, 60, LIVE), WATCHED]
    return Simulation(
        seed, 300, fleets, start_ms=T0, duration_s=60, tempo=LIVE, stalls=stalls,
        **{"faults": NO_FAULTS, **more},
    )  # fmt: skip


def taken(sim: Simulation) -> list[Sending]:
    """All records; those of hosts say nothing of jobs."""
    return [record for record in sim.records() if b'"host.gone"' not in record.value]


def asked(sim: Simulation) -> Asked:
    assert sim.asked is not None
    world = sim.asked.world
    sim.asked.clock = lambda: world.now
    return sim.asked


def key_of(job_id: int) -> str:
    return job_key("github", HOST, job_id)


def command(job_id: int, kind: str, claim: str, reason: str = "orphan") -> dict[str, Any]:
    return {
        "command": kind, "job_key": key_of(job_id), "fence": {"claim": claim, "rev": 3},
        "reason": reason, "expires_at": 1 << 50,
    }  # fmt: skip


# --- the world ------------------------------------------------------------------------------------


def test_the_same_seed_gets_stuck_in_the_same_way_and_every_cause_comes() -> None:
    one, again = (simulation(7, faults=None) for _ in range(2))
    assert list(one.records()) == list(again.records())
    assert one.truth() == again.truth()
    stuck = asked(one).world.stuck
    assert stuck == asked(again).world.stuck
    assert {each.cause for each in stuck.values()} == set(Cause)
    last = max(each.at for each in stuck.values() if each.cause is not Cause.LOST_COMPLETED)
    assert last <= T0 + 70_000


STATES = {
    Cause.LOST_COMPLETED: {"running"},
    Cause.MISSED: {"queued"},
    Cause.ORPHAN: {"starting"},
    Cause.GHOST: {"queued"},
    Cause.HOST_GONE: {"starting"},
    Cause.LOST_STARTED: {"completed"},  # its end is told again
    Cause.DISPLACED: {"starting"},
    Cause.STALE_CLAIM: {"claimed"},
    Cause.LOST_QUEUED: {"starting"},
}


@pytest.mark.parametrize("faults", [NO_FAULTS, Faults(drops=0.2, reordered=0.2, duplicates=0.2)])
def test_what_is_stuck_stays_where_it_is_whatever_else_is_lost(faults: Faults) -> None:
    sim = simulation(3, faults=faults)
    jobs, _ = folded(taken(sim))
    world = asked(sim).world
    causes: Counter[Cause] = Counter()
    for each in world.stuck.values():
        found = view(jobs[key_of(each.job_id)], FleetNames())
        assert found.status in STATES[each.cause], each
        causes[each.cause] += 1
        assert each.freed_at is None
        job = world.jobs[each.job_id]
        assert (job.completed is not None) == (
            each.cause in (Cause.LOST_COMPLETED, Cause.LOST_STARTED)
        )
        if each.cause is Cause.LOST_STARTED:
            assert job.started is not None
            assert job.completed is not None
            assert job.completed - job.started >= 45_000
        if each.cause is Cause.LOST_QUEUED:
            assert found.at.queued is None
    assert causes.keys() == set(Cause)


def test_the_machine_that_dies_is_that_of_the_job_and_nobody_elses() -> None:
    sim = simulation(3)
    hosts: dict[str, set[str]] = {}
    gone = set()
    for record in sim.records():
        if record.topic == "runners.lifecycle":
            said = json.loads(record.value)
            if said["kind"] == "host.gone":
                gone.add(said["runner_host"])
            elif said["runner_host"]:
                hosts.setdefault(said["runner_host"], set()).add(said["key"])
    stuck = asked(sim).world.stuck.values()
    lost = {key_of(each.job_id) for each in stuck if each.cause is Cause.HOST_GONE}
    assert lost
    assert {key for host in gone for key in hosts[host]} == lost


# --- its dispatcher -------------------------------------------------------------------------------


def test_a_command_with_the_right_fence_frees_a_job_and_it_runs() -> None:
    sim = simulation(4)
    freed: dict[int, str] = {}
    records: list[Sending] = []
    for record in sim.records():
        if b'"host.gone"' not in record.value:
            records.append(record)
        world = asked(sim).world
        for each in list(world.stuck.values()):
            job = world.jobs[each.job_id]
            alive = each.cause in (Cause.LOST_STARTED, Cause.LOST_COMPLETED)
            if alive or each.job_id in freed or world.now < each.at + 5_000:
                continue
            if each.cause not in (Cause.MISSED, Cause.GHOST) and not job.claim:
                continue
            kind = "close" if each.cause is Cause.GHOST else "requeue"
            freed[each.job_id] = job.claim
            wrong = command(each.job_id, kind, "another")
            assert asked(sim).execute("w", wrong) == (Result.REFUSED, "claim_changed")
            world.books.answers.clear()
            right = command(each.job_id, kind, job.claim)
            assert asked(sim).execute(f"c{each.job_id}", right) == (Result.DONE, "")
            assert each.freed_at is not None
    world = asked(sim).world
    assert not world.books.hits
    assert {world.stuck[job_id].cause for job_id in freed} >= set(Cause) - {
        Cause.LOST_STARTED,
        Cause.LOST_COMPLETED,
    }
    truth = sim.truth()
    jobs, _ = folded(records)
    for job_id in freed:
        job, cause = truth.jobs[key_of(job_id)], world.stuck[job_id].cause
        assert job.status == ("queued" if cause is Cause.GHOST else "completed")
        assert view(jobs[key_of(job_id)], FleetNames()).status == job.status
    # No runner went missing: all that could run has ended.
    left = Counter(job.status for job in truth.jobs.values() if job.status != "completed")
    ghosts = sum(job.run.conclusion == "startup_failure" for job in world.jobs.values())
    assert left == {"queued": ghosts, "running": left["running"]}
    lost = [each for each in world.stuck.values() if each.cause is Cause.LOST_COMPLETED]
    assert left["running"] == len(lost)


def test_a_command_against_a_living_job_is_kept_and_one_that_comes_twice_is_done_once() -> None:
    sim = simulation(5)
    for _ in sim.records():
        living = [job for job in asked(sim).world.jobs.values() if job.claim and job.started]
        if living:
            break
    world, job = asked(sim).world, living[0]
    first = asked(sim).execute("x", command(job.id, "requeue", job.claim))
    assert first == asked(sim).execute("x", command(job.id, "requeue", job.claim))
    assert first == (Result.DONE, "")
    assert [(hit.job_id, hit.command) for hit in world.books.hits] == [(job.id, "requeue")]
    assert world.books.calls == {"x": 2}
    # A stale claim that is none: its dispatcher knows of the runner.
    stale = command(job.id, "release_claim", job.claim, "stale_claim")
    assert asked(sim).execute("y", stale) == (Result.REFUSED, "minted")
    late = {**command(job.id, "requeue", job.claim), "expires_at": 1}
    assert asked(sim).execute("z", late) == (Result.REFUSED, "expired")
    assert asked(sim).execute("u", command(7, "requeue", "")) == (Result.CANNOT, "unknown_job")


def test_the_hook_checks_who_sends_and_says_what_was_done() -> None:
    sim = simulation(6)
    hook = Dispatcher(b"secret")

    def post(told: object, secret: bytes = b"secret", key: str = "k") -> httpx.Response:
        body = json.dumps(told).encode()
        made = "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
        headers = {"X-Runnerstream-Signature-256": made, "Idempotency-Key": key}
        return httpx.post(hook.url, content=body, headers=headers)

    try:
        taken(sim)
        orphan = next(
            each.job_id
            for each in asked(sim).world.stuck.values()
            if each.cause is Cause.ORPHAN
        )  # fmt: skip
        claim = asked(sim).world.jobs[orphan].claim
        right = command(orphan, "requeue", claim)
        assert post(right).status_code == 503  # nobody is there yet
        hook.asked = asked(sim)
        assert post(right, b"guessed").status_code == 401
        assert post(right, key="").status_code == 422
        assert post({"command": "requeue"}).status_code == 422
        refused = post(command(orphan, "requeue", "x"), key="a")
        assert (refused.status_code, refused.json()["reason"]) == (409, "claim_changed")
        assert not asked(sim).world.stuck[orphan].freed_at
        done = post(right, key="b")
        assert (done.status_code, done.json()["result"]) == (200, "done")
        assert asked(sim).world.stuck[orphan].freed_at
        assert post(right, key="b").json() == done.json()
    finally:
        hook.close()


# --- what GitHub answers --------------------------------------------------------------------------

ANSWERS = {
    **dict.fromkeys(Cause, Answer.QUEUED),
    Cause.LOST_COMPLETED: Answer.COMPLETED,
    Cause.LOST_STARTED: Answer.COMPLETED,  # by then
    Cause.GHOST: Answer.GHOST,
}


@pytest.fixture
def github() -> Iterator[tuple[Simulation, list[Sending], GitHubApi]]:
    sim = simulation(8, faults=Faults(drops=0.1))
    records = taken(sim)
    api = FakeGitHub(asked(sim).job, asked(sim).run, token="t", sees=asked(sim).sees)
    client = GitHubApi(
        "github.com",
        "t",
        base=api.url,
        per_minute=100_000,
        wall=lambda: asked(sim).world.now / 1000,
    )
    yield sim, records, client
    client.close()
    api.close()


def question(job_id: int, repo: str, run_id: int, attempt: int) -> Probe:
    return Probe(
        id=f"probe|{job_id}", fleet="f", source="t", occurred_at=NOW, received_at=NOW,
        key=key_of(job_id), n=1, k=1, stall=StallKind.ORPHAN, since=NOW, opened_at=NOW,
        fence=Fence(), expires_at=NOW + LATE, repo=repo, run_id=run_id, attempt=attempt,
    )  # fmt: skip


def test_github_answers_the_truth_and_what_it_tells_is_part_of_it(
    github: tuple[Simulation, list[Sending], GitHubApi],
) -> None:
    sim, records, client = github
    jobs, _ = folded(records)
    world = asked(sim).world
    before = sim.truth()
    for job in world.jobs.values():
        probe = question(job.id, repository_of(job.run.repo), job.run.id, job.attempt)
        said = client.ask(probe)
        stuck = world.stuck.get(job.id)
        if stuck is not None:
            assert said.answer == ANSWERS[stuck.cause]
            told = stuck.cause in (Cause.LOST_COMPLETED, Cause.LOST_STARTED, Cause.GHOST)
            assert (stuck.freed_at is not None) == told
        elif job.completed is not None:
            assert said.answer is Answer.COMPLETED
        for fact in said.facts:
            if isinstance(fact, JobFact):
                jobs[fact.key] = merge(jobs.get(fact.key), fact)
    after = sim.truth()
    assert before != after  # what was lost is known now
    for key, truth in after.jobs.items():
        v = view(jobs[key], FleetNames())
        found = (v.status, v.conclusion, _name(jobs[key]), v.at.started and v.at.started.ms)
        assert found == (truth.status, truth.conclusion, truth.runner, truth.started_at)
        assert (v.at.queued and v.at.queued.ms) == truth.queued_at
        assert (v.at.completed and v.at.completed.ms) == truth.completed_at
    closings = {each.key for each in asked(sim).closings()}
    ghosts = {key_of(j.id) for j in world.jobs.values() if j.run.conclusion == "startup_failure"}
    assert closings == ghosts
    closed = sim.truth(dict.fromkeys(closings, (LATE, "startup_failure")))
    assert {closed.jobs[key].conclusion for key in closings} == {"startup_failure"}
    assert {closed.jobs[key].completed_at for key in closings} == {LATE}


def test_it_hides_what_is_not_of_this_world(
    github: tuple[Simulation, list[Sending], GitHubApi],
) -> None:
    _, _, client = github
    said = client.ask(question(5, "somebody/else", 6, 1))
    assert (said.answer, said.detail) == (Answer.UNKNOWN, "forbidden")


def _name(job: Job) -> str:
    return job.runner.name if job.runner else ""


# --- the judge ------------------------------------------------------------------------------------


@dataclass
class Judged:
    """A stuck job of each cause, all of them recovered, and the books of their dispatcher."""

    stuck: list[Stuck] = field(default_factory=list)
    rows: list[demo_recovery.Row] = field(default_factory=list)
    books: Books = field(default_factory=Books)
    told: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number, cause in enumerate(Cause):
            self.stuck.append(Stuck(number, "f", cause, 1_000, 9_000))
            kind = min(FOUND_AS[cause]).value
            self.rows.append(
                demo_recovery.Row(
                    key_of(number), 1, "f", kind, 1_000, 3_000, 9_000, 8_000, 1, ANSWERS[cause],
                    "", "requeue", "done",
                )
            )  # fmt: skip
            self.books.answers[f"c{number}"] = (Result.DONE, "")
            self.books.calls[f"c{number}"] = 1
            self.told.append((f"c{number}", "done"))

    def check(self) -> Check:
        check = Check()
        recovery(check, self.stuck, self.rows, self.books, self.told)
        return check


def test_the_judge_is_content_when_all_is_recovered() -> None:
    found = Judged().check()
    assert found.equal, found.differences
    assert found.counts["recovery", "stuck jobs: found and recovered"] == [len(Cause)] * 2 + [0]


@pytest.mark.parametrize("number", range(len(Cause)))
def test_the_judge_names_what_was_not_recovered_or_not_found(number: int) -> None:
    judged = Judged()
    cause = list(Cause)[number]
    row = judged.rows[number]
    judged.rows[number] = row._replace(left_at=None, stranded_ms=None)
    (told,) = judged.check().differences
    assert key_of(number) in told
    assert f"expected {cause} recovered, found {cause} {row.kind}" in told
    for wrong in (row._replace(kind="flapping"), row._replace(key="another")):
        judged.rows[number] = wrong
        (told,) = judged.check().differences
        assert f"found {cause} not found" in told


def test_an_end_that_was_missed_is_recovered_by_the_answer_that_tells_it() -> None:
    judged = Judged()
    (row,) = (each for each in judged.rows if each.kind == StallKind.MISSED_COMPLETION)
    judged.rows[judged.rows.index(row)] = row._replace(answer=Answer.IN_PROGRESS.value)
    (told,) = judged.check().differences
    assert "lost_completed not found" in told


def test_the_judge_names_commands_that_hit_life_came_twice_or_ended_otherwise() -> None:
    judged = Judged()
    judged.books.hits.append(Hit(3, "requeue", 7))
    judged.books.calls["c1"] = 2
    judged.told[2] = ("c2", "failed")
    judged.told.append(("c3", "done"))
    told = "\n".join(judged.check().differences)
    assert "against living jobs, 3: expected nothing, found requeue at 7" in told
    assert "brought to the dispatcher once, c1: expected 1, found 2" in told
    assert "how they ended, each once, c2: expected done, found failed" in told
    assert "each once, c3: expected done, found done done" in told
    assert len(judged.check().differences) == 4


# --- what is shown --------------------------------------------------------------------------------


def test_a_line_tells_cause_evidence_and_what_was_done() -> None:
    row = demo_recovery.Row(
        "github:github.com:7", 1, "linux", "orphan", 1_790_000_000_000, 1_790_000_016_400,
        1_790_000_019_000, 19_000, 1, "queued", "", "requeue", "done",
    )  # fmt: skip

    def said(**differs: Any) -> str:
        line = demo_recovery.line_of(row._replace(**differs))
        return "" if line is None else line.text().partition("com:7: ")[2]

    assert said() == "minted 16 s ago, GitHub says queued; requeue → done; stranded for 19.0 s"
    open_ = {"left_at": None, "stranded_ms": None}
    assert said(**open_, result="") == "minted 16 s ago, GitHub says queued; requeue → …"
    quiet = {"command": "", "result": ""}
    assert said(**open_, **quiet, answer="") == "minted 16 s ago, GitHub is asked; …"
    assert said(**open_, **quiet, withheld="paused").endswith("withheld: paused …")
    assert "GitHub says it runs; recorded" in said(**quiet, answer="in_progress")
    assert said(**quiet, asks=0, answer="") == "minted 16 s ago; it moved on; stranded for 19.0 s"
    over = {"kind": "stale_queue", "answer": "ghost"}
    assert "its run is over; close → done" in said(**over, command="close")
    missed = {**quiet, "kind": "missed_completion"}
    assert said(**missed, answer="completed") == "running 16 s, GitHub says completed; recorded"
    # One that runs for long is no news.
    assert said(**missed, answer="in_progress") == said(**missed, answer="") == ""


def test_a_stall_is_over_when_the_job_is_out_of_it_and_all_is_done() -> None:
    line = demo_recovery.Line("k", 1, 0, "f", "stale_queue", "e", "close → done", 5)
    assert line.over
    for differs in ({"stranded_ms": None}, {"done": "close → …"}):
        assert not demo_recovery.Line(**{**line.__dict__, **differs}).over
