"""The runs of a repository of Gitea's and their jobs (Gitea 1.25 or later).

The words are those of :mod:`pipeline.providers.gitea_api`. The list is by age, the newest first,
and cannot be asked for runs since a time; so it is read until one began earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from pipeline.providers.api import Detail
from pipeline.providers.base import Fact
from pipeline.providers.calls import Calls, Failed
from pipeline.providers.gitea_api import told_job, told_run
from pipeline.providers.github_hooks import soon
from pipeline.providers.runs import ListedRun, listed_run, told
from topics.keys import canonical_host

#: What servers give at most, unless set otherwise.
_PER_PAGE: Final = 50
_MOST_PAGES: Final = 20


class GiteaRuns:
    """A :class:`pipeline.providers.runs.RunLog`.

    Args:
        url: of Gitea itself; its host is that of its jobs' keys.
        repo: ``owner/name``.
        calls: to its API.
    """

    def __init__(self, url: str, repo: str, calls: Calls) -> None:
        self._host = canonical_host(url)
        self._repo = repo
        self._calls = calls
        self.name = f"gitea:{self._host}:runs:{repo}"

    def runs(self, since: int, page: int) -> tuple[Sequence[ListedRun], bool]:
        """See :class:`pipeline.providers.runs.RunLog`."""
        found = self._page(f"/repos/{self._repo}/actions/runs", "workflow_runs", page)
        young = [each for each in found if not _before(each, since)]
        runs = [run for body in _each(told_run, young) if (run := listed_run(body)) is not None]
        full = len(found) == _PER_PAGE == len(young)
        return runs, full and page < _MOST_PAGES

    def facts(self, run: ListedRun, now: int) -> Sequence[Fact]:
        """See :class:`pipeline.providers.runs.RunLog`."""
        path = f"/repos/{self._repo}/actions/runs/{run.id}/jobs"
        jobs: list[Mapping[str, Any]] = []
        for page in range(1, _MOST_PAGES + 1):
            found = self._page(path, "jobs", page)
            jobs += _each(told_job, found)
            if len(found) < _PER_PAGE:
                break
        return told(("gitea", self._host, self._repo), run.body, jobs, now)

    def opens(self) -> float:
        """See :class:`pipeline.providers.runs.RunLog`."""
        return soon(self._calls, "")

    def _page(self, path: str, name: str, page: int) -> list[Any]:
        reply = self._calls.get(f"{path}?limit={_PER_PAGE}&page={page}")
        found = reply.body.get(name)
        if reply.missing:
            raise Failed(Detail.FORBIDDEN)
        if found is None and name in reply.body:
            return []
        if not isinstance(found, list):
            raise Failed(Detail.MALFORMED, again=True)
        return found


def _each(
    translated: Callable[[Mapping[str, Any]], dict[str, Any]], found: Sequence[Any]
) -> Iterator[dict[str, Any]]:
    """Each in GitHub's words. Those that Gitea itself knows nothing of are left out."""
    for body in found:
        with suppress(Failed):
            if isinstance(body, dict):
                yield translated(body)


def _before(run: Any, since: int) -> bool:
    """Whether a run began before that. One that has not begun says so with the year 1970."""
    try:
        at = datetime.fromisoformat(run.get("started_at")).timestamp()
    except (AttributeError, TypeError, ValueError, OverflowError):
        return False
    return 86_400 < at < since / 1000
