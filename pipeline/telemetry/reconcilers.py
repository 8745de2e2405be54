"""Reconcilers: ticks, actions, effects, broken invariants, and the work that they move. Pure.

A reconciler is a subject. Levels are of its latest tick, or follow from what was opened and closed;
the exporter brings those of several together, and never by a mean. Whether all that it does leads
anywhere is told by :mod:`pipeline.telemetry.loops`, over its actions and the work's moves.

What is remembered of a reconciler has a bound (:data:`MOST`): beyond it things are watched by a
sample that does not depend on order, and what is left out is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any, Final

from msgspec import Struct

from pipeline.metrics import Gauge, Level
from pipeline.telemetry import loops
from pipeline.telemetry.panes import digest, minute_of
from pipeline.telemetry.reconciler_metrics import (
    ACTIONS,
    ATTEMPTED,
    BREAKER,
    CLOSED,
    CROWDED,
    DRAINED,
    DRAINING,
    EFFECT_SECONDS,
    EFFECTS,
    ENDED,
    FLAPPING,
    GIVEN_UP,
    IN_LOOP,
    KNOWN,
    LAST_TICK,
    METRICS,
    MOST_PENDING,
    MOVES,
    NO_PROGRESS,
    NOT_APPLIED,
    OPEN_STATES,
    OPENED,
    OVERDUE,
    PENDING,
    PENDING_OLDEST,
    REOPENED,
    RESULTS,
    SILENT,
    TICK_SECONDS,
    TICKS,
    UNSENT,
    VIOLATION_OLDEST,
    VIOLATIONS,
    WALL,
    WORK,
    WORK_OLDEST,
)
from pipeline.telemetry.subject import (
    FRESH_MS,
    HOUR_MS,
    KEPT_MS,
    MINUTE_MS,
    Family,
    Subject,
    known,
    latest,
)
from topics.events import Event
from topics.events.reconcilers import (
    ActionOutcome,
    ActionTaken,
    DispatchFailed,
    EffectEnded,
    TickDone,
    ViolationSeen,
    WorkMoved,
    WorkStatus,
)

#: A reconciler of which nothing is heard for so long is gone, and not only overdue.
GONE_MS: Final = 24 * HOUR_MS
#: A violation, and a piece of open work, that nobody mentions for so long is given up.
SILENT_MS: Final = 7 * 24 * HOUR_MS
#: After so many intervals a tick is overdue; and the interval of who does not tell it.
LATE_INTERVALS: Final = 3
INTERVAL_MS: Final = MINUTE_MS
#: Things of each part that are remembered of a reconciler, and ticks of a minute.
MOST: Final = 2_000
MOST_TICKS: Final = 300
#: What a view lists at most of anything.
SHOWN: Final = 20
#: What is remembered at most of what was said of a violation.
_WORDS: Final = 32
#: Parts two names that are no field's.
_SEP: Final = "\t"
#: What a dispatch that failed is called among the types of actions.
DISPATCH_FAILED: Final = "dispatch_failed"
_TERMINAL: Final = (WorkStatus.CLOSED, WorkStatus.FAILED)


class Ticked(Struct, frozen=True, omit_defaults=True):
    """The latest tick."""

    at: int
    id: str
    wall_ms: int
    interval_ms: int | None = None
    pending_new: int = 0
    pending_retry: int = 0
    pending_oldest_ms: int | None = None
    violations: int | None = None
    draining: bool = False
    breaker_open: bool = False
    failed: bool = False
    #: The most frequent, in order.
    actions_by_type: tuple[tuple[str, int], ...] = ()

    @property
    def interval(self) -> int:
        """After how long the next is due, in ms."""
        return self.interval_ms or INTERVAL_MS


class Activity(Struct, frozen=True):
    """How many actions each tick of a minute computed, by a digest of its id."""

    ticks: dict[str, int]


class Done(Struct, frozen=True):
    """When a piece of work was last closed."""

    at: int


class Acts(Struct, frozen=True):
    """When the same was done to the same entity: the latest times, with digests."""

    times: tuple[tuple[int, str], ...]


class Violation(Struct, frozen=True):
    """An invariant that is, or was, broken for an entity: what was said of it, in order.

    A word is when it was said, and whether that it holds again (which wins in the same ms). Of
    words that say the same one after another, all but the first and the last are forgotten beyond
    :data:`_WORDS`, the earliest first. So all is exact unless more than that overtake one.
    """

    said: tuple[tuple[int, bool], ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether it is broken now."""
        return not self.said[-1][1]

    @property
    def since(self) -> int:
        """Since when it is as it is, in ms."""
        since = self.said[-1]
        for word in reversed(self.said):
            if word[1] != since[1]:
                break
            since = word
        return since[0]

    @property
    def last(self) -> int:
        """When it was last spoken of, in ms."""
        return self.said[-1][0]

    def joined(self, word: tuple[int, bool]) -> tuple[Violation, dict[bool, int]]:
        """With another word; and how many more openings (False) and closings (True) are known by
        it: never fewer, and in all the same whatever the order."""
        said = sorted({*self.said, word})
        turns = Counter(closed for closed, _ in groupby(closed for _, closed in said))
        turns.subtract(closed for closed, _ in groupby(closed for _, closed in self.said))
        if len(said) > _WORDS:
            same = (n for n in range(1, len(said) - 1)
                    if said[n - 1][1] == said[n][1] == said[n + 1][1])  # fmt: skip
            del said[next(same, 0)]
        return Violation(tuple(said)), turns


