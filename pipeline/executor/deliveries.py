"""Finds the delivery by which a provider first told of a job, byte for byte, in the log."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kafka.errors import KafkaError

from pipeline.executor.log import places_at, reader_options
from pipeline.providers.registry import PROVIDERS, check
from sinks.consumer import make_consumer, position_of
from topics import bridge
from topics.catalogue import WEBHOOKS
from topics.dead_letters import SourceRecord
from topics.keys import parse_job_key
from topics.models import DELIVERY, Delivery, JobFact, Unreadable
from topics.reading import read

log = logging.getLogger(__name__)

#: From where on is looked, before the job was first heard of, and up to when after it, in log time.
#: Receivers and bridges hold deliveries for seconds; the clocks of both may differ.
BEFORE_MS: Final = 60_000
AFTER_MS: Final = 300_000
#: The event and action that have a runner started for a job.
EVENT: Final = "github.workflow_job"
ACTION: Final = "queued"


class LogUnread(Exception):
    """The log could not be read to the end of the search."""


@dataclass(frozen=True, slots=True)
class Original:
    """A delivery as it came: body untouched, names of headers lower-case."""

    id: str
    headers: Mapping[str, str]
    body: bytes


def original(
    record: SourceRecord,
    job_key: str,
    secrets: Mapping[str, Sequence[bytes]],
    trust_envelopes: bool = False,
) -> Original | None:
    """The delivery in a record, when it told that the job is queued; None otherwise. Pure.

    What a worker with these secrets would not believe is none: else a body that somebody forged
    would be signed by us and sent on.
    """
    value = record.value
    _, _, job_id = parse_job_key(job_key)
    if value is None or job_id.encode() not in value:
        return None
    try:
        raw = bridge.raw(record)
        if raw is not None and not raw.enveloped:
            delivery, headers, body = bridge.delivery(raw), raw.headers, raw.body
            checked = True
        else:
            delivery = read(DELIVERY, value)
            headers = {name.lower(): told for name, told in delivery.headers.items()}
            body = delivery.payload.encode("utf-8", "surrogatepass")
            checked = not trust_envelopes
        if delivery.kind != EVENT:
            return None
        if checked:
            check(PROVIDERS["github"], headers, body, secrets)
        if not _queued(delivery, job_key):
            return None
    except Unreadable:
        return None
    return Original(delivery.id, headers, body)


def _queued(delivery: Delivery, job_key: str) -> bool:
    facts = PROVIDERS["github"].facts(delivery)
    if not any(isinstance(fact, JobFact) and fact.key == job_key for fact in facts):
        return False
    try:
        found = json.loads(delivery.payload)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("action") == ACTION


class Deliveries:
    """Searches ``runners.webhooks``. Safe from any thread: each search has a consumer of its own.

    Args:
        secrets: of the settings; see :func:`original`.
        patience_s: how long one search may take.
    """

    def __init__(
        self,
        kafka: Mapping[str, Any],
        client_id: str,
        secrets: Mapping[str, Sequence[bytes]],
        trust_envelopes: bool = False,
        stopping: threading.Event | None = None,
        patience_s: float = 60.0,
    ) -> None:
        self._options = reader_options(kafka, client_id)
        self._secrets = secrets
        self._trusted = trust_envelopes
        self._stopping = stopping or threading.Event()
        self._patience_s = patience_s

    def find(self, job_key: str, first_seen: int) -> Original | None:
        """The delivery of the job that was first heard of then (ms); None when the log has none.

        Raises :class:`LogUnread` when that cannot be told.
        """
        try:
            consumer = make_consumer(self._options)
        except KafkaError as error:
            raise LogUnread(f"{type(error).__name__}: {error}") from None
        try:
            return self._search(consumer, job_key, first_seen)
        except KafkaError as error:
            raise LogUnread(f"{type(error).__name__}: {error}") from None
        finally:
            consumer.close(autocommit=False, timeout_ms=2_000)

    def _search(self, consumer: Any, job_key: str, first_seen: int) -> Original | None:
        begin, ends = places_at(consumer, WEBHOOKS, first_seen - BEFORE_MS)
        left = {where for where, offset in begin.items() if offset < ends[where]}
        if not left:
            return None
        consumer.assign(sorted(left))
        for where in left:
            consumer.seek(where, begin[where])
        deadline = time.monotonic() + self._patience_s
        while left:
            if time.monotonic() > deadline or self._stopping.is_set():
                raise LogUnread(f"searched {self._patience_s:g} s for {job_key} and was not done")
            for where, records in consumer.poll(timeout_ms=500).items():
                for record in records:
                    if record.timestamp > first_seen + AFTER_MS:
                        left.discard(where)
                        break
                    found = original(record, job_key, self._secrets, self._trusted)
                    if found is not None:
                        return found
            left -= {where for where in left if (position_of(consumer, where) or 0) >= ends[where]}
            done = consumer.assignment() - left - consumer.paused()
            if done:
                consumer.pause(*done)
        return None
