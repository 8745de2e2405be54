-- What started a job and where its code comes from, and the steps it was made of. And a job's timings
-- say all that its row in jobs says of what it is (sinks/job_rows.py, ATTRIBUTES).

ALTER TABLE jobs ADD COLUMN IF NOT EXISTS actor LowCardinality(String) COMMENT 'Who started the run; as long as that is unknown, who caused the latest event of the job' AFTER pool;

ALTER TABLE jobs ADD COLUMN IF NOT EXISTS trigger LowCardinality(String) COMMENT 'Event that started the run: push, pull_request, schedule, ...; empty when unknown' AFTER actor;

ALTER TABLE jobs ADD COLUMN IF NOT EXISTS pull_request UInt64 COMMENT 'Number of the pull request; 0 when unknown or none, and for one from a fork of GitHub' AFTER trigger;

ALTER TABLE jobs ADD COLUMN IF NOT EXISTS head_repo LowCardinality(String) COMMENT 'Where the code comes from; another than repo: a fork' AFTER pull_request;

ALTER TABLE job_timings ADD COLUMN IF NOT EXISTS sha String COMMENT 'Head commit' AFTER branch;

ALTER TABLE job_timings ADD COLUMN IF NOT EXISTS url String COMMENT 'Page of the job at the provider' AFTER sha;

ALTER TABLE job_timings ADD COLUMN IF NOT EXISTS pool LowCardinality(String) COMMENT 'Pool the dispatcher named' AFTER labels;

ALTER TABLE job_timings ADD COLUMN IF NOT EXISTS actor LowCardinality(String) COMMENT 'Who started the run; as long as that is unknown, who caused the latest event of the job' AFTER pool;

ALTER TABLE job_timings ADD COLUMN IF NOT EXISTS trigger LowCardinality(String) COMMENT 'Event that started the run: push, pull_request, schedule, ...; empty when unknown' AFTER actor;

ALTER TABLE job_timings ADD COLUMN IF NOT EXISTS pull_request UInt64 COMMENT 'Number of the pull request; 0 when unknown or none, and for one from a fork of GitHub' AFTER trigger;

ALTER TABLE job_timings ADD COLUMN IF NOT EXISTS head_repo LowCardinality(String) COMMENT 'Where the code comes from; another than repo: a fork' AFTER pull_request;

CREATE TABLE IF NOT EXISTS job_steps (
  key String COMMENT 'provider:host:job_id',
  number UInt32 COMMENT 'Number of the step within its job; they need not count up by 1',
  rev UInt64 COMMENT 'Revision of the job that says so; the version of the row' CODEC(T64, ZSTD(1)),
  name LowCardinality(String) COMMENT 'Name of the step',
  conclusion LowCardinality(String) COMMENT 'success, failure, skipped, ...; empty while not completed',
  started_at Nullable(DateTime64(3, 'UTC')) COMMENT 'Started at',
  completed_at Nullable(DateTime64(3, 'UTC')) COMMENT 'Completed at',
  run_ms Nullable(UInt64) COMMENT 'completed minus started; NULL when one of them is unknown, or they cross',
  fleet LowCardinality(String) COMMENT 'Pool or canonical label set of the job',
  repo LowCardinality(String) COMMENT 'owner/name',
  workflow LowCardinality(String) COMMENT 'Name of the workflow',
  job_name LowCardinality(String) COMMENT 'Name of the job',
  received_at DateTime64(3, 'UTC') COMMENT 'When we first heard of the job' CODEC(Delta, ZSTD(1)),
  INDEX ix_started started_at TYPE minmax GRANULARITY 1
) ENGINE = ReplacingMergeTree(rev)
ORDER BY (key, number)
TTL toDateTime(received_at) + INTERVAL 180 DAY
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'One row per step of a job, of the first 128 by number; a job copied from an earlier attempt has none. What is told later replaces it: read with FINAL.';

-- The view again: what * stands for was settled when it was made.

CREATE OR REPLACE VIEW jobs_latest AS
SELECT * EXCEPT (deleted, facts) REPLACE (facts AS rev) FROM jobs FINAL WHERE deleted = 0;

ALTER TABLE jobs_latest MODIFY COMMENT 'The latest state of every job that is not forgotten.';

