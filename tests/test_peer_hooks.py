"""Webhooks of Gitea, Forgejo and GitLab: what they say of a job's life, and each one's oddities."""

from __future__ import annotations

import hmac
import itertools
import json
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest

from pipeline import metrics
from pipeline.agents.normalise import record_facts
from pipeline.jobs import FleetNames, Job, View, merge, view
from pipeline.providers.gitea import Gitea
from pipeline.providers.gitea_api import GiteaApi
from pipeline.providers.gitlab import GitLab, moment
from pipeline.providers.gitlab_api import GitLabApi
from pipeline.providers.registry import PROVIDERS
from pipeline.providers.sending import Signer
from sinks import rows
from tests.test_sink_rows import FakeRecord
from topics import bridge
from topics.catalogue import WEBHOOKS
from topics.dead_letters import dead_letter
from topics.models import (
    Clock,
    Conclusion,
    Delivery,
    JobFact,
    Milestone,
    Reason,
    RunFact,
    RunLink,
    RunnerRef,
    Unreadable,
)

DATA: Final = Path(__file__).parent / "data"
#: 2026-09-21 14:13:20 UTC, when the job of the files started.
T0 = 1_790_000_000_000
CREATED = {"gitea": T0 - 80_000, "gitlab": T0 - 200_000}
GITEA, GITLAB = "gitea:git.example.com:4567", "gitlab:lab.example.com:4567"
UUID = "0d8ed510-a74e-41f1-9e4b-bb84feffa688"


def body_of(provider: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / provider / f"{name}.json").read_text("utf-8"))
    return found


def delivery(kind: str, body: Any, at: int = T0, **more: Any) -> Delivery:
    return Delivery(**{
        "id": f"{UUID}-{at}", "kind": kind, "source": "x", "occurred_at": at, "received_at": at,
        "key": "k", "payload": json.dumps(body), **more,
    })  # fmt: skip


def facts(kind: str, body: Any, at: int = T0, **more: Any) -> list[Any]:
    return PROVIDERS[kind.partition(".")[0]].facts(delivery(kind, body, at, **more))


def job_fact(kind: str, body: Any, at: int = T0) -> JobFact:
    [fact] = [each for each in facts(kind, body, at) if isinstance(each, JobFact)]
    return fact


def folded(said: Any) -> Job:
    job: Job | None = None
    for fact in said:
        job = merge(job, fact)
    assert job is not None
    return job


#: What is told of one job, in order, and when it arrives.
LIVES: Final = {
    "gitea": [
        ("workflow_job.waiting", T0 - 79_000), ("workflow_job.queued", T0 - 20_000),
        ("workflow_job.in_progress", T0 + 300), ("workflow_job.completed", T0 + 60_400),
    ],
    "gitlab": [
        ("job.created", T0 - 199_000), ("job.pending", T0 - 20_000), ("job.running", T0 + 300),
        ("job.success", T0 + 60_400), ("pipeline.success", T0 + 61_000),
    ],
}  # fmt: skip


def life(provider: str) -> list[list[JobFact]]:
    """The facts about the job, by delivery."""
    told = []
    for name, at in LIVES[provider]:
        said = facts(f"{provider}.{name.partition('.')[0]}", body_of(provider, name), at)
        told.append([each for each in said if isinstance(each, JobFact)
                     and each.key.endswith(":4567")])  # fmt: skip
    assert all(len(each) == 1 for each in told)
    return told


