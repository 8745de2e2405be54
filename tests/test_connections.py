"""Servers that are there and silent, speak TLS or do not, want a login or do not: each command ends
within its limits, and says what it waited for, what is the matter, and what to do."""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.commands import connections, unreachable
from pipeline.commands.failure import Failure
from pipeline.local import EmbeddedClickHouse, unavailable
from tests.support import PATIENCE
from tests.support.brokers import broker

needs_local = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

Handler = Callable[[socket.socket], None]


@contextmanager
def server(handler: Handler) -> Iterator[int]:
    """A TCP server on loopback; each connection in a thread of its own. Its port."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as listening:

        def serve(connection: socket.socket) -> None:
            with closing(connection), suppress(OSError):
                handler(connection)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]


def silent(connection: socket.socket) -> None:
    """Takes all that is sent, and says nothing until the other side goes."""
    while connection.recv(65_536):
        pass


def closing_at_once(connection: socket.socket) -> None:
    connection.recv(65_536)


@pytest.fixture(autouse=True)
def _short(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits, shortened, where the other side is ours; what is tested is that there are any
    and what is said. A real server on a busy machine may need the whole."""
    if "real" in request.node.name:
        return
    monkeypatch.setattr(connections, "PATIENCE_S", 1.0)
    monkeypatch.setattr(unreachable, "PROBE_S", 0.5)


def run(*arguments: str, **settings: str) -> Result:
    env: dict[str, str | None] = {n: None for n in os.environ if n.startswith("RUNNERSTREAM_")}
    env |= {f"RUNNERSTREAM_{name.upper()}": value for name, value in settings.items()}
    return CliRunner().invoke(main, arguments, env=env)


# -- silence ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["sql", "SELECT 1"], ["sql"], ["schema", "apply"], ["schema", "show"], ["doctor"]],
    ids=" ".join,
)
def test_a_silent_clickhouse_ends_each_command(arguments: list[str]) -> None:
    with server(silent) as port:
        result = run(*arguments, clickhouse=f"clickhouse://u:s3cret@127.0.0.1:{port}/x",
                     kafka="127.0.0.1:1", web_port="1", sink_port="1")  # fmt: skip
    assert result.exit_code == 3
    assert f"127.0.0.1:{port} takes the connection and says nothing" in result.output
    assert "waited 1 s for its greeting" in result.output
    assert "s3cret" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["topics", "apply"],
        ["topics", "show"],
        ["dead-letters", "list"],
        ["dead-letters", "show", "a:0:0"],
        ["dead-letters", "replay", "--all"],
        ["verify"],
        ["simulate", "--duration", "1s"],
        ["worker", "--role", "fold", "--wait", "0"],
        ["doctor"],
    ],
    ids=" ".join,
)
def test_a_silent_broker_ends_each_command(arguments: list[str]) -> None:
    with server(silent) as port:
        result = run(*arguments, kafka=f"127.0.0.1:{port}", clickhouse="", web_port="1")
    assert result.exit_code == 3
    assert f"127.0.0.1:{port} takes the connection and says nothing: waited" in result.output
    assert "is the broker stopped" in result.output


def trickle(connection: socket.socket) -> None:
    """A byte now and then, for ever: no single wait of the client is long."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


@pytest.mark.parametrize("handler", [silent, trickle])
def test_a_silent_worker_ends_each_question(handler: Handler) -> None:
    with server(handler) as port:
        with pytest.raises(Failure) as told:
            connections.ask(f"http://127.0.0.1:{port}", "/jobs", timeout=0.5)
        assert told.value.exit_code == 3
        assert "waited 0.5 s for an answer to /jobs" in told.value.message


def test_jobs_and_doctor_end_when_the_worker_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    original = connections.within
    monkeypatch.setattr(
        connections, "within", lambda s, what, call: original(min(s, 1.0), what, call)
    )
    with server(silent) as port:
        result = run("jobs", web_port=str(port))
        assert result.exit_code == 3
        assert "for an answer to /jobs" in result.output
        told = json.loads(
            run("doctor", "--json", web_port=str(port), sink_port=str(port), prober_port=str(port),
                kafka="127.0.0.1:1", clickhouse="clickhouse://127.0.0.1:1/x").stdout
        )  # fmt: skip
    assert {each["what"]: each["state"] for each in told} == {
        "Kafka": "bad", "ClickHouse": "bad", "worker": "look", "sink": "look",
        "prober": "look",
    }  # fmt: skip


@needs_local
def test_a_real_clickhouse_stopped_in_the_middle_of_a_statement(tmp_path: Path) -> None:
    import signal

    from clickhouse_driver import Client

    with EmbeddedClickHouse(tmp_path) as clickhouse:
        env = {k: v for k, v in os.environ.items() if not k.startswith("RUNNERSTREAM_")}
        env["RUNNERSTREAM_CLICKHOUSE"] = clickhouse.url
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "sql", "--timeout", "2s",
             "SELECT sleepEachRow(1) FROM numbers(600) SETTINGS max_block_size = 1"],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
        with Client.from_url(clickhouse.url) as client:
            while not client.execute(
                "SELECT count() FROM system.processes WHERE query LIKE '%numbers(600)%'"
                " AND query NOT LIKE '%processes%'"
            )[0][0]:
                assert process.poll() is None
                time.sleep(0.05)
        assert clickhouse.pid is not None
        os.kill(clickhouse.pid, signal.SIGSTOP)
        try:
            _, told = process.communicate(timeout=PATIENCE * 60)
        finally:
            os.kill(clickhouse.pid, signal.SIGCONT)
    assert process.returncode == 3
    assert "gave no sign of life for 2 s in the middle of a statement" in told


def test_a_limit_names_what_was_waited_for() -> None:
    with pytest.raises(TimeoutError, match=r"waited 0\.1 s for nothing"):
        connections.within(0.1, "nothing", threading.Event().wait)
    assert connections.within(5, "an answer", lambda: 42) == 42
    with pytest.raises(KeyError):
        connections.within(5, "an error", lambda: {}["x"])


# -- TLS and logins --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The certificate of an authority that nobody trusts yet, and one of 127.0.0.1 with its key."""
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    found = {name: directory / f"{name}.pem" for name in ("authority", "both")}
    authority.cert_pem.write_to_path(found["authority"])
    issued.private_key_and_cert_chain_pem.write_to_path(found["both"])
    return found


