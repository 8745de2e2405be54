"""What the role ``redeliver`` tells Prometheus. Every metric is declared here, once."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pipeline.providers.api import Outcome
from pipeline.providers.deliveries import Asked
from pipeline.redeliver.fill import Pass
from pipeline.redeliver.reconcile import Told
from topics.missed import Over

#: What is passed over, a label: lists of hooks, and runs of repositories.
HOOKS: Final = "hooks"
RUNS: Final = "runs"


class RedeliverMetrics:
    """The metrics in one registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"runnerstream_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"runnerstream_{name}", text, labels, registry=self.registry)

        self.looked = counter("missed_looked", "Attempts that lists of deliveries showed")
        self.found = counter("missed_found", "Deliveries found that never came")
        self.filled = counter("missed_filled", "Of these, those that came then")
        self.given_up = counter("missed_given_up", "Of these, those that nobody asks for any more",
                                ("reason",))  # fmt: skip
        #: Counter by what came of it (Asked).
        self.asked = counter("redeliveries", "Redeliveries asked for, by what came of it",
                             ("outcome",))  # fmt: skip
        #: Histogram, seconds.
        self.seconds = Histogram(
            "runnerstream_missed_seconds",
            "From the first attempt to deliver to the one that came",
            registry=self.registry,
            buckets=(60, 300, 600, 1_800, 3_600, 4 * 3_600, 12 * 3_600, 86_400, 3 * 86_400),
        )
        self.open = gauge("missed_open", "Missed deliveries that are asked for")
        self.oldest = gauge(
            "missed_oldest_seconds",
            "How long the oldest of them has been missed; 0 when there is none",
        )
        self.unread = gauge("missed_unread", "Parts of lists that were not read yet")
        self.passed = gauge("missed_pass_timestamp_seconds",
                            "When the latest pass came to its end; absent before the first",
                            ("over",))  # fmt: skip
        self.cut = counter("missed_passes_cut", "Passes that did not come to their end",
                           ("over",))  # fmt: skip
        self.runs = counter("reconciled_runs", "Runs that the API told of something new")
        self.facts = counter("reconciled_facts", "Facts posted of them and their jobs")
        #: Counter by outcome (Outcome): requests to providers.
        self.requests = counter("api_requests", "Requests to providers, by how they ended",
                                ("outcome",))  # fmt: skip
        for outcome in Outcome:
            self.requests.labels(outcome.value)
        for asked in Asked:
            self.asked.labels(asked.value)
        for over in Over:
            self.given_up.labels(over.value)
        for what in (HOOKS, RUNS):
            self.cut.labels(what)

    def request(self, outcome: Outcome) -> None:
        """A request ended so."""
        self.requests.labels(outcome.value).inc()

    def read(self, done: Pass, now: int) -> None:
        """A pass over a hook's list has ended, by now (ms)."""
        self.looked.inc(done.looked)
        self.found.inc(len(done.news.found))
        for asked, number in done.asked.items():
            self.asked.labels(asked.value).inc(number)
        for each in done.news.given_up:
            assert each.over is not None
            self.given_up.labels(each.over.value).inc()
        for each in done.news.filled:
            self.filled.inc()
            self.seconds.observe(max(0, (each.good_at or each.at) - each.at) / 1000)
        self._ended(HOOKS, done.trouble, now)

    def told(self, done: Told, now: int) -> None:
        """A pass over a repository's runs has ended, by now (ms)."""
        self.runs.inc(done.runs)
        self.facts.inc(done.facts)
        self._ended(RUNS, done.trouble, now)

    def _ended(self, what: str, trouble: str, now: int) -> None:
        if trouble:
            self.cut.labels(what).inc()
        else:
            self.passed.labels(what).set(now / 1000)
