"""What a way of executing commands is. A new one is a file with a class of this shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pipeline.executor.fence import State
from topics.recovery import Command, Result


@dataclass(frozen=True, slots=True)
class Verdict:
    """How it ended. ``reason`` is a short word."""

    result: Result
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Again:
    """It did not work, and may work later: tried again until the command expires.

    Attributes:
        reason: a short word; how the command ends if it never works.
        after_s: what the other side asks to wait, if it does. Seconds.
    """

    reason: str
    after_s: float | None = None


class Via(Protocol):
    """One way of executing commands."""

    @property
    def name(self) -> str:
        """As ``--via`` takes it."""
        ...

    def cannot(self, command: Command) -> str:
        """Why it can never do such a command; empty when it may. Touches nothing."""
        ...

    def act(self, command: Command, state: State | None) -> Verdict | Again:
        """Do it, or try to, within some ten seconds.

        Called from several threads, for a command whose fence has just matched ``state``; that is
        None for a fleet's. Called again for the same command only after :class:`Again`.
        """
        ...
