"""Whatever a record was like, there is a letter for it, and the letter can be read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from faust.types.tuples import TP
from hypothesis import given
from hypothesis import strategies as st

from pipeline import metrics
from pipeline.agents.letters import bury
from pipeline.agents.normalise import Normalise
from pipeline.effects import Note
from pipeline.faust_safe import Batch
from topics.catalogue import DEAD_LETTERS, MAX_DEAD_LETTER_BYTES, MAX_WEBHOOK_BYTES, WEBHOOKS
from topics.dead_letters import (
    MAX_HEADERS,
    SourceRecord,
    dead_letter,
    letter_bytes,
    without_value,
)
from topics.envelope import EARLIEST_MS
from topics.models import DEAD_LETTER, DeadLetter, Reason, Unreadable
from topics.reading import read

T0 = 1_790_000_000_000

Headers = Iterable[tuple[str | bytes, bytes | None]] | None


@dataclass(frozen=True)
class Consumed:
    """A record as a client hands it over."""

    topic: str = WEBHOOKS
    partition: int = 4
    offset: int = 5
    timestamp: int = T0
    key: bytes | None = None
    value: bytes | None = None
    headers: Headers = ()


def back(record: SourceRecord, why: Unreadable, now: int = T0 + 7) -> DeadLetter:
    """The letter as its readers see it."""
    return read(DEAD_LETTER, letter_bytes(dead_letter("sink", record, why, now)))


#: Any text at all, lone surrogates included: what a client makes of bytes that are no UTF-8.
any_text = st.text(st.characters(exclude_categories=()), max_size=40)
any_bytes = st.none() | st.binary(max_size=40)
header = st.tuples(any_text | st.binary(max_size=20), any_bytes)
record = st.builds(
    Consumed,
    topic=st.sampled_from([WEBHOOKS, "runners.jobs"]),
    partition=st.integers(0, 2**31 - 1),
    offset=st.integers(0, 2**63 - 1),
    timestamp=st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-1, 0, T0]),
    key=any_bytes,
    value=any_bytes,
    headers=st.none() | st.lists(header, max_size=5) | st.lists(header, max_size=5).map(tuple),
)
reason = st.builds(Unreadable, st.sampled_from(Reason), any_text)


@given(record, reason, st.integers(-(2**63), 2**63 - 1) | st.just(T0))
def test_every_record_has_a_letter_that_can_be_read(
    record: Consumed, why: Unreadable, now: int
) -> None:
    letter = back(record, why, now)
    assert letter.id == f"{record.topic}:{record.partition}:{record.offset}"
    assert (letter.record_key, letter.record_value) == (record.key, record.value)
    assert letter.reason is why.reason
    assert read(DEAD_LETTER, letter_bytes(without_value(letter))).record_value is None


@given(record, reason)
def test_the_worker_publishes_the_same_letter(record: Consumed, why: Unreadable) -> None:
    output, counted = bury("fold", record, why)
    letter = read(DEAD_LETTER, output.value)
    assert (output.topic, output.key) == (DEAD_LETTERS, letter.id.encode())
    assert letter.stage == "fold"
    assert counted == Note(metrics.DEAD_LETTERS, ("fold", why.reason.value))
    assert letter.record_headers == back(record, why).record_headers


@given(st.lists(record, min_size=1, max_size=5))
def test_the_normaliser_buries_whatever_comes(records: list[Consumed]) -> None:
    counted: list[Note[Any]] = []
    normalise = Normalise(counted.extend)
    batch = Batch(TP(WEBHOOKS, 4), list(records))
    effects = asyncio.run(normalise.fold(batch))
    letters = [read(DEAD_LETTER, output.value) for output in effects.outputs]
    assert [letter.record_value for letter in letters] == [each.value for each in records]
    assert {letter.stage for letter in letters} == {"normalise"}


def test_a_null_header_value_and_a_name_that_is_not_utf8() -> None:
    letter = back(
        Consumed(value=b"\xff{", headers=[("h", b"\xfe"), ("n", None), (b"\xff\xfe", b"v")]),
        Unreadable(Reason.NOT_JSON, "bad \ud800 text"),
    )
    assert letter.record_headers == {"h": "\ufffd", "n": "", "\ufffd\ufffd": "v"}
    assert letter.error == "bad \ufffd text"
    assert letter.record_value == b"\xff{"
    assert (letter.occurred_at, letter.received_at) == (T0, T0 + 7)


@pytest.mark.parametrize("timestamp", [-1, 0, EARLIEST_MS - 1, T0 * 3, 2**63 - 1])
def test_a_record_whose_time_cannot_be_takes_ours(timestamp: int) -> None:
    # Letters are kept for 30 days after they were received: neither no time nor for ever.
    letter = back(Consumed(timestamp=timestamp), Unreadable(Reason.NOT_JSON, "x"))
    assert (letter.occurred_at, letter.received_at) == (T0 + 7, T0 + 7)


@pytest.mark.parametrize("part", ["key", "value", "headers", "one header"])
def test_a_letter_fits_its_topic_whatever_filled_the_record(part: str) -> None:
    filler = b"\x00" * (MAX_WEBHOOK_BYTES - 1_000)
    said: dict[str, Any] = {part: filler}
    if part == "headers":
        said = {part: [(f"{n:04}" + "\x01" * 500, b"\x00" * 5_000) for n in range(2_000)]}
    elif part == "one header":
        said = {"headers": [("h", filler)]}
    letter = dead_letter(
        "normalise", Consumed(**said), Unreadable(Reason.NOT_JSON, "\x00" * 3_000), T0
    )
    assert len(letter_bytes(letter)) < MAX_DEAD_LETTER_BYTES - 65_536
    if "header" in part:
        assert "headers not carried whole" in letter.error
        assert len(letter.record_headers) <= MAX_HEADERS


def test_a_letter_without_its_record_names_it() -> None:
    big = dead_letter(
        "sink", Consumed(value=b"x" * 900_000), Unreadable(Reason.NOT_JSON, "e" * 3000), T0
    )
    small = without_value(big)
    assert (big.record_value, small.record_value) == (b"x" * 900_000, None)
    assert "900000 bytes" in small.error
    assert len(small.error) <= 2000
    assert (small.id, small.key) == (big.id, big.key)
