"""What answers are made of: JSON, headers, links between pages, times."""

from __future__ import annotations

import time
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from aiohttp import web

#: Nothing but our own stylesheet may load, whatever a job calls itself.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def encodable(text: str) -> str:
    """The text; raw bytes in it that are no UTF-8 are written as escapes."""
    return text.encode(errors="backslashreplace").decode()


def json_response(value: Any, status: int = 200) -> web.Response:
    """A value as JSON."""
    return web.Response(
        body=msgspec.json.encode(value) + b"\n",
        content_type="application/json",
        status=status,
        headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"},
    )


def age(now: int, since: int | None) -> int | None:
    """Milliseconds between two moments; ``None`` when nobody knows since when."""
    return None if since is None else max(0, now - since)


def now_ms() -> int:
    """Unix milliseconds."""
    return int(time.time() * 1000)


def page_links(request: web.Request, following: str | None) -> dict[str, Any]:
    """The links between pages."""
    here = [(k, v) for k, v in request.query.items() if k not in ("cursor", "format")]
    first = f"{request.path}?{urlencode(here)}" if here else request.path
    return {
        "paged": "cursor" in request.query,
        "first_link": first,
        "next_link": following and f"{request.path}?{urlencode([*here, ('cursor', following)])}",
    }
