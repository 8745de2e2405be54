"""Panels of the pipeline about what comes in: webhooks, what is late, twice, odd or missed."""

from __future__ import annotations

from typing import Final

from dashboards import config, series
from dashboards.model import Panel, Promql

NO_WORKER: Final = "no worker is scraped."
NO_GATEWAY: Final = "no gateway is scraped: webhooks come in another way, or not at all."
NO_REDELIVER: Final = "the role `redeliver` does not run: nobody looks for missed deliveries."

OUTCOMES: Final = {
    "accepted": "green", "duplicate": "blue", "ignored": "text", "unauthenticated": "red",
    "malformed": "orange", "too_large": "purple", "timeout": "yellow", "unavailable": "dark-red",
}  # fmt: skip


def arrival() -> Panel:
    """From the event at the provider to its arrival."""
    return Panel(
        "From an event at the provider to its arrival",
        "timeseries",
        series.quantiles("runnerstream_webhook_lag_seconds"),
        healthy="p95 some seconds; providers tell whole seconds.",
        deviation="the provider delivers late, or deliveries are tried again.",
        todo="see the provider's status page and its list of deliveries.",
        no_data="no worker is scraped, or no webhook came.",
        unit="s",
        thresholds=((None, "green"), (15, "yellow"), (config.WEBHOOK_LAG_S, "red")),
        alerts=("WebhookLag",),
    )


def late() -> Panel:
    """Samples that came after their window was closed."""
    return Panel(
        "Late samples, by family",
        "timeseries",
        (series.times("runnerstream_late_samples_total", "family"),),
        healthy="0, or a few after an outage. They are in ClickHouse all the same.",
        deviation="webhooks come later than `lateness` allows: windows have too few samples.",
        todo="see From an event at the provider to its arrival; raise RUNNERSTREAM_LATENESS.",
        no_data=NO_WORKER,
        alerts=("LateSamples",),
    )


def telemetry_late() -> Panel:
    """Telemetry that came late, as a share."""
    return Panel(
        "Late telemetry, share by family",
        "timeseries",
        (
            Promql(
                "sum by (family) (rate(runnerstream_telemetry_late_total[$__rate_interval]))"
                " / (sum by (family)"
                " (rate(runnerstream_telemetry_events_total[$__rate_interval])) > 0)",
                "{{family}}",
            ),
        ),
        healthy="0.",
        deviation="it came a quarter of an hour after it happened, and counts in no metric.",
        todo="whoever posts it is behind, or its clock is slow.",
        no_data="nobody posts telemetry, or no worker is scraped.",
        unit="percentunit",
        maximum=1,
        alerts=("TelemetryLate",),
    )


def repeated() -> Panel:
    """Facts that were known, came out of order, or are too many."""
    return Panel(
        "Duplicates and disorder",
        "timeseries",
        tuple(
            Promql(f"sum(rate({metric}[$__rate_interval]))", legend)
            for metric, legend in (
                ("runnerstream_duplicate_facts_total", "known already"),
                ("runnerstream_out_of_order_facts_total", "out of order"),
                ("runnerstream_expired_facts_total", "of forgotten jobs"),
                ("runnerstream_crowded_facts_total", "beyond 1,000 of a job"),
            )
        ),
        healthy="some of each: providers deliver twice and in any order. It changes no answer.",
        deviation="a jump: somebody replays. Beyond 1,000 of a job: somebody posts in a loop.",
        todo="nothing, unless it costs too much CPU.",
        no_data=NO_WORKER,
        unit="ops",
    )


def missed() -> Panel:
    """Records that were removed before they were read."""
    return Panel(
        "Records missed, by topic",
        "timeseries",
        (series.times("runnerstream_records_missed_total", "topic"),),
        healthy="0, always.",
        deviation="retention removed records before workers read them: what they told is lost.",
        todo="docs/operators.md, Records missed. Post them again if producers kept them.",
        no_data=NO_WORKER,
        alerts=("RecordsMissed",),
    )


def odd() -> Panel:
    """Fields with values that cannot be."""
    return Panel(
        "Odd fields",
        "timeseries",
        (
            Promql(
                "topk(10, sum by (field, reason)"
                " (increase(runnerstream_odd_fields_total[$__rate_interval])) > 0)",
                "{{field}}: {{reason}}",
            ),
            Promql("sum(increase(runnerstream_odd_fields_total[$__rate_interval]))", "all"),
        ),
        healthy="0. An event with an odd field counts; only the field is left out.",
        deviation="a producer or a provider has changed a format.",
        todo="find an example in events_raw and compare with docs/producers.md.",
        no_data=NO_WORKER,
    )


