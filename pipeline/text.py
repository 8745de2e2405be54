"""How things are told to people: durations, and which version of the program this is."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path


@cache
def version() -> str:
    """The version of the installed package, else of the source tree it runs from."""
    try:
        return metadata.version("runnerstream")
    except metadata.PackageNotFoundError:
        project = Path(__file__).resolve().parents[1] / "pyproject.toml"
        try:
            return str(tomllib.loads(project.read_text())["project"]["version"])
        except (OSError, KeyError, ValueError):
            return "unknown"


def duration(ms: float | None) -> str:
    """A duration as people say it: ``340 ms``, ``12.3 s``, ``4 m 05 s``, ``3 h 20 m``, ``2 d``."""
    if ms is None:
        return "–"
    if ms < 1000:
        return f"{ms:.0f} ms"
    seconds = ms / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {whole:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} m"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"
