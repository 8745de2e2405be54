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
facts      set union of fact digests; ``rev`` is its size (sets are sorted tuples: small)
first_seen the earliest time of arrival
last_seen  the latest day on which anything happened
times      per milestone and clock the earliest time
marks      set union (the moments the provider called it queued or waiting)
claims     per claim handle: earliest claimed, minted, released; greatest runner, reason
attributes ids: the greater. Labels: the longer set. All other text, per field: the one that
           was said last (a repository can be renamed while its job runs); what the provider
           says beats what a dispatcher says of the same, and known beats blank
runner     the one observed; known beats blank, of two the greater
ending     the earliest completed conclusion; a real conclusion beats ``unknown``
run        earliest started and completed of the parent run's attempt
========== =========================================================================

Every set is bounded, so that no flood of facts about one job can outgrow a record, and a bound
keeps the smallest (of moments and claims also the greatest) by a total order: that is a join, too.
Nothing is ever refused: the bounds cost count and detail of a flood, never a milestone or an
ending.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct
from xxhash import xxh3_64_intdigest

from topics.models import (
    ClaimFact,
    Clock,
    JobAttributes,
    JobFact,
    Milestone,
    ParentRun,
    RunnerRef,
)

#: Digests that are kept. More distinct facts than this about one job is not a job but a flood: a
#: gated, re-requeued matrix job with every event redelivered by two hooks stays below 60.
MAX_FACTS: Final = 1_000
#: Moments of queueing and waiting that are kept, half of them the first and half the last;
#: GitHub allows one gate per environment.
MAX_MARKS: Final = 256
#: Claims per job that are kept apart, half of them the first and half the last by their handles,
#: which mostly count up.
MAX_CLAIMS: Final = 64
#: Distinct causes per job that are kept.
MAX_CAUSES: Final = 64

DAY_MS: Final = 86_400_000

UNKNOWN_CONCLUSION: Final = "unknown"


class Claim(Struct, frozen=True, omit_defaults=True, gc=False):
    """What is known about one claim. ``None`` is unknown; times are milliseconds."""

    claimed_at: int | None = None
    minted_at: int | None = None
    released_at: int | None = None
    runner: str = ""
    reason: str = ""


class Ending(Struct, frozen=True, order=True, array_like=True, gc=False):
    """How it ended. Ordered: the smallest wins (a real conclusion, then the earliest)."""

    unknown: bool
    at: int
    conclusion: str


class Attributes(Struct, frozen=True, omit_defaults=True, gc=False):
    """What the job is. Blank and 0 mean unknown.

    ``at`` is when the text was last said, ``older`` the same for each field that was last said at
    another time. See :func:`_stamp`.
    """

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
    at: int = 0
    older: dict[str, int] = {}
    pool_at: int = 0


BLANK: Final = Attributes()


class Runner(Struct, frozen=True, order=True, gc=False):
    """The runner observed to execute the job. ``name`` decides; id 0 is unknown."""

    name: str
    id: int = 0
    group: str = ""


class RunAttempt(Struct, frozen=True, gc=False):
    """What the parent run says about this job's attempt."""

    attempt: int = 0
    started_at: int | None = None
    completed_at: int | None = None
    conclusion: str | None = None


class Job(
    Struct,
    frozen=True,
    gc=False,
    # What the two are called in a state record, from which a Job is read.
    rename={"first_seen": "received_at", "attributes": "job"},
):
    """All that is known about one job. Immutable; :func:`merge` returns a new one."""

    key: str
    #: Digests of the facts known, sorted.
    facts: tuple[int, ...]
    #: Earliest ``received_at`` of any fact: when we first heard of the job.
    first_seen: int
    #: The day of the latest event, as its first millisecond. Not of the latest arrival: a
    #: redelivery changes nothing. By the day, so that the index need not follow every fact.
    last_seen: int = 0
    times: dict[str, dict[str, int]] = {}
    marks: tuple[tuple[int, str], ...] = ()
    attributes: Attributes = BLANK
    runner: Runner | None = None
    claims: dict[str, Claim] = {}
    ending: Ending | None = None
    run: RunAttempt | None = None
    causes: tuple[str, ...] = ()

    @property
    def rev(self) -> int:
        """How many distinct facts are known. Grows, never falls: the version downstream."""
        known = len(self.facts)
        return known if known < MAX_FACTS else _rev_of_a_flood(self)

    @property
    def completed(self) -> bool:
        """Terminal: some clock says it completed."""
        return "completed" in self.times


def digest(fact_id: str) -> int:
    """Identity of a fact: 53 bits of its id, exact in a JSON number.

    Not cryptographic: two ids that are made to collide would count as one in ``rev``, and what
    they say would be merged all the same.
    """
    return xxh3_64_intdigest(fact_id.encode()) >> 11


