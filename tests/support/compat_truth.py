"""What the names of other systems must show of telemetry, worked out without the fold.

Names, types, labels, their values and bounds as those systems have them; values from what the
simulator says of its world. Nothing of it is read from our declarations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.simulate.telemetry import Told

#: Values of labels, in the order of the labels.
Place = tuple[str, ...]
#: What becomes of a label's value there: the same, another word (None: such a series is not
#: followed), or the label is not there.
Words = Mapping[str, str | None]
ALIKE: Final[Words] = {}
GONE: Final[Words] = {"": None}


def placed(values: Iterable[str], turns: tuple[Words, ...]) -> Place | None:
    """Values as they are called there."""
    place = []
    for value, words in zip(values, turns, strict=True):
        if words is GONE:
            continue
        word = value if words is ALIKE else words[value]
        if word is None:
            return None
        place.append(word)
    return tuple(place)


# --- the truth --------------------------------------------------------------------------------


def counted(what: str, *turns: Words) -> Callable[[Told], Mapping[Place, float]]:
    """How often it happened; ``turns`` of the fleet, then of the labels."""

    def of(told: Told) -> Mapping[Place, float]:
        found = Counter[Place]()
        for fleet, counts in told.counts.items():
            for name, number in counts.items():
                metric, *labels = name.split("|")
                place = placed((fleet, *labels), turns) if metric == what else None
                if place is not None:
                    found[place] += number
        return found

    return of


def level(
    what: str, *turns: Words, state: str = "", fold: Callable[[Iterable[float]], float] = sum
) -> Callable[[Told], Mapping[Place, float]]:
    """How it is in the end; ``state``: of those with this label behind the others."""

    def of(told: Told) -> Mapping[Place, float]:
        found: dict[Place, list[float]] = {}
        for (name, *labels), value in told.levels.items():
            if name != what or (state and labels.pop() != state):
                continue
            place = placed(labels, turns)
            assert place is not None
            found.setdefault(place, []).append(value)
        return {place: fold(values) for place, values in found.items()}

    return of


def lasted(
    kind: str,
    *turns: Words,
    by: tuple[str, ...] = (),
    ms: str = "duration_ms",
    unit: float = 1e3,
    only: Mapping[str, str] | None = None,
) -> Callable[[Told], Mapping[Place, list[float]]]:
    """All durations that events of a kind tell, by fields of theirs; those with ``only``."""

    def of(told: Told) -> Mapping[Place, list[float]]:
        found: dict[Place, list[float]] = {}
        for each in told.events:
            if each.kind != kind or getattr(each, ms) is None:
                continue
            if any(getattr(each, name) != value for name, value in (only or {}).items()):
                continue
            place = placed([str(getattr(each, name)) for name in by], turns)
            if place is not None:
                found.setdefault(place, []).append(getattr(each, ms) / unit)
        return found

    return of


def plus(*parts: tuple[Place, Callable[[Told], Mapping[Place, float]]]) -> Any:
    """Several that make one metric, each with values of labels that it begins with."""
    return lambda told: {
        (*first, *place): value for first, of in parts for place, value in of(told).items()
    }


def used(told: Told) -> Mapping[Place, float]:
    """Running tasks by the capacity for them."""
    running = level("runner_tasks_open", ALIKE, state="running")(told)
    capacity = level("runner_capacity", ALIKE)(told)
    return {fleet: running.get(fleet, 0) / most if most else 0 for fleet, most in capacity.items()}


# --- what is there ----------------------------------------------------------------------------


@dataclass(frozen=True)
class There:
    """A metric of theirs."""

    kind: str
    labels: tuple[str, ...]
    truth: Callable[[Told], Mapping[Place, Any]]
    bounds: tuple[float, ...] = ()


DISPATCHED: Final[Words] = {
    "served": "served", "empty": "no_work_yet", "lost_race": "lost_race",
    "runner_in_use": "pod_in_use", "drain": "drain", "not_found": "not_found",
    "no_pool": "no_pool_label", "no_label": "no_dispatch_label",
    "unknown_account": "unknown_account", "mint_failed": "github_mint_failed",
    "record_failed": "record_running_failed", "unavailable": "not_in_cluster",
    "unknown": "unknown",
}  # fmt: skip


def replicas(state: str) -> There:
    return There("gauge", ("fleet",), level("pool_runners", ALIKE, state=state))


TUIST: Final = {
    "tuist_runners_dispatch_request_count": There(
        "counter", ("fleet", "outcome"), counted("dispatch_requests", ALIKE, DISPATCHED)),
    "tuist_runners_dispatch_request_duration_milliseconds": There(
        "histogram", ("outcome",), lasted("dispatch.request", DISPATCHED, by=("outcome",), unit=1),
        (10, 50, 100, 250, 500, 1000, 2500, 5000, 10000)),
    "tuist_runners_pool_replicas_desired": replicas("desired"),
    "tuist_runners_pool_replicas_observed": replicas("observed"),
    "tuist_runners_pool_replicas_max": replicas("max"),
    "tuist_runners_accounts_enabled": There("gauge", (), level("accounts", GONE, fold=max)),
    "tuist_runners_queue_withheld": There("gauge", ("fleet",), level("queue_withheld", ALIKE)),
    "tuist_runners_queue_oldest_dispatchable_age_seconds": There(
        "gauge", ("fleet",), level("queue_oldest_dispatchable_seconds", ALIKE)),
    "tart_kubelet_vm_boot_duration_seconds": There(
        "histogram", ("pool",),
        lasted("machine.boot", ALIKE, by=("fleet",), only={"outcome": "ready"}),
        (5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1800, 3600)),
}  # fmt: skip

POLLED: Final[Words] = {
    "task": "task", "empty": "empty", "timeout": "empty", "error": "error", "unknown": "error",
    "unauthenticated": None,
}  # fmt: skip
CALLED: Final[Words] = {
    "fetch_task": "FetchTask", "update_log": "UpdateLog", "update_task": "UpdateTask",
    "other": None,
}  # fmt: skip
REPORTS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5)
RUNNERS: Final = {
    "info": There("gauge", ("version", "name"),
                  plus((("unknown",), level("runners_known", ALIKE)))),
    "capacity": There("gauge", ("fleet",), level("runner_capacity", ALIKE)),
    "uptime_seconds": There("gauge", ("fleet",), level("runner_uptime_oldest_seconds", ALIKE)),
    "poll_fetch_total": There(
        "counter", ("fleet", "result"), counted("runner_polls", ALIKE, POLLED)),
    "poll_fetch_duration_seconds": There(
        "histogram", ("fleet",), lasted("runner.poll", ALIKE, by=("fleet",)),
        (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10)),
    "poll_backoff_seconds": There("gauge", ("fleet",), level("runner_backoff_seconds", ALIKE)),
    "job_total": There("counter", ("fleet", "status"), counted("runner_tasks", ALIKE, ALIKE)),
    "job_duration_seconds": There(
        "histogram", ("fleet",), lasted("task.finished", ALIKE, by=("fleet",)),
        (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)),
    "job_running": There(
        "gauge", ("fleet",), level("runner_tasks_open", ALIKE, state="running")),
    "job_capacity_utilization_ratio": There("gauge", ("fleet",), used),
    "report_log_total": There(
        "counter", ("fleet", "result"), counted("runner_log_reports", ALIKE, ALIKE)),
    "report_log_duration_seconds": There("histogram", (), lasted("report.log"), REPORTS),
    "report_state_total": There(
        "counter", ("fleet", "result"), counted("runner_state_reports", ALIKE, ALIKE)),
    "report_state_duration_seconds": There("histogram", (), lasted("report.state"), REPORTS),
    "report_log_buffer_rows": There("gauge", ("fleet",), level("runner_buffer_rows", ALIKE)),
    "client_errors_total": There(
        "counter", ("fleet", "method"), counted("runner_client_errors", ALIKE, CALLED)),
}  # fmt: skip

MODES: Final[Words] = {
    "analysis_only": "analysisOnly", "content_refresh": "contentRefresh", "other": "other",
}  # fmt: skip
PLANNED: Final[Words] = {
    "enqueued": "enqueued", "no_work": "no_work", "failed": "failed", "unknown": None,
}  # fmt: skip
SEGMENTS: Final[Words] = {
    "completed": "Completed", "persist_failed": "persist_failed", "run_missing": "RunMissing",
    "unknown": None,
}  # fmt: skip
ENDED: Final[Words] = {
    "completed": "completed", "cancelled": "cancelled", "error": "error", "unknown": "unknown",
    "no_work": None,
}  # fmt: skip


def findings(name: str) -> There:
    return There("counter", ("mode",), counted(name, GONE, MODES))


STELLAOPS: Final = {
    "scheduler_planner_runs_total": There(
        "counter", ("mode", "status"), counted("scheduler_planner_runs", GONE, MODES, PLANNED)),
    "scheduler_planner_latency_seconds": There(
        "histogram", ("mode", "status"),
        lasted("run.planned", MODES, PLANNED, by=("mode", "status"), ms="latency_ms"),
        (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)),
    "scheduler_runner_segments_total": There(
        "counter", ("mode", "status"), counted("scheduler_segments", GONE, MODES, SEGMENTS)),
    "scheduler_runner_images_total": There(
        "counter", ("mode", "delta"), counted("scheduler_images", GONE, MODES, ALIKE)),
    "scheduler_runner_delta_total": findings("scheduler_findings"),
    "scheduler_runner_delta_critical_total": findings("scheduler_findings_critical"),
    "scheduler_runner_delta_high_total": findings("scheduler_findings_high"),
    "scheduler_runner_delta_kev_total": findings("scheduler_findings_kev"),
    "scheduler_run_duration_seconds": There(
        "histogram", ("mode", "result"),
        lasted("run.finished", MODES, ENDED, by=("mode", "result")),
        (1, 2, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)),
    "scheduler_runs_active": There("gauge", ("mode",), level("scheduler_runs_active", GONE, MODES)),
    "scheduler_runner_backlog": There(
        "gauge", ("scheduleId", "fleet", "mode"),
        plus((("largest",), level("scheduler_backlog_largest", ALIKE, MODES)))),
}  # fmt: skip


def of_ticks(what: str) -> There:
    return There("counter", (), counted(what, GONE))


def of_all(what: str, fold: Callable[[Iterable[float]], float] = sum) -> There:
    return There("gauge", (), level(what, GONE, fold=fold))


GASTOWN: Final = {
    "ticks_total": There("counter", ("outcome",), counted("reconciler_ticks", GONE, ALIKE)),
    "tick_duration_seconds": There(
        "histogram", (), lasted("reconciler.tick", ms="wall_ms"),
        (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60)),
    "events_drained_total": of_ticks("reconciler_events_drained"),
    "events_failed_total": of_ticks("reconciler_events_failed"),
    "actions_emitted_total": of_ticks("reconciler_actions"),
    "actions_total": There(
        "counter", ("outcome",), counted("reconciler_action_results", GONE, ALIKE)),
    "side_effects_total": There("counter", ("outcome",), plus(
        (("attempted",), counted("reconciler_effects_attempted", GONE)),
        ((), counted("reconciler_effects", GONE, {
            "succeeded": "succeeded", "failed": "failed", "unknown": None})))),
    "invariant_violations": of_all("reconciler_violations"),
    "invariant_violations_opened_total": of_ticks("reconciler_violations_opened"),
    "invariant_oldest_age_seconds": of_all("reconciler_violation_oldest_seconds", max),
    "pending_events": There("gauge", (), level("reconciler_pending_events", GONE, GONE)),
    "pending_oldest_age_seconds": of_all("reconciler_pending_oldest_seconds", max),
    "last_tick_timestamp_seconds": of_all("reconciler_last_tick_timestamp_seconds", max),
    "circuit_breaker_open": of_all("reconciler_breaker_open"),
}  # fmt: skip
THERE: Final[Mapping[str, There]] = {
    **TUIST,
    **{f"{each}_{name}": there for each in ("act_runner", "gitea_runner")
       for name, there in RUNNERS.items()},
    **STELLAOPS,
    **{f"gastown_reconciler_{name}": there for name, there in GASTOWN.items()},
}  # fmt: skip
