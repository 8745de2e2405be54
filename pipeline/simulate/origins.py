"""Where the simulated runs come from, and what steps their jobs take.

Nothing here draws from the world's own generator, so a seed's times, order and jobs do not depend
on it. The shares are assumptions.
"""

from __future__ import annotations

import random
from bisect import bisect
from functools import lru_cache
from itertools import accumulate
from typing import Final, NamedTuple

ORGANISATION: Final = "example-org"
#: Who pushes, opens pull requests and presses buttons.
_PEOPLE: Final = tuple(
    f"{name}-{team}"
    for team in ("core", "web", "infra", "data")
    for name in ("ada", "bob", "chen", "dina", "emil", "fay", "gus", "hana")
)
#: Who opens pull requests from a fork of their own.
_OUTSIDERS: Final = tuple(f"contributor-{n}" for n in range(1, 9))
_BOT: Final = "dependabot[bot]"
#: All who can start a run.
ACTORS: Final = (*_PEOPLE, *_OUTSIDERS, _BOT)

# What starts a run of a branch, and its share.
_ON_MAIN: Final = {"push": 60, "schedule": 15, "merge_group": 15, "workflow_dispatch": 10}
_ON_BRANCH: Final = {"pull_request": 70, "push": 25, "workflow_dispatch": 5}
_ON_TIME: Final = {"schedule": 85, "workflow_dispatch": 15}
_FORKS: Final = 0.15
_BOTS: Final = 0.15


def repository_of(number: int) -> str:
    """The full name of a repository of the world."""
    return f"{ORGANISATION}/repo-{number:02d}"


class Origin(NamedTuple):
    """What started a run. Blank and 0 mean unknown, or that GitHub does not name it."""

    actor: str = ""
    trigger: str = ""
    pull_request: int = 0
    #: Where the commit comes from: a fork, or the run's own repository.
    head_repo: str = ""


def origin_of(seed: int, run: int, repo: str, workflow: str, branch: str) -> Origin:
    """The origin of a run, by its id; ``repo`` is its repository's full name."""
    rng = random.Random(f"origin {seed} {run}")
    if workflow == "Nightly":
        shares = _ON_TIME
    else:
        shares = _ON_BRANCH if branch.startswith("feature/") else _ON_MAIN
    steps = list(accumulate(shares.values()))
    trigger = list(shares)[bisect(steps, rng.randrange(steps[-1]))]
    actor = rng.choice(_PEOPLE)
    if trigger != "pull_request":
        return Origin(actor, trigger, 0, repo)
    dice = rng.random()
    if dice < _FORKS:
        # GitHub names no pull request for a run whose head is a fork.
        actor = rng.choice(_OUTSIDERS)
        return Origin(actor, trigger, 0, f"{actor}/{repo.partition('/')[2]}")
    number = rng.randrange(1, 4_000)
    return Origin(_BOT if dice < _FORKS + _BOTS else actor, trigger, number, repo)


def presser_of(origin: Origin, run: int, attempt: int) -> str:
    """Who started this attempt of a run: whoever pressed "re-run" from the second on."""
    return origin.actor if attempt == 1 else _PEOPLE[(run + attempt) % len(_PEOPLE)]


class PlannedStep(NamedTuple):
    """A step of a job that is over. Times are in thousandths of the job's time."""

    number: int
    name: str
    conclusion: str
    begins: int
    ends: int


_WORK: Final = (
    *("Set up Python", "Restore cache", "Install dependencies", "Lint", "Build", "Run tests"),
    *("Upload coverage", "Package"),
)
#: As many as there are steps at which a job may end.
SPOTS: Final = 7
#: How a job's end shows in the step at which it ended.
_CUT: Final = {"failure": "failure", "cancelled": "cancelled", "timed_out": "cancelled"}


@lru_cache(maxsize=1_024)
def plan(count: int, conclusion: str, spot: int) -> tuple[PlannedStep, ...]:
    """The steps of a job with this conclusion, at least 3; ``spot`` picks which one it ended at.

    What follows that step is skipped: GitHub gives a skipped step start and completion at the
    same time. Clean-up runs however the job went.
    """
    posts = 1 if count >= 5 else 0
    work = ["Check out the code", *_WORK][: count - 2 - posts]
    names = ["Set up job", *work, *["Post Check out the code"] * posts, "Complete job"]
    cut = _CUT.get(conclusion)
    last = 1 + spot % len(work) if cut else len(names)
    # The later the step, the longer; set-up and clean-up are short.
    weights = [1, *range(2, 2 + len(work)), *[0] * posts, 0]
    weights = [0 if last < n <= len(work) else weight for n, weight in enumerate(weights)]
    total = sum(weights)
    planned: list[PlannedStep] = []
    at = 0
    for n, (name, weight) in enumerate(zip(names, weights, strict=True)):
        done = at + weight
        word = "success"
        if n == last and cut:
            word = cut
        elif last < n <= len(work):
            word = "skipped"
        # Clean-up steps are numbered after a gap.
        number = n + 1 if n <= len(work) else n + 1 + len(work)
        planned.append(PlannedStep(number, name, word, at * 1000 // total, done * 1000 // total))
        at = done
    return tuple(planned)
