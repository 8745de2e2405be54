"""GitHub's quirks, one test each: what it does, and what we make of it.

The evidence stands in each test: an issue, a published body, or a measured delivery. Bodies are
the fields that matter, in GitHub's form (whole seconds).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.jobs import (
    At,
    FleetNames,
    Job,
    Run,
    View,
    encode,
    encode_outcome,
    link_run,
    merge,
    merge_run,
    run_outcomes,
    view,
)
from pipeline.providers import facts, guid_time_ms, lifecycle_fact
from pipeline.simulate.wire import guid_at
from pipeline.windows import contributions
from topics.models import (
    JOBS_RECORD,
    Clock,
    Delivery,
    JobFact,
    LifecycleEvent,
    LifecycleKind,
    Milestone,
    Reason,
    RunFact,
    RunLink,
    RunnerRef,
    Unreadable,
)

DATA = Path(__file__).parent / "data" / "github"
#: 2026-09-03T04:16:00Z, the minute of runs-on#539.
T0 = 1_788_408_960_000
NODE = 0xBB84FEFFA688
FLEETS = FleetNames()


def iso(at_s: float | None) -> str | None:
    """GitHub's form of T0 + some seconds."""
    if at_s is None:
        return None
    return datetime.fromtimestamp(T0 // 1000 + int(at_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def hook(
    action: str,
    at_s: float,
    *,
    job: int = 7,
    delay_s: float = 1.0,
    guid: str | None = None,
    **fields: Any,
) -> Delivery:
    """A workflow_job delivery: the event at T0 + ``at_s``, received ``delay_s`` later.

    ``created``, ``started`` and ``completed`` are seconds after T0; other fields go into the job
    as they are.
    """
    times = {f"{n}_at": iso(fields.pop(n, None)) for n in ("created", "started", "completed")}
    status = fields.pop("status", action)
    at = T0 + int(at_s * 1000)
    body = {
        "action": action,
        "workflow_job": {
            "id": job,
            "run_id": 99,
            "run_attempt": 1,
            "status": status,
            "conclusion": None,
            "name": "build",
            "labels": ["self-hosted", "linux"],
            "steps": [],
            "runner_id": None,
            "runner_name": None,
            "runner_group_name": None,
            **times,
            **fields,
        },
        "repository": {"full_name": "octo-org/octo-repo"},
    }
    return Delivery(
        id=guid or guid_at(at, 0, NODE),
        kind="github.workflow_job",
        source="github",
        occurred_at=at,
        received_at=at + int(delay_s * 1000),
        key=f"github:github.com:{job}",
        payload=json.dumps(body),
    )


RAN = {"runner_id": 21, "runner_name": "r1", "runner_group_name": "Default"}


def step(started_s: float | None, fraction: str = ".000Z") -> dict[str, Any]:
    text = iso(started_s)
    return {"name": "Set up job", "started_at": text and text.replace("Z", fraction)}


def fact_of(delivery: Delivery) -> JobFact:
    fact = facts(delivery)[0]
    assert isinstance(fact, JobFact)
    return fact


def fold(said: Iterable[Delivery | LifecycleEvent | JobFact]) -> Job:
    job: Job | None = None
    for one in said:
        if isinstance(one, Delivery):
            one = fact_of(one)  # noqa: PLW2901
        elif isinstance(one, LifecycleEvent):
            one = lifecycle_fact(one)  # noqa: PLW2901
        job = merge(job, one)
    assert job is not None
    return job


def see(*said: Delivery | LifecycleEvent | JobFact) -> View:
    """The view of everything said, after checking that its order does not matter."""
    seen = view(fold(said), FLEETS)
    orders = (
        itertools.permutations(said) if len(said) <= 4 else (said[i:] + said[:i] for i in range(9))
    )
    for order in orders:
        assert view(fold(order), FLEETS) == seen
    return seen