@pytest.mark.parametrize("provider", LIVES)
def test_a_jobs_life_is_what_its_hooks_say(provider: str) -> None:
    told = [fact for [fact] in life(provider)]
    seen: list[View] = [
        view(folded(told[: n + 1]), FleetNames({"docker,linux": "linux"})) for n in range(len(told))
    ]
    statuses = [(each.status, each.since) for each in seen]
    assert statuses[:4] == [
        ("waiting", CREATED[provider]),
        ("queued", T0 - 20_000),
        ("running", T0),
        ("completed", T0 + 60_000),
    ]
    last, job = seen[-1], folded(told)
    assert last.conclusion == "success"
    # Gitea tells by the arrival alone when a job was queued; GitLab how long it waited.
    waited, clock = {"gitea": (20_000, "delivery"), "gitlab": (20_250, "provider")}[provider]
    assert {name: each.ms for name, each in last.timings.items() if name != "claim_to_start"} == {
        "queue": waited, "run": 60_000, "total": waited + 60_000,
    }  # fmt: skip
    assert last.timings["queue"].start_clock == clock
    assert last.timings["run"].start_clock == last.timings["run"].end_clock == "provider"
    assert job.runner is not None
    assert (job.runner.name, job.runner.id) == (
        "runner-7", {"gitea": 7, "gitlab": 380987}[provider],
    )  # fmt: skip
    fleets = {"gitea": ("ubuntu-latest,x64", "labels"), "gitlab": ("linux", "group")}
    assert (last.fleet, last.fleet_from) == fleets[provider]
    a = job.attributes
    assert (a.run_id, a.name, a.branch, a.sha[:8]) == (99, "test", "main", "a1b2c3d4")
    assert a.repo == {"gitea": "acme/shop", "gitlab": "acme/web/shop"}[provider]
    assert a.url == {
        "gitea": "https://git.example.com/acme/shop/actions/runs/99/jobs/4567",
        "gitlab": "https://lab.example.com/acme/web/shop/-/jobs/4567",
    }[provider]  # fmt: skip
    if provider == "gitea":
        assert [(step.number, step.name) for step in job.steps] == [
            (1, "Set up job"), (2, "Run tests"),
        ]  # fmt: skip


@pytest.mark.parametrize("provider", LIVES)
def test_order_repetition_and_the_time_of_arrival_do_not_matter(provider: str) -> None:
    told = [fact for [fact] in life(provider)]
    right = folded(told)
    for order in itertools.permutations(told):
        assert folded((*order, order[0])) == right
    # The hook that tells of the wait comes last of all: it opens no gate, and takes no time off.
    name, _ = LIVES[provider][0]
    late = job_fact(f"{provider}.{name.partition('.')[0]}", body_of(provider, name), T0 + 99_000)
    assert (
        view(folded([*told[1:], late]), FleetNames()).timings
        == view(folded(told), FleetNames()).timings
    )


def test_keys_are_those_that_the_prober_asks_about() -> None:
    gitea, gitlab = (
        GiteaApi("https://Git.example.com:443/", "t"),
        GitLabApi("https://lab.example.com", "t"),
    )
    for client, key in ((gitea, GITEA), (gitlab, GITLAB)):
        assert f"{client.place}:4567" == key
        client.close()
    job, link = facts("gitea.workflow_job", body_of("gitea", "workflow_job.queued"))
    assert (job.key, link.key, link.job_key) == (GITEA, "gitea:git.example.com:run/99", GITEA)
    job, link = facts("gitlab.job", body_of("gitlab", "job.pending"))
    assert (job.key, link.key, link.job_key) == (GITLAB, "gitlab:lab.example.com:run/99", GITLAB)
    # Said by the producer, or by a header, it wins over the body's URLs.
    [job, _] = facts("gitea.workflow_job", body_of("gitea", "workflow_job.queued"), host="Other:81")
    assert job.key == "gitea:other:81:4567"


def test_a_gitea_run_says_who_and_why_and_ends_no_job() -> None:
    for name in ("workflow_run.requested", "workflow_run.completed"):
        [run] = facts("gitea.workflow_run", body_of("gitea", name))
        assert isinstance(run, RunFact)
        assert run.key == "gitea:git.example.com:run/99"
        assert (run.run.completed_at, run.run.conclusion, run.run.attempt) == (None, None, 0)
        assert run.job is not None
        assert (run.job.actor, run.job.trigger, run.job.head_repo) == ("dev", "push", "acme/shop")


