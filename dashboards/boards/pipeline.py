"""Pipeline: whether what is shown is fresh and whole, and how its own processes are."""

from __future__ import annotations

from typing import Final

from dashboards import config, series
from dashboards.boards import pipeline_edges as edges
from dashboards.boards import pipeline_self as processes
from dashboards.boards import pipeline_sink as sink
from dashboards.model import Dashboard, Panel, Promql, Row

LATE_S: Final = ((None, "green"), (15, "yellow"), (config.TICK_LAG_S, "red"))
BEHIND: Final = ((None, "green"), (1_000, "yellow"), (config.LAG_RECORDS, "red"))
NO_WORKER: Final = "no worker is scraped: nothing is known of it."


def ready() -> Panel:
    """How many workers are ready."""
    return Panel(
        "Ready workers",
        "stat",
        (
            Promql("sum(runnerstream_ready)", "ready"),
            Promql("count(runnerstream_ready)", "scraped"),
        ),
        healthy="both numbers are the same, and as many as you started.",
        deviation="a worker is starting, reading its tables, or has lost Kafka.",
        todo="its /readyz says why.",
        no_data=NO_WORKER,
        thresholds=((None, "red"), (1, "green")),
        width=4,
        height=4,
        alerts=("WorkerNotReady", "WorkerAbsent"),
    )


def tick_lag() -> Panel:
    """How far behind the folds are."""
    return Panel(
        "Tick lag",
        "stat",
        (Promql("max(runnerstream_tick_lag_seconds)", "tick lag"),),
        healthy="below the interval of ticks (5 s) and a few seconds.",
        deviation="the fold is behind: what is shown is old, and beyond 30 s nothing is recovered.",
        todo="one worker or all, one topic or all? See Lag below; docs/operators.md, Lag.",
        no_data=NO_WORKER,
        unit="s",
        thresholds=LATE_S,
        width=4,
        height=4,
        alerts=("PipelineTickLag",),
    )


def waiting() -> Panel:
    """Records that wait for the fold."""
    return Panel(
        "Records that wait for workers",
        "stat",
        (Promql("sum(runnerstream_consumer_lag_records)", "records"),),
        healthy="some hundreds at most, and falling after a burst.",
        deviation="workers do not keep up, or partitions have no owner.",
        todo="add workers up to the number of partitions, or see what holds one up.",
        no_data="no worker is scraped, or none knows its lag yet.",
        thresholds=BEHIND,
        width=4,
        height=4,
        alerts=("PipelineConsumerLag",),
    )


def tick_lag_by_worker() -> Panel:
    """The same over time, by worker."""
    return Panel(
        "Tick lag by worker",
        "timeseries",
        (Promql("max by (instance) (runnerstream_tick_lag_seconds)", "{{instance}}"),),
        healthy="a saw-tooth below ten seconds.",
        deviation="one line climbs: that worker is slow or stuck. All climb: Kafka, or too few "
        "workers.",
        todo="see Transactions: is it the fold or the writing? docs/operators.md, Lag.",
        no_data=NO_WORKER,
        unit="s",
        thresholds=LATE_S,
        alerts=("PipelineTickLag",),
    )


def lag_by_topic() -> Panel:
    """Records that wait, by topic."""
    return Panel(
        "Consumer lag by topic",
        "timeseries",
        (Promql("sum by (topic) (runnerstream_consumer_lag_records)", "{{topic}}"),),
        healthy="small and uneven.",
        deviation="runners.webhooks, runners.lifecycle: normalising is behind; runners.jobs: the "
        "fold of jobs; runners.fleets: commands wait.",
        todo="after an outage a backlog is normal: it must fall. Else add workers.",
        no_data="no worker is scraped, or none knows its lag yet.",
        thresholds=BEHIND,
        alerts=("PipelineConsumerLag",),
    )


def records() -> Panel:
    """Records a second, by stage."""
    return Panel(
        "Records handled, by stage",
        "timeseries",
        (series.rate("runnerstream_records_total", "stage"),),
        healthy="follows the day; the fold has some more than normalise, for ticks and links.",
        deviation="0 while records wait: nothing is owned, or a worker hangs.",
        todo="look at Ready workers and Rebalances.",
        no_data=NO_WORKER,
        unit="ops",
    )