def dispatcher(
    kind: str, at_s: float, claim: str = "", runner: str = "", **fields: Any
) -> LifecycleEvent:
    job = fields.pop("job", 7)
    at = T0 + int(at_s * 1000)
    return LifecycleEvent(
        id=f"{job}/{kind}/{claim}/{at}",
        kind=LifecycleKind(kind),
        source="dispatcher",
        occurred_at=at,
        received_at=at + 5,
        key=f"github:github.com:{job}",
        job_id=str(job),
        claim=claim,
        runner=RunnerRef(name=runner),
        **fields,
    )


def run_hook(at_s: float, attempt: int = 1, **fields: Any) -> RunFact:
    at = T0 + int(at_s * 1000)
    body = {
        "action": "completed" if fields.get("status") == "completed" else "requested",
        "workflow_run": {"id": 99, "run_attempt": attempt, "updated_at": iso(at_s), **fields},
    }
    (fact,) = facts(
        Delivery(
            id=guid_at(at, 0, NODE),
            kind="github.workflow_run",
            source="github",
            occurred_at=at,
            received_at=at + 900,
            key="github:github.com:run/99",
            payload=json.dumps(body),
        )
    )
    assert isinstance(fact, RunFact)
    return fact


def told_by_run(deliveries: list[Delivery], runs: list[RunFact]) -> list[JobFact]:
    """What a run tells its jobs, whichever of the two is heard first."""
    links = [f for d in deliveries for f in facts(d) if isinstance(f, RunLink)]
    outcomes = []
    for heard in ([*links, *runs], [*runs, *links]):
        run: Run | None = None
        told: list[JobFact] = []
        for one in heard:
            after = link_run(run, one) if isinstance(one, RunLink) else merge_run(run, one)
            told += [JOBS_RECORD.validate_json(encode_outcome(o)) for o in run_outcomes(run, after)]
            run = after
        outcomes.append({(f.key, f.run): f for f in told})
    assert outcomes[0].keys() == outcomes[1].keys()
    return list(outcomes[0].values())


def test_q01_whole_second_times_do_not_order_events_within_a_second() -> None:
    queued = hook("queued", 0.1, created=0, started=0)
    running = hook("in_progress", 0.9, created=0, started=0, steps=[step(0)], **RAN)
    seen = see(running, queued)
    assert seen.status == "running"
    assert seen.timings["queue"].ms == 0
    # The delivery ids do tell them apart; steps carry milliseconds that are always zero.
    assert guid_time_ms(queued.id) == T0 + 100
    assert guid_time_ms(running.id) == T0 + 900
    assert fact_of(running).times[Milestone.STARTED][Clock.STEP] == T0


def test_q02_created_up_to_a_second_after_started_is_clamped_and_said() -> None:
    # OTel #39824: started 14:15:54, created 14:15:55.
    done = hook(
        "completed", 60, created=1, started=0, completed=60, conclusion="success",
        steps=[step(0)], **RAN,
    )  # fmt: skip
    queue = see(done).timings["queue"]
    assert (queue.ms, queue.clamped_ms) == (0, 1000)
    # The skipped job of that test data: its wait is 0, not -1 s.
    skipped = hook("completed", 1, created=1, started=0, completed=0, conclusion="skipped")
    assert see(skipped).abandoned_ms == 0
    assert {t.missing for t in see(skipped).timings.values()} == {"not_started"}


def test_q03_started_at_of_a_queued_event_is_no_start() -> None:
    # octokit's published ``queued``: started_at == created_at; strands-labs#2509.
    for action in ("queued", "waiting"):
        seen = see(hook(action, 0.5, created=0, started=0))
        assert seen.status == action
        assert seen.at.started is None
        assert seen.timings["queue"].missing == "pending"