def test_a_gitlab_pipeline_says_what_its_jobs_are_and_ends_none() -> None:
    run, *said = facts("gitlab.pipeline", body_of("gitlab", "pipeline.success"))
    assert isinstance(run, RunFact)
    assert (run.key, run.run.completed_at) == ("gitlab:lab.example.com:run/99", None)
    assert run.job is not None
    assert (run.job.actor, run.job.trigger, run.job.pull_request) == (
        "dev", "merge_request_event", 12,
    )  # fmt: skip
    held, over = [each for each in said if isinstance(each, JobFact)]
    links = [each for each in said if isinstance(each, RunLink)]
    assert [link.job_key for link in links] == [held.key, over.key]
    assert (held.cause, held.marks, held.conclusion) == (
        "build.manual", ((CREATED["gitlab"], "waiting"),), None,
    )  # fmt: skip
    assert (over.cause, over.conclusion, over.key) == ("build.success", Conclusion.SUCCESS, GITLAB)
    # It is no event of the job: its arrival dates nothing.
    assert over.times == {
        Milestone.QUEUED: {Clock.PROVIDER: T0 - 20_250},
        Milestone.STARTED: {Clock.PROVIDER: T0},
        Milestone.COMPLETED: {Clock.PROVIDER: T0 + 60_000, Clock.RECEIVED: T0},
    }
    assert len({each.id for each in (run, *said)}) == 5
    # A job that is none costs the others nothing.
    body = body_of("gitlab", "pipeline.success")
    body["builds"] = [{"id": 0}, None, *body["builds"]]
    again = GitLab().facts(delivery("gitlab.pipeline", body))
    assert [each.key for each in again] == [each.key for each in (run, *said)]
    assert again.odd == {("status", "unusable"): 1, ("status", "wrong_type"): 1}


def gitea(status: Any, **more: Any) -> dict[str, Any]:
    body = body_of("gitea", "workflow_job.queued")
    body["action"] = body["workflow_job"]["status"] = status
    body["workflow_job"] |= more
    return body


NEVER: Final = ("0001-01-01T00:00:00Z", "1970-01-01T01:00:00+01:00", None)


@pytest.mark.parametrize(
    ("status", "mark"),
    [("queued", "queued"), ("requested", "queued"), ("waiting", "waiting"), ("pending", "waiting"),
     ("blocked", "waiting")],
)  # fmt: skip
def test_a_gitea_job_that_nobody_executes(status: str, mark: str) -> None:
    for never in NEVER:
        body = gitea(status, started_at=never, completed_at=never, runner_id=0, runner_name="")
        fact = job_fact("gitea.workflow_job", body)
        at = CREATED["gitea"] if mark == "waiting" and status != "requested" else T0
        assert fact.marks == ((at, mark),)
        assert fact.runner is None
        assert Milestone.STARTED not in fact.times
        # When its run was made is not when it was queued.
        assert Clock.PROVIDER not in fact.times.get(Milestone.QUEUED, {})


def test_odd_ends_of_gitea_jobs() -> None:
    for status in ("running", "cancelling", "in_progress"):
        fact = job_fact("gitea.workflow_job", gitea(status, runner_id=7, runner_name="r"))
        assert (fact.runner, fact.conclusion) == (RunnerRef(id=7, name="r"), None)
        assert Milestone.STARTED in fact.times
    # A status that Gitea itself does not know ends nothing.
    said = Gitea().facts(delivery("gitea.workflow_job", gitea("completed")))
    assert isinstance(said[0], JobFact)
    assert (said[0].conclusion, said[0].times) == (None, {})
    assert said.odd == {("conclusion", "unusable"): 1}
    # Cancelled before anybody took it.
    fact = job_fact("gitea.workflow_job", body_of("gitea", "workflow_job.completed.cancelled"))
    assert (fact.conclusion, fact.runner) == (Conclusion.CANCELLED, None)
    assert Milestone.STARTED not in fact.times


def gitlab(status: Any, **more: Any) -> dict[str, Any]:
    return body_of("gitlab", "job.pending") | {"build_status": status} | more


HELD: Final = ("created", "waiting_for_resource", "preparing", "waiting_for_callback", "manual",
               "scheduled")  # fmt: skip


