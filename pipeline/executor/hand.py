"""Which commands are in hand, and up to where each partition is done. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

P = TypeVar("P", bound=Hashable)


class Place(NamedTuple, Generic[P]):
    """Where a command lies: partition, offset, and under which ownership it was read."""

    where: P
    offset: int
    ownership: int


@dataclass(slots=True)
class _Partition:
    ownership: int
    #: The offset that is read next.
    position: int = 0
    open: set[int] = field(default_factory=set)
    committed: int = -1


class InHand(Generic[P]):
    """Commands end in any order; offsets are committed up to the first that has not."""

    def __init__(self) -> None:
        self._partitions: dict[P, _Partition] = {}

    def take(self, place: Place[P]) -> None:
        """A command was read."""
        self._of(place.where, place.ownership).open.add(place.offset)

    def reach(self, where: P, ownership: int, position: int) -> None:
        """Everything before the position was read."""
        self._of(where, ownership).position = position

    def done(self, place: Place[P]) -> None:
        """A command has ended. What was read under another ownership says nothing here."""
        found = self._partitions.get(place.where)
        if found is not None and found.ownership == place.ownership:
            found.open.discard(place.offset)

    def keep(self, owned: dict[P, int]) -> None:
        """Only these partitions are ours, under these ownerships."""
        self._partitions = {
            where: found
            for where, found in self._partitions.items()
            if owned.get(where) == found.ownership
        }

    def due(self) -> dict[P, int]:
        """What can be committed and is not."""
        found = {}
        for where, each in self._partitions.items():
            offset = min(each.open, default=each.position)
            if offset > each.committed:
                found[where] = offset
        return found

    def committed(self, offsets: dict[P, int]) -> None:
        """These were committed."""
        for where, offset in offsets.items():
            if where in self._partitions:
                self._partitions[where].committed = offset

    def done_to(self) -> dict[P, int]:
        """Up to where each partition is done."""
        return {
            where: min(each.open, default=each.position) for where, each in self._partitions.items()
        }

    def _of(self, where: P, ownership: int) -> _Partition:
        found = self._partitions.get(where)
        if found is None or found.ownership != ownership:
            found = self._partitions[where] = _Partition(ownership)
        return found
