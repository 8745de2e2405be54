"""The gateway takes what Gitea, Forgejo and GitLab send, by real HTTP on a real broker."""

from __future__ import annotations

import hmac
import json
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import pytest

from pipeline.agents.normalise import record_facts, to_bytes
from pipeline.gateway import Keyring
from pipeline.gateway.server import FRESH_MS
from pipeline.providers.registry import PROVIDERS
from sinks import rows
from tests.support.brokers import Broker, broker
from tests.support.gateways import DATA, Reply, Served, bodies, guid, ready, serve, until, written
from topics.apply import apply
from topics.catalogue import catalogue
from topics.dead_letters import dead_letter
from topics.models import Delivery, Unreadable

TOKEN: Final = b"hush-hush"
KEY: Final = b"whsec_" + b64encode(bytes(range(32)))
HOOK: Final = "13792a34-cac6-4fda-95a8-c58e00a3954e"
REPOSITORY: Final = "424242"
KEYRING: Final = Keyring(
    {"github": [b"githubs"], "gitea": [b"newer", TOKEN], "gitlab": [KEY, TOKEN]},
    {("gitea", REPOSITORY): [b"own"], ("gitlab", HOOK): [b"own"]},
)
SECRETS: Final = {"gitea": [TOKEN], "gitlab": [KEY, TOKEN]}
EVENTS: Final = {"job": "Job Hook", "pipeline": "Pipeline Hook"}

Given = Mapping[str, str | None]


def hexed(body: bytes, secret: bytes = TOKEN, digest: str = "sha256") -> str:
    return hmac.digest(secret, body, digest).hex()


def gitea(body: bytes, event: str = "workflow_job") -> dict[str, str | None]:
    """Gitea sends its own headers, those of Gogs, and GitHub's."""
    told = guid()
    return {
        "X-Gitea-Event": event, "X-Gitea-Event-Type": event, "X-Gitea-Delivery": told,
        "X-Gitea-Signature": hexed(body), "X-Gogs-Event": event, "X-Gogs-Delivery": told,
        "X-Gogs-Signature": hexed(body), "X-GitHub-Event": event, "X-GitHub-Delivery": told,
        "X-Hub-Signature": "sha1=" + hexed(body, digest="sha1"),
        "X-Hub-Signature-256": "sha256=" + hexed(body),
    }  # fmt: skip


def forgejo(body: bytes, event: str = "workflow_job") -> dict[str, str | None]:
    return {"X-Forgejo-Event": event, "X-Forgejo-Delivery": guid(),
            "X-Forgejo-Signature": hexed(body)}  # fmt: skip


def gitlab(body: bytes, event: str = "job") -> dict[str, str | None]:
    return {
        "X-Gitlab-Event": EVENTS.get(event, event), "X-Gitlab-Event-UUID": guid(),
        "X-Gitlab-Instance": "https://lab.example.com", "X-Gitlab-Token": TOKEN.decode(),
    }  # fmt: skip


def signed(
    body: bytes, event: str = "job", ago_s: int = 0, at: str = "", key: bytes = KEY
) -> dict[str, str | None]:
    """GitLab with a signing token."""
    name, at = guid(), at or str(int(time.time()) - ago_s)
    made = hmac.digest(b64decode(key[6:]), f"{name}.{at}.".encode() + body, "sha256")
    return gitlab(body, event) | {
        "X-Gitlab-Token": None, "webhook-id": name, "webhook-timestamp": at,
        "webhook-signature": "v1," + b64encode(made).decode(),
    }  # fmt: skip