@pytest.mark.parametrize("status", ["pending", *HELD])
def test_a_gitlab_job_that_nobody_executes(status: str) -> None:
    # However long it has waited: that counts on to a time that nobody tells.
    fact = job_fact("gitlab.job", gitlab(status, build_queued_duration=1095.5))
    held = status in HELD
    assert fact.marks == (((CREATED["gitlab"], "waiting") if held else (T0, "queued")),)
    assert fact.cause == f"build.{status}"
    assert Clock.PROVIDER not in fact.times.get(Milestone.QUEUED, {})
    assert (Milestone.QUEUED in fact.times) is not held
    assert (fact.runner, fact.conclusion) == (None, None)


def test_odd_ends_of_gitlab_jobs() -> None:
    running = body_of("gitlab", "job.running")
    fact = job_fact("gitlab.job", running | {"build_status": "canceling"})
    assert (fact.conclusion, Milestone.STARTED in fact.times) == (None, True)
    ends = {"success": "success", "failed": "failure", "canceled": "cancelled"}
    for status, conclusion in ends.items():
        fact = job_fact("gitlab.job", running | {"build_status": status})
        assert (fact.conclusion, Milestone.STARTED in fact.times) == (conclusion, True)
    fact = job_fact("gitlab.job", body_of("gitlab", "job.failed.timed-out"))
    assert fact.conclusion is Conclusion.TIMED_OUT
    for status in ("skipped", "canceled", "failed"):
        body = body_of("gitlab", "job.canceled.never-ran") | {"build_status": status}
        fact = job_fact("gitlab.job", body)
        assert Milestone.STARTED not in fact.times
    for status in ("moon", 7, None, ["pending"]):
        said = GitLab().facts(delivery("gitlab.job", gitlab(status)))
        assert isinstance(said[0], JobFact)
        assert (said[0].times, said[0].marks, said[0].cause) == ({}, (), "build.other")
        assert said.odd == ({("status", "unusable"): 1} if status is not None else {})
    # A retry is another job of the same pipeline.
    again, link = facts("gitlab.job", gitlab("pending", build_id=4599, retries_count=1))
    assert (again.key, link.key) == ("gitlab:lab.example.com:4599", "gitlab:lab.example.com:run/99")


def test_times_of_gitlab_in_all_forms() -> None:
    for told in ("2026-09-21 14:13:20 UTC", "2026-09-21T14:13:20Z", "2026-09-21T14:13:20.000Z",
                 "2026-09-21 16:13:20 +0200"):  # fmt: skip
        body = body_of("gitlab", "job.running") | {"build_started_at": told}
        assert job_fact("gitlab.job", body).times[Milestone.STARTED][Clock.PROVIDER] == T0
        assert job_fact("gitlab.job", body).times[Milestone.QUEUED][Clock.PROVIDER] == T0 - 20_250
    only_iso = body_of("gitlab", "job.running") | {"build_started_at": None}
    assert job_fact("gitlab.job", only_iso).times[Milestone.STARTED][Clock.PROVIDER] == T0
    for odd in ("soon UTC", 7, None, "2026-09-21 14:13:20 MEZ"):
        assert moment(odd) == odd


def test_old_gitlab_bodies_without_a_project_tell_it_by_the_repository() -> None:
    body = body_of("gitlab", "job.pending")
    del body["project"]
    fact = job_fact("gitlab.job", body)
    assert (fact.key, fact.job and fact.job.repo) == (GITLAB, "acme/web/shop")
    del body["repository"], body["pipeline_id"]
    with pytest.raises(Unreadable, match="the host"):
        facts("gitlab.job", body)
    [fact, link] = facts("gitlab.job", body, host="lab.example.com")
    assert (fact.key, link.key) == (GITLAB, "gitlab:lab.example.com:run/99")


# --- on the topic ---------------------------------------------------------------------------------


def hook(provider: str, name: str, headers: dict[str, str], secret: bytes = b"s") -> FakeRecord:
    body = (DATA / provider / f"{name}.json").read_bytes()
    digest = hmac.new(secret, body, sha256).hexdigest()
    return FakeRecord(
        WEBHOOKS, body, timestamp=T0,
        headers=[(name, value.replace("HEX", digest).encode()) for name, value in headers.items()],
    )  # fmt: skip


