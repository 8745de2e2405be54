"""Why a server does not answer: asked on a bare socket, because clients only say that they waited.

Nothing here decides whether a server is there. When a client has failed, these few questions find
the cause that a person can mend: nobody listens, silence, TLS on one side only, a login on one side
only, another protocol, an address that brokers announce and nobody can reach. No password is sent.
"""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import closing
from typing import Final, NamedTuple

from pipeline.settings import Settings

#: How long each question may take. Seconds.
PROBE_S: Final = 3.0

_API_VERSIONS: Final = 18
_METADATA: Final = 3
_SASL_HANDSHAKE: Final = 17
_UNSUPPORTED_MECHANISM: Final = 33
_ILLEGAL_SASL_STATE: Final = 34
#: More than any answer to these questions has.
_MOST_BYTES: Final = 1 << 20

#: How a TLS record of an alert or a handshake begins.
_TLS: Final = (b"\x15\x03", b"\x16\x03")


class Cause(NamedTuple):
    """What is wrong, as a sentence's end, and what to do about it."""

    what: str
    remedy: str


class _Silence(Exception):
    """The other side took the connection and says nothing."""


class _Closed(Exception):
    """The other side ended the connection."""


class _Foreign(Exception):
    """The other side answered in another protocol; ``args[0]`` is how its answer begins."""


def address_of(server: str, default: int) -> tuple[str, int]:
    """Host and port of ``host:port``, ``[::1]:port`` or ``host``, as settings have checked it."""
    host, colon, port = server.rpartition(":")
    if not colon or server.endswith("]"):
        return server.strip("[]"), default
    return host.strip("[]"), int(port)


# -- Kafka -----------------------------------------------------------------------------------------


def kafka_cause(settings: Settings) -> Cause | None:
    """Why no broker serves us; ``None`` when the questions find nothing wrong."""
    found: list[Cause] = []
    for server in settings.bootstrap:
        cause = _broker_cause(settings, server)
        if cause is None:
            return None
        found.append(cause)
    # A server that is there and is asked wrongly tells more than one that is not there.
    found.sort(key=lambda cause: cause.remedy == _START)
    return found[0] if found else None


_START: Final = "start one (`runnerstream local up` for this machine) or set RUNNERSTREAM_KAFKA"
_SECURITY: Final = "set RUNNERSTREAM_KAFKA_SECURITY"


def _broker_cause(settings: Settings, server: str) -> Cause | None:
    address = address_of(server, 9092)
    tls = "SSL" in settings.kafka_security
    sasl = settings.kafka_security.startswith("SASL")
    try:
        with closing(socket.create_connection(address, PROBE_S)) as plain:
            try:
                with closing(_wrapped(settings, plain, address[0])) as link:
                    return _ask_broker(settings, link, server)
            except ssl.SSLCertVerificationError as error:
                return Cause(
                    f"the certificate of {server} is not trusted: {error.verify_message}",
                    "name the authority's PEM file with RUNNERSTREAM_KAFKA_CA_FILE",
                )
            except _Foreign as error:
                return _foreign(error.args[0], server, sasl)
            except _Silence:
                if tls and _speaks_plainly(address):
                    return _no_tls(server, sasl)
                return Cause(
                    f"{server} takes the connection and says nothing: waited {PROBE_S:g} s for an "
                    "answer",
                    "is the broker stopped, overloaded, or something else than a Kafka broker?",
                )
            except (_Closed, ssl.SSLError, ConnectionError) as error:
                return _ended(error, settings, address, server)
    except TimeoutError:
        return Cause(
            f"no connection to {server} within {PROBE_S:g} s",
            "is the address right, and does a firewall drop it? set RUNNERSTREAM_KAFKA",
        )
    except OSError as error:
        return Cause(f"{server}: {error.strerror or error}", _START)


def _wrapped(settings: Settings, plain: socket.socket, host: str) -> socket.socket:
    plain.settimeout(PROBE_S)
    context = settings.ssl_context()
    if context is None:
        return plain
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except TimeoutError:
        raise _Silence from None


