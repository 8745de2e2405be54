"""What a tick does at most, however much is due at once."""

from __future__ import annotations

import pytest

from pipeline.effects import Effects
from pipeline.ledger import Ledger, Retention, ledger, stalls
from pipeline.ledger.limits import heard_until
from pipeline.recovery import RecoveryPolicy
from topics.catalogue import JOB_STATES, JOBS, PROBES
from topics.models import Clock, JobFact, Milestone, Tick
from topics.reading import read
from topics.recovery import PROBE
from topics.tables import JOBS_TABLE, WINDOWS_TABLE

BASE = 1_700_000_040_000
TICK_MS = 5_000
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
    asked = [part.asked(due + n * TICK_MS) for n in range(4)]
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
    assert part.asked(due + TICK_MS) == []
    # But after an hour of running, those that were asked about as well.
    running = RecoveryPolicy().running_ms
    later = [each for n in range(3) for each in part.asked(due + running + n * TICK_MS)]
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
    asked = [each for n in range(1, 5) for each in heir.asked(due + n * TICK_MS)]
    assert asked == [key(n) for n in range(15, 0, -1)]


@pytest.mark.parametrize("loaded", [False, True])
def test_what_expires_at_once_is_forgotten_over_several_ticks_alike_by_whom_it_was_loaded(
    part: Part, monkeypatch: pytest.MonkeyPatch, loaded: bool
) -> None:
    monkeypatch.setattr(ledger, "MOST_FORGOTTEN", 10)
    due = heard_until(BASE, BASE) + Retention().unfinished_ms
    gone = []
    for n in range(4):
        effects = part.tick(due + n * TICK_MS)
        gone.append([each.key for each in effects.outputs if each.topic == JOB_STATES])
        assert all(each not in part.table for each in gone[-1])
        if loaded:
            part = Part(part.table)
    assert [len(each) for each in gone] == [10, 10, 5, 0]
    keys = sorted(key(n).encode() for n in range(1, NUMBER + 1))
    assert [each for some in gone for each in some] == keys
    assert not part.ledger.index