GITHUBS: Final = {"X-GitHub-Event": "workflow_job", "X-GitHub-Delivery": UUID,
                  "X-Hub-Signature": "sha1=00", "X-Hub-Signature-256": "sha256=HEX"}  # fmt: skip
GITEAS: Final = GITHUBS | {"X-Gitea-Event": "workflow_job", "X-Gitea-Event-Type": "workflow_job",
                           "X-Gitea-Delivery": UUID, "X-Gitea-Signature": "HEX",
                           "X-Gogs-Event": "workflow_job"}  # fmt: skip
FORGEJOS: Final = {"X-Forgejo-Event": "workflow_job", "X-Forgejo-Delivery": UUID,
                   "X-Forgejo-Signature": "HEX"}  # fmt: skip
GITLABS: Final = {"X-Gitlab-Event": "Job Hook", "X-Gitlab-Event-UUID": UUID, "X-Gitlab-Token": "s",
                  "X-Gitlab-Instance": "https://lab.example.com"}  # fmt: skip


def test_deliveries_are_counted_by_what_they_tell_in_one_set_of_words() -> None:
    said = {"gitea": GITEAS, "gitlab": GITLABS}
    for provider, headers in said.items():
        told = []
        for name, _ in LIVES[provider]:
            if not name.startswith("pipeline"):
                _, notes = record_facts(hook(provider, name, headers))
                told += [n.labels for n in notes if n.metric is metrics.WEBHOOK_JOBS]
        assert [action for action, outcome in told if outcome == "accepted"] == [
            "waiting", "queued", "in_progress", "completed",
        ]  # fmt: skip


@pytest.mark.parametrize("headers", [GITEAS, FORGEJOS, GITHUBS | FORGEJOS, GITEAS | FORGEJOS])
def test_giteas_headers_are_known_although_it_sends_githubs(headers: dict[str, str]) -> None:
    record = hook("gitea", "workflow_job.in_progress", headers)
    said, notes = record_facts(record, {"gitea": [b"s"]})
    assert [fact.key for fact in said] == [GITEA, "gitea:git.example.com:run/99"]
    assert next(iter(said)).id.startswith(UUID)
    assert [note.metric for note in notes] == [metrics.WEBHOOKS, metrics.WEBHOOK_JOBS], "no lag"
    with pytest.raises(Unreadable, match="was not made of this body"):
        record_facts(record, {"gitea": [b"another"]})


def test_a_gitlab_hook_in_raw_form() -> None:
    record = hook("gitlab", "job.running", GITLABS)
    said, _ = record_facts(record, {"gitlab": [b"old", b"s"]})
    assert next(iter(said)).key == GITLAB
    found = bridge.raw(record)
    assert found is not None
    told = bridge.delivery(found)
    assert (told.kind, told.host, told.id) == ("gitlab.job", "lab.example.com", UUID)
    for event, kind in (("Merge Request Hook", "merge_request"), ("System Hook", "system")):
        other = hook("gitlab", "job.running", GITLABS | {"X-Gitlab-Event": event})
        found = bridge.raw(other)
        assert found is not None
        assert bridge.delivery(found).kind == f"gitlab.{kind}"
        assert record_facts(other)[0] == []


def test_what_gitea_and_gitlab_say_can_be_said_in_raw_form_again() -> None:
    for kind, name, host in (
        ("gitea.workflow_job", "workflow_job.queued", "github.com"),
        ("gitlab.job", "job.running", "lab.example.com"),
        ("gitlab.pipeline", "pipeline.success", "lab.example.com:8443"),
    ):
        made = delivery(kind, body_of(kind.partition(".")[0], name), host=host)
        headers, body = bridge.natural(made) or ([], b"")
        record = FakeRecord(WEBHOOKS, body, headers=list(headers), timestamp=T0 + 5)
        found = bridge.raw(record)
        assert found is not None
        again = bridge.delivery(found)
        assert (again.kind, again.host, again.id, again.payload) == (
            made.kind, made.host, made.id, made.payload,
        )  # fmt: skip
    # What has the headers of another would be read as that one's.
    assert bridge.natural(delivery("github.push", {}, headers={"x-gitea-event": "push"})) is None