def merge(job: Job | None, fact: JobFact) -> Job:
    """Add one fact. Returns ``job`` itself when it says nothing new.

    The same as joining the Job that knows this one fact, without making it first.
    """
    seen = digest(fact.id)
    if job is None:
        return _alone(fact, seen)
    if job.key != fact.key:
        raise ValueError(f"cannot merge a fact of {fact.key} into {job.key}")
    facts = job.facts
    place = bisect_left(facts, seen)
    if place == len(facts) or facts[place] != seen:
        facts = (*facts[:place], seen, *facts[place:])
    if len(facts) > MAX_FACTS:
        facts = job.facts if facts[-1] == seen else facts[:-1]
    # A repeated id is merged all the same: should a producer reuse an id for other content,
    # the outcome still does not depend on which came first.
    received = fact.received_at
    first_seen = job.first_seen if job.first_seen <= received else received
    last_seen = job.last_seen
    occurred = fact.occurred_at
    if occurred - last_seen >= DAY_MS:
        last_seen = occurred - occurred % DAY_MS
    times = _join_times(job.times, fact.times) if fact.times else job.times
    marks = job.marks
    for mark in fact.marks:
        marks = _with(marks, mark)
    if len(marks) > MAX_MARKS:
        marks = _union_marks(job.marks, fact.marks)
    attributes = job.attributes
    if fact.job is not None:
        attributes = _describe(attributes, fact.job, occurred)
    runner = job.runner
    if fact.runner is not None:
        runner = _join_runner(runner, _runner(fact.runner))
    claims = job.claims
    if fact.claim is not None:
        claims = _join_claims(claims, {fact.claim.handle: _claim(fact.claim)})
    ending = job.ending
    if "completed" in fact.times:
        ending = _join_ending(ending, _ending(fact))
    run = job.run
    if fact.run is not None:
        run = _join_run(run, _run(fact.run))
    causes = job.causes
    if fact.cause not in causes:
        if len(causes) < MAX_CAUSES:
            causes = _with(causes, fact.cause)
        else:
            causes = _union(causes, (fact.cause,), MAX_CAUSES)
    joined = Job(
        job.key,
        facts,
        first_seen,
        last_seen,
        times,
        marks,
        attributes,
        runner,
        claims,
        ending,
        run,
        causes,
    )
    # With a new fact it is another Job; only then is nothing to be compared.
    return job if facts is job.facts and joined == job else joined


def join(a: Job | None, b: Job) -> Job:
    """Everything ``a`` and ``b`` know. Returns ``a`` itself when ``b`` adds nothing."""
    if a is None:
        return b
    if a.key != b.key:
        raise ValueError(f"cannot join facts of {b.key} to {a.key}")
    facts = _union(a.facts, b.facts, MAX_FACTS)
    first_seen = min(a.first_seen, b.first_seen)
    last_seen = max(a.last_seen, b.last_seen)
    times = _join_times(a.times, b.times)
    marks = _union_marks(a.marks, b.marks)
    attributes = _join_attributes(a.attributes, b.attributes)
    runner = _join_runner(a.runner, b.runner)
    claims = _join_claims(a.claims, b.claims)
    ending = _join_ending(a.ending, b.ending)
    run = _join_run(a.run, b.run)
    causes = _union(a.causes, b.causes, MAX_CAUSES)
    joined = Job(
        a.key,
        facts,
        first_seen,
        last_seen,
        times,
        marks,
        attributes,
        runner,
        claims,
        ending,
        run,
        causes,
    )
    return a if joined == a else joined


def _alone(fact: JobFact, seen: int) -> Job:
    """The Job that knows this one fact."""
    return Job(
        key=fact.key,
        facts=(seen,),
        first_seen=fact.received_at,
        last_seen=fact.occurred_at - fact.occurred_at % DAY_MS,
        times=_join_times({}, fact.times),
        marks=_union_marks((), fact.marks),
        attributes=_describe(BLANK, fact.job, fact.occurred_at) if fact.job else BLANK,
        runner=_runner(fact.runner) if fact.runner else None,
        claims={fact.claim.handle: _claim(fact.claim)} if fact.claim else {},
        ending=_ending(fact),
        run=_run(fact.run) if fact.run else None,
        causes=(fact.cause,),
    )


