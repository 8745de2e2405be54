"""The sink's Kafka consumer: kafka-python, with what it lacks.

* **A batch that cannot be decoded** (unknown codec, broken compression, wrong checksum) makes the
  client raise from every poll, for ever. Here it becomes an :class:`Undecodable` that names its
  offsets, and the stream goes on behind it.
* **A header name that is not UTF-8** makes the client call the whole batch corrupt. Here the odd
  bytes of the name are spelled out, and the record is as good as any.
* **A join may be lost.** The leader of a group joins again when it learns of other partitions. When
  its poll ends after the assignment was made and before the broker has answered to it, the client
  sees no reason to join any more, and never collects the answer: no partitions, no heartbeats, no
  error. Here a join that has begun is a reason until it is collected.
* **Membership.** :func:`absence` tells whether the coordinator has heard of us lately, for whatever
  else may go wrong.

Internals of kafka-python are used for this, which is why its version is exact:
``Fetcher.PartitionRecords``, the buffer of ``DefaultRecordBatch``, the coordinator's state, join
task and heartbeat, positions, and the cluster's metadata. ``tests/test_sink_consumer.py`` fails
when one of them is no longer what it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kafka import KafkaConsumer
from kafka.consumer.fetcher import ConsumerRecord, Fetcher
from kafka.errors import CorruptRecordError, KafkaTimeoutError
from kafka.record.default_records import DefaultRecord
from kafka.record.util import decode_varint
from kafka.structs import MemberState

log = logging.getLogger(__name__)

#: A batch whose header tells more offsets than this is not believed: then only its first is passed
#: over. Producers' batches hold some thousands.
_LARGEST_BATCH: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Offsets ``offset`` to ``last`` of a partition, which nobody can decode, and why.

    Looks like a consumed record without content, so that it can have a dead letter.
    """

    topic: str
    partition: int
    offset: int
    last: int
    timestamp: int
    error: str
    key: bytes | None = None
    value: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()

    def __str__(self) -> str:
        if self.last == self.offset:
            return f"the batch at offset {self.offset} cannot be decoded: {self.error}"
        return f"the batch of offsets {self.offset} to {self.last} cannot be decoded: {self.error}"


class PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What one fetch brought of a partition. Never raises for what lies in the log."""

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[Any]:
        while (batch := self._next(records)) is not None:
            if batch.magic == 2:
                self.leader_epoch = batch.leader_epoch
                if self._passed_over(batch):
                    self.next_fetch_offset = batch.next_offset
                    continue
            for record in self._records(tp, batch):
                last = record.last if isinstance(record, Undecodable) else record.offset
                self.records_read += 1
                self.next_fetch_offset = last + 1
                # A fetch may begin in the middle of a batch.
                if last >= self.fetch_offset:
                    yield record
            if batch.magic == 2:
                # Also past what compaction has taken from the end of the batch.
                self.next_fetch_offset = max(self.next_fetch_offset, _last(batch) + 1)
        self.drain()

    def _maybe_skip_record(self, record: Any) -> bool:
        return False

    @staticmethod
    def _next(records: Any) -> Any:
        try:
            return records.next_batch()
        except CorruptRecordError as error:
            # Shorter than any header: no offset can be read from it. What follows is fetched again.
            log.error("part of a fetch cannot be read: %s", error)
            return None

    def _passed_over(self, batch: Any) -> bool:
        """Whether a batch holds no records of ours: control, or aborted and we read committed."""
        if self.isolation_level and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if batch.is_control_batch:
                if _is_abort(batch):
                    self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)

    def _records(self, tp: Any, batch: Any) -> Iterator[Any]:
        following = max(batch.base_offset, self.fetch_offset)
        try:
            if self.check_crcs and not batch.validate_crc():
                raise CorruptRecordError("its checksum is wrong")
            whole = iter(batch)
            while True:
                try:
                    record = next(whole)
                except StopIteration:
                    return
                except CorruptRecordError:
                    record = _with_odd_headers(batch)
                following = record.offset + 1
                yield ConsumerRecord(
                    tp.topic, tp.partition, self.leader_epoch, record.offset, record.timestamp,
                    record.timestamp_type, record.key, record.value, record.headers,
                    record.checksum, -1, -1, -1,
                )  # fmt: skip
        except Exception as error:
            # Whatever a codec or a parser raises on bytes that it does not understand.
            at = batch.max_timestamp if batch.magic == 2 else -1
            last = max(_last(batch), following)
            yield Undecodable(tp.topic, tp.partition, following, last, at, _told(error))


def _is_abort(batch: Any) -> bool:
    try:
        return bool(next(iter(batch)).abort)
    except Exception:
        log.exception("a control batch at offset %d cannot be read", batch.base_offset)
        return False


def _last(batch: Any) -> int:
    """Last offset of a batch, as far as its header can be believed."""
    base: int = batch.base_offset
    if batch.magic != 2:
        return base
    delta: int = batch.last_offset_delta
    return base + delta if 0 <= delta < _LARGEST_BATCH else base


def _with_odd_headers(batch: Any) -> Any:
    """The next record of a batch that the client refused, when only names of headers are at fault.

    Raises CorruptRecordError, or what reading beyond an end raises, when there is more to it.
    """
    buffer, begin = batch._buffer, batch._pos
    length, begin = decode_varint(buffer, begin)
    position = begin

    def number() -> int:
        nonlocal position
        found, position = decode_varint(buffer, position)
        return int(found)

    def content() -> bytes | None:
        nonlocal position
        size = number()
        if size < 0:
            return None
        found = bytes(buffer[position : position + size])
        position += size
        return found

    number()  # attributes
    timestamp = batch.first_timestamp + number()
    offset = batch.base_offset + number()
    key, value = content(), content()
    headers = []
    for _ in range(number()):
        name = content()
        headers.append(((name or b"").decode("utf-8", "backslashreplace"), content()))
    if position - begin != length:
        raise CorruptRecordError(f"a record of {position - begin} bytes calls itself {length} long")
    if batch.timestamp_type == batch.LOG_APPEND_TIME:
        timestamp = batch.max_timestamp
    batch._pos = position
    batch._next_record_index += 1
    return DefaultRecord(length, offset, timestamp, batch.timestamp_type, key, value, headers)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def make_consumer(options: Mapping[str, Any]) -> Any:
    """A consumer that reads every batch it can. Raises kafka.errors.KafkaError."""
    consumer = KafkaConsumer(**options)
    consumer._fetcher.PartitionRecords = PartitionRecords
    coordinator = consumer._coordinator
    needed = coordinator.need_rejoin
    coordinator.need_rejoin = lambda: needed() or coordinator._join_task is not None
    return consumer


def learn_topics(consumer: Any, timeout_s: float) -> bool:
    """Fetch what the broker knows of the subscribed topics. False when it does not come in time.

    A group that is joined before is handed partitions by what was known then, and joins once more
    as soon as the rest is. Raises kafka.errors.KafkaError.
    """
    update = consumer._cluster.request_update()
    try:
        consumer._net.run(consumer._manager.wait_for, update, timeout_s * 1000)
    except KafkaTimeoutError:
        return False
    return True


def absence(consumer: Any, session_s: float) -> str:
    """Why this consumer is no working member of its group; empty when it is one.

    A member is stable and has had an answer to a heartbeat within the session.
    """
    coordinator = consumer._coordinator
    if coordinator.state != MemberState.STABLE:
        return f"not a member of the group ({str(coordinator.state).strip('<>')})"
    heartbeat = coordinator.heartbeat
    silent = time.monotonic() - max(heartbeat.last_receive, heartbeat.last_reset)
    if silent > session_s:
        return f"the group's coordinator has not answered for {silent:.0f} s"
    return ""


def log_id(consumer: Any, topic: str) -> str:
    """The broker's id of a topic: another one when the topic is made anew. Empty when not told
    (before Kafka 2.8, or not known yet)."""
    found = consumer._cluster.topic_id(topic)
    return str(found) if found is not None and found.int else ""


def position_of(consumer: Any, where: Any) -> int | None:
    """The offset of a partition that is read next, behind everything that poll() has returned.

    None while it is looked for. Unlike the client's own method it asks nobody.
    """
    state = consumer._subscription.assignment.get(where)
    position = state.position if state is not None else None
    return None if position is None else int(position.offset)


def known_options(options: Mapping[str, Any], client: Any, other: Any) -> dict[str, Any]:
    """The options that ``client`` takes. Raises ValueError for one that neither client knows."""
    unknown = set(options) - set(client.DEFAULT_CONFIG) - set(other.DEFAULT_CONFIG)
    if unknown:
        raise ValueError(f"unknown Kafka options: {', '.join(sorted(unknown))}")
    return {name: value for name, value in options.items() if name in client.DEFAULT_CONFIG}
