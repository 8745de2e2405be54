"""The floor: what the same work costs without a framework, a merge, a state or a window.

``python -m benchmarks.floor`` reads its task as JSON from standard input and prints its marks as
JSON. For every batch of at most ``batch`` facts it

1. takes them with a bare aiokafka consumer (``getmany``, same fetch sizes as the worker),
2. parses each with the same parser (``topics.reading.read`` with ``JOBS_RECORD``),
3. collects the keys that occur, per partition,
4. sends for each job two records (``runners.job-states`` and the changelog) and for each run one
   (the changelog), with values as long as the worker's are on average, through the same idempotent
   producer (acks=all, one prebuilt batch per partition), and awaits the acknowledgements,
5. commits its offsets, at most once a second, as the worker does.

It keeps nothing, merges nothing, computes nothing, encodes nothing, has no windows, no metrics and
no web server. It runs on uvloop. So it is generous: what is faster than this has to skip work.

With ``fold`` it is the other comparison, "same fold, no framework": the real ledger and the real
records in the same three awaited steps (outputs, windows, states), but no Faust, tables, metrics,
ticks, fences of generations or web server. The worker against this is what the framework costs;
this against the floor is what the domain costs.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.effects import Output
from pipeline.faust_safe import Outbox
from pipeline.faust_safe.app import GC_THRESHOLDS
from pipeline.ledger import Ledger
from topics.catalogue import JOB_STATES, JOBS, catalogue
from topics.models import JOBS_RECORD
from topics.reading import read
from topics.tables import JOBS_TABLE, WINDOWS_TABLE


@dataclass(frozen=True)
class Task:
    """What the floor is to do."""

    bootstrap: str
    app_id: str
    #: Fold in earnest, see above.
    fold: bool
    partitions: int
    #: Facts to take, from the beginning.
    facts: int
    batch: int
    job_bytes: int
    run_bytes: int


class _Floor:
    def __init__(self, task: Task) -> None:
        self._changelog = JOBS_TABLE.changelog(task.app_id)
        self._job_value = b"x" * task.job_bytes
        self._run_value = b"x" * task.run_bytes

    def take(self, fetched: dict[Any, Any]) -> list[list[Output]]:
        """Parse, and write values of the right length for what occurs."""
        outputs: list[Output] = []
        for tp, batch in fetched.items():
            dirty: dict[str, None] = {}
            for record in batch:
                dirty[read(JOBS_RECORD, record.value).key] = None
            for key in dirty:
                raw = key.encode()
                if ":run/" in key:
                    outputs.append(Output(self._changelog, tp.partition, raw, self._run_value))
                else:
                    outputs.append(Output(JOB_STATES, tp.partition, raw, self._job_value))
                    outputs.append(Output(self._changelog, tp.partition, raw, self._job_value))
        return [outputs]


class _Fold:
    def __init__(self, task: Task) -> None:
        gc.set_threshold(*GC_THRESHOLDS)
        self._jobs = JOBS_TABLE.changelog(task.app_id)
        self._windows = WINDOWS_TABLE.changelog(task.app_id)
        self._tables: list[dict[bytes, bytes]] = [{} for _ in range(task.partitions)]
        self._ledgers = [Ledger(n, table.get) for n, table in enumerate(self._tables)]

    def take(self, fetched: dict[Any, Any]) -> list[list[Output]]:
        """Fold; outputs, windows and states as the worker writes them."""
        outputs: list[Output] = []
        windows: list[Output] = []
        states: list[Output] = []
        for tp, batch in fetched.items():
            p = tp.partition
            ledger, table = self._ledgers[p], self._tables[p]
            for record in batch:
                ledger.apply(record.offset, read(JOBS_RECORD, record.value))
            effects = ledger.flush()
            outputs += effects.outputs
            windows += [
                Output(self._windows, p, key, value) for key, value in effects.writes(WINDOWS_TABLE)
            ]
            for key, value in effects.writes(JOBS_TABLE):
                states.append(Output(self._jobs, p, key, value))
                if value is None:
                    table.pop(key, None)
                else:
                    table[key] = value
            ledger.written()
        # What it would feed back would be the worker's input too.
        outputs = [output for output in outputs if output.topic != JOBS]
        return [outputs, windows, states]


async def run(task: Task) -> list[dict[str, Any]]:
    """Do it; one mark per batch, as the worker's."""
    specs = catalogue(partitions=task.partitions, app_id=task.app_id)
    outbox = Outbox(
        {spec.name: spec.partitions for spec in specs}, {"bootstrap_servers": task.bootstrap}
    )
    work: _Fold | _Floor = _Fold(task) if task.fold else _Floor(task)
    await outbox.start()
    consumer = AIOKafkaConsumer(
        bootstrap_servers=task.bootstrap,
        group_id=task.app_id,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_poll_records=task.batch,
        max_partition_fetch_bytes=1 << 20,
    )
    consumer.assign([TopicPartition(JOBS, p) for p in range(task.partitions)])
    await consumer.start()
    marks: list[dict[str, Any]] = []
    taken = 0
    committed = time.monotonic()
    try:
        while taken < task.facts:
            began = time.monotonic()
            fetched = await consumer.getmany(timeout_ms=1_000, max_records=task.batch)
            records = sum(len(batch) for batch in fetched.values())
            if not records:
                continue
            steps = work.take(fetched)
            folded = time.monotonic()
            for step in steps:
                if step:
                    await outbox.publish(step)
            now = time.monotonic()
            if now - committed >= 1.0:
                await consumer.commit()
                committed = now
            taken += records
            marks.append(
                {
                    "what": "fold",
                    "t": time.monotonic(),
                    "cpu": time.process_time(),
                    "records": records,
                    "seconds": time.monotonic() - began,
                    "fold_seconds": folded - began if task.fold else 0.0,
                    "writes": {"all": sum(len(step) for step in steps)},
                }
            )
        await consumer.commit()
    finally:
        await consumer.stop()
        await outbox.stop()
    return marks


def encode(task: Task) -> str:
    """The task as the process reads it."""
    return json.dumps(asdict(task))


if __name__ == "__main__":
    uvloop.install()
    json.dump(asyncio.run(run(Task(**json.load(sys.stdin)))), sys.stdout)
