"""Jobs: which wait, fail, are slow or dear; of which repository; and what happened to one."""

from __future__ import annotations

from typing import Final

from dashboards import config, sql
from dashboards.boards import jobs_tables as tables
from dashboards.boards.jobs_tables import NAMED, OF_JOBS, TO_JOB, TO_RUNNERS
from dashboards.model import Dashboard, Link, Panel, Row, Sql, Variable
from dashboards.sql import BUCKETS, bucket, chosen, per_second, within

_NONE: Final = "no job that is chosen ended in the range."

# --- now ----------------------------------------------------------------------------------------

_LIVE: Final = """SELECT fleet, repo, workflow, name, status,
  dateDiff('millisecond', since, $__toTime) / 1000 AS seconds, length(claims) AS claims,
  runner_name AS runner, branch, url, key
FROM jobs FINAL
WHERE deleted = 0 AND copied = 0"""


def waiting() -> Panel:
    """Who waits for longest."""
    return Panel(
        "Jobs that wait",
        "table",
        (
            Sql(
                f"""{_LIVE} AND status IN ('waiting', 'queued', 'claimed', 'starting') AND {OF_JOBS}
ORDER BY since LIMIT 100""",
                "table",
            ),
        ),
        healthy="short, and nobody for minutes. The 100 that wait for longest, as of now.",
        deviation="waiting: somebody must approve it. queued: no runner took it. claimed, "
        "starting: one did, and it does not begin.",
        todo="click on the job for its story; many claims mean that runners die under it.",
        no_data="nobody waits.",
        width=24,
        units={"seconds": "s"},
        links={"name": TO_JOB, "fleet": TO_RUNNERS},
        hidden=("key",),
        alerts=("RunnerQueueAge",),
    )


def running() -> Panel:
    """Who runs for longest."""
    return Panel(
        "Jobs that run",
        "table",
        (
            Sql(
                f"""{_LIVE} AND status = 'running' AND {OF_JOBS}
ORDER BY since LIMIT 100""",
                "table",
            ),
        ),
        healthy="nobody for longer than the workflow's timeout. The 100 longest, as of now.",
        deviation="hours: the job hangs, or its end was lost; recovery asks the provider.",
        todo="click on the job; its steps tell where it is.",
        no_data="nothing runs.",
        width=24,
        units={"seconds": "s"},
        links={"name": TO_JOB, "fleet": TO_RUNNERS},
        hidden=("key",),
        alerts=("JobRunsTooLong",),
    )


# --- trends -------------------------------------------------------------------------------------


def _trend(columns: str, by: str = "", where: str = "1") -> Sql:
    more = f", {by}" if by else ""
    return Sql(
        f"""{BUCKETS}
SELECT {bucket("completed_at")} AS time{more}, {columns}
FROM job_timings FINAL
WHERE copied = 0 AND {within("completed_at")} AND {where} AND {OF_JOBS}
GROUP BY time{more} ORDER BY time"""
    )


def ended() -> Panel:
    """What ended, and how."""
    return Panel(
        "Jobs per minute by conclusion",
        "timeseries",
        (_trend(f"60 * {per_second('count()')} AS jobs", "conclusion"),),
        healthy="mostly success.",
        deviation="cancelled grows with pushes that replace each other, or when people give up.",
        todo="By repository says whose they are.",
        no_data=_NONE,
        unit="cpm",
        stacked=True,
    )


def failures() -> Panel:
    """Whether more fails than before."""
    return Panel(
        "Failure trend",
        "timeseries",
        (_trend(f"{sql.FAILURE_SHARE} AS failed"),),
        healthy="level, as it is for this repository. Of jobs that ended by themselves.",
        deviation="a step: a change in the code, an image or a service. Of all repositories at "
        "once: the runners.",
        todo="By repository, sorted by failed; then Flaky jobs.",
        no_data=_NONE,
        unit="percentunit",
        maximum=1,
        thresholds=((None, "green"), (0.2, "yellow"), (0.5, "red")),
        alerts=("RepositoryFailureTrend", "FleetFailureRatio"),
    )


