"""Facts to preload: made by the simulator and read by the real providers, in arrival order."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from pipeline.agents.normalise import lifecycle_facts, record_facts, to_bytes
from pipeline.effects import Output
from pipeline.faust_safe import Outbox
from pipeline.faust_safe.outbox import partition_of
from pipeline.ledger import Ledger
from pipeline.simulate import NO_FAULTS, Faults, Mix, Simulation
from topics.catalogue import JOB_STATES, JOBS, WEBHOOKS
from topics.models import JOBS_RECORD, JobFact, RunFact, RunLink
from topics.reading import read
from topics.tables import JOBS_TABLE

#: The simulated jobs make this many facts each, with the links to their runs.
FACTS_PER_JOB: Final = 7.0
SEED: Final = 20_260_101

Record = tuple[bytes, bytes]
Fact = JobFact | RunFact | RunLink


@dataclass(frozen=True)
class Written:
    """What the worker writes for the facts, so that the floor can write as much."""

    #: Mean bytes of a job's state and of a run's, per changelog record.
    job_bytes: int
    run_bytes: int


def facts_of(simulation: Simulation) -> Iterator[Fact]:
    """The facts of a simulation's records, as the normaliser sends them: each link once."""
    linked: set[str] = set()
    for record in simulation.records():
        hook = record.topic == WEBHOOKS
        said = record_facts(record) if hook else lifecycle_facts(record.value)
        for fact in said[0]:
            if isinstance(fact, RunLink):
                if fact.id in linked:
                    continue
                linked.add(fact.id)
            yield fact


def arriving(number: int) -> list[Record]:
    """``number`` facts of six fleets with the usual faults, in the order in which they arrive."""
    simulation = Simulation(
        SEED,
        max(50, int(number / FACTS_PER_JOB * 1.3)),
        start_ms=int(time.time() * 1000) - 2 * 3_600_000,
        duration_s=3_600,
        faults=Faults(),
        remember=False,
    )
    records: list[Record] = []
    for fact in facts_of(simulation):
        records.append((fact.key.encode(), to_bytes(fact)))
        if len(records) == number:
            break
    return records


#: How far live jobs have come: two thirds are queued, one third runs.
QUEUED_AND_RUNNING: Final = ("running", "queued", "queued")


def live(
    jobs: int,
    templates: int = 2_000,
    *,
    reached: Sequence[str] = QUEUED_AND_RUNNING,
    start_ms: int | None = None,
    mix: Mix | None = None,
) -> Iterator[Record]:
    """Facts of ``jobs`` live jobs that were queued within one hour, with their runs.

    ``reached`` is how far they have come, one after the other and again from the beginning:
    ``queued``, ``claimed``, ``minted`` or ``running``. The hour begins at ``start_ms``, unless told
    otherwise two hours ago. A small simulation gives the first facts of each of its jobs; the rest
    are copies of these under other job and run ids, which is twenty times as fast as simulating
    them.
    """
    if start_ms is None:
        start_ms = int(time.time() * 1000) - 2 * 3_600_000
    facts = list(_living(min(jobs, templates), reached, start_ms, mix))
    known = sum(1 for key in {fact.key for fact, _ in facts} if ":run/" not in key)
    made = copy = 0
    while made < jobs:
        # The last copy may be cut short, between two runs.
        for _, group in groupby(facts, key=lambda pair: pair[1]):
            run = list(group)
            if made >= jobs:
                return
            for fact, _ in run:
                yield _renumbered(fact, copy)
            made += len({fact.key for fact, _ in run if ":run/" not in fact.key})
        copy += 1
        assert copy * known <= jobs + known


