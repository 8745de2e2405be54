"""Panels of the pipeline about ClickHouse and its sink, and about dead letters."""

from __future__ import annotations

from typing import Final

from dashboards import config, series
from dashboards.model import Panel, Promql, Sql

NO_SINK: Final = "no sink is scraped: whether rows come to ClickHouse is not known."
NO_LETTERS: Final = "nothing was put aside in this time; or nothing comes to ClickHouse."


def taken() -> Panel:
    """Whether ClickHouse takes rows."""
    return Panel(
        "ClickHouse takes rows",
        "stat",
        (Promql("min(runnerstream_sink_clickhouse_up)", "up"),),
        healthy="1.",
        deviation="0: a sink cannot write. Nothing is lost while topics keep their records (8 "
        "days), but everything over ClickHouse is old.",
        todo="the sink's /readyz says why; docs/operators.md, The sink is down.",
        no_data=NO_SINK,
        thresholds=((None, "red"), (1, "green")),
        width=4,
        height=4,
        alerts=("SinkDown", "SinkAbsent"),
    )


def newest() -> Panel:
    """How old the newest sample in ClickHouse is."""
    return Panel(
        "Newest sample in ClickHouse",
        "stat",
        (
            Sql(
                """SELECT dateDiff('millisecond', max(occurred_at), $__toTime_ms) AS age FROM gauges
WHERE occurred_at > $__toTime - INTERVAL 1 HOUR AND occurred_at <= $__toTime
HAVING count() > 0""",
                "table",
            ),
        ),
        healthy="below a minute: folds sample every minute or more often.",
        deviation="folds, sink or ClickHouse do not get on.",
        todo="Tick lag tells whether it is the fold, Records not in ClickHouse whether it is the "
        "sink.",
        no_data="nothing came for an hour: no panel over ClickHouse tells how things are now.",
        unit="ms",
        thresholds=((None, "green"), (120_000, "yellow"), (config.FRESH_S * 1000, "red")),
        width=4,
        height=4,
        alerts=("HistoryNotFresh",),
    )


def letters_now() -> Panel:
    """How many records were put aside."""
    return Panel(
        "Dead letters",
        "stat",
        (
            Sql(
                """SELECT count() AS letters FROM dead_letters FINAL
WHERE $__timeFilter(received_at)
HAVING count() > 0 OR """
                + series.FRESH,
                "table",
            ),
        ),
        healthy="0.",
        deviation="somebody posts what nobody can read; it is kept for 30 days and can be "
        "replayed.",
        todo="`runnerstream dead-letters list --since 1d`; see below by reason.",
        no_data="nothing came to ClickHouse for five minutes.",
        thresholds=config.ANY_IS_BAD,
        width=4,
        height=4,
        alerts=("DeadLetters", "SinkDeadLetters"),
    )


def visible() -> Panel:
    """From the broker to ClickHouse."""
    return Panel(
        "From a record to its row in ClickHouse",
        "timeseries",
        series.quantiles("runnerstream_sink_visible_seconds"),
        healthy="p99 below 2 s: of the oldest record of each batch.",
        deviation="ClickHouse is slow, or the sink is catching up.",
        todo="compare with Time of an insert: if that is small, the sink waits for Kafka or CPU.",
        no_data="no sink is scraped, or it has written nothing.",
        unit="s",
        thresholds=((None, "green"), (5, "yellow"), (60, "red")),
        alerts=("SinkLag",),
    )


def rows() -> Panel:
    """Rows a second, by table."""
    return Panel(
        "Rows written, by table",
        "timeseries",
        (series.rate("runnerstream_sink_rows_total", "table"),),
        healthy="follows the day; gauges are written even when nothing happens.",
        deviation="0 while records wait: the sink is stalled.",
        todo="the sink's /readyz; docs/operators.md, The sink is down.",
        no_data=NO_SINK,
        unit="ops",
        alerts=("SinkStalled",),
    )


def lag() -> Panel:
    """Records that ClickHouse does not have yet, by topic."""
    return Panel(
        "Records not in ClickHouse, by topic",
        "timeseries",
        (Promql("sum by (topic) (runnerstream_sink_lag_records >= 0)", "{{topic}}"),),
        healthy="hundreds at most.",
        deviation="it grows: ClickHouse is away or too slow. A line that ends: its lag is not "
        "known.",
        todo="more sinks help if ClickHouse has room; a slow ClickHouse is not helped by them.",
        no_data="no sink is scraped, or none knows its lag.",
        thresholds=((None, "green"), (1_000, "yellow"), (config.LAG_RECORDS, "red")),
        alerts=("SinkLag", "SinkLagUnknown"),
    )


def insert_time() -> Panel:
    """Time of an insert."""
    return Panel(
        "Time of an insert",
        "timeseries",
        series.quantiles("runnerstream_sink_insert_seconds"),
        healthy="below 100 ms.",
        deviation="ClickHouse merges too much, has too little memory, or is far away.",
        todo="look at ClickHouse: system.merges, system.parts, its log.",
        no_data="no sink is scraped, or it has written nothing.",
        unit="s",
        thresholds=((None, "green"), (0.5, "yellow"), (5, "red")),
    )


