"""The fold of jobs over a log in memory, with the provider and the fleet in the test's hands."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipeline.effects import Effects
from pipeline.jobs import decode
from pipeline.jobs.stalls import Recovery
from pipeline.ledger import Ledger
from pipeline.providers.outcomes import job_facts
from pipeline.recovery import Policies, RecoveryPolicy
from topics.catalogue import FLEETS, JOBS, PROBES
from topics.models import (
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
    PROBE,
    Answer,
    Answered,
    Decided,
    Outcome,
    Probe,
    Proposal,
    Result,
    StallFact,
    Why,
)
from topics.tables import JOBS_TABLE, WINDOWS_TABLE

BASE = 1_700_000_000_000
SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000
KEY = "github:github.com:7"
TICK = 5 * SECOND
POLICY = RecoveryPolicy()


class Loop:
    """The fold of jobs over a log in memory, with the provider and the fleet in our hands.

    What it publishes about jobs comes back through the log, as it does for real.
    """

    def __init__(self, policy: RecoveryPolicy = POLICY) -> None:
        self.policies = Policies(policy)
        self.table: dict[bytes, bytes] = {}
        self.log: list[Any] = []
        self.read = 0
        self.now = BASE
        self.me = ""
        self.probes: list[Probe] = []
        self.proposals: list[Proposal] = []
        #: How often something was counted, by metric and labels.
        self.noted: Counter[tuple[str, ...]] = Counter()
        self.ledger = self.open()

    def open(self, me: str = "me") -> Ledger:
        """The ledger of a new owner, from the table."""
        self.me = me
        ledger = Ledger(0, self.table.get, policies=self.policies)
        ledger.now = self.now
        ledger.me = me
        ledger.load({JOBS_TABLE.name: list(self.table.items()), WINDOWS_TABLE.name: []})
        self.ledger = ledger
        return ledger

    def fold(self, *, durable: bool = True) -> Effects:
        """Fold what is in the log and not read yet. Not ``durable``: outputs only, then death."""
        self.ledger.now = self.now
        for offset in range(self.read, len(self.log)):
            self.ledger.apply(offset, self.log[offset], self.now)
        end = len(self.log)
        effects = self.ledger.flush()
        for note in effects.notes:
            self.noted[note.metric.name, *note.labels] += 1
        for output in effects.outputs:
            assert output.value is not None or output.topic != JOBS
            if output.topic == JOBS and output.value is not None:
                self.log.append(JOBS_RECORD.validate_json(output.value))
            elif output.topic == PROBES and output.value is not None:
                self.probes.append(PROBE.validate_json(output.value))
            elif output.topic == FLEETS and b"stall.proposed" in (output.value or b""):
                self.proposals.append(Proposal.model_validate_json(output.value or b""))
        if durable:
            for key, value in effects.writes(JOBS_TABLE):
                if value is None:
                    self.table.pop(key, None)
                else:
                    self.table[key] = value
            self.ledger.written()
            self.read = end
        return effects

    def rebuilt(self) -> Loop:
        """One that has folded the same log from its beginning, and published nothing."""
        again = Loop(self.policies.default)
        again.log, again.now = list(self.log), self.now
        again.open("a new one")
        again.fold()
        return again

    def tick(self, ms: int = TICK, **more: Any) -> None:
        """Time passes, and the owner's clock says so."""
        self.now += ms
        said = {"by": self.me, "sources_to": self.now, "occurred_at": self.now, **more}
        self.log.append(
            Tick(id=f"t{len(self.log)}", source="t", received_at=self.now, key="tick:0", **said)
        )
        self.fold()

    def wait(self, ms: int) -> None:
        """Ticks for so long."""
        until = self.now + ms
        while self.now < until:
            self.tick(min(TICK * 4, until - self.now))

    def say(self, key: str = KEY, **said: Any) -> None:
        """A fact about a job, as of now."""
        n = len(self.log)
        self.log.append(
            JobFact(
                id=f"f{n}",
                source="t",
                occurred_at=self.now,
                received_at=self.now,
                key=key,
                cause="test",
                **said,
            )
        )
        self.fold()

    def queued(self) -> None:
        self.say(
            times={Milestone.QUEUED: {Clock.PROVIDER: self.now}},
            marks=((self.now, "queued"),),
            job=JobAttributes(run_id=9, repo="o/r", labels=("linux",)),
        )

    def claimed(self, handle: str = "h1", runner: str = "vm-1", *, minted: bool = True) -> None:
        self.say(claim=ClaimFact(handle=handle, claimed_at=self.now, runner=runner))
        if minted:
            self.say(claim=ClaimFact(handle=handle, minted_at=self.now, runner=runner))

    def started(self, runner: str = "vm-1") -> None:
        self.say(
            times={Milestone.STARTED: {Clock.PROVIDER: self.now}}, runner=RunnerRef(name=runner)
        )

    def completed(self) -> None:
        self.say(
            times={Milestone.COMPLETED: {Clock.PROVIDER: self.now}},
            conclusion=Conclusion.SUCCESS,
        )

    def answer(self, probe: Probe, answer: Answer) -> None:
        """The provider's answer, as the prober posts it."""
        self.say(
            probe.key,
            stall=StallFact(
                n=probe.n, kind=probe.stall, since=probe.since, opened_at=probe.opened_at,
                fence=probe.fence, answered=Answered(k=probe.k, at=self.now, answer=answer),
            ),
        )  # fmt: skip

    def decide(self, proposal: Proposal, withheld: Why | None = None) -> None:
        """What the fleet makes of a proposal."""
        said = proposal.proposed
        self.say(
            proposal.job_key,
            stall=StallFact(
                n=proposal.n, kind=proposal.stall, since=proposal.since,
                opened_at=proposal.opened_at, fence=proposal.fence,
                decided=Decided(
                    k=said.k, at=self.now, command=said.command, attempt=said.attempt,
                    withheld=withheld, expires_at=self.now + 5 * MINUTE,
                ),
            ),
        )  # fmt: skip

    def end(self, proposal: Proposal, result: Result, reason: str = "") -> None:
        """What the executor made of the command."""
        said = proposal.proposed
        outcome = Outcome(
            id=f"o{len(self.log)}", kind="command.ended", source="t", occurred_at=self.now,
            received_at=self.now, key=proposal.job_key, command_id=f"{proposal.id}",
            command=said.command, fleet=proposal.key, job_key=proposal.job_key,
            attempt=said.attempt, n=proposal.n, stall=proposal.stall, since=proposal.since,
            opened_at=proposal.opened_at, fence=proposal.fence, result=result, reason=reason,
        )  # fmt: skip
        self.log += job_facts(outcome)
        self.fold()

    @property
    def status(self) -> str:
        found = self.ledger.job(KEY)
        assert found is not None
        return found[1].status

    @property
    def recovery(self) -> Recovery:
        job = decode(self.table[KEY.encode()])
        assert job.recovery is not None
        return job.recovery
