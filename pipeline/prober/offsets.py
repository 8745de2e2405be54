"""How far a group may say it is when records are finished in another order than they were read.

Pure. What is committed of a partition is the offset of its oldest unfinished record, so after a
crash everything unfinished is read again, and some of what was finished.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Partition(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


class Place(NamedTuple):
    """Where a record was read."""

    where: Partition
    offset: int


class Offsets:
    """The unfinished records of the partitions that are ours."""

    def __init__(self) -> None:
        self._open: dict[Partition, set[int]] = {}
        self._read: dict[Partition, int] = {}
        self._told: dict[Partition, int] = {}

    def begin(self, place: Place) -> None:
        """A record was read."""
        self._open.setdefault(place.where, set()).add(place.offset)

    def finish(self, place: Place) -> None:
        """It needs nothing more. One of a partition that was forgotten says nothing."""
        self._open.get(place.where, set()).discard(place.offset)

    def read(self, where: Partition, position: int) -> None:
        """All before ``position`` was read, whether there were records or not."""
        self._read[where] = position

    def keep(self, ours: Iterable[Partition]) -> set[Partition]:
        """Partitions were handed out anew: forget those that are not ours; which they are.

        What is unfinished in one that stays ours stays so: the client goes on behind it.
        """
        gone = (self._read.keys() | self._open.keys()) - set(ours)
        for where in gone:
            for each in (self._open, self._read, self._told):
                each.pop(where, None)
        # Others may have committed meanwhile.
        self._told.clear()
        return gone

    def due(self) -> dict[Partition, int]:
        """What is to be committed: of each partition that has come further since the last time
        the offset before which all is finished."""
        found = {
            where: min(self._open.get(where) or (position,))
            for where, position in self._read.items()
        }
        return {where: at for where, at in found.items() if self._told.get(where) != at}

    def committed(self, offsets: dict[Partition, int]) -> None:
        """The broker has these."""
        for where, at in offsets.items():
            if where in self._read:
                self._told[where] = at

    def forget_commits(self) -> None:
        """The broker may not have what was committed: all is due again."""
        self._told.clear()
