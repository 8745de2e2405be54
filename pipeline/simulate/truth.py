"""What can be known: the right answer for the records that were really sent.

This is the documented rules, written a second time and as plainly as possible. It must not
import ``pipeline.jobs`` or ``pipeline.windows``: it exists to disagree with them. It reads no
record either, but what the wire says each record tells (:class:`~pipeline.simulate.wire.Said`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from pipeline.simulate.origins import Origin
from pipeline.simulate.wire import Said, SaidStep

WINDOW_SIZES_S: Final = (60, 300, 3600)
_WEBHOOKS: Final = frozenset({"queued", "waiting", "in_progress", "completed"})
#: What GitHub's API answered about a job: as its body says, and no clock of its own.
_ASKED: Final = frozenset({"api.queued", "api.in_progress", "api.completed"})
_ENDED: Final = ("completed", "api.completed")
_BEGUN: Final = ("in_progress", "api.in_progress", *_ENDED)
_FAMILIES: Final = ("queue", "claim_to_start", "run", "total")


StepTruth = tuple[int, str, str | None, int | None, int | None]


@dataclass(frozen=True)
class JobTruth:
    """One job. Times in ms. A timing is its milliseconds, or the reason it is missing."""

    key: str
    status: str
    fleet: str
    conclusion: str | None
    queued_at: int | None
    started_at: int | None
    completed_at: int | None
    claimed_at: int | None
    #: Approval-gate time before the start; None when a gate's end is not known.
    gated_ms: int | None
    abandoned_ms: int | None
    copied: bool
    runner: str
    timings: dict[str, int | str]
    #: What the run says; while nothing of it is heard the actor is who caused the latest event.
    origin: Origin = Origin()
    #: Number, name, conclusion (None: not over), begun and over, by number.
    steps: tuple[StepTruth, ...] = ()


@dataclass
class Truth:
    """All jobs and all windows, and what was sent."""

    jobs: dict[str, JobTruth] = field(default_factory=dict)
    #: (fleet, family, window size in s, window start in ms) -> (count, sum in ms).
    windows: dict[tuple[str, str, int, int], tuple[int, int]] = field(default_factory=dict)
    #: (fleet, conclusion, window size in s, window start in ms) -> completed jobs.
    conclusions: dict[tuple[str, str, int, int], int] = field(default_factory=dict)
    #: Records by topic.
    sent: dict[str, int] = field(default_factory=dict)
    #: Malformed records by the reason they must be refused for.
    dead_letters: dict[str, int] = field(default_factory=dict)


def truth_of(said: Iterable[Said]) -> Truth:
    """Judge everything that was said. In any order."""
    by_job: dict[str, list[Said]] = defaultdict(list)
    runs: dict[tuple[str, int], list[Said]] = defaultdict(list)
    origins: dict[str, Said] = {}
    for one in said:
        if one.kind == "host.gone":
            continue  # it says nothing of a job
        if one.kind == "run":
            runs[one.key, one.attempt].append(one)
            origins[one.key] = one
        else:
            by_job[one.key].append(one)
    truth = Truth()
    for key, about in by_job.items():
        truth.jobs[key] = _judge(key, about, runs, origins)
    _fill_windows(truth)
    return truth


def _judge(
    key: str,
    about: list[Said],
    runs: dict[tuple[str, int], list[Said]],
    origins: dict[str, Said],
) -> JobTruth:
    hooks = [s for s in about if s.kind in _WEBHOOKS or s.kind in _ASKED]

    def first(times: Iterable[int | None]) -> int | None:
        return min((t for t in times if t is not None), default=None)

    def events(*kinds: str) -> list[int]:
        return [s.event_at for s in about if s.kind in kinds]

    def arrivals(*kinds: str) -> list[int]:
        return [s.received_at for s in about if s.kind in kinds]

    # Milestones: the first clock in the documented order that knows the time.
    created = first(s.created for s in hooks)
    queued = _one_of(
        created, first(events("job.queued")), first(events("queued")), first(arrivals("queued"))
    )
    ends = [s for s in hooks if s.kind in _ENDED]
    proofs = [s for s in hooks if s.kind in _BEGUN and s.started is not None]
    begun = first(s.started for s in proofs)
    better = _one_of(
        first(s.step for s in proofs), first(events("job.started")), first(events("in_progress"))
    )
    started = _one_of(begun, better)
    if begun is not None and created is not None and begun <= created and better is not None:
        # started_at frozen at creation is not believed against evidence 5 s later.
        started = better if better - begun > 5_000 else begun
    completed = _one_of(
        first(s.completed for s in ends),
        first(events("job.completed")),
        first(events("completed")),
        first(events("closed")),
    )

    runner = max((s.runner for s in proofs), default="")
    runner = max([runner, *(s.runner for s in about if s.kind == "job.started")])
    claims = _claims(about)
    claimed = _claimed_at(claims, runner)

    # Approval gates: each waiting lasts until the next queued, at most until the start.
    marks = sorted({(s.event_at, s.mark) for s in hooks if s.mark})
    gated: int | None = 0
    if any(mark == "waiting" for _, mark in marks):
        # What was before it was queued is no part of the wait that is measured.
        within = [(at, mark) for at, mark in marks if mark != "waiting" or at >= (queued or 0)]
        gated = _gates(within, started)

    attempt = max((s.attempt for s in hooks), default=0)
    run_key = max((s.run_key for s in hooks), default="")
    run_started = first(s.started for s in runs.get((run_key, attempt), ()))
    copied = (
        attempt > 1
        and run_started is not None
        and completed is not None
        and completed < run_started - 1_000
    )

    timings: dict[str, int | str]
    if copied:
        timings = dict.fromkeys(_FAMILIES, "copied")
    elif started is None:
        timings = dict.fromkeys(_FAMILIES, "pending" if completed is None else "not_started")
    else:
        timings = {
            "queue": (
                "no_queued"
                if queued is None
                else "gate_unknown"
                if gated is None
                else _span(queued + gated, started)
            ),
            "claim_to_start": "no_claim" if claimed is None else _span(claimed, started),
            "run": "pending" if completed is None else _span(started, completed),
            "total": (
                "pending"
                if completed is None
                else "no_queued"
                if queued is None
                else _span(queued, completed)
            ),
        }

    abandoned = None
    if started is None and completed is not None and queued is not None and not copied:
        waited = _span(queued, completed)
        abandoned = waited if isinstance(waited, int) else None

    labels = max((s.labels for s in hooks), default="", key=lambda text: (len(text), text))
    fleet = (
        max((s.pool for s in about), default="")
        or labels
        or max((s.group for s in hooks), default="")
        or "unknown"
    )
    endings = [s.conclusion for s in ends or about if s.kind in ("closed", *_ENDED)]
    return JobTruth(
        key=key,
        status=_status(completed, started, runner, claims, marks),
        fleet=fleet,
        conclusion=None if completed is None else max(endings, default="unknown"),
        queued_at=queued,
        started_at=started,
        completed_at=completed,
        claimed_at=claimed,
        gated_ms=gated,
        abandoned_ms=abandoned,
        copied=copied,
        runner=runner,
        timings=timings,
        steps=_steps(hooks),
        origin=_origin(hooks, origins.get(run_key)),
    )


def _origin(hooks: list[Said], run: Said | None) -> Origin:
    """A run says the same in all its attempts. The job's events tell who caused them, no more."""
    if run is not None:
        return run.origin
    told = ((s.event_at, s.origin) for s in hooks if s.kind in _WEBHOOKS)
    return max(told, default=(0, Origin()))[1]


