"""When a batch goes, and what is in it: the state of a batching producer, without clock or network.

What waits is told in batches, each sent for a reason (:class:`Trigger`). Whoever holds an
:class:`Batcher` puts records in, asks :meth:`Batcher.due` when the next request is due, takes it
with :meth:`Batcher.take`, and says with :meth:`Batcher.settle` what became of it. One request is on
its way at a time; what was not delivered goes back to its place, and is tried again.

Memory is bounded. When there is no room, what is worth least goes: the oldest record that is not
urgent, else the oldest. It is counted by reason (:class:`Drop`).

Times are seconds of any clock that only goes forward; sizes are bytes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final


class Trigger(StrEnum):
    """Why a request was sent."""

    #: The beat of the interval, for whatever waits.
    INTERVAL = "interval"
    #: As much waits as a batch holds.
    SIZE = "size"
    #: The oldest record has waited for as long as one may.
    LATENCY = "latency"
    #: Something happened that others wait for.
    URGENT = "urgent"
    #: Runners are alive, whether or not anything else is to be told.
    HEARTBEAT = "heartbeat"
    #: The host asked.
    ASKED = "asked"
    #: An earlier request failed.
    RETRY = "retry"
    #: The end.
    CLOSE = "close"


class Drop(StrEnum):
    """Why a record was never delivered."""

    #: No room.
    OVERFLOW = "overflow"
    #: It makes no event.
    INVALID = "invalid"
    #: Larger than a request.
    TOO_LARGE = "too_large"
    #: A secret stands where it would have to tell one job, runner or fleet from another.
    SECRET = "secret"
    #: The broker will never take it.
    REFUSED = "refused"
    #: It came after the end.
    CLOSED = "closed"
    #: The time at the end was too short.
    UNSENT = "unsent"


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How much waits, for how long, and what goes at once. All must be above 0, except
    ``urgent_s``. Raises ValueError."""

    #: Whatever waits goes at this beat, counted from the start.
    interval_s: float = 5.0
    #: No record waits longer than this.
    max_latency_s: float = 3.0
    #: How long what is urgent waits for more that comes with it.
    urgent_s: float = 0.1
    #: How often runners that are kept alive are told of.
    heartbeat_s: float = 30.0
    #: So many records go at once.
    batch_records: int = 100
    #: Most records of one request.
    request_records: int = 500
    #: Most bytes of one request.
    request_bytes: int = 256 * 1024
    #: Most records that are kept, those on their way included.
    max_records: int = 10_000
    #: Most bytes that are kept.
    max_bytes: int = 8 * 1024 * 1024
    #: The pause after a failed request, doubled with each that follows; a fifth more or less by
    #: chance, so that many hosts do not come back together.
    backoff_s: float = 0.5
    #: The longest pause.
    backoff_max_s: float = 30.0
    #: The first pause while closing.
    closing_backoff_s: float = 0.1
    #: The longest pause while closing.
    closing_backoff_max_s: float = 1.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not math.isfinite(value) or value < 0 or (not value and each.name != "urgent_s"):
                raise ValueError(f"{each.name} must be above 0, not {value!r}")
        if self.request_bytes > self.max_bytes:
            raise ValueError("request_bytes must not exceed max_bytes")


#: What a record costs beside its key and its value, about: its place here, its frame on the wire.
OVERHEAD: Final = 100


class Parcel:
    """One record that waits or is on its way."""

    __slots__ = ("key", "seq", "since", "slot", "topic", "urgent", "value")

    def __init__(
        self, seq: int, since: float, topic: str, key: bytes, value: bytes, urgent: bool,
        slot: object,
    ) -> None:  # fmt: skip
        self.seq = seq
        #: Since when something waits here.
        self.since = since
        self.topic = topic
        self.key = key
        self.value = value
        self.urgent = urgent
        self.slot = slot

    @property
    def size(self) -> int:
        """Bytes it counts for."""
        return len(self.key) + len(self.value) + OVERHEAD


@dataclass(frozen=True)
class Request:
    """What is sent at once, and why."""

    trigger: Trigger
    parcels: tuple[Parcel, ...]


@dataclass(frozen=True)
class Stats:
    """What became of everything. ``dropped`` and ``requests`` name every reason, also at 0."""

    #: Records that were to be told; each is delivered, coalesced, dropped or still here.
    offered: int
    delivered: int
    #: Replaced by a later record that says all it said.
    coalesced: int
    #: Never delivered, by reason.
    dropped: dict[Drop, int]
    #: Requests sent, failed ones included.
    requests: dict[Trigger, int]
    failed_requests: int
    #: Failed requests since the last that was not.
    failures: int
    #: Records not delivered yet, those on their way included, and their bytes.
    waiting: int
    waiting_bytes: int
    #: How long the oldest of them has waited; 0 when there is none. Seconds.
    oldest_s: float


