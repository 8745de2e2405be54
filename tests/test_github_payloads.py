"""Every body GitHub published parses to the facts it states."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.providers import canonical_labels, facts, guid_time_ms, lifecycle_fact
from pipeline.providers.github_bodies import Job
from topics.models import (
    JOBS_RECORD,
    Clock,
    Conclusion,
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
#: The delivery id of runs-on#539, and the time inside it.
GUID = "4d8ed510-a74e-11f1-9e4b-bb84feffa688"
EVENT = 1_788_409_017_569
RECEIVED = EVENT + 900


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def delivery(name: str, **changes: Any) -> Delivery:
    return Delivery(
        **{
            "id": GUID,
            "kind": f"github.{name.partition('.')[0]}",
            "source": "github",
            "occurred_at": EVENT,
            "received_at": RECEIVED,
            "key": "k",
            "payload": (DATA / f"{name}.json").read_text("utf-8"),
            **changes,
        }
    )


HEARD = {"delivery": EVENT, "received": RECEIVED}
CODEQL = "2021-08-05T10:"
#: file -> (job id, run id, times, marks, conclusion, runner, labels, fields of the job)
EXPECTED: dict[str, tuple[Any, ...]] = {
    "workflow_job.in_progress.without-created": (
        *(2832853555, 940463255),
        {
            "started": {
                "provider": ms("2021-06-15T19:22:27"),
                "step": ms("2021-06-15T19:22:27"),
                **HEARD,
            }
        },
        *((), None, RunnerRef(id=1, name="my runner", group="my runner group")),
        ("db-app", "dc-03", "gpu"),
        {"name": "Test workflow", "run_attempt": 0, "branch": "", "workflow": ""},
    ),
    "workflow_job.in_progress": (
        *(289782451, 2202229078),
        {
            "queued": {"provider": ms("2021-09-13T02:21:13")},
            "started": {
                "provider": ms("2021-09-13T02:21:13"),
                "step": ms("2021-09-13T02:21:13"),
                **HEARD,
            },
        },
        *((), None, RunnerRef(id=5, name="GitHub Actions 5", group="GitHub Actions")),
        ("ubuntu-latest",),
        {"name": "Analyze (javascript)", "run_attempt": 1, "branch": "main", "workflow": "CodeQL"},
    ),
    "workflow_job.in_progress.with-queued-steps": (
        *(14541957942, 5373506832),
        {
            "queued": {"provider": ms("2023-06-26T03:31:29")},
            "started": {
                "provider": ms("2023-06-26T03:31:36"),
                "step": ms("2023-06-26T03:31:35"),
                **HEARD,
            },
        },
        *((), None, RunnerRef(id=6, name="GitHub Actions 6", group="GitHub Actions")),
        ("ubuntu-latest",),
        {"run_attempt": 1, "workflow": "Test", "repo": "wolfy1339/github-events-schemas"},
    ),
    "workflow_job.queued": (
        *(289782451, 2202229078),
        {"queued": {"provider": ms("2021-09-13T02:21:13"), **HEARD}},
        *(((EVENT, "queued"),), None, None),  # a runner is named, and not believed
        ("ubuntu-latest",),
        {"name": "update", "runner_group": ""},
    ),
    "workflow_job.queued.with-deployment": (
        *(12877621891, 4747967848),
        {"queued": {"provider": ms("2023-04-19T21:12:12"), **HEARD}, "waiting": HEARD},
        *(((EVENT, "waiting"),), None, None),
        ("k8s",),
        {"name": "test", "repo": "lineville/elastic-machines-testing"},
    ),
    "workflow_job.waiting": (
        *(12877621891, 4747967848),
        {"queued": {"provider": ms("2023-04-19T21:12:12")}, "waiting": HEARD},
        *(((EVENT, "waiting"),), None, None),
        ("k8s",),
        {"name": "test"},
    ),
    "workflow_job.completed.success": (
        *(289782451, 2202229078),
        {
            "queued": {"provider": ms(CODEQL + "33:58")},
            "started": {"provider": ms(CODEQL + "34:58"), "step": ms(CODEQL + "26:08")},
            "completed": {"provider": ms(CODEQL + "38:16"), **HEARD},
        },
        *((), "success", RunnerRef(id=5, name="GitHub Actions 5", group="GitHub Actions")),
        ("ubuntu-latest",),
        {"name": "linters", "sha": "3484a3fb816e0859fd6e1cea078d76385ff50625"},
    ),
    "workflow_job.completed.failure": (
        *(289782451, 2202229078),
        {
            "queued": {"provider": ms(CODEQL + "33:58")},
            "started": {"provider": ms(CODEQL + "34:58"), "step": ms(CODEQL + "26:08")},
            "completed": {"provider": ms(CODEQL + "38:16"), **HEARD},
        },
        *((), "failure", RunnerRef(id=5, name="GitHub Actions 5", group="GitHub Actions")),
        ("ubuntu-latest",),
        {"url": "https://github.com/octo-org/octo-repo/runs/1291536064"},
    ),
}


def test_every_published_body_is_expected_below() -> None:
    assert {path.stem for path in DATA.glob("workflow_job.*.json")} == set(EXPECTED)
    assert {path.stem for path in DATA.glob("workflow_run.*.json")} == set(EXPECTED_RUNS)


@pytest.mark.parametrize("name", EXPECTED)
def test_workflow_job(name: str) -> None:
    job_id, run_id, times, marks, conclusion, runner, labels, fields = EXPECTED[name]
    job, link = facts(delivery(name))

    assert isinstance(job, JobFact)
    assert job.key == f"github:github.com:{job_id}"
    assert job.cause == ".".join(name.split(".")[:2])
    assert (job.occurred_at, job.received_at, job.source) == (EVENT, RECEIVED, "github")
    assert {m.value: {c.value: at for c, at in of.items()} for m, of in job.times.items()} == times
    assert job.marks == marks
    assert job.conclusion == conclusion
    assert job.runner == runner
    assert job.job is not None
    assert (job.job.run_id, job.job.labels) == (run_id, labels)
    assert {field: getattr(job.job, field) for field in fields} == fields
    assert job.claim is None
    assert job.run is None

    assert isinstance(link, RunLink)
    assert link.key == f"github:github.com:run/{run_id}"
    assert (link.job_key, link.attempt) == (job.key, job.job.run_attempt)


OCTOBER = ms("2020-10-05T16:33:49")
#: file -> (run id, started, completed, conclusion)
EXPECTED_RUNS: dict[str, tuple[int, int, int | None, str | None]] = {
    "workflow_run.completed.success": (289782451, OCTOBER, OCTOBER, "success"),
    "workflow_run.completed.with-pull-request": (289782451, OCTOBER, OCTOBER, "success"),
    "workflow_run.requested": (289782451, OCTOBER, None, None),
    # Somebody must approve it first: its jobs are still to come.
    "workflow_run.requested.action-required": (289782451, OCTOBER, None, None),
    # The status is the truth: a run that is queued is not over, whatever the action says.
    "workflow_run.completed.still-queued": (1589141559, ms("2021-12-16T19:37:22"), None, None),
}


@pytest.mark.parametrize("name", EXPECTED_RUNS)
def test_workflow_run(name: str) -> None:
    run_id, started, completed, conclusion = EXPECTED_RUNS[name]
    (run,) = facts(delivery(name))
    assert isinstance(run, RunFact)
    assert run.key == f"github:github.com:run/{run_id}"
    assert run.run.attempt == 1
    assert (run.run.started_at, run.run.completed_at) == (started, completed)
    assert run.run.conclusion == conclusion


@pytest.mark.parametrize("name", [*EXPECTED, *EXPECTED_RUNS])
def test_same_delivery_same_bytes_and_other_content_other_id(name: str) -> None:
    once, again = facts(delivery(name)), facts(delivery(name))
    assert [f.model_dump_json() for f in once] == [f.model_dump_json() for f in again]
    assert [JOBS_RECORD.validate_json(f.model_dump_json()) for f in once] == once

    edited = delivery(name)
    edited = edited.model_copy(update={"payload": edited.payload.replace('"id"', ' "id"', 1)})
    assert facts(edited)[0].id != once[0].id
    assert facts(edited)[0].id.startswith(GUID)


def test_a_ghes_host_has_its_own_keys() -> None:
    job, link = facts(delivery("workflow_job.queued", host="ghes.example.com"))
    assert job.key == "github:ghes.example.com:289782451"
    assert link.key == "github:ghes.example.com:run/2202229078"


@pytest.mark.parametrize(
    ("payload", "reason", "error"),
    [
        ("", Reason.NOT_JSON, "Invalid JSON"),
        ("{", Reason.NOT_JSON, "Invalid JSON"),
        ("[]", Reason.BAD_PAYLOAD, "body: "),
        ("null", Reason.BAD_PAYLOAD, "body: "),
        ('{"action":"queued"}', Reason.NO_JOB, "null or missing"),
        ('{"workflow_job":[]}', Reason.BAD_PAYLOAD, "workflow_job: "),
        ('{"workflow_job":{}}', Reason.BAD_PAYLOAD, "workflow_job.id: "),
        ('{"workflow_job":{"id":0}}', Reason.BAD_PAYLOAD, "workflow_job.id: "),
        ('{"workflow_job":{"id":true}}', Reason.BAD_PAYLOAD, "workflow_job.id: "),
        ('{"workflow_job":{"id":"the first"}}', Reason.BAD_PAYLOAD, "workflow_job.id: "),
        ('{"workflow_job":{"id":9223372036854775808}}', Reason.BAD_PAYLOAD, "workflow_job.id: "),
    ],
)
def test_bad_bodies_are_refused_with_the_place(payload: str, reason: Reason, error: str) -> None:
    with pytest.raises(Unreadable) as caught:
        facts(delivery("workflow_job.queued", payload=payload))
    assert caught.value.reason is reason
    assert error in caught.value.error


def test_a_bad_run_and_another_event_are_refused() -> None:
    with pytest.raises(Unreadable) as caught:
        facts(delivery("workflow_run.requested", payload='{"workflow_run":null}'))
    assert caught.value.reason is Reason.BAD_PAYLOAD
    with pytest.raises(Unreadable) as caught:
        facts(delivery("workflow_run.requested", kind="github.workflow_jobs"))
    assert caught.value.reason is Reason.UNKNOWN_KIND


def test_only_an_id_is_needed() -> None:
    (job,) = facts(delivery("workflow_job.queued", payload='{"workflow_job":{"id":7}}'))
    assert isinstance(job, JobFact)
    assert job.key == "github:github.com:7"
    assert job.times == {}
    assert job.cause == "workflow_job.other"


S = "2026-01-01T00:00:00Z"  # created
R = "2026-01-01T00:01:00Z"  # started
E = "2026-01-01T00:02:00Z"  # completed
RUNNER = {"runner_id": 5, "runner_name": "r"}
STEP = {"steps": [{"started_at": "2026-01-01T00:01:00.000Z"}]}


@pytest.mark.parametrize(
    ("action", "fields", "reached", "mark", "conclusion"),
    [
        # Status says it, action agrees.
        ("queued", {"status": "queued", "started_at": S}, "queued", "queued", None),
        ("waiting", {"status": "waiting", "started_at": S}, "queued waiting", "waiting", None),
        ("in_progress", {"status": "in_progress", "started_at": R}, "queued started", "", None),
        # Status says it, action does not.
        ("in_progress", {"status": "queued", "started_at": S}, "queued", "queued", None),
        ("queued", {"status": "in_progress", "started_at": R}, "queued started", "", None),
        ("completed", {"status": "queued"}, "queued", "queued", None),
        ("completed", {"status": "in_progress", "started_at": R}, "queued started", "", None),
        # REST's further words, a word we do not know, and none: then the action tells.
        ("dreamt", {"status": "requested"}, "queued", "queued", None),
        ("queued", {"status": "pending"}, "queued waiting", "waiting", None),
        ("waiting", {"status": "dreaming"}, "queued waiting", "waiting", None),
        ("in_progress", {"status": None, "started_at": R}, "queued started", "", None),
        ("dreamt", {"status": "dreaming"}, "queued", "", None),
        # A step that started is a start under any word, and then it is not waiting any more.
        ("queued", {"status": "queued", "started_at": S, **STEP}, "queued started", "", None),
        ("waiting", {"status": "waiting", **STEP}, "queued waiting started", "", None),
        # A conclusion ends a job if the status, the action or a time says so too.
        (
            "completed",
            {"status": "in_progress", "conclusion": "failure", "started_at": R},
            *("queued started completed", "", "failure"),
        ),
        (
            "in_progress",
            {"status": "in_progress", "conclusion": "failure", "started_at": R, "completed_at": E},
            *("queued started completed", "", "failure"),
        ),
        (
            "in_progress",
            {"status": "in_progress", "conclusion": "neutral", "started_at": R},
            *("queued started", "", None),
        ),
        (
            "in_progress",
            {"status": "completed", "conclusion": "cancelled", "started_at": R, **RUNNER},
            *("queued started completed", "", "cancelled"),
        ),
        # The end without a word, and with one of another kind.
        (
            "completed",
            {"status": "completed", "started_at": R, "completed_at": E},
            *("queued started completed", "", "unknown"),
        ),
        (
            "completed",
            {"status": "completed", "conclusion": "melted", "started_at": R, "completed_at": E},
            *("queued started completed", "", "unknown"),
        ),
        # Who never ran: no runner, no step, and cancelled or skipped or no time between.
        *(
            (
                "completed",
                {"status": "completed", "conclusion": word, "started_at": R, "completed_at": E},
                *("queued completed", "", word),
            )
            for word in ("cancelled", "skipped", "stale", "startup_failure", "action_required")
        ),
        (
            "completed",
            {"status": "completed", "conclusion": "failure", "started_at": E, "completed_at": E},
            *("queued completed", "", "failure"),
        ),
        # Who did: a runner, a step, or (in old bodies without either) a time between.
        *(
            (
                "completed",
                {
                    **{"status": "completed", "conclusion": "cancelled"},
                    **{"started_at": E, "completed_at": E, **proof},
                },
                *("queued started completed", "", "cancelled"),
            )
            for proof in (RUNNER, {"runner_id": 5}, {"runner_name": "r"}, STEP)
        ),
        (
            "completed",
            {"status": "completed", "conclusion": "timed_out", "started_at": R, "completed_at": E},
            *("queued started completed", "", "timed_out"),
        ),
    ],
)
def test_what_a_body_proves(
    action: str, fields: dict[str, Any], reached: str, mark: str, conclusion: str | None
) -> None:
    body = {"action": action, "workflow_job": {"id": 7, "created_at": S, **fields}}
    (fact,) = facts(delivery("workflow_job.queued", payload=json.dumps(body)))
    assert isinstance(fact, JobFact)
    assert {m.value for m in fact.times} == set(reached.split())
    assert fact.marks == (((EVENT, mark),) if mark else ())
    assert fact.conclusion == conclusion
    # Only one who started was seen on a runner, and only an in_progress event or a completed
    # body has a start of its own.
    assert (fact.runner is not None) == (
        "started" in reached and fields.keys() & RUNNER.keys() > set()
    )
    if "started" in reached:
        clocks = fact.times[Milestone.STARTED]
        trusted = conclusion is not None or fields["status"] in ("in_progress", None)
        assert (Clock.PROVIDER in clocks) == (trusted and "started_at" in fields)
        assert (Clock.DELIVERY in clocks) == (action == "in_progress")


def test_times_that_cannot_be_are_missing() -> None:
    job = {
        **{"id": 7, "status": "completed", "conclusion": "success", "runner_id": 0},
        **{"runner_name": "r", "created_at": "2014-12-31T23:59:59Z"},
        **{"started_at": "0001-01-01T00:00:00Z", "completed_at": "9999-12-31T23:59:59Z"},
    }
    body = {"action": "completed", "workflow_job": job}
    (fact,) = facts(delivery("workflow_job.queued", payload=json.dumps(body)))
    assert isinstance(fact, JobFact)
    assert fact.times == {Milestone.COMPLETED: {Clock.DELIVERY: EVENT, Clock.RECEIVED: RECEIVED}}
    assert fact.runner == RunnerRef(name="r")
    # Times without a zone, or in another one, are understood.
    job["created_at"], job["completed_at"] = "2026-01-01T00:00:00", "2026-01-01T01:02:00.5+01:00"
    (fact,) = facts(delivery("workflow_job.queued", payload=json.dumps(body)))
    assert isinstance(fact, JobFact)
    assert fact.times[Milestone.QUEUED][Clock.PROVIDER] == ms("2026-01-01T00:00:00")
    assert fact.times[Milestone.COMPLETED][Clock.PROVIDER] == ms("2026-01-01T00:02:00") + 500


@pytest.mark.parametrize(
    ("guid", "ms_inside"),
    [
        (GUID, EVENT),
        (GUID.upper(), EVENT),
        ("4ead6470-a74e-11f1-8604-2fc18657851e", EVENT + 1_878),
        ("a2ca94b0-9c65-11ef-8ae6-2c3ac1d70ad9", 1_730_914_580_859),
        ("7d9f3c1e-4b52-4f0a-9c3e-2f6f1f6e8a11", None),  # version 4: no clock
        ("13814000-1dd2-11b2-8000-000000000000", None),  # version 1, but of 1970
        ("ffffffff-ffff-1fff-bfff-ffffffffffff", None),  # version 1, but of 5236
        ("4d8ed510-a74e-11f1-7e4b-bb84feffa688", None),  # not an RFC 4122 UUID
        ("4d8ed510a74e11f19e4bbb84feffa688", None),
        (GUID + "\n", None),
        ("", None),
    ],
)
def test_the_clock_in_a_delivery_id(guid: str, ms_inside: int | None) -> None:
    assert guid_time_ms(guid) == ms_inside


def test_a_delivery_id_from_the_future_is_not_believed() -> None:
    day = 86_400_000
    early = delivery("workflow_job.queued", received_at=EVENT - day, occurred_at=EVENT - day)
    assert facts(early)[0].occurred_at == EVENT  # a clock may be off
    early = delivery("workflow_job.queued", received_at=EVENT - day - 1, occurred_at=EVENT - day)
    assert facts(early)[0].occurred_at == EVENT - day  # not by more than a day


def test_labels() -> None:
    assert canonical_labels(["X64", "self-hosted", " Linux", "linux", ""]) == ("linux", "x64")
    # Alone it is all that the job asks for, so it names the fleet.
    assert canonical_labels(["Self-Hosted"]) == ("self-hosted",)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=12)
    | st.sampled_from(
        [
            "queued",
            "completed",
            "in_progress",
            "0001-01-01T00:00:00Z",
            "9999-12-31T23:59:59Z",
            2**63,
        ]
    )
)


@given(
    st.sampled_from(sorted(path.stem for path in DATA.glob("*.json"))),
    st.lists(
        st.tuples(
            st.sampled_from([*Job.__annotations__, "action", "updated_at", "run_started_at"]),
            scalars
            | st.lists(scalars, max_size=2)
            | st.dictionaries(st.text(), scalars, max_size=2),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_whatever_a_body_says_it_is_facts_or_unreadable(
    name: str, changes: list[tuple[str, Any]]
) -> None:
    whole = delivery(name)
    body = json.loads(whole.payload)
    subject = body[name.partition(".")[0]]
    for field, value in changes:
        (body if field == "action" else subject)[field] = value
    odd = whole.model_copy(update={"payload": json.dumps(body)})
    refused = None
    try:
        said = facts(odd)
    except Unreadable as why:
        refused = why.reason
    if refused is not None:
        # Python writes lone surrogates, which JSON's readers refuse.
        assert refused in (Reason.BAD_PAYLOAD, Reason.NOT_JSON)
        return
    assert said == facts(odd)
    for fact in said:
        assert JOBS_RECORD.validate_json(fact.model_dump_json()) == fact
        assert fact.id
    job = said[0]
    if isinstance(job, JobFact):
        # An end always has a time and a word; what has not started shows no runner.
        assert (Milestone.COMPLETED in job.times) == (job.conclusion is not None)
        if Milestone.STARTED not in job.times and not job.conclusion:
            assert job.runner is None
        assert job.runner is None or job.runner.name or job.runner.id


def lifecycle(kind: LifecycleKind, **changes: Any) -> LifecycleEvent:
    return LifecycleEvent(
        **{
            "id": "e1",
            "kind": kind,
            "source": "dispatcher",
            "occurred_at": EVENT,
            "received_at": RECEIVED,
            "key": "github:github.com:7",
            "job_id": "7",
            "fleet": "linux",
            "claim": "c1",
            "runner": RunnerRef(id=0, name="r1"),
            "reason": "why",
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("kind", "milestone", "claim"),
    [
        ("job.queued", "queued", None),
        ("job.started", "started", None),
        ("job.completed", "completed", None),
        ("job.claimed", None, "claimed_at"),
        ("job.minted", None, "minted_at"),
        ("claim.released", None, "released_at"),
    ],
)
def test_lifecycle(kind: str, milestone: str | None, claim: str | None) -> None:
    fact = lifecycle_fact(lifecycle(LifecycleKind(kind), conclusion=Conclusion.FAILURE))
    assert fact.key == "github:github.com:7"
    assert fact.cause == kind
    assert fact.job is not None
    assert fact.job.pool == "linux"
    assert {m.value: {c.value: t for c, t in of.items()} for m, of in fact.times.items()} == (
        {milestone: {"runner": EVENT}} if milestone else {}
    )
    # A claim is a guess: only who starts or completes a job was seen executing it.
    assert fact.runner == (RunnerRef(name="r1") if milestone in ("started", "completed") else None)
    assert fact.conclusion == (Conclusion.FAILURE if milestone == "completed" else None)
    if claim is None:
        assert fact.claim is None
    else:
        assert fact.claim is not None
        assert fact.claim.model_dump(exclude_none=True) == {
            "handle": "c1",
            claim: EVENT,
            "runner": "r1",
            "reason": "why",
        }


@pytest.mark.parametrize("kind", ["job.claimed", "job.minted", "claim.released"])
@pytest.mark.parametrize("handle", ["", "  "])
def test_a_claim_needs_a_handle(kind: str, handle: str) -> None:
    with pytest.raises(Unreadable) as caught:
        lifecycle_fact(lifecycle(LifecycleKind(kind), claim=handle))
    assert caught.value.reason is Reason.MISSING_CLAIM


def test_lifecycle_oddities() -> None:
    one = lifecycle(LifecycleKind.JOB_STARTED)
    assert lifecycle_fact(one) == lifecycle_fact(one)
    # An id used again for something else is not the same statement.
    other = lifecycle(LifecycleKind.JOB_STARTED, runner=RunnerRef(name="r2"))
    assert lifecycle_fact(one).id != lifecycle_fact(other).id
    # The same event received again is.
    late = lifecycle(LifecycleKind.JOB_STARTED, received_at=RECEIVED + 5)
    assert lifecycle_fact(one).id == lifecycle_fact(late).id
    # Nobody is nobody (Q17), and an event may say nothing of the job itself.
    nobody = lifecycle(LifecycleKind.JOB_STARTED, runner=RunnerRef(id=0), fleet="")
    assert lifecycle_fact(nobody).runner is None
    assert lifecycle_fact(nobody).job is None
    odd = lifecycle(LifecycleKind.JOB_STARTED, host="h" * 510)
    with pytest.raises(Unreadable) as caught:
        lifecycle_fact(odd)
    assert caught.value.reason is Reason.BAD_PAYLOAD
