"""Jobs and fleets together: whatever happens, in whatever order, no command is one too many."""

from __future__ import annotations

import random
from typing import Any, Final

from hypothesis import given
from hypothesis import strategies as st

from pipeline.windows import Pane, decode_pane
from tests.support.both_folds import BUDGET, JOBS_KNOWN, RULES, BothFolds, key_of
from tests.support.stall_world import HOUR, MINUTE, SECOND, Part
from topics.catalogue import COMMANDS, FLEETS, JOBS, PROBES
from topics.recovery import Answer, CommandKind, Mode, Result, RunnerState

_ANSWERS: Final = [Answer.QUEUED, Answer.QUEUED, *Answer]
_RESULTS: Final = [*Result, Result.DONE]
_MODES: Final = [Mode.PAUSED, Mode.LIVE, None, Mode.DRY_RUN]
_PAUSES: Final = [SECOND, 30 * SECOND, MINUTE, 3 * MINUTE, 6 * MINUTE, HOUR, 25 * HOUR]

#: Everything that may happen; ``x`` says to whom, or how.
OPS: Final[dict[str, Any]] = {
    "queued": lambda w, x: w.queued(x % JOBS_KNOWN),
    "claimed": lambda w, x: w.claimed(x % JOBS_KNOWN, x // JOBS_KNOWN, minted=False),
    "minted": lambda w, x: w.claimed(x % JOBS_KNOWN, x // JOBS_KNOWN),
    "started": lambda w, x: w.started(x % JOBS_KNOWN, f"vm-{x // 3 % JOBS_KNOWN}-0"),
    "completed": lambda w, x: x or w.completed(0),
    "idle": lambda w, x: w.seen(f"vm-{x % JOBS_KNOWN}-0", RunnerState.IDLE),
    "gone": lambda w, x: w.seen(f"vm-{x % JOBS_KNOWN}-0", RunnerState.GONE),
    "alive": lambda w, x: w.seen(f"vm-{x % JOBS_KNOWN}-0", None),
    "switch": lambda w, x: w.switch(_MODES[x % 4]),
    "answer": lambda w, x: w.answer(x % 3, _ANSWERS[x % len(_ANSWERS)]),
    "end": lambda w, x: w.end(x % 2, _RESULTS[x % len(_RESULTS)]),
    "tick": lambda w, x: w.tick(_PAUSES[x % len(_PAUSES)]),
    "foreign": lambda w, x: w.tick(by="another"),
    "behind": lambda w, x: w.tick(behind=2 * HOUR),
    "jobs": lambda w, x: w.fold(JOBS),
    "fleets": lambda w, x: w.fold(FLEETS),
    "work": lambda w, x: (w.tick(), w.work()),
    "jobs die": lambda w, x: w.fold(JOBS, durable=False),
    "fleets die": lambda w, x: w.fold(FLEETS, durable=False),
}
#: What makes something happen, more often.
_OFTEN: Final = ["work", "work", "work", "minted", "answer", "answer", "end", "tick"]


def after(ops: list[tuple[str, int]]) -> BothFolds:
    """The world, in which all that was said is read in the end, and the judge has been content."""
    world = BothFolds()
    for name, x in ops:
        OPS[name](world, x)
    world.work()
    # What is forgotten is forgotten at a tick, so one at which nobody acts follows what is read.
    world.tick(by="another")
    world.work()
    return world


def check(world: BothFolds) -> None:
    """What holds in the end, and for a rebuild."""
    known = {key_of(number): 0 for number in range(JOBS_KNOWN)}
    for command in world.commands.values():
        # Nothing is commanded that the log does not say was decided.
        assert command.id in world.decided()
        if command.job_key and command.command is not CommandKind.QUARANTINE:
            known[command.job_key] += 1
    # One may be closed, or its holder told, after all that was tried.
    assert max(known.values()) <= RULES.most_attempts + 4
    issued = {(each.job_key, each.attempt) for each in world.commands.values() if each.job_key}
    assert issued <= world.issued(), "a job was not told of its command"
    for topic in (JOBS, FLEETS):
        effects, again = world.rebuilt(topic)
        assert not [each for each in effects.outputs if each.topic in (PROBES, COMMANDS)]
        assert b"stall.proposed" not in b"".join(each.value or b"" for each in effects.outputs)
        assert again.table == world.parts[topic].table
        assert panes(again) == panes(world.parts[topic])


def panes(part: Part) -> dict[bytes, Pane]:
    """What windows are made of, without what is empty."""
    found = {key: decode_pane(value).filled() for key, value in part.panes.items()}
    return {key: pane for key, pane in found.items() if not pane.empty}


@given(
    st.lists(
        st.tuples(st.sampled_from([*OPS, *_OFTEN]), st.integers(0, 8)), min_size=10, max_size=60
    )
)
def test_whatever_happens_no_command_is_one_too_many_and_a_replay_decides_the_same(
    ops: list[tuple[str, int]],
) -> None:
    check(after(ops))


def test_the_interleavings_reach_commands_of_every_kind_deaths_and_ends() -> None:
    """The control: what is asserted above is about something."""
    rng = random.Random(5)
    names = [*OPS, *_OFTEN * 3]
    kinds, results, families, hours = set(), set(), set(), 0
    for _ in range(40):
        world = after([(rng.choice(names), rng.randrange(9)) for _ in range(80)])
        check(world)
        kinds |= {each.command for each in world.commands.values()}
        ends = [each for each in world.records(FLEETS) if hasattr(each, "result")]
        results |= {each.result for each in ends}
        kept = panes(world.parts[JOBS])
        families |= {family for pane in kept.values() for family in pane.families}
        hours += len(world.commands) > BUDGET.per_hour
    assert kinds >= {
        CommandKind.REQUEUE, CommandKind.RELEASE_CLAIM, CommandKind.WAKE_FLEET, CommandKind.CLOSE
    }  # fmt: skip
    assert results == set(Result)
    assert {"stranded.orphan", "stranded.stale_claim"} <= families
    assert hours
