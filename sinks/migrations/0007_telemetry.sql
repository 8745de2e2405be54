-- Telemetry (sinks/telemetry_rows.py): a table for each family of events, one row an event, as it was
-- said. Whatever a kind of event does not have is empty, 0 or NULL in its rows. None is partitioned:
-- whoever has a wrong clock could make more partitions than an insert may have.

CREATE TABLE IF NOT EXISTS dispatch_events (
  fleet LowCardinality(String) COMMENT 'Fleet',
  subject String COMMENT 'What within the fleet it is about; empty: all of it',
  kind LowCardinality(String) COMMENT 'dispatch.request, claim.attempt, runner.mint',
  occurred_at DateTime64(3, 'UTC') COMMENT 'When it happened' CODEC(Delta, ZSTD(1)),
  id String COMMENT 'The same for the same statement',
  received_at DateTime64(3, 'UTC') COMMENT 'When we heard of it' CODEC(Delta, ZSTD(1)),
  source LowCardinality(String) COMMENT 'Who says so',
  trace String COMMENT 'traceparent; empty without',
  outcome LowCardinality(String) COMMENT 'What came of it',
  duration_ms Nullable(UInt64) COMMENT 'How long it took; NULL when nobody said',
  runner String COMMENT 'Runner; empty when nobody said',
  reason LowCardinality(String) COMMENT 'Why; empty when nobody said',
  job_id String COMMENT 'Id of the job at the provider; empty when nobody said',
  INDEX ix_occurred occurred_at TYPE minmax GRANULARITY 1
) ENGINE = ReplacingMergeTree(received_at)
ORDER BY (fleet, subject, kind, occurred_at, id)
TTL toDateTime(occurred_at) + INTERVAL 90 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'What dispatchers said: requests for work, claims, mints. One row an event; who sends one again writes it again: read with FINAL.';

CREATE TABLE IF NOT EXISTS pool_events (
  fleet LowCardinality(String) COMMENT 'Fleet',
  subject String COMMENT 'What within the fleet it is about; empty: all of it',
  kind LowCardinality(String) COMMENT 'pool.sample, queue.sample, accounts.sample, machine.boot',
  occurred_at DateTime64(3, 'UTC') COMMENT 'When it happened' CODEC(Delta, ZSTD(1)),
  id String COMMENT 'The same for the same statement',
  received_at DateTime64(3, 'UTC') COMMENT 'When we heard of it' CODEC(Delta, ZSTD(1)),
  source LowCardinality(String) COMMENT 'Who says so',
  trace String COMMENT 'traceparent; empty without',
  pool LowCardinality(String) COMMENT 'Pool within the fleet; empty for a fleet of one',
  desired Nullable(UInt64) COMMENT 'Runners that should be; NULL: not known',
  observed Nullable(UInt64) COMMENT 'Runners that are; NULL: not known',
  max Nullable(UInt64) COMMENT 'Runners that may be at most; NULL: not known',
  ready Nullable(UInt64) COMMENT 'Runners that could take a job; NULL: not known',
  idle Nullable(UInt64) COMMENT 'Runners that wait for a job; NULL: not known',
  booting Nullable(UInt64) COMMENT 'Runners that boot; NULL: not known',
  occupied Nullable(UInt64) COMMENT 'Runners that have a job; NULL: not known',
  booting_since Nullable(DateTime64(3, 'UTC')) COMMENT 'Since when the one that boots for longest does; NULL: none, or not known',
  queued Nullable(UInt64) COMMENT 'Jobs that wait; NULL: not known',
  withheld Nullable(UInt64) COMMENT 'Of those, jobs that may not be given out; NULL: not known',
  dispatchable_since Nullable(DateTime64(3, 'UTC')) COMMENT 'Since when the longest waiting of the others waits; NULL without any',
  enabled Nullable(UInt64) COMMENT 'Accounts whose jobs are taken; NULL in other kinds',
  outcome LowCardinality(String) COMMENT 'What came of it',
  runner String COMMENT 'Runner; empty when nobody said',
  machine String COMMENT 'Machine; empty when nobody said',
  duration_ms Nullable(UInt64) COMMENT 'How long it took; NULL when nobody said',
  reason LowCardinality(String) COMMENT 'Why; empty when nobody said',
  INDEX ix_occurred occurred_at TYPE minmax GRANULARITY 1
) ENGINE = ReplacingMergeTree(received_at)
ORDER BY (fleet, subject, kind, occurred_at, id)
TTL toDateTime(occurred_at) + INTERVAL 90 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'What was said of pools: samples of runners, queues and accounts, and machines that booted. One row an event; who sends one again writes it again: read with FINAL.';

