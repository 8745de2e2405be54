"""What is known about a job, and how knowledge is merged.

A :class:`Job` is a join-semilattice: :func:`merge` adds one fact, :func:`join` adds everything
another Job knows. Both are associative, commutative and idempotent, so the same facts give the
same Job in whatever order, however often and in however many pieces they arrive. There is no
transition, no guard and nothing to reject: "terminal never reopens" follows, because a fact can
only fill a blank or lower a time.

How each part merges:

========== =========================================================================
part       rule
========== =========================================================================
facts      set union of fact digests; ``rev`` is its size
times      per milestone and clock the earliest time
marks      set union (the moments the provider called it queued or waiting)
claims     per claim handle: earliest claimed, minted, released; greatest runner, reason
attributes per field: known beats blank; of two known values the greater (they do not
           differ in practice: a provider fixes them when it creates the job)
runner     the one observed; known beats blank, of two the greater
ending     the earliest completed conclusion; a real conclusion beats ``unknown``
run        earliest started and completed of the parent run's attempt
========== =========================================================================
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, NamedTuple

from topics.models import ClaimFact, JobAttributes, JobFact, ParentRun, RunnerRef

#: More distinct facts than this about one job is not a job but a flood: a gated, re-requeued
#: matrix job with every event redelivered by two hooks stays below 60.
MAX_FACTS: Final = 1_000
#: Approval gates per job whose moments are kept; GitHub allows one gate per environment.
MAX_MARKS: Final = 256
#: Claims per job that are kept apart.
MAX_CLAIMS: Final = 64
#: Distinct causes per job that are kept.
MAX_CAUSES: Final = 64

UNKNOWN_CONCLUSION: Final = "unknown"


class TooManyFacts(ValueError):
    """The job already knows :data:`MAX_FACTS` facts; this one goes to the dead letters."""


class Claim(NamedTuple):
    """What is known about one claim. ``None`` is unknown; times are milliseconds."""

    claimed_at: int | None = None
    minted_at: int | None = None
    released_at: int | None = None
    runner: str = ""
    reason: str = ""


class Ending(NamedTuple):
    """How it ended. Ordered: the smallest wins (a real conclusion, then the earliest)."""

    unknown: bool
    at: int
    conclusion: str


class Attributes(NamedTuple):
    """What the job is. Blank and 0 mean unknown."""

    run_id: int = 0
    run_attempt: int = 0
    repo: str = ""
    workflow: str = ""
    name: str = ""
    branch: str = ""
    sha: str = ""
    url: str = ""
    labels: tuple[str, ...] = ()
    runner_group: str = ""
    pool: str = ""


BLANK: Final = Attributes()


class Runner(NamedTuple):
    """The runner observed to execute the job. ``name`` decides; id 0 is unknown."""

    name: str
    id: int = 0
    group: str = ""


class RunAttempt(NamedTuple):
    """What the parent run says about this job's attempt."""

    attempt: int = 0
    started_at: int | None = None
    completed_at: int | None = None
    conclusion: str | None = None


class Job(NamedTuple):
    """All that is known about one job. Immutable; :func:`merge` returns a new one."""

    key: str
    facts: frozenset[int] = frozenset()
    #: Earliest ``received_at`` of any fact: when we first heard of the job.
    first_seen: int = 0
    times: dict[str, dict[str, int]] = {}
    marks: frozenset[tuple[int, str]] = frozenset()
    attributes: Attributes = BLANK
    runner: Runner | None = None
    claims: dict[str, Claim] = {}
    ending: Ending | None = None
    run: RunAttempt | None = None
    causes: frozenset[str] = frozenset()

    @property
    def rev(self) -> int:
        """How many distinct facts are known. Grows, never falls: the version downstream."""
        return len(self.facts)

    @property
    def completed(self) -> bool:
        """Terminal: some clock says it completed."""
        return "completed" in self.times


def digest(fact_id: str) -> int:
    """Identity of a fact: 53 bits of its id, exact in a JSON number."""
    return int.from_bytes(blake2b(fact_id.encode(), digest_size=8).digest(), "big") >> 11


