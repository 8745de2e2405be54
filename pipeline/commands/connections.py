"""Connections to Kafka, ClickHouse and a worker for commands; failing says what to do.

Every wait has a limit, and its message says what was waited for: :data:`PATIENCE_S` for a server to
answer at all, :data:`SILENCE_S` for one that has begun a statement to give a sign of life.
"""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

from clickhouse_driver import Client
from clickhouse_driver.errors import Error as ClickHouseError
from clickhouse_driver.errors import (
    NetworkError,
    ServerException,
    SocketTimeoutError,
    UnexpectedPacketFromServerError,
)
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from pydantic import SecretStr

from pipeline.commands.failure import UNREACHABLE, USAGE, Failure, place, short
from pipeline.commands.unreachable import address_of, clickhouse_cause, kafka_cause
from pipeline.roles.role import http
from pipeline.settings import Settings, default_data_dir
from topics.apply import Plan, TopicsError, plan
from topics.catalogue import TopicSpec, catalogue

#: How long a command waits for a server to answer before it says so. Seconds.
PATIENCE_S: Final = 8.0
#: How long ClickHouse may give no sign of life during a statement. It tells of progress several
#: times a second while it reads; some changes of tables are done in silence. Seconds.
SILENCE_S: Final = 60.0
#: Most bytes of a worker's answer.
ANSWER_BYTES: Final = 256 << 20

T = TypeVar("T")


def beside_a_demo(settings: Settings) -> str:
    """What to do when the ClickHouse of the defaults answers and belongs to a demo that runs on
    this machine, whose user it asks for; blank otherwise."""
    file = default_data_dir() / "demo" / "env"
    default = Settings.model_fields["clickhouse"].default
    if settings.clickhouse != default or not file.exists():
        return ""
    return f"a demo is running here, which has a user of its own: add --config {file}"


def within(seconds: float, what: str, call: Callable[[], T]) -> T:
    """The result of ``call``, or TimeoutError saying ``what`` was waited for.

    For calls whose own limits leave gaps: the resolver of names, a peer that sends a byte now and
    then. What was given up goes on in a thread that does not keep the program from ending.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=f"waiting for {what}", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"waited {seconds:g} s for {what}")
    return results[0]


def kafka_options(settings: Settings) -> dict[str, Any]:
    """Options of kafka-python's clients for a person who waits."""
    limit = int(PATIENCE_S * 1000)
    return {
        **settings.kafka_options(),
        "bootstrap_timeout_ms": limit,
        "request_timeout_ms": limit,
    }


@contextmanager
def kafka_admin(settings: Settings) -> Iterator[Any]:
    """An admin client. Raises :class:`Failure` with code 3 when no broker answers."""
    try:
        _require_listener(settings)
        admin = KafkaAdminClient(**kafka_options(settings), client_id=f"{settings.app_id}-cli")
    except (KafkaError, OSError) as error:
        raise broker_failure(settings, error) from None
    try:
        yield admin
    finally:
        admin.close()


def _require_listener(settings: Settings) -> None:
    """Raise OSError when nothing listens at any of the brokers' addresses: the client would try
    on for as long as it is allowed to."""
    last: OSError | None = None
    for server in settings.bootstrap:
        try:
            socket.create_connection(address_of(server, 9092), timeout=PATIENCE_S).close()
            return
        except OSError as error:
            last = error
    raise last or OSError("no broker is named")


def broker_failure(settings: Settings, error: BaseException) -> Failure:
    """No broker serves us: what to tell. Asks the brokers why, which takes some seconds at most."""
    cause = None
    with suppress(TimeoutError):
        cause = within(2 * PATIENCE_S, "a reason", lambda: kafka_cause(settings))
    if cause is not None:
        return Failure(
            f"no Kafka broker answers at {settings.kafka}: {cause.what}", cause.remedy, UNREACHABLE
        )
    login = settings.kafka_security.startswith("SASL")
    return Failure(
        f"no Kafka broker serves us at {settings.kafka}: {short(error)} (waited {PATIENCE_S:g} s)",
        "are RUNNERSTREAM_KAFKA_USER and RUNNERSTREAM_KAFKA_PASSWORD right? The broker's log says "
        "more"
        if login
        else "look at the broker's log; `runnerstream doctor` looks at everything else",
        UNREACHABLE,
    )


