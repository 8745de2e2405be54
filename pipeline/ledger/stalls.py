"""Stalls: which jobs of the partition are to be looked at by a rule, and what it leads to."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from pipeline import metrics
from pipeline.effects import Output
from pipeline.jobs import Job, View
from pipeline.jobs.facts import Claim
from pipeline.jobs.record import Summary, is_watched
from pipeline.jobs.stalls import Stall, told_rev
from pipeline.ledger.entries import Entries
from pipeline.ledger.pending import Pending
from pipeline.recovery import (
    Ask,
    Judgement,
    Policies,
    Propose,
    Tell,
    is_left,
    judge,
    next_look,
    open_stall,
)
from topics.catalogue import FLEETS, JOBS, PROBES
from topics.models import Clock, Conclusion, JobFact, Milestone, Tick
from topics.recovery import (
    Answer,
    Asked,
    CommandKind,
    Fence,
    Probe,
    Proposal,
    Proposed,
    Result,
    RunnerSeen,
    RunnerState,
    Seen,
    StallFact,
    StallKind,
)

#: A tick older than this commands nothing: who reads it is behind.
ACT_WITHIN_MS: Final = 30_000
#: Nor one sent while what producers had posted this long ago was not yet in the log.
SOURCES_WITHIN_MS: Final = 60_000
#: Jobs looked at per tick, some 40 us each with the question; the others wait for the next one.
MOST_LOOKS: Final = 1_000
#: Jobs are kept by slots of the time at which they are due.
SLOT_MS: Final = 5_000
#: What was just emitted is in the log within this time; until then the job is left alone.
HOLD_MS: Final = 30_000

_SOURCE: Final = "runnerstream"
#: For which time a job without claims may be in a status, as the policy calls it.
_PLAIN: Final = {"queued": "stale_queue_ms", "running": "running_ms"}


def acts(tick: Tick, me: str, now: int | None) -> bool:
    """Whether rules may act at this tick.

    Only at one that its own partition's owner has sent: that lies behind all that owners before
    it published, so everything they did is known. Only at a fresh one: who catches up or replays
    passes old ticks. And only when what producers posted is in the log: a missing fact that
    merely waits to be read proves nothing.
    """
    if not me or tick.by != me or now is None:
        return False
    at = tick.occurred_at
    fresh = abs(now - at) <= ACT_WITHIN_MS
    return fresh and tick.sources_to is not None and at - tick.sources_to <= SOURCES_WITHIN_MS


class OpenStall(Struct, frozen=True, gc=False):
    """The stall a job is in: its number, its kind, and since when (ms).

    One of a job that is left to a person is flapping, whatever it began as.
    """

    n: int
    kind: str
    since: int


class Stalls:
    """The deadlines of a partition's jobs: a tick costs what is due, not what is alive."""

    def __init__(
        self, partition: int, entries: Entries, pending: Pending, policies: Policies
    ) -> None:
        self._partition = partition
        self._entries = entries
        self._pending = pending
        self._policies = policies
        #: When each job is to be looked at; and the jobs by the slot of that time, with a heap of
        #: the slots. Old entries stay in theirs: most jobs move on before they are due.
        self.due: dict[str, int] = {}
        self._slots: dict[int, list[str]] = {}
        self._next: list[int] = []
        #: Heap of the (time, job) of the slots that have come: of many only some are looked at.
        self._ripe: list[tuple[int, str]] = []
        #: Until when a job is left alone, because what was emitted may not be in the log yet, and
        #: how much was told of its stalls then.
        self._held: dict[str, tuple[int, int]] = {}
        #: The jobs that are in a stall.
        self.open: dict[str, OpenStall] = {}
        #: Jobs that were called queued when they were asked about, and not looked at since; and
        #: whether nobody has been told yet that there are such.
        self._answered: dict[str, None] = {}
        self._untold = False
        #: Fleets in which jobs are claimed: only there a runner can be taken from a job.
        self._claiming: dict[str, None] = {}

    def on_load(self, key: str, known: Summary) -> None:
        """A job of the table. What its summary does not tell is found out by a look."""
        if known.watched:
            self._put(key, 0)
            found = self._entries.look(key)
            if found is not None:
                self._mark(*found)
            return
        policy = self._policies.of(known.fleet)
        since = known.since if known.since is not None else known.received_at
        wait = {
            "claimed": policy.stale_claim_ms,
            "starting": policy.orphan_ms,
            "queued": policy.stale_queue_ms,
            "running": policy.running_ms,
        }.get(known.status)
        if wait is not None:
            self._put(key, since + wait)

    def on_change(self, key: str, before: Job | None, job: Job, v: View) -> None:
        """A job is new, or is no longer as it was."""
        if job.runner is not None and (before is None or before.runner is None):
            self._seen_running(job, v)
        policy = self._policies.of(v.fleet)
        if not job.claims and not is_watched(job) and v.status in _PLAIN:
            # Nearly every look at one that nobody claims: the same answer, sooner.
            since = v.since if v.since is not None else job.first_seen
            self._put(key, since + getattr(policy, _PLAIN[v.status]))
            return
        if job.claims:
            self._claiming[v.fleet] = None
        if job.recovery is not None:
            self._mark(job, v)
        due = next_look(job, v, policy)
        if due is None:
            self.due.pop(key, None)
            return
        held = self._held.get(key)
        if held is not None:
            until, told = held
            if told_rev(job.recovery) > told or v.status == "completed":
                del self._held[key]
            else:
                due = max(due, until)
        self._put(key, due)

    def on_fact(self, key: str, fact: StallFact, before: Job | None, job: Job) -> None:
        """Something new is known of a job's stall."""
        self._count(fact, before, job)
        # Of a job that is over there is more to come: what its run says takes another way.
        if fact.answered is not None and fact.answered.answer is Answer.QUEUED:
            self._answered[key] = None
            self._untold = True

    def _count(self, fact: StallFact, before: Job | None, job: Job) -> None:
        """Count a job that is now known to be over, and a command that is done now."""
        n = str(fact.n)
        stall, known = _stalls_of(job).get(n), _stalls_of(before).get(n)
        if stall is None:
            return  # one of too many
        if _is_over(stall) and (known is None or not _is_over(known)):
            self._pending.note(metrics.RECOVERY_OVER, (stall.head.kind,))
        for attempt, ended in stall.ended.items():
            was = None if known is None else known.ended.get(attempt)
            issued = stall.issued.get(attempt)
            if issued is None or ended.result != Result.DONE:
                continue
            counted = known is not None and attempt in known.issued
            counted = counted and was is not None and was.result == Result.DONE
            if not counted and issued.command in metrics.JOB_COMMANDS:
                self._pending.note(metrics.RECOVERY_DONE, (stall.head.kind, issued.command))

    def take_answered(self) -> bool:
        """See :meth:`pipeline.ledger.Ledger.take_answered`."""
        untold, self._untold = self._untold, False
        return untold

    def on_answers(self, at: int) -> None:
        """Look at what was answered since the last tick, and is due."""
        answered, self._answered = self._answered, {}
        for key in answered:
            when = self.due.get(key)
            if when is not None and when <= at:
                self._look(key, at)

    def forget(self, key: str) -> None:
        """The job has expired."""
        self.open.pop(key, None)

    def on_tick(self, at: int) -> None:
        """Look at what is due, the oldest first."""
        self._answered.clear()
        self._untold = False
        self._ripen(at)
        looks = 0
        while self._ripe and self._ripe[0][0] <= at and looks < MOST_LOOKS:
            when, key = heapq.heappop(self._ripe)
            if self.due.get(key) == when:
                looks += self._look(key, at)
        if len(self._held) > MOST_LOOKS:
            self._held = {key: held for key, held in self._held.items() if held[0] > at}
        self._pending.note(metrics.RECOVERY_SWEEPS, ())

    def _seen_running(self, job: Job, v: View) -> None:
        """Tell the fleet of a runner that executes a job it was not made for."""
        runner = job.runner
        if runner is None or not runner.name or v.fleet not in self._claiming:
            return
        if any(claim.runner == runner.name for claim in job.claims.values()):
            return
        at = v.since if v.since is not None else job.first_seen
        seen = RunnerSeen(
            id=f"busy|{job.key}|{runner.name}",
            source=_SOURCE,
            occurred_at=at,
            received_at=at,
            key=v.fleet,
            runner=runner.name[:256],
            state=RunnerState.BUSY,
            job_key=job.key,
        )
        self._publish(FLEETS, v.fleet, seen)

    def _mark(self, job: Job, v: View) -> None:
        """Know whether the job is in a stall."""
        found = open_stall(job, v, self._policies.of(v.fleet))
        if found is None:
            self.open.pop(job.key, None)
            return
        n, stall = found
        kind = StallKind.FLAPPING.value if is_left(job) else stall.head.kind
        self.open[job.key] = OpenStall(n, kind, stall.head.since)

    def _put(self, key: str, due: int) -> None:
        if self.due.get(key) == due:
            return
        self.due[key] = due
        slot = due // SLOT_MS
        keys = self._slots.get(slot)
        if keys is None:
            self._slots[slot] = [key]
            heapq.heappush(self._next, slot)
        else:
            keys.append(key)

    def _ripen(self, at: int) -> None:
        """Take what is still to be looked at from slots that have come, as many as are needed."""
        due, ripe = self.due, self._ripe
        found: list[tuple[int, str]] = []
        while self._next and self._next[0] * SLOT_MS <= at and len(ripe) + len(found) < MOST_LOOKS:
            slot = heapq.heappop(self._next)
            for key in self._slots.pop(slot):
                when = due.get(key, -1)
                if when // SLOT_MS == slot:
                    found.append((when, key))
        if len(found) > len(ripe) // 8:
            ripe += found
            heapq.heapify(ripe)
        else:
            for each in found:
                heapq.heappush(ripe, each)

    def _look(self, key: str, at: int) -> bool:
        """Look at a job; whether there is one."""
        del self.due[key]
        found = self._entries.look(key)
        if found is None:
            self._held.pop(key, None)
            return False
        job, v = found
        self._act(job, v, at, judge(job, v, at, self._policies.of(v.fleet)))
        return True

    def _act(self, job: Job, v: View, at: int, judged: Judgement) -> None:
        todo = judged.todo
        again = judged.again
        if todo is not None:
            self._held[job.key] = (at + HOLD_MS, told_rev(job.recovery))
            again = max(again or 0, at + HOLD_MS)
        if again is not None:
            self._put(job.key, again)
        if isinstance(todo, Ask):
            self._ask(job, v, at, todo)
        elif isinstance(todo, Propose):
            self._propose(job, v, at, todo)
        elif isinstance(todo, Tell):
            self._tell(job, todo)

    def _ask(self, job: Job, v: View, at: int, ask: Ask) -> None:
        policy = self._policies.of(v.fleet)
        if ask.k == 1:
            self._opened(ask.suspect.kind)
        fence = Fence(claim=ask.suspect.claim, rev=len(job.facts))
        about = job.attributes
        probe = Probe(
            id=f"probe|{job.key}|{ask.n}|{ask.k}",
            source=_SOURCE,
            occurred_at=at,
            received_at=at,
            key=job.key,
            fleet=v.fleet,
            n=ask.n,
            k=ask.k,
            stall=ask.suspect.kind,
            since=ask.suspect.since,
            opened_at=ask.opened_at,
            fence=fence,
            expires_at=at + policy.ask_ms,
            repo=about.repo,
            run_id=about.run_id,
            attempt=about.run_attempt,
        )
        self._publish(PROBES, job.key, probe)
        self._note_of(job, ask, at, "asked", fence, asked=Asked(k=ask.k, at=at))
        self._pending.note(metrics.RECOVERY_PROBES, (ask.suspect.kind.value,))

    def _propose(self, job: Job, v: View, at: int, propose: Propose) -> None:
        found = propose.suspect
        if propose.k == 1 and found.kind is StallKind.STALE_CLAIM:
            self._opened(found.kind)
        fence = Fence(claim=found.claim, rev=len(job.facts))
        proposed = Proposed(k=propose.k, at=at, command=propose.command, attempt=propose.attempt)
        about = job.attributes
        proposal = Proposal(
            id=f"proposal|{job.key}|{propose.n}|{propose.k}",
            source=_SOURCE,
            occurred_at=at,
            received_at=at,
            key=v.fleet,
            job_key=job.key,
            n=propose.n,
            stall=propose.reason,
            since=found.since,
            opened_at=propose.opened_at,
            fence=fence,
            proposed=proposed,
            evidence=evidence(job, v, propose),
            repo=about.repo,
            run_id=about.run_id,
            run_attempt=about.run_attempt,
            first_seen=job.first_seen,
        )
        self._publish(FLEETS, v.fleet, proposal)
        self._note_of(job, propose, at, "proposed", fence, proposed=proposed)
        self._pending.note(metrics.RECOVERY_PROPOSALS, (propose.command.value,))

    def _note_of(
        self, job: Job, what: Ask | Propose, at: int, cause: str, fence: Fence, **said: Any
    ) -> None:
        """The record of a decision, in the log of the job it concerns."""
        found = what.suspect
        fact = JobFact(
            id=f"{cause}|{job.key}|{what.n}|{what.k}",
            source=_SOURCE,
            occurred_at=at,
            received_at=at,
            key=job.key,
            cause=f"recovery.{cause}",
            stall=StallFact(
                n=what.n,
                kind=found.kind,
                since=found.since,
                opened_at=what.opened_at,
                fence=fence,
                **said,
            ),
        )
        self._publish(JOBS, job.key, fact)

    def _tell(self, job: Job, tell: Tell) -> None:
        """The job is over: by its run, or because its provider does not know it any more."""
        ghost = tell.answer == Answer.GHOST
        told = job.run.conclusion if job.run is not None and ghost else None
        fact = JobFact(
            id=f"over|{job.key}|{tell.n}|{tell.answer}|{tell.at}",
            source=_SOURCE,
            occurred_at=tell.at,
            received_at=tell.at,
            key=job.key,
            cause=f"recovery.{tell.answer}",
            times={Milestone.COMPLETED: {Clock.RECEIVED: tell.at}},
            conclusion=Conclusion(told) if told is not None else Conclusion.UNKNOWN,
        )
        self._publish(JOBS, job.key, fact)
        self._pending.note(metrics.RECOVERY_CLOSED, (tell.answer,))

    def _opened(self, kind: StallKind) -> None:
        self._pending.note(metrics.STALLS_OPENED, (kind.value,))

    def _publish(self, topic: str, key: str, record: Any) -> None:
        # A job's log is this one: what is said about it must come to this partition.
        partition = self._partition if topic == JOBS else None
        value = record.model_dump_json(exclude_none=True).encode()
        self._pending.outputs.append(Output(topic, partition, key.encode(), value))