def test_q04_started_at_that_stays_at_creation_is_not_believed() -> None:
    # strands-labs#2509: a hosted job keeps started_at; the event or the first step tells.
    queued = hook("queued", 0.2, created=0, started=0)
    by_event = see(queued, hook("in_progress", 42.5, created=0, started=0, **RAN))
    assert (by_event.timings["queue"].ms, by_event.at.started) == (
        42_500,
        At(T0 + 42_500, "delivery"),
    )
    by_step = see(queued, hook("in_progress", 42.5, created=0, started=0, steps=[step(42)], **RAN))
    assert by_step.at.started == At(T0 + 42_000, "step")
    # Picked up at once is possible too: 5 s of disagreement are not evidence.
    assert see(queued, hook("in_progress", 3, created=0, started=0, **RAN)).timings["queue"].ms == 0


def test_q05_a_first_step_one_second_before_the_start_is_tolerated() -> None:
    # octokit's published in_progress.with-queued-steps: step 03:31:35, started_at 03:31:36.
    payload = (DATA / "workflow_job.in_progress.with-queued-steps.json").read_text("utf-8")
    published = hook("in_progress", 0).model_copy(update={"payload": payload})
    seen = see(published)
    assert seen.status == "running"
    assert seen.at.started is not None
    assert seen.at.started.clock == "provider"
    assert seen.timings["queue"].ms == 7_000
    times = fact_of(published).times[Milestone.STARTED]
    assert times[Clock.PROVIDER] - times[Clock.STEP] == 1_000


@pytest.mark.parametrize("nobody", [None, 0, ""])
def test_q06_cancelled_before_it_started_has_a_wait_but_no_run(nobody: Any) -> None:
    # octokit/webhooks#629: started_at == completed_at, no runner.
    seen = see(
        hook("queued", 0.3, created=0, started=0),
        hook(
            "completed", 90, created=0, started=90, completed=90, conclusion="cancelled",
            runner_id=nobody, runner_name=nobody if nobody != 0 else None,
        ),
    )  # fmt: skip
    assert (seen.status, seen.conclusion) == ("completed", "cancelled")
    assert seen.at.started is None
    assert seen.abandoned_ms == 90_000
    assert {t.missing for t in seen.timings.values()} == {"not_started"}


def test_q07_completed_out_of_nothing_is_accepted_and_kept_out_of_percentiles() -> None:
    # slurmactiond#10, ARC#836: skipped and needs-chain jobs send only ``completed``.
    skipped = see(hook("completed", 5, created=5, started=5, completed=5, conclusion="skipped"))
    assert (skipped.status, skipped.conclusion) == ("completed", "skipped")
    assert [(c.name, c.ms) for c in contributions(skipped)] == [("skipped", None)]
    # One that ran, of which only the end was heard, does count: both bounds are in the body.
    ran = see(
        hook("completed", 80, created=5, started=20, completed=80, conclusion="success", **RAN)
    )
    assert ran.timings["queue"].ms == 15_000
    assert ran.timings["run"].ms == 60_000


def test_q08_terminal_never_reopens_and_late_facts_fill_blanks() -> None:
    # go-github#2706: queued, completed, then in_progress.
    queued = hook("queued", 0.2, created=0, started=0)
    done = hook("completed", 60, created=0, completed=60, conclusion="failure", started=10, **RAN)
    late = hook("in_progress", 10.7, created=0, started=10, steps=[step(10)], **RAN, delay_s=300)
    before = view(fold([queued, done]), FLEETS)
    after = see(queued, done, late)
    assert (before.status, after.status) == ("completed", "completed")
    assert after.conclusion == "failure"
    assert after.timings["run"].ms == 50_000
    assert fold([queued, done, late]).times["started"]["step"] == T0 + 10_000


