"""What GitHub's REST API says about a job, as an answer and facts.

| job | its run | answer |
| --- | --- | --- |
| queued, waiting, pending, requested | open | ``queued`` |
| the same | over | ``ghost`` |
| in_progress | (not asked) | ``in_progress`` |
| completed | (not asked) | ``completed`` |
| 404, 410 | over, or 404, 410 | ``gone`` |
| 404, 410 | open | ``unknown``: an API that lies must not harm a live job |
| anything else | | ``unknown`` |

Unknown means wait (law L6), so whatever contradicts the question or itself is unknown: another job
than was asked for, another run, a queued job with a conclusion. Two more:

* **404 is also how GitHub hides what we may not see.** When neither job nor run are found, the
  repository is asked for: unless it is visible, the answer is unknown, ``forbidden``.
* **A run that was re-run is open again**, while the job's own attempt is over. So the run is asked
  for the job's attempt. A run that is ``completed`` with ``action_required`` waits for an approval,
  and is open.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from pipeline.providers.api import Detail, Outcome, Said
from pipeline.providers.base import Fact
from pipeline.providers.github import facts
from pipeline.providers.github_calls import App, Failed, GitHubCalls, Reply
from topics.keys import GITHUB_HOST, canonical_host, parse_job_key
from topics.models import Delivery, Unreadable
from topics.recovery import Answer, Probe

_QUEUED: Final = frozenset({"queued", "waiting", "pending", "requested"})
_OPEN: Final = _QUEUED | {"in_progress"}
_REPO: Final = re.compile(r"(?!\.+/)[A-Za-z0-9._-]{1,100}/(?!\.+$)[A-Za-z0-9._-]{1,100}")
_ID: Final = re.compile(r"[1-9][0-9]{0,18}")

RunState = Literal["open", "over", "missing"]


def api_base(host: str) -> str:
    """Where the API of a GitHub host is: github.com, GHE.com or one's own (GHES)."""
    host = canonical_host(host)
    if host == GITHUB_HOST or host.endswith(".ghe.com"):
        return f"https://api.{host}"
    return f"https://{host}/api/v3"


