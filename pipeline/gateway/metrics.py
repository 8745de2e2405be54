"""What a gateway tells Prometheus. Every metric is declared here, once, with type and labels.

To count a delivery takes some 5 us, and three times that where nothing of it is in the processor's
cache. So what is counted for each delivery is noted, and counted many at a time: several times a
second, and whenever somebody reads.
"""

from __future__ import annotations

import threading
from collections import Counter as Counts
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pipeline.gateway.answers import Outcome
from pipeline.providers.registry import PROVIDERS

#: The provider of a request to no provider's path, and the action of one that was not read so far.
NONE: Final = "none"
OTHER: Final = "other"

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_BYTES: Final = (1_000, 5_000, 10_000, 20_000, 50_000, 100_000, 1_000_000, 10_000_000, 27_000_000)


T = TypeVar("T")


class _First(Collector):
    """Is read before all others, and has nothing of its own to tell."""

    def __init__(self, read: Callable[[], None]) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        """Nothing."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Nothing."""
        self._read()
        return iter(())


class GatewayMetrics:
    """The gateway's metrics in one registry. Nothing that is sent becomes a label."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self.registry.register(_First(self.settle))
        self._settling = threading.Lock()
        # What is noted and not counted yet.
        self._answered: deque[tuple[str, str, Outcome, float]] = deque()
        self._authentic: deque[tuple[str, int, float]] = deque()
        self._acked: deque[float] = deque()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"runnerstream_gateway_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"runnerstream_gateway_{name}", text, labels, registry=self.registry)

        def histogram(
            name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
        ) -> Histogram:
            return Histogram(f"runnerstream_gateway_{name}", text, labels,
                             registry=self.registry, buckets=buckets)  # fmt: skip

        #: Counter by provider, action and outcome (answers.Outcome): requests answered.
        self.requests = counter(
            "requests", "Requests answered, by how they ended", ("provider", "action", "outcome")
        )
        #: Counter: requests whose sender had gone, or broke off, before there was an answer.
        self.broken_off = counter("broken_off", "Requests that their sender broke off")
        #: Counter: connections refused because of where they come from.
        self.strangers = counter("strangers", "Connections from networks that are not allowed")
        #: Histogram by provider, seconds: from a request's header to its answer.
        self.seconds = histogram("request_seconds", "From the header of a request to its answer",
                                 ("provider",), _SECONDS)  # fmt: skip
        #: Histogram by provider, bytes: of bodies that were signed.
        self.body_bytes = histogram(
            "body_bytes", "Sizes of authentic bodies", ("provider",), _BYTES
        )
        #: Histogram, seconds: from the hand-over of a record to Kafka's acknowledgement.
        self.ack_seconds = histogram("ack_seconds", "Time that Kafka took to acknowledge", (),
                                     _SECONDS)  # fmt: skip
        #: Gauge: records that wait for Kafka.
        self.in_flight = gauge("in_flight", "Deliveries that wait for Kafka")
        #: Gauge, bytes: bodies held, read or waiting for Kafka.
        self.held_bytes = gauge("held_bytes", "Bytes of bodies held")
        #: Gauge: connections.
        self.connections = gauge("connections", "Connections to the gateway")
        #: Counter by reason: connections closed because they took too long (``overdue``), or to
        #: make room for others (``evicted``).
        self.closed = counter("connections_closed", "Connections closed for their slowness",
                              ("reason",))  # fmt: skip
        #: Gauge by provider, seconds since 1970: of the latest authentic delivery.
        self.last_delivery = gauge("last_delivery_timestamp_seconds",
                                   "When the latest authentic delivery came; absent before the "
                                   "first", ("provider",))  # fmt: skip
        #: Gauge, 0 or 1: whether Kafka takes what comes.
        self.kafka_up = gauge("kafka_up", "1 while Kafka answers")

        # Children by label, because looking them up takes longer than counting.
        self._requests: dict[tuple[str, str, Outcome], Counter] = {}
        self._seconds: dict[str, Histogram] = {}
        self._bytes: dict[str, Histogram] = {}
        for reason in ("overdue", "evicted"):
            self.closed.labels(reason)
        for outcome in Outcome:
            known = [(NONE, NONE)]
            for provider in PROVIDERS.values():
                known += [(provider.name, action) for action in (*provider.actions, OTHER, NONE)]
            for name, action in known:
                child = self.requests.labels(name, action, outcome.value)
                self._requests[name, action, outcome] = child
        for name in (*PROVIDERS, NONE):
            self._seconds[name] = self.seconds.labels(name)
        for name in PROVIDERS:
            self._bytes[name] = self.body_bytes.labels(name)

    def answered(self, provider: str, action: str, outcome: Outcome, seconds: float) -> None:
        """Count a request."""
        self._answered.append((provider, action, outcome, seconds))

    def authentic(self, provider: str, size: int, at: float) -> None:
        """Note a delivery that came at a time, in seconds since 1970."""
        self._authentic.append((provider, size, at))

    def acked(self, seconds: float) -> None:
        """Note how long Kafka took for a record."""
        self._acked.append(seconds)

    def settle(self) -> None:
        """Count what is noted. From any thread."""
        with self._settling:
            self._settle()

    def _settle(self) -> None:
        counts: Counts[tuple[str, str, Outcome]] = Counts()
        for provider, action, outcome, seconds in _taken(self._answered):
            counts[provider, action, outcome] += 1
            self._seconds[provider].observe(seconds)
        for (provider, action, outcome), number in counts.items():
            child = self._requests.get((provider, action, outcome))
            (child or self._requests[provider, OTHER, outcome]).inc(number)
        latest: dict[str, float] = {}
        for provider, size, at in _taken(self._authentic):
            self._bytes[provider].observe(size)
            latest[provider] = at
        for provider, at in latest.items():
            self.last_delivery.labels(provider).set(at)
        for seconds in _taken(self._acked):
            self.ack_seconds.observe(seconds)

    def watch(
        self,
        in_flight: Callable[[], float],
        held: Callable[[], float],
        connections: Callable[[], float],
    ) -> None:
        """Who knows how things are now."""
        self.in_flight.set_function(in_flight)
        self.held_bytes.set_function(held)
        self.connections.set_function(connections)


def _taken(noted: deque[T]) -> Iterator[T]:
    """Each of what is there now."""
    for _ in range(len(noted)):
        yield noted.popleft()