def _steps(hooks: list[Said]) -> tuple[StepTruth, ...]:
    """Each step as far as any body shows it. What is not over yet has no conclusion."""
    known: dict[int, list[SaidStep]] = defaultdict(list)
    for said in hooks:
        for step in said.steps:
            known[step[0]].append(step)
    return tuple(
        (
            number,
            max(step[1] for step in told),
            max(step[2] for step in told) or None,
            min((step[3] for step in told if step[3] is not None), default=None),
            min((step[4] for step in told if step[4] is not None), default=None),
        )
        for number, told in sorted(known.items())
    )


@dataclass
class _Claim:
    claimed: int | None = None
    minted: int | None = None
    released: int | None = None
    runner: str = ""


def _claims(about: list[Said]) -> dict[str, _Claim]:
    claims: dict[str, _Claim] = {}
    for said in sorted(about, key=lambda s: s.event_at, reverse=True):  # the earliest stays
        if said.kind not in ("job.claimed", "job.minted", "claim.released"):
            continue
        claim = claims.setdefault(said.claim, _Claim())
        claim.runner = max(claim.runner, said.runner)
        if said.kind == "job.claimed":
            claim.claimed = said.event_at
        elif said.kind == "job.minted":
            claim.minted = said.event_at
        else:
            claim.released = said.event_at
    return claims