def waits() -> Panel:
    """How long these jobs waited."""
    return Panel(
        "Wait trend",
        "timeseries",
        (_trend(sql.exact("queue_ms"), where="queue_ms IS NOT NULL"),),
        healthy="as in Runners, of the jobs that are chosen; by when they ended. Exact.",
        deviation="worse than its fleet: its labels fit few runners, or a limit holds it back.",
        todo="compare with Enqueue → running of the fleet.",
        no_data="no chosen job with a known wait ended in the range.",
        unit="ms",
        alerts=("RepositoryQueueTime",),
    )


def runs() -> Panel:
    """How long these jobs ran."""
    return Panel(
        "Run time trend",
        "timeseries",
        (_trend(sql.exact("run_ms"), where="run_ms IS NOT NULL"),),
        healthy="level. Exact.",
        deviation="a step at a time: look at what was merged then. A slope: tests or caches grow.",
        todo="By job, then one job's steps.",
        no_data="no chosen job with a known run time ended in the range.",
        unit="ms",
    )


def reruns() -> Panel:
    """How much is done again."""
    return Panel(
        "Re-run rate",
        "timeseries",
        (_trend("countIf(run_attempt > 1) / count() AS `run again`", where="run_attempt > 0"),),
        healthy="a few percent. Jobs of a second or later attempt; those that were only copied "
        "into it are left out.",
        deviation="people press the button instead of mending it.",
        todo="look at Flaky jobs.",
        no_data="no chosen job ended in the range, or the provider tells no attempts.",
        unit="percentunit",
        maximum=1,
    )


def spending() -> Panel:
    """What it costs."""
    return Panel(
        "Cost per hour by fleet",
        "timeseries",
        (_trend(f"3600 * {per_second(sql.COST)} AS cost", "fleet", "run_ms IS NOT NULL"),),
        healthy="follows the working day. Minutes that jobs ran, of those that ended, times the "
        "price in dashboards/config.py.",
        deviation="nights and weekends as dear as days: schedules, or loops.",
        todo="Minutes and cost per repository.",
        no_data=_NONE,
        unit=config.CURRENCY,
        stacked=True,
    )


# --- one job ------------------------------------------------------------------------------------

#: True when a job is chosen. Then its whole story is told, whenever it was.
_CHOSEN: Final = "NOT ($__conditionalAll(1=0, $key))"
_UNCHOSEN: Final = " While no job is chosen: the latest of all in the last hour of the range."
_NOT_KNOWN: Final = "of this job nothing of the kind is known; it may be older than is kept."


def _of_key(at: str) -> str:
    """The rows of the chosen job, else those of the last hour of the range."""
    latest = f"{at} > $__toTime - 3600 AND {at} <= $__toTime"
    return f"{chosen('key', 'key')} AND ({_CHOSEN} OR {latest})"


def one() -> Panel:
    """What a job is."""
    columns = (
        f"{NAMED}, run_attempt, conclusion, queue_ms, run_ms, total_ms, abandoned_ms,\n"
        "  queued_at, started_at, completed_at, runner_name AS runner, sha, url, key"
    )
    return Panel(
        "One job",
        "table",
        (
            Sql(
                f"""SELECT {columns}
FROM job_timings FINAL
WHERE {_of_key("completed_at")}
ORDER BY completed_at DESC LIMIT if({_CHOSEN}, 1, 10)
UNION ALL
SELECT {columns}
FROM jobs FINAL
WHERE deleted = 0 AND status != 'completed' AND {chosen("key", "key")}
ORDER BY since DESC LIMIT if({_CHOSEN}, 1, 10)""",
                "table",
            ),
        ),
        healthy="click on a job in any table, or write its key (provider:host:id) at the top."
        + _UNCHOSEN,
        deviation="an empty time is unknown, not zero.",
        todo="url leads to the job's page at the provider.",
        no_data=_NOT_KNOWN,
        width=24,
        height=6,
        units=dict.fromkeys(("queue_ms", "run_ms", "total_ms", "abandoned_ms"), "ms"),
        links={"name": TO_JOB, "fleet": TO_RUNNERS},
    )


