"""What one partition knows of one fleet: records and runners by name, each a row of the table.

Joined, not assigned: a decision, an ending, a switch is known by its id whatever came before it,
and what is dropped is dropped by age against the partition's clock. So what a ledger knew at once
when it decided and what a replay learns from the log end alike.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from pipeline.fleet.breaker import Breaker, breaker
from pipeline.fleet.policy import HOUR_MS, MINUTE_MS, FleetPolicy
from pipeline.fleet.runners import Runner, gone_since, state_of
from topics.recovery import Decision, Ending, Proposal, Result, RunnerState, Why, command_id

#: A proposal is judged by what was true then: for so long.
FRESH_MS: Final = 2 * MINUTE_MS
#: A proposal or a decision so far ahead of the clock is of somebody whose clock is wrong.
AHEAD_MS: Final = HOUR_MS
#: What was withheld is remembered for longer than what it concerns can wait.
TOLD_MS: Final = 10 * MINUTE_MS
#: A command that nobody has ended, as long as the log itself keeps it.
UNENDED_MS: Final = 8 * 24 * HOUR_MS
#: Endings that the breaker looks at: so many, and not older.
MAX_ENDINGS: Final = 50
ENDING_MS: Final = 6 * HOUR_MS
#: Runners kept of a fleet; one that is gone is shown for an hour, one unheard of for a week.
MAX_RUNNERS: Final = 10_000
GONE_MS: Final = HOUR_MS
UNHEARD_MS: Final = 7 * 24 * HOUR_MS
HOST_MS: Final = 24 * HOUR_MS


class HostLost(Struct, frozen=True):
    """A host is gone since ``at``."""

    at: int


class Told(Struct, frozen=True):
    """For which reasons a proposal, or a wake-up, was withheld, and when first."""

    at: int
    why: tuple[str, ...]


class Waiting(Struct, frozen=True):
    """One partition's queue of the fleet, as last told. Not in the table: it is told every tick."""

    at: int
    queued: int
    since: int | None


