"""Secrets in text, in whatever form they got there, become ``***``.

A secret is found as it is, and as programs write it down: each of its longer lines; in base64 (also
URL-safe, inside a longer text at any of the three alignments, and of UTF-16); in hexadecimal, with
or without separators; percent-encoded once or twice, wholly or where it must be; escaped for JSON,
for HTML, for a shell, or with ``\\x``.
"""

from __future__ import annotations

import base64
import html
import json
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Final

MASK: Final = "***"
#: Shorter secrets, and shorter lines of long ones, are masked only as they are; single characters
#: not at all.
SHORT: Final = 4
#: A piece of base64 that is shorter is found by chance.
_SHORTEST_BASE64: Final = 8


class Masker:
    """Masks the secrets it has been told. Safe to share between threads."""

    def __init__(self, secrets: Iterable[str | bytes] = ()) -> None:
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._patterns: tuple[re.Pattern[str], ...] = ()
        for secret in secrets:
            self.add(secret)

    def add(self, secret: str | bytes) -> None:
        """Mask this one as well from now on. Blank ones and single characters are left alone."""
        text = secret.decode("utf-8", "replace") if isinstance(secret, bytes) else secret
        lines = [line.strip() for line in text.splitlines()]
        with self._lock:
            for each in (text, text.strip(), *lines):
                if len(each) < 2 or set(each) == {"*"} or each in self._known:
                    continue
                self._known.add(each)
                # A look ahead, so that what overlaps is found as well.
                pattern = "|".join(f"(?:{form})" for form in _forms(each))
                self._patterns = (*self._patterns, re.compile(f"(?=({pattern}))", re.DOTALL))

    def mask(self, text: str) -> str:
        """The text without secrets."""
        spans = sorted(
            found.span(1) for pattern in self._patterns for found in pattern.finditer(text)
        )
        if not spans:
            return text
        parts, done = [], 0
        start, end = spans[0]
        for begins, ends in (*spans[1:], (len(text), len(text))):
            if begins < end:
                end = max(end, ends)
                continue
            parts += [text[done:start], MASK]
            done, start, end = end, begins, ends
        return "".join((*parts, text[done:]))


def _forms(secret: str) -> Iterator[str]:
    """A secret as regular expressions, one for each way to write it."""
    yield re.escape(secret)
    if len(secret) < SHORT:
        return
    raw = secret.encode("utf-8", "surrogatepass")
    wide = secret.encode("utf-16-le", "surrogatepass")
    for data in (raw, wide):
        yield from _base64(data)
        yield rf"(?i:{'[-: ]?'.join(f'{byte:02x}' for byte in data)})"
        yield rf"(?i:{'[, ]*'.join(f'(?:0|{chr(92) * 2})x{byte:02x}' for byte in data)})"
    yield "".join(map(_percent, secret))
    yield "".join(map(_json, secret))
    yield "".join(map(_html, secret))
    yield "".join(map(_shell, secret))
    yield re.escape(secret.replace("'", "'\\''"))
    yield re.escape(secret.replace("'", "'\"'\"'"))


def _base64(data: bytes) -> Iterator[str]:
    """What stands for the secret, for each place where it may begin in a group of three bytes."""
    for before in range(3):
        text = base64.b64encode(bytes(before) + data + bytes(3)).decode()
        # Characters at its ends hold bits of what stands beside it as well, so they may be any.
        first, first_split = -(-before * 8 // 6), bool(before * 8 % 6)
        last, last_split = divmod((before + len(data)) * 8, 6)
        core = text[first:last]
        if len(core) < (_SHORTEST_BASE64 if before else SHORT):
            continue
        core = re.escape(core).replace(r"\+", "[+-]").replace("/", "[/_]")
        split = "[A-Za-z0-9+/_-]?"
        yield f"{split if first_split else ''}{core}{split if last_split else ''}={{0,2}}"


def _bytes_of(char: str) -> bytes:
    return char.encode("utf-8", "surrogatepass")


def _percent(char: str) -> str:
    """Percent-encoded once, twice or not at all; a space also as in a form."""
    encoded = "".join(f"%(?:25)?{byte:02x}" for byte in _bytes_of(char))
    plain = r"[ +]" if char == " " else re.escape(char)
    return f"(?:(?i:{encoded})|{plain})"


def _json(char: str) -> str:
    """Escaped for JSON: where it must be, or where a careful writer does it."""
    units = char.encode("utf-16-be", "surrogatepass")
    escaped = "".join(rf"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))
    short = json.dumps(char, ensure_ascii=False)[1:-1]
    forms = [f"(?i:{escaped})", re.escape(short)]
    if char == "/":
        forms.append(r"\\/")
    return f"(?:{'|'.join(forms)})"


def _html(char: str) -> str:
    forms = [re.escape(char), f"&#0*{ord(char)};", f"(?i:&#x0*{ord(char):x};)"]
    named = html.escape(char)
    if named != char:
        forms.insert(0, re.escape(named))
    if char == "'":
        forms.append("&apos;")
    # `&` as it is would be the first half of `&amp;` only.
    return f"(?:{'|'.join(forms)})"


def _shell(char: str) -> str:
    r"""As `printf %q` writes it, or between double quotes."""
    if char.isalnum() or char == "\n":
        return re.escape(char)
    return (r"\\" if char == "\\" else r"\\?") + re.escape(char)
