"""The access log: a line a request, written many at a time.

The logging module takes some 50 us for a line, a third of what a delivery costs in all. So these
are gathered and written several times a second, as text or JSON like the program's other lines.
Nothing in them is as it was sent, but the id of a delivery once it is authentic.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, TextIO

import msgspec

_LOGGER: Final = "pipeline.gateway.access"
_ENCODER: Final = msgspec.json.Encoder()


class AccessLog:
    """Lines that wait to be written.

    Args:
        as_json: one object a line.
        out: where they go; the standard error of the moment when None.
    """

    def __init__(self, as_json: bool = False, out: TextIO | None = None) -> None:
        self._form: Callable[[float, dict[str, Any]], str] = _json if as_json else _text
        self._out = out
        self._lines: list[tuple[float, dict[str, Any]]] = []

    def add(self, at: float, said: dict[str, Any]) -> None:
        """Note a request that was answered at a time, in seconds since 1970."""
        self._lines.append((at, said))

    def write(self) -> None:
        """Write what waits."""
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        out = self._out or sys.stderr
        out.write("".join([self._form(at, said) for at, said in lines]))
        out.flush()


def _time(at: float) -> str:
    ms = int(at * 1000)
    return f"{_second(ms // 1000)}.{ms % 1000:03d}+00:00"


@lru_cache(maxsize=4)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _json(at: float, said: dict[str, Any]) -> str:
    line = {"time": _time(at), "level": "INFO", "logger": _LOGGER, **said}
    return _ENCODER.encode(line).decode() + "\n"


def _text(at: float, said: dict[str, Any]) -> str:
    told = _form(tuple(said)) % tuple(said.values())
    return f"{_time(at)} INFO    {_LOGGER}: {told}\n"


@lru_cache(maxsize=16)
def _form(names: tuple[str, ...]) -> str:
    """Where the values of these go."""
    return " ".join(f"{name}=%s" for name in names)
