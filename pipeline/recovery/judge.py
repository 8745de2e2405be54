"""What is to be done about a job at a tick: ask, propose, tell, or look again later. Pure.

:func:`judge` is the life of a stall. It is opened by the first look that finds it, asked about
until an answer proves something, then proposed until the fleet issues a command, then left alone
until that has ended. A further command waits for a cool-down, needs a new answer, and after the
most attempts, or too many requeues in a row, the job is left to a person.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from pipeline.jobs.facts import Job
from pipeline.jobs.stalls import Answered, Head, Issued, Stall, latest
from pipeline.jobs.status import View
from pipeline.recovery.policy import RecoveryPolicy
from pipeline.recovery.rules import ASKED, Suspect, after_the_end, released, remedy, suspect
from topics.recovery import MOVED_ON, Answer, CommandKind, Result, StallKind

#: After the end of a command's time the fleet says that it expired; then we do.
_GRACE_MS: Final = 30_000
#: How a run ended comes to the job through the run's own log: for so long it is waited for.
_RUN_MS: Final = 60_000


class Ask(Struct, frozen=True, gc=False):
    """Ask the provider: question ``k`` of stall ``n``."""

    n: int
    k: int
    suspect: Suspect
    opened_at: int


class Propose(Struct, frozen=True, gc=False):
    """Propose a command to the fleet: proposal ``k`` of stall ``n``."""

    n: int
    k: int
    suspect: Suspect
    opened_at: int
    command: CommandKind
    attempt: int
    #: Why: the stall's kind, or that there are too many of them.
    reason: StallKind
    answered: Answered | None


class Tell(Struct, frozen=True, gc=False):
    """Record that the job is over, as its question was answered."""

    n: int
    answer: str
    at: int


class Judgement(Struct, frozen=True, gc=False):
    """What to do now, and when to look again; None: when something new is known."""

    todo: Ask | Propose | Tell | None
    again: int | None


_NOTHING: Final = Judgement(None, None)


def next_look(job: Job, v: View, policy: RecoveryPolicy) -> int | None:
    """When a rule has to look at the job as it is known now; None: not before news."""
    return judge(job, v, 0, policy).again


def judge(job: Job, v: View, at: int, policy: RecoveryPolicy) -> Judgement:
    """What a tick at ``at`` has to do about the job. Before its time nothing but when that is."""
    if v.status == "completed":
        return _cleared(job, at, policy) if job.recovery is not None else _NOTHING
    found = suspect(job, v, policy)
    if found is None:
        return _NOTHING
    n, stall = _stall_of(job, found)
    if stall is None:
        if at < found.due:
            return Judgement(None, found.due)
        if found.kind in ASKED:
            return Judgement(Ask(n, 1, found, at), at + policy.ask_ms)
        stall = Stall(_head(found, at))
    if stall.answered is not None and stall.answered.answer in (Answer.GHOST, Answer.GONE):
        told = _over(job, n, stall, at, policy)
        if told is not None:
            return told
    free = _free_at(job, found.kind, policy)
    if free is None:
        return _NOTHING
    if at < free:
        return Judgement(None, free)
    return _proceed(job, found, n, stall, at, policy)


def is_left(job: Job) -> bool:
    """Whether the job was left to a person: nothing further is tried."""
    return any(issued.command == CommandKind.QUARANTINE for issued in _issued(job))


def open_stall(job: Job, v: View, policy: RecoveryPolicy) -> tuple[int, Stall] | None:
    """The number and the state of the stall the job is in; None when it is in none.

    A completed job is in one while whoever held it is still to be told.
    """
    last = latest(job.recovery)
    if last is None:
        return None
    if v.status == "completed":
        return last if _cleared(job, 0, policy).again is not None else None
    found = suspect(job, v, policy)
    return last if found is not None and _stall_of(job, found)[1] is not None else None


def _proceed(
    job: Job, found: Suspect, n: int, stall: Stall, at: int, policy: RecoveryPolicy
) -> Judgement:
    """Ask or propose, whichever is next."""
    answered = _answer_now(job, stall, at, policy)
    age = at - found.since
    command = remedy(found.kind, answered.answer if answered else "", age, policy)
    asked = stall.asked
    if found.kind in ASKED and command is CommandKind.CLOSE and asked is None:
        command = None  # at least one question first
    if command is None:
        when = _ask_at(found, stall, answered, policy)
        if at < when:
            return Judgement(None, when)
        k = 1 if asked is None else asked.k + 1
        return Judgement(Ask(n, k, found, stall.head.opened_at), at + policy.ask_ms)
    again = _proposed_again(stall, policy)
    if at < again:
        return Judgement(None, again)
    k = 1 if stall.proposed is None else stall.proposed.k + 1
    reason, attempt = found.kind, len(_issued(job)) + 1
    if command is not CommandKind.CLOSE and _hopeless(_tried(job), at, policy):
        command, reason = CommandKind.QUARANTINE, StallKind.FLAPPING
    return Judgement(
        Propose(n, k, found, stall.head.opened_at, command, attempt, reason, answered),
        at + policy.propose_again_ms,
    )


def _stall_of(job: Job, found: Suspect) -> tuple[int, Stall | None]:
    """The number of the suspect's stall, and the stall if it was opened already."""
    last = latest(job.recovery)
    if last is None:
        return 1, None
    n, stall = last
    head = stall.head
    same = head.kind == found.kind and head.claim == found.claim
    if same and found.kind is StallKind.STALE_QUEUE:
        # Released since: it waits anew.
        same = max(released(job), default=0) <= head.opened_at
    return (n, stall) if same else (n + 1, None)


