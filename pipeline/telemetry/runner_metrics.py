"""What is counted and shown of runner processes, per fleet. Pure data.

Names follow what act_runner calls them, types and bounds are its own: so what a runner's page says
(``runner.scrape``) counts here as exactly as what it publishes itself.

How much of its capacity a fleet uses is no metric of ours: it is ``runner_tasks_open`` in state
``running``, divided by ``runner_capacity``.
"""

from __future__ import annotations

from typing import Final

from pipeline.metrics import Counter, Gauge, Histogram, Label, Source
from topics.events.runners import (
    Method,
    PollResult,
    ReportResult,
    Sweep,
    TaskResult,
    Trigger,
)

_GROUP: Final = "runners"
_FLEET: Final = Label("fleet", Source.FLEET)
#: What an open task is in. ``lost``: nobody has mentioned it for so long that it counts as none.
STATES: Final = ("assigned", "running", "finalizing", "lost")
#: Of a scraped runner nobody knows which of its reports took how long.
UNKNOWN: Final = "unknown"

# The bounds of a runner's own histograms.
POLL_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10)
REPORT_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5)
TASK_BUCKETS: Final = tuple(float(2**n) for n in range(14))
#: By result there are fewer of them: every fourth task is told by all.
RESULT_BUCKETS: Final = (1, 8, 32, 128, 512, 2048, 8192)

_RESULT: Final = Label("result", tuple(each.value for each in TaskResult))
_REPORT: Final = Label("result", tuple(each.value for each in ReportResult))
_REPORTED: Final = Label("result", (*_REPORT.values, UNKNOWN))  # type: ignore[misc]
_METHOD: Final = Label("method", tuple(each.value for each in Method))

