"""What is told again and again, each at its interval: without clock, thread or network.

What has the same interval goes round together, so that it is sent together. Times are seconds of
any clock that only goes forward.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

_NEVER: Final = float("inf")

T = TypeVar("T")


@dataclass
class _Round(Generic[T]):
    due_at: float
    members: dict[Hashable, T] = field(default_factory=dict)


class Rounds(Generic[T]):
    """What there is to tell, by name. Not safe between threads."""

    def __init__(self) -> None:
        self._rounds: dict[float, _Round[T]] = {}
        #: When the next round is due; infinity when there is none.
        self.due_at = _NEVER

    def __contains__(self, name: object) -> bool:
        return any(name in each.members for each in self._rounds.values())

    def add(self, name: Hashable, every_s: float, what: T, at: float) -> None:
        """Tell this first at this time, or when what has the same interval goes round before, and
        then at every ``every_s``. It takes the place of what has the same name."""
        self.remove(name)
        there = self._rounds.setdefault(every_s, _Round(at))
        there.due_at = min(there.due_at, at)
        there.members[name] = what
        self._look()

    def remove(self, name: Hashable) -> None:
        """Tell this no more."""
        for every_s, each in list(self._rounds.items()):
            if each.members.pop(name, None) is not None and not each.members:
                del self._rounds[every_s]
        self._look()

    def clear(self) -> None:
        """Tell nothing more."""
        self._rounds.clear()
        self._look()

    def take(self, now: float) -> list[tuple[Any, T]]:
        """What is to be told now. The next time is counted from now: after a standstill one round
        is enough."""
        due: list[tuple[Any, T]] = []
        for every_s, each in self._rounds.items():
            if each.due_at <= now:
                each.due_at = now + every_s
                due += each.members.items()
        self._look()
        return due

    def _look(self) -> None:
        self.due_at = min((each.due_at for each in self._rounds.values()), default=_NEVER)
