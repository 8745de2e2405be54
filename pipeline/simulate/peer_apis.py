"""The REST APIs of Gitea and GitLab, as :mod:`pipeline.simulate.api` has GitHub's.

The truth is told with the same :class:`ApiJob` and :class:`ApiRun`; a status is the provider's own
word. Both answer 429 to whoever asks too much. Gitea itself has no limits to tell.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import unquote

from pipeline.simulate.api import BLUNT, Answer, ApiJob, ApiRun, FakeApi, Jobs, Mood, Runs, iso

_GITEA_JOB: Final = re.compile(r"/api/v1/repos/([^/]+/[^/]+)/actions/jobs/(\d+)")
_GITEA_RUN: Final = re.compile(r"/api/v1/repos/([^/]+/[^/]+)/actions/runs/(\d+)")
_GITEA_RUNS: Final = re.compile(
    r"/api/v1/repos/([^/]+/[^/]+)/actions/runs\?limit=(\d+)(?:&page=(\d+))?"
)
_GITEA_JOBS: Final = re.compile(
    r"/api/v1/repos/([^/]+/[^/]+)/actions/runs/(\d+)/jobs\?limit=(\d+)&page=(\d+)"
)
_GITLAB_JOB: Final = re.compile(r"/api/v4/projects/([^/]+)/jobs/(\d+)")
_GITLAB_RUN: Final = re.compile(r"/api/v4/projects/([^/]+)/pipelines/(\d+)")
_GITLAB_PROJECT: Final = re.compile(r"/api/v4/projects/([^/]+)")

#: Go's zero time, as Gitea writes what has not happened.
_NEVER: Final = "1970-01-01T00:00:00Z"
_BLUNT: Final[dict[Mood, Answer]] = {
    **BLUNT,
    Mood.SPENT: (429, b'{"message":"Too Many Requests"}', {}),
    Mood.SECONDARY: (429, b"Retry later\n", {}),
    Mood.FORBIDDEN: (403, b'{"message":"403 Forbidden"}', {}),
    Mood.UNAUTHORISED: (401, b'{"message":"401 Unauthorized"}', {}),
}


class _Peer(FakeApi):
    """What both have in common: a token in one header.

    Args:
        jobs: the truth about jobs.
        runs: the truth about runs, asked for attempt 0.
        token: who must be named by whoever asks; None: nobody.
        clock: Unix time, seconds.
    """

    blunt = _BLUNT
    #: What stands before the token.
    scheme = ""

    def __init__(
        self,
        jobs: Jobs,
        runs: Runs,
        *,
        token: str | None = None,
        port: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._jobs, self._runs, self._token = jobs, runs, token
        super().__init__(port, clock)

    def _opened(self, method: str, path: str, given: str) -> Answer | None:
        known = self._token is None or given == f"{self.scheme}{self._token}"
        return None if known else self.blunt[Mood.UNAUTHORISED]

    def _job(self, number: str, mood: Mood) -> tuple[int, ApiJob] | None:
        lies = mood in (Mood.LYING, Mood.GONE)
        found = None if lies else self._jobs(int(number))
        return None if found is None else (int(number) + (mood is Mood.WRONG), found)

    def _run(self, number: str, mood: Mood) -> ApiRun | None:
        return None if mood is Mood.GONE else self._runs(int(number), 0)


class FakeGitea(_Peer):
    """Gitea's, under ``/api/v1``."""

    limits = ""
    scheme = "token "
    #: Set at any time: the runs of any repository, and the jobs of a run, that its lists show.
    listed: tuple[Callable[[], Iterable[int]], Callable[[int], Iterable[int]]] = (
        lambda: (), lambda run: (),
    )  # fmt: skip

    def _said(self, path: str, mood: Mood) -> dict[str, Any] | None:
        if mood is Mood.HIDING:
            return None
        if match := _GITEA_JOB.fullmatch(path):
            job = self._job(match[2], mood)
            return None if job is None else gitea_job(match[1], *job)
        if match := _GITEA_RUN.fullmatch(path):
            run = self._run(match[2], mood)
            return None if run is None else gitea_run(match[1], int(match[2]), run)
        if match := _GITEA_RUNS.fullmatch(path):
            numbers = sorted(self.listed[0](), reverse=True)
            runs = [gitea_run(match[1], n, each) for n in numbers if (each := self._runs(n, 0))]
            return _shown("workflow_runs", runs, int(match[2]), int(match[3] or 1))
        if match := _GITEA_JOBS.fullmatch(path):
            numbers = list(self.listed[1](int(match[2])))
            jobs = [gitea_job(match[1], n, one) for n in numbers if (one := self._jobs(n))]
            return _shown("jobs", jobs, int(match[3]), int(match[4]))
        return None


