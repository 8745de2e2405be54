"""The sink: whether rows come to ClickHouse. Nothing is lost while it waits, but SQL is old."""

from __future__ import annotations

from typing import Final

from dashboards import config
from dashboards.alerts.model import PIPELINE, Alert, Group, by

ALL: Final = by()
# A lag that is not known is NaN, and a sum with it as well: nothing is larger than that.
LAG: Final = "(runnerstream_sink_lag_records > 0)"

DOWN: Final = Alert(
    "SinkDown",
    "critical",
    f"min {by('instance')} (runnerstream_sink_clickhouse_up) == 0",
    "5m",
    "ClickHouse does not take rows",
    "The sink at {{ $labels.instance }} cannot write to ClickHouse.",
    PIPELINE,
)
STALLED: Final = Alert(
    "SinkStalled",
    "critical",
    f"""sum {ALL} {LAG} > 0
and sum {ALL} (increase(runnerstream_sink_rows_total[10m])) == 0""",
    "5m",
    "Records wait for ClickHouse and no row arrives there",
    '{{ printf "%.0f" $value }} records wait, and for ten minutes no row was written.',
    PIPELINE,
)
BEHIND: Final = Alert(
    "SinkLag",
    "warning",
    f"sum {by('topic')} {LAG} > {config.LAG_RECORDS}",
    "15m",
    "The sink does not keep up",
    "Of {{ $labels.topic }} {{ $value | humanize }} records are not in ClickHouse yet.",
    PIPELINE,
)
UNKNOWN: Final = Alert(
    "SinkLagUnknown",
    "warning",
    f"""count {by("topic")} (
  runnerstream_sink_lag_records unless runnerstream_sink_lag_records >= 0
) > 0""",
    "10m",
    "Nobody knows how far behind the sink is",
    "The sink does not know its lag on {{ $labels.topic }}.",
    PIPELINE,
)
LETTERS: Final = Alert(
    "SinkDeadLetters",
    "warning",
    f"sum {by('reason')} (increase(runnerstream_sink_dead_letters_total[15m])) > 0",
    "0m",
    "The sink puts records aside",
    '{{ printf "%.0f" $value }} records could not be made rows: {{ $labels.reason }}.',
    PIPELINE,
)
LOST: Final = Alert(
    "SinkRecordsLost",
    "critical",
    f"sum {by('topic')} (increase(runnerstream_sink_lost_records_total[1h])) > 0",
    "0m",
    "Records were removed before they came to ClickHouse",
    'Of {{ $labels.topic }} {{ printf "%.0f" $value }} records are missing in ClickHouse.',
    PIPELINE,
)

GROUP: Final = Group("sink", (DOWN, STALLED, BEHIND, UNKNOWN, LETTERS, LOST))
