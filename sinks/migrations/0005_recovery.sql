-- Recovery: what was stuck, what was asked about it, commanded and done, and how the fleets are
-- (sinks/recovery_rows.py). None is partitioned: their rows are few, and their keys fix no time.

CREATE TABLE IF NOT EXISTS stalls (
  key String COMMENT 'provider:host:job_id',
  n UInt32 COMMENT 'Number of the stall within its job, from 1',
  rev UInt64 COMMENT 'Revision of the job that says so; the version of the row' CODEC(T64, ZSTD(1)),
  received_at DateTime64(3, 'UTC') COMMENT 'When we first heard of the job' CODEC(Delta, ZSTD(1)),
  fleet LowCardinality(String) COMMENT 'Pool or canonical label set of the job',
  repo LowCardinality(String) COMMENT 'owner/name',
  kind LowCardinality(String) COMMENT 'stale_claim, orphan, displaced, runner_lost, stale_queue, missed_completion; flapping once a person was asked for',
  since DateTime64(3, 'UTC') COMMENT 'When the job entered the wrong state',
  opened_at DateTime64(3, 'UTC') COMMENT 'When that was found',
  left_at Nullable(DateTime64(3, 'UTC')) COMMENT 'When the job left the wrong state: its claim was released, it started, completed or was claimed, or the provider told how it is; NULL while it is in it',
  stranded_ms Nullable(UInt64) COMMENT 'left_at minus since; NULL while it is in the wrong state',
  claim String COMMENT 'Handle of the claim that was judged; empty when there was none',
  fence_rev UInt64 COMMENT 'How many facts were known then, those about recovery left out',
  asks UInt32 COMMENT 'Questions to the provider',
  asked_at Nullable(DateTime64(3, 'UTC')) COMMENT 'The last of them',
  answer LowCardinality(String) COMMENT 'Answer to the latest question answered: queued, in_progress, completed, ghost, gone, unknown; empty without',
  answer_detail String COMMENT 'What it was made from',
  answered_at Nullable(DateTime64(3, 'UTC')) COMMENT 'When it came',
  proposals UInt32 COMMENT 'Proposals to the fleet',
  proposed LowCardinality(String) COMMENT 'Command of the last of them; empty without',
  proposed_at Nullable(DateTime64(3, 'UTC')) COMMENT 'When it was proposed',
  withheld LowCardinality(String) COMMENT 'Why the last that was withheld was: paused, dry_run, budget_tick, budget_hour, breaker, cooling; empty when none was',
  withheld_at Nullable(DateTime64(3, 'UTC')) COMMENT 'When it was withheld',
  commands Array(Tuple(attempt UInt32, command String, issued_at Nullable(DateTime64(3, 'UTC')), expires_at Nullable(DateTime64(3, 'UTC')), result String, ended_at Nullable(DateTime64(3, 'UTC')), reason String)) COMMENT 'What was commanded, by attempt, and how it ended: done, refused, cannot, failed, expired; empty: not yet',
  INDEX ix_opened opened_at TYPE minmax GRANULARITY 1
) ENGINE = ReplacingMergeTree(rev)
ORDER BY (key, n)
TTL toDateTime(received_at) + INTERVAL 400 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'One row per stall of a job: a spell in which it was in a wrong state. Of a job with more than 64 the first and the last 32 are told of; a job copied from an earlier attempt has none. What is told later replaces it: read with FINAL.';

CREATE TABLE IF NOT EXISTS probes (
  key String COMMENT 'provider:host:job_id',
  n UInt32 COMMENT 'Number of the stall within its job',
  k UInt32 COMMENT 'Number of the question within its stall',
  asked_at DateTime64(3, 'UTC') COMMENT 'When it was asked; the version of the row: a job that was forgotten counts anew' CODEC(Delta, ZSTD(1)),
  id String COMMENT 'probe|key|n|k',
  fleet LowCardinality(String) COMMENT 'Pool or canonical label set of the job',
  stall LowCardinality(String) COMMENT 'Kind of the stall',
  since DateTime64(3, 'UTC') COMMENT 'When the job entered the wrong state',
  opened_at DateTime64(3, 'UTC') COMMENT 'When that was found',
  expires_at DateTime64(3, 'UTC') COMMENT 'After this nobody need ask',
  claim String COMMENT 'Handle of the claim that was judged; empty when there was none',
  fence_rev UInt64 COMMENT 'How many facts were known then, those about recovery left out',
  repo LowCardinality(String) COMMENT 'owner/name',
  run_id UInt64 COMMENT 'Workflow run; 0 when unknown',
  run_attempt UInt32 COMMENT 'Attempt of the run; 0 when unknown',
  INDEX ix_asked asked_at TYPE minmax GRANULARITY 1
) ENGINE = ReplacingMergeTree(asked_at)
ORDER BY (key, n, k)
TTL toDateTime(asked_at) + INTERVAL 180 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Every question about a job that may be stuck. What was answered stands in stalls. Read with FINAL.';

