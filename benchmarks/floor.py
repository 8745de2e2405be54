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
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.faust_safe import Outbox
from pipeline.ledger import Output
from topics.catalogue import JOB_STATES, JOBS
from topics.models import JOBS_RECORD
from topics.reading import read


@dataclass(frozen=True)
class Task:
    """What the floor is to do."""

    bootstrap: str
    group: str
    changelog: str
    partitions: int
    #: Facts to take, from the beginning.
    facts: int
    batch: int
    job_bytes: int
    run_bytes: int


async def run(task: Task) -> list[dict[str, Any]]:
    """Do it; one mark per batch, as the worker's."""
    outbox = Outbox(
        {JOB_STATES: task.partitions, task.changelog: task.partitions},
        {"bootstrap_servers": task.bootstrap},
    )
    await outbox.start()
    consumer = AIOKafkaConsumer(
        bootstrap_servers=task.bootstrap,
        group_id=task.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_poll_records=task.batch,
        max_partition_fetch_bytes=1 << 20,
    )
    consumer.assign([TopicPartition(JOBS, p) for p in range(task.partitions)])
    await consumer.start()
    job_value, run_value = b"x" * task.job_bytes, b"x" * task.run_bytes
    marks: list[dict[str, Any]] = []
    taken = 0
    committed = time.monotonic()
    try:
        while taken < task.facts:
            began = time.monotonic()
            fetched = await consumer.getmany(timeout_ms=1_000, max_records=task.batch)
            outputs: list[Output] = []
            records = states = 0
            for tp, batch in fetched.items():
                dirty: dict[str, None] = {}
                for record in batch:
                    dirty[read(JOBS_RECORD, record.value).key] = None
                records += len(batch)
                states += len(dirty)
                for key in dirty:
                    raw = key.encode()
                    if ":run/" in key:
                        outputs.append(Output(task.changelog, tp.partition, raw, run_value))
                    else:
                        outputs.append(Output(JOB_STATES, tp.partition, raw, job_value))
                        outputs.append(Output(task.changelog, tp.partition, raw, job_value))
            if not records:
                continue
            await outbox.publish(outputs)
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
                    "fold_seconds": 0.0,
                    "outputs": len(outputs) - states,
                    "panes": 0,
                    "states": states,
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
