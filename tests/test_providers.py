"""Every registered provider keeps the contract; a provider that is new needs no line elsewhere."""

from __future__ import annotations

import hmac
import json
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from prometheus_client import generate_latest

from pipeline import metrics
from pipeline import replay as recorded
from pipeline.agents.normalise import record_facts, to_bytes, webhook_facts
from pipeline.effects import Note
from pipeline.exporter import Exporter
from pipeline.ledger import Ledger
from pipeline.providers.base import (
    ODD_REASONS,
    Facts,
    Provider,
    Receiving,
    sign_sha256,
    verify_sha256,
)
from pipeline.providers.github import GitHub
from pipeline.providers.registry import PROVIDERS, provider_of
from sinks import rows
from tests.test_sink_rows import FakeRecord
from topics import bridge
from topics.catalogue import JOB_STATES, WEBHOOKS
from topics.envelope import MAX_STEPS
from topics.keys import job_key
from topics.models import (
    JOB_STATE,
    JOBS_RECORD,
    Clock,
    Conclusion,
    Delivery,
    JobAttributes,
    JobFact,
    Milestone,
    Reason,
    Step,
    Unreadable,
)
from topics.reading import read

T0 = 1_790_000_000_000
DATA = Path(__file__).parent / "data"
LONG = "x" * 10_000


