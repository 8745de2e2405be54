"""The ledger itself: a partition's clock, offset and stretches of records.

A :class:`Ledger` is the pure heart of the fold. :meth:`Ledger.apply` takes the partition's
records one by one, in offset order; :meth:`Ledger.flush` returns the effects of all of them: what
to publish, which panes and states to write; :meth:`Ledger.written` is told when they are. It knows
no Kafka, no Faust and no clock but the ticks in the log, so the same log always gives the same
effects, whatever the batch borders. What only a clock of ours can tell, that a time lies in the
future, it is told with each record (see :meth:`Ledger.apply`). It is a working copy: it may run
ahead of what is durable, because a failure after ``apply`` ends the process (or drops the ledger,
on a rebalance) and the next owner rebuilds it from the tables with :meth:`Ledger.load`.

Why a crash cannot count twice or lose: the effects are written in the order outputs, panes,
states. A state already knows its facts, so its records repeat as duplicates; a pane skips
contributions at or below its fence, which covers the records whose states were not yet written.

What follows from a job's new facts is worked out once per job and *stretch* of records, not per
record: a stretch ends with the batch, before a tick, and at every fence that was loaded. So no
stretch straddles a fence, and what a job contributes in it lies wholly at or below the fence of
a pane, or wholly above.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct

from pipeline import metrics
from pipeline.effects import Effects, Note, Output
from pipeline.jobs import (
    FleetNames,
    Job,
    View,
    decode_run,
    encode,
    encode_clock,
    merge,
    summary,
    view,
)
from pipeline.jobs.ahead import Said, is_after, latest_of, latest_of_run, without_after
from pipeline.jobs.facts import DAY_MS, MAX_FACTS
from pipeline.jobs.timings import CLOCK_GRAIN_MS
from pipeline.ledger.depth import Depth
from pipeline.ledger.entries import (
    CLAIM_TIMED,
    COMPLETED,
    STATUS_BITS,
    STATUSES_OF,
    Entries,
    Entry,
    reached_by,
)
from pipeline.ledger.index import Index, Known
from pipeline.ledger.limits import MAX_FLEETS, MOST_FORGOTTEN, Retention, heard_until
from pipeline.ledger.pending import Pending
from pipeline.ledger.runs import Runs
from pipeline.ledger.stalls import OpenStall, Stalls, acts
from pipeline.ledger.windows import Windows
from pipeline.recovery import Policies
from pipeline.windows import Contribution, Pane, PaneKey, WindowPolicy, contributions, stranded
from topics.catalogue import JOB_STATES
from topics.envelope import EARLIEST_MS, LATEST_MS
from topics.models import JobFact, RunFact, RunLink, Tick
from topics.tables import JOBS_TABLE, WINDOWS_TABLE

#: A tick may be this much ahead of the time at which it was written: a worker whose clock is off by
#: less than an hour does no harm.
TICK_AHEAD_MS: Final = 3_600_000
#: A time in a fact may be this much ahead: the clocks of providers and runners are not ours.
FACT_AHEAD_MS: Final = DAY_MS

#: Decoded jobs kept between batches, per partition: 2.3 kB each, against some 7 us to decode
#: one and derive its view again. With 8 partitions that is 75 MB at most. Of runs a tenth.
CACHE: Final = 4_000

#: Table key of the partition's clock. ``~`` sorts after every job key and is in none.
CLOCK_KEY: Final = "~clock"

_MISSING: Final[frozenset[Contribution]] = frozenset()

_NEVER: Final = LATEST_MS, 0


class _Change(Struct, gc=False):
    """A job in the stretch under way: as it was before it, and as it is now."""

    before: Entry | None
    job: Job


class Ledger:
    """One partition's jobs, runs, panes and clock. Not thread-safe; owned by the fold."""

    def __init__(
        self,
        partition: int,
        value_of: Callable[[bytes], bytes | None],
        *,
        fleets: FleetNames | None = None,
        windows: WindowPolicy | None = None,
        retention: Retention | None = None,
        max_fleets: int = MAX_FLEETS,
        policies: Policies | None = None,
        cache: int = CACHE,
    ) -> None:
        self.partition = partition
        #: Latest tick of this partition that was believed, 0 before the first.
        self.clock = 0
        #: The wall clock in ms, as whoever drives the ledger last read it; None: nobody knows, so
        #: no time lies in the future.
        self.now: int | None = None
        #: Who it belongs to, as that is called in ticks; empty: it may not act.
        self.me = ""
        #: Up to here no time needs a second look.
        self._near = 0
        #: Before the first tick: the same for what was written then or later, within a batch.
        self._near_since = _NEVER
        self._dirty_clock = False
        self._value_of = value_of
        self._fleets = fleets or FleetNames()
        self._retention = retention or Retention()
        self._expiry: list[tuple[int, str]] = []
        self._pending = Pending()
        self._index = Index(self._retention, self._expiry)
        self._entries = Entries(value_of, self._fleets, self._index.known, cache)
        self._runs = Runs(value_of, self._retention, self._expiry, self._pending, cache // 10)
        self._depth = Depth(partition, self._index, self._pending, max_fleets)
        #: When the jobs of each fleet are suspected.
        self.policies = policies or Policies()
        self._stalls = Stalls(partition, self._entries, self._pending, self.policies)
        self._windows = Windows(partition, windows or WindowPolicy(), self._pending, max_fleets)
        # Loaded fences, ascending: where stretches end during a replay.
        self._fences: list[int] = []
        # The stretch under way: each job that a fact of it is about.
        self._changed: dict[str, _Change] = {}
        self._offset = -1

    # -- recovery ------------------------------------------------------------------------------

    def load(self, tables: Mapping[str, Iterable[tuple[bytes, bytes]]]) -> None:
        """Rebuild indexes from the tables, by name, after recovery or assignment.

        A clock that is ahead of :attr:`now` by more than a tick may be was believed by somebody
        whose own clock was wrong: it is taken back, and the next tick sets it.
        """
        for key, value in tables[JOBS_TABLE.name]:
            known = summary(value)
            if known.kind == "clock":
                self.clock = known.at
                self._near = known.at + FACT_AHEAD_MS
            elif known.kind == "run.state":
                self._runs.know(decode_run(value))
            else:
                self._index.put(
                    key.decode(),
                    Known(
                        known.status,
                        known.fleet,
                        known.since,
                        known.received_at,
                        known.completed_at,
                        heard_until(known.received_at, known.last_seen),
                    ),
                )
                self._stalls.on_load(key.decode(), known)
        self._heal()
        self._fences = self._windows.load(tables[WINDOWS_TABLE.name], self.clock)

    # -- the fold ------------------------------------------------------------------------------

    def apply(
        self,
        offset: int,
        record: JobFact | RunFact | RunLink | Tick,
        written: int | None = None,
    ) -> None:
        """Take the partition's next record.

        ``written`` is when it was written, by the log (the Kafka record's timestamp, ms). A time
        in the record that is too far ahead of it is not believed, nor one that is too far ahead
        of :attr:`now`. So a record that was refused when it came is refused again in every
        replay, and one that lies about when it was written is refused until then.
        """
        while self._fences and self._fences[0] < offset:
            self._settle()
            del self._fences[0]
        self._offset = offset
        if isinstance(record, JobFact):
            near = self._near
            if not near:
                # Before the first tick it is the record's own time that tells.
                first, near = self._near_since
                if written is None or written < first:
                    near = self._near_of(written)
            if is_after(record, near):
                record = self._arrived(record, latest_of(record), written)
            self._fact(record)
        elif isinstance(record, Tick):
            self._settle()
            self._heal()
            ahead = self._known_time(written)
            if ahead is not None and record.occurred_at > ahead + TICK_AHEAD_MS:
                self._pending.note(metrics.REFUSED_TICKS, ("future",))
                return
            self._tick(offset, record)
        elif isinstance(record, RunLink):
            latest = max(record.received_at, record.occurred_at)
            if latest > self._near:
                record = self._arrived(record, latest, written)
            self._runs.on_record(record)
        else:
            latest = latest_of_run(max(record.received_at, record.occurred_at), record.run)
            if latest > self._near:
                record = self._arrived(record, latest, written)
            self._runs.on_record(record)

    def flush(self) -> Effects:
        """The effects of all records since the last flush."""
        self._settle()
        self._near_since = _NEVER
        effects = self._pending.take()
        self._entries.flush(self.partition, effects)
        self._runs.flush(effects)
        self._pending.forget(effects)
        if self._dirty_clock:
            effects.writes(JOBS_TABLE).append((clock_key(self.partition), encode_clock(self.clock)))
            self._dirty_clock = False
        self._windows.flush(self._offset, effects)
        return effects

    def written(self) -> None:
        """The oldest flush is in the tables now; to be called once for each, in order."""
        self._entries.written()
        self._runs.written()

    def _fact(self, fact: JobFact) -> None:
        key = fact.key
        change = self._changed.get(key)
        if change is None:
            before = self._entries.get(key)
            if before is None and (
                # What was done about a job that is forgotten does not bring it back.
                fact.stall is not None or self._retention.too_old(fact, self.clock)
            ):
                self._pending.note(metrics.EXPIRED_FACTS, ())
                return
            known = None if before is None else before.job
        else:
            before = change.before
            known = change.job
        job = merge(known, fact)
        if known is not None and job.facts is known.facts and (job is known or not fact.stall):
            # Of a flood it is not known which facts were there before.
            flood = len(known.facts) >= MAX_FACTS
            self._pending.note(metrics.CROWDED_FACTS if flood else metrics.DUPLICATE_FACTS, ())
            if job is known:
                return
        if before is not None and fact.stall is None:
            since = before.since
            if since is not None and fact.occurred_at < since - 1_000:
                self._pending.note(metrics.OUT_OF_ORDER_FACTS, ())
        if change is None:
            self._changed[key] = _Change(before, job)
        else:
            change.job = job
        if fact.stall is not None:
            self._stalls.on_fact(key, fact.stall, known, job)

    def _settle(self) -> None:
        """End the stretch: work out what follows from what has changed in it."""
        # The hottest loop there is: what it uses of the parts is looked up once.
        fleets, gone = self._fleets, self._pending.gone
        decoded, dirty = self._entries.decoded, self._entries.dirty
        put, on_change = self._index.put, self._windows.on_change
        watch, unwatch = self._stalls.on_change, self._stalls.due.pop
        for key, change in self._changed.items():
            before, job = change.before, change.job
            after = view(job, fleets)
            added = contributions(after)
            if job.recovery is not None:
                added |= stranded(job, after)
            reached = reached_by(after)
            if before is None:
                adds, known = _MISSING, 0
            else:
                adds, known = before.adds, before.reached
            if added != adds:
                on_change(self._offset, self.clock, adds, added)
            if reached != known:
                self._count(known, reached, after)
            if job.claims and (before is None or job.claims is not before.job.claims):
                self._count_requeues(None if before is None else before.job, job, after)
            completed = after.at.completed
            put(
                key,
                Known(
                    after.status,
                    after.fleet,
                    after.since,
                    job.first_seen,
                    completed.ms if completed else None,
                    heard_until(job.first_seen, job.last_seen),
                ),
            )
            if completed is None or job.recovery is not None:
                watch(key, None if before is None else before.job, job, after)
            elif before is not None:
                unwatch(key, None)
            decoded.pop(key, None)
            decoded[key] = Entry(job, after.since, added, reached)
            if gone:
                gone.pop(key, None)
            dirty[key] = encode(job, after)
        self._changed.clear()

    def _count(self, known: int, reached: int, after: View) -> None:
        """Note the statuses a job is now known to have reached, each once per job.

        Not "the status changed": that would depend on what arrived together.
        """
        new = reached & ~known
        note = self._pending.note
        for status in STATUSES_OF[new & STATUS_BITS]:
            note(metrics.TRANSITIONS, (after.fleet, status))
        if new & CLAIM_TIMED:
            self._time_claim(after)
        if new & COMPLETED:
            note(metrics.COMPLETIONS, (after.fleet, after.conclusion or "unknown"))
            self._account_for_gaps(after)

    def _time_claim(self, v: View) -> None:
        """Note how long the job waited for its claim. A negative wait is none."""
        queued, claimed = v.at.queued, v.at.claimed
        if queued is None or claimed is None or claimed < queued.ms - CLOCK_GRAIN_MS:
            return
        seconds = max(0, claimed - queued.ms) / 1000
        self._pending.notes.append(Note(metrics.QUEUE_TO_CLAIM_SECONDS, (v.fleet,), seconds))

    def _count_requeues(self, before: Job | None, job: Job, after: View) -> None:
        """Note the claims that are now known to have been released before the job began."""
        began = after.at.started or after.at.completed
        for handle, claim in job.claims.items():
            released = claim.released_at
            if released is None or (began is not None and released >= began.ms):
                continue
            known = None if before is None else before.claims.get(handle)
            if known is None or known.released_at is None:
                self._pending.note(metrics.REQUEUES, (after.fleet,))

    def _account_for_gaps(self, v: View) -> None:
        for family, timing in v.timings.items():
            if timing.missing is not None:
                self._pending.note(metrics.MISSING_TIMINGS, (family, timing.missing))
            elif timing.clamped_ms:
                self._pending.note(metrics.CLAMPED_TIMINGS, (family,))

    # -- the clock -----------------------------------------------------------------------------

    def _known_time(self, written: int | None) -> int | None:
        """The latest time that is known to have come; None when nobody knows."""
        if written is not None and written < EARLIEST_MS:
            written = None  # Kafka says -1 where nobody told.
        if self.now is not None and (written is None or written > self.now):
            written = self.now
        return None if written is None else max(self.clock, written)

    def _near_of(self, written: int | None) -> int:
        """Up to here no time of a record that was written then needs a second look."""
        ahead = self._known_time(written)
        near = LATEST_MS if ahead is None else ahead + FACT_AHEAD_MS
        if written is not None and written >= EARLIEST_MS:
            self._near_since = written, near
        return near

    def _arrived(self, record: Said, latest: int, written: int | None) -> Said:
        """The record without times that lie too far ahead: it has happened, nobody knows when."""
        ahead = self._known_time(written)
        if ahead is None or latest <= ahead + FACT_AHEAD_MS:
            return record
        self._pending.note(metrics.FUTURE_TIMES, ())
        return without_after(record, ahead, ahead + FACT_AHEAD_MS)

    def _heal(self) -> None:
        """Take back a clock that was set by somebody whose clock was wrong."""
        # One that is ahead and one that is behind may follow each other: twice as much.
        if self.now is not None and self.clock > self.now + 2 * TICK_AHEAD_MS:
            self.clock = self._near = 0
            self._windows.on_clock()
            self._dirty_clock = True
            self._pending.note(metrics.HEALED_CLOCKS, ())

    def _tick(self, offset: int, tick: Tick) -> None:
        at = tick.occurred_at
        if tick.looks_only:
            # Nothing that depends on the time but what rules do, and that is not repeated.
            if at >= self.clock and acts(tick, self.me, self.now):
                self._stalls.on_answers(at)
            return
        if at < self.clock:
            # Repeated by a replay; or from a worker whose clock is behind the one before it.
            self._pending.note(metrics.REFUSED_TICKS, ("past",))
        if at <= self.clock:
            return
        self.clock = at
        self._near = at + FACT_AHEAD_MS
        self._dirty_clock = True
        self._expire()
        self._depth.on_tick(at)
        self._windows.on_tick(offset, at)
        if acts(tick, self.me, self.now):
            self._stalls.on_tick(at)
            self._depth.tell_fleets(at)

    def _expire(self) -> None:
        """Forget the jobs and runs that are due; of very many the others at the next ticks."""
        pending = self._pending
        # Only what is forgotten counts, so that a ledger that was loaded forgets the same.
        left = MOST_FORGOTTEN
        while left and self._expiry and self._expiry[0][0] <= self.clock:
            _, key = heapq.heappop(self._expiry)
            if key in self._runs:
                if self._runs.expire(key, self.clock):
                    left -= 1
                    pending.gone[key] = None
                continue
            known = self._index.expire(key, self.clock)
            if known is None:
                continue
            left -= 1
            self._entries.forget(key)
            self._stalls.forget(key)
            pending.gone[key] = None
            pending.outputs.append(Output(JOB_STATES, self.partition, key.encode(), None))
            pending.note(metrics.EXPIRED_JOBS, (known.status,))

    # -- what is known -------------------------------------------------------------------------

    @property
    def index(self) -> Mapping[str, Known]:
        """Every job by key, undecoded."""
        return self._index.known

    @property
    def panes(self) -> Mapping[PaneKey, Pane]:
        """Every pane that is kept, open or closed."""
        return self._windows.panes

    @property
    def policy(self) -> WindowPolicy:
        """When windows close and panes are forgotten."""
        return self._windows.policy

    def windows(self) -> Iterator[tuple[str, int, int, Pane]]:
        """Open windows with something inside: fleet, size in seconds, start, this partition's
        part."""
        return self._windows.open_windows()

    def counts(self) -> dict[tuple[str, str], int]:
        """Jobs by (fleet, status), zeros included for fleets of which any job is known."""
        return dict(self._index.counts)

    def oldest(self, fleet: str, status: str) -> int | None:
        """Since when the job longest in this status is in it; ``None`` when there is none."""
        return self._index.oldest(fleet, status)

    def stalls(self) -> Mapping[str, OpenStall]:
        """The stall of each job that is in one."""
        return self._stalls.open

    def next_look(self, key: str) -> int | None:
        """When recovery looks at a job next; ``None``: when something new is known of it."""
        return self._stalls.due.get(key)

    def take_answered(self) -> bool:
        """Whether a job waits for the next look that its provider calls queued; asked again, only
        whether another does."""
        return self._stalls.take_answered()

    def stored(self, key: str) -> bytes | None:
        """The bytes of a job or run in the table; ``None`` when there is none."""
        return self._value_of(key.encode())

    def job(self, key: str) -> tuple[Job, View] | None:
        """A job's facts and what is derived from them."""
        return self._entries.look(key)


def clock_key(partition: int) -> bytes:
    """Table key under which a partition keeps its clock."""
    return f"{CLOCK_KEY}:{partition}".encode()
