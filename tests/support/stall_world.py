"""A day of a CI fleet in which everything goes wrong that recovery is for, and the truth about it.

Both folds are the real ones, over logs in memory; provider, dispatcher and executor are played,
each with a memory of what is true. So it can be said of every command whether it hit a job that
was alive, and of every stuck job whether it was recovered. No clock but the world's own.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from pipeline.effects import Effects
from pipeline.executor.fence import State, judge
from pipeline.fleet import FleetLedger
from pipeline.fleet.policy import FleetPolicy
from pipeline.fleet.policy import Policies as FleetPolicies
from pipeline.ledger import Ledger
from pipeline.providers.lifecycle import fleet_record, lifecycle_fact
from pipeline.providers.outcomes import fleet_record as ending_of
from pipeline.providers.outcomes import job_facts
from pipeline.recovery import Policies, RecoveryPolicy
from topics.catalogue import COMMANDS, FLEETS, JOBS, PROBES
from topics.models import (
    FLEETS_RECORD,
    JOBS_RECORD,
    Clock,
    Conclusion,
    JobAttributes,
    JobFact,
    LifecycleEvent,
    LifecycleKind,
    Milestone,
    RunnerRef,
    Tick,
)
from topics.recovery import (
    COMMAND,
    PROBE,
    Answer,
    Answered,
    Command,
    CommandKind,
    Mode,
    Outcome,
    Probe,
    Result,
    StallFact,
)
from topics.tables import FLEETS_TABLE, JOBS_TABLE, WINDOWS_TABLE

BASE: Final = 1_700_000_000_000
SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000
PARTITIONS: Final = 2
FLEETS_OF: Final = ("linux", "macos", "gpu")

#: What goes wrong with a job. Healthy ones are the rest.
FAULTS: Final = (
    "orphan", "stale_claim", "host_gone", "displaced", "missed_by_autoscaler", "ghost",
    "lost_completed", "lost_in_progress", "lost_queued", "runner_dies",
)  # fmt: skip
#: Of a job with one of these a runner must not be taken away: it lives.
ALIVE: Final = frozenset({"pending", "running"})


@dataclass
class Truth:
    """What is true of one job. ``state``: queued, claimed, pending (its runner is coming),
    running, stuck (nothing will happen to it by itself), over."""

    key: str
    fleet: str
    fault: str
    run_ms: int
    state: str = "queued"
    claims: int = 0
    stuck_at: int | None = None
    freed_at: int | None = None
    started_at: int | None = None
    ended_at: int | None = None
    run_over: bool = False
    #: What was done to it: command, whether it was alive then.
    hits: list[tuple[str, bool]] = field(default_factory=list)


class Part:
    """One partition of a log with its ledger and table; it can be killed, and can lag."""

    def __init__(self, make: Callable[[dict[bytes, bytes]], Any], tables: tuple[str, ...]) -> None:
        self._make = make
        self._tables = tables
        self.log: list[tuple[Any, int]] = []
        self.table: dict[bytes, bytes] = {}
        self.panes: dict[bytes, bytes] = {}
        self.read = 0
        self.lives = 0
        self.asleep_until = 0
        self.ledger = self.open(BASE)

    def open(self, now: int) -> Any:
        self.lives += 1
        self.ledger = self._make(self.table)
        self.ledger.now = now
        self.ledger.me = f"life-{self.lives}"
        held = {self._tables[0]: self.table, WINDOWS_TABLE.name: self.panes}
        self.ledger.load({name: list(held[name].items()) for name in self._tables})
        return self.ledger

    def fold(self, now: int, durable: bool = True) -> Effects:
        """Fold what is new. Not ``durable``: what is published is, and the tables are not."""
        self.ledger.now = now
        for offset in range(self.read, len(self.log)):
            record, written = self.log[offset]
            self.ledger.apply(offset, record, written)
        end = len(self.log)
        effects: Effects = self.ledger.flush()
        if durable:
            self.keep(effects)
            self.ledger.written()
            self.read = end
        return effects

    def keep(self, effects: Effects) -> None:
        for name, held in ((self._tables[0], self.table), (WINDOWS_TABLE.name, self.panes)):
            for key, value in effects.tables.get(name, ()):
                if value is None:
                    held.pop(key, None)
                else:
                    held[key] = value


class World:
    """``jobs`` jobs in ``hours`` hours; ``faulty`` is the share of each fault.

    ``kill_every`` steps a partition is killed; ``lag`` lets each sleep for half an hour once.
    """

    def __init__(
        self,
        seed: int,
        jobs: int,
        hours: float,
        *,
        faulty: float = 0.05,
        kill_every: int = 0,
        lag: bool = False,
        step_s: int = 15,
    ) -> None:
        self.chance = Random(seed)
        self.now = BASE
        self.end = BASE + int(hours * HOUR)
        self.step = step_s * SECOND
        self.kill_every = kill_every
        self.count: Counter[str] = Counter()
        self.truth: dict[str, Truth] = {}
        self.done: dict[str, str] = {}
        self.probes: list[Probe] = []
        self.commands: list[Command] = []
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._n = 0
        policies = Policies(RecoveryPolicy())
        rules = FleetPolicies(FleetPolicy(mode=Mode.LIVE, per_hour=2_000))
        self.parts = {
            JOBS: [
                Part(
                    lambda table, p=p: Ledger(p, table.get, policies=policies),  # type: ignore[misc]
                    (JOBS_TABLE.name, WINDOWS_TABLE.name),
                )
                for p in range(PARTITIONS)
            ],
            FLEETS: [
                Part(lambda table, p=p: FleetLedger(p, rules), (FLEETS_TABLE.name,))  # type: ignore[misc]
                for p in range(PARTITIONS)
            ],
        }
        self.adapters = {JOBS: JOBS_RECORD, FLEETS: FLEETS_RECORD}
        self.outages = [self._window(hours, 20 * MINUTE) for _ in range(int(hours / 4) + 1)]
        self.deaf = [self._window(hours, 10 * MINUTE) for _ in range(int(hours / 8) + 1)]
        if lag:
            for part in (*self.parts[JOBS], *self.parts[FLEETS]):
                start = BASE + self.chance.randrange(int(hours * HOUR))
                self.at(start, lambda part=part: self._sleep(part))  # type: ignore[misc]
        span = int((hours - 3) * HOUR)
        for n in range(jobs):
            fault = "healthy"
            if self.chance.random() < faulty * len(FAULTS):
                fault = self.chance.choice(FAULTS)
            when = BASE + MINUTE + self.chance.randrange(span)
            self.at(when, lambda n=n, f=fault: self._arrive(n, f))  # type: ignore[misc]

    # -- the machinery -------------------------------------------------------------------------

    def at(self, when: int, what: Callable[[], None]) -> None:
        self._n += 1
        heapq.heappush(self._agenda, (when, self._n, what))

    def soon(self, low_s: float, high_s: float, what: Callable[[], None]) -> None:
        self.at(self.now + int(self.chance.uniform(low_s, high_s) * SECOND), what)

    def run(self) -> None:
        """The whole day, and then time for what is under way."""
        steps = 0
        while self.now < self.end:
            until = self.now + self.step
            while self._agenda and self._agenda[0][0] <= until:
                self.now, _, what = heapq.heappop(self._agenda)
                what()
            self.now = until
            self._tick()
            steps += 1
            if self.kill_every and steps % self.kill_every == 0:
                topic = self.chance.choice((JOBS, FLEETS))
                part = self.chance.choice(self.parts[topic])
                if self.now >= part.asleep_until:
                    self._publish(part.fold(self.now, durable=self.chance.random() < 0.5))
                    part.open(self.now)
                    self.count["kills"] += 1
            for _ in range(2):  # facts about jobs reach fleets, and theirs the jobs, within a step
                for topic in (JOBS, FLEETS):
                    for part in self.parts[topic]:
                        if self.now >= part.asleep_until and part.read < len(part.log):
                            self._publish(part.fold(self.now))

    def _tick(self) -> None:
        for topic, parts in self.parts.items():
            for n, part in enumerate(parts):
                tick = Tick(
                    id=f"t{self.now}", source="t", key=f"tick:{n}", occurred_at=self.now,
                    received_at=self.now, by=part.ledger.me, sources_to=self.now - SECOND,
                )  # fmt: skip
                part.log.append((tick, self.now))
                self.count[f"ticks of {topic}"] += 1

    def _sleep(self, part: Part) -> None:
        part.asleep_until = self.now + 30 * MINUTE
        self.count["lags"] += 1

    def _window(self, hours: float, most: int) -> tuple[int, int]:
        start = BASE + self.chance.randrange(int(hours * HOUR))
        return start, start + self.chance.randrange(most)

    def _within(self, windows: list[tuple[int, int]]) -> bool:
        return any(start <= self.now < end for start, end in windows)

    def _post(self, topic: str, key: str, record: Any) -> None:
        # Crc-like, stable over runs: the day must be the same for a seed.
        self.parts[topic][sum(key.encode()) % PARTITIONS].log.append((record, self.now))

    def _publish(self, effects: Effects) -> None:
        for output in effects.outputs:
            if output.value is None:
                continue
            if output.topic in self.parts:
                record = self.adapters[output.topic].validate_json(output.value)
                if output.partition is None:
                    self._post(output.topic, output.key.decode(), record)
                else:
                    self.parts[output.topic][output.partition].log.append((record, self.now))
            elif output.topic == PROBES:
                probe = PROBE.validate_json(output.value)
                self.probes.append(probe)
                self.soon(0.5, 20, lambda p=probe: self._answer(p))  # type: ignore[misc]
            elif output.topic == COMMANDS:
                command = COMMAND.validate_json(output.value)
                self.commands.append(command)
                self.soon(0.5, 20, lambda c=command: self._execute(c))  # type: ignore[misc]

    def _fact(self, of: Truth, cause: str, **said: Any) -> None:
        self._n += 1
        self._post(
            JOBS,
            of.key,
            JobFact(
                id=f"{cause}|{of.key}|{self._n}", source="t", occurred_at=self.now,
                received_at=self.now, key=of.key, cause=cause, **said,
            ),
        )  # fmt: skip

    def _event(self, job: Truth, kind: LifecycleKind, runner: str = "", **more: Any) -> None:
        self._n += 1
        event = LifecycleEvent(
            id=f"{kind.value}|{self._n}", kind=kind, source="dispatcher", occurred_at=self.now,
            received_at=self.now, key=job.key, job_id=job.key.rpartition(":")[2], fleet=job.fleet,
            runner=RunnerRef(name=runner), **more,
        )  # fmt: skip
        if not kind.value.startswith(("runner.", "host.")):
            self._post(JOBS, job.key, lifecycle_fact(event))
        record = fleet_record(event, str)
        if record is not None:
            self._post(FLEETS, record.key, record)

    # -- the life of a job ---------------------------------------------------------------------

    def _arrive(self, n: int, fault: str) -> None:
        fleet = self.chance.choice(FLEETS_OF)
        job = Truth(f"github:github.com:{n + 1}", fleet, fault, self.chance.randrange(50 * MINUTE))
        self.truth[job.key] = job
        self.count[fault] += 1
        if fault != "lost_queued":
            self._fact(
                job, "workflow_job.queued",
                times={Milestone.QUEUED: {Clock.PROVIDER: self.now}}, marks=((self.now, "queued"),),
                job=JobAttributes(run_id=n + 1, run_attempt=1, repo="o/r", pool=fleet),
            )  # fmt: skip
        if fault == "missed_by_autoscaler":
            self._stuck(job)
        elif fault == "ghost":
            job.run_over = True
            self._stuck(job)
        else:
            self.soon(1, 30, lambda: self._claim(job))

    def _stuck(self, job: Truth) -> None:
        job.state, job.stuck_at = "stuck", self.now

    def _free(self, job: Truth) -> None:
        if job.stuck_at is not None and job.freed_at is None:
            job.freed_at = self.now

    def _claim(self, job: Truth) -> None:
        if job.state not in ("queued", "stuck"):
            return
        job.claims += 1
        first = job.claims == 1
        handle, runner = f"h{job.claims}", f"vm-{job.key.rpartition(':')[2]}-{job.claims}"
        job.state = "claimed"
        self._event(job, LifecycleKind.JOB_CLAIMED, runner, claim=handle)
        if job.fault == "stale_claim" and first:
            self._stuck(job)
            return
        self._event(job, LifecycleKind.JOB_MINTED, runner, claim=handle)
        if first and job.fault in ("orphan", "host_gone", "displaced"):
            self._stuck(job)
            if job.fault == "host_gone":
                self.soon(20, 60, lambda: self._event(job, LifecycleKind.RUNNER_GONE, runner))
            if job.fault == "displaced":
                number = job.key.rpartition(":")[2]
                other = Truth(f"github:github.com:other-{number}", job.fleet, "", 0)
                self.soon(2, 10, lambda: self._event(other, LifecycleKind.JOB_STARTED, runner))
            return
        job.state = "pending"
        self.soon(5, 60, lambda: self._start(job, runner))

    def _start(self, job: Truth, runner: str) -> None:
        if job.state != "pending":
            return
        job.state, job.started_at = "running", self.now
        if job.fault != "lost_in_progress":
            self._started(job, runner)
        if job.fault == "runner_dies":
            self.soon(10, 60, lambda: self._event(job, LifecycleKind.RUNNER_GONE, runner))
            # GitHub notices after some ten minutes.
            self.soon(600, 900, lambda: self._complete(job, Conclusion.FAILURE))
        else:
            self.at(self.now + job.run_ms, lambda: self._complete(job, Conclusion.SUCCESS))

    def _started(self, job: Truth, runner: str = "") -> None:
        self._fact(
            job, "workflow_job.in_progress",
            times={Milestone.STARTED: {Clock.PROVIDER: job.started_at}},
            runner=RunnerRef(name=runner or f"vm-{job.key.rpartition(':')[2]}-{job.claims}"),
        )  # fmt: skip

    def _complete(self, job: Truth, conclusion: Conclusion) -> None:
        if job.state != "running":
            return
        job.state, job.ended_at = "over", self.now
        if job.fault == "lost_completed":
            job.stuck_at = self.now
        else:
            self._completed(job, conclusion)

    def _completed(self, job: Truth, conclusion: Conclusion = Conclusion.SUCCESS) -> None:
        self._fact(
            job, "workflow_job.completed",
            times={Milestone.COMPLETED: {Clock.PROVIDER: job.ended_at}}, conclusion=conclusion,
        )  # fmt: skip

    # -- provider and executor -----------------------------------------------------------------

    def _answer(self, probe: Probe) -> None:
        job = self.truth.get(probe.key)
        answer = Answer.UNKNOWN
        roll = self.chance.random()
        # Down, limited, or lying: a 404 of a job whose run is open proves nothing.
        if job is None or self._within(self.outages) or roll < 0.15:
            self.count["useless answers"] += 1
        elif job.state == "running":
            self._started(job)
            answer = Answer.IN_PROGRESS
        elif job.state == "over":
            self._completed(job)
            self._free(job)
            answer = Answer.COMPLETED
        else:
            answer = Answer.GHOST if job.run_over else Answer.QUEUED
        self._n += 1
        stall = StallFact(
            n=probe.n, kind=probe.stall, since=probe.since, opened_at=probe.opened_at,
            fence=probe.fence, answered=Answered(k=probe.k, at=self.now, answer=answer),
        )  # fmt: skip
        fact = JobFact(
            id=f"{probe.id}:answered", source="t", occurred_at=self.now, received_at=self.now,
            key=probe.key, cause="recovery.answered", stall=stall,
        )  # fmt: skip
        self._post(JOBS, probe.key, fact)

    def _execute(self, command: Command) -> None:
        if command.dry_run or command.id in self.done:
            self.count["seen before"] += 1
            return
        if self._within(self.deaf):
            return  # nobody is there: it expires
        if self.now > command.expires_at:
            return
        self.done[command.id] = ""
        result = Result.DONE
        if command.job_key:
            part = self.parts[JOBS][sum(command.job_key.encode()) % PARTITIONS]
            known = part.ledger.job(command.job_key)
            if known is None:
                result = Result.FAILED
            else:
                facts, view = known
                live = frozenset(h for h, c in facts.claims.items() if c.released_at is None)
                ruling = judge(command, State(view.status, len(facts.facts), live))
                if ruling.refused:
                    result = Result.REFUSED
                elif ruling.unknown or self.chance.random() < 0.05:
                    result = Result.FAILED
                else:
                    self._hit(self.truth[command.job_key], command)
        self.count[f"{command.command.value} {result.value}"] += 1
        self._n += 1
        outcome = Outcome(
            id=f"o{self._n}", kind="command.ended", source="t", occurred_at=self.now,
            received_at=self.now, key=command.key, command_id=command.id, command=command.command,
            fleet=command.fleet, job_key=command.job_key, attempt=command.attempt, n=command.n,
            stall=command.reason, since=command.since, opened_at=command.opened_at,
            fence=command.fence, result=result,
        )  # fmt: skip
        for fact in job_facts(outcome):
            self._post(JOBS, fact.key, fact)
        ending = ending_of(outcome)
        if ending is not None:
            self._post(FLEETS, ending.key, ending)

    def _hit(self, job: Truth, command: Command) -> None:
        """The dispatcher does what it is told."""
        kind = command.command
        job.hits.append((kind.value, job.state in ALIVE))
        if kind is CommandKind.QUARANTINE:
            self.count["left to a person"] += 1
            return
        self._free(job)
        if kind is CommandKind.CLOSE or job.run_over:
            job.state = "over"
        elif job.state in ("stuck", "claimed"):
            job.state = "queued"
            self.soon(1, 30, lambda: self._claim(job))

    # -- what came of it -----------------------------------------------------------------------

    def healthy_hits(self) -> list[str]:
        """Jobs that lived when they were hit."""
        return [job.key for job in self.truth.values() if any(alive for _, alive in job.hits)]

    def stuck(self) -> list[Truth]:
        """Jobs that were stuck and still are."""
        return [
            job for job in self.truth.values() if job.stuck_at is not None and job.freed_at is None
        ]

    def waits(self) -> list[int]:
        """How long each stuck job was stuck, ms."""
        return [
            job.freed_at - job.stuck_at
            for job in self.truth.values()
            if job.stuck_at is not None and job.freed_at is not None
        ]
