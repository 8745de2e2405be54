"""The world: runner fleets, repositories and jobs, as a discrete-event simulation.

The world knows nothing of webhooks. It says what happened and when (:class:`Event`, in time
order, milliseconds since the epoch); ``wire`` says how GitHub and a dispatcher would report it.
The same seed gives the same world.

The mechanisms come from the documented behaviour of GitHub and from the issues of systems that
consume its webhooks (see the quirk list, Qn). The *rates* in :class:`Mix` are assumptions.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count
from typing import Any, Final, NamedTuple

from pipeline.simulate.origins import Origin, origin_of, repository_of

DAY_MS: Final = 86_400_000
#: GitHub's limit for one matrix.
MATRIX_LIMIT: Final = 256


@dataclass(frozen=True)
class Fleet:
    """Runners that serve one label set."""

    name: str
    #: As written in ``runs-on``.
    labels: tuple[str, ...]
    runners: int
    #: Share of the jobs, relative to the other fleets.
    weight: float = 1.0
    #: Whether a dispatcher of yours claims jobs and mints runners, and so names the pool.
    dispatcher: bool = True


@dataclass(frozen=True)
class Tempo:
    """How long things take in the world, in seconds (medians of lognormal distributions)."""

    run_s: float = 240.0
    run_sigma: float = 1.0
    gate_s: float = 600.0
    #: How long a job waits that somebody cancels before it starts.
    patience_s: float = 120.0
    #: From the end of a run until somebody re-runs it.
    rerun_s: float = 300.0
    #: From claim to mint, and from mint to start.
    mint_s: float = 0.8
    boot_s: float = 2.5
    #: From a claim that fails until its release.
    release_s: float = 8.0

    def scaled(self, factor: float) -> Tempo:
        """The same world, ``factor`` times as slow."""
        return Tempo(
            self.run_s * factor,
            self.run_sigma,
            self.gate_s * factor,
            self.patience_s * factor,
            self.rerun_s * factor,
            self.mint_s,
            self.boot_s,
            self.release_s * factor,
        )


#: For watching: queues and runs last seconds to tens of seconds.
LIVE: Final = Tempo(
    run_s=10.0, run_sigma=0.7, gate_s=12.0, patience_s=8.0, rerun_s=10.0, mint_s=0.4, boot_s=1.0
)


@dataclass(frozen=True)
class Mix:
    """Shares of jobs (unless said otherwise) to which something happens. Assumptions."""

    skipped: float = 0.15
    cancelled_before_start: float = 0.02
    gated: float = 0.02
    failed: float = 0.10
    cancelled_running: float = 0.02
    timed_out: float = 0.003
    #: Of the runs with a failed job.
    rerun: float = 0.25
    #: Of the re-run jobs: GitHub sends no ``queued`` (Q12).
    rerun_silent: float = 0.3
    #: Claims that fail and are released; the job is claimed again.
    released: float = 0.02
    #: A runner minted for one job executes the next one in the queue (Q16).
    shuffled: float = 0.01
    #: Of the jobs without a dispatcher: ``started_at`` stays at creation (Q4).
    frozen: float = 0.02
    #: Of the runs: fails at start-up; its jobs stay queued and are never heard of again (Q13).
    ghost_runs: float = 0.001
    #: Of the runs: a matrix of up to 256 jobs, or a twentieth of all jobs if that is fewer.
    bursts: float = 0.01
    #: Claims after which nothing more is heard of the job: the dispatcher dies before it mints
    #: (stale claims), or the runner before it starts (orphans). Nobody in the world repairs it.
    stale_claims: float = 0.0
    orphaned: float = 0.0
    #: Jobs whose payloads lack ``created_at``, as before December 2022 (Q19).
    old_payloads: float = 0.005


@dataclass(slots=True)
class SimRun:
    """A workflow run."""

    id: int
    repo: int
    workflow: str
    branch: str
    sha: str
    created: int
    origin: Origin
    attempt: int = 1
    #: When the current attempt started, and ended, and how.
    started: int = 0
    completed: int | None = None
    conclusion: str = ""
    open: int = 0
    jobs: list[SimJob] = field(default_factory=list)
    #: Of the attempts before: when each started, ended, and how.
    past: dict[int, tuple[int, int | None, str]] = field(default_factory=dict)


@dataclass(slots=True)
class SimJob:
    """A job, as it is in the world. Times in ms, ``None`` until they happen."""

    id: int
    run: SimRun
    attempt: int
    name: str
    fleet: Fleet
    created: int
    gated: bool = False
    frozen: bool = False
    old: bool = False
    #: The payload shows the first step beginning one second before the job (Q5).
    early_step: bool = False
    steps: int = 6
    started: int | None = None
    completed: int | None = None
    conclusion: str | None = None
    runner: str = ""
    claims: int = 0
    copied: bool = False
    #: What its dispatcher's books say: the claim it has now, and the runner made for that.
    claim: str = ""
    minted: str = ""
    #: A runner that is well is on its way to it.
    coming: bool = False


class Event(NamedTuple):
    """Something that happened. ``kind``: see :meth:`World.events`.

    ``reason`` is why a claim was released, or how a run ended.
    """

    at: int
    kind: str
    run: SimRun
    job: SimJob | None = None
    claim: str = ""
    runner: str = ""
    reason: str = ""


class _Floor:
    """One fleet at work: who is idle, who waits (oldest first)."""

    __slots__ = ("fleet", "idle", "minted", "queue")

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.idle = fleet.runners
        self.queue: deque[SimJob] = deque()
        self.minted = 0


def default_fleets(jobs: int, duration_s: float, tempo: Tempo, load: float = 0.8) -> list[Fleet]:
    """Six fleets large enough to be busy to the given share on average, so that peaks queue."""
    shapes = [
        ("linux-small", ("self-hosted", "Linux", "X64", "small"), 8.0, True),
        ("linux-large", ("self-hosted", "Linux", "X64", "large"), 4.0, True),
        ("linux-arm", ("self-hosted", "Linux", "ARM64"), 2.0, True),
        ("macos", ("self-hosted", "macOS", "ARM64"), 1.5, True),
        ("gpu", ("self-hosted", "linux", "gpu"), 0.5, True),
        ("hosted", ("ubuntu-latest",), 4.0, False),
    ]
    weights = sum(shape[2] for shape in shapes)
    mean_s = tempo.run_s * math.exp(tempo.run_sigma**2 / 2) + tempo.mint_s + tempo.boot_s
    busy = jobs * (1 - Mix.skipped) * mean_s / duration_s
    return [
        Fleet(name, labels, max(2, math.ceil(busy * weight / weights / load)), weight, dispatcher)
        for name, labels, weight, dispatcher in shapes
    ]


class World:
    """Fleets serving jobs. Iterate :meth:`events` once."""

    def __init__(
        self,
        seed: int,
        jobs: int,
        fleets: Sequence[Fleet],
        *,
        start_ms: int,
        duration_s: float,
        tempo: Tempo,
        mix: Mix,
        repos: int = 40,
    ) -> None:
        self._rng = random.Random(f"world {seed}")
        self.seed = seed
        self._planned = jobs
        self._begin = start_ms
        self._span = max(1, int(duration_s * 1000))
        self._tempo = tempo
        self._mix = mix
        self._floors = {fleet.name: _Floor(fleet) for fleet in fleets}
        if len(self._floors) != len(fleets):
            raise ValueError("fleet names must be unique")
        if not fleets or any(fleet.runners < 1 for fleet in fleets):
            raise ValueError("a simulation needs fleets, each with at least one runner")
        self._fleet_list = list(fleets)
        self._fleet_steps = list(accumulate(fleet.weight for fleet in fleets))
        # A few repositories make most of the jobs (Zipf).
        self._repo_steps = list(accumulate(1 / (n + 1) for n in range(repos)))
        # Another seed has other ids, so that two simulations may share a cluster.
        base = (seed * 7_919) % 5_000
        self._job_ids = count(40_000_000_000 + base * 10_000_000)
        self._run_ids = count(9_000_000_000 + base * 1_000_000)
        self._agenda: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = count()
        self._out: list[Event] = []
        self._upcoming: tuple[int, int] | None = None
        #: Up to when everything has happened. ms.
        self.now = start_ms
        #: Most jobs seen waiting in a fleet at once, for tests of the queue discipline.
        self.deepest: dict[str, int] = dict.fromkeys(self._floors, 0)

    def events(self) -> Iterator[Event]:
        """All that happens, in time order.

        Kinds: ``run.requested``, ``run.in_progress``, ``run.completed``; ``queued``,
        ``waiting``, ``in_progress``, ``completed`` of a job as GitHub sees it; ``job.claimed``,
        ``job.minted``, ``job.started``, ``claim.released`` as the dispatcher sees it.
        """
        arrivals = self._arrivals()
        self._upcoming = next(arrivals, None)
        while (told := self._step(arrivals)) is not None:
            yield from told

    def _step(self, arrivals: Iterator[tuple[int, int]]) -> list[Event] | None:
        """Let the next thing happen: what is told of it. None when nothing more will."""
        upcoming = self._upcoming
        if upcoming is not None and (not self._agenda or upcoming[0] <= self._agenda[0][0]):
            self.now = upcoming[0]
            self._arrive(*upcoming)
            self._upcoming = next(arrivals, None)
        elif self._agenda:
            self.now, _, action, what = heapq.heappop(self._agenda)
            action(self.now, *what)
        else:
            return None
        told, self._out = self._out, []
        return told

    # --- demand -------------------------------------------------------------------------------

    def _arrivals(self) -> Iterator[tuple[int, int]]:
        """Runs as (time, number of jobs): a day's sine, rush minutes, matrix bursts."""
        rng = self._rng
        sizes: list[int] = []
        left = self._planned
        # In a short simulation a full matrix would be all there is.
        largest = min(MATRIX_LIMIT, max(8, self._planned // 20))
        while left > 0:
            size = (
                rng.randint(min(32, largest), largest)
                if rng.random() < self._mix.bursts
                else min(24, 1 + int(rng.expovariate(1 / 3.5)))
            )
            sizes.append(min(size, left))
            left -= sizes[-1]
        rushes = [rng.random() for _ in range(3)]
        times: list[int] = []
        for _ in sizes:
            while True:
                share = rng.random()
                at = self._begin + int(share * self._span)
                level = 1 + 0.6 * math.sin(2 * math.pi * (at % DAY_MS) / DAY_MS - math.pi / 2)
                if any(0 <= share - rush < 0.02 for rush in rushes):
                    level += 0.4
                if rng.random() * 2 < level:
                    break
            times.append(at)
        times.sort()
        return iter(zip(times, sizes, strict=True))

    def _arrive(self, at: int, size: int) -> None:
        rng = self._rng
        number = next(self._run_ids)
        repo = bisect(self._repo_steps, rng.random() * self._repo_steps[-1])
        workflow = rng.choice(("CI", "Lint", "Release", "Nightly", "Integration tests"))
        branch = rng.choice(("main", "main", f"feature/{rng.randrange(400)}", "develop"))
        run = SimRun(
            id=number,
            repo=repo,
            workflow=workflow,
            branch=branch,
            sha=f"{rng.getrandbits(160):040x}",
            created=at,
            origin=origin_of(self.seed, number, repository_of(repo), workflow, branch),
            started=at,
        )
        self._tell(at, "run.requested", run)
        ghost = rng.random() < self._mix.ghost_runs
        fleet = self._fleet_list[bisect(self._fleet_steps, rng.random() * self._fleet_steps[-1])]
        ghost = ghost or self._fails_at_once(at, fleet, size)
        for n in range(size):
            job = self._new_job(run, f"test ({n})" if size > 1 else "build", fleet, at)
            if ghost:
                self._later(at + rng.randrange(1_500), self._haunt, job)
            elif rng.random() < self._mix.skipped:
                self._later(at + rng.randrange(3_000), self._skip, job)
            else:
                self._later(at + rng.randrange(1_500), self._create, job)
        if ghost:
            self._later(at + 5_000, self._fail_to_start, run)

    def _new_job(self, run: SimRun, name: str, fleet: Fleet, at: int) -> SimJob:
        rng, mix = self._rng, self._mix
        job = SimJob(
            id=next(self._job_ids),
            run=run,
            attempt=run.attempt,
            name=name,
            fleet=fleet,
            created=at,
            gated=rng.random() < mix.gated,
            frozen=not fleet.dispatcher and rng.random() < mix.frozen,
            old=rng.random() < mix.old_payloads,
            early_step=rng.random() < 0.1,
            steps=rng.randint(3, 10),
        )
        run.jobs.append(job)
        run.open += 1
        return job

    # --- a job's life -------------------------------------------------------------------------

    def _create(self, at: int, job: SimJob, silent: bool = False) -> None:
        """The job is queued, maybe behind a gate, maybe cancelled while it waits."""
        rng = self._rng
        job.created = at
        if not silent:
            self._tell(at, "queued", job.run, job)
        free = at
        if job.gated:
            shut = at + rng.randrange(50, 900)
            free = shut + max(1, self._draw(self._tempo.gate_s, 0.6))
            self._later(shut, self._tell, "waiting", job.run, job)
            self._later(free, self._tell, "queued", job.run, job)
        if rng.random() < self._mix.cancelled_before_start:
            until = free + 1 + self._draw(self._tempo.patience_s, 0.8)
            self._later(until, self._end, job, "cancelled")
        else:
            self._later(free, self._line_up, job)

    def _fail_to_start(self, at: int, run: SimRun) -> None:
        run.completed, run.conclusion = at, "startup_failure"
        self._tell(at, "run.completed", run, None, "", "", "startup_failure")

    def _haunt(self, at: int, job: SimJob) -> None:
        job.created = at
        self._tell(at, "queued", job.run, job)

    def _skip(self, at: int, job: SimJob) -> None:
        job.created = at
        self._end(at, job, "skipped")

    def _line_up(self, at: int, job: SimJob) -> None:
        floor = self._floors[job.fleet.name]
        floor.queue.append(job)
        self.deepest[job.fleet.name] = max(self.deepest[job.fleet.name], len(floor.queue))
        self._assign(at, floor)

    def _assign(self, at: int, floor: _Floor) -> None:
        """Idle runners take the oldest waiting jobs."""
        rng, tempo, mix = self._rng, self._tempo, self._mix
        while floor.idle and floor.queue:
            job = floor.queue.popleft()
            floor.idle -= 1
            floor.minted += 1
            runner = f"{floor.fleet.name}-{floor.minted:06d}"
            if not floor.fleet.dispatcher:
                start = at + self._draw(tempo.boot_s, 0.4)
                self._later(start, self._start, job, runner, "")
                continue
            job.claims += 1
            claim = job.claim = f"{job.id}-{job.claims}"
            job.minted = ""
            self._tell(at, "job.claimed", job.run, job, claim, runner)
            if rng.random() < mix.released:
                back = at + self._draw(tempo.release_s, 0.5)
                self._later(back, self._release, job, claim, runner)
                continue
            mint = at + self._draw(tempo.mint_s, 0.5)
            start = mint + self._draw(tempo.boot_s, 0.4)
            if mix.stale_claims and rng.random() < mix.stale_claims:
                self._later(start, self._replace_runner, floor)
                continue
            if self._goes_wrong(at, floor, job, runner, mint, start):
                continue
            self._later(mint, self._mint, job, claim, runner)
            if mix.orphaned and rng.random() < mix.orphaned:
                self._later(start, self._replace_runner, floor)
                continue
            if floor.queue and rng.random() < mix.shuffled:
                # GitHub gives the runner to the next job instead; this one waits on.
                other = floor.queue.popleft()
                other.coming = True
                self._later(start, self._start, other, runner, "")
                back = start + self._draw(tempo.release_s, 0.5)
                self._later(back, self._displaced, job, claim)
                continue
            job.coming = True
            self._later(start, self._start, job, runner, claim)

    def _mint(self, at: int, job: SimJob, claim: str, runner: str) -> None:
        if job.claim == claim:
            job.minted = runner
            self._tell(at, "job.minted", job.run, job, claim, runner)

    def _release(self, at: int, job: SimJob, claim: str, runner: str) -> None:
        """The dispatch failed: the job is first in line again, the runner is free."""
        floor = self._floors[job.fleet.name]
        if job.claim != claim:  # somebody else has released it
            return self._replace_runner(at, floor)
        self._tell(at, "claim.released", job.run, job, claim, runner, "dispatch_failed")
        job.claim = ""
        floor.idle += 1
        floor.queue.appendleft(job)
        return self._assign(at, floor)

    def _replace_runner(self, at: int, floor: _Floor) -> None:
        floor.idle += 1
        self._assign(at, floor)

    def _displaced(self, at: int, job: SimJob, claim: str) -> None:
        if job.claim != claim:
            return
        job.claim = ""
        self._tell(at, "claim.released", job.run, job, claim, "", "displaced")
        floor = self._floors[job.fleet.name]
        floor.queue.appendleft(job)
        self._assign(at, floor)

    def _start(self, at: int, job: SimJob, runner: str, claim: str) -> None:
        rng, mix = self._rng, self._mix
        job.started = at
        job.runner = runner
        job.coming = False
        self._tell(at, "in_progress", job.run, job)
        if job.fleet.dispatcher:
            self._later(
                at + rng.randrange(400),
                self._tell,
                "job.started",
                job.run,
                job,
                claim,
                runner,
            )
        dice = rng.random()
        conclusion = "success"
        for word, share in (
            ("failure", mix.failed),
            ("cancelled", mix.cancelled_running),
            ("timed_out", mix.timed_out),
        ):
            if dice < share:
                conclusion = word
                break
            dice -= share
        end = at + 1_000 + self._draw(self._tempo.run_s, self._tempo.run_sigma)
        self._later(self._end_of(at, job, end), self._finish, job, claim, conclusion)

    def _finish(self, at: int, job: SimJob, claim: str, conclusion: str) -> None:
        floor = self._floors[job.fleet.name]
        floor.idle += 1
        if claim:
            job.claim = ""
            self._tell(at, "claim.released", job.run, job, claim, job.runner, "completed")
        self._end(at, job, conclusion)
        self._assign(at, floor)

    def _end(self, at: int, job: SimJob, conclusion: str) -> None:
        job.completed = at
        job.conclusion = conclusion
        self._tell(at, "completed", job.run, job)
        run = job.run
        run.open -= 1
        if run.open == 0:
            self._later(at + 300, self._close, run)

    def _close(self, at: int, run: SimRun) -> None:
        ends = {job.conclusion for job in run.jobs}
        verdict = next(
            (word for word in ("failure", "timed_out", "cancelled", "success") if word in ends),
            "skipped",
        )
        run.completed, run.conclusion = at, verdict
        self._tell(at, "run.completed", run, reason=verdict)
        failed = [job for job in run.jobs if job.conclusion == "failure"]
        if failed and run.attempt < 4 and self._rng.random() < self._mix.rerun:
            again = at + 2_000 + self._draw(self._tempo.rerun_s, 0.8)
            self._later(again, self._rerun, run, failed)

    def _rerun(self, at: int, run: SimRun, failed: list[SimJob]) -> None:
        """A new attempt: failed jobs run under new ids, others are copied with their old times."""
        rng = self._rng
        kept = [job for job in run.jobs if job.conclusion == "success" and not job.copied][:3]
        run.past[run.attempt] = (run.started, run.completed, run.conclusion)
        run.attempt += 1
        run.started, run.completed, run.conclusion = at, None, ""
        run.jobs = []
        self._tell(at, "run.requested", run)
        for old in failed:
            job = self._new_job(run, old.name, old.fleet, at)
            silent = rng.random() < self._mix.rerun_silent
            self._later(at + rng.randrange(1, 1_500), self._create, job, silent)
        for old in kept:
            copy = self._new_job(run, old.name, old.fleet, at)
            run.open -= 1
            copy.copied = True
            copy.created, copy.started, copy.completed = old.created, old.started, old.completed
            copy.conclusion, copy.runner, copy.steps = old.conclusion, old.runner, old.steps
            copy.old = False
            copy.frozen = old.frozen
            self._later(at + 200, self._tell, "completed", run, copy)

    # --- what goes wrong, in a world in which jobs get stuck (``stuck``) ----------------------

    def _fails_at_once(self, at: int, fleet: Fleet, size: int) -> bool:
        """Whether a run fails at its start-up."""
        return False

    def _goes_wrong(
        self, at: int, floor: _Floor, job: SimJob, runner: str, mint: int, start: int
    ) -> bool:
        """Whether a claim leads to nothing; then all that follows from that is arranged."""
        return False

    def _end_of(self, at: int, job: SimJob, end: int) -> int:
        """When a job that starts now ends."""
        return end

    # --- machinery ----------------------------------------------------------------------------

    def _draw(self, median_s: float, sigma: float) -> int:
        """A lognormal duration in ms, at most 50 medians."""
        return int(1000 * median_s * min(50.0, math.exp(self._rng.gauss(0.0, sigma))))

    def _later(self, at: int, action: Callable[..., None], *what: Any) -> None:
        heapq.heappush(self._agenda, (at, next(self._sequence), action, what))

    def _tell(
        self,
        at: int,
        kind: str,
        run: SimRun,
        job: SimJob | None = None,
        claim: str = "",
        runner: str = "",
        reason: str = "",
    ) -> None:
        self._out.append(Event(at, kind, run, job, claim, runner, reason))
