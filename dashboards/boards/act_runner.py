"""act_runner: what runner processes do, how well they report, and whether they are heard of."""

from __future__ import annotations

from typing import Final

from dashboards import config
from dashboards.boards import act_runner_reports as reports
from dashboards.model import Dashboard, Link, Panel, Row, Sql, Threshold
from dashboards.telemetry import events as e
from dashboards.telemetry import runners as t

UTILISATION: Final[tuple[Threshold, ...]] = ((None, "green"), (0.8, "yellow"), (0.95, "red"))
_POLLS: Final = ("task", "empty", "timeout", "error", "unauthenticated", "unknown")
_RESULTS: Final = ("success", "failure", "cancelled", "skipped", "unknown")
_STATES: Final = ("assigned", "running", "finalizing", "lost")
_BLIND: Final = "no runner of these fleets says anything, or the sink is away: see Pipeline."


# --- now --------------------------------------------------------------------------------------


def alive() -> Panel:
    """How many runners there are."""
    return Panel(
        "Runners heard of",
        "stat",
        e.rows(f"WITH {t.PROCESSES} SELECT countIf(alive) AS runners FROM processes"),
        healthy="as many as you have started.",
        deviation="a runner that stopped, or has said nothing for five minutes, is not counted.",
        todo="find the missing one in Fleet info table by its state.",
        no_data=_BLIND,
        thresholds=((None, "red"), (1, "green")),
        width=4,
        height=4,
        alerts=("RunnerUnregistered",),
    )


def utilisation() -> Panel:
    """How much of their capacity runners use now."""
    return Panel(
        "Utilisation ratio",
        "stat",
        e.rows(f"""{t.OPEN_NOW}, used AS (
  SELECT (SELECT countIf(state = 'running') FROM open) AS own,
    (SELECT sum(running) FROM {t.SAID_NOW} WHERE (fleet, runner) IN {t.SCRAPED}) AS scraped,
    (SELECT sum(capacity) FROM processes WHERE alive) AS room
)
SELECT (own + ifNull(scraped, 0)) / nullIf(room, 0) AS utilisation FROM used"""),
        healthy="below 0.8: there is room for what comes.",
        deviation="near 1 every further job waits.",
        todo="start runners, or give those that there are more capacity.",
        no_data=_BLIND,
        unit="percentunit",
        thresholds=UTILISATION,
        width=4,
        height=4,
        alerts=("RunnerSaturated",),
    )


def open_tasks() -> Panel:
    """What the tasks of runners are in."""
    values = ", ".join(f"countIf(state = '{each}') AS {each}" for each in _STATES)
    return Panel(
        "Open tasks by state",
        "stat",
        e.rows(f"{t.OPEN_NOW}SELECT {values} FROM open"),
        healthy="most run, few are finalizing, none is lost.",
        deviation="finalizing: the work is over and its last reports are not, so the server is "
        "slow or away. Lost: nobody mentioned the task for an hour, of four for one whose state "
        "was never reported.",
        todo="of lost ones look at the runner in Fleet info table; a restart of it ends them.",
        no_data=_BLIND,
        thresholds=config.PLAIN,
        width=8,
        height=4,
    )


def silent() -> Panel:
    """Tasks and runners that should have said something."""
    return Panel(
        "Silent tasks and runners",
        "stat",
        e.rows(f"""{t.OPEN_NOW}SELECT
  countIf(state IN ('running', 'finalizing') AND started <= {e.NOW} AND reports
    AND greatest(reported, started) < {e.NOW} - INTERVAL 2 MINUTE) AS tasks,
  uniqExactIf((fleet, runner), state != 'lost' AND heard < {e.NOW} - INTERVAL 1 MINUTE) AS runners
FROM open"""),
        healthy="none.",
        deviation="a task whose state was not reported for two minutes, or a runner with tasks "
        "that said nothing for one. After ten minutes Gitea takes a task from its runner.",
        todo="see whether the runner lives, and whether its reports fail (RPC errors by method).",
        no_data=_BLIND,
        thresholds=config.ANY_IS_BAD,
        width=4,
        height=4,
        alerts=("RunnerTaskSilent",),
    )


def oldest_row() -> Panel:
    """For how long the log row waits that waits for longest."""
    return Panel(
        "Oldest log row that waits",
        "stat",
        e.rows(f"""{t.OPEN_NOW}SELECT
  max(if(waiting > 0, date_diff('millisecond', since, {e.NOW}), 0)) / 1000 AS oldest
FROM {t.BUFFERS_NOW} WHERE waiting IS NOT NULL"""),
        healthy="some seconds: as long as a batch is collected.",
        deviation="rows pile up, because reports fail or are slow; users see no log.",
        todo="look at Log/state report latency, error ratio.",
        no_data="no runner has log rows that wait, or none says so.",
        unit="s",
        thresholds=((None, "green"), (15, "yellow"), (60, "red")),
        width=4,
        height=4,
        alerts=("RunnerLogNotDraining",),
    )


