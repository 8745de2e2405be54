"""Connections to Kafka, ClickHouse and a worker for commands; failing says what to do."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from clickhouse_driver import Client
from clickhouse_driver.errors import Error as ClickHouseError
from clickhouse_driver.errors import NetworkError, SocketTimeoutError
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from pipeline.commands.common import PATIENCE_S, UNREACHABLE, USAGE, Failure, place, short
from pipeline.settings import Settings
from topics.apply import Plan, TopicsError, plan
from topics.catalogue import TopicSpec, catalogue


@contextmanager
def kafka_admin(settings: Settings) -> Iterator[Any]:
    """An admin client. Raises :class:`Failure` with code 3 when no broker answers."""
    try:
        _require_listener(settings)
        admin = KafkaAdminClient(
            **settings.kafka_options(),
            client_id=f"{settings.app_id}-cli",
            bootstrap_timeout_ms=int(PATIENCE_S * 1000),
            request_timeout_ms=int(PATIENCE_S * 1000),
        )
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
        host, _, port = server.rpartition(":")
        try:
            address = (host.strip("[]") or server, int(port or 9092))
            socket.create_connection(address, timeout=PATIENCE_S).close()
            return
        except ValueError:
            raise OSError(f"{server!r} is not host:port") from None
        except OSError as error:
            last = error
    raise last or OSError("no broker is named")


def broker_failure(settings: Settings, error: BaseException) -> Failure:
    """No broker answers: what to tell."""
    return Failure(
        f"no Kafka broker answers at {settings.kafka}: {short(error)}",
        "start one (`runnerstream local up` for this machine) or set RUNNERSTREAM_KAFKA",
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
        return plan(settings.kafka_options(), specs(settings))
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


def clickhouse_failure(settings: Settings, error: BaseException) -> Failure:
    """ClickHouse cannot be reached or refuses: what to tell."""
    where = place(settings.clickhouse.get_secret_value())
    if isinstance(error, (NetworkError, SocketTimeoutError, OSError, EOFError)):
        return Failure(
            f"ClickHouse does not answer at {where}: {short(error)}",
            "start it (`runnerstream local up` for this machine) or set RUNNERSTREAM_CLICKHOUSE",
            UNREACHABLE,
        )
    return Failure(f"ClickHouse at {where} refuses: {short(error)}")


@contextmanager
def clickhouse(settings: Settings) -> Iterator[Client]:
    """A connected client. Raises :class:`Failure`: 3 when unreachable, 1 when it refuses."""
    url = clickhouse_url(settings)
    client = None
    try:
        client = Client.from_url(url)
        client.connection.connect_timeout = PATIENCE_S
        client.execute("SELECT 1")
    except (ClickHouseError, OSError, EOFError, ValueError) as error:
        raise clickhouse_failure(settings, error) from None
    try:
        yield client
    finally:
        client.disconnect()


class Answer(dict[str, Any]):
    """A worker's JSON answer, with its HTTP status."""

    status: int = 200


def ask(base: str, path: str, query: dict[str, Any] | None = None, timeout: float = 10.0) -> Answer:
    """GET a JSON view of a worker. Error statuses are answers too.

    Raises :class:`Failure` with code 3 when nothing answers there.
    """
    given = {name: value for name, value in (query or {}).items() if value not in (None, "")}
    url = f"{base.rstrip('/')}{path}" + (f"?{urlencode(given)}" if given else "")
    request = urllib.request.Request(url, headers={"Accept": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            status, body = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, body = error.code, error.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise Failure(
            f"no worker answers at {base}: {reason}",
            "start one with `runnerstream worker`, or name another with --url",
            UNREACHABLE,
        ) from None
    try:
        answer = Answer(json.loads(body))
    except (ValueError, TypeError):
        raise Failure(
            f"{url} is not a runnerstream worker: it answered {status} and no JSON object",
            "name the worker with --url, or set RUNNERSTREAM_WEB_HOST and RUNNERSTREAM_WEB_PORT",
        ) from None
    answer.status = status
    return answer


def worker_url(settings: Settings) -> str:
    """Where the worker of these settings can be reached."""
    return f"http://{settings.web_host}:{settings.web_port}"
