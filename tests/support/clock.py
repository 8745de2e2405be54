"""A clock that is off, or fast: import this before anything that reads the time.

``TEST_CLOCK_OFF_S`` says by how many seconds this process's wall clock is ahead. ``TEST_CLOCK``
makes it a :class:`FastClock`. Monotonic clocks stay as they are, so time-outs of the network do.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Final, Self

_time, _time_ns = time.time, time.time_ns
VARIABLE: Final = "TEST_CLOCK"


@dataclass(frozen=True)
class FastClock:
    """A wall clock that showed ``shown`` at ``real`` and runs ``speed`` times as fast. Seconds."""

    real: float
    shown: float
    speed: float

    @classmethod
    def ago(cls, seconds: float, speed: float) -> Self:
        """One that begins so many seconds ago: so it is never ahead of a broker's clock."""
        now = _time()
        return cls(now, now - seconds, speed)

    @classmethod
    def told(cls, text: str) -> Self:
        """What :attr:`text` says."""
        return cls(*map(float, text.split(",")))

    @property
    def text(self) -> str:
        """For ``TEST_CLOCK`` of another process, whose clock then shows the same."""
        return f"{self.real!r},{self.shown!r},{self.speed!r}"

    def time(self) -> float:
        """What it shows, in seconds."""
        return self.shown + (_time() - self.real) * self.speed

    def ms(self) -> int:
        """What it shows, in ms."""
        return int(self.time() * 1000)


_off = float(os.environ.get("TEST_CLOCK_OFF_S", "0"))
if _off:
    time.time = lambda: _time() + _off
    time.time_ns = lambda: _time_ns() + int(_off * 1e9)
if os.environ.get(VARIABLE):
    _fast = FastClock.told(os.environ[VARIABLE])
    time.time = _fast.time
    time.time_ns = lambda: int(_fast.time() * 1e9)
