"""The process that looks for what no webhook told: passes over what is its own, again and again.

One thread keeps the membership, one makes the passes over hooks, one those over repositories: a
long look through runs must not keep a missed delivery waiting. A pass that could not write what it
learned is forgotten, and what is known is read from the topic again.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from pipeline.providers.deliveries import HookLog
from pipeline.providers.runs import RunLog
from pipeline.redeliver.fill import ENDED, Filler, Pass
from pipeline.redeliver.metrics import HOOKS, RUNS, RedeliverMetrics
from pipeline.redeliver.missed import Missed, Policy
from pipeline.redeliver.reconcile import Reconciler, Told
from pipeline.redeliver.store import Lost, Record, Store, StoreConfig
from topics.missed import MissedDelivery, RunsTold

log = logging.getLogger(__name__)

#: The loop counts as alive when its last turn is younger than this. Seconds.
_ALIVE_S: Final = 60.0
#: How often it is looked whether a pass is due. Seconds.
_LOOK_S: Final = 0.2
#: At the end, how long a pass may take to write what it knows. Seconds.
_CLOSE_S: Final = 8.0


@dataclass(frozen=True, slots=True)
class RedeliverConfig:
    """How one process runs."""

    store: StoreConfig
    #: Events whose deliveries are asked for.
    events: Sequence[str]
    policy: Policy = field(default_factory=Policy)
    #: How far back runs are looked at, in ms.
    runs_lookback: int = 86_400_000
    #: From the beginning of one pass to the next; none takes longer. Seconds.
    every_s: float = 300.0


@dataclass(frozen=True, slots=True)
class RedeliverStatus:
    """How it is doing, for health checks and people."""

    ready: bool
    #: Why it is not ready, as a sentence; empty when it is.
    reason: str
    alive: bool
    #: Hooks and repositories that this process looks after.
    looks_after: tuple[str, ...]
    #: Missed deliveries that it asks for.
    missed: int
    partitions: int


class _Source:
    """A hook or a repository of ours."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.filler: Filler | None = None
        self.reconciler: Reconciler | None = None
        #: When its next pass is due, and when one that runs has to end (monotonic).
        self.due = self.ends = 0.0
        self.trouble = ""


