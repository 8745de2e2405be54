"""Everything one partition of ``runners.jobs`` knows, and what follows from the next record.

A :class:`Ledger` is the pure heart of the fold. :meth:`Ledger.apply` takes the partition's
records one by one, in offset order; :meth:`Ledger.flush` returns the :class:`Effects` of all of
them: what to publish, which panes and states to write; :meth:`Ledger.written` is told when they
are. It knows no Kafka, no Faust and no clock
but the ticks in the log, so the same log always gives the same effects, whatever the batch
borders. What only a clock of ours can tell, that a time lies in the future, it is told with each
record (see :meth:`Ledger.apply`). It is a working copy: it may run ahead of what is durable,
because a failure after ``apply`` ends the process (or drops the ledger, on a rebalance) and the
next owner rebuilds it from the tables with :meth:`Ledger.load`.

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
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from msgspec import Struct
from msgspec.json import Encoder
from msgspec.structs import replace

from pipeline.effects import Effects, Note, Output, PaneKey
from pipeline.jobs import (
    FleetNames,
    Job,
    Run,
    View,
    decode,
    decode_run,
    encode,
    encode_clock,
    encode_outcome,
    encode_run,
    link_run,
    merge,
    merge_run,
    run_outcomes,
    summary,
    view,
)
from pipeline.jobs.ahead import Said, is_after, latest_of, latest_of_run, without_after
from pipeline.jobs.facts import MAX_FACTS
from pipeline.windows import (
    SIZES_S,
    Contribution,
    Pane,
    WindowPolicy,
    bin_of,
    contributions,
    decode_pane,
    encode_pane,
    pane_start,
    start_of,
    window_record,
)
from topics.catalogue import JOB_STATES, JOBS, SAMPLES, WINDOWS
from topics.models import (
    EARLIEST_MS,
    LATEST_MS,
    VERSION,
    JobFact,
    RunFact,
    RunLink,
    Status,
    Tick,
)

DAY_MS: Final = 86_400_000

#: A tick may be this much ahead of the time at which it was written: a worker whose clock is off by
#: less than an hour does no harm.
TICK_AHEAD_MS: Final = 3_600_000
#: A time in a fact may be this much ahead: the clocks of providers and runners are not ours.
FACT_AHEAD_MS: Final = DAY_MS

#: A fleet without live jobs is sampled as 0 for this long after its last one ended.
QUIET_MS: Final = 3_600_000
#: Fleets that have samples and windows of their own, per partition: further ones share ``other``.
MAX_FLEETS: Final = 200
OTHER_FLEET: Final = "other"

#: Table key of the partition's clock. ``~`` sorts after every job key and is in none.
CLOCK_KEY: Final = "~clock"

_encoder: Final = Encoder()

LIVE: Final = tuple(status.value for status in Status if status is not Status.COMPLETED)


@dataclass(frozen=True, slots=True)
class Retention:
    """How long states are kept. Milliseconds."""

    #: A completed job stays as a tombstone at least as long as its events can be redelivered:
    #: GitHub 3 days, GHES 7 days; one day on top.
    completed_ms: int = 8 * DAY_MS
    #: A job that never ends is forgotten this long after it was last heard of: GitHub ends a run
    #: after 35 days, an approval gate waits 30.
    unfinished_ms: int = 70 * DAY_MS


class Known(Struct, frozen=True, gc=False):
    """The index entry of a job: enough to count, filter and expire without decoding it."""

    status: str
    fleet: str
    since: int | None
    first_seen: int
    completed_at: int | None
    #: When it was first heard of, or the end of the day of the latest event: the later.
    heard: int = 0


class _Entry(Struct, frozen=True, gc=False):
    """A decoded job and what is needed of its view; the view itself is quickly made again."""

    job: Job
    since: int | None
    adds: frozenset[Contribution]
    #: Statuses it is known to have been in, as bits.
    reached: int


class _Change(Struct, gc=False):
    """A job in the stretch under way: as it was before it, and as it is now."""

    before: _Entry | None
    job: Job


_MISSING: Final[frozenset[Contribution]] = frozenset()

_NEVER: Final = LATEST_MS, 0


class Ledger:
    """One partition's jobs, runs, panes and clock. Not thread-safe; owned by the fold."""

    #: Decoded jobs kept between batches, per partition: 2.3 kB each, against some 7 us to decode
    #: one and derive its view again. With 8 partitions that is 75 MB at most.
    CACHE = 4_000

    def __init__(
        self,
        partition: int,
        value_of: Callable[[bytes], bytes | None],
        *,
        fleets: FleetNames | None = None,
        windows: WindowPolicy | None = None,
        retention: Retention | None = None,
        max_fleets: int = MAX_FLEETS,
    ) -> None:
        self.partition = partition
        self.fleets = fleets or FleetNames()
        self.policy = windows or WindowPolicy()
        self.retention = retention or Retention()
        self.max_fleets = max_fleets
        #: Latest tick of this partition that was believed, 0 before the first.
        self.clock = 0
        #: Up to here no time needs a second look.
        self._near = 0
        #: Before the first tick: the same for what was written then or later, within a batch.
        self._near_since = _NEVER
        #: The wall clock in ms, as whoever drives the ledger last read it; None: nobody knows, so
        #: no time lies in the future.
        self.now: int | None = None
        self.index: dict[str, Known] = {}
        self.panes: dict[PaneKey, Pane] = {}
        self._value_of = value_of
        self._runs: dict[str, int] = {}
        self._wide: dict[tuple[str, int, int], Pane] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self._ages: dict[tuple[str, str], list[tuple[int, str]]] = {}
        self._expiry: list[tuple[int, str]] = []
        self._closing: list[tuple[int, str, int, int]] = []
        self._forgetting: list[tuple[int, str, int]] = []
        self._entries: dict[str, _Entry] = {}
        self._run_entries: dict[str, Run] = {}
        self._sampled: set[tuple[str, str]] = set()
        #: Jobs in the index by fleet, and when the last one to end did so.
        self._jobs_of: dict[str, int] = {}
        self._last_end: dict[str, int] = {}
        #: Fleets with panes of their own, by the hour they lie in.
        self._named: dict[int, set[str]] = {}
        #: Last offset whose samples the loaded panes may hold: up to here we replay.
        self._replayed_to = -1
        # Loaded fences, ascending: where stretches end during a replay.
        self._fences: list[int] = []
        # The stretch under way: each job that a fact of it is about.
        self._changed: dict[str, _Change] = {}
        # What the batch under way has touched.
        self._offset = -1
        self._dirty_jobs: dict[str, bytes] = {}
        self._dirty_runs: dict[str, None] = {}
        self._dirty_panes: dict[PaneKey, None] = {}
        self._dirty_windows: dict[tuple[str, int, int], None] = {}
        self._dirty_clock = False
        self._gone_states: dict[str, None] = {}
        self._gone_panes: dict[PaneKey, None] = {}
        self._effects = Effects()
        #: Jobs and runs of each flush that is not in the tables yet, the oldest first.
        self._unwritten: deque[list[str]] = deque()
        #: Counts of the batch, one note per name and labels instead of one per record.
        self._counted: dict[tuple[str, tuple[str, ...]], int] = {}
        #: Open panes this batch adds to, each with the wider windows around it; all are marked
        #: dirty. Valid until the clock moves, which closes windows, or the batch ends.
        self._open: dict[PaneKey, tuple[Pane, ...]] = {}

    # -- recovery ------------------------------------------------------------------------------

    def load(
        self,
        states: Iterable[tuple[bytes, bytes]],
        panes: Iterable[tuple[PaneKey, bytes]],
    ) -> None:
        """Rebuild indexes from the tables after recovery or assignment.

        A clock that is ahead of :attr:`now` by more than a tick may be was believed by somebody
        whose own clock was wrong: it is taken back, and the next tick sets it.
        """
        for key, value in states:
            known = summary(value)
            if known.kind == "clock":
                self.clock = known.at
                self._near = known.at + FACT_AHEAD_MS
            elif known.kind == "run.state":
                self._know_run(decode_run(value))
            else:
                self._index(
                    key.decode(),
                    Known(
                        known.status,
                        known.fleet,
                        known.since,
                        known.received_at,
                        known.completed_at,
                        _heard(known.received_at, known.last_seen),
                    ),
                )
        self._heal()
        for pane_key, value in panes:
            pane = decode_pane(value)
            self.panes[pane_key] = pane
            self._replayed_to = max(self._replayed_to, pane.fence)
            fleet, start = pane_key
            self._name(fleet, start)
            heapq.heappush(self._forgetting, (self.policy.forgotten_at(start), fleet, start))
            for size_s in SIZES_S:
                first = start_of(start, size_s)
                if self.policy.closes_at(first, size_s) > self.clock:
                    window = self._window(fleet, size_s, first, start)
                    if window is not pane:
                        window.merge(pane)
                    self._dirty_windows[(fleet, size_s, first)] = None
        self._fences = sorted({pane.fence for pane in self.panes.values()})

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
                self._note("refused_ticks", ("future",))
                return
            self._tick(offset, record.occurred_at)
        elif isinstance(record, RunLink):
            if record.received_at > self._near or record.occurred_at > self._near:
                latest = max(record.received_at, record.occurred_at)
                record = self._arrived(record, latest, written)
            before = self._run(record.key)
            self._run_changed(before, link_run(before, record))
        else:
            latest = latest_of_run(max(record.received_at, record.occurred_at), record.run)
            if latest > self._near:
                record = self._arrived(record, latest, written)
            before = self._run(record.key)
            self._run_changed(before, merge_run(before, record))

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

    def _heal(self) -> None:
        """Take back a clock that was set by somebody whose clock was wrong."""
        # One that is ahead and one that is behind may follow each other: twice as much.
        if self.now is not None and self.clock > self.now + 2 * TICK_AHEAD_MS:
            self.clock = self._near = 0
            self._open.clear()
            self._dirty_clock = True
            self._note("healed_clocks")

    def _arrived(self, record: Said, latest: int, written: int | None) -> Said:
        """The record without times that lie too far ahead: it has happened, nobody knows when."""
        ahead = self._known_time(written)
        if ahead is None or latest <= ahead + FACT_AHEAD_MS:
            return record
        self._note("future_times")
        return without_after(record, ahead, ahead + FACT_AHEAD_MS)

    def flush(self) -> Effects:
        """The effects of all records since the last flush."""
        self._settle()
        effects, self._effects = self._effects, Effects()
        for (name, labels), times in self._counted.items():
            effects.notes.append(Note(name, labels, float(times)))
        self._counted.clear()
        self._open.clear()
        self._near_since = _NEVER
        for key, value in self._dirty_jobs.items():
            raw = key.encode()
            effects.outputs.append(Output(JOB_STATES, self.partition, raw, value))
            effects.states.append((raw, value))
        for key in self._dirty_runs:
            effects.states.append((key.encode(), encode_run(self._run_entries[key])))
        for key in self._gone_states:
            effects.states.append((key.encode(), None))
        if self._dirty_clock:
            effects.states.append((clock_key(self.partition), encode_clock(self.clock)))
        for pane_key in self._dirty_panes:
            pane = self.panes[pane_key]
            pane.fence = self._offset
            effects.panes.append((pane_key, encode_pane(pane)))
        for pane_key in self._gone_panes:
            effects.panes.append((pane_key, None))
        self._unwritten.append([*self._dirty_jobs, *self._dirty_runs])
        self._dirty_jobs.clear()
        self._dirty_runs.clear()
        self._gone_states.clear()
        self._dirty_panes.clear()
        self._gone_panes.clear()
        self._dirty_clock = False
        return effects

    def _fact(self, fact: JobFact) -> None:
        key = fact.key
        change = self._changed.get(key)
        if change is None:
            before = self._entry(key)
            if before is None and self._too_old(fact):
                self._note("expired_facts")
                return
            known = None if before is None else before.job
        else:
            before = change.before
            known = change.job
        job = merge(known, fact)
        if known is not None and job.facts is known.facts:
            # Of a flood it is not known which facts were there before.
            flood = len(known.facts) >= MAX_FACTS
            self._note("crowded_facts" if flood else "duplicate_facts")
            if job is known:
                return
        if before is not None:
            since = before.since
            if since is not None and fact.occurred_at < since - 1_000:
                self._note("out_of_order_facts")
        if change is None:
            self._changed[key] = _Change(before, job)
        else:
            change.job = job

    def _settle(self) -> None:
        """End the stretch: work out what follows from what has changed in it."""
        for key, change in self._changed.items():
            before, job = change.before, change.job
            after = view(job, self.fleets)
            added = contributions(after)
            reached = _reached(after)
            if before is None:
                adds, known = _MISSING, 0
            else:
                adds, known = before.adds, before.reached
            if added != adds:
                # Sorted, so that the effects do not depend on hash order.
                if adds:
                    for c in sorted(adds - added, key=_order):
                        self._contribute(self._offset, c, -1)
                    added_now = added - adds
                else:
                    added_now = added
                for c in sorted(added_now, key=_order):
                    self._contribute(self._offset, c, 1)
            if reached != known:
                self._count(known, reached, after)
            completed = after.at.completed
            self._index(
                key,
                Known(
                    after.status,
                    after.fleet,
                    after.since,
                    job.first_seen,
                    completed.ms if completed else None,
                    _heard(job.first_seen, job.last_seen),
                ),
            )
            self._entries.pop(key, None)
            self._entries[key] = _Entry(job, after.since, added, reached)
            if self._gone_states:
                self._gone_states.pop(key, None)
            self._dirty_jobs[key] = encode(job, after)
        self._changed.clear()

    def _count(self, known: int, reached: int, after: View) -> None:
        """Note the statuses a job is now known to have reached, each once per job.

        Not "the status changed": that would depend on what arrived together.
        """
        new = reached & ~known
        for status in _STATUSES[new]:
            self._note("transitions", (after.fleet, status))
        if new & _COMPLETED:
            self._note("completions", (after.fleet, after.conclusion or "unknown"))
            self._account_for_gaps(after)

    def _too_old(self, fact: JobFact) -> bool:
        """Whether the job's tombstone may be gone already: history only, never a new job."""
        if not self.clock:
            return False
        latest = fact.occurred_at
        for clocks in fact.times.values():
            latest = max(latest, *clocks.values())
        kept = (
            self.retention.completed_ms
            if any(milestone == "completed" for milestone in fact.times)
            else self.retention.unfinished_ms
        )
        return latest < self.clock - kept

    def _account_for_gaps(self, v: View) -> None:
        for family, timing in v.timings.items():
            if timing.missing is not None:
                self._note("missing_timings", (family, timing.missing))
            elif timing.clamped_ms:
                self._note("clamped_timings", (family,))

    # -- runs ----------------------------------------------------------------------------------

    def _run(self, key: str) -> Run | None:
        run = self._run_entries.get(key)
        if run is None and key in self._runs:
            value = self.stored(key)
            if value is not None:
                run = decode_run(value)
        return run

    def _run_changed(self, before: Run | None, after: Run) -> None:
        if after is before:
            self._note("duplicate_facts")
            return
        for outcome in run_outcomes(before, after):
            self._effects.outputs.append(
                Output(JOBS, None, outcome.key.encode(), encode_outcome(outcome))
            )
        self._know_run(after)
        self._run_entries[after.key] = after
        self._gone_states.pop(after.key, None)
        self._dirty_runs[after.key] = None

    def _know_run(self, run: Run) -> None:
        heard = _heard(run.first_seen, run.last_seen)
        ended = [attempt.completed_at for attempt in run.attempts.values()]
        if ended and all(ended):
            due = max(at for at in ended if at) + self.retention.completed_ms
        else:
            due = heard + self.retention.unfinished_ms
        due = max(due, heard + self.retention.completed_ms)
        if self._runs.get(run.key) != due:
            self._runs[run.key] = due
            heapq.heappush(self._expiry, (due, run.key))

    # -- the clock -----------------------------------------------------------------------------

    def _tick(self, offset: int, at: int) -> None:
        if at < self.clock:
            # Repeated by a replay; or from a worker whose clock is behind the one before it.
            self._note("refused_ticks", ("past",))
        if at <= self.clock:
            return
        self.clock = at
        self._near = at + FACT_AHEAD_MS
        self._dirty_clock = True
        self._open.clear()
        self._expire()
        self._sample(offset)
        self._send_windows(offset)
        self._forget_panes()

    def _expire(self) -> None:
        while self._expiry and self._expiry[0][0] <= self.clock:
            _, key = heapq.heappop(self._expiry)
            if key in self._runs:
                if self._runs[key] > self.clock:
                    continue
                del self._runs[key]
                self._run_entries.pop(key, None)
                self._dirty_runs.pop(key, None)
                self._gone_states[key] = None
                continue
            known = self.index.get(key)
            if known is None or self._expires_at(known) > self.clock:
                continue
            self._unindex(key, known)
            self._entries.pop(key, None)
            self._dirty_jobs.pop(key, None)
            self._gone_states[key] = None
            self._effects.outputs.append(Output(JOB_STATES, self.partition, key.encode(), None))
            self._note("expired_jobs", (known.status,))

    def _expires_at(self, known: Known) -> int:
        # From when it was last heard of: one record with a wrong clock cannot make that earlier.
        completed = known.completed_at
        if completed is None:
            return known.heard + self.retention.unfinished_ms
        heard = known.heard
        return (completed if completed >= heard else heard) + self.retention.completed_ms

    def _sample(self, offset: int) -> None:
        """Depth and oldest age of what lives, and zeros where somebody may be looking for them.

        A fleet is sampled while it has live jobs and for :data:`QUIET_MS` after its last one has
        ended, then no more. Beyond :attr:`max_fleets` the smaller ones share ``other``.
        """
        counts = self._counts
        shown = {fleet for (fleet, status), n in counts.items() if n and status != "completed"}
        quiet = self.clock - QUIET_MS
        shown.update(fleet for fleet, ended in self._last_end.items() if ended > quiet)
        merged: list[str] = []
        if len(shown) > self.max_fleets:
            jobs = self._jobs_of
            merged = sorted(shown, key=lambda fleet: (fleet != OTHER_FLEET, jobs[fleet], fleet))
            del merged[len(merged) - self.max_fleets :]
            shown.difference_update(merged)
        told: dict[tuple[str, str], tuple[int, int | None]] = {}
        for fleet in shown:
            for status in LIVE:
                told[fleet, status] = counts.get((fleet, status), 0), self.oldest(fleet, status)
        if merged:
            for status in LIVE:
                since = [at for fleet in merged if (at := self.oldest(fleet, status)) is not None]
                n = sum(counts.get((fleet, status), 0) for fleet in merged)
                told[OTHER_FLEET, status] = n, min(since, default=None)
        for where in self._sampled:
            told.setdefault(where, (0, None))
        sampled: set[tuple[str, str]] = set()
        for fleet, status in sorted(told, key=_sample_order):
            where = (fleet, status)
            count, oldest = told[where]
            # Explicit zeros: always for the queue, once for what has just become empty.
            if not count and status != "queued" and where not in self._sampled:
                continue
            if count:
                sampled.add(where)
            key = f"{fleet}|{status}|{self.partition}"
            record = {
                "id": f"{key}@{self.clock}",
                "kind": "sample",
                "version": VERSION,
                "source": "runnerstream",
                "occurred_at": self.clock,
                "received_at": self.clock,
                "key": key,
                "fleet": fleet,
                "partition": self.partition,
                "status": status,
                "count": count,
                "oldest_ms": max(0, self.clock - oldest) if oldest is not None else 0,
            }
            self._effects.outputs.append(
                Output(SAMPLES, self.partition, key.encode(), _encoder.encode(record))
            )
        self._sampled = sampled

    # -- windows -------------------------------------------------------------------------------

    def _contribute(self, offset: int, c: Contribution, weight: int) -> None:
        start = pane_start(c.at)
        pane_key = (c.fleet, start)
        around = self._open.get(pane_key)
        pane = around[0] if around is not None else self.panes.get(pane_key)
        if pane is None and self._shares(c.fleet, start):
            pane_key = (OTHER_FLEET, start)
            around = self._open.get(pane_key)
            pane = around[0] if around is not None else self.panes.get(pane_key)
        if pane is not None and offset <= pane.fence:
            return  # counted before the crash this is a replay of
        if around is None and self.policy.closes_at(start, SIZES_S[0]) <= self.clock:
            self._note("late_samples", (c.name if c.ms is not None else "conclusion",))
            return
        if around is None:
            around = self._open[pane_key] = self._dirty(pane, pane_key[0], start)
        if c.ms is not None:
            if weight > 0:
                self._effects.notes.append(Note("timings", (c.name, c.fleet), c.ms / 1000))
            else:
                self._note("revised_timings", (c.name,))
            bin_ = bin_of(c.ms)
            for each in around:
                each.put(c.name, c.ms, bin_, weight)
        else:
            for each in around:
                each.tally(c.name, weight)

    def _shares(self, fleet: str, start: int) -> bool:
        """Whether the fleet's samples go to the panes of ``other``.

        The first :attr:`max_fleets` fleets of an hour of event time have panes of their own. That
        is remembered by the panes, which stay, also empty, until the whole hour is forgotten. So
        a replay decides alike: who has a pane keeps it, and an hour that is full stays full. (Who
        comes first depends on what was folded together, so a rebuild from the whole log may name
        others; what all fleets add up to is the same.)
        """
        named = self._named.get(start_of(start, SIZES_S[-1]))
        return named is not None and len(named) >= self.max_fleets and fleet not in named

    def _name(self, fleet: str, start: int) -> None:
        if fleet != OTHER_FLEET:
            self._named.setdefault(start_of(start, SIZES_S[-1]), set()).add(fleet)

    def _dirty(self, pane: Pane | None, fleet: str, start: int) -> tuple[Pane, ...]:
        """The pane, made when there is none, and the windows around it, marked as changed."""
        pane_key = (fleet, start)
        if pane is None:
            pane = self.panes[pane_key] = Pane()
            self._name(fleet, start)
            heapq.heappush(self._forgetting, (self.policy.forgotten_at(start), fleet, start))
        self._gone_panes.pop(pane_key, None)
        self._dirty_panes[pane_key] = None
        around = [pane]
        for size_s in SIZES_S:
            first = start_of(start, size_s)
            window = self._window(fleet, size_s, first, start)
            if window is not pane:
                around.append(window)
            self._dirty_windows[(fleet, size_s, first)] = None
        return tuple(around)

    def _window(self, fleet: str, size_s: int, first: int, start: int) -> Pane:
        """The open window; of the smallest size it is the pane itself."""
        where = (fleet, size_s, first)
        window = self._wide.get(where)
        if window is None:
            window = self.panes[(fleet, start)] if size_s == SIZES_S[0] else Pane()
            self._wide[where] = window
            heapq.heappush(
                self._closing, (self.policy.closes_at(first, size_s), fleet, size_s, first)
            )
        return window

    def _send_windows(self, offset: int) -> None:
        while self._closing and self._closing[0][0] <= self.clock:
            _, fleet, size_s, first = heapq.heappop(self._closing)
            self._dirty_windows.pop((fleet, size_s, first), None)
            window = self._wide.pop((fleet, size_s, first), None)
            if window is not None:
                self._send_window(window, fleet, size_s, first, True, offset)
                self._note("closed_windows", (str(size_s),))
        for fleet, size_s, first in self._dirty_windows:
            window = self._wide.get((fleet, size_s, first))
            if window is not None:
                self._send_window(window, fleet, size_s, first, False, offset)
        # During a replay the panes are ahead of the ticks. A tick that was sent before the crash
        # carries a higher rev and less than is sent now: say it again after the replay.
        if offset > self._replayed_to:
            self._dirty_windows.clear()

    def _send_window(
        self, window: Pane, fleet: str, size_s: int, first: int, closed: bool, offset: int
    ) -> None:
        record = window_record(
            window,
            fleet=fleet,
            partition=self.partition,
            size_s=size_s,
            start=first,
            closed=closed,
            rev=offset,
            at=self.clock,
        )
        key: str = record["key"]
        self._effects.outputs.append(
            Output(WINDOWS, self.partition, key.encode(), _encoder.encode(record))
        )

    def _forget_panes(self) -> None:
        while self._forgetting and self._forgetting[0][0] <= self.clock:
            _, fleet, start = heapq.heappop(self._forgetting)
            # All panes of an hour are forgotten by the same tick.
            self._named.pop(start_of(start, SIZES_S[-1]), None)
            if self.panes.pop((fleet, start), None) is not None:
                self._dirty_panes.pop((fleet, start), None)
                self._gone_panes[(fleet, start)] = None

    def windows(self) -> Iterator[tuple[str, int, int, Pane]]:
        """Open windows with something inside: fleet, size in seconds, start, this partition's
        part."""
        for (fleet, size_s, first), window in self._wide.items():
            part = window.filled()
            if not part.empty:
                yield fleet, size_s, first, part

    # -- the index -----------------------------------------------------------------------------

    def counts(self) -> dict[tuple[str, str], int]:
        """Jobs by (fleet, status), zeros included for fleets of which any job is known."""
        return dict(self._counts)

    def oldest(self, fleet: str, status: str) -> int | None:
        """Since when the job longest in this status is in it; ``None`` when there is none."""
        heap = self._ages.get((fleet, status))
        while heap:
            since, key = heap[0]
            known = self.index.get(key)
            if (
                known is not None
                and known.status == status
                and known.fleet == fleet
                and known.since == since
            ):
                return since
            heapq.heappop(heap)
        return None

    def stored(self, key: str) -> bytes | None:
        """The bytes of a job or run in the table; ``None`` when there is none."""
        return self._value_of(key.encode())

    def job(self, key: str) -> tuple[Job, View] | None:
        """A job's facts and what is derived from them."""
        # Not through _entry: a reader must not fill the fold's cache. While a batch is being
        # made durable the table still holds the older value.
        if key not in self.index:
            return None
        entry = self._entries.get(key)
        job = self._decoded(key) if entry is None else entry.job
        return None if job is None else (job, self._view(key, job))

    def _index(self, key: str, known: Known) -> None:
        before = self.index.get(key)
        if before == known:
            return
        self.index[key] = known
        where = (known.fleet, known.status)
        if before is None or (before.fleet, before.status) != where:
            if before is None or before.fleet != known.fleet:
                self._jobs_of[known.fleet] = self._jobs_of.get(known.fleet, 0) + 1
            self._counts[where] = self._counts.get(where, 0) + 1
            if before is not None:
                self._leave(before, before.fleet != known.fleet)
            ended = known.completed_at
            if ended is not None and ended > self._last_end.get(known.fleet, 0):
                self._last_end[known.fleet] = ended
        if known.status != "completed" and known.since is not None:
            heapq.heappush(self._ages.setdefault(where, []), (known.since, key))
        due = self._expires_at(known)
        if before is None or self._expires_at(before) != due:
            heapq.heappush(self._expiry, (due, key))

    def _unindex(self, key: str, known: Known) -> None:
        del self.index[key]
        self._leave(known, True)

    def _leave(self, known: Known, fleet_too: bool) -> None:
        """A job is no longer in a status, or no longer of a fleet, which may have been its last."""
        fleet = known.fleet
        self._counts[fleet, known.status] -= 1
        if not fleet_too:
            return
        self._jobs_of[fleet] -= 1
        if not self._jobs_of[fleet]:
            del self._jobs_of[fleet]
            self._last_end.pop(fleet, None)
            for status in Status:
                self._counts.pop((fleet, status.value), None)
                self._ages.pop((fleet, status.value), None)

    def _entry(self, key: str) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is None and key in self.index:
            job = self._decoded(key)
            if job is not None:
                seen = self._view(key, job)
                entry = _Entry(job, seen.since, contributions(seen), _reached(seen))
                self._entries[key] = entry
        return entry

    def _decoded(self, key: str) -> Job | None:
        value = self.stored(key)
        return None if value is None else decode(value)

    def _view(self, key: str, job: Job) -> View:
        """What follows from a known job, in the fleet it is counted under: an alias may have been
        configured since."""
        return replace(view(job, self.fleets), fleet=self.index[key].fleet)

    def written(self) -> None:
        """The oldest flush is in the tables now; to be called once for each, in order.

        Forgets decoded jobs and runs beyond what is worth keeping, but none that a later flush
        has changed: what is forgotten here is read from the tables next, and an older value there
        would undo what is known.
        """
        self._unwritten.popleft()
        surplus = len(self._entries) - self.CACHE
        if surplus <= 0 and len(self._run_entries) <= self.CACHE // 10:
            return
        ahead = set().union(*self._unwritten, self._dirty_jobs, self._dirty_runs)
        if surplus > 0:
            for key in list(islice(self._entries, surplus + self.CACHE // 10)):
                if key not in ahead:
                    del self._entries[key]
        if len(self._run_entries) > self.CACHE // 10:
            for key in self._run_entries.keys() - ahead:
                del self._run_entries[key]

    def _note(self, name: str, labels: tuple[str, ...] = ()) -> None:
        what = (name, labels)
        self._counted[what] = self._counted.get(what, 0) + 1


def _heard(first_seen: int, last_seen: int) -> int:
    end = last_seen + DAY_MS
    return end if last_seen and end > first_seen else first_seen


def _sample_order(where: tuple[str, str]) -> tuple[str, int]:
    return where[0], LIVE.index(where[1])


_BITS: Final = tuple((1 << n, status.value) for n, status in enumerate(Status))
#: By the bits that are set.
_STATUSES: Final = tuple(
    tuple(status for bit, status in _BITS if bits & bit) for bits in range(1 << len(_BITS))
)
_WAITING, _QUEUED, _CLAIMED, _STARTING, _RUNNING, _COMPLETED = (bit for bit, _ in _BITS)


def _reached(v: View) -> int:
    """Which statuses the job is known to have been in, as bits."""
    at = v.at
    reached = 0
    if at.waiting is not None:
        reached |= _WAITING
    if at.queued is not None:
        reached |= _QUEUED
    if at.claimed is not None:
        reached |= _CLAIMED
    if at.minted is not None:
        reached |= _STARTING
    if at.started is not None or v.status == "running":
        reached |= _RUNNING
    if at.completed is not None:
        reached |= _COMPLETED
    return reached


def clock_key(partition: int) -> bytes:
    """Table key under which a partition keeps its clock."""
    return f"{CLOCK_KEY}:{partition}".encode()


def _order(c: Contribution) -> tuple[int, str, str, int]:
    return c.at, c.fleet, c.name, -1 if c.ms is None else c.ms
