"""The gateway's parts without a server: secrets, what is held, who has to go, settings."""

from __future__ import annotations

import io
import json
import ssl
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.addresses import host_and_port, secret_files
from pipeline.door import HEADER_S, IDLE_S, Door
from pipeline.gateway import Keyring, openapi
from pipeline.gateway.access import AccessLog
from pipeline.gateway.answers import HOOK_ANSWERS, NOT_ALLOWED, NOT_FOUND, Answer, Outcome
from pipeline.gateway.metrics import GatewayMetrics
from pipeline.gateway.server import SMALL_BODY, Held
from pipeline.providers.registry import PROVIDERS
from pipeline.roles import RoleFailed, wanted
from pipeline.roles.gateway import gateway_of, keyring_of
from pipeline.settings import load
from topics import bridge

SECRET = "hush-hush"


# -- secrets ---------------------------------------------------------------------------------------


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    found = tmp_path / "secrets"
    found.mkdir()
    (found / "github").write_text(f" new \n\n{SECRET}\n")
    (found / "github.4711").write_bytes(b"own\xff\r\n")
    # As Kubernetes mounts them.
    (found / "..data").mkdir()
    return found


def test_secrets_are_read_from_files_and_never_shown(secrets: Path) -> None:
    assert secret_files(str(secrets)) == {
        ("github", ""): (b"new", SECRET.encode()),
        ("github", "4711"): (b"own\xff",),
    }
    settings = load(environment=False, webhook_secrets_dir=str(secrets), github_secrets="third")
    for name in ("gitea", "gitlab"):
        (secrets / name).write_text("theirs")
        (secrets / f"{name}.5-a").write_text("own")
        given = {"webhook_secrets_dir": str(secrets), f"{name}_secrets": "named"}
        other = load(environment=False, **given)
        assert other.webhook_secrets()[name] == (b"named", b"theirs", b"own")
        keys = keyring_of(other)
        assert keys.of(PROVIDERS[name], {}, b"") == (b"named", b"theirs")
        if name == "gitlab":
            assert keys.of(PROVIDERS[name], {"x-gitlab-webhook-uuid": "5-a"}, b"") == (b"own",)
    # A worker takes what any gateway takes.
    assert set(settings.webhook_secrets()["github"]) == {
        b"third", b"new", SECRET.encode(), b"own\xff",
    }  # fmt: skip
    keyring = keyring_of(settings)
    github = PROVIDERS["github"]
    assert keyring.of(github, {}, b"") == (b"third", b"new", SECRET.encode())
    assert keyring.of(github, {"x-github-hook-id": "4711"}, b"") == (b"own\xff",)
    assert SECRET not in repr(keyring) + repr(settings)


def test_what_names_no_secret_is_told_by_its_file(secrets: Path) -> None:
    for name, text in (("github.1", " \n"), ("Github", "x"), ("github.1.2", "x"), ("git hub", "x")):
        wrong = secrets / name
        wrong.write_text(text)
        with pytest.raises(ValueError, match=name.partition(" ")[0]) as caught:
            load(environment=False, webhook_secrets_dir=str(secrets))
        assert SECRET not in str(caught.value)
        wrong.unlink()
    with pytest.raises(ValueError, match="No such file"):
        load(environment=False, webhook_secrets_dir=str(secrets / "none"))
    (secrets / "gitbub").write_text("x")
    with pytest.raises(RoleFailed, match="no provider gitbub"):
        keyring_of(load(environment=False, webhook_secrets_dir=str(secrets)))


def test_a_provider_without_secrets_has_none() -> None:
    keyring = Keyring({"github": []}, {("github", "1"): [b"x"]})
    assert keyring.of(PROVIDERS["github"], {}, b"") == ()
    assert keyring.knows("github")
    assert not Keyring({"github": []}, {}).knows("github")


# -- settings --------------------------------------------------------------------------------------


