"""How far the sink is: what it has read, what ClickHouse has, what is left, what was lost.

What is committed, and compared with the end of the log, is the *position*: the offset that is read
next. It is not always the last record and one, since a log has offsets without a record in them:
the marks of transactions, what was aborted, what was compacted away. Offsets that retention removed
before they were read are another thing: those records are lost to ClickHouse, so they are counted
and shown (:class:`sinks.health.Hole`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kafka import TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from sinks import rows
from sinks.batch import Batch
from sinks.consumer import log_id, position_of
from sinks.health import BrokerOutage, Hole
from sinks.membership import Ownership
from sinks.metrics import SinkMetrics

log = logging.getLogger(__name__)

#: How often the log ends are asked for. Fetches tell them too, but not for paused partitions; and
#: an answer is the only sign that the broker is there, since poll() waits for it in silence.
_ASK_ENDS_S: Final = 2.0
_ASK_ENDS_TIMEOUT_MS: Final = 1_000
#: How many of the latest holes are shown.
_HOLES_SHOWN: Final = 100


class Progress:
    """Offsets of all partitions that are ours."""

    def __init__(
        self,
        topics: Sequence[str],
        owned: Ownership,
        metrics: SinkMetrics,
        broker: BrokerOutage,
    ) -> None:
        self._topics = topics
        self._owned = owned
        self._metrics = metrics
        self._broker = broker
        #: What retention has removed before it was read, the latest first.
        self.holes: tuple[Hole, ...] = ()
        #: Records that ClickHouse has not acknowledged, by topic; what is not known is left out.
        self.lag: Mapping[str, int] = {}
        #: Per partition the offset that ClickHouse has reached, and under which ownership: what
        #: was reached before a partition moved away says nothing once it is back.
        self._acknowledged: dict[TopicPartition, tuple[int, int]] = {}
        self._ends: dict[TopicPartition, int] = {}
        #: Per partition the offset that is read next, and under which ownership.
        self._positions: dict[TopicPartition, tuple[int, int]] = {}
        #: Offsets that were passed over and not looked into yet: partition, first, next.
        self._skipped: list[tuple[TopicPartition, int, int]] = []
        self._asked_ends = 0.0

    def take(self, consumer: Any, fetched: Mapping[Any, Any], batch: Batch, now: float) -> None:
        """What was fetched into the batch, with the positions that it has brought us to."""
        new = [
            where
            for where in self._owned.partitions()
            if self._positions.get(where, (0, 0))[1] != self._owned.ownership(where)
        ]
        begins = self._begins(consumer, new) if new else {}
        for where in self._owned.partitions():
            records = fetched.get(where)
            position = position_of(consumer, where)
            if position is None:  # it is being looked for
                continue
            ownership = self._owned.ownership(where)
            before, known = self._positions.get(where, (0, 0))
            first = records[0].offset if records else position
            if known != ownership:
                before = self._begin(consumer, where, first, begins.get(where, 0))
                self._acknowledged[where] = (before, ownership)
            if first > before:
                self._skipped.append((where, before, first))
            if position != before or known != ownership:
                self._positions[where] = (position, ownership)
            if records or (known == ownership and position != before):
                batch.reach(where, position, ownership, now)
        for where, records in fetched.items():
            if records:
                if where.topic in rows.PLACED and where.topic not in batch.logs:
                    batch.logs[where.topic] = log_id(consumer, where.topic)
                batch.add(records, now)
                self._metrics.records.labels(where.topic).inc(len(records))

    def _begins(self, consumer: Any, places: Sequence[TopicPartition]) -> Mapping[Any, int]:
        """Where the logs begin; nothing when the broker does not say so in time."""
        try:
            begins: Mapping[Any, int] = consumer.beginning_offsets(
                list(places), timeout_ms=_ASK_ENDS_TIMEOUT_MS
            )
        except KafkaError as error:
            self._broker.failed(error)
            return {}
        return begins

    def _begin(self, consumer: Any, where: TopicPartition, first: int, begin: int) -> int:
        """The offset at which a partition that has just become ours should go on.

        That is where we are, unless we are at the beginning of a log that does not begin at 0: then
        the group may have been further back, at what is no longer there.
        """
        if not begin or first > begin:
            return first
        try:
            committed = consumer.committed(where, timeout_ms=_ASK_ENDS_TIMEOUT_MS)
        except KafkaError as error:
            self._broker.failed(error)
            return first
        return first if committed is None else min(first, int(committed))

    def look_into(self, consumer: Any) -> None:
        """Tell what retention has removed from what a log never had, among the offsets that were
        passed over: the first lies before the beginning of the log."""
        skipped, self._skipped = self._skipped, []
        begins = self._begins(consumer, sorted({where for where, _, _ in skipped}))
        for where, first, following in skipped:
            if where not in begins:
                self._skipped.append((where, first, following))
                continue
            last = min(following, begins[where]) - 1
            records = last - first + 1
            if records <= 0:
                continue
            hole = Hole(where.topic, where.partition, first, last, records, time.time())
            self.holes = (hole, *self.holes[: _HOLES_SHOWN - 1])
            self._metrics.lost_records.labels(where.topic).inc(records)
            log.error(
                "%d records of %s, partition %d, were removed before they were read: offsets %d to"
                " %d. ClickHouse will not have them",
                records, where.topic, where.partition, first, last,
            )  # fmt: skip

    def acknowledge(
        self, offsets: Mapping[TopicPartition, tuple[int, int]]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """ClickHouse has reached these offsets, read under these ownerships: what to commit."""
        ours = {}
        for where, (offset, ownership) in offsets.items():
            # A partition that moved away, or moved and came back, is where others left it.
            if ownership and ownership == self._owned.ownership(where):
                ours[where] = offset
                self._acknowledged[where] = (offset, ownership)
        return {where: OffsetAndMetadata(offset, "", -1) for where, offset in ours.items()}

    def acknowledged(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """All that ClickHouse has reached in partitions that are still ours, to be committed."""
        return {
            where: OffsetAndMetadata(offset, "", -1)
            for where, (offset, ownership) in self._acknowledged.items()
            if ownership == self._owned.ownership(where)
        }

    def forget_positions(self) -> None:
        """The group is joined anew, by another client."""
        self._positions.clear()

    def observe(self, consumer: Any, now: float, member: bool) -> None:
        """Bring lag and holes up to date."""
        if self._skipped:
            self.look_into(consumer)
        owned = self._owned.partitions()
        if owned and now - self._asked_ends >= _ASK_ENDS_S:
            self._asked_ends = now
            try:
                self._ends = dict(
                    consumer.end_offsets(list(owned), timeout_ms=_ASK_ENDS_TIMEOUT_MS)
                )
            except KafkaError as error:
                self._broker.failed(error)
            else:
                self._broker.over()
        if not member:
            # Whoever has our partitions knows; we do not, and unknown is not zero.
            self._tell({})
            return
        lag = dict.fromkeys(self._topics, 0)
        unknown = set()
        for where in owned:
            ownership = self._owned.ownership(where)
            position, _ = self._positions.get(where, (0, 0))
            done, under = self._acknowledged.get(where, (0, 0))
            if under != ownership or where not in self._ends:
                unknown.add(where.topic)
                continue
            end = max(position, self._ends[where])
            lag[where.topic] = lag.get(where.topic, 0) + max(0, end - done)
        self._tell({topic: number for topic, number in lag.items() if topic not in unknown})

    def _tell(self, lag: Mapping[str, int]) -> None:
        self.lag = lag
        for topic in self._topics:
            # What is unknown is not what it was before.
            self._metrics.lag.labels(topic).set(lag.get(topic, math.nan))
