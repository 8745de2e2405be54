"""The loop of the agents: what is folded, written and acked in which order, whatever intervenes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types.tuples import TP

from pipeline import folds
from pipeline.agents.fold import Fold
from pipeline.agents.transaction import Transactions
from pipeline.effects import Effects, Output
from pipeline.faust_safe import Batch
from pipeline.settings import Settings
from topics.catalogue import JOBS
from topics.models import Tick

TIMEOUT = 5.0


class Queue(list[Any]):
    def empty(self) -> bool:
        return not self

    def get_nowait(self) -> Any:
        return self.pop(0)


class Stream:
    """Yields the events it is given, one by one, and waits for more for ever."""

    def __init__(self, *events: Any, waiting: tuple[Any, ...] = ()) -> None:
        self.channel = SimpleNamespace(queue=Queue(waiting))
        self.coming: asyncio.Queue[Any] = asyncio.Queue()
        for each in events:
            self.coming.put_nowait(each)
        self.acked: list[Any] = []

    def noack(self) -> Stream:
        return self

    async def events(self) -> AsyncIterator[Any]:
        while True:
            yield await self.coming.get()

    async def ack(self, event: Any) -> bool:
        self.acked.append(event)
        return True


def event(number: int, generation: int = 1) -> Any:
    batch = Batch(TP(JOBS, 0), [SimpleNamespace(offset=number)])
    return SimpleNamespace(
        value=batch, message=SimpleNamespace(generation_id=generation, offset=number, tracked=False)
    )


class Rig:
    """A handler and an outbox that write down what happens; each write waits to be let through."""

    stage = "fold"
    steps = ("outputs", "windows", "jobs")

    def __init__(self) -> None:
        self.epoch = 0
        self.log: list[str] = []
        self.tables: list[int] = []
        #: What the working copy knows; None: to be made from the tables.
        self.copy: list[int] | None = None
        self.during_fold: Callable[[int], None] = lambda number: None
        self.open = asyncio.Event()
        self.app = SimpleNamespace(
            consumer_generation_id=1,
            in_recovery=False,
            flow_control=SimpleNamespace(is_active=lambda: True),
            consumer=SimpleNamespace(track_message=lambda message: None),
        )

    async def fold(self, batch: Batch) -> Effects:
        number = batch.records[0].offset
        if self.copy is None:
            self.copy = list(self.tables)
        copy = self.copy
        await asyncio.sleep(0)
        self.during_fold(number)
        copy.append(number)
        self.log.append(f"fold {number} on {copy[:-1]}")
        return Effects([self.output("outputs", number)], {"jobs": [(b"k", b"%d" % number)]})

    @staticmethod
    def output(step: str, number: int) -> Output:
        return Output(step, 0, b"k", b"%d" % number)

    def writes(self, partition: int, effects: Effects) -> dict[str, list[Output]]:
        number = int(effects.tables["jobs"][0][1] or b"")
        return {
            "outputs": effects.outputs,
            "windows": [self.output("windows", number)],
            "jobs": [self.output("jobs", number)],
        }

    def visible(self, partition: int, effects: Effects, offsets: Any) -> None:
        number = int(effects.tables["jobs"][0][1] or b"")
        self.tables.append(number)
        self.log.append(f"visible {number}")

    def forget(self) -> None:
        self.epoch += 1
        self.copy = None

    async def publish(self, outputs: list[Output]) -> dict[tuple[str, int], int]:
        await self.open.wait()
        await asyncio.sleep(0)
        for output in outputs:
            self.log.append(f"{output.topic} {int(output.value or b'')}")
        return {}

    def loop(self, max_records: int = 1, **options: Any) -> Transactions:
        outbox: Any = self
        return Transactions(self.app, outbox, self, max_records=max_records, **options)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(50):
        await asyncio.sleep(0)


WRITES = ["outputs {}", "windows {}", "jobs {}", "visible {}"]


def written(number: int) -> list[str]:
    return [step.format(number) for step in WRITES]


@pytest.fixture
async def rig() -> Rig:
    return Rig()


async def test_the_next_is_folded_while_one_is_written_and_no_further(rig: Rig) -> None:
    events = [event(n) for n in range(4)]
    stream = Stream(*events)
    running = asyncio.create_task(rig.loop().run(stream))
    await settle()
    assert rig.log == ["fold 0 on []", "fold 1 on [0]"]
    assert not stream.acked
    rig.open.set()
    await until(lambda: len(stream.acked) == 4)
    running.cancel()
    assert stream.acked == events
    assert all(each.value.done for each in events)
    # The writes of two transactions never mix.
    assert [said for said in rig.log if not said.startswith("fold")] == [
        said for number in range(4) for said in written(number)
    ]


async def test_what_is_waiting_shares_a_transaction_and_nothing_is_waited_for(rig: Rig) -> None:
    # Faust's stop and rebalance wait for every batch taken; the queue is cleared first.
    events = [event(n) for n in range(5)]
    stream = Stream(events[0], waiting=tuple(events[1:]))
    rig.open.set()
    done: list[Any] = []
    running = asyncio.create_task(rig.loop(max_records=100, on_done=done.append).run(stream))
    await until(lambda: len(stream.acked) == 5)
    running.cancel()
    assert stream.acked == events
    assert all(each.message.tracked for each in events[1:])
    assert all(each.value.done for each in events)
    assert [(each.records, dict(each.writes)) for each in done] == [
        (5, {"outputs": 5, "windows": 5, "jobs": 5})
    ]


async def test_a_batch_during_recovery_ends_the_process(rig: Rig) -> None:
    rig.app.in_recovery = True
    with pytest.raises(RuntimeError, match="before recovery ended"):
        await rig.loop().run(Stream(event(0)))


async def test_a_failed_write_ends_the_process_and_acks_nothing(rig: Rig) -> None:
    async def publish(outputs: list[Output]) -> dict[tuple[str, int], int]:
        raise ConnectionError("the broker is gone")

    rig.publish = publish  # type: ignore[method-assign]
    stream = Stream(event(0))
    with pytest.raises(ConnectionError, match="gone"):
        await asyncio.wait_for(rig.loop().run(stream), TIMEOUT)
    stream = Stream(event(0), event(1), event(2))
    with pytest.raises(ConnectionError, match="gone"):
        await asyncio.wait_for(rig.loop().run(stream), TIMEOUT)
    assert not stream.acked
    assert not rig.tables


async def test_a_failed_fold_lets_no_later_write_happen(rig: Rig) -> None:
    def fails(number: int) -> None:
        if number == 1:
            raise ArithmeticError("a bug")

    rig.during_fold = fails
    stream = Stream(event(0), event(1), event(2))
    with pytest.raises(ArithmeticError, match="a bug"):
        await asyncio.wait_for(rig.loop().run(stream), TIMEOUT)
    rig.open.set()
    await settle()
    assert not any(" 1" in said or " 2" in said for said in rig.log if "fold" not in said)


@pytest.mark.parametrize("step", ["outputs", "windows", "jobs"])
async def test_a_rebalance_overtakes_a_write_and_what_was_folded_on_it(rig: Rig, step: str) -> None:
    def rebalance(now: str) -> None:
        if now == step:
            rig.app.consumer_generation_id = 2

    events = [event(0), event(1), event(2, generation=2)]
    stream = Stream(*events[:2])
    rig.open.set()
    running = asyncio.create_task(rig.loop(observer=rebalance).run(stream))
    await until(lambda: len(stream.acked) == 2)
    assert not any(each.value.done for each in events[:2])
    assert not any("1" in said for said in rig.log if "fold" not in said)
    assert not rig.tables
    # The next owner begins with what the tables hold.
    stream.coming.put_nowait(events[2])
    await until(lambda: len(stream.acked) == 3)
    running.cancel()
    assert rig.tables == [2]
    assert "fold 2 on []" in rig.log


async def test_a_rebalance_during_a_fold_drops_what_was_folded(rig: Rig) -> None:
    def rebalance(number: int) -> None:
        rig.app.consumer_generation_id = 2

    rig.during_fold = rebalance
    rig.open.set()
    old, new = event(0), event(0, generation=2)
    stream = Stream(old, new)
    running = asyncio.create_task(rig.loop().run(stream))
    await until(lambda: len(stream.acked) == 2)
    running.cancel()
    assert not old.value.done
    assert new.value.done
    # Not on what the abandoned fold knew: its effects were never written.
    assert rig.log == ["fold 0 on []", "fold 0 on []", *written(0)]


async def test_working_copies_dropped_during_a_fold_are_made_anew_after_the_write(
    rig: Rig,
) -> None:
    # A revocation drops them before the generation changes, and waits for what was taken.
    dropped: list[int] = []

    def drop(number: int) -> None:
        if number == 1 and not dropped:
            dropped.append(number)
            rig.forget()

    rig.during_fold = drop
    events = [event(n) for n in range(3)]
    stream = Stream(*events)
    running = asyncio.create_task(rig.loop().run(stream))
    await settle()
    # Not from the tables as they are: they have yet to learn of 0.
    assert rig.log == ["fold 0 on []", "fold 1 on [0]"]
    rig.open.set()
    await until(lambda: len(stream.acked) == 3)
    running.cancel()
    assert rig.tables == [0, 1, 2]
    assert rig.log.index("fold 1 on [0]", 2) > rig.log.index("visible 0")
    assert all(each.value.done for each in events)


async def test_working_copies_dropped_between_folds_are_made_anew_after_the_write(
    rig: Rig,
) -> None:
    stream = Stream(event(0))
    running = asyncio.create_task(rig.loop().run(stream))
    await settle()
    rig.forget()
    stream.coming.put_nowait(event(1))
    await settle()
    assert rig.log == ["fold 0 on []"]
    rig.open.set()
    await until(lambda: len(stream.acked) == 2)
    running.cancel()
    assert rig.log == ["fold 0 on []", *written(0), "fold 1 on [0]", *written(1)]


async def test_a_stop_in_the_middle_cancels_the_write(rig: Rig) -> None:
    stream = Stream(event(0), event(1))
    running = asyncio.create_task(rig.loop().run(stream))
    await settle()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    rig.open.set()
    await settle()
    assert not stream.acked
    assert not rig.tables


BASE, TICKS = 1_700_000_000_000, 25


class Nothing:
    """A table with nothing in it."""

    changelog_topic_name = "changelog"

    def __init__(self) -> None:
        self.data = self

    def items(self, partition: int) -> tuple[()]:
        return ()

    def get(self, partition: int, key: bytes) -> None:
        return None


async def test_old_ticks_in_a_row_let_others_run_between_them() -> None:
    """Behind by an hour there are 700 of a partition in a row, and some cost a tenth of a second:
    what is to be sent and acknowledged meanwhile would run out of its time."""
    spec = folds.jobs(Settings())
    tables = {each.name: Nothing() for each in spec.tables}
    fold = Fold(spec, tables, lambda topic: [0], lambda notes: None)
    records = [
        SimpleNamespace(offset=n, key=b"tick:0", value=_old_tick(n), timestamp=BASE + n * 1_000)
        for n in range(TICKS)
    ]
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(others())
    await fold.fold(Batch(TP(JOBS, 0), records))
    running.cancel()
    assert turns >= TICKS
    assert fold.ledgers[0].clock == BASE + (TICKS - 1) * 1_000


def _old_tick(n: int) -> bytes:
    at = BASE + n * 1_000
    tick = Tick(id=f"t{n}", source="t", occurred_at=at, received_at=at, key="tick:0", by="gone")
    return tick.model_dump_json(exclude_none=True).encode()
