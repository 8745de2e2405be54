"""The worker: what is wired to what.

::

    runners.webhooks  ─┐
    runners.lifecycle ─┴▶ normalise ─▶ runners.jobs ─▶ fold ─▶ runners.job-states, tables,
                                          ▲                     runners.windows, runners.samples
                          clock (ticks) ──┘
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

try:
    import uvloop
except ImportError:  # not made for Windows
    uvloop = None  # type: ignore[assignment]

from pipeline import metrics
from pipeline.agents.fold import Fold
from pipeline.agents.normalise import Normalise
from pipeline.agents.transaction import STEPS, Observer, Transactions
from pipeline.effects import Output
from pipeline.exporter import Exporter
from pipeline.faust_safe import BatchSchema, FencedOutbox, Outbox, create_app
from pipeline.faust_safe.fencing import can_fence
from pipeline.faust_safe.identity import cluster_id, log_names
from pipeline.holes import Holes
from pipeline.jobs import FleetNames
from pipeline.ledger import LIVE, Ledger, Retention
from pipeline.settings import Settings
from pipeline.web import mount
from pipeline.windows import WindowPolicy
from pipeline.windows.panes import PANE_S
from topics.catalogue import JOBS, LIFECYCLE, WEBHOOKS, catalogue
from topics.models import Tick

log = logging.getLogger(__name__)


class Worker:
    """One worker process: a Faust app with its agents, clock and views."""

    def __init__(
        self,
        settings: Settings,
        *,
        web_port: int | None = None,
        observer: Observer = lambda step: None,
        steps: tuple[str, ...] = STEPS,
        fenced: bool = True,
    ) -> None:
        if uvloop is not None:
            # Before Faust makes its loops: a fifth more throughput.
            uvloop.install()
        self.settings = settings
        self.metrics = Exporter(settings.max_fleet_labels)
        self.web_port = settings.web_port if web_port is None else web_port
        self.app = app = create_app(settings, web_port=self.web_port)
        self.holes = Holes(self.metrics.missed)
        # It knows where the log began then; the watch asks again, and counts.
        app.transport.on_hole = lambda tp, first, end: self.holes.gap(
            tp.topic, tp.partition, first, end
        )
        self.started_at = time.time()
        fleets = FleetNames(settings.fleets)
        policy = WindowPolicy(int(settings.lateness * 1000), int(settings.grace * 1000))
        retention = Retention(
            int(settings.completed_retention * 1000), int(settings.unfinished_retention * 1000)
        )

        def new_ledger(partition: int, value_of: Callable[[bytes], bytes | None]) -> Ledger:
            return Ledger(
                partition,
                value_of,
                fleets=fleets,
                windows=policy,
                retention=retention,
                max_fleets=settings.max_fleet_labels,
            )

        self.jobs_table = app.Table(
            "jobs",
            partitions=settings.partitions,
            key_type=bytes,
            value_type=bytes,
        )
        self.windows_table = app.Table(
            "windows",
            partitions=settings.partitions,
            value_type=bytes,
        )
        self.windows_table.tumbling(PANE_S, expires=None)
        self.fold = Fold(
            self.jobs_table,
            self.windows_table,
            new_ledger,
            self.owned,
            self.metrics.note,
        )
        partitions = {
            spec.name: spec.partitions
            for spec in catalogue(partitions=settings.partitions, app_id=settings.app_id)
        }
        options = client_options(settings)
        self.outbox = Outbox(partitions, options)
        self.fenced = FencedOutbox(settings.app_id, partitions, options) if fenced else None
        app.transport.log_topic = JOBS
        recovery = app.tables.recovery
        recovery.options = options
        recovery.identify = partial(log_names, settings.kafka_options())
        recovery.ends_hold = fenced
        if self.fenced is not None:
            recovery.take_over = self.fenced.take_over
        secrets = settings.webhook_secrets()
        for provider, known in secrets.items():
            log.info("webhooks of %s must be signed by one of %d secrets", provider, len(known))
        normalise = Normalise(self.metrics.note, secrets, settings.trust_envelopes)
        for name, topics, handler in (
            ("normalise", (WEBHOOKS, LIFECYCLE), normalise),
            ("fold", (JOBS,), self.fold),
        ):
            transactions = Transactions(
                app,
                self.outbox,
                handler,
                max_records=settings.batch_records,
                on_done=self.metrics.done,
                observer=observer if name == "fold" else lambda step: None,
                steps=steps if name == "fold" else STEPS,
                fenced=self.fenced if name == "fold" else None,
            )
            app.agent(
                app.topic(*topics, partitions=settings.partitions, schema=BatchSchema(), acks=True),
                name=name,
            )(transactions.run)
        for moved in (app.on_partitions_revoked, app.on_rebalance_complete):
            moved.connect(self._forget, weak=False)
        app.task(self._start_outbox)
        app.task(self._clock)
        self.metrics.watch_jobs(self.live_jobs)
        mount(self)

    async def _start_outbox(self) -> None:
        await self.outbox.start()

    async def _forget(self, *args: Any, **kwargs: Any) -> None:
        """Partitions come or go: ledgers are made anew from the tables."""
        self.fold.forget()

    # -- the clock -----------------------------------------------------------------------------

    async def _clock(self) -> None:
        """Put a tick into every owned partition of ``runners.jobs`` at each interval.

        A partition has one owner, so it has one clock; an unowned partition needs none. Ticks
        are aligned, so samples of all partitions carry the same time.
        """
        interval = self.settings.tick_interval
        while not self.app.should_stop:
            now = time.time()
            await asyncio.sleep(interval - now % interval)
            if not self.settled:
                continue
            at = int(round(time.time() / interval) * interval * 1000)
            await self.outbox.publish(tick(partition, at) for partition in self.owned())
            self.metrics.count(metrics.TICKS, (), len(self.owned()))

    # -- what the views ask (:mod:`pipeline.web.ports`) ------------------------------------------

    @property
    def ledgers(self) -> Mapping[int, Ledger]:
        """By partition, those that are loaded."""
        return self.fold.ledgers

    @property
    def url(self) -> str:
        """Where the others of the group reach this worker."""
        return str(self.app.conf.canonical_url)

    def members(self) -> dict[str, set[int]]:
        """Partitions of ``runners.jobs`` by the URL of their worker, as of the last rebalance."""
        topic = self.jobs_table.changelog_topic_name
        return {
            str(url): set(topics.get(topic, ()))
            for url, topics in self.app.router.tables_metadata().items()
        }

    @property
    def rebalancing(self) -> bool:
        """Whether partitions are being moved."""
        return bool(self.app.rebalancing)

    @property
    def recovering(self) -> int | None:
        """Changelog records still to be read back; None when the tables are whole."""
        if not self.app.in_recovery:
            return None
        return int(self.app.tables.recovery.active_remaining_total())

    @property
    def settled(self) -> bool:
        """Neither rebalancing nor recovering."""
        return not (self.app.rebalancing or self.app.in_recovery)

    def on_assigned(self, call: Callable[[], None]) -> None:
        """Have ``call`` called whenever partitions are assigned, none included."""

        async def assigned(*args: Any, **kwargs: Any) -> None:
            call()

        self.app.on_partitions_assigned.connect(assigned, weak=False)

    def owned(self) -> list[int]:
        """Partitions of ``runners.jobs`` this worker owns now."""
        return sorted(tp.partition for tp in self.app.consumer.assignment() if tp.topic == JOBS)

    def live_jobs(self) -> Iterator[tuple[str, str, int, int | None]]:
        """(fleet, status, jobs, age of the oldest in ms) over owned partitions."""
        now = int(time.time() * 1000)
        for ledger in list(self.fold.ledgers.values()):
            for (fleet, status), count in ledger.counts().items():
                if status in LIVE:
                    since = ledger.oldest(fleet, status) if count else None
                    yield fleet, status, count, None if since is None else max(0, now - since)

    def run(self) -> int:
        """Run until a signal or a failure. Returns the exit code."""
        worker = self.app.Worker(loglevel=self.settings.log_level, quiet=True)
        try:
            worker.execute_from_commandline()
        except SystemExit as exc:
            return exc.code if isinstance(exc.code, int) else 1
        return 0


def tick(partition: int, at: int) -> Output:
    """The tick of a partition. The same time gives the same record."""
    record = Tick(
        id=f"tick:{partition}:{at}",
        source="runnerstream",
        occurred_at=at,
        received_at=at,
        key=f"tick:{partition}",
    )
    return Output(JOBS, partition, record.key.encode(), record.model_dump_json().encode())


def is_fenced(settings: Settings) -> bool:
    """Whether the broker can refuse a worker that has been replaced.

    Raises kafka.errors.KafkaError when it cannot be asked.
    """
    return can_fence(cluster_id(settings.kafka_options()))


def client_options(settings: Settings) -> dict[str, Any]:
    """Connection options as aiokafka's clients take them."""
    options = settings.kafka_options()
    options["client_id"] = settings.app_id
    return options
