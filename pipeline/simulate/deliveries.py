"""A hook of GitHub's: it delivers by HTTP, once, and has a list of what it tried.

:class:`FakeHook` sends and remembers; :class:`HookedGitHub` is the API in which its list stands,
beside lists of runs and of their jobs. As at GitHub nothing is sent again unless somebody asks, and
what is asked for is sent a little later, under the same GUID.
"""

from __future__ import annotations

import hmac
import http.client
import json
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

from pipeline.simulate.api import Answer, ApiJob, ApiRun, FakeGitHub, Mood, iso, job_body, run_body

#: How long GitHub waits for an answer. Seconds.
_PATIENCE_S: Final = 10.0
_APP: Final = "/app/hook/deliveries"
_LIST: Final = re.compile(r"(/app/hook|/(?:repos|orgs)/.+/hooks/\d+)/deliveries")
_AGAIN: Final = re.compile(r"(.+/deliveries)/(\d+)/attempts")
_ORG: Final = re.compile(r"/orgs/([^/]+)/installation")
_RUNS: Final = re.compile(r"/repos/([^/]+/[^/]+)/actions/runs")
_JOBS: Final = re.compile(r"/repos/([^/]+/[^/]+)/actions/runs/(\d+)/jobs")


@dataclass(frozen=True)
class Sent:
    """An attempt, as the list has it. ``code`` 0: there was no answer; None: it is under way."""

    id: int
    guid: str
    event: str
    body: bytes
    at: float
    redelivery: bool = False
    code: int | None = None

    def entry(self) -> dict[str, Any]:
        """As GitHub writes it."""
        words = {None: "pending", 0: "failed to connect to host"}
        ok = self.code is not None and 200 <= self.code < 300
        said = "OK" if ok else words.get(self.code, f"Invalid HTTP Response: {self.code}")
        return {
            "id": self.id,
            "guid": self.guid,
            "delivered_at": iso(int(self.at * 1000)),
            "redelivery": self.redelivery,
            "duration": 0.03,
            "status": said,
            "status_code": self.code or 0,
            "event": self.event,
            "action": None,
            "installation_id": None,
            "repository_id": None,
            "throttled_at": None,
        }


class FakeHook:
    """Delivers to ``url``, signed with ``secret``. Safe from several threads.

    Args:
        clock: Unix time, seconds.
    """

    def __init__(self, url: str, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self.url, self._secret, self._clock = url, secret, clock
        self._lock = threading.Lock()
        self._sent: list[Sent] = []
        self._again: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._redeliver, name="fake-hook", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send nothing any more."""
        self._again.put(None)
        self._thread.join(2 * _PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def sent(self) -> list[Sent]:
        """All attempts, the oldest first."""
        with self._lock:
            return list(self._sent)

    def deliver(self, body: bytes, event: str = "workflow_job") -> Sent:
        """Deliver for the first time; how it ended."""
        return self._try(str(uuid.uuid1()), event, body, False)

    def again(self, number: int) -> bool:
        """Have an attempt's delivery sent again, soon. False: there is none such."""
        with self._lock:
            known = 0 < number <= len(self._sent)
        if known:
            self._again.put(number)
        return known

    def _redeliver(self) -> None:
        while (number := self._again.get()) is not None:
            with self._lock:
                first = self._sent[number - 1]
            self._try(first.guid, first.event, first.body, True)

    def _try(self, guid: str, event: str, body: bytes, again: bool) -> Sent:
        with self._lock:
            number = len(self._sent) + 1
            sent = Sent(number, guid, event, body, self._clock(), again)
            self._sent.append(sent)
        sent = replace(sent, code=self._post(guid, event, body))
        with self._lock:
            self._sent[number - 1] = sent
        return sent

    def _post(self, guid: str, event: str, body: bytes) -> int:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_PATIENCE_S)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "GitHub-Hookshot/runnerstream",
            "X-GitHub-Event": event,
            "X-GitHub-Delivery": guid,
            "X-Hub-Signature-256": "sha256=" + hmac.digest(self._secret, body, "sha256").hex(),
        }
        try:
            connection.request("POST", parts.path, body, headers)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()


