"""What the telemetry of a simulated fleet says, and what is true of it.

Each family has a part of its own that plays its piece of the world by itself, without the fold:
so what the fold makes of the events can be compared with what happened.

A part moves in steps, and nothing in it follows from when it ends, or from other fleets: whoever
plays it for longer, or for more fleets, gets the same events and then more.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from topics.events import MODELS, Event

#: Every part of the world moves at this interval. ms.
STEP_MS: Final = 5_000


@dataclass
class Told:
    """Events, and the truth about them.

    Attributes:
        events: in the order in which they happened.
        counts: by fleet, how often what happened: by metric and labels as in
            :mod:`pipeline.telemetry.panes`.
        levels: gauges at ``at``, by name and labels, the fleet first.
        stored: what only ClickHouse tells at ``at``, in the same way: no metric has such labels.
        at: the moment of which the truth is told: the end, or later, in ms.
    """

    at: int
    events: list[Event] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    levels: dict[tuple[str, ...], float] = field(default_factory=dict)
    stored: dict[tuple[str, ...], float] = field(default_factory=dict)
    _numbers: Counter[str] = field(default_factory=Counter)

    def tell(self, kind: str, fleet: str, at: int, **said: Any) -> None:
        """Add an event."""
        # Of its fleet: what a fleet says does not depend on how long the others go on.
        number = self._numbers[fleet]
        self._numbers[fleet] += 1
        self.events.append(
            MODELS[kind](
                id=f"sim|{kind}|{fleet}|{at}|{number}",
                kind=kind,
                source="simulator",
                fleet=fleet,
                occurred_at=at,
                received_at=at,
                **said,
            )
        )

    def count(self, fleet: str, *what: str, value: int = 1) -> None:
        """Say that something happened."""
        self.counts.setdefault(fleet, Counter())["|".join(what)] += value

    def store(self, value: float, *where: str) -> None:
        """Add to what only ClickHouse tells."""
        self.stored[where] = self.stored.get(where, 0) + value

    def add(self, other: Told) -> None:
        """Take in what another part of the world says."""
        self.events += other.events
        for fleet, counts in other.counts.items():
            self.counts.setdefault(fleet, Counter()).update(counts)
        self.levels |= other.levels
        self.stored |= other.stored