def _ending(fact: JobFact) -> Ending | None:
    completed = fact.times.get(Milestone.COMPLETED)
    if not completed:
        return None
    conclusion = fact.conclusion._value_ if fact.conclusion else UNKNOWN_CONCLUSION
    return Ending(conclusion == UNKNOWN_CONCLUSION, min(completed.values()), conclusion)


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
    a: dict[str, dict[str, int]],
    b: Mapping[str, Mapping[str, int]] | Mapping[Milestone, Mapping[Clock, int]],
) -> dict[str, dict[str, int]]:
    """The earliest of both; ``a`` itself when ``b`` adds nothing. ``b`` may have enum keys, which
    are found like the strings they are; kept are plain strings."""
    out = a
    for milestone, clocks in b.items():
        known = out.get(milestone)
        if known is None:
            if not clocks:
                continue
            merged = {_PLAIN[clock]: at for clock, at in clocks.items()}
        else:
            merged = known
            for clock, at in clocks.items():
                before = merged.get(clock)
                if before is None or at < before:
                    if merged is known:
                        merged = known.copy()
                    merged[_PLAIN[clock]] = at
            if merged is known:
                continue
        if out is a:
            out = a.copy()
        out[_PLAIN[milestone]] = merged
    return out


#: Each milestone and clock as a plain string: both enums are looked up faster than asked.
_PLAIN: Final[dict[str, str]] = {each: each._value_ for each in (*Milestone, *Clock)}


def _with(known: tuple[Any, ...], one: Any) -> tuple[Any, ...]:
    """A sorted tuple with one more element; itself when it has it."""
    at = bisect_left(known, one)
    if at < len(known) and known[at] == one:
        return known
    return (*known[:at], one, *known[at:])


def _union(a: tuple[Any, ...], b: tuple[Any, ...], most: int | None = None) -> tuple[Any, ...]:
    """The smallest ``most`` of both, sorted; ``a`` itself when ``b`` adds nothing.

    Keeping the smallest keeps the union associative: min-k of a union is a join, too.
    """
    joined = tuple(sorted({*a, *b})[:most])
    return a if joined == a else joined


def _union_marks(
    a: tuple[tuple[int, str], ...], b: tuple[tuple[int, str], ...]
) -> tuple[tuple[int, str], ...]:
    """The first and the last moments of both: where a job is hangs on the last of them."""
    joined = tuple(sorted({*a, *b}))
    if len(joined) > MAX_MARKS:
        joined = tuple(_ends(joined, MAX_MARKS))
    return a if joined == a else joined


def _ends(known: Sequence[Any], most: int) -> list[Any]:
    """Of a sorted sequence the first and the last, ``most`` in all.

    What is among them is among them in every part of the sequence, too. So nothing that is kept
    in the end was ever dropped, which makes this a join.
    """
    last = most // 2
    return [*known[: most - last], *known[len(known) - last :]]


# --- what a job is: of each text the one that was said last ---------------------------------------

#: Text fields whose stamps are ``at``, or in ``older``. Pools come from dispatchers, which say
#: nothing else, so a pool has a stamp of its own.
_TEXTS: Final = ("repo", "workflow", "name", "branch", "sha", "url", "runner_group")

#: Added to the stamp of what is worth less, whenever it was said: it stays below all others.
_LESSER: Final = -(2**43)


def _stamp(a: Attributes, name: str) -> int:
    """When a known text was last said, in ms; so far below zero for what is worth less."""
    return a.older.get(name, a.at)


def _describe(a: Attributes, said: JobAttributes, at: int) -> Attributes:
    """Add what a fact of the time ``at`` says the job is; ``a`` itself when that adds nothing."""
    if not (said.run_id or said.name or said.url):
        # A dispatcher's word: it may know the repository, but not better than the provider.
        if not (said.labels or said.workflow or said.branch or said.sha or said.runner_group):
            known = _told(a, said, at)
            if known is not None:
                return known
        b = Attributes(
            repo=said.repo,
            workflow=said.workflow,
            branch=said.branch,
            sha=said.sha,
            labels=said.labels,
            runner_group=said.runner_group,
            run_attempt=said.run_attempt,
            pool=said.pool,
            at=at + _LESSER,
            pool_at=at if said.pool else 0,
        )
        return _join_attributes(a, b)
    if "${{" in said.name:
        # A skipped job may carry its unevaluated expression: ``build (${{ matrix.os }})``.
        older = {"name": at + _LESSER}
    elif (
        at > a.at
        and not a.older
        and not said.pool
        and (said.name or said.repo or said.url)
        and (said.repo or not a.repo)
        and (said.workflow or not a.workflow)
        and (said.name or not a.name)
        and (said.branch or not a.branch)
        and (said.sha or not a.sha)
        and (said.url or not a.url)
        and (said.runner_group or not a.runner_group)
    ):
        # Nearly every fact: later, and says at least all that is known. Written out, because
        # this is the hottest part of the fold.
        labels = a.labels
        if labels != said.labels and said.labels:
            labels = max(labels, said.labels, key=_labels_rank)
        return Attributes(
            a.run_id if a.run_id >= said.run_id else said.run_id,
            a.run_attempt if a.run_attempt >= said.run_attempt else said.run_attempt,
            said.repo,
            said.workflow,
            said.name,
            said.branch,
            said.sha,
            said.url,
            labels,
            said.runner_group,
            a.pool,
            at,
            {},
            a.pool_at,
        )
    else:
        older = {}
    b = Attributes(
        said.run_id,
        said.run_attempt,
        said.repo,
        said.workflow,
        said.name,
        said.branch,
        said.sha,
        said.url,
        said.labels,
        said.runner_group,
        said.pool,
        at,
        older,
        at if said.pool else 0,
    )
    return _join_attributes(a, b)


