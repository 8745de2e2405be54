"""What only ClickHouse knows: repositories, work asked for, and whether its own rows are fresh.

The range of a rule is the longest that its query needs. What happens within it is told apart by
``$__toTime()``, which is the moment at which Grafana asks.
"""

from __future__ import annotations

from typing import Final

from dashboards import config
from dashboards.alerts.model import JOBS, PIPELINE, RUNNERS, SqlAlert, SqlGroup

HOUR: Final = 3_600
FAILED: Final = "conclusion IN ('failure', 'timed_out', 'startup_failure')"
ENDED: Final = f"(conclusion = 'success' OR {FAILED})"

FAILURES: Final = SqlAlert(
    "RepositoryFailureTrend",
    "runnerstream-repository-failures",
    "warning",
    f"""SELECT $__toTime() AS time, repo,
  countIf({FAILED} AND recent) / countIf(recent)
    - countIf({FAILED} AND NOT recent) / countIf(NOT recent) AS rise
FROM (
  SELECT repo, conclusion, completed_at > $__toTime() - INTERVAL 3 HOUR AS recent
  FROM job_timings FINAL
  WHERE $__timeFilter(completed_at) AND copied = 0 AND repo != '' AND {ENDED}
)
GROUP BY repo
HAVING countIf(recent) >= {config.FEW} AND countIf(NOT recent) >= {config.FEW}
ORDER BY time""",
    over_s=48 * HOUR,
    above=config.FAILURES_RISE,
    pending="15m",
    no_data="OK",
    summary="Jobs of a repository fail much more often than before",
    description="In {{ $labels.repo }} the share of failed jobs has risen by "
    "{{ humanizePercentage $values.B.Value }} against the two days before.",
    board=JOBS,
)
CANCELLED: Final = SqlAlert(
    "JobsCancelledWhileWaiting",
    "runnerstream-cancelled-while-waiting",
    "warning",
    f"""SELECT $__toTime() AS time, fleet,
  countIf(conclusion = 'cancelled' AND abandoned_ms IS NOT NULL) / count() AS share
FROM job_timings FINAL
WHERE $__timeFilter(completed_at) AND copied = 0 AND conclusion != 'skipped'
GROUP BY fleet
HAVING count() >= {config.FEW}
ORDER BY time""",
    over_s=HOUR,
    above=config.CANCELLED,
    pending="10m",
    no_data="OK",
    summary="People give up waiting for runners",
    description="In fleet {{ $labels.fleet }} {{ humanizePercentage $values.B.Value }} of the jobs "
    "of the last hour were cancelled before they started.",
    board=RUNNERS,
)
# Work asked for: jobs that came, times how long jobs of the fleet run. Work that can be done: the
# runners there were. Jobs that were cancelled came all the same: without them an overloaded fleet
# would look well.
OVERLOAD: Final = SqlAlert(
    "FleetOverloaded",
    "runnerstream-fleet-overloaded",
    "warning",
    f"""SELECT $__toTime() AS time, fleet, asked.jobs * ran.ms / capacity.ms AS rho
FROM (
  SELECT fleet, count() AS jobs FROM job_transitions FINAL
  WHERE $__timeFilter(at) AND status = 'queued'
  GROUP BY fleet
) AS asked
INNER JOIN (
  SELECT fleet, avg(run_ms) AS ms FROM job_timings FINAL
  WHERE $__timeFilter(completed_at) AND copied = 0 AND run_ms IS NOT NULL
  GROUP BY fleet HAVING count() >= {config.FEW}
) AS ran USING (fleet)
INNER JOIN (
  SELECT fleet, avg(runners) * 1000 * dateDiff('second', $__fromTime(), $__toTime()) AS ms
  FROM (
    SELECT fleet, minute, sum(latest) AS runners FROM (
      SELECT fleet, pool, toStartOfMinute(occurred_at) AS minute,
        argMax(observed, occurred_at) AS latest
      FROM pool_events FINAL
      WHERE $__timeFilter(occurred_at) AND kind = 'pool.sample' AND observed IS NOT NULL
      GROUP BY fleet, pool, minute
    ) GROUP BY fleet, minute
  ) GROUP BY fleet HAVING avg(runners) > 0
) AS capacity USING (fleet)
ORDER BY time""",
    over_s=HOUR,
    above=config.OVERLOAD,
    pending="15m",
    no_data="OK",
    summary="More work is asked for than the runners can do",
    description="In fleet {{ $labels.fleet }} {{ humanize $values.B.Value }} times the work that "
    "its runners can do was asked for in the last hour.",
    board=RUNNERS,
)
# Jobs that still wait count, too: they may never start, and would be in no sample.
QUEUE: Final = SqlAlert(
    "RepositoryQueueTime",
    "runnerstream-repository-queue-time",
    "warning",
    f"""SELECT $__toTime() AS time, repo, countIf(late) / count() AS share
FROM (
  SELECT repo, queue_ms > {config.QUEUE_SLO_S * 1000} AS late
  FROM job_timings FINAL
  WHERE $__timeFilter(completed_at) AND copied = 0 AND repo != '' AND queue_ms IS NOT NULL
  UNION ALL
  SELECT repo, 1 AS late
  FROM jobs FINAL
  WHERE status = 'queued' AND deleted = 0 AND copied = 0 AND repo != ''
    AND since < $__toTime() - INTERVAL {config.QUEUE_SLO_S} SECOND
)
GROUP BY repo
HAVING count() >= {config.FEW}
ORDER BY time""",
    over_s=6 * HOUR,
    above=round(6 * (1 - config.QUEUE_SLO), 6),
    pending="15m",
    no_data="OK",
    summary="The jobs of one repository wait for too long",
    description="In {{ $labels.repo }} {{ humanizePercentage $values.B.Value }} of the jobs of the "
    f"last six hours waited for more than {config.QUEUE_SLO_S} s.",
    board=JOBS,
)
# The clock writes samples every minute as long as worker and sink live.
FRESH: Final = SqlAlert(
    "HistoryNotFresh",
    "runnerstream-history-not-fresh",
    "critical",
    """SELECT $__toTime() AS time, dateDiff('second', max(occurred_at), $__toTime()) AS age
FROM gauges
WHERE $__timeFilter(occurred_at)
HAVING count() > 0
ORDER BY time""",
    over_s=HOUR,
    above=config.FRESH_S,
    pending="5m",
    no_data="Alerting",
    summary="Nothing new comes to ClickHouse",
    # Without rows there is no B.
    description="In ClickHouse {{ with $values.B }}the newest sample is "
    "{{ humanizeDuration .Value }} old{{ else }}there is no sample of the last hour{{ end }}.",
    board=PIPELINE,
)

GROUP: Final = SqlGroup("history", (FAILURES, CANCELLED, OVERLOAD, QUEUE, FRESH))