class GitHubApi:
    """Asks the API of one GitHub host about its jobs. A :class:`pipeline.providers.api.Client`.

    Args:
        host: whose jobs are asked about, and whom the credentials are for. Jobs of other hosts get
            no answer: a key may be forged, and a token must not go where it says.
        credentials: an App, or a token.
        base: where its API is; empty: where the host has it.
        per_minute: requests in any 60 s, of each account for an App, else in all.
        count: told how each request ended.
        clock: monotonic, seconds.
        wall: Unix time, seconds.
    """

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
        self._host = canonical_host(host)
        self._clock = clock
        self._wall = wall
        base = base or api_base(self._host)
        self._calls = GitHubCalls(base, credentials, per_minute, count, clock, wall)
        who = f"App {credentials.app_id}" if isinstance(credentials, App) else "a token"
        self.about = f"asks {base} about jobs of {self._host} with {who}"

    def lane(self, probe: Probe) -> str:
        """The account, for an App."""
        return self._calls.lane(probe.repo)

    def opens(self, lane: str, flights: int) -> float:
        """See :meth:`pipeline.providers.budget.Budget.opens`."""
        return self._calls.budget(lane).opens(flights)

    def remaining(self) -> int | None:
        """What GitHub says is left."""
        return self._calls.remaining()

    def trouble(self) -> str:
        """What the API fails with."""
        failing = self._calls.failing
        if failing is None:
            return ""
        return f"the API of {self._host} fails for {self._clock() - failing[0]:.0f} s: {failing[1]}"

    def close(self) -> None:
        """Let go of connections."""
        self._calls.close()

    def ask(self, probe: Probe) -> Said:
        """Ask once."""
        try:
            return self._ask(probe)
        except Failed as failed:
            return _unknown(failed.detail, failed.again)
        except Unreadable:
            return _unknown(Detail.MALFORMED)

    def _ask(self, probe: Probe) -> Said:
        provider, host, job_id = parse_job_key(probe.key)
        if (
            provider != "github"
            or canonical_host(host) != self._host
            or not _REPO.fullmatch(probe.repo)
            or not _ID.fullmatch(job_id)
        ):
            return _unknown(Detail.UNSUPPORTED)
        reply = self._calls.get(probe.repo, f"/actions/jobs/{job_id}")
        if reply.missing:
            return self._without_job(probe)
        job = reply.body
        run_id = _integer(job, "run_id") or probe.run_id
        if _integer(job, "id") != int(job_id) or (probe.run_id and run_id != probe.run_id):
            return _unknown(Detail.CONTRADICTORY)
        said = self._facts(probe, "job", "github.api_job", reply.text)
        if any(fact.kind == "job.fact" and fact.key != probe.key for fact in said):
            return _unknown(Detail.CONTRADICTORY)
        status = job.get("status")
        if status == "completed":
            return Said(Answer.COMPLETED, said)
        if status == "in_progress":
            return Said(Answer.IN_PROGRESS, said)
        if status not in _QUEUED:
            return _unknown(Detail.MALFORMED)
        if job.get("conclusion") is not None:
            return _unknown(Detail.CONTRADICTORY)
        if not run_id:
            return _unknown(Detail.MALFORMED)
        state, run = self._run(probe.repo, run_id, _integer(job, "run_attempt") or probe.attempt)
        if state == "missing":
            return _unknown(Detail.CONTRADICTORY)
        # As a webhook about the run would say it; the text is known to be an object.
        wrapped = f'{{"workflow_run":{run.text}}}'
        said += self._facts(probe, "run", "github.workflow_run", wrapped)
        return Said(Answer.QUEUED if state == "open" else Answer.GHOST, said)

    def _without_job(self, probe: Probe) -> Said:
        if not probe.run_id:
            return _unknown(Detail.UNSUPPORTED)
        state, _ = self._run(probe.repo, probe.run_id, probe.attempt)
        if state == "open":
            return _unknown(Detail.CONTRADICTORY)
        if state == "missing" and self._calls.get(probe.repo, "").missing:
            return _unknown(Detail.FORBIDDEN)
        return Said(Answer.GONE)

    def _run(self, repo: str, run_id: int, attempt: int) -> tuple[RunState, Reply]:
        """How the run stands in the job's attempt (0: in its latest)."""
        reply = self._calls.get(repo, f"/actions/runs/{run_id}")
        latest = _integer(reply.body, "run_attempt")
        if not reply.missing and 0 < attempt < latest:
            reply = self._calls.get(repo, f"/actions/runs/{run_id}/attempts/{attempt}")
        if reply.missing:
            return "missing", reply
        run = reply.body
        if _integer(run, "id") != run_id:
            raise Failed(Detail.CONTRADICTORY)
        status = run.get("status")
        if status in _OPEN:
            return "open", reply
        if status != "completed":
            raise Failed(Detail.MALFORMED)
        return ("open" if run.get("conclusion") == "action_required" else "over"), reply

    def _facts(self, probe: Probe, what: str, kind: str, text: str) -> tuple[Fact, ...]:
        now = int(self._wall() * 1000)
        return tuple(
            facts(
                Delivery(
                    # Of each question its own: what was so before may be news now.
                    id=f"{probe.id[:240]}:{what}",
                    kind=kind,
                    source="github",
                    occurred_at=now,
                    received_at=now,
                    key=probe.key,
                    host=self._host,
                    payload=text,
                )
            )
        )


def _unknown(detail: Detail, again: bool = False) -> Said:
    return Said(Answer.UNKNOWN, detail=detail.value, again=again)


def _integer(body: Mapping[str, Any], name: str) -> int:
    """A whole number above 0, else 0."""
    value = body.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
