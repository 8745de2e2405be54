"""What a provider's REST API says about a job, as an answer and facts: one table for all of them.

| job | its run | answer |
| --- | --- | --- |
| queued, or held back | open | ``queued`` |
| the same | over | ``ghost`` |
| in progress | (not asked) | ``in_progress`` |
| completed | (not asked) | ``completed`` |
| 404, 410 | over, or 404, 410 | ``gone`` |
| 404, 410 | open | ``unknown``: an API that lies must not harm a live job |
| anything else | | ``unknown`` |

Unknown means wait (law L6), so whatever contradicts the question or itself is unknown: another job
than was asked for, another run, a queued job with a conclusion. Two more:

* **404 is also how a provider hides what we may not see.** When neither job nor run are found, it
  is asked for something that is there: unless that is visible, the answer is unknown,
  ``forbidden``.
* **A job of which no run is known cannot be called gone.** The provider never said that it is its:
  the key may be wrong.

A provider whose words are others than GitHub's has them translated, and GitHub's rules
(``pipeline.providers.github``) make the facts.
"""

from __future__ import annotations

import json
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Literal

from pipeline.providers.api import Detail, Said, place_of
from pipeline.providers.base import Fact
from pipeline.providers.calls import Calls, Failed, Reply
from pipeline.providers.github import facts
from topics.keys import canonical_host, parse_job_key
from topics.models import Delivery, Unreadable
from topics.recovery import Answer, Probe

#: A job that no runner executes yet, in GitHub's words.
QUEUED: Final = frozenset({"queued", "waiting", "pending", "requested"})
_ID: Final = re.compile(r"[1-9][0-9]{0,18}")

RunState = Literal["open", "over", "missing"]


