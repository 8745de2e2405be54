"""The natural form of a webhook: raw body, HTTP headers. Read, checked, stored, replayed."""

from __future__ import annotations

import hmac
import json
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from aiokafka.structs import TopicPartition

from pipeline import metrics
from pipeline.agents.normalise import Normalise, record_facts
from pipeline.commands.dead_letters import _headers
from pipeline.effects import Effects, Note
from pipeline.faust_safe import Batch
from pipeline.settings import load
from pipeline.simulate import Simulation
from sinks import rows
from tests.test_sink_rows import FakeRecord
from topics import bridge
from topics.catalogue import DEAD_LETTERS, JOBS, WEBHOOKS
from topics.models import DEAD_LETTER, Delivery, JobFact, Reason, Unreadable
from topics.reading import read

BODY = (Path(__file__).parent / "data/github/workflow_job.in_progress.json").read_bytes()
#: Its clock says when the event was made; the records below arrive a second later.
GUID = "5d2a3b80-b5f4-11f1-8a3f-0242ac120002"
MADE = bridge.guid_time_ms(GUID) or 0
ARRIVED = MADE + 1_000
SECRETS = {"github": [b"new", b"old"]}


def signed(body: bytes, secret: bytes = b"old") -> str:
    return "sha256=" + hmac.new(secret, body, sha256).hexdigest()


def hook(body: bytes | None = BODY, *, signature: str = "", **more: Any) -> FakeRecord:
    """A record as a bridge writes it; ``headers`` of the argument replace the usual ones."""
    named = {"X-GitHub-Event": "workflow_job", "X-GitHub-Delivery": GUID, "User-Agent": "GitHub"}
    named |= more.pop("headers", {})
    if signature:
        named["X-Hub-Signature-256"] = signature
    headers: list[tuple[str, bytes | None]] = [
        (name, value.encode()) for name, value in named.items() if value is not None
    ]
    more = {"timestamp": ARRIVED, "key": None} | more
    return FakeRecord(WEBHOOKS, body, headers=headers, **more)


def envelope(**headers: str) -> bytes:
    made = Delivery(
        id=GUID, kind="github.workflow_job", source="github", occurred_at=MADE,
        received_at=ARRIVED, key="k", headers=headers, payload=BODY.decode(),
    )  # fmt: skip
    return made.model_dump_json().encode()


def facts(record: FakeRecord, **more: Any) -> list[Any]:
    return [fact.model_dump() for fact in record_facts(record, **more)[0]]


def reason(record: FakeRecord, *checks: Any) -> Reason:
    with pytest.raises(Unreadable) as caught:
        record_facts(record, *checks)
    return caught.value.reason


async def fold(normalise: Normalise, *records: FakeRecord) -> Effects:
    return await normalise.fold(Batch(TopicPartition(WEBHOOKS, 0), list(records)))  # type: ignore[arg-type]


# -- reading ---------------------------------------------------------------------------------------


def test_raw_form_says_what_the_envelope_says() -> None:
    plain = FakeRecord(WEBHOOKS, envelope(**{"x-github-event": "workflow_job"}))
    assert facts(hook()) == facts(plain)
    assert len(facts(hook())) == 2
    assert Note(metrics.WEBHOOK_LAG, (), 1.0) in record_facts(hook())[1]


WRITTEN = Delivery(
    id=GUID, kind="github.workflow_job", source="github", occurred_at=MADE, received_at=ARRIVED,
    key="k", payload=BODY.decode(),
)  # fmt: skip


def written(record: Delivery, timestamp: int = ARRIVED + 9**9) -> FakeRecord:
    """The record in raw form that says the same, written some time after the arrival."""
    made = bridge.natural(record)
    assert made is not None
    headers, value = made
    return FakeRecord(
        WEBHOOKS, value, record.key.encode(), headers=list(headers), timestamp=timestamp
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kind": "github.push", "payload": "{}"},
        {"id": "replay-4711", "occurred_at": MADE - 10**9},
        {"id": GUID.upper(), "source": "a receiver"},
        {"host": "ghe.corp.example:8443"},
        {"host": "octo.ghe.com", "headers": {"x-github-tenant": "octo"}},
        {"headers": {"User-Agent": "GitHub", "x-hub-signature-256": signed(BODY)}},
        {"headers": {"content-type": "application/json"}, "payload": "no JSON \u2028"},
        # The clock of the id is not believed: what the envelope says stands.
        {"received_at": MADE - 10**10, "occurred_at": MADE - 10**10 - 5},
    ],
)
def test_what_an_envelope_says_can_be_said_in_raw_form(changes: dict[str, Any]) -> None:
    told = Delivery.model_validate(WRITTEN.model_dump() | changes)
    found = bridge.raw(written(told))
    assert found is not None
    again = bridge.delivery(found)
    assert again.model_dump(exclude={"headers"}) == told.model_dump(exclude={"headers"})
    assert {name.lower(): value for name, value in told.headers.items()}.items() <= (
        again.headers.items()
    )
    assert not [name for name in again.headers if name.startswith("runnerstream")]