def _stalls_of(job: Job | None) -> Mapping[str, Stall]:
    return {} if job is None or job.recovery is None else job.recovery.stalls


def _is_over(stall: Stall) -> bool:
    """Whether the provider's latest answer is that the job is over. That it does not know the job
    counts once it is believed."""
    if stall.answered is None:
        return False
    told = stall.answered.answer
    gone = told == Answer.GONE and stall.unknown_for() is not None
    return gone or told in (Answer.COMPLETED, Answer.GHOST)


def evidence(job: Job, v: View, propose: Propose) -> tuple[Seen, ...]:
    """What a proposal rests on: what was seen, when, by which clock."""
    seen = [Seen(what=f"status {v.status}", at=v.since, clock=_clock(v))]
    claim: Claim | None = job.claims.get(propose.suspect.claim)
    if claim is not None:
        told = (
            ("claimed", claim.claimed_at),
            ("minted", claim.minted_at),
            ("its runner executes another job", claim.displaced_at),
            ("its runner is gone", claim.lost),
        )
        seen += [Seen(what=what, at=at, clock="runner") for what, at in told if at is not None]
    answered = propose.answered
    if answered is not None:
        what = f"provider answers {answered.answer}"
        seen.append(Seen(what=what, at=answered.at, clock="received"))
    if propose.command is CommandKind.QUARANTINE:
        seen.append(Seen(what=f"commands so far: {propose.attempt - 1}"))
    return tuple(seen)


def _clock(v: View) -> str:
    at = {"queued": v.at.queued, "running": v.at.started, "completed": v.at.completed}.get(v.status)
    if at is not None and at.ms == v.since:
        return at.clock
    return "runner" if v.status in ("claimed", "starting") else ""
