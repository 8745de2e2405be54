"""The tables of recovery: stalls, probes, commands, outcomes and states of fleets. Pure.

What a job went through stands in its state, and is a row of ``stalls`` for each of its stalls. The
other tables hold what was said about it on topics of their own, one row a record.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from sinks.columns import Column, Columns, Row, Table
from topics import stranded
from topics.models import JobState
from topics.recovery import (
    Answer,
    BreakerState,
    FleetState,
    Mode,
    StallState,
    Thrown,
)

# --- stalls -------------------------------------------------------------------------------------


class _Spell(NamedTuple):
    """What a row of ``stalls`` is made from."""

    state: JobState
    n: int
    opened_at: int
    since: int
    kind: str
    claim: str
    fence_rev: int
    stall: StallState
    left_at: int | None


def left_at(state: JobState, stall: StallState) -> int | None:
    """When the job left the wrong state; None while it is in it."""
    _, since, kind, claim, _ = stall.head
    answered = stall.answered
    told = answered is not None and answered[2] is not Answer.UNKNOWN
    return stranded.left_at(
        kind,
        since,
        claim,
        state.claims,
        started_at=state.started_at,
        completed_at=state.completed_at,
        lost_at=state.lost_at,
        found_at=state.found_at,
        told_at=answered[1] if answered is not None and told else None,
    )


def _stranded_ms(spell: _Spell) -> int | None:
    return None if spell.left_at is None else spell.left_at - spell.since


def _attempts(spell: _Spell) -> list[tuple[Any, ...]]:
    """Attempt, command, issued_at, expires_at, result, ended_at, reason: by attempt.

    An end may be known before what it is the end of.
    """
    issued, ended = spell.stall.issued, spell.stall.ended
    found = []
    for attempt in sorted(issued.keys() | ended.keys()):
        issued_at, expires_at, command = issued.get(attempt, (None, None, ""))
        ended_at, result, reason = ended.get(attempt, (None, "", ""))
        found.append((attempt, str(command), issued_at, expires_at, str(result), ended_at, reason))
    return found


def _part(name: str, place: int, unknown: Any) -> Any:
    """A value out of one of a stall's arrays (:class:`~topics.recovery.StallState`)."""

    def value(spell: _Spell) -> Any:
        told = getattr(spell.stall, name)
        if told is None:
            return unknown
        return told[place]

    return value


STALLS: Final = Table(
    "stalls",
    Columns(
        Column("key", "state.key"),
        Column("n"),
        Column("rev", "state.rev"),
        Column("received_at", "state.received_at"),
        Column("fleet", "state.fleet"),
        Column("repo", "state.job.repo"),
        Column("kind"),
        Column("since"),
        Column("opened_at"),
        Column("left_at"),
        Column("stranded_ms", _stranded_ms),
        Column("claim"),
        Column("fence_rev"),
        Column("asks", _part("asked", 0, 0)),
        Column("asked_at", _part("asked", 1, None)),
        Column("answer", _part("answered", 2, "")),
        Column("answer_detail", _part("answered", 3, "")),
        Column("answered_at", _part("answered", 1, None)),
        Column("proposals", _part("proposed", 0, 0)),
        Column("proposed", _part("proposed", 2, "")),
        Column("proposed_at", _part("proposed", 1, None)),
        Column("withheld", _part("withheld", 2, "")),
        Column("withheld_at", _part("withheld", 1, None)),
        Column("commands", _attempts),
    ),
)


def stalls_of(state: JobState) -> Iterable[tuple[Table, Row]]:
    """A row for each stall that the job's state tells of."""
    if state.recovery is None:
        return
    for n, stall in state.recovery.stalls.items():
        opened_at, since, kind, claim, rev = stall.head
        spell = _Spell(
            state, n, opened_at, since, kind.value, claim, rev, stall, left_at(state, stall)
        )
        yield STALLS, STALLS.row(spell)


# --- probes, commands, outcomes -----------------------------------------------------------------

