"""What the group, the tables and the producers do, as metrics.

Of the hooks that Faust's sensors have, those of rebalances and of the assignor tell something here.
The others see a batch as one message, or are never called: tables are written and records are sent
past Faust (:mod:`pipeline.faust_safe.store`, :mod:`pipeline.faust_safe.outbox`). So recovery,
commits and producers count for themselves, by the metrics that are declared here.
"""

from __future__ import annotations

import time
from typing import Any, Final, Protocol

from faust import Sensor

from pipeline.metrics import Counter, Histogram, L, Label, Metric
from topics.catalogue import TOPICS

#: Changelogs are named after the app; together they are one value of the label.
CHANGELOG: Final = "changelog"
_TOPICS: Final = frozenset(spec.name for spec in TOPICS)

REBALANCES: Final = Counter[tuple[()]](
    "rebalances", "Rebalances of the workers' group that this worker has seen begin.", "rebalances"
)
REBALANCE_SECONDS: Final = Histogram[tuple[()]](
    "rebalance_seconds",
    "From the beginning of a rebalance until records flow again, tables read; those that follow "
    "before that are part of it.",
    "seconds",
    buckets=(0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
ASSIGNMENT_SECONDS: Final = Histogram[tuple[()]](
    "assignment_seconds",
    "Time to work out who owns which partition: only by the leader of the group.",
    "seconds",
    buckets=(0.001, 0.01, 0.1, 1, 10),
)
TABLE_RECOVERY_SECONDS: Final = Histogram[tuple[()]](
    "table_recovery_seconds",
    "Time to take partitions over and read their tables, after a rebalance.",
    "seconds",
    buckets=(0.1, 0.5, 1, 2.5, 5, 15, 60, 300),
)
TABLE_RECORDS: Final = Counter[tuple[()]](
    "table_records_recovered", "Records of changelogs read for the tables.", "records"
)
OFFSET_COMMIT_SECONDS: Final = Histogram[tuple[()]](
    "offset_commit_seconds",
    "Time of a commit of offsets that had something to commit; those of a fold are part of its "
    "transaction on Apache Kafka.",
    "seconds",
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5),
)
PRODUCED: Final = Counter[tuple[str]](
    "produced_records",
    "Records that the broker has acknowledged.",
    "records",
    (Label("topic", (*sorted(_TOPICS), CHANGELOG)),),
)
PRODUCE_SECONDS: Final = Histogram[tuple[str]](
    "produce_seconds",
    "From the hand-over of records to the producer until the broker has them all; of a "
    "transaction until it is committed.",
    "seconds",
    (Label("way", ("plain", "transaction")),),
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30),
)
PRODUCE_FAILURES: Final = Counter[tuple[str]](
    "produce_failures",
    "Writes that failed: another worker had taken the partition over, or else an error, which "
    "ends the worker.",
    "writes",
    (Label("reason", ("fenced", "error")),),
)
#: All of the above.
CATALOGUE: Final[tuple[Metric[Any], ...]] = tuple(
    each for each in tuple(globals().values()) if isinstance(each, Metric)
)


class Count(Protocol):
    """Adds to a counter or to a distribution: the exporter's ``count``. Each series is changed by
    one thread only."""

    def __call__(self, metric: Counter[L] | Histogram[L], labels: L, value: float = 1.0) -> None:
        """Count."""


def nobody(metric: Counter[L] | Histogram[L], labels: L, value: float = 1.0) -> None:
    """Count nothing."""


def topic_label(topic: str) -> str:
    """The label of a topic that the worker writes."""
    return topic if topic in _TOPICS else CHANGELOG


class GroupSensor(Sensor):
    """Counts rebalances and assignments. The former begin in the consumer's thread and end in that
    of the event loop; the latter are made in the consumer's."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self._count = count
        self._began: float | None = None

    def on_rebalance_start(self, app: Any) -> dict[str, float]:
        """A rebalance begins, maybe in the middle of another."""
        self._count(REBALANCES, ())
        if self._began is None:
            self._began = time.monotonic()
        return {}

    def on_rebalance_end(self, app: Any, state: Any) -> None:
        """Records flow again."""
        began, self._began = self._began, None
        if began is not None:
            self._count(REBALANCE_SECONDS, (), time.monotonic() - began)

    def on_assignment_completed(self, assignor: Any, state: dict[str, float]) -> None:
        """The leader has decided."""
        self._count(ASSIGNMENT_SECONDS, (), time.monotonic() - state["time_start"])