#: When, whether it is an end (which wins in the same ms), a digest of the id, where from, where to.
Move = tuple[int, int, str, str, str]


class Work(Struct, frozen=True):
    """A piece of work: when it was first heard of, what was said last, and its latest moves."""

    first: int
    said: Move
    moves: tuple[Move, ...] = ()

    @property
    def last(self) -> int:
        """When it was last spoken of, in ms."""
        return self.said[0]

    @property
    def state(self) -> WorkStatus:
        """Where it is."""
        return WorkStatus(self.said[4])

    @property
    def since(self) -> int:
        """Since when it is there, as far as is known, in ms."""
        return self.moves[-1][0] if self.moves else self.first

    @property
    def path(self) -> list[tuple[int, str]]:
        """The states that it went through, with times."""
        path = [(move[0], move[4]) for move in self.moves]
        if self.moves and self.moves[0][3]:
            path.insert(0, (self.moves[0][0], self.moves[0][3]))
        return path


# --- what is said -----------------------------------------------------------------------------


def apply(subject: Subject, event: Event) -> None:
    """See :attr:`Family.apply`."""
    if isinstance(event, TickDone):
        _count_tick(subject, event)
        _on_tick(subject, event)
    elif isinstance(event, ActionTaken):
        subject.note(RESULTS, event.outcome.value)
        # What was held back is no repetition.
        if event.outcome is not ActionOutcome.SUPPRESSED:
            _on_act(subject, event, event.type, event.entity)
    elif isinstance(event, EffectEnded):
        subject.note(ENDED, event.outcome.value)
        if event.duration_ms is not None:
            subject.note(EFFECT_SECONDS, event.outcome.value, value=event.duration_ms / 1000)
    elif isinstance(event, ViolationSeen):
        _on_violation(subject, event)
    elif isinstance(event, WorkMoved):
        subject.note(MOVES, event.to_state.value)
        if event.from_state == WorkStatus.CLOSED and event.to_state is not WorkStatus.CLOSED:
            subject.note(REOPENED)
        _on_work(subject, event)
    elif isinstance(event, DispatchFailed):
        subject.note(UNSENT)
        _on_act(subject, event, DISPATCH_FAILED, event.work_id)