def _ask_broker(settings: Settings, link: socket.socket, server: str) -> Cause | None:
    """The questions in their order: who are you, may I log in this way, whom else do you know."""
    tls = "SSL" in settings.kafka_security
    _request(link, _API_VERSIONS, 0, b"")
    if settings.kafka_security.startswith("SASL"):
        mechanism = settings.kafka_sasl_mechanism.encode()
        answer = _request(link, _SASL_HANDSHAKE, 1, struct.pack(">h", len(mechanism)) + mechanism)
        (code,) = struct.unpack_from(">h", answer)
        if code == _UNSUPPORTED_MECHANISM:
            offered = ", ".join(_strings(answer[2:])) or "none"
            return Cause(
                f"{server} does not offer the login {settings.kafka_sasl_mechanism}; it offers "
                f"{offered}",
                "set RUNNERSTREAM_KAFKA_SASL_MECHANISM to one of these"
                if offered != "none"
                else f"{_SECURITY}={'SSL' if tls else 'PLAINTEXT'}",
            )
        if code == _ILLEGAL_SASL_STATE:
            return Cause(
                f"{server} wants no login on this port",
                f"{_SECURITY}={'SSL' if tls else 'PLAINTEXT'}",
            )
        return None
    try:
        answer = _request(link, _METADATA, 4, struct.pack(">i?", 0, False))
    except (_Closed, ConnectionError):
        return Cause(
            f"{server} wants a login (it ended the connection when asked without one)",
            f"{_SECURITY}={'SASL_SSL' if tls else 'SASL_PLAINTEXT'}, with "
            "RUNNERSTREAM_KAFKA_USER and RUNNERSTREAM_KAFKA_PASSWORD",
        )
    for host, port in _brokers(answer):
        try:
            socket.create_connection((host, port), PROBE_S).close()
        except OSError as error:
            return Cause(
                f"{server} answers, but tells clients to go on to {host}:{port}, and that fails: "
                f"{error.strerror or error}",
                "mend advertised.listeners of the broker, or the network or DNS on the way",
            )
    return None


def _request(link: socket.socket, key: int, version: int, body: bytes) -> bytes:
    """One request of Kafka's protocol; the answer without its header."""
    client = b"runnerstream-doctor"
    head = struct.pack(">hhih", key, version, 1, len(client)) + client
    try:
        link.sendall(struct.pack(">i", len(head) + len(body)) + head + body)
        start = _read(link, 4)
        (size,) = struct.unpack(">i", start)
        if not 4 <= size <= _MOST_BYTES:
            raise _Foreign(start)
        return _read(link, size)[4:]
    except TimeoutError:
        raise _Silence from None