def flushes() -> Panel:
    """Batches by what made them due."""
    return Panel(
        "Batches written, by what made them due",
        "timeseries",
        (series.rate("runnerstream_sink_flushes_total", "reason"),),
        healthy="latency and urgent when little comes; size when much does.",
        deviation="none: the sink is stalled. close: it stops, or partitions move.",
        todo="see Records not in ClickHouse.",
        no_data=NO_SINK,
        unit="ops",
    )


def oldest() -> Panel:
    """For how long the oldest record waits in the sink."""
    return Panel(
        "Oldest record in a sink's hands",
        "timeseries",
        (Promql("max by (instance) (runnerstream_sink_oldest_unflushed_seconds)", "{{instance}}"),),
        healthy="below a second.",
        deviation="an insert is tried again and again.",
        todo="see Trouble with ClickHouse for the reason.",
        no_data=NO_SINK,
        unit="s",
        thresholds=((None, "green"), (5, "yellow"), (60, "red")),
        alerts=("SinkStalled",),
    )


def trouble() -> Panel:
    """What went wrong on the way to ClickHouse."""
    return Panel(
        "Trouble with ClickHouse",
        "timeseries",
        (
            Promql(
                "sum by (reason) (increase(runnerstream_sink_retries_total[$__rate_interval]))",
                "retried: {{reason}}",
            ),
            *(
                Promql(f"sum(increase(runnerstream_sink_{name}_total[$__rate_interval]))", legend)
                for name, legend in (
                    ("pauses", "paused"),
                    ("splits", "cut in two"),
                    ("commit_failures", "commits failed"),
                    ("rejoins", "group joined anew"),
                    ("lost_records", "records lost"),
                    ("unstorable_letters", "letters not stored"),
                )
            ),
        ),
        healthy="0.",
        deviation="network, timeout, overload: it passes. refused, systemic: a person is needed. "
        "records lost: they were removed before the sink read them.",
        todo="the sink's /readyz names the reason; docs/operators.md, The sink is down.",
        no_data=NO_SINK,
        alerts=("SinkDown", "SinkRecordsLost"),
    )


def letters() -> Panel:
    """Records put aside, over time."""
    return Panel(
        "Dead letters by reason",
        "timeseries",
        (
            Sql(
                series.counted(
                    """SELECT received_at, reason FROM dead_letters FINAL
WHERE $__timeFilter(received_at)""",
                    "received_at",
                    "reason",
                    "letters",
                )
            ),
        ),
        healthy="none.",
        deviation="not_json, bad_envelope, bad_payload: a producer is wrong. unknown_kind, "
        "newer_version: it is newer than the workers. bad_signature: a secret, or somebody else.",
        todo="docs/producers.md, Dead letters, says what each reason means.",
        no_data=NO_LETTERS,
        stacked=True,
        steps=True,
        alerts=("DeadLetters",),
    )


def letters_by_stage() -> Panel:
    """Records put aside, by who did and from where."""
    return Panel(
        "Dead letters by stage, topic and reason",
        "table",
        (
            Sql(
                """SELECT stage, topic, reason, count() AS letters, max(received_at) AS last,
  argMax(id, received_at) AS example
FROM dead_letters FINAL
WHERE $__timeFilter(received_at)
GROUP BY stage, topic, reason ORDER BY letters DESC""",
                "table",
            ),
        ),
        healthy="empty.",
        deviation="the first row is what happens most.",
        todo="`runnerstream dead-letters show EXAMPLE`; then mend the producer, and "
        "`runnerstream dead-letters replay --reason REASON`.",
        no_data=NO_LETTERS,
        alerts=("DeadLetters",),
    )


def counted_letters() -> Panel:
    """The same as counted by those who put aside: also while ClickHouse is away."""
    return Panel(
        "Records put aside, as counted",
        "timeseries",
        (
            Promql(
                "sum by (stage, reason)"
                " (increase(runnerstream_dead_letters_total[$__rate_interval])) > 0",
                "{{stage}}: {{reason}}",
            ),
            Promql(
                "sum by (reason)"
                " (increase(runnerstream_sink_dead_letters_total[$__rate_interval])) > 0",
                "sink: {{reason}}",
            ),
            Promql(
                "sum(increase(runnerstream_dead_letters_total[$__rate_interval]))", "all of workers"
            ),
        ),
        healthy="0.",
        deviation="it counts what ClickHouse may not have yet.",
        todo="as for Dead letters by reason.",
        no_data="no worker is scraped.",
        width=24,
        height=6,
        alerts=("DeadLetters", "SinkDeadLetters"),
    )


def latest_letters() -> Panel:
    """The latest dead letters."""
    return Panel(
        "Latest dead letters",
        "table",
        (
            Sql(
                """SELECT received_at AS refused, occurred_at AS written, stage, reason, topic, id,
  substring(error, 1, 200) AS error, toValidUTF8(substring(record_key, 1, 100)) AS record_key,
  length(record_value) AS bytes
FROM dead_letters FINAL
WHERE $__timeFilter(received_at)
ORDER BY refused DESC LIMIT 100""",
                "table",
            ),
        ),
        healthy="empty.",
        deviation="`error` says what is wrong, and where.",
        todo="`runnerstream dead-letters show ID` shows the record.",
        no_data=NO_LETTERS,
        width=24,
        units={"bytes": "bytes"},
        alerts=("DeadLetters",),
    )