def merge(job: Job | None, fact: JobFact) -> Job:
    """Add one fact. Returns ``job`` itself when it says nothing new.

    Raises TooManyFacts when the job already knows as many facts as can be told apart.
    """
    seen = digest(fact.id)
    if job is not None and len(job.facts) >= MAX_FACTS and seen not in job.facts:
        raise TooManyFacts(
            f"job {job.key} already knows {MAX_FACTS} distinct facts; fact {fact.id} was refused"
        )
    # A repeated id is joined all the same: should a producer reuse an id for other content,
    # the outcome still does not depend on which came first.
    return join(job, _alone(fact, seen))


def join(a: Job | None, b: Job) -> Job:
    """Everything ``a`` and ``b`` know. Returns ``a`` itself when ``b`` adds nothing."""
    if a is None:
        return b
    if a.key != b.key:
        raise ValueError(f"cannot join facts of {b.key} to {a.key}")
    facts = a.facts if b.facts <= a.facts else a.facts | b.facts
    first_seen = min(a.first_seen, b.first_seen)
    times = _join_times(a.times, b.times)
    marks = a.marks if b.marks <= a.marks else _bounded_marks(a.marks | b.marks)
    attributes = _join_attributes(a.attributes, b.attributes)
    runner = _join_runner(a.runner, b.runner)
    claims = _join_claims(a.claims, b.claims)
    ending = _join_ending(a.ending, b.ending)
    run = _join_run(a.run, b.run)
    causes = a.causes if b.causes <= a.causes else _bounded_causes(a.causes | b.causes)
    if (
        facts is a.facts
        and first_seen == a.first_seen
        and times is a.times
        and marks == a.marks
        and attributes == a.attributes
        and runner == a.runner
        and claims is a.claims
        and ending == a.ending
        and run == a.run
        and causes == a.causes
    ):
        return a
    return Job(
        a.key, facts, first_seen, times, marks, attributes, runner, claims, ending, run, causes
    )


def _alone(fact: JobFact, seen: int) -> Job:
    """The Job that knows this one fact."""
    times: dict[str, dict[str, int]] = {
        # ``_value_`` is the plain attribute behind ``value``, which costs a call.
        milestone._value_: {clock._value_: at for clock, at in clocks.items()}
        for milestone, clocks in fact.times.items()
        if clocks
    }
    ending = None
    completed = times.get("completed")
    if completed:
        conclusion = fact.conclusion.value if fact.conclusion else UNKNOWN_CONCLUSION
        ending = Ending(conclusion == UNKNOWN_CONCLUSION, min(completed.values()), conclusion)
    return Job(
        key=fact.key,
        facts=frozenset((seen,)),
        first_seen=fact.received_at,
        times=times,
        marks=frozenset(fact.marks),
        attributes=_attributes(fact.job) if fact.job else BLANK,
        runner=_runner(fact.runner) if fact.runner else None,
        claims={fact.claim.handle: _claim(fact.claim)} if fact.claim else {},
        ending=ending,
        run=_run(fact.run) if fact.run else None,
        causes=frozenset((fact.cause,)),
    )


def _attributes(job: JobAttributes) -> Attributes:
    return Attributes(
        job.run_id,
        job.run_attempt,
        job.repo,
        job.workflow,
        job.name,
        job.branch,
        job.sha,
        job.url,
        job.labels,
        job.runner_group,
        job.pool,
    )


def _runner(ref: RunnerRef) -> Runner | None:
    # GitHub writes null, 0 and "" for "no runner"; none of them may match another blank.
    if not ref.name and not ref.id:
        return None
    return Runner(ref.name, ref.id or 0, ref.group)


def _claim(fact: ClaimFact) -> Claim:
    return Claim(fact.claimed_at, fact.minted_at, fact.released_at, fact.runner, fact.reason)


def _run(run: ParentRun) -> RunAttempt:
    conclusion = run.conclusion.value if run.conclusion else None
    return RunAttempt(run.attempt, run.started_at, run.completed_at, conclusion)


