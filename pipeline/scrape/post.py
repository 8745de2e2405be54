"""Posting events, each acknowledged by all replicas in sync. Their ids make a repeat harmless."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kafka import KafkaConsumer, KafkaProducer

from sinks.consumer import known_options
from topics.catalogue import EVENTS, MAX_DEAD_LETTER_BYTES
from topics.events import Event

#: How long the broker may take to acknowledge a record. Seconds.
_PATIENCE_S: Final = 15.0


class Post:
    """Posts events to ``runners.events``. Safe from several threads."""

    def __init__(self, kafka: Mapping[str, Any], client_id: str) -> None:
        self._options = {
            "acks": "all",
            "client_id": client_id,
            "metrics_enabled": False,
            "max_request_size": MAX_DEAD_LETTER_BYTES,
            "max_block_ms": 5_000,
            "allow_auto_create_topics": False,
            # As of the prober: ids are deterministic, so a repeated record does no harm, and one
            # that the broker refuses would stop an idempotent producer for good.
            "enable_idempotence": False,
            **known_options(kafka, KafkaProducer, KafkaConsumer),
        }
        self._lock = threading.Lock()
        self._producer: Any = None

    def __call__(self, events: Sequence[Event]) -> None:
        """Post them. Raises ``kafka.errors.KafkaError`` when one may not be there."""
        producer = self._made()
        sent = [
            producer.send(
                EVENTS,
                key=each.subject.encode("utf-8", "replace"),
                value=each.model_dump_json(exclude_none=True).encode("utf-8", "replace"),
            )
            for each in events
        ]
        for future in sent:
            future.get(timeout=_PATIENCE_S)

    def close(self) -> None:
        """Let go of the broker."""
        with self._lock:
            if self._producer is not None:
                self._producer.close(timeout=2)

    def _made(self) -> Any:
        with self._lock:
            if self._producer is None:
                self._producer = KafkaProducer(**self._options)
            return self._producer
