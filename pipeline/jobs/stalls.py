"""What a job knows of its stalls: what was asked, answered, proposed, decided, done. Pure.

Merged like all that is known about a job, by a join, so that order and repeats cannot matter:

========= ====================================================================
part      rule
========= ====================================================================
told      set union of fact digests, apart from those about the job itself
stalls    by number: the least head (kind, since, opening, fence)
asked     the greatest question
answered  the answer to the greatest question
gone      the answers to the three greatest questions to which the provider did not know the job
known_k   the greatest question to which it said something else
proposed  the greatest proposal
withheld  the greatest proposal that was withheld
issued    per attempt the earliest
ended     per attempt the strongest result (done first, expired last), the earliest
========= ====================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from msgspec import Struct

from topics.recovery import Answer, Result, StallFact, StallKind

#: Stalls of a job that are kept, half of them the first and half the last.
MAX_STALLS: Final = 64
#: Digests of facts about stalls that are kept.
MAX_TOLD: Final = 1_000
#: So many answers in a row must say that the provider does not know a job before it is believed.
GONE_ANSWERS: Final = 3

#: The stronger a result, the smaller its place.
_STRENGTH: Final = {result.value: place for place, result in enumerate(Result)}

_T = TypeVar("_T")


class Head(Struct, frozen=True, order=True, array_like=True, gc=False):
    """What opened a stall. ``claim`` and ``rev`` are its fence."""

    opened_at: int
    since: int
    kind: str
    claim: str = ""
    rev: int = 0


class Asked(Struct, frozen=True, order=True, array_like=True, gc=False):
    """A question."""

    k: int
    at: int


class Answered(Struct, frozen=True, order=True, array_like=True, gc=False):
    """The answer to question ``k``."""

    k: int
    at: int
    answer: str
    detail: str = ""


class Proposed(Struct, frozen=True, order=True, array_like=True, gc=False):
    """A proposal: to command ``command`` as the job's ``attempt``."""

    k: int
    at: int
    command: str
    attempt: int


class Withheld(Struct, frozen=True, order=True, array_like=True, gc=False):
    """Proposal ``k`` was withheld."""

    k: int
    at: int
    why: str


class Issued(Struct, frozen=True, order=True, array_like=True, gc=False):
    """An attempt was commanded."""

    at: int
    expires_at: int
    command: str


class Ended(Struct, frozen=True, array_like=True, gc=False):
    """How an attempt ended."""

    at: int
    result: str
    reason: str = ""


class Stall(Struct, frozen=True, omit_defaults=True, gc=False):
    """One spell of a job in a wrong state. ``None`` and empty are: not yet. Times are ms."""

    head: Head
    asked: Asked | None = None
    answered: Answered | None = None
    gone: tuple[Asked, ...] = ()
    known_k: int = 0
    proposed: Proposed | None = None
    withheld: Withheld | None = None
    #: By the number of the attempt, as text: keys of a JSON object.
    issued: dict[str, Issued] = {}
    ended: dict[str, Ended] = {}

    def unknown_for(self) -> int | None:
        """For how long the provider has said, and nothing else, that it does not know the job, in
        ms; None when it has not said so often enough."""
        last = [each.at for each in self.gone if each.k > self.known_k]
        return max(last) - min(last) if len(last) >= GONE_ANSWERS else None


class Recovery(Struct, frozen=True, omit_defaults=True, gc=False):
    """A job's stalls by number, as text, and the digests of what was told about them, sorted."""

    told: tuple[int, ...] = ()
    stalls: dict[str, Stall] = {}


def add_stall(known: Recovery | None, seen: int, fact: StallFact) -> Recovery:
    """Add what a fact with this digest says. Returns ``known`` itself when that is nothing new."""
    return join_recovery(known, Recovery((seen,), {str(fact.n): _stall(fact)}))


