"""Where a new group begins. Written down before it reads anything.

What a group has not committed is decided anew at each start. A partition that had nothing to
commit yet would begin at its end again, and what came meanwhile would be passed over. So the first
start commits a place for every partition; one that is added later begins at its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from pipeline.faust_safe.identity import log_names
from sinks.consumer import known_options, make_consumer
from topics.catalogue import WEBHOOKS

#: How long the broker may take for an answer.
_ANSWER_MS: Final = 5_000

#: ``earliest``, ``latest``, or a time in milliseconds since 1970.
Begin = str | int


def found(kafka: Mapping[str, Any], group: str, begin: Begin) -> bool:
    """Commit where a group begins that has committed nothing yet; whether it had not.

    Raises kafka.errors.KafkaError.
    """
    consumer = make_consumer(
        {
            "bootstrap_timeout_ms": _ANSWER_MS,
            "metrics_enabled": False,
            "allow_auto_create_topics": False,
            **known_options(kafka, KafkaConsumer, KafkaProducer),
            "group_id": group,
            "enable_auto_commit": False,
        }
    )
    try:
        numbers = consumer.partitions_for_topic(WEBHOOKS)
        if not numbers:
            raise KafkaError(f"there is no topic {WEBHOOKS}: `runnerstream topics apply`")
        places = [TopicPartition(WEBHOOKS, number) for number in sorted(numbers)]
        consumer.assign(places)
        if any(consumer.committed(where) is not None for where in places):
            return False
        offsets = _places(consumer, places, begin)
        consumer.commit({w: OffsetAndMetadata(offset, "", -1) for w, offset in offsets.items()})
        return True
    finally:
        consumer.close(autocommit=False, timeout_ms=2_000)


async def mark_of(kafka: Mapping[str, Any], group: str) -> str:
    """A name for a group that no group of another Kafka has. Raises kafka.errors.KafkaError."""
    names = await log_names(kafka, {WEBHOOKS})
    return blake2b(f"{names[WEBHOOKS]}/{group}".encode(), digest_size=12).hexdigest()


def _places(
    consumer: Any, places: list[TopicPartition], begin: Begin
) -> Mapping[TopicPartition, int]:
    if begin == "earliest":
        begins: dict[TopicPartition, int] = consumer.beginning_offsets(
            places, timeout_ms=_ANSWER_MS
        )
        return begins
    ends: dict[TopicPartition, int] = consumer.end_offsets(places, timeout_ms=_ANSWER_MS)
    if begin == "latest":
        return ends
    at = consumer.offsets_for_times(dict.fromkeys(places, begin), timeout_ms=_ANSWER_MS)
    return {w: ends[w] if at.get(w) is None else at[w].offset for w in places}
