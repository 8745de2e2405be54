"""What GitHub's REST API says about a job. The table is that of :mod:`pipeline.providers.rest`.

**A run that was re-run is open again**, while the job's own attempt is over. So the run is asked
for the job's attempt. A run that is ``completed`` with ``action_required`` waits for an approval,
and is open.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Final

from pipeline.providers.api import Detail, Outcome
from pipeline.providers.calls import Failed, Reply
from pipeline.providers.github_calls import App, GitHubCalls
from pipeline.providers.rest import QUEUED, RestClient, RunState, whole, word
from topics.keys import GITHUB_HOST, canonical_host

_OPEN: Final = QUEUED | {"in_progress"}


def api_base(host: str) -> str:
    """Where the API of a GitHub host is: github.com, GHE.com or one's own (GHES)."""
    host = canonical_host(host)
    if host == GITHUB_HOST or host.endswith(".ghe.com"):
        return f"https://api.{host}"
    return f"https://{host}/api/v3"


class GitHubApi(RestClient):
    """Asks the API of one GitHub host about its jobs.

    Args:
        host: see :class:`RestClient`.
        credentials: an App, or a token.
        base: where its API is; empty: where the host has it.
        per_minute: requests in any 60 s, of each account for an App, else in all.
        count: told how each request ended.
        clock: monotonic, seconds.
        wall: Unix time, seconds.
    """

    provider = "github"
    repos = re.compile(r"(?!\.+/)[A-Za-z0-9._-]{1,100}/(?!\.+$)[A-Za-z0-9._-]{1,100}")

    def __init__(
        self,
        host: str,
        credentials: App | str,
        *,
        base: str = "",
        per_minute: int = 100,
        count: Callable[[Outcome], None] = lambda outcome: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        host = canonical_host(host)
        base = base or api_base(host)
        who = f"App {credentials.app_id}" if isinstance(credentials, App) else "a token"
        super().__init__(
            host,
            GitHubCalls(base, credentials, per_minute, count, clock, wall),
            f"asks {base} about jobs of {host} with {who}",
            clock,
            wall,
        )

    def _job(self, repo: str, job_id: str) -> Reply:
        return self._calls.get(f"/repos/{repo}/actions/jobs/{job_id}", repo)

    def _run(self, repo: str, run_id: int, attempt: int) -> tuple[RunState, Reply]:
        place = f"/repos/{repo}/actions/runs/{run_id}"
        reply = self._calls.get(place, repo)
        latest = whole(reply.body, "run_attempt")
        if not reply.missing and 0 < attempt < latest:
            reply = self._calls.get(f"{place}/attempts/{attempt}", repo)
        if reply.missing:
            return "missing", reply
        run = reply.body
        if whole(run, "id") != run_id:
            raise Failed(Detail.CONTRADICTORY)
        status = word(run, "status")
        if status in _OPEN:
            return "open", reply
        if status != "completed":
            raise Failed(Detail.MALFORMED)
        return ("open" if run.get("conclusion") == "action_required" else "over"), reply

    def _visible(self, repo: str) -> bool:
        return not self._calls.get(f"/repos/{repo}", repo).missing
