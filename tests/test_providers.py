"""Every registered provider keeps the contract; a provider that is new needs no line elsewhere."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

import pytest
from prometheus_client import generate_latest

from pipeline import metrics
from pipeline import replay as recorded
from pipeline.agents.normalise import record_facts, to_bytes, webhook_facts
from pipeline.effects import Note
from pipeline.exporter import Exporter
from pipeline.ledger import Ledger
from pipeline.providers.base import ODD_REASONS, Facts, Provider, sign_sha256, verify_sha256
from pipeline.providers.github import GitHub
from pipeline.providers.registry import PROVIDERS, provider_of
from sinks import rows
from tests.test_sink_rows import FakeRecord
from topics import bridge
from topics.catalogue import JOB_STATES, WEBHOOKS
from topics.keys import job_key
from topics.models import (
    JOB_STATE,
    JOBS_RECORD,
    Clock,
    Delivery,
    JobFact,
    Milestone,
    Reason,
    Unreadable,
)
from topics.reading import read

T0 = 1_790_000_000_000
GITHUB = Path(__file__).parent / "data" / "github"


class Toy:
    """A forge that tells of jobs in a line of its own: ``<number> <state>``."""

    name: Final = "toy"
    events: Final = ("build",)
    other_events: Final = frozenset({"hello"})
    odd_fields: Final = ("state",)

    def verify(self, headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes]) -> None:
        verify_sha256(headers.get("x-toy-signature"), "x-toy-signature", body, secrets)

    def sign(self, body: bytes, secret: bytes) -> Mapping[str, str]:
        return {"x-toy-signature": sign_sha256(body, secret)}

    def facts(self, delivery: Delivery) -> Facts:
        event = delivery.kind.partition(".")[2]
        if event in self.other_events:
            return Facts(ignored="other")
        if event not in self.events:
            raise Unreadable(Reason.UNKNOWN_KIND, f"no build in {event!r}")
        told = json.loads(delivery.payload)
        return Facts(
            [
                JobFact(
                    id=delivery.id, source=self.name, occurred_at=delivery.occurred_at,
                    received_at=delivery.received_at,
                    key=job_key(self.name, delivery.host, told["number"]), cause="toy.build",
                    times={Milestone.QUEUED: {Clock.DELIVERY: delivery.occurred_at}},
                )
            ]
        )  # fmt: skip


#: What each provider sends about a job: event and body. One without an entry here fails.
SENT: Final[dict[str, list[tuple[str, str]]]] = {
    "github": [
        (path.name.partition(".")[0], path.read_text()) for path in sorted(GITHUB.glob("*.json"))
    ],
    "toy": [("build", '{"number": 7}')],
}
#: The header that each signs with.
SIGNED: Final = {"github": "x-hub-signature-256", "toy": "x-toy-signature"}


def declare_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new provider says about itself outside its own file: these two lines."""
    monkeypatch.setitem(PROVIDERS, "toy", Toy())
    monkeypatch.setitem(
        bridge.FORMS,
        "toy",
        bridge.Form(
            "toy", "x-toy-event", "x-toy-id", lambda _: None, lambda headers: "toy.example"
        ),
    )


