"""A world in which jobs get stuck, in every way that recovery is for, and stay so until a command
of its dispatcher frees them, or somebody asks GitHub.

What is true of each is kept (:class:`Stuck`), so that it can be said of every command whether it
hit a job that was alive, and of every stuck job whether it was freed. What goes wrong is drawn from
a generator of its own. All of it may be used from several threads: the world goes on in one, while
others bring commands or ask what is.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from pipeline.simulate.fleet import Event, Fleet, SimJob, SimRun, World, _Floor
from topics.recovery import CommandKind, Result, StallKind


class Cause(StrEnum):
    """Why a job is stuck."""

    #: Its end was lost: GitHub has it completed, and nobody was told.
    LOST_COMPLETED = "lost_completed"
    #: Its dispatcher never heard that it is queued.
    MISSED = "missed"
    #: A runner was made for it and never registered.
    ORPHAN = "orphan"
    #: Its run failed at start-up, and its jobs stay queued for ever.
    GHOST = "ghost"
    #: The machine of its runner died before it registered.
    HOST_GONE = "host_gone"
    #: Its start was lost, by webhook and by the runner's own word. It lives: it must not be hit.
    LOST_STARTED = "lost_started"
    #: Its runner was given another job.
    DISPLACED = "displaced"
    #: Claimed by a dispatcher that died before it made a runner.
    STALE_CLAIM = "stale_claim"
    #: An orphan of which only the dispatcher has told: the ``queued`` was lost.
    LOST_QUEUED = "lost_queued"


_CLAIMED: Final = frozenset(
    {StallKind.STALE_CLAIM, StallKind.ORPHAN, StallKind.DISPLACED, StallKind.RUNNER_LOST}
)
#: What each must be found as. Of a claim's also as another kind, for the record that tells them
#: apart may be late.
FOUND_AS: Final = {
    **dict.fromkeys(Cause, _CLAIMED),
    **dict.fromkeys((Cause.MISSED, Cause.GHOST), frozenset({StallKind.STALE_QUEUE})),
    Cause.LOST_COMPLETED: frozenset({StallKind.MISSED_COMPLETION}),
}
_ON_CLAIM: Final = (
    *(Cause.LOST_COMPLETED, Cause.ORPHAN, Cause.HOST_GONE, Cause.LOST_STARTED),
    *(Cause.DISPLACED, Cause.STALE_CLAIM),
)
#: What is not told of a job.
_LOST: Final = {
    Cause.LOST_COMPLETED: ("completed",),
    Cause.LOST_STARTED: ("in_progress", "job.started"),
    Cause.LOST_QUEUED: ("queued",),
}
#: A job whose start was lost runs at least so long, so that it is missed; one whose end was lost
#: at most so long, so that somebody sees it found. ms.
_LONG_MS: Final = 45_000
_SHORT_MS: Final = 12_000
#: Jobs of a run that fails at its start-up, at most: each of them is stuck.
_SMALL: Final = 4
#: How long after a runner was made its host is missed. ms.
_MISSED_MS: Final = (3_000, 8_000)


@dataclass(frozen=True)
class Stalls:
    """What gets stuck: of every cause in turn.

    Attributes:
        every_s: from one to the next, on average, in seconds.
        until_s: none after this, in seconds from the start; None: as long as jobs arrive.
        queues: fleets in which a job may be missed or a ghost: those whose queues are watched.
        causes: which ones there are, in this order.
    """

    every_s: float = 5.0
    until_s: float | None = None
    queues: frozenset[str] = frozenset()
    causes: tuple[Cause, ...] = tuple(Cause)


@dataclass
class Stuck:
    """A job that is stuck, or was. Times in ms."""

    job_id: int
    fleet: str
    cause: Cause
    #: Since when nothing happens to it by itself.
    at: int
    #: When a command freed it, or GitHub was asked and told.
    freed_at: int | None = None


class Hit(NamedTuple):
    """A command that was done to a job that was alive."""

    job_id: int
    command: str
    at: int


@dataclass
class Books:
    """What became of commands."""

    #: By command id: how it was answered the first time, and how often it was brought.
    answers: dict[str, tuple[Result, str]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    hits: list[Hit] = field(default_factory=list)


class StuckWorld(World):
    """The world, with jobs that get stuck and a dispatcher that obeys."""

    def __init__(self, seed: int, *args: Any, stalls: Stalls, **options: Any) -> None:
        super().__init__(seed, *args, **options)
        self._chance = random.Random(f"stalls {seed}")
        self._stalls = stalls
        #: When the turn of each cause is: it takes the first job after that to which it can happen.
        self._turns = {
            cause: self._begin + int(place * stalls.every_s * 1000)
            for place, cause in enumerate(stalls.causes)
        }
        self._last = None if stalls.until_s is None else self._begin + int(stalls.until_s * 1000)
        #: Held while something happens, and by whoever asks.
        self.lock = threading.RLock()
        self.jobs: dict[int, SimJob] = {}
        self.runs: dict[int, SimRun] = {}
        #: By job.
        self.stuck: dict[int, Stuck] = {}
        #: What will happen to jobs to which it has not happened yet.
        self._to_come: dict[int, Cause] = {}
        self.books = Books()

    def execute(self, command_id: str, command: dict[str, Any], now: int) -> tuple[Result, str]:
        """What the dispatcher does about a command: once for each id. ``now`` in ms."""
        with self.lock:
            self.books.calls[command_id] += 1
            known = self.books.answers.get(command_id)
            if known is None:
                known = self._obey(command, max(now, self.now))
                self.books.answers[command_id] = known
            return known

    def told(self, job_id: int) -> None:
        """GitHub was asked about a job and told how it is."""
        with self.lock:
            stuck = self.stuck.get(job_id)
            if stuck is None or stuck.freed_at is not None:
                return
            job = self.jobs[job_id]
            learnt = {
                Cause.LOST_COMPLETED: job.completed is not None,
                Cause.LOST_STARTED: job.started is not None,
                Cause.GHOST: job.run.completed is not None,
            }
            if learnt.get(stuck.cause, False):
                stuck.freed_at = max(self.now, stuck.at)

    # --- commands -----------------------------------------------------------------------------

    def _obey(self, command: dict[str, Any], at: int) -> tuple[Result, str]:
        if command["expires_at"] <= at:
            return Result.REFUSED, "expired"
        kind = command["command"]
        if kind == CommandKind.WAKE_FLEET:
            return Result.DONE, "looked_for_work"
        number = str(command["job_key"]).rpartition(":")[2]
        job = self.jobs.get(int(number)) if number.isdecimal() else None
        if job is None:
            return Result.CANNOT, "unknown_job"
        if job.claim != command["fence"]["claim"]:
            return Result.REFUSED, "claim_changed"
        if command["reason"] == StallKind.STALE_CLAIM and job.minted:
            # It knows better, and says so again: that must have been lost.
            self._tell(at, "job.minted", job.run, job, job.claim, job.minted)
            return Result.REFUSED, "minted"
        if kind == CommandKind.QUARANTINE:
            return Result.DONE, ""
        if job.completed is None and (job.coming or job.started is not None):
            self.books.hits.append(Hit(job.id, kind, at))
            return Result.DONE, ""
        self._free(job, kind, at)
        return Result.DONE, ""

    def _free(self, job: SimJob, kind: str, at: int) -> None:
        """Give up its claim, and have it executed by another runner unless it is over."""
        again = bool(job.claim)
        if again:
            self._tell(at, "claim.released", job.run, job, job.claim, "", "recovery")
            job.claim = job.minted = ""
        stuck = self.stuck.get(job.id)
        if stuck is not None and stuck.freed_at is None:
            stuck.freed_at = at
            again |= stuck.cause is Cause.MISSED
        over = job.completed is not None or job.run.conclusion == "startup_failure"
        if again and not over and kind != CommandKind.CLOSE:
            floor = self._floors[job.fleet.name]
            floor.queue.appendleft(job)
            self._assign(at, floor)

    # --- what goes wrong ----------------------------------------------------------------------

    def _step(self, arrivals: Iterator[tuple[int, int]]) -> list[Event] | None:
        with self.lock:
            return super()._step(arrivals)

    def _new_job(self, run: SimRun, name: str, fleet: Fleet, at: int) -> SimJob:
        job = super()._new_job(run, name, fleet, at)
        self.jobs[job.id] = job
        self.runs[run.id] = run
        return job

    def _fails_at_once(self, at: int, fleet: Fleet, size: int) -> bool:
        watched = fleet.name in self._stalls.queues
        return watched and size <= _SMALL and self._turn(at, (Cause.GHOST,)) is not None

    def _haunt(self, at: int, job: SimJob) -> None:
        if job.fleet.name in self._stalls.queues:
            self._stick(at, job, Cause.GHOST)
        super()._haunt(at, job)

    def _create(self, at: int, job: SimJob, silent: bool = False) -> None:
        if job.fleet.dispatcher and not job.gated and not silent:
            watched = job.fleet.name in self._stalls.queues
            possible = (Cause.LOST_QUEUED, Cause.MISSED) if watched else (Cause.LOST_QUEUED,)
            cause = self._turn(at, possible)
            if cause is not None:
                self._to_come[job.id] = cause
        super()._create(at, job, silent)

    def _line_up(self, at: int, job: SimJob) -> None:
        if self._to_come.get(job.id) is Cause.MISSED:
            self._stick(at, job, Cause.MISSED)
        else:
            super()._line_up(at, job)

    def _goes_wrong(
        self, at: int, floor: _Floor, job: SimJob, runner: str, mint: int, start: int
    ) -> bool:
        if job.id in self.stuck:
            return False
        cause = self._to_come.get(job.id)
        if cause is None:
            # The runner can only be given to another job that waits.
            possible = (each for each in _ON_CLAIM if floor.queue or each is not Cause.DISPLACED)
            cause = self._turn(at, tuple(possible))
        if cause is None:
            return False
        if cause in (Cause.LOST_COMPLETED, Cause.LOST_STARTED):
            self._to_come[job.id] = cause
            return False
        self._stick(at, job, cause)
        if cause is not Cause.STALE_CLAIM:
            self._later(mint, self._mint, job, job.claim, runner)
        if cause is Cause.HOST_GONE:
            gone = mint + self._chance.randrange(*_MISSED_MS)
            self._later(gone, self._tell, "host.gone", job.run, job, "", runner)
        if cause is Cause.DISPLACED:
            other = floor.queue.popleft()
            other.coming = True
            self._later(start, self._start, other, runner, "")
        else:
            self._later(start, self._replace_runner, floor)
        return True

    def _end_of(self, at: int, job: SimJob, end: int) -> int:
        cause = self._to_come.get(job.id)
        if cause is Cause.LOST_STARTED:
            self._stick(at, job, cause)
            return max(end, at + _LONG_MS)
        return min(end, at + _SHORT_MS) if cause is Cause.LOST_COMPLETED else end

    def _end(self, at: int, job: SimJob, conclusion: str) -> None:
        if self._to_come.get(job.id) is Cause.LOST_COMPLETED:
            self._stick(at, job, Cause.LOST_COMPLETED)
        super()._end(at, job, conclusion)

    def _tell(
        self, at: int, kind: str, run: SimRun, job: SimJob | None = None, *more: Any, **told: Any
    ) -> None:
        cause = None if job is None else self._to_come.get(job.id)
        if cause is None or kind not in _LOST.get(cause, ()):
            super()._tell(at, kind, run, job, *more, **told)

    def is_picked(self, job: SimJob | None) -> bool:
        """Whether it is or will be stuck: then nothing is lost of it but what its cause says,
        for what is to be found must be findable."""
        return job is not None and (job.id in self.stuck or job.id in self._to_come)

    # --- whose turn it is ---------------------------------------------------------------------

    def _turn(self, at: int, possible: tuple[Cause, ...]) -> Cause | None:
        """What goes wrong now, of what is possible: what has waited longest; mostly nothing."""
        if self._last is not None and at > self._last:
            return None
        due = [each for each in possible if self._turns.get(each, at + 1) <= at]
        if not due:
            return None
        cause = min(due, key=lambda each: self._turns[each])
        round_ms = len(self._turns) * self._stalls.every_s * 1000
        self._turns[cause] = at + int(round_ms * self._chance.uniform(0.7, 1.3))
        return cause

    def _stick(self, at: int, job: SimJob, cause: Cause) -> None:
        self.stuck[job.id] = Stuck(job.id, job.fleet.name, cause, at)
