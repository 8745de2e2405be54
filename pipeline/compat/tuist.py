"""Tuist's runners: what pull request 10850 and its successors measure of jobs, and of recovery."""

from __future__ import annotations

from typing import Final

from pipeline import metrics
from pipeline.compat.model import MILLISECONDS, Always, From, Pair, System, Take, Theirs, Turn, same
from pipeline.compat.tuist_pools import DISPATCH, POOLS
from pipeline.compat.tuist_shows import ALERTS, FURTHER, PANELS
from topics.models import Conclusion

SHORT: Final = (50.0, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000)
LONG: Final = (
    1000.0, 5000, 30000, 60000, 300000, 900000, 1800000, 3600000, 7200000, 14400000, 21600000,
)  # fmt: skip

_FLEET: Final = Take("fleet")
#: A delivery that is about a job, by what we say of it. What runs is accepted here before anybody
#: looks whose runner it is on, so theirs of `in_progress` (matched, mismatch) have no series.
_WEBHOOK_OUTCOMES: Final = {
    ("queued", "accepted"): "queued",
    ("waiting", "accepted"): "queued",
    ("completed", "accepted"): "completed",
    **{(action, "no_account"): "no_account" for action in metrics.WEBHOOK_ACTIONS},
    **{(action, "no_fleet"): "no_matching_pool" for action in metrics.WEBHOOK_ACTIONS},
    # What cannot be read is about nothing that is known.
    ("other", "malformed"): "unknown",
}
_FOUND_OVER: Final = {"orphan": "orphan_completed", "stale_queue": "queued_completed"}
_DONE: Final = {
    ("stale_claim", "release_claim"): "stale_claim",
    ("orphan", "requeue"): "orphan_requeued",
    ("displaced", "requeue"): "orphan_requeued",
    ("runner_lost", "requeue"): "pod_missing_claim",
    ("runner_lost", "release_claim"): "pod_missing_claim",
    ("stale_queue", "close"): "queued_reaped",
}


def _entered(status: str) -> dict[str, frozenset[str]]:
    return {"status": frozenset({status})}


