"""Of the group ``recovery``."""

from __future__ import annotations

from typing import Final

from tests.support.alert_cases.model import Cases, Fires, Series, Silent

SWEEPS: Final = "recovery_sweeps_total"
WAITING: Final = "probes_oldest_seconds"
LEFT: Final = "api_budget_remaining"


def _orphans(orphans: str, claimed: str, stall: str = "orphan") -> Series:
    return {
        "job_transitions_total fleet=f status=queued": "0+500...",
        f"stalls_opened_total stall={stall}": orphans,
        "job_transitions_total fleet=f status=claimed": claimed,
    }


def _outcomes(**values: str) -> Series:
    return {
        f"recovery_outcomes_total command=requeue result={name}": told
        for name, told in values.items()
    }


def _requests(**values: str) -> Series:
    return {f"api_requests_total outcome={name}": told for name, told in values.items()}


RECOVERY: Final = (
    Cases(
        "RecoveryHeartbeatMissing",
        (Fires("never", {f"{SWEEPS} instance=a": "5..."}, "6m", labels={}),
         Fires("not any more", {f"{SWEEPS} instance=a": "0+1x10 10...",
               f"{SWEEPS} instance=b": "3..."}, "25m", labels={})),
        (
            Silent("one of two workers", {f"{SWEEPS} instance=a": "5...",
                   f"{SWEEPS} instance=b": "0+1..."}),
            Silent("every ten minutes", {SWEEPS: "0 1x9 2x9 3x9 4..."}),
            Silent("over just in time", {SWEEPS: "5x5 6+1..."}),
        ),
    ),
    Cases(
        "OrphanRate",
        (Fires("one in ten", _orphans("0+1...", "0+10..."), "16m", "10%", {}),
         Fires("six are enough, and forgotten after an hour", _orphans("0 6...", "0 6..."), "11m",
               "100%", {}, until="61m"),
         Fires("runners are lost", _orphans("0+1...", "0+19...", "runner_lost"), "16m", "5.263%",
               {})),
        (
            Silent("one in twenty", _orphans("0+1...", "0+21...")),
            Silent("five an hour", _orphans("0+1x5 5...", "0+1...")),
            Silent("of another kind", _orphans("0+9...", "0+10...", "stale_queue")),
            Silent("over just in time", _orphans("0+1x15 15...", "0+10x15 500...")),
        ),
    ),
    Cases(
        "RecoveryOverdue",
        (Fires("a second", {"stalls_oldest_seconds stall=orphan": "1801..."}, "5m", "30m 1s",
               {"stall": "orphan"}),),
        (
            Silent("as long as it may", {"stalls_oldest_seconds stall=orphan": "1800..."}),
            Silent("it waits in a queue", {"stalls_oldest_seconds stall=stale_queue": "9999..."}),
            Silent("over just in time", {"stalls_oldest_seconds stall=orphan": "1801x4 0..."}),
        ),
    ),
    Cases(
        "JobsQuarantined",
        (Fires("one", {"stalls_open stall=flapping instance=a": "1...",
               "stalls_open stall=flapping instance=b": "0..."}, "5m", "1", {}),),
        (
            Silent("none", {"stalls_open stall=flapping": "0..."}),
            Silent("of another kind", {"stalls_open stall=orphan": "3..."}),
            Silent("over just in time", {"stalls_open stall=flapping": "1x4 0..."}),
        ),
    ),
    Cases(
        "RecoveryBreakerOpen",
        (Fires("open", {"recovery_breaker_open fleet=f": "1..."}, "10m"),),
        (Silent("closed", {"recovery_breaker_open fleet=f": "0..."}),
         Silent("over just in time", {"recovery_breaker_open fleet=f": "1x9 0..."})),
    ),
    Cases(
        "RecoveryPaused",
        (Fires("for four hours", {"recovery_mode fleet=f mode=paused": "1..."}, "4h"),),
        (
            Silent("live", {"recovery_mode fleet=f mode=paused": "0...",
                   "recovery_mode fleet=f mode=live": "1..."}),
            Silent("over just in time", {"recovery_mode fleet=f mode=paused": "1x23 0..."}),
        ),
        step="10m",
    ),
    Cases(
        "RecoveryBudgetSpent",
        (Fires("of the hour", {"recovery_withheld_total reason=budget_hour": "0x3 1..."}, "4m", "1",
               {}, until="64m"),
         Fires("of the tick", {"recovery_withheld_total reason=budget_tick": "0x3 2..."}, "4m", "2",
               {}, until="64m")),
        (
            Silent("none", {"recovery_withheld_total reason=budget_hour": "4..."}),
            Silent("for another reason", {"recovery_withheld_total reason=dry_run": "0+1..."}),
        ),
    ),
    Cases(
        "RecoveryCommandsFail",
        (Fires("most", _outcomes(failed="0+26...", expired="0+25...", done="0+49..."), "11m", "51%",
               {"command": "requeue"}),
         Fires("four are enough, and forgotten after an hour", _outcomes(failed="0 4...",
               done="0..."), "11m", "100%", {"command": "requeue"}, until="61m")),
        (
            Silent("half", _outcomes(failed="0+2...", done="0+2...")),
            Silent("three are too few", _outcomes(failed="0 3...", done="0...")),
            Silent("refused is fine", _outcomes(failed="0+1...", refused="0+2...")),
            Silent("over just in time", _outcomes(cannot="0+2x5 10...", done="0x11 10+10...")),
        ),
    ),
    Cases(
        "ProbesWaiting",
        (Fires("a second", {WAITING: "301..."}, "5m", "5m 1s", {}),),
        (Silent("as long as it may", {WAITING: "300..."}),
         Silent("over just in time", {WAITING: "301x4 0..."})),
    ),
    Cases(
        "ProviderApiErrors",
        (Fires("more than a fifth", _requests(server_error="0+7...", timeout="0+7...",
               limited="0+7...", ok="0+79..."), "11m", "21%", {}),
         Fires("six are enough, and soon forgotten", _requests(unreachable="0 6...", ok="0..."),
               "11m", "100%", {}, until="16m")),
        (
            Silent("two in ten", _requests(server_error="0+2...", ok="0+8...")),
            Silent("five are too few", _requests(unreachable="0 5...", ok="0...")),
            Silent("not found is an answer", _requests(missing="0+5...", ok="0+5...")),
            Silent("over just in time", _requests(forbidden="0+6x5 30...", ok="0x10 120+9...")),
        ),
    ),
    Cases(
        "ProviderApiBudgetLow",
        (Fires("one too few", {f"{LEFT} instance=a": "5000...", f"{LEFT} instance=b": "199..."},
               "5m", "199", {}),),
        (Silent("as few as may be", {LEFT: "200..."}),
         Silent("over just in time", {LEFT: "199x4 5000..."})),
    ),
)  # fmt: skip