def test_a_worker_has_a_gateway_when_the_settings_say_where() -> None:
    assert "gateway" not in [role.name for role in wanted(load(environment=False))]
    listens = load(environment=False, gateway_listen="127.0.0.1:0", github_secrets="x")
    assert [role.name for role in wanted(listens)][-1] == "gateway"
    made = gateway_of(load(
        environment=False, gateway_listen="[::1]:8080", github_secrets="x", app_id="mine",
        gateway_allow="10.0.0.0/8, 192.30.252.0/22",
    ))  # fmt: skip
    assert (made.config.host, made.config.port) == ("::1", 8080)
    assert [str(network) for network in made.config.allowed] == ["10.0.0.0/8", "192.30.252.0/22"]
    assert made.config.kafka["client_id"] == "mine-gateway"
    assert not made.status().ready


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "GATEWAY_LISTEN"),
        ({"gateway_listen": "a:1"}, "no secret is set"),
        ({"gateway_listen": "a:1", "github_secrets": "x", "gateway_cert_file": "/dev/null",
          "gateway_key_file": "/dev/null"}, "not a certificate"),
        ({"gateway_listen": "a:1", "github_secrets": "x", "gateway_cert_file": "/no",
          "gateway_key_file": "/no"}, "GATEWAY_CERT_FILE"),
    ],
)  # fmt: skip
def test_what_is_missing_is_told(given: dict[str, Any], told: str) -> None:
    with pytest.raises(RoleFailed, match=told):
        gateway_of(load(environment=False, **given))


