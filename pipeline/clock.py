"""The clock of one partition of a log: the time of the latest tick that can be believed. Pure."""

from __future__ import annotations

from typing import Final, Literal

from topics.envelope import EARLIEST_MS
from topics.models import Tick

#: A time may be this much ahead of the time at which it was written.
AHEAD_MS: Final = 3_600_000


class PartitionClock:
    """Moved by ticks only (L3). ``now`` is the wall clock in ms as last read; None: unknown."""

    def __init__(self) -> None:
        #: Latest tick that was believed, 0 before the first.
        self.at = 0
        self.now: int | None = None

    def take(self, tick: Tick, written: int | None) -> Literal["future", "past"] | None:
        """Move to a tick that was written at ``written`` (ms), or say why not."""
        if self.is_ahead(tick.occurred_at, written):
            return "future"
        if tick.occurred_at < self.at:
            return "past"
        self.at = tick.occurred_at
        return None

    def is_ahead(self, at: int, written: int | None) -> bool:
        """Whether a time is of somebody whose clock is wrong."""
        if written is not None and written < EARLIEST_MS:
            written = None  # Kafka says -1 where nobody told.
        if self.now is not None and (written is None or written > self.now):
            written = self.now
        return written is not None and at > max(self.at, written) + AHEAD_MS

    def heal(self) -> bool:
        """Take back a clock that was set by somebody whose clock was wrong; whether it was."""
        if self.now is None or self.at <= self.now + 2 * AHEAD_MS:
            return False
        self.at = 0
        return True