class HookedGitHub(FakeGitHub):
    """GitHub's API with lists of deliveries, runs and jobs.

    Args:
        hooks: by what stands before ``/deliveries``: ``/app/hook``, ``/repos/octo/repo/hooks/7``.
        jobs: as of :class:`FakeGitHub`.
        runs: the same.
        listed: the runs of a repository, and the jobs of a run: numbers.
        named: token, App, port, clock and whatever else :class:`FakeGitHub` takes.
    """

    def __init__(
        self,
        hooks: Mapping[str, FakeHook],
        jobs: Callable[[int], ApiJob | None] = lambda job: None,
        runs: Callable[[int, int], ApiRun | None] = lambda run, attempt: None,
        listed: tuple[Callable[[str], Iterable[int]], Callable[[int], Iterable[int]]] = (
            lambda repo: (),
            lambda run: (),
        ),
        **named: Any,
    ) -> None:
        self._hooks = hooks
        self._job_of, self._run_of = jobs, runs
        self._runs_of, self._jobs_of = listed
        super().__init__(jobs, runs, **named)

    def _opened(self, method: str, path: str, given: str) -> Answer | None:
        parts = urlsplit(path)
        if parts.path.startswith(_APP):
            if not self._doors.is_app(given.removeprefix("Bearer ")):
                return 401, b'{"message":"A JSON web token could not be decoded"}', {}
        else:
            # An organisation is asked for like a repository.
            about = _ORG.sub(r"/repos/\1/any/installation", path)
            closed = super()._opened(method, about, given)
            if closed is not None:
                return closed
        if (again := _AGAIN.fullmatch(parts.path)) and method == "POST":
            hook = self._hooks.get(again[1].removesuffix("/deliveries"))
            known = hook is not None and hook.again(int(again[2]))
            return (202, b"{}", {}) if known else (404, b'{"message":"Not Found"}', {})
        if (found := _LIST.fullmatch(parts.path)) and found[1] in self._hooks:
            asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
            return self._list(parts.path, self._hooks[found[1]], asked)
        return None

    def _list(self, path: str, hook: FakeHook, asked: Mapping[str, str]) -> Answer:
        per_page = min(100, int(asked.get("per_page", "30")))
        cursor = asked.get("cursor", "")
        if cursor and not re.fullmatch(r"v1_\d+", cursor):
            return 422, b'{"message":"Invalid cursor"}', {}
        sent = hook.sent[::-1]
        if cursor:
            sent = [each for each in sent if each.id <= int(cursor[3:])]
        shown, more = sent[:per_page], sent[per_page:]
        headers = {}
        if more:
            first = f"{self.url}{path}?per_page={per_page}"
            there = f"{first}&cursor=v1_{more[0].id}"
            headers["Link"] = f'<{first}>; rel="first", <{there}>; rel="next"'
        return 200, json.dumps([each.entry() for each in shown]).encode(), headers

    def _said(self, path: str, mood: Mood) -> dict[str, Any] | None:
        parts = urlsplit(path)
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if runs := _RUNS.fullmatch(parts.path):
            since = asked.get("created", ">=").removeprefix(">=")
            bodies = [
                body
                for number in self._runs_of(runs[1])
                if (run := self._run_of(number, 0)) is not None
                and (body := run_body(runs[1], number, run)).get("created_at", since) >= since
            ]
            bodies.sort(key=lambda body: int(body["id"]), reverse=True)
            return {"total_count": len(bodies), "workflow_runs": _cut(bodies, asked)}
        if jobs := _JOBS.fullmatch(parts.path):
            shown = [
                job_body(jobs[1], number, job)
                for number in self._jobs_of(int(jobs[2]))
                if (job := self._job_of(number)) is not None
            ]
            return {"total_count": len(shown), "jobs": _cut(shown, asked)}
        return super()._said(path, mood)


def _cut(bodies: list[dict[str, Any]], asked: Mapping[str, str]) -> list[dict[str, Any]]:
    per_page, page = int(asked.get("per_page", "30")), int(asked.get("page", "1"))
    return bodies[(page - 1) * per_page : page * per_page]
