"""What every process tells Prometheus of itself, in the standard names where there are any.

``process_*`` memory, processor time, files and start; ``python_*`` the interpreter, and how often
it collected garbage; and ours: which version runs, its threads, and for how long it stood still
for the garbage collector.
"""

from __future__ import annotations

import gc
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

#: Seconds. Most collections take less than a millisecond, a full one of a large worker seconds.
PAUSE_BUCKETS: Final = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 10)


_LES: Final = (*(str(float(bound)) for bound in PAUSE_BUCKETS), "+Inf")


class Pauses:
    """For how long the process stood still for the garbage collector, from :meth:`watch` on."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._watching = False
        self.counts = [0] * (len(PAUSE_BUCKETS) + 1)
        self.total_s = 0.0

    def watch(self) -> None:
        """Begin to measure; once is enough."""
        if not self._watching:
            self._watching = True
            gc.callbacks.append(self._on_collection)

    def _on_collection(self, phase: str, info: Any) -> None:
        # Only one collection is on at a time in a process, and it is in one thread.
        if phase == "start":
            self._began = time.perf_counter()
        elif self._began is not None:
            took, self._began = time.perf_counter() - self._began, None
            self.counts[bisect_left(PAUSE_BUCKETS, took)] += 1
            self.total_s += took


_pauses: Final = Pauses()


class _Ours(Collector):
    """Version, threads, pauses."""

    def __init__(self, version: str) -> None:
        self._version = version

    def collect(self) -> Iterable[Metric]:
        build = GaugeMetricFamily(
            "runnerstream_build_info", "1, with the version that runs.", labels=["version"]
        )
        build.add_metric([self._version], 1)
        threads = GaugeMetricFamily(
            "runnerstream_threads", "Threads of the interpreter.", threading.active_count()
        )
        pauses = HistogramMetricFamily(
            "runnerstream_gc_pause_seconds",
            "For how long the process stood still for a collection of garbage.",
            list(zip(_LES, accumulate(_pauses.counts), strict=True)),
            _pauses.total_s,
        )
        return [build, threads, pauses]


def tell_process(registry: CollectorRegistry, version: str) -> None:
    """Have a registry tell of this process. Once for each registry."""
    _pauses.watch()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(_Ours(version))