def test_q09_a_gated_job_is_queued_waiting_queued_and_the_gate_is_not_queue_time() -> None:
    # runs-on#539: three bodies that differ in action and status only; ids 4d8ed510 and 4ead6470
    # are the two ``queued``, 1.878 s apart, created == started in all.
    first = hook("queued", 57, created=57, started=57, guid="4d8ed510-a74e-11f1-9e4b-bb84feffa688")
    gate = hook("waiting", 58.2, created=57, started=57)
    second = hook("queued", 59, created=57, started=57, guid="4ead6470-a74e-11f1-8604-2fc18657851e")
    assert guid_time_ms(second.id) == T0 + 59_447
    running = hook("in_progress", 63, created=57, started=63, **RAN)

    assert see(first, gate).status == "waiting"
    approved = see(first, gate, second)
    assert (approved.status, approved.since) == ("queued", T0 + 59_447)
    seen = see(first, gate, second, running)
    assert seen.at.gated_ms == 59_447 - 58_200
    assert seen.timings["queue"].ms == 6_000 - seen.at.gated_ms
    # Without the ``queued`` that ends it, the gate's length is not known: no sample, not a guess.
    assert see(first, gate, running).timings["queue"].missing == "gate_unknown"
    # The published queued.with-deployment says action queued, status waiting: the gate is shut.
    shut = hook("queued", 57, created=57, started=57, status="waiting")
    assert see(shut).status == "waiting"
    assert see(shut, second).status == "queued"


def test_q10_several_in_progress_events_keep_the_earliest_start() -> None:
    first = hook("in_progress", 10.4, created=0, started=10, steps=[step(10)], **RAN)
    grown = hook("in_progress", 14.9, created=0, started=10, steps=[step(10), step(14)], **RAN)
    other_hook = hook(
        "in_progress", 10.4, created=0, started=10, steps=[step(10)], delay_s=3, **RAN
    )
    seen = see(first, grown, other_hook)
    assert seen.at.started == At(T0 + 10_000, "provider")
    # The same delivery id with the same body is one fact, a later snapshot is another.
    assert fold([first, other_hook, first]).rev == 1
    assert fold([first, other_hook, grown]).rev == 2


def test_q11_a_rerun_is_another_job_and_a_copied_job_counts_nowhere() -> None:
    # tt-metal#12010, New Relic #38: attempt 2 has new job ids; jobs that are not run again are
    # copied with their old times.
    original = hook(
        "completed", 60, created=0, started=10, completed=60, conclusion="success", **RAN
    )
    copy = hook(
        "completed", 600, job=8, created=0, started=10, completed=60, conclusion="success",
        run_attempt=2, **RAN,
    )  # fmt: skip
    again = hook(
        "completed", 700, job=9, created=601, started=610, completed=700, conclusion="success",
        run_attempt=2, **RAN,
    )  # fmt: skip
    assert len({fact_of(d).key for d in (original, copy, again)}) == 3
    told = told_by_run(
        [original, copy, again], [run_hook(600, 2, run_started_at=iso(600), status="queued")]
    )
    assert {f.key[-1] for f in told} == {"8", "9"}  # nothing to say to the first attempt's job

    def with_run(d: Delivery) -> View:
        return see(d, *(f for f in told if f.key == fact_of(d).key))

    assert with_run(copy).at.copied
    assert contributions(with_run(copy)) == frozenset()
    assert {t.missing for t in with_run(copy).timings.values()} == {"copied"}
    assert not with_run(again).at.copied
    assert not with_run(original).at.copied
    assert with_run(original).timings["run"].ms == 50_000


def test_q12_a_rerun_without_a_queued_event_still_has_its_wait() -> None:
    # reinhardt#4254, ARC#4315.
    seen = see(
        hook("in_progress", 20.5, created=3, started=20, steps=[step(20)], run_attempt=2, **RAN)
    )
    assert seen.status == "running"
    assert seen.at.queued == At(T0 + 3_000, "provider")
    assert seen.timings["queue"].ms == 17_000