def _count_tick(subject: Subject, event: TickDone) -> None:
    subject.note(TICKS, "failed" if event.failed else "ok")
    subject.note(TICK_SECONDS, value=event.wall_ms / 1000)
    neither = event.effects_attempted - event.effects_succeeded - event.effects_failed
    for counter, labels, number in (
        (DRAINED, (), event.events_drained),
        (NOT_APPLIED, (), event.events_failed),
        (ACTIONS, (), _actions(event)),
        (ATTEMPTED, (), event.effects_attempted),
        (EFFECTS, ("succeeded",), event.effects_succeeded),
        (EFFECTS, ("failed",), event.effects_failed),
        (EFFECTS, ("unknown",), neither),
    ):
        if number > 0:
            subject.note(counter, *labels, value=number)


def _actions(event: TickDone) -> int:
    return event.actions or sum(event.actions_by_type.values())


def _on_tick(subject: Subject, event: TickDone) -> None:
    types = sorted(event.actions_by_type.items(), key=lambda each: (-each[1], each[0]))
    ticked = Ticked(
        at=event.occurred_at,
        id=event.id,
        wall_ms=event.wall_ms,
        interval_ms=event.interval_ms,
        pending_new=event.pending_new,
        pending_retry=event.pending_retry,
        pending_oldest_ms=event.pending_oldest_ms,
        violations=event.violations,
        draining=event.draining,
        breaker_open=event.breaker_open,
        failed=event.failed,
        actions_by_type=tuple(types[:SHOWN]),
    )
    subject.put("tick", latest(subject.get("tick"), ticked))
    actions = _actions(event)
    if actions:
        minute, name = str(minute_of(event.occurred_at)), _digest(event.tick_id)
        activity: Activity = subject.get("activity", minute) or Activity({})
        most = max(actions, activity.ticks.get(name, 0))
        subject.put("activity", Activity({**activity.ticks, name: most}), minute)


def _on_act(subject: Subject, event: Event, type_: str, entity: str) -> None:
    if not entity:
        return
    name = f"{type_}{_SEP}{entity}"
    acts: Acts = subject.get("acts", name) or Acts(())
    one = (event.occurred_at, _digest(event.id))
    subject.put("acts", Acts(loops.newest(acts.times, one, loops.LOOP_TIMES + 1)), name)


def _on_violation(subject: Subject, event: ViolationSeen) -> None:
    closed = event.kind == "reconciler.violation_closed"
    name = f"{event.invariant}{_SEP}{event.entity}"
    violation: Violation = subject.get("violations", name) or Violation()
    violation, turns = violation.joined((event.occurred_at, closed))
    for counter, number in ((OPENED, turns[False]), (CLOSED, turns[True])):
        if number > 0:
            subject.note(counter, value=number)
    subject.put("violations", violation, name)


def _on_work(subject: Subject, event: WorkMoved) -> None:
    at, to = event.occurred_at, event.to_state
    move = (at, int(to in _TERMINAL), _digest(event.id), event.from_state, to.value)
    work: Work = subject.get("work", event.work_id) or Work(at, move)
    moves = work.moves
    if event.from_state != to:  # else it only says again where it is
        moves = loops.newest(moves, move, loops.MOST_MOVES)
    work = Work(min(work.first, at), max(work.said, move), moves)
    subject.put("work", work, event.work_id)
    if to is WorkStatus.CLOSED:
        done: Done | None = subject.get("done")
        subject.put("done", Done(at if done is None else max(done.at, at)))


def _digest(text: str) -> str:
    return digest(text).hex()


# --- what is forgotten ------------------------------------------------------------------------


