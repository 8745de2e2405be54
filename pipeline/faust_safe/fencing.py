"""One writer per partition of the log, and the broker refuses every other.

A worker that only slept (a frozen VM, a laptop) wakes up believing that it still owns its
partitions, and writes what it had folded over what its successor has written since. A compacted
changelog then keeps the older state for good: no reader can mend that, so the broker has to refuse
the write. Each partition of ``runners.jobs`` has a transactional id (``APP-PARTITION``); whoever is
given the partition takes the id over before it reads the tables, which ends the former owner's
transaction and makes all its later writes fail (:class:`Fenced`).

A transaction holds everything a batch leads to: outputs, changelog records and the source offset.
So they become visible to readers of committed records together or not at all.

The one who takes over may be the wrong one: a worker that slept between being assigned and taking
over. It then begins from everything committed until then, like any owner, and the rightful
one is refused once and takes the partition back (:attr:`Fenced` leads to a rejoin). Writers
alternate; they never overlap.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import IllegalOperation, KafkaError, ProducerFenced

from pipeline.effects import Output
from pipeline.faust_safe import sensor
from pipeline.faust_safe.outbox import Outbox, connect

log = logging.getLogger(__name__)

#: A transaction that is open for longer is ended by the broker: its writer is dead and nobody has
#: taken over. Until then, readers of committed records wait. Milliseconds.
TRANSACTION_TIMEOUT_MS = 30_000
#: For saying goodbye to a producer that is replaced. Seconds.
_GOODBYE_S = 5.0
#: Clusters whose id begins so are the embedded broker: it takes transactions and shows what was
#: aborted, so there is nothing to gain from them.
UNFENCED_CLUSTERS = "embedded-"


def _heard_already(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Futures inside a fenced producer that nobody waits for: what they say was raised as well."""
    if not isinstance(context.get("exception"), ProducerFenced):
        loop.default_exception_handler(context)


def can_fence(cluster_id: str | None) -> bool:
    """Whether a cluster keeps the promises of transactions."""
    return not (cluster_id or "").startswith(UNFENCED_CLUSTERS)


class Fenced(Exception):
    """Another worker has taken the partition over. What this one knows of it is not to be used:
    the transaction was refused, or committed without an answer, and others may have followed."""

    def __init__(self, partition: int) -> None:
        super().__init__(f"another worker has taken partition {partition} over")
        self.partition = partition


class FencedOutbox:
    """A transactional producer per owned partition of the log."""

    def __init__(
        self,
        app_id: str,
        partitions: Mapping[str, int],
        options: Mapping[str, Any],
        count: sensor.Count = sensor.nobody,
    ) -> None:
        self._app_id = app_id
        self._outbox = Outbox(partitions, options)
        self._options = dict(options)
        self._count = count
        self._producers: dict[int, AIOKafkaProducer] = {}
        #: How often partitions were taken over.
        self._turn = 0
        self._leaving: set[asyncio.Task[None]] = set()

    async def take_over(self, partitions: Set[int]) -> None:
        """Become the writer of these partitions, and of no others.

        When it returns, no transaction of a former writer is open: it was completed or aborted.
        Raises aiokafka.errors.KafkaError when the broker cannot be asked.
        """
        asyncio.get_running_loop().set_exception_handler(_heard_already)
        self._turn += 1
        for partition in list(self._producers):
            self._leave(partition)
        made = await asyncio.gather(
            *(self._become(partition, self._turn) for partition in sorted(partitions)),
            return_exceptions=True,
        )
        for each in made:
            if isinstance(each, BaseException):
                raise each

    async def _become(self, partition: int, turn: int) -> None:
        producer = await connect(
            self._options,
            transactional_id=f"{self._app_id}-{partition}",
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
        )
        self._producers[partition] = producer
        if turn != self._turn:
            # Cut short by the next rebalance while it started.
            self._leave(partition)

    def _leave(self, partition: int) -> None:
        task = asyncio.create_task(self._goodbye(self._producers.pop(partition)))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _goodbye(self, producer: AIOKafkaProducer) -> None:
        # It may be fenced, in the middle of a transaction or cut off: whatever it says, it is over.
        with contextlib.suppress(KafkaError, TimeoutError, asyncio.CancelledError):
            await asyncio.wait_for(producer.stop(), _GOODBYE_S)

    async def stop(self) -> None:
        """Let go of all partitions."""
        for partition in list(self._producers):
            self._leave(partition)
        await asyncio.gather(*self._leaving)

    async def commit(
        self,
        partition: int,
        outputs: Iterable[Output],
        group: str,
        source: Mapping[Any, int],
        on_sent: Callable[[], None] = lambda: None,
    ) -> dict[tuple[str, int], int]:
        """Write all outputs and the source offsets, or nothing; return when it is decided.

        ``source`` maps topic partitions to the offset to read from next; ``on_sent`` is called when
        the broker has everything and nothing is decided yet. Returns the last offset
        written per (topic, partition). Raises Fenced when another worker has taken over, else the
        client's error: then the transaction may or may not have been committed, and this process
        must not go on as if either were known.
        """
        producer = self._producers.get(partition)
        if producer is None:
            raise Fenced(partition)
        began = time.perf_counter()
        try:
            await producer.begin_transaction()
            sent = await self._outbox.send(producer, outputs)
            answers: tuple[Any, Any] = await asyncio.gather(
                sent.offsets(),
                producer.send_offsets_to_transaction(source, group),
                return_exceptions=True,
            )
            for each in answers:
                if isinstance(each, BaseException):
                    raise each
            on_sent()
            await producer.commit_transaction()
        except (ProducerFenced, IllegalOperation) as refused:
            # "Illegal operation" is what a producer says from then on.
            self._leave(partition)
            self._count(sensor.PRODUCE_FAILURES, ("fenced",))
            raise Fenced(partition) from refused
        except Exception:
            self._count(sensor.PRODUCE_FAILURES, ("error",))
            raise
        sent.count(self._count)
        self._count(sensor.PRODUCE_SECONDS, ("transaction",), time.perf_counter() - began)
        offsets: dict[tuple[str, int], int] = answers[0]
        return offsets
