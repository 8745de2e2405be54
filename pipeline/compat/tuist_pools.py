"""Tuist's dispatchers and pools."""

from __future__ import annotations

from typing import Final

from pipeline.compat.model import MILLISECONDS, From, Take, Theirs, Turn
from pipeline.telemetry import dispatch, pools

DISPATCH_BUCKETS: Final = (10.0, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
BOOT_BUCKETS: Final = (5.0, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1800, 3600)

#: What the dispatcher told a runner that asked for work.
OUTCOMES: Final = {
    "served": "served",
    "empty": "no_work_yet",
    "lost_race": "lost_race",
    "runner_in_use": "pod_in_use",
    "drain": "drain",
    "not_found": "not_found",
    "no_pool": "no_pool_label",
    "no_label": "no_dispatch_label",
    "unknown_account": "unknown_account",
    "mint_failed": "github_mint_failed",
    "record_failed": "record_running_failed",
    "unavailable": "not_in_cluster",
    "unknown": "unknown",
}
_OUTCOME: Final = Turn("outcome", OUTCOMES)
_FLEET: Final = Take("fleet")


def _pool(state: str) -> tuple[From, ...]:
    return (From(pools.RUNNERS, (_FLEET,), only={"state": frozenset({state})}),)


DISPATCH: Final = (
    Theirs(
        "tuist_runners_dispatch_request_count",
        "counter",
        "Requests for work.",
        ("fleet", "outcome"),
        (From(dispatch.REQUESTS, (_FLEET, _OUTCOME)),),
        said="From events of the dispatcher, each once. Nothing to do is `no_work_yet`, which the "
        "dashboard asks for; later it was called `empty`, and told apart from the two others as "
        "here.",
    ),
    Theirs(
        "tuist_runners_dispatch_request_duration_milliseconds",
        "histogram",
        "How long requests for work took.",
        ("outcome",),
        (From(dispatch.REQUEST_SECONDS, (_OUTCOME,), MILLISECONDS),),
        DISPATCH_BUCKETS,
        said="Without the fleet, as it was at first.",
    ),
    Theirs(
        "tuist_runners_dispatch_affinity_count",
        "counter",
        "Where the cache of a job's volume was.",
        ("fleet", "outcome"),
        said="Not served: no event says where the cache of a job is, which that dispatcher alone "
        "knows. One that says it in the `reason` of its requests is answered by `SELECT reason, "
        "count() FROM dispatch_events FINAL WHERE kind = 'dispatch.request' GROUP BY reason`; what "
        "was given out is `runnerstream_dispatch_requests_total`.",
    ),
)
POOLS: Final = (
    Theirs(
        "tuist_runners_pool_replicas_desired",
        "gauge",
        "Runners that a pool wants.",
        ("fleet",),
        _pool("desired"),
    ),
    Theirs(
        "tuist_runners_pool_replicas_observed",
        "gauge",
        "Runners that a pool has.",
        ("fleet",),
        _pool("observed"),
    ),
    Theirs(
        "tuist_runners_pool_replicas_max",
        "gauge",
        "Runners that a pool may have.",
        ("fleet",),
        _pool("max"),
    ),
    Theirs(
        "tuist_runners_accounts_enabled",
        "gauge",
        "Accounts that may have runners.",
        (),
        (From(pools.ACCOUNTS, fold="max"),),
    ),
    Theirs(
        "tuist_runners_queue_withheld",
        "gauge",
        "Queued jobs of accounts at their limit.",
        ("fleet",),
        (From(pools.WITHHELD, (_FLEET,)),),
    ),
    Theirs(
        "tuist_runners_queue_oldest_dispatchable_age_seconds",
        "gauge",
        "Age of the oldest queued job of an account below its limit.",
        ("fleet",),
        (From(pools.DISPATCHABLE_OLDEST, (_FLEET,), fold="max"),),
    ),
    Theirs(
        "tart_kubelet_vm_boot_duration_seconds",
        "histogram",
        "How long virtual machines took to boot.",
        ("pool",),
        (From(pools.BOOT_SECONDS, (_FLEET,)),),
        BOOT_BUCKETS,
        said="By fleet: a fleet of several pools shows them together.",
    ),
)
