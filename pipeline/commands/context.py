"""What the options and the settings of a command say."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from pipeline.commands.failure import USAGE, Failure
from pipeline.settings import Settings, SettingsError, load


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
    except OSError as error:
        raise Failure(
            f"the configuration file cannot be read: {error.strerror}: {error.filename}",
            "give another with --config",
            USAGE,
        ) from None
    except SettingsError as error:
        raise Failure("\n  ".join(error.problems), exit_code=USAGE) from None
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
