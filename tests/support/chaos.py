"""A fold under crashes as plain data: its log, its tables, and death between any two writes.

The real thing (Kafka, kill -9) is in test_crash.py; here hypothesis can try thousands of them.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pipeline.effects import Effects, Output
from pipeline.fold_spec import OUTPUTS, FoldSpec


class Durable:
    """What survives a crash: the tables of a fold, and what was published."""

    def __init__(self, spec: FoldSpec[Any]) -> None:
        self.spec = spec
        self.tables: dict[str, dict[bytes, bytes]] = {each.name: {} for each in spec.tables}
        self.published: list[Output] = []

    def ledger(self) -> Any:
        """A ledger made from the tables."""
        made = self.spec.new_ledger(0, {name: each.get for name, each in self.tables.items()})
        made.load({name: each.items() for name, each in self.tables.items()})
        return made

    def put(self, table: str, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.tables[table].pop(key, None)
        else:
            self.tables[table][key] = value


D = TypeVar("D", bound=Durable)


def write(
    durable: Durable,
    effects: Effects,
    dies: Callable[[], bool] = lambda: False,
    order: Sequence[str] | None = None,
) -> bool:
    """Make effects durable step by step, dying anywhere. True when all of it is."""
    for step in durable.spec.steps if order is None else order:
        if step == OUTPUTS:
            for output in effects.outputs:
                if dies():
                    return False
                durable.published.append(output)
            continue
        for key, value in effects.tables.get(step, ()):
            if dies():
                return False
            durable.put(step, key, value)
    return not dies()


def steady(durable: D, log: Sequence[Any]) -> D:
    """One batch per record, no crash."""
    ledger = durable.ledger()
    for offset, record in enumerate(log):
        ledger.apply(offset, record)
        write(durable, ledger.flush())
        ledger.written()
    return durable


def chaos(
    durable: D,
    log: Sequence[Any],
    seed: int,
    order: Sequence[str] | None = None,
    death: float = 0.08,
) -> D:
    """Random batches, random crashes between any two writes, offsets committed now and then.

    Up to two batches are folded before the first of them is written, as the agent does.
    """
    rng = random.Random(seed)
    committed = position = 0
    ledger = durable.ledger()
    folded: deque[tuple[Effects, int]] = deque()
    lives = 200

    def dies() -> bool:
        return lives > 0 and rng.random() < death

    while position < len(log) or folded:
        if position < len(log) and len(folded) < 2 and (not folded or rng.random() < 0.7):
            ledger.apply(position, log[position])
            position += 1
            if position == len(log) or rng.random() < 0.3:
                folded.append((ledger.flush(), position))
            continue
        # Also in the middle of a batch.
        effects, end = folded.popleft()
        if write(durable, effects, dies, order):
            ledger.written()
            if rng.random() < 0.5:
                committed = end
        else:
            lives -= 1
            position = committed
            folded.clear()
            ledger = durable.ledger()
    return durable
