"""Of the dashboard Jobs: tables by repository, workflow, job, branch, runner; the worst; cost."""

from __future__ import annotations

from typing import Final

from dashboards import config, sql
from dashboards.model import Link, Panel, Sql
from dashboards.sql import chosen

#: Of jobs that are chosen at the top.
OF_JOBS: Final = " AND ".join(
    (
        config.OF_FLEET,
        chosen("repo", "repo"),
        chosen("workflow", "workflow"),
        chosen("name", "job"),
        chosen("branch", "branch"),
        chosen("runner_name", "runner"),
    )
)
_BOARD: Final = "runnerstream-jobs"
_KEEP: Final = ("fleet", "repo", "workflow", "job", "branch", "runner")
TO_JOB: Final = Link("This job", _BOARD, {"key": "key"}, _KEEP)
TO_RUNNERS: Final = Link("Its fleet", "runnerstream-runners", {"fleet": "fleet"})
#: What tells jobs apart for people.
NAMED: Final = "fleet, repo, workflow, name, branch"

_ENDED: Final = f"""FROM job_timings FINAL
WHERE copied = 0 AND $__timeFilter(completed_at) AND {OF_JOBS}"""
_NONE: Final = "no job that is chosen ended in the range."
_UNITS: Final = {
    "failed": "percentunit", "run again": "percentunit", "wait p50": "ms", "wait p95": "ms",
    "run p50": "ms", "run p95": "ms", "minutes": "m", "cost": config.CURRENCY,
}  # fmt: skip


def _link(*variables: str) -> Link:
    """Chooses what the row is of; the rest stays."""
    kept = tuple(each for each in _KEEP if each not in variables)
    return Link("Only these jobs", _BOARD, {each: each for each in variables}, kept)


def _both(column: str, which: int) -> str:
    # Both are one function, so the digest is made once. Of nothing it would be 0.
    return f"if(count({column}) = 0, NULL, quantilesTDigest(0.5, 0.95)({column})[{which}])"


def _most(by: str) -> str:
    """Of which values the most minutes are: quantiles of all of them would cost twice as much."""
    same = f"cityHash64({by})"
    return f"""
  AND {same} IN (SELECT {same} AS same {_ENDED}
  GROUP BY same ORDER BY sum(run_ms) DESC NULLS LAST LIMIT 100)"""


def _most_of_too_many(by: str) -> str:
    """The same, nearly, where every job may have a value of its own: not all are kept in memory."""
    found = f"topKWeighted(100)({by}, toUInt64(ifNull(run_ms, 0)))"
    return f"\n  AND {by} IN (SELECT arrayJoin({found}) {_ENDED})"


def _drill(
    title: str, columns: str, link: Link, deviation: str, todo: str, only: str = ""
) -> Panel:
    """How the jobs did that have something in common: the 100 with the most minutes.

    ``only``: a condition that holds for those, where there are many more.
    """
    by = ", ".join(each.rpartition(" AS ")[2] for each in columns.split(", "))
    last = by.rpartition(", ")[2]
    return Panel(
        title,
        "table",
        (
            Sql(
                f"""SELECT {columns}, count() AS jobs, {sql.FAILURE_SHARE} AS failed,
  countIf(run_attempt > 1) / count() AS `run again`,
  {_both("queue_ms", 1)} AS `wait p50`, {_both("queue_ms", 2)} AS `wait p95`,
  {_both("run_ms", 1)} AS `run p50`, {_both("run_ms", 2)} AS `run p95`,
  {sql.RUN_MINUTES} AS minutes, {sql.COST} AS cost
{_ENDED}{only}
GROUP BY {by}
ORDER BY minutes DESC NULLS LAST LIMIT 100""",
                "table",
            ),
        ),
        healthy="who works most stands on top. Of jobs that ended in the range; quantiles are "
        "estimates within about a percent.",
        deviation=deviation,
        todo=todo,
        no_data=_NONE,
        width=24,
        units=_UNITS,
        links={last: link},
    )


def by_repository() -> Panel:
    """Whose jobs they are."""
    return _drill(
        "By repository", "repo", _link("repo"),
        "one fails or waits more than the others: its own code, labels or limits.",
        "click on it: all that is here is of that repository then.",
    )  # fmt: skip


def by_workflow() -> Panel:
    """Of which workflow."""
    return _drill(
        "By workflow", "repo, workflow", _link("repo", "workflow"),
        "much is run again: flaky. Dear and seldom looked at: a schedule.",
        "click on it.",
    )  # fmt: skip


def by_job() -> Panel:
    """Of which job."""
    return _drill(
        "By job", "repo, workflow, name AS job", _link("repo", "workflow", "job"),
        "run p95 far above p50: the same job is sometimes slow. Caches, or a busy host.",
        "click on it, then look at Slowest jobs and their steps.",
        _most("repo, workflow, name"),
    )  # fmt: skip


def by_branch() -> Panel:
    """Of which branch."""
    return _drill(
        "By branch", "repo, branch", _link("repo", "branch"),
        "the main branch fails: everybody waits. A branch that costs as much as main: a loop.",
        "click on it.",
        _most("repo, branch"),
    )  # fmt: skip


def by_runner() -> Panel:
    """On which runner."""
    return _drill(
        "By runner", "fleet, runner_name AS runner", _link("fleet", "runner"),
        "one runner fails what others do not: it is broken. Runners for one job have one each.",
        "take it out; look at its host.",
        _most_of_too_many("runner_name"),
    )  # fmt: skip


# --- worst --------------------------------------------------------------------------------------