POLLS: Final = Counter[tuple[str, str]](
    "runner_polls",
    "Times that runners asked for a task, by what they got. A timeout is the runner's own, and a "
    "sign of nothing.",
    "polls",
    (_FLEET, Label("result", tuple(each.value for each in PollResult))),
    group=_GROUP,
)
POLL_SECONDS: Final = Histogram[tuple[str]](
    "runner_poll_seconds",
    "How long a runner that asked for a task waited for the answer, without its own timeouts.",
    "seconds",
    (_FLEET,),
    group=_GROUP,
    buckets=POLL_BUCKETS,
)
BACKOFF: Final = Gauge[tuple[str]](
    "runner_backoff_seconds",
    "The longest interval at which a runner asks for tasks, before jitter; 0 for one that has just "
    "got one.",
    "seconds",
    (_FLEET,),
    group=_GROUP,
    over="max",
)
POLLS_STUCK: Final = Gauge[tuple[str]](
    "runner_polls_stuck",
    "Runners that got no task for so many polls that they ask as seldom as they ever do, and whose "
    "latest polls failed.",
    "runners",
    (_FLEET,),
    group=_GROUP,
)
UNREGISTERED: Final = Gauge[tuple[str]](
    "runners_unregistered",
    "Runners that their server did not know any more when they last asked, within an hour.",
    "runners",
    (_FLEET,),
    group=_GROUP,
)
KNOWN: Final = Gauge[tuple[str]](
    "runners_known",
    "Runners that were heard of within five minutes and have not stopped.",
    "runners",
    (_FLEET,),
    group=_GROUP,
)
NOT_READY: Final = Gauge[tuple[str]](
    "runners_not_ready",
    "Runners that say that they can take no task.",
    "runners",
    (_FLEET,),
    group=_GROUP,
)
SILENT: Final = Gauge[tuple[str]](
    "runners_silent",
    "Runners with open tasks of which nothing was heard for a minute.",
    "runners",
    (_FLEET,),
    group=_GROUP,
)
CAPACITY: Final = Gauge[tuple[str]](
    "runner_capacity", "Tasks that runners may have at a time.", "tasks", (_FLEET,), group=_GROUP
)
UPTIME: Final = Gauge[tuple[str]](
    "runner_uptime_oldest_seconds",
    "For how long the runner runs that runs for longest.",
    "seconds",
    (_FLEET,),
    group=_GROUP,
    over="max",
)
STARTED: Final = Gauge[tuple[str]](
    "runner_started_newest_timestamp_seconds",
    "When the runner started that started last, as Unix time. It grows when one starts again.",
    "seconds",
    (_FLEET,),
    group=_GROUP,
    over="max",
)
STOPS: Final = Counter[tuple[str]](
    "runner_stops",
    "Runner processes that ended: orderly, or by force while they had work.",
    "processes",
    (Label("how", ("orderly", "forced")),),
)
TASKS: Final = Counter[tuple[str, str]](
    "runner_tasks", "Tasks that ended, reports as well.", "tasks", (_FLEET, _RESULT), group=_GROUP
)
TASK_SECONDS: Final = Histogram[tuple[str]](
    "runner_task_seconds",
    "From a task's start to its end, the last reports as well.",
    "seconds",
    (_FLEET,),
    group=_GROUP,
    buckets=TASK_BUCKETS,
)
RESULT_SECONDS: Final = Histogram[tuple[str]](
    "runner_task_result_seconds",
    "The same by result, in fewer buckets, over all fleets, without tasks of scraped runners.",
    "seconds",
    (_RESULT,),
    buckets=RESULT_BUCKETS,
)
FLUSH_SECONDS: Final = Histogram[tuple[()]](
    "runner_task_flush_seconds",
    "How much of that the last reports of a task took.",
    "seconds",
    buckets=(*REPORT_BUCKETS, 10, 30, 60, 120),
)
OPEN: Final = Gauge[tuple[str, str]](
    "runner_tasks_open",
    "Tasks that runners have: assigned and not begun, running, or finalizing, which is over but "
    "for its last reports; lost: not mentioned for an hour, of four for one without any report of "
    "its state.",
    "tasks",
    (_FLEET, Label("state", STATES)),
    group=_GROUP,
)
OPEN_OLDEST: Final = Gauge[tuple[str]](
    "runner_task_oldest_seconds",
    "For how long the open task is assigned that is for longest, 0 without any. Without those "
    "lost.",
    "seconds",
    (_FLEET,),
    group=_GROUP,
    over="max",
)
TASKS_SILENT: Final = Gauge[tuple[str]](
    "runner_tasks_silent",
    "Begun tasks whose state was not reported for two minutes, of runners that report it. After "
    "ten Gitea takes a task from its runner.",
    "tasks",
    (_FLEET,),
    group=_GROUP,
)
REAPED: Final = Counter[tuple[str]](
    "runner_tasks_reaped",
    "Tasks that the server took from their runners, by why.",
    "tasks",
    (Label("sweep", tuple(each.value for each in Sweep)),),
)
STEPS: Final = Counter[tuple[str]]("runner_steps", "Steps that ended.", "steps", (_RESULT,))
LOG_REPORTS: Final = Counter[tuple[str, str]](
    "runner_log_reports", "Reports of log rows.", "reports", (_FLEET, _REPORT), group=_GROUP
)
LOG_SECONDS: Final = Histogram[tuple[str]](
    "runner_log_report_seconds",
    "How long a report of log rows took. Of scraped runners it is not known how it ended.",
    "seconds",
    (_REPORTED,),
    buckets=REPORT_BUCKETS,
)
LOG_ROWS: Final = Counter[tuple[str]](
    "runner_log_rows",
    "Log rows that were reported: with the reports that succeeded, how many a report has.",
    "rows",
    (_FLEET,),
    group=_GROUP,
)
STATE_REPORTS: Final = Counter[tuple[str, str]](
    "runner_state_reports", "Reports of tasks' states.", "reports", (_FLEET, _REPORT), group=_GROUP
)
STATE_SECONDS: Final = Histogram[tuple[str]](
    "runner_state_report_seconds",
    "How long a report of a task's state took. Of scraped runners it is not known how it ended.",
    "seconds",
    (_REPORTED,),
    buckets=REPORT_BUCKETS,
)
TRIGGERS: Final = Counter[tuple[str, str]](
    "runner_report_triggers",
    "Reports by why they were sent: whether batching works.",
    "reports",
    (
        Label("report", ("log", "state")),
        Label("trigger", tuple(each.value for each in Trigger)),
    ),
)
BUFFER_ROWS: Final = Gauge[tuple[str]](
    "runner_buffer_rows", "Log rows that wait in runners.", "rows", (_FLEET,), group=_GROUP
)
BUFFER_MOST: Final = Gauge[tuple[str]](
    "runner_buffer_rows_max",
    "Log rows that wait in the runner with most of them.",
    "rows",
    (_FLEET,),
    group=_GROUP,
    over="max",
)
BUFFER_OLDEST: Final = Gauge[tuple[str]](
    "runner_buffer_oldest_seconds",
    "For how long the log row waits that waits for longest, 0 without any.",
    "seconds",
    (_FLEET,),
    group=_GROUP,
    over="max",
)
CLIENT_ERRORS: Final = Counter[tuple[str, str]](
    "runner_client_errors",
    "Calls of runners to their servers that failed.",
    "calls",
    (_FLEET, _METHOD),
    group=_GROUP,
)
OUTPUTS_DROPPED: Final = Counter[tuple[str]](
    "runner_outputs_dropped",
    "Outputs of tasks that were too long to be reported.",
    "outputs",
    (Label("reason", ("key_too_long", "value_too_long")),),
)
FLUSH_FAILED: Final = Counter[tuple[str]](
    "runner_flushes_failed",
    "Tasks of which something could not be reported in the end, by the call that failed.",
    "tasks",
    (_METHOD,),
)
ROWS_LOST: Final = Counter[tuple[()]](
    "runner_log_rows_lost", "Log rows that these had and nobody will see.", "rows"
)

#: All, in the order of ``/metrics``.
METRICS: Final = (
    POLLS, POLL_SECONDS, BACKOFF, POLLS_STUCK, UNREGISTERED, KNOWN, NOT_READY, SILENT, CAPACITY,
    UPTIME, STARTED, STOPS, TASKS, TASK_SECONDS, RESULT_SECONDS, FLUSH_SECONDS, OPEN, OPEN_OLDEST,
    TASKS_SILENT, REAPED, STEPS, LOG_REPORTS, LOG_SECONDS, LOG_ROWS, STATE_REPORTS, STATE_SECONDS,
    TRIGGERS, BUFFER_ROWS, BUFFER_MOST, BUFFER_OLDEST, CLIENT_ERRORS, OUTPUTS_DROPPED,
    FLUSH_FAILED, ROWS_LOST,
)  # fmt: skip
