"""The fold of fleets under any interleaving: rules are kept, and a replay says the same."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.fleet import FleetLedger
from pipeline.fleet.runners import gone_since, state_of
from pipeline.fleet.state import GONE_MS, UNHEARD_MS
from tests.support.fleet_world import (
    BASE,
    HOUR,
    MINUTE,
    SECOND,
    Bench,
    World,
    commands,
    depth,
    envelope,
    facts,
    host_gone,
    job,
    proposal,
    said,
    seen,
    switch,
    tick,
)
from topics.catalogue import COMMANDS
from topics.envelope import EARLIEST_MS, LATEST_MS
from topics.models import JobFact, Tick
from topics.recovery import (
    CommandKind,
    Decision,
    Depth,
    Ending,
    HostGone,
    Mode,
    Result,
    RunnerSeen,
    RunnerState,
    StallKind,
    Switch,
    Why,
)
from topics.tables import FLEETS_TABLE

BUSY, IDLE, CLAIMED = RunnerState.BUSY, RunnerState.IDLE, RunnerState.CLAIMED
STARTING, GONE = RunnerState.STARTING, RunnerState.GONE


_RESULTS = [Result.DONE, Result.FAILED, Result.REFUSED, Result.DONE]
_MODES = [Mode.PAUSED, None, Mode.LIVE, Mode.DRY_RUN]
_PAUSES = [SECOND, 5 * SECOND, 31 * SECOND, 125 * SECOND, 301 * SECOND, 601 * SECOND, HOUR]


def _runner(world: World, x: int) -> Any:
    name, at = f"r{x % 3}", world.now - x * SECOND
    states: list[Any] = [None, CLAIMED, BUSY, IDLE, GONE, BUSY, STARTING, None]
    if x == 7:
        return host_gone("m0", world.now)
    return seen(name, at, states[x], held=(x * 7 + world.life) % 5, claim=f"h{x}", host=f"m{x % 2}")


OPS: dict[str, Any] = {
    "propose": lambda w, x: w.propose(x % 5),
    "late": lambda w, x: w.propose(x % 5, ago=130 * SECOND),
    "repeat": lambda w, x: w.repeat(x),
    "tick": lambda w, x: w.clock(w.me),
    "foreign": lambda w, x: w.clock("other"),
    "old": lambda w, x: w.clock(w.me, ago=x * 20 * SECOND),
    "end": lambda w, x: w.end(x // 2, _RESULTS[x % 4]),
    "switch": lambda w, x: w.post(switch(w.now, _MODES[x % 4], "f0" if x > 3 else "")),
    "runner": lambda w, x: w.post(_runner(w, x)),
    "depth": lambda w, x: w.post(depth(w.now, x, w.now - x * 100 * SECOND, x % 2)),
    "pass": lambda w, x: w.pass_time(_PAUSES[x % 7]),
    "fold": lambda w, x: w.fold(x + 1),
    "write": lambda w, x: w.write(),
    "crash": lambda w, x: w.write(dies_after=x),
    "die": lambda w, x: w.live(),
    "work": lambda w, x: _work(w),
    "work more": lambda w, x: (w.pass_time(5 * SECOND), _work(w)),
}


def _work(world: World) -> None:
    """The owner's tick, and all that is there."""
    world.clock(world.me)
    world.fold(1_000)
    while world.folded:
        world.write()


def after(ops: list[tuple[str, int]]) -> World:
    world = World()
    for name, x in ops:
        OPS[name](world, x)
    world.drain()
    return world


@given(
    st.lists(
        st.tuples(st.sampled_from([*OPS, "propose", "propose", "work"]), st.integers(0, 7)),
        min_size=20,
        max_size=80,
    )
)
def test_any_interleaving_keeps_the_rules_and_a_replay_says_the_same(
    ops: list[tuple[str, int]],
) -> None:
    """The judge of the world asserts at every command; here is what a rebuild must show."""
    world = after(ops)
    rebuilt = World()
    rebuilt.now, rebuilt.log = world.now, list(world.log)
    rebuilt.ledger.me = "a new one"
    rebuilt.fold(len(rebuilt.log))
    effects, _ = rebuilt.folded[0]
    assert not [each for each in effects.outputs if each.topic == COMMANDS]
    assert not said(effects.outputs)
    rebuilt.write()
    assert rebuilt.durable.tables == world.durable.tables
    for ledger in (world.ledger, rebuilt.ledger):
        _counts_its_runners(ledger)
    # Jobs were told at least what the log says, and every command has its decision there.
    told = {fact.id: fact for fact in facts(world.durable.published)}
    assert {fact.id for fact in _decided(effects.outputs)} <= set(told)
    issued = {each.command_id for each in world.log if getattr(each, "command_id", "")}
    assert {c.id.removesuffix(":dry") for c in commands(world.durable.published)} <= issued