SENDERS: Final[dict[str, Callable[..., dict[str, str | None]]]] = {
    "gitea": gitea, "forgejo": forgejo, "gitlab": gitlab, "signed": signed,
}  # fmt: skip
FORGE: Final = {"gitea": "gitea", "forgejo": "gitea", "gitlab": "gitlab", "signed": "gitlab"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as made:
        apply({"bootstrap_servers": made.bootstrap}, catalogue(partitions=2))
        yield made


@pytest.fixture(scope="module")
def gate(running: Broker) -> Iterator[Served]:
    with serve(running.bootstrap, KEYRING) as made:
        ready(made)
        yield made


def post(gate: Served, forge: str, body: bytes, given: Given, kind: str = "") -> Reply:
    told = {"Content-Type": kind or "application/json", **given}
    sent = {name: value for name, value in told.items() if value is not None}
    return gate.ask(body, sent, path=f"/webhooks/{forge}")


def recorded(forge: str) -> list[Path]:
    found = sorted((DATA / forge).glob("*.json"))
    assert len(found) == 7
    return found


def a_body(sender: str, **more: Any) -> bytes:
    name = {"gitea": "workflow_job.queued", "gitlab": "job.running"}[FORGE[sender]]
    made = json.loads((DATA / FORGE[sender] / f"{name}.json").read_bytes()) | more
    return json.dumps(made | {"said_in_test": guid()}).encode()


@pytest.mark.parametrize("sender", SENDERS)
def test_every_recorded_delivery_arrives_byte_for_byte_as_the_same_facts(
    gate: Served, running: Broker, sender: str
) -> None:
    provider = PROVIDERS[FORGE[sender]]
    sent = {}
    for path in recorded(provider.name):
        event, body = path.name.partition(".")[0], path.read_bytes()
        told = SENDERS[sender](body, event)
        reply = post(gate, provider.name, body, told)
        assert (path.name, reply.status, reply.said["outcome"]) == (path.name, 202, "accepted")
        name = {"gitea": "X-Gitea-Delivery", "forgejo": "X-Forgejo-Delivery"}.get(sender)
        sent[str(told[name or "X-Gitlab-Event-UUID"])] = event, told, body
    found = 0
    for record in written(running.bootstrap):
        headers = {name: value.decode() for name, value in record.headers}
        ids = {each for each in headers.values() if each in sent}
        if not ids:
            continue
        found += 1
        event, told, body = sent[ids.pop()]
        assert record.value == body
        kept = {name.lower(): value for name, value in told.items() if value is not None}
        assert headers == kept | {"content-type": "application/json"}
        facts, _ = record_facts(record, SECRETS)
        wanted = provider.facts(
            Delivery(
                id=next(each for each in kept.values() if each in sent), source=provider.name,
                kind=f"{provider.name}.{event}", key="-", occurred_at=record.timestamp,
                received_at=record.timestamp, headers=headers, payload=body.decode(),
                host="lab.example.com" if provider.name == "gitlab" else "github.com",
            )
        )  # fmt: skip
        assert [to_bytes(fact) for fact in facts] == [to_bytes(fact) for fact in wanted]
        assert record.key == wanted[0].key.encode()
    assert found == len(sent) == 7
    assert gate.metric("last_delivery_timestamp_seconds", provider=provider.name) > 1.7e9


def test_what_happened_is_counted_in_the_words_of_the_provider(gate: Served) -> None:
    for sender, action in (("gitea", "queued"), ("signed", "running")):
        labels = {"provider": FORGE[sender], "action": action, "outcome": "accepted"}
        before = gate.metric("requests_total", **labels)
        body = a_body(sender)
        assert post(gate, FORGE[sender], body, SENDERS[sender](body)).status == 202
        assert gate.metric("requests_total", **labels) == before + 1


ALL = ("gitea", "forgejo", "gitlab", "signed")
SIGNERS = ("gitea", "forgejo", "signed")
#: How each names what it signs with.
SIGNATURES: Final = {
    "gitea": "X-Gitea-Signature", "forgejo": "X-Forgejo-Signature", "gitlab": "X-Gitlab-Token",
    "signed": "webhook-signature",
}  # fmt: skip
#: Gitea's further signatures; without them too there is none.
_NO_MORE: Final = {"X-Hub-Signature-256": None}


@pytest.mark.parametrize(
    ("how", "status", "sender"),
    [
        *(("missing", 401, sender) for sender in ALL),
        *(("empty", 401, sender) for sender in ALL),
        *(("sha1 only", 401, sender) for sender in ALL),
        *(("wrong", 403, sender) for sender in ALL),
        *(("truncated", 403, sender) for sender in ALL),
        *(("twice", 400, sender) for sender in ALL),
        *(("of another provider", 403, sender) for sender in ALL),
        *(("of other bytes", 403, sender) for sender in SIGNERS),
        *(("re-encoded", 403, sender) for sender in SIGNERS),
        *(("sha1 as sha256", 403, sender) for sender in SIGNERS),
    ],
)
def test_what_is_not_signed_is_refused(
    gate: Served, running: Broker, how: str, status: int, sender: str
) -> None:
    body = a_body(sender)
    told, name = SENDERS[sender](body), SIGNATURES[sender]
    right = str(told[name])
    sha1 = "sha1=" + hexed(body, digest="sha1")
    key = b64encode(bytes(32)).decode()
    given: dict[str, Given] = {
        "missing": _NO_MORE | {name: None},
        "empty": _NO_MORE | {name: " "},
        "sha1 only": _NO_MORE | {name: None, "X-Hub-Signature": sha1},
        "wrong": {name: "v1," + key if sender == "signed" else "0" * len(right)},
        "truncated": {name: right[:-1]},
        "twice": {name.upper(): right},
        "of another provider": {
            "gitlab": {name: "githubs"},
            "signed": signed(body, key=b"whsec_" + key.encode()),
        }.get(sender, {name: hexed(body, b"githubs")}),
        "of other bytes": {name: SENDERS[sender](body + b" ")[name]},
        "re-encoded": {},
        "sha1 as sha256": {name: sha1.removeprefix("sha1=")},
    }
    sent = json.dumps(json.loads(body), separators=(",", ":")).encode()
    reply = post(gate, FORGE[sender], sent if how == "re-encoded" else body, told | given[how])
    assert reply.status == status
    assert right not in str(reply)
    assert not {body, sent} & set(bodies(running.bootstrap))


@pytest.mark.parametrize(
    ("status", "more"),
    [
        (202, {"ago_s": FRESH_MS // 1000 - 60}),
        (202, {"ago_s": 60 - FRESH_MS // 1000}),
        (403, {"ago_s": FRESH_MS // 1000 + 2}),
        (403, {"ago_s": -FRESH_MS // 1000 - 60}),
        (403, {"at": "soon"}),
        (403, {"at": "9" * 20}),
    ],
    ids=str,
)
def test_what_was_signed_at_another_time_is_refused(
    gate: Served, running: Broker, status: int, more: dict[str, Any]
) -> None:
    body = a_body("signed")
    reply = post(gate, "gitlab", body, signed(body, **more))
    assert reply.status == status
    assert (body in bodies(running.bootstrap)) == (status == 202)
    if status == 403:
        assert (reply.said["outcome"], "5 minutes" in reply.said["message"]) == (
            "unauthenticated", True,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "forge", "more", "kind"),
    [
        # A signing token shown is no proof, and the rest of a signature is none.
        (403, "gitlab", {"X-Gitlab-Token": KEY.decode()}, ""),
        (401, "gitlab", {"X-Gitlab-Token": None, "webhook-id": "1", "webhook-timestamp": "1"}, ""),
        # A signature that can be checked decides, whatever token is beside it.
        (403, "gitlab", {"webhook-signature": "v1,AAAA", "webhook-timestamp": "1"}, ""),
        (400, "gitlab", {"X-Gitlab-Event": None}, ""),
        (415, "gitlab", {}, "application/x-www-form-urlencoded"),
        # Signed with GitHub's way of saying it, and named in Gitea's.
        (202, "gitea", {"X-Gitea-Signature": None}, ""),
        # Workers would take it as GitHub's.
        (400, "gitea", {"X-Gitea-Event": None}, ""),
        (415, "gitea", {}, "application/x-www-form-urlencoded"),
        (403, "github", {}, ""),
        (200, "gitea", {"X-Gitea-Event": "push"}, ""),
        (200, "gitlab", {"X-Gitlab-Event": "Merge Request Hook"}, ""),
    ],
    ids=str,
)
def test_each_has_its_answer(
    gate: Served, status: int, forge: str, more: dict[str, str | None], kind: str
) -> None:
    sender = "gitlab" if forge == "gitlab" else "gitea"
    body = a_body(sender)
    told = SENDERS[sender](body) | more
    if kind:
        body = urlencode({"payload": body.decode()}).encode()
    assert post(gate, forge, body, told, kind).status == status


@pytest.mark.parametrize(
    ("status", "secret", "mine"), [(202, b"own", True), (403, TOKEN, True), (403, b"own", False)]
)
def test_a_repository_of_gitea_or_a_hook_of_gitlab_may_have_a_secret_of_its_own(
    gate: Served, status: int, secret: bytes, mine: bool
) -> None:
    body = a_body("gitea", **({"repository": {"id": int(REPOSITORY)}} if mine else {}))
    told = gitea(body) | {"X-Gitea-Signature": hexed(body, secret)}
    assert post(gate, "gitea", body, told).status == status
    body = a_body("gitlab")
    told = gitlab(body) | {"X-Gitlab-Token": secret.decode()}
    told["X-Gitlab-Webhook-UUID"] = HOOK if mine else HOOK.replace("1", "2")
    assert post(gate, "gitlab", body, told).status == status


def test_a_token_is_in_the_record_and_nowhere_else(
    gate: Served, running: Broker, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = "a-wrong-one"
    refused = post(gate, "gitlab", b"{}", gitlab(b"{}") | {"X-Gitlab-Token": wrong})
    body = b'{"build_id": "none", "at": "%s"}' % guid().encode()
    told = gitlab(body)
    odd = post(gate, "gitlab", body, told)
    assert (refused.status, odd.status, odd.said["outcome"]) == (403, 202, "malformed")
    logged = ""

    def shown() -> bool:
        nonlocal logged
        logged += capfd.readouterr().err
        return str(told["X-Gitlab-Event-UUID"]) in logged

    until(shown)
    [record] = [each for each in written(running.bootstrap) if each.value == body]
    assert dict(record.headers)["x-gitlab-token"] == TOKEN
    with pytest.raises(Unreadable) as caught:
        record_facts(record, SECRETS)
    letter = dead_letter("normalise", record, caught.value, record.timestamp)
    [table], _ = rows.build([rows.decode(record)])
    for told_of_it in (logged, refused, odd, letter, table.rows):
        assert TOKEN.decode() not in repr(told_of_it)
        assert wrong not in repr(told_of_it)