JOBS: Final = (
    Theirs(
        "tuist_runners_job_enqueued_count",
        "counter",
        "Jobs that were queued.",
        ("fleet",),
        (From(metrics.TRANSITIONS, (_FLEET,), only=_entered("queued")),),
    ),
    Theirs(
        "tuist_runners_job_claim_count",
        "counter",
        "Jobs that a runner claimed.",
        ("fleet", "outcome"),
        (From(metrics.TRANSITIONS, (_FLEET, Always("ok")), only=_entered("claimed")),),
        said="Once a job: further claims of it show as requeued first.",
    ),
    Theirs(
        "tuist_runners_job_queue_time_milliseconds",
        "histogram",
        "Queued to claimed.",
        ("fleet",),
        (From(metrics.QUEUE_TO_CLAIM_SECONDS, (_FLEET,), MILLISECONDS),),
        SHORT,
        said="Once a job, by the provider's clock. The sample of a second claim, which holds the "
        "whole first attempt, is left out.",
    ),
    Theirs(
        "tuist_runners_job_running_count",
        "counter",
        "Jobs that began to run.",
        ("fleet",),
        (From(metrics.TRANSITIONS, (_FLEET,), only=_entered("running")),),
        said="Seen to run. There: a runner was minted, which may never take the job; that is "
        '`runnerstream_job_transitions_total{status="starting"}`.',
    ),
    Theirs(
        "tuist_runners_job_queue_to_running_time_milliseconds",
        "histogram",
        "Queued to running.",
        ("fleet",),
        (From(metrics.QUEUE_SECONDS, (_FLEET,), MILLISECONDS),),
        SHORT,
        said="Until it was seen to run, less the time behind approval gates.",
    ),
    Theirs(
        "tuist_runners_job_claim_to_running_time_milliseconds",
        "histogram",
        "Claimed to running.",
        ("fleet",),
        (From(metrics.CLAIM_TO_START_SECONDS, (_FLEET,), MILLISECONDS),),
        SHORT,
        said="Of the claim whose runner executed the job.",
    ),
    Theirs(
        "tuist_runners_job_completed_count",
        "counter",
        "Jobs that completed.",
        ("fleet", "conclusion"),
        (
            From(
                metrics.COMPLETIONS,
                (_FLEET, Turn("conclusion", same(each.value for each in Conclusion))),
            ),
        ),
        said="Each job once, those that recovery found over as well.",
    ),
    Theirs(
        "tuist_runners_job_run_time_milliseconds",
        "histogram",
        "Running to completed.",
        ("fleet",),
        (From(metrics.RUN_SECONDS, (_FLEET,), MILLISECONDS),),
        LONG,
        said="By the provider's clock. What is not known is no sample, where there it is 0.",
    ),
    Theirs(
        "tuist_runners_job_total_time_milliseconds",
        "histogram",
        "Queued to completed.",
        ("fleet",),
        (From(metrics.TOTAL_SECONDS, (_FLEET,), MILLISECONDS),),
        LONG,
        said="As the run time.",
    ),
    Theirs(
        "tuist_runners_job_requeued_count",
        "counter",
        "Jobs that went back to the queue.",
        ("fleet",),
        (From(metrics.REQUEUES, (_FLEET,)),),
        said="Each claim once that was released before its job began.",
    ),
)
INGEST: Final = (
    Theirs(
        "tuist_runners_webhook_count",
        "counter",
        "Webhook deliveries about jobs.",
        ("action", "outcome"),
        (
            From(
                metrics.WEBHOOK_JOBS,
                (Take("action"), Pair(("action", "outcome"), _WEBHOOK_OUTCOMES)),
            ),
            From(metrics.IGNORED_WEBHOOKS, (Always("other"), Always("ignored"))),
        ),
        said="Accepted `in_progress` is left out: whether it is `matched` nobody knows when it "
        "comes. `no_fleet` is `no_matching_pool`, `malformed` is `unknown`. Other actions and "
        "events, of which there is no series there, are `other`. `runners_disabled`, `no_pools` "
        "and `ambiguous_pool` do not happen: a route names an account and a fleet, or it does not.",
    ),
)
RECOVERY: Final = (
    Theirs(
        "tuist_runners_recovery_count",
        "counter",
        "Jobs that recovery dealt with.",
        ("kind",),
        (
            From(metrics.RECOVERY_DONE, (Pair(("stall", "command"), _DONE),)),
            From(metrics.RECOVERY_OVER, (Turn("stall", _FOUND_OVER),)),
        ),
        said="Rises by as many as there were; there by 1 a sweep for some kinds. A claim of an "
        "orphan that is released because the job is over counts as `orphan_completed` alone.",
    ),
    Theirs(
        "tuist_runners_recovery_stranded_time_milliseconds",
        "histogram",
        "How long jobs were stranded that recovery freed.",
        ("fleet",),
        (From(metrics.STRANDED_SECONDS, (_FLEET,), MILLISECONDS),),
        LONG,
        said="Of every kind of stall, once the job had left it, whoever freed it.",
    ),
)
LEVELS: Final = (
    Theirs(
        "tuist_runners_queue_length",
        "gauge",
        "Jobs that are queued.",
        ("fleet",),
        (From(metrics.JOBS, (_FLEET,), only=_entered("queued")),),
        said="Sum over workers: each has partitions of its own. There: max.",
    ),
    Theirs(
        "tuist_runners_queue_oldest_age_seconds",
        "gauge",
        "Age of the job longest in the queue.",
        ("fleet",),
        (From(metrics.OLDEST, (_FLEET,), only=_entered("queued"), fold="max"),),
        said="Max over workers.",
    ),
    Theirs(
        "tuist_runners_claims_count",
        "gauge",
        "Claims that are held.",
        ("fleet", "lifecycle_state"),
        (
            From(
                metrics.JOBS,
                (
                    _FLEET,
                    Turn(
                        "status",
                        {"claimed": "claimed", "starting": "running", "running": "running"},
                    ),
                ),
            ),
        ),
        said="Jobs with a claim. `running` from when a runner is minted, as there. Sum over "
        "workers.",
    ),
    Theirs(
        "tuist_runners_session_clamped_count",
        "gauge",
        "Sessions open for more than six hours.",
        ("fleet",),
        said="Not served: there a session is what is billed, for six hours at most, and here none "
        "is. What runs for as long: `runnerstream jobs --state running --age 6h`, and whether "
        'there is any `runnerstream_oldest_seconds{status="running"} > 21600`.',
    ),
    Theirs(
        "tuist_runners_replica_divergence_count",
        "gauge",
        "Jobs over in one store and not in the other.",
        ("fleet",),
        said="Not served: here a job's state has one store, its log, and ClickHouse is a copy. "
        "How far that is behind: `runnerstream_sink_lag_records`; which jobs differ: "
        "`runnerstream verify`.",
    ),
)

SYSTEM: Final = System(
    name="tuist",
    about="Tuist's runners: the metrics of pull request 10850 and of later ones, its gauges, the "
    "dashboard `tuist-runners`, its alerts, and what the recovery workers of pull request 10828 "
    "and their successors count.",
    metrics=(*JOBS, *DISPATCH, *INGEST, *RECOVERY, *LEVELS, *POOLS),
    panels=PANELS,
    alerts=ALERTS,
    further=FURTHER,
)