def timeline() -> Panel:
    """What happened to it."""
    return Panel(
        "One job: what happened",
        "table",
        (
            Sql(
                f"""SELECT at AS time, status, cause, runner, claim, clock, fleet, key
FROM job_transitions FINAL
WHERE {_of_key("at")}
ORDER BY if({_CHOSEN}, 1, -1) * toUnixTimestamp64Milli(at) LIMIT 200""",
                "table",
            ),
        ),
        healthy="queued, claimed, starting, running, completed; once each." + _UNCHOSEN,
        deviation="released and claimed again: it went back to the queue; cause says why.",
        todo="the runner's own log, at that time. clock says whose time it is.",
        no_data=_NOT_KNOWN,
    )


def steps() -> Panel:
    """Where its time went."""
    return Panel(
        "One job: steps",
        "table",
        (
            Sql(
                f"""SELECT number, name AS step, conclusion, started_at, run_ms, repo, job_name, key
FROM job_steps FINAL
WHERE {_of_key("started_at")}
ORDER BY if({_CHOSEN}, 0, -toUnixTimestamp64Milli(assumeNotNull(started_at))), number LIMIT 200""",
                "table",
            ),
        ),
        healthy="the steps that its workflow names take most of the time." + _UNCHOSEN,
        deviation="checkout or cache take longest: network, or disk of the runner.",
        todo="compare with another job of the same name.",
        no_data="the provider told no steps (GitHub does).",
        units={"run_ms": "ms"},
    )


def stalls() -> Panel:
    """When it was stuck, and what was done."""
    return Panel(
        "One job: when it was stuck",
        "table",
        (
            Sql(
                f"""SELECT since, kind, stranded_ms, answer, withheld,
  arrayStringConcat(arrayMap(c -> concat(c.command, ': ', if(c.result = '', 'open', c.result)),
    commands), ', ') AS commands, fleet, key
FROM stalls FINAL
WHERE {_of_key("opened_at")}
ORDER BY since DESC LIMIT 100""",
                "table",
            ),
        ),
        healthy="nothing. Each spell in a wrong state, what the provider said and what was done."
        + _UNCHOSEN,
        deviation="stranded_ms empty: it is still in it. withheld: why no command went.",
        todo="the dashboard Recovery; runnerstream explain.",
        no_data="it was never stuck.",
        width=24,
        units={"stranded_ms": "ms"},
        links={"key": Link("This job", "runnerstream-jobs", {"key": "key"}, ("fleet",))},
    )


# --- the board ----------------------------------------------------------------------------------


def _values(column: str, more: str = "") -> str:
    """What there is to choose: of what ended in the range."""
    return (
        f"SELECT DISTINCT {column} FROM job_timings WHERE $__timeFilter(completed_at) "
        f"AND {config.OF_FLEET}{more} ORDER BY {column}"
    )


REPO: Final = Variable("repo", "Repository", _values("repo"))
WORKFLOW: Final = Variable(
    "workflow", "Workflow", _values("workflow", f" AND {chosen('repo', 'repo')}")
)

BOARD: Final = Dashboard(
    "runnerstream-jobs",
    "Jobs",
    "Which jobs wait, fail, are slow or dear, by repository, workflow, job, branch and runner; "
    "and the story of one.",
    (
        Row("Now", (waiting(), running())),
        Row("Trends", (ended(), failures(), waits(), runs(), reruns(), spending())),
        Row("Where", tables.WHERE),
        Row("Worst", tables.WORST),
        Row("Cost", tables.COST),
        Row("One job", (one(), timeline(), steps(), stalls())),
    ),
    variables=(
        config.FLEET,
        REPO,
        WORKFLOW,
        Variable("job", "Job", multi=False),
        Variable("branch", "Branch", multi=False),
        Variable("runner", "Runner", multi=False),
        Variable("key", "Key of one job", multi=False),
    ),
)
