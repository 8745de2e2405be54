"""A partition of ``runners.fleets`` as plain data: who posts, who folds, who dies, and a judge.

The world appends to a log; owners of the partition fold it, one after another, each from the tables
the one before left. What they publish on the log comes back to them. The judge looks at every
command as it is decided, and knows the log up to there and nothing of the ledger's state.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import TypeAdapter

from pipeline.effects import Effects, Output
from pipeline.fleet import ACT_WITHIN_MS, FleetLedger, FleetPolicy, Policies
from pipeline.fold_spec import OUTPUTS, FoldSpec
from tests.support.chaos import Durable
from topics.catalogue import COMMANDS, FLEETS, JOBS
from topics.models import FLEETS_RECORD, JobFact, Tick
from topics.reading import read
from topics.recovery import (
    COMMAND,
    Command,
    CommandKind,
    Decision,
    Depth,
    Ending,
    Fence,
    HostGone,
    Mode,
    Proposal,
    Proposed,
    Result,
    RunnerSeen,
    RunnerState,
    StallKind,
    Switch,
)
from topics.tables import FLEETS_TABLE

BASE: Final = 1_700_000_040_000
SECOND: Final = 1_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
JOB_FACT: Final = TypeAdapter(JobFact)


def spec(policies: Policies) -> FoldSpec[FleetLedger]:
    """The fold of fleets under these policies."""
    return FoldSpec(
        stage="fleets",
        log=FLEETS,
        records=FLEETS_RECORD,
        tables=(FLEETS_TABLE,),
        new_ledger=lambda partition, tables: FleetLedger(partition, policies),
        writer="fleets",
    )


def envelope(id_: str, at: int, key: str) -> dict[str, Any]:
    return {"id": id_, "source": "test", "occurred_at": at, "received_at": at, "key": key}


def job(number: int) -> str:
    return f"github:github.com:{number}"


def tick(at: int, by: str = "me") -> Tick:
    return Tick(**envelope(f"tick:0:{at}", at, "tick:0"), by=by)


def proposal(
    number: int,
    at: int,
    *,
    fleet: str = "f0",
    k: int = 1,
    attempt: int = 1,
    since: int | None = None,
    command: CommandKind = CommandKind.REQUEUE,
) -> Proposal:
    return Proposal(
        **envelope(f"{job(number)}:1:{k}", at, fleet),
        job_key=job(number),
        n=1,
        stall=StallKind.ORPHAN,
        since=at - 10 * MINUTE if since is None else since,
        opened_at=at,
        fence=Fence(claim=f"claim-{number}", rev=3),
        proposed=Proposed(k=k, at=at, command=command, attempt=attempt),
    )


def ending(command_id: str, number: int, at: int, result: Result, fleet: str = "f0") -> Ending:
    return Ending(
        **envelope(f"{command_id}:{result}:{at}", at, fleet),
        command_id=command_id,
        command=CommandKind.REQUEUE,
        job_key=job(number),
        result=result,
    )


def switch(at: int, mode: Mode | None, fleet: str = "") -> Switch:
    return Switch(
        **envelope(f"switch:{fleet}:{at}", at, f"switch:{fleet}"), fleet=fleet, mode=mode, who="ada"
    )


def seen(
    name: str,
    at: int,
    state: RunnerState | None = None,
    *,
    held: int | None = None,
    claim: str = "",
    host: str = "",
    fleet: str = "f0",
) -> RunnerSeen:
    return RunnerSeen(
        **envelope(f"{name}:{at}:{state}", at, fleet),
        runner=name,
        state=state,
        job_key="" if held is None else job(held),
        claim=claim,
        host=host,
    )


def host_gone(host: str, at: int, fleet: str = "f0") -> HostGone:
    return HostGone(**envelope(f"{host}:{at}", at, fleet), host=host)


def depth(at: int, queued: int, since: int | None, partition: int = 0, fleet: str = "f0") -> Depth:
    return Depth(
        **envelope(f"depth:{fleet}:{partition}:{at}", at, fleet),
        partition=partition,
        counts={"queued": queued},
        queued_since=since,
    )


@dataclass
class Bench:
    """One ledger, told record by record by its only owner, ``me``."""

    policies: Policies = field(default_factory=Policies)
    offset: int = -1
    effects: list[Effects] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.durable = Durable(spec(self.policies))
        self.ledger: FleetLedger = self.durable.ledger()
        self.ledger.me = "me"

    def tell(self, *told: Any, now: int | None = None) -> list[Output]:
        """Fold records, and what they make the ledger say to itself. Returns what it publishes."""
        outputs: list[Output] = []
        waiting = deque(told)
        while waiting:
            record = waiting.popleft()
            self.offset += 1
            self.ledger.now = now or max(record.occurred_at, self.ledger.clock)
            self.ledger.apply(self.offset, record)
            effects = self.ledger.flush()
            self.effects.append(effects)
            for key, value in effects.tables.get(FLEETS_TABLE.name, ()):
                self.durable.put(FLEETS_TABLE.name, key, value)
            outputs += effects.outputs
            waiting += (
                read(FLEETS_RECORD, each.value) for each in effects.outputs if each.topic == FLEETS
            )
        return outputs

    def counted(self) -> dict[tuple[str, ...], float]:
        """What was counted, by metric and labels."""
        found: dict[tuple[str, ...], float] = {}
        for effects in self.effects:
            for note in effects.notes:
                where = (note.metric.name, *note.labels)
                found[where] = found.get(where, 0) + note.value
        return found


def commands(outputs: list[Output]) -> list[Command]:
    return [read(COMMAND, each.value) for each in outputs if each.topic == COMMANDS]


def facts(outputs: list[Output]) -> list[JobFact]:
    return [read(JOB_FACT, each.value) for each in outputs if each.topic == JOBS]


def said(outputs: list[Output]) -> list[Any]:
    return [read(FLEETS_RECORD, each.value) for each in outputs if each.topic == FLEETS]


POLICY: Final = FleetPolicy(per_tick=2, per_hour=4, breaker_failures=3)


class World:
    """See the module. Every method is something that happens."""

    def __init__(self) -> None:
        self.policies = Policies(POLICY)
        self.durable = Durable(spec(self.policies))
        self.log: list[Any] = []
        self.now = BASE
        self.life = 0
        self.committed = self.position = 0
        self.folded: deque[tuple[Effects, int]] = deque()
        #: Commands as they were decided, dry ones left out, and the length of the log then.
        self.decided: list[Command] = []
        self._numbers: dict[int, int] = {}
        self.live()

    # -- who posts -----------------------------------------------------------------------------

    def pass_time(self, ms: int) -> None:
        self.now += ms

    def clock(self, by: str, ago: int = 0) -> None:
        self.log.append(tick(self.now - ago, by))

    def propose(self, number: int, ago: int = 0) -> None:
        """A job's next proposal; its attempts count the commands that were issued for it."""
        k = self._numbers[number] = self._numbers.get(number, 0) + 1
        issued = {
            each.command_id
            for each in self.log
            if isinstance(each, Decision) and not each.withheld and each.job_key == job(number)
        }
        since = BASE - MINUTE * (number + 10)
        at = self.now - ago
        fleet = f"f{number % 2}"
        self.log.append(
            proposal(number, at, fleet=fleet, k=k, attempt=len(issued) + 1, since=since)
        )

    def repeat(self, back: int) -> None:
        """What a worker of the jobs says again after a crash."""
        known = [each for each in self.log if isinstance(each, Proposal)]
        if known:
            self.log.append(known[max(0, len(known) - 1 - back)])

    def end(self, back: int, result: Result) -> None:
        """An executor answers one of the latest commands."""
        known = [each for each in self.log if isinstance(each, Decision) and not each.withheld]
        if known:
            one = known[max(0, len(known) - 1 - back)]
            number = int(one.job_key.rpartition(":")[2] or 0)
            self.log.append(ending(one.command_id, number, self.now, result, one.key))

    def post(self, record: Any) -> None:
        self.log.append(record)

    # -- who folds -----------------------------------------------------------------------------

    def live(self) -> None:
        """A new owner, who begins where the offsets are committed."""
        self.life += 1
        self.folded.clear()
        self.position = self.committed
        self.ledger: FleetLedger = self.durable.ledger()
        self.ledger.me = self.me

    @property
    def me(self) -> str:
        return f"w{self.life}"

    def fold(self, most: int) -> None:
        """One batch; two may be folded and not yet written."""
        if len(self.folded) == 2:
            self.write()
        batch = self.log[self.position : self.position + most]
        self.ledger.now = self.now
        for record in batch:
            before = len(self.ledger._outputs)
            self.ledger.apply(self.position, record)
            self.position += 1
            self._judge(self.ledger._outputs[before:])
        self.folded.append((self.ledger.flush(), self.position))

    def write(self, dies_after: int | None = None) -> None:
        """Make the oldest batch durable, or die on the way and live again."""
        if not self.folded:
            return
        effects, end = self.folded.popleft()
        steps = 0
        for step in self.durable.spec.steps:
            writes: list[Any] = effects.outputs if step == OUTPUTS else effects.tables.get(step, [])
            for each in writes:
                if steps == dies_after:
                    self.live()
                    return
                steps += 1
                if step != OUTPUTS:
                    self.durable.put(step, *each)
                    continue
                self.durable.published.append(each)
                if each.topic == FLEETS:
                    self.log.append(read(FLEETS_RECORD, each.value))
        self.ledger.written()
        if dies_after is not None:
            self.live()  # written, and not committed
        else:
            self.committed = end

    def drain(self) -> None:
        """All is read and written; nobody acts any more.

        What is forgotten is forgotten at a tick, so a last one follows what is read last.
        """
        self.ledger.me = ""
        self._finish()
        self.clock("other")
        self._finish()

    def _finish(self) -> None:
        while self.position < len(self.log) or self.folded:
            if self.position < len(self.log):
                self.fold(7)
            while self.folded:
                self.write()

    # -- the judge -----------------------------------------------------------------------------

    def _judge(self, outputs: list[Output]) -> None:
        """What one record led to, against the log up to it."""
        ours = [each for each in said(outputs) if isinstance(each, Decision | Ending)]
        new = [each for each in commands(outputs) if not each.dry_run]
        if not (ours or new):
            return
        read_so_far = self.log[: self.position]
        ticks = [each for each in read_so_far if isinstance(each, Tick)]
        believed = [t for n, t in enumerate(ticks) if t.occurred_at >= max(
            (each.occurred_at for each in ticks[:n]), default=0)]  # fmt: skip
        assert believed[-1].by == self.me
        assert self.now - believed[-1].occurred_at <= ACT_WITHIN_MS
        ended = {each.command_id for each in read_so_far if isinstance(each, Ending)}
        ended |= {each.command_id for each in ours if isinstance(each, Ending)}
        for each in new:
            assert _mode(read_so_far, each.fleet) is Mode.LIVE
            self._judge_one(each, ended)
            self.decided.append(each)

    def _published(self) -> list[Command]:
        return [each for each in commands(self.durable.published) if not each.dry_run]

    def _judge_one(self, command: Command, ended: set[str]) -> None:
        # What died before it was published was never commanded.
        under_way = [said(effects.outputs) for effects, _ in self.folded]
        under_way.append(said(self.ledger._outputs))
        real = {
            each.command_id
            for told in [self.log, *under_way]
            for each in told
            if isinstance(each, Decision) and not each.withheld
        }
        # The command itself is in no other's way.
        real -= {command.id} - {each.id for each in self._published()}
        others = {each.id: each for each in self.decided if each.id in real}
        assert command.id not in others
        at = command.occurred_at
        assert sum(each.occurred_at == at for each in others.values()) < POLICY.per_tick
        hour = [
            each
            for each in others.values()
            if each.fleet == command.fleet and each.occurred_at > at - HOUR
        ]
        assert len(hour) < POLICY.per_hour
        refused = {
            each.command_id
            for each in self.log
            if isinstance(each, Ending) and each.result is Result.REFUSED
        }
        for each in others.values():
            if each.job_key == command.job_key:
                assert each.id in ended or each.expires_at <= at
                assert each.id in refused or each.occurred_at <= at - POLICY.cool_down_ms


def _mode(log: list[Any], fleet: str) -> Mode:
    latest: dict[str, Switch] = {}
    for each in log:
        if isinstance(each, Switch):
            known = latest.get(each.fleet)
            if known is None or (each.occurred_at, each.id) > (known.occurred_at, known.id):
                latest[each.fleet] = each
    thrown = [latest[s] for s in ("", fleet) if s in latest and latest[s].mode]
    if not thrown:
        return POLICY.mode
    mode = max(thrown, key=lambda each: (each.occurred_at, each.id)).mode
    assert mode is not None
    return mode
