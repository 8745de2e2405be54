"""What the batch under way leads to so far: gathered from all parts of a ledger."""

from __future__ import annotations

from typing import Any

from pipeline.effects import Effects, Note, Output
from pipeline.metrics import Counter, L
from topics.tables import JOBS_TABLE


class Pending:
    """Records to publish, states to delete and things to count, since the last flush."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.notes: list[Note[Any]] = []
        #: Keys of jobs and runs that are forgotten, in one order.
        self.gone: dict[str, None] = {}
        #: Counts of the batch, one note per metric and labels instead of one per record.
        self._counted: dict[tuple[Counter[Any], tuple[str, ...]], int] = {}

    def note(self, metric: Counter[L], labels: L) -> None:
        """Count one more of a metric."""
        what = (metric, labels)
        self._counted[what] = self._counted.get(what, 0) + 1

    def take(self) -> Effects:
        """What there is to publish and to count; none of it is pending any more."""
        effects = Effects(self.outputs, notes=self.notes)
        for (metric, labels), times in self._counted.items():
            effects.notes.append(Note(metric, labels, float(times)))
        self.outputs, self.notes = [], []
        self._counted.clear()
        return effects

    def forget(self, effects: Effects) -> None:
        """Delete the states of what is forgotten."""
        writes = effects.writes(JOBS_TABLE)
        for key in self.gone:
            writes.append((key.encode(), None))
        self.gone.clear()
