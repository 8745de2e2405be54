"""The parent run: what a job's workflow run says about it.

GitHub sends nothing for a job whose run failed at start-up (Q13), and loses the cancel of a
concurrency-group loser (Q14): only the run knows. A re-run copies jobs with their old times into
new job ids (Q11): only the run's start time tells. So every job links itself to its run, and the
run tells its jobs what it knows, both through ``runners.jobs``, both as facts that may be
repeated and reordered freely.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct
from msgspec.json import Encoder
from msgspec.structs import astuple

from pipeline.jobs.facts import DAY_MS, RunAttempt, _join_run, _run, digest
from topics.models import RunFact, RunLink

#: Jobs of one run that are told. GitHub: 256 per matrix; larger runs have several matrices.
MAX_JOBS: Final = 3_000
#: Attempts of one run that are kept, the latest: people press "re-run" some ten times.
MAX_ATTEMPTS: Final = 100


class Run(Struct, frozen=True, gc=False):
    """What is known about one workflow run. Merges like a Job: by join."""

    key: str
    first_seen: int
    attempts: dict[int, RunAttempt]
    #: Job key -> run attempt.
    jobs: dict[str, int]
    #: The day of the latest event, as its first millisecond.
    last_seen: int = 0


def merge_run(run: Run | None, fact: RunFact) -> Run:
    """Add what a ``workflow_run`` event says. Returns ``run`` itself when nothing is new."""
    said = _run(fact.run)
    if run is None:
        return Run(fact.key, fact.received_at, {said.attempt: said}, {}, _day(fact.occurred_at))
    known = run.attempts.get(said.attempt)
    merged = _join_run(known, said)
    assert merged is not None
    first_seen = min(run.first_seen, fact.received_at)
    last_seen = max(run.last_seen, _day(fact.occurred_at))
    attempts = {**run.attempts, said.attempt: merged}
    if len(attempts) > MAX_ATTEMPTS:
        del attempts[min(attempts)]
    joined = Run(run.key, first_seen, attempts, run.jobs, last_seen)
    return run if joined == run else joined


def link_run(run: Run | None, link: RunLink) -> Run:
    """Add a job to its run. Returns ``run`` itself when it is known already."""
    if run is None:
        return Run(
            link.key,
            link.received_at,
            {},
            {link.job_key: link.attempt},
            _day(link.occurred_at),
        )
    known = run.jobs.get(link.job_key)
    if known is not None and known >= link.attempt:
        return run
    if known is None and len(run.jobs) >= MAX_JOBS:
        return run
    jobs = {**run.jobs, link.job_key: link.attempt}
    first_seen = min(run.first_seen, link.received_at)
    last_seen = max(run.last_seen, _day(link.occurred_at))
    return Run(run.key, first_seen, run.attempts, jobs, last_seen)


def _day(at: int) -> int:
    return at - at % DAY_MS


class RunOutcome(Struct, frozen=True, gc=False):
    """What a run has to tell one of its jobs: a :class:`topics.models.JobFact` as it is written."""

    kind: str
    id: str
    source: str
    occurred_at: int
    received_at: int
    key: str
    cause: str
    run: RunAttempt


_encoder: Final = Encoder()


def encode_outcome(outcome: RunOutcome) -> bytes:
    """The record value of an outcome on ``runners.jobs``."""
    return _encoder.encode(outcome)


def run_outcomes(before: Run | None, after: Run) -> list[RunOutcome]:
    """What the run has to tell its jobs now that it did not tell before.

    Only what a job cannot know itself: that its run is over, and when a re-run attempt started.
    """
    # Found first: while a run is on there is nothing to tell, and each of its jobs, up to
    # thousands, comes by here.
    if not after.attempts:
        return []
    telling = {
        attempt: (said, f"{after.key}#{attempt}:{digest(repr(astuple(said)))}")
        for attempt, said in after.attempts.items()
        if said.completed_at is not None or attempt > 1
    }
    if not telling:
        return []
    outcomes: list[RunOutcome] = []
    for job_key, attempt in after.jobs.items():
        told = telling.get(attempt)
        if told is None:
            continue
        said, name = told
        if (
            before is not None
            and before.jobs.get(job_key) == attempt
            and before.attempts.get(attempt) == said
        ):
            continue
        at = said.completed_at or said.started_at or after.first_seen
        outcomes.append(
            RunOutcome(
                "job.fact",
                f"{name}:{job_key}",
                "runnerstream",
                at,
                max(at, after.first_seen),
                job_key,
                "workflow_run",
                said,
            )
        )
    return outcomes