def test_a_fleets_webhooks_say_the_same_in_either_form() -> None:
    simulation = Simulation(5, 60, start_ms=MADE, duration_s=600)
    hooks = [record for record in simulation.records() if record.topic == WEBHOOKS]
    assert len(hooks) > 100
    for record in hooks:
        found = bridge.raw(record)
        assert found is not None
        value = bridge.delivery(found).model_dump_json().encode()
        envelope = FakeRecord(WEBHOOKS, value, timestamp=record.timestamp)
        said, notes = record_facts(record)
        assert (list(said), notes) == (list(record_facts(envelope)[0]), record_facts(envelope)[1])
        assert said


def test_a_payload_out_of_a_form_is_not_a_form_again() -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Authorization": "Bearer x"}
    told = WRITTEN.model_copy(update={"headers": headers})
    assert facts(written(told)) == facts(hook())
    assert "authorization" not in dict(written(told).headers)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "github.api_job"},
        {"kind": "elsewhere.workflow_job"},
        {"kind": "github.Workflow_Job"},
        {"kind": "github.workflow_job", "headers": {"x-github-event": "ping"}},
        {"trace": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        {"id": " with spaces "},
        {"payload": '{"lone": "\ud83d"}'},
        {"payload": envelope().decode()},
    ],
)
def test_what_has_no_raw_form_stays_an_envelope(changes: dict[str, Any]) -> None:
    assert bridge.natural(WRITTEN.model_copy(update=changes)) is None


def test_odd_headers_of_our_own_are_as_if_they_were_not_there() -> None:
    anonymous = {"X-GitHub-Delivery": None}
    plain = facts(hook(headers=anonymous))
    for odd in ("", "-5", "0", "9" * 14, "9" * 40, "soon"):
        assert facts(hook(headers=anonymous | {bridge.OCCURRED_AT: odd})) == plain
        assert facts(hook(headers=anonymous | {bridge.RECEIVED_AT: odd})) == plain
    assert facts(hook(headers=anonymous | {bridge.SOURCE: " "})) == plain
    [fact, _] = facts(hook(headers=anonymous | {bridge.SOURCE: "s" * 600}))
    assert fact["source"] == "s" * 512


@pytest.mark.parametrize("style", [str.lower, str.upper, str.title])
def test_the_names_of_headers_are_read_in_any_case(style: Any) -> None:
    headers = {"X-GitHub-Event": None, "X-GitHub-Delivery": None}
    headers |= {style("x-github-event"): "workflow_job", style("x-github-delivery"): GUID}
    headers |= {style("x-github-enterprise-host"): "GHE.corp.example"}
    [fact, link] = record_facts(hook(headers=headers))[0]
    assert isinstance(fact, JobFact)
    assert fact.key.startswith("github:ghe.corp.example:")
    assert fact.id.startswith(GUID)
    assert link.key.startswith("github:ghe.corp.example:run/")


GHES = {"X-GitHub-Enterprise-Host": "GHE.corp.example:8443",
        "X-GitHub-Enterprise-Version": "3.19.1"}  # fmt: skip


@pytest.mark.parametrize(
    "file",
    sorted((Path(__file__).parent / "data/github").glob("*.json")),
    ids=lambda file: file.stem,
)
def test_every_published_body_from_a_ghes_says_the_same_of_its_own_jobs(file: Path) -> None:
    body, event = file.read_bytes(), file.name.partition(".")[0]
    headers = {"X-GitHub-Event": event}
    plain = facts(hook(body, headers=headers, signature=signed(body)), secrets=SECRETS)
    there = facts(hook(body, headers=headers | GHES, signature=signed(body)), secrets=SECRETS)
    for here, own in zip(plain, there, strict=True):
        names = {name for name in here if here[name] != own[name]}
        # A link is named after what it links.
        assert names == {"key"} if own["kind"] != "run.link" else {"key", "job_key", "id"}
        assert own["key"].startswith("github:ghe.corp.example:8443:")
        assert own["key"].rpartition(":")[2] == here["key"].rpartition(":")[2]
    assert reason(hook(body + b" ", headers=headers | GHES, signature=signed(body)), SECRETS) is (
        Reason.BAD_SIGNATURE
    )


def test_a_tenants_host_is_part_of_the_key() -> None:
    [fact, _] = record_facts(hook(headers={"x-github-tenant": "octo"}))[0]
    assert fact.key.startswith("github:octo.ghe.com:")