def tick(subject: Subject, clock: int) -> None:
    """See :attr:`Family.tick`."""
    ticked: Ticked | None = subject.get("tick")
    if ticked is not None and clock - ticked.at > GONE_MS:
        subject.note(GIVEN_UP, "reconciler")
        subject.drop("tick")
    done: Done | None = subject.get("done")
    if done is not None and clock - done.at > loops.PROGRESS_MS:
        subject.drop("done")
    for minute, activity in list(subject.all("activity").items()):
        if clock - int(minute) > loops.PROGRESS_MS + MINUTE_MS:
            subject.drop("activity", minute)
        elif crowd := loops.too_many(activity.ticks, MOST_TICKS):
            subject.note(CROWDED, value=len(crowd))
            kept = {name: n for name, n in activity.ticks.items() if name not in set(crowd)}
            subject.put("activity", Activity(kept), minute)
    for name, acts in list(subject.all("acts").items()):
        if clock - acts.times[-1][0] > loops.LOOP_MS:
            subject.drop("acts", name)
    for name, violation in list(subject.all("violations").items()):
        _age(subject, "violations", name, violation.is_open, clock - violation.last)
    for name, work in list(subject.all("work").items()):
        _age(subject, "work", name, work.state not in _TERMINAL, clock - work.last)
    for part in ("acts", "violations", "work"):
        for name in loops.too_many(subject.all(part), MOST):
            subject.note(CROWDED)
            subject.drop(part, name)


def _age(subject: Subject, part: str, name: str, is_open: bool, silent: int) -> None:
    if silent > (SILENT_MS if is_open else KEPT_MS):
        if is_open:
            subject.note(GIVEN_UP, {"violations": "violation"}.get(part, part))
        subject.drop(part, name)


# --- how things are ---------------------------------------------------------------------------


def levels(subject: Subject, clock: int) -> Iterator[Level]:
    """See :attr:`Family.levels`."""
    fleet = subject.fleet
    ticked: Ticked | None = subject.get("tick")
    fresh = None
    if ticked is not None:
        silent = clock - ticked.at
        if silent <= max(FRESH_MS, LATE_INTERVALS * ticked.interval):
            fresh = ticked
        yield KNOWN, (fleet,), 1
        yield LAST_TICK, (fleet,), ticked.at / 1000
        yield SILENT, (fleet,), max(0, silent) / 1000
        yield OVERDUE, (fleet,), int(silent > LATE_INTERVALS * ticked.interval)
    if fresh is not None:
        yield from known(_of_tick(fleet, fresh))
    yield from known(_of_violations(subject, fresh, clock))
    if fresh is not None or subject.all("acts"):
        yield IN_LOOP, (fleet,), len({entity for _, entity, _ in in_loop(subject, clock)})
    if subject.all("work"):
        yield from _of_work(subject, clock)


def _of_tick(
    fleet: str, ticked: Ticked
) -> Iterator[tuple[Gauge[Any], tuple[str, ...], float | None]]:
    yield WALL, (fleet,), ticked.wall_ms / 1000
    for gauge in (PENDING, MOST_PENDING):
        yield gauge, (fleet, "new"), ticked.pending_new
        yield gauge, (fleet, "retry"), ticked.pending_retry
    oldest = ticked.pending_oldest_ms
    if oldest is None and not ticked.pending_new and not ticked.pending_retry:
        oldest = 0
    yield PENDING_OLDEST, (fleet,), None if oldest is None else oldest / 1000
    yield BREAKER, (fleet,), int(ticked.breaker_open)
    yield DRAINING, (fleet,), int(ticked.draining)


def _of_violations(
    subject: Subject, fresh: Ticked | None, clock: int
) -> Iterator[tuple[Gauge[Any], tuple[str, ...], float | None]]:
    """Those that were told one by one; without any what the latest tick says."""
    fleet = subject.fleet
    if subject.all("violations"):
        since = [each.since for each in subject.all("violations").values() if each.is_open]
        yield VIOLATIONS, (fleet,), len(since)
        yield VIOLATION_OLDEST, (fleet,), max(0, clock - min(since, default=clock)) / 1000
    elif fresh is not None:
        yield VIOLATIONS, (fleet,), fresh.violations
        yield VIOLATION_OLDEST, (fleet,), 0 if fresh.violations == 0 else None