def fleet_info() -> Panel:
    """Every runner."""
    return Panel(
        "Fleet info table",
        "table",
        e.rows(t.FLEET_INFO),
        healthy="all are up, of one version, and none asks seldom while jobs wait.",
        deviation="stopped: it said so. Gone: it said nothing for five minutes. Not ready: it says "
        "why itself.",
        todo="start again what should be up; what has stopped as unregistered must be registered.",
        no_data=_BLIND,
        thresholds=config.PLAIN,
        width=24,
        height=9,
        units={
            "utilisation": "percentunit", "uptime": "s", "silent_for": "s", "asks_every": "s",
        },
        links={
            "name": Link(
                "Its jobs", "runnerstream-jobs", {"fleet": "fleet", "runner": "name"}
            )
        },
        alerts=("RunnerUnregistered",),
    )  # fmt: skip


# --- polls ------------------------------------------------------------------------------------


def polls() -> Panel:
    """What runners get that ask for a task."""
    return Panel(
        "Poll outcomes",
        "timeseries",
        e.series(t.grown("runner.poll", "result", "polls", _POLLS)),
        healthy="task while jobs wait, else empty; a timeout is the runner's own and says nothing.",
        deviation="error: the server is not reached, or refuses. Unauthenticated: it does not know "
        "the runner any more, which then stops. At full load nobody polls, and that is well.",
        todo="see RPC errors by method, and the server's log.",
        no_data=_BLIND,
        unit="ops",
        thresholds=config.PLAIN,
        stacked=True,
        alerts=("RunnerNotPolling", "RunnerUnregistered"),
        colours={
            "task": "green", "empty": "blue", "timeout": "text", "error": "red",
            "unauthenticated": "dark-red",
        },
    )  # fmt: skip


def failing_polls() -> Panel:
    """Which share of polls fails."""
    told = t.grown_values("runner.poll", "result", "polls", _POLLS)
    return Panel(
        "Polls that fail",
        "timeseries",
        e.series(f"""SELECT $__timeInterval(occurred_at) AS time, fleet,
  {told["error"]} / nullIf({" + ".join(told.values())}, 0) AS failing
FROM runner_events FINAL WHERE kind IN ('runner.poll', 'runner.scrape') AND {e.WITHIN}
GROUP BY time, fleet HAVING isNotNull(failing) ORDER BY time"""),
        healthy="0.",
        deviation="more than half over five minutes: the server is away for these runners.",
        todo="see whether the server answers; runners ask more and more seldom meanwhile.",
        no_data="nobody asked: all runners are busy, or none is there.",
        unit="percentunit",
        thresholds=((None, "green"), (config.FAILING, "red")),
        maximum=1,
        alerts=("RunnerPollFailing",),
    )


def poll_latency() -> Panel:
    """How long a poll takes."""
    return Panel(
        "Poll latency p50/p95/p99",
        "timeseries",
        e.series(e.quantiles(t.durations("runner.poll", "poll"))),
        healthy="well below a second.",
        deviation="the server is slow to look for work: often its database.",
        todo="compare with the number of runners that poll; see the server's load.",
        no_data="nobody asked, or every poll was ended by the runner itself, which is no latency.",
        unit="ms",
        thresholds=config.PLAIN,
    )


def backoff() -> Panel:
    """How seldom runners ask."""
    return Panel(
        "Backoff level",
        "timeseries",
        e.series(e.over_time(t.SAID, {"longest": "max(backoff_ms) / 1000"}, "fleet")),
        healthy="the shortest interval while jobs wait; the longest when there is no work.",
        deviation="at its longest with errors: runners have given up hope, and will find work "
        "late even when the server is back.",
        todo="see Polls that fail; a restart of a runner resets its interval.",
        no_data="no runner says at which interval it asks.",
        unit="s",
        thresholds=config.PLAIN,
        alerts=("RunnerPollsStuck",),
    )


# --- jobs -------------------------------------------------------------------------------------

_DONE: Final = t.counted("task.finished", "runner, task_id")
_DONE_AS: Final = t.grown_values("task.finished", "result", "jobs", _RESULTS)


def jobs() -> Panel:
    """How tasks end."""
    return Panel(
        "Jobs by status /min, success ratio",
        "timeseries",
        (
            Sql(e.rates(_DONE, _DONE_AS, 60)),
            Sql(
                f"""SELECT $__timeInterval(occurred_at) AS time,
  {_DONE_AS["success"]} / nullIf({_DONE_AS["success"]} + {_DONE_AS["failure"]}, 0) AS success_ratio
FROM {_DONE} GROUP BY time HAVING isNotNull(success_ratio) ORDER BY time"""
            ),
        ),
        healthy="mostly success, and the ratio is steady.",
        deviation="failure that rises at once over all repositories is the runners' or the "
        "server's, not the jobs'. Unknown is a result that we do not know: the protocol changed.",
        todo="see which repositories fail in Jobs; else see the runners they have in common.",
        no_data="no task ended.",
        unit="opm",
        units={"success_ratio": "percentunit"},
        thresholds=config.PLAIN,
        stacked=True,
        alerts=("FleetFailureRatio", "RunnerResultUnknown"),
    )


