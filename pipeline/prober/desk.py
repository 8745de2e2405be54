"""Which question is asked next. Pure: no I/O, and the time is handed in.

* **Oldest first**, by when the stall began; each lane (whose budget a question takes from) for
  itself, so that an account whose budget is spent does not hold up the others.
* **One flight a job.** What is asked of a job while the same waits is answered with it. What is
  asked while the same is in flight waits for its own flight: an answer must not be older than its
  question.
* **What is late is dropped**: after ``expires_at`` nobody waits for the answer. So is what was
  answered already and comes again.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from pipeline.prober.offsets import Partition, Place
from topics.recovery import Probe

#: Ids of answered probes that are remembered.
_REMEMBERED: Final = 50_000


class Taken(StrEnum):
    """What became of a probe that was handed in."""

    WAITS = "waits"
    EXPIRED = "expired"
    #: Answered before.
    KNOWN = "known"


@dataclass(eq=False)
class Question:
    """What is asked about one job, for one or several probes."""

    key: str
    lane: str
    #: By id: the probe, where it was read (twice when it came twice), and when it arrived, in ms.
    probes: dict[str, Probe] = field(default_factory=dict)
    places: dict[str, list[Place]] = field(default_factory=dict)
    arrived: dict[str, int] = field(default_factory=dict)
    #: How often it was asked in vain.
    tries: int = 0

    @property
    def since(self) -> int:
        """When the oldest of the stalls began."""
        return min(each.since for each in self.probes.values())

    @property
    def oldest(self) -> Probe:
        """The probe that is asked for all."""
        return min(self.probes.values(), key=lambda each: (each.since, each.id))

    def add(self, probe: Probe, place: Place, now: int) -> None:
        """One more probe, or one more place of the same."""
        self.probes.setdefault(probe.id, probe)
        self.places.setdefault(probe.id, []).append(place)
        self.arrived.setdefault(probe.id, now)

    def drop(self, name: str) -> list[Place]:
        """A probe less; the places that are finished with it."""
        del self.probes[name], self.arrived[name]
        return self.places.pop(name)


class Desk:
    """The questions that wait and those in flight."""

    def __init__(self, lane: Callable[[Probe], str], flights: int) -> None:
        """``lane`` names whose budget a probe takes from; ``flights`` are asked at once at most."""
        self._lane = lane
        self._most = flights
        self._waiting: dict[str, Question] = {}
        self._flying: dict[str, Question] = {}
        #: Of each lane (since, number, question): an entry counts while its question waits.
        self._heaps: dict[str, list[tuple[int, int, Question]]] = {}
        self._aloft: dict[str, int] = {}
        self._number = 0
        self._answered: OrderedDict[str, None] = OrderedDict()

    @property
    def flights(self) -> int:
        """How many questions are asked now."""
        return len(self._flying)

    @property
    def questions(self) -> int:
        """How many questions wait."""
        return len(self._waiting)

    def aloft(self, lanes: str) -> int:
        """How many questions are asked now in lanes whose names begin so."""
        return sum(number for lane, number in self._aloft.items() if lane.startswith(lanes))

    def probes(self) -> int:
        """How many probes wait."""
        return sum(len(each.probes) for each in self._waiting.values())

    def oldest(self) -> int | None:
        """When the probe arrived that waits longest, in ms; None when none waits."""
        return min(
            (at for each in self._waiting.values() for at in each.arrived.values()), default=None
        )

    def take(self, probe: Probe, place: Place, now: int) -> Taken:
        """A probe was read. Unless it waits now, its place is finished. Times in ms."""
        if probe.id in self._answered:
            return Taken.KNOWN
        if probe.expires_at <= now:
            return Taken.EXPIRED
        flying = self._flying.get(probe.key)
        if flying is not None and probe.id in flying.probes:
            flying.add(probe, place, now)
            return Taken.WAITS
        question = self._waiting.get(probe.key)
        if question is None:
            question = self._waiting[probe.key] = Question(probe.key, self._lane(probe))
        question.add(probe, place, now)
        self._queue(question)
        return Taken.WAITS

    def next(self, opens: Callable[[str, int], float]) -> Question | None:
        """The question to ask now, which is in flight from here on; None: none may be asked.

        ``opens`` tells in how many seconds a lane may be asked, with so many flights in it.
        """
        if len(self._flying) >= self._most:
            return None
        best: tuple[int, int, str] | None = None
        for lane in list(self._heaps):
            head = self._head(lane)
            if head is None:
                continue
            since, number, _ = head
            if (best is None or (since, number) < best[:2]) and opens(
                lane, self._aloft.get(lane, 0)
            ) <= 0:
                best = (since, number, lane)
        if best is None:
            return None
        lane = best[2]
        question = heapq.heappop(self._heaps[lane])[2]
        del self._waiting[question.key]
        self._flying[question.key] = question
        self._aloft[lane] = self._aloft.get(lane, 0) + 1
        return question

    def done(self, question: Question) -> list[Place]:
        """It was answered; the places that are finished with it."""
        self._land(question)
        for name in question.probes:
            self._answered[name] = None
        while len(self._answered) > _REMEMBERED:
            self._answered.popitem(last=False)
        return [place for places in question.places.values() for place in places]

    def again(self, question: Question) -> None:
        """It was asked in vain, and waits to be asked again with what came meanwhile."""
        self._land(question)
        question.tries += 1
        newer = self._waiting.pop(question.key, None)
        if newer is not None:
            question.probes.update(newer.probes)
            question.places.update(newer.places)
            question.arrived.update(newer.arrived)
        self._waiting[question.key] = question
        self._queue(question)

    def expire(self, now: int) -> tuple[int, list[Place]]:
        """Drop the waiting probes whose time is over; how many, and the finished places."""
        before = self.probes()
        places = self._drop(lambda question, name: question.probes[name].expires_at <= now)
        return before - self.probes(), places

    def forget(self, gone: Iterable[Partition]) -> None:
        """Drop the waiting probes of partitions that others read now."""
        partitions = set(gone)
        self._drop(
            lambda question, name: all(place.where in partitions for place in question.places[name])
        )

    def _drop(self, which: Callable[[Question, str], bool]) -> list[Place]:
        places = []
        for question in list(self._waiting.values()):
            for name in [each for each in question.probes if which(question, each)]:
                places += question.drop(name)
            if not question.probes:
                del self._waiting[question.key]
        return places

    def _land(self, question: Question) -> None:
        del self._flying[question.key]
        self._aloft[question.lane] -= 1
        if not self._aloft[question.lane]:
            del self._aloft[question.lane]
        newer = self._waiting.get(question.key)
        if newer is not None:
            # It was passed over while this one flew.
            self._queue(newer)

    def _queue(self, question: Question) -> None:
        self._number += 1
        heap = self._heaps.setdefault(question.lane, [])
        heapq.heappush(heap, (question.since, self._number, question))

    def _head(self, lane: str) -> tuple[int, int, Question] | None:
        """The first entry of a lane that counts."""
        heap = self._heaps[lane]
        while heap:
            question = heap[0][2]
            waits = self._waiting.get(question.key) is question
            if waits and question.key not in self._flying:
                return heap[0]
            heapq.heappop(heap)
        del self._heaps[lane]
        return None
