"""A Kafka transport for Faust that delivers record batches and commits only finished work.

Source topics arrive as one Faust message per fetched partition batch (:class:`Batch`), so
everything Faust does per message (flow control, queueing, tracking, acks) happens once per
hundreds of records. Changelogs are not read here at all (:mod:`pipeline.faust_safe.recovery`).

Remedies:

* *Recovery race* (faust-streaming#175, #166, #523, #640): after recovery Faust un-pauses source
  partitions, then awaits a seek, then clears the queues. Whatever the running fetcher delivers
  in between is lost, and re-fetched records are dropped as old. :meth:`SafeConsumer
  .resume_partitions` keeps source partitions paused until :meth:`SafeConsumer.resume_flow`.
* *Offsets committed past unfinished work* (faust-streaming#606): a message that Faust itself
  skips (old generation, flow stopped) is acked like a processed one. Here only a batch that the
  agent marked ``done`` in the current generation moves the offset.
* *Records lost before the first commit*: after a rebalance Faust seeks to the committed offset,
  and nowhere where there is none yet. What had been fetched and dropped by then (the set of
  active partitions is emptied while a fetch waits, and aiokafka takes an empty set for "all") was
  never read again: the first 50 records of a partition, with three workers starting under load.
  :meth:`SafeConsumer.perform_seek` seeks to the beginning there. And Faust takes a commit that a
  rebalance refused for made: here the broker alone says what was committed.
* *Records of a fetch that began before a rebalance*: it may end only once recovery has gone back to
  the committed offsets. What it brings lies behind records that were dropped, and committing it
  lost those: the claims of three jobs, with workers that slept. It is dropped, and
  :meth:`SafeConsumer.perform_seek` goes back once more.
* *Records dropped as old*: Faust skips what lies before the last record it delivered, and a
  delivery that waits through a rebalance says so after the seek that goes back. Nothing is skipped
  here (:class:`Unread`): what comes again changes nothing.
* *Records of aborted transactions*: Faust reads them unless it writes transactions itself. Here
  only what was committed is read.
* *Lag that never ends*: Faust commits the last record plus one, which is not where the partition
  ends when the end of a transaction or a compacted record follows. The position of the consumer is
  committed instead (:attr:`Batch.next_offset`), also when nothing but such marks came.
* *Holes*: offsets that were passed over are told to :attr:`SafeConsumer.on_hole`, because retention
  may have removed their records before they were read.
* *Four asyncio tasks per message*: ``wait_first`` is bypassed while nothing is suspended.
* *A second of sleep whenever every partition is back-pressured*: the wait is short instead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from faust.serializers.schemas import Schema
from faust.transport.drivers import aiokafka as driver
from faust.types.tuples import TP, ConsumerMessage

from pipeline.faust_safe import reconnect, sensor, undecodable

log = logging.getLogger(__name__)

undecodable.install()
reconnect.install()


#: Partition, first offset that was not read, first offset that was or will be. A suspicion: marks
#: may be all that was in between, so whoever is told asks where the log begins.
OnHole = Callable[[TP, int, int], None]


def _ignore(tp: TP, first: int, end: int) -> None:
    return None


class Batch:
    """Consecutive records of one source partition, in offset order.

    ``records`` are aiokafka ConsumerRecords (raw key and value). ``next_offset`` is where the
    consumer goes on reading; marks of transactions may lie between it and the last record.
    ``done`` is set by the agent when every effect of the batch is durable; only then does acking
    it move the offset. ``committed`` says that the agent has committed ``next_offset`` itself.
    """

    __slots__ = ("committed", "done", "next_offset", "records", "tp")

    def __init__(self, tp: TP, records: list[Any], next_offset: int | None = None) -> None:
        self.tp = tp
        self.records = records
        self.next_offset = records[-1].offset + 1 if next_offset is None else next_offset
        self.done = False
        self.committed = False

    def __len__(self) -> int:
        return len(self.records)


class BatchSchema(Schema):
    """Delivers the message value as it is; batches are decoded by the agent.

    A decode error inside Faust kills the agent for good (robinhood/faust#586), so nothing is
    decoded there.
    """

    def compile(self, app: Any, **kwargs: Any) -> Callable[..., Any]:
        """The function that turns a message into an event."""
        create_event = app.create_event

        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return create_event(None, message.value, message.headers, message)

        return decode


class SafeConsumerThread(driver.AIOKafkaConsumerThread):
    """The thread in which aiokafka fetches, with what the consumer needs to know of it."""

    #: What Faust says of its services is for debugging.
    logger = logging.getLogger("faust.safe")

    def __post_init__(self) -> None:
        super().__post_init__()
        #: Where each partition is read on, as of the last fetch.
        self.positions: dict[TP, int] = {}

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        return consumer

    async def _fetch_records(self, consumer: Any, *args: Any, **kwargs: Any) -> Any:
        records = await super()._fetch_records(consumer, *args, **kwargs)
        subscription = consumer._subscription.subscription
        assignment = None if subscription is None else subscription.assignment
        if assignment is not None:
            self.positions = {
                TP(tp.topic, tp.partition): state.position
                for tp in assignment.tps
                if (state := assignment.state_value(tp)).has_valid_position
            }
        return records

    async def rejoin(self) -> None:
        """Have the group assign its partitions anew."""

        async def request() -> None:
            self._ensure_consumer()._coordinator.request_rejoin()

        await self.call_thread(request)


class Unread(dict[TP, int | None]):
    """The offsets up to which Faust takes records for old: of no partition any."""

    def __getitem__(self, tp: TP) -> int | None:
        return None

    def __setitem__(self, tp: TP, offset: int | None) -> None:
        """Not kept."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Not kept."""


class SafeConsumer(driver.Consumer):
    """See the module docstring."""

    #: What Faust says of its services is for debugging.
    logger = logging.getLogger("faust.safe")

    #: Pause between looks at the fetcher while all partitions are back-pressured, in seconds.
    BACK_PRESSURE_WAIT = 0.05

    on_hole: OnHole
    logs: Mapping[str, frozenset[str]]
    count: sensor.Count = staticmethod(sensor.nobody)
    _held_back: set[TP] | None = None
    #: Whether a fetch was dropped that no seek may follow.
    _astray = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_hole = self.transport.on_hole
        self.logs = self.transport.logs
        self.count = self.transport.count
        self._read_offset = Unread()
        self._forget_positions()

    def _new_consumer_thread(self) -> SafeConsumerThread:
        return SafeConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _forget_positions(self) -> None:
        self._seeks = getattr(self, "_seeks", 0) + 1
        #: Behind the last batch handed on, and behind the last one that was finished.
        self._delivered: dict[TP, int] = {}
        self._finished: dict[TP, int] = {}
        #: Where partitions stand that had nothing to hand on.
        self._passed: dict[TP, int] = {}
        #: Partitions of which something was fetched and not handed on, until the next seek.
        self._dropped: set[TP] = set()

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        """Yield one message per partition batch."""
        if not self._get_active_partitions() and self.flow_active and not self.should_stop:
            await self.sleep(self.BACK_PRESSURE_WAIT)
            return
        if self._astray and self._settled() and not await self._go_back():
            await self.sleep(self.BACK_PRESSURE_WAIT)
            return
        seeks = self._seeks
        records, active = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        if records is None or self.should_stop:
            self._dropped.update(records or ())
            return
        left = {tp for tp, batch in records.items() if batch}
        self._dropped |= left
        if not self.flow_active:
            self._astray = self._astray or bool(left)
            await self._go_back()
            return
        if left and self._seeks != seeks:
            self._astray = True
            return
        positions = self._thread.positions
        if self._seeks == seeks:
            # Else they are from before the seek, behind records that were dropped then: committing
            # them lost the lifecycle events of 65 jobs in a trial with sleeping workers.
            self._passed.update((tp, at) for tp, at in positions.items() if tp not in records)
        for tp, batch in records.items():
            wanted = active is None or tp in active or tp in self._buffered_partitions
            if not wanted or not batch:
                continue
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
            message = self._message(tp, batch, positions.get(tp, 0))
            self._look_for_hole(tp, batch[0].offset)
            if not self.flow_active or self.app.consumer_generation_id != generation:
                return
            self._dropped.discard(tp)
            self._delivered[tp] = message.value.next_offset
            yield tp, message

    def _settled(self) -> bool:
        """Whether records flow: neither a rebalance nor a recovery will seek any more."""
        return self.flow_active and not (self.app.rebalancing or self.app.in_recovery)

    async def _go_back(self) -> bool:
        """Seek to what is committed, because something that lies behind it was dropped."""
        try:
            await self.perform_seek()
        except Exception as exc:
            self.log.warning("seek after a fetch that a rebalance overtook failed: %r", exc)
            return False
        self._astray = False
        return True

    def _message(self, tp: TP, records: list[Any], position: int) -> Any:
        last = records[-1]
        return ConsumerMessage(
            last.topic,
            last.partition,
            last.offset,
            last.timestamp / 1000.0,
            last.timestamp_type,
            (),
            None,
            Batch(tp, records, max(position, last.offset + 1)),
            None,
            0,
            0,
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    def _look_for_hole(self, tp: TP, offset: int) -> None:
        expected = self._delivered.get(tp, self._committed_offset.get(tp) or 0)
        if offset > expected > 0:
            self.on_hole(tp, expected, offset)

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:
        # A copy: Faust empties the set while the fetch waits for data.
        wanted = frozenset(active_partitions) if active_partitions is not None else None
        return await super()._getmany(wanted, timeout)

    async def perform_seek(self) -> None:
        """Go back to the committed offsets; to the beginning where nothing was committed yet, or
        where the tables made of what was committed are gone."""
        for tp in self.assignment():
            # A commit that was refused is remembered like one that was made.
            self._committed_offset[tp] = None
        await super().perform_seek()
        blank: frozenset[TP] = getattr(self.app.tables.recovery, "blank", frozenset())
        never = []
        for tp in self.assignment():
            committed = self._committed_offset[tp] or -1
            if self._is_changelog_tp(tp):
                continue
            if committed > 0 and self._lost(tp, blank):
                log.warning(
                    "%s, partition %d, was folded up to offset %d and its tables hold nothing: "
                    "folding it again from its beginning",
                    tp.topic, tp.partition, committed,
                )  # fmt: skip
                self._committed_offset[tp] = None
                committed = -1
            if committed < 0:
                never.append(tp)
        if never:
            await self._thread.seek_to_beginning(*map(driver.ensure_aiokafka_TP, never))
            for tp in never:
                self._read_offset[tp] = None
        self._forget_positions()

    def ack(self, message: Any) -> bool:
        """Record a finished batch. A batch that is not done leaves the offset where it is."""
        batch = message.value
        if not isinstance(batch, Batch):
            return bool(super().ack(message))
        if message.acked:
            return False
        message.acked = True
        self._unacked_messages.discard(message)
        if batch.done and message.generation_id == self.app.consumer_generation_id:
            self._finished[message.tp] = batch.next_offset
            if batch.committed:
                self._committed_offset[message.tp] = batch.next_offset
            else:
                self._acked[message.tp] = [batch.next_offset]
            self._n_acked += len(batch)
        waiting = self._waiting_for_ack
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        return batch.done

    def _new_offset(self, tp: TP) -> int | None:
        # Batches of a partition are acked in order (one agent, one loop), so the last one says
        # it all. Faust's own search for gaps would see one between any two batches.
        acked = self._acked.pop(tp, None)
        return acked[-1] if acked else None

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Not kept: see :meth:`_new_offset`."""

    async def force_commit(self, *args: Any, **kwargs: Any) -> bool:
        """Commit what is finished, and where partitions stand that had only marks to pass."""
        if self.flow_active and not self.should_stop and not self.app.rebalancing:
            for tp, position in self._passed.items():
                behind = self._committed_offset.get(tp) or 0
                finished = self._delivered.get(tp, behind) == self._finished.get(tp, behind)
                if finished and tp not in self._dropped and self._marks_only(tp, behind, position):
                    self._acked.setdefault(tp, [position])
                    # Or retention removed all that was left: no batch will tell of it.
                    if behind:
                        self.on_hole(tp, behind, position)
        began = time.perf_counter()
        did_commit = bool(await super().force_commit(*args, **kwargs))
        if did_commit:
            self.count(sensor.OFFSET_COMMIT_SECONDS, (), time.perf_counter() - began)
        return did_commit

    def _lost(self, tp: TP, blank: frozenset[TP]) -> bool:
        """Whether all tables that are made of a log hold nothing of the partition."""
        made = self.logs.get(tp.topic)
        return bool(made) and all(TP(topic, tp.partition) in blank for topic in made or ())

    def _marks_only(self, tp: TP, committed: int, position: int) -> bool:
        # What agents commit themselves is committed with the next tick.
        return position > committed and tp.topic not in self.logs and not self._is_changelog_tp(tp)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Not looked at: Faust asks for positions that are not known yet, in the middle of a
        rebalance, and ends the worker over it. What stands still is told by /readyz and /healthz.
        """

    def positions(self) -> dict[TP, int]:
        """Where each owned source partition is read on: lag is what lies behind that."""
        return {
            tp: at for tp, at in self._thread.positions.items() if not self._is_changelog_tp(tp)
        }

    async def rejoin(self) -> None:
        """Have the group assign its partitions anew: ours may have been taken over."""
        await self._thread.rejoin()

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Resume fetching, but source partitions only after the seek that ends recovery."""
        wanted = set(tps)
        sources = {tp for tp in wanted if not self._is_changelog_tp(tp)}
        if sources and self.app.rebalancing:
            self._held_back = (self._held_back or set()) | sources
            wanted -= sources
        if wanted:
            super().resume_partitions(wanted)

    def resume_flow(self) -> None:
        """Let messages flow, and release the source partitions that were held back.

        Faust also calls this when a recovery *starts*, to read changelogs: nothing is released
        then.
        """
        super().resume_flow()
        if self.app.in_recovery:
            return
        held, self._held_back = self._held_back, None
        if held:
            super().resume_partitions(held)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """A rebalance begins. What an interrupted one held back must not be released by this one:
        its tables would not be recovered yet."""
        self._held_back = None
        self._forget_positions()
        await super().on_partitions_revoked(revoked)

    async def wait_first(self, *coros: Any, timeout: Any = None) -> Any:
        """Deliver directly while nothing can suspend the delivery."""
        if (
            len(coros) == 2
            and timeout is None
            and getattr(coros[0], "__name__", "") == "on_message"
            and self.flow_active
            and not self.should_stop
            and self.app.flow_control.is_active()
            and self.app.producer.buffer.size < self.app.producer.buffer.max_messages
        ):
            coros[1].close()
            await coros[0]
            return None
        return await super().wait_first(*coros, timeout=timeout)


class SafeTransport(driver.Transport):
    """The aiokafka transport with :class:`SafeConsumer`."""

    Consumer = SafeConsumer

    #: Told of records that were gone before they were read. Set before the app starts.
    on_hole: OnHole = staticmethod(_ignore)
    #: Set before the app starts, too.
    count: sensor.Count = staticmethod(sensor.nobody)
    #: The topics whose agents commit their offsets themselves, each with the changelogs of the
    #: tables that are made of it.
    logs: Mapping[str, frozenset[str]] = {}
