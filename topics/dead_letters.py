"""The one builder of dead letters: whatever was consumed, there is a letter for it.

The path that buries a record must not fail on what is wrong with the record. So everything that a
client may hand over is taken here: no key, no value, no headers, a header without a value, a
header name that is not UTF-8 (as bytes, or as text with lone surrogates), a time of -1 or of the
year 292278994. What cannot be written as JSON text is replaced by U+FFFD; key and value are kept
byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from topics.envelope import EARLIEST_MS, LATEST_MS
from topics.models import DeadLetter, Reason, Unreadable

#: A letter must fit its topic, whatever the record was: of its headers this much is carried.
#: Escaped, 64 of these stay far below the MiB that the topic has left beside key and value.
MAX_HEADERS: Final = 64
MAX_HEADER_NAME: Final = 200
MAX_HEADER_VALUE: Final = 1_000
_MAX_ERROR: Final = 2_000
#: What a relay is called in its letters.
RELAY_STAGE: Final = "relay"
#: Headers that are a secret themselves, lower-case: they stay on the topic they came by.
TOKENS: Final = frozenset({"x-gitlab-token"})
#: A record's time may be this much ahead of our clock before the letter takes ours, in ms.
_AHEAD_MS: Final = 86_400_000


class SourceRecord(Protocol):
    """What is needed of a consumed record. aiokafka's and kafka-python's ConsumerRecord have it."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Iterable[tuple[str | bytes, bytes | None]] | None: ...


def dead_letter(stage: str, record: SourceRecord, why: Unreadable, now: int) -> DeadLetter:
    """The letter of a record that ``stage`` cannot handle. ``now`` is the wall clock in ms.

    Its id is ``topic:partition:offset``, so the same failure twice is one letter. ``received_at``
    is ``now`` and not the record's time, because letters are kept for a time counted from it.
    Never raises.
    """
    now = min(max(now, EARLIEST_MS), LATEST_MS)
    at = record.timestamp
    if not isinstance(at, int) or not EARLIEST_MS <= at <= min(now + _AHEAD_MS, LATEST_MS):
        at = now
    identity = f"{record.topic}:{record.partition}:{record.offset}"
    headers, left_out = _headers(record.headers)
    error = _text(why.error)
    if left_out:
        error = f"({left_out} headers not carried whole) {error}"
    # Built without validation, which expects base64 where there are bytes.
    return DeadLetter.model_construct(
        id=identity,
        kind="dead_letter",
        source="runnerstream",
        occurred_at=at,
        received_at=now,
        key=identity,
        reason=why.reason,
        stage=stage,
        error=error[:_MAX_ERROR],
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        record_key=record.key,
        record_value=record.value,
        record_headers=headers,
    )


def relay_letter(record: SourceRecord, group: str, error: str, now: int) -> DeadLetter:
    """The letter of a delivery that the relay of a group could not pass on. Its id ends with the
    group, so that it is told apart from what others could not do with the record."""
    letter = dead_letter(RELAY_STAGE, record, Unreadable(Reason.UNDELIVERED, error), now)
    identity = f"{letter.id}:{group}"
    return letter.model_copy(update={"id": identity, "key": identity})


def relay_of(letter: DeadLetter) -> str:
    """The group of the relay whose letter it is; empty for a letter of anybody else."""
    place = f"{letter.topic}:{letter.partition}:{letter.offset}:"
    of_relay = letter.stage == RELAY_STAGE and letter.id.startswith(place)
    return letter.id.removeprefix(place) if of_relay else ""


def without_value(letter: DeadLetter) -> DeadLetter:
    """The same letter without the record's value, saying so."""
    size = len(letter.record_value or b"")
    error = f"(value of {size} bytes not carried) {letter.error}"[:_MAX_ERROR]
    return letter.model_copy(update={"record_value": None, "error": error})


def letter_bytes(letter: DeadLetter) -> bytes:
    """The letter as a record value."""
    return letter.model_dump_json().encode()


def _headers(
    headers: Iterable[tuple[str | bytes, bytes | None]] | None,
) -> tuple[dict[str, str], int]:
    """Headers as text, and how many were cut or left out. A null value is an empty text."""
    kept: dict[str, str] = {}
    left_out = 0
    for name, value in headers or ():
        told, content = _text(name), _text(value)
        if told.lower() in TOKENS:
            continue
        if told not in kept and len(kept) >= MAX_HEADERS:
            left_out += 1
            continue
        if len(told) > MAX_HEADER_NAME or len(content) > MAX_HEADER_VALUE:
            left_out += 1
        kept[told[:MAX_HEADER_NAME]] = content[:MAX_HEADER_VALUE]
    return kept, left_out


def _text(raw: str | bytes | None) -> str:
    """Text that can be written as UTF-8: a lone surrogate cannot."""
    if raw is None:
        return ""
    if isinstance(raw, str):
        return raw.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return raw.decode("utf-8", "replace")
