-- A job's row is versioned by where its record stood in the log, so that a job which was forgotten
-- and is heard of again shows again (sinks/rows.py, version). The version column of a table cannot
-- be replaced: it stays `rev`, and the number of facts has a column of its own.
-- And every column of every view says what it is.

CREATE TABLE IF NOT EXISTS log_epochs (
  topic LowCardinality(String) COMMENT 'Name of the topic',
  log_id String COMMENT 'Id that the broker gave it; a topic that is made anew has another',
  epoch UInt32 COMMENT 'Which life of the topic this is, from 1',
  noted_at DateTime64(3, 'UTC') COMMENT 'When a sink met it first'
) ENGINE = ReplacingMergeTree
ORDER BY (topic, log_id)
SETTINGS non_replicated_deduplication_window = 100
COMMENT 'The lives of topics: a topic that is made anew counts its offsets from 0 again. Part of the version of a row of jobs.';

ALTER TABLE jobs ADD COLUMN IF NOT EXISTS facts UInt64 DEFAULT if(rev < 9223372036854775808, rev, 0) COMMENT 'How many facts are known: the revision of the job' CODEC(T64, ZSTD(1)) AFTER rev;

ALTER TABLE jobs COMMENT COLUMN IF EXISTS rev 'Version of the row: where the record stood in runners.job-states. The revision of the job is facts';

ALTER TABLE jobs COMMENT COLUMN IF EXISTS deleted '1 when the pipeline has forgotten the job (tombstone). A job that is heard of again shows again';

ALTER TABLE jobs COMMENT COLUMN IF EXISTS occurred_at 'When it entered the status';

ALTER TABLE jobs COMMENT COLUMN IF EXISTS received_at 'When we first heard of it';

ALTER TABLE job_transitions COMMENT COLUMN IF EXISTS received_at 'When we first heard of the job';

ALTER TABLE job_timings COMMENT COLUMN IF EXISTS occurred_at 'When the job completed';

ALTER TABLE job_timings COMMENT COLUMN IF EXISTS received_at 'When we first heard of the job';

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

ALTER TABLE queue_now MODIFY COMMENT 'Live jobs by fleet and status, with the oldest of each.';

ALTER TABLE queue_now
  COMMENT COLUMN IF EXISTS fleet 'Pool or canonical label set',
  COMMENT COLUMN IF EXISTS status 'waiting, queued, claimed, starting or running',
  COMMENT COLUMN IF EXISTS jobs 'Live jobs',
  COMMENT COLUMN IF EXISTS unknown_age 'Those of which no fact tells since when',
  COMMENT COLUMN IF EXISTS oldest_since 'Since when the oldest is in the status; NULL when unknown',
  COMMENT COLUMN IF EXISTS oldest_ms 'Its age now; NULL when unknown',
  COMMENT COLUMN IF EXISTS oldest_key 'Its key';

ALTER TABLE windows_merged MODIFY COMMENT 'Windows with their partitions added up; quantiles within 1 %.';

ALTER TABLE windows_merged
  COMMENT COLUMN IF EXISTS fleet 'Pool or canonical label set',
  COMMENT COLUMN IF EXISTS size_s 'Length in seconds: 60, 300 or 3600',
  COMMENT COLUMN IF EXISTS start 'Start of the window (event time)',
  COMMENT COLUMN IF EXISTS family 'queue, claim_to_start, run or total',
  COMMENT COLUMN IF EXISTS partitions 'Partitions that had samples',
  COMMENT COLUMN IF EXISTS closed '1 when no sample can enter any more',
  COMMENT COLUMN IF EXISTS count 'Samples',
  COMMENT COLUMN IF EXISTS sum_ms 'Sum of the samples',
  COMMENT COLUMN IF EXISTS max_ms 'Largest sample',
  COMMENT COLUMN IF EXISTS zeros 'Samples of 0 ms',
  COMMENT COLUMN IF EXISTS bins 'Samples by bin: bin i holds values in (g^(i-1), g^i] ms, g = 1.01/0.99',
  COMMENT COLUMN IF EXISTS mean_ms 'Mean',
  COMMENT COLUMN IF EXISTS p50_ms 'Median, at most 1 % off',
  COMMENT COLUMN IF EXISTS p90_ms '90 % are at most this, at most 1 % off',
  COMMENT COLUMN IF EXISTS p95_ms '95 % are at most this, at most 1 % off',
  COMMENT COLUMN IF EXISTS p99_ms '99 % are at most this, at most 1 % off';

