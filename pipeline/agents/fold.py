"""A keyed fold: a log -> outputs and tables. One ledger per owned partition of the log.

Which log it reads, which tables it keeps and how a partition's ledger is made is declared
(:mod:`pipeline.fold_spec`). All else is the same for every fold, and stands here and in
:mod:`pipeline.agents.transaction`.
"""

from __future__ import annotations

import asyncio
import gc
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic

from pipeline.agents.letters import bury
from pipeline.agents.transaction import SLICE, StepWrites
from pipeline.effects import Effects, Note, Output
from pipeline.faust_safe import Batch
from pipeline.faust_safe.store import PartitionedStore
from pipeline.fold_spec import OUTPUTS, FoldSpec, L, Lookup
from topics.models import Tick, Unreadable
from topics.reading import read
from topics.tables import in_order


class Fold(Generic[L]):
    """Owns the ledgers of this worker's partitions and the tables behind them."""

    def __init__(
        self,
        spec: FoldSpec[L],
        tables: Mapping[str, Any],
        owned: Callable[[str], Iterable[int]],
        on_notes: Callable[[list[Note[Any]]], None],
    ) -> None:
        """``tables`` are Faust's by name, ``owned`` tells the owned partitions of a topic."""
        self.spec = spec
        self.stage = spec.stage
        self.steps = spec.steps
        self._stores: dict[str, PartitionedStore] = {
            each.name: tables[each.name].data for each in in_order(spec.tables)
        }
        self._changelogs: dict[str, str] = {
            name: tables[name].changelog_topic_name for name in self._stores
        }
        self._owned = owned
        self._on_notes = on_notes
        self.ledgers: dict[int, L] = {}
        #: How often the ledgers were dropped.
        self.epoch = 0
        self._nonce = secrets.token_hex(8)

    @property
    def me(self) -> str:
        """What its ledgers call themselves. Another name after each rebalance, so that a tick from
        before says nothing about what others published since."""
        return f"{self._nonce}.{self.epoch}"

    async def fold(self, batch: Batch) -> Effects:
        """Steps 3 and 4: decode and apply the records of one partition in offset order."""
        partition = batch.tp.partition
        ledger = self._ledger(partition)
        letters: list[Output] = []
        notes: list[Note[Any]] = []
        ledger.now = int(time.time() * 1000)
        records = self.spec.records
        for number, record in enumerate(batch.records):
            if number % SLICE == 0:
                await asyncio.sleep(0)
            try:
                found = read(records, record.value)
                ledger.apply(record.offset, found, record.timestamp)
            except Unreadable as why:
                letter, note = bury(self.stage, record, why)
                letters.append(letter)
                notes.append(note)
            else:
                if isinstance(found, Tick):
                    # It may cost as much as thousands of records: behind, many come in a row.
                    await asyncio.sleep(0)
        effects = ledger.flush()
        effects.outputs += letters
        effects.notes += notes
        return effects

    def writes(self, partition: int, effects: Effects) -> StepWrites:
        """Outputs as they are, tables as changelog records."""
        return {
            OUTPUTS: effects.outputs,
            **{
                name: [
                    Output(changelog, partition, key, value)
                    for key, value in effects.tables.get(name, ())
                ]
                for name, changelog in self._changelogs.items()
            },
        }

    def visible(
        self, partition: int, effects: Effects, offsets: dict[tuple[str, int], int]
    ) -> None:
        """Put what is durable into the tables, and count it."""
        for name, store in self._stores.items():
            last = offsets.get((self._changelogs[name], partition))
            writes = effects.tables.get(name, [])
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
        missing = [p for p in self._owned(self.spec.log) if p not in self.ledgers]
        if not missing:
            return
        for partition in missing:
            ledger = self._new(partition)
            ledger.now = int(time.time() * 1000)
            ledger.me = self.me
            ledger.load({name: store.items(partition) for name, store in self._stores.items()})
            self.ledgers[partition] = ledger
        # What was loaded stays, a few objects per job: no collection needs to look at it again.
        gc.freeze()

    def _ledger(self, partition: int) -> L:
        ledger = self.ledgers.get(partition)
        if ledger is None:
            self.load()
            ledger = self.ledgers.get(partition)
        if ledger is None:
            raise RuntimeError(f"got a batch of partition {partition}, which is not owned")
        return ledger

    def _new(self, partition: int) -> L:
        def lookup(store: PartitionedStore) -> Lookup:
            return lambda key: store.get(partition, key)

        return self.spec.new_ledger(
            partition, {name: lookup(store) for name, store in self._stores.items()}
        )
