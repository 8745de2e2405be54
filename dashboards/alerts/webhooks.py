"""Webhooks: whether they come, in time, and are taken. And telling them on, or asking again."""

from __future__ import annotations

from typing import Final

from dashboards import config
from dashboards.alerts.model import PIPELINE, Alert, Group, by

ALL: Final = by()
HEARD: Final = "runnerstream_webhooks_total"

# At night nothing comes and nothing is wrong: so what came at this hour a week ago counts.
SILENCE: Final = Alert(
    "WebhookSilence",
    "critical",
    f"""sum {ALL} (increase({HEARD}[1h])) == 0
and
(
  sum {ALL} (increase({HEARD}[1h] offset 1w)) > {config.WEBHOOKS_EXPECTED}
  or sum {ALL} (runnerstream_jobs{{status=~"queued|running"}}) > 0
)""",
    "15m",
    "No webhook has come for an hour",
    "No webhook has come for an hour, though jobs are open or at this hour there should be some.",
    PIPELINE,
)
LAG: Final = Alert(
    "WebhookLag",
    "warning",
    f"""histogram_quantile(
  0.95, sum {by("le")} (rate(runnerstream_webhook_lag_seconds_bucket[15m]))
) > {config.WEBHOOK_LAG_S}""",
    "15m",
    "Webhooks come late",
    "The 95th percentile from the event to its arrival is {{ $value | humanizeDuration }}.",
    PIPELINE,
)
DROPPED: Final = Alert(
    "WebhooksDropped",
    "warning",
    f"""sum {by("outcome")} (
  increase(runnerstream_webhook_jobs_total{{outcome!="accepted"}}[15m]))
/ on ({", ".join(config.SCOPE)}) group_left ()
(sum {ALL} (increase(runnerstream_webhook_jobs_total[15m])) > {config.FEW})
> {config.DROPPED}""",
    "15m",
    "Deliveries about jobs are not counted",
    "{{ $value | humanizePercentage }} of the deliveries about jobs are dropped: "
    "{{ $labels.outcome }}.",
    PIPELINE,
)
REFUSED: Final = Alert(
    "WebhooksRefused",
    "critical",
    f"""sum {by("provider")} (increase(runnerstream_gateway_requests_total{{
  outcome=~"unauthenticated|malformed|too_large|timeout|unavailable"}}[15m]))
/ (sum {by("provider")} (increase(runnerstream_gateway_requests_total[15m])) > {config.FEW})
> {config.DROPPED}""",
    "10m",
    "The gateway refuses webhooks",
    "{{ $value | humanizePercentage }} of the requests of {{ $labels.provider }} are refused.",
    PIPELINE,
)
KAFKA: Final = Alert(
    "GatewayKafkaDown",
    "critical",
    f"min {by('instance')} (runnerstream_gateway_kafka_up) == 0",
    "2m",
    "A gateway cannot write to Kafka",
    "The gateway at {{ $labels.instance }} has no Kafka, and answers 503.",
    PIPELINE,
)
GIVEN_UP: Final = Alert(
    "MissedWebhooksGivenUp",
    "warning",
    f"sum {by('reason')} (increase(runnerstream_missed_given_up_total[1h])) > 0",
    "0m",
    "Webhooks that never came are not asked for any more",
    '{{ printf "%.0f" $value }} deliveries were given up: {{ $labels.reason }}.',
    PIPELINE,
)
PASS: Final = Alert(
    "RedeliverPassOld",
    "warning",
    f"""time() - max {by("over")} (runnerstream_missed_pass_timestamp_seconds)
> {config.PASS_S}""",
    "5m",
    "Nobody has looked for missed webhooks for a while",
    "The latest pass over {{ $labels.over }} came to its end {{ $value | humanizeDuration }} ago.",
    PIPELINE,
)
RELAY: Final = Alert(
    "RelayPaused",
    "critical",
    f"max {by('instance')} (runnerstream_relay_paused) == 1",
    "10m",
    "The target of a relay takes nothing",
    "The relay at {{ $labels.instance }} only tries its target now and then.",
    PIPELINE,
)
SCRAPE: Final = Alert(
    "ScrapeBlind",
    "warning",
    f"max {by('instance')} (runnerstream_scrape_blind) > 0",
    "10m",
    "Pages of runners cannot be read",
    "{{ $value }} of the pages that {{ $labels.instance }} looks at cannot be read.",
    PIPELINE,
)

GROUP: Final = Group(
    "webhooks", (SILENCE, LAG, DROPPED, REFUSED, KAFKA, GIVEN_UP, PASS, RELAY, SCRAPE)
)