class RestClient:
    """Asks the API of one host about its jobs. A :class:`pipeline.providers.api.Client`.

    What differs between providers are the four questions at its end.

    Args:
        host: whose jobs are asked about, and whom the credentials are for. Jobs of other hosts get
            no answer: a key may be forged, and a token must not go where it says.
        calls: to its API.
        about: what is asked and as whom, for people.
        clock: monotonic, seconds.
        wall: Unix time, seconds.
    """

    #: What keys of its jobs begin with.
    provider: ClassVar[str]
    #: What names a repository in a path. Nothing else gets into one.
    repos: ClassVar[re.Pattern[str]]

    def __init__(
        self,
        host: str,
        calls: Calls,
        about: str,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.host = canonical_host(host)
        self.about = about
        self._calls = calls
        self._clock = clock
        self._wall = wall

    @property
    def place(self) -> str:
        """See :func:`pipeline.providers.api.place_of`."""
        return f"{self.provider}:{self.host}"

    def lane(self, probe: Probe) -> str:
        """The account, where each has a budget of its own."""
        return self._calls.lane(probe.repo)

    def opens(self, lane: str, flights: int) -> float:
        """See :meth:`pipeline.providers.budget.Budget.opens`."""
        return self._calls.budget(lane).opens(flights)

    def remaining(self) -> int | None:
        """What the provider says is left."""
        return self._calls.remaining()

    def trouble(self) -> str:
        """What the API fails with."""
        failing = self._calls.failing
        if failing is None:
            return ""
        return f"the API of {self.host} fails for {self._clock() - failing[0]:.0f} s: {failing[1]}"

    def close(self) -> None:
        """Let go of connections."""
        self._calls.close()

    def ask(self, probe: Probe) -> Said:
        """Ask once."""
        try:
            return self._ask(probe)
        except Failed as failed:
            return unknown(failed.detail, failed.again)
        except Unreadable:
            return unknown(Detail.MALFORMED)

    def _ask(self, probe: Probe) -> Said:
        job_id = parse_job_key(probe.key)[2]
        if (
            place_of(probe.key) != self.place
            or not self.repos.fullmatch(probe.repo)
            or not _ID.fullmatch(job_id)
        ):
            return unknown(Detail.UNSUPPORTED)
        reply = self._job(probe.repo, job_id)
        if reply.missing:
            return self._without_job(probe)
        job = reply.body
        run_id = whole(job, "run_id") or probe.run_id
        if whole(job, "id") != int(job_id) or (probe.run_id and run_id != probe.run_id):
            return unknown(Detail.CONTRADICTORY)
        said = self.facts(probe, "job", "api_job", reply.text)
        if any(fact.kind == "job.fact" and fact.key != probe.key for fact in said):
            return unknown(Detail.CONTRADICTORY)
        status = word(job, "status")
        if status == "completed":
            return Said(Answer.COMPLETED, said)
        if status == "in_progress":
            return Said(Answer.IN_PROGRESS, said)
        if status not in QUEUED:
            return unknown(Detail.MALFORMED)
        if job.get("conclusion") is not None:
            return unknown(Detail.CONTRADICTORY)
        if not run_id:
            return unknown(Detail.MALFORMED)
        return self._waiting(probe, job, run_id, said)

    def _waiting(
        self, probe: Probe, job: Mapping[str, Any], run_id: int, said: tuple[Fact, ...]
    ) -> Said:
        """What is said of a job that no runner executes yet. ``said`` are its own facts."""
        state, run = self._run(probe.repo, run_id, whole(job, "run_attempt") or probe.attempt)
        if state == "missing":
            return unknown(Detail.CONTRADICTORY)
        # As a webhook about the run would say it; the text is known to be an object.
        wrapped = f'{{"workflow_run":{run.text}}}'
        said += self.facts(probe, "run", "workflow_run", wrapped)
        return Said(Answer.QUEUED if state == "open" else Answer.GHOST, said)

    def _without_job(self, probe: Probe) -> Said:
        if not probe.run_id:
            return unknown(Detail.UNSUPPORTED)
        state, _ = self._run(probe.repo, probe.run_id, probe.attempt)
        if state == "open":
            return unknown(Detail.CONTRADICTORY)
        if state == "missing" and not self._visible(probe.repo):
            return unknown(Detail.FORBIDDEN)
        return Said(Answer.GONE)

    def facts(self, probe: Probe, what: str, event: str, text: str) -> tuple[Fact, ...]:
        """The facts in a body of GitHub's words. Raises Unreadable."""
        now = int(self._wall() * 1000)
        delivery = Delivery(
            # Of each question its own: what was so before may be news now.
            id=f"{probe.id[:240]}:{what}",
            kind=f"{self.provider}.{event}",
            source=self.provider,
            occurred_at=now,
            received_at=now,
            key=probe.key,
            host=self.host,
            payload=text,
        )
        return tuple(facts(delivery, self.provider))

    # --- what differs ---------------------------------------------------------------------------

    @abstractmethod
    def _job(self, repo: str, job_id: str) -> Reply:
        """The job, in GitHub's words. Raises :class:`Failed`."""

    @abstractmethod
    def _run(self, repo: str, run_id: int, attempt: int) -> tuple[RunState, Reply]:
        """How the run stands in the job's attempt (0: in its latest), and the run in GitHub's
        words. Raises :class:`Failed`."""

    @abstractmethod
    def _visible(self, repo: str) -> bool:
        """Whether we may see jobs of the repository, if there are any. Raises :class:`Failed`."""


def unknown(detail: Detail, again: bool = False) -> Said:
    """That nothing can be relied on, and why."""
    return Said(Answer.UNKNOWN, detail=detail.value, again=again)


def whole(body: Mapping[str, Any], name: str) -> int:
    """A whole number above 0, else 0."""
    value = body.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def word(body: Mapping[str, Any], name: str) -> str:
    """A text, else blank."""
    value = body.get(name)
    return value if isinstance(value, str) else ""


def translated(body: Mapping[str, Any]) -> Reply:
    """A reply of other words."""
    return Reply(body, json.dumps(body))
