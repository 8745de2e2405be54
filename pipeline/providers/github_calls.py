"""Calls to GitHub's REST API: its credentials, and its words for limits.

* **Credentials.** A token, or a GitHub App: a JWT signed with its key names the installation of an
  account, for which tokens of an hour are made; one is renewed 5 minutes before it ends, or when
  GitHub no longer knows it.
* **Conditional requests** that find nothing new cost nothing of GitHub's limit.
* **Limits** (docs.github.com, rate limits for the REST API): ``x-ratelimit-remaining`` and
  ``-reset``; the primary limit is 403 or 429 with nothing remaining, the secondary one has
  ``Retry-After``, or a message that says so: then a minute.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from pipeline.providers.api import Detail, Outcome
from pipeline.providers.calls import MOST_LANES, Calls, Failed, Listed, Raw, Unauthorised

#: A token is renewed this much before its end. Seconds.
_EARLY_S: Final = 300.0
#: GitHub takes a JWT of at most 10 minutes; its clock may be behind ours.
_JWT_S: Final = 540
_SKEW_S: Final = 60

_HEADERS: Final = {
    "Accept": "application/vnd.github+json",
    "X-GitHub-Api-Version": "2022-11-28",
}


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


class GitHubCalls(Calls):
    """Calls GitHub's API as an App or with a token. Safe from several threads.

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
        super().__init__(base, per_minute, count, _HEADERS, clock=clock, wall=wall)
        self._credentials = credentials
        self._tokens: dict[str, _Installation] = {}

    def lane(self, repo: str) -> str:
        """Whose budget calls about a repository take from: an App has one for each account."""
        return repo.partition("/")[0].lower() if isinstance(self._credentials, App) else ""

    def listed_of_app(self, path: str) -> Listed:
        """A list that is the App's own. Raises :class:`Failed`."""
        return self._list(self._call("GET", "", path, self._jwt()))

    def post(self, path: str, repo: str = "") -> bool:
        """POST without a body, about a repository or an organisation; without one as the App
        itself. Whether there is such a thing. Raises :class:`Failed`."""
        if repo:
            raw = self._authorised(repo, self.lane(repo), path, {}, "POST")
        else:
            raw = self._call("POST", "", path, self._jwt())
        missing = raw.status in (404, 410)
        self._count(Outcome.MISSING if missing else Outcome.OK)
        return not missing

    def _jwt(self) -> dict[str, str]:
        """What only the App itself may ask for takes its JWT, and none of its tokens."""
        if not isinstance(self._credentials, App):
            raise Failed(Detail.UNSUPPORTED)
        return _bearer(self._credentials.jwt(self._wall()))

    def _authorised(
        self, repo: str, lane: str, path: str, headers: dict[str, str], method: str = "GET"
    ) -> Raw:
        if not isinstance(self._credentials, App):
            return self._call(method, lane, path, {**headers, **_bearer(self._credentials)})
        token = self._token(repo, lane)
        try:
            return self._call(method, lane, path, {**headers, **_bearer(token)})
        except Unauthorised:
            # Taken back before its time: GitHub does so when an App is changed.
            with self._lock:
                self._tokens.pop(lane, None)
            token = self._token(repo, lane)
            return self._call(method, lane, path, {**headers, **_bearer(token)})

    def _token(self, repo: str, lane: str) -> str:
        """A token for the account's installation, made when there is none that lasts."""
        with self._lock:
            if len(self._tokens) > MOST_LANES:
                self._tokens.clear()
            mine = self._tokens.setdefault(lane, _Installation())
        with mine.lock:
            if mine.token and self._wall() < mine.ends - _EARLY_S:
                return mine.token
            if mine.number is None:
                of = f"/repos/{repo}" if "/" in repo else f"/orgs/{repo}"
                found = self._as_app("GET", lane, f"{of}/installation")
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
        raw = self._call(method, lane, path, self._jwt())
        if raw.status in (404, 410):
            # Not installed there, so nothing that is said of its jobs could be believed.
            self._count(Outcome.MISSING)
            raise Failed(Detail.FORBIDDEN)
        found = self._reply(raw.content).body
        self._count(Outcome.OK)
        return found


class _Installation:
    """The installation of an App in one account, and its token."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.number: int | None = None
        self.token = ""
        #: Unix time.
        self.ends = 0.0


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


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
