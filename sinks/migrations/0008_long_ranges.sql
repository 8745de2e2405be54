-- What dashboards ask over days. Samples of depth come every few seconds from every partition: as many
-- in a month as a hundred million. The same every five minutes and every hour are projections, which
-- ClickHouse keeps up by itself; the latest of a partition is the latest however often a sample was
-- written, so they are right before merges, too.

ALTER TABLE gauges MODIFY SETTING deduplicate_merge_projection_mode = 'rebuild';

ALTER TABLE gauges ADD PROJECTION IF NOT EXISTS five_minutes (
  SELECT
    fleet, status, partition, toStartOfFiveMinutes(occurred_at),
    argMax(count, occurred_at), argMax(oldest_ms, occurred_at)
  GROUP BY fleet, status, partition, toStartOfFiveMinutes(occurred_at)
);

ALTER TABLE gauges ADD PROJECTION IF NOT EXISTS one_hour (
  SELECT
    fleet, status, partition, toStartOfHour(occurred_at),
    argMax(count, occurred_at), argMax(oldest_ms, occurred_at)
  GROUP BY fleet, status, partition, toStartOfHour(occurred_at)
);

ALTER TABLE gauges MATERIALIZE PROJECTION IF EXISTS five_minutes;

ALTER TABLE gauges MATERIALIZE PROJECTION IF EXISTS one_hour;

-- Word for word what the projections hold, or they would not be used.
CREATE OR REPLACE VIEW depth_5m AS
SELECT fleet, status, bucket, sum(last_count) AS jobs, max(last_oldest_ms) AS oldest_ms
FROM (
  SELECT
    fleet, status, partition,
    toStartOfFiveMinutes(occurred_at) AS bucket,
    argMax(count, occurred_at) AS last_count,
    argMax(oldest_ms, occurred_at) AS last_oldest_ms
  FROM gauges
  GROUP BY fleet, status, partition, bucket
)
GROUP BY fleet, status, bucket;

ALTER TABLE depth_5m MODIFY COMMENT 'Depth and oldest age per fleet, status and 5 minutes: the last tick of each partition in them, added up. For ranges of days.';

ALTER TABLE depth_5m
  COMMENT COLUMN IF EXISTS fleet 'Pool or canonical label set',
  COMMENT COLUMN IF EXISTS status 'Status of the jobs counted',
  COMMENT COLUMN IF EXISTS bucket 'Start of the 5 minutes',
  COMMENT COLUMN IF EXISTS jobs 'Live jobs',
  COMMENT COLUMN IF EXISTS oldest_ms 'Age of the job longest in the status; 0 when there is none';

CREATE OR REPLACE VIEW depth_1h AS
SELECT fleet, status, bucket, sum(last_count) AS jobs, max(last_oldest_ms) AS oldest_ms
FROM (
  SELECT
    fleet, status, partition,
    toStartOfHour(occurred_at) AS bucket,
    argMax(count, occurred_at) AS last_count,
    argMax(oldest_ms, occurred_at) AS last_oldest_ms
  FROM gauges
  GROUP BY fleet, status, partition, bucket
)
GROUP BY fleet, status, bucket;

ALTER TABLE depth_1h MODIFY COMMENT 'Depth and oldest age per fleet, status and hour: the last tick of each partition in it, added up. For ranges of weeks.';

ALTER TABLE depth_1h
  COMMENT COLUMN IF EXISTS fleet 'Pool or canonical label set',
  COMMENT COLUMN IF EXISTS status 'Status of the jobs counted',
  COMMENT COLUMN IF EXISTS bucket 'Start of the hour',
  COMMENT COLUMN IF EXISTS jobs 'Live jobs',
  COMMENT COLUMN IF EXISTS oldest_ms 'Age of the job longest in the status; 0 when there is none';

-- Keys are nearly in time order, so what came in the last minutes lies together.
ALTER TABLE events_raw ADD INDEX IF NOT EXISTS ix_received received_at TYPE minmax GRANULARITY 1;

ALTER TABLE events_raw MATERIALIZE INDEX IF EXISTS ix_received;
