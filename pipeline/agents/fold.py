"""``runners.jobs`` -> job states, windows, samples. One ledger per owned partition."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from pipeline.agents.letters import bury
from pipeline.agents.transaction import SLICE
from pipeline.effects import Effects, Note, Output, PaneKey
from pipeline.faust_safe import Batch
from pipeline.faust_safe.store import PartitionedStore
from pipeline.ledger import Ledger
from pipeline.windows.panes import PANE_S
from topics.models import JOBS_RECORD, Unreadable
from topics.reading import read

NewLedger = Callable[[int, Callable[[bytes], bytes | None]], Ledger]


class Fold:
    """Owns the ledgers of this worker's partitions and the two tables behind them."""

    stage = "fold"

    def __init__(
        self,
        jobs: Any,
        windows: Any,
        new_ledger: NewLedger,
        owned: Callable[[], Iterable[int]],
        on_notes: Callable[[list[Note[Any]]], None],
    ) -> None:
        self._jobs_changelog: str = jobs.changelog_topic_name
        self._windows_changelog: str = windows.changelog_topic_name
        self._jobs: PartitionedStore = jobs.data
        self._windows: PartitionedStore = windows.data
        self._new_ledger = new_ledger
        self._owned = owned
        self._on_notes = on_notes
        self.ledgers: dict[int, Ledger] = {}
        #: How often the ledgers were dropped.
        self.epoch = 0

    async def fold(self, batch: Batch) -> Effects:
        """Steps 3 and 4: decode and apply the records of one partition in offset order."""
        partition = batch.tp.partition
        ledger = self._ledger(partition)
        letters: list[Output] = []
        notes: list[Note[Any]] = []
        ledger.now = int(time.time() * 1000)
        for number, record in enumerate(batch.records):
            if number % SLICE == 0:
                await asyncio.sleep(0)
            try:
                ledger.apply(record.offset, read(JOBS_RECORD, record.value), record.timestamp)
            except Unreadable as why:
                letter, note = bury(self.stage, record, why)
                letters.append(letter)
                notes.append(note)
        effects = ledger.flush()
        effects.outputs += letters
        effects.notes += notes
        return effects

    def changelogs(self, partition: int, effects: Effects) -> tuple[list[Output], list[Output]]:
        """Panes and states as changelog records."""
        return (
            [
                Output(self._windows_changelog, partition, pane_key_bytes(partition, key), value)
                for key, value in effects.panes
            ],
            [Output(self._jobs_changelog, partition, key, value) for key, value in effects.states],
        )

    def visible(
        self, partition: int, effects: Effects, offsets: dict[tuple[str, int], int]
    ) -> None:
        """Put what is durable into the tables, and count it."""
        panes = [(pane_key_bytes(partition, key), value) for key, value in effects.panes]
        for store, changelog, writes in (
            (self._jobs, self._jobs_changelog, effects.states),
            (self._windows, self._windows_changelog, panes),
        ):
            last = offsets.get((changelog, partition))
            store.put(partition, writes, None if last is None else last + 1)
        ledger = self.ledgers.get(partition)
        if ledger is not None:
            ledger.written()
        if effects.notes:
            self._on_notes(effects.notes)

    def forget(self) -> None:
        """Drop all ledgers; they are rebuilt from the tables when next needed."""
        self.epoch += 1
        self.ledgers.clear()
        gc.unfreeze()

    def load(self) -> None:
        """Rebuild the ledgers of all owned partitions from the recovered tables."""
        missing = [p for p in self._owned() if p not in self.ledgers]
        if not missing:
            return
        for partition in missing:
            ledger = self._new(partition)
            ledger.now = int(time.time() * 1000)
            ledger.load(
                self._jobs.items(partition),
                [(pane_key(key), value) for key, value in self._windows.items(partition)],
            )
            self.ledgers[partition] = ledger
        # What was loaded stays, a few objects per job: no collection needs to look at it again.
        gc.freeze()

    def _ledger(self, partition: int) -> Ledger:
        ledger = self.ledgers.get(partition)
        if ledger is None:
            self.load()
            ledger = self.ledgers.get(partition)
        if ledger is None:
            raise RuntimeError(f"got a batch of partition {partition}, which is not owned")
        return ledger

    def _new(self, partition: int) -> Ledger:
        return self._new_ledger(partition, lambda key: self._jobs.get(partition, key))


# A pane's key in the windowed table is Faust's: the name, here partition and fleet, and the
# window's range in seconds, its end 0.1 s before the next window, as JSON.


def pane_key_bytes(partition: int, key: PaneKey) -> bytes:
    """The changelog key of a pane."""
    fleet, start = key
    begin = start / 1000
    return msgspec.json.encode([f"{partition}|{fleet}", [begin, begin + PANE_S - 0.1]])


def pane_key(raw: bytes) -> PaneKey:
    """The pane a changelog key names."""
    name, (begin, _) = msgspec.json.decode(raw)
    return name.partition("|")[2], round(begin * 1000)