def clocks() -> Panel:
    """Times and ticks that are not believed."""
    return Panel(
        "Times that are not believed",
        "timeseries",
        (
            Promql("sum(increase(runnerstream_future_times_total[$__rate_interval]))", "of facts"),
            Promql(
                "sum by (reason) (increase(runnerstream_ticks_refused_total[$__rate_interval]))",
                "ticks: {{reason}}",
            ),
            Promql("sum(increase(runnerstream_clocks_healed_total[$__rate_interval]))", "healed"),
        ),
        healthy="0; ticks of the past at a rebalance.",
        deviation="of facts: a producer's clock is ahead. ticks: future, healed: a worker's is.",
        todo="look at the time synchronisation of the machines.",
        no_data=NO_WORKER,
        alerts=("PipelineClockWrong", "SourceClockAhead"),
    )


def missing() -> Panel:
    """Timings that completed jobs do not have."""
    return Panel(
        "Timings that jobs do not have, by reason",
        "timeseries",
        (
            Promql(
                "sum by (family, reason)"
                " (increase(runnerstream_timings_missing_total[$__rate_interval])) > 0",
                "{{family}}: {{reason}}",
            ),
            Promql("sum(increase(runnerstream_timings_missing_total[$__rate_interval]))", "all"),
        ),
        healthy="not_started and no_claim: of jobs that never ran, or of fleets without claims.",
        deviation="no_queued, no_started: webhooks are lost. negative: clocks are apart.",
        todo="see Missed deliveries; have `runnerstream redeliver` run.",
        no_data=NO_WORKER,
        width=24,
        height=6,
    )


def requests() -> Panel:
    """Webhooks by how the gateway answered."""
    return Panel(
        "Webhooks at the gateway, by outcome",
        "timeseries",
        (series.rate("runnerstream_gateway_requests_total", "outcome"),),
        healthy="accepted and ignored, some duplicate.",
        deviation="unauthenticated: a secret differs. unavailable: Kafka does not answer, and the "
        "provider must deliver again. malformed, too_large, timeout: not a webhook.",
        todo="docs/gateway.md; the gateway's log names the reason.",
        no_data=NO_GATEWAY,
        unit="reqps",
        colours=OUTCOMES,
        alerts=("WebhooksRefused",),
    )


def deliveries() -> Panel:
    """Deliveries about jobs by what became of them."""
    return Panel(
        "Deliveries about jobs, by outcome",
        "timeseries",
        (series.rate("runnerstream_webhook_jobs_total", "outcome"),),
        healthy="accepted.",
        deviation="no_account, no_fleet: the routes leave them out. malformed: dead letters.",
        todo="docs/operators.md, Routes.",
        no_data=NO_WORKER,
        unit="ops",
        colours=OUTCOMES,
        alerts=("WebhooksDropped",),
    )


def latency() -> Panel:
    """How long the gateway takes."""
    return Panel(
        "Time of an answer",
        "timeseries",
        (
            *series.quantiles("runnerstream_gateway_request_seconds"),
            Promql(series.quantile("runnerstream_gateway_ack_seconds", 0.95).text, "Kafka, p95"),
        ),
        healthy="p99 below 100 ms. A provider gives up after 10 s.",
        deviation="Kafka is slow, or bodies come slowly.",
        todo="if Kafka's line is as high, look at Kafka.",
        no_data=NO_GATEWAY,
        unit="s",
        thresholds=((None, "green"), (0.5, "yellow"), (5, "red")),
    )


def silence() -> Panel:
    """Since when no webhook came."""
    return Panel(
        "Since the latest webhook",
        "timeseries",
        (
            Promql(
                "time() - max by (provider)"
                " (runnerstream_gateway_last_delivery_timestamp_seconds > 0)",
                "{{provider}}",
            ),
        ),
        healthy="as at this time of other days.",
        deviation="the provider does not deliver, or cannot reach the gateway.",
        todo="see the webhook's deliveries at the provider.",
        no_data="no gateway is scraped, or none has had an authentic delivery.",
        unit="s",
        alerts=("WebhookSilence",),
    )