def _head(found: Suspect, at: int) -> Head:
    return Head(at, found.since, found.kind.value, found.claim)


def _over(job: Job, n: int, stall: Stall, at: int, policy: RecoveryPolicy) -> Judgement | None:
    """Tell the job that it is over, when that is proven."""
    answered = stall.answered
    assert answered is not None
    if answered.answer == Answer.GONE:
        unknown = stall.unknown_for()
        if unknown is None or unknown < policy.gone_ms:
            return None
    elif (job.run is None or job.run.conclusion is None) and at < answered.at + _RUN_MS:
        return Judgement(None, answered.at + _RUN_MS)
    if at < answered.at:
        return Judgement(None, answered.at)
    return Judgement(Tell(n, answered.answer, answered.at), at + policy.propose_again_ms)


def _cleared(job: Job, at: int, policy: RecoveryPolicy) -> Judgement:
    """A job that has ended: what whoever held it must be told, at most three times."""
    last = latest(job.recovery)
    assert last is not None
    n, stall = last
    command = after_the_end(job, stall)
    if command is None or _settled(stall):
        return _NOTHING
    free = _free_at(job, None, policy)
    when = max(_proposed_again(stall, policy), 0 if free is None else free)
    if free is None:
        return _NOTHING
    if at < when:
        return Judgement(None, when)
    k = 1 if stall.proposed is None else stall.proposed.k + 1
    head = stall.head
    found = Suspect(StallKind(head.kind), head.since, head.since, head.claim)
    attempt = len(_issued(job)) + 1
    return Judgement(
        Propose(n, k, found, head.opened_at, command, attempt, found.kind, stall.answered),
        at + policy.propose_again_ms,
    )


def _settled(stall: Stall) -> bool:
    """Whether a command of the stall was done, will never be, or was tried often enough.

    One that news overtook did nothing, and what it was for is still to be done: the run of a ghost
    is told a moment after the answer, and the command of a job judged in between is refused.
    """
    overtaken = {
        attempt
        for attempt, ended in stall.ended.items()
        if (ended.result, ended.reason) == (Result.REFUSED, MOVED_ON)
    }
    final = (Result.DONE, Result.REFUSED, Result.CANNOT)
    return len(stall.issued.keys() - overtaken) >= 3 or any(
        ended.result in final and attempt not in overtaken for attempt, ended in stall.ended.items()
    )


