"""Records on their way to ClickHouse, and the thread that writes them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kafka import TopicPartition

from sinks import rows
from sinks.consumer import Undecodable
from sinks.rows import Item
from sinks.writer import BatchIdentity, Refused, describe
from topics.dead_letters import SourceRecord
from topics.envelope import EARLIEST_MS, LATEST_MS
from topics.models import Reason, Unreadable

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Batch:
    """Records on their way, with all that is needed to write, refuse and commit them."""

    identity: BatchIdentity
    items: list[Item] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    #: Next offset to read per partition, and the ownership under which it was read.
    offsets: dict[TopicPartition, tuple[int, int]] = field(default_factory=dict)
    records: int = 0
    size: int = 0
    #: Monotonic; of the first record and of the first that is urgent.
    first: float | None = None
    urgent: float | None = None
    #: Broker time of the oldest record, ms.
    oldest_ms: int = LATEST_MS
    #: The broker's ids of the logs that records of ``rows.PLACED`` topics are from, by topic.
    logs: dict[str, str] = field(default_factory=dict)

    def add(self, records: Sequence[SourceRecord | Undecodable], now: float) -> None:
        """Take in records of one partition, in the order of their offsets."""
        self.identity.add(records)
        for record in records:
            self.size += len(record.value or b"")
            try:
                if isinstance(record, Undecodable):
                    raise Unreadable(Reason.UNDECODABLE, str(record))
                item = rows.decode(record)
            except Unreadable as why:
                self.refused.append(Refused(record, why))
            except Exception as error:  # L7: one record never stops the stream
                log.exception(
                    "decoding failed: %s:%d:%d", record.topic, record.partition, record.offset
                )
                unexpected = Unreadable(Reason.UNEXPECTED, describe(error))
                self.refused.append(Refused(record, unexpected))
            else:
                self.items.append(item)
                if item.urgent and self.urgent is None:
                    self.urgent = now
            if EARLIEST_MS <= record.timestamp < self.oldest_ms:
                self.oldest_ms = record.timestamp
        self.records += len(records)
        if self.first is None:
            self.first = now

    def reach(self, where: TopicPartition, position: int, ownership: int, now: float) -> None:
        """The offset that is read next, with or without records before it."""
        self.offsets[where] = (position, ownership)
        if self.first is None:
            self.first = now


class Flight(threading.Thread):
    """One batch being written. ``error`` is set when it did not arrive."""

    def __init__(self, batch: Batch, write: Callable[[Batch], None]) -> None:
        super().__init__(name="sink-flight", daemon=True)
        self.batch = batch
        self._write = write
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Write; called once, by the thread."""
        try:
            self._write(self.batch)
        except BaseException as error:
            self.error = error
