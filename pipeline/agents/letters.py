"""Dead letters: a record that could not be handled, kept whole, with the reason."""

from __future__ import annotations

from typing import Any

from pipeline.ledger import Output
from topics.catalogue import DEAD_LETTERS
from topics.models import EARLIEST_MS, LATEST_MS, DeadLetter, Unreadable


def dead_letter(stage: str, record: Any, why: Unreadable) -> Output:
    """The dead letter of a consumed record. Deterministic: a replay writes the same bytes."""
    at = min(max(record.timestamp, EARLIEST_MS), LATEST_MS)
    identity = f"{record.topic}:{record.partition}:{record.offset}"
    letter = DeadLetter.model_construct(
        id=identity,
        kind="dead_letter",
        source="runnerstream",
        occurred_at=at,
        received_at=at,
        key=identity,
        reason=why.reason,
        stage=stage,
        error=why.error,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        record_key=record.key,
        record_value=record.value,
        record_headers={
            name: value.decode("utf-8", "replace") for name, value in record.headers or ()
        },
    )
    return Output(DEAD_LETTERS, None, identity.encode(), letter.model_dump_json().encode())
