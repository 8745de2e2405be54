"""Calls to GitHub's REST API: one request each, with all that may be odd about the answer.

* **Credentials.** A token, or a GitHub App: a JWT signed with its key names the installation of an
  account, for which tokens of an hour are made; one is renewed 5 minutes before it ends, or when
  GitHub no longer knows it. They are sent to the host they are for, and to none that a redirect
  names.
* **Conditional requests.** An answer's ETag is sent with the next question for the same; 304 means
  as before, and costs nothing of GitHub's limit.
* **Limits** (docs.github.com, rate limits for the REST API): ``x-ratelimit-remaining`` and
  ``-reset``; the primary limit is 403 or 429 with nothing remaining, the secondary one has
  ``Retry-After``, or a message that says so: then a minute.

Nothing waits for its turn here: what may not be asked now is :class:`Failed`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from pipeline.providers.api import Detail, Outcome
from pipeline.providers.budget import Budget

#: Bodies beyond this are not read. A job with 1,000 steps has 300 kB.
MAX_BODY_BYTES: Final = 5_000_000
#: A whole answer must be here within this, however slowly it trickles. Seconds.
WHOLE_S: Final = 15.0
_TIMEOUT: Final = httpx.Timeout(10.0, connect=5.0)
_MOST_REDIRECTS: Final = 3
#: Answers that are kept to be asked for conditionally: how many, and the largest.
_KEPT: Final = 512
_KEPT_BYTES: Final = 64_000
#: A token is renewed this much before its end. Seconds.
_EARLY_S: Final = 300.0
#: GitHub takes a JWT of at most 10 minutes; its clock may be behind ours.
_JWT_S: Final = 540
_SKEW_S: Final = 60
#: What GitHub asks for when a secondary limit does not say how long.
_SECONDARY_S: Final = 60.0
#: Accounts whose budgets, and installations whose tokens are remembered.
_MOST_LANES: Final = 10_000

_HEADERS: Final = {
    "Accept": "application/vnd.github+json",
    "X-GitHub-Api-Version": "2022-11-28",
    "User-Agent": "runnerstream",
}


class Failed(Exception):
    """A call brought nothing to rely on. ``again``: another time it may."""

    def __init__(self, detail: Detail, again: bool = False) -> None:
        super().__init__(detail.value)
        self.detail = detail
        self.again = again


@dataclass(frozen=True)
class App:
    """A GitHub App: its id, and its private key in PEM form."""

    app_id: str
    key: rsa.RSAPrivateKey

    @classmethod
    def from_pem(cls, app_id: str, pem: bytes) -> App:
        """Raises ValueError, without any part of the key, for what is no RSA key in PEM form."""
        try:
            key = serialization.load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, rsa.RSAPrivateKey):
            raise ValueError("is no RSA private key in PEM form without a passphrase, as GitHub "
                             "gives it for an App")  # fmt: skip
        return cls(app_id, key)

    def jwt(self, now: float) -> str:
        """What the App names itself with. ``now`` is Unix time."""
        said = {"iat": int(now) - _SKEW_S, "exp": int(now) + _JWT_S, "iss": self.app_id}
        text = f"{_base64({'alg': 'RS256', 'typ': 'JWT'})}.{_base64(said)}"
        signature = self.key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{text}.{_base64_bytes(signature)}"


@dataclass(frozen=True)
class Reply:
    """What was answered: a JSON object with its text, or that there is none (404, 410)."""

    body: Mapping[str, Any]
    text: str = ""
    missing: bool = False


@dataclass(frozen=True)
class _Raw:
    status: int
    headers: httpx.Headers
    content: bytes


class GitHubCalls:
    """Calls the API at ``base``, as an App or with a token. Safe from several threads.

    Args:
        base: ``https://api.github.com``, or that of a GHES host, ``https://HOST/api/v3``.
        credentials: an App, or a token.
        per_minute: requests in any 60 s, of each lane.
        count: told how each request ended.
        clock: monotonic, seconds; of budgets.
        wall: Unix time, seconds; of tokens.
    """

    def __init__(
        self,
        base: str,
        credentials: App | str,
        per_minute: int,
        count: Callable[[Outcome], None],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._base = base.rstrip("/")
        self._credentials = credentials
        self._per_minute = per_minute
        self._count = count
        self._clock = clock
        self._wall = wall
        self._http = httpx.Client(
            headers=_HEADERS, timeout=_TIMEOUT, follow_redirects=False, verify=_trusted()
        )
        self._lock = threading.Lock()
        self._budgets: OrderedDict[str, Budget] = OrderedDict()
        self._tokens: dict[str, _Installation] = {}
        self._kept: OrderedDict[tuple[str, str], tuple[str, bytes]] = OrderedDict()
        #: Since when the API fails in a row, and how it failed last.
        self.failing: tuple[float, Detail] | None = None

    def lane(self, repo: str) -> str:
        """Whose budget calls about a repository take from: an App has one for each account."""
        return repo.partition("/")[0].lower() if isinstance(self._credentials, App) else ""

    def budget(self, lane: str) -> Budget:
        """The budget of a lane."""
        with self._lock:
            found = self._budgets.get(lane)
            if found is None:
                found = self._budgets[lane] = Budget(self._per_minute, self._clock)
                if len(self._budgets) > _MOST_LANES:
                    self._budgets.popitem(last=False)
            self._budgets.move_to_end(lane)
            return found

    def remaining(self) -> int | None:
        """What GitHub says is left, of the lane with the least; None when nobody knows."""
        with self._lock:
            budgets = list(self._budgets.values())
        return min((left for each in budgets if (left := each.left()) is not None), default=None)

    def close(self) -> None:
        """Let go of connections."""
        self._http.close()

    def get(self, repo: str, path: str) -> Reply:
        """GET ``/repos/{repo}{path}``. Raises :class:`Failed`."""
        lane, path = self.lane(repo), f"/repos/{repo}{path}"
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

    # --- credentials ----------------------------------------------------------------------------

    def _authorised(self, repo: str, lane: str, path: str, headers: dict[str, str]) -> _Raw:
        if not isinstance(self._credentials, App):
            return self._call("GET", lane, path, self._credentials, headers)
        token = self._token(repo, lane)
        try:
            return self._call("GET", lane, path, token, headers)
        except _Unauthorised:
            # Taken back before its time: GitHub does so when an App is changed.
            with self._lock:
                self._tokens.pop(lane, None)
            return self._call("GET", lane, path, self._token(repo, lane), headers)

    def _token(self, repo: str, lane: str) -> str:
        """A token for the account's installation, made when there is none that lasts."""
        with self._lock:
            if len(self._tokens) > _MOST_LANES:
                self._tokens.clear()
            mine = self._tokens.setdefault(lane, _Installation())
        with mine.lock:
            if mine.token and self._wall() < mine.ends - _EARLY_S:
                return mine.token
            if mine.number is None:
                found = self._as_app("GET", lane, f"/repos/{repo}/installation")
                mine.number = _number(found.get("id"))
            try:
                made = self._as_app("POST", lane, f"/app/installations/{mine.number}/access_tokens")
            except Failed:
                mine.number = None
                raise
            token, ends = made.get("token"), _instant(made.get("expires_at"))
            if not isinstance(token, str) or not token or not token.isascii() or ends is None:
                raise Failed(Detail.MALFORMED, again=True)
            mine.token, mine.ends = token, ends
            return token

    def _as_app(self, method: str, lane: str, path: str) -> Mapping[str, Any]:
        assert isinstance(self._credentials, App)
        raw = self._call(method, lane, path, self._credentials.jwt(self._wall()), {})
        if raw.status in (404, 410):
            # Not installed there, so nothing that is said of its jobs could be believed.
            self._count(Outcome.MISSING)
            raise Failed(Detail.FORBIDDEN)
        found = self._reply(raw.content).body
        self._count(Outcome.OK)
        return found

    # --- one request ----------------------------------------------------------------------------

    def _call(self, method: str, lane: str, path: str, token: str, more: dict[str, str]) -> _Raw:
        """Ask, and follow redirects within the host. The status is 200, 201, 304, 404 or 410."""
        budget = self.budget(lane)
        url = self._base + path
        for _ in range(_MOST_REDIRECTS + 1):
            if not budget.take():
                raise Failed(Detail.LIMITED, again=True)
            try:
                raw = self._send(method, url, {**more, "Authorization": f"Bearer {token}"}, budget)
                _tell(budget, raw.headers, self._wall())
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

    def _send(self, method: str, url: str, headers: dict[str, str], budget: Budget) -> _Raw:
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
                return _Raw(answer.status_code, answer.headers, bytes(content))
        except httpx.TimeoutException:
            budget.failed()
            raise self._failed(Outcome.TIMEOUT, Detail.TIMEOUT, again=True) from None
        except httpx.TransportError:
            budget.failed()
            raise self._failed(Outcome.UNREACHABLE, Detail.UNREACHABLE, again=True) from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError):
            # Among these a content encoding that is not what it says.
            raise self._failed(Outcome.MALFORMED, Detail.MALFORMED, again=True) from None

    def _judged(self, raw: _Raw, budget: Budget) -> _Raw:
        """The answer, when it is one. Raises :class:`Failed` for what is none."""
        status, headers = raw.status, raw.headers
        if status in (200, 201, 304, 404, 410):
            budget.works()
            self.failing = None
            return raw
        asked_to_wait = _seconds(headers.get("retry-after"))
        if status >= 500:
            budget.failed()
            if asked_to_wait is not None:
                budget.pause(asked_to_wait)
            raise self._failed(Outcome.SERVER_ERROR, Detail.SERVER_ERROR, again=True)
        spent = headers.get("x-ratelimit-remaining") == "0"
        secondary = status == 403 and b"secondary rate limit" in raw.content.lower()
        if status == 429 or (status == 403 and (spent or secondary or asked_to_wait is not None)):
            if asked_to_wait is not None:
                budget.pause(asked_to_wait)
            elif not spent or budget.left() is None:  # it does not say until when
                budget.pause(_SECONDARY_S)
            raise self._failed(Outcome.LIMITED, Detail.LIMITED, again=True)
        if status == 401:
            self._count(Outcome.FORBIDDEN)
            raise _Unauthorised(Detail.FORBIDDEN)
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

    def _keep(self, place: tuple[str, str], raw: _Raw) -> None:
        etag = raw.headers.get("etag", "")
        with self._lock:
            self._kept.pop(place, None)
            if etag and len(raw.content) <= _KEPT_BYTES:
                self._kept[place] = (etag, raw.content)
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)


