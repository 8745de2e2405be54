"""Of the groups ``scheduler`` and ``reconciler``."""

from __future__ import annotations

from typing import Final

from tests.support.alert_cases.model import Cases, Fires, Series, Silent

MODE: Final = {"fleet": "f", "mode": "content_refresh"}


def _plans(**values: str) -> Series:
    name = "scheduler_planner_runs_total fleet=f mode=content_refresh"
    return {f"{name} status={status}": told for status, told in values.items()}


def _planned(bound: str, within: str, count: str) -> Series:
    name = "scheduler_planner_latency_seconds"
    return {
        f"{name}_bucket mode=content_refresh status=enqueued le={bound}": within,
        f"{name}_count mode=content_refresh status=enqueued": count,
    }


def _backlog(values: str) -> Series:
    return {"scheduler_backlog_largest fleet=f mode=content_refresh": values}


SCHEDULER: Final = (
    Cases(
        "SchedulerPlannerFailures",
        (Fires("again and again", _plans(failed="0+1..."), "11m", labels=MODE),),
        (
            Silent("none", _plans(failed="3...", enqueued="0+1...")),
            Silent("one", _plans(failed="0 1...")),
            Silent("over just in time", _plans(failed="0+1x4 4...")),
        ),
    ),
    Cases(
        "SchedulerPlannerFailureRatio",
        (Fires("more than a tenth", _plans(failed="0+21...", enqueued="0+100...",
               no_work="0+79..."), "11m", "10.5%", MODE),
         Fires("soon forgotten", _plans(failed="0 1...", enqueued="0..."), "11m", "100%", MODE,
               until="16m")),
        (
            Silent("one in eleven", _plans(failed="0+1...", enqueued="0+10...")),
            Silent("nothing is planned", _plans(failed="3...", enqueued="3...")),
            Silent("over just in time", _plans(failed="0+1x9 9...", enqueued="0x10 200+20...")),
        ),
    ),
    Cases(
        "SchedulerPlannerLatency",
        (Fires("more than one in twenty", _planned("45.0", "0+948...", "0+1000..."), "11m", "5.2%",
               {"mode": "content_refresh"}),),
        (
            Silent("four in a hundred", _planned("45.0", "0+951...", "0+1000...")),
            Silent("nothing is planned", _planned("45.0", "3...", "9...")),
            Silent("over just in time", _planned("45.0", "0+9x10 900+200...",
                   "0+10x10 910+200...")),
        ),
    ),
    Cases(
        "SchedulerPlannerLatencyCritical",
        (Fires("more than one in twenty", _planned("120.0", "0+948...", "0+1000..."), "11m", "5.2%",
               {"mode": "content_refresh"}),),
        (
            Silent("four in a hundred", _planned("120.0", "0+951...", "0+1000...")),
            Silent("slow, but not as slow", {**_planned("120.0", "0+10...", "0+10..."),
                   "scheduler_planner_latency_seconds_bucket mode=content_refresh "
                   "status=enqueued le=45.0": "0..."}),
        ),
    ),
    Cases(
        "SchedulerBacklogGrowing",
        (Fires("it stands still", _backlog("501..."), "16m", "501", MODE),
         Fires("it grows", _backlog("501+10..."), "16m", "661", MODE),
         Fires("it has stopped to shrink", _backlog("900-10x10 800..."), "40m", "800", MODE)),
        (
            Silent("as large as it may be", _backlog("500...")),
            Silent("it shrinks", _backlog("900-10...")),
            Silent("over just in time", _backlog("501x15 500...")),
        ),
    ),
    Cases(
        "SchedulerBacklogNotDraining",
        (Fires("one", {"scheduler_runs_not_draining fleet=f": "1..."}, "20m", "1"),),
        (Silent("none", {"scheduler_runs_not_draining fleet=f": "0..."}),
         Silent("over just in time", {"scheduler_runs_not_draining fleet=f": "1x19 0..."})),
    ),
    Cases(
        "SchedulerRunsStuck",
        (
            Fires("it is executed", {"scheduler_run_oldest_seconds fleet=f state=active":
                  "3601..."}, "15m", "1h 0m 1s", {"fleet": "f", "state": "active"}),
            Fires("it is planned", {"scheduler_run_oldest_seconds fleet=f state=planning":
                  "3601..."}, "15m", "1h 0m 1s", {"fleet": "f", "state": "planning"}),
        ),
        (Silent("as old as it may be", {"scheduler_run_oldest_seconds fleet=f state=active":
                "3600..."}),
         Silent("over just in time", {"scheduler_run_oldest_seconds fleet=f state=active":
                "3601x14 0..."})),
    ),
    Cases(
        "SchedulerSegmentFailures",
        (Fires("one", {"scheduler_segments_total fleet=f mode=other status=persist_failed":
               "0x3 1..."}, "4m", "1", {"fleet": "f", "status": "persist_failed"}, until="14m"),
         Fires("its run is missing", {"scheduler_segments_total fleet=f mode=other "
               "status=run_missing": "0x3 1..."}, "4m", "1",
               {"fleet": "f", "status": "run_missing"}, until="14m")),
        (Silent("none", {"scheduler_segments_total fleet=f mode=other status=persist_failed":
                "4..."}),
         Silent("completed", {"scheduler_segments_total fleet=f mode=other status=completed":
                "0+1..."})),
    ),
    Cases(
        "SchedulerDeadLetters",
        (Fires("one", {"scheduler_dead_lettered_total fleet=f queue=runner": "0x3 1..."}, "4m",
               "1", {"fleet": "f", "queue": "runner"}, until="19m"),),
        (Silent("none", {"scheduler_dead_lettered_total fleet=f queue=runner": "4..."}),),
    ),
    Cases(
        "SchedulerSchedulesBehind",
        (Fires("one", {"scheduler_schedules_behind fleet=f": "1..."}, "30m", "1"),),
        (Silent("none", {"scheduler_schedules_behind fleet=f": "0..."}),
         Silent("over just in time", {"scheduler_schedules_behind fleet=f": "1x29 0..."})),
    ),
)  # fmt: skip


