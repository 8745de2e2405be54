"""``print``: a command as a line of text. Nothing is done."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from pipeline.executor.fence import State
from pipeline.executor.via import Verdict
from topics.recovery import Command, Result


def parts(command: Command, note: str = "") -> list[str]:
    """Time, command, job, why, evidence, fence, note: in words, in this order."""
    seen = "; ".join(
        f"{each.what}"
        + (f" {_time(each.at)}" if each.at is not None else "")
        + (f" ({each.clock})" if each.clock else "")
        for each in command.evidence
    )
    fence = f"claim {command.fence.claim or 'none'}, rev {command.fence.rev}"
    return [
        _time(command.occurred_at),
        command.command.value,
        command.job_key or f"fleet {command.fleet}",
        f"{command.reason.value} since {_time(command.since)}",
        seen or "no evidence told",
        fence if command.job_key else "no fence",
        note,
    ]


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Print:
    """Shows commands and reports them as done, for trials of everything around it."""

    name: Final = "print"

    def __init__(self, show: Callable[[Command, str], None]) -> None:
        self._show = show

    def cannot(self, command: Command) -> str:
        """It takes everything."""
        return ""

    def act(self, command: Command, state: State | None) -> Verdict:
        """Show it."""
        self._show(command, "reported done")
        return Verdict(Result.DONE)
