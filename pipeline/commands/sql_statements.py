"""What a person types into ``sql``: cut into statements, with what is meant for the client.

Not a parser of SQL: it knows comments, strings, quoted names and brackets, so that a semicolon or a
word inside of them means nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

_TOKEN: Final = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<comment>--[^\n]*|\#[ !][^\n]*|/\*.*?\*/)
    | (?P<quoted>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*"|`(?:[^`\\]|\\.|``)*`
        |\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
    | (?P<open>'|"|`|/\*)
    | (?P<end>;|\\[Gg](?!\w))
    | (?P<word>\w+)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)


class Statement(NamedTuple):
    """One statement without its end. ``vertical``: it ended with ``\\G``."""

    text: str
    vertical: bool = False


class Token(NamedTuple):
    """A piece of SQL, where it begins, and how many brackets are open around it."""

    kind: str
    text: str
    start: int
    depth: int


def tokens(text: str) -> Iterator[Token]:
    """The pieces of a text; what a quote that is not closed begins is one piece, ``open``."""
    at, depth = 0, 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        assert match is not None  # `other` takes anything
        kind = match.lastgroup or "quoted"
        if kind == "tag":
            kind = "quoted"
        if kind == "open":
            yield Token(kind, text[at:], at, depth)
            return
        if kind == "other" and match.group() in "([{":
            depth += 1
        elif kind == "other" and match.group() in ")]}":
            depth = max(0, depth - 1)
        yield Token(kind, match.group(), at, depth)
        at = match.end()


def split(text: str) -> tuple[list[Statement], str]:
    """The statements that are ended, by ``;`` or ``\\G``, and what follows the last of them: empty
    when that is only space and comments."""
    found: list[Statement] = []
    begin = 0
    meant = False
    for token in tokens(text):
        if token.kind == "end":
            if meant:
                vertical = token.text == "\\G"
                found.append(Statement(text[begin : token.start].strip(), vertical))
            begin, meant = token.start + len(token.text), False
        elif token.kind not in ("space", "comment"):
            meant = True
    return found, text[begin:].strip() if meant else ""


def statements(text: str) -> list[Statement]:
    """All statements of a text whose last one need not be ended."""
    found, rest = split(text)
    return [*found, Statement(rest)] if rest else found


def first_words(text: str, number: int = 2) -> list[str]:
    """The first words of a statement in capitals, brackets before them left out."""
    words = (token.text.upper() for token in tokens(text) if token.kind == "word")
    return [word for word, _ in zip(words, range(number), strict=False)]


def format_clause(text: str) -> tuple[str, str | None]:
    """A statement without its ``FORMAT``, and the format it names. Over ClickHouse's native
    protocol rows come as values, so the format is the client's to make."""
    meant = [token for token in tokens(text) if token.kind not in ("space", "comment")]
    for at in range(len(meant) - 2, 0, -1):
        word, name = meant[at], meant[at + 1]
        if not (word.depth == 0 and word.kind == "word" and word.text.upper() == "FORMAT"):
            continue
        last = at + 2 == len(meant)
        if name.kind == "word" and (last or meant[at + 2].text.upper() == "SETTINGS"):
            end = name.start + len(name.text)
            return (text[: word.start] + text[end:]).strip(), name.text
    return text, None


def writes_file(text: str) -> bool:
    """Whether a statement has ``INTO OUTFILE``, which is for ClickHouse's own client."""
    words = [t.text.upper() for t in tokens(text) if t.kind not in ("space", "comment")
             and t.depth == 0]  # fmt: skip
    return any(pair == ("INTO", "OUTFILE") for pair in pairwise(words))
