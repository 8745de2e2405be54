"""A second fold, as one would be added: a log of its own, two tables, outputs.

Machines report what they used, again and again. Who reports is the key; of each the readings are
known by id, and the use per site is added up. Nothing of the product knows of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field, TypeAdapter

from pipeline import metrics
from pipeline.effects import Effects, Note, Output
from pipeline.fold_spec import FoldSpec, Lookup
from pipeline.settings import Settings
from topics.envelope import Record
from topics.models import Tick
from topics.tables import Stage, TableSpec

LOG = "toy.readings"
STATES = "toy.states"
USE = TableSpec("use", Stage.ABSORBING, "use per site, with the offset it reaches to")
MACHINES = TableSpec("machines", Stage.KNOWING, "readings known of each machine")


class Reading(Record):
    """What a machine used. ``key`` names the machine."""

    kind: Literal["reading"] = "reading"
    site: str
    used: int


RECORDS: TypeAdapter[Any] = TypeAdapter(Annotated[Reading | Tick, Field(discriminator="kind")])


class Meter:
    """One partition's ledger."""

    def __init__(self, partition: int, tables: Mapping[str, Lookup]) -> None:
        self.now: int | None = None
        self.me = ""
        self._partition = partition
        self._known: dict[str, dict[str, int]] = {}
        #: Site -> (offset it reaches to, sum).
        self._use: dict[str, tuple[int, int]] = {}
        self._dirty: dict[str, None] = {}
        self._dirty_use: dict[str, None] = {}
        self._offset = -1

    def load(self, tables: Mapping[str, Iterable[tuple[bytes, bytes]]]) -> None:
        """See PartitionLedger."""
        for key, value in tables[MACHINES.name]:
            self._known[key.decode()] = msgspec.json.decode(value)
        for key, value in tables[USE.name]:
            fence, used = msgspec.json.decode(value)
            self._use[key.decode().partition("|")[2]] = (fence, used)

    def apply(self, offset: int, record: Any, written: int | None = None) -> None:
        """See PartitionLedger."""
        self._offset = offset
        if isinstance(record, Tick):
            return
        known = self._known.get(record.key, {})
        if record.id in known:
            return
        self._known[record.key] = {**known, record.id: record.used}
        self._dirty[record.key] = None
        fence, used = self._use.get(record.site, (-1, 0))
        if offset > fence:
            self._use[record.site] = (fence, used + record.used)
            self._dirty_use[record.site] = None

    def flush(self) -> Effects:
        """See PartitionLedger."""
        effects = Effects(notes=[Note(metrics.DUPLICATE_FACTS, (), 0.0)])
        for key in self._dirty:
            value = msgspec.json.encode(self._known[key])
            effects.outputs.append(Output(STATES, self._partition, key.encode(), value))
            effects.writes(MACHINES).append((key.encode(), value))
        for site in self._dirty_use:
            used = self._use[site][1]
            self._use[site] = (self._offset, used)
            row = f"{self._partition}|{site}".encode()
            effects.writes(USE).append((row, msgspec.json.encode(self._use[site])))
        self._dirty.clear()
        self._dirty_use.clear()
        return effects

    def written(self) -> None:
        """See PartitionLedger."""


def declare(settings: Settings) -> FoldSpec[Meter]:
    """The declaration: all that a worker is told."""
    return FoldSpec(
        stage="toy",
        log=LOG,
        records=RECORDS,
        tables=(MACHINES, USE),
        new_ledger=Meter,
        writer="toy",
    )


def reading(n: int, at: int) -> Reading:
    """The nth reading: 40 machines of 3 sites, each using something else."""
    return Reading(
        id=f"r{n}",
        source="toy",
        occurred_at=at + n,
        received_at=at + n,
        key=f"machine-{n % 40}",
        site=f"site-{n % 3}",
        used=n,
    )
