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
claims     per claim handle: earliest claimed, minted, released, displaced; latest lost, found;
           greatest runner, reason
attributes ids: the greater. Labels: the longer set. All other text, per field: the one that
           was said last (a repository can be renamed while its job runs); what the provider
           says beats what a dispatcher says of the same, and known beats blank
runner     the one observed; known beats blank, of two the greater; latest lost, found
ending     the earliest completed conclusion; a real conclusion beats ``unknown``
run        earliest started and completed of the parent run's attempt
steps      per number: greatest name, earliest started and completed, a real conclusion
recovery   see :mod:`pipeline.jobs.stalls`
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
from msgspec.structs import replace
from xxhash import xxh3_64_intdigest

from pipeline.jobs.attributes import BLANK, Attributes, describe, join_attributes
from pipeline.jobs.stalls import Recovery, add_stall, join_recovery, told_rev
from topics.envelope import MAX_STEPS
from topics.models import ClaimFact, Clock, JobFact, Milestone, ParentRun, RunnerRef
from topics.models import Step as StepFact

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
    #: Its runner executes another job; its runner is gone; it was seen alive with the job again.
    displaced_at: int | None = None
    lost_at: int | None = None
    found_at: int | None = None

    @property
    def lost(self) -> int | None:
        """Since when its runner is gone, in ms; None while it lives."""
        return _lost(self.lost_at, self.found_at)


class Ending(Struct, frozen=True, order=True, array_like=True, gc=False):
    """How it ended. Ordered: the smallest wins (a real conclusion, then the earliest)."""

    unknown: bool
    at: int
    conclusion: str


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


class Step(Struct, frozen=True, omit_defaults=True, gc=False):
    """What is known about one step. ``None`` is unknown; times are milliseconds."""

    number: int
    name: str = ""
    conclusion: str | None = None
    started_at: int | None = None
    completed_at: int | None = None


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
    #: By number.
    steps: tuple[Step, ...] = ()
    #: The runner observed to execute it is gone since; was seen alive with it again.
    lost_at: int | None = None
    recovery: Recovery | None = None
    found_at: int | None = None

    @property
    def rev(self) -> int:
        """How many distinct facts are known. Grows, never falls: the version downstream."""
        known = len(self.facts)
        rev = known if known < MAX_FACTS else _rev_of_a_flood(self)
        return rev if self.recovery is None else rev + told_rev(self.recovery)

    @property
    def lost(self) -> int | None:
        """Since when the runner observed to execute it is gone, in ms; None while it lives."""
        return _lost(self.lost_at, self.found_at)

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
    if fact.stall is not None:
        return _with_stall(job, fact, seen)
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
        attributes = describe(attributes, fact.job, occurred)
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
    steps = job.steps
    if fact.steps:
        steps = _join_steps(steps, _steps(fact.steps))
    lost_at = job.lost_at if fact.lost_at is None else _latest(job.lost_at, fact.lost_at)
    found_at = job.found_at if fact.found_at is None else _latest(job.found_at, fact.found_at)
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
        steps,
        lost_at,
        job.recovery,
        found_at,
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
    attributes = join_attributes(a.attributes, b.attributes)
    runner = _join_runner(a.runner, b.runner)
    claims = _join_claims(a.claims, b.claims)
    ending = _join_ending(a.ending, b.ending)
    run = _join_run(a.run, b.run)
    causes = _union(a.causes, b.causes, MAX_CAUSES)
    steps = _join_steps(a.steps, b.steps)
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
        steps,
        _latest(a.lost_at, b.lost_at),
        join_recovery(a.recovery, b.recovery) if a.recovery or b.recovery else None,
        _latest(a.found_at, b.found_at),
    )
    return a if joined == a else joined


def _with_stall(job: Job, fact: JobFact, seen: int) -> Job:
    """Add what was asked or done about the job, which says nothing of the job itself."""
    assert fact.stall is not None
    recovery = add_stall(job.recovery, seen, fact.stall)
    received = fact.received_at
    if recovery is job.recovery and received >= job.first_seen:
        return job
    return replace(job, recovery=recovery, first_seen=min(job.first_seen, received))


