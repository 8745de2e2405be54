"""Activity that leads nowhere, told from what was done and when. Pure, and of no family.

*A repeat loop*: the same done to the same thing again and again. *Flapping*: a thing comes back to
states that it has left. *Activity without progress*: much is done, nothing gets done, and there is
something to do. All three look at times of events within a window before the clock, and remember a
bounded number of them: the latest, so that neither order nor duplicates matter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, TypeVar
from zlib import crc32

from pipeline.telemetry.subject import HOUR_MS, MINUTE_MS

#: More often than this within the window is a loop.
LOOP_TIMES: Final = 10
LOOP_MS: Final = HOUR_MS
#: More returns than this within the window is flapping.
FLAP_RETURNS: Final = 3
FLAP_MS: Final = 30 * MINUTE_MS
#: Moves that are remembered of a thing. With five states, nine real ones have four returns.
MOST_MOVES: Final = 16
#: More actions than this within the window, with nothing to show for them, is no progress.
BUSY_ACTIONS: Final = 200
PROGRESS_MS: Final = HOUR_MS

#: Something told, its time in ms first.
Told = TypeVar("Told", bound=tuple[Any, ...])


def newest(known: Iterable[Told], one: Told, most: int) -> tuple[Told, ...]:
    """The newest of what is known and one more, each once, in order. A join."""
    return tuple(sorted({*known, one}))[-most:]


def in_loop(times: Iterable[int], clock: int) -> bool:
    """Whether something was done so often within the hour before ``clock`` that it is a loop.

    ``times`` need not be more than the latest :data:`LOOP_TIMES` + 1.
    """
    return sum(1 for at in times if clock - at <= LOOP_MS) > LOOP_TIMES


def returns(states: Iterable[str]) -> int:
    """How often a thing that went through these states came back to one that it had left."""
    before, left, found = None, set[str](), 0
    for state in states:
        if state == before:
            continue
        found += state in left
        if before is not None:
            left.add(before)
        before = state
    return found


def flaps(moves: Sequence[tuple[int, str]], clock: int) -> bool:
    """Whether a thing with these moves, in order, each with the state that it led to, came back
    more than :data:`FLAP_RETURNS` times within half an hour before ``clock``.

    The state before the window is where the first move in it came from.
    """
    recent = [n for n, (at, _) in enumerate(moves) if clock - at <= FLAP_MS]
    if len(recent) <= FLAP_RETURNS:
        return False
    return returns(state for _, state in moves[max(0, recent[0] - 1) :]) > FLAP_RETURNS


def no_progress(actions: int, done_at: int | None, open_things: int, clock: int) -> bool:
    """Whether so many actions within the hour before ``clock`` led to nothing: nothing was done
    within it, though there are open things. ``done_at``: when something was done last."""
    idle = done_at is None or clock - done_at > PROGRESS_MS
    return actions > BUSY_ACTIONS and idle and open_things > 0


def too_many(names: Collection[str], most: int) -> list[str]:
    """Which of these must be forgotten so that no more than ``most`` are left.

    Always the same ones, whatever came first: who is remembered is a sample that does not depend
    on time.
    """
    if len(names) <= most:
        return []
    return sorted(names, key=lambda name: (crc32(name.encode("utf-8", "replace")), name))[most:]