def test_where_secrets_are_set_a_provider_without_is_not_believed() -> None:
    records = [hook("gitea", "workflow_job.queued", GITEAS), hook("gitlab", "job.running", GITLABS)]
    envelope = delivery("gitlab.job", body_of("gitlab", "job.running")).model_dump_json().encode()
    for record in (*records, FakeRecord(WEBHOOKS, envelope)):
        assert record_facts(record)[0]
        with pytest.raises(Unreadable, match="none for git") as caught:
            record_facts(record, {"github": [b"s"]})
        assert caught.value.reason is Reason.BAD_SIGNATURE
    assert record_facts(FakeRecord(WEBHOOKS, envelope), {"github": [b"s"]}, trust_envelopes=True)


def test_a_secret_token_stays_on_its_topic() -> None:
    record = hook("gitlab", "job.running", GITLABS | {"X-Gitlab-Token": "hush-hush"})
    [table], _ = rows.build([rows.decode(record)])
    enveloped = delivery("gitlab.job", {}, headers={"X-Gitlab-Token": "hush-hush", "a": "b"})
    [other], _ = rows.build(
        [rows.decode(FakeRecord(WEBHOOKS, enveloped.model_dump_json().encode()))]
    )
    letter = dead_letter("normalise", record, Unreadable(Reason.BAD_PAYLOAD, "x"), T0)
    for kept in (table.rows, other.rows, letter.record_headers):
        assert "hush-hush" not in repr(kept)
    assert "Job Hook" in repr(letter.record_headers)
    # It is made again where the secret is known.
    found = bridge.raw(record)
    assert found is not None
    sent = Signer({"gitlab": [b"hush-hush"]}).record(bridge.delivery(found))
    again = FakeRecord(WEBHOOKS, sent.value, headers=list(sent.headers), timestamp=T0)
    assert record_facts(again, {"gitlab": [b"hush-hush"]})[0]


def test_a_wrong_signature_of_a_recording_stays_for_the_workers_to_judge() -> None:
    secrets = {"gitea": [b"new"], "gitlab": [b"whsec_" + b"QUJD" * 8]}
    forged = hook("gitea", "workflow_job.queued", GITHUBS | {"X-Gitea-Event": "workflow_job"}, b"x")
    signer = Signer(secrets)
    raw = bridge.raw(forged)
    assert raw is not None
    told = bridge.delivery(raw)
    for trusted, right in ((False, False), (True, True)):
        sent = Signer(secrets, trust_envelopes=trusted).record(told)
        record = FakeRecord(WEBHOOKS, sent.value, headers=list(sent.headers), timestamp=T0)
        if right:
            assert record_facts(record, secrets)[0]
        else:
            with pytest.raises(Unreadable, match="x-hub-signature-256 was not made"):
                record_facts(record, secrets)
    # With a signing token an unsigned one is signed as GitLab would.
    sent = signer.record(delivery("gitlab.job", body_of("gitlab", "job.running")))
    assert {"webhook-id", "webhook-timestamp", "webhook-signature"} <= {n for n, _ in sent.headers}
    record = FakeRecord(WEBHOOKS, sent.value, headers=list(sent.headers), timestamp=T0)
    assert record_facts(record, secrets)[0]


def test_a_signing_token_is_never_taken_as_a_plain_one() -> None:
    key = b"whsec_" + b"QUJD" * 8
    record = hook("gitlab", "job.running", GITLABS | {"X-Gitlab-Token": key.decode()})
    with pytest.raises(Unreadable, match="no secret that is set"):
        record_facts(record, {"gitlab": [key]})
    # A signature decides where it can be checked; a right token beside it rescues nothing.
    bad = hook("gitlab", "job.running", GITLABS | {"webhook-signature": "v1,AAAA v1,BBBB"})
    with pytest.raises(Unreadable, match="webhook-signature was not made"):
        record_facts(bad, {"gitlab": [key, b"s"]})
    assert record_facts(bad, {"gitlab": [b"s"]})[0]
    # A key that is no base64 signs nothing, and refuses nobody's else.
    with pytest.raises(Unreadable):
        record_facts(bad, {"gitlab": [b"whsec_!"]})
