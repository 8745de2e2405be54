-- The views people and dashboards read. A view has no rows of its own, so it cannot be wrong twice:
-- a job's timing may be revised by a later fact, and a materialised roll-up would keep the old value.

CREATE OR REPLACE VIEW jobs_latest AS
SELECT * EXCEPT (deleted) FROM jobs FINAL WHERE deleted = 0;

-- Live jobs by fleet and status. `unknown_age` counts jobs of which no fact tells since when.
CREATE OR REPLACE VIEW queue_now AS
SELECT
  fleet,
  status,
  count() AS jobs,
  countIf(since IS NULL) AS unknown_age,
  min(since) AS oldest_since,
  greatest(0, dateDiff('millisecond', min(since), now64(3, 'UTC'))) AS oldest_ms,
  argMin(key, since) AS oldest_key
FROM jobs FINAL
WHERE deleted = 0 AND status != 'completed' AND copied = 0
GROUP BY fleet, status;

-- Windows with their partitions added up. Quantiles come from the merged bins: the element at rank
-- floor(q * count), which is what quantileExact takes, lies in the first bin whose cumulated count
-- exceeds the rank. The bin's estimate 2 g^i / (g + 1) is at most 1 % off any value in it.
CREATE OR REPLACE VIEW windows_merged AS
SELECT
  fleet, size_s, start, family, partitions, closed, count, sum_ms, max_ms, zeros, bins,
  if(count = 0, NULL, sum_ms / count) AS mean_ms,
  least(toFloat64(max_ms), arrayElement(estimates, greatest(1, arrayFirstIndex(c -> c > floor(0.50 * count), cumulated)))) AS p50_ms,
  least(toFloat64(max_ms), arrayElement(estimates, greatest(1, arrayFirstIndex(c -> c > floor(0.90 * count), cumulated)))) AS p90_ms,
  least(toFloat64(max_ms), arrayElement(estimates, greatest(1, arrayFirstIndex(c -> c > floor(0.95 * count), cumulated)))) AS p95_ms,
  least(toFloat64(max_ms), arrayElement(estimates, greatest(1, arrayFirstIndex(c -> c > floor(0.99 * count), cumulated)))) AS p99_ms
FROM (
  SELECT
    fleet, size_s, start, family,
    count() AS partitions,
    min(w.closed) AS closed,
    sum(w.count) AS count,
    sum(w.sum_ms) AS sum_ms,
    max(w.max_ms) AS max_ms,
    sum(w.zeros) AS zeros,
    sumMap(w.bins) AS bins,
    arrayCumSum(arrayConcat([sum(w.zeros)], mapValues(sumMap(w.bins)))) AS cumulated,
    arrayConcat([0.], arrayMap(i -> 2 * pow(1.01 / 0.99, i) / (1.01 / 0.99 + 1), mapKeys(sumMap(w.bins)))) AS estimates
  FROM windows AS w FINAL
  GROUP BY fleet, size_s, start, family
  -- A family whose only sample moved elsewhere is told once more, as empty.
  HAVING sum(w.count) > 0
);

CREATE OR REPLACE VIEW window_conclusions_merged AS
SELECT fleet, size_s, start, conclusion, min(closed) AS closed, sum(number) AS jobs
FROM (
  SELECT fleet, size_s, start, closed, mapKeys(conclusions) AS names, mapValues(conclusions) AS numbers
  FROM window_conclusions FINAL
)
ARRAY JOIN names AS conclusion, numbers AS number
GROUP BY fleet, size_s, start, conclusion
HAVING jobs > 0;

-- Depth per minute: the last tick of each partition in the minute, added up.
CREATE OR REPLACE VIEW depth_1m AS
SELECT fleet, status, minute, sum(last_count) AS jobs, max(last_oldest_ms) AS oldest_ms
FROM (
  SELECT
    fleet, status, partition,
    toStartOfMinute(occurred_at) AS minute,
    argMax(count, occurred_at) AS last_count,
    argMax(oldest_ms, occurred_at) AS last_oldest_ms
  FROM gauges
  GROUP BY fleet, status, partition, minute
)
GROUP BY fleet, status, minute;

-- Exact timings per 5 minutes of completion time. Not materialised: see the head of this file.
-- NULL timings enter no quantile; `no_queue` and `no_run` say how many there were.
CREATE OR REPLACE VIEW timings_5m AS
SELECT
  toStartOfFiveMinutes(assumeNotNull(completed_at)) AS bucket,
  fleet, repo, conclusion,
  count() AS jobs,
  countIf(queue_ms IS NULL) AS no_queue,
  countIf(run_ms IS NULL) AS no_run,
  quantileExactOrNull(0.50)(queue_ms) AS queue_p50_ms,
  quantileExactOrNull(0.95)(queue_ms) AS queue_p95_ms,
  quantileExactOrNull(0.99)(queue_ms) AS queue_p99_ms,
  max(queue_ms) AS queue_max_ms,
  quantileExactOrNull(0.50)(run_ms) AS run_p50_ms,
  quantileExactOrNull(0.95)(run_ms) AS run_p95_ms,
  quantileExactOrNull(0.99)(run_ms) AS run_p99_ms,
  max(run_ms) AS run_max_ms,
  quantileExactOrNull(0.50)(total_ms) AS total_p50_ms,
  quantileExactOrNull(0.95)(total_ms) AS total_p95_ms,
  quantileExactOrNull(0.99)(total_ms) AS total_p99_ms,
  max(total_ms) AS total_max_ms
FROM job_timings FINAL
WHERE copied = 0 AND completed_at IS NOT NULL
GROUP BY bucket, fleet, repo, conclusion;
