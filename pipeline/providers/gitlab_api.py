"""What GitLab's REST API says about a job (``GET /projects/{project}/jobs/{id}``).

Its words become GitHub's (:mod:`pipeline.providers.gitlab`). From its documentation (jobs and
pipelines API) and its source:

* **A pipeline's end is no proof.** It is over and open again whenever somebody starts a manual job
  of it or retries one, and its status follows its jobs' with a delay. So there is no ghost in
  GitLab, and the end of a pipeline ends no job: a job says itself how it is. One that is
  ``pending`` in a pipeline that is over contradicts itself. (GitLab drops such jobs.)
* A project is named by its path or its number. Its path is one segment of the URL, so it is
  encoded whole.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

from pipeline.providers.api import Detail, Outcome, Said
from pipeline.providers.base import Fact
from pipeline.providers.calls import Calls, Failed, Reply
from pipeline.providers.gitlab import CONCLUSIONS, HELD, STARTED, job_words
from pipeline.providers.rest import RestClient, RunState, translated, unknown, whole, word
from pipeline.providers.words import within
from topics.recovery import Answer, Probe

#: Of a pipeline.
_OPEN: Final = HELD | STARTED | {"pending"}


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
        if status not in _OPEN and status not in CONCLUSIONS:
            raise Failed(Detail.MALFORMED)
        return ("open" if status in _OPEN else "over"), reply

    def _visible(self, repo: str) -> bool:
        return not self._calls.get(_project(repo)).missing


def _project(repo: str) -> str:
    return f"/projects/{quote(repo, safe='')}"


def _told(body: Mapping[str, Any]) -> dict[str, Any]:
    """A job in GitHub's words. Raises :class:`Failed` for what is none."""
    found, run = job_words(body), within(body, "pipeline")
    if found is None or not whole(run, "id"):
        raise Failed(Detail.MALFORMED)
    about = {"run_id": run["id"], "run_status": word(run, "status"), "head_sha": run.get("sha")}
    return found | about
