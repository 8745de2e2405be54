"""What the prober posts: evidence, then the answer, each acknowledged by all replicas in sync.

Evidence first: who reads that a question is answered has read what the provider said. A crash
between the two asks again, and posts the same ids again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError

from pipeline.providers.api import Detail, Said
from pipeline.providers.base import Fact
from sinks.consumer import known_options
from sinks.health import BrokerOutage
from sinks.writer import Abandoned, Backoff, describe
from topics.catalogue import DEAD_LETTERS, JOBS, MAX_DEAD_LETTER_BYTES
from topics.dead_letters import letter_bytes, without_value
from topics.models import DeadLetter, JobFact
from topics.recovery import Answer, Answered, Probe, StallFact

log = logging.getLogger(__name__)

#: How long the broker may take to acknowledge a record before it is sent again. Seconds.
_PATIENCE_S: Final = 15.0


class _Record(NamedTuple):
    topic: str
    key: str
    value: bytes


def answer_of(probe: Probe, said: Said, now: int) -> JobFact:
    """The fact that a probe is answered. ``now`` is the wall clock in ms.

    Raises pydantic.ValidationError for a probe that no fact could answer.
    """
    return JobFact(
        id=f"{probe.id[:500]}:answered",
        source="runnerstream",
        occurred_at=now,
        received_at=now,
        key=probe.key,
        trace=probe.trace,
        cause="recovery.answered",
        stall=StallFact(
            n=probe.n,
            kind=probe.stall,
            since=probe.since,
            opened_at=probe.opened_at,
            fence=probe.fence,
            answered=Answered(k=probe.k, at=now, answer=said.answer, detail=said.detail),
        ),
    )


class Post:
    """Posts records and does not give up until ``stopping`` is set. Safe from several threads."""

    def __init__(
        self,
        kafka: Mapping[str, Any],
        client_id: str,
        broker: BrokerOutage,
        stopping: threading.Event,
        backoff: Backoff,
    ) -> None:
        self._options = {
            "acks": "all",
            "client_id": client_id,
            "metrics_enabled": False,
            "max_request_size": MAX_DEAD_LETTER_BYTES,
            "max_block_ms": 5_000,
            "allow_auto_create_topics": False,
            # As of the sink's letters: ids are deterministic, so a repeated record does no harm,
            # and one that the broker refuses would stop an idempotent producer for good.
            "enable_idempotence": False,
            **known_options(kafka, KafkaProducer, KafkaConsumer),
        }
        self._broker = broker
        self._stopping = stopping
        self._backoff = backoff
        self._lock = threading.Lock()
        self._producer: Any = None

    def answers(self, probes: Sequence[Probe], said: Said, now: int) -> Said:
        """Post what was said for all who asked; what was said in the end.

        That is unknown when the broker does not take the evidence for its size. Raises
        :class:`sinks.writer.Abandoned` when it is to stop before the broker has all.
        """
        try:
            self._acknowledged([_of(fact) for fact in said.facts])
        except MessageSizeTooLargeError:
            log.error("what the provider says of %s is too large for %s", probes[0].key, JOBS)
            said = Said(Answer.UNKNOWN, detail=Detail.MALFORMED)
        self._acknowledged([_of(answer_of(probe, said, now)) for probe in probes])
        return said

    def letter(self, letter: DeadLetter) -> None:
        """Post a dead letter. Raises like :meth:`answers`."""
        try:
            self._acknowledged([_Record(DEAD_LETTERS, letter.key, letter_bytes(letter))])
        except MessageSizeTooLargeError:
            small = without_value(letter)
            self._acknowledged([_Record(DEAD_LETTERS, small.key, letter_bytes(small))])

    def close(self) -> None:
        """Let go of the broker."""
        with self._lock:
            if self._producer is not None:
                self._producer.close(timeout=2)

    def _acknowledged(self, records: Sequence[_Record]) -> None:
        attempt = 0
        while records:
            try:
                producer = self._made()
                sent = [
                    producer.send(each.topic, key=each.key.encode(), value=each.value)
                    for each in records
                ]
                for future in sent:
                    future.get(timeout=_PATIENCE_S)
            except MessageSizeTooLargeError:
                raise
            except KafkaError as error:
                attempt += 1
                self._broker.failed(error)
                if attempt == 1:
                    log.warning("not posted, trying on: %s", describe(error))
                if self._stopping.wait(self._backoff.delay(attempt)):
                    raise Abandoned(describe(error)) from error
            else:
                self._broker.over()
                return

    def _made(self) -> Any:
        with self._lock:
            if self._producer is None:
                self._producer = KafkaProducer(**self._options)
            return self._producer


def _of(fact: Fact) -> _Record:
    return _Record(JOBS, fact.key, fact.model_dump_json(exclude_none=True).encode())