@pytest.fixture(params=[*PROVIDERS, "toy"])
def provider(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Provider:
    if request.param == "toy":
        declare_toy(monkeypatch)
    return PROVIDERS[request.param]


def delivery(provider: Provider, event: str, payload: str = "{}") -> Delivery:
    return Delivery(
        id="5d2a3b80-b5f4-11f1-8a3f-0242ac120002", kind=f"{provider.name}.{event}", source="x",
        occurred_at=T0, received_at=T0, key="k", payload=payload,
    )  # fmt: skip


def test_contract_of_every_provider(provider: Provider) -> None:
    assert provider_of(f"{provider.name}.x") is provider
    assert provider.name
    assert not set(".:") & set(provider.name)
    assert not set(provider.events) & set(provider.other_events)
    # Facts: the same of the same, under its own keys; odd ones under declared names.
    for event, body in SENT[provider.name]:
        assert event in provider.events
        said = provider.facts(delivery(provider, event, body))
        assert said
        assert said.ignored is None
        again = provider.facts(delivery(provider, event, body))
        assert [each.model_dump_json() for each in said] == [e.model_dump_json() for e in again]
        assert all(each.key.startswith(f"{provider.name}:") for each in said)
        assert all(name in provider.odd_fields and why in ODD_REASONS for name, why in said.odd)
    # What says nothing about jobs is no failure; what is none of its events is one.
    for event in provider.other_events:
        said = provider.facts(delivery(provider, event))
        assert list(said) == []
        assert said.ignored in ("ping", "other")
    with pytest.raises(Unreadable) as caught:
        provider.facts(delivery(provider, "no_such_event"))
    assert caught.value.reason is Reason.UNKNOWN_KIND
    # Labels exist from the start.
    exported = generate_latest(Exporter(1).registry).decode()
    for event in provider.events:
        assert f'runnerstream_webhooks_total{{event="{event}"}} 0.0' in exported
    for name in provider.odd_fields:
        assert f'field="{name}"' in exported


def test_contract_of_signatures(provider: Provider) -> None:
    header, body, secrets = SIGNED[provider.name], b"\xff body \x00", [b"old", b"new"]
    for secret in secrets:
        right = "sha256=" + hmac.new(secret, body, sha256).hexdigest()
        provider.verify({header: right}, body, secrets)
        assert provider.sign(body, secret) == {header: right}
        for headers, signed in (
            ({header: right}, body + b"\n"),
            ({header: right[:-1]}, body),
            ({header: right.removeprefix("sha256=")}, body),
            ({header: ""}, body),
            ({header: "sha256=\u0394"}, body),
            ({}, body),
        ):
            with pytest.raises(Unreadable) as caught:
                provider.verify(headers, signed, secrets)
            assert caught.value.reason is Reason.BAD_SIGNATURE
            assert right not in caught.value.error
    with pytest.raises(Unreadable):
        provider.verify({header: right}, body, [b"another"])


def test_githubs_published_example_of_a_signature() -> None:
    # docs.github.com, "Validating webhook deliveries", testing the validation.
    secret, body = b"It's a Secret to Everybody", b"Hello, World!"
    wanted = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    GitHub().verify({"x-hub-signature-256": f"sha256={wanted}"}, body, [secret])


def test_sha1_alone_is_not_enough() -> None:
    body = b"{}"
    old = {"x-hub-signature": "sha1=" + hmac.new(b"s", body, "sha1").hexdigest()}
    with pytest.raises(Unreadable, match="no x-hub-signature-256"):
        GitHub().verify(old, body, [b"s"])
    with pytest.raises(Unreadable, match=r"not made of this body .*\(1\)"):
        GitHub().verify({"x-hub-signature-256": old["x-hub-signature"]}, body, [b"s"])


def test_a_toy_providers_deliveries_become_job_states(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    declare_toy(monkeypatch)
    body = b'{"number": 7}'
    headers: list[tuple[str, bytes | None]] = [("X-Toy-Event", b"build"), ("X-Toy-Id", b"d1")]
    record = FakeRecord(WEBHOOKS, body, headers=headers)
    [fact], notes = record_facts(record)
    assert (fact.key, fact.occurred_at) == ("toy:toy.example:7", T0)
    assert Note(metrics.WEBHOOKS, ("build",)) in notes
    # Through the topic into the ledger, and out as a state.
    ledger = Ledger(0, lambda key: None)
    ledger.apply(0, read(JOBS_RECORD, to_bytes(fact)))
    [output] = [each for each in ledger.flush().outputs if each.topic == JOB_STATES]
    state = read(JOB_STATE, output.value)
    assert (state.provider, state.host, state.job_id) == ("toy", "toy.example", "7")
    [job, *_] = rows.build([rows.decode(FakeRecord(JOB_STATES, output.value, output.key))])[0]
    assert dict(zip(job.table.columns, job.rows[0], strict=True))["provider"] == "toy"
    # As an envelope, from a file, into ClickHouse, and refused without a signature.
    envelope = delivery(PROVIDERS["toy"], "build", body.decode()).model_copy(
        update={"host": "toy.example"}
    )
    [fact], _ = webhook_facts(envelope.model_dump_json().encode())
    assert fact.key == "toy:toy.example:7"
    file = tmp_path / "one.json"
    file.write_text(json.dumps({"headers": {"X-Toy-Event": "build"}, "payload": {"number": 7}}))
    [said] = recorded.deliveries(file)
    assert PROVIDERS["toy"].facts(said)[0].key == "toy:toy.example:7"
    [table], _ = rows.build([rows.decode(record)])
    assert dict(zip(table.table.columns, table.rows[0], strict=True))["kind"] == "toy.build"
    with pytest.raises(Unreadable, match="x-toy-signature"):
        record_facts(record, {"toy": [b"s"]})


def test_a_provider_that_nobody_registered_is_an_unknown_kind() -> None:
    with pytest.raises(Unreadable) as caught:
        provider_of("gitlab.job")
    assert caught.value.reason is Reason.UNKNOWN_KIND
