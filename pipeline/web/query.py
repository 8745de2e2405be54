"""What a request asks for: its parameters, and the form of the answer.

Every parameter must be known, be given once (unless it may be given several times) and be of its
form. Anything else is refused with what is wrong: an ignored parameter would give a wrong answer
that looks right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NoReturn

from aiohttp import web

#: The form of the answer; every page knows it.
FORMAT: Final = "format"
FORMS: Final = ("json", "html")
#: The greatest moment that may be asked for, Unix milliseconds.
FOREVER: Final = 1 << 53

# Python's int() and float() also take Arabic digits, underscores and white space.
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_SECONDS: Final = re.compile(r"[+-]?(?:[0-9]{1,12}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})", re.ASCII)


class Query:
    """The parameters of a request. Raises web.HTTPBadRequest that says what is wrong.

    Args:
        request: the request.
        known: names it may have, beside ``format`` when ``page`` is true.
        several: of these, the ones that may be given more than once.
    """

    def __init__(
        self, request: web.Request, *known: str, several: Iterable[str] = (), page: bool = True
    ) -> None:
        names = (*known, FORMAT) if page else known
        self._given: dict[str, list[str]] = {}
        for name, value in request.query.items():
            if name not in names:
                _unknown(request, name, names)
            _require_text(name, value)
            self._given.setdefault(name, []).append(value)
        for name, values in self._given.items():
            if len(values) > 1 and name not in several:
                refuse(name, "given more than once")
        form = self.text(FORMAT)
        if form is not None and form not in FORMS:
            refuse(FORMAT, f"{_short(form)} is not one of {', '.join(FORMS)}")

    def text(self, name: str) -> str | None:
        """The value as it is; ``None`` when there is none or it is empty, as forms send it."""
        return next(iter(self._given.get(name, ())), "") or None

    def all(self, name: str) -> list[str]:
        """All values, split at commas, without the empty ones."""
        return [one for value in self._given.get(name, ()) for one in value.split(",") if one]

    def whole(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number between ``least`` and ``most``."""
        given = self.text(name)
        if given is None:
            return default
        if not _WHOLE.fullmatch(given):
            refuse(name, f"{_short(given)} is not a whole number")
        if not least <= int(given) <= most:
            refuse(name, f"between {least} and {most}")
        return int(given)

    def milliseconds(self, name: str) -> int:
        """A time given in seconds, 0 when there is none."""
        given = self.text(name)
        if given is None:
            return 0
        if not _SECONDS.fullmatch(given):
            refuse(name, "seconds, for example 300")
        found = int(float(given) * 1000)
        if found < 0:
            refuse(name, "not less than 0")
        return found

    def numbers(self, name: str) -> list[int]:
        """Different whole numbers, not negative, in ascending order."""
        found = self.all(name)
        if not all(re.fullmatch("[0-9]{1,9}", one) for one in found):
            refuse(name, "numbers, separated by commas")
        return sorted({int(one) for one in found})

    def cursor(self, *kinds: type) -> tuple[str | int | None, ...] | None:
        """The parts of a cursor, ``None`` without one.

        Args:
            kinds: what each part is, the last one str, which may hold the separator.
        """
        given = self.text("cursor")
        if given is None:
            return None
        parts = given.split("~", len(kinds) - 1)
        found: list[str | int | None] = []
        for kind, part in zip(kinds, parts, strict=False):
            if kind is int and part and not _WHOLE.fullmatch(part):
                break
            found.append((int(part) if part else None) if kind is int else part)
        if len(found) != len(kinds) or not found[-1]:
            refuse("cursor", "take it from `next` of the page before")
        return tuple(found)


def cursor(*parts: object) -> str:
    """A cursor of its parts; ``None`` becomes empty."""
    return "~".join("" if part is None else str(part) for part in parts)


def refuse(name: str, why: str) -> NoReturn:
    """400 for a parameter."""
    raise web.HTTPBadRequest(text=f"{name}: {why}")


def wants_html(request: web.Request) -> bool:
    """Whether the answer is a page for people: by ``format``, else by the Accept header.

    The form with the higher quality wins (RFC 9110, 12.5.1). Of equal ones it is the one that is
    named more precisely, then the one that is named first, then JSON.
    """
    form = request.query.get(FORMAT)
    if form in FORMS:
        return form == "html"
    ranges = list(_ranges(",".join(request.headers.getall("Accept", []))))
    return _rank(ranges, "text", "html") > _rank(ranges, "application", "json")


_Range = tuple[str, str, float]


def _ranges(accept: str) -> Iterable[_Range]:
    for one in accept.split(","):
        media, *parameters = (part.strip() for part in one.split(";"))
        kind, slash, subtype = media.lower().partition("/")
        if not slash:
            continue
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "q":
                # A quality that cannot be read says nothing.
                known = re.fullmatch(r"(?:0?\.[0-9]+|[01](?:\.[0-9]*)?)", value.strip(), re.ASCII)
                quality = min(1.0, float(value)) if known else 1.0
        yield kind, subtype, quality


def _rank(ranges: list[_Range], kind: str, subtype: str) -> tuple[float, int, int]:
    """(quality, how precisely named, how early): what says most about a media type."""
    found = [
        (2 if s == subtype else 1 if k == kind else 0, -number, quality)
        for number, (k, s, quality) in enumerate(ranges)
        if (k, s) in ((kind, subtype), (kind, "*"), ("*", "*"))
    ]
    if not found:
        return (0.0, 0, -len(ranges))
    precision, early, quality = max(found)
    # Not wanted at all: how precisely that was said does not matter.
    return (quality, precision, early) if quality else (0.0, 0, -len(ranges))


def _unknown(request: web.Request, name: str, names: tuple[str, ...]) -> NoReturn:
    knows = f"knows {', '.join(names)}" if names else "takes none"
    raise web.HTTPBadRequest(text=f"unknown query parameter {_short(name)}: {request.path} {knows}")


def _require_text(name: str, value: str) -> None:
    """Raw bytes in a URL that are no UTF-8 become lone surrogates, which nothing can encode."""
    try:
        value.encode()
    except UnicodeEncodeError:
        refuse(name, "not UTF-8")


def _short(text: str) -> str:
    return ascii(text[:50]) if not text.isprintable() else repr(text[:50])
