"""What the role ``scrape`` tells Prometheus. Every metric is declared here, once."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pipeline.scrape.fetch import Outcome


class ScrapeMetrics:
    """The metrics in one registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        #: Counter by outcome (Outcome).
        self.scrapes = Counter(
            "runnerstream_scrapes", "Looks at pages, by what became of them", ("outcome",),
            registry=self.registry,
        )  # fmt: skip
        for outcome in Outcome:
            self.scrapes.labels(outcome.value)
        #: Histogram, seconds.
        self.seconds = Histogram(
            "runnerstream_scrape_seconds", "How long a look took, until its page was read",
            registry=self.registry, buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )  # fmt: skip
        self.events = Counter(
            "runnerstream_scrape_events", "Events that Kafka has taken", registry=self.registry
        )
        self.restarts = Counter(
            "runnerstream_scrape_restarts",
            "Processes that were found to have started again: they count from 0",
            registry=self.registry,
        )
        self.targets = Gauge(
            "runnerstream_scrape_targets", "Pages that are looked at", registry=self.registry
        )
        self.blind = Gauge(
            "runnerstream_scrape_blind", "Of these, those that could not be read the last time",
            registry=self.registry,
        )  # fmt: skip
