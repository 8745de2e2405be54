"""What Tuist's dashboard, alerts and workers show, and where it is here."""

from __future__ import annotations

from typing import Final

from pipeline.compat.model import Alert, Kindred, Panel, on

_JOB: Final = 'job=~"$server_job"'
_ALL: Final = f'{{{_JOB},fleet=~"$fleet"}}'


def _quantiles(name: str, window: str, where: str = _ALL) -> tuple[str, ...]:
    """The 50th, 95th and 99th percentile of a histogram."""
    rate = f"sum by (le) (rate({name}_bucket{where}[{window}]))"
    return tuple(f"histogram_quantile({q}, {rate})" for q in (0.5, 0.95, 0.99))


def _ours(name: str, window: str = "5m") -> str:
    return f"`histogram_quantile(0.95, sum by (le) (rate({name}_bucket[{window}])))`"


_QUEUE: Final = _quantiles("tuist_runners_job_queue_time_milliseconds", "5m")
_TO_RUNNING: Final = _quantiles("tuist_runners_job_queue_to_running_time_milliseconds", "5m")

#: Of pull request 10850, in its order: 25 beside 7 headings.
PANELS: Final = (
    Panel(
        "Overview",
        "Queued jobs",
        '`sum(runnerstream_jobs{status="queued"})`, `/jobs?state=queued`',
        (f"sum(tuist_runners_queue_length{_ALL})",),
        shown=on("Runners", "Queued jobs", "Oldest queued job"),
    ),
    Panel(
        "Overview",
        "Pre-mint (claimed)",
        '`sum(runnerstream_jobs{status="claimed"})`, `/jobs?state=claimed`',
        (f'sum(tuist_runners_claims_count{{{_JOB},fleet=~"$fleet",lifecycle_state="claimed"}})',),
        shown=on("Runners", "Pre-mint (claimed)"),
    ),
    Panel(
        "Overview",
        "Running builds",
        '`sum(runnerstream_jobs{status=~"starting|running"})`, `/jobs?state=running`',
        (f'sum(tuist_runners_claims_count{{{_JOB},fleet=~"$fleet",lifecycle_state="running"}})',),
        shown=on("Runners", "Running builds"),
    ),
    Panel(
        "Overview",
        "Desired runners",
        '`sum(runnerstream_pool_runners{state="desired"})`',
        (f"sum(tuist_runners_pool_replicas_desired{_ALL})",),
        shown=on("Runners", "Desired runners"),
    ),
    Panel(
        "Overview",
        "Accounts enabled",
        "`max(runnerstream_accounts_enabled)`",
        (f"max(tuist_runners_accounts_enabled{{{_JOB}}})",),
        shown=on("Runners", "Accounts enabled"),
    ),
    Panel(
        "Overview",
        "Mac minis reporting",
        "Prometheus' own `up` of whatever it scrapes on the hosts; `/runners` has each runner's "
        "host",
        ('count(up{job="tart-kubelet"} == 1)',),
        shown=on("Runners", "Mac minis reporting"),
    ),
    Panel(
        "Throughput",
        "Jobs enqueued / sec by fleet",
        '`sum by (fleet) (rate(runnerstream_job_transitions_total{status="queued"}[5m]))`',
        (f"sum by (fleet) (rate(tuist_runners_job_enqueued_count{_ALL}[5m]))",),
        shown=on("Runners", "Jobs enqueued / sec by fleet"),
    ),
    Panel(
        "Throughput",
        "Jobs completed / sec by conclusion",
        "`sum by (conclusion) (rate(runnerstream_jobs_completed_total[5m]))`",
        (f"sum by (conclusion) (rate(tuist_runners_job_completed_count{_ALL}[5m]))",),
        shown=on("Runners", "Jobs completed / sec by conclusion"),
    ),
    Panel(
        "Throughput",
        "Claim and run rate",
        "`sum by (status) "
        '(rate(runnerstream_job_transitions_total{status=~"claimed|running"}[5m]))`',
        (
            f'sum(rate(tuist_runners_job_claim_count{{{_JOB},fleet=~"$fleet",outcome="ok"}}[5m]))',
            f"sum(rate(tuist_runners_job_running_count{_ALL}[5m]))",
        ),
        shown=on("Runners", "Claim and run rate"),
    ),
    Panel(
        "Throughput",
        "Webhook deliveries by action and outcome",
        "`sum by (action, outcome) (rate(runnerstream_webhook_jobs_total[5m]))`, `/webhooks`",
        (f"sum by (action, outcome) (rate(tuist_runners_webhook_count{{{_JOB}}}[5m]))",),
        shown=on("Runners", "Webhook deliveries by action and outcome"),
    ),
    Panel(
        "Latency",
        "Queue time (enqueue → claim)",
        _ours("runnerstream_job_queue_to_claim_seconds"),
        _QUEUE,
        shown=on("Runners", "Queue time (enqueue → claim)"),
    ),
    Panel(
        "Latency",
        "Enqueue → running (JIT-mint included)",
        f"{_ours('runnerstream_job_queue_seconds')}; from claim to start, without subtraction: "
        f"{_ours('runnerstream_job_claim_to_start_seconds')}",
        (*_TO_RUNNING[:2], f"{_TO_RUNNING[0]} - {_QUEUE[0]}"),
        shown=on("Runners", "Enqueue → running (JIT-mint included)", "Claim → running"),
    ),
    Panel(
        "Latency",
        "Run time (running → completed)",
        f"{_ours('runnerstream_job_run_seconds', '10m')}, view `timings_5m`",
        _quantiles("tuist_runners_job_run_time_milliseconds", "10m"),
        shown=on("Runners", "Run time (running → completed)"),
    ),
    Panel(
        "Latency",
        "Total time (enqueue → completed)",
        f"{_ours('runnerstream_job_total_seconds', '10m')}, view `timings_5m`",
        _quantiles("tuist_runners_job_total_time_milliseconds", "10m"),
        shown=on("Runners", "Total time (enqueue → completed)"),
    ),
    Panel(
        "Latency",
        "Queue time distribution (heatmap)",
        "`sum by (le) (rate(runnerstream_job_queue_to_claim_seconds_bucket[5m]))`",
        (f"sum by (le) (rate(tuist_runners_job_queue_time_milliseconds_bucket{_ALL}[5m]))",),
        shown=on("Runners", "Queue time distribution (heatmap)"),
    ),
    Panel(
        "Capacity",
        "RunnerPool replicas (desired vs observed)",
        '`sum by (fleet, state) (runnerstream_pool_runners{state=~"desired|observed"})`, '
        "`/telemetry`",
        (
            f"max by (fleet) (tuist_runners_pool_replicas_desired{_ALL})",
            f"max by (fleet) (tuist_runners_pool_replicas_observed{_ALL})",
        ),
        shown=on("Runners", "RunnerPool replicas (desired vs observed)"),
    ),
    Panel(
        "Capacity",
        "Pool utilisation (running / observed)",
        '`runnerstream_pool_runners{state="occupied"} / ignoring(state) '
        'runnerstream_pool_runners{state="observed"}`',
        (
            "sum by (fleet) (tuist_runners_claims_count"
            f'{{{_JOB},fleet=~"$fleet",lifecycle_state="running"}}) / '
            f"clamp_min(max by (fleet) (tuist_runners_pool_replicas_observed{_ALL}), 1)",
        ),
        shown=on("Runners", "Pool utilisation (running / observed)"),
    ),
    Panel(
        "Capacity",
        "Queue length by fleet",
        '`sum by (fleet) (runnerstream_jobs{status="queued"})`, view `depth_1m`',
        (f"sum by (fleet) (tuist_runners_queue_length{_ALL})",),
        shown=on("Runners", "Queue length by fleet"),
    ),
    Panel(
        "Capacity",
        "Inflight claims by fleet + state",
        '`sum by (fleet, status) (runnerstream_jobs{status=~"claimed|starting|running"})`',
        (f"sum by (fleet, lifecycle_state) (tuist_runners_claims_count{_ALL})",),
        shown=on("Runners", "Inflight claims by fleet + state"),
    ),
    Panel(
        "Dispatch endpoint",
        "Dispatch requests / sec by outcome",
        "`sum by (outcome) (rate(runnerstream_dispatch_requests_total[5m]))`",
        (f"sum by (outcome) (rate(tuist_runners_dispatch_request_count{{{_JOB}}}[5m]))",),
        shown=on("Runners", "Dispatch requests / sec by outcome"),
    ),
    Panel(
        "Dispatch endpoint",
        "Dispatch endpoint latency",
        _ours("runnerstream_dispatch_request_seconds"),
        _quantiles("tuist_runners_dispatch_request_duration_milliseconds", "5m", f"{{{_JOB}}}"),
        shown=on("Runners", "Dispatch endpoint latency"),
    ),
    Panel(
        "Recovery",
        "Recovery rate by kind",
        "`sum by (stall, command) (rate(runnerstream_recovery_done_total[15m]))`, `/recovery`",
        (f"sum by (kind) (rate(tuist_runners_recovery_count{{{_JOB}}}[15m]))",),
        shown=on("Runners", "Recovery rate by kind", "Stranded time by kind"),
    ),
    Panel(
        "VM boot time",
        "Boot time (p50 / p95 / p99)",
        _ours("runnerstream_machine_boot_seconds"),
        _quantiles("tart_kubelet_vm_boot_duration_seconds", "5m", '{pool=~"$pool"}'),
        shown=on("Runners", "Boot time (p50 / p95 / p99)"),
    ),
    Panel(
        "VM boot time",
        "Boots / sec by pool",
        "`sum by (fleet) (rate(runnerstream_machine_boots_total[5m]))`",
        ("sum by (pool) (rate(tart_kubelet_vm_boot_duration_seconds_count[5m]))",),
        shown=on("Runners", "Boots / sec by pool"),
    ),
    Panel(
        "VM boot time",
        "Boot time distribution (heatmap)",
        "`sum by (le) (rate(runnerstream_machine_boot_seconds_bucket[5m]))`",
        ('sum by (le) (rate(tart_kubelet_vm_boot_duration_seconds_bucket{pool=~"$pool"}[5m]))',),
        shown=on("Runners", "Boot time distribution (heatmap)"),
    ),
)

