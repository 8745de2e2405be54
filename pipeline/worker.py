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
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from functools import partial
from types import MappingProxyType
from typing import Any, Final

try:
    import uvloop
except ImportError:  # not made for Windows
    uvloop = None  # type: ignore[assignment]

from pipeline import folds, metrics
from pipeline.agents.fold import Fold
from pipeline.agents.normalise import Normalise
from pipeline.agents.transaction import Handler, Transactions
from pipeline.agents.unrouted import Unrouted
from pipeline.compat.page import Page
from pipeline.compat.systems import systems
from pipeline.effects import Output
from pipeline.exporter import Exporter
from pipeline.faust_safe import BatchSchema, FencedOutbox, Outbox, create_app
from pipeline.faust_safe.fencing import can_fence
from pipeline.faust_safe.identity import cluster_id, log_names
from pipeline.fleet import FleetLedger
from pipeline.fold_spec import FoldSpec, L
from pipeline.holes import Holes
from pipeline.ledger import LIVE, Ledger
from pipeline.metrics import Level
from pipeline.pulse import LOOP_LAG_SECONDS, Pulse
from pipeline.reached import Reached
from pipeline.routes import Routes
from pipeline.settings import Settings
from pipeline.telemetry import TelemetryLedger
from pipeline.text import version
from pipeline.web import mount
from pipeline.web.ports import Alone, Beside
from topics.catalogue import JOBS, POSTED, catalogue
from topics.models import Tick
from topics.recovery import BreakerState, StallKind
from topics.tables import JOBS_TABLE

log = logging.getLogger(__name__)

#: An answer is looked at after so many seconds, or a tick's part, and before twice as many.
LOOK_S: Final = 1.0
LOOK_PART: Final = 4