def _read(link: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        more = link.recv(size - len(got))
        if not more:
            if got:
                raise _Foreign(got)
            raise _Closed
        got += more
    return got


def _strings(raw: bytes) -> list[str]:
    (count,) = struct.unpack_from(">i", raw)
    found, at = [], 4
    for _ in range(max(0, min(count, 100))):
        (length,) = struct.unpack_from(">h", raw, at)
        found.append(raw[at + 2 : at + 2 + length].decode(errors="replace"))
        at += 2 + length
    return found


def _brokers(raw: bytes) -> list[tuple[str, int]]:
    """Addresses in an answer about metadata, version 4."""
    found = []
    try:
        (count,) = struct.unpack_from(">i", raw, 4)
        at = 8
        for _ in range(max(0, min(count, 1_000))):
            (length,) = struct.unpack_from(">h", raw, at + 4)
            host = raw[at + 6 : at + 6 + length].decode()
            at += 6 + length
            port, rack = struct.unpack_from(">ih", raw, at)
            at += 6 + max(0, rack)
            found.append((host, port))
    except (struct.error, UnicodeDecodeError):
        pass  # not as that version has it: nothing is known
    return found


def _foreign(start: bytes, server: str, sasl: bool) -> Cause:
    if start[:2] in _TLS:
        return Cause(
            f"{server} speaks TLS, and it was asked without",
            f"{_SECURITY}={'SASL_SSL' if sasl else 'SSL'}",
        )
    other = "an HTTP server" if start.startswith(b"HTTP") else "something else than Kafka"
    return Cause(
        f"{other} listens at {server}", "set RUNNERSTREAM_KAFKA to host:port of a Kafka broker"
    )


def _no_tls(server: str, sasl: bool) -> Cause:
    return Cause(
        f"{server} does not speak TLS, and it was asked to",
        f"{_SECURITY}={'SASL_PLAINTEXT' if sasl else 'PLAINTEXT'}",
    )


def _ended(
    error: Exception, settings: Settings, address: tuple[str, int], server: str
) -> Cause | None:
    """The other side ended the connection, or TLS failed."""
    sasl = settings.kafka_security.startswith("SASL")
    if "SSL" not in settings.kafka_security:
        if _speaks_tls(address):
            return _foreign(_TLS[0], server, sasl)
        return Cause(
            f"{server} ends the connection at the first question",
            "is it a Kafka broker, and are we let in (listeners, firewall)?",
        )
    reason = getattr(error, "reason", None) or ""
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        return Cause(
            f"{server} wants a certificate of ours ({reason.lower().replace('_', ' ')})",
            "name it with RUNNERSTREAM_KAFKA_CERT_FILE and RUNNERSTREAM_KAFKA_KEY_FILE",
        )
    if _speaks_plainly(address):
        return _no_tls(server, sasl)
    if "WRONG_VERSION" in reason or "RECORD_LAYER" in reason:
        return _no_tls(server, sasl)
    return Cause(
        f"{server} ends the connection during the TLS handshake"
        + (f" ({reason.lower().replace('_', ' ')})" if reason else ""),
        "does it ask for a certificate of ours (RUNNERSTREAM_KAFKA_CERT_FILE), and does it speak "
        "TLS 1.2 or newer?",
    )


def _speaks_plainly(address: tuple[str, int]) -> bool:
    """Whether a Kafka broker answers there without TLS."""
    try:
        with closing(socket.create_connection(address, PROBE_S)) as link:
            link.settimeout(PROBE_S)
            _request(link, _API_VERSIONS, 0, b"")
            return True
    except (OSError, _Silence, _Closed, _Foreign, struct.error):
        return False


def _speaks_tls(address: tuple[str, int]) -> bool:
    """Whether there is TLS on the other side, whoever it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            closing(socket.create_connection(address, PROBE_S)) as plain,
            closing(context.wrap_socket(plain, server_hostname=address[0])),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False


# -- ClickHouse ------------------------------------------------------------------------------------


def clickhouse_cause(host: str, port: int, secure: bool) -> Cause | None:
    """Why a native client fails there; ``None`` when nothing is found."""
    where = f"{host}:{port}"
    started = "start it (`runnerstream local up` for this machine) or set RUNNERSTREAM_CLICKHOUSE"
    try:
        with closing(socket.create_connection((host, port), PROBE_S)) as link:
            link.settimeout(PROBE_S)
            # Every ClickHouse port says something to this, and each something else.
            link.sendall(b"GET / HTTP/1.0\r\n\r\n")
            try:
                answer = link.recv(4096)
            except TimeoutError:
                return Cause(
                    f"{where} takes the connection and says nothing",
                    "is ClickHouse stopped, overloaded, or is this another server's port?",
                )
    except TimeoutError:
        return Cause(
            f"no connection to {where} within {PROBE_S:g} s",
            "is the address right, and does a firewall drop it? set RUNNERSTREAM_CLICKHOUSE",
        )
    except ConnectionResetError:
        answer = b""
    except OSError as error:
        return Cause(error.strerror or str(error), started)
    if answer[:2] in _TLS or (not answer and not secure and _speaks_tls((host, port))):
        if secure:
            return None
        return Cause(
            f"{where} speaks TLS, and it was asked without",
            "write clickhouses:// instead of clickhouse:// in RUNNERSTREAM_CLICKHOUSE",
        )
    if answer.startswith(b"HTTP/") and b"clickhouse-client" not in answer:
        return Cause(
            f"{where} is a port for HTTP, and this program speaks ClickHouse's native protocol",
            "use the native port in RUNNERSTREAM_CLICKHOUSE: usually 9000, or 9440 with TLS",
        )
    if secure and b"clickhouse-client" in answer:
        return Cause(
            f"{where} does not speak TLS, and it was asked to",
            "write clickhouse:// in RUNNERSTREAM_CLICKHOUSE, or the port for TLS, usually 9440",
        )
    return None
