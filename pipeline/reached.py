"""A watermark: up to which time a group has done all that was posted to some topics.

Told are, again and again, how far the group is and where the logs end. Whatever was posted before
a look lies before the ends that the look found; so when the group has passed those ends, all that
was posted until then is done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

#: Looks that are remembered: at one in 3 s three hours. A group further behind is far behind.
LOOKS: Final = 4_000


class Reached:
    """The watermark. Written by one thread, read by any."""

    def __init__(self) -> None:
        #: ms since the epoch; None: nobody knows.
        self.at: int | None = None
        self._looks: deque[tuple[int, dict[Any, int]]] = deque(maxlen=LOOKS)

    def look(self, at: int, done: Mapping[Any, int], ends: Mapping[Any, int]) -> None:
        """At ``at`` (ms) the logs ended at ``ends``, and what is before ``done`` is done.

        Both by partition. ``done`` must have been asked for before ``ends``.
        """
        self._looks.append((at, dict(ends)))
        while self._looks:
            first, seen = self._looks[0]
            if any(done.get(where, 0) < end for where, end in seen.items()):
                break
            self._looks.popleft()
            self.at = first