ALERTS: Final = (
    Alert(
        "Runner queue age",
        "`max by (fleet) (runnerstream_queue_oldest_dispatchable_seconds) > 1800` for 5m; where no "
        'dispatcher tells: `max by (fleet) (runnerstream_oldest_seconds{status="queued"}) > 1800`',
        "max by (cluster, env, fleet) of the oldest dispatchable age > 1800 s for 5m",
        fires=("RunnerQueueAge",),
        shown=on("Runners", "Oldest queued job age, dispatchable vs all"),
    ),
    Alert(
        "Runner pool starved",
        '`sum by (fleet) (runnerstream_jobs{status="queued"}) > 0 and sum by (fleet) '
        '(runnerstream_pool_runners{state="observed"}) == 0` for 10m; '
        "`runnerstream_pool_starved_jobs` are those that wait beside idle runners, "
        "`runnerstream_pool_saturated_jobs` the others",
        "queued less withheld > 0, and no observed Pod, for 10m",
        fires=("RunnerPoolEmpty", "RunnerPoolStarved", "RunnerPoolSaturated"),
        shown=on("Runners", "Starved jobs"),
    ),
    Alert(
        "Job replica divergence",
        "`runnerstream_sink_lag_records > 0` for 15m; `runnerstream verify` compares every job",
        "max by (fleet) of the divergence > 0 for 15m",
        fires=("SinkStalled", "SinkLag"),
        shown=on("Pipeline", "Records not in ClickHouse, by topic"),
    ),
    Alert(
        "Withheld at limit",
        "None, as there: an account that uses what it bought is a steady state",
        "retired there on the day it was made",
        shown=on("Runners", "Queue withheld by fleet"),
    ),
)

