"""Everything one partition of ``runners.fleets`` knows, and what it decides. Pure.

Every record is joined into what is known (:mod:`pipeline.fleet.state`), in every life alike. To
*act*, that is to issue, withhold, expire, wake, is something else: only who sent the latest tick
may, and only while that tick is fresh (L3). Such a tick was written after this ledger was loaded,
so whatever an earlier owner decided stands before it in the log and is known. Each decision is a
record in the same log (L11), joined at once and found known when it is read.

What jobs are told follows from what is known, and is told in replays too: its ids are the same each
time, and a fact commands nothing. So a job hears of a decision also when death came between them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from pipeline import metrics
from pipeline.effects import Effects, Note, Output
from pipeline.fleet import records, rows
from pipeline.fleet.budget import mode_of, thrown, why_not
from pipeline.fleet.policy import HOUR_MS, MINUTE_MS, Policies
from pipeline.fleet.runners import displaced, is_back, is_silent, loss, merge, state_of
from pipeline.fleet.state import (
    FRESH_MS,
    Fleet,
    HostLost,
    Waiting,
    is_fresh,
    is_settled_by,
    join_endings,
    join_told,
    told_name,
)
from topics.catalogue import FLEET_STATES, FLEETS
from topics.envelope import EARLIEST_MS
from topics.models import Tick
from topics.recovery import (
    BreakerState,
    Decision,
    Depth,
    Ending,
    FleetState,
    HostGone,
    Mode,
    Proposal,
    Result,
    RunnerSeen,
    RunnerState,
    Seen,
    Switch,
    Why,
)
from topics.tables import FLEETS_TABLE

#: A tick that is older than this, by the wall clock, is history: nobody acts on it.
ACT_WITHIN_MS: Final = 30_000
#: A time may be this much ahead of the time at which it was written.
AHEAD_MS: Final = HOUR_MS
#: What was told of a queue counts for so long, as does the sight of a living fleet.
QUEUE_MS: Final = MINUTE_MS
ALIVE_MS: Final = MINUTE_MS
#: An idle runner seen within this can be woken.
IDLE_MS: Final = 2 * MINUTE_MS


class FleetLedger:
    """One partition's fleets, switches and clock. Not thread-safe; owned by the fold."""

    def __init__(self, partition: int, policies: Policies | None = None) -> None:
        self.partition = partition
        #: The wall clock in ms, as whoever drives the ledger last read it; None: nobody knows.
        self.now: int | None = None
        #: By what name this worker sends ticks; empty: it sends none, and does not act.
        self.me = ""
        #: Latest tick that was believed, 0 before the first.
        self.clock = 0
        self.fleets: dict[str, Fleet] = {}
        self.switches: dict[str, Switch] = {}
        self._policies = policies or Policies()
        #: Who sent the latest tick.
        self._by = ""
        #: Commands issued at this tick.
        self._in_tick = 0
        #: What was last said of each fleet.
        self._said: dict[str, dict[str, Any]] = {}
        # The batch under way.
        self._outputs: list[Output] = []
        self._notes: Counter[tuple[metrics.Counter[Any], tuple[str, ...]]] = Counter()
        self._dirty: dict[tuple[str, str, str], None] = {}
        self._dirty_clock = False

    # -- PartitionLedger -----------------------------------------------------------------------

    def load(self, tables: Mapping[str, Iterable[tuple[bytes, bytes]]]) -> None:
        """See PartitionLedger."""
        for key, value in tables[FLEETS_TABLE.name]:
            where = rows.parse_key(key)
            if where is None:
                self.clock = rows.decode_clock(value)
                continue
            part, fleet, name = where
            known = rows.decode(part, value)
            if part == rows.SWITCHES:
                self.switches[name] = known
            else:
                getattr(self._fleet(fleet), part)[name] = known
        for each in self.fleets.values():
            for name in each.runners:
                each.runner_changed(name)
        self._heal()

    def apply(self, offset: int, record: Any, written: int | None = None) -> None:
        """Take the partition's next record, which was written at ``written`` (ms)."""
        if isinstance(record, Tick):
            self._tick(offset, record, written)
        elif isinstance(record, Proposal):
            self._on_proposal(record)
        elif isinstance(record, Decision):
            self._on_decision(record)
        elif isinstance(record, Ending):
            self._on_ending(record)
        elif isinstance(record, Switch):
            self._on_switch(record)
        elif self._is_ahead(record.occurred_at, written):
            self._note(metrics.FUTURE_TIMES, ())
        elif isinstance(record, RunnerSeen):
            self._on_runner(record)
        elif isinstance(record, HostGone):
            self._on_host(record)
        elif isinstance(record, Depth):
            self._on_depth(record)

    def flush(self) -> Effects:
        """See PartitionLedger."""
        effects = Effects(self._outputs)
        effects.notes += (Note(what, labels, float(n)) for (what, labels), n in self._notes.items())
        self._outputs = []
        self._notes.clear()
        writes = effects.writes(FLEETS_TABLE)
        for part, fleet, name in self._dirty:
            value = self._known(part, fleet, name)
            row = rows.row_key(part, fleet, name)
            writes.append((row, None if value is None else rows.encode(value)))
        if self._dirty_clock:
            writes.append((rows.clock_key(self.partition), rows.encode_clock(self.clock)))
        self._dirty.clear()
        self._dirty_clock = False
        return effects

    def written(self) -> None:
        """See PartitionLedger: nothing here is read from the table again."""

    # -- what is known -------------------------------------------------------------------------

    @property
    def acting(self) -> bool:
        """Whether it may decide anything now."""
        return bool(
            self.me
            and self._by == self.me
            and self.now is not None
            and self.now - self.clock <= ACT_WITHIN_MS
        )

    def mode(self, fleet: str) -> Mode:
        """What recovery may do in a fleet."""
        return mode_of(self.switches, fleet, self._policies.of(fleet))

    def levels(self) -> Iterator[tuple[str, BreakerState, Mode]]:
        """Breaker and mode of each fleet, for the gauges."""
        for fleet in list(self.fleets.values()):
            breaker = fleet.breaker(self._policies.of(fleet.name))
            yield fleet.name, breaker.state(self.clock), self.mode(fleet.name)

    def starving(self) -> Iterator[tuple[str, int, int]]:
        """Fleets whose jobs wait while they have idle runners: how many jobs, and since when."""
        for fleet in list(self.fleets.values()):
            found = self._starving(fleet)
            if found is not None:
                yield fleet.name, found[0], found[1]

    def states(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each fleet as it is now, in the words of :class:`topics.recovery.FleetState`."""
        for fleet in list(self.fleets.values()):
            yield fleet.name, self._state(fleet)

    # -- what is said --------------------------------------------------------------------------

    def _on_proposal(self, proposal: Proposal) -> None:
        fleet = self._fleet(proposal.key)
        if fleet.is_disposed(proposal) or not is_fresh(proposal, self.clock):
            return
        older = any(
            each.since < proposal.since and job != proposal.job_key
            for job, each in fleet.pending.items()
        )
        self._put(fleet, "pending", proposal.job_key, proposal)
        if self.acting and not older:
            self._dispose(fleet, proposal)

    def _on_decision(self, decided: Decision) -> None:
        """Join a decision, of our own when it is made and again when it is read."""
        fleet, known = self._fleet(decided.key), decided.command_id
        if decided.withheld is not None:
            name = told_name(known, decided.n, decided.k)
            before = fleet.told.get(name)
            told = join_told(before, decided.withheld, decided.occurred_at)
            if told != before:
                self._put(fleet, "told", name, told)
                if before is None or told.why != before.why:
                    self._note(metrics.RECOVERY_WITHHELD, (decided.withheld.value,))
                    self._tell(records.decided_fact(decided))
            return
        if known in fleet.issued:
            return
        if known in fleet.endings and self.clock - decided.occurred_at > HOUR_MS:
            return  # forgotten already
        self._put(fleet, "issued", known, decided)
        self._in_tick += decided.occurred_at == self.clock
        self._note(metrics.RECOVERY_COMMANDS, (decided.command.value,))
        self._tell(records.decided_fact(decided))
        waiting = fleet.pending.get(decided.job_key)
        if waiting is not None and is_settled_by(waiting, decided):
            self._drop(fleet, "pending", decided.job_key)

    def _on_ending(self, ending: Ending) -> None:
        fleet, known = self._fleet(ending.key), ending.command_id
        before = fleet.endings.get(known)
        after = join_endings(before, ending)
        if after is before:
            return
        self._put(fleet, "endings", known, after)
        if before is None or before.result is not after.result:
            self._note(metrics.RECOVERY_OUTCOMES, (ending.command.value, ending.result.value))
        command = fleet.issued.get(known)
        if command is not None and after.result is Result.EXPIRED:
            # Of every other end the job hears from who did it.
            self._tell(records.expired_fact(command, after.occurred_at))

    def _on_switch(self, switch: Switch) -> None:
        before = self.switches.get(switch.fleet)
        if before is not None and (before.occurred_at, before.id) >= (
            switch.occurred_at,
            switch.id,
        ):
            return
        self.switches[switch.fleet] = switch
        self._dirty[rows.SWITCHES, "", switch.fleet] = None
        if self.partition == 0:  # every partition gets each
            self._note(metrics.RECOVERY_SWITCHES, (switch.mode.value if switch.mode else "none",))

    def _on_runner(self, record: RunnerSeen) -> None:
        fleet, name = self._fleet(record.key), record.runner
        before = fleet.runners.get(name)
        if not name:
            return
        after = merge(before, record)
        if after is before:
            return
        lost = None if before is None else loss(before, fleet.host_gone(before))
        was_displaced = displaced(before)
        self._put(fleet, "runners", name, after)
        now_lost, is_displaced = loss(after, fleet.host_gone(after)), displaced(after)
        if now_lost is not None and now_lost != lost:
            self._tell(records.lost_fact(name, now_lost))
        if lost is not None and is_back(after, fleet.host_gone(after), lost):
            self._tell(records.found_fact(name, lost, after.seen))
        if is_displaced is not None and is_displaced != was_displaced:
            self._tell(records.displaced_fact(name, is_displaced))

    def _on_host(self, record: HostGone) -> None:
        fleet, host = self._fleet(record.key), record.host
        before = fleet.hosts.get(host)
        if not host or (before is not None and before.at >= record.occurred_at):
            return
        self._put(fleet, "hosts", host, HostLost(record.occurred_at))
        for name, runner in fleet.runners.items():
            if runner.host == host:
                lost = loss(runner, before.at if before else None)
                now_lost = loss(runner, record.occurred_at)
                if now_lost is not None and now_lost != lost:
                    self._tell(records.lost_fact(name, now_lost))

    def _on_depth(self, record: Depth) -> None:
        fleet = self._fleet(record.key)
        before = fleet.depth.get(record.partition)
        if before is None or before.at < record.occurred_at:
            fleet.depth[record.partition] = Waiting(
                record.occurred_at, record.counts.get("queued", 0), record.queued_since
            )

    def _tell(self, fact: Output | None) -> None:
        if fact is not None:
            self._outputs.append(fact)

    # -- the clock -----------------------------------------------------------------------------

    def _tick(self, offset: int, tick: Tick, written: int | None) -> None:
        self._heal()
        if self._is_ahead(tick.occurred_at, written):
            self._note(metrics.REFUSED_TICKS, ("future",))
            return
        if tick.occurred_at < self.clock:
            self._note(metrics.REFUSED_TICKS, ("past",))
            return
        self._dirty_clock |= tick.occurred_at > self.clock
        self.clock, self._by = tick.occurred_at, tick.by
        self._forget()
        self._in_tick = sum(
            each.occurred_at == self.clock
            for fleet in self.fleets.values()
            for each in fleet.issued.values()
        )
        if self.acting:
            for fleet in self.fleets.values():
                self._expire(fleet)
                self._find_silent(fleet)
            self._dispose_all()
            for fleet in self.fleets.values():
                self._wake(fleet)
        for fleet in self.fleets.values():
            self._say(offset, fleet)

    def _known_time(self, written: int | None) -> int | None:
        """The latest time that is known to have come; None when nobody knows."""
        if written is not None and written < EARLIEST_MS:
            written = None  # Kafka says -1 where nobody told.
        if self.now is not None and (written is None or written > self.now):
            written = self.now
        return None if written is None else max(self.clock, written)

    def _is_ahead(self, at: int, written: int | None) -> bool:
        """Whether a time is of somebody whose clock is wrong."""
        known = self._known_time(written)
        return known is not None and at > known + AHEAD_MS

    def _heal(self) -> None:
        """Take back a clock that was set by somebody whose clock was wrong."""
        if self.now is not None and self.clock > self.now + 2 * AHEAD_MS:
            self.clock, self._dirty_clock = 0, True
            self._note(metrics.HEALED_CLOCKS, ())

    def _forget(self) -> None:
        for fleet in list(self.fleets.values()):
            fleet.depth = {
                partition: each
                for partition, each in fleet.depth.items()
                if self.clock - each.at <= QUEUE_MS
            }
            known = fleet.known
            for part, name in list(fleet.outdated(self.clock)):
                self._drop(fleet, part, name)
            if known and not fleet.known:
                self._said.pop(fleet.name, None)
                self._outputs.append(
                    Output(FLEET_STATES, self.partition, fleet.name.encode(), None)
                )
            if not fleet.known and not fleet.depth:
                del self.fleets[fleet.name]

    def _say(self, offset: int, fleet: Fleet) -> None:
        """Say how the fleet is, if it is no longer as last said."""
        if not fleet.known:
            return
        said = self._state(fleet)
        if self._said.get(fleet.name) == said:
            return
        self._said[fleet.name] = said
        record = FleetState(
            id=records.id_of(f"{fleet.name}@{offset}"),
            source=records.SOURCE,
            occurred_at=self.clock,
            received_at=self.clock,
            key=fleet.name,
            rev=offset,
            **said,
        )
        self._outputs.append(records.output(FLEET_STATES, record, self.partition))

    def _state(self, fleet: Fleet) -> dict[str, Any]:
        breaker = fleet.breaker(self._policies.of(fleet.name))
        state = breaker.state(self.clock)
        return {
            "runners": fleet.counts(),
            "pending": len(fleet.pending),
            "in_flight": fleet.in_flight(self.clock),
            "issued_hour": fleet.issued_since(self.clock - HOUR_MS),
            "breaker": state,
            "breaker_until": breaker.opened_until if state is BreakerState.OPEN else None,
            "mode": self.mode(fleet.name),
            "switch": thrown(self.switches, fleet.name),
        }

    # -- acting --------------------------------------------------------------------------------

    def _expire(self, fleet: Fleet) -> None:
        """End the commands that nobody has done in time."""
        for command in fleet.overdue(self.clock):
            ending = records.expired(command, fleet.name, self.clock)
            self._record(ending)
            self._on_ending(ending)

    def _find_silent(self, fleet: Fleet) -> None:
        """Runners that hold a job and are not heard of any more are lost.

        But not when the whole fleet is silent: it is then we who hear nothing.
        """
        if not any(self.clock - each.seen <= ALIVE_MS for each in fleet.runners.values()):
            return
        after = self._policies.of(fleet.name).silent_after_ms
        silent: dict[str, int] = {}
        for name, runner in fleet.runners.items():
            if not is_silent(runner, self.clock, after):
                continue
            if state_of(runner, fleet.host_gone(runner)) is not RunnerState.GONE:
                silent[name] = runner.seen
                if fleet.silent.get(name) != runner.seen:
                    # Known when it is read, as by a rebuild: nothing is done about it here.
                    self._record(records.silent(fleet.name, name, runner.seen, after))
        fleet.silent = silent

    def _dispose_all(self) -> None:
        """Decide what waits, over all fleets: what is stuck for longest comes first."""
        waiting = [
            (proposal.since, fleet.name, job)
            for fleet in self.fleets.values()
            for job, proposal in fleet.pending.items()
        ]
        for _, name, job in sorted(waiting):
            fleet = self.fleets[name]
            self._dispose(fleet, fleet.pending[job])

    def _dispose(self, fleet: Fleet, proposal: Proposal) -> None:
        """Issue the command, or withhold it: which is said once for each reason."""
        if self.now is None or self.now - proposal.occurred_at > FRESH_MS:
            return
        policy = self._policies.of(fleet.name)
        mode, at = self.mode(fleet.name), self.clock
        why = why_not(fleet, proposal.job_key, policy, mode, at, self._in_tick)
        expires_at = at + policy.command_ttl_ms
        decided = records.decision(proposal, fleet.name, at, expires_at, why)
        if self._was_told(fleet, decided):
            return
        # First the decision: dying between them, a command is lost rather than sent twice.
        self._record(decided)
        self._on_decision(decided)
        if why is None or why is Why.DRY_RUN:
            dry_run = why is not None
            self._outputs.append(
                records.proposed_command(proposal, fleet.name, at, expires_at, dry_run)
            )

    def _wake(self, fleet: Fleet) -> None:
        """Wake a fleet that has idle runners and jobs that wait: once a cool-down."""
        policy, at = self._policies.of(fleet.name), self.clock
        found = self._starving(fleet)
        cool = at - policy.wake_after_ms
        if found is None or any(each.occurred_at > cool for each in fleet.issued_for("")):
            return
        waiting, since, idle = found
        why = why_not(fleet, "", policy, self.mode(fleet.name), at, self._in_tick)
        woken = records.wake_id(fleet.name, at, policy.wake_after_ms)
        expires_at = at + policy.command_ttl_ms
        decided = records.wake_decision(fleet.name, woken, since, at, expires_at, why)
        if decided.command_id in fleet.issued or self._was_told(fleet, decided):
            return
        self._record(decided)
        self._on_decision(decided)
        if why is None or why is Why.DRY_RUN:
            seen, name = max(idle)
            evidence = (
                Seen(what=f"{waiting} jobs queued, the oldest since then", at=since),
                Seen(what=f"{len(idle)} idle runners, {name} last seen", at=seen, clock="runner"),
            )
            self._outputs.append(records.wake_command(decided, expires_at, evidence))

    def _starving(self, fleet: Fleet) -> tuple[int, int, list[tuple[int, str]]] | None:
        """Jobs that wait, since when, and the idle runners; None unless there are both."""
        at = self.clock
        queued = [each for each in fleet.depth.values() if each.queued]
        since = min((each.since for each in queued if each.since is not None), default=at)
        if at - since <= self._policies.of(fleet.name).wake_after_ms:
            return None
        idle = [
            (runner.seen, name)
            for name, runner in list(fleet.runners.items())
            if at - runner.seen <= IDLE_MS
            and state_of(runner, fleet.host_gone(runner)) is RunnerState.IDLE
        ]
        return (sum(each.queued for each in queued), since, idle) if idle else None

    def _was_told(self, fleet: Fleet, decided: Decision) -> bool:
        """Whether this is withheld, and was for this reason before."""
        if decided.withheld is None:
            return False
        told = fleet.told.get(told_name(decided.command_id, decided.n, decided.k))
        return told is not None and decided.withheld.value in told.why

    def _record(self, record: Decision | Ending | RunnerSeen) -> None:
        """Put a record of our own into the log that we fold."""
        self._outputs.append(records.output(FLEETS, record, self.partition))

    # -- things by name ------------------------------------------------------------------------

    def _fleet(self, name: str) -> Fleet:
        fleet = self.fleets.get(name)
        if fleet is None:
            fleet = self.fleets[name] = Fleet(name)
        return fleet

    def _put(self, fleet: Fleet, part: str, name: str, value: object) -> None:
        getattr(fleet, part)[name] = value
        self._touch(fleet, part, name)

    def _drop(self, fleet: Fleet, part: str, name: str) -> None:
        del getattr(fleet, part)[name]
        self._touch(fleet, part, name)

    def _touch(self, fleet: Fleet, part: str, name: str) -> None:
        self._dirty[part, fleet.name, name] = None
        if part == "runners":
            fleet.runner_changed(name)
        elif part == "hosts":
            fleet.host_changed(name)
        elif part in ("issued", "endings"):
            fleet.changed()

    def _known(self, part: str, fleet: str, name: str) -> object | None:
        """A thing as it is now; None when it was dropped."""
        if part == rows.SWITCHES:
            return self.switches.get(name)
        known = self.fleets.get(fleet)
        return getattr(known, part).get(name) if known else None

    def _note(self, metric: metrics.Counter[Any], labels: tuple[str, ...]) -> None:
        self._notes[metric, labels] += 1
