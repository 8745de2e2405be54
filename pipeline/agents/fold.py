"""``runners.jobs`` -> job states, windows, samples. One ledger per owned partition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from pipeline.agents.letters import dead_letter
from pipeline.faust_safe import Batch
from pipeline.ledger import Effects, Ledger, Note, Output, PaneKey
from pipeline.windows.panes import PANE_S
from topics.models import JOBS_RECORD, Unreadable
from topics.reading import read

WindowedKey = tuple[str, tuple[float, float]]


class Fold:
    """Owns the ledgers of this worker's partitions and the two tables behind them."""

    stage = "fold"

    def __init__(
        self,
        jobs: Any,
        windows: Any,
        new_ledger: Callable[[int, Callable[[bytes], bytes | None]], Ledger],
        on_notes: Callable[[list[Note]], None],
    ) -> None:
        self._jobs = jobs
        self._windows = windows
        self._new_ledger = new_ledger
        self._on_notes = on_notes
        self.ledgers: dict[int, Ledger] = {}
        #: Last offset folded per partition, to notice a gap.
        self._last: dict[int, int] = {}

    def fold(self, batch: Batch) -> Effects:
        """Steps 3 and 4: decode and apply the records of one partition in offset order."""
        partition = batch.tp.partition
        ledger = self.ledger(partition)
        letters: list[Output] = []
        notes: list[Note] = []
        last = self._last.get(partition)
        if last is not None and batch.records[0].offset > last + 1:
            # Retention or an aborted transaction can do this; anything else is lost records.
            notes.append(Note("offset_gaps"))
        for record in batch.records:
            try:
                ledger.apply(record.offset, read(JOBS_RECORD, record.value))
            except Unreadable as why:
                letters.append(dead_letter(self.stage, record, why))
                notes.append(Note("dead_letters", (self.stage, why.reason.value)))
        self._last[partition] = batch.records[-1].offset
        effects = ledger.flush()
        effects.outputs += letters
        effects.notes += notes
        return effects

    def changelogs(self, partition: int, effects: Effects) -> tuple[list[Output], list[Output]]:
        """Panes and states as changelog records."""
        panes = self._windows.changelog_topic_name
        jobs = self._jobs.changelog_topic_name
        return (
            [
                Output(panes, partition, self._pane_key_bytes(partition, key), value)
                for key, value in effects.panes
            ],
            [Output(jobs, partition, key, value) for key, value in effects.states],
        )

    def visible(self, partition: int, effects: Effects) -> None:
        """Put what is durable into the tables, and count it."""
        self._put(self._jobs.data, partition, effects.states)
        self._put(
            self._windows.data,
            partition,
            [(windowed_key(partition, key), value) for key, value in effects.panes],
        )
        if effects.notes:
            self._on_notes(effects.notes)

    def forget(self) -> None:
        """Drop all ledgers; they are rebuilt from the tables when next needed."""
        self.ledgers.clear()
        self._last.clear()

    def ledger(self, partition: int) -> Ledger:
        """The ledger of an owned partition, rebuilt from the recovered tables if need be."""
        ledger = self.ledgers.get(partition)
        if ledger is None:
            self._load()
            ledger = self.ledgers.get(partition)
            if ledger is None:
                ledger = self.ledgers[partition] = self._new(partition)
        return ledger

    def _new(self, partition: int) -> Ledger:
        return self._new_ledger(partition, self._jobs.data.get)

    def _load(self) -> None:
        """Rebuild every partition the tables hold keys of, in one pass over each table."""
        states: dict[int, list[tuple[bytes, bytes]]] = {}
        where = self._jobs.data._key_partition
        for key, value in self._jobs.data.items():
            states.setdefault(where[key], []).append((key, value))
        panes: dict[int, list[tuple[PaneKey, bytes]]] = {}
        for (name, (start, _)), value in self._windows.data.items():
            partition, _, fleet = name.partition("|")
            panes.setdefault(int(partition), []).append(((fleet, int(start * 1000)), value))
        for partition in states.keys() | panes.keys():
            if partition not in self.ledgers:
                ledger = self._new(partition)
                ledger.load(states.get(partition, ()), panes.get(partition, ()))
                self.ledgers[partition] = ledger

    def _pane_key_bytes(self, partition: int, key: PaneKey) -> bytes:
        encoded: bytes = self._windows.app.serializers.dumps_key(
            None, windowed_key(partition, key), serializer="json"
        )
        return encoded

    def _put(self, store: Any, partition: int, writes: list[tuple[Any, bytes | None]]) -> None:
        # The memory store learns a key's partition only from changelog replay, and would keep
        # keys written live after their partition moved away (207 of 400 in a trial).
        where = store._key_partition
        data = store.data
        for key, value in writes:
            if value is None:
                data.pop(key, None)
                where.pop(key, None)
            else:
                data[key] = value
                where[key] = partition

    def counts(self) -> Counter[tuple[str, str]]:
        """Jobs by (fleet, status) over this worker's partitions."""
        total: Counter[tuple[str, str]] = Counter()
        for ledger in self.ledgers.values():
            total.update(ledger.counts())
        return total


def windowed_key(partition: int, key: PaneKey) -> WindowedKey:
    """Key of a pane in the windowed table: the fleet, told apart by partition, and the range.

    The range is Faust's: seconds, the end 0.1 s before the next window.
    """
    fleet, start = key
    return f"{partition}|{fleet}", (start / 1000, start / 1000 + PANE_S - 0.1)