def test_q13_a_run_that_fails_at_startup_tells_its_ghost_jobs() -> None:
    # test-infra#5164, Tuist#12673: no job event ever comes; only the run knows.
    queued = hook("queued", 0.2, created=0, started=0)
    (told,) = told_by_run([queued], [run_hook(5, status="completed", conclusion="startup_failure")])
    job = fold([queued, told])
    assert job.run is not None
    assert (job.run.completed_at, job.run.conclusion) == (T0 + 5_000, "startup_failure")
    # That is evidence for recovery to act on. It does not end the job by itself.
    assert see(queued, told).status == "queued"
    # ``action_required`` is a run that waits for approval: its jobs are still to come.
    waits = run_hook(5, status="completed", conclusion="action_required")
    assert told_by_run([queued], [waits]) == []


def test_q14_a_cancel_that_was_never_delivered_is_known_from_the_run() -> None:
    # test-infra#8632: the loser of a concurrency group gets no completed event.
    queued = hook("queued", 0.2, created=0, started=0)
    (told,) = told_by_run([queued], [run_hook(30, status="completed", conclusion="cancelled")])
    seen = see(queued, told)
    assert (seen.status, seen.conclusion) == ("queued", None)
    job = fold([told, queued])
    assert job.run is not None
    assert job.run.conclusion == "cancelled"


def test_q15_a_step_that_started_means_started_whatever_the_status() -> None:
    # test-infra#354, #487: status stays ``queued`` though it ran.
    odd = hook("queued", 42, created=0, started=0, steps=[step(40, "Z")], **RAN)
    seen = see(odd)
    assert seen.status == "running"
    # Its started_at still repeats created_at (Q3), so the step's clock is the one.
    assert seen.at.started == At(T0 + 40_000, "step")
    # Steps that have not begun prove nothing.
    assert see(hook("queued", 1, created=0, steps=[step(None)])).status == "queued"


def test_q16_a_runner_minted_for_one_job_may_execute_another() -> None:
    # Tuist#11862: labels route; the claim is a guess.
    claimed = dispatcher("job.claimed", 1, "7-1", "r1")
    minted = dispatcher("job.minted", 2, "7-1", "r1")
    other = see(hook("in_progress", 5, job=8, created=0, started=5, **RAN))
    assert (other.status, other.timings["claim_to_start"].missing) == ("running", "no_claim")
    # r1 runs job 8; job 7 only knows that a runner was made for it.
    assert see(claimed, minted).status == "starting"
    released = dispatcher("claim.released", 9, "7-1", reason="displaced")
    assert see(hook("queued", 0.2, created=0), claimed, minted, released).status == "queued"
    # Claimed again, and executed by the second claim's runner: that claim's time counts.
    again = dispatcher("job.claimed", 10, "7-2", "r2")
    ran = hook("in_progress", 14.2, created=0, started=14, **{**RAN, "runner_name": "r2"})
    seen = see(claimed, minted, released, again, ran)
    assert seen.at.claimed == T0 + 10_000
    assert seen.timings["claim_to_start"].ms == 4_000


@pytest.mark.parametrize(
    "nobody",
    [
        {"runner_id": None, "runner_name": None, "runner_group_name": None},
        {"runner_id": 0, "runner_name": "", "runner_group_name": ""},
        {"runner_id": "", "runner_name": "", "runner_group_name": None},
    ],
)
def test_q17_null_zero_and_blank_are_all_nobody(nobody: dict[str, Any]) -> None:
    # ubicloud#1005 matched null with null.
    fact = fact_of(hook("in_progress", 5, created=0, started=5, **nobody))
    assert fact.runner is None
    assert fold([fact]).runner is None
    # A claim without a runner's name is not the claim of a job without one either way round.
    claimed = dispatcher("job.claimed", 1, "7-1", "")
    assert see(claimed, hook("in_progress", 5, created=0, started=5, **nobody)).at.claimed == (
        T0 + 1_000
    )
    # GitHub's own example of ``queued`` names a runner: nothing has been observed.
    assert fact_of(hook("queued", 0, created=0, started=0, **RAN)).runner is None