def _level(alert: str, series: str, at: str, value: str = "1") -> Cases:
    """A gauge that should be 0 and is 1 for long enough."""
    short = int(at.removesuffix("m")) - 1
    return Cases(
        alert,
        (Fires("one", {f"{series} fleet=f": "1..."}, at, value),),
        (Silent("none", {f"{series} fleet=f": "0..."}),
         Silent("over just in time", {f"{series} fleet=f": f"1x{short} 0..."})),
    )  # fmt: skip


def _ticks(quick: str, slow: str) -> Series:
    name = "reconciler_tick_seconds_bucket"
    return {f"{name} le=0.5": quick, f"{name} le=1.0": slow, f"{name} le=+Inf": slow}


def _dispatches(failed: str, moved: str) -> Series:
    return {
        "reconciler_work_moved_total fleet=f to=open": "0+500...",
        "reconciler_dispatch_failures_total fleet=f": failed,
        "reconciler_work_moved_total fleet=f to=in_progress": moved,
    }


RECONCILER: Final = (
    _level("ReconcilerTickAge", "reconcilers_overdue", "2m"),
    Cases(
        "ReconcilerTickSlow",
        (Fires("more than one in twenty", _ticks("0+949...", "0+1000..."), "11m", "509.8ms", {}),),
        (Silent("one in twenty", _ticks("0+95...", "0+100...")),
         Silent("over just in time", _ticks("0+90x9 1700+100...", "0+100x9 1800+100..."))),
    ),
    Cases(
        "ReconcilerTickVerySlow",
        (Fires("a bit too slow", {"reconciler_last_tick_seconds fleet=f": "5.5..."}, "5m",
               "5.5s"),),
        (Silent("as slow as it may be", {"reconciler_last_tick_seconds fleet=f": "5..."}),
         Silent("over just in time", {"reconciler_last_tick_seconds fleet=f": "6x4 0..."})),
    ),
    Cases(
        "ReconcilerTicksFail",
        (Fires("more than a fifth", {"reconciler_ticks_total fleet=f outcome=failed": "0+21...",
               "reconciler_ticks_total fleet=f outcome=ok": "0+79..."}, "6m", "21%"),
         Fires("soon forgotten", {"reconciler_ticks_total fleet=f outcome=failed": "0 1...",
               "reconciler_ticks_total fleet=f outcome=ok": "0..."}, "6m", "100%", until="11m")),
        (
            Silent("two in ten", {"reconciler_ticks_total fleet=f outcome=failed": "0+2...",
                   "reconciler_ticks_total fleet=f outcome=ok": "0+8..."}),
            Silent("no tick", {"reconciler_ticks_total fleet=f outcome=failed": "3...",
                   "reconciler_ticks_total fleet=f outcome=ok": "3..."}),
            Silent("over just in time", {"reconciler_ticks_total fleet=f outcome=failed":
                   "0+3x4 12...", "reconciler_ticks_total fleet=f outcome=ok": "0x5 90+9..."}),
        ),
    ),
    Cases(
        "ReconcilerViolationsOpen",
        (Fires("a second", {"reconciler_violation_oldest_seconds fleet=f": "301..."}, "1m",
               "5m 1s"),),
        (Silent("as long as it may", {"reconciler_violation_oldest_seconds fleet=f": "300..."}),
         Silent("over just in time", {"reconciler_violation_oldest_seconds fleet=f": "301 0..."})),
    ),
    Cases(
        "ReconcilerPendingEvents",
        (Fires("one too many", {"reconciler_pending_events_largest fleet=f state=retry": "51..."},
               "1m", "51", {"fleet": "f", "state": "retry"}),
         Fires("read once, five minutes ago", {"reconciler_pending_events_largest fleet=f "
               "state=new": "0 51..."}, "7m", "51", {"fleet": "f", "state": "new"})),
        (
            Silent("as many as may be", {"reconciler_pending_events_largest fleet=f state=new":
                   "50..."}),
            Silent("read now and then", {"reconciler_pending_events_largest fleet=f state=new":
                   "0 99x3 0..."}),
            Silent("over just in time", {"reconciler_pending_events_largest fleet=f state=new":
                   "51 0..."}),
        ),
    ),
    _level("ReconcilerNoProgress", "reconcilers_without_progress", "5m"),
    _level("ReconcilerRepeatLoop", "reconciler_entities_in_loop", "5m"),
    _level("ReconcilerFlapping", "reconciler_work_flapping", "5m"),
    _level("ReconcilerBreakerOpen", "reconciler_breaker_open", "5m"),
    Cases(
        "ReconcilerDispatchFailing",
        (Fires("more than half", _dispatches("0+51...", "0+49..."), "6m", "51%"),
         Fires("four are enough, and soon forgotten", _dispatches("0 4...", "0..."), "6m", "100%",
               until="11m")),
        (
            Silent("half", _dispatches("0+5...", "0+5...")),
            Silent("three are too few", _dispatches("0 3...", "0...")),
            Silent("over just in time", _dispatches("0+6x4 24...", "0x5 24+24...")),
        ),
    ),
    Cases(
        "ReconcilerNobodyWorks",
        (Fires("one waits", {"reconciler_work fleet=f state=open": "1...",
               "reconciler_work fleet=f state=in_progress": "0..."}, "5m", "1"),),
        (
            Silent("somebody works", {"reconciler_work fleet=f state=open": "2...",
                   "reconciler_work fleet=f state=in_progress": "1..."}),
            Silent("nothing to do", {"reconciler_work fleet=f state=open": "0...",
                   "reconciler_work fleet=f state=in_review": "3...",
                   "reconciler_work fleet=f state=in_progress": "0..."}),
            Silent("over just in time", {"reconciler_work fleet=f state=open": "2...",
                   "reconciler_work fleet=f state=in_progress": "0x4 1..."}),
        ),
    ),
    Cases(
        "ReconcilerWorkStuck",
        (
            Fires("nobody takes it", {"reconciler_work_oldest_seconds fleet=f state=open":
                  "301..."}, "5m", "5m 1s", {"fleet": "f", "state": "open"}),
            Fires("nobody looks at it", {"reconciler_work_oldest_seconds fleet=f state=in_review":
                  "901..."}, "5m", "15m 1s", {"fleet": "f", "state": "in_review"}),
        ),
        (
            Silent("as long as it may be open", {"reconciler_work_oldest_seconds fleet=f "
                   "state=open": "300..."}),
            Silent("as long as a review may be", {"reconciler_work_oldest_seconds fleet=f "
                   "state=in_review": "900..."}),
            Silent("it is worked on", {"reconciler_work_oldest_seconds fleet=f "
                   "state=in_progress": "9999..."}),
            Silent("over just in time", {"reconciler_work_oldest_seconds fleet=f state=open":
                   "301x4 0..."}),
        ),
    ),
)  # fmt: skip
