"""A Kafka transport for Faust that delivers record batches and commits only finished work.

Source topics arrive as one Faust message per fetched partition batch (:class:`Batch`), so
everything Faust does per message (flow control, queueing, tracking, acks) happens once per
hundreds of records. Changelog records still arrive one by one, because Faust's recovery counts
them.

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
  :meth:`SafeConsumer.perform_seek` seeks to the beginning there.
* *Four asyncio tasks per message*: ``wait_first`` is bypassed while nothing is suspended.
* *A second of sleep whenever every partition is back-pressured*: the wait is short instead.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from faust.serializers.schemas import Schema
from faust.transport.drivers import aiokafka as driver
from faust.types.tuples import TP, ConsumerMessage


class Batch:
    """Consecutive records of one source partition, in offset order.

    ``records`` are aiokafka ConsumerRecords (raw key and value). ``done`` is set by the agent
    when every effect of the batch is durable; only then does acking it move the offset.
    """

    __slots__ = ("done", "records", "tp")

    def __init__(self, tp: TP, records: list[Any]) -> None:
        self.tp = tp
        self.records = records
        self.done = False

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


class SafeConsumer(driver.Consumer):
    """See the module docstring."""

    #: Pause between looks at the fetcher while all partitions are back-pressured, in seconds.
    BACK_PRESSURE_WAIT = 0.05

    _held_back: set[TP] | None = None
    #: The offset that comes next of each source partition, where it is known.
    _next: dict[TP, int] | None = None

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        """Yield one message per source partition batch, one per changelog record."""
        if not self._get_active_partitions() and self.flow_active and not self.should_stop:
            await self.sleep(self.BACK_PRESSURE_WAIT)
            return
        records, active = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        if records is None or self.should_stop:
            return
        if not self.flow_active:
            try:
                await self.perform_seek()
            except Exception as exc:
                self.log.warning("seek while the flow is stopped failed: %r", exc)
            return
        for tp, batch in records.items():
            wanted = active is None or tp in active or tp in self._buffered_partitions
            if not wanted or not batch:
                continue
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
            for message in self._messages(tp, batch):
                if not self.flow_active or self.app.consumer_generation_id != generation:
                    return
                yield tp, message

    def _messages(self, tp: TP, records: list[Any]) -> Iterable[Any]:
        if self._is_changelog_tp(tp):
            for record in records:
                yield self._to_message(tp, record)
            return
        last = records[-1]
        following = self._next = {} if self._next is None else self._next
        on_gap = getattr(self.app, "on_gap", None)
        if on_gap is not None and records[0].offset != following.get(tp, records[0].offset):
            # Markers and what was aborted leave gaps, too: others decide what was lost.
            on_gap(tp.topic, tp.partition, following[tp], records[0].offset)
        following[tp] = last.offset + 1
        yield ConsumerMessage(
            last.topic,
            last.partition,
            last.offset,
            last.timestamp / 1000.0,
            last.timestamp_type,
            (),
            None,
            Batch(tp, records),
            None,
            0,
            0,
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:
        # A copy: Faust empties the set while the fetch waits for data.
        wanted = frozenset(active_partitions) if active_partitions is not None else None
        return await super()._getmany(wanted, timeout)

    async def perform_seek(self) -> None:
        """Go back to the committed offsets; to the beginning where nothing was committed yet."""
        await super().perform_seek()
        self._next = {
            tp: at
            for tp in self.assignment()
            if not self._is_changelog_tp(tp) and (at := self._read_offset[tp]) is not None
        }
        never = [
            tp
            for tp in self.assignment()
            if not self._is_changelog_tp(tp) and (self._committed_offset[tp] or -1) < 0
        ]
        if never:
            await self._thread.seek_to_beginning(*map(driver.ensure_aiokafka_TP, never))
            for tp in never:
                self._read_offset[tp] = None

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
            self._acked[message.tp] = [message.offset]
            self._n_acked += len(batch)
        waiting = self._waiting_for_ack
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        return batch.done

    def _new_offset(self, tp: TP) -> int | None:
        # Batches of a partition are acked in order (one agent, one loop), so the last one says
        # it all. Faust's own search for gaps would see one between any two batches.
        if self._is_changelog_tp(tp):
            offset = super()._new_offset(tp)
            return None if offset is None else int(offset)
        acked = self._acked.pop(tp, None)
        return acked[-1] + 1 if acked else None

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        if self._is_changelog_tp(tp):
            await super()._add_gap(tp, offset_from, offset_to)

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