def specs(settings: Settings) -> tuple[TopicSpec, ...]:
    """The topics as the settings want them. Raises :class:`Failure` for impossible numbers."""
    try:
        return catalogue(
            settings.partitions,
            settings.replication_factor,
            settings.min_insync_replicas,
            settings.app_id,
        )
    except ValueError as error:
        raise Failure(f"topics cannot be like that: {error}", exit_code=USAGE) from None


def topics_plan(settings: Settings) -> Plan:
    """How the cluster's topics differ from the settings."""
    with kafka_admin(settings):
        pass  # so that "not reachable" and "refused" end differently
    try:
        return plan(kafka_options(settings), specs(settings))
    except TopicsError as error:
        raise Failure(str(error)) from None


def clickhouse_url(settings: Settings) -> str:
    """The URL. Raises :class:`Failure` when none is configured."""
    url = settings.clickhouse.get_secret_value()
    if not url:
        raise Failure(
            "setting clickhouse is empty, so there is no ClickHouse to use",
            "set RUNNERSTREAM_CLICKHOUSE=clickhouse://user:password@host:9000/runnerstream",
            USAGE,
        )
    return url


def bounded(url: str) -> str:
    """The URL with our limits, where it has none of its own."""
    parts = urlsplit(url)
    given = parse_qs(parts.query)
    limits = {"connect_timeout": PATIENCE_S, "send_receive_timeout": SILENCE_S}
    more = "&".join(f"{name}={value:g}" for name, value in limits.items() if name not in given)
    return urlunsplit(parts._replace(query="&".join(filter(None, [parts.query, more]))))


