"""How a command ends when it cannot go on: an exit code, a sentence and a remedy.

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 something cannot be reached.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

import click

FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3


class Failure(click.ClickException):
    """A command that cannot go on. ``remedy`` says what to do, ``exit_code`` how it ends."""

    def __init__(self, what: str, remedy: str = "", exit_code: int = FAILED) -> None:
        super().__init__(what)
        self.remedy = remedy
        self.exit_code = exit_code

    def show(self, file: Any = None) -> None:
        """Print the message and the remedy on standard error."""
        click.echo(f"error: {self.message}", err=True)
        if self.remedy:
            click.echo(f"  {self.remedy}", err=True)


def place(url: str) -> str:
    """Host and port of a URL, without what is secret in it."""
    parts = urlsplit(url)
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return f"{parts.hostname or '?'}{port}"


def short(error: BaseException) -> str:
    """An error in one line: drivers put stack traces and pages into theirs."""
    text = " ".join(str(error).split("Stack trace:")[0].split())[:300]
    name = type(error).__name__
    return text if text.startswith(name) else f"{name}: {text}" if text else name
