"""A CI fleet whose records are folded in memory and counted, and the truth about what is counted.

No broker and no clock: records go through the same rules as in a worker, in one partition and one
batch, so that each job is counted under the fleet that is known in the end.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

from faust.types import TP

from pipeline import metrics
from pipeline.agents.normalise import Normalise, record_facts
from pipeline.effects import Note, Output
from pipeline.faust_safe import Batch
from pipeline.ledger import LIVE, Ledger
from pipeline.metrics import Level
from pipeline.simulate import Faults, Sending, Simulation
from pipeline.simulate.truth import JobTruth
from tests.support.stall_loop import MINUTE, POLICY, TICK, Loop
from topics.catalogue import JOBS, LIFECYCLE, WEBHOOKS
from topics.models import JOBS_RECORD, JobFact, Unreadable
from topics.recovery import Answer, Result

START: Final = 1_790_000_000_000


#: Shares of what is sent.
FAULTS: Final = {"duplicates": 0.05, "reordered": 0.1, "malformed": 0.03}


class Counts(Protocol):
    """Who is told what is counted."""

    def note(self, notes: Iterable[Note[Any]]) -> None:
        """It is durable."""
        ...


class Notebook:
    """What was counted, in order."""

    def __init__(self) -> None:
        self.notes: list[Note[Any]] = []

    def note(self, notes: Iterable[Note[Any]]) -> None:
        """Written down."""
        self.notes += notes


class CountedLoop(Loop):
    """The fold of jobs in our hands; what it counts is told."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        super().__init__()

    def fold(self, *, durable: bool = True) -> Any:
        """Fold, and count."""
        effects = super().fold(durable=durable)
        self._counts.note(effects.notes)
        return effects


class World:
    """A simulation up to some time; what is counted is told."""

    def __init__(self, counts: Counts, seed: int, jobs: int, minutes: int) -> None:
        self._counts = counts
        self.simulation = Simulation(
            seed, jobs, start_ms=START, duration_s=3_600, faults=Faults(**FAULTS)
        )
        self.until = START + minutes * MINUTE
        self.ledger = Ledger(0, lambda key: None)
        self.sent: list[Sending] = []
        self._offset = 0

    def live_jobs(self) -> Iterator[Level]:
        """Jobs by fleet and status, and the age of the oldest: for an exporter to watch."""
        for (fleet, status), count in self.ledger.counts().items():
            if status in LIVE:
                since = self.ledger.oldest(fleet, status) if count else None
                age = 0 if since is None else self.until - since
                yield metrics.JOBS, (fleet, status), count
                yield metrics.OLDEST, (fleet, status), age / 1000

    def run(self) -> None:
        """Have everything happen. Runs first: what they tell their jobs comes back by the log."""
        for record in self.simulation.records():
            self.sent.append(record)
            if record.send_at_ms > self.until:
                break
        jobs: list[JobFact] = []
        for fact in self._normalised():
            if isinstance(fact, JobFact):
                jobs.append(fact)
            else:
                self._apply(fact)
        jobs += _of_log(self.ledger.flush().outputs)
        for fact in jobs:
            self._apply(fact)
        self._counts.note(self.ledger.flush().notes)

    def _apply(self, record: Any) -> None:
        self.ledger.apply(self._offset, record)
        self._offset += 1

    def _normalised(self) -> Iterable[Any]:
        normalise = Normalise(self._counts.note)
        for topic in (WEBHOOKS, LIFECYCLE):
            records = [record for record in self.sent if record.topic == topic]
            effects = asyncio.run(normalise.fold(Batch(TP(topic, 0), records)))
            normalise.visible(0, effects, {})
            yield from _of_log(effects.outputs)

    # -- the truth -----------------------------------------------------------------------------

    @property
    def jobs(self) -> list[JobTruth]:
        return list(self.simulation.truth().jobs.values())

    def by_fleet(self, wanted: Any) -> Counter[str]:
        """Jobs of each fleet for which ``wanted`` holds."""
        return Counter(job.fleet for job in self.jobs if wanted(job))

    def timings(self, family: str) -> dict[str, list[int]]:
        """Milliseconds by fleet."""
        found: dict[str, list[int]] = defaultdict(list)
        for job in self.jobs:
            ms = job.timings[family]
            if isinstance(ms, int):
                found[job.fleet].append(ms)
        return found

    def waits(self) -> dict[str, list[int]]:
        """From queued to claimed, in milliseconds, by fleet."""
        found: dict[str, list[int]] = defaultdict(list)
        for job in self.jobs:
            if job.claimed_at is not None and job.queued_at is not None:
                wait = job.claimed_at - job.queued_at
                if wait >= -1_000:
                    found[job.fleet].append(max(0, wait))
        return found

    def requeues(self) -> Counter[str]:
        """Claims released before their job began, by fleet; read from what was sent."""
        released: dict[tuple[str, str], int] = {}
        for record in self.sent:
            if record.topic != LIFECYCLE:
                continue
            try:
                said = json.loads(record.value)
                key = f"{said['provider']}:{said['host']}:{said['job_id']}"
                which, at = (key, said["claim"]), said["occurred_at"]
            except (ValueError, KeyError, TypeError):
                continue
            if said["kind"] == "claim.released":
                released[which] = min(at, released.get(which, at))
        jobs = self.simulation.truth().jobs
        found: Counter[str] = Counter()
        for (key, _), at in released.items():
            job = jobs[key]
            began = job.completed_at if job.started_at is None else job.started_at
            if began is None or at < began:
                found[job.fleet] += 1
        return found

    def deliveries(self) -> Counter[tuple[str, str]]:
        """Deliveries about jobs by action and what became of them; read from what was sent."""
        found: Counter[tuple[str, str]] = Counter()
        for record in self.sent:
            if record.topic != WEBHOOKS:
                continue
            try:
                record_facts(record)
            except Unreadable:
                found["other", "malformed"] += 1
                continue
            event = dict(record.headers).get("x-github-event", b"").decode()
            if event == "workflow_job":
                found[json.loads(record.value)["action"], "accepted"] += 1
        return found


