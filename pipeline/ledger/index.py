"""All jobs of a partition, as much of each as is needed to count, list and expire it undecoded."""

from __future__ import annotations

import heapq

from msgspec import Struct

from pipeline.ledger.limits import Retention
from topics.models import Status


class Known(Struct, frozen=True, gc=False):
    """The index entry of a job: enough to count, filter and expire without decoding it."""

    status: str
    fleet: str
    since: int | None
    first_seen: int
    completed_at: int | None
    #: When it was first heard of, or the end of the day of the latest event: the later.
    heard: int = 0


class Index:
    """The jobs by key, and what is known of them by fleet and status.

    ``expiry`` is the heap of (clock time, key) at which something may be forgotten. Jobs and runs
    share it, so that what a tick forgets has one order.
    """

    def __init__(self, retention: Retention, expiry: list[tuple[int, str]]) -> None:
        self.known: dict[str, Known] = {}
        #: Jobs by (fleet, status), zeros included for fleets of which any job is known.
        self.counts: dict[tuple[str, str], int] = {}
        #: Jobs by fleet, and when the last one to end did so.
        self.jobs_of: dict[str, int] = {}
        self.last_end: dict[str, int] = {}
        self._retention = retention
        self._expiry = expiry
        #: Heaps of (since, key). What has moved on since is still in them.
        self._ages: dict[tuple[str, str], list[tuple[int, str]]] = {}

    def oldest(self, fleet: str, status: str) -> int | None:
        """Since when the job longest in this status is in it; ``None`` when there is none."""
        heap = self._ages.get((fleet, status))
        while heap:
            since, key = heap[0]
            known = self.known.get(key)
            if (
                known is not None
                and known.status == status
                and known.fleet == fleet
                and known.since == since
            ):
                return since
            heapq.heappop(heap)
        return None

    def put(self, key: str, known: Known) -> None:
        """A job is new, or is no longer as it was."""
        before = self.known.get(key)
        if before == known:
            return
        self.known[key] = known
        where = (known.fleet, known.status)
        if before is None or (before.fleet, before.status) != where:
            if before is None or before.fleet != known.fleet:
                self.jobs_of[known.fleet] = self.jobs_of.get(known.fleet, 0) + 1
            self.counts[where] = self.counts.get(where, 0) + 1
            if before is not None:
                self._leave(before, before.fleet != known.fleet)
            ended = known.completed_at
            if ended is not None and ended > self.last_end.get(known.fleet, 0):
                self.last_end[known.fleet] = ended
        if known.status != "completed" and known.since is not None:
            heapq.heappush(self._ages.setdefault(where, []), (known.since, key))
        job_due = self._retention.job_due
        due = job_due(known.heard, known.completed_at)
        if before is None or job_due(before.heard, before.completed_at) != due:
            heapq.heappush(self._expiry, (due, key))

    def expire(self, key: str, clock: int) -> Known | None:
        """Forget a job that is due, and return it; ``None`` when there is none, or not yet."""
        known = self.known.get(key)
        if known is None or self._retention.job_due(known.heard, known.completed_at) > clock:
            return None
        del self.known[key]
        self._leave(known, True)
        return known

    def _leave(self, known: Known, fleet_too: bool) -> None:
        """A job is no longer in a status, or no longer of a fleet, which may have been its last."""
        fleet = known.fleet
        self.counts[fleet, known.status] -= 1
        if not fleet_too:
            return
        self.jobs_of[fleet] -= 1
        if not self.jobs_of[fleet]:
            del self.jobs_of[fleet]
            self.last_end.pop(fleet, None)
            for status in Status:
                self.counts.pop((fleet, status.value), None)
                self._ages.pop((fleet, status.value), None)
