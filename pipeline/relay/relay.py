"""The loop of a relay: deliveries from Kafka, each posted until the target has it.

    fetch ─▶ screen ─▶ in hand ─▶ (first of its job? due? target well?) ─▶ post ─▶ done ─▶ commit
                          ▲                                                  │
                          └───────────────────── later ◀─────────────────────┘

It fetches on while deliveries are sent, so a target that is away costs no membership. Before a
rebalance takes partitions away, what is under way is finished or broken off, and what is done is
committed: the next owner of a job begins behind it. A process that was frozen asks the broker
whether it still is a member before it sends anything more.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import CommitFailedError, KafkaError
from kafka.errors import KafkaError as StartError

from pipeline.faust_safe import reconnect, undecodable
from pipeline.relay.letters import Letters
from pipeline.relay.metrics import EXPIRED, REFUSED, RelayMetrics
from pipeline.relay.order import Commit, Item, Order
from pipeline.relay.pace import Answer, Pace
from pipeline.relay.screen import Screen, Sending, Skip
from pipeline.relay.start import Begin, found, mark_of
from pipeline.relay.target import NotNow, Reply, Target
from sinks.writer import Backoff
from topics.catalogue import WEBHOOKS
from topics.envelope import EARLIEST_MS

log = logging.getLogger(__name__)

undecodable.install()
reconnect.install()

#: Deliveries in hand beyond which no more are read, and below which reading goes on; bytes of them.
_MANY: Final = 1_000
_FEW: Final = 500
_MANY_BYTES: Final = 64 << 20
#: How long one fetch waits for records, and how many it brings.
_FETCH_MS: Final = 200
_FETCHED: Final = 200
#: How often is committed, and how often lag is looked at. Seconds.
_COMMIT_S: Final = 1.0
_OBSERVE_S: Final = 2.0
#: The loop counts as alive when its last turn is younger than this. Seconds.
_ALIVE_S: Final = 120.0
#: How long the broker may take for an answer, and to be left. Seconds.
_ANSWER_S: Final = 5.0
#: How long to wait after the broker has refused something. Seconds.
_BROKER_PAUSE_S: Final = 0.5

Delivery = Item[TopicPartition, Sending]


@dataclass(frozen=True)
class RelayConfig:
    """How one relay runs.

    Attributes:
        kafka: options of the connection that aiokafka and kafka-python both take.
        url: where it posts.
        begin: where the group begins if it is new.
        max_age_s: from a record's time; what is older is set aside.
        timeout_s: for one attempt.
        at_once: deliveries under way at a time, each of another job.
        refusals: statuses by which the target refuses a delivery for good.
        backoff: between attempts of one delivery, and while the target is away.
        finish_s: how long what is under way may take at the end, and before a rebalance.
        session_s, rebalance_s: of the membership in the group.
    """

    kafka: Mapping[str, Any]
    group_id: str
    url: str
    begin: Begin = "latest"
    max_age_s: float = 86_400.0
    timeout_s: float = 10.0
    at_once: int = 16
    refusals: Collection[int] = frozenset({400, 413, 415, 422})
    backoff: Backoff = field(default_factory=lambda: Backoff(0.5, 2.0, 60.0))
    finish_s: float = 10.0
    session_s: float = 30.0
    rebalance_s: float = 30.0


@dataclass(frozen=True)
class RelayStatus:
    """How a relay is doing."""

    ready: bool
    reason: str
    alive: bool
    paused: bool
    in_flight: int
    waiting: int
    #: Records not done with; None while nobody knows.
    lag: int | None


@dataclass(slots=True)
class _Watch:
    """What health is told from."""

    trouble: str = "starting"
    target: str = ""
    turned: float = field(default_factory=time.monotonic)
    lag: int | None = None
    committed: float = 0.0
    observed: float = 0.0


class Relay(ConsumerRebalanceListener):  # type: ignore[misc]
    """One relay, run once."""

    def __init__(self, config: RelayConfig, screen: Screen) -> None:
        self.config = config
        self.metrics = RelayMetrics()
        self._screen = screen
        self._order: Order[TopicPartition, Sending] = Order()
        self._pace = Pace(config.at_once, config.backoff)
        self._letters = Letters(config.kafka, config.group_id, config.backoff)
        self._watch = _Watch()
        self._consumer: Any = None
        self._target: Target | None = None
        self._flying: set[asyncio.Task[None]] = set()
        #: Of these, those that were begun while the target was paused.
        self._probing: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        #: How many rebalances there were, and how many when our partitions were begun.
        self._rebalances = 0
        self._begun = 0
        #: Nothing is sent: partitions are about to go, it may be no member, or it is to end.
        self._held = False
        self._doubt = False
        #: Partitions are being taken away, or handed out; the broker has said that we are nobody.
        self._moving = False
        self._lost = False
        self._fault: BaseException | None = None

    def status(self) -> RelayStatus:
        """How it is now. From any thread."""
        watch = self._watch
        paused = self._pace.paused_since is not None
        reason = watch.trouble or self._letters.trouble
        if not reason and paused:
            reason = f"the target takes nothing: {watch.target}"
        alive = time.monotonic() - watch.turned < _ALIVE_S
        return RelayStatus(not reason, reason, alive, paused, len(self._flying), self._order.size,
                           watch.lag)  # fmt: skip

    async def run(self, stop: threading.Event) -> None:
        """Post until ``stop`` is set; then finish what is under way, commit, and leave the group.

        Raises what is truly unexpected. A broker or a target that is away is waited for.
        """
        config = self.config
        self._target = Target(config.url, config.timeout_s, config.refusals, config.at_once,
                              self._may_send)  # fmt: skip
        try:
            await self._join(stop)
            while not stop.is_set():
                try:
                    await self._turn(stop)
                except (KafkaError, OSError, TimeoutError) as error:
                    self._watch.trouble = f"Kafka failing: {type(error).__name__}"
                    log.warning("%s %s", self._watch.trouble, " ".join(str(error).split())[:200])
                    await asyncio.sleep(_BROKER_PAUSE_S)
                if self._fault is not None:
                    raise self._fault
            await self._let_go()
        finally:
            self._held = True
            self._watch.trouble = "stopped"
            for task in self._flying:
                task.cancel()
            if self._timer is not None:
                self._timer.cancel()
            leaving = [self._leave(), self._letters.close(), self._target.close()]
            # A broker that is away is not waited for: who is gone is missed soon enough.
            await asyncio.wait([asyncio.create_task(each) for each in leaving], timeout=_ANSWER_S)

    # --- the group ------------------------------------------------------------------------------

    async def _leave(self) -> None:
        if self._consumer is not None:
            await self._consumer.stop()

    async def _join(self, stop: threading.Event) -> None:
        """Be a member of the group, waiting for the broker."""
        config, attempt = self.config, 0
        while not stop.is_set():
            self._touch()
            made: Any = None
            try:
                if await asyncio.to_thread(found, config.kafka, config.group_id, config.begin):
                    log.info("the group %s is new: it begins at %s", config.group_id, config.begin)
                self._screen.mark = await mark_of(config.kafka, config.group_id)
                made = AIOKafkaConsumer(
                    **config.kafka, client_id=config.group_id, group_id=config.group_id,
                    enable_auto_commit=False, isolation_level="read_committed",
                    # Also of a partition whose log was made anew.
                    auto_offset_reset="earliest", metadata_max_age_ms=30_000,
                    session_timeout_ms=int(config.session_s * 1000),
                    heartbeat_interval_ms=int(max(500, config.session_s * 100)),
                    rebalance_timeout_ms=int(config.rebalance_s * 1000),
                )  # fmt: skip
                made.subscribe([WEBHOOKS], listener=self)
                await made.start()
            except (KafkaError, StartError, OSError, TimeoutError) as error:
                if made is not None:
                    await made.stop()
                attempt += 1
                self._watch.trouble = f"Kafka not ready: {type(error).__name__}: {error}"
                log.warning("%s", self._watch.trouble)
                await asyncio.sleep(min(5.0, config.backoff.delay(attempt)))
            else:
                self._consumer = made
                return

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Stop sending, let what is under way end, commit."""
        self._rebalances += 1
        self._held = self._moving = True
        await self._land(min(self.config.finish_s, self.config.rebalance_s / 2))
        if revoked:
            try:
                await self._commit()
            except (KafkaError, OSError) as error:
                log.warning("not committed before a rebalance: %s: %s", type(error).__name__, error)
        self._order.drop()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """These are ours; the loop begins them."""
        self._rebalances += 1
        self._moving = False
        self._order.drop()
        log.info("assigned %d partitions", len(assigned))

    async def _begin(self) -> None:
        """Begin what was assigned, from what is committed of it."""
        consumer, rebalances = self._consumer, self._rebalances
        places = sorted(consumer.assignment())
        if not places:
            return
        # The consumer's own method leaves the notes out.
        async with asyncio.timeout(_ANSWER_S):
            committed = await consumer._coordinator.fetch_committed_offsets(places)
            begins = await consumer.beginning_offsets(places)
        if rebalances != self._rebalances or self._flying:
            return
        for where in places:
            told = committed.get(where)
            commit = Commit(begins[where])
            if told is not None and told.offset >= begins[where]:
                commit = Commit(told.offset, told.metadata or "")
            elif told is not None and told.offset >= 0:
                lost = begins[where] - told.offset
                self.metrics.lost.inc(lost)
                log.error("%d records of partition %d were removed before they were read", lost,
                          where.partition)  # fmt: skip
            consumer.seek(where, commit.offset)
            self._order.begin(where, commit)
        self._begun = rebalances
        self._held = self._doubt = self._lost = False
        self._watch.observed = 0.0

    def _touch(self) -> None:
        """The loop turns. After a pause as long as this others may have our partitions."""
        now = time.monotonic()
        if now - self._watch.turned > self.config.session_s / 2:
            self._doubt = True
        self._watch.turned = now

    def _may_send(self) -> bool:
        """Whether our partitions are ours as far as we know: asked just before bytes are sent."""
        stood_s = time.monotonic() - self._watch.turned
        return not (self._doubt or self._lost or stood_s > self.config.session_s / 2)

    async def _prove(self) -> None:
        """After a long pause, send on only if the broker still takes what we commit."""
        self._order.forget_commits()
        await self._commit()
        self._doubt = False

    # --- the loop -------------------------------------------------------------------------------

    async def _turn(self, stop: threading.Event) -> None:
        self._touch()
        if self._moving:
            pass
        elif self._begun != self._rebalances:
            await self._begin()
        elif self._doubt:
            await self._prove()
        before = self._rebalances
        fetched = await self._fetch(stop)
        if before == self._rebalances == self._begun:
            self._take(fetched)
            self._launch()
            if time.monotonic() - self._watch.committed > _COMMIT_S:
                await self._commit()
            self._brake()
            await self._observe()
        # Else what was fetched may be of an earlier ownership; it is read again.

    async def _fetch(self, stop: threading.Event) -> Mapping[TopicPartition, list[Any]]:
        """What has arrived. Waits through a rebalance, but not beyond the end."""
        task = asyncio.create_task(
            self._consumer.getmany(timeout_ms=_FETCH_MS, max_records=_FETCHED)
        )
        while True:
            await asyncio.wait({task}, timeout=1.0)
            self._touch()
            if task.done():
                return task.result()  # type: ignore[no-any-return]
            if stop.is_set() or self._fault is not None:
                task.cancel()
                return {}

    def _take(self, fetched: Mapping[TopicPartition, list[Any]]) -> None:
        order = self._order
        for where, records in fetched.items():
            for record in records:
                position = order.position(where)
                if position is None:
                    break
                if record.offset < position:
                    # The log was made anew, and is read from its beginning.
                    order.begin(where, Commit(record.offset))
                if order.was_done(where, record.offset):
                    order.reach(where, record.offset + 1)
                    continue
                sending = self._screen.look(record)
                if isinstance(sending, Skip):
                    self.metrics.skipped.labels(sending.value).inc()
                    order.reach(where, record.offset + 1)
                    continue
                order.take(where, record.offset, record.key, sending)

    def _launch(self) -> None:
        """Send what may be sent now, and come back when something else may be."""
        now = time.monotonic()
        if self._held or not self._may_send():
            return
        while self._pace.room(now, len(self._flying), len(self._probing)) > 0:
            item = self._order.next(now)
            if item is None:
                break
            task = asyncio.create_task(self._deliver(item))
            self._flying.add(task)
            if self._pace.paused_since is not None:
                self._probing.add(task)
            task.add_done_callback(self._landed)
        if self._timer is not None:
            self._timer.cancel()
        waits = [self._order.next_due()]
        if self._pace.paused_since is not None:
            waits = [self._pace.probe_at]
        for due in waits:
            if due is not None and due > now:
                self._timer = asyncio.get_running_loop().call_later(due - now, self._launch)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._flying.discard(task)
        self._probing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._fault = task.exception()
            self._held = True
        self._launch()

    async def _deliver(self, item: Delivery) -> None:
        """One attempt, and what follows from it."""
        assert self._target is not None
        sending = item.what
        if _age_s(sending) > self.config.max_age_s:
            tried = f"after {item.attempts} attempts" if item.attempts else "before it was tried"
            why = f"older than {self.config.max_age_s:g} s {tried}"
            await self._set_aside(item, EXPIRED, f"{why}; {self._watch.target or 'no answer yet'}")
            return
        began = time.monotonic()
        try:
            reply = await self._target.post(sending)
        except NotNow:
            self._order.again(item, began)
            return
        item.attempts += 1
        now = time.monotonic()
        self.metrics.attempts.labels(reply.answer.value).inc()
        self.metrics.seconds.observe(now - began)
        if reply.answer in (Answer.TAKEN, Answer.REFUSED) and self._pace.answers():
            log.info("the target takes deliveries again")
            self._probing.clear()
            self._order.hurry()
        if reply.answer is Answer.TAKEN:
            self.metrics.delivered.labels(sending.provider).inc()
            self.metrics.delay.observe(max(0.0, _age_s(sending)))
            self.metrics.last_delivery.set(time.time())
            self._order.done(item)
        elif reply.answer is Answer.REFUSED:
            why = f"refused by the target: {reply.told}, attempt {item.attempts}"
            await self._set_aside(item, REFUSED, why)
        else:
            self._failed(item, reply, began, now)

    def _failed(self, item: Delivery, reply: Reply, began: float, now: float) -> None:
        self._watch.target = f"it answered last: {reply.told}"
        which = (item.where, item.offset)
        if self._pace.failed(now, began, which, reply.answer, reply.after_s):
            log.warning("the target takes nothing, and is tried now and then: %s", reply.told)
        log.debug("%s:%d not taken: %s", item.where, item.offset, reply.told)
        self._order.again(item, now + self.config.backoff.delay(item.attempts))

    async def _set_aside(self, item: Delivery, how: str, why: str) -> None:
        record = item.what.record
        log.warning("dead letter for %s:%d:%d: %s", record.topic, record.partition, record.offset,
                    why)  # fmt: skip
        await self._letters.bury(record, why)
        self.metrics.dead_letters.labels(how).inc()
        self._order.done(item)

    def _brake(self) -> None:
        consumer, size = self._consumer, self._order.size
        held = sum(len(item.what.body) for item in self._order)
        if size >= _MANY or held >= _MANY_BYTES:
            # In every turn: a rebalance brings partitions that are not paused.
            consumer.pause(*consumer.assignment())
        elif size < _FEW and held < _MANY_BYTES // 2 and consumer.paused():
            consumer.resume(*consumer.paused())

    # --- commits and lag ------------------------------------------------------------------------

    async def _commit(self) -> None:
        self._watch.committed = time.monotonic()
        commits = self._order.due()
        if not commits:
            return
        try:
            async with asyncio.timeout(_ANSWER_S):
                await self._consumer.commit({w: tuple(each) for w, each in commits.items()})
        except CommitFailedError:
            # Others have these partitions, or will: the client finds out, and joins again.
            if not self._held:
                log.warning("the group was handed out anew: sending nothing until it is joined")
            self._held = self._lost = True
        else:
            self._order.committed(commits)

    async def _observe(self) -> None:
        watch, metrics, now = self._watch, self.metrics, time.monotonic()
        metrics.in_flight.set(len(self._flying))
        metrics.waiting.set(self._order.size)
        metrics.paused.set(float(self._pace.paused_since is not None))
        if now - watch.observed < _OBSERVE_S:
            return
        watch.observed = now
        ages = [_age_s(item.what) for item in self._order]
        metrics.oldest.set(max([0.0, *ages]))
        places = sorted(self._consumer.assignment())
        async with asyncio.timeout(_ANSWER_S):
            ends = await self._consumer.end_offsets(places) if places else {}
        metrics.lag.clear()
        watch.lag = 0
        for where in places:
            if self._order.position(where) is None:
                continue
            # Also past marks of transactions, which are no records.
            async with asyncio.timeout(_ANSWER_S):
                position = await self._consumer.position(where)
            if self._order.position(where) is None:
                return
            self._order.reach(where, position)
            left = self._order.left(where, ends[where])
            metrics.lag.labels(str(where.partition)).set(left)
            watch.lag += left
        watch.trouble = ""

    # --- the end --------------------------------------------------------------------------------

    async def _let_go(self) -> None:
        """Finish what is under way, and commit."""
        self._held = True
        log.info("taking no more deliveries; %d are under way", len(self._flying))
        await self._land(self.config.finish_s)
        try:
            await self._commit()
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("not committed at the end: %s: %s", type(error).__name__, error)

    async def _land(self, limit_s: float) -> None:
        """Wait for what is under way, and break off what takes longer: it is sent again."""
        flying = set(self._flying)
        if not flying:
            return
        _, late = await asyncio.wait(flying, timeout=limit_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)


def _age_s(sending: Sending) -> float:
    """Since the record's time; 0 for one that tells no time that can be."""
    at = sending.record.timestamp
    return time.time() - at / 1000 if at >= EARLIEST_MS else 0.0


__all__ = ["Relay", "RelayConfig", "RelayStatus"]
