"""The state tables of the folds, each with the changelog topic that makes it durable.

A table is declared here and nowhere else: the order in which a transaction writes follows from its
stage, and its changelog belongs to the catalogue of topics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Stage(IntEnum):
    """When a table is written: after all outputs, and before every table of a later stage.

    What is written later decides whether a replay after a crash contributes again, so it must not
    be durable before what it contributes to.
    """

    #: Values absorb contributions of many records (sums, sketches). Each value carries the offset
    #: up to which it has absorbed, so that a replay skips what is in it.
    ABSORBING = 1
    #: Values know what they were made from: a replay finds nothing new and contributes nothing.
    KNOWING = 2


@dataclass(frozen=True, slots=True)
class TableSpec:
    """One table of one fold.

    Attributes:
        name: of the table; a word of its own among all folds of a worker.
        stage: when it is written.
        description: what it holds, for the catalogue of topics.
        window_s: length of its tumbling windows in seconds; None for a table without.
    """

    name: str
    stage: Stage
    description: str
    window_s: int | None = None

    def changelog(self, app_id: str) -> str:
        """Name of its changelog topic: Faust's rule."""
        return f"{app_id}-{self.name}-changelog"


def in_order(tables: Sequence[TableSpec]) -> tuple[TableSpec, ...]:
    """The tables in the order in which a transaction writes them.

    Raises ValueError for two of one name.
    """
    names = [table.name for table in tables]
    if len(set(names)) < len(names):
        raise ValueError(f"two tables have one name: {names}")
    return tuple(sorted(tables, key=lambda table: table.stage))


#: Length of a pane in seconds.
PANE_S: Final = 60

#: Panes: samples per fleet and minute, for windows of any size.
WINDOWS_TABLE: Final = TableSpec(
    "windows", Stage.ABSORBING, "Faust's copy of the windowed tables", window_s=PANE_S
)
#: Jobs and runs, and the partition's clock.
JOBS_TABLE: Final = TableSpec("jobs", Stage.KNOWING, "Faust's copy of the table of jobs")

#: Runners, proposals, commands, endings and switches, a row each, and the partition's clock.
FLEETS_TABLE: Final = TableSpec("fleets", Stage.KNOWING, "Faust's copy of the table of fleets")

#: What is known of each subject of telemetry, which of its events were counted, and the partition's
#: clock.
TELEMETRY_TABLE: Final = TableSpec(
    "telemetry", Stage.KNOWING, "Faust's copy of the table of telemetry"
)

#: Every table of every fold.
TABLES: Final = (JOBS_TABLE, WINDOWS_TABLE, FLEETS_TABLE, TELEMETRY_TABLE)