@pytest.mark.parametrize(
    "given",
    [
        {"gateway_listen": "8080"}, {"gateway_listen": "a:70000"}, {"gateway_listen": ":1"},
        {"gateway_allow": "github.com"}, {"gateway_cert_file": "x"}, {"gateway_deadline": 0},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="gateway_"):
        load(environment=False, **given)
    assert host_and_port("0.0.0.0:8080") == ("0.0.0.0", 8080)


# -- what is held, and who has to go ---------------------------------------------------------------


def test_small_bodies_are_held_whatever_else_is() -> None:
    held = Held(1 << 20)
    assert held.take(1 << 20, 0)
    assert not held.take(1, SMALL_BODY)
    assert not held.take(SMALL_BODY + 1, 0)
    assert held.take(SMALL_BODY, 0)
    held.give((1 << 20) + SMALL_BODY)
    assert held.bytes == 0


class Connection:
    def __init__(self) -> None:
        self.transport, self.aborted = self, False

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def test_who_says_nothing_goes_first_then_who_sends_and_then_who_waits() -> None:
    now = 0.0
    door = Door(3, lambda: now)
    asks, sends, silent = (Connection() for _ in range(3))
    for one in (asks, sends, silent):
        door.enter(one)
        door.seat(one, one)
        now += 1
    door.sends(asks)
    door.asks(asks)
    door.sends(sends)
    gone = []
    for _ in range(3):
        door.make_room()
        gone.append([one.aborted for one in (asks, sends, silent)])
        late = Connection()
        door.enter(late)
        door.seat(late, late)
        door.asks(late)
        now += 1
    assert gone == [[False, False, True], [False, True, True], [True, True, True]]
    assert door.evicted == 3


def test_of_a_large_house_several_slow_ones_go_at_once_and_nobody_who_waits() -> None:
    now = 0.0
    door = Door(256, lambda: now)
    slow, asks = [Connection() for _ in range(3)], [Connection() for _ in range(253)]
    for one in (*asks, *slow):
        door.enter(one)
        door.seat(one, one)
    for one in asks:
        door.asks(one)
    door.make_room()
    # They have only just come.
    assert [one.aborted for one in slow] == [True, False, False]
    late = Connection()
    door.enter(late)
    door.seat(late, late)
    now += 2
    door.make_room()
    assert all(one.aborted for one in (*slow, late))
    assert not any(one.aborted for one in asks)
    assert (door.evicted, len(door)) == (4, 253)


def test_a_slow_header_has_its_time_and_so_has_whoever_comes_back() -> None:
    now = 0.0
    door = Door(3, lambda: now)
    first, back = Connection(), Connection()
    for one in (first, back):
        door.enter(one)
        door.seat(one, one)
    door.sends(back)
    door.answered(back)
    now = HEADER_S + 1
    door.sweep()
    assert (first.aborted, back.aborted) == (True, False)
    now = IDLE_S + 1
    door.sweep()
    assert back.aborted
    assert door.overdue == 2


# -- what is declared ------------------------------------------------------------------------------


def test_the_document_says_every_answer_and_no_other() -> None:
    found = openapi.document("1")
    for name, provider in PROVIDERS.items():
        hook = found["paths"][f"/webhooks/{name}"]["post"]
        told: dict[str, list[Answer]] = {}
        for answer in (*HOOK_ANSWERS, NOT_FOUND, NOT_ALLOWED):
            told.setdefault(str(answer.status), []).append(answer)
        assert hook["responses"].keys() == told.keys()
        for status, answers in told.items():
            assert all(each.says in hook["responses"][status]["description"] for each in answers)
        assert hook["requestBody"]["content"].keys() == set(provider.content_types)
        assert bridge.FORMS[name].event in {each["name"] for each in hook["parameters"]}
    assert found["paths"].keys() >= {"/healthz", "/readyz", "/openapi.json"}


def test_every_series_is_there_from_the_start_and_its_labels_are_ours() -> None:
    metrics = GatewayMetrics()
    series = [
        sample for family in metrics.registry.collect() for sample in family.samples
        if not sample.name.endswith("_created")
    ]  # fmt: skip
    requests = [each for each in series if each.name == "runnerstream_gateway_requests_total"]
    known = sum(len(provider.actions) + 2 for provider in PROVIDERS.values()) + 1
    outcomes = Counter(each.labels["outcome"] for each in requests)
    assert set(outcomes) == {
        "accepted", "duplicate", "ignored", "unauthenticated", "malformed", "too_large", "timeout",
        "unavailable",
    }  # fmt: skip
    assert set(outcomes.values()) == {known}
    assert {each.value for each in series} == {0.0}
    # Nobody knows when the latest came before there was one.
    assert not [each for each in series if "last_delivery" in each.name]


def test_what_is_noted_is_counted_once_however_many_read() -> None:
    metrics = GatewayMetrics()
    told = {"provider": "github", "action": "queued", "outcome": "accepted"}
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            metrics.registry.get_sample_value("runnerstream_gateway_requests_total", told)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for each in readers:
        each.start()
    for number in range(5_000):
        metrics.answered("github", "queued", Outcome.ACCEPTED, 0.01)
        metrics.authentic("github", 9_000, 1_790_000_000.0 + number)
        metrics.acked(0.01)
    over.set()
    for each in readers:
        each.join()
    value = metrics.registry.get_sample_value
    assert value("runnerstream_gateway_requests_total", told) == 5_000
    of = {"provider": "github"}
    assert value("runnerstream_gateway_request_seconds_count", of) == 5_000
    assert value("runnerstream_gateway_body_bytes_sum", of) == 5_000 * 9_000
    assert value("runnerstream_gateway_ack_seconds_count") == 5_000
    latest = value("runnerstream_gateway_last_delivery_timestamp_seconds", of)
    assert latest == 1_790_000_000.0 + 4_999


@pytest.mark.parametrize("as_json", [True, False])
def test_the_access_log_is_written_in_one_go(as_json: bool) -> None:
    out = io.StringIO()
    log = AccessLog(as_json, out)
    said = {"provider": "github", "status": 202, "ms": 1.5, "delivery": "d-1"}
    for at in (1_790_000_000.0, 1_790_000_000.25):
        log.add(at, dict(said))
    assert out.getvalue() == ""
    log.write()
    log.write()
    first, second = out.getvalue().splitlines()
    if as_json:
        assert json.loads(second) == {
            "time": "2026-09-21T14:13:20.250+00:00", "level": "INFO",
            "logger": "pipeline.gateway.access", **said,
        }  # fmt: skip
    else:
        told = "INFO    pipeline.gateway.access: provider=github status=202 ms=1.5 delivery=d-1"
        assert first == f"2026-09-21T14:13:20.000+00:00 {told}"


def test_tls_is_asked_of_files(tmp_path: Path) -> None:
    import trustme

    made = trustme.CA().issue_cert("gate.example")
    made.cert_chain_pems[0].write_to_path(str(tmp_path / "crt"))
    made.private_key_pem.write_to_path(str(tmp_path / "key"))
    gateway = gateway_of(load(
        environment=False, gateway_listen="127.0.0.1:0", github_secrets="x",
        gateway_cert_file=str(tmp_path / "crt"), gateway_key_file=str(tmp_path / "key"),
    ))  # fmt: skip
    assert isinstance(gateway.config.tls, ssl.SSLContext)
