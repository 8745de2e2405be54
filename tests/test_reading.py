"""Only what identifies can refuse an event: not null, odd values or broken text elsewhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import metrics
from pipeline.agents.normalise import lifecycle_facts, webhook_facts
from pipeline.effects import Note
from pipeline.exporter import Exporter
from pipeline.providers.base import ODD_REASONS
from pipeline.providers.github import ODD_FIELDS
from topics.models import (
    DELIVERY,
    LIFECYCLE,
    RUNNER_KINDS,
    Clock,
    Conclusion,
    Delivery,
    JobFact,
    LifecycleEvent,
    LifecycleKind,
    Milestone,
    Reason,
    RunnerRef,
    Unreadable,
)
from topics.reading import mend_surrogates, read
from topics.recovery import HostGone, RunnerSeen, RunnerState

T0 = 1_790_000_000_000


def envelope(**more: Any) -> dict[str, Any]:
    return {
        "id": "e1",
        "kind": "job.completed",
        "source": "dispatcher-1",
        "occurred_at": T0,
        "received_at": T0 + 5,
        "key": "github:github.com:41",
        "job_id": "41",
        **more,
    }


def raw(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode()


def job_of(value: bytes, webhook: bool = False) -> tuple[JobFact, list[Note[Any]]]:
    facts, *_, notes = (webhook_facts if webhook else lifecycle_facts)(value)
    fact = next(iter(facts))
    assert isinstance(fact, JobFact)
    return fact, notes


#: Fields of a lifecycle event that may be left out.
OPTIONAL = sorted(
    name
    for name, field in LifecycleEvent.model_fields.items()
    # Only what is said of a runner or a host can do without a job.
    if not field.is_required() and name != "job_id"
)


@pytest.mark.parametrize("name", OPTIONAL)
def test_null_is_the_same_as_left_out(name: str) -> None:
    without = read(LIFECYCLE, raw(envelope()))
    odd: list[str] = []
    assert read(LIFECYCLE, raw(envelope(**{name: None})), odd=odd) == without
    assert not odd, "null is unknown, and not odd"
    assert LifecycleEvent.model_validate(envelope(**{name: None})) == without


def test_all_at_once_and_inside_a_runner() -> None:
    nulls = dict.fromkeys(OPTIONAL)
    assert job_of(raw(envelope(**nulls)))[0] == job_of(raw(envelope()))[0]
    runner = read(LIFECYCLE, raw(envelope(runner={"id": None, "name": "vm", "group": None}))).runner
    assert runner == RunnerRef(name="vm")


@pytest.mark.parametrize("name", ["host", "headers", "trace", "version"])
def test_null_in_the_envelope_of_a_delivery(name: str) -> None:
    record = envelope(kind="github.workflow_job", payload='{"workflow_job":{"id":41}}')
    del record["job_id"]
    assert read(DELIVERY, raw(record | {name: None})) == read(DELIVERY, raw(record))
    headers = {"x-github-event": "workflow_job", "x-github-hook-id": None, "x": 5}
    assert read(DELIVERY, raw(record | {"headers": headers})).headers == {
        "x-github-event": "workflow_job"
    }


@pytest.mark.parametrize("name", ["id", "kind", "occurred_at", "job_id"])
def test_what_identifies_is_required(name: str) -> None:
    for record in (envelope(**{name: None}), {k: v for k, v in envelope().items() if k != name}):
        with pytest.raises(Unreadable):
            read(LIFECYCLE, raw(record))


@pytest.mark.parametrize(
    ("more", "count"),
    [
        ({"runner": {"id": -1, "name": "vm-1"}}, 1),
        ({"runner": "vm-1"}, 1),
        ({"conclusion": "exploded"}, 1),
        ({"repo": 5, "fleet": ["a"], "reason": {}}, 3),
        ({"trace": "t" * 5_000}, 1),
    ],
)
def test_an_odd_field_is_missing_and_counted(more: dict[str, Any], count: int) -> None:
    fact, notes = job_of(raw(envelope(**more)))
    assert Milestone.COMPLETED in fact.times
    assert fact.conclusion is None
    assert Note(metrics.ODD_FIELDS, ("envelope", "unusable"), float(count)) in notes
    # Only the wrong part goes.
    if "id" in str(more):
        assert fact.runner == RunnerRef(name="vm-1")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"version": 2}, Reason.NEWER_VERSION),
        ({"version": "one"}, Reason.BAD_ENVELOPE),
        ({"host": 5}, Reason.BAD_ENVELOPE),
        ({"provider": ["github"]}, Reason.BAD_ENVELOPE),
        ({"provider": "git:hub"}, Reason.BAD_PAYLOAD),
        ({"kind": "job.teleported"}, Reason.UNKNOWN_KIND),
        ({"occurred_at": T0 // 1000}, Reason.BAD_TIME),
    ],
)
def test_what_would_be_another_identity_is_refused(more: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(Unreadable) as caught:
        lifecycle_facts(raw(envelope(**more)))
    assert caught.value.reason is reason
    assert "or null" not in caught.value.error


def test_what_is_said_of_a_runner_goes_to_its_fleet() -> None:
    gone = envelope(kind="runner.gone", job_id=None, fleet="linux", runner={"name": "vm-1"})
    facts, record, _ = lifecycle_facts(raw(gone), str.upper)
    assert list(facts) == []
    assert isinstance(record, RunnerSeen)
    assert (record.key, record.runner, record.state) == ("LINUX", "vm-1", RunnerState.GONE)
    crash = envelope(kind="host.gone", job_id=None, fleet="linux", runner_host="rack-7")
    _, record, _ = lifecycle_facts(raw(crash))
    assert isinstance(record, HostGone)
    assert (record.key, record.host) == ("linux", "rack-7")
    for kind, more in (("runner.idle", {}), ("host.gone", {"runner": {"name": "vm-1"}})):
        with pytest.raises(Unreadable, match="must name fleet and") as caught:
            lifecycle_facts(raw(envelope(kind=kind, job_id=None, fleet="linux", **more)))
        assert caught.value.reason is Reason.BAD_PAYLOAD


def test_an_event_of_a_job_says_where_the_runner_is() -> None:
    named = {"fleet": "linux", "runner": {"name": "vm-1"}, "claim": "h1"}
    _, record, _ = lifecycle_facts(raw(envelope(kind="job.minted", **named)))
    assert isinstance(record, RunnerSeen)
    assert (record.state, record.claim) == (RunnerState.STARTING, "h1")
    assert record.job_key == "github:github.com:41"
    assert lifecycle_facts(raw(envelope(kind="job.minted", claim="h1")))[1] is None


def test_blank_is_unknown_and_a_number_is_a_job_id() -> None:
    assert job_of(raw(envelope(host="", provider="", job_id=41)))[0].key == "github:github.com:41"
    assert job_of(raw(envelope(host="GHE.corp:443")))[0].key == "github:ghe.corp:41"


def test_a_time_of_the_future_is_dated_by_arrival() -> None:
    fact, notes = job_of(raw(envelope(occurred_at=T0 + 30 * 86_400_000)))
    assert fact.times == {Milestone.COMPLETED: {Clock.RECEIVED: T0 + 5}}
    assert fact.occurred_at == T0 + 5
    assert Note(metrics.ODD_FIELDS, ("occurred_at", "future")) in notes


# --- webhook bodies -----------------------------------------------------------------------------

JOB: dict[str, Any] = {
    "id": 41,
    "run_id": 7,
    "run_attempt": 1,
    "status": "completed",
    "conclusion": "success",
    "created_at": "2026-09-21T14:00:00Z",
    "started_at": "2026-09-21T14:00:30Z",
    "completed_at": "2026-09-21T14:02:00Z",
    "name": "build",
    "workflow_name": "CI",
    "head_branch": "main",
    "head_sha": "abc",
    "html_url": "https://github.com/acme/shop/actions/runs/7/job/41",
    "labels": ["self-hosted", "linux"],
    "steps": [{"name": "x", "started_at": "2026-09-21T14:00:31Z"}],
    "runner_id": 11,
    "runner_name": "vm-1",
    "runner_group_name": "Default",
}


def hook(payload: dict[str, Any] | str, **more: Any) -> bytes:
    text = payload if isinstance(payload, str) else json.dumps(payload)
    said = Delivery(
        id="d1", kind="github.workflow_job", source="github", occurred_at=T0, received_at=T0 + 900,
        key="k", payload=text,
    )  # fmt: skip
    return raw(json.loads(said.model_dump_json()) | more)


def body(**changes: Any) -> dict[str, Any]:
    job = {name: v for name, v in (JOB | changes).items() if v is not ...}
    return {"action": "completed", "workflow_job": job, "repository": {"full_name": "acme/shop"}}


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["", "0", "-1", "9999-12-31T23:59:59Z", "0000-00-00T00:00:00Z", "now"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(sorted(set(JOB) - {"id"})), anything | st.just(...), max_size=4
    ),
    anything,
    anything,
)
def test_no_value_of_an_optional_field_refuses_a_body(
    changes: dict[str, Any], repository: Any, action: Any
) -> None:
    said = body(**changes) | {"repository": repository, "action": action}
    fact, notes = job_of(hook(said), webhook=True)
    assert fact.key.endswith(":41")
    if {"status", "conclusion", "completed_at"}.isdisjoint(changes):
        assert fact.conclusion is Conclusion.SUCCESS
        assert Milestone.COMPLETED in fact.times
    # Whatever was odd is counted under names that exist.
    exporter = Exporter()
    exporter.note(notes)
    assert all(
        n.labels[0] in ODD_FIELDS and n.labels[1] in ODD_REASONS
        for n in notes
        if n.metric is metrics.ODD_FIELDS
    )


@given(st.dictionaries(
    st.sampled_from(["run_attempt", "status", "conclusion", "html_url", "run_started_at",
                     "updated_at"]),
    anything, max_size=4,
))  # fmt: skip
def test_no_value_of_an_optional_field_refuses_a_run(changes: dict[str, Any]) -> None:
    run = {"id": 7, "status": "completed", "conclusion": "failure"} | changes
    facts, notes = webhook_facts(hook({"workflow_run": run}, kind="github.workflow_run"))
    assert next(iter(facts)).key.endswith(":run/7")
    Exporter().note(notes)


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({"completed_at": ""}, {("completed_at", "unusable")}),
        ({"completed_at": "2027-01-01T00:00:00Z"}, {("completed_at", "future")}),
        ({"labels": ["linux", None]}, {("labels", "wrong_type")}),
        ({"labels": "linux"}, {("labels", "wrong_type")}),
        ({"runner_id": -1}, {("runner_id", "unusable")}),
        ({"runner_name": 5}, {("runner_name", "wrong_type")}),
        ({"steps": [{"started_at": ""}, 5]}, {("steps", "unusable"), ("steps", "wrong_type")}),
        ({"run_id": "x", "run_attempt": -3}, {("run_id", "unusable"), ("run_attempt", "unusable")}),
        # Zero times, nulls and blanks are how things are left out: nothing odd.
        ({"started_at": "0001-01-01T00:00:00Z", "run_id": 0, "runner_name": ""}, set()),
    ],
)
def test_odd_fields_are_counted_by_name_and_reason(
    changes: dict[str, Any], counted: set[tuple[str, str]]
) -> None:
    _, notes = job_of(hook(body(**changes)), webhook=True)
    assert {n.labels for n in notes if n.metric is metrics.ODD_FIELDS} == counted


@pytest.mark.parametrize("lone", [r"\ud83d", r"\uDE00", r"\ud83d\ud83d", r"x\\\ud83dx"])
@pytest.mark.parametrize("place", ["skipped", "name", "envelope"])
def test_a_lone_surrogate_refuses_nothing(lone: str, place: str) -> None:
    text = json.dumps(body() | {"description": "SKIPPED"})
    if place == "skipped":
        value = hook(text.replace("SKIPPED", lone))
    elif place == "name":
        value = hook(text.replace('"build"', f'"{lone}"'))
    else:
        value = hook(text, source="SOURCE").replace(b"SOURCE", lone.encode())
    fact, _ = job_of(value, webhook=True)
    assert fact.conclusion is Conclusion.SUCCESS
    assert fact.job is not None
    assert ("\ufffd" in fact.job.name) == (place == "name")


def test_only_lone_surrogates_are_mended() -> None:
    whole = rb'"\ud83d\ude00 \\ud83d \u00e9 \n"'
    assert mend_surrogates(whole) == whole
    assert mend_surrogates(rb'"\ud83d\u0041"') == rb'"\ufffd\u0041"'


# --- events that are not ours -------------------------------------------------------------------

PING = {"zen": "Keep it logically awesome.", "hook_id": 1, "hook": {"type": "Repository"}}


@pytest.mark.parametrize(
    ("kind", "payload", "headers", "ignored"),
    [
        ("github.ping", PING, {}, "ping"),
        ("github.push", {"ref": "x"}, {}, "other"),
        ("github.check_suite", "not even JSON", {}, "other"),
        # A receiver that files everything under one kind.
        ("github.workflow_job", PING, {}, "ping"),
        ("github.workflow_job", {"zen": 1}, {"X-GitHub-Event": "ping"}, "ping"),
        ("github.workflow_job", {}, {"x-github-event": "issues"}, "other"),
    ],
)
def test_authentic_events_that_are_not_ours_are_ignored_and_counted(
    kind: str, payload: Any, headers: dict[str, str], ignored: str
) -> None:
    facts, notes = webhook_facts(hook(payload, kind=kind, headers=headers))
    assert (list(facts), notes) == ([], [Note(metrics.IGNORED_WEBHOOKS, (ignored,))])
    exporter = Exporter()
    exporter.note(notes)
    value = exporter.registry.get_sample_value(
        "runnerstream_webhooks_ignored_total", {"event": ignored}
    )
    assert value == 1


@pytest.mark.parametrize("kind", ["github.workflow_jobs", "github.", "gitlab.build", "ping"])
def test_a_kind_that_nobody_sends_is_still_refused(kind: str) -> None:
    with pytest.raises(Unreadable) as caught:
        webhook_facts(hook(PING, kind=kind))
    assert caught.value.reason is Reason.UNKNOWN_KIND


# --- hosts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "url", "host", "key"),
    [
        ({}, None, "github.com", "github.com"),
        ({"X-GitHub-Tenant": "octocorp"}, None, None, "octocorp.ghe.com"),
        ({"x-github-tenant": "OctoCorp"}, "https://github.com/a", "github.com", "octocorp.ghe.com"),
        ({"x-github-tenant": "octocorp.ghe.com"}, None, None, "octocorp.ghe.com"),
        ({}, "https://octocorp.ghe.com/acme/shop/runs/1", None, "octocorp.ghe.com"),
        ({}, "https://GHE.corp:8443/acme", None, "ghe.corp:8443"),
        ({"x-github-tenant": "a b"}, "https://octocorp.ghe.com/x", None, "octocorp.ghe.com"),
        (
            {"x-github-enterprise-host": "ghe.corp", "x-github-tenant": "octocorp"},
            "https://other.example/x",
            None,
            "ghe.corp",
        ),
        ({"x-github-enterprise-host": "ghe.corp"}, None, "proxy.example", "proxy.example"),
    ],
)
def test_whose_job_ids_they_are(
    headers: dict[str, str], url: str | None, host: str | None, key: str
) -> None:
    value = hook(body(html_url=url), headers=headers, host=host)
    assert job_of(value, webhook=True)[0].key == f"github:{key}:41"
    # The run, and the repository's URL where the job has none.
    run = {"workflow_run": {"id": 7, "html_url": url}, "repository": {"html_url": url}}
    facts, _ = webhook_facts(hook(run, kind="github.workflow_run", headers=headers, host=host))
    assert next(iter(facts)).key == f"github:{key}:run/7"


def test_every_lifecycle_kind_takes_nulls() -> None:
    for kind in set(LifecycleKind) - RUNNER_KINDS:
        nulls = dict.fromkeys(set(OPTIONAL) - {"claim"})
        assert job_of(raw(envelope(kind=kind.value, claim="c", **nulls)))[0].cause == kind.value