CREATE TABLE IF NOT EXISTS commands (
  key String COMMENT 'Job; fleet, for the command of a fleet',
  id String COMMENT 'Names job, command and attempt',
  issued_at DateTime64(3, 'UTC') COMMENT 'When it was issued; the version of the row: a dry run issues it again and again' CODEC(Delta, ZSTD(1)),
  job_key String COMMENT 'provider:host:job_id; empty for the command of a fleet',
  fleet LowCardinality(String) COMMENT 'Pool or canonical label set',
  command LowCardinality(String) COMMENT 'release_claim, requeue, close, wake_fleet, quarantine',
  attempt UInt32 COMMENT 'Number of the command within its job',
  n UInt32 COMMENT 'Number of the stall within its job; 0 for the command of a fleet',
  reason LowCardinality(String) COMMENT 'Kind of the stall, or flapping, or starved',
  claim String COMMENT 'Fence: handle of the claim that was judged; empty when there was none',
  fence_rev UInt64 COMMENT 'Fence: how many facts were known then, those about recovery left out',
  since DateTime64(3, 'UTC') COMMENT 'When the wrong state began',
  opened_at DateTime64(3, 'UTC') COMMENT 'When that was found',
  expires_at DateTime64(3, 'UTC') COMMENT 'After this nobody may do it',
  dry_run UInt8 COMMENT '1 when it is not to be executed',
  evidence Array(Tuple(what String, at Nullable(DateTime64(3, 'UTC')), clock String)) COMMENT 'What was seen, when, by which clock',
  repo LowCardinality(String) COMMENT 'owner/name',
  run_id UInt64 COMMENT 'Workflow run; 0 when unknown',
  run_attempt UInt32 COMMENT 'Attempt of the run; 0 when unknown',
  INDEX ix_issued issued_at TYPE minmax GRANULARITY 1
) ENGINE = ReplacingMergeTree(issued_at)
ORDER BY (key, id)
TTL toDateTime(issued_at) + INTERVAL 400 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Every command to an executor, as it was issued last. Read with FINAL; dry_run = 0 are those that were to be executed.';

CREATE TABLE IF NOT EXISTS outcomes (
  key String COMMENT 'As of the command: job, or fleet',
  command_id String COMMENT 'Id of the command',
  kind LowCardinality(String) COMMENT 'command.started, command.ended',
  at DateTime64(3, 'UTC') COMMENT 'When, by the clock of the executor' CODEC(Delta, ZSTD(1)),
  via LowCardinality(String) COMMENT 'Which executor: print, hook, redeliver, github, ...',
  id String COMMENT 'Id of the record',
  job_key String COMMENT 'provider:host:job_id; empty for the command of a fleet',
  fleet LowCardinality(String) COMMENT 'Pool or canonical label set',
  command LowCardinality(String) COMMENT 'release_claim, requeue, close, wake_fleet, quarantine',
  attempt UInt32 COMMENT 'Number of the command within its job',
  n UInt32 COMMENT 'Number of the stall within its job; 0 for the command of a fleet',
  stall LowCardinality(String) COMMENT 'Reason of the command: kind of the stall, or flapping, or starved',
  since DateTime64(3, 'UTC') COMMENT 'When the wrong state began',
  opened_at DateTime64(3, 'UTC') COMMENT 'When that was found',
  claim String COMMENT 'Fence: handle of the claim that was judged; empty when there was none',
  fence_rev UInt64 COMMENT 'Fence: how many facts were known then, those about recovery left out',
  result LowCardinality(String) COMMENT 'done, refused, cannot, failed; empty while it has only started',
  reason String COMMENT 'Why, in words',
  INDEX ix_at at TYPE minmax GRANULARITY 1
) ENGINE = ReplacingMergeTree
ORDER BY (key, command_id, kind, at, via)
TTL toDateTime(at) + INTERVAL 400 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'What executors said about commands: that they begin, and how it ended. A command that nobody did in time has no row; stalls says that it expired. Read with FINAL.';

CREATE TABLE IF NOT EXISTS fleet_states (
  fleet String COMMENT 'Pool or canonical label set',
  rev UInt64 COMMENT 'Version of the row: where the record stood in runners.fleet-states' CODEC(T64, ZSTD(1)),
  deleted UInt8 COMMENT '1 when the pipeline has forgotten the fleet (tombstone). A fleet that is heard of again shows again',
  occurred_at DateTime64(3, 'UTC') COMMENT 'When it became so' CODEC(Delta, ZSTD(1)),
  tick UInt64 COMMENT 'Offset of the tick in runners.fleets that said so',
  runners Map(LowCardinality(String), UInt64) COMMENT 'Runners by state: registered, idle, claimed, starting, busy, drained, gone; no entry is none',
  pending UInt32 COMMENT 'Proposals that wait for a decision',
  in_flight UInt32 COMMENT 'Commands that nobody has ended',
  issued_hour UInt32 COMMENT 'Commands of the last hour',
  breaker LowCardinality(String) COMMENT 'closed, open: its commands mostly fail and none may go, half_open: one may',
  breaker_until Nullable(DateTime64(3, 'UTC')) COMMENT 'Until when it is open; NULL when it is not',
  mode LowCardinality(String) COMMENT 'What recovery may do: live, dry_run, paused',
  switch_by String COMMENT 'Who threw the switch that says so; empty where nobody did, or it is the configuration',
  switch_fleet String COMMENT 'What it was thrown for: the fleet, or empty for all',
  switch_reason String COMMENT 'Why it was thrown',
  switch_at Nullable(DateTime64(3, 'UTC')) COMMENT 'When it was thrown; NULL where it is the configuration'
) ENGINE = ReplacingMergeTree(rev, deleted)
ORDER BY fleet
TTL toDateTime(occurred_at) + INTERVAL 400 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'The latest state of every fleet that recovery knows: runners, commands, breaker, mode. Read with FINAL, which leaves out the forgotten.';
