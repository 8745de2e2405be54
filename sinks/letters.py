"""What the sink cannot store, as dead letters."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError

from sinks import rows
from sinks.config import SinkConfig
from sinks.consumer import known_options
from sinks.health import BrokerOutage
from sinks.metrics import SinkMetrics
from sinks.writer import Abandoned, Refused, describe
from topics.catalogue import MAX_DEAD_LETTER_BYTES
from topics.dead_letters import SourceRecord, dead_letter, letter_bytes, without_value
from topics.models import DeadLetter

log = logging.getLogger(__name__)

#: How many letters of one batch have a line in the log.
_LETTERS_LOGGED: Final = 5


class Letters:
    """Posts dead letters. Its producer is made with the first one.

    ``stopping`` ends the waiting for a broker that is away.
    """

    def __init__(
        self,
        config: SinkConfig,
        metrics: SinkMetrics,
        broker: BrokerOutage,
        stopping: threading.Event,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._broker = broker
        self._stopping = stopping
        self._producer: Any = None

    def post(self, refused: Sequence[Refused]) -> None:
        """Post dead letters and wait until the broker has them, trying until it has."""
        waiting = []
        for record, why in refused:
            if record.topic == rows.DEAD_LETTERS and _is_ours(record):
                # A letter of this sink that this sink cannot store would write itself a letter,
                # and so on. It stays in its topic; here it is said aloud.
                self._metrics.unstorable.inc()
                log.error("dead letter %s:%d:%d cannot be stored: %s: %s", record.topic,
                          record.partition, record.offset, why.reason, why.error)  # fmt: skip
                continue
            waiting.append((record, why))
        now = int(time.time() * 1000)
        attempt = 0
        while waiting:
            try:
                self._send([dead_letter("sink", record, why, now) for record, why in waiting])
                break
            except KafkaError as error:
                # All of them again: a letter that comes twice has the same id.
                attempt += 1
                self._broker.failed(error)
                log.warning("dead letters not posted, trying on: %s", describe(error))
                if self._stopping.wait(self._config.backoff.delay(attempt)):
                    raise Abandoned(describe(error)) from error
        for number, (record, why) in enumerate(waiting):
            self._metrics.dead_letters.labels(why.reason.value).inc()
            if number < _LETTERS_LOGGED:
                log.warning("dead letter for %s:%d:%d: %s: %s", record.topic, record.partition,
                            record.offset, why.reason, why.error)  # fmt: skip
        if len(waiting) > _LETTERS_LOGGED:
            log.warning("and %d more dead letters", len(waiting) - _LETTERS_LOGGED)

    def _send(self, letters: Sequence[DeadLetter]) -> None:
        """Post letters and wait for all acknowledgements. Raises KafkaError."""
        if self._producer is None:
            options = {
                "acks": "all",
                "client_id": f"{self._config.group_id}-letters",
                "metrics_enabled": False,
                "max_request_size": MAX_DEAD_LETTER_BYTES,
                # kafka-python 3.0: one record that the broker refuses as too large puts an
                # idempotent producer into a fatal state, and every later record fails with it.
                # Letters have deterministic ids, so a repeated one does no harm.
                "enable_idempotence": False,
            }
            known = known_options(self._config.kafka, KafkaProducer, KafkaConsumer)
            self._producer = KafkaProducer(**{**options, **known})

        def post(letter: DeadLetter) -> Any:
            value = letter_bytes(letter)
            return self._producer.send(rows.DEAD_LETTERS, key=letter.key.encode(), value=value)

        posted = [(letter, post(letter)) for letter in letters]
        for letter, future in posted:
            try:
                future.get(timeout=30)
            except MessageSizeTooLargeError:
                # A topic that was not set up by the catalogue takes less. The record is then named
                # and not carried: it still lies in its own topic, at the offset the letter tells.
                post(without_value(letter)).get(timeout=30)

    def close(self) -> None:
        """Let go of the broker."""
        if self._producer is not None:
            self._producer.close(timeout=5)


def _is_ours(record: SourceRecord) -> bool:
    """Whether a record is a letter of this sink. Looked for in the bytes, since what makes the
    letter unstorable may make it unreadable too."""
    return b'"stage":"sink"' in (record.value or b"")