class Batcher:
    """What waits to be told, and when it goes. Not safe between threads."""

    def __init__(self, batching: Batching, now: float) -> None:
        self.batching = batching
        self._start = now
        self._seq = 0
        #: What waits, urgent or not, each in its order.
        self._waiting: dict[bool, deque[Parcel]] = {True: deque(), False: deque()}
        self._slots: dict[object, Parcel] = {}
        self._sent: tuple[Parcel, ...] = ()
        self._records = self._bytes = 0
        #: A flush is under way up to this number, for this reason.
        self._flush_to = 0
        self._reason = Trigger.INTERVAL
        self._failures = 0
        self._retry_at: float | None = None
        self._closing = False
        self._offered = self._delivered = self._coalesced = self._failed = 0
        self._dropped = dict.fromkeys(Drop, 0)
        #: How many records were dropped.
        self.lost = 0
        self._requests = dict.fromkeys(Trigger, 0)

    # --- what comes in ------------------------------------------------------------------------

    def put(
        self, now: float, topic: str, key: bytes, value: bytes, *, urgent: bool = False,
        slot: object = None,
    ) -> Drop | None:  # fmt: skip
        """Take a record; the reason if it is not taken.

        ``urgent``: others wait for it. ``slot``: takes the place of a record of the same slot that
        still waits, and is of its topic.
        """
        if self._closing:
            return self.drop(Drop.CLOSED)
        parcel = Parcel(self._seq + 1, now, topic, key, value, urgent, slot)
        if parcel.size > self.batching.request_bytes:
            return self.drop(Drop.TOO_LARGE)
        earlier = None if slot is None else self._slots.get(slot)
        if earlier is not None:
            self._bytes += parcel.size - earlier.size
            earlier.key, earlier.value = key, value
            self._offered += 1
            self._coalesced += 1
            return None
        if not self._make_room(parcel):
            return self.drop(Drop.OVERFLOW)
        self._seq += 1
        self._offered += 1
        self._records += 1
        self._bytes += parcel.size
        self._waiting[urgent].append(parcel)
        if slot is not None:
            self._slots[slot] = parcel
        return None

    def drop(self, why: Drop) -> Drop:
        """Count a record that is not taken."""
        self._offered += 1
        self._lose(why)
        return why

    def flush(self, trigger: Trigger = Trigger.ASKED) -> int:
        """Let all that waits go now; the number up to which that is, for :meth:`is_settled`."""
        if self._waits():
            self._flush_to, self._reason = self._seq, trigger
        return self._seq

    def close(self) -> None:
        """Take nothing more, and let all that waits go now, whatever failed before."""
        self._closing = True
        self._retry_at = None
        self._failures = 0
        self.flush(Trigger.CLOSE)

    def abandon(self) -> int:
        """Give up what is still here; how many records that were."""
        left = self._records
        self._lose(Drop.UNSENT, left)
        for queue in self._waiting.values():
            queue.clear()
        self._slots.clear()
        self._sent = ()
        self._records = self._bytes = 0
        self._closing = True
        return left

    # --- what goes out ------------------------------------------------------------------------

    def due(self, now: float) -> tuple[float, Trigger] | None:
        """When the next request is due, and why; a time that is not later than ``now`` means now.
        None: not before something else happens."""
        if self._sent or not self._waits():
            return None
        at, why = self._due(now)
        if self._retry_at is not None:
            return max(at, self._retry_at), Trigger.RETRY
        return at, why

    def take(self, now: float) -> Request | None:
        """The next request, if it is due. Until :meth:`settle` there is no other."""
        due = self.due(now)
        if due is None or due[0] > now:
            return None
        if self._head().seq > self._flush_to:
            # All that waits now goes, however many requests that takes.
            self._flush_to, self._reason = self._seq, due[1]
        parcels: list[Parcel] = []
        size = 0
        while self._waits() and len(parcels) < self.batching.request_records:
            head = self._head()
            size += head.size
            if parcels and size > self.batching.request_bytes:
                break
            parcels.append(self._pop(head.urgent))
        self._sent = tuple(parcels)
        self._requests[due[1]] += 1
        return Request(due[1], self._sent)

    def settle(
        self,
        now: float,
        failed: Collection[Parcel] = (),
        refused: Collection[Parcel] = (),
        chance: float = 0.5,
    ) -> float:
        """Say what became of the request that was taken: what has to be tried again, and what
        never will be taken; the rest is delivered.

        ``chance``, from 0 to 1, varies the pause; which is returned, in seconds.
        """
        again, never = {id(each) for each in failed}, {id(each) for each in refused}
        sent, self._sent = self._sent, ()
        delivered = 0
        for parcel in reversed(sent):
            if id(parcel) in again and id(parcel) not in never:
                self._put_back(parcel)
                continue
            self._records -= 1
            self._bytes -= parcel.size
            if id(parcel) in never:
                self._lose(Drop.REFUSED)
            else:
                delivered += 1
        self._delivered += delivered
        if not again:
            self._failures, self._retry_at = 0, None
            return 0.0
        self._failed += 1
        # Where something was taken the broker lives, so the pauses begin anew.
        self._failures = 1 if delivered else self._failures + 1
        pause = self._pause() * (0.8 + 0.4 * chance)
        self._retry_at = now + pause
        return pause

    def is_settled(self, seq: int) -> bool:
        """Whether nothing up to this number waits or is on its way."""
        lowest = [each.seq for each in self._sent[:1]]
        lowest += [queue[0].seq for queue in self._waiting.values() if queue]
        return not lowest or min(lowest) > seq

    def stats(self, now: float) -> Stats:
        """Counts so far, and what waits now."""
        here = [each.since for each in self._sent]
        here += [queue[0].since for queue in self._waiting.values() if queue]
        return Stats(
            offered=self._offered,
            delivered=self._delivered,
            coalesced=self._coalesced,
            dropped=dict(self._dropped),
            requests=dict(self._requests),
            failed_requests=self._failed,
            failures=self._failures,
            waiting=self._records,
            waiting_bytes=self._bytes,
            oldest_s=max(0.0, now - min(here, default=now)),
        )

    # --- inside -------------------------------------------------------------------------------

    def _lose(self, why: Drop, records: int = 1) -> None:
        self._dropped[why] += records
        self.lost += records

    def _due(self, now: float) -> tuple[float, Trigger]:
        oldest = self._head()
        if self._closing:
            return now, Trigger.CLOSE
        if oldest.seq <= self._flush_to:
            return now, self._reason
        limits, count = self.batching, sum(map(len, self._waiting.values()))
        if count >= limits.batch_records or self._bytes >= limits.request_bytes:
            return now, Trigger.SIZE
        due = [
            (oldest.since + limits.max_latency_s, Trigger.LATENCY),
            (self._beat_after(oldest.since), Trigger.INTERVAL),
        ]
        if urgent := self._waiting[True]:
            due.append((urgent[0].since + limits.urgent_s, Trigger.URGENT))
        return min(due, key=lambda each: each[0])

    def _beat_after(self, at: float) -> float:
        """The first beat of the interval after a time."""
        interval = self.batching.interval_s
        return self._start + (math.floor((at - self._start) / interval) + 1) * interval

    def _pause(self) -> float:
        limits, doubled = self.batching, 2.0 ** min(self._failures - 1, 30)
        if self._closing:
            return min(limits.closing_backoff_max_s, limits.closing_backoff_s * doubled)
        return min(limits.backoff_max_s, limits.backoff_s * doubled)

    def _waits(self) -> bool:
        return bool(self._waiting[True] or self._waiting[False])

    def _head(self) -> Parcel:
        return min((queue[0] for queue in self._waiting.values() if queue), key=lambda p: p.seq)

    def _pop(self, urgent: bool) -> Parcel:
        parcel = self._waiting[urgent].popleft()
        if parcel.slot is not None and self._slots.get(parcel.slot) is parcel:
            del self._slots[parcel.slot]
        return parcel

    def _put_back(self, parcel: Parcel) -> None:
        later = None if parcel.slot is None else self._slots.get(parcel.slot)
        if later is not None:
            # What is said there now is newer; since when it waits is not.
            later.since = min(later.since, parcel.since)
            self._records -= 1
            self._bytes -= parcel.size
            self._coalesced += 1
            return
        self._waiting[parcel.urgent].appendleft(parcel)
        if parcel.slot is not None:
            self._slots[parcel.slot] = parcel

    def _make_room(self, parcel: Parcel) -> bool:
        limits = self.batching
        for victim in self._victims(parcel.urgent):
            fits = self._records < limits.max_records
            if fits and self._bytes + parcel.size <= limits.max_bytes:
                return True
            if victim is None:
                return False
            self._pop(victim.urgent)
            self._records -= 1
            self._bytes -= victim.size
            self._lose(Drop.OVERFLOW)
        return False

    def _victims(self, urgent: bool) -> Iterator[Parcel | None]:
        """What may go to make room for another, in turn; None when there is nothing more. A
        record that is not urgent drives out none that is."""
        while self._waiting[False]:
            yield self._waiting[False][0]
        while urgent and self._waiting[True]:
            yield self._waiting[True][0]
        yield None