def batches() -> Panel:
    """Transactions a second and their size, by stage."""
    return Panel(
        "Records in a transaction, mean",
        "timeseries",
        (
            Promql(
                "sum by (stage) (rate(runnerstream_batch_records_sum[$__rate_interval]))"
                " / sum by (stage) (rate(runnerstream_batch_records_count[$__rate_interval]))",
                "{{stage}}",
            ),
        ),
        healthy="few when little comes; it grows with the load, and that is what makes it fast.",
        deviation="at thousands all the time: workers are at their limit.",
        todo="add workers.",
        no_data="no worker is scraped, or nothing came.",
    )


def batch_time() -> Panel:
    """Time of a transaction."""
    return Panel(
        "Time of a transaction, p95",
        "timeseries",
        (series.quantile("runnerstream_batch_seconds", 0.95, "stage"),),
        healthy="below half a second.",
        deviation="with a fast fold: Kafka is slow to acknowledge. With a slow one: the CPU.",
        todo="compare with Time of the fold and Time to write.",
        no_data="no worker is scraped, or nothing came.",
        unit="s",
        thresholds=((None, "green"), (0.5, "yellow"), (2, "red")),
    )


def fold_time() -> Panel:
    """Time of the fold."""
    return Panel(
        "Time of the fold, p95",
        "timeseries",
        (series.quantile("runnerstream_fold_seconds", 0.95, "stage"),),
        healthy="below 100 ms.",
        deviation="the CPU is busy, the batches are large, or garbage is collected.",
        todo="see CPU and Event loop late; add workers.",
        no_data="no worker is scraped, or nothing came.",
        unit="s",
        thresholds=((None, "green"), (0.25, "yellow"), (1, "red")),
    )


def writing() -> Panel:
    """Time that Kafka takes."""
    return Panel(
        "Time to write to Kafka, p95",
        "timeseries",
        (
            series.quantile("runnerstream_produce_seconds", 0.95, "way"),
            Promql(
                series.quantile("runnerstream_offset_commit_seconds", 0.95).text,
                "commit of offsets",
            ),
        ),
        healthy="some 10 ms.",
        deviation="brokers are busy, a replica is behind, or the network is slow.",
        todo="look at Kafka: under-replicated partitions, disks, request times.",
        no_data="no worker is scraped, or nothing was written.",
        unit="s",
        thresholds=((None, "green"), (0.1, "yellow"), (1, "red")),
    )


def failures() -> Panel:
    """Writes that failed."""
    return Panel(
        "Writes that failed",
        "timeseries",
        (series.times("runnerstream_produce_failures_total", "reason"),),
        healthy="0. fenced, at a rebalance: a former owner was shut out, as it must be.",
        deviation="error: Kafka refused a write, and the worker ended to begin anew.",
        todo="look at the worker's log and at Kafka: min.insync.replicas, rights, disk.",
        no_data=NO_WORKER,
        alerts=("ProduceFailures",),
    )


BOARD: Final = Dashboard(
    "runnerstream-pipeline",
    "Pipeline",
    "Whether what all others show is fresh and whole: lag, transactions, ClickHouse, what was put "
    "aside or came late, webhooks, and the processes themselves.",
    (
        Row(
            "Overview",
            (
                ready(), tick_lag(), waiting(), sink.taken(), sink.newest(), sink.letters_now(),
            ),
        ),
        Row("Lag", (tick_lag_by_worker(), lag_by_topic(), sink.visible(), edges.arrival())),
        Row(
            "Transactions",
            (records(), batches(), batch_time(), fold_time(), writing(), failures()),
        ),
        Row(
            "ClickHouse",
            (
                sink.rows(), sink.lag(), sink.insert_time(), sink.oldest(), sink.flushes(),
                sink.trouble(),
            ),
        ),
        Row(
            "Dead letters",
            (sink.letters(), sink.letters_by_stage(), sink.counted_letters(),
             sink.latest_letters()),
        ),
        Row(
            "Late, twice, odd",
            (
                edges.late(), edges.telemetry_late(), edges.repeated(), edges.missed(),
                edges.odd(), edges.clocks(), edges.missing(),
            ),
        ),
        Row(
            "Webhooks",
            (
                edges.requests(), edges.deliveries(), edges.latency(), edges.silence(),
                edges.gateways(), edges.missed_deliveries(), edges.redelivered(), edges.passes(),
            ),
        ),
        Row("Relay and scrape", (edges.relay(), edges.relay_delay(), edges.scrape())),
        Row(
            "Processes",
            (
                processes.cpu(), processes.memory(), processes.loop(), processes.garbage(),
                processes.rebalances(), processes.recovering(), processes.restarts(),
                processes.roles(), processes.samples(), processes.files(), processes.versions(),
            ),
        ),
    ),
)  # fmt: skip
