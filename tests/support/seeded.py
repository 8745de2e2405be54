"""A ClickHouse full of what a CI fleet did in the last hours, and the truth about it.

The simulator's records go through the very rules of normaliser, folds and sink, in one partition
and without a broker. Some jobs get stuck; GitHub is asked about them and a dispatcher commanded.

    python -m tests.support.seeded --keep DIR      leaves the server running, to try queries
    python -m tests.support.seeded --ask "SELECT ... $__timeFilter(minute)" --url URL
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

from faust.types import TP

from dashboards.ask import ask
from dashboards.macros import Range
from pipeline.agents.normalise import Normalise
from pipeline.effects import Effects
from pipeline.executor.outcomes import ended, started
from pipeline.faust_safe import Batch
from pipeline.fleet import FleetLedger, FleetPolicy
from pipeline.fleet import Policies as FleetPolicies
from pipeline.ledger import Ledger
from pipeline.local import EmbeddedClickHouse
from pipeline.prober.post import answer_of
from pipeline.providers.github_api import GitHubApi
from pipeline.recovery import Policies, RecoveryPolicy
from pipeline.simulate import (
    Asked,
    Faults,
    Fleet,
    Sending,
    Simulation,
    Stalls,
    Stuck,
    Tempo,
    default_fleets,
    telemetry_pools,
    telemetry_reconcilers,
    telemetry_runners,
    telemetry_schedulers,
)
from pipeline.simulate.api import FakeGitHub
from pipeline.simulate.stuck import Hit
from pipeline.simulate.telemetry import Told
from pipeline.simulate.truth import Truth
from pipeline.simulate.wire import HOST
from sinks import rows, schema
from sinks.metrics import SinkMetrics
from sinks.writer import Writer
from tests.support.stall_world import HOUR, MINUTE, SECOND, Part
from topics.catalogue import (
    COMMANDS,
    DEAD_LETTERS,
    EVENTS,
    FLEETS,
    JOB_STATES,
    JOBS,
    LIFECYCLE,
    OUTCOMES,
    PROBES,
    WEBHOOKS,
)
from topics.dead_letters import letter_bytes
from topics.models import FLEETS_RECORD, JOB_STATE, JOBS_RECORD, DeadLetter, Tick
from topics.recovery import COMMAND, PROBE, Command, Mode, Outcome, Probe, Result, Switch
from topics.tables import FLEETS_TABLE, JOBS_TABLE, WINDOWS_TABLE

STEP_MS: Final = 20 * SECOND
#: So many runners that nobody waits for one: who does so is stuck.
ROOMY: Final = Fleet("windows", ("self-hosted", "Windows", "X64"), runners=90, weight=2.0)
#: Those whose machines tell how they are.
TELLING: Final = ("linux-small", "macos")
#: Accounts whose jobs are taken.
ACCOUNTS: Final = 12
#: A fleet that a person pauses for a while, and one with so small a budget that some must wait.
PAUSED: Final = "linux-large"
TIGHT: Final = "linux-small"
#: In dry run all the time; later a person says so as well.
DRY: Final = "macos"
#: What a job is closed as whose run is over.
_CLOSED_AS: Final = ("startup_failure", "stale", "unknown")
#: Records of a batch of the sink.
_BATCH: Final = 20_000


class Kept(NamedTuple):
    """A record of a log."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Any = ()


@dataclass(frozen=True)
class Seeded:
    """What is in the database.

    Attributes:
        start_ms, end_ms: between these it happened.
        jobs: what is known of all jobs, and of all windows.
        telemetry: what the programs around the jobs told, and what is true of it.
        stuck: jobs that got stuck, by their id.
        answers: what the dispatcher made of commands, by their id.
        hits: commands that were done to a job that was alive.
        records: how many the sink wrote, by topic.
    """

    start_ms: int
    end_ms: int
    jobs: Truth
    telemetry: Told
    stuck: Mapping[int, Stuck]
    answers: Mapping[str, Result]
    hits: Sequence[Hit]
    records: Mapping[str, int]


