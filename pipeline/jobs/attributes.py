"""What a job is: its ids, its labels, and of each text the one that was said last.

The rules stand in the table of :mod:`pipeline.jobs.facts`. Like all there, adding is a join.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from topics.models import JobAttributes


class Attributes(Struct, frozen=True, omit_defaults=True, gc=False):
    """What the job is. Blank and 0 mean unknown.

    ``at`` is when the text was last said, ``older`` the same for each field that was last said at
    another time. See :func:`_stamp`.
    """

    run_id: int = 0
    run_attempt: int = 0
    repo: str = ""
    workflow: str = ""
    name: str = ""
    branch: str = ""
    sha: str = ""
    url: str = ""
    labels: tuple[str, ...] = ()
    runner_group: str = ""
    pool: str = ""
    at: int = 0
    older: dict[str, int] = {}
    pool_at: int = 0


BLANK: Final = Attributes()

#: Text fields whose stamps are ``at``, or in ``older``. Pools come from dispatchers, which say
#: nothing else, so a pool has a stamp of its own.
_TEXTS: Final = ("repo", "workflow", "name", "branch", "sha", "url", "runner_group")

#: Added to the stamp of what is worth less, whenever it was said: it stays below all others.
_LESSER: Final = -(2**43)


def _stamp(a: Attributes, name: str) -> int:
    """When a known text was last said, in ms; so far below zero for what is worth less."""
    return a.older.get(name, a.at)


def describe(a: Attributes, said: JobAttributes, at: int) -> Attributes:
    """Add what a fact of the time ``at`` says the job is; ``a`` itself when that adds nothing."""
    if not (said.run_id or said.name or said.url):
        # A dispatcher's word: it may know the repository, but not better than the provider.
        if not (said.labels or said.workflow or said.branch or said.sha or said.runner_group):
            known = _told(a, said, at)
            if known is not None:
                return known
        b = Attributes(
            repo=said.repo,
            workflow=said.workflow,
            branch=said.branch,
            sha=said.sha,
            labels=said.labels,
            runner_group=said.runner_group,
            run_attempt=said.run_attempt,
            pool=said.pool,
            at=at + _LESSER,
            pool_at=at if said.pool else 0,
        )
        return join_attributes(a, b)
    if "${{" in said.name:
        # A skipped job may carry its unevaluated expression: ``build (${{ matrix.os }})``.
        older = {"name": at + _LESSER}
    elif (
        at > a.at
        and not a.older
        and not said.pool
        and (said.name or said.repo or said.url)
        and (said.repo or not a.repo)
        and (said.workflow or not a.workflow)
        and (said.name or not a.name)
        and (said.branch or not a.branch)
        and (said.sha or not a.sha)
        and (said.url or not a.url)
        and (said.runner_group or not a.runner_group)
    ):
        # Nearly every fact: later, and says at least all that is known. Written out, because
        # this is the hottest part of the fold.
        labels = a.labels
        if labels != said.labels and said.labels:
            labels = max(labels, said.labels, key=_labels_rank)
        return Attributes(
            a.run_id if a.run_id >= said.run_id else said.run_id,
            a.run_attempt if a.run_attempt >= said.run_attempt else said.run_attempt,
            said.repo,
            said.workflow,
            said.name,
            said.branch,
            said.sha,
            said.url,
            labels,
            said.runner_group,
            a.pool,
            at,
            {},
            a.pool_at,
        )
    else:
        older = {}
    b = Attributes(
        said.run_id,
        said.run_attempt,
        said.repo,
        said.workflow,
        said.name,
        said.branch,
        said.sha,
        said.url,
        said.labels,
        said.runner_group,
        said.pool,
        at,
        older,
        at if said.pool else 0,
    )
    return join_attributes(a, b)


def _told(a: Attributes, said: JobAttributes, at: int) -> Attributes | None:
    """Add what a dispatcher says where that is easy: as nearly always, pool and repository."""
    run_attempt = a.run_attempt if a.run_attempt >= said.run_attempt else said.run_attempt
    pool, pool_at = a.pool, a.pool_at
    if said.pool and (at, said.pool) > (pool_at, pool):
        pool, pool_at = said.pool, at
    repo, stamp = a.repo, a.at
    if said.repo and not (repo and stamp >= 0 and not a.older):
        if a.older or a.workflow or a.name or a.branch or a.sha or a.url or a.runner_group:
            return None
        lesser = at + _LESSER
        if not repo or (lesser, said.repo) > (stamp, repo):
            repo, stamp = said.repo, lesser
    return Attributes(
        a.run_id,
        run_attempt,
        repo,
        a.workflow,
        a.name,
        a.branch,
        a.sha,
        a.url,
        a.labels,
        a.runner_group,
        pool,
        stamp,
        a.older,
        pool_at,
    )


def join_attributes(a: Attributes, b: Attributes) -> Attributes:
    """Everything both know; ``a`` itself when ``b`` adds nothing."""
    texts: dict[str, str] = {}
    stamps: dict[str, int] = {}
    for name in _TEXTS:
        mine, other = getattr(a, name), getattr(b, name)
        if not mine and not other:
            continue
        if not other:
            texts[name], stamps[name] = mine, _stamp(a, name)
        elif not mine:
            texts[name], stamps[name] = other, _stamp(b, name)
        else:
            # Of two said at the same time the greater, so that order does not matter.
            stamps[name], texts[name] = max((_stamp(a, name), mine), (_stamp(b, name), other))
    at = max(stamps.values(), default=0)
    pool_at, pool = max((a.pool_at, a.pool), (b.pool_at, b.pool))
    joined = Attributes(
        run_id=max(a.run_id, b.run_id),
        run_attempt=max(a.run_attempt, b.run_attempt),
        labels=max(a.labels, b.labels, key=_labels_rank),
        pool=pool,
        at=at,
        older={name: stamp for name, stamp in stamps.items() if stamp != at},
        pool_at=pool_at,
        **texts,
    )
    return a if joined == a else joined


def _labels_rank(labels: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    return len(labels), labels
