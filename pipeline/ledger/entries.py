"""Jobs in full: decoded when they are needed, kept while that is cheaper than decoding again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from pipeline.effects import Effects, Output
from pipeline.jobs import FleetNames, Job, View, decode, view
from pipeline.ledger.index import Known
from pipeline.windows import Contribution, contributions, stranded
from topics.catalogue import JOB_STATES
from topics.models import Status
from topics.tables import JOBS_TABLE


class Entry(Struct, frozen=True, gc=False):
    """A decoded job and what is needed of its view; the view itself is quickly made again."""

    job: Job
    since: int | None
    adds: frozenset[Contribution]
    #: Statuses it is known to have been in, as bits.
    reached: int


class Entries:
    """The decoded jobs of a partition, and those that are not in the table yet.

    ``value_of`` reads the table. ``known`` are the jobs of the index. ``size`` is how many jobs
    are kept between batches.
    """

    def __init__(
        self,
        value_of: Callable[[bytes], bytes | None],
        fleets: FleetNames,
        known: dict[str, Known],
        size: int,
    ) -> None:
        self.decoded: dict[str, Entry] = {}
        #: What the batch under way has changed: the new values.
        self.dirty: dict[str, bytes] = {}
        self._value_of = value_of
        self._fleets = fleets
        self._known = known
        self._size = size
        #: The jobs of each flush that is not in the table yet, the oldest first.
        self._unwritten: deque[list[str]] = deque()

    def get(self, key: str) -> Entry | None:
        """A job, decoded and kept; ``None`` when it is not known."""
        entry = self.decoded.get(key)
        if entry is None and key in self._known:
            job = self._decode(key)
            if job is not None:
                seen = self._view(key, job)
                adds = contributions(seen)
                if job.recovery is not None:
                    adds |= stranded(job, seen)
                entry = Entry(job, seen.since, adds, reached_by(seen))
                self.decoded[key] = entry
        return entry

    def look(self, key: str) -> tuple[Job, View] | None:
        """A job's facts and what is derived from them."""
        # Not through get: a reader must not fill the fold's cache. While a batch is being made
        # durable the table still holds the older value.
        if key not in self._known:
            return None
        entry = self.decoded.get(key)
        job = self._decode(key) if entry is None else entry.job
        return None if job is None else (job, self._view(key, job))

    def forget(self, key: str) -> None:
        """The job has expired."""
        self.decoded.pop(key, None)
        self.dirty.pop(key, None)

    def flush(self, partition: int, effects: Effects) -> None:
        """Publish the changed jobs, and write them."""
        writes = effects.writes(JOBS_TABLE)
        for key, value in self.dirty.items():
            raw = key.encode()
            effects.outputs.append(Output(JOB_STATES, partition, raw, value))
            writes.append((raw, value))
        self._unwritten.append(list(self.dirty))
        self.dirty.clear()

    def written(self) -> None:
        """The oldest flush is in the table: drop what is beyond the size.

        But nothing that a later flush has changed: what is dropped here is read from the table
        next, and an older value there would undo what is known.
        """
        self._unwritten.popleft()
        surplus = len(self.decoded) - self._size
        if surplus <= 0:
            return
        ahead = set().union(*self._unwritten, self.dirty)
        for key in list(islice(self.decoded, surplus + self._size // 10)):
            if key not in ahead:
                del self.decoded[key]

    def _decode(self, key: str) -> Job | None:
        value = self._value_of(key.encode())
        return None if value is None else decode(value)

    def _view(self, key: str, job: Job) -> View:
        """What follows from a known job, in the fleet it is counted under: an alias may have been
        configured since."""
        return replace(view(job, self._fleets), fleet=self._known[key].fleet)


# --- statuses as bits -------------------------------------------------------------------------

_BITS: Final = tuple((1 << n, status.value) for n, status in enumerate(Status))
#: The statuses by the bits that are set.
STATUSES_OF: Final = tuple(
    tuple(status for bit, status in _BITS if bits & bit) for bits in range(1 << len(_BITS))
)
_WAITING, _QUEUED, _CLAIMED, _STARTING, _RUNNING, COMPLETED = (bit for bit, _ in _BITS)
#: All of them.
STATUS_BITS: Final = sum(bit for bit, _ in _BITS)
#: And how long it waited for its claim is known. No status, but known once like one.
CLAIM_TIMED: Final = STATUS_BITS + 1


def reached_by(v: View) -> int:
    """Which statuses the job is known to have been in, as bits; and :data:`CLAIM_TIMED`."""
    at = v.at
    reached = 0
    if at.waiting is not None:
        reached |= _WAITING
    if at.queued is not None:
        reached |= _QUEUED
    if at.claimed is not None:
        reached |= _CLAIMED
        if at.queued is not None and at.queued.clock != "received":
            reached |= CLAIM_TIMED
    if at.minted is not None:
        reached |= _STARTING
    if at.started is not None or v.status == "running":
        reached |= _RUNNING
    if at.completed is not None:
        reached |= COMPLETED
    return reached
