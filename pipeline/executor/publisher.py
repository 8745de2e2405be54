"""Writes outcomes and dead letters, and waits until the broker has them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError

from pipeline.executor.outcomes import HOLDER, now_ms
from sinks.consumer import known_options
from sinks.writer import Backoff
from topics.catalogue import DEAD_LETTERS, MAX_DEAD_LETTER_BYTES, OUTCOMES
from topics.dead_letters import SourceRecord, dead_letter, letter_bytes, without_value
from topics.models import Unreadable
from topics.recovery import Outcome

log = logging.getLogger(__name__)

#: The name of this step in dead letters.
STAGE: Final = "executor"
#: How long one attempt may take. The broker may have the record although we did not hear of it;
#: every record has a deterministic id, so a second copy does no harm.
_DELIVERY_MS: Final = 10_000

#: Whether to stop trying.
GiveUp = Callable[[], bool]


class Publisher:
    """A producer that tries until the broker acknowledges. Safe from any thread.

    Args:
        holder: names this process in the outcomes that it starts.
        pause: waits so many seconds, or until the process is to end.
    """

    def __init__(
        self,
        kafka: Mapping[str, Any],
        client_id: str,
        holder: str,
        pause: Callable[[float], object],
        backoff: Backoff,
    ) -> None:
        self._options = {
            "client_id": client_id,
            "metrics_enabled": False,
            "linger_ms": 0,
            "bootstrap_timeout_ms": 5_000,
            "max_request_size": MAX_DEAD_LETTER_BYTES,
            "allow_auto_create_topics": False,
            "reconnect_backoff_max_ms": 3_000,
            "request_timeout_ms": _DELIVERY_MS // 2,
            "delivery_timeout_ms": _DELIVERY_MS,
            "max_block_ms": _DELIVERY_MS,
            **known_options(kafka, KafkaProducer, KafkaConsumer),
            "acks": "all",
            # One record that is refused as too large makes an idempotent producer of kafka-python
            # 3.0 refuse all later ones (sinks/letters.py).
            "enable_idempotence": False,
        }
        self._holder = holder.encode()
        self._pause = pause
        self._backoff = backoff
        self._lock = threading.Lock()
        self._producer: Any = None
        #: Why nothing can be written; empty when it can.
        self.trouble = ""

    def outcome(self, outcome: Outcome, give_up: GiveUp) -> bool:
        """Write it; whether the broker has it. False only after ``give_up`` said so."""
        headers = [(HOLDER, self._holder)]
        value = outcome.model_dump_json(exclude_defaults=True).encode()
        return self._put(OUTCOMES, outcome.key.encode(), value, headers, give_up)

    def letter(self, record: SourceRecord, why: Unreadable, give_up: GiveUp) -> bool:
        """Write the dead letter of a record. As :meth:`outcome`."""
        letter = dead_letter(STAGE, record, why, now_ms())
        key = letter.key.encode()
        try:
            return self._put(DEAD_LETTERS, key, letter_bytes(letter), [], give_up)
        except MessageSizeTooLargeError:
            # The record still lies in its own topic, at the offset that the letter tells.
            short = letter_bytes(without_value(letter))
            return self._put(DEAD_LETTERS, key, short, [], give_up)

    def close(self) -> None:
        """Let go of the broker."""
        with self._lock:
            if self._producer is not None:
                self._producer.close(timeout=2)

    def _put(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        headers: Sequence[tuple[str, bytes]],
        give_up: GiveUp,
    ) -> bool:
        attempt = 0
        while True:
            try:
                sent = self._made().send(topic, value=value, key=key, headers=list(headers))
                sent.get(timeout=_DELIVERY_MS / 1000 + 5)
            except MessageSizeTooLargeError:
                raise
            except KafkaError as error:
                attempt += 1
                self.trouble = f"{type(error).__name__}: {error}"
                log.warning("not written to %s, trying on: %s", topic, self.trouble)
            else:
                self.trouble = ""
                return True
            if give_up():
                return False
            self._pause(self._backoff.delay(attempt))

    def _made(self) -> Any:
        with self._lock:
            if self._producer is None:
                self._producer = KafkaProducer(**self._options)
            return self._producer
