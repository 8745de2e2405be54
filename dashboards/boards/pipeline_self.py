"""Panels of the pipeline about its own processes."""

from __future__ import annotations

from typing import Final

from dashboards import config, series
from dashboards.model import Panel, Promql
from dashboards.series import OURS

NO_PROCESS: Final = "no process of ours is scraped."
PROCESS: Final = "{{job}} {{instance}}"


def cpu() -> Panel:
    """Processor time."""
    return Panel(
        "CPU",
        "timeseries",
        (Promql(f"rate(process_cpu_seconds_total[$__rate_interval]) {OURS}", PROCESS),),
        healthy="a worker below 0.7 of a core: it has one event loop.",
        deviation="at 1: that process is at its limit, and lag follows.",
        todo="add workers, up to the number of partitions.",
        no_data=NO_PROCESS,
        unit="percentunit",
        soft_max=1,
        thresholds=((None, "green"), (0.75, "yellow"), (0.95, "red")),
    )


def memory() -> Panel:
    """Resident memory."""
    return Panel(
        "Memory",
        "timeseries",
        (Promql(f"process_resident_memory_bytes {OURS}", PROCESS),),
        healthy="level; a worker's follows its live jobs.",
        deviation="it climbs for days: more jobs are remembered, or it is a fault of ours.",
        todo="compare with live jobs in Runners; `store=rocksdb` keeps tables on disk.",
        no_data=NO_PROCESS,
        unit="bytes",
    )


def loop() -> Panel:
    """How late the event loop is."""
    return Panel(
        "Event loop late",
        "timeseries",
        (
            Promql("max by (instance) (runnerstream_loop_lag_worst_seconds)", "worst {{instance}}"),
            Promql(series.quantile("runnerstream_loop_lag_seconds", 0.99).text, "p99"),
        ),
        healthy="below 100 ms.",
        deviation="every batch and every answer waits for at least so long.",
        todo="Garbage collection, Time of the fold and CPU say why.",
        no_data="no worker is scraped.",
        unit="s",
        thresholds=((None, "green"), (0.25, "yellow"), (config.LOOP_LAG_S, "red")),
        alerts=("EventLoopLag",),
    )


def garbage() -> Panel:
    """For how long processes stand still for the garbage collector."""
    return Panel(
        "Garbage collection, share of time",
        "timeseries",
        (Promql("rate(runnerstream_gc_pause_seconds_sum[$__rate_interval])", PROCESS),),
        healthy="below 0.02.",
        deviation="much is made and thrown away, or there is much to look through.",
        todo="add workers: each has fewer jobs to keep.",
        no_data=NO_PROCESS,
        unit="percentunit",
        thresholds=((None, "green"), (0.05, "yellow"), (0.2, "red")),
    )


def rebalances() -> Panel:
    """Rebalances of the group, and how long they took."""
    return Panel(
        "Rebalances",
        "timeseries",
        (
            Promql("sum by (instance) (increase(runnerstream_rebalances_total[$__rate_interval]))",
                   "{{instance}}"),
            Promql(
                "sum(increase(runnerstream_rebalance_seconds_sum[$__rate_interval]))"
                " / (sum(increase(runnerstream_rebalance_seconds_count[$__rate_interval])) > 0)",
                "seconds each",
            ),
        ),
        healthy="when workers start and stop.",
        deviation="again and again: a worker is thrown out because it does not answer.",
        todo="see Event loop late; raise RUNNERSTREAM_SESSION_TIMEOUT.",
        no_data="no worker is scraped.",
        units={"seconds each": "s"},
    )  # fmt: skip


def recovering() -> Panel:
    """How long it takes to read tables."""
    return Panel(
        "Reading tables after a rebalance",
        "timeseries",
        (
            series.quantile("runnerstream_table_recovery_seconds", 0.95),
            Promql(
                "sum(rate(runnerstream_table_records_recovered_total[$__rate_interval]))",
                "records a second",
            ),
        ),
        healthy="seconds, and only after a rebalance.",
        deviation="minutes: there are many jobs, or changelogs are not compacted.",
        todo="docs/operators.md, Stuck recovery.",
        no_data="no worker is scraped; p95 is there only after a rebalance.",
        unit="s",
        units={"records a second": "ops"},
    )


def restarts() -> Panel:
    """Processes that started again."""
    return Panel(
        "Starts of processes",
        "timeseries",
        (
            Promql(f"changes(process_start_time_seconds[$__rate_interval]) {OURS}", PROCESS),
            Promql(
                "sum by (role) (increase(runnerstream_role_restarts_total[$__rate_interval]))",
                "{{role}}, by its worker",
            ),
        ),
        healthy="0, but for upgrades.",
        deviation="a process ends again and again.",
        todo="look at its log: the last line says why it ended.",
        no_data=NO_PROCESS,
        alerts=("ProcessRestarts",),
    )


def roles() -> Panel:
    """Whether the processes beside workers run."""
    return Panel(
        "Roles beside a worker",
        "timeseries",
        (Promql("max by (instance, role) (runnerstream_role_up)", "{{role}} {{instance}}"),),
        healthy="1 for each role that the worker is to run.",
        deviation="0: that process has ended, and is started again after a pause.",
        todo="look at the worker's log.",
        no_data="no worker is scraped, or it runs no role beside the fold.",
        steps=True,
        maximum=1,
        alerts=("RoleDown", "RoleVanished"),
    )


def samples() -> Panel:
    """How many series each process exports."""
    return Panel(
        "Series exported",
        "timeseries",
        (
            Promql(f"scrape_samples_scraped {OURS}", PROCESS),
            Promql("max(runnerstream_fleets_unnamed)", "fleets without series of their own"),
        ),
        healthy="a worker below 5,000 (`max_series`); no fleet without series of its own.",
        deviation="fleets share the label `other`: no panel and no alert over metrics names them.",
        todo="RUNNERSTREAM_FLEETS and routes bring fleets together; raise `max_series` if "
        "Prometheus has room.",
        no_data=NO_PROCESS,
        thresholds=((None, "green"), (4_900, "yellow")),
        alerts=("SeriesBudget",),
    )


def files() -> Panel:
    """Open files and sockets."""
    return Panel(
        "Open files, share of what is allowed",
        "timeseries",
        (Promql(f"process_open_fds / process_max_fds {OURS}", PROCESS),),
        healthy="below 0.5.",
        deviation="connections are not closed, or too many look on.",
        todo="raise `ulimit -n`; see who is connected.",
        no_data=NO_PROCESS,
        unit="percentunit",
        maximum=1,
        thresholds=((None, "green"), (0.5, "yellow"), (0.9, "red")),
    )


def versions() -> Panel:
    """Which versions run."""
    return Panel(
        "Processes by version",
        "timeseries",
        (
            Promql("count by (job, version) (runnerstream_build_info)", "{{job}} {{version}}"),
            Promql(
                f'max by (instance) (up{{job=~"{config.SCRAPE_JOBS}"}})', "answers: {{instance}}"
            ),
        ),
        healthy="one version; two during an upgrade. Every process answers (1).",
        deviation="a process was forgotten in an upgrade, or does not answer (0).",
        todo="docs/operators.md, Upgrade.",
        no_data=NO_PROCESS,
        steps=True,
        width=24,
        height=6,
        alerts=("TargetDown",),
    )