@cache
def _trusted() -> ssl.SSLContext:
    """The authorities of the Web, and those of this machine: a GHES often has one of its own."""
    context = httpx.create_ssl_context()
    context.load_default_certs()
    return context


class _Unauthorised(Failed):
    """GitHub does not know the token."""


class _Installation:
    """The installation of an App in one account, and its token."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.number: int | None = None
        self.token = ""
        #: Unix time.
        self.ends = 0.0


def _tell(budget: Budget, headers: httpx.Headers, now: float) -> None:
    """What the headers say of the primary limit. GitHub's own clock counts, where it tells it."""
    left, resets = headers.get("x-ratelimit-remaining", ""), headers.get("x-ratelimit-reset", "")
    if not (_NUMBER.fullmatch(left) and _NUMBER.fullmatch(resets)):
        return
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        now = parsedate_to_datetime(headers.get("date", "")).timestamp()
    budget.told(int(left), int(resets) - now)


_NUMBER: Final = re.compile(r"[0-9]{1,15}")


def _seconds(told: str | None) -> float | None:
    """What ``Retry-After`` says: seconds, or a time, for which the usual minute stands."""
    if told is None:
        return None
    return float(told.strip()) if _NUMBER.fullmatch(told.strip()) else _SECONDARY_S


def _joined(url: str, location: str) -> str | None:
    """Where a redirect leads; None unless that is on the same host, by the same scheme."""
    try:
        there = str(httpx.URL(url).join(location))
        one, other = urlsplit(url), urlsplit(there)
        same = (one.scheme, one.netloc) == (other.scheme, other.netloc)
    except (httpx.InvalidURL, ValueError, UnicodeError):
        return None
    return there if location and same else None


def _number(told: Any) -> int:
    if not isinstance(told, int) or isinstance(told, bool) or told <= 0:
        raise Failed(Detail.MALFORMED, again=True)
    return told


def _instant(told: Any) -> float | None:
    """Unix time of an ISO time such as GitHub writes."""
    try:
        at = datetime.fromisoformat(told)
    except (TypeError, ValueError):
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _base64(said: Mapping[str, Any]) -> str:
    return _base64_bytes(json.dumps(said, separators=(",", ":")).encode())


def _base64_bytes(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
