"""Tables of the documentation, and the comments in the code that fill them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell(each) for each in line)} |\n" for line in lines)


def cell(text: str) -> str:
    """Text that stays inside its cell."""
    return " ".join(text.replace("|", "\\|").split())


def said(cls: type) -> dict[str, str]:
    """The ``#:`` comment in front of each field of a class, as Markdown."""
    found: dict[str, str] = {}
    comment: list[str] = []
    for line in inspect.getsource(cls).splitlines():
        text = line.strip()
        if text.startswith("#:"):
            comment.append(text.removeprefix("#:").strip())
        else:
            field = re.match(r"(\w+)\s*:", text)
            if field and line.startswith("    ") and not line.startswith("     "):
                found[field.group(1)] = " ".join(comment).replace("``", "`")
            comment = []
    return found
