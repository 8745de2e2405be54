"""Both folds over logs in memory, and everybody around them in the test's hands. With a judge.

Jobs propose, fleets dispose: what either publishes for the other waits in the other's log until
that is folded, and each may die before its tables are written. Provider and executor may answer
when they like, with what they like, twice, or never. The judge looks at each command as it is
published, and knows the logs, not the ledgers.
"""

from __future__ import annotations

from typing import Any, Final

from pipeline.effects import Effects
from pipeline.fleet import FleetLedger
from pipeline.fleet.policy import FleetPolicy
from pipeline.fleet.policy import Policies as FleetPolicies
from pipeline.jobs import decode
from pipeline.ledger import Ledger
from pipeline.providers.outcomes import fleet_record, job_facts
from pipeline.recovery import Policies, RecoveryPolicy
from tests.support.stall_world import BASE, HOUR, MINUTE, SECOND, Part
from topics.catalogue import COMMANDS, FLEETS, JOBS, PROBES
from topics.models import (
    FLEETS_RECORD,
    JOBS_RECORD,
    ClaimFact,
    Clock,
    Conclusion,
    JobAttributes,
    JobFact,
    Milestone,
    RunnerRef,
    Tick,
)
from topics.recovery import (
    COMMAND,
    PROBE,
    Answer,
    Answered,
    Command,
    CommandKind,
    Decision,
    Ending,
    Mode,
    Outcome,
    Probe,
    Result,
    RunnerSeen,
    RunnerState,
    StallFact,
    Switch,
)
from topics.tables import FLEETS_TABLE, JOBS_TABLE, WINDOWS_TABLE

JOBS_KNOWN: Final = 3
RULES: Final = RecoveryPolicy()
BUDGET: Final = FleetPolicy(mode=Mode.LIVE, per_tick=1, per_hour=4)
FLEET: Final = "linux"

_RECORDS: Final = {JOBS: JOBS_RECORD, FLEETS: FLEETS_RECORD}