class Plant:
    """Everything between producers and sink, one partition of each topic, in memory."""

    def __init__(self, seed: int, jobs: int, start: int, end: int, load: float = 0.7) -> None:
        self.now, self._end = start, end
        self._chance = Random(f"plant {seed}")
        #: What the sink reads.
        self.logs: dict[str, list[Kept]] = {topic: [] for topic in rows.TOPICS}
        span = (end - start) / SECOND
        self.simulation = Simulation(
            seed, jobs, [*default_fleets(jobs, span, Tempo(), load=load), ROOMY], start_ms=start,
            duration_s=span, faults=Faults(duplicates=0.05, reordered=0.1, malformed=0.01),
            stalls=Stalls(every_s=100.0, queues=frozenset({ROOMY.name})),
        )  # fmt: skip
        policies = Policies(
            RecoveryPolicy(), {ROOMY.name: replace(RecoveryPolicy(), stale_queue_ms=10 * MINUTE)}
        )
        budgets = FleetPolicies(
            FleetPolicy(), {TIGHT: FleetPolicy(per_hour=2), DRY: FleetPolicy(mode=Mode.DRY_RUN)}
        )
        jobs_tables = (JOBS_TABLE.name, WINDOWS_TABLE.name)
        self._parts = {
            JOBS: Part(lambda table: Ledger(0, table.get, policies=policies), jobs_tables),
            FLEETS: Part(lambda table: FleetLedger(0, budgets), (FLEETS_TABLE.name,)),
        }
        self._normalise = Normalise(lambda notes: None)
        self._probes: list[Probe] = []
        self._commands: list[Command] = []
        self._n = 0
        #: See :meth:`pipeline.simulate.Simulation.truth`.
        self.closed: dict[str, tuple[int, str]] = {}

    def run(self, telemetry: Told) -> None:
        """All of it, from the start to the end."""
        waiting = self.simulation.records()
        held: Sending | None = next(waiting)
        asked = self.simulation.asked
        assert asked is not None
        asked.clock = lambda: self.now
        github = FakeGitHub(asked.job, asked.run, sees=asked.sees)
        api = GitHubApi(
            HOST, "t", base=github.url, per_minute=100_000, wall=lambda: self.now / 1000
        )
        told = iter(telemetry.events)
        event = next(told, None)
        try:
            while self.now < self._end:
                self.now += STEP_MS
                taken: dict[str, list[Any]] = {WEBHOOKS: [], LIFECYCLE: [], EVENTS: []}
                while held is not None and held.send_at_ms <= self.now:
                    record = Kept(held.topic, 0, 0, held.send_at_ms, *held[2:5])
                    taken[held.topic].append(self._keep(record))
                    held = next(waiting, None)
                while event is not None and event.occurred_at <= self.now:
                    value = event.model_dump_json(exclude_none=True).encode()
                    taken[EVENTS].append(
                        Kept(EVENTS, 0, 0, event.occurred_at, event.fleet.encode(), value)
                    )
                    event = next(told, None)
                for topic, records in taken.items():
                    self._normalised(topic, records)
                self._person()
                self._answer(api)
                self._execute(asked)
                self._fold()
            if held is not None:  # it was asked for, and so the truth knows it
                record = Kept(held.topic, 0, 0, held.send_at_ms, *held[2:5])
                self._normalised(held.topic, [self._keep(record)])
                self._fold()
            self.closed = self._over(asked)
        finally:
            api.close()
            github.close()

    # -- producers and folds -------------------------------------------------------------------

    def _normalised(self, topic: str, records: Iterable[Any]) -> None:
        taken = list(records)
        if taken:
            self._publish(asyncio.run(self._normalise.fold(Batch(TP(topic, 0), taken))))

    def _person(self) -> None:
        """Somebody pauses a fleet for ten minutes in the last hour, and leaves one in dry run."""
        for before, fleet, mode, why in (
            (40 * MINUTE, PAUSED, Mode.PAUSED, "upgrade"),
            (30 * MINUTE, PAUSED, None, "done"),
            (20 * MINUTE, DRY, Mode.DRY_RUN, "a new dispatcher"),
        ):
            if self._end - before <= self.now < self._end - before + STEP_MS:
                said = self._envelope("switch", f"switch:{fleet}")
                switch = Switch(**said, fleet=fleet, mode=mode, who="ada", reason=why)
                self._parts[FLEETS].log.append((switch, self.now))

    def _fold(self) -> None:
        for part in self._parts.values():
            tick = Tick(
                **self._envelope("tick", "tick:0"), by=part.ledger.me,
                sources_to=self.now - SECOND,
            )  # fmt: skip
            part.log.append((tick, self.now))
        for _ in range(2):  # what one tells the other arrives within a step
            for part in self._parts.values():
                if part.read < len(part.log):
                    self._publish(part.fold(self.now))

    def _publish(self, effects: Effects) -> None:
        for output in effects.outputs:
            if output.topic == JOBS and output.value is not None:
                self._parts[JOBS].log.append((JOBS_RECORD.validate_json(output.value), self.now))
            elif output.topic == FLEETS and output.value is not None:
                self._parts[FLEETS].log.append(
                    (FLEETS_RECORD.validate_json(output.value), self.now)
                )
            elif output.topic in self.logs:
                value = output.value
                if output.topic == DEAD_LETTERS and value is not None:
                    # The time of this world, and not that of the machine.
                    letter = DeadLetter.model_validate_json(value)
                    value = letter_bytes(letter.model_copy(update={"received_at": self.now}))
                self._keep(Kept(output.topic, 0, 0, self.now, output.key, value))
            if output.topic == PROBES and output.value is not None:
                self._probes.append(PROBE.validate_json(output.value))
            elif output.topic == COMMANDS and output.value is not None:
                self._commands.append(COMMAND.validate_json(output.value))

    # -- prober and executor -------------------------------------------------------------------

    def _answer(self, api: GitHubApi) -> None:
        """GitHub answers; the limit of requests keeps some from being asked."""
        probes, self._probes = self._probes, []
        for probe in probes:
            if self._chance.random() < 0.1:
                continue
            said = api.ask(probe)
            for fact in (*said.facts, answer_of(probe, said, self.now)):
                self._parts[JOBS].log.append((fact, self.now))

    def _execute(self, asked: Asked) -> None:
        """The dispatcher does what it is told. At times it is not there, or fails."""
        commands, self._commands = self._commands, []
        for command in commands:
            luck = self._chance.random()
            if command.dry_run or luck < 0.05:
                continue
            self._say(started(command, "hook", self.now - 2 * SECOND))
            if luck < 0.15:
                result, reason = Result.FAILED, "502"
            else:
                result, reason = asked.execute(command.id, command.model_dump(mode="json"))
            self._say(ended(command, "hook", self.now, result, reason))

    def _say(self, outcome: Outcome) -> None:
        value = outcome.model_dump_json(exclude_defaults=True).encode()
        record = self._keep(Kept(OUTCOMES, 0, 0, self.now, outcome.key.encode(), value))
        self._normalised(OUTCOMES, [record])

    # -- inside --------------------------------------------------------------------------------

    def _over(self, asked: Asked) -> dict[str, tuple[int, str]]:
        """When and as what jobs count as over of which GitHub told that their run is.

        Of a run's other jobs that is known once they are asked about themselves.
        """
        states = {each.key: each.value for each in self.logs[JOB_STATES]}
        found = {}
        for key, told_at in asked.closings():
            state = JOB_STATE.validate_json(states[key.encode()] or b"")
            at, how = state.completed_at, state.conclusion
            if at is not None and at >= told_at and how in _CLOSED_AS:
                found[key] = (at, how)
        return found

    def _keep(self, record: Kept) -> Kept:
        log = self.logs[record.topic]
        log.append(record._replace(offset=len(log)))
        return log[-1]

    def _envelope(self, what: str, key: str) -> dict[str, Any]:
        self._n += 1
        return {
            "id": f"{what}|{self._n}", "source": "seeded", "occurred_at": self.now,
            "received_at": self.now, "key": key,
        }  # fmt: skip