def _living(
    jobs: int, reached: Sequence[str], start_ms: int, mix: Mix | None
) -> Iterator[tuple[Fact, int]]:
    """(fact, run) of at least ``jobs`` jobs, run by run, cut where they are said to be."""
    simulation = Simulation(
        SEED + 1,
        int(jobs * 1.4),
        start_ms=start_ms,
        duration_s=3_600,
        faults=NO_FAULTS,
        mix=mix,
        remember=False,
    )
    by_job: dict[str, list[JobFact]] = {}
    links: dict[str, RunLink] = {}
    runs: dict[str, RunFact] = {}
    for fact in facts_of(simulation):
        if isinstance(fact, JobFact):
            by_job.setdefault(fact.key, []).append(fact)
        elif isinstance(fact, RunLink):
            links[fact.job_key] = fact
        elif fact.run.completed_at is None and fact.run.attempt <= 1:
            runs.setdefault(fact.key, fact)
    members: dict[str, list[str]] = {}
    for key, said in by_job.items():
        # Skipped jobs and copies are never alive; later attempts would wait for their run.
        link = links.get(key)
        if said[0].cause == "workflow_job.queued" and link is not None and link.attempt <= 1:
            members.setdefault(link.key, []).append(key)
    number = 0
    for run, (run_key, keys) in enumerate(members.items()):
        if run_key in runs:
            yield runs[run_key], run
        for key in keys:
            number += 1
            yield links[key], run
            most = _STAGES[reached[number % len(reached)]]
            for said_ in by_job[key]:
                if _stage(said_) > most:
                    break
                yield said_, run
        if number >= jobs:
            return


_STAGES: Final = {"queued": 0, "claimed": 1, "minted": 2, "running": 3}


def _stage(fact: JobFact) -> int:
    """How far a job has come of which this is told: beyond the last stage it is no longer alive,
    or not alive without doubt."""
    claim = fact.claim
    if "completed" in fact.times or fact.run is not None:
        return 4
    if claim is not None and claim.released_at is not None:
        return 4
    if "started" in fact.times or fact.runner is not None:
        return 3
    if claim is not None:
        return 2 if claim.minted_at is not None else 1
    return 0 if fact.cause == "workflow_job.queued" else 3


#: Job and run ids have ten or eleven digits, times have thirteen, the rest is hexadecimal.
_NUMBER: Final = re.compile(rb"(?<![0-9a-f])\d{10,11}(?![0-9a-f])")


def _renumbered(fact: Fact, copy: int) -> Record:
    """The same fact about another job and run."""
    key, value = fact.key.encode(), to_bytes(fact)
    if not copy:
        return key, value

    def other(found: re.Match[bytes]) -> bytes:
        return b"%d" % (int(found[0]) + copy * 1_000_000)

    value = _NUMBER.sub(other, value)
    # Delivery ids tell facts apart and do not hold the job's id.
    value = value.replace(b'{"id":"', b'{"id":"%d/' % copy, 1)
    return _NUMBER.sub(other, key), value


def written(records: Iterable[Record], partitions: int, batch: int) -> Written:
    """What a ledger writes for these facts in batches of ``batch`` per partition, on average.

    Measured on the first partition only: the others hold the same.
    """
    values: dict[bytes, bytes] = {}
    ledger = Ledger(0, values.get)
    sizes: dict[bool, list[int]] = {True: [], False: []}
    mine = [value for key, value in records if partition_of(key, partitions) == 0]
    for begin in range(0, len(mine), batch):
        for offset, value in enumerate(mine[begin : begin + batch], start=begin):
            ledger.apply(offset, read(JOBS_RECORD, value))
        for key, state in ledger.flush().writes(JOBS_TABLE):
            if state is None:
                values.pop(key, None)
            else:
                values[key] = state
                sizes[b":run/" in key].append(len(state))
        ledger.written()
    return Written(
        job_bytes=round(sum(sizes[False]) / max(1, len(sizes[False]))),
        run_bytes=round(sum(sizes[True]) / max(1, len(sizes[True]))),
    )


def preload(bootstrap: str, records: Iterable[Record], partitions: int) -> float:
    """Write facts to ``runners.jobs``, each to the partition of its key; seconds it took."""

    async def send() -> None:
        outbox = Outbox(
            {JOBS: partitions, JOB_STATES: partitions}, {"bootstrap_servers": bootstrap}
        )
        await outbox.start()
        try:
            chunk: list[Output] = []
            for key, value in records:
                chunk.append(Output(JOBS, None, key, value))
                if len(chunk) == 20_000:
                    await outbox.publish(chunk)
                    chunk.clear()
            if chunk:
                await outbox.publish(chunk)
        finally:
            await outbox.stop()

    began = time.monotonic()
    asyncio.run(send())
    return time.monotonic() - began