class Toy(Receiving):
    """A forge that tells of jobs in a line of its own: ``<number> <state>``."""

    name: Final = "toy"
    events: Final = ("build",)
    other_events: Final = frozenset({"hello"})
    odd_fields: Final = ("state",)
    actions = ("told",)
    kept_headers = ("x-toy-",)
    signatures = ("x-toy-signature",)

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
        try:
            told = json.loads(delivery.payload)
            number = told["number"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Unreadable(Reason.BAD_PAYLOAD, str(error)) from error
        return Facts(
            [
                JobFact(
                    id=delivery.id, source=self.name, occurred_at=delivery.occurred_at,
                    received_at=delivery.received_at,
                    key=job_key(self.name, delivery.host, number), cause="toy.told",
                    times={Milestone.QUEUED: {Clock.DELIVERY: delivery.occurred_at}},
                )
            ]
        )  # fmt: skip


def sent(provider: str) -> list[tuple[str, str]]:
    """What a provider sends about a job: event and body."""
    if provider == "toy":
        return [("build", '{"number": 7}')]
    files = sorted((DATA / provider).glob("*.json"))
    assert files, "a provider without bodies here is not held to the contract"
    return [(path.name.partition(".")[0], path.read_text("utf-8")) for path in files]


class Secrets(NamedTuple):
    """Secrets, a header with what the first makes of :data:`BODY`, and what is no secret."""

    good: list[bytes]
    header: str
    value: str
    other: bytes
    #: Whether a signature is of one body only.
    signs: bool = True
    more: dict[str, str] = {}


BODY: Final = b"\xff body \x00"
HEX: Final = hmac.new(b"old", BODY, sha256).hexdigest()
KEYS: Final = [b"whsec_" + b64encode(bytes([n]) * 32) for n in range(3)]
SIGNED: Final = {
    "github": [Secrets([b"old", b"new"], "x-hub-signature-256", f"sha256={HEX}", b"no")],
    "gitea": [
        Secrets([b"old", b"new"], "x-gitea-signature", HEX, b"no"),
        Secrets([b"old", b"new"], "x-forgejo-signature", HEX, b"no"),
        Secrets([b"old", b"new"], "x-hub-signature-256", f"sha256={HEX}", b"no"),
    ],
    "gitlab": [
        Secrets([b"old", b"new"], "x-gitlab-token", "old", b"no", signs=False),
        # Beside a secret token, as while a hook is changed from one to the other.
        Secrets(
            [KEYS[0], KEYS[1], b"old"],
            "webhook-signature",
            "v1,"
            + b64encode(hmac.new(bytes(32), b"m1.1790000000." + BODY, sha256).digest()).decode(),
            KEYS[2],
            more={"webhook-id": "m1", "webhook-timestamp": "1790000000"},
        ),
    ],
    "toy": [Secrets([b"old", b"new"], "x-toy-signature", f"sha256={HEX}", b"no")],
}


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
    for event, body in sent(provider.name):
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


def test_contract_of_receiving(provider: Provider) -> None:
    form = bridge.FORMS[provider.name]
    secret, kept = b"s", provider.kept_headers
    # What the worker needs of the headers is among those that are kept.
    needed = (form.event, form.delivery, *form.also, *form.also.values(), form.named_host)
    assert all(name.startswith(kept) for name in (*needed, *provider.signatures) if name)
    assert provider.content_types
    for event, text in sent(provider.name):
        body = text.encode()
        told = dict(provider.sign(body, secret))
        assert provider.signed(told)
        assert not provider.signed({})
        assert provider.signed_at({}) is None
        assert isinstance(provider.senders(told, body), (list, tuple))
        # The key is that of the facts of this delivery, in which the host is told by the headers.
        made = delivery(provider, event, text).model_copy(update={"host": form.host(told)})
        seen = provider.glance(event, told, body)
        assert seen.key == provider.facts(made)[0].key
        assert seen.action in (*provider.actions, "other")
        assert not seen.malformed
        assert provider.setup(event, body) == {}
    # Whatever comes, nothing is raised.
    deep = b'{"workflow_job": ' + b"[" * 50_000
    for event in (*provider.events, *provider.other_events):
        for odd in (b"", b"{", b"[]", b"\xff", b"null", b'{"workflow_job": 3}', deep):
            provider.senders({}, odd)
            provider.setup(event, odd)
            if event in provider.events and event not in form.asked:
                assert provider.glance(event, {}, odd).malformed


def test_contract_of_signatures(provider: Provider) -> None:
    for known in SIGNED[provider.name]:
        good, header, value, other, signs, more = known
        assert header in provider.signatures
        told = more | {header: value}
        # Any of the secrets, alone and among others.
        for secrets in ([good[0]], [other, good[0]], good):
            provider.verify(told, BODY, secrets)
        for secret in good:
            made = provider.sign(BODY, secret)
            assert set(made) <= set(provider.signatures)
            provider.verify(made, BODY, good)
            if signs and secret != b"old":
                with pytest.raises(Unreadable):
                    provider.verify(made, BODY + b" ", good)
        sha1 = {"x-hub-signature": "sha1=" + hmac.new(good[0], BODY, "sha1").hexdigest()}
        wrong = [({header: value[:-1]}, BODY), ({header: value[1:]}, BODY), ({header: ""}, BODY),
                 ({header: "\u0394"}, BODY), ({header: value + value}, BODY), ({}, BODY),
                 (sha1, BODY), ({header: sha1["x-hub-signature"]}, BODY)]  # fmt: skip
        if signs:
            wrong += [({header: value}, body) for body in (BODY + b"\n", BODY[1:], b"")]
        for headers, body in wrong:
            refused(provider, more | headers, body, good, value)
        refused(provider, told, BODY, [other], value)
        for name in more:  # what the signature covers beside the body
            refused(provider, told | {name: "2"}, BODY, good, value)
            refused(provider, {n: v for n, v in told.items() if n != name}, BODY, good, value)


def refused(
    provider: Provider, headers: dict[str, str], body: bytes, secrets: list[bytes], right: str
) -> None:
    with pytest.raises(Unreadable) as caught:
        provider.verify(headers, body, secrets)
    assert caught.value.reason is Reason.BAD_SIGNATURE
    assert right not in caught.value.error


def test_a_body_that_was_written_anew_is_refused(provider: Provider) -> None:
    for _, body in sent(provider.name):
        made = provider.sign(body.encode(), b"old")
        again = json.dumps(json.loads(body), separators=(",", ":")).encode()
        assert again != body.encode()
        if SIGNED[provider.name][0].signs:
            refused(provider, dict(made), again, [b"old"], "old")


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
        provider_of("bitbucket.job")
    assert caught.value.reason is Reason.UNKNOWN_KIND


# --- who started a job's run, by what, for which pull request, from where; and the steps ----------


ISO, MS = "2026-09-21T14:13:20Z", T0
LATER, LATER_MS = "2026-09-21T14:13:21.500Z", T0 + 1_500
ZERO = "0001-01-01T00:00:00Z"
#: The first half of a character, which no encoding has: Python writes it as an escape.
HALF = "\ud83d"
RUN: Final[dict[str, Any]] = {
    "id": 5,
    "run_attempt": 1,
    "status": "in_progress",
    "event": "pull_request",
    "actor": {"login": "ann"},
    "triggering_actor": {"login": "bob"},
    "pull_requests": [{"number": 12}],
    "head_repository": {"full_name": "ann/app"},
}
STEP: Final[dict[str, Any]] = {
    "number": 1,
    "name": "Set up job",
    "status": "completed",
    "conclusion": "success",
    "started_at": ISO,
    "completed_at": LATER,
}


def told_of(event: str, body: dict[str, Any]) -> tuple[Any, Counter[tuple[str, str]]]:
    """The first fact of a GitHub body, as it arrives on the other side, and what was odd."""
    said = GitHub().facts(delivery(GitHub(), event, json.dumps(body)))
    fact = JOBS_RECORD.validate_json(to_bytes(said[0]))
    assert fact == said[0]
    assert all(name in GitHub.odd_fields and why in ODD_REASONS for name, why in said.odd)
    return fact, said.odd


def run_of(**changes: Any) -> tuple[JobAttributes, Counter[tuple[str, str]]]:
    fact, odd = told_of("workflow_run", {"action": "x", "workflow_run": RUN | changes})
    assert fact.job is not None
    return fact.job, odd


def job_of(steps: Any, **changes: Any) -> tuple[JobFact, Counter[tuple[str, str]]]:
    job = {"id": 7, "status": "in_progress", "started_at": ISO, "steps": steps}
    body = {"action": "in_progress", "workflow_job": job, "sender": {"login": "ann"}} | changes
    return told_of("workflow_job", body)


def test_a_github_run_says_who_started_it_by_what_and_from_where() -> None:
    right = JobAttributes(
        run_id=5, actor="ann", trigger="pull_request", pull_request=12, head_repo="ann/app"
    )
    assert run_of() == (right, {})


def test_a_github_job_says_who_caused_its_event_and_leaves_the_rest_to_the_run() -> None:
    fact, odd = job_of([])
    assert fact.job == JobAttributes(actor="ann")
    assert odd == {}


@pytest.mark.parametrize("field", ["actor", "trigger", "pull_request", "head_repo"])
def test_what_a_github_run_leaves_out_is_blank_and_not_odd(field: str) -> None:
    names = {
        "actor": ("actor", "triggering_actor"),
        "trigger": ("event",),
        "pull_request": ("pull_requests",),
        "head_repo": ("head_repository",),
    }[field]
    blank = JobAttributes.model_fields[field].default
    for value in (None, *([[]] if field == "pull_request" else [])):
        said, odd = run_of(**dict.fromkeys(names, value))
        # A deleted account and a fork that is gone are null; a run of no pull request has [].
        assert (getattr(said, field), odd) == (blank, {})
        assert said.model_copy(update={field: getattr(run_of()[0], field)}) == run_of()[0]


@pytest.mark.parametrize(
    ("changes", "field", "value", "odd"),
    [
        # Who re-runs it counts only when nobody is known to have started it.
        ({"actor": None}, "actor", "bob", None),
        ({"actor": {}}, "actor", "bob", None),
        ({"actor": {"login": ""}}, "actor", "bob", None),
        ({"actor": "ann"}, "actor", "bob", "actor"),
        ({"actor": {"login": 7}}, "actor", "bob", "actor"),
        ({"actor": [], "triggering_actor": []}, "actor", "", "actor"),
        ({"actor": {"login": LONG}}, "actor", LONG[:1024], None),
        ({"actor": {"login": f"a{HALF}"}}, "actor", "a\ufffd", None),
        ({"actor": {"login": "dependabot[bot]"}}, "actor", "dependabot[bot]", None),
        ({"event": 7}, "trigger", "", "event"),
        ({"event": ["push"]}, "trigger", "", "event"),
        ({"event": LONG}, "trigger", LONG[:1024], None),
        # A word that GitHub may add some day.
        ({"event": "moon_phase"}, "trigger", "moon_phase", None),
        ({"pull_requests": {"number": 12}}, "pull_request", 0, "pull_requests"),
        ({"pull_requests": {}}, "pull_request", 0, "pull_requests"),
        ({"pull_requests": 0}, "pull_request", 0, "pull_requests"),
        ({"pull_requests": 12}, "pull_request", 0, "pull_requests"),
        ({"pull_requests": "12"}, "pull_request", 0, "pull_requests"),
        ({"pull_requests": [12]}, "pull_request", 0, "pull_requests"),
        ({"pull_requests": [None]}, "pull_request", 0, "pull_requests"),
        ({"pull_requests": [{}]}, "pull_request", 0, "pull_requests"),
        ({"pull_requests": [{"number": 0}]}, "pull_request", 0, "pull_requests"),
        ({"pull_requests": [{"number": -3}]}, "pull_request", 0, "pull_requests"),
        ({"pull_requests": [{"number": True}]}, "pull_request", 0, "pull_requests"),
        ({"pull_requests": [{"number": 2**63}]}, "pull_request", 0, "pull_requests"),
        ({"pull_requests": [{"number": 1.5}]}, "pull_request", 0, "pull_requests"),
        ({"pull_requests": [{"number": "12"}]}, "pull_request", 12, None),
        ({"pull_requests": [{"number": 9}, {"number": 3}]}, "pull_request", 3, None),
        ({"pull_requests": [{"number": 0}, {"number": 3}]}, "pull_request", 3, "pull_requests"),
        ({"head_repository": {}}, "head_repo", "", None),
        ({"head_repository": "ann/app"}, "head_repo", "", "head_repository"),
        ({"head_repository": []}, "head_repo", "", "head_repository"),
        ({"head_repository": {"full_name": 7}}, "head_repo", "", "head_repository"),
        ({"head_repository": {"full_name": LONG}}, "head_repo", LONG[:1024], None),
    ],
)
def test_odd_words_of_a_github_run_cost_that_field_alone(
    changes: dict[str, Any], field: str, value: Any, odd: str | None
) -> None:
    said, found = run_of(**changes)
    assert getattr(said, field) == value
    assert {name for name, _ in found} == ({odd} if odd else set())
    # All else is as it was.
    right, _ = run_of()
    assert said.model_copy(update={field: getattr(right, field)}) == right


@pytest.mark.parametrize("sender", [None, {}, {"login": None}, {"login": 7}, "ann", [], 0])
def test_an_odd_sender_leaves_a_github_job_without_an_actor(sender: Any) -> None:
    fact, odd = job_of([STEP], sender=sender)
    assert fact.job == JobAttributes()
    assert fact.steps
    assert (("sender", "wrong_type") in odd) == (sender not in (None, {}, {"login": None}))


FIRST = Step(
    number=1, name="Set up job", conclusion=Conclusion.SUCCESS, started_at=MS, completed_at=LATER_MS
)


@pytest.mark.parametrize(
    ("listed", "told", "odd"),
    [
        ([STEP], (FIRST,), 0),
        ([], (), 0),
        (None, (), 0),
        # By number, and not in the order of the list; numbers may leave some out.
        (
            [{"number": 9, "name": "b"}, STEP, {"number": 4, "name": "a"}],
            (FIRST, Step(number=4, name="a"), Step(number=9, name="b")),
            0,
        ),
        # One that is under way or has not begun.
        (
            [STEP | {"conclusion": None, "completed_at": None}],
            (FIRST.model_copy(update={"conclusion": None, "completed_at": None}),),
            0,
        ),
        # Zero times are missing.
        (
            [STEP | {"started_at": ZERO, "completed_at": ZERO}],
            (FIRST.model_copy(update={"started_at": None, "completed_at": None}),),
            0,
        ),
        # No number: no step of which anything else could be told later.
        ([{"name": "x", "started_at": ISO}, STEP], (FIRST,), 0),
        ([STEP | {"number": None}, STEP], (FIRST,), 0),
        ([STEP | {"number": 0}, STEP | {"number": -1}, STEP], (FIRST,), 2),
        ([STEP | {"number": "one"}, STEP | {"number": [1]}, STEP], (FIRST,), 2),
        ([STEP | {"number": 1_000_001}, STEP | {"number": 2**70}, STEP], (FIRST,), 2),
        ([STEP | {"number": "1"}], (FIRST,), 0),
        # The same number twice: one step.
        ([STEP | {"name": "first"}, STEP], (FIRST,), 0),
        # Names.
        ([STEP | {"name": LONG}], (FIRST.model_copy(update={"name": LONG[:128]}),), 0),
        ([STEP | {"name": f"a{HALF}"}], (FIRST.model_copy(update={"name": "a\ufffd"}),), 0),
        ([STEP | {"name": None}], (FIRST.model_copy(update={"name": ""}),), 0),
        ([STEP | {"name": {"a": 1}}], (FIRST.model_copy(update={"name": ""}),), 1),
        # Conclusions.
        (
            [STEP | {"conclusion": "exploded"}],
            (FIRST.model_copy(update={"conclusion": Conclusion.UNKNOWN}),),
            0,
        ),
        ([STEP | {"conclusion": 1}], (FIRST.model_copy(update={"conclusion": None}),), 1),
        # Times.
        ([STEP | {"completed_at": "soon"}], (FIRST.model_copy(update={"completed_at": None}),), 1),
        ([STEP | {"completed_at": True}], (FIRST.model_copy(update={"completed_at": None}),), 1),
        ([STEP | {"started_at": "soon"}], (FIRST.model_copy(update={"started_at": None}),), 1),
        (
            [STEP | {"completed_at": "2090-01-01T00:00:00Z"}],
            (FIRST.model_copy(update={"completed_at": None}),),
            1,
        ),
        # What is no list of steps.
        ({"number": 1}, (), 1),
        ("Set up job", (), 1),
        (7, (), 1),
        ([7, None, "x", STEP], (FIRST,), 1),
        ([[STEP]], (), 1),
    ],
)
def test_steps_of_a_github_job(listed: Any, told: tuple[Step, ...], odd: int) -> None:
    fact, found = job_of(listed)
    assert fact.steps == told
    assert (sum(found.values()), {name for name, _ in found}) == (odd, {"steps"} if odd else set())


def test_of_many_steps_of_a_github_job_those_with_the_smallest_numbers_are_told() -> None:
    listed = [{"number": number, "name": LONG} for number in range(500, 0, -1)]
    fact, odd = job_of(listed)
    assert [step.number for step in fact.steps] == list(range(1, MAX_STEPS + 1))
    assert odd == {}
    # However many and long they are: a fact and a state stay far below what a broker takes.
    assert len(to_bytes(fact)) < 100_000
