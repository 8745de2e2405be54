"""What a tick does at most, however much is due at once; and what is done between two."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.effects import Effects
from pipeline.ledger import Ledger, Retention, ledger, stalls
from pipeline.ledger.limits import heard_until
from pipeline.recovery import RecoveryPolicy
from tests.support.stall_loop import BASE, POLICY, SECOND, TICK, Loop
from topics.catalogue import JOB_STATES, JOBS, PROBES
from topics.models import Clock, JobFact, Milestone, Tick
from topics.reading import read
from topics.recovery import PROBE, Answer, CommandKind, Probe, Result
from topics.tables import JOBS_TABLE, WINDOWS_TABLE

NUMBER = 25


class Part:
    """A ledger of its own partition, and the table behind it."""

    def __init__(self, table: dict[bytes, bytes] | None = None) -> None:
        self.table = {} if table is None else table
        self.ledger = Ledger(0, self.table.get)
        self.ledger.me = "me"
        self.ledger.load({JOBS_TABLE.name: self.table.items(), WINDOWS_TABLE.name: ()})
        self._offset = 0

    def take(self, record: JobFact | Tick) -> None:
        self._offset += 1
        self.ledger.apply(self._offset, record, record.received_at)

    def flush(self) -> Effects:
        effects = self.ledger.flush()
        for key, value in effects.writes(JOBS_TABLE):
            if value is None:
                del self.table[key]
            else:
                self.table[key] = value
        self.ledger.written()
        return effects

    def tick(self, at: int) -> Effects:
        self.ledger.now = at
        self.take(
            Tick(
                id=f"tick:0:{at}",
                source="test",
                occurred_at=at,
                received_at=at,
                key="tick:0",
                by="me",
                sources_to=at,
            )
        )
        return self.flush()

    def asked(self, at: int) -> list[str]:
        """Of which jobs a tick asks, in this order."""
        outputs = self.tick(at).outputs
        return [
            read(PROBE, each.value).key
            for each in outputs
            if each.topic == PROBES and each.value is not None
        ]


def key(number: int) -> str:
    return f"github:github.com:{number}"


def queued(number: int, at: int) -> JobFact:
    return JobFact(
        id=f"queued:{number}",
        source="test",
        occurred_at=at,
        received_at=at,
        key=key(number),
        cause="workflow_job.queued",
        times={Milestone.QUEUED: {Clock.PROVIDER: at}},
    )


@pytest.fixture
def part() -> Part:
    """Jobs that were queued one after the other, the last one first."""
    made = Part()
    for number in range(NUMBER):
        made.take(queued(number + 1, BASE - number))
    made.flush()
    return made


def test_what_is_due_at_once_is_looked_at_over_several_ticks_the_oldest_first(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalls, "MOST_LOOKS", 10)
    due = BASE + RecoveryPolicy().stale_queue_ms
    asked = [part.asked(due + n * TICK) for n in range(4)]
    assert [len(each) for each in asked] == [10, 10, 5, 0]
    assert [each for some in asked for each in some] == [key(n) for n in range(NUMBER, 0, -1)]


def test_a_job_that_moves_on_while_it_waits_for_its_look_is_not_asked_about(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalls, "MOST_LOOKS", 10)
    due = BASE + RecoveryPolicy().stale_queue_ms
    part.tick(due)
    for number in range(1, NUMBER + 1):
        started = queued(number, due).model_copy(
            update={
                "id": f"started:{number}",
                "cause": "workflow_job.in_progress",
                "times": {Milestone.STARTED: {Clock.PROVIDER: due}},
            }
        )
        part.take(started)
    part.flush()
    assert part.asked(due + TICK) == []
    # But after an hour of running, those that were asked about as well.
    running = RecoveryPolicy().running_ms
    later = [each for n in range(3) for each in part.asked(due + running + n * TICK)]
    assert sorted(later) == sorted(key(n) for n in range(1, NUMBER + 1))


def test_who_loads_the_table_in_between_looks_at_the_rest(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalls, "MOST_LOOKS", 10)
    due = BASE + RecoveryPolicy().stale_queue_ms
    part.ledger.now = due
    outputs = part.tick(due).outputs
    for each in outputs:
        if each.topic == JOBS and each.value is not None:
            part.take(JobFact.model_validate_json(each.value))
    part.flush()
    heir = Part(part.table)
    asked = [each for n in range(1, 5) for each in heir.asked(due + n * TICK)]
    assert asked == [key(n) for n in range(15, 0, -1)]


@pytest.mark.parametrize("loaded", [False, True])
def test_what_expires_at_once_is_forgotten_over_several_ticks_alike_by_whom_it_was_loaded(
    part: Part, monkeypatch: pytest.MonkeyPatch, loaded: bool
) -> None:
    monkeypatch.setattr(ledger, "MOST_FORGOTTEN", 10)
    due = heard_until(BASE, BASE) + Retention().unfinished_ms
    gone = []
    for n in range(4):
        effects = part.tick(due + n * TICK)
        gone.append([each.key for each in effects.outputs if each.topic == JOB_STATES])
        assert all(each not in part.table for each in gone[-1])
        if loaded:
            part = Part(part.table)
    assert [len(each) for each in gone] == [10, 10, 5, 0]
    keys = sorted(key(n).encode() for n in range(1, NUMBER + 1))
    assert [each for some in gone for each in some] == keys
    assert not part.ledger.index


# -- between two ticks -------------------------------------------------------------------------


def asked() -> tuple[Loop, Probe]:
    """An orphan about which the provider was asked at the last tick."""
    loop = Loop()
    loop.tick()
    loop.queued()
    loop.claimed()
    loop.wait(POLICY.orphan_ms + TICK)
    assert not loop.ledger.take_answered()
    loop.now += SECOND
    return loop, loop.probes[-1]


def test_an_answer_is_looked_at_before_the_next_tick_and_time_stands_still() -> None:
    loop, probe = asked()
    loop.answer(probe, Answer.QUEUED)
    assert loop.ledger.take_answered()
    assert not loop.ledger.take_answered()
    clock, written = loop.ledger.clock, len(loop.log)
    loop.tick(SECOND, looks_only=True)
    (proposal,) = loop.proposals
    assert proposal.proposed.command is CommandKind.REQUEUE
    assert proposal.occurred_at == loop.now > clock
    assert loop.ledger.clock == clock
    # Nothing but the tick and what was proposed: no samples, no depth.
    assert len(loop.log) == written + 2
    loop.tick()
    assert len(loop.proposals) == 1


@pytest.mark.parametrize("answer", [each for each in Answer if each is not Answer.QUEUED])
def test_an_answer_that_proves_nothing_or_the_end_waits_for_the_clock(answer: Answer) -> None:
    loop, probe = asked()
    loop.answer(probe, answer)
    assert not loop.ledger.take_answered()


def test_whoever_met_a_tick_since_needs_no_look() -> None:
    loop, probe = asked()
    loop.answer(probe, Answer.QUEUED)
    loop.tick()
    assert len(loop.proposals) == 1
    assert not loop.ledger.take_answered()


@pytest.mark.parametrize(
    "wrong", [{"by": "somebody else"}, {"sources_to": None}, {"occurred_at": BASE}]
)
def test_a_look_that_is_not_ones_own_or_not_fresh_moves_nothing(wrong: dict[str, Any]) -> None:
    loop, probe = asked()
    loop.answer(probe, Answer.QUEUED)
    loop.tick(SECOND, looks_only=True, **wrong)
    assert not loop.proposals
    loop.tick(SECOND, looks_only=True)
    assert len(loop.proposals) == 1


def test_an_answer_is_good_for_one_command_also_when_the_fleets_clock_is_behind() -> None:
    loop, probe = asked()
    loop.answer(probe, Answer.QUEUED)
    loop.tick(SECOND, looks_only=True)
    (proposal,) = loop.proposals
    # The fleet has not met a tick since before the answer.
    now, loop.now = loop.now, loop.now - 2 * TICK
    loop.decide(proposal)
    loop.now = now
    loop.end(proposal, Result.FAILED)
    loop.wait(POLICY.cool_down_ms + 2 * TICK)
    assert len(loop.proposals) == 1
    assert len(loop.probes) == 2
    loop.answer(loop.probes[-1], Answer.QUEUED)
    loop.tick()
    assert [each.proposed.attempt for each in loop.proposals] == [1, 2]
