"""One batch, one numbered transaction: the loop every agent runs.

::

    1 take      raw record batches from the stream, without acking
    2 fence     drop batches of an older consumer generation
    3 decode    parse; what cannot be read becomes a dead letter
    4 fold      compute all effects, purely
    5 outputs   publish, await acknowledgement
    6 absorb    write the tables whose values absorb contributions (windows) to their changelogs,
                one after the other, await each
    7 know      write the tables whose values know what they were made from (jobs), the same way
    8 visible   put all of it into the tables, count
    9 ack       in order; offsets follow at the next commit

While one transaction is being written (5 to 9), the next is already folded (3, 4); no more than
that, and the writes of two never mix. So a fold may build on effects that are not durable yet:
they will be before its own are written, or neither are.

**Fenced** (:class:`~pipeline.faust_safe.fencing.FencedOutbox`): where the broker keeps the promises
of transactions, steps 5 to 7 and the source offset are one Kafka transaction per partition. The
broker makes all of it visible or nothing, and refuses a worker that has been replaced. The order
below holds as well, so that a broker without transactions (the embedded one) loses nothing either.

A crash between any two steps repeats work and changes nothing: outputs repeat under the same
ids, a pane skips what its fence covers, a job knows its facts. Swapping 6 and 7 would lose
window samples (a state that knows its facts contributes nothing on replay); swapping 5 and 7
would lose outputs. ``tests/test_crash.py`` kills the process at every gap of every fold and shows
both. Which tables a fold has, and at which of the two steps each is written, is declared
(:mod:`topics.tables`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.effects import Effects, Output
from pipeline.faust_safe import Batch, Fenced, FencedOutbox, Outbox

log = logging.getLogger(__name__)

#: Called after each durable step with its name; tests kill the process here.
Observer = Callable[[str], None]

#: Records that are folded before the event loop is let go: about two milliseconds.
SLICE = 64

#: How long small transactions lie apart when they are fenced, so that there are few of them: each
#: costs a millisecond of CPU per partition and as much at the broker, whatever is in it. Seconds.
LINGER_S = 0.1

#: What is published in each durable step.
StepWrites = Mapping[str, list[Output]]


class Handler(Protocol):
    """What an agent does with the batches of one transaction."""

    #: Which step of the pipeline this is, for dead letters and metrics.
    stage: str
    #: The durable steps, in the order that makes a crash harmless.
    steps: tuple[str, ...]
    #: Changes when working copies are dropped: what was folded on the old ones builds on nothing.
    epoch: int

    async def fold(self, batch: Batch) -> Effects:
        """Steps 3 and 4 for one partition batch. Bad records become dead letters inside.

        Lets the event loop go now and then, so that the transaction before gets written.
        """
        ...

    def writes(self, partition: int, effects: Effects) -> StepWrites:
        """What is published in each of the :attr:`steps`: outputs, changelog records."""
        ...

    def visible(
        self, partition: int, effects: Effects, offsets: dict[tuple[str, int], int]
    ) -> None:
        """Step 8. ``offsets``: the last one written, per changelog topic and partition."""
        ...

    def forget(self) -> None:
        """Drop working copies: partitions may have moved, or a transaction was abandoned."""
        ...


@dataclass(frozen=True, slots=True)
class Done:
    """What one transaction did, for metrics."""

    stage: str
    records: int
    #: From the batches being taken to their acks.
    seconds: float
    #: Of these, until all was folded, with what went on in between.
    fold_seconds: float
    #: Records written, by durable step.
    writes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Folded:
    """A transaction after step 4."""

    events: list[Any]
    generation: int
    epoch: int
    effects: list[tuple[Batch, Effects]]
    began: float
    fold_seconds: float


@dataclass(frozen=True, slots=True)
class _Writing:
    """A transaction in steps 5 to 9, and the working copies it was folded on."""

    task: asyncio.Task[None]
    epoch: int


class Transactions:
    """Runs a handler over a Faust stream of batches."""

    def __init__(
        self,
        app: Any,
        outbox: Outbox,
        handler: Handler,
        *,
        max_records: int,
        on_done: Callable[[Done], None] = lambda done: None,
        observer: Observer = lambda step: None,
        steps: tuple[str, ...] | None = None,
        fenced: FencedOutbox | None = None,
        linger: float = LINGER_S,
    ) -> None:
        """``steps`` in another order are for the test that shows why they are in this one."""
        self._app = app
        self._outbox = outbox
        self._fenced = fenced
        self._linger = linger if fenced is not None else 0.0
        self._handler = handler
        self._max_records = max_records
        self._on_done = on_done
        self._observer = observer
        self._steps = handler.steps if steps is None else steps
        #: What was folded on working copies before this epoch builds on what was never written.
        self._valid_from = 0

    async def run(self, stream: Any) -> None:
        """Consume the stream for ever. Whatever escapes ends the process (CrashingSupervisor)."""
        writing: _Writing | None = None
        due = 0.0
        try:
            async with asyncio.TaskGroup() as tasks:
                # 1
                async for event in stream.noack().events():
                    now = time.monotonic()
                    if now < due:
                        # Not for more than this: a stop or a rebalance waits for what is held.
                        await asyncio.sleep(due - now)
                    events = [event, *self._also_waiting(stream, len(event.value))]
                    if sum(len(each.value) for each in events) < self._max_records:
                        due = time.monotonic() + self._linger
                    folded = await self._fold(events, writing)
                    if writing is not None:
                        await writing.task
                    task = tasks.create_task(self._write(stream, folded))
                    writing = _Writing(task, folded.epoch)
        except BaseExceptionGroup as failed:
            # One task fails, the other is only cancelled: the group has nothing to add.
            raise failed.exceptions[0] from None

    def _also_waiting(self, stream: Any, records: int) -> list[Any]:
        """Further batches that are waiting already, so that partitions share a transaction.

        Taken from the queue without awaiting: Faust clears the queue at a stop or a rebalance,
        and then waits for every batch an agent has taken. An agent that waits for one more batch
        in the meantime would hold both up for ever.
        """
        queue = stream.channel.queue
        consumer = self._app.consumer
        more: list[Any] = []
        while records < self._max_records and not queue.empty():
            if not self._app.flow_control.is_active():
                break
            event = queue.get_nowait()
            # What Faust does when a stream yields an event, so that a stop waits for its ack.
            event.message.tracked = True
            consumer.track_message(event.message)
            more.append(event)
            records += len(event.value)
        return more

    async def _fold(self, events: list[Any], writing: _Writing | None) -> _Folded:
        """Steps 2 to 4; again from 2 when working copies were dropped meanwhile."""
        began = time.perf_counter()
        app, handler = self._app, self._handler
        while True:
            epoch = handler.epoch
            if writing is not None and writing.epoch != epoch:
                # New working copies are made from the tables, which it still has to reach.
                await asyncio.wait([writing.task])
                writing = None
                continue
            # 2: a batch fetched before a rebalance may belong to another worker by now.
            generation = app.consumer_generation_id
            batches = [e.value for e in events if e.message.generation_id == generation]
            if batches and app.in_recovery:
                # Folding on half-recovered tables would overwrite what is known. Better no worker
                # than one that forgets.
                raise RuntimeError(
                    f"a batch of {batches[0].tp} was delivered before recovery ended"
                )
            # 3, 4
            effects: list[tuple[Batch, Effects]] = []
            for batch in batches:
                effects.append((batch, await handler.fold(batch)))
                if app.consumer_generation_id != generation and handler.epoch == epoch:
                    # Working copies know what nobody will write.
                    handler.forget()
                if handler.epoch != epoch:
                    break
            else:
                folded = time.perf_counter() - began
                return _Folded(events, generation, epoch, effects, began, folded)

    async def _write(self, stream: Any, folded: _Folded) -> None:
        """Steps 5 to 9."""
        writes = [
            self._handler.writes(batch.tp.partition, effects) for batch, effects in folded.effects
        ]
        self._observer("folded")
        # 5, 6, 7, 8
        written = self._still_holds(folded) and (
            await self._write_in_steps(folded, writes)
            if self._fenced is None
            else await self._write_fenced(self._fenced, folded, writes)
        )
        if not written:
            log.info("a transaction of %s was overtaken; abandoned", self._handler.stage)
            self._handler.forget()
            self._valid_from = self._handler.epoch
        else:
            self._observer("visible")
        # 9
        await self._ack(stream, folded.events)
        if not written:
            return
        self._observer("acked")
        self._on_done(
            Done(
                self._handler.stage,
                sum(len(batch) for batch, _ in folded.effects),
                time.perf_counter() - folded.began,
                folded.fold_seconds,
                {step: sum(len(each[step]) for each in writes) for step in self._steps},
            )
        )

    def _still_holds(self, folded: _Folded) -> bool:
        """Whether partitions are as they were, and what was folded on became durable.

        Otherwise the new owner repeats the batch; what we know may no longer be true.
        """
        same = self._app.consumer_generation_id == folded.generation
        return same and folded.epoch >= self._valid_from

    async def _write_in_steps(self, folded: _Folded, writes: list[StepWrites]) -> bool:
        """One after the other, for all partitions; False when overtaken in between."""
        offsets: dict[tuple[str, int], int] = {}
        for step in self._steps:
            outputs = [output for each in writes for output in each[step]]
            if outputs:
                offsets |= await self._outbox.publish(outputs)
            self._observer(step)
            if not self._still_holds(folded):
                return False
        for batch, effects in folded.effects:
            self._handler.visible(batch.tp.partition, effects, offsets)
            batch.done = True
        return True

    async def _write_fenced(
        self, fenced: FencedOutbox, folded: _Folded, writes: list[StepWrites]
    ) -> bool:
        """All at once, a transaction per partition; False when overtaken in one of them."""
        by_tp: dict[Any, list[int]] = {}
        for number, (batch, _) in enumerate(folded.effects):
            by_tp.setdefault(batch.tp, []).append(number)

        def sent() -> None:
            for step in self._steps:
                self._observer(step)

        made = await asyncio.gather(
            *(
                fenced.commit(
                    tp.partition,
                    [
                        output
                        for step in self._steps
                        for number in numbers
                        for output in writes[number][step]
                    ],
                    self._app.conf.id,
                    {tp: folded.effects[numbers[-1]][0].next_offset},
                    sent,
                )
                for tp, numbers in by_tp.items()
            ),
            return_exceptions=True,
        )
        self._observer("committed")
        holds = self._still_holds(folded)
        overtaken = False
        for numbers, offsets in zip(by_tp.values(), made, strict=True):
            if isinstance(offsets, Fenced):
                log.warning("%s: its owner repeats what was folded here", offsets)
                overtaken = True
            elif isinstance(offsets, BaseException):
                raise offsets
            elif holds:
                for batch, effects in (folded.effects[number] for number in numbers):
                    self._handler.visible(batch.tp.partition, effects, offsets)
                    batch.done = batch.committed = True
        if overtaken and holds:
            # Whoever it was, the group decides who owns what.
            await self._app.consumer.rejoin()
        return holds and not overtaken

    async def _ack(self, stream: Any, events: list[Any]) -> None:
        ack: Callable[[Any], Awaitable[bool]] = stream.ack
        for event in events:
            await ack(event)
