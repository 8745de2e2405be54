"""What a batch leads to, as plain data: records to publish, tables to write, things to count.

Agents say it, the transaction makes it durable, the outbox publishes it. Nothing here knows how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic

from msgspec import Struct

from pipeline.metrics import Counter, Histogram, L
from topics.tables import TableSpec

#: What is written to a table: keys and values as they are in its changelog; no value deletes.
Writes = list[tuple[bytes, bytes | None]]


class Output(Struct, frozen=True, gc=False):
    """A record to publish. ``partition`` None: by key."""

    topic: str
    partition: int | None
    key: bytes
    value: bytes | None


class Note(Struct, Generic[L], frozen=True, gc=False):
    """Something to count once the batch is durable, by a metric of :mod:`pipeline.metrics`.

    ``counts`` is for a distribution that somebody else observed: how many values by the upper
    bound of their bucket. ``value`` is their sum then.
    """

    metric: Counter[L] | Histogram[L]
    labels: L
    value: float = 1.0
    counts: Mapping[float, int] | None = None


@dataclass(slots=True)
class Effects:
    """What a batch leads to. The transaction makes it durable in this order: outputs, then tables
    by their stage (:class:`topics.tables.Stage`); then notes are counted."""

    outputs: list[Output] = field(default_factory=list)
    #: By the name of the table.
    tables: dict[str, Writes] = field(default_factory=dict)
    notes: list[Note[Any]] = field(default_factory=list)

    def writes(self, table: TableSpec) -> Writes:
        """The writes to a table, to add to."""
        return self.tables.setdefault(table.name, [])
