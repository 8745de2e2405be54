"""Records that were removed before they were read.

Offsets of a topic have holes that lose nothing: transactions leave markers, aborted ones leave
records nobody may read, compaction takes out what was replaced. A loss is something else: the log
begins behind the place where we go on reading, because retention (or a person) removed what was
in between. So a jump in the offsets is only a suspicion (:meth:`Holes.gap`), and what lies below
the beginning of the log is the loss (:func:`missing`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

#: Suspicions kept until the broker is asked. With transactions every batch leaves one.
_SUSPICIONS: Final = 50_000

Where = tuple[str, int]


class Gap(NamedTuple):
    """A jump in the offsets of a partition: ``[expected, first)`` was not delivered."""

    topic: str
    partition: int
    expected: int
    first: int
    #: Unix milliseconds.
    at: int


@dataclass(frozen=True, slots=True)
class Hole:
    """All that is known to be lost of a partition, since this process started."""

    topic: str
    partition: int
    #: Offsets lost, which is the number of records but for markers and what was aborted.
    records: int
    #: The first offset lost, and the one after the last.
    first: int
    end: int
    #: When the first and the last loss were noticed. Unix milliseconds.
    since: int
    latest: int

    def __str__(self) -> str:
        return f"{self.records:,} records of {self.topic}, partition {self.partition}"


def missing(expected: int, first: int, log_start: int) -> range:
    """The offsets that were lost of a jump from ``expected`` to ``first``.

    ``log_start`` is where the log begins now; it never goes back. What lies between it and
    ``first`` is still in the log, so it was passed over as a marker, aborted or compacted.
    """
    return range(expected, max(expected, min(first, log_start)))


class Holes:
    """Collects suspicions, and tells losses from harmless jumps. Any thread may call it.

    Args:
        lost: called with the topic and the number of offsets of each loss.
    """

    def __init__(self, lost: Callable[[str, int], None] = lambda topic, records: None) -> None:
        self._lost = lost
        self._lock = threading.Lock()
        self._gaps: deque[Gap] = deque(maxlen=_SUSPICIONS)
        self._found: dict[Where, Hole] = {}

    def gap(self, topic: str, partition: int, expected: int, first: int) -> None:
        """A partition went on at ``first`` where ``expected`` was next. Cheap."""
        if first > expected >= 0:
            self._gaps.append(Gap(topic, partition, expected, first, int(time.time() * 1000)))

    def suspected(self) -> set[Where]:
        """The partitions whose beginning :meth:`settle` needs."""
        with self._lock:
            return {(gap.topic, gap.partition) for gap in list(self._gaps)}

    def settle(self, starts: Mapping[Where, int]) -> list[Hole]:
        """Decide on the suspicions, given where each log begins. What is lost anew."""
        with self._lock:
            new = []
            for _ in range(len(self._gaps)):
                gap = self._gaps.popleft()
                where = (gap.topic, gap.partition)
                if where not in starts:
                    # Nobody knows yet.
                    self._gaps.append(gap)
                    continue
                before = self._found.get(where)
                # What is repeated after a rebalance is lost once.
                expected = max(gap.expected, before.end if before is not None else 0)
                lost = missing(expected, gap.first, starts[where])
                if not lost:
                    continue
                self._found[where] = Hole(
                    gap.topic,
                    gap.partition,
                    len(lost) + (before.records if before is not None else 0),
                    before.first if before is not None else lost.start,
                    lost.stop,
                    before.since if before is not None else gap.at,
                    gap.at,
                )
                new.append(
                    Hole(gap.topic, gap.partition, len(lost), lost.start, lost.stop, gap.at, gap.at)
                )
        for hole in new:
            self._lost(hole.topic, len(range(hole.first, hole.end)))
        return new

    def found(self) -> list[Hole]:
        """What is lost, the partition with the latest loss first."""
        with self._lock:
            return sorted(self._found.values(), key=lambda hole: -hole.latest)