def test_other_events_and_pings_are_known_and_ignored() -> None:
    for event, label in (("ping", "ping"), ("push", "other")):
        said, notes = record_facts(hook(b"{}", headers={"X-GitHub-Event": event}))
        assert (list(said), notes) == ([], [Note(metrics.IGNORED_WEBHOOKS, (label,))])
    assert reason(hook(headers={"X-GitHub-Event": "workflow_jobs"})) is Reason.UNKNOWN_KIND


def test_without_a_delivery_id_the_same_body_twice_is_one_statement() -> None:
    anonymous = {"X-GitHub-Delivery": None}
    first, again = (facts(hook(headers=anonymous, offset=n))[0]["id"] for n in (1, 2))
    assert first == again
    assert facts(hook(BODY + b" ", headers=anonymous))[0]["id"] != first


@pytest.mark.parametrize("timestamp", [-1, 0, 1_790_000_000, 2**62])
def test_a_timestamp_that_cannot_be_gives_way_to_the_delivery_ids_clock(timestamp: int) -> None:
    [fact, _] = record_facts(hook(timestamp=timestamp))[0]
    assert (fact.occurred_at, fact.received_at) == (MADE, MADE)
    unknown = hook(timestamp=timestamp, headers={"X-GitHub-Delivery": None})
    assert reason(unknown) is Reason.BAD_TIME


def test_a_body_sent_as_a_form_is_the_payload_in_it() -> None:
    form = urlencode({"payload": BODY.decode()}).encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    plain = hook(headers={"Content-Type": "application/json"})
    assert facts(hook(form, headers=headers)) == facts(plain)
    assert facts(hook(form, headers=headers, signature=signed(form)), secrets=SECRETS)
    for broken in (b"", b"a=b", b"payload=%ff", b"payload"):
        assert reason(hook(broken, headers=headers)) is Reason.NOT_JSON


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (None, Reason.NOT_JSON),
        (b"", Reason.NOT_JSON),
        (BODY[:500], Reason.NOT_JSON),
        (b'{"a": "\xff"}', Reason.NOT_JSON),
        (b'{"workflow_job": null}', Reason.NO_JOB),
        (b"[]", Reason.BAD_PAYLOAD),
    ],
)
def test_what_is_wrong_with_a_raw_body_is_told_like_an_envelopes(
    body: bytes | None, why: Reason
) -> None:
    assert reason(hook(body)) is why


def test_the_content_decides_when_an_envelope_comes_with_the_providers_headers() -> None:
    assert facts(hook(envelope())) == facts(FakeRecord(WEBHOOKS, envelope()))
    # A body may have such words anywhere, and is still a body.
    body = json.loads(BODY) | {"deployment": {"payload": "p", "kind": "github.x"}}
    assert facts(hook(json.dumps(body).encode()))


def test_odd_headers_harm_nobody() -> None:
    record = hook()
    record.headers[:0] = [(b"gr\xfc\xdfe", b"\xff"), ("null", None)]  # type: ignore[list-item]
    assert facts(record) == facts(hook())
    record.headers[:] = [("x-github-event", None)]
    assert reason(record) is Reason.UNKNOWN_KIND, "nothing names an event"


# -- signatures ------------------------------------------------------------------------------------


def test_without_secrets_nothing_is_checked() -> None:
    assert facts(hook(signature="sha256=00")) == facts(hook())


def test_with_secrets_each_of_them_signs_and_nothing_else() -> None:
    for secret in (b"new", b"old"):
        good = hook(signature=signed(BODY, secret))
        assert facts(good, secrets=SECRETS) == facts(hook())
    sha1 = "sha1=" + hmac.new(b"old", BODY, "sha1").hexdigest()
    forged = [
        hook(),
        hook(signature=signed(BODY, b"guess")),
        hook(BODY + b"\n", signature=signed(BODY)),
        hook(signature=sha1),
        hook(headers={"X-Hub-Signature": sha1}),
        # Before anything else is looked at.
        hook(b"{", signature=signed(BODY)),
        hook(b"{}", headers={"X-GitHub-Event": "ping"}),
    ]
    for record in forged:
        assert reason(record, SECRETS) is Reason.BAD_SIGNATURE


def test_envelopes_are_checked_unless_they_are_trusted() -> None:
    plain = FakeRecord(WEBHOOKS, envelope())
    assert facts(plain, secrets=SECRETS, trust_envelopes=True)
    # Behind a bridge anybody may leave the header out, or send it, with an envelope as body.
    for forged in (plain, hook(envelope()), hook(envelope(), signature=signed(BODY))):
        assert reason(forged, SECRETS) is Reason.BAD_SIGNATURE
    # With the header it came over HTTP: so its bytes are signed, or it is not believed.
    assert reason(hook(envelope(), signature=signed(BODY)), SECRETS) is Reason.BAD_SIGNATURE
    assert facts(hook(envelope(), signature=signed(envelope())), secrets=SECRETS)
    good = FakeRecord(WEBHOOKS, envelope(**{"X-Hub-Signature-256": signed(BODY)}))
    assert facts(good, secrets=SECRETS)
    assert facts(plain), "nothing to check without secrets"