ALTER TABLE jobs_latest
  COMMENT COLUMN IF EXISTS key 'provider:host:job_id',
  COMMENT COLUMN IF EXISTS rev 'How many facts are known: the revision of the job',
  COMMENT COLUMN IF EXISTS occurred_at 'When it entered the status',
  COMMENT COLUMN IF EXISTS received_at 'When we first heard of it',
  COMMENT COLUMN IF EXISTS provider 'github, gitea, gitlab, ...',
  COMMENT COLUMN IF EXISTS host 'Host of the provider',
  COMMENT COLUMN IF EXISTS job_id 'Id of the job at the provider; a re-run has its own',
  COMMENT COLUMN IF EXISTS status 'waiting, queued, claimed, starting, running, completed',
  COMMENT COLUMN IF EXISTS since 'When it entered the status',
  COMMENT COLUMN IF EXISTS fleet 'Pool or canonical label set',
  COMMENT COLUMN IF EXISTS conclusion 'success, failure, ...; empty while not completed',
  COMMENT COLUMN IF EXISTS run_id 'Workflow run; 0 when unknown',
  COMMENT COLUMN IF EXISTS run_attempt 'Attempt of the run; 0 when unknown',
  COMMENT COLUMN IF EXISTS repo 'owner/name',
  COMMENT COLUMN IF EXISTS workflow 'Name of the workflow',
  COMMENT COLUMN IF EXISTS name 'Name of the job',
  COMMENT COLUMN IF EXISTS branch 'Head branch',
  COMMENT COLUMN IF EXISTS sha 'Head commit',
  COMMENT COLUMN IF EXISTS url 'Page of the job at the provider',
  COMMENT COLUMN IF EXISTS labels 'Canonical label set',
  COMMENT COLUMN IF EXISTS pool 'Pool the dispatcher named',
  COMMENT COLUMN IF EXISTS actor 'Who started the run; as long as that is unknown, who caused the latest event of the job',
  COMMENT COLUMN IF EXISTS trigger 'Event that started the run: push, pull_request, schedule, ...; empty when unknown',
  COMMENT COLUMN IF EXISTS pull_request 'Number of the pull request; 0 when unknown or none, and for one from a fork of GitHub',
  COMMENT COLUMN IF EXISTS head_repo 'Where the code comes from; another than repo: a fork',
  COMMENT COLUMN IF EXISTS runner_id 'Runner observed to execute it',
  COMMENT COLUMN IF EXISTS runner_name 'Runner observed to execute it; empty when unknown',
  COMMENT COLUMN IF EXISTS runner_group 'Group of the runner',
  COMMENT COLUMN IF EXISTS waiting_at 'Behind an approval gate since',
  COMMENT COLUMN IF EXISTS queued_at 'Queued at',
  COMMENT COLUMN IF EXISTS claimed_at 'Claimed by a dispatcher at',
  COMMENT COLUMN IF EXISTS minted_at 'Runner configuration minted at',
  COMMENT COLUMN IF EXISTS started_at 'Started at',
  COMMENT COLUMN IF EXISTS completed_at 'Completed at',
  COMMENT COLUMN IF EXISTS gated_ms 'Approval-gate time, already taken out of queue_ms',
  COMMENT COLUMN IF EXISTS abandoned_ms 'Wait of a job that was cancelled before it started',
  COMMENT COLUMN IF EXISTS copied '1 when copied from an earlier attempt of the run: counts nowhere',
  COMMENT COLUMN IF EXISTS queue_ms 'started or claimed minus queued, minus approval waits',
  COMMENT COLUMN IF EXISTS claim_to_start_ms 'started minus claimed',
  COMMENT COLUMN IF EXISTS run_ms 'completed minus started',
  COMMENT COLUMN IF EXISTS total_ms 'completed minus queued',
  COMMENT COLUMN IF EXISTS claims 'Claim handles, in the order of the record',
  COMMENT COLUMN IF EXISTS run_started_at 'Parent run started at',
  COMMENT COLUMN IF EXISTS run_completed_at 'Parent run completed at',
  COMMENT COLUMN IF EXISTS run_conclusion 'Conclusion of the parent run; empty when unknown',
  COMMENT COLUMN IF EXISTS causes 'What the known facts were made from';