def _claimed_at(claims: dict[str, _Claim], runner: str) -> int | None:
    """When the claim was made that counts: that of the runner which executes the job."""
    if runner:
        groups = [
            {h: c for h, c in claims.items() if c.runner == runner},
            {h: c for h, c in claims.items() if not c.runner},
        ]
    else:
        groups = [{h: c for h, c in claims.items() if c.released is None}, claims]
    for group in groups:
        if group:
            handle = max(group, key=lambda h: (group[h].claimed or 0, h))
            return group[handle].claimed
    return None


def _gates(marks: list[tuple[int, str]], started: int | None) -> int | None:
    """Time behind gates before the start; None if one never opened again although it started."""
    total = 0
    position = 0
    while position < len(marks):
        at, mark = marks[position]
        position += 1
        if mark != "waiting" or (started is not None and at >= started):
            continue
        # The gate is shut. Further waiting marks before its end change nothing.
        while position < len(marks) and marks[position][1] == "waiting":
            if started is not None and marks[position][0] >= started:
                return None
            position += 1
        if position == len(marks):
            return None if started is not None else total
        opened = marks[position][0]
        total += (opened if started is None else min(opened, started)) - at
    return total


def _status(
    completed: int | None,
    started: int | None,
    runner: str,
    claims: dict[str, _Claim],
    marks: list[tuple[int, str]],
) -> str:
    if completed is not None:
        return "completed"
    if started is not None or runner:
        return "running"
    alive = {h: c for h, c in claims.items() if c.released is None}
    if alive:
        latest = alive[max(alive, key=lambda h: (alive[h].claimed or 0, h))]
        return "claimed" if latest.minted is None else "starting"
    if marks and max(marks, key=lambda m: (m[0], m[1] == "queued"))[1] == "waiting":
        return "waiting"
    return "queued"


def _one_of(*times: int | None) -> int | None:
    return next((t for t in times if t is not None), None)


def _span(start: int, end: int) -> int | str:
    """A duration. Whole-second clocks may put the end up to 1 s before the start: that is 0."""
    ms = end - start
    return ms if ms >= 0 else 0 if ms >= -1_000 else "negative"


def _fill_windows(truth: Truth) -> None:
    sums: dict[tuple[str, str, int, int], tuple[int, int]] = {}
    conclusions: Counter[tuple[str, str, int, int]] = Counter()
    for job in truth.jobs.values():
        if job.copied:
            continue
        for size_s in WINDOW_SIZES_S:
            size = size_s * 1000
            for family in _FAMILIES:
                value = job.timings[family]
                at = job.started_at if family in ("queue", "claim_to_start") else job.completed_at
                if isinstance(value, int) and at is not None:
                    key = (job.fleet, family, size_s, at // size * size)
                    count, total = sums.get(key, (0, 0))
                    sums[key] = (count + 1, total + value)
            if job.completed_at is not None:
                start = job.completed_at // size * size
                conclusions[job.fleet, job.conclusion or "unknown", size_s, start] += 1
    truth.windows = sums
    truth.conclusions = dict(conclusions)