class BothFolds:
    """One partition of either log. Every method is something that happens."""

    def __init__(self) -> None:
        self.now = BASE
        self.parts = {
            JOBS: Part(
                lambda table: Ledger(0, table.get, policies=Policies(RULES)),
                (JOBS_TABLE.name, WINDOWS_TABLE.name),
            ),
            FLEETS: Part(lambda table: FleetLedger(0, FleetPolicies(BUDGET)), (FLEETS_TABLE.name,)),
        }
        self.probes: list[Probe] = []
        self.commands: dict[str, Command] = {}
        self._n = 0
        self.tick()
        for number in range(JOBS_KNOWN):
            self.queued(number)

    # -- what is told --------------------------------------------------------------------------

    def say(self, key: str, **said: Any) -> None:
        """A fact about a job."""
        self._post(
            JOBS,
            JobFact(**self._envelope(key), key=key, cause="test", **said),
        )

    def queued(self, number: int) -> None:
        self.say(
            key_of(number),
            times={Milestone.QUEUED: {Clock.PROVIDER: self.now}},
            marks=((self.now, "queued"),),
            job=JobAttributes(run_id=9, repo="o/r", pool=FLEET),
        )

    def claimed(self, number: int, handle: int, *, minted: bool = True) -> None:
        """By a runner, which the fleet hears of, too."""
        name, runner = f"h{handle}", f"vm-{number}-{handle}"
        times = {"claimed_at": self.now} | ({"minted_at": self.now} if minted else {})
        claim = ClaimFact.model_validate({"handle": name, "runner": runner, **times})
        self.say(key_of(number), claim=claim)
        state = RunnerState.STARTING if minted else RunnerState.CLAIMED
        self.seen(runner, state, key_of(number), name)

    def seen(self, runner: str, state: RunnerState | None, job: str = "", claim: str = "") -> None:
        said = {"runner": runner, "state": state, "job_key": job, "claim": claim}
        self._post(FLEETS, RunnerSeen(**self._envelope(runner), key=FLEET, **said))

    def started(self, number: int, runner: str) -> None:
        self.say(
            key_of(number),
            times={Milestone.STARTED: {Clock.PROVIDER: self.now}},
            runner=RunnerRef(name=runner),
        )
        self.seen(runner, RunnerState.BUSY, key_of(number))

    def completed(self, number: int) -> None:
        self.say(
            key_of(number),
            times={Milestone.COMPLETED: {Clock.PROVIDER: self.now}},
            conclusion=Conclusion.SUCCESS,
        )

    def switch(self, mode: Mode | None) -> None:
        self._post(FLEETS, Switch(**self._envelope("switch"), key="switch:", mode=mode, who="ada"))

    def answer(self, back: int, answer: Answer) -> None:
        """The provider answers one of the latest questions, perhaps once more."""
        if self.probes:
            probe = self.probes[max(0, len(self.probes) - 1 - back)]
            answered = Answered(k=probe.k, at=self.now, answer=answer)
            self.say(
                probe.key,
                stall=StallFact(
                    n=probe.n, kind=probe.stall, since=probe.since, opened_at=probe.opened_at,
                    fence=probe.fence, answered=answered,
                ),
            )  # fmt: skip

    def end(self, back: int, result: Result) -> None:
        """An executor says how one of the latest commands ended, perhaps once more, or late."""
        known = list(self.commands.values())
        if not known:
            return
        command = known[max(0, len(known) - 1 - back)]
        outcome = Outcome(
            **self._envelope(command.id), kind="command.ended", key=command.key,
            command_id=command.id, command=command.command, fleet=command.fleet,
            job_key=command.job_key, attempt=command.attempt, n=command.n, stall=command.reason,
            since=command.since, opened_at=command.opened_at, fence=command.fence, result=result,
        )  # fmt: skip
        for fact in job_facts(outcome):
            self._post(JOBS, fact)
        ending = fleet_record(outcome)
        if ending is not None:
            self._post(FLEETS, ending)

    # -- time, and who folds -------------------------------------------------------------------

    def tick(self, ms: int = 5 * SECOND, *, by: str = "", behind: int = 0) -> None:
        """Time passes, and the clocks of both partitions say so: those of their owners, or ``by``.

        ``behind``: for how long (ms) what producers posted is not in the log.
        """
        self.now += ms
        for _topic, part in self.parts.items():
            at = {"occurred_at": self.now, "received_at": self.now}
            self._n += 1
            tick = Tick(
                id=f"t{self._n}", source="t", key="tick:0", by=by or part.ledger.me,
                sources_to=self.now - behind, **at,
            )  # fmt: skip
            part.log.append((tick, self.now))

    def fold(self, topic: str, *, durable: bool = True) -> None:
        """One of the two takes what is new. Not ``durable``: it dies once that is published."""
        part = self.parts[topic]
        self._publish(part.fold(self.now, durable))
        if not durable:
            part.open(self.now)

    def work(self) -> None:
        """Both take what is new, and what follows from it."""
        for _ in range(3):
            for topic in self.parts:
                self.fold(topic)

    # -- what came of it -----------------------------------------------------------------------

    def records(self, topic: str) -> list[Any]:
        return [record for record, _ in self.parts[topic].log]

    def rebuilt(self, topic: str) -> tuple[Effects, Part]:
        """What a rebuild from the whole log publishes, and what it knows."""
        part = self.parts[topic]
        again = Part(part._make, part._tables)
        again.log = list(part.log)
        again.open(self.now)
        again.ledger.me = "a new one"
        return again.fold(self.now), again

    # -- inside --------------------------------------------------------------------------------

    def _envelope(self, what: str) -> dict[str, Any]:
        self._n += 1
        return {
            "id": f"{what}|{self._n}", "source": "t", "occurred_at": self.now,
            "received_at": self.now,
        }  # fmt: skip

    def _post(self, topic: str, record: Any) -> None:
        self.parts[topic].log.append((record, self.now))

    def _publish(self, effects: Effects) -> None:
        for output in effects.outputs:
            if output.value is None:
                continue
            if output.topic in self.parts:
                self._post(output.topic, _RECORDS[output.topic].validate_json(output.value))
            elif output.topic == PROBES:
                self.probes.append(PROBE.validate_json(output.value))
            elif output.topic == COMMANDS:
                self._judge(COMMAND.validate_json(output.value))

    def _judge(self, command: Command) -> None:
        """One command, against what was said and done up to it."""
        known = self.commands.get(command.id)
        assert known in (None, command), "the same id for another command"
        if known is not None or command.dry_run:
            return
        assert command.evidence
        at, said = command.occurred_at, {each.what: each.at for each in command.evidence}
        if command.command is CommandKind.REQUEUE:
            answered = said["provider answers queued"]
            assert answered is not None
            assert 0 <= at - answered <= RULES.answer_ms + 2 * MINUTE
        if command.command is CommandKind.RELEASE_CLAIM:
            assert command.fence.claim
        others = list(self.commands.values())
        assert sum(each.occurred_at == at for each in others) < BUDGET.per_tick
        assert sum(each.occurred_at > at - HOUR for each in others) < BUDGET.per_hour
        ended = {each.command_id for each in self.records(FLEETS) if isinstance(each, Ending)}
        mine = [each for each in others if each.job_key and each.job_key == command.job_key]
        assert all(each.id in ended or each.expires_at <= at for each in mine), "two in flight"
        assert len({each.attempt for each in (*mine, command)}) == len(mine) + 1
        self.commands[command.id] = command

    def decided(self) -> set[str]:
        """The commands of jobs that the log of fleets says were issued."""
        return {
            each.command_id
            for each in self.records(FLEETS)
            if isinstance(each, Decision) and each.withheld is None
        }

    def issued(self) -> set[tuple[str, int]]:
        """Job and attempt of the commands that jobs know to have been issued."""
        return {
            (key.decode(), int(attempt))
            for key, value in self.parts[JOBS].table.items()
            if not key.startswith(b"~")
            for stall in (decode(value).recovery or _NONE).stalls.values()
            for attempt in stall.issued
        }


class _NONE:
    stalls: dict[str, Any] = {}


def key_of(number: int) -> str:
    return f"github:github.com:{number + 1}"