def _told(a: Attributes, said: JobAttributes, at: int) -> Attributes | None:
    """Add what a dispatcher says where that is easy: as nearly always, pool and repository."""
    run_attempt = a.run_attempt if a.run_attempt >= said.run_attempt else said.run_attempt
    pool, pool_at = a.pool, a.pool_at
    if said.pool and (at, said.pool) > (pool_at, pool):
        pool, pool_at = said.pool, at
    repo, stamp = a.repo, a.at
    if said.repo and not (repo and stamp >= 0 and not a.older):
        if a.older or a.workflow or a.name or a.branch or a.sha or a.url or a.runner_group:
            return None
        lesser = at + _LESSER
        if not repo or (lesser, said.repo) > (stamp, repo):
            repo, stamp = said.repo, lesser
    return Attributes(
        a.run_id,
        run_attempt,
        repo,
        a.workflow,
        a.name,
        a.branch,
        a.sha,
        a.url,
        a.labels,
        a.runner_group,
        pool,
        stamp,
        a.older,
        pool_at,
    )


def _join_attributes(a: Attributes, b: Attributes) -> Attributes:
    """Everything both know; ``a`` itself when ``b`` adds nothing."""
    texts: dict[str, str] = {}
    stamps: dict[str, int] = {}
    for name in _TEXTS:
        mine, other = getattr(a, name), getattr(b, name)
        if not mine and not other:
            continue
        if not other:
            texts[name], stamps[name] = mine, _stamp(a, name)
        elif not mine:
            texts[name], stamps[name] = other, _stamp(b, name)
        else:
            # Of two said at the same time the greater, so that order does not matter.
            stamps[name], texts[name] = max((_stamp(a, name), mine), (_stamp(b, name), other))
    at = max(stamps.values(), default=0)
    pool_at, pool = max((a.pool_at, a.pool), (b.pool_at, b.pool))
    joined = Attributes(
        run_id=max(a.run_id, b.run_id),
        run_attempt=max(a.run_attempt, b.run_attempt),
        labels=max(a.labels, b.labels, key=_labels_rank),
        pool=pool,
        at=at,
        older={name: stamp for name, stamp in stamps.items() if stamp != at},
        pool_at=pool_at,
        **texts,
    )
    return a if joined == a else joined


def _labels_rank(labels: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    return len(labels), labels


def _rev_of_a_flood(job: Job) -> int:
    """``rev`` of a job that knows as many facts as are told apart, or more.

    The kept digests are the smallest of all, and digests are spread evenly: so the largest of
    them tells how many there must be. To that estimate is added how much else is known, so that a
    milestone or an ending always counts. Both can only grow. (Facts at the bound that do not
    change the estimate change nothing that is kept, or refine a time that is known.)
    """
    known = len(job.facts)
    estimated = (known - 1) * 2**53 // max(job.facts[-1], 1)
    what = sum(map(len, job.times.values())) + len(job.claims) + len(job.marks) + len(job.causes)
    what += job.runner is not None
    if job.ending is not None:
        what += 1 if job.ending.unknown else 2
    if job.run is not None:
        what += 2 * job.run.attempt + (job.run.completed_at is not None)
    return max(known, estimated) + what


def _join_runner(a: Runner | None, b: Runner | None) -> Runner | None:
    if a is None or b is None:
        return b if a is None else a
    return a if a >= b else b


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
        out = {handle: out[handle] for handle in _ends(sorted(out), MAX_CLAIMS)}
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
    return a if a <= b else b


def _join_run(a: RunAttempt | None, b: RunAttempt | None) -> RunAttempt | None:
    if a is None or b is None or a == b:
        return b if a is None else a
    if a.attempt != b.attempt:
        return a if a.attempt > b.attempt else b
    joined = RunAttempt(
        a.attempt,
        _earliest(a.started_at, b.started_at),
        _earliest(a.completed_at, b.completed_at),
        max(a.conclusion or "", b.conclusion or "") or None,
    )
    return a if joined == a else joined