class Redeliver:
    """Looks after hooks and repositories until told to stop.

    Args:
        config: how it runs.
        hooks: the lists of their deliveries.
        repos: whose runs are looked through.
        metrics: counts; one of its own when None.
        clock: Unix time, seconds.
    """

    def __init__(
        self,
        config: RedeliverConfig,
        hooks: Iterable[HookLog],
        repos: Iterable[RunLog] = (),
        metrics: RedeliverMetrics | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.metrics = metrics if metrics is not None else RedeliverMetrics()
        self._hooks = {hook.name: hook for hook in hooks}
        self._repos = {repo.name: repo for repo in repos}
        self._clock = clock
        self._store = Store(config.store, self._taken, self._gone)
        #: By name, those that are ours.
        self._sources: dict[str, _Source] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._failed: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self._turned = time.monotonic()
        #: The gauges are to be set anew.
        self._changed = False
        self._missed = 0
        #: What came of the latest pass over each.
        self.passes: dict[str, Pass | Told] = {}
        #: After a run of one pass: what another process looks after.
        self.left_to_others: list[str] = []

    def run(self, stop: threading.Event, once: bool = False) -> None:
        """Make passes until ``stop`` is set; with ``once``, one over each that is ours.

        Raises what is truly unexpected (law L7), and ``kafka.errors`` for a wrong configuration.
        """
        threads = [
            threading.Thread(target=self._passes, args=(names,), name=f"missed-{what}", daemon=True)
            for what, names in ((HOOKS, self._hooks), (RUNS, self._repos))
        ]
        for each in threads:
            each.start()
        try:
            while not stop.is_set():
                self._turned = time.monotonic()
                self._store.turn()
                self._raise()
                if once and self._done():
                    self.left_to_others = self._others()
                    break
        finally:
            self._stopping.set()
            deadline = time.monotonic() + _CLOSE_S
            for each in threads:
                each.join(max(0.0, deadline - time.monotonic()))
            self._store.close()
        self._raise()

    def status(self) -> RedeliverStatus:
        """A snapshot. Safe from any thread."""
        with self._lock:
            sources = list(self._sources.values())
        members = self._store.members
        reason = ""
        if self._store.trouble:
            reason = f"Kafka: {self._store.trouble}"
        elif members.absent is not None:
            reason = members.absent[1]
        elif not self._store.settled:
            reason = "reading what is known"
        else:
            reason = "; ".join(each.trouble for each in sources if each.trouble)
        return RedeliverStatus(
            ready=not reason,
            reason=reason,
            alive=time.monotonic() - self._turned < _ALIVE_S,
            looks_after=tuple(sorted(each.name for each in sources)),
            missed=self._missed,
            partitions=len(self._store.owned()),
        )

    def _others(self) -> list[str]:
        """What another process looks after, as far as is known."""
        owned = self._store.owned()
        names = (*self._hooks, *self._repos)
        known = self._store.partitions
        return [n for n in names if not known or self._store.partition(n) not in owned]

    # --- what is ours (the thread of the membership) ----------------------------------------------

    def _taken(self, partition: int, records: Sequence[Record]) -> None:
        for name in (*self._hooks, *self._repos):
            if self._store.partition(name) != partition:
                continue
            source = _Source(name)
            if name in self._hooks:
                self._fill(source, records)
            else:
                self._reconcile(source, records)
            with self._lock:
                self._sources[name] = source
                self._changed = True
            log.info("looking after %s", name)

    def _fill(self, source: _Source, records: Sequence[Record]) -> None:
        missed = Missed(source.name, self.config.events, self.config.policy)
        for each in records:
            mine = each.hook if isinstance(each, MissedDelivery) else each.key
            if mine == source.name and not isinstance(each, RunsTold):
                missed.load(each)
        source.filler = Filler(
            missed, self._hooks[source.name], partial(self._store.write, source.name), self._now,
            partial(self._pause, source),
        )  # fmt: skip

    def _reconcile(self, source: _Source, records: Sequence[Record]) -> None:
        source.reconciler = Reconciler(
            self._repos[source.name], self.config.runs_lookback, self.config.policy.pass_calls,
            partial(self._store.write, source.name), self._store.post, self._now,
            partial(self._pause, source),
        )  # fmt: skip
        for each in records:
            if isinstance(each, RunsTold) and each.key == source.name:
                source.reconciler.load(each)

    def _gone(self, partition: int) -> None:
        with self._lock:
            for name in list(self._sources):
                if self._store.partition(name) == partition:
                    del self._sources[name]
                    self._changed = True

    def _done(self) -> bool:
        if not self._store.settled:
            return False
        others = set(self._others())
        return all(name in self.passes or name in others for name in (*self._hooks, *self._repos))

    def _raise(self) -> None:
        try:
            raise self._failed.get_nowait()
        except queue.Empty:
            return

    # --- passes (a thread of each sort) -----------------------------------------------------------

    def _passes(self, names: Iterable[str]) -> None:
        try:
            while not self._stopping.wait(_LOOK_S):
                if self._changed and names is self._hooks:
                    self._observe()
                for name in names:
                    with self._lock:
                        source = self._sources.get(name)
                    now = time.monotonic()
                    if source is not None and source.due <= now and not self._stopping.is_set():
                        source.due = source.ends = now + self.config.every_s
                        self._one(source)
        except BaseException as error:
            self._failed.put(error)

    def _one(self, source: _Source) -> None:
        try:
            if source.filler is not None:
                done = source.filler.run()
                self.metrics.read(done, self._now())
                self._changed = True
                news = done.news
                log.info("%s: %d attempts looked at, %d found, %d came, %d given up %s",
                         source.name, done.looked, len(news.found), len(news.filled),
                         len(news.given_up), done.trouble)  # fmt: skip
                self.passes[source.name] = done
            else:
                assert source.reconciler is not None
                told = source.reconciler.run()
                self.metrics.told(told, self._now())
                log.info("%s: %d runs told, %d facts %s", source.name, told.runs, told.facts,
                         told.trouble)  # fmt: skip
                self.passes[source.name] = told
        except Lost as why:
            log.warning("%s: what was learned is not written: %s", source.name, why)
            # It is read anew, or is another's by now; else this one stands still for a while.
            return
        trouble = self.passes[source.name].trouble
        source.trouble = "" if trouble == ENDED else trouble

    def _observe(self) -> None:
        """In the thread that changes what is known."""
        self._changed = False
        with self._lock:
            fillers = [each.filler for each in self._sources.values() if each.filler is not None]
        missed = [known for each in fillers for known in each.missed.open()]
        self._missed = len(missed)
        self.metrics.open.set(self._missed)
        oldest = min((known.at for known in missed), default=None)
        self.metrics.oldest.set(0 if oldest is None else max(0, self._now() - oldest) / 1000)
        self.metrics.unread.set(sum(len(each.missed.gaps) for each in fillers))

    def _pause(self, source: _Source, seconds: float) -> bool:
        """Wait, unless that would be too long, or it is not ours any more."""
        if time.monotonic() + seconds > source.ends or self._stopping.wait(seconds):
            return False
        with self._lock:
            return self._sources.get(source.name) is source

    def _now(self) -> int:
        return int(self._clock() * 1000)