def fill(url: str, end_ms: int, **more: Any) -> Seeded:
    """Make the tables and fill them with what :func:`grown` gives for the same arguments.

    Raises clickhouse-driver's errors.
    """
    seeded, logs = grown(end_ms, **more)
    schema.apply(url)
    write(url, logs)
    return seeded


def grown(
    end_ms: int, *, seed: int = 7, jobs: int = 1_000, hours: float = 4.0, telling_h: float = 0.75,
    load: float = 0.7,
) -> tuple[Seeded, dict[str, list[Kept]]]:  # fmt: skip
    """What happened in so many hours up to ``end_ms``, and what the sink reads of it, by topic.

    ``telling_h``: for so long the programs around the jobs have told how they are. ``load``: so
    busy are the fleets on average. The same arguments give the same records.
    """
    end = end_ms // STEP_MS * STEP_MS
    start = end - int(hours * HOUR) // STEP_MS * STEP_MS
    telemetry = telling(seed, end - int(telling_h * HOUR) // STEP_MS * STEP_MS, end)
    plant = Plant(seed, jobs, start, end, load)
    plant.run(telemetry)
    asked = plant.simulation.asked
    assert asked is not None
    books = asked.world.books
    seeded = Seeded(
        start, end, plant.simulation.truth(plant.closed), telemetry, asked.world.stuck,
        {command: result for command, (result, _) in books.answers.items()}, books.hits,
        {topic: len(log) for topic, log in plant.logs.items()},
    )  # fmt: skip
    return seeded, plant.logs


def telling(seed: int, start: int, end: int) -> Told:
    """What the programs around the jobs tell between two times in ms, and the truth about it.

    Something of everything: runners that crash, stop and are looked at, runs that hang, a
    reconciler that does the same again and again, one that stops, work that flaps.
    """
    told = Told(at=end)
    told.add(telemetry_pools.play(TELLING, start, end, seed))
    told.add(telemetry_runners.play(TELLING, start, end, seed, runners=4))
    told.add(telemetry_schedulers.play(TELLING, start, end, seed))
    told.add(telemetry_reconcilers.play(TELLING, start, end, seed + 9, each=2))
    _scraped(told, TELLING[0], start, end, Random(f"scraped {seed}"))
    _flaps(told, TELLING[1], end)
    for at in range(start, end, MINUTE):
        told.tell("accounts.sample", TELLING[0], at, enabled=ACCOUNTS)
    told.levels["accounts_enabled", TELLING[0]] = ACCOUNTS
    told.events.sort(key=lambda event: (event.occurred_at, event.id))
    return told


def _flaps(told: Told, fleet: str, end: int) -> None:
    """A piece of work that goes back and forth, and ended where it began."""
    states = ("open", "in_progress") * 4 + ("open",)
    for ago, state in enumerate(states):
        at = end - 20 * MINUTE + ago * MINUTE
        told.tell("work.moved", fleet, at, reconciler="c0", work_id="flaps", to_state=state)
        told.count(fleet, "reconciler_work_moved", state)
    for level, labels in (("reconciler_work_flapping", ()), ("reconciler_work", ("open",))):
        where = (level, fleet, *labels)
        told.levels[where] = told.levels.get(where, 0) + 1
    oldest = ("reconciler_work_oldest_seconds", fleet, "open")
    told.levels[oldest] = max(told.levels.get(oldest, 0), (20 - len(states) + 1) * 60)


def _scraped(told: Told, fleet: str, start: int, end: int, chance: Random) -> None:
    """A runner that cannot publish: its own metrics are looked at, and it has two tasks at most."""
    runner, running, bounds = "host-9:9101", 0, [0.01, 0.1, 1.0, 10.0]
    for at in range(start, end + 1, 15 * SECOND):
        running = min(2, max(0, running + chance.choice((-1, 0, 1))))
        told.tell(
            "runner.status", fleet, at, runner=runner, uptime_ms=at - start + 60_000, capacity=2,
            running=running, backoff_ms=2_000, buffer_rows=0,
        )  # fmt: skip
        counts = [chance.randint(0, 3) for _ in (*bounds, 0)]
        grown: dict[str, dict[str, int]] = {
            "polls": {"task": chance.randint(0, 1), "empty": sum(counts), "error": 1},
            "jobs": {"success": chance.randint(0, 1), "failure": int(chance.random() < 0.1)},
            "log_reports": {"success": 2, "error": int(chance.random() < 0.2)},
            "state_reports": {"success": 3},
            "client_errors": {"fetch_task": 1},
        }
        told.tell(
            "runner.scrape", fleet, at, runner=runner, **grown,
            histograms={"poll": (bounds, counts, 0.5 * sum(counts))},
        )  # fmt: skip
        for name, values in grown.items():
            metric = "runner_tasks" if name == "jobs" else f"runner_{name}"
            for value, n in values.items():
                told.count(fleet, metric, value, value=n)
    for level, labels, more in (
        ("runners_known", (), 1), ("runner_capacity", (), 2),
        ("runner_tasks_open", ("running",), running),
    ):  # fmt: skip
        where = (level, fleet, *labels)
        told.levels[where] = told.levels.get(where, 0) + more


def write(url: str, logs: Mapping[str, list[Kept]]) -> None:
    """Write records as the sink does."""
    writer = Writer(url, SinkMetrics())
    try:
        epochs = {topic: writer.epoch(topic, "seeded") for topic in rows.PLACED}
        for topic, log in logs.items():
            for first in range(0, len(log), _BATCH):
                batch = [rows.decode(record) for record in log[first : first + _BATCH]]
                tables, failed = rows.build(batch, epochs)
                refused = writer.write(tables, f"{topic}:{first}")
                if failed or refused:
                    raise ValueError(f"{topic} gives no rows: {[*failed, *refused][:3]}")
    finally:
        writer.close()


def window(world: Seeded, minutes: float, **chosen: Any) -> Range:
    """The last minutes of a seeded world, as a panel of 600 points looks at it."""
    span = int(minutes * MINUTE)
    interval = max(60, span // SECOND // 600)
    return Range(world.end_ms - span, world.end_ms, interval, chosen)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="A ClickHouse with a seeded world in it.")
    parser.add_argument("--keep", type=Path, help="directory of the server that is left running")
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--telling", type=float, default=0.75, help="hours of telemetry")
    parser.add_argument("--load", type=float, default=0.7, help="how busy the fleets are")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--url", default="", help="of a server that was kept")
    parser.add_argument("--ask", default="", help="a query with macros")
    parser.add_argument("--range", type=float, default=6 * 60, help="minutes up to now")
    parser.add_argument("--set", action="append", default=[], help="variable=value, else all")
    given = parser.parse_args()
    if given.ask:
        _tell(given.url, given.ask, given.range, given.set)
        return
    server = EmbeddedClickHouse(given.keep)
    server.start()
    try:
        began = time.process_time()
        world = fill(
            server.url, int(time.time() * 1000), seed=given.seed, jobs=given.jobs,
            hours=given.hours, telling_h=given.telling, load=given.load,
        )  # fmt: skip
        print(f"filled in {time.process_time() - began:.1f} s of CPU: {dict(world.records)}")
        print(f"program: {server.url}\nreader:  {server.reader_url}", flush=True)
        signal.sigwait([signal.SIGINT, signal.SIGTERM])
    finally:
        server.stop()


def _tell(url: str, sql: str, minutes: float, chosen: list[str]) -> None:
    end = int(time.time() * 1000)
    values = {name: ([value] if value else []) for name, _, value in
              (each.partition("=") for each in chosen)}  # fmt: skip
    for name in ("fleet", "repo", "workflow"):
        values.setdefault(name, [])
    span = int(minutes * MINUTE)
    columns, found = ask(url, sql, Range(end - span, end, max(60, span // 600_000), values))
    print(*(f"{name}:{kind}" for name, kind in columns), sep="\t")
    for row in found:
        print(*row, sep="\t")
    print(f"{len(found)} rows")


if __name__ == "__main__":
    main()
