"""Calls to a provider's REST API: one request each, with all that may be odd about the answer.

* **Credentials** are sent to the host they are for, and to none that a redirect names.
* **Conditional requests.** An answer's ETag is sent with the next question for the same; 304 means
  as before.
* **Limits.** A provider says in headers what is left until it counts anew, and with
  ``Retry-After`` how long to stay away; who says neither with 429 gets a minute of rest.

Nothing waits for its turn here: what may not be asked now is :class:`Failed`.
"""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import httpx

from pipeline.providers.api import Detail, Outcome
from pipeline.providers.budget import Budget

#: Bodies beyond this are not read. A job with 1,000 steps has 300 kB.
MAX_BODY_BYTES: Final = 5_000_000
#: A whole answer must be here within this, however slowly it trickles. Seconds.
WHOLE_S: Final = 15.0
#: Accounts whose budgets (and, of an App, tokens) are remembered.
MOST_LANES: Final = 10_000
_TIMEOUT: Final = httpx.Timeout(10.0, connect=5.0)
_MOST_REDIRECTS: Final = 3
#: Answers that are kept to be asked for conditionally: how many, and the largest.
_KEPT: Final = 512
_KEPT_BYTES: Final = 64_000
#: How long to stay away when a provider limits us and does not say how long (GitHub's advice).
_SECONDARY_S: Final = 60.0


class Failed(Exception):
    """A call brought nothing to rely on. ``again``: another time it may."""

    def __init__(self, detail: Detail, again: bool = False) -> None:
        super().__init__(detail.value)
        self.detail = detail
        self.again = again


class Unauthorised(Failed):
    """The provider does not know the credentials."""


@dataclass(frozen=True)
class Reply:
    """What was answered: a JSON object with its text, or that there is none (404, 410)."""

    body: Mapping[str, Any]
    text: str = ""
    missing: bool = False


@dataclass(frozen=True)
class Listed:
    """A page of a list, and what the link to the next page asks for, by name; empty: no next."""

    items: list[Any]
    next: Mapping[str, str]


@dataclass(frozen=True)
class Raw:
    """An answer as it came."""

    status: int
    headers: httpx.Headers
    content: bytes


