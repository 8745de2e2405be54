"""Outcomes: made of commands, and what the log of them says about each command.

Everybody who executes commands writes to ``runners.outcomes`` before acting, under the command's
key, so in one partition and one order. The first ``command.started`` of a command there decides who
may act; whoever reads another's name before its own leaves it alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from topics.recovery import Command, Outcome, Result

#: Header of a started record: the process that is about to act.
HOLDER: Final = "runnerstream-executor"
#: What a reason may have: it becomes a :class:`topics.recovery.Ended`.
_MOST_REASON: Final = 256
#: The longest id that leaves room for what outcomes add to it.
MOST_ID: Final = 500


def started(command: Command, via: str, now: int) -> Outcome:
    """It is about to be done. ``now`` is the wall clock in ms."""
    return _outcome(command, via, now)


def ended(command: Command, via: str, now: int, result: Result, reason: str = "") -> Outcome:
    """It has ended so."""
    return _outcome(command, via, now, result, reason)


def _outcome(
    command: Command, via: str, now: int, result: Result | None = None, reason: str = ""
) -> Outcome:
    word = "started" if result is None else "ended"
    return Outcome(
        id=f"{command.id}:{word}",
        kind=f"command.{word}",  # type: ignore[arg-type]
        source="runnerstream",
        occurred_at=now,
        received_at=now,
        key=command.key,
        trace=command.trace,
        command_id=command.id,
        command=command.command,
        fleet=command.fleet,
        job_key=command.job_key,
        attempt=command.attempt,
        n=command.n,
        stall=command.reason,
        since=command.since,
        opened_at=command.opened_at,
        fence=command.fence,
        result=result,
        reason=reason[:_MOST_REASON],
        via=via,
    )


@dataclass(slots=True)
class Deed:
    """What the log says about one command.

    Attributes:
        holder: who began it first; empty while nobody has.
        heard: when its holder was last read to be at it. Monotonic, seconds.
        said_ms: the time of the latest record about it, by the clock of who wrote it.
        ended: whether it has ended.
    """

    holder: str = ""
    heard: float = 0.0
    said_ms: int = 0
    ended: bool = False

    def lapsed(self, lease_s: float, now: float, now_ms: int) -> bool:
        """Whether who began it has not been heard of for a lease, by our clock since we read it.

        What was said long ago need not be waited for, however wrong clocks may be.
        """
        return now - self.heard >= lease_s or now_ms - self.said_ms >= 10_000 * max(lease_s, 30)


class Deeds:
    """What the log says about all commands, from some time on. Not safe between threads."""

    def __init__(self) -> None:
        self._known: dict[str, Deed] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, command_id: str) -> Deed | None:
        """What is known of a command; None when nothing is."""
        return self._known.get(command_id)

    def add(self, outcome: Outcome, holder: str, now: float) -> None:
        """The next record of the log. A started one without a holder is somebody's, too."""
        deed = self._known.setdefault(outcome.command_id, Deed())
        deed.said_ms = max(deed.said_ms, outcome.occurred_at)
        if outcome.kind == "command.ended":
            deed.ended = True
            return
        holder = holder or "?"
        deed.holder = deed.holder or holder
        if deed.holder == holder:
            deed.heard = now

    def clear(self) -> None:
        """Before the log is read again."""
        self._known.clear()

    def forget(self, before_ms: int) -> None:
        """Drop what nothing has been said of since."""
        old: Iterable[str] = [k for k, deed in self._known.items() if deed.said_ms < before_ms]
        for command_id in old:
            del self._known[command_id]


def now_ms() -> int:
    """The wall clock in ms."""
    return int(time.time() * 1000)
