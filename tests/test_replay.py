"""Posting recorded deliveries from files."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.agents.normalise import record_facts
from pipeline.jobs import FleetNames, merge, view
from pipeline.providers import facts
from pipeline.providers.sending import Signer
from pipeline.replay import ReplayError, deliveries, replay
from pipeline.windows import contributions
from tests.test_sink_rows import FakeRecord
from topics import bridge
from topics.catalogue import WEBHOOKS
from topics.models import DELIVERY, Clock, Conclusion, Delivery, JobFact, Reason, Unreadable
from topics.reading import read

DATA = Path(__file__).parent / "data" / "github"
NOW = 1_790_000_000_000
SECRETS = {"github": [b"new", b"old"]}
GUID = "4d8ed510-a74e-11f1-9e4b-bb84feffa688"


class Posted(list[Delivery]):
    """What the pipeline will read; the records are kept as well."""

    def __init__(self) -> None:
        self.records: list[FakeRecord] = []

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        assert topic == WEBHOOKS
        written = max(int(time.time() * 1000), NOW) + 5
        record = FakeRecord(topic, value, key, headers=list(headers), timestamp=written)
        self.records.append(record)
        raw = bridge.raw(record)
        self.append(read(DELIVERY, value) if raw is None else bridge.delivery(raw))


def body(name: str = "workflow_job.queued") -> dict[str, Any]:
    found = json.loads((DATA / f"{name}.json").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def one(path: Path) -> Delivery:
    (delivery,) = deliveries(path, NOW)
    return delivery


def write(directory: Path, name: str, content: object) -> Path:
    path = directory / name
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(content)
    return path


def test_all_published_bodies_can_be_replayed_and_understood() -> None:
    posted = Posted()
    files = sorted(DATA.glob("*.json"))
    assert replay(files, posted, received_ms=NOW) == len(files) == 13
    for path, delivery in zip(files, posted, strict=True):
        assert delivery.kind == f"github.{path.name.split('.', maxsplit=1)[0]}"
        assert delivery.payload == path.read_text("utf-8")
        assert facts(delivery)[0].key == delivery.key
        assert delivery.received_at == NOW
        assert delivery.source == "replay"
    # Replaying twice says nothing new.
    again = Posted()
    replay(files, again, received_ms=NOW + 1)
    assert [facts(d)[0].id for d in again] == [facts(d)[0].id for d in posted]
    assert len({d.id for d in posted}) == 13


def test_a_body_without_a_clock_takes_its_own_latest_time() -> None:
    done = one(DATA / "workflow_job.completed.success.json")
    assert done.occurred_at == facts(done)[0].occurred_at == 1_628_159_896_000
    (before,) = deliveries(DATA / "workflow_job.completed.success.json", 1_628_159_700_000)
    assert before.occurred_at == 1_628_159_698_000  # nothing from the future


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("name", ["payload", "body"])
def test_envelopes(tmp_path: Path, as_text: bool, wrapped: bool, name: str) -> None:
    inner = json.dumps(body(), indent=1) if as_text else body()
    envelope: dict[str, Any] = {
        "headers": {
            "X-GitHub-Delivery": GUID,
            "X-GitHub-Event": "workflow_job",
            "X-Hub-Signature-256": "sha256=00",
            "X-GitHub-Enterprise-Host": "ghes.example.com",
        },
        name: inner,
    }
    if wrapped:
        envelope = {"id": 12, "redelivery": False, "request": envelope}
    delivery = one(write(tmp_path, "a.json", envelope))
    assert delivery.id == GUID
    assert delivery.host == "ghes.example.com"
    assert delivery.key == "github:ghes.example.com:289782451"
    assert json.loads(delivery.payload) == body()
    # Of an object nobody knows the bytes that were signed.
    assert ("x-hub-signature-256" in delivery.headers) is as_text
    assert delivery.headers["x-github-event"] == "workflow_job"


def test_githubs_delivery_api_keeps_id_and_event_beside_the_request(tmp_path: Path) -> None:
    found = {
        "guid": GUID,
        "event": "workflow_run",
        "request": {"headers": {}, "payload": body("workflow_run.requested")},
    }
    delivery = one(write(tmp_path, "d.json", found))
    assert (delivery.id, delivery.kind) == (GUID, "github.workflow_run")
    assert delivery.key == "github:github.com:run/289782451"


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "JSONL"])
def test_lines_of_either_kind(tmp_path: Path, suffix: str) -> None:
    lines = [
        json.dumps(body()),
        "",
        json.dumps({"headers": {"x-github-delivery": GUID}, "payload": body()}),
        json.dumps(body("workflow_run.requested")),
    ]
    path = tmp_path / f"all.{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\n")
    found = list(deliveries(path, NOW))
    assert [d.kind.partition(".")[2] for d in found] == ["workflow_job"] * 2 + ["workflow_run"]
    assert found[1].id == GUID


def test_the_file_name_tells_the_event_of_a_body_that_does_not(tmp_path: Path) -> None:
    empty = {"headers": {}, "payload": {"action": "queued"}}
    delivery = one(write(tmp_path, "workflow_job.broken.json", empty))
    assert delivery.kind == "github.workflow_job"
    with pytest.raises(Unreadable) as caught:  # refused where everything is refused, not here
        facts(delivery)
    assert caught.value.reason is Reason.NO_JOB


@pytest.mark.parametrize(
    ("name", "content", "line", "error"),
    [
        ("a.json", "{", None, "not JSON"),
        ("a.json", '{"workflow_job":{}}\n{"workflow_job":{}}', None, "name the file .jsonl"),
        ("a.json", "5", None, "a delivery is an object, not a int"),
        ("a.json", "[[]]", None, "item 1: a delivery is an object, not a list"),
        ("a.json", '[{"workflow_job":{"id":1}},{}]', None, "item 2: neither a workflow_job"),
        ("a.json", b"\xff\xfe{", None, "not UTF-16"),
        ("a.json", b'{"workflow_job": "\xff"}', None, "not UTF-8"),
        ("a.json", "{}", None, "neither a workflow_job or workflow_run body nor an envelope"),
        ("a.json", {"payload": {"zen": "?"}}, None, "cannot tell the event"),
        ("a.json", {"payload": "{"}, None, "payload: not JSON"),
        ("a.json", {"payload": "[]"}, None, "payload: a body is an object"),
        ("a.json", {"payload": {}, "headers": [1]}, None, "headers: must be an object"),
        (
            "a.json",
            {"payload": {}, "headers": {"X-GitHub-Event": "workflow_jobs"}},
            None,
            "a workflow_jobs event is none that github has",
        ),
        (
            "a.json",
            {
                "payload": {},
                "headers": {"X-GitHub-Event": "workflow_job", "x-github-delivery": "x" * 600},
            },
            None,
            "id: String should have at most 512 characters",
        ),
        ("a.jsonl", '{"workflow_job":{"id":1}}\n\nnonsense\n', 3, "not JSON"),
    ],
)
def test_errors_name_file_and_line(
    tmp_path: Path, name: str, content: object, line: int | None, error: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(ReplayError) as caught:
        list(deliveries(path, NOW))
    assert error in str(caught.value)
    assert str(caught.value).startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert (caught.value.path, caught.value.line) == (path, line)


def test_what_came_before_an_error_has_been_posted(tmp_path: Path) -> None:
    posted = Posted()
    good = write(tmp_path, "good.json", body())
    with pytest.raises(ReplayError, match="No such file"):
        replay([good, tmp_path / "absent.json"], posted, received_ms=NOW)
    assert len(posted) == 1


def test_without_a_time_of_arrival_it_is_now(tmp_path: Path) -> None:
    posted = Posted()
    replay([write(tmp_path, "a.json", {"workflow_job": {"id": 3}})], posted)
    (delivery,) = posted
    assert delivery.received_at == delivery.occurred_at > NOW - 10**11


# --- raw form -----------------------------------------------------------------------------------


def sent(path: Path, **settings: Any) -> FakeRecord:
    posted = Posted()
    replay([path], posted, received_ms=NOW, signer=Signer(**settings))
    (record,) = posted.records
    return record


def signature(content: bytes, secret: bytes = b"old") -> str:
    return "sha256=" + hmac.new(secret, content, "sha256").hexdigest()


def believed(record: FakeRecord, *checks: Any) -> bool:
    try:
        said, _ = record_facts(record, *checks)
    except Unreadable as why:
        if why.reason is not Reason.BAD_SIGNATURE:
            raise
        return False
    return bool(said)


def test_a_body_is_posted_as_it_stands_in_the_file() -> None:
    path = DATA / "workflow_job.queued.json"
    record = sent(path)
    assert record.value == path.read_bytes()
    headers = dict(record.headers)
    assert headers["x-github-event"] == b"workflow_job"
    assert headers[bridge.SOURCE] == b"replay"
    (said, _) = record_facts(record)[0]
    assert said == facts(one(path))[0]


@pytest.mark.parametrize("name", ["Authorization", "Cookie"])
def test_the_headers_that_were_recorded_are_posted_and_no_credentials(
    tmp_path: Path, name: str
) -> None:
    text = json.dumps(body(), indent=1)
    recorded = {
        "X-GitHub-Event": "workflow_job", "X-GitHub-Delivery": GUID, name: "s3cret",
        "X-Hub-Signature-256": signature(text.encode()), "User-Agent": "GitHub-Hookshot/1",
    }  # fmt: skip
    record = sent(write(tmp_path, "a.json", {"headers": recorded, "body": text}))
    assert record.value == text.encode()
    assert dict(record.headers)["user-agent"] == b"GitHub-Hookshot/1"
    assert "s3cret" not in str(record)
    # So whoever knows the secret can check what was recorded.
    assert believed(record, SECRETS)
    assert not believed(record, {"github": [b"another"]})


def envelope_of(tmp_path: Path, text: object, given: str) -> Path:
    headers = {"X-GitHub-Event": "workflow_job", "X-GitHub-Delivery": GUID}
    headers |= {"X-Hub-Signature-256": given} if given else {}
    return write(tmp_path, "e.json", {"headers": headers, "payload": text})


def test_with_secrets_what_came_unsigned_is_signed(tmp_path: Path) -> None:
    for path in (
        DATA / "workflow_job.queued.json",
        write(tmp_path, "job.json", rest_job()),
        envelope_of(tmp_path, body(), "sha256=of other bytes"),
    ):
        assert not believed(sent(path), SECRETS)
        assert believed(sent(path, secrets=SECRETS), SECRETS)
        assert believed(sent(path, secrets={"github": [b"old"]}), SECRETS)
        assert not believed(sent(path, secrets={"github": [b"guess"]}), SECRETS)


def test_a_recorded_signature_stays_for_the_workers_to_judge(tmp_path: Path) -> None:
    text = json.dumps(body())
    right = signature(text.encode())
    good = envelope_of(tmp_path, text, right)
    forged = write(tmp_path, "f.json", good.read_text().replace(right, "sha256=00"))
    for trusted in (False, True):
        record = sent(good, secrets=SECRETS, trust_envelopes=trusted)
        assert dict(record.headers)["x-hub-signature-256"] == right.encode()
    assert not believed(sent(forged, secrets=SECRETS), SECRETS)
    # Where envelopes counted as checked, so does what is replayed: as it did as an envelope.
    assert believed(sent(forged, secrets=SECRETS, trust_envelopes=True), SECRETS)


def test_a_job_of_the_rest_api_stays_an_envelope(tmp_path: Path) -> None:
    record = sent(write(tmp_path, "job.json", rest_job()))
    assert record.headers == []
    assert read(DELIVERY, record.value).kind == "github.api_job"


# --- other shapes -------------------------------------------------------------------------------


def test_an_array_of_deliveries_of_any_kind(tmp_path: Path) -> None:
    found = [
        body(),
        {"headers": {"X-GitHub-Delivery": GUID}, "payload": body("workflow_run.requested")},
        body("workflow_job.completed.success"),
    ]
    posted = list(deliveries(write(tmp_path, "all.json", json.dumps(found, indent=2)), NOW))
    assert [d.kind for d in posted] == [
        "github.workflow_job",
        "github.workflow_run",
        "github.workflow_job",
    ]
    assert [json.loads(d.payload) for d in posted] == [
        found[0],
        body("workflow_run.requested"),
        found[2],
    ]
    assert len({d.id for d in posted}) == 3
    assert not list(deliveries(write(tmp_path, "none.json", "[]"), NOW))
    lines = "\n".join(json.dumps(group) for group in (found[:2], found[2:]))
    assert len(list(deliveries(write(tmp_path, "all.jsonl", lines), NOW))) == 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "utf-32"])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_file_in_another_encoding(tmp_path: Path, encoding: str, suffix: str) -> None:
    # PowerShell's ">" writes UTF-16.
    text = json.dumps(body() | {"sender": {"login": "zoë"}}, ensure_ascii=False)
    path = write(tmp_path, f"a.{suffix}", (text + "\r\n").encode(encoding))
    delivery = one(path)
    assert facts(delivery)[0].key == "github:github.com:289782451"
    assert "zoë" in delivery.payload


def rest_job(**changes: Any) -> dict[str, Any]:
    """A job as GET /repos/{owner}/{repo}/actions/jobs/{id} returns it."""
    inner = body("workflow_job.completed.success")["workflow_job"]
    assert isinstance(inner, dict)
    return inner | {"run_url": "https://api.github.com/x", "head_branch": "main"} | changes


def test_a_job_of_the_rest_api_is_a_fact_and_no_event(tmp_path: Path) -> None:
    delivery = one(write(tmp_path, "job.json", rest_job()))
    assert delivery.kind == "github.api_job"
    (fact, _) = facts(delivery)
    assert isinstance(fact, JobFact)
    assert fact.cause == "api.job"
    assert fact.conclusion is Conclusion.SUCCESS
    seen = view(merge(None, fact), FleetNames())
    assert (seen.status, seen.timings["run"].ms) == ("completed", 198_000)
    # No event, so no clock of an event.
    assert Clock.DELIVERY not in {clock for clocks in fact.times.values() for clock in clocks}
    listed = {"total_count": 2, "jobs": [rest_job(), rest_job(id=5, status="queued")]}
    assert len(list(deliveries(write(tmp_path, "jobs.json", listed), NOW))) == 2
    queued = merge(None, fact_of(one(write(tmp_path, "q.json", rest_job(
        id=5, status="queued", conclusion=None, completed_at=None, steps=[], runner_id=None,
        runner_name=None,
    )))))  # fmt: skip
    assert view(queued, FleetNames()).status == "queued"


def fact_of(delivery: Delivery) -> JobFact:
    fact = facts(delivery)[0]
    assert isinstance(fact, JobFact)
    return fact


@pytest.mark.parametrize("unusable", [None, "", "9999-12-31T23:59:59Z", "0000-00-00T00:00:00Z"])
@pytest.mark.parametrize("shape", ["hook", "rest"])
def test_without_a_usable_end_the_run_time_is_unknown_and_not_zero(
    tmp_path: Path, unusable: Any, shape: str
) -> None:
    job = rest_job(completed_at=unusable)
    content = job if shape == "rest" else {"action": "completed", "workflow_job": job}
    seen = view(merge(None, fact_of(one(write(tmp_path, "a.json", content)))), FleetNames())
    assert (seen.status, seen.conclusion) == ("completed", "success")
    assert {name: t.missing for name, t in seen.timings.items()} == {
        "queue": None,
        "claim_to_start": "no_claim",
        "run": "no_completed",
        "total": "no_completed",
    }
    assert [c.name for c in contributions(seen) if c.ms is None] == ["success"]


def test_without_a_usable_start_the_wait_is_unknown_and_not_zero(tmp_path: Path) -> None:
    job = rest_job(started_at="", completed_at=None, status="in_progress", steps=[])
    content = {"action": "in_progress", "workflow_job": job}
    seen = view(merge(None, fact_of(one(write(tmp_path, "a.json", content)))), FleetNames())
    assert (seen.status, seen.timings["queue"].missing) == ("running", "no_started")


def test_events_that_are_not_ours_are_posted_and_ignored(tmp_path: Path) -> None:
    ping = {"zen": "Design for failure.", "hook_id": 1, "hook": {"type": "Repository"}}
    for content, kind in [
        (ping, "github.ping"),
        ({"headers": {"X-GitHub-Event": "push"}, "payload": {"ref": "x"}}, "github.push"),
    ]:
        delivery = one(write(tmp_path, "a.json", content))
        assert delivery.kind == kind
        assert facts(delivery) == []
