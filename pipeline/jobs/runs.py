"""The parent run: what a job's workflow run says about it.

GitHub sends nothing for a job whose run failed at start-up (Q13), and loses the cancel of a
concurrency-group loser (Q14): only the run knows. A re-run copies jobs with their old times into
new job ids (Q11): only the run's start time tells. So every job links itself to its run, and the
run tells its jobs what it knows, both through ``runners.jobs``, both as facts that may be
repeated and reordered freely.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct, structs
from msgspec.json import Encoder
from msgspec.structs import astuple

from pipeline.jobs.attributes import BLANK, Attributes, describe
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
    #: What it says about each of its jobs.
    said: Attributes = BLANK


def merge_run(run: Run | None, fact: RunFact) -> Run:
    """Add what a ``workflow_run`` event says. Returns ``run`` itself when nothing is new."""
    said = _run(fact.run)
    about = run.said if run else BLANK
    if fact.job is not None:
        about = describe(about, fact.job, fact.occurred_at)
    if run is None:
        day = _day(fact.occurred_at)
        return Run(fact.key, fact.received_at, {said.attempt: said}, {}, day, about)
    known = run.attempts.get(said.attempt)
    merged = _join_run(known, said)
    assert merged is not None
    first_seen = min(run.first_seen, fact.received_at)
    last_seen = max(run.last_seen, _day(fact.occurred_at))
    attempts = {**run.attempts, said.attempt: merged}
    if len(attempts) > MAX_ATTEMPTS:
        del attempts[min(attempts)]
    joined = Run(run.key, first_seen, attempts, run.jobs, last_seen, about)
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
    return Run(run.key, first_seen, run.attempts, jobs, last_seen, run.said)


def _day(at: int) -> int:
    return at - at % DAY_MS


class RunOutcome(Struct, frozen=True, omit_defaults=True, gc=False):
    """What a run has to tell one of its jobs: a :class:`topics.models.JobFact` as it is written.

    ``run`` is how the job's attempt went, ``job`` what every job of the run is.
    """

    kind: str
    id: str
    source: str
    occurred_at: int
    received_at: int
    key: str
    cause: str
    run: RunAttempt | None = None
    job: Attributes | None = None


_encoder: Final = Encoder()


def encode_outcome(outcome: RunOutcome) -> bytes:
    """The record value of an outcome on ``runners.jobs``."""
    return _encoder.encode(outcome)


def run_outcomes(before: Run | None, after: Run) -> list[RunOutcome]:
    """What the run has to tell its jobs now that it did not tell before.

    Only what a job cannot know itself: that its run is over, when a re-run attempt started, and
    what the run says its jobs are. The last is told while the run is on, once to each job, and
    again only when it has changed; it says nothing about the end.
    """
    attempts = {
        attempt: said
        for attempt, said in after.attempts.items()
        if said.completed_at is not None or attempt > 1
    }
    about = _to_tell(after)
    if not attempts and about is None:
        return []
    heard = {} if before is None else before.jobs
    old = {} if before is None else before.attempts
    # A run of thousands of jobs is linked to one after the other: only the new one is told.
    if before is None:
        about_is_new = about is not None
    else:
        about_is_new = before.said is not after.said and about != _to_tell(before)
    if about_is_new or after.attempts != old:
        jobs = list(after.jobs.items())
    else:
        jobs = [link for link in after.jobs.items() if heard.get(link[0]) != link[1]]
    outcomes: list[RunOutcome] = []
    names: dict[tuple[bool, int], str] = {}
    for job_key, attempt in jobs:
        run = attempts.get(attempt)
        if run is not None and heard.get(job_key) == attempt and old.get(attempt) == run:
            run = None
        told = about if about_is_new or job_key not in heard else None
        if run is None and told is None:
            continue
        name = names.get((told is None, attempt if run else -1))
        if name is None:
            said = "" if run is None else repr(astuple(run))
            if told is not None:
                said += repr(astuple(told))
            name = f"{after.key}#{attempt if run else ''}:{digest(said)}"
            names[told is None, attempt if run else -1] = name
        at = (run and (run.completed_at or run.started_at)) or 0
        if told is not None:
            at = max(at, after.said.run_at)
        at = at or after.first_seen
        outcomes.append(
            RunOutcome(
                "job.fact",
                f"{name}:{job_key}",
                "runnerstream",
                at,
                max(at, after.first_seen),
                job_key,
                "workflow_run",
                run,
                told,
            )
        )
    return outcomes


def _to_tell(run: Run) -> Attributes | None:
    """What each job is to be told it is; None when the run says nothing of that."""
    # Without stamps: the same, said again later, is nothing new.
    said = structs.replace(run.said, at=0, run_at=0, pool_at=0, older={})
    return None if said == Attributes(run_id=said.run_id) else said
