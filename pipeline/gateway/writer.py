"""Writes deliveries to Kafka and waits until they are there.

One idempotent aiokafka producer a process, acknowledged by all in-sync replicas. Measured with 200
records of 10 kB on their way: 55 us of CPU a record, kafka-python's producer 63 us and a hop
between threads more.

An idempotent producer tries a record again for as long as its failure may pass: what was told to be
late is written once Kafka is back, and counts as on its way until then. What the broker refuses for
good leaves a hole in the producer's sequence, and the broker refuses whatever comes behind it. So
after such a failure the producer is replaced by a new one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError

from pipeline.faust_safe import producer_id, reconnect
from pipeline.faust_safe.outbox import partition_of
from pipeline.gateway.metrics import GatewayMetrics
from topics.catalogue import MAX_WEBHOOK_BYTES, WEBHOOKS

log = logging.getLogger(__name__)

producer_id.install()
reconnect.install()

#: How long a batch waits for company. Milliseconds.
LINGER_MS: Final = 2
#: How large a batch grows. Bytes.
BATCH_BYTES: Final = 512 << 10
#: Between two attempts to connect, and between two looks whether Kafka is there. Seconds.
PAUSE_S: Final = 0.5
LOOK_S: Final = 2.0

Headers = Sequence[tuple[str, bytes]]


class Unavailable(Exception):
    """It is not written, as far as is known."""


class Full(Unavailable):
    """Too many records wait for Kafka."""


class Writer:
    """Writes to ``runners.webhooks``. Of one event loop.

    Args:
        options: of the connection, as aiokafka takes them.
        deadline_s: how long Kafka may take for a record.
        most: records on their way at a time.
    """

    def __init__(
        self, options: Mapping[str, Any], deadline_s: float, most: int, metrics: GatewayMetrics
    ) -> None:
        self._options = dict(options)
        self._deadline_s = deadline_s
        self._most = most
        self._metrics = metrics
        self._producer: AIOKafkaProducer | None = None
        self._partitions = 1
        self._waiting: dict[asyncio.Future[bool], float] = {}
        self._broken = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        #: Records handed to Kafka's client that it is not done with, also those whose sender has
        #: been told that it took too long.
        self.in_flight = 0
        #: Why nothing can be written; empty when it can.
        self.trouble = "not connected to Kafka yet"

    def start(self) -> None:
        """Connect in the background, and stay connected."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        """Have what is on its way acknowledged or given up, and disconnect."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._producer is not None:
            self._leave(self._producer)
            self._producer = None
        if self._leaving:
            _, late = await asyncio.wait(self._leaving, timeout=self._deadline_s + 2)
            if late:
                log.warning("%d deliveries were not acknowledged; their senders have been told so",
                            self.in_flight)  # fmt: skip
            for task in late:
                task.cancel()
        self.trouble = "stopped"

    @property
    def full(self) -> bool:
        """Whether no further record is taken."""
        return self.in_flight >= self._most

    async def write(
        self, key: bytes, value: bytes, headers: Headers, at_ms: int, settled: Callable[[], None]
    ) -> None:
        """Write a record with this time; return once Kafka has it.

        ``settled`` is called when nothing holds the value any more, in any case. Raises
        :class:`Unavailable` when Kafka has not said so within the deadline; the record may be
        written all the same.
        """
        producer = self._producer
        if producer is None or self.full:
            settled()
            raise Full if self.full else Unavailable
        self.in_flight += 1
        began = time.monotonic()
        try:
            # Where a batch is full it waits, by itself no longer than the deadline.
            sent = await producer.send(
                WEBHOOKS, value, key, partition_of(key, self._partitions),
                timestamp_ms=at_ms, headers=headers,
            )  # fmt: skip
        except BaseException as error:
            self.in_flight -= 1
            settled()
            if not isinstance(error, KafkaError):
                raise
            if not isinstance(error, KafkaTimeoutError):
                self._failed(producer, error)
            raise Unavailable from None
        written = asyncio.get_running_loop().create_future()

        def done(sent: asyncio.Future[Any]) -> None:
            self.in_flight -= 1
            settled()
            error = None if sent.cancelled() else sent.exception()
            if error is not None:
                self._failed(producer, error)
            else:
                self._metrics.ack_seconds.observe(time.monotonic() - began)
            if not written.done():
                written.set_result(error is None and not sent.cancelled())

        sent.add_done_callback(done)
        # One look at all that wait, several times a second, costs less than a timer for each.
        self._waiting[written] = began + self._deadline_s
        try:
            if not await written:
                raise Unavailable
        finally:
            del self._waiting[written]

    def give_up_what_is_late(self) -> None:
        """Have those who wait longer than the deadline told so. Called several times a second."""
        now = time.monotonic()
        for written, deadline in self._waiting.items():
            if deadline < now and not written.done():
                written.set_result(False)

    def _failed(self, producer: AIOKafkaProducer, error: BaseException) -> None:
        if producer is self._producer:
            log.warning("not written, and the connection is made anew: %s: %s",
                        type(error).__name__, error)  # fmt: skip
            self.trouble = f"Kafka did not take a delivery ({type(error).__name__})"
            self._producer = None
            self._leave(producer)
            self._broken.set()

    async def _keep(self) -> None:
        told = ""
        while True:
            self._broken.clear()
            try:
                self._producer = await self._connect()
            except (KafkaError, OSError, TimeoutError) as error:
                self.trouble = f"Kafka does not answer ({type(error).__name__})"
                self._metrics.kafka_up.set(0)
                if self.trouble != told:
                    log.warning("%s; trying on", self.trouble)
                told = self.trouble
            else:
                told = ""
                await self._watch(self._producer)
            await asyncio.sleep(PAUSE_S)

    async def _connect(self) -> AIOKafkaProducer:
        wait_ms = int(self._deadline_s * 1000)
        producer = AIOKafkaProducer(
            **self._options, acks="all", enable_idempotence=True, linger_ms=LINGER_MS,
            max_batch_size=BATCH_BYTES, max_request_size=MAX_WEBHOOK_BYTES,
            request_timeout_ms=wait_ms,
        )  # fmt: skip
        try:
            async with asyncio.timeout(self._deadline_s + 2):
                await producer.start()
                self._partitions = len(await producer.partitions_for(WEBHOOKS))
        except BaseException:
            self._leave(producer)
            raise
        return producer

    async def _watch(self, producer: AIOKafkaProducer) -> None:
        """Until it is broken, look now and then whether Kafka answers: idle, nobody else would."""
        while not self._broken.is_set():
            answers = False
            try:
                async with asyncio.timeout(self._deadline_s):
                    answers = bool(await producer.client.force_metadata_update())
            except (KafkaError, OSError, TimeoutError):
                pass
            if not self._broken.is_set():
                self.trouble = "" if answers else "Kafka does not answer"
            self._metrics.kafka_up.set(float(answers))
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._broken.wait()
            except TimeoutError:
                continue

    def _leave(self, producer: AIOKafkaProducer) -> None:
        """Disconnect in the background: done when every record is acknowledged or refused."""

        async def leave() -> None:
            try:
                await producer.stop()
            except (KafkaError, OSError) as error:
                log.debug("while disconnecting: %r", error)

        task = asyncio.get_running_loop().create_task(leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
