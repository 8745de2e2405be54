"""Panels of recovery about what is asked and commanded, and what holds it back."""

from __future__ import annotations

from typing import Final

from dashboards import config, series
from dashboards.boards.recovery_stalls import KINDS, LINKS
from dashboards.config import OF_FLEET
from dashboards.model import Panel, Promql, Sql

#: How commands ended: those about jobs, of which the job also knows that nobody did them in time,
#: and those about fleets.
ENDED: Final = f"""SELECT c.ended_at AS at, c.command AS command, c.result AS result
FROM stalls FINAL ARRAY JOIN commands AS c
WHERE {OF_FLEET} AND opened_at <= $__toTime AND $__timeFilter(c.ended_at)
UNION ALL
SELECT at, command, result FROM outcomes FINAL
WHERE job_key = '' AND result != '' AND $__timeFilter(at) AND {OF_FLEET}"""


def _hits(done: str, keys: str) -> str:
    """SQL: those of the commands whose job was running when somebody began to do it.

    A second is the grain of the provider's clock.

    Args:
        done: SQL of commands that were done: ``key``, ``command_id``, and when they were ``begun``.
        keys: SQL of at least the keys of their jobs.
    """
    return f"""SELECT d.command_id AS command_id
FROM ({done}) AS d
INNER JOIN (
  SELECT key, started_at, completed_at FROM jobs FINAL WHERE key IN ({keys})
) AS j ON j.key = d.key
WHERE j.started_at <= d.begun - INTERVAL 1 SECOND
  AND (j.completed_at IS NULL OR j.completed_at > d.begun)"""


#: Commands about jobs that were done, and when they were begun.
DONE: Final = f"""SELECT key, command_id, minIf(at, kind = 'command.started') AS begun
FROM outcomes
WHERE job_key != '' AND $__timeFilter(at) AND {OF_FLEET}
GROUP BY key, command_id
HAVING countIf(result = 'done') > 0 AND countIf(kind = 'command.started') > 0"""
KEYS: Final = "SELECT key FROM outcomes WHERE result = 'done' AND $__timeFilter(at)"

RESULTS: Final = {
    "done": "green", "refused": "blue", "cannot": "purple", "failed": "red", "expired": "orange",
}  # fmt: skip


def living() -> Panel:
    """Commands that were done to jobs that lived."""
    return Panel(
        "Commands against living jobs",
        "stat",
        (
            Sql(
                f"""SELECT count() AS hits FROM ({_hits(DONE, KEYS)})
HAVING (SELECT count() FROM outcomes WHERE result = 'done' AND $__timeFilter(at)) > 0""",
                "table",
            ),
        ),
        healthy="0, always: of the commands that were done in this time none hit a running job.",
        deviation="a job was running when somebody began to release, requeue or close it.",
        todo="pause recovery (`runnerstream recovery pause`), find the command in Latest commands, "
        "and run `runnerstream explain` on its job. Raise the threshold of its kind.",
        no_data="no command was done in this time.",
        thresholds=config.ANY_IS_BAD,
        width=4,
        height=4,
    )


def helped() -> Panel:
    """The share of done commands after which the job left its wrong state."""
    return Panel(
        "Commands that helped",
        "stat",
        (
            Sql(
                f"""SELECT countIf(left_at IS NOT NULL) / count() AS share
FROM stalls FINAL
WHERE {OF_FLEET} AND opened_at <= $__toTime
  AND arrayExists(c -> c.result = 'done' AND $__timeFilter(c.ended_at), commands)
HAVING count() > 0""",
                "table",
            ),
        ),
        healthy="1: after a command was done its job left the wrong state.",
        deviation="executors say done, and jobs stay where they are.",
        todo="look at the dispatcher: does it do what it says? Jobs that are requeued three times "
        "are left to a person.",
        no_data="no command was done in this time.",
        unit="percentunit",
        maximum=1,
        thresholds=((None, "red"), (0.8, "yellow"), (0.95, "green")),
        width=4,
        height=4,
        alerts=("RecoveryCommandsFail",),
    )


def questions() -> Panel:
    """What providers are asked."""
    return Panel(
        "Questions to providers, by kind of stall",
        "timeseries",
        (
            Sql(
                series.counted(
                    f"""SELECT asked_at, stall FROM probes FINAL
WHERE $__timeFilter(asked_at) AND {OF_FLEET}""",
                    "asked_at",
                    "stall",
                    "questions",
                )
            ),
        ),
        healthy="one or two for each stall.",
        deviation="many for few stalls: answers do not come, or prove nothing.",
        todo="look at Answers, and at Requests to providers.",
        no_data="nobody was asked about in this time.",
        colours=KINDS,
        stacked=True,
        steps=True,
    )


