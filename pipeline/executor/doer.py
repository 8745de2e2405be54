"""One attempt at one command: what is checked, what is written before and after.

In this order, for every way of executing:

1. what has ended, or was begun by somebody else, is left alone; should who began it be silent for a
   lease, nobody acts again: it ends as failed, ``interrupted``;
2. past its time it ends as expired;
3. what this way can never do ends as cannot;
4. the fence: a job that is not what was judged ends it as refused. Unknown means wait;
5. ``command.started`` is written, and read back: the first in the log may act;
6. the act; then ``command.ended``.

So a process that dies between 5 and 6 has done it at most once, and nobody does it again.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from time import monotonic
from typing import Final, Literal, Protocol

from pipeline.executor.fence import Ruling
from pipeline.executor.log import OutcomeLog
from pipeline.executor.outcomes import ended, now_ms, started
from pipeline.executor.publisher import Publisher
from pipeline.executor.via import Again, Verdict, Via
from sinks.writer import Backoff
from topics.recovery import Command, Result

log = logging.getLogger(__name__)

#: How often it is looked whether somebody else has ended a command. Seconds.
_LOOK_S: Final = 0.5
#: It waits for somebody else.
HELD: Final = "held"
#: How long what was written may take to be read. Seconds.
_READ_BACK_S: Final = 10.0

#: How a command ended for us: its result, or that it was somebody else's.
Ending = Result | Literal["duplicate"]


@dataclass(frozen=True, slots=True)
class Later:
    """Not ended; to be tried again after so many seconds. Because of ``why``."""

    after_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Left:
    """Not ended, and not tried again here: the process ends."""


@dataclass(slots=True)
class Task:
    """A command in hand, and how far it is.

    Attributes:
        attempts: how often it was tried.
        written: when it was last written that we are at it (monotonic); None when never.
        why: what it waits for, or why it did not work last time.
    """

    command: Command
    attempts: int = 0
    written: float | None = None
    why: str = ""


class Checks(Protocol):
    """Who knows the fence."""

    def check(self, command: Command) -> Ruling:
        """What it says now. Never raises."""
        ...


@dataclass(frozen=True)
class Doer:
    """Tries commands. Several threads use one, each for another command.

    Attributes:
        holder: the name of this process in the log.
        lease_s: silence after which whoever began a command counts as dead. Well above the time
            that one act takes.
        stopping: the process is to end: nothing is begun any more.
    """

    via: Via
    states: Checks
    log: OutcomeLog
    publisher: Publisher
    holder: str
    lease_s: float
    backoff: Backoff
    stopping: threading.Event

    def attempt(self, task: Task) -> Ending | Later | Left:
        """Try once. What it finds out stays in the task."""
        command = task.command
        deed = self.log.get(command.id)
        if deed is not None and deed.ended:
            return "duplicate"
        if deed is not None and deed.holder not in ("", self.holder):
            if not deed.lapsed(self.lease_s, monotonic(), now_ms()):
                return Later(_LOOK_S, HELD)
            return self.end(task, Verdict(Result.FAILED, "interrupted"))
        if now_ms() >= command.expires_at:
            return self.end(task, self._too_late(task))
        never = self._never(command)
        if never:
            return self.end(task, Verdict(Result.CANNOT, never))
        ruling = self._ruling(command)
        if ruling.refused:
            return self.end(task, Verdict(Result.REFUSED, ruling.refused))
        if ruling.unknown:
            return self._later(task, Again("no_state"), ruling.unknown)
        if self.stopping.is_set():
            return Left()
        if not self._begin(task):
            return Left() if self.stopping.is_set() else Later(_LOOK_S, HELD)
        if now_ms() >= command.expires_at:
            return self.end(task, self._too_late(task))
        said = self._act(command, ruling)
        return self._later(task, said) if isinstance(said, Again) else self.end(task, said)

    def end(self, task: Task, verdict: Verdict) -> Ending | Left:
        """Write how it ended."""
        command = task.command
        last = ended(command, self.via.name, now_ms(), verdict.result, verdict.reason)
        if not self.publisher.outcome(last, self.stopping.is_set):
            return Left()
        log.info("%s %s: %s%s", command.command, command.job_key or command.fleet,
                 verdict.result, f" ({verdict.reason})" if verdict.reason else "")  # fmt: skip
        return verdict.result

    def _too_late(self, task: Task) -> Verdict:
        if task.why:
            return Verdict(Result.FAILED, task.why)
        return Verdict(Result.EXPIRED)

    def _begin(self, task: Task) -> bool:
        """Write that we are at it, unless that was just said; whether it is ours to do."""
        now = monotonic()
        if task.written is not None and now - task.written < self.lease_s / 3:
            return True
        command = task.command
        first = started(command, self.via.name, now_ms())
        if not self.publisher.outcome(first, _GiveUp(self.stopping, command.expires_at)):
            return False
        written, task.written = task.written, now
        if written is None and self.log.holder(command.id, _READ_BACK_S) != self.holder:
            # Somebody was faster, or we cannot know: then it is not ours.
            task.written = None
            return False
        return True

    def _never(self, command: Command) -> str:
        try:
            return self.via.cannot(command)
        except Exception as error:
            log.exception("%s cannot be understood", command.id)
            return f"unexpected: {type(error).__name__}"

    def _ruling(self, command: Command) -> Ruling:
        try:
            return self.states.check(command)
        except Exception:
            log.exception("the fence of %s cannot be checked", command.id)
            return Ruling(unknown="unexpected")

    def _act(self, command: Command, ruling: Ruling) -> Verdict | Again:
        try:
            return self.via.act(command, ruling.state)
        except Exception as error:
            # Nobody can tell how far it came, so it is not tried again.
            log.exception("%s failed unexpectedly", command.id)
            return Verdict(Result.FAILED, f"unexpected: {type(error).__name__}")

    def _later(self, task: Task, said: Again, shown: str = "") -> Later:
        task.attempts += 1
        task.why = said.reason
        pause = self.backoff.delay(task.attempts)
        # Whoever waits longer than a third of a lease without a word would count as dead.
        pause = min(max(pause, said.after_s or 0.0), self.lease_s / 3)
        left = (task.command.expires_at - now_ms()) / 1000
        return Later(max(0.0, min(pause, left)), shown or said.reason)


@dataclass(frozen=True, slots=True)
class _GiveUp:
    stopping: threading.Event
    expires_at: int

    def __call__(self) -> bool:
        return self.stopping.is_set() or now_ms() >= self.expires_at
