"""From one look at a runner to the next: which events follow. Pure.

Counters are told by how much they grew. The first look counts nothing: what was before it happened
at some time that nobody knows. A process that has started again counts from 0: it says when it
started, and what went down shows it too: a counter, or for how long it runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit

from pipeline.scrape.page import Distribution, Page
from topics.events import MODELS, Event
from topics.events.runners import Duration, Method, PollResult, ReportResult, TaskResult

#: What says when a process started may differ by so much from page to page. Seconds.
_SAME_START_S: Final = 2.0
#: What a runner is, is told again after so long, and so is that nothing has grown. ms.
_INFO_MS: Final = 3_600_000
_NOTHING_MS: Final = 120_000
#: A counter that grew by more than this from one look to the next is not believed.
MOST_GROWN: Final = 10**9

_METHODS: Final = {
    "FetchTask": Method.FETCH_TASK,
    "UpdateLog": Method.UPDATE_LOG,
    "UpdateTask": Method.UPDATE_TASK,
}
#: Histograms of a page, as events call them.
_DURATIONS: Final[Mapping[str, Duration]] = {
    "poll_fetch_duration_seconds": "poll",
    "job_duration_seconds": "job",
    "report_log_duration_seconds": "log",
    "report_state_duration_seconds": "state",
}


@dataclass(frozen=True)
class Target:
    """A page that is looked at, and the fleet that its runner belongs to."""

    url: str
    fleet: str

    @property
    def runner(self) -> str:
        """What its runner is called: by where it listens, which is its own."""
        parts = urlsplit(self.url)
        path = parts.path if parts.path != "/metrics" else ""
        return f"{parts.netloc}{path}"[:200]


class Seen:
    """What was last seen at one target. Not thread-safe."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._last: Page | None = None
        self._told: tuple[str, str] | None = None
        self._info_at = self._grown_at = 0

    def blind(self) -> None:
        """The page could not be read: what the runner is, is told anew when it can."""
        self._info_at = 0

    def look(self, page: Page, at: int) -> tuple[list[Event], bool]:
        """The events of a look at ``at`` (ms), and whether the process has started again.

        Ids follow from the URL and the time, so whoever sends them again sends the same.
        """
        last = self._last
        is_new = last is not None and _has_started_again(last, page)
        # What a page leaves out has not begun anew when a later one has it again.
        self._last = page if is_new or last is None else _with_what_is_missing(page, last)
        events: list[Event] = []
        if page.info is not None and (
            is_new or page.info != self._told or at - self._info_at >= _INFO_MS
        ):
            self._told, self._info_at = page.info, at
            name, version = page.info
            events.append(self._event("runner.info", at, name=name, runner_version=version,
                                      capacity=_whole(page.gauges.get("capacity"))))  # fmt: skip
        events.append(self._event("runner.status", at, **_status(page)))
        grown = _grown(Page() if is_new else last, page) if last is not None else {}
        if last is None or grown or at - self._grown_at >= _NOTHING_MS:
            self._grown_at = at
            events.append(self._event("runner.scrape", at, **grown))
        return events, is_new

    def _event(self, kind: str, at: int, **said: Any) -> Event:
        return MODELS[kind].model_validate(
            {
                "id": f"scrape|{self.target.url}|{at}|{kind}",
                "kind": kind,
                "source": "scrape",
                "fleet": self.target.fleet,
                "runner": self.target.runner,
                "occurred_at": at,
                "received_at": at,
                **said,
            }
        )


def _has_started_again(last: Page, page: Page) -> bool:
    one, other = last.process_start, page.process_start
    if one is not None and other is not None and abs(one - other) > _SAME_START_S:
        return True
    uptime = page.gauges.get("uptime_seconds", math.inf)
    if uptime < last.gauges.get("uptime_seconds", 0):
        return True
    if any(
        page.counters.get(name, {}).get(label, number) < number
        for name, counts in last.counters.items()
        for label, number in counts.items()
    ):
        return True
    return any(
        name in page.histograms and page.histograms[name].up_to[-1] < before.up_to[-1]
        for name, before in last.histograms.items()
    )


def _with_what_is_missing(page: Page, last: Page) -> Page:
    return replace(
        page,
        process_start=last.process_start if page.process_start is None else page.process_start,
        counters={
            name: {**last.counters.get(name, {}), **page.counters.get(name, {})}
            for name in {**last.counters, **page.counters}
        },
        histograms={**last.histograms, **page.histograms},
    )


def _status(page: Page) -> dict[str, Any]:
    gauges = page.gauges
    uptime, backoff = gauges.get("uptime_seconds"), gauges.get("poll_backoff_seconds")
    return {
        "uptime_ms": _whole(None if uptime is None else uptime * 1000),
        "capacity": _whole(gauges.get("capacity")),
        "running": _whole(gauges.get("job_running")),
        "backoff_ms": _whole(None if backoff is None else min(backoff, 86_400) * 1000),
        "buffer_rows": _whole(gauges.get("report_log_buffer_rows")),
    }


def _whole(value: float | None) -> int | None:
    return None if value is None else round(min(value, 2**53))


def _grown(last: Page | None, page: Page) -> dict[str, Any]:
    """By how much what is counted grew, as a ``runner.scrape`` has it; without what did not."""
    last = last or Page()

    def grew(name: str, value_of: Any) -> dict[Any, int]:
        before = last.counters.get(name, {})
        found: dict[Any, int] = {}
        for label, number in page.counters.get(name, {}).items():
            more = number - before.get(label, 0)
            if 0 < more <= MOST_GROWN:
                value = value_of(label)
                found[value] = found.get(value, 0) + more
        return found

    grown = {
        "polls": grew("poll_fetch_total", lambda label: _one_of(PollResult, label)),
        "jobs": grew("job_total", lambda label: _one_of(TaskResult, label)),
        "log_reports": grew("report_log_total", _report),
        "state_reports": grew("report_state_total", _report),
        "client_errors": grew("client_errors_total", lambda it: _METHODS.get(it, Method.OTHER)),
        "histograms": {
            told: more
            for name, told in _DURATIONS.items()
            if name in page.histograms
            and (more := _more(last.histograms.get(name), page.histograms[name])) is not None
        },
    }
    return {name: what for name, what in grown.items() if what}


def _one_of(words: Any, label: str) -> Any:
    return words(label) if label in {each.value for each in words} else words("unknown")


def _report(label: str) -> ReportResult:
    return ReportResult.SUCCESS if label == "success" else ReportResult.ERROR


def _more(before: Distribution | None, now: Distribution) -> tuple[Any, ...] | None:
    """How a histogram grew; None when it did not, or not as one can."""
    if before is None or before.bounds != now.bounds:
        before = Distribution(now.bounds, (0,) * len(now.up_to), 0.0)
    more = [one - other for one, other in zip(now.up_to, before.up_to, strict=True)]
    counts = [one - other for one, other in zip(more, (0, *more), strict=False)]
    if not more[-1] or min(counts) < 0 or max(counts) > MOST_GROWN:
        return None
    return now.bounds, tuple(counts), min(max(0.0, now.total - before.total), 1e12)
