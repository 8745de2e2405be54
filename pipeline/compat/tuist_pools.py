"""Tuist's dispatchers and pools."""

from __future__ import annotations

from typing import Final

from pipeline.compat.model import Theirs

DISPATCH_BUCKETS: Final = (10.0, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
BOOT_BUCKETS: Final = (5.0, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1800, 3600)

_POOLS: Final = "Not yet: `/runners` has each fleet's runners by state, table `fleet_states` too."
_DISPATCH: Final = (
    "Not yet: what came of it is "
    '`runnerstream_lifecycle_events_total{kind=~"job.claimed|job.minted|claim.released"}`.'
)

DISPATCH: Final = (
    Theirs(
        "tuist_runners_dispatch_request_count",
        "counter",
        "Requests for work.",
        ("fleet", "outcome"),
        said=_DISPATCH,
    ),
    Theirs(
        "tuist_runners_dispatch_request_duration_milliseconds",
        "histogram",
        "How long requests for work took.",
        ("fleet", "outcome"),
        buckets=DISPATCH_BUCKETS,
        said=_DISPATCH,
    ),
    Theirs(
        "tuist_runners_dispatch_affinity_count",
        "counter",
        "Where the cache of a job's volume was.",
        ("fleet", "outcome"),
        said="Not served: whose volume is where is that scheduler's own; "
        "`runnerstream_lifecycle_events_total` counts its claims.",
    ),
)
POOLS: Final = (
    Theirs(
        "tuist_runners_pool_replicas_desired",
        "gauge",
        "Runners that a pool wants.",
        ("fleet",),
        said=_POOLS,
    ),
    Theirs(
        "tuist_runners_pool_replicas_observed",
        "gauge",
        "Runners that a pool has.",
        ("fleet",),
        said=_POOLS,
    ),
    Theirs(
        "tuist_runners_pool_replicas_max",
        "gauge",
        "Runners that a pool may have.",
        ("fleet",),
        said=_POOLS,
    ),
    Theirs(
        "tuist_runners_accounts_enabled",
        "gauge",
        "Accounts that may have runners.",
        said=_POOLS,
    ),
    Theirs(
        "tuist_runners_queue_withheld",
        "gauge",
        "Queued jobs of accounts at their limit.",
        ("fleet",),
        said="Not yet: `runnerstream_jobs` counts all that are queued.",
    ),
    Theirs(
        "tuist_runners_queue_oldest_dispatchable_age_seconds",
        "gauge",
        "Age of the oldest queued job of an account below its limit.",
        ("fleet",),
        said="Not yet: `runnerstream_oldest_seconds` is of all that are queued.",
    ),
    Theirs(
        "tart_kubelet_vm_boot_duration_seconds",
        "histogram",
        "How long virtual machines took to boot.",
        ("pool",),
        buckets=BOOT_BUCKETS,
        said=_POOLS,
    ),
)
