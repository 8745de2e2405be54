"""When a job left a wrong state: the same for whoever shows its stalls or adds up their times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from topics.recovery import StallKind


class ClaimTimes(Protocol):
    """What a claim says of when its stall ended. Times in ms; None is unknown."""

    @property
    def claimed_at(self) -> int | None: ...
    @property
    def minted_at(self) -> int | None: ...
    @property
    def released_at(self) -> int | None: ...
    @property
    def lost_at(self) -> int | None: ...
    @property
    def found_at(self) -> int | None: ...


def left_at(
    kind: StallKind,
    since: int,
    claim: str,
    claims: Mapping[str, ClaimTimes],
    *,
    started_at: int | None,
    completed_at: int | None,
    lost_at: int | None = None,
    found_at: int | None = None,
    told_at: int | None = None,
) -> int | None:
    """When a job left the wrong state, in ms; None while it is in it. Never before ``since``.

    A claim's stall ends when the claim is released or the job starts (a stale claim's also when a
    runner is made for it, a lost runner's also when that is seen again), one of the queue when
    anybody claims it, and one of a running job when the provider has told how it is. All of them
    end with the job.

    Args:
        kind: of the stall.
        since: when the job entered the state.
        claim: the handle of the claim that was suspected; empty for none.
        claims: the job's claims by handle.
        started_at: when the job did; as are the others.
        completed_at: the same.
        lost_at: since when the runner that executes the job is gone,
        found_at: and when it was seen again.
        told_at: when the provider last told how the job is.
    """
    ends = [completed_at]
    if kind is StallKind.MISSED_COMPLETION:
        # It has started by definition.
        return _first(since, [*ends, told_at])
    # A job whose runner was lost while it ran had started before; so had one told of late.
    if started_at is not None and (kind is not StallKind.RUNNER_LOST or started_at > since):
        ends.append(started_at)
    held = claims.get(claim)
    if kind is StallKind.STALE_QUEUE:
        # One that was released before is no claim of this spell.
        ends += [
            each.claimed_at if each.claimed_at is not None else each.minted_at
            for each in claims.values()
            if each.released_at is None or each.released_at > since
        ]
    elif held is not None:
        ends.append(held.released_at)
        lost_at, found_at = held.lost_at, held.found_at
    if kind is StallKind.STALE_CLAIM and held is not None:
        ends.append(held.minted_at)
    if kind is StallKind.RUNNER_LOST and lost_at is not None and (found_at or 0) >= lost_at:
        ends.append(found_at)
    return _first(since, ends)


def _first(since: int, ends: Iterable[int | None]) -> int | None:
    """The earliest of the ends that are known. Clocks differ: none is before ``since``."""
    known = [max(since, each) for each in ends if each is not None]
    return min(known, default=None)
