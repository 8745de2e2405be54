"""Recovery: what is stuck, what was asked and commanded about it, and whether it helped."""

from __future__ import annotations

from typing import Final

from dashboards import config, series
from dashboards.boards import recovery_commands as commands
from dashboards.boards import recovery_stalls as stalls
from dashboards.config import OF_FLEET
from dashboards.model import Annotation, Dashboard, Panel, Promql, Row, Sql


def heartbeat() -> Panel:
    """How often the rules are run."""
    return Panel(
        "Sweeps a minute",
        "stat",
        (Promql("sum(rate(runnerstream_recovery_sweeps_total[$__rate_interval])) * 60", "sweeps"),),
        healthy="partitions times ticks a minute: with 8 partitions and a tick each 5 s, 96.",
        deviation="the rules are not run, so nothing is recovered: the fold is behind, or "
        "partitions have no owner.",
        todo="look at Tick lag and Ready workers in Pipeline.",
        no_data="no worker is scraped: whether anything is recovered is not known.",
        thresholds=((None, "red"), (1, "green")),
        width=4,
        height=4,
        alerts=("RecoveryHeartbeatMissing", "RecoveryHeartbeatAbsent"),
    )


def fleets() -> Panel:
    """Mode, budget, breaker and switch of each fleet, as it is now."""
    return Panel(
        "Fleets",
        "table",
        (
            Sql(
                f"""SELECT fleet, mode, breaker, breaker_until, pending, in_flight,
  issued_hour AS issued_last_hour, if(switch_at IS NULL, 'configuration', switch_by) AS says_who,
  switch_at AS since, if(switch_at IS NULL, '', if(switch_fleet = '', 'all fleets', switch_fleet))
    AS switch_of, switch_reason AS why, occurred_at AS told_at
FROM fleet_states FINAL
WHERE {OF_FLEET}
ORDER BY (mode = 'live') AND (breaker = 'closed'), pending DESC, fleet""",
                "table",
            ),
        ),
        healthy="live, closed, and little pending. It is as things are now, whatever the range.",
        deviation="paused or dry_run: nothing is done. open: commands mostly failed, and one is "
        "tried after ten minutes. pending: proposals that wait for their budget.",
        todo="`runnerstream recovery resume --fleet F` when whoever threw the switch agrees.",
        no_data="no fleet is known yet: nothing was told of runners or stalls.",
        width=24,
        alerts=("RecoveryPaused", "RecoveryBreakerOpen", "RecoveryBudgetSpent"),
    )


def modes() -> Panel:
    """How many fleets are in which mode, over time."""
    return Panel(
        "Fleets by mode",
        "timeseries",
        (
            Promql(
                "count by (mode) (max by (fleet, mode) (runnerstream_recovery_mode) == 1)",
                "{{mode}}",
            ),
        ),
        healthy="all live, once you have seen a dry run.",
        deviation="paused: somebody threw a switch; the table above says who and why.",
        todo="`runnerstream recovery status`.",
        no_data="no worker is scraped, or no fleet is known yet.",
        stacked=True,
        steps=True,
        width=8,
        colours={"live": "green", "dry_run": "blue", "paused": "purple"},
        alerts=("RecoveryPaused",),
    )


def breakers() -> Panel:
    """Which breakers were open, over time."""
    return Panel(
        "Breakers",
        "timeseries",
        (Promql("max by (fleet) (runnerstream_recovery_breaker_open)", "{{fleet}}"),),
        healthy="0: closed.",
        deviation="1: open. Half of the fleet's last ten commands failed, so none may go.",
        todo="mend what the commands fail of: Latest commands, and the executor's log.",
        no_data="no worker is scraped, or no fleet is known yet.",
        steps=True,
        maximum=1,
        thresholds=config.ANY_IS_BAD,
        width=8,
        alerts=("RecoveryBreakerOpen",),
    )


def spent() -> Panel:
    """How much of the hour's budget is spent."""
    return Panel(
        "Commands of the last hour",
        "timeseries",
        (
            Sql(
                series.level(
                    f"""SELECT fleet, issued_at, issued_at + INTERVAL 1 HOUR AS until
FROM commands FINAL
WHERE dry_run = 0 AND issued_at >= $__fromTime - INTERVAL 1 HOUR AND issued_at <= $__toTime
  AND {OF_FLEET}""",
                    "issued_at",
                    "until",
                    "fleet",
                    "commands",
                )
            ),
        ),
        healthy="far below the budget of an hour, 200 a fleet unless it is set otherwise.",
        deviation="at the budget: what is stuck beyond it waits.",
        todo="find out why so much gets stuck before you raise `per_hour`.",
        no_data="nothing was commanded.",
        thresholds=((None, "green"), (150, "yellow"), (200, "red")),
        width=8,
        steps=True,
        alerts=("RecoveryBudgetSpent",),
    )


SWITCHES: Final = Annotation(
    "Switches",
    f"""SELECT assumeNotNull(switch_at) AS time,
  concat(if(switch_fleet = '', 'all fleets', switch_fleet), ': ', any(mode),
    ' by ', any(switch_by), ' (', any(switch_reason), ')') AS text
FROM fleet_states FINAL
WHERE switch_at IS NOT NULL AND $__timeFilter(switch_at) AND {OF_FLEET}
GROUP BY switch_at, switch_fleet ORDER BY time""",
    "purple",
)

BOARD: Final = Dashboard(
    "runnerstream-recovery",
    "Recovery",
    "Which jobs are stuck, what was asked and commanded about them, whether it helped, and what "
    "holds it back.",
    (
        Row(
            "Overview",
            (
                stalls.stuck(), stalls.oldest(), stalls.left_to_people(), commands.living(),
                commands.helped(), heartbeat(),
            ),
        ),
        Row(
            "Stalls",
            (
                stalls.stuck_by_kind(), stalls.detected(), stalls.opened(), stalls.closed(),
                stalls.stranded(), stalls.stranded_by_kind(), stalls.stuck_now(),
            ),
        ),
        Row(
            "Questions",
            (
                commands.questions(), commands.answers(), commands.waiting(), commands.requests(),
                commands.allowed(),
            ),
        ),
        Row(
            "Commands",
            (
                commands.issued(), commands.ended(), commands.outcomes(), commands.withheld(),
                commands.proposals(), commands.executors(),
            ),
        ),
        Row("Fleets and switches", (fleets(), modes(), breakers(), spent())),
        Row("Latest", (stalls.latest(), commands.latest_commands())),
    ),
    variables=(config.FLEET,),
    annotations=(SWITCHES,),
)  # fmt: skip