CREATE TABLE IF NOT EXISTS runner_events (
  fleet LowCardinality(String) COMMENT 'Fleet',
  subject String COMMENT 'What within the fleet it is about; empty: all of it',
  kind LowCardinality(String) COMMENT 'runner.info, runner.status, runner.poll, runner.stopped, task.assigned, task.started, task.finalizing, task.finished, step.finished, report.log, report.state, task.output_dropped, task.flush_failed, task.reaped, client.error, runner.scrape',
  occurred_at DateTime64(3, 'UTC') COMMENT 'When it happened' CODEC(Delta, ZSTD(1)),
  id String COMMENT 'The same for the same statement',
  received_at DateTime64(3, 'UTC') COMMENT 'When we heard of it' CODEC(Delta, ZSTD(1)),
  source LowCardinality(String) COMMENT 'Who says so',
  trace String COMMENT 'traceparent; empty without',
  runner String COMMENT 'Runner; empty when nobody said',
  name String COMMENT 'As the runner calls itself',
  runner_version LowCardinality(String) COMMENT 'Version of its program',
  capacity Nullable(UInt64) COMMENT 'Tasks it may have at a time; NULL: not known',
  labels Array(LowCardinality(String)) COMMENT 'Its labels',
  ephemeral Bool COMMENT 'Whether it takes one task only',
  uptime_ms Nullable(UInt64) COMMENT 'For how long it runs; NULL: not known',
  running Nullable(UInt64) COMMENT 'Tasks it says it has; NULL: not known',
  backoff_ms Nullable(UInt64) COMMENT 'Interval at which it asks, before jitter; NULL: not known',
  buffer_rows Nullable(UInt64) COMMENT 'Log rows that wait; NULL: not known',
  buffer_since Nullable(DateTime64(3, 'UTC')) COMMENT 'Since when the oldest waits; NULL: none, or not known',
  ready Nullable(Bool) COMMENT 'Whether it could take a task; NULL: not known',
  ready_reason LowCardinality(String) COMMENT 'Why it is not ready',
  result LowCardinality(String) COMMENT 'How it ended',
  duration_ms Nullable(UInt64) COMMENT 'How long it took; NULL when nobody said',
  consecutive_empty UInt64 COMMENT 'Polls in a row without a task',
  consecutive_errors UInt64 COMMENT 'Polls in a row that failed',
  error_code LowCardinality(String) COMMENT 'Code of the error; empty without',
  reason LowCardinality(String) COMMENT 'Why; empty when nobody said',
  forced Bool COMMENT 'Whether it was ended by force',
  task_id String COMMENT 'Task at its server; empty in other kinds',
  job_id String COMMENT 'Id of the job at the provider; empty when nobody said',
  run_id String COMMENT 'Run; empty when nobody said',
  queued_at Nullable(DateTime64(3, 'UTC')) COMMENT 'When its job was queued; NULL: not known',
  end_cause LowCardinality(String) COMMENT 'Who ended it: own, server, timeout, cancel, early_termination, unknown',
  flush_ms Nullable(UInt64) COMMENT 'How much of the duration the last reports took; NULL: not known',
  steps UInt64 COMMENT 'Steps it had',
  step_id String COMMENT 'Step',
  number UInt64 COMMENT 'Number of the step',
  log_rows UInt64 COMMENT 'Rows of its log',
  trigger LowCardinality(String) COMMENT 'Why it was sent, or what made the run',
  rows UInt64 COMMENT 'Rows in it',
  bytes UInt64 COMMENT 'Bytes in it',
  rows_left UInt64 COMMENT 'Rows that wait afterwards',
  oldest_since Nullable(DateTime64(3, 'UTC')) COMMENT 'Since when the oldest of them waits; NULL: none',
  attempt UInt64 COMMENT 'Which attempt it is, from 1',
  length UInt64 COMMENT 'How long it was',
  method LowCardinality(String) COMMENT 'Call: fetch_task, update_log, update_task, other',
  attempts UInt64 COMMENT 'How often it was tried',
  rows_lost UInt64 COMMENT 'Rows that were lost',
  sweep LowCardinality(String) COMMENT 'zombie, endless, abandoned, unknown',
  silent_ms Nullable(UInt64) COMMENT 'For how long it had been silent; NULL: not known',
  code LowCardinality(String) COMMENT 'Code of the error; empty without',
  retryable Bool COMMENT 'Whether it may be tried again',
  polls Map(LowCardinality(String), UInt64) COMMENT 'Polls by result since the last look',
  jobs Map(LowCardinality(String), UInt64) COMMENT 'Tasks by result since the last look',
  log_reports Map(LowCardinality(String), UInt64) COMMENT 'Log reports by result since the last look',
  state_reports Map(LowCardinality(String), UInt64) COMMENT 'State reports by result since the last look',
  client_errors Map(LowCardinality(String), UInt64) COMMENT 'Failed calls by method since the last look',
  histograms Array(Tuple(of String, bounds Array(Float64), counts Array(UInt64), sum Float64)) COMMENT 'What durations of polls, jobs, logs and states grew by since the last look: bounds, how many in each bucket, and the sum in seconds',
  INDEX ix_occurred occurred_at TYPE minmax GRANULARITY 1
) ENGINE = ReplacingMergeTree(received_at)
ORDER BY (fleet, subject, kind, occurred_at, id)
TTL toDateTime(occurred_at) + INTERVAL 90 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'What runner processes said, or what their own metrics grew by: polls, tasks, steps, reports. One row an event; who sends one again writes it again: read with FINAL.';

