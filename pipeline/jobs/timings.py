"""When a job reached each milestone, and how long things took. Pure functions of the facts.

Rules, with where they come from (Q numbers: the quirk tests in ``tests/test_quirks.py``):

* **queued** is the provider's ``created_at``; without it the delivery's time, then arrival (Q19).
* **started** is the provider's ``started_at`` from an event that proves a start; else the first
  step, the runner's own word, the ``in_progress`` delivery, arrival. Hosted jobs may keep
  ``started_at`` at creation for ever (Q4): when it is not later than ``created_at`` but a step
  or the ``in_progress`` delivery is more than 5 s later, those are believed.
* **completed** is the provider's ``completed_at``; else the runner's word, delivery, arrival.
* **queue** = started - queued - approval gates; **run** = completed - started; **total** =
  completed - queued; **claim_to_start** = started - claimed, for the claim of the runner that
  really executed the job (Q16).
* A difference down to -1 s is the price of whole-second clocks and becomes 0, marked clamped
  (Q2). Anything more negative is no sample (Q28). A missing bound is no sample, never zero.
* Arrival tells that something had happened by then, not when. It dates a milestone that nobody
  else dates, and no timing is measured with it: unknown is not zero.
* A job that never ran (skipped, cancelled before it started, stopped for lack of money) has no
  queue, run or total sample; its wait is ``abandoned_ms`` (Q6, Q7).
* A job copied into a re-run keeps its old times and counts nowhere (Q11).
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from pipeline.jobs.facts import Claim, Job

#: Two clocks of whole seconds can disagree by this much without meaning it.
CLOCK_GRAIN_MS: Final = 1_000
#: ``started_at`` frozen at creation is disbelieved when better evidence is this much later.
FROZEN_START_MS: Final = 5_000

QUEUED_CLOCKS: Final = ("provider", "runner", "delivery", "received")
STARTED_CLOCKS: Final = ("provider", "step", "runner", "delivery", "received")
COMPLETED_CLOCKS: Final = ("provider", "runner", "delivery", "received")


class At(Struct, frozen=True, gc=False):
    """A time and the clock it was read from."""

    ms: int
    clock: str


class Measured(Struct, frozen=True, omit_defaults=True, gc=False):
    """One timing: a value, or why there is none."""

    ms: int | None = None
    missing: str | None = None
    start_clock: str | None = None
    end_clock: str | None = None
    clamped_ms: int = 0


_FAMILIES: Final = ("queue", "claim_to_start", "run", "total")
_COPIED: Final = Measured(None, "copied")
_NOT_STARTED: Final = Measured(None, "not_started")
_PENDING: Final = Measured(None, "pending")
_NO_QUEUED: Final = Measured(None, "no_queued")
_NO_STARTED: Final = Measured(None, "no_started")
_NO_COMPLETED: Final = Measured(None, "no_completed")
_GATE_UNKNOWN: Final = Measured(None, "gate_unknown")
_NO_CLAIM: Final = Measured(None, "no_claim")


class Milestones(Struct, frozen=True, gc=False):
    """The chosen time of each milestone; ``None`` when unknown."""

    waiting: int | None
    queued: At | None
    claimed: int | None
    minted: int | None
    started: At | None
    completed: At | None
    #: Approval-gate time within the wait; ``None`` when a gate's end is not known.
    gated_ms: int | None
    #: Copied into a re-run from an earlier attempt.
    copied: bool
    #: The claim shown: of the observed runner, else the latest one alive, else the latest.
    claim: str | None
    #: A runner was seen executing it: without a start, nobody knows when, but it did start.
    ran: bool = False


def milestones(job: Job) -> Milestones:
    """Choose one time per milestone from what all clocks say."""
    times = job.times
    queued = _first(times.get("queued"), QUEUED_CLOCKS)
    started = _started(times.get("started"), queued)
    completed = _first(times.get("completed"), COMPLETED_CLOCKS)
    handle = _claim_of(job) if job.claims else None
    claim = job.claims[handle] if handle is not None else None
    waiting = _waiting(job)
    run = job.run
    copied = (
        run is not None
        and run.attempt > 1
        and run.started_at is not None
        and completed is not None
        and completed.ms < run.started_at - CLOCK_GRAIN_MS
    )
    return Milestones(
        waiting,
        queued,
        claim.claimed_at if claim else None,
        claim.minted_at if claim else None,
        started,
        completed,
        _gated(job, queued, started) if waiting is not None else 0,
        copied,
        handle,
        job.runner is not None,
    )


def timings(m: Milestones) -> dict[str, Measured]:
    """The four timings, by :class:`topics.models.Family` value."""
    if m.copied:
        return dict.fromkeys(_FAMILIES, _COPIED)
    if m.started is None:
        if m.completed is None:
            return dict.fromkeys(_FAMILIES, _PENDING)
        return dict.fromkeys(_FAMILIES, _NO_STARTED if m.ran else _NOT_STARTED)
    dated = m.started.clock != "received"
    queued = m.queued is not None and m.queued.clock != "received"
    if m.queued is None or not queued:
        queue = _NO_QUEUED
    elif not dated:
        queue = _NO_STARTED
    elif m.gated_ms is None:
        queue = _GATE_UNKNOWN
    else:
        queue = _between(m.queued, m.started, m.gated_ms)
    if m.claimed is None:
        claim_to_start = _NO_CLAIM
    elif not dated:
        claim_to_start = _NO_STARTED
    else:
        claim_to_start = _between(At(m.claimed, "runner"), m.started)
    if m.completed is None:
        run = total = _PENDING
    elif m.completed.clock == "received":
        run = total = _NO_COMPLETED
    else:
        run = _between(m.started, m.completed) if dated else _NO_STARTED
        total = _NO_QUEUED if m.queued is None or not queued else _between(m.queued, m.completed)
    return {"queue": queue, "claim_to_start": claim_to_start, "run": run, "total": total}


def abandoned_ms(m: Milestones) -> int | None:
    """How long a job waited that ended without ever starting; ``None`` for all others."""
    if m.started is not None or m.completed is None or m.queued is None or m.copied:
        return None
    if m.ran or "received" in (m.queued.clock, m.completed.clock):
        return None
    wait = m.completed.ms - m.queued.ms
    return wait if wait >= 0 else 0 if wait >= -CLOCK_GRAIN_MS else None


def _first(clocks: dict[str, int] | None, order: tuple[str, ...]) -> At | None:
    if clocks:
        for clock in order:
            at = clocks.get(clock)
            if at is not None:
                return At(at, clock)
    return None


def _started(clocks: dict[str, int] | None, queued: At | None) -> At | None:
    at = _first(clocks, STARTED_CLOCKS)
    if at is None or clocks is None or at.clock != "provider" or queued is None:
        return at
    if queued.clock == "provider" and at.ms <= queued.ms:
        for clock in ("step", "runner", "delivery"):
            better = clocks.get(clock)
            if better is not None:
                return At(better, clock) if better - at.ms > FROZEN_START_MS else at
    return at


def _waiting(job: Job) -> int | None:
    marked = [at for at, kind in job.marks if kind == "waiting"]
    timed = job.times.get("waiting")
    if timed:
        marked.extend(timed.values())
    return min(marked) if marked else None


def _gated(job: Job, queued: At | None, started: At | None) -> int | None:
    """Sum of waiting intervals between the queueing and the start.

    GitHub sends ``queued, waiting, queued`` for an approval gate (runs-on#539): each waiting
    moment lasts until the next queued one. When the queued that should close a gate never
    arrived, its length is not known. A provider that counts a job as queued only once it may be
    taken tells of what was before, too: that is no part of the wait.
    """
    begin = 0 if queued is None else queued.ms
    total = 0
    opened: int | None = None
    for at, kind in job.marks:
        if started is not None and at >= started.ms:
            if opened is not None and kind == "queued":
                # The start is in whole seconds and may seem to precede the gate's end.
                total += started.ms - opened
                opened = None
            break
        if kind == "waiting":
            if opened is None and at >= begin:
                opened = at
        elif opened is not None:
            total += at - opened
            opened = None
    if opened is not None and started is not None:
        return None
    return total


def _between(start: At, end: At, less: int = 0) -> Measured:
    raw = end.ms - start.ms - less
    if raw >= 0:
        return Measured(raw, None, start.clock, end.clock)
    if raw >= -CLOCK_GRAIN_MS:
        return Measured(0, None, start.clock, end.clock, -raw)
    return Measured(None, "negative", start.clock, end.clock)


def _claim_of(job: Job) -> str | None:
    """The claim that matters now.

    A claim is a guess: labels route jobs, so a runner minted for this job may execute another
    one. Once the executing runner is known, only a claim that names it (or names none) counts.
    """

    def latest(handles: list[str]) -> str | None:
        return max(handles, key=lambda h: (job.claims[h].claimed_at or 0, h), default=None)

    executor = job.runner.name if job.runner else ""
    if len(job.claims) == 1:
        # Nearly every job: the same answer without the lists.
        ((handle, claim),) = job.claims.items()
        return None if executor and claim.runner and claim.runner != executor else handle
    if executor:
        named = [h for h, c in job.claims.items() if c.runner == executor]
        unnamed = [h for h, c in job.claims.items() if not c.runner]
        return latest(named) or latest(unnamed)
    alive = [h for h, c in job.claims.items() if c.released_at is None]
    return latest(alive) or latest(list(job.claims))


def live_claim(job: Job) -> Claim | None:
    """The latest claim that was not released."""
    alive = [(c.claimed_at or 0, h) for h, c in job.claims.items() if c.released_at is None]
    return job.claims[max(alive)[1]] if alive else None