def answers() -> Panel:
    """What they said."""
    return Panel(
        "Answers, the last about each stall",
        "timeseries",
        (
            Sql(
                series.counted(
                    f"""SELECT answered_at, answer FROM stalls FINAL
WHERE $__timeFilter(answered_at) AND answer != '' AND {OF_FLEET}""",
                    "answered_at",
                    "answer",
                    "stalls",
                )
            ),
        ),
        healthy="queued, in_progress, completed, at times ghost.",
        deviation="unknown: nothing that can be relied on, so nothing is done. gone: the provider "
        "does not know the job.",
        todo="unknown: look at Requests to providers, and at the prober's credentials: "
        "`runnerstream doctor`.",
        no_data="no answer came in this time: nothing was asked, or no prober runs.",
        colours={
            "queued": "yellow", "in_progress": "blue", "completed": "green", "ghost": "purple",
            "gone": "orange", "unknown": "red",
        },
        stacked=True,
        steps=True,
        alerts=("ProviderApiErrors",),
    )  # fmt: skip


def waiting() -> Panel:
    """Questions that wait."""
    return Panel(
        "Questions that wait",
        "timeseries",
        (
            Promql("sum(runnerstream_probes_waiting)", "waiting"),
            Promql("max(runnerstream_probes_oldest_seconds)", "oldest (s)"),
        ),
        healthy="close to zero, the oldest some seconds.",
        deviation="the provider limits us or does not answer.",
        todo="look at Requests to providers and Requests left.",
        no_data="no prober is scraped.",
        units={"oldest (s)": "s"},
        width=8,
        alerts=("ProbesWaiting",),
    )


def requests() -> Panel:
    """Requests to APIs by outcome."""
    return Panel(
        "Requests to providers, by outcome",
        "timeseries",
        (series.rate("runnerstream_api_requests_total", "outcome"),),
        healthy="ok, missing and not_modified.",
        deviation="forbidden: credentials. limited: too many requests. Others: the API has "
        "trouble.",
        todo="`runnerstream doctor` says whom the prober asks and as whom.",
        no_data="no prober is scraped.",
        unit="reqps",
        width=8,
        alerts=("ProviderApiErrors",),
    )


def allowed() -> Panel:
    """What the provider still allows."""
    return Panel(
        "Requests left",
        "timeseries",
        (Promql("min(runnerstream_api_budget_remaining)", "left"),),
        healthy="thousands.",
        deviation="other programs use up the same account, or the prober asks too much.",
        todo="give the prober an App of its own; lower RUNNERSTREAM_PROBES_PER_MINUTE.",
        no_data="the provider has not said it yet, or says no such thing.",
        thresholds=((None, "red"), (config.API_BUDGET, "yellow"), (1_000, "green")),
        width=8,
        alerts=("ProviderApiBudgetLow",),
    )


def issued() -> Panel:
    """What was commanded."""
    return Panel(
        "Commands issued",
        "timeseries",
        (
            Sql(
                series.counted(
                    f"""SELECT issued_at, concat(command, if(dry_run = 1, ' (dry run)', '')) AS what
FROM commands FINAL
WHERE $__timeFilter(issued_at) AND {OF_FLEET}""",
                    "issued_at",
                    "what",
                    "commands",
                )
            ),
        ),
        healthy="about one for each stall; a dry run is published and not executed.",
        deviation="many more than stalls: commands do not help. wake_fleet again and again: idle "
        "runners of a fleet do not ask for work.",
        todo="look at Commands ended, by result.",
        no_data="nothing was commanded in this time.",
        stacked=True,
        steps=True,
    )


def ended() -> Panel:
    """How commands ended."""
    return Panel(
        "Commands ended, by result",
        "timeseries",
        (Sql(series.counted(ENDED, "at", "result", "commands")),),
        healthy="done; refused now and then: the job had moved on.",
        deviation="failed: the dispatcher is in trouble. expired: no executor runs. cannot: it "
        "does not know the job.",
        todo="look at the executor's log and at your dispatcher. When commands mostly fail the "
        "breaker of the fleet opens.",
        no_data="no command ended in this time.",
        colours=RESULTS,
        stacked=True,
        steps=True,
        alerts=("RecoveryCommandsFail",),
    )


def outcomes() -> Panel:
    """What commands came to, by kind of stall and command."""
    return Panel(
        "What commands came to",
        "table",
        (
            Sql(
                f"""SELECT kind, c.command AS command, count() AS times,
  countIf(c.result = 'done') AS done, countIf(c.result = 'refused') AS refused,
  countIf(c.result = 'cannot') AS cannot, countIf(c.result = 'failed') AS failed,
  countIf(c.result = 'expired') AS expired, countIf(c.result = '') AS in_flight,
  quantileExactOrNullIf(0.95)(dateDiff('millisecond', c.issued_at, c.ended_at),
    c.result = 'done') AS done_p95,
  quantileExactOrNullIf(0.95)(dateDiff('millisecond', opened_at, left_at),
    c.result = 'done') AS freed_p95
FROM stalls FINAL ARRAY JOIN commands AS c
WHERE {OF_FLEET} AND opened_at <= $__toTime AND $__timeFilter(c.issued_at)
GROUP BY kind, command ORDER BY times DESC""",
                "table",
            ),
        ),
        healthy="nearly all done, within seconds; freed_p95, from the finding to the freeing, a "
        "minute.",
        deviation="failed, cannot and expired need a person; in_flight are not ended yet.",
        todo="`runnerstream explain` on one of those in Latest commands.",
        no_data="nothing was commanded about a job in this time.",
        units={"done_p95": "ms", "freed_p95": "ms"},
    )