CREATE TABLE IF NOT EXISTS scheduler_events (
  fleet LowCardinality(String) COMMENT 'Fleet',
  subject String COMMENT 'What within the fleet it is about; empty: all of it',
  kind LowCardinality(String) COMMENT 'run.created, run.planned, segment.leased, segment.finished, run.progress, run.finished, queue.depth, queue.dead_lettered, schedule.missed, schedule.caught_up',
  occurred_at DateTime64(3, 'UTC') COMMENT 'When it happened' CODEC(Delta, ZSTD(1)),
  id String COMMENT 'The same for the same statement',
  received_at DateTime64(3, 'UTC') COMMENT 'When we heard of it' CODEC(Delta, ZSTD(1)),
  source LowCardinality(String) COMMENT 'Who says so',
  trace String COMMENT 'traceparent; empty without',
  run_id String COMMENT 'Run; empty when nobody said',
  schedule_id LowCardinality(String) COMMENT 'Schedule; empty when nobody said',
  mode LowCardinality(String) COMMENT 'analysis_only, content_refresh, other',
  trigger String COMMENT 'Why it was sent, or what made the run',
  status LowCardinality(String) COMMENT 'enqueued, no_work, failed of planning; completed, persist_failed, run_missing of a segment; unknown',
  wait_ms Nullable(UInt64) COMMENT 'From the creation of the run to the first look of the planner; NULL: not known',
  latency_ms Nullable(UInt64) COMMENT 'From the creation of the run to the end of planning; NULL: not known',
  images UInt64 COMMENT 'Images in it',
  segments UInt64 COMMENT 'Segments it was split into',
  error_code LowCardinality(String) COMMENT 'Code of the error; empty without',
  segment_id String COMMENT 'Segment within its run',
  attempt UInt64 COMMENT 'Which attempt it is, from 1',
  worker String COMMENT 'Who took it',
  images_with_delta UInt64 COMMENT 'Images with new findings',
  new UInt64 COMMENT 'New findings',
  critical UInt64 COMMENT 'Of those, critical ones',
  high UInt64 COMMENT 'Of those, high ones',
  kev UInt64 COMMENT 'Of those, known to be exploited',
  duration_ms Nullable(UInt64) COMMENT 'How long it took; NULL when nobody said',
  processed UInt64 COMMENT 'Images done; 0 in other kinds',
  total UInt64 COMMENT 'Images in all; 0 in other kinds',
  result LowCardinality(String) COMMENT 'How it ended',
  queue LowCardinality(String) COMMENT 'planner or runner; empty in other kinds',
  depth Nullable(UInt64) COMMENT 'Messages that wait; NULL in other kinds',
  in_flight UInt64 COMMENT 'Messages that are worked on',
  oldest_at Nullable(DateTime64(3, 'UTC')) COMMENT 'Since when the oldest waits; NULL: none, or not known',
  dead_letters UInt64 COMMENT 'Messages that were given up',
  attempts UInt64 COMMENT 'How often it was tried',
  reason LowCardinality(String) COMMENT 'Why; empty when nobody said',
  due_at Nullable(DateTime64(3, 'UTC')) COMMENT 'When it was due; NULL in other kinds',
  late_ms Nullable(UInt64) COMMENT 'How late it was; NULL: not known',
  INDEX ix_occurred occurred_at TYPE minmax GRANULARITY 1
) ENGINE = ReplacingMergeTree(received_at)
ORDER BY (fleet, subject, kind, occurred_at, id)
TTL toDateTime(occurred_at) + INTERVAL 90 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'What schedulers said: runs, plans, segments, queues, missed schedules. One row an event; who sends one again writes it again: read with FINAL.';