def over_tls(certificates: dict[str, Path], inner: Handler) -> Handler:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates["both"])

    def handler(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as link:
            inner(link)

    return handler


def fake_broker(answers: dict[int, bytes | None]) -> Handler:
    """Answers requests of Kafka's protocol by their key; ``None`` and the unknown end it. A length
    that no request has ends it as well, as in a real broker."""

    def handler(connection: socket.socket) -> None:
        while True:
            start = connection.recv(4, socket.MSG_WAITALL) if not isinstance(
                connection, ssl.SSLSocket) else connection.recv(4)  # fmt: skip
            if len(start) < 4:
                return
            (size,) = struct.unpack(">i", start)
            if not 8 <= size <= 100_000_000:
                return
            body = b""
            while len(body) < size:
                more = connection.recv(size - len(body))
                if not more:
                    return
                body += more
            key, _, number = struct.unpack_from(">hhi", body)
            answer = answers.get(key)
            if answer is None:
                return
            connection.sendall(struct.pack(">ii", len(answer) + 4, number) + answer)

    return handler


#: Of `ApiVersions`: an error the probe does not mind.
VERSIONS = struct.pack(">hi", 0, 0)
SASL = {"kafka_user": "me", "kafka_password": "s3cret"}


def cause(port: int, security: str, **more: str) -> str:
    result = run("topics", "show", kafka=f"127.0.0.1:{port}", kafka_security=security, **more)
    assert result.exit_code == 3, result.output
    assert "s3cret" not in result.output
    return result.output


@pytest.mark.parametrize(("security", "sets"), [("SSL", "PLAINTEXT"), ("SASL_SSL", "SASL_PLAIN")])
def test_tls_asked_of_a_broker_without(security: str, sets: str) -> None:
    more = SASL if security.startswith("SASL") else {}
    with server(fake_broker({18: VERSIONS})) as port:
        told = cause(port, security, **more)
    assert f"127.0.0.1:{port} does not speak TLS, and it was asked to" in told
    assert f"set RUNNERSTREAM_KAFKA_SECURITY={sets}" in told


def test_tls_asked_of_a_real_broker(tmp_path: Path) -> None:
    with broker(tmp_path) as running:
        told = cause(running.port, "SSL")
        assert "does not speak TLS, and it was asked to" in told
        assert "set RUNNERSTREAM_KAFKA_SECURITY=PLAINTEXT" in told


@pytest.mark.parametrize(
    ("security", "sets"), [("PLAINTEXT", "SSL"), ("SASL_PLAINTEXT", "SASL_SSL")]
)
def test_a_broker_with_tls_asked_without(
    security: str, sets: str, certificates: dict[str, Path]
) -> None:
    more = SASL if security.startswith("SASL") else {}
    with server(over_tls(certificates, silent)) as port:
        told = cause(port, security, **more)
    assert f"127.0.0.1:{port} speaks TLS, and it was asked without" in told
    assert f"set RUNNERSTREAM_KAFKA_SECURITY={sets}\n" in told


def test_an_authority_that_is_not_trusted(certificates: dict[str, Path]) -> None:
    with server(over_tls(certificates, fake_broker({18: VERSIONS}))) as port:
        told = cause(port, "SSL")
    assert "is not trusted" in told
    assert "RUNNERSTREAM_KAFKA_CA_FILE" in told


def test_a_login_is_wanted(certificates: dict[str, Path]) -> None:
    answering = fake_broker({18: VERSIONS, 3: None})
    with server(answering) as port:
        told = cause(port, "PLAINTEXT")
    assert "wants a login" in told
    assert "RUNNERSTREAM_KAFKA_SECURITY=SASL_PLAINTEXT" in told
    with server(over_tls(certificates, answering)) as port:
        told = cause(port, "SSL", kafka_ca_file=str(certificates["authority"]))
    assert "wants a login" in told
    assert "RUNNERSTREAM_KAFKA_SECURITY=SASL_SSL" in told


def test_a_login_is_not_wanted_or_another_one() -> None:
    none = struct.pack(">hi", 34, 0)
    with server(fake_broker({18: VERSIONS, 17: none})) as port:
        told = cause(port, "SASL_PLAINTEXT", **SASL)
    assert "wants no login on this port" in told
    assert "set RUNNERSTREAM_KAFKA_SECURITY=PLAINTEXT" in told
    other = struct.pack(">hih5s", 33, 1, 5, b"PLAIN")
    with server(fake_broker({18: VERSIONS, 17: other})) as port:
        told = cause(port, "SASL_PLAINTEXT", **SASL)
    assert "does not offer the login SCRAM-SHA-512; it offers PLAIN" in told
    assert "RUNNERSTREAM_KAFKA_SASL_MECHANISM" in told


def test_a_login_asked_of_a_real_broker(tmp_path: Path) -> None:
    with broker(tmp_path) as running:
        told = cause(running.port, "SASL_PLAINTEXT", **SASL)
        assert "start one" not in told
        assert "RUNNERSTREAM_KAFKA_SECURITY=PLAINTEXT" in told or "no Kafka broker serves" in told


def test_an_address_that_brokers_announce_and_nobody_reaches() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        nobody = taken.getsockname()[1]
    metadata = struct.pack(">iiih9sih", 0, 1, 7, 9, b"127.0.0.1", nobody, -1)
    with server(fake_broker({18: VERSIONS, 3: metadata})) as port:
        told = cause(port, "PLAINTEXT")
    assert f"tells clients to go on to 127.0.0.1:{nobody}" in told
    assert "advertised.listeners" in told


def http(connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def test_something_else_than_kafka() -> None:
    with server(http) as port:
        assert f"an HTTP server listens at 127.0.0.1:{port}" in cause(port, "PLAINTEXT")
    with server(closing_at_once) as port:
        assert "ends the connection at the first question" in cause(port, "PLAINTEXT")


def test_one_real_broker_of_several_is_enough(tmp_path: Path) -> None:
    with broker(tmp_path) as running:
        settings = {"kafka": f"127.0.0.1:1,{running.bootstrap}", "partitions": "1"}
        assert run("topics", "show", **settings).exit_code == 1  # they are missing


# -- ClickHouse's other ports ----------------------------------------------------------------------


def sql(url: str) -> str:
    result = run("sql", "SELECT 1", clickhouse=url)
    assert result.exit_code == 3, result.output
    assert "s3cret" not in result.output
    return result.output


def test_clickhouse_with_tls_and_without(certificates: dict[str, Path]) -> None:
    with server(over_tls(certificates, silent)) as port:
        told = sql(f"clickhouse://u:s3cret@127.0.0.1:{port}/x")
        assert "speaks TLS, and it was asked without" in told
        assert "write clickhouses://" in told
        told = sql(f"clickhouses://u:s3cret@127.0.0.1:{port}/x")
        assert "is not trusted" in told
        assert "ca_certs=" in told


@needs_local
def test_the_ports_of_a_real_clickhouse(tmp_path: Path) -> None:
    with EmbeddedClickHouse(tmp_path) as clickhouse:
        told = sql(f"clickhouse://u:s3cret@127.0.0.1:{clickhouse.http_port}/x")
        assert "is a port for HTTP" in told
        assert "usually 9000" in told
        told = sql(f"clickhouses://u:s3cret@127.0.0.1:{clickhouse.port}/x")
        assert "does not speak TLS" in told
        assert "write clickhouse://" in told
        result = run("sql", "SELECT 1", clickhouse=f"clickhouse://u:s3cret@127.0.0.1:"
                     f"{clickhouse.port}/x")  # fmt: skip
        assert result.exit_code == 1
        assert "percent-encoded?" in result.output
        assert "s3cret" not in result.output
        result = run("sql", "SELECT 1", clickhouse=clickhouse.url.rpartition("/")[0] + "/none")
        assert result.exit_code == 1
        assert "`runnerstream schema apply`" in result.output


def test_what_listens_is_no_worker() -> None:
    with server(http) as port:
        result = run("jobs", "--url", f"http://127.0.0.1:{port}")
    assert result.exit_code == 1
    assert "is not a runnerstream worker" in result.output
    for url in ("127.0.0.1:6066", "ftp://x", "http://me:s3cret@x", "http://", "http://[x"):
        result = run("jobs", "--url", url)
        assert result.exit_code == 2
        assert "--url" in result.output
        assert "s3cret" not in result.output


def test_a_name_that_does_not_resolve() -> None:
    result = run("topics", "show", kafka="nowhere.invalid:9092")
    assert result.exit_code == 3
    assert "nowhere.invalid:9092" in result.output
