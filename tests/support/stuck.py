"""Records of recovery, one of each kind, for what has to do with rows of them."""

from __future__ import annotations

from typing import Any, Final

from topics.models import ClaimState, JobState, Status
from topics.recovery import (
    BreakerState,
    Command,
    CommandKind,
    Fence,
    FleetState,
    Mode,
    Outcome,
    Probe,
    Recovery,
    Result,
    RunnerState,
    Seen,
    StallKind,
    StallState,
    Thrown,
)

KEY: Final = "github:github.com:9"


def stuck(at: int, fleet: str, rev: int = 9, **changes: Any) -> JobState:
    """A job with one stall behind it and one that it is in; ``at`` is when it was queued."""
    known: dict[str, Any] = {
        "id": f"state:9:{rev}", "source": "runnerstream", "occurred_at": at, "received_at": at,
        "key": KEY, "rev": rev, "provider": "github", "host": "github.com", "job_id": "9",
        "status": Status.STARTING, "since": at, "fleet": fleet, "queued_at": at,
        "claims": {
            "h1": ClaimState(claimed_at=at + 1_000, released_at=at + 9_000),
            "h2": ClaimState(claimed_at=at + 20_000, minted_at=at + 21_000),
        },
        "recovery": Recovery(
            stalls={
                1: StallState(
                    head=(at + 5_000, at + 1_000, StallKind.STALE_CLAIM, "h1", 2),
                    proposed=(2, at + 6_000, CommandKind.RELEASE_CLAIM, 1),
                    withheld=(1, at + 5_500, "budget_tick"),
                    issued={1: (at + 6_000, at + 60_000, CommandKind.RELEASE_CLAIM)},
                    ended={1: (at + 8_000, Result.DONE, "it said so"),
                           2: (at + 8_500, Result.EXPIRED, "")},
                ),
                2: StallState(
                    head=(at + 30_000, at + 21_000, StallKind.ORPHAN, "h2", 4),
                    asked=(2, at + 32_000),
                    answered=(1, at + 31_000, "unknown", "502"),
                ),
            }
        ),
    }  # fmt: skip
    return JobState(**(known | changes))


def probe(at: int, fleet: str) -> Probe:
    return Probe(
        id=f"probe|{KEY}|2|1", source="runnerstream", occurred_at=at, received_at=at, key=KEY,
        fleet=fleet, n=2, k=1, stall=StallKind.ORPHAN, since=at - 9_000, opened_at=at - 1_000,
        fence=Fence(claim="h2", rev=4), expires_at=at + 5_000, repo="acme/app", run_id=7, attempt=2,
    )  # fmt: skip


def command(at: int, fleet: str, **changes: Any) -> Command:
    known: dict[str, Any] = {
        "id": f"release_claim|{KEY}|1", "source": "runnerstream", "occurred_at": at,
        "received_at": at, "key": KEY, "command": CommandKind.RELEASE_CLAIM, "fleet": fleet,
        "job_key": KEY, "attempt": 1, "n": 1, "reason": StallKind.STALE_CLAIM,
        "fence": Fence(claim="h1", rev=2), "expires_at": at + 60_000, "since": at - 5_000,
        "opened_at": at - 1_000, "repo": "acme/app", "run_id": 7, "run_attempt": 2,
        "evidence": (Seen(what="claimed", at=at - 5_000, clock="runner"), Seen(what="no mint")),
    }  # fmt: skip
    return Command(**(known | changes))


def outcome(at: int, fleet: str, result: Result | None = Result.DONE) -> Outcome:
    kind: Any = "command.started" if result is None else "command.ended"
    return Outcome(
        id=f"release_claim|{KEY}|1:{kind}", source="runnerstream", occurred_at=at, received_at=at,
        key=KEY, kind=kind, command_id=f"release_claim|{KEY}|1", command=CommandKind.RELEASE_CLAIM,
        fleet=fleet, job_key=KEY, attempt=1, n=1, stall=StallKind.STALE_CLAIM, since=at - 5_000,
        opened_at=at - 1_000, fence=Fence(claim="h1", rev=2), result=result,
        reason="it said so" if result else "", via="hook",
    )  # fmt: skip


def fleet_state(at: int, fleet: str, rev: int = 5, **changes: Any) -> FleetState:
    known: dict[str, Any] = {
        "id": f"{fleet}@{rev}", "source": "runnerstream", "occurred_at": at, "received_at": at,
        "key": fleet, "rev": rev, "runners": {RunnerState.IDLE: 2, RunnerState.BUSY: 1},
        "pending": 3, "in_flight": 1, "issued_hour": 4, "breaker": BreakerState.OPEN,
        "breaker_until": at + 9_000, "mode": Mode.PAUSED,
        "switch": Thrown(fleet="", mode=Mode.PAUSED, who="ada", reason="storm", at=at - 100),
    }  # fmt: skip
    return FleetState(**(known | changes))