def _shown(name: str, found: list[dict[str, Any]], limit: int, page: int) -> dict[str, Any]:
    return {"total_count": len(found), name: found[(page - 1) * limit : page * limit]}


class FakeGitLab(_Peer):
    """GitLab's, under ``/api/v4``."""

    limits = "RateLimit"
    named_in = "private-token"

    def _said(self, path: str, mood: Mood) -> dict[str, Any] | None:
        if mood is Mood.HIDING:
            return None
        if match := _GITLAB_JOB.fullmatch(path):
            job = self._job(match[2], mood)
            if job is None:
                return None
            run = self._runs(job[1].run_id, 0)
            return gitlab_job(unquote(match[1]), *job, run.status if run else "running")
        if match := _GITLAB_RUN.fullmatch(path):
            run = self._run(match[2], mood)
            if run is None:
                return None
            return {"id": int(match[2]), "status": run.status, **run.more}
        if match := _GITLAB_PROJECT.fullmatch(path):
            return {"id": 1, "path_with_namespace": unquote(match[1])}
        return None


def gitea_job(repo: str, job_id: int, job: ApiJob) -> dict[str, Any]:
    """A job as Gitea writes it: what nobody knows is left out."""
    said = {
        "id": job_id,
        "html_url": f"https://git.example/{repo}/actions/runs/{job.run_id}/jobs/{job_id}",
        "run_id": job.run_id,
        "name": job.name,
        "labels": list(job.labels),
        "run_attempt": job.attempt,
        "head_branch": "main",
        "status": job.status,
        "steps": None,
        "created_at": iso(job.created_at) or _NEVER,
        "started_at": iso(job.started_at) or _NEVER,
        "completed_at": iso(job.completed_at) or _NEVER,
    }
    for name in ("conclusion", "runner_id", "runner_name"):
        if value := getattr(job, name):
            said[name] = value
    return {**said, **job.more}


def gitea_run(repo: str, run_id: int, run: ApiRun) -> dict[str, Any]:
    """A run as Gitea writes it."""
    return {
        "id": run_id,
        "html_url": f"https://git.example/{repo}/actions/runs/{run_id}",
        "event": "push",
        "status": run.status,
        "conclusion": run.conclusion or "",
        "started_at": iso(run.started_at) or _NEVER,
        "completed_at": iso(run.updated_at) or _NEVER,
        "actor": {"id": 1, "login": "gopher"},
        **run.more,
    }


def gitlab_job(project: str, job_id: int, job: ApiJob, pipeline: str) -> dict[str, Any]:
    """A job as GitLab writes it, with its pipeline's status."""
    runner = {"id": job.runner_id, "description": job.runner_name, "name": "gitlab-runner"}
    return {
        "id": job_id,
        "status": job.status,
        "name": job.name,
        "stage": "test",
        "ref": "main",
        "created_at": iso(job.created_at),
        "started_at": iso(job.started_at),
        "finished_at": iso(job.completed_at),
        "queued_duration": None,
        "pipeline": {"id": job.run_id, "sha": "0ff3ae19", "ref": "main", "status": pipeline},
        "tag_list": list(job.labels),
        "runner": runner if job.runner_id else None,
        "web_url": f"https://lab.example/{project}/-/jobs/{job_id}",
        **job.more,
    }