PROBES: Final = Table(
    "probes",
    Columns(
        Column("key"),
        Column("n"),
        Column("k"),
        Column("asked_at", "occurred_at"),
        Column("id"),
        Column("fleet"),
        Column("stall", "stall.value"),
        Column("since"),
        Column("opened_at"),
        Column("expires_at"),
        Column("claim", "fence.claim"),
        Column("fence_rev", "fence.rev"),
        Column("repo"),
        Column("run_id"),
        Column("run_attempt", "attempt"),
    ),
)

COMMANDS: Final = Table(
    "commands",
    Columns(
        Column("key"),
        Column("id"),
        Column("issued_at", "occurred_at"),
        Column("job_key"),
        Column("fleet"),
        Column("command", "command.value"),
        Column("attempt"),
        Column("n"),
        Column("reason", "reason.value"),
        Column("claim", "fence.claim"),
        Column("fence_rev", "fence.rev"),
        Column("since"),
        Column("opened_at"),
        Column("expires_at"),
        Column("dry_run"),
        Column(
            "evidence", lambda told: [(seen.what, seen.at, seen.clock) for seen in told.evidence]
        ),
        Column("repo"),
        Column("run_id"),
        Column("run_attempt"),
    ),
)

OUTCOMES: Final = Table(
    "outcomes",
    Columns(
        Column("key"),
        Column("command_id"),
        Column("kind"),
        Column("at", "occurred_at"),
        Column("via"),
        Column("id"),
        Column("job_key"),
        Column("fleet"),
        Column("command", "command.value"),
        Column("attempt"),
        Column("n"),
        Column("stall", "stall.value"),
        Column("since"),
        Column("opened_at"),
        Column("claim", "fence.claim"),
        Column("fence_rev", "fence.rev"),
        Column("result", lambda told: "" if told.result is None else told.result.value),
        Column("reason"),
    ),
)


# --- fleet_states -------------------------------------------------------------------------------

_NO_SWITCH: Final = Thrown.model_construct(fleet="", mode=Mode.LIVE, at=None)


class _Fleet(NamedTuple):
    """What a row of ``fleet_states`` is made from."""

    state: FleetState
    #: Version of the row.
    place: int
    #: Set in the row of a tombstone.
    deleted: int
    switch: Thrown


FLEET_STATES: Final = Table(
    "fleet_states",
    Columns(
        Column("fleet", "state.key"),
        Column("rev", "place"),
        Column("deleted"),
        Column("occurred_at", "state.occurred_at"),
        Column("tick", "state.rev"),
        Column("runners", lambda told: {k.value: n for k, n in told.state.runners.items()}),
        Column("pending", "state.pending"),
        Column("in_flight", "state.in_flight"),
        Column("issued_hour", "state.issued_hour"),
        Column("breaker", "state.breaker.value"),
        Column("breaker_until", "state.breaker_until"),
        Column("mode", "state.mode.value"),
        Column("switch_by", "switch.who"),
        Column("switch_fleet", "switch.fleet"),
        Column("switch_reason", "switch.reason"),
        Column("switch_at", "switch.at"),
    ),
)


def row_of_fleet(state: FleetState, place: int) -> tuple[Table, Row]:
    """A fleet's row. ``place`` is its version."""
    told = _Fleet(state, place, 0, state.switch or _NO_SWITCH)
    return FLEET_STATES, FLEET_STATES.row(told)


def row_of_forgotten_fleet(fleet: str, at: int, place: int) -> tuple[Table, Row]:
    """The row of a tombstone: hides every row of the fleet with a lower ``place``."""
    nothing = FleetState.model_construct(
        key=fleet, occurred_at=at, rev=0, runners={}, pending=0, in_flight=0, issued_hour=0,
        breaker=BreakerState.CLOSED, breaker_until=None, mode=Mode.LIVE, switch=None,
    )  # fmt: skip
    return FLEET_STATES, FLEET_STATES.row(_Fleet(nothing, place, 1, _NO_SWITCH))
