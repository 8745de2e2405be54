"""Which delivery may be sent now, and up to where each partition is done. Pure.

Those of one key go one after the other, in the order of the log; keys wait for nobody. So a
partition may be done far beyond its first unfinished delivery. Committed is the offset of that
one, and beside it, as the metadata of the commit, a note of what lies behind it and is unfinished:
whoever goes on from there repeats nothing that was done.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar

P = TypeVar("P", bound=Hashable)
T = TypeVar("T")

#: Brokers take 4,096 bytes of metadata unless told otherwise.
MAX_NOTE: Final = 3_500
_NOTE: Final = re.compile(r"1;([0-9]{1,18});((?:[0-9]{1,18}(?:,[0-9]{1,18})*)?)")


class Commit(NamedTuple):
    """What is committed of a partition."""

    offset: int
    note: str = ""


@dataclass(slots=True)
class _Lane:
    """One partition, since it was given to us."""

    #: The offset that is read next.
    position: int
    #: What a note says: from here on nothing is known, and what before it was not done.
    known_to: int
    undone: frozenset[int]
    open: set[int] = field(default_factory=set)
    committed: Commit | None = None


@dataclass(slots=True, eq=False)
class Item(Generic[P, T]):
    """A delivery in hand."""

    where: P
    offset: int
    key: bytes | None
    what: T
    lane: _Lane
    #: Among all that were taken.
    number: int
    attempts: int = 0


class Order(Generic[P, T]):
    """Deliveries in hand, of all partitions that are ours."""

    def __init__(self) -> None:
        self._lanes: dict[P, _Lane] = {}
        self._lines: dict[tuple[P, bytes | None], deque[Item[P, T]]] = {}
        #: Those at the head of their line that nobody has tried, and those to be tried again.
        self._fresh: list[tuple[int, Item[P, T]]] = []
        self._again: list[tuple[float, int, Item[P, T]]] = []
        self._number = itertools.count()
        self._turn = False
        #: Deliveries in hand.
        self.size = 0

    def __iter__(self) -> Iterator[Item[P, T]]:
        return (item for line in self._lines.values() for item in line)

    # --- partitions -----------------------------------------------------------------------------

    def begin(self, where: P, commit: Commit) -> None:
        """A partition is ours, and read from what was committed of it on."""
        self.drop([where])
        known_to, undone = _read(commit)
        self._lanes[where] = _Lane(commit.offset, known_to, undone)

    def drop(self, wheres: Iterable[P] | None = None) -> None:
        """These partitions are not ours any more; None: none is."""
        gone = set(self._lanes) if wheres is None else set(wheres)
        for where in gone:
            self._lanes.pop(where, None)
        for line in [line for line in self._lines if line[0] in gone]:
            self.size -= len(self._lines.pop(line))
        self._fresh = [each for each in self._fresh if self._ours(each[1])]
        self._again = [each for each in self._again if self._ours(each[2])]
        heapq.heapify(self._fresh)
        heapq.heapify(self._again)

    def position(self, where: P) -> int | None:
        """The offset that is read next; None for a partition that is not ours."""
        lane = self._lanes.get(where)
        return None if lane is None else lane.position

    # --- deliveries -----------------------------------------------------------------------------

    def was_done(self, where: P, offset: int) -> bool:
        """Whether a record was done with before the partition was ours, as a note says."""
        lane = self._lanes[where]
        return offset < lane.known_to and offset not in lane.undone

    def take(self, where: P, offset: int, key: bytes | None, what: T) -> None:
        """A delivery was read that is to be sent."""
        lane = self._lanes[where]
        item = Item(where, offset, key, what, lane, next(self._number))
        lane.open.add(offset)
        lane.position = offset + 1
        line = self._lines.setdefault((where, key), deque())
        line.append(item)
        self.size += 1
        if len(line) == 1:
            heapq.heappush(self._fresh, (item.number, item))

    def reach(self, where: P, position: int) -> None:
        """Everything before the position was read."""
        lane = self._lanes[where]
        lane.position = max(lane.position, position)

    def next(self, now: float) -> Item[P, T] | None:
        """One that may be sent; it is under way until :meth:`done` or :meth:`again`.

        Those that nobody has tried and those whose time has come take turns, so that neither holds
        up the other.
        """
        due = bool(self._again) and self._again[0][0] <= now
        self._turn = not self._turn
        if due and (self._turn or not self._fresh):
            return heapq.heappop(self._again)[2]
        return heapq.heappop(self._fresh)[1] if self._fresh else None

    def next_due(self) -> float | None:
        """When the first that waits to be tried again may be."""
        return self._again[0][0] if self._again else None

    def done(self, item: Item[P, T]) -> None:
        """It was sent, or will never be."""
        if not self._ours(item):
            return
        item.lane.open.discard(item.offset)
        self.size -= 1
        line = self._lines[item.where, item.key]
        line.popleft()
        if line:
            heapq.heappush(self._fresh, (line[0].number, line[0]))
        else:
            del self._lines[item.where, item.key]

    def again(self, item: Item[P, T], due: float) -> None:
        """It is to be sent again, not before ``due``."""
        if self._ours(item):
            heapq.heappush(self._again, (due, item.number, item))

    def hurry(self) -> None:
        """What waits to be tried again need not wait any longer."""
        self._again = [(0.0, number, item) for _, number, item in self._again]
        heapq.heapify(self._again)

    # --- commits --------------------------------------------------------------------------------

    def due(self) -> dict[P, Commit]:
        """What can be committed and is not."""
        found = {where: _commit(lane) for where, lane in self._lanes.items()}
        return {w: commit for w, commit in found.items() if commit != self._lanes[w].committed}

    def committed(self, commits: dict[P, Commit]) -> None:
        """These were committed."""
        for where, commit in commits.items():
            if where in self._lanes:
                self._lanes[where].committed = commit

    def forget_commits(self) -> None:
        """All of it is due again."""
        for lane in self._lanes.values():
            lane.committed = None

    def left(self, where: P, end: int) -> int:
        """How many records of a partition that ends there are not done with."""
        lane = self._lanes[where]
        behind = sum(each >= lane.position for each in lane.undone)
        return max(0, end - max(lane.position, lane.known_to)) + behind + len(lane.open)

    def _ours(self, item: Item[P, T]) -> bool:
        return self._lanes.get(item.where) is item.lane


def _commit(lane: _Lane) -> Commit:
    # What an earlier note says of records that were not read again yet still holds.
    known_to = max(lane.position, lane.known_to)
    undone = sorted((*lane.open, *(each for each in lane.undone if each >= lane.position)))
    if not undone:
        return Commit(known_to)
    first, *rest = undone
    return Commit(first, _write(first, known_to, rest))


def _write(base: int, known_to: int, undone: list[int]) -> str:
    """``1;HOW_FAR;UNDONE,...``, counted from the offset that is committed, which is undone."""
    if known_to <= base + 1:
        return ""
    told, length = [], 0
    for each in undone:
        text = str(each - base)
        length += len(text) + 1
        if length > MAX_NOTE:
            # From here on nothing is said, so all of it would be sent again.
            known_to = each
            break
        told.append(text)
    return f"1;{known_to - base};{','.join(told)}"


def _read(commit: Commit) -> tuple[int, frozenset[int]]:
    """Up to where a note tells what was done, and what before it was not."""
    found = _NOTE.fullmatch(commit.note)
    if found is None:
        return commit.offset, frozenset()
    undone = (commit.offset + int(each) for each in filter(None, found.group(2).split(",")))
    return commit.offset + int(found.group(1)), frozenset((commit.offset, *undone))