def test_q18_workflow_job_null_is_refused_by_name() -> None:
    # ubicloud#1287.
    bad = hook("queued", 0).model_copy(
        update={"payload": '{"action":"queued","workflow_job":null}'}
    )
    with pytest.raises(Unreadable) as caught:
        facts(bad)
    assert caught.value.reason is Reason.NO_JOB


def test_q19_without_created_at_the_delivery_tells_when_it_was_queued() -> None:
    # ARC, terraform-aws-github-runner and abcxyz test data, before December 2022.
    queued = hook("queued", 3.25, started=3)
    started = hook("in_progress", 9, started=9, **RAN)
    seen = see(queued, started)
    assert seen.at.queued == At(T0 + 3_250, "delivery")
    assert seen.timings["queue"].ms == 5_750
    # A delivery id without a clock (not version 1): the record's own time.
    uuid4 = "7d9f3c1e-4b52-4f0a-9c3e-2f6f1f6e8a11"
    assert guid_time_ms(uuid4) is None
    assert see(hook("queued", 3.5, started=3, guid=uuid4)).at.queued == At(T0 + 3_500, "delivery")
    # Never heard queued: no sample rather than one from the start.
    assert see(started).timings["queue"].missing == "no_queued"


def test_q20_an_unevaluated_job_name_gives_way_to_a_real_one() -> None:
    raw = hook(
        "completed", 5, created=5, completed=5, conclusion="skipped", name="${{ matrix.os }}"
    )
    named = hook("queued", 1, created=5, name="aardvark")
    for order in ([raw, named], [named, raw]):
        assert fold(order).attributes.name == "aardvark"
    # No metric or window is named by it.
    assert {c.name for c in contributions(see(raw))} == {"skipped"}
    assert see(raw).fleet == "linux"


def test_q21_both_starts_of_the_wait_are_kept() -> None:
    # test-infra#8558: some paths create a job before its dependencies are done.
    job = fold([hook("queued", 30.5, created=0, started=0)])
    assert job.times["queued"] == {
        "provider": T0,
        "delivery": T0 + 30_500,
        "received": T0 + 31_500,
    }
    assert view(job, FLEETS).at.queued == At(T0, "provider")


def test_q22_without_labels_the_fleet_is_the_runner_group_or_unknown() -> None:
    # OTel test data: labels [] on a skipped job.
    skipped = see(hook("completed", 5, created=5, completed=5, conclusion="skipped", labels=[]))
    assert skipped.fleet == "unknown"
    ran = see(hook("in_progress", 5, created=0, started=5, labels=None, **RAN))
    assert ran.fleet == "Default"
    shouted = see(hook("queued", 5, created=5, labels=["X64", "self-hosted", "Linux", "x64 "]))
    assert shouted.fleet == "linux,x64"


def test_q23_events_late_by_minutes_count_when_they_happened() -> None:
    # go-github#2706: after an outage everything arrives in one burst.
    prompt = [
        hook("queued", 0.2, created=0, started=0),
        hook("in_progress", 10.2, created=0, started=10, **RAN),
        hook("completed", 70.2, created=0, started=10, completed=70, conclusion="success", **RAN),
    ]
    burst = [d.model_copy(update={"received_at": T0 + 1_800_000 + n}) for n, d in enumerate(prompt)]
    now, later = see(*prompt), see(*reversed(burst))
    assert now.timings == later.timings
    assert contributions(now) == contributions(later)
    assert {c.at for c in contributions(later)} == {T0 + 10_000, T0 + 70_000}


def test_q24_redelivery_hours_later_changes_nothing() -> None:
    # GitHub docs: redelivered for 3 days (GHES 7) under the same delivery id.
    history = [
        hook("queued", 0.2, created=0, started=0),
        hook("in_progress", 10.2, created=0, started=10, **RAN),
        hook("completed", 70.2, created=0, started=10, completed=70, conclusion="success", **RAN),
    ]
    job = fold(history)
    for old in history:
        again = old.model_copy(update={"received_at": old.received_at + 7 * 86_400_000})
        assert merge(job, fact_of(again)) is job
    assert encode(job, view(job, FLEETS)) == encode(fold(history * 2), view(job, FLEETS))


