"""The gateway by real HTTP on a real broker: what is in Kafka, and what is refused."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from hashlib import sha1, sha256
from typing import Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.agents.normalise import record_facts, to_bytes
from pipeline.gateway import Keyring
from pipeline.gateway.server import MAX_BODY, SMALL_BODY
from tests.support import PATIENCE
from tests.support.brokers import Broker, broker, kind
from tests.support.gateways import (
    DATA,
    GITHUB,
    SECRET,
    Senders,
    Served,
    bodies,
    headers_of,
    queued,
    ready,
    serve,
    until,
    written,
)
from topics.apply import apply
from topics.bridge import guid_time_ms
from topics.catalogue import catalogue
from topics.keys import GITHUB_HOST
from topics.models import Delivery, JobFact, RunFact, Unreadable

#: GitHub's published example of a signature.
PUBLISHED = (
    b"It's a Secret to Everybody",
    b"Hello, World!",
    "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
)
CONNECTIONS = 64


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as made:
        apply({"bootstrap_servers": made.bootstrap}, catalogue(partitions=2))
        yield made


@pytest.fixture(scope="module")
def gate(running: Broker) -> Iterator[Served]:
    keyring = Keyring(
        {"github": [b"newer", SECRET, PUBLISHED[0]]},
        {("github", "4711"): [b"own"], ("github", "815"): [b"installed"]},
    )
    limits = {"connections": CONNECTIONS, "body_time_s": 1.0, "memory": 4 * MAX_BODY}
    with serve(running.bootstrap, keyring, **limits) as made:
        ready(made)
        yield made


# -- what is authentic arrives ---------------------------------------------------------------------


def test_the_published_signature_is_right_and_any_other_body_is_wrong(
    gate: Served, running: Broker
) -> None:
    _, body, signature = PUBLISHED
    told = headers_of(body, X_Hub_Signature_256=signature)
    # It is authentic, and no JSON: so it is kept for the dead letters, and not sent again for ever.
    assert gate.ask(body, told).said["outcome"] == "malformed"
    assert body in bodies(running.bootstrap)
    changed = b"Hello, World?"
    assert gate.ask(changed, told).status == 403
    assert changed not in bodies(running.bootstrap)


def examples() -> list[tuple[str, str, dict[str, str], bytes]]:
    """Name, event, further headers and body of every recorded delivery."""
    found = []
    for path in sorted((DATA / "github").glob("*.json")):
        found.append((path.name, path.name.partition(".")[0], {}, path.read_bytes()))
    for path in sorted((DATA / "cases").glob("*.json")):
        told = json.loads(path.read_bytes())
        given, body = {}, path.read_bytes()
        if "payload" in told:
            given, payload = dict(told["headers"]), told["payload"]
            body = (payload if isinstance(payload, str) else json.dumps(payload)).encode()
        found.append((path.name, given.pop("X-GitHub-Event", "workflow_job"), given, body))
    return found


def test_every_recorded_delivery_arrives_byte_for_byte_as_the_same_facts(
    gate: Served, running: Broker
) -> None:
    before = len(written(running.bootstrap))
    sent = []
    for name, event, more, body in examples():
        told = headers_of(body, event=event, **more)
        reply = gate.ask(body, told)
        if event != "ping":
            assert (name, reply.status, reply.said["outcome"]) == (name, 202, "accepted")
            sent.append((event, told, body))
    assert len(sent) >= 13 + 19
    records = {
        dict(record.headers)["x-github-delivery"].decode(): record
        for record in written(running.bootstrap)
    }
    assert len(written(running.bootstrap)) == before + len(sent)
    for event, told, body in sent:
        record = records[told["X-GitHub-Delivery"]]
        assert record.value == body
        assert dict(record.headers) == {name.lower(): v.encode() for name, v in told.items()}
        facts, _ = record_facts(record, {"github": [SECRET]})
        made = Delivery(
            id=told["X-GitHub-Delivery"], kind=f"github.{event}", source="github", key="-",
            occurred_at=guid_time_ms(told["X-GitHub-Delivery"]) or record.timestamp,
            received_at=record.timestamp, headers={n.lower(): v for n, v in told.items()},
            payload=body.decode(),
        )  # fmt: skip
        wanted = GITHUB.facts(made)
        assert [to_bytes(fact) for fact in facts] == [to_bytes(fact) for fact in wanted]
        first = next(fact for fact in wanted if isinstance(fact, (JobFact, RunFact)))
        # Keyed as the facts are: deliveries of one job are in one partition, in order.
        assert record.key == first.key.encode()


def test_a_form_is_understood_and_kept_as_it_came(gate: Served, running: Broker) -> None:
    from urllib.parse import urlencode

    body = urlencode({"payload": queued(77).decode()}).encode()
    told = headers_of(body, Content_Type="application/x-www-form-urlencoded")
    assert gate.ask(body, told).said["outcome"] == "accepted"
    (record,) = [each for each in written(running.bootstrap) if each.value == body]
    assert record.key == f"github:{GITHUB_HOST}:77".encode()
    assert record_facts(record, {"github": [SECRET]})[0]


def test_a_delivery_that_comes_again_is_written_again_and_counted(
    gate: Served, running: Broker
) -> None:
    body = queued()
    told = headers_of(body)
    assert [gate.ask(body, told).said["outcome"] for _ in range(2)] == ["accepted", "duplicate"]
    assert bodies(running.bootstrap).count(body) == 2


def test_nobody_tells_the_time_of_arrival_or_passes_credentials_on(
    gate: Served, running: Broker
) -> None:
    body = queued()
    more = {"runnerstream-received-at": "1700000000000", "Authorization": "Bearer x", "Cookie": "y"}
    assert gate.ask(body, {**headers_of(body), **more}).status == 202
    (record,) = [each for each in written(running.bootstrap) if each.value == body]
    assert not {name.lower() for name in more} & {name for name, _ in record.headers}


@pytest.mark.parametrize(
    ("more", "secret", "status"),
    [
        ({}, b"newer", 202),
        ({}, SECRET, 202),
        ({"X-GitHub-Hook-ID": "4711"}, b"own", 202),
        ({"X-GitHub-Hook-ID": "4711"}, SECRET, 403),
        ({"X-GitHub-Hook-ID": "4712"}, SECRET, 202),
        ({"X-GitHub-Hook-ID": "4712"}, b"own", 403),
        ({"X-GitHub-Hook-Installation-Target-ID": "4711"}, b"own", 202),
    ],
)
def test_a_hook_with_a_secret_of_its_own_has_no_other(
    gate: Served, more: dict[str, str], secret: bytes, status: int
) -> None:
    assert gate.deliver(queued(), secret=secret, **more).status == status


def test_an_installation_may_have_a_secret_of_its_own(gate: Served) -> None:
    body = b'{"installation": {"id": 815}, ' + queued()[1:]
    assert gate.deliver(body, secret=b"installed").status == 202
    assert gate.deliver(body, secret=SECRET).status == 403


# -- what is not -----------------------------------------------------------------------------------


def signature(body: bytes, digest: Any = sha256, name: str = "sha256") -> str:
    import hmac

    return f"{name}={hmac.new(SECRET, body, digest).hexdigest()}"


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("missing", 401), ("empty", 401), ("sha1 only", 401), ("wrong", 403), ("truncated", 403),
        ("sha1 as sha256", 403), ("no prefix", 403), ("of other bytes", 403), ("re-encoded", 403),
        ("not ascii", 403), ("twice", 400),
    ],
)  # fmt: skip
def test_what_is_not_signed_is_refused(
    gate: Served, running: Broker, how: str, status: int
) -> None:
    body = queued()
    right = signature(body)
    given: dict[str, dict[str, str | None]] = {
        "missing": {"X_Hub_Signature_256": None},
        "empty": {"X_Hub_Signature_256": " "},
        "sha1 only": {
            "X_Hub_Signature_256": None,
            "X_Hub_Signature": signature(body, sha1, "sha1"),
        },
        "wrong": {"X_Hub_Signature_256": "sha256=" + "0" * 64},
        "truncated": {"X_Hub_Signature_256": right[:-1]},
        "sha1 as sha256": {"X_Hub_Signature_256": signature(body, sha1)},
        "no prefix": {"X_Hub_Signature_256": right.removeprefix("sha256=")},
        "of other bytes": {"X_Hub_Signature_256": signature(body + b" ")},
        "re-encoded": {},
        "not ascii": {"X_Hub_Signature_256": right + "\u00e9"},
        "twice": {"x-hub-signature-256": right},
    }
    told = headers_of(body, **given[how])
    sent = json.dumps(json.loads(body), separators=(",", ":")).encode()
    reply = gate.ask(sent if how == "re-encoded" else body, told)
    assert reply.status == status
    assert not {body, sent} & set(bodies(running.bootstrap))


def test_a_provider_without_a_secret_is_never_authentic(running: Broker) -> None:
    with serve(running.bootstrap, Keyring({"other": [b"x"]}, {})) as served:
        assert served.deliver(queued()).status == 403


class Broken(Keyring):
    """Something that goes wrong where nothing can."""

    def of(self, *_: Any) -> tuple[bytes, ...]:
        raise RuntimeError("a drawer is stuck")


def test_a_fault_of_ours_is_no_2xx_and_is_told_in_the_log(
    running: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(running.bootstrap, Broken({"github": [SECRET]}, {})) as served:
        ready(served)
        reply = served.deliver(queued())
        assert (reply.status, reply.said["outcome"]) == (500, "unavailable")
        assert "drawer" not in str(reply)
        assert "a drawer is stuck" in caplog.text
        assert served.metric("held_bytes") == served.metric("in_flight") == 0


# -- every answer ----------------------------------------------------------------------------------


def test_a_greeting_is_told_what_is_set_up(gate: Served, running: Broker) -> None:
    before = len(written(running.bootstrap))
    body = b'{"zen": "z", "hook_id": 1, "hook": {"events": ["workflow_job", "push"]}}'
    reply = gate.deliver(body, event="ping")
    assert (reply.status, reply.said["outcome"]) == (200, "ignored")
    assert reply.said["events"] == {"workflow_job": True, "workflow_run": False}
    assert gate.deliver(b'{"hook": 3}', event="ping").said.get("events") is None
    assert "events" not in gate.deliver(b"{}", event="push").said
    assert len(written(running.bootstrap)) == before


def test_what_cannot_be_read_is_kept_for_the_dead_letters(gate: Served, running: Broker) -> None:
    deep = b'{"action": "queued", "workflow_job": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    bad = [b"{", b"[]", b"", b"\xff\xfe", b'{"workflow_job": null}', b'{"workflow_job": {}}', deep]
    for body in bad:
        assert gate.deliver(body).said["outcome"] == "malformed"
    assert gate.deliver(queued(), event="unheard_of").said["outcome"] == "malformed"
    assert gate.deliver(queued(), event="api_job").said["outcome"] == "malformed"
    kept = {record.value: record for record in written(running.bootstrap)}
    for body in bad:
        with pytest.raises(Unreadable):
            record_facts(kept[body], {"github": [SECRET]})


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        (404, {"path": "/"}),
        (404, {"path": "/webhooks/nobody"}),
        (404, {"path": "/webhooks/github/"}),
        (405, {"method": "GET"}),
        (405, {"method": "PUT"}),
        (405, {"path": "/readyz"}),
        (415, {"Content_Type": "text/plain"}),
        (415, {"Content_Type": None}),
        (415, {"Content_Encoding": "gzip"}),
        (415, {"Content_Encoding": "identity, br"}),
        (413, {"Content_Length": str(MAX_BODY + 1)}),
        (400, {"X_GitHub_Event": None}),
        (400, {"x-github-delivery": "b"}),
        (202, {"Content_Type": "application/json; charset=utf-8"}),
        (202, {"Content_Encoding": "identity"}),
        (202, {"X_GitHub_Delivery": None}),
    ],
    ids=str,
)
def test_each_has_its_answer(gate: Served, status: int, asked: dict[str, Any]) -> None:
    body = queued()
    request = {name: asked[name] for name in ("path", "method") if name in asked}
    more = {name: value for name, value in asked.items() if name not in request}
    reply = gate.ask(body, headers_of(body, **more), **request)
    assert reply.status == status
    if status == 405:
        assert reply.headers["allow"] in ("POST", "GET, HEAD")
    assert reply.headers["server"] == "runnerstream"


def head(*lines: str) -> bytes:
    told = ["POST /webhooks/github HTTP/1.1", "Host: gate", *lines]
    return "".join(f"{line}\r\n" for line in told).encode() + b"\r\n"


def signed_head(body: bytes, *more: str) -> bytes:
    return head(*(f"{name}: {value}" for name, value in headers_of(body).items()), *more)


BAD_FRAMING = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET\r\n\r\n",
    head("Content-Length: 5", "Transfer-Encoding: chunked"),
    head("Content-Length: 5", "Content-Length: 6"),
    head("Content-Length: -5"),
    head("Content-Length: five"),
    head("Transfer-Encoding: gzip"),
    head("Bad Name: x"),
    head("X: " + "y" * 20_000),
    signed_head(b"x", "Transfer-Encoding: chunked") + b"zz\r\nbody\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("sent", BAD_FRAMING, ids=range(len(BAD_FRAMING)))
def test_bad_framing_is_refused_and_nothing_is_repeated(gate: Served, sent: bytes) -> None:
    answered = gate.raw(sent)
    assert answered.split(b" ")[1] == b"400"
    assert b"this is no proper HTTP request" in answered
    assert b"yyyy" not in answered


def test_a_body_without_a_length_is_refused(gate: Served) -> None:
    assert b" 411 " in gate.raw(signed_head(b"", "Connection: close"))


def test_a_large_body_is_refused_while_it_comes_in_pieces(gate: Served) -> None:
    piece = b"%x\r\n" % (1 << 20) + b"x" * (1 << 20) + b"\r\n"
    with gate.connect() as connection:
        connection.sendall(signed_head(b"x", "Transfer-Encoding: chunked"))
        for _ in range(MAX_BODY >> 20):
            connection.sendall(piece)
        assert gate.metric("held_bytes") > SMALL_BODY
        connection.sendall(piece)
        assert b" 413 " in connection.recv(1 << 16)
    until(lambda: gate.metric("held_bytes") == 0)


def test_the_largest_body_is_taken(gate: Served, running: Broker) -> None:
    body = queued(padding=MAX_BODY - 200)
    body += b" " * (MAX_BODY - len(body))
    assert gate.deliver(body).said["outcome"] == "accepted"
    assert sum(len(each) == MAX_BODY for each in bodies(running.bootstrap)) == 1


def test_a_slow_body_is_given_up(gate: Served) -> None:
    before = gate.counted("timeout")
    answered = gate.raw(signed_head(b"x" * 10, "Content-Length: 10") + b"x" * 5)
    assert b" 408 " in answered
    assert gate.counted("timeout") == before + 1


def test_who_asks_first_is_told_to_go_on_only_when_it_helps(gate: Served) -> None:
    body = queued()
    for sent, wanted in ((signed_head(body, f"Content-Length: {len(body)}",
                                      "Expect: 100-continue"), b"HTTP/1.1 100 Continue\r\n\r\n"),
                         (head(f"Content-Length: {len(body)}", "Content-Type: application/json",
                               "Expect: 100-continue"), b"HTTP/1.1 401 ")):  # fmt: skip
        with gate.connect() as connection:
            connection.sendall(sent)
            received = connection.recv(1 << 16)
            assert received.startswith(wanted)
            if b"100" in wanted:
                connection.sendall(body)
                assert connection.recv(1 << 16).startswith(b"HTTP/1.1 202 ")


def test_who_breaks_off_is_counted_and_leaves_nothing_behind(gate: Served) -> None:
    before = gate.metric("broken_off_total")
    with gate.connect() as connection:
        connection.sendall(signed_head(b"x" * 10, "Content-Length: 10") + b"x" * 5)
        until(lambda: gate.metric("held_bytes") == 5)
    until(lambda: gate.metric("broken_off_total") == before + 1)
    assert gate.metric("held_bytes") == 0


def test_what_has_begun_when_it_ends_is_answered_and_the_connection_closed(running: Broker) -> None:
    body = queued(padding=99)
    heard = bytearray()

    def go_on() -> None:
        until(lambda: served.gateway.status().reason == "it is ending")
        connection.sendall(body[20:])
        while piece := connection.recv(1 << 16):
            heard.extend(piece)

    with serve(running.bootstrap, body_time_s=PATIENCE * 30) as served:
        ready(served)
        idle, connection = served.connect(), served.connect()
        connection.sendall(signed_head(body, f"Content-Length: {len(body)}") + body[:20])
        until(lambda: served.metric("held_bytes") == 20)
        going_on = threading.Thread(target=go_on)
        going_on.start()
    going_on.join(60)
    assert heard.startswith(b"HTTP/1.1 202 ")
    assert b"connection: close" in heard.lower()
    assert idle.recv(1) == b""
    assert body in bodies(running.bootstrap)
    idle.close()
    connection.close()


# -- what it withstands ----------------------------------------------------------------------------


def test_a_thousand_slow_connections_do_not_stop_a_delivery(gate: Served, running: Broker) -> None:
    slow: list[socket.socket] = []
    sent = []
    try:
        for number in range(1_000):
            connection = gate.connect()
            slow.append(connection)
            # Some say nothing, some begin a header, some a body.
            start = (b"", b"POST /webhooks/gi", signed_head(b"x" * 99, "Content-Length: 99") + b"x")
            connection.sendall(start[number % 3])
            if number % 50 == 49:
                sent.append(queued())
                assert gate.deliver(sent[-1]).status == 202
            assert gate.metric("connections") <= CONNECTIONS
    finally:
        for connection in slow:
            connection.close()
    assert set(sent) <= set(bodies(running.bootstrap))
    until(lambda: gate.metric("connections_closed_total", reason="evicted") > 900)


def test_who_reads_no_answers_is_not_read_either(gate: Served) -> None:
    ask = b"POST /webhooks/github HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" * 1_000
    with gate.connect() as connection:

        def ask_on() -> None:
            for _ in range(400):
                connection.sendall(ask)

        connection.settimeout(3)
        with pytest.raises(TimeoutError):
            ask_on()
        assert connection.recv(10) == b"HTTP/1.1 4"


def test_large_slow_bodies_do_not_keep_out_ordinary_ones(running: Broker) -> None:
    with serve(running.bootstrap, memory=1 << 20, body_time_s=30.0) as served:
        ready(served)
        with served.connect() as connection:
            connection.sendall(signed_head(b"x", f"Content-Length: {4 << 20}"))
            connection.sendall(b"x" * ((1 << 20) - 4096))
            until(lambda: served.metric("held_bytes") > (1 << 20) - (1 << 17))
            large = served.deliver(queued(padding=1 << 20))
            assert (large.status, large.headers["retry-after"]) == (503, "30")
            assert served.deliver(queued(padding=10_000)).status == 202
        until(lambda: served.metric("held_bytes") == 0)
        assert served.deliver(queued(padding=1 << 19)).status == 202


BODIES = st.binary(max_size=200) | st.text(max_size=100).map(str.encode)
EVENTS = st.sampled_from(["workflow_job", "workflow_run", "ping", "push", "\u00fc", "a b"])


@settings(max_examples=60)
@given(body=BODIES, event=EVENTS, signed=st.booleans())
def test_no_body_does_harm(gate: Served, body: bytes, event: str, signed: bool) -> None:
    told = headers_of(body, SECRET if signed else b"wrong")
    told["X-GitHub-Event"] = event
    told = {name: value.encode().decode("latin-1") for name, value in told.items()}
    reply = gate.ask(body, told)
    assert reply.status in ((200, 202) if signed else (403,))


LINES = st.sampled_from(
    [b"POST /webhooks/github HTTP/1.1", b"GET / HTTP/1.0", b"HEAD /readyz HTTP/1.1", b"Host: a",
     b"OPTIONS * HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"POST http://[ HTTP/1.1", b"PRI * HTTP/2.0",
     b"Content-Length: 3", b"Content-Length: 0", b"Transfer-Encoding: chunked", b"Expect: nothing",
     b"Expect: 100-continue", b"Upgrade: websocket", b"Connection: upgrade", b"Connection: close",
     b"X-GitHub-Event: workflow_job", b"X-Hub-Signature-256: sha256=00",
     b"Content-Type: application/json", b"", b"3", b"abc", b"0", b"Content-Type: \xff", b"A:",
     b" folded", b"POST /%zz HTTP/1.1", b"POST /webhooks/github?a=%ff HTTP/1.1"]
)  # fmt: skip
FRAMES = st.lists(LINES | st.binary(max_size=30), max_size=12)
ENDS = st.sampled_from([b"\r\n", b"\n", b"\r"])


@settings(max_examples=80)
@given(FRAMES, ENDS)
def test_no_framing_does_harm(gate: Served, lines: list[bytes], end: bytes) -> None:
    answered = gate.raw(end.join([*lines, b"", b""]), end=True)
    for each in answered.split(b"HTTP/1.")[1:]:
        assert each[2:3] in b"1234", answered
    until(lambda: gate.gateway.status().ready)


def test_each_outcome_is_counted(running: Broker) -> None:
    with serve(running.bootstrap, memory=1 << 20, body_time_s=0.5) as served:
        ready(served)
        body = queued()
        told = headers_of(body)
        asked: dict[str, Callable[[], Any]] = {
            "accepted": lambda: served.ask(body, told),
            "duplicate": lambda: served.ask(body, told),
            "ignored": lambda: served.deliver(b"{}", event="push"),
            "unauthenticated": lambda: served.deliver(body, secret=b"wrong"),
            "malformed": lambda: served.deliver(b"{"),
            "too_large": lambda: served.ask(body, {**told, "Content-Length": str(MAX_BODY + 1)}),
            "timeout": lambda: served.raw(signed_head(b"x" * 9, "Content-Length: 9")),
            "unavailable": lambda: served.deliver(queued(padding=2 << 20)),
        }
        for outcome, ask in asked.items():
            assert served.counted(outcome) == 0
            ask()
            assert served.counted(outcome) == 1
        count = served.gateway.metrics.registry.get_sample_value
        assert count(
            "runnerstream_gateway_requests_total",
            {"provider": "github", "action": "queued", "outcome": "accepted"},
        ) == 1  # fmt: skip
        served.ask(path="/elsewhere")
        labels = {"provider": "none", "action": "none", "outcome": "malformed"}
        assert count("runnerstream_gateway_requests_total", labels) == 1
        # Of what was authentic: the size, the time, and how long Kafka took for what it was given.
        assert served.metric("body_bytes_count", provider="github") == 4
        assert served.metric("request_seconds_count", provider="github") == len(asked)
        assert served.metric("last_delivery_timestamp_seconds", provider="github") > 1.7e9
        until(lambda: served.metric("ack_seconds_count") == 3)


def test_after_all_that_nothing_is_held_and_a_delivery_is_taken(gate: Served) -> None:
    until(lambda: gate.metric("in_flight") == 0 and gate.metric("held_bytes") == 0)
    assert gate.deliver(queued()).status == 202


# -- Kafka away ------------------------------------------------------------------------------------


def test_without_kafka_nothing_is_2xx_and_with_it_all_is_again(running: Broker) -> None:
    with serve(running.bootstrap, deadline_s=1.5, in_flight=4) as served:
        ready(served)
        senders = Senders(served.port)
        with senders.sending():
            until(lambda: len(senders.accepted) > 100)
            running.kill()
            # Some wait for Kafka, and the others find all places taken.
            until(lambda: len(senders.others) > 100)
            until(lambda: not served.gateway.status().ready)
            before = len(senders.accepted)
            reply = served.deliver(queued())
            assert (reply.status, reply.headers["retry-after"]) == (503, "30")
            assert served.ask(method="GET", path="/readyz").status == 503
            assert served.ask(method="GET", path="/healthz").status == 200
            assert served.metric("in_flight") <= 4
            assert len(senders.accepted) == before
            running.start()
            if kind() == "embedded":
                # It has forgotten all.
                apply({"bootstrap_servers": running.bootstrap}, catalogue(partitions=2))
            until(lambda: len(senders.accepted) > before + 100)
        assert set(senders.others) == {503}
        assert not senders.broken
        until(lambda: served.metric("in_flight") == served.metric("held_bytes") == 0)
        kept = senders.accepted[before if kind() == "embedded" else 0 :]
        assert set(kept) <= set(bodies(running.bootstrap))


# -- who may connect, and how ----------------------------------------------------------------------


def test_strangers_are_not_let_in(running: Broker) -> None:
    from ipaddress import ip_network

    with serve(running.bootstrap, allowed=(ip_network("10.0.0.0/8"),)) as served:
        assert served.raw(b"GET /readyz HTTP/1.1\r\n\r\n") == b""
        until(lambda: served.metric("strangers_total") == 1)
    with serve(running.bootstrap, allowed=(ip_network("127.0.0.0/8"),)) as served:
        ready(served)
        assert served.deliver(queued()).status == 202


def test_https_is_served_and_a_handshake_that_never_comes_holds_nobody_up(running: Broker) -> None:
    import ssl

    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    with serve(running.bootstrap, None, client, tls=server, connections=8) as served:
        ready(served)
        silent = [served.connect() for _ in range(20)]
        assert served.deliver(queued()).status == 202
        assert served.metric("connections") <= 8
        for each in silent:
            each.close()
