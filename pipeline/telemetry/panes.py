"""Which events have been counted, and what they added up to: a tumbling window a minute. Pure.

A pane holds the events of one subject that happened in one minute, by a digest of what they state,
and the sums of what they added. Both stand in the same row, so that neither is durable without the
other. A row takes :data:`ROW_IDS` events; a busy minute has several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final

from msgspec import Struct

from pipeline.effects import Note
from pipeline.metrics import Histogram
from pipeline.telemetry.subject import LATE_MS, MINUTE_MS

#: Events in a row: some 40 kB.
ROW_IDS: Final = 2_000
_DIGEST: Final = 8
#: A pane is kept until nothing of its minute can be counted any more.
PANE_KEPT_MS: Final = LATE_MS + 2 * MINUTE_MS


class PaneRow(Struct):
    """A row as it is written: digests one after another, sums by the metric and its labels.

    Of a distribution there are two sums: how many, and the total in thousandths of its unit.
    """

    ids: bytes
    sums: dict[str, int]


class _Row:
    __slots__ = ("ids", "sums")

    def __init__(self) -> None:
        self.ids: set[bytes] = set()
        self.sums: Counter[str] = Counter()


def minute_of(at: int) -> int:
    """The start of the pane of a time, in ms."""
    return at - at % MINUTE_MS


def digest(statement: str) -> bytes:
    """What a statement is remembered by. Of a million two are alike once in 37 million."""
    return blake2b(statement.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()


class Panes:
    """The panes of one subject."""

    __slots__ = ("_at", "_rows")

    def __init__(self) -> None:
        self._rows: dict[int, list[_Row]] = {}
        self._at: _Row | None = None

    def begin(self, at: int, statement: str) -> tuple[int, int] | None:
        """Count an event that happened at ``at``: the place of its row; None when it was counted.

        What is added until :meth:`end` belongs to it.
        """
        start, name = minute_of(at), digest(statement)
        if any(name in row.ids for rows in self._rows.values() for row in rows):
            return None
        rows = self._rows.setdefault(start, [])
        if not rows or len(rows[-1].ids) >= ROW_IDS:
            rows.append(_Row())
        self._at = rows[-1]
        self._at.ids.add(name)
        return start, len(rows) - 1

    def end(self) -> None:
        """The event is done with."""
        self._at = None

    def add(self, note: Note[Any]) -> bool:
        """Add what the event at hand counts; whether there is one."""
        if self._at is None:
            return False
        metric = note.metric
        name = "|".join((metric.name, *note.labels[metric.by_fleet :]))
        if isinstance(metric, Histogram):
            self._at.sums[name] += 1 if note.counts is None else sum(note.counts.values())
            self._at.sums[f"{name}|sum"] += round(note.value * 1000)
        else:
            self._at.sums[name] += int(note.value)
        return True

    def forget(self, clock: int) -> Iterator[tuple[int, int]]:
        """Drop what is outdated; the places of the rows that are gone."""
        for start in [each for each in self._rows if clock - each > PANE_KEPT_MS]:
            for number in range(len(self._rows.pop(start))):
                yield start, number

    def sums(self, since: int = 0) -> Counter[str]:
        """What all events since the pane that begins at ``since`` added up to."""
        total: Counter[str] = Counter()
        for start, rows in self._rows.items():
            if start >= since:
                for row in rows:
                    total.update(row.sums)
        return total

    def __bool__(self) -> bool:
        return bool(self._rows)

    def row(self, start: int, number: int) -> PaneRow | None:
        """A row as it is now; None when it was dropped."""
        rows = self._rows.get(start)
        if rows is None or number >= len(rows):
            return None
        return PaneRow(b"".join(sorted(rows[number].ids)), dict(sorted(rows[number].sums.items())))

    def load(self, start: int, number: int, row: PaneRow) -> None:
        """Take a row that was written."""
        rows = self._rows.setdefault(start, [])
        while len(rows) <= number:
            rows.append(_Row())
        ids = row.ids
        rows[number].ids = {ids[i : i + _DIGEST] for i in range(0, len(ids), _DIGEST)}
        rows[number].sums = Counter(row.sums)