class Fleet:
    """One fleet. Its ledger changes it, and writes what has changed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.runners: dict[str, Runner] = {}
        self.hosts: dict[str, HostLost] = {}
        #: By job: the latest proposal of each that no command was issued for.
        self.pending: dict[str, Proposal] = {}
        #: By the command's id.
        self.issued: dict[str, Decision] = {}
        self.endings: dict[str, Ending] = {}
        #: By proposal, see :func:`told_name`.
        self.told: dict[str, Told] = {}
        #: By partition of the jobs.
        self.depth: dict[int, Waiting] = {}
        #: Runners that were said to be silent, and since when; not in the table.
        self.silent: dict[str, int] = {}
        self._by_job: dict[str, list[Decision]] | None = None
        self._breaker: Breaker | None = None
        # The state each runner is counted in, and how many there are in each.
        self._state_of: dict[str, RunnerState] = {}
        self._counts: Counter[RunnerState] = Counter()
        # Heap of the (time, runner) at which one may be forgotten, and that time by runner. What
        # was seen since is found out when it has come.
        self._ages: list[tuple[int, str]] = []
        self._age_of: dict[str, int] = {}

    def changed(self) -> None:
        """Commands or endings are no longer as they were."""
        self._by_job = self._breaker = None

    def runner_changed(self, name: str) -> None:
        """A runner is no longer as it was, or is no more."""
        runner = self.runners.get(name)
        before = self._state_of.pop(name, None)
        if before is not None:
            self._counts[before] -= 1
        if runner is None:
            self._age_of.pop(name, None)
            return
        state = self._state_of[name] = state_of(runner, self.host_gone(runner))
        self._counts[state] += 1
        due = self._kept_until(runner)
        known = self._age_of.get(name)
        if known is None or due < known:
            self._remember(due, name)

    def host_changed(self, host: str) -> None:
        """A host is gone, or it is forgotten that it was."""
        for name, runner in self.runners.items():
            if runner.host == host:
                self.runner_changed(name)

    @property
    def known(self) -> bool:
        """Whether the table has anything of it."""
        return bool(
            self.runners or self.hosts or self.pending or self.issued or self.endings or self.told
        )

    # -- what is asked of it -------------------------------------------------------------------

    def counts(self) -> dict[RunnerState, int]:
        """Its runners by state."""
        return {state: n for state, n in sorted(self._counts.items()) if n}

    def issued_for(self, job_key: str) -> Iterable[Decision]:
        """The commands of a job that are remembered."""
        if self._by_job is None:
            self._by_job = {}
            for each in self.issued.values():
                self._by_job.setdefault(each.job_key, []).append(each)
        return self._by_job.get(job_key, ())

    def issued_since(self, at: int) -> int:
        """Commands that were issued after a time."""
        return sum(1 for each in self.issued.values() if each.occurred_at > at)

    def flies(self, command: Decision, clock: int) -> bool:
        """Whether a command may still be done by somebody."""
        return command.command_id not in self.endings and clock < (command.expires_at or 0)

    def was_refused(self, command: Decision) -> bool:
        """Whether the job had moved on, so that the command did nothing."""
        ending = self.endings.get(command.command_id)
        return ending is not None and ending.result is Result.REFUSED

    def in_flight(self, clock: int) -> int:
        """Commands that may still be done by somebody."""
        return sum(1 for each in self.issued.values() if self.flies(each, clock))

    def overdue(self, clock: int) -> list[Decision]:
        """Commands that nobody has ended in time."""
        return [
            each
            for each in self.issued.values()
            if each.command_id not in self.endings and clock >= (each.expires_at or 0)
        ]

    def is_disposed(self, proposal: Proposal) -> bool:
        """Whether this proposal, or a later one of its job, is known or was issued."""
        if proposed_id(proposal) in self.issued:
            return True
        number = number_of(proposal)
        known = self.pending.get(proposal.job_key)
        if known is not None and number <= number_of(known):
            return True
        return any((each.n, each.k) >= number for each in self.issued_for(proposal.job_key))

    def breaker(self, policy: FleetPolicy) -> Breaker:
        """How its commands ended, in one word."""
        if self._breaker is None:
            self._breaker = breaker(self.endings.values(), policy)
        return self._breaker

    def host_gone(self, runner: Runner) -> int | None:
        """Since when the runner's host is gone, if it is."""
        lost = self.hosts.get(runner.host)
        return lost.at if lost else None

    # -- what the clock forgets ----------------------------------------------------------------

    def outdated(self, clock: int) -> Iterator[tuple[str, str]]:
        """Names of what is to be forgotten, each with its part."""
        for name, proposal in self.pending.items():
            if not is_fresh(proposal, clock):
                yield "pending", name
        for name, told in self.told.items():
            if _off(told.at, clock, TOLD_MS):
                yield "told", name
        for name, lost in self.hosts.items():
            if _off(lost.at, clock, HOST_MS):
                yield "hosts", name
        kept = set()
        for name, command in self.issued.items():
            known = HOUR_MS if name in self.endings else UNENDED_MS
            if _off(command.occurred_at, clock, known):
                yield "issued", name
            else:
                kept.add(name)
        latest = sorted(self.endings.values(), key=_when, reverse=True)
        for number, ending in enumerate(latest):
            old = number >= MAX_ENDINGS or _off(ending.occurred_at, clock, ENDING_MS)
            if old and ending.command_id not in kept:
                yield "endings", ending.command_id
        yield from self._outdated_runners(clock)

    def _outdated_runners(self, clock: int) -> Iterator[tuple[str, str]]:
        outdated: dict[str, None] = {}
        while self._ages and self._ages[0][0] < clock:
            due, name = heapq.heappop(self._ages)
            if self._age_of.get(name) != due:
                continue
            until = self._kept_until(self.runners[name])
            if until < clock:
                outdated[name] = None
            else:
                self._remember(until, name)
        for name in outdated:
            yield "runners", name
        surplus = len(self.runners) - len(outdated) - MAX_RUNNERS
        if surplus > 0:
            kept = ((*self._seen(one), name) for name, one in self.runners.items())
            oldest = sorted((at, name) for at, _, name in kept if name not in outdated)
            for _, name in oldest[:surplus]:
                yield "runners", name

    def _seen(self, runner: Runner) -> tuple[int, bool]:
        """When it was last heard of, and whether it is gone."""
        gone = gone_since(runner, self.host_gone(runner))
        return max(runner.seen, gone or 0), gone is not None

    def _kept_until(self, runner: Runner) -> int:
        seen, is_gone = self._seen(runner)
        return seen + (GONE_MS if is_gone else UNHEARD_MS)

    def _remember(self, due: int, name: str) -> None:
        self._age_of[name] = due
        heapq.heappush(self._ages, (due, name))


def number_of(proposal: Proposal) -> tuple[int, int]:
    """Which of a job's proposals it is: the stall's number, then its own."""
    return proposal.n, proposal.proposed.k


def proposed_id(proposal: Proposal) -> str:
    """The id of the command that is proposed."""
    asked = proposal.proposed
    return command_id(asked.command, proposal.job_key, asked.attempt)


def is_settled_by(proposal: Proposal, issued: Decision) -> bool:
    """Whether a command that was issued answers the proposal, or one that came after it."""
    return number_of(proposal) <= (issued.n, issued.k) or proposed_id(proposal) == issued.command_id


def told_name(command_id: str, n: int, k: int) -> str:
    """Under what it is remembered that a proposal was withheld."""
    return f"{command_id}|{n}|{k}"


def is_fresh(proposal: Proposal, clock: int) -> bool:
    """Whether a proposal may be decided at a time. Before the first tick nobody knows."""
    return not clock or -AHEAD_MS <= clock - proposal.occurred_at <= FRESH_MS


def join_endings(one: Ending | None, other: Ending) -> Ending:
    """Of two endings of a command the executor's word, else the earlier."""
    if one is None:
        return other
    return min(one, other, key=lambda each: (each.result is Result.EXPIRED, *_when(each)))


def join_told(one: Told | None, why: Why, at: int) -> Told:
    """What was told, and one reason more."""
    if one is None:
        return Told(at, (why.value,))
    return Told(min(one.at, at), tuple(sorted({*one.why, why.value})))


def _when(each: Ending) -> tuple[int, str]:
    return each.occurred_at, each.id


def _off(at: int, clock: int, kept: int) -> bool:
    """Whether something lies too long before the clock, or impossibly far ahead of it."""
    return clock - at > kept or at - clock > 24 * HOUR_MS
