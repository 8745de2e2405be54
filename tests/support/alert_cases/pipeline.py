"""Of the groups ``pipeline``, ``sink``, ``webhooks`` and ``blind``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tests.support.alert_cases.model import Cases, Fires, Series, Silent

W1: Final = {"instance": "w1"}
LAG: Final = "sink_lag_records topic=t"
ROWS: Final = "sink_rows_total table=jobs"
HEARD: Final = "webhooks_total event=workflow_job"
RUNNING: Final = "jobs fleet=f status=running"


def _above(
    alert: str, series: str, bound: float, more: str, at: str, value: str, labels: Mapping[str, str]
) -> Cases:
    """A gauge that may be ``bound``, and is ``more`` for long enough."""
    short = int(at.removesuffix("m")) - 1
    return Cases(
        alert,
        (Fires("a bit too much", {series: f"{more}..."}, at, value, labels),),
        (Silent("as much as may be", {series: f"{bound:g}..."}),
         Silent("over just in time", {series: f"{more}x{short} 0..."})),
    )  # fmt: skip


def _rises(
    alert: str, series: str, window: int, labels: Mapping[str, str], *others: Silent
) -> Cases:
    """A counter of which each rise is told at once, for so many minutes."""
    over = f"{4 + window}m"
    return Cases(
        alert,
        (Fires("one more", {series: "4x3 5..."}, "4m", "1", labels, until=over),),
        (Silent("no more", {series: "4..."}), *others),
    )


def _share(
    alert: str,
    part: str,
    whole: str,
    at: str,
    until: str,
    labels: Mapping[str, str],
    *others: Silent,
) -> Cases:
    """Of events of two kinds, or of a part of a whole: more than one in twenty is too many, of 21
    or more; after the window it is forgotten."""
    apart = "outcome=" in whole
    rest, less = ("0+948...", "0+19...") if apart else ("0+1000...", "0+20...")
    return Cases(
        alert,
        (Fires("more than one in twenty", {part: "0+52...", whole: rest}, at, "5.2%", labels),
         *([Fires("forgotten", {part: "0 21...", whole: "0..." if apart else "0 21..."}, at,
                  "100%", labels, until)] if until else [])),
        (
            Silent("one in twenty", {part: "0+1...", whole: less}),
            Silent("twenty are too few", {part: "0 10...",
                   whole: "0 10..." if apart else "0 20..."}),
            Silent("none", {part: "5...", whole: rest}),
            *others,
        ),
    )  # fmt: skip


PIPELINE: Final = (
    Cases(
        "WorkerNotReady",
        (Fires("it says so", {"ready instance=w1": "0...", "ready instance=w2": "1..."}, "5m",
               labels=W1),),
        (Silent("it is", {"ready instance=w1": "1..."}),
         Silent("over just in time", {"ready instance=w1": "0x4 1..."})),
    ),
    _above("PipelineTickLag", "tick_lag_seconds", 60, "61", "5m", "1m 1s", {}),
    Cases(
        "PipelineConsumerLag",
        (Fires("two workers", {"consumer_lag_records topic=t instance=w1": "5001...",
               "consumer_lag_records topic=t instance=w2": "5000..."}, "15m", "10k",
               {"topic": "t"}),),
        (
            Silent("as many as may be", {"consumer_lag_records topic=t": "10000..."}),
            Silent("on two topics", {"consumer_lag_records topic=t": "9000...",
                   "consumer_lag_records topic=u": "9000..."}),
            Silent("over just in time", {"consumer_lag_records topic=t": "10001x14 0..."}),
        ),
    ),
    Cases(
        "PipelineClockWrong",
        (Fires("a tick in the future", {"ticks_refused_total reason=future": "4x3 5..."}, "4m", "1",
               {}, until="19m"),
         Fires("a clock was healed", {"clocks_healed_total": "4x3 5..."}, "4m", "1", {},
               until="19m")),
        (Silent("no more", {"ticks_refused_total reason=future": "4...",
                "clocks_healed_total": "4..."}),
         Silent("ticks of the past", {"ticks_refused_total reason=past": "0+1..."})),
    ),
    _rises("SourceClockAhead", "future_times_total", 15, {}),
    _rises("RecordsMissed", "records_missed_total topic=t", 60, {"topic": "t"}),
    _rises("DeadLetters", "dead_letters_total stage=fold reason=bad_time", 15,
           {"stage": "fold", "reason": "bad_time"}),
    Cases(
        "ProcessRestarts",
        (Fires("three times", {"process_start_time_seconds job=runnerstream-sink instance=w1":
               "1 2 3 4..."}, "3m", "3", W1, until="61m"),),
        (
            Silent("twice", {"process_start_time_seconds job=runnerstream-sink instance=w1":
                   "1 2 3..."}),
            Silent("not ours", {"process_start_time_seconds job=node instance=w1": "1+1..."}),
        ),
    ),
    Cases(
        "RoleDown",
        (Fires("the sink", {"role_up role=sink instance=w1": "0...",
               "role_up role=sink instance=w2": "1..."}, "5m",
               labels={"instance": "w1", "role": "sink"}),),
        (Silent("it runs", {"role_up role=sink instance=w1": "1..."}),
         Silent("over just in time", {"role_up role=sink instance=w1": "0x4 1..."})),
    ),
    _above("SeriesBudget", "fleets_unnamed", 0, "1", "15m", "1", {}),
    _above("EventLoopLag", "loop_lag_worst_seconds instance=w1", 1, "1.5", "10m", "1.5s", W1),
    _rises("ProduceFailures", "produce_failures_total reason=error", 15, {},
           Silent("taken over", {"produce_failures_total reason=fenced": "0+1..."})),
    _share("LateSamples", "late_samples_total family=queue", "job_queue_seconds_count", "11m",
           "61m", {}, Silent("of other families", {"late_samples_total family=queue": "0...",
           "late_samples_total family=run": "0+9...", "job_queue_seconds_count": "0+10..."})),
    Cases(
        "TelemetryLate",
        (Fires("more than one in twenty", {"telemetry_late_total family=pools": "0+52...",
               "telemetry_events_total family=pools": "0+1000..."}, "11m", "5.2%",
               {"family": "pools"}),
         Fires("21 are enough, and forgotten after an hour", {"telemetry_late_total family=pools":
               "0 21...", "telemetry_events_total family=pools": "0 21..."}, "11m", "100%",
               {"family": "pools"}, until="61m")),
        (
            Silent("one in twenty", {"telemetry_late_total family=pools": "0+1...",
                   "telemetry_events_total family=pools": "0+20..."}),
            Silent("twenty are too few", {"telemetry_late_total family=pools": "0 20...",
                   "telemetry_events_total family=pools": "0 20..."}),
            Silent("of others", {"telemetry_late_total family=pools": "0...",
                   "telemetry_events_total family=pools": "0+10...",
                   "telemetry_late_total family=runners": "0+1...",
                   "telemetry_events_total family=runners": "0+100..."}),
        ),
    ),
)  # fmt: skip

SINK: Final = (
    Cases(
        "SinkDown",
        (Fires("one of two", {"sink_clickhouse_up instance=w1": "0...",
               "sink_clickhouse_up instance=w2": "1..."}, "5m", labels=W1),),
        (Silent("up", {"sink_clickhouse_up instance=w1": "1..."}),
         Silent("over just in time", {"sink_clickhouse_up instance=w1": "0x4 1..."})),
    ),
    Cases(
        "SinkStalled",
        (Fires("no row", {LAG: "1...", ROWS: "7..."}, "6m", "1", {}),
         Fires("not any more", {LAG: "5...", ROWS: "0+1x10 10..."}, "25m", "5", {}),
         Fires("one lag is unknown", {LAG: "5...", "sink_lag_records topic=u": "NaN...",
               ROWS: "7..."}, "6m", "5", {})),
        (
            Silent("rows arrive", {LAG: "5...", ROWS: "0+1..."}),
            Silent("nothing waits", {LAG: "0...", ROWS: "7..."}),
            Silent("over just in time", {LAG: "5...", ROWS: "7x5 8+1..."}),
        ),
    ),
    Cases(
        "SinkLag",
        (Fires("two sinks", {f"{LAG} instance=w1": "5001...", f"{LAG} instance=w2": "5000..."},
               "15m", "10k", {"topic": "t"}),),
        (Silent("as many as may be", {LAG: "10000..."}),
         Silent("over just in time", {LAG: "10001x14 0..."})),
    ),
    Cases(
        "SinkLagUnknown",
        (Fires("of one", {LAG: "NaN...", "sink_lag_records topic=u": "0..."}, "10m", "",
               {"topic": "t"}),),
        (Silent("known", {LAG: "0..."}), Silent("over just in time", {LAG: "NaNx9 0..."})),
    ),
    _rises("SinkDeadLetters", "sink_dead_letters_total reason=bad_time", 15,
           {"reason": "bad_time"}),
    _rises("SinkRecordsLost", "sink_lost_records_total topic=t", 60, {"topic": "t"}),
)  # fmt: skip


def _lags(quick: str, slow: str) -> Series:
    name = "webhook_lag_seconds_bucket"
    return {f"{name} le=60.0": quick, f"{name} le=300.0": slow, f"{name} le=+Inf": slow}


def _gateway(**values: str) -> Series:
    name = "gateway_requests_total provider=github action=queued"
    return {f"{name} outcome={outcome}": told for outcome, told in values.items()}


WEBHOOKS: Final = (
    Cases(
        "WebhookSilence",
        (Fires("a job runs", {HEARD: "5...", RUNNING: "1..."}, "16m", labels={}),
         Fires("not any more", {HEARD: "0+1x10 10...", RUNNING: "1..."}, "85m", labels={})),
        (
            Silent("nothing is known to be open", {HEARD: "5...", RUNNING: "0..."}),
            Silent("it waits for an approval", {HEARD: "5...", "jobs fleet=f status=waiting":
                   "1..."}),
            Silent("they come", {HEARD: "0+1...", RUNNING: "1..."}),
            Silent("over just in time", {HEARD: "5x15 6+1...", RUNNING: "1..."}),
        ),
    ),
    # A week ago they came for ten hours; the first hour of that is not a whole one.
    Cases(
        "WebhookSilence",
        (Fires("a week ago they came", {HEARD: "0+5.5x20 110..."}, "169h30m", labels={},
               until="178h30m"),),
        (Silent("a week ago there were ten an hour", {HEARD: "0+5x20 100..."}),),
        step="30m",
    ),
    Cases(
        "WebhookLag",
        (Fires("one in ten", _lags("0+90...", "0+100..."), "16m", "2m 59s", {}),),
        (Silent("one in twenty", _lags("0+95...", "0+100...")),
         Silent("once", _lags("0...", "0 10...")),
         Silent("over just in time", _lags("0+90x14 3000+200...", "0+100x14 3150+200..."))),
    ),
    _share("WebhooksDropped", "webhook_jobs_total action=queued outcome=no_account",
           "webhook_jobs_total action=queued outcome=accepted", "16m", "",
           {"outcome": "no_account"}),
    Cases(
        "WebhooksRefused",
        (Fires("more than one in twenty", _gateway(unauthenticated="0+52...", accepted="0+948..."),
               "11m", "5.2%", {"provider": "github"}),
         Fires("21 are enough, and soon forgotten", _gateway(unauthenticated="0 21..."), "11m",
               "100%", {"provider": "github"}, until="16m"),
         Fires("of all sorts", _gateway(unavailable="0+1...", timeout="0+1...", malformed="0+1...",
               too_large="0+1...", accepted="0+36..."), "11m", "10%", {"provider": "github"})),
        (
            Silent("one in twenty", _gateway(unauthenticated="0+1...", accepted="0+19...")),
            Silent("twenty are too few", _gateway(unauthenticated="0 20...")),
            Silent("twice or for nobody", _gateway(duplicate="0+5...", ignored="0+5...")),
        ),
    ),
    Cases(
        "GatewayKafkaDown",
        (Fires("one of two", {"gateway_kafka_up instance=w1": "0...",
               "gateway_kafka_up instance=w2": "1..."}, "2m", labels=W1),),
        (Silent("up", {"gateway_kafka_up instance=w1": "1..."}),
         Silent("over just in time", {"gateway_kafka_up instance=w1": "0x1 1..."})),
    ),
    _rises("MissedWebhooksGivenUp", "missed_given_up_total reason=expired", 60,
           {"reason": "expired"}),
    # Time begins at 0 here.
    Cases(
        "RedeliverPassOld",
        (Fires("none since 0", {"missed_pass_timestamp_seconds over=hooks": "0..."}, "66m",
               "1h 6m 0s", {"over": "hooks"}),),
        (Silent("every hour", {"missed_pass_timestamp_seconds over=hooks": "0x60 3660..."}),
         Silent("another instance made it", {"missed_pass_timestamp_seconds over=hooks "
                "instance=w1": "0...", "missed_pass_timestamp_seconds over=hooks instance=w2":
                "0+60..."})),
    ),
    Cases(
        "RelayPaused",
        (Fires("it is", {"relay_paused instance=w1": "1..."}, "10m", labels=W1),),
        (Silent("it is not", {"relay_paused instance=w1": "0..."}),
         Silent("over just in time", {"relay_paused instance=w1": "1x9 0..."})),
    ),
    _above("ScrapeBlind", "scrape_blind instance=w1", 0, "1", "10m", "1", W1),
)  # fmt: skip


def _absent(
    alert: str, series: str, at: str, labels: Mapping[str, str] = MappingProxyType({})
) -> Cases:
    """It fires with no such series, whatever else there is, and not with one that says 0."""
    short = int(at.removesuffix("m")) - 1
    return Cases(
        alert,
        (Fires("nothing at all", {}, at, labels=labels),
         Fires("it was there once", {series: "1x2 stale"}, f"{int(at.removesuffix('m')) + 3}m",
               labels=labels)),
        (Silent("it says 0", {series: "0..."}),
         Silent("seen just in time", {series: f"_x{short} 1..."})),
    )  # fmt: skip


BLIND: Final = (
    _absent("WorkerAbsent", "ready instance=w1", "5m"),
    Cases(
        "TargetDown",
        (Fires("one of two", {"up job=runnerstream-sink instance=w1": "0...",
               "up job=runnerstream-sink instance=w2": "1..."}, "5m", labels=W1),),
        (
            Silent("it answers", {"up job=runnerstream-sink instance=w1": "1..."}),
            Silent("not ours", {"up job=node instance=w1": "0..."}),
            Silent("over just in time", {"up job=runnerstream-sink instance=w1": "0x4 1..."}),
        ),
    ),
    _absent("SinkAbsent", "sink_clickhouse_up instance=w1", "10m"),
    _absent("RunnerQueueBlind", "oldest_seconds fleet=f status=queued", "10m",
            {"status": "queued"}),
    _absent("RecoveryHeartbeatAbsent", "recovery_sweeps_total", "10m"),
    Cases(
        "RoleVanished",
        tuple(
            Fires(f"the {role}", {series: "0x30 stale"}, "70m", labels={"role": role}, until="91m")
            for role, series in {
                "prober": "probes_waiting", "gateway": "gateway_kafka_up",
                "relay": "relay_paused", "redeliver": "missed_open", "scrape": "scrape_targets",
            }.items()
        ),
        (
            Silent("there", {"probes_waiting instance=w1": "0..."}),
            Silent("another one", {"probes_waiting instance=w1": "0x30 stale",
                   "probes_waiting instance=w2": "_x30 0..."}),
            Silent("not used", {"ready instance=w1": "1..."}),
            Silent("back just in time", {"probes_waiting instance=w1": "0x30 stale _x36 0..."}),
        ),
    ),
    Cases(
        "TelemetryVanished",
        (
            Fires("pools", {"pool_runners fleet=f state=idle": "0x30 stale",
                  "pool_runners fleet=g state=idle": "0..."}, "70m",
                  labels={"fleet": "f", "family": "pools"}, until="91m"),
            Fires("reconcilers", {"reconciler_last_tick_seconds fleet=f": "0x30 stale",
                  "reconciler_last_tick_seconds fleet=g": "0..."}, "70m",
                  labels={"fleet": "f", "family": "reconcilers"}, until="91m"),
        ),
        (
            Silent("there", {"pool_runners fleet=f state=idle": "0..."}),
            Silent("of another worker now", {"pool_runners fleet=f state=idle instance=w1":
                   "0x30 stale", "pool_runners fleet=f state=idle instance=w2": "_x30 0..."}),
        ),
    ),
)  # fmt: skip
