"""Of the groups ``runners`` and ``queue_time``."""

from __future__ import annotations

from typing import Final

from tests.support.alert_cases.model import Cases, Fires, Series, Silent

OWN: Final = "oldest_seconds fleet=f status=queued"
TOLD: Final = "queue_oldest_dispatchable_seconds fleet=f"
QUEUED: Final = "jobs fleet=f status=queued"
RUNNING: Final = "jobs fleet=f status=running"
OBSERVED: Final = "pool_runners fleet=f state=observed"
FAILED: Final = "jobs_completed_total fleet=f conclusion=failure"
FINE: Final = "jobs_completed_total fleet=f conclusion=success"

RUNNERS: Final = (
    Cases(
        "RunnerQueueAge",
        (
            Fires("our own log says so", {f"{OWN} instance=a": "1801...",
                  f"{OWN} instance=b": "7..."}, "5m", "30m 1s"),
            Fires("the dispatcher says so", {TOLD: "1900...", OWN: "0..."}, "5m", "31m 40s"),
        ),
        (
            Silent("as old as it may be", {OWN: "1800..."}),
            Silent("over just in time", {OWN: "1801x4 0..."}),
            Silent("all of it is withheld", {TOLD: "0...", OWN: "9999..."}),
            Silent("it waits for approval", {"oldest_seconds fleet=f status=waiting": "9999..."}),
            Silent("blind meanwhile", {OWN: "1801x3 stale"}),
        ),
    ),
    Cases(
        "RunnerPoolStarved",
        (Fires("one", {"pool_starved_jobs fleet=f instance=a": "1...",
               "pool_starved_jobs fleet=f instance=b": "0..."}, "10m", "1"),),
        (Silent("none", {"pool_starved_jobs fleet=f": "0..."}),
         Silent("over just in time", {"pool_starved_jobs fleet=f": "1x9 0..."})),
    ),
    Cases(
        "RunnerPoolEmpty",
        (
            Fires("nothing is said of accounts", {QUEUED: "2...", OBSERVED: "0...", RUNNING: "5...",
                  "pool_runners fleet=f state=desired": "3..."}, "10m", "2"),
            Fires("some are withheld", {QUEUED: "2...", "queue_withheld fleet=f": "1...",
                  OBSERVED: "0...", RUNNING: "5..."}, "10m", "1"),
        ),
        (
            Silent("all are withheld", {QUEUED: "2...", "queue_withheld fleet=f": "2...",
                   OBSERVED: "0..."}),
            Silent("there is a runner", {QUEUED: "2...", OBSERVED: "1..."}),
            Silent("nobody knows of runners", {QUEUED: "2..."}),
            Silent("over just in time", {QUEUED: "2x9 0...", OBSERVED: "0..."}),
        ),
    ),
    Cases(
        "RunnerPoolSaturated",
        (Fires("one", {"pool_saturated_jobs fleet=f": "1..."}, "30m", "1"),),
        (Silent("none", {"pool_saturated_jobs fleet=f": "0..."}),
         Silent("over just in time", {"pool_saturated_jobs fleet=f": "1x29 0..."})),
    ),
    Cases(
        "RunnerPoolShort",
        (Fires("one too few", {"pool_runners fleet=f state=desired": "3...", OBSERVED: "2..."},
               "15m", "1"),),
        (
            Silent("enough", {"pool_runners fleet=f state=desired": "3...", OBSERVED: "3..."}),
            Silent("more", {"pool_runners fleet=f state=desired": "3...", OBSERVED: "4..."}),
            Silent("unknown", {"pool_runners fleet=f state=desired": "3..."}),
            Silent("over just in time", {"pool_runners fleet=f state=desired": "3...",
                   OBSERVED: "2x14 3..."}),
        ),
    ),
    Cases(
        "RunnerBootStuck",
        (Fires("a second too long", {"pool_booting_oldest_seconds fleet=f": "1801..."}, "5m",
               "30m 1s"),),
        (Silent("as long as it may", {"pool_booting_oldest_seconds fleet=f": "1800..."}),
         Silent("over just in time", {"pool_booting_oldest_seconds fleet=f": "1801x4 0..."})),
    ),
    Cases(
        "RunnerMintFailures",
        (Fires("more than half", {"runner_mints_total fleet=f outcome=failed": "0+26...",
               "runner_mints_total fleet=f outcome=limited": "0+25...",
               "runner_mints_total fleet=f outcome=ok": "0+49..."}, "11m", "51%"),
         Fires("soon forgotten", {"runner_mints_total fleet=f outcome=failed": "0 1...",
               "runner_mints_total fleet=f outcome=ok": "0..."}, "11m", "100%", until="16m")),
        (
            Silent("half", {"runner_mints_total fleet=f outcome=failed": "0+5...",
                   "runner_mints_total fleet=f outcome=ok": "0+5..."}),
            Silent("none was asked for", {"runner_mints_total fleet=f outcome=failed": "0...",
                   "runner_mints_total fleet=f outcome=ok": "0..."}),
            Silent("over just in time", {"runner_mints_total fleet=f outcome=failed": "0+1x9 9...",
                   "runner_mints_total fleet=f outcome=ok": "0x10 9+9..."}),
        ),
    ),
    # Time begins at 0 here; after 15 minutes it is too long ago, and 5 later it is said.
    Cases(
        "DispatchSilent",
        (Fires("nobody since 0", {"dispatch_last_request_timestamp_seconds fleet=f": "0...",
               QUEUED: "1..."}, "21m", "21m 0s"),),
        (
            Silent("nothing to do", {"dispatch_last_request_timestamp_seconds fleet=f": "0...",
                   QUEUED: "0...", RUNNING: "5..."}),
            Silent("now and then", {"dispatch_last_request_timestamp_seconds fleet=f":
                   "0x14 840...", QUEUED: "1..."}),
            Silent("no dispatcher", {QUEUED: "1..."}),
        ),
    ),
    Cases(
        "JobRunsTooLong",
        (Fires("a second", {"oldest_seconds fleet=f status=running": "21601..."}, "5m",
               "6h 0m 1s"),),
        (
            Silent("as long as it may", {"oldest_seconds fleet=f status=running": "21600..."}),
            Silent("another status", {"oldest_seconds fleet=f status=queued": "30000..."}),
            Silent("over just in time", {"oldest_seconds fleet=f status=running": "21601x4 0..."}),
        ),
    ),
    Cases(
        "FleetFailureRatio",
        (Fires("most", {FAILED: "0+51...", FINE: "0+49...",
               "jobs_completed_total fleet=f conclusion=cancelled": "0+500..."}, "16m", "51%"),
         Fires("21 are enough, and forgotten after an hour", {FAILED: "0 21...", FINE: "0..."},
               "16m", "100%", until="61m")),
        (
            Silent("half", {FAILED: "0+5...", FINE: "0+5..."}),
            Silent("twenty are too few", {FAILED: "0+1x20 20...", FINE: "0..."}),
            Silent("cancelled is neither", {FAILED: "0+1...", FINE: "0+2...",
                   "jobs_completed_total fleet=f conclusion=cancelled": "0+50..."}),
            Silent("over just in time", {FAILED: "0+6x5 30...", FINE: "0x17 30+30..."}),
        ),
    ),
)  # fmt: skip


