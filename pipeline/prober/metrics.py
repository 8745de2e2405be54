"""What the prober tells Prometheus. Every metric is declared here, once, with type and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pipeline.providers.api import Outcome
from topics.models import Reason
from topics.recovery import Answer

_BUDGET: Final = GaugeMetricFamily(
    "runnerstream_api_budget_remaining",
    "Requests that the provider still allows, of the account with the fewest; absent while unknown",
)


class ProberMetrics:
    """The prober's metrics in one registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"runnerstream_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"runnerstream_{name}", text, registry=self.registry)

        #: Counter by answer (topics.recovery.Answer): probes answered, with the broker's word.
        self.probes = counter("probes", "Probes answered", ("answer",))
        #: Histogram, seconds: from the first request of a question to its acknowledged answer.
        self.seconds = Histogram(
            "runnerstream_probe_seconds",
            "From the request of a question to its acknowledged answer",
            registry=self.registry,
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )
        #: Counter by outcome (Outcome): requests to providers.
        self.requests = counter("api_requests", "Requests to providers, by how they ended",
                                ("outcome",))  # fmt: skip
        #: Counter: questions that were asked in vain and asked again.
        self.retries = counter("probe_retries", "Questions asked in vain that are asked again")
        #: Counter: probes that nobody waits for any more.
        self.expired = counter("probes_expired", "Probes dropped because nobody waits for them")
        #: Counter by reason (topics.models.Reason): records that are no probes.
        self.dead_letters = counter(
            "prober_dead_letters", "Records of the prober's topic set aside as dead letters",
            ("reason",),
        )  # fmt: skip
        #: Gauge: probes that wait to be asked.
        self.waiting = gauge("probes_waiting", "Probes that wait to be asked")
        #: Gauge, seconds: how long the one has waited that waits longest; 0 when none waits.
        self.oldest = gauge("probes_oldest_seconds", "How long the oldest waiting probe has waited")

        for answer in Answer:
            self.probes.labels(answer.value)
        for outcome in Outcome:
            self.requests.labels(outcome.value)
        for reason in Reason:
            self.dead_letters.labels(reason.value)
        self._remaining: Callable[[], int | None] = lambda: None
        self.registry.register(_Budget(self))

    def request(self, outcome: Outcome) -> None:
        """A request ended so."""
        self.requests.labels(outcome.value).inc()

    def watch(self, remaining: Callable[[], int | None]) -> None:
        """Who knows what the provider still allows."""
        self._remaining = remaining

    def remaining(self) -> int | None:
        """What the provider still allows; None: not known."""
        return self._remaining()


class _Budget(Collector):
    """The gauge of the budget, which has no value while it is not known (law L9)."""

    def __init__(self, metrics: ProberMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Called when Prometheus asks."""
        made = GaugeMetricFamily(_BUDGET.name, _BUDGET.documentation)
        left = self._metrics.remaining()
        if left is not None:
            made.add_metric([], left)
        yield made
