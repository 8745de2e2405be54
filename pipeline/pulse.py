"""How late the event loop wakes those who sleep: what a batch, a view or a collection held it up.

Everything of a worker runs in one event loop. So its lateness is what each batch and each answer
waits for at least.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from pipeline.metrics import Gauge, Histogram, Level, Metric

#: Seconds between two beats. A beat takes some 50 us.
BEAT_S: Final = 0.25
#: The worst is that of so many beats: a minute, or longer by how late they were.
BEATS_KEPT: Final = 240

LOOP_LAG_SECONDS: Final = Histogram[tuple[()]](
    "loop_lag_seconds",
    "How late the event loop woke a task that slept, four times a second.",
    "seconds",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
)
LOOP_LAG_WORST: Final = Gauge[tuple[()]](
    "loop_lag_worst_seconds",
    "The most that the event loop was late within the last minute.",
    "seconds",
    in_advance=False,
    over="max",
)
CATALOGUE: Final[tuple[Metric[Any], ...]] = (LOOP_LAG_SECONDS, LOOP_LAG_WORST)


class Pulse:
    """The beats of one event loop."""

    def __init__(self, beat_s: float = BEAT_S) -> None:
        self._beat_s = beat_s
        self._late: deque[float] = deque(maxlen=BEATS_KEPT)

    async def beat(self) -> float:
        """Sleep once; the seconds that it took too long."""
        due = time.perf_counter() + self._beat_s
        await asyncio.sleep(self._beat_s)
        late = max(0.0, time.perf_counter() - due)
        self._late.append(late)
        return late

    def levels(self) -> Iterator[Level]:
        """The worst of the last minute; nothing before the first beat."""
        if self._late:
            yield LOOP_LAG_WORST, (), max(self._late)
