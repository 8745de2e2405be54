"""What a relay tells Prometheus. Every metric is declared here, once, with type and labels."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pipeline.providers.registry import PROVIDERS
from pipeline.relay.pace import Answer
from pipeline.relay.screen import Skip

#: Why a delivery became a dead letter: the target refused it, or did not take it in time.
REFUSED: Final = "refused"
EXPIRED: Final = "expired"

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_DELAYS: Final = (0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60, 300, 1_800, 3_600, 14_400, 86_400)


class RelayMetrics:
    """The metrics of one relay, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"runnerstream_relay_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"runnerstream_relay_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"runnerstream_relay_{name}", text, (), registry=self.registry,
                             buckets=buckets)  # fmt: skip

        #: Counter by provider: deliveries that the target took.
        self.delivered = counter("delivered", "Deliveries that the target took", ("provider",))
        #: Counter by answer (pace.Answer): attempts, by what came of them.
        self.attempts = counter("attempts", "Attempts, by what came of them", ("answer",))
        #: Counter by reason (screen.Skip): records that were not passed on.
        self.skipped = counter("skipped", "Records that were not passed on, by why", ("reason",))
        #: Counter by reason: deliveries set aside, refused or expired.
        self.dead_letters = counter("dead_letters", "Deliveries set aside as dead letters: "
                                    "refused by the target, or expired", ("reason",))  # fmt: skip
        #: Counter: records that retention removed before they were read.
        self.lost = counter("lost", "Records removed from the topic before they were read")
        #: Histogram, seconds: of one attempt.
        self.seconds = histogram("request_seconds", "Time of one attempt", _SECONDS)
        #: Histogram, seconds: from a record's time to the target's answer.
        self.delay = histogram("delay_seconds", "From the arrival of a delivery until the target "
                               "took it", _DELAYS)  # fmt: skip
        #: Gauge: deliveries under way.
        self.in_flight = gauge("in_flight", "Deliveries under way")
        #: Gauge: deliveries read that have not ended.
        self.waiting = gauge("waiting", "Deliveries read that have not ended")
        #: Gauge, 0 or 1: whether the target gets one delivery at a time because it takes none.
        self.paused = gauge("paused", "1 while the target takes nothing and is only tried now and "
                            "then")  # fmt: skip
        #: Gauge by partition, records: not done with, of the partitions that are ours.
        self.lag = gauge("lag_records", "Records not done with yet", ("partition",))
        #: Gauge, seconds: since the arrival of the oldest delivery in hand; 0 without any.
        self.oldest = gauge("oldest_age_seconds", "Age of the oldest delivery that has not ended")
        #: Gauge, seconds since 1970: of the latest delivery that the target took.
        self.last_delivery = gauge("last_delivery_timestamp_seconds", "When the target took one "
                                   "last; 0 before the first")  # fmt: skip

        for name in PROVIDERS:
            self.delivered.labels(name)
        for answer in Answer:
            self.attempts.labels(answer.value)
        for reason in Skip:
            self.skipped.labels(reason.value)
        for why in (REFUSED, EXPIRED):
            self.dead_letters.labels(why)
