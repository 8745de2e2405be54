"""What may be asked of a provider's API, and when. No I/O; the clock is handed in."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

#: The window in which a budget counts requests, in seconds.
WINDOW_S: Final = 60.0
#: Requests that one question may take: the job, its run, and that run's earlier attempt.
PER_QUESTION: Final = 3
#: The longest that a provider may keep us waiting, whatever it says. Seconds.
LONGEST_WAIT_S: Final = 3_900.0
#: How long a failing provider is left alone: from the first failure, doubled up to the longest.
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0


@dataclass
class Budget:
    """How many requests may be made of one lane, and when. Safe from several threads.

    Three things bound it: our own cap per minute, over any window of 60 s; what the provider says
    is left until it counts anew; and pauses, which it asks for or which its failures call for.

    Attributes:
        cap: requests in any 60 s.
        clock: monotonic, seconds.
    """

    cap: int
    clock: Callable[[], float]
    _taken: deque[float] = field(default_factory=deque)
    #: What the provider said last, and how many requests it has not counted in that.
    _left: int | None = None
    _away: int = 0
    _resets: float = 0.0
    _closed: float = 0.0
    _failures: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> bool:
        """Count a request that is about to be made, until it is :meth:`back`. False: it may not
        be."""
        with self._lock:
            now = self.clock()
            if self._wait(now, 1) > 0:
                return False
            self._taken.append(now)
            self._away += 1
            return True

    def back(self) -> None:
        """A request has ended, in whatever way."""
        with self._lock:
            self._away -= 1

    def opens(self, flights: int) -> float:
        """In how many seconds a further question fits, with room for those being asked."""
        with self._lock:
            return self._wait(self.clock(), min(self.cap, PER_QUESTION * (flights + 1)))

    def left(self) -> int | None:
        """What the provider says is left; None when it has not said."""
        with self._lock:
            return None if self._expired(self.clock()) else self._left

    def told(self, left: int, resets_in: float) -> None:
        """The provider says what is left, and in how many seconds it counts anew."""
        with self._lock:
            now = self.clock()
            resets = now + min(max(resets_in, 0.0), LONGEST_WAIT_S)
            # Answers overtake each other: within one period the lowest is the latest.
            if not self._expired(now) and self._left is not None and resets < self._resets + 5:
                left = min(left, self._left)
            self._left, self._resets = max(0, left), resets

    def pause(self, seconds: float) -> None:
        """Ask nothing for so long."""
        with self._lock:
            until = self.clock() + min(max(seconds, 0.0), LONGEST_WAIT_S)
            self._closed = max(self._closed, until)

    def failed(self) -> None:
        """The provider failed: it is left alone for a while, longer each time in a row.

        Requests that were under way together fail together: that is once.
        """
        with self._lock:
            if self.clock() < self._closed:
                return
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._failures, 16))
            self._failures += 1
            # Jitter, so that probers that failed together do not come back together.
            until = self.clock() + pause * random.uniform(0.5, 1.0)
            self._closed = max(self._closed, until)

    def works(self) -> None:
        """The provider answered."""
        with self._lock:
            self._failures = 0

    def _expired(self, now: float) -> bool:
        if self._left is not None and now >= self._resets:
            self._left = None
        return self._left is None

    def _wait(self, now: float, need: int) -> float:
        """Seconds until ``need`` requests may be made; at most the cap is asked for."""
        taken = self._taken
        while taken and now - taken[0] >= WINDOW_S:
            taken.popleft()
        wait = max(0.0, self._closed - now)
        if not self._expired(now) and self._left is not None and self._left - self._away < need:
            wait = max(wait, self._resets - now)
        beyond = len(taken) + need - self.cap
        if beyond > 0:
            wait = max(wait, taken[beyond - 1] + WINDOW_S - now)
        return wait
