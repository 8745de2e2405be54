"""What GitLab's REST API says about a job (``GET /projects/{project}/jobs/{id}``).

Its words become GitHub's. From its documentation (jobs and pipelines API) and its source:

| GitLab | here |
| --- | --- |
| ``pending`` | queued |
| ``created``, ``waiting_for_resource``, ``preparing``, ``waiting_for_callback``, ``manual``, \
``scheduled`` | waiting: no runner may take it yet |
| ``running``, ``canceling`` | in progress |
| ``success``, ``failed``, ``canceled``, ``skipped`` | completed |

* **A pipeline's end is no proof.** It is over and open again whenever somebody starts a manual job
  of it or retries one, and its status follows its jobs' with a delay. So there is no ghost in
  GitLab, and the end of a pipeline ends no job: a job says itself how it is. One that is
  ``pending`` in a pipeline that is over contradicts itself. (GitLab drops such jobs.)
* **When it was queued** is its start less ``queued_duration``. ``created_at`` is when its pipeline
  was made, also of a job of a late stage. Of one that has not started nothing is measured.
* A project is named by its path or its number. Its path is one segment of the URL, so it is
  encoded whole.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import quote

from pipeline.providers.api import Detail, Outcome, Said
from pipeline.providers.base import Fact
from pipeline.providers.calls import Calls, Failed, Reply
from pipeline.providers.rest import RestClient, RunState, translated, unknown, whole, word
from topics.recovery import Answer, Probe

_HELD: Final = frozenset(
    {"created", "waiting_for_resource", "preparing", "waiting_for_callback", "manual", "scheduled"}
)
_STARTED: Final = frozenset({"running", "canceling"})
_CONCLUSIONS: Final = {
    "success": "success", "failed": "failure", "canceled": "cancelled", "skipped": "skipped",
}  # fmt: skip
#: Why a job failed, where that has a conclusion of its own.
_FAILURES: Final = {"job_execution_timeout": "timed_out"}
#: Of a pipeline.
_OPEN: Final = _HELD | _STARTED | {"pending"}


class GitLabApi(RestClient):
    """Asks the API of one GitLab about its jobs.

    Args:
        url: of GitLab itself, ``https://gitlab.com``; its host is that of its jobs' keys.
        token: that may read the API (``read_api``).
        per_minute: requests in any 60 s.
        count: told how each request ended.
        clock: monotonic, seconds.
        wall: Unix time, seconds.
    """

    provider = "gitlab"
    repos = re.compile(
        r"[1-9][0-9]{0,18}|(?=.{1,512}$)(?!\.+/)[A-Za-z0-9._-]+(/(?!\.+(/|$))[A-Za-z0-9._-]+)+"
    )

    def __init__(
        self,
        url: str,
        token: str,
        *,
        per_minute: int = 100,
        count: Callable[[Outcome], None] = lambda outcome: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        base = f"{url.rstrip('/')}/api/v4"
        calls = Calls(base, per_minute, count, {"Accept": "application/json"}, "ratelimit",
                      {"PRIVATE-TOKEN": token}, clock=clock, wall=wall)  # fmt: skip
        super().__init__(url, calls, "", clock, wall)
        self.about = f"asks {base} about jobs of GitLab at {self.host} with a token"

    def _job(self, repo: str, job_id: str) -> Reply:
        reply = self._calls.get(f"{_project(repo)}/jobs/{job_id}")
        return reply if reply.missing else translated(_told(reply.body))

    def _waiting(
        self, probe: Probe, job: Mapping[str, Any], run_id: int, said: tuple[Fact, ...]
    ) -> Said:
        if job["status"] == "queued" and job["run_status"] not in _OPEN:
            return unknown(Detail.CONTRADICTORY)
        return Said(Answer.QUEUED, said)

    def _run(self, repo: str, run_id: int, attempt: int) -> tuple[RunState, Reply]:
        reply = self._calls.get(f"{_project(repo)}/pipelines/{run_id}")
        if reply.missing:
            return "missing", reply
        if whole(reply.body, "id") != run_id:
            raise Failed(Detail.CONTRADICTORY)
        status = word(reply.body, "status")
        if status not in _OPEN and status not in _CONCLUSIONS:
            raise Failed(Detail.MALFORMED)
        return ("open" if status in _OPEN else "over"), reply

    def _visible(self, repo: str) -> bool:
        return not self._calls.get(_project(repo)).missing


def _project(repo: str) -> str:
    return f"/projects/{quote(repo, safe='')}"


def _told(body: Mapping[str, Any]) -> dict[str, Any]:
    """A job in GitHub's words. Raises :class:`Failed` for what is none."""
    status, started = word(body, "status"), body.get("started_at")
    pipeline, runner = _object(body, "pipeline"), _object(body, "runner")
    if not whole(pipeline, "id"):
        raise Failed(Detail.MALFORMED)
    found: dict[str, Any] = {
        "id": body.get("id"),
        "run_id": pipeline["id"],
        "run_status": word(pipeline, "status"),
        "conclusion": None,
        "created_at": _queued_at(started, body.get("queued_duration")),
        "started_at": started,
        "completed_at": body.get("finished_at"),
        "name": body.get("name"),
        "head_branch": body.get("ref"),
        "head_sha": pipeline.get("sha"),
        "html_url": body.get("web_url"),
        "labels": body.get("tag_list") or [],
        "runner_id": runner.get("id"),
        "runner_name": runner.get("description") or runner.get("name"),
    }
    if started is None:
        found["steps"] = []  # with nobody to run it that says: it never ran
    if status == "pending":
        found["status"] = "queued"
    elif status in _HELD:
        found["status"] = "waiting"
    elif status in _STARTED:
        found["status"] = "in_progress"
    elif status in _CONCLUSIONS:
        found["status"] = "completed"
        found["conclusion"] = _CONCLUSIONS[status]
        if status == "failed":
            why = word(body, "failure_reason")
            found["conclusion"] = _FAILURES.get(why, found["conclusion"])
    else:
        raise Failed(Detail.MALFORMED)
    return found


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = body.get(name)
    return found if isinstance(found, dict) else {}


def _queued_at(started: Any, waited: Any) -> str | None:
    """When the job was queued, from its start and the seconds that it waited for a runner."""
    if isinstance(waited, bool) or not isinstance(waited, (int, float)) or not waited >= 0:
        return None
    try:
        return (datetime.fromisoformat(started) - timedelta(seconds=waited)).isoformat()
    except (TypeError, ValueError, OverflowError):
        return None
