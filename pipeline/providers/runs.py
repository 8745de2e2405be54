"""A repository's latest runs and their jobs, as its provider's API lists them, and the facts in it.

For what no webhook told. The protocol behind which GitHub's API and Gitea's stand.

**Jobs that a re-run copied.** GitHub lists the jobs that were not run again under new ids in each
later attempt, with the times of the first. No webhook ever tells of those, and they would count
twice, so they are left out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pipeline.providers.base import Fact
from pipeline.providers.github import facts
from pipeline.providers.rest import whole, word
from topics.models import Delivery, JobFact, Unreadable

log = logging.getLogger(__name__)

#: Who says so, in facts.
SOURCE: Final = "api"


@dataclass(frozen=True)
class ListedRun:
    """A run as a list has it, in GitHub's words.

    ``stamp`` differs when something of the run does. While it is ``open`` its jobs may change, and
    the run may not show it.
    """

    id: int
    stamp: str
    open: bool
    body: Mapping[str, Any]


class RunLog(Protocol):
    """The runs of one repository. Safe from several threads."""

    @property
    def name(self) -> str:
        """Which repository it is, for keys and people: ``github:github.com:runs:octo/repo``."""
        ...

    def runs(self, since: int, page: int) -> tuple[Sequence[ListedRun], bool]:
        """A page, from 1 on, of the runs that began since then (ms), the newest first; and whether
        there may be a further one. Raises :class:`pipeline.providers.calls.Failed`."""
        ...

    def facts(self, run: ListedRun, now: int) -> Sequence[Fact]:
        """What the API says of a run and its jobs by now (ms). Raises like :meth:`runs`."""
        ...

    def opens(self) -> float:
        """In how many seconds a further call may be made; 0 is now."""
        ...


def listed_run(body: Any) -> ListedRun | None:
    """A run; None for what is none."""
    if not isinstance(body, dict) or not whole(body, "id"):
        return None
    stamp = "/".join(
        (word(body, "updated_at"), word(body, "status"), word(body, "conclusion"),
         str(whole(body, "run_attempt")))
    )  # fmt: skip
    return ListedRun(whole(body, "id"), stamp, word(body, "status") != "completed", body)


def told(
    place: tuple[str, str, str],
    run: Mapping[str, Any],
    jobs: Iterable[Mapping[str, Any]],
    now: int,
) -> list[Fact]:
    """The facts in a run and its jobs, in GitHub's words. ``place`` is provider, host, repository.

    What cannot be read is passed over: the others are no worse for it.
    """
    repo = place[2]
    found: list[Fact] = []
    for job in originals(jobs):
        found += _facts(place, "api_job", job, f"job:{whole(job, 'id')}", now)
    wrapped = {"workflow_run": run, "repository": {"full_name": repo}}
    found += _facts(place, "workflow_run", wrapped, f"run:{whole(run, 'id')}", now)
    return [_of(repo, fact) for fact in found]


def _of(repo: str, fact: Fact) -> Fact:
    """The fact of a job with its repository, which a job in the API does not say."""
    if not isinstance(fact, JobFact) or fact.job is None or fact.job.repo:
        return fact
    return fact.model_copy(update={"job": fact.job.model_copy(update={"repo": repo})})


def originals(jobs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The jobs of a run without those that a later attempt copied."""
    seen: set[tuple[Any, ...]] = set()
    found = []
    for job in sorted(jobs, key=lambda each: whole(each, "run_attempt")):
        looks = tuple(map(repr, (job.get(name) for name in _COPIED)))
        if word(job, "completed_at") and looks in seen and whole(job, "run_attempt") > 1:
            continue
        seen.add(looks)
        found.append(job)
    return found


#: What a copy has in common with the job that it is one of.
_COPIED: Final = ("name", "started_at", "completed_at", "conclusion", "runner_id", "runner_name")


def _facts(
    place: tuple[str, str, str], event: str, body: Mapping[str, Any], name: str, now: int
) -> Sequence[Fact]:
    provider, host, repo = place
    delivery = Delivery(
        # With a digest of the body it is the fact's id: the same said again is the same fact.
        id=f"api:{repo}:{name}",
        kind=f"{provider}.{event}",
        source=SOURCE,
        occurred_at=now,
        received_at=now,
        host=host,
        key=f"{provider}:{host}:{name.rpartition(':')[2]}",
        payload=json.dumps(body),
    )
    try:
        return tuple(facts(delivery, provider))
    except Unreadable as why:
        log.warning("%s of %s is passed over: %s", name, repo, why.error)
        return ()
