-- The tables. Rules that hold for every statement in this folder (tests/test_sink_schema.py):
--   * it may run twice, and on two machines at once: IF NOT EXISTS or OR REPLACE, always;
--   * it ends with a semicolon at the end of a line, and nowhere else is there such a semicolon;
--   * it names no database: it runs in the one of the URL.
-- Rules that hold for every table:
--   * ReplacingMergeTree whose sorting key is the row identity and nothing but the row identity.
--     A job's fleet, times and conclusion may change from one revision to the next. If one of them
--     were part of the sorting or partition key, the old version would stay beside the new for ever;
--   * the version is `rev` (what is known), never a wall clock;
--   * partitioned only by what is fixed for the identity. Jobs have no such time, so their tables
--     are not partitioned. Their key is nearly in time order (providers count job ids up), which is
--     why a minmax index on a time prunes well;
--   * a deduplication window, without which ClickHouse ignores insert_deduplication_token;
--   * times are UTC with milliseconds, durations are integers in milliseconds and end in _ms;
--   * unknown is NULL for times and durations, '' for text, and never 0.

CREATE TABLE IF NOT EXISTS events_raw (
  topic LowCardinality(String) COMMENT 'Topic it was read from',
  partition UInt32 COMMENT 'Partition it was read from',
  `offset` UInt64 COMMENT 'Offset it was read from' CODEC(Delta, ZSTD(1)),
  id String COMMENT 'Delivery id or event id; a redelivery keeps it',
  kind LowCardinality(String) COMMENT 'github.workflow_job, job.claimed, ...',
  version UInt16 COMMENT 'Schema version of the record',
  source LowCardinality(String) COMMENT 'Who said so',
  occurred_at DateTime64(3, 'UTC') COMMENT 'When it happened, by the best clock of the source' CODEC(Delta, ZSTD(1)),
  received_at DateTime64(3, 'UTC') COMMENT 'When it reached us' CODEC(Delta, ZSTD(1)),
  key String COMMENT 'Kafka key: job key or run key',
  trace String COMMENT 'W3C traceparent, empty when there was none',
  host LowCardinality(String) COMMENT 'Provider host, part of the job key',
  headers Map(LowCardinality(String), String) COMMENT 'Headers of the delivery',
  payload String COMMENT 'Webhook body, or the whole lifecycle record; byte for byte' CODEC(ZSTD(3)),
  unreadable LowCardinality(String) COMMENT 'Why the pipeline cannot use it; empty for a good record',
  INDEX ix_id id TYPE bloom_filter(0.01) GRANULARITY 4
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(received_at)
ORDER BY (key, received_at, topic, partition, `offset`, id)
TTL toDateTime(received_at) + INTERVAL 30 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Every record of runners.webhooks and runners.lifecycle as it arrived, readable or not. A record is a line in a log, so it is identified by where it stood; the id is part of the key because a topic that is created anew counts from 0 again.';

CREATE TABLE IF NOT EXISTS jobs (
  key String COMMENT 'provider:host:job_id',
  rev UInt64 COMMENT 'How many facts are known; the version of the row. 2^63 for a deleted job' CODEC(T64, ZSTD(1)),
  deleted UInt8 COMMENT '1 when the retention of the pipeline has passed (tombstone)',
  occurred_at DateTime64(3, 'UTC') COMMENT 'When the latest known fact happened' CODEC(Delta, ZSTD(1)),
  received_at DateTime64(3, 'UTC') COMMENT 'When the latest known fact reached us' CODEC(Delta, ZSTD(1)),
  provider LowCardinality(String) COMMENT 'github, gitea, gitlab, ...',
  host LowCardinality(String) COMMENT 'Host of the provider',
  job_id String COMMENT 'Id of the job at the provider; a re-run has its own',
  status LowCardinality(String) COMMENT 'waiting, queued, claimed, starting, running, completed',
  since Nullable(DateTime64(3, 'UTC')) COMMENT 'When it entered the status',
  fleet LowCardinality(String) COMMENT 'Pool or canonical label set',
  conclusion LowCardinality(String) COMMENT 'success, failure, ...; empty while not completed',
  run_id UInt64 COMMENT 'Workflow run; 0 when unknown',
  run_attempt UInt32 COMMENT 'Attempt of the run; 0 when unknown',
  repo LowCardinality(String) COMMENT 'owner/name',
  workflow LowCardinality(String) COMMENT 'Name of the workflow',
  name String COMMENT 'Name of the job',
  branch LowCardinality(String) COMMENT 'Head branch',
  sha String COMMENT 'Head commit',
  url String COMMENT 'Page of the job at the provider',
  labels Array(LowCardinality(String)) COMMENT 'Canonical label set',
  pool LowCardinality(String) COMMENT 'Pool the dispatcher named',
  runner_id Nullable(Int64) COMMENT 'Runner observed to execute it',
  runner_name String COMMENT 'Runner observed to execute it; empty when unknown',
  runner_group LowCardinality(String) COMMENT 'Group of the runner',
  waiting_at Nullable(DateTime64(3, 'UTC')) COMMENT 'Behind an approval gate since',
  queued_at Nullable(DateTime64(3, 'UTC')) COMMENT 'Queued at',
  claimed_at Nullable(DateTime64(3, 'UTC')) COMMENT 'Claimed by a dispatcher at',
  minted_at Nullable(DateTime64(3, 'UTC')) COMMENT 'Runner configuration minted at',
  started_at Nullable(DateTime64(3, 'UTC')) COMMENT 'Started at',
  completed_at Nullable(DateTime64(3, 'UTC')) COMMENT 'Completed at',
  gated_ms UInt64 COMMENT 'Approval-gate time, already taken out of queue_ms',
  abandoned_ms Nullable(UInt64) COMMENT 'Wait of a job that was cancelled before it started',
  copied UInt8 COMMENT '1 when copied from an earlier attempt of the run: counts nowhere',
  queue_ms Nullable(UInt64) COMMENT 'started or claimed minus queued, minus approval waits',
  claim_to_start_ms Nullable(UInt64) COMMENT 'started minus claimed',
  run_ms Nullable(UInt64) COMMENT 'completed minus started',
  total_ms Nullable(UInt64) COMMENT 'completed minus queued',
  claims Array(String) COMMENT 'Claim handles, in the order of the record',
  run_started_at Nullable(DateTime64(3, 'UTC')) COMMENT 'Parent run started at',
  run_completed_at Nullable(DateTime64(3, 'UTC')) COMMENT 'Parent run completed at',
  run_conclusion LowCardinality(String) COMMENT 'Conclusion of the parent run; empty when unknown',
  causes Array(LowCardinality(String)) COMMENT 'What the known facts were made from',
  INDEX ix_status status TYPE set(16) GRANULARITY 4,
  INDEX ix_run run_id TYPE bloom_filter(0.01) GRANULARITY 4,
  INDEX ix_completed completed_at TYPE minmax GRANULARITY 1
) ENGINE = ReplacingMergeTree(rev, deleted)
ORDER BY key
TTL toDateTime(received_at) + INTERVAL 400 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'The latest state of every job. Read it through jobs_latest, or with FINAL.';

CREATE TABLE IF NOT EXISTS job_transitions (
  key String COMMENT 'provider:host:job_id',
  status LowCardinality(String) COMMENT 'What the job became: waiting, queued, claimed, starting, released, running, completed',
  claim String COMMENT 'Claim handle for claimed, starting and released; else empty',
  rev UInt64 COMMENT 'Revision of the job that says so; the version of the row' CODEC(T64, ZSTD(1)),
  at DateTime64(3, 'UTC') COMMENT 'When, by the best clock known' CODEC(Delta, ZSTD(1)),
  clock LowCardinality(String) COMMENT 'Which clock said so: provider, delivery, step, runner, received; empty when not recorded',
  cause LowCardinality(String) COMMENT 'Reason of a release or conclusion of a completion; else empty',
  runner String COMMENT 'Runner of the claim, or the one observed to execute the job',
  fleet LowCardinality(String) COMMENT 'Pool or canonical label set',
  repo LowCardinality(String) COMMENT 'owner/name',
  received_at DateTime64(3, 'UTC') COMMENT 'When the latest known fact reached us' CODEC(Delta, ZSTD(1)),
  INDEX ix_at at TYPE minmax GRANULARITY 1
) ENGINE = ReplacingMergeTree(rev)
ORDER BY (key, status, claim)
TTL toDateTime(received_at) + INTERVAL 180 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'One row per step of a job that is known: each milestone once, each claim step once per claim. Derived from the state, so a late or reordered event corrects a row instead of adding one. Read with FINAL.';

CREATE TABLE IF NOT EXISTS job_timings (
  key String COMMENT 'provider:host:job_id',
  rev UInt64 COMMENT 'Revision of the job; the version of the row' CODEC(T64, ZSTD(1)),
  occurred_at DateTime64(3, 'UTC') COMMENT 'When the latest known fact happened' CODEC(Delta, ZSTD(1)),
  received_at DateTime64(3, 'UTC') COMMENT 'When the latest known fact reached us' CODEC(Delta, ZSTD(1)),
  provider LowCardinality(String) COMMENT 'github, gitea, gitlab, ...',
  host LowCardinality(String) COMMENT 'Host of the provider',
  job_id String COMMENT 'Id of the job at the provider',
  fleet LowCardinality(String) COMMENT 'Pool or canonical label set',
  conclusion LowCardinality(String) COMMENT 'How it ended',
  run_id UInt64 COMMENT 'Workflow run; 0 when unknown',
  run_attempt UInt32 COMMENT 'Attempt of the run; 0 when unknown',
  repo LowCardinality(String) COMMENT 'owner/name',
  workflow LowCardinality(String) COMMENT 'Name of the workflow',
  name LowCardinality(String) COMMENT 'Name of the job',
  branch LowCardinality(String) COMMENT 'Head branch',
  labels Array(LowCardinality(String)) COMMENT 'Canonical label set',
  runner_name String COMMENT 'Runner observed to execute it',
  runner_group LowCardinality(String) COMMENT 'Group of the runner',
  copied UInt8 COMMENT '1 when copied from an earlier attempt of the run: leave it out of statistics',
  claims UInt32 COMMENT 'How many claims it took',
  queued_at Nullable(DateTime64(3, 'UTC')) COMMENT 'Queued at',
  claimed_at Nullable(DateTime64(3, 'UTC')) COMMENT 'Claimed by a dispatcher at',
  started_at Nullable(DateTime64(3, 'UTC')) COMMENT 'Started at',
  completed_at Nullable(DateTime64(3, 'UTC')) COMMENT 'Completed at',
  gated_ms UInt64 COMMENT 'Approval-gate time, already taken out of queue_ms',
  abandoned_ms Nullable(UInt64) COMMENT 'Wait of a job that was cancelled before it started',
  queue_ms Nullable(UInt64) COMMENT 'Waited for a runner',
  queue_missing LowCardinality(String) COMMENT 'Why queue_ms is NULL',
  queue_start_clock LowCardinality(String) COMMENT 'Clock of the first bound',
  queue_end_clock LowCardinality(String) COMMENT 'Clock of the last bound',
  queue_clamped_ms UInt64 COMMENT 'How far below 0 the raw difference was',
  claim_to_start_ms Nullable(UInt64) COMMENT 'From claim to start',
  claim_to_start_missing LowCardinality(String) COMMENT 'Why claim_to_start_ms is NULL',
  claim_to_start_start_clock LowCardinality(String) COMMENT 'Clock of the first bound',
  claim_to_start_end_clock LowCardinality(String) COMMENT 'Clock of the last bound',
  claim_to_start_clamped_ms UInt64 COMMENT 'How far below 0 the raw difference was',
  run_ms Nullable(UInt64) COMMENT 'Executed',
  run_missing LowCardinality(String) COMMENT 'Why run_ms is NULL',
  run_start_clock LowCardinality(String) COMMENT 'Clock of the first bound',
  run_end_clock LowCardinality(String) COMMENT 'Clock of the last bound',
  run_clamped_ms UInt64 COMMENT 'How far below 0 the raw difference was',
  total_ms Nullable(UInt64) COMMENT 'From queued to completed',
  total_missing LowCardinality(String) COMMENT 'Why total_ms is NULL',
  total_start_clock LowCardinality(String) COMMENT 'Clock of the first bound',
  total_end_clock LowCardinality(String) COMMENT 'Clock of the last bound',
  total_clamped_ms UInt64 COMMENT 'How far below 0 the raw difference was',
  INDEX ix_completed completed_at TYPE minmax GRANULARITY 1
) ENGINE = ReplacingMergeTree(rev)
ORDER BY key
TTL toDateTime(received_at) + INTERVAL 400 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'One row per completed job, with every timing and where it came from. Late facts may revise it: read with FINAL, never sum or count the bare table.';

CREATE TABLE IF NOT EXISTS windows (
  fleet LowCardinality(String) COMMENT 'Pool or canonical label set',
  size_s UInt32 COMMENT 'Length in seconds: 60, 300 or 3600',
  start DateTime64(3, 'UTC') COMMENT 'Start of the window (event time)' CODEC(Delta, ZSTD(1)),
  partition UInt32 COMMENT 'Partition of runners.jobs this part comes from; a window is the sum over partitions',
  family LowCardinality(String) COMMENT 'queue, claim_to_start, run or total',
  rev UInt64 COMMENT 'Version of the row' CODEC(T64, ZSTD(1)),
  closed UInt8 COMMENT '1 when no sample can enter any more',
  occurred_at DateTime64(3, 'UTC') COMMENT 'When this version was made' CODEC(Delta, ZSTD(1)),
  count UInt64 COMMENT 'Samples' CODEC(T64, ZSTD(1)),
  sum_ms UInt64 COMMENT 'Sum of the samples' CODEC(T64, ZSTD(1)),
  max_ms UInt64 COMMENT 'Largest sample' CODEC(T64, ZSTD(1)),
  zeros UInt64 COMMENT 'Samples of 0 ms' CODEC(T64, ZSTD(1)),
  bins Map(Int32, UInt64) COMMENT 'Samples by bin: bin i holds values in (g^(i-1), g^i] ms, g = 1.01/0.99'
) ENGINE = ReplacingMergeTree(rev)
PARTITION BY toYYYYMM(start)
ORDER BY (fleet, size_s, start, family, partition)
TTL toDateTime(start) + INTERVAL 180 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Timings per fleet and tumbling window, one row per partition and family. Read it through windows_merged.';

CREATE TABLE IF NOT EXISTS window_conclusions (
  fleet LowCardinality(String) COMMENT 'Pool or canonical label set',
  size_s UInt32 COMMENT 'Length in seconds: 60, 300 or 3600',
  start DateTime64(3, 'UTC') COMMENT 'Start of the window (event time)' CODEC(Delta, ZSTD(1)),
  partition UInt32 COMMENT 'Partition of runners.jobs this part comes from',
  rev UInt64 COMMENT 'Version of the row' CODEC(T64, ZSTD(1)),
  closed UInt8 COMMENT '1 when no job can enter any more',
  conclusions Map(LowCardinality(String), UInt64) COMMENT 'Completed jobs by conclusion'
) ENGINE = ReplacingMergeTree(rev)
PARTITION BY toYYYYMM(start)
ORDER BY (fleet, size_s, start, partition)
TTL toDateTime(start) + INTERVAL 180 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Completed jobs by conclusion per fleet and tumbling window, one row per partition. Read it through window_conclusions_merged.';

CREATE TABLE IF NOT EXISTS gauges (
  fleet LowCardinality(String) COMMENT 'Pool or canonical label set',
  status LowCardinality(String) COMMENT 'Status of the jobs counted',
  occurred_at DateTime64(3, 'UTC') COMMENT 'Time of the tick' CODEC(DoubleDelta, ZSTD(1)),
  partition UInt32 COMMENT 'Partition of runners.jobs this part comes from',
  received_at DateTime64(3, 'UTC') COMMENT 'When the tick reached the fold' CODEC(Delta, ZSTD(1)),
  count UInt64 COMMENT 'Live jobs' CODEC(T64, ZSTD(1)),
  oldest_ms UInt64 COMMENT 'Age of the job longest in the status; 0 when there is none' CODEC(T64, ZSTD(1))
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (fleet, status, occurred_at, partition)
TTL toDateTime(occurred_at) + INTERVAL 90 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Live jobs per fleet and status at every tick, one row per partition. Read it through depth_1m.';

CREATE TABLE IF NOT EXISTS dead_letters (
  topic LowCardinality(String) COMMENT 'Topic of the record that could not be handled',
  partition UInt32 COMMENT 'Its partition',
  `offset` UInt64 COMMENT 'Its offset',
  id String COMMENT 'topic:partition:offset',
  source LowCardinality(String) COMMENT 'Who refused it',
  stage LowCardinality(String) COMMENT 'Which step refused it: normalise, fold, sink',
  reason LowCardinality(String) COMMENT 'Why, as a bounded word',
  error String COMMENT 'What was wrong, where' CODEC(ZSTD(1)),
  occurred_at DateTime64(3, 'UTC') COMMENT 'When the record was written, or refused' CODEC(Delta, ZSTD(1)),
  received_at DateTime64(3, 'UTC') COMMENT 'When it was refused' CODEC(Delta, ZSTD(1)),
  key String COMMENT 'Kafka key of the letter',
  trace String COMMENT 'W3C traceparent, empty when there was none',
  record_key String COMMENT 'Key of the record, byte for byte' CODEC(ZSTD(1)),
  record_value String COMMENT 'Value of the record, byte for byte' CODEC(ZSTD(3)),
  record_headers Map(LowCardinality(String), String) COMMENT 'Headers of the record'
) ENGINE = ReplacingMergeTree
ORDER BY (topic, partition, `offset`, stage)
TTL toDateTime(received_at) + INTERVAL 30 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Records that could not be handled, with all that is needed to replay them.';