def join_recovery(a: Recovery | None, b: Recovery | None) -> Recovery:
    """Everything both know; ``a`` itself when ``b`` adds nothing. One of them is not None."""
    if a is None or b is None:
        one = b if a is None else a
        assert one is not None
        return one
    stalls = a.stalls
    for n, stall in b.stalls.items():
        known = stalls.get(n)
        joined = stall if known is None else _join(known, stall)
        if joined != known:
            stalls = {**stalls, n: joined}
    if len(stalls) > MAX_STALLS:
        numbers = sorted(stalls, key=int)
        half = MAX_STALLS // 2
        kept = {*numbers[:half], *numbers[-half:]}
        stalls = {n: stall for n, stall in stalls.items() if n in kept}
    told = tuple(sorted({*a.told, *b.told})[:MAX_TOLD])
    if told == a.told and stalls == a.stalls:
        return a
    return Recovery(told, dict(sorted(stalls.items(), key=lambda each: int(each[0]))))


def told_rev(recovery: Recovery | None) -> int:
    """How many distinct facts about stalls are known. It only grows."""
    if recovery is None:
        return 0
    known = len(recovery.told)
    if known < MAX_TOLD:
        return known
    # Of a flood the smallest are kept, spread evenly: the largest of them tells how many.
    return max(known, (known - 1) * 2**53 // max(recovery.told[-1], 1))


def latest(recovery: Recovery | None) -> tuple[int, Stall] | None:
    """The last stall and its number."""
    if recovery is None or not recovery.stalls:
        return None
    n = max(map(int, recovery.stalls))
    return n, recovery.stalls[str(n)]


def _stall(fact: StallFact) -> Stall:
    answered, decided, ended = fact.answered, fact.decided, fact.ended
    issued: dict[str, Issued] = {}
    withheld = None
    if decided is not None and decided.withheld is not None:
        withheld = Withheld(decided.k, decided.at, decided.withheld.value)
    elif decided is not None:
        command = "" if decided.command is None else decided.command.value
        expires_at = decided.expires_at or decided.at
        issued[str(decided.attempt)] = Issued(decided.at, expires_at, command)
    is_gone = answered is not None and answered.answer is Answer.GONE
    return Stall(
        Head(fact.opened_at, fact.since, fact.kind.value, fact.fence.claim, fact.fence.rev),
        None if fact.asked is None else Asked(fact.asked.k, fact.asked.at),
        None
        if answered is None
        else Answered(answered.k, answered.at, answered.answer.value, answered.detail),
        (Asked(answered.k, answered.at),) if answered is not None and is_gone else (),
        0 if answered is None or is_gone else answered.k,
        None
        if fact.proposed is None
        else Proposed(
            fact.proposed.k, fact.proposed.at, fact.proposed.command.value, fact.proposed.attempt
        ),
        withheld,
        issued,
        {}
        if ended is None
        else {str(ended.attempt): Ended(ended.at, ended.result.value, ended.reason)},
    )


def _join(a: Stall, b: Stall) -> Stall:
    return Stall(
        min(a.head, b.head, key=_head_order),
        _greater(a.asked, b.asked),
        _greater(a.answered, b.answered),
        _last_gone(a.gone, b.gone),
        max(a.known_k, b.known_k),
        _greater(a.proposed, b.proposed),
        _greater(a.withheld, b.withheld),
        _merged(a.issued, b.issued, _earlier),
        _merged(a.ended, b.ended, _stronger),
    )


def _last_gone(a: tuple[Asked, ...], b: tuple[Asked, ...]) -> tuple[Asked, ...]:
    # Of two answers to one question the earlier; the greatest of a union are a join.
    at: dict[int, int] = {}
    for each in (*a, *b):
        at[each.k] = min(at.get(each.k, each.at), each.at)
    return tuple(Asked(k, at[k]) for k in sorted(at)[-GONE_ANSWERS:])


def _head_order(head: Head) -> tuple[bool, Head]:
    # What is told of a job that is left to a person says why that is, and not what it was.
    return head.kind == StallKind.FLAPPING, head


def _greater(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return b if a is None else a
    return max(a, b)


def _merged(
    a: Mapping[str, _T], b: Mapping[str, _T], best: Callable[[_T, _T], _T]
) -> dict[str, _T]:
    out = dict(a)
    for attempt, each in b.items():
        known = out.get(attempt)
        out[attempt] = each if known is None else best(known, each)
    return dict(sorted(out.items(), key=lambda item: int(item[0])))


def _earlier(a: Issued, b: Issued) -> Issued:
    return min(a, b)


def _stronger(a: Ended, b: Ended) -> Ended:
    return min(a, b, key=lambda ended: (_STRENGTH[ended.result], ended.at, ended.reason))
