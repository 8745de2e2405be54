"""The process that looks at pages and posts what it saw.

What was seen is posted before the page is looked at again: while Kafka is away nothing is seen, and
the next look tells all that has grown meanwhile. A page that cannot be read is asked more and more
seldom; its runner is not told of, which is not the same as told to be idle.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from kafka.errors import KafkaError

from pipeline.scrape import page as pages
from pipeline.scrape.fetch import Blind, Fetch, Outcome
from pipeline.scrape.look import Seen, Target
from pipeline.scrape.metrics import ScrapeMetrics
from pipeline.scrape.post import Post
from sinks.health import BrokerOutage
from sinks.writer import describe
from topics.events import Event

log = logging.getLogger(__name__)

#: Looks under way at a time.
_AT_ONCE: Final = 16
#: The longest pause after looks in vain. Seconds.
_LONGEST_S: Final = 300.0
_TURN_S: Final = 0.1
#: The process should be started anew when it has not turned for so long.
_ALIVE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class ScrapeConfig:
    """How one process runs."""

    targets: tuple[Target, ...]
    #: Options of the connection to Kafka.
    kafka: Mapping[str, Any]
    client_id: str
    #: From one look at a page to the next. Seconds.
    interval_s: float = 15.0


@dataclass(frozen=True, slots=True)
class ScrapeStatus:
    """How it is doing, for health checks and people."""

    ready: bool
    #: Why it is not ready, as a sentence; empty when it is.
    reason: str
    alive: bool
    targets: int
    #: Pages that could not be read the last time, and why.
    blind: Mapping[str, str]


class _Looked:
    """A target, and what is known of looking at it. One thread at a time has it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.seen = Seen(target)
        #: When the next look is due (monotonic), and how many were in vain one after another.
        self.due = 0.0
        self.failed = 0
        self.trouble = ""
        self.looks = 0
        #: What Kafka has not taken yet.
        self.unsent: Sequence[Event] = ()


class Scrape:
    """Looks at pages until told to stop.

    Args:
        config: how it runs.
        metrics: counts; one of its own when None.
        clock: Unix time, seconds.
        post: sends events; to Kafka when None.
        fetch: gets pages.
    """

    def __init__(
        self,
        config: ScrapeConfig,
        metrics: ScrapeMetrics | None = None,
        clock: Callable[[], float] = time.time,
        post: Callable[[Sequence[Event]], None] | None = None,
        fetch: Callable[[str], str] | None = None,
    ) -> None:
        self.config = config
        self.metrics = metrics if metrics is not None else ScrapeMetrics()
        self._clock = clock
        self._post = post or Post(config.kafka, config.client_id)
        self._fetch = fetch or Fetch()
        self._broker = BrokerOutage()
        self.looked = [_Looked(target) for target in config.targets]
        self._turned = time.monotonic()
        self.metrics.targets.set(len(self.looked))

    def run(self, stop: threading.Event, once: bool = False) -> None:
        """Look until ``stop`` is set; with ``once``, once at each page.

        Raises what is truly unexpected (law L7).
        """
        busy: dict[_Looked, Future[None]] = {}
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="scrape") as pool:
            while not stop.is_set():
                self._turned = now = time.monotonic()
                for each, future in list(busy.items()):
                    if future.done():
                        del busy[each]
                        future.result()
                for each in self.looked:
                    if each not in busy and each.due <= now and not (once and each.looks):
                        each.due = now + self.config.interval_s
                        busy[each] = pool.submit(self.one, each)
                if once and not busy:
                    break
                self.metrics.blind.set(len(self._blind()))
                stop.wait(_TURN_S)
        if isinstance(self._post, Post):
            self._post.close()

    def status(self) -> ScrapeStatus:
        """A snapshot. Safe from any thread."""
        outage = self._broker.now
        reason = f"Kafka: {outage[1]}" if outage is not None else ""
        return ScrapeStatus(
            ready=not reason,
            reason=reason,
            alive=time.monotonic() - self._turned < _ALIVE_S,
            targets=len(self.looked),
            blind=self._blind(),
        )

    def _blind(self) -> dict[str, str]:
        return {each.target.url: each.trouble for each in self.looked if each.trouble}

    def one(self, each: _Looked) -> None:
        """Look at one target, or post what was seen there before."""
        if not each.unsent:
            try:
                each.unsent = self._look(each)
            except Blind as why:
                self._is_blind(each, why)
                return
            each.failed, each.trouble = 0, ""
        try:
            self._post(each.unsent)
        except KafkaError as error:
            if self._broker.now is None:
                log.warning("not posted, trying on: %s", describe(error))
            self._broker.failed(error)
            return
        self._broker.over()
        self.metrics.events.inc(len(each.unsent))
        each.unsent = ()
        each.looks += 1

    def _look(self, each: _Looked) -> Sequence[Event]:
        at, began = int(self._clock() * 1000), time.monotonic()
        text = self._fetch(each.target.url)
        try:
            page = pages.read(text)
        except pages.Odd as why:
            raise Blind(Outcome.ODD, str(why)) from why
        self.metrics.seconds.observe(time.monotonic() - began)
        self.metrics.scrapes.labels(Outcome.READ.value).inc()
        events, is_new = each.seen.look(page, at)
        if is_new:
            self.metrics.restarts.inc()
        return events

    def _is_blind(self, each: _Looked, why: Blind) -> None:
        self.metrics.scrapes.labels(why.outcome.value).inc()
        if each.trouble != str(why):
            log.warning("%s: not read: %s", each.target.url, why)
        each.seen.blind()
        each.trouble = str(why)
        each.looks += 1
        each.failed += 1
        pause = min(_LONGEST_S, self.config.interval_s * 2 ** min(each.failed - 1, 10))
        each.due = time.monotonic() + max(pause, self.config.interval_s)
