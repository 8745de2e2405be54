"""Tables from their changelogs, in whole batches, from where the store itself says it stands.

What is wrong with Faust's own recovery:

* It hands record by record to the table through a queue: 6,000 to 12,000 records/s, so that a
  worker with 200,000 live jobs starts in half a minute.
* It keeps its own count of how far each partition is. A rebalance in the middle leaves records in
  its queue, counts those of a partition that has gone (``recovery unknown topic``), applies
  them to the table of the record before, and seeks past them at the next assignment: 117 jobs
  of 117 had forgotten facts behind such a point. Here the position is part of the data it
  belongs to (:class:`~pipeline.faust_safe.store.Origin`), so cutting a recovery short at any
  record cannot skip one.
* Its end is the last stable offset it happens to know, and it reads what was aborted.

Order: take the partitions over from whoever wrote them (:mod:`pipeline.faust_safe.fencing`), ask
where the changelogs end now, read to there. So nobody else can write behind that end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Set
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError
from faust.tables.recovery import RebalanceAgain, Recovery, ServiceStopped
from faust.types.tuples import TP
from mode import Service

from pipeline.effects import Writes
from pipeline.faust_safe import sensor
from pipeline.faust_safe.store import PartitionedStore, partitions_of
from pipeline.faust_safe.undecodable import Undecodable

log = logging.getLogger(__name__)

#: Records handed to a store at a time: some 25 ms of work, between which the event loop is let go.
BATCH_RECORDS = 5_000
#: What one partition may answer at a time: the fewer answers, the faster. Bytes.
FETCH_BYTES = 4 << 20
#: Pause before a broker that did not answer is asked again. Seconds.
RETRY_S = 1.0

#: Given the changelog partitions whose tables this worker is to write from now on.
TakeOver = Callable[[Set[TP]], Awaitable[None]]
#: Changelog topic -> what names this very log (:attr:`Origin.log`).
Identify = Callable[[Set[str]], Awaitable[Mapping[str, str]]]


async def _nothing(changelogs: Set[TP]) -> None:
    return None


async def _one_log(topics: Set[str]) -> Mapping[str, str]:
    return dict.fromkeys(topics, "")


def _writes(records: list[Any]) -> Writes:
    writes = [(each.key, each.value) for each in records]
    for _, value in writes:
        if isinstance(value, Undecodable):
            # Without it the tables would be wrong, and nobody would know.
            raise RuntimeError(f"a changelog is damaged: {value.error}")
    return writes


class BatchRecovery(Recovery):
    """Replaces Faust's recovery service: same signals, other reading."""

    #: What Faust says of its services is for debugging.
    logger = logging.getLogger("faust.safe")

    #: Becomes the only writer of partitions.
    take_over: TakeOver = staticmethod(_nothing)
    identify: Identify = staticmethod(_one_log)
    #: Whether the broker says where a log ends. The embedded one falls short by some records, so
    #: there whatever still comes is read as well.
    ends_hold = True
    #: Connection options as aiokafka takes them.
    options: Mapping[str, Any] = {}
    count: sensor.Count = staticmethod(sensor.nobody)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._following: asyncio.Future[None] | None = None
        #: Changelog partitions whose tables hold nothing, not even a clock, since the recovery.
        self.blank: frozenset[TP] = frozenset()

    def flush_buffers(self) -> None:
        """Nothing is buffered."""

    @Service.task
    async def _slurp_changelogs(self) -> None:
        """Faust's loop over single records. Not used."""

    @Service.task
    async def _restart_recovery(self) -> None:
        while not self.should_stop:
            if await self.wait_for_stopped(self.signal_recovery_start):
                break
            self.signal_recovery_start.clear()
            generation = self._generation_id
            self._set_recovery_started()
            self._stop_following()
            try:
                await self._wait(self._recover())
                self._follow()
                await self._wait(self.on_recovery_completed(generation))
            except (RebalanceAgain, IllegalStateError):
                continue
            except ServiceStopped:
                break

    async def _recover(self) -> None:
        began = time.monotonic()
        active = frozenset(self.active_tps)
        for table in self.tables.values():
            table.data.keep(partitions_of(active | self.standby_tps))
        while True:
            try:
                await self.take_over(active)
                records = await self._read(active, until_end=True)
                break
            except KafkaError as error:
                log.warning("the tables cannot be read yet: %r", error)
                await asyncio.sleep(RETRY_S)
        self.blank = frozenset(tp for tp in active if self._store(tp).blank(tp.partition))
        took = time.monotonic() - began
        self.count(sensor.TABLE_RECORDS, (), records)
        self.count(sensor.TABLE_RECOVERY_SECONDS, (), took)
        log.info(
            "%d partitions recovered: %d records in %.1f s",
            len(partitions_of(active)), records, took,
        )  # fmt: skip

    def _store(self, tp: TP) -> PartitionedStore:
        store: PartitionedStore = self.tp_to_table[tp].data
        return store

    async def _read(self, tps: Set[TP], *, until_end: bool) -> int:
        """Apply the changelogs up to their ends as of now; for ever unless ``until_end``."""
        if not tps:
            return 0
        consumer = AIOKafkaConsumer(
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=100 if until_end else 500,
            max_partition_fetch_bytes=FETCH_BYTES,
            **self.options,
        )
        try:
            await consumer.start()
            logs = await self.identify({tp.topic for tp in tps})
            wanted = {TopicPartition(tp.topic, tp.partition): tp for tp in tps}
            ends = await consumer.end_offsets(list(wanted))
            firsts = await consumer.beginning_offsets(list(wanted))
            consumer.assign(list(wanted))
            starts = {}
            for where, tp in wanted.items():
                start = self._start(tp, logs[tp.topic], firsts[where], ends[where])
                starts[where] = start
                consumer.seek(where, start)
                self.active_highwaters[tp], self.active_offsets[tp] = ends[where] - 1, start - 1
            left = {each for each in wanted if not until_end or starts[each] < ends[each]}
            records = 0
            while left or not until_end:
                fetched = await consumer.getmany(*left, timeout_ms=1_000, max_records=BATCH_RECORDS)
                records += await self._apply(consumer, fetched)
                for each in list(left) if until_end else ():
                    if await consumer.position(each) >= ends[each]:
                        left.discard(each)
                        consumer.pause(each)
            if not self.ends_hold:
                consumer.resume(*wanted)
                while fetched := await consumer.getmany(timeout_ms=300, max_records=BATCH_RECORDS):
                    records += await self._apply(consumer, fetched)
            return records
        finally:
            await consumer.stop()

    async def _apply(self, consumer: Any, fetched: Mapping[Any, list[Any]]) -> int:
        for where, batch in fetched.items():
            tp = TP(where.topic, where.partition)
            position = await consumer.position(where)
            self._store(tp).put(tp.partition, _writes(batch), position)
            self.active_offsets[tp] = position - 1
            await asyncio.sleep(0)
        return sum(map(len, fetched.values()))

    def _start(self, tp: TP, name: str, first: int, end: int) -> int:
        """The offset to read from; a store that is of another log begins anew."""
        store = self._store(tp)
        origin = store.origin(tp.partition)
        if origin is not None:
            why = ""
            if origin.log != name:
                why = "the topic was made anew"
            elif origin.position > end and self.ends_hold:
                why = f"the topic ends at {end}, before what was read from it"
            if not why:
                return max(first, origin.position)
            log.warning(
                "the local state of %s, partition %d, is of another log (%s): dropped, read again",
                tp.topic, tp.partition, why,
            )  # fmt: skip
        store.reset(tp.partition, name)
        return first

    # -- standbys --------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Keep the stores of standby partitions up to date until the next rebalance."""
        if self.standby_tps:
            self._following = asyncio.ensure_future(self._follow_for_ever(set(self.standby_tps)))

    async def _follow_for_ever(self, tps: Set[TP]) -> None:
        while True:
            try:
                await self._read(tps, until_end=False)
            except KafkaError as error:
                log.warning("standby tables cannot be read: %r", error)
                await asyncio.sleep(RETRY_S)

    def _stop_following(self) -> None:
        if self._following is not None:
            self._following.cancel()
            self._following = None

    async def on_stop(self) -> None:
        """Stop reading."""
        following = self._following
        self._stop_following()
        if following is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await following
