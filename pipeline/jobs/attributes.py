"""What a job is: its ids, its labels, and of each text the one that was said last.

The rules stand in the table of :mod:`pipeline.jobs.facts`. Like all there, adding is a join. A text
is declared once, in the class of those who say it; all below goes by the names declared there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import compress
from operator import itemgetter
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import astuple, replace

from topics.models import JobAttributes


class _JobTexts(Struct, frozen=True, omit_defaults=True, gc=False):
    """What the job's own events say. Their stamp is ``at``."""

    repo: str = ""
    workflow: str = ""
    name: str = ""
    branch: str = ""
    sha: str = ""
    url: str = ""
    runner_group: str = ""


class _RunTexts(_JobTexts, frozen=True, omit_defaults=True, gc=False):
    """What the run says about its jobs. Their stamp is ``run_at``."""

    actor: str = ""
    trigger: str = ""
    head_repo: str = ""


class Attributes(_RunTexts, frozen=True, omit_defaults=True, gc=False):
    """What the job is. Blank and 0 mean unknown.

    Each who speaks has a stamp: when its texts were last said. ``older`` is the same for each text
    that was last said at another time. See :func:`_stamp`.
    """

    run_id: int = 0
    run_attempt: int = 0
    pull_request: int = 0
    labels: tuple[str, ...] = ()
    pool: str = ""
    at: int = 0
    run_at: int = 0
    #: Pools come from dispatchers, which say nothing else.
    pool_at: int = 0
    older: dict[str, int] = {}


BLANK: Final = Attributes()
#: By place, which is faster: texts first, as they are declared.
_make: Final[Callable[..., Attributes]] = Attributes

_JOB_NAMES: Final = _JobTexts.__struct_fields__
_RUN_NAMES: Final = _RunTexts.__struct_fields__[len(_JOB_NAMES) :]
_JOB, _RUN = slice(len(_JOB_NAMES)), slice(len(_JOB_NAMES), len(_JOB_NAMES) + len(_RUN_NAMES))
#: What a fact says of these, from the fields of its model. Here and below all of a speaker's texts
#: at once, at the speed of C: this is the hottest part of the fold.
_job_texts: Final[Callable[[Mapping[str, Any]], tuple[str, ...]]] = itemgetter(*_JOB_NAMES)
_run_texts: Final[Callable[[Mapping[str, Any]], tuple[str, ...]]] = itemgetter(*_RUN_NAMES)
#: What a dispatcher does not speak of, as a rule: all but pool and repository, the first text.
_UNTOLD_NAMES: Final = (
    *_RunTexts.__struct_fields__[1:], "run_id", "run_attempt", "pull_request", "labels",
)  # fmt: skip
_untold: Final[Callable[[Mapping[str, Any]], tuple[Any, ...]]] = itemgetter(*_UNTOLD_NAMES)
_UNTOLD: Final = _untold(JobAttributes().__dict__)
_NO_JOB_TEXTS: Final = ("",) * len(_JOB_NAMES)
_NO_RUN_TEXTS: Final = ("",) * len(_RUN_NAMES)

#: Added to the stamp of what is worth less, whenever it was said: it stays below all others.
_LESSER: Final = -(2**43)


def _stamp(a: Attributes, name: str, at: int) -> int:
    """When a known text was last said, in ms; so far below zero for what is worth less."""
    return a.older.get(name, at)


def _covers(said: tuple[str, ...], known: tuple[str, ...]) -> bool:
    """Whether at least all that is known is said, too."""
    return "" not in said or "" not in compress(said, known)


def describe(a: Attributes, said: JobAttributes, at: int) -> Attributes:
    """Add what a fact of the time ``at`` says the job is; ``a`` itself when that adds nothing.

    What the run says comes with a ``trigger``. An ``actor`` without one is who caused the event,
    which is the lesser word.
    """
    fields = said.__dict__
    by_dispatcher = not (said.run_id or said.name or said.url)
    if by_dispatcher and (known := _told(a, fields, at)) is not None:
        return known
    texts = _job_texts(fields)
    run_texts = _run_texts(fields)
    if by_dispatcher:
        # It may know the repository, but not better than the provider.
        return join_attributes(a, _alone(said, at, texts, run_texts, at + _LESSER, {}))
    if "${{" in said.name:
        # A skipped job may carry its unevaluated expression: ``build (${{ matrix.os }})``.
        return join_attributes(a, _alone(said, at, texts, run_texts, at, {"name": at + _LESSER}))
    if not a.older and not said.pool:
        known = _usual(a, said, at, texts, run_texts)
        if known is not None:
            return known
    return join_attributes(a, _alone(said, at, texts, run_texts, at, {}))