def gateways() -> Panel:
    """What gateways hold, and whether Kafka takes it."""
    return Panel(
        "Gateways",
        "timeseries",
        (
            Promql("min(runnerstream_gateway_kafka_up)", "Kafka answers (1)"),
            Promql("sum(runnerstream_gateway_in_flight)", "wait for Kafka"),
            Promql("sum(runnerstream_gateway_connections)", "connections"),
            Promql("sum(increase(runnerstream_gateway_broken_off_total[$__rate_interval]))",
                   "broken off"),
            Promql("sum(increase(runnerstream_gateway_strangers_total[$__rate_interval]))",
                   "strangers"),
        ),
        healthy="Kafka answers, and nothing waits.",
        deviation="Kafka does not answer (0): deliveries get 503. strangers: connections from "
        "networks that are not allowed.",
        todo="look at Kafka; at the allowed networks.",
        no_data=NO_GATEWAY,
        alerts=("GatewayKafkaDown",),
    )  # fmt: skip


def missed_deliveries() -> Panel:
    """Deliveries that never came."""
    return Panel(
        "Missed deliveries",
        "timeseries",
        (
            Promql("sum(runnerstream_missed_open)", "open"),
            Promql("sum(increase(runnerstream_missed_found_total[$__rate_interval]))", "found"),
            Promql("sum(increase(runnerstream_missed_filled_total[$__rate_interval]))", "filled"),
            Promql(
                "sum by (reason) (increase(runnerstream_missed_given_up_total[$__rate_interval]))",
                "given up: {{reason}}",
            ),
        ),
        healthy="what is found is filled within minutes.",
        deviation="given up: nobody asks any more; what it told is lost unless a probe finds it.",
        todo="docs/gateway.md, Missed deliveries.",
        no_data=NO_REDELIVER,
        alerts=("MissedWebhooksGivenUp",),
    )


def redelivered() -> Panel:
    """What came of asking for them again."""
    return Panel(
        "Redeliveries, by what came of it",
        "timeseries",
        (series.times("runnerstream_redeliveries_total", "outcome"),),
        healthy="done.",
        deviation="refused, failed, gone: the provider does not deliver again. not: a limit, or no "
        "permission.",
        todo="`runnerstream doctor` says as whom deliveries are asked for.",
        no_data=NO_REDELIVER,
    )


def passes() -> Panel:
    """How old the latest pass over lists is."""
    return Panel(
        "Since the latest pass, and the oldest missed",
        "timeseries",
        (
            Promql(
                "time() - max by (over) (runnerstream_missed_pass_timestamp_seconds > 0)",
                "pass over {{over}}",
            ),
            Promql("max(runnerstream_missed_oldest_seconds)", "oldest missed"),
        ),
        healthy="passes within minutes; the oldest missed below an hour.",
        deviation="the provider's API fails or limits, so lists are not read.",
        todo="see Requests to providers, by outcome, in Recovery.",
        no_data=NO_REDELIVER,
        unit="s",
        thresholds=((None, "green"), (1_800, "yellow"), (config.PASS_S, "red")),
        alerts=("RedeliverPassOld",),
    )


def relay() -> Panel:
    """What the target of a relay makes of what it gets."""
    return Panel(
        "Relayed, by answer of the target",
        "timeseries",
        (
            series.rate("runnerstream_relay_attempts_total", "answer"),
            Promql("max(runnerstream_relay_paused)", "paused (1)"),
        ),
        healthy="taken.",
        deviation="paused: the target takes nothing and is only tried now and then.",
        todo="look at the target; docs/relay.md.",
        no_data="no relay is scraped.",
        width=8,
        alerts=("RelayPaused",),
    )


def relay_delay() -> Panel:
    """How late it gets it."""
    return Panel(
        "From arrival to the target",
        "timeseries",
        (
            *series.quantiles("runnerstream_relay_delay_seconds"),
            Promql("max(runnerstream_relay_oldest_age_seconds)", "oldest that waits"),
        ),
        healthy="p99 below a second.",
        deviation="the target is slow or away.",
        todo="look at the target; docs/relay.md.",
        no_data="no relay is scraped.",
        unit="s",
        width=8,
        thresholds=((None, "green"), (5, "yellow"), (60, "red")),
    )


def scrape() -> Panel:
    """Pages of runners that are read, and that cannot be."""
    return Panel(
        "Pages of runners",
        "timeseries",
        (
            Promql("sum(runnerstream_scrape_targets)", "looked at"),
            Promql("sum(runnerstream_scrape_blind)", "not readable"),
        ),
        healthy="all readable.",
        deviation="a runner's machine is away, or its page is not where it was.",
        todo="`runnerstream scrape` names them in its log.",
        no_data="no `scrape` runs.",
        width=8,
        alerts=("ScrapeBlind",),
    )