ALTER TABLE window_conclusions_merged MODIFY COMMENT 'Completed jobs per window and conclusion, partitions added up.';

ALTER TABLE window_conclusions_merged
  COMMENT COLUMN IF EXISTS fleet 'Pool or canonical label set',
  COMMENT COLUMN IF EXISTS size_s 'Length in seconds: 60, 300 or 3600',
  COMMENT COLUMN IF EXISTS start 'Start of the window (event time)',
  COMMENT COLUMN IF EXISTS conclusion 'success, failure, ...',
  COMMENT COLUMN IF EXISTS closed '1 when no job can enter any more',
  COMMENT COLUMN IF EXISTS jobs 'Completed jobs';

ALTER TABLE depth_1m MODIFY COMMENT 'Depth and oldest age per fleet, status and minute: the last tick of each partition in the minute, added up.';

ALTER TABLE depth_1m
  COMMENT COLUMN IF EXISTS fleet 'Pool or canonical label set',
  COMMENT COLUMN IF EXISTS status 'Status of the jobs counted',
  COMMENT COLUMN IF EXISTS minute 'Start of the minute',
  COMMENT COLUMN IF EXISTS jobs 'Live jobs',
  COMMENT COLUMN IF EXISTS oldest_ms 'Age of the job longest in the status; 0 when there is none';

ALTER TABLE timings_5m MODIFY COMMENT 'Exact quantiles per 5 minutes of completion, fleet, repository, conclusion.';

ALTER TABLE timings_5m
  COMMENT COLUMN IF EXISTS bucket 'Start of the 5 minutes in which the jobs completed',
  COMMENT COLUMN IF EXISTS fleet 'Pool or canonical label set',
  COMMENT COLUMN IF EXISTS repo 'owner/name',
  COMMENT COLUMN IF EXISTS conclusion 'How they ended',
  COMMENT COLUMN IF EXISTS jobs 'Completed jobs',
  COMMENT COLUMN IF EXISTS no_queue 'Those without a queue time',
  COMMENT COLUMN IF EXISTS no_run 'Those without a run time',
  COMMENT COLUMN IF EXISTS queue_p50_ms 'Waited for a runner: median, exact',
  COMMENT COLUMN IF EXISTS queue_p95_ms 'Waited for a runner: 95 % are at most this, exact',
  COMMENT COLUMN IF EXISTS queue_p99_ms 'Waited for a runner: 99 % are at most this, exact',
  COMMENT COLUMN IF EXISTS queue_max_ms 'Waited for a runner: the longest',
  COMMENT COLUMN IF EXISTS run_p50_ms 'Executed: median, exact',
  COMMENT COLUMN IF EXISTS run_p95_ms 'Executed: 95 % are at most this, exact',
  COMMENT COLUMN IF EXISTS run_p99_ms 'Executed: 99 % are at most this, exact',
  COMMENT COLUMN IF EXISTS run_max_ms 'Executed: the longest',
  COMMENT COLUMN IF EXISTS total_p50_ms 'From queued to completed: median, exact',
  COMMENT COLUMN IF EXISTS total_p95_ms 'From queued to completed: 95 % are at most this, exact',
  COMMENT COLUMN IF EXISTS total_p99_ms 'From queued to completed: 99 % are at most this, exact',
  COMMENT COLUMN IF EXISTS total_max_ms 'From queued to completed: the longest';
