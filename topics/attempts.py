"""One attempt to send a batch: a connection to Kafka, and what the brokers said to each record.

For :mod:`topics.emitter`, which decides when, and tries again.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from kafka import KafkaProducer
from kafka.errors import (
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from topics.batching import Parcel
from topics.catalogue import EVENTS, LIFECYCLE

#: What the brokers will never take, however often it is sent.
_REFUSALS: Final = (MessageSizeTooLargeError, RecordListTooLargeError)
#: How long brokers are asked for a topic before it counts as absent, and how long it then does.
_LOOK_S: Final = 2.0
_ASK_AGAIN_S: Final = 60.0
#: Options of kafka-python that are made from ours.
_OURS: Final = frozenset(
    {
        "acks", "allow_auto_create_topics", "batch_size", "bootstrap_servers",
        "bootstrap_timeout_ms", "delivery_timeout_ms", "enable_idempotence", "kafka_client",
        "key_serializer", "linger_ms", "max_block_ms", "max_request_size", "request_timeout_ms",
        "retries", "transactional_id", "value_serializer",
    }
)  # fmt: skip
#: How long a request's records may take to be handed to kafka-python, in ms. It sends none before,
#: unless told to: so a request of ours is one of Kafka's.
_HAND_OVER_MS: Final = 5_000


class Attempts:
    """A connection that is made when it is needed, and made anew after a failure.

    ``attempt_s``: how long one may take. ``connected`` is called whenever a client was made. Raises
    ValueError for an option of kafka-python that does not exist or is not to be set, and for an
    address that is none.
    """

    def __init__(
        self,
        brokers: str | Sequence[str],
        attempt_s: float,
        request_bytes: int,
        connected: Callable[[], None],
        options: dict[str, Any],
    ) -> None:
        for name in options:
            if name not in KafkaProducer.DEFAULT_CONFIG or name in _OURS:
                raise ValueError(f"{name} is no option of an emitter")
        servers = brokers.split(",") if isinstance(brokers, str) else list(brokers)
        self._addresses = [_address(server) for server in servers]
        self._attempt_s = attempt_s
        self._connected = connected
        attempt = max(1, round(attempt_s * 1000))
        # Trying again is the batcher's part. Then two copies of an event may reach the topic, which
        # an idempotent producer would not prevent.
        self._options: dict[str, Any] = {
            "client_id": "runnerstream-emitter",
            "metrics_enabled": False,
            **options,
            "bootstrap_servers": servers,
            "acks": "all",
            "enable_idempotence": False,
            "retries": 0,
            "linger_ms": _HAND_OVER_MS,
            "batch_size": 2 * request_bytes,
            "max_request_size": 2 * request_bytes,
            "request_timeout_ms": attempt,
            "delivery_timeout_ms": attempt + _HAND_OVER_MS,
            "allow_auto_create_topics": False,
        }
        self._client: Any = None
        self._refusal: BaseException | None = None
        self._asked_again_at = 0.0
        self._forgotten: list[Any] = []

    def send(
        self, parcels: Sequence[Parcel], left_s: float | None
    ) -> tuple[list[Parcel], list[Parcel], BaseException | None]:
        """Send them, within ``left_s`` if that is less than an attempt may take: what failed, what
        will never be taken, and why the first of these. Raises nothing.

        Brokers that lack only the topic of telemetry, or do not let this host write to it, refuse
        telemetry: what waits for them to be mended must not hold up lifecycle events.
        """
        limit = self._attempt_s if left_s is None else max(0.01, min(self._attempt_s, left_s))
        futures: dict[int, Any] = {}
        why: BaseException | None = None
        no_telemetry: BaseException | None = None
        try:
            client = self._client or self._connect(limit)
            if any(parcel.topic == EVENTS for parcel in parcels):
                no_telemetry = self._refuses_telemetry(client, limit)
            for n, parcel in enumerate(parcels):
                if parcel.topic != EVENTS or no_telemetry is None:
                    futures[n] = client.send(parcel.topic, key=parcel.key, value=parcel.value)
            client.flush(timeout=limit)
        except Exception as error:  # also what a driver raises that has met something unforeseen
            why = error
        failed: list[Parcel] = []
        refused: list[Parcel] = []
        for n, parcel in enumerate(parcels):
            of_telemetry = parcel.topic == EVENTS
            cause = (of_telemetry and no_telemetry) or _error_of(futures.get(n), why)
            if cause is None:
                continue
            never = isinstance(cause, _REFUSALS) or (
                of_telemetry and (cause is no_telemetry or _is_forbidden(futures.get(n)))
            )
            (refused if never else failed).append(parcel)
            why = why or cause
        if failed:
            self.discard()
        return failed, refused, why

    def _refuses_telemetry(self, client: Any, limit_s: float) -> BaseException | None:
        """Why brokers that take lifecycle events take no telemetry; None when they do, or when
        nobody answers."""
        metadata = client._metadata
        if metadata.partitions_for_topic(EVENTS) is not None:
            return None
        if time.monotonic() < self._asked_again_at:
            return self._refusal
        client.partitions_for(LIFECYCLE)
        try:
            client._wait_on_metadata(EVENTS, round(min(limit_s, _LOOK_S) * 1000))
        except TopicAuthorizationFailedError as error:
            self._refusal = error
        except KafkaTimeoutError:
            # Nobody answered, or there is no such topic: an answer of now tells.
            answered, answer = threading.Event(), metadata.request_update()
            answer.add_both(lambda *_: answered.set())
            client._sender.wakeup()
            answered.wait(limit_s)
            known = metadata.partitions_for_topic
            if not answer.succeeded() or known(EVENTS) is not None or known(LIFECYCLE) is None:
                return None
            self._refusal = UnknownTopicOrPartitionError(f"{EVENTS}: `runnerstream topics apply`")
        else:
            return None
        self._asked_again_at = time.monotonic() + _ASK_AGAIN_S
        return self._refusal

    def _connect(self, limit_s: float) -> Any:
        self._require_listener(limit_s)
        limit = max(1, round(limit_s * 1000))
        connections: list[Any] = []

        def connection(**options: Any) -> Any:
            connections.append(KafkaProducer.DEFAULT_CONFIG["kafka_client"](**options))
            return connections[0]

        try:
            self._client = KafkaProducer(
                **self._options,
                bootstrap_timeout_ms=limit,
                max_block_ms=limit,
                kafka_client=connection,
            )
        except BaseException:
            # Its files would stay open until garbage is collected, and outages are long.
            for each in connections:
                with suppress(Exception):
                    each.close()
            raise
        self._connected()
        return self._client

    def _require_listener(self, limit_s: float) -> None:
        """Raise OSError when nobody listens at any of the brokers' addresses: each client that
        finds that out by itself leaves sockets behind until garbage is collected."""
        if self._options.get("proxy_url") or self._options.get("socks5_proxy"):
            return
        last: OSError | None = None
        for host, port in self._addresses:
            try:
                socket.create_connection((host, port), timeout=limit_s).close()
                return
            except OSError as error:
                last = error
        raise last or OSError("no broker is named")

    def discard(self) -> None:
        """Close the connection, and give up what is left in it."""
        client, self._client = self._client, None
        if client is None:
            return
        with suppress(Exception):
            # close() alone raises, and closes nothing, when there are records left.
            client._sender.force_close()
            client._sender.join(1)
            client.close(timeout=0)

    def forget(self) -> None:
        """Use the connection no more, and leave it as it is: it is the parent process's."""
        client, self._client = self._client, None
        if client is not None:
            # So that it does not end itself with this process: a lock in it may have been held.
            client._closed = True
            self._forgotten.append(client)


def _address(server: str) -> tuple[str, int]:
    """Host and port, 9092 unless there is one. Raises ValueError."""
    server = server.strip().rpartition("://")[2]
    host, colon, port = server.rpartition(":")
    if not colon or server.endswith("]"):
        host, port = server, "9092"
    if not host or not port.isdecimal():
        raise ValueError(f"{server!r} is not the address of a broker: host:port")
    return host.strip("[]"), int(port)


def _error_of(future: Any, otherwise: BaseException | None) -> BaseException | None:
    """Why a record was not taken; None when it was."""
    if future is None or not future.is_done:
        return otherwise or KafkaTimeoutError("no answer")
    error: BaseException | None = future.exception
    return error


def _is_forbidden(future: Any) -> bool:
    return isinstance(_error_of(future, None), TopicAuthorizationFailedError)
