"""Reconcilers that move pieces of work, tick by tick, and get stuck in the ways they are known to.

One does the same to the same thing at every tick, one moves its work back and forth, one is busy
and closes nothing, one stops. What is true at the end is told from full histories, which no fold
could afford to keep.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.simulate.telemetry import STEP_MS, Told

HOUR_MS: Final = 3_600_000
#: A level of who was silent for longer is not shown. ms.
SILENT_MS: Final = 300_000
#: What can be wrong with a reconciler.
ODDITIES: Final = ("", "", "loops", "flaps", "futile", "stops")
#: One that stops does so at a tick with one of these chances: soon, or late, or hardly ever.
_STOPS: Final = (0.1, 0.02, 0.002)
_NEXT: Final = {"open": "in_progress", "in_progress": "in_review", "in_review": "closed"}
_STATES: Final = tuple(_NEXT)


@dataclass
class _Reconciler:
    """One reconciler, with everything that it ever did."""

    name: str
    odd: str
    #: With which chance it stops at a tick, once it has ticked.
    stops: float
    has_stopped: bool = False
    #: Where each piece of work has been since when; and of those the ones that are not over.
    work: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    open: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    broken: dict[tuple[str, str], int] = field(default_factory=dict)
    ever_broken: bool = False
    acts: list[tuple[int, str, str]] = field(default_factory=list)
    computed: list[tuple[int, int]] = field(default_factory=list)
    tick: dict[str, Any] = field(default_factory=dict)
    ticked: int = 0


class _Fleet:
    """The reconcilers of one fleet."""

    def __init__(self, told: Told, fleet: str, rng: random.Random, pace: float) -> None:
        self.told, self.fleet, self.rng, self.pace = told, fleet, rng, pace

    def chance(self) -> float:
        """To compare with how probable something is in a tick at pace 1."""
        return self.rng.random() / self.pace

    def tell(self, kind: str, at: int, one: _Reconciler, **said: Any) -> None:
        self.told.tell(kind, self.fleet, at, reconciler=one.name, **said)

    def count(self, *what: str, value: int = 1) -> None:
        if value:
            self.told.count(self.fleet, *what, value=value)

    def step(self, one: _Reconciler, at: int) -> None:
        """One tick, with all that it does, unless it has stopped."""
        if one.has_stopped or (one.ticked and self.rng.random() < one.stops):
            one.has_stopped = True
            return
        done = Counter[str]()
        self.move_work(one, at, done)
        self.break_and_mend(one, at + 1)
        if one.odd == "loops":
            self.act(one, at + 2, "create_landing_mr", f"{one.name}-convoy", done)
        if one.odd == "futile":
            for entity in range(2):
                self.act(one, at + 2, "transition_agent", f"{one.name}-a{at + entity}", done)
        failed, unknown = self.effects(one, at + 3)
        rng = self.rng
        one.tick = {
            "events_drained": rng.randint(0, 9),
            "events_failed": int(rng.random() < 0.1),
            "actions": done.total(),
            "actions_by_type": dict(done),
            "effects_attempted": 3,
            "effects_succeeded": 3 - failed - unknown,
            "effects_failed": failed,
            "violations": len(one.broken),
            "pending_new": rng.randint(0, 4),
            "pending_retry": rng.randint(0, 2),
            "pending_oldest_ms": rng.randint(1, 60_000),
            "draining": rng.random() < 0.1,
            "breaker_open": rng.random() < 0.1,
            "failed": rng.random() < 0.05,
            "wall_ms": rng.randint(3, 900),
        }
        one.ticked = at + 4
        one.computed.append((at + 4, done.total()))
        if self.told.at - one.ticked < HOUR_MS:
            for type_, n in done.items():
                self.told.store(n, "actions_by_type", self.fleet, type_)
        self.tell(
            "reconciler.tick", at + 4, one, tick_id=f"{one.name}-{at}", interval_ms=STEP_MS,
            **one.tick,
        )  # fmt: skip
        self.count("reconciler_ticks", "failed" if one.tick["failed"] else "ok")
        self.count("reconciler_tick_seconds")
        self.count("reconciler_tick_seconds", "sum", value=one.tick["wall_ms"])
        self.count("reconciler_events_drained", value=one.tick["events_drained"])
        self.count("reconciler_events_failed", value=one.tick["events_failed"])
        self.count("reconciler_actions", value=done.total())
        self.count("reconciler_effects_attempted", value=3)
        self.count("reconciler_effects", "failed", value=failed)
        self.count("reconciler_effects", "unknown", value=unknown)
        self.count("reconciler_effects", "succeeded", value=3 - failed - unknown)

    def act(self, one: _Reconciler, at: int, type_: str, entity: str, done: Counter[str]) -> None:
        outcome = self.rng.choices(("applied", "failed", "suppressed"), (8, 1, 1))[0]
        self.tell("reconciler.action", at, one, type=type_, entity=entity, outcome=outcome)
        self.count("reconciler_action_results", outcome)
        done[type_] += 1
        if outcome != "suppressed":
            one.acts.append((at, type_, entity))

    def move_work(self, one: _Reconciler, at: int, done: Counter[str]) -> None:
        if self.chance() < 0.05 or not one.work:
            name = f"{one.name}-w{len(one.work)}"
            one.work[name] = one.open[name] = []
        for number, (name, path) in enumerate(list(one.open.items())):
            if not path:
                self.moved(one, at, name, "open")
                continue
            state, chance = path[-1][1], self.chance()
            if one.odd == "flaps" and number == 0:
                if chance < 0.05:
                    self.moved(one, at, name, "open" if state != "open" else "in_progress")
            elif chance < 0.02:
                if one.odd != "futile" or _NEXT[state] != "closed":
                    self.act(one, at + 1, "transition_bead", name, done)
                    self.moved(one, at + 1, name, _NEXT[state])
            elif chance < 0.024:
                self.moved(one, at + 1, name, "failed")
            elif chance < 0.03:
                self.tell("work.dispatch_failed", at + 1, one, work_id=name, reason="no_container")
                self.count("reconciler_dispatch_failures")
                one.acts.append((at + 1, "dispatch_failed", name))

    def moved(self, one: _Reconciler, at: int, name: str, to: str) -> None:
        path = one.work[name]
        said = path[-1][1] if path and self.rng.random() < 0.7 else ""
        self.tell("work.moved", at, one, work_id=name, from_state=said, to_state=to)
        self.count("reconciler_work_moved", to)
        path.append((at, to))
        if to not in _NEXT:
            del one.open[name]

    def break_and_mend(self, one: _Reconciler, at: int) -> None:
        for invariant in ("i3", "i6"):
            where = (invariant, f"{one.name}-{self.rng.randint(0, 2)}")
            chance = self.chance()
            if where not in one.broken and chance < 0.02:
                self.violation(one, at, "opened", where)
                self.count("reconciler_violations_opened")
                one.broken[where] = at
                one.ever_broken = True
            elif where in one.broken and chance < 0.05:
                self.violation(one, at, "closed", where)
                self.count("reconciler_violations_closed")
                del one.broken[where]
            elif where in one.broken and chance < 0.1:
                self.violation(one, at, "opened", where)  # said again

    def violation(self, one: _Reconciler, at: int, what: str, where: tuple[str, str]) -> None:
        kind = f"reconciler.violation_{what}"
        self.tell(kind, at, one, invariant=where[0], entity=where[1])

    def effects(self, one: _Reconciler, at: int) -> tuple[int, int]:
        """Three effects; how many failed, and of how many nobody knows."""
        ends = self.rng.choices(("succeeded", "failed", "unknown"), (7, 2, 1), k=3)
        for end in ends:
            took = self.rng.randint(5, 9_000)
            self.tell("reconciler.effect", at, one, type="poll_pr", outcome=end, duration_ms=took)
            self.count("reconciler_effect_results", end)
            self.count("reconciler_effect_seconds", end)
            self.count("reconciler_effect_seconds", end, "sum", value=took)
        return ends.count("failed"), ends.count("unknown")


class _Levels:
    """How things are at the end."""

    def __init__(self, told: Told, fleet: str) -> None:
        self.told, self.fleet, self.at = told, fleet, told.at

    def add(self, name: str, value: float, *labels: str) -> None:
        where = (name, self.fleet, *labels)
        self.told.levels[where] = self.told.levels.get(where, 0) + value

    def most(self, name: str, value: float, *labels: str) -> None:
        where = (name, self.fleet, *labels)
        self.told.levels[where] = max(self.told.levels.get(where, 0), value)

    def age(self, since: list[int]) -> float:
        return (self.at - min(since)) / 1000 if since else 0

    def of(self, one: _Reconciler) -> None:
        silent = self.at - one.ticked
        self.add("reconcilers", 1)
        self.most("reconciler_last_tick_timestamp_seconds", one.ticked / 1000)
        self.most("reconciler_silent_seconds", silent / 1000)
        self.add("reconcilers_overdue", int(silent > 3 * STEP_MS))
        if silent <= SILENT_MS:
            self.of_tick(one.tick)
        if silent <= SILENT_MS or one.ever_broken:
            self.add("reconciler_violations", len(one.broken))
            self.most("reconciler_violation_oldest_seconds", self.age(list(one.broken.values())))
        recent = [(type_, entity) for at, type_, entity in one.acts if self.at - at <= HOUR_MS]
        if silent <= SILENT_MS or recent:
            often = {entity for (_, entity), times in Counter(recent).items() if times > 10}
            self.add("reconciler_entities_in_loop", len(often))
        for invariant, _ in one.broken:
            self.told.store(1, "violations_by_invariant", self.fleet, invariant)
        self.of_work(one)

    def of_tick(self, tick: dict[str, Any]) -> None:
        self.most("reconciler_last_tick_seconds", tick["wall_ms"] / 1000)
        for state in ("new", "retry"):
            self.add("reconciler_pending_events", tick[f"pending_{state}"], state)
            self.most("reconciler_pending_events_largest", tick[f"pending_{state}"], state)
        self.most("reconciler_pending_oldest_seconds", tick["pending_oldest_ms"] / 1000)
        self.add("reconciler_breaker_open", tick["breaker_open"])
        self.add("reconciler_draining", tick["draining"])

    def of_work(self, one: _Reconciler) -> None:
        paths = one.work.values()
        for state in _STATES:
            since = [path[-1][0] for path in paths if path[-1][1] == state]
            self.add("reconciler_work", len(since), state)
            self.most("reconciler_work_oldest_seconds", self.age(since), state)
        self.add("reconciler_work_flapping", sum(self.returns(path) > 3 for path in paths))
        closed = [at for path in paths for at, state in path if state == "closed"]
        waits = [path[0][0] for path in paths if path[-1][1] in _STATES]
        busy = sum(n for at, n in one.computed if self.at - at // 60_000 * 60_000 <= HOUR_MS)
        self.add(
            "reconcilers_without_progress",
            int(
                busy > 200
                and not any(self.at - at <= HOUR_MS for at in closed)
                and any(self.at - at >= HOUR_MS for at in waits)
            ),
        )

    def returns(self, path: list[tuple[int, str]]) -> int:
        """How often it came back to where it had been, within half an hour."""
        first = next((n for n, (at, _) in enumerate(path) if self.at - at <= 1_800_000), len(path))
        states = [state for _, state in path[max(0, first - 1) :]]
        return sum(state in states[:n] for n, state in enumerate(states))


def play(
    fleets: Sequence[str],
    start: int,
    end: int,
    seed: int = 0,
    each: int = 3,
    pace: float = 1,
    at: int | None = None,
) -> Told:
    """What the reconcilers of some fleets say between two times in ms. They tick in every step.

    ``pace``: how many times as often as usual work comes and moves, and something breaks; ``at``:
    of which moment the truth is told, the end unless given.
    """
    told = Told(at=end if at is None else at)
    for name in fleets:
        rng = random.Random(f"{seed}|reconcilers|{name}")
        fleet, levels = _Fleet(told, name, rng, pace), _Levels(told, name)
        ones = []
        for which in range(each):
            odd = rng.choice(ODDITIES)
            stops = rng.choice(_STOPS) if odd == "stops" else 0.0
            ones.append(_Reconciler(f"c{which}", odd, stops))
        for begins in range(start, end, STEP_MS):
            for one in ones:
                fleet.step(one, begins)
        for one in ones:
            if one.ticked:
                levels.of(one)
    told.events.sort(key=lambda event: (event.occurred_at, event.id))
    return told