def _earliest(a: int | None, b: int | None) -> int | None:
    if a is None:
        return b
    return a if b is None or a <= b else b


def _join_times(
    a: dict[str, dict[str, int]], b: dict[str, dict[str, int]]
) -> dict[str, dict[str, int]]:
    out = a
    for milestone, clocks in b.items():
        known = out.get(milestone)
        if known is None:
            if out is a:
                out = dict(a)
            out[milestone] = clocks
            continue
        merged = known
        for clock, at in clocks.items():
            before = merged.get(clock)
            if before is None or at < before:
                if merged is known:
                    merged = dict(known)
                merged[clock] = at
        if merged is not known:
            if out is a:
                out = dict(a)
            out[milestone] = merged
    return out


def _bounded_marks(marks: frozenset[tuple[int, str]]) -> frozenset[tuple[int, str]]:
    # Keeping the smallest keeps the union associative: min-k of a union is a join too.
    return marks if len(marks) <= MAX_MARKS else frozenset(sorted(marks)[:MAX_MARKS])


def _bounded_causes(causes: frozenset[str]) -> frozenset[str]:
    return causes if len(causes) <= MAX_CAUSES else frozenset(sorted(causes)[:MAX_CAUSES])


def _join_attributes(a: Attributes, b: Attributes) -> Attributes:
    if a == b or b == BLANK:
        return a
    if a == BLANK:
        return b
    # Written out: eleven calls of max() were a tenth of the fold.
    labels, name = a.labels, a.name
    if labels != b.labels:
        labels = max(labels, b.labels, key=lambda known: (len(known), known))
    if name != b.name:
        name = max(name, b.name, key=_name_rank)
    return Attributes(
        a.run_id if a.run_id >= b.run_id else b.run_id,
        a.run_attempt if a.run_attempt >= b.run_attempt else b.run_attempt,
        a.repo if a.repo >= b.repo else b.repo,
        a.workflow if a.workflow >= b.workflow else b.workflow,
        name,
        a.branch if a.branch >= b.branch else b.branch,
        a.sha if a.sha >= b.sha else b.sha,
        a.url if a.url >= b.url else b.url,
        labels,
        a.runner_group if a.runner_group >= b.runner_group else b.runner_group,
        a.pool if a.pool >= b.pool else b.pool,
    )


def _name_rank(name: str) -> tuple[bool, str]:
    # A skipped job may carry its unevaluated expression: ``build (${{ matrix.os }})``.
    return (bool(name) and "${{" not in name, name)


def _join_runner(a: Runner | None, b: Runner | None) -> Runner | None:
    if a is None or b is None or a == b:
        return b if a is None else a
    return max(a, b)


def _join_claims(a: dict[str, Claim], b: dict[str, Claim]) -> dict[str, Claim]:
    out = a
    for handle, claim in b.items():
        known = out.get(handle)
        merged = claim if known is None else _join_claim(known, claim)
        if merged != known:
            if out is a:
                out = dict(a)
            out[handle] = merged
    if len(out) > MAX_CLAIMS:
        out = {handle: out[handle] for handle in sorted(out)[:MAX_CLAIMS]}
        if out == a:
            return a
    return out


def _join_claim(a: Claim, b: Claim) -> Claim:
    return Claim(
        _earliest(a.claimed_at, b.claimed_at),
        _earliest(a.minted_at, b.minted_at),
        _earliest(a.released_at, b.released_at),
        max(a.runner, b.runner),
        max(a.reason, b.reason),
    )


def _join_ending(a: Ending | None, b: Ending | None) -> Ending | None:
    if a is None or b is None:
        return b if a is None else a
    return min(a, b)


def _join_run(a: RunAttempt | None, b: RunAttempt | None) -> RunAttempt | None:
    if a is None or b is None or a == b:
        return b if a is None else a
    if a.attempt != b.attempt:
        return max(a, b, key=lambda run: run.attempt)
    return RunAttempt(
        a.attempt,
        _earliest(a.started_at, b.started_at),
        _earliest(a.completed_at, b.completed_at),
        max(a.conclusion or "", b.conclusion or "") or None,
    )
