"""Fetched bytes to records, whatever lies in the log; and whether we are a member of our group."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.coordinator.heartbeat import Heartbeat
from kafka.protocol.consumer import IsolationLevel
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from kafka.record.util import calc_crc32c
from kafka.structs import MemberState

from sinks.consumer import (
    PartitionRecords,
    Undecodable,
    absence,
    log_id,
    make_consumer,
    position_of,
)
from topics.dead_letters import dead_letter, letter_bytes
from topics.models import DEAD_LETTER, Reason, Unreadable
from topics.reading import read

PLACE = TopicPartition("t", 3)
#: By their numbers in a batch's attributes.
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}

Headers = list[tuple[str, bytes | None]]


def batch(
    first: int,
    number: int = 4,
    codec: str = "none",
    headers: Headers | None = None,
    padding: bytes = b"",
    **producer: Any,
) -> bytearray:
    """A record batch as a producer makes it, at the offset where a broker put it."""
    builder = MemoryRecordsBuilder(2, CODECS[codec], 1 << 20, **producer)
    for n in range(number):
        value = b"v%d" % (first + n) + padding
        assert builder.append(1_790_000_000_000 + n, b"k", value, headers or [])
    builder.close()
    made = bytearray(builder.buffer())
    struct.pack_into(">q", made, 0, first)
    return made


def sealed(made: bytearray) -> bytearray:
    """With a checksum that is right again after a change."""
    struct.pack_into(">I", made, 17, calc_crc32c(bytes(made[21:])))
    return made


def with_codec(made: bytearray, number: int) -> bytearray:
    made[22] = made[22] & ~7 | number
    return sealed(made)


def control(first: int, producer_id: int, commit: bool) -> bytearray:
    made = batch(first, 1, producer_id=producer_id, producer_epoch=0, base_sequence=0,
                 transactional=True)  # fmt: skip
    builder = MemoryRecordsBuilder(2, 0, 1 << 20, producer_id=producer_id, producer_epoch=0,
                                   base_sequence=0, transactional=True)  # fmt: skip
    builder.append(1_790_000_000_000, struct.pack(">hh", 0, int(commit)), b"\0" * 6)
    builder.close()
    made = bytearray(builder.buffer())
    struct.pack_into(">q", made, 0, first)
    made[22] |= 0x20
    return sealed(made)


def fetched(*batches: bytearray, at: int = 0, **options: Any) -> PartitionRecords:
    return PartitionRecords(at, PLACE, MemoryRecords(bytes(b"".join(batches))), **options)


def taken(records: PartitionRecords) -> list[Any]:
    found: list[Any] = []
    while records:
        found += records.take(3)
    return found


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_is_read(codec: str) -> None:
    records = fetched(batch(0, 5, codec), batch(5, 5, codec))
    found = taken(records)
    assert [record.value for record in found] == [b"v%d" % n for n in range(10)]
    assert [record.offset for record in found] == list(range(10))
    assert records.next_fetch_offset == 10


def broken_checksum(made: bytearray) -> bytearray:
    made[-1] ^= 0xFF
    return made


def scrambled(codec: str) -> bytearray:
    """The batch is complete, what is compressed in it is not."""
    made = batch(4, codec=codec, padding=b"padding" * 100)
    assert made[22] & 7 == CODECS[codec]
    for at in range(70, len(made)):
        made[at] ^= 0x55
    return sealed(made)


FAULTS: dict[str, Callable[[], bytearray]] = {
    "checksum": lambda: broken_checksum(batch(4)),
    "unknown codec": lambda: with_codec(batch(4), 5),
    "not gzip": lambda: with_codec(batch(4), 1),
    "not snappy": lambda: with_codec(batch(4), 2),
    "not lz4": lambda: with_codec(batch(4), 3),
    "not zstd": lambda: with_codec(batch(4), 4),
    "gzip scrambled": lambda: scrambled("gzip"),
    "lz4 scrambled": lambda: scrambled("lz4"),
    "snappy scrambled": lambda: scrambled("snappy"),
    "zstd scrambled": lambda: scrambled("zstd"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_batch_that_cannot_be_decoded_is_named_and_passed_over(fault: str) -> None:
    records = fetched(batch(0), FAULTS[fault](), batch(8))
    found = taken(records)
    (bad,) = [each for each in found if isinstance(each, Undecodable)]
    good = [each.offset for each in found if not isinstance(each, Undecodable)]
    assert (bad.topic, bad.partition, bad.offset, bad.last) == ("t", 3, 4, 7)
    assert good == [0, 1, 2, 3, 8, 9, 10, 11]
    assert found.index(bad) == 4
    assert records.next_fetch_offset == 12
    letter = dead_letter("sink", bad, Unreadable(Reason.UNDECODABLE, str(bad)), 1_790_000_000_000)
    back = read(DEAD_LETTER, letter_bytes(letter))
    assert (back.topic, back.partition, back.offset) == ("t", 3, 4)
    assert (back.reason, back.stage) == (Reason.UNDECODABLE, "sink")
    assert "offsets 4 to 7" in back.error


def test_the_good_records_before_a_broken_one_are_kept() -> None:
    broken = batch(0)
    # The length of the last record: it ends before the batch does.
    broken[-(len(broken) - 61) // 4] = 0x02
    found = taken(fetched(sealed(broken)))
    bad = found[-1]
    assert isinstance(bad, Undecodable)
    assert [each.offset for each in found[:-1]] == list(range(bad.offset))
    assert bad.last == 3


def test_a_fetch_from_the_middle_of_a_batch_does_not_repeat() -> None:
    assert [each.offset for each in taken(fetched(batch(0, 6), at=4))] == [4, 5]
    (bad,) = taken(fetched(broken_checksum(batch(0, 6)), at=4))
    assert (bad.offset, bad.last) == (4, 5)


def test_a_header_name_that_is_not_utf_8_costs_nothing() -> None:
    made = batch(0, 3, headers=[("name", b"x"), ("none", None)])
    odd = sealed(bytearray(bytes(made).replace(b"name", b"n\xff\xfee")))
    first, *others = taken(fetched(odd))
    assert first.value == b"v0"
    assert first.headers == [("n\\xff\\xfee", b"x"), ("none", None)]
    assert [each.offset for each in others] == [1, 2]
    assert first.timestamp == 1_790_000_000_000


def test_marks_of_transactions_move_the_position_and_are_no_records() -> None:
    transactional = {"producer_id": 9, "producer_epoch": 0, "base_sequence": 0,
                     "transactional": True}  # fmt: skip
    aborted = [SimpleNamespace(producer_id=9, first_offset=0)]
    records = fetched(
        batch(0, 2, **transactional), control(2, 9, commit=False), batch(3, 2, **transactional),
        control(5, 9, commit=True), batch(6, 1), control(7, 9, commit=True),
        isolation_level=IsolationLevel.READ_COMMITTED, aborted_transactions=aborted,
    )  # fmt: skip
    assert [each.offset for each in taken(records)] == [3, 4, 6]
    assert records.next_fetch_offset == 8


def test_the_end_of_a_batch_that_was_compacted_away_is_passed() -> None:
    made = batch(0, 3)
    struct.pack_into(">i", made, 23, 9)  # last offset delta: seven records are gone
    records = fetched(sealed(made), batch(10, 1))
    assert [each.offset for each in taken(records)] == [0, 1, 2, 10]
    assert records.next_fetch_offset == 11


def test_a_wild_header_does_not_carry_us_away() -> None:
    made = batch(4)
    struct.pack_into(">i", made, 23, 2**31 - 1)
    (bad,) = taken(fetched(made, at=4))
    assert (bad.offset, bad.last) == (4, 4)


def member(state: str, heard_s: float) -> Any:
    heartbeat = Heartbeat(session_timeout_ms=6_000, heartbeat_interval_ms=1_000)
    heartbeat.last_receive = heartbeat.last_reset = time.monotonic() - heard_s
    return SimpleNamespace(_coordinator=SimpleNamespace(state=state, heartbeat=heartbeat))


def test_a_member_is_stable_and_heard() -> None:
    assert absence(member(MemberState.STABLE, 1), 6) == ""
    assert "rebalancing" in absence(member(MemberState.REBALANCING, 1), 6)
    assert "unjoined" in absence(member(MemberState.UNJOINED, 1), 6)
    assert "not answered for 7" in absence(member(MemberState.STABLE, 7.2), 6)


def test_a_join_that_has_begun_is_a_reason_to_go_on_joining() -> None:
    """Else the answer to it is never collected when the reason has gone meanwhile."""
    options = {"group_id": "g", "bootstrap_servers": "127.0.0.1:1", "api_version": (2, 8)}
    theirs, ours = KafkaConsumer(**options), make_consumer(options)
    try:
        for consumer, wanted in ((theirs, False), (ours, True)):
            consumer.subscribe(["t"])
            coordinator = consumer._coordinator
            coordinator._joined_subscription = {"t"}
            coordinator.rejoin_needed = False
            assert not coordinator.need_rejoin()
            coordinator._join_task = object()
            assert coordinator.need_rejoin() is wanted
            coordinator._join_task = None
    finally:
        for consumer in (theirs, ours):
            consumer.close(autocommit=False, timeout_ms=100)


def test_the_internals_we_use_are_there() -> None:
    """None of them is in kafka-python's documentation."""
    consumer = KafkaConsumer(group_id="g", bootstrap_servers="127.0.0.1:1", api_version=(2, 8))
    try:
        assert consumer._fetcher.PartitionRecords is Fetcher.PartitionRecords
        assert consumer._coordinator.state == MemberState.UNJOINED
        assert consumer._coordinator.heartbeat.last_reset > 0
        assert log_id(consumer, "t") == ""
        assert position_of(consumer, PLACE) is None
        assert consumer._coordinator._join_task is None
    finally:
        consumer.close(autocommit=False, timeout_ms=100)