def _answer_now(job: Job, stall: Stall, at: int, policy: RecoveryPolicy) -> Answered | None:
    """The answer that counts: of the last question, fresh, and younger than the last command."""
    answered, asked = stall.answered, stall.asked
    if answered is None or (asked is not None and answered.k < asked.k):
        return None
    if answered.at + policy.answer_ms < at:
        return None
    proposed = stall.proposed
    if (
        proposed is not None
        and proposed.at >= answered.at
        and str(proposed.attempt) in stall.issued
    ):
        return None  # a command rested on it, also where the fleet's clock was behind
    last = max((issued.at for issued in _issued(job)), default=0)
    return answered if answered.at > last else None


def _ask_at(found: Suspect, stall: Stall, answered: Answered | None, policy: RecoveryPolicy) -> int:
    """When the next question is due."""
    asked = stall.asked
    if asked is None:
        return found.due
    last = stall.answered
    if last is None or last.k < asked.k:
        return asked.at + policy.ask_ms
    if last.answer in (Answer.UNKNOWN, Answer.GONE):
        wait = policy.ask_again_ms << min(asked.k - 1, 8)
        return last.at + min(wait, policy.ask_again_most_ms)
    if last.answer == Answer.QUEUED and found.kind is not StallKind.MISSED_COMPLETION:
        # It was good for a command that has ended, or is too old, or nothing is to be done.
        wait = policy.stale_queue_ms if answered is not None else 0
        return last.at + wait
    if found.kind is StallKind.MISSED_COMPLETION:
        return last.at + policy.running_ms
    return last.at + policy.ask_ms


def _proposed_again(stall: Stall, policy: RecoveryPolicy) -> int:
    """When a proposal may be made again that led to no command."""
    proposed = stall.proposed
    if proposed is None:
        return 0
    # Each repeat is a record of the job: they become rarer.
    wait = policy.propose_again_ms << min(proposed.k - 1, 8)
    return proposed.at + min(wait, policy.propose_again_most_ms)


def _issued(job: Job) -> list[Issued]:
    """All commands that were issued for the job."""
    recovery = job.recovery
    if recovery is None:
        return []
    return [issued for stall in recovery.stalls.values() for issued in stall.issued.values()]


def _tried(job: Job) -> list[Issued]:
    """Those that count as attempts: a refused one hit nothing, because the job had moved on."""
    recovery = job.recovery
    if recovery is None:
        return []
    return [
        issued
        for stall in recovery.stalls.values()
        for attempt, issued in stall.issued.items()
        if attempt not in stall.ended or stall.ended[attempt].result != Result.REFUSED
    ]


def _free_at(job: Job, kind: StallKind | None, policy: RecoveryPolicy) -> int | None:
    """From when on another command may be proposed; None: never, it is left to a person.

    ``kind`` None: the job is over.
    """
    recovery = job.recovery
    if recovery is None:
        return 0
    free, last, person = 0, 0, False
    for stall in recovery.stalls.values():
        for attempt, command in stall.issued.items():
            person |= command.command == CommandKind.QUARANTINE
            ended = stall.ended.get(attempt)
            if ended is not None and ended.result == Result.REFUSED:
                # It did nothing: only what moved on is given time to settle.
                free = max(free, ended.at + policy.propose_again_ms)
                continue
            last = max(last, command.at)
            # In flight until it has ended, or cannot be done any more.
            free = max(free, command.expires_at + _GRACE_MS if ended is None else ended.at)
    if not last or kind is None:
        return free
    cool = min(policy.cool_down_ms << max(len(_tried(job)) - 1, 0), policy.cool_down_most_ms)
    if kind is StallKind.STALE_QUEUE:
        cool = max(cool, policy.stale_queue_ms)
    if person:
        # But what the provider has given up is closed all the same.
        return last + policy.hopeless_ms if kind is StallKind.STALE_QUEUE else None
    return max(free, last + cool)


def _hopeless(attempts: list[Issued], at: int, policy: RecoveryPolicy) -> bool:
    """Whether enough was tried."""
    within = [
        each
        for each in attempts
        if each.command == CommandKind.REQUEUE and each.at > at - policy.flapping_window_ms
    ]
    return len(within) >= policy.flapping or len(attempts) >= policy.most_attempts