def _of_work(subject: Subject, clock: int) -> Iterator[Level]:
    fleet, works = subject.fleet, subject.all("work").values()
    for state in OPEN_STATES:
        since = [work.since for work in works if work.state is state]
        yield WORK, (fleet, state.value), len(since)
        oldest = max(0, clock - min(since, default=clock)) / 1000
        yield WORK_OLDEST, (fleet, state.value), oldest
    yield FLAPPING, (fleet,), len(flapping(subject, clock))
    yield NO_PROGRESS, (fleet,), int(is_futile(subject, clock))


def in_loop(subject: Subject, clock: int) -> list[tuple[str, str, int]]:
    """What is done again and again: type, entity, and when last (ms)."""
    return sorted(
        (*name.split(_SEP), acts.times[-1][0])
        for name, acts in subject.all("acts").items()
        if loops.in_loop((at for at, _ in acts.times), clock)
    )


def flapping(subject: Subject, clock: int) -> list[str]:
    """Pieces of work that go back and forth."""
    return sorted(
        name for name, work in subject.all("work").items() if loops.flaps(work.path, clock)
    )


def actions(subject: Subject, clock: int) -> int:
    """Actions of ticks within the last hour, to the minute."""
    return sum(
        sum(activity.ticks.values())
        for minute, activity in subject.all("activity").items()
        if clock - int(minute) <= loops.PROGRESS_MS
    )


def is_futile(subject: Subject, clock: int) -> bool:
    """Whether there is much activity and no progress, though there was work to do all the time."""
    done: Done | None = subject.get("done")
    waits = sum(
        work.state in OPEN_STATES and clock - work.first >= loops.PROGRESS_MS
        for work in subject.all("work").values()
    )
    return loops.no_progress(
        actions(subject, clock), None if done is None else done.at, waits, clock
    )


def view(subject: Subject, clock: int) -> dict[str, Any]:
    """See :attr:`Family.view`."""
    ticked: Ticked | None = subject.get("tick")
    done: Done | None = subject.get("done")
    broken = sorted(
        (each.since, *name.split(_SEP))
        for name, each in subject.all("violations").items()
        if each.is_open
    )
    works = subject.all("work")
    states = Counter(work.state.value for work in works.values())
    return {
        "last_tick_at": ticked.at if ticked else None,
        "wall_ms": ticked.wall_ms if ticked else None,
        "actions_by_type": dict(ticked.actions_by_type) if ticked else {},
        "pending_new": ticked.pending_new if ticked else None,
        "pending_retry": ticked.pending_retry if ticked else None,
        "breaker_open": ticked.breaker_open if ticked else None,
        "draining": ticked.draining if ticked else None,
        "violations": len(broken),
        "open_violations": {
            f"{invariant} {entity}": {"invariant": invariant, "entity": entity, "open_since": since}
            for since, invariant, entity in broken[:SHOWN]
        },
        "work": dict(sorted(states.items())),
        "actions_last_hour": actions(subject, clock),
        "closed_at": done.at if done else None,
        "without_progress": is_futile(subject, clock),
        "loops": {
            f"{type_} {entity}": {"type": type_, "entity": entity, "last_at": at}
            for type_, entity, at in in_loop(subject, clock)[:SHOWN]
        },
        "flapping": {
            name: {"state": works[name].state.value, "moved_at": works[name].since}
            for name in flapping(subject, clock)[:SHOWN]
        },
    }


FAMILY: Final = Family(
    name="reconcilers",
    parts={
        "tick": Ticked,
        "activity": Activity,
        "done": Done,
        "acts": Acts,
        "violations": Violation,
        "work": Work,
    },
    metrics=METRICS,
    apply=apply,
    levels=levels,
    view=view,
    tick=tick,
)
