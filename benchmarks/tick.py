"""Part 5: what a tick costs a partition that has many live jobs, and one that has many runners.

The real ledgers, in a process of their own (``python -m benchmarks.tick``, as ``floor`` does), with
dicts as tables. A tick is timed as the fold of a worker meets it: parse, apply, flush, take the
writes into the table. What is published is not sent anywhere. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from benchmarks import facts
from benchmarks.bench import Options, say
from pipeline.agents.normalise import to_bytes
from pipeline.effects import Effects, Output
from pipeline.faust_safe.app import GC_THRESHOLDS
from pipeline.fleet import FleetLedger, FleetPolicy
from pipeline.fleet.policy import Policies as FleetPolicies
from pipeline.fold_spec import PartitionLedger
from pipeline.ledger import Ledger, Retention
from pipeline.ledger.limits import heard_until
from pipeline.recovery import Policies, RecoveryPolicy
from pipeline.simulate import NO_FAULTS, Mix, Simulation, Tempo
from pipeline.worker import tick
from tests.support.worker import ROOT
from topics.catalogue import FLEETS, JOBS, PROBES
from topics.models import FLEETS_RECORD, JOBS_RECORD
from topics.reading import read
from topics.recovery import (
    CommandKind,
    Fence,
    Proposal,
    Proposed,
    RunnerSeen,
    RunnerState,
    StallKind,
)
from topics.tables import FLEETS_TABLE, JOBS_TABLE, WINDOWS_TABLE

TICK_MS: Final = 5_000
HOUR_MS: Final = 3_600_000
#: Before the first tick that is timed: so long have events come in.
WARM_MS: Final = 600_000
#: Of twenty live jobs twelve are queued, one is claimed, one is minted, six run.
REACHED: Final = (*["queued"] * 12, "claimed", "minted", *["running"] * 6)
#: A matrix would be due all at once, and all its copies with it: that is the burst's.
MIX: Final = Mix(bursts=0.0)
#: A partition of eight has 125 facts a second at 1,000 events/s, and then 200,000 live jobs.
JOBS_PER_FACT: Final = 1_600
FLEETS_NUMBER: Final = 50
#: Of the runners one in a hundred holds a job that has been proposed for a command.
SUSPECTS: Final = 100
ME: Final = "bench"

_UNLIKELY_MS: Final = 1_000 * HOUR_MS
#: What falls due in a tick: nothing, what comes of an hour for every job, and everything at once.
NOTHING: Final = RecoveryPolicy(
    stale_claim_ms=_UNLIKELY_MS,
    orphan_ms=_UNLIKELY_MS,
    stale_queue_ms=_UNLIKELY_MS,
    running_ms=_UNLIKELY_MS,
)
USUAL: Final = RecoveryPolicy(stale_claim_ms=HOUR_MS, orphan_ms=HOUR_MS)
BURST: Final = RecoveryPolicy(
    stale_claim_ms=TICK_MS, orphan_ms=TICK_MS, stale_queue_ms=TICK_MS, running_ms=TICK_MS
)


@dataclass(frozen=True)
class Task:
    """What is to be measured: ``ticks`` are timed in each case."""

    jobs: int
    runners: int
    ticks: int
    #: Any time, as ms: the first tick's.
    at: int


@dataclass
class Costs:
    """What the ticks of a case took, each in ms, and what they led to."""

    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    #: Records that were published, and of these questions and proposals.
    outputs: list[int] = field(default_factory=list)
    looked: list[int] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "ticks": len(self.wall_ms),
            "wall_ms": _quantiles(self.wall_ms),
            "cpu_ms": _quantiles(self.cpu_ms),
            "outputs": _quantiles(self.outputs),
            "looked": _quantiles(self.looked),
        }


class Partition:
    """A ledger and its tables, told record by record."""

    def __init__(
        self,
        ledger: Callable[[Callable[[bytes], bytes | None]], PartitionLedger],
        log: str,
        tables: dict[str, dict[bytes, bytes]],
        offset: int = 0,
    ) -> None:
        """``offset``: up to here the tables know the log."""
        self.tables = {name: dict(table) for name, table in tables.items()}
        self.ledger = ledger(self.tables.get(JOBS_TABLE.name, {}).get)
        self.ledger.me = ME
        self._log = log
        self._records = JOBS_RECORD if log == JOBS else FLEETS_RECORD
        self.offset = offset

    def load(self, at: int) -> None:
        """Take what the tables hold, as after an assignment."""
        self.ledger.now = at
        self.ledger.load({name: table.items() for name, table in self.tables.items()})
        gc.collect()
        gc.freeze()

    def take(self, values: Iterable[bytes], at: int) -> list[bytes]:
        """Fold a batch. Returns what it says on its own log."""
        self.ledger.now = at
        for value in values:
            self.offset += 1
            self.ledger.apply(self.offset, read(self._records, value), at)
        effects = self.ledger.flush()
        self._write(effects)
        return self._said(effects.outputs)

    def tick(self, at: int, costs: Costs) -> list[bytes]:
        """Fold a tick, timed. Returns what it says on its own log."""
        value = tick(self._log, 0, at, ME, at).value
        assert value is not None
        self.offset += 1
        cpu, wall = time.process_time(), time.perf_counter()
        self.ledger.now = at
        self.ledger.apply(self.offset, read(self._records, value), at)
        effects = self.ledger.flush()
        self._write(effects)
        costs.wall_ms.append((time.perf_counter() - wall) * 1e3)
        costs.cpu_ms.append((time.process_time() - cpu) * 1e3)
        costs.outputs.append(len(effects.outputs))
        costs.looked.append(
            sum(
                each.topic == PROBES or (each.topic == FLEETS and b'"stall.proposed"' in each.value)
                for each in effects.outputs
                if each.value is not None
            )
        )
        return self._said(effects.outputs)

    def _write(self, effects: Effects) -> None:
        for name, writes in effects.tables.items():
            table = self.tables[name]
            for key, value in writes:
                if value is None:
                    table.pop(key, None)
                else:
                    table[key] = value
        self.ledger.written()

    def _said(self, outputs: Sequence[Output]) -> list[bytes]:
        return [each.value for each in outputs if each.topic == self._log and each.value]


# --- jobs -----------------------------------------------------------------------------------------


def jobs(task: Task) -> dict[str, Any]:
    """The ticks of ``runners.jobs``, in each case on a ledger that was loaded anew."""
    tables: dict[str, dict[bytes, bytes]] = {JOBS_TABLE.name: {}, WINDOWS_TABLE.name: {}}
    before = Partition(lambda table: Ledger(0, table), JOBS, tables)
    hour = task.at - HOUR_MS
    chunk: list[bytes] = []
    for _, value in facts.live(task.jobs, 5_000, reached=REACHED, start_ms=hour, mix=MIX):
        chunk.append(value)
        if len(chunk) == 5_000:
            before.take(chunk, task.at)
            chunk.clear()
    before.take(chunk, task.at)
    arriving = _arriving(task)
    for _ in range(WARM_MS // TICK_MS):
        before.take(next(arriving), task.at)
    between = [next(arriving) for _ in range(task.ticks)]
    counts = before.ledger.counts()  # type: ignore[attr-defined]
    found: dict[str, Any] = {
        "live": sum(n for (_, status), n in counts.items() if status != "completed"),
        "by_status": {
            status: sum(n for (_, each), n in counts.items() if each == status)
            for status in sorted({status for _, status in counts})
        },
        "facts_between": len(between[0]),
    }
    tables, offset = before.tables, before.offset
    del before
    for name, policy in (("nothing", NOTHING), ("usual", USUAL), ("burst", BURST)):
        found[name] = _jobs_case(task, tables, offset, policy, between)
    found["retention"] = _retention(task, tables, offset)
    return found


def _jobs_case(
    task: Task,
    tables: dict[str, dict[bytes, bytes]],
    offset: int,
    policy: RecoveryPolicy,
    between: Sequence[Sequence[bytes]],
) -> dict[str, Any]:
    costs = Costs()
    part = Partition(
        lambda table: Ledger(0, table, policies=Policies(policy)), JOBS, tables, offset
    )
    part.load(task.at)
    for n, arrived in enumerate(between):
        at = task.at + n * TICK_MS
        # What it says of its jobs comes back to it, and between two ticks events arrive.
        part.take([*part.tick(at, costs), *arrived], at)
    return costs.data()


def _retention(task: Task, tables: dict[str, dict[bytes, bytes]], offset: int) -> dict[str, Any]:
    """The tick at which all jobs are forgotten: those of a day are due at the same moment."""
    costs = Costs()
    part = Partition(
        lambda table: Ledger(0, table, policies=Policies(NOTHING)), JOBS, tables, offset
    )
    part.load(task.at)
    at = heard_until(task.at, task.at) + Retention().unfinished_ms
    part.ledger.now = at
    before = len(part.tables[JOBS_TABLE.name])
    for n in range(task.ticks):
        part.tick(at + n * TICK_MS, costs)
    return {**costs.data(), "forgotten": before - len(part.tables[JOBS_TABLE.name])}


def _arriving(task: Task) -> Iterator[list[bytes]]:
    """What arrives between one tick and the next, from the warm-up on."""
    seconds = WARM_MS / 1000 + task.ticks * TICK_MS / 1000
    begin = task.at - WARM_MS
    simulation = Simulation(
        facts.SEED + 2,
        max(20, int(seconds * task.jobs / JOBS_PER_FACT / facts.FACTS_PER_JOB)),
        start_ms=begin,
        duration_s=seconds,
        faults=NO_FAULTS,
        tempo=Tempo(run_s=60.0),
        remember=False,
    )
    chunk: list[bytes] = []
    for fact in facts.facts_of(simulation):
        while fact.received_at >= begin + TICK_MS:
            yield chunk
            chunk = []
            begin += TICK_MS
        chunk.append(to_bytes(fact))
    while True:
        yield chunk
        chunk = []


# --- fleets ---------------------------------------------------------------------------------------


def fleets(task: Task) -> dict[str, Any]:
    """The ticks of ``runners.fleets``: all fleets in one partition."""
    names = [f"fleet-{n:03d}" for n in range(FLEETS_NUMBER)]
    policies = FleetPolicies(FleetPolicy())
    part = Partition(lambda table: FleetLedger(0, policies), FLEETS, {FLEETS_TABLE.name: {}})
    part.take(_runners(task, names, task.at - TICK_MS), task.at)
    part.load(task.at)
    found = {"runners": task.runners, "fleets": len(names)}
    quiet, beating, proposed = Costs(), Costs(), Costs()
    at = task.at
    for _ in range(task.ticks):
        at += TICK_MS
        part.take(part.tick(at, quiet), at)
    for n in range(task.ticks):
        at += TICK_MS
        # Each runner beats twice a minute.
        part.take(_beats(task, names, at, n % 6), at)
        part.take(part.tick(at, beating), at)
    for n in range(task.ticks):
        at += TICK_MS
        part.take(_beats(task, names, at, n % 6), at)
        if n % 24 == 0:
            part.take(_proposals(task, names, at, n), at)
        part.take(part.tick(at, proposed), at)
    return {
        **found,
        "quiet": quiet.data(),
        "beating": beating.data(),
        "proposed": {**proposed.data(), "waiting": len(list(_proposals(task, names, at, 0)))},
    }


def _runners(task: Task, names: Sequence[str], at: int) -> Iterator[bytes]:
    for n in range(task.runners):
        state = (RunnerState.BUSY, RunnerState.BUSY, RunnerState.IDLE)[n % 3]
        yield to_bytes(
            RunnerSeen(
                **_envelope(f"seen:{n}", at, names[n % len(names)]),
                runner=f"runner-{n:06d}",
                state=state,
                host=f"host-{n // 4:05d}",
                job_key=_job(n) if state is RunnerState.BUSY else "",
            )
        )


def _beats(task: Task, names: Sequence[str], at: int, turn: int) -> Iterator[bytes]:
    for n in range(turn, task.runners, 6):
        yield to_bytes(
            RunnerSeen(
                **_envelope(f"beat:{n}:{at}", at, names[n % len(names)]), runner=f"runner-{n:06d}"
            )
        )


def _proposals(task: Task, names: Sequence[str], at: int, k: int) -> Iterator[bytes]:
    for n in range(0, task.runners, SUSPECTS):
        yield to_bytes(
            Proposal(
                **_envelope(f"proposal:{n}:{k}", at, names[n // SUSPECTS % len(names)]),
                job_key=_job(n),
                n=1,
                stall=StallKind.ORPHAN,
                since=at - HOUR_MS - n,
                opened_at=at,
                fence=Fence(claim=f"claim-{n}", rev=3),
                proposed=Proposed(k=k + 1, at=at, command=CommandKind.REQUEUE, attempt=k + 1),
            )
        )


def _job(n: int) -> str:
    return f"github:github.com:{n + 1}"


def _envelope(id_: str, at: int, key: str) -> dict[str, Any]:
    return {"id": id_, "source": "bench", "occurred_at": at, "received_at": at, "key": key}


# --- the part -------------------------------------------------------------------------------------


def measure(options: Options) -> dict[str, Any]:
    """Both ledgers, one after the other, in a process of their own."""
    task = Task(
        jobs=options.jobs_live,
        runners=options.runners,
        ticks=options.ticks,
        at=int(time.time() * 1000) // TICK_MS * TICK_MS,
    )
    say(f"tick: {task.jobs:,} live jobs in one partition, {task.runners:,} runners in another")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tick"],
        input=json.dumps(asdict(task)),
        capture_output=True,
        text=True,
        timeout=1_200,
        check=False,
        cwd=ROOT,
    )
    if done.returncode:
        raise RuntimeError(f"the ticks failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _quantiles(told: Sequence[float]) -> dict[str, float]:
    ordered = sorted(told)
    return {
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        "max": ordered[-1],
    }


if __name__ == "__main__":
    gc.set_threshold(*GC_THRESHOLDS)
    given = Task(**json.load(sys.stdin))
    json.dump({"jobs": jobs(given), "fleets": fleets(given)}, sys.stdout)