def _of_log(outputs: Iterable[Output]) -> list[Any]:
    """What is put into ``runners.jobs``."""
    return [
        JOBS_RECORD.validate_json(each.value)
        for each in outputs
        if each.topic == JOBS and each.value is not None
    ]


#: What :func:`recover` leads to.
RECOVERED: Final = {"stale_claim": 2, "orphan_requeued": 3, "orphan_completed": 1}


def recover(counts: Counts) -> None:
    """Jobs get stuck, and recovery frees them: :data:`RECOVERED`."""
    for _ in range(RECOVERED["stale_claim"]):
        loop = CountedLoop(counts)
        loop.queued()
        loop.claimed(minted=False)
        loop.wait(POLICY.stale_claim_ms + 2 * TICK)
        _do(loop)
    for _ in range(RECOVERED["orphan_requeued"]):
        loop = CountedLoop(counts)
        loop.queued()
        loop.claimed()
        loop.wait(POLICY.orphan_ms + TICK)
        loop.answer(loop.probes[0], Answer.QUEUED)
        loop.tick()
        _do(loop)
    for _ in range(RECOVERED["orphan_completed"]):
        loop = CountedLoop(counts)
        loop.queued()
        loop.claimed()
        loop.wait(POLICY.orphan_ms + TICK)
        loop.completed()
        loop.answer(loop.probes[0], Answer.COMPLETED)
        loop.answer(loop.probes[0], Answer.COMPLETED)
        loop.wait(16 * TICK)
        _do(loop)


def _do(loop: Loop) -> None:
    """The executor does what is proposed, and says so twice."""
    proposal = loop.proposals[-1]
    loop.decide(proposal)
    for _ in range(2):
        loop.end(proposal, Result.DONE)
        loop.now += 1