def _jobs(within: str, of: str) -> Series:
    """How many started within the goal, and how many in all."""
    return {
        "job_queue_seconds_bucket fleet=f le=60.0": within,
        "job_queue_seconds_bucket fleet=f le=120.0": of,
        "job_queue_seconds_count fleet=f": of,
    }


QUEUE_TIME: Final = (
    Cases(
        "JobQueueBurnFast",
        (
            Fires("one in seven", _jobs("0+855...", "0+1000..."), "3m", "14.5%"),
            # The hour is still bad; that it does not go on is seen in five minutes.
            Fires("over at once", _jobs("0+8x20 170+10...", "0+10..."), "4m", "20%", until="22m"),
            Fires("twenty are enough", _jobs("0...", "0 20..."), "3m", "100%", until="6m"),
        ),
        (
            Silent("a little less", _jobs("0+857...", "0+1000...")),
            Silent("nineteen are too few", _jobs("0...", "0+1x19 19...")),
            Silent("nobody", _jobs("0...", "0...")),
            Silent("only lately", _jobs("0+10x50 505+5...", "0+10...")),
        ),
        to="55m",
    ),
    Cases(
        "JobQueueBurn",
        (Fires("one in sixteen", _jobs("0+939...", "0+1000..."), "20m", "6.1%"),
         Fires("over at once", _jobs("0+900x5 5500+1000...", "0+1000..."), "20m", "10%",
               until="40m"),
         Fires("twenty are enough", _jobs("0...", "0 20..."), "20m", "100%", until="35m")),
        (Silent("a little less", _jobs("0+941...", "0+1000...")),
         Silent("nineteen are too few", _jobs("0...", "0+1x19 19...")),
         Silent("only lately", _jobs("0+1000x66 66800+800...", "0+1000..."))),
        step="5m",
        to="6h",
    ),
    Cases(
        "JobQueueBurnSlow",
        (Fires("one in thirty", _jobs("0+969...", "0+1000..."), "1h30m", "3.1%"),
         Fires("over soon", _jobs("0+900x4 4600+1000...", "0+1000..."), "1h30m", "10%",
               until="3h30m"),
         Fires("twenty are enough", _jobs("0...", "0 20..."), "1h30m", "100%", until="2h30m")),
        (Silent("a little less", _jobs("0+971...", "0+1000...")),
         Silent("nineteen are too few", _jobs("0...", "0+1x19 19...")),
         Silent("only lately", _jobs("0+1000x44 44950+950...", "0+1000..."))),
        step="30m",
        to="24h",
    ),
    Cases(
        "JobQueueBurnCreeping",
        (Fires("one in ninety", _jobs("0+989...", "0+1000..."), "4h", "1.1%"),
         Fires("over soon", _jobs("0+900x4 4600+1000...", "0+1000..."), "4h", "10%", until="10h"),
         Fires("twenty are enough", _jobs("0...", "0 20..."), "4h", "100%", until="7h")),
        (Silent("a little less", _jobs("0+991...", "0+1000...")),
         Silent("nineteen are too few", _jobs("0...", "0+1x19 19...")),
         Silent("only lately", _jobs("0+1000x66 66980+980...", "0+1000..."))),
        step="1h",
        to="72h",
    ),
)  # fmt: skip