def _usual(
    a: Attributes, said: JobAttributes, at: int, texts: tuple[str, ...], run_texts: tuple[str, ...]
) -> Attributes | None:
    """Nearly every fact: later, and says at least all that is known of what it speaks of."""
    fields = astuple(a)
    stamp, run_at = at, a.run_at
    if texts == _NO_JOB_TEXTS:
        texts, stamp = fields[_JOB], a.at
    elif at <= a.at or ("" in texts and "" in compress(texts, fields)):
        return None
    known = fields[_RUN]
    if run_texts != known:
        told = at if said.trigger else at + _LESSER
        if (told > run_at or not run_at) and _covers(run_texts, known):
            run_at = told
        elif (told < run_at or run_texts == _NO_RUN_TEXTS) and _covers(known, run_texts):
            run_texts = known
        else:
            return None
    elif run_at and run_at < (told := at if said.trigger else at + _LESSER):
        run_at = told
    labels = a.labels
    if labels != said.labels and said.labels:
        labels = max(labels, said.labels, key=_labels_rank) if labels else said.labels
    return _make(
        *texts,
        *run_texts,
        a.run_id if a.run_id >= said.run_id else said.run_id,
        a.run_attempt if a.run_attempt >= said.run_attempt else said.run_attempt,
        a.pull_request if a.pull_request >= said.pull_request else said.pull_request,
        labels,
        a.pool,
        stamp,
        run_at,
        a.pool_at,
    )


def _alone(
    said: JobAttributes,
    at: int,
    texts: tuple[str, ...],
    run_texts: tuple[str, ...],
    stamp: int,
    older: dict[str, int],
) -> Attributes:
    """What one fact says, its job's texts with this stamp."""
    return _make(
        *texts,
        *run_texts,
        said.run_id,
        said.run_attempt,
        said.pull_request,
        said.labels,
        said.pool,
        stamp,
        stamp if said.trigger else at + _LESSER,
        at if said.pool else 0,
        older,
    )


def _told(a: Attributes, fields: Mapping[str, Any], at: int) -> Attributes | None:
    """Add what a dispatcher says where that is easy: as nearly always, pool and repository."""
    if _untold(fields) != _UNTOLD:
        return None
    pool, pool_at = fields["pool"], at
    if not pool or (at, pool) <= (a.pool_at, a.pool):
        pool, pool_at = a.pool, a.pool_at
    repo, lesser = fields["repo"], at + _LESSER
    if not repo or (a.repo and a.at >= 0 and not a.older):
        # Of the repository it says nothing, or the provider has said it.
        if (pool_at, pool) == (a.pool_at, a.pool):
            return a
        return replace(a, pool=pool, pool_at=pool_at)
    if a.older or astuple(a)[_JOB][1:] != _NO_JOB_TEXTS[1:]:
        return None
    if a.repo and (lesser, repo) <= (a.at, a.repo):
        repo, lesser = a.repo, a.at
    return replace(a, repo=repo, at=lesser, pool=pool, pool_at=pool_at)


def join_attributes(a: Attributes, b: Attributes) -> Attributes:
    """Everything both know; ``a`` itself when ``b`` adds nothing."""
    texts: dict[str, Any] = {}
    older: dict[str, int] = {}
    at = _join_texts(a, b, a.at, b.at, _JOB_NAMES, texts, older)
    run_at = _join_texts(a, b, a.run_at, b.run_at, _RUN_NAMES, texts, older)
    pool_at, pool = max((a.pool_at, a.pool), (b.pool_at, b.pool))
    joined = Attributes(
        run_id=max(a.run_id, b.run_id),
        run_attempt=max(a.run_attempt, b.run_attempt),
        pull_request=max(a.pull_request, b.pull_request),
        labels=max(a.labels, b.labels, key=_labels_rank),
        pool=pool,
        at=at,
        run_at=run_at,
        pool_at=pool_at,
        older=older,
        **texts,
    )
    return a if joined == a else joined


def _join_texts(
    a: Attributes,
    b: Attributes,
    a_at: int,
    b_at: int,
    names: tuple[str, ...],
    texts: dict[str, Any],
    older: dict[str, int],
) -> int:
    """Of each text the one said last, into ``texts``; the stamp of those that were said last."""
    stamps: dict[str, int] = {}
    for name in names:
        mine, other = getattr(a, name), getattr(b, name)
        if not mine and not other:
            continue
        if not other:
            texts[name], stamps[name] = mine, _stamp(a, name, a_at)
        elif not mine:
            texts[name], stamps[name] = other, _stamp(b, name, b_at)
        else:
            # Of two said at the same time the greater, so that order does not matter.
            stamps[name], texts[name] = max(
                (_stamp(a, name, a_at), mine), (_stamp(b, name, b_at), other)
            )
    at = max(stamps.values(), default=0)
    for name, stamp in stamps.items():
        if stamp != at:
            older[name] = stamp
    return at


def _labels_rank(labels: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    return len(labels), labels
