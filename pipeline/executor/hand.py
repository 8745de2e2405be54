"""Which commands are in hand, and up to where each partition is done. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

P = TypeVar("P", bound=Hashable)


class Place(NamedTuple, Generic[P]):
    """Where a command lies."""

    where: P
    offset: int


@dataclass(slots=True)
class _Partition:
    #: The offset that is read next; None while nobody knows.
    position: int | None = None
    open: set[int] = field(default_factory=set)
    committed: int | None = None

    def done_to(self) -> int | None:
        return min(self.open, default=self.position)


class InHand(Generic[P]):
    """Commands end in any order; offsets are committed up to the first that has not."""

    def __init__(self) -> None:
        self._partitions: dict[P, _Partition] = {}

    def take(self, place: Place[P]) -> None:
        """A command was read."""
        self._of(place.where).open.add(place.offset)

    def reach(self, where: P, position: int) -> None:
        """Everything before the position was read, and taken."""
        self._of(where).position = position

    def done(self, place: Place[P]) -> None:
        """A command has ended."""
        found = self._partitions.get(place.where)
        if found is not None:
            found.open.discard(place.offset)

    def moved(self, still: Iterable[Place[P]]) -> None:
        """Partitions were handed out anew: only what is still in hand is known of them.

        That includes what was read before of a partition that stays ours: the client goes on behind
        it, so nobody reads it again.
        """
        self._partitions.clear()
        for place in still:
            self.take(place)

    def due(self) -> dict[P, int]:
        """What can be committed and is not."""
        return {
            where: offset
            for where, offset in self.done_to().items()
            if offset != self._partitions[where].committed
        }

    def committed(self, offsets: dict[P, int]) -> None:
        """These were committed."""
        for where, offset in offsets.items():
            self._of(where).committed = offset

    def forget_commits(self) -> None:
        """A commit failed: all of it is due again."""
        for each in self._partitions.values():
            each.committed = None

    def done_to(self) -> dict[P, int]:
        """Up to where each partition is done, where that is known."""
        found = ((where, each.done_to()) for where, each in self._partitions.items())
        return {where: offset for where, offset in found if offset is not None}

    def _of(self, where: P) -> _Partition:
        return self._partitions.setdefault(where, _Partition())