CREATE TABLE IF NOT EXISTS reconciler_events (
  fleet LowCardinality(String) COMMENT 'Fleet',
  subject String COMMENT 'What within the fleet it is about; empty: all of it',
  kind LowCardinality(String) COMMENT 'reconciler.tick, reconciler.action, reconciler.effect, reconciler.violation_opened, reconciler.violation_closed, work.moved, work.dispatch_failed',
  occurred_at DateTime64(3, 'UTC') COMMENT 'When it happened' CODEC(Delta, ZSTD(1)),
  id String COMMENT 'The same for the same statement',
  received_at DateTime64(3, 'UTC') COMMENT 'When we heard of it' CODEC(Delta, ZSTD(1)),
  source LowCardinality(String) COMMENT 'Who says so',
  trace String COMMENT 'traceparent; empty without',
  reconciler LowCardinality(String) COMMENT 'Reconciler within the fleet',
  tick_id String COMMENT 'Its tick; empty when nobody said',
  interval_ms Nullable(UInt64) COMMENT 'After so long the next tick is due; NULL: not known',
  wall_ms Nullable(UInt64) COMMENT 'How long the tick took; NULL in other kinds',
  events_drained UInt64 COMMENT 'Events it read',
  events_failed UInt64 COMMENT 'Events it could not apply',
  actions UInt64 COMMENT 'Actions it computed',
  actions_by_type Map(LowCardinality(String), UInt64) COMMENT 'The same by type',
  effects_attempted UInt64 COMMENT 'Side effects begun',
  effects_succeeded UInt64 COMMENT 'Side effects that succeeded',
  effects_failed UInt64 COMMENT 'Side effects that failed',
  violations Nullable(UInt64) COMMENT 'Violations it sees; NULL: not known',
  pending_new UInt64 COMMENT 'Events that wait and were never tried',
  pending_retry UInt64 COMMENT 'Events that wait and were tried in vain',
  pending_oldest_ms Nullable(UInt64) COMMENT 'For how long the oldest waits; NULL: none, or not known',
  draining Bool COMMENT 'Whether it is being stopped',
  breaker_open Bool COMMENT 'Whether it holds its dispatches back',
  failed Bool COMMENT 'Whether a phase of the tick failed',
  type LowCardinality(String) COMMENT 'Type of the action or the effect',
  entity String COMMENT 'What it is about',
  from_state LowCardinality(String) COMMENT 'Where that was',
  to_state LowCardinality(String) COMMENT 'Where it is now',
  outcome LowCardinality(String) COMMENT 'What came of it',
  reason LowCardinality(String) COMMENT 'Why; empty when nobody said',
  duration_ms Nullable(UInt64) COMMENT 'How long it took; NULL when nobody said',
  invariant LowCardinality(String) COMMENT 'What is broken, or holds again',
  message String COMMENT 'What was seen',
  work_id String COMMENT 'Piece of work; empty in other kinds',
  role LowCardinality(String) COMMENT 'Role of the worker',
  attempt UInt64 COMMENT 'Which attempt it is, from 1',
  INDEX ix_occurred occurred_at TYPE minmax GRANULARITY 1
) ENGINE = ReplacingMergeTree(received_at)
ORDER BY (fleet, subject, kind, occurred_at, id)
TTL toDateTime(occurred_at) + INTERVAL 90 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'What reconcilers said: ticks, actions, effects, violations, and how work moved. One row an event; who sends one again writes it again: read with FINAL.';
