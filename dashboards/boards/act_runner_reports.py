"""act_runner: how well runners report, and how their processes are."""

from __future__ import annotations

from typing import Final

from dashboards import config
from dashboards.model import Panel, Promql, Sql
from dashboards.telemetry import events as e
from dashboards.telemetry import runners as t

_METHODS: Final = ("fetch_task", "update_log", "update_task", "other")
_TRIGGERS: Final = ("interval", "batch", "latency", "transition", "heartbeat", "close", "unknown")


def rpc_errors() -> Panel:
    """Calls that fail."""
    return Panel(
        "RPC errors by method",
        "timeseries",
        e.series(t.grown("client.error", "method", "client_errors", _METHODS)),
        healthy="none, or single ones.",
        deviation="more than one in ten seconds: fetch_task: no work is found; update_log, "
        "update_task: logs and states stay behind, and tasks may be taken.",
        todo="see whether the server answers, and its certificate, and the proxy before it.",
        no_data="no call failed.",
        unit="ops",
        thresholds=((None, "green"), (config.RPC_ERRORS, "red")),
        alerts=("RunnerRpcErrors",),
    )


def reports() -> Panel:
    """How long reports take, and which share fails."""
    shares = []
    for what in ("log", "state"):
        told = t.grown_values(f"report.{what}", "result", f"{what}_reports", ("success", "error"))
        shares.append(
            f"{told['error']} / nullIf({told['success']} + {told['error']}, 0) AS {what}_errors"
        )
    return Panel(
        "Log/state report latency, error ratio",
        "timeseries",
        (
            *(
                Sql(
                    e.quantiles(
                        t.durations(f"report.{what}", what, columns=f"'{what}' AS report"),
                        by="report",
                    )
                )
                for what in ("log", "state")
            ),
            Sql(
                f"""SELECT $__timeInterval(occurred_at) AS time,
  {shares[0]},
  {shares[1]}
FROM runner_events FINAL
WHERE kind IN ('report.log', 'report.state', 'runner.scrape') AND {e.WITHIN}
GROUP BY time ORDER BY time"""
            ),
        ),
        healthy="p95 far below two seconds, no errors.",
        deviation="slow: the server's storage. Errors: it is away. Logs fail and states do not: "
        "the log's storage is full.",
        todo="see the server; logs are kept by the runners meanwhile, as the buffers show.",
        no_data="no runner reports: none has a task.",
        unit="ms",
        units={"log_errors": "percentunit", "state_errors": "percentunit"},
        thresholds=config.PLAIN,
        alerts=("RunnerReportLatency",),
    )


def buffers() -> Panel:
    """What waits in runners to be sent."""
    return Panel(
        "Log buffer rows, oldest-row age",
        "timeseries",
        e.series(f"WITH {t.TASKS}\n" + e.over_time(
                t.BUFFERS,
                {
                    "rows": "sum(waiting)", "most_of_a_runner": "max(waiting)",
                    "oldest": f"max(if(waiting > 0, date_diff('millisecond', since, {e.AT}), 0))"
                    " / 1000",
                },
            )),
        healthy="below a batch of 100 rows a task, some seconds old.",
        deviation="both grow: reports fail. Rows grow and their age does not: much is written.",
        todo="see Log/state report latency, error ratio. What a runner holds is lost with it.",
        no_data="no runner says what waits, or none has a task.",
        units={"oldest": "s"},
        width=8,
        thresholds=((None, "green"), (config.BUFFER_ROWS, "red")),
        alerts=("RunnerLogNotDraining",),
    )  # fmt: skip


def triggers() -> Panel:
    """Why reports are sent: whether batching works."""
    per = ", ".join(f"countIf(trigger = '{each}') / count() AS {each}" for each in _TRIGGERS)
    logs = e.told("runner_events", "report.log")
    return Panel(
        "Flush trigger mix and rows/flush",
        "timeseries",
        (
            Sql(
                f"""SELECT $__timeInterval(occurred_at) AS time, {per}
FROM runner_events FINAL WHERE kind IN ('report.log', 'report.state') AND {e.WITHIN}
GROUP BY time ORDER BY time"""
            ),
            Sql(
                f"""SELECT $__timeInterval(occurred_at) AS time,
  sum(rows) / nullIf(countIf(result = 'success'), 0) AS rows_per_flush
FROM {logs} GROUP BY time HAVING isNotNull(rows_per_flush) ORDER BY time"""
            ),
        ),
        healthy="batch and interval do most: rows are sent together.",
        deviation="latency dominates with few rows a flush: batching does not work, and the server "
        "is called for single rows.",
        todo="raise report_log_batch_size or the intervals of the runners.",
        no_data="no runner reports and says why; those that are scraped do not.",
        unit="percentunit",
        units={"rows_per_flush": "short"},
        width=8,
        thresholds=config.PLAIN,
        stacked=True,
    )


def losses() -> Panel:
    """What never got through."""
    return Panel(
        "Flush failures, rows lost, outputs dropped",
        "timeseries",
        e.series(
            e.rates(
                e.either(
                    e.told("runner_events", "task.flush_failed"),
                    e.told("runner_events", "task.output_dropped"),
                    e.witness("runner_events", "runner.status"),
                ),
                {
                    "flush_failures": "countIf(kind = 'task.flush_failed')",
                    "rows_lost": "sum(rows_lost)",
                    "outputs_dropped": "countIf(kind = 'task.output_dropped')",
                },
                60,
            )
        ),
        healthy="none.",
        deviation="the end of a log, or an output that a later job needs, is missing for good.",
        todo="rows: the server was away when tasks ended. Outputs: the workflow's keys or values "
        "are too long.",
        no_data="nothing was lost.",
        unit="opm",
        width=8,
        thresholds=config.PLAIN,
        points=True,
        alerts=("RunnerLogNotDraining",),
    )


# --- processes --------------------------------------------------------------------------------


def starts() -> Panel:
    """Runner processes that began and ended."""
    return Panel(
        "Starts and stops",
        "timeseries",
        e.series(
            e.rates(
                t.STARTS_AND_STOPS,
                e.counts("what", ("started", "orderly", "forced")),
                3600,
            )
        ),
        healthy="as often as you deploy, or once a job with ephemeral runners.",
        deviation="more starts than stops: processes crash. Forced: they were ended with work.",
        todo="look at the logs of the runners that start often.",
        no_data="none started or stopped.",
        thresholds=config.PLAIN,
        points=True,
    )


def process() -> Panel:
    """What Prometheus knows of runner processes that it scrapes itself."""
    where = f'{{job=~".*runner.*",job!~"{config.SCRAPE_JOBS}"}}'
    return Panel(
        "Go/process",
        "timeseries",
        (
            Promql(f"max(process_resident_memory_bytes{where})", "memory of the largest"),
            Promql(f"max(process_open_fds{where})", "open files, at most"),
            Promql(
                f"max(rate(process_cpu_seconds_total{where}[$__rate_interval]))",
                "processors, at most",
            ),
        ),
        healthy="memory and files are flat between jobs.",
        deviation="memory that only grows: log rows that are not taken, or a leak.",
        todo="compare with Log buffer rows, oldest-row age; start the runner again. Of goroutines "
        "tells go_goroutines of the same job.",
        no_data="Prometheus scrapes no job of runners, whose name has runner in it: that is yours "
        "to set.",
        unit="bytes",
        units={"open files, at most": "short", "processors, at most": "short"},
        thresholds=config.PLAIN,
    )
