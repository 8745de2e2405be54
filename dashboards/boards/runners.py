"""Runners: how long jobs wait, what runs, whether there is enough to run it on."""

from __future__ import annotations

from typing import Final

from dashboards import config
from dashboards.config import OF_FLEET
from dashboards.model import Dashboard, Panel, Row, Sql


def queued() -> Panel:
    """How many jobs wait now."""
    return Panel(
        "Queued jobs",
        "stat",
        (
            Sql(
                f"""SELECT $__timeInterval(minute) AS time, sum(jobs) AS queued
FROM depth_1m
WHERE $__timeFilter(minute) AND status = 'queued' AND {OF_FLEET}
GROUP BY time ORDER BY time"""
            ),
        ),
        healthy="close to zero, or as many as runners are booting.",
        deviation="runners are too few, or none takes jobs.",
        todo="look at Oldest queued job, then at Capacity.",
        no_data="the clock of the pipeline does not tick, or the sink is away: see Pipeline.",
        thresholds=config.QUEUED,
        width=4,
        height=4,
        alerts=("RunnerQueueAge",),
    )


BOARD: Final = Dashboard(
    "runnerstream-runners",
    "Runners",
    "How long jobs wait for a runner, what runs, and whether there is enough to run it on.",
    (Row("Overview", (queued(),)),),
    variables=(config.FLEET,),
)