_DONE: Final = "`runnerstream_recovery_done_total"
_OVER: Final = "`runnerstream_recovery_found_over_total"
FURTHER: Final = {
    "Kinds of recovery": (
        Kindred("stale_claim", f'{_DONE}{{stall="stale_claim"}}`', "claimed, and never minted"),
        Kindred(
            "orphan_requeued",
            f'{_DONE}{{stall=~"orphan|displaced",command="requeue"}}`',
            "minted, and never started: given to another runner",
        ),
        Kindred(
            "orphan_completed",
            f'{_OVER}{{stall="orphan"}}`',
            "the provider calls it over",
        ),
        Kindred(
            "missed_queued",
            "`runnerstream_reconciled_facts_total`, role `redeliver`",
            "found by looking through the runs; given up there",
        ),
        Kindred(
            "redelivered",
            "`runnerstream_redeliveries_total`, role `redeliver`",
            "a delivery that never came was asked for again",
        ),
        Kindred(
            "queued_completed",
            f'{_OVER}{{stall="stale_queue"}}`',
            "queued for long, and over at the provider",
        ),
        Kindred(
            "queued_reaped",
            f'{_DONE}{{stall="stale_queue",command="close"}}`',
            "queued for a day",
        ),
        Kindred(
            "completed_claim",
            "None needed: a claim of a job that is over counts no more (`/runners`)",
            "a claim left by a job that is over",
        ),
        Kindred(
            "pod_missing_claim",
            f'{_DONE}{{stall="runner_lost"}}`',
            "its Pod is gone",
        ),
        Kindred(
            "stranded_claim_released",
            f'{_DONE}{{stall="runner_lost",command="release_claim"}}`',
            "the same, told by the Pod's end",
        ),
        Kindred(
            "pod_stop_recovery_scheduled",
            '`runnerstream_stalls_opened_total{stall="runner_lost"}`',
            "a Pod stopped while it held a job",
        ),
        Kindred(
            "unstarted_execution",
            "None needed: the runner that is seen executing a job makes it running; the job it was "
            f'minted for: {_DONE}{{stall="displaced"}}`',
            "queued, and running all the same",
        ),
        Kindred(
            "orphaned_runner_session",
            "`/runners?state=gone`, table `fleet_states`",
            "a session without its Pod",
        ),
        Kindred(
            "orphaned_stamped_pod",
            "Not yet: nothing here deletes a runner; `/runners?state=idle` has those without a job",
            "a Pod without a claim",
        ),
        Kindred(
            "finished_job_pod",
            "Not yet, as above; `/runners` shows what each runner holds",
            "a Pod whose job is over",
        ),
        Kindred(
            "lifecycle_adopted, lifecycle_closed, lifecycle_synced_claimed, "
            "lifecycle_requeued_unbacked",
            "None needed: there is one store",
            "repairs while that system moved between stores",
        ),
    ),
    "Metrics of the controller, by pool": (
        Kindred(
            "autoscaler_target_replicas, autoscaler_allocated_replicas",
            '`runnerstream_pool_runners{state=~"desired|observed"}`',
            "what is wanted, and what was given",
        ),
        Kindred(
            "autoscaler_warm_deficit_replicas, autoscaler_min_warm_floor_replicas",
            '`runnerstream_pool_runners{state=~"desired|idle"}`; the floor is its own',
            "how many idle ones are missing",
        ),
        Kindred(
            "autoscaler_claimed_jobs, autoscaler_queued_jobs",
            '`runnerstream_jobs{status=~"claimed|queued"}`',
            "demand",
        ),
        Kindred(
            "autoscaler_occupied_runners, pool_idle_replicas, pool_phase_replicas",
            '`runnerstream_pool_runners{state=~"ready|idle|booting|occupied"}`',
            "what runners do",
        ),
        Kindred(
            "pool_oldest_pending_pod_age_seconds, pool_pending_provisioning_pods",
            "`runnerstream_pool_booting_oldest_seconds`, "
            '`runnerstream_pool_runners{state="booting"}`',
            "runners that do not come up",
        ),
        Kindred(
            "pool_rolling_pods, pool_stale_pods, pool_roll_concurrency_cap",
            '`runnerstream_dispatch_requests_total{outcome="drain"}`',
            "runners of an old image",
        ),
        Kindred(
            "pool_admission_blocked_total",
            "`runnerstream_pool_saturated_jobs`; why is in the events: `SELECT reason FROM "
            "pool_events`",
            "no room for a further runner",
        ),
        Kindred(
            "pool_pod_start_timeouts_total",
            '`runnerstream_machine_boots_total{outcome="timed_out"}`',
            "runners that did not start",
        ),
        Kindred(
            "pool_stuck_terminations_total",
            "`/runners?state=gone`; whether a machine is deleted nobody tells here",
            "runners that do not go",
        ),
        Kindred(
            "fleet_ready_nodes, fleet_filtered_nodes",
            '`runnerstream_pool_runners{state="max"}`: what the hosts have room for',
            "hosts",
        ),
    ),
}
