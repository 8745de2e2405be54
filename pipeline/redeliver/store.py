"""The records of ``runners.missed``, and who looks after which: a member of a consumer group.

Who owns the partition of a hook's or a repository's key owns the hook or repository. On every
assignment the partition is read from its beginning, and nothing is ever committed. What is written
is acknowledged by all replicas in sync before anybody acts on it. An owner that has lost its
partition and does not know it may still write for a moment; then what it asked for stands in the
provider's list all the same.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2

from pipeline.providers.base import Fact
from pipeline.redeliver.fill import Written
from sinks.consumer import known_options, learn_topics, make_consumer, position_of
from sinks.membership import Membership, consumer_options
from sinks.writer import describe
from topics.catalogue import JOBS, MISSED
from topics.missed import MISSED as ADAPTER
from topics.missed import HookSeen, MissedDelivery, RunsTold
from topics.models import Unreadable
from topics.reading import read

log = logging.getLogger(__name__)

#: How long the broker may take to acknowledge, or to say where a partition ends. Seconds.
_PATIENCE_S: Final = 15.0
_ENDS_MS: Final = 5_000
_JOIN_PATIENCE_S: Final = 1.0

Record = MissedDelivery | HookSeen | RunsTold


class Lost(Exception):
    """What was to be written is not ours any more, or the broker did not take it."""


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """How one process is a member. ``kafka`` holds kafka-python's options."""

    kafka: Mapping[str, Any]
    group_id: str
    max_records: int = 2_000
    rejoin_s: float | None = None

    @property
    def client_id(self) -> str:
        """What the broker shows of a member of the group."""
        return self.group_id


