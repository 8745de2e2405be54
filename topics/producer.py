"""Posting records: a small batching producer for webhooks, lifecycle events and telemetry.

    from topics.producer import Producer

    with Producer("localhost:9092") as producer:
        producer.post(LifecycleEvent(...))

Every record is acknowledged by all in-sync replicas and written once (idempotent producer). What
could not be delivered raises: from the next :meth:`Producer.post`, :meth:`Producer.flush` or the
end of the ``with`` block, naming the topic and the key.

kafka-python computes each batch's checksum in Python unless the package ``crc32c`` is installed:
with it this producer sends five times as many webhooks a second.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from kafka import KafkaProducer
from kafka.errors import KafkaError, UnknownTopicOrPartitionError

from topics.bridge import CREDENTIALS
from topics.catalogue import EVENTS, LIFECYCLE, MAX_WEBHOOK_BYTES, WEBHOOKS
from topics.envelope import Record
from topics.events import Event, key_of
from topics.models import Delivery, LifecycleEvent

#: Where the records that users post belong.
_TOPIC_OF: Final[dict[type[Record], str]] = {
    Delivery: WEBHOOKS,
    LifecycleEvent: LIFECYCLE,
}


def addressed(record: Record) -> tuple[str, bytes, bytes]:
    """Topic, key and value of a record that users post. Raises TypeError for another."""
    if isinstance(record, Event):
        # Its kind is a default, so defaults are not left out.
        value = record.model_dump_json(exclude_none=True, exclude={"key"})
        return EVENTS, key_of(record).encode(), value.encode()
    topic = _TOPIC_OF.get(type(record))
    if topic is None:
        raise TypeError(f"{type(record).__name__} records are made by the pipeline itself")
    value = record.model_dump_json(exclude_defaults=True, by_alias=True)
    return topic, record.key.encode(), value.encode()


class DeliveryError(RuntimeError):
    """A record was not delivered. The others may have been."""

    def __init__(self, topic: str, key: bytes | None, cause: BaseException) -> None:
        shown = "no key" if key is None else key.decode("utf-8", "replace")
        super().__init__(f"not delivered to {topic} ({shown}): {type(cause).__name__}: {cause}")
        self.topic = topic
        self.key = key


class _Pending(NamedTuple):
    future: Any
    topic: str
    key: bytes | None
    size: int


class Producer:
    """Batches records to Kafka. Safe to share between threads.

    A key decides the partition as in Java's client (murmur2), so records of one job stay in
    order. ``linger_ms`` is how long a batch waits for company; ``max_in_flight_bytes`` bounds
    what is posted but not acknowledged: beyond it :meth:`send` waits. ``options`` go to
    kafka-python as they are (``security_protocol``, ``sasl_*``, ``ssl_*``).

    Raises ``kafka.errors.KafkaError`` when no broker can be reached.
    """

    def __init__(
        self,
        brokers: str | Sequence[str],
        *,
        client_id: str = "runnerstream",
        linger_ms: int = 20,
        batch_bytes: int = 256 * 1024,
        max_in_flight_bytes: int = 64 * 1024 * 1024,
        delivery_timeout_ms: int = 120_000,
        **options: Any,
    ) -> None:
        self._delivery_timeout_s = delivery_timeout_ms / 1000
        self._limit = max_in_flight_bytes
        self._lock = threading.Lock()
        self._pending: deque[_Pending] = deque()
        self._bytes = 0
        self._failed: DeliveryError | None = None
        self._closed = False
        self._kafka = KafkaProducer(
            bootstrap_servers=brokers,
            client_id=client_id,
            acks="all",
            enable_idempotence=True,
            linger_ms=linger_ms,
            batch_size=batch_bytes,
            delivery_timeout_ms=delivery_timeout_ms,
            max_request_size=MAX_WEBHOOK_BYTES,
            allow_auto_create_topics=False,
            **options,
        )

    def post(self, record: Record) -> None:
        """Post a :class:`Delivery`, a :class:`LifecycleEvent` or an event of telemetry
        (:mod:`topics.events`) to its topic under its key.

        All are written as envelopes. A webhook as it came in is for :meth:`webhook`: only there
        can workers check the signature that the provider made.

        Raises TypeError for a record that is not for users to post; else as :meth:`send`.
        """
        self.send(*addressed(record))

    def webhook(self, headers: Mapping[str, str], body: bytes, *, key: str | None = None) -> None:
        """Post a webhook as it came in: its HTTP headers, and the body's bytes untouched.

        The pipeline knows the provider and the event by the headers, and can check the signature;
        see :mod:`topics.bridge`. The record's time says when it arrived. ``key`` spreads the load
        and means nothing. Headers that are credentials are left out. Raises as :meth:`send`.
        """
        passed = [
            (name.lower(), value.encode("utf-8", "surrogateescape"))
            for name, value in headers.items()
            if name.lower() not in CREDENTIALS
        ]
        self.send(WEBHOOKS, None if key is None else key.encode(), body, passed)

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> None:
        """Post raw bytes; returns as soon as they are in a batch. ``partition``: instead of the
        one that the key decides.

        Waits while more than ``max_in_flight_bytes`` are unacknowledged. Raises
        :class:`DeliveryError` for this record, or for an earlier one before this one is taken
        (its ``topic`` and ``key`` tell which); RuntimeError when closed.
        """
        size = len(value or b"") + len(key or b"")
        size += sum(len(name) + len(said) for name, said in headers)
        self._raise_failure()
        self._make_room(size)
        if self._closed:
            raise RuntimeError("the producer is closed")
        try:
            # In order of acceptance by kafka-python, which is what the queue relies on.
            future = self._kafka.send(
                topic, value=value, key=key, headers=list(headers), partition=partition
            )
        except KafkaError as error:
            raise DeliveryError(topic, key, error) from error
        with self._lock:
            self._pending.append(_Pending(future, topic, key, size))
            self._bytes += size

    def partitions_of(self, topic: str) -> int:
        """How many partitions a topic has. Raises :class:`DeliveryError` when nobody can tell."""
        try:
            found = self._kafka.partitions_for(topic)
        except KafkaError as error:
            raise DeliveryError(topic, None, error) from error
        if not found:
            raise DeliveryError(topic, None, UnknownTopicOrPartitionError())
        return len(found)

    @property
    def unacknowledged_bytes(self) -> int:
        """Keys, headers and values posted and neither acknowledged nor given up."""
        self._settle()
        return self._bytes

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything posted so far is acknowledged.

        Raises :class:`DeliveryError` for the first record that was not, and
        ``kafka.errors.KafkaTimeoutError`` after ``timeout_s``.
        """
        self._kafka.flush(timeout=timeout_s)
        self._settle()
        self._raise_failure()

    def close(self, timeout_s: float | None = None) -> None:
        """Deliver what is left and disconnect. Raises like :meth:`flush`. May be called twice."""
        if self._closed:
            return
        try:
            self._kafka.flush(timeout=timeout_s)
        finally:
            self._closed = True
            self._kafka.close(timeout=timeout_s)
        self._settle()
        self._raise_failure()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        # Something else is already failing: deliver what can be, and let that be told.
        try:
            self.close(timeout_s=5)
        except (KafkaError, DeliveryError) as also:
            error.add_note(f"and while closing the producer: {also}")

    def _make_room(self, size: int) -> None:
        self._settle()
        while self._bytes and self._bytes + size > self._limit:
            with self._lock:
                oldest = self._pending[0] if self._pending else None
            if oldest is None:
                return
            with suppress(KafkaError):  # _settle() keeps it, with its topic and key
                oldest.future.get(timeout=self._delivery_timeout_s + 5)
            self._settle()
            self._raise_failure()

    def _settle(self) -> None:
        """Forget what is acknowledged, remember the first failure."""
        with self._lock:
            pending = self._pending
            while pending and pending[0].future.is_done:
                done = pending.popleft()
                self._bytes -= done.size
                if done.future.exception is not None and self._failed is None:
                    self._failed = DeliveryError(done.topic, done.key, done.future.exception)

    def _raise_failure(self) -> None:
        with self._lock:
            failed, self._failed = self._failed, None
        if failed is not None:
            raise failed