class Worker:
    """One worker process: a Faust app with its agents, clock and views."""

    def __init__(
        self,
        settings: Settings,
        *,
        web_port: int | None = None,
        others: Iterable[folds.Declare] = folds.OTHERS,
        observer: Callable[[str, str], None] = lambda stage, step: None,
        steps: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
        fenced: bool = True,
        beside: Beside = Alone(),  # noqa: B008 - it has no state
    ) -> None:
        """``others`` are the folds beside the jobs'. ``observer`` is told stage and step of each
        durable step of a fold, and ``steps`` puts those of a stage into another order: for tests.
        ``beside`` is what runs in processes beside this one.
        """
        if uvloop is not None:
            # Before Faust makes its loops: a fifth more throughput.
            uvloop.install()
        self.settings = settings
        self.beside = beside
        self.compat = Page(systems(settings.compat)) if settings.compat else None
        self.metrics = Exporter(
            settings.max_fleet_labels, max_series=settings.max_series, beside=self.compat
        )
        self.web_port = settings.web_port if web_port is None else web_port
        self.app = app = create_app(settings, web_port=self.web_port, count=self.metrics.count)
        self.holes = Holes(self.metrics.missed)
        #: Up to when all that producers posted is in the log.
        self.sources = Reached()
        # It knows where the log began then; the watch asks again, and counts.
        app.transport.on_hole = lambda tp, first, end: self.holes.gap(
            tp.topic, tp.partition, first, end
        )
        self.started_at = time.time()
        self.fold = self._fold(folds.jobs(settings))
        #: Every fold, the jobs' first.
        self.folds: tuple[Fold[Any], ...] = (
            self.fold,
            *(self._fold(declare(settings)) for declare in others),
        )
        partitions = self._partitions()
        options = client_options(settings)
        self.outbox = Outbox(partitions, options, self.metrics.count)
        #: By the stage of the fold.
        self._fenced = {
            fold.stage: FencedOutbox(
                fold.spec.transactional_id(settings.app_id),
                partitions,
                options,
                self.metrics.count,
            )
            for fold in self.folds
            if fenced
        }
        self._recover_with(options, fenced)
        secrets = settings.webhook_secrets()
        for provider, known in secrets.items():
            log.info("webhooks of %s must be signed by one of %d secrets", provider, len(known))
        #: What no route fits; None without routes.
        self.unrouted = Unrouted(Routes(settings.routes)) if settings.routes else None
        normalise = Normalise(
            self.metrics.note, secrets, settings.trust_envelopes, folds.pool_names(settings),
            self.unrouted,
        )  # fmt: skip
        self._agent(POSTED, normalise)
        for fold in self.folds:
            self._agent(
                (fold.spec.log,),
                fold,
                observer=partial(observer, fold.stage),
                steps=steps.get(fold.stage),
                fenced=self._fenced.get(fold.stage),
            )
        for moved in (app.on_partitions_revoked, app.on_rebalance_complete):
            moved.connect(self._forget, weak=False)
        app.task(self._start_outbox)
        app.task(self._clock)
        app.task(self._look)
        self._tell()
        mount(self)

    def _tell(self) -> None:
        """Export how things are with the partitions, this process and its event loop."""
        pulse = Pulse()

        async def beat() -> None:
            while not self.app.should_stop:
                self.metrics.count(LOOP_LAG_SECONDS, (), await pulse.beat())

        self.app.task(beat)
        self.metrics.watch_process(version())
        for source in (
            self.job_levels,
            self.stall_levels,
            self.recovery_levels,
            self.telemetry_levels,
            pulse.levels,
        ):
            self.metrics.watch_levels(source)

    def _partitions(self) -> dict[str, int]:
        """How many of each topic that is written."""
        settings = self.settings
        specs = catalogue(partitions=settings.partitions, app_id=settings.app_id)
        found = {spec.name: spec.partitions for spec in specs}
        for fold in self.folds:
            for topic in (fold.spec.log, *fold.spec.changelogs(settings.app_id)):
                found.setdefault(topic, settings.partitions)
        return found

    def _recover_with(self, options: dict[str, Any], fenced: bool) -> None:
        """Tell recovery how to read the changelogs, and from whom to take partitions over."""
        self.app.transport.logs = {
            fold.spec.log: fold.spec.changelogs(self.settings.app_id) for fold in self.folds
        }
        recovery = self.app.tables.recovery
        recovery.options = options
        recovery.identify = partial(log_names, self.settings.kafka_options())
        recovery.ends_hold = fenced
        recovery.take_over = self._take_over

    def _fold(self, spec: FoldSpec[L]) -> Fold[L]:
        """A fold with Faust's tables behind it."""
        tables = {}
        for table in spec.tables:
            made = self.app.Table(
                table.name,
                partitions=self.settings.partitions,
                key_type=bytes,
                value_type=bytes,
            )
            if table.window_s is not None:
                made.tumbling(table.window_s, expires=None)
            tables[table.name] = made
        return Fold(spec, tables, self.owned, self.metrics.note)

    def _agent(self, topics: tuple[str, ...], handler: Handler, **options: Any) -> None:
        """An agent that runs the handler over the topics."""
        transactions = Transactions(
            self.app,
            self.outbox,
            handler,
            max_records=self.settings.batch_records,
            on_done=self.metrics.done,
            **options,
        )
        source = self.app.topic(
            *topics, partitions=self.settings.partitions, schema=BatchSchema(), acks=True
        )
        self.app.agent(source, name=handler.stage)(transactions.run)

    async def _take_over(self, changelogs: Set[Any]) -> None:
        """Become the only writer of the partitions of these changelogs."""
        logs = self.app.transport.logs
        await asyncio.gather(
            *(
                self._fenced[fold.stage].take_over(
                    {tp.partition for tp in changelogs if tp.topic in logs[fold.spec.log]}
                )
                for fold in self.folds
                if fold.stage in self._fenced
            )
        )

    async def _start_outbox(self) -> None:
        await self.outbox.start()

    async def _forget(self, *args: Any, **kwargs: Any) -> None:
        """Partitions come or go: ledgers are made anew from the tables."""
        for fold in self.folds:
            fold.forget()

    # -- the clock -----------------------------------------------------------------------------

    async def _clock(self) -> None:
        """Put a tick into every owned partition of every log at each interval.

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
            ticks = [
                tick(fold.spec.log, partition, at, fold.me, self.sources.at)
                for fold in self.folds
                for partition in self.owned(fold.spec.log)
            ]
            await self.outbox.publish(ticks)
            self.metrics.count(metrics.TICKS, (), len(ticks))

    async def _look(self) -> None:
        """Put a tick into the partitions of ``runners.jobs`` in which jobs were found queued.

        What follows need not wait for the clock, which has already been waited for once: by the
        question. Rules still run at ticks only, and only at those of the partition's owner. But
        not at once: an event of the job may be on its way.
        """
        answered: set[int] = set()
        while not self.app.should_stop:
            await asyncio.sleep(min(LOOK_S, self.settings.tick_interval / LOOK_PART))
            if not self.settled:
                continue
            at, fold = int(time.time() * 1000), self.fold
            ticks = [
                tick(JOBS, partition, at, fold.me, self.sources.at, looks_only=True)
                for partition in sorted(answered & fold.ledgers.keys())
            ]
            answered = {
                partition
                for partition, ledger in list(fold.ledgers.items())
                if ledger.take_answered()
            }
            if ticks:
                await self.outbox.publish(ticks)
                self.metrics.count(metrics.TICKS, (), len(ticks))

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
        topic = JOBS_TABLE.changelog(self.settings.app_id)
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

    def owned(self, topic: str = JOBS) -> list[int]:
        """Partitions of a topic this worker owns now."""
        return sorted(tp.partition for tp in self.app.consumer.assignment() if tp.topic == topic)

    def job_levels(self) -> Iterator[Level]:
        """Live jobs and the age of the oldest by fleet and status, of each owned partition."""
        now = int(time.time() * 1000)
        for ledger in list(self.fold.ledgers.values()):
            for (fleet, status), count in ledger.counts().items():
                if status in LIVE:
                    since = ledger.oldest(fleet, status) if count else None
                    age = 0 if since is None else max(0, now - since)
                    yield metrics.JOBS, (fleet, status), count
                    yield metrics.OLDEST, (fleet, status), age / 1000

    def stall_levels(self) -> Iterator[Level]:
        """Jobs in a wrong state and the age of the oldest by kind, of each owned partition. Where
        none is loaded nothing is said."""
        now = int(time.time() * 1000)
        for ledger in list(self.fold.ledgers.values()):
            oldest: dict[str, int] = {}
            counts = dict.fromkeys(StallKind, 0)
            for stall in ledger.stalls().values():
                kind = StallKind(stall.kind)
                counts[kind] += 1
                oldest[kind] = min(stall.since, oldest.get(kind, stall.since))
            for kind, count in counts.items():
                age = max(0, now - oldest.get(kind, now))
                yield metrics.STALLS_OPEN, (kind.value,), count
                yield metrics.STALLS_OLDEST, (kind.value,), age / 1000
        for fleets in list(self.fleet_ledgers.values()):
            for _, waiting, since in fleets.starving():
                yield metrics.STALLS_OPEN, (StallKind.STARVED.value,), waiting
                yield metrics.STALLS_OLDEST, (StallKind.STARVED.value,), max(0, now - since) / 1000

    @property
    def fleet_ledgers(self) -> Mapping[int, FleetLedger]:
        """By partition of ``runners.fleets``, those that are loaded."""
        return {
            partition: ledger
            for fold in self.folds
            for partition, ledger in list(fold.ledgers.items())
            if isinstance(ledger, FleetLedger)
        }

    def recovery_levels(self) -> Iterator[Level]:
        """What recovery may do in each fleet. Of fleets that share a label the worst is shown, and
        every mode."""
        for ledger in self.fleet_ledgers.values():
            for fleet, breaker, mode in ledger.levels():
                yield metrics.RECOVERY_BREAKER_OPEN, (fleet,), breaker is BreakerState.OPEN
                yield metrics.RECOVERY_MODE, (fleet, mode.value), 1

    @property
    def telemetry_ledgers(self) -> Mapping[int, TelemetryLedger]:
        """By partition of ``runners.telemetry``, those that are loaded."""
        return {
            partition: ledger
            for fold in self.folds
            for partition, ledger in list(fold.ledgers.items())
            if isinstance(ledger, TelemetryLedger)
        }

    def telemetry_levels(self) -> Iterator[metrics.Level]:
        """Every gauge of telemetry over owned partitions of ``runners.telemetry``."""
        for ledger in self.telemetry_ledgers.values():
            yield from ledger.levels()

    def run(self) -> int:
        """Run until a signal or a failure. Returns the exit code."""
        worker = self.app.Worker(loglevel=self.settings.log_level, quiet=True)
        try:
            worker.execute_from_commandline()
        except SystemExit as exc:
            return exc.code if isinstance(exc.code, int) else 1
        return 0


def tick(
    topic: str,
    partition: int,
    at: int,
    by: str = "",
    sources_to: int | None = None,
    looks_only: bool = False,
) -> Output:
    """The tick of a log's partition. See :class:`topics.models.Tick`."""
    record = Tick(
        by=by,
        sources_to=sources_to,
        looks_only=looks_only,
        id=f"tick:{partition}:{at}",
        source="runnerstream",
        occurred_at=at,
        received_at=at,
        key=f"tick:{partition}",
    )
    return Output(
        topic, partition, record.key.encode(), record.model_dump_json(exclude_none=True).encode()
    )


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
