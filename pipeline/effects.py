"""What a batch leads to, as plain data: records to publish, tables to write, things to count.

Agents say it, the transaction makes it durable, the outbox publishes it. Nothing here knows how.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic

from msgspec import Struct

from pipeline.metrics import Counter, Histogram, L

#: A pane's fleet and its start, Unix milliseconds.
PaneKey = tuple[str, int]


class Output(Struct, frozen=True, gc=False):
    """A record to publish. ``partition`` None: by key."""

    topic: str
    partition: int | None
    key: bytes
    value: bytes | None


class Note(Struct, Generic[L], frozen=True, gc=False):
    """Something to count once the batch is durable, by a metric of :mod:`pipeline.metrics`."""

    metric: Counter[L] | Histogram[L]
    labels: L
    value: float = 1.0


@dataclass(slots=True)
class Effects:
    """What a batch leads to, in the order in which it must become durable."""

    outputs: list[Output] = field(default_factory=list)
    panes: list[tuple[PaneKey, bytes | None]] = field(default_factory=list)
    states: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    notes: list[Note[Any]] = field(default_factory=list)
