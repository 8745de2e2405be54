"""How a sink is doing: what it tells of itself, what was lost, since when the broker fails."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from sinks.writer import describe


@dataclass(frozen=True, slots=True)
class Hole:
    """Records that the broker had removed before this sink read them."""

    topic: str
    partition: int
    #: First and last offset that is gone.
    first: int
    last: int
    #: How many offsets: the number of records, but for marks of transactions among them.
    records: int
    #: Unix time in seconds at which it was noticed.
    noticed: float


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """How the sink is doing, for health checks and people."""

    #: It is a member of its group and its last insert succeeded.
    ready: bool
    #: Why it is not ready, as a sentence; empty when it is.
    reason: str
    #: The loop turns, and the group is or will soon be joined. When not, restarting the process is
    #: right.
    alive: bool
    #: Partitions this process owns.
    partitions: int
    #: Records not yet acknowledged by ClickHouse, by topic; a topic of which that is not known yet
    #: is left out.
    lag: Mapping[str, int]
    #: Seconds that the oldest consumed and unacknowledged record has waited; 0 when there is none.
    oldest_unflushed_s: float
    #: Unix time in seconds of the last acknowledged batch; None before the first.
    last_flush: float | None
    paused: bool
    #: What retention has removed before it was read, the latest first.
    holes: tuple[Hole, ...] = ()


class BrokerOutage:
    """Since when the broker does not do what we ask, and how it failed. Safe from any thread."""

    def __init__(self) -> None:
        #: Monotonic, and an error; None while the broker does.
        self.now: tuple[float, str] | None = None

    def failed(self, error: BaseException) -> None:
        """It has not done what was asked."""
        before = self.now
        since = before[0] if before else time.monotonic()
        self.now = (since, describe(error))

    def over(self) -> None:
        """It has."""
        self.now = None
