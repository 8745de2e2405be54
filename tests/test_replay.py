"""Posting recorded deliveries from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.providers import facts
from pipeline.simulate.replay import ReplayError, deliveries, replay
from topics.models import Delivery, Reason, Record, Unreadable

DATA = Path(__file__).parent / "data" / "github"
NOW = 1_790_000_000_000
GUID = "4d8ed510-a74e-11f1-9e4b-bb84feffa688"


class Posted(list[Delivery]):
    def post(self, record: Record) -> None:
        assert isinstance(record, Delivery)
        self.append(record)


def body(name: str = "workflow_job.queued") -> dict[str, Any]:
    found = json.loads((DATA / f"{name}.json").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def one(path: Path) -> Delivery:
    (delivery,) = deliveries(path, NOW)
    return delivery


def write(directory: Path, name: str, content: object) -> Path:
    path = directory / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
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
    assert "x-hub-signature-256" not in delivery.headers
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
        ("a.json", "[]", None, "a delivery is an object, not a list"),
        ("a.json", "{}", None, "neither a workflow_job or workflow_run body nor an envelope"),
        ("a.json", {"payload": {"zen": "?"}}, None, "cannot tell the event"),
        ("a.json", {"payload": "{"}, None, "payload: not JSON"),
        ("a.json", {"payload": "[]"}, None, "payload: a body is an object"),
        ("a.json", {"payload": {}, "headers": [1]}, None, "headers: must be an object"),
        (
            "a.json",
            {"payload": {}, "headers": {"X-GitHub-Event": "push"}},
            None,
            "a push event is not one of workflow_job, workflow_run",
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
