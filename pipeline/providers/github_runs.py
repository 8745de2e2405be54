"""The runs of a GitHub repository and their jobs (docs.github.com, REST API for workflow runs)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from pipeline.providers.api import Detail
from pipeline.providers.base import Fact
from pipeline.providers.calls import Failed
from pipeline.providers.github_calls import GitHubCalls
from pipeline.providers.github_hooks import soon
from pipeline.providers.runs import ListedRun, listed_run, told
from topics.keys import canonical_host

_PER_PAGE: Final = 100
#: GitHub shows no more than 1,000 runs of a search.
_MOST_PAGES: Final = 10


class GitHubRuns:
    """A :class:`pipeline.providers.runs.RunLog`.

    Args:
        host: GitHub's, for keys.
        repo: ``owner/name``.
        calls: to its API.
    """

    def __init__(self, host: str, repo: str, calls: GitHubCalls) -> None:
        self._host = canonical_host(host)
        self._repo = repo
        self._calls = calls
        self.name = f"github:{self._host}:runs:{repo}"

    def runs(self, since: int, page: int) -> tuple[Sequence[ListedRun], bool]:
        """See :class:`pipeline.providers.runs.RunLog`."""
        begun = datetime.fromtimestamp(since // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        found = self._page(
            f"/repos/{self._repo}/actions/runs?created={quote(f'>={begun}')}", "workflow_runs", page
        )
        runs = [known for each in found if (known := listed_run(each)) is not None]
        return runs, len(found) == _PER_PAGE and page < _MOST_PAGES

    def facts(self, run: ListedRun, now: int) -> Sequence[Fact]:
        """See :class:`pipeline.providers.runs.RunLog`."""
        path = f"/repos/{self._repo}/actions/runs/{run.id}/jobs?filter=all"
        jobs: list[Any] = []
        for page in range(1, _MOST_PAGES + 1):
            found = self._page(path, "jobs", page)
            jobs += (each for each in found if isinstance(each, dict))
            if len(found) < _PER_PAGE:
                break
        return told(("github", self._host, self._repo), run.body, jobs, now)

    def opens(self) -> float:
        """See :class:`pipeline.providers.runs.RunLog`."""
        return soon(self._calls, self._calls.lane(self._repo))

    def _page(self, path: str, name: str, page: int) -> list[Any]:
        reply = self._calls.get(f"{path}&per_page={_PER_PAGE}&page={page}", self._repo)
        found = reply.body.get(name)
        if reply.missing:
            raise Failed(Detail.FORBIDDEN)
        if not isinstance(found, list):
            raise Failed(Detail.MALFORMED, again=True)
        return found
