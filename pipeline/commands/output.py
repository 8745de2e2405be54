"""What commands write on standard output: text, tables, JSON."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import click


class OutputClosed(SystemExit):
    """Who reads our output has gone, as ``head`` does: end quietly, with the code that a shell
    gives a program which the signal of a broken pipe has ended."""

    CODE: Final = 128 + 13

    def __init__(self) -> None:
        super().__init__(self.CODE)
        # What is left in the buffer of standard output would fail again when Python ends.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def say(text: str = "", nl: bool = True) -> None:
    """Write to standard output. What its encoding lacks is written as an escape.

    Raises :class:`OutputClosed` when nobody reads it any more.
    """
    try:
        try:
            click.echo(text, nl=nl)
        except UnicodeEncodeError:
            encoding = sys.stdout.encoding
            click.echo(text.encode(encoding, "backslashreplace").decode(encoding), nl=nl)
    except BrokenPipeError:
        raise OutputClosed from None


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    right: Iterable[int] = (),
    whole: Iterable[int] | None = None,
) -> None:
    """Write a calm table: text as it is, a line a row.

    On a terminal that is too narrow the columns that are not ``whole`` are cut, with an ellipsis,
    to the width of the terminal; ``None`` cuts none. Elsewhere nothing is ever cut.
    """
    texts = [[cell(value) for value in row] for row in rows]
    widths = [
        max([width_of(name), *(width_of(row[i]) for row in texts)])
        for i, name in enumerate(columns)
    ]
    if whole is not None and on_terminal():
        kept = set(whole)
        _narrow(widths, [i for i in range(len(widths)) if i not in kept],
                shutil.get_terminal_size().columns)  # fmt: skip
    numbers = set(right)

    def line(cells: Sequence[str]) -> str:
        fitted = (_fit(text, widths[i], i in numbers) for i, text in enumerate(cells))
        return "  ".join(fitted).rstrip()

    if columns:
        say(click.style(line(columns), bold=True) if on_terminal() else line(columns))
    for row in texts:
        say(line(row))


#: No column is cut to less than this.
_NARROWEST: Final = 6


def _narrow(widths: list[int], cuttable: list[int], available: int) -> None:
    """Take from the widest of the columns that may be cut until the table fits, if it can."""
    over = sum(widths) + 2 * (len(widths) - 1) - available
    while over > 0:
        widest = max(cuttable, key=lambda i: widths[i], default=None)
        if widest is None or widths[widest] <= _NARROWEST:
            return
        widths[widest] -= 1
        over -= 1


def _fit(text: str, width: int, right: bool) -> str:
    lacking = width - width_of(text)
    if lacking < 0:
        while width_of(text) > width - 1:
            text = text[:-1]
        return f"{text}…" + " " * (width - 1 - width_of(text))
    return " " * lacking + text if right else text + " " * lacking


def width_of(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


_NAMED_CONTROLS: Final = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def cell(value: object) -> str:
    """A value as one line of text; control characters, which could change the terminal, are shown
    as escapes."""
    if value is None:
        return "–"
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\xa0" else _escape(c) for c in text)


def _escape(character: str) -> str:
    if character in _NAMED_CONTROLS:
        return _NAMED_CONTROLS[character]
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{{{number:x}}}"


def to_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON that every parser takes: NaN and infinities are null, decimals numbers with
    all their digits, times and everything else text."""
    ascii_only = "utf" not in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    return "".join(_json(value, indent, "\n", ascii_only))


def _json(value: Any, indent: int | None, line: str, ascii_only: bool) -> Iterator[str]:
    if value is None or isinstance(value, bool):
        yield {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, int):
        yield int.__repr__(value)
    elif isinstance(value, float):
        yield float.__repr__(value) if math.isfinite(value) else "null"
    elif isinstance(value, Decimal):
        yield f"{value:f}" if value.is_finite() else "null"
    elif isinstance(value, Mapping):
        yield from _members(
            ((f"{_json_text(_key(k), ascii_only)}: ", v) for k, v in value.items()),
            "{}", indent, line, ascii_only,
        )  # fmt: skip
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from _members((("", v) for v in value), "[]", indent, line, ascii_only)
    elif isinstance(value, bytes):
        yield _json_text(text_of(value), ascii_only)
    else:
        yield _json_text(str(value), ascii_only)


def _members(
    members: Iterable[tuple[str, Any]],
    brackets: str,
    indent: int | None,
    line: str,
    ascii_only: bool,
) -> Iterator[str]:
    inner = line + " " * indent if indent is not None else ""
    yield brackets[0]
    empty = True
    for prefix, value in members:
        if not empty:
            yield "," if indent is not None else ", "
        empty = False
        yield inner + prefix
        yield from _json(value, indent, inner or line, ascii_only)
    yield brackets[1] if empty or indent is None else line + brackets[1]


def _key(value: Any) -> str:
    return text_of(value) if isinstance(value, bytes) else str(value)


def _json_text(text: str, ascii_only: bool) -> str:
    if not ascii_only:
        try:
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate, which UTF-8 cannot write
            ascii_only = True
    return json.dumps(text, ensure_ascii=ascii_only)


def text_of(value: bytes) -> str:
    """Bytes as text; a byte that is no UTF-8 is written ``\\xff``."""
    return value.decode("utf-8", "backslashreplace")


def print_json(value: Any) -> None:
    """Print a value as JSON, times and bytes as text."""
    say(to_json(value, indent=2))
