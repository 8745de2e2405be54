"""What a fold is: a log, tables, and a ledger for each partition. Pure.

A fold is declared (:class:`FoldSpec`) and not programmed: the agent, the transaction and its
order, recovery, fencing and the crash tests follow from the declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from pydantic import TypeAdapter

from pipeline.effects import Effects
from topics.tables import TableSpec, in_order

#: The first durable step of a transaction. The others are called like the table they write.
OUTPUTS: Final = "outputs"

#: Reads a table of the partition: a value by key, None when there is none.
Lookup = Callable[[bytes], bytes | None]


class PartitionLedger(Protocol):
    """What one partition of a log knows. Pure, and a working copy: it may run ahead of what is
    durable, because it is dropped and made anew from the tables when that does not become so."""

    #: The wall clock in ms, as last read; None: nobody knows.
    now: int | None
    #: Whose it is, as :attr:`topics.models.Tick.by` has it. It acts at ticks of its own only.
    me: str

    def load(self, tables: Mapping[str, Iterable[tuple[bytes, bytes]]]) -> None:
        """Take what the tables hold, by the name of the table."""
        ...

    def apply(self, offset: int, record: Any, written: int | None = None) -> None:
        """Take the partition's next record, which was written at ``written`` (ms)."""
        ...

    def flush(self) -> Effects:
        """What all records since the last flush lead to."""
        ...

    def written(self) -> None:
        """The oldest flush is in the tables now; told once for each, in order."""
        ...


L = TypeVar("L", bound=PartitionLedger)


@dataclass(frozen=True)
class FoldSpec(Generic[L]):
    """One fold, declared.

    Attributes:
        stage: its name in metrics, dead letters and logs.
        log: the topic it folds; it gets the clock's ticks.
        records: what the log's values are parsed with.
        tables: what it keeps. Each is written at its stage.
        new_ledger: makes the empty ledger of a partition, given its number and a look-up for each
            table by name.
        writer: begins the transactional ids of its writers, after the application id. Empty for
            the fold that was there before the others.
    """

    stage: str
    log: str
    records: TypeAdapter[Any]
    tables: tuple[TableSpec, ...]
    new_ledger: Callable[[int, Mapping[str, Lookup]], L]
    writer: str

    @property
    def steps(self) -> tuple[str, ...]:
        """The durable steps of its transactions, in order: outputs, then each table."""
        return (OUTPUTS, *(table.name for table in in_order(self.tables)))

    def changelogs(self, app_id: str) -> frozenset[str]:
        """The changelog topics of its tables."""
        return frozenset(table.changelog(app_id) for table in self.tables)

    def transactional_id(self, app_id: str) -> str:
        """What the partition's number is added to."""
        return f"{app_id}-{self.writer}" if self.writer else app_id