class Calls:
    """Calls the API at ``base``. Safe from several threads.

    Args:
        base: its URL, to which paths are appended.
        per_minute: requests in any 60 s, of each lane.
        count: told how each request ended.
        headers: sent with every request.
        limits: what the headers begin with that tell of limits.
        credentials: headers that name us; they are no defaults of the connection.
        clock: monotonic, seconds; of budgets.
        wall: Unix time, seconds.
    """

    def __init__(
        self,
        base: str,
        per_minute: int,
        count: Callable[[Outcome], None],
        headers: Mapping[str, str],
        limits: str = "x-ratelimit",
        credentials: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._base = base.rstrip("/")
        self._per_minute = per_minute
        self._count = count
        self._limits = limits
        self._sent = credentials or {}
        self._clock = clock
        self._wall = wall
        self._http = httpx.Client(
            headers={"User-Agent": "runnerstream", **headers},
            timeout=_TIMEOUT,
            follow_redirects=False,
            verify=_trusted(),
        )
        self._lock = threading.Lock()
        self._budgets: OrderedDict[str, Budget] = OrderedDict()
        self._kept: OrderedDict[tuple[str, str], tuple[str, bytes]] = OrderedDict()
        #: Since when the API fails in a row, and how it failed last.
        self.failing: tuple[float, Detail] | None = None

    def budget(self, lane: str) -> Budget:
        """The budget of a lane."""
        with self._lock:
            found = self._budgets.get(lane)
            if found is None:
                found = self._budgets[lane] = Budget(self._per_minute, self._clock)
                if len(self._budgets) > MOST_LANES:
                    self._budgets.popitem(last=False)
            self._budgets.move_to_end(lane)
            return found

    def remaining(self) -> int | None:
        """What the provider says is left, of the lane with the least; None when nobody knows."""
        with self._lock:
            budgets = list(self._budgets.values())
        return min((left for each in budgets if (left := each.left()) is not None), default=None)

    def close(self) -> None:
        """Let go of connections."""
        self._http.close()

    def get(self, path: str, repo: str = "") -> Reply:
        """GET ``path``, which is about ``repo``. Raises :class:`Failed`."""
        lane = self.lane(repo)
        with self._lock:
            kept = self._kept.get((lane, path))
        headers = {"If-None-Match": kept[0]} if kept else {}
        raw = self._authorised(repo, lane, path, headers)
        if raw.status == 304:
            if kept is None:
                raise self._failed(Outcome.MALFORMED, Detail.MALFORMED, again=True)
            self._count(Outcome.NOT_MODIFIED)
            return self._reply(kept[1])
        if raw.status in (404, 410):
            self._count(Outcome.MISSING)
            return Reply({}, missing=True)
        reply = self._reply(raw.content)
        self._count(Outcome.OK)
        self._keep((lane, path), raw)
        return reply

    def listed(self, path: str, repo: str = "") -> Listed:
        """GET ``path``, where a list is. Raises :class:`Failed`, also when there is none."""
        return self._list(self._authorised(repo, self.lane(repo), path, {}))

    def _list(self, raw: Raw) -> Listed:
        if raw.status in (404, 410):
            self._count(Outcome.MISSING)
            raise Failed(Detail.FORBIDDEN)
        try:
            items = json.loads(raw.content)
        except (ValueError, RecursionError):
            items = None
        if not isinstance(items, list):
            raise self._failed(Outcome.MALFORMED, Detail.MALFORMED, again=True)
        self._count(Outcome.OK)
        return Listed(items, _next(raw.headers.get("link", "")))

    def lane(self, repo: str) -> str:
        """Whose budget calls about a repository take from."""
        return ""

    def _authorised(self, repo: str, lane: str, path: str, headers: dict[str, str]) -> Raw:
        """GET with the credentials that are right for the repository."""
        return self._call("GET", lane, path, {**headers, **self._sent})

    # --- one request ----------------------------------------------------------------------------

    def _call(self, method: str, lane: str, path: str, headers: Mapping[str, str]) -> Raw:
        """Ask, and follow redirects within the host. The status is 2xx of these that
        providers use, 304, 404 or 410."""
        budget = self.budget(lane)
        url = self._base + path
        for _ in range(_MOST_REDIRECTS + 1):
            if not budget.take():
                raise Failed(Detail.LIMITED, again=True)
            try:
                raw = self._send(method, url, headers, budget)
                self._tell(budget, raw.headers)
            finally:
                budget.back()
            if raw.status not in (301, 302, 303, 307, 308):
                return self._judged(raw, budget)
            self._count(Outcome.REDIRECT)
            there = _joined(url, raw.headers.get("location", ""))
            if there is None:
                raise Failed(Detail.MALFORMED)
            url = there
        raise Failed(Detail.MALFORMED)

    def _send(self, method: str, url: str, headers: Mapping[str, str], budget: Budget) -> Raw:
        began = time.monotonic()
        try:
            with self._http.stream(method, url, headers=headers) as answer:
                content = bytearray()
                for piece in answer.iter_bytes(65_536):
                    content += piece
                    if len(content) > MAX_BODY_BYTES:
                        raise self._failed(Outcome.MALFORMED, Detail.MALFORMED)
                    if time.monotonic() - began > WHOLE_S:
                        raise httpx.ReadTimeout("the answer trickles")
                return Raw(answer.status_code, answer.headers, bytes(content))
        except httpx.TimeoutException:
            budget.failed()
            raise self._failed(Outcome.TIMEOUT, Detail.TIMEOUT, again=True) from None
        except httpx.TransportError:
            budget.failed()
            raise self._failed(Outcome.UNREACHABLE, Detail.UNREACHABLE, again=True) from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError):
            # Among these a content encoding that is not what it says.
            raise self._failed(Outcome.MALFORMED, Detail.MALFORMED, again=True) from None

    def _judged(self, raw: Raw, budget: Budget) -> Raw:
        """The answer, when it is one. Raises :class:`Failed` for what is none."""
        status, headers = raw.status, raw.headers
        if status in (200, 201, 202, 304, 404, 410):
            budget.works()
            self.failing = None
            return raw
        asked_to_wait = _seconds(headers.get("retry-after"))
        if status >= 500:
            budget.failed()
            if asked_to_wait is not None:
                budget.pause(asked_to_wait)
            raise self._failed(Outcome.SERVER_ERROR, Detail.SERVER_ERROR, again=True)
        spent = headers.get(f"{self._limits}-remaining") == "0"
        secondary = status == 403 and b"secondary rate limit" in raw.content.lower()
        if status == 429 or (status == 403 and (spent or secondary or asked_to_wait is not None)):
            if asked_to_wait is not None:
                budget.pause(asked_to_wait)
            elif not spent or budget.left() is None:  # it does not say until when
                budget.pause(_SECONDARY_S)
            raise self._failed(Outcome.LIMITED, Detail.LIMITED, again=True)
        if status == 401:
            self._count(Outcome.FORBIDDEN)
            raise Unauthorised(Detail.FORBIDDEN)
        if status in (403, 451):
            raise self._failed(Outcome.FORBIDDEN, Detail.FORBIDDEN)
        raise self._failed(Outcome.MALFORMED, Detail.MALFORMED)

    def _failed(self, outcome: Outcome, detail: Detail, again: bool = False) -> Failed:
        """Counts, and remembers since when the API does not do."""
        self._count(outcome)
        if outcome in (Outcome.TIMEOUT, Outcome.UNREACHABLE, Outcome.SERVER_ERROR):
            before = self.failing
            self.failing = (before[0] if before else self._clock(), detail)
        return Failed(detail, again)

    def _reply(self, content: bytes) -> Reply:
        try:
            text = content.decode()
            body = json.loads(text)
        except (ValueError, RecursionError):
            raise self._failed(Outcome.MALFORMED, Detail.MALFORMED, again=True) from None
        if not isinstance(body, dict):
            raise self._failed(Outcome.MALFORMED, Detail.MALFORMED, again=True)
        return Reply(body, text)

    def _keep(self, place: tuple[str, str], raw: Raw) -> None:
        etag = raw.headers.get("etag", "")
        with self._lock:
            self._kept.pop(place, None)
            if etag and len(raw.content) <= _KEPT_BYTES:
                self._kept[place] = (etag, raw.content)
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)

    def _tell(self, budget: Budget, headers: httpx.Headers) -> None:
        """What the headers say of the limit. The provider's own clock counts, where it tells it."""
        left = headers.get(f"{self._limits}-remaining", "")
        resets = headers.get(f"{self._limits}-reset", "")
        if not (_NUMBER.fullmatch(left) and _NUMBER.fullmatch(resets)):
            return
        now = self._wall()
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            now = parsedate_to_datetime(headers.get("date", "")).timestamp()
        budget.told(int(left), int(resets) - now)


