"""How much a target is asked for, by how it has answered. Pure: it is told the time.

A target that does not answer gets one delivery at a time, at growing distances, until it takes one.
One that refuses a single delivery again and again is not away: that is why deliveries are told
apart.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from enum import StrEnum
from typing import Final

from sinks.writer import Backoff

#: Failures in a row, each of another delivery, after which the target counts as away.
IN_A_ROW: Final = 3
#: What a target may ask for with Retry-After. Seconds.
MOST_RETRY_AFTER_S: Final = 300.0


class Answer(StrEnum):
    """What came of an attempt. Each is a metric label."""

    TAKEN = "taken"
    #: This delivery will not be taken, however often it is sent.
    REFUSED = "refused"
    #: 429.
    LIMITED = "limited"
    REDIRECTED = "redirected"
    #: 401, 403, 404 and the like: most likely the target is not set up right.
    DENIED = "denied"
    #: 5xx, 408, 425.
    FAILING = "failing"
    TIMEOUT = "timeout"
    #: No connection.
    UNREACHABLE = "unreachable"
    #: The connection ended without an answer.
    BROKEN = "broken"


def judge(status: int, refusals: Collection[int]) -> Answer:
    """What a status means. ``refusals`` are those by which a delivery is refused for good."""
    if 200 <= status < 300:
        return Answer.TAKEN
    if status in refusals:
        return Answer.REFUSED
    if status == 429:
        return Answer.LIMITED
    if status < 400:
        return Answer.REDIRECTED
    return Answer.FAILING if status >= 500 or status in (408, 425) else Answer.DENIED


class Pace:
    """How one target is doing.

    Args:
        at_once: deliveries under way at a time while it is well.
    """

    def __init__(self, at_once: int, backoff: Backoff) -> None:
        self._at_once = at_once
        self._backoff = backoff
        self._failed: set[Hashable] = set()
        self._probes = 0
        #: Since when it is paused; None while it is not.
        self.paused_since: float | None = None
        #: When it may be asked next, while it is paused.
        self.probe_at = 0.0

    def room(self, now: float, flying: int, probing: int) -> int:
        """How many more may be sent now. Of those under way ``probing`` began while it was paused:
        one that hangs since before holds up nothing."""
        if self.paused_since is None:
            return max(0, self._at_once - flying)
        return int(probing == 0 and now >= self.probe_at)

    def answers(self) -> bool:
        """It has taken a delivery, or refused one for good; whether it was paused until now."""
        was = self.paused_since is not None
        self._failed.clear()
        self._probes = 0
        self.paused_since = None
        return was

    def failed(
        self, now: float, began: float, which: Hashable, answer: Answer, after_s: float | None
    ) -> bool:
        """An attempt that began then has failed; whether the target is paused from now on.

        ``after_s``: what it asked for with Retry-After.
        """
        self._failed.add(which)
        if self.paused_since is not None and began < self.paused_since:
            # It was under way already, and says nothing new.
            return False
        at_once = answer in (Answer.UNREACHABLE, Answer.LIMITED) or after_s is not None
        paused = self.paused_since is not None
        if not (paused or at_once or len(self._failed) >= IN_A_ROW):
            return False
        if not paused:
            self.paused_since = now
        self._probes += 1
        asked = 0.0 if after_s is None else min(after_s, MOST_RETRY_AFTER_S)
        self.probe_at = now + max(asked, self._backoff.delay(self._probes))
        return not paused
