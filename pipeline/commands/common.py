"""What all commands share: settings, failures with exit codes, being reachable, tables.

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 something cannot be reached.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.settings import Settings, load

FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3

#: How long a command waits for a server to answer before it says so. Seconds.
PATIENCE_S: Final = 8.0


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


@dataclass
class Context:
    """What the options before the command's name say."""

    config: Path | None = None
    verbose: int = 0
    overrides: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def settings(self) -> Settings:
        """The settings. Raises :class:`Failure` naming each wrong one, with code 2."""
        overrides = dict(self.overrides)
        if self.verbose:
            overrides.setdefault("log_level", "DEBUG" if self.verbose > 1 else "INFO")
        return read_settings(self.config, **overrides)

    def with_overrides(self, **overrides: Any) -> Settings:
        """The settings with options of the command on top; ``None`` leaves a setting as it is."""
        given = {name: value for name, value in overrides.items() if value is not None}
        return Context(self.config, self.verbose, {**self.overrides, **given}).settings


def read_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """Load the settings, with errors as a person can use them."""
    try:
        return load(config, **overrides)
    except FileNotFoundError as error:
        raise Failure(str(error), "give another with --config", USAGE) from None
    except ValidationError as error:
        raise Failure("\n  ".join(said(error)), exit_code=USAGE) from None


def said(error: ValidationError) -> list[str]:
    """One line per wrong setting. Values are left out: they may be secrets."""
    lines = []
    for each in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in each["loc"])
        what = each["msg"].removeprefix("Value error, ")
        if name:
            lines.append(f"setting {name} (RUNNERSTREAM_{name.upper()}): {what}")
        else:
            lines.append(f"settings: {what}")
    return lines


def plain_console() -> Console:
    """Standard output for tables and text; wide enough not to fold when it is not a terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[int] = ()
) -> Table:
    """A calm table. Cells are text, never markup: job names come from strangers."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    numbers = set(right)
    for index, name in enumerate(columns):
        made.add_column(name, justify="right" if index in numbers else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell(value) for value in row))
    return made


def cell(value: object) -> str:
    """A value as the text of a cell, without control characters and markup."""
    if value is None:
        return "–"
    text = str(value)
    shown = "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    return escape(shown)


def print_json(value: Any) -> None:
    """Print a value as JSON, times and bytes as text."""
    click.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def seconds_of(text: str) -> float:
    """Seconds from ``90``, ``90s``, ``15m``, ``2h`` or ``7d``. Raises ValueError."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    number, unit = (text[:-1], text[-1]) if text and text[-1] in units else (text, "s")
    value = float(number) * units[unit]
    if not 0 <= value < 1e10:
        raise ValueError(text)
    return value


class Duration(click.ParamType):
    """An option such as ``15m``; the value is in seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Parse, or fail as wrong usage."""
        if isinstance(value, (int, float)):
            return float(value)
        try:
            return seconds_of(value)
        except ValueError:
            self.fail(f"{value!r} is not a duration such as 90s, 15m, 2h or 7d", param, ctx)


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
