"""Telemetry as plain data: events, the log that they make, and what a ledger makes of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from pipeline import folds
from pipeline.effects import Note
from pipeline.exporter import Exporter
from pipeline.settings import Settings
from pipeline.telemetry import TelemetryLedger
from tests.support.chaos import Durable
from topics.events import MODELS, Event
from topics.models import Tick
from topics.recovery import Depth

#: A whole minute in November 2025.
START = 1_764_000_000_000
MINUTE = 60_000


def event(kind: str, at: int, id_: str = "", **said: Any) -> Any:
    """An event of fleet ``f0`` unless told, ``at`` ms after :data:`START`."""
    given = {
        "kind": kind,
        "id": id_ or f"{kind}|{at}|{sorted(said.items())}",
        "source": "test",
        "fleet": "f0",
        "occurred_at": START + at,
        "received_at": START + at,
    }
    return MODELS[kind](**{**given, **said})


def tick(at: int) -> Tick:
    """The clock, ``at`` ms after :data:`START`."""
    return Tick(
        id=f"tick:0:{at}", source="runnerstream", key="tick:0", by="me",
        occurred_at=START + at, received_at=START + at,
    )  # fmt: skip


def depth(partition: int, at: int, queued: int) -> Depth:
    """Jobs of ``f0`` that wait in a partition of our own log."""
    return Depth(
        id=f"depth|f0|{partition}|{at}", source="runnerstream", key="f0", partition=partition,
        occurred_at=START + at, received_at=START + at, counts={"queued": queued},
    )  # fmt: skip


def durable() -> Durable:
    """The empty table of the fold."""
    return Durable(folds.telemetry(Settings()))


class Seen:
    """What a worker shows after a log: gauges, counters, sums, tables."""

    def __init__(self, log: Iterable[Any], batch: int = 7) -> None:
        self.durable = durable()
        self.ledger: TelemetryLedger = self.durable.ledger()
        self.notes: list[Note[Any]] = []
        for offset, record in enumerate(log):
            self.ledger.apply(offset, record)
            if offset % batch == 0:
                self._flush()
        self._flush()

    def _flush(self) -> None:
        effects = self.ledger.flush()
        for name, writes in effects.tables.items():
            for key, value in writes:
                self.durable.put(name, key, value)
        self.notes += effects.notes
        self.ledger.written()

    @property
    def levels(self) -> dict[tuple[str, ...], float]:
        """Gauges by name and labels, brought together as the exporter does."""
        found: dict[tuple[str, ...], float] = {}
        for gauge, labels, value in self.ledger.levels():
            where = (gauge.name, *labels)
            before = found.get(where)
            if before is None:
                found[where] = value
            else:
                found[where] = max(before, value) if gauge.over == "max" else before + value
        return found

    @property
    def sums(self) -> Counter[str]:
        """What was counted, over all subjects: by metric and labels without the fleet."""
        total: Counter[str] = Counter()
        for where in self.ledger.subjects:
            total.update(self.ledger.sums(where))
        return total

    @cached_property
    def exporter(self) -> Exporter:
        """The metrics of all that was counted."""
        made = Exporter()
        made.note(self.notes)
        return made

    def counted(self, name: str, **labels: str) -> float:
        """A sample of the exporter; 0 when there is none."""
        found = self.exporter.registry.get_sample_value(f"runnerstream_{name}", labels)
        return found or 0.0

    @property
    def views(self) -> list[dict[str, Any]]:
        """What people see of all families."""
        views = [self.ledger.view(where) for where in self.ledger.subjects]
        return sorted((view for view in views if view is not None), key=repr)

    def again(self) -> TelemetryLedger:
        """A ledger made from the table as it stands."""
        made: TelemetryLedger = self.durable.ledger()
        return made


def muddled(events: Sequence[Event], seed: int, twice: float = 0.3) -> list[Any]:
    """The events in another order, some of them twice, and no tick between."""
    rng = random.Random(seed)
    log = [*events, *(each for each in events if rng.random() < twice)]
    rng.shuffle(log)
    return log
