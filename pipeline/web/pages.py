"""HTML from templates. Everything is escaped: names of jobs, repositories and runners come from
strangers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.jobs import MISSING
from pipeline.text import duration

#: Pieces of a page (some words each) that are made before the event loop is let go.
SLICE: Final = 1_000

#: How a conclusion is shown: what is neither good nor bad is plain.
GOOD: Final = frozenset({"success"})
BAD: Final = frozenset({"failure", "timed_out", "startup_failure", "action_required"})


class Pages:
    """The templates, ready to render."""

    def __init__(self) -> None:
        self._env = Environment(
            loader=PackageLoader("pipeline.web", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._env.filters.update(
            duration=duration,
            moment=moment,
            clock=clock,
            link=safe_link,
            path=lambda text: quote(str(text), safe=":"),
            query=urlencode,
            missing=lambda reason: MISSING.get(reason, reason),
            number=lambda n: "–" if n is None else f"{n:,}",
            ranges=ranges,
            verdict=verdict,
        )

    async def render(
        self, template: str, pause: Callable[[], Awaitable[None]], **values: Any
    ) -> bytes:
        """The page, made in slices with a ``pause`` between them."""
        page = []
        for number, piece in enumerate(self._env.get_template(template).generate(**values)):
            if number % SLICE == SLICE - 1:
                await pause()
            page.append(piece)
        return "".join(page).encode(errors="replace")


def moment(ms: int | None) -> str:
    """Date and time, UTC, to the millisecond."""
    if ms is None:
        return "–"
    try:
        at = datetime.fromtimestamp(ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return str(ms)
    return at.strftime("%Y-%m-%d %H:%M:%S.") + f"{ms % 1000:03d}"


def verdict(conclusion: str | None) -> str:
    """``good``, ``bad`` or ``plain``: the class of a conclusion."""
    return "good" if conclusion in GOOD else "bad" if conclusion in BAD else "plain"


def clock(ms: int) -> str:
    """Time of day, UTC, to the minute."""
    if not 0 <= ms < 253_402_300_800_000:
        return str(ms)
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%H:%M")


def safe_link(url: str) -> str:
    """The URL when it is one to click on, else nothing: ``javascript:`` is a URL too."""
    return url if url.startswith(("https://", "http://")) else ""


def ranges(numbers: list[int]) -> str:
    """``0–3, 6`` for 0, 1, 2, 3, 6."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{r[0]}–{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs) or "none"