def withheld() -> Panel:
    """What was withheld, and why."""
    return Panel(
        "Commands withheld, the last of each stall",
        "timeseries",
        (
            Sql(
                series.counted(
                    f"""SELECT withheld_at, withheld FROM stalls FINAL
WHERE $__timeFilter(withheld_at) AND withheld != '' AND {OF_FLEET}""",
                    "withheld_at",
                    "withheld",
                    "stalls",
                )
            ),
        ),
        healthy="nothing, or cooling: a command for the job has just been tried.",
        deviation="paused and dry_run: a person or the configuration says so. budget_hour, "
        "budget_tick: more is stuck than a fleet may be commanded. breaker: commands mostly "
        "failed.",
        todo="see Fleets. A budget that is spent is a sign of an outage, not of a small budget.",
        no_data="nothing was withheld in this time.",
        stacked=True,
        steps=True,
        colours={
            "paused": "purple",
            "dry_run": "blue",
            "breaker": "red",
            "cooling": "text",
            "budget_hour": "orange",
            "budget_tick": "yellow",
        },
        alerts=("RecoveryBudgetSpent", "RecoveryBreakerOpen"),
    )


def proposals() -> Panel:
    """From proposal to end, as workers count it."""
    return Panel(
        "Proposed, issued, withheld, ended",
        "timeseries",
        tuple(
            Promql(f"sum(increase({metric}[$__rate_interval]))", legend)
            for metric, legend in (
                ("runnerstream_recovery_proposals_total", "proposed"),
                ("runnerstream_recovery_commands_total", "issued"),
                ("runnerstream_recovery_withheld_total", "withheld"),
                ("runnerstream_recovery_outcomes_total", "ended"),
            )
        ),
        healthy="what is proposed is issued, and what is issued ends.",
        deviation="issued without end: no executor. Proposed without either: nobody folds the "
        "fleets.",
        todo="see whether executors run, and the lag of runners.fleets in Pipeline.",
        no_data="no worker is scraped.",
    )


def executors() -> Panel:
    """What executors have before them."""
    return Panel(
        "Executors",
        "timeseries",
        (
            Promql("sum(runnerstream_executor_in_hand)", "in hand"),
            Promql("sum(runnerstream_executor_lag_records >= 0)", "not read yet"),
            Promql(
                "sum(increase(runnerstream_executor_retries_total[$__rate_interval]))", "retries"
            ),
        ),
        healthy="0, for seconds more.",
        deviation="the dispatcher does not answer, or fails.",
        todo="look at the executor's /readyz and at your dispatcher.",
        no_data="no executor is scraped: then commands expire, unless it is a program of yours.",
    )


def latest_commands() -> Panel:
    """The latest commands and their ends."""
    return Panel(
        "Latest commands",
        "table",
        (
            Sql(
                f"""WITH latest AS (
  SELECT * FROM commands FINAL
  WHERE $__timeFilter(issued_at) AND {OF_FLEET} ORDER BY issued_at DESC LIMIT 200
),
told AS (
  SELECT key, command_id, any(via) AS via, argMaxIf(result, at, result != '') AS how,
    argMaxIf(reason, at, result != '') AS why,
    minIfOrNull(at, kind = 'command.started') AS begun, maxOrNull(at) AS last
  FROM outcomes FINAL
  WHERE key IN (SELECT key FROM latest) GROUP BY key, command_id
)
SELECT c.issued_at AS issued, c.fleet AS fleet, c.command AS command,
  c.reason AS kind, c.job_key AS job, c.attempt AS attempt,
  if(c.dry_run = 1, 'yes', '') AS dry_run, o.via AS via,
  o.how AS result, o.why AS why, dateDiff('millisecond', c.issued_at, o.last) AS took,
  if(c.id IN (
{_hits("SELECT key, command_id, begun FROM told WHERE how = 'done'", "SELECT key FROM latest")}
  ), 'yes', '') AS job_lived
FROM latest AS c LEFT JOIN told AS o ON o.command_id = c.id
ORDER BY issued DESC""",
                "table",
            ),
        ),
        healthy="done within seconds; a dry run has no result.",
        deviation="without a result: nobody has done it, or not yet. job_lived: it hit a running "
        "job.",
        todo="`runnerstream explain JOB` gives the evidence that a command was judged by.",
        no_data="nothing was commanded in this time.",
        width=24,
        height=10,
        units={"took": "ms"},
        links=LINKS,
    )