def _worst(
    title: str, order: str, where: str, healthy: str, deviation: str, todo: str
) -> Panel:  # fmt: skip
    return Panel(
        title,
        "table",
        (
            Sql(
                f"""SELECT {NAMED}, conclusion, queue_ms AS wait, run_ms AS run, claims,
  runner_name AS runner, completed_at, url, key
{_ENDED} AND {where}
ORDER BY {order} DESC LIMIT 50""",
                "table",
            ),
        ),
        healthy=healthy,
        deviation=deviation,
        todo=todo,
        no_data=_NONE,
        width=24,
        units={"wait": "ms", "run": "ms"},
        links={"name": TO_JOB, "repo": _link("repo"), "fleet": TO_RUNNERS},
        hidden=("key",),
    )


def slowest() -> Panel:
    """Which ran for longest."""
    return _worst(
        "Slowest jobs", "run_ms", "run_ms IS NOT NULL",
        "the same long ones every day. The 50 that ran for longest.",
        "names that are new here; or conclusions that are timed_out.",
        "click on the job: its steps tell where the time went.",
    )  # fmt: skip


def longest_waits() -> Panel:
    """Which waited for longest."""
    return _worst(
        "Longest waits", "queue_ms", "queue_ms IS NOT NULL",
        "the goal of the queue time, or less. The 50 that waited for longest.",
        "one fleet or one repository: too few runners, labels that few have, a limit.",
        "click on the fleet.",
    )  # fmt: skip


def requeued() -> Panel:
    """Which were given out again and again."""
    return _worst(
        "Most requeued jobs", "(claims, completed_at)", "claims > 1",
        "none, or two claims. The 50 with most claims.",
        "many claims: runners die under it (memory, disk), or recovery and dispatcher quarrel.",
        "click on the job: cause says why each claim was released.",
    )  # fmt: skip


#: The same job of the same commit, in few bytes.
_SAME: Final = "cityHash64(repo, workflow, name, sha)"


def flaky() -> Panel:
    """Which failed and then succeeded, and nothing had changed."""
    return Panel(
        "Flaky jobs",
        "table",
        (
            Sql(
                f"""SELECT repo, workflow, job, commits, flaked,
  least(1, flaked / commits) AS share, `minutes lost`, key
FROM (
  SELECT repo, workflow, name AS job, uniqCombined(12)(sha) AS commits
  {_ENDED} AND sha != '' AND ({sql.FAILED} OR conclusion = 'success')
  GROUP BY repo, workflow, job
) AS all
INNER JOIN (
  SELECT repo, workflow, job, count() AS flaked, sum(lost_ms) / 60000 AS `minutes lost`,
    argMax(last_key, last) AS key
  FROM (
    SELECT repo, workflow, name AS job, sha,
      sumIf(ifNull(run_ms, 0), {sql.FAILED}) AS lost_ms,
      max(completed_at) AS last, argMax(key, completed_at) AS last_key
    {_ENDED} AND sha != '' AND ({sql.FAILED} OR conclusion = 'success')
      AND {_SAME} IN (SELECT {_SAME} {_ENDED} AND {sql.FAILED})
    GROUP BY repo, workflow, job, sha
    HAVING minIf(completed_at, {sql.FAILED}) < maxIf(completed_at, conclusion = 'success')
  )
  GROUP BY repo, workflow, job
) AS flaky USING (repo, workflow, job)
ORDER BY flaked DESC, share DESC LIMIT 50""",
                "table",
            ),
        ),
        healthy="empty. Jobs that failed and later succeeded with the same commit. How many "
        "commits there were is an estimate where they are many.",
        deviation="the test or its surroundings are not to be relied upon; people stop reading "
        "failures.",
        todo="click on the job for the latest commit where it was so; mend or quarantine it.",
        no_data="no job that failed succeeded later with the same commit.",
        width=24,
        units={"share": "percentunit", "minutes lost": "m"},
        links={
            "job": Link("The latest of them", _BOARD, {"key": "key"}, _KEEP),
            "repo": _link("repo"),
        },
        hidden=("key",),
    )


# --- cost ---------------------------------------------------------------------------------------


def cost() -> Panel:
    """What each repository costs."""
    return Panel(
        "Minutes and cost per repository",
        "table",
        (
            Sql(
                f"""SELECT repo, count() AS jobs, {sql.RUN_MINUTES} AS minutes, {sql.COST} AS cost,
  cost / sum(cost) OVER () AS share,
  sumIf(run_ms, {sql.FAILED}) / 60000 AS `minutes of failures`,
  sumIf(run_ms, run_attempt > 1) / 60000 AS `minutes of re-runs`
{_ENDED} AND run_ms IS NOT NULL
GROUP BY repo
ORDER BY cost DESC LIMIT 100""",
                "table",
            ),
        ),
        healthy="you know why the first ones are first. Minutes that jobs ran, not rounded, times "
        "the price in dashboards/config.py.",
        deviation="much of it is failures or re-runs: flaky tests cost this.",
        todo="Flaky jobs; cancel what newer pushes replace; move cheap work to cheap fleets.",
        no_data=_NONE,
        width=24,
        units={
            "minutes": "m", "cost": config.CURRENCY, "share": "percentunit",
            "minutes of failures": "m", "minutes of re-runs": "m",
        },
        links={"repo": _link("repo")},
    )  # fmt: skip


#: Panels by row.
WHERE: Final = (by_repository(), by_workflow(), by_job(), by_branch(), by_runner())
WORST: Final = (slowest(), longest_waits(), requeued(), flaky())
COST: Final = (cost(),)