class Store:
    """One process's part of the topic. :meth:`turn` is for one thread, the rest for any.

    Args:
        config: how it is a member.
        taken: called in :meth:`turn` with a partition that was read to its end, and its records.
        gone: called in :meth:`turn` with a partition that is not ours, or is to be read anew.
    """

    def __init__(
        self,
        config: StoreConfig,
        taken: Callable[[int, Sequence[Record]], None],
        gone: Callable[[int], None],
    ) -> None:
        self._config = config
        self._taken, self._gone = taken, gone
        self.members = Membership(config)
        self._consumer: Any = None
        self._producer: Any = None
        #: How many partitions the topic has; 0: not known yet.
        self.partitions = 0
        #: By partition: of which rebalance it is, and its records while it is read, else None.
        self._ours: dict[int, tuple[int, dict[str, Record] | None]] = {}
        self._again: set[int] = set()
        self._lock = threading.Lock()
        #: Why the broker cannot be used; empty when it can.
        self.trouble = "starting"

    def partition(self, name: str) -> int:
        """The partition of a hook or a repository, once they are known."""
        return int((murmur2(name.encode()) & 0x7FFFFFFF) % self.partitions)

    def owned(self) -> frozenset[int]:
        """The partitions that are ours and read."""
        with self._lock:
            return frozenset(each for each, (_, reading) in self._ours.items() if reading is None)

    @property
    def settled(self) -> bool:
        """Whether we are a member, and all that is ours is read."""
        with self._lock:
            read_ = all(reading is None for _, reading in self._ours.values())
            ours = {where.partition for where in self.members.owned.partitions()}
            joined = self.members.owned.joined and self.members.absent is None
            known = self.partitions and not self._again and ours == set(self._ours)
            return bool(joined and read_ and known)

    # --- membership (one thread) ------------------------------------------------------------------

    def turn(self) -> None:
        """Poll, and read what is to be read. Raises KafkaError for a wrong configuration."""
        try:
            if self._consumer is None:
                self._join()
            self._poll()
        except KafkaError as error:
            if not error.retriable:
                raise
            self.trouble = describe(error)
            time.sleep(0.2)
        else:
            self.trouble = ""
        if self.members.lost():
            log.error("no member of the group for long: joining it anew")
            self._leave()

    def close(self) -> None:
        """Leave the group."""
        self._leave()
        with self._lock:
            if self._producer is not None:
                self._producer.close(timeout=2)

    def _join(self) -> None:
        consumer = make_consumer(consumer_options(self._config))
        self.members.begin()
        consumer.subscribe(topics=[MISSED], listener=self.members.owned)
        self._consumer = consumer
        learn_topics(consumer, _JOIN_PATIENCE_S)

    def _leave(self) -> None:
        if self._consumer is not None:
            self.members.owned.leave()
            self._consumer.close(autocommit=False, timeout_ms=2_000)
            self._consumer = None
        for each in list(self._ours):
            self._drop(each)

    def _poll(self) -> None:
        fetched = self._consumer.poll(timeout_ms=100)
        self.members.attend(self._consumer, time.monotonic())
        owned = self.members.owned
        ours = {where.partition: owned.ownership(where) for where in owned.partitions()}
        with self._lock:
            again, self._again = self._again, set()
        for each, (number, _) in list(self._ours.items()):
            if ours.get(each) != number or each in again:
                self._drop(each)
        if not self.partitions:
            self.partitions = len(self._consumer.partitions_for_topic(MISSED) or ())
        for each, number in ours.items():
            where = TopicPartition(MISSED, each)
            if each not in self._ours:
                if number and self.partitions:
                    self._begin(where, number)
                continue
            reading = self._ours[each][1]
            if reading is not None:
                self._read(where, reading, fetched.get(where, ()))

    def _begin(self, where: TopicPartition, number: int) -> None:
        self._consumer.resume(where)
        self._consumer.seek_to_beginning(where)
        with self._lock:
            self._ours[where.partition] = (number, {})

    def _read(
        self, where: TopicPartition, known: dict[str, Record], fetched: Sequence[Any]
    ) -> None:
        for record in fetched:
            key = (record.key or b"").decode("utf-8", "replace")
            try:
                if record.value is None:
                    known.pop(key, None)
                else:
                    known[key] = read(ADAPTER, record.value)
            except Unreadable as why:
                log.warning("%s %d:%d is passed over: %s", MISSED, record.partition, record.offset,
                            why.error)  # fmt: skip
        if fetched:
            return
        # Nothing more came, and the log has no more.
        ends = self._consumer.end_offsets([where], timeout_ms=_ENDS_MS)
        if (position_of(self._consumer, where) or 0) >= ends[where]:
            self._consumer.pause(where)
            with self._lock:
                self._ours[where.partition] = (self._ours[where.partition][0], None)
            self._taken(where.partition, list(known.values()))

    def _drop(self, partition: int) -> None:
        with self._lock:
            self._ours.pop(partition, None)
        self._gone(partition)

    # --- writing (any thread) ---------------------------------------------------------------------

    def write(self, name: str, records: Written) -> None:
        """Write records of a hook or a repository. Raises :class:`Lost` unless all are there."""
        partition = self.partition(name)
        if partition not in self.owned():
            raise Lost(f"{name} is looked after by another")
        try:
            self._send(
                (MISSED, key, None if each is None else _json(each), partition)
                for key, each in records
            )
        except Lost:
            # What is there is known only when it is read again.
            with self._lock:
                self._again.add(partition)
            raise

    def post(self, facts: Sequence[Fact]) -> None:
        """Post facts to ``runners.jobs``. Raises :class:`Lost` unless all are there."""
        self._send((JOBS, fact.key, _json(fact), None) for fact in facts)

    def _send(self, records: Any) -> None:
        try:
            producer = self._made()
            sent = [
                producer.send(topic, key=key.encode(), value=value, partition=partition)
                for topic, key, value, partition in records
            ]
            for each in sent:
                each.get(timeout=_PATIENCE_S)
        except KafkaError as error:
            raise Lost(describe(error)) from error

    def _made(self) -> Any:
        with self._lock:
            if self._producer is None:
                self._producer = KafkaProducer(**{
                    "acks": "all",
                    "client_id": self._config.client_id,
                    "metrics_enabled": False,
                    "max_block_ms": 5_000,
                    "allow_auto_create_topics": False,
                    # What is written twice does no harm, and whoever writes waits for the end.
                    "enable_idempotence": False,
                    **known_options(self._config.kafka, KafkaProducer, KafkaConsumer),
                })  # fmt: skip
            return self._producer


def _json(record: Record | Fact) -> bytes:
    return record.model_dump_json(exclude_none=True).encode()
