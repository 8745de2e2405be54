"""What a runner's ``/metrics`` says: act_runner, which is called gitea_runner now. Pure.

Both names are read, each by what a series is called, whatever type the page gives it. What cannot
be (NaN, below 0, a bucket with less than the one before) is as if it were not there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

#: What its series begin with, the newer first: a page with both is read by that.
NAMESPACES: Final = ("gitea_runner_", "act_runner_")
#: Counters by name, and the label that tells their series apart.
COUNTERS: Final[Mapping[str, str]] = {
    "poll_fetch_total": "result",
    "job_total": "status",
    "report_log_total": "result",
    "report_state_total": "result",
    "client_errors_total": "method",
}
GAUGES: Final = (
    "capacity", "uptime_seconds", "poll_backoff_seconds", "job_running", "report_log_buffer_rows",
)  # fmt: skip
HISTOGRAMS: Final = (
    "poll_fetch_duration_seconds", "job_duration_seconds", "report_log_duration_seconds",
    "report_state_duration_seconds",
)  # fmt: skip
_PROCESS_START: Final = "process_start_time_seconds"
#: Beyond what a count can be.
_MOST: Final = 2**53
_MOST_BUCKETS: Final = 100


class Odd(Exception):
    """The page is none of a runner, in a few words."""


@dataclass(frozen=True)
class Distribution:
    """A histogram: its finite bounds, the values up to each of them and in all, and their sum."""

    bounds: tuple[float, ...]
    up_to: tuple[int, ...]
    total: float


@dataclass
class Page:
    """One look. What the page does not say is missing."""

    #: As the runner calls itself, and its version.
    info: tuple[str, str] | None = None
    #: Unix time, seconds.
    process_start: float | None = None
    gauges: dict[str, float] = field(default_factory=dict)
    #: By name, then by the value of the label.
    counters: dict[str, dict[str, int]] = field(default_factory=dict)
    histograms: dict[str, Distribution] = field(default_factory=dict)


def read(text: str) -> Page:
    """Parse a page. Raises :class:`Odd` for what is none."""
    if not text.endswith("\n"):
        raise Odd("it is empty or cut off")
    try:
        samples = [each for family in text_string_to_metric_families(text)
                   for each in family.samples]  # fmt: skip
    except Exception as error:
        # The parser trips over odd text in many ways, and none of them is ours to mend.
        raise Odd("it is not in Prometheus' text format") from error
    for namespace in NAMESPACES:
        ours = [each for each in samples if each.name.startswith(namespace)]
        if ours:
            break
    else:
        raise Odd("it has no series of act_runner or gitea_runner")
    page = Page()
    for each in samples:
        if each.name == _PROCESS_START and _is_amount(each.value):
            page.process_start = float(each.value)
    buckets: dict[str, dict[float, float]] = {}
    for each in ours:
        _take(page, buckets, each.name.removeprefix(namespace), each)
    for name, found in buckets.items():
        made = _distribution(found, _sum_of(ours, f"{namespace}{name}_sum"))
        if made is not None:
            page.histograms[name] = made
    return page


def _take(page: Page, buckets: dict[str, dict[float, float]], name: str, sample: Sample) -> None:
    value = float(sample.value)
    if name == "info":
        page.info = (_printable(sample.labels, "name"), _printable(sample.labels, "version"))
    elif name in GAUGES and _is_amount(value):
        page.gauges[name] = value
    elif name in COUNTERS and _is_amount(value) and COUNTERS[name] in sample.labels:
        counts = page.counters.setdefault(name, {})
        label = sample.labels[COUNTERS[name]]
        counts[label] = counts.get(label, 0) + int(value)
    elif name.removesuffix("_bucket") in HISTOGRAMS and name.endswith("_bucket"):
        try:
            bound = float(sample.labels.get("le", ""))
        except ValueError:
            bound = math.nan
        buckets.setdefault(name.removesuffix("_bucket"), {})[bound] = value


def _sum_of(samples: Iterable[Sample], name: str) -> float:
    return next((float(each.value) for each in samples if each.name == name), math.nan)


def _distribution(found: Mapping[float, float], total: float) -> Distribution | None:
    """A histogram; None when it cannot be."""
    if not _is_amount(total) or not all(map(_is_amount, found.values())):
        return None
    if any(math.isnan(bound) or bound < 0 for bound in found) or len(found) > _MOST_BUCKETS:
        return None
    bounds = sorted(found)
    up_to = tuple(int(found[bound]) for bound in bounds)
    if not bounds or not math.isinf(bounds[-1]) or list(up_to) != sorted(up_to):
        return None
    return Distribution(tuple(bounds[:-1]), up_to, total)


def _printable(labels: Mapping[str, str], name: str) -> str:
    return "".join(char for char in labels.get(name, "") if char.isprintable())[:200]


def _is_amount(value: float) -> bool:
    return math.isfinite(value) and 0 <= value <= _MOST
