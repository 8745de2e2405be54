"""A provider's REST API that answers from the truth, and misbehaves when it is told to.

A real HTTP server on loopback, for tests, the demonstration and simulations. It knows the endpoints
that recovery asks; GitHub's are a job, a run and its attempts, a repository, the installation of an
App and its tokens. With a ``token`` or an ``app`` it refuses who does not name itself.
``pipeline.simulate.peer_apis`` has the other providers'.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa


@dataclass(frozen=True)
class ApiJob:
    """A job as the API shows it. Times in ms since the epoch."""

    status: str
    run_id: int
    attempt: int = 1
    conclusion: str | None = None
    created_at: int | None = None
    started_at: int | None = None
    completed_at: int | None = None
    name: str = "build"
    labels: tuple[str, ...] = ("self-hosted", "linux")
    runner_id: int | None = None
    runner_name: str | None = None
    #: Fields beyond these, or others in their place.
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ApiRun:
    """An attempt of a run as the API shows it. Times in ms since the epoch."""

    status: str
    attempt: int = 1
    conclusion: str | None = None
    started_at: int | None = None
    updated_at: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


#: Asked with the job's id; None: there is none.
Jobs = Callable[[int], ApiJob | None]
#: Asked with the run's id, and an attempt or 0 for the latest.
Runs = Callable[[int, int], ApiRun | None]


class Mood(StrEnum):
    """How the API behaves."""

    FINE = "fine"
    #: Connections are closed without a word.
    DOWN = "down"
    #: Answers come after ``slow_s``.
    SLOW = "slow"
    #: 502.
    ERROR = "error"
    #: 403 with nothing remaining, until ``reset_s`` from now.
    SPENT = "spent"
    #: 403 with Retry-After, ``reset_s``.
    SECONDARY = "secondary"
    #: 429 without any header.
    TOO_MANY = "too_many"
    FORBIDDEN = "forbidden"
    UNAUTHORISED = "unauthorised"
    #: 200, and a page of HTML.
    HTML = "html"
    #: 200, and half of the object.
    CUT = "cut"
    ARRAY = "array"
    #: 200, and 6 MB.
    HUGE = "huge"
    #: 200, and what it says is compressed and is not.
    BROKEN = "broken"
    #: 200, and another job.
    WRONG = "wrong"
    #: 404 for every job.
    LYING = "lying"
    #: 404 for whatever is asked: how GitHub hides what may not be seen.
    HIDING = "hiding"
    #: 410 for every job and run.
    GONE = "gone"
    #: 301 to ``redirect``, then as ever.
    MOVED = "moved"
    #: 304 to whoever did not ask for it.
    UNCHANGED = "unchanged"


@dataclass(frozen=True)
class Request:
    """A request as it came."""

    method: str
    path: str
    at: float
    authorization: str
    status: int
    #: Whether the mood was :attr:`Mood.DOWN`: then nothing was answered.
    dropped: bool = False


_JOB: Final = re.compile(r"/repos/([^/]+/[^/]+)/actions/jobs/(\d+)")
_RUN: Final = re.compile(r"/repos/([^/]+/[^/]+)/actions/runs/(\d+)(?:/attempts/(\d+))?")
_REPO: Final = re.compile(r"/repos/([^/]+/[^/]+)")
_INSTALLATION: Final = re.compile(r"/repos/([^/]+)/[^/]+/installation")
_TOKENS: Final = re.compile(r"/app/installations/(\d+)/access_tokens")
#: What a moved repository's path begins with.
_MOVED: Final = "/moved"

Answer = tuple[int, bytes, dict[str, str]]


#: What is said whatever is asked.
BLUNT: Final[dict[Mood, Answer]] = {
    Mood.ERROR: (502, b"<html>Bad Gateway</html>", {}),
    Mood.SPENT: (403, b'{"message":"API rate limit exceeded"}', {}),
    Mood.SECONDARY: (403, b'{"message":"You have exceeded a secondary rate limit."}', {}),
    Mood.TOO_MANY: (429, b"{}", {}),
    Mood.FORBIDDEN: (403, b'{"message":"Resource not accessible by integration"}', {}),
    Mood.UNAUTHORISED: (401, b'{"message":"Bad credentials"}', {}),
    Mood.HTML: (200, b"<html>Sign in to the network</html>", {}),
    Mood.HUGE: (200, b'{"id":1,"name":"' + b"x" * 6_000_000 + b'"}', {}),
    Mood.BROKEN: (200, b"this is no gzip", {"Content-Encoding": "gzip"}),
}


class FakeApi:
    """A provider's API that serves until closed. What it says is for its subclasses to say.

    Set at any time: ``mood``; ``moody`` (for how many requests, None: for ever); ``slow_s``;
    ``reset_s``; ``redirect``; ``limit`` (requests an hour, None: no limit is told).
    """

    #: The header in which whoever asks names itself, lower-case.
    named_in = "authorization"
    #: What headers of limits begin with; empty: it has none.
    limits = "X-RateLimit"
    #: What it says whatever is asked, by its mood.
    blunt: Mapping[Mood, Answer] = BLUNT

    def __init__(self, port: int, clock: Callable[[], float]) -> None:
        """``clock`` is Unix time, seconds; of limits and tokens, and stamped on requests."""
        self.mood = Mood.FINE
        self.moody: int | None = None
        self.slow_s = 0.2
        self.reset_s = 60
        self.redirect = ""
        self.limit: int | None = None
        #: Every request, in order.
        self.requests: list[Request] = []
        self._clock = clock
        self._period = (0.0, 0)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._http = _serve(self, port)

    @property
    def url(self) -> str:
        """Its base."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def now(self) -> float:
        """Unix time, as it tells it."""
        return self._clock()

    def close(self) -> None:
        """Stop serving."""
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def asked(self, path: str = "") -> list[str]:
        """The paths that were asked for, those that contain ``path``."""
        return [each.path for each in list(self.requests) if path in each.path]

    def answer(self, method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
        """Status, body and headers; None: the connection is to be closed. ``headers`` are
        those of the request, lower-case."""
        mood = self._mood()
        given = headers.get(self.named_in, "")
        if mood is Mood.SLOW:
            self._closing.wait(self.slow_s)
        found = None if mood is Mood.DOWN else self._answer(method, path, given, mood)
        if found is not None and found[0] == 200:
            status, body, more = found
            more = {**more, "ETag": f'"{hashlib.blake2b(body, digest_size=8).hexdigest()}"'}
            found = (status, body, more)
            if headers.get("if-none-match") == more["ETag"] or mood is Mood.UNCHANGED:
                found = (304, b"", more)
        if found is not None:
            status, body, more = found
            found = (status, body, {**self._left(status, mood), **more})
        with self._lock:
            self.requests.append(
                Request(method, path, self._clock(), given, found[0] if found else 0, found is None)
            )
        return found

    def turn(self, mood: Mood, requests: int | None = None) -> None:
        """Change the mood, for so many requests; None: for ever. From any thread, unlike setting
        both one after the other."""
        with self._lock:
            self.mood, self.moody = mood, requests

    def _mood(self) -> Mood:
        with self._lock:
            if self.moody is not None:
                self.moody -= 1
                if self.moody < 0:
                    self.mood, self.moody = Mood.FINE, None
            return self.mood

    def _left(self, status: int, mood: Mood) -> dict[str, str]:
        """The headers of the limit. Conditional requests that find nothing new are free."""
        now = self._clock()
        left, resets = f"{self.limits}-Remaining", f"{self.limits}-Reset"
        if mood is Mood.SPENT and self.limits:
            return {left: "0", resets: str(int(now) + self.reset_s)}
        if self.limit is None or not self.limits:
            return {}
        with self._lock:
            began, used = self._period
            if now - began >= 3_600:
                began, used = now, 0
            used += status != 304
            self._period = (began, used)
        return {
            left: str(max(0, self.limit - used)),
            resets: str(int(began) + 3_600),
        }

    def _answer(self, method: str, path: str, given: str, mood: Mood) -> Answer:
        if mood is Mood.MOVED and not path.startswith(_MOVED):
            return 301, b"{}", {"Location": self.redirect or f"{self.url}{_MOVED}{path}"}
        path = path.removeprefix(_MOVED)
        blunt = self.blunt.get(mood)
        if blunt is not None:
            retry = {"Retry-After": str(self.reset_s)} if mood is Mood.SECONDARY else {}
            return blunt[0], blunt[1], {**blunt[2], **retry}
        used = self._period[1]
        if self.limit is not None and used >= self.limit and self._clock() < self._period[0] + 3600:
            return self.blunt[Mood.SPENT]
        opened = self._opened(method, path, given)
        if opened is not None:
            return opened
        said = None if method != "GET" else self._said(path, mood)
        if said is None:
            return (410 if mood is Mood.GONE else 404), b'{"message":"Not Found"}', {}
        body = json.dumps(said).encode()
        if mood is Mood.CUT:
            body = body[: len(body) // 2]
        return 200, b"[" + body + b"]" if mood is Mood.ARRAY else body, {}

    def _opened(self, method: str, path: str, given: str) -> Answer | None:
        """What is answered to whoever may not ask, or asks about itself; None for who may ask."""
        raise NotImplementedError

    def _said(self, path: str, mood: Mood) -> dict[str, Any] | None:
        """What is at a path; None: nothing."""
        raise NotImplementedError


class FakeGitHub(FakeApi):
    """GitHub's.

    Args:
        jobs: the truth about jobs; a mapping's ``get`` will do.
        runs: the truth about runs.
        token: who must be named by whoever asks; None: nobody.
        app: id and public key of an App that may ask as well.
        clock: Unix time, seconds.
        sees: whether who asks may see a repository; of one that is hidden everything is 404.

    Set at any time, beside what all have: ``token_s`` (how long an App's token lasts).
    """

    def __init__(
        self,
        jobs: Jobs,
        runs: Runs,
        *,
        token: str | None = None,
        app: tuple[str, rsa.RSAPublicKey] | None = None,
        port: int = 0,
        clock: Callable[[], float] = time.time,
        sees: Callable[[str], bool] = lambda repo: True,
    ) -> None:
        self.token_s = 3_600.0
        self._jobs, self._runs, self._sees = jobs, runs, sees
        self._doors = _Doors(token, app, clock)
        super().__init__(port, clock)

    def _opened(self, method: str, path: str, given: str) -> Answer | None:
        return self._doors.answer(method, path, given, self.token_s)

    def _said(self, path: str, mood: Mood) -> dict[str, Any] | None:
        job, run, repo = (each.fullmatch(path) for each in (_JOB, _RUN, _REPO))
        about = job or run or repo
        if mood is Mood.HIDING or (about and not self._sees(about[1])):
            return None
        if job:
            lies = mood in (Mood.LYING, Mood.GONE)
            known = None if lies else self._jobs(int(job[2]))
            shown = int(job[2]) + (mood is Mood.WRONG)
            return None if known is None else job_body(job[1], shown, known)
        if run:
            asked = 0 if mood is Mood.GONE else int(run[2])
            found = self._runs(asked, int(run[3] or 0)) if asked else None
            return None if found is None else run_body(run[1], asked, found)
        return {"id": 1, "full_name": repo[1]} if repo else None


class _Doors:
    """Who may ask: a token, or an App, which gets tokens of its own."""

    def __init__(
        self,
        token: str | None,
        app: tuple[str, rsa.RSAPublicKey] | None,
        clock: Callable[[], float],
    ) -> None:
        self._token, self._app, self._clock = token, app, clock
        self._made: dict[str, float] = {}
        self._lock = threading.Lock()

    def answer(self, method: str, path: str, given: str, token_s: float) -> Answer | None:
        """What is answered to an App about itself, or to a stranger; None for who may ask."""
        tokens = _TOKENS.fullmatch(path)
        about = _INSTALLATION.fullmatch(path)
        bearer = given.removeprefix("Bearer ")
        if (tokens and method == "POST") or about:
            if not self.is_app(bearer):
                return 401, b'{"message":"A JSON web token could not be decoded"}', {}
            if about:
                return 200, json.dumps({"id": _installation(about[1])}).encode(), {}
            with self._lock:
                made = f"ghs_{len(self._made) + 1}"
                self._made[made] = self._clock() + token_s
            ends = {"token": made, "expires_at": iso(int(self._made[made] * 1000))}
            return 201, json.dumps(ends).encode(), {}
        if self._token is None and self._app is None:
            return None
        known = bearer == self._token or self._clock() < self._made.get(bearer, 0.0)
        return None if known else (401, b'{"message":"Bad credentials"}', {})

    def is_app(self, jwt: str) -> bool:
        """Whether that is the App itself."""
        if self._app is None:
            return False
        try:
            head, said, signature = jwt.split(".")
            self._app[1].verify(
                _decoded(signature), f"{head}.{said}".encode(), padding.PKCS1v15(), hashes.SHA256()
            )
            claims = json.loads(_decoded(said))
        except (InvalidSignature, ValueError):
            return False
        now = self._clock()
        return bool(
            claims["iss"] == self._app[0]
            and claims["iat"] <= now < claims["exp"] <= claims["iat"] + 600
        )


def job_body(repo: str, job_id: int, job: ApiJob) -> dict[str, Any]:
    """A job as GitHub's API writes it."""
    return {
        "id": job_id,
        "run_id": job.run_id,
        "run_attempt": job.attempt,
        "workflow_name": "ci",
        "head_branch": "main",
        "html_url": f"https://github.com/{repo}/actions/runs/{job.run_id}/job/{job_id}",
        "status": job.status,
        "conclusion": job.conclusion,
        "created_at": iso(job.created_at),
        "started_at": iso(job.started_at if job.started_at is not None else job.created_at),
        "completed_at": iso(job.completed_at),
        "name": job.name,
        "steps": [],
        "labels": list(job.labels),
        "runner_id": job.runner_id,
        "runner_name": job.runner_name,
        **job.more,
    }


def run_body(repo: str, run_id: int, run: ApiRun) -> dict[str, Any]:
    """A run as GitHub's API writes it."""
    return {
        "id": run_id,
        "run_attempt": run.attempt,
        "event": "push",
        "status": run.status,
        "conclusion": run.conclusion,
        "html_url": f"https://github.com/{repo}/actions/runs/{run_id}",
        "run_started_at": iso(run.started_at),
        "updated_at": iso(run.updated_at),
        "actor": {"login": "octocat"},
        **run.more,
    }


def iso(ms: int | None) -> str | None:
    """A time as GitHub writes it, in whole seconds."""
    if ms is None:
        return None
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _installation(account: str) -> int:
    """An id for the installation of an account."""
    return int.from_bytes(hashlib.blake2b(account.encode(), digest_size=4).digest()) or 1


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _serve(api: FakeApi, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        #: Head and body in one packet: two of them would wait for each other's acknowledgement.
        wbufsize = -1

        def _respond(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found = api.answer(
                self.command, self.path, {name.lower(): told for name, told in self.headers.items()}
            )
            if found is None:
                self.close_connection = True
                return
            status, body, headers = found
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self._respond()

        def do_POST(self) -> None:
            self._respond()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(api.now() if timestamp is None else timestamp, usegmt=True)

        def log_message(self, format: str, *args: Any) -> None:
            """What is asked is in ``requests``."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Who asks may leave before the end of an answer."""

    server = Server(("127.0.0.1", port), Handler)
    threading.Thread(
        target=server.serve_forever, args=(0.01,), name="fake-api", daemon=True
    ).start()
    return server