def _alone(fact: JobFact, seen: int) -> Job:
    """The Job that knows this one fact."""
    if fact.stall is not None:
        told = add_stall(None, seen, fact.stall)
        return Job(fact.key, (), fact.received_at, recovery=told)
    return Job(
        key=fact.key,
        facts=(seen,),
        first_seen=fact.received_at,
        last_seen=fact.occurred_at - fact.occurred_at % DAY_MS,
        times=_join_times({}, fact.times),
        marks=_union_marks((), fact.marks),
        attributes=describe(BLANK, fact.job, fact.occurred_at) if fact.job else BLANK,
        runner=_runner(fact.runner) if fact.runner else None,
        claims={fact.claim.handle: _claim(fact.claim)} if fact.claim else {},
        ending=_ending(fact),
        run=_run(fact.run) if fact.run else None,
        causes=(fact.cause,),
        steps=_join_steps((), _steps(fact.steps)),
        lost_at=fact.lost_at,
        found_at=fact.found_at,
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
    return Claim(
        fact.claimed_at,
        fact.minted_at,
        fact.released_at,
        fact.runner,
        fact.reason,
        fact.displaced_at,
        fact.lost_at,
        fact.found_at,
    )


def _run(run: ParentRun) -> RunAttempt:
    conclusion = run.conclusion.value if run.conclusion else None
    return RunAttempt(run.attempt, run.started_at, run.completed_at, conclusion)


def _steps(steps: Sequence[StepFact]) -> tuple[Step, ...]:
    made = []
    for step in steps:
        fields = step.__dict__
        conclusion = fields["conclusion"]
        made.append(
            Step(
                fields["number"],
                fields["name"],
                None if conclusion is None else conclusion._value_,
                fields["started_at"],
                fields["completed_at"],
            )
        )
    return tuple(made)


def _earliest(a: int | None, b: int | None) -> int | None:
    if a is None:
        return b
    return a if b is None or a <= b else b


def _latest(a: int | None, b: int | None) -> int | None:
    if a is None:
        return b
    return a if b is None or a >= b else b


def _lost(lost_at: int | None, found_at: int | None) -> int | None:
    return None if lost_at is None or (found_at is not None and found_at >= lost_at) else lost_at


def _conclusion(a: str | None, b: str | None) -> str | None:
    """Known beats ``unknown``, which beats blank; of two that are known the greater."""
    if a is None or b is None or a == UNKNOWN_CONCLUSION:
        return b if a is None or b is not None else a
    return a if b == UNKNOWN_CONCLUSION or a >= b else b


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
    what += len(job.steps) + (job.runner is not None)
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
        _earliest(a.displaced_at, b.displaced_at),
        _latest(a.lost_at, b.lost_at),
        _latest(a.found_at, b.found_at),
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
        _conclusion(a.conclusion, b.conclusion),
    )
    return a if joined == a else joined


def _join_steps(a: tuple[Step, ...], b: tuple[Step, ...]) -> tuple[Step, ...]:
    """What both know of each step, by number; ``a`` itself when ``b`` adds nothing."""
    if a == b or not b:
        return a
    known = {step.number: step for step in a}
    for step in b:
        number = step.number
        other = known.get(number)
        if other is None:
            known[number] = step
        elif other != step:
            known[number] = _join_step(other, step)
    joined = tuple(known.values())
    numbers = sorted(known)
    if len(numbers) > MAX_STEPS or numbers != list(known):
        joined = tuple([known[number] for number in numbers[:MAX_STEPS]])
    return a if joined == a else joined


def _join_step(a: Step, b: Step) -> Step:
    return Step(
        a.number,
        max(a.name, b.name),
        _conclusion(a.conclusion, b.conclusion),
        _earliest(a.started_at, b.started_at),
        _earliest(a.completed_at, b.completed_at),
    )
