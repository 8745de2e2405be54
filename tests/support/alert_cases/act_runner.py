"""Of the group ``act_runner``."""

from __future__ import annotations

from typing import Final

from tests.support.alert_cases.model import Cases, Fires, Series, Silent

QUEUED: Final = "jobs fleet=f status=queued"
BUSY: Final = "jobs fleet=f status=running"
ASSIGNED: Final = "runner_tasks_open fleet=f state=assigned"
POLLS: Final = "runner_polls_total fleet=f result=empty"
RUNNING: Final = "runner_tasks_open fleet=f state=running"
CAPACITY: Final = "runner_capacity fleet=f"
ROWS: Final = "runner_buffer_rows_max fleet=f"
SILENT: Final = "runner_tasks_silent fleet=f"


def _polls(**values: str) -> Series:
    return {f"runner_polls_total fleet=f result={name}": told for name, told in values.items()}


def _reports(report: str, quick: str, slow: str) -> Series:
    """Reports within two seconds, and within five."""
    name = f"runner_{report}_report_seconds_bucket"
    return {f"{name} le=2.0": quick, f"{name} le=5.0": slow, f"{name} le=+Inf": slow}


ACT_RUNNER: Final = (
    Cases(
        "RunnerRpcErrors",
        (Fires("seven a minute",
               {"runner_client_errors_total fleet=f method=fetch_task": "0+7..."}, "10m", "0.12",
               {"fleet": "f", "method": "fetch_task"}),),
        (Silent("six a minute", {"runner_client_errors_total fleet=f method=fetch_task": "0+6..."}),
         Silent("over just in time",
                {"runner_client_errors_total fleet=f method=fetch_task": "0+7x9 63..."})),
    ),
    Cases(
        "RunnerPollFailing",
        (
            Fires("more than half", _polls(error="0+51...", task="0+49..."), "6m", "51%"),
            Fires("unknown to their server, time-outs left out",
                  _polls(unauthenticated="0+3...", empty="0+2...", timeout="0+95..."), "6m", "60%"),
        ),
        (
            Silent("half", _polls(error="0+5...", empty="0+5...")),
            Silent("time-outs are their own", _polls(timeout="0+50...", task="0+1...")),
            Silent("nobody asks", _polls(error="3...", task="3...")),
            Silent("over just in time", _polls(error="0+6x3 18...", task="0x4 18+9...")),
        ),
    ),
    Cases(
        "RunnerNotPolling",
        (
            Fires("a place is free", {POLLS: "5...", QUEUED: "1...", CAPACITY: "2...",
                  RUNNING: "1...", ASSIGNED: "1..."}, "11m"),
            Fires("not any more", {POLLS: "0+1x10 10...", QUEUED: "1..."}, "30m"),
            Fires("nothing is heard of them", {POLLS: "5...", QUEUED: "1..."}, "11m"),
        ),
        (
            Silent("they are full", {POLLS: "5...", QUEUED: "1...", CAPACITY: "2...",
                   RUNNING: "2..."}),
            Silent("nothing to do", {POLLS: "5...", QUEUED: "0...", BUSY: "1...", CAPACITY: "2...",
                   RUNNING: "1..."}),
            Silent("they ask", {POLLS: "0+1...", QUEUED: "1..."}),
            Silent("over just in time", {POLLS: "5x10 6+1...", QUEUED: "1..."}),
        ),
    ),
    Cases(
        "RunnerSaturated",
        (Fires("full", {CAPACITY: "2...", RUNNING: "2...", QUEUED: "1..."}, "10m", "100%"),),
        (
            Silent("a place is free", {CAPACITY: "3...", RUNNING: "2...", ASSIGNED: "1...",
                   QUEUED: "1..."}),
            Silent("nobody waits", {CAPACITY: "2...", RUNNING: "2...", QUEUED: "0...",
                   BUSY: "2..."}),
            Silent("there is no place at all", {CAPACITY: "0...", RUNNING: "0...", QUEUED: "1..."}),
            Silent("over just in time", {CAPACITY: "2...", RUNNING: "2x9 1...", QUEUED: "1..."}),
        ),
    ),
    Cases(
        "RunnerPollsStuck",
        (Fires("one", {"runner_polls_stuck fleet=f": "1..."}, "10m", "1"),),
        (Silent("none", {"runner_polls_stuck fleet=f": "0..."}),
         Silent("over just in time", {"runner_polls_stuck fleet=f": "1x9 0..."})),
    ),
    Cases(
        "RunnerUnregistered",
        (Fires("one", {"runners_unregistered fleet=f": "1..."}, "5m", "1"),),
        (Silent("none", {"runners_unregistered fleet=f": "0..."}),
         Silent("over just in time", {"runners_unregistered fleet=f": "1x4 0..."})),
    ),
    Cases(
        "RunnerReportLatency",
        (
            Fires("of logs", _reports("log", "0+90...", "0+100..."), "11m", "3.5s",
                  {"report": "log"}),
            Fires("of states", _reports("state", "0+90...", "0+100..."), "11m", "3.5s",
                  {"report": "state"}),
        ),
        (
            Silent("as slow as they may be", _reports("log", "0+95...", "0+100...")),
            Silent("no reports", _reports("state", "7...", "7...")),
            Silent("once", _reports("log", "0...", "0 10...")),
            Silent("over just in time", _reports("log", "0x10 9999+99...", "0+10x10 10099+99...")),
        ),
    ),
    Cases(
        "RunnerLogNotDraining",
        (Fires("a row too many", {ROWS: "501..."}, "5m", "501"),
         Fires("sent once, ten minutes ago", {ROWS: "501x2 0 501..."}, "19m", "501")),
        (
            Silent("as many as may be", {ROWS: "500..."}),
            Silent("sent now and then", {ROWS: "501x4 0 501x4 0 501x4 0 501x4 0 501..."}),
            Silent("over just in time", {ROWS: "501x4 0..."}),
        ),
    ),
    Cases(
        "RunnerTaskSilent",
        (Fires("one", {SILENT: "1..."}, "6m", "1"),),
        (Silent("none", {SILENT: "0..."}), Silent("over just in time", {SILENT: "1x5 0..."})),
    ),
    Cases(
        "RunnerTasksReaped",
        (Fires("one", {"runner_tasks_reaped_total sweep=zombie": "0x3 1..."}, "4m", "1",
               {"sweep": "zombie"}, until="64m"),),
        (Silent("none", {"runner_tasks_reaped_total sweep=zombie": "5..."}),),
    ),
    Cases(
        "RunnerResultUnknown",
        (Fires("one", {"runner_tasks_total fleet=f result=unknown": "0x3 1..."}, "4m", "1",
               until="64m"),),
        (Silent("none", {"runner_tasks_total fleet=f result=unknown": "5..."}),
         Silent("known ones", {"runner_tasks_total fleet=f result=failure": "0+1..."})),
    ),
)  # fmt: skip