@cache
def _trusted() -> ssl.SSLContext:
    """The authorities of the Web, and those of this machine: a GHES often has one of its own."""
    context = httpx.create_ssl_context()
    context.load_default_certs()
    return context


_NUMBER: Final = re.compile(r"[0-9]{1,15}")
_LINK: Final = re.compile(r"<([^>]*)>([^<]*)")
_NEXT: Final = re.compile(r";\s*rel=\"?next\"?\s*(?:[;,]|$)")


def _seconds(told: str | None) -> float | None:
    """What ``Retry-After`` says: seconds, or a time, for which the usual minute stands."""
    if told is None:
        return None
    return float(told.strip()) if _NUMBER.fullmatch(told.strip()) else _SECONDARY_S


def _next(link: str) -> Mapping[str, str]:
    """The parameters of the next page, of a ``Link`` header (RFC 8288). Not its address: that is
    for us to say."""
    for target, rest in _LINK.findall(link):
        if _NEXT.search(rest):
            with contextlib.suppress(ValueError):
                return dict(parse_qsl(urlsplit(target).query))
    return {}


def _joined(url: str, location: str) -> str | None:
    """Where a redirect leads; None unless that is on the same host, by the same scheme."""
    try:
        there = str(httpx.URL(url).join(location))
        one, other = urlsplit(url), urlsplit(there)
        same = (one.scheme, one.netloc) == (other.scheme, other.netloc)
    except (httpx.InvalidURL, ValueError, UnicodeError):
        return None
    return there if location and same else None
