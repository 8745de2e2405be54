"""Gitea's act_runner: the 16 metrics of its own page, under both names that it has had."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from pipeline.compat.act_runner_shows import alerts, panels
from pipeline.compat.model import Always, From, System, Take, Theirs, Turn, same
from pipeline.telemetry import runner_metrics as ours

_POLL_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10)
_REPORT_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5)
#: 1 s to 8192 s, each twice the one before.
_JOB_BUCKETS: Final = tuple(float(2**n) for n in range(14))
#: What a poll got. That the runner is not known any more it counts nowhere.
_POLLS: Final = {"task": "task", "empty": "empty", "timeout": "empty", "error": "error",
                 "unknown": "error"}  # fmt: skip
_RESULTS: Final = ("success", "failure", "cancelled", "skipped", "unknown")
_METHODS: Final = {
    "fetch_task": "FetchTask", "update_log": "UpdateLog", "update_task": "UpdateTask",
}  # fmt: skip
_FLEET: Final = Take("fleet")


def _gauge(name: str, text: str, *follows: From, said: str = "", over: From | None = None,
           labels: tuple[str, ...] = ("fleet",)) -> Theirs:  # fmt: skip
    return Theirs(name, "gauge", text, labels, follows, said=said, over=over)


def _counter(name: str, text: str, label: str, follows: From, said: str = "") -> Theirs:
    return Theirs(name, "counter", text, ("fleet", label), (follows,), said=said)


def _histogram(name: str, text: str, buckets: tuple[float, ...], follows: From,
               labels: tuple[str, ...] = (), said: str = "") -> Theirs:  # fmt: skip
    return Theirs(name, "histogram", text, labels, (follows,), buckets, said)


_RUNNING: Final = From(ours.OPEN, (_FLEET,), only={"state": frozenset({"running"})})
_CAPACITY: Final = From(ours.CAPACITY, (_FLEET,))
_REPORTS: Final = (_FLEET, Take("result"))
_BY_RESULT: Final = (
    "Over all fleets; success and error alike, as there. By either: `SELECT fleet, result, "
    "avg(duration_ms) FROM runner_events FINAL WHERE kind = 'report.{}' GROUP BY fleet, result`."
)
#: By their names without that of the program.
METRICS: Final = (
    _gauge(
        "info", "Version and name of the runner.",
        From(ours.KNOWN, (Always("unknown"), Take("fleet"))), labels=("version", "name"),
        said="One of each fleet instead of each runner, and its value is how many there are. "
        "`SELECT name, runner_version, capacity FROM runner_events` has each.",
    ),
    _gauge("capacity", "Tasks that may run at a time.", _CAPACITY),
    _gauge(
        "uptime_seconds", "For how long the process runs.",
        From(ours.UPTIME, (_FLEET,), fold="max"), said="Of the runner that runs for longest.",
    ),
    _counter(
        "poll_fetch_total", "Times that a task was asked for.", "result",
        From(ours.POLLS, (_FLEET, Turn("result", _POLLS))),
        "A runner's own timeout is `empty`, as there. That a runner is not known any more counts "
        "nowhere, as there: `runnerstream_runners_unregistered`.",
    ),
    _histogram(
        "poll_fetch_duration_seconds", "How long that took.", _POLL_BUCKETS,
        From(ours.POLL_SECONDS, (_FLEET,)), ("fleet",),
    ),
    _gauge(
        "poll_backoff_seconds", "Interval at which a task is asked for, before jitter.",
        From(ours.BACKOFF, (_FLEET,), fold="max"),
        said="Of the runner that asks most seldom; 0 again once a task came, where it stands "
        "still there.",
    ),
    _counter(
        "job_total", "Jobs that ended.", "status",
        From(ours.TASKS, (_FLEET, Turn("result", same(_RESULTS)))),
    ),
    _histogram(
        "job_duration_seconds", "How long they took, the last reports as well.", _JOB_BUCKETS,
        From(ours.TASK_SECONDS, (_FLEET,)), ("fleet",),
        "By result, which there is none of there: `runnerstream_runner_task_result_seconds`.",
    ),
    _gauge(
        "job_running", "Jobs that run.", _RUNNING,
        said="From what is known of each task; what is finalizing counts apart, as "
        '`runnerstream_runner_tasks_open{state="finalizing"}`.',
    ),
    _gauge(
        "job_capacity_utilization_ratio", "How much of the capacity is used.", _RUNNING,
        over=_CAPACITY,
    ),
    _counter(
        "report_log_total", "Reports of log rows.", "result", From(ours.LOG_REPORTS, _REPORTS)
    ),
    _histogram(
        "report_log_duration_seconds", "How long they took.", _REPORT_BUCKETS,
        From(ours.LOG_SECONDS), said=_BY_RESULT.format("log"),
    ),
    _counter(
        "report_state_total", "Reports of a task's state.", "result",
        From(ours.STATE_REPORTS, _REPORTS),
    ),
    _histogram(
        "report_state_duration_seconds", "How long they took.", _REPORT_BUCKETS,
        From(ours.STATE_SECONDS), said=_BY_RESULT.format("state"),
    ),
    _gauge(
        "report_log_buffer_rows", "Log rows that wait.", From(ours.BUFFER_ROWS, (_FLEET,)),
        said="The sum over runners, also while reports fail; there it stands still then.",
    ),
    _counter(
        "client_errors_total", "Calls of the server that failed.", "method",
        From(ours.CLIENT_ERRORS, (_FLEET, Turn("method", _METHODS))),
        "Calls of other methods are left out.",
    ),
)  # fmt: skip


def _named(namespace: str) -> tuple[Theirs, ...]:
    return tuple(replace(each, name=f"{namespace}_{each.name}") for each in METRICS)


_ABOUT: Final = (
    "The 16 metrics of its page{}. There each runner has a page of its own, which Prometheus tells "
    "apart by `instance`; here they have the label `fleet` in its stead, and each runner's own are "
    "in ClickHouse (`runner_events`). `go_` and `process_` tell of a Go process: ours are "
    "Python's."
)
ACT_RUNNER: Final = System(
    "act_runner", "Gitea's runner as it was called until April 2026. " + _ABOUT.format(""),
    _named("act_runner"), panels("act_runner"), alerts("act_runner"),
)  # fmt: skip
GITEA_RUNNER: Final = System(
    "gitea_runner",
    "The same under its name since then. " + _ABOUT.format(", otherwise as they were"),
    _named("gitea_runner"),
    panels=panels("gitea_runner"),
    alerts=alerts("gitea_runner"),
)