_LONG_AGO = (BASE - 400 * SECOND, BASE - 9 * 24 * HOUR, EARLIEST_MS)
_AT = st.sampled_from([BASE, BASE - 1, *_LONG_AGO, BASE + MINUTE, LATEST_MS])
_WORD = st.sampled_from(["", "r", "a:b:c", "a:\n:c", "x" * 256, "ключ|\x00", job(1)])
_KEY = st.sampled_from(["f0", "f" * 512, "[]", "~clock:0", "tick:0"])


def _odd(draw: st.DrawFn) -> Any:
    """Any record that the log can hold, with the strangest values it can have."""
    kinds = [RunnerSeen, HostGone, Depth, Decision, Ending, Switch, Tick]
    kind: Any = draw(st.sampled_from(kinds))
    said: dict[str, Any] = {
        **envelope(draw(st.sampled_from(["a", "b", "i" * 512])), draw(_AT), draw(_KEY)),
        "runner": draw(_WORD),
        "state": draw(st.sampled_from([None, *RunnerState])),
        "host": draw(_WORD),
        "job_key": draw(_WORD),
        "claim": draw(_WORD),
        "partition": draw(st.integers(0, 2)),
        "counts": {"queued": draw(st.integers(0, 3))},
        "queued_since": draw(st.one_of(st.none(), _AT)),
        "command_id": draw(st.sampled_from(["c", "d" * 512])),
        "command": draw(st.sampled_from(CommandKind)),
        "stall": StallKind.ORPHAN,
        "n": draw(st.integers(-1, 2)),
        "k": draw(st.integers(-1, 2)),
        "since": draw(_AT),
        "expires_at": draw(st.one_of(st.none(), _AT)),
        "withheld": draw(st.one_of(st.none(), st.sampled_from(Why))),
        "result": draw(st.sampled_from(Result)),
        "fleet": draw(_WORD),
        "mode": draw(st.one_of(st.none(), st.sampled_from(Mode))),
        "by": draw(st.sampled_from(["", "me", "other"])),
    }
    return kind(**said)


@given(st.lists(st.composite(_odd)(), max_size=25))
def test_nothing_that_the_log_can_hold_raises(told: list[Any]) -> None:
    bench = Bench()
    bench.tell(tick(BASE), *told, tick(BASE + SECOND), now=BASE + SECOND)
    # Some of the ticks told are later than the last: now comes one after all of them.
    bench.tell(tick(BASE + 2 * MINUTE), now=BASE + 2 * MINUTE)
    _counts_its_runners(bench.ledger)
    _keeps_none_for_too_long(bench.ledger)
    # And it is all found again.
    rows = bench.durable.tables[FLEETS_TABLE.name]
    again = FleetLedger(0)
    again.load({FLEETS_TABLE.name: list(rows.items())})
    _counts_its_runners(again)
    known = {name: fleet for name, fleet in bench.ledger.fleets.items() if fleet.known}
    assert set(again.fleets) == set(known)
    for name, fleet in known.items():
        for part in ("runners", "hosts", "pending", "issued", "endings", "told"):
            assert getattr(again.fleets[name], part) == getattr(fleet, part)


def _counts_its_runners(ledger: FleetLedger) -> None:
    for fleet in ledger.fleets.values():
        states = (state_of(each, fleet.host_gone(each)) for each in fleet.runners.values())
        assert fleet.counts() == Counter(states)


def _keeps_none_for_too_long(ledger: FleetLedger) -> None:
    for fleet in ledger.fleets.values():
        for runner in fleet.runners.values():
            gone = gone_since(runner, fleet.host_gone(runner))
            kept = UNHEARD_MS if gone is None else GONE_MS
            assert ledger.clock - max(runner.seen, gone or 0) <= kept


def _decided(outputs: list[Any]) -> list[JobFact]:
    return [fact for fact in facts(outputs) if fact.stall]


def test_the_interleavings_reach_commands_crashes_and_every_reason() -> None:
    """The control: what is asserted above is about something."""
    rng = random.Random(7)
    names = [*OPS, *["propose", "work"] * 6]
    issued, reasons, died = 0, set(), 0
    for _ in range(60):
        world = after([(rng.choice(names), rng.randrange(8)) for _ in range(150)])
        issued += len(commands(world.durable.published))
        died += world.life - 1
        reasons |= {getattr(each, "withheld", None) for each in world.log}
    assert issued > 300
    assert died > 150
    assert reasons - {None} == set(Why)


def test_a_ledger_without_a_name_or_a_wall_clock_never_acts() -> None:
    ledger = FleetLedger(0)
    ledger.apply(0, tick(BASE, by=""))
    ledger.apply(1, proposal(1, BASE))
    ledger.me = "me"
    ledger.apply(2, tick(BASE + 1))
    assert not [each for each in ledger.flush().outputs if each.topic == COMMANDS]
