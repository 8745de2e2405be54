"""The pipeline itself: whether workers are ready, keep up, lose nothing, and tell time."""

from __future__ import annotations

from typing import Final

from dashboards import config
from dashboards.alerts.model import PIPELINE, Alert, Group, by

ALL: Final = by()
INSTANCE: Final = by("instance")

NOT_READY: Final = Alert(
    "WorkerNotReady",
    "critical",
    f"max {INSTANCE} (runnerstream_ready) == 0",
    "5m",
    "A worker is not ready",
    "The worker {{ $labels.instance }} runs and does not say that it is ready; its /readyz says "
    "why.",
    PIPELINE,
)
TICK_LAG: Final = Alert(
    "PipelineTickLag",
    "critical",
    f"max {ALL} (runnerstream_tick_lag_seconds) > {config.TICK_LAG_S}",
    "5m",
    "The fold is behind: what is shown is old, and recovery does nothing",
    "The fold is {{ $value | humanizeDuration }} behind.",
    PIPELINE,
)
CONSUMER_LAG: Final = Alert(
    "PipelineConsumerLag",
    "warning",
    f"sum {by('topic')} (runnerstream_consumer_lag_records) > {config.LAG_RECORDS}",
    "15m",
    "Workers do not keep up with a topic",
    "On {{ $labels.topic }} {{ $value | humanize }} records wait.",
    PIPELINE,
)
CLOCK: Final = Alert(
    "PipelineClockWrong",
    "critical",
    f"""sum {ALL} (increase(runnerstream_ticks_refused_total{{reason="future"}}[15m])) > 0
or sum {ALL} (increase(runnerstream_clocks_healed_total[15m])) > 0""",
    "0m",
    "The clock of a worker is ahead",
    '{{ printf "%.0f" $value }} ticks lay in the future, or clocks of partitions had to be taken '
    "back.",
    PIPELINE,
)
SOURCES: Final = Alert(
    "SourceClockAhead",
    "warning",
    f"sum {ALL} (increase(runnerstream_future_times_total[15m])) > 0",
    "0m",
    "Somebody posts times that lie in the future",
    '{{ printf "%.0f" $value }} times of the last 15 minutes are not believed.',
    PIPELINE,
)
MISSED: Final = Alert(
    "RecordsMissed",
    "critical",
    f"sum {by('topic')} (increase(runnerstream_records_missed_total[1h])) > 0",
    "0m",
    "Records were removed before they were read",
    'Of {{ $labels.topic }} {{ printf "%.0f" $value }} records are lost to the workers.',
    PIPELINE,
)
LETTERS: Final = Alert(
    "DeadLetters",
    "warning",
    f"sum {by('stage', 'reason')} (increase(runnerstream_dead_letters_total[15m])) > 0",
    "0m",
    "Records are put aside because nobody can read them",
    '{{ printf "%.0f" $value }} records were put aside by {{ $labels.stage }}: '
    "{{ $labels.reason }}.",
    PIPELINE,
)
RESTARTS: Final = Alert(
    "ProcessRestarts",
    "warning",
    f"""sum {INSTANCE} (
  changes(process_start_time_seconds{{job=~"{config.SCRAPE_JOBS}"}}[1h])
) > {config.RESTARTS_AN_HOUR}""",
    "0m",
    "A process starts again and again",
    "The process at {{ $labels.instance }} has started {{ $value }} times within the last hour.",
    PIPELINE,
)
ROLE: Final = Alert(
    "RoleDown",
    "critical",
    f"max {by('instance', 'role')} (runnerstream_role_up) == 0",
    "5m",
    "A process that a worker runs beside it is down",
    "The {{ $labels.role }} of the worker {{ $labels.instance }} does not run.",
    PIPELINE,
)
SERIES: Final = Alert(
    "SeriesBudget",
    "warning",
    f"max {ALL} (runnerstream_fleets_unnamed) > 0",
    "15m",
    "Fleets have no series of their own",
    "{{ $value }} fleets share the label `other`, so no alert names them.",
    PIPELINE,
)
LOOP: Final = Alert(
    "EventLoopLag",
    "warning",
    f"max {INSTANCE} (runnerstream_loop_lag_worst_seconds) > {config.LOOP_LAG_S}",
    "10m",
    "A worker answers late",
    "The event loop of {{ $labels.instance }} is up to {{ $value | humanizeDuration }} late.",
    PIPELINE,
)
PRODUCE: Final = Alert(
    "ProduceFailures",
    "critical",
    f'sum {ALL} (increase(runnerstream_produce_failures_total{{reason="error"}}[15m])) > 0',
    "0m",
    "Kafka does not take what workers write",
    '{{ printf "%.0f" $value }} writes failed in the last 15 minutes; each ends its worker.',
    PIPELINE,
)
LATE: Final = Alert(
    "LateSamples",
    "warning",
    f"""sum {ALL} (increase(runnerstream_late_samples_total{{family="queue"}}[1h]))
/ (sum {ALL} (increase(runnerstream_job_queue_seconds_count[1h])) > {config.FEW})
> {config.LATE}""",
    "10m",
    "Many jobs are heard of when their window is closed",
    "{{ $value | humanizePercentage }} of the queue times of the last hour came too late for "
    "their window.",
    PIPELINE,
)
TELEMETRY_LATE: Final = Alert(
    "TelemetryLate",
    "warning",
    f"""sum {by("family")} (increase(runnerstream_telemetry_late_total[1h]))
/ (sum {by("family")} (increase(runnerstream_telemetry_events_total[1h])) > {config.FEW})
> {config.LATE}""",
    "10m",
    "Telemetry arrives so late that it does not count",
    "{{ $value | humanizePercentage }} of the events of {{ $labels.family }} of the last hour came "
    "late.",
    PIPELINE,
)

GROUP: Final = Group(
    "pipeline",
    (NOT_READY, TICK_LAG, CONSUMER_LAG, CLOCK, SOURCES, MISSED, LETTERS, RESTARTS, ROLE, SERIES,
     LOOP, PRODUCE, LATE, TELEMETRY_LATE),
)  # fmt: skip
