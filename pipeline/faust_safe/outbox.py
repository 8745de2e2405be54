"""Writes that are durable when they return: outputs, changelogs, ticks.

Faust sends changelog records one by one through a buffer, logs a failed one as a warning and
goes on; its flush gives up after 0.1 s without progress. Here every write is awaited until all
in-sync replicas have it and an error is raised, by an idempotent producer, so that retries
inside the client neither duplicate nor reorder. Records of one partition travel as one prebuilt
batch: one future per batch instead of one per record.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import murmur2

from pipeline.effects import Output
from pipeline.faust_safe import producer_id, reconnect, sensor
from topics.catalogue import MAX_DEAD_LETTER_BYTES

producer_id.install()
reconnect.install()


@lru_cache(maxsize=65_536)
def partition_of(key: bytes, partitions: int) -> int:
    """The partition Kafka's default partitioner gives a key (murmur2, as Java clients do)."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


class Outbox:
    """Publishes :class:`~pipeline.effects.Output` records and waits until they are durable."""

    #: Prebuilt batches grow to this; a single larger record gets a batch of its own. Bytes.
    MAX_BATCH = 1 << 19
    #: The largest record: a 25 MB webhook body in base64 inside a dead letter. Bytes.
    MAX_RECORD = MAX_DEAD_LETTER_BYTES

    def __init__(
        self,
        partitions: Mapping[str, int],
        options: Mapping[str, Any],
        count: sensor.Count = sensor.nobody,
    ) -> None:
        self._partitions = dict(partitions)
        self._options = dict(options)
        self._count = count
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Connect. Raises aiokafka.errors.KafkaError when the broker cannot be reached."""
        # The first batch may come before the task that starts us: Faust lets records flow as
        # soon as recovery ends, and starts tasks only then.
        async with self._starting:
            if self._producer is None:
                self._producer = await connect(self._options, enable_idempotence=True)

    async def stop(self) -> None:
        """Flush and disconnect."""
        if self._producer is not None:
            await self._producer.stop()
            self._producer = None

    async def publish(self, outputs: Iterable[Output]) -> dict[tuple[str, int], int]:
        """Write all outputs; return when every one is acknowledged.

        Returns the last offset written per (topic, partition). Order is kept within a
        partition. Raises the first error; then none, some or all of the outputs may be in the
        log, which is why every output may be repeated.
        """
        began = time.perf_counter()
        try:
            if self._producer is None:
                await self.start()
            producer = self._producer
            assert producer is not None
            sent = await self.send(producer, outputs)
            offsets = await sent.offsets()
        except Exception:
            self._count(sensor.PRODUCE_FAILURES, ("error",))
            raise
        sent.count(self._count)
        self._count(sensor.PRODUCE_SECONDS, ("plain",), time.perf_counter() - began)
        return offsets

    async def send(self, producer: AIOKafkaProducer, outputs: Iterable[Output]) -> Sent:
        """Hand all outputs to a producer, without waiting for the broker."""
        by_partition: dict[tuple[str, int], list[Output]] = {}
        for output in outputs:
            partition = output.partition
            if partition is None:
                partition = partition_of(output.key, self._partitions[output.topic])
            by_partition.setdefault((output.topic, partition), []).append(output)
        sent = Sent()
        for (topic, partition), records in by_partition.items():
            await self._send(producer, topic, partition, records, sent)
        return sent

    async def _send(
        self,
        producer: AIOKafkaProducer,
        topic: str,
        partition: int,
        outputs: list[Output],
        sent: Sent,
    ) -> None:
        now = int(time.time() * 1000)
        builder = producer.create_batch()
        for output in outputs:
            if builder.append(key=output.key, value=output.value, timestamp=now) is None:
                await sent.batch(producer, builder, topic, partition)
                builder = producer.create_batch()
                if builder.append(key=output.key, value=output.value, timestamp=now) is None:
                    raise ValueError(
                        f"a record of {len(output.value or b'')} bytes for {topic} does not fit "
                        f"into a batch of {self.MAX_BATCH} bytes"
                    )
        if builder.record_count():
            await sent.batch(producer, builder, topic, partition)


async def connect(options: Mapping[str, Any], **more: Any) -> AIOKafkaProducer:
    """A started producer of prebuilt batches. Raises aiokafka.errors.KafkaError."""
    producer = AIOKafkaProducer(
        acks="all",
        linger_ms=0,
        max_batch_size=Outbox.MAX_BATCH,
        max_request_size=Outbox.MAX_RECORD,
        **options,
        **more,
    )
    try:
        await producer.start()
    except BaseException:
        await producer.stop()
        raise
    return producer


class Sent:
    """Batches on their way, and where they end up."""

    def __init__(self) -> None:
        self._batches: list[tuple[tuple[str, int], int, Any]] = []

    async def batch(
        self, producer: AIOKafkaProducer, builder: Any, topic: str, partition: int
    ) -> None:
        """Send one more."""
        records = builder.record_count()
        builder.close()
        future = await producer.send_batch(builder, topic, partition=partition)
        self._batches.append(((topic, partition), records, future))

    async def offsets(self) -> dict[tuple[str, int], int]:
        """Wait for all; the last offset written per (topic, partition). Raises the first error."""
        answers = await asyncio.gather(
            *(future for _, _, future in self._batches), return_exceptions=True
        )
        offsets = {}
        for (where, records, _), answer in zip(self._batches, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            # A batch answers with the offset of its first record.
            offsets[where] = int(answer.offset) + records - 1
        return offsets

    def count(self, count: sensor.Count) -> None:
        """Count what the broker has."""
        for (topic, _), records, _ in self._batches:
            count(sensor.PRODUCED, (sensor.topic_label(topic),), records)