def job_duration() -> Panel:
    """How long tasks take."""
    return Panel(
        "Job duration p50/p95/p99",
        "timeseries",
        e.series(e.quantiles(t.TOOK, unit=1000)),
        healthy="steady.",
        deviation="all rise: runners or the network are slow; p99 alone: single jobs hang.",
        todo="compare with Final flush: it is part of the duration.",
        no_data="no task ended.",
        unit="s",
        thresholds=config.PLAIN,
    )


def job_heatmap() -> Panel:
    """How the durations of tasks are spread."""
    return Panel(
        "Job duration heatmap",
        "heatmap",
        e.series(t.HEATMAP),
        healthy="the same bands as always.",
        deviation="a new band at the top: jobs that hang, or wait for something.",
        todo="find the slowest jobs in Jobs.",
        no_data="no task ended.",
        unit="s",
    )


def running() -> Panel:
    """What runs, and what could."""
    return Panel(
        "Running vs capacity; utilisation ratio",
        "timeseries",
        e.series(f"WITH {t.TASKS}\n"
                + e.over_time(
                    t.RUNNING,
                    {
                        "running": "sum(running)", "capacity": "sum(capacity)",
                        "utilisation": "sum(running) / nullIf(sum(capacity), 0)",
                    },
                    "fleet",
                )),
        healthy="running follows the work, and stays below capacity.",
        deviation="running at capacity while jobs wait: too few runners. Capacity that falls: "
        "runners stopped or went silent.",
        todo="see Queued jobs in Runners; start runners.",
        no_data=_BLIND,
        units={"utilisation": "percentunit"},
        thresholds=UTILISATION,
        alerts=("RunnerSaturated",),
    )  # fmt: skip


def tasks_over_time() -> Panel:
    """Tasks by what they were in."""
    return Panel(
        "Tasks open over time",
        "timeseries",
        e.series(
            f"WITH {t.TASKS}\n"
            + e.over_time(
                f"(SELECT mark, {t.state(e.AT)} AS state FROM (SELECT *, assigned AS begin_ "
                f"FROM tasks WHERE assigned < over) "
                f"ARRAY JOIN {e.marks('begin_', 'over')} AS mark)",
                {each: f"countIf(state = '{each}')" for each in _STATES},
            )
        ),
        healthy="running is nearly all of it.",
        deviation="finalizing grows: last reports do not get through. Lost grows: runners die "
        "without a word.",
        todo="see RPC errors by method; of lost tasks find their runner in Fleet info table.",
        no_data="no runner has a task.",
        width=8,
        thresholds=config.PLAIN,
        stacked=True,
        colours={"assigned": "blue", "running": "green", "finalizing": "yellow", "lost": "red"},
    )


def taken() -> Panel:
    """Tasks that the server took away."""
    return Panel(
        "Tasks taken from their runner",
        "timeseries",
        e.series(
            e.rates(
                e.told("runner_events", "task.reaped", seen="runner.status"),
                e.counts("sweep", ("zombie", "endless", "abandoned", "unknown")),
                3600,
            )
        ),
        healthy="none.",
        deviation="zombie: no report for ten minutes. Endless: ran for too long. Abandoned: never "
        "picked up.",
        todo="see whether the runner lives; its job must run again.",
        no_data="no task was taken.",
        width=8,
        thresholds=config.PLAIN,
        points=True,
        alerts=("RunnerTasksReaped",),
    )


def flush() -> Panel:
    """How long the last reports of a task take."""
    source = e.told("runner_events", "task.finished", "runner, task_id", columns="*, 1 AS n")
    return Panel(
        "Final flush",
        "timeseries",
        e.series(e.quantiles(source, "flush_ms", 1000)),
        healthy="some seconds: a task holds its runner until its last log is sent.",
        deviation="the server takes the last reports slowly, or only when tried again.",
        todo="see Log/state report latency, error ratio.",
        no_data="no task ended whose runner tells.",
        unit="s",
        width=8,
        thresholds=config.PLAIN,
    )


BOARD: Final = Dashboard(
    "runnerstream-act-runner",
    "act_runner",
    "What runner processes do: polls, tasks, reports, and which of them are not heard of.",
    (
        Row("Now", (alive(), utilisation(), open_tasks(), silent(), oldest_row(), fleet_info())),
        Row("Polls", (polls(), failing_polls(), poll_latency(), backoff())),
        Row(
            "Jobs",
            (
                jobs(), running(), job_duration(), job_heatmap(), tasks_over_time(), flush(),
                taken(),
            ),
        ),
        Row(
            "Reports",
            (
                reports.rpc_errors(), reports.reports(), reports.buffers(), reports.triggers(),
                reports.losses(),
            ),
        ),
        Row("Processes", (reports.starts(), reports.process())),
    ),
    variables=(e.variable("fleet", "Fleet", "runner_events"),),
)  # fmt: skip
