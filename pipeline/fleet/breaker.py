"""The breaker of a fleet: derived from how its commands ended, and from nothing else. Pure.

A command that was refused counts neither way: a fence that holds is right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from pipeline.fleet.policy import FleetPolicy
from topics.recovery import BreakerState, Ending, Result

#: Of so many of the latest endings the share of failures is taken.
LAST: Final = 10
_BAD: Final = frozenset({Result.FAILED, Result.CANNOT, Result.EXPIRED})


class Breaker(Struct, frozen=True):
    """``opened_until`` is the end of the time in which nothing may go; None: it is closed."""

    opened_until: int | None = None

    def state(self, clock: int) -> BreakerState:
        """Where it is at a time."""
        if self.opened_until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if clock < self.opened_until else BreakerState.HALF_OPEN


def breaker(endings: Iterable[Ending], policy: FleetPolicy) -> Breaker:
    """The breaker after these endings, in whatever order they come."""
    last: deque[bool] = deque(maxlen=LAST)
    until: int | None = None
    for ending in sorted(endings, key=lambda each: (each.occurred_at, each.id)):
        if ending.result is Result.REFUSED:
            continue
        bad = ending.result in _BAD
        if until is not None:
            if ending.occurred_at < until:
                continue  # issued before it opened
            until = ending.occurred_at + policy.breaker_open_ms if bad else None
            continue
        last.append(bad)
        if len(last) >= policy.breaker_failures and sum(last) >= policy.breaker_share * len(last):
            until = ending.occurred_at + policy.breaker_open_ms
            last.clear()
    return Breaker(until)