async def test_a_forged_webhook_is_buried_and_the_rest_goes_on() -> None:
    counted: list[Note[Any]] = []
    normalise = Normalise(counted.extend, SECRETS)
    forged = hook(signature=signed(BODY, b"guess"), offset=4)
    effects = await fold(normalise, forged, hook(signature=signed(BODY), offset=5))
    assert [output.topic for output in effects.outputs] == [DEAD_LETTERS, JOBS, JOBS]
    assert Note(metrics.DEAD_LETTERS, ("normalise", "bad_signature")) in effects.notes
    letter = read(DEAD_LETTER, effects.outputs[0].value)
    assert (letter.reason, letter.offset) == (Reason.BAD_SIGNATURE, 4)
    assert letter.record_value == BODY
    # What `dead-letters replay` posts is understood once the secret is known, as it was.
    posted = FakeRecord(
        WEBHOOKS, letter.record_value, headers=list(_headers(letter)), timestamp=ARRIVED + 9**9
    )
    late = {"github": [b"guess"]}
    assert facts(posted, secrets=late) == facts(hook(signature=signed(BODY)))
    assert [(n, v) for n, v in posted.headers if n != bridge.RECEIVED_AT] == forged.headers


def test_a_letter_without_headers_is_posted_without() -> None:
    letter = read(
        DEAD_LETTER,
        json.dumps(
            {"id": "a:0:1", "kind": "dead_letter", "source": "x", "occurred_at": ARRIVED,
             "received_at": ARRIVED, "key": "a", "reason": "not_json", "stage": "normalise",
             "error": "", "topic": WEBHOOKS, "partition": 0, "offset": 1}
        ).encode(),
    )  # fmt: skip
    assert _headers(letter) == []


@pytest.mark.parametrize(
    ("said", "secrets"),
    [
        ("", ()),
        ("one", (b"one",)),
        ("new, old", (b"new", b"old")),
        ('["with, comma", "\u00e4"]', (b"with, comma", "\u00e4".encode())),
    ],
)
def test_secrets_are_read_and_never_shown(
    said: str, secrets: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNERSTREAM_GITHUB_SECRETS", said)
    settings = load()
    assert settings.webhook_secrets().get("github", ()) == secrets
    shown = repr(settings) + settings.model_dump_json()
    assert not [secret for secret in secrets if secret.decode() in repr(settings.github_secrets)]
    assert "with, comma" not in shown


@pytest.mark.parametrize("said", [",", "a,,b", '["a", ""]', '["a", 5]', "[s3cret"])
def test_an_empty_secret_is_refused_without_showing_the_others(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNERSTREAM_GITHUB_SECRETS", said)
    with pytest.raises(ValueError, match="github_secrets") as caught:
        load()
    assert "s3cret" not in str(caught.value)


def test_an_empty_secret_in_code_is_refused_too() -> None:
    with pytest.raises(ValueError, match="github_secrets"):
        load(environment=False, github_secrets=("",))


# -- the sink --------------------------------------------------------------------------------------


def row(record: FakeRecord) -> dict[str, Any]:
    tables, failed = rows.build([rows.decode(record)])
    assert failed == []
    [table] = tables
    return dict(zip(table.table.columns, table.rows[0], strict=True))


def test_raw_webhooks_are_stored_like_envelopes() -> None:
    secret = {"Authorization": "Bearer s3cret", "Cookie": "a=b"}
    told = row(hook(key=b"k", headers={"x-github-tenant": "octo", **secret}))
    assert (told["id"], told["kind"], told["key"]) == (GUID, "github.workflow_job", "k")
    assert (told["occurred_at"], told["received_at"]) == (MADE, ARRIVED)
    assert (told["host"], told["source"], told["version"]) == ("octo.ghe.com", "github", 1)
    assert told["payload"] == BODY.decode()
    assert told["headers"] == {
        "x-github-event": "workflow_job", "x-github-delivery": GUID, "user-agent": "GitHub",
        "x-github-tenant": "octo",
    }  # fmt: skip
    assert told["unreadable"] == ""


def test_a_raw_body_that_is_no_text_is_stored_as_it_is() -> None:
    told = row(hook(b"\xff"))
    assert (told["payload"], told["unreadable"]) == (b"\xff", "not_json")
    assert row(hook(envelope()))["payload"] == BODY.decode()
