"""What Gitea's REST API says about a job (``GET /repos/{owner}/{repo}/actions/jobs/{id}``).

It speaks GitHub's language with an accent, from Gitea 1.25 on. What is known of it is from its
source (``services/convert``) and its API's documentation:

* A job that waits for a runner is ``queued``. One that waits for other jobs, for its turn or for an
  approval is ``waiting`` or ``pending``, by version; one that is being cancelled ``in_progress``.
* ``conclusion``, ``runner_id`` and ``runner_name`` are left out, 0 or empty when there is none. A
  job that is completed and has no conclusion is one whose status Gitea itself does not know.
* **When a job was queued is not told.** ``created_at`` is when its run was made, also of a job that
  waited for others for hours. So no queue time is measured with it.
* **Attempts** are counted when a runner takes the job, and older versions run a job again under its
  old id. So they tell nothing of whether a run is over, and are left out.
* **404 is also what a server says that has no such page**: an older Gitea, or Forgejo, which has
  none for a single job. So ``gone`` needs a list of runs that may be seen, or the run itself.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from pipeline.providers.api import Detail, Outcome
from pipeline.providers.calls import Calls, Failed, Reply
from pipeline.providers.gitea import STATUSES, job_words
from pipeline.providers.rest import QUEUED, RestClient, RunState, translated, whole, word

_OPEN: Final = QUEUED | {"in_progress"}


class GiteaApi(RestClient):
    """Asks the API of one Gitea about its jobs.

    Args:
        url: of Gitea itself, ``https://git.example.com``; its host is that of its jobs' keys.
        token: that may read repositories.
        per_minute: requests in any 60 s.
        count: told how each request ended.
        clock: monotonic, seconds.
        wall: Unix time, seconds.
    """

    provider = "gitea"
    repos = re.compile(r"(?!\.+/)[A-Za-z0-9._-]{1,100}/(?!\.+$)[A-Za-z0-9._-]{1,100}")

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
        calls = gitea_calls(url, token, per_minute, count, clock, wall)
        super().__init__(url, calls, "", clock, wall)
        self.about = f"asks {_base(url)} about jobs of Gitea at {self.host} with a token"

    def _job(self, repo: str, job_id: str) -> Reply:
        reply = self._calls.get(f"/repos/{repo}/actions/jobs/{job_id}")
        return reply if reply.missing else translated(told_job(reply.body))

    def _run(self, repo: str, run_id: int, attempt: int) -> tuple[RunState, Reply]:
        reply = self._calls.get(f"/repos/{repo}/actions/runs/{run_id}")
        if reply.missing:
            return "missing", reply
        if whole(reply.body, "id") != run_id:
            raise Failed(Detail.CONTRADICTORY)
        run = told_run(reply.body)
        status = run["status"]
        if status not in _OPEN and status != "completed":
            raise Failed(Detail.MALFORMED)
        return ("open" if status in _OPEN else "over"), translated(run)

    def _visible(self, repo: str) -> bool:
        reply = self._calls.get(f"/repos/{repo}/actions/runs?limit=1")
        return not reply.missing and isinstance(reply.body.get("workflow_runs"), list)


def gitea_calls(
    url: str,
    token: str,
    per_minute: int,
    count: Callable[[Outcome], None],
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> Calls:
    """Calls to the API of a Gitea at ``url``; the rest is as of :class:`GiteaApi`."""
    return Calls(_base(url), per_minute, count, {"Accept": "application/json"},
                 credentials={"Authorization": f"token {token}"},
                 clock=clock, wall=wall)  # fmt: skip


def _base(url: str) -> str:
    return f"{url.rstrip('/')}/api/v1"


def told_run(body: Mapping[str, Any]) -> dict[str, Any]:
    """A run in GitHub's words. Raises like :func:`told_job`."""
    run = told_job(body)
    run["run_started_at"], run["updated_at"] = run.get("started_at"), run.get("completed_at")
    return run


def told_job(body: Mapping[str, Any]) -> dict[str, Any]:
    """A job in GitHub's words. Raises :class:`Failed` for a status that it cannot have."""
    status = word(body, "status")
    found = {**job_words(body), "status": STATUSES.get(status, status)}
    if found["status"] == "completed" and found["conclusion"] is None:
        raise Failed(Detail.MALFORMED)
    return found