def test_q25_there_is_no_dedupe_mark_that_could_swallow_an_event() -> None:
    # loopover#9054 marked a delivery as seen before it was stored, crashed, and lost 5,547.
    # Here reading a delivery remembers nothing: whoever crashes before the merge reads the same
    # facts again, and only the merge, which is the storing, knows them.
    queued = hook("queued", 0.2, created=0, started=0)
    lost_in_a_crash = facts(queued)
    read_again = facts(queued)
    assert lost_in_a_crash == read_again
    job = fold([read_again[0]])  # type: ignore[list-item]
    assert job.rev == 1
    assert merge(job, fact_of(queued)) is job


@pytest.mark.parametrize("zero", ["0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z"])
def test_q26_a_zero_time_is_missing(zero: str) -> None:
    # ARC#4444: a job cancelled before assignment took 63,911,499,556 s.
    zeros = {"started_at": zero, "completed_at": zero}
    running = fact_of(hook("in_progress", 5, created=0, **zeros, **RAN))
    assert Clock.PROVIDER not in running.times[Milestone.STARTED]
    assert Milestone.COMPLETED not in running.times
    done = hook("completed", 90.5, created=0, conclusion="cancelled", **zeros)
    seen = see(done)
    assert seen.at.completed == At(T0 + 90_500, "delivery")
    assert seen.abandoned_ms == 90_500
    assert see(hook("queued", 0.5, created_at=zero)).at.queued == At(T0 + 500, "delivery")


def test_q27_an_outcome_we_do_not_know_neither_ends_nor_requeues_a_job() -> None:
    # actions/runner#3872, miles#2196: cancel answers 409, re-run 403; GitHub adds words.
    running = hook("in_progress", 10, created=0, started=10, **RAN)
    # A conclusion while in progress (the schema allows it) ends nothing.
    odd = hook("in_progress", 20, created=0, started=10, conclusion="cancelled", **RAN)
    assert see(running, odd).status == "running"
    # A word we do not know does not become one we do; a known one replaces it in any order.
    strange = hook("completed", 60, created=0, started=10, completed=60, conclusion="melted", **RAN)
    assert see(strange).conclusion == "unknown"
    told = hook("completed", 61, created=0, started=10, completed=60, conclusion="failure", **RAN)
    assert see(strange, told).conclusion == "failure"
    # A claim released because something could not be done: the job is what its other facts say.
    claim = dispatcher("job.claimed", 1, "7-1", "r1")
    cannot = dispatcher("claim.released", 30, "7-1", reason="cannot")
    assert see(claim, cannot, running).status == "running"


def test_q28_a_negative_wait_is_no_sample() -> None:
    # LLVM PR#130941 showed it as 23h59m.
    seen = see(
        hook("completed", 60, created=30, started=10, completed=60, conclusion="success", **RAN)
    )
    queue = seen.timings["queue"]
    assert (queue.ms, queue.missing) == (None, "negative")
    assert {c.name for c in contributions(seen) if c.ms is not None} == {"run", "total"}


def test_q29_not_found_says_nothing_about_a_job() -> None:
    # A run answers 404 after its retention. Taken for a body, that is no fact at all: neither an
    # end nor a reason to queue again.
    gone = '{"message":"Not Found","documentation_url":"https://docs.github.com/rest"}'
    delivery = hook("queued", 0)
    with pytest.raises(Unreadable) as caught:
        facts(delivery.model_copy(update={"payload": gone}))
    assert caught.value.reason is Reason.NO_JOB
    with pytest.raises(Unreadable) as caught:
        facts(delivery.model_copy(update={"payload": gone, "kind": "github.workflow_run"}))
    assert caught.value.reason is Reason.BAD_PAYLOAD
    assert "workflow_run" in caught.value.error