def clickhouse_failure(settings: Settings, error: BaseException) -> Failure:
    """ClickHouse cannot be reached or refuses: what to tell."""
    url = settings.clickhouse.get_secret_value()
    where = place(url)
    if isinstance(error, ServerException):
        return Failure(f"ClickHouse at {where} refuses: {short(error)}", _SERVER_REMEDIES.get(
            int(error.code or 0), ""))  # fmt: skip
    text = short(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return Failure(
            f"the certificate of ClickHouse at {where} is not trusted: {text}",
            "name the authority's PEM file in RUNNERSTREAM_CLICKHOUSE: "
            "clickhouses://.../database?ca_certs=/path/ca.pem",
            UNREACHABLE,
        )
    silent = isinstance(error, (SocketTimeoutError, TimeoutError))
    if silent or isinstance(
        error, (NetworkError, UnexpectedPacketFromServerError, OSError, EOFError)
    ):
        parts = urlsplit(url)
        secure = parts.scheme.lower() == "clickhouses"
        port = parts.port or (9440 if secure else 9000)
        cause = None
        with suppress(TimeoutError):
            cause = within(
                2 * PATIENCE_S,
                "a reason",
                lambda: clickhouse_cause(parts.hostname or "", port, secure),
            )
        waited = f" (waited {PATIENCE_S:g} s for its greeting)" if silent else ""
        return Failure(
            f"ClickHouse does not answer at {where}: {cause.what if cause else text}{waited}",
            cause.remedy
            if cause
            else "start it (`runnerstream local up` for this machine) or set "
            "RUNNERSTREAM_CLICKHOUSE",
            UNREACHABLE,
        )
    return Failure(f"ClickHouse at {where} refuses: {text}")


#: What to do about what a server says when somebody connects, by its code.
_SERVER_REMEDIES: Final = {
    81: "create the database with `runnerstream schema apply`",
    516: "are user and password in RUNNERSTREAM_CLICKHOUSE right, and percent-encoded?",
}


def open_clickhouse(settings: Settings, silence_s: float = SILENCE_S) -> Client:
    """A connected client. It waits :data:`PATIENCE_S` for a connection and a greeting, then
    ``silence_s`` for each sign of life. Raises :class:`Failure`: 3 unreachable, 1 refused."""
    url = clickhouse_url(settings)
    given = parse_qs(urlsplit(url).query)
    client = None
    try:
        client = Client.from_url(bounded(url))
        connection = client.connection
        later = connection.send_receive_timeout if "send_receive_timeout" in given else silence_s
        connection.send_receive_timeout = min(PATIENCE_S, later)
        client.execute("SELECT 1")
        connection.send_receive_timeout = later
        connection.socket.settimeout(later)
    except (ClickHouseError, OSError, EOFError, ValueError, RuntimeError, ImportError) as error:
        if client is not None:
            client.disconnect()
        raise clickhouse_failure(settings, error) from None
    return client


@contextmanager
def clickhouse(settings: Settings, silence_s: float = SILENCE_S) -> Iterator[Client]:
    """:func:`open_clickhouse` as a context."""
    client = open_clickhouse(settings, silence_s)
    try:
        yield client
    finally:
        client.disconnect()


def elsewhere(settings: Settings) -> Settings:
    """The same settings with the database that every server has."""
    parts = urlsplit(clickhouse_url(settings))
    url = SecretStr(urlunsplit(parts._replace(path="/default")))
    return settings.model_copy(update={"clickhouse": url})


def require_clickhouse(settings: Settings) -> None:
    """Raise :class:`Failure` unless the server answers; our database need not exist yet."""
    with clickhouse(elsewhere(settings)):
        pass


class Answer(dict[str, Any]):
    """A worker's JSON answer, with its HTTP status."""

    status: int = 200


def ask(base: str, path: str, query: dict[str, Any] | None = None, timeout: float = 10.0) -> Answer:
    """GET a JSON view of a worker. Error statuses are answers too.

    Raises :class:`Failure` with code 3 when nothing answers there.
    """
    given = {name: value for name, value in (query or {}).items() if value not in (None, "")}
    base = base.rstrip("/")
    url = f"{base}{path}" + (f"?{urlencode(given)}" if given else "")
    request = urllib.request.Request(url, headers={"Accept": "application/json"})

    def get() -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, response.read(ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(ANSWER_BYTES + 1)

    try:
        status, body = within(timeout, f"an answer to {path}", get)
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise Failure(
                f"no worker answers at {base}: waited {timeout:g} s for an answer to {path}",
                "is it stopped or very busy? look at its log",
                UNREACHABLE,
            ) from None
        raise Failure(
            f"no worker answers at {base}: "
            f"{getattr(reason, 'strerror', None) or reason or short(error)}",
            "start one with `runnerstream worker`, or set RUNNERSTREAM_WEB_HOST and "
            "RUNNERSTREAM_WEB_PORT to those of another",
            UNREACHABLE,
        ) from None
    if len(body) > ANSWER_BYTES:
        raise Failure(f"{base}{path} answers with more than {ANSWER_BYTES >> 20} MiB")
    try:
        answer = Answer(json.loads(body))
    except (ValueError, TypeError):
        raise Failure(
            f"{url} is not a runnerstream worker: it answered {status} and no JSON object",
            "set RUNNERSTREAM_WEB_HOST and RUNNERSTREAM_WEB_PORT to those of a worker",
        ) from None
    answer.status = status
    return answer


def web_url(base: str) -> str:
    """What a person gave as ``--url``. Raises :class:`Failure` with code 2 unless it is one."""
    try:
        parts = urlsplit(base)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise Failure("--url is not the address of a worker", "write it as http://host:port", USAGE)
    return base.rstrip("/")


def worker_url(settings: Settings) -> str:
    """Where the worker of these settings can be reached."""
    return http(settings.web_host, settings.web_port)


def local_url(bind: str, port: int) -> str:
    """Where something that listens on ``bind`` answers on this machine."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
    return http(everywhere.get(bind, bind), port)
